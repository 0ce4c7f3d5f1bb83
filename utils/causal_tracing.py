"""Causal tracing: where a fact is recalled. The subject's embeddings are spoilt with
noise, and single states of the right run are put back, one at a time.

Source: Meng et al. (2022), "Locating and Editing Factual Associations in GPT", written
with nnsight. Prompts run together and are equally long, and their subjects stand at the
same places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import nnsight
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from utils.function_vectors import completion_ids, layer_output
from utils.models.remote import remote_options

# What chapter 10 imports: all but its exercises.
__all__ = ["Part", "part_output", "subject_span"]

Part = Literal["stream", "mlp", "attn"]


def subject_span(tokenizer, prompts: Sequence[str], subjects: Sequence[str]) -> slice:
    """The places of each subject's tokens in its prompt, the same in all of them.

    A subject is looked for with the space before it, at its first place.

    Raises:
        ValueError: a prompt lacks its subject; prompts, or subjects, of different
            lengths in tokens.
    """
    spans, lengths = set(), set()
    for prompt, subject in zip(prompts, subjects, strict=True):
        ids = tokenizer(prompt).input_ids
        part = tokenizer(" " + subject, add_special_tokens=False).input_ids
        places = range(len(ids) - len(part) + 1)
        found = [i for i in places if ids[i : i + len(part)] == part]
        if not found:
            raise ValueError(f"{prompt!r} has no subject {subject!r} in its tokens")
        spans.add((found[0], found[0] + len(part)))
        lengths.add(len(ids))
    if len(spans) != 1 or len(lengths) != 1:
        raise ValueError(
            "prompts that run together must be equally long, with their subjects at "
            f"the same places, not {sorted(spans)}: run the others apart"
        )
    return slice(*spans.pop())


def part_output(model, layer: int, part: Part) -> Float[Tensor, "batch seq d_model"]:
    """Inside a trace: the residual stream after a layer, or what its MLP or its
    attention adds to it.

    Raises:
        ValueError: no such part.
    """
    block = model.transformer.h[layer]
    if part == "stream":
        return layer_output(model, layer)
    if part == "mlp":
        return block.mlp.output
    if part == "attn":
        return block.attn.output[0]
    raise ValueError(f"no part {part!r}: choose stream, mlp or attn")


def corrupt_subject(
    model,
    prompts: Sequence[str],
    subjects: Sequence[str],
    noise: Float[Tensor, "batch subject d_model"],
) -> Float[Tensor, "batch d_vocab"]:
    """The next token's probabilities after each prompt, in a run in which `noise` is
    added to the embeddings of its subject's tokens.

    Each prompt has its own noise, a vector for each token of the subject
    (`subject_span`); all other embeddings stay as they are.

    Raises:
        ValueError: `subject_span` says so, or `noise` is not of that shape.
    """
    span = subject_span(model.tokenizer, prompts, subjects)
    shape = (len(prompts), span.stop - span.start, model.config.n_embd)
    if noise.shape != shape:
        raise ValueError(f"noise must be {list(shape)}, not {list(noise.shape)}")
    with model.trace(list(prompts), **remote_options()):
        model.transformer.wte.output[:, span] += noise
        probs = model.lm_head.output[:, -1].softmax(dim=-1).save()
    return probs


def causal_trace(
    model,
    prompts: Sequence[str],
    subjects: Sequence[str],
    answers: Sequence[str],
    noise: Float[Tensor, "batch subject d_model"],
    part: Part = "stream",
) -> Float[Tensor, "layer seq"]:
    """How far each single state of the right run brings the answer back: its indirect
    effect.

    In a run with the subject's noise (`corrupt_subject`) one part of one layer is, at
    one position, what it was in the run without noise; the effect is the rise of the
    right answer's probability over that in the noisy run, the mean over the prompts.
    All else of the noisy run stays noisy, apart from what this state changes later.

    Args:
        answers: one token each, with its leading space.
        part: what is put back: the residual stream after a layer, or what its MLP or
            its attention adds.

    Raises:
        ValueError: as `corrupt_subject`; no such part; an answer of several tokens.

    Source: Meng et al. (2022), section 2.
    """
    right = completion_ids(model.tokenizer, answers)
    rows, n_layers = torch.arange(len(right)), model.config.n_layer
    span = subject_span(model.tokenizer, prompts, subjects)
    before = corrupt_subject(model, prompts, subjects, noise).cpu()[rows, right].mean()
    with model.trace(list(prompts), **remote_options()):
        clean = nnsight.save(
            [part_output(model, layer, part).clone() for layer in range(n_layers)]
        )
    effects = torch.zeros(n_layers, clean[0].shape[1])
    for layer in tqdm(range(n_layers), desc="layers"):
        for place in range(effects.shape[1]):
            with model.trace(list(prompts), **remote_options()):
                model.transformer.wte.output[:, span] += noise
                part_output(model, layer, part)[:, place] = clean[layer][:, place]
                probs = model.lm_head.output[:, -1].softmax(dim=-1).save()
            effects[layer, place] = probs.cpu()[rows, right].mean() - before
    return effects
