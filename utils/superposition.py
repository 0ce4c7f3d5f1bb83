"""Toy models of superposition: more features than dimensions, what that costs, and when
a model does it.

Sources: "Toy Models of Superposition" (arXiv 2209.10652), "Polysemanticity and Capacity
in Neural Networks" (arXiv 2210.01892).

A feature is one input coordinate that is usually 0 and otherwise uniform between 0 and
1. A model has one column of `W` per feature. `inst` counts models of one shape that are
trained side by side and never touch each other.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import einops
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

# What chapter 06 imports: all but its exercises.
__all__ = [
    "History",
    "ToyModelConfig",
    "cosine_decay",
    "cosine_matrix",
    "features_per_neuron",
    "neighbour_angles",
    "pair_cosines",
    "share_near_plateaus",
    "train_quadratic",
]

# ---------------------------------------------------------------- codes


def factored_code(
    n_items: int, factors: Sequence[int]
) -> Bool[Tensor, "n_items width"]:
    """Write each item as one choice per factor, each choice one-hot, laid side by side.

    Item 0 chooses option 0 everywhere; the last factor counts fastest, as digits do.

    Args:
        n_items: how many items to tell apart.
        factors: number of options of each factor; (16,) is plain one-hot, (2, 8) has
            width 10.

    Raises:
        ValueError: the factors have fewer combinations than there are items.
    """
    if n_items > math.prod(factors):
        raise ValueError(
            f"{tuple(factors)} tells {math.prod(factors)} items apart, not {n_items}: "
            "add options"
        )
    # Digits of the item number, the last factor first.
    rest = torch.arange(n_items)
    parts = []
    for options in reversed(factors):
        parts.append(F.one_hot(rest % options, options))
        rest = rest // options
    return torch.cat(parts[::-1], dim=1).bool()


# -------------------------------- vectors that share a space


def cosine_matrix(
    W: Float[Tensor, "... d_hidden feats"],
) -> Float[Tensor, "... feats feats"]:
    """Cosine between each two columns of W; a zero column has cosine 0 with all, itself
    included.
    """
    unit = F.normalize(W, dim=-2, eps=1e-12)
    return unit.mT @ unit


def interference(
    W: Float[Tensor, "... d_hidden feats"], relu: bool = False
) -> Float[Tensor, "... feats"]:
    """What the other features add up to along each feature's direction: the sum over j
    ≠ i of (Ŵ_i·W_j)².

    Ŵ_i is W_i scaled to length 1. A zero feature has interference 0.

    Args:
        relu: count only the positive overlaps, the ones that a ReLU at the output lets
            through.

    Source: arXiv 2209.10652, section "The Geometry of Superposition".
    """
    overlap = F.normalize(W, dim=-2, eps=1e-12).mT @ W
    if relu:
        overlap = overlap.relu()
    # Row i is measured along Ŵ_i; its own entry is the feature, not interference.
    own = torch.eye(W.shape[-1], dtype=torch.bool, device=W.device)
    return overlap.masked_fill(own, 0).pow(2).sum(-1)


def compute_dimensionality(
    W: Float[Tensor, "... d_hidden feats"],
) -> Float[Tensor, "... feats"]:
    """The share of a dimension that each feature has to itself: D_i = |W_i|² / Σ_j
    (Ŵ_i·W_j)².

    1 for a feature orthogonal to all others, 1/2 for an antipodal pair, 2/5 in a
    pentagon, 0 for a zero feature.

    Source: arXiv 2209.10652, section "The Geometry of Superposition".
    """
    squared_length = W.pow(2).sum(-2)
    along = F.normalize(W, dim=-2, eps=1e-12).mT @ W
    # The sum over j includes j = i, so it is 0 only for a zero feature.
    total = along.pow(2).sum(-1)
    return torch.where(total > 0, squared_length / total.clamp_min(1e-30), 0.0)


def share_near_plateaus(
    dimensionality: Float[Tensor, " n"],
    plateaus: Sequence[float] = (1, 3 / 4, 2 / 3, 1 / 2, 2 / 5),
    width: float = 0.03,
) -> float:
    """Share of values within `width` of a plateau; 0 where there is no value."""
    if dimensionality.numel() == 0:
        return 0.0
    at = torch.tensor(
        plateaus, dtype=dimensionality.dtype, device=dimensionality.device
    )
    return ((dimensionality[:, None] - at).abs() < width).any(-1).float().mean().item()


def neighbour_angles(
    W: Float[Tensor, "2 feats"], min_norm: float = 0.5
) -> Float[Tensor, " kept"]:
    """Angles in degrees between neighbouring 2D features longer than `min_norm`,
    smallest first; they sum to 360.
    """
    kept = W[:, W.norm(dim=0) > min_norm]
    angle = torch.atan2(kept[1], kept[0]).sort().values
    turn = torch.cat([angle, angle[:1] + 2 * math.pi]).diff()
    return torch.rad2deg(turn).sort().values


def pair_cosines(W: Float[Tensor, "... d_hidden feats"]) -> Float[Tensor, "... pairs"]:
    """Cosine between features 2k and 2k+1."""
    pairs = einops.rearrange(
        W, "... d_hidden (pairs two) -> ... pairs two d_hidden", two=2
    )
    return F.cosine_similarity(pairs[..., 0, :], pairs[..., 1, :], dim=-1)


# ---------------------------------------------------------------- data


def generate_uncorrelated_features(
    feature_probability: Float[Tensor, "inst feats"], batch_size: int
) -> Float[Tensor, "batch inst feats"]:
    """Each feature is on with its own probability, independently, then uniform on (0,
    1]; otherwise 0.
    """
    p = feature_probability[..., None]
    # One draw serves twice: u < p decides that the feature is on, and given that, (p -
    # u) / p is uniform on (0, 1]. The batch comes last in memory: that is where the
    # matrix products of the model run fastest.
    u = torch.rand(
        *feature_probability.shape, batch_size, dtype=p.dtype, device=p.device
    )
    features = F.relu(p - u) / p.clamp_min(1e-30)
    return einops.rearrange(features, "inst feats batch -> batch inst feats")


def generate_correlated_features(
    pair_probability: Float[Tensor, "inst pairs"], batch_size: int
) -> Float[Tensor, "batch inst 2*pairs"]:
    """Features 2k and 2k+1 are on together or off together; when on, each has a uniform
    size of its own.
    """
    inst, pairs = pair_probability.shape
    on = (
        torch.rand(batch_size, inst, pairs, 1).to(pair_probability)
        < pair_probability[..., None]
    )
    size = torch.rand(batch_size, inst, pairs, 2).to(pair_probability)
    return einops.rearrange(size * on, "batch inst pairs two -> batch inst (pairs two)")


def generate_anticorrelated_features(
    pair_probability: Float[Tensor, "inst pairs"], batch_size: int
) -> Float[Tensor, "batch inst 2*pairs"]:
    """Features 2k and 2k+1 are never on together; each is on with the pair's
    probability, then uniform on [0, 1).

    Raises:
        ValueError: a probability is above 1/2: two features that exclude each other
            can't both be on more often.
    """
    if (pair_probability > 0.5).any():
        raise ValueError(
            "anticorrelated features need probabilities of at most 0.5, got "
            f"{pair_probability.max():.3g}"
        )
    inst, pairs = pair_probability.shape
    # One draw places the pair: below p the first is on, above 1 - p the second, between
    # them none.
    u = torch.rand(batch_size, inst, pairs).to(pair_probability)
    on = torch.stack([u < pair_probability, u >= 1 - pair_probability], dim=-1)
    size = torch.rand(batch_size, inst, pairs, 2).to(pair_probability)
    return einops.rearrange(size * on, "batch inst pairs two -> batch inst (pairs two)")


# ---------------------------------------------------------------- learning rate


def constant(step: int, steps: int) -> float:
    """Keep the learning rate."""
    return 1.0


def cosine_decay(step: int, steps: int) -> float:
    """Let the learning rate fall to 0 along half a cosine."""
    return 0.5 * (1 + math.cos(math.pi * step / steps))


def warmup_cosine(step: int, steps: int, warmup: float = 0.05) -> float:
    """Raise the learning rate linearly over the first `warmup` of the steps, then let
    it fall along half a cosine.
    """
    start = warmup * steps
    if step + 1 < start:
        return (step + 1) / start
    return cosine_decay(step - start, steps - start)


# ---------------------------------------------------------------- the model


@dataclass
class ToyModelConfig:
    """The shape of `n_inst` toy models. Features come in this order: correlated pairs,
    anticorrelated pairs, the rest.

    Raises:
        ValueError: a number is negative, there is no model, or the pairs need more
            features than there are.
    """

    n_inst: int
    n_features: int = 5
    d_hidden: int = 2
    n_correlated_pairs: int = 0
    n_anticorrelated_pairs: int = 0

    def __post_init__(self):
        pairs = self.n_correlated_pairs + self.n_anticorrelated_pairs
        if self.n_inst < 1 or min(vars(self).values()) < 0:
            raise ValueError(
                f"give at least one instance and no negative number: {self}"
            )
        if self.d_hidden < 1:
            raise ValueError(
                f"d_hidden is {self.d_hidden}: give at least one hidden dimension"
            )
        if 2 * pairs > self.n_features:
            raise ValueError(
                f"the pairs need more than {self.n_features} features: raise n_features"
            )


@dataclass
class History:
    """What `optimize` recorded: step numbers, losses and copies of W at those steps,
    the last step included.
    """

    steps: list[int]
    losses: Float[Tensor, "log inst"]
    W: Float[Tensor, "log inst d_hidden feats"]


class ToyModel(nn.Module):
    """Squeeze sparse features through a few dimensions and rebuild them: out = ReLU(Wᵀ
    W x + b).

    Args:
        feature_probability: chance that a feature is on, anything that broadcasts to
            [inst feats].
        importance: weight of each feature's squared error in the loss, likewise.

    Raises:
        ValueError: a probability is not in [0, 1].

    Source: arXiv 2209.10652, "ReLU output model".
    """

    W: Float[Tensor, "inst d_hidden feats"]
    b_final: Float[Tensor, "inst feats"]

    def __init__(
        self,
        cfg: ToyModelConfig,
        feature_probability: float | Tensor = 0.01,
        importance: float | Tensor = 1.0,
    ):
        super().__init__()
        self.cfg = cfg
        inst, d_hidden, feats = cfg.n_inst, cfg.d_hidden, cfg.n_features
        probability = torch.as_tensor(
            feature_probability, dtype=torch.get_default_dtype()
        )
        if ((probability < 0) | (probability > 1)).any():
            raise ValueError("feature_probability holds a value outside [0, 1]")
        importance = torch.as_tensor(importance, dtype=torch.get_default_dtype())
        self.register_buffer(
            "feature_probability", probability.expand(inst, feats).clone()
        )
        self.register_buffer("importance", importance.expand(inst, feats).clone())
        # Xavier's scale: the hidden vector is neither blown up nor lost.
        self.W = nn.Parameter(
            torch.randn(inst, d_hidden, feats) * math.sqrt(2 / (d_hidden + feats))
        )
        self.b_final = nn.Parameter(torch.zeros(inst, feats))

    def forward(
        self, features: Float[Tensor, "batch inst feats"]
    ) -> Float[Tensor, "batch inst feats"]:
        """Compress with W, rebuild with its transpose, add the bias, clip at 0."""
        x = einops.rearrange(features, "batch inst feats -> inst feats batch")
        hidden = self.W @ x
        # WᵀW x + b; baddbmm adds while it multiplies.
        out = F.relu(torch.baddbmm(self.b_final[..., None], self.W.mT, hidden))
        return einops.rearrange(out, "inst feats batch -> batch inst feats")

    def generate_batch(self, batch_size: int) -> Float[Tensor, "batch inst feats"]:
        """Draw fresh features: the correlated pairs first, then the anticorrelated
        pairs, then the rest.

        A pair is on with the probability of its first feature.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}: give at least 1")
        p, together = self.feature_probability, 2 * self.cfg.n_correlated_pairs
        pairs = together + 2 * self.cfg.n_anticorrelated_pairs
        parts = []
        if together:
            parts.append(generate_correlated_features(p[:, :together:2], batch_size))
        if pairs > together:
            apart = p[:, together:pairs:2]
            parts.append(generate_anticorrelated_features(apart, batch_size))
        parts.append(generate_uncorrelated_features(p[:, pairs:], batch_size))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def calculate_loss(
        self,
        out: Float[Tensor, "batch inst feats"],
        batch: Float[Tensor, "batch inst feats"],
    ) -> Float[Tensor, " inst"]:
        """One loss per model: squared error times importance, averaged over batch and
        features; 0 without features.
        """
        squared_error = ((out - batch) ** 2).sum(dim=0) / batch.shape[0]
        weighted = (self.importance * squared_error).sum(dim=-1)
        return weighted / max(1, self.cfg.n_features)

    def optimize(
        self,
        steps: int = 5_000,
        batch_size: int = 1_024,
        lr: float = 1e-2,
        schedule: Callable[[int, int], float] = cosine_decay,
        weight_decay: float = 0.0,
        log_every: int | None = None,
        checkpoint: Path | str | None = None,
    ) -> History:
        """Train all models at once with AdamW, each on its own batches.

        Args:
            schedule: factor on `lr` at (step, steps).
            log_every: record losses and W each so many steps; default: 50 records in
                all.
            checkpoint: file to save to at each record, and to go on from if it exists.
        """
        # One thread: these tensors are small, and sums come out the same on every
        # number of cores.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return self._train(
                steps,
                batch_size,
                lr,
                schedule,
                weight_decay,
                log_every or max(1, steps // 50),
                checkpoint,
            )
        finally:
            torch.set_num_threads(threads)

    def _train(
        self, steps, batch_size, lr, schedule, weight_decay, log_every, checkpoint
    ) -> History:
        optimizer = torch.optim.AdamW(
            self.parameters(), lr=lr, weight_decay=weight_decay, fused=True
        )
        record, start = [], 0
        if checkpoint is not None and Path(checkpoint).exists():
            saved = torch.load(checkpoint, weights_only=True)
            self.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            record, start = saved["record"], saved["step"]
            torch.set_rng_state(saved["rng"])
        for step in tqdm(
            range(start, steps), initial=start, total=steps, mininterval=1, leave=False
        ):
            for group in optimizer.param_groups:
                group["lr"] = lr * schedule(step, steps)
            batch = self.generate_batch(batch_size)
            losses = self.calculate_loss(self(batch), batch)
            optimizer.zero_grad()
            losses.sum().backward()
            optimizer.step()
            if (step + 1) % log_every == 0 or step + 1 == steps:
                record.append(
                    (step + 1, losses.detach().cpu(), self.W.detach().cpu().clone())
                )
                if checkpoint is not None:
                    state = {
                        "model": self.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "record": record,
                    }
                    partial = Path(f"{checkpoint}.partial")
                    torch.save(
                        {**state, "step": step + 1, "rng": torch.get_rng_state()},
                        partial,
                    )
                    partial.replace(
                        checkpoint
                    )  # a stop while saving leaves the old file whole
        if not record:
            return History(
                [], torch.zeros(0, self.cfg.n_inst), torch.zeros(0, *self.W.shape)
            )
        logged, losses, weights = zip(*record, strict=True)
        return History(list(logged), torch.stack(losses), torch.stack(weights))

    @torch.no_grad()
    def evaluate(self, batch_size: int = 100_000) -> Float[Tensor, " inst"]:
        """Loss of each model on a large fresh batch."""
        batch = self.generate_batch(batch_size)
        return self.calculate_loss(self(batch), batch)


# -------------------------------- baselines without superposition


def drop_baseline(
    feature_probability: Float[Tensor, "inst feats"],
    importance: Float[Tensor, "inst feats"],
    d_hidden: int,
) -> Float[Tensor, " inst"]:
    """Expected loss of a model that rebuilds `d_hidden` features perfectly and answers
    a constant for the others.

    It keeps the features that would cost most, and for each other one its best
    constant, the mean. A feature that is on with probability p has mean p/2 and
    variance p/3 - p²/4.
    """
    p = feature_probability
    cost = importance * (p / 3 - p**2 / 4)
    dropped = cost.sort(dim=-1, descending=True).values[:, d_hidden:]
    return dropped.sum(-1) / max(1, p.shape[-1])


def pca_baseline(
    batch: Float[Tensor, "batch inst feats"],
    importance: Float[Tensor, "inst feats"],
    d_hidden: int,
) -> Float[Tensor, " inst"]:
    """Loss of the best linear code of `d_hidden` dimensions: principal components of
    the batch, no ReLU.

    Features are scaled by the square root of their importance first, so that squared
    error counts as the loss does.
    """
    scaled = einops.rearrange(
        batch * importance.sqrt(), "batch inst feats -> inst batch feats"
    )
    centred = scaled - scaled.mean(dim=1, keepdim=True)
    # What is left out is the sum of the smaller eigenvalues of the covariance matrix.
    covariance = centred.mT @ centred / batch.shape[0]
    eigenvalues = torch.linalg.eigvalsh(covariance).clamp_min(0)
    return eigenvalues[:, : max(0, batch.shape[-1] - d_hidden)].sum(-1) / max(
        1, batch.shape[-1]
    )


# ---------------------------------------------------------------- neurons


class NeuronModel(ToyModel):
    """A toy model with neurons: out = ReLU(Wᵀ ReLU(W x) + b). The ReLU singles out the
    hidden axes as a basis.

    Source: arXiv 2209.10652, section "Superposition in a Privileged Basis".
    """

    def forward(
        self, features: Float[Tensor, "batch inst feats"]
    ) -> Float[Tensor, "batch inst feats"]:
        """As in `ToyModel`, with a ReLU on the hidden vector too."""
        x = einops.rearrange(features, "batch inst feats -> inst feats batch")
        neurons = F.relu(self.W @ x)
        out = F.relu(self.W.mT @ neurons + self.b_final[..., None])
        return einops.rearrange(out, "inst feats batch -> batch inst feats")


class NeuronComputationModel(ToyModel):
    """Neurons that compute |x| for features on [-1, 1]: out = ReLU(W_outᵀ ReLU(W x) +
    b).

    `W` [inst d_hidden feats] reads, `W_out` [inst d_hidden feats] writes; they are not
    tied.

    Source: arXiv 2209.10652, section "Computation in Superposition".
    """

    W_out: Float[Tensor, "inst d_hidden feats"]

    def __init__(
        self,
        cfg: ToyModelConfig,
        feature_probability: float | Tensor = 0.01,
        importance: float | Tensor = 1.0,
    ):
        super().__init__(cfg, feature_probability, importance)
        self.W_out = nn.Parameter(
            torch.randn_like(self.W) * math.sqrt(2 / (cfg.d_hidden + cfg.n_features))
        )

    def forward(
        self, features: Float[Tensor, "batch inst feats"]
    ) -> Float[Tensor, "batch inst feats"]:
        """Read with W, clip, write with W_out, add the bias, clip."""
        x = einops.rearrange(features, "batch inst feats -> inst feats batch")
        neurons = F.relu(self.W @ x)
        out = F.relu(self.W_out.mT @ neurons + self.b_final[..., None])
        return einops.rearrange(out, "inst feats batch -> batch inst feats")

    def generate_batch(self, batch_size: int) -> Float[Tensor, "batch inst feats"]:
        """As in `ToyModel`, but a feature that is on is uniform between -1 and 1."""
        size = super().generate_batch(batch_size)
        sign = torch.randint(0, 2, size.shape, device=size.device) * 2 - 1
        return size * sign

    def calculate_loss(
        self,
        out: Float[Tensor, "batch inst feats"],
        batch: Float[Tensor, "batch inst feats"],
    ) -> Float[Tensor, " inst"]:
        """As in `ToyModel`, but the target is the absolute value of the features."""
        return super().calculate_loss(out, batch.abs())


def top_neuron_share(
    W: Float[Tensor, "... d_hidden feats"],
) -> Float[Tensor, "... feats"]:
    """Share of each feature's squared weight that lies in its largest neuron; 0 for a
    zero feature.

    1: the feature has a neuron to itself in its own column; 1/d_hidden: spread evenly
    over all neurons.
    """
    squared = W.pow(2)
    total = squared.sum(-2)
    return torch.where(total > 0, squared.amax(-2) / total.clamp_min(1e-30), 0.0)


def features_per_neuron(
    W: Float[Tensor, "... d_hidden feats"], threshold: float = 0.3
) -> Int[Tensor, "... d_hidden"]:
    """How many features each neuron serves: those whose weight is above `threshold` of
    the neuron's largest.

    A neuron whose largest weight is below 0.1 serves none.
    """
    if W.shape[-1] == 0:
        return torch.zeros(W.shape[:-1], dtype=torch.long, device=W.device)
    sizes = W.abs()
    largest = sizes.amax(-1, keepdim=True)
    return ((sizes > threshold * largest) & (largest > 0.1)).sum(-1)


# ---------------------------------------------------------------- capacity


def feature_capacity(
    W: Float[Tensor, "... d_hidden feats"],
) -> Float[Tensor, "... feats"]:
    """The share of a dimension that each feature uses: C_i = (W_i·W_i)² / Σ_j
    (W_i·W_j)², 0 for a zero feature.

    The capacities add up to at most `d_hidden`.

    Source: arXiv 2210.01892, section 2.
    """
    gram = W.mT @ W
    own = gram.diagonal(dim1=-2, dim2=-1).pow(2)
    # The smallest squares underflow to 0 in the same place above and below.
    total = gram.pow(2).sum(-1)
    return torch.where(total > 0, own / total.clamp_min(1e-30), 0.0)


def quadratic_loss(
    W: Float[Tensor, "inst d_hidden feats"],
    value: Float[Tensor, "inst feats"],
    kurtosis: Float[Tensor, " inst"],
) -> Float[Tensor, " inst"]:
    """Exact expected loss of a model with squared neurons: it should give Σ_i v_i x_i²
    and gives |W x|² + a constant.

    The x_i are independent with mean 0, variance 1 and the given kurtosis E[x⁴]; the
    constant is the best one. With M = WᵀW - diag(v) the loss is (kurtosis - 1) Σ_i
    M_ii² + 2 Σ_{i≠j} M_ij². No sampling is needed.

    Source: the quadratic toy model of arXiv 2210.01892, section 3.
    """
    gap = W.mT @ W - torch.diag_embed(value)
    own = gap.diagonal(dim1=-2, dim2=-1).pow(2).sum(-1)
    return (kurtosis - 1) * own + 2 * (gap.pow(2).sum((-2, -1)) - own)


def train_quadratic(
    value: Float[Tensor, "inst feats"],
    kurtosis: Float[Tensor, " inst"],
    d_hidden: int,
    steps: int = 3_000,
    lr: float = 1e-2,
) -> Float[Tensor, "inst d_hidden feats"]:
    """Minimise `quadratic_loss` by gradient descent from a random start; returns W."""
    inst, feats = value.shape
    W = nn.Parameter(
        torch.randn(inst, d_hidden, feats) * math.sqrt(2 / (d_hidden + feats))
    )
    optimizer = torch.optim.Adam([W], lr=lr, fused=True)
    for step in tqdm(range(steps), mininterval=1, leave=False):
        optimizer.param_groups[0]["lr"] = lr * cosine_decay(step, steps)
        loss = quadratic_loss(W, value, kurtosis).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return W.detach()


def allocate_capacity(
    value: Float[Tensor, " feats"], kurtosis: float, d_hidden: int
) -> Float[Tensor, " feats"]:
    """The capacities that minimise the quadratic model's loss when they may add up to
    `d_hidden`.

    A feature with capacity C costs v² · 2(κ-1)(1-C) / (2 + (κ-3)C): its gain from more
    capacity is the marginal value v² · 2(κ-1)² / (2 + (κ-3)C)². Up to κ = 3 this does
    not fall with C: winner takes all, the largest values get 1. Above, it falls:
    features share until all that are neither 0 nor 1 have the same marginal value.

    Raises:
        ValueError: the kurtosis is below 1, which no distribution has.

    Source: arXiv 2210.01892, section 3, derived here for the loss of `quadratic_loss`.
    """
    if kurtosis < 1:
        raise ValueError(f"kurtosis is {kurtosis}: it is at least 1")
    feats = value.shape[-1]
    if d_hidden >= feats:
        return torch.ones_like(value)
    if kurtosis <= 3:
        return torch.zeros_like(value).index_fill(
            0, value.abs().topk(d_hidden).indices, 1.0
        )
    # Setting the marginal value to 2(κ-1)²/s² gives C = (v·s - 2) / (κ-3), clipped;
    # search the s that spends d_hidden.
    low, high = (
        0.0,
        (kurtosis - 1) / value.abs()[value != 0].min().item()
        if (value != 0).any()
        else 0.0,
    )
    for _ in range(100):
        s = (low + high) / 2
        capacity = ((value.abs() * s - 2) / (kurtosis - 3)).clamp(0, 1)
        low, high = (s, high) if capacity.sum() < d_hidden else (low, s)
    return capacity
