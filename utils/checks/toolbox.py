"""What chapter 00 asks of functions, objects, views and the libraries' maps."""

import builtins
import contextlib
import io
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial, total_ordering, wraps
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import nn
from transformer_lens.utilities import get_act_name
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.models.llama.modeling_llama import repeat_kv

from utils import tensors, toolbox
from utils.checks.compare import difference
from utils.checks.engine import Chapter
from utils.checks.models import noise, random_tokens, small_gpt, tokenizer_of, with_biases
from utils.runtime import device

chapter = Chapter(toolbox, tensors)
exercise, check, hint, compare = chapter.exercise, chapter.check, chapter.hint, chapter.compare


def said_of(call, *args, **kwargs):
    """The result of a call, or the name of what it raised."""
    try:
        return call(*args, **kwargs)
    except Exception as error:
        if isinstance(error, NotImplementedError):
            raise
        return type(error).__name__


def raised_by(call, *args, **kwargs):
    """The name of what a call raised, or that it raised nothing."""
    said = said_of(lambda: [call(*args, **kwargs)])
    return said if isinstance(said, str) else "nothing raised"


# ---------------------------------------------------------------- self_test

SECTION = {1: 1, 2: 1, 3: 1, 4: 2, 5: 3, 6: 3, 7: 4, 8: 5, 9: 6, 10: 8}


def same_answers(got, want, *args):
    if not isinstance(got, dict):
        return difference(got, want)
    wrong = [n for n, answer in want.items() if n not in got or difference(got[n], answer, rtol=1e-6)]
    if not wrong:
        return None
    numbers, sections = (
        f"{kind}{'s' if len(items) > 1 else ''} {', '.join(map(str, items))}"
        for kind, items in (("question", wrong), ("section", sorted({SECTION[n] for n in wrong})))
    )
    return f"{numbers} not answered or not right: do {sections}"


self_test = exercise(toolbox.self_test, same=same_answers)

for number, answer, sentence in (
    (1, "str", "question 1: hints are notes for the reader, Python does not convert or refuse: section 1"),
    (2, 7, "question 2: the decorator nearest to the function is applied first, plus_one, then twice: section 1"),
    (3, [0, 1, 2], "question 3: a function looks its loop variable up when it is called, after the loop: section 1"),
    (4, "dict", "question 4: a dataclass with __eq__ has no __hash__, unless frozen or asked: section 2"),
    (5, 0.0, "question 5: x.T is a view, so writing into it changes x: section 3"),
    (6, 1.0, "question 6: dim=0 makes the columns sum to 1, not the rows: section 3"),
    (7, [3], "question 7: (3,) is lined up with the last dimension of (3, 1): section 4"),
    (8, 3.0, "question 8: a and b are missing on the right, so the sum is over both: section 5"),
    (9, 200, "question 9: one row is a view, and a view keeps all of its storage: section 6"),
    (10, [24, 8], "question 10: GPT-2's Conv1D keeps its weight as (in, out): section 8"),
):
    self_test.mistake(sentence)(lambda n=number, a=answer: toolbox.self_test() | {n: a})


@self_test.right
def _():
    return toolbox.self_test() | {4: "TypeError", 7: (3, 3), 9: 2 * 50 * 100}


# ---------------------------------------------------------------- timed


class Meter:
    """Something that a decorated method belongs to."""

    unit = 3

    def scaled(self, x, by=1, *more, shift=0):
        """By how much."""
        if by == 0:
            raise ZeroDivisionError
        return [self.unit * x * by + shift, *more]


def plain(result):
    return "a generator" if isinstance(result, Iterator) else result


def use_decorator(decorate):
    """A decorated method and a decorated function: what they return, are called and say of themselves."""
    calls = []

    class Decorated(Meter):
        scaled = decorate(Meter.scaled)

    def pause(seconds):
        """Sleep."""
        calls.append(seconds)
        if seconds:
            time.sleep(seconds)
        return seconds

    paused = decorate(pause)
    seen = {"calls before the first": list(calls)}
    seen["result of a function"] = plain(paused(0.01))
    seen["result by keyword"] = said_of(lambda: plain(paused(seconds=0.02)))
    seen["calls of it"] = list(calls)
    meter = Decorated()
    seen["result of a method"] = plain(meter.scaled(1))
    seen["result of a method, arguments of all kinds"] = said_of(lambda: plain(meter.scaled(2, 5, 6, shift=1)))
    seen["name and docstring"] = paused.__name__, paused.__doc__, meter.scaled.__doc__
    return seen, paused, meter


def use_timed(timed):
    seen, paused, meter = use_decorator(timed)
    seen["number of seconds"] = len(paused.seconds)
    seen["seconds as long as the call"] = [s >= n for s, n in zip(paused.seconds, (0.009, 0.019), strict=False)]
    began = time.perf_counter()
    paused(0)
    around = time.perf_counter() - began
    seen["no more seconds than went by"] = paused.seconds[-1] <= 2 * around + 0.001 if paused.seconds else None
    for _ in range(5):
        paused(0)
    seen["a short call after longer ones is short"] = min(paused.seconds[2:], default=0) < 0.03
    seen["an error of the function goes on"] = raised_by(meter.scaled, 1, 0)
    seen["a call that raises is measured"] = len(type(meter).scaled.seconds)

    @timed
    def down(n):
        return n and down(n - 1)

    down(3)
    seen["calls within a call are measured too"] = len(down.seconds)
    return seen


timed = exercise(toolbox.timed, use=use_timed)


def timing(fn, give=True, keywords=True, name=True, measure=True, always=True, total=False):
    def wrapper(*args, **kwargs):
        began = time.perf_counter()
        result, failed = None, None
        try:
            result = fn(*args, **(kwargs if keywords else {}))
        except Exception as error:
            failed = error
        if measure and (always or not failed):
            before = wrapper.seconds[-1] if total and wrapper.seconds else 0
            wrapper.seconds.append(before + time.perf_counter() - began)
        if failed:
            raise failed
        return result if give else None

    wrapper.seconds = []
    return wraps(fn)(wrapper) if name else wrapper


@timed.mistake("return the wrapper itself, `return wrapper`: with parentheses it is called at once")
def _(fn):
    return timing(fn)()


@timed.mistake("the wrapper returns nothing: pass on what fn returned")
def _(fn):
    return timing(fn, give=False)


@timed.mistake("the wrapper must pass on keyword arguments too: *args and **kwargs")
def _(fn):
    def wrapper(*args):
        return timing(fn)(*args)

    return wraps(fn)(wrapper)


@timed.mistake("the decorated function has lost its name and docstring: put @wraps(fn) above the wrapper")
def _(fn):
    return timing(fn, name=False)


@timed.mistake("a call that raises must be measured too: append in a `finally:`")
def _(fn):
    return timing(fn, always=False)


@timed.mistake("each entry is the time of one call, not the sum so far")
def _(fn):
    return timing(fn, total=True)


@timed.mistake("the entries are seconds: perf_counter() gives seconds already, don't multiply")
def _(fn):
    class InMilliseconds(list):
        def append(self, seconds):
            super().append(1000 * seconds)

    wrapper = timing(fn)
    wrapper.seconds = InMilliseconds()
    return wrapper


@timed.law("every decorated function has a list of its own")
def _(timed):
    first, second = timed(abs), timed(abs)
    first(-1)
    return len(first.seconds) == 1 and second.seconds == []


@timed.right
def _(fn):
    seconds = []

    def wrapper(*args, **kwargs):
        start = time.monotonic()
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: seconds.append(time.monotonic() - start))
            return fn(*args, **kwargs)

    wrapper = wraps(fn)(wrapper)
    wrapper.seconds = seconds
    return wrapper


# ---------------------------------------------------------------- repeated


def use_repeated(repeated, num_times):
    decorate = repeated(num_times)
    if num_times < 1:
        return "nothing raised"
    seen, _, _ = use_decorator(decorate)
    numbers = iter(range(100))
    seen["results of calls that differ"] = plain(decorate(lambda: next(numbers))())
    seen["lengths of one list, to which each call adds"] = plain(decorate(lambda xs: xs.append(0) or len(xs))([]))
    return seen


repeated = exercise(toolbox.repeated, use=use_repeated)


@repeated.cases
def _():
    yield from ((3,), (1,), (5,), (0,), (-2,))


def repeating(num_times, check=True, collect=list, run=None):
    if check and num_times < 1:
        raise ValueError

    def decorator(fn):
        @wraps(fn)
        def wrapper(*args, **kwargs):
            return collect(fn(*args, **kwargs) for _ in range(num_times if run is None else run(num_times)))

        return wrapper

    return decorator


@repeated.mistake("only the last result is left: return the list of all")
def _(num_times):
    return repeating(num_times, collect=lambda results: list(results)[-1])


@repeated.mistake("the function is called once and its result copied: call it num_times times")
def _(num_times):
    return repeating(num_times, collect=lambda results: list(results) * num_times, run=lambda n: 1)


@repeated.mistake("num_times below 1 must raise a ValueError at once, at the decoration")
def _(num_times):
    return repeating(num_times, check=False)


@repeated.mistake("this runs once too often")
def _(num_times):
    return repeating(num_times, run=lambda n: n + 1)


@repeated.mistake("the results are a generator, computed only when someone walks through it, once: make a list")
def _(num_times):
    return repeating(num_times, collect=iter)


@repeated.mistake("the decorated function has lost its name and docstring: put @wraps(fn) above the wrapper")
def _(num_times):
    decorate = repeating(num_times)
    return lambda fn: lambda *args, **kwargs: decorate(fn)(*args, **kwargs)


@repeated.right
def _(num_times):
    if num_times <= 0:
        raise ValueError("once at least")
    return partial(again, num_times)


def again(num_times, fn):
    def wrapper(*args, **kwargs):
        results = []
        while len(results) < num_times:
            results.append(fn(*args, **kwargs))
        return results

    return wraps(fn)(wrapper)


# ---------------------------------------------------------------- cached_on_disk


REFUSED = {"alone": torch.zeros(2000), "in a list": [1, torch.zeros(2)], "in a tuple": ("a", (torch.ones(1),))}


def use_cached(cached_on_disk, tensor, keyword):
    """Two sessions over one folder; in the second, `hash` of strings gives other numbers, as in a new process."""
    computed = []

    def column(layer, name="W_E", scale=1.0):
        """A column."""
        computed.append((layer, name, scale))
        return {"values": torch.arange(3.0, device="cpu") * layer * scale, "name": name}

    def other(layer):
        return layer + 0.5

    seen = {}

    def joined(*args, **kwargs):
        return repr((args, sorted(kwargs.items())))

    answers = [lambda: "what torch.save can't write", 5.0]

    def second_time(layer):
        return answers.pop(0)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "made" / "when needed"
        first = cached_on_disk(folder)(column)
        if tensor:
            anything = cached_on_disk(folder)(lambda *args, **kwargs: 1.0)
            anything(1, **{keyword: REFUSED[tensor]}) if keyword else anything(REFUSED[tensor])
            return "nothing raised"
        seen["computed at the decoration"] = len(computed)
        results = [first(2), first(2), first(2, "W_U"), first(2, scale=3.0), first(2, scale=4.0), first(3)]
        seen["results"] = results
        seen["calls computed in the first session"] = list(computed)
        seen["another function, the same arguments"] = cached_on_disk(folder)(other)(2)
        seen["number of files"] = sum(path.is_file() for path in folder.rglob("*"))
        as_text = cached_on_disk(folder / "texts")(joined)
        calls = (
            (1, 23),
            (12, 3),
            ("1", 23),
            ("a", "b, c"),
            ("a, b", "c"),
            (1, 23),
            ([1, 23],),
            ((1, (None, True)), 0.5),
        )
        seen["calls whose arguments are alike as text"] = [as_text(*args) for args in calls]
        seen["a keyword, and a pair of the same text and number"] = [as_text(a=1), as_text(("a", 1)), as_text("a", 1)]
        keywords = []
        ordered = cached_on_disk(folder / "keywords")(lambda **kwargs: keywords.append(kwargs))
        ordered(b=1, a=2), ordered(a=2, b=1)
        seen["times computed for one call, its keywords in either order"] = len(keywords)
        once = cached_on_disk(folder / "broken off")(second_time)
        raised_by(once, 1)
        seen["after a result that could not be written"] = "a function" if callable(read := said_of(once, 1)) else read
        original = builtins.hash
        with mock.patch("builtins.hash", lambda x: original(("another process", x))):
            later = cached_on_disk(str(folder))(column)
            seen["results of a later session"] = [later(2), later(2, scale=4.0), later(3)]
        seen["calls computed by then"] = list(computed)
        seen["name and docstring"] = first.__name__, first.__doc__
    return seen


cached_on_disk = exercise(toolbox.cached_on_disk, use=use_cached)


@cached_on_disk.cases
def _():
    yield None, None
    yield from (("alone", None), ("in a list", None), ("in a tuple", None), ("alone", "scale"))


def caching(folder, key=None, refuse=True, file=True, named=True, whole=True):
    key = key or (lambda args, kwargs: repr((args, sorted(kwargs.items()))))

    def decorator(fn):
        kept = {}

        @wraps(fn)
        def wrapper(*args, **kwargs):
            if refuse:
                plain_or_raise([*args, *kwargs.values()])
            path = Path(folder) / f"{fn.__name__ if named else ''}{key(args, kwargs)}".encode().hex()[-120:]
            if path.exists() if file else path in kept:
                return torch.load(path) if file else kept[path]
            path.parent.mkdir(parents=True, exist_ok=True)
            kept[path] = result = fn(*args, **kwargs)
            if file:
                beside = path.with_name("beside") if whole else path
                torch.save(result, beside)
                beside.replace(path)
            return result

        return wrapper

    return decorator


def plain_or_raise(values):
    for value in values:
        if isinstance(value, list | tuple):
            plain_or_raise(value)
        elif not isinstance(value, bool | int | float | str | None):
            raise TypeError


@cached_on_disk.mistake("keyword arguments are left out of the file's name: calls that differ in them share a file")
def _(folder):
    return caching(folder, key=lambda args, kwargs: repr(args))


@cached_on_disk.mistake("the arguments are left out of the file's name: all calls of a function share one file")
def _(folder):
    return caching(folder, key=lambda args, kwargs: "")


@cached_on_disk.mistake("1 and 23 run together to the text of 12 and 3, and 1 is not '1': take the repr of all")
def _(folder):
    return caching(folder, key=lambda args, kwargs: "".join(map(str, [*args, *sorted(kwargs.items())])))


@cached_on_disk.mistake("where writing fails, half a file stays under the right name: write beside it, then replace()")
def _(folder):
    return caching(folder, whole=False)


@cached_on_disk.mistake("two functions share a file: put the function's name into the file's name")
def _(folder):
    return caching(folder, named=False)


@cached_on_disk.mistake("hash() of a string differs from session to session: take a digest of hashlib instead")
def _(folder):
    return caching(folder, key=lambda args, kwargs: builtins.hash((args, tuple(sorted(kwargs.items())))))


@cached_on_disk.mistake("it looks in memory, not on disk: a later session computes everything again")
def _(folder):
    return caching(folder, file=False)


@cached_on_disk.mistake("a tensor as an argument must raise a TypeError: its repr leaves out the middle")
def _(folder):
    return caching(folder, refuse=False)


@cached_on_disk.right
def _(folder):
    class Cached:
        def __init__(self, fn):
            self.fn = fn
            self.__name__, self.__doc__ = fn.__name__, fn.__doc__

        def __call__(self, *args, **kwargs):
            plain_or_raise(args)
            plain_or_raise(kwargs.values())
            place = Path(folder) / self.__name__ / str((args, sorted(kwargs.items()))).encode().hex()
            if not place.is_file():
                place.parent.mkdir(parents=True, exist_ok=True)
                in_memory = io.BytesIO()
                torch.save(self.fn(*args, **kwargs), in_memory)
                place.write_bytes(in_memory.getvalue())
            return torch.load(place)

    return Cached


# ---------------------------------------------------------------- layer_hooks


def use_layer_hooks(layer_hooks, name, layers, change):
    """A run with the hooks: which activations they name, which layers `fn` saw, and the logits."""
    model, seen = small_gpt(4, 3), []

    def fn(activation, layer):
        seen.append((layer, list(activation.shape)))
        return activation * (1 + layer) if change else None

    hooks = layer_hooks(name, layers, fn)
    logits = model.run_with_hooks(random_tokens(2, 7), fwd_hooks=hooks)
    return {"names": [place for place, _ in hooks], "layers and shapes that fn saw": seen, "logits": logits}


layer_hooks = exercise(toolbox.layer_hooks, use=use_layer_hooks)


@layer_hooks.cases
def _():
    yield "z", [0, 1, 2, 3], True
    yield "resid_post", [2, 0], True
    yield "pre", range(1, 3), False
    yield "z", [1], True


def hooks_of(name, layers, make):
    return [(get_act_name(name, layer), make(layer)) for layer in layers]


@layer_hooks.mistake("every hook has the last layer: the loop variable is looked up at the call, bind it for each hook")
def _(name, layers, fn):
    last = list(layers)[-1]
    return hooks_of(name, layers, lambda layer: lambda activation, hook: fn(activation, last))


@layer_hooks.mistake("what fn returns is dropped: a hook without `return` changes nothing")
def _(name, layers, fn):
    return hooks_of(name, layers, lambda layer: lambda activation, hook: fn(activation, layer) and None)


@layer_hooks.mistake("you gave the hooks layers counted from 0: take them from `layers`")
def _(name, layers, fn):
    order = list(layers)
    return hooks_of(name, layers, lambda layer: lambda activation, hook: fn(activation, order.index(layer)))


@layer_hooks.mistake("the hooks hang on the wrong activation: name it by get_act_name(name, layer)")
def _(name, layers, fn):
    return hooks_of("resid_pre", layers, lambda layer: lambda activation, hook: fn(activation, layer))


@layer_hooks.right
def _(name, layers, fn):
    def hook_fn(activation, hook, layer):
        return fn(activation, layer)

    return [(get_act_name(name, layer), partial(hook_fn, layer=layer)) for layer in layers]


@layer_hooks.right
def _(name, layers, fn):
    return [(get_act_name(name, l), lambda x, hook, layer=l: fn(x, layer)) for l in layers]


# ---------------------------------------------------------------- head_class


def use_head_class(head_class):
    Head = head_class()
    head, numbers = Head(0, 3), ((10, 1), (2, 0), (0, 9), (0, 10), (1, 0), (0, 100))
    seen = {
        "equal": (head == Head(0, 3), head == Head(3, 0), Head(layer=2, head=1) == Head(2, 1)),
        "its numbers": (head.layer, head.head),
        "sorted": said_of(lambda: [(h.layer, h.head) for h in sorted(Head(*n) for n in numbers)]),
        "as a key": said_of(lambda: {head: "induction"}[Head(0, 3)]),
        "changed afterwards": [raised_by(setattr, head, "layer", 5) == "nothing raised", head.layer],
        "str": str(head),
        "repr": repr(head).rpartition(".")[2],
        "negative numbers": [raised_by(Head, -1, 0), raised_by(Head, 0, -1)],
    }
    return seen


head_class = exercise(toolbox.head_class, use=use_head_class)


def made(show=True, ordered=True, checked=True, **options):
    @dataclass(order=ordered, **options)
    class Head:
        layer: int
        head: int

        def __post_init__(self):
            if checked and min(self.layer, self.head) < 0:
                raise ValueError

        if show:

            def __str__(self):
                return f"{self.layer}.{self.head}"

    return Head


@head_class.mistake(
    "a plain dataclass can't be a key: it has an __eq__, so its __hash__ is None; frozen=True makes one"
)
def _():
    return made()


@head_class.mistake("it can be changed, so that a key gets lost in its dictionary: frozen=True, not unsafe_hash=True")
def _():
    return made(unsafe_hash=True)


@head_class.mistake("heads don't sort: dataclass(order=True) makes the comparisons")
def _():
    return made(frozen=True, ordered=False)


@head_class.mistake("heads sort by their numbers, not as text: 9 comes before 10")
def _():
    cls = made(frozen=True)
    cls.__lt__ = lambda self, other: str(self) < str(other)
    return cls


@head_class.mistake("str() shows what repr() shows: write __str__, and leave __repr__ to the dataclass")
def _():
    return made(frozen=True, show=False)


@head_class.mistake("you replaced __repr__: it is for the programmer and stays; __str__ is for the reader")
def _():
    cls = made(frozen=True)
    cls.__repr__ = cls.__str__
    return cls


@head_class.mistake("negative numbers pass: look at them in __post_init__, and raise a ValueError")
def _():
    return made(frozen=True, checked=False)


@head_class.right
def _():
    @total_ordering
    class Head:
        __slots__ = ("layer", "head")

        def __init__(self, layer, head):
            if layer < 0 or head < 0:
                raise ValueError("from 0 up")
            object.__setattr__(self, "layer", layer)
            object.__setattr__(self, "head", head)

        def __setattr__(self, name, value):
            raise AttributeError("a head can't be changed")

        def __eq__(self, other):
            return (self.layer, self.head) == (other.layer, other.head)

        def __lt__(self, other):
            return (self.layer, self.head) < (other.layer, other.head)

        def __hash__(self):
            return hash((self.layer, self.head))

        def __repr__(self):
            return f"Head(layer={self.layer}, head={self.head})"

        def __str__(self):
            return f"{self.layer}.{self.head}"

    return Head


# ---------------------------------------------------------------- HeadDial


def use_dial(cls):
    dial, z = cls(1, 2), noise(2, 4, 3, 5)
    hook = SimpleNamespace(name=get_act_name("z", 1))
    seen = {"at first": (dial.layer, dial.head, dial.strength, dial.factor), "hook_name": dial.hook_name}
    dial.strength = 0.25
    before = z.clone()
    seen["turned down by a quarter"] = dial.turn_down(z, hook=hook)
    seen["z as it was"] = torch.equal(z, before)
    seen["a new tensor at strength 0 too"] = cls(1, 2, 0.0).turn_down(z, hook=hook).data_ptr() != z.data_ptr()
    seen["factor goes with strength"] = dial.factor
    for wrong in (-0.01, 1.01, float("nan")):
        seen[f"strength = {wrong}"] = raised_by(setattr, dial, "strength", wrong)
    seen["strength after what was refused"] = dial.strength
    seen["made with a strength outside"] = [raised_by(cls, 0, 0, 2.0), raised_by(cls, 0, 0, strength=-1)]
    seen["the borders"] = [cls(0, 0, 0).factor, cls(3, 0, strength=1).factor]
    seen["another layer"] = cls(3, 0, strength=0.5).hook_name
    seen["first head"] = cls(3, 0, strength=0.5).turn_down(z, hook=hook)
    return seen


HeadDial = exercise(toolbox.HeadDial, use=use_dial)


def _refusing(refused):
    """The dial whose setter refuses the values for which `refused` holds, and no others."""

    class Dial(toolbox.HeadDial):
        @property
        def strength(self):
            return self._strength

        @strength.setter
        def strength(self, value):
            if refused(value):
                raise ValueError
            self._strength = value

    return Dial


HeadDial.mistake("only values below 0 are refused: a strength above 1 would turn the head's sign")(
    _refusing(lambda value: value < 0 or value != value)
)
HeadDial.mistake("NaN is neither below 0 nor above 1, and no strength: ask `if not 0 <= value <= 1`")(
    _refusing(lambda value: value < 0 or value > 1)
)


@HeadDial.mistake("__init__ goes round the setter: assign to self.strength, not to self._strength")
class _(toolbox.HeadDial):
    def __init__(self, layer, head, strength=1.0):
        self.layer, self.head, self._strength = layer, head, strength


@HeadDial.mistake("factor was computed once, at the beginning: compute it where it is asked for")
class _(toolbox.HeadDial):
    def __init__(self, layer, head, strength=1.0):
        super().__init__(layer, head, strength)
        self.first = 1 - strength

    @property
    def factor(self):
        return self.first


@HeadDial.mistake("turn_down changes z itself: clone it first")
class _(toolbox.HeadDial):
    def turn_down(self, z, hook):
        z[:, :, self.head] *= self.factor
        return z


@HeadDial.mistake("strength 1 silences the head: its output is multiplied by 1 - strength")
class _(toolbox.HeadDial):
    @property
    def factor(self):
        return self.strength


@HeadDial.mistake("turn_down returns this head's part alone: return the whole of z")
class _(toolbox.HeadDial):
    def turn_down(self, z, hook):
        return z[:, :, self.head] * self.factor


@HeadDial.right
class _:
    def __init__(self, layer, head, strength=1.0):
        self.layer, self.head = layer, head
        self.strength = strength

    @property
    def strength(self):
        return 1 - self._factor

    @strength.setter
    def strength(self, value):
        if value < 0 or value > 1 or value != value:
            raise ValueError("0 to 1")
        self._factor = 1 - value

    factor = property(lambda self: self._factor)
    hook_name = property(lambda self: f"blocks.{self.layer}.attn.hook_z")

    def turn_down(self, z, hook):
        factors = torch.ones(z.shape[2], device=z.device)
        factors[self.head] = self.factor
        return z * factors[:, None]


# ---------------------------------------------------------------- weights_kept


def use_weights_kept(weights_kept):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).requires_grad_(False)
    before = {name: values.clone() for name, values in module.state_dict().items()}
    objects = [id(p) for p in module.parameters()]

    def edit():
        module[0].weight *= 0
        module[0].bias[1] = 7
        module[1].running_mean += 1
        module[1].num_batches_tracked += 5

    def unchanged():
        return {name: torch.equal(values, before[name]) for name, values in module.state_dict().items()}

    seen = {}
    with weights_kept(module):
        edit()
        seen["edits hold inside the block"] = [module[0].weight.abs().sum(), module[0].bias[1]]
    seen["as before, after the block"] = unchanged()
    seen["the same tensor objects"] = [id(p) for p in module.parameters()] == objects

    def failing():
        with weights_kept(module):
            edit()
            raise ArithmeticError

    seen["an error in the block goes on"] = raised_by(failing)
    seen["as before, after an error"] = unchanged()
    with weights_kept(module):
        module[0].weight += 1
        seen["a second time"] = module[0].weight.sum()
    seen["as before, after a second time"] = unchanged()
    return seen


weights_kept = exercise(toolbox.weights_kept, use=use_weights_kept)


@contextlib.contextmanager
def keeping(module, copy=torch.clone, names=None, always=True, new=False, swallow=False):
    kept = {n: copy(v) for n, v in module.state_dict().items() if names is None or n in names(module)}
    failed = None
    try:
        yield
    except Exception as error:
        failed = error
    if always or not failed:
        for name, values in kept.items():
            place, _, last = name.rpartition(".")
            if new and isinstance(getattr(module.get_submodule(place), last), nn.Parameter):
                setattr(module.get_submodule(place), last, nn.Parameter(values, requires_grad=False))
            else:
                module.state_dict()[name].copy_(values)
    if failed and not swallow:
        raise failed


@weights_kept.mistake("state_dict() gives the tensors themselves: clone them, or they change with the weights")
def _(module):
    return keeping(module, copy=lambda values: values)


@weights_kept.mistake("after an error in the block the weights stay changed: restore them in a `finally:`")
def _(module):
    return keeping(module, always=False)


@weights_kept.mistake("the error of the block is swallowed: `finally:` lets it go on, `except:` does not")
def _(module):
    return keeping(module, swallow=True)


@weights_kept.mistake("these are new tensor objects: copy the old values into those that are there")
def _(module):
    return keeping(module, new=True)


@weights_kept.mistake("buffers are not restored: state_dict() holds them too, named_parameters() does not")
def _(module):
    return keeping(module, names=lambda module: dict(module.named_parameters()))


@weights_kept.right
class _:
    def __init__(self, module):
        self.tensors = [*module.parameters(), *module.buffers()]

    def __enter__(self):
        self.kept = [tensor.detach().clone() for tensor in self.tensors]

    def __exit__(self, *error):
        with torch.no_grad():
            for tensor, values in zip(self.tensors, self.kept, strict=True):
                tensor.copy_(values)


# ---------------------------------------------------------------- standard_scores


def use_scores(standard_scores, values, once):
    return standard_scores((value for value in values) if once else values)


standard_scores = exercise(toolbox.standard_scores, use=use_scores)


@standard_scores.cases
def _():
    yield [1.0, 2.0, 4.0, 9.0], False
    yield [3.0, -1.0, 0.0, 0.0, 2.5], True
    yield [2, 5], True
    yield [], True
    yield [1.5, 1.5, 1.5], True
    yield [0.1, 0.1, 0.1], False  # their mean is not 0.1
    yield [4.0], False


def scored(values, middle=None, spread=None):
    values = list(values)
    if len(set(values)) < 2:
        raise ValueError
    mean = sum(values) / len(values)
    deviation = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
    middle = mean if middle is None else middle(values)
    return [(v - middle) / (deviation if spread is None else spread(values, deviation)) for v in values]


@standard_scores.mistake("a generator can be walked through only once: keep the values in a list first")
def _(values):
    for _ in range(2):
        if isinstance(values, list | tuple) and len(set(values)) < 2:
            raise ValueError
    if isinstance(values, list | tuple):
        return scored(values)
    list(values)
    return [v for v in values]


@standard_scores.mistake("this divides by the variance: take its square root")
def _(values):
    return scored(values, spread=lambda values, deviation: deviation**2)


@standard_scores.mistake("this is the sample's standard deviation, over n - 1: the population's is over n")
def _(values):
    return scored(values, spread=lambda v, deviation: deviation * (len(v) / (len(v) - 1)) ** 0.5)


@standard_scores.mistake("the mean is still in it: take it off each value")
def _(values):
    return scored(values, middle=lambda values: 0)


@standard_scores.mistake("no values, or all equal: raise a ValueError, there is nothing to divide by")
def _(values):
    values = list(values)
    return scored(values) if len(set(values)) > 1 else [0.0 for _ in values]


@standard_scores.right
def _(values):
    x = torch.tensor([float(v) for v in values], dtype=torch.float64)
    if not len(x) or x.max() == x.min():
        raise ValueError("two different values at least")
    return ((x - x.mean()) / x.std(correction=0)).tolist()


# ---------------------------------------------------------------- token_table


LINES = set(map(chr, range(0x2500, 0x2580)))  # of which frames are drawn


def use_table(token_table, tokens, values, *title):
    """The table drawn on a console of plain text, and what of it is bold."""
    table = token_table(tokens, values, *title)
    if not isinstance(table, Table):
        return table
    console = Console(width=60, file=io.StringIO(), color_system="truecolor", force_terminal=True, legacy_windows=False)
    segments = [s for s in console.render(table) if s.text.strip()]
    headers = [str(column.header) for column in table.columns]
    bold = [s.text.strip() for s in segments if s.style and s.style.bold]
    return {
        "columns": headers,
        "rows": table.row_count,
        "what it says": [word for line in segments for word in line.text.split() if not LINES.issuperset(word)],
        "bold": [word for word in bold if word not in headers],
        "title": str(table.title or ""),
    }


token_table = exercise(toolbox.token_table, use=use_table)


@token_table.cases
def _():
    yield [" the", "[red]", "cat"], [0.12345, 3.0, -2.0], "scores"
    yield ["[/]", "[b]x[/b]", "\n", "'"], [1.0, 1.0, 0.5, 100.0]
    yield ["a", "b", "c"], [-3.0, -1.0, -1.0], "all negative"
    yield [" one"], [7.0]
    yield ["a"], [1.0, 2.0]
    yield [], []


def tabled(tokens, values, title="", cell=escape, form="#.3g", bold=True, best=max, show=repr):
    if len(tokens) != len(values) or len(values) == 0:
        raise ValueError
    values = [float(v) for v in values]
    table = Table("token", "value", title=title)
    where = values.index(best(values))
    for i, (token, value) in enumerate(zip(tokens, values, strict=True)):
        table.add_row(cell(show(token)), f"{value:{form}}", style="bold" if bold and i == where else None)
    return table


@token_table.mistake("rich takes [red] and [/] in a token for markup: pass the cell's text through escape()")
def _(tokens, values, title=""):
    return tabled(tokens, values, title, cell=str)


@token_table.mistake("show tokens by repr(), or spaces and line ends can't be seen")
def _(tokens, values, title=""):
    return tabled(tokens, values, title, show=str)


@token_table.mistake('the row of the largest value must be bold: add_row(..., style="bold")')
def _(tokens, values, title=""):
    return tabled(tokens, values, title, bold=False)


@token_table.mistake("the smallest value is bold, not the largest")
def _(tokens, values, title=""):
    return tabled(tokens, values, title, best=min)


@token_table.mistake("you took the largest by its size without the sign: -3 is less than 1")
def _(tokens, values, title=""):
    return tabled(tokens, values, title, best=lambda values: max(values, key=abs))


@token_table.mistake('values get three digits, f"{value:#.3g}": three digits after the point are something else')
def _(tokens, values, title=""):
    return tabled(tokens, values, title, form=".3f")


@token_table.mistake("the title is missing: Table(..., title=title)")
def _(tokens, values, title=""):
    return tabled(tokens, values)


@token_table.right
def _(tokens, values, title=""):
    if not tokens or len(tokens) != len(values):
        raise ValueError("one value a token")
    numbers = torch.as_tensor(values)
    table = Table(title=title)
    table.add_column("token")
    table.add_column("value")
    for i, token in enumerate(tokens):
        style = "bold" if i == int((numbers == numbers.max()).nonzero()[0]) else ""
        table.add_row(Text(repr(token), style), Text(f"{numbers[i].item():#.3g}", style))
    return table


# ---------------------------------------------------------------- vocab_by_id


def with_added_token():
    tokenizer = tokenizer_of("the capital of France is Paris")
    tokenizer.add_tokens(["<picture>"])
    return tokenizer


@dataclass
class OfADict:
    """As much of a tokenizer as has a vocabulary."""

    vocab: dict[str, int] = field(default_factory=dict)

    def get_vocab(self):
        return dict(self.vocab)

    def __len__(self):
        return len(self.vocab)

    @property
    def vocab_size(self):
        return len(self.vocab)

    def convert_ids_to_tokens(self, ids):
        names = {i: name for name, i in self.vocab.items()}
        return [names[i] for i in ids] if isinstance(ids, list) else names[ids]


vocab_by_id = exercise(toolbox.vocab_by_id)


@vocab_by_id.cases
def _():
    yield (with_added_token(),)
    yield (OfADict({"b": 2, "a": 0, "c": 1}),)
    yield (OfADict({"b": 3, "a": 0, "c": 1}),)
    yield (OfADict({"b": 2, "a": 1}),)
    yield (OfADict({"b": 2, "a": 0, "c": 2}),)  # 1 is missing, 2 is there twice


def gap_or(tokenizer, tokens):
    toolbox.vocab_by_id(tokenizer)
    return tokens


@vocab_by_id.mistake("you sorted by the tokens' letters: sort by id, key=vocab.get")
def _(tokenizer):
    return gap_or(tokenizer, sorted(tokenizer.get_vocab()))


@vocab_by_id.mistake("these are pairs: return the tokens alone, the id is their place")
def _(tokenizer):
    return gap_or(tokenizer, sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))


@vocab_by_id.mistake("vocab_size leaves out added tokens: len(tokenizer) or get_vocab() has all")
def _(tokenizer):
    return toolbox.vocab_by_id(tokenizer)[: tokenizer.vocab_size]


@vocab_by_id.mistake("where the ids have a gap, places and ids come apart: raise a ValueError")
def _(tokenizer):
    vocab = tokenizer.get_vocab()
    return sorted(vocab, key=vocab.get)


@vocab_by_id.right
def _(tokenizer):
    by_id = {i: token for token, i in tokenizer.get_vocab().items()}
    if any(i not in by_id for i in range(len(by_id))):
        raise ValueError("a gap")
    return [by_id[i] for i in range(len(by_id))]


# ---------------------------------------------------------------- gpt2_places


@cache
def small_gpt2():
    torch.manual_seed(0)
    sizes = dict(n_layer=3, n_head=2, n_embd=10, n_inner=28, n_positions=16, vocab_size=23)
    return with_biases(GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.3)), 0.2).to(device())


def use_places(gpt2_places, layer):
    model, ids, seen = small_gpt2(), random_tokens(2, 5), {}
    for name, place in gpt2_places(layer).items():
        seen[name] = toolbox.tensor_at(model, place, input_ids=ids)
    return seen


gpt2_places = exercise(toolbox.gpt2_places, use=use_places)


@gpt2_places.cases
def _():
    yield (0,)
    yield (2,)
    yield (1,)


def moved(layer, **others):
    places, block = toolbox.gpt2_places(layer), f"transformer.h.{layer}"
    return places | {name: (block + path, side) for name, (path, side) in others.items()}


@gpt2_places.mistake("what comes out of c_proj has the heads summed already: z is what goes into it")
def _(layer):
    return moved(layer, z=(".attn.c_proj", "output"))


@gpt2_places.mistake("what goes into the MLP's c_fc is normalised: resid_mid goes into ln_2")
def _(layer):
    return moved(layer, resid_mid=(".mlp.c_fc", "input"))


@gpt2_places.mistake("pre and post are before and after the activation function: out of c_fc, into the MLP's c_proj")
def _(layer):
    return moved(layer, pre=(".mlp.c_proj", "input"), post=(".mlp.c_fc", "output"))


@gpt2_places.mistake("what goes into attn is normalised: resid_pre goes into the whole block")
def _(layer):
    return moved(layer, resid_pre=(".attn", "input"))


@gpt2_places.mistake("mlp_out is what the MLP writes, resid_post is the stream afterwards: the block's output")
def _(layer):
    return moved(layer, mlp_out=("", "output"))


@gpt2_places.mistake("these are layer 0's places: put the layer into the path")
def _(layer):
    return toolbox.gpt2_places(0)


@gpt2_places.right
def _(layer):
    h = f"transformer.h.{layer}."
    return {
        "resid_pre": (h + "ln_1", "input"),
        "z": (h + "attn.c_proj", "input"),
        "attn_out": (h + "attn", "output"),
        "resid_mid": (h + "ln_2", "input"),
        "pre": (h + "mlp.act", "input"),
        "post": (h + "mlp.act", "output"),
        "mlp_out": (h + "mlp", "output"),
        "resid_post": (h[:-1], "output"),
    }


# ---------------------------------------------------------------- expand_keys

expand_keys = exercise(toolbox.expand_keys)


@expand_keys.cases
def _():
    yield noise(2, 5, 3, 4), 6
    yield noise(1, 7, 2, 3), 8
    yield noise(3, 2, 4, 5), 4
    yield noise(2, 3, 1, 5), 3
    yield noise(2, 5, 3, 4), 7


@expand_keys.mistake("neighbouring query heads share a key head, 0 0 0 1 1 1: this deals them out, 0 1 0 1 0 1")
def _(k, n_heads):
    toolbox.expand_keys(k, n_heads)
    return k.repeat(1, 1, n_heads // k.shape[2], 1)


@expand_keys.mistake("n_heads is the number of query heads in all, not for each key head")
def _(k, n_heads):
    toolbox.expand_keys(k, n_heads)
    return k.repeat_interleave(n_heads, dim=2)


@expand_keys.mistake("heads that can't be shared out evenly must raise a ValueError")
def _(k, n_heads):
    return k.repeat_interleave(n_heads // k.shape[2], dim=2)


@expand_keys.mistake("you repeated the positions: the heads are dimension 2")
def _(k, n_heads):
    toolbox.expand_keys(k, n_heads)
    return k.repeat_interleave(n_heads // k.shape[2], dim=1)


@expand_keys.law("it must be what transformers' Llama does with its keys")
def _(expand_keys):
    k = noise(2, 5, 3, 4)
    return difference(expand_keys(k, 12).transpose(1, 2), repeat_kv(k.transpose(1, 2), 4)) is None


@expand_keys.right
def _(k, n_heads):
    if n_heads % k.size(2) != 0:
        raise ValueError("can't be shared out")
    wide = k.unsqueeze(3).expand(-1, -1, -1, n_heads // k.size(2), -1)
    return wide.flatten(2, 3)
