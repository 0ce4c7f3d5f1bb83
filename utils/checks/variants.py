"""What chapter 02 asks of the functions that change a model's weights or replace its parts."""

import torch
from torch import nn

from utils import variants
from utils.checks.models import noise
from utils.checks.transformer import chapter, numbers

# ---------------------------------------------------------------- fold_value_biases

fold_value_biases = chapter.exercise(variants.fold_value_biases)


@fold_value_biases.cases
def _():
    yield numbers(3, 4, 7), numbers(3, 4, seed=1), numbers(7, seed=2)
    yield numbers(1, 2, 5, seed=3), numbers(1, 2, seed=4), torch.zeros(5)
    yield numbers(2, 6, 6, seed=5), numbers(2, 6, seed=6), numbers(6, seed=7)


@fold_value_biases.mistake("the new b_O is the old one and what the heads move: you dropped the old one")
def _(W_O, b_V, b_O):
    return torch.zeros_like(b_V), torch.einsum("he,hed->d", b_V, W_O)


@fold_value_biases.mistake("b_V is now counted twice: what b_O has taken over must be zero in b_V")
def _(W_O, b_V, b_O):
    return b_V, b_O + torch.einsum("he,hed->d", b_V, W_O)


@fold_value_biases.mistake("you took the mean over the heads: their outputs are added up")
def _(W_O, b_V, b_O):
    return torch.zeros_like(b_V), b_O + torch.einsum("he,hed->hd", b_V, W_O).mean(0)


@fold_value_biases.mistake("you folded the first head only")
def _(W_O, b_V, b_O):
    return torch.zeros_like(b_V), b_O + b_V[0] @ W_O[0]


@fold_value_biases.mistake("you subtracted what the heads move: b_O must do what b_V did")
def _(W_O, b_V, b_O):
    return torch.zeros_like(b_V), b_O - torch.einsum("he,hed->d", b_V, W_O)


@fold_value_biases.mistake("b_V passes through W_O before it reaches the stream: you added it up without")
def _(W_O, b_V, b_O):
    return torch.zeros_like(b_V), b_O + b_V.sum()


@fold_value_biases.law("whatever a head attends to, the layer must write what it wrote before")
def _(fold_value_biases):
    W_O, b_V, b_O = numbers(3, 4, 7, seed=8), numbers(3, 4, seed=9), numbers(7, seed=10)
    pattern, v = numbers(3, 5, 6, seed=11).softmax(-1), numbers(3, 6, 4, seed=12)

    def written(b_V, b_O):
        return torch.einsum("hqk,hke,hed->qd", pattern, v + b_V[:, None], W_O) + b_O

    return torch.allclose(written(*fold_value_biases(W_O, b_V, b_O)), written(b_V, b_O), atol=1e-4)


@fold_value_biases.right
def _(W_O, b_V, b_O):
    return b_V * 0, b_O + b_V.flatten() @ W_O.flatten(0, 1)


# ---------------------------------------------------------------- rms_norm

rms_norm = chapter.exercise(variants.rms_norm)


@rms_norm.cases
def _():
    yield numbers(2, 3, 8) * 3 + 1, 1 + numbers(8, seed=1)
    yield numbers(4, 6, seed=2) + 2, numbers(6, seed=3), 0.3
    yield numbers(5, seed=4), numbers(5, seed=5), 0.02
    yield torch.zeros(1, 2, 4), torch.ones(4)


def _over(x, w, divisor):
    return x / divisor * w


@rms_norm.mistake("you subtracted the mean: RMSNorm leaves it, that is what it saves beside LayerNorm")
def _(x, w, eps=1e-6):
    return _over(x - x.mean(-1, keepdim=True), w, (x.var(-1, keepdim=True, correction=0) + eps).sqrt())


@rms_norm.mistake("you divided by the vector's length: take the mean of the squares, not their sum")
def _(x, w, eps=1e-6):
    return _over(x, w, (x.pow(2).sum(-1, keepdim=True) + eps).sqrt())


@rms_norm.mistake("you added eps to the root: it belongs under it")
def _(x, w, eps=1e-6):
    return _over(x, w, x.pow(2).mean(-1, keepdim=True).sqrt() + eps)


@rms_norm.mistake("your eps is fixed: use the argument")
def _(x, w, eps=1e-6):
    return _over(x, w, (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt())


@rms_norm.mistake("you left w out: the result is scaled by it, number by number")
def _(x, w, eps=1e-6):
    return _over(x, torch.ones_like(w), (x.pow(2).mean(-1, keepdim=True) + eps).sqrt())


@rms_norm.mistake("you scaled by 1 + w, as Gemma does: here w is the whole factor")
def _(x, w, eps=1e-6):
    return _over(x, 1 + w, (x.pow(2).mean(-1, keepdim=True) + eps).sqrt())


@rms_norm.mistake("you took one mean over everything: each vector has its own")
def _(x, w, eps=1e-6):
    return _over(x, w, (x.pow(2).mean() + eps).sqrt())


@rms_norm.mistake("you forgot the root: divide by the root of the mean square")
def _(x, w, eps=1e-6):
    return _over(x, w, x.pow(2).mean(-1, keepdim=True) + eps)


@rms_norm.law("a vector ten times as long must come out the same, and with a mean square of 1 where w is 1")
def _(rms_norm):
    x, one = numbers(3, 9, seed=6) + 1, torch.ones(9)
    out = rms_norm(x, one)
    return torch.allclose(out, rms_norm(10 * x, one), atol=1e-4) and torch.allclose(
        out.pow(2).mean(-1), torch.ones(3), atol=1e-4
    )


@rms_norm.right
def _(x, w, eps=1e-6):
    return nn.functional.rms_norm(x, w.shape, w, eps)


# ---------------------------------------------------------------- rotate

# An angle of many radians is exact to fewer decimals.
rotate = chapter.exercise(variants.rotate, atol=2e-4)


@rotate.cases
def _():
    yield numbers(2, 5, 3, 8), torch.arange(5)
    yield numbers(1, 4, 2, 6, seed=1), torch.tensor([9, 2, 14, 0]), 100.0
    yield numbers(3, 2, 4, 2, seed=2), torch.tensor([16, 17])
    yield numbers(2, 6, 1, 4, seed=3), torch.arange(6), 7.0


def _turned(x, positions, base=10_000.0, speed=None, sign=1.0, pairs="halves"):
    half = x.shape[-1] // 2
    speed = base ** (-torch.arange(half) / half) if speed is None else speed
    turn = torch.polar(torch.ones(()), sign * positions[:, None, None] * speed)
    if pairs == "halves":
        z = torch.complex(x[..., :half], x[..., half:]) * turn
        return torch.cat([z.real, z.imag], dim=-1)
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (half, 2)).contiguous()) * turn).flatten(-2)


@rotate.mistake("you paired neighbours, 0 with 1: number i goes with i + d_head / 2")
def _(x, positions, base=10_000.0):
    return _turned(x, positions, base, pairs="neighbours")


@rotate.mistake("you turned the other way: first * cos - second * sin comes first")
def _(x, positions, base=10_000.0):
    return _turned(x, positions, base, sign=-1.0)


@rotate.mistake("all planes turn at one speed: plane i turns by base ** (-2 i / d_head) a position")
def _(x, positions, base=10_000.0):
    return _turned(x, positions, speed=torch.ones(x.shape[-1] // 2))


@rotate.mistake("your speeds fall half as fast: the exponent is -2 i / d_head")
def _(x, positions, base=10_000.0):
    half = x.shape[-1] // 2
    return _turned(x, positions, speed=base ** (-torch.arange(half) / (2 * half)))


@rotate.mistake("the last plane must not be the fast one: the exponent is negative")
def _(x, positions, base=10_000.0):
    half = x.shape[-1] // 2
    return _turned(x, positions, speed=base ** (torch.arange(half) / half - 1))


@rotate.mistake("you counted the places from 0: turn by the positions that are given")
def _(x, positions, base=10_000.0):
    return _turned(x, torch.arange(len(positions)), base)


@rotate.mistake("your base is fixed: use the argument")
def _(x, positions, base=10_000.0):
    return _turned(x, positions)


@rotate.mistake("those are degrees: the angle is in radians")
def _(x, positions, base=10_000.0):
    return _turned(x, positions.double().deg2rad().float(), base)


@rotate.law("a query and a key that are moved along by the same number of places must have the same score")
def _(rotate):
    q, k = noise(1, 1, 1, 8, seed=4), noise(1, 1, 1, 8, seed=5)

    def score(at_q, at_k):
        return (rotate(q, torch.tensor([at_q])) * rotate(k, torch.tensor([at_k]))).sum()

    near = torch.allclose(score(7, 3), score(17, 13), atol=1e-3)
    return near and not torch.allclose(score(7, 3), score(7, 5), atol=1e-2)


@rotate.law("turning must not change a vector's length, and position 0 changes nothing")
def _(rotate):
    x = numbers(2, 3, 2, 6, seed=6)
    out = rotate(x, torch.tensor([0, 5, 11]))
    return torch.allclose(out.norm(dim=-1), x.norm(dim=-1), atol=1e-3) and torch.allclose(out[:, 0], x[:, 0], atol=1e-6)


@rotate.right
def _(x, positions, base=10_000.0):
    return _turned(x, positions, base)
