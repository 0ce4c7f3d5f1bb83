"""The toolbox: what Python and the field's libraries do, as far as the course uses it.
What torch does is in `utils.tensors`.
"""

import hashlib
import inspect
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

import torch
from einops import einsum, repeat
from jaxtyping import Float
from rich.markup import escape
from rich.table import Table
from torch import Tensor, nn
from transformer_lens.utilities import get_act_name
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase

__all__ = ["outline", "tensor_at"]

# ---------------------------------------------------------------- the self-test


def self_test() -> dict[int, object]:
    """Your answers to the ten questions, by their numbers. A question that you leave
    out counts as "do the section".
    """

    # 1
    def share(part: int, whole: int) -> str:
        return part / whole

    # 2
    def twice(fn):
        return lambda x: 2 * fn(x)

    def plus_one(fn):
        return lambda x: fn(x) + 1

    @twice
    @plus_one
    def same(x):
        return x

    # 3
    hooks = []
    for layer in range(3):
        hooks.append(lambda: layer)  # noqa: B023

    # 4
    @dataclass
    class Head:
        layer: int
        head: int

    try:
        scores = {Head(0, 3): 0.9}
        said = type(scores).__name__
    except Exception as error:
        said = type(error).__name__

    # 5
    x = torch.zeros(2, 3)
    x.T[0] = 1

    # 10
    ids = dict(vocab_size=5, bos_token_id=0, eos_token_id=0)
    tiny = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, **ids))
    return {
        1: type(share(1, 2)).__name__,
        2: same(3),
        3: [hook() for hook in hooks],
        4: said,
        5: x.sum().item(),
        6: torch.zeros(4, 5).softmax(dim=0)[0].sum().item(),
        7: list((torch.zeros(3) - torch.zeros(3, 1)).shape),
        8: einsum(torch.ones(2, 3, 4), torch.ones(2, 3, 5), "a b c, a b d -> c d")[
            0, 0
        ].item(),
        9: torch.zeros(50, 100, dtype=torch.bfloat16)[0].untyped_storage().nbytes(),
        10: list(tiny.transformer.h[0].attn.c_attn.weight.shape),
    }


# ---------------------------------------------------------------- functions


def timed(fn: Callable) -> Callable:
    """A decorator that measures: the decorated function does what `fn` does, and its
    attribute `seconds` is a list with the seconds that each call took, one entry a
    call.

    Arguments and results pass unchanged. A call that raises is measured too, and its
    exception goes on. Name and docstring stay those of `fn`.
    """

    @wraps(fn)
    def wrapper(*args, **kwargs):
        began = time.perf_counter()
        try:
            return fn(*args, **kwargs)
        finally:
            wrapper.seconds.append(time.perf_counter() - began)

    wrapper.seconds = []
    return wrapper


def repeated(num_times: int) -> Callable[[Callable], Callable]:
    """A decorator with an argument: under `@repeated(3)` a function is called three
    times with the same arguments at each call, and returns the list of its three
    results.

    Name and docstring stay the function's own.

    Raises:
        ValueError: at `@repeated(0)` already, before any call: `num_times` is below 1.
    """
    if num_times < 1:
        raise ValueError(f"num_times is {num_times}: ask for one call at least")

    def decorator(fn):
        @wraps(fn)
        def wrapper(*args, **kwargs):
            return [fn(*args, **kwargs) for _ in range(num_times)]

        return wrapper

    return decorator


def cached_on_disk(folder: Path | str) -> Callable[[Callable], Callable]:
    """A decorator with an argument: each result is kept in a file of `folder`, and read
    from there when the same call comes again, in a later session too.

    Each function (by its name) and each set of arguments has a file of its own. A file
    is whole or absent: it is written beside and renamed. Results are what `torch.save`
    can write: tensors, numbers, strings, lists and dictionaries of these.

    Args:
        folder: made at the first call, where it is not there.

    Raises:
        TypeError: an argument is no bool, number or string, and no list or tuple of
            such, nor None. The `repr` of a long tensor leaves out its middle, so that
            two tensors would share a file.
    """

    def is_plain(value):
        if isinstance(value, list | tuple):
            return all(map(is_plain, value))
        return value is None or isinstance(value, bool | int | float | str)

    def decorator(fn):
        @wraps(fn)
        def wrapper(*args, **kwargs):
            if not all(map(is_plain, [*args, *kwargs.values()])):
                raise TypeError("arguments must be numbers, strings or lists of these")
            call = repr((args, sorted(kwargs.items())))
            digest = hashlib.sha256(call.encode()).hexdigest()[:16]
            path = Path(folder) / f"{fn.__name__}-{digest}.pt"
            if path.exists():
                return torch.load(path)
            result = fn(*args, **kwargs)
            path.parent.mkdir(parents=True, exist_ok=True)
            beside = path.with_suffix(".part")
            torch.save(result, beside)
            beside.replace(path)
            return result

        return wrapper

    return decorator


def layer_hooks(
    name: str, layers: Iterable[int], fn: Callable[[Tensor, int], Tensor | None]
) -> list[tuple[str, Callable]]:
    """The `fwd_hooks` that call `fn(activation, layer)` at one activation of several
    layers; each knows its own layer.

    What `fn` returns goes on in the place of the activation, as with any hook.

    Args:
        name: a short name such as "z" or "resid_post".
    """

    def hook_for(layer):
        return lambda activation, hook: fn(activation, layer)

    return [(get_act_name(name, layer), hook_for(layer)) for layer in layers]


# ---------------------------------------------------------------- objects


def head_class() -> type:
    """A class `Head(layer, head)` that names an attention head.

    Two heads are equal where both numbers are; a head can be the key of a dictionary;
    heads sort by layer, then by head; a head can't be changed once it is made.
    `str(Head(0, 3))` is "0.3", its `repr` is "Head(layer=0, head=3)" behind whatever
    the class stands in. `Head(-1, 0)` and `Head(0, -1)` raise a ValueError.
    """

    @dataclass(frozen=True, order=True)
    class Head:
        layer: int
        head: int

        def __post_init__(self):
            if self.layer < 0 or self.head < 0:
                raise ValueError(f"a head counts from 0: {self.layer}, {self.head}")

        def __str__(self):
            return f"{self.layer}.{self.head}"

    return Head


class HeadDial:
    """A hook with a dial: it turns one attention head down, from 0 (the head as it is)
    to 1 (the head is silent).

        dial = HeadDial(layer=1, head=2, strength=0.5)
        model.run_with_hooks(tokens, fwd_hooks=[(dial.hook_name, dial.turn_down)])

    Setting `strength` to anything but 0 to 1 (NaN neither), at the beginning or later,
    raises a ValueError and changes nothing.
    """

    def __init__(self, layer: int, head: int, strength: float = 1.0):
        self.layer, self.head = layer, head
        self.strength = strength

    @property
    def strength(self) -> float:
        """How far the head is turned down, 0 to 1."""
        return self._strength

    @strength.setter
    def strength(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise ValueError(f"strength is {value}: set it from 0 to 1")
        self._strength = value

    @property
    def factor(self) -> float:
        """What the head's output is multiplied by, at the dial's present strength."""
        return 1 - self.strength

    @property
    def hook_name(self) -> str:
        """The full name of the activation that holds the head's output `z`."""
        return get_act_name("z", self.layer)

    def turn_down(self, z: Float[Tensor, "batch seq head d_head"], hook) -> Tensor:
        """A new tensor: `z` with this head's part multiplied by `factor`."""
        z = z.clone()
        z[:, :, self.head] *= self.factor
        return z


@contextmanager
def weights_kept(module: nn.Module) -> Iterator[None]:
    """Inside `with weights_kept(model):` weights may be edited in place; at its end,
    also where the block raises, parameters and buffers hold their old values again.

    They stay the same tensor objects, for an optimizer or a second name may hold them.
    The block's exception goes on.
    """
    kept = {name: values.clone() for name, values in module.state_dict().items()}
    try:
        yield
    finally:
        module.load_state_dict(kept)


def standard_scores(values: Iterable[float]) -> list[float]:
    """Each value minus their mean, divided by their standard deviation (of the
    population: the root of the mean squared distance from the mean).

    Args:
        values: numbers in anything that a `for` can walk through: a list, the items of
            a dictionary, or a generator, which can be walked through only once.

    Raises:
        ValueError: there are no values, or all are equal.
    """
    values = list(values)
    if len(set(values)) < 2:
        raise ValueError("there must be two different values at least")
    mean = sum(values) / len(values)
    spread = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
    return [(v - mean) / spread for v in values]


# ---------------------------------------------------------------- seeing


def token_table(
    tokens: Sequence[str], values: Sequence[float], title: str = ""
) -> Table:
    """A rich table of tokens and their values, one row each, in their order.

    The columns are "token" and "value". A token is shown by its `repr`, letter for
    letter, also where it looks like rich's markup; a value with three digits
    (`f"{value:#.3g}"`). In the row of the largest value (the first of equal ones) both
    cells are bold.

    Raises:
        ValueError: there is not one value for each token, or none at all.
    """
    if len(tokens) != len(values) or not len(values):
        raise ValueError(f"{len(values)} values for {len(tokens)} tokens")
    table = Table("token", "value", title=title)
    best = max(range(len(values)), key=lambda i: float(values[i]))
    for i, (token, value) in enumerate(zip(tokens, values, strict=True)):
        style = "bold" if i == best else None
        table.add_row(escape(repr(token)), f"{float(value):#.3g}", style=style)
    return table


# ---------------------------------------------------------------- the libraries


def outline(thing: object, *names: str) -> Table:
    """A map of a class or module as it is installed: each name, what it takes, and the
    first line of its docstring.

    Args:
        names: which of its functions, methods and properties.
    """
    # As wide as a notebook's page: a wider table would be cut off.
    table = Table(title=thing.__name__, width=96, show_lines=True)
    table.add_column("name", no_wrap=True)
    for header in ("takes", "what it is"):
        table.add_column(header, overflow="fold")
    for name in names:
        found = inspect.getattr_static(thing, name)
        found = getattr(found, "__func__", found)  # of a class method
        takes = ["(attribute)"]
        if callable(found):
            parameters = inspect.signature(found).parameters
            takes = [p for p in parameters if p not in ("self", "cls")]
        first = (inspect.getdoc(found) or "").strip().split("\n")[0]
        table.add_row(name, ", ".join(takes), escape(first))
    return table


def tensor_at(model: nn.Module, place: tuple[str, str], **inputs: Tensor) -> Tensor:
    """Run a model of transformers and return the tensor that goes into one of its
    modules, or comes out.

    Args:
        place: the module's path, as in `model.named_modules()`, and "input" or
            "output". Of several inputs or outputs it is the first.
        inputs: what the model is called with.
    """
    path, side = place
    seen = {}

    def look(module, args, kwargs, output):
        first = args[0] if args else next(iter(kwargs.values()))
        seen["input"] = first
        seen["output"] = output[0] if isinstance(output, tuple) else output

    handle = model.get_submodule(path).register_forward_hook(look, with_kwargs=True)
    try:
        model(**inputs)
    finally:
        handle.remove()
    return seen[side]


def vocab_by_id(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """All tokens of a tokenizer of transformers, added ones too, so that the token with
    the id `i` stands at place `i`.

    Raises:
        ValueError: the ids do not run from 0 up without a gap.
    """
    vocab = tokenizer.get_vocab()
    if sorted(vocab.values()) != list(range(len(vocab))):
        raise ValueError("the ids have gaps: a list can't hold them by place")
    return sorted(vocab, key=vocab.get)


def gpt2_places(layer: int) -> dict[str, tuple[str, str]]:
    """Where transformers' GPT-2 keeps what TransformerLens calls `resid_pre`, `z`,
    `attn_out`, `resid_mid`, `pre`, `post`, `mlp_out` and `resid_post` in this layer.

    For each of these names: the path of a module of `GPT2LMHeadModel`,
    such as "transformer.h.0.ln_1", and "input" or "output". Of `z` the heads stand side
    by side in one dimension.
    """
    block = f"transformer.h.{layer}"
    return {
        "resid_pre": (block, "input"),
        "z": (f"{block}.attn.c_proj", "input"),
        "attn_out": (f"{block}.attn.c_proj", "output"),
        "resid_mid": (f"{block}.ln_2", "input"),
        "pre": (f"{block}.mlp.c_fc", "output"),
        "post": (f"{block}.mlp.c_proj", "input"),
        "mlp_out": (f"{block}.mlp.c_proj", "output"),
        "resid_post": (block, "output"),
    }


def expand_keys(
    k: Float[Tensor, "batch pos kv_head d_head"], n_heads: int
) -> Float[Tensor, "batch pos head d_head"]:
    """Grouped queries: give each query head its key head, by repeating every key head
    for the neighbouring query heads that share it.

    With two key heads and six query heads, key head 0 serves the query heads 0, 1 and
    2, key head 1 the others.

    Raises:
        ValueError: the query heads can't be shared out evenly.
    """
    if n_heads % k.shape[2]:
        raise ValueError(f"{n_heads} query heads can't share {k.shape[2]} key heads")
    group = n_heads // k.shape[2]
    return repeat(k, "batch pos kv d -> batch pos (kv group) d", group=group)
