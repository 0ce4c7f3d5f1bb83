"""What a linear reader finds in an activation: probes of all of it and of k units, and
what such a share is worth.

Source: "Finding Neurons in a Haystack: Case Studies with Sparse Probing" (arXiv
2305.01610).
"""

import einops
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from utils.saes import fires_on_second_half

__all__ = [
    "k_sparse_scores",
    "look_up_scores",
    "probe_scores",
    "sets_of_words",
    "share_detected",
]


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
    shape = (x.shape[1], labels.shape[1])
    return _logistic_regression(x, labels, shape, torch.matmul, iterations)


@torch.no_grad()
def best_k_units(
    values: Float[Tensor, "token unit"], labels: Bool[Tensor, "token label"], k: int
) -> Int[Tensor, "label k"]:
    """For each label the `k` units that differ most between the tokens that carry it
    and those that don't, the most different one first.

    How far a unit differs is the distance between its two means, in its own standard
    deviations; which of them is larger doesn't count. Only the first half of the tokens
    has a say. At least 2 of them carry each label, and not all do.
    """
    half = len(values) // 2
    seen, truth = values[:half], labels[:half].to(values.dtype)
    with_label = truth.T @ seen / truth.sum(0)[:, None]
    without = (1 - truth).T @ seen / (1 - truth).sum(0)[:, None]
    # A unit that is the same everywhere differs by 0.
    difference = (with_label - without) / seen.std(0).clamp_min(1e-6)
    return difference.abs().topk(k, dim=1).indices


def k_sparse_scores(
    values: Float[Tensor, "token unit"],
    labels: Bool[Tensor, "token label"],
    units: Int[Tensor, "label k"],
    iterations: int = 30,
) -> Float[Tensor, "token label"]:
    """What a k-sparse probe says of each label on each token: a linear probe that reads
    the label's own units alone.

    As `probe_scores`, it sees the labels of the first half of the tokens only.
    """
    own = values[:, units.flatten()].unflatten(1, units.shape)
    return _logistic_regression(
        own, labels, units.shape, lambda x, weight: (x * weight).sum(-1), iterations
    )


def _logistic_regression(x, labels, shape, product, iterations):
    """Logits `product(x, weight) + bias` for each label, fitted on the first half."""
    half = len(x) // 2
    x = (x - x[:half].mean(0)) / x[:half].std(0).clamp_min(1e-6)
    truth = labels[:half].to(x.dtype)
    weight = torch.zeros(shape, device=x.device, requires_grad=True)
    bias = torch.zeros(labels.shape[1], device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=iterations, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = product(x[:half], weight) + bias
        loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / half
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    return (product(x, weight) + bias).detach()


def look_up_scores(
    tokens: Int[Tensor, " token"], labels: Bool[Tensor, "token label"]
) -> Float[Tensor, "token label"]:
    """What a table says that knows nothing but the token: the share of a token's places
    in the first half that carry the label."""
    half = len(tokens) // 2
    count = torch.bincount(tokens[:half], minlength=tokens.max() + 1)
    carried = torch.zeros(len(count), labels.shape[1], device=tokens.device).index_add_(
        0, tokens[:half], labels[:half].float()
    )
    return (carried / count.clamp_min(1)[:, None])[tokens]


def sets_of_words(
    labels: Bool[Tensor, "token label"], tokens: Int[Tensor, " token"], seed: int = 0
) -> Bool[Tensor, "token label"]:
    """Labels without a meaning: for each of `labels` a random set of tokens that, all
    together, stand in at most as many places ("it is one of these words")."""
    generator = torch.Generator().manual_seed(seed)
    count = torch.bincount(tokens).cpu()
    sets = []
    for places in labels.sum(0).tolist():
        drawn = torch.randperm(len(count), generator=generator)
        drawn = drawn[(count[drawn] > 0) & (count[drawn] <= places)]
        drawn = drawn[count[drawn].cumsum(0) <= places]
        sets.append(torch.isin(tokens, drawn.to(tokens.device)))
    return torch.stack(sets, dim=1)


def share_detected(
    scores: Float[Tensor, "token label"],
    labels: Bool[Tensor, "token label"],
    context: int,
    n: int = 40,
    draws: int = 1000,
) -> tuple[float, float, float]:
    """Share of the labels that their own column of `scores` detects with F1 of at least
    0.8, and the two ends of its 95 % interval.

    One of `n` thresholds is chosen on the first half of the tokens, as in `best_units`,
    and the second half is scored. For the interval its rows of `context` tokens and the
    labels are drawn anew, with replacement, `draws` times (bootstrap).
    """
    fires, truth = fires_on_second_half(scores, labels, n)
    # Above and below F1's bar, for each row: sums over rows give the F1 of any of them.
    parts = torch.stack([2 * (fires & truth), fires.int() + truth.int()]).float()
    parts = torch.stack([row.sum(1) for row in parts.split(context, dim=1)])

    def detected(times: Float[Tensor, "draw row"]) -> Float[Tensor, "draw label"]:
        above, below = einops.einsum(
            times.to(parts), parts, "draw row, row part label -> part draw label"
        )
        return (above / below.clamp_min(1) >= 0.8).float()

    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(len(parts), (draws, len(parts)), generator=generator)
    columns = torch.randint(
        labels.shape[1], (draws, labels.shape[1]), generator=generator
    )
    found = detected(F.one_hot(rows, len(parts)).sum(1)).cpu().gather(1, columns)
    low, high = found.mean(1).quantile(torch.tensor([0.025, 0.975])).tolist()
    return detected(torch.ones(1, len(parts))).mean().item(), low, high
