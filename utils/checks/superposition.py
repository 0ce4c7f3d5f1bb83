"""What is asked of the exercises on superposition, and the mistakes that learners make in them."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from utils import double_descent
from utils import superposition as sup
from utils.checks.compare import difference
from utils.checks.engine import Chapter
from utils.runtime import device

chapter = Chapter(sup, double_descent)
exercise, check, hint, compare = chapter.exercise, chapter.check, chapter.hint, chapter.compare


def columns(*shape: int, seed: int = 0, zero: bool = False) -> Tensor:
    """Seeded random columns; with `zero`, the second last feature is a zero column."""
    W = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    if zero:
        W[..., -2] = 0
    return W


def polygon(sides: int) -> Tensor:
    """Unit vectors to the corners of a regular polygon, [2 sides]."""
    angle = torch.arange(sides) * 2 * math.pi / sides
    return torch.stack([angle.cos(), angle.sin()])


# ---------------------------------------------------------------- factored_code

factored_code = exercise(sup.factored_code)


@factored_code.cases
def _():
    yield 6, (2, 3)
    yield 16, (16,)
    yield 16, (2, 8)
    yield 16, (2, 2, 2, 2)
    yield 20, (2, 3, 4)
    yield 1, (3,)
    yield 7, (2, 3)


def _digits(n_items, factors, last_fastest=True, divide=True, flip=True):
    if n_items > math.prod(factors):
        raise ValueError("too many items")
    rest, parts = torch.arange(n_items, device="cpu"), []
    for options in reversed(factors) if last_fastest else factors:
        parts.append(F.one_hot(rest % options, options))
        rest = rest // options if divide else rest
    return torch.cat(parts[::-1] if flip and last_fastest else parts, dim=1).bool()


@factored_code.mistake("you let the first factor count fastest: as with digits, the last one should")
def _(n_items, factors):
    return _digits(n_items, factors, last_fastest=False)


@factored_code.mistake(
    "you took the remainder of the same number each time: divide it by the options of the factor done"
)
def _(n_items, factors):
    return _digits(n_items, factors, divide=False)


@factored_code.mistake("you laid the last factor's block first: keep the blocks in the order of the factors")
def _(n_items, factors):
    return _digits(n_items, factors, flip=False)


@factored_code.mistake("you gave each item one option number per factor: write each choice as a one-hot block")
def _(n_items, factors):
    code = _digits(n_items, factors)
    return torch.stack([block.long().argmax(1) for block in code.split(tuple(factors), dim=1)], dim=1)


@factored_code.law("every item needs a code of its own, with exactly one option chosen in each factor")
def _(factored_code):
    code = factored_code(24, (2, 3, 4))
    blocks = code.int().split((2, 3, 4), dim=1)
    return len(code.unique(dim=0)) == 24 and all((block.sum(1) == 1).all() for block in blocks)


@factored_code.right
def _(n_items, factors):
    if n_items > math.prod(factors):
        raise ValueError("too many items")
    index = torch.unravel_index(torch.arange(n_items, device="cpu"), tuple(factors))
    return torch.cat([i[:, None] == torch.arange(f, device="cpu") for i, f in zip(index, factors, strict=True)], dim=1)


# ---------------------------------------------------------------- interference

interference = exercise(sup.interference)


@interference.cases
def _():
    for relu in (False, True):
        yield columns(3, 5), relu
        yield columns(4, 2, 3, zero=True, seed=1), relu
        yield torch.eye(3), relu
        yield polygon(5), relu
    yield torch.zeros(2, 0), False
    yield torch.ones(2, 1), False


def _overlap(W, left=True, right=False):
    unit = F.normalize(W, dim=-2)
    return (unit if left else W).mT @ (unit if right else W)


def _others(square, W):
    return square.masked_fill(torch.eye(W.shape[-1], dtype=torch.bool), 0).sum(-1)


@interference.mistake("you counted each feature's overlap with itself: leave j = i out")
def _(W, relu=False):
    overlap = _overlap(W).relu() if relu else _overlap(W)
    return overlap.pow(2).sum(-1)


@interference.mistake("you used W_i at its full length: scale it to length 1 first, and only it")
def _(W, relu=False):
    overlap = _overlap(W, left=False)
    return _others((overlap.relu() if relu else overlap).pow(2), W)


@interference.mistake("you scaled both vectors: only W_i is scaled, for a short W_j disturbs less")
def _(W, relu=False):
    overlap = _overlap(W, right=True)
    return _others((overlap.relu() if relu else overlap).pow(2), W)


@interference.mistake("you summed over i instead of j: what matters is what arrives along each feature's own direction")
def _(W, relu=False):
    overlap = _overlap(W)
    return _others((overlap.relu() if relu else overlap).pow(2).mT, W)


@interference.mistake("you left relu=True out: negative overlaps count as 0 then")
def _(W, relu=False):
    return _others(_overlap(W).pow(2), W)


@interference.mistake("you compared the rows of W: its columns are the features")
def _(W, relu=False):
    return sup.interference(W.mT, relu)


@interference.law("orthogonal features must not interfere at all")
def _(interference):
    return torch.allclose(interference(3 * torch.eye(4)[:, :3]), torch.zeros(3), atol=1e-6)


@interference.right
def _(W, relu=False):
    out = torch.zeros(*W.shape[:-2], W.shape[-1])
    for i in range(W.shape[-1]):
        for j in range(W.shape[-1]):
            if i != j:
                dot = (F.normalize(W[..., i], dim=-1) * W[..., j]).sum(-1)
                out[..., i] += (dot.clamp(min=0) if relu else dot) ** 2
    return out


# ---------------------------------------------------------------- samplers


def sampled(generate, probability, batch_size):
    """What to look at in a sampler's batch: shape, range, and frequencies that a large batch pins down."""
    batch = generate(probability, batch_size)
    seen = {"shape": list(batch.shape)}
    if batch.numel() == 0:
        return seen
    on = (batch != 0).float()
    seen |= {
        "in [0, 1]": bool((batch >= 0).all() and (batch <= 1).all()),
        "frequency": on.mean(0),
        "mean": batch.mean(0),
        "mean square": batch.pow(2).mean(0),
        "on together with the next feature": (on * on.roll(-1, -1)).mean(0),
        "product with the next feature": (batch * batch.roll(-1, -1)).mean(0),
        "on together with the next model's": (on * on.roll(-1, -2)).mean(0),
        "product with the next model's": (batch * batch.roll(-1, -2)).mean(0),
        "differs from row to row": bool((batch[1:] != batch[:-1]).any()) if len(batch) > 1 else None,
    }
    return seen


def sampled_alike(got, want, *args) -> str | None:
    """Frequencies agree within 0.02, more than 5 standard errors of the 20,000 rows drawn."""
    return difference(got, want, rtol=0, atol=0.02)


PROBABILITY = torch.tensor([[0.05, 0.2, 0.5], [1.0, 0.0, 0.3]], device=device())

generate_uncorrelated_features = exercise(
    sup.generate_uncorrelated_features, use=sampled, same=sampled_alike, without={"gradients": "data, drawn at random"}
)


@generate_uncorrelated_features.cases
def _():
    yield PROBABILITY, 20_000
    yield torch.full((1, 4), 0.1), 20_000
    yield torch.zeros(2, 0), 3


@generate_uncorrelated_features.mistake("every feature is always on: each must be 0 except with its probability")
def _(feature_probability, batch_size):
    return torch.rand(batch_size, *feature_probability.shape)


@generate_uncorrelated_features.mistake("features that are on are all 1: give each a uniform size between 0 and 1")
def _(feature_probability, batch_size):
    return (torch.rand(batch_size, *feature_probability.shape) < feature_probability).float()


@generate_uncorrelated_features.mistake("you turned features off with their probability: it is the chance of being on")
def _(feature_probability, batch_size):
    shape = batch_size, *feature_probability.shape
    return torch.rand(shape) * (torch.rand(shape) > feature_probability)


@generate_uncorrelated_features.mistake(
    "the number that decides is also the size, so sizes stay below p: draw a second one"
)
def _(feature_probability, batch_size):
    u = torch.rand(batch_size, *feature_probability.shape)
    return u * (u < feature_probability)


@generate_uncorrelated_features.mistake("one draw decides for all features of a row: they must be on independently")
def _(feature_probability, batch_size):
    inst, feats = feature_probability.shape
    return torch.rand(batch_size, inst, feats) * (torch.rand(batch_size, inst, 1) < feature_probability)


@generate_uncorrelated_features.mistake("all rows of the batch are the same: draw anew for each")
def _(feature_probability, batch_size):
    return sup.generate_uncorrelated_features(feature_probability, 1).expand(batch_size, -1, -1).clone()


@generate_uncorrelated_features.law("two batches drawn one after the other must differ")
def _(generate):
    p = torch.full((1, 5), 0.5)
    first, second = generate(p, 50), generate(p, 50)
    return first.shape == second.shape == (50, 1, 5) and bool((first != second).any())


@generate_uncorrelated_features.law("each feature must be on about as often as its probability says, between 0 and 1")
def _(generate):
    p = torch.tensor([[0.1, 0.6]])
    batch = generate(p, 10_000)
    inside = ((batch >= 0) & (batch <= 1)).all()
    return bool(inside and ((batch > 0).float().mean(0) - p).abs().max() < 0.025 and batch.std(0).min() > 0.1)


@generate_uncorrelated_features.right
def _(feature_probability, batch_size):
    shape = batch_size, *feature_probability.shape
    size = torch.rand(shape)
    size[torch.rand(shape) >= feature_probability] = 0
    return size


generate_correlated_features = exercise(sup.generate_correlated_features, use=sampled, same=sampled_alike)


@generate_correlated_features.cases
def _():
    yield torch.tensor([[0.1, 0.4], [0.7, 0.25]]), 20_000
    yield torch.tensor([[1.0, 0.0]]), 20_000
    yield torch.tensor([[0.3], [0.5], [0.8]]), 20_000


@generate_correlated_features.mistake("the two of a pair are on independently: draw once per pair")
def _(pair_probability, batch_size):
    return sup.generate_uncorrelated_features(pair_probability.repeat_interleave(2, dim=-1), batch_size)


@generate_correlated_features.mistake("both of a pair have the same size: they share only whether they are on")
def _(pair_probability, batch_size):
    return sup.generate_uncorrelated_features(pair_probability, batch_size).repeat_interleave(2, dim=-1)


@generate_correlated_features.mistake("you put the second features after all the first: feature 2k pairs with 2k + 1")
def _(pair_probability, batch_size):
    batch = sup.generate_correlated_features(pair_probability, batch_size)
    return torch.cat([batch[..., ::2], batch[..., 1::2]], dim=-1)


@generate_correlated_features.mistake("all pairs of a row are on together: pairs must not depend on each other")
def _(pair_probability, batch_size):
    inst, pairs = pair_probability.shape
    on = torch.rand(batch_size, inst, 1) < pair_probability
    return torch.rand(batch_size, inst, 2 * pairs) * on.repeat_interleave(2, dim=-1)


@generate_correlated_features.mistake("features that are on are all 1: give each a uniform size between 0 and 1")
def _(pair_probability, batch_size):
    return (sup.generate_correlated_features(pair_probability, batch_size) > 0).float()


@generate_correlated_features.law("the two of a pair must be on in the same rows")
def _(generate):
    batch = generate(torch.tensor([[0.3, 0.6]]), 500)
    return bool(((batch[..., ::2] > 0) == (batch[..., 1::2] > 0)).all()) and bool((batch > 0).any())


@generate_correlated_features.right
def _(pair_probability, batch_size):
    on = sup.generate_uncorrelated_features(pair_probability, batch_size) > 0
    on = on.repeat_interleave(2, dim=-1)
    return torch.where(on, torch.rand(on.shape), torch.zeros(()))


generate_anticorrelated_features = exercise(sup.generate_anticorrelated_features, use=sampled, same=sampled_alike)


@generate_anticorrelated_features.cases
def _():
    yield torch.tensor([[0.1, 0.4], [0.45, 0.25]]), 20_000
    yield torch.tensor([[0.5, 0.0]]), 20_000
    yield torch.tensor([[0.3], [0.2], [0.4]]), 20_000
    yield torch.tensor([[0.6]]), 10
    yield torch.tensor([[0.2, 0.1], [0.6, 0.3]]), 10


def _exclusive(pair_probability, batch_size, on):
    if (pair_probability > 0.5).any():
        raise ValueError("above 0.5")
    inst, pairs = pair_probability.shape
    return torch.rand(batch_size, inst, 2 * pairs) * on(torch.rand(batch_size, inst, pairs), pair_probability).flatten(
        -2
    )


@generate_anticorrelated_features.mistake(
    "the two of a pair are on independently, so sometimes both: one must exclude the other"
)
def _(pair_probability, batch_size):
    return _exclusive(pair_probability, batch_size, lambda u, p: torch.rand(*u.shape, 2) < p[..., None])


@generate_anticorrelated_features.mistake(
    "the first feature wins, so the second is on with p(1 - p) only: give both the same chance p"
)
def _(pair_probability, batch_size):
    def on(u, p):
        first = u < p
        return torch.stack([first, ~first & (torch.rand(u.shape) < p)], dim=-1)

    return _exclusive(pair_probability, batch_size, on)


@generate_anticorrelated_features.mistake(
    "each feature is on with p/2: the pair is on with 2p, then a fair coin picks one"
)
def _(pair_probability, batch_size):
    return _exclusive(pair_probability, batch_size, lambda u, p: torch.stack([u < p / 2, u >= 1 - p / 2], dim=-1))


@generate_anticorrelated_features.mistake("one of the two is always on: with 1 - 2p both must be off")
def _(pair_probability, batch_size):
    return _exclusive(pair_probability, batch_size, lambda u, p: torch.stack([u < 0.5, u >= 0.5], dim=-1))


@generate_anticorrelated_features.mistake(
    "you put the second features after all the first: feature 2k pairs with 2k + 1"
)
def _(pair_probability, batch_size):
    batch = sup.generate_anticorrelated_features(pair_probability, batch_size)
    return torch.cat([batch[..., ::2], batch[..., 1::2]], dim=-1)


@generate_anticorrelated_features.mistake("probabilities above 1/2 can't be met: raise a ValueError that says so")
def _(pair_probability, batch_size):
    return sup.generate_anticorrelated_features(pair_probability.clamp(max=0.5), batch_size)


@generate_anticorrelated_features.law("the two of a pair must never be on in the same row")
def _(generate):
    batch = generate(torch.tensor([[0.5, 0.3]]), 500)
    return not bool(((batch[..., ::2] > 0) & (batch[..., 1::2] > 0)).any()) and bool((batch > 0).any())


@generate_anticorrelated_features.right
def _(pair_probability, batch_size):
    def on(u, p):
        either, coin = u < 2 * p, torch.rand(u.shape) < 0.5
        return torch.stack([either & coin, either & ~coin], dim=-1)

    return _exclusive(pair_probability, batch_size, on)


# ---------------------------------------------------------------- ToyModel


def run_toy(model_class, W, b, importance, batch):
    """Build the class, load weights, and return what forward and calculate_loss give."""
    inst, d_hidden, feats = W.shape
    model = model_class(sup.ToyModelConfig(inst, feats, d_hidden), 0.3, importance).to(device())
    with torch.no_grad():
        model.W.copy_(W)
        model.b_final.copy_(b)
    with torch.enable_grad():
        out = model(batch)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        along = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(out)
        gradients = [None] * len(trained)
        if out.requires_grad:
            gradients = torch.autograd.grad((out * along).sum(), list(trained.values()), allow_unused=True)
    return {
        "forward": out.detach(),
        "calculate_loss": model.calculate_loss(batch / 3, batch).detach(),
        "gradients of forward": {
            n: 0 * p if g is None else g for (n, p), g in zip(trained.items(), gradients, strict=True)
        },
    }


def toy_inputs(inst: int, d_hidden: int, feats: int, rows: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(inst, d_hidden, feats, generator=generator),
        torch.randn(inst, feats, generator=generator) / 2,
        0.25 + torch.rand(inst, feats, generator=generator),
        torch.rand(rows, inst, feats, generator=generator),
    )


def said_of_part(got, want, *args) -> str | None:
    """Name the method that is off."""
    for part in want:
        if said := difference(got[part], want[part]):
            return f"`{part}`: {said}"
    return None


toy_model = exercise(sup.ToyModel, use=run_toy, same=said_of_part)


@toy_model.cases
def _():
    yield toy_inputs(3, 2, 5, rows=7)
    yield toy_inputs(2, 4, 3, rows=5, seed=1)
    yield toy_inputs(1, 2, 1, rows=2, seed=2)
    yield toy_inputs(2, 3, 0, rows=2, seed=3)


def with_forward(base, activation_hidden=lambda x: x, bias=True, activation=torch.relu, before=False):
    """The class `base` with a differently wired forward."""

    class Wired(base):
        def forward(self, features):
            hidden = activation_hidden(torch.einsum("...if,idf->...id", features, self.W))
            out = torch.einsum("...id,idf->...if", hidden, getattr(self, "W_out", self.W))
            if before:
                return activation(out) + self.b_final
            return activation(out + self.b_final if bias else out)

    return Wired


def with_loss(base, loss):
    """The class `base` with another loss: `loss(model, out, batch)`."""

    class Lossy(base):
        def calculate_loss(self, out, batch):
            return loss(self, out, batch)

    return Lossy


def plain_loss(model, out, batch):
    return (model.importance * (out - batch) ** 2).sum((0, 2)) / max(1, batch.shape[0] * batch.shape[2])


toy_model.mistake("`forward`: you left the bias out: add b_final before the ReLU")(
    with_forward(sup.ToyModel, bias=False)
)
toy_model.mistake("`forward`: you left the ReLU at the output out")(with_forward(sup.ToyModel, activation=lambda x: x))
toy_model.mistake("`forward`: you added the bias after the ReLU: add it before")(
    with_forward(sup.ToyModel, before=True)
)
toy_model.mistake("`forward`: you put a ReLU on the hidden vector: this model's hidden layer is linear")(
    with_forward(sup.ToyModel, torch.relu)
)
toy_model.mistake("`calculate_loss`: you left the importance out: it multiplies each squared error")(
    with_loss(sup.ToyModel, lambda m, out, x: ((out - x) ** 2).sum((0, 2)) / max(1, x.shape[0] * x.shape[2]))
)
toy_model.mistake("`calculate_loss`: you squared the importance too: multiply after squaring")(
    with_loss(
        sup.ToyModel, lambda m, out, x: ((m.importance * (out - x)) ** 2).sum((0, 2)) / max(1, x.shape[0] * x.shape[2])
    )
)
toy_model.mistake("`calculate_loss`: you summed over the features: average over batch and features")(
    with_loss(sup.ToyModel, lambda m, out, x: plain_loss(m, out, x) * x.shape[2])
)
toy_model.mistake("`calculate_loss`: you added all models up: return one loss per instance")(
    with_loss(sup.ToyModel, lambda m, out, x: plain_loss(m, out, x).sum())
)
toy_model.mistake("`calculate_loss`: without features the mean is NaN: the loss is 0 then")(
    with_loss(sup.ToyModel, lambda m, out, x: (m.importance * (out - x) ** 2).mean((0, 2)))
)


@toy_model.law("with W = 0 the output must be the bias, clipped at 0")
def _(model_class):
    W, b, importance, batch = toy_inputs(2, 2, 4, rows=3)
    return torch.allclose(run_toy(model_class, 0 * W, b, importance, batch)["forward"], b.relu().expand(3, 2, 4))


@toy_model.law("twice the importance must give twice the loss")
def _(model_class):
    W, b, importance, batch = toy_inputs(2, 2, 4, rows=3)
    once, twice = (run_toy(model_class, W, b, k * importance, batch)["calculate_loss"] for k in (1, 2))
    return torch.allclose(2 * once, twice) and bool((once > 0).all())


class OneByOne(sup.ToyModel):
    def forward(self, features):
        models = zip(features.unbind(-2), self.W, self.b_final, strict=True)
        return torch.stack([torch.clamp(x @ W.T @ W + b, min=0) for x, W, b in models], dim=-2)

    def calculate_loss(self, out, batch):
        return plain_loss(self, out, batch)


toy_model.right(OneByOne)
toy_model.right(with_forward(sup.ToyModel))


# ---------------------------------------------------------------- baselines

drop_baseline = exercise(sup.drop_baseline)


@drop_baseline.cases
def _():
    p = torch.tensor([[0.1, 0.5, 0.9, 0.3], [1.0, 0.0, 0.2, 0.6]])
    importance = torch.tensor([[0.2, 1.0, 0.7, 0.5], [0.3, 1.0, 0.9, 0.8]])
    for d_hidden in (2, 1, 3):
        yield p, importance, d_hidden
    yield p, importance, 6
    yield p[:, :1], importance[:, :1], 0
    yield torch.zeros(2, 0), torch.ones(2, 0), 1


def _dropped(p, importance, d_hidden, variance=None, keep=None, mean=True):
    cost = importance * (p / 3 - p**2 / 4 if variance is None else variance)
    order = cost if keep is None else keep
    kept = order.topk(min(d_hidden, p.shape[-1]), dim=-1).indices
    return cost.scatter(-1, kept, 0).sum(-1) / (max(1, p.shape[-1]) if mean else 1)


@drop_baseline.mistake("you used the second moment p/3: a dropped feature is answered by its mean, so subtract p²/4")
def _(feature_probability, importance, d_hidden):
    return _dropped(feature_probability, importance, d_hidden, variance=feature_probability / 3)


@drop_baseline.mistake("you kept the first features: keep those that would cost most, importance times variance")
def _(feature_probability, importance, d_hidden):
    first = -torch.arange(feature_probability.shape[-1]).float().expand_as(feature_probability)
    return _dropped(feature_probability, importance, d_hidden, keep=first)


@drop_baseline.mistake("you kept the most important features: cost is importance times variance")
def _(feature_probability, importance, d_hidden):
    return _dropped(feature_probability, importance, d_hidden, keep=importance)


@drop_baseline.mistake("you left the importance out: it multiplies each feature's variance")
def _(feature_probability, importance, d_hidden):
    return _dropped(feature_probability, torch.ones_like(importance), d_hidden)


@drop_baseline.mistake("you summed over the features: the loss averages over all of them, the kept ones included")
def _(feature_probability, importance, d_hidden):
    return _dropped(feature_probability, importance, d_hidden, mean=False)


@drop_baseline.mistake("you took the variance of a uniform number, 1/12: most of the time the feature is 0")
def _(feature_probability, importance, d_hidden):
    return _dropped(feature_probability, importance, d_hidden, variance=torch.full_like(feature_probability, 1 / 12))


@drop_baseline.law("with as many dimensions as features nothing is lost")
def _(drop_baseline):
    p = torch.full((2, 3), 0.4)
    return float(drop_baseline(p, torch.ones(2, 3), 3).abs().max()) == 0 and float(drop_baseline(p, p, 2).min()) > 0


@drop_baseline.right
def _(feature_probability, importance, d_hidden):
    return _dropped(feature_probability, importance, d_hidden)


pca_baseline = exercise(sup.pca_baseline, rtol=2e-3)


@pca_baseline.cases
def _():
    generator = torch.Generator().manual_seed(0)
    batch = torch.rand(60, 2, 4, generator=generator) * torch.tensor([1.0, 0.5, 2.0, 0.7])
    importance = torch.tensor([[0.2, 1.0, 0.7, 0.5], [0.3, 1.0, 0.9, 0.1]])
    for d_hidden in (2, 1, 3):
        yield batch, importance, d_hidden
    yield batch, importance, 4
    yield batch, importance, 6
    yield batch[..., :1], importance[:, :1], 0
    yield batch[..., :0], importance[:, :0], 1


def _pca(batch, weight, d_hidden, centre=True, keep_largest=True, mean=True):
    scaled = (batch * weight).transpose(0, 1)
    scaled = scaled - scaled.mean(1, keepdim=True) if centre else scaled
    left = torch.linalg.eigvalsh(scaled.mT @ scaled / len(batch)).clamp_min(0)
    feats = batch.shape[-1]
    left = left[:, : max(0, feats - d_hidden)] if keep_largest else left[:, d_hidden:]
    return left.sum(-1) / (max(1, feats) if mean else 1)


@pca_baseline.mistake("you did not centre the batch: subtract each feature's mean, for the model has a bias")
def _(batch, importance, d_hidden):
    return _pca(batch, importance.sqrt(), d_hidden, centre=False)


@pca_baseline.mistake("you scaled by the importance: errors get squared, so scale by its square root")
def _(batch, importance, d_hidden):
    return _pca(batch, importance, d_hidden)


@pca_baseline.mistake("you left the importance out: scale each feature by its square root first")
def _(batch, importance, d_hidden):
    return _pca(batch, torch.ones_like(importance), d_hidden)


@pca_baseline.mistake("you added up the largest eigenvalues: those are kept; eigvalsh sorts from small to large")
def _(batch, importance, d_hidden):
    return _pca(batch, importance.sqrt(), d_hidden, keep_largest=False)


@pca_baseline.mistake("you did not divide by the number of features: the loss is an average over them")
def _(batch, importance, d_hidden):
    return _pca(batch, importance.sqrt(), d_hidden, mean=False)


@pca_baseline.law("data that lie on a line are rebuilt without loss from one dimension")
def _(pca_baseline):
    line = torch.linspace(0, 1, 30)[:, None, None] * torch.tensor([0.3, 0.5, 0.2]) + 0.1
    spread = torch.rand(30, 1, 3)
    ones = torch.ones(1, 3)
    return float(pca_baseline(line, ones, 1).abs().max()) < 1e-5 < float(pca_baseline(spread, ones, 1).min())


@pca_baseline.right
def _(batch, importance, d_hidden):
    scaled = (batch * importance.sqrt()).transpose(0, 1)
    singular = torch.linalg.svdvals(scaled - scaled.mean(1, keepdim=True))
    return singular[:, d_hidden:].pow(2).sum(-1) / max(1, batch.shape[0] * batch.shape[-1])


# ---------------------------------------------------------------- dimensionality

compute_dimensionality = exercise(sup.compute_dimensionality)


@compute_dimensionality.cases
def _():
    yield (columns(3, 5),)
    yield (1e-5 * columns(3, 4, seed=2),)  # short features have their shares too
    yield (columns(4, 2, 3, seed=1, zero=True),)
    yield (2 * torch.eye(4),)
    yield (0.5 * polygon(5),)
    yield (torch.zeros(2, 3),)
    yield (torch.full((2, 1), 0.3),)
    yield (columns(3, 0),)


def _share(own, total):
    return torch.where(total > 0, own / total.clamp_min(1e-30), 0.0)


@compute_dimensionality.mistake("you used the formula for unit vectors, 1 / Σ(W_i·W_j)²: it fails at other lengths")
def _(W):
    total = (W.mT @ W).pow(2).sum(-1)
    return _share(torch.ones_like(total), total)


@compute_dimensionality.mistake("you scaled both vectors: only W_i is scaled, for a short W_j takes less room")
def _(W):
    total = _overlap(W, right=True).pow(2).sum(-1)
    return _share(torch.ones_like(total), total)


@compute_dimensionality.mistake("you left j = i out of the sum: a feature alone must come out as 1")
def _(W):
    return _share(W.pow(2).sum(-2), sup.interference(W))


@compute_dimensionality.mistake("a zero feature gives 0/0: its dimensionality is 0, not NaN")
def _(W):
    gram = W.mT @ W
    return gram.diagonal(dim1=-2, dim2=-1) ** 2 / gram.pow(2).sum(-1)


@compute_dimensionality.mistake("you did not square the overlaps")
def _(W):
    return _share(W.pow(2).sum(-2), _overlap(W).abs().sum(-1))


@compute_dimensionality.mistake("the numerator is the squared length |W_i|²; you used the length")
def _(W):
    return _share(W.norm(dim=-2), _overlap(W).pow(2).sum(-1))


@compute_dimensionality.mistake("you compared the rows of W: its columns are the features")
def _(W):
    return sup.compute_dimensionality(W.mT)


@compute_dimensionality.law("features orthogonal to each other have dimensionality 1 each, whatever their lengths")
def _(dimensionality):
    return torch.allclose(dimensionality(torch.diag(torch.tensor([0.5, 1.0, 3.0]))), torch.ones(3), atol=1e-4)


@compute_dimensionality.law("the five corners of a pentagon have dimensionality 2/5 each")
def _(dimensionality):
    return torch.allclose(dimensionality(0.8 * polygon(5)), torch.full((5,), 0.4), atol=1e-4)


@compute_dimensionality.law("where W Wᵀ is a multiple of the identity, the dimensionalities add up to the rank")
def _(dimensionality):
    tight = torch.linalg.qr(columns(6, 6)).Q[:3]
    return abs(float(dimensionality(1.7 * tight).sum()) - 3) < 1e-3


@compute_dimensionality.right
def _(W):
    return sup.feature_capacity(W)


# ---------------------------------------------------------------- neurons

neuron_model = exercise(sup.NeuronModel, use=run_toy, same=said_of_part)


@neuron_model.cases
def _():
    yield toy_inputs(3, 2, 5, rows=7)
    yield toy_inputs(2, 4, 3, rows=5, seed=1)
    yield toy_inputs(1, 2, 1, rows=2, seed=2)


neuron_model.mistake("`forward`: the hidden vector has no ReLU: that is what makes it a layer of neurons")(
    with_forward(sup.ToyModel)
)
neuron_model.mistake("`forward`: the output has no ReLU: both layers have one")(
    with_forward(sup.ToyModel, torch.relu, activation=lambda x: x)
)
neuron_model.mistake("`forward`: you left the bias out: add b_final before the last ReLU")(
    with_forward(sup.ToyModel, torch.relu, bias=False)
)
neuron_model.mistake("`forward`: you added the bias after the ReLU: add it before")(
    with_forward(sup.ToyModel, torch.relu, before=True)
)


@neuron_model.law("where no neuron fires, the output must be the bias, clipped at 0")
def _(model_class):
    W, b, importance, batch = toy_inputs(2, 2, 4, rows=3)
    out = run_toy(model_class, -W.abs(), b, importance, batch)["forward"]
    return torch.allclose(out, b.relu().expand_as(out))


neuron_model.right(with_forward(sup.ToyModel, torch.relu))


top_neuron_share = exercise(sup.top_neuron_share)


@top_neuron_share.cases
def _():
    yield (columns(3, 5),)
    yield (1e-5 * columns(3, 4, seed=2),)  # short features have their shares too
    yield (columns(4, 2, 3, seed=1, zero=True),)
    yield (-torch.eye(3),)
    yield (torch.zeros(2, 3),)
    yield (columns(3, 0),)


@top_neuron_share.mistake(
    "you took the shares of the weights: square them, so that the shares of a feature add up by length"
)
def _(W):
    return _share(W.abs().amax(-2), W.abs().sum(-2))


@top_neuron_share.mistake("you looked along a neuron: for each feature (column), find its largest neuron (row)")
def _(W):
    return _share(W.pow(2).amax(-1), W.pow(2).sum(-1))


@top_neuron_share.mistake("you took the largest signed weight: a neuron may hold a feature with a negative one")
def _(W):
    return _share(W.amax(-2).pow(2), W.pow(2).sum(-2))


@top_neuron_share.mistake("a zero feature gives 0/0: its share is 0, not NaN")
def _(W):
    return W.pow(2).amax(-2) / W.pow(2).sum(-2)


@top_neuron_share.law("the share must not change when all weights are doubled or change sign")
def _(share):
    W = columns(3, 4)
    return torch.allclose(share(W), share(-2 * W)) and bool((share(W) > 1 / 3).all() and (share(W) < 1).all())


@top_neuron_share.right
def _(W):
    return F.normalize(W, dim=-2).abs().amax(-2) ** 2


# ---------------------------------------------------------------- computing |x|


def run_computation(model_class, W, b, importance, batch):
    """Build the class, load weights; outputs, losses, and statistics of its own batches."""
    inst, d_hidden, feats = W.shape
    model = model_class(sup.ToyModelConfig(inst, feats, d_hidden), 0.4, importance).to(device())
    with torch.no_grad():
        model.W.copy_(W)
        model.W_out.copy_(W.flip(1) + 0.3)
        model.b_final.copy_(b)
        own = model.generate_batch(8_000)
        on = (own != 0).float()
        stats = [
            on.mean(),
            own.abs().amax(),
            own.sum() / on.sum(),
            own.abs().sum() / on.sum(),
            (own * own.roll(1, 2)).mean(),
        ]
        return {
            "forward": model(batch),
            "calculate_loss": model.calculate_loss(batch.abs() / 2, batch),
            "generate_batch": {"shape": list(own.shape), "statistics": torch.stack(stats)},
        }


def same_computation(got, want, *args) -> str | None:
    for part in want:
        # Statistics of 8,000 rows: 0.02 is above 5 standard errors.
        tolerance = dict(rtol=0, atol=0.02) if part == "generate_batch" else {}
        if said := difference(got[part], want[part], **tolerance):
            return f"`{part}`: {said}"
    return None


computation = exercise(sup.NeuronComputationModel, use=run_computation, same=same_computation)


@computation.cases
def _():
    for inst, d_hidden, feats, seed in ((3, 2, 5, 0), (2, 6, 4, 1)):
        W, b, importance, batch = toy_inputs(inst, d_hidden, feats, rows=7, seed=seed)
        yield W, b, importance, 2 * batch - 1


def with_batch(base, draw):
    """The class `base` with another generate_batch: `draw(model, batch_size)`."""

    class Drawn(base):
        def generate_batch(self, batch_size):
            return draw(self, batch_size)

    return Drawn


def _positive(model, batch_size):
    return sup.ToyModel.generate_batch(model, batch_size)


computation.mistake("`calculate_loss`: the target is |x|, not x")(with_loss(sup.NeuronComputationModel, plain_loss))
computation.mistake("`forward`: the hidden vector has no ReLU: without it the model can't bend x into |x|")(
    with_forward(sup.NeuronComputationModel)
)


@computation.mistake("`forward`: you wrote with W: reading and writing have weights of their own here, W and W_out")
class _(sup.NeuronComputationModel):
    def forward(self, features):
        return sup.NeuronModel.forward(self, features)


computation.mistake("`forward`: you left the bias out: add b_final before the last ReLU")(
    with_forward(sup.NeuronComputationModel, torch.relu, bias=False)
)
computation.mistake("`generate_batch`: no feature is negative: give half of them a minus sign")(
    with_batch(sup.NeuronComputationModel, _positive)
)
computation.mistake("`generate_batch`: all features of a row share their sign: draw a sign for each")(
    with_batch(
        sup.NeuronComputationModel,
        lambda m, n: _positive(m, n) * (2 * torch.randint(0, 2, (n, m.cfg.n_inst, 1)) - 1),
    )
)
computation.mistake(
    "`generate_batch`: features are on more often than their probability: multiply by a sign, don't shift"
)(with_batch(sup.NeuronComputationModel, lambda m, n: 2 * _positive(m, n) - 1))


@computation.law("the sign of the target must not matter: x and -x cost the same against one output")
def _(model_class):
    model = model_class(sup.ToyModelConfig(2, 3, 2), 0.4, 1.0).to(device())
    batch, out = torch.rand(5, 2, 3), torch.rand(5, 2, 3)
    loss = model.calculate_loss(out, batch)
    return torch.allclose(loss, model.calculate_loss(out, -batch)) and loss.shape == (2,)


@computation.right
class _(sup.NeuronComputationModel):
    def generate_batch(self, batch_size):
        size = sup.ToyModel.generate_batch(self, batch_size)
        return torch.where(torch.rand(size.shape) < 0.5, -size, size)

    def calculate_loss(self, out, batch):
        return plain_loss(self, out, batch.abs())


# ---------------------------------------------------------------- capacity

feature_capacity = exercise(sup.feature_capacity)


@feature_capacity.cases
def _():
    yield (columns(3, 5),)
    yield (1e-5 * columns(3, 4, seed=2),)  # short features have their shares too
    yield (columns(4, 2, 3, seed=1, zero=True),)
    yield (2 * torch.eye(3),)
    yield (0.5 * polygon(5),)
    yield (torch.zeros(2, 3),)
    yield (columns(3, 0),)


@feature_capacity.mistake("you did not square the overlaps: both W_i·W_i and each W_i·W_j are squared")
def _(W):
    gram = W.mT @ W
    return _share(gram.diagonal(dim1=-2, dim2=-1), gram.abs().sum(-1))


@feature_capacity.mistake("you squared the sum, not each overlap: square first, then add")
def _(W):
    gram = W.mT @ W
    return _share(gram.diagonal(dim1=-2, dim2=-1) ** 2, gram.sum(-1) ** 2)


@feature_capacity.mistake("the numerator is (W_i·W_i)², the length to the fourth power")
def _(W):
    gram = W.mT @ W
    return _share(gram.diagonal(dim1=-2, dim2=-1), gram.pow(2).sum(-1))


@feature_capacity.mistake("a zero feature gives 0/0: its capacity is 0, not NaN")
def _(W):
    gram = W.mT @ W
    return gram.diagonal(dim1=-2, dim2=-1) ** 2 / gram.pow(2).sum(-1)


@feature_capacity.mistake("you left j = i out of the sum: a feature alone must have capacity 1")
def _(W):
    gram = W.mT @ W
    own = gram.diagonal(dim1=-2, dim2=-1) ** 2
    return _share(own, gram.pow(2).sum(-1) - own)


@feature_capacity.mistake("you multiplied W Wᵀ: the overlaps of features are in Wᵀ W")
def _(W):
    return sup.feature_capacity(W.mT)


@feature_capacity.law("capacities add up to at most the number of dimensions")
def _(capacity):
    return all(0 < float(capacity(columns(3, n, seed=n)).sum()) < 3 + 1e-3 for n in (2, 5, 20))


@feature_capacity.right
def _(W):
    return sup.compute_dimensionality(W)


quadratic_loss = exercise(sup.quadratic_loss)


@quadratic_loss.cases
def _():
    yield columns(2, 3, 4), columns(2, 4, seed=1).abs(), torch.tensor([3.0, 8.0])
    yield columns(1, 2, 5, seed=2), columns(1, 5, seed=3).abs(), torch.tensor([1.8])
    yield torch.eye(3)[None], torch.ones(1, 3), torch.tensor([5.0])


def _quadratic(W, value, own_weight, other_weight=2.0, gram=None):
    gap = (W.mT @ W if gram is None else gram) - torch.diag_embed(value)
    own = gap.diagonal(dim1=-2, dim2=-1).pow(2).sum(-1)
    return own_weight * own + other_weight * (gap.pow(2).sum((-2, -1)) - own)


@quadratic_loss.mistake("the diagonal counts kurtosis - 1 times, the variance of x²; you used the kurtosis")
def _(W, value, kurtosis):
    return _quadratic(W, value, kurtosis)


@quadratic_loss.mistake("each entry off the diagonal counts twice: M_ij and M_ji multiply the same product x_i x_j")
def _(W, value, kurtosis):
    return _quadratic(W, value, kurtosis - 1, 1.0)


@quadratic_loss.mistake("you left the values out: M is WᵀW minus diag(v)")
def _(W, value, kurtosis):
    return _quadratic(W, torch.zeros_like(value), kurtosis - 1)


@quadratic_loss.mistake("you treated all entries of M alike: the diagonal has its own weight, kurtosis - 1")
def _(W, value, kurtosis):
    return _quadratic(W, value, 2.0)


@quadratic_loss.mistake("you weighted the whole of M by kurtosis - 1: off the diagonal the weight is 2")
def _(W, value, kurtosis):
    return _quadratic(W, value, kurtosis - 1, kurtosis - 1)


@quadratic_loss.law("the formula must agree with a large sample of Gaussian inputs (kurtosis 3)")
def _(loss):
    W, value = columns(1, 2, 3), torch.tensor([[1.0, 0.5, 0.2]])
    x = torch.randn(200_000, 3)
    error = (x @ W[0].T).pow(2).sum(-1) - (value * x**2).sum(-1)
    return abs(float(loss(W, value, torch.tensor([3.0]))) / float(error.var()) - 1) < 0.05


@quadratic_loss.right
def _(W, value, kurtosis):
    gap = torch.einsum("idf,idg->ifg", W, W) - torch.diag_embed(value)
    weight = torch.where(torch.eye(value.shape[-1], dtype=torch.bool), (kurtosis - 1)[:, None, None], 2.0)
    return (weight * gap**2).sum((1, 2))


allocate_capacity = exercise(sup.allocate_capacity, atol=1e-3, without={"gradients": "a search, which may go in steps"})

VALUES = torch.tensor([0.5, 1.2, 0.3, 1.0, 0.65, 0.8], device=device())


@allocate_capacity.cases
def _():
    yield VALUES, 6.0, 3
    yield VALUES, 4.0, 3
    yield VALUES, 30.0, 2
    yield torch.full((5,), 0.7), 6.0, 2
    yield VALUES, 3.0, 3
    yield torch.tensor([0.99, 1.0, 0.98, 0.97]), 3.0, 2  # nearly alike, and still the winners take all
    yield VALUES, 1.8, 4
    yield VALUES, 10.0, 6
    yield torch.tensor([1.0, 0.0, 0.5, 0.7]), 10.0, 2
    yield VALUES, 0.5, 2
    yield VALUES, 1.0, 2
    yield VALUES, 2.0, 8
    yield VALUES * torch.tensor([1, -1, 1, -1, 1, 1]), 6.0, 3
    yield VALUES * torch.tensor([1, -1, 1, -1, 1, 1]), 1.8, 3
    yield 100 * VALUES, 6.0, 2
    yield torch.tensor([1.0, 0.0, 0.5, 0.7]), 10.0, 3
    yield torch.tensor([1.0, 0.0, 0.5]), 10.0, 3  # room for all, also for what is worth nothing
    yield torch.ones(4), 6.0, 2


@allocate_capacity.step("room for all, or a kurtosis up to 3")
def _(value, kurtosis, d_hidden):
    return kurtosis <= 3 or d_hidden >= len(value)


@allocate_capacity.step("values that are all alike")
def _(value, kurtosis, d_hidden):
    return bool((value == value[0]).all())


def _guarded(value, kurtosis, d_hidden):
    if kurtosis < 1:
        raise ValueError("kurtosis below 1")
    return torch.ones_like(value) if d_hidden >= len(value) else None


@allocate_capacity.mistake(
    "winner takes all at every kurtosis: above 3 the gain falls as a feature gets more, so they share"
)
def _(value, kurtosis, d_hidden):
    if (full := _guarded(value, kurtosis, d_hidden)) is not None:
        return full
    return torch.zeros_like(value).index_fill(0, value.topk(d_hidden).indices, 1.0)


@allocate_capacity.mistake(
    "you shared in proportion to the values: marginal values must be equal, and no capacity exceeds 1"
)
def _(value, kurtosis, d_hidden):
    if (full := _guarded(value, kurtosis, d_hidden)) is not None:
        return full
    if kurtosis <= 3:
        return sup.allocate_capacity(value, kurtosis, d_hidden)
    return d_hidden * value / value.sum()


@allocate_capacity.mistake(
    "some capacities lie outside 0 to 1: clip them while you search, not only at the end or never"
)
def _(value, kurtosis, d_hidden):
    if (full := _guarded(value, kurtosis, d_hidden)) is not None:
        return full
    if kurtosis <= 3:
        return sup.allocate_capacity(value, kurtosis, d_hidden)
    s = (d_hidden * (kurtosis - 3) + 2 * len(value)) / value.sum()
    return (value * s - 2) / (kurtosis - 3)


@allocate_capacity.mistake(
    "you clipped only at the end, so the capacities no longer add up to d_hidden: clip while you search"
)
def _(value, kurtosis, d_hidden):
    if (full := _guarded(value, kurtosis, d_hidden)) is not None:
        return full
    if kurtosis <= 3:
        return sup.allocate_capacity(value, kurtosis, d_hidden)
    s = (d_hidden * (kurtosis - 3) + 2 * len(value)) / value.sum()
    return ((value * s - 2) / (kurtosis - 3)).clamp(0, 1)


@allocate_capacity.mistake("the marginal value holds v², not v: use the square of the value")
def _(value, kurtosis, d_hidden):
    if kurtosis <= 3:
        return sup.allocate_capacity(value, kurtosis, d_hidden)
    return sup.allocate_capacity(value.sqrt(), kurtosis, d_hidden)


@allocate_capacity.law("no other way to spend the same capacity may cost less")
def _(allocate):
    kurtosis = 8.0
    best = allocate(VALUES, kurtosis, 3)

    def cost(capacity):
        left = 2 * (kurtosis - 1) * (1 - capacity) / (2 + (kurtosis - 3) * capacity)
        return float((VALUES**2 * left).sum())

    others = torch.rand(200, 6, generator=torch.Generator().manual_seed(0))
    others = others * 3 / others.sum(1, keepdim=True)
    others = others[(others <= 1).all(1)]
    fits = abs(float(best.sum()) - 3) < 1e-2 and bool((best >= 0).all() and (best <= 1).all())
    return fits and all(cost(best) <= cost(other) + 1e-4 for other in others)


@allocate_capacity.law(
    "values that are all 0 need nothing: whatever they get is from 0 to 1 and at most d_hidden in all"
)
def _(allocate):
    capacity = allocate(torch.zeros(3), 6.0, 2)
    return bool(((capacity >= 0) & (capacity <= 1)).all()) and float(capacity.sum()) <= 2.001


@allocate_capacity.right
def _(value, kurtosis, d_hidden):
    if (full := _guarded(value, kurtosis, d_hidden)) is not None:
        return full
    value = value.abs()
    if kurtosis <= 3:
        best = value.sort(descending=True, stable=True).indices[:d_hidden]
        return torch.isin(torch.arange(len(value)), best).float()
    # Pour small drops, each where it is worth most.
    capacity, drop = torch.zeros(len(value)), 1 / 1024
    for _ in range(d_hidden * 1024):
        marginal = (value / (2 + (kurtosis - 3) * capacity)).masked_fill(capacity >= 1, -1)
        capacity[marginal.argmax()] += drop
    return capacity
