"""What is asked of a learner's probes in chapter 08."""

import torch

from utils import probes
from utils.checks.saes import chapter

best_k_units = chapter.exercise(probes.best_k_units)


def _told_apart(tokens: int, units: int, labels: int, seed: int = 0):
    """Units on different scales that know something of the labels, with either sign; the second half says otherwise."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(tokens, labels, generator=generator) < 0.4
    values = torch.randn(tokens, units, generator=generator)
    half = tokens // 2
    weights = torch.randn(labels, units, generator=generator)
    values[:half] += truth[:half].float() @ weights
    values[half:] -= truth[half:].float() @ weights.flip(1)
    return 3 + values * torch.logspace(-1, 1, units), truth


@best_k_units.cases
def _():
    yield *_told_apart(60, 7, 3), 3
    yield *_told_apart(81, 9, 2, seed=1), 1
    values, truth = _told_apart(64, 6, 4, seed=2)
    values[:, 2] = 0.0  # never active
    yield values, truth, 5


def _by_difference(values, labels, k, part=slice(0, None), spread=True, sign=False):
    values, truth = values[part], labels[part].float()
    difference = torch.stack([values[t > 0].mean(0) - values[t == 0].mean(0) for t in truth.T])
    difference = difference / values.std(0).clamp_min(1e-6) if spread else difference
    return (difference if sign else difference.abs()).topk(k, dim=1).indices


@best_k_units.mistake("all tokens had a say: choose on the first half, the second is for the score")
def _(values, labels, k):
    return _by_difference(values, labels, k)


@best_k_units.mistake("you chose on the second half: that one is for the score")
def _(values, labels, k):
    return _by_difference(values, labels, k, slice(len(values) // 2, None))


@best_k_units.mistake("a unit that is low where the label holds tells as much: the sign doesn't count")
def _(values, labels, k):
    return _by_difference(values, labels, k, slice(0, len(values) // 2), sign=True)


@best_k_units.mistake("units on a larger scale win: count the difference in each unit's standard deviations")
def _(values, labels, k):
    return _by_difference(values, labels, k, slice(0, len(values) // 2), spread=False)


@best_k_units.mistake("those differ least: the most different one comes first")
def _(values, labels, k):
    return _by_difference(values, labels, values.shape[1], slice(0, len(values) // 2)).flip(1)[:, :k]


@best_k_units.mistake(
    "those are the largest where the label holds: what counts is how far that is from where it doesn't"
)
def _(values, labels, k):
    half = len(values) // 2
    seen, truth = values[:half], labels[:half].float()
    return (truth.T @ seen / truth.sum(0)[:, None] / seen.std(0).clamp_min(1e-6)).topk(k, dim=1).indices


@best_k_units.law("a unit's scale and sign must not change which are chosen")
def _(best_k_units):
    values, labels = _told_apart(70, 8, 3, seed=4)
    scales = torch.tensor([1.0, -20, 0.3, 5, -1, 1, 100, -0.01])
    return torch.equal(best_k_units(values, labels, 4), best_k_units(values * scales, labels, 4))


@best_k_units.right
def _(values, labels, k):
    # A correlation with the label is the same difference, up to a factor that is the label's alone.
    half = len(values) // 2
    seen, truth = values[:half].double(), labels[:half].double()
    seen = seen - seen.mean(0)
    correlation = (truth - truth.mean(0)).T @ (seen / seen.norm(dim=0).clamp_min(1e-6))
    return correlation.abs().argsort(dim=1, descending=True)[:, :k]
