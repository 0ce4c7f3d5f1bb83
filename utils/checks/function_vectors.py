"""What chapter 10 asks of a learner's functions, and the mistakes it recognises."""

import contextlib
import json
import random
import tempfile
from functools import cache
from pathlib import Path

import einops
import nnsight
import torch

from utils import causal_tracing
from utils import function_vectors as fv
from utils.checks.engine import Chapter
from utils.checks.models import noise, small_hf, tokenizer_of
from utils.runtime import device
from utils.world.tasks import task_prompt

chapter = Chapter(fv, causal_tracing)
exercise, check, hint, compare = chapter.exercise, chapter.check, chapter.hint, chapter.compare

OPPOSITES = dict(hot="cold", big="small", good="bad", light="dark", fast="slow", wet="dry", old="new", full="empty")
PAIRS = list(OPPOSITES.items())
LAYERS, HEADS, D_HEAD = 3, 5, 4


@cache
def small_model():
    """A random GPT-2 with strong weights, wrapped by nnsight; all dimensions differ."""
    words = " ".join(word for pair in PAIRS for word in pair)
    tokenizer = tokenizer_of(f"- {words} -> Q: A: | the The")
    return nnsight.LanguageModel(small_hf(tokenizer, LAYERS, HEADS, D_HEAD), tokenizer=tokenizer, device=device())


def few_shot(size=6, seed=0) -> fv.ICLDataset:
    return fv.ICLDataset(PAIRS, size, 3, seed=seed)


def zero_shot(size=7, seed=1) -> fv.ICLDataset:
    return fv.ICLDataset(PAIRS, size, 0, seed=seed)


def vector(seed=0, norm=12.0):
    direction = noise(HEADS * D_HEAD, seed=seed)
    return norm * direction / direction.norm()


def _decoded(model, ids):
    return model.tokenizer.batch_decode(ids[:, None])


# ---------------------------------------------------------------- ICLSequence


def _use_sequence(cls, pairs, layout):
    sequence = cls(pairs, layout)
    return sequence.prompt(), sequence.completion()


ICLSequence = exercise(fv.ICLSequence, use=_use_sequence)


@ICLSequence.cases
def _():
    yield PAIRS[:3], "arrow"
    yield PAIRS[2:4], "qa"
    yield PAIRS[5:6], "arrow"
    yield PAIRS[:5], "table"
    yield [("hot", "cold"), ("hot", "big"), ("big", "small")], "arrow"  # one word twice


def _sequence(prompt=None, completion=None):
    methods = {name: method for name, method in (("prompt", prompt), ("completion", completion)) if method}
    return lambda *args: type("ICLSequence", (fv.ICLSequence,), methods)(*args)


ICLSequence.mistake("the prompt holds the open pair's answer: leave it out, it is what the model must say")(
    _sequence(
        lambda self: (
            fv.START + task_prompt(self.word_pairs[:-1], self.word_pairs[-1][0], self.layout) + self.completion()
        )
    )
)
ICLSequence.mistake("the prompt does not begin with <|endoftext|>, as every training document did: put START first")(
    _sequence(lambda self: task_prompt(self.word_pairs[:-1], self.word_pairs[-1][0], self.layout))
)
ICLSequence.mistake("the answer's leading space is missing: it belongs to the token")(
    _sequence(completion=lambda self: self.word_pairs[-1][1])
)
ICLSequence.mistake("the layout is ignored: pass self.layout on")(
    _sequence(lambda self: fv.START + task_prompt(self.word_pairs[:-1], self.word_pairs[-1][0]))
)
ICLSequence.mistake("the open pair stands among the solved ones: they are all pairs but the last")(
    _sequence(lambda self: fv.START + task_prompt(self.word_pairs, self.word_pairs[-1][0], self.layout))
)


@ICLSequence.law("the prompt must end with the open word, its layout and nothing else")
def _(cls):
    return cls(PAIRS[:2], "arrow").prompt().endswith("\n- big ->")


@ICLSequence.right
def _(pairs, layout):
    def prompt(self):
        before, between, after = fv.LAYOUTS[self.layout]
        text = "<|endoftext|>"
        for x, y in self.word_pairs[:-1]:
            text += f"{before} {x}{between} {y}{after}"
        return f"{text}{before} {self.word_pairs[-1][0]}{between}"

    return _sequence(prompt)(pairs, layout)


# ---------------------------------------------------------------- ICLDataset


def _shuffle_fault(old, new) -> str:
    for before, after in zip(old.seqs, new.seqs, strict=True):
        (*shots, query), (*new_shots, new_query) = before.word_pairs, after.word_pairs
        if query != new_query:
            return "the open pair changed"
        if [x for x, _ in shots] != [x for x, _ in new_shots]:
            return "the inputs moved" if {x for x, _ in shots} == {x for x, _ in new_shots} else "other inputs"
        if sorted(y for _, y in shots) != sorted(y for _, y in new_shots):
            return "other outputs than before"
        if any(a == b for a, b in zip(shots, new_shots, strict=True)):
            return "a shot kept its own output"
    return "right"


def _labels_fault(old, new) -> str:
    shots = [pair for seq in new.seqs for pair in seq.word_pairs[:-1]]
    if [x for x, _ in shots] != [x for seq in old.seqs for x, _ in seq.word_pairs[:-1]]:
        return "other inputs"
    if [seq.word_pairs[-1] for seq in old.seqs] != [seq.word_pairs[-1] for seq in new.seqs]:
        return "the open pair changed"
    if any(OPPOSITES.get(x) == y for x, y in shots):
        return "a right label is left"
    # With so many draws a label from outside is among them, if they are drawn at all.
    return "right" if any(y == "the" for _, y in shots) or len(shots) < 60 else "drawn from elsewhere"


def _labels_by_seed(clean) -> tuple[bool, bool]:
    one, again, other = (clean.create_corrupted_dataset(s, labels=[*OPPOSITES.values()]).prompts for s in (2, 2, 3))
    return one == again, clean.n_prepended == 0 or one != other


def _use_dataset(cls, n_prepended, seed, layout):
    clean = cls(PAIRS, 12, n_prepended, seed=seed, layout=layout)
    others = [clean.create_corrupted_dataset(s) for s in (0, 1)]
    drawn = cls(PAIRS, 12, n_prepended, seed=seed, corrupted=True, layout=layout)
    pairs_exist = all(y == OPPOSITES[x] for seq in drawn.seqs for x, y in seq.word_pairs[:-1])
    return {
        "prompts": clean.prompts,
        "create_corrupted_dataset": _shuffle_fault(clean, others[0]),
        "its completions": others[0].completions,
        "its layout": others[0].layout,
        "the seed matters": n_prepended < 3 or others[0].prompts != others[1].prompts,
        "corrupted=True still right": pairs_exist,
        "labels given, the seed matters": _labels_by_seed(clean),
        "labels given": _labels_fault(clean, clean.create_corrupted_dataset(0, labels=[*OPPOSITES.values(), "the"])),
    }


ICLDataset = exercise(fv.ICLDataset, use=_use_dataset)


@ICLDataset.cases
def _():
    yield 5, 0, "arrow"
    yield 2, 1, "qa"


@ICLDataset.refused
def _():
    yield 1, 0, "arrow"


def _dataset(shuffle=None, create=None):
    def shuffle_labels(pairs, rng, labels=None):
        return shuffle(pairs, rng) if labels is None else fv.ICLDataset._shuffle_labels(pairs, rng, labels)

    methods = {"_shuffle_labels": staticmethod(shuffle_labels)} if shuffle else {}
    methods |= {"create_corrupted_dataset": create} if create else {}
    return lambda *args, **kwargs: type("ICLDataset", (fv.ICLDataset,), methods)(*args, **kwargs)


def _pair_up(xs, ys):
    return list(zip(xs, ys, strict=True))


def _shuffled(items, rng):
    return rng.sample(list(items), len(items))


def _derange(ys, rng):
    step = rng.randint(1, len(ys) - 1)
    return list(ys[step:]) + list(ys[:step])


ICLDataset.mistake("the labels are still right: give every shot the output of another one")(
    _dataset(lambda pairs, rng: list(pairs))
)
ICLDataset.mistake("you shuffled whole pairs, so every shot is still right: move the outputs, leave the inputs")(
    _dataset(lambda pairs, rng: [*_derange(pairs[:-1], rng), pairs[-1]])
)
ICLDataset.mistake(
    "a plain shuffle leaves some outputs at home: move them all, for example by a step round the circle"
)(
    _dataset(
        lambda pairs, rng: [
            *_pair_up([x for x, _ in pairs[:-1]], _shuffled([y for _, y in pairs[:-1]], rng)),
            pairs[-1],
        ]
    )
)
ICLDataset.mistake("you moved the open pair's answer too: leave it, else nobody knows what would be right")(
    _dataset(lambda pairs, rng: _pair_up([x for x, _ in pairs], _derange([y for _, y in pairs], rng)))
)


def _draw_anew(self, seed=0, labels=None):
    other = fv.ICLDataset(self.word_pairs, len(self), self.n_prepended, seed=seed + 100, layout=self.layout)
    return fv.ICLDataset.create_corrupted_dataset(other, seed, labels)


ICLDataset.mistake("create_corrupted_dataset draws other sequences: keep the words, shuffle the labels of self.seqs")(
    _dataset(create=_draw_anew)
)


def _ignore_labels(self, seed=0, labels=None):
    return fv.ICLDataset.create_corrupted_dataset(self, seed)


ICLDataset.mistake("`labels` is ignored: where it is given, draw each shot's output from it")(
    _dataset(create=_ignore_labels)
)


@ICLDataset.law("no shot of a shuffled prompt may still be solved rightly")
def _(cls):
    shuffled = cls(PAIRS, 20, 4, seed=3).create_corrupted_dataset()
    return all(y != OPPOSITES[x] for seq in shuffled.seqs for x, y in seq.word_pairs[:-1])


@ICLDataset.right
def _(*args, **kwargs):
    def shuffle(pairs, rng):
        outputs = [y for _, y in pairs[:-1]]
        if len(outputs) < 2:
            raise ValueError("nothing to shuffle")
        while True:
            rng.shuffle(outputs)
            new = [(x, y) for (x, _), y in zip(pairs[:-1], outputs, strict=True)]
            if not any(a == b for a, b in zip(new, pairs, strict=False)):
                return new + pairs[-1:]

    def create(self, seed=0, labels=None):
        other = fv.ICLDataset(self.word_pairs, 0, self.n_prepended, layout=self.layout)
        rng = random.Random(seed + 50)
        for seq in self.seqs:
            if labels is None:
                pairs = shuffle(seq.word_pairs, rng)
            else:
                *shots, query = seq.word_pairs
                pairs = [(x, rng.choice(sorted({*labels} - {y}))) for x, y in shots] + [query]
            other.seqs.append(fv.ICLSequence(pairs, self.layout))
        return other

    return _dataset(shuffle, create)(*args, **kwargs)


# ---------------------------------------------------------------- calculate_h

calculate_h = exercise(fv.calculate_h)


@calculate_h.cases
def _():
    yield small_model(), few_shot(), 1
    yield small_model(), few_shot(4, 2), -1


def _h(model, dataset, layer, take, read="output"):
    with model.trace(dataset.prompts):
        block = model.transformer.h[layer]
        resid = block.input if read == "input" else block.output
        h = take(resid).save()
        ids = model.lm_head.output[:, -1].argmax(dim=-1).save()
    return _decoded(model, ids), h


@calculate_h.mistake("you took batch row 0 instead of the whole batch: output is a tensor, [0] is its first prompt")
def _(model, dataset, layer=-1):
    return _h(model, dataset, layer, lambda resid: resid[0][-1])


@calculate_h.mistake("you averaged over the positions: the mean is over prompts, at the last position")
def _(model, dataset, layer=-1):
    return _h(model, dataset, layer, lambda resid: resid.mean(dim=(0, 1)))


@calculate_h.mistake("you took the first position: the task is known at the last one, [:, -1]")
def _(model, dataset, layer=-1):
    return _h(model, dataset, layer, lambda resid: resid[:, 0].mean(dim=0))


@calculate_h.mistake("the mean is over the wrong axis: prompts are dimension 0")
def _(model, dataset, layer=-1):
    return _h(model, dataset, layer, lambda resid: resid[:, -1].mean(dim=1))


@calculate_h.mistake("you took what goes into the layer: its output is the state after it")
def _(model, dataset, layer=-1):
    return _h(model, dataset, layer, lambda resid: resid[:, -1].mean(dim=0), read="input")


@calculate_h.mistake("you read the layer after the one asked for: layers count from 0")
def _(model, dataset, layer=-1):
    return _h(model, dataset, (layer + 1) % LAYERS, lambda resid: resid[:, -1].mean(dim=0))


@calculate_h.law("the mean over a data set must be the mean of its two halves")
def _(calculate_h):
    whole, left, right = few_shot(), few_shot(), few_shot()
    left.seqs, right.seqs = whole.seqs[:3], whole.seqs[3:]
    hs = [calculate_h(small_model(), data, 1)[1] for data in (whole, left, right)]
    return torch.allclose(hs[0], (hs[1] + hs[2]) / 2, atol=1e-4)


@calculate_h.right
def _(model, dataset, layer=-1):
    states, ids = [], []
    for prompt in dataset.prompts:
        with model.trace(prompt):
            state = model.transformer.h[layer].output[0, -1].save()
            best = model.lm_head.output[0, -1].argmax().save()
        states.append(state)
        ids.append(best)
    return _decoded(model, torch.stack(ids)), torch.stack(states).mean(dim=0)


# ---------------------------------------------------------------- intervene_with_h

intervene_with_h = exercise(fv.intervene_with_h)


@intervene_with_h.cases
def _():
    yield small_model(), few_shot(9, 5), vector(1, 4.0), 1
    yield small_model(), few_shot(9, 5), vector(2, 2.0), 1
    yield small_model(), zero_shot(), vector(0), 0


def _two_runs(model, dataset, edit, layer, edit_first=None):
    with model.trace() as tracer:
        with tracer.invoke(dataset.prompts):
            if edit_first is not None:
                edit_first(model.transformer.h[layer].output)
            plain = model.lm_head.output[:, -1].argmax(dim=-1).save()
        with tracer.invoke(dataset.prompts):
            edit(model.transformer.h[layer].output)
            steered = model.lm_head.output[:, -1].argmax(dim=-1).save()
    return _decoded(model, plain), _decoded(model, steered)


def _add(at, h):
    def edit(resid):
        resid[at] += h

    return edit


ALL, LAST, FIRST, ROW_0 = (slice(None),), (slice(None), -1), (slice(None), 0), (0, -1)


@intervene_with_h.mistake("h is added at all positions: only the last one, [:, -1]")
def _(model, zero_shot_dataset, h, layer):
    return _two_runs(model, zero_shot_dataset, _add(ALL, h), layer)


@intervene_with_h.mistake("h is added at the first position: the answer is made at the last one, [:, -1]")
def _(model, zero_shot_dataset, h, layer):
    return _two_runs(model, zero_shot_dataset, _add(FIRST, h), layer)


@intervene_with_h.mistake("only batch row 0 got h: [:, -1] reaches every prompt, [0, -1] the first")
def _(model, zero_shot_dataset, h, layer):
    return _two_runs(model, zero_shot_dataset, _add(ROW_0, h), layer)


@intervene_with_h.mistake("you replaced the state by h: add it, the word itself must stay readable")
def _(model, zero_shot_dataset, h, layer):
    def edit(resid):
        resid[:, -1] = h

    return _two_runs(model, zero_shot_dataset, edit, layer)


@intervene_with_h.mistake("the first of the two runs was changed as well: it is the model as it is")
def _(model, zero_shot_dataset, h, layer):
    return _two_runs(model, zero_shot_dataset, _add(LAST, h), layer, _add(LAST, h))


@intervene_with_h.mistake("you intervened one layer later: add h to the output of `layer`")
def _(model, zero_shot_dataset, h, layer):
    return _two_runs(model, zero_shot_dataset, _add(LAST, h), layer + 1)


@intervene_with_h.mistake("the two results are swapped: first without h, then with it")
def _(model, zero_shot_dataset, h, layer):
    return fv.intervene_with_h(model, zero_shot_dataset, h, layer)[::-1]


@intervene_with_h.law("adding nothing must change nothing, adding much must change something")
def _(intervene_with_h):
    nothing = intervene_with_h(small_model(), few_shot(), torch.zeros(HEADS * D_HEAD, device=device()), 1)
    much = intervene_with_h(small_model(), few_shot(), vector(0, 500.0), 1)
    return list(nothing[0]) == list(nothing[1]) and list(much[0]) != list(much[1])


@intervene_with_h.right
def _(model, zero_shot_dataset, h, layer):
    answers = []
    for extra in (torch.zeros_like(h), h):
        with model.trace(zero_shot_dataset.prompts):
            resid = model.transformer.h[layer].output.clone()
            resid[:, -1, :] = resid[:, -1, :] + extra
            model.transformer.h[layer].output = resid
            logits = model.lm_head.output.save()
        answers.append(_decoded(model, logits[:, -1].argmax(dim=-1)))
    return answers


# ---------------------------------------------------------------- calculate_h_and_intervene

calculate_h_and_intervene = exercise(fv.calculate_h_and_intervene)


@calculate_h_and_intervene.cases
def _():
    yield small_model(), few_shot(), zero_shot(), 1
    yield small_model(), few_shot(4, 3), zero_shot(5, 4), 0


def _right_ids(model, dataset):
    return fv.completion_ids(model.tokenizer, dataset.completions)


def _log_probs(model, dataset, edit=None, layer=0, ids=None, function=torch.log_softmax):
    ids = _right_ids(model, dataset) if ids is None else ids
    with model.trace(dataset.prompts):
        if edit is not None:
            edit(model.transformer.h[layer].output)
        result = function(model.lm_head.output[:, -1], dim=-1)[torch.arange(len(ids)), ids].save()
    return result


def _both(model, dataset, zero_shot_dataset, layer, h_of=None, at=LAST, **options):
    h = fv.calculate_h(model, h_of or dataset, layer)[1]
    return tuple(_log_probs(model, zero_shot_dataset, edit, layer, **options) for edit in (None, _add(at, h)))


@calculate_h_and_intervene.mistake("you returned probabilities: take log_softmax")
def _(model, dataset, zero_shot_dataset, layer):
    return _both(model, dataset, zero_shot_dataset, layer, function=torch.softmax)


@calculate_h_and_intervene.mistake("h comes from the prompts without shots: take it from `dataset`")
def _(model, dataset, zero_shot_dataset, layer):
    return _both(model, dataset, zero_shot_dataset, layer, h_of=zero_shot_dataset)


@calculate_h_and_intervene.mistake("every prompt was asked for the first prompt's answer: each row has its own")
def _(model, dataset, zero_shot_dataset, layer):
    ids = _right_ids(model, zero_shot_dataset)
    return _both(model, dataset, zero_shot_dataset, layer, ids=ids[:1].expand_as(ids))


@calculate_h_and_intervene.mistake("h is added at all positions: only the last one, [:, -1]")
def _(model, dataset, zero_shot_dataset, layer):
    return _both(model, dataset, zero_shot_dataset, layer, at=ALL)


@calculate_h_and_intervene.mistake("you returned the logits themselves: log_softmax makes log-probabilities of them")
def _(model, dataset, zero_shot_dataset, layer):
    return _both(model, dataset, zero_shot_dataset, layer, function=lambda logits, dim: logits * 1.0)


@calculate_h_and_intervene.mistake("only batch row 0 got h: [:, -1] reaches every prompt, [0, -1] the first")
def _(model, dataset, zero_shot_dataset, layer):
    return _both(model, dataset, zero_shot_dataset, layer, at=ROW_0)


@calculate_h_and_intervene.law("one prompt at a time must give the same numbers as the whole batch")
def _(calculate_h_and_intervene):
    whole = zero_shot(3)
    batch = calculate_h_and_intervene(small_model(), few_shot(), whole, 1)
    for i, seq in enumerate(whole.seqs):
        one = zero_shot(1)
        one.seqs = [seq]
        single = calculate_h_and_intervene(small_model(), few_shot(), one, 1)
        if not all(torch.allclose(s[0], b[i], atol=1e-4) for s, b in zip(single, batch, strict=True)):
            return False
    return not torch.allclose(*batch)


@calculate_h_and_intervene.right
def _(model, dataset, zero_shot_dataset, layer):
    with model.trace(dataset.prompts):
        h = model.transformer.h[layer].output[:, -1].sum(dim=0).save()
    return _both(model, dataset, zero_shot_dataset, layer, at=LAST, h_of=dataset) if h is not None else None


# ---------------------------------------------------------------- mean_head_outputs

mean_head_outputs = exercise(fv.mean_head_outputs)


@mean_head_outputs.cases
def _():
    yield small_model(), few_shot()
    yield small_model(), zero_shot(4)


def _z(model, dataset, take, where="input", pattern="layer (head d_head) -> layer head d_head"):
    with model.trace(dataset.prompts):
        z = nnsight.save([take(getattr(model.transformer.h[i].attn.c_proj, where)) for i in range(LAYERS)])
    return einops.rearrange(torch.stack(z), pattern, head=HEADS)


@mean_head_outputs.mistake("you took what comes out of c_proj: there the heads are mixed, take its input")
def _(model, dataset):
    return _z(model, dataset, lambda z: z[:, -1].mean(0), where="output")


@mean_head_outputs.mistake("you took batch row 0 instead of the mean over prompts")
def _(model, dataset):
    return _z(model, dataset, lambda z: z[0, -1])


@mean_head_outputs.mistake("you averaged over the positions too: take the last one, then the mean over prompts")
def _(model, dataset):
    return _z(model, dataset, lambda z: z.mean(dim=(0, 1)))


@mean_head_outputs.mistake("heads are cut wrongly: they lie one after the other, (head d_head), not interleaved")
def _(model, dataset):
    return _z(model, dataset, lambda z: z[:, -1].mean(0), pattern="layer (d_head head) -> layer head d_head")


@mean_head_outputs.mistake("you took the first position: the task is known at the last one, [:, -1]")
def _(model, dataset):
    return _z(model, dataset, lambda z: z[:, 0].mean(0))


@mean_head_outputs.right
def _(model, dataset):
    rows = []
    for layer in range(LAYERS):
        with model.trace(dataset.prompts):
            z = model.transformer.h[layer].attn.c_proj.input.save()
        rows.append(z[:, -1].reshape(len(dataset), HEADS, D_HEAD).sum(dim=0) / len(dataset))
    return torch.stack(rows)


# ---------------------------------------------------------------- calculate_fn_vectors_and_intervene

calculate_fn_vectors_and_intervene = exercise(fv.calculate_fn_vectors_and_intervene, atol=1e-8)


@calculate_fn_vectors_and_intervene.cases
def _():
    yield small_model(), few_shot(5)
    yield small_model(), (some := few_shot(4, 6)), (2,), some.create_corrupted_dataset(labels=["hot", "wet"])
    yield small_model(), few_shot(2), []


def _effects(
    model, dataset, layers, on=None, rows=None, at=-1, cut=None, function=torch.softmax, source=None, corrupted=None
):
    """Options: the prompts to patch, which rows and positions, how a head is cut out, what is measured."""
    layers = range(LAYERS) if layers is None else layers
    corrupted = corrupted or dataset.create_corrupted_dataset()
    mean_z = fv.mean_head_outputs(model, source or dataset)
    ids = _right_ids(model, dataset)
    batch = torch.arange(len(ids))
    prompts = (on or corrupted).prompts
    rows = slice(None) if rows is None else rows
    with model.trace(corrupted.prompts):
        before = function(model.lm_head.output[:, -1], dim=-1)[batch, ids].mean().save()
    effects = torch.zeros(len(layers), HEADS, device="cpu")  # numbers to read
    for i, layer in enumerate(layers):
        for head in range(HEADS):
            where = slice(head * D_HEAD, (head + 1) * D_HEAD) if cut is None else cut(head)
            with model.trace(prompts):
                model.transformer.h[layer].attn.c_proj.input[rows, at, where] = mean_z[layer, head]
                after = function(model.lm_head.output[:, -1], dim=-1)[batch, ids].mean().save()
            effects[i, head] = after - before
    return effects


@calculate_fn_vectors_and_intervene.mistake("you patched the prompts with right labels: there the task is known anyway")
def _(model, dataset, layers=None, corrupted=None):
    return _effects(model, dataset, layers, on=dataset)


@calculate_fn_vectors_and_intervene.mistake("you patched all positions: the mean is of the last one, and goes there")
def _(model, dataset, layers=None):
    return _effects(model, dataset, layers, at=slice(None))


@calculate_fn_vectors_and_intervene.mistake("only batch row 0 was patched: [:, -1, …] reaches the whole batch")
def _(model, dataset, layers=None):
    return _effects(model, dataset, layers, rows=0)


@calculate_fn_vectors_and_intervene.mistake("you wrote into every n_heads-th number: a head is d_head numbers in a row")
def _(model, dataset, layers=None):
    return _effects(model, dataset, layers, cut=lambda head: slice(head, None, HEADS))


@calculate_fn_vectors_and_intervene.mistake("the means come from the shuffled prompts: take them from `dataset`")
def _(model, dataset, layers=None):
    return _effects(model, dataset, layers, source=dataset.create_corrupted_dataset())


@calculate_fn_vectors_and_intervene.mistake(
    "you measured log-probabilities: the effect is a difference of probabilities"
)
def _(model, dataset, layers=None):
    return _effects(model, dataset, layers, function=torch.log_softmax)


@calculate_fn_vectors_and_intervene.mistake("the sign is turned round: with the head patched minus without")
def _(model, dataset, layers=None):
    return -_effects(model, dataset, layers)


@calculate_fn_vectors_and_intervene.mistake("`layers` is ignored: one row for each of them")
def _(model, dataset, layers=None):
    return _effects(model, dataset, None)


@calculate_fn_vectors_and_intervene.right
def _(model, dataset, layers=None, corrupted=None):
    layers = range(LAYERS) if layers is None else layers
    effects = fv.causal_effects_fast.__wrapped__(model, dataset, corrupted)  # gradients as through the traces
    return effects[list(layers)].cpu()


# ---------------------------------------------------------------- causal_effects_one_trace

causal_effects_one_trace = exercise(fv.causal_effects_one_trace, atol=1e-8)


@causal_effects_one_trace.cases
def _():
    yield small_model(), few_shot(5)
    yield small_model(), few_shot(4, 6), [2, 0]
    yield small_model(), few_shot(4), [0], few_shot(4).create_corrupted_dataset(labels=["hot", "wet"])


@causal_effects_one_trace.mistake("you patched the prompts with right labels: there the task is known anyway")
def _(model, dataset, layers=None, corrupted=None):
    return _effects(model, dataset, layers, on=dataset, corrupted=corrupted)


@causal_effects_one_trace.mistake("the means come from the corrupted prompts: their invoke runs `dataset.prompts`")
def _(model, dataset, layers=None, corrupted=None):
    source = corrupted or dataset.create_corrupted_dataset()
    return _effects(model, dataset, layers, source=source, corrupted=corrupted)


@causal_effects_one_trace.mistake("you patched the whole layer: only the slice of this invoke's head")
def _(model, dataset, layers=None, corrupted=None):
    mean_z = fv.mean_head_outputs(model, dataset).flatten(1)
    corrupted = corrupted or dataset.create_corrupted_dataset()
    ids = _right_ids(model, dataset)
    rows = []
    for layer in range(LAYERS) if layers is None else layers:
        with model.trace() as tracer:
            with tracer.invoke(corrupted.prompts):
                before = model.lm_head.output[:, -1].softmax(-1).save()
            with tracer.invoke(corrupted.prompts):
                model.transformer.h[layer].attn.c_proj.input[:, -1] = mean_z[layer]
                after = model.lm_head.output[:, -1].softmax(-1).save()
        at = torch.arange(len(ids)), ids
        rows.append((after[at].mean() - before[at].mean()).expand(HEADS))
    return torch.stack(rows)


@causal_effects_one_trace.mistake("the rows are in the model's order: row i is layer layers[i]")
def _(model, dataset, layers=None, corrupted=None):
    return _effects(model, dataset, layers and sorted(layers), corrupted=corrupted)


@causal_effects_one_trace.mistake("`corrupted` is ignored: patch those prompts where they are given")
def _(model, dataset, layers=None, corrupted=None):
    return _effects(model, dataset, layers)


@causal_effects_one_trace.mistake("`layers` is ignored: one row for each of them")
def _(model, dataset, layers=None, corrupted=None):
    return _effects(model, dataset, None, corrupted=corrupted)


@causal_effects_one_trace.mistake("the unpatched probability is not subtracted: the effect is a rise")
def _(model, dataset, layers=None, corrupted=None):
    prompts = (corrupted or dataset.create_corrupted_dataset()).prompts
    ids = _right_ids(model, dataset)
    with model.trace(prompts):
        before = model.lm_head.output[:, -1].softmax(-1)[torch.arange(len(ids)), ids].mean().save()
    return _effects(model, dataset, layers, corrupted=corrupted) + before.cpu()


@causal_effects_one_trace.law("the whole sweep must be one trace: the model may run only once")
def _(causal_effects_one_trace):
    model, passes = small_model(), []
    handle = model._module.register_forward_hook(lambda *_: passes.append(1))
    try:
        causal_effects_one_trace(model, few_shot(4), [0, 1])
    finally:
        handle.remove()
    return len(passes) == 1


@causal_effects_one_trace.right
def _(model, dataset, layers=None, corrupted=None):
    layers = list(range(LAYERS)) if layers is None else layers
    prompts = (corrupted or dataset.create_corrupted_dataset()).prompts
    ids = _right_ids(model, dataset)
    jobs = [(layer, head) for layer in layers for head in range(HEADS)]
    with model.trace() as tracer:
        waits = {layer: tracer.barrier(1 + HEADS) for layer in layers}
        means, logits = {}, nnsight.save([])
        with tracer.invoke(dataset.prompts):
            for layer in range(LAYERS):
                if layer in waits:
                    means[layer] = model.transformer.h[layer].attn.c_proj.input[:, -1].mean(0)
                    waits[layer]()
        with tracer.invoke(prompts):
            logits.append(model.lm_head.output[:, -1])
        for layer, head in jobs:
            with tracer.invoke(prompts):
                waits[layer]()
                cut = slice(head * D_HEAD, head * D_HEAD + D_HEAD)
                model.transformer.h[layer].attn.c_proj.input[:, -1, cut] = means[layer][cut]
                logits.append(model.lm_head.output[:, -1])
    rights = torch.stack(list(logits)).softmax(-1)[:, torch.arange(len(ids)), ids].mean(1)
    return (rights[1:] - rights[0]).reshape(len(layers), HEADS).cpu()


# ---------------------------------------------------------------- resumable_sweep


def _use_sweep(sweep, heads, numbers, breaks, cut):
    """What comes of a sweep that breaks off at the head number `breaks`, with the last `cut` characters of its file
    lost, and is started again: the numbers, and which heads were measured the first time, and the second."""
    measured = [[], []]

    def measure(time, fails=None):
        def number(head):
            measured[time].append(head)
            if head == fails:
                raise ConnectionError("the server went away")
            return numbers[head]

        return number

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "effects.jsonl"
        with contextlib.suppress(ConnectionError):
            sweep(measure(0, heads[breaks]), heads, file)
        kept = file.read_text() if file.exists() else ""
        if cut:
            file.write_text(kept[:-cut])
        first = sweep(measure(1), heads, file)
        again = sweep(measure(1), heads[::-1], file)
    return list(first.items()), list(again), measured


resumable_sweep = exercise(fv.resumable_sweep, use=_use_sweep)


@resumable_sweep.cases
def _():
    heads = [(0, 1), (0, 0), (2, 3), (1, 4)]
    numbers = {head: i * 0.3 for i, head in enumerate(heads)}  # 0 is a number too
    yield heads, numbers, 2, 0
    yield heads, numbers, 3, 4
    yield heads[:2], numbers, 0, 0
    yield heads, numbers, 2, 1


def _sweep(measure, heads, file, read=True, at_end=False, whole_lines=True):
    """Options: a right sweep with one thing wrong."""
    text = file.read_text() if file.exists() and read else ""
    done = {}
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            head, number = json.loads(line)
            done[tuple(head)] = number
    if whole_lines and text and not text.endswith("\n"):
        file.write_text(text + "\n")
    new = []
    for head in heads:
        if head not in done:
            done[head] = float(measure(head))
            new.append(json.dumps([head, done[head]]) + "\n")
            if not at_end:
                with file.open("a") as out:
                    out.write(new[-1])
    if at_end:
        with file.open("a") as out:
            out.writelines(new)
    return {head: done[head] for head in heads}


@resumable_sweep.mistake(
    "what the file holds was measured anew: leave those out (JSON reads a pair as a list, so tuple(head))"
)
def _(measure, heads, file):
    return _sweep(measure, heads, file, read=False)


@resumable_sweep.mistake("the file is written at the end: after each number, or a break loses them all")
def _(measure, heads, file):
    return _sweep(measure, heads, file, at_end=True)


@resumable_sweep.mistake("a line that was cut off was continued: begin a new line, or the next number is lost too")
def _(measure, heads, file):
    return _sweep(measure, heads, file, whole_lines=False)


@resumable_sweep.mistake("a head that failed counts as done: let the exception go on to the caller")
def _(measure, heads, file):
    def guarded(head):
        try:
            return measure(head)
        except ConnectionError:
            return 0.0

    return _sweep(guarded, heads, file)


@resumable_sweep.mistake("the result is in the file's order: return the heads in the order of `heads`")
def _(measure, heads, file):
    _sweep(measure, heads, file)
    read = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("]")]
    return {tuple(head): number for head, number in read if tuple(head) in heads}


@resumable_sweep.law("heads of another sweep in the file must not be among the results")
def _(sweep):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "effects.jsonl"
        sweep(lambda head: 1.0, [(0, 0), (0, 1)], file)
        return sweep(lambda head: 2.0, [(1, 1), (0, 1)], file) == {(1, 1): 2.0, (0, 1): 1.0}


@resumable_sweep.right
def _(measure, heads, file):
    results = {}
    if file.exists():
        for line in file.read_text().split("\n"):
            try:
                (layer, head), number = json.loads(line)
                results[layer, head] = number
            except json.JSONDecodeError:
                continue
    with open(file, "a") as out:
        if file.stat().st_size:
            out.write("\n")  # an empty line more does no harm
        for layer, head in heads:
            if (layer, head) not in results:
                results[layer, head] = float(measure((layer, head)))
                print(json.dumps([[layer, head], results[layer, head]]), file=out, flush=True)
    return {job: results[job] for job in heads}


# ---------------------------------------------------------------- calculate_fn_vector

calculate_fn_vector = exercise(fv.calculate_fn_vector)


@calculate_fn_vector.cases
def _():
    yield small_model(), few_shot(), [(1, 3), (2, 0)]
    yield small_model(), few_shot(4, 3), [(0, 4)]


@calculate_fn_vector.refused
def _():
    yield small_model(), few_shot(), []
    for head in ((3, 0), (0, 5), (-1, 0)):
        yield small_model(), few_shot(), [(1, 3), head]


def _fn_vector(model, dataset, head_list, weights):
    mean_z = fv.mean_head_outputs(model, dataset)
    return sum(mean_z[layer, head] @ weights(layer, head) for layer, head in head_list)


def _W(layer):
    return small_model().transformer.h[layer].attn.c_proj.weight


@calculate_fn_vector.mistake("projected with the wrong slice of W_O: rows head * d_head to (head + 1) * d_head")
def _(model, dataset, head_list):
    return _fn_vector(model, dataset, head_list, lambda layer, head: _W(layer)[:D_HEAD])


@calculate_fn_vector.mistake("every head went through layer 0's W_O: each layer has its own")
def _(model, dataset, head_list):
    return _fn_vector(model, dataset, head_list, lambda layer, head: fv.out_weights(model, 0)[head])


@calculate_fn_vector.mistake("you cut columns of W_O: GPT-2's Conv1D stores (in, out), so a head's slice is rows")
def _(model, dataset, head_list):
    return _fn_vector(model, dataset, head_list, lambda layer, head: _W(layer).T[head * D_HEAD : (head + 1) * D_HEAD])


@calculate_fn_vector.mistake("you took the mean over heads: a function vector is their sum")
def _(model, dataset, head_list):
    return fv.calculate_fn_vector(model, dataset, head_list) / len(head_list)


@calculate_fn_vector.mistake("you summed the whole layers' attention: only the heads of the list")
def _(model, dataset, head_list):
    heads = [(layer, head) for layer in {layer for layer, _ in head_list} for head in range(HEADS)]
    return fv.calculate_fn_vector(model, dataset, heads)


@calculate_fn_vector.mistake("only the last head of the list is in the sum: add each one up")
def _(model, dataset, head_list):
    # `vector = …` in the loop instead of `vector += …`
    return fv.calculate_fn_vector(model, dataset, head_list[-1:]) if len(head_list) > 1 else torch.zeros(HEADS * D_HEAD)


@calculate_fn_vector.law(
    "the vector of all heads of a layer, plus the bias, must be what its attention adds in the mean"
)
def _(calculate_fn_vector):
    model, dataset = small_model(), few_shot()
    with model.trace(dataset.prompts):
        attn_out = model.transformer.h[1].attn.c_proj.output[:, -1].mean(dim=0).save()
    vector = calculate_fn_vector(model, dataset, [(1, head) for head in range(HEADS)])
    return torch.allclose(vector + model.transformer.h[1].attn.c_proj.bias, attn_out, atol=1e-4)


@calculate_fn_vector.right
def _(model, dataset, head_list):
    if not head_list or any(not (0 <= layer < LAYERS and 0 <= head < HEADS) for layer, head in head_list):
        raise ValueError("no head, or one that is not there")
    mean_z = fv.mean_head_outputs(model, dataset)
    total = torch.zeros(HEADS * D_HEAD, device=mean_z.device)
    for layer in range(LAYERS):
        chosen = torch.zeros(HEADS, D_HEAD, device=mean_z.device)
        for head in range(HEADS):
            if (layer, head) in [tuple(h) for h in head_list]:
                chosen[head] = mean_z[layer, head]
        total += chosen.flatten() @ _W(layer)
    return total


# ---------------------------------------------------------------- intervene_with_fn_vector

intervene_with_fn_vector = exercise(fv.intervene_with_fn_vector)


@intervene_with_fn_vector.cases
def _():
    yield small_model(), "hot", 1, vector(0), "- {x} ->", 3
    yield small_model(), "big", 0, vector(2), "the {x} The", 2
    yield small_model(), "slow", 0, vector(3), "- {x} ->", 4
    cold = small_model().tokenizer(" cold").input_ids
    yield small_model(), "hot", LAYERS - 1, 100 * small_model().lm_head.weight[cold[0]].detach()  # a space in front


@intervene_with_fn_vector.refused
def _():
    yield small_model(), "hot", 1, vector(0), "- hot ->", 1


def _written(model, prompt, n_tokens, layer, edit=None, keep_prompt=False):
    length = len(model.tokenizer(prompt).input_ids)
    with model.generate(prompt, max_new_tokens=n_tokens, do_sample=False) as tracer:
        if edit is not None:
            edit(model.transformer.h[layer].output)
        ids = tracer.result.save()
    return model.tokenizer.decode(ids[0, 0 if keep_prompt else length :])


def _both_written(model, word, layer, fn_vector, template, n_tokens, at=LAST, start=fv.START, first=None, **options):
    prompt = start + template.replace("{x}", word)
    edits = (first, _add(at, fn_vector))
    return tuple(_written(model, prompt, n_tokens, layer, edit, **options) for edit in edits)


@intervene_with_fn_vector.mistake("the vector is added at all positions: only at the prompt's last token, [:, -1]")
def _(model, word, layer, fn_vector, prompt_template="- {x} ->", n_tokens=1):
    return _both_written(model, word, layer, fn_vector, prompt_template, n_tokens, at=ALL)


@intervene_with_fn_vector.mistake("the prompt is part of what you returned: cut it off")
def _(model, word, layer, fn_vector, prompt_template="- {x} ->", n_tokens=1):
    return _both_written(model, word, layer, fn_vector, prompt_template, n_tokens, keep_prompt=True)


@intervene_with_fn_vector.mistake("the first completion is changed too: it is what the model writes by itself")
def _(model, word, layer, fn_vector, prompt_template="- {x} ->", n_tokens=1):
    first = _add(LAST, fn_vector)
    return _both_written(model, word, layer, fn_vector, prompt_template, n_tokens, first=first)


@intervene_with_fn_vector.mistake(
    "the prompt does not begin with <|endoftext|>, as every training document did: put START first"
)
def _(model, word, layer, fn_vector, prompt_template="- {x} ->", n_tokens=1):
    return _both_written(model, word, layer, fn_vector, prompt_template, n_tokens, start="")


@intervene_with_fn_vector.mistake("the vector is added at every new token: once, in the pass that reads the prompt")
def _(model, word, layer, fn_vector, prompt_template="- {x} ->", n_tokens=1):
    prompt = fv.START + prompt_template.replace("{x}", word)
    return _written(model, prompt, n_tokens, layer), fv.steer(model, prompt, layer, fn_vector, n_tokens)


@intervene_with_fn_vector.law("a vector of zeros must change nothing")
def _(intervene_with_fn_vector):
    zeros = torch.zeros(HEADS * D_HEAD, device=device())
    plain, steered = intervene_with_fn_vector(small_model(), "hot", 1, zeros, "- {x} ->", 2)
    return plain == steered != "" and "hot" not in plain


@intervene_with_fn_vector.right
def _(model, word, layer, fn_vector, prompt_template="- {x} ->", n_tokens=1):
    if "{x}" not in prompt_template:
        raise ValueError("no place for the word")
    texts = []
    for extra in (0 * fn_vector, fn_vector):
        ids = model.tokenizer(fv.START + prompt_template.format(x=word), return_tensors="pt").input_ids
        before = ids.shape[1]
        for _ in range(n_tokens):
            with model.trace(ids):
                model.transformer.h[layer].output[:, before - 1] += extra
                best = model.lm_head.output[:, -1].argmax(dim=-1).save()
            ids = torch.cat([ids, best[:, None].to(ids.device)], dim=1)
        texts.append(model.tokenizer.decode(ids[0, before:]))
    return tuple(texts)


# ---------------------------------------------------------------- steer

steer = exercise(fv.steer)


@steer.cases
def _():
    yield small_model(), fv.START + "- hot -> cold - big -> small", 1, vector(5, 7.0), 6, 2.0
    yield small_model(), fv.START + "the big the old fast", 1, vector(2, 4.0), 6, 0.5
    yield small_model(), fv.START + "the old", 0, vector(6), 4, 1.0


def _steered(model, prompt, layer, n_tokens, edit, keep_prompt=False):
    length = 0 if keep_prompt else len(model.tokenizer(prompt).input_ids)
    with model.generate(prompt, max_new_tokens=n_tokens, do_sample=False) as tracer:
        for _ in tracer.iter[:n_tokens]:
            edit(model.transformer.h[layer].output)
        ids = tracer.result.save()
    return model.tokenizer.decode(ids[0, length:])


@steer.mistake("the vector is added in the first pass only: use `for step in tracer.iter[:n_tokens]`")
def _(model, prompt, layer, vector, n_tokens, strength=1.0):
    return _written(model, prompt, n_tokens, layer, _add(LAST, strength * vector))


@steer.mistake("`strength` is ignored: add strength * vector")
def _(model, prompt, layer, vector, n_tokens, strength=1.0):
    return _steered(model, prompt, layer, n_tokens, _add(LAST, vector))


@steer.mistake("the first pass holds the whole prompt, and you added to all of it: only the last position, [:, -1]")
def _(model, prompt, layer, vector, n_tokens, strength=1.0):
    return _steered(model, prompt, layer, n_tokens, _add(ALL, strength * vector))


@steer.mistake("the prompt is part of what you returned: cut it off")
def _(model, prompt, layer, vector, n_tokens, strength=1.0):
    return _steered(model, prompt, layer, n_tokens, _add(LAST, strength * vector), keep_prompt=True)


@steer.mistake("you replaced the state by the vector: add it")
def _(model, prompt, layer, vector, n_tokens, strength=1.0):
    def edit(resid):
        resid[:, -1] = strength * vector

    return _steered(model, prompt, layer, n_tokens, edit)


@steer.law("with strength 0 the text must be the model's own")
def _(steer):
    prompt = fv.START + "the big"
    own = _written(small_model(), prompt, 3, 0)
    return (
        steer(small_model(), prompt, 1, vector(5), 3, 0.0) == own != steer(small_model(), prompt, 1, vector(5), 3, 9.0)
    )


@steer.right
def _(model, prompt, layer, vector, n_tokens, strength=1.0):
    ids = model.tokenizer(prompt, return_tensors="pt").input_ids
    before = ids.shape[1]
    for _ in range(n_tokens):
        with model.trace(ids):
            model.transformer.h[layer].output[:, before - 1 :] += strength * vector
            best = model.lm_head.output[:, -1].argmax(dim=-1).save()
        ids = torch.cat([ids, best[:, None].to(ids.device)], dim=1)
    return model.tokenizer.decode(ids[0, before:])
