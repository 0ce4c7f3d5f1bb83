"""Are two results the same? Says in one sentence where they first differ."""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence, Set
from numbers import Number

import numpy as np
import torch


def difference(got, want, rtol: float = 1e-3, atol: float = 1e-5) -> str | None:
    """Compare a learner's result with the expected one.

    Free: dtype (but numbers are no mask), list or tuple, numpy array or tensor, a number or a tensor without
    dimensions. A tensor lies on the device where the expected one lies. NaN equals NaN.

    Returns:
        None where the two agree, else one sentence that names what is wrong: type, shape, or the first wrong value.
    """
    if elsewhere(got, want):
        how = ".cpu() takes it there" if want.device.type == "cpu" else "is a `device=` missing?"
        return f"lies on {got.device.type}, expected on {want.device.type}: {how}"
    got, want = _plain(got), _plain(want)
    if isinstance(want, np.ndarray) or isinstance(got, np.ndarray):
        return _arrays(got, want, rtol, atol)
    if isinstance(want, bool) or want is None or isinstance(want, str | bytes):
        if type(got) is not type(want):
            return _wrong_type(got, want)
        return None if got == want else _texts(got, want)
    if isinstance(want, Number):
        if isinstance(got, bool) or not isinstance(got, Number):
            return _wrong_type(got, want)
        return None if _close(got, want, rtol, atol) else f"got {short(got)}, expected {short(want)}"
    if isinstance(want, Mapping):
        return _mappings(got, want, rtol, atol)
    if isinstance(want, Set):
        return _sets(got, want)
    if isinstance(want, Sequence):
        return _sequences(got, want, rtol, atol)
    if type(got) is not type(want):
        return _wrong_type(got, want)
    return None if got == want else f"got {short(got)}, expected {short(want)}"


def elsewhere(got, want) -> bool:
    """Whether two tensors lie on two devices, so that what goes on with one fails on the other; without dimensions
    they go with either."""
    both = isinstance(got, torch.Tensor) and isinstance(want, torch.Tensor)
    return both and got.dim() > 0 and got.device.type != want.device.type


def short(value, limit: int = 70) -> str:
    """`repr` of a value on one line of at most `limit` characters; arrays as type and shape."""
    value = _plain(value)
    if isinstance(value, np.ndarray) and value.size > 8:
        return f"tensor of shape {list(value.shape)}"
    if isinstance(value, float):
        return f"{value:.5g}"
    text = re.sub(r"\n\s*", " ", repr(value.tolist() if isinstance(value, np.ndarray) else value))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _plain(value):
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return value


def _name(value) -> str:
    return "a tensor" if isinstance(value, np.ndarray) else "None" if value is None else type(value).__name__


def _wrong_type(got, want) -> str:
    if got is None:
        return f"returned None, expected {_name(want)}: is a `return` missing?"
    return f"returned {_name(got)}, expected {_name(want)}"


def _close(got, want, rtol, atol) -> bool:
    if isinstance(want, int) and isinstance(got, int):
        return got == want
    if isinstance(want, complex) or isinstance(got, complex):
        return abs(got - want) <= atol + rtol * abs(want)
    if math.isnan(want) or math.isnan(got):
        return math.isnan(want) and math.isnan(got)
    return got == want or abs(got - want) <= atol + rtol * abs(want)


def _arrays(got, want, rtol, atol) -> str | None:
    if not isinstance(want, np.ndarray):
        what = f"a tensor of shape {list(got.shape)}" if isinstance(got, np.ndarray) else _name(got)
        return f"returned {what}, expected {_name(want)}"
    if isinstance(got, Sequence) and not isinstance(got, str | bytes):
        try:
            got = np.array([_plain(x) for x in got])
        except ValueError:
            pass
    if not isinstance(got, np.ndarray) or got.dtype == object:
        wanted = f"a tensor of shape {list(want.shape)}"
        return (
            f"returned None, expected {wanted}: is a `return` missing?"
            if got is None
            else (f"returned {_name(got)}, expected {wanted}")
        )
    if got.shape != want.shape:
        return f"returned shape {list(got.shape)}, expected {list(want.shape)}"
    if want.dtype.kind == "b" and got.dtype.kind != "b":  # it selects other rows, where a mask selects its own
        return f"returned numbers ({got.dtype}), expected a mask (bool)"
    exact = want.dtype.kind in "biu"  # counts and token ids: 5000 is not nearly 5001
    same = got == want if exact else np.isclose(got, want, rtol=rtol, atol=atol, equal_nan=True)
    if same.all():
        return None
    first = tuple(np.argwhere(~same)[0].tolist())
    where = str(list(first))
    return (
        f"{int((~same).sum())} of {same.size} values differ, first at {where}: "
        f"got {short(got[first])}, expected {short(want[first])}"
    )


def _texts(got, want) -> str:
    if not isinstance(want, str | bytes):
        return f"got {got}, expected {want}"
    at = next((i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b), min(len(got), len(want)))
    if at < 30:
        return f"got {short(got)}, expected {short(want)}"
    return f"differs from character {at} on: got …{short(got[at:], 40)}, expected …{short(want[at:], 40)}"


def _mappings(got, want, rtol, atol) -> str | None:
    if not isinstance(got, Mapping):
        return _wrong_type(got, want)
    for key in want:
        if key not in got:
            return f"the key {short(key)} is missing"
        if said := difference(got[key], want[key], rtol, atol):
            return f"at key {short(key)}: {said}"
    extra = next((key for key in got if key not in want), None)
    return None if len(got) == len(want) else f"the key {short(extra)} should not be there"


def _sets(got, want) -> str | None:
    if not isinstance(got, Set):
        return _wrong_type(got, want)
    if missing := want - got:
        return f"{short(min(missing, key=repr))} is missing"
    if extra := got - want:
        return f"{short(min(extra, key=repr))} should not be there"
    return None


def _sequences(got, want, rtol, atol) -> str | None:
    if isinstance(got, str | bytes) or not isinstance(got, Sequence):
        return _wrong_type(got, want)
    for i, (g, w) in enumerate(zip(got, want, strict=False)):
        if said := difference(g, w, rtol, atol):
            return f"item {i}: {said}"
    return None if len(got) == len(want) else f"has {len(got)} items, expected {len(want)}"
