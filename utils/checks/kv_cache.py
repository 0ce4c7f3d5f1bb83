"""What chapter 03 asks of the cache of keys and values, and the mistakes it recognises."""

import math
from functools import partial

import einops
import torch
from torch import nn

from utils import kv_cache as kv
from utils import sampling as sp
from utils import transformer as tf
from utils.checks.compare import difference
from utils.checks.models import CFG, filled, noise, small_demo, tokens
from utils.checks.sampling import chapter
from utils.runtime import device

exercise = chapter.exercise
numbers, random_ids = noise, partial(tokens, below=CFG.d_vocab)

# ---------------------------------------------------------------- KeyValueCache

PADDING = torch.tensor([0, 2, 1], device=device())


def use_cache(cls, n_max=None):
    """Three texts, two of them padded: four tokens at once, then two more."""
    cache = cls(CFG, 3, n_max, PADDING)
    seen = {}
    for step, new in enumerate((4, 2)):
        seen[f"positions {step}"] = cache.positions(new)
        allowed = cache.allowed(new)
        real = torch.arange(cache.length, cache.length + new) >= PADDING[:, None]
        # What padding sees is free, as long as it sees something.
        seen[f"allowed {step}"] = allowed & real[:, :, None]
        seen[f"every query sees something {step}"] = bool(allowed.any(-1).all())
        for layer in range(CFG.n_layers):
            k = numbers(3, 3, new, 5, seed=10 * step + layer)
            keys, values = cache.append(layer, k, -2 * k)
            seen[f"keys {step} {layer}"], seen[f"values {step} {layer}"] = keys.clone(), values.clone()
        cache.length += new
    return seen


def same_cache(got, want, *args):
    if not isinstance(got, dict):
        return difference(got, want)
    for name in want:
        if said := difference(got[name], want[name]):
            what, step = name.split()[0], name.split()[-1 if name[0] not in "kv" else 1]
            return f"{what}, at the {'first' if step == '0' else 'second'} pass: {said}"
    return None


KeyValueCache = exercise(kv.KeyValueCache, use=use_cache, same=same_cache)


@KeyValueCache.cases
def _():
    yield ()
    yield (6,)  # full to the last place


@KeyValueCache.refused
def _():
    yield (3,)


@KeyValueCache.mistake("positions start at 0 at every pass: they must go on from self.length")
class _(kv.KeyValueCache):
    def positions(self, new):
        return (torch.arange(new) - self.padding[:, None]).clamp(min=0)


@KeyValueCache.mistake("positions ignore the padding: a row's first real token has position 0")
class _(kv.KeyValueCache):
    def positions(self, new):
        return torch.arange(self.length, self.length + new).expand(len(self.padding), -1)


@KeyValueCache.mistake("positions below 0 in the padding would read W_pos from its end: clamp them to 0")
class _(kv.KeyValueCache):
    def positions(self, new):
        return torch.arange(self.length, self.length + new) - self.padding[:, None]


@KeyValueCache.mistake("append writes at place 0 every time: the new keys belong at self.length")
class _(kv.KeyValueCache):
    def append(self, layer, k, v):
        end, new = self.length + k.shape[2], k.shape[2]
        self.keys[layer, :, :, :new], self.values[layer, :, :, :new] = k, v
        self.keys[layer, :, :, new:end].zero_()
        self.values[layer, :, :, new:end].zero_()
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


@KeyValueCache.mistake("append returns only the new keys and values: return the old ones with them")
class _(kv.KeyValueCache):
    def append(self, layer, k, v):
        super().append(layer, k, v)
        return k, v


@KeyValueCache.mistake(
    "append moved self.length: the next layer still needs the old one; it moves after the last layer"
)
class _(kv.KeyValueCache):
    def append(self, layer, k, v):
        if self.length + k.shape[2] > self.n_max:
            raise ValueError("full")
        self.keys[:, :, :, self.length + k.shape[2] :].zero_()
        self.keys[layer, :, :, : self.length].nan_to_num_(0)
        out = super().append(layer, k, v)
        self.length += k.shape[2]
        return out


@KeyValueCache.mistake("keys and values are swapped in what append returns")
class _(kv.KeyValueCache):
    def append(self, layer, k, v):
        return super().append(layer, k, v)[::-1]


@KeyValueCache.mistake("allowed lets real tokens see the padding: hide keys before the row's padding ends")
class _(kv.KeyValueCache):
    def allowed(self, new):
        query = torch.arange(self.length, self.length + new)[:, None]
        return (torch.arange(self.length + new) <= query).expand(len(self.padding), -1, -1)


@KeyValueCache.mistake(
    "allowed counts queries from 0: the first new query stands at self.length and sees all before it"
)
class _(kv.KeyValueCache):
    def allowed(self, new):
        query, key = torch.arange(new)[:, None], torch.arange(self.length + new)
        padding = self.padding[:, None, None]
        return (key <= query) & ((key >= padding) == (query + self.length >= padding)) | (key == query + self.length)


@KeyValueCache.mistake("allowed lets a query see what comes after it among the new tokens")
class _(kv.KeyValueCache):
    def allowed(self, new):
        query = torch.arange(self.length, self.length + new)[:, None]
        key, padding = torch.arange(self.length + new), self.padding[:, None, None]
        return (key >= padding) == (query >= padding)


@KeyValueCache.right
class _(kv.KeyValueCache):
    def append(self, layer, k, v):
        end = self.length + k.shape[-2]
        if self.n_max < end:
            raise ValueError("the cache is full")
        self.keys[layer][..., self.length : end, :] = k
        self.values[layer][..., self.length : end, :] = v
        return self.keys[layer][..., :end, :], self.values[layer][..., :end, :]

    def allowed(self, new):
        causal = torch.ones(new, self.length + new).tril(diagonal=self.length).bool()
        real = torch.arange(self.length + new) >= self.padding[:, None]
        itself = torch.eye(new, self.length + new).roll(self.length, dims=1).bool()
        return (causal & real[:, None]) | itself


# ---------------------------------------------------------------- attention_with_cache


def use_attention(fn, first, second):
    """Some positions at once, then some more: what comes out of the second pass, and what the cache holds."""
    attn = filled(tf.Attention(CFG)).requires_grad_(False)
    cache = kv.KeyValueCache(CFG, 2, padding=torch.tensor([0, 1]))
    outs = []
    for x in (first, second):
        outs.append(fn(attn, x, cache, 1, cache.allowed(x.shape[1])))
        cache.length += x.shape[1]
    used = cache.length
    # The padding's own result is read by nobody.
    outs[0] = outs[0][:, 1:]
    return {
        "result of the first pass": outs[0],
        "result of the second pass": outs[1],
        "keys": cache.keys[1, :, :, :used].clone(),
        "values": cache.values[1, :, :, :used].clone(),
    }


attention_with_cache = exercise(
    kv.attention_with_cache, use=use_attention, in_place={"cache": "the new keys and values are written into it"}
)


@attention_with_cache.cases
def _():
    yield numbers(2, 4, 12), numbers(2, 1, 12, seed=1)
    yield numbers(2, 3, 12, seed=2), numbers(2, 2, 12, seed=3)


def cached(attn, x, cache, layer, allowed, divide=None, old=True, masked=True, biases=True, b_O=True, at=None):
    heads = "batch pos d_model, n_heads d_model d_head -> batch n_heads pos d_head"
    weights = [(attn.W_Q, attn.b_Q), (attn.W_K, attn.b_K), (attn.W_V, attn.b_V)]
    q, k, v = (einops.einsum(x, W, heads) + b[:, None] * biases for W, b in weights)
    all_k, all_v = cache.append(layer if at is None else at, k, v)
    k, v = (all_k, all_v) if old else (k, v)
    scores = q @ k.mT / (divide or attn.cfg.d_head**0.5)
    if masked:
        scores = scores.masked_fill(~allowed[:, None, :, -k.shape[2] :], -math.inf)
    z = (scores.softmax(-1) @ v).nan_to_num(0)
    return einops.einsum(z, attn.W_O, "b n p e, n e d -> b p d") + attn.b_O * b_O


@attention_with_cache.mistake(
    "the new queries see only the new keys: use the keys and values that cache.append returns"
)
def _(*args):
    return cached(*args, old=False)


@attention_with_cache.mistake("you left the mask out: fill scores with IGNORE where `allowed` is False")
def _(*args):
    return cached(*args, masked=False)


@attention_with_cache.mistake("you divided the scores by sqrt(d_model): divide by sqrt(d_head)")
def _(*args):
    return cached(*args, divide=CFG.d_model**0.5)


@attention_with_cache.mistake("you left out the biases b_Q, b_K and b_V")
def _(*args):
    return cached(*args, biases=False)


@attention_with_cache.mistake("you left out b_O")
def _(*args):
    return cached(*args, b_O=False)


@attention_with_cache.mistake("you stored into layer 0: each layer has its own keys and values")
def _(*args):
    args[2].keys[1].nan_to_num_(0)[..., :] = 0
    args[2].values[1].nan_to_num_(0)[..., :] = 0
    return cached(*args, at=0)


@attention_with_cache.law("the new token's result must be what attention over the whole text gives at its position")
def _(attention_with_cache):
    attn, x = filled(tf.Attention(CFG)).requires_grad_(False), numbers(1, 6, 12)
    cache = kv.KeyValueCache(CFG, 1)
    attention_with_cache(attn, x[:, :5], cache, 0, cache.allowed(5))
    cache.length = 5
    return torch.allclose(attention_with_cache(attn, x[:, 5:], cache, 0, cache.allowed(1)), attn(x)[:, 5:], atol=1e-5)


@attention_with_cache.right
def _(attn, x, cache, layer, allowed):
    q, k, v = (torch.einsum("bpd,hde->bhpe", x, W) for W in (attn.W_Q, attn.W_K, attn.W_V))
    k, v = cache.append(layer, k + attn.b_K[:, None], v + attn.b_V[:, None])
    z = nn.functional.scaled_dot_product_attention(q + attn.b_Q[:, None], k, v, attn_mask=allowed[:, None])
    return torch.einsum("bhpe,hed->bpd", z, attn.W_O) + attn.b_O


# ---------------------------------------------------------------- forward_with_cache


def use_forward(fn, ids, padding, chunks):
    cache, start, out = kv.KeyValueCache(CFG, len(ids), padding=padding), 0, []
    model = small_demo()
    for n in chunks:
        out.append(fn(model, ids[:, start : start + n], cache)[:, -1])
        start += n
    return {"logits of each pass": torch.stack(out), "length of the cache": cache.length}


forward_with_cache = exercise(
    kv.forward_with_cache, use=use_forward, in_place={"cache": "the new keys and values are written into it"}
)


@forward_with_cache.cases
def _():
    yield random_ids(1, 8), torch.tensor([0]), [5, 1, 2]
    left_padded = random_ids(2, 7, seed=1)
    left_padded[1, :3] = sp.PAD
    yield left_padded, torch.tensor([0, 3]), [5, 1, 1]


def forward(model, ids, cache, positions=None, grow="end", layer_of=None, final=True, padded=True):
    new = ids.shape[1]
    positions = cache.positions(new) if positions is None else positions(cache, new)
    allowed = cache.allowed(new)
    x = model.embed.W_E[ids.clamp(min=0)] + model.pos_embed.W_pos[positions]
    for layer, block in enumerate(model.blocks):
        layer = layer if layer_of is None else layer_of(layer)
        x = x + kv.attention_with_cache(block.attn, block.ln1(x), cache, layer, allowed)
        x = x + block.mlp(block.ln2(x))
    if grow == "end":
        cache.length += new
    return model.unembed(model.ln_final(x) if final else x)


@forward_with_cache.mistake("each pass starts at position 0 again: cache.positions(new) goes on where the cache ends")
def _(model, ids, cache):
    return forward(model, ids, cache, lambda cache, new: torch.arange(new).expand(len(ids), -1))


@forward_with_cache.mistake("padding shifts your positions: cache.positions(new) takes it off for each row")
def _(model, ids, cache):
    return forward(
        model, ids, cache, lambda cache, new: torch.arange(cache.length, cache.length + new).expand(len(ids), -1)
    )


@forward_with_cache.mistake("the cache never grows: add the number of new tokens to cache.length after the last layer")
def _(model, ids, cache):
    return forward(model, ids, cache, grow="never")


@forward_with_cache.mistake("all layers share one layer's cache: pass each layer's own number")
def _(model, ids, cache):
    return forward(model, ids, cache, layer_of=lambda layer: 0)


@forward_with_cache.mistake("you left out ln_final before the unembedding")
def _(model, ids, cache):
    return forward(model, ids, cache, final=False)


@forward_with_cache.mistake("you left out the positions: the stream starts as W_E[tokens] + W_pos[positions]")
def _(model, ids, cache):
    keep = model.pos_embed.W_pos.clone()
    model.pos_embed.W_pos.zero_()
    out = forward(model, ids, cache)
    model.pos_embed.W_pos.copy_(keep)
    return out


@forward_with_cache.law("pass by pass the logits must be those of the model reading the whole text")
def _(forward_with_cache):
    model, ids, cache = small_demo(), random_ids(2, 9), kv.KeyValueCache(CFG, 2)
    steps = [forward_with_cache(model, ids[:, i : i + 3], cache) for i in (0, 3, 6)]
    return torch.allclose(torch.cat(steps, 1), model(ids), atol=1e-4)


@forward_with_cache.right
def _(model, ids, cache):
    positions, allowed = cache.positions(ids.shape[1]), cache.allowed(ids.shape[1])
    x = model.embed(ids.clamp(min=0)) + model.pos_embed.W_pos[positions]
    for i in range(len(model.blocks)):
        mid = x + kv.attention_with_cache(model.blocks[i].attn, model.blocks[i].ln1(x), cache, i, allowed)
        x = mid + model.blocks[i].mlp(model.blocks[i].ln2(mid))
    cache.length = cache.length + ids.shape[1]
    return model.unembed(model.ln_final(x))


# ---------------------------------------------------------------- flops_per_new_token

flops_per_new_token = exercise(kv.flops_per_new_token)


@flops_per_new_token.cases
def _():
    yield CFG, 10, False
    yield CFG, 10, True
    yield tf.Config(), 99, True


def change(cfg, length, cached, **factors):
    return {name: round(f * factors.get(name, 1)) for name, f in kv.flops_per_new_token(cfg, length, cached).items()}


@flops_per_new_token.mistake("you counted a multiply-and-add once: it is two operations, so 2abc a product")
def _(cfg, length, cached):
    return {name: f // 2 for name, f in kv.flops_per_new_token(cfg, length, cached).items()}


@flops_per_new_token.mistake("you forgot the layers: all but the unembedding happens n_layers times")
def _(cfg, length, cached):
    flops = kv.flops_per_new_token(cfg, length, cached)
    return {name: f if name == "unembedding" else f // cfg.n_layers for name, f in flops.items()}


@flops_per_new_token.mistake("the unembedding happens once, not in every layer")
def _(cfg, length, cached):
    return change(cfg, length, cached, unembedding=cfg.n_layers)


@flops_per_new_token.mistake("the MLP has two products, d_model to d_mlp and back")
def _(cfg, length, cached):
    return change(cfg, length, cached, MLP=0.5)


@flops_per_new_token.mistake("you forgot the new token itself: it is query and key too, so length + 1 keys")
def _(cfg, length, cached):
    return kv.flops_per_new_token(cfg, length - 1, cached)


@flops_per_new_token.mistake("with the cache there is one query: scores and mix cost n, not n²")
def _(cfg, length, cached):
    factors = {"scores": length + 1, "mix of values": length + 1} if cached else {}
    return change(cfg, length, cached, **factors)


@flops_per_new_token.mistake("with the cache the MLP and the unembedding run on the new token only, too")
def _(cfg, length, cached):
    return change(cfg, length, cached, **({"MLP": length + 1, "unembedding": length + 1} if cached else {}))


@flops_per_new_token.right
def _(cfg, length, cached):
    keys, d = length + 1, cfg.n_heads * cfg.d_head
    queries = keys if not cached else 1
    L = cfg.n_layers
    return {
        "queries, keys, values": 6 * L * queries * cfg.d_model * d,
        "scores": 2 * L * queries * keys * d,
        "mix of values": 2 * L * queries * keys * d,
        "output": 2 * L * queries * cfg.d_model * d,
        "MLP": 4 * L * queries * cfg.d_model * cfg.d_mlp,
        "unembedding": 2 * queries * cfg.d_model * cfg.d_vocab,
    }
