"""What an autoencoder's latents cause: sources, ablation, attribution, steering.

Sources: "Interpreting Attention Layer Outputs with Sparse Autoencoders" (arXiv
2406.17759); Neel Nanda, "Attribution Patching: Activation Patching At Industrial Scale"
(2023).
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import einops
import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE, HookedSAETransformer
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens import ActivationCache
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from transformer_lens.hook_points import HookPoint

from utils.ioi import finish_run
from utils.runtime import seed_everything
from utils.saes import acts_name, layer_of
from utils.world import Document, bos_id, parse, token_labels

__all__ = [
    "finished_sentences",
    "generate_texts",
    "labelled_batch",
    "require_hook_z",
]


def require_hook_z(sae: SAE) -> None:
    """Raises ValueError if the autoencoder doesn't read the heads' outputs."""
    if not str(sae.cfg.metadata.hook_name).endswith("hook_z"):
        raise ValueError(
            f"this autoencoder reads {sae.cfg.metadata.hook_name}: take one of hook_z, "
            "load_sae('z', layer)"
        )


def labelled_batch(
    documents: Sequence[Document], tokenizer, labels: Sequence[str], length: int
) -> tuple[
    Int[Tensor, "batch seq"], Bool[Tensor, "batch seq label"], Bool[Tensor, "batch seq"]
]:
    """Documents as one batch, cut or padded to `length` tokens: tokens, their labels,
    and which tokens count.

    `<|endoftext|>`, with which each row begins and is padded, doesn't count.
    """
    tokens = torch.full((len(documents), length), bos_id(tokenizer))
    truth = torch.zeros(len(documents), length, len(labels), dtype=torch.bool)
    for i, (ids, carried) in enumerate(token_labels(documents, tokenizer, labels)):
        tokens[i, : len(ids)], truth[i, : len(ids)] = ids[:length], carried[:length]
    return tokens, truth, tokens != tokens[0, 0]


# -------------------------------- where an attention latent reads


def attention_of_top_examples(
    latent_acts: Float[Tensor, "batch seq"], cache: ActivationCache, layer: int, k: int
) -> tuple[
    Int[Tensor, "k 2"],
    Float[Tensor, "k seqK head d_head"],
    Float[Tensor, "k head seqK"],
]:
    """The `k` rows in which a latent is most active, and what the layer's heads read at
    that place of each.

    Args:
        latent_acts: one latent's activation on every token.
        cache: of the same tokens; it holds v and the pattern of `layer`.

    Returns:
        `where`: (row, position) of the largest activation of each of the k rows, the
            strongest row first.
        `v`: the values of all positions of these rows.
        `pattern`: the attention from that position to all positions.
    """
    largest, positions = latent_acts.max(dim=1)
    rows = largest.topk(k).indices
    where = torch.stack([rows, positions[rows]], dim=1)
    v = cache["v", layer][rows]
    pattern = cache["pattern", layer][rows, :, positions[rows]]
    return where, v, pattern


def direct_feature_attribution(
    v: Float[Tensor, "k seqK head d_head"],
    pattern: Float[Tensor, "k head seqK"],
    sae: SAE,
    latent_idx: int,
) -> tuple[Float[Tensor, "k seqK head"], Float[Tensor, ""]]:
    """What each source token brings, through each head, to a latent's pre-activation;
    and what no token brings.

    The pattern is taken as it was: this says what was read, not why the heads looked
    there.

    Returns:
        `by_source`, and `bias`, the same for all examples. by_source.sum((1, 2)) + bias
        is the pre-activation.

    Source: "Interpreting Attention Layer Outputs with Sparse Autoencoders" (arXiv
    2406.17759), section 4.
    """
    # A column of the encoder holds all heads' parts, one after the other.
    W_enc = einops.rearrange(
        sae.W_enc[:, latent_idx], "(head d_head) -> head d_head", head=v.shape[2]
    )
    by_source = einops.einsum(
        pattern, v, W_enc, "k head seqK, k seqK head d_head, head d_head -> k seqK head"
    )
    bias = sae.b_enc[latent_idx]
    if sae.cfg.apply_b_dec_to_input:
        bias = bias - sae.b_dec @ sae.W_enc[:, latent_idx]
    return by_source, bias


# ---------------------------------------------------------------- what a latent writes


def latent_directions(
    model: HookedSAETransformer, sae: SAE
) -> Float[Tensor, "d_sae d_model"]:
    """What each latent of an attention autoencoder adds to the residual stream for each
    unit of its activation.

    Raises:
        ValueError: the autoencoder does not read hook_z.
    """
    require_hook_z(sae)
    W_O = model.W_O[layer_of(sae)]
    W_dec = einops.rearrange(
        sae.W_dec, "latent (head d_head) -> latent head d_head", head=model.cfg.n_heads
    )
    return einops.einsum(
        W_dec, W_O, "latent head d_head, head d_head d_model -> latent d_model"
    )


def latent_logit_attribution(
    acts: Float[Tensor, "batch d_sae"],
    directions: Float[Tensor, "d_sae d_model"],
    cache: ActivationCache,
    logit_diff_directions: Float[Tensor, "batch d_model"],
) -> Float[Tensor, "batch d_sae"]:
    """How much each latent at the last position adds, by itself, to each prompt's logit
    difference.

    Args:
        acts: the latents' activations at the last position.
        directions: what each latent writes into the residual stream for each unit of
            its activation.
        cache: of the run; it holds the scale of the final LayerNorm.
        logit_diff_directions: for each prompt the unembedding of its right answer minus
            that of the wrong one.

    The final LayerNorm takes off each vector's mean (where the model has one) and
    divides by a scale that is frozen at the value that it had.
    """
    if cache.model.cfg.normalization_type in ("LN", "LNPre"):
        directions = directions - directions.mean(dim=-1, keepdim=True)
    # One scale for each prompt, that of the last position: "batch 1".
    scale = cache["ln_final.hook_scale"][:, -1]
    along = einops.einsum(
        directions,
        logit_diff_directions,
        "latent d_model, batch d_model -> batch latent",
    )
    return acts * along / scale


# -------------------------------- cause: take a latent away


def logits_to_ave_logit_diff(
    logits: Float[Tensor, "batch seq d_vocab"],
    correct_toks: Int[Tensor, " batch"],
    incorrect_toks: Int[Tensor, " batch"],
    reduction: Literal["mean", "sum"] | None = "mean",
    keep_as_tensor: bool = False,
) -> list[float] | float | Tensor:
    """The logit of the right token minus that of the wrong one, at the last position.

    Args:
        reduction: over prompts: their mean, their sum, or None for one number each.
        keep_as_tensor: return a tensor, through which gradients flow, instead of Python
            numbers.

    Raises:
        ValueError: `reduction` is another word.
    """
    if reduction not in ("mean", "sum", None):
        raise ValueError(f"reduction is {reduction!r}: choose 'mean', 'sum' or None")
    last, rows = logits[:, -1], torch.arange(len(logits), device=logits.device)
    logit_diff = last[rows, correct_toks] - last[rows, incorrect_toks]
    if reduction is not None:
        logit_diff = logit_diff.mean() if reduction == "mean" else logit_diff.sum()
    return logit_diff if keep_as_tensor else logit_diff.tolist()


def ablate_sae_latent(
    sae_acts: Float[Tensor, "batch seq d_sae"],
    hook: HookPoint,
    latent_idx: int | None = None,
    seq_pos: int | None = None,
) -> Float[Tensor, "batch seq d_sae"]:
    """Hook for an autoencoder's latents: set one to zero at one position. None means
    all latents, all positions.
    """
    latents = slice(None) if latent_idx is None else latent_idx
    positions = slice(None) if seq_pos is None else seq_pos
    sae_acts[:, positions, latents] = 0.0
    return sae_acts


@torch.no_grad()
def ablation_sweep(
    model: HookedSAETransformer,
    sae: SAE,
    tokens: Int[Tensor, "batch seq"],
    latents: Int[Tensor, " latent"],
    metric: Callable[[Float[Tensor, "batch seq d_vocab"]], Tensor],
    seq_pos: int | None = None,
) -> Float[Tensor, " latent"]:
    """By how much the metric falls when one latent is set to zero: one run of the whole
    model for each latent.

    The autoencoder runs with its error term, so that the run without ablation is the
    model's own.

    Args:
        seq_pos: ablate at this position only; None: at all.
    """
    effects = torch.zeros(len(latents), device=tokens.device)
    with model.saes([sae], use_error_term=True):
        before = metric(model(tokens))
        for i, latent_idx in enumerate(tqdm(latents.tolist(), desc="latents ablated")):
            hook = partial(ablate_sae_latent, latent_idx=latent_idx, seq_pos=seq_pos)
            effects[i] = before - metric(
                model.run_with_hooks(tokens, fwd_hooks=[(acts_name(sae), hook)])
            )
    return effects


@torch.no_grad()
def ablation_effects(
    model: HookedSAETransformer,
    sae: SAE,
    tokens: Int[Tensor, "batch seq"],
    latents: Int[Tensor, " latent"],
    metric: Callable[[Float[Tensor, "batch seq d_vocab"]], Tensor],
    seq_pos: int,
    at_once: int = 64,
) -> Float[Tensor, " latent"]:
    """The same numbers as `ablation_sweep` at one position, many latents in each pass.

    A pass starts after the attention of the autoencoder's layer, at `seq_pos`; all
    before comes from one cached run.

    Args:
        metric: looks at the last position only.
        at_once: how many latents stand side by side in the batch.

    Raises:
        ValueError: the autoencoder does not read hook_z.
    """
    directions, layer, pos = (
        latent_directions(model, sae),
        layer_of(sae),
        seq_pos % tokens.shape[1],
    )
    after_attn = "resid_post" if model.cfg.attn_only else "resid_mid"
    kept = (
        "hook_k",
        "hook_v",
        "hook_resid_mid",
        "hook_resid_post",
        "hook_sae_acts_post",
    )
    with model.saes([sae], use_error_term=True):
        logits, cache = model.run_with_cache(
            tokens, names_filter=lambda name: name.endswith(kept)
        )
    acts = cache[acts_name(sae)][:, pos]
    effects = []
    for some in latents.split(at_once):
        lost = einops.einsum(
            acts[:, some],
            directions[some],
            "batch latent, latent d_model -> latent batch d_model",
        )
        resid_mid = cache[after_attn, layer][:, pos] - lost
        ablated = finish_run(model, resid_mid.flatten(0, 1), layer, pos, cache)
        effects += [metric(logits) - metric(copy) for copy in ablated.chunk(len(some))]
    return torch.stack(effects)


# -------------------------------- all effects from one gradient


def get_cache_fwd_and_bwd(
    model: HookedSAETransformer,
    saes: Sequence[SAE],
    tokens: Int[Tensor, "batch seq"],
    metric: Callable[[Float[Tensor, "batch seq d_vocab"]], Tensor],
) -> tuple[
    dict[str, Float[Tensor, "batch seq d_sae"]],
    dict[str, Float[Tensor, "batch seq d_sae"]],
]:
    """The latents of attached autoencoders in one run, and the gradient of the metric
    with respect to each of them.

    The autoencoders run with their error terms. Works where gradients are switched off
    for weights or as a whole.

    Args:
        metric: returns a tensor of one number.

    Returns:
        Two dictionaries, by the name of the latents' hook: activations, gradients.
    """
    acts = {}

    def keep(sae_acts: Float[Tensor, "batch seq d_sae"], hook: HookPoint):
        # No weight wants a gradient, so nothing would be recorded: the latents have to
        # ask for it.
        acts[hook.name] = sae_acts.requires_grad_()

    with torch.enable_grad(), model.saes(list(saes), use_error_term=True):
        value = metric(
            model.run_with_hooks(
                tokens, fwd_hooks=[(acts_name(sae), keep) for sae in saes]
            )
        )
        gradients = torch.autograd.grad(value, list(acts.values()))
    return {name: a.detach() for name, a in acts.items()}, dict(
        zip(acts, gradients, strict=True)
    )


def attribution_patching(
    model: HookedSAETransformer,
    sae: SAE,
    tokens: Int[Tensor, "batch seq"],
    metric: Callable[[Float[Tensor, "batch seq d_vocab"]], Tensor],
    seq_pos: int | None = None,
) -> Float[Tensor, " d_sae"]:
    """What ablating each latent would take from the metric if the model were linear:
    activation times gradient.

    One forward and one backward pass for all latents.

    Args:
        metric: its gradient is summed over prompts; a mean over prompts brings its own
            1 / batch.
        seq_pos: ablate at this position only; None: at all.

    Source: Neel Nanda, "Attribution Patching: Activation Patching At Industrial Scale"
    (2023).
    """
    acts, gradients = get_cache_fwd_and_bwd(model, [sae], tokens, metric)
    effects = acts[acts_name(sae)] * gradients[acts_name(sae)]
    return (
        effects.sum(dim=(0, 1)) if seq_pos is None else effects[:, seq_pos].sum(dim=0)
    )


# ---------------------------------------------------------------- steering


def steering_hook(
    activations: Float[Tensor, "batch seq d_model"],
    hook: HookPoint,
    direction: Float[Tensor, " d_model"],
    strength: float = 1.0,
) -> Float[Tensor, "batch seq d_model"]:
    """Hook for the residual stream: push every position along a direction, such as a
    latent's row of `W_dec`.
    """
    return activations + strength * direction


@torch.no_grad()
def generate_texts(
    model: HookedSAETransformer,
    prompt: str,
    n_texts: int,
    n_tokens: int,
    fwd_hooks: Sequence[tuple] = (),
    seed: int = 0,
    temperature: float = 1.0,
) -> list[str]:
    """Sampled texts that begin with `prompt` (which may be empty), up to and with
    `<|endoftext|>` where they end.

    Args:
        fwd_hooks: (hook name, hook function) pairs at work in every forward pass.
    """
    seed_everything(seed)
    tokenizer = model.tokenizer
    tokens = new = model.to_tokens(prompt, prepend_bos=True).repeat(n_texts, 1)
    past = TransformerLensKeyValueCache.init_cache(model.cfg, tokens.device, n_texts)
    with model.hooks(fwd_hooks=list(fwd_hooks)):
        for _ in range(n_tokens):
            # Said outright: `model.generate` would take a lone <|endoftext|> for
            # padding and hide it.
            seen = torch.ones_like(new)
            logits = model(new, past_kv_cache=past, attention_mask=seen)[:, -1]
            # Drawn on the CPU: a GPU's random numbers are others.
            probs = (logits / temperature).softmax(dim=-1).cpu()
            new = torch.multinomial(probs, num_samples=1).to(tokens.device)
            tokens = torch.cat([tokens, new], dim=1)
    end = tokenizer.eos_token
    texts = [tokenizer.decode(row).removeprefix(tokenizer.bos_token) for row in tokens]
    return [text.split(end)[0] + (end if end in text else "") for text in texts]


def finished_sentences(texts: Sequence[str], end: str = "<|endoftext|>") -> list[str]:
    """All sentences of all texts that come to their end, each with `end` behind it as
    if it were a text of its own.
    """
    found = []
    for text in texts:
        text = text.removesuffix(end)
        found += [
            sentence + end for sentence in re.findall(r"\S.*?[.?!]\"?(?=\s|$)", text)
        ]
    return found


def kind_shares(
    texts: Sequence[str], end: str = "<|endoftext|>"
) -> dict[str | None, float]:
    """Which share of the texts is a document of which kind; under None: of no kind the
    world knows.

    A text without `end` was cut off, and its last piece may be unfinished.
    """
    kinds = [
        parse(text.removesuffix(end), cut=not text.endswith(end)).kind for text in texts
    ]
    return {kind: count / len(texts) for kind, count in Counter(kinds).items()}
