"""What is asked of a learner's functions in the second half of chapter 11: gradients between latents."""

import copy
from functools import cache

import torch
from torch import Tensor

from utils import circuits
from utils.checks.sae_models import lm_model, lm_sae, lm_tokens
from utils.checks.transcoders import _alone, chapter
from utils.circuits import SparseTensor as Ours
from utils.circuits import place_after
from utils.saes import check_fits

exercise = chapter.exercise
# Gradients are taken inside, so that the result itself carries none.
INSIDE = {"gradients": "the result is a gradient, taken of a copy of the inputs"}


@cache
def _pairs():
    """Autoencoders of the small model's stream, an earlier and a later one."""
    before_0, before_1, after = lm_sae("hook_resid_pre", 0), lm_sae(), lm_sae("hook_resid_post", 1)
    return [(before_0, before_1), (before_1, after), (before_0, after)]


def _text(seq=6, seed=0) -> Tensor:
    return lm_tokens(1, seq, seed)


def _active(sae, tokens) -> Ours:
    check_fits(lm_model(), sae)
    stream = lm_model()(tokens, stop_at_layer=place_after(sae))
    return Ours.from_dense(sae.encode(stream))


def _error(sae, tokens) -> Tensor:
    stream = lm_model()(tokens, stop_at_layer=place_after(sae))
    return stream - sae.decode(sae.encode(stream))


def _unfit():
    """An autoencoder of a layer that the small model lacks, and one whose latents are all dead."""
    silent = copy.deepcopy(lm_sae())  # the other checks share that one
    silent.b_enc.data[:] = -100
    return lm_sae("hook_resid_pre", 7), silent


# ---------------------------------------------------------------- SparseTensor


def _use_sparse(cls, dense, values, indices, shape):
    """Both ways, and what comes of a gradient through the second."""
    one, two = cls.from_dense(dense), cls.from_sparse(values, indices, shape)
    weights = torch.arange(two.dense.numel(), dtype=torch.float32).reshape(two.dense.shape)
    with torch.enable_grad():
        leaf = values.clone().requires_grad_(True)
        total = (cls.from_sparse(leaf, indices, shape).dense * weights).sum()
        way_back = torch.autograd.grad(total, leaf)[0] if total.requires_grad else torch.zeros_like(values)
    return (*_parts(one), *_parts(two), way_back)


def _parts(one) -> tuple:
    """The three parts of what an answer made, whatever class it gave."""
    return one.dense, one.values, one.indices, tuple(one.shape)


SparseTensor = exercise(
    circuits.SparseTensor,
    use=_use_sparse,
    without={"gradients": "`use` itself takes a gradient through it"},
)


@SparseTensor.cases
def _():
    generator = torch.Generator().manual_seed(0)
    for shape in ((2, 3, 5), (4, 6)):
        dense = torch.randn(shape, generator=generator)
        dense[torch.rand(shape, generator=generator) < 0.6] = 0
        indices = dense.nonzero().flip(0)  # another order than that of reading
        yield dense, torch.rand(len(indices), generator=generator) + 0.1, indices, tuple(shape)


@SparseTensor.refused
def _():
    some = torch.tensor([[0, 1], [1, 0]])
    yield torch.zeros(2, 3), torch.ones(2), some, (2, 3)
    yield torch.ones(2, 3), torch.ones(3), some, (2, 3)
    yield torch.ones(2, 3), torch.ones(2), some + 5, (2, 3)


def _wrong(sentence):
    def register(cls):
        SparseTensor.mistake(sentence)(cls)
        return cls

    return register


@_wrong("active means not zero: a negative value is one too")
class _(circuits.SparseTensor):
    @classmethod
    def from_dense(cls, dense):
        circuits.SparseTensor.from_dense(dense)
        indices = (dense > 0).nonzero()
        return cls(dense, dense[indices.unbind(1)], indices)


@_wrong("`indices` is [nonzero, ndim], one place a row: yours is turned round")
class _(circuits.SparseTensor):
    @classmethod
    def from_dense(cls, dense):
        found = circuits.SparseTensor.from_dense(dense)
        return cls(dense, found.values, found.indices.T)


@_wrong("places of a flattened tensor: keep one number for each dimension")
class _(circuits.SparseTensor):
    @classmethod
    def from_dense(cls, dense):
        found = circuits.SparseTensor.from_dense(dense)
        return cls(dense, found.values, dense.flatten().nonzero())


@_wrong("the values must stay tied to the whole tensor: no detach(), a gradient has to come through")
class _(circuits.SparseTensor):
    @classmethod
    def from_sparse(cls, values, indices, shape):
        found = circuits.SparseTensor.from_sparse(values, indices, shape)
        return cls(found.dense.detach(), values, indices)


@_wrong("the places belong to the values in their own order: you sorted one and not the other")
class _(circuits.SparseTensor):
    @classmethod
    def from_sparse(cls, values, indices, shape):
        found = circuits.SparseTensor.from_sparse(values, indices, shape)
        order = (indices * torch.tensor([100 ** (len(shape) - 1 - i) for i in range(len(shape))])).sum(1).argsort()
        dense = torch.zeros(shape).index_put(indices[order].unbind(1), values)
        return cls(dense, found.values, indices)


@_wrong("all zero is no circuit: from_dense raises ValueError")
class _(circuits.SparseTensor):
    @classmethod
    def from_dense(cls, dense):
        indices = dense.nonzero()
        return cls(dense, dense[indices.unbind(1)], indices)


@SparseTensor.right
class _(circuits.SparseTensor):
    @classmethod
    def from_dense(cls, dense):
        if not dense.any():
            raise ValueError("nothing is active")
        where = dense.nonzero(as_tuple=True)
        return cls(dense, dense[where], torch.stack(where, dim=1))

    @classmethod
    def from_sparse(cls, values, indices, shape):
        if values.shape[0] != indices.shape[0] or (indices.amax(0) >= torch.tensor(shape)).any():
            raise ValueError("values and places do not fit")
        flat = sum(indices[:, i] * torch.tensor(shape[i + 1 :]).prod().long() for i in range(len(shape)))
        dense = torch.zeros(torch.Size(shape).numel()).index_put((flat,), values)
        return cls(dense.reshape(shape), values, indices)


# ---------------------------------------------------------------- latent_acts_to_later_latent_acts

latent_acts_to_later_latent_acts = exercise(circuits.latent_acts_to_later_latent_acts, use=_alone)


@latent_acts_to_later_latent_acts.cases
def _():
    for i, (sae_from, sae_to) in enumerate(_pairs()):
        tokens = _text(6, i)
        acts = _active(sae_from, tokens)
        error = _error(sae_from, tokens) if i != 1 else None
        yield acts.values * 1.1, acts.indices, tuple(acts.shape), sae_from, sae_to, lm_model(), error
        if i == 0:  # no latent at the last positions
            early = acts.indices[:, 1] < 4
            yield acts.values[early], acts.indices[early], tuple(acts.shape), sae_from, sae_to, lm_model(), error


def _later(values, indices, shape, sae_from, sae_to, model, error=None, first=None, last=None, decode=None, pre=False):
    acts = Ours.from_sparse(values, indices, shape).dense
    stream = (decode or sae_from.decode)(acts)
    stream = stream if error is None else stream + error
    first = place_after(sae_from) if first is None else first
    last = place_after(sae_to) if last is None else last
    later = model(stream, start_at_layer=first, stop_at_layer=last) if first < last else stream
    return (later - sae_to.b_dec) @ sae_to.W_enc + sae_to.b_enc if pre else sae_to.encode(later)


@latent_acts_to_later_latent_acts.mistake("the error is left out: where it is given, add it to the rebuilt stream")
def _(*args):
    return _later(*args[:6])


@latent_acts_to_later_latent_acts.mistake("the blocks between are missing: run from place_after(sae_from) to the other")
def _(*args):
    return _later(*args, first=0, last=0)


@latent_acts_to_later_latent_acts.mistake("one block too few: stop_at_layer is the first that does not run")
def _(*args):
    return _later(*args, last=place_after(args[4]) - 1)


@latent_acts_to_later_latent_acts.mistake("you started at the first block: start_at_layer is place_after(sae_from)")
def _(*args):
    if place_after(args[3]) == 0:
        return _later(*args, first=1) if place_after(args[4]) > 1 else _later(*args, first=0, last=0)
    return _later(*args, first=0)


@latent_acts_to_later_latent_acts.mistake("b_dec is missing from the rebuilt stream: call sae_from.decode")
def _(*args):
    return _later(*args, decode=lambda acts: acts @ args[3].W_dec)


@latent_acts_to_later_latent_acts.mistake("you stopped before the later autoencoder's activation: call sae_to.encode")
def _(*args):
    return _later(*args, pre=True)


@latent_acts_to_later_latent_acts.law("with the error added, the later latents must be those of the true stream")
def _(latent_acts_to_later_latent_acts):
    sae_from, sae_to = _pairs()[1]
    tokens = _text(6, 4)
    acts = _active(sae_from, tokens)
    got = latent_acts_to_later_latent_acts(
        acts.values, acts.indices, acts.shape, sae_from, sae_to, lm_model(), _error(sae_from, tokens)
    )
    return torch.allclose(got, _active(sae_to, tokens).dense, atol=1e-3)


@latent_acts_to_later_latent_acts.right
def _(latent_acts, indices, shape, sae_from, sae_to, model, error=None):
    dense = torch.zeros(tuple(shape)).index_put(indices.unbind(1), latent_acts)
    stream = dense @ sae_from.W_dec + sae_from.b_dec + (0 if error is None else error)
    for block in model.blocks[place_after(sae_from) : place_after(sae_to)]:
        stream = block(stream)
    return sae_to.encode(stream)


# ---------------------------------------------------------------- latent_to_latent_gradients


def _whole(fn, *args):
    """The gradients, and both kinds of latents, as plain tensors."""
    gradients, acts, found = _alone(fn, *args)
    return gradients, *_parts(acts), *_parts(found)


latent_to_latent_gradients = exercise(circuits.latent_to_latent_gradients, use=_whole, without=INSIDE, atol=1e-4)


@latent_to_latent_gradients.cases
def _():
    for i, (sae_from, sae_to) in enumerate(_pairs()):
        yield _text(6, i), sae_from, sae_to, lm_model(), (3, None, 64)[i], i != 1


@latent_to_latent_gradients.refused
def _():
    sae_from, sae_to = _pairs()[0]
    yield _text(6), sae_to, sae_from, lm_model(), 64, True
    yield _text(6), lm_sae("attn.hook_z", 0), sae_to, lm_model(), 64, True


def _changed(change):
    """The right answer, with one of its parts otherwise."""

    def answer(tokens, sae_from, sae_to, model, *rest):
        return change(
            circuits.latent_to_latent_gradients(tokens, sae_from, sae_to, model, *rest), tokens, sae_from, sae_to
        )

    return answer


latent_to_latent_gradients.mistake("rows are the earlier latents, columns the later: jacrev gives it turned round")(
    _changed(lambda r, *_: (r[0].T, *r[1:]))
)
latent_to_latent_gradients.mistake("a gradient is no attribution: don't multiply by the earlier latents' activations")(
    _changed(lambda r, *_: (r[0] * r[1].values[:, None], *r[1:]))
)
latent_to_latent_gradients.mistake("the later latents are those computed from the earlier ones, not a clean run's")(
    _changed(lambda r, tokens, _, sae_to: (*r[:2], _active(sae_to, tokens)))
)


@latent_to_latent_gradients.mistake("with_error adds what the autoencoder does not rebuild: you left it out")
def _(tokens, sae_from, sae_to, model, chunk_size=64, with_error=True):
    return circuits.latent_to_latent_gradients(tokens, sae_from, sae_to, model, chunk_size, False)


@latent_to_latent_gradients.mistake("with_error=False takes the derivative at the rebuilt stream: add no error there")
def _(tokens, sae_from, sae_to, model, chunk_size=64, with_error=True):
    return circuits.latent_to_latent_gradients(tokens, sae_from, sae_to, model, chunk_size, True)


@latent_to_latent_gradients.mistake("the error must be a constant: its own gradient would cancel the latents'")
def _(tokens, sae_from, sae_to, model, chunk_size=64, with_error=True):
    right = circuits.latent_to_latent_gradients(tokens, sae_from, sae_to, model, chunk_size, with_error)
    return (torch.zeros_like(right[0]) if with_error else right[0], *right[1:])


@latent_to_latent_gradients.right
def _(tokens, sae_from, sae_to, model, chunk_size=64, with_error=True):
    circuits.check_order(model, sae_from, sae_to)
    acts = _active(sae_from, tokens)
    error = _error(sae_from, tokens) * with_error
    with torch.enable_grad():
        values = acts.values.detach().clone().requires_grad_(True)
        dense = torch.zeros(acts.shape).index_put(acts.indices.unbind(1), values)
        stream = sae_from.decode(dense) + error.detach()
        later = sae_to.encode(model(stream, start_at_layer=place_after(sae_from), stop_at_layer=place_after(sae_to)))
        found = Ours.from_dense(later)
        rows = [torch.autograd.grad(each, values, retain_graph=True)[0] for each in found.values]
    return torch.stack(rows, 1), acts, Ours.from_dense(later.detach())


# ---------------------------------------------------------------- fast_latent_gradients

fast_latent_gradients = exercise(circuits.fast_latent_gradients, use=_whole, without=INSIDE, atol=1e-4)


@fast_latent_gradients.cases
def _():
    for i, (sae_from, sae_to) in enumerate(_pairs()):
        yield _text(6 + i, i), sae_from, sae_to, lm_model(), (3, 7, 64)[i]


@fast_latent_gradients.refused
def _():
    sae_from, sae_to = _pairs()[0]
    yield _text(6), sae_to, sae_from, lm_model(), 32


def _fast(tokens, sae_from, sae_to, model, chunk_size=32, *, enter=None, read=None, shorter=0, own=False, last=True):
    circuits.check_order(model, sae_from, sae_to)
    acts, found = _active(sae_from, tokens), _active(sae_to, tokens)
    stream = model(tokens, stop_at_layer=place_after(sae_from))
    into = sae_to.W_enc if enter is None else enter(sae_to)
    writes = (sae_from.W_dec if read is None else read(sae_from))[acts.indices[:, 2]]
    gradients = torch.zeros(len(acts.values), len(found.values))
    for start in range(0, len(found.values), chunk_size):
        targets = found.indices[start : start + chunk_size]
        end = int(targets[-1 if last else 0, 1]) + 1 - shorter
        with torch.enable_grad():
            seen = stream[:, : max(end, 1)].clone().requires_grad_(True)
            made = model(seen, start_at_layer=place_after(sae_from), stop_at_layer=place_after(sae_to))
            cotangents = torch.zeros(len(targets), *made.shape)
            for n, (_, pos, latent) in enumerate(targets.tolist()):
                if pos < made.shape[1]:
                    cotangents[n, 0, pos] = into[:, latent]
            (back,) = torch.autograd.grad(made, seen, cotangents, is_grads_batched=True)
        for row, (_, pos, _) in enumerate(acts.indices.tolist()):
            if pos < back.shape[2]:
                part = back[:, 0, pos] @ writes[row]
                if own:
                    part = part * (targets[:, 1] == pos)
                gradients[row, start : start + len(targets)] = part
    return gradients, acts, found


@fast_latent_gradients.mistake("a later latent's gradient enters as its encoder's column, not as its decoder's row")
def _(*args):
    return _fast(*args, enter=lambda sae: sae.W_dec.T)


@fast_latent_gradients.mistake("an earlier latent reads its gradient off by its decoder's row, not by W_enc")
def _(*args):
    return _fast(*args, read=lambda sae: sae.W_enc.T)


@fast_latent_gradients.mistake("a chunk needs the text up to its last target's position: yours ends before it")
def _(*args):
    return _fast(*args, shorter=1)


@fast_latent_gradients.mistake("a chunk holds targets of several positions: cut the text at the last of them")
def _(*args):
    return _fast(*args, last=False)


@fast_latent_gradients.mistake("latents of earlier positions count too: attention carries them over")
def _(*args):
    return _fast(*args, own=True)


@fast_latent_gradients.mistake("rows are the earlier latents, columns the later ones")
def _(*args):
    found = _fast(*args)
    return found[0].T, *found[1:]


@fast_latent_gradients.law("it must give what jacrev gives")
def _(fast_latent_gradients):
    sae_from, sae_to = _pairs()[2]
    got = fast_latent_gradients(_text(7, 5), sae_from, sae_to, lm_model(), 5)[0]
    want = circuits.latent_to_latent_gradients(_text(7, 5), sae_from, sae_to, lm_model())[0]
    return torch.allclose(got, want, atol=1e-4)


fast_latent_gradients.right(_fast)


# ---------------------------------------------------------------- token_to_latent_gradients


def _with_latents(fn, *args):
    gradients, acts, *rest = _alone(fn, *args)
    return gradients, *_parts(acts), *rest


token_to_latent_gradients = exercise(circuits.token_to_latent_gradients, use=_with_latents, without=INSIDE, atol=1e-4)


@token_to_latent_gradients.cases
def _():
    yield _text(6), lm_sae(), lm_model(), 5
    yield _text(7, 1), lm_sae("hook_resid_post", 1), lm_model(), None


@token_to_latent_gradients.refused
def _():
    for sae in _unfit():
        yield _text(6), sae, lm_model(), 5


def _scaled(tokens, sae, model, scale=lambda embedded, s: embedded * s[..., None], pre=False, at=1.0):
    acts = _active(sae, tokens)
    places = acts.indices.unbind(1)

    def latents(s):
        stream = model(scale(model(tokens, stop_at_layer=0), s), start_at_layer=0, stop_at_layer=place_after(sae))
        found = (stream - sae.b_dec) @ sae.W_enc + sae.b_enc if pre else sae.encode(stream)
        return found[places]

    with torch.enable_grad():
        jacobian = torch.func.jacrev(latents)(torch.full(tokens.shape, at))
    return jacobian[:, 0].T, acts


@token_to_latent_gradients.mistake("the result is [seq, latent]: jacrev gives the latents first")
def _(tokens, sae, model, chunk_size=64):
    gradients, acts = _scaled(tokens, sae, model)
    return gradients.T, acts


@token_to_latent_gradients.mistake("the scale multiplies position and token embedding together, both are the stream")
def _(tokens, sae, model, chunk_size=64):
    position = model.pos_embed(tokens)
    return _scaled(tokens, sae, model, lambda e, s: (e - position) * s[..., None] + position)


@token_to_latent_gradients.mistake("the derivative is taken at scales of one, where the text is what it is")
def _(tokens, sae, model, chunk_size=64):
    return _scaled(tokens, sae, model, at=1.5)


@token_to_latent_gradients.mistake("each position has a scale of its own: yours is one for all")
def _(tokens, sae, model, chunk_size=64):
    gradients, acts = _scaled(tokens, sae, model)
    return gradients.sum(0, keepdim=True).expand_as(gradients), acts


@token_to_latent_gradients.mistake("a gradient has a sign: don't take its size")
def _(tokens, sae, model, chunk_size=64):
    gradients, acts = _scaled(tokens, sae, model)
    return gradients.abs(), acts


@token_to_latent_gradients.right
def _(tokens, sae, model, chunk_size=64):
    acts = _active(sae, tokens)
    with torch.enable_grad():
        embedded = model(tokens, stop_at_layer=0).detach().requires_grad_(True)
        found = sae.encode(model(embedded, start_at_layer=0, stop_at_layer=place_after(sae)))
        columns = []
        for place in acts.indices.tolist():
            (g,) = torch.autograd.grad(found[tuple(place)], embedded, retain_graph=True)
            columns.append((g * embedded).sum(-1)[0])
    return torch.stack(columns, 1).detach(), acts


# ---------------------------------------------------------------- latent_to_logit_gradients

latent_to_logit_gradients = exercise(circuits.latent_to_logit_gradients, use=_with_latents, without=INSIDE, atol=1e-4)


@latent_to_logit_gradients.cases
def _():
    yield _text(6), lm_sae(), lm_model(), torch.tensor([3, 1, 7])
    yield _text(7, 1), lm_sae("hook_resid_pre", 0), lm_model(), None, 4


@latent_to_logit_gradients.refused
def _():
    for sae in _unfit():
        yield _text(6), sae, lm_model(), torch.tensor([3, 1])


def _to_logits(tokens, sae, model, token_ids=None, k=25, error=True, centred=True, at=-1):
    acts = _active(sae, tokens)
    stream = _error(sae, tokens) * error
    if token_ids is None:
        token_ids = model(tokens)[0, -1].topk(k).indices

    def logits(values):
        dense = torch.zeros(acts.shape).index_put(acts.indices.unbind(1), values)
        found = model(sae.decode(dense) + stream, start_at_layer=place_after(sae))[0, at]
        return (found - found.mean() * centred)[token_ids]

    with torch.enable_grad():
        return torch.func.jacrev(logits)(acts.values).T, acts, token_ids


@latent_to_logit_gradients.mistake("the result is [latent, answer]: jacrev gives the answers first")
def _(*args):
    found = _to_logits(*args)
    return found[0].T, *found[1:]


@latent_to_logit_gradients.mistake("each logit counts from the mean of all logits: take it off, inside the derivative")
def _(*args):
    return _to_logits(*args, centred=False)


@latent_to_logit_gradients.mistake("the derivative is taken at the true stream: add the error as a constant")
def _(*args):
    return _to_logits(*args, error=False)


@latent_to_logit_gradients.mistake("the logits after the last token count: you took another position's")
def _(*args):
    return _to_logits(*args, at=-2)


@latent_to_logit_gradients.mistake("a gradient is no attribution: don't multiply by the activations")
def _(*args):
    gradients, acts, token_ids = _to_logits(*args)
    return gradients * acts.values[:, None], acts, token_ids


@latent_to_logit_gradients.mistake("by default take the k likeliest tokens of the clean run, likeliest first")
def _(tokens, sae, model, token_ids=None, k=25):
    if token_ids is None:
        token_ids = model(tokens)[0, -1].topk(k, largest=False).indices
    return _to_logits(tokens, sae, model, token_ids, k)


@latent_to_logit_gradients.right
def _(tokens, sae, model, token_ids=None, k=25):
    acts = _active(sae, tokens)
    with torch.enable_grad():
        values = acts.values.detach().clone().requires_grad_(True)
        dense = torch.zeros(acts.shape).index_put(acts.indices.unbind(1), values)
        stream = sae.decode(dense) + _error(sae, tokens).detach()
        logits = model(stream, start_at_layer=place_after(sae))[0, -1]
        if token_ids is None:
            token_ids = logits.argsort(descending=True)[:k]
        chosen = logits[token_ids] - logits.mean()
        columns = [torch.autograd.grad(each, values, retain_graph=True)[0] for each in chosen]
    return torch.stack(columns, 1), acts, token_ids
