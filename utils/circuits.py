"""Circuits of latents: gradients between autoencoders' latents, tokens and logits.

Sources: "Sparse Feature Circuits" (arXiv 2403.19647); the exercises of ARENA, chapter
1.3.2, whose names and shapes are kept.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import einops
import torch
from jaxtyping import Float, Int
from sae_lens import SAE, HookedSAETransformer
from torch import Tensor

from utils.saes import check_fits, layer_of

__all__ = [
    "check_order",
    "latent_acts_to_logits",
    "place_after",
    "tokens_to_latent_acts",
]


def place_after(sae: SAE) -> int:
    """The number of blocks below an autoencoder's place in the residual stream: 2 for
    `blocks.2.hook_resid_pre`, 4 for `blocks.3.hook_resid_post`.

    Raises:
        ValueError: it stands at another place.
    """
    name = str(sae.cfg.metadata.hook_name)
    for end, more in (("hook_resid_pre", 0), ("hook_resid_post", 1)):
        if name.endswith(end):
            return layer_of(sae) + more
    raise ValueError(
        f"the autoencoder reads {name}: take one of the residual stream, "
        "load_sae('resid', layer)"
    )


def check_order(model: HookedSAETransformer, sae_from: SAE, sae_to: SAE) -> None:
    """Nothing where both fit the model and the second stands above the first.

    Raises:
        ValueError: one does not fit, is not of the residual stream, or their order is
            wrong.
    """
    for sae in (sae_from, sae_to):
        check_fits(model, sae)
    if place_after(sae_from) >= place_after(sae_to):
        raise ValueError(
            f"{sae_to.cfg.metadata.hook_name} does not come after "
            f"{sae_from.cfg.metadata.hook_name}: give the earlier autoencoder first"
        )


@dataclass
class SparseTensor:
    """One tensor in two forms: whole (`dense`), and as its non-zero values with their
    places (`values`, `indices`).

    A Jacobian of all latents of all tokens by all others would hold billions of zeros;
    of those that are not zero it fits.
    """

    dense: Float[Tensor, "*shape"]
    values: Float[Tensor, " nonzero"]
    indices: Int[Tensor, "nonzero ndim"]

    @property
    def shape(self) -> torch.Size:
        """The whole tensor's shape."""
        return self.dense.shape

    @classmethod
    def from_dense(cls, dense: Float[Tensor, "*shape"]) -> "SparseTensor":
        """From the whole tensor: what is not zero, in the order of reading.

        Raises:
            ValueError: it is zero everywhere.
        """
        indices = dense.nonzero()
        if not len(indices):
            raise ValueError(
                "nothing is active: give another text, or an active latent"
            )
        return cls(dense, dense[indices.unbind(dim=1)], indices)

    @classmethod
    def from_sparse(
        cls,
        values: Float[Tensor, " nonzero"],
        indices: Int[Tensor, "nonzero ndim"],
        shape: Sequence[int],
    ) -> "SparseTensor":
        """From values and places; all else is zero. Gradients of the whole tensor reach
        the values.

        Raises:
            ValueError: as many values as places are needed, each within the shape.
        """
        if len(values) != len(indices):
            raise ValueError(
                f"{len(values)} values and {len(indices)} places: give one for each"
            )
        limits = torch.tensor(tuple(shape), device=indices.device)
        if indices.shape[1] != len(limits) or (indices >= limits).any():
            raise ValueError(f"a place lies outside the shape {tuple(shape)}")
        dense = torch.zeros(tuple(shape), dtype=values.dtype, device=values.device)
        # A new tensor, not one changed in place: so that torch.func can go through it.
        return cls(dense.index_put(indices.unbind(dim=1), values), values, indices)


def latent_acts_to_later_latent_acts(
    latent_acts: Float[Tensor, " nonzero"],
    indices: Int[Tensor, "nonzero 3"],
    shape: Sequence[int],
    sae_from: SAE,
    sae_to: SAE,
    model: HookedSAETransformer,
    error: Float[Tensor, "batch seq d_model"] | None = None,
) -> Float[Tensor, "batch seq d_sae_to"]:
    """Which latents of a later autoencoder come of these latents of an earlier one: the
    stream is rebuilt from them and runs through the blocks between.

    Args:
        latent_acts, indices, shape: as in `SparseTensor`; shape is "batch seq d_sae".
        error: added to the rebuilt stream, which is the true one then.
    """
    acts = SparseTensor.from_sparse(latent_acts, indices, shape).dense
    stream = sae_from.decode(acts)
    if error is not None:
        stream = stream + error
    later = model(
        stream, start_at_layer=place_after(sae_from), stop_at_layer=place_after(sae_to)
    )
    return sae_to.encode(later)


def latent_to_latent_gradients(
    tokens: Int[Tensor, "1 seq"],
    sae_from: SAE,
    sae_to: SAE,
    model: HookedSAETransformer,
    chunk_size: int | None = 64,
    with_error: bool = True,
) -> tuple[Float[Tensor, "n_from n_to"], SparseTensor, SparseTensor]:
    """How each active latent of a later autoencoder would move with each active latent
    of an earlier one, on this text.

    Args:
        chunk_size: so many later latents are gone back from at once; None for all.
        with_error: take the derivative at the true stream, what the earlier autoencoder
            does not rebuild added; else at the rebuilt one.

    Returns:
        The gradients, d later / d earlier; the earlier latents; the later ones that
        were computed from them. Rows and columns are in the order of their `indices`
        (batch, position, latent).

    Raises:
        ValueError: an autoencoder does not fit, their order is wrong, or no latent is
            active.
    """
    check_order(model, sae_from, sae_to)
    with torch.no_grad():
        stream = model(tokens, stop_at_layer=place_after(sae_from))
        acts = SparseTensor.from_dense(sae_from.encode(stream))
        error = stream - sae_from.decode(acts.dense) if with_error else None

    def later(values: Float[Tensor, " n_from"]) -> Float[Tensor, "1 seq d_sae_to"]:
        return latent_acts_to_later_latent_acts(
            values, acts.indices, acts.shape, sae_from, sae_to, model, error
        )

    with torch.no_grad():
        found = SparseTensor.from_dense(later(acts.values))
    places = found.indices.unbind(dim=1)
    with torch.enable_grad():
        gradients = torch.func.jacrev(lambda v: later(v)[places], chunk_size=chunk_size)
        return gradients(acts.values).T, acts, found


def fast_latent_gradients(
    tokens: Int[Tensor, "1 seq"],
    sae_from: SAE,
    sae_to: SAE,
    model: HookedSAETransformer,
    chunk_size: int = 32,
) -> tuple[Float[Tensor, "n_from n_to"], SparseTensor, SparseTensor]:
    """The same as `latent_to_latent_gradients(…, with_error=True)`, several times
    faster and in a fraction of the memory.

    Three things are saved. No dictionary stands in the way back: a later latent's
    gradient enters the stream as its encoder's column, and an earlier one reads its own
    off by its decoder's row. A chunk of later latents, which are in the order of their
    positions, needs the text only up to its last position. And one pass back serves a
    whole chunk.

    Raises:
        ValueError: as `latent_to_latent_gradients`.
    """
    check_order(model, sae_from, sae_to)
    first, last = place_after(sae_from), place_after(sae_to)
    with torch.no_grad():
        stream = model(tokens, stop_at_layer=first)
        acts = SparseTensor.from_dense(sae_from.encode(stream))
        later = model(stream, start_at_layer=first, stop_at_layer=last)
        found = SparseTensor.from_dense(sae_to.encode(later))
    gradients = torch.zeros(len(acts.values), len(found.values), device=stream.device)
    writes, at = sae_from.W_dec[acts.indices[:, 2]], acts.indices[:, 1]
    for start in range(0, len(found.values), chunk_size):
        targets = found.indices[start : start + chunk_size]
        n, end = len(targets), int(targets[-1, 1]) + 1
        with torch.enable_grad():
            seen = stream[:, :end].clone().requires_grad_(True)
            made = model(seen, start_at_layer=first, stop_at_layer=last)
            enter = torch.zeros(n, *made.shape, device=made.device)
            enter[torch.arange(n), 0, targets[:, 1]] = sae_to.W_enc[:, targets[:, 2]].T
            (back,) = torch.autograd.grad(made, seen, enter, is_grads_batched=True)
        here = at < end
        read = einops.einsum(
            back[:, 0, at[here]], writes[here], "to frm d_model, frm d_model -> frm to"
        )
        gradients[here, start : start + n] = read
    return gradients, acts, found


def tokens_to_latent_acts(
    token_scales: Float[Tensor, "1 seq"],
    tokens: Int[Tensor, "1 seq"],
    sae: SAE,
    model: HookedSAETransformer,
) -> Float[Tensor, "1 seq d_sae"]:
    """An autoencoder's latents where each token's embedding, with its position's, is
    multiplied by a number of its own; with ones, the latents as they are.
    """
    embedded = model(tokens, stop_at_layer=0)
    scaled = einops.einsum(embedded, token_scales, "b seq d, b seq -> b seq d")
    stream = model(scaled, start_at_layer=0, stop_at_layer=place_after(sae))
    return sae.encode(stream)


def token_to_latent_gradients(
    tokens: Int[Tensor, "1 seq"],
    sae: SAE,
    model: HookedSAETransformer,
    chunk_size: int | None = 64,
) -> tuple[Float[Tensor, "seq n"], SparseTensor]:
    """How each active latent would move if one token's embedding were longer: the
    gradient with respect to the scales of `tokens_to_latent_acts`, at ones.

    Returns:
        The gradients, d latent / d scale, and the latents, in the order of the columns.

    Raises:
        ValueError: the autoencoder does not fit, or no latent is active.
    """
    check_fits(model, sae)
    scales = torch.ones(tokens.shape, device=tokens.device)
    with torch.no_grad():
        acts = SparseTensor.from_dense(
            tokens_to_latent_acts(scales, tokens, sae, model)
        )
    places = acts.indices.unbind(dim=1)
    with torch.enable_grad():
        gradients = torch.func.jacrev(
            lambda s: tokens_to_latent_acts(s, tokens, sae, model)[places],
            chunk_size=chunk_size,
        )(scales)
    return gradients.squeeze(1).T, acts


def latent_acts_to_logits(
    latent_acts: Float[Tensor, " nonzero"],
    indices: Int[Tensor, "nonzero 3"],
    shape: Sequence[int],
    sae: SAE,
    model: HookedSAETransformer,
    error: Float[Tensor, "batch seq d_model"] | None = None,
) -> Float[Tensor, "batch d_vocab"]:
    """The logits after the last token that come of these latents: the stream is rebuilt
    from them (`error` added, where given) and runs through the blocks above.
    """
    acts = SparseTensor.from_sparse(latent_acts, indices, shape).dense
    stream = sae.decode(acts)
    if error is not None:
        stream = stream + error
    return model(stream, start_at_layer=place_after(sae))[:, -1]


def latent_to_logit_gradients(
    tokens: Int[Tensor, "1 seq"],
    sae: SAE,
    model: HookedSAETransformer,
    token_ids: Int[Tensor, " answer"] | None = None,
    k: int = 25,
) -> tuple[Float[Tensor, "n answer"], SparseTensor, Int[Tensor, " answer"]]:
    """How the logits after the last token would move with each active latent, at the
    true stream (what the autoencoder does not rebuild is added).

    Each logit counts from the mean of all, since a softmax sees only differences.

    Args:
        token_ids: whose logits; by default those of the `k` likeliest tokens.

    Returns:
        The gradients, d logit / d latent; the latents, in the order of the rows; the
        tokens, in the order of the columns.

    Raises:
        ValueError: the autoencoder does not fit, or no latent is active.
    """
    check_fits(model, sae)
    with torch.no_grad():
        stream = model(tokens, stop_at_layer=place_after(sae))
        acts = SparseTensor.from_dense(sae.encode(stream))
        error = stream - sae.decode(acts.dense)
        if token_ids is None:
            token_ids = model(tokens)[0, -1].topk(k).indices

    def logits(values: Float[Tensor, " n"]) -> Float[Tensor, " answer"]:
        found = latent_acts_to_logits(
            values, acts.indices, acts.shape, sae, model, error
        )[0]
        return found[token_ids] - found.mean()

    with torch.enable_grad():
        return torch.func.jacrev(logits)(acts.values).T, acts, token_ids
