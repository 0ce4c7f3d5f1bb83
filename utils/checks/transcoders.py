"""What is asked of a learner's functions in the first half of chapter 11, and where the second's are found."""

import weakref

import torch
from torch import Tensor
from transformer_lens.hook_points import HookedRootModule

from utils import attribution, circuits, transcoders
from utils.checks.engine import MEASURED, Chapter
from utils.checks.sae_models import lm_model, lm_tokens, lm_transcoder
from utils.runtime import device
from utils.saes import next_token_losses, precision_and_recall
from utils.transcoders import places

chapter = Chapter(transcoders, circuits, attribution)
exercise, check, hint, compare = chapter.exercise, chapter.check, chapter.hint, chapter.compare


def _alone(fn, *args):
    """Call with no hook left on the model or a transcoder, before and after, whatever it did."""
    models = [lm_model(), *(a for a in args if isinstance(a, HookedRootModule))]
    try:
        for each in models:
            each.reset_hooks()
        return fn(*args)
    finally:
        for each in models:
            each.reset_hooks()


def _read(tokens: Tensor, layer: int = 1) -> Tensor:
    """What the small model's MLP reads on these tokens."""
    name = f"blocks.{layer}.ln2.hook_normalized"
    return lm_model().run_with_cache(tokens, names_filter=name)[1][name]


# ---------------------------------------------------------------- Transcoder


def _use_transcoder(cls, weights, skip, x, acts):
    """What the three methods give with these weights."""
    W_enc, W_dec = weights["W_enc"], weights["W_dec"]
    made = cls(W_enc.shape[0], W_dec.shape[1], W_enc.shape[1], skip).to(device())
    with torch.no_grad():
        for name, value in weights.items():
            if getattr(made, name) is not None:
                getattr(made, name).copy_(value)
    return made.encode(x), made.decode(acts, x), made(x)


Transcoder = exercise(
    transcoders.Transcoder,
    use=_use_transcoder,
    without={"gradients": "the weights are copied into it, so that none of the inputs carries one"},
)


@Transcoder.cases
def _():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    for skip, shape in ((False, (5,)), (True, (2, 4)), (True, (3,))):
        weights = {"W_enc": draw(6, 9), "b_enc": draw(9), "W_dec": draw(9, 7), "b_dec": draw(7), "W_skip": draw(7, 6)}
        # Some thresholds are below 0: a latent is never negative.
        yield weights | {"threshold": draw(9)}, skip, draw(*shape, 6), torch.relu(draw(*shape, 9))


def _wrong(sentence):
    """Register a class with one thing wrong."""

    def register(cls):
        Transcoder.mistake(sentence)(cls)
        return cls

    return register


@_wrong("the threshold is missing: a latent at or below its own is 0")
class _(transcoders.Transcoder):
    def encode(self, x):
        return torch.relu(x @ self.W_enc + self.b_enc)


@_wrong("you took the threshold off the latents: above it a latent keeps its full size")
class _(transcoders.Transcoder):
    def encode(self, x):
        return torch.relu(x @ self.W_enc + self.b_enc - self.threshold)


@_wrong("a latent can't be negative: where a threshold is below 0, the ReLU still holds")
class _(transcoders.Transcoder):
    def encode(self, x):
        pre = x @ self.W_enc + self.b_enc
        return pre * (pre > self.threshold)


@_wrong("b_enc is missing: h = x W_enc + b_enc")
class _(transcoders.Transcoder):
    def encode(self, x):
        pre = x @ self.W_enc
        return torch.relu(pre) * (pre > self.threshold)


@_wrong("b_dec is missing: it is added to every output")
class _(transcoders.Transcoder):
    def decode(self, acts, x):
        return super().decode(acts, x) - self.b_dec


@_wrong("the skip connection is missing: where there is a W_skip, add W_skip x")
class _(transcoders.Transcoder):
    def decode(self, acts, x):
        return acts @ self.W_dec + self.b_dec


@_wrong("an autoencoder takes b_dec off its input; a transcoder's b_dec belongs to another place, the output")
class _(transcoders.Transcoder):
    def encode(self, x):
        pre = (x - self.b_dec[: x.shape[-1]]) @ self.W_enc + self.b_enc
        return torch.relu(pre) * (pre > self.threshold)


@_wrong("`forward` decodes without the latents' activation: decode(encode(x), x)")
class _(transcoders.Transcoder):
    def forward(self, x):
        return self.decode(x @ self.W_enc + self.b_enc, x)


@Transcoder.right
class _(transcoders.Transcoder):
    def encode(self, x):
        pre = torch.einsum("...i,il->...l", x, self.W_enc) + self.b_enc
        return torch.where(pre > self.threshold.clamp_min(0), pre, torch.zeros_like(pre))

    def decode(self, acts, x):
        out = torch.einsum("...l,lo->...o", acts, self.W_dec) + self.b_dec
        return out + torch.einsum("...i,oi->...o", x, self.W_skip) if self.W_skip is not None else out

    def forward(self, x):
        return self.decode(self.encode(x), x)


# ---------------------------------------------------------------- transcoder_hooks


def _use_hooks(fn, model, chosen, tokens):
    """The logits with the hooks in place, twice: what is kept must not be left over."""

    def run(model, chosen):
        hooks, read = fn(model, chosen), []
        see = [(places(t)[0], lambda x, hook: read.append(weakref.ref(x))) for t in chosen]
        logits = [model.run_with_hooks(some, fwd_hooks=[*see, *hooks]) for some in (tokens, tokens[:2, :5])]
        return {"logits": logits, "activations still kept after the runs": sum(x() is not None for x in read)}

    return _alone(run, model, chosen)


transcoder_hooks = exercise(transcoders.transcoder_hooks, use=_use_hooks)


@transcoder_hooks.cases
def _():
    yield lm_model(), [lm_transcoder(1)], lm_tokens()
    yield lm_model(), [lm_transcoder(0), lm_transcoder(1)], lm_tokens(4, 7)
    yield lm_model(), [lm_transcoder(1), lm_transcoder(0, True)], lm_tokens(4, 6, seed=1)


@transcoder_hooks.refused
def _():
    yield lm_model(), [lm_transcoder(1), lm_transcoder(1)], lm_tokens()
    yield lm_model(), [lm_transcoder(1, hook_name="blocks.7.ln2.hook_normalized")], lm_tokens()
    yield lm_model(), [lm_transcoder(1, hook_name_out="blocks.0.hook_mlp_out")], lm_tokens()


def _hooks(model, chosen, reads=lambda name: name, make=lambda t, x, out: t(x), ours=True):
    """Hooks once more, with one thing changed."""
    if ours:
        transcoders.transcoder_hooks(model, chosen)
    found = []
    for t in chosen:
        kept = {}

        def keep(x, hook, kept=kept):
            kept["x"] = x

        def replace(out, hook, kept=kept, t=t):
            return make(t, kept["x"], out)

        found += [(reads(places(t)[0]), keep), (places(t)[1], replace)]
    return found


@transcoder_hooks.mistake("a hook in a loop sees the loop's last transcoder: bind it, partial(hook, transcoder=…)")
def _(model, chosen):
    transcoders.transcoder_hooks(model, chosen)
    found, kept = [], {}
    for t in chosen:

        def keep(x, hook):
            kept["x"] = x

        def replace(out, hook):
            return t(kept["x"])  # noqa: B023

        found += [(places(t)[0], keep), (places(t)[1], replace)]
    return found


@transcoder_hooks.mistake("the skip connection is lost: decode alone doesn't see the input, call transcoder(x)")
def _(model, chosen):
    return _hooks(model, chosen, make=lambda t, x, out: t.decode(t.encode(x)))


@transcoder_hooks.mistake("you added the transcoder's output to the MLP's: put it in its place")
def _(model, chosen):
    return _hooks(model, chosen, make=lambda t, x, out: out + t(x))


@transcoder_hooks.mistake("it reads hook_mlp_in, the stream before the LayerNorm: the MLP reads ln2.hook_normalized")
def _(model, chosen):
    return _hooks(model, chosen, lambda name: name.replace("ln2.hook_normalized", "hook_resid_mid"))


@transcoder_hooks.mistake("you encoded the MLP's output: a transcoder encodes the MLP's input")
def _(model, chosen):
    return _hooks(model, chosen, make=lambda t, x, out: t(out))


@transcoder_hooks.mistake("the first transcoder only: make hooks for each")
def _(model, chosen):
    transcoders.transcoder_hooks(model, chosen)
    return _hooks(model, chosen[:1])


@transcoder_hooks.right
def _(model, chosen):
    transcoders.transcoder_hooks(model, chosen)

    def pair(t):
        seen = []
        return [
            (places(t)[0], lambda x, hook: seen.append(x)),
            (places(t)[1], lambda out, hook: t.forward(seen.pop())),
        ]

    return [hook for t in chosen for hook in pair(t)]


# ---------------------------------------------------------------- transcoder_metrics

transcoder_metrics = exercise(transcoders.transcoder_metrics, use=_alone, without=MEASURED)


@transcoder_metrics.cases
def _():
    yield lm_model(), lm_transcoder(1), lm_tokens(8)
    yield lm_model(), lm_transcoder(0, True), lm_tokens(5, 6, seed=1)


@transcoder_metrics.refused
def _():
    yield lm_model(), lm_transcoder(1, hook_name="blocks.7.ln2.hook_normalized"), lm_tokens(4)


def _metrics(model, t, tokens, counted=None, whole=True, spread_of="out", **changed):
    """All figures once more, each in the way that a mistake asks for."""
    right = transcoders.transcoder_metrics(model, t, tokens)
    _, cache = model.run_with_cache(tokens)
    x, out = (cache[name] for name in places(t))
    counted = tokens != 0 if counted is None else counted
    made = t(x) if whole else t.decode(t.encode(x))
    spread = {"out": out, "x": x}[spread_of][counted]
    unexplained = (out - made)[counted].pow(2).sum() / (spread - spread.mean(0)).pow(2).sum()
    active = (t.encode(x) > 0)[counted]
    own = {
        "explained_variance": 1 - unexplained.item(),
        "L0": active.float().sum(-1).mean().item(),
        "dead": 1 - active.any(0).float().mean().item(),
    }
    return right | own | changed


def _loss(model, tokens, name, value):
    logits = model.run_with_hooks(tokens, fwd_hooks=[(name, lambda out, hook: value.expand_as(out))])
    return next_token_losses(logits, tokens).mean().item()


@transcoder_metrics.mistake("<|endoftext|> is left out of L0, dead and explained variance: keep the other tokens")
def _(model, t, tokens):
    return _metrics(model, t, tokens, counted=torch.ones_like(tokens, dtype=torch.bool))


@transcoder_metrics.mistake("the variance to explain is that of the MLP's output, not of its input")
def _(model, t, tokens):
    return _metrics(model, t, tokens, spread_of="x")


@transcoder_metrics.mistake("loss recovered is upside down: 1 where it costs nothing, 0 where zeros do as well")
def _(model, t, tokens):
    m = transcoders.transcoder_metrics(model, t, tokens)
    return m | {"loss_recovered": 1 - m["loss_recovered"]}


@transcoder_metrics.mistake("loss recovered is measured from zeros in the MLP's place, not from its mean output")
def _(model, t, tokens):
    m = transcoders.transcoder_metrics(model, t, tokens)
    return m | {"loss_recovered": (m["loss_mean"] - m["loss_transcoder"]) / (m["loss_mean"] - m["loss_clean"])}


@transcoder_metrics.mistake("L0 is a number of latents, not a share: sum over d_sae, then the mean over tokens")
def _(model, t, tokens):
    m = transcoders.transcoder_metrics(model, t, tokens)
    return m | {"L0": m["L0"] / t.cfg.d_sae}


@transcoder_metrics.mistake("`dead` counts latents active on no token: you counted the active ones")
def _(model, t, tokens):
    m = transcoders.transcoder_metrics(model, t, tokens)
    return m | {"dead": 1 - m["dead"]}


@transcoder_metrics.mistake("loss_mean takes the mean of the MLP's output, over the tokens that count")
def _(model, t, tokens):
    _, cache = model.run_with_cache(tokens)
    mean = cache[places(t)[0]][tokens != 0].mean(0)
    return transcoders.transcoder_metrics(model, t, tokens) | {"loss_mean": _loss(model, tokens, places(t)[1], mean)}


@transcoder_metrics.right
def _(model, t, tokens):
    hooks = transcoders.transcoder_hooks(model, [t])
    reads, writes = places(t)
    logits, cache = model.run_with_cache(tokens)
    keep = tokens.flatten() != 0
    x, out = (cache[name].flatten(0, 1)[keep] for name in (reads, writes))
    acts, mean = t.encode(x), out.mean(0)
    clean, zero = model.loss_fn(logits, tokens).item(), _loss(model, tokens, writes, torch.zeros(12))
    with model.hooks(fwd_hooks=hooks):
        replaced = model(tokens, return_type="loss").item()
    return {
        "L0": sum((row > 0).sum().item() for row in acts) / len(acts),
        "explained_variance": 1 - ((out - t(x)) ** 2).sum().item() / (out.var(0, correction=0).sum().item() * len(out)),
        "dead": (acts.amax(0) == 0).float().mean().item(),
        "loss_clean": clean,
        "loss_transcoder": replaced,
        "loss_zero": zero,
        "loss_mean": _loss(model, tokens, writes, mean),
        "loss_recovered": 1 - (replaced - clean) / (zero - clean),
    }


# ---------------------------------------------------------------- k_sparse_f1

k_sparse_f1 = exercise(transcoders.k_sparse_f1, without=MEASURED)


def _labelled(n=240, units=11, seed=0):
    """Values of units, of which some tell the labels a little, and the labels; scales and means differ by unit."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(n, 4, generator=generator) < torch.tensor([0.5, 0.3, 0.2, 0.4])
    noise = torch.randn(n, units, generator=generator)
    mixed = labels.float() @ torch.randn(4, units, generator=generator)
    values = (mixed + noise) * torch.logspace(-1, 1, units) + torch.arange(units)
    # What the second half says must not matter for the choice.
    values[n // 2 :] = values[n // 2 :] + 0.3 * torch.randn(n - n // 2, units, generator=generator)
    return values, labels


@k_sparse_f1.cases
def _():
    for k, seed in ((1, 0), (3, 1), (5, 2)):
        yield *_labelled(seed=seed), k


def _choose(x, truth, k, by="contrast"):
    n = truth.sum(0)
    with_label = truth.T @ x / n.clamp_min(1)[:, None]
    without = (x.sum(0) - truth.T @ x) / (len(x) - n).clamp_min(1)[:, None]
    contrast = (with_label - without) / (1 if by == "plain" else x.std(0).clamp_min(1e-6))
    return (contrast if by == "signed" else contrast.abs()).topk(k, dim=1).indices


def _probe(values, labels, k, seen=slice(None), by="contrast", constant=1.0, fit=True, fitted_on=None):
    half = len(values) // 2
    fitted_on = fitted_on or slice(0, half)
    truth = labels.to(values.dtype)
    chosen_on = slice(0, half) if seen == slice(None) else seen
    scores = []
    for label, units in enumerate(_choose(values[chosen_on], truth[chosen_on], k, by)):
        x = torch.cat([values[:, units], torch.full_like(values[:, :1], constant)], dim=1)
        gram = x[fitted_on].T @ x[fitted_on] + 1e-4 * torch.eye(k + 1)
        weights = torch.linalg.solve(gram, x[fitted_on].T @ truth[fitted_on, label])
        scores.append(x @ weights if fit else values[:, units].sum(1))
    p, r = precision_and_recall(torch.stack(scores, 1), labels, torch.arange(labels.shape[1]))
    return 2 * p * r / (p + r).clamp_min(1e-9)


@k_sparse_f1.mistake("units are chosen on the first half of the tokens only: the second half is for scoring")
def _(values, labels, k):
    return _probe(values, labels, k, seen=slice(0, len(values)))


@k_sparse_f1.mistake("divide the difference of means by the unit's standard deviation, or the loudest units win")
def _(values, labels, k):
    return _probe(values, labels, k, by="plain")


@k_sparse_f1.mistake("a unit that falls silent where the label holds tells it too: take the difference's size")
def _(values, labels, k):
    return _probe(values, labels, k, by="signed")


@k_sparse_f1.mistake("the probe has a constant beside its k units: add a column of ones")
def _(values, labels, k):
    return _probe(values, labels, k, constant=0.0)


@k_sparse_f1.mistake("the units' plain sum is no probe: fit their weights by least squares")
def _(values, labels, k):
    return _probe(values, labels, k, fit=False)


@k_sparse_f1.mistake("the probe is fitted on the first half only, else it has seen what it is scored on")
def _(values, labels, k):
    return _probe(values, labels, k, fitted_on=slice(0, len(values)))


@k_sparse_f1.mistake("F1 is 2 p r / (p + r): you gave the mean of precision and recall")
def _(values, labels, k):
    half = len(values) // 2
    truth, scores = labels.to(values.dtype), []
    for label, units in enumerate(_choose(values[:half], truth[:half], k)):
        x = torch.cat([values[:, units], torch.ones_like(values[:, :1])], dim=1)
        weights = torch.linalg.lstsq(x[:half], truth[:half, label]).solution
        scores.append(x @ weights)
    p, r = precision_and_recall(torch.stack(scores, 1), labels, torch.arange(labels.shape[1]))
    return (p + r) / 2


@k_sparse_f1.right
def _(values, labels, k):
    half = len(values) // 2
    found = []
    for label in range(labels.shape[1]):
        holds = labels[:half, label]
        x = values[:half]
        contrast = (x[holds].mean(0) - x[~holds].mean(0)).abs() / x.std(0)
        units = contrast.argsort(descending=True)[:k]
        seen = torch.nn.functional.pad(values[:, units], (0, 1), value=1.0)
        scores = seen @ torch.linalg.lstsq(seen[:half], holds.float()[:, None]).solution
        p, r = precision_and_recall(scores, labels[:, label : label + 1], torch.zeros(1, dtype=torch.long))
        found.append((2 * p * r / (p + r).clamp_min(1e-9))[0])
    return torch.stack(found)


# ---------------------------------------------------------------- mlp_jacobian

mlp_jacobian = exercise(transcoders.mlp_jacobian, without={"gradients": "the slope is taken at a copy of the input"})


@mlp_jacobian.cases
def _():
    yield lm_model(), 1, _read(lm_tokens(3, 5), 1).flatten(0, 1)
    yield lm_model(), 0, _read(lm_tokens(2, 5, seed=2), 0).flatten(0, 1)


def _jacobian(model, layer, x, slope=None, bias=True, act=None):
    mlp = model.blocks[layer].mlp
    pre = (x @ mlp.W_in + mlp.b_in * bias).detach().requires_grad_(True)
    with torch.enable_grad():
        (own,) = torch.autograd.grad((act or mlp.act_fn)(pre).sum(), pre)
    return torch.einsum("in,tn,no->tio", mlp.W_in, own if slope is None else slope(pre.detach(), mlp), mlp.W_out)


@mlp_jacobian.mistake("b_in is missing: the slope is taken where the neurons stand, x W_in + b_in")
def _(model, layer, x):
    return _jacobian(model, layer, x, bias=False)


@mlp_jacobian.mistake("you used the activation function's value: what counts is its slope at each neuron")
def _(model, layer, x):
    return _jacobian(model, layer, x, slope=lambda pre, mlp: mlp.act_fn(pre))


@mlp_jacobian.mistake("the activation function is missing: W_in W_out alone would be an MLP of straight lines")
def _(model, layer, x):
    return _jacobian(model, layer, x, slope=lambda pre, mlp: torch.ones_like(pre))


@mlp_jacobian.mistake("this model's neurons are no ReLUs: the slope of gelu is not 0 or 1")
def _(model, layer, x):
    return _jacobian(model, layer, x, act=torch.relu)


@mlp_jacobian.mistake("input and output are swapped: result[t, i, o] is that of output o by input i")
def _(model, layer, x):
    return _jacobian(model, layer, x).mT


@mlp_jacobian.mistake("the weights of another layer: take model.blocks[layer]")
def _(model, layer, x):
    return _jacobian(model, 1 - layer, x)


@mlp_jacobian.law("a tiny step of the input must move the output by step times Jacobian")
def _(mlp_jacobian):
    x = _read(lm_tokens(2, 5), 1).flatten(0, 1).double()
    model, step = lm_model(), 1e-3 * torch.randn(x.shape[1], generator=torch.Generator().manual_seed(1))
    mlp = model.blocks[1].mlp
    moved = (mlp((x + step).float()[None]) - mlp((x - step).float()[None]))[0] / 2
    want = torch.einsum("i,tio->to", step, mlp_jacobian(model, 1, x.float()))
    return torch.allclose(moved, want, atol=1e-5)


@mlp_jacobian.right
def _(model, layer, x):
    mlp = model.blocks[layer].mlp
    with torch.enable_grad():
        found = torch.func.vmap(torch.func.jacrev(lambda row: mlp(row[None, None])[0, 0]))(x.detach())
    return found.mT


# ---------------------------------------------------------------- de_embedding

de_embedding = exercise(transcoders.de_embedding, use=_alone)


@de_embedding.cases
def _():
    yield lm_model(), lm_transcoder(0), False
    yield lm_model(), lm_transcoder(1), False
    yield lm_model(), lm_transcoder(1), True


@de_embedding.refused
def _():
    yield lm_model(), lm_transcoder(0), True


def _through(model, t, extended, norm=True, own=True, normed_first=True, bias=True, matrix=None):
    vectors = model.W_E
    if extended:
        if transcoders.layer_of(t) == 0:
            raise ValueError("nothing comes before")
        first = model.blocks[0]
        made = first.mlp(first.ln2(vectors[None]) if normed_first else vectors[None])[0]
        vectors = vectors * own + made
    read = model.blocks[transcoders.layer_of(t)].ln2(vectors[None])[0] if norm else vectors
    return read @ (t.W_enc if matrix is None else matrix(t)) + t.b_enc * bias


@de_embedding.mistake("the LayerNorm before the MLP is missing: the transcoder reads what comes out of it, ln2")
def _(model, t, extended=False):
    return _through(model, t, extended, norm=False)


@de_embedding.mistake("b_enc is missing: a pre-activation is read @ W_enc + b_enc")
def _(model, t, extended=False):
    return _through(model, t, extended, bias=False)


@de_embedding.mistake("what a latent reads is a column of W_enc; W_dec is what it writes")
def _(model, t, extended=False):
    return _through(model, t, extended, matrix=lambda t: t.W_dec.T)


@de_embedding.mistake("`extended` adds what MLP 0 makes of the embedding to the embedding: you kept the former only")
def _(model, t, extended=False):
    return _through(model, t, extended, own=False)


@de_embedding.mistake("MLP 0 reads the embedding through its own LayerNorm, blocks[0].ln2")
def _(model, t, extended=False):
    return _through(model, t, extended, normed_first=False)


@de_embedding.mistake("`extended` is ignored: add MLP 0's output")
def _(model, t, extended=False):
    if extended and transcoders.layer_of(t) == 0:
        raise ValueError("nothing comes before")
    return _through(model, t, False)


@de_embedding.mistake("you took the unembedding: a token comes in as a row of W_E")
def _(model, t, extended=False):
    if extended:
        return transcoders.de_embedding(model, t, extended)
    return model.blocks[transcoders.layer_of(t)].ln2(model.W_U.T[None])[0] @ t.W_enc + t.b_enc


@de_embedding.right
def _(model, t, extended=False):
    layer = transcoders.layer_of(t)
    if extended and layer == 0:
        raise ValueError("nothing comes before")

    def norm(x):
        x = x - x.mean(-1, keepdim=True)
        return x / (x.pow(2).mean(-1, keepdim=True) + model.cfg.eps).sqrt()

    x = model.W_E
    if extended:
        mlp = model.blocks[0].mlp
        x = x + mlp.act_fn(norm(x) @ mlp.W_in + mlp.b_in) @ mlp.W_out + mlp.b_out
    return norm(x) @ t.W_enc + t.b_enc


# ---------------------------------------------------------------- connections

connections = exercise(transcoders.connections)


@connections.cases
def _():
    yield lm_transcoder(0), lm_transcoder(1)
    yield lm_transcoder(0, True), lm_transcoder(1)


@connections.refused
def _():
    yield lm_transcoder(1), lm_transcoder(0)
    yield lm_transcoder(1), lm_transcoder(1)


def _ordered(earlier, later):
    transcoders.connections(earlier, later)
    return earlier.W_dec - earlier.W_dec.mean(1, keepdim=True)


@connections.mistake("LayerNorm takes the mean off: centre each row of the decoder over d_model first")
def _(earlier, later):
    _ordered(earlier, later)
    return earlier.W_dec @ later.W_enc


@connections.mistake("the result is [earlier, later]: yours is turned round")
def _(earlier, later):
    return (_ordered(earlier, later) @ later.W_enc).T


@connections.mistake("an earlier latent writes a row of W_dec; a later one reads a column of W_enc, not its own W_dec")
def _(earlier, later):
    return _ordered(earlier, later) @ later.W_dec.T


@connections.mistake("you took cosines: lengths count, they say how much a unit of activation gives")
def _(earlier, later):
    rows = torch.nn.functional.normalize(_ordered(earlier, later), dim=1)
    return rows @ torch.nn.functional.normalize(later.W_enc, dim=0)


@connections.mistake("you centred over the latents: the mean that LayerNorm takes off is over d_model")
def _(earlier, later):
    _ordered(earlier, later)
    return (earlier.W_dec - earlier.W_dec.mean(0)) @ later.W_enc


@connections.mistake("the layers' order is not asked: a later layer writes nothing that an earlier one reads")
def _(earlier, later):
    return (earlier.W_dec - earlier.W_dec.mean(1, keepdim=True)) @ later.W_enc


@connections.right
def _(earlier, later):
    _ordered(earlier, later)
    return earlier.W_dec @ (later.W_enc - later.W_enc.mean(0))


# ---------------------------------------------------------------- contributions

contributions = exercise(transcoders.contributions)


def _cached(tokens):
    """Latents of layer 0 on these tokens, and the scale of the LayerNorm before MLP 1."""
    _, cache = lm_model().run_with_cache(tokens)
    return lm_transcoder(0).encode(_read(tokens, 0)), cache["blocks.1.ln2.hook_scale"]


@contributions.cases
def _():
    for latent, tokens in ((2, lm_tokens(3, 5)), (7, lm_tokens(2, 6, seed=3))):
        yield *_cached(tokens), lm_transcoder(0), lm_transcoder(1), latent


@contributions.refused
def _():
    acts, scale = _cached(lm_tokens(2, 5))
    yield acts, scale, lm_transcoder(1), lm_transcoder(0), 2


@contributions.mistake("the LayerNorm's scale is missing: divide by it")
def _(acts, scale, earlier, later, latent):
    return acts * transcoders.connections(earlier, later)[:, latent]


@contributions.mistake("you multiplied by the scale: LayerNorm divides by it")
def _(acts, scale, earlier, later, latent):
    return acts * transcoders.connections(earlier, later)[:, latent] * scale


@contributions.mistake("the activations are missing: without them it is the same for every input")
def _(acts, scale, earlier, later, latent):
    return torch.ones_like(acts) * transcoders.connections(earlier, later)[:, latent] / scale


@contributions.mistake("you took a row of the connections: what the later latent gets is its column")
def _(acts, scale, earlier, later, latent):
    return acts * transcoders.connections(earlier, later)[latent, : acts.shape[-1]] / scale


@contributions.mistake("you summed over the earlier latents: keep one number for each")
def _(acts, scale, earlier, later, latent):
    return transcoders.contributions(acts, scale, earlier, later, latent).sum(-1)


@contributions.law("the change of the pre-activation without a latent, the scale held, must be its contribution")
def _(contributions):
    tokens, latent = lm_tokens(3, 5), 4
    acts, scale = _cached(tokens)
    earlier, later = lm_transcoder(0), lm_transcoder(1)
    _, cache = lm_model().run_with_cache(tokens)
    stream = cache["blocks.1.hook_resid_mid"]

    def pre(stream):
        return (stream - stream.mean(-1, keepdim=True)) / scale @ later.W_enc[:, latent]

    strongest = acts.sum((0, 1)).argmax()
    without = stream - acts[..., strongest, None] * earlier.W_dec[strongest]
    got = contributions(acts, scale, earlier, later, latent)[..., strongest]
    return torch.allclose(got, pre(stream) - pre(without), atol=1e-4)


@contributions.right
def _(acts, scale, earlier, later, latent):
    transcoders.connections(earlier, later)
    written = acts[..., None] * (earlier.W_dec - earlier.W_dec.mean(1, keepdim=True))
    return (written / scale[..., None]) @ later.W_enc[:, latent]
