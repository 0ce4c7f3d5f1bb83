"""What is asked of a learner's functions in chapter 07."""

import warnings
from functools import cache, partial

import einops
import torch
from datasets import Dataset
from sae_lens import (
    SAE,
    ActivationsStore,
    HookedSAETransformer,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
)
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor
from torch.nn import functional as F
from transformer_lens import HookedTransformerConfig
from transformer_lens.hook_points import HookPoint

from utils import ioi, saes
from utils.checks.compare import difference
from utils.checks.engine import Chapter
from utils.checks.ioi import tokenizer_of
from utils.superposition import ToyModel, ToyModelConfig
from utils.world import parse, sample

chapter = Chapter(saes)
exercise, check, hint = chapter.exercise, chapter.check, chapter.hint

# ================================================================ 1. A toy sparse autoencoder


def sae_of(cls, inst: int = 2, d_in: int = 3, d_sae: int = 4, feats: int = 5, seed: int = 0, **changes):
    """An autoencoder of class `cls` with seeded random weights and biases other than 0, on a random toy model.

    The toy model gives the same features whenever it is asked.
    """
    generator = torch.Generator().manual_seed(seed)
    model = ToyModel(ToyModelConfig(inst, feats, d_in), 0.4)
    sae = cls(saes.ToySAEConfig(inst, d_in, d_sae, **changes), model)
    features = torch.rand(64, inst, feats, generator=generator)
    model.generate_batch = lambda batch_size: features[:batch_size]
    with torch.no_grad():
        for name, parameter in sorted(sae.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_({"log_threshold": 0.2 * noise - 1, "r_mag": 0.4 * noise}.get(name, 0.6 * noise))
    return sae


def hidden(inst: int = 2, d_in: int = 3, rows: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(rows, inst, d_in, generator=torch.Generator().manual_seed(seed))


def forward_of(sae, h) -> dict:
    loss_dict, loss, acts, h_reconstructed = sae(h)
    return {"acts": acts, "h_reconstructed": h_reconstructed, "loss_dict": dict(loss_dict), "loss": loss}


def forward_and_gradients(cls, changes, h) -> dict:
    """What a form's forward gives, and the gradients of its mean loss."""
    sae = sae_of(cls, h.shape[1], h.shape[2], **changes)
    out = forward_of(sae, h)
    out["loss"].mean(0).sum().backward()
    trained = {name: p for name, p in sae.named_parameters() if p.requires_grad}
    none = {name: torch.zeros_like(p) for name, p in trained.items()}
    return out | {"gradients": {name: none[name] if p.grad is None else p.grad for name, p in trained.items()}}


def with_methods(base, **methods):
    """The class `base` with other methods."""
    return type(base.__name__, (base,), methods)


def scaled(W: Tensor, dim: int = -1) -> Tensor:
    return W / W.norm(dim=dim, keepdim=True)


def times(x: Tensor, W: Tensor) -> Tensor:
    """x [batch inst n] times W [inst n m], instance by instance."""
    return torch.einsum("bin,inm->bim", x, W)


# ---------------------------------------------------------------- ToySAE


def run_sae(cls, changes):
    """Build the class, load weights, and return what each of its methods gives."""
    sae = sae_of(cls, **changes)
    inst, d_in, d_sae = sae.W_enc.shape
    h, acts = hidden(inst, d_in), hidden(inst, d_sae, seed=2).relu()
    return {
        "W_dec_normalized": sae.W_dec_normalized,
        "generate_batch": sae.generate_batch(7),
        "pre_activations": sae.pre_activations(h),
        "decode": sae.decode(acts),
        "forward": forward_of(sae, h),
    }


def said_of_method(got, want, *args) -> str | None:
    """Name the method that is off."""
    for method in want:
        if said := difference(got[method], want[method]):
            return f"`{method}`: {said}"
    return None


toy_sae = exercise(saes.ToySAE, use=run_sae, same=said_of_method)


@toy_sae.cases
def _():
    yield ({},)
    yield (dict(tied_weights=True, sparsity_coeff=0.7),)
    yield (dict(inst=1, d_in=2, d_sae=5, sparsity_coeff=0.0, seed=3),)
    yield (dict(inst=3, d_in=4, d_sae=2, feats=3, weight_normalize_eps=0.5, seed=4),)


def plain_forward(act=F.relu, rec=lambda e: e.pow(2).mean(-1), sparsity=lambda z: z.sum(-1), coeff=None, reduce=None):
    """A differently wired forward for ToySAE."""

    def forward(self, h):
        acts = act(self.pre_activations(h))
        h_reconstructed = self.decode(acts)
        loss_dict = {"L_reconstruction": rec(h_reconstructed - h), "L_sparsity": sparsity(acts)}
        if reduce:
            loss_dict = {name: reduce(part) for name, part in loss_dict.items()}
        factor = self.cfg.sparsity_coeff if coeff is None else coeff
        return (
            loss_dict,
            loss_dict["L_reconstruction"] + factor * loss_dict["L_sparsity"],
            acts,
            h_reconstructed,
        )

    return forward


toy_sae.mistake("`W_dec_normalized`: you scaled columns: each latent is a row of W_dec, so take the norm along d_in")(
    with_methods(
        saes.ToySAE,
        W_dec_normalized=property(
            lambda self: self.W_dec / (self.W_dec.norm(dim=-2, keepdim=True) + self.cfg.weight_normalize_eps)
        ),
    )
)
toy_sae.mistake("`W_dec_normalized`: you divided by the squared length: a row must come out with length 1")(
    with_methods(
        saes.ToySAE,
        W_dec_normalized=property(
            lambda self: self.W_dec / (self.W_dec.pow(2).sum(-1, keepdim=True) + self.cfg.weight_normalize_eps)
        ),
    )
)
toy_sae.mistake("`W_dec_normalized`: you left weight_normalize_eps out: add it to the length before you divide")(
    with_methods(saes.ToySAE, W_dec_normalized=property(lambda self: scaled(self.W_dec)))
)
toy_sae.mistake("`generate_batch`: you returned the features x: the autoencoder reads hidden vectors h = W x")(
    with_methods(saes.ToySAE, generate_batch=lambda self, n: self.model.generate_batch(n))
)
toy_sae.mistake("`generate_batch`: you returned the toy model's output: take W x, before it is rebuilt")(
    with_methods(saes.ToySAE, generate_batch=lambda self, n: self.model(self.model.generate_batch(n)))
)
toy_sae.mistake("`pre_activations`: you left b_dec out: subtract it from h first")(
    with_methods(saes.ToySAE, pre_activations=lambda self, h: times(h, self.W_enc) + self.b_enc)
)
toy_sae.mistake("`pre_activations`: you left b_enc out: add it after the product")(
    with_methods(saes.ToySAE, pre_activations=lambda self, h: times(h - self.b_dec, self.W_enc))
)
toy_sae.mistake("`pre_activations`: you added b_dec: subtract it, for decode adds it again")(
    with_methods(saes.ToySAE, pre_activations=lambda self, h: times(h + self.b_dec, self.W_enc) + self.b_enc)
)
toy_sae.mistake("`decode`: you used W_dec at its full length: use W_dec_normalized")(
    with_methods(saes.ToySAE, decode=lambda self, z: times(z, self.W_dec) + self.b_dec)
)
toy_sae.mistake("`decode`: you left b_dec out: add it after the product")(
    with_methods(saes.ToySAE, decode=lambda self, z: times(z, self.W_dec_normalized))
)
toy_sae.mistake("`forward`: you left the ReLU out: activations are never negative")(
    with_methods(saes.ToySAE, forward=plain_forward(act=lambda x: x, sparsity=lambda z: z.abs().sum(-1)))
)
toy_sae.mistake("`forward`: you summed the squared error over d_in: take the mean")(
    with_methods(saes.ToySAE, forward=plain_forward(rec=lambda e: e.pow(2).sum(-1)))
)
toy_sae.mistake("`forward`: you left the error unsquared: L_reconstruction is the mean of its square")(
    with_methods(saes.ToySAE, forward=plain_forward(rec=lambda e: e.abs().mean(-1)))
)
toy_sae.mistake("`forward`: L_sparsity is the sum over the latents, not their mean")(
    with_methods(saes.ToySAE, forward=plain_forward(sparsity=lambda z: z.mean(-1)))
)
toy_sae.mistake("`forward`: L_sparsity counts active latents in yours: take the sum of |z|, which has a gradient")(
    with_methods(saes.ToySAE, forward=plain_forward(sparsity=lambda z: (z > 0).float().sum(-1)))
)
toy_sae.mistake("`forward`: you left sparsity_coeff out of the loss: it multiplies L_sparsity")(
    with_methods(saes.ToySAE, forward=plain_forward(coeff=1.0))
)
toy_sae.mistake("`forward`: you averaged over the batch: keep one loss per input and instance, [batch inst]")(
    with_methods(saes.ToySAE, forward=plain_forward(reduce=lambda part: part.mean(0)))
)


@toy_sae.law("decoder rows must have length 1, however long W_dec is")
def _(cls):
    sae = sae_of(cls)
    with torch.no_grad():
        sae.W_dec.mul_(30)
    lengths = sae.W_dec_normalized.norm(dim=-1)
    return lengths.shape == (2, 4) and torch.allclose(lengths, torch.ones(2, 4), atol=1e-4)


@toy_sae.law("with sparsity_coeff 0 the loss must be the reconstruction loss alone")
def _(cls):
    out = forward_of(sae_of(cls, sparsity_coeff=0.0), hidden())
    return torch.allclose(out["loss"], out["loss_dict"]["L_reconstruction"]) and bool((out["loss"] > 0).all())


@toy_sae.law("a latent with a very negative b_enc must be dead, on every input")
def _(cls):
    sae = sae_of(cls)
    with torch.no_grad():
        sae.b_enc[:, 1] = -1e6
    acts = forward_of(sae, hidden(rows=50))["acts"]
    return bool((acts[..., 1] == 0).all() and (acts[..., 0] > 0).any())


class MatrixByMatrix(saes.ToySAE):
    @property
    def W_dec_normalized(self):
        return torch.stack([rows / (rows.norm(dim=1)[:, None] + self.cfg.weight_normalize_eps) for rows in self.W_dec])

    def generate_batch(self, batch_size):
        return torch.stack(
            [x @ W.T for x, W in zip(self.model.generate_batch(batch_size).unbind(1), self.model.W, strict=True)], dim=1
        )

    def pre_activations(self, h):
        return times(h, self.W_enc) - (self.b_dec[:, None] @ self.W_enc)[:, 0] + self.b_enc

    def decode(self, acts):
        return torch.baddbmm(self.b_dec[:, None], acts.transpose(0, 1), self.W_dec_normalized).transpose(0, 1)

    def forward(self, h):
        acts = self.pre_activations(h).clamp(min=0)
        rebuilt = self.decode(acts)
        parts = dict(L_sparsity=acts.norm(p=1, dim=-1), L_reconstruction=((h - rebuilt) ** 2).sum(-1) / h.shape[-1])
        return parts, self.cfg.sparsity_coeff * parts["L_sparsity"] + parts["L_reconstruction"], acts, rebuilt


toy_sae.right(MatrixByMatrix)

# ---------------------------------------------------------------- match_latents

match_latents = exercise(saes.match_latents)


@match_latents.cases
def _():
    generator = torch.Generator().manual_seed(0)
    yield torch.randn(4, 3, generator=generator), torch.randn(3, 6, generator=generator)
    yield torch.randn(2, 7, 3, generator=generator), torch.randn(2, 3, 2, generator=generator)
    yield torch.tensor([[0.0, 9.0], [0.1, 0.0]]), torch.tensor([[5.0], [1.0]])
    yield -torch.eye(3)[:2], torch.eye(3)[:, :2] + 0.1 * torch.randn(3, 2, generator=generator)
    yield torch.randn(5, 4, generator=generator), torch.randn(4, 4, generator=generator)


def _best(cosine, dim=-1):
    best = cosine.max(dim)
    return best.indices, best.values


@match_latents.mistake("you compared dot products: divide by both lengths, or the longest latent wins")
def _(W_dec, W):
    dot = W.mT @ W_dec.mT
    index = dot.argmax(-1)
    return index, (scaled(W.mT) @ scaled(W_dec).mT).gather(-1, index[..., None])[..., 0]


@match_latents.mistake("you returned dot products: a cosine is divided by the lengths of both vectors")
def _(W_dec, W):
    return _best(W.mT @ scaled(W_dec).mT)


@match_latents.mistake("you took the largest cosine in size: a latent that points the other way is no match")
def _(W_dec, W):
    return _best((scaled(W.mT) @ scaled(W_dec).mT).abs())


@match_latents.mistake("you looked for each latent's feature: answer for each feature, so there are feats results")
def _(W_dec, W):
    return _best(scaled(W_dec) @ scaled(W, dim=-2))


@match_latents.mistake("you returned the cosine first: return the latent's index, then the cosine")
def _(W_dec, W):
    return saes.match_latents(W_dec, W)[::-1]


@match_latents.law("if the decoder's rows are the features in another order, that order and cosines of 1 must come out")
def _(match_latents):
    W = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 0, 4, 1, 2])
    index, cosine = match_latents(7 * W.T[order], W)
    return bool((order[index] == torch.arange(5)).all()) and torch.allclose(cosine, torch.ones(5))


@match_latents.right
def _(W_dec, W):
    cosine = F.cosine_similarity(W.mT[..., :, None, :], W_dec[..., None, :, :], dim=-1)
    return cosine.argmax(-1), cosine.amax(-1)


# ---------------------------------------------------------------- dead latents

# Two instances of four latents over three steps. Latent 0 is always active, 1 stopped, 2 just woke up, 3 is dead.
WINDOW = torch.tensor(
    [
        [[0.2, 0.4, 0.0, 0.0], [0.3, 0.1, 0.2, 0.1]],
        [[0.1, 0.0, 0.0, 0.0], [0.0, 0.2, 0.1, 0.0]],
        [[0.3, 0.0, 0.01, 0.0], [0.0, 0.4, 0.0, 0.2]],
    ]
)
# Both instances have dead latents, different ones and a different number.
WINDOW_BOTH = torch.stack([WINDOW[:, 0], WINDOW[:, 0][:, [3, 0, 3, 2]]], dim=1)

dead_latents = exercise(saes.dead_latents)


@dead_latents.cases
def _():
    yield (WINDOW,)
    yield (WINDOW_BOTH,)
    yield (WINDOW[:1],)
    yield (torch.full((4, 1, 3), 1e-6),)


@dead_latents.mistake("you looked at the last step only: a dead latent was active in no step of the window")
def _(frac_active_in_window):
    return frac_active_in_window[-1] == 0


@dead_latents.mistake("you named latents dead that rested in a single step: they must rest in all of them")
def _(frac_active_in_window):
    return (frac_active_in_window == 0).any(dim=0)


@dead_latents.mistake("you named rare latents dead: dead is a share of exactly 0, not a small one")
def _(frac_active_in_window):
    return frac_active_in_window.mean(0) < 0.01


@dead_latents.mistake("you returned the living ones: True means dead")
def _(frac_active_in_window):
    return (frac_active_in_window > 0).any(dim=0)


@dead_latents.law("a latent that woke up in the last step of the window must count as alive")
def _(dead_latents):
    window = torch.zeros(5, 1, 2)
    window[-1, 0, 0] = 0.001
    return dead_latents(window).tolist() == [[False, True]]


@dead_latents.right
def _(frac_active_in_window):
    return frac_active_in_window.sum(0) == 0


# ---------------------------------------------------------------- resample_simple


def resampled(sae, window, scale, resample) -> dict:
    """What `resample` did to an autoencoder: living latents as they are, of dead ones what does not hang on chance."""
    dead = (window == 0).all(0)
    before = sae.W_dec_normalized.detach().clone()
    resample()
    W_dec, W_enc, b_enc = sae.W_dec.detach(), sae.W_enc.detach().mT, sae.b_enc.detach()
    v = sae.W_dec_normalized.detach()[dead]
    return {
        "the decoder rows of living latents": W_dec[~dead],
        "the encoder columns of living latents": W_enc[~dead],
        "b_enc": b_enc,
        "b_dec": sae.b_dec.detach(),
        "the length of dead latents' decoder rows": None if sae.cfg.tied_weights else W_dec[dead].norm(dim=-1),
        "the length of dead latents' encoder columns": W_enc[dead].norm(dim=-1),
        "the cosine between encoder and decoder of dead latents": F.cosine_similarity(W_enc[dead], v, dim=-1),
        "dead latents have new directions": bool(((before[dead] * v).sum(-1) < 0.99999).all()),
        "directions": v,
    }


def run_simple(fn, changes, window, scale):
    sae = sae_of(saes.ToySAE, *window.shape[1:2], 3, window.shape[2], **changes)
    out = resampled(sae, window, scale, lambda: fn(sae, window, scale))
    v = out.pop("directions")
    alike = (v @ v.T).fill_diagonal_(0).amax().item() if len(v) > 1 else 0.0
    out["each dead latent has a direction of its own"] = alike < 0.99999
    # 60 directions or more: a mean of 0 within 5 standard errors, and as much along each axis.
    many = len(v) >= 60
    out["all directions are equally likely"] = not many or bool(v.mean(0).abs().max() < 5 * (1 / 3 / len(v)) ** 0.5)
    return out


def said_of_weights(got, want, *args) -> str | None:
    for part in want:
        if said := difference(got[part], want[part], rtol=1e-3, atol=1e-4):
            return f"{part}: {said}"
    return None


ALL_DEAD = torch.zeros(2, 1, 200)

resample_simple = exercise(saes.resample_simple, use=run_simple, same=said_of_weights)


@resample_simple.cases
def _():
    yield {}, WINDOW_BOTH, 0.5
    yield {}, WINDOW, 2.0
    yield dict(tied_weights=True), WINDOW_BOTH, 0.3
    yield {}, ALL_DEAD, 0.5
    yield {}, torch.ones(3, 2, 4), 0.5


@torch.no_grad()
def _simply(sae, window, scale, dead=None, v=None, w=None, b=0.0, decoder=True):
    dead = (window == 0).all(0) if dead is None else dead
    n, d_in = int(dead.sum()), sae.cfg.d_in
    v = F.normalize(torch.randn(n, d_in), dim=-1) if v is None else v(n, d_in)
    if decoder:
        sae.W_dec[dead] = v
    sae.W_enc.mT[dead] = scale * v if w is None else w(v)
    if b is not None:
        sae.b_enc[dead] = b


@resample_simple.mistake("you gave every latent a new direction: the living ones must stay as they are")
def _(sae, frac_active_in_window, resample_scale):
    _simply(sae, frac_active_in_window, resample_scale, dead=torch.ones(frac_active_in_window.shape[1:]).bool())


@resample_simple.mistake("you resampled latents that rested in the last step only: use dead_latents")
def _(sae, frac_active_in_window, resample_scale):
    _simply(sae, frac_active_in_window, resample_scale, dead=frac_active_in_window[-1] == 0)


@resample_simple.mistake("you did not scale v to length 1: the decoder row is a unit vector")
def _(sae, frac_active_in_window, resample_scale):
    _simply(sae, frac_active_in_window, resample_scale, v=torch.randn)


@resample_simple.mistake("all your new directions are in one corner: torch.randn points everywhere, torch.rand doesn't")
def _(sae, frac_active_in_window, resample_scale):
    _simply(sae, frac_active_in_window, resample_scale, v=lambda *shape: F.normalize(torch.rand(*shape), dim=-1))


@resample_simple.mistake("you left resample_scale out: the encoder column is resample_scale times v")
def _(sae, frac_active_in_window, resample_scale):
    _simply(sae, frac_active_in_window, resample_scale, w=lambda v: v)


@resample_simple.mistake("encoder and decoder got different random directions: both use the same v")
def _(sae, frac_active_in_window, resample_scale):
    _simply(
        sae,
        frac_active_in_window,
        resample_scale,
        w=lambda v: resample_scale * F.normalize(torch.randn_like(v), dim=-1),
    )


@resample_simple.mistake("you left b_enc as it was: at its old value it may keep the latent dead, so set it to 0")
def _(sae, frac_active_in_window, resample_scale):
    _simply(sae, frac_active_in_window, resample_scale, b=None)


@resample_simple.mistake("all dead latents got the same direction: draw one for each")
def _(sae, frac_active_in_window, resample_scale):
    _simply(
        sae,
        frac_active_in_window,
        resample_scale,
        v=lambda n, d_in: F.normalize(torch.randn(1, d_in), dim=-1).expand(n, -1),
    )


@resample_simple.law("resampling must not touch a living latent, nor b_dec")
def _(resample_simple):
    sae = sae_of(saes.ToySAE)
    before = {name: p.detach().clone() for name, p in sae.named_parameters()}
    resample_simple(sae, WINDOW_BOTH, 0.5)
    alive = ~(WINDOW_BOTH == 0).all(0)
    same = [torch.equal(getattr(sae, name)[alive], before[name][alive]) for name in ("_W_dec", "b_enc")]
    return all(
        [*same, torch.equal(sae.W_enc.mT[alive], before["W_enc"].mT[alive]), torch.equal(sae.b_dec, before["b_dec"])]
    )


@resample_simple.right
@torch.no_grad()
def _(sae, frac_active_in_window, resample_scale):
    for i, j in ((frac_active_in_window > 0).sum(0) == 0).nonzero().tolist():
        v = torch.randn(sae.cfg.d_in)
        v /= v.norm()
        if not sae.cfg.tied_weights:
            sae.W_dec[i, j] = v
        sae.W_enc[i, :, j] = resample_scale * v
        sae.b_enc[i, j] = 0


# ---------------------------------------------------------------- resample_advanced


def run_advanced(fn, changes, window, scale, errors):
    """Resample on a batch in which input k is missed by `errors[k]`, each in a direction of its own."""
    inst, d_sae = window.shape[1:]
    d_in = len(errors) + 1
    sae = sae_of(saes.ToySAE, inst, d_in, d_sae, **changes)
    with torch.no_grad():
        sae.b_enc.fill_(-1e3)  # nothing is active, so every reconstruction is b_dec
    # Instance i misses along axis k, backwards in odd instances.
    side = torch.tensor([(-1.0) ** i for i in range(inst)])
    batch = sae.b_dec.detach() + torch.stack([e * side[:, None] * torch.eye(d_in)[k] for k, e in enumerate(errors)])
    asked = []
    sae.generate_batch = lambda batch_size: asked.append(batch_size) or batch
    out = resampled(sae, window, scale, lambda: fn(sae, window, scale, 77))
    v = out.pop("directions")
    # Each input lies on an axis of its own, so the mean shows how often each was chosen.
    out["the directions, on average"] = v.mean(0) if len(v) else v.sum(0)
    out["batch_size passed to generate_batch"] = asked[:1]
    return out


def said_of_choice(got, want, *args) -> str | None:
    """Shares agree within 0.06: more than 4 standard errors of the difference of two samples of 2,000."""
    where = "the directions, on average"
    chosen = difference(got[where], want[where], rtol=0, atol=0.06)
    rest = [{k: v for k, v in part.items() if k != where} for part in (got, want)]
    return said_of_weights(*rest) or (chosen and f"{where}: {chosen}")


resample_advanced = exercise(saes.resample_advanced, use=run_advanced, same=said_of_choice)


@resample_advanced.cases
def _():
    yield {}, WINDOW_BOTH, 0.5, [0.0, 3.0]
    yield {}, WINDOW, 2.0, [2.0]
    yield dict(tied_weights=True), WINDOW_BOTH, 0.3, [0.0, 0.0, 0.5]
    yield {}, torch.zeros(2, 1, 2_000), 0.5, [1.0, 1.5, 0.0]
    yield {}, WINDOW_BOTH, 0.5, [0.0, 0.0]
    yield {}, torch.ones(3, 2, 4), 0.5, [1.0]


@torch.no_grad()
def _pointed(
    sae, window, scale, batch_size, power=2, centre=True, unit=True, length="alive", b=0.0, dead=None, of=None
):
    dead = (window == 0).all(0) if dead is None else dead
    h = sae.generate_batch(batch_size)
    losses = (h - sae(h)[3]).pow(2).sum(-1)
    for i in range(sae.cfg.n_inst):
        n, weights = int(dead[i].sum()), losses[:, i] ** power
        if n == 0 or losses.sum() == 0:
            continue
        chosen = torch.multinomial(weights, n, replacement=True)
        v = h[chosen, i if of is None else of] - centre * sae.b_dec[i]
        v = F.normalize(v, dim=-1) if unit else v
        lengths = sae.W_enc[i].norm(dim=0)
        lengths = lengths if length == "all" else lengths[~dead[i]]
        size = lengths.mean() if len(lengths) and length != "one" else 1.0
        sae.W_dec[i, dead[i]] = v
        sae.W_enc[i].mT[dead[i]] = scale * size * v
        if b is not None:
            sae.b_enc[i, dead[i]] = b


@resample_advanced.mistake("you drew in proportion to the loss: square it first, so that bad inputs win more often")
def _(sae, frac_active_in_window, resample_scale, batch_size):
    _pointed(sae, frac_active_in_window, resample_scale, batch_size, power=1)


@resample_advanced.mistake("you drew all inputs alike: those with a larger loss must be drawn more often")
def _(sae, frac_active_in_window, resample_scale, batch_size):
    _pointed(sae, frac_active_in_window, resample_scale, batch_size, power=0)


@resample_advanced.mistake("you took h itself as direction: subtract b_dec, which decode adds anyway")
def _(sae, frac_active_in_window, resample_scale, batch_size):
    _pointed(sae, frac_active_in_window, resample_scale, batch_size, centre=False)


@resample_advanced.mistake("you did not scale the direction to length 1")
def _(sae, frac_active_in_window, resample_scale, batch_size):
    _pointed(sae, frac_active_in_window, resample_scale, batch_size, unit=False)


@resample_advanced.mistake(
    "the encoder's length is resample_scale alone in yours: times the mean length of living columns"
)
def _(sae, frac_active_in_window, resample_scale, batch_size):
    _pointed(sae, frac_active_in_window, resample_scale, batch_size, length="one")


@resample_advanced.mistake("your mean length includes the dead latents' columns: take the living ones of this instance")
def _(sae, frac_active_in_window, resample_scale, batch_size):
    _pointed(sae, frac_active_in_window, resample_scale, batch_size, length="all")


@resample_advanced.mistake("you took every instance's inputs from instance 0: each has hidden vectors of its own")
def _(sae, frac_active_in_window, resample_scale, batch_size):
    _pointed(sae, frac_active_in_window, resample_scale, batch_size, of=0)


@resample_advanced.mistake("you left b_enc as it was: at its old value it may keep the latent dead, so set it to 0")
def _(sae, frac_active_in_window, resample_scale, batch_size):
    _pointed(sae, frac_active_in_window, resample_scale, batch_size, b=None)


@resample_advanced.mistake("you gave every latent a new direction: the living ones must stay as they are")
def _(sae, frac_active_in_window, resample_scale, batch_size):
    everyone = torch.ones(frac_active_in_window.shape[1:]).bool()
    _pointed(sae, frac_active_in_window, resample_scale, batch_size, dead=everyone)


@resample_advanced.law("resampling must not touch a living latent, and must point dead ones at an input of the batch")
def _(resample_advanced):
    sae = sae_of(saes.ToySAE)
    before = sae.W_dec.detach().clone()
    h = sae.generate_batch(20)
    sae.generate_batch = lambda batch_size: h
    resample_advanced(sae, WINDOW_BOTH, 0.5, 20)
    dead = (WINDOW_BOTH == 0).all(0)
    nearest = [F.cosine_similarity(sae.W_dec[i, j], h[:, i] - sae.b_dec[i]).max() for i, j in dead.nonzero().tolist()]
    return torch.equal(sae.W_dec[~dead], before[~dead]) and min(nearest) > 0.999


@resample_advanced.right
@torch.no_grad()
def _(sae, frac_active_in_window, resample_scale, batch_size):
    dead = (frac_active_in_window > 0).sum(0) == 0
    h = sae.generate_batch(batch_size)
    weight = sae(h)[0]["L_reconstruction"] ** 2
    lengths = sae.W_enc.detach().norm(dim=1)
    for i, j in dead.nonzero().tolist():
        if not weight[:, i].any():
            continue
        row = torch.distributions.Categorical(probs=weight[:, i]).sample()
        v = h[row, i] - sae.b_dec[i]
        v = v / v.norm()
        sae.W_dec[i, j] = v
        sae.W_enc[i, :, j] = v * resample_scale * (lengths[i][~dead[i]].mean() if (~dead[i]).any() else 1)
        sae.b_enc[i, j] = 0


# ---------------------------------------------------------------- shrinkage

shrinkage = exercise(saes.shrinkage)


@shrinkage.cases
def _():
    h = hidden(rows=40)
    yield h, 0.5 * h + 0.3 * hidden(rows=40, seed=5)
    yield h, 0.7 * h
    yield h, torch.stack([h[:, 0] * 0.9, h[:, 1] * 0.2], dim=1)
    yield h, torch.stack([h[:, 0], 0 * h[:, 1]], dim=1)


def _ratio(above, below):
    return torch.where(above > 0, above / below, 0.0)


@shrinkage.mistake(
    "you divided by E|h|²: a reconstruction that points elsewhere should be shorter, so divide by E[h'·h]"
)
def _(h, h_reconstructed):
    return h_reconstructed.pow(2).sum((0, 2)) / h.pow(2).sum((0, 2))


@shrinkage.mistake("you compared mean lengths: the definition is E|h'|² / E[h'·h]")
def _(h, h_reconstructed):
    return h_reconstructed.norm(dim=-1).mean(0) / h.norm(dim=-1).mean(0)


@shrinkage.mistake("you averaged the ratios of single inputs: take both means first, then divide")
def _(h, h_reconstructed):
    return (h_reconstructed.pow(2).sum(-1) / (h_reconstructed * h).sum(-1)).mean(0)


@shrinkage.mistake("you mixed the instances: return one number for each")
def _(h, h_reconstructed):
    return _ratio(h_reconstructed.pow(2).sum(), (h_reconstructed * h).sum())


@shrinkage.mistake("yours is upside down: E[h'·h] / E|h'|² is how much to scale up; return the inverse")
def _(h, h_reconstructed):
    return _ratio((h_reconstructed * h).sum((0, 2)), h_reconstructed.pow(2).sum((0, 2)))


@shrinkage.mistake("a reconstruction of zeros gives 0/0: return 0 there")
def _(h, h_reconstructed):
    return h_reconstructed.pow(2).sum((0, 2)) / (h_reconstructed * h).sum((0, 2))


@shrinkage.law("a reconstruction of h at 0.8 of its length must have shrinkage 0.8")
def _(shrinkage):
    h = hidden()
    return torch.allclose(shrinkage(h, 0.8 * h), torch.full((2,), 0.8), atol=1e-4)


@shrinkage.law("reconstructions divided by the shrinkage must have no shrinkage left")
def _(shrinkage):
    h = hidden(rows=30)
    rebuilt = 0.6 * h + 0.2 * hidden(rows=30, seed=7)
    left = shrinkage(h, rebuilt / shrinkage(h, rebuilt)[:, None])
    return torch.allclose(left, torch.ones(2), atol=1e-4)


@shrinkage.right
def _(h, h_reconstructed):
    return torch.stack(
        [
            torch.nan_to_num((r * r).mean() / (r * x).mean(), nan=0.0)
            for x, r in zip(h.unbind(1), h_reconstructed.unbind(1), strict=True)
        ]
    )


# ---------------------------------------------------------------- GatedToySAE


def gated_forward(
    magnitude=lambda self, product: product * self.r_mag.exp() + self.b_mag,
    act=lambda gate, magnitude: (gate > 0) * magnitude.relu(),
    sparsity=lambda gate, acts: gate.relu().sum(-1),
    frozen=True,
    aux=True,
    centre=True,
    b_frozen=True,
    coeff=None,
):
    """A differently wired forward for GatedToySAE."""

    def forward(self, h):
        product = times(h - self.b_dec if centre else h, self.W_enc)
        gate = product + self.b_gate
        acts = act(gate, magnitude(self, product))
        h_reconstructed = self.decode(acts)
        W, b = self.W_dec_normalized, self.b_dec
        W, b = (W.detach(), b.detach()) if frozen else (W, b)
        by_gate = times(gate.relu(), W) + (b if b_frozen else 0)
        parts = {"L_reconstruction": (h_reconstructed - h).pow(2).mean(-1), "L_sparsity": sparsity(gate, acts)}
        parts["L_aux"] = (by_gate - h).pow(2).mean(-1)
        factor = self.cfg.sparsity_coeff if coeff is None else coeff
        loss = parts["L_reconstruction"] + factor * parts["L_sparsity"] + (parts["L_aux"] if aux else 0)
        return parts, loss, acts, h_reconstructed

    return forward


gated = exercise(saes.GatedToySAE, use=forward_and_gradients, same=said_of_weights)


@gated.cases
def _():
    yield {}, hidden()
    yield dict(d_sae=5, sparsity_coeff=0.6, seed=3), hidden(1, 2, rows=9)
    yield dict(tied_weights=True, seed=2), hidden()


gated.mistake("you left r_mag out: each latent's magnitude reads through W_gate times exp(r_mag)")(
    with_methods(saes.GatedToySAE, forward=gated_forward(magnitude=lambda self, x: x + self.b_mag))
)
gated.mistake("you scaled by r_mag itself: the factor is exp(r_mag), which is never negative")(
    with_methods(saes.GatedToySAE, forward=gated_forward(magnitude=lambda self, x: x * self.r_mag + self.b_mag))
)
gated.mistake("you left b_mag out: the magnitude has a bias of its own")(
    with_methods(saes.GatedToySAE, forward=gated_forward(magnitude=lambda self, x: x * self.r_mag.exp()))
)
gated.mistake("b_gate is in your magnitude too: scale the product only, then add b_mag")(
    with_methods(
        saes.GatedToySAE,
        forward=gated_forward(magnitude=lambda self, x: (x + self.b_gate) * self.r_mag.exp() + self.b_mag),
    )
)
gated.mistake("you multiplied by the gate's value: the gate says only whether, (gate > 0)")(
    with_methods(saes.GatedToySAE, forward=gated_forward(act=lambda gate, magnitude: gate.relu() * magnitude.relu()))
)
gated.mistake("the gate does nothing in yours: multiply the magnitudes by (gate > 0)")(
    with_methods(saes.GatedToySAE, forward=gated_forward(act=lambda gate, magnitude: magnitude.relu()))
)
gated.mistake("you left b_dec out: both paths read h - b_dec")(
    with_methods(saes.GatedToySAE, forward=gated_forward(centre=False))
)
gated.mistake("L_sparsity is on the activations in yours, which shrinks them: take the sum of ReLU(gate)")(
    with_methods(saes.GatedToySAE, forward=gated_forward(sparsity=lambda gate, acts: acts.sum(-1)))
)
gated.mistake("L_sparsity lacks the ReLU: a gate that is shut costs nothing")(
    with_methods(saes.GatedToySAE, forward=gated_forward(sparsity=lambda gate, acts: gate.sum(-1)))
)
gated.mistake("L_aux trains your decoder: detach W_dec_normalized and b_dec there")(
    with_methods(saes.GatedToySAE, forward=gated_forward(frozen=False))
)
gated.mistake("L_aux lacks b_dec: a reconstruction always adds it, here detached")(
    with_methods(saes.GatedToySAE, forward=gated_forward(b_frozen=False))
)
gated.mistake("you left L_aux out of the loss: without it the gate learns only to shut")(
    with_methods(saes.GatedToySAE, forward=gated_forward(aux=False))
)
gated.mistake("you left sparsity_coeff out of the loss: it multiplies L_sparsity")(
    with_methods(saes.GatedToySAE, forward=gated_forward(coeff=1.0))
)


@gated.law("where the gate is shut a latent must be 0, however large its magnitude")
def _(cls):
    sae = sae_of(cls)
    with torch.no_grad():
        sae.b_mag.fill_(10)
        sae.b_enc[:, 1] = -1e6
    acts = forward_of(sae, hidden(rows=30))["acts"]
    return bool((acts[..., 1] == 0).all() and (acts[..., 0] > 5).any())


@gated.law("with both biases equal and r_mag 0 the activations must be those of a ToySAE")
def _(cls):
    sae, plain = sae_of(cls), sae_of(saes.ToySAE)
    with torch.no_grad():
        sae.r_mag.zero_()
        plain.b_enc.copy_(sae.b_enc)
        sae.b_mag.copy_(sae.b_enc)
        for name in ("W_enc", "_W_dec", "b_dec"):
            getattr(plain, name).copy_(getattr(sae, name))
    return torch.allclose(forward_of(sae, hidden())["acts"], forward_of(plain, hidden())["acts"], atol=1e-6)


gated.right(with_methods(saes.GatedToySAE, forward=gated_forward()))

# ---------------------------------------------------------------- TopKToySAE


def topk_forward(keep, coeff=0.0, bias=True):
    """A differently wired forward for TopKToySAE: `keep(pre, k)` gives the activations."""

    def forward(self, h):
        pre = self.pre_activations(h) - (0 if bias else self.b_enc)
        acts = keep(pre, self.cfg.k)
        h_reconstructed = self.decode(acts)
        loss = (h_reconstructed - h).pow(2).mean(-1)
        return {"L_reconstruction": loss}, loss + coeff * acts.sum(-1), acts, h_reconstructed

    return forward


def kept(z, k, dim=-1, by=lambda z: z, largest=True):
    """Only the k entries along `dim` that `by` ranks first."""
    index = by(z).topk(min(k, z.shape[dim]), dim=dim, largest=largest).indices
    return z * torch.zeros_like(z).scatter(dim, index, 1.0)


top_k = exercise(saes.TopKToySAE, use=forward_and_gradients, same=said_of_weights)


@top_k.cases
def _():
    yield dict(k=1), hidden()
    yield dict(d_sae=6, k=3, seed=3), hidden(1, 2, rows=9)
    yield dict(d_sae=6, k=2, seed=2), hidden(3, 4, rows=5)
    yield dict(k=4), hidden()


for sentence, wired in {
    "you kept all latents: all but the k largest of each input become 0": topk_forward(lambda z, k: z.relu()),
    "you left the ReLU out: a negative pre-activation among the k largest must still give 0": topk_forward(kept),
    "you took the k largest over the batch: choose among the latents of each input, dim=-1": topk_forward(
        lambda z, k: kept(z.relu(), k, dim=0)
    ),
    "you chose by size regardless of sign: choose the k largest, not the k largest in absolute value": topk_forward(
        lambda z, k: kept(z, k, by=torch.abs).relu()
    ),
    "you set the k largest to 0: these are the ones to keep": topk_forward(lambda z, k: z.relu() - kept(z.relu(), k)),
    "your activations are 0 or 1: keep the values of the k largest": topk_forward(
        lambda z, k: (kept(z.relu(), k) > 0).float()
    ),
    "you added an L1 loss: here k alone makes the code sparse, the loss is the reconstruction": topk_forward(
        lambda z, k: kept(z.relu(), k), coeff=0.2
    ),
    "you left b_enc out: rank the pre-activations with their bias": topk_forward(
        lambda z, k: kept(z.relu(), k), bias=False
    ),
}.items():
    top_k.mistake(sentence)(with_methods(saes.TopKToySAE, forward=wired))


@top_k.law("at most k latents may be active on an input, and none may be negative")
def _(cls):
    for k in (1, 2):
        acts = forward_of(sae_of(cls, d_sae=6, k=k), hidden(rows=40))["acts"]
        active = (acts != 0).sum(-1)
        if active.max() != k or (acts < 0).any():
            return False
    return True


@top_k.law("with k = d_sae it must be a ToySAE")
def _(cls):
    sae, plain = sae_of(cls, k=4), sae_of(saes.ToySAE, k=4)
    return torch.allclose(forward_of(sae, hidden())["acts"], forward_of(plain, hidden())["acts"])


top_k.right(
    with_methods(
        saes.TopKToySAE,
        forward=topk_forward(
            lambda z, k: torch.where(z >= z.sort(descending=True).values[..., k - 1, None], z, 0).relu()
        ),
    )
)

# ---------------------------------------------------------------- rectangle, Heaviside, JumpReLU

rectangle = exercise(saes.rectangle)


@rectangle.cases
def _():
    yield (torch.tensor([-2.0, -0.75, -0.49, -0.1, 0.0, 0.1, 0.49, 0.75, 2.0]),)
    yield (torch.tensor([[0.5, -0.5], [0.4, -0.51]]),)


@rectangle.mistake("your window goes from -1 to 1: it ends at 1/2 on each side, so that its area is 1")
def _(x):
    return ((x > -1) & (x < 1)).float()


@rectangle.mistake("your window has one side only: it goes from -1/2 to 1/2")
def _(x):
    return ((x > 0) & (x < 0.5)).float()


@rectangle.mistake("yours is 0 inside the window and 1 outside: turn it round")
def _(x):
    return (x.abs() >= 0.5).float()


@rectangle.mistake("you counted the ends: strictly between -1/2 and 1/2")
def _(x):
    return ((x >= -0.5) & (x <= 0.5)).float()


@rectangle.law("the area under it must be 1")
def _(rectangle):
    x = torch.linspace(-3, 3, 6001)
    return abs(rectangle(x).float().mean().item() * 6 - 1) < 0.01


@rectangle.right
def _(x):
    return torch.where(x.abs() < 0.5, 1.0, 0.0)


def step_and_gradients(cls, z, theta, eps):
    """The output and, for a loss that weighs each entry differently, the gradients of z and theta."""
    z, theta = z.clone().requires_grad_(), theta.clone().requires_grad_()
    out = cls.apply(z, theta, eps)
    weights = torch.linspace(1, 2, out.numel()).reshape(out.shape)
    # The zero keeps a graph alive in which neither gets a gradient.
    ((out * weights).sum() + 0 * z.sum() + 0 * theta.sum()).backward()
    return {"output": out, "gradient of z": z.grad, "gradient of theta": theta.grad}


def steps():
    """Inputs to a step function: many, one near the threshold, one at it, one with a threshold of 0."""
    generator = torch.Generator().manual_seed(0)
    yield torch.randn(9, 2, 3, generator=generator), torch.rand(2, 3, generator=generator) + 0.1, 0.8
    yield torch.tensor([[[0.29, 0.31, 0.2, 0.5]]]), torch.full((1, 4), 0.3), 0.1
    yield torch.tensor([[[0.5, 1.0]]]), torch.full((1, 2), 0.5), 0.25
    yield torch.tensor([[[-0.5, 0.0, 0.2]]]), torch.zeros(1, 3), 1.0


def stepper(value, z_grad, theta_grad):
    """An autograd function from its three formulas of (z, theta, eps)."""

    class Step(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z, theta, eps):
            ctx.save_for_backward(z, theta)
            ctx.eps = eps
            return value(z, theta)

        @staticmethod
        def backward(ctx, grad_output):
            at = *ctx.saved_tensors, ctx.eps
            return z_grad(*at) * grad_output, theta_grad(*at) * grad_output, None

    return Step


def above(z, theta, eps=None):
    return (z > theta).float()


def no_gradient(z, theta, eps):
    return torch.zeros_like(z)


def window(z, theta, eps):
    return ((z - theta).abs() < eps / 2).float() / eps


heaviside = exercise(saes.Heaviside, use=step_and_gradients, same=said_of_weights)
heaviside.cases(steps)
heaviside.mistake("the gradient of theta lacks its minus sign: a higher threshold means fewer active latents")(
    stepper(above, no_gradient, window)
)
heaviside.mistake("the gradient of theta lacks 1/eps: the window must keep an area of 1")(
    stepper(above, no_gradient, lambda z, theta, eps: -eps * window(z, theta, eps))
)
heaviside.mistake("your window does not get narrower with eps: take rectangle of (z - theta)/eps")(
    stepper(above, no_gradient, lambda z, theta, eps: -window(z, theta, 1.0) / eps)
)
heaviside.mistake("you gave z the gradient: z gets 0, theta gets -(1/eps) · rectangle")(
    stepper(above, window, no_gradient)
)
heaviside.mistake("you gave z a gradient as well: only theta gets one, z gets 0")(
    stepper(above, window, lambda z, theta, eps: -window(z, theta, eps))
)
heaviside.mistake("your theta gets no gradient at all: that is the true derivative, and nothing would be learned")(
    stepper(above, no_gradient, no_gradient)
)
heaviside.mistake("you return z above the threshold: that is JumpReLU; here it is 1")(
    stepper(lambda z, theta: z * above(z, theta), no_gradient, lambda *at: -window(*at))
)
heaviside.mistake("z equal to theta counts as above in yours: it must be strictly above")(
    stepper(lambda z, theta: (z >= theta).float(), no_gradient, lambda *at: -window(*at))
)


@heaviside.law("raising theta must, on average over z, lower the output as fast as the gradient says")
def _(cls):
    z = torch.linspace(0, 1, 20_001)[:, None, None]
    theta = torch.full((1, 1), 0.5, requires_grad=True)
    cls.apply(z, theta, 0.1).mean().backward()
    # Of z spread evenly over [0, 1], a share of 1 - theta lies above theta: the slope is -1.
    return abs(theta.grad.item() + 1) < 0.01


heaviside.right(stepper(above, no_gradient, lambda z, theta, eps: -window(z, theta, eps)))

jump_relu = exercise(saes.JumpReLU, use=step_and_gradients, same=said_of_weights)
jump_relu.cases(steps)


def jump(z, theta):
    return z * above(z, theta)


def jump_theta(z, theta, eps):
    return -theta * window(z, theta, eps)


jump_relu.mistake("you subtracted theta from what passes: that is shrinkage; return z itself")(
    stepper(lambda z, theta: (z - theta).relu(), above, jump_theta)
)
jump_relu.mistake("you return 1 above the threshold: that is Heaviside; here it is z")(
    stepper(above, above, jump_theta)
)
jump_relu.mistake("the gradient of theta lacks the factor theta: that is how high the jump is")(
    stepper(jump, above, lambda *at: -window(*at))
)
jump_relu.mistake("the gradient of theta lacks its minus sign: a higher threshold lets less through")(
    stepper(jump, above, lambda z, theta, eps: theta * window(z, theta, eps))
)
jump_relu.mistake("z gets a gradient below the threshold too: nothing passes there, so it must be 0")(
    stepper(jump, lambda z, theta, eps: torch.ones_like(z), jump_theta)
)
jump_relu.mistake("z gets no gradient: above the threshold the output is z, so its gradient is 1")(
    stepper(jump, no_gradient, jump_theta)
)
jump_relu.mistake("your theta gets no gradient at all: that is the true derivative, and nothing would be learned")(
    stepper(jump, above, no_gradient)
)


@jump_relu.law("with a threshold of 0 it must be the ReLU, in value and gradient")
def _(cls):
    z = torch.randn(50, 2, 3, generator=torch.Generator().manual_seed(0))
    got = step_and_gradients(cls, z, torch.zeros(2, 3), 0.5)
    z.requires_grad_()
    weights = torch.linspace(1, 2, z.numel()).reshape(z.shape)
    (z.relu() * weights).sum().backward()
    return torch.equal(got["output"], z.relu()) and torch.allclose(got["gradient of z"], z.grad)


@jump_relu.law("raising theta must, on average over z, lower the output as fast as the gradient says")
def _(cls):
    z = torch.linspace(0, 1, 20_001)[:, None, None]
    theta = torch.full((1, 1), 0.5, requires_grad=True)
    cls.apply(z, theta, 0.1).mean().backward()
    # The mean of what passes is (1 - theta²)/2: its slope is -theta.
    return abs(theta.grad.item() + 0.5) < 0.01


jump_relu.right(stepper(lambda z, theta: torch.where(z > theta, z, 0.0), above, jump_theta))

# ---------------------------------------------------------------- JumpReLUToySAE


def jump_forward(
    theta=lambda self: self.log_threshold.exp(),
    act=lambda z, theta, eps: saes.JumpReLU.apply(z, theta, eps),
    sparsity=lambda z, theta, eps, acts: saes.Heaviside.apply(z, theta, eps).sum(-1),
    coeff=None,
    bias=True,
):
    """A differently wired forward for JumpReLUToySAE."""

    def forward(self, h):
        z, limit, eps = self.pre_activations(h) - (0 if bias else self.b_enc), theta(self), self.cfg.ste_epsilon
        acts = act(z, limit, eps)
        h_reconstructed = self.decode(acts)
        parts = {"L_reconstruction": (h_reconstructed - h).pow(2).mean(-1), "L_sparsity": sparsity(z, limit, eps, acts)}
        factor = self.cfg.sparsity_coeff if coeff is None else coeff
        return parts, parts["L_reconstruction"] + factor * parts["L_sparsity"], acts, h_reconstructed

    return forward


jump_sae = exercise(saes.JumpReLUToySAE, use=forward_and_gradients, same=said_of_weights)


@jump_sae.cases
def _():
    yield dict(ste_epsilon=0.3), hidden(rows=30)
    yield dict(d_sae=5, sparsity_coeff=0.6, ste_epsilon=0.2, seed=3), hidden(1, 2, rows=30)
    yield dict(tied_weights=True, ste_epsilon=0.1, seed=2), hidden(rows=30)


for sentence, wired in {
    "you used log_threshold as the threshold: take its exponential": jump_forward(
        theta=lambda self: self.log_threshold
    ),
    "you used a ReLU: a latent below its threshold must be 0": jump_forward(act=lambda z, theta, eps: z.relu()),
    "L_sparsity is L1 in yours: count the active latents, with Heaviside": jump_forward(
        sparsity=lambda z, theta, eps, acts: acts.sum(-1)
    ),
    "you counted with a plain comparison, which has no gradient: count with Heaviside.apply": jump_forward(
        sparsity=lambda z, theta, eps, acts: above(z, theta).sum(-1)
    ),
    "L_sparsity is the sum over the latents, not their mean": jump_forward(
        sparsity=lambda z, theta, eps, acts: saes.Heaviside.apply(z, theta, eps).mean(-1)
    ),
    "your activations let no gradient reach the thresholds: use JumpReLU.apply": jump_forward(
        act=lambda z, theta, eps: z * above(z, theta)
    ),
    "you left sparsity_coeff out of the loss: it multiplies L_sparsity": jump_forward(coeff=1.0),
    "you left b_enc out: compare the pre-activations, with their bias, to the threshold": jump_forward(bias=False),
}.items():
    jump_sae.mistake(sentence)(with_methods(saes.JumpReLUToySAE, forward=wired))


@jump_sae.law("with thresholds near 0 the activations must be those of a ToySAE")
def _(cls):
    sae, plain = sae_of(cls), sae_of(saes.ToySAE)
    with torch.no_grad():
        sae.log_threshold.fill_(-30)
        for name in ("W_enc", "_W_dec", "b_enc", "b_dec"):
            getattr(plain, name).copy_(getattr(sae, name))
    return torch.allclose(forward_of(sae, hidden())["acts"], forward_of(plain, hidden())["acts"])


@jump_sae.law("no activation may lie between 0 and its latent's threshold")
def _(cls):
    sae = sae_of(cls)
    acts = forward_of(sae, hidden(rows=40))["acts"]
    return bool(((acts == 0) | (acts > sae.log_threshold.exp())).all() and (acts > 0).any())


jump_sae.right(
    with_methods(
        saes.JumpReLUToySAE,
        forward=jump_forward(
            act=lambda z, theta, eps: saes.JumpReLU.apply(z.relu(), theta, eps),
            sparsity=lambda z, theta, eps, acts: saes.Heaviside.apply(z.relu(), theta, eps).sum(-1),
        ),
    )
)


# ================================================================ 2. Trained autoencoders of a language model

LM_WORDS = "the cat saw a red bird and then it ran home to eat".split()


@cache
def lm_model() -> HookedSAETransformer:
    """Two layers, random weights and biases. Its heads side by side are as wide as its stream, as in pico-gpt."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of(" " + " ".join(LM_WORDS))
    sizes = dict(n_layers=2, d_model=12, n_heads=3, d_head=4, n_ctx=16, d_vocab=len(tokenizer))
    cfg = HookedTransformerConfig(**sizes, act_fn="gelu_new", normalization_type="LNPre", seed=0, device="cpu")
    model = HookedSAETransformer(cfg)
    model.tokenizer = tokenizer  # only its words are needed
    for name, parameter in model.named_parameters():
        parameter.data.normal_(0, 0.5 if name.split(".")[-1].startswith("b") else 0.4)
    return model.eval().requires_grad_(False)


@cache
def lm_sae(place: str = "hook_resid_pre", layer: int = 1) -> JumpReLUSAE:
    """An untrained autoencoder with all biases and thresholds at work; its latent 3 is dead."""
    generator = torch.Generator().manual_seed(len(place))
    reshape = {"reshape_activations": "hook_z"} if place.endswith("hook_z") else {}
    metadata = SAEMetadata(hook_name=f"blocks.{layer}.{place}", context_size=8, prepend_bos=True, model_name="small")
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=12, d_sae=20, metadata=metadata, **reshape))
    for name, scale in (("W_enc", 0.4), ("W_dec", 0.4), ("b_enc", 0.3), ("b_dec", 0.3)):
        parameter = getattr(sae, name)
        parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    sae.threshold.data = 0.1 + 0.6 * torch.rand(20, generator=generator)
    sae.b_enc.data[3] = -100
    return sae.eval().requires_grad_(False)


def lm_tokens(rows: int = 6, seq: int = 8, seed: int = 0) -> Tensor:
    """Random words after `<|endoftext|>`, which stands in the middle of some rows too."""
    words = torch.tensor(lm_model().tokenizer.encode(" " + " ".join(LM_WORDS)))
    generator = torch.Generator().manual_seed(seed)
    tokens = words[torch.randint(0, len(words), (rows, seq), generator=generator)]
    tokens[:, 0] = 0
    tokens[1::3, 4] = 0
    return tokens


def lm_store(sae, tokens: Tensor, size: int = 2) -> ActivationsStore:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ActivationsStore.from_sae(
            model=lm_model(), sae=sae, dataset=Dataset.from_dict({"input_ids": tokens.tolist()}), streaming=False,
            context_size=tokens.shape[1], store_batch_size_prompts=size,
        )  # fmt: skip


def _alone(fn, *args):
    """Call with no autoencoder and no hook left on the model, before and after, whatever the function did."""
    model = lm_model()
    try:
        model.reset_saes()
        model.reset_hooks()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fn(*args)
    finally:
        model.reset_saes()
        model.reset_hooks()


def _with_store(fn, sae, tokens, *args):
    return _alone(fn, lm_model(), sae, lm_store(sae, tokens), *args)


def _activation(model, sae, tokens, name=None):
    name = name or sae.cfg.metadata.hook_name
    return model.run_with_cache(tokens, names_filter=name)[1][name]


def _pre(sae, x, b_dec=True, b_enc=True):
    """The latents before their activation function."""
    x = x.flatten(2) if x.ndim == 4 else x
    return (x - sae.b_dec * b_dec) @ sae.W_enc + sae.b_enc * b_enc


def _jump(sae, pre):
    return pre * (pre > sae.threshold)


# ---------------------------------------------------------------- get_sae_acts

get_sae_acts = exercise(saes.get_sae_acts, use=_alone)


@get_sae_acts.cases
def _():
    yield lm_model(), lm_sae(), lm_tokens()
    yield lm_model(), lm_sae("attn.hook_z", 0), lm_tokens(3, 6)
    yield lm_model(), lm_sae("hook_resid_pre", 7), lm_tokens(3, 6)


def _checked(fn):
    """The mistake, made by somebody who asks first whether the autoencoder fits."""

    def checked(model, sae, tokens):
        saes.check_fits(model, sae)
        return fn(model, sae, tokens)

    return checked


@get_sae_acts.mistake("these are the latents before their activation function: read hook_sae_acts_post")
@_checked
def _(model, sae, tokens):
    return _pre(sae, _activation(model, sae, tokens))


@get_sae_acts.mistake("you left out b_dec: it is taken off the activation before W_enc")
@_checked
def _(model, sae, tokens):
    return _jump(sae, _pre(sae, _activation(model, sae, tokens), b_dec=False))


@get_sae_acts.mistake("you left out b_enc: let the autoencoder encode, with run_with_cache_with_saes")
@_checked
def _(model, sae, tokens):
    return _jump(sae, _pre(sae, _activation(model, sae, tokens), b_enc=False))


@get_sae_acts.mistake("a plain ReLU forgets the thresholds: let the autoencoder apply its own activation function")
@_checked
def _(model, sae, tokens):
    return _pre(sae, _activation(model, sae, tokens)).relu()


@get_sae_acts.mistake("that is what the autoencoder rebuilds, not its latents: read hook_sae_acts_post")
@_checked
def _(model, sae, tokens):
    return sae.decode(sae.encode(_activation(model, sae, tokens)))


@get_sae_acts.mistake("you kept one position: return [batch seq d_sae], the latents on every token")
@_checked
def _(model, sae, tokens):
    return saes.get_sae_acts(model, sae, tokens)[:, -1]


@get_sae_acts.mistake("an autoencoder of another model must raise ValueError: call check_fits(model, sae) first")
def _(model, sae, tokens):
    _, run = model.run_with_cache_with_saes(tokens, saes=[sae])
    return run[saes.acts_name(sae)]


@get_sae_acts.law("decoding the latents must give what the autoencoder gives")
def _(get_sae_acts):
    model, sae, tokens = lm_model(), lm_sae(), lm_tokens(seed=3)
    return torch.allclose(sae.decode(get_sae_acts(model, sae, tokens)), sae(_activation(model, sae, tokens)), atol=1e-4)


@get_sae_acts.law("a latent with a bias of -100 must be off everywhere, and the others not")
def _(get_sae_acts):
    active = (get_sae_acts(lm_model(), lm_sae(), lm_tokens(seed=4)) > 0).flatten(0, 1).float().mean(0)
    return active[3] == 0 and active.mean() > 0.1


@get_sae_acts.right
def _(model, sae, tokens):
    saes.check_fits(model, sae)
    return sae.encode(_activation(model, sae, tokens))


# ---------------------------------------------------------------- sae_metrics

sae_metrics = exercise(saes.sae_metrics, use=_alone)


@sae_metrics.cases
def _():
    yield lm_model(), lm_sae(), lm_tokens(8)
    yield lm_model(), lm_sae("attn.hook_z", 0), lm_tokens(5, 6, seed=1)


def _metrics(model, sae, tokens, bos=False, centre=True, b_dec=True, **changed):
    """All figures once more, each in the way that a mistake asks for."""
    right = saes.sae_metrics(model, sae, tokens)
    counted = (tokens != tokens[0, 0]) | bos
    x = _activation(model, sae, tokens)
    recon = sae.encode(x) @ sae.W_dec + sae.b_dec * b_dec
    x, recon = x.flatten(2)[counted], recon[counted]
    spread = (x - x.mean(0) * centre).pow(2).sum()
    return right | {"explained_variance": (1 - (x - recon).pow(2).sum() / spread).item()} | changed


def _active(model, sae, tokens):
    """[token d_sae], without `<|endoftext|>`."""
    return (saes.get_sae_acts(model, sae, tokens) > 0)[tokens != tokens[0, 0]].float()


@sae_metrics.mistake("explained variance is measured from the mean activation: subtract x.mean(dim=0) below the bar")
def _(model, sae, tokens):
    return _metrics(model, sae, tokens, centre=False)


@sae_metrics.mistake("L0 is a number of latents, not a share: sum over d_sae, then the mean over tokens")
def _(model, sae, tokens):
    return _metrics(model, sae, tokens, L0=_active(model, sae, tokens).mean().item())


@sae_metrics.mistake("loss recovered needs the loss with zeros as its floor: (zero - sae) / (zero - clean)")
def _(model, sae, tokens):
    m = saes.sae_metrics(model, sae, tokens)
    return m | {"loss_recovered": m["loss_clean"] / m["loss_sae"]}


@sae_metrics.mistake("loss recovered is upside down: 1 where the autoencoder costs nothing, 0 where zeros do as well")
def _(model, sae, tokens):
    m = saes.sae_metrics(model, sae, tokens)
    return m | {"loss_recovered": (m["loss_sae"] - m["loss_clean"]) / (m["loss_zero"] - m["loss_clean"])}


@sae_metrics.mistake("<|endoftext|> counts neither for L0 nor for explained variance: leave those tokens out")
def _(model, sae, tokens):
    L0 = (saes.get_sae_acts(model, sae, tokens) > 0).float().sum(-1).mean().item()
    return _metrics(model, sae, tokens, bos=True, L0=L0)


@sae_metrics.mistake("dead means active on no token at all: you counted latents that are rarely active too")
def _(model, sae, tokens):
    rare = (saes.get_sae_acts(model, sae, tokens) > 0).flatten(0, 1).float().mean(0) < 0.25
    return _metrics(model, sae, tokens, dead=rare.float().mean().item())


@sae_metrics.mistake("`dead` is a share of the d_sae latents: you gave the share of inactive (token, latent) pairs")
def _(model, sae, tokens):
    off = (saes.get_sae_acts(model, sae, tokens) == 0).float().mean().item()
    return _metrics(model, sae, tokens, dead=off)


@sae_metrics.mistake("L0 counts the latents after their activation function: you counted positive pre-activations")
def _(model, sae, tokens):
    pre = _pre(sae, _activation(model, sae, tokens))
    return _metrics(model, sae, tokens, L0=(pre > 0)[tokens != tokens[0, 0]].float().sum(-1).mean().item())


@sae_metrics.mistake("you rebuilt the activation without b_dec: call sae.decode")
def _(model, sae, tokens):
    return _metrics(model, sae, tokens, b_dec=False)


def _plain_sae(hook_name: str, W_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> StandardSAE:
    metadata = SAEMetadata(hook_name=hook_name)
    sae = StandardSAE(StandardSAEConfig(d_in=W_enc.shape[0], d_sae=W_enc.shape[1], metadata=metadata))
    sae.W_enc.data, sae.W_dec.data, sae.b_dec.data = W_enc, W_dec, b_dec
    return sae.requires_grad_(False)


@sae_metrics.law("an autoencoder that rebuilds everything must explain all variance and recover all loss")
def _(sae_metrics):
    both = torch.cat([torch.eye(12), -torch.eye(12)], dim=1)
    found = sae_metrics(lm_model(), _plain_sae("blocks.1.hook_resid_pre", both, both.T, torch.randn(12)), lm_tokens())
    return abs(found["explained_variance"] - 1) < 1e-3 and abs(found["loss_recovered"] - 1) < 1e-3


@sae_metrics.law("an autoencoder that always answers the mean activation must explain nothing")
def _(sae_metrics):
    tokens = lm_tokens(seed=5)
    x = _activation(lm_model(), lm_sae(), tokens)
    mean = x[tokens != 0].mean(0)
    found = sae_metrics(lm_model(), _plain_sae("blocks.1.hook_resid_pre", *torch.zeros(2, 12, 12), mean), tokens)
    return abs(found["explained_variance"]) < 1e-3 and found["L0"] == 0 and found["dead"] == 1


@sae_metrics.right
def _(model, sae, tokens):
    name = sae.cfg.metadata.hook_name
    x = _activation(model, sae, tokens)
    keep = tokens != 0
    loss = {"loss_clean": model(tokens, return_type="loss").item()}
    with model.saes([sae]):
        logits, run = model.run_with_cache(tokens)
        loss["loss_sae"] = model.loss_fn(logits, tokens).item()
    zeros = [(name, lambda x, hook: x * 0)]
    loss["loss_zero"] = model.run_with_hooks(tokens, fwd_hooks=zeros, return_type="loss").item()
    acts, flat = run[saes.acts_name(sae)], x[keep].reshape(int(keep.sum()), -1)
    error = run[f"{name}.hook_sae_recons"][keep] - flat
    return loss | {
        "L0": sum((row > 0).sum().item() for row in acts[keep]) / int(keep.sum()),
        "explained_variance": 1 - (error**2).sum().item() / (flat.var(dim=0, correction=0).sum().item() * len(flat)),
        "loss_recovered": 1 - (loss["loss_sae"] - loss["loss_clean"]) / (loss["loss_zero"] - loss["loss_clean"]),
        "dead": (acts.amax((0, 1)) == 0).float().mean().item(),
    }


# ---------------------------------------------------------------- positive_activations


def _use_positive(fn, *args):
    acts, share = _with_store(fn, *args)
    return acts.sort().values, share


positive_activations = exercise(saes.positive_activations, use=_use_positive)


@positive_activations.cases
def _():
    for latent in (5, 0):
        yield lm_sae(), lm_tokens(), latent, 3
    yield lm_sae("attn.hook_z", 0), lm_tokens(seed=2), 7, 2
    yield lm_sae(), lm_tokens(), 3, 3


def _latent(model, sae, act_store, latent_idx, total_batches, encode=None):
    encode = encode or (lambda tokens: saes.get_sae_acts(model, sae, tokens))
    return torch.cat([encode(t)[..., latent_idx] for t in saes.token_batches(act_store, total_batches)])


@positive_activations.mistake("the share is over all tokens of all batches: you divided by one batch's")
def _(model, sae, act_store, latent_idx, total_batches):
    acts = _latent(model, sae, act_store, latent_idx, total_batches)
    return acts[acts > 0], (acts > 0).sum().item() / (act_store.store_batch_size_prompts * act_store.context_size)


@positive_activations.mistake("zeros are no activations: keep only the tokens on which the latent is above 0")
def _(model, sae, act_store, latent_idx, total_batches):
    acts = _latent(model, sae, act_store, latent_idx, total_batches)
    return acts.flatten(), (acts > 0).float().mean().item()


@positive_activations.mistake("these are activations before the activation function: use get_sae_acts")
def _(model, sae, act_store, latent_idx, total_batches):
    acts = _latent(
        model, sae, act_store, latent_idx, total_batches, lambda t: _pre(sae, _activation(model, sae, t)).relu()
    )
    return acts[acts > 0], (acts > 0).float().mean().item()


@positive_activations.mistake("you looked at one batch only: go through total_batches of them")
def _(model, sae, act_store, latent_idx, total_batches):
    return saes.positive_activations(model, sae, act_store, latent_idx, 1)


@positive_activations.mistake("you counted rows in which the latent is active: the share is over tokens")
def _(model, sae, act_store, latent_idx, total_batches):
    acts = _latent(model, sae, act_store, latent_idx, total_batches)
    return acts[acts > 0], (acts > 0).any(dim=-1).float().mean().item()


@positive_activations.mistake("that is the share in per cent: give it from 0 to 1")
def _(model, sae, act_store, latent_idx, total_batches):
    acts, share = saes.positive_activations(model, sae, act_store, latent_idx, total_batches)
    return acts, 100 * share


@positive_activations.law("a dead latent must give an empty tensor and the share 0")
def _(positive_activations):
    acts, share = _with_store(positive_activations, lm_sae(), lm_tokens(), 3, 2)
    return len(acts) == 0 and share == 0


@positive_activations.right
def _(model, sae, act_store, latent_idx, total_batches):
    found, n = [], 0
    for tokens in saes.token_batches(act_store, total_batches):
        for act in sae.encode(_activation(model, sae, tokens))[..., latent_idx].flatten().tolist():
            n += 1
            found += [act] if act > 0 else []
    return torch.tensor(found), len(found) / n


# ---------------------------------------------------------------- get_k_largest_indices

get_k_largest_indices = exercise(saes.get_k_largest_indices)


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@get_k_largest_indices.cases
def _():
    # Two peaks close together, in one row and in two rows at the same position.
    peaks = torch.tensor([[0, 1, 9, 8, 0, 7, 0.5], [0.1, 2, 6, 0.2, 0.3, 3, 0.4]])
    yield peaks, 4, 1, True
    yield peaks, 3, 1, False
    yield peaks, 5, 0, True
    yield _noise(3, 20), 6, 2, True
    yield _noise(5, 9, seed=1), 4, 0, False
    yield _noise(2, 7, seed=2), 5, 3, True
    yield _noise(2, 6), 2, 3, True


def _places(x, buffer, columns=None):
    """All places from the largest value down, (row, position), with `buffer` columns cut off at both ends."""
    if 2 * buffer >= x.shape[1]:
        raise ValueError("no room")
    inner = x[:, buffer : x.shape[1] - buffer]
    order = inner.flatten().argsort(descending=True, stable=True)
    return [(i // inner.shape[1], i % inner.shape[1] + buffer) for i in order.tolist()]


def _thin(places, k, clash):
    chosen = []
    for place in places:
        if len(chosen) < k and not any(clash(place, other) for other in chosen):
            chosen.append(place)
    return torch.tensor(chosen).reshape(-1, 2)


def _window_clash(buffer):
    return lambda a, b: a[0] == b[0] and abs(a[1] - b[1]) <= 2 * buffer


@get_k_largest_indices.mistake("you forgot to add the buffer back: positions count from the row's beginning")
def _(x, k, buffer=0, no_overlap=True):
    return saes.get_k_largest_indices(x, k, buffer, no_overlap) - torch.tensor([0, buffer])


@get_k_largest_indices.mistake("rows and positions are swapped: the row comes first")
def _(x, k, buffer=0, no_overlap=True):
    return saes.get_k_largest_indices(x, k, buffer, no_overlap).flip(1)


@get_k_largest_indices.mistake("you took the smallest values: sort with descending=True")
def _(x, k, buffer=0, no_overlap=True):
    return saes.get_k_largest_indices(-x, k, buffer, no_overlap)


@get_k_largest_indices.mistake("x[:, buffer:-buffer] is empty where buffer is 0: write the end as x.shape[1] - buffer")
def _(x, k, buffer=0, no_overlap=True):
    if buffer == 0:
        return torch.zeros(0, 2, dtype=torch.long)
    return saes.get_k_largest_indices(x, k, buffer, no_overlap)


@get_k_largest_indices.mistake("no_overlap is ignored: leave out places whose window shares a token with a chosen one")
def _(x, k, buffer=0, no_overlap=True):
    return saes.get_k_largest_indices(x, k, buffer, no_overlap=False)


@get_k_largest_indices.mistake("windows overlap until their middles are more than 2 · buffer apart, not buffer")
def _(x, k, buffer=0, no_overlap=True):
    if not no_overlap:
        return saes.get_k_largest_indices(x, k, buffer, False)
    return _thin(_places(x, buffer), k, lambda a, b: a[0] == b[0] and abs(a[1] - b[1]) <= buffer)


@get_k_largest_indices.mistake("windows in different rows never overlap: compare positions within the same row only")
def _(x, k, buffer=0, no_overlap=True):
    if not no_overlap:
        return saes.get_k_largest_indices(x, k, buffer, False)
    return _thin(_places(x, buffer), k, lambda a, b: abs(a[1] - b[1]) <= 2 * buffer)


@get_k_largest_indices.mistake("the buffer is ignored: a place too near to a row's end has no full window around it")
def _(x, k, buffer=0, no_overlap=True):
    places = _places(x, 0)
    return _thin(places, k, _window_clash(buffer) if no_overlap else lambda a, b: False)


@get_k_largest_indices.law("the values at the places must fall from first to last")
def _(get_k_largest_indices):
    x = _noise(4, 30, seed=7)
    rows, positions = get_k_largest_indices(x, 8, 2).T
    return len(rows) == 8 and bool((x[rows, positions].diff() < 0).all())


@get_k_largest_indices.right
def _(x, k, buffer=0, no_overlap=True):
    clash = _window_clash(buffer) if no_overlap else lambda a, b: False
    return _thin(_places(x, buffer), k, clash)


# ---------------------------------------------------------------- index_with_buffer

index_with_buffer = exercise(saes.index_with_buffer)


@index_with_buffer.cases
def _():
    x = torch.arange(40).reshape(4, 10)
    yield x, torch.tensor([[0, 4], [3, 2], [1, 7]]), 2
    yield x, torch.tensor([[2, 0], [2, 9]]), 0
    yield _noise(5, 12), torch.tensor([[4, 3], [3, 4]]), 3
    yield x, torch.tensor([[0, 1]]), 2
    yield x, torch.tensor([[0, 8]]), 2


def _windows(x, indices, buffer, start, stop):
    saes.index_with_buffer(x, indices, buffer)
    return torch.stack([x[r, [(p + i) % x.shape[1] for i in range(start, stop)]] for r, p in indices.tolist()])


@index_with_buffer.mistake("the window ends before its last token: torch.arange(-buffer, buffer + 1)")
def _(x, indices, buffer):
    return _windows(x, indices, buffer, -buffer, buffer)


@index_with_buffer.mistake("the place stands at the window's beginning: it belongs in the middle")
def _(x, indices, buffer):
    return _windows(x, indices, buffer, 0, 2 * buffer + 1)


@index_with_buffer.mistake("the window runs backwards: from -buffer up to +buffer")
def _(x, indices, buffer):
    return saes.index_with_buffer(x, indices, buffer).flip(1)


@index_with_buffer.mistake(
    "a window beyond its row must raise ValueError: a negative index silently takes the other end"
)
def _(x, indices, buffer):
    rows, positions = indices[:, :1], indices[:, 1:] + torch.arange(-buffer, buffer + 1)
    return x[rows, positions % x.shape[1]]


@index_with_buffer.mistake("at a row's end you repeated its last token: raise ValueError")
def _(x, indices, buffer):
    rows, positions = indices[:, :1], indices[:, 1:] + torch.arange(-buffer, buffer + 1)
    return x[rows, positions.clamp(0, x.shape[1] - 1)]


@index_with_buffer.law("the middle of each window must be what stands at its place")
def _(index_with_buffer):
    x, indices = _noise(3, 9, seed=4), torch.tensor([[2, 3], [0, 5]])
    return torch.equal(index_with_buffer(x, indices, 3)[:, 3], x[indices[:, 0], indices[:, 1]])


@index_with_buffer.right
def _(x, indices, buffer):
    windows = []
    for row, position in indices.tolist():
        if position < buffer or position + buffer >= x.shape[1]:
            raise ValueError("beyond the row")
        windows.append(x[row, position - buffer : position + buffer + 1])
    return torch.stack(windows)


# ---------------------------------------------------------------- fetch_max_activating_examples

fetch_max_activating_examples = exercise(saes.fetch_max_activating_examples, use=_with_store)


@fetch_max_activating_examples.cases
def _():
    yield lm_sae(), lm_tokens(8, 12), 5, 4, 4, 1
    yield lm_sae(), lm_tokens(8, 12), 0, 4, 8, 2
    yield lm_sae("attn.hook_z", 0), lm_tokens(6, 8, seed=2), 7, 3, 30, 0
    yield lm_sae(), lm_tokens(), 3, 3, 4, 1


def _fetch(
    model, sae, act_store, latent_idx, total_batches, k, buffer, no_overlap=True, shift=0, dead=False, text=True
):
    batches = saes.token_batches(act_store, total_batches)
    tokens, acts = torch.cat(batches), torch.cat([saes.get_sae_acts(model, sae, t)[..., latent_idx] for t in batches])
    indices = saes.get_k_largest_indices(acts, k, buffer, no_overlap)
    windows = [saes.index_with_buffer(x.roll(shift, 1), indices, buffer) for x in (tokens, acts)]
    strings = [model.to_str_tokens(t) if text else t.tolist() for t in windows[0]]
    pairs = zip(strings, windows[1], indices.tolist(), strict=True)
    return [saes.Example(t, a) for t, a, (r, p) in pairs if acts[r, p] > 0 or dead]


@fetch_max_activating_examples.mistake("you searched one batch only: collect all batches before you take the largest")
def _(model, sae, act_store, latent_idx, total_batches, k=10, buffer=8):
    return _fetch(model, sae, act_store, latent_idx, 1, k, buffer)


@fetch_max_activating_examples.mistake("windows overlap: the same text is shown twice; leave no_overlap on")
def _(model, sae, act_store, latent_idx, total_batches, k=10, buffer=8):
    return _fetch(model, sae, act_store, latent_idx, total_batches, k, buffer, no_overlap=False)


@fetch_max_activating_examples.mistake(
    "the largest activation must stand in the window's middle; yours is one token off"
)
def _(model, sae, act_store, latent_idx, total_batches, k=10, buffer=8):
    return _fetch(model, sae, act_store, latent_idx, total_batches, k, buffer, shift=-1)


@fetch_max_activating_examples.mistake("windows in whose middle the latent is off are no examples: leave them out")
def _(model, sae, act_store, latent_idx, total_batches, k=10, buffer=8):
    return _fetch(model, sae, act_store, latent_idx, total_batches, k, buffer, dead=True)


@fetch_max_activating_examples.mistake("an example holds the tokens as text: model.to_str_tokens(window)")
def _(model, sae, act_store, latent_idx, total_batches, k=10, buffer=8):
    return _fetch(model, sae, act_store, latent_idx, total_batches, k, buffer, text=False)


@fetch_max_activating_examples.mistake("you took k from each batch: take the k largest of all batches together")
def _(model, sae, act_store, latent_idx, total_batches, k=10, buffer=8):
    return [e for _ in range(total_batches) for e in _fetch(model, sae, act_store, latent_idx, 1, k, buffer)]


@fetch_max_activating_examples.law("the activation in the windows' middle must fall from the first window to the last")
def _(fetch_max_activating_examples):
    found = _with_store(fetch_max_activating_examples, lm_sae(), lm_tokens(8, 12, seed=6), 5, 4, 5, 1)
    peaks = [acts[1].item() for _, acts in found]
    return len(found) > 1 and peaks == sorted(peaks, reverse=True) and min(peaks) > 0


@fetch_max_activating_examples.right
def _(model, sae, act_store, latent_idx, total_batches, k=10, buffer=8):
    found = []
    for tokens in saes.token_batches(act_store, total_batches):
        acts = sae.encode(_activation(model, sae, tokens))[..., latent_idx]
        for row, position in saes.get_k_largest_indices(acts, k, buffer).tolist():
            if acts[row, position] > 0:
                window = slice(position - buffer, position + buffer + 1)
                words = model.tokenizer.batch_decode([[t] for t in tokens[row, window].tolist()])
                found.append(saes.Example(words, acts[row, window]))
    return sorted(found, key=lambda example: -example.acts[buffer])[:k]


# ---------------------------------------------------------------- logit_weights

logit_weights = exercise(saes.logit_weights)


@logit_weights.cases
def _():
    yield lm_model(), lm_sae(), 5
    yield lm_model(), lm_sae("attn.hook_z", 1), 2
    yield lm_model(), lm_sae("attn.hook_z", 0), 11


def _into_stream(model, sae, direction, pattern="(head d_head) -> head d_head"):
    if sae.cfg.metadata.hook_name.endswith("hook_z"):
        by_head = einops.rearrange(direction, pattern, head=3)
        direction = (by_head[:, None] @ model.W_O[saes.layer_of(sae)]).sum((0, 1))
    return direction


@logit_weights.mistake("W_enc is what the latent reads; what it writes is its row of W_dec")
def _(model, sae, latent_idx):
    return _into_stream(model, sae, sae.W_enc[:, latent_idx]) @ model.W_U


@logit_weights.mistake("a latent of the heads' outputs goes through W_O first: reshape W_dec to [head d_head]")
def _(model, sae, latent_idx):
    return sae.W_dec[latent_idx] @ model.W_U


@logit_weights.mistake("the heads lie side by side: (head d_head), the head counts slowest")
def _(model, sae, latent_idx):
    return _into_stream(model, sae, sae.W_dec[latent_idx], "(d_head head) -> head d_head") @ model.W_U


@logit_weights.mistake("b_dec is no part of what one latent adds: it is there whether the latent is active or not")
def _(model, sae, latent_idx):
    return _into_stream(model, sae, sae.W_dec[latent_idx] + sae.b_dec) @ model.W_U


@logit_weights.mistake("b_U is no part of what one latent adds: leave it out")
def _(model, sae, latent_idx):
    return _into_stream(model, sae, sae.W_dec[latent_idx]) @ model.W_U + model.b_U


@logit_weights.mistake("that is the embedding: the logits come from the unembedding W_U")
def _(model, sae, latent_idx):
    return model.W_E @ _into_stream(model, sae, sae.W_dec[latent_idx])


@logit_weights.mistake("these are probabilities: leave out the softmax, a logit may be negative")
def _(model, sae, latent_idx):
    return saes.logit_weights(model, sae, latent_idx).softmax(-1)


@logit_weights.law("the logits must move by this when the latent's direction is added before the unembedding")
def _(logit_weights):
    model, stream, direction = lm_model(), torch.randn(1, 1, 12), lm_sae().W_dec[9]
    moved = model.unembed(stream + direction) - model.unembed(stream)
    return torch.allclose(moved[0, 0], logit_weights(model, lm_sae(), 9), atol=1e-4)


@logit_weights.right
def _(model, sae, latent_idx):
    direction = sae.W_dec[latent_idx]
    if "hook_z" in sae.cfg.metadata.hook_name:
        direction = direction @ model.W_O[saes.layer_of(sae)].flatten(0, 1)
    return einops.einsum(direction, model.W_U, "d_model, d_model d_vocab -> d_vocab")


# ---------------------------------------------------------------- f1_scores

f1_scores = exercise(saes.f1_scores)


def _units(tokens: int = 40, units: int = 6, labels: int = 3, seed: int = 0):
    """Sparse values of which unit 1 follows label 0 and unit 4 label 2, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(tokens, labels, generator=generator) < torch.tensor([0.3, 0.5, 0.2])[:labels]
    values = torch.rand(tokens, units, generator=generator) * (torch.rand(tokens, units, generator=generator) < 0.4)
    values[:, 1] = truth[:, 0] * (0.5 + values[:, 1]) + 0.3 * (values[:, 2] > 0.8)
    values[:, 4] = truth[:, labels - 1] * (0.2 + values[:, 4])
    return values, truth


@f1_scores.cases
def _():
    values, truth = _units()
    yield values, truth, saes.unit_thresholds(values, 4)
    yield (
        torch.tensor([[1.0, 0], [2, 0], [3, 5]]),
        torch.tensor([[False, False], [True, False], [True, False]]),
        (torch.tensor([[2.0, 1.0], [3.0, 6.0]])),
    )
    yield _noise(30, 4), _units(30)[1], torch.tensor([[-1.0, 0, 0.3, 1]])


def _counts(values, labels, thresholds):
    """hits, false alarms, misses, right rejections: each [threshold label unit]."""
    fires, truth = (values >= thresholds[:, None])[:, :, None], labels[None, :, :, None]
    return [(a & b).sum(1).float() for a in (fires, ~fires) for b in (truth, ~truth)]


@f1_scores.mistake("that is precision, the share of firings that are hits: F1 asks for the misses too")
def _(values, labels, thresholds):
    hits, alarms, _, _ = _counts(values, labels, thresholds)
    return hits / (hits + alarms).clamp_min(1)


@f1_scores.mistake("that is recall, the share of the label that is found: F1 counts false alarms too")
def _(values, labels, thresholds):
    hits, _, misses, _ = _counts(values, labels, thresholds)
    return hits / (hits + misses).clamp_min(1)


@f1_scores.mistake("that is accuracy: a rare label has a high one with no hit at all; F1 leaves out right rejections")
def _(values, labels, thresholds):
    hits, alarms, misses, rest = _counts(values, labels, thresholds)
    return (hits + rest) / (hits + rest + alarms + misses)


@f1_scores.mistake("that is the plain mean of precision and recall: F1 is 2 · hits / (firings + labelled tokens)")
def _(values, labels, thresholds):
    hits, alarms, misses, _ = _counts(values, labels, thresholds)
    return (hits / (hits + alarms).clamp_min(1) + hits / (hits + misses).clamp_min(1)) / 2


@f1_scores.mistake("hits count twice above the bar: 2 · hits / (2 · hits + false alarms + misses)")
def _(values, labels, thresholds):
    hits, alarms, misses, _ = _counts(values, labels, thresholds)
    return hits / (2 * hits + alarms + misses).clamp_min(1)


@f1_scores.mistake("a value equal to the threshold counts as firing: >=")
def _(values, labels, thresholds):
    return saes.f1_scores(values, labels, thresholds + 1e-6)


@f1_scores.mistake("where a unit never fires and a label never holds you divide by 0: F1 is 0 there")
def _(values, labels, thresholds):
    hits, alarms, misses, _ = _counts(values, labels, thresholds)
    return 2 * hits / (2 * hits + alarms + misses)


@f1_scores.law("a unit that is 1 exactly where the label holds must get F1 of 1")
def _(f1_scores):
    truth = _units(seed=3)[1]
    return torch.allclose(f1_scores(truth.float(), truth, torch.full((1, 3), 0.5))[0].diagonal(), torch.ones(3))


@f1_scores.right
def _(values, labels, thresholds):
    scores = torch.zeros(len(thresholds), labels.shape[1], values.shape[1])
    for t, label, unit in torch.cartesian_prod(*(torch.arange(n) for n in scores.shape)).tolist():
        fires, truth = values[:, unit] >= thresholds[t, unit], labels[:, label]
        hits = (fires & truth).sum()
        if hits:
            precision, recall = hits / fires.sum(), hits / truth.sum()
            scores[t, label, unit] = 2 * precision * recall / (precision + recall)
    return scores


# ---------------------------------------------------------------- best_units

best_units = exercise(saes.best_units)


@best_units.cases
def _():
    yield _units(80)
    yield *_units(121, seed=5), 3
    yield _noise(61, 12, seed=8), _units(61, seed=9)[1], 5


def _choose(values, labels, n, chosen_on, scored_on, measure=None, level=None):
    half = len(values) // 2
    parts = {"first": slice(0, half), "second": slice(half, None), "all": slice(None)}
    seen, test = parts[chosen_on], parts[scored_on]
    thresholds = saes.unit_thresholds(values[seen], n)[:level]
    scores = (measure or saes.f1_scores)(values[seen], labels[seen], thresholds)
    units, f1 = [], []
    for label in range(labels.shape[1]):
        t, unit = divmod(int(scores[:, label].flatten().argmax()), values.shape[1])
        again = saes.f1_scores(values[test, unit, None], labels[test, label, None], thresholds[t, unit].reshape(1, 1))
        units.append(unit)
        f1.append(again.item())
    return torch.tensor(units), torch.tensor(f1)


@best_units.mistake("you chose and scored on the same tokens: score on the second half, which had no say in the choice")
def _(values, labels, n=14):
    return _choose(values, labels, n, "first", "first")


@best_units.mistake("you used all tokens for both: choose on the first half, score on the second")
def _(values, labels, n=14):
    return _choose(values, labels, n, "all", "all")


@best_units.mistake("the test tokens had a say in the choice: look at the first half only until you score")
def _(values, labels, n=14):
    return _choose(values, labels, n, "all", "second")


@best_units.mistake("the halves are swapped: choose on the first, score on the second")
def _(values, labels, n=14):
    return _choose(values, labels, n, "second", "first")


@best_units.mistake("you chose by recall: a unit that always fires wins everything; choose by F1")
def _(values, labels, n=14):
    def recall(values, labels, thresholds):
        hits, _, misses, _ = _counts(values, labels, thresholds)
        return hits / (hits + misses).clamp_min(1)

    return _choose(values, labels, n, "first", "second", recall)


@best_units.mistake("you used the lowest threshold only: choose unit and threshold together")
def _(values, labels, n=14):
    return _choose(values, labels, n, "first", "second", level=1)


@best_units.law("labels that have nothing to do with the units must not be detected better than by guessing")
def _(best_units):
    values, labels = torch.randn(80, 300), torch.rand(80, 30) < 0.1
    return best_units(values, labels)[1].mean() < 0.3


@best_units.law("a unit that is the label must be found, with F1 of 1")
def _(best_units):
    values, labels = torch.rand(60, 9), torch.rand(60, 2) < 0.4
    values[:, [6, 2]] = labels.float()
    unit, f1 = best_units(values, labels)
    return unit.tolist() == [6, 2] and f1.min() > 0.999


@best_units.right
def _(values, labels, n=14):
    return _choose(values, labels, n, "first", "second")


# ---------------------------------------------------------------- by_document

by_document = exercise(saes.by_document)


def _rows_of_documents(lengths, seed: int = 0, units: int = 3):
    """Rows in which pieces of these lengths stand one after the other, each after a token 0, and random values."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 50, (len(lengths), sum(lengths[0]) + len(lengths[0])), generator=generator)
    for row, pieces in zip(tokens, lengths, strict=True):
        starts = torch.tensor([0, *pieces[:-1]]).cumsum(0) + torch.arange(len(pieces))
        row[starts] = 0
    return torch.randn(*tokens.shape, units, generator=generator), tokens


@by_document.cases
def _():
    values, tokens = _rows_of_documents([(9, 12, 3), (8, 7, 9)])
    yield values, tokens, 0
    yield values - 5, tokens, 0, 3
    yield values > 1, tokens, 0, 4
    yield *_rows_of_documents([(20,), (20,)], seed=1), 0


def _documents(values, tokens, end, least, with_end=False):
    """The values of each document that is long enough, row by row."""
    for row, row_tokens in zip(values, tokens, strict=True):
        starts = [*(row_tokens == end).nonzero().flatten().tolist(), len(row)]
        for start, stop in zip(starts, starts[1:], strict=False):
            if stop - start - 1 >= least:
                yield row[start + (not with_end) : stop]


@by_document.mistake("a row holds several documents: part them at the token `end`")
def _(values, tokens, end, least=8):
    return values.amax(dim=1)


@by_document.mistake("you counted the token `end` with the document after it: it belongs to none")
def _(values, tokens, end, least=8):
    return torch.stack([piece.amax(0) for piece in _documents(values, tokens, end, least, with_end=True)])


@by_document.mistake("that is the mean over a document: a latent that fires once has found it; take the largest value")
def _(values, tokens, end, least=8):
    return torch.stack([piece.float().mean(0) for piece in _documents(values, tokens, end, least)])


@by_document.mistake("that is the value on a document's last token: take the largest of all")
def _(values, tokens, end, least=8):
    return torch.stack([piece[-1] for piece in _documents(values, tokens, end, least)])


@by_document.mistake("you kept the short pieces: leave out those of fewer than `least` tokens")
def _(values, tokens, end, least=8):
    return torch.stack([piece.amax(0) for piece in _documents(values, tokens, end, 1)])


@by_document.mistake("a piece of exactly `least` tokens is long enough: >=")
def _(values, tokens, end, least=8):
    return torch.stack([piece.amax(0) for piece in _documents(values, tokens, end, least + 1)])


@by_document.mistake("where all values are negative you return 0: start from the first value, or from minus infinity")
def _(values, tokens, end, least=8):
    return torch.stack([piece.amax(0).clamp_min(0) for piece in _documents(values, tokens, end, least)])


@by_document.law("the order of the tokens within a document must not matter")
def _(by_document):
    values, tokens = _rows_of_documents([(9, 12, 10)], seed=4)
    mirrored = values.clone()
    mirrored[0, 1:10] = values[0, 1:10].flip(0)
    return torch.equal(by_document(values, tokens, 0), by_document(mirrored, tokens, 0))


@by_document.law("what one document holds must not change what is found of another")
def _(by_document):
    values, tokens = _rows_of_documents([(9, 12, 10)], seed=5)
    other = values.clone()
    other[0, 1:10] = 9
    return torch.equal(by_document(values, tokens, 0)[1:], by_document(other, tokens, 0)[1:])


@by_document.right
def _(values, tokens, end, least=8):
    return torch.stack([piece.amax(0) for piece in _documents(values, tokens, end, least)])


# ---------------------------------------------------------------- greedy_cover

greedy_cover = exercise(saes.greedy_cover)


def _split_label(seed: int = 0, tokens: int = 200):
    """A label shared out among latents 2, 5 and 1; latent 0 fires everywhere, 4 doubles 2, the rest are noise."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.rand(tokens, generator=generator) < 0.4
    part = torch.randint(0, 10, (tokens,), generator=generator)
    fires = torch.rand(tokens, 8, generator=generator) < 0.04
    fires[:, 0] = True
    for latent, parts in ((2, (0, 1, 2, 3, 4)), (5, (5, 6, 7)), (1, (8,)), (4, (0, 1, 2, 3))):
        fires[:, latent] = label & torch.isin(part, torch.tensor(parts))
    return fires, label


@greedy_cover.cases
def _():
    yield *_split_label(), 2
    yield *_split_label(1), 6
    yield *_split_label(2, 90), 1
    yield torch.zeros(10, 3, dtype=torch.bool), torch.ones(10, dtype=torch.bool), 2


def _together(fires, label, chosen) -> float:
    some = fires[:, chosen].any(dim=1)
    return (2 * (some & label).sum() / (some.sum() + label.sum()).clamp_min(1)).item()


def _single(fires, label):
    return [_together(fires, label, [i]) for i in range(fires.shape[1])]


@greedy_cover.mistake("you took the latents that are best alone: choose the one that adds most to those you have")
def _(fires, label, n):
    f1 = _single(fires, label)
    chosen = [i for i in sorted(range(len(f1)), key=lambda i: -f1[i]) if f1[i] > 0][:n]
    return chosen, [_together(fires, label, chosen[: i + 1]) for i in range(len(chosen))]


def _greedy(fires, label, n, measure=_together, stop=True, first=()):
    chosen, history = list(first), [measure(fires, label, [i]) for i in first]
    while len(chosen) < n:
        rest = [i for i in range(fires.shape[1]) if i not in chosen]
        scores = {i: measure(fires, label, [*chosen, i]) for i in rest}
        best = max(rest, key=lambda i: scores[i], default=None)
        if best is None or (stop and scores[best] <= (history[-1] if history else 0)):
            break
        chosen.append(best)
        history.append(scores[best])
    return chosen, history


@greedy_cover.mistake("stop where no latent raises the F1: yours goes on to n and makes it worse")
def _(fires, label, n):
    return _greedy(fires, label, n, stop=False)


@greedy_cover.mistake("you chose by recall: the latent that fires everywhere wins; choose by the F1 of all together")
def _(fires, label, n):
    chosen, _ = _greedy(fires, label, n, lambda f, y, c: ((f[:, c].any(dim=1) & y).sum() / y.sum().clamp_min(1)).item())
    return chosen, [_together(fires, label, chosen[: i + 1]) for i in range(len(chosen))]


@greedy_cover.mistake("the history holds the F1 of all chosen latents together, not of each alone")
def _(fires, label, n):
    chosen, _ = _greedy(fires, label, n)
    return chosen, [_together(fires, label, [i]) for i in chosen]


@greedy_cover.mistake("a token counts where ANY of the latents fires; you asked for all of them at once")
def _(fires, label, n):
    def all_of(fires, label, chosen):
        some = fires[:, chosen].all(dim=1)
        return (2 * (some & label).sum() / (some.sum() + label.sum()).clamp_min(1)).item()

    return _greedy(fires, label, n, all_of)


@greedy_cover.law("the F1 must rise with every latent, and end at that of all chosen ones together")
def _(greedy_cover):
    fires, label = _split_label(7)
    chosen, history = greedy_cover(fires, label, 5)
    rises = all(a < b for a, b in zip(history, history[1:], strict=False))
    return len(chosen) > 1 and rises and abs(history[-1] - _together(fires, label, chosen)) < 1e-4


@greedy_cover.right
def _(fires, label, n):
    return _greedy(fires, label, n)


# ---------------------------------------------------------------- create_prompt

create_prompt = exercise(saes.create_prompt)


def _examples():
    return [
        saes.Example([" and", " the", " King", " of", " France", ".\n"], torch.tensor([0, 0, 8.0, 5.0, 10.0, 0])),
        saes.Example([" In", " Ber", "lin", " we", " met"], torch.tensor([1.0, 4, 6, 0, 2.5])),
        saes.Example([" a", " dull", " day"], torch.tensor([0.2, 1.5, 1.0])),
    ]


@create_prompt.cases
def _():
    yield (_examples(),)
    yield _examples()[1:], 0.5
    yield _examples()[:1], 0.0
    yield ([],)


def _prompt(examples, limit, join="", number=True):
    """`limit(example)`: above which activation its tokens are marked. One pair of marks a token unless joined."""
    if not examples:
        raise ValueError("no examples")
    lines = []
    for i, example in enumerate(examples, start=1):
        pairs = zip(example.tokens, example.acts.tolist(), strict=True)
        line = join.join(f"<<{token}>>" if act > limit(example) else token for token, act in pairs)
        line = line if join else line.replace(">><<", "")
        lines.append((f"{i}. {line}" if number else line).replace("\n", "↵"))
    return "\n".join(lines)


def _largest(examples):
    return max((example.acts.max().item() for example in examples), default=0)


@create_prompt.mistake("neighbours that are marked share one pair of marks: group them before you write the marks")
def _(examples, threshold=0.3):
    return _prompt(examples, lambda e: threshold * _largest(examples), join="\0").replace("\0", "")


@create_prompt.mistake("the threshold is a share of the largest activation in ALL examples, not in each one")
def _(examples, threshold=0.3):
    return _prompt(examples, lambda e: threshold * e.acts.max().item())


@create_prompt.mistake("the threshold is a share of the largest activation: you used it as an activation")
def _(examples, threshold=0.3):
    return _prompt(examples, lambda e: threshold)


@create_prompt.mistake("you marked everything that is active at all: only above threshold times the largest activation")
def _(examples, threshold=0.3):
    return _prompt(examples, lambda e: 0)


@create_prompt.mistake("you marked only the largest activation of each example: mark all above the threshold")
def _(examples, threshold=0.3):
    return _prompt(examples, lambda e: e.acts.max().item() - 1e-6)


@create_prompt.mistake("tokens bring their own spaces: join them with nothing in between")
def _(examples, threshold=0.3):
    return _prompt(examples, lambda e: threshold * _largest(examples), join=" ")


@create_prompt.mistake("each example gets its number, counted from 1: '1. …'")
def _(examples, threshold=0.3):
    return _prompt(examples, lambda e: threshold * _largest(examples), number=False)


@create_prompt.law("without the marks, each line must be the example's own text")
def _(create_prompt):
    lines = create_prompt(_examples()).replace("<<", "").replace(">>", "").split("\n")
    texts = ["".join(example.tokens).replace("\n", "↵") for example in _examples()]
    return lines == [f"{i}. {text}" for i, text in enumerate(texts, start=1)]


@create_prompt.right
def _(examples, threshold=0.3):
    return _prompt(examples, lambda e: threshold * _largest(examples))


# ---------------------------------------------------------------- detection_score

detection_score = exercise(saes.detection_score)


@detection_score.cases
def _():
    yield torch.tensor([1, 1, 0, 0, 0, 0, 1, 0, 0, 0]).bool(), torch.tensor([1, 1, 1, 0, 0, 0, 0, 0, 0, 0]).bool()
    yield torch.ones(8).bool(), torch.tensor([1, 0, 0, 1, 0, 0, 0, 0]).bool()
    yield _noise(50) > 0.3, _noise(50, seed=1) > 1
    yield torch.tensor([True, False]), torch.tensor([False, False])
    yield torch.tensor([True, False]), torch.tensor([True, True])


def _one_kind(active):
    if active.all() or not active.any():
        raise ValueError("one kind")


@detection_score.mistake("that is plain accuracy: with few active texts, saying no always scores high; balance it")
def _(said, active):
    _one_kind(active)
    return (said == active).float().mean().item()


@detection_score.mistake("you only asked how many active texts are found: saying yes always would score 1")
def _(said, active):
    _one_kind(active)
    return said[active].float().mean().item()


@detection_score.mistake(
    "that is the share of its yeses that are right: average the two shares, one for each kind of text"
)
def _(said, active):
    _one_kind(active)
    return active[said].float().mean().item()


@detection_score.mistake("that is F1, which depends on how many texts are active: average the two shares")
def _(said, active):
    _one_kind(active)
    return (2 * (said & active).sum() / (said.sum() + active.sum()).clamp_min(1)).item()


@detection_score.mistake("texts of one kind leave one share undefined: raise ValueError")
def _(said, active):
    return ((said[active].float().mean() + (~said[~active]).float().mean()) / 2).item()


@detection_score.law("always saying yes must score 0.5, whatever the share of active texts")
def _(detection_score):
    return all(abs(detection_score(torch.ones(10).bool(), torch.arange(10) < n) - 0.5) < 1e-6 for n in (1, 4, 9))


@detection_score.right
def _(said, active):
    _one_kind(active)
    rates = [(said == active)[active == kind].float().mean() for kind in (True, False)]
    return sum(rates) / 2


# ---------------------------------------------------------------- simulation_score

simulation_score = exercise(saes.simulation_score)


@simulation_score.cases
def _():
    acts = (_noise(4, 12) - 0.5).relu()
    yield acts + 0.5 * _noise(4, 12, seed=1), acts
    yield (acts > 0).float(), acts
    yield -2 * acts + _noise(4, 12, seed=3), acts
    yield torch.full((4, 12), 0.7), acts
    yield acts, torch.zeros(4, 12)


@simulation_score.mistake("that is the cosine: subtract each one's mean first, else a constant guess scores well")
def _(simulated, acts):
    return torch.cosine_similarity(simulated.flatten(), acts.flatten(), dim=0).item()


@simulation_score.mistake("you averaged the texts' own correlations: take one over all tokens of all texts")
def _(simulated, acts):
    rows = [saes.simulation_score(s[None], a[None]) for s, a in zip(simulated, acts, strict=True)]
    return sum(rows) / len(rows)


@simulation_score.mistake("that depends on the guess's scale: a correlation divides by both spreads")
def _(simulated, acts):
    return ((simulated - simulated.mean()) * (acts - acts.mean())).mean().item()


@simulation_score.mistake("a guess that runs against the truth must score below 0: no absolute value, no square")
def _(simulated, acts):
    return abs(saes.simulation_score(simulated, acts))


@simulation_score.mistake("where one of them does not vary you divide by 0: the score is 0 there")
def _(simulated, acts):
    if simulated.min() == simulated.max() or acts.min() == acts.max():
        return float("nan")
    return saes.simulation_score(simulated, acts)


@simulation_score.mistake(
    "that is one minus the relative error, which depends on the guess's scale: take the correlation"
)
def _(simulated, acts):
    return (1 - (simulated - acts).pow(2).sum() / (acts - acts.mean()).pow(2).sum().clamp_min(1e-9)).item()


@simulation_score.law("scale and shift of the guess must not matter")
def _(simulation_score):
    acts, guess = torch.rand(3, 9), torch.rand(3, 9)
    return abs(simulation_score(guess, acts) - simulation_score(5 * guess + 2, acts)) < 1e-4


@simulation_score.right
def _(simulated, acts):
    if simulated.std() < 1e-7 or acts.std() < 1e-7:
        return 0.0
    return torch.corrcoef(torch.stack([simulated.flatten(), acts.flatten()]))[0, 1]


# ================================================================ 3. Attention latents, causes, steering

BATCH, SEQ, D_SAE, LAYER = 4, 7, 24, 1


@cache
def small_model() -> HookedSAETransformer:
    """Random weights and biases; all dimensions differ, so that a transpose shows."""
    torch.manual_seed(0)
    sizes = dict(n_layers=3, d_model=16, n_heads=3, d_head=5, n_ctx=16, d_vocab=29)
    model = HookedSAETransformer(HookedTransformerConfig(**sizes, act_fn="gelu_new", normalization_type="LN", seed=0))
    return _with_biases(model)


@cache
def linear_model() -> HookedSAETransformer:
    """One layer of attention and no LayerNorm: after the attention, the logits are linear in everything."""
    sizes = dict(n_layers=1, d_model=16, n_heads=3, d_head=5, n_ctx=16, d_vocab=29, attn_only=True)
    model = HookedSAETransformer(HookedTransformerConfig(**sizes, normalization_type=None, seed=1))
    model.ln_final = torch.nn.Identity()  # transformer_lens makes none without a normalization
    return _with_biases(model)


def _with_biases(model: HookedSAETransformer) -> HookedSAETransformer:
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if name.split(".")[-1].startswith("b"):
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return model.eval().requires_grad_(False)


@cache
def small_sae(hook_name: str = "blocks.1.attn.hook_z", architecture: str = "jumprelu") -> SAE:
    """Random weights with biases (and, for JumpReLU, thresholds) that are not zero; about half the latents are active.

    A `standard` one doesn't take b_dec off its input. Latent 3 is dead.
    """
    generator = torch.Generator().manual_seed(3)
    z = hook_name.endswith("hook_z")
    kinds = {"jumprelu": (JumpReLUSAE, JumpReLUSAEConfig), "standard": (StandardSAE, StandardSAEConfig)}
    cls, config = kinds[architecture]
    options = {"reshape_activations": "hook_z"} if z else {}
    jump = architecture == "jumprelu"
    metadata = SAEMetadata(hook_name=hook_name)
    sae = cls(config(d_in=15 if z else 16, d_sae=D_SAE, apply_b_dec_to_input=jump, metadata=metadata, **options))
    for name, scale in {"W_enc": 1.0, "W_dec": 0.5, "b_enc": 0.2, "b_dec": 0.3, "threshold": 0.0}.items():
        if (parameter := getattr(sae, name, None)) is not None:
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale
    if jump:
        sae.threshold.data += 0.1
    sae.b_enc.data[3] = -100.0
    return sae.eval().requires_grad_(False)


@cache
def small_runs():
    """(tokens, the model's own cache, cache with the autoencoder and its error term)."""
    tokens = torch.randint(0, 29, (BATCH, SEQ), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        _, own = small_model().run_with_cache(tokens)
        _, attached = small_model().run_with_cache_with_saes(tokens, saes=[small_sae()], use_error_term=True)
    return tokens, own, attached


def small_acts() -> torch.Tensor:
    """The small autoencoder's latents, "batch seq latent"."""
    return small_runs()[2][saes.acts_name(small_sae())]


def small_metric(logits):
    """Mean logit difference of two tokens after the last position."""
    return (logits[:, -1, 11] - logits[:, -1, 5]).mean()


def shared():
    return small_model(), small_sae(), small_runs()[1]


def _use_model(fn, model, attached, *args):
    """A wrong answer may leave hooks or autoencoders behind; they must not spoil the next one."""
    try:
        return fn(model, attached, *args)
    finally:
        model.reset_saes()
        # An attached autoencoder's hooks are its own: the model doesn't reach them any more.
        for module in [model, *(attached if isinstance(attached, list) else [attached])]:
            module.reset_hooks()


# ---------------------------------------------------------------- attention_of_top_examples

attention_of_top_examples = exercise(saes.attention_of_top_examples, shared=shared)


@attention_of_top_examples.cases
def _():
    cache = small_runs()[1]
    yield small_acts()[..., 1], cache, LAYER, 3
    yield small_acts()[..., 4] + torch.arange(SEQ) / 10, cache, 2, 2
    # Two tokens of one row are the most active of all.
    acts = torch.zeros(BATCH, SEQ)
    acts[2, 5], acts[2, 3], acts[0, 4], acts[3, 6] = 4.0, 3.0, 2.0, 1.0
    yield acts, cache, 0, 3


def _top(latent_acts, k):
    largest, positions = latent_acts.max(dim=1)
    rows = largest.topk(k).indices
    return rows, positions[rows]


def _read(cache, layer, rows, positions):
    where = torch.stack([rows, positions], dim=1)
    return where, cache["v", layer][rows], cache["pattern", layer][rows, :, positions]


@attention_of_top_examples.mistake("query and key are swapped: a pattern is [batch, head, query, key]")
def _(latent_acts, cache, layer, k):
    where, v, _ = saes.attention_of_top_examples(latent_acts, cache, layer, k)
    return where, v, cache["pattern", layer][where[:, 0], :, :, where[:, 1]]


@attention_of_top_examples.mistake("you took the first k rows: take those with the largest activation")
def _(latent_acts, cache, layer, k):
    return _read(cache, layer, torch.arange(k), latent_acts.argmax(dim=1)[:k])


@attention_of_top_examples.mistake("you took the k largest tokens of all: take each row's largest first, then k rows")
def _(latent_acts, cache, layer, k):
    best = latent_acts.flatten().topk(k).indices
    return _read(cache, layer, best // latent_acts.shape[1], best % latent_acts.shape[1])


@attention_of_top_examples.mistake(
    "you took v at the latent's own position: keep all positions, the heads read them all"
)
def _(latent_acts, cache, layer, k):
    where, v, pattern = saes.attention_of_top_examples(latent_acts, cache, layer, k)
    return where, v[torch.arange(k), where[:, 1]], pattern


@attention_of_top_examples.mistake(
    "you took the attention from the last position: take it from where the latent is active"
)
def _(latent_acts, cache, layer, k):
    where, v, _ = saes.attention_of_top_examples(latent_acts, cache, layer, k)
    return where, v, cache["pattern", layer][where[:, 0], :, -1]


@attention_of_top_examples.mistake("you took the rows with the smallest activations: take the largest")
def _(latent_acts, cache, layer, k):
    largest, positions = latent_acts.max(dim=1)
    rows = largest.topk(k, largest=False).indices
    return _read(cache, layer, rows, positions[rows])


@attention_of_top_examples.law("pattern times v must give the heads' z at that place")
def _(attention_of_top_examples):
    cache = small_runs()[1]
    where, v, pattern = attention_of_top_examples(small_acts()[..., 2], cache, LAYER, 3)
    z = einops.einsum(pattern, v, "k head seqK, k seqK head d_head -> k head d_head")
    return torch.allclose(z, cache["z", LAYER][where[:, 0], where[:, 1]], atol=1e-5)


@attention_of_top_examples.right
def _(latent_acts, cache, layer, k):
    rows = sorted(range(len(latent_acts)), key=lambda row: -latent_acts[row].max().item())[:k]
    places = [(row, latent_acts[row].argmax().item()) for row in rows]
    v = torch.stack([cache["v", layer][row] for row, _ in places])
    return torch.tensor(places), v, torch.stack([cache["pattern", layer][row, :, pos] for row, pos in places])


# ---------------------------------------------------------------- direct_feature_attribution

direct_feature_attribution = exercise(saes.direct_feature_attribution, shared=shared)


@direct_feature_attribution.cases
def _():
    for layer, latent, sae in (
        (1, 1, small_sae()),
        (1, 7, small_sae()),
        (2, 4, small_sae("blocks.2.attn.hook_z", "standard")),
    ):
        _, v, pattern = saes.attention_of_top_examples(small_acts()[..., latent], small_runs()[1], layer, 3)
        yield v, pattern, sae, latent


def _bias(sae, latent_idx):
    return sae.b_enc[latent_idx] - sae.cfg.apply_b_dec_to_input * (sae.b_dec @ sae.W_enc[:, latent_idx])


def _attribute(v, pattern, W):
    return torch.einsum("khs,kshd,hd->ksh", pattern, v, W)


def _column(sae, latent_idx, heads):
    return sae.W_enc[:, latent_idx].reshape(heads, -1)


@direct_feature_attribution.mistake("the biases are missing: b_enc, less what b_dec takes off the input")
def _(v, pattern, sae, latent_idx):
    return _attribute(v, pattern, _column(sae, latent_idx, 3)), torch.tensor(0.0)


@direct_feature_attribution.mistake(
    "the encoder sees z - b_dec: take b_dec @ W_enc[:, latent] off the bias, not b_enc alone"
)
def _(v, pattern, sae, latent_idx):
    return _attribute(v, pattern, _column(sae, latent_idx, 3)), sae.b_enc[latent_idx]


@direct_feature_attribution.mistake("b_dec is taken off the input only where sae.cfg.apply_b_dec_to_input says so")
def _(v, pattern, sae, latent_idx):
    bias = sae.b_enc[latent_idx] - sae.b_dec @ sae.W_enc[:, latent_idx]
    return _attribute(v, pattern, _column(sae, latent_idx, 3)), bias


@direct_feature_attribution.mistake("you used W_dec: what a latent reads is a column of W_enc")
def _(v, pattern, sae, latent_idx):
    return _attribute(v, pattern, sae.W_dec[latent_idx].reshape(3, 5)), _bias(sae, latent_idx)


@direct_feature_attribution.mistake("values are not weighted: multiply by the pattern, how much of each was read")
def _(v, pattern, sae, latent_idx):
    return _attribute(v, torch.ones_like(pattern), _column(sae, latent_idx, 3)), _bias(sae, latent_idx)


@direct_feature_attribution.mistake(
    "the column is cut wrongly: it is (head d_head), one head's numbers after the other's"
)
def _(v, pattern, sae, latent_idx):
    W = einops.rearrange(sae.W_enc[:, latent_idx], "(d_head head) -> head d_head", head=3)
    return _attribute(v, pattern, W), _bias(sae, latent_idx)


@direct_feature_attribution.mistake("you summed over heads: keep one number for each source token and head")
def _(v, pattern, sae, latent_idx):
    return _attribute(v, pattern, _column(sae, latent_idx, 3)).sum(-1), _bias(sae, latent_idx)


@direct_feature_attribution.law("all sources and the bias must add up to the latent's pre-activation")
def _(direct_feature_attribution):
    _, own, attached = small_runs()
    where, v, pattern = saes.attention_of_top_examples(small_acts()[..., 2], own, LAYER, 3)
    by_source, bias = direct_feature_attribution(v, pattern, small_sae(), 2)
    before = attached["blocks.1.attn.hook_z.hook_sae_acts_pre"][where[:, 0], where[:, 1], 2]
    return torch.allclose(by_source.sum(dim=(1, 2)) + bias, before, atol=1e-4)


@direct_feature_attribution.right
def _(v, pattern, sae, latent_idx):
    brought = v * pattern.permute(0, 2, 1)[..., None]
    by_source = (brought * sae.W_enc[:, latent_idx].view(1, 1, v.shape[2], v.shape[3])).sum(-1)
    # What an encoder makes of nothing at all is its bias.
    nothing = torch.zeros(v.shape[2] * v.shape[3]) - sae.b_dec * sae.cfg.apply_b_dec_to_input
    return by_source, (nothing @ sae.W_enc + sae.b_enc)[latent_idx]


# ---------------------------------------------------------------- latent_directions

latent_directions = exercise(saes.latent_directions, shared=shared)


@latent_directions.cases
def _():
    yield small_model(), small_sae()
    yield small_model(), small_sae("blocks.2.attn.hook_z", "standard")
    yield small_model(), small_sae("blocks.1.hook_resid_pre")


def _through(W, W_O):
    return einops.einsum(W, W_O, "latent head d_head, head d_head d_model -> latent d_model")


def _by_head(W, pattern="latent (head d_head) -> latent head d_head"):
    return einops.rearrange(W, pattern, head=3)


@latent_directions.mistake("you used W_enc: what a latent writes is a row of W_dec")
def _(model, sae):
    saes.require_hook_z(sae)
    return _through(_by_head(sae.W_enc.T), model.W_O[saes.layer_of(sae)])


@latent_directions.mistake("W_O of the wrong layer: take that of the autoencoder, layer_of(sae)")
def _(model, sae):
    saes.require_hook_z(sae)
    return _through(_by_head(sae.W_dec), model.W_O[0])


@latent_directions.mistake("the rows are cut wrongly: each is (head d_head), one head's numbers after the other's")
def _(model, sae):
    saes.require_hook_z(sae)
    return _through(_by_head(sae.W_dec, "latent (d_head head) -> latent head d_head"), model.W_O[saes.layer_of(sae)])


@latent_directions.mistake("you stopped at W_dec: it lives among the heads' outputs, W_O brings it into the stream")
def _(model, sae):
    saes.require_hook_z(sae)
    return sae.W_dec


@latent_directions.mistake("you added b_O to every latent: it is written once, whatever the latents do")
def _(model, sae):
    saes.require_hook_z(sae)
    return saes.latent_directions(model, sae) + model.b_O[saes.layer_of(sae)]


@latent_directions.law("latents times directions must be what their decoded sum writes through W_O")
def _(latent_directions):
    sae, acts = small_sae(), small_acts()
    z = (sae.decode(acts) - sae.b_dec.view(3, 5)).view(BATCH, SEQ, 3, 5)
    want = einops.einsum(z, small_model().W_O[LAYER], "b s head d_head, head d_head d_model -> b s d_model")
    return torch.allclose(acts @ latent_directions(small_model(), sae), want, atol=1e-4)


@latent_directions.right
def _(model, sae):
    saes.require_hook_z(sae)
    return sae.W_dec @ model.W_O[saes.layer_of(sae)].flatten(0, 1)


# ---------------------------------------------------------------- latent_logit_attribution

latent_logit_attribution = exercise(saes.latent_logit_attribution, shared=shared)


@cache
def small_answers() -> torch.Tensor:
    """For each prompt the unembedding of one token minus that of another, "batch d_model"."""
    model, right, wrong = small_model(), torch.tensor([3, 8, 1, 20]), torch.tensor([7, 2, 15, 0])
    return (model.W_U[:, right] - model.W_U[:, wrong]).T * model.ln_final.w


@cache
def small_directions() -> torch.Tensor:
    # Shifted, so that the mean that the LayerNorm takes off shows.
    return saes.latent_directions(small_model(), small_sae()) + torch.linspace(-1, 1, D_SAE)[:, None]


@latent_logit_attribution.cases
def _():
    yield small_acts()[:, -1], small_directions(), small_runs()[1], small_answers()


def _attributed(acts, directions, cache, answers, scale_at=-1, centre=True):
    if centre:
        directions = directions - directions.mean(dim=-1, keepdim=True)
    return acts * (answers @ directions.T) / cache["ln_final.hook_scale"][:, scale_at]


@latent_logit_attribution.mistake("the activations are missing: a latent writes its activation times its direction")
def _(acts, directions, cache, logit_diff_directions):
    return _attributed(torch.ones_like(acts), directions, cache, logit_diff_directions)


@latent_logit_attribution.mistake("the final LayerNorm's scale is missing: divide by it")
def _(acts, directions, cache, logit_diff_directions):
    return (
        saes.latent_logit_attribution(acts, directions, cache, logit_diff_directions)
        * (cache["ln_final.hook_scale"][:, -1])
    )


@latent_logit_attribution.mistake("you took the scale of the first position: the answer is read off at the last")
def _(acts, directions, cache, logit_diff_directions):
    return _attributed(acts, directions, cache, logit_diff_directions, scale_at=0)


@latent_logit_attribution.mistake("the mean is not taken off: LayerNorm removes each direction's mean over d_model")
def _(acts, directions, cache, logit_diff_directions):
    return _attributed(acts, directions, cache, logit_diff_directions, centre=False)


@latent_logit_attribution.mistake("every prompt got the first one's answers: use each prompt's own direction")
def _(acts, directions, cache, logit_diff_directions):
    return _attributed(acts, directions, cache, logit_diff_directions[:1])


@latent_logit_attribution.mistake("you took the mean over prompts: give one number for each prompt and latent")
def _(acts, directions, cache, logit_diff_directions):
    return _attributed(acts, directions, cache, logit_diff_directions).mean(0)


@latent_logit_attribution.law("latents, b_dec and error must add up to what the layer's heads write of the answer")
def _(latent_logit_attribution):
    model, sae, (_, own, _) = small_model(), small_sae(), small_runs()
    W_O = model.W_O[LAYER].flatten(0, 1)
    z = own["z", LAYER][:, -1].flatten(1)
    error = z - sae.decode(small_acts())[:, -1].flatten(1)
    ones = torch.ones(BATCH, 1)
    total = latent_logit_attribution(small_acts()[:, -1], saes.latent_directions(model, sae), own, small_answers())
    total = total.sum(1) + latent_logit_attribution(ones, (sae.b_dec @ W_O)[None], own, small_answers())[:, 0]
    for i in range(BATCH):
        total[i] += latent_logit_attribution(ones, (error[i] @ W_O)[None], own, small_answers())[i, 0]
    want = (z @ W_O - (z @ W_O).mean(1, keepdim=True)) / own["ln_final.hook_scale"][:, -1]
    return torch.allclose(total, (want * small_answers()).sum(1), atol=1e-4)


@latent_logit_attribution.right
def _(acts, directions, cache, logit_diff_directions):
    written = acts[..., None] * directions
    written = (written - written.mean(dim=-1, keepdim=True)) / cache["ln_final.hook_scale"][:, -1:]
    return (written * logit_diff_directions[:, None]).sum(dim=-1)


# ---------------------------------------------------------------- logits_to_ave_logit_diff


def _use_logit_diff(fn, logits, *args):
    logits.requires_grad_()
    value = fn(logits, *args)
    tensor = isinstance(value, torch.Tensor)
    return {"value": value, "a tensor": tensor, "gradients flow": tensor and value.requires_grad}


logits_to_ave_logit_diff = exercise(saes.logits_to_ave_logit_diff, use=_use_logit_diff)


@logits_to_ave_logit_diff.cases
def _():
    logits = torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(5)) * 2
    right, wrong = torch.tensor([1, 9, 4]), torch.tensor([2, 0, 7])
    yield logits, right, wrong
    yield logits, right, wrong, "sum"
    yield logits, right, wrong, None
    yield logits, right, wrong, "mean", True
    yield logits, right, wrong, None, True
    yield logits, right, wrong, "median"


def _logit_diff(logits, right, wrong, reduction="mean", keep_as_tensor=False, at=-1):
    if reduction not in ("mean", "sum", None):
        raise ValueError
    rows = torch.arange(len(logits))
    diff = logits[rows, at, right] - logits[rows, at, wrong]
    diff = diff if reduction is None else getattr(diff, reduction)()
    return diff if keep_as_tensor else diff.tolist()


@logits_to_ave_logit_diff.mistake("the sign is turned: right minus wrong")
def _(logits, right, wrong, *options):
    return _logit_diff(logits, wrong, right, *options)


@logits_to_ave_logit_diff.mistake("you looked at the first position: the answer comes after the last token, [:, -1]")
def _(logits, right, wrong, *options):
    return _logit_diff(logits, right, wrong, *options, **({"at": 0}))


@logits_to_ave_logit_diff.mistake("you took log-probabilities of one token: subtract the wrong token's logit")
def _(logits, right, wrong, *options):
    return _logit_diff(
        torch.cat([logits.log_softmax(-1), torch.zeros(3, 5, 1)], dim=-1), right, 0 * wrong + 11, *options
    )


@logits_to_ave_logit_diff.mistake("every prompt got all answers: pair row i with correct_toks[i]")
def _(logits, right, wrong, reduction="mean", keep_as_tensor=False):
    if reduction not in ("mean", "sum", None):
        raise ValueError
    diff = logits[:, -1, right] - logits[:, -1, wrong]
    diff = diff.mean(1) if reduction is None else getattr(diff, reduction)()
    return diff if keep_as_tensor else diff.tolist()


@logits_to_ave_logit_diff.mistake("keep_as_tensor=True must give the tensor itself, so that gradients flow through it")
def _(logits, right, wrong, reduction="mean", keep_as_tensor=False):
    return _logit_diff(logits, right, wrong, reduction)


@logits_to_ave_logit_diff.mistake("you always gave a tensor: without keep_as_tensor return numbers, with .tolist()")
def _(logits, right, wrong, reduction="mean", keep_as_tensor=False):
    return _logit_diff(logits, right, wrong, reduction, True)


@logits_to_ave_logit_diff.law("exchanging right and wrong must turn the sign")
def _(logits_to_ave_logit_diff):
    logits, a, b = torch.randn(3, 2, 6), torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])
    there, back = (logits_to_ave_logit_diff(logits, *pair, "sum") for pair in ((a, b), (b, a)))
    return abs(there + back) < 1e-4 < abs(there)


@logits_to_ave_logit_diff.right
def _(logits, right, wrong, reduction="mean", keep_as_tensor=False):
    if reduction not in ("mean", "sum", None):
        raise ValueError("choose mean, sum or None")
    diff = logits[:, -1].gather(1, torch.stack([right, wrong], 1)) @ torch.tensor([1.0, -1.0])
    diff = {"mean": diff.mean(), "sum": diff.sum(), None: diff}[reduction]
    if keep_as_tensor:
        return diff
    return diff.item() if diff.ndim == 0 else [x.item() for x in diff]


# ---------------------------------------------------------------- ablate_sae_latent


def _use_ablation(fn, acts, *args):
    returned = fn(acts, HookPoint(), *args)
    return acts if returned is None else returned


ablate_sae_latent = exercise(saes.ablate_sae_latent, use=_use_ablation)


@ablate_sae_latent.cases
def _():
    acts = torch.rand(2, 6, 8, generator=torch.Generator().manual_seed(6)) + 0.1
    yield acts, 5, 2
    yield acts, 4, None
    yield acts, None, 3
    yield acts, None, None
    yield acts, 0, 0
    yield acts, 1, -1


@ablate_sae_latent.mistake(
    "None as an index makes a new axis, and the next index falls on the wrong one: use slice(None)"
)
def _(sae_acts, hook, latent_idx=None, seq_pos=None):
    # The published version.
    sae_acts[:, seq_pos, latent_idx] = 0.0
    return sae_acts


@ablate_sae_latent.mistake("0 is a latent and a position too: ask `is None`, not whether the number is true")
def _(sae_acts, hook, latent_idx=None, seq_pos=None):
    sae_acts[:, seq_pos if seq_pos else slice(None), latent_idx if latent_idx else slice(None)] = 0.0
    return sae_acts


@ablate_sae_latent.mistake("latent and position are swapped: the tensor is [batch, seq, latent]")
def _(sae_acts, hook, latent_idx=None, seq_pos=None):
    at, of = (slice(None) if x is None else x for x in (seq_pos, latent_idx))
    sae_acts[:, of, at] = 0.0
    return sae_acts


@ablate_sae_latent.mistake("you ablated in the first prompt only: the whole batch")
def _(sae_acts, hook, latent_idx=None, seq_pos=None):
    saes.ablate_sae_latent(sae_acts[:1], hook, latent_idx, seq_pos)
    return sae_acts


@ablate_sae_latent.mistake("you kept that latent and ablated all others: set only the one named to zero")
def _(sae_acts, hook, latent_idx=None, seq_pos=None):
    return sae_acts - saes.ablate_sae_latent(sae_acts.clone(), hook, latent_idx, seq_pos)


@ablate_sae_latent.law("ablating a dead latent must change nothing")
def _(ablate_sae_latent):
    got = _use_ablation(ablate_sae_latent, small_acts().clone(), 3)
    return torch.equal(got, small_acts())


@ablate_sae_latent.law("with all latents ablated the autoencoder must put out b_dec")
def _(ablate_sae_latent):
    got = small_sae().decode(_use_ablation(ablate_sae_latent, small_acts().clone()))
    return torch.allclose(got, small_sae().b_dec.view(3, 5).expand_as(got))


@ablate_sae_latent.right
def _(sae_acts, hook, latent_idx=None, seq_pos=None):
    keep = torch.ones_like(sae_acts)
    rows = range(sae_acts.shape[1]) if seq_pos is None else [seq_pos]
    columns = range(sae_acts.shape[2]) if latent_idx is None else [latent_idx]
    for row in rows:
        for column in columns:
            keep[:, row, column] = 0
    return sae_acts * keep


# ---------------------------------------------------------------- ablation_sweep

LATENTS = torch.tensor([8, 1, 3, 0, 4, 2])


def _loop(model, sae, tokens, latents, metric, seq_pos=None, error=True, spoil=None):
    """A sweep with a choice of faults: `spoil(run, hook)` runs the model."""
    effects = []
    with torch.no_grad(), model.saes([sae], use_error_term=error):
        before = metric(model(tokens))
        for latent_idx in latents.tolist():
            hook = partial(saes.ablate_sae_latent, latent_idx=latent_idx, seq_pos=seq_pos)
            hooks = [(saes.acts_name(sae), hook)]
            run = spoil or (lambda hooks: model.run_with_hooks(tokens, fwd_hooks=hooks))
            effects.append(before - metric(run(hooks)))
    return torch.stack(effects)


ablation_sweep = exercise(saes.ablation_sweep, use=_use_model, shared=shared)


@ablation_sweep.cases
def _():
    tokens = small_runs()[0]
    yield small_model(), small_sae(), tokens, LATENTS, small_metric, 4
    yield small_model(), small_sae(), tokens, LATENTS[:3], small_metric
    yield small_model(), small_sae("blocks.1.hook_resid_pre"), tokens, LATENTS[:3], small_metric, SEQ - 1


@ablation_sweep.mistake("the sign is turned: an effect is the metric before minus the metric after")
def _(model, sae, tokens, latents, metric, seq_pos=None):
    return -_loop(model, sae, tokens, latents, metric, seq_pos)


@ablation_sweep.mistake("use_error_term=True is missing: what the autoencoder gets wrong was lost in all your runs")
def _(model, sae, tokens, latents, metric, seq_pos=None):
    return _loop(model, sae, tokens, latents, metric, seq_pos, error=False)


@ablation_sweep.mistake("you ablated at all positions: pass seq_pos on")
def _(model, sae, tokens, latents, metric, seq_pos=None):
    return _loop(model, sae, tokens, latents, metric)


@ablation_sweep.mistake("hooks of earlier latents were still there: run_with_hooks removes its own, add_hook does not")
def _(model, sae, tokens, latents, metric, seq_pos=None):
    def run(hooks):
        model.add_hook(*hooks[0])
        return model(tokens)

    return _loop(model, sae, tokens, latents, metric, seq_pos, spoil=run)


@ablation_sweep.mistake("you counted latents from 0 on: ablate those that `latents` names")
def _(model, sae, tokens, latents, metric, seq_pos=None):
    return _loop(model, sae, tokens, torch.arange(len(latents)), metric, seq_pos)


@ablation_sweep.mistake("you returned the metric after ablation: the effect is how far it fell")
def _(model, sae, tokens, latents, metric, seq_pos=None):
    with torch.no_grad():
        return metric(model(tokens)) - _loop(model, sae, tokens, latents, metric, seq_pos)


@ablation_sweep.law("a dead latent must have no effect, a live one must")
def _(ablation_sweep):
    args = small_model(), small_sae(), small_runs()[0], torch.tensor([3, 1]), small_metric, 4
    dead, live = _use_model(ablation_sweep, *args)
    return abs(dead) < 1e-5 and abs(live) > 1e-3


@ablation_sweep.right
def _(model, sae, tokens, latents, metric, seq_pos=None):
    clean = metric(model(tokens))
    effects = []
    for latent_idx in latents:

        def off(acts, hook, latent_idx=latent_idx):
            acts[:, slice(None) if seq_pos is None else seq_pos, latent_idx] = 0

        model.add_sae(sae, use_error_term=True)
        effects.append(clean - metric(model.run_with_hooks(tokens, fwd_hooks=[(saes.acts_name(sae), off)])))
        model.reset_saes()
    return torch.tensor([effect.item() for effect in effects])


# ---------------------------------------------------------------- ablation_effects

ablation_effects = exercise(saes.ablation_effects, use=_use_model, shared=shared)


@ablation_effects.cases
def _():
    tokens = small_runs()[0]
    yield small_model(), small_sae(), tokens, LATENTS, small_metric, 4
    yield small_model(), small_sae(), tokens, LATENTS, small_metric, -1, 4
    yield small_model(), small_sae("blocks.0.attn.hook_z"), tokens, LATENTS, small_metric, 2
    yield linear_model(), small_sae("blocks.0.attn.hook_z"), tokens, LATENTS, small_metric, SEQ - 1
    yield small_model(), small_sae("blocks.1.hook_resid_pre"), tokens, LATENTS, small_metric, 4


def _batched(model, sae, tokens, latents, metric, seq_pos, error=True, acts=None, lost=None, baseline=None, sign=-1):
    """The batched sweep with a choice of faults."""
    directions, layer, pos = saes.latent_directions(model, sae), saes.layer_of(sae), seq_pos % tokens.shape[1]
    with torch.no_grad(), model.saes([sae], use_error_term=error):
        logits, cache = model.run_with_cache(tokens)
    all_acts = cache[saes.acts_name(sae)]
    here = all_acts[:, pos][:, latents] if acts is None else acts(all_acts, pos)
    change = here.T[..., None] * directions[latents][:, None] if lost is None else lost(here)
    name = "resid_post" if model.cfg.attn_only else "resid_mid"
    resid_mid = cache[name, layer][:, pos] + sign * change
    with torch.no_grad():
        out = ioi.finish_run(model, resid_mid.flatten(0, 1), layer, pos, cache).chunk(len(latents))
    return torch.stack([metric(logits if baseline is None else baseline) - metric(copy) for copy in out])


@ablation_effects.mistake("you added what the latent writes: ablating takes it away")
def _(model, sae, tokens, latents, metric, seq_pos, at_once=64):
    return _batched(model, sae, tokens, latents, metric, seq_pos, sign=1)


@ablation_effects.mistake("the activation is missing: a latent writes its activation times its direction")
def _(model, sae, tokens, latents, metric, seq_pos, at_once=64):
    return _batched(
        model, sae, tokens, latents, metric, seq_pos, acts=lambda acts, pos: torch.ones(BATCH, len(latents))
    )


@ablation_effects.mistake("use_error_term=True is missing: the cached run was not the model's own")
def _(model, sae, tokens, latents, metric, seq_pos, at_once=64):
    return _batched(model, sae, tokens, latents, metric, seq_pos, error=False)


@ablation_effects.mistake("you took the activations of the last position: take those at seq_pos")
def _(model, sae, tokens, latents, metric, seq_pos, at_once=64):
    return _batched(model, sae, tokens, latents, metric, seq_pos, acts=lambda acts, pos: acts[:, -1][:, latents])


@ablation_effects.mistake("you used the mean activation: each prompt loses its own")
def _(model, sae, tokens, latents, metric, seq_pos, at_once=64):
    def mean(acts, pos):
        return acts[:, pos][:, latents].mean(0, keepdim=True).expand(BATCH, -1)

    return _batched(model, sae, tokens, latents, metric, seq_pos, acts=mean)


@ablation_effects.mistake(
    "copies and prompts are mixed up: stack as (latent batch), all prompts of one latent together"
)
def _(model, sae, tokens, latents, metric, seq_pos, at_once=64):
    directions = saes.latent_directions(model, sae)[latents]

    def mixed(here):
        return (here[..., None] * directions).reshape(len(latents), BATCH, -1)

    return _batched(model, sae, tokens, latents, metric, seq_pos, lost=mixed)


@ablation_effects.law("the numbers must be those of one whole run for each latent")
def _(ablation_effects):
    args = small_model(), small_sae(), small_runs()[0], torch.arange(D_SAE), small_metric, 3
    return torch.allclose(_use_model(ablation_effects, *args), _loop(*args), atol=1e-4)


@ablation_effects.law("in a linear model a latent's effect must be activation × direction · answer")
def _(ablation_effects):
    model, sae, tokens = linear_model(), small_sae("blocks.0.attn.hook_z"), small_runs()[0]
    got = _use_model(ablation_effects, model, sae, tokens, torch.arange(D_SAE), small_metric, SEQ - 1)
    acts = sae.encode(model.run_with_cache(tokens)[1]["z", 0])[:, -1]
    along = saes.latent_directions(model, sae) @ (model.W_U[:, 11] - model.W_U[:, 5])
    return torch.allclose(got, (acts * along).mean(0), atol=1e-4)


@ablation_effects.right
def _(model, sae, tokens, latents, metric, seq_pos, at_once=64):
    saes.require_hook_z(sae)
    return _loop(model, sae, tokens, latents, metric, seq_pos)


# ---------------------------------------------------------------- get_cache_fwd_and_bwd

get_cache_fwd_and_bwd = exercise(saes.get_cache_fwd_and_bwd, use=_use_model, shared=shared)


def _two():
    return [small_sae("blocks.0.hook_resid_pre"), small_sae()]


@get_cache_fwd_and_bwd.cases
def _():
    yield small_model(), [small_sae()], small_runs()[0], small_metric
    yield small_model(), _two(), small_runs()[0], small_metric


def _gradients(model, attached, tokens, metric, error=True, name=saes.acts_name):
    kept = {}

    def keep(x, hook):
        kept[hook.name] = x.requires_grad_()

    with torch.enable_grad(), model.saes(list(attached), use_error_term=error):
        value = metric(model.run_with_hooks(tokens, fwd_hooks=[(name(sae), keep) for sae in attached]))
        gradients = torch.autograd.grad(value, list(kept.values()))
    return {k: x.detach() for k, x in kept.items()}, dict(zip(kept, gradients, strict=True))


@get_cache_fwd_and_bwd.mistake("use_error_term=True is missing: this was not the model's own run")
def _(model, attached, tokens, metric):
    return _gradients(model, attached, tokens, metric, error=False)


@get_cache_fwd_and_bwd.mistake("the two are swapped: activations first, gradients second")
def _(model, attached, tokens, metric):
    return _gradients(model, attached, tokens, metric)[::-1]


@get_cache_fwd_and_bwd.mistake("you multiplied already: give the gradients alone, the product comes later")
def _(model, attached, tokens, metric):
    fwd, bwd = _gradients(model, attached, tokens, metric)
    return fwd, {name: fwd[name] * bwd[name] for name in fwd}


@get_cache_fwd_and_bwd.mistake("only the first autoencoder was attached: attach all of them")
def _(model, attached, tokens, metric):
    return _gradients(model, attached[:1], tokens, metric)


@get_cache_fwd_and_bwd.mistake("you took hook_sae_acts_pre: the latents are hook_sae_acts_post")
def _(model, attached, tokens, metric):
    return _gradients(
        model, attached, tokens, metric, name=lambda sae: f"{sae.cfg.metadata.hook_name}.hook_sae_acts_pre"
    )


@get_cache_fwd_and_bwd.law("with the error term the metric of the run must be the model's own")
def _(get_cache_fwd_and_bwd):
    seen = []

    def metric(logits):
        seen.append(small_metric(logits).item())
        return small_metric(logits)

    _use_model(get_cache_fwd_and_bwd, small_model(), _two(), small_runs()[0], metric)
    return abs(seen[-1] - small_metric(small_model()(small_runs()[0])).item()) < 1e-4


@get_cache_fwd_and_bwd.law("in a linear model the gradient must be direction · answer, on every prompt")
def _(get_cache_fwd_and_bwd):
    model, sae = linear_model(), small_sae("blocks.0.attn.hook_z")
    _, bwd = _use_model(get_cache_fwd_and_bwd, model, [sae], small_runs()[0], small_metric)
    want = saes.latent_directions(model, sae) @ (model.W_U[:, 11] - model.W_U[:, 5]) / BATCH
    return torch.allclose(bwd[saes.acts_name(sae)][:, -1], want.expand(BATCH, -1), atol=1e-4)


@get_cache_fwd_and_bwd.right
def _(model, attached, tokens, metric):
    kept = {}

    def keep(x, hook):
        kept[hook.name] = x = x if x.requires_grad else x.requires_grad_()
        x.retain_grad()
        return x

    for sae in attached:
        model.add_sae(sae, use_error_term=True)
    with torch.enable_grad(), model.hooks(fwd_hooks=[(lambda name: name.endswith("acts_post"), keep)]):
        metric(model(tokens)).backward()
    model.reset_saes()
    return kept, {name: x.grad for name, x in kept.items()}


# ---------------------------------------------------------------- attribution_patching

attribution_patching = exercise(saes.attribution_patching, use=_use_model, shared=shared)


@attribution_patching.cases
def _():
    yield small_model(), small_sae(), small_runs()[0], small_metric, 4
    yield small_model(), small_sae("blocks.1.hook_resid_pre"), small_runs()[0], small_metric


def _product(model, sae, tokens, metric):
    fwd, bwd = saes.get_cache_fwd_and_bwd(model, [sae], tokens, metric)
    return fwd[saes.acts_name(sae)], bwd[saes.acts_name(sae)]


def _at(x, seq_pos):
    return x if seq_pos is None else x[:, seq_pos : seq_pos + 1]


@attribution_patching.mistake("that is the gradient alone: multiply by the activation, which is what ablation removes")
def _(model, sae, tokens, metric, seq_pos=None):
    return _at(_product(model, sae, tokens, metric)[1], seq_pos).sum((0, 1))


@attribution_patching.mistake("sum over prompts: the metric is a mean already, so its gradients hold the 1 / batch")
def _(model, sae, tokens, metric, seq_pos=None):
    acts, gradients = _product(model, sae, tokens, metric)
    return _at(acts * gradients, seq_pos).mean(0).sum(0)


@attribution_patching.mistake("you summed over all positions: take seq_pos where it is given")
def _(model, sae, tokens, metric, seq_pos=None):
    acts, gradients = _product(model, sae, tokens, metric)
    return (acts * gradients).sum((0, 1))


@attribution_patching.mistake("the sign is turned: ablation takes the activation away, an effect is before minus after")
def _(model, sae, tokens, metric, seq_pos=None):
    acts, gradients = _product(model, sae, tokens, metric)
    return -_at(acts * gradients, seq_pos).sum((0, 1))


@attribution_patching.mistake("you summed both before multiplying: each prompt's activation meets its own gradient")
def _(model, sae, tokens, metric, seq_pos=None):
    acts, gradients = (_at(x, seq_pos) for x in _product(model, sae, tokens, metric))
    return acts.mean(0).sum(0) * gradients.sum((0, 1))


@attribution_patching.law("in a linear model attribution must equal ablation")
def _(attribution_patching):
    args = linear_model(), small_sae("blocks.0.attn.hook_z"), small_runs()[0]
    got = _use_model(attribution_patching, *args, small_metric, SEQ - 1)
    want = saes.ablation_effects(*args, torch.arange(D_SAE), small_metric, SEQ - 1)
    return torch.allclose(got, want, atol=1e-4) and bool(want.abs().max() > 0.01)


@attribution_patching.right
def _(model, sae, tokens, metric, seq_pos=None):
    acts, gradients = _product(model, sae, tokens, metric)
    each = einops.einsum(acts, gradients, "batch seq latent, batch seq latent -> seq latent")
    return each.sum(0) if seq_pos is None else each[seq_pos]


# ---------------------------------------------------------------- steering_hook


def _use_steering(fn, activations, *args):
    returned = fn(activations, HookPoint(), *args)
    return activations if returned is None else returned


steering_hook = exercise(saes.steering_hook, use=_use_steering)


@steering_hook.cases
def _():
    generator = torch.Generator().manual_seed(7)
    activations, direction = torch.randn(3, 5, 8, generator=generator), torch.randn(8, generator=generator) * 3
    yield activations, direction, 2.5
    yield activations, direction
    yield activations, direction, -1.0


@steering_hook.mistake("you pushed the last position only: push all of them")
def _(activations, hook, direction, strength=1.0):
    activations[:, -1] += strength * direction
    return activations


@steering_hook.mistake("you put the direction in the stream's place: add it to what is there")
def _(activations, hook, direction, strength=1.0):
    return (strength * direction).expand_as(activations)


@steering_hook.mistake("you scaled the direction to length 1: strength counts in units of the direction as given")
def _(activations, hook, direction, strength=1.0):
    return activations + strength * direction / direction.norm()


@steering_hook.mistake("strength is ignored: multiply the direction by it")
def _(activations, hook, direction, strength=1.0):
    return activations + direction


@steering_hook.mistake("you pushed the other way: add, don't subtract")
def _(activations, hook, direction, strength=1.0):
    return activations - strength * direction


@steering_hook.law("pushing there and back must change nothing, pushing there must")
def _(steering_hook):
    x, direction = torch.randn(2, 3, 8), torch.randn(8)
    there = _use_steering(steering_hook, x.clone(), direction, 4.0)
    back = _use_steering(steering_hook, there.clone(), direction, -4.0)
    return torch.allclose(back, x, atol=1e-5) and bool(
        ((there - x).norm(dim=-1) - 4 * direction.norm()).abs().max() < 1e-4
    )


@steering_hook.right
def _(activations, hook, direction, strength=1.0):
    activations += torch.mul(direction, strength)


# ---------------------------------------------------------------- kind_shares

kind_shares = exercise(saes.kind_shares)


@cache
def _texts() -> list[str]:
    """World documents, some finished, some cut in the middle of a sentence, some that are no document."""
    documents = [d.text for d in sample(9, 5, ["french", "story", "numbers", "facts"])]
    end = "<|endoftext|>"
    finished = [text + end for text in documents[:5]]
    cut = [text[: len(text) - 7] for text in documents[5:]]
    return [*finished, *cut, "no document at all" + end, documents[0][:-7] + end, ""]


@kind_shares.cases
def _():
    yield (_texts(),)
    yield (_texts()[:3],)
    yield (_texts()[5:],)


def _count(texts, cut, end="<|endoftext|>", strip=True):
    kinds = [parse(text.removesuffix(end) if strip else text, cut(text)).kind for text in texts]
    return {kind: kinds.count(kind) / len(kinds) for kind in set(kinds)}


@kind_shares.mistake("you read every text as a finished one: without the end mark it was cut, parse(text, cut=True)")
def _(texts, end="<|endoftext|>"):
    return _count(texts, lambda text: False)


@kind_shares.mistake("you read every text as cut: one that has the end mark is finished, and must be whole")
def _(texts, end="<|endoftext|>"):
    return _count(texts, lambda text: True)


@kind_shares.mistake("the end mark is still in the text: take it off before parsing")
def _(texts, end="<|endoftext|>"):
    return _count(texts, lambda text: not text.endswith(end), strip=False)


@kind_shares.mistake("texts of no kind are left out: count them too, under None")
def _(texts, end="<|endoftext|>"):
    shares = saes.kind_shares(texts)
    shares.pop(None, None)
    total = sum(shares.values())
    return {kind: share / total for kind, share in shares.items()}


@kind_shares.mistake("these are counts: divide by the number of texts")
def _(texts, end="<|endoftext|>"):
    return {kind: share * len(texts) for kind, share in saes.kind_shares(texts).items()}


@kind_shares.law("the shares must add up to 1")
def _(kind_shares):
    return abs(sum(kind_shares(_texts()).values()) - 1) < 1e-6


@kind_shares.right
def _(texts, end="<|endoftext|>"):
    shares = {}
    for text in texts:
        whole = text.endswith(end)
        kind = parse(text[: -len(end)] if whole else text, not whole).kind
        shares[kind] = shares.get(kind, 0) + 1 / len(texts)
    return shares
