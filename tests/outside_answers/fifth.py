"""The fifth hundred: right on the usual input, wrong on the one that the docstring also allows."""

import hashlib
import json
import math
import random
import re
import time
import unicodedata
from collections import Counter, defaultdict
from functools import partial, total_ordering, wraps
from itertools import pairwise, product
from math import prod
from pathlib import Path

import regex
import torch
import torch.nn.functional as F
from torch import nn
from transformer_lens.utilities import get_act_name

from outside_answers import Answers
from utils import (
    causal_tracing,
    circuits,
    double_descent,
    induction,
    inspection,
    ioi,
    kv_cache,
    probes,
    sae_causes,
    saes,
    speculation,
    toolbox,
)
from utils import composition as comp
from utils import function_vectors as fv
from utils import ioi_circuit as circuit
from utils import sampling as sp
from utils import superposition as sup
from utils import tensors as ts
from utils import tokenization as tok
from utils import toy_saes as toy
from utils import transcoders as tc
from utils import transformer as tf

ANSWERS = Answers()
wrong = ANSWERS.wrong


# chapter 00


@wrong(toolbox.timed, "processor time: a call that waits takes none")
def timed(fn):
    @wraps(fn)
    def wrapper(*args, **kwargs):
        began = time.process_time()
        try:
            return fn(*args, **kwargs)
        finally:
            wrapper.seconds.append(time.process_time() - began)

    wrapper.seconds = []
    return wrapper


@wrong(toolbox.cached_on_disk, "f(('a', 1)) and f(a=1) share a file")
def cached_on_disk(folder):
    def plain(value):
        if isinstance(value, list | tuple):
            return all(plain(v) for v in value)
        return value is None or isinstance(value, bool | int | float | str)

    def decorator(fn):
        @wraps(fn)
        def wrapper(*args, **kwargs):
            call = [*args, *sorted(kwargs.items())]
            if not all(plain(value) for value in call):
                raise TypeError("numbers, strings and lists of these only")
            name = hashlib.sha256((fn.__name__ + repr(call)).encode()).hexdigest()
            path = Path(folder) / f"{name}.pt"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.save(fn(*args, **kwargs), beside := path.with_suffix(".tmp"))
                beside.replace(path)
            return torch.load(path)

        return wrapper

    return decorator


@wrong(toolbox.layer_hooks, "walks through `layers` twice: nothing is left of a generator")
def layer_hooks(name, layers, fn):
    def hook_for(layer):
        return lambda activation, hook: fn(activation, layer)

    names = [get_act_name(name, layer) for layer in layers]
    return list(zip(names, [hook_for(layer) for layer in layers], strict=False))


@wrong(toolbox.head_class, "heads sort as with twelve a layer: head 13 of layer 0 comes behind 1.0")
def head_class():
    @total_ordering
    class Head:
        __slots__ = ("head", "layer")

        def __init__(self, layer, head):
            if layer < 0 or head < 0:
                raise ValueError("a head counts from 0")
            object.__setattr__(self, "layer", layer)
            object.__setattr__(self, "head", head)

        def __setattr__(self, name, value):
            raise AttributeError("a head can't be changed")

        def __eq__(self, other):
            return isinstance(other, Head) and (self.layer, self.head) == (other.layer, other.head)

        def __lt__(self, other):
            return 12 * self.layer + self.head < 12 * other.layer + other.head

        def __hash__(self):
            return hash((self.layer, self.head))

        def __repr__(self):
            return f"Head(layer={self.layer}, head={self.head})"

        def __str__(self):
            return f"{self.layer}.{self.head}"

    return Head


@wrong(toolbox.weights_kept, "what is frozen is not kept")
class weights_kept:  # noqa: N801
    def __init__(self, module):
        self.module = module

    def __enter__(self):
        trained = [p for p in self.module.parameters() if p.requires_grad]
        self.kept = [(p, p.detach().clone()) for p in [*trained, *self.module.buffers()]]

    def __exit__(self, *exception):
        with torch.no_grad():
            for values, old in self.kept:
                values.copy_(old)


@wrong(toolbox.standard_scores, "equal values are told by a spread of exactly 0, which 0.1, 0.1, 0.1 don't have")
def standard_scores(values):
    values = list(values)
    if not values:
        raise ValueError("no values")
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
    if spread == 0:
        raise ValueError("all values are equal")
    return [(v - mean) / spread for v in values]


@wrong(ts.best_allowed, "softmax over all first: 0 / 0 where what is allowed is most unlikely")
def best_allowed(logits, allowed):
    if not allowed.any():
        raise ValueError("no token is allowed")
    probs = logits.softmax(dim=-1) * allowed
    probs = probs / probs.sum(dim=-1, keepdim=True)
    best = logits.masked_fill(~allowed, -torch.inf).argmax(dim=-1)
    return best, probs.gather(-1, best[:, None])[:, 0]


@wrong(ts.gradient_of, "x that required gradients doesn't any more; where fn raises, x begins to")
def gradient_of(fn, x):
    with torch.enable_grad():
        x.requires_grad_(True)
        (gradient,) = torch.autograd.grad(fn(x), x)
    x.requires_grad_(False)
    return gradient


@wrong(ts.mean_residual, "a mean of means of four texts: nine texts don't count alike")
def mean_residual(model, rows, layer):
    if not 0 <= layer < model.cfg.n_layers:
        raise ValueError("no such layer")
    name, means = get_act_name("resid_post", layer), []
    step = max(1, min(4, len(rows) // 8))
    for some in rows.split(max(step, 2) if len(rows) > 8 else 1):
        _, cache = model.run_with_cache(some, names_filter=name, stop_at_layer=layer + 1, return_type=None)
        means.append(cache[name][:, -1].mean(dim=0))
    return torch.stack(means).mean(dim=0)


@wrong(ts.einsum_by_loops, "cuts at a comma with a space behind it only")
def einsum_by_loops(pattern, *tensors):
    left, right = pattern.split("->")
    names, kept = [part.split() for part in left.split(", ")], right.split()
    if [len(part) for part in names] != [tensor.ndim for tensor in tensors]:
        raise ValueError("the pattern does not fit")
    sizes = {}
    for part, tensor in zip(names, tensors, strict=True):
        for name, size in zip(part, tensor.shape, strict=True):
            if sizes.setdefault(name, size) != size:
                raise ValueError(f"{name} has two sizes")
    if not set(kept) <= set(sizes):
        raise ValueError("a name on the right stands nowhere left")
    result = tensors[0].new_zeros([sizes[name] for name in kept])
    for values in product(*map(range, sizes.values())):
        at = dict(zip(sizes, values, strict=True))
        entries = [t[tuple(at[n] for n in part)] for part, t in zip(names, tensors, strict=True)]
        result[tuple(at[n] for n in kept)] += prod(entries)
    return result


# chapter 01


@wrong(tok.to_symbols, "composes accents first: e with an accent behind it is two characters")
def to_symbols(piece):
    piece = unicodedata.normalize("NFC", piece)
    return tuple(tok.BYTE_TO_CHAR[byte] for byte in piece.encode("utf-8", "surrogateescape"))


@wrong(tok.pretokenize, "GPT-4's endings: 'S and 'LL are cut off as well")
def pretokenize(text):
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    return regex.findall(pattern, text)


@wrong(tok.count_pairs, "aaa holds the pair (a, a) once: no overlaps, as when merging")
def count_pairs(words):
    counts = Counter()
    for word, n in words.items():
        last = None
        for i, pair in enumerate(pairwise(word)):
            if last == (i - 1, pair):
                last = None
                continue
            counts[pair] += n
            last = (i, pair)
    return counts


@wrong(tok.merge_pair, "replaces in the joined text: the end of a longer symbol counts as the left one")
def merge_pair(word, pair):
    return tuple(" ".join(word).replace(" ".join(pair), "".join(pair)).split(" ")) if word else ()


@wrong(tok.train_bpe, "a pair that occurs only once is not merged")
def train_bpe(corpus, vocab_size):
    if vocab_size < 256 or isinstance(corpus, str):
        raise ValueError("too small, or one text")
    vocab, merges = {char: i for i, char in enumerate(tok.BYTE_TO_CHAR.values())}, {}
    pieces = Counter(piece for text in corpus for piece in tok.pretokenize(text))
    words = {tok.to_symbols(piece): n for piece, n in pieces.items()}
    while len(vocab) < vocab_size:
        counts = tok.count_pairs(words)
        if not counts or max(counts.values()) < 2:
            break
        best = min(counts, key=lambda pair: (-counts[pair], vocab[pair[0]], vocab[pair[1]]))
        merges[best] = len(merges)
        vocab["".join(best)] = len(vocab)
        merged = defaultdict(int)
        for word, n in words.items():
            merged[tok.merge_pair(word, best)] += n
        words = merged
    return vocab, merges


@wrong(tok.encode, "merges in the order of the dictionary, not of the ranks")
def encode(text, vocab, merges):
    ids = []
    for piece in tok.pretokenize(text):
        word = tok.to_symbols(piece)
        for pair in merges:
            word = tok.merge_pair(word, pair)
        ids += [vocab[symbol] for symbol in word]
    return ids


@wrong(tok.decode, "a list of tokens by place: -1 is the last one")
def decode(ids, vocab):
    tokens = sorted(vocab, key=vocab.get)
    byte_of = {char: byte for byte, char in tok.BYTE_TO_CHAR.items()}
    try:
        return bytes(byte_of[char] for i in ids for char in tokens[i])
    except IndexError:
        raise ValueError("no token has this id") from None


@wrong(tok.longest_match_encode, "no token of more than sixteen bytes is looked for")
def longest_match_encode(text, vocab):
    ids = []
    for piece in tok.pretokenize(text):
        rest = "".join(tok.to_symbols(piece))
        while rest:
            n = next(n for n in range(min(16, len(rest)), 0, -1) if rest[:n] in vocab)
            ids.append(vocab[rest[:n]])
            rest = rest[n:]
    return ids


@wrong(tok.find_disagreements, "a text that is there twice comes once")
def find_disagreements(texts, vocab, merges):
    return [
        text
        for text in dict.fromkeys(texts)
        if tok.encode(text, vocab, merges) != tok.longest_match_encode(text, vocab)
    ]


@wrong(tok.split_special, "without special tokens an empty text is an empty part")
def split_special(text, special):
    if not special:
        return [text]
    either = "|".join(map(re.escape, sorted(special, key=len, reverse=True)))
    return [part for part in re.split(f"({either})", text) if part]


@wrong(tok.BPETokenizer, "where fewer tokens were learned than asked for, special ids leave a gap")
class BPETokenizer(tok.BPETokenizer):
    @classmethod
    def train(cls, corpus, vocab_size, special_tokens=("<|endoftext|>",)):
        ordinary = vocab_size - len(special_tokens)
        vocab, merges = tok.train_bpe(corpus, ordinary)
        return cls(vocab, merges, {token: ordinary + i for i, token in enumerate(special_tokens)})


# chapter 02


@wrong(tf.LayerNorm, "torch's own epsilon, whatever the configuration says")
class LayerNorm(tf.LayerNorm):
    def forward(self, residual):
        return F.layer_norm(residual, residual.shape[-1:], self.w, self.b)


@wrong(tf.Embed, "token 0 counts as padding: it is never trained")
class Embed(tf.Embed):
    def forward(self, tokens):
        return F.embedding(tokens, self.W_E, padding_idx=0)


@wrong(tf.PosEmbed, "positions of what is not token 0, as with padded texts")
class PosEmbed(tf.PosEmbed):
    def forward(self, tokens):
        places = (tokens != 0).long().cumsum(dim=-1) - 1
        return self.W_pos[places.clamp(min=0)]


@wrong(tf.Attention, "the root of d_model / n_heads, which need not be d_head")
class Attention(tf.Attention):
    def forward(self, normalized_resid_pre):
        x = normalized_resid_pre
        q, k, v = (
            torch.einsum("bpm,nmh->bpnh", x, W) + b
            for W, b in ((self.W_Q, self.b_Q), (self.W_K, self.b_K), (self.W_V, self.b_V))
        )
        scores = torch.einsum("bqnh,bknh->bnqk", q, k) / math.sqrt(self.cfg.d_model / self.cfg.n_heads)
        z = torch.einsum("bnqk,bknh->bqnh", self.apply_causal_mask(scores).softmax(dim=-1), v)
        return torch.einsum("bqnh,nhm->bqm", z, self.W_O) + self.b_O


@wrong(tf.TransformerBlock, "one LayerNorm under two names")
class TransformerBlock(tf.TransformerBlock):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.ln2 = self.ln1


@wrong(tf.Unembed, "the bias is a buffer: no optimizer moves it")
class Unembed(tf.Unembed):
    def __init__(self, cfg):
        super().__init__(cfg)
        del self.b_U
        self.register_buffer("b_U", torch.zeros(cfg.d_vocab))


@wrong(tf.DemoTransformer, "one block, listed n_layers times")
class DemoTransformer(tf.DemoTransformer):
    def __init__(self, cfg):
        super().__init__(cfg)
        self.blocks = nn.ModuleList([tf.TransformerBlock(cfg)] * cfg.n_layers)


@wrong(tf.get_log_probs, "the logarithm of a probability that is 0 in float32")
def get_log_probs(logits, tokens):
    probs = logits.softmax(dim=-1)
    return probs[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1).log()


@wrong(tf.training_step, "cuts long gradients to length 1")
def training_step(model, optimizer, tokens):
    loss = -tf.get_log_probs(model(tokens), tokens).mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


@wrong(tf.fold_layer_norm, "counts layers by one digit of their names")
def fold_layer_norm(state):
    state = {name: tensor.clone() for name, tensor in state.items()}
    n_layers = 1 + max(int(name[7]) for name in state if name.startswith("blocks."))
    readers = [("ln_final", "unembed.W_U", "unembed.b_U")]
    for layer in range(n_layers):
        block = f"blocks.{layer}"
        readers += [(f"{block}.ln1", f"{block}.attn.W_{x}", f"{block}.attn.b_{x}") for x in "QKV"]
        readers.append((f"{block}.ln2", f"{block}.mlp.W_in", f"{block}.mlp.b_in"))
    for norm, weight, bias in readers:
        w, b = state[f"{norm}.w"], state[f"{norm}.b"]
        state[bias] = state[bias] + b @ state[weight]
        state[weight] = w[:, None] * state[weight]
    for norm in {norm for norm, _, _ in readers}:
        state[f"{norm}.w"] = torch.ones_like(state[f"{norm}.w"])
        state[f"{norm}.b"] = torch.zeros_like(state[f"{norm}.b"])
    return state


# chapter 03


@wrong(sp.entropy, "leaves out a token that is impossible in any row")
def entropy(logits):
    log_probs = logits[:, ~logits.isneginf().any(dim=0)].log_softmax(dim=-1)
    return -(log_probs.exp() * log_probs).sum(dim=-1) / math.log(2)


@wrong(sp.apply_frequency_penalty, "refuses a negative penalty, which is finite")
def apply_frequency_penalty(input_ids, logits, freq_penalty):
    if not 0 <= freq_penalty < math.inf:
        raise ValueError("the penalty must be 0 or above, and finite")
    counts = torch.zeros_like(logits)
    counts.scatter_add_(-1, input_ids.clamp(min=0), (input_ids >= 0).to(logits.dtype))
    return logits - freq_penalty * counts


@wrong(sp.sample_basic, "says no only where all rows are impossible")
def sample_basic(logits):
    if logits.isneginf().all():
        raise ValueError("logits are all minus infinity")
    return torch.multinomial(logits.softmax(dim=-1), 1).squeeze(-1)


@wrong(sp.sample_top_k, "2.5 counts as 2")
def sample_top_k(logits, k):
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"k is {k}")
    kth = logits.topk(int(k), dim=-1).values[:, -1:]
    return sp.sample_basic(logits.masked_fill(logits < kth, -math.inf))


@wrong(sp.sample_next_token, "top_k=0 means no cut instead of an error")
def sample_next_token(input_ids, logits, temperature=1.0, top_k=None, top_p=None, frequency_penalty=0.0):
    if not 0 <= temperature < math.inf:
        raise ValueError("the temperature must be 0 or above, and finite")
    if top_k is not None and top_p is not None:
        raise ValueError("choose top_k or top_p")
    if frequency_penalty:
        logits = sp.apply_frequency_penalty(input_ids, logits, frequency_penalty)
    if temperature == 0:
        return sp.greedy_search(logits)
    logits = sp.apply_temperature(logits, temperature)
    if top_k:
        return sp.sample_top_k(logits, top_k)
    if top_p is not None:
        return sp.sample_top_p(logits, top_p)
    return sp.sample_basic(logits)


@wrong(kv_cache.KeyValueCache, "after the last layer the length moves by itself")
class KeyValueCache(kv_cache.KeyValueCache):
    def append(self, layer, k, v):
        both = super().append(layer, k, v)
        if layer == len(self.keys) - 1:
            self.length += k.shape[2]
        return both


@wrong(kv_cache.attention_with_cache, "a single new token sees all, padding too")
def attention_with_cache(attn, normalized_resid_pre, cache, layer, allowed):
    x = normalized_resid_pre
    q, k, v = (
        torch.einsum("bpm,nmh->bnph", x, W) + b[:, None]
        for W, b in ((attn.W_Q, attn.b_Q), (attn.W_K, attn.b_K), (attn.W_V, attn.b_V))
    )
    k, v = cache.append(layer, k, v)
    scores = q @ k.mT / attn.cfg.d_head**0.5
    if x.shape[1] > 1:
        scores = scores.masked_fill(~allowed[:, None], attn.IGNORE)
    return torch.einsum("bnqh,nhm->bqm", scores.softmax(dim=-1) @ v, attn.W_O) + attn.b_O


@wrong(sp.banned_tokens, "remembers only the last token that followed")
def banned_tokens(tokens, n):
    if n < 1:
        raise ValueError(f"n is {n}")
    if n == 1:
        return set(tokens)
    follows = {tuple(tokens[i : i + n - 1]): tokens[i + n - 1] for i in range(len(tokens) - n + 1)}
    last = tuple(tokens[-(n - 1) :])
    return {follows[last]} if last in follows else set()


@wrong(sp.distinct_n, "joined digits: 1 11 and 11 1 are the same")
def distinct_n(texts, n):
    if n < 1:
        raise ValueError(f"n is {n}")
    ngrams = ["".join(map(str, text[i : i + n])) for text in texts for i in range(len(text) - n + 1)]
    if not ngrams:
        raise ValueError("no text is long enough")
    return len(set(ngrams)) / len(ngrams)


@wrong(sp.sample_min_p, "the logarithm of 0: min_p=0 is refused")
def sample_min_p(logits, min_p):
    if not 0 <= min_p <= 1:
        raise ValueError(f"min_p is {min_p}")
    best = logits.max(dim=-1, keepdim=True).values
    return sp.sample_basic(logits.masked_fill(logits < best + math.log(min_p), -math.inf))


@wrong(speculation.accept_drafted, "one random number a row, the same at every place")
def accept_drafted(target_probs, draft_probs, drafted):
    batch, n = drafted.shape
    if draft_probs.shape[1] != n or target_probs.shape[1] != n + 1:
        raise ValueError("the places don't fit")
    target = target_probs[:, :-1].gather(2, drafted[..., None])[..., 0]
    draft = draft_probs.gather(2, drafted[..., None])[..., 0]
    if (draft <= 0).any():
        raise ValueError("a drafted token has probability 0")
    kept = (torch.rand(batch, 1) * draft < target).long().cumprod(dim=1).sum(dim=1)
    rest = torch.cat([(target_probs[:, :-1] - draft_probs).clamp(min=0), target_probs[:, -1:]], dim=1)
    rows = torch.arange(batch)
    out = F.pad(drafted, (0, 1), value=sp.PAD)
    out[rows, kept] = torch.multinomial(rest[rows, kept], 1)[:, 0]
    return out.masked_fill(torch.arange(n + 1) > kept[:, None], sp.PAD)


# chapter 04


@wrong(inspection.stack_over_layers, "any end of a name will do: 'W_Q' is taken for 'attn.W_Q'")
def stack_over_layers(model, path):
    found = [weight for name, weight in model.named_parameters() if name.endswith(path)]
    if not found:
        raise ValueError(f"no weight {path}")
    return torch.stack(found)


@wrong(inspection.memory_by_kind, "the bytes of storages: a view counts as all that it looks into")
def memory_by_kind(cache):
    sizes = Counter()
    for name, x in cache.items():
        sizes[name.split(".")[-1]] += x.untyped_storage().nbytes()
    return dict(sizes.most_common())


@wrong(inspection.keep_only, "layer 1 is found at the end of layer 11")
def keep_only(names, layers):
    ends = tuple(inspection.act_name(name, layer).removeprefix("blocks.") for name in names for layer in layers)
    return lambda name: name.endswith(ends)


@wrong(inspection.attention_pattern, "queries of one text are compared with keys of several")
def attention_pattern(q, k):
    if q.shape[1:] != k.shape[1:]:
        raise ValueError("queries and keys differ")
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(dim=-1)


@wrong(inspection.top_tokens, "a dictionary by token: of equal tokens one is left")
def top_tokens(activations, str_tokens, k=5):
    if len(activations) != len(str_tokens):
        raise ValueError("not one activation for each token")
    best = {}
    for token, value in zip(str_tokens, activations.tolist(), strict=True):
        best[token] = max(value, best.get(token, value))
    return sorted(best.items(), key=lambda item: -item[1])[:k]


@wrong(inspection.f1_score, "1 where there is nothing to find and nothing was said")
def f1_score(predicted, labels):
    if predicted.shape != labels.shape:
        raise ValueError("not one label for each prediction")
    both = (predicted.sum() + labels.sum()).item()
    return 2 * (predicted & labels).sum().item() / both if both else 1.0


@wrong(inspection.best_f1, "only thresholds above 0 are tried")
def best_f1(activations, labels):
    if len(activations) != len(labels) or not labels.any():
        raise ValueError("not one label for each token, or none is true")
    thresholds, order = activations.sort(dim=0, descending=True)
    hits = labels[order].cumsum(dim=0)
    f1 = 2 * hits / (torch.arange(1, len(labels) + 1)[:, None] + labels.sum())
    last = torch.cat([thresholds[1:] != thresholds[:-1], torch.ones_like(thresholds[:1], dtype=torch.bool)])
    f1, place = (f1 * (last & (thresholds > 0))).max(dim=0)
    return f1, thresholds.gather(0, place[None])[0]


@wrong(inspection.HookPoint, "the hook point comes by place, not by the keyword `hook`")
class HookPoint(inspection.HookPoint):
    def forward(self, x):
        for hook_fn in self.hook_fns:
            returned = hook_fn(x, self)
            x = x if returned is None else returned
        return x


@wrong(inspection.run_with_hooks, "a part of a name will do")
def run_with_hooks(model, x, fwd_hooks):
    try:
        for where, hook_fn in fwd_hooks:
            fits = where if callable(where) else (lambda name, where=where: where in name)
            names = [name for name in model.hook_dict if fits(name)]
            if not names:
                raise ValueError(f"{where!r} fits no hook point")
            for name in names:
                model.hook_dict[name].add_hook(hook_fn)
        return model(x)
    finally:
        for point in model.hook_dict.values():
            point.reset_hooks()


@wrong(inspection.bind_head, "what the hook returns is lost")
def bind_head(hook_fn, head):
    def hook(z, hook):
        hook_fn(z, hook, head=head)

    return hook


# chapter 05


@wrong(induction.generate_repeated_tokens, "token 0 is never drawn")
def generate_repeated_tokens(model, seq_len, batch_size=1):
    if 1 + 2 * seq_len > model.cfg.n_ctx:
        raise ValueError("too long")
    passage = torch.randint(1, model.cfg.d_vocab, (batch_size, seq_len))
    bos = torch.full((batch_size, 1), model.tokenizer.bos_token_id)
    return torch.cat([bos, passage, passage], dim=1).to(model.W_E.device)


@wrong(induction.get_log_probs, "all dimensions of size 1 are dropped, the batch too")
def get_log_probs_05(logits, tokens):
    return logits[:, :-1].log_softmax(dim=-1).gather(-1, tokens[:, 1:, None]).squeeze()


@wrong(induction.attention_detectors, "query 1 is left out of `previous`")
def attention_detectors(cache):
    scores = {"current": [], "previous": [], "first": []}
    for layer in range(cache.model.cfg.n_layers):
        pattern = cache["pattern", layer]
        scores["current"].append(pattern.diagonal(dim1=-2, dim2=-1)[..., 1:].mean((0, -1)))
        scores["previous"].append(pattern.diagonal(-1, dim1=-2, dim2=-1)[..., 1:].mean((0, -1)))
        scores["first"].append(pattern[:, :, 1:, 0].mean((0, -1)))
    return {kind: torch.stack(rows) for kind, rows in scores.items()}


@wrong(induction.induction_score_hook, "adds to what stands in the table")
def induction_score_hook(pattern, hook, scores):
    seq_len = induction.half_length(pattern.shape[-1])
    stripe = pattern.diagonal(1 - seq_len, dim1=-2, dim2=-1)[..., 2:]
    scores[hook.layer()] += stripe.mean((0, -1))


@wrong(induction.in_context_learning_score, "the step of a slice is lost")
def in_context_learning_score(log_probs, early, late):
    late_loss = -log_probs[:, late.start : late.stop].mean()
    return (late_loss + log_probs[:, early.start : early.stop].mean()).item()


@wrong(induction.logit_attribution, "as many heads in the second part as in the first")
def logit_attribution(embed, l1_results, l2_results, W_U, tokens):
    if len({len(tokens), len(embed), len(l1_results), len(l2_results)}) > 1:
        raise ValueError("not of one sequence")
    if len({W_U.shape[0], embed.shape[-1], l1_results.shape[-1], l2_results.shape[-1]}) > 1:
        raise ValueError("not of one model")
    n = l1_results.shape[1]
    direction = W_U[:, tokens[1:]].T
    out = torch.zeros(len(tokens) - 1, 1 + 2 * n)
    out[:, 0] = (embed[:-1] * direction).sum(-1)
    for head in range(n):
        out[:, 1 + head] = (l1_results[:-1, head] * direction).sum(-1)
        out[:, 1 + n + head] = (l2_results[:-1, head] * direction).sum(-1)
    return out


@wrong(induction.head_ablation_hook, "refuses a single sequence for `zero` too")
def head_ablation_hook(z, hook, head_index_to_ablate, kind="zero"):
    if kind not in ("zero", "mean", "resample") or len(z) < 2:
        raise ValueError("another kind, or one sequence only")
    ours = z[:, :, head_index_to_ablate].clone()
    new = {"zero": torch.zeros_like(ours), "mean": ours.mean(0).expand_as(ours), "resample": ours.roll(1, 0)}
    z[:, :, head_index_to_ablate] = new[kind]


@wrong(induction.get_ablation_scores_batched, "heads that don't fill a pass are left out")
def get_ablation_scores_batched(model, tokens, ablation_function=induction.head_ablation_hook, heads_per_pass=None):
    scores = induction.get_ablation_scores_batched(model, tokens, ablation_function, heads_per_pass)
    if heads_per_pass:
        scores[:, model.cfg.n_heads // heads_per_pass * heads_per_pass :] = 0
    return scores


@wrong(comp.top_1_acc, "a mean over batches, of which the last is shorter")
def top_1_acc(full_OV_circuit, batch_size=500):
    A, B = full_OV_circuit.A, full_OV_circuit.B
    parts = torch.arange(len(A)).split(batch_size)
    return sum(((A[rows] @ B).argmax(-1) == rows).float().mean().item() for rows in parts) / len(parts)


@wrong(comp.decompose_qk_input, "the heads of the layer right before only")
def decompose_qk_input(cache, layer=1):
    cfg = cache.model.cfg
    if not cfg.attn_only or cfg.normalization_type is not None or cfg.positional_embedding_type != "shortformer":
        raise ValueError("another kind of model")
    if cache["embed"].ndim != 2 or get_act_name("result", 0) not in cache:
        raise ValueError("a batch, or no result")
    heads = [cache["result", layer - 1].transpose(0, 1)] if layer else []
    return torch.cat([cache["embed"][None], *heads, cache["pos_embed"][None]])


@wrong(comp.find_K_comp_full_circuit, "heads of one layer may feed each other")
def find_K_comp_full_circuit(model, prev_token_head_index, ind_head_index):
    if prev_token_head_index[0] > ind_head_index[0]:
        raise ValueError("the first does not come before the second")
    later = (prev_token_head_index[0] + 1, 0)
    if prev_token_head_index[0] == ind_head_index[0] and later[0] < model.cfg.n_layers:
        return comp.find_K_comp_full_circuit(model, prev_token_head_index, later)
    if prev_token_head_index[0] == ind_head_index[0]:
        return comp.find_K_comp_full_circuit(model, (0, prev_token_head_index[1]), ind_head_index)
    return comp.find_K_comp_full_circuit(model, prev_token_head_index, ind_head_index)


# chapter 06


@wrong(sup.factored_code, "as many items as combinations are refused")
def factored_code(n_items, factors):
    if n_items >= math.prod(factors):
        raise ValueError("too few options")
    return torch.stack(
        [
            torch.cat([F.one_hot(torch.tensor(choice), n) for choice, n in zip(choices, factors, strict=True)])
            for choices in list(product(*map(range, factors)))[:n_items]
        ]
    ).bool()


@wrong(sup.generate_uncorrelated_features, "all instances share their draws")
def generate_uncorrelated_features(feature_probability, batch_size):
    u = torch.rand(batch_size, 1, feature_probability.shape[-1])
    size = 1 - torch.rand(batch_size, 1, feature_probability.shape[-1])
    return torch.where(u < feature_probability, size, 0.0)


@wrong(sup.ToyModel, "a mean over no features is no number")
class ToyModel(sup.ToyModel):
    def calculate_loss(self, out, batch):
        return (self.importance * (out - batch) ** 2).mean(dim=(0, 2))


@wrong(sup.drop_baseline, "keeps what is important and often on, not what would cost most")
def drop_baseline(feature_probability, importance, d_hidden):
    p = feature_probability
    cost = importance * (p / 3 - p**2 / 4)
    order = (importance * p).argsort(dim=-1, descending=True)
    return cost.gather(-1, order)[..., d_hidden:].sum(-1) / max(1, p.shape[-1])


@wrong(sup.pca_baseline, "with more dimensions than features an index from the end")
def pca_baseline(batch, importance, d_hidden):
    x = (batch * importance.sqrt()).transpose(0, 1)
    x = x - x.mean(dim=1, keepdim=True)
    values = torch.linalg.eigvalsh(x.mT @ x / batch.shape[0]).clamp_min(0)
    return values[:, : batch.shape[-1] - d_hidden].sum(-1) / max(1, batch.shape[-1])


@wrong(sup.generate_correlated_features, "the second size is 1 minus the first")
def generate_correlated_features(pair_probability, batch_size):
    on = torch.rand(batch_size, *pair_probability.shape) < pair_probability
    size = torch.rand(batch_size, *pair_probability.shape)
    return torch.stack([size * on, (1 - size) * on], dim=-1).flatten(-2)


@wrong(sup.generate_anticorrelated_features, "a probability of exactly 1/2 is refused")
def generate_anticorrelated_features(pair_probability, batch_size):
    if (pair_probability >= 0.5).any():
        raise ValueError("too likely")
    u = torch.rand(batch_size, *pair_probability.shape)
    on = torch.stack([u < pair_probability, (u >= pair_probability) & (u < 2 * pair_probability)], dim=-1)
    return (torch.rand(on.shape) * on).flatten(-2)


@wrong(sup.compute_dimensionality, "a small number is added below: short features lose their share")
def compute_dimensionality(W):
    along = F.normalize(W, dim=-2, eps=1e-12).mT @ W
    return W.pow(2).sum(-2) / (along.pow(2).sum(-1) + 1e-8)


@wrong(sup.NeuronComputationModel, "all features of an input have the same sign")
class NeuronComputationModel(sup.NeuronComputationModel):
    def generate_batch(self, batch_size):
        size = sup.ToyModel.generate_batch(self, batch_size)
        return size * (torch.randint(0, 2, (batch_size, size.shape[1], 1)) * 2 - 1)


@wrong(double_descent.generate_dataset, "an empty point gets one feature, and is not drawn again")
def generate_dataset(n_points, n_features, feature_probability):
    if n_features < 1 or feature_probability <= 0:
        raise ValueError("all points would be empty")
    on = torch.rand(n_points, n_features) < feature_probability
    points = torch.where(on, 1 - torch.rand(n_points, n_features), 0.0)
    for i in (points.sum(-1) == 0).nonzero()[:, 0].tolist():
        points[i, random.randrange(n_features)] = 1.0
    return points / points.norm(dim=-1, keepdim=True)


# chapter 07


@wrong(toy.ToySAE, "the length or the epsilon, whichever is larger, not their sum")
class ToySAE(toy.ToySAE):
    @property
    def W_dec_normalized(self):
        return F.normalize(self.W_dec, dim=-1, eps=self.cfg.weight_normalize_eps)


@wrong(toy.match_latents, "a small number is added to the lengths: short vectors lose their cosine")
def match_latents(W_dec, W):
    features, latents = (v / (v.norm(dim=-1, keepdim=True) + 1e-6) for v in (W.mT, W_dec))
    best = (features @ latents.mT).max(dim=-1)
    return best.indices, best.values


@wrong(toy.dead_latents, "seldom active counts as dead")
def dead_latents(frac_active_in_window):
    return frac_active_in_window.mean(dim=0) < 1e-4


@wrong(toy.resample_simple, "no direction with a negative number")
@torch.no_grad()
def resample_simple(sae, frac_active_in_window, resample_scale):
    dead = toy.dead_latents(frac_active_in_window)
    v = F.normalize(torch.rand(int(dead.sum()), sae.cfg.d_in), dim=-1)
    sae.W_dec[dead] = v
    sae.W_enc.mT[dead] = resample_scale * v
    sae.b_enc[dead] = 0


@wrong(toy.resample_advanced, "the mean length of the living latents of all instances")
@torch.no_grad()
def resample_advanced(sae, frac_active_in_window, resample_scale, batch_size):
    dead = toy.dead_latents(frac_active_in_window)
    h = sae.generate_batch(batch_size)
    losses = (h - sae(h)[3]).pow(2).sum(-1)
    living = sae.W_enc.norm(dim=1)[~dead]
    length = living.mean() if len(living) else 1.0
    for i in range(sae.cfg.n_inst):
        weights, n = losses[:, i] ** 2, int(dead[i].sum())
        if not n or not weights.sum():
            continue
        v = F.normalize(h[torch.multinomial(weights, n, replacement=True), i] - sae.b_dec[i], dim=-1)
        sae.W_dec[i, dead[i]] = v
        sae.W_enc[i].mT[dead[i]] = resample_scale * length * v
        sae.b_enc[i, dead[i]] = 0


@wrong(toy.GatedToySAE, "b_dec is trained by the loss of the gate")
class GatedToySAE(toy.GatedToySAE):
    def forward(self, h):
        gate = self.pre_activations(h)
        product = torch.einsum("bid,ids->bis", h - self.b_dec, self.W_enc)
        acts = (gate > 0) * F.relu(product * self.r_mag.exp() + self.b_mag)
        rebuilt = self.decode(acts)
        by_gate = torch.einsum("bis,isd->bid", F.relu(gate), self.W_dec_normalized.detach()) + self.b_dec
        loss = {
            "L_reconstruction": (rebuilt - h).pow(2).mean(-1),
            "L_sparsity": F.relu(gate).sum(-1),
            "L_aux": (by_gate - h).pow(2).mean(-1),
        }
        total = loss["L_reconstruction"] + self.cfg.sparsity_coeff * loss["L_sparsity"] + loss["L_aux"]
        return loss, total, acts, rebuilt


@wrong(toy.TopKToySAE, "the k largest of all instances together")
class TopKToySAE(toy.TopKToySAE):
    def forward(self, h):
        acts = F.relu(self.pre_activations(h))
        top = acts.flatten(1).topk(self.cfg.k * acts.shape[1], dim=-1)
        acts = torch.zeros_like(acts.flatten(1)).scatter(-1, top.indices, top.values).unflatten(1, acts.shape[1:])
        rebuilt = self.decode(acts)
        loss = (rebuilt - h).pow(2).mean(-1)
        return {"L_reconstruction": loss}, loss, acts, rebuilt


@wrong(toy.Heaviside, "the window is one wide, whatever eps is")
class Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, theta, eps):
        ctx.save_for_backward(z, theta)
        ctx.eps = eps
        return (z > theta).to(z.dtype)

    @staticmethod
    def backward(ctx, grad_output):
        z, theta = ctx.saved_tensors
        return torch.zeros_like(z), -toy.rectangle(z - theta) / ctx.eps * grad_output, None


@wrong(toy.JumpReLU, "lets gradients through wherever z is positive")
class JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, theta, eps):
        ctx.save_for_backward(z, theta)
        ctx.eps = eps
        return z * (z > theta)

    @staticmethod
    def backward(ctx, grad_output):
        z, theta = ctx.saved_tensors
        theta_grad = -theta / ctx.eps * toy.rectangle((z - theta) / ctx.eps) * grad_output
        return (z > 0) * grad_output, theta_grad, None


@wrong(toy.JumpReLUToySAE, "counts without a gradient for the thresholds")
class JumpReLUToySAE(toy.JumpReLUToySAE):
    def forward(self, h):
        pre, theta = self.pre_activations(h), self.log_threshold.exp()
        acts = toy.JumpReLU.apply(pre, theta, self.cfg.ste_epsilon)
        rebuilt = self.decode(acts)
        loss = {"L_reconstruction": (rebuilt - h).pow(2).mean(-1), "L_sparsity": (pre > theta).float().sum(-1)}
        return loss, loss["L_reconstruction"] + self.cfg.sparsity_coeff * loss["L_sparsity"], acts, rebuilt


# chapter 08


@wrong(saes.sae_metrics, "a latent that is active on <|endoftext|> only counts as dead")
def sae_metrics(model, sae, tokens):
    metrics = saes.sae_metrics(model, sae, tokens)
    acts = saes.get_sae_acts(model, sae, tokens)[tokens != model.tokenizer.bos_token_id]
    return metrics | {"dead": 1 - (acts > 0).any(dim=0).float().mean().item()}


@wrong(saes.positive_activations, "equal activations come once")
def positive_activations(model, sae, act_store, latent_idx, total_batches):
    batches = saes.token_batches(act_store, total_batches)
    acts = torch.cat([saes.get_sae_acts(model, sae, tokens)[..., latent_idx] for tokens in batches])
    return acts[acts > 0].unique(), (acts > 0).float().mean().item()


@wrong(saes.get_k_largest_indices, "looks at the 3 k largest values only, which may all overlap")
def get_k_largest_indices(x, k, buffer=0, no_overlap=True):
    width = x.shape[1] - 2 * buffer
    if buffer < 0 or width < 1:
        raise ValueError("no window fits")
    order = x[:, buffer : buffer + width].flatten().argsort(descending=True, stable=True)[: 3 * k]
    chosen = []
    for place in order.tolist():
        row, position = place // width, place % width + buffer
        if not no_overlap or all(row != r or abs(position - p) > 2 * buffer for r, p in chosen):
            chosen.append((row, position))
    return torch.tensor(chosen[:k], dtype=torch.long).reshape(-1, 2)


@wrong(saes.index_with_buffer, "only the right end of a row is looked at: on the left a window begins at the end")
def index_with_buffer(x, indices, buffer):
    window = indices[:, 1:] + torch.arange(-buffer, buffer + 1)
    if (window >= x.shape[1]).any():
        raise ValueError("a window reaches beyond its row")
    return x[indices[:, :1], window]


@wrong(saes.fetch_max_activating_examples, "a window stays that is active beside its middle only")
def fetch_max_activating_examples(model, sae, act_store, latent_idx, total_batches, k=10, buffer=8):
    batches = saes.token_batches(act_store, total_batches)
    acts = torch.cat([saes.get_sae_acts(model, sae, tokens)[..., latent_idx] for tokens in batches])
    where = saes.get_k_largest_indices(acts, k, buffer)
    windows = saes.index_with_buffer(torch.cat(batches), where, buffer), saes.index_with_buffer(acts, where, buffer)
    return [saes.Example(model.to_str_tokens(t), a) for t, a in zip(*windows, strict=True) if a.max() > 0]


@wrong(saes.logit_weights, "the direction is brought to length 1")
def logit_weights(model, sae, latent_idx):
    direction = F.normalize(sae.W_dec[latent_idx], dim=-1)
    if "hook_z" in sae.cfg.metadata.hook_name:
        direction = direction @ model.W_O[saes.layer_of(sae)].flatten(0, 1)
    return direction @ model.W_U


@wrong(saes.best_units, "always fourteen thresholds")
def best_units(values, labels, n=14):
    return saes.best_units(values, labels, 14)


@wrong(saes.greedy_cover, "stops where F1 rises by less than 0.001")
def greedy_cover(fires, label, n):
    chosen, history = saes.greedy_cover(fires, label, n)
    for i, (before, after) in enumerate(pairwise([0.0, *history])):
        if after - before < 1e-3:
            return chosen[:i], history[:i]
    return chosen, history


@wrong(probes.best_k_units, "a unit that is the same everywhere differs by no number, which comes first")
@torch.no_grad()
def best_k_units(values, labels, k):
    half = len(values) // 2
    seen, truth = values[:half], labels[:half].to(values.dtype)
    with_label = truth.T @ seen / truth.sum(0)[:, None]
    without = (1 - truth).T @ seen / (1 - truth).sum(0)[:, None]
    return ((with_label - without).abs() / seen.std(0)).topk(k, dim=1).indices


@wrong(saes.simulation_score, "a constant is told by a length of exactly 0, which thirty times 0.1 don't have")
def simulation_score(simulated, acts):
    guess, truth = (x.flatten() - x.mean() for x in (simulated, acts))
    lengths = guess.norm() * truth.norm()
    return (guess @ truth / lengths).item() if lengths > 0 else 0.0


@wrong(sae_causes.latent_logit_attribution, "takes the mean off in a model with RMSNorm as well")
def latent_logit_attribution(acts, directions, cache, logit_diff_directions):
    directions = directions - directions.mean(dim=-1, keepdim=True)
    return acts * (logit_diff_directions @ directions.T) / cache["ln_final.hook_scale"][:, -1]


@wrong(sae_causes.get_cache_fwd_and_bwd, "each autoencoder in a run of its own")
def get_cache_fwd_and_bwd(model, saes, tokens, metric):
    acts, gradients = {}, {}
    for sae in saes:
        some = sae_causes.get_cache_fwd_and_bwd(model, [sae], tokens, metric)
        acts |= some[0]
        gradients |= some[1]
    return acts, gradients


@wrong(sae_causes.kind_shares, "takes letters of the end mark off, not the mark")
def kind_shares(texts, end="<|endoftext|>"):
    kinds = Counter(sae_causes.parse(text.rstrip(end), cut=not text.endswith(end)).kind for text in texts)
    return {kind: n / len(texts) for kind, n in kinds.items()}


# chapter 09


@wrong(ioi.IOIDataset, "the seed of new names is always 0")
class IOIDataset(ioi.IOIDataset):
    def abc(self, seed=0):
        return super().abc()


@wrong(ioi.logits_to_ave_logit_diff, "three answers for each prompt pass")
def logits_to_ave_logit_diff(logits, answer_tokens, per_prompt=False):
    if len(answer_tokens) != len(logits):
        raise ValueError("not one pair for each prompt")
    last = logits[:, -1].gather(-1, answer_tokens)
    diff = last[:, 0] - last[:, 1]
    return diff if per_prompt else diff.mean()


@wrong(ioi.residual_stack_to_logit_diff, "takes the mean off whatever the model's LayerNorm does")
def residual_stack_to_logit_diff(residual_stack, cache, logit_diff_directions):
    parts = residual_stack - residual_stack.mean(dim=-1, keepdim=True)
    return ((parts / cache["ln_final.hook_scale"][:, -1]) * logit_diff_directions).sum(-1).mean(-1)


@wrong(ioi.ioi_metric, "never below 0 nor above 1")
def ioi_metric(logits, answer_tokens, clean_logit_diff, corrupted_logit_diff):
    return ioi.ioi_metric(logits, answer_tokens, clean_logit_diff, corrupted_logit_diff).clamp(0, 1)


@wrong(ioi.patch_residual_component, "the clean run's mean over prompts at this position")
def patch_residual_component(corrupted_residual_component, hook, pos, clean_cache):
    clean = clean_cache[hook.name]
    ioi.require_same_length(corrupted_residual_component, clean)
    corrupted_residual_component[:, pos] = clean[:, pos].mean(dim=0)
    return corrupted_residual_component


@wrong(ioi.get_act_patch_resid_pre, "0, and not the corrupted metric, where both runs agree")
def get_act_patch_resid_pre(model, corrupted_tokens, clean_cache, patching_metric):
    ioi.require_same_length(corrupted_tokens, clean_cache)
    _, cache = model.run_with_cache(corrupted_tokens, names_filter=lambda name: name.endswith("resid_pre"))
    results = torch.zeros(model.cfg.n_layers, corrupted_tokens.shape[1])
    for layer, pos in product(*map(range, results.shape)):
        if torch.equal(cache["resid_pre", layer][:, pos], clean_cache["resid_pre", layer][:, pos]):
            continue
        hook = partial(ioi.patch_residual_component, pos=pos, clean_cache=clean_cache)
        logits = model.run_with_hooks(corrupted_tokens, fwd_hooks=[(get_act_name("resid_pre", layer), hook)])
        results[layer, pos] = patching_metric(logits)
    return results


@wrong(circuit.patch_or_freeze_heads, "layers before the sender's are left as they come")
def patch_or_freeze_heads(z, hook, sender, orig_cache, new_cache):
    orig, new = orig_cache[hook.name], new_cache[hook.name]
    for cached in (orig, new):
        ioi.require_same_length(z, cached)
    if hook.layer() < sender[0]:
        return z
    z[:] = orig
    if hook.layer() == sender[0]:
        z[:, :, sender[1]] = new[:, :, sender[1]]
    return z


@wrong(circuit.path_patch_to_heads, "of several receivers in a layer only the last")
def path_patch_to_heads(model, orig_tokens, orig_cache, new_cache, sender, receivers, receiver_input="q"):
    last = list(dict(receivers).items())
    return circuit.path_patch_to_heads(model, orig_tokens, orig_cache, new_cache, sender, last, receiver_input)


@wrong(circuit.copying_scores, "always the top five")
def copying_scores(model, name_tokens, top_k=5):
    return circuit.copying_scores(model, name_tokens, 5)


@wrong(circuit.run_circuit, "means over positions, the same at each")
def run_circuit(model, tokens, circuit_heads, means):
    return circuit.run_circuit(model, tokens, circuit_heads, means.mean(dim=1, keepdim=True).expand_as(means))


# chapter 10


@wrong(fv.ICLSequence, "of two shots with the same input the last is left")
class ICLSequence(fv.ICLSequence):
    def prompt(self):
        *shots, (query, _) = self.word_pairs
        return fv.START + fv.task_prompt(list(dict(shots).items()), query, self.layout)


@wrong(fv.ICLDataset, "labels are drawn with Python's own generator: the seed does nothing")
class ICLDataset(fv.ICLDataset):
    def create_corrupted_dataset(self, seed=0, labels=None):
        if labels is not None:
            seed = random.randrange(10**6)
        return super().create_corrupted_dataset(seed, labels)


@wrong(fv.calculate_h, "words without their leading space")
def calculate_h(model, dataset, layer=-1):
    words, h = fv.calculate_h(model, dataset, layer)
    return [word.strip() for word in words], h


@wrong(fv.intervene_with_h, "h reaches the first prompt only")
def intervene_with_h(model, zero_shot_dataset, h, layer):
    with model.trace(**fv.remote_options()) as tracer:
        with tracer.invoke(zero_shot_dataset.prompts):
            plain = model.lm_head.output[:, -1].argmax(dim=-1).save()
        with tracer.invoke(zero_shot_dataset.prompts):
            fv.layer_output(model, layer)[0, -1] += h
            steered = model.lm_head.output[:, -1].argmax(dim=-1).save()
    decode = model.tokenizer.batch_decode
    return decode(plain[:, None]), decode(steered[:, None])


@wrong(fv.calculate_fn_vectors_and_intervene, "no layers means all layers")
def calculate_fn_vectors_and_intervene(model, dataset, layers=None, corrupted=None):
    return fv.calculate_fn_vectors_and_intervene(model, dataset, layers or None, corrupted)


@wrong(fv.calculate_fn_vector, "a head from the end, (-1, 0), passes")
def calculate_fn_vector(model, dataset, head_list):
    sizes = model.config.n_layer, model.config.n_head
    if not head_list or any(layer >= sizes[0] or head >= sizes[1] for layer, head in head_list):
        raise ValueError("no head, or none that the model has")
    there = [(layer % sizes[0], head % sizes[1]) for layer, head in head_list]
    return fv.calculate_fn_vector(model, dataset, there)


@wrong(fv.intervene_with_fn_vector, "the word with a space before it, which the template has already")
def intervene_with_fn_vector(model, word, layer, fn_vector, prompt_template="- {x} ->", n_tokens=1):
    return fv.intervene_with_fn_vector(model, f" {word}", layer, fn_vector, prompt_template, n_tokens)


@wrong(fv.steer, "the prompt's earlier tokens are pushed too")
def steer(model, prompt, layer, vector, n_tokens, strength=1.0):
    length = len(model.tokenizer(prompt).input_ids)
    with model.generate(prompt, max_new_tokens=n_tokens, do_sample=False, **fv.remote_options()) as tracer:
        for _ in tracer.iter[:n_tokens]:
            fv.layer_output(model, layer)[:] += strength * vector
        result = tracer.result.save()
    return model.tokenizer.decode(result[0, length:])


@wrong(causal_tracing.corrupt_subject, "all prompts get the noise of the first")
def corrupt_subject(model, prompts, subjects, noise):
    return causal_tracing.corrupt_subject(model, prompts, subjects, noise[:1].expand_as(noise))


@wrong(fv.causal_effects_one_trace, "rows in the order of the layers, not as asked for")
def causal_effects_one_trace(model, dataset, layers=None, corrupted=None):
    return fv.causal_effects_one_trace(model, dataset, None if layers is None else sorted(layers), corrupted)


@wrong(fv.resumable_sweep, "a number 0 counts as not measured")
def resumable_sweep(measure, heads, file):
    done = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            head, number = json.loads(line)
        except ValueError:
            continue
        done[tuple(head)] = number
    if file.exists() and file.read_text() and not file.read_text().endswith("\n"):
        file.write_text(file.read_text() + "\n")
    for head in heads:
        if not done.get(head):
            done[head] = float(measure(head))
            with file.open("a") as out:
                out.write(json.dumps([head, done[head]]) + "\n")
    return {head: done[head] for head in heads}


# chapter 11


@wrong(tc.Transcoder, "a threshold below 0 lets negative latents through")
class Transcoder(tc.Transcoder):
    def encode(self, x):
        pre = x @ self.W_enc + self.b_enc
        return torch.where(pre > self.threshold, pre, 0.0)


@wrong(tc.transcoder_hooks, "what was kept stays in memory after the run")
def transcoder_hooks(model, transcoders):
    hooks, taken = [], set()
    for transcoder in transcoders:
        tc.check_transcoder(model, transcoder)
        reads, writes = tc.places(transcoder)
        if writes in taken:
            raise ValueError("two at one place")
        taken.add(writes)
        kept = {}

        def keep(x, hook, kept=kept):
            kept["x"] = x

        def replace(out, hook, kept=kept, transcoder=transcoder):
            return transcoder(kept["x"])

        hooks += [(reads, keep), (writes, replace)]
    return hooks


@wrong(tc.transcoder_metrics, "a latent that is active on <|endoftext|> alone is not dead")
def transcoder_metrics(model, transcoder, tokens):
    metrics = tc.transcoder_metrics(model, transcoder, tokens)
    reads, _ = tc.places(transcoder)
    _, cache = model.run_with_cache(tokens, names_filter=reads)
    active = transcoder.encode(cache[reads]) > 0
    return metrics | {"dead": 1 - active.flatten(0, 1).any(dim=0).float().mean().item()}


@wrong(tc.de_embedding, "extended: what MLP 0 makes, without the embedding itself")
def de_embedding(model, transcoder, extended=False):
    layer = saes.layer_of(transcoder)
    if extended and layer == 0:
        raise ValueError("nothing comes before")
    vectors = model.W_E
    if extended:
        vectors = model.blocks[0].mlp(model.blocks[0].ln2(vectors[None]))[0]
    return model.blocks[layer].ln2(vectors[None])[0] @ transcoder.W_enc + transcoder.b_enc


@wrong(tc.mlp_jacobian, "the neurons' bias is forgotten")
def mlp_jacobian(model, layer, x):
    mlp = model.blocks[layer].mlp
    with torch.enable_grad():
        pre = (x @ mlp.W_in).detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(mlp.act_fn(pre).sum(), pre)
    return torch.einsum("in,tn,no->tio", mlp.W_in, slope, mlp.W_out)


@wrong(tc.connections, "two transcoders of one layer pass")
def connections(earlier, later):
    if saes.layer_of(earlier) > saes.layer_of(later):
        raise ValueError("the earlier one first")
    return (earlier.W_dec - earlier.W_dec.mean(dim=1, keepdim=True)) @ later.W_enc


@wrong(tc.contributions, "the last token's scale for all")
def contributions(acts, scale, earlier, later, latent):
    return acts * tc.connections(earlier, later)[:, latent] / scale[:, -1:]


@wrong(circuits.SparseTensor, "what is below 0 counts as zero")
class SparseTensor(circuits.SparseTensor):
    @classmethod
    def from_dense(cls, dense):
        indices = (dense > 0).nonzero()
        if not len(indices):
            raise ValueError("nothing is active")
        return cls(dense, dense[indices.unbind(dim=1)], indices)


@wrong(circuits.latent_to_latent_gradients, "always at the true stream")
def latent_to_latent_gradients(tokens, sae_from, sae_to, model, chunk_size=64, with_error=True):
    return circuits.latent_to_latent_gradients(tokens, sae_from, sae_to, model, chunk_size)


@wrong(circuits.fast_latent_gradients, "a chunk that is not full is left out")
def fast_latent_gradients(tokens, sae_from, sae_to, model, chunk_size=32):
    gradients, acts, found = circuits.fast_latent_gradients(tokens, sae_from, sae_to, model, chunk_size)
    gradients[:, len(found.values) // chunk_size * chunk_size :] = 0
    return gradients, acts, found


@wrong(circuits.token_to_latent_gradients, "nothing comes from the first token")
def token_to_latent_gradients(tokens, sae, model, chunk_size=64):
    gradients, acts = circuits.token_to_latent_gradients(tokens, sae, model, chunk_size)
    gradients[0] = 0
    return gradients, acts


@wrong(circuits.latent_to_logit_gradients, "counts from the mean of the tokens asked for")
def latent_to_logit_gradients(tokens, sae, model, token_ids=None, k=25):
    gradients, acts, token_ids = circuits.latent_to_logit_gradients(tokens, sae, model, token_ids, k)
    return gradients - gradients.mean(dim=1, keepdim=True), acts, token_ids
