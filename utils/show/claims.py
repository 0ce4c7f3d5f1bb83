"""Claims: what a chapter's text relies on, measured beside a control that could have come out as high.

A chapter says nothing about a model that is not measured below it. `claim` compares a number with an interval that has
to leave its control out; `identity` is for what must be equal, and shows that a fault would have been seen.
"""

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from IPython.display import Markdown, display

from utils.runtime import on_own_models, running

BROKEN = 100  # an identity's error must grow so much, at least, when it is broken on purpose
RESAMPLES = 2_000

NOTHING = "nothing to measure"

_claims: list[tuple[str, str, str, str]] = []
judged: list[tuple[str, str, str]] = []  # every claim so far: what, the number, and why it doesn't hold (or nothing)


def claim(what: str, value, low: float, high: float, control: Mapping[str, float | Sequence[float]]) -> None:
    """Assert that a measured number lies in [low, high] and its control doesn't, print both, keep them for the table.

    Args:
        what: what was measured, with its unit.
        value: the number; a whole one (an int, or a tensor or array of integers) is printed as a count, any other
            as a float with four digits, so that 1.000 is told from 1. Or samples, two or more: their mean is the
            number, and the interval in which it lies with 95 % (bootstrap) is printed and asserted too.
        low, high: the interval that the chapter's text relies on.
        control: the same measurement where the effect should be absent, by what it is: a number, or several (seeds,
            draws), all of which must lie outside.

    On other models than the workbook's own the number is shown beside the interval that holds for ours, and nothing
    is asserted: there it is a question, not a claim.

    Raises:
        AssertionError: the number lies outside, or a control inside; the chapter's text would be untrue.
        ValueError: no control, or one that is no number: `control={"heads shuffled": 0.02}`.
    """
    if not isinstance(control, Mapping) or not control or any(isinstance(v, str) for v in control.values()):
        raise ValueError(f'{what}: a claim takes its control as numbers, control={{"heads shuffled": 0.02}}')
    samples = _samples(value)
    if not _array(value).size:
        text, ends = NOTHING, [math.nan]
    elif samples is None:
        text, ends = _number(value), [float(_array(value).item())]
    else:
        ends = np.quantile(_means(samples), [0.025, 0.975]).tolist()
        text = f"{_number(samples.mean())}, 95 % from {_number(ends[0], 3)} to {_number(ends[1], 3)}"
    said = ", ".join(f"{name}: {_several(v)}" for name, v in control.items())
    _keep(what, text, f"{low:g} to {high:g}", said)
    problem = _problem(text, ends, low, high, control)
    judged.append((what, text, problem))
    if not on_own_models():
        print(f"{what}: {text}   (control: {said}; the workbook's own model: {low:g} to {high:g})")
        return
    print(f"{what}: {text}   (control: {said})")
    assert not problem, f"{what}: {problem}"


def identity(what: str, got, want, tol: float, broken) -> None:
    """Assert that two results are equal up to rounding, and that the comparison would have seen a fault.

    Args:
        what: what agrees with what.
        got, want: numbers, tensors or arrays of one shape; or the largest difference itself, and 0.
        tol: the largest difference that rounding may make.
        broken: `got` again, of a version with a fault put in: it must miss `want` by at least 100 times `tol`.

    Raises:
        AssertionError: the results differ, or, on the workbook's own models, the broken version would hardly be told
            from them.
        ValueError: shapes that differ.
    """
    off, wrong = _difference(what, got, want), _difference(what, broken, want)
    text, said = f"equal to {tol:g}", f"broken on purpose: {wrong:#.3g}"
    _keep(what, text, f"at most {tol:g}", said)
    print(f"{what}: {text}   ({said})")
    assert off <= tol, f"{what}: the largest difference is {off:#.3g}, more than {tol:g}"
    # How far a fault throws a result off is a model's own: on others than ours it is shown, not asserted.
    assert wrong >= BROKEN * tol or not on_own_models(), (
        f"{what}: broken, it is off by {wrong:#.3g} only, not by {BROKEN} times {tol:g}"
    )


def findings() -> None:
    """Show the closing table: every claim made so far, its number, its interval and its control."""
    interval = "must lie in" if on_own_models() else "the workbook's own model"
    rows = [f"| claim | measured | {interval} | control |", "| --- | --- | --- | --- |"]
    rows += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in _claims]
    if not on_own_models():
        rows[:0] = [f"Measured on the models of `WORKBOOK_MODELS={os.environ['WORKBOOK_MODELS']}`.", ""]
        if running.get("ours"):
            rows += ["", "The text also says, of the workbook's own models only:", ""]
            rows += [f"- {sentence}" for sentence in running["ours"]]
    display(Markdown("\n".join(rows)))


def _keep(*row: str) -> None:
    if row not in _claims:
        _claims[:] = [c for c in _claims if c[0] != row[0]]  # a cell run twice replaces its row
        _claims.append(row)


def _problem(text: str, ends: list[float], low: float, high: float, control: Mapping) -> str:
    """Why a claim doesn't hold; empty where it does."""
    if not all(_within(x, low, high) for x in ends):
        return f"it is {text}, outside {low:g} to {high:g}: the text here would be untrue"
    for name, v in control.items():
        for x in np.ravel(_array(v)).astype(float):
            if _within(x, low, high):
                return f"{name} gives {x:#.3g}, which lies in {low:g} to {high:g} as well: the number shows nothing"
    return ""


def _within(value: float, low: float, high: float) -> bool:
    # A mean of ones may be 1.0000001 on another machine: a bound is met to single precision.
    return low <= value <= high or any(math.isclose(value, bound, rel_tol=1e-6) for bound in (low, high))


def _number(value, digits: int = 4) -> str:
    if isinstance(value, int) or _array(value).dtype.kind in "iub":
        return str(int(_array(value).item()))
    value = float(_array(value).item())
    whole = 10**digits
    return f"{value:.1f}" if whole / 10 - 0.05 <= abs(value) < whole - 0.5 else f"{value:#.{digits}g}"


def _several(value) -> str:
    values = np.ravel(_array(value))
    if not len(values):
        return NOTHING
    if len(values) == 1:
        return _number(value, digits=3)
    return f"{_number(values.min(), 3)} to {_number(values.max(), 3)} ({len(values)} times)"


def _array(values) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.double() if values.is_floating_point() else values
    return np.asarray([float(v) for v in values] if isinstance(values, Sequence) else values)


def _samples(value) -> np.ndarray | None:
    values = np.asarray(_array(value))
    return values.astype(float).ravel() if values.ndim and values.size > 1 else None


def _means(samples: np.ndarray) -> np.ndarray:
    """Of samples drawn from the samples, as many, with a generator of its own: the course's draws stay the same."""
    drawn = np.random.default_rng(0).integers(len(samples), size=(RESAMPLES, len(samples)))
    return samples[drawn].mean(axis=1)


def _difference(what: str, a, b) -> float:
    a, b = _array(a).astype(float), _array(b).astype(float)
    if a.shape != b.shape and b.ndim:
        raise ValueError(f"{what}: shapes {a.shape} and {b.shape} can't be compared")
    return float(np.abs(a - b).max())
