"""Sparse autoencoders: trained on a toy, then used to read and steer a language model.

Sources: "Towards Monosemanticity"
(transformer-circuits.pub/2023/monosemantic-features), "Improving Dictionary Learning
with Gated Sparse Autoencoders" (arXiv 2404.16014), "Jumping Ahead" (arXiv 2407.14435),
"Scaling and evaluating sparse autoencoders" (arXiv 2406.04093), "Interpreting Attention
Layer Outputs with Sparse Autoencoders" (arXiv 2406.17759).
"""

import math
import re
import warnings
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Literal, NamedTuple

import einops
import torch
from jaxtyping import Bool, Float, Int, Shaped
from sae_lens import SAE, ActivationsStore, HookedSAETransformer
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformer_lens import ActivationCache
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from transformer_lens.hook_points import HookPoint

from utils.ioi import finish_run
from utils.runtime import seed_everything
from utils.superposition import ToyModel, cosine_decay
from utils.world import LABELS, Document, parse, token_labels

# ================================================================ 1. A toy sparse
# autoencoder


@dataclass
class ToySAEConfig:
    """The shape of `n_inst` sparse autoencoders that are trained side by side, and what
    their losses weigh.

    Args:
        d_in: length of a hidden vector of the toy model.
        d_sae: number of latents.
        sparsity_coeff: factor on the sparsity loss, whatever the form counts there (L1
            or L0).
        weight_normalize_eps: added to the length of a decoder row before dividing by
            it.
        tied_weights: the encoder is the decoder's transpose, so that both have the same
            directions.
        ste_epsilon: width of the window in which `JumpReLUToySAE` gives its thresholds
            a gradient.
        initial_threshold: where those thresholds start.
        k: how many latents of a `TopKToySAE` may be active on one input.

    Raises:
        ValueError: a number is out of range.
    """

    n_inst: int
    d_in: int = 2
    d_sae: int = 5
    sparsity_coeff: float = 0.2
    weight_normalize_eps: float = 1e-8
    tied_weights: bool = False
    ste_epsilon: float = 0.01
    initial_threshold: float = 0.1
    k: int = 1

    def __post_init__(self):
        if min(self.n_inst, self.d_in, self.d_sae) < 1:
            raise ValueError(f"n_inst, d_in and d_sae must be at least 1: {self}")
        if self.sparsity_coeff < 0 or self.weight_normalize_eps < 0:
            raise ValueError(
                f"sparsity_coeff and weight_normalize_eps must not be negative: {self}"
            )
        if self.ste_epsilon <= 0 or self.initial_threshold <= 0:
            raise ValueError(
                f"ste_epsilon and initial_threshold must be above 0: {self}"
            )
        if not 1 <= self.k <= self.d_sae:
            raise ValueError(
                f"k is {self.k}: choose from 1 to d_sae, here {self.d_sae}"
            )


@dataclass
class SAEHistory:
    """What `optimize` recorded.

    `losses` has one curve for each entry of the loss dictionary and the whole as
    "loss", each the mean of a batch. `W_dec` is normalized. `resampled` counts the
    latents resampled during the whole training.
    """

    steps: list[int]
    losses: dict[str, Float[Tensor, "log inst"]]
    frac_active: Float[Tensor, "log inst d_sae"]
    W_enc: Float[Tensor, "log inst d_in d_sae"]
    W_dec: Float[Tensor, "log inst d_sae d_in"]
    resampled: Int[Tensor, " inst"]


class TrainableSAE(nn.Module):
    """The training loop that all toy autoencoders share."""

    cfg: ToySAEConfig

    def optimize(
        self,
        steps: int = 3_000,
        batch_size: int = 256,
        lr: float = 1e-2,
        schedule: Callable[[int, int], float] = cosine_decay,
        resample_method: str | None = None,
        resample_freq: int = 500,
        resample_window: int = 100,
        resample_scale: float = 0.5,
        log_freq: int | None = None,
    ) -> SAEHistory:
        """Train all instances at once with Adam, each on fresh hidden vectors of its
        own toy model.

        Args:
            schedule: factor on `lr` at (step, steps).
            resample_method: None, "simple" or "advanced".
            resample_freq: steps from one resampling to the next; none follows the last
                step.
            resample_window: a latent is dead if it was never active in the last so many
                steps.
            resample_scale: size of a resampled latent's encoder column, see the two
                functions.
            log_freq: record each so many steps; default: 50 records in all.

        Raises:
            ValueError: the method is unknown, a number is below 1, or the window is
                longer than the time between two resamplings.
        """
        if resample_method not in (None, "simple", "advanced"):
            raise ValueError(
                f"resample_method is {resample_method!r}: "
                'choose None, "simple" or "advanced"'
            )
        log_freq = max(1, steps // 50) if log_freq is None else log_freq
        if min(steps, batch_size, log_freq) < 1:
            raise ValueError(
                f"steps, batch_size and log_freq must be at least 1: {steps}, "
                f"{batch_size}, {log_freq}"
            )
        if not 1 <= resample_window <= resample_freq:
            raise ValueError(
                f"resample_window is {resample_window}: choose from 1 to "
                f"resample_freq, {resample_freq}"
            )
        # One thread: these tensors are small, and sums come out the same on every
        # number of cores.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            resample = resample_method, resample_freq, resample_window, resample_scale
            return self._train(steps, batch_size, lr, schedule, resample, log_freq)
        finally:
            torch.set_num_threads(threads)

    def _train(self, steps, batch_size, lr, schedule, resample, log_freq) -> SAEHistory:
        method, resample_freq, window, scale = resample
        optimizer = torch.optim.Adam(
            [p for p in self.parameters() if p.requires_grad], lr=lr, fused=True
        )
        recent, record = deque(maxlen=window), []
        resampled = torch.zeros(self.cfg.n_inst, dtype=torch.long)
        for step in tqdm(range(steps), mininterval=1, leave=False):
            optimizer.param_groups[0]["lr"] = lr * schedule(step, steps)
            loss_dict, loss, acts, _ = self(self.generate_batch(batch_size))
            optimizer.zero_grad()
            loss.mean(0).sum().backward()
            optimizer.step()
            recent.append((acts.detach() > 0).float().mean(0))
            last = step + 1 == steps
            if (step + 1) % log_freq == 0 or last:
                losses = {
                    name: part.detach().mean(0)
                    for name, part in (loss_dict | {"loss": loss}).items()
                }
                record.append(
                    (
                        step + 1,
                        losses,
                        recent[-1],
                        self.W_enc.detach().clone(),
                        self.W_dec_normalized.detach(),
                    )
                )
            if method and (step + 1) % resample_freq == 0 and not last:
                frac_active = torch.stack(tuple(recent))
                if method == "simple":
                    self.resample_simple(frac_active, scale)
                else:
                    self.resample_advanced(frac_active, scale, batch_size)
                dead = (frac_active == 0).all(dim=0)
                self._forget(optimizer, dead)
                resampled += dead.sum(-1).cpu()
        logged, losses, *tensors = zip(*record, strict=True)
        losses = {
            name: torch.stack([part[name] for part in losses]) for name in losses[0]
        }
        return SAEHistory(
            list(logged), losses, *(torch.stack(t) for t in tensors), resampled
        )

    def _forget(
        self, optimizer: torch.optim.Optimizer, latents: Bool[Tensor, "inst d_sae"]
    ) -> None:
        """Clear Adam's moments of these latents: they belong to directions that are no
        more.
        """
        for parameter, state in optimizer.state.items():
            if parameter is self.b_dec:
                continue
            for moment in (state["exp_avg"], state["exp_avg_sq"]):
                # Latents are the last axis of W_enc, the second of everything else.
                (moment.mT if parameter is self.W_enc else moment)[latents] = 0

    def reset_extras(self, latents: Bool[Tensor, "inst d_sae"]) -> None:
        """Set the parameters that a form has beyond the common four back to their
        start, for these latents.
        """


class ToySAE(TrainableSAE):
    """Sparse autoencoders of a toy model's hidden vectors: z = ReLU((h - b_dec) W_enc +
    b_enc), h' = z Ŵ_dec + b_dec.

    Ŵ_dec is W_dec with rows of length 1. Instance i reads the hidden vectors of the toy
    model's instance i.

    Args:
        model: the toy model; it is frozen.

    Raises:
        ValueError: the shapes of the two do not fit.

    Source: "Towards Monosemanticity", "Sparse Autoencoder Setup"; decoder rows of
    length 1 as in arXiv 2404.16014.
    """

    W_enc: Float[Tensor, "inst d_in d_sae"]
    b_enc: Float[Tensor, "inst d_sae"]
    b_dec: Float[Tensor, "inst d_in"]

    def __init__(self, cfg: ToySAEConfig, model: ToyModel):
        super().__init__()
        if (cfg.n_inst, cfg.d_in) != (model.cfg.n_inst, model.cfg.d_hidden):
            raise ValueError(
                f"the toy model has {model.cfg.n_inst} instances of "
                f"{model.cfg.d_hidden} hidden dimensions: "
                f"give ToySAEConfig these as n_inst and d_in, not {cfg.n_inst} and "
                f"{cfg.d_in}"
            )
        self.cfg = cfg
        self.model = model.requires_grad_(False)
        inst, d_in, d_sae = cfg.n_inst, cfg.d_in, cfg.d_sae
        W = model.W
        self.W_enc = nn.Parameter(
            nn.init.kaiming_uniform_(W.new_empty(inst, d_in, d_sae))
        )
        self._W_dec = (
            None
            if cfg.tied_weights
            else nn.Parameter(nn.init.kaiming_uniform_(W.new_empty(inst, d_sae, d_in)))
        )
        self.b_enc = nn.Parameter(W.new_zeros(inst, d_sae))
        self.b_dec = nn.Parameter(W.new_zeros(inst, d_in))

    @property
    def W_dec(self) -> Float[Tensor, "inst d_sae d_in"]:
        """The decoder as trained, or the encoder's transpose where the weights are
        tied.
        """
        return self.W_enc.mT if self._W_dec is None else self._W_dec

    @property
    def W_dec_normalized(self) -> Float[Tensor, "inst d_sae d_in"]:
        """The decoder with every latent's row divided by its length plus
        `cfg.weight_normalize_eps`.
        """
        return self.W_dec / (
            self.W_dec.norm(dim=-1, keepdim=True) + self.cfg.weight_normalize_eps
        )

    def generate_batch(self, batch_size: int) -> Float[Tensor, "batch inst d_in"]:
        """Hidden vectors h = W x of the toy model for fresh features x."""
        features = self.model.generate_batch(batch_size)
        return einops.einsum(
            features,
            self.model.W,
            "batch inst feats, inst d_in feats -> batch inst d_in",
        )

    def pre_activations(
        self, h: Float[Tensor, "batch inst d_in"]
    ) -> Float[Tensor, "batch inst d_sae"]:
        """What the latents see before the ReLU: (h - b_dec) W_enc + b_enc."""
        centred = h - self.b_dec
        product = einops.einsum(
            centred, self.W_enc, "batch inst d_in, inst d_in d_sae -> batch inst d_sae"
        )
        return product + self.b_enc

    def decode(
        self, acts: Float[Tensor, "batch inst d_sae"]
    ) -> Float[Tensor, "batch inst d_in"]:
        """The hidden vector that these activations stand for, by the normalized
        decoder, with b_dec.
        """
        W_dec = self.W_dec_normalized
        return (
            einops.einsum(
                acts, W_dec, "batch inst d_sae, inst d_sae d_in -> batch inst d_in"
            )
            + self.b_dec
        )

    def forward(
        self, h: Float[Tensor, "batch inst d_in"]
    ) -> tuple[
        dict[str, Tensor],
        Tensor,
        Float[Tensor, "batch inst d_sae"],
        Float[Tensor, "batch inst d_in"],
    ]:
        """Encode and decode.

        Returns:
            loss_dict: each [batch inst]. "L_reconstruction": squared error, mean over
                d_in; "L_sparsity": sum of |z|.
            loss: their sum with `cfg.sparsity_coeff` on the second, [batch inst].
            acts: the latents' activations z.
            h_reconstructed: h'.
        """
        acts = F.relu(self.pre_activations(h))
        h_reconstructed = self.decode(acts)
        loss_dict = {
            "L_reconstruction": (h_reconstructed - h).pow(2).mean(-1),
            "L_sparsity": acts.abs().sum(-1),
        }
        loss = (
            loss_dict["L_reconstruction"]
            + self.cfg.sparsity_coeff * loss_dict["L_sparsity"]
        )
        return loss_dict, loss, acts, h_reconstructed

    def resample_simple(
        self,
        frac_active_in_window: Float[Tensor, "window inst d_sae"],
        resample_scale: float,
    ) -> None:
        """Call the function of this name; with more parameters, reset these too."""
        resample_simple(self, frac_active_in_window, resample_scale)
        self.reset_extras(dead_latents(frac_active_in_window))

    def resample_advanced(
        self,
        frac_active_in_window: Float[Tensor, "window inst d_sae"],
        resample_scale: float,
        batch_size: int,
    ) -> None:
        """Call the function of this name; with more parameters, reset these too."""
        resample_advanced(self, frac_active_in_window, resample_scale, batch_size)
        self.reset_extras(dead_latents(frac_active_in_window))


def match_latents(
    W_dec: Float[Tensor, "... d_sae d_in"], W: Float[Tensor, "... d_in feats"]
) -> tuple[Int[Tensor, "... feats"], Float[Tensor, "... feats"]]:
    """For each feature, the latent whose decoder row points most nearly its way, and
    their cosine.

    Two features may share a latent. A zero vector has cosine 0 with everything.

    Args:
        W_dec: one row per latent, of any length.
        W: one column per feature, of any length.
    """
    cosine = (
        F.normalize(W.mT, dim=-1, eps=1e-12) @ F.normalize(W_dec, dim=-1, eps=1e-12).mT
    )
    best = cosine.max(dim=-1)
    return best.indices, best.values


# ---------------------------------------------------------------- dead latents


def dead_latents(
    frac_active_in_window: Float[Tensor, "window inst d_sae"],
) -> Bool[Tensor, "inst d_sae"]:
    """The latents that were active on no input in any step of the window.

    Args:
        frac_active_in_window: for each step, the share of its inputs on which each
            latent was above 0.
    """
    return (frac_active_in_window == 0).all(dim=0)


@torch.no_grad()
def resample_simple(
    sae: "ToySAE",
    frac_active_in_window: Float[Tensor, "window inst d_sae"],
    resample_scale: float,
) -> None:
    """Give each dead latent a random unit direction v, in place: W_dec row v, W_enc
    column resample_scale · v, b_enc 0.

    All other latents stay as they are.
    """
    dead = dead_latents(frac_active_in_window)
    # One direction for each dead latent, all directions equally likely.
    v = F.normalize(
        torch.randn(int(dead.sum()), sae.cfg.d_in, device=dead.device), dim=-1
    )
    # The decoder first: with tied weights the two share their memory, and the encoder's
    # length is the one to keep.
    sae.W_dec[dead] = v
    sae.W_enc.mT[dead] = resample_scale * v
    sae.b_enc[dead] = 0


@torch.no_grad()
def resample_advanced(
    sae: "ToySAE",
    frac_active_in_window: Float[Tensor, "window inst d_sae"],
    resample_scale: float,
    batch_size: int,
) -> None:
    """Point each dead latent at an input that is badly rebuilt, in place.

    In each instance, inputs are drawn from a fresh batch, for each dead latent one,
    with probability proportional to the square of their loss |h - h'|². With v the unit
    vector of h - b_dec, the W_dec row becomes v, b_enc 0, and the W_enc column v times
    resample_scale times the mean length of the living latents' columns (1 if none is
    alive). An instance that rebuilds the batch without error keeps its latents.

    Source: "Towards Monosemanticity", appendix "Autoencoder Resampling".
    """
    dead = dead_latents(frac_active_in_window)
    h = sae.generate_batch(batch_size)
    _, _, _, h_reconstructed = sae(h)
    losses = (h - h_reconstructed).pow(2).sum(-1)
    for i in range(sae.cfg.n_inst):
        n_dead = int(dead[i].sum())
        # The sum also guards multinomial, which needs some probability to give.
        if n_dead == 0 or losses[:, i].pow(2).sum() == 0:
            continue
        # An input may be drawn twice.
        chosen = torch.multinomial(losses[:, i].pow(2), n_dead, replacement=True)
        v = F.normalize(h[chosen, i] - sae.b_dec[i], dim=-1)
        living = sae.W_enc[i][:, ~dead[i]]
        length = living.norm(dim=0).mean() if living.shape[1] else 1.0
        # The decoder first: with tied weights the encoder's length is the one to keep.
        sae.W_dec[i, dead[i]] = v
        sae.W_enc[i].mT[dead[i]] = resample_scale * length * v
        sae.b_enc[i, dead[i]] = 0


# -------------------------------- shrinkage, and forms that avoid it


def shrinkage(
    h: Float[Tensor, "batch inst d_in"],
    h_reconstructed: Float[Tensor, "batch inst d_in"],
) -> Float[Tensor, " inst"]:
    """How long reconstructions are for how well they point: E|h'|² / E[h'·h]; 1 means
    no shrinkage.

    It is the g for which h'/g would be nearest to h: below 1, the reconstruction would
    gain by being scaled up. An instance that always answers 0 has shrinkage 0.

    Source: the "relative reconstruction bias" of arXiv 2404.16014.
    """
    length = h_reconstructed.pow(2).sum(dim=(0, 2))
    agreement = (h_reconstructed * h).sum(dim=(0, 2))
    return torch.where(length > 0, length / agreement, 0.0)


class GatedToySAE(ToySAE):
    """One path decides which latents are active, another how strongly; only the first
    pays for sparsity.

    Both read through the same encoder: W_gate is `W_enc`, W_mag = W_gate · exp(r_mag),
    one factor for each latent.

    Source: arXiv 2404.16014; errors are averaged over d_in here, as in `ToySAE`.
    """

    r_mag: Float[Tensor, "inst d_sae"]
    b_mag: Float[Tensor, "inst d_sae"]

    def __init__(self, cfg: ToySAEConfig, model: ToyModel):
        super().__init__(cfg, model)
        self.r_mag = nn.Parameter(torch.zeros_like(self.b_enc))
        self.b_mag = nn.Parameter(torch.zeros_like(self.b_enc))

    @property
    def b_gate(self) -> Float[Tensor, "inst d_sae"]:
        """The bias of the gate: another name of `b_enc`."""
        return self.b_enc

    @torch.no_grad()
    def reset_extras(self, latents: Bool[Tensor, "inst d_sae"]) -> None:
        self.r_mag[latents] = 0
        self.b_mag[latents] = 0

    def forward(
        self, h: Float[Tensor, "batch inst d_in"]
    ) -> tuple[
        dict[str, Tensor],
        Tensor,
        Float[Tensor, "batch inst d_sae"],
        Float[Tensor, "batch inst d_in"],
    ]:
        """As in `ToySAE`, with acts = (gate > 0) · ReLU(magnitude).

        gate = (h - b_dec) W_gate + b_gate and magnitude = (h - b_dec) W_mag + b_mag.

        loss_dict: "L_reconstruction" as in `ToySAE`; "L_sparsity": sum of ReLU(gate);
        "L_aux": squared error, mean over d_in, of the reconstruction from ReLU(gate) by
        a decoder (W_dec_normalized and b_dec) that gets no gradient from it. The loss
        is their sum, `cfg.sparsity_coeff` on the second.
        """
        gate = self.pre_activations(h)
        product = einops.einsum(
            h - self.b_dec,
            self.W_enc,
            "batch inst d_in, inst d_in d_sae -> batch inst d_sae",
        )
        magnitude = product * self.r_mag.exp() + self.b_mag
        acts = (gate > 0) * F.relu(magnitude)
        h_reconstructed = self.decode(acts)
        # (gate > 0) has no gradient: having to rebuild h with ReLU(gate) alone is what
        # teaches the gate when to open.
        W_frozen, b_frozen = self.W_dec_normalized.detach(), self.b_dec.detach()
        by_gate = (
            einops.einsum(
                F.relu(gate),
                W_frozen,
                "batch inst d_sae, inst d_sae d_in -> batch inst d_in",
            )
            + b_frozen
        )
        loss_dict = {
            "L_reconstruction": (h_reconstructed - h).pow(2).mean(-1),
            "L_sparsity": F.relu(gate).sum(-1),
            "L_aux": (by_gate - h).pow(2).mean(-1),
        }
        paid = self.cfg.sparsity_coeff * loss_dict["L_sparsity"]
        return (
            loss_dict,
            loss_dict["L_reconstruction"] + paid + loss_dict["L_aux"],
            acts,
            h_reconstructed,
        )


class TopKToySAE(ToySAE):
    """The `cfg.k` largest latents stay, the others are set to 0; nothing else asks for
    sparsity.

    Source: "Scaling and evaluating sparse autoencoders", arXiv 2406.04093.
    """

    def forward(
        self, h: Float[Tensor, "batch inst d_in"]
    ) -> tuple[
        dict[str, Tensor],
        Tensor,
        Float[Tensor, "batch inst d_sae"],
        Float[Tensor, "batch inst d_in"],
    ]:
        """As in `ToySAE`, but of each input's ReLU(pre-activations) only the k largest
        stay.

        loss_dict has "L_reconstruction" only, which is the loss.
        """
        acts = F.relu(self.pre_activations(h))
        top = acts.topk(self.cfg.k, dim=-1)
        acts = torch.zeros_like(acts).scatter(-1, top.indices, top.values)
        h_reconstructed = self.decode(acts)
        loss = (h_reconstructed - h).pow(2).mean(-1)
        return {"L_reconstruction": loss}, loss, acts, h_reconstructed


def rectangle(x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """1 where x lies strictly between -1/2 and 1/2, else 0: a window of width and area
    1.
    """
    return ((x > -0.5) & (x < 0.5)).to(x.dtype)


class Heaviside(torch.autograd.Function):
    """1 where z is above theta, else 0, with a stand-in gradient for theta.

    Source: arXiv 2407.14435.
    """

    @staticmethod
    def forward(
        ctx,
        z: Float[Tensor, "batch inst d_sae"],
        theta: Float[Tensor, "inst d_sae"],
        eps: float,
    ) -> Float[Tensor, "batch inst d_sae"]:
        """Keep z, theta and eps in `ctx` for the way back; return H(z - theta)."""
        ctx.save_for_backward(z, theta)
        ctx.eps = eps
        return (z > theta).to(z.dtype)

    @staticmethod
    def backward(
        ctx, grad_output: Float[Tensor, "batch inst d_sae"]
    ) -> tuple[Tensor, Float[Tensor, "batch inst d_sae"], None]:
        """Gradients for z (all 0), for theta, -(1/eps) · rectangle((z - theta)/eps),
        and None for eps.
        """
        z, theta = ctx.saved_tensors
        theta_grad = -rectangle((z - theta) / ctx.eps) / ctx.eps * grad_output
        # Torch sums over the batch, along which theta was spread.
        return torch.zeros_like(z), theta_grad, None


class JumpReLU(torch.autograd.Function):
    """z where z is above theta, else 0, with a stand-in gradient for theta.

    Source: arXiv 2407.14435.
    """

    @staticmethod
    def forward(
        ctx,
        z: Float[Tensor, "batch inst d_sae"],
        theta: Float[Tensor, "inst d_sae"],
        eps: float,
    ) -> Float[Tensor, "batch inst d_sae"]:
        """Keep z, theta and eps in `ctx` for the way back; return z · H(z - theta)."""
        ctx.save_for_backward(z, theta)
        ctx.eps = eps
        return z * (z > theta)

    @staticmethod
    def backward(
        ctx, grad_output: Float[Tensor, "batch inst d_sae"]
    ) -> tuple[
        Float[Tensor, "batch inst d_sae"], Float[Tensor, "batch inst d_sae"], None
    ]:
        """Gradients for z, H(z - theta), for theta, -(theta/eps) · rectangle((z -
        theta)/eps), and None for eps.
        """
        z, theta = ctx.saved_tensors
        theta_grad = -theta / ctx.eps * rectangle((z - theta) / ctx.eps) * grad_output
        # Torch sums over the batch, along which theta was spread.
        return (z > theta) * grad_output, theta_grad, None


class JumpReLUToySAE(ToySAE):
    """A latent is active above a threshold of its own, with its full size; sparsity is
    the number of active latents.

    Source: arXiv 2407.14435.
    """

    log_threshold: Float[Tensor, "inst d_sae"]

    def __init__(self, cfg: ToySAEConfig, model: ToyModel):
        super().__init__(cfg, model)
        self.log_threshold = nn.Parameter(
            torch.full_like(self.b_enc, math.log(cfg.initial_threshold))
        )

    @torch.no_grad()
    def reset_extras(self, latents: Bool[Tensor, "inst d_sae"]) -> None:
        self.log_threshold[latents] = math.log(self.cfg.initial_threshold)

    def forward(
        self, h: Float[Tensor, "batch inst d_in"]
    ) -> tuple[
        dict[str, Tensor],
        Tensor,
        Float[Tensor, "batch inst d_sae"],
        Float[Tensor, "batch inst d_in"],
    ]:
        """As in `ToySAE`, with acts = JumpReLU(pre-activations, exp(log_threshold),
        cfg.ste_epsilon).

        loss_dict: "L_reconstruction" as in `ToySAE`; "L_sparsity": how many latents are
        above their threshold, by `Heaviside`, so that thresholds get a gradient.
        """
        pre, theta = self.pre_activations(h), self.log_threshold.exp()
        acts = JumpReLU.apply(pre, theta, self.cfg.ste_epsilon)
        h_reconstructed = self.decode(acts)
        loss_dict = {
            "L_reconstruction": (h_reconstructed - h).pow(2).mean(-1),
            "L_sparsity": Heaviside.apply(pre, theta, self.cfg.ste_epsilon).sum(-1),
        }
        loss = (
            loss_dict["L_reconstruction"]
            + self.cfg.sparsity_coeff * loss_dict["L_sparsity"]
        )
        return loss_dict, loss, acts, h_reconstructed


# ================================================================ 2. Trained
# autoencoders of a language model


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
        ValueError: the model has no such hook, another autoencoder holds it, or its
            vectors have another width.
    """
    name = sae.cfg.metadata.hook_name
    if name in model.acts_to_saes:
        raise ValueError(
            f"an autoencoder is attached at {name} already: call model.reset_saes() "
            "first"
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

    Tokens equal to the first one of the first row (`<|endoftext|>`) are left out of
    `L0` and `explained_variance`: their activation is the longest of all and always
    nearly the same, so that rebuilding it would flatter.

    Returns:
        `L0`: mean number of active latents a token. `explained_variance`: 1 - (squared
        error) / (squared distance from the mean activation), each summed over tokens
        and dimensions. `loss_clean`, `loss_sae`, `loss_zero`: mean loss in nats of the
        model as it is, with the autoencoder's output in place of the activation, with
        zeros there.
        `loss_recovered`: (loss_zero - loss_sae) / (loss_zero - loss_clean). `dead`:
        share of latents that are active on none of the tokens.

    Raises:
        ValueError: the autoencoder does not fit the model.

    Source: "Scaling and evaluating sparse autoencoders" (arXiv 2406.04093), section 4.
    """
    check_fits(model, sae)
    name = sae.cfg.metadata.hook_name
    clean_logits, cache = model.run_with_cache(tokens, names_filter=name)
    counted = tokens != tokens[0, 0]
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
    for row, position in places.tolist():
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
    for threshold in thresholds:
        fires = (values >= threshold).float()
        hits = truth.T @ fires
        # Hits and false alarms together are all firings, hits and misses all labelled
        # tokens.
        scores.append(2 * hits / (fires.sum(0) + truth.sum(0)[:, None]).clamp_min(1))
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
    ranked = (
        values.masked_fill(values == 0, torch.inf).sort(dim=0).values
    )  # zeros go last
    n_values = (values != 0).sum(0)
    n_firings = (
        (n_values * torch.logspace(0, -3, n, device=values.device)[:, None])
        .ceil()
        .long()
    )
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
    half = len(values) // 2
    own = values[:, unit]
    thresholds = unit_thresholds(own[:half], n)
    scores = f1_scores(own[:half], labels[:half], thresholds).diagonal(dim1=1, dim2=2)
    fires = own[half:] >= thresholds.gather(0, scores.argmax(dim=0)[None])
    hits = (fires & labels[half:]).sum(0)
    return hits / fires.sum(0).clamp_min(1), hits / labels[half:].sum(0).clamp_min(1)


def probe_scores(
    x: Float[Tensor, "token d"],
    labels: Bool[Tensor, "token label"],
    iterations: int = 30,
) -> Float[Tensor, "token label"]:
    """What a linear probe says of each label on each token: logits of a logistic
    regression, fitted with the labels.

    It sees the labels of the first half of the tokens only. To score it, hand its
    logits to `best_units`.
    """
    half = len(x) // 2
    x = (x - x[:half].mean(0)) / x[:half].std(0).clamp_min(1e-6)
    truth = labels[:half].to(x.dtype)
    weight = torch.zeros(
        x.shape[1], labels.shape[1], device=x.device, requires_grad=True
    )
    bias = torch.zeros(labels.shape[1], device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (
            F.binary_cross_entropy_with_logits(
                x[:half] @ weight + bias, truth, reduction="sum"
            )
            / half
        )
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return (x @ weight + bias).detach()


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
    truth = label.float()
    while len(chosen) < n:
        new = fires[~covered].float()  # only what the chosen ones leave over can change
        hits = truth[covered].sum() + truth[~covered] @ new
        f1 = 2 * hits / (covered.sum() + new.sum(0) + truth.sum()).clamp_min(1)
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


# ================================================================ 3. Attention latents,
# causes, steering


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

    `<|endoftext|>`, with which each row begins and is padded, doesn't count. Take the
    tokenizer of `load_tokenizer()`: a model's own puts a second `<|endoftext|>` in
    front.
    """
    tokens = torch.zeros(len(documents), length, dtype=torch.long)
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
            new = torch.multinomial(
                (logits / temperature).softmax(dim=-1), num_samples=1
            )
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
