"""Inputs drawn from a function's own annotations, to tell whether a mutant equals its solution: not from the check."""

import collections.abc
import copy
import inspect
import random
import re
import types
import typing
from collections.abc import Callable

import torch
from torch import nn
from transformer_lens import ActivationCache, FactoredMatrix
from transformer_lens.hook_points import HookPoint

from utils.checks import drawn_models
from utils.checks.compare import difference
from utils.checks.guards import tensors_in
from utils.runtime import seed_everything

DRAWS, AT_LEAST = 1_000, 200  # inputs to try, more where the solution takes fewer than so many of them
WITH_MODEL = 100  # where a model is run, and the solution takes so many of them
SIZES = (1, 1, 2, 2, 3, 4, 5, 6)
NUMBERS = (-2, -1, 0, 1, 2, 3, 5)
PLACES = (-1, 0, 0, 1, 1, 2, 3)  # of layers, heads and positions
TEXTS = ("", "a", "b", "ab", "aab", "c d", " a")


class NotSimple(Exception):
    """The annotations do not say enough to draw from."""


def equal(mutant: Callable, solution: Callable, draws: int = DRAWS) -> bool | None:
    """Whether the two agree on `draws` drawn inputs: result, gradient, type of the exception, and what is left of the
    inputs. None where the annotations are not enough to draw from, or the solution refuses nearly all that is drawn.
    """
    parameters, at_least = inspect.signature(solution).parameters, AT_LEAST
    if not parameters:  # all inputs that there are
        draws, at_least = 2, 1
    elif drawn_models.of(solution, random.Random(0)):
        draws = at_least = WITH_MODEL
    taken = 0
    for seed in range(10 * draws):
        if seed >= draws and taken >= at_least:
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


def _plain(value):
    """Models and what they leave as tables of tensors; functions and hook points as nothing."""
    if isinstance(value, nn.Module):
        return {} if isinstance(value, HookPoint) else dict(value.state_dict())
    if isinstance(value, ActivationCache):
        return dict(value.items())
    if isinstance(value, FactoredMatrix):
        return value.AB
    if type(value) in (list, tuple):
        return [_plain(each) for each in value]
    return None if callable(value) else value


def _differ(a, b) -> bool:
    try:
        return difference(_plain(a), _plain(b), rtol=1e-5, atol=1e-7) is not None
    except Exception:
        return a is not b


def arguments(fn: Callable, draw: random.Random) -> list:
    """One value for each parameter; dimensions of one name have one size.

    Raises:
        NotSimple: a parameter's annotation is not one of tensors, numbers, texts and lists of them.
    """
    world = drawn_models.of(fn, draw)
    sizes: dict[str, int] = dict(world.sizes) if world else {}
    parameters = inspect.signature(fn, eval_str=True).parameters.values()
    dims = [p.annotation.dim_str.split() for p in parameters if hasattr(p.annotation, "dim_str")]
    return [_value(p, sizes, draw, world, dims) for p in parameters]


def _value(parameter: inspect.Parameter, sizes: dict, draw: random.Random, world, dims: list[list[str]]):
    kind = parameter.annotation
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise NotSimple
    if parameter.default is not parameter.empty and (draw.random() < 0.3 or callable(parameter.default)):
        return parameter.default
    if world and isinstance(kind, type) and issubclass(kind, nn.Module):
        return world.hook(dims[0] if dims else []) if kind is HookPoint else world.model
    if world and kind is ActivationCache:
        return world.cache()
    if kind is HookPoint and dims:
        return drawn_models.World(draw, demo=False).hook(dims[0])
    if typing.get_origin(kind) is collections.abc.Callable and world:
        return world.function(kind)
    return _of(kind, sizes, draw, world)


def _of(annotation, sizes: dict, draw: random.Random, world=None):
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return _of(draw.choice(typing.get_args(annotation)), sizes, draw, world)
    if hasattr(annotation, "dim_str"):
        return _tensor(annotation, sizes, draw, world)
    if annotation in (None, type(None)):
        return None
    if annotation is bool:
        return draw.random() < 0.5
    if annotation is int:
        return draw.choice(PLACES if world else [*NUMBERS, *sizes.values()])
    if annotation is float:
        return draw.choice([*map(float, NUMBERS), 0.5, draw.random(), 10 * draw.gauss(0, 1)])
    if annotation is str:
        return draw.choice(TEXTS)
    if typing.get_origin(annotation) is typing.Literal:
        return draw.choice(typing.get_args(annotation))
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (list, collections.abc.Sequence, collections.abc.Iterable) and inner:
        return [_of(inner[0], sizes, draw, world) for _ in range(draw.choice((0, *SIZES)))]
    if origin is tuple and inner:
        if inner[-1] is Ellipsis:
            return tuple(_of(inner[0], sizes, draw, world) for _ in range(draw.choice((0, *SIZES))))
        return tuple(_of(each, sizes, draw, world) for each in inner)
    if origin is dict and inner:
        return {_of(inner[0], sizes, draw, world): _of(inner[1], sizes, draw, world) for _ in range(draw.choice(SIZES))}
    raise NotSimple


def _tensor(annotation, sizes: dict, draw: random.Random, world=None) -> torch.Tensor:
    shape = []
    for dim in annotation.dim_str.split():
        dim = dim.partition("=")[2] or dim
        if dim == "..." or dim.startswith("*"):
            for i in range(sizes.setdefault(dim, draw.choice((0, 1, 2)))):
                shape.append(sizes.setdefault(f"{dim}{i}", draw.choice(SIZES)))
            continue
        for name in re.findall(r"[A-Za-z_]\w*", dim):
            other = {"query": "key", "key": "query"}.get(name)  # of one text: a pattern is square
            sizes.setdefault(name, sizes.get(other) or draw.choice(SIZES))
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
    if world:
        return world.ids(shape)
    below = max(1, min([size for size in sizes.values() if size > 0] or [3]))
    return torch.randint(0, below, shape, generator=generator)
