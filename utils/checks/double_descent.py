"""What chapter 06 asks of the data of double descent, and the mistakes it recognises."""

import torch
from torch.nn import functional as F

from utils import double_descent as dd
from utils.checks.compare import difference
from utils.checks.superposition import chapter

exercise = chapter.exercise

# ---------------------------------------------------------------- data of double descent


def run_dataset(generate, n_points, n_features, feature_probability):
    """Shape, lengths, and statistics of the data drawn."""
    data = generate(n_points, n_features, feature_probability)
    on = data != 0
    return {
        "shape": list(data.shape),
        "lengths": data.norm(dim=-1),
        "frequency": on.float().mean(),
        "smallest": data.min().clamp(max=0),
        "largest entry of two": data[on.sum(-1) == 2].amax(-1).mean() if (on.sum(-1) == 2).any() else 0.0,
    }


generate_dataset = exercise(
    dd.generate_dataset, use=run_dataset, same=lambda got, want, *args: difference(got, want, rtol=0, atol=0.02)
)


@generate_dataset.cases
def _():
    yield 3_000, 20, 0.05
    yield 2_000, 3, 0.2
    yield 5, 40, 1.0
    yield 4, 3, 0.0
    yield 4, 0, 0.5
    yield 3_000, 1, 0.5


def _raw(n_points, n_features, p):
    if n_features < 1 or p <= 0:
        raise ValueError("empty")
    rows, on = torch.rand(2, n_points, n_features, device="cpu")
    return rows * (on < p)


@generate_dataset.mistake("the points do not have length 1: divide each row by its length")
def _(n_points, n_features, feature_probability):
    data = _raw(n_points, n_features, feature_probability)
    while (empty := data.sum(1) == 0).any():
        data[empty] = _raw(int(empty.sum()), n_features, feature_probability)
    return data


@generate_dataset.mistake("a point without any feature has length 0 and becomes NaN: draw such points again")
def _(n_points, n_features, feature_probability):
    data = _raw(n_points, n_features, feature_probability)
    return data / data.norm(dim=1, keepdim=True)


@generate_dataset.mistake("you left empty points in: draw them again until each has a feature on")
def _(n_points, n_features, feature_probability):
    return F.normalize(_raw(n_points, n_features, feature_probability), dim=1)


@generate_dataset.mistake("you threw empty points away: there must be exactly n_points, so draw them again")
def _(n_points, n_features, feature_probability):
    data = _raw(n_points, n_features, feature_probability)
    return F.normalize(data[data.sum(1) > 0], dim=1)


@generate_dataset.mistake("you scaled the columns: each point, a row, must have length 1")
def _(n_points, n_features, feature_probability):
    return F.normalize(dd.generate_dataset(n_points, n_features, feature_probability), dim=0)


@generate_dataset.law("every point must have length 1, however rare the features are")
def _(generate):
    return (generate(200, 4, 0.02).norm(dim=1) - 1).abs().amax() < 1e-4


@generate_dataset.right
def _(n_points, n_features, feature_probability):
    rows = []
    while len(rows) < n_points:
        rows += [row / row.norm() for row in _raw(n_points, n_features, feature_probability) if row.any()]
    return torch.stack(rows[:n_points])
