"""A learner's answer as code: where it stands, what it uses, which of its lines raised; and what stands in for it."""

import builtins
import dis
import functools
import inspect
import linecache
from collections.abc import Callable, Iterator
from types import CodeType, ModuleType

import torch


def describe(error: BaseException) -> str:
    text = " ".join(str(error).split())
    text = text if len(text) <= 120 else text[:119] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def code_files(fn: Callable) -> set[str]:
    """The files (for a notebook: the cells) that hold the learner's code."""
    return {f.__code__.co_filename for f in _functions_of(fn)}


def _functions_of(fn: Callable) -> Iterator[Callable]:
    """The functions that an answer consists of, below decorators and partial."""
    todo = list(vars(fn).values()) if isinstance(fn, type) else [fn]
    for f in todo:
        if isinstance(f, staticmethod | classmethod | functools.partial):
            todo.append(getattr(f, "__func__", None) or f.func)
        elif hasattr(f, "__wrapped__"):
            todo.append(f.__wrapped__)
        elif isinstance(f, property):
            todo.append(f.fget)
        elif hasattr(f, "__code__"):
            yield f
        elif callable(f) and inspect.isfunction(call := type(f).__call__):
            todo.append(call)


def source_of(fn: Callable) -> str | None:
    try:
        return inspect.getsource(inspect.unwrap(fn))
    except (OSError, TypeError):
        return None


def notebook_values(fn: Callable, solution: Callable) -> list[str]:
    """A sentence where an answer uses values of the notebook that it does not get as arguments; else none."""
    known = {*dir(builtins), *getattr(inspect.unwrap(solution), "__globals__", {})}
    used: list[str] = []
    for f in _functions_of(fn):
        for name in _global_names(f.__code__):
            value = f.__globals__.get(name)
            plain = value is not None and not callable(value) and not isinstance(value, ModuleType)
            model = isinstance(value, torch.nn.Module)
            if f.__globals__.get("__name__") == "__main__" and name not in known and name not in used:
                used += [name] if plain or model else []
    if not used:
        return []
    them = "it comes" if len(used) == 1 else "they come"
    return [f"it uses the notebook's {', '.join(f'`{name}`' for name in used)}: in a check {them} with the arguments"]


def _global_names(code: CodeType) -> list[str]:
    inner = [name for c in code.co_consts if isinstance(c, CodeType) for name in _global_names(c)]
    return [i.argval for i in dis.get_instructions(code) if i.opname == "LOAD_GLOBAL"] + inner


def with_names(said: str, solution: Callable) -> str:
    """A sentence on shapes, with the names of the expected dimensions where the annotation says them."""
    dims = getattr(getattr(inspect.unwrap(solution), "__annotations__", {}).get("return"), "dim_str", "")
    return f"{said} ({dims})" if dims and said.startswith("returned shape") else said


def code_of(method: object):
    """The code of a method, below property, staticmethod and classmethod; None where it is none."""
    method = getattr(method, "fget", None) or getattr(method, "__func__", method)
    return getattr(method, "__code__", None)


def is_stub(error: BaseException | None, files: set[str]) -> bool:
    """Whether this is the stub's own `raise NotImplementedError`; a library's says what is not implemented."""
    if type(error) is not NotImplementedError or error.args:
        return False
    tb = error.__traceback__
    while tb.tb_next:
        tb = tb.tb_next
    return not files or tb.tb_frame.f_code.co_filename in files


def line_of(error: BaseException | None, files: set[str]) -> list[str]:
    frames = list(_learner_frames(error, files))
    if not frames:
        return []
    tb = frames[-1]
    source = linecache.getline(tb.tb_frame.f_code.co_filename, tb.tb_lineno).strip()
    return [f"in line {tb.tb_lineno} of the cell: {source}"]


def frame_name(error: BaseException, files: set[str]) -> str | None:
    frames = list(_learner_frames(error, files))
    return frames[-1].tb_frame.f_code.co_name if frames else None


def _learner_frames(error: BaseException | None, files: set[str]):
    tb = error.__traceback__ if error else None
    while tb:
        if tb.tb_frame.f_code.co_filename in files:
            yield tb
        tb = tb.tb_next


def stand_in(solution: Callable, mine: Callable, failed: tuple | None) -> Callable:
    """The solution under another identity, with the answer that it stands for as its `mine`, and the arguments at
    which that is wrong as its `failed`."""
    if isinstance(solution, type):
        own = {name: getattr(solution, name) for name in ("__module__", "__qualname__", "__doc__")}
        other = type(solution)(solution.__name__, (solution,), own)
    else:

        @functools.wraps(solution)
        def other(*args, **kwargs):
            return solution(*args, **kwargs)

    other.mine, other.failed = mine, failed
    return other


def answer_behind(fn: Callable) -> Callable:
    """The answer behind a stand-in; any other function itself."""
    own = getattr(fn, "__dict__", {})
    return own["mine"] if {"mine", "failed"} <= set(own) else fn
