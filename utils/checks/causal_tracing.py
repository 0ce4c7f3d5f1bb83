"""What chapter 10 asks of causal tracing, and the mistakes it recognises."""

from functools import cache, partial

import nnsight
import torch

from utils import causal_tracing as ct
from utils.checks.function_vectors import D_HEAD, HEADS, LAYERS, chapter, small_model
from utils.checks.models import noise, small_hf
from utils.function_vectors import START, completion_ids
from utils.runtime import device

exercise = chapter.exercise

# One subject of a token, one of two; the places before and behind it differ in number.
ONE = [START + f"the {x} The slow ->" for x in ("hot", "big", "old", "wet")], ["hot", "big", "old", "wet"]
TWO = [START + f"the The - {x} old ->" for x in ("good bad", "light dark")], ["good bad", "light dark"]
# As short as can be, where a whole run is made for each state.
SHORT_ONE = [START + f"the {x} slow" for x in ONE[1]], ONE[1]
SHORT_TWO = [START + f"the {x} old" for x in TWO[1]], TWO[1]


@cache
def sharp_model():
    """As `small_model`, but its heads move more, and it is surer of what comes next: a state put back is seen."""
    tokenizer = small_model().tokenizer
    hf = small_hf(tokenizer, LAYERS, HEADS, D_HEAD)
    with torch.no_grad():
        hf.lm_head.weight = torch.nn.Parameter(4 * hf.lm_head.weight)
        for block in hf.transformer.h:
            block.attn.c_proj.weight *= 4
    return nnsight.LanguageModel(hf, tokenizer=tokenizer, device=device())


def _answers(prompts):
    """The tokens that the model likes best, of those whose text is this one token again."""
    texts = [sharp_model().tokenizer.decode(i) for i in range(_probs(prompts).shape[1])]
    ids = sharp_model().tokenizer(texts, add_special_tokens=False).input_ids
    whole = torch.tensor([i for i, token in enumerate(ids) if token == [i]])
    best = _probs(prompts)[:, whole].argmax(dim=-1)
    return [texts[whole[i]] for i in best.tolist()]


def _noise(prompts, subjects, seed=0, scale=3.0):
    return noise(len(prompts), len(subjects[0].split()), HEADS * D_HEAD, seed=seed, scale=scale)


def _probs(prompts, edit=None):
    """The next token's probabilities; `edit` changes what it likes in the trace."""
    model = sharp_model()
    with model.trace(list(prompts)):
        if edit is not None:
            edit(model)
        probs = model.lm_head.output[:, -1].softmax(dim=-1).save()
    return probs


# ---------------------------------------------------------------- corrupt_subject

corrupt_subject = exercise(ct.corrupt_subject)


@corrupt_subject.cases
def _():
    yield sharp_model(), *ONE, _noise(*ONE)
    yield sharp_model(), *TWO, _noise(*TWO, seed=1)


@corrupt_subject.refused
def _():
    yield sharp_model(), *ONE, _noise(*ONE)[:1]
    yield sharp_model(), *TWO, _noise(*TWO)[:, :1]
    yield sharp_model(), *ONE, _noise(*ONE)[:, :, :-1]
    yield sharp_model(), ONE[0], ["full", *ONE[1][1:]], _noise(*ONE)


def _corrupted(model, prompts, subjects, noise, where=None, change=lambda old, noise: old + noise, softmax=True):
    span = ct.subject_span(model.tokenizer, prompts, subjects)
    if noise.shape != (len(prompts), span.stop - span.start, HEADS * D_HEAD):
        raise ValueError("noise of another shape")
    place = span if where is None else where(span)
    with model.trace(list(prompts)):
        embeddings = model.transformer.wte.output
        embeddings[:, place] = change(embeddings[:, place], noise)
        logits = model.lm_head.output[:, -1].save()
    return logits.softmax(dim=-1) if softmax else logits


def _into_stream(model, prompts, subjects, noise):
    span = ct.subject_span(model.tokenizer, prompts, subjects)
    if noise.shape != (len(prompts), span.stop - span.start, HEADS * D_HEAD):
        raise ValueError("noise of another shape")
    with model.trace(list(prompts)):
        model.transformer.h[0].output[:, span] += noise
        probs = model.lm_head.output[:, -1].softmax(dim=-1).save()
    return probs


corrupt_subject.mistake("the subject has no noise: add it to model.transformer.wte.output[:, span]")(
    partial(_corrupted, change=lambda old, noise: old)
)
corrupt_subject.mistake("the noise took the embeddings' place: add it to them, +=")(
    partial(_corrupted, change=lambda old, noise: noise)
)
corrupt_subject.mistake("every embedding got noise: only those of the subject's tokens, [:, span]")(
    partial(_corrupted, where=lambda span: slice(None), change=lambda old, noise: old + noise[:, :1])
)
corrupt_subject.mistake("only the subject's last token got noise: every token of it gets its own")(
    partial(
        _corrupted, where=lambda span: slice(span.stop - 1, span.stop), change=lambda old, noise: old + noise[:, -1:]
    )
)
corrupt_subject.mistake("the noise is a place too late: the subject begins at span.start")(
    partial(_corrupted, where=lambda span: slice(span.start + 1, span.stop + 1))
)
corrupt_subject.mistake("all prompts got the first one's noise: each has its own")(
    partial(_corrupted, change=lambda old, noise: old + noise[:1])
)
corrupt_subject.mistake("the noise came after layer 0, which has read the subject already: add it to the embeddings")(
    _into_stream
)
corrupt_subject.mistake("these are logits: take the softmax over the vocabulary")(partial(_corrupted, softmax=False))


@corrupt_subject.law("without noise the probabilities must be the model's own, with it others")
def _(corrupt_subject):
    own, zero, some = (
        _probs(ONE[0]),
        *(corrupt_subject(sharp_model(), *ONE, scale * _noise(*ONE)) for scale in (0, 1)),
    )
    return torch.allclose(zero, own, atol=1e-5) and not torch.allclose(some, own, atol=1e-2)


@corrupt_subject.right
def _(model, prompts, subjects, noise):
    span = ct.subject_span(model.tokenizer, prompts, subjects)
    ids = torch.tensor(model.tokenizer(list(prompts)).input_ids)
    if noise.shape[0] != len(ids) or noise.shape[1] != span.stop - span.start or noise.shape[2] != HEADS * D_HEAD:
        raise ValueError("noise of another shape")
    extra = torch.zeros(*ids.shape, HEADS * D_HEAD, device=noise.device)
    extra[:, span] = noise
    with model.trace(ids):
        model.transformer.drop.input[:] += extra
        last = model.lm_head.output.save()
    return last.softmax(dim=-1)[:, -1]


# ---------------------------------------------------------------- causal_trace

causal_trace = exercise(ct.causal_trace)


@causal_trace.cases
def _():
    yield sharp_model(), *SHORT_ONE, _answers(SHORT_ONE[0]), _noise(*SHORT_ONE, seed=2)
    yield sharp_model(), *SHORT_TWO, _answers(SHORT_TWO[0]), _noise(*SHORT_TWO, seed=3), "mlp"
    yield sharp_model(), *SHORT_ONE, _answers(SHORT_ONE[0]), _noise(*SHORT_ONE, seed=4), "attn"


@causal_trace.refused
def _():
    yield sharp_model(), *SHORT_ONE, _answers(SHORT_ONE[0]), _noise(*SHORT_ONE), "head"
    yield sharp_model(), *SHORT_ONE, _answers(SHORT_ONE[0]), _noise(*SHORT_ONE)[:1]
    yield sharp_model(), *SHORT_ONE, [" cold small", " small", " new", " dry"], _noise(*SHORT_ONE)


def _traced(
    model,
    prompts,
    subjects,
    answers,
    noise,
    part="stream",
    put=lambda kept, layer, place: kept[layer][:, place],
    at=lambda place: place,
    kept_from=0.0,
    run_noise=1.0,
    first=lambda layer: layer,
    score=lambda logits: logits.softmax(dim=-1),
    over=lambda effects, before, clean: effects - before,
):
    right = completion_ids(model.tokenizer, answers).cpu()
    rows = range(len(right))
    span = ct.subject_span(model.tokenizer, prompts, subjects)
    if noise.shape != (len(prompts), span.stop - span.start, HEADS * D_HEAD):
        raise ValueError("noise of another shape")

    def run(scale, keep=None, edits=()):
        with model.trace(list(prompts)):
            model.transformer.wte.output[:, span] += scale * noise
            for layer in range(LAYERS):
                value = ct.part_output(model, layer, part)
                if keep is not None:
                    keep.append(value.clone().save())
                for layer_of, place, state in edits:
                    if layer_of == layer:
                        value[:, place] = state
            logits = model.lm_head.output[:, -1].save()
        return score(logits).cpu()[rows, right].mean()

    kept = []
    run(kept_from, kept)
    clean, before = run(0.0), run(1.0)
    effects = torch.zeros(LAYERS, kept[0].shape[1], device="cpu")  # numbers to read
    for layer in range(LAYERS):
        for place in range(effects.shape[1]):
            layers = range(first(layer), layer + 1)
            edits = [(n, at(place), put(kept, n, place)) for n in layers]
            effects[layer, place] = run(run_noise, None, edits)
    return over(effects, before, clean)


TRACED = {
    "these are probabilities: the effect is their rise over the noisy run's": {
        "over": lambda effects, before, clean: effects
    },
    "you subtracted the right run's probability: the effect is the rise over the noisy run's": {
        "over": lambda effects, before, clean: effects - clean
    },
    "the sign is turned round: with the state put back, less without": {
        "over": lambda effects, before, clean: before - effects
    },
    "this is a share of what was lost: the effect is a rise of the probability": {
        "over": lambda effects, before, clean: (effects - before) / (clean - before)
    },
    "the states put back are the noisy run's own: keep those of the run without noise": {"kept_from": 1.0},
    "the run in which a state is put back has no noise: add it to the subject there too": {"run_noise": 0.0},
    "a whole layer is put back at once: one position at a time, [:, place]": {
        "put": lambda kept, layer, place: kept[layer],
        "at": lambda place: slice(None),
    },
    "all layers up to this one are put back together: one state at a time": {"first": lambda layer: 0},
    "the states are a layer too early: take the same layer's": {
        "put": lambda kept, layer, place: kept[max(layer - 1, 0)][:, place]
    },
    "every place got the last position's state: take the same place's": {
        "put": lambda kept, layer, place: kept[layer][:, -1]
    },
    "you averaged the states over the prompts: each prompt gets its own back": {
        "put": lambda kept, layer, place: kept[layer][:, place].mean(dim=0, keepdim=True)
    },
    "these are differences of logits: take probabilities": {"score": lambda logits: logits},
    "these are differences of log-probabilities: take probabilities": {
        "score": lambda logits: logits.log_softmax(dim=-1)
    },
    "layers and positions are swapped: a row for each layer": {
        "over": lambda effects, before, clean: (effects - before).T
    },
}
for sentence, change in TRACED.items():
    causal_trace.mistake(sentence)(partial(_traced, **change))


@causal_trace.mistake("`part` is ignored: put back what part_output(model, layer, part) gives")
def _(model, prompts, subjects, answers, noise, part="stream"):
    ct.part_output(model, 0, part)
    return _traced(model, prompts, subjects, answers, noise)


@causal_trace.law("the last layer's stream at the last position, put back, must bring all of the answer back")
def _(causal_trace):
    noise = _noise(*SHORT_ONE, seed=5)
    right, rows = completion_ids(sharp_model().tokenizer, _answers(SHORT_ONE[0])).cpu(), range(4)
    clean, noisy = _probs(SHORT_ONE[0]), ct.corrupt_subject(sharp_model(), *SHORT_ONE, noise)
    lost = (clean - noisy).cpu()[rows, right].mean()
    effects = causal_trace(sharp_model(), *SHORT_ONE, _answers(SHORT_ONE[0]), noise)
    return abs(effects[-1, -1] - lost) < 1e-4 and bool(effects[-1, :-1].abs().max() < 1e-5)


@causal_trace.law("a state before the subject is the same in both runs: putting it back must change nothing")
def _(causal_trace):
    effects = causal_trace(sharp_model(), *SHORT_TWO, _answers(SHORT_TWO[0]), _noise(*SHORT_TWO, seed=6))
    start = ct.subject_span(sharp_model().tokenizer, *SHORT_TWO).start
    return bool(effects[:, :start].abs().max() < 1e-5) and bool(effects[:, start:].abs().max() > 1e-3)


@causal_trace.right
def _(model, prompts, subjects, answers, noise, part="stream"):
    right, rows = completion_ids(model.tokenizer, answers), torch.arange(len(answers))
    before = ct.corrupt_subject(model, prompts, subjects, noise)[rows, right]
    span = ct.subject_span(model.tokenizer, prompts, subjects)
    result = []
    for layer in range(LAYERS):
        with model.trace(list(prompts)):
            kept = ct.part_output(model, layer, part).clone().save()
        # All places of a layer in one pass: a row for each place and prompt.
        n, length = kept.shape[:2]
        place = torch.arange(length).repeat_interleave(n)
        each = torch.arange(n * length)
        states = kept.repeat(length, 1, 1)[each, place]
        many = noise.repeat(length, 1, 1)
        with model.trace(list(prompts) * length):
            model.transformer.wte.output[:, span] += many
            ct.part_output(model, layer, part)[each, place] = states
            probs = model.lm_head.output[:, -1].softmax(dim=-1).save()
        found = probs[each, right.repeat(length)].reshape(length, n)
        result.append((found - before).mean(dim=1).cpu())
    return torch.stack(result)
