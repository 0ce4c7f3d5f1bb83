"""The sixth hundred: what a text misread, a habit from elsewhere or a short cut makes."""

import copy
import math
import re
from collections import Counter
from functools import partial, wraps
from itertools import pairwise

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


@wrong(toolbox.repeated, "each call gets copies: what one leaves in a list, the next doesn't see")
def repeated(num_times):
    if num_times < 1:
        raise ValueError("once at least")

    def decorator(fn):
        @wraps(fn)
        def wrapper(*args, **kwargs):
            return [fn(*copy.deepcopy(args), **copy.deepcopy(kwargs)) for _ in range(num_times)]

        return wrapper

    return decorator


@wrong(toolbox.HeadDial, "at 0 the same tensor, not a new one")
class HeadDial(toolbox.HeadDial):
    def turn_down(self, z, hook):
        return super().turn_down(z, hook) if self.strength else z


@wrong(ts.broadcast_shape, "the larger size: 1 against 0 gives 1")
def broadcast_shape(a, b):
    n = max(len(a), len(b))
    a, b = (1,) * (n - len(a)) + tuple(a), (1,) * (n - len(b)) + tuple(b)
    if any(x != y and 1 not in (x, y) for x, y in zip(a, b, strict=True)):
        raise ValueError("they do not fit")
    return tuple(max(x, y) for x, y in zip(a, b, strict=True))


@wrong(ts.bytes_held, "walks through the tensors twice")
def bytes_held(tensors):
    seen = {t.untyped_storage().data_ptr() for t in tensors}
    total = 0
    for t in tensors:
        if t.untyped_storage().data_ptr() in seen:
            total += t.untyped_storage().nbytes()
            seen.discard(t.untyped_storage().data_ptr())
    return total


@wrong(toolbox.token_table, "bold where a value is largest in size, also below 0")
def token_table(tokens, values, title=""):
    if len(tokens) != len(values) or not len(values):
        raise ValueError("not one value for each token")
    table = toolbox.Table("token", "value", title=title)
    best = max(range(len(values)), key=lambda i: abs(values[i]))
    for i, (token, value) in enumerate(zip(tokens, values, strict=True)):
        style = "bold" if i == best else None
        table.add_row(toolbox.escape(repr(token)), f"{float(value):#.3g}", style=style)
    return table


@wrong(toolbox.vocab_by_id, "only the largest id is looked at: a gap beside a double passes")
def vocab_by_id(tokenizer):
    vocab = tokenizer.get_vocab()
    if max(vocab.values()) != len(vocab) - 1:
        raise ValueError("gaps")
    return sorted(vocab, key=vocab.get)


@wrong(ts.Centring, "one gain for all dimensions")
class Centring(ts.Centring):
    def __init__(self, mean):
        super().__init__(mean)
        self.gain = nn.Parameter(torch.ones(1))


@wrong(ts.head_norms, "the root of the mean square, not the mean length")
def head_norms(x, n_heads):
    if x.shape[-1] % n_heads:
        raise ValueError("not so many heads")
    return x.unflatten(-1, (n_heads, -1)).pow(2).sum(-1).mean((0, 1)).sqrt()


@wrong(toolbox.gpt2_places, "resid_post is what the next block reads; the last one has no next")
def gpt2_places(layer):
    return toolbox.gpt2_places(layer) | {"resid_post": (f"transformer.h.{layer + 1}", "input")}


@wrong(ts.most_similar_earlier, "later rows count 0: they win over opposite ones")
def most_similar_earlier(x):
    unit = F.normalize(x, dim=-1)
    best = (unit @ unit.T).tril(-1).argmax(dim=-1)
    best[0] = -1
    return best


# chapter 01


@wrong(tok.pretokenize, "numbers are cut after three digits, as GPT-4 does")
def pretokenize(text):
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    return regex.findall(pattern, text)


@wrong(tok.bytes_to_unicode, "the soft hyphen stands for itself")
def bytes_to_unicode():
    own = [*range(33, 127), *range(161, 256)]
    others = [byte for byte in range(256) if byte not in own]
    return {byte: chr(byte) for byte in own} | {byte: chr(256 + n) for n, byte in enumerate(others)}


@wrong(tok.count_pairs, "each pair once a word")
def count_pairs(words):
    counts = Counter()
    for word, n in words.items():
        for pair in set(pairwise(word)):
            counts[pair] += n
    return counts


@wrong(tok.merge_pair, "from right to left")
def merge_pair(word, pair):
    merged, i = [], len(word)
    while i > 0:
        step = 2 if i > 1 and word[i - 2 : i] == pair else 1
        merged.append("".join(word[i - step : i]))
        i -= step
    return tuple(reversed(merged))


@wrong(tok.train_bpe, "of equally frequent pairs the first one seen")
def train_bpe(corpus, vocab_size):
    if vocab_size < 256 or isinstance(corpus, str):
        raise ValueError("too small, or one text")
    vocab, merges = {char: i for i, char in enumerate(tok.BYTE_TO_CHAR.values())}, {}
    words = Counter(tok.to_symbols(piece) for text in corpus for piece in tok.pretokenize(text))
    while len(vocab) < vocab_size and (counts := tok.count_pairs(words)):
        best = max(counts, key=counts.get)
        merges[best] = len(merges)
        vocab["".join(best)] = len(vocab)
        words = {tok.merge_pair(word, best): n for word, n in words.items()}
    return vocab, merges


@wrong(tok.encode, "the text isn't cut into pieces first")
def encode(text, vocab, merges):
    word = tok.to_symbols(text)
    while pairs := [pair for pair in pairwise(word) if pair in merges]:
        word = tok.merge_pair(word, min(pairs, key=merges.get))
    return [vocab[symbol] for symbol in word]


@wrong(tok.decode, "by way of text: bytes that are no UTF-8 are lost")
def decode(ids, vocab):
    return tok.decode(ids, vocab).decode("utf-8", "replace").encode()


@wrong(tok.longest_match_encode, "tokens may reach over the ends of pieces")
def longest_match_encode(text, vocab):
    ids, rest = [], "".join(tok.to_symbols(text))
    while rest:
        n = next(n for n in range(len(rest), 0, -1) if rest[:n] in vocab)
        ids.append(vocab[rest[:n]])
        rest = rest[n:]
    return ids


@wrong(tok.find_disagreements, "texts that are cut into different numbers of tokens only")
def find_disagreements(texts, vocab, merges):
    return [t for t in texts if len(tok.encode(t, vocab, merges)) != len(tok.longest_match_encode(t, vocab))]


@wrong(tok.split_special, "in the order given: a shorter one may win")
def split_special(text, special):
    if not special:
        return [text] if text else []
    return [part for part in re.split("(" + "|".join(map(re.escape, special)) + ")", text) if part]


@wrong(tok.BPETokenizer, "special tokens are left out of the text")
class BPETokenizer(tok.BPETokenizer):
    def decode(self, ids):
        special = set(self.special_tokens.values())
        return tok.decode([i for i in ids if i not in special], self.vocab).decode("utf-8", "replace")


# chapter 02


@wrong(tf.LayerNorm, "epsilon beside the root")
class LayerNorm(tf.LayerNorm):
    def forward(self, residual):
        centred = residual - residual.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True).sqrt() + self.cfg.layer_norm_eps) * self.w + self.b


@wrong(tf.MLP, "the exact gelu")
class MLP(tf.MLP):
    def forward(self, normalized_resid_mid):
        return F.gelu(normalized_resid_mid @ self.W_in + self.b_in) @ self.W_out + self.b_out


@wrong(tf.Attention, "a softmax over the queries")
class Attention(tf.Attention):
    def forward(self, normalized_resid_pre):
        x = normalized_resid_pre
        q, k, v = (
            torch.einsum("bpm,nmh->bpnh", x, W) + b
            for W, b in ((self.W_Q, self.b_Q), (self.W_K, self.b_K), (self.W_V, self.b_V))
        )
        scores = torch.einsum("bqnh,bknh->bnqk", q, k) / self.cfg.d_head**0.5
        z = torch.einsum("bnqk,bknh->bqnh", self.apply_causal_mask(scores).softmax(dim=-2), v)
        return torch.einsum("bqnh,nhm->bqm", z, self.W_O) + self.b_O


@wrong(tf.TransformerBlock, "attention and MLP read the same stream")
class TransformerBlock(tf.TransformerBlock):
    def forward(self, resid_pre):
        return resid_pre + self.attn(self.ln1(resid_pre)) + self.mlp(self.ln2(resid_pre))


@wrong(tf.Unembed, "logits are centred")
class Unembed(tf.Unembed):
    def forward(self, normalized_resid_final):
        logits = super().forward(normalized_resid_final)
        return logits - logits.mean(-1, keepdim=True)


@wrong(tf.DemoTransformer, "embeddings times the root of d_model, as in the first transformer")
class DemoTransformer(tf.DemoTransformer):
    def forward(self, tokens):
        residual = self.embed(tokens) * self.cfg.d_model**0.5 + self.pos_embed(tokens)
        for block in self.blocks:
            residual = block(residual)
        return self.unembed(self.ln_final(residual))


@wrong(tf.PosEmbed, "one text's positions, for a batch to broadcast")
class PosEmbed(tf.PosEmbed):
    def forward(self, tokens):
        return self.W_pos[None, : tokens.shape[1]]


@wrong(tf.get_log_probs, "the last position predicts the first token")
def get_log_probs(logits, tokens):
    return logits.log_softmax(-1).gather(-1, tokens.roll(-1, 1)[..., None])[..., 0]


@wrong(tf.bigram_loss, "a token that the training text lacks has frequency 0")
def bigram_loss(train, test, d_vocab, strength=1.0):
    frequency = torch.bincount(train.flatten()) + 0.1
    frequency = F.pad(frequency / frequency.sum(), (0, d_vocab - len(frequency)))
    table = torch.zeros(d_vocab, d_vocab)
    table.index_put_((train[:, :-1], train[:, 1:]), torch.ones(()), accumulate=True)
    probs = (table + strength * frequency) / (table.sum(1, keepdim=True) + strength)
    return -probs[test[:, :-1], test[:, 1:]].log().mean().item()


@wrong(tf.training_step, "the loss after the step")
def training_step(model, optimizer, tokens):
    optimizer.zero_grad()
    (-tf.get_log_probs(model(tokens), tokens).mean()).backward()
    optimizer.step()
    return -tf.get_log_probs(model(tokens), tokens).mean().item()


@wrong(tf.similarity_by_distance, "round the end: the last position is one from the first")
def similarity_by_distance(W_pos):
    unit = F.normalize(W_pos, dim=-1)
    return torch.stack([(unit * unit.roll(d, 0)).sum(-1).mean() for d in range(len(unit))])


@wrong(tf.antisymmetric_share, "the share of the square, not of the size")
def antisymmetric_share(table):
    return (((table - table.T) / 2).norm() / table.norm()).item() ** 2


@wrong(tf.ShortformerAttention, "only keys see positions")
class ShortformerAttention(tf.ShortformerAttention):
    def forward(self, normalized_resid_pre, pos_embed):
        x = normalized_resid_pre
        q, k, v = (
            torch.einsum("bpm,nmh->bpnh", y, W) + b
            for y, W, b in (
                (x, self.W_Q, self.b_Q),
                (x + pos_embed, self.W_K, self.b_K),
                (x, self.W_V, self.b_V),
            )
        )
        scores = torch.einsum("bqnh,bknh->bnqk", q, k) / self.cfg.d_head**0.5
        z = torch.einsum("bnqk,bknh->bqnh", self.apply_causal_mask(scores).softmax(-1), v)
        return torch.einsum("bqnh,nhm->bqm", z, self.W_O) + self.b_O


# chapter 03


@wrong(sp.sample_top_p, "what comes after exactly top_p stays")
def sample_top_p(logits, top_p, min_tokens_to_keep=1):
    if not 0 < top_p <= 1 or not isinstance(min_tokens_to_keep, int):
        raise ValueError("top_p must lie in (0, 1]")
    if not 1 <= min_tokens_to_keep <= logits.shape[-1]:
        raise ValueError("min_tokens_to_keep")
    sp.require_logits(logits)
    probs, ids = logits.softmax(-1).sort(-1, descending=True)
    outside = probs.cumsum(-1) - probs > top_p
    outside[:, :min_tokens_to_keep] = False
    return ids.gather(-1, torch.multinomial(probs.masked_fill(outside, 0), 1))[:, 0]


@wrong(sp.sample_tokens, "one place of the context is never used")
@torch.inference_mode()
def sample_tokens(model, tokens, max_tokens_generated, eos_token_id=None, **kwargs):
    room = max(0, min(max_tokens_generated, model.cfg.n_ctx - 1 - tokens.shape[1]))
    return sp.sample_tokens(model, tokens, room, eos_token_id, **kwargs)


@wrong(kv_cache.flops_per_new_token, "logits of the last position only, without a cache too")
def flops_per_new_token(cfg, length, cached):
    return kv_cache.flops_per_new_token(cfg, length, cached) | {"unembedding": 2 * cfg.d_model * cfg.d_vocab}


@wrong(sp.TransformerSampler, "the penalty sees only what the cache has not seen")
class TransformerSampler(sp.TransformerSampler):
    @torch.inference_mode()
    def generate(self, prompts, max_tokens_generated=100, use_cache=True, stop_at_eos=True, progress=False, **kwargs):
        cfg = self.model.cfg
        sp.require_prompts(prompts, cfg.n_ctx)
        if max_tokens_generated < 0:
            raise ValueError("max_tokens_generated must be 0 or above")
        longest = max(map(len, prompts))
        padding = torch.tensor([longest - len(p) for p in prompts])
        tokens = torch.tensor([[sp.PAD] * (longest - len(p)) + list(p) for p in prompts])
        n_max = min(longest + max_tokens_generated, cfg.n_ctx)
        ended = torch.zeros(len(prompts), dtype=torch.bool)
        cache = kv_cache.KeyValueCache(cfg, len(prompts), n_max, padding)
        for _ in range(n_max - longest):
            if not use_cache:
                cache = kv_cache.KeyValueCache(cfg, len(prompts), n_max, padding)
            unseen = tokens[:, cache.length :]
            logits = kv_cache.forward_with_cache(self.model, unseen, cache)[:, -1]
            new = sp.sample_next_token(unseen, logits, **kwargs).masked_fill(ended, sp.PAD)
            tokens = torch.cat([tokens, new[:, None]], dim=1)
            if stop_at_eos:
                ended |= new == self.tokenizer.eos_token_id
                if ended.all():
                    break
        return [[t for t in row if t != sp.PAD] for row in tokens.tolist()]


@wrong(sp.Beams, "the k best first, then the ban: banned ones take the place of others")
class Beams(sp.Beams):
    def generate(self, k, no_repeat_ngram_size=None):
        found = super().generate(k)
        if no_repeat_ngram_size is not None:
            for i, tokens in enumerate(found.tokens.tolist()):
                if tokens[-1] in sp.banned_tokens(tokens[:-1], no_repeat_ngram_size):
                    found.logprob_sums[i] = -math.inf
        return found


@wrong(sp.beam_search, "stops once num_beams texts have ended, whatever still runs")
@torch.inference_mode()
def beam_search(
    model, tokens, num_beams, max_tokens_generated, eos_token_id=None, no_repeat_ngram_size=None, use_cache=True
):
    if not 1 <= num_beams <= model.cfg.d_vocab:
        raise ValueError("num_beams")
    sp.require_prompts([tokens.tolist()], model.cfg.n_ctx)
    n_max = min(len(tokens) + max_tokens_generated, model.cfg.n_ctx)
    cache = kv_cache.KeyValueCache(model.cfg, 1, n_max, tokens.new_zeros(1)) if use_cache else None
    beams, finished = sp.Beams(model, tokens[None], torch.zeros(1), None, cache), []
    for _ in range(n_max - len(tokens)):
        going_on, ended = beams.generate(num_beams + 1, no_repeat_ngram_size).filter(num_beams, eos_token_id)
        finished = sorted(finished + ended, reverse=True)[:num_beams]
        if not len(going_on.tokens):
            return finished or beams.ranked()
        beams = going_on
        if len(finished) == num_beams:
            return finished
    return sorted(finished + beams.ranked(), reverse=True)[:num_beams]


@wrong(sp.trap_for_beams, "not twice as likely: 0.9 against a half")
def trap_for_beams(num_beams):
    if num_beams < 1:
        raise ValueError("no beam")
    first = torch.tensor([1.0] * num_beams + [0.9])
    second = torch.full((num_beams + 1, 2), 0.5)
    second[-1] = torch.tensor([1.0, 0.0])
    return first / first.sum(), second


@wrong(sp.sample_min_p, "what is exactly min_p times as likely falls out")
def sample_min_p(logits, min_p):
    if not 0 <= min_p <= 1:
        raise ValueError(f"min_p is {min_p}")
    probs = logits.softmax(-1)
    best = probs.max(-1, keepdim=True).values
    return sp.sample_basic(logits.masked_fill((probs <= min_p * best) & (probs < best), -math.inf))


@wrong(sp.sample_next_token, "temperature before the penalty")
def sample_next_token(input_ids, logits, temperature=1.0, top_k=None, top_p=None, frequency_penalty=0.0):
    if temperature > 0 and math.isfinite(temperature):
        frequency_penalty = frequency_penalty * temperature
    return sp.sample_next_token(input_ids, logits, temperature, top_k, top_p, frequency_penalty)


@wrong(speculation.accept_drafted, "what is drawn instead comes of the target, not of what is left")
def accept_drafted(target_probs, draft_probs, drafted):
    batch, n = drafted.shape
    if draft_probs.shape[1] != n or target_probs.shape[1] != n + 1:
        raise ValueError("the places don't fit")
    target = target_probs[:, :-1].gather(2, drafted[..., None])[..., 0]
    draft = draft_probs.gather(2, drafted[..., None])[..., 0]
    if (draft <= 0).any():
        raise ValueError("a drafted token has probability 0")
    kept = (torch.rand(batch, n) * draft < target).long().cumprod(dim=1).sum(dim=1)
    rows, out = torch.arange(batch), F.pad(drafted, (0, 1), value=sp.PAD)
    out[rows, kept] = torch.multinomial(target_probs[rows, kept], 1)[:, 0]
    return out.masked_fill(torch.arange(n + 1) > kept[:, None], sp.PAD)


# chapter 04


@wrong(inspection.act_name, "layers of one digit only")
def act_name(name, layer=None):
    if name[-1].isdigit():
        name, layer = name[:-1], int(name[-1])
    return inspection.act_name(name, layer)


@wrong(inspection.gradient_cache, "no gradient of the embedding itself")
def gradient_cache(model, tokens, names_filter):
    found = inspection.gradient_cache(model, tokens, names_filter)
    return {name: gradient for name, gradient in found.items() if name != "hook_embed"}


@wrong(inspection.stack_over_layers, "the model's own stacks, of which there is none for a LayerNorm")
def stack_over_layers(model, path):
    try:
        return getattr(model, path.split(".")[-1])
    except AttributeError:
        raise ValueError(f"no weight {path}") from None


@wrong(inspection.memory_by_kind, "four bytes a number")
def memory_by_kind(cache):
    sizes = Counter()
    for name, x in cache.items():
        sizes[name.rsplit(".", 1)[-1]] += 4 * x.numel()
    return dict(sizes.most_common())


@wrong(inspection.pattern_hooks, "the first layer's pattern")
def pattern_hooks(hook_fn):
    return [(lambda name: name == "blocks.0.attn.hook_pattern", hook_fn)]


@wrong(inspection.scale_head_hook, "the factor is added to 1")
def scale_head_hook(z, hook, head, factor):
    z = z.clone()
    z[:, :, head] *= 1 + factor
    return z


@wrong(inspection.top_tokens, "the largest in size, also below 0")
def top_tokens(activations, str_tokens, k=5):
    if len(activations) != len(str_tokens):
        raise ValueError("not one activation for each token")
    places = activations.abs().topk(k).indices.tolist()
    return [(str_tokens[i], activations[i].item()) for i in places]


@wrong(inspection.best_f1, "a token is predicted above the threshold, not at it")
def best_f1(activations, labels):
    f1, threshold = inspection.best_f1(activations, labels)
    below = torch.where(activations < threshold, activations, -torch.inf).max(0).values
    return f1, torch.where(below.isinf(), threshold - 1, below)


@wrong(inspection.attention_pattern, "the scores are divided by d_head")
def attention_pattern(q, k):
    if q.shape != k.shape:
        raise ValueError("queries and keys differ")
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1]
    return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf).softmax(dim=-1)


@wrong(inspection.HookPoint, "only the last hook's result goes on; each gets x itself")
class HookPoint(inspection.HookPoint):
    def forward(self, x):
        out = x
        for hook_fn in self.hook_fns:
            returned = hook_fn(x, hook=self)
            out = out if returned is None else returned
        return out


# chapter 05


@wrong(induction.get_ablation_scores, "a loss that falls counts as 0")
def get_ablation_scores(model, tokens, ablation_function=induction.head_ablation_hook):
    return induction.get_ablation_scores(model, tokens, ablation_function).clamp(min=0)


@wrong(induction.induction_targets, "the query itself may be looked at")
def induction_targets(tokens):
    out, latest = torch.full_like(tokens, -1), {}
    for i, token in enumerate(tokens.tolist()):
        if token in latest:
            out[i] = latest[token] + 1
        latest[token] = i
    return out


@wrong(induction.induction_attn_detector, "the last query of the first passage counts too")
def induction_attn_detector(cache):
    n = induction.half_length(cache["pattern", 0].shape[-1])
    return torch.stack(
        [
            cache["pattern", layer].diagonal(1 - n, dim1=-2, dim2=-1)[..., 1:].mean((0, -1))
            for layer in range(cache.model.cfg.n_layers)
        ]
    )


@wrong(comp.copying_score, "real parts below as well as above")
def copying_score(full_OV_circuit):
    if full_OV_circuit.ldim != full_OV_circuit.rdim:
        raise ValueError("not square")
    real = torch.linalg.eigvals(full_OV_circuit.B @ full_OV_circuit.A).real
    return (real.sum() / real.abs().sum()).item()


@wrong(comp.copying_by_direction, "without the sign: what suppresses counts as copying")
def copying_by_direction(full_OV_circuit):
    return comp.copying_by_direction(full_OV_circuit).abs()


@wrong(comp.decompose_attn_scores, "keys that come later are masked")
def decompose_attn_scores(decomposed_q, decomposed_k, model):
    return comp.decompose_attn_scores(decomposed_q, decomposed_k, model).tril()


@wrong(comp.attn_score_stds, "query 0 counts, with 0")
def attn_score_stds(decomposed_scores):
    n = decomposed_scores.shape[-1]
    rows = [decomposed_scores[..., i, : i + 1].std(-1, correction=0) for i in range(n)]
    return torch.stack(rows).mean(0)


@wrong(comp.get_comp_score, "largest singular values, not sums of squares")
def get_comp_score(W_A, W_B):
    if W_A.shape[1] != W_B.shape[0]:
        raise ValueError("W_B does not read what W_A writes")
    norms = [torch.linalg.matrix_norm(W, 2) for W in (W_A @ W_B, W_A, W_B)]
    return (norms[0] / (norms[1] * norms[2])).item()


@wrong(comp.pos_by_pos_pattern, "what lies ahead is not masked")
def pos_by_pos_pattern(model, head):
    comp.require_head(model, head)
    q, k = model.W_pos @ model.W_Q[head], model.W_pos @ model.W_K[head]
    return (q @ k.T / model.cfg.d_head**0.5).softmax(-1)


@wrong(comp.full_OV_circuit, "only the first head where there are several")
def full_OV_circuit(model, heads):
    comp.full_OV_circuit(model, heads)  # for what it refuses
    return comp.full_OV_circuit(model, heads[:1])


@wrong(comp.run_with_path_ablated, "the receiver's whole layer loses what the sender writes")
def run_with_path_ablated(model, tokens, sender, receiver, channel="k"):
    comp.run_with_path_ablated(model, tokens, sender, receiver, channel)  # for what it refuses
    _, cache = model.run_with_cache(tokens)
    written = cache["z", sender[0]][:, :, sender[1]] @ model.W_O[sender]
    weights = {"q": model.W_Q, "k": model.W_K, "v": model.W_V}[channel][receiver[0]]

    def cut(x, hook):
        return x - torch.einsum("bsm,hmd->bshd", written, weights)

    with model.hooks(fwd_hooks=[(get_act_name(channel, receiver[0]), cut)]):
        return model.run_with_cache(tokens, names_filter=lambda name: name.endswith("pattern"))


# chapter 06


@wrong(sup.top_neuron_share, "the largest weight above 0")
def top_neuron_share(W):
    total = W.pow(2).sum(-2)
    return torch.where(total > 0, W.amax(-2).clamp_min(0) ** 2 / total.clamp_min(1e-30), 0.0)


@wrong(sup.allocate_capacity, "a value below 0 matters less than 0")
def allocate_capacity(value, kurtosis, d_hidden):
    return sup.allocate_capacity(value.clamp_min(0), kurtosis, d_hidden)


@wrong(sup.interference, "the ReLU keeps the sum, not each overlap")
def interference(W, relu=False):
    overlap = F.normalize(W, dim=-2, eps=1e-12).mT @ W
    overlap = overlap.masked_fill(torch.eye(W.shape[-1], dtype=torch.bool), 0)
    signed = overlap.pow(2) * (overlap.sign() if relu else 1)
    return signed.sum(-1).relu()


@wrong(sup.feature_capacity, "overlaps with unit vectors, as for dimensionality")
def feature_capacity(W):
    return sup.compute_dimensionality(F.normalize(W, dim=-2))


@wrong(sup.quadratic_loss, "each pair once")
def quadratic_loss(W, value, kurtosis):
    gap = W.mT @ W - torch.diag_embed(value)
    return (kurtosis - 1) * gap.diagonal(dim1=-2, dim2=-1).pow(2).sum(-1) + 2 * gap.triu(1).pow(2).sum((-2, -1))


@wrong(sup.NeuronModel, "no ReLU at the end")
class NeuronModel(sup.NeuronModel):
    def forward(self, features):
        hidden = F.relu(torch.einsum("bif,ihf->bih", features, self.W))
        return torch.einsum("bih,ihf->bif", hidden, self.W) + self.b_final


@wrong(sup.ToyModel, "the bias comes behind the ReLU")
class ToyModel(sup.ToyModel):
    def forward(self, features):
        hidden = torch.einsum("bif,ihf->bih", features, self.W)
        return F.relu(torch.einsum("bih,ihf->bif", hidden, self.W)) + self.b_final


@wrong(double_descent.generate_dataset, "empty points are drawn again once")
def generate_dataset(n_points, n_features, feature_probability):
    if n_features < 1 or feature_probability <= 0:
        raise ValueError("all points would be empty")
    p = torch.full((1, n_features), feature_probability)
    points = sup.generate_uncorrelated_features(p, n_points)[:, 0]
    empty = points.sum(-1) == 0
    points[empty] = sup.generate_uncorrelated_features(p, int(empty.sum()))[:, 0]
    return F.normalize(points, dim=-1)


@wrong(sup.pca_baseline, "divided by one less than the batch")
def pca_baseline(batch, importance, d_hidden):
    return sup.pca_baseline(batch, importance, d_hidden) * len(batch) / max(1, len(batch) - 1)


@wrong(sup.generate_correlated_features, "one size for both")
def generate_correlated_features(pair_probability, batch_size):
    on = torch.rand(batch_size, *pair_probability.shape) < pair_probability
    size = torch.rand(batch_size, *pair_probability.shape) * on
    return torch.stack([size, size], dim=-1).flatten(-2)


# chapter 07


@wrong(toy.rectangle, "as high as 1 / width, and half as wide")
def rectangle(x):
    return 2 * ((x > -0.25) & (x < 0.25)).to(x.dtype)


@wrong(toy.shrinkage, "the mean of each input's own ratio")
def shrinkage(h, h_reconstructed):
    length, agreement = h_reconstructed.pow(2).sum(-1), (h_reconstructed * h).sum(-1)
    return torch.where(length > 0, length / agreement, 0.0).mean(0)


@wrong(toy.ToySAE, "the bias of the decoder isn't taken off the input")
class ToySAE(toy.ToySAE):
    def pre_activations(self, h):
        return torch.einsum("bid,ids->bis", h, self.W_enc) + self.b_enc


@wrong(toy.JumpReLU, "the threshold's gradient misses the height of the jump")
class JumpReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, theta, eps):
        ctx.save_for_backward(z, theta)
        ctx.eps = eps
        return z * (z > theta)

    @staticmethod
    def backward(ctx, grad_output):
        z, theta = ctx.saved_tensors
        return (z > theta) * grad_output, -toy.rectangle((z - theta) / ctx.eps) / ctx.eps * grad_output, None


@wrong(toy.Heaviside, "at the threshold it counts as active")
class Heaviside(toy.Heaviside):
    @staticmethod
    def forward(ctx, z, theta, eps):
        ctx.save_for_backward(z, theta)
        ctx.eps = eps
        return (z >= theta).to(z.dtype)


@wrong(toy.GatedToySAE, "the gate's bias reaches the magnitude")
class GatedToySAE(toy.GatedToySAE):
    def forward(self, h):
        gate = self.pre_activations(h)
        acts = (gate > 0) * F.relu(gate * self.r_mag.exp() + self.b_mag)
        rebuilt = self.decode(acts)
        by_gate = torch.einsum("bis,isd->bid", F.relu(gate), self.W_dec_normalized.detach()) + self.b_dec.detach()
        loss = {
            "L_reconstruction": (rebuilt - h).pow(2).mean(-1),
            "L_sparsity": F.relu(gate).sum(-1),
            "L_aux": (by_gate - h).pow(2).mean(-1),
        }
        total = loss["L_reconstruction"] + self.cfg.sparsity_coeff * loss["L_sparsity"] + loss["L_aux"]
        return loss, total, acts, rebuilt


@wrong(toy.TopKToySAE, "the k largest of the whole batch's mean stay, the same for all inputs")
class TopKToySAE(toy.TopKToySAE):
    def forward(self, h):
        acts = F.relu(self.pre_activations(h))
        top = acts.mean(0, keepdim=True).topk(self.cfg.k, dim=-1).indices
        acts = acts * torch.zeros_like(acts).scatter(-1, top.expand(len(h), -1, -1), 1.0)
        rebuilt = self.decode(acts)
        loss = (rebuilt - h).pow(2).mean(-1)
        return {"L_reconstruction": loss}, loss, acts, rebuilt


@wrong(toy.dead_latents, "not active in the last step")
def dead_latents(frac_active_in_window):
    return frac_active_in_window[-1] == 0


@wrong(toy.match_latents, "an opposite row is as near as one that points the same way")
def match_latents(W_dec, W):
    cosine = F.normalize(W.mT, dim=-1, eps=1e-12) @ F.normalize(W_dec, dim=-1, eps=1e-12).mT
    best = cosine.abs().max(-1)
    return best.indices, best.values


@wrong(toy.resample_simple, "all latents' biases begin anew")
@torch.no_grad()
def resample_simple(sae, frac_active_in_window, resample_scale):
    toy.resample_simple(sae, frac_active_in_window, resample_scale)
    sae.b_enc.zero_()


@wrong(toy.resample_advanced, "drawn in proportion to the loss")
@torch.no_grad()
def resample_advanced(sae, frac_active_in_window, resample_scale, batch_size):
    dead = toy.dead_latents(frac_active_in_window)
    h = sae.generate_batch(batch_size)
    losses = (h - sae(h)[3]).pow(2).sum(-1)
    for i in range(sae.cfg.n_inst):
        n = int(dead[i].sum())
        if not n or not losses[:, i].sum():
            continue
        v = F.normalize(h[torch.multinomial(losses[:, i], n, replacement=True), i] - sae.b_dec[i], dim=-1)
        living = sae.W_enc[i][:, ~dead[i]]
        length = living.norm(dim=0).mean() if living.shape[1] else 1.0
        sae.W_dec[i, dead[i]] = v
        sae.W_enc[i].mT[dead[i]] = resample_scale * length * v
        sae.b_enc[i, dead[i]] = 0


# chapter 08


@wrong(saes.get_sae_acts, "0 at the first token of every row")
def get_sae_acts(model, sae, tokens):
    acts = saes.get_sae_acts(model, sae, tokens).clone()
    acts[:, 0] = 0
    return acts


@wrong(saes.f1_scores, "0 / 0 where nothing fires and nothing is labelled")
@torch.no_grad()
def f1_scores(values, labels, thresholds):
    fires = (values >= thresholds[:, None]).float()
    hits = torch.einsum("htu,tl->hlu", fires, labels.float())
    return 2 * hits / (fires.sum(1)[:, None] + labels.sum(0)[:, None])


@wrong(saes.by_document, "yes and no become numbers")
def by_document(values, tokens, end, least=8):
    return saes.by_document(values.float(), tokens, end, least)


@wrong(saes.create_prompt, "marked where it is just the threshold too")
def create_prompt(examples, threshold=0.3):
    lowered = threshold - 1e-6 * abs(threshold) - 1e-9
    return saes.create_prompt(examples, lowered)


@wrong(saes.detection_score, "the share of right answers, of all texts together")
def detection_score(said, active):
    if active.all() or not active.any():
        raise ValueError("texts of one kind")
    return (said == active).float().mean().item()


@wrong(sae_causes.direct_feature_attribution, "b_dec is taken off whatever the configuration says")
def direct_feature_attribution(v, pattern, sae, latent_idx):
    W = sae.W_enc[:, latent_idx].unflatten(0, (v.shape[2], -1))
    by_source = torch.einsum("khs,kshd,hd->ksh", pattern, v, W)
    return by_source, sae.b_enc[latent_idx] - sae.b_dec @ sae.W_enc[:, latent_idx]


@wrong(sae_causes.ablate_sae_latent, "position 0 means all")
def ablate_sae_latent(sae_acts, hook, latent_idx=None, seq_pos=None):
    latents = slice(None) if latent_idx is None else latent_idx
    sae_acts[:, seq_pos or slice(None), latents] = 0.0
    return sae_acts


@wrong(sae_causes.ablation_sweep, "the autoencoder without its error term")
@torch.no_grad()
def ablation_sweep(model, sae, tokens, latents, metric, seq_pos=None):
    effects = torch.zeros(len(latents))
    with model.saes([sae]):
        before = metric(model(tokens))
        for i, latent in enumerate(latents.tolist()):
            hook = partial(sae_causes.ablate_sae_latent, latent_idx=latent, seq_pos=seq_pos)
            effects[i] = before - metric(model.run_with_hooks(tokens, fwd_hooks=[(saes.acts_name(sae), hook)]))
    return effects


@wrong(sae_causes.ablation_effects, "only the first `at_once` latents are measured")
def ablation_effects(model, sae, tokens, latents, metric, seq_pos, at_once=64):
    effects = sae_causes.ablation_effects(model, sae, tokens, latents, metric, seq_pos, at_once)
    effects[at_once:] = 0
    return effects


@wrong(sae_causes.attribution_patching, "position 0 means all")
def attribution_patching(model, sae, tokens, metric, seq_pos=None):
    return sae_causes.attribution_patching(model, sae, tokens, metric, seq_pos or None)


@wrong(sae_causes.steering_hook, "the direction is brought to length 1")
def steering_hook(activations, hook, direction, strength=1.0):
    return activations + strength * direction / direction.norm()


@wrong(sae_causes.attention_of_top_examples, "the k largest tokens, which may stand in one row")
def attention_of_top_examples(latent_acts, cache, layer, k):
    places = latent_acts.flatten().topk(k).indices
    rows, at = places // latent_acts.shape[1], places % latent_acts.shape[1]
    return torch.stack([rows, at], dim=1), cache["v", layer][rows], cache["pattern", layer][rows, :, at]


@wrong(probes.best_k_units, "chosen on all tokens")
def best_k_units(values, labels, k):
    return probes.best_k_units(torch.cat([values, values]), torch.cat([labels, labels]), k)


# chapter 09


@wrong(circuit.attention_to_role, "the first prompt's positions for all")
def attention_to_role(cache, query, key):
    return torch.stack(
        [cache["pattern", layer][:, :, query[0], key[0]].mean(0) for layer in range(cache.model.cfg.n_layers)]
    )


@wrong(ioi.get_act_patch_heads_by_pos, "0 at the last layer's earlier positions, not the corrupted metric")
def get_act_patch_heads_by_pos(model, corrupted_tokens, clean_cache, patching_metric):
    results = ioi.get_act_patch_heads_by_pos(model, corrupted_tokens, clean_cache, patching_metric)
    results[-1, :-1] = 0
    return results


@wrong(circuit.find_circuit, "the last head is never taken away")
def find_circuit(model, score, keep):
    heads = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    history = []
    while len(heads) > 1:
        scores = [score(heads[:i] + heads[i + 1 :]) for i in range(len(heads))]
        best = max(range(len(heads)), key=scores.__getitem__)
        if scores[best] < keep:
            break
        history.append(scores[best])
        heads.pop(best)
    return heads, history


@wrong(ioi.patch_head_vector, "the whole layer")
def patch_head_vector(corrupted_head_vector, hook, head_index, clean_cache):
    ioi.require_same_length(corrupted_head_vector, clean_cache[hook.name])
    corrupted_head_vector[:] = clean_cache[hook.name]
    return corrupted_head_vector


@wrong(ioi.patch_attn_patterns, "the last query's row only")
def patch_attn_patterns(corrupted_pattern, hook, head_index, clean_cache):
    ioi.require_same_length(corrupted_pattern, clean_cache[hook.name])
    corrupted_pattern[:, head_index, -1] = clean_cache[hook.name][:, head_index, -1]
    return corrupted_pattern


@wrong(ioi.ioi_metric, "how far from the clean, not from the corrupted")
def ioi_metric(logits, answer_tokens, clean_logit_diff, corrupted_logit_diff):
    return 1 - ioi.ioi_metric(logits, answer_tokens, clean_logit_diff, corrupted_logit_diff)


@wrong(circuit.run_circuit, "the other heads give nothing")
def run_circuit(model, tokens, circuit_heads, means):
    return circuit.run_circuit(model, tokens, circuit_heads, torch.zeros_like(means))


@wrong(circuit.copying_scores, "the embedding without the first MLP")
def copying_scores(model, name_tokens, top_k=5):
    scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    resid = model.W_E[name_tokens][:, None]
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            out = model.blocks[layer].ln1(resid) @ model.W_V[layer, head] @ model.W_O[layer, head]
            best = model.unembed(model.ln_final(out))[:, 0].topk(top_k).indices
            scores[layer, head] = (best == name_tokens[:, None]).any(-1).float().mean()
    return scores


@wrong(ioi.IOIDataset, "flipped prompts keep their old answers")
class IOIDataset(ioi.IOIDataset):
    def flipped(self):
        other = super().flipped()
        return ioi.IOIDataset(self.tokenizer, self.template, other.fillings, self.answers)


@wrong(circuit.patch_or_freeze_heads, "the sender's number in every layer")
def patch_or_freeze_heads(z, hook, sender, orig_cache, new_cache):
    orig, new = orig_cache[hook.name], new_cache[hook.name]
    for cached in (orig, new):
        ioi.require_same_length(z, cached)
    z[:] = orig
    z[:, :, sender[1]] = new[:, :, sender[1]]
    return z


# chapter 10


@wrong(causal_tracing.causal_trace, "the stream, whichever part is asked for")
def causal_trace(model, prompts, subjects, answers, noise, part="stream"):
    causal_tracing.part_output  # noqa: B018
    if part not in ("stream", "mlp", "attn"):
        raise ValueError("no such part")
    return causal_tracing.causal_trace(model, prompts, subjects, answers, noise)


@wrong(fv.mean_head_outputs, "the numbers of a head are not neighbours")
def mean_head_outputs(model, dataset):
    z = fv.mean_head_outputs(model, dataset)
    return z.flatten(1).unflatten(1, (z.shape[2], z.shape[1])).transpose(1, 2)


@wrong(fv.ICLSequence, "the answer without its space")
class ICLSequence(fv.ICLSequence):
    def completion(self):
        return self.word_pairs[-1][1]


@wrong(fv.ICLDataset, "a shot may keep its own label")
class ICLDataset(fv.ICLDataset):
    @staticmethod
    def _shuffle_labels(pairs, rng, labels=None):
        *shots, query = pairs
        if labels is not None:
            return [(x, rng.choice(list(labels))) for x, _ in shots] + [query]
        return fv.ICLDataset._shuffle_labels(pairs, rng)


@wrong(fv.calculate_h, "the mean over all positions")
def calculate_h(model, dataset, layer=-1):
    with model.trace(dataset.prompts, **fv.remote_options()):
        h = fv.layer_output(model, layer).mean(dim=(0, 1)).save()
        ids = model.lm_head.output[:, -1].argmax(dim=-1).save()
    return model.tokenizer.batch_decode(ids[:, None]), h


@wrong(fv.calculate_h_and_intervene, "in bits")
def calculate_h_and_intervene(model, dataset, zero_shot_dataset, layer):
    plain, steered = fv.calculate_h_and_intervene(model, dataset, zero_shot_dataset, layer)
    return plain / math.log(2), steered / math.log(2)


@wrong(fv.steer, "the first new token only")
def steer(model, prompt, layer, vector, n_tokens, strength=1.0):
    length = len(model.tokenizer(prompt).input_ids)
    with model.generate(prompt, max_new_tokens=n_tokens, do_sample=False, **fv.remote_options()) as tracer:
        fv.layer_output(model, layer)[:, -1] += strength * vector
        result = tracer.result.save()
    return model.tokenizer.decode(result[0, length:])


@wrong(fv.calculate_fn_vector, "the mean of the heads, not their sum")
def calculate_fn_vector(model, dataset, head_list):
    return fv.calculate_fn_vector(model, dataset, head_list) / len(head_list)


@wrong(fv.intervene_with_fn_vector, "the vector at every new token")
def intervene_with_fn_vector(model, word, layer, fn_vector, prompt_template="- {x} ->", n_tokens=1):
    plain, _ = fv.intervene_with_fn_vector(model, word, layer, fn_vector, prompt_template, n_tokens)
    prompt = fv.START + prompt_template.replace("{x}", word)
    return plain, fv.steer(model, prompt, layer, fn_vector, n_tokens)


@wrong(fv.causal_effects_one_trace, "other prompts than those that are given")
def causal_effects_one_trace(model, dataset, layers=None, corrupted=None):
    return fv.causal_effects_one_trace(model, dataset, layers)


@wrong(fv.resumable_sweep, "all that the file holds, asked for or not")
def resumable_sweep(measure, heads, file):
    fv.resumable_sweep(measure, heads, file)
    done = {}
    for line in file.read_text().splitlines():
        try:
            head, number = fv.json.loads(line)
        except ValueError:
            continue
        done[tuple(head)] = number
    return done


# chapter 11


@wrong(tc.k_sparse_f1, "the probe is fitted on all tokens")
def k_sparse_f1(values, labels, k):
    half = len(values) // 2
    units = probes.best_k_units(values, labels, k)
    scores = []
    for label, chosen in enumerate(units):
        seen = torch.cat([values[:, chosen], torch.ones(len(values), 1)], dim=1)
        truth = labels[:, label : label + 1].to(values.dtype)
        scores.append((seen @ torch.linalg.lstsq(seen, truth).solution)[:, 0])
    assert half
    precision, recall = tc.precision_and_recall(torch.stack(scores, 1), labels, torch.arange(labels.shape[1]))
    return 2 * precision * recall / (precision + recall).clamp_min(1e-9)


@wrong(circuits.latent_acts_to_later_latent_acts, "only as many positions as hold a latent")
def latent_acts_to_later_latent_acts(latent_acts, indices, shape, sae_from, sae_to, model, error=None):
    shape = (shape[0], int(indices[:, 1].max()) + 1, shape[2])
    error = None if error is None else error[:, : shape[1]]
    return circuits.latent_acts_to_later_latent_acts(latent_acts, indices, shape, sae_from, sae_to, model, error)


@wrong(tc.Transcoder, "the skip connection without its transpose")
class Transcoder(tc.Transcoder):
    def decode(self, acts, x):
        out = acts @ self.W_dec + self.b_dec
        return out if self.W_skip is None else out + x @ self.W_skip


@wrong(tc.connections, "the decoder's rows with their mean")
def connections(earlier, later):
    tc.connections(earlier, later)
    return earlier.W_dec @ later.W_enc


@wrong(tc.contributions, "before the division")
def contributions(acts, scale, earlier, later, latent):
    return acts * tc.connections(earlier, later)[:, latent]


@wrong(tc.mlp_jacobian, "output by input")
def mlp_jacobian(model, layer, x):
    return tc.mlp_jacobian(model, layer, x).mT


@wrong(tc.de_embedding, "past the LayerNorm")
def de_embedding(model, transcoder, extended=False):
    tc.de_embedding(model, transcoder, extended)
    vectors = model.W_E
    if extended:
        vectors = vectors + model.blocks[0].mlp(model.blocks[0].ln2(vectors[None]))[0]
    return vectors @ transcoder.W_enc + transcoder.b_enc


@wrong(tc.transcoder_metrics, "the floor of recovered loss is the mean output")
def transcoder_metrics(model, transcoder, tokens):
    m = tc.transcoder_metrics(model, transcoder, tokens)
    part = (m["loss_mean"] - m["loss_transcoder"]) / (m["loss_mean"] - m["loss_clean"])
    return m | {"loss_recovered": part}


@wrong(tc.transcoder_hooks, "every hook has the last transcoder")
def transcoder_hooks(model, transcoders):
    hooks = tc.transcoder_hooks(model, transcoders)
    kept = {}

    def keep(x, hook):
        kept["x"] = x

    def replace(out, hook):
        return transcoders[-1](kept.pop("x"))

    return [(name, keep if i % 2 == 0 else replace) for i, (name, _) in enumerate(hooks)]


@wrong(circuits.SparseTensor, "a place outside counts from the other end, or not at all")
class SparseTensor(circuits.SparseTensor):
    @classmethod
    def from_sparse(cls, values, indices, shape):
        if len(values) != len(indices):
            raise ValueError("one value for each place")
        limits = torch.tensor(tuple(shape))
        inside = (indices < limits).all(dim=1)
        return circuits.SparseTensor.from_sparse(values[inside], indices[inside], shape)


@wrong(circuits.latent_to_logit_gradients, "logits as they are, not from their mean")
def latent_to_logit_gradients(tokens, sae, model, token_ids=None, k=25):
    _, acts, token_ids = circuits.latent_to_logit_gradients(tokens, sae, model, token_ids, k)
    with torch.no_grad():
        stream = model(tokens, stop_at_layer=circuits.place_after(sae))
        error = stream - sae.decode(acts.dense)

    def logits(values):
        found = circuits.latent_acts_to_logits(values, acts.indices, acts.shape, sae, model, error)
        return found[0][token_ids]

    with torch.enable_grad():
        return torch.func.jacrev(logits)(acts.values).T, acts, token_ids


@wrong(circuits.token_to_latent_gradients, "the scales are the embeddings' lengths: too large by them")
def token_to_latent_gradients(tokens, sae, model, chunk_size=64):
    gradients, acts = circuits.token_to_latent_gradients(tokens, sae, model, chunk_size)
    return gradients / model.W_E[tokens[0]].norm(dim=-1, keepdim=True), acts


@wrong(circuits.fast_latent_gradients, "the first position's latents are left out")
def fast_latent_gradients(tokens, sae_from, sae_to, model, chunk_size=32):
    gradients, acts, found = circuits.fast_latent_gradients(tokens, sae_from, sae_to, model, chunk_size)
    gradients[acts.indices[:, 1] == 0] = 0
    return gradients, acts, found
