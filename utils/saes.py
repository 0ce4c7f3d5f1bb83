"""A language model's sparse autoencoders: how good, and what their latents stand for.

Sources: "Towards Monosemanticity" (transformer-circuits.pub, 2023), "Scaling and
evaluating sparse autoencoders" (arXiv 2406.04093), "Automatically Interpreting Millions
of Features in Large Language Models" (arXiv 2410.13928).
"""

import re
import warnings
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import einops
import torch
from jaxtyping import Bool, Float, Int, Shaped
from sae_lens import SAE, ActivationsStore, HookedSAETransformer
from torch import Tensor

from utils.world import LABELS, Document, token_labels

__all__ = [
    "Example",
    "acts_name",
    "check_fits",
    "labelled_rows",
    "layer_of",
    "next_token_losses",
    "precision_and_recall",
    "token_batches",
    "unit_thresholds",
]


def layer_of(sae: SAE) -> int:
    """The layer that an autoencoder belongs to, from the name of its hook.

    Raises:
        ValueError: the hook's name has no layer.
    """
    name = sae.cfg.metadata.hook_name
    if not (found := re.match(r"blocks\.(\d+)\.", str(name))):
        raise ValueError(
            f"the autoencoder's hook is {name!r}: set sae.cfg.metadata.hook_name to "
            "'blocks.LAYER. …'"
        )
    return int(found[1])


def acts_name(sae: SAE) -> str:
    """The hook of an attached autoencoder's latents, after their activation."""
    return f"{sae.cfg.metadata.hook_name}.hook_sae_acts_post"


@torch.no_grad()
def check_fits(model: HookedSAETransformer, sae: SAE) -> None:
    """Nothing where the autoencoder can be attached to the model. sae_lens itself only
    warns, and runs without it.

    That it was trained on *this* model no shape can tell: a low explained variance does
    (`sae_metrics`).

    Raises:
        ValueError: the model has no such hook, another autoencoder holds it, its
            vectors have another width, or hooks hang on the autoencoder itself.
    """
    name = sae.cfg.metadata.hook_name
    if name in model.acts_to_saes:
        raise ValueError(
            f"an autoencoder is attached at {name} already: call model.reset_hooks(), "
            "then model.reset_saes()"
        )
    # The model does not reach them once the autoencoder is taken off.
    if any(point.fwd_hooks or point.bwd_hooks for point in sae.hook_dict.values()):
        raise ValueError(
            "hooks hang on the autoencoder itself, left there while it was attached: "
            "call its own reset_hooks()"
        )
    if name not in model.hook_dict:
        raise ValueError(
            f"the autoencoder reads {name!r}, a place that this model of "
            f"{model.cfg.n_layers} layers does not have: "
            f"load the model that it was trained on ({sae.cfg.metadata.model_name})"
        )
    _, cache = model.run_with_cache(
        torch.zeros(1, 1, dtype=torch.long, device=model.cfg.device), names_filter=name
    )
    if (width := cache[name][0, 0].numel()) != sae.cfg.d_in:
        raise ValueError(
            f"the autoencoder reads vectors of {sae.cfg.d_in} numbers, and {name} has "
            f"{width} in this model: "
            f"load the model that it was trained on ({sae.cfg.metadata.model_name})"
        )


# -------------------------------- what the latents are, and how good


@torch.no_grad()
def get_sae_acts(
    model: HookedSAETransformer, sae: SAE, tokens: Int[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq d_sae"]:
    """The activation of every latent on every token.

    Raises:
        ValueError: the autoencoder does not fit the model.
    """
    check_fits(model, sae)
    name = acts_name(sae)
    # The layers above are not needed.
    _, cache = model.run_with_cache_with_saes(
        tokens, saes=[sae], names_filter=name, stop_at_layer=layer_of(sae) + 1
    )
    return cache[name]


def next_token_losses(
    logits: Float[Tensor, "batch seq d_vocab"], tokens: Int[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq-1"]:
    """The cross entropy of each next token, in nats."""
    log_probs = logits[:, :-1].log_softmax(dim=-1)
    return -log_probs.gather(-1, tokens[:, 1:, None]).squeeze(-1)


@torch.no_grad()
def sae_metrics(
    model: HookedSAETransformer, sae: SAE, tokens: Int[Tensor, "batch seq"]
) -> dict[str, float]:
    """How well an autoencoder stands in for the activation that it was trained on.

    `<|endoftext|>` (`model.tokenizer.bos_token_id`), with which every row begins, is
    left out of `L0` and `explained_variance`: its activation is the longest of all and
    always nearly the same, so that rebuilding it would flatter.

    Returns:
        `L0`: mean number of active latents a token. `explained_variance`: 1 - (squared
        error) / (squared distance from the mean activation), each summed over tokens
        and dimensions. `loss_clean`, `loss_sae`, `loss_zero`: mean loss in nats of the
        model as it is, with the autoencoder's output in place of the activation, with
        zeros there.
        `loss_recovered`: (loss_zero - loss_sae) / (loss_zero - loss_clean). `dead`:
        share of latents that are active on none of the tokens.

    Raises:
        ValueError: the autoencoder does not fit the model, or a row does not begin with
            `<|endoftext|>`.

    Source: "Scaling and evaluating sparse autoencoders" (arXiv 2406.04093), section 4.
    """
    check_fits(model, sae)
    name = sae.cfg.metadata.hook_name
    counted = tokens != model.tokenizer.bos_token_id
    if counted[:, 0].any():
        raise ValueError("a row does not begin with <|endoftext|>: put it before each")
    clean_logits, cache = model.run_with_cache(tokens, names_filter=name)
    acts = sae.encode(cache[name])
    # hook_z is [batch seq head d_head]: the heads side by side are one vector.
    x, recon = (t.flatten(2)[counted] for t in (cache[name], sae.decode(acts)))
    unexplained = (x - recon).pow(2).sum() / (x - x.mean(dim=0)).pow(2).sum()

    def zero(activation, hook):
        return torch.zeros_like(activation)

    logits = {
        "clean": clean_logits,
        "sae": model.run_with_saes(tokens, saes=[sae]),
        "zero": model.run_with_hooks(tokens, fwd_hooks=[(name, zero)]),
    }
    loss = {
        f"loss_{key}": next_token_losses(value, tokens).mean().item()
        for key, value in logits.items()
    }
    active = acts > 0
    return {
        "L0": active[counted].sum(dim=-1).float().mean().item(),
        "explained_variance": 1 - unexplained.item(),
        **loss,
        "loss_recovered": (loss["loss_zero"] - loss["loss_sae"])
        / (loss["loss_zero"] - loss["loss_clean"]),
        "dead": 1 - active.flatten(0, 1).any(dim=0).float().mean().item(),
    }


# ---------------------------------------------------------------- dashboards


def token_batches(
    act_store: ActivationsStore, total_batches: int
) -> list[Int[Tensor, "batch seq"]]:
    """The store's next `total_batches` batches of tokens, no row twice.

    At the end of its data set a store begins again without a word: the same row would
    be counted, or shown, twice.

    Raises:
        ValueError: the data set is shorter than these batches.
    """
    size = act_store.store_batch_size_prompts
    if act_store.is_dataset_tokenized and hasattr(act_store.dataset, "__len__"):
        rows = len(act_store.dataset)
        if total_batches * size > rows:
            raise ValueError(
                f"{total_batches} batches of {size} rows are more than the data set's "
                f"{rows}: ask for at most "
                f"{rows // size} batches, give the store more documents, or a smaller "
                "store_batch_size_prompts"
            )
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="To copy construct"
        )  # sae_lens copies tensors as torch advises not to
        return [act_store.get_batch_tokens() for _ in range(total_batches)]


def positive_activations(
    model: HookedSAETransformer,
    sae: SAE,
    act_store: ActivationsStore,
    latent_idx: int,
    total_batches: int,
) -> tuple[Float[Tensor, " active"], float]:
    """What a latent's histogram is drawn from.

    Returns:
        The latent's activation on all tokens on which it is active, and the share of
        all tokens that these are.
    """
    acts = [
        get_sae_acts(model, sae, tokens)[..., latent_idx]
        for tokens in token_batches(act_store, total_batches)
    ]
    acts = torch.cat(acts)
    return acts[acts > 0], (acts > 0).float().mean().item()


def get_k_largest_indices(
    x: Float[Tensor, "batch seq"], k: int, buffer: int = 0, no_overlap: bool = True
) -> Int[Tensor, "k 2"]:
    """Where the `k` largest values are, the largest first, as (row, position).

    Args:
        buffer: only places that have this many tokens on either side in their row.
        no_overlap: no two places whose windows (the place and `buffer` tokens on either
            side) share a token. There may be fewer than k of them.

    Raises:
        ValueError: no window fits into a row.
    """
    width = x.shape[1] - 2 * buffer
    if buffer < 0 or width < 1:
        raise ValueError(
            f"{buffer} tokens on either side do not fit into rows of {x.shape[1]}: "
            f"take a buffer from 0 to {(x.shape[1] - 1) // 2}"
        )
    order = (
        x[:, buffer : buffer + width].flatten().argsort(descending=True, stable=True)
    )
    places = torch.stack([order // width, order % width + buffer], dim=1)
    if not no_overlap:
        return places[:k]
    chosen: list[list[int]] = []
    for row, position in zip(*places.T.tolist(), strict=True):
        if len(chosen) == k:
            break
        if all(row != r or abs(position - p) > 2 * buffer for r, p in chosen):
            chosen.append([row, position])
    return torch.tensor(chosen, dtype=torch.long, device=x.device).reshape(-1, 2)


def index_with_buffer(
    x: Shaped[Tensor, "batch seq"], indices: Int[Tensor, "k 2"], buffer: int
) -> Shaped[Tensor, "k window"]:
    """For each (row, position), what stands there and `buffer` places to either side:
    window = 2 · buffer + 1.

    Raises:
        ValueError: a window reaches beyond its row.
    """
    row, position = indices.unbind(dim=1)
    window = position[:, None] + torch.arange(-buffer, buffer + 1, device=x.device)
    if window.numel() and (window.min() < 0 or window.max() >= x.shape[1]):
        raise ValueError(
            f"a window of {buffer} tokens on either side reaches beyond a row of "
            f"{x.shape[1]}"
        )
    return x[row[:, None], window]


class Example(NamedTuple):
    """A window of text around the token in its middle, and a latent's activation on
    each of its tokens.
    """

    tokens: list[str]
    acts: Float[Tensor, " window"]


def fetch_max_activating_examples(
    model: HookedSAETransformer,
    sae: SAE,
    act_store: ActivationsStore,
    latent_idx: int,
    total_batches: int,
    k: int = 10,
    buffer: int = 8,
) -> list[Example]:
    """The `k` windows of text with a latent's largest activations in their middle, the
    largest first; none overlap.

    Windows in whose middle the latent is not active are left out: a dead latent has no
    examples.
    """
    batches = token_batches(act_store, total_batches)
    acts = torch.cat(
        [get_sae_acts(model, sae, tokens)[..., latent_idx] for tokens in batches]
    )
    indices = get_k_largest_indices(acts, k, buffer)
    windows = (
        index_with_buffer(torch.cat(batches), indices, buffer),
        index_with_buffer(acts, indices, buffer),
    )
    return [
        Example(model.to_str_tokens(t), a)
        for t, a in zip(*windows, strict=True)
        if a[buffer] > 0
    ]


def logit_weights(
    model: HookedSAETransformer, sae: SAE, latent_idx: int
) -> Float[Tensor, " d_vocab"]:
    """What a latent adds to each token's logit for each unit of its activation, along
    the direct path.

    The direct path leaves out what the layers above make of it, and the final
    LayerNorm's division: that one is the same for all tokens of the vocabulary, so it
    does not change their order. Its weights are in `W_U` of a processed model. A latent
    of the heads' outputs goes through `W_O` first.
    """
    direction = sae.W_dec[latent_idx]
    if sae.cfg.metadata.hook_name.endswith("hook_z"):
        W_O = model.W_O[layer_of(sae)]
        by_head = direction.reshape(W_O.shape[:2])
        direction = einops.einsum(
            by_head, W_O, "head d_head, head d_head d_model -> d_model"
        )
    return direction @ model.W_U


# ---------------------------------------------------------------- ground truth


def labelled_rows(
    documents: Sequence[Document],
    tokenizer,
    context: int,
    labels: Sequence[str] = tuple(LABELS),
) -> tuple[Int[Tensor, "row context"], Bool[Tensor, "row context label"]]:
    """Documents packed into rows as in training (`utils.world.rows`), and which labels
    hold on each token.

    Raises:
        ValueError: the documents do not fill one row.
    """
    rows, row = [], []
    for document in token_labels(documents, tokenizer, labels):
        row.append(document)
        if sum(len(tokens) for tokens, _ in row) >= context:
            rows.append(
                [torch.cat(parts)[:context] for parts in zip(*row, strict=True)]
            )
            row = []
    if not rows:
        raise ValueError(
            f"{len(documents)} documents do not fill a row of {context} tokens: give "
            "more of them"
        )
    tokens, truth = zip(*rows, strict=True)
    return torch.stack(tokens), torch.stack(truth)


@torch.no_grad()
def f1_scores(
    values: Float[Tensor, "token unit"],
    labels: Bool[Tensor, "token label"],
    thresholds: Float[Tensor, "threshold unit"],
) -> Float[Tensor, "threshold label unit"]:
    """F1 of each unit as a detector of each label: "the label holds where the value is
    at least the threshold".

    F1 = 2 · hits / (2 · hits + false alarms + misses); 0 where there are no hits.
    """
    truth = labels.float()
    scores = []
    # One buffer for all thresholds: a new one for each would take as long as the rest.
    fires = torch.empty_like(values, dtype=truth.dtype)
    for threshold in thresholds:
        torch.ge(values, threshold, out=fires)
        # Counts are whole: rounded, equal scores stay equal on every machine.
        hits, firings = (truth.T @ fires).round(), fires.sum(0).round()
        # Hits and false alarms together are all firings, hits and misses all labelled
        # tokens.
        scores.append(2 * hits / (firings + labels.sum(0)[:, None]).clamp_min(1))
    return torch.stack(scores)


def unit_thresholds(
    values: Float[Tensor, "token unit"], n: int = 14
) -> Float[Tensor, "n unit"]:
    """`n` thresholds for each unit, from the one that all its non-zero values reach to
    the one that few do.

    The share of the non-zero values that reach a threshold falls in even ratios from 1
    to 1/1000. So a unit that is hardly ever 0, as a neuron, may detect rare labels too.
    A unit that is always 0 gets infinity: it never fires.
    """
    # Each unit's values next to each other in memory are sorted several times faster.
    by_unit = values.T.contiguous()
    # Zeros go last.
    ranked = by_unit.masked_fill(by_unit == 0, torch.inf).sort(dim=1).values.T
    n_values = (values != 0).sum(0)
    shares = torch.logspace(0, -3, n, dtype=torch.float64, device=values.device)
    # A whole number stays what it is, however its share was rounded.
    n_firings = (n_values * shares[:, None] - 1e-6).ceil().long()
    return ranked.gather(0, n_values - n_firings)


def best_units(
    values: Float[Tensor, "token unit"],
    labels: Bool[Tensor, "token label"],
    n: int = 14,
) -> tuple[Int[Tensor, " label"], Float[Tensor, " label"]]:
    """For each label the unit that detects it best, and its F1 on tokens that had no
    say in the choice.

    Unit and threshold are chosen on the first half of the tokens and scored on the
    second half. Else a thousand units with a dozen thresholds each would find something
    in any label.
    """
    half = len(values) // 2
    thresholds = unit_thresholds(values[:half], n)
    scores = f1_scores(values[:half], labels[:half], thresholds)
    choice = einops.rearrange(scores, "n label unit -> label (n unit)").argmax(dim=-1)
    level, unit = choice // values.shape[1], choice % values.shape[1]
    fires = values[half:, unit] >= thresholds[level, unit]
    truth = labels[half:]
    hits = (fires & truth).sum(0)
    return unit, 2 * hits / (fires.sum(0) + truth.sum(0)).clamp_min(1)


def precision_and_recall(
    values: Float[Tensor, "token unit"],
    labels: Bool[Tensor, "token label"],
    unit: Int[Tensor, " label"],
    n: int = 14,
) -> tuple[Float[Tensor, " label"], Float[Tensor, " label"]]:
    """Of each label's own unit: how often it is right where it fires, and how much of
    the label it finds.

    The threshold is chosen on the first half of the tokens, by F1, as in `best_units`;
    the second half is scored.
    """
    fires, truth = fires_on_second_half(values[:, unit], labels, n)
    hits = (fires & truth).sum(0)
    return hits / fires.sum(0).clamp_min(1), hits / truth.sum(0).clamp_min(1)


def fires_on_second_half(
    own: Float[Tensor, "token label"], labels: Bool[Tensor, "token label"], n: int
) -> tuple[Bool[Tensor, "half label"], Bool[Tensor, "half label"]]:
    """Where each label's own column fires in the second half of the tokens, at the one
    of `n` thresholds that is best by F1 on the first half; and the labels there."""
    half = len(own) // 2
    thresholds = unit_thresholds(own[:half], n)
    scores = f1_scores(own[:half], labels[:half], thresholds).diagonal(dim1=1, dim2=2)
    return own[half:] >= thresholds.gather(0, scores.argmax(dim=0)[None]), labels[half:]


def by_document(
    values: Shaped[Tensor, "row seq unit"],
    tokens: Int[Tensor, "row seq"],
    end: int,
    least: int = 8,
) -> Shaped[Tensor, "document unit"]:
    """The largest value of each unit in each document, in the order of the text; of yes
    and no, "is it ever yes?".

    A row begins with the token `end`, which also parts the documents in it and belongs
    to none. Pieces of fewer than `least` tokens, cut by a row's end, are left out.

    Raises:
        ValueError: a row does not begin with `end`, or no piece is long enough.
    """
    if (tokens[:, 0] != end).any():
        raise ValueError(
            f"a row must begin with token {end}, which parts the documents"
        )
    inside = tokens != end
    number = (
        (~inside).flatten().cumsum(0)[inside.flatten()]
    )  # of the document that a token belongs to
    pieces = values[inside].split(torch.bincount(number).tolist())
    long_enough = [piece.amax(dim=0) for piece in pieces if len(piece) >= least]
    if not long_enough:
        raise ValueError(
            f"no document has {least} tokens: give longer rows or a smaller `least`"
        )
    return torch.stack(long_enough)


def greedy_cover(
    fires: Bool[Tensor, "token latent"], label: Bool[Tensor, " token"], n: int
) -> tuple[list[int], list[float]]:
    """Up to `n` latents that together detect a label: "it holds where any of them
    fires".

    Starts with the best single latent and adds, again and again, the one that raises
    the F1 of all together most; stops where none raises it.

    Returns:
        The latents in the order in which they were added, and the F1 after each.
    """
    chosen, history = [], [0.0]
    covered = torch.zeros_like(label)
    numbers = fires.float()
    while len(chosen) < n:
        # Only what the chosen ones leave over can change: firings there, and hits.
        left = torch.stack([~covered, ~covered & label]).float()
        new, new_hits = (left @ numbers).round()  # counts
        hits = (covered & label).sum() + new_hits
        f1 = 2 * hits / (covered.sum() + new + label.sum()).clamp_min(1)
        best = f1.argmax().item()
        if f1[best].item() <= history[-1]:
            break
        chosen.append(best)
        history.append(f1[best].item())
        covered = covered | fires[:, best]
    return chosen, history[1:]


# ---------------------------------------------------------------- auto-interpretation


def create_prompt(examples: Sequence[Example], threshold: float = 0.3) -> str:
    """The examples as a language model gets them: one a line, with a number, what is
    active between << and >>.

    A token is marked where its activation is more than `threshold` of the largest in
    all examples. Marked tokens next to each other share one pair of marks. Line ends in
    the text are written ↵.

    Source: "Automatically Interpreting Millions of Features in Large Language Models"
    (arXiv 2410.13928), section 3.1.

    Raises:
        ValueError: no examples.
    """
    if not examples:
        raise ValueError(
            "no examples: the latent was not active; look at more text, or take "
            "another latent"
        )
    limit = threshold * max(example.acts.max().item() for example in examples)
    lines = []
    for number, (tokens, acts) in enumerate(examples, start=1):
        groups = groupby(
            zip(tokens, acts.tolist(), strict=True), key=lambda pair: pair[1] > limit
        )
        pieces = [
            (active, "".join(token for token, _ in group)) for active, group in groups
        ]
        line = "".join(f"<<{text}>>" if active else text for active, text in pieces)
        lines.append(f"{number}. {line}".replace("\n", "↵"))
    return "\n".join(lines)


def detection_score(
    said: Bool[Tensor, " text"], active: Bool[Tensor, " text"]
) -> float:
    """How well an explanation tells texts on which a latent is active from others:
    balanced accuracy.

    The mean of two shares: of the active texts that it finds, and of the others that it
    leaves alone. Knowing nothing scores 0.5, however many texts of either kind there
    are.

    Source: "Automatically Interpreting Millions of Features in Large Language Models"
    (arXiv 2410.13928), section 3.2.

    Raises:
        ValueError: texts of one kind only.
    """
    if active.all() or not active.any():
        raise ValueError(
            "the texts are all of one kind: give some on which the latent is active "
            "and some others"
        )
    found, left_alone = said[active].float().mean(), (~said[~active]).float().mean()
    return ((found + left_alone) / 2).item()


def simulation_score(
    simulated: Float[Tensor, "text seq"], acts: Float[Tensor, "text seq"]
) -> float:
    """How well activations guessed from an explanation follow the true ones: their
    correlation over all tokens.

    0 where either does not vary at all. The scale of the guess is free.

    Source: "Language models can explain neurons in language models" (OpenAI, 2023).
    """
    if simulated.min() == simulated.max() or acts.min() == acts.max():
        return 0.0
    guess, truth = (x.flatten() - x.mean() for x in (simulated, acts))
    return (guess @ truth / (guess.norm() * truth.norm())).item()
