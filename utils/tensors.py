"""The toolbox, second part: what torch does with shapes, numbers, sums and memory."""

from collections.abc import Callable, Iterable
from itertools import product, zip_longest
from math import prod

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformer_lens import HookedTransformer
from transformer_lens.utilities import get_act_name

__all__ = ["peak_bytes"]

# ---------------------------------------------------------------- tensors


def best_allowed(
    logits: Float[Tensor, "batch vocab"], allowed: Bool[Tensor, "vocab"]
) -> tuple[Int[Tensor, "batch"], Float[Tensor, "batch"]]:
    """The most probable allowed token of each row, and its probability where only
    allowed tokens may come.

    Raises:
        ValueError: no token is allowed.
    """
    if not allowed.any():
        raise ValueError("no token is allowed")
    probs = logits.masked_fill(~allowed, -torch.inf).softmax(dim=-1)
    best = probs.argmax(dim=-1)
    return best, probs.gather(-1, best[:, None])[:, 0]


def most_similar_earlier(x: Float[Tensor, "pos d"]) -> Int[Tensor, "pos"]:
    """For each position the earlier position whose vector has the largest cosine with
    its own; -1 for the first position, which has no earlier one.
    """
    unit = normalize(x, dim=-1)
    cosines = unit @ unit.T
    not_earlier = torch.ones_like(cosines).triu().bool()
    best = cosines.masked_fill(not_earlier, -torch.inf).argmax(dim=-1)
    return torch.cat([torch.full_like(best[:1], -1), best[1:]])


def first_lost_integer(dtype: torch.dtype) -> int:
    """The smallest positive whole number that a floating-point type can't hold: put
    into a tensor of this type, it comes out as another number.

    Raises:
        ValueError: the type is not a floating-point type.
    """
    if not dtype.is_floating_point:
        raise ValueError(f"{dtype} is no floating-point type")
    # eps is the gap between 1 and the next number; between 2/eps and the next it is 2.
    return int(2 / torch.finfo(dtype).eps) + 1


class Centring(nn.Module):
    """Take away a mean that was measured once, and multiply by a gain that is trained.

    `mean` is no weight: no optimizer changes it. But it belongs to the module: it is
    saved with it, loaded with it, and goes with it to another device or dtype. It is a
    copy of what was given. `gain` is a weight; it begins as ones.
    """

    def __init__(self, mean: Float[Tensor, "d"]):
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.gain = nn.Parameter(torch.ones_like(mean))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """`gain` times the distance from `mean`."""
        return self.gain * (x - self.mean)


def gradient_of(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient at `x` of a function that makes one number of a tensor.

    Leaves no trace: `x` does not begin to require gradients, and weights that `fn` uses
    get nothing in their `.grad`. Works where gradients are switched off, too.
    """
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_(True)
        return torch.autograd.grad(fn(leaf), leaf)[0]


# ---------------------------------------------------------------- broadcasting


def broadcast_shape(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of `x + y` for tensors `x` and `y` of the shapes `a` and `b`.

    Raises:
        ValueError: they do not fit.
    """
    shape = []
    for m, n in zip_longest(reversed(a), reversed(b), fillvalue=1):
        if m != n and 1 not in (m, n):
            raise ValueError(f"{tuple(a)} and {tuple(b)} do not fit: {m} against {n}")
        shape.append(n if m == 1 else m)
    return tuple(reversed(shape))


def centred(x: Tensor, dim: int) -> Tensor:
    """`x` minus its mean over one dimension, in the shape of `x`."""
    return x - x.mean(dim=dim, keepdim=True)


# ---------------------------------------------------------------- einsum


def einsum_by_loops(pattern: str, *tensors: Tensor) -> Tensor:
    """What `einops.einsum(*tensors, pattern)` computes, written as its definition: for
    all values of all indices, the product of the tensors' entries is added to the entry
    of the result that the indices on the right name.

    Args:
        pattern: such as "a b c, a b d -> c d": names of indices with spaces between
            them, a comma between tensors. No name stands twice in one tensor.
        tensors: of one dtype.

    Raises:
        ValueError: the number of tensors, or of a tensor's dimensions, is not the
            pattern's; an index has two sizes; one on the right stands nowhere left.
    """
    left, right = pattern.split("->")
    names, kept = [part.split() for part in left.split(",")], right.split()
    if [len(part) for part in names] != [tensor.ndim for tensor in tensors]:
        raise ValueError(f"{pattern!r} does not fit the tensors' dimensions")
    sizes = {}
    for part, tensor in zip(names, tensors, strict=True):
        for name, size in zip(part, tensor.shape, strict=True):
            if sizes.setdefault(name, size) != size:
                raise ValueError(f"{name!r} has two sizes: {sizes[name]} and {size}")
    if unknown := set(kept) - set(sizes):
        raise ValueError(f"{sorted(unknown)[0]!r} stands nowhere on the left")
    result = tensors[0].new_zeros([sizes[name] for name in kept])
    for values in product(*map(range, sizes.values())):
        at = dict(zip(sizes, values, strict=True))
        entries = [
            tensor[tuple(at[name] for name in part)]
            for part, tensor in zip(names, tensors, strict=True)
        ]
        result[tuple(at[name] for name in kept)] += prod(entries)
    return result


def head_norms(
    x: Float[Tensor, "batch pos d"], n_heads: int
) -> Float[Tensor, "n_heads"]:
    """The length of each head's part of `x`, as a mean over texts and positions.

    In `x` the heads stand side by side in the last dimension: first all numbers of head
    0, then all of head 1, and so on.

    Raises:
        ValueError: the last dimension can't be cut into so many equal parts.
    """
    if x.shape[-1] % n_heads:
        raise ValueError(f"{x.shape[-1]} numbers can't be shared by {n_heads} heads")
    heads = rearrange(x, "batch pos (head d) -> batch pos head d", head=n_heads)
    return reduce(heads.norm(dim=-1), "batch pos head -> head", "mean")


# ---------------------------------------------------------------- memory


def bytes_held(tensors: Iterable[Tensor]) -> int:
    """How many bytes of memory these tensors keep alive together.

    A view keeps the whole storage that it looks into. A storage that several of the
    tensors share counts once.
    """
    storages = (tensor.untyped_storage() for tensor in tensors)
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


class _Counting(TorchDispatchMode):
    """Sees every operation of torch, and which of the tensors made live still."""

    def __init__(self):
        super().__init__()
        self.living, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given, made = (
            [x.untyped_storage() for x in tree_leaves(tree) if isinstance(x, Tensor)]
            for tree in ((args, kwargs), out)
        )
        known = {storage._cdata for storage in given}
        new = [storage for storage in made if storage._cdata not in known]
        if new:
            living = {s: n for s, n in self.living.items() if not s.expired()}
            self.living = living | {StorageWeakRef(s): s.nbytes() for s in new}
            self.peak = max(self.peak, sum(self.living.values()))
        return out


def peak_bytes(work: Callable[[], object]) -> int:
    """The most bytes that tensors made during `work()` held at one time.

    What was there before, such as weights, is not counted.
    """
    with _Counting() as counting:
        work()
    return counting.peak


def mean_residual(
    model: HookedTransformer, rows: Int[Tensor, "text pos"], layer: int
) -> Float[Tensor, "d_model"]:
    """The residual stream after a layer, at the last position, as a mean over texts.

    For eight texts and more it needs at its peak less than a quarter of the memory that
    one run over all texts with a whole cache needs.

    Raises:
        ValueError: the model has no such layer.
    """
    if not 0 <= layer < model.cfg.n_layers:
        raise ValueError(f"layer {layer}: the model has 0 to {model.cfg.n_layers - 1}")
    name = get_act_name("resid_post", layer)
    total = 0
    for row in rows:
        _, cache = model.run_with_cache(
            row[None], names_filter=name, stop_at_layer=layer + 1, return_type=None
        )
        total = total + cache[name][0, -1]
    return total / len(rows)
