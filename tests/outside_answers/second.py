"""The second hundred."""

import re
from collections import Counter

import einops
import torch
import torch.nn.functional as F
from transformer_lens import FactoredMatrix

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


@wrong(toolbox.repeated, "the function runs once more than asked")
def _(num_times):
    def decorator(fn):
        def wrapper(*args, **kwargs):
            return [fn(*args, **kwargs) for _ in range(num_times + 1)][:num_times]

        return wrapper

    return decorator


@wrong(toolbox.cached_on_disk, "the file's name holds the arguments' values, not the keywords' names")
def _(folder):
    right = toolbox.cached_on_disk(folder)

    def decorator(fn):
        def unnamed(*args):
            return fn(*args)

        unnamed.__name__ = fn.__name__
        kept = right(unnamed)
        return lambda *args, **kwargs: kept(*args, *kwargs.values())

    return decorator


@wrong(toolbox.standard_scores, "where all values are equal the scores are NaN")
def _(values):
    x = torch.tensor(list(values), dtype=torch.float64)
    return ((x - x.mean()) / x.std(correction=0)).tolist()


@wrong(toolbox.token_table, "of equal largest values the last one is bold")
def _(tokens, values, title=""):
    if len(tokens) != len(values) or not len(values):
        raise ValueError
    table = toolbox.Table("token", "value", title=title)
    best = max(range(len(values)), key=lambda i: (float(values[i]), i))
    for i, (token, value) in enumerate(zip(tokens, values, strict=True)):
        style = "bold" if i == best else None
        table.add_row(toolbox.escape(repr(token)), f"{float(value):#.3g}", style=style)
    return table


@wrong(ts.first_lost_integer, "the largest integer that is still there")
def _(dtype):
    return int(2 / torch.finfo(dtype).eps) - 1


@wrong(ts.gradient_of, "computed with backward, which leaves gradients in the weights")
def _(fn, x):
    with torch.enable_grad():
        leaf = x.detach().clone().requires_grad_(True)
        fn(leaf).backward()
        return leaf.grad


@wrong(ts.Centring, "the mean is taken from each batch anew")
class _(ts.Centring):
    def forward(self, x):
        return self.gain * (x - x.mean(0))


@wrong(ts.einsum_by_loops, "sizes of one index are not compared")
def _(pattern, *tensors):
    left, right = pattern.split("->")
    names = [part.split() for part in left.split(",")]
    if [len(part) for part in names] != [t.ndim for t in tensors]:
        raise ValueError
    sizes = {}
    for part, t in zip(names, tensors, strict=True):
        for name, size in zip(part, t.shape, strict=True):
            sizes[name] = min(size, sizes.get(name, size))
    cut = [t[tuple(slice(sizes[n]) for n in part)] for part, t in zip(names, tensors, strict=True)]
    if set(right.split()) - set(sizes):
        raise ValueError
    return einops.einsum(*cut, pattern)


@wrong(ts.bytes_held, "tensors that share memory are counted twice")
def _(tensors):
    return sum(t.untyped_storage().nbytes() for t in tensors)


@wrong(ts.mean_residual, "the mean over positions as well")
def _(model, rows, layer):
    if not 0 <= layer < model.cfg.n_layers:
        raise ValueError
    name = f"blocks.{layer}.hook_resid_post"
    parts = [model.run_with_cache(row[None], names_filter=name, return_type=None)[1][name] for row in rows]
    return torch.cat(parts).mean((0, 1))


@wrong(toolbox.vocab_by_id, "sorted by the tokens' text")
def _(tokenizer):
    return sorted(tokenizer.get_vocab())


# ---------------------------------------------------------------- 01


@wrong(tok.bytes_to_unicode, "all bytes get a new character, those that print too")
def _():
    return {byte: chr(256 + byte) for byte in range(256)}


@wrong(tok.to_symbols, "lone surrogates raise instead of passing")
def _(piece):
    return tuple(tok.BYTE_TO_CHAR[byte] for byte in piece.encode("utf-8"))


@wrong(tok.pretokenize, "the space before a word stays a piece of its own")
def _(text):
    import regex

    return regex.findall(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}+|[^\s\p{L}\p{N}]+|\s+", text)


@wrong(tok.pretokenize, "contractions in capitals are cut off too")
def _(text):
    import regex

    return regex.findall(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", text)


@wrong(tok.count_pairs, "each word counts once")
def _(words):
    return Counter(pair for word in words for pair in zip(word, word[1:], strict=False))


@wrong(tok.merge_pair, "merges from the right")
def _(word, pair):
    merged, i = [], len(word)
    while i > 0:
        if i > 1 and word[i - 2 : i] == pair:
            merged.append(word[i - 2] + word[i - 1])
            i -= 2
        else:
            merged.append(word[i - 1])
            i -= 1
    return tuple(merged[::-1])


@wrong(tok.train_bpe, "one token too many")
def _(corpus, vocab_size):
    tok.train_bpe(corpus, vocab_size)
    return tok.train_bpe(corpus, vocab_size + 1)


@wrong(tok.encode, "of several pairs the leftmost that has a rank")
def _(text, vocab, merges):
    ids = []
    for piece in tok.pretokenize(text):
        word = tok.to_symbols(piece)
        while pairs := [p for p in zip(word, word[1:], strict=False) if p in merges]:
            word = tok.merge_pair(word, pairs[0])
        ids += [vocab[s] for s in word]
    return ids


@wrong(tok.decode, "an unknown id raises KeyError")
def _(ids, vocab):
    token_of = {i: token for token, i in vocab.items()}
    byte_of = {char: byte for byte, char in tok.BYTE_TO_CHAR.items()}
    return bytes(byte_of[c] for i in ids for c in token_of[i])


@wrong(tok.longest_match_encode, "matches across the pieces of the text")
def _(text, vocab):
    rest, ids = "".join(tok.to_symbols(text)), []
    while rest:
        n = next(n for n in range(len(rest), 0, -1) if rest[:n] in vocab)
        ids.append(vocab[rest[:n]])
        rest = rest[n:]
    return ids


@wrong(tok.BPETokenizer, "special tokens are decoded to nothing")
class _(tok.BPETokenizer):
    def decode(self, ids):
        return tok.BPETokenizer.decode(self, [i for i in ids if i not in self.special_tokens.values()])


# ---------------------------------------------------------------- 02


@wrong(tf.LayerNorm, "the variance with n - 1 below")
class _(tf.LayerNorm):
    def forward(self, residual):
        x = residual - residual.mean(-1, keepdim=True)
        return x / (residual.var(-1, keepdim=True) + self.cfg.layer_norm_eps).sqrt() * self.w + self.b


@wrong(tf.Attention, "softmax over the queries")
class _(tf.Attention):
    def forward(self, normalized_resid_pre):
        x = normalized_resid_pre
        q, k, v = (
            einops.einsum(x, W, "b p d, h d e -> b p h e") + b
            for W, b in ((self.W_Q, self.b_Q), (self.W_K, self.b_K), (self.W_V, self.b_V))
        )
        scores = einops.einsum(q, k, "b q h e, b k h e -> b h q k") / self.cfg.d_head**0.5
        pattern = self.apply_causal_mask(scores).softmax(-2)
        z = einops.einsum(pattern, v, "b h q k, b k h e -> b q h e")
        return einops.einsum(z, self.W_O, "b q h e, h e d -> b q d") + self.b_O


@wrong(tf.Attention, "the output's bias is added once a head")
class _(tf.Attention):
    def forward(self, normalized_resid_pre):
        return tf.Attention.forward(self, normalized_resid_pre) + (self.cfg.n_heads - 1) * self.b_O


@wrong(tf.TransformerBlock, "the MLP reads its input without LayerNorm")
class _(tf.TransformerBlock):
    def forward(self, resid_pre):
        resid_mid = resid_pre + self.attn(self.ln1(resid_pre))
        return resid_mid + self.mlp(resid_mid)


@wrong(tf.Unembed, "tied: the bias is left out")
class _(tf.Unembed):
    def forward(self, normalized_resid_final):
        return normalized_resid_final @ self.W_U


@wrong(tf.DemoTransformer, "no last LayerNorm")
class _(tf.DemoTransformer):
    def forward(self, tokens):
        x = self.embed(tokens) + self.pos_embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.unembed(x)


@wrong(tf.get_log_probs, "of the token at the same position")
def _(logits, tokens):
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[:, 1:, 0]


@wrong(tf.training_step, "gradients of the steps before add up")
def _(model, optimizer, tokens):
    loss = -tf.get_log_probs(model(tokens), tokens).mean()
    loss.backward()
    optimizer.step()
    return loss.item()


@wrong(tf.training_step, "returns the loss after the step")
def _(model, optimizer, tokens):
    tf.training_step(model, optimizer, tokens)
    with torch.no_grad():
        return -tf.get_log_probs(model(tokens), tokens).mean().item()


@wrong(tf.fold_layer_norm, "the weights of LayerNorm go into the biases as well")
def _(state):
    folded = tf.fold_layer_norm(state)
    return {k: v * state["ln_final.w"].mean() if k == "unembed.b_U" else v for k, v in folded.items()}


@wrong(tf.ShortformerAttention, "the values read the positions too")
class _(tf.ShortformerAttention):
    def forward(self, normalized_resid_pre, pos_embed):
        return tf.Attention.forward(self, normalized_resid_pre + pos_embed)


@wrong(tf.bigram_logits, "read the other way round")
def _(W_E, W_U):
    return (W_E @ W_U).T


# ---------------------------------------------------------------- 03


@wrong(sp.entropy, "NaN where a token is impossible")
def _(logits):
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1) / torch.log(torch.tensor(2.0))


@wrong(sp.apply_frequency_penalty, "a token that was there is punished once, however often it came")
def _(input_ids, logits, freq_penalty):
    seen = torch.zeros_like(logits)
    seen.scatter_(-1, input_ids.clamp(min=0), (input_ids != sp.PAD).to(logits.dtype))
    return logits - freq_penalty * seen


@wrong(sp.sample_basic, "one draw for all rows")
def _(logits):
    return torch.multinomial(logits.softmax(-1)[:1], 1)[0].expand(len(logits))


@wrong(sp.sample_top_k, "one token more than k stays")
def _(logits, k):
    if not isinstance(k, int) or not 1 <= k <= logits.shape[-1]:
        raise ValueError
    least = logits.topk(min(k + 1, logits.shape[-1]), -1).values[:, -1:]
    return sp.sample_basic(logits.masked_fill(logits < least, -torch.inf))


@wrong(sp.sample_next_token, "the temperature multiplies")
def _(input_ids, logits, temperature=1.0, top_k=None, top_p=None, frequency_penalty=0.0):
    sp.sample_next_token(input_ids, logits, temperature, top_k, top_p, frequency_penalty)
    again = 1 / temperature if temperature else 0
    return sp.sample_next_token(input_ids, logits, again, top_k, top_p, frequency_penalty)


@wrong(kv_cache.KeyValueCache, "positions of a padded text begin at the padding")
class _(kv_cache.KeyValueCache):
    def positions(self, new):
        return torch.arange(self.length, self.length + new).expand(len(self.padding), -1)


@wrong(kv_cache.attention_with_cache, "only the new keys are attended to")
def _(attn, normalized_resid_pre, cache, layer, allowed):
    x, into = normalized_resid_pre, "b n d, h d e -> b h n e"
    q = einops.einsum(x, attn.W_Q, into) + attn.b_Q[:, None]
    k = einops.einsum(x, attn.W_K, into) + attn.b_K[:, None]
    v = einops.einsum(x, attn.W_V, into) + attn.b_V[:, None]
    cache.append(layer, k, v)
    scores = q @ k.mT / attn.cfg.d_head**0.5
    pattern = scores.masked_fill(~allowed[:, None, :, -k.shape[2] :], attn.IGNORE).softmax(-1)
    return einops.einsum(pattern @ v, attn.W_O, "b h n e, h e d -> b n d") + attn.b_O


@wrong(kv_cache.flops_per_new_token, "the unembedding once a layer")
def _(cfg, length, cached):
    flops = kv_cache.flops_per_new_token(cfg, length, cached)
    return flops | {"unembedding": cfg.n_layers * flops["unembedding"]}


@wrong(sp.TransformerSampler, "all texts get as many new tokens as the longest, the others go on after their end")
class _(sp.TransformerSampler):
    def generate(self, prompts, max_tokens_generated=100, use_cache=True, stop_at_eos=True, progress=False, **kwargs):
        return sp.TransformerSampler.generate(self, prompts, max_tokens_generated, use_cache, False, **kwargs)


@wrong(sp.Beams, "an ended text may lie outside the best")
class _(sp.Beams):
    def filter(self, num_beams, eos_token_id=None):
        going_on, _ = sp.Beams.filter(self, num_beams, eos_token_id)
        ends = self.tokens[:, -1] == (sp.PAD if eos_token_id is None else eos_token_id)
        rows = zip(self.logprob_sums.tolist(), self.tokens.tolist(), ends.tolist(), strict=True)
        return going_on, [(s, t) for s, t, end in rows if end]


@wrong(sp.beam_search, "sums are divided by the length")
@torch.inference_mode()
def _(model, tokens, num_beams, max_tokens_generated, eos_token_id=None, no_repeat_ngram_size=None, use_cache=True):
    found = sp.beam_search(
        model, tokens, num_beams, max_tokens_generated, eos_token_id, no_repeat_ngram_size, use_cache
    )
    return sorted(((s / max(1, len(t) - len(tokens)), t) for s, t in found), reverse=True)


@wrong(sp.distinct_n, "the mean of the texts' shares")
def _(texts, n):
    if n < 1 or not any(len(text) >= n for text in texts):
        raise ValueError
    grams = [[tuple(text[i : i + n]) for i in range(len(text) - n + 1)] for text in texts if len(text) >= n]
    return sum(len(set(g)) / len(g) for g in grams) / len(grams)


# ---------------------------------------------------------------- 04


@wrong(inspection.stack_over_layers, "a list, not a tensor with the layers in front, is made of the last layer only")
def _(model, path):
    return inspection.stack_over_layers(model, path)[-1:].expand(model.cfg.n_layers, *[-1] * 3)


@wrong(inspection.act_name, "short names are not looked up")
def _(name, layer=None):
    if match := re.fullmatch(r"([a-z_]+)(\d+)", name):
        name, layer = match[1], int(match[2])
    return f"hook_{name}" if layer is None else f"blocks.{layer}.hook_{name}"


@wrong(inspection.memory_by_kind, "smallest first")
def _(cache):
    return dict(reversed(inspection.memory_by_kind(cache).items()))


@wrong(inspection.keep_only, "whatever ends in one of the names")
def _(names, layers):
    ends = tuple(f"hook_{name}" for name in names)
    return lambda name: name.endswith(ends)


@wrong(inspection.attention_pattern, "the mask comes after the softmax")
def _(q, k):
    if q.shape != k.shape:
        raise ValueError
    return (torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5).softmax(-1).tril()


@wrong(inspection.top_tokens, "each token once, with its largest activation")
def _(activations, str_tokens, k=5):
    if len(activations) != len(str_tokens):
        raise ValueError
    best = {}
    for token, value in zip(str_tokens, activations.tolist(), strict=True):
        best[token] = max(value, best.get(token, value))
    return sorted(best.items(), key=lambda pair: -pair[1])[:k]


@wrong(inspection.HookPoint, "a new hook takes the place of the old one")
class _(inspection.HookPoint):
    def add_hook(self, hook_fn):
        self.hook_fns[:] = [hook_fn]


@wrong(inspection.run_with_hooks, "a name that fits nothing is passed over")
def _(model, x, fwd_hooks):
    known = [(w, f) for w, f in fwd_hooks if any((w(n) if callable(w) else n == w) for n in model.hook_dict)]
    return inspection.run_with_hooks(model, x, known)


@wrong(inspection.bind_head, "the head stands first, where the activation belongs")
def _(hook_fn, head):
    return lambda *args, **kwargs: hook_fn(head, *args, **kwargs)


@wrong(inspection.gradient_cache, "of the sum of the loss over tokens")
def _(model, tokens, names_filter):
    found = inspection.gradient_cache(model, tokens, names_filter)
    return {name: g * (tokens.shape[1] - 1) * len(tokens) for name, g in found.items()}


# ---------------------------------------------------------------- 05


@wrong(induction.generate_repeated_tokens, "BOS stands before the second passage too")
def _(model, seq_len, batch_size=1):
    found = induction.generate_repeated_tokens(model, seq_len, batch_size)
    found[:, 1 + seq_len] = model.tokenizer.bos_token_id
    return found


@wrong(induction.run_and_cache_model_repeated_tokens, "the cache is of other tokens than those returned")
def _(model, seq_len, batch_size=1):
    tokens, logits, _ = induction.run_and_cache_model_repeated_tokens(model, seq_len, batch_size)
    return tokens, logits, induction.run_and_cache_model_repeated_tokens(model, seq_len, batch_size)[2]


@wrong(induction.get_log_probs, "probabilities, no logarithm")
def _(logits, tokens):
    return logits[:, :-1].softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0]


@wrong(induction.induction_score_hook, "adds to what stands in the row")
def _(pattern, hook, scores):
    seq_len = (pattern.shape[-1] - 1) // 2
    scores[hook.layer()] += pattern.diagonal(-(seq_len - 1), -2, -1)[..., 2:].mean((0, -1))


@wrong(induction.head_ablation_hook, "resampling draws any sequence, its own too")
def _(z, hook, head_index_to_ablate, kind="zero"):
    if kind != "resample" or len(z) < 2:
        return induction.head_ablation_hook(z, hook, head_index_to_ablate, kind)
    z[:, :, head_index_to_ablate] = z[torch.randint(0, len(z), (len(z),)), :, head_index_to_ablate]
    return z


@wrong(induction.get_ablation_scores, "the hook of layer 0 for all layers")
def _(model, tokens, ablation_function=induction.head_ablation_hook):
    scores = induction.get_ablation_scores(model, tokens, ablation_function)
    return scores[:1].expand_as(scores).clone()


@wrong(comp.top_1_acc, "counts a row where the largest by size is its own")
def _(full_OV_circuit, batch_size=500):
    table = full_OV_circuit.A @ full_OV_circuit.B
    return (table.abs().argmax(-1) == torch.arange(len(table))).float().mean().item()


@wrong(comp.pos_by_pos_pattern, "later keys are not masked")
def _(model, head):
    scores = (model.W_pos @ model.W_Q[head]) @ (model.W_pos @ model.W_K[head]).T
    return (scores / model.cfg.d_head**0.5).softmax(-1)


@wrong(comp.decompose_qk_input, "the positions come first")
def _(cache, layer=1):
    return comp.decompose_qk_input(cache, layer).roll(1, dims=0)


@wrong(comp.attn_score_stds, "masked keys count as well")
def _(decomposed_scores):
    return decomposed_scores[..., 1:, :].std(dim=-1, correction=0).mean(-1)


@wrong(comp.find_K_comp_full_circuit, "the previous-token head feeds the queries")
def _(model, prev_token_head_index, ind_head_index):
    if prev_token_head_index[0] >= ind_head_index[0]:
        raise ValueError
    W_OV = model.W_V[prev_token_head_index] @ model.W_O[prev_token_head_index]
    query = model.W_E @ W_OV @ model.W_Q[ind_head_index]
    return FactoredMatrix(query, (model.W_E @ model.W_K[ind_head_index]).T)


@wrong(comp.get_comp_score, "the spectral norm")
def _(W_A, W_B):
    if W_A.shape[1] != W_B.shape[0]:
        raise ValueError
    norm = torch.linalg.matrix_norm
    return (norm(W_A @ W_B, 2) / (norm(W_A, 2) * norm(W_B, 2))).item()


# ---------------------------------------------------------------- 06


@wrong(sup.factored_code, "the first factor changes fastest")
def _(n_items, factors):
    found = sup.factored_code(n_items, tuple(reversed(factors)))
    return torch.cat(found.split(list(reversed(factors)), 1)[::-1], 1)


@wrong(sup.interference, "along the raw column, not its direction")
def _(W, relu=False):
    overlap = W.mT @ W
    overlap = overlap.relu() if relu else overlap
    return overlap.masked_fill(torch.eye(W.shape[-1], dtype=torch.bool), 0).pow(2).sum(-1)


@wrong(sup.generate_uncorrelated_features, "a feature that is on is 1")
def _(feature_probability, batch_size):
    return (torch.rand(batch_size, *feature_probability.shape) < feature_probability).float()


@wrong(sup.ToyModel, "the loss is summed over the batch")
class _(sup.ToyModel):
    def calculate_loss(self, out, batch):
        return sup.ToyModel.calculate_loss(self, out, batch) * len(batch)


@wrong(sup.drop_baseline, "the constant is 0, not the mean")
def _(feature_probability, importance, d_hidden):
    cost = importance * feature_probability / 3
    return cost.sort(-1, descending=True).values[:, d_hidden:].sum(-1) / max(1, cost.shape[-1])


@wrong(sup.generate_anticorrelated_features, "half as often on as asked")
def _(pair_probability, batch_size):
    return sup.generate_anticorrelated_features(pair_probability / 2, batch_size) * (1 + 0 * pair_probability.max())


@wrong(sup.compute_dimensionality, "the length is not squared above")
def _(W):
    along = (F.normalize(W, dim=-2, eps=1e-12).mT @ W).pow(2).sum(-1)
    return torch.where(along > 0, W.norm(dim=-2) / along.clamp_min(1e-30), 0.0)


@wrong(sup.NeuronModel, "the neurons have no ReLU")
class _(sup.NeuronModel):
    def forward(self, features):
        return sup.ToyModel.forward(self, features)


@wrong(sup.NeuronComputationModel, "the signs are those of whole rows")
class _(sup.NeuronComputationModel):
    def generate_batch(self, batch_size):
        size = sup.ToyModel.generate_batch(self, batch_size)
        return size * (torch.randint(0, 2, (len(size), 1, 1)) * 2 - 1)


@wrong(sup.quadratic_loss, "the factor 2 is missing")
def _(W, value, kurtosis):
    gap = W.mT @ W - torch.diag_embed(value)
    own = gap.diagonal(dim1=-2, dim2=-1).pow(2).sum(-1)
    return (kurtosis - 1) * own + gap.pow(2).sum((-2, -1)) - own


@wrong(sup.allocate_capacity, "shares by value, whatever the kurtosis")
def _(value, kurtosis, d_hidden):
    if kurtosis < 1:
        raise ValueError
    return (value.abs() / value.abs().sum() * d_hidden).clamp(max=1)


@wrong(double_descent.generate_dataset, "each feature is scaled, not each point")
def _(n_points, n_features, feature_probability):
    points = double_descent.generate_dataset(n_points, n_features, feature_probability)
    return F.normalize(points, dim=0)


# ---------------------------------------------------------------- 07


@wrong(toy_saes.ToySAE, "the decoder's bias is not taken off before the encoder")
class _(toy_saes.ToySAE):
    def pre_activations(self, h):
        return einops.einsum(h, self.W_enc, "b i d, i d s -> b i s") + self.b_enc


@wrong(toy_saes.ToySAE, "the decoder's rows as they are, not of length 1")
class _(toy_saes.ToySAE):
    @property
    def W_dec_normalized(self):
        return self.W_dec


@wrong(toy_saes.match_latents, "a latent that points the other way counts as well")
def _(W_dec, W):
    cosine = (F.normalize(W.mT, dim=-1) @ F.normalize(W_dec, dim=-1).mT).abs()
    return cosine.max(-1).indices, cosine.max(-1).values


@wrong(toy_saes.dead_latents, "dead where it is nearly silent on average")
def _(frac_active_in_window):
    return frac_active_in_window.mean(0) < 0.01


@wrong(toy_saes.resample_simple, "one direction for all dead latents")
@torch.no_grad()
def _(sae, frac_active_in_window, resample_scale):
    dead = toy_saes.dead_latents(frac_active_in_window)
    v = F.normalize(torch.randn(1, sae.cfg.d_in), dim=-1).expand(int(dead.sum()), -1)
    sae.W_dec[dead] = v
    sae.W_enc.mT[dead] = resample_scale * v
    sae.b_enc[dead] = 0


@wrong(toy_saes.shrinkage, "the mean over inputs of their own ratios")
def _(h, h_reconstructed):
    return ((h_reconstructed * h).sum(-1) / h.pow(2).sum(-1)).mean(0)


@wrong(toy_saes.TopKToySAE, "a latent below 0 may be among the k")
class _(toy_saes.TopKToySAE):
    def forward(self, h):
        pre = self.pre_activations(h)
        top = pre.topk(self.cfg.k, dim=-1)
        acts = torch.zeros_like(pre).scatter(-1, top.indices, top.values)
        loss = (self.decode(acts) - h).pow(2).mean(-1)
        return {"L_reconstruction": loss}, loss, acts, self.decode(acts)


@wrong(toy_saes.Heaviside, "open at the threshold itself")
class _(toy_saes.Heaviside):
    @staticmethod
    def forward(ctx, z, theta, eps):
        ctx.save_for_backward(z, theta)
        ctx.eps = eps
        return (z >= theta).to(z.dtype)


@wrong(toy_saes.JumpReLU, "no gradient for the threshold")
class _(toy_saes.JumpReLU):
    @staticmethod
    def backward(ctx, grad_output):
        z, theta = ctx.saved_tensors
        return (z > theta) * grad_output, torch.zeros_like(theta), None


@wrong(toy_saes.JumpReLUToySAE, "the threshold is the parameter itself, not its exponential")
class _(toy_saes.JumpReLUToySAE):
    def forward(self, h):
        pre, theta = self.pre_activations(h), self.log_threshold
        acts = toy_saes.JumpReLU.apply(pre, theta, self.cfg.ste_epsilon)
        recon = self.decode(acts)
        terms = {
            "L_reconstruction": (recon - h).pow(2).mean(-1),
            "L_sparsity": toy_saes.Heaviside.apply(pre, theta, self.cfg.ste_epsilon).sum(-1),
        }
        return terms, terms["L_reconstruction"] + self.cfg.sparsity_coeff * terms["L_sparsity"], acts, recon


# ---------------------------------------------------------------- 08


@wrong(saes.get_sae_acts, "leaves the autoencoder attached")
@torch.no_grad()
def _(model, sae, tokens):
    acts = saes.get_sae_acts(model, sae, tokens)
    model.add_sae(sae)
    return acts


@wrong(saes.sae_metrics, "the first position, <|endoftext|>, counts as well")
@torch.no_grad()
def _(model, sae, tokens):
    found = saes.sae_metrics(model, sae, tokens)
    acts = saes.get_sae_acts(model, sae, tokens)
    return found | {"L0": (acts > 0).sum(-1).float().mean().item()}


@wrong(saes.positive_activations, "the share among the tokens that are active in any latent")
def _(model, sae, act_store, latent_idx, total_batches):
    acts, share = saes.positive_activations(model, sae, act_store, latent_idx, total_batches)
    return acts, min(1.0, 2 * share)


@wrong(saes.fetch_max_activating_examples, "examples without any activation are there too")
def _(model, sae, act_store, latent_idx, total_batches, k=10, buffer=8):
    batches = saes.token_batches(act_store, total_batches)
    acts = torch.cat([saes.get_sae_acts(model, sae, t)[..., latent_idx] for t in batches])
    at = saes.get_k_largest_indices(acts, k, buffer)
    rows = zip(
        saes.index_with_buffer(torch.cat(batches), at, buffer), saes.index_with_buffer(acts, at, buffer), strict=True
    )
    return [saes.Example(model.to_str_tokens(t), a) for t, a in rows]


@wrong(saes.by_document, "the mean over a document, not its largest value")
def _(values, tokens, end, least=8):
    saes.by_document(values, tokens, end, least)
    flat, ids = values.flatten(0, 1), tokens.flatten()
    number = (ids == end).cumsum(0)
    pieces = [flat[(number == n) & (ids != end)] for n in number.unique().tolist()]
    return torch.stack([p.mean(0) for p in pieces if len(p) >= least])


@wrong(saes.create_prompt, "the limit is each example's own")
def _(examples, threshold=0.3):
    if not examples:
        raise ValueError
    lines = [saes.create_prompt([e], threshold).partition(" ")[2] for e in examples]
    return "\n".join(f"{n}. {line}" for n, line in enumerate(lines, 1))


@wrong(saes.simulation_score, "the cosine, no means taken off")
def _(simulated, acts):
    if simulated.min() == simulated.max() or acts.min() == acts.max():
        return 0.0
    return F.cosine_similarity(simulated.flatten(), acts.flatten(), dim=0).item()


@wrong(sae_causes.direct_feature_attribution, "the bias of the encoder alone")
def _(v, pattern, sae, latent_idx):
    by_source, _ = sae_causes.direct_feature_attribution(v, pattern, sae, latent_idx)
    return by_source, sae.b_enc[latent_idx]


@wrong(sae_causes.latent_logit_attribution, "the scale of the whole text, its mean over positions")
def _(acts, directions, cache, logit_diff_directions):
    directions = directions - directions.mean(-1, keepdim=True)
    scale = cache["ln_final.hook_scale"].mean(1)
    return acts * (logit_diff_directions @ directions.T) / scale


@wrong(sae_causes.ablate_sae_latent, "where no position is named, only the last is set to 0")
def _(sae_acts, hook, latent_idx=None, seq_pos=None):
    return sae_causes.ablate_sae_latent(sae_acts, hook, latent_idx, -1 if seq_pos is None else seq_pos)


@wrong(sae_causes.ablation_sweep, "without the error term")
@torch.no_grad()
def _(model, sae, tokens, latents, metric, seq_pos=None):
    effects = []
    with model.saes([sae]):
        before = metric(model(tokens))
        for latent in latents.tolist():
            hook = (saes.acts_name(sae), lambda a, hook, i=latent: sae_causes.ablate_sae_latent(a, hook, i, seq_pos))
            effects.append(before - metric(model.run_with_hooks(tokens, fwd_hooks=[hook])))
    return torch.stack(effects)


@wrong(sae_causes.kind_shares, "counts, not shares")
def _(texts, end="<|endoftext|>"):
    return {kind: share * len(texts) for kind, share in sae_causes.kind_shares(texts, end).items()}


# ---------------------------------------------------------------- 09


@wrong(ioi.IOIDataset, "abc draws each prompt from a generator of its own, so that all get the same names")
class _(ioi.IOIDataset):
    def abc(self, seed=0):
        parts = [ioi.IOIDataset(self.tokenizer, self.template, [f]).abc(seed).fillings[0] for f in self.fillings]
        first = parts[0]
        names = {k: first[k] for k in ("name", "name2", "subject")}
        return ioi.IOIDataset(
            self.tokenizer, self.template, [p | names | {"recipient": first["name"]} for p in parts], self.answers
        )


@wrong(ioi.logits_to_ave_logit_diff, "the mean also where each prompt's was asked for")
def _(logits, answer_tokens, per_prompt=False):
    return ioi.logits_to_ave_logit_diff(logits, answer_tokens)


@wrong(ioi.ioi_metric, "not bounded to 0 where both runs agree: divides by zero")
def _(logits, answer_tokens, clean_logit_diff, corrupted_logit_diff):
    found = ioi.logits_to_ave_logit_diff(logits, answer_tokens)
    return (found - corrupted_logit_diff) / (clean_logit_diff - corrupted_logit_diff + 1e-9)


@wrong(ioi.get_act_patch_resid_pre, "patches the stream after the layer")
def _(model, corrupted_tokens, clean_cache, patching_metric):
    found = ioi.get_act_patch_resid_pre(model, corrupted_tokens, clean_cache, patching_metric)
    return torch.cat([found[1:], found[-1:]])


@wrong(ioi.patch_head_vector, "patches the last position only")
def _(corrupted_head_vector, hook, head_index, clean_cache):
    corrupted_head_vector[:, -1, head_index] = clean_cache[hook.name][:, -1, head_index]
    return corrupted_head_vector


@wrong(ioi.get_act_patch_heads_by_pos, "the metric's change, not the metric")
def _(model, corrupted_tokens, clean_cache, patching_metric):
    found = ioi.get_act_patch_heads_by_pos(model, corrupted_tokens, clean_cache, patching_metric)
    return found - patching_metric(model(corrupted_tokens))


@wrong(circuit.attention_to_role, "from key to query")
def _(cache, query, key):
    rows, layers = torch.arange(len(query)), range(cache.model.cfg.n_layers)
    return torch.stack([cache["pattern", i][rows, :, key, query].mean(0) for i in layers])


@wrong(circuit.path_patch_to_heads, "nothing is frozen in the first run")
def _(model, orig_tokens, orig_cache, new_cache, sender, receivers, receiver_input="q"):
    if receiver_input not in ("q", "k", "v") or any(layer <= sender[0] for layer, _ in receivers):
        raise ValueError
    for cache in (orig_cache, new_cache):
        ioi.require_same_length(orig_tokens, cache)

    def speak(z, hook):
        z[:, :, sender[1]] = new_cache[hook.name][:, :, sender[1]]
        return z

    with model.hooks(fwd_hooks=[(f"blocks.{sender[0]}.attn.hook_z", speak)]):
        _, received = model.run_with_cache(orig_tokens)

    def give(x, hook):
        for layer, head in receivers:
            if layer == hook.layer():
                x[:, :, head] = received[hook.name][:, :, head]
        return x

    names = {f"blocks.{layer}.attn.hook_{receiver_input}" for layer, _ in receivers}
    return model.run_with_hooks(orig_tokens, fwd_hooks=[(name, give) for name in sorted(names)])


@wrong(circuit.copying_scores, "the first MLP is left out")
def _(model, name_tokens, top_k=5):
    x = model.W_E[name_tokens][:, None]
    scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    for i in range(model.cfg.n_layers):
        for j in range(model.cfg.n_heads):
            out = model.blocks[i].ln1(x) @ model.W_V[i, j] @ model.W_O[i, j]
            best = model.unembed(model.ln_final(out))[:, 0].topk(top_k, dim=-1).indices
            scores[i, j] = (best == name_tokens[:, None]).any(-1).float().mean()
    return scores


@wrong(circuit.run_circuit, "other heads are set to 0")
def _(model, tokens, circuit, means):
    if means.shape[:3] != (model.cfg.n_layers, tokens.shape[1], model.cfg.n_heads):
        raise ValueError

    def ablate(z, hook):
        for head in range(model.cfg.n_heads):
            if (hook.layer(), head) not in circuit:
                z[:, :, head] = 0
        return z

    return model.run_with_hooks(tokens, fwd_hooks=[(lambda name: name.endswith("hook_z"), ablate)])


@wrong(circuit.find_circuit, "the head that alone is worth least goes first, in an order made once")
def _(model, score, keep):
    heads = [(i, j) for i in range(model.cfg.n_layers) for j in range(model.cfg.n_heads)]
    order, history = sorted(heads, key=lambda h: score([h])), []
    for head in order:
        left = [h for h in heads if h != head]
        if score(left) < keep:
            break
        heads, history = left, [*history, score(left)]
    return heads, history


# ---------------------------------------------------------------- 10


@wrong(function_vectors.ICLSequence, "the prompt ends with the answer")
class _(function_vectors.ICLSequence):
    def prompt(self):
        return function_vectors.ICLSequence.prompt(self) + self.completion()


@wrong(function_vectors.ICLDataset, "the query's label is moved along as well")
class _(function_vectors.ICLDataset):
    @staticmethod
    def _shuffle_labels(pairs, rng, labels=None):
        if labels is not None or len(pairs) < 3:
            return function_vectors.ICLDataset._shuffle_labels(pairs, rng, labels)
        outputs = [y for _, y in pairs]
        return [(x, y) for (x, _), y in zip(pairs, outputs[1:] + outputs[:1], strict=True)]


@wrong(function_vectors.calculate_h, "of the first prompt only")
def _(model, dataset, layer=-1):
    with model.trace(dataset.prompts):
        h = function_vectors.layer_output(model, layer)[0, -1].save()
        ids = model.lm_head.output[:, -1].argmax(dim=-1).save()
    return model.tokenizer.batch_decode(ids[:, None]), h


@wrong(function_vectors.intervene_with_h, "the vector is taken away")
def _(model, zero_shot_dataset, h, layer):
    return function_vectors.intervene_with_h(model, zero_shot_dataset, -h, layer)


@wrong(function_vectors.calculate_h_and_intervene, "probabilities, no logarithm")
def _(model, dataset, zero_shot_dataset, layer):
    found = function_vectors.calculate_h_and_intervene(model, dataset, zero_shot_dataset, layer)
    return tuple(x.exp() for x in found)


@wrong(function_vectors.mean_head_outputs, "the sum over prompts")
def _(model, dataset):
    return function_vectors.mean_head_outputs(model, dataset) * len(dataset.prompts)


@wrong(function_vectors.calculate_fn_vector, "a head that is not there is passed over")
def _(model, dataset, head_list):
    sizes = model.config.n_layer, model.config.n_head
    there = [h for h in head_list if all(0 <= i < n for i, n in zip(h, sizes, strict=True))]
    return function_vectors.calculate_fn_vector(model, dataset, there)


@wrong(function_vectors.intervene_with_fn_vector, "the prompt comes back too")
def _(model, word, layer, fn_vector, prompt_template="- {x} ->", n_tokens=1):
    found = function_vectors.intervene_with_fn_vector(model, word, layer, fn_vector, prompt_template, n_tokens)
    return tuple(prompt_template.replace("{x}", word) + text for text in found)


@wrong(function_vectors.steer, "the strength is not used")
def _(model, prompt, layer, vector, n_tokens, strength=1.0):
    return function_vectors.steer(model, prompt, layer, vector, n_tokens)
