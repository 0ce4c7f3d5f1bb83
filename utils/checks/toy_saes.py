"""What is asked of a learner's functions in chapter 07."""

import torch
from torch import Tensor
from torch.nn import functional as F

from utils import toy_saes
from utils.checks.compare import difference
from utils.checks.engine import Chapter
from utils.runtime import device
from utils.superposition import ToyModel, ToyModelConfig

chapter = Chapter(toy_saes)
exercise, check, hint, compare = chapter.exercise, chapter.check, chapter.hint, chapter.compare


def sae_of(cls, inst: int = 2, d_in: int = 3, d_sae: int = 4, feats: int = 5, seed: int = 0, **changes):
    """An autoencoder of class `cls` with seeded random weights and biases other than 0, on a random toy model.

    The toy model gives the same features whenever it is asked.
    """
    generator = torch.Generator().manual_seed(seed)
    model = ToyModel(ToyModelConfig(inst, feats, d_in), 0.4)
    sae = cls(toy_saes.ToySAEConfig(inst, d_in, d_sae, **changes), model)
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
    return out | {"gradients": gradients_of(sae, out["loss"])}


def gradients_of(sae, loss) -> dict:
    """Of the mean loss, with respect to each weight that is trained."""
    if loss.requires_grad:
        loss.mean(0).sum().backward()
    trained = {name: p for name, p in sae.named_parameters() if p.requires_grad}
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in trained.items()}


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
        "gradients of the loss": gradients_of(sae, sae(h)[1]),
    }


def said_of_method(got, want, *args) -> str | None:
    """Name the method that is off."""
    for method in want:
        if said := difference(got[method], want[method]):
            return f"`{method}`: {said}"
    return None


FROZEN = {"model": "the toy model is frozen"}
RESAMPLED = {"sae": "its dead latents get new weights"}
toy_sae = exercise(toy_saes.ToySAE, use=run_sae, same=said_of_method, in_place=FROZEN)


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
        toy_saes.ToySAE,
        W_dec_normalized=property(
            lambda self: self.W_dec / (self.W_dec.norm(dim=-2, keepdim=True) + self.cfg.weight_normalize_eps)
        ),
    )
)
toy_sae.mistake("`W_dec_normalized`: you divided by the squared length: a row must come out with length 1")(
    with_methods(
        toy_saes.ToySAE,
        W_dec_normalized=property(
            lambda self: self.W_dec / (self.W_dec.pow(2).sum(-1, keepdim=True) + self.cfg.weight_normalize_eps)
        ),
    )
)
toy_sae.mistake("`W_dec_normalized`: you left weight_normalize_eps out: add it to the length before you divide")(
    with_methods(toy_saes.ToySAE, W_dec_normalized=property(lambda self: scaled(self.W_dec)))
)
toy_sae.mistake("`generate_batch`: you returned the features x: the autoencoder reads hidden vectors h = W x")(
    with_methods(toy_saes.ToySAE, generate_batch=lambda self, n: self.model.generate_batch(n))
)
toy_sae.mistake("`generate_batch`: you returned the toy model's output: take W x, before it is rebuilt")(
    with_methods(toy_saes.ToySAE, generate_batch=lambda self, n: self.model(self.model.generate_batch(n)))
)
toy_sae.mistake("`pre_activations`: you left b_dec out: subtract it from h first")(
    with_methods(toy_saes.ToySAE, pre_activations=lambda self, h: times(h, self.W_enc) + self.b_enc)
)
toy_sae.mistake("`pre_activations`: you left b_enc out: add it after the product")(
    with_methods(toy_saes.ToySAE, pre_activations=lambda self, h: times(h - self.b_dec, self.W_enc))
)
toy_sae.mistake("`pre_activations`: you added b_dec: subtract it, for decode adds it again")(
    with_methods(toy_saes.ToySAE, pre_activations=lambda self, h: times(h + self.b_dec, self.W_enc) + self.b_enc)
)
toy_sae.mistake("`decode`: you used W_dec at its full length: use W_dec_normalized")(
    with_methods(toy_saes.ToySAE, decode=lambda self, z: times(z, self.W_dec) + self.b_dec)
)
toy_sae.mistake("`decode`: you left b_dec out: add it after the product")(
    with_methods(toy_saes.ToySAE, decode=lambda self, z: times(z, self.W_dec_normalized))
)
toy_sae.mistake("`forward`: you left the ReLU out: activations are never negative")(
    with_methods(toy_saes.ToySAE, forward=plain_forward(act=lambda x: x, sparsity=lambda z: z.abs().sum(-1)))
)
toy_sae.mistake("`forward`: you summed the squared error over d_in: take the mean")(
    with_methods(toy_saes.ToySAE, forward=plain_forward(rec=lambda e: e.pow(2).sum(-1)))
)
toy_sae.mistake("`forward`: you left the error unsquared: L_reconstruction is the mean of its square")(
    with_methods(toy_saes.ToySAE, forward=plain_forward(rec=lambda e: e.abs().mean(-1)))
)
toy_sae.mistake("`forward`: L_sparsity is the sum over the latents, not their mean")(
    with_methods(toy_saes.ToySAE, forward=plain_forward(sparsity=lambda z: z.mean(-1)))
)
toy_sae.mistake("`forward`: L_sparsity counts active latents in yours: take the sum of |z|, which has a gradient")(
    with_methods(toy_saes.ToySAE, forward=plain_forward(sparsity=lambda z: (z > 0).float().sum(-1)))
)
toy_sae.mistake("`forward`: you left sparsity_coeff out of the loss: it multiplies L_sparsity")(
    with_methods(toy_saes.ToySAE, forward=plain_forward(coeff=1.0))
)
toy_sae.mistake("`forward`: you averaged over the batch: keep one loss per input and instance, [batch inst]")(
    with_methods(toy_saes.ToySAE, forward=plain_forward(reduce=lambda part: part.mean(0)))
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


class MatrixByMatrix(toy_saes.ToySAE):
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

match_latents = exercise(toy_saes.match_latents)


@match_latents.cases
def _():
    generator = torch.Generator().manual_seed(0)
    yield torch.randn(4, 3, generator=generator), torch.randn(3, 6, generator=generator)
    yield torch.randn(2, 7, 3, generator=generator), torch.randn(2, 3, 2, generator=generator)
    yield torch.tensor([[0.0, 9.0], [0.1, 0.0]]), torch.tensor([[5.0], [1.0]])
    yield -torch.eye(3)[:2], torch.eye(3)[:, :2] + 0.1 * torch.randn(3, 2, generator=generator)
    yield 1e-6 * torch.randn(4, 3, generator=generator), torch.randn(3, 2, generator=generator)
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
    return toy_saes.match_latents(W_dec, W)[::-1]


@match_latents.law("if the decoder's rows are the features in another order, that order and cosines of 1 must come out")
def _(match_latents):
    W = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([3, 0, 4, 1, 2])
    index, cosine = match_latents(7 * W.T[order], W)
    return bool((order[index] == torch.arange(5)).all()) and torch.allclose(cosine, torch.ones(5))


@match_latents.law("a zero vector has cosine 0 with everything, and no latent can be nearer to a feature that is 0")
def _(match):
    index, cosine = match(torch.tensor([[0.0, 0.0], [-1.0, -2.0]]), torch.tensor([[1.0, -3.0], [1.0, 0.0]]))
    none = match(torch.tensor([[1.0, 2.0]]), torch.zeros(2, 1))[1]
    best = torch.tensor([0.0, 5**-0.5])
    return index.tolist() == [0, 1] and difference(cosine, best) is None and difference(none, torch.zeros(1)) is None


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
    ],
    device=device(),
)
# Both instances have dead latents, different ones and a different number.
WINDOW_BOTH = torch.stack([WINDOW[:, 0], WINDOW[:, 0][:, [3, 0, 3, 2]]], dim=1)

dead_latents = exercise(toy_saes.dead_latents)


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
    sae = sae_of(toy_saes.ToySAE, *window.shape[1:2], 3, window.shape[2], **changes)
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


ALL_DEAD = torch.zeros(2, 1, 200, device=device())

resample_simple = exercise(toy_saes.resample_simple, use=run_simple, same=said_of_weights, in_place=RESAMPLED)


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
    sae = sae_of(toy_saes.ToySAE)
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
    sae = sae_of(toy_saes.ToySAE, inst, d_in, d_sae, **changes)
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


resample_advanced = exercise(toy_saes.resample_advanced, use=run_advanced, same=said_of_choice, in_place=RESAMPLED)


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
    sae = sae_of(toy_saes.ToySAE)
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

shrinkage = exercise(toy_saes.shrinkage)


@shrinkage.cases
def _():
    h = hidden(rows=40)
    yield h, 0.5 * h + 0.3 * hidden(rows=40, seed=5)
    yield h, 0.7 * h
    yield 0.01 * h, 0.002 * h
    yield 1e-6 * h, 5e-7 * h
    yield h, 3 * h  # longer than what it stands for
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


gated = exercise(toy_saes.GatedToySAE, use=forward_and_gradients, same=said_of_weights, in_place=FROZEN)


@gated.cases
def _():
    yield {}, hidden()
    yield dict(d_sae=5, sparsity_coeff=0.6, seed=3), hidden(1, 2, rows=9)
    yield dict(tied_weights=True, seed=2), hidden()


gated.mistake("you left r_mag out: each latent's magnitude reads through W_gate times exp(r_mag)")(
    with_methods(toy_saes.GatedToySAE, forward=gated_forward(magnitude=lambda self, x: x + self.b_mag))
)
gated.mistake("you scaled by r_mag itself: the factor is exp(r_mag), which is never negative")(
    with_methods(toy_saes.GatedToySAE, forward=gated_forward(magnitude=lambda self, x: x * self.r_mag + self.b_mag))
)
gated.mistake("you left b_mag out: the magnitude has a bias of its own")(
    with_methods(toy_saes.GatedToySAE, forward=gated_forward(magnitude=lambda self, x: x * self.r_mag.exp()))
)
gated.mistake("b_gate is in your magnitude too: scale the product only, then add b_mag")(
    with_methods(
        toy_saes.GatedToySAE,
        forward=gated_forward(magnitude=lambda self, x: (x + self.b_gate) * self.r_mag.exp() + self.b_mag),
    )
)
gated.mistake("you multiplied by the gate's value: the gate says only whether, (gate > 0)")(
    with_methods(
        toy_saes.GatedToySAE, forward=gated_forward(act=lambda gate, magnitude: gate.relu() * magnitude.relu())
    )
)
gated.mistake("the gate does nothing in yours: multiply the magnitudes by (gate > 0)")(
    with_methods(toy_saes.GatedToySAE, forward=gated_forward(act=lambda gate, magnitude: magnitude.relu()))
)
gated.mistake("you left b_dec out: both paths read h - b_dec")(
    with_methods(toy_saes.GatedToySAE, forward=gated_forward(centre=False))
)
gated.mistake("L_sparsity is on the activations in yours, which shrinks them: take the sum of ReLU(gate)")(
    with_methods(toy_saes.GatedToySAE, forward=gated_forward(sparsity=lambda gate, acts: acts.sum(-1)))
)
gated.mistake("L_sparsity lacks the ReLU: a gate that is shut costs nothing")(
    with_methods(toy_saes.GatedToySAE, forward=gated_forward(sparsity=lambda gate, acts: gate.sum(-1)))
)
gated.mistake("L_aux trains your decoder: detach W_dec_normalized and b_dec there")(
    with_methods(toy_saes.GatedToySAE, forward=gated_forward(frozen=False))
)
gated.mistake("L_aux lacks b_dec: a reconstruction always adds it, here detached")(
    with_methods(toy_saes.GatedToySAE, forward=gated_forward(b_frozen=False))
)
gated.mistake("you left L_aux out of the loss: without it the gate learns only to shut")(
    with_methods(toy_saes.GatedToySAE, forward=gated_forward(aux=False))
)
gated.mistake("you left sparsity_coeff out of the loss: it multiplies L_sparsity")(
    with_methods(toy_saes.GatedToySAE, forward=gated_forward(coeff=1.0))
)


@gated.law("where the gate is shut a latent must be 0, however large its magnitude")
def _(cls):
    sae = sae_of(cls)
    with torch.no_grad():
        sae.b_mag.fill_(10)
        sae.b_enc[:, 1] = -1e6
    acts = forward_of(sae, hidden(rows=30))["acts"]
    return bool((acts[..., 1] == 0).all() and (acts[..., 0] > 5).any())


@gated.law("a gate that is exactly 0 is shut")
def _(cls):
    sae = sae_of(cls)
    with torch.no_grad():
        sae.b_mag.fill_(10)
        sae.W_enc.zero_()
        sae.b_enc.zero_()
    return bool((forward_of(sae, hidden())["acts"] == 0).all())


@gated.law("with both biases equal and r_mag 0 the activations must be those of a ToySAE")
def _(cls):
    sae, plain = sae_of(cls), sae_of(toy_saes.ToySAE)
    with torch.no_grad():
        sae.r_mag.zero_()
        plain.b_enc.copy_(sae.b_enc)
        sae.b_mag.copy_(sae.b_enc)
        for name in ("W_enc", "_W_dec", "b_dec"):
            getattr(plain, name).copy_(getattr(sae, name))
    return torch.allclose(forward_of(sae, hidden())["acts"], forward_of(plain, hidden())["acts"], atol=1e-6)


gated.right(with_methods(toy_saes.GatedToySAE, forward=gated_forward()))

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


top_k = exercise(toy_saes.TopKToySAE, use=forward_and_gradients, same=said_of_weights)


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
    top_k.mistake(sentence)(with_methods(toy_saes.TopKToySAE, forward=wired))


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
    sae, plain = sae_of(cls, k=4), sae_of(toy_saes.ToySAE, k=4)
    return torch.allclose(forward_of(sae, hidden())["acts"], forward_of(plain, hidden())["acts"])


top_k.right(
    with_methods(
        toy_saes.TopKToySAE,
        forward=topk_forward(
            lambda z, k: torch.where(z >= z.sort(descending=True).values[..., k - 1, None], z, 0).relu()
        ),
    )
)

# ---------------------------------------------------------------- rectangle, Heaviside, JumpReLU

rectangle = exercise(toy_saes.rectangle)


@rectangle.cases
def _():
    yield (torch.tensor([-2.0, -0.75, -0.49, -0.1, 0.0, 0.1, 0.49, 0.75, 2.0]),)
    yield (torch.tensor([[0.5, -0.5], [0.4, -0.51]]),)


@rectangle.law("it must give numbers, not truth values: of those no minus can be taken")
def _(rectangle):
    return not torch.is_tensor(found := rectangle(torch.zeros(2))) or found.dtype != torch.bool


@rectangle.mistake("it must give numbers, not truth values: of those no minus can be taken")
def _(x):
    return (x > -0.5) & (x < 0.5)


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


heaviside = exercise(toy_saes.Heaviside, use=step_and_gradients, same=said_of_weights)
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

jump_relu = exercise(toy_saes.JumpReLU, use=step_and_gradients, same=said_of_weights)
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
    act=lambda z, theta, eps: toy_saes.JumpReLU.apply(z, theta, eps),
    sparsity=lambda z, theta, eps, acts: toy_saes.Heaviside.apply(z, theta, eps).sum(-1),
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


jump_sae = exercise(toy_saes.JumpReLUToySAE, use=forward_and_gradients, same=said_of_weights, in_place=FROZEN)


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
        sparsity=lambda z, theta, eps, acts: toy_saes.Heaviside.apply(z, theta, eps).mean(-1)
    ),
    "your activations let no gradient reach the thresholds: use JumpReLU.apply": jump_forward(
        act=lambda z, theta, eps: z * above(z, theta)
    ),
    "you left sparsity_coeff out of the loss: it multiplies L_sparsity": jump_forward(coeff=1.0),
    "you left b_enc out: compare the pre-activations, with their bias, to the threshold": jump_forward(bias=False),
}.items():
    jump_sae.mistake(sentence)(with_methods(toy_saes.JumpReLUToySAE, forward=wired))


@jump_sae.law("with thresholds near 0 the activations must be those of a ToySAE")
def _(cls):
    sae, plain = sae_of(cls), sae_of(toy_saes.ToySAE)
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
        toy_saes.JumpReLUToySAE,
        forward=jump_forward(
            act=lambda z, theta, eps: toy_saes.JumpReLU.apply(z.relu(), theta, eps),
            sparsity=lambda z, theta, eps, acts: toy_saes.Heaviside.apply(z.relu(), theta, eps).sum(-1),
        ),
    )
)
