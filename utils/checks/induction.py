"""What chapter 05 asks of a learner's functions."""

from functools import partial

import einops
import torch
from transformer_lens import ActivationCache
from transformer_lens.utilities import get_act_name

from utils import composition
from utils import induction as ind
from utils.checks.compare import difference
from utils.checks.engine import MEASURED, Chapter
from utils.checks.models import (
    D_VOCAB,
    cached,
    hook_point,
    hooked,
    noise,
    random_tokens,
    real_attn,
    real_repeated,
    repeated,
    small_attn,
    small_gpt,
    without_head,
)
from utils.runtime import device

chapter = Chapter(ind, composition)
exercise, check, hint, compare = chapter.exercise, chapter.check, chapter.hint, chapter.compare

ROUNDING = 1e-4  # a logit or a loss of about 10, summed in another order, moves by some 1e-5 in float32


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
    if batch_size * seq_len > 1_000 and len(tokens.unique()) < model.cfg.d_vocab:
        return f"the token {min({*range(model.cfg.d_vocab)} - {*tokens.unique().tolist()})} never comes up"
    return ""


def same_kind(got, want, *args):
    return flaw(got, *args) if flaw(got, *args) != flaw(want, *args) else None


generate_repeated_tokens = exercise(ind.generate_repeated_tokens, same=same_kind)


@generate_repeated_tokens.cases
def _():
    yield small_attn(), 12, 6
    yield small_attn(), 5, 1
    yield small_attn(3, 5), 14, 9
    yield small_attn(), 14, 90


@generate_repeated_tokens.refused
def _():
    yield small_attn(), 15, 2
    yield small_gpt(), 16, 1
    yield small_attn(), 29, 1


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
    first, second = (generate_repeated_tokens(small_attn(), 12, 6) for _ in range(2))
    return (first != second).any()


@generate_repeated_tokens.right
def _(model, seq_len, batch_size=1):
    if 1 + 2 * seq_len > model.cfg.n_ctx:
        raise ValueError("the context is too short")
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
        "logits are those of the tokens": difference(logits, again, atol=10 * ROUNDING),
        "cache holds": sorted(kept.keys()),
        "cache is that of the tokens": difference(kept["pattern", 1], again_cache["pattern", 1]),
    }


run_and_cache_model_repeated_tokens = exercise(ind.run_and_cache_model_repeated_tokens, use=run_facts)


@run_and_cache_model_repeated_tokens.cases
def _():
    yield small_attn(), 5, 4
    yield small_attn(3, 5), 12, 2


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
    yield real_attn()(tokens), tokens


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
    yield (cached(repeated(6, 7), small_attn(3, 5)),)
    yield (cached(repeated(3, 4), small_attn(2, 5)),)
    yield (cached(real_repeated(2, 10), real_attn()),)


def on_diagonal(cache, offset, start=0, stop=None, dims=(0, -1)):
    """The mean over a diagonal of the patterns, from one of its entries to another."""
    layers = range(cache.model.cfg.n_layers)
    stripes = [cache["pattern", l].diagonal(offset=offset, dim1=-2, dim2=-1)[..., start:stop] for l in layers]
    return torch.stack([stripe.mean(dim=dims) for stripe in stripes])


def detector(solution):
    made = exercise(solution)
    made.cases(detector_cases)
    return made


attention_detectors = detector(ind.attention_detectors)


def but(cache, **wrong):
    """The right scores, with one or several parts replaced."""
    return ind.attention_detectors(cache) | wrong


def of_layers(cache, score):
    return torch.stack([score(cache["pattern", l]) for l in range(cache.model.cfg.n_layers)])


def to_bos(cache, start=1, dims=(0, -1)):
    return of_layers(cache, lambda pattern: pattern[:, :, start:, 0].mean(dim=dims))


@attention_detectors.mistake("you counted BOS, which sees nothing but itself: leave query 0 out of current and first")
def _(cache):
    return but(cache, current=on_diagonal(cache, 0), first=to_bos(cache, 0))


@attention_detectors.mistake("'current' counts BOS, which can attend to nothing but itself: leave out query 0")
def _(cache):
    return but(cache, current=on_diagonal(cache, 0))


@attention_detectors.mistake("'first' counts BOS, which can attend to nothing but itself: leave out query 0")
def _(cache):
    return but(cache, first=to_bos(cache, 0))


@attention_detectors.mistake("'previous' has no query 0 to leave out: its diagonal begins at query 1")
def _(cache):
    return but(cache, previous=on_diagonal(cache, -1, 1))


@attention_detectors.mistake("'current' is the mean over the whole pattern: take its main diagonal first")
def _(cache):
    return but(cache, current=of_layers(cache, lambda pattern: pattern.mean(dim=(0, 2, 3))))


@attention_detectors.mistake("'previous' is the diagonal above: the key before the query lies below, offset=-1")
def _(cache):
    return but(cache, previous=on_diagonal(cache, 1))


@attention_detectors.mistake("'previous' is the token itself: the token before lies one diagonal lower, offset=-1")
def _(cache):
    return but(cache, previous=on_diagonal(cache, 0))


@attention_detectors.mistake("the diagonal of 'previous' has one entry less: divide by seq - 1, or take the mean")
def _(cache):
    seq = cache["pattern", 0].shape[-1]
    return but(cache, previous=on_diagonal(cache, -1) * (seq - 1) / seq)


@attention_detectors.mistake("'first' is the row of query 0: the first token as a key is the last index, [..., 0]")
def _(cache):
    return but(cache, first=of_layers(cache, lambda pattern: pattern[:, :, 0].mean(dim=(0, -1))))


@attention_detectors.mistake("you averaged over the heads: keep the head, average over batch and queries")
def _(cache):
    heads = (0, 1)
    return {
        "current": on_diagonal(cache, 0, 1, dims=heads),
        "previous": on_diagonal(cache, -1, dims=heads),
        "first": to_bos(cache, dims=heads),
    }


@attention_detectors.mistake("'previous' is 'current' again: the token before lies one diagonal lower, offset=-1")
def _(cache):
    return but(cache, previous=on_diagonal(cache, 0, 1))


@attention_detectors.law("'current': a head that attends to nothing but the token itself must score 1")
def _(attention_detectors):
    return (attention_detectors(ideal_cache(lambda query: query))["current"] > 0.999).all()


@attention_detectors.law("'previous': a head that attends to nothing but the token before must score 1")
def _(attention_detectors):
    return (attention_detectors(ideal_cache(lambda query: query - 1))["previous"] > 0.999).all()


@attention_detectors.law("'first': a head that attends to nothing but BOS must score 1")
def _(attention_detectors):
    return (attention_detectors(ideal_cache(lambda query: 0))["first"] > 0.999).all()


@attention_detectors.right
def _(cache):
    patterns = cache.stack_activation("pattern")
    queries = torch.arange(1, patterns.shape[-1])
    stripes = {
        "first": patterns[..., 1:, 0],
        "current": patterns[..., queries, queries],
        "previous": patterns[..., queries, queries - 1],
    }
    return {kind: einops.reduce(x, "layer batch head query -> layer head", "mean") for kind, x in stripes.items()}


def ideal_cache(key_of):
    """A stand-in for a cache: patterns in which each query attends to the one key `key_of(query)`."""
    pattern = torch.zeros(2, 3, 13, 13)
    for query in range(13):
        pattern[:, :, query, max(0, key_of(query))] = 1

    model = small_attn()
    return ActivationCache({get_act_name("pattern", l): pattern for l in range(model.cfg.n_layers)}, model)


induction_attn_detector = detector(ind.induction_attn_detector)


@induction_attn_detector.refused
def _():
    for length in (12, 3):
        yield (cached(random_tokens(2, length)),)


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
    ind.half_length(cache["pattern", 0].shape[-1])
    patterns = cache.stack_activation("pattern")
    seq_len = patterns.shape[-1] // 2
    queries = torch.arange(seq_len + 1, 2 * seq_len + 1)
    return einops.reduce(patterns[..., queries, queries - seq_len + 1], "layer batch head query -> layer head", "mean")


# ---- induction_score_hook ----


def after_hook(fn, pattern, hook, scores):
    """The scores that the hook leaves, and the pattern as the model would go on with."""
    return {"pattern": hooked(fn, pattern, hook=hook, scores=scores), "scores": scores}


induction_score_hook = exercise(
    ind.induction_score_hook, use=after_hook, in_place={"scores": "the hook writes its layer's row into it"}
)


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
    yield noise(3, 14, seed=2).abs().neg(), slice(0, 7, 2), slice(8, None, 3)


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
    return abs(in_context_learning_score(torch.full((4, 9), -2.0), slice(0, 2), slice(3, 9))) < 1e-5


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
    yield noise(13, 10), noise(13, 3, 10, seed=1), noise(13, 3, 10, seed=2), noise(10, 19), random_tokens(1, 13)[0]
    yield noise(9, 10), noise(9, 5, 10, seed=1), noise(9, 5, 10, seed=2), noise(10, 19), random_tokens(1, 9)[0]
    yield attribution_inputs(small_attn(), repeated(1)[0])
    yield attribution_inputs(small_attn(2, 5), random_tokens(1, 11)[0])
    yield attribution_inputs(real_attn(), real_repeated(1, 10)[0])


@logit_attribution.refused
def _():
    right = noise(6, 10), noise(6, 3, 10), noise(6, 3, 10), noise(10, 19), random_tokens(1, 6)[0]
    others = noise(5, 10), noise(5, 3, 10), noise(5, 3, 10), noise(9, 19), random_tokens(1, 5)[0]
    for i, other in enumerate(others):
        yield *right[:i], other, *right[i + 1 :]
    yield noise(6, 9), *right[1:]
    yield right[0], noise(6, 3, 9), *right[2:]
    yield *right[:2], noise(6, 3, 9), *right[3:]


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
    model, tokens = small_attn(), random_tokens(1, 13)[0]
    logits = model(tokens[None])[0, :-1].gather(-1, tokens[1:, None])[:, 0]
    return difference(logit_attribution(*attribution_inputs(model, tokens)).sum(-1), logits) is None


@logit_attribution.right
def _(embed, l1_results, l2_results, W_U, tokens):
    if len({len(x) for x in (embed, l1_results, l2_results, tokens)}) > 1:
        raise ValueError("not of one sequence")
    if len({embed.shape[-1], l1_results.shape[-1], l2_results.shape[-1], len(W_U)}) > 1:
        raise ValueError("not of one model")
    U = W_U[:, tokens[1:]].T
    direct = (embed[:-1] * U).sum(-1, keepdim=True)
    first = (l1_results[:-1] * U[:, None]).sum(-1)
    second = torch.matmul(l2_results[:-1], U[:, :, None]).squeeze(-1)
    return torch.hstack([direct, first, second])


# ---- head_ablation_hook ----


def edited(fn, z, hook, head_index_to_ablate, kind="zero"):
    return hooked(fn, z, hook=hook, head_index_to_ablate=head_index_to_ablate, kind=kind)


head_ablation_hook = exercise(ind.head_ablation_hook, use=edited, in_place={"z": "a hook may edit it"})


@head_ablation_hook.cases
def _():
    yield noise(5, 7, 3, 4), hook_point("z", 1), 2
    for kind in ("mean", "resample", "zero"):
        yield noise(2, 6, 4, 3, seed=1), hook_point("z", 0), 1, kind
        yield noise(5, 7, 3, 4), hook_point("z", 1), 2, kind
    yield noise(1, 7, 3, 4), hook_point("z", 1), 0, "zero"


@head_ablation_hook.refused
def _():
    for kind in ("mean", "resample"):
        yield noise(1, 7, 3, 4), hook_point("z", 1), 2, kind
    yield noise(5, 7, 3, 4), hook_point("z", 1), 2, "median"


@head_ablation_hook.law("the other heads must stay as they are")
def _(fn):
    z = noise(5, 7, 3, 4)
    kinds = ("zero", "mean", "resample")
    return all(torch.equal(edited(fn, z.clone(), hook_point("z", 1), 2, kind)[:, :, :2], z[:, :, :2]) for kind in kinds)


def ablating(wrong_kind):
    """A hook that is wrong in one kind only: the decorated function does that one, given `z` and the head."""

    def make(wrong):
        def hook_(z, hook, head_index_to_ablate, kind="zero"):
            if kind != wrong_kind or len(z) < 2:
                return ind.head_ablation_hook(z, hook, head_index_to_ablate, kind)
            return wrong(z, head_index_to_ablate)

        return hook_

    return make


@head_ablation_hook.mistake("'zero' zeroes a position: dimensions are batch, seq, head, so [:, :, head]")
@ablating("zero")
def _(z, head):
    z[:, head] = 0.0


@head_ablation_hook.mistake("nothing has changed: `z = ...` only renames; edit z in place or return the new one")
def _(z, hook, head_index_to_ablate, kind="zero"):
    ind.head_ablation_hook(z.clone(), hook, head_index_to_ablate, kind)


@head_ablation_hook.mistake("'zero' zeroes one number in every head: [..., head] is d_head, [:, :, head] the head")
@ablating("zero")
def _(z, head):
    z[..., head] = 0.0


@head_ablation_hook.mistake("'zero' zeroes every head but this one")
@ablating("zero")
def _(z, head):
    return z * (torch.arange(z.shape[2]) == head)[:, None]


@head_ablation_hook.mistake("'mean' averages over batch and positions: keep the positions, average over the batch")
@ablating("mean")
def _(z, head):
    z[:, :, head] = z[:, :, head].mean(dim=(0, 1))


@head_ablation_hook.mistake("'mean' averages over the positions: average over the batch, dim=0")
@ablating("mean")
def _(z, head):
    z[:, :, head] = z[:, :, head].mean(dim=1, keepdim=True)


@head_ablation_hook.mistake("'mean' averages over the heads: take this head's output, and its mean over the batch")
@ablating("mean")
def _(z, head):
    z[:, :, head] = z.mean(dim=2)


@head_ablation_hook.mistake("'mean' replaces every head: replace this one only")
@ablating("mean")
def _(z, head):
    z[:] = z.mean(dim=0)


@head_ablation_hook.mistake("'resample' moves the positions: roll along the batch, dims=0")
@ablating("resample")
def _(z, head):
    z[:, :, head] = z[:, :, head].roll(1, dims=1)


@head_ablation_hook.mistake("'resample' rolls every head: replace this one only")
@ablating("resample")
def _(z, head):
    return z.roll(1, dims=0)


@head_ablation_hook.mistake("'resample' takes the next sequence: sequence i gets the output of i - 1, so roll by +1")
@ablating("resample")
def _(z, head):
    z[:, :, head] = z[:, :, head].roll(-1, dims=0)


@head_ablation_hook.mistake(
    "'resample' overwrites sequences before it reads them: roll a copy, or all end up with the same output"
)
@ablating("resample")
def _(z, head):
    for i in range(len(z)):
        z[i, :, head] = z[i - 1, :, head]


@head_ablation_hook.mistake("without dims, roll moves the flattened numbers: say dims=0, the batch")
@ablating("resample")
def _(z, head):
    z[:, :, head] = z[:, :, head].roll(1)


@head_ablation_hook.right
def _(z, hook, head_index_to_ablate, kind="zero"):
    if kind == "zero":
        keep = torch.ones(z.shape[2], device=z.device)
        keep[head_index_to_ablate] = 0
        return z * keep[:, None]
    if len(z) == 1 or kind not in ("mean", "resample"):
        raise ValueError("no other sequence, or no such kind")
    out = z.clone()
    mean = einops.reduce(z, "batch seq head d_head -> seq head d_head", "mean")
    for i in range(len(z)):
        out[i, :, head_index_to_ablate] = (mean if kind == "mean" else z[i - 1])[:, head_index_to_ablate]
    return out


# ---- get_ablation_scores ----

MEAN = partial(ind.head_ablation_hook, kind="mean")
RESAMPLE = partial(ind.head_ablation_hook, kind="resample")


def ablation_cases():
    yield small_attn(), repeated(5), ind.head_ablation_hook
    yield small_attn(3, 5), repeated(6, 4), MEAN
    yield small_attn(2, 5), repeated(3, 7), RESAMPLE
    yield real_attn(), real_repeated(2, 5), MEAN
    yield small_gpt(2, 3), repeated(3, 5), returned
    yield small_gpt(2, 3, norm=None), repeated(3, 5), MEAN
    yield small_gpt(2, 3, attn_only=True), repeated(3, 5), MEAN


def returned(z, hook, head_index_to_ablate):
    """A hook that returns a new tensor, and leaves z as it is."""
    heads = torch.arange(z.shape[2], device=z.device)[:, None]
    return torch.where(heads == head_index_to_ablate, -0.5 * z, z)


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


def loop_exercise(solution):
    made = exercise(solution, atol=ROUNDING, without=MEASURED)
    made.cases(ablation_cases)

    @made.refused
    def _():
        for tokens in (random_tokens(2, 12), random_tokens(2, 31), torch.full((2, 9), D_VOCAB, device=device())):
            yield small_attn(), tokens

    @made.law("ablating a head that writes nothing must change nothing: its score is 0")
    def _(fn):
        return abs(fn(without_head(small_attn(), (1, 2)), repeated(5))[1, 2].item()) < ROUNDING

    @made.mistake("you returned losses: subtract the loss without ablation")
    def _(model, tokens, ablation_function=ind.head_ablation_hook):
        return ablated_losses(model, tokens, ablation_function)[1]

    @made.mistake("your sign is turned round: the ablated loss minus the clean one")
    def _(model, tokens, ablation_function=ind.head_ablation_hook):
        clean, scores = ablated_losses(model, tokens, ablation_function)
        return clean - scores

    @made.mistake("you averaged over all positions: only the last seq_len - 1 predictions can be copied")
    def _(model, tokens, ablation_function=ind.head_ablation_hook):
        clean, scores = ablated_losses(model, tokens, ablation_function, start=0)
        return scores - clean

    @made.mistake(
        "you counted the second passage's first token too, which nothing can foretell: take seq_len - 1 predictions"
    )
    def _(model, tokens, ablation_function=ind.head_ablation_hook):
        clean, scores = ablated_losses(model, tokens, ablation_function, start=-((tokens.shape[1] - 1) // 2))
        return scores - clean

    return made


get_ablation_scores = loop_exercise(ind.get_ablation_scores)


@get_ablation_scores.mistake("you always ablated by zero: call the ablation_function that was given")
def _(model, tokens, ablation_function=ind.head_ablation_hook):
    clean, scores = ablated_losses(model, tokens, ind.head_ablation_hook)
    return scores - clean


@get_ablation_scores.right
def _(model, tokens, ablation_function=ind.head_ablation_hook):
    ind.require_tokens(model, tokens)
    ind.half_length(tokens.shape[1])

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


def is_repeated(model, tokens, *_):
    half = tokens.shape[1] // 2
    return tokens.max() < model.cfg.d_vocab and torch.equal(tokens[:, -half:], tokens[:, -2 * half : -half])


get_ablation_scores_batched.step("the heads of the last layer", part=lambda scores: scores[-1])(is_repeated)
get_ablation_scores_batched.step("all heads")(is_repeated)


@get_ablation_scores_batched.mistake(
    "every copy has lost all heads of the pass: each head is ablated in its own copy of the batch only"
)
def _(model, tokens, ablation_function=ind.head_ablation_hook, heads_per_pass=2):
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
    model, tokens = small_attn(), repeated(5)
    loop = ind.get_ablation_scores(model, tokens, MEAN)
    few = get_ablation_scores_batched(model, tokens, MEAN, 1)
    many = get_ablation_scores_batched(model, tokens, MEAN, heads_per_pass=2)
    return difference(few, loop) is None and difference(many, loop) is None


@get_ablation_scores_batched.right
def _(model, tokens, ablation_function=ind.head_ablation_hook, heads_per_pass=None):
    return ind.get_ablation_scores(model, tokens, ablation_function)


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
    all_places = torch.arange(len(tokens), device=tokens.device)
    places = torch.where(same, all_places, -2).max(-1).values
    return torch.where((places >= 0) & (places + 1 < all_places), places + 1, -1)
