"""What chapter 03 asks of speculative decoding, and the mistakes it recognises."""

from functools import partial

import torch

from utils import speculation
from utils.checks.compare import difference
from utils.checks.sampling import chapter
from utils.runtime import device
from utils.sampling import PAD

exercise = chapter.exercise

# ---------------------------------------------------------------- accept_drafted

ROUNDS = 4_000
DRAFT = torch.tensor([[0.8, 0.1, 0.05, 0.05], [0.2, 0.2, 0.2, 0.4], [0.9, 0.05, 0.03, 0.02]], device=device())
TARGET = torch.tensor(
    [[0.2, 0.35, 0.35, 0.1], [0.4, 0.2, 0.3, 0.1], [0.45, 0.45, 0.05, 0.05], [0.05, 0.05, 0.1, 0.8]], device=device()
)


def use_drafted(fn, target, draft, drafted):
    """How often each continuation comes back for each row."""
    new = fn(*(x.repeat_interleave(ROUNDS, 0) for x in (target, draft, drafted)))
    if not isinstance(new, torch.Tensor) or new.shape != (ROUNDS * len(drafted), drafted.shape[1] + 1):
        return {"one row of tokens for each": False}
    counts = {}
    for row, found in enumerate(new.reshape(len(drafted), ROUNDS, -1)):
        kinds, times = found.unique(dim=0, return_counts=True)
        counts |= {(row, *kind): n for kind, n in zip(kinds.tolist(), times.tolist(), strict=True)}
    return counts


def same_continuations(got, want, *args):
    if not isinstance(got, dict) or not isinstance(want, dict):
        return difference(got, want)
    if False in got.values() or False in want.values():
        return None if got == want else "expected one row of tokens for each, as many as were drafted and one more"
    for key in sorted(got.keys() | want.keys()):
        a, b = got.get(key, 0) / ROUNDS, want.get(key, 0) / ROUNDS
        p = (a + b) / 2
        if abs(a - b) > 5 * (2 * p * (1 - p) / ROUNDS) ** 0.5 or (b == 0 and a > 0.005):
            row, *new = key
            return f"row {row}: {new} came back in {a:.1%} of {ROUNDS:,} calls, expected about {b:.1%}"
    return None


accept_drafted = exercise(speculation.accept_drafted, use=use_drafted, same=same_continuations)


@accept_drafted.cases
def _():
    yield TARGET.expand(2, -1, -1), DRAFT.expand(2, -1, -1), torch.tensor([[1, 0, 0], [0, 2, 1]])
    yield TARGET[None, :2], DRAFT[None, :1], torch.tensor([[0]])
    yield torch.stack([TARGET[1:], TARGET[:3]]), torch.stack([DRAFT[1:], DRAFT[:2]]), torch.tensor([[3, 0], [0, 3]])
    yield TARGET[None, 3:], DRAFT[None, :0], torch.zeros(1, 0, dtype=torch.long)


@accept_drafted.refused
def _():
    drafted = torch.tensor([[0, 2, 1]])
    yield TARGET[None, :3], DRAFT[None], drafted
    yield TARGET[None], DRAFT[None, :2], drafted
    yield TARGET[None], DRAFT[None] * (torch.arange(4) != 2), drafted


def _chosen(probs, drafted):
    return probs.gather(2, drafted[..., None])[..., 0]


def accepted(
    target,
    draft,
    drafted,
    stays=lambda p, q: torch.rand_like(q) * q < p,
    rest=lambda p, q: (p - q).clamp(min=0),
    last=lambda target: target[:, -1:],
    kept=lambda stays: stays.long().cumprod(1).sum(1),
    draw=lambda rows: torch.multinomial(rows, 1)[:, 0],
    ends=lambda places, n_kept: places > n_kept[:, None],
):
    n = drafted.shape[1]
    if draft.shape[1] != n or target.shape[1] != n + 1:
        raise ValueError("the numbers of places don't fit")
    p, q = _chosen(target[:, :-1], drafted), _chosen(draft, drafted)
    if not (q > 0).all():
        raise ValueError("it can't have been drafted")
    n_kept = kept(stays(p, q))
    rows = torch.cat([rest(target[:, :-1], draft), last(target)], 1)
    each = torch.arange(len(drafted))
    new = torch.nn.functional.pad(drafted, (0, 1), value=PAD)
    new[each, n_kept] = draw(rows[each, n_kept])
    return new.masked_fill(ends(torch.arange(n + 1), n_kept), PAD)


MISTAKEN = {
    "you kept every drafted token: it stays with probability min(1, target / draft)": {
        "stays": lambda p, q: torch.ones_like(q)
    },
    "a drafted token stays where a random number is below the target's probability: below target / draft": {
        "stays": lambda p, q: torch.rand_like(q) < p
    },
    "the ratio is upside down: target / draft, so that what the target likes more always stays": {
        "stays": lambda p, q: torch.rand_like(q) * p < q
    },
    "a token stays only where the target gives it more than the draft: below that, by chance": {
        "stays": lambda p, q: p >= q
    },
    "the replacement is drawn from the target itself: what the draft has given already must be taken off": {
        "rest": lambda p, q: p
    },
    "the replacement is drawn from |target - draft|: only what the target has *above* the draft": {
        "rest": lambda p, q: (p - q).abs()
    },
    "the replacement is the likeliest token: draw it": {"draw": lambda rows: rows.argmax(1)},
    "you counted all tokens that stay, also behind the first that falls: they belong to another text": {
        "kept": lambda stays: stays.long().sum(1)
    },
    "the token after the drafted ones is drawn from the target's place before: take the last": {
        "last": lambda target: target[:, -2:-1] if target.shape[1] > 1 else target[:, -1:]
    },
    "what was drafted behind the first that falls is still there: PAD stands behind the new token": {
        "ends": lambda places, n_kept: (places > n_kept[:, None]) & False
    },
    "the new token is gone: PAD begins behind it": {"ends": lambda places, n_kept: places >= n_kept[:, None]},
}
for sentence, change in MISTAKEN.items():
    accept_drafted.mistake(sentence)(partial(accepted, **change))


@accept_drafted.law("the first token must be distributed as the target's first place, whatever the draft")
def _(accept_drafted):
    drafted = torch.multinomial(DRAFT[0], ROUNDS, replacement=True)[:, None]
    first = accept_drafted(TARGET[:2].expand(ROUNDS, -1, -1), DRAFT[:1].expand(ROUNDS, -1, -1), drafted)[:, 0]
    shares = torch.bincount(first, minlength=4) / ROUNDS
    return bool((shares - TARGET[0]).abs().max() < 0.04)


@accept_drafted.right
def _(target_probs, draft_probs, drafted):
    n = drafted.shape[1]
    if draft_probs.shape[1] != n or target_probs.shape[1] != n + 1 or (_chosen(draft_probs, drafted) == 0).any():
        raise ValueError("that can't have been drafted")
    going, places = torch.ones(len(drafted), dtype=torch.bool), []
    for i in range(n):
        ratio = _chosen(target_probs[:, i : i + 1], drafted[:, i : i + 1]) / _chosen(
            draft_probs[:, i : i + 1], drafted[:, i : i + 1]
        )
        stays = torch.rand(len(drafted)) < ratio[:, 0]
        above = (target_probs[:, i] - draft_probs[:, i]).clamp(min=0)
        other = torch.distributions.Categorical(probs=above + 1e-12).sample()
        places.append(torch.where(going, torch.where(stays, drafted[:, i], other), PAD))
        going = going & stays
    places.append(torch.where(going, torch.distributions.Categorical(probs=target_probs[:, n]).sample(), PAD))
    return torch.stack(places, 1)
