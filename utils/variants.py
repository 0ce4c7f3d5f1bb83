"""What other models do in another way, RMSNorm and rotary positions; and one model in
other weights.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

# ---------------------------------------------------------------- other weights


def fold_value_biases(
    W_O: Float[Tensor, "n_heads d_head d_model"],
    b_V: Float[Tensor, "n_heads d_head"],
    b_O: Float[Tensor, "d_model"],
) -> tuple[Float[Tensor, "n_heads d_head"], Float[Tensor, "d_model"]]:
    """`(b_V, b_O)` with which the attention layer gives what it gave, and b_V is zero.

    A row of a pattern adds up to 1, so every head moves its b_V wherever it looks.
    """
    # The heads' outputs are added up, and so are their constant parts.
    moved = torch.einsum("he,hed->d", b_V, W_O)
    return torch.zeros_like(b_V), b_O + moved


# ---------------------------------------------------------------- other parts


def rms_norm(
    x: Float[Tensor, "*batch d_model"], w: Float[Tensor, "d_model"], eps: float = 1e-6
) -> Float[Tensor, "*batch d_model"]:
    """x over the root of its mean square, times w (Zhang & Sennrich 2019).

    The mean is over d_model and is not taken off; `eps` is added below the root.
    """
    mean_square = x.pow(2).mean(dim=-1, keepdim=True)
    return x / (mean_square + eps).sqrt() * w


def rotate(
    x: Float[Tensor, "batch pos n_heads d_head"],
    positions: Int[Tensor, "pos"],
    base: float = 10_000.0,
) -> Float[Tensor, "batch pos n_heads d_head"]:
    """Queries or keys, turned by their positions (Su et al. 2021).

    Numbers i and i + d_head / 2 are the two coordinates of a point in a plane of its
    own. At position p it is turned, from the first axis towards the second, by
    p * base ** (-2 i / d_head) radians.
    """
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]
    speed = base ** (-torch.arange(half, device=x.device) / half)
    # [pos 1 half]: all heads turn alike.
    angle = positions[:, None, None] * speed
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
