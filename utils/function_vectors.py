"""Function vectors: a task, learned from examples in the prompt, as one vector that can
be added to another prompt.

Prompts are lists of solved pairs with one left open ("- hot -> cold\\n- big ->"). The
methods follow Todd et al. (2024), "Function Vectors in Large Language Models", written
with nnsight; `model` is nnsight's wrapper of a GPT-2-like model. A *head* is a pair
`(layer, head)`.
"""

# As strings: a server without jaxtyping can rebuild the functions that travel with a
# trace.
from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import einops
import nnsight
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from tqdm.auto import tqdm

from utils.models.remote import remote_options, sent
from utils.world.tasks import LAYOUTS, task_prompt

# What chapter 10 imports: all but its exercises.
__all__ = [
    "LAYOUTS",
    "START",
    "Head",
    "Pair",
    "accuracy",
    "causal_effects_fast",
    "completion_ids",
    "layer_output",
    "one_token_pairs",
    "out_projection",
    "out_weights",
    "remote_options",
    "sent",
    "top_heads",
]

Head = tuple[int, int]
Pair = tuple[str, str]
START = "<|endoftext|>"  # every document of the training text began with it


# ---------------------------------------------------------------- prompts


class ICLSequence:
    """Solved pairs and one open one: `ICLSequence([("hot", "cold"), ("big", "small")])`
    asks for "small".

    Raises:
        ValueError: no pair, or no such layout.
    """

    def __init__(self, word_pairs: Sequence[Pair], layout: str = "arrow"):
        if not word_pairs:
            raise ValueError("a sequence needs at least one pair, the open one")
        if layout not in LAYOUTS:
            raise ValueError(
                f"no layout {layout!r}: choose one of {', '.join(LAYOUTS)}"
            )
        self.word_pairs, self.layout = [tuple(pair) for pair in word_pairs], layout

    def prompt(self) -> str:
        """The text up to the open pair's answer, beginning with `<|endoftext|>`."""
        *shots, (query, _) = self.word_pairs
        return START + task_prompt(shots, query, self.layout)

    def completion(self) -> str:
        """The open pair's answer, with its leading space."""
        return " " + self.word_pairs[-1][1]


class ICLDataset:
    """`size` sequences of `n_prepended` solved pairs and one open one, drawn from a
    seed.

    Attributes:
        seqs: the sequences; `prompts` and `completions` are their texts.

    Raises:
        ValueError: fewer pairs than one sequence needs, or labels to shuffle among
            fewer than two shots.
    """

    def __init__(
        self,
        word_pairs: Sequence[Pair],
        size: int,
        n_prepended: int,
        bidirectional: bool = False,
        seed: int = 0,
        corrupted: bool = False,
        layout: str = "arrow",
        queries: Sequence[Pair] | None = None,
    ):
        """
        Args:
            word_pairs: (input, output) pairs to draw from; no pair stands twice in a
                sequence.
            bidirectional: every sequence is turned round (output -> input) with
                probability 1/2.
            corrupted: every shot gets another shot's output: the layout and the words
                stay, the task is gone. The open pair is left as it is.
            queries: pairs to draw the open one from, where it must not be one of
                `word_pairs`.
        """
        self.word_pairs, self.n_prepended, self.layout = (
            list(word_pairs),
            n_prepended,
            layout,
        )
        need = n_prepended + (queries is None)
        if len(self.word_pairs) < need:
            raise ValueError(
                f"{len(self.word_pairs)} pairs are too few for sequences that need "
                f"{need} different ones"
            )
        rng = random.Random(seed)
        self.seqs = []
        for _ in range(size):
            pairs = rng.sample(self.word_pairs, need) + (
                [] if queries is None else [rng.choice(list(queries))]
            )
            if bidirectional and rng.random() < 0.5:
                pairs = [(y, x) for x, y in pairs]
            if corrupted:
                pairs = self._shuffle_labels(pairs, rng)
            self.seqs.append(ICLSequence(pairs, layout))

    @staticmethod
    def _shuffle_labels(
        pairs: list[Pair], rng: random.Random, labels: Sequence[str] | None = None
    ) -> list[Pair]:
        *shots, query = pairs
        if labels is not None:
            return [
                (x, rng.choice([label for label in labels if label != y]))
                for x, y in shots
            ] + [query]
        if len(shots) < 2:
            raise ValueError(
                f"labels can be shuffled among two shots or more, not {len(shots)}: "
                "raise n_prepended"
            )
        # Moved along by a random step that is no full turn: no shot keeps its own.
        step = rng.randint(1, len(shots) - 1)
        outputs = [y for _, y in shots]
        moved = outputs[step:] + outputs[:step]
        return [(x, y) for (x, _), y in zip(shots, moved, strict=True)] + [query]

    @property
    def prompts(self) -> list[str]:
        return [seq.prompt() for seq in self.seqs]

    @property
    def completions(self) -> list[str]:
        return [seq.completion() for seq in self.seqs]

    def create_corrupted_dataset(
        self, seed: int = 0, labels: Sequence[str] | None = None
    ) -> "ICLDataset":
        """The same sequences, the shots' outputs shuffled, or drawn from `labels` if
        given (never the right one).
        """
        rng = random.Random(seed)
        other = object.__new__(ICLDataset)
        other.word_pairs, other.n_prepended, other.layout = (
            self.word_pairs,
            self.n_prepended,
            self.layout,
        )
        other.seqs = [
            ICLSequence(self._shuffle_labels(seq.word_pairs, rng, labels), seq.layout)
            for seq in self.seqs
        ]
        return other

    def __len__(self) -> int:
        return len(self.seqs)


def completion_ids(tokenizer, completions: Sequence[str]) -> Int[Tensor, " batch"]:
    """The one token of each completion.

    Raises:
        ValueError: a completion is more than one token, so that "the next token" would
            not be all of it.
    """
    ids = tokenizer(list(completions), add_special_tokens=False).input_ids
    for completion, tokens in zip(completions, ids, strict=True):
        if len(tokens) != 1:
            pieces = tokenizer.convert_ids_to_tokens(tokens)
            raise ValueError(
                f"{completion!r} is {len(tokens)} tokens {pieces}: leave such words "
                "out (one_token_pairs)"
            )
    return torch.tensor(ids)[:, 0]


def one_token_pairs(tokenizer, pairs: dict[str, str]) -> list[Pair]:
    """Those pairs of which both words, with a leading space, are one token: all prompts
    are equally long.
    """
    words = sorted({word for pair in pairs.items() for word in pair})
    lengths = tokenizer(
        [" " + word for word in words], add_special_tokens=False
    ).input_ids
    short = {word for word, ids in zip(words, lengths, strict=True) if len(ids) == 1}
    return [(x, y) for x, y in pairs.items() if x in short and y in short]


# ---------------------------------------------------------------- the model's parts


def layer_output(model, layer: int) -> Float[Tensor, "batch seq d_model"]:
    """Inside a trace: the residual stream after a layer. GPT-2's blocks return a
    tensor, GPT-J's a tuple.
    """
    output = model.transformer.h[layer].output
    return output if torch.is_tensor(output) else output[0]


def out_projection(model, layer: int):
    """The module whose input holds all heads' outputs side by side: `c_proj` in GPT-2,
    `out_proj` in GPT-J.
    """
    attn = model.transformer.h[layer].attn
    return attn.c_proj if hasattr(attn, "c_proj") else attn.out_proj


def out_weights(model, layer: int) -> Float[Tensor, "head d_head d_model"]:
    """W_O of each head of a layer. GPT-2 stores (in, out), a Linear layer (out, in)."""
    weight = out_projection(model, layer).weight
    weight = weight if hasattr(model.transformer.h[layer].attn, "c_proj") else weight.T
    return einops.rearrange(
        weight, "(head d_head) d_model -> head d_head d_model", head=model.config.n_head
    )


# -------------------------------- the mean residual state


def calculate_h(
    model, dataset: ICLDataset, layer: int = -1
) -> tuple[list[str], Float[Tensor, " d_model"]]:
    """Run the dataset; the model's next token for each prompt, and the mean residual
    state after `layer`.

    The mean is over the prompts, at the last position.
    """
    with model.trace(dataset.prompts, **remote_options()):
        h = layer_output(model, layer)[:, -1].mean(dim=0).save()
        next_ids = model.lm_head.output[:, -1].argmax(dim=-1).save()
    return model.tokenizer.batch_decode(next_ids[:, None]), h


def intervene_with_h(
    model, zero_shot_dataset: ICLDataset, h: Float[Tensor, " d_model"], layer: int
) -> tuple[list[str], list[str]]:
    """The model's next tokens on prompts without shots: as it is, and with `h` added
    after `layer`.

    `h` is added at the last position only. Both runs are one pass: two invokes of one
    trace.
    """
    with model.trace(**remote_options()) as tracer:
        with tracer.invoke(zero_shot_dataset.prompts):
            plain_ids = model.lm_head.output[:, -1].argmax(dim=-1).save()
        with tracer.invoke(zero_shot_dataset.prompts):
            layer_output(model, layer)[:, -1] += h
            steered_ids = model.lm_head.output[:, -1].argmax(dim=-1).save()
    decode = model.tokenizer.batch_decode
    return decode(plain_ids[:, None]), decode(steered_ids[:, None])


def calculate_h_and_intervene(
    model, dataset: ICLDataset, zero_shot_dataset: ICLDataset, layer: int
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    """The right answers' log-probabilities without shots: as it is, and with
    `dataset`'s `h` added after `layer`.

    All in one pass: `h` is computed in one invoke and used in another, which waits for
    it at a barrier.
    """
    right = completion_ids(model.tokenizer, zero_shot_dataset.completions)
    rows = torch.arange(len(right))
    with model.trace(**remote_options()) as tracer:
        barrier = tracer.barrier(2)
        with tracer.invoke(dataset.prompts):
            h = layer_output(model, layer)[:, -1].mean(dim=0)
            barrier()
        with tracer.invoke(zero_shot_dataset.prompts):
            plain = model.lm_head.output[:, -1].log_softmax(dim=-1)[rows, right].save()
        with tracer.invoke(zero_shot_dataset.prompts):
            barrier()
            layer_output(model, layer)[:, -1] += h
            steered = (
                model.lm_head.output[:, -1].log_softmax(dim=-1)[rows, right].save()
            )
    return plain, steered


# ---------------------------------------------------------------- heads


def mean_head_outputs(model, dataset: ICLDataset) -> Float[Tensor, "layer head d_head"]:
    """Every head's output at the last position, before W_O: the mean over the dataset's
    prompts.
    """
    n_layers, n_heads = model.config.n_layer, model.config.n_head
    with model.trace(dataset.prompts, **remote_options()):
        z = nnsight.save(
            [
                out_projection(model, layer).input[:, -1].mean(dim=0)
                for layer in range(n_layers)
            ]
        )
    return einops.rearrange(
        torch.stack(z), "layer (head d_head) -> layer head d_head", head=n_heads
    )


def calculate_fn_vectors_and_intervene(
    model,
    dataset: ICLDataset,
    layers: Sequence[int] | None = None,
    corrupted: ICLDataset | None = None,
) -> Float[Tensor, "layer head"]:
    """The causal indirect effect of each head: how far its mean output on right prompts
    helps on shuffled ones.

    On the same prompts with shuffled labels, one head's output at the last position is
    replaced by its mean over `dataset`; the effect is the mean rise of the right
    answer's probability. One trace for each head.

    Args:
        layers: those to measure (default: all); one row for each.
        corrupted: the prompts to patch, default `dataset.create_corrupted_dataset()`.

    Source: Todd et al. (2024), equations 3 and 4.
    """
    corrupted = corrupted or dataset.create_corrupted_dataset()
    layers = list(range(model.config.n_layer)) if layers is None else list(layers)
    right = completion_ids(model.tokenizer, dataset.completions)
    rows, n_heads = torch.arange(len(right)), model.config.n_head
    d_head = model.config.n_embd // n_heads
    mean_z = mean_head_outputs(model, dataset)
    with model.trace(corrupted.prompts, **remote_options()):
        before = model.lm_head.output[:, -1].softmax(dim=-1)[rows, right].mean().save()
    effects = torch.zeros(len(layers), n_heads)
    for row, layer in enumerate(tqdm(layers, desc="layers")):
        for head in range(n_heads):
            with model.trace(corrupted.prompts, **remote_options()):
                out_projection(model, layer).input[
                    :, -1, head * d_head : (head + 1) * d_head
                ] = mean_z[layer, head]
                after = (
                    model.lm_head.output[:, -1]
                    .softmax(dim=-1)[rows, right]
                    .mean()
                    .save()
                )
            effects[row, head] = after - before
    return effects


def causal_effects_one_trace(
    model,
    dataset: ICLDataset,
    layers: Sequence[int] | None = None,
    corrupted: ICLDataset | None = None,
) -> Float[Tensor, "layer head"]:
    """The same numbers as `calculate_fn_vectors_and_intervene` from a single trace, so
    that a far server gets one request.

    One invoke of the right prompts takes the heads' means, one runs the corrupted
    prompts as they are, and one for each head patches them. A head's invoke needs the
    means of its layer: there is a barrier for each layer. All invokes share one pass,
    whose batch is that many times larger.

    Args:
        layers: those to measure (default: all); one row for each.
        corrupted: the prompts to patch, default `dataset.create_corrupted_dataset()`.
    """
    corrupted = corrupted or dataset.create_corrupted_dataset()
    layers = list(range(model.config.n_layer)) if layers is None else list(layers)
    right = completion_ids(model.tokenizer, dataset.completions)
    rows, n_heads = torch.arange(len(right)), model.config.n_head
    d_head = model.config.n_embd // n_heads
    prompts, spoilt = dataset.prompts, corrupted.prompts  # text travels, no class
    with model.trace(**remote_options()) as tracer:
        barriers = {layer: tracer.barrier(1 + n_heads) for layer in layers}
        mean_z = {}
        after = torch.zeros(len(layers), n_heads).save()
        with tracer.invoke(prompts):
            for layer in sorted(layers):
                mean_z[layer] = out_projection(model, layer).input[:, -1].mean(dim=0)
                barriers[layer]()
        with tracer.invoke(spoilt):
            logits = model.lm_head.output[:, -1]
            before = logits.softmax(dim=-1)[rows, right].mean().save()
        for row, layer in enumerate(layers):
            for head in range(n_heads):
                with tracer.invoke(spoilt):
                    own = slice(head * d_head, (head + 1) * d_head)
                    barriers[layer]()
                    z = out_projection(model, layer).input
                    z[:, -1, own] = mean_z[layer][own]
                    logits = model.lm_head.output[:, -1]
                    after[row, head] = logits.softmax(dim=-1)[rows, right].mean()
    return after - before.cpu()


@torch.no_grad()
def causal_effects_fast(
    model, dataset: ICLDataset, corrupted: ICLDataset | None = None
) -> Float[Tensor, "layer head"]:
    """The same numbers as `calculate_fn_vectors_and_intervene`, several times faster.

    Only the last position changes, and only from the head's layer on. So one run of the
    shuffled prompts keeps all keys, values and residual states; after that each head
    costs one position through the layers above, and all heads of a layer share a batch.
    Plain torch on the wrapped model.

    Raises:
        ValueError: the prompts differ in length, or the model is not built like GPT-2.
    """
    hf, n_heads = model._module, model.config.n_head
    if not hasattr(hf.transformer.h[0].attn, "c_proj"):
        raise ValueError(
            "only for models built like GPT-2: use calculate_fn_vectors_and_intervene"
        )
    corrupted = corrupted or dataset.create_corrupted_dataset()
    rows = model.tokenizer(corrupted.prompts, add_special_tokens=False).input_ids
    if len(lengths := sorted({len(row) for row in rows})) > 1:
        raise ValueError(
            f"prompts of {lengths} tokens: take words of one token each "
            "(one_token_pairs)"
        )
    right = completion_ids(model.tokenizer, dataset.completions).to(hf.device)
    mean_z, batch = mean_head_outputs(model, dataset), len(right)

    def heads_apart(x):
        return einops.rearrange(
            x, "batch seq (head d_head) -> batch head seq d_head", head=n_heads
        )

    def probability(resid):
        logits = hf.lm_head(hf.transformer.ln_f(resid[:, 0]))
        answers = right.repeat(len(resid) // batch)
        return einops.reduce(
            logits.softmax(-1).gather(-1, answers[:, None]),
            "(copy batch) 1 -> copy",
            "mean",
            batch=batch,
        )

    # One run over all positions: keys, values and z of each layer, the stream before
    # its MLP at the last position.
    resid = (
        hf.transformer.wte(torch.tensor(rows, device=hf.device))
        + hf.transformer.wpe.weight[: lengths[0]]
    )
    kept = []
    for block in hf.transformer.h:
        q, k, v = map(
            heads_apart, block.attn.c_attn(block.ln_1(resid)).chunk(3, dim=-1)
        )
        z = scaled_dot_product_attention(q, k, v, is_causal=True)
        resid = resid + block.attn.c_proj(
            einops.rearrange(z, "batch head seq d_head -> batch seq (head d_head)")
        )
        kept.append((k[:, :, :-1], v[:, :, :-1], z[:, :, -1], resid[:, -1:]))
        resid = resid + block.mlp(block.ln_2(resid))
    before = probability(resid[:, -1:])

    effects = torch.zeros(len(kept), n_heads)
    for layer, (_, _, z, after_attn) in enumerate(kept):
        change = einops.einsum(
            mean_z[layer] - z,
            out_weights(model, layer),
            "batch head d_head, head d_head d_model -> head batch d_model",
        )
        resid = (after_attn[:, 0] + change).flatten(0, 1)[:, None]
        block = hf.transformer.h[layer]
        resid = resid + block.mlp(block.ln_2(resid))
        for later in range(layer + 1, len(kept)):
            block = hf.transformer.h[later]
            q, k, v = map(
                heads_apart, block.attn.c_attn(block.ln_1(resid)).chunk(3, dim=-1)
            )
            k, v = (
                torch.cat([past.repeat(n_heads, 1, 1, 1), new], dim=2)
                for past, new in zip(kept[later][:2], (k, v), strict=True)
            )
            z = scaled_dot_product_attention(q, k, v)
            resid = resid + block.attn.c_proj(
                einops.rearrange(z, "batch head 1 d_head -> batch 1 (head d_head)")
            )
            resid = resid + block.mlp(block.ln_2(resid))
        effects[layer] = probability(resid) - before
    return effects


def resumable_sweep(
    measure: Callable[[Head], float], heads: Sequence[Head], file: Path
) -> dict[Head, float]:
    """Measure every head, and keep each number in `file` once it is there, so that
    a sweep that was cut off goes on where it stopped.

    A line of the file is one number, `[[layer, head], number]` as JSON. A line that was
    cut off while it was written doesn't count; what is written next begins a new line.
    What `measure` raises goes on to the caller, the file keeps what came before.

    Returns:
        head -> number, in the order of `heads`.
    """
    text = file.read_text() if file.exists() else ""
    done = {}
    for line in text.splitlines():
        with contextlib.suppress(ValueError):
            head, number = json.loads(line)
            done[tuple(head)] = number
    if text and not text.endswith("\n"):
        file.write_text(text + "\n")
    for head in heads:
        if head not in done:
            done[head] = float(measure(head))
            with file.open("a") as out:
                out.write(json.dumps([head, done[head]]) + "\n")
    return {head: done[head] for head in heads}


def top_heads(effects: Float[Tensor, "layer head"], n: int) -> list[Head]:
    """The `n` heads with the largest effect, best first."""
    return [
        divmod(i, effects.shape[1])
        for i in effects.flatten().argsort(descending=True)[:n].tolist()
    ]


# ---------------------------------------------------------------- the function vector


def calculate_fn_vector(
    model, dataset: ICLDataset, head_list: Sequence[Head]
) -> Float[Tensor, " d_model"]:
    """The function vector: what these heads add to the residual stream at the last
    position, mean over prompts, summed.

    Each head's mean output goes through its own slice of W_O.

    Raises:
        ValueError: the list is empty, or the model has no such head.

    Source: Todd et al. (2024), equation 5.
    """
    sizes = model.config.n_layer, model.config.n_head
    if not head_list:
        raise ValueError("a function vector needs at least one head")
    if bad := [
        head
        for head in head_list
        if not all(0 <= i < size for i, size in zip(head, sizes, strict=True))
    ]:
        raise ValueError(
            f"there is no head {bad[0]}: the model has {sizes[0]} layers of {sizes[1]} "
            "heads"
        )
    mean_z = mean_head_outputs(model, dataset)
    parts = [
        mean_z[layer, head] @ out_weights(model, layer)[head]
        for layer, head in head_list
    ]
    return torch.stack(parts).sum(dim=0).detach()


def intervene_with_fn_vector(
    model,
    word: str,
    layer: int,
    fn_vector: Float[Tensor, " d_model"],
    prompt_template: str = "- {x} ->",
    n_tokens: int = 1,
) -> tuple[str, str]:
    """What the model writes for a word, as it is and with the vector added after
    `layer` at the prompt's last token.

    Args:
        prompt_template: text with `{x}` in the word's place.
        n_tokens: how many tokens to write, greedily.

    Returns:
        The two completions, without the prompt.

    Raises:
        ValueError: the template has no place for the word.
    """
    if "{x}" not in prompt_template:
        raise ValueError(
            f"prompt_template {prompt_template!r} needs {{x}} where the word goes"
        )
    prompt = START + prompt_template.replace("{x}", word)
    length = len(model.tokenizer(prompt).input_ids)
    options = dict(max_new_tokens=n_tokens, do_sample=False, **remote_options())
    with model.generate(prompt, **options) as tracer:
        plain = tracer.result.save()
    with model.generate(prompt, **options) as tracer:
        # The first pass is the one that reads the prompt.
        layer_output(model, layer)[:, -1] += fn_vector
        steered = tracer.result.save()
    return tuple(model.tokenizer.decode(ids[0, length:]) for ids in (plain, steered))


def steer(
    model,
    prompt: str,
    layer: int,
    vector: Float[Tensor, " d_model"],
    n_tokens: int,
    strength: float = 1.0,
) -> str:
    """Text written greedily with the vector added after `layer` at every new token;
    returns what follows the prompt.
    """
    length = len(model.tokenizer(prompt).input_ids)
    with model.generate(
        prompt, max_new_tokens=n_tokens, do_sample=False, **remote_options()
    ) as tracer:
        for _ in tracer.iter[:n_tokens]:
            layer_output(model, layer)[:, -1] += strength * vector
        result = tracer.result.save()
    return model.tokenizer.decode(result[0, length:])


def accuracy(
    model,
    dataset: ICLDataset,
    vector: Float[Tensor, " d_model"] | None = None,
    layer: int | None = None,
) -> float:
    """The share of prompts whose next token is the right answer, with a vector added at
    the last position if given.

    Raises:
        ValueError: a vector without a layer to add it after.
    """
    if (vector is None) != (layer is None):
        raise ValueError("vector and layer belong together: give both or none")
    right = completion_ids(model.tokenizer, dataset.completions)
    with model.trace(dataset.prompts, **remote_options()):
        if vector is not None:
            layer_output(model, layer)[:, -1] += vector
        guesses = model.lm_head.output[:, -1].argmax(dim=-1).save()
    return (guesses.cpu() == right).float().mean().item()
