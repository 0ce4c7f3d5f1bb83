"""Toy sparse autoencoders: their forms, their training, dead latents and shrinkage.

Sources: "Towards Monosemanticity" (transformer-circuits.pub, 2023), "Improving
Dictionary Learning with Gated Sparse Autoencoders" (arXiv 2404.16014), "Scaling and
evaluating sparse autoencoders" (arXiv 2406.04093), "Jumping Ahead" (arXiv 2407.14435).
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import einops
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from utils.superposition import ToyModel, cosine_decay

__all__ = [
    "SAEHistory",
    "ToySAEConfig",
    "TrainableSAE",
]


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
            last = step + 1 == steps
            log = (step + 1) % log_freq == 0 or last
            to_resampling = -(step + 1) % resample_freq
            if log or (method and to_resampling < window):
                recent.append((acts.detach() > 0).float().mean(0))
            if log:
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
        """Clear Adam's moments of these latents: their directions are no more."""
        for parameter, state in optimizer.state.items():
            if parameter is self.b_dec:
                continue
            for moment in (state["exp_avg"], state["exp_avg_sq"]):
                # Latents are the last axis of W_enc, the second of everything else.
                (moment.mT if parameter is self.W_enc else moment)[latents] = 0

    def reset_extras(self, latents: Bool[Tensor, "inst d_sae"]) -> None:
        """Set what a form has beyond the common four back to its start."""


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
        """The decoder as trained; with tied weights the encoder's transpose."""
        return self.W_enc.mT if self._W_dec is None else self._W_dec

    @property
    def W_dec_normalized(self) -> Float[Tensor, "inst d_sae d_in"]:
        """Ŵ_dec: each row divided by its length plus `cfg.weight_normalize_eps`."""
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
        """The hidden vector that these activations stand for: z Ŵ_dec + b_dec."""
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

    Source: "Towards Monosemanticity", appendix "Autoencoder Resampling"; there v is the
    unit vector of h itself, and resample_scale is 0.2.
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
    """1 where x lies strictly between -1/2 and 1/2, else 0: a window of area 1."""
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
