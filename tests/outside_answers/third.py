"""The third hundred: faults at the edges, of state left behind, and of promises that no usual input asks for."""

import json
from collections import Counter
from contextlib import contextmanager, suppress
from functools import total_ordering, wraps
from pathlib import Path

import einops
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import nn
from transformer_lens import FactoredMatrix
from transformer_lens.utilities import get_act_name

from outside_answers import Answers
from utils import composition as comp
from utils import (
    double_descent,
    function_vectors,
    induction,
    inspection,
    ioi,
    kv_cache,
    sae_causes,
    saes,
    speculation,
    toolbox,
    toy_saes,
)
from utils import ioi_circuit as circuit
from utils import sampling as sp
from utils import superposition as sup
from utils import tensors as ts
from utils import tokenization as tok
from utils import transformer as tf

ANSWERS = Answers()
wrong = ANSWERS.wrong

# ---------------------------------------------------------------- 00


@wrong(toolbox.timed, "only the last call's seconds are in the list")
def _(fn):
    import time

    @wraps(fn)
    def wrapper(*args, **kwargs):
        start = time.perf_counter()
        try:
            return fn(*args, **kwargs)
        finally:
            wrapper.seconds = [time.perf_counter() - start]

    wrapper.seconds = []
    return wrapper


@wrong(toolbox.repeated, "0 is refused when the function is decorated, not at `@repeated(0)`")
def _(num_times):
    def decorator(fn):
        if num_times < 1:
            raise ValueError("at least once")

        @wraps(fn)
        def wrapper(*args, **kwargs):
            return [fn(*args, **kwargs) for _ in range(num_times)]

        return wrapper

    return decorator


@wrong(toolbox.cached_on_disk, "1 and '1' share a file, and so do 1 and True")
def _(folder):
    def decorator(fn):
        @wraps(fn)
        def wrapper(*args, **kwargs):
            plain = (bool, int, float, str, type(None))

            def require(value):
                if isinstance(value, list | tuple):
                    [require(v) for v in value]
                elif not isinstance(value, plain):
                    raise TypeError(f"{type(value).__name__} has no name for a file")

            [require(v) for v in (*args, *kwargs.values())]
            key = "_".join(str(a) for a in args) + "".join(f"_{k}={v}" for k, v in sorted(kwargs.items()))
            path = Path(folder) / f"{fn.__name__}-{abs(hash(key)) if len(key) > 60 else key.replace('/', '-')}.pt"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_suffix(".partial")
                torch.save(fn(*args, **kwargs), partial)
                partial.replace(path)
            return torch.load(path)

        return wrapper

    return decorator


@wrong(toolbox.layer_hooks, "what the function returns is lost")
def _(name, layers, fn):
    def hook_of(layer):
        def hook(activation, hook):
            fn(activation, layer)

        return hook

    return [(get_act_name(name, layer), hook_of(layer)) for layer in layers]


@wrong(toolbox.head_class, "heads sort by head, then by layer")
def _():
    @total_ordering
    class Head:
        def __init__(self, layer, head):
            if layer < 0 or head < 0:
                raise ValueError("counted from 0")
            object.__setattr__(self, "layer", layer)
            object.__setattr__(self, "head", head)

        def __setattr__(self, name, value):
            raise AttributeError(name)

        def __delattr__(self, name):
            raise AttributeError(name)

        def __eq__(self, other):
            return (self.layer, self.head) == (other.layer, other.head) if isinstance(other, Head) else NotImplemented

        def __lt__(self, other):
            return (self.head, self.layer) < (other.head, other.layer) if isinstance(other, Head) else NotImplemented

        def __hash__(self):
            return hash((self.layer, self.head))

        def __str__(self):
            return f"{self.layer}.{self.head}"

        def __repr__(self):
            return f"Head(layer={self.layer}, head={self.head})"

    return Head


@wrong(toolbox.HeadDial, "the factor is that of the beginning, however the dial is turned")
class _(toolbox.HeadDial):
    def __init__(self, layer, head, strength=1.0):
        super().__init__(layer, head, strength)
        self._factor = 1 - strength

    @property
    def factor(self):
        return self._factor

    def turn_down(self, z, hook):
        z = z.clone()
        z[:, :, self.head] *= self._factor
        return z


@wrong(toolbox.weights_kept, "buffers keep what the block made of them")
@contextmanager
def _(module):
    kept = [p.detach().clone() for p in module.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old in zip(module.parameters(), kept, strict=True):
                p.copy_(old)


@wrong(ts.best_allowed, "the probability is the one among all tokens")
def _(logits, allowed):
    if not allowed.any():
        raise ValueError("no token is allowed")
    best = logits.masked_fill(~allowed, -torch.inf).argmax(-1)
    return best, logits.softmax(-1).gather(-1, best[:, None])[:, 0]


@wrong(ts.most_similar_earlier, "what is not earlier counts as 0, which beats a negative cosine")
def _(x):
    unit = F.normalize(x, dim=-1)
    best = (unit @ unit.mT).tril(-1).argmax(-1)
    best[:1] = -1
    return best


@wrong(ts.Centring, "the mean is the tensor that was given, not a copy")
class _(ts.Centring):
    def __init__(self, mean):
        nn.Module.__init__(self)
        self.register_buffer("mean", mean)
        self.gain = nn.Parameter(torch.ones_like(mean))

    def forward(self, x):
        return self.gain * (x - self.mean)


@wrong(ts.gradient_of, "a tensor that required gradients before does not any more")
def _(fn, x):
    with torch.enable_grad():
        x.requires_grad_(True)
        (found,) = torch.autograd.grad(fn(x), x)
    if x.is_leaf:
        x.requires_grad_(False)
    return found


@wrong(ts.broadcast_shape, "an empty dimension and one of size 1 give 1")
def _(a, b):
    n = max(len(a), len(b))
    a, b = (1,) * (n - len(a)) + tuple(a), (1,) * (n - len(b)) + tuple(b)
    if any(m != k and 1 not in (m, k) for m, k in zip(a, b, strict=True)):
        raise ValueError("they do not fit")
    return tuple(max(m, k) for m, k in zip(a, b, strict=True))


@wrong(ts.bytes_held, "a storage counts as large as the view into it")
def _(tensors):
    found = {t.untyped_storage().data_ptr(): t.numel() * t.element_size() for t in tensors}
    return sum(found.values())


@wrong(toolbox.token_table, "a token that looks like markup is read as markup")
def _(tokens, values, title=""):
    if len(tokens) != len(values) or not tokens:
        raise ValueError("one value for each token")
    table = Table("token", "value", title=title)
    for i, (token, value) in enumerate(zip(tokens, values, strict=True)):
        style = "bold" if i == list(values).index(max(values)) else ""
        table.add_row(repr(token), f"{value:#.3g}", style=style)
    return table


@wrong(toolbox.vocab_by_id, "added tokens are left out")
def _(tokenizer):
    added = tokenizer.get_added_vocab()
    ids = {i: t for t, i in tokenizer.get_vocab().items() if t not in added}
    if sorted(ids) != list(range(len(ids))):
        raise ValueError("a gap")
    return [ids[i] for i in range(len(ids))]


# ---------------------------------------------------------------- 01


@wrong(tok.bytes_to_unicode, "the right characters, in the order of the bytes")
def _():
    return dict(sorted(tok.bytes_to_unicode().items()))


@wrong(tok.count_pairs, "of a symbol that stands three times in a row one pair only")
def _(words):
    counts = Counter()
    for word, n in words.items():
        before = None
        for pair in zip(word, word[1:], strict=False):
            if pair == before:
                before = None
                continue
            counts[pair] += n
            before = pair
    return counts


@wrong(tok.merge_pair, "looks for the pair's text, not for two symbols: the end of one symbol counts as one")
def _(word, pair):
    return tuple(" ".join(word).replace(" ".join(pair), "".join(pair)).split(" "))


@wrong(tok.train_bpe, "one string is taken for documents of one character each")
def _(corpus, vocab_size):
    return tok.train_bpe(list(corpus), vocab_size)


@wrong(tok.train_bpe, "of equally frequent pairs the first that was seen")
def _(corpus, vocab_size):
    if isinstance(corpus, str) or vocab_size < 256:
        raise ValueError("documents, and at least the bytes")
    words = Counter(tok.to_symbols(piece) for text in corpus for piece in tok.pretokenize(text))
    vocab = {c: i for i, c in enumerate(tok.bytes_to_unicode().values())}
    merges = {}
    while len(vocab) < vocab_size and (pairs := tok.count_pairs(words)):
        best = max(pairs, key=pairs.__getitem__)
        merges[best] = len(merges)
        vocab.setdefault("".join(best), len(vocab))
        merged = Counter()
        for word, n in words.items():
            merged[tok.merge_pair(word, best)] += n
        words = merged
    return vocab, merges


@wrong(tok.encode, "merges go across the pieces")
def _(text, vocab, merges):
    word = tok.to_symbols(text)
    while len(word) > 1:
        pair = min(zip(word, word[1:], strict=False), key=lambda p: merges.get(p, torch.inf))
        if pair not in merges:
            break
        word = tok.merge_pair(word, pair)
    return [vocab[s] for s in word]


@wrong(tok.decode, "ids that the vocabulary lacks are passed over")
def _(ids, vocab):
    return tok.decode([i for i in ids if i in set(vocab.values())], vocab)


@wrong(tok.find_disagreements, "a text that comes twice is named once")
def _(texts, vocab, merges):
    return list(dict.fromkeys(tok.find_disagreements(texts, vocab, merges)))


@wrong(tok.split_special, "where several fit, the shortest is taken")
def _(text, special):
    import re

    if not special:
        return [text] if text else []
    pattern = "|".join(re.escape(s) for s in sorted(special, key=len))
    return [part for part in re.split(f"({pattern})", text) if part]


@wrong(tok.BPETokenizer, "the special tokens get the first ids")
class _(tok.BPETokenizer):
    @classmethod
    def train(cls, corpus, vocab_size, special_tokens=("<|endoftext|>",)):
        vocab, merges = tok.train_bpe(corpus, vocab_size - len(special_tokens))
        n = len(special_tokens)
        return cls({t: i + n for t, i in vocab.items()}, merges, {t: i for i, t in enumerate(special_tokens)})


@wrong(tok.BPETokenizer, "a token that is not special here may be allowed")
class _(tok.BPETokenizer):
    def encode(self, text, allowed_special=()):
        return tok.BPETokenizer.encode(self, text, [s for s in allowed_special if s in self.special_tokens])


# ---------------------------------------------------------------- 02


@wrong(tf.LayerNorm, "no gradient flows through the scale")
class _(tf.LayerNorm):
    def forward(self, residual):
        x = residual - residual.mean(-1, keepdim=True)
        scale = (x.pow(2).mean(-1, keepdim=True) + self.cfg.layer_norm_eps).sqrt().detach()
        return x / scale * self.w + self.b


@wrong(tf.PosEmbed, "positions count from 1")
class _(tf.PosEmbed):
    def forward(self, tokens):
        batch, pos = tokens.shape
        return self.W_pos.roll(-1, 0)[:pos].expand(batch, -1, -1)


@wrong(tf.MLP, "the inner bias comes after the GELU")
class _(tf.MLP):
    def forward(self, normalized_resid_mid):
        post = F.gelu(normalized_resid_mid @ self.W_in, approximate="tanh") + self.b_in
        return post @ self.W_out + self.b_out


@wrong(tf.TransformerBlock, "the normalized stream goes on, not the stream")
class _(tf.TransformerBlock):
    def forward(self, resid_pre):
        mid = self.ln1(resid_pre) + self.attn(self.ln1(resid_pre))
        return mid + self.mlp(self.ln2(mid))


@wrong(tf.get_log_probs, "the logarithm of a probability that is never below 1e-9")
def _(logits, tokens):
    probs = logits[:, :-1].softmax(-1).clamp_min(1e-9)
    return probs.log().gather(-1, tokens[:, 1:, None])[..., 0]


@wrong(tf.bigram_loss, "pairs reach from one row into the next")
def _(train, test, d_vocab, strength=1.0):
    flat = train.flatten()
    counts = torch.zeros(d_vocab, d_vocab)
    counts.index_put_((flat[:-1], flat[1:]), torch.ones(len(flat) - 1), accumulate=True)
    p = torch.bincount(flat, minlength=d_vocab).float() / len(flat)
    table = (counts + strength * p) / (counts.sum(1, keepdim=True) + strength)
    return -table[test[:, :-1], test[:, 1:]].log().mean().item()


@wrong(tf.training_step, "the gradient is cut to length 1")
def _(model, optimizer, tokens):
    loss = -tf.get_log_probs(model(tokens), tokens).mean()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


@wrong(tf.antisymmetric_share, "the largest singular value, not the length of all entries")
def _(table):
    return (torch.linalg.norm((table - table.T) / 2, ord=2) / torch.linalg.norm(table, ord=2)).item()


@wrong(tf.fold_layer_norm, "the last LayerNorm stays as it is")
def _(state):
    folded = tf.fold_layer_norm(state)
    names = [k for k in state if k.startswith(("ln_final.", "unembed."))]
    return folded | {k: state[k].clone() for k in names}


@wrong(tf.similarity_by_distance, "the last positions are neighbours of the first")
def _(W_pos):
    unit = F.normalize(W_pos, dim=-1)
    return torch.stack([(unit * unit.roll(-d, 0)).sum(-1).mean() for d in range(len(unit))])


# ---------------------------------------------------------------- 03


@wrong(sp.apply_frequency_penalty, "PAD is an occurrence of token 0")
def _(input_ids, logits, freq_penalty):
    sp.apply_frequency_penalty(input_ids, logits, freq_penalty)
    counts = torch.zeros_like(logits)
    counts.scatter_add_(1, input_ids.clamp_min(0), torch.ones_like(input_ids, dtype=logits.dtype))
    return logits - freq_penalty * counts


@wrong(sp.sample_basic, "the largest logit after an even noise, not a Gumbel one")
def _(logits):
    if (logits == -torch.inf).all(-1).any():
        raise ValueError("a row is impossible")
    return (logits + torch.rand_like(logits)).argmax(-1)


@wrong(sp.sample_top_k, "exactly k stay, whatever ties with the k-th")
def _(logits, k):
    sp.sample_top_k(logits, k)
    best = logits.topk(k, dim=-1)
    return best.indices.gather(-1, torch.multinomial(best.values.softmax(-1), 1))[:, 0]


@wrong(sp.sample_top_p, "at least one token, whatever `min_tokens_to_keep` says")
def _(logits, top_p, min_tokens_to_keep=1):
    sp.sample_top_p(logits, top_p, min_tokens_to_keep)
    return sp.sample_top_p(logits, top_p)


@wrong(sp.sample_next_token, "at temperature 0 the penalty is forgotten")
def _(input_ids, logits, temperature=1.0, top_k=None, top_p=None, frequency_penalty=0.0):
    found = sp.sample_next_token(input_ids, logits, temperature, top_k, top_p, frequency_penalty)
    return logits.argmax(-1) if temperature == 0 else found


@wrong(sp.sample_tokens, "an end-of-text token in the prompt ends the row at once")
@torch.inference_mode()
def _(model, tokens, max_tokens_generated, eos_token_id=None, **kwargs):
    done = (tokens == eos_token_id).any(-1) if eos_token_id is not None else torch.zeros(len(tokens), dtype=torch.bool)
    for _ in range(max_tokens_generated):
        if done.all() or tokens.shape[1] >= model.cfg.n_ctx:
            break
        new = sp.sample_next_token(tokens, model(tokens)[:, -1], **kwargs)
        if eos_token_id is not None:
            new = torch.where(done, eos_token_id, new)
            done = done | (new == eos_token_id)
        tokens = torch.cat([tokens, new[:, None]], dim=1)
    return tokens


@wrong(kv_cache.KeyValueCache, "the cache grows with every layer that stores something")
class _(kv_cache.KeyValueCache):
    def append(self, layer, k, v):
        found = kv_cache.KeyValueCache.append(self, layer, k, v)
        if layer == len(self.keys) - 1:
            self.length += k.shape[2]
        return found


@wrong(kv_cache.KeyValueCache, "positions in the padding are negative")
class _(kv_cache.KeyValueCache):
    def positions(self, new):
        return torch.arange(self.length, self.length + new) - self.padding[:, None]


@wrong(kv_cache.flops_per_new_token, "the new token does not look at itself")
def _(cfg, length, cached):
    found = kv_cache.flops_per_new_token(cfg, length, cached)
    if not cached:
        return found
    scores = 2 * cfg.n_layers * cfg.n_heads * cfg.d_head * (length + 1)
    return {k: v - scores // (length + 1) if v == scores else v for k, v in found.items()}


@wrong(sp.TransformerSampler, "the settings of sampling are lost on the way")
class _(sp.TransformerSampler):
    def generate(self, prompts, max_tokens_generated=100, use_cache=True, stop_at_eos=True, progress=False, **kwargs):
        greedy = {"temperature": 0.0} if kwargs.get("temperature") == 0 else {}
        return sp.TransformerSampler.generate(
            self, prompts, max_tokens_generated, use_cache, stop_at_eos, progress, **greedy
        )


@wrong(sp.banned_tokens, "of single tokens none is ever banned")
def _(tokens, n):
    return set() if n == 1 else sp.banned_tokens(tokens, n)


@wrong(sp.beam_search, "a text that has ended is not among the results while beams run")
@torch.inference_mode()
def _(model, tokens, num_beams, max_tokens_generated, eos_token_id=None, no_repeat_ngram_size=None, use_cache=True):
    found = sp.beam_search(
        model, tokens, num_beams, max_tokens_generated, eos_token_id, no_repeat_ngram_size, use_cache
    )
    running = [(s, t) for s, t in found if t[-1] != eos_token_id]
    return running or found


@wrong(sp.distinct_n, "a text that is too short raises, though another is long enough")
def _(texts, n):
    if n < 1 or any(len(t) < n for t in texts):
        raise ValueError("too short")
    return sp.distinct_n(texts, n)


@wrong(sp.sample_min_p, "the limit is a probability, not a share of the likeliest")
def _(logits, min_p):
    sp.sample_min_p(logits, min_p)
    probs = logits.softmax(-1)
    keep = (probs >= min_p) | (probs == probs.amax(-1, keepdim=True))
    return torch.multinomial(probs * keep, 1)[:, 0]


@wrong(sp.trap_for_beams, "a trap for two beams, however many there are")
def _(num_beams):
    if num_beams < 1:
        raise ValueError("there is no beam")
    return sp.trap_for_beams(min(num_beams, 2))


@wrong(speculation.accept_drafted, "what is refused is drawn from the target, not from what it has more")
def _(target_probs, draft_probs, drafted):
    found = speculation.accept_drafted(target_probs, draft_probs, drafted)
    ends = (found != sp.PAD).sum(-1) - 1
    for row, end in enumerate(ends.tolist()):
        if end < drafted.shape[1]:
            found[row, end] = torch.multinomial(target_probs[row, end], 1)[0]
    return found


@wrong(speculation.accept_drafted, "no token more where all stay")
def _(target_probs, draft_probs, drafted):
    found = speculation.accept_drafted(target_probs, draft_probs, drafted)
    found[:, -1] = sp.PAD
    return found


# ---------------------------------------------------------------- 04


@wrong(inspection.stack_over_layers, "what a block lacks is an AttributeError")
def _(model, path):
    def of(block):
        for part in path.split("."):
            block = getattr(block, part)
        return block

    return torch.stack([of(block) for block in model.blocks])


@wrong(inspection.act_name, "of a layer with two digits the last one")
def _(name, layer=None):
    if layer is None and name[-1:].isdigit():
        short = name.rstrip("0123456789")
        return inspection.act_name(short, int(name[-1]))
    return inspection.act_name(name, layer)


@wrong(inspection.memory_by_kind, "every number counts four bytes")
def _(cache):
    sizes = Counter()
    for name, x in cache.items():
        sizes[name.rsplit(".", 1)[-1]] += 4 * x.numel()
    return dict(sizes.most_common())


@wrong(inspection.keep_only, "layer 1 means layer 10 as well")
def _(names, layers):
    ends = tuple(inspection.act_name(n, 0).split(".", 2)[2] for n in names)
    return lambda name: name.endswith(ends) and any(name.startswith(f"blocks.{i}") for i in layers)


@wrong(inspection.attention_pattern, "a query longer than the keys is let through")
def _(q, k):
    n = min(q.shape[1], k.shape[1])
    scores = einops.einsum(q, k, "b q h d, b k h d -> b h q k") / q.shape[-1] ** 0.5
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1)[:, :, : max(n, q.shape[1])]


@wrong(inspection.f1_score, "half, where nothing is predicted and nothing is there")
def _(predicted, labels):
    if len(predicted) != len(labels):
        raise ValueError("one for each")
    hits = (predicted & labels).sum().item()
    found = predicted.sum().item() + labels.sum().item()
    return 2 * hits / found if found else 0.5


@wrong(inspection.best_f1, "of equal activations each is a threshold of its own")
def _(activations, labels):
    inspection.best_f1(activations, labels)
    values, order = activations.sort(dim=0, descending=True)
    hits = labels[order].float().cumsum(0)
    n = torch.arange(1, len(labels) + 1)[:, None]
    f1 = 2 * hits / (n + labels.sum())
    best, at = f1.max(0)
    return best, values.gather(0, at[None])[0]


@wrong(inspection.HookPoint, "what a hook returns is used where it is true")
class _(inspection.HookPoint):
    def forward(self, x):
        for fn in self.hook_fns:
            out = fn(x, hook=self)
            if isinstance(out, torch.Tensor) and out.any():
                x = out
        return x


@wrong(inspection.pattern_hooks, "the attention scores, before the softmax, as well")
def _(hook_fn):
    return [(lambda name: name.endswith(("hook_pattern", "hook_attn_scores")), hook_fn)]


@wrong(inspection.scale_head_hook, "the factor counts once for each position before")
def _(z, hook, head, factor):
    z = z.clone()
    z[:, :, head] = z[:, :, head] * factor ** (1 if z.shape[0] == 1 else 2)
    return z


@wrong(inspection.gradient_cache, "works where autograd is off, though the gradients would be empty")
def _(model, tokens, names_filter):
    with torch.enable_grad():
        return inspection.gradient_cache(model, tokens, names_filter)


# ---------------------------------------------------------------- 05


@wrong(induction.generate_repeated_tokens, "the last token of the vocabulary never comes")
def _(model, seq_len, batch_size=1):
    if 1 + 2 * seq_len > model.cfg.n_ctx:
        raise ValueError("too long")
    half = torch.randint(0, model.cfg.d_vocab - 1, (batch_size, seq_len))
    bos = torch.full((batch_size, 1), model.tokenizer.bos_token_id if model.tokenizer else 0)
    return torch.cat([bos, half, half], 1).to(model.cfg.device)


@wrong(induction.get_log_probs, "gradients end here")
def _(logits, tokens):
    return induction.get_log_probs(logits.detach(), tokens)


@wrong(induction.attention_detectors, "query 0 counts in `first` and `current`")
def _(cache):
    found = induction.attention_detectors(cache)
    patterns = torch.stack([cache["pattern", i] for i in range(cache.model.cfg.n_layers)])
    patterns = patterns if patterns.ndim == 5 else patterns[:, None]
    return found | {
        "first": patterns[..., 0].mean((1, -1)),
        "current": patterns.diagonal(dim1=-2, dim2=-1).mean((1, -1)),
    }


@wrong(induction.induction_attn_detector, "the first passage's queries count as well")
def _(cache):
    patterns = torch.stack([cache["pattern", i] for i in range(cache.model.cfg.n_layers)])
    half = induction.half_length(patterns.shape[-1])
    patterns = patterns if patterns.ndim == 5 else patterns[:, None]
    n = patterns.shape[-1] - 1
    return patterns.diagonal(1 - half, dim1=-2, dim2=-1).sum(-1).mean(1) / n


@wrong(induction.induction_score_hook, "the pattern that goes on is the masked one")
def _(pattern, hook, scores):
    induction.induction_score_hook(pattern, hook, scores)
    return pattern.tril()


@wrong(induction.logit_attribution, "what the heads write is read without its mean")
def _(embed, l1_results, l2_results, W_U, tokens):
    return induction.logit_attribution(embed, l1_results, l2_results, W_U - W_U.mean(-1, keepdim=True), tokens)


@wrong(induction.head_ablation_hook, "a new tensor is changed, the activation stays")
def _(z, hook, head_index_to_ablate, kind="zero"):
    induction.head_ablation_hook(z.clone(), hook, head_index_to_ablate, kind)


@wrong(induction.get_ablation_scores, "the loss on all predictions")
def _(model, tokens, ablation_function=induction.head_ablation_hook):
    induction.require_tokens(model, tokens)
    induction.half_length(tokens.shape[1])

    def loss(hooks):
        return -induction.get_log_probs(model.run_with_hooks(tokens, fwd_hooks=hooks), tokens).mean()

    clean, cfg = loss([]), model.cfg
    scores = torch.zeros(cfg.n_layers, cfg.n_heads)
    for i in range(cfg.n_layers):
        for j in range(cfg.n_heads):

            def hook(z, hook, j=j):
                return ablation_function(z, hook, head_index_to_ablate=j)

            scores[i, j] = loss([(f"blocks.{i}.attn.hook_z", hook)]) - clean
    return scores


@wrong(comp.full_OV_circuit, "built as a whole matrix: two factors of d_vocab columns")
def _(model, heads):
    found = comp.full_OV_circuit(model, heads)
    return FactoredMatrix(found.AB, torch.eye(found.shape[-1]))


@wrong(comp.top_1_acc, "the rows behind the last whole batch are left out")
def _(full_OV_circuit, batch_size=500):
    n = full_OV_circuit.shape[0]
    whole = max(batch_size * (n // batch_size), min(n, batch_size))
    hits = 0
    for start in range(0, whole, batch_size):
        rows = full_OV_circuit.A[start : start + batch_size] @ full_OV_circuit.B
        hits += (rows.argmax(-1) == torch.arange(start, start + len(rows))).sum().item()
    return hits / whole


@wrong(comp.attn_score_stds, "query 0 counts, with a spread of 0")
def _(decomposed_scores):
    n = decomposed_scores.shape[-1]
    return comp.attn_score_stds(decomposed_scores) * (n - 1) / n


@wrong(comp.run_with_path_ablated, "whatever the channel, the keys' path is cut")
def _(model, tokens, sender, receiver, channel="k"):
    comp.run_with_path_ablated(model, tokens, sender, receiver, channel)
    return comp.run_with_path_ablated(model, tokens, sender, receiver)


@wrong(induction.induction_targets, "the earliest occurrence, not the latest")
def _(tokens):
    found, first = [], {}
    for i, token in enumerate(tokens.tolist()):
        at = first.get(token, i)
        found.append(at + 1 if at + 1 < i else -1)
        first.setdefault(token, i)
    return torch.tensor(found)


# ---------------------------------------------------------------- 06


@wrong(sup.factored_code, "more items than combinations begin again from the first")
def _(n_items, factors):
    total = torch.tensor(list(factors)).prod().item()
    full = sup.factored_code(total, factors)
    return full[torch.arange(n_items) % total]


@wrong(sup.interference, "with `relu` the overlap's size counts, squared after")
def _(W, relu=False):
    unit = F.normalize(W, dim=-2, eps=1e-12)
    overlap = unit.mT @ W
    overlap = overlap - torch.diag_embed(overlap.diagonal(dim1=-2, dim2=-1))
    return (overlap.abs() if relu else overlap).pow(2).sum(-1)


@wrong(sup.generate_uncorrelated_features, "one draw decides for all models")
def _(feature_probability, batch_size):
    inst, feats = feature_probability.shape
    on = torch.rand(batch_size, 1, feats) < feature_probability
    return torch.where(on, 1 - torch.rand(batch_size, inst, feats), 0.0)


@wrong(sup.ToyModel, "the importance weighs the error before it is squared")
class _(sup.ToyModel):
    def calculate_loss(self, out, batch):
        return (self.importance * (out - batch)).pow(2).mean((0, 2))


@wrong(sup.ToyModel, "the bias is inside: it is squeezed as well")
class _(sup.ToyModel):
    def forward(self, features):
        h = einops.einsum(features + self.b_final, self.W, "b i f, i h f -> b i h")
        return F.relu(einops.einsum(h, self.W, "b i h, i h f -> b i f"))


@wrong(sup.pca_baseline, "the importance is not the scale: features as they are")
def _(batch, importance, d_hidden):
    return sup.pca_baseline(batch, torch.ones_like(importance), d_hidden)


@wrong(sup.generate_correlated_features, "the pairs lie in two halves, not side by side")
def _(pair_probability, batch_size):
    found = sup.generate_correlated_features(pair_probability, batch_size)
    return torch.cat([found[..., ::2], found[..., 1::2]], -1)


@wrong(sup.generate_anticorrelated_features, "a probability of one half is refused")
def _(pair_probability, batch_size):
    if (pair_probability >= 0.5).any():
        raise ValueError("they exclude each other")
    return sup.generate_anticorrelated_features(pair_probability, batch_size)


@wrong(sup.NeuronModel, "the hidden ReLU alone: the output may be negative")
class _(sup.NeuronModel):
    def forward(self, features):
        h = F.relu(einops.einsum(features, self.W, "b i f, i h f -> b i h"))
        return einops.einsum(h, self.W, "b i h, i h f -> b i f") + self.b_final


@wrong(sup.top_neuron_share, "the largest neuron by value: a negative weight never counts")
def _(W):
    total = W.pow(2).sum(-2)
    return torch.where(total > 0, W.amax(-2).pow(2) / total.clamp_min(1e-30), 0.0)


@wrong(sup.NeuronComputationModel, "the target is the feature, not its size")
class _(sup.NeuronComputationModel):
    def calculate_loss(self, out, batch):
        return sup.ToyModel.calculate_loss(self, out, batch)


@wrong(double_descent.generate_dataset, "an empty point gets one feature by lot")
def _(n_points, n_features, feature_probability):
    if feature_probability <= 0 or n_features < 1:
        raise ValueError("all points are empty")
    x = torch.rand(n_points, n_features) * (torch.rand(n_points, n_features) < feature_probability)
    empty = (x == 0).all(-1)
    x[empty, torch.randint(n_features, (int(empty.sum()),))] = 1.0
    return F.normalize(x, dim=-1)


@wrong(sup.quadratic_loss, "the kurtosis of a Gaussian for all")
def _(W, value, kurtosis):
    return sup.quadratic_loss(W, value, torch.full_like(kurtosis, 3.0))


@wrong(sup.allocate_capacity, "at kurtosis 3 features share")
def _(value, kurtosis, d_hidden):
    if kurtosis == 3:
        return sup.allocate_capacity(value, 3.1, d_hidden)
    return sup.allocate_capacity(value, kurtosis, d_hidden)


# ---------------------------------------------------------------- 07


@wrong(toy_saes.ToySAE, "the reconstruction error is summed over d_in")
class _(toy_saes.ToySAE):
    def forward(self, h):
        losses, _, acts, out = toy_saes.ToySAE.forward(self, h)
        losses["L_reconstruction"] = (h - out).pow(2).sum(-1)
        return losses, losses["L_reconstruction"] + self.cfg.sparsity_coeff * losses["L_sparsity"], acts, out


@wrong(toy_saes.ToySAE, "the rows' lengths carry no gradient")
class _(toy_saes.ToySAE):
    @property
    def W_dec_normalized(self):
        return self.W_dec / (self.W_dec.norm(dim=-1, keepdim=True) + self.cfg.weight_normalize_eps).detach()


@wrong(toy_saes.match_latents, "a zero vector has no cosine: NaN")
def _(W_dec, W):
    cosine = (W_dec / W_dec.norm(dim=-1, keepdim=True)) @ (W / W.norm(dim=-2, keepdim=True))
    best = cosine.max(-2)
    return best.indices, best.values


@wrong(toy_saes.dead_latents, "the last step alone")
def _(frac_active_in_window):
    return frac_active_in_window[-1] == 0


@wrong(toy_saes.resample_simple, "the living latents' rows are brought to length 1 as well")
@torch.no_grad()
def _(sae, frac_active_in_window, resample_scale):
    toy_saes.resample_simple(sae, frac_active_in_window, resample_scale)
    if sae._W_dec is not None:
        sae._W_dec.copy_(F.normalize(sae._W_dec, dim=-1))


@wrong(toy_saes.resample_advanced, "drawn in proportion to the loss, not to its square")
@torch.no_grad()
def _(sae, frac_active_in_window, resample_scale, batch_size):
    dead = toy_saes.dead_latents(frac_active_in_window)
    h = sae.generate_batch(batch_size)
    loss = (h - sae(h)[3]).pow(2).sum(-1)
    for inst in range(h.shape[1]):
        where = dead[inst].nonzero()[:, 0]
        if not len(where) or loss[:, inst].sum() == 0:
            continue
        chosen = torch.multinomial(loss[:, inst], len(where), replacement=len(where) > len(h))
        v = F.normalize(h[chosen, inst] - sae.b_dec[inst], dim=-1)
        alive = sae.W_enc[inst][:, ~dead[inst]]
        length = alive.norm(dim=0).mean() if alive.shape[1] else 1.0
        sae.W_dec[inst][where] = v
        sae.W_enc[inst][:, where] = v.T * resample_scale * length
        sae.b_enc[inst][where] = 0


@wrong(toy_saes.shrinkage, "an instance that answers 0 has NaN")
def _(h, h_reconstructed):
    return h_reconstructed.pow(2).sum(-1).mean(0) / (h_reconstructed * h).sum(-1).mean(0)


@wrong(toy_saes.GatedToySAE, "the magnitude's factor is 1 + r_mag, not its exponential")
class _(toy_saes.GatedToySAE):
    def forward(self, h):
        x = h - self.b_dec
        gate = einops.einsum(x, self.W_enc, "b i d, i d s -> b i s")
        magnitude = gate * (1 + self.r_mag) + self.b_mag
        gate = gate + self.b_gate
        acts = (gate > 0) * F.relu(magnitude)
        out = self.decode(acts)
        aux = einops.einsum(F.relu(gate), self.W_dec_normalized.detach(), "b i s, i s d -> b i d")
        losses = {
            "L_reconstruction": (h - out).pow(2).mean(-1),
            "L_sparsity": F.relu(gate).sum(-1),
            "L_aux": (h - aux - self.b_dec.detach()).pow(2).mean(-1),
        }
        loss = losses["L_reconstruction"] + self.cfg.sparsity_coeff * losses["L_sparsity"] + losses["L_aux"]
        return losses, loss, acts, out


@wrong(toy_saes.TopKToySAE, "what is not among the k is only small, not 0")
class _(toy_saes.TopKToySAE):
    def forward(self, h):
        acts = F.relu(self.pre_activations(h))
        least = acts.topk(self.cfg.k, dim=-1).values[..., -1:]
        acts = torch.where(acts >= least, acts, 1e-3 * acts)
        out = self.decode(acts)
        loss = (h - out).pow(2).mean(-1)
        return {"L_reconstruction": loss}, loss, acts, out


@wrong(toy_saes.rectangle, "of x = 0 it is 1/2")
def _(x):
    return torch.where(x == 0, 0.5, toy_saes.rectangle(x))


@wrong(toy_saes.JumpReLU, "z may equal the threshold on the way back only")
class _(toy_saes.JumpReLU):
    @staticmethod
    def backward(ctx, grad_output):
        z, theta = ctx.saved_tensors
        _, grad_theta, _ = toy_saes.JumpReLU.backward(ctx, grad_output)
        return grad_output * (z >= theta), grad_theta, None


@wrong(toy_saes.JumpReLUToySAE, "the sparsity is the sum of what is active, not its number")
class _(toy_saes.JumpReLUToySAE):
    def forward(self, h):
        losses, _, acts, out = toy_saes.JumpReLUToySAE.forward(self, h)
        losses["L_sparsity"] = acts.abs().sum(-1)
        return losses, losses["L_reconstruction"] + self.cfg.sparsity_coeff * losses["L_sparsity"], acts, out


# ---------------------------------------------------------------- 08


@wrong(saes.get_sae_acts, "another model's autoencoder is run all the same")
@torch.no_grad()
def _(model, sae, tokens):
    with suppress(ValueError):
        saes.check_fits(model, sae)
    _, cache = model.run_with_cache_with_saes(tokens, saes=[sae])
    return cache[saes.acts_name(sae)]


@wrong(saes.sae_metrics, "the variance is that of each dimension's own share, averaged")
@torch.no_grad()
def _(model, sae, tokens):
    found = saes.sae_metrics(model, sae, tokens)
    _, cache = model.run_with_cache(tokens, names_filter=sae.cfg.metadata.hook_name)
    x = cache[sae.cfg.metadata.hook_name][:, 1:]
    x = x.flatten(2) if x.ndim > 3 else x
    error = (sae.decode(saes.get_sae_acts(model, sae, tokens)[:, 1:]).reshape(x.shape) - x).flatten(0, 1)
    x = x.flatten(0, 1)
    per = 1 - error.pow(2).sum(0) / (x - x.mean(0)).pow(2).sum(0)
    return found | {"explained_variance": per.mean().item()}


@wrong(saes.get_k_largest_indices, "windows that touch are taken for windows that overlap")
def _(x, k, buffer=0, no_overlap=True):
    found = saes.get_k_largest_indices(x, x.numel(), buffer, no_overlap)
    if not no_overlap:
        return found[:k]
    kept = []
    for row, at in found.tolist():
        if all(row != r or abs(at - a) > 2 * buffer + 1 for r, a in kept):
            kept.append((row, at))
    return torch.tensor(kept[:k]).reshape(-1, 2)


@wrong(saes.index_with_buffer, "a window before the row's start is read from its end")
def _(x, indices, buffer):
    rows, at = indices.unbind(-1)
    if (at + buffer >= x.shape[1]).any():
        raise ValueError("beyond the row")
    return x[rows[:, None], at[:, None] + torch.arange(-buffer, buffer + 1)]


@wrong(saes.logit_weights, "each token's weight minus their mean")
def _(model, sae, latent_idx):
    found = saes.logit_weights(model, sae, latent_idx)
    return found - found.mean() - 0.01 * found.std()


@wrong(saes.best_units, "threshold and unit are chosen on the second half, scored on the first")
def _(values, labels, n=14):
    half = len(values) // 2
    order = torch.cat([torch.arange(half, len(values)), torch.arange(half)])
    return saes.best_units(values[order], labels[order], n)


@wrong(saes.greedy_cover, "begins with the latent that fires on most of the label")
def _(fires, label, n):
    best = (fires & label[:, None]).sum(0).argmax().item()

    def f1(covered):
        hits = (covered & label).sum().item()
        return 2 * hits / (covered.sum().item() + label.sum().item())

    chosen, covered = [best], fires[:, best]
    scores = [f1(covered)]
    while len(chosen) < n:
        gains = [f1(covered | fires[:, i]) for i in range(fires.shape[1])]
        i = max(range(len(gains)), key=gains.__getitem__)
        if gains[i] <= scores[-1]:
            break
        chosen, covered, scores = [*chosen, i], covered | fires[:, i], [*scores, gains[i]]
    return chosen, scores


@wrong(saes.by_document, "a document of exactly `least` tokens is left out")
def _(values, tokens, end, least=8):
    return saes.by_document(values, tokens, end, least + 1)


@wrong(saes.create_prompt, "each marked token has marks of its own")
def _(examples, threshold=0.3):
    saes.create_prompt(examples, threshold)
    limit = threshold * max(float(acts.max()) for _, acts in examples)
    lines = []
    for n, (tokens, acts) in enumerate(examples, 1):
        marked = [f"<<{t}>>" if a > limit else t for t, a in zip(tokens, acts.tolist(), strict=True)]
        lines.append(f"{n}. " + "".join(marked).replace("\n", "↵"))
    return "\n".join(lines)


@wrong(saes.detection_score, "where all texts are of one kind, 0.5")
def _(said, active):
    if active.all() or not active.any():
        return 0.5
    return saes.detection_score(said, active)


@wrong(saes.simulation_score, "the mean over texts of each text's own correlation")
def _(simulated, acts):
    return sum(saes.simulation_score(s[None], a[None]) for s, a in zip(simulated, acts, strict=True)) / len(acts)


@wrong(sae_causes.logits_to_ave_logit_diff, "another word for `reduction` is None")
def _(logits, correct_toks, incorrect_toks, reduction="mean", keep_as_tensor=False):
    if reduction not in ("mean", "sum"):
        reduction = None
    return sae_causes.logits_to_ave_logit_diff(logits, correct_toks, incorrect_toks, reduction, keep_as_tensor)


@wrong(sae_causes.ablate_sae_latent, "latent 0 is taken for none, which means all")
def _(sae_acts, hook, latent_idx=None, seq_pos=None):
    return sae_causes.ablate_sae_latent(sae_acts, hook, latent_idx or None, seq_pos)


@wrong(sae_causes.ablation_sweep, "position 0 is taken for none, which means all")
@torch.no_grad()
def _(model, sae, tokens, latents, metric, seq_pos=None):
    return sae_causes.ablation_sweep(model, sae, tokens, latents, metric, seq_pos or None)


@wrong(sae_causes.attribution_patching, "the mean over prompts")
def _(model, sae, tokens, metric, seq_pos=None):
    return sae_causes.attribution_patching(model, sae, tokens, metric, seq_pos) / len(tokens)


@wrong(sae_causes.steering_hook, "only the last position is pushed")
def _(activations, hook, direction, strength=1.0):
    activations = activations.clone()
    activations[:, -1] += strength * direction
    return activations


# ---------------------------------------------------------------- 09


@wrong(ioi.IOIDataset, "flipped swaps the names where they are introduced as well")
class _(ioi.IOIDataset):
    def flipped(self):
        swap = [
            f | {"name": f["name2"], "name2": f["name"], "subject": f["recipient"], "recipient": f["subject"]}
            for f in self.fillings
        ]
        return ioi.IOIDataset(self.tokenizer, self.template, swap)


@wrong(ioi.IOIDataset, "abc's new names may be the old ones of the prompt")
class _(ioi.IOIDataset):
    def abc(self, seed=0):
        import random

        rng = random.Random(seed)
        names = sorted({f[k] for f in self.fillings for k in ("name", "name2")})
        fillings = []
        for f in self.fillings:
            a, b, c = rng.sample(names, 3) if len(names) > 2 else (f["name"], f["name2"], f["name"])
            fillings.append(f | {"name": a, "name2": b, "subject": c, "recipient": a})
        return ioi.IOIDataset(self.tokenizer, self.template, fillings, self.answers)


@wrong(ioi.logits_to_ave_logit_diff, "pairs of answers for other prompts are repeated to fit")
def _(logits, answer_tokens, per_prompt=False):
    if len(answer_tokens) == 1 and len(logits) > 1:
        answer_tokens = answer_tokens.expand(len(logits), -1)
    return ioi.logits_to_ave_logit_diff(logits, answer_tokens, per_prompt)


@wrong(ioi.residual_stack_to_logit_diff, "the parts are not centred first")
def _(residual_stack, cache, logit_diff_directions):
    scale = cache["ln_final.hook_scale"][:, -1]
    return einops.einsum(residual_stack / scale, logit_diff_directions, "... b d, b d -> ... b").mean(-1)


@wrong(ioi.ioi_metric, "never above 1")
def _(logits, answer_tokens, clean_logit_diff, corrupted_logit_diff):
    return ioi.ioi_metric(logits, answer_tokens, clean_logit_diff, corrupted_logit_diff).clamp(max=1)


@wrong(ioi.patch_residual_component, "the mean of the clean run, for the whole batch")
def _(corrupted_residual_component, hook, pos, clean_cache):
    clean = clean_cache[hook.name]
    ioi.patch_residual_component(corrupted_residual_component, hook, pos, clean_cache)
    corrupted_residual_component[:, pos] = clean[:, pos].mean(0)
    return corrupted_residual_component


@wrong(ioi.get_act_patch_resid_pre, "the model keeps the hooks of the last patch")
def _(model, corrupted_tokens, clean_cache, patching_metric):
    found = ioi.get_act_patch_resid_pre(model, corrupted_tokens, clean_cache, patching_metric)
    model.blocks[-1].hook_resid_pre.add_hook(lambda x, hook: x)
    return found


@wrong(ioi.patch_attn_patterns, "prompts of another length are cut to fit")
def _(corrupted_pattern, hook, head_index, clean_cache):
    n = min(corrupted_pattern.shape[-1], clean_cache[hook.name].shape[-1])
    corrupted_pattern[:, head_index, :n, :n] = clean_cache[hook.name][:, head_index, :n, :n]
    return corrupted_pattern


@wrong(ioi.get_act_patch_heads_by_pos, "the clean run's own values before the position as well")
def _(model, corrupted_tokens, clean_cache, patching_metric):
    ioi.get_act_patch_heads_by_pos(model, corrupted_tokens, clean_cache, patching_metric)
    cfg = model.cfg
    found = torch.zeros(cfg.n_layers, corrupted_tokens.shape[1], cfg.n_heads)
    for layer in range(cfg.n_layers):
        for pos in range(corrupted_tokens.shape[1]):
            for head in range(cfg.n_heads):

                def patch(z, hook, pos=pos, head=head):
                    z[:, : pos + 1, head] = clean_cache[hook.name][:, : pos + 1, head]
                    return z

                logits = model.run_with_hooks(corrupted_tokens, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", patch)])
                found[layer, pos, head] = patching_metric(logits)
    return found


@wrong(circuit.patch_or_freeze_heads, "the sender's head in every layer")
def _(z, hook, sender, orig_cache, new_cache):
    ioi.require_same_length(z, orig_cache)
    ioi.require_same_length(z, new_cache)
    z[...] = orig_cache[hook.name]
    z[:, :, sender[1]] = new_cache[hook.name][:, :, sender[1]]
    return z


@wrong(circuit.path_patch_to_heads, "a receiver in the sender's own layer is let through")
def _(model, orig_tokens, orig_cache, new_cache, sender, receivers, receiver_input="q"):
    later = [r for r in receivers if r[0] != sender[0]]
    if not later:
        return model(orig_tokens)
    return circuit.path_patch_to_heads(model, orig_tokens, orig_cache, new_cache, sender, later, receiver_input)


@wrong(circuit.run_circuit, "an iterator of heads is used up after the first layer")
def _(model, tokens, circuit, means):
    from utils.ioi_circuit import run_circuit

    heads = iter(circuit)
    used = [h for h in heads if h[0] == 0]
    return run_circuit(model, tokens, used, means)


@wrong(circuit.find_circuit, "each head is tried once, in the order of layers")
def _(model, score, keep):
    heads = [(i, j) for i in range(model.cfg.n_layers) for j in range(model.cfg.n_heads)]
    history = []
    for head in list(heads):
        left = [h for h in heads if h != head]
        if (now := score(left)) >= keep:
            heads, history = left, [*history, now]
    return heads, history


# ---------------------------------------------------------------- 10


@wrong(function_vectors.ICLSequence, "every sequence is laid out with arrows")
class _(function_vectors.ICLSequence):
    def prompt(self):
        return function_vectors.ICLSequence(self.word_pairs).prompt()


@wrong(function_vectors.ICLDataset, "labels may be the right one by chance")
class _(function_vectors.ICLDataset):
    @staticmethod
    def _shuffle_labels(pairs, rng, labels=None):
        if labels is None:
            return function_vectors.ICLDataset._shuffle_labels(pairs, rng)
        return [(x, rng.choice(list(labels))) for x, _ in pairs[:-1]] + [pairs[-1]]


@wrong(function_vectors.ICLDataset, "the shuffled copy is of other sequences")
class _(function_vectors.ICLDataset):
    def create_corrupted_dataset(self, seed=0, labels=None):
        found = function_vectors.ICLDataset.create_corrupted_dataset(self, seed, labels)
        found.seqs = found.seqs[1:] + found.seqs[:1]
        return found


@wrong(function_vectors.calculate_h, "layer -1 is the one before the last")
def _(model, dataset, layer=-1):
    return function_vectors.calculate_h(model, dataset, layer - 1 if layer == -1 else layer)


@wrong(function_vectors.intervene_with_h, "at all positions")
def _(model, zero_shot_dataset, h, layer):
    before, _ = function_vectors.intervene_with_h(model, zero_shot_dataset, h, layer)
    with model.trace(zero_shot_dataset.prompts):
        out = function_vectors.layer_output(model, layer)
        out[:] = out + h
        ids = model.lm_head.output[:, -1].argmax(dim=-1).save()
    return before, model.tokenizer.batch_decode(ids[:, None])


@wrong(function_vectors.calculate_fn_vectors_and_intervene, "rows for all layers, whichever are asked for")
def _(model, dataset, layers=None, corrupted=None):
    return function_vectors.calculate_fn_vectors_and_intervene(model, dataset, None, corrupted)


@wrong(function_vectors.calculate_fn_vectors_and_intervene, "the given prompts to patch are shuffled once more")
def _(model, dataset, layers=None, corrupted=None):
    corrupted = None if corrupted is None else corrupted.create_corrupted_dataset()
    return function_vectors.calculate_fn_vectors_and_intervene(model, dataset, layers, corrupted)


@wrong(function_vectors.intervene_with_fn_vector, "a template without the word's place is used as it is")
def _(model, word, layer, fn_vector, prompt_template="- {x} ->", n_tokens=1):
    if "{x}" not in prompt_template:
        prompt_template += "{x}"
    return function_vectors.intervene_with_fn_vector(model, word, layer, fn_vector, prompt_template, n_tokens)


@wrong(function_vectors.intervene_with_fn_vector, "one token, however many are asked for")
def _(model, word, layer, fn_vector, prompt_template="- {x} ->", n_tokens=1):
    return function_vectors.intervene_with_fn_vector(model, word, layer, fn_vector, prompt_template)


@wrong(function_vectors.steer, "the vector has length 1")
def _(model, prompt, layer, vector, n_tokens, strength=1.0):
    return function_vectors.steer(model, prompt, layer, F.normalize(vector, dim=0), n_tokens, strength)


@wrong(function_vectors.causal_effects_one_trace, "each head's effect minus a hundredth of their mean")
def _(model, dataset, layers=None, corrupted=None):
    found = function_vectors.causal_effects_one_trace(model, dataset, layers, corrupted)
    return found - found.mean() / 100


@wrong(function_vectors.resumable_sweep, "the heads that the file holds come first")
def _(measure, heads, file):
    found = function_vectors.resumable_sweep(measure, heads, file)
    order = [tuple(json.loads(line)[0]) for line in file.read_text().splitlines() if line.endswith("]")]
    return {h: found[h] for h in [*order, *heads] if h in found}


@wrong(function_vectors.resumable_sweep, "a number is measured again where it is 0")
def _(measure, heads, file):
    found = function_vectors.resumable_sweep(measure, heads, file)
    return {h: x or measure(h) for h, x in found.items()}
