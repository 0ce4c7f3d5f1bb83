"""What every exercise asks, whatever its author thought of: an answer leaves things as they were.

`Watch` looks at what an answer is given before and after each call: tensors, containers, models. `kernel_kept` looks
after what belongs to nobody's arguments: torch's defaults, the working directory, random states. What an answer left
is said in one sentence and taken away, so that no later check meets it.
"""

import contextlib
import functools
import inspect
import os
import random
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Container, Iterator, Mapping

import numpy as np
import torch
from torch import nn
from transformer_lens import FactoredMatrix

from utils.checks.devices import Drawn, answering, drawn
from utils.runtime import seed_everything

# ---------------------------------------------------------------- arguments and models

HOOK = "left a hook on {place}: take it off again, also where an error occurs (try … finally)"
ATTACHED = "left an autoencoder or another module attached to `{root}`: take it off again"
REPLACED = "replaced a parameter of {place}: work on a copy of the model"
TABLES = {
    **dict.fromkeys(["_modules", "_acts_to_saes"], ATTACHED),
    **dict.fromkeys(["_parameters", "_buffers"], REPLACED),
    **dict.fromkeys(["_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"], HOOK),
    **dict.fromkeys(["fwd_hooks", "bwd_hooks"], HOOK),
}
FLAGS = {
    "training": "left `{root}` in another mode than before (train or eval): put it back",
    "use_error_term": "left `use_error_term` of `{root}` changed: put it back",
}
COPY = "changes its argument `{root}` in place: work on a copy, or make something new, and return that"
LOOKED_INTO = ("utils.", "transformer_lens.", "__main__")  # objects of other libraries may note things for themselves


class Memory:
    """How things were: `note` them before a call, ask for the `changes` after it, `restore` them in the end."""

    def __init__(self):
        self._seen: dict[int, object] = {}
        self._checks: list[Callable[[], str | None]] = []
        self._restores: list[Callable[[], None]] = []
        self._models: list[nn.Module] = []
        self._of_modules: list[tuple] = []  # attributes, attribute, its value, a copy of a table, module, root

    def note(self, value: object, root: str, parameter: str | None = None) -> None:
        """Remember a value and what it holds; sentences call it by `root`, the name of the argument."""
        if id(value) in self._seen or value is None or isinstance(value, type | str | bytes | int | float):
            return
        self._seen[id(value)] = value
        if isinstance(value, torch.Tensor):
            self._note_tensor(value, root, parameter)
        elif isinstance(value, nn.Module):
            self._note_module(value, root)
        elif isinstance(module := getattr(value, "_module", None), nn.Module):  # a model in nnsight's wrapper
            self.note(module, root)
        elif isinstance(value, np.ndarray):
            before = value.copy()
            self._add(lambda: _same_array(value, before), COPY, root, lambda: np.copyto(value, before))
        elif isinstance(value, list | dict | set | deque):
            self._note_container(value, root)
        elif isinstance(value, tuple):
            for item in value:
                self.note(item, root)
        elif (
            hasattr(value, "__dict__") and f"{type(value).__module__}.".startswith(LOOKED_INTO) and not callable(value)
        ):
            self._note_container(vars(value), root, _computed_once(type(value)))

    def _add(self, same: Callable[[], bool], sentence: str, root: str, restore: Callable[[], None]) -> None:
        self._checks.append(lambda: None if same() else sentence.format(root=root))
        self._restores.append(lambda: None if same() else restore())

    def _note_tensor(self, value: torch.Tensor, root: str, parameter: str | None) -> None:
        before, needed, grad = value.detach().clone(), value.requires_grad, value.grad if value.is_leaf else None
        version = None if parameter or value.is_inference() else value._version

        def restore():
            if value.shape == before.shape:
                value.data.copy_(before)
            else:
                value.data = before

        def same():
            return (version is None or value._version == version) and _same_tensor(value, before)

        sentence = f"changed `{parameter}` of `{{root}}`: work on a copy of the model" if parameter else COPY
        self._add(same, sentence, root, restore)
        if value.is_leaf:
            sentence = "changed whether `{root}` needs gradients (requires_grad): put it back"
            self._add(lambda: value.requires_grad == needed, sentence, root, lambda: value.requires_grad_(needed))
            self._restores.append(lambda: setattr(value, "grad", grad))

    def _note_container(self, value, root: str, apart: Container[str] = ()) -> None:
        def of(value):
            return {k: v for k, v in value.items() if k not in apart} if isinstance(value, dict) else list(value)

        before = of(value)

        def restore():
            value.clear()
            (value.extend if isinstance(value, list | deque) else value.update)(before)

        self._add(lambda: _same_items(of(value), before), COPY, root, restore)
        for item in before.values() if isinstance(before, dict) else before:
            self.note(item, root)

    def _note_module(self, model: nn.Module, root: str) -> None:
        self._models.append(model)
        for name, module in model.named_modules():
            here = vars(module)
            for attribute in TABLES:
                if (table := here.get(attribute)) is not None:
                    # Most tables are empty: of those nothing is to be copied.
                    self._of_modules.append((here, attribute, table, table.copy() if table else None, name, root))
            for flag in FLAGS:
                if flag in here:
                    self._of_modules.append((here, flag, here[flag], None, name, root))
            for own, tensor in (*module._parameters.items(), *module._buffers.items()):
                if tensor is not None:
                    self.note(tensor, root, f"{name}.{own}".lstrip("."))

    def _changes_of_modules(self) -> Iterator[tuple]:
        for entry in self._of_modules:
            here, attribute, value, contents, *_ = entry
            now = here.get(attribute)
            if attribute in FLAGS:
                same = now == value
            elif contents is None:
                same = not now
            else:
                same = now is not None and _same_items(now, contents, _as_good if attribute == "_modules" else None)
            if not same:
                yield entry

    def changes(self) -> list[str]:
        """A sentence for each thing that is not as it was."""
        said = [sentence for check in self._checks if (sentence := check())]
        for _, attribute, _, _, name, root in self._changes_of_modules():
            place = f"`{name}` of `{root}`" if name else f"`{root}`"
            said.append((FLAGS | TABLES)[attribute].format(root=root, place=place))
        return [f"your function {sentence}" for sentence in dict.fromkeys(said)]

    def restore(self) -> None:
        changed = list(self._changes_of_modules())
        for here, attribute, value, contents, *_ in changed:
            here[attribute] = value
            if attribute in TABLES:
                value.clear()
                (value.extend if isinstance(value, list) else value.update)(contents or ())
        for model in self._models if changed else ():
            if hasattr(model, "hook_dict"):
                model.setup()  # TransformerLens lists a model's hook points
        with torch.no_grad():
            for restore in reversed(self._restores):
                restore()


def _computed_once(kind: type) -> set[str]:
    """What an object keeps of its own accord when it is first asked for it: its keeping it is no change."""
    return {
        name
        for base in kind.__mro__
        for name, item in vars(base).items()
        if isinstance(item, functools.cached_property)
    }


def _same_items(value, before, as_good: Callable | None = None) -> bool:
    if len(value) != len(before):
        return False
    if isinstance(before, dict):
        pairs = [(value.get(key), item) for key, item in before.items()]
    else:
        pairs = list(zip(value, before, strict=True))
    return all(a is b or (as_good is not None and as_good(a, b)) for a, b in pairs)


def _as_good(new: nn.Module | None, old: nn.Module | None) -> bool:
    """Whether the new one is bare and of the old one's kind: sae_lens leaves a new hook point where its wrapper was."""
    held = (*TABLES, "_buffers")
    return type(new) is type(old) and not any(vars(each).get(table) for each in (new, old) for table in held)


def _same_tensor(value: torch.Tensor, before: torch.Tensor) -> bool:
    value = value.detach()
    if value.shape != before.shape or value.dtype != before.dtype:
        return False
    return torch.equal(value, before) or bool(((value == before) | (value.isnan() & before.isnan())).all())


def _same_array(value: np.ndarray, before: np.ndarray) -> bool:
    return value.shape == before.shape and bool(((value == before) | ((value != value) & (before != before))).all())


class Watch:
    """Looks at the arguments of a function, or of a class's methods, around each call; `left` holds what is to be said.

    Args:
        solution: gives the parameters' names.
        in_place: the parameters that the task says to change.
        seed: give each call random numbers of its own, from this seed on; else it finds them as they are.
    """

    def __init__(self, solution: Callable, in_place: Mapping[str, str], seed: int | None = None):
        self.in_place, self.left, self.random, self._seed = in_place, [], [], seed
        self._modules: list[nn.Module] = []
        self._memories, self._depth = [], 0
        self._drawn: Drawn | None = None
        self._names = parameters_of(solution)

    @contextlib.contextmanager
    def over(self, fn: Callable, as_ours: bool = False) -> Iterator[Callable]:
        """The function, watched; after the body all is as it was before.

        Args:
            as_ours: give what it returns in single precision, as the solution does: the precision is free.
        """
        kernel, self._as_ours = Kernel(), as_ours
        originals = _methods_of(fn) if isinstance(fn, type) else {}
        try:
            for name, method in originals.items():
                setattr(fn, name, self._watched(method, 1))
            with drawn() as self._drawn:
                originals |= self._answering_too(fn)
                yield fn if isinstance(fn, type) else self._watched(fn, 0)
        finally:
            for name, method in originals.items():
                setattr(fn, name, method)
            for memory in reversed(self._memories):
                memory.restore()
            self.left = [*self.left, *kernel.restore()]

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """Those of the objects whose methods were called, as `self.W`."""
        found = {id(module): module for module in self._modules}.values()
        return {f"self.{name}": p for m in found for name, p in m.named_parameters() if p.requires_grad}

    def _answering_too(self, cls: Callable) -> dict[str, object]:
        """Where a check draws on another device, a class's own constructors answer as its methods do; the originals."""
        if self._drawn is None or not isinstance(cls, type) or _ours(cls):
            return {}

        def answer(fn):
            @functools.wraps(fn)
            def answered(*args, **kwargs):
                with answering(self._drawn):
                    return fn(*args, **kwargs)

            return answered

        found = {n: m for n, m in vars(cls).items() if isinstance(m, classmethod | staticmethod)}
        for name, method in found.items():
            setattr(cls, name, type(method)(answer(method.__func__)))
        return found

    def _watched(self, fn: Callable, skip: int) -> Callable:
        names = parameters_of(fn) if skip else self._names

        @functools.wraps(fn, updated=())
        def watched(*args, **kwargs):
            if self._depth:
                return fn(*args, **kwargs)
            if skip and args and isinstance(args[0], nn.Module):
                self._modules.append(args[0])
            memory, self._depth = Memory(), 1
            for i, value in enumerate(args[skip:], skip):
                name = names[i] if i < len(names) else f"argument {i + 1}"
                if name not in self.in_place:
                    memory.note(value, name)
            for name, value in kwargs.items():
                if name not in self.in_place:
                    memory.note(value, name)
            self.random.append(random_states())  # what was not watched may have left it: a property, a class method
            if self._seed is not None:
                seed_everything(self._seed)
                self._seed += 1
            try:
                with answering(None if _ours(fn) else self._drawn):
                    result = fn(*args, **kwargs)
                return single(result) if self._as_ours else result
            finally:
                self._depth = 0
                self.random.append(random_states())
                if said := memory.changes():
                    self.left += said
                    self._memories.append(memory)

        return watched


def _ours(fn: Callable) -> bool:
    """Whether a check's author wrote it, as another right answer or a known mistake: it leaves `device=` out."""
    return (getattr(fn, "__module__", None) or "").startswith("utils.checks.")


def single(value: object) -> object:
    """Tensors of another precision, also in lists, tuples and tables, as torch's default one."""
    if isinstance(value, torch.Tensor):
        return value.to(torch.get_default_dtype()) if value.is_floating_point() else value
    if type(value) in (list, tuple):
        return type(value)(single(item) for item in value)
    return {key: single(item) for key, item in value.items()} if type(value) is dict else value


def kept(value: object) -> object:
    """A copy of the tensors in lists, tuples and tables."""
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if type(value) in (list, tuple):
        return type(value)(kept(item) for item in value)
    return {key: kept(item) for key, item in value.items()} if type(value) is dict else value


def signature_of(fn: Callable) -> Mapping[str, inspect.Parameter]:
    """Its parameters by name; none where it does not tell."""
    try:
        return inspect.signature(fn).parameters
    except (TypeError, ValueError):
        return {}


def parameters_of(fn: Callable) -> list[str]:
    return list(signature_of(fn))


def _methods_of(cls: type) -> dict[str, Callable]:
    named = vars(cls).items()
    return {n: f for n, f in named if inspect.isfunction(f) and (n in ("__init__", "__call__") or n[:2] != "__")}


# ---------------------------------------------------------------- the kernel

DEFAULTS = [  # what, how to read it, how to set it
    ("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    ("torch's default device", lambda: torch.empty(0).device, torch.set_default_device),
    ("whether gradients are computed", torch.is_grad_enabled, torch._C._set_grad_enabled),
    ("the number of torch's threads", torch.get_num_threads, torch.set_num_threads),
    (
        "torch's choice of deterministic algorithms",
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    ("the working directory", os.getcwd, os.chdir),
    ("numpy's handling of errors", np.geterr, lambda before: np.seterr(**before)),
    ("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
]


class Kernel:
    """What is set for the whole kernel; `restore` puts it back and says what was changed."""

    def __init__(self):
        self._before = [get() for _, get, _ in DEFAULTS]
        self._handlers = _handlers()
        self._threads = set(threading.enumerate())

    def restore(self) -> list[str]:
        said = []
        for (what, get, put), before in zip(DEFAULTS, self._before, strict=True):
            try:
                same = get() == before
            except OSError:  # the working directory is no more
                same = False
            if not same:
                put(before)
                said.append(f"your function changed {what} for the whole kernel: it is put back, leave it as it is")
        for number, handler in self._handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
                said.append("your function changed what the kernel does on a signal: leave that as it is")
        # A progress bar's own watcher goes on by design.
        new = [t for t in threading.enumerate() if t not in self._threads and type(t).__name__ != "TMonitor"]
        if any(not t.name.startswith("watchdog") for t in new):
            said.append("your function left a thread running: wait for it (join)")
        return said


SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGALRM") if hasattr(signal, name)]


def _handlers() -> dict:
    if threading.current_thread() is not threading.main_thread():
        return {}
    found = {number: signal.getsignal(number) for number in SIGNALS}
    return {number: handler for number, handler in found.items() if handler is not None}


def random_states() -> tuple[int, int, int]:
    """Digests of the states of Python's, numpy's and torch's generators."""
    name, keys, *rest = np.random.get_state()
    states = random.getstate(), (name, keys.tobytes(), *rest), torch.get_rng_state().numpy().tobytes()
    return tuple(map(hash, states))


@contextlib.contextmanager
def kernel_kept() -> Iterator[None]:
    """The body may seed and set what it likes: the learner's kernel goes on as if nothing had run. Nothing is sent to
    a server in it: the checks' models are on this machine only."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []
    kernel, remote = Kernel(), os.environ.pop("WORKBOOK_REMOTE", None)
    try:
        yield
    finally:
        kernel.restore()
        if remote is not None:
            os.environ["WORKBOOK_REMOTE"] = remote
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


def rebuild_shared() -> None:
    """Forget the models and caches that the checks share; the next that asks for one builds it anew."""
    for name, module in list(sys.modules.items()):
        if name.startswith("utils.checks."):
            for value in list(vars(module).values()):
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


# ---------------------------------------------------------------- gradients


def tensors_in(value: object, depth: int = 4) -> Iterator[torch.Tensor]:
    """The tensors of floating-point numbers in nested containers, in order."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, FactoredMatrix):
        yield from (value.A, value.B)
    elif depth and isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item, depth - 1)
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item, depth - 1)


def gradients(result: object, inputs: list[torch.Tensor]) -> list[torch.Tensor | None] | None:
    """The gradient of a random projection of all numbers in `result`; None where it carries none."""
    numbers = list(tensors_in(result))
    if not any(t.requires_grad for t in numbers):
        return None
    if not inputs:  # the weights are the answer's own
        return []
    flat = torch.cat([t.flatten().to("cpu", torch.float32) for t in numbers])
    along = torch.randn(len(flat), generator=torch.Generator().manual_seed(0), device="cpu")
    with torch.enable_grad():
        return list(torch.autograd.grad((flat * along).sum(), inputs, allow_unused=True))


# Gradients that are 0 but for rounding, as that of a softmax's sum, stay below it, and below this share of the largest.
ROUNDING, OF_LARGEST = 1e-5, 1e-6


def another_gradient(got, want, at: torch.Tensor, largest: float = 0.0) -> str | None:
    """What is wrong with the gradient with respect to `at`, or None; ties, where right ones differ, count as right.

    Args:
        largest: of all numbers in the gradients of this call.
    """
    if want is None or not want.isfinite().all() or not (want.abs() >= max(ROUNDING, OF_LARGEST * largest)).any():
        return None
    if len(at.detach().unique()) <= at.numel() / 2:
        return None
    if got is None or not got.any():
        return "cut"
    if got.shape != want.shape:
        return None
    scale = want.abs().max()
    far = ~torch.isclose(got.to(want.dtype), want, rtol=1e-2, atol=1e-4 * float(scale))
    told = (want.abs() > 1e-4 * scale) | far
    return "other" if 2 * far.sum() > told.sum() else None
