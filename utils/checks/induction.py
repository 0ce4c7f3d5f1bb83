"""What chapter 05 asks of a learner's functions."""

import warnings
from functools import cache, partial
from types import SimpleNamespace

import einops
import torch
from transformer_lens import ActivationCache, FactoredMatrix, HookedTransformer, HookedTransformerConfig
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import get_act_name

from utils import induction as ind
from utils.checks.compare import difference
from utils.checks.engine import Chapter
from utils.models import load
from utils.runtime import device

chapter = Chapter(ind)
exercise, check, hint = chapter.exercise, chapter.check, chapter.hint


# ---------------------------------------------------------------- models and activations to try the answers on


def new_model(cfg: HookedTransformerConfig) -> HookedTransformer:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="HookedTransformer is deprecated")
        model = HookedTransformer(cfg).requires_grad_(False)
    model.tokenizer = SimpleNamespace(bos_token_id=7, padding_side="right", pad_token_id=None)
    return model


@cache
def small_model(n_layers: int = 2, n_heads: int = 3) -> HookedTransformer:
    """An attention-only model with random weights, in the format of the two-layer one; all dimensions differ."""
    sizes = dict(n_layers=n_layers, n_heads=n_heads, d_head=4, d_model=10, d_vocab=19, n_ctx=29)
    cfg = HookedTransformerConfig(
        **sizes,
        attn_only=True,
        normalization_type=None,
        positional_embedding_type="shortformer",
        use_attn_result=True,
        device=str(device()),
    )
    model = new_model(cfg)
    generator = torch.Generator().manual_seed(n_layers)
    for name, weight in model.named_parameters():
        if not name.endswith(("b_Q", "b_K", "b_V", "b_O", "b_U")):
            size = 0.4 if "attn" in name else 0.8
            weight.copy_(size * torch.randn(weight.shape, generator=generator))
    return model


@cache
def real_model() -> HookedTransformer:
    """The trained two-layer model."""
    model = load("attn2l")
    model.set_use_attn_result(True)
    return model


def real_repeated(batch: int, seq_len: int) -> torch.Tensor:
    """Repeated sequences for it."""
    model, generator = real_model(), torch.Generator().manual_seed(0)
    passage = torch.randint(0, model.cfg.d_vocab, (batch, seq_len), generator=generator)
    bos = torch.full((batch, 1), model.tokenizer.bos_token_id)
    return torch.cat([bos, passage, passage], dim=1).to(model.W_E.device)


def random_tokens(batch: int, seq: int, seed: int = 0) -> torch.Tensor:
    tokens = torch.randint(0, 19, (batch, seq), generator=torch.Generator().manual_seed(seed))
    return tokens.to(device())


def repeated(batch: int, seq_len: int = 6, seed: int = 0) -> torch.Tensor:
    passage = random_tokens(batch, seq_len, seed)
    return torch.cat([torch.full_like(passage[:, :1], 7), passage, passage], dim=1)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device())


def cached(tokens: torch.Tensor, model: HookedTransformer | None = None, **options):
    return (model or small_model()).run_with_cache(tokens, **options)[1]


def hook_point(name: str, layer: int) -> HookPoint:
    point = HookPoint()
    point.name = get_act_name(name, layer)
    return point


def models():
    return small_model(), small_model(3), small_model(2, 5), real_model()


# ---- generate_repeated_tokens ----


def flaw(tokens, model, seq_len, batch_size) -> str:
    """What keeps `tokens` from being repeated sequences, as a sentence; empty where nothing does."""
    if not isinstance(tokens, torch.Tensor) or tokens.is_floating_point():
        what = f"a tensor of {tokens.dtype}" if isinstance(tokens, torch.Tensor) else type(tokens).__name__
        return f"returned {what}, expected a tensor of integers"
    if tokens.shape != (batch_size, 1 + 2 * seq_len):
        return f"returned shape {list(tokens.shape)}, expected {[batch_size, 1 + 2 * seq_len]}"
    if (tokens[:, 0] != model.tokenizer.bos_token_id).any():
        return f"the first token is {tokens[0, 0]}, expected BOS, {model.tokenizer.bos_token_id}"
    if (tokens[:, 1 : 1 + seq_len] != tokens[:, 1 + seq_len :]).any():
        return "the second passage is not the first one again"
    if tokens.min() < 0 or tokens.max() >= model.cfg.d_vocab:
        return "there are ids that are not in the vocabulary"
    if batch_size > 1 and (tokens == tokens[0]).all():
        return "all sequences of the batch are the same"
    if batch_size * seq_len > 40 and (len(tokens.unique()) < 0.6 * model.cfg.d_vocab):
        return "most tokens of the vocabulary never come up"
    return ""


def same_kind(got, want, *args):
    return flaw(got, *args) if flaw(got, *args) != flaw(want, *args) else None


generate_repeated_tokens = exercise(ind.generate_repeated_tokens, same=same_kind)


@generate_repeated_tokens.cases
def _():
    yield small_model(), 12, 6
    yield small_model(), 5, 1
    yield small_model(3), 14, 9


@generate_repeated_tokens.mistake("you left out BOS: start each row with model.tokenizer.bos_token_id")
def _(model, seq_len, batch_size=1):
    half = torch.randint(0, model.cfg.d_vocab, (batch_size, seq_len))
    return torch.cat([half, half], dim=1)


@generate_repeated_tokens.mistake("you drew a second passage: draw one, and put the same one behind it again")
def _(model, seq_len, batch_size=1):
    tokens = torch.randint(0, model.cfg.d_vocab, (batch_size, 1 + 2 * seq_len))
    tokens[:, 0] = model.tokenizer.bos_token_id
    return tokens


@generate_repeated_tokens.mistake("you drew one passage for the whole batch: draw (batch_size, seq_len) tokens")
def _(model, seq_len, batch_size=1):
    half = torch.randint(0, model.cfg.d_vocab, (1, seq_len)).expand(batch_size, -1)
    bos = torch.full((batch_size, 1), model.tokenizer.bos_token_id)
    return torch.cat([bos, half, half], dim=1)


@generate_repeated_tokens.mistake("your tokens are floats: torch.ones and torch.zeros need dtype=torch.long for ids")
def _(model, seq_len, batch_size=1):
    half = torch.randint(0, model.cfg.d_vocab, (batch_size, seq_len))
    return torch.cat([torch.ones(batch_size, 1) * model.tokenizer.bos_token_id, half, half], dim=1)


@generate_repeated_tokens.law("two calls must not give the same passage: draw new tokens each time")
def _(generate_repeated_tokens):
    first, second = (generate_repeated_tokens(small_model(), 12, 6) for _ in range(2))
    return (first != second).any()


@generate_repeated_tokens.right
def _(model, seq_len, batch_size=1):
    tokens = torch.randint(model.cfg.d_vocab, (batch_size, 1 + seq_len))
    tokens[:, 0] = model.tokenizer.bos_token_id
    return einops.rearrange([*tokens.T, *tokens.T[1:]], "seq batch -> batch seq")


# ---- run_and_cache_model_repeated_tokens ----


def run_facts(fn, model, seq_len, batch_size):
    """What must be true of the three results, whatever the random tokens are."""
    tokens, logits, kept = fn(model, seq_len, batch_size)
    again, again_cache = model.run_with_cache(tokens)
    return {
        "tokens": flaw(tokens, model, seq_len, batch_size),
        "logits are those of the tokens": difference(logits, again),
        "cache holds": sorted(kept.keys()),
        "cache is that of the tokens": difference(kept["pattern", 1], again_cache["pattern", 1]),
    }


run_and_cache_model_repeated_tokens = exercise(ind.run_and_cache_model_repeated_tokens, use=run_facts)


@run_and_cache_model_repeated_tokens.cases
def _():
    yield small_model(), 5, 4
    yield small_model(3), 12, 2


@run_and_cache_model_repeated_tokens.mistake("you ran the model on other tokens than those you return: draw them once")
def _(model, seq_len, batch_size=1):
    logits, kept = model.run_with_cache(ind.generate_repeated_tokens(model, seq_len, batch_size))
    return ind.generate_repeated_tokens(model, seq_len, batch_size), logits, kept


@run_and_cache_model_repeated_tokens.mistake("you left out batch_size: hand it on to generate_repeated_tokens")
def _(model, seq_len, batch_size=1):
    tokens = ind.generate_repeated_tokens(model, seq_len)
    return tokens, *model.run_with_cache(tokens)


@run_and_cache_model_repeated_tokens.mistake("you cached the patterns only: later sections need everything")
def _(model, seq_len, batch_size=1):
    tokens = ind.generate_repeated_tokens(model, seq_len, batch_size)
    return tokens, *model.run_with_cache(tokens, names_filter=lambda name: name.endswith("pattern"))


@run_and_cache_model_repeated_tokens.right
def _(model, seq_len, batch_size=1):
    tokens = ind.generate_repeated_tokens(model, seq_len, batch_size)
    return tokens, model(tokens), model.run_with_cache(tokens)[1]


# ---- get_log_probs ----

get_log_probs = exercise(ind.get_log_probs)


@get_log_probs.cases
def _():
    yield noise(5, 13, 19), random_tokens(5, 13)
    yield 30 * noise(2, 4, 19), random_tokens(2, 4)
    tokens = real_repeated(2, 5)
    yield real_model()(tokens), tokens


@get_log_probs.mistake("you took the token at the same position: position i predicts the token at i + 1")
def _(logits, tokens):
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[:, 1:, 0]


@get_log_probs.mistake("these are logits: turn them into log-probabilities with log_softmax first")
def _(logits, tokens):
    return logits[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]


@get_log_probs.mistake("your softmax runs over the positions: the vocabulary is the last dimension")
def _(logits, tokens):
    return logits[:, :-1].log_softmax(1).gather(-1, tokens[:, 1:, None])[..., 0]


@get_log_probs.mistake("these are losses: a log-probability is negative, leave out the minus")
def _(logits, tokens):
    return -ind.get_log_probs(logits, tokens)


@get_log_probs.law("log-probabilities do not change when the same number is added to all logits")
def _(get_log_probs):
    logits, tokens = noise(5, 13, 19), random_tokens(5, 13)
    return difference(get_log_probs(logits + 3, tokens), get_log_probs(logits, tokens)) is None


@get_log_probs.right
def _(logits, tokens):
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    return -losses


# ---- the four detectors ----


def detector_cases():
    yield (cached(repeated(5)),)
    yield (cached(repeated(4, 7), small_model(3)),)
    yield (cached(repeated(3, 4), small_model(2, 5)),)
    yield (cached(real_repeated(2, 10), real_model()),)


def on_diagonal(cache, offset, start=0, stop=None, dims=(0, -1)):
    """The mean over a diagonal of the patterns, from one of its entries to another."""
    layers = range(cache.model.cfg.n_layers)
    stripes = [cache["pattern", l].diagonal(offset=offset, dim1=-2, dim2=-1)[..., start:stop] for l in layers]
    return torch.stack([stripe.mean(dim=dims) for stripe in stripes])


def sharing_models(solution):
    made = exercise(solution, shared=models)
    made.cases(detector_cases)
    return made


current_attn_detector = sharing_models(ind.current_attn_detector)


@current_attn_detector.mistake("you counted BOS, which can attend to nothing but itself: leave out query 0")
def _(cache):
    return on_diagonal(cache, 0)


@current_attn_detector.mistake("you averaged over the whole pattern: take its main diagonal first")
def _(cache):
    return torch.stack([cache["pattern", l].mean(dim=(0, 2, 3)) for l in range(cache.model.cfg.n_layers)])


@current_attn_detector.mistake("you averaged over the heads: keep the head, average over batch and queries")
def _(cache):
    return on_diagonal(cache, 0, 1, dims=(0, 1))


@current_attn_detector.law("a head that attends to nothing but the token itself must score 1")
def _(current_attn_detector):
    return (current_attn_detector(ideal_cache(lambda query: query)) > 0.999).all()


@current_attn_detector.right
def _(cache):
    scores = torch.zeros(cache.model.cfg.n_layers, cache.model.cfg.n_heads, device=device())
    for l in range(len(scores)):
        for h in range(scores.shape[1]):
            p = cache["pattern", l][:, h]
            scores[l, h] = sum(p[:, i, i].mean() for i in range(1, p.shape[-1])) / (p.shape[-1] - 1)
    return scores


def ideal_cache(key_of):
    """A stand-in for a cache: patterns in which each query attends to the one key `key_of(query)`."""
    pattern = torch.zeros(2, 3, 13, 13)
    for query in range(13):
        pattern[:, :, query, max(0, key_of(query))] = 1

    model = small_model()
    return ActivationCache({get_act_name("pattern", l): pattern for l in range(model.cfg.n_layers)}, model)


prev_attn_detector = sharing_models(ind.prev_attn_detector)


@prev_attn_detector.mistake("that is the diagonal above: the key before the query lies below, offset=-1")
def _(cache):
    return on_diagonal(cache, 1)


@prev_attn_detector.mistake("that is the token itself: the token before lies one diagonal lower, offset=-1")
def _(cache):
    return on_diagonal(cache, 0)


@prev_attn_detector.mistake("you summed over a diagonal that has one entry less: divide by seq - 1, or take the mean")
def _(cache):
    seq = cache["pattern", 0].shape[-1]
    return on_diagonal(cache, -1) * (seq - 1) / seq


@prev_attn_detector.mistake("you averaged over the heads: keep the head, average over batch and queries")
def _(cache):
    return on_diagonal(cache, -1, dims=(0, 1))


@prev_attn_detector.law("a head that attends to nothing but the token before must score 1")
def _(prev_attn_detector):
    return (prev_attn_detector(ideal_cache(lambda query: query - 1)) > 0.999).all()


@prev_attn_detector.right
def _(cache):
    rows = []
    for l in range(cache.model.cfg.n_layers):
        p = cache["pattern", l]
        queries = torch.arange(1, p.shape[-1])
        rows.append(einops.reduce(p[:, :, queries, queries - 1], "batch head query -> head", "mean"))
    return torch.stack(rows)


first_attn_detector = sharing_models(ind.first_attn_detector)


@first_attn_detector.mistake("you counted BOS, which can attend to nothing but itself: leave out query 0")
def _(cache):
    return torch.stack([cache["pattern", l][..., 0].mean(dim=(0, -1)) for l in range(cache.model.cfg.n_layers)])


@first_attn_detector.mistake("you took the row of query 0: the first token as a key is the last index, [..., 0]")
def _(cache):
    return torch.stack([cache["pattern", l][:, :, 0].mean(dim=(0, -1)) for l in range(cache.model.cfg.n_layers)])


@first_attn_detector.mistake("you averaged over the heads: keep the head, average over batch and queries")
def _(cache):
    return torch.stack([cache["pattern", l][:, :, 1:, 0].mean(dim=(0, 1)) for l in range(cache.model.cfg.n_layers)])


@first_attn_detector.law("a head that attends to nothing but BOS must score 1")
def _(first_attn_detector):
    return (first_attn_detector(ideal_cache(lambda query: 0)) > 0.999).all()


@first_attn_detector.right
def _(cache):
    patterns = cache.stack_activation("pattern")[:, :, :, :, 0]
    return einops.reduce(patterns[..., 1:], "layer batch head query -> layer head", "mean")


induction_attn_detector = sharing_models(ind.induction_attn_detector)


def stripe_scores(cache, back, start=0):
    seq_len = (cache["pattern", 0].shape[-1] - 1) // 2
    return on_diagonal(cache, -(seq_len + back), start)


@induction_attn_detector.mistake(
    "that stripe is the token's first occurrence: an induction head looks one further, at the token after it"
)
def _(cache):
    return stripe_scores(cache, 0, 1)


@induction_attn_detector.mistake("you are one off in the other direction: it is seq_len - 1 positions back, not + 1")
def _(cache):
    return stripe_scores(cache, 1)


@induction_attn_detector.mistake(
    "the stripe's first two entries are queries of the first passage (one attends to BOS): leave them out, [2:]"
)
def _(cache):
    return stripe_scores(cache, -1)


@induction_attn_detector.mistake("seq_len is the length of one passage: (seq - 1) // 2, not seq")
def _(cache):
    return on_diagonal(cache, -(cache["pattern", 0].shape[-1] - 1))


@induction_attn_detector.mistake("you averaged over the heads: keep the head, average over batch and queries")
def _(cache):
    seq_len = (cache["pattern", 0].shape[-1] - 1) // 2
    return on_diagonal(cache, 1 - seq_len, 2, dims=(0, 1))


@induction_attn_detector.law("a head that attends seq_len - 1 positions back must score 1")
def _(induction_attn_detector):
    return (induction_attn_detector(ideal_cache(lambda query: query - 5)) > 0.999).all()


@induction_attn_detector.right
def _(cache):
    patterns = cache.stack_activation("pattern")
    seq_len = patterns.shape[-1] // 2
    queries = torch.arange(seq_len + 1, 2 * seq_len + 1)
    return einops.reduce(patterns[..., queries, queries - seq_len + 1], "layer batch head query -> layer head", "mean")


# ---- induction_score_hook ----


def after_hook(fn, pattern, hook, scores):
    """The scores that the hook leaves, and the pattern as the model would go on with."""
    returned = fn(pattern, hook=hook, scores=scores)
    return {"scores": scores, "pattern": pattern if returned is None else returned}


induction_score_hook = exercise(ind.induction_score_hook, use=after_hook)


@induction_score_hook.cases
def _():
    yield noise(5, 3, 13, 13).softmax(-1), hook_point("pattern", 1), torch.zeros(2, 3)
    yield noise(2, 4, 9, 9, seed=1).softmax(-1), hook_point("pattern", 0), torch.ones(3, 4)
    yield noise(3, 2, 11, 11, seed=2).softmax(-1), hook_point("pattern", 2), torch.ones(4, 2)


def stripe_of(pattern, back=-1, start=2):
    seq_len = pattern.shape[-1] // 2
    return pattern.diagonal(offset=-(seq_len + back), dim1=-2, dim2=-1)[..., start:]


@induction_score_hook.mistake("you filled the first row whatever the layer: the row is hook.layer()")
def _(pattern, hook, scores):
    scores[0] = stripe_of(pattern).mean(dim=(0, -1))


@induction_score_hook.mistake("that stripe is the token's first occurrence: look at the token after it, 1 - seq_len")
def _(pattern, hook, scores):
    scores[hook.layer()] = stripe_of(pattern, 0, 1).mean(dim=(0, -1))


@induction_score_hook.mistake("you wrote one number for the whole layer: keep one score for each head")
def _(pattern, hook, scores):
    scores[hook.layer()] = stripe_of(pattern).mean()


@induction_score_hook.mistake("`scores` still holds what it held: write into its row, scores[hook.layer()] = ...")
def _(pattern, hook, scores):
    scores = stripe_of(pattern).mean(dim=(0, -1))  # noqa: F841


@induction_score_hook.law("a hook that only looks must leave the pattern as it is, and return None or the pattern")
def _(induction_score_hook):
    pattern = noise(5, 3, 13, 13).softmax(-1)
    before = pattern.clone()
    out = induction_score_hook(pattern, hook=hook_point("pattern", 1), scores=torch.zeros(2, 3))
    return torch.equal(pattern, before) and (out is None or torch.equal(out, before))


@induction_score_hook.right
def _(pattern, hook, scores):
    seq_len = (pattern.shape[-1] - 1) // 2
    queries = torch.arange(seq_len + 1, 2 * seq_len + 1)
    scores[hook.layer(), :] = pattern[:, :, queries, queries + 1 - seq_len].mean(-1).mean(0)
    return pattern


# ---- in_context_learning_score ----

in_context_learning_score = exercise(ind.in_context_learning_score)


@in_context_learning_score.cases
def _():
    yield noise(5, 13).abs().neg(), slice(1, 3), slice(8, 13)
    yield noise(3, 20, seed=1).abs().neg(), slice(0, 5), slice(19, 20)


@in_context_learning_score.mistake("your sign is turned round: the late loss minus the early loss")
def _(log_probs, early, late):
    return (log_probs[:, late].mean() - log_probs[:, early].mean()).item()


@in_context_learning_score.mistake("you took sequences, not positions: the second dimension is the position")
def _(log_probs, early, late):
    return (log_probs[early].mean() - log_probs[late].mean()).item()


@in_context_learning_score.mistake("you divided where the score is a difference: late loss minus early loss")
def _(log_probs, early, late):
    return (log_probs[:, late].mean() / log_probs[:, early].mean()).item()


@in_context_learning_score.mistake("you summed: the two stretches differ in length, so take means")
def _(log_probs, early, late):
    return (log_probs[:, early].sum() - log_probs[:, late].sum()).item()


@in_context_learning_score.law("where every token has the same probability, context helps nothing: the score is 0")
def _(in_context_learning_score):
    return abs(in_context_learning_score(torch.full((4, 9), -2.0), slice(0, 2), slice(3, 9))) < 1e-6


@in_context_learning_score.right
def _(log_probs, early, late):
    return log_probs[:, early].mean().item() - log_probs[:, late].mean().item()


# ---- logit_attribution ----

logit_attribution = exercise(ind.logit_attribution)


def attribution_inputs(model, tokens):
    kept = cached(tokens[None], model, remove_batch_dim=True)
    later = [kept["result", l] for l in range(1, model.cfg.n_layers)]
    return kept["embed"], kept["result", 0], torch.cat(later, dim=1), model.W_U, tokens


@logit_attribution.cases
def _():
    yield noise(13, 10), noise(13, 3, 10, seed=1), noise(13, 4, 10, seed=2), noise(10, 19), random_tokens(1, 13)[0]
    yield attribution_inputs(small_model(), repeated(1)[0])
    yield attribution_inputs(small_model(3), random_tokens(1, 11)[0])
    yield attribution_inputs(real_model(), real_repeated(1, 10)[0])


def attributions(embed, l1_results, l2_results, directions):
    parts = torch.cat([embed[:, None], l1_results, l2_results], dim=1)[: len(directions)]
    return einops.einsum(parts, directions, "seq component d_model, seq d_model -> seq component")


@logit_attribution.mistake("you took the column of the token itself: position i is judged by the token at i + 1")
def _(embed, l1_results, l2_results, W_U, tokens):
    return attributions(embed, l1_results, l2_results, W_U.T[tokens[:-1]])


@logit_attribution.mistake("you shifted the wrong side: results up to [:-1] belong to the tokens from [1:] on")
def _(embed, l1_results, l2_results, W_U, tokens):
    return attributions(embed[1:], l1_results[1:], l2_results[1:], W_U.T[tokens[1:]])


@logit_attribution.mistake("the order is embedding, first layer, second layer: your columns stand otherwise")
def _(embed, l1_results, l2_results, W_U, tokens):
    out = ind.logit_attribution(embed, l1_results, l2_results, W_U, tokens)
    return torch.cat([out[:, 1:], out[:, :1]], dim=1)


@logit_attribution.mistake("you left out the direct path: the embedding itself is the first component")
def _(embed, l1_results, l2_results, W_U, tokens):
    return ind.logit_attribution(embed, l1_results, l2_results, W_U, tokens)[:, 1:]


@logit_attribution.mistake("you used one column for all positions: W_U[:, tokens[1:]] has one for each")
def _(embed, l1_results, l2_results, W_U, tokens):
    return attributions(embed, l1_results, l2_results, W_U.T[tokens[-1:]].expand(len(tokens) - 1, -1))


@logit_attribution.law("the components must add up to the logit of the token that comes next")
def _(logit_attribution):
    model, tokens = small_model(), random_tokens(1, 13)[0]
    logits = model(tokens[None])[0, :-1].gather(-1, tokens[1:, None])[:, 0]
    return difference(logit_attribution(*attribution_inputs(model, tokens)).sum(-1), logits) is None


@logit_attribution.right
def _(embed, l1_results, l2_results, W_U, tokens):
    U = W_U[:, tokens[1:]].T
    direct = (embed[:-1] * U).sum(-1, keepdim=True)
    first = (l1_results[:-1] * U[:, None]).sum(-1)
    second = torch.matmul(l2_results[:-1], U[:, :, None]).squeeze(-1)
    return torch.hstack([direct, first, second])


# ---- the three ablation hooks ----


def edited(fn, z, hook, head_index_to_ablate):
    """The activation that the model goes on with."""
    returned = fn(z, hook=hook, head_index_to_ablate=head_index_to_ablate)
    return z if returned is None else returned


def z_cases():
    yield noise(5, 7, 3, 4), hook_point("z", 1), 2
    yield noise(2, 6, 4, 3, seed=1), hook_point("z", 0), 1


def ablation_exercise(solution):
    made = exercise(solution, use=edited)
    made.cases(z_cases)

    @made.law("the other heads must stay as they are")
    def _(fn):
        z = noise(5, 7, 3, 4)
        out = edited(fn, z.clone(), hook_point("z", 1), 2)
        return torch.equal(out[:, :, :2], z[:, :, :2])

    return made


head_zero_ablation_hook = ablation_exercise(ind.head_zero_ablation_hook)


@head_zero_ablation_hook.mistake("you zeroed a position: dimensions are batch, seq, head, so [:, :, head]")
def _(z, hook, head_index_to_ablate):
    z[:, head_index_to_ablate] = 0.0


@head_zero_ablation_hook.mistake("nothing has changed: `z = ...` only renames; edit z in place or return the new one")
def _(z, hook, head_index_to_ablate):
    z = z.clone()
    z[:, :, head_index_to_ablate] = 0.0


@head_zero_ablation_hook.mistake("you zeroed one number in every head: [..., head] is d_head, [:, :, head] the head")
def _(z, hook, head_index_to_ablate):
    z[..., head_index_to_ablate] = 0.0


@head_zero_ablation_hook.mistake("you zeroed every head but this one")
def _(z, hook, head_index_to_ablate):
    return z * (torch.arange(z.shape[2]) == head_index_to_ablate)[:, None]


@head_zero_ablation_hook.right
def _(z, hook, head_index_to_ablate):
    keep = torch.ones(z.shape[2], device=z.device)
    keep[head_index_to_ablate] = 0
    return z * keep[:, None]


head_mean_ablation_hook = ablation_exercise(ind.head_mean_ablation_hook)


@head_mean_ablation_hook.mistake("you averaged over batch and positions: keep the positions, average over the batch")
def _(z, hook, head_index_to_ablate):
    z[:, :, head_index_to_ablate] = z[:, :, head_index_to_ablate].mean(dim=(0, 1))


@head_mean_ablation_hook.mistake("you averaged over the positions: average over the batch, dim=0")
def _(z, hook, head_index_to_ablate):
    z[:, :, head_index_to_ablate] = z[:, :, head_index_to_ablate].mean(dim=1, keepdim=True)


@head_mean_ablation_hook.mistake("you averaged over the heads: take this head's output, and its mean over the batch")
def _(z, hook, head_index_to_ablate):
    z[:, :, head_index_to_ablate] = z.mean(dim=2)


@head_mean_ablation_hook.mistake("you replaced every head: replace this one only")
def _(z, hook, head_index_to_ablate):
    z[:] = z.mean(dim=0)


@head_mean_ablation_hook.right
def _(z, hook, head_index_to_ablate):
    out = z.clone()
    mean = einops.reduce(z, "batch seq head d_head -> seq head d_head", "mean")
    out[:, :, head_index_to_ablate] = einops.repeat(
        mean[:, head_index_to_ablate], "seq d_head -> batch seq d_head", batch=len(z)
    )
    return out


head_resample_ablation_hook = ablation_exercise(ind.head_resample_ablation_hook)


@head_resample_ablation_hook.mistake("you moved the positions: roll along the batch, dims=0")
def _(z, hook, head_index_to_ablate):
    z[:, :, head_index_to_ablate] = z[:, :, head_index_to_ablate].roll(1, dims=1)


@head_resample_ablation_hook.mistake("you rolled every head: replace this one only")
def _(z, hook, head_index_to_ablate):
    return z.roll(1, dims=0)


@head_resample_ablation_hook.mistake(
    "you overwrote sequences before reading them: roll a copy, or every sequence ends up with the same output"
)
def _(z, hook, head_index_to_ablate):
    for i in range(len(z)):
        z[i, :, head_index_to_ablate] = z[i - 1, :, head_index_to_ablate]


@head_resample_ablation_hook.mistake("without dims, roll moves the flattened numbers: say dims=0, the batch")
def _(z, hook, head_index_to_ablate):
    z[:, :, head_index_to_ablate] = z[:, :, head_index_to_ablate].roll(1)


@head_resample_ablation_hook.right
def _(z, hook, head_index_to_ablate):
    out = z.clone()
    for i in range(len(z)):
        out[i, :, head_index_to_ablate] = z[i - 1, :, head_index_to_ablate]
    return out


# ---- get_ablation_scores ----


def ablation_cases():
    yield small_model(), repeated(5), ind.head_zero_ablation_hook
    yield small_model(3), repeated(3, 4), ind.head_mean_ablation_hook
    yield small_model(2, 5), repeated(2, 7), ind.head_resample_ablation_hook
    yield real_model(), real_repeated(2, 5), ind.head_mean_ablation_hook


def ablated_losses(model, tokens, ablation_function, start=None, name="z", bound=None):
    """The clean loss and each head's ablated loss, over the predictions from `start` on."""
    start = -((tokens.shape[1] - 1) // 2 - 1) if start is None else start
    loss = lambda logits: -ind.get_log_probs(logits, tokens)[:, start:].mean()  # noqa: E731
    scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, device=tokens.device)
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            fn = partial(ablation_function, head_index_to_ablate=head)
            scores[layer, head] = loss(model.run_with_hooks(tokens, fwd_hooks=[(get_act_name(name, layer), fn)]))
    return loss(model(tokens)), scores


@cache
def silent_model() -> HookedTransformer:
    """A model whose head 1.2 writes nothing."""
    model = new_model(small_model().cfg)
    model.load_state_dict(small_model().state_dict())
    model.blocks[1].attn.W_O[2] = 0
    return model


def loop_exercise(solution):
    made = exercise(solution)
    made.cases(ablation_cases)

    @made.law("ablating a head that writes nothing must change nothing: its score is 0")
    def _(fn):
        return abs(fn(silent_model(), repeated(5))[1, 2].item()) < 1e-6

    @made.mistake("you returned losses: subtract the loss without ablation")
    def _(model, tokens, ablation_function=ind.head_zero_ablation_hook):
        return ablated_losses(model, tokens, ablation_function)[1]

    @made.mistake("your sign is turned round: the ablated loss minus the clean one")
    def _(model, tokens, ablation_function=ind.head_zero_ablation_hook):
        clean, scores = ablated_losses(model, tokens, ablation_function)
        return clean - scores

    @made.mistake("you averaged over all positions: only the last seq_len - 1 predictions can be copied")
    def _(model, tokens, ablation_function=ind.head_zero_ablation_hook):
        clean, scores = ablated_losses(model, tokens, ablation_function, start=0)
        return scores - clean

    @made.mistake(
        "you counted the second passage's first token too, which nothing can foretell: take seq_len - 1 predictions"
    )
    def _(model, tokens, ablation_function=ind.head_zero_ablation_hook):
        clean, scores = ablated_losses(model, tokens, ablation_function, start=-((tokens.shape[1] - 1) // 2))
        return scores - clean

    return made


get_ablation_scores = loop_exercise(ind.get_ablation_scores)


@get_ablation_scores.mistake("you always ablated by zero: call the ablation_function that was given")
def _(model, tokens, ablation_function=ind.head_zero_ablation_hook):
    clean, scores = ablated_losses(model, tokens, ind.head_zero_ablation_hook)
    return scores - clean


@get_ablation_scores.right
def _(model, tokens, ablation_function=ind.head_zero_ablation_hook):
    def loss(logits):
        seq_len = tokens.shape[1] // 2
        last = logits[:, -seq_len:-1]
        return torch.nn.functional.cross_entropy(last.flatten(0, 1), tokens[:, 1 - seq_len :].flatten())

    rows = []
    for name in (get_act_name("z", l) for l in range(model.cfg.n_layers)):
        row = []
        for head in range(model.cfg.n_heads):
            with model.hooks([(name, lambda z, hook, h=head: ablation_function(z, hook, h))]):
                row.append(loss(model(tokens)))
        rows.append(torch.stack(row))
    return torch.stack(rows) - loss(model(tokens))


get_ablation_scores_batched = loop_exercise(ind.get_ablation_scores_batched)


@get_ablation_scores_batched.mistake(
    "every copy has lost all heads of the pass: each head is ablated in its own copy of the batch only"
)
def _(model, tokens, ablation_function=ind.head_zero_ablation_hook, heads_per_pass=2):
    clean, scores = ablated_losses(model, tokens, ablation_function)
    for layer in range(model.cfg.n_layers):
        for heads in torch.arange(model.cfg.n_heads).split(heads_per_pass):
            name = get_act_name("z", layer)
            hooks = [(name, partial(ablation_function, head_index_to_ablate=head)) for head in heads.tolist()]
            log_probs = ind.get_log_probs(model.run_with_hooks(tokens, fwd_hooks=hooks), tokens)
            scores[layer, heads] = -log_probs[:, -(tokens.shape[1] // 2 - 1) :].mean()
    return scores - clean


@get_ablation_scores_batched.law("it must give the loop's numbers, however many heads share a pass")
def _(get_ablation_scores_batched):
    model, tokens = small_model(), repeated(4)
    loop = ind.get_ablation_scores(model, tokens, ind.head_mean_ablation_hook)
    few = get_ablation_scores_batched(model, tokens, ind.head_mean_ablation_hook, 1)
    many = get_ablation_scores_batched(model, tokens, ind.head_mean_ablation_hook, heads_per_pass=2)
    return difference(few, loop) is None and difference(many, loop) is None


@get_ablation_scores_batched.right
def _(model, tokens, ablation_function=ind.head_zero_ablation_hook, heads_per_pass=2):
    return ind.get_ablation_scores(model, tokens, ablation_function)


# ---- full_OV_circuit ----


def factored(got, want, *args):
    """Compare matrices in factors; they may be factored otherwise, but must not be multiplied out."""
    if not isinstance(got, FactoredMatrix):
        return f"returned {type(got).__name__}, expected a FactoredMatrix: d_vocab × d_vocab numbers are too many"
    return difference(got.AB, want.AB)


full_OV_circuit = exercise(ind.full_OV_circuit, same=factored)


@full_OV_circuit.cases
def _():
    yield small_model(), [(1, 2)]
    yield small_model(), [(1, 0), (1, 2)]
    yield small_model(3), [(2, 1), (0, 0)]


def sum_of(matrices):
    return FactoredMatrix(sum(matrices), torch.eye(sum(matrices).shape[1], device=device()))


@full_OV_circuit.mistake("this is the transpose: rows are the tokens attended to, so W_E stands first")
def _(model, heads):
    return ind.full_OV_circuit(model, heads).T


@full_OV_circuit.mistake("you multiplied the heads' matrices: heads in one layer add up")
def _(model, heads):
    matrix = torch.eye(model.cfg.d_model, device=device())
    for head in heads:
        matrix = matrix @ model.W_V[head] @ model.W_O[head]
    return FactoredMatrix(model.W_E @ matrix, model.W_U)


@full_OV_circuit.mistake("you added W_V and W_O before multiplying, which mixes the heads: join them along d_head")
def _(model, heads):
    W_V, W_O = sum(model.W_V[h] for h in heads), sum(model.W_O[h] for h in heads)
    return FactoredMatrix(model.W_E @ W_V, W_O @ model.W_U)


@full_OV_circuit.mistake("you added the positions to what is copied: values read token embeddings only")
def _(model, heads):
    right = ind.full_OV_circuit(model, heads)
    W_V = torch.cat([model.W_V[head] for head in heads], dim=1)
    return FactoredMatrix((model.W_E + model.W_pos[: len(model.W_E)]) @ W_V, right.B)


@full_OV_circuit.mistake("you left out W_E and W_U: the full circuit goes from token to token")
def _(model, heads):
    W_V = torch.cat([model.W_V[head] for head in heads], dim=1)
    return FactoredMatrix(W_V, torch.cat([model.W_O[head] for head in heads]))


@full_OV_circuit.right
def _(model, heads):
    layers, indices = [h[0] for h in heads], [h[1] for h in heads]
    W_V = einops.rearrange(model.W_V[layers, indices], "head d_model d_head -> d_model (head d_head)")
    W_O = einops.rearrange(model.W_O[layers, indices], "head d_head d_model -> (head d_head) d_model")
    return model.W_E @ FactoredMatrix(W_V, W_O) @ model.W_U


# ---- top_1_acc ----

top_1_acc = exercise(ind.top_1_acc)


def nearly_identity(n, inner, seed):
    """A factored matrix with some of its largest entries on the diagonal, more in columns than in rows."""
    A, B = noise(n, inner, seed=seed), noise(inner, n, seed=seed + 1)
    B = 0.8 * A.T + B
    B[:, 0] *= 4
    return FactoredMatrix(A, B)


@top_1_acc.cases
def _():
    yield nearly_identity(23, 5, 0), 7
    yield nearly_identity(31, 6, 3), 100
    yield ind.full_OV_circuit(small_model(), [(1, 0)]), 1


@top_1_acc.mistake("you took the largest entry of each column: rows are the tokens attended to")
def _(full_OV_circuit, batch_size=500):
    return (full_OV_circuit.AB.argmax(0) == torch.arange(full_OV_circuit.rdim)).float().mean().item()


@top_1_acc.mistake("in each batch you compared with 0, 1, 2, ... again: compare with the rows' own numbers")
def _(full_OV_circuit, batch_size=500):
    parts = full_OV_circuit.AB.split(batch_size)
    return sum((p.argmax(-1) == torch.arange(len(p))).sum().item() for p in parts) / full_OV_circuit.ldim


@top_1_acc.mistake("you counted rows and did not divide: return a fraction")
def _(full_OV_circuit, batch_size=500):
    return ind.top_1_acc(full_OV_circuit) * full_OV_circuit.ldim


@top_1_acc.mistake("you took absolute values: a large negative entry means that the token is suppressed")
def _(full_OV_circuit, batch_size=500):
    return (full_OV_circuit.AB.abs().argmax(-1) == torch.arange(full_OV_circuit.ldim)).float().mean().item()


@top_1_acc.law("the identity, in factors, copies every token: 1.0, whatever the batch size")
def _(top_1_acc):
    eye = torch.eye(11, device=device())
    return all(abs(top_1_acc(FactoredMatrix(eye, eye), n) - 1) < 1e-6 for n in (1, 4, 50))


@top_1_acc.right
def _(full_OV_circuit, batch_size=500):
    n = full_OV_circuit.ldim
    hits = 0
    for start in range(0, n, batch_size):
        block = full_OV_circuit.A[start : start + batch_size] @ full_OV_circuit.B
        hits += sum(int(row.argmax()) == start + i for i, row in enumerate(block))
    return hits / n


# ---- copying_score ----

copying_score = exercise(ind.copying_score)


@copying_score.cases
def _():
    yield (nearly_identity(23, 5, 0),)
    suppressing = nearly_identity(9, 4, 1)
    yield (FactoredMatrix(-suppressing.A, suppressing.B),)
    yield (ind.full_OV_circuit(small_model(), [(1, 0), (1, 1)]),)


@copying_score.mistake("these are singular values, which are never negative: take the eigenvalues")
def _(full_OV_circuit):
    S = torch.linalg.svdvals(full_OV_circuit.AB)
    return (S.sum() / S.abs().sum()).item()


@copying_score.mistake("you took the absolute value of the sum: its sign tells copying from suppressing")
def _(full_OV_circuit):
    values = torch.linalg.eigvals(full_OV_circuit.B @ full_OV_circuit.A)
    return (values.sum().abs() / values.abs().sum()).item()


@copying_score.mistake("you divided by the number of eigenvalues: divide by the sum of their absolute values")
def _(full_OV_circuit):
    return torch.linalg.eigvals(full_OV_circuit.B @ full_OV_circuit.A).real.mean().item()


@copying_score.mistake("you counted how many eigenvalues are positive: weigh them by their size")
def _(full_OV_circuit):
    return (torch.linalg.eigvals(full_OV_circuit.B @ full_OV_circuit.A).real > 0).float().mean().item()


@copying_score.law("turning the sign of the circuit must turn the sign of the score")
def _(copying_score):
    matrix = FactoredMatrix(noise(9, 4), noise(4, 9, seed=1))
    return abs(copying_score(matrix) + copying_score(FactoredMatrix(-matrix.A, matrix.B))) < 1e-4


@copying_score.right
def _(full_OV_circuit):
    values = full_OV_circuit.eigenvalues
    return (values.sum() / values.abs().sum()).real.item()


# ---- pos_by_pos_pattern ----

pos_by_pos_pattern = exercise(ind.pos_by_pos_pattern)


@pos_by_pos_pattern.cases
def _():
    yield small_model(), (0, 1)
    yield small_model(3), (2, 0)
    yield small_model(2, 5), (1, 4)
    yield real_model(), (0, 3)


def position_scores(model, head):
    return model.W_pos @ model.W_Q[head] @ model.W_K[head].T @ model.W_pos.T


def causal(scores, fill=-torch.inf):
    return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), fill)


@pos_by_pos_pattern.mistake("you left out the scale: divide the scores by the square root of d_head")
def _(model, head):
    return causal(position_scores(model, head)).softmax(-1)


@pos_by_pos_pattern.mistake("you divided by the square root of d_model: the scale is that of d_head")
def _(model, head):
    return causal(position_scores(model, head) / model.cfg.d_model**0.5).softmax(-1)


@pos_by_pos_pattern.mistake("you masked after the softmax: then the rows no longer sum to 1; mask with -inf before it")
def _(model, head):
    return causal((position_scores(model, head) / model.cfg.d_head**0.5).softmax(-1), 0)


@pos_by_pos_pattern.mistake("you masked with 0, and exp(0) is 1: mask with -inf")
def _(model, head):
    return causal(position_scores(model, head) / model.cfg.d_head**0.5, 0).softmax(-1)


@pos_by_pos_pattern.mistake("you exchanged query and key: W_Q belongs to the rows")
def _(model, head):
    return causal(position_scores(model, head).T / model.cfg.d_head**0.5).softmax(-1)


@pos_by_pos_pattern.law("each row must sum to 1, with nothing above the diagonal")
def _(pos_by_pos_pattern):
    pattern = pos_by_pos_pattern(small_model(), (0, 1))
    return (pattern.sum(-1) - 1).abs().max() < 1e-5 and pattern.triu(1).abs().max() < 1e-9


@pos_by_pos_pattern.right
def _(model, head):
    layer, index = head
    attn = model.blocks[layer].attn
    q, k = model.W_pos @ attn.W_Q[index], model.W_pos @ attn.W_K[index]
    scores = einops.einsum(q, k, "query d_head, key d_head -> query key") / attn.attn_scale
    weights = (scores - scores.max(-1, keepdim=True).values).exp().tril()
    return weights / weights.sum(-1, keepdim=True)


# ---- decompose_qk_input ----

decompose_qk_input = exercise(ind.decompose_qk_input, shared=models)


def one_cache(model, tokens):
    return cached(tokens[None], model, remove_batch_dim=True)


@decompose_qk_input.cases
def _():
    yield one_cache(small_model(), repeated(1)[0]), 1
    yield one_cache(small_model(3), random_tokens(1, 11)[0]), 2
    yield one_cache(small_model(3), random_tokens(1, 8)[0]), 1
    yield one_cache(real_model(), real_repeated(1, 10)[0]), 1


def parts(cache, layer):
    heads = [cache["result", l].transpose(0, 1) for l in range(layer)]
    return cache["embed"][None], torch.cat(heads), cache["pos_embed"][None]


@decompose_qk_input.mistake("you left out the positions: with shortformer, queries and keys read them in every layer")
def _(cache, layer=1):
    embed, heads, _ = parts(cache, layer)
    return torch.cat([embed, heads])


@decompose_qk_input.mistake("the order is embedding, heads, positions: yours is another")
def _(cache, layer=1):
    embed, heads, pos = parts(cache, layer)
    return torch.cat([embed, pos, heads])


@decompose_qk_input.mistake("you took `z`, each head's output before W_O: take `result`, what it adds to the stream")
def _(cache, layer=1):
    embed, heads, pos = parts(cache, layer)
    z = torch.cat([cache["z", l].transpose(0, 1) for l in range(layer)])
    return torch.cat([embed, torch.nn.functional.pad(z, (0, heads.shape[-1] - z.shape[-1])), pos])


@decompose_qk_input.mistake("you took the layer's own heads: its queries are computed before they write")
def _(cache, layer=1):
    embed, heads, pos = parts(cache, layer)
    return torch.cat([embed, heads[: -cache.model.cfg.n_heads], cache["result", layer].transpose(0, 1), pos])


@decompose_qk_input.law("the components must add up to what queries and keys are computed from, resid_pre + pos_embed")
def _(decompose_qk_input):
    cache = one_cache(small_model(3), random_tokens(1, 11)[0])
    return difference(decompose_qk_input(cache, 2).sum(0), cache["resid_pre", 2] + cache["pos_embed"]) is None


@decompose_qk_input.right
def _(cache, layer=1):
    components = [cache["embed"]]
    for l in range(layer):
        components += [cache["result", l][:, h] for h in range(cache.model.cfg.n_heads)]
    return torch.stack([*components, cache["pos_embed"]])


# ---- decompose_q, decompose_k ----


def qk_exercise(solution, name, other):
    made = exercise(solution)
    right, wrong = f"W_{name}", f"W_{other}"

    @made.cases
    def _():
        yield noise(5, 13, 10), (1, 2), small_model()
        yield noise(8, 11, 10, seed=1), (2, 0), small_model(3)

    @made.mistake(f"you used {wrong}: this needs {right}")
    def _(decomposed_qk_input, ind_head_index, model):
        return decomposed_qk_input @ getattr(model, wrong)[ind_head_index]

    @made.mistake(f"you took the head from layer 0: index {right} by the pair (layer, head)")
    def _(decomposed_qk_input, ind_head_index, model):
        return decomposed_qk_input @ getattr(model, right)[0, ind_head_index[1]]

    @made.mistake("you divided by the square root of d_head here: that belongs to the scores")
    def _(decomposed_qk_input, ind_head_index, model):
        return decomposed_qk_input @ getattr(model, right)[ind_head_index] / model.cfg.d_head**0.5

    @made.mistake("you added the components up: keep one row for each")
    def _(decomposed_qk_input, ind_head_index, model):
        return decomposed_qk_input.sum(0) @ getattr(model, right)[ind_head_index]

    @made.law(f"the parts must add up to the cached {name.lower()}")
    def _(fn):
        cache = one_cache(small_model(), repeated(1)[0])
        got = fn(ind.decompose_qk_input(cache), (1, 2), small_model())
        return difference(got.sum(0), cache[name.lower(), 1][:, 2]) is None

    @made.right
    def _(decomposed_qk_input, ind_head_index, model):
        layer, index = ind_head_index
        weight = getattr(model.blocks[layer].attn, right)[index]
        return torch.stack([component @ weight for component in decomposed_qk_input])

    return made


decompose_q = qk_exercise(ind.decompose_q, "Q", "K")
decompose_k = qk_exercise(ind.decompose_k, "K", "Q")


# ---- decompose_attn_scores ----

decompose_attn_scores = exercise(ind.decompose_attn_scores)


@decompose_attn_scores.cases
def _():
    yield noise(5, 7, 4), noise(5, 7, 4, seed=1), small_model()
    yield noise(3, 6, 4, seed=2), noise(5, 6, 4, seed=3), small_model(3)


def outer(q, k):
    return torch.einsum("aqd,bkd->abqk", q, k)


@decompose_attn_scores.mistake("you left out the scale: divide by the square root of d_head")
def _(decomposed_q, decomposed_k, model):
    return outer(decomposed_q, decomposed_k)


@decompose_attn_scores.mistake("you divided by the square root of d_model: the scale is that of d_head")
def _(decomposed_q, decomposed_k, model):
    return outer(decomposed_q, decomposed_k) / model.cfg.d_model**0.5


@decompose_attn_scores.mistake("query and key components are exchanged: the first dimension is the query's component")
def _(decomposed_q, decomposed_k, model):
    return ind.decompose_attn_scores(decomposed_q, decomposed_k, model).transpose(0, 1)


@decompose_attn_scores.mistake("query and key positions are exchanged: the third dimension is the query's position")
def _(decomposed_q, decomposed_k, model):
    return ind.decompose_attn_scores(decomposed_q, decomposed_k, model).transpose(2, 3)


@decompose_attn_scores.mistake("you masked: only the sum is masked, each part is taken as it is")
def _(decomposed_q, decomposed_k, model):
    return causal(ind.decompose_attn_scores(decomposed_q, decomposed_k, model))


@decompose_attn_scores.law("summed over both components, the parts must be the cached scores (where not masked)")
def _(decompose_attn_scores):
    model, cache = small_model(), one_cache(small_model(), repeated(1)[0])
    components = ind.decompose_qk_input(cache)
    q, k = (f(components, (1, 2), model) for f in (ind.decompose_q, ind.decompose_k))
    scores, want = decompose_attn_scores(q, k, model).sum((0, 1)), cache["attn_scores", 1][2]
    seen = want.isfinite()
    return difference(scores[seen], want[seen]) is None


@decompose_attn_scores.right
def _(decomposed_q, decomposed_k, model):
    q = decomposed_q[:, None] / model.blocks[0].attn.attn_scale
    return q @ decomposed_k[None].transpose(-2, -1)


# ---- attn_score_stds ----

attn_score_stds = exercise(ind.attn_score_stds)


@attn_score_stds.cases
def _():
    yield (noise(3, 4, 7, 7),)
    yield (noise(2, 5, 6, 6, seed=1) + 3 * noise(2, 5, 6, 1, seed=2),)


@attn_score_stds.mistake("you took all queries and keys at once: what a whole row shares is lost in the softmax")
def _(decomposed_scores):
    return decomposed_scores.flatten(-2).std(-1, correction=0)


@attn_score_stds.mistake("you counted keys that the query can't see: take keys 0 to the query itself")
def _(decomposed_scores):
    return decomposed_scores[..., 1:, :].std(-1, correction=0).mean(-1)


@attn_score_stds.mistake("these are variances: take the square root, or std")
def _(decomposed_scores):
    n = decomposed_scores.shape[-1]
    rows = [decomposed_scores[..., q, : q + 1].var(-1, correction=0) for q in range(1, n)]
    return torch.stack(rows).mean(0)


@attn_score_stds.mistake("you took the spread over queries: for each query, the spread over its keys")
def _(decomposed_scores):
    n = decomposed_scores.shape[-1]
    return torch.stack([decomposed_scores[..., k:, k].std(-1, correction=0) for k in range(n - 1)]).mean(0)


@attn_score_stds.law("a number added to all scores of a query must change nothing, as in the softmax")
def _(attn_score_stds):
    scores = noise(3, 4, 7, 7)
    return difference(attn_score_stds(scores + 5 * noise(3, 4, 7, 1, seed=1)), attn_score_stds(scores)) is None


@attn_score_stds.right
def _(decomposed_scores):
    n = decomposed_scores.shape[-1]
    seen = torch.ones(n, n, device=decomposed_scores.device).tril()
    count = seen.sum(-1, keepdim=True)
    mean = (decomposed_scores * seen).sum(-1, keepdim=True) / count
    variance = (((decomposed_scores - mean) ** 2) * seen).sum(-1) / count[:, 0]
    return variance.clamp(min=0).sqrt()[..., 1:].mean(-1)


# ---- find_K_comp_full_circuit ----

find_K_comp_full_circuit = exercise(ind.find_K_comp_full_circuit, same=factored)


@find_K_comp_full_circuit.cases
def _():
    yield small_model(), (0, 1), (1, 2)
    yield small_model(3), (1, 0), (2, 2)


def k_circuit(model, prev, ind_head, inner=None, right="W_K"):
    W_OV = model.W_V[prev] @ model.W_O[prev] if inner is None else inner
    left = model.W_E @ model.W_Q[ind_head]
    return FactoredMatrix(left, (model.W_E @ W_OV @ getattr(model, right)[ind_head]).T)


@find_K_comp_full_circuit.mistake("this is the transpose: rows are the tokens at the query")
def _(model, prev_token_head_index, ind_head_index):
    return ind.find_K_comp_full_circuit(model, prev_token_head_index, ind_head_index).T


@find_K_comp_full_circuit.mistake("you put the earlier head on the query's side: it feeds the keys (K-composition)")
def _(model, prev_token_head_index, ind_head_index):
    W_OV = model.W_V[prev_token_head_index] @ model.W_O[prev_token_head_index]
    left = model.W_E @ W_OV @ model.W_Q[ind_head_index]
    return FactoredMatrix(left, (model.W_E @ model.W_K[ind_head_index]).T)


@find_K_comp_full_circuit.mistake("you left out the earlier head: the key reads what its OV circuit has written")
def _(model, prev_token_head_index, ind_head_index):
    return k_circuit(model, None, ind_head_index, torch.eye(model.cfg.d_model, device=device()))


@find_K_comp_full_circuit.mistake("you used the earlier head's QK circuit: what it writes is W_V W_O, its OV circuit")
def _(model, prev_token_head_index, ind_head_index):
    W_QK = model.W_Q[prev_token_head_index] @ model.W_K[prev_token_head_index].T
    return k_circuit(model, None, ind_head_index, W_QK)


@find_K_comp_full_circuit.right
def _(model, prev_token_head_index, ind_head_index):
    W_QK = FactoredMatrix(model.W_Q[ind_head_index], model.W_K[ind_head_index].T)
    W_OV = FactoredMatrix(model.W_V[prev_token_head_index], model.W_O[prev_token_head_index])
    return model.W_E @ W_QK @ W_OV.T @ model.W_E.T


# ---- get_comp_score ----

get_comp_score = exercise(ind.get_comp_score)


@get_comp_score.cases
def _():
    yield noise(5, 7), noise(7, 4, seed=1)
    yield noise(6, 6), noise(6, 6, seed=1)


@get_comp_score.mistake("you took the largest singular value: the Frobenius norm is the root of all squares' sum")
def _(W_A, W_B):
    norm = partial(torch.linalg.matrix_norm, ord=2)
    return (norm(W_A @ W_B) / norm(W_A) / norm(W_B)).item()


@get_comp_score.mistake("you divided by the sum of the norms: divide by their product")
def _(W_A, W_B):
    return ((W_A @ W_B).norm() / (W_A.norm() + W_B.norm())).item()


@get_comp_score.mistake("you did not divide by the norms: a large matrix is not a well composed one")
def _(W_A, W_B):
    return (W_A @ W_B).norm().item()


@get_comp_score.mistake("you forgot the root: these are squared norms")
def _(W_A, W_B):
    return ((W_A @ W_B).pow(2).sum() / W_A.pow(2).sum() / W_B.pow(2).sum()).item()


@get_comp_score.law("a matrix twice as large must score the same")
def _(get_comp_score):
    W_A, W_B = noise(5, 7), noise(7, 4, seed=1)
    return abs(get_comp_score(2 * W_A, W_B) - get_comp_score(W_A, W_B)) < 1e-5


@get_comp_score.right
def _(W_A, W_B):
    return torch.linalg.svdvals((W_A / W_A.norm()) @ (W_B / W_B.norm())).pow(2).sum().sqrt().item()


# ---- get_batched_comp_scores ----

get_batched_comp_scores = exercise(ind.get_batched_comp_scores)


@get_batched_comp_scores.cases
def _():
    yield FactoredMatrix(noise(5, 8, 3), noise(5, 3, 8)), FactoredMatrix(noise(4, 8, 2), noise(4, 2, 8, seed=1))
    model = small_model()
    yield FactoredMatrix(model.W_V[0], model.W_O[0]), FactoredMatrix(model.W_K[1], model.W_Q[1].transpose(-2, -1))


def pairwise_scores(W_As, W_Bs, score):
    return torch.stack([torch.stack([torch.as_tensor(score(a, b)) for b in W_Bs.AB]) for a in W_As.AB])


@get_batched_comp_scores.mistake("this is the transpose: the first dimension counts W_As")
def _(W_As, W_Bs):
    return ind.get_batched_comp_scores(W_As, W_Bs).T


@get_batched_comp_scores.mistake("you multiplied in the other order: W_A is read by W_B, so it is W_A @ W_B")
def _(W_As, W_Bs):
    return pairwise_scores(W_As, W_Bs, lambda a, b: (b @ a).norm() / a.norm() / b.norm())


@get_batched_comp_scores.mistake("you divided by the norm over the whole batch: each matrix has its own")
def _(W_As, W_Bs):
    return pairwise_scores(W_As, W_Bs, lambda a, b: (a @ b).norm()) / W_As.AB.norm() / W_Bs.AB.norm()


@get_batched_comp_scores.law("each pair must score as it does alone, in get_comp_score")
def _(get_batched_comp_scores):
    W_As = FactoredMatrix(noise(5, 8, 3), noise(5, 3, 8))
    W_Bs = FactoredMatrix(noise(4, 8, 2), noise(4, 2, 8, seed=1))
    alone = ind.get_comp_score(W_As.AB[3], W_Bs.AB[1])
    return abs(get_batched_comp_scores(W_As, W_Bs)[3, 1].item() - alone) < 1e-4


@get_batched_comp_scores.right
def _(W_As, W_Bs):
    A, B = W_As.AB, W_Bs.AB
    products = einops.einsum(A, B, "a i j, b j k -> a b i k").norm(dim=(-2, -1))
    return products / A.norm(dim=(-2, -1))[:, None] / B.norm(dim=(-2, -1))


# ---- run_with_path_ablated ----


def logits_and_patterns(fn, model, *args):
    logits, cache = fn(model, *args)
    return {"logits": logits, "patterns": [cache["pattern", l] for l in range(model.cfg.n_layers)]}


run_with_path_ablated = exercise(ind.run_with_path_ablated, use=logits_and_patterns)


@run_with_path_ablated.cases
def _():
    yield small_model(), repeated(5), (0, 1), (1, 2), "k"
    yield small_model(), repeated(3), (0, 2), (1, 0), "q"
    yield small_model(3), random_tokens(2, 11), (0, 0), (1, 1), "v"
    yield real_model(), real_repeated(2, 10), (0, 5), (1, 3), "k"


def cut_path(model, tokens, sender, receiver, channel="k", all_heads=False, sign=-1.0):
    z = cached(tokens, model)["z", sender[0]]
    written = z[:, :, sender[1]] @ model.W_O[sender]
    weight = {"q": model.W_Q, "k": model.W_K, "v": model.W_V}[channel]

    def hook(x, hook):
        if all_heads:
            x += sign * einops.einsum(written, weight[receiver[0]], "b s m, h m d -> b s h d")
        else:
            x[:, :, receiver[1]] += sign * (written @ weight[receiver])

    with model.hooks(fwd_hooks=[(get_act_name(channel, receiver[0]), hook)]):
        return model.run_with_cache(tokens)


@run_with_path_ablated.mistake("you took the sender out for every reader: only the receiver must not see it")
def _(model, tokens, sender, receiver, channel="k"):
    ablate = partial(ind.head_zero_ablation_hook, head_index_to_ablate=sender[1])
    with model.hooks(fwd_hooks=[(get_act_name("z", sender[0]), ablate)]):
        return model.run_with_cache(tokens)


@run_with_path_ablated.mistake("you cut the path to every head of the receiver's layer: edit [:, :, receiver[1]] only")
def _(model, tokens, sender, receiver, channel="k"):
    return cut_path(model, tokens, sender, receiver, channel, all_heads=True)


@run_with_path_ablated.mistake("you added what the sender writes: subtract it")
def _(model, tokens, sender, receiver, channel="k"):
    return cut_path(model, tokens, sender, receiver, channel, sign=1.0)


@run_with_path_ablated.mistake("you set all of the receiver's input to zero: take away the sender's part only")
def _(model, tokens, sender, receiver, channel="k"):
    def hook(x, hook):
        x[:, :, receiver[1]] = 0

    with model.hooks(fwd_hooks=[(get_act_name(channel, receiver[0]), hook)]):
        return model.run_with_cache(tokens)


@run_with_path_ablated.mistake("you cut the keys whatever the channel: use the one that was asked for")
def _(model, tokens, sender, receiver, channel="k"):
    return cut_path(model, tokens, sender, receiver, {"k": "q"}.get(channel, "k"))


@run_with_path_ablated.law("cutting the path from a head that writes nothing must change nothing")
def _(run_with_path_ablated):
    model, tokens = silent_first_layer(), repeated(4)
    return difference(run_with_path_ablated(model, tokens, (0, 1), (1, 2), "k")[0], model(tokens)) is None


@cache
def silent_first_layer() -> HookedTransformer:
    model = new_model(small_model().cfg)
    model.load_state_dict(small_model().state_dict())
    model.blocks[0].attn.W_O[1] = 0
    return model


@run_with_path_ablated.right
def _(model, tokens, sender, receiver, channel="k"):
    result = cached(tokens, model)["result", sender[0]][:, :, sender[1]]

    def without(x, hook):
        out = x.clone()
        out[:, :, receiver[1]] = x[:, :, receiver[1]] - result @ weight
        return out

    weight = getattr(model, f"W_{channel.upper()}")[receiver]
    model.reset_hooks()
    model.add_hook(f"blocks.{receiver[0]}.attn.hook_{channel}", without)
    out = model.run_with_cache(tokens)
    model.reset_hooks()
    return out


# ---- induction_targets ----

induction_targets = exercise(ind.induction_targets)


@induction_targets.cases
def _():
    yield (torch.tensor([7, 3, 5, 3, 4, 3, 6, 5, 5, 7]),)
    yield (repeated(1)[0],)
    yield (torch.randint(0, 4, (20,), generator=torch.Generator().manual_seed(0)),)


def targets_by(choose):
    """Targets where `choose` picks from the earlier places of the token (never empty), or gives -1."""

    def targets(tokens):
        ids, out = tokens.tolist(), []
        for query, token in enumerate(ids):
            places = [i for i in range(query) if ids[i] == token]
            out.append(choose(places, query) if places else -1)
        return torch.tensor(out)

    return targets


induction_targets.mistake("you took the first occurrence: take the latest one before the query")(
    targets_by(lambda places, query: places[0] + 1 if places[0] + 1 < query else -1)
)
induction_targets.mistake("that is the earlier occurrence itself: the target is the position after it")(
    targets_by(lambda places, query: places[-1])
)
induction_targets.mistake("of two equal neighbours the second has the query itself as target: give -1 there")(
    targets_by(lambda places, query: places[-1] + 1)
)


@induction_targets.mistake("you searched the whole text: only what stands before the query counts")
def _(tokens):
    ids = tokens.tolist()
    last = {token: i for i, token in enumerate(ids)}
    return torch.tensor([last[token] + 1 if last[token] != i else -1 for i, token in enumerate(ids)])


@induction_targets.law("in a repeated sequence of different tokens the target lies seq_len - 1 positions back")
def _(induction_targets):
    got = induction_targets(torch.tensor([9, 1, 2, 3, 4, 1, 2, 3, 4]))
    return got.tolist() == [-1] * 5 + [2, 3, 4, 5]


@induction_targets.right
def _(tokens):
    same = (tokens[:, None] == tokens[None]).tril(-1)
    places = torch.where(same, torch.arange(len(tokens)), -2).max(-1).values
    return torch.where((places >= 0) & (places + 1 < torch.arange(len(tokens))), places + 1, -1)
