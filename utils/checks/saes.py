"""What is asked of a learner's functions in chapter 08: of its first half, and where the second's are found."""

import warnings

import einops
import torch
from sae_lens import (
    StandardSAE,
    StandardSAEConfig,
)
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor
from transformer_lens.hook_points import HookedRootModule

from utils import probes, sae_causes, saes
from utils.checks.engine import Chapter
from utils.checks.sae_models import lm_model, lm_sae, lm_store, lm_tokens
from utils.runtime import device

chapter = Chapter(saes, probes, sae_causes)
exercise, check, hint, compare = chapter.exercise, chapter.check, chapter.hint, chapter.compare


def _alone(fn, *args):
    """Call with no autoencoder and no hook left on the model or the autoencoder, before and after, whatever it did."""
    models = [lm_model(), *(a for a in args if isinstance(a, HookedRootModule))]
    try:
        _clear(models)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fn(*args)
    finally:
        _clear(models)


def _clear(models):
    lm_model().reset_saes()
    for each in models:
        each.reset_hooks()


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
    yield lm_model(), lm_sae(), lm_tokens(8)[:, 1:]  # rows without <|endoftext|>: ValueError
    yield lm_model(), lm_sae(), torch.cat([lm_tokens(3), lm_tokens(1).roll(1, dims=1)])  # one such row
    yield lm_model(), lm_sae(layer=7), lm_tokens(8)  # the model has no such layer: ValueError


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
    for weights, values in ((sae.W_enc, W_enc), (sae.W_dec, W_dec), (sae.b_dec, b_dec)):
        weights.data.copy_(values)
    return sae.requires_grad_(False).to(device())


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
    return abs(found["explained_variance"]) < 1e-3 and found["L0"] == 0 and abs(found["dead"] - 1) < 1e-6


@sae_metrics.right
def _(model, sae, tokens):
    name = sae.cfg.metadata.hook_name
    if name not in model.hook_dict or not (tokens[:, 0] == model.tokenizer.bos_token_id).all():
        raise ValueError("the model has no such activation, or rows don't begin with <|endoftext|>")
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
    yield -(torch.arange(70.0)[None] - 20.3).abs(), 3, 5, True  # the largest stand side by side
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
    yield lm_sae(), lm_tokens(8, 12), 5, 4, 40, 2
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
    yield lm_model(), lm_sae(), 0


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
    yield torch.tensor([[1.0], [1.0], [0.0], [0.0]]), torch.tensor([[True], [True], [False], [False]]), 1


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


@by_document.refused
def _():
    values, tokens = _rows_of_documents([(9, 12, 3), (8, 7, 9)])
    yield values, tokens, 1
    yield values, tokens, 0, 13
    yield values, tokens.index_fill(0, torch.tensor([1]), 2), 0  # the second row begins otherwise


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
    if (tokens[:, 0] != end).any() or not list(_documents(values, tokens, end, least)):
        raise ValueError("a row without its beginning, or no document")
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
    many = torch.arange(4000)
    yield torch.stack([many < 1000, many == 1500, many >= 2000], dim=1), many < 2000, 3  # the second raises F1 a little
    yield torch.zeros(4, 3, dtype=torch.bool), torch.zeros(4, dtype=torch.bool), 2
    generator = torch.Generator().manual_seed(4)
    noisy = torch.rand(60, 9, generator=generator)
    yield noisy < 0.3, noisy[:, :3].sum(1) < 1.2, 5  # every latent fires beside the label as well


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
    yield torch.zeros(4, 12), acts
    yield acts, torch.zeros(4, 12)
    yield torch.zeros(4, 12), torch.full((4, 12), 0.5)
    yield torch.full((5, 7), 0.1), torch.full((5, 7), 0.7)  # their means are not quite 0.1 and 0.7


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
    if simulated.std() < 1e-5 or acts.std() < 1e-5:
        return 0.0
    return torch.corrcoef(torch.stack([simulated.flatten(), acts.flatten()]))[0, 1]
