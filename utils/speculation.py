"""Speculative decoding: a small model drafts tokens, a large one judges them all at
once, and the text is distributed as if the large one had written it alone.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from utils.sampling import PAD, require

# What chapter 03 imports: all but its exercises.
__all__: list[str] = []


def accept_drafted(
    target_probs: Float[Tensor, "batch n_target d_vocab"],
    draft_probs: Float[Tensor, "batch n_draft d_vocab"],
    drafted: Int[Tensor, "batch n_draft"],
) -> Int[Tensor, "batch n_draft+1"]:
    """Of each row the drafted tokens that stay, and one more: distributed as if all had
    been drawn from the target. What is behind them is `PAD`.

    A drafted token stays with probability min(1, target / draft). The first that does
    not is replaced by one drawn in proportion to max(0, target - draft), and ends the
    row. Where all stay, one more is drawn from the target's last distribution.

    Args:
        target_probs: the target's distribution of the token at each place; one place
            more than were drafted.
        draft_probs: the distribution from which the token there was drafted.

    Raises:
        ValueError: the numbers of places don't fit, or a drafted token has probability
            0 in `draft_probs`.

    Source: Leviathan et al. 2023, algorithm 1.
    """
    batch, n_draft = drafted.shape
    require(
        draft_probs.shape[1] == n_draft and target_probs.shape[1] == n_draft + 1,
        f"{n_draft} drafted tokens need as many places of draft_probs and one more of "
        f"target_probs, not {draft_probs.shape[1]} and {target_probs.shape[1]}",
    )
    target = target_probs[:, :-1].gather(2, drafted[:, :, None])[:, :, 0]
    draft = draft_probs.gather(2, drafted[:, :, None])[:, :, 0]
    require(bool((draft > 0).all()), "a drafted token has probability 0 in draft_probs")
    stays = torch.rand_like(draft) * draft < target
    n_kept = stays.long().cumprod(dim=1).sum(dim=1)  # up to the first that falls
    # From what the next token is drawn, for each number of tokens that are kept.
    rest = (target_probs[:, :-1] - draft_probs).clamp(min=0)
    rows = torch.cat([rest, target_probs[:, -1:]], dim=1)
    each = torch.arange(batch, device=drafted.device)
    new = torch.nn.functional.pad(drafted, (0, 1), value=PAD)
    new[each, n_kept] = torch.multinomial(rows[each, n_kept], num_samples=1)[:, 0]
    places = torch.arange(n_draft + 1, device=drafted.device)
    return new.masked_fill(places > n_kept[:, None], PAD)
