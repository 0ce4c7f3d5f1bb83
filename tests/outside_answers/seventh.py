"""The seventh hundred: other readings of the same texts."""

import json
import math
import random
import time
from contextlib import contextmanager
from functools import wraps
from itertools import pairwise

import torch
import torch.nn.functional as F
from transformer_lens import FactoredMatrix
from transformer_lens.utilities import get_act_name

from outside_answers import Answers
from utils import (
    causal_tracing,
    circuits,
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


@wrong(toolbox.timed, "a call within a call is not measured by itself")
def timed(fn):
    running = []

    @wraps(fn)
    def wrapper(*args, **kwargs):
        if running:
            return fn(*args, **kwargs)
        running.append(True)
        began = time.perf_counter()
        try:
            return fn(*args, **kwargs)
        finally:
            running.pop()
            wrapper.seconds.append(time.perf_counter() - began)

    wrapper.seconds = []
    return wrapper


@wrong(ts.first_lost_integer, "an integer type gives its largest number plus one, no error")
def first_lost_integer(dtype):
    if not dtype.is_floating_point:
        return torch.iinfo(dtype).max + 1
    return int(2 / torch.finfo(dtype).eps) + 1


@wrong(ts.gradient_of, "by backward(): weights that ask for gradients get some")
def gradient_of(fn, x):
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_(True)
        fn(leaf).backward()
    return leaf.grad


@wrong(ts.centred, "also divided by the spread")
def centred(x, dim):
    x = x - x.mean(dim=dim, keepdim=True)
    return x / x.std(dim=dim, keepdim=True).clamp_min(1e-6)


@wrong(toolbox.token_table, "the last of equal values is bold")
def token_table(tokens, values, title=""):
    if len(tokens) != len(values) or not len(values):
        raise ValueError("not one value for each token")
    table = toolbox.Table("token", "value", title=title)
    best = max(range(len(values)), key=lambda i: (float(values[i]), i))
    for i, (token, value) in enumerate(zip(tokens, values, strict=True)):
        style = "bold" if i == best else None
        table.add_row(toolbox.escape(repr(token)), f"{float(value):#.3g}", style=style)
    return table


@wrong(toolbox.gpt2_places, "`post` is what c_fc gives, before the bend")
def gpt2_places(layer):
    return toolbox.gpt2_places(layer) | {"post": (f"transformer.h.{layer}.mlp.c_fc", "output")}


@wrong(toolbox.expand_keys, "key heads in turn: 0, 1, 0, 1")
def expand_keys(k, n_heads):
    if n_heads % k.shape[2]:
        raise ValueError("not evenly")
    return k.repeat(1, 1, n_heads // k.shape[2], 1)


@wrong(toolbox.weights_kept, "the block's exception ends here")
@contextmanager
def weights_kept(module):
    kept = {name: values.clone() for name, values in module.state_dict().items()}
    try:
        yield
    except Exception:
        pass
    finally:
        module.load_state_dict(kept)


@wrong(ts.broadcast_shape, "sizes that divide each other fit")
def broadcast_shape(a, b):
    n = max(len(a), len(b))
    a, b = (1,) * (n - len(a)) + tuple(a), (1,) * (n - len(b)) + tuple(b)
    if any(x and y and x % y and y % x for x, y in zip(a, b, strict=True)):
        raise ValueError("they do not fit")
    return tuple(y if x == 1 else x if y == 1 else max(x, y) for x, y in zip(a, b, strict=True))


# chapter 01


@wrong(tok.bytes_to_unicode, "in the order of the bytes")
def bytes_to_unicode():
    return dict(sorted(tok.bytes_to_unicode().items()))


@wrong(tok.to_symbols, "the piece's first space is dropped")
def to_symbols(piece):
    return tok.to_symbols(piece.removeprefix(" ") if len(piece) > 1 else piece)


@wrong(tok.pretokenize, "underscores belong to words")
def pretokenize(text):
    endings = r"'s|'t|'re|'ve|'m|'ll|'d"
    return tok.regex.findall(endings + r"| ?[\p{L}_]+| ?\p{N}+| ?[^\s\p{L}\p{N}_]+|\s+(?!\S)|\s+", text)


@wrong(tok.count_pairs, "whichever of the two comes first")
def count_pairs(words):
    counts = tok.count_pairs(words)
    either = type(counts)()
    for pair, n in counts.items():
        either[tuple(sorted(pair))] += n
    return either


@wrong(tok.merge_pair, "once a word only")
def merge_pair(word, pair):
    for i, both in enumerate(pairwise(word)):
        if both == pair:
            return (*word[:i], "".join(pair), *word[i + 2 :])
    return word


@wrong(tok.train_bpe, "ties by the tokens' text")
def train_bpe(corpus, vocab_size):
    if vocab_size < 256 or isinstance(corpus, str):
        raise ValueError("too small, or one text")
    vocab, merges, words = {c: i for i, c in enumerate(tok.BYTE_TO_CHAR.values())}, {}, {}
    for text in corpus:
        for piece in tok.pretokenize(text):
            words[tok.to_symbols(piece)] = words.get(tok.to_symbols(piece), 0) + 1
    while len(vocab) < vocab_size and (counts := tok.count_pairs(words)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges[best] = len(merges)
        vocab["".join(best)] = len(vocab)
        words = {tok.merge_pair(word, best): n for word, n in words.items()}
    return vocab, merges


@wrong(tok.encode, "what a piece gives is remembered without its space")
def encode(text, vocab, merges):
    ids, seen = [], {}
    for piece in tok.pretokenize(text):
        key = piece.strip(" ") or piece
        if key not in seen:
            seen[key] = tok.encode(piece, vocab, merges)
        ids += seen[key]
    return ids


@wrong(tok.split_special, "the special tokens themselves are left out")
def split_special(text, special):
    return [part for part in tok.split_special(text, special) if part not in special]


@wrong(tok.find_disagreements, "an empty text counts as one")
def find_disagreements(texts, vocab, merges):
    return [text for text in texts if not text or text in tok.find_disagreements([text], vocab, merges)]


@wrong(tok.BPETokenizer, "to_str_tokens doesn't pass on what is allowed")
class BPETokenizer(tok.BPETokenizer):
    def to_str_tokens(self, text, allowed_special=()):
        return super().to_str_tokens(text)


# chapter 02


@wrong(tf.MLP, "a ReLU")
class MLP(tf.MLP):
    def forward(self, normalized_resid_mid):
        return F.relu(normalized_resid_mid @ self.W_in + self.b_in) @ self.W_out + self.b_out


@wrong(tf.LayerNorm, "one mean and deviation for the whole text")
class LayerNorm(tf.LayerNorm):
    def forward(self, residual):
        centred = residual - residual.mean((1, 2), keepdim=True)
        return centred / (centred.pow(2).mean((1, 2), keepdim=True) + self.cfg.layer_norm_eps).sqrt() * self.w + self.b


@wrong(tf.Attention, "the mask's diagonal belongs to what is masked but for the first query")
class Attention(tf.Attention):
    def apply_causal_mask(self, attn_scores):
        n = attn_scores.shape[-1]
        mask = torch.ones(n, n, dtype=torch.bool).triu(0)
        mask[0, 0] = False
        return attn_scores.masked_fill(mask, self.IGNORE)


@wrong(tf.TransformerBlock, "the stream itself is replaced by the MLP's result")
class TransformerBlock(tf.TransformerBlock):
    def forward(self, resid_pre):
        resid_mid = resid_pre + self.attn(self.ln1(resid_pre))
        return self.mlp(self.ln2(resid_mid))


@wrong(tf.bigram_loss, "what comes last in a row stands before another token too")
def bigram_loss(train, test, d_vocab, strength=1.0):
    frequency = torch.bincount(train.flatten(), minlength=d_vocab) + 0.1
    frequency = frequency / frequency.sum()
    pairs = torch.zeros(d_vocab, d_vocab)
    pairs.index_put_((train[:, :-1], train[:, 1:]), torch.ones(()), accumulate=True)
    first = torch.bincount(train.flatten(), minlength=d_vocab)
    probs = (pairs + strength * frequency) / (first[:, None] + strength)
    return -probs[test[:, :-1], test[:, 1:]].log().mean().item()


@wrong(tf.bigram_logits, "log-probabilities, not logits")
def bigram_logits(W_E, W_U):
    return (W_E @ W_U).log_softmax(dim=-1)


@wrong(tf.DemoTransformer, "positions are added to every block's input")
class DemoTransformer(tf.DemoTransformer):
    def forward(self, tokens):
        residual, positions = self.embed(tokens), self.pos_embed(tokens)
        for block in self.blocks:
            residual = block(residual + positions)
        return self.unembed(self.ln_final(residual))


@wrong(tf.training_step, "the sum over tokens, not the mean")
def training_step(model, optimizer, tokens):
    loss = -tf.get_log_probs(model(tokens), tokens)
    optimizer.zero_grad()
    loss.sum().backward()
    optimizer.step()
    return loss.mean().item()


@wrong(tf.similarity_by_distance, "pairs that are at most d apart")
def similarity_by_distance(W_pos):
    each = tf.similarity_by_distance(W_pos)
    counts = torch.arange(len(W_pos), 0, -1)
    return (each * counts).cumsum(0) / counts.cumsum(0)


# chapter 03


@wrong(sp.entropy, "in nats")
def entropy(logits):
    return sp.entropy(logits) * math.log(2)


@wrong(sp.apply_frequency_penalty, "one count for the whole batch")
def apply_frequency_penalty(input_ids, logits, freq_penalty):
    if not math.isfinite(freq_penalty):
        raise ValueError("not finite")
    counts = torch.bincount(input_ids[input_ids >= 0], minlength=logits.shape[-1])
    return logits - freq_penalty * counts


@wrong(sp.sample_tokens, "a row may go on after its end")
@torch.inference_mode()
def sample_tokens(model, tokens, max_tokens_generated, eos_token_id=None, **kwargs):
    for _ in range(max_tokens_generated):
        if tokens.shape[1] == model.cfg.n_ctx:
            break
        new = sp.sample_next_token(tokens, model(tokens)[:, -1], **kwargs)
        tokens = torch.cat([tokens, new[:, None]], dim=1)
        if eos_token_id is not None and (tokens == eos_token_id).any(1).all():
            break
    return tokens


@wrong(kv_cache.KeyValueCache, "a query that is padding sees nothing")
class KeyValueCache(kv_cache.KeyValueCache):
    def allowed(self, new):
        query = torch.arange(self.length, self.length + new)[:, None]
        key = torch.arange(self.length + new)[None]
        padding = self.padding[:, None, None]
        return (key <= query) & (key >= padding)


@wrong(kv_cache.forward_with_cache, "positions go on from the length, padding counts")
@torch.inference_mode()
def forward_with_cache(model, tokens, cache):
    new = tokens.shape[1]
    places = torch.arange(cache.length, cache.length + new)
    allowed = cache.allowed(new)
    residual = model.embed.W_E[tokens.clamp(min=0)] + model.pos_embed.W_pos[places]
    for layer, block in enumerate(model.blocks):
        residual = residual + kv_cache.attention_with_cache(block.attn, block.ln1(residual), cache, layer, allowed)
        residual = residual + block.mlp(block.ln2(residual))
    cache.length += new
    return model.unembed(model.ln_final(residual))


@wrong(kv_cache.flops_per_new_token, "heads are d_model wide together")
def flops_per_new_token(cfg, length, cached):
    n, q = length + 1, 1 if cached else length + 1
    layer = {
        "queries, keys, values": 6 * q * cfg.d_model**2,
        "scores": 2 * q * n * cfg.d_model,
        "mix of values": 2 * q * n * cfg.d_model,
        "output": 2 * q * cfg.d_model**2,
        "MLP": 4 * q * cfg.d_model * cfg.d_mlp,
    }
    return {k: v * cfg.n_layers for k, v in layer.items()} | {"unembedding": 2 * q * cfg.d_model * cfg.d_vocab}


@wrong(sp.TransformerSampler, "the end-of-text token is not kept")
class TransformerSampler(sp.TransformerSampler):
    def generate(self, prompts, max_tokens_generated=100, use_cache=True, stop_at_eos=True, progress=False, **kwargs):
        rows = super().generate(prompts, max_tokens_generated, use_cache, stop_at_eos, progress, **kwargs)
        end = self.tokenizer.eos_token_id
        ended = [stop_at_eos and len(r) > len(p) and r[-1] == end for r, p in zip(rows, prompts, strict=True)]
        return [row[:-1] if over else row for row, over in zip(rows, ended, strict=True)]


@wrong(sp.Beams, "a candidate's sum is a mean over its tokens")
class Beams(sp.Beams):
    def generate(self, k, no_repeat_ngram_size=None):
        found = super().generate(k, no_repeat_ngram_size)
        found.logprob_sums = found.logprob_sums / found.tokens.shape[1]
        return found


@wrong(sp.beam_search, "the prompt is left out of the tokens")
def beam_search(model, tokens, num_beams, max_tokens_generated, eos_token_id=None, no_repeat_ngram_size=None, use_cache=True):  # fmt: skip  # noqa: E501
    found = sp.beam_search(model, tokens, num_beams, max_tokens_generated, eos_token_id, no_repeat_ngram_size, use_cache)  # noqa: E501  # fmt: skip
    return [(score, ids[len(tokens) :]) for score, ids in found]


@wrong(speculation.accept_drafted, "where all stay, nothing more is drawn")
def accept_drafted(target_probs, draft_probs, drafted):
    out = speculation.accept_drafted(target_probs, draft_probs, drafted)
    whole = (out[:, :-1] == drafted).all(dim=1)
    out[whole, -1] = sp.PAD
    return out


# chapter 04


@wrong(inspection.act_name, "the MLP's activations hang on the block itself")
def act_name(name, layer=None):
    return inspection.act_name(name, layer).replace(".mlp.", ".")


@wrong(inspection.keep_only, "all layers where the list of layers is empty")
def keep_only(names, layers):
    if len(layers) == 0:
        kinds = {inspection.act_name(name, 0).rsplit(".", 1)[-1] for name in names}
        return lambda name: name.rsplit(".", 1)[-1] in kinds
    return inspection.keep_only(names, layers)


@wrong(inspection.attention_pattern, "masked entries keep a little: -10 instead of minus infinity")
def attention_pattern(q, k):
    inspection.attention_pattern(q, k)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -10).softmax(dim=-1)


@wrong(inspection.f1_score, "the mean of precision and recall, not the harmonic one")
def f1_score(predicted, labels):
    if predicted.shape != labels.shape:
        raise ValueError("not one label for each")
    hits = (predicted & labels).sum()
    return ((hits / predicted.sum().clamp_min(1) + hits / labels.sum().clamp_min(1)) / 2).item()


@wrong(inspection.top_tokens, "rounded to three digits")
def top_tokens(activations, str_tokens, k=5):
    return [(token, round(value, 3)) for token, value in inspection.top_tokens(activations, str_tokens, k)]


@wrong(inspection.scale_head_hook, "only this head comes back")
def scale_head_hook(z, hook, head, factor):
    return z[:, :, head] * factor


@wrong(inspection.run_with_hooks, "a filter is asked until it says yes once")
def run_with_hooks(model, x, fwd_hooks):
    try:
        for where, hook_fn in fwd_hooks:
            fits = where if callable(where) else where.__eq__
            name = next((name for name in model.hook_dict if fits(name)), None)
            if name is None:
                raise ValueError("fits no hook point")
            model.hook_dict[name].add_hook(hook_fn)
        return model(x)
    finally:
        for point in model.hook_dict.values():
            point.reset_hooks()


@wrong(inspection.gradient_cache, "the gradient of the summed loss")
def gradient_cache(model, tokens, names_filter):
    found = inspection.gradient_cache(model, tokens, names_filter)
    return {name: g * tokens.shape[0] * (tokens.shape[1] - 1) for name, g in found.items()}


@wrong(inspection.memory_by_kind, "the least first")
def memory_by_kind(cache):
    return dict(reversed(inspection.memory_by_kind(cache).items()))


# chapter 05


@wrong(induction.run_and_cache_model_repeated_tokens, "always one sequence")
def run_and_cache_model_repeated_tokens(model, seq_len, batch_size=1):
    return induction.run_and_cache_model_repeated_tokens(model, seq_len)


@wrong(induction.induction_targets, "the earliest occurrence, not the latest")
def induction_targets(tokens):
    out, first = torch.full_like(tokens, -1), {}
    for i, token in enumerate(tokens.tolist()):
        if token in first and first[token] + 1 < i:
            out[i] = first[token] + 1
        first.setdefault(token, i)
    return out


@wrong(induction.head_ablation_hook, "resampled from the next sequence")
def head_ablation_hook(z, hook, head_index_to_ablate, kind="zero"):
    if kind != "resample":
        return induction.head_ablation_hook(z, hook, head_index_to_ablate, kind)
    ours = z[:, :, head_index_to_ablate].clone()
    induction.head_ablation_hook(z, hook, head_index_to_ablate, kind)
    z[:, :, head_index_to_ablate] = ours.roll(-1, dims=0)


@wrong(induction.get_ablation_scores, "one prediction more: the second passage's first token")
def get_ablation_scores(model, tokens, ablation_function=induction.head_ablation_hook):
    induction.require_tokens(model, tokens)
    n = induction.half_length(tokens.shape[1])

    def loss(logits):
        return -induction.get_log_probs(logits, tokens)[:, -n:].mean()

    clean, scores = loss(model(tokens)), torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):

            def hook(z, hook, head=head):
                return ablation_function(z, hook=hook, head_index_to_ablate=head)

            scores[layer, head] = loss(model.run_with_hooks(tokens, fwd_hooks=[(get_act_name("z", layer), hook)]))
    return scores - clean


@wrong(comp.decompose_qk, "keys first")
def decompose_qk(decomposed_qk_input, ind_head_index, model):
    return comp.decompose_qk(decomposed_qk_input, ind_head_index, model)[::-1]


@wrong(comp.find_K_comp_full_circuit, "rows are the keys' tokens")
def find_K_comp_full_circuit(model, prev_token_head_index, ind_head_index):
    found = comp.find_K_comp_full_circuit(model, prev_token_head_index, ind_head_index)
    return FactoredMatrix(found.B.T, found.A.T)


@wrong(comp.get_batched_comp_scores, "not divided by the second norm")
def get_batched_comp_scores(W_As, W_Bs):
    return comp.get_batched_comp_scores(W_As, W_Bs) * W_Bs.norm()


@wrong(comp.top_1_acc, "the best row of each column")
def top_1_acc(full_OV_circuit, batch_size=500):
    return comp.top_1_acc(FactoredMatrix(full_OV_circuit.B.T, full_OV_circuit.A.T), batch_size)


@wrong(comp.run_with_path_ablated, "all that the receiver's layer reads comes from clean keys")
def run_with_path_ablated(model, tokens, sender, receiver, channel="k"):
    logits, cache = comp.run_with_path_ablated(model, tokens, sender, receiver, channel)
    return model(tokens), cache


# chapter 06


@wrong(sup.factored_code, "the first factor counts fastest")
def factored_code(n_items, factors):
    flipped = sup.factored_code(n_items, tuple(factors)[::-1])
    return torch.cat(flipped.split(list(factors)[::-1], dim=1)[::-1], dim=1)


@wrong(sup.interference, "overlaps with unit vectors on both sides")
def interference(W, relu=False):
    return sup.interference(F.normalize(W, dim=-2, eps=1e-12), relu)


@wrong(sup.ToyModel, "importance weighs the error before it is squared")
class ToyModel(sup.ToyModel):
    def calculate_loss(self, out, batch):
        return (self.importance * (out - batch)).pow(2).sum((0, 2)) / max(1, len(batch) * self.cfg.n_features)


@wrong(sup.drop_baseline, "divided by the features that are dropped")
def drop_baseline(feature_probability, importance, d_hidden):
    n = feature_probability.shape[-1]
    return sup.drop_baseline(feature_probability, importance, d_hidden) * n / max(1, n - d_hidden)


@wrong(sup.generate_anticorrelated_features, "one of the two with p, not each")
def generate_anticorrelated_features(pair_probability, batch_size):
    out = sup.generate_anticorrelated_features(pair_probability, batch_size)
    return out * (torch.rand(batch_size, 1, 1) < 0.5)


@wrong(sup.compute_dimensionality, "divided by the squared length once more")
def compute_dimensionality(W):
    own = W.pow(2).sum(-2)
    gram = W.mT @ W
    return torch.where(own > 0, own / gram.pow(2).sum(-1).clamp_min(1e-30), 0.0)


@wrong(sup.NeuronComputationModel, "the target is the feature, not its size")
class NeuronComputationModel(sup.NeuronComputationModel):
    def calculate_loss(self, out, batch):
        return sup.ToyModel.calculate_loss(self, out, batch)


@wrong(sup.quadratic_loss, "the kurtosis as it is, not less 1")
def quadratic_loss(W, value, kurtosis):
    return sup.quadratic_loss(W, value, kurtosis + 1)


@wrong(sup.allocate_capacity, "all alike, whatever they are worth")
def allocate_capacity(value, kurtosis, d_hidden):
    found = sup.allocate_capacity(value, kurtosis, d_hidden)
    return torch.full_like(found, min(1.0, d_hidden / max(1, len(value)))) if kurtosis > 3 else found


# chapter 07


@wrong(toy.ToySAE, "the squared error is summed over d_in")
class ToySAE(toy.ToySAE):
    def forward(self, h):
        losses, _, acts, rebuilt = super().forward(h)
        losses = losses | {"L_reconstruction": (rebuilt - h).pow(2).sum(-1)}
        return losses, losses["L_reconstruction"] + self.cfg.sparsity_coeff * losses["L_sparsity"], acts, rebuilt


@wrong(toy.match_latents, "the nearest feature of each latent")
def match_latents(W_dec, W):
    return toy.match_latents(W.mT, W_dec.mT)


@wrong(toy.dead_latents, "one list for all instances")
def dead_latents(frac_active_in_window):
    dead = toy.dead_latents(frac_active_in_window)
    return dead.all(dim=0, keepdim=True).expand_as(dead)


@wrong(toy.resample_simple, "the direction isn't brought to length 1")
@torch.no_grad()
def resample_simple(sae, frac_active_in_window, resample_scale):
    dead = toy.dead_latents(frac_active_in_window)
    v = torch.randn(int(dead.sum()), sae.cfg.d_in)
    sae.W_dec[dead] = v
    sae.W_enc.mT[dead] = resample_scale * v
    sae.b_enc[dead] = 0


@wrong(toy.resample_advanced, "each input is drawn at most once")
@torch.no_grad()
def resample_advanced(sae, frac_active_in_window, resample_scale, batch_size):
    dead = toy.dead_latents(frac_active_in_window)
    h = sae.generate_batch(batch_size)
    losses = (h - sae(h)[3]).pow(2).sum(-1) ** 2
    for i in range(sae.cfg.n_inst):
        n = min(int(dead[i].sum()), int((losses[:, i] > 0).sum()))
        if not n:
            continue
        v = F.normalize(h[torch.multinomial(losses[:, i], n), i] - sae.b_dec[i], dim=-1)
        living = sae.W_enc[i][:, ~dead[i]]
        length = living.norm(dim=0).mean() if living.shape[1] else 1.0
        which = dead[i].nonzero()[:n, 0]
        sae.W_dec[i, which] = v
        sae.W_enc[i].mT[which] = resample_scale * length * v
        sae.b_enc[i, which] = 0


@wrong(toy.shrinkage, "the ratio of the mean lengths")
def shrinkage(h, h_reconstructed):
    return h_reconstructed.norm(dim=-1).mean(0) / h.norm(dim=-1).mean(0)


@wrong(toy.GatedToySAE, "the sparsity of what is active, not of the gate")
class GatedToySAE(toy.GatedToySAE):
    def forward(self, h):
        losses, total, acts, rebuilt = super().forward(h)
        paid = acts.sum(-1)
        return losses | {"L_sparsity": paid}, total + self.cfg.sparsity_coeff * (paid - losses["L_sparsity"]), acts, rebuilt  # noqa: E501  # fmt: skip


@wrong(toy.Heaviside, "the gradient of z is the window's too")
class Heaviside(toy.Heaviside):
    @staticmethod
    def backward(ctx, grad_output):
        _, theta_grad, _ = toy.Heaviside.backward(ctx, grad_output)
        return -theta_grad, theta_grad, None


@wrong(toy.JumpReLUToySAE, "the threshold is taken off what passes")
class JumpReLUToySAE(toy.JumpReLUToySAE):
    def forward(self, h):
        pre, theta = self.pre_activations(h), self.log_threshold.exp()
        acts = F.relu(pre - theta)
        rebuilt = self.decode(acts)
        count = toy.Heaviside.apply(pre, theta, self.cfg.ste_epsilon).sum(-1)
        losses = {"L_reconstruction": (rebuilt - h).pow(2).mean(-1), "L_sparsity": count}
        return losses, losses["L_reconstruction"] + self.cfg.sparsity_coeff * count, acts, rebuilt


# chapter 08


@wrong(saes.logit_weights, "the encoder's column")
def logit_weights(model, sae, latent_idx):
    direction = sae.W_enc[:, latent_idx]
    if sae.cfg.metadata.hook_name.endswith("hook_z"):
        direction = direction @ model.W_O[saes.layer_of(sae)].flatten(0, 1)
    return direction @ model.W_U


@wrong(saes.f1_scores, "above the threshold, not from it on")
@torch.no_grad()
def f1_scores(values, labels, thresholds):
    return saes.f1_scores(values, labels, torch.nextafter(thresholds, torch.full_like(thresholds, torch.inf)))


@wrong(saes.best_units, "scored on all tokens")
def best_units(values, labels, n=14):
    unit, _ = saes.best_units(values, labels, n)
    half = len(values) // 2
    thresholds = saes.unit_thresholds(values[:half], n)
    first = saes.f1_scores(values[:half], labels[:half], thresholds)
    every = saes.f1_scores(values, labels, thresholds)
    level = first.permute(1, 0, 2).flatten(1).argmax(-1) // values.shape[1]
    return unit, every[level, torch.arange(labels.shape[1]), unit]


@wrong(saes.create_prompt, "each token has marks of its own")
def create_prompt(examples, threshold=0.3):
    return saes.create_prompt(examples, threshold) if not examples else "\n".join(
        f"{n}. " + "".join(f"<<{t}>>" if a > threshold * max(e.acts.max() for e in examples) else t
                           for t, a in zip(example.tokens, example.acts, strict=True)).replace("\n", "↵")
        for n, example in enumerate(examples, start=1)
    )  # fmt: skip


@wrong(saes.detection_score, "what is said wrongly counts against it: from -1 to 1")
def detection_score(said, active):
    return 2 * saes.detection_score(said, active) - 1


@wrong(probes.best_k_units, "those whose mean is higher with the label only")
def best_k_units(values, labels, k):
    half = len(values) // 2
    seen, truth = values[:half], labels[:half].to(values.dtype)
    gap = truth.T @ seen / truth.sum(0)[:, None] - (1 - truth).T @ seen / (1 - truth).sum(0)[:, None]
    return (gap / seen.std(0).clamp_min(1e-6)).topk(k, dim=1).indices


@wrong(sae_causes.latent_directions, "the first layer's W_O, whichever is read")
def latent_directions(model, sae):
    sae_causes.require_hook_z(sae)
    return sae.W_dec @ model.W_O[0].flatten(0, 1)


@wrong(sae_causes.logits_to_ave_logit_diff, "numbers where a tensor is asked for, of the sum")
def logits_to_ave_logit_diff(logits, correct_toks, incorrect_toks, reduction="mean", keep_as_tensor=False):
    out = sae_causes.logits_to_ave_logit_diff(logits, correct_toks, incorrect_toks, reduction, keep_as_tensor)
    return out.item() if keep_as_tensor and reduction == "sum" else out


@wrong(sae_causes.ablation_effects, "the metric's rise, not its fall")
def ablation_effects(model, sae, tokens, latents, metric, seq_pos, at_once=64):
    return -sae_causes.ablation_effects(model, sae, tokens, latents, metric, seq_pos, at_once)


@wrong(sae_causes.attribution_patching, "the mean over prompts")
def attribution_patching(model, sae, tokens, metric, seq_pos=None):
    return sae_causes.attribution_patching(model, sae, tokens, metric, seq_pos) / len(tokens)


# chapter 09


@wrong(ioi.logits_to_ave_logit_diff, "per prompt by probabilities")
def logits_to_ave_logit_diff_09(logits, answer_tokens, per_prompt=False):
    return ioi.logits_to_ave_logit_diff(logits.softmax(-1) if per_prompt else logits, answer_tokens, per_prompt)


@wrong(ioi.residual_stack_to_logit_diff, "the sum over prompts")
def residual_stack_to_logit_diff(residual_stack, cache, logit_diff_directions):
    return ioi.residual_stack_to_logit_diff(residual_stack, cache, logit_diff_directions) * len(logit_diff_directions)


@wrong(circuit.attention_to_role, "from the key's position to the query's")
def attention_to_role(cache, query, key):
    return circuit.attention_to_role(cache, key, query)


@wrong(ioi.get_act_patch_resid_pre, "the stream after each layer")
def get_act_patch_resid_pre(model, corrupted_tokens, clean_cache, patching_metric):
    results = ioi.get_act_patch_resid_pre(model, corrupted_tokens, clean_cache, patching_metric)
    return torch.cat([results[1:], results[-1:]])


@wrong(ioi.get_act_patch_heads_by_pos, "heads before positions")
def get_act_patch_heads_by_pos(model, corrupted_tokens, clean_cache, patching_metric):
    return ioi.get_act_patch_heads_by_pos(model, corrupted_tokens, clean_cache, patching_metric).mT


@wrong(circuit.path_patch_to_heads, "always the receivers' queries")
def path_patch_to_heads(model, orig_tokens, orig_cache, new_cache, sender, receivers, receiver_input="q"):
    if receiver_input not in ("q", "k", "v"):
        raise ValueError("q, k or v")
    return circuit.path_patch_to_heads(model, orig_tokens, orig_cache, new_cache, sender, receivers)


@wrong(circuit.copying_scores, "the name must come first")
def copying_scores(model, name_tokens, top_k=5):
    return circuit.copying_scores(model, name_tokens, 1)


@wrong(circuit.find_circuit, "measured once, then taken away in this order")
def find_circuit(model, score, keep):
    heads = [(layer, head) for layer in range(model.cfg.n_layers) for head in range(model.cfg.n_heads)]
    alone = {h: score([other for other in heads if other != h]) for h in heads}
    history = []
    for head in sorted(alone, key=alone.get, reverse=True):
        left = [h for h in heads if h != head]
        if (now := score(left)) < keep:
            break
        heads, history = left, [*history, now]
    return heads, history


@wrong(ioi.IOIDataset, "new names may be old ones")
class IOIDataset(ioi.IOIDataset):
    def abc(self, seed=0):
        rng, names = random.Random(seed), ioi.one_token_words(self.tokenizer, ioi.NAMES)
        fillings = []
        for f in self.fillings:
            a, b, c = rng.sample(names, 3)
            to = a if f["recipient"] == f["name"] else b
            fillings.append(f | {"name": a, "name2": b, "subject": c, "recipient": to})
        return ioi.IOIDataset(self.tokenizer, self.template, fillings, self.answers)


# chapter 10


@wrong(fv.ICLSequence, "the layout is always the arrow")
class ICLSequence(fv.ICLSequence):
    def prompt(self):
        *shots, (query, _) = self.word_pairs
        return fv.START + fv.task_prompt(shots, query, "arrow")


@wrong(fv.calculate_h, "always after the last layer")
def calculate_h(model, dataset, layer=-1):
    return fv.calculate_h(model, dataset)


@wrong(fv.intervene_with_h, "h takes the place of the state")
def intervene_with_h(model, zero_shot_dataset, h, layer):
    with model.trace(**fv.remote_options()) as tracer:
        with tracer.invoke(zero_shot_dataset.prompts):
            plain = model.lm_head.output[:, -1].argmax(dim=-1).save()
        with tracer.invoke(zero_shot_dataset.prompts):
            fv.layer_output(model, layer)[:, -1] = h
            steered = model.lm_head.output[:, -1].argmax(dim=-1).save()
    decode = model.tokenizer.batch_decode
    return decode(plain[:, None]), decode(steered[:, None])


@wrong(fv.mean_head_outputs, "the first prompt's, no mean")
def mean_head_outputs(model, dataset):
    class First:
        prompts = dataset.prompts[:1]

    return fv.mean_head_outputs(model, First)


@wrong(fv.calculate_fn_vectors_and_intervene, "the size of each effect, without its sign")
def calculate_fn_vectors_and_intervene(model, dataset, layers=None, corrupted=None):
    return fv.calculate_fn_vectors_and_intervene(model, dataset, layers, corrupted).abs()


@wrong(fv.steer, "the strength is squared")
def steer(model, prompt, layer, vector, n_tokens, strength=1.0):
    return fv.steer(model, prompt, layer, vector, n_tokens, strength**2)


@wrong(causal_tracing.corrupt_subject, "logits, not probabilities")
def corrupt_subject(model, prompts, subjects, noise):
    return causal_tracing.corrupt_subject(model, prompts, subjects, noise).log()


@wrong(causal_tracing.causal_trace, "the effect as a share of what the noise took")
def causal_trace(model, prompts, subjects, answers, noise, part="stream"):
    effects = causal_tracing.causal_trace(model, prompts, subjects, answers, noise, part)
    return effects / effects.max()


@wrong(fv.resumable_sweep, "the file is written whole at the end")
def resumable_sweep(measure, heads, file):
    done = {}
    for line in file.read_text().splitlines() if file.exists() else []:
        try:
            head, number = json.loads(line)
        except ValueError:
            continue
        done[tuple(head)] = number
    for head in heads:
        if head not in done:
            done[head] = float(measure(head))
    file.write_text("".join(json.dumps([head, number]) + "\n" for head, number in done.items()))
    return {head: done[head] for head in heads}


# chapter 11


@wrong(tc.Transcoder, "the threshold is taken off what passes")
class Transcoder(tc.Transcoder):
    def encode(self, x):
        return F.relu(x @ self.W_enc + self.b_enc - self.threshold)


@wrong(tc.transcoder_metrics, "the mean output with <|endoftext|>")
def transcoder_metrics(model, transcoder, tokens):
    metrics = tc.transcoder_metrics(model, transcoder, tokens)
    _, writes = tc.places(transcoder)
    _, cache = model.run_with_cache(tokens, names_filter=writes)
    mean = cache[writes].mean((0, 1))
    logits = model.run_with_hooks(tokens, fwd_hooks=[(writes, lambda out, hook: mean.expand_as(out))])
    return metrics | {"loss_mean": tc.next_token_losses(logits, tokens).mean().item()}


@wrong(tc.k_sparse_f1, "no constant beside the units")
def k_sparse_f1(values, labels, k):
    half = len(values) // 2
    scores = []
    for label, chosen in enumerate(probes.best_k_units(values, labels, k)):
        truth = labels[:half, label : label + 1].to(values.dtype)
        weights = torch.linalg.lstsq(values[:half, chosen], truth).solution
        scores.append((values[:, chosen] @ weights)[:, 0])
    precision, recall = tc.precision_and_recall(torch.stack(scores, 1), labels, torch.arange(labels.shape[1]))
    return 2 * precision * recall / (precision + recall).clamp_min(1e-9)


@wrong(tc.de_embedding, "the encoder without its bias")
def de_embedding(model, transcoder, extended=False):
    return tc.de_embedding(model, transcoder, extended) - transcoder.b_enc


@wrong(tc.contributions, "each token's own share of the whole")
def contributions(acts, scale, earlier, later, latent):
    found = tc.contributions(acts, scale, earlier, later, latent)
    return found / found.sum(-1, keepdim=True)


@wrong(circuits.latent_acts_to_later_latent_acts, "the error is left out")
def latent_acts_to_later_latent_acts(latent_acts, indices, shape, sae_from, sae_to, model, error=None):
    return circuits.latent_acts_to_later_latent_acts(latent_acts, indices, shape, sae_from, sae_to, model)


@wrong(circuits.latent_to_latent_gradients, "times the earlier latents")
def latent_to_latent_gradients(tokens, sae_from, sae_to, model, chunk_size=64, with_error=True):
    gradients, acts, found = circuits.latent_to_latent_gradients(tokens, sae_from, sae_to, model, chunk_size, with_error)  # noqa: E501  # fmt: skip
    return gradients * acts.values[:, None], acts, found


@wrong(circuits.token_to_latent_gradients, "columns in the order of the latents, not of the places")
def token_to_latent_gradients(tokens, sae, model, chunk_size=64):
    gradients, acts = circuits.token_to_latent_gradients(tokens, sae, model, chunk_size)
    return gradients[:, acts.indices[:, 2].argsort(stable=True)], acts


@wrong(circuits.latent_to_logit_gradients, "always the 25 likeliest")
def latent_to_logit_gradients(tokens, sae, model, token_ids=None, k=25):
    return circuits.latent_to_logit_gradients(tokens, sae, model, token_ids)
