"""What chapter 00 asks of tensors: shapes, numbers, broadcasting, sums and memory."""

from functools import cache, partial
from itertools import product, zip_longest
from math import prod

import einops
import torch
from torch import nn
from torch.nn.functional import cosine_similarity, normalize
from transformer_lens.utilities import get_act_name

from utils import tensors as ts
from utils.checks.compare import difference
from utils.checks.models import noise, random_tokens, small_attn, small_gpt
from utils.checks.toolbox import chapter, said_of

exercise = chapter.exercise

# ---------------------------------------------------------------- best_allowed


def use_allowed(best_allowed, logits, allowed):
    """The result, and whether the logits are as they were."""
    before = logits.clone()
    best, probs = best_allowed(logits, allowed)
    return {"tokens": best, "probabilities": probs, "logits unchanged": torch.equal(logits, before)}


best_allowed = exercise(ts.best_allowed, use=use_allowed)


def mask_of(*ids, size):
    return torch.tensor([i in ids for i in range(size)])


@best_allowed.cases
def _():
    yield noise(3, 7, scale=2.0), mask_of(0, 2, 5, size=7)
    yield noise(1, 5, seed=1) - 30, mask_of(1, 4, size=5)
    yield noise(4, 6, seed=2), mask_of(*range(6), size=6)
    yield noise(2, 3, seed=3), mask_of(2, size=3)
    yield torch.tensor([[300.0, 0.0, 1.0, -1.0]]), mask_of(1, 3, size=4)  # what is allowed is most unlikely
    yield noise(2, 3, seed=3), mask_of(size=3)


def allowed_of(logits, allowed, fill=-torch.inf, dim=-1, mask_probs=False, pick=None):
    ts.best_allowed(logits, allowed)
    masked = logits if mask_probs else logits.masked_fill(~allowed, fill)
    probs = masked.softmax(dim)
    if mask_probs:
        probs = probs.masked_fill(~allowed, 0)
    best = probs.argmax(-1)
    return best, (pick or (lambda probs, best: probs.gather(-1, best[:, None])[:, 0]))(probs, best)


@best_allowed.mistake("masked_fill_ with an underscore writes into the logits that you were given")
def _(logits, allowed):
    ts.best_allowed(logits, allowed)
    return allowed_of(logits.masked_fill_(~allowed, -torch.inf), allowed)


@best_allowed.mistake("a logit of 0 is no small probability: fill with minus infinity")
def _(logits, allowed):
    return allowed_of(logits, allowed, fill=0.0)


@best_allowed.mistake("your softmax runs over the batch: the probabilities of each row sum to 1, dim=-1")
def _(logits, allowed):
    return allowed_of(logits, allowed, dim=0)


@best_allowed.mistake("you masked after the softmax: the forbidden tokens have taken their share already")
def _(logits, allowed):
    return allowed_of(logits, allowed, mask_probs=True)


@best_allowed.mistake("the mask is turned round: masked_fill fills where the mask is true, so it needs ~allowed")
def _(logits, allowed):
    ts.best_allowed(logits, allowed)
    return allowed_of(logits, ~allowed) if not allowed.all() else allowed_of(logits - torch.inf, allowed)


@best_allowed.mistake("probs[:, best] has every row's column for every row: take one of each, with gather")
def _(logits, allowed):
    return allowed_of(logits, allowed, pick=lambda probs, best: probs[:, best])


@best_allowed.mistake("where no token is allowed raise a ValueError: the softmax would give NaN")
def _(logits, allowed):
    return allowed_of(logits, allowed) if allowed.any() else (logits.argmax(-1), logits.sum(-1) * torch.nan)


@best_allowed.right
def _(logits, allowed):
    ids = allowed.nonzero()[:, 0]
    if not len(ids):
        raise ValueError("none")
    probs, place = logits[:, ids].softmax(1).max(1)
    return ids[place], probs


# ---------------------------------------------------------------- most_similar_earlier

most_similar_earlier = exercise(ts.most_similar_earlier)


@most_similar_earlier.cases
def _():
    lengths = torch.tensor([1.0, 9.0, 0.3, 4.0, 1.5, 0.2, 7.0, 2.0])
    yield (noise(8, 3) * lengths[:, None],)
    yield (noise(5, 11, seed=1) * lengths[:5, None],)
    yield (noise(2, 4, seed=2),)
    yield (1e-6 * noise(7, 3, seed=5),)
    yield (noise(1, 4, seed=3),)
    yield (-noise(6, 2, seed=4).abs() * torch.tensor([[1.0, -1]]) ** torch.arange(6)[:, None],)


to_length_1 = partial(normalize, dim=-1)


def earlier(x, unit=to_length_1, diagonal=0, fill=-torch.inf, dim=-1, first=-1):
    cosines = unit(x) @ unit(x).T
    best = cosines.masked_fill(torch.ones_like(cosines).triu(diagonal).bool(), fill).argmax(dim)
    return torch.cat([torch.full_like(best[:1], first), best[1:]]) if first is not None else best


@most_similar_earlier.mistake(
    "nothing is as similar to a position as itself: triu() hides the diagonal too, triu(1) not"
)
def _(x):
    return earlier(x, diagonal=1)


@most_similar_earlier.mistake("longer vectors win: a cosine needs both vectors at length 1")
def _(x):
    return earlier(x, unit=lambda x: x)


@most_similar_earlier.mistake("you normalised along the positions: every position's vector must have length 1, dim=-1")
def _(x):
    return earlier(x, unit=partial(normalize, dim=0))


@most_similar_earlier.mistake("what is hidden must not win: fill with minus infinity, for a cosine can be below 0")
def _(x):
    return earlier(x, fill=0.0)


@most_similar_earlier.mistake("the first position has no earlier one: put -1 there")
def _(x):
    return earlier(x, first=None)


@most_similar_earlier.mistake("you hid the earlier positions instead of the later ones")
def _(x):
    cosines = normalize(x, dim=-1) @ normalize(x, dim=-1).T
    best = cosines.masked_fill(torch.ones_like(cosines).tril().bool(), -torch.inf).argmax(-1)
    return torch.cat([torch.full_like(best[:1], -1), best[1:]])


@most_similar_earlier.right
def _(x):
    best = [-1]
    for i in range(1, len(x)):
        best.append(int(cosine_similarity(x[:i], x[i : i + 1]).argmax()))
    return torch.tensor(best)


# ---------------------------------------------------------------- first_lost_integer

first_lost_integer = exercise(ts.first_lost_integer)


@first_lost_integer.cases
def _():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.bool):
        yield (dtype,)


def of_float(dtype, answer):
    ts.first_lost_integer(dtype)
    return answer(torch.finfo(dtype))


@first_lost_integer.mistake("this number is still held: the next one is the first that is lost")
def _(dtype):
    return of_float(dtype, lambda info: int(2 / info.eps))


@first_lost_integer.mistake("max is the largest number of the type; long before it, whole numbers are left out")
def _(dtype):
    return of_float(dtype, lambda info: int(info.max) + 1)


@first_lost_integer.mistake("from 1/eps on the gap is 1, and whole numbers are still held: it is 2 from 2/eps on")
def _(dtype):
    return of_float(dtype, lambda info: int(1 / info.eps) + 1)


@first_lost_integer.mistake("this counts all bits, as in a type of whole numbers: a float needs some for its exponent")
def _(dtype):
    return of_float(dtype, lambda info: 2 ** (info.bits - 1))


@first_lost_integer.mistake("a type that is no floating-point type must raise a ValueError")
def _(dtype):
    return ts.first_lost_integer(dtype) if dtype.is_floating_point else torch.iinfo(torch.int64).max + 1


@first_lost_integer.right
def _(dtype):
    if not torch.is_floating_point(torch.zeros(1, dtype=dtype)):
        raise ValueError("no float")
    n = 1
    while torch.tensor(n + 1, dtype=dtype).item() == n + 1:
        n *= 2
    return n + 1


# ---------------------------------------------------------------- Centring


def use_centring(cls):
    mean = noise(4)
    module, x = cls(mean), noise(2, 3, 4, seed=1)
    seen = {"at first": module(x)}
    before = mean.clone()
    mean += 5
    seen["after the tensor that it was given has changed"] = module(x)
    seen["trained"] = [name for name, p in module.named_parameters() if p.requires_grad]
    seen["parameters"] = [name for name, _ in module.named_parameters()]
    seen["saved"] = sorted(module.state_dict())
    other = cls(torch.zeros(4))
    seen["loads"] = said_of(lambda: bool(other.load_state_dict(module.state_dict())))
    seen["after loading"] = other(x)
    other.gain.data *= 2
    seen["with a gain of 2"] = other(x)
    seen["in float64"] = {str(value.dtype) for value in (other.double().gain, other.mean, other(x.double()))}
    with torch.enable_grad():
        module(x).square().sum().backward()
    seen["the gain's gradient"] = module.gain.grad
    seen["the mean takes a gradient"] = bool(module.mean.requires_grad)
    seen["mean"] = difference(module.mean, before) is None
    return seen


Centring = exercise(ts.Centring, use=use_centring)


def changed(cls, mean, put, gain=None):
    nn.Module.__init__(cls)
    put(mean)
    cls.gain = nn.Parameter(torch.ones_like(mean)) if gain is None else gain


@Centring.mistake("a plain attribute is neither saved nor moved with the module: register_buffer")
class _(ts.Centring):
    def __init__(self, mean):
        changed(self, mean, lambda mean: setattr(self, "mean", mean.clone()))


@Centring.mistake("an nn.Parameter is trained: what is measured once is a buffer, register_buffer")
class _(ts.Centring):
    def __init__(self, mean):
        changed(self, mean, lambda mean: setattr(self, "mean", nn.Parameter(mean.clone())))


@Centring.mistake("a parameter without gradients is a parameter still, and trained by who unfreezes all: a buffer")
class _(ts.Centring):
    def __init__(self, mean):
        changed(self, mean, lambda mean: setattr(self, "mean", nn.Parameter(mean.clone(), requires_grad=False)))


@Centring.mistake("persistent=False leaves the buffer out of state_dict(): then it is not saved")
class _(ts.Centring):
    def __init__(self, mean):
        changed(self, mean, lambda mean: self.register_buffer("mean", mean.clone(), persistent=False))


@Centring.mistake("it changes when the tensor that it was made from changes: clone it")
class _(ts.Centring):
    def __init__(self, mean):
        changed(self, mean, lambda mean: self.register_buffer("mean", mean))


@Centring.mistake("gain is no weight: make it an nn.Parameter, or no optimizer finds it")
class _(ts.Centring):
    def __init__(self, mean):
        changed(self, mean, lambda mean: self.register_buffer("mean", mean.clone()), torch.ones_like(mean))
        self.gain.requires_grad_(True)


@Centring.mistake("first take the mean away, then multiply by the gain")
class _(ts.Centring):
    def forward(self, x):
        return self.gain * x - self.mean


@Centring.right
class _(nn.Module):
    def __init__(self, mean):
        super().__init__()
        self.gain = nn.Parameter(torch.full(mean.shape, 1.0, dtype=mean.dtype))
        self.mean: torch.Tensor = nn.Buffer(mean.detach().clone())

    def forward(self, x):
        return torch.addcmul(-self.gain * self.mean, self.gain, x)


# ---------------------------------------------------------------- gradient_of


def use_gradient(gradient_of, x, grad):
    """The gradient of a function with a weight of its own; what is left in weight and argument."""
    weight = nn.Parameter(noise(*x.shape, seed=5))
    with torch.set_grad_enabled(grad):
        gradient = gradient_of(lambda x: (weight * x**3).sum(), x)
        still = torch.is_grad_enabled()
    return {
        "gradient": gradient,
        "the weight has a .grad": weight.grad is not None,
        "x requires gradients": x.requires_grad,
        "x has a .grad": x.grad is not None,
        "gradients are switched on after it": still,
    }


gradient_of = exercise(ts.gradient_of, use=use_gradient)


@gradient_of.cases
def _():
    yield noise(4), True
    yield noise(2, 3, seed=1), False
    yield torch.tensor(1.5), True
    yield noise(3, seed=2).requires_grad_(), True


def leaf_of(x):
    return x.detach().clone().requires_grad_(True)


@gradient_of.mistake("x.requires_grad_() changes the argument itself: take a detached clone as the leaf")
def _(fn, x):
    with torch.enable_grad():
        return torch.autograd.grad(fn(x.requires_grad_(True)), x)[0]


@gradient_of.mistake("backward() fills the .grad of weights too: torch.autograd.grad(y, leaf) gives one gradient only")
def _(fn, x):
    with torch.enable_grad():
        leaf = leaf_of(x)
        fn(leaf).backward()
        return leaf.grad


@gradient_of.mistake("inside no_grad there is no graph: compute within torch.enable_grad()")
def _(fn, x):
    leaf = leaf_of(x)
    return torch.autograd.grad(fn(leaf), leaf)[0]


@gradient_of.mistake("gradients are left switched on: set_grad_enabled(True) lasts, `with torch.enable_grad():` ends")
def _(fn, x):
    torch.set_grad_enabled(True)
    leaf = leaf_of(x)
    return torch.autograd.grad(fn(leaf), leaf)[0]


@gradient_of.right
def _(fn, x):
    with torch.enable_grad():
        return torch.func.grad(fn)(x.detach())


# ---------------------------------------------------------------- broadcast_shape

broadcast_shape = exercise(ts.broadcast_shape, same=lambda got, want, *args: same_shape(got, want))


def same_shape(got, want):
    if not isinstance(got, tuple | list):
        return difference(got, want)
    return None if tuple(got) == tuple(want) else f"got {tuple(got)}, expected {tuple(want)}"


@broadcast_shape.cases
def _():
    yield (4, 3), (3,)
    yield (3,), (3, 1)
    yield (2, 1, 5), (7, 1)
    yield (), (2, 3)
    yield (1, 1), ()
    yield (2, 3), (2,)
    yield (2, 3, 4), (2, 3, 4)
    yield (0, 3), (1, 3)
    yield (1,), (0,)
    yield (2, 0), (2, 1)
    yield (5, 2, 3), (3, 3)
    yield (3, 4), (4, 3)
    yield (0,), (2,)
    yield (2, 1, 3), (4, 2, 1, 1)


def by_rule(a, b, fit=lambda m, n: m == n or 1 in (m, n), of=lambda m, n: n if m == 1 else m, align="right"):
    pairs = list(zip_longest(*((a[::-1], b[::-1]) if align == "right" else (a, b)), fillvalue=1))
    if not all(fit(m, n) for m, n in pairs):
        raise ValueError
    shape = tuple(of(m, n) for m, n in pairs)
    return shape[::-1] if align == "right" else shape


@broadcast_shape.mistake("shapes are lined up at their right ends, not at their left ones")
def _(a, b):
    return by_rule(a, b, align="left")


@broadcast_shape.mistake("the larger of the two is wrong where a size is 0: 0 against 1 gives 0")
def _(a, b):
    return by_rule(a, b, of=max)


@broadcast_shape.mistake("two sizes that differ, neither of them 1, don't fit: raise a ValueError")
def _(a, b):
    return by_rule(a, b, fit=lambda m, n: True)


@broadcast_shape.mistake("a dimension of 1 that fits any size is missing")
def _(a, b):
    return by_rule(a, b, fit=lambda m, n: m == n or (n == 1 and len(b) < len(a)) or (m == 1 and len(a) < len(b)))


@broadcast_shape.mistake("it is not enough that the last size stands somewhere in the other shape: go place by place")
def _(a, b):
    short, long = sorted((a, b), key=len)
    if short and short[-1] in long and short[-1] != 1 and long[-1] != 1 and 0 not in long:
        return tuple(long)
    return by_rule(a, b)


@broadcast_shape.mistake("the shape is the wrong way round: turn it again after going from right to left")
def _(a, b):
    return by_rule(a, b)[::-1]


@broadcast_shape.law("it must agree with torch on every pair of small shapes")
def _(broadcast_shape):
    shapes = [shape for n in range(3) for shape in product((0, 1, 2, 3), repeat=n)]
    for a, b in product(shapes, shapes):
        try:
            want = tuple(torch.broadcast_shapes(a, b))
        except RuntimeError:
            want = "ValueError"
        if same_shape(said_of(broadcast_shape, a, b), want):
            return False
    return True


@broadcast_shape.right
def _(a, b):
    n = max(len(a), len(b))
    a, b = (1,) * (n - len(a)) + tuple(a), (1,) * (n - len(b)) + tuple(b)
    shape = []
    for i in range(n):
        sizes = {a[i], b[i]} - {1}
        if len(sizes) == 2:
            raise ValueError("no")
        shape.append(sizes.pop() if sizes else 1)
    return tuple(shape)


# ---------------------------------------------------------------- centred

centred = exercise(ts.centred)


@centred.cases
def _():
    yield noise(4, 4), 1
    yield noise(4, 4, seed=1), 0
    yield noise(3, 5, seed=2), -1
    yield noise(2, 3, 4, seed=3), 1
    yield noise(6, seed=4), 0


@centred.mistake("without keepdim=True the means are lined up with the last dimension, whichever they belong to")
def _(x, dim):
    mean = x.mean(dim)
    try:
        return x - mean
    except RuntimeError:
        return x - mean.mean()


@centred.mistake("this is the mean of everything: take it over `dim` only")
def _(x, dim):
    return x - x.mean()


@centred.mistake("this is the mean over the last dimension, whatever `dim` says")
def _(x, dim):
    return x - x.mean(-1, keepdim=True)


@centred.mistake("this is the mean alone: take it away from x")
def _(x, dim):
    return x.mean(dim, keepdim=True).expand_as(x)


@centred.law("over `dim`, the result must have the mean 0")
def _(centred):
    x = noise(5, 5, 5)
    return all(difference(centred(x, dim).mean(dim), torch.zeros(5, 5)) is None for dim in (0, 1, 2))


@centred.right
def _(x, dim):
    return x - (x.sum(dim) / x.shape[dim]).unsqueeze(dim)


# ---------------------------------------------------------------- einsum_by_loops

small = noise
einsum_by_loops = exercise(ts.einsum_by_loops)


@einsum_by_loops.cases
def _():
    yield "a b c, a b d -> c d", small(2, 3, 4), small(2, 3, 5, seed=1)
    yield "a b c, d b e -> e a c d", small(2, 3, 2), small(3, 3, 2, seed=1)
    yield "q n d, k n d -> n q k", small(3, 2, 4), small(5, 2, 4, seed=1)
    yield "a b c, a b c -> a b c", small(2, 3, 4), small(2, 3, 4, seed=1)
    yield "a b, b c -> a c", small(2, 3), small(3, 4, seed=1)
    yield "a, b -> a b", small(3), small(4, seed=1)
    yield "a b,b->a", small(2, 3), small(3, seed=1)
    yield "row column -> column row", small(2, 5)
    yield "a b ->", small(2, 3)
    yield "i, i, i -> i", small(3), small(3, seed=1), small(3, seed=2)
    yield "head q k, head k d, head d m -> q m", small(2, 2, 3), small(2, 3, 2, seed=1), small(2, 2, 4, seed=2)
    yield "a, -> a", small(3), torch.tensor(2.0)
    yield "a b, b c -> a c", small(2, 3), small(4, 5, seed=1)
    yield "a b, b -> c", small(2, 3), small(3, seed=1)
    yield "a b, b -> a", small(2, 3)
    yield "a b -> a", small(2, 3, 4)


def fits(pattern, *tensors):
    try:
        ts.einsum_by_loops(pattern, *tensors)
    except ValueError:
        return False
    return True


einsum_by_loops.step("the result's shape", part=lambda result: (type(result), tuple(result.shape)))(fits)
einsum_by_loops.step("its values")(fits)


def loops(pattern, *tensors, split=str.split, combine=prod, checks=True, keep=None, skip_first=False):
    left, right = pattern.split("->")
    if checks:
        ts.einsum_by_loops(pattern, *(tensor * 0 for tensor in tensors))
    names, kept = [split(part) for part in left.split(",")], split(right)
    kept = kept if keep is None else keep(kept)
    sizes = {n: s for part, t in zip(names, tensors, strict=False) for n, s in zip(part, t.shape, strict=False)}
    out = torch.zeros([sizes[name] for name in kept])
    for values in product(*(range(skip_first and n not in kept, s) for n, s in sizes.items())):
        at = dict(zip(sizes, values, strict=True))
        entries = [t[tuple(at[n] for n in part)] for part, t in zip(names, tensors, strict=False)]
        out[tuple(at[n] for n in kept)] += combine(entries)
    return out


@einsum_by_loops.mistake("names are words with spaces between them: split() them, a name may have several letters")
def _(pattern, *tensors):
    return loops(pattern, *tensors, split=lambda part: [c for c in part if c != " "])


@einsum_by_loops.mistake("entries are multiplied, not added; only the products are added up")
def _(pattern, *tensors):
    return loops(pattern, *tensors, combine=sum)


@einsum_by_loops.mistake("the result's dimensions stand in the order of the right side, not of their first appearance")
def _(pattern, *tensors):
    order = list(dict.fromkeys(pattern.split("->")[0].replace(",", " ").split()))
    return loops(pattern, *tensors, keep=lambda kept: sorted(kept, key=order.index))


@einsum_by_loops.mistake("a later product replaces the earlier ones: add with +=, for what isn't kept is summed over")
def _(pattern, *tensors):
    left, right = pattern.split("->")
    last = set(left.replace(",", " ").split()) - set(right.split())
    ts.einsum_by_loops(pattern, *tensors)
    cut = []
    for part, tensor in zip(pattern.split("->")[0].split(","), tensors, strict=True):
        for i, name in enumerate(part.split()):
            if name in last:
                tensor = tensor.narrow(i, tensor.shape[i] - 1, 1)
        cut.append(tensor)
    return loops(pattern, *cut)


@einsum_by_loops.mistake("an index that is summed over starts at 0, too")
def _(pattern, *tensors):
    return loops(pattern, *tensors, skip_first=True)


@einsum_by_loops.mistake("an index with two sizes must raise a ValueError")
def _(pattern, *tensors):
    try:
        return ts.einsum_by_loops(pattern, *tensors)
    except ValueError as error:
        if "two sizes" not in str(error):
            raise
        return loops(pattern, *(t[:3] for t in tensors), checks=False)


@einsum_by_loops.law("it must agree with einops.einsum where one tensor has the same sizes all over")
def _(einsum_by_loops):
    x, y = small(3, 3, 3), small(3, 3, seed=1)
    patterns = ("a b c, c a -> b", "a b c, a b -> c", "a b c, b d -> d a c", "a b c, d e -> e c")
    return all(difference(einsum_by_loops(p, x, y), einops.einsum(x, y, p)) is None for p in patterns)


@einsum_by_loops.right
def _(pattern, *tensors):
    inputs, output = pattern.split("->")
    letters = {}
    for name in pattern.replace(",", " ").replace("->", " ").split():
        letters.setdefault(name, chr(ord("a") + len(letters)))
    short = ["".join(letters[name] for name in part.split()) for part in (*inputs.split(","), output)]
    try:
        return torch.einsum(f"{','.join(short[:-1])}->{short[-1]}", *tensors)
    except RuntimeError as error:
        raise ValueError("does not fit") from error


# ---------------------------------------------------------------- head_norms

head_norms = exercise(ts.head_norms)


@head_norms.cases
def _():
    scale = torch.arange(1.0, 13).to(noise(1).device)
    yield noise(2, 5, 12) * scale, 3
    yield noise(3, 4, 12, seed=1) * scale, 4
    yield noise(1, 1, 12, seed=2) * scale, 1
    yield noise(2, 3, 12, seed=3), 12
    yield noise(2, 3, 12, seed=3), 5


def norms(x, n_heads, split="b p (h d) -> b p h d", of=lambda heads: heads.norm(dim=-1), then="b p h -> h", how="mean"):
    ts.head_norms(x, n_heads)
    heads = einops.rearrange(x, split, h=n_heads)
    return einops.reduce(of(heads), then, how)


@head_norms.mistake("(d head) deals the numbers out one by one: each head's numbers stand side by side, (head d)")
def _(x, n_heads):
    return norms(x, n_heads, split="b p (d h) -> b p h d")


@head_norms.mistake("each head has d // n_heads numbers: n_heads is how many heads there are, not how long each is")
def _(x, n_heads):
    ts.head_norms(x, n_heads)
    heads = einops.rearrange(x, "b p (h d) -> b p h d", d=n_heads)
    return einops.reduce(heads.norm(dim=-1), "b p h -> h", "mean")


@head_norms.mistake("this is the sum over texts and positions: take their mean")
def _(x, n_heads):
    return norms(x, n_heads, how="sum")


@head_norms.mistake("the mean of the numbers is no length: the root of the sum of squares, norm(dim=-1)")
def _(x, n_heads):
    return norms(x, n_heads, of=lambda heads: heads.mean(-1))


@head_norms.mistake("this is the length of the mean vector: take the mean of the lengths")
def _(x, n_heads):
    ts.head_norms(x, n_heads)
    return einops.reduce(x, "b p (h d) -> h d", "mean", h=n_heads).norm(dim=-1)


@head_norms.mistake("you left out positions or texts: the result has one number a head")
def _(x, n_heads):
    return norms(x, n_heads, then="b p h -> b h")


@head_norms.right
def _(x, n_heads):
    if x.shape[-1] % n_heads:
        raise ValueError("not equal parts")
    return torch.stack([part.square().sum(-1).sqrt().mean() for part in x.chunk(n_heads, dim=-1)])


# ---------------------------------------------------------------- bytes_held


def use_bytes(bytes_held, kind):
    base = torch.zeros(6, 10)
    model = small_attn()
    return bytes_held(
        {
            "one": [base],
            "two": [base, torch.zeros(3, dtype=torch.float64)],
            "half precision": [base.half(), base.bool()],
            "a row of it": [base[0]],
            "it and its views": [base, base.T, base[2:], base.view(60), base.reshape(5, 12)],
            "copies": [base.clone(), base[:, :2].contiguous(), base.T.reshape(60)],
            "a generator": (p for p in (base, base[1], torch.ones(5))),
            "an expanded row": [torch.ones(1, 3).expand(1000, 3)],
            "none": [],
            "a cache": list(model.run_with_cache(random_tokens(1, 5))[1].values())[:1],
        }[kind]
    )


bytes_held = exercise(ts.bytes_held, use=use_bytes)


@bytes_held.cases
def _():
    for kind in ("one", "two", "half precision", "a row of it", "it and its views", "copies", "a generator"):
        yield (kind,)
    yield from (("an expanded row",), ("none",), ("a cache",))


def summed(tensors, size, once=True):
    found = [(t.untyped_storage().data_ptr(), size(t)) for t in tensors]
    return sum(dict(found).values()) if once else sum(n for _, n in found)


@bytes_held.mistake("float16 takes 2 bytes, bool 1, float64 8: don't count 4 for each number")
def _(tensors):
    return summed(tensors, lambda t: 4 * t.untyped_storage().nbytes() // t.element_size())


@bytes_held.mistake("a view keeps all of its storage alive: ask untyped_storage().nbytes(), not the view's own size")
def _(tensors):
    return summed(tensors, lambda t: t.numel() * t.element_size())


@bytes_held.mistake("views of one storage share its bytes: count each storage once, by its data_ptr()")
def _(tensors):
    return summed(tensors, lambda t: t.untyped_storage().nbytes(), once=False)


@bytes_held.mistake("tensors that are views of each other share bytes, and a view keeps the whole: count storages")
def _(tensors):
    return summed(tensors, lambda t: t.numel() * t.element_size(), once=False)


@bytes_held.mistake("these are numbers, not bytes: each takes element_size() bytes")
def _(tensors):
    return summed(tensors, lambda t: t.untyped_storage().nbytes() // t.element_size())


@bytes_held.right
def _(tensors):
    seen, total = set(), 0
    for tensor in tensors:
        base = tensor if tensor._base is None else tensor._base
        if base.untyped_storage()._cdata not in seen:
            seen.add(base.untyped_storage()._cdata)
            total += base.untyped_storage().size()
    return total


# ---------------------------------------------------------------- mean_residual


@cache
def peak_of_everything(texts, length):
    """Of one run over all texts with a whole cache."""
    return ts.peak_bytes(lambda: small_gpt(2, 3).run_with_cache(random_tokens(texts, length)))


def use_mean(mean_residual, texts, length, layer):
    model, rows, seen = small_gpt(2, 3), random_tokens(texts, length), {}

    def work():
        seen["mean"] = mean_residual(model, rows, layer)

    if texts == 8:  # to measure takes its time
        seen["less than a quarter of the memory"] = 4 * ts.peak_bytes(work) < peak_of_everything(texts, length)
    else:
        work()
    return seen


mean_residual = exercise(ts.mean_residual, use=use_mean)


@mean_residual.cases
def _():
    yield 8, 11, 0
    yield 1, 5, 1
    yield 3, 7, 1
    yield 9, 11, 0
    yield 2, 5, 2
    yield 2, 5, -1


def averaged(model, rows, layer, name="resid_post", at=lambda x: x[:, -1], size=1, kept=False, lean=True):
    ts.mean_residual(model, rows[:1, :2], layer)
    name = get_act_name(name, layer)
    options = dict(names_filter=name, stop_at_layer=layer + 1, return_type=None) if lean else {}
    caches, found = [], []
    for part in rows.split(size):
        cache = model.run_with_cache(part, **options)[1]
        found.append(at(cache[name]).clone())
        caches.append(cache if kept else None)
    return torch.cat(found).mean(0)


@mean_residual.mistake("the whole cache of all texts is in memory at once: names_filter, and a few texts at a time")
def _(model, rows, layer):
    return averaged(model, rows, layer, size=len(rows), lean=False)


@mean_residual.mistake("this is the mean over all positions: take the last one, [:, -1]")
def _(model, rows, layer):
    return averaged(model, rows, layer, at=lambda x: x.mean(1))


@mean_residual.mistake("this is the stream before the layer: resid_post, not resid_pre")
def _(model, rows, layer):
    return averaged(model, rows, layer, name="resid_pre")


@mean_residual.mistake("this is the sum over texts: divide by their number")
def _(model, rows, layer):
    return averaged(model, rows, layer) * len(rows)


@mean_residual.mistake("a layer that the model has not must raise a ValueError; -1 is not the last one here")
def _(model, rows, layer):
    return ts.mean_residual(model, rows, max(0, min(layer, model.cfg.n_layers - 1)))


@mean_residual.right
def _(model, rows, layer):
    if layer not in range(model.cfg.n_layers):
        raise ValueError("no such layer")
    streams = (model(row[None], stop_at_layer=layer + 1)[0, -1].clone() for row in rows)
    return torch.stack(list(streams)).mean(0)
