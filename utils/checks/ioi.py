"""What chapter 09 asks of a learner's functions, and the mistakes it recognises."""

import random
from functools import cache, partial

import einops
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformer_lens import ActivationCache, HookedTransformer, HookedTransformerConfig
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import get_act_name
from transformers import PreTrainedTokenizerFast

from utils import ioi
from utils.checks.engine import Chapter
from utils.world.lexicon import GIFTS, NAMES, PLACES

chapter = Chapter(ioi)
exercise, check, hint = chapter.exercise, chapter.check, chapter.hint

BATCH, SEQ = 4, 9


@cache
def small_model() -> HookedTransformer:
    """Random weights and biases; all dimensions differ, so that a transpose shows."""
    torch.manual_seed(0)
    sizes = dict(n_layers=3, d_model=20, n_heads=5, d_head=6, n_ctx=32, d_vocab=37)
    model = HookedTransformer(HookedTransformerConfig(**sizes, act_fn="gelu_new", normalization_type="LN", seed=0))
    for name, parameter in model.named_parameters():
        if name.split(".")[-1].startswith("b"):
            parameter.data.normal_(0, 0.3)
    return model.requires_grad_(False)


@cache
def small_runs():
    """(clean tokens, corrupted tokens, answers, clean cache, corrupted cache) of the small model."""
    model, generator = small_model(), torch.Generator().manual_seed(1)
    clean = torch.randint(0, 37, (BATCH, SEQ), generator=generator)
    corrupted = clean.clone()
    corrupted[:, 4] = (clean[:, 4] + 7) % 37
    clean_logits, clean_cache = model.run_with_cache(clean)
    corrupted_logits, corrupted_cache = model.run_with_cache(corrupted)
    # The tokens that the corruption matters most to, so that there is something to restore.
    change = (clean_logits - corrupted_logits)[:, -1]
    answers = torch.stack([change.argmax(dim=-1), change.argmin(dim=-1)], dim=1)
    return clean, corrupted, answers, clean_cache, corrupted_cache


@cache
def small_diffs() -> list[float]:
    """Mean logit difference of the clean and of the corrupted run."""
    clean, corrupted, answers, *_ = small_runs()
    return [float(ioi.logits_to_ave_logit_diff(small_model()(tokens), answers)) for tokens in (clean, corrupted)]


def metric(logits):
    """The small model's metric: 1 on the clean prompts, 0 on the corrupted ones."""
    return ioi.ioi_metric(logits, small_runs()[2], *small_diffs())


def shared():
    return small_model(), small_runs()[3], small_runs()[4]


def tokenizer_of(text: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which every word of the text is one token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text] * 2, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, pad_token=end)


@cache
def toy_tokenizer() -> PreTrainedTokenizerFast:
    """The world's names, places and gifts are one token each; so are the words of the toy template."""
    return tokenizer_of(" " + " ".join([*NAMES, *PLACES, *GIFTS, "gave a to met at the"]))


def _edited(fn, activation, *args, **kwargs):
    """A hook may edit in place, or return a new tensor."""
    returned = fn(activation, *args, **kwargs)
    return activation if returned is None else returned


def _hook(name: str, layer: int) -> HookPoint:
    hook = HookPoint()
    hook.name = get_act_name(name, layer)
    return hook


# ---------------------------------------------------------------- IOIDataset

TEMPLATE = " {name} and {name2} met at the {place}. {subject} gave a {gift} to {recipient}."


def _abc_fault(old, new) -> str:
    for f, g in zip(old.fillings, new.fillings, strict=True):
        names = [g["name"], g["name2"], g["subject"]]
        if len(set(names)) < 3:
            return "a name stands twice"
        if {f["name"], f["name2"]} & set(names):
            return "an old name is still there"
        if any(f[slot] != g[slot] for slot in ("place", "gift")):
            return "place or gift changed"
        if (f["recipient"] == f["name"], f["recipient"] == f["name2"]) != (
            g["recipient"] == g["name"],
            g["recipient"] == g["name2"],
        ):
            return "the recipient is no longer in its place"
    return "right"


def _use_dataset(cls, n, seed):
    drawn = ioi.IOIDataset.sample(toy_tokenizer(), n, 0, seed)
    data = cls(toy_tokenizer(), TEMPLATE, drawn.fillings)
    flipped = data.flipped()
    seen = {"flipped texts": flipped.texts, "flipped answers": flipped.answers, "flipped positions": flipped.positions}
    abc = data.abc(seed)
    other = data.abc(seed + 1)
    seen |= {"abc": _abc_fault(data, abc), "abc answers": abc.answers, "abc positions": abc.positions}
    return seen | {"another seed, other names": other.texts != abc.texts, "untouched": data.texts}


IOIDataset = exercise(ioi.IOIDataset, use=_use_dataset)


@IOIDataset.cases
def _():
    yield (5, 0)
    yield (12, 3)


def _dataset_with(**methods):
    return type("IOIDataset", (ioi.IOIDataset,), methods)


def _rebuild(self, change, answers=None):
    return ioi.IOIDataset(self.tokenizer, self.template, [f | change(f) for f in self.fillings], answers)


def _as_class(**methods):
    return lambda *args: _dataset_with(**methods)(*args)


IOIDataset.mistake("flipped() must swap the recipient too: the answer is whoever does not act")(
    _as_class(flipped=lambda self: _rebuild(self, lambda f: {"subject": f["recipient"]}))
)
IOIDataset.mistake("flipped() must leave the introduction alone: swap subject and recipient, not name and name2")(
    _as_class(flipped=lambda self: _rebuild(self, lambda f: {"name": f["name2"], "name2": f["name"]}))
)
IOIDataset.mistake("flipped() changed nothing: build a new dataset with subject and recipient swapped")(
    _as_class(flipped=lambda self: _rebuild(self, lambda f: {}))
)


def _abc_with(choose, keep_answers=True):
    def abc(self, seed=0):
        rng = random.Random(seed)
        return _rebuild(self, lambda f: choose(rng, f), self.answers if keep_answers else None)

    return _as_class(abc=abc)


def _three(rng, f, n=3):
    return rng.sample([name for name in NAMES if name not in (f["name"], f["name2"])], n)


def _fill(f, a, b, c):
    return {"name": a, "name2": b, "subject": c, "recipient": a if f["recipient"] == f["name"] else b}


IOIDataset.mistake("abc() repeats a name: the subject at S2 needs a third name of its own")(
    _abc_with(lambda rng, f: _fill(f, *(two := _three(rng, f, 2)), two[f["subject"] == f["name2"]]))
)
IOIDataset.mistake("abc() still holds a name of the old prompt: draw from the other names")(
    _abc_with(lambda rng, f: {"subject": _three(rng, f)[0]})
)
IOIDataset.mistake("abc() must keep the old prompt's answers: pass self.answers on, so that one question fits both")(
    _abc_with(lambda rng, f: _fill(f, *_three(rng, f)), keep_answers=False)
)
IOIDataset.mistake("abc() ignores its seed: draw the names from random.Random(seed)")(
    _as_class(abc=lambda self, seed=0: ioi.IOIDataset.abc(self, 0))
)


@IOIDataset.law("flipping twice must give the first prompts back")
def _(cls):
    data = cls.sample(toy_tokenizer(), 6, 0, 5)
    return data.flipped().flipped().texts == data.texts and data.flipped().texts != data.texts


@IOIDataset.right
def _right_dataset(*args):
    def flipped(self):
        swapped = []
        for f in self.fillings:
            g = dict(f)
            g["subject"], g["recipient"] = f["recipient"], f["subject"]
            swapped.append(g)
        return ioi.IOIDataset(self.tokenizer, self.template, swapped)

    def abc(self, seed=0):
        generator = random.Random(f"abc {seed}")
        fillings = []
        for f in self.fillings:
            others = [name for name in NAMES if name not in f.values()]
            generator.shuffle(others)
            fillings.append({**f, **_fill(f, *others[:3])})
        return ioi.IOIDataset(self.tokenizer, self.template, fillings, self.answers)

    return _dataset_with(flipped=flipped, abc=abc)(*args)


_right_dataset.sample = lambda *args: _right_dataset(
    toy_tokenizer(), TEMPLATE, ioi.IOIDataset.sample(*args).fillings
)  # the law calls it

# ---------------------------------------------------------------- logits_to_ave_logit_diff

logits_to_ave_logit_diff = exercise(ioi.logits_to_ave_logit_diff)


@logits_to_ave_logit_diff.cases
def _():
    generator = torch.Generator().manual_seed(0)
    for batch, seq, d_vocab in ((3, 5, 11), (1, 4, 7), (6, 1, 20)):
        logits = torch.randn(batch, seq, d_vocab, generator=generator)
        answers = torch.stack([torch.randperm(d_vocab, generator=generator)[:2] for _ in range(batch)])
        yield logits, answers
        yield logits, answers, True


@logits_to_ave_logit_diff.mistake("you took another position than the last: the answer comes after the last token")
def _(logits, answer_tokens, per_prompt=False):
    return ioi.logits_to_ave_logit_diff(logits[:, :1], answer_tokens, per_prompt)


@logits_to_ave_logit_diff.mistake("the sign is turned round: the right name's logit minus the wrong one's")
def _(logits, answer_tokens, per_prompt=False):
    return -ioi.logits_to_ave_logit_diff(logits, answer_tokens, per_prompt)


@logits_to_ave_logit_diff.mistake("you used the first prompt's answers for all: each row has its own pair, use gather")
def _(logits, answer_tokens, per_prompt=False):
    return ioi.logits_to_ave_logit_diff(logits, answer_tokens[:1].expand(len(logits), 2), per_prompt)


@logits_to_ave_logit_diff.mistake("you averaged over the positions: only the last one is asked")
def _(logits, answer_tokens, per_prompt=False):
    return ioi.logits_to_ave_logit_diff(logits.mean(dim=1, keepdim=True), answer_tokens, per_prompt)


@logits_to_ave_logit_diff.mistake("per_prompt is ignored: return one difference for each prompt where it is True")
def _(logits, answer_tokens, per_prompt=False):
    return ioi.logits_to_ave_logit_diff(logits, answer_tokens)


@logits_to_ave_logit_diff.mistake("you compared probabilities: take the logits as they are")
def _(logits, answer_tokens, per_prompt=False):
    return ioi.logits_to_ave_logit_diff(logits.softmax(dim=-1), answer_tokens, per_prompt)


@logits_to_ave_logit_diff.law("adding the same number to all logits of a prompt must change nothing")
def _(logits_to_ave_logit_diff):
    logits, answers = torch.randn(3, 4, 9), torch.tensor([[1, 2], [3, 4], [8, 0]])
    shifted = logits_to_ave_logit_diff(logits + torch.randn(3, 4, 1), answers)
    return torch.allclose(shifted, logits_to_ave_logit_diff(logits, answers), atol=1e-4)


@logits_to_ave_logit_diff.right
def _(logits, answer_tokens, per_prompt=False):
    log_probs = logits[:, -1].log_softmax(dim=-1)
    rows = torch.arange(len(logits))
    diff = log_probs[rows, answer_tokens[:, 0]] - log_probs[rows, answer_tokens[:, 1]]
    return diff if per_prompt else diff.mean()


# ---------------------------------------------------------------- residual_stack_to_logit_diff

residual_stack_to_logit_diff = exercise(ioi.residual_stack_to_logit_diff, shared=shared)


def _directions():
    _, _, answers, *_ = small_runs()
    W_U = small_model().W_U
    return (W_U[:, answers[:, 0]] - W_U[:, answers[:, 1]]).T


@residual_stack_to_logit_diff.cases
def _():
    clean, *_, clean_cache, _ = small_runs()
    yield clean_cache["resid_post", -1][:, -1], clean_cache, _directions()
    stack = torch.stack([clean_cache["resid_pre", layer][:, -1] for layer in range(3)])
    yield stack, clean_cache, _directions()
    heads = torch.randn(3, 5, BATCH, 20, generator=torch.Generator().manual_seed(2))
    yield heads, clean_cache, _directions()


@residual_stack_to_logit_diff.mistake("the final LayerNorm is missing: divide by its scale at the last position")
def _(residual_stack, cache, logit_diff_directions):
    residual_stack = residual_stack - residual_stack.mean(dim=-1, keepdim=True)
    return (residual_stack * logit_diff_directions).sum(-1).mean(-1)


@residual_stack_to_logit_diff.mistake("you took the scale of position 0: the parts are from the last position, [:, -1]")
def _(residual_stack, cache, logit_diff_directions):
    residual_stack = residual_stack - residual_stack.mean(dim=-1, keepdim=True)
    return (residual_stack / cache["ln_final.hook_scale"][:, 0] * logit_diff_directions).sum(-1).mean(-1)


@residual_stack_to_logit_diff.mistake(
    "you gave every part a scale of its own: use the run's, from the cache, else the parts don't add up"
)
def _(residual_stack, cache, logit_diff_directions):
    residual_stack = residual_stack - residual_stack.mean(dim=-1, keepdim=True)
    scale = (residual_stack.pow(2).mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    return (residual_stack / scale * logit_diff_directions).sum(-1).mean(-1)


@residual_stack_to_logit_diff.mistake(
    "you averaged the directions over the prompts first: each prompt's part meets its own direction"
)
def _(residual_stack, cache, logit_diff_directions):
    return ioi.residual_stack_to_logit_diff(
        residual_stack, cache, logit_diff_directions.mean(dim=0, keepdim=True).expand_as(logit_diff_directions)
    )


@residual_stack_to_logit_diff.mistake("the sum over prompts is not their mean: divide by the batch size")
def _(residual_stack, cache, logit_diff_directions):
    return len(logit_diff_directions) * ioi.residual_stack_to_logit_diff(residual_stack, cache, logit_diff_directions)


@residual_stack_to_logit_diff.law("the parts must add up to the whole: f(a + b) = f(a) + f(b)")
def _(residual_stack_to_logit_diff):
    a, b = torch.randn(2, BATCH, 20)
    cache = small_runs()[3]
    whole, parts = (residual_stack_to_logit_diff(x, cache, _directions()) for x in (a + b, torch.stack([a, b])))
    return torch.allclose(whole, parts.sum(), atol=1e-4) and bool(whole.abs() > 1e-4)


@residual_stack_to_logit_diff.right
def _(residual_stack, cache, logit_diff_directions):
    scaled = cache.apply_ln_to_stack(residual_stack, layer=-1, pos_slice=-1)
    return (scaled * logit_diff_directions).sum(dim=-1).sum(dim=-1) / len(logit_diff_directions)


# ---------------------------------------------------------------- ioi_metric

ioi_metric = exercise(ioi.ioi_metric)


@ioi_metric.cases
def _():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 11, generator=generator)
    answers = torch.tensor([[1, 2], [10, 4], [8, 0]])
    yield logits, answers, 3.0, -1.0
    yield logits, answers, 2.5, 0.5


@ioi_metric.mistake("you divided by the clean value alone: divide by clean - corrupted, else clean is not 1")
def _(logits, answer_tokens, clean_logit_diff, corrupted_logit_diff):
    return (ioi.logits_to_ave_logit_diff(logits, answer_tokens) - corrupted_logit_diff) / clean_logit_diff


@ioi_metric.mistake("0 and 1 are swapped: measure from the corrupted value towards the clean one")
def _(logits, answer_tokens, clean_logit_diff, corrupted_logit_diff):
    return ioi.ioi_metric(logits, answer_tokens, corrupted_logit_diff, clean_logit_diff)


@ioi_metric.mistake("you returned the logit difference itself: bring it to the scale from corrupted 0 to clean 1")
def _(logits, answer_tokens, clean_logit_diff, corrupted_logit_diff):
    return ioi.logits_to_ave_logit_diff(logits, answer_tokens)


@ioi_metric.mistake("you clipped to 0 and 1: a patch may overshoot, and that is worth seeing")
def _(logits, answer_tokens, clean_logit_diff, corrupted_logit_diff):
    return ioi.ioi_metric(logits, answer_tokens, clean_logit_diff, corrupted_logit_diff).clamp(0, 1)


@ioi_metric.law("the clean run must get 1, the corrupted run 0")
def _(ioi_metric):
    clean, corrupted, answers, *_ = small_runs()
    runs = [small_model()(x) for x in (clean, corrupted)]
    diffs = [ioi.logits_to_ave_logit_diff(logits, answers) for logits in runs]
    got = torch.stack([ioi_metric(logits, answers, *diffs) for logits in runs])
    return torch.allclose(got, torch.tensor([1.0, 0.0]), atol=1e-4)


@ioi_metric.right
def _(logits, answer_tokens, clean_logit_diff, corrupted_logit_diff):
    gap = clean_logit_diff - corrupted_logit_diff
    each = ioi.logits_to_ave_logit_diff(logits, answer_tokens, per_prompt=True)
    return ((each - corrupted_logit_diff) / gap).mean()


# ---------------------------------------------------------------- patch_residual_component


def _use_resid_hook(fn, activation, hook, pos, clean_cache):
    return _edited(fn, activation, hook=hook, pos=pos, clean_cache=clean_cache)


patch_residual_component = exercise(ioi.patch_residual_component, use=_use_resid_hook, shared=shared)


@patch_residual_component.cases
def _():
    *_, clean_cache, corrupted_cache = small_runs()
    for name, layer, pos in (("resid_pre", 1, 4), ("attn_out", 2, 8), ("mlp_out", 0, 6)):
        yield corrupted_cache[name, layer].clone(), _hook(name, layer), pos, clean_cache


@patch_residual_component.mistake("you patched all positions: only `pos` gets the clean values")
def _(corrupted_residual_component, hook, pos, clean_cache):
    return clean_cache[hook.name].clone()


@patch_residual_component.mistake("you patched prompt number `pos` instead of position `pos`: the batch comes first")
def _(corrupted_residual_component, hook, pos, clean_cache):
    corrupted_residual_component[pos % BATCH] = clean_cache[hook.name][pos % BATCH]
    return corrupted_residual_component


@patch_residual_component.mistake("you patched only the first prompt: [:, pos] reaches the whole batch")
def _(corrupted_residual_component, hook, pos, clean_cache):
    corrupted_residual_component[0, pos] = clean_cache[hook.name][0, pos]
    return corrupted_residual_component


@patch_residual_component.mistake("all prompts got the first prompt's clean values: each gets its own")
def _(corrupted_residual_component, hook, pos, clean_cache):
    corrupted_residual_component[:, pos] = clean_cache[hook.name][0, pos]
    return corrupted_residual_component


@patch_residual_component.mistake("nothing was changed: write the clean values into the tensor that the hook gets")
def _(corrupted_residual_component, hook, pos, clean_cache):
    return corrupted_residual_component


@patch_residual_component.mistake("one position off: positions count from 0, and BOS is position 0")
def _(corrupted_residual_component, hook, pos, clean_cache):
    corrupted_residual_component[:, pos - 1] = clean_cache[hook.name][:, pos - 1]
    return corrupted_residual_component


@patch_residual_component.law("patching a run with itself must change nothing, patching with another must")
def _(patch_residual_component):
    *_, clean_cache, corrupted_cache = small_runs()
    hook, before = _hook("resid_pre", 1), corrupted_cache["resid_pre", 1]
    own, other = (
        _edited(patch_residual_component, before.clone(), hook=hook, pos=4, clean_cache=source)
        for source in (corrupted_cache, clean_cache)
    )
    return torch.equal(own, before) and not torch.equal(other, before)


@patch_residual_component.right
def _(corrupted_residual_component, hook, pos, clean_cache):
    here = (torch.arange(corrupted_residual_component.shape[1]) == pos)[None, :, None]
    return torch.where(here, clean_cache[hook.name], corrupted_residual_component)


# ---------------------------------------------------------------- get_act_patch_resid_pre

get_act_patch_resid_pre = exercise(ioi.get_act_patch_resid_pre, shared=shared)


@get_act_patch_resid_pre.cases
def _():
    _, corrupted, _, clean_cache, _ = small_runs()
    yield small_model(), corrupted, clean_cache, metric


def _sweep(model, tokens, clean_cache, patching_metric, name="resid_pre", at=None):
    layers, seq = model.cfg.n_layers, tokens.shape[1]
    results = torch.zeros(layers, seq)
    for layer in range(layers):
        for pos in range(seq):
            hook = (
                get_act_name(name, layer),
                partial(ioi.patch_residual_component, pos=pos if at is None else at, clean_cache=clean_cache),
            )
            results[layer, pos] = patching_metric(model.run_with_hooks(tokens, fwd_hooks=[hook]))
    return results


@get_act_patch_resid_pre.mistake("you patched resid_post: the clean stream goes in *before* the layer, at resid_pre")
def _(model, corrupted_tokens, clean_cache, patching_metric):
    return _sweep(model, corrupted_tokens, clean_cache, patching_metric, "resid_post")


@get_act_patch_resid_pre.mistake("you patched the last position each time: use the loop's own position")
def _(model, corrupted_tokens, clean_cache, patching_metric):
    return _sweep(model, corrupted_tokens, clean_cache, patching_metric, at=-1)


@get_act_patch_resid_pre.mistake("you patched the corrupted run with itself: the values come from clean_cache")
def _(model, corrupted_tokens, clean_cache, patching_metric):
    return _sweep(model, corrupted_tokens, small_runs()[4], patching_metric)


@get_act_patch_resid_pre.mistake("you ran the clean prompts: run the corrupted ones and put the clean activation in")
def _(model, corrupted_tokens, clean_cache, patching_metric):
    return _sweep(model, small_runs()[0], clean_cache, patching_metric)


@get_act_patch_resid_pre.law(
    "the clean embeddings at the position that differs must restore everything: the metric is 1"
)
def _(get_act_patch_resid_pre):
    _, corrupted, _, clean_cache, _ = small_runs()
    scores = get_act_patch_resid_pre(small_model(), corrupted, clean_cache, metric)
    return torch.allclose(scores[0, 4], torch.tensor(1.0), atol=1e-3)


@get_act_patch_resid_pre.right
def _(model, corrupted_tokens, clean_cache, patching_metric):
    rows = []
    for layer in range(model.cfg.n_layers):
        row = []
        for pos in range(corrupted_tokens.shape[1]):

            def swap(resid, hook, pos=pos):
                resid[:, pos] = clean_cache[hook.name][:, pos]

            with model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_resid_pre", swap)]):
                row.append(float(patching_metric(model(corrupted_tokens))))
        rows.append(row)
    return torch.tensor(rows)


# ---------------------------------------------------------------- patch_head_vector, patch_attn_patterns


def _use_head_hook(fn, activation, hook, head_index, clean_cache):
    return _edited(fn, activation, hook=hook, head_index=head_index, clean_cache=clean_cache)


patch_head_vector = exercise(ioi.patch_head_vector, use=_use_head_hook, shared=shared)


@patch_head_vector.cases
def _():
    *_, clean_cache, corrupted_cache = small_runs()
    for name, layer, head in (("z", 1, 3), ("q", 2, 0), ("v", 0, 4)):
        yield corrupted_cache[name, layer].clone(), _hook(name, layer), head, clean_cache


@patch_head_vector.mistake(
    "you patched position number `head_index`: heads are the third dimension, [:, :, head_index]"
)
def _(corrupted_head_vector, hook, head_index, clean_cache):
    corrupted_head_vector[:, head_index] = clean_cache[hook.name][:, head_index]
    return corrupted_head_vector


@patch_head_vector.mistake("you patched all heads of the layer: only `head_index` gets the clean values")
def _(corrupted_head_vector, hook, head_index, clean_cache):
    return clean_cache[hook.name].clone()


@patch_head_vector.mistake("you patched only the first prompt: [:, :, head_index] reaches the whole batch")
def _(corrupted_head_vector, hook, head_index, clean_cache):
    corrupted_head_vector[0, :, head_index] = clean_cache[hook.name][0, :, head_index]
    return corrupted_head_vector


@patch_head_vector.mistake("you patched only the last position: a head's output counts at all of them")
def _(corrupted_head_vector, hook, head_index, clean_cache):
    corrupted_head_vector[:, -1, head_index] = clean_cache[hook.name][:, -1, head_index]
    return corrupted_head_vector


@patch_head_vector.mistake("you patched one of the d_head numbers of every head: heads are the third dimension")
def _(corrupted_head_vector, hook, head_index, clean_cache):
    corrupted_head_vector[..., head_index] = clean_cache[hook.name][..., head_index]
    return corrupted_head_vector


@patch_head_vector.right
def _(corrupted_head_vector, hook, head_index, clean_cache):
    new = corrupted_head_vector.clone()
    new.select(2, head_index).copy_(clean_cache[hook.name].select(2, head_index))
    return new


patch_attn_patterns = exercise(ioi.patch_attn_patterns, use=_use_head_hook, shared=shared)


@patch_attn_patterns.cases
def _():
    *_, clean_cache, corrupted_cache = small_runs()
    for layer, head in ((1, 3), (2, 0), (1, 4)):
        yield corrupted_cache["pattern", layer].clone(), _hook("pattern", layer), head, clean_cache


@patch_attn_patterns.mistake("in a pattern the head is the second dimension, not the third: [:, head_index]")
def _(corrupted_pattern, hook, head_index, clean_cache):
    corrupted_pattern[:, :, head_index] = clean_cache[hook.name][:, :, head_index]
    return corrupted_pattern


@patch_attn_patterns.mistake("you patched all heads of the layer: only `head_index` gets the clean pattern")
def _(corrupted_pattern, hook, head_index, clean_cache):
    return clean_cache[hook.name].clone()


@patch_attn_patterns.mistake("you patched only the first prompt: [:, head_index] reaches the whole batch")
def _(corrupted_pattern, hook, head_index, clean_cache):
    corrupted_pattern[0, head_index] = clean_cache[hook.name][0, head_index]
    return corrupted_pattern


@patch_attn_patterns.mistake("you patched the last query only: the head's whole pattern goes in")
def _(corrupted_pattern, hook, head_index, clean_cache):
    corrupted_pattern[:, head_index, -1] = clean_cache[hook.name][:, head_index, -1]
    return corrupted_pattern


@patch_attn_patterns.law("attention must still add up to 1 over the keys, and some of it must have moved")
def _(patch_attn_patterns):
    *_, clean_cache, corrupted_cache = small_runs()
    before = corrupted_cache["pattern", 1]
    after = _edited(
        patch_attn_patterns, before.clone(), hook=_hook("pattern", 1), head_index=2, clean_cache=clean_cache
    )
    moved = (after - before).abs().sum(dim=(0, 2, 3)) > 0
    return torch.allclose(after.sum(dim=-1), torch.ones(BATCH, 5, SEQ)) and moved.tolist() == [i == 2 for i in range(5)]


@patch_attn_patterns.right
def _(corrupted_pattern, hook, head_index, clean_cache):
    here = torch.zeros(corrupted_pattern.shape[1])
    here[head_index] = 1
    mask = here[None, :, None, None]
    return corrupted_pattern * (1 - mask) + clean_cache["pattern", hook.layer()] * mask


# ---------------------------------------------------------------- get_act_patch_heads_by_pos

get_act_patch_heads_by_pos = exercise(ioi.get_act_patch_heads_by_pos, shared=shared)


@get_act_patch_heads_by_pos.cases
def _():
    _, corrupted, _, clean_cache, _ = small_runs()
    yield small_model(), corrupted, clean_cache, metric


def _by_pos(model, tokens, clean_cache, patching_metric, W_O=None, difference=None, at=None, base=None):
    logits, corrupted_cache = model.run_with_cache(tokens)
    base = float(patching_metric(logits)) if base is None else base
    results = torch.full((model.cfg.n_layers, tokens.shape[1], model.cfg.n_heads), base)
    for layer in range(model.cfg.n_layers):
        clean, corrupted = clean_cache["z", layer], corrupted_cache["z", layer]
        z = (difference or torch.sub)(clean, corrupted)
        weights = model.W_O[layer if W_O is None else W_O]
        change = einops.einsum(z, weights, "b pos head d_head, head d_head d_model -> pos head b d_model")
        for pos in range(tokens.shape[1]) if layer < model.cfg.n_layers - 1 else [tokens.shape[1] - 1]:
            resid = corrupted_cache["resid_mid" if at is None else at, layer][:, pos] + change[pos]
            logits = ioi.finish_run(model, resid.flatten(0, 1), layer, pos, corrupted_cache)
            results[layer, pos] = torch.stack([patching_metric(x) for x in logits.chunk(model.cfg.n_heads)])
    return results


@get_act_patch_heads_by_pos.mistake("you added the clean output on top of the corrupted one: add only the difference")
def _(model, corrupted_tokens, clean_cache, patching_metric):
    return _by_pos(model, corrupted_tokens, clean_cache, patching_metric, difference=lambda a, b: a)


@get_act_patch_heads_by_pos.mistake("the sign is turned round: clean minus corrupted takes the corrupted part away")
def _(model, corrupted_tokens, clean_cache, patching_metric):
    return _by_pos(model, corrupted_tokens, clean_cache, patching_metric, difference=lambda a, b: b - a)


@get_act_patch_heads_by_pos.mistake(
    "you projected with the wrong slice of W_O: each layer has its own, model.W_O[layer]"
)
def _(model, corrupted_tokens, clean_cache, patching_metric):
    return _by_pos(model, corrupted_tokens, clean_cache, patching_metric, W_O=0)


@get_act_patch_heads_by_pos.mistake("a head's change belongs after the attention, in resid_mid, not in resid_pre")
def _(model, corrupted_tokens, clean_cache, patching_metric):
    return _by_pos(model, corrupted_tokens, clean_cache, patching_metric, at="resid_pre")


@get_act_patch_heads_by_pos.mistake(
    "where a patch can't matter the metric is that of the corrupted run, 0 only if that is 0"
)
def _(model, corrupted_tokens, clean_cache, patching_metric):
    return _by_pos(model, corrupted_tokens, clean_cache, patching_metric, base=-1.0)


@get_act_patch_heads_by_pos.mistake("positions and heads are swapped: results[layer, pos, head]")
def _(model, corrupted_tokens, clean_cache, patching_metric):
    return _by_pos(model, corrupted_tokens, clean_cache, patching_metric).transpose(1, 2)


@get_act_patch_heads_by_pos.right
def _(model, corrupted_tokens, clean_cache, patching_metric):
    n_layers, seq, n_heads = model.cfg.n_layers, corrupted_tokens.shape[1], model.cfg.n_heads
    results = torch.zeros(n_layers, seq, n_heads)
    for layer in range(n_layers):
        for pos in range(seq):
            for head in range(n_heads):

                def swap(z, hook, pos=pos, head=head):
                    z[:, pos, head] = clean_cache[hook.name][:, pos, head]

                hooks = [(get_act_name("z", layer), swap)]
                results[layer, pos, head] = patching_metric(model.run_with_hooks(corrupted_tokens, fwd_hooks=hooks))
    return results


# ---------------------------------------------------------------- patch_or_freeze_heads


def _use_freeze(fn, z, hook, sender, orig_cache, new_cache):
    return _edited(fn, z, hook=hook, sender=sender, orig_cache=orig_cache, new_cache=new_cache)


patch_or_freeze_heads = exercise(ioi.patch_or_freeze_heads, use=_use_freeze, shared=shared)


@patch_or_freeze_heads.cases
def _():
    *_, orig_cache, new_cache = small_runs()
    z = torch.randn(BATCH, SEQ, 5, 6, generator=torch.Generator().manual_seed(0))
    yield z, _hook("z", 1), (1, 3), orig_cache, new_cache
    yield z, _hook("z", 2), (1, 3), orig_cache, new_cache
    yield z, _hook("z", 0), (0, 4), orig_cache, new_cache


@patch_or_freeze_heads.mistake("the other heads are not frozen: first put the original run's z in for the whole layer")
def _(z, hook, sender, orig_cache, new_cache):
    if hook.layer() == sender[0]:
        z[:, :, sender[1]] = new_cache[hook.name][:, :, sender[1]]
    return z


@patch_or_freeze_heads.mistake("you patched that head in every layer: only in the sender's own")
def _(z, hook, sender, orig_cache, new_cache):
    z[:] = orig_cache[hook.name]
    z[:, :, sender[1]] = new_cache[hook.name][:, :, sender[1]]
    return z


@patch_or_freeze_heads.mistake(
    "orig and new are swapped: freeze to the original run, the sender speaks as in the new one"
)
def _(z, hook, sender, orig_cache, new_cache):
    return ioi.patch_or_freeze_heads(z, hook, sender, new_cache, orig_cache)


@patch_or_freeze_heads.mistake("you patched the sender's whole layer: only its own head speaks as in the new run")
def _(z, hook, sender, orig_cache, new_cache):
    z[:] = (new_cache if hook.layer() == sender[0] else orig_cache)[hook.name]
    return z


@patch_or_freeze_heads.mistake("you patched position number `head`: heads are the third dimension, [:, :, head]")
def _(z, hook, sender, orig_cache, new_cache):
    z[:] = orig_cache[hook.name]
    if hook.layer() == sender[0]:
        z[:, sender[1]] = new_cache[hook.name][:, sender[1]]
    return z


@patch_or_freeze_heads.right
def _(z, hook, sender, orig_cache, new_cache):
    frozen = orig_cache["z", hook.layer()].clone()
    if (hook.layer(), sender[1]) == tuple(sender):
        frozen[:, :, sender[1], :] = new_cache["z", hook.layer()][:, :, sender[1], :]
    return frozen


# ---------------------------------------------------------------- path_patch_to_heads

path_patch_to_heads = exercise(ioi.path_patch_to_heads, shared=shared)


@path_patch_to_heads.cases
def _():
    clean, _, _, orig_cache, new_cache = small_runs()
    yield small_model(), clean, orig_cache, new_cache, (0, 2), [(2, 1), (2, 4)], "q"
    yield small_model(), clean, orig_cache, new_cache, (0, 1), [(1, 3), (2, 0)], "k"
    yield small_model(), clean, orig_cache, new_cache, (1, 4), [(2, 2)], "v"


@path_patch_to_heads.mistake(
    "you stopped after the first run: there all heads are frozen, so the receivers pass nothing on"
)
def _(model, orig_tokens, orig_cache, new_cache, sender, receivers, receiver_input="q"):
    return ioi.path_patch_to_logits(model, orig_tokens, orig_cache, new_cache, sender)


@path_patch_to_heads.mistake("the receivers got the new run's own input: they must get what only the sender changed")
def _(model, orig_tokens, orig_cache, new_cache, sender, receivers, receiver_input="q"):
    hooks = [
        (get_act_name(receiver_input, layer), partial(ioi.patch_head_vector, head_index=head, clean_cache=new_cache))
        for layer, head in receivers
    ]
    return model.run_with_hooks(orig_tokens, fwd_hooks=hooks)


@path_patch_to_heads.mistake("the second run still has the sender patched: there only the receivers' input changes")
def _(model, orig_tokens, orig_cache, new_cache, sender, receivers, receiver_input="q"):
    hook = partial(ioi.patch_head_vector, head_index=sender[1], clean_cache=new_cache)
    with model.hooks(fwd_hooks=[(get_act_name("z", sender[0]), hook)]):
        return ioi.path_patch_to_heads(model, orig_tokens, orig_cache, new_cache, sender, receivers, receiver_input)


@path_patch_to_heads.mistake("receiver_input is ignored: you always patched the queries")
def _(model, orig_tokens, orig_cache, new_cache, sender, receivers, receiver_input="q"):
    return ioi.path_patch_to_heads(model, orig_tokens, orig_cache, new_cache, sender, receivers, "q")


@path_patch_to_heads.mistake("only the first receiver got its new input: give every one of them its own")
def _(model, orig_tokens, orig_cache, new_cache, sender, receivers, receiver_input="q"):
    return ioi.path_patch_to_heads(model, orig_tokens, orig_cache, new_cache, sender, receivers[:1], receiver_input)


@path_patch_to_heads.mistake(
    "the other heads were not frozen in the first run: then every path to the receivers is open"
)
def _(model, orig_tokens, orig_cache, new_cache, sender, receivers, receiver_input="q"):
    hook = partial(ioi.patch_head_vector, head_index=sender[1], clean_cache=new_cache)
    with model.hooks(fwd_hooks=[(get_act_name("z", sender[0]), hook)]):
        _, received = model.run_with_cache(orig_tokens)
    hooks = [
        (get_act_name(receiver_input, layer), partial(ioi.patch_head_vector, head_index=head, clean_cache=received))
        for layer, head in receivers
    ]
    return model.run_with_hooks(orig_tokens, fwd_hooks=hooks)


@path_patch_to_heads.law("a sender that says the same in both runs must change nothing, another one must")
def _(path_patch_to_heads):
    clean, _, _, orig_cache, new_cache = small_runs()
    own, other = (
        path_patch_to_heads(small_model(), clean, orig_cache, source, (0, 2), [(2, 1)], "k")
        for source in (orig_cache, new_cache)
    )
    before = small_model()(clean)
    return torch.allclose(own, before, atol=1e-5) and not torch.allclose(other, before, atol=1e-5)


@path_patch_to_heads.right
def _(model, orig_tokens, orig_cache, new_cache, sender, receivers, receiver_input="q"):
    kept = {}

    def keep(x, hook):
        kept[hook.name] = x.clone()

    hooks = []
    for layer in range(model.cfg.n_layers):
        z = orig_cache["z", layer].clone()
        if layer == sender[0]:
            z[:, :, sender[1]] = new_cache["z", layer][:, :, sender[1]]
        hooks.append((get_act_name("z", layer), lambda _, hook, z=z: z))
        hooks.append((get_act_name(receiver_input, layer), keep))
    model.run_with_hooks(orig_tokens, fwd_hooks=hooks)
    give = [
        (
            get_act_name(receiver_input, layer),
            partial(ioi.patch_head_vector, head_index=head, clean_cache=ActivationCache(kept, model)),
        )
        for layer, head in receivers
    ]
    return model.run_with_hooks(orig_tokens, fwd_hooks=give)


# ---------------------------------------------------------------- attention_to_role

attention_to_role = exercise(ioi.attention_to_role, shared=shared)


@attention_to_role.cases
def _():
    *_, clean_cache, corrupted_cache = small_runs()
    yield clean_cache, torch.full((BATCH,), SEQ - 1), torch.tensor([1, 2, 1, 3])
    yield corrupted_cache, torch.tensor([5, 6, 7, 8]), torch.tensor([2, 0, 1, 4])


@attention_to_role.mistake("query and key are swapped: a pattern is [batch, head, query, key]")
def _(cache, query, key):
    return ioi.attention_to_role(cache, key, query)


@attention_to_role.mistake("you used the first prompt's positions for all prompts: they differ from row to row")
def _(cache, query, key):
    return ioi.attention_to_role(cache, query[:1].expand_as(query), key[:1].expand_as(key))


@attention_to_role.mistake(
    "you averaged over every pair of positions in the lists: pair row, query and key up one by one"
)
def _(cache, query, key):
    return torch.stack([cache["pattern", layer][:, :, query][..., key].mean(dim=(0, 2, 3)) for layer in range(3)])


@attention_to_role.mistake("you looked at the first prompt only: take the mean over the batch")
def _(cache, query, key):
    return torch.stack([cache["pattern", layer][0, :, query[0], key[0]] for layer in range(3)])


@attention_to_role.right
def _(cache, query, key):
    result = torch.zeros(3, 5)
    for layer in range(3):
        for i, (q, k) in enumerate(zip(query.tolist(), key.tolist(), strict=True)):
            result[layer] += cache["pattern", layer][i, :, q, k] / len(query)
    return result


# ---------------------------------------------------------------- copying_scores

copying_scores = exercise(ioi.copying_scores, shared=shared)


@cache
def copying_model() -> HookedTransformer:
    """Tied embeddings and OV circuits near the identity in some heads: some of them do copy."""
    torch.manual_seed(3)
    sizes = dict(n_layers=2, d_model=14, n_heads=3, d_head=10, n_ctx=8, d_vocab=41)
    model = HookedTransformer(HookedTransformerConfig(**sizes, act_fn="gelu_new", normalization_type="LN", seed=3))
    model.blocks[0].mlp.W_out.data *= 0.4
    model.W_U.data = model.W_E.data.T.clone()
    for block, sign in zip(model.blocks, (1.0, -1.0), strict=True):
        for head in (0, 2):
            basis = torch.linalg.qr(torch.randn(14, 10))[0]
            block.attn.W_V.data[head], block.attn.W_O.data[head] = basis, sign * basis.T
            sign = -sign
    return model.requires_grad_(False)


@copying_scores.cases
def _():
    yield copying_model(), torch.arange(5, 30), 5
    yield copying_model(), torch.arange(0, 41, 3), 2


def _copying(model, names, top_k, first_mlp=True, W_V=None, W_U=None, largest=True, norm=True):
    resid = model.W_E[names][:, None]
    block = model.blocks[0]
    if first_mlp:
        resid = resid + block.apply_mlp(block.ln2(resid))
    scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            W_OV = model.W_V[layer, head] @ model.W_O[layer, head]
            out = (model.blocks[layer].ln1(resid) if norm else resid) @ (W_OV if W_V is None else W_OV.T)
            top = model.unembed(model.ln_final(out))[:, 0].topk(top_k, largest=largest).indices
            scores[layer, head] = (top == names[:, None]).any(-1).float().mean()
    return scores


@copying_scores.mistake("the first MLP is missing: heads read names after it, embedding + MLP 0(ln2(embedding))")
def _(model, name_tokens, top_k=5):
    return _copying(model, name_tokens, top_k, first_mlp=False)


@copying_scores.mistake("you counted names among the lowest logits: topk takes the largest")
def _(model, name_tokens, top_k=5):
    return _copying(model, name_tokens, top_k, largest=False)


@copying_scores.mistake("the product is transposed: a row vector goes through W_V first, then W_O")
def _(model, name_tokens, top_k=5):
    return _copying(model, name_tokens, top_k, W_V="transposed")


@copying_scores.mistake("top_k is ignored: count the name among the top_k guesses")
def _(model, name_tokens, top_k=5):
    return _copying(model, name_tokens, 1)


@copying_scores.mistake("you counted any name among the guesses: it must be the one that the head attends to")
def _(model, name_tokens, top_k=5):
    resid = model.W_E[name_tokens][:, None]
    resid = resid + model.blocks[0].apply_mlp(model.blocks[0].ln2(resid))
    scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            out = model.blocks[layer].ln1(resid) @ model.W_V[layer, head] @ model.W_O[layer, head]
            top = model.unembed(model.ln_final(out))[:, 0].topk(top_k).indices
            scores[layer, head] = torch.isin(top, name_tokens).any(-1).float().mean()
    return scores


@copying_scores.law("scores are fractions, and a head that copies must score more than one that does the opposite")
def _(copying_scores):
    scores = copying_scores(copying_model(), torch.arange(41), 5)
    return bool(0 <= scores.min() and scores.max() <= 1 and scores[0, 0] > 0.5 > scores[0, 2])


@copying_scores.right
def _(model, name_tokens, top_k=5):
    resid = model.W_E[name_tokens].unsqueeze(1)
    resid = resid + model.blocks[0].mlp(model.blocks[0].ln2(resid))
    rows = []
    for layer, block in enumerate(model.blocks):
        out = einops.einsum(
            block.ln1(resid)[:, 0],
            model.OV.AB[layer],
            "name d_in, head d_in d_out -> head name d_out",
        )
        logits = model.unembed(model.ln_final(out))
        better = (logits > logits.gather(-1, name_tokens[None, :, None].expand(len(out), -1, 1))).sum(-1)
        rows.append((better < top_k).float().mean(-1))
    return torch.stack(rows)


# ---------------------------------------------------------------- run_circuit

run_circuit = exercise(ioi.run_circuit, shared=shared)


@cache
def small_means():
    return ioi.mean_z(small_model(), small_runs()[1])


@run_circuit.cases
def _():
    clean, *_ = small_runs()
    yield small_model(), clean, [(0, 1), (1, 3), (2, 0), (2, 4)], small_means()
    yield small_model(), clean, [(1, 2)], small_means()
    yield small_model(), clean, [], small_means()


def _ablated(model, tokens, which, means):
    """Ablate the heads for which `which(layer, head)` is true, with `means` or a function of (z, layer)."""

    def hook_function(z, hook):
        for head in range(model.cfg.n_heads):
            if which(hook.layer(), head):
                new = means(z, hook.layer()) if callable(means) else means[hook.layer()]
                z[:, :, head] = new[..., head, :]
        return z

    return model.run_with_hooks(tokens, fwd_hooks=[(lambda name: name.endswith("hook_z"), hook_function)])


@run_circuit.mistake("you ablated the circuit and kept the rest: the other heads get their mean")
def _(model, tokens, circuit, means):
    return _ablated(model, tokens, lambda *head: head in circuit, means)


@run_circuit.mistake("you set the other heads to zero: give them their mean, which holds what they say on any prompt")
def _(model, tokens, circuit, means):
    return _ablated(model, tokens, lambda *head: head not in circuit, torch.zeros_like(means))


@run_circuit.mistake("you averaged over the positions too: each position has a mean of its own")
def _(model, tokens, circuit, means):
    return _ablated(model, tokens, lambda *head: head not in circuit, means.mean(dim=1, keepdim=True).expand_as(means))


@run_circuit.mistake("you took the mean of these prompts themselves: use the `means` given")
def _(model, tokens, circuit, means):
    return _ablated(model, tokens, lambda *head: head not in circuit, lambda z, layer: z.mean(dim=0))


@run_circuit.mistake("you ignored the layer: (1, 3) keeps head 3 of layer 1 only")
def _(model, tokens, circuit, means):
    kept = {head for _, head in circuit}
    return _ablated(model, tokens, lambda _, head: head not in kept, means)


@run_circuit.mistake("every layer got the means of layer 0: use means[layer]")
def _(model, tokens, circuit, means):
    return _ablated(model, tokens, lambda *head: head not in circuit, means[:1].expand_as(means))


@run_circuit.law("with all heads in the circuit the model must be as it was")
def _(run_circuit):
    clean, *_ = small_runs()
    everything = [(layer, head) for layer in range(3) for head in range(5)]
    return torch.allclose(run_circuit(small_model(), clean, everything, small_means()), small_model()(clean), atol=1e-5)


@run_circuit.right
def _(model, tokens, circuit, means):
    hooks = []
    for layer in range(model.cfg.n_layers):
        keep = torch.tensor([(layer, head) in list(circuit) for head in range(model.cfg.n_heads)])[:, None]
        hooks.append((get_act_name("z", layer), lambda z, hook, k=keep, m=means[layer]: torch.where(k, z, m)))
    return model.run_with_hooks(tokens, fwd_hooks=hooks)


# ---------------------------------------------------------------- find_circuit


class Worth:
    """A score of circuits whose parts help each other: taking the worst head first and once is not enough."""

    def __init__(self, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.alone = torch.randn(3, 5, generator=generator)
        self.together = torch.randn(3, 5, 3, 5, generator=generator) * 0.3

    def __call__(self, circuit) -> float:
        heads = list(circuit)
        return float(
            sum(self.alone[head] for head in heads) + sum(self.together[(*a, *b)] for a in heads for b in heads)
        )


def _use_find(fn, seed, keep):
    circuit, history = fn(small_model(), Worth(seed), keep)
    return {"circuit": {tuple(head) for head in circuit}, "history": list(history)}


find_circuit = exercise(ioi.find_circuit, use=_use_find, shared=shared)


@find_circuit.cases
def _():
    yield from ((0, 1.0), (1, 3.0), (2, -50.0), (3, 1000.0))


def _all_heads(model):
    return [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]


@find_circuit.mistake("you ranked the heads once at the start: after each removal measure the ones left again")
def _(model, score, keep):
    circuit = _all_heads(model)
    order = sorted(circuit, key=lambda head: -score([h for h in circuit if h != head]))
    history = []
    for head in order:
        rest = [h for h in circuit if h != head]
        if score(rest) < keep:
            break
        circuit = rest
        history.append(score(rest))
    return circuit, history


@find_circuit.mistake("you removed the head that is missed most: take the one whose absence leaves the highest score")
def _(model, score, keep):
    circuit, history = _all_heads(model), []
    while circuit:
        rest = min(([h for h in circuit if h != head] for head in circuit), key=score)
        if score(rest) < keep:
            break
        circuit = rest
        history.append(score(rest))
    return circuit, history


@find_circuit.mistake("you went one head too far: stop before the score falls below `keep`")
def _(model, score, keep):
    circuit, history = _all_heads(model), []
    while circuit and (not history or history[-1] >= keep):
        circuit = max(([h for h in circuit if h != head] for head in circuit), key=score)
        history.append(score(circuit))
    return circuit, history


@find_circuit.mistake("you kept the heads that are best alone: heads work together, judge each by its absence")
def _(model, score, keep):
    circuit, history = [], []
    for head in sorted(_all_heads(model), key=lambda head: -score([head])):
        circuit.append(head)
        history.append(score(circuit))
        if history[-1] >= keep:
            break
    return circuit, history


@find_circuit.law("no single head of the result may be removable: without any one the score is below `keep`")
def _(find_circuit):
    score = Worth(4)
    circuit, _ = find_circuit(small_model(), score, 1.0)
    circuit = [tuple(head) for head in circuit]
    return bool(circuit) and all(score([h for h in circuit if h != head]) < 1.0 for head in circuit)


@find_circuit.right
def _(model, score, keep):
    left, history = set(_all_heads(model)), []
    while left:
        best, head = max((score(left - {head}), head) for head in left)
        if best < keep:
            return left, history
        left.discard(head)
        history.append(best)
    return left, history
