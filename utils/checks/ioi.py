"""What chapter 09 asks of a learner's functions, and the mistakes it recognises."""

import random
from functools import cache, partial

import einops
import torch
from transformer_lens import ActivationCache
from transformer_lens.utilities import get_act_name
from transformers import PreTrainedTokenizerFast

from utils import ioi, ioi_circuit
from utils.checks.engine import MEASURED, Chapter
from utils.checks.models import hook_point, hooked, noise, small_gpt, tokenizer_of
from utils.runtime import device
from utils.world.lexicon import GIFTS, NAMES, PLACES

chapter = Chapter(ioi, ioi_circuit)
exercise, check, hint, compare = chapter.exercise, chapter.check, chapter.hint, chapter.compare

BATCH, SEQ = 4, 9


@cache
def small_runs():
    """(clean tokens, corrupted tokens, answers, clean cache, corrupted cache) of the small model."""
    model, generator = small_gpt(), torch.Generator().manual_seed(1)
    clean = torch.randint(0, 37, (BATCH, SEQ), generator=generator).to(device())
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
    return [float(ioi.logits_to_ave_logit_diff(small_gpt()(tokens), answers)) for tokens in (clean, corrupted)]


def metric(logits):
    """The small model's metric: 1 on the clean prompts, 0 on the corrupted ones."""
    return ioi.ioi_metric(logits, small_runs()[2], *small_diffs())


def raised(logits):
    """A metric that is not 0 on the corrupted prompts."""
    return metric(logits) + 0.7


@cache
def toy_tokenizer() -> PreTrainedTokenizerFast:
    """The world's names, places and gifts are one token each; so are the words of the toy template."""
    return tokenizer_of(" " + " ".join([*NAMES, *PLACES, *GIFTS, "gave a to met at the"]))


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


def _use_dataset(cls, fillings, seed):
    data = cls(toy_tokenizer(), TEMPLATE, fillings)
    flipped = data.flipped()
    seen = {"flipped texts": flipped.texts, "flipped answers": flipped.answers, "flipped positions": flipped.positions}
    abc = data.abc(seed)
    other = data.abc(seed + 1)
    seen |= {"abc": _abc_fault(data, abc), "abc answers": abc.answers, "abc positions": abc.positions}
    return seen | {"another seed, other names": other.texts != abc.texts, "untouched": data.texts}


IOIDataset = exercise(ioi.IOIDataset, use=_use_dataset)


@IOIDataset.cases
def _():
    for n, seed in ((5, 0), (12, 3)):
        yield ioi.IOIDataset.sample(toy_tokenizer(), n, 0, seed).fillings, seed


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


def _flipped(self):
    swapped = []
    for f in self.fillings:
        g = dict(f)
        g["subject"], g["recipient"] = f["recipient"], f["subject"]
        swapped.append(g)
    return ioi.IOIDataset(self.tokenizer, self.template, swapped)


def _abc(self, seed=0):
    generator = random.Random(f"abc {seed}")
    fillings = []
    for f in self.fillings:
        others = [name for name in NAMES if name not in f.values()]
        generator.shuffle(others)
        fillings.append({**f, **_fill(f, *others[:3])})
    return ioi.IOIDataset(self.tokenizer, self.template, fillings, self.answers)


IOIDataset.right(_dataset_with(flipped=_flipped, abc=_abc))

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


@logits_to_ave_logit_diff.refused
def _():
    logits = torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(0))
    for shape in ((2, 2), (1, 2), (3, 3), (3, 1)):
        yield logits, torch.ones(shape, dtype=torch.long)


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
    if answer_tokens.shape != (len(logits), 2):
        raise ValueError("a right and a wrong answer for each prompt")
    log_probs = logits[:, -1].log_softmax(dim=-1)
    rows = torch.arange(len(logits))
    diff = log_probs[rows, answer_tokens[:, 0]] - log_probs[rows, answer_tokens[:, 1]]
    return diff if per_prompt else diff.mean()


# ---------------------------------------------------------------- residual_stack_to_logit_diff

residual_stack_to_logit_diff = exercise(ioi.residual_stack_to_logit_diff)


def _directions():
    _, _, answers, *_ = small_runs()
    W_U = small_gpt().W_U
    return (W_U[:, answers[:, 0]] - W_U[:, answers[:, 1]]).T


@residual_stack_to_logit_diff.cases
def _():
    clean, *_, clean_cache, _ = small_runs()
    yield clean_cache["resid_post", -1][:, -1], clean_cache, _directions()
    stack = torch.stack([clean_cache["resid_pre", layer][:, -1] for layer in range(3)])
    yield stack, clean_cache, _directions()
    heads = noise(3, 5, BATCH, 20, seed=2)
    yield heads, clean_cache, _directions()
    without_mean = small_gpt(norm="RMS").run_with_cache(clean)[1]
    yield heads, without_mean, _directions()  # this norm takes off no mean


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
    a, b = torch.randn(2, BATCH, 20, device=device())
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
    yield logits, answers, -5.0, -9.0  # beyond the clean run
    yield logits, answers, 9.0, 5.0  # behind the corrupted one


@ioi_metric.refused
def _():
    answers = torch.tensor([[1, 2], [10, 4]])
    yield torch.randn(2, 5, 11, generator=torch.Generator().manual_seed(0)), answers, 1.5, 1.5


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
    runs = [small_gpt()(x) for x in (clean, corrupted)]
    diffs = [ioi.logits_to_ave_logit_diff(logits, answers) for logits in runs]
    got = torch.stack([ioi_metric(logits, answers, *diffs) for logits in runs])
    return torch.allclose(got.cpu(), torch.tensor([1.0, 0.0], device="cpu"), atol=1e-4)


@ioi_metric.right
def _(logits, answer_tokens, clean_logit_diff, corrupted_logit_diff):
    if clean_logit_diff == corrupted_logit_diff:
        raise ValueError("nothing could be restored")
    gap = clean_logit_diff - corrupted_logit_diff
    each = ioi.logits_to_ave_logit_diff(logits, answer_tokens, per_prompt=True)
    return ((each - corrupted_logit_diff) / gap).mean()


# ---------------------------------------------------------------- patch_residual_component


def _use_resid_hook(fn, activation, hook, pos, clean_cache):
    return hooked(fn, activation, hook=hook, pos=pos, clean_cache=clean_cache)


patch_residual_component = exercise(
    ioi.patch_residual_component, use=_use_resid_hook, in_place={"corrupted_residual_component": "a hook may edit it"}
)


@patch_residual_component.cases
def _():
    *_, clean_cache, corrupted_cache = small_runs()
    for name, layer, pos in (("resid_pre", 1, 4), ("attn_out", 2, 8), ("mlp_out", 0, 6)):
        yield corrupted_cache[name, layer].clone(), hook_point(name, layer), pos, clean_cache


@patch_residual_component.refused
def _():
    *_, clean_cache, corrupted_cache = small_runs()
    for name, layer in (("resid_pre", 1), ("mlp_out", 0)):
        yield corrupted_cache[name, layer][:, :-2].clone(), hook_point(name, layer), 4, clean_cache


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
    hook, before = hook_point("resid_pre", 1), corrupted_cache["resid_pre", 1]
    own, other = (
        hooked(patch_residual_component, before.clone(), hook=hook, pos=4, clean_cache=source)
        for source in (corrupted_cache, clean_cache)
    )
    return torch.equal(own, before) and not torch.equal(other, before)


@patch_residual_component.right
def _(corrupted_residual_component, hook, pos, clean_cache):
    if clean_cache[hook.name].shape[1] != corrupted_residual_component.shape[1]:
        raise ValueError("prompts of unequal length")
    places = torch.arange(corrupted_residual_component.shape[1], device=corrupted_residual_component.device)
    return torch.where((places == pos)[None, :, None], clean_cache[hook.name], corrupted_residual_component)


# ---------------------------------------------------------------- get_act_patch_resid_pre

get_act_patch_resid_pre = exercise(ioi.get_act_patch_resid_pre, without=MEASURED)


@get_act_patch_resid_pre.cases
def _():
    _, corrupted, _, clean_cache, _ = small_runs()
    yield small_gpt(), corrupted, clean_cache, raised
    yield small_gpt(), corrupted[:, :-1], clean_cache, metric  # nothing lines up: ValueError


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
    scores = get_act_patch_resid_pre(small_gpt(), corrupted, clean_cache, metric)
    return torch.allclose(scores[0, 4].cpu(), torch.tensor(1.0), atol=1e-3)


@get_act_patch_resid_pre.right
def _(model, corrupted_tokens, clean_cache, patching_metric):
    if corrupted_tokens.shape[1] != clean_cache["resid_pre", 0].shape[1]:
        raise ValueError("prompts of unequal length")
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


def shortened(cache: ActivationCache, length: int) -> ActivationCache:
    """The cache of a run whose prompts were only the first `length` tokens: what a causal model has there."""
    firsts = {
        name: values[:, :, :length, :length] if name.endswith("hook_pattern") else values[:, :length]
        for name, values in cache.items()
    }
    return ActivationCache(firsts, cache.model)


def _use_head_hook(fn, activation, hook, head_index, clean_cache):
    return hooked(fn, activation, hook=hook, head_index=head_index, clean_cache=clean_cache)


patch_head_vector = exercise(
    ioi.patch_head_vector, use=_use_head_hook, in_place={"corrupted_head_vector": "a hook may edit it"}
)


@patch_head_vector.cases
def _():
    *_, clean_cache, corrupted_cache = small_runs()
    for name, layer, head in (("z", 1, 3), ("q", 2, 0), ("v", 0, 4)):
        yield corrupted_cache[name, layer].clone(), hook_point(name, layer), head, clean_cache


@patch_head_vector.refused
def _():
    *_, clean_cache, corrupted_cache = small_runs()
    for length in (1, SEQ - 2):  # torch itself stretches a length of 1
        yield corrupted_cache["z", 1].clone(), hook_point("z", 1), 3, shortened(clean_cache, length)


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
    if clean_cache[hook.name].shape[1] != corrupted_head_vector.shape[1]:
        raise ValueError("prompts of unequal length")
    new = corrupted_head_vector.clone()
    new.select(2, head_index).copy_(clean_cache[hook.name].select(2, head_index))
    return new


patch_attn_patterns = exercise(
    ioi.patch_attn_patterns, use=_use_head_hook, in_place={"corrupted_pattern": "a hook may edit it"}
)


@patch_attn_patterns.cases
def _():
    *_, clean_cache, corrupted_cache = small_runs()
    for layer, head in ((1, 3), (2, 0), (1, 4)):
        yield corrupted_cache["pattern", layer].clone(), hook_point("pattern", layer), head, clean_cache


@patch_attn_patterns.refused
def _():
    *_, clean_cache, corrupted_cache = small_runs()
    for length in (1, SEQ - 2):
        yield corrupted_cache["pattern", 1].clone(), hook_point("pattern", 1), 3, shortened(clean_cache, length)


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
    after = hooked(
        patch_attn_patterns, before.clone(), hook=hook_point("pattern", 1), head_index=2, clean_cache=clean_cache
    )
    moved = (after - before).abs().sum(dim=(0, 2, 3)) > 0
    return torch.allclose(after.sum(dim=-1), torch.ones_like(after[..., 0])) and moved.tolist() == [
        i == 2 for i in range(5)
    ]


@patch_attn_patterns.right
def _(corrupted_pattern, hook, head_index, clean_cache):
    if clean_cache[hook.name].shape != corrupted_pattern.shape:
        raise ValueError("prompts of unequal length")
    here = torch.zeros(corrupted_pattern.shape[1], device=corrupted_pattern.device)
    here[head_index] = 1
    mask = here[None, :, None, None]
    return corrupted_pattern * (1 - mask) + clean_cache["pattern", hook.layer()] * mask


# ---------------------------------------------------------------- get_act_patch_heads_by_pos

get_act_patch_heads_by_pos = exercise(ioi.get_act_patch_heads_by_pos, without=MEASURED)


@get_act_patch_heads_by_pos.cases
def _():
    _, corrupted, _, clean_cache, _ = small_runs()
    yield small_gpt(), corrupted, clean_cache, raised
    yield small_gpt(), corrupted[:, 1:], clean_cache, metric  # nothing lines up: ValueError
    attn_only = small_gpt(attn_only=True)
    yield attn_only, corrupted, attn_only.run_with_cache(small_runs()[0])[1], metric


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
    ioi.require_same_length(corrupted_tokens, clean_cache)
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
