"""Inputs drawn from a function's own annotations, to tell whether a mutant equals its solution: not from the check."""

import copy
import inspect
import random
import re
import types
import typing
from collections.abc import Callable

import torch

from utils.checks.compare import difference
from utils.checks.guards import tensors_in
from utils.runtime import seed_everything

DRAWS, AT_LEAST = 1_000, 200  # inputs to try, more where the solution takes fewer than so many of them
SIZES = (1, 1, 2, 2, 3, 4, 5, 6)
NUMBERS = (-2, -1, 0, 1, 2, 3, 5)
TEXTS = ("", "a", "b", "ab", "aab", "c d", " a")


class NotSimple(Exception):
    """The annotations do not say enough to draw from."""


def equal(mutant: Callable, solution: Callable, draws: int = DRAWS) -> bool | None:
    """Whether the two agree on `draws` drawn inputs: result, gradient, type of the exception, and what is left of the
    inputs. None where the annotations are not enough to draw from, or the solution refuses nearly all that is drawn.
    """
    taken = 0
    for seed in range(10 * draws):
        if seed >= draws and taken >= AT_LEAST:
            return True
        try:
            args = arguments(solution, random.Random(seed))
        except NotSimple:
            return None
        ours, mine = (_call(fn, copy.deepcopy(args)) for fn in (solution, mutant))
        taken += ours[0] is None
        if ours[0] is not mine[0] or any(_differ(a, b) for a, b in zip(ours[1:], mine[1:], strict=True)):
            return False
    return None


def _call(fn: Callable, args: list) -> tuple:
    """(type of the exception, result, arguments after it, gradients)."""
    seed_everything(0)
    floats = [t for a in args for t in tensors_in(a)]
    with torch.enable_grad():
        try:
            result = fn(*args)
        except Exception as error:
            return type(error), None, args, None
        for t in floats:
            t.requires_grad_(True) if t.is_leaf else None
        seed_everything(0)
        try:
            numbers = [t for t in tensors_in(fn(*args)) if t.requires_grad]
            total = sum((t * torch.linspace(0.5, 1.5, t.numel()).view(t.shape)).sum() for t in numbers)
            gradients = torch.autograd.grad(total, floats, allow_unused=True) if numbers else None
        except Exception as error:
            gradients = type(error).__name__
    return None, result, args, gradients


def _differ(a, b) -> bool:
    try:
        return difference(a, b, rtol=1e-5, atol=1e-7) is not None
    except Exception:
        return a is not b


def arguments(fn: Callable, draw: random.Random) -> list:
    """One value for each parameter; dimensions of one name have one size.

    Raises:
        NotSimple: a parameter's annotation is not one of tensors, numbers, texts and lists of them.
    """
    sizes: dict[str, int] = {}
    return [_value(p, sizes, draw) for p in inspect.signature(fn, eval_str=True).parameters.values()]


def _value(parameter: inspect.Parameter, sizes: dict, draw: random.Random):
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise NotSimple
    if parameter.default is not parameter.empty and draw.random() < 0.3:
        return parameter.default
    return _of(parameter.annotation, sizes, draw)


def _of(annotation, sizes: dict, draw: random.Random):
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return _of(draw.choice(typing.get_args(annotation)), sizes, draw)
    if hasattr(annotation, "dim_str"):
        return _tensor(annotation, sizes, draw)
    if annotation in (None, type(None)):
        return None
    if annotation is bool:
        return draw.random() < 0.5
    if annotation is int:
        return draw.choice([*NUMBERS, *sizes.values()])
    if annotation is float:
        return draw.choice([*map(float, NUMBERS), 0.5, draw.random(), 10 * draw.gauss(0, 1)])
    if annotation is str:
        return draw.choice(TEXTS)
    if typing.get_origin(annotation) is typing.Literal:
        return draw.choice(typing.get_args(annotation))
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is list and inner:
        return [_of(inner[0], sizes, draw) for _ in range(draw.choice((0, *SIZES)))]
    if origin is tuple and inner:
        if inner[-1] is Ellipsis:
            return tuple(_of(inner[0], sizes, draw) for _ in range(draw.choice((0, *SIZES))))
        return tuple(_of(each, sizes, draw) for each in inner)
    if origin is dict and inner:
        return {_of(inner[0], sizes, draw): _of(inner[1], sizes, draw) for _ in range(draw.choice(SIZES))}
    raise NotSimple


def _tensor(annotation, sizes: dict, draw: random.Random) -> torch.Tensor:
    shape = []
    for dim in annotation.dim_str.split():
        dim = dim.partition("=")[2] or dim
        if dim == "..." or dim.startswith("*"):
            for i in range(sizes.setdefault(dim, draw.choice((0, 1, 2)))):
                shape.append(sizes.setdefault(f"{dim}{i}", draw.choice(SIZES)))
            continue
        for name in re.findall(r"[A-Za-z_]\w*", dim):
            sizes.setdefault(name, draw.choice(SIZES))
        try:
            shape.append(max(0, int(eval(dim, {}, dict(sizes)))))
        except Exception:
            raise NotSimple from None
    generator = torch.Generator().manual_seed(draw.randrange(10**6))
    kinds = " ".join(map(str, annotation.dtypes))
    whole = torch.randint(-2, 4, shape, generator=generator)
    if "float" in kinds:
        kind = draw.random()
        return whole.float() if kind < 0.3 else torch.randn(shape, generator=generator) * (0.1 if kind < 0.4 else 1)
    if "bool" in kinds and "int" not in kinds:
        return whole > 0
    below = max(1, min([size for size in sizes.values() if size > 0] or [3]))
    return torch.randint(0, below, shape, generator=generator)
