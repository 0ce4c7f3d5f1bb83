"""Double descent in toy models: what they store of a fixed dataset, data points or
features, by its size.

Source: "Superposition, Memorization, and Double Descent"
(transformer-circuits.pub/2023/toy-double-descent).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from utils.superposition import (
    ToyModel,
    ToyModelConfig,
    generate_uncorrelated_features,
    warmup_cosine,
)

# What chapter 06 imports: all but its exercises.
__all__ = ["double_descent"]


def generate_dataset(
    n_points: int, n_features: int, feature_probability: float
) -> Float[Tensor, "n_points feats"]:
    """Sparse data points of length 1, none of them empty: a point in which no feature
    is on is drawn again.

    Source: the double-descent note, "Experiment setup".

    Raises:
        ValueError: the probability or the number of features is 0, so that every point
            is empty.
    """
    if n_features < 1 or feature_probability <= 0:
        raise ValueError(
            "a data point needs at least one feature that can be on: raise "
            "feature_probability"
        )
    p = torch.full((1, n_features), float(feature_probability))
    points = generate_uncorrelated_features(p, n_points)[:, 0]
    while (empty := points.sum(-1) == 0).any():
        points[empty] = generate_uncorrelated_features(p, int(empty.sum()))[:, 0]
    return points / points.norm(dim=-1, keepdim=True)


class FixedDataModel(ToyModel):
    """Toy models that see the same data at every step: `datasets[i]` [points feats] is
    all that model i ever sees.

    Datasets of different sizes are padded with rows of weight 0, so that all models
    still train in one batch.
    """

    def __init__(
        self, datasets: Sequence[Float[Tensor, "points feats"]], d_hidden: int = 2
    ):
        super().__init__(ToyModelConfig(len(datasets), datasets[0].shape[-1], d_hidden))
        rows = max(len(data) for data in datasets)
        padded = torch.zeros(len(datasets), self.cfg.n_features, rows)
        weight = torch.zeros(len(datasets), 1, rows)
        for i, data in enumerate(datasets):
            padded[i, :, : len(data)] = data.T
            weight[i, :, : len(data)] = 1 / len(data)
        self.register_buffer("data", padded.permute(2, 0, 1), persistent=False)
        self.register_buffer("row_weight", weight.permute(2, 0, 1), persistent=False)

    def generate_batch(self, batch_size: int = 0) -> Float[Tensor, "rows inst feats"]:
        """All the data, every time."""
        return self.data

    def calculate_loss(
        self,
        out: Float[Tensor, "rows inst feats"],
        batch: Float[Tensor, "rows inst feats"],
    ) -> Float[Tensor, " inst"]:
        """Squared length of the error per data point, averaged over each model's own
        points.
        """
        return (self.row_weight * (out - batch) ** 2).sum(dim=(0, 2))


@dataclass
class SizeResult:
    """What came of one dataset size; losses are squared lengths of the error per point
    of length 1.
    """

    n_points: int
    train_loss: float
    test_loss: float
    W: Float[Tensor, "d_hidden feats"]
    hidden: Float[Tensor, "d_hidden points"]


def double_descent(
    sizes: Sequence[int],
    n_features: int = 200,
    feature_probability: float = 0.02,
    d_hidden: int = 2,
    steps: int = 5_000,
    lr: float = 1e-2,
    weight_decay: float = 1e-2,
    n_test: int = 5_000,
    seed: int = 0,
    folder: Path | str | None = None,
    device: torch.device | str = "cpu",
) -> list[SizeResult]:
    """Train one model per dataset size on that fixed dataset, and test all of them on
    the same fresh points, in double precision.

    Sizes that are close share a batch, padded to the largest of them. The note's own
    size is `n_features=10_000, feature_probability=0.001, steps=50_000, lr=1e-3`: give
    it a GPU and a folder.

    Args:
        sizes: numbers of data points.
        folder: where to save each batch of models as it trains; a second call goes on
            from there.

    Source: the double-descent note, "Experiment setup".
    """
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    test = generate_dataset(n_test, n_features, feature_probability).double()
    results = []
    for group in _groups(sorted(sizes)):
        datasets = [
            generate_dataset(size, n_features, feature_probability).double()
            for size in group
        ]
        model = FixedDataModel(datasets, d_hidden).double().to(device)
        name = None
        if folder is not None:
            Path(folder).mkdir(parents=True, exist_ok=True)
            name = Path(folder) / f"points_{group[0]}_to_{group[-1]}.pt"
        model.optimize(
            steps,
            lr=lr,
            weight_decay=weight_decay,
            schedule=warmup_cosine,
            checkpoint=name,
        )
        W, b = model.W.detach().cpu(), model.b_final.detach().cpu()
        for i, (size, data) in enumerate(zip(group, datasets, strict=True)):
            losses = [
                ((F.relu(x @ W[i].T @ W[i] + b[i]) - x) ** 2).sum(-1).mean().item()
                for x in (data, test)
            ]
            results.append(SizeResult(size, *losses, W[i], W[i] @ data.T))
    torch.set_rng_state(generator_state)
    return results


def _groups(sizes: Sequence[int], small: int = 64) -> list[list[int]]:
    """Split sorted sizes so that padding at most doubles a dataset, except among the
    small ones.
    """
    groups: list[list[int]] = []
    for size in sizes:
        if groups and size <= max(small, 2 * groups[-1][0]):
            groups[-1].append(size)
        else:
            groups.append([size])
    return groups
