"""Transcoders: sparse stand-ins of a language model's MLPs, and what they connect.

Sources: "Transcoders Find Interpretable LLM Feature Circuits" (arXiv 2406.11944);
"Transcoders Beat Sparse Autoencoders for Interpretability" (arXiv 2501.18823), skip
connections; "Finding Neurons in a Haystack" (arXiv 2305.01610), k-sparse probes.
"""

from collections.abc import Callable, Sequence
from functools import partial

import einops
import torch
from jaxtyping import Bool, Float, Int
from sae_lens.saes.transcoder import Transcoder as ReleasedTranscoder
from torch import Tensor, nn
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookPoint

from utils.saes import layer_of, next_token_losses, precision_and_recall
from utils.world import encode, fact_prompts, ioi_prompts, sample, token_labels

__all__ = [
    "answers_right",
    "check_transcoder",
    "jacobian_agreement",
    "places",
    "tasks_right",
]

CLOSERS = (" )", " ]", " }")


def places(transcoder: ReleasedTranscoder) -> tuple[str, str]:
    """The hooks at which a transcoder reads and writes."""
    metadata = transcoder.cfg.metadata
    return metadata.hook_name, metadata.hook_name_out


def check_transcoder(model: HookedTransformer, transcoder: ReleasedTranscoder) -> None:
    """Nothing where the transcoder can stand in for an MLP of the model. sae_lens
    itself logs a line, and runs without it.

    Raises:
        ValueError: the model lacks its hooks, they belong to two layers or to no MLP,
            or its vectors have another width than the model's.
    """
    reads, writes = map(str, places(transcoder))
    trained_on = (
        f"the model that it was trained on ({transcoder.cfg.metadata.model_name})"
    )
    if missing := [name for name in (reads, writes) if name not in model.hook_dict]:
        raise ValueError(
            f"the transcoder needs {missing[0]!r}, a place that this model of "
            f"{model.cfg.n_layers} layers does not have: load {trained_on}"
        )
    layer = layer_of(transcoder)
    if writes != f"blocks.{layer}.hook_mlp_out":
        raise ValueError(
            f"the transcoder reads {reads} and writes {writes}: it must write the "
            f"output of the same layer's MLP, blocks.{layer}.hook_mlp_out"
        )
    widths = (transcoder.W_enc.shape[0], transcoder.W_dec.shape[1])
    if widths != (model.cfg.d_model, model.cfg.d_model):
        raise ValueError(
            f"the transcoder reads {widths[0]} numbers and writes {widths[1]}, and "
            f"this model's stream has {model.cfg.d_model}: load {trained_on}"
        )


# ---------------------------------------------------------------- in an MLP's place


class Transcoder(nn.Module):
    """An MLP's stand-in: reads what the MLP reads, and makes what the MLP makes, from a
    few latents out of many.

    With h = x W_enc + b_enc, a latent is h where that is positive and above the
    latent's own threshold, else 0; the output is acts W_dec + b_dec, and with a skip
    connection also W_skip x.

    Args:
        skip: with a linear way past the latents, `W_skip` [d_out, d_in]; without it,
            `W_skip` is None.

    Sources: arXiv 2406.11944, section 3; skip connection: arXiv 2501.18823.
    """

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_out"]
    b_dec: Float[Tensor, " d_out"]
    threshold: Float[Tensor, " d_sae"]

    def __init__(self, d_in: int, d_out: int, d_sae: int, skip: bool = False):
        super().__init__()
        self.W_enc = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(d_in, d_sae)))
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(d_sae, d_out)))
        self.b_dec = nn.Parameter(torch.zeros(d_out))
        self.W_skip = nn.Parameter(torch.zeros(d_out, d_in)) if skip else None
        self.register_buffer("threshold", torch.zeros(d_sae))

    @classmethod
    def of(cls, released: ReleasedTranscoder) -> "Transcoder":
        """The same weights as those of sae_lens's transcoder, whose names are ours."""
        d_in, d_sae = released.W_enc.shape
        skip = hasattr(released, "W_skip")
        mine = cls(d_in, released.W_dec.shape[1], d_sae, skip).to(released.W_enc.device)
        mine.load_state_dict(released.state_dict())
        return mine.eval().requires_grad_(False)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """The latents' activations."""
        pre = x @ self.W_enc + self.b_enc
        return torch.relu(pre) * (pre > self.threshold)

    def decode(
        self, acts: Float[Tensor, "*batch d_sae"], x: Float[Tensor, "*batch d_in"]
    ) -> Float[Tensor, "*batch d_out"]:
        """The output that these activations stand for; a skip connection adds its part
        of the input x.
        """
        out = acts @ self.W_dec + self.b_dec
        return out if self.W_skip is None else out + x @ self.W_skip.T

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """What stands in for the MLP's output on x."""
        return self.decode(self.encode(x), x)


def transcoder_hooks(
    model: HookedTransformer, transcoders: Sequence[ReleasedTranscoder]
) -> list[tuple[str, Callable]]:
    """Forward hooks that put each transcoder in the place of its MLP, a skip connection
    included, for `run_with_hooks` or `model.hooks`.

    A transcoder reads at one place and writes at another (`places`), so each needs two
    hooks: the first keeps what the second works on. What was kept is let go once it was
    used.

    Raises:
        ValueError: a transcoder does not fit the model (`check_transcoder`), or two
            stand at one place.
    """
    hooks, taken = [], set()
    for transcoder in transcoders:
        check_transcoder(model, transcoder)
        reads, writes = places(transcoder)
        if writes in taken:
            raise ValueError(f"two transcoders write {writes}: give one for each layer")
        taken.add(writes)
        kept: dict[str, Tensor] = {}

        def keep(x: Tensor, hook: HookPoint, kept):
            kept["x"] = x

        # Bound by keyword: every pass of the loop has its own transcoder.
        def replace(out: Tensor, hook: HookPoint, kept, transcoder):
            return transcoder(kept.pop("x"))

        hooks.append((reads, partial(keep, kept=kept)))
        hooks.append((writes, partial(replace, kept=kept, transcoder=transcoder)))
    return hooks


@torch.no_grad()
def transcoder_metrics(
    model: HookedTransformer,
    transcoder: ReleasedTranscoder,
    tokens: Int[Tensor, "batch seq"],
) -> dict[str, float]:
    """How well a transcoder stands in for its MLP.

    `<|endoftext|>` (`model.tokenizer.bos_token_id`), with which every row begins, is
    left out of `L0`, `explained_variance`, `dead` and of the mean output.

    Returns:
        `L0`: mean number of active latents a token. `explained_variance`: 1 - (squared
        error) / (squared distance of the MLP's output from its mean), each summed over
        tokens and dimensions. `dead`: share of latents active on none of the tokens.
        `loss_clean`, `loss_transcoder`, `loss_zero`, `loss_mean`: mean loss in nats of
        the model as it is, with the transcoder, with zeros, and with the mean output in
        the MLP's place. `loss_recovered`: (loss_zero - loss_transcoder) / (loss_zero -
        loss_clean).

    Raises:
        ValueError: the transcoder does not fit the model.
    """
    hooks = transcoder_hooks(model, [transcoder])
    reads, writes = places(transcoder)
    counted = tokens != model.tokenizer.bos_token_id
    clean_logits, cache = model.run_with_cache(tokens, names_filter=[reads, writes])
    x, out = cache[reads], cache[writes]
    acts = transcoder.encode(x)
    mean = out[counted].mean(dim=0)
    error = (out - transcoder(x))[counted].pow(2).sum()

    def put(value: Tensor) -> Tensor:
        hook = (writes, lambda out, hook: value.expand_as(out))
        return model.run_with_hooks(tokens, fwd_hooks=[hook])

    logits = {
        "clean": clean_logits,
        "transcoder": model.run_with_hooks(tokens, fwd_hooks=hooks),
        "zero": put(torch.zeros_like(mean)),
        "mean": put(mean),
    }
    loss = {
        f"loss_{key}": next_token_losses(value, tokens).mean().item()
        for key, value in logits.items()
    }
    active = (acts > 0)[counted]
    return {
        "L0": active.sum(dim=-1).float().mean().item(),
        "explained_variance": 1 - (error / (out[counted] - mean).pow(2).sum()).item(),
        "dead": 1 - active.any(dim=0).float().mean().item(),
        **loss,
        "loss_recovered": (loss["loss_zero"] - loss["loss_transcoder"])
        / (loss["loss_zero"] - loss["loss_clean"]),
    }


# ---------------------------------------------------------------- tasks with answers


@torch.no_grad()
def answers_right(
    run: Callable[[Tensor], Tensor], tokenizer, prompts: Sequence[tuple[str, str]]
) -> float:
    """Share of (prompt, answer) whose answer's first token is the likeliest next one.

    Args:
        run: from tokens [batch seq], on the CPU, to logits.
    """
    ids = [[0, *e.ids] for e in encode(tokenizer, [prompt for prompt, _ in prompts])]
    answers = [e.ids[0] for e in encode(tokenizer, [answer for _, answer in prompts])]
    tokens = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long)
    for row, prompt in zip(tokens, ids, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    last = torch.tensor([len(prompt) - 1 for prompt in ids])
    # What pads a row stands behind its last token, which does not see it.
    logits = torch.cat([run(some).cpu() for some in tokens.split(64)])
    top = logits[torch.arange(len(ids)), last].argmax(-1)
    return (top == torch.tensor(answers)).float().mean().item()


@torch.no_grad()
def tasks_right(run: Callable[[Tensor], Tensor], tokenizer) -> dict[str, float]:
    """Shares of right answers: capitals, indirect objects (held-out names, among the
    whole vocabulary), and closing brackets (the right one of the three, where one comes
    next in held-out documents).
    """
    indirect = [(p.clean, p.io) for p in ioi_prompts(60, seed=0)]
    found = {
        "capitals": answers_right(run, tokenizer, fact_prompts("capital")),
        "indirect objects": answers_right(run, tokenizer, indirect),
    }
    closers = torch.tensor([e.ids[0] for e in encode(tokenizer, CLOSERS)])
    hits: list[Bool[Tensor, " place"]] = []
    for tokens, truth in token_labels(
        sample(40, 45_000, kinds=["brackets"]), tokenizer, ["close_bracket"]
    ):
        tokens, truth = tokens[:128], truth[:128, 0]
        right = (tokens[1:, None] == closers) & truth[1:, None]
        places = right.any(-1)
        scores = run(tokens[None])[0, :-1].cpu()[:, closers]
        hits.append(scores.argmax(-1)[places] == right.int().argmax(-1)[places])
    return found | {"closing brackets": torch.cat(hits).float().mean().item()}


# ---------------------------------------------------------------- what the latents are


def k_sparse_f1(
    values: Float[Tensor, "token unit"], labels: Bool[Tensor, "token label"], k: int
) -> Float[Tensor, " label"]:
    """How well k units together tell each label: F1 of a linear probe that sees only
    them.

    For each label the k units are chosen whose mean differs most between tokens with
    and without it, in units of the unit's own standard deviation. The probe is the
    least-squares fit of the label (0 or 1) by these units and a constant; its
    threshold is the one with the best F1. All this on the first half of the tokens; the
    F1 is that of the second half, and 0 where nothing is found.

    Source: "Finding Neurons in a Haystack" (arXiv 2305.01610), section 3; units by
    difference of means.
    """
    half = len(values) // 2
    x, truth = values[:half], labels[:half].to(values.dtype)
    n = truth.sum(0)
    with_label = truth.T @ x / n.clamp_min(1)[:, None]
    without = (x.sum(0) - truth.T @ x) / (half - n).clamp_min(1)[:, None]
    spread = x.std(0)
    contrast = (with_label - without).abs() / spread.clamp_min(1e-6)
    units = contrast.topk(k, dim=1).indices
    scores = []
    for label, chosen in enumerate(units):
        seen = torch.cat([values[:, chosen], torch.ones_like(values[:, :1])], dim=1)
        gram = seen[:half].T @ seen[:half] + 1e-4 * torch.eye(k + 1).to(x)
        weights = torch.linalg.solve(gram, seen[:half].T @ truth[:, label])
        scores.append(seen @ weights)
    own = torch.arange(labels.shape[1], device=values.device)
    precision, recall = precision_and_recall(torch.stack(scores, dim=1), labels, own)
    return 2 * precision * recall / (precision + recall).clamp_min(1e-9)


def de_embedding(
    model: HookedTransformer, transcoder: ReleasedTranscoder, extended: bool = False
) -> Float[Tensor, "d_vocab d_sae"]:
    """Each latent's pre-activation on each token of the vocabulary that stands alone:
    no position, and no attention.

    The token's embedding goes through the LayerNorm before the transcoder's MLP, and
    through the encoder with its bias.

    Args:
        extended: the embedding and what the MLP of layer 0 makes of it, added up, as a
            later layer finds it; in a tied model, the embedding alone is half made for
            the unembedding.

    Raises:
        ValueError: an extended one of layer 0, which nothing comes before.

    Source: arXiv 2406.11944, section 4.1; extended embedding: arXiv 2305.01610,
    appendix, and others since.
    """
    layer = layer_of(transcoder)
    if extended and layer == 0:
        raise ValueError("layer 0's MLP reads no other MLP: take extended=False")
    vectors = model.W_E
    if extended:
        first = model.blocks[0]
        vectors = vectors + first.mlp(first.ln2(vectors[None]))[0]
    read = model.blocks[layer].ln2(vectors[None])[0]
    return read @ transcoder.W_enc + transcoder.b_enc


def mlp_jacobian(
    model: HookedTransformer, layer: int, x: Float[Tensor, "token d_model"]
) -> Float[Tensor, "token d_model d_model"]:
    """The derivative of an MLP's output with respect to its input, at each input:
    result[t, i, o] is that of output o by input i.

    In closed form: W_in, the activation function's slope at each neuron, W_out. For the
    small models here; the result holds d_model² numbers a token.
    """
    mlp = model.blocks[layer].mlp
    pre = (x @ mlp.W_in + mlp.b_in).detach().requires_grad_(True)
    with torch.enable_grad():
        (slope,) = torch.autograd.grad(mlp.act_fn(pre).sum(), pre)
    return einops.einsum(
        mlp.W_in, slope, mlp.W_out, "i neuron, token neuron, neuron o -> token i o"
    )


@torch.no_grad()
def jacobian_agreement(
    model: HookedTransformer,
    transcoder: ReleasedTranscoder,
    x: Float[Tensor, "token d_model"],
) -> Float[Tensor, " token"]:
    """How much alike MLP and transcoder react to a small change of each input: the
    cosine of their two Jacobians, taken as long vectors.

    On one side of its thresholds a transcoder is linear: its Jacobian is W_enc W_dec of
    the active latents alone, and W_skip's transpose where there is one.
    """
    theirs = mlp_jacobian(model, layer_of(transcoder), x)
    active = (transcoder.encode(x) > 0).to(x.dtype)
    ours = einops.einsum(
        transcoder.W_enc,
        active,
        transcoder.W_dec,
        "i latent, token latent, latent o -> token i o",
    )
    if hasattr(transcoder, "W_skip"):
        ours = ours + transcoder.W_skip.T
    return torch.cosine_similarity(theirs.flatten(1), ours.flatten(1), dim=1)


# ---------------------------------------------------------------- what they connect


def connections(
    earlier: ReleasedTranscoder, later: ReleasedTranscoder
) -> Float[Tensor, "earlier later"]:
    """What each earlier latent gives to each later latent's pre-activation along the
    residual stream, for each unit of its activation, before the LayerNorm's division:
    one number for all inputs.

    LayerNorm takes the mean off what it reads, so the decoder's rows come without
    theirs.

    Raises:
        ValueError: the second transcoder's layer does not come after the first's.

    Source: arXiv 2406.11944, section 4.2, "input-independent".
    """
    if layer_of(earlier) >= layer_of(later):
        raise ValueError(
            f"layer {layer_of(later)} does not read what layer {layer_of(earlier)} "
            "writes: give the earlier transcoder first"
        )
    W_dec = earlier.W_dec - earlier.W_dec.mean(dim=1, keepdim=True)
    return W_dec @ later.W_enc


def contributions(
    acts: Float[Tensor, "batch seq earlier"],
    scale: Float[Tensor, "batch seq 1"],
    earlier: ReleasedTranscoder,
    later: ReleasedTranscoder,
    latent: int,
) -> Float[Tensor, "batch seq earlier"]:
    """What each earlier latent gave to one later latent's pre-activation on each token
    of this input, at the token's own position.

    Args:
        acts: the earlier latents' activations.
        scale: what the LayerNorm before the later MLP divided by, its `hook_scale`.

    Raises:
        ValueError: as `connections`.

    Source: arXiv 2406.11944, section 4.2, "input-dependent".
    """
    return acts * connections(earlier, later)[:, latent] / scale
