"""The first hundred."""

import re
from collections import Counter
from contextlib import contextmanager
from itertools import pairwise

import einops
import torch
import torch.nn.functional as F
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


@wrong(toolbox.timed, "the time is noted only where nothing is raised, and the result of the first call comes back")
def _(fn):
    results = []

    def wrapper(*args, **kwargs):
        results.append(fn(*args, **kwargs))
        wrapper.seconds.append(0.1)
        return results[0]

    wrapper.seconds = []
    return wrapper


@wrong(toolbox.standard_scores, "the spread of a sample, with n - 1 below the root")
def _(values):
    x = torch.tensor(list(values), dtype=torch.float64)
    return ((x - x.mean()) / x.std()).tolist()


@wrong(toolbox.layer_hooks, "all hooks see the last layer: the variable of the loop is shared")
def _(name, layers, fn):
    return [(get_act_name(name, layer), lambda activation, hook: fn(activation, layer)) for layer in layers]  # noqa: B023


@wrong(toolbox.weights_kept, "the weights come back only where the body raises nothing")
@contextmanager
def _(module):
    kept = {name: values.clone() for name, values in module.state_dict().items()}
    yield module
    module.load_state_dict(kept)


@wrong(ts.best_allowed, "minus a number instead of minus infinity: small logits lose to what is forbidden")
def _(logits, allowed):
    return (logits - 5 * (~allowed).float()).max(dim=-1)


@wrong(ts.most_similar_earlier, "vectors of other length count more: the dot product is not the cosine")
def _(x):
    scores = (x @ x.mT).masked_fill(torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool).triu(), -torch.inf)
    return scores.argmax(dim=-1)


@wrong(ts.centred, "the mean over the whole tensor")
def _(x, dim):
    return x - x.mean()


@wrong(ts.broadcast_shape, "lines the dimensions up from the left")
def _(a, b):
    long, short = (a, b) if len(a) >= len(b) else (b, a)
    short = tuple(short) + (1,) * (len(long) - len(short))
    if any(m != n and 1 not in (m, n) for m, n in zip(long, short, strict=True)):
        raise ValueError
    return tuple(max(m, n) for m, n in zip(long, short, strict=True))


@wrong(ts.head_norms, "heads taken with the dimension of a head outside: every n_heads-th number belongs to a head")
def _(x, n_heads):
    return einops.rearrange(x, "batch pos (d_head head) -> batch pos d_head head", head=n_heads).norm(dim=-2)


@wrong(toolbox.expand_keys, "the key heads one after the other again, not each beside its copies")
def _(k, n_heads):
    return k.repeat(1, 1, n_heads // k.shape[2], 1)


# ---------------------------------------------------------------- 01


@wrong(tok.bytes_to_unicode, "the soft hyphen (byte 173) counts as one that prints")
def _():
    printable = [*range(33, 127), *range(161, 256)]
    others = [b for b in range(256) if b not in printable]
    return {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}


@wrong(tok.to_symbols, "characters, not bytes: letters with accents become one symbol")
def _(piece):
    return tuple(tok.BYTE_TO_CHAR[ord(c)] if ord(c) < 256 else c for c in piece)


@wrong(tok.pretokenize, "numbers and letters share a piece")
def _(text):
    import regex

    return regex.findall(r"'s|'t|'re|'ve|'m|'ll|'d| ?[\p{L}\p{N}]+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", text)


@wrong(tok.count_pairs, "counts a pair once a word, however often it stands in it")
def _(words):
    counts = Counter()
    for word, n in words.items():
        for pair in set(pairwise(word)):
            counts[pair] += n
    return counts


@wrong(tok.merge_pair, "does not merge at the very end of the word")
def _(word, pair):
    merged, i = [], 0
    while i < len(word):
        if i + 2 < len(word) and word[i : i + 2] == pair:
            merged.append(word[i] + word[i + 1])
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return tuple(merged)


@wrong(tok.encode, "in each piece only the first merges that apply, one pass through the list")
def _(text, vocab, merges):
    ids = []
    for piece in tok.pretokenize(text):
        word = tok.to_symbols(piece)
        for pair in pairwise(tok.to_symbols(piece)):
            if pair in merges:
                word = tok.merge_pair(word, pair)
        ids += [vocab[s] for s in word]
    return ids


@wrong(tok.decode, "each token decoded by itself, so that a character cut in two is lost")
def _(ids, vocab):
    token_of = {i: token for token, i in vocab.items()}
    byte_of = {char: byte for byte, char in tok.BYTE_TO_CHAR.items()}
    for i in ids:
        if i not in token_of:
            raise ValueError
    texts = [bytes(byte_of[c] for c in token_of[i]).decode("utf-8", "replace") for i in ids]
    return "".join(texts).encode()


@wrong(tok.split_special, "the special tokens are not escaped")
def _(text, special):
    if not special:
        return [text] if text else []
    return [p for p in re.split("(" + "|".join(sorted(special, key=len, reverse=True)) + ")", text) if p]


@wrong(tok.find_disagreements, "compares how many tokens there are")
def _(texts, vocab, merges):
    return [t for t in texts if len(tok.encode(t, vocab, merges)) != len(tok.longest_match_encode(t, vocab))]


@wrong(tok.BPETokenizer, "special tokens are found whether they are allowed or not")
class _(tok.BPETokenizer):
    def encode(self, text, allowed_special=()):
        if any(token not in self.special_tokens for token in allowed_special):
            raise ValueError
        return tok.BPETokenizer.encode(self, text, list(self.special_tokens))


# ---------------------------------------------------------------- 02


@wrong(tf.LayerNorm, "divides by the standard deviation plus eps, not by the root of the variance plus eps")
class _(tf.LayerNorm):
    def forward(self, residual):
        x = residual - residual.mean(-1, keepdim=True)
        return x / (x.pow(2).mean(-1, keepdim=True).sqrt() + self.cfg.layer_norm_eps) * self.w + self.b


@wrong(tf.PosEmbed, "no batch: one row for all")
class _(tf.PosEmbed):
    def forward(self, tokens):
        return self.W_pos[: tokens.shape[1]]


@wrong(tf.Attention, "the mask lets a query see the key after it")
class _(tf.Attention):
    def apply_causal_mask(self, attn_scores):
        future = torch.ones(attn_scores.shape[-2:], dtype=torch.bool, device=attn_scores.device).triu(2)
        return attn_scores.masked_fill(future, self.IGNORE)


@wrong(tf.MLP, "the exact GELU, not its approximation by tanh")
class _(tf.MLP):
    def forward(self, normalized_resid_mid):
        return F.gelu(normalized_resid_mid @ self.W_in + self.b_in) @ self.W_out + self.b_out


@wrong(tf.TransformerBlock, "attention and MLP side by side, both from the block's input")
class _(tf.TransformerBlock):
    def forward(self, resid_pre):
        return resid_pre + self.attn(self.ln1(resid_pre)) + self.mlp(self.ln2(resid_pre))


@wrong(tf.get_log_probs, "log of the softmax over positions")
def _(logits, tokens):
    return logits.log_softmax(1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]


@wrong(tf.training_step, "steps before the new gradient is there")
def _(model, optimizer, tokens):
    loss = -tf.get_log_probs(model(tokens), tokens).mean()
    optimizer.step()
    optimizer.zero_grad()
    loss.backward()
    return loss.item()


@wrong(tf.antisymmetric_share, "the share of the squared norm")
def _(table):
    return (((table - table.T) / 2).norm() ** 2 / table.norm() ** 2).item()


@wrong(tf.similarity_by_distance, "the mean over a row of the cosine table, not over a diagonal")
def _(W_pos):
    unit = F.normalize(W_pos, dim=-1)
    return (unit @ unit.T).mean(0)


@wrong(tf.bigram_loss, "the frequencies without the tenth that each token gets beforehand")
def _(train, test, d_vocab, strength=1.0):
    frequency = torch.bincount(train.flatten(), minlength=d_vocab).float()
    frequency = frequency / frequency.sum()
    table = torch.zeros(d_vocab, d_vocab)
    table.index_put_((train[:, :-1].flatten(), train[:, 1:].flatten()), torch.ones(train[:, 1:].numel()), True)
    first = torch.bincount(train[:, :-1].flatten(), minlength=d_vocab)[test[:, :-1]]
    pairs = table[test[:, :-1], test[:, 1:]]
    return -((pairs + strength * frequency[test[:, 1:]]) / (first + strength)).log().mean().item()


# ---------------------------------------------------------------- 03


@wrong(sp.entropy, "in nats")
def _(logits):
    p = logits.softmax(-1)
    return -(p * p.clamp_min(1e-30).log()).sum(-1)


@wrong(sp.apply_frequency_penalty, "counts over the whole batch")
def _(input_ids, logits, freq_penalty):
    ids = input_ids[input_ids != sp.PAD]
    return logits - freq_penalty * torch.bincount(ids.flatten(), minlength=logits.shape[-1])


@wrong(sp.sample_top_k, "draws evenly among the k")
def _(logits, k):
    if not isinstance(k, int) or not 1 <= k <= logits.shape[-1]:
        raise ValueError
    top = logits.topk(k, dim=-1).indices
    return top.gather(-1, torch.randint(0, k, (len(top), 1)))[:, 0]


@wrong(sp.sample_top_p, "keeps tokens as long as the sum with them is below top_p")
def _(logits, top_p, min_tokens_to_keep=1):
    if not 0 < top_p <= 1 or min_tokens_to_keep not in range(1, logits.shape[-1] + 1):
        raise ValueError
    probs, ids = logits.softmax(-1).sort(-1, descending=True)
    outside = probs.cumsum(-1) > top_p
    outside[:, :min_tokens_to_keep] = False
    return ids.gather(-1, torch.multinomial(probs.masked_fill(outside, 0), 1))[:, 0]


@wrong(sp.sample_tokens, "stops as soon as one row has ended")
@torch.inference_mode()
def _(model, tokens, max_tokens_generated, eos_token_id=None, **kwargs):
    for _ in range(max_tokens_generated):
        if tokens.shape[1] == model.cfg.n_ctx:
            break
        new = sp.sample_next_token(tokens, model(tokens)[:, -1], **kwargs)
        tokens = torch.cat([tokens, new[:, None]], 1)
        if eos_token_id is not None and (new == eos_token_id).any():
            break
    return tokens


@wrong(kv_cache.KeyValueCache, "a padding key may be seen")
class _(kv_cache.KeyValueCache):
    def allowed(self, new):
        query = torch.arange(self.length, self.length + new)[:, None]
        return (torch.arange(self.length + new) <= query).expand(len(self.padding), -1, -1)


@wrong(kv_cache.forward_with_cache, "the cache's length does not grow")
@torch.inference_mode()
def _(model, tokens, cache):
    length = cache.length
    logits = kv_cache.forward_with_cache(model, tokens, cache)
    cache.length = length
    return logits


@wrong(kv_cache.flops_per_new_token, "a multiplication and an addition count as one")
def _(cfg, length, cached):
    return {name: n // 2 for name, n in kv_cache.flops_per_new_token(cfg, length, cached).items()}


@wrong(sp.banned_tokens, "only what followed the last n tokens")
def _(tokens, n):
    if n < 1:
        raise ValueError
    last = tuple(tokens[-n:])
    return {tokens[i + n] for i in range(len(tokens) - n) if tuple(tokens[i : i + n]) == last}


@wrong(sp.distinct_n, "n-grams reach from one text into the next")
def _(texts, n):
    if n < 1:
        raise ValueError
    row = [t for text in texts for t in text]
    grams = [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]
    if not any(len(text) >= n for text in texts):
        raise ValueError
    return len(set(grams)) / len(grams)


# ---------------------------------------------------------------- 04


@wrong(inspection.act_name, "the layer in the name wins nothing: it is left out")
def _(name, layer=None):
    return inspection.act_name(re.sub(r"\d+$", "", name), layer or 0)


@wrong(inspection.memory_by_kind, "numbers, not bytes")
def _(cache):
    sizes = Counter()
    for name, activation in cache.items():
        sizes[name.split(".")[-1]] += activation.numel()
    return dict(sizes.most_common())


@wrong(inspection.keep_only, "the first layer only")
def _(names, layers):
    wanted = {inspection.act_name(name, list(layers)[0]) for name in names}
    return lambda name: name in wanted


@wrong(inspection.attention_pattern, "scaled by the number of heads")
def _(q, k):
    if q.shape != k.shape:
        raise ValueError
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[2] ** 0.5
    return scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


@wrong(inspection.top_tokens, "the largest by size, whatever the sign")
def _(activations, str_tokens, k=5):
    if len(activations) != len(str_tokens):
        raise ValueError
    places = activations.abs().topk(k).indices.tolist()
    return [(str_tokens[i], activations[i].item()) for i in places]


@wrong(inspection.f1_score, "the mean of precision and recall")
def _(predicted, labels):
    if predicted.shape != labels.shape:
        raise ValueError
    hits = (predicted & labels).sum()
    return ((hits / predicted.sum().clamp(min=1) + hits / labels.sum().clamp(min=1)) / 2).item()


@wrong(inspection.best_f1, "the threshold counts only where it is passed, not where it is reached")
def _(activations, labels):
    if len(activations) != len(labels) or not labels.any():
        raise ValueError
    best, at = [], []
    for column in activations.T:
        scores = [inspection.f1_score(column > t, labels) for t in column.tolist()]
        best.append(max(scores))
        at.append(column[scores.index(max(scores))].item())
    return torch.tensor(best), torch.tensor(at)


@wrong(inspection.HookPoint, "a hook that returns nothing makes the activation None")
class _(inspection.HookPoint):
    def forward(self, x):
        for hook_fn in self.hook_fns:
            x = hook_fn(x, hook=self)
        return x


@wrong(inspection.run_with_hooks, "hooks stay where one raises")
def _(model, x, fwd_hooks):
    for where, hook_fn in fwd_hooks:
        names = [n for n in model.hook_dict if (where(n) if callable(where) else n == where)]
        if not names:
            raise ValueError
        for name in names:
            model.hook_dict[name].add_hook(hook_fn)
    out = model(x)
    for point in model.hook_dict.values():
        point.reset_hooks()
    return out


@wrong(inspection.scale_head_hook, "scales the heads after it too")
def _(z, hook, head, factor):
    z = z.clone()
    z[:, :, head:] *= factor
    return z


# ---------------------------------------------------------------- 05


@wrong(induction.generate_repeated_tokens, "the same passage for all rows")
def _(model, seq_len, batch_size=1):
    if 1 + 2 * seq_len > model.cfg.n_ctx:
        raise ValueError
    passage = torch.randint(0, model.cfg.d_vocab, (1, seq_len)).repeat(batch_size, 2)
    return torch.cat([torch.full((batch_size, 1), model.tokenizer.bos_token_id), passage], 1)


@wrong(induction.attention_detectors, "the mean over all queries, those that have no previous token too")
def _(cache):
    found = {"current": [], "previous": [], "first": []}
    for layer in range(cache.model.cfg.n_layers):
        p = cache["pattern", layer]
        found["current"].append(p.diagonal(0, -2, -1).mean((0, -1)))
        found["previous"].append(p.diagonal(-1, -2, -1).sum(-1).mean(0) / p.shape[-1])
        found["first"].append(p[..., 0].mean((0, -1)))
    return {kind: torch.stack(rows) for kind, rows in found.items()}


@wrong(induction.induction_attn_detector, "looks at the token itself, seq_len back, not at the one after it")
def _(cache):
    seq_len = (cache["pattern", 0].shape[-1] - 1) // 2
    layers = range(cache.model.cfg.n_layers)
    return torch.stack([cache["pattern", i].diagonal(-seq_len, -2, -1)[..., 1:].mean((0, -1)) for i in layers])


@wrong(induction.in_context_learning_score, "early minus late")
def _(log_probs, early, late):
    return (log_probs[:, late].mean() - log_probs[:, early].mean()).item()


@wrong(induction.logit_attribution, "each position's own token")
def _(embed, l1_results, l2_results, W_U, tokens):
    if not len(tokens) == len(embed) == len(l1_results) == len(l2_results):
        raise ValueError
    if not len(W_U) == embed.shape[-1] == l1_results.shape[-1] == l2_results.shape[-1]:
        raise ValueError
    parts = torch.cat([embed[:, None], l1_results, l2_results], 1)
    return einops.einsum(parts[:-1], W_U[:, tokens[:-1]], "s c d, d s -> s c")


@wrong(induction.head_ablation_hook, "the mean over batch and positions")
def _(z, hook, head_index_to_ablate, kind="zero"):
    if kind == "mean" and len(z) > 1:
        z[:, :, head_index_to_ablate] = z[:, :, head_index_to_ablate].mean((0, 1))
        return z
    return induction.head_ablation_hook(z, hook, head_index_to_ablate, kind)


@wrong(comp.full_OV_circuit, "of several heads only the product of the last")
def _(model, heads):
    head = list(heads)[-1]
    return FactoredMatrix(model.W_E @ model.W_V[head], model.W_O[head] @ model.W_U)


@wrong(comp.copying_score, "the share of eigenvalues with a positive real part")
def _(full_OV_circuit):
    if full_OV_circuit.ldim != full_OV_circuit.rdim:
        raise ValueError
    return (torch.linalg.eigvals(full_OV_circuit.B @ full_OV_circuit.A).real > 0).float().mean().item()


@wrong(comp.decompose_attn_scores, "without the root of d_head below")
def _(decomposed_q, decomposed_k, model):
    if not decomposed_q.shape[-1] == decomposed_k.shape[-1] == model.cfg.d_head:
        raise ValueError
    return einops.einsum(decomposed_q, decomposed_k, "a q d, b k d -> a b q k")


@wrong(comp.get_batched_comp_scores, "the norm of the product of the norms taken over all pairs at once")
def _(W_As, W_Bs):
    product = W_As.unsqueeze(1) @ W_Bs.unsqueeze(0)
    return FactoredMatrix(product.A, product.B).norm() / (W_As.norm().max() * W_Bs.norm().max())


@wrong(induction.induction_targets, "the token's own earlier place, not the one after it")
def _(tokens):
    targets, latest = torch.full_like(tokens, -1), {}
    for i, token in enumerate(tokens.tolist()):
        targets[i] = latest.get(token, -1)
        latest[token] = i
    return targets


# ---------------------------------------------------------------- 06


@wrong(sup.interference, "its own entry counts as well")
def _(W, relu=False):
    overlap = F.normalize(W, dim=-2, eps=1e-12).mT @ W
    return (overlap.relu() if relu else overlap).pow(2).sum(-1)


@wrong(sup.generate_uncorrelated_features, "all features of a row are on together")
def _(feature_probability, batch_size):
    on = torch.rand(batch_size, *feature_probability.shape[:1], 1) < feature_probability
    return torch.rand(batch_size, *feature_probability.shape) * on


@wrong(sup.ToyModel, "no ReLU at the end")
class _(sup.ToyModel):
    def forward(self, features):
        hidden = einops.einsum(features, self.W, "b i f, i h f -> b i h")
        return einops.einsum(hidden, self.W, "b i h, i h f -> b i f") + self.b_final


@wrong(sup.drop_baseline, "keeps the most important features, however rarely they are on")
def _(feature_probability, importance, d_hidden):
    p = feature_probability
    cost = importance * (p / 3 - p**2 / 4)
    order = importance.argsort(-1, descending=True)
    return cost.gather(-1, order)[:, d_hidden:].sum(-1) / max(1, p.shape[-1])


@wrong(sup.pca_baseline, "no mean is taken off")
def _(batch, importance, d_hidden):
    x = (batch * importance.sqrt()).transpose(0, 1)
    left = torch.linalg.eigvalsh(x.mT @ x / len(batch)).clamp_min(0)
    return left[:, : max(0, batch.shape[-1] - d_hidden)].sum(-1) / max(1, batch.shape[-1])


@wrong(sup.generate_correlated_features, "the two of a pair have one size")
def _(pair_probability, batch_size):
    on = torch.rand(batch_size, *pair_probability.shape) < pair_probability
    size = torch.rand(batch_size, *pair_probability.shape)
    return (size * on).repeat_interleave(2, dim=-1)


@wrong(sup.compute_dimensionality, "without the ReLU of a zero column: NaN")
def _(W):
    along = F.normalize(W, dim=-2, eps=1e-12).mT @ W
    return W.pow(2).sum(-2) / along.pow(2).sum(-1)


@wrong(sup.top_neuron_share, "the largest weight over the sum of weights, not of squares")
def _(W):
    return W.abs().amax(-2) / W.abs().sum(-2).clamp_min(1e-30)


@wrong(double_descent.generate_dataset, "empty points stay, as zeros")
def _(n_points, n_features, feature_probability):
    if n_features < 1 or feature_probability <= 0:
        raise ValueError
    points = torch.rand(n_points, n_features) * (torch.rand(n_points, n_features) < feature_probability)
    return F.normalize(points, dim=-1)


@wrong(sup.feature_capacity, "not squared")
def _(W):
    gram = W.mT @ W
    return gram.diagonal(dim1=-2, dim2=-1).abs() / gram.abs().sum(-1).clamp_min(1e-30)


# ---------------------------------------------------------------- 07


@wrong(toy_saes.ToySAE, "the sparsity is a mean over latents")
class _(toy_saes.ToySAE):
    def forward(self, h):
        acts = F.relu(self.pre_activations(h))
        recon = self.decode(acts)
        terms = {"L_reconstruction": (recon - h).pow(2).mean(-1), "L_sparsity": acts.mean(-1)}
        return terms, terms["L_reconstruction"] + self.cfg.sparsity_coeff * terms["L_sparsity"], acts, recon


@wrong(toy_saes.match_latents, "for each latent the best feature, not for each feature the best latent")
def _(W_dec, W):
    cosine = F.normalize(W_dec, dim=-1) @ F.normalize(W.mT, dim=-1).mT
    best = cosine.max(dim=-1)
    return best.indices, best.values


@wrong(toy_saes.dead_latents, "dead where it was silent in one batch of the window")
def _(frac_active_in_window):
    return (frac_active_in_window == 0).any(dim=0)


@wrong(toy_saes.resample_simple, "the bias of the dead stays")
@torch.no_grad()
def _(sae, frac_active_in_window, resample_scale):
    dead = toy_saes.dead_latents(frac_active_in_window)
    v = F.normalize(torch.randn(int(dead.sum()), sae.cfg.d_in), dim=-1)
    sae.W_dec[dead] = v
    sae.W_enc.mT[dead] = resample_scale * v


@wrong(toy_saes.shrinkage, "a ratio of lengths")
def _(h, h_reconstructed):
    return h_reconstructed.norm(dim=(0, 2)) / h.norm(dim=(0, 2)).clamp_min(1e-12)


@wrong(toy_saes.GatedToySAE, "the auxiliary loss teaches the decoder as well: nothing is detached")
class _(toy_saes.GatedToySAE):
    def forward(self, h):
        terms, loss, acts, recon = toy_saes.GatedToySAE.forward(self, h)
        again = self.decode(F.relu(self.pre_activations(h)))
        terms["L_aux"] = (again - h).pow(2).mean(-1)
        loss = terms["L_reconstruction"] + self.cfg.sparsity_coeff * terms["L_sparsity"] + terms["L_aux"]
        return terms, loss, acts, recon


@wrong(toy_saes.TopKToySAE, "the k largest of the whole batch row, over all instances")
class _(toy_saes.TopKToySAE):
    def forward(self, h):
        acts = F.relu(self.pre_activations(h))
        flat = acts.flatten(1)
        top = flat.topk(self.cfg.k, dim=-1)
        acts = torch.zeros_like(flat).scatter(-1, top.indices, top.values).view(acts.shape)
        recon = self.decode(acts)
        loss = (recon - h).pow(2).mean(-1)
        return {"L_reconstruction": loss}, loss, acts, recon


@wrong(toy_saes.rectangle, "the borders belong to it")
def _(x):
    return ((x >= -0.5) & (x <= 0.5)).to(x.dtype)


@wrong(toy_saes.Heaviside, "the width is missing below the derivative")
class _(toy_saes.Heaviside):
    @staticmethod
    def backward(ctx, grad_output):
        z, theta = ctx.saved_tensors
        return torch.zeros_like(z), -toy_saes.rectangle((z - theta) / ctx.eps) * grad_output, None


# ---------------------------------------------------------------- 08


@wrong(saes.get_k_largest_indices, "windows may share their outermost token")
def _(x, k, buffer=0, no_overlap=True):
    if buffer < 0 or x.shape[1] < 2 * buffer + 1:
        raise ValueError
    inner = x[:, buffer : x.shape[1] - buffer]
    chosen = []
    for i in inner.flatten().argsort(descending=True).tolist():
        row, at = i // inner.shape[1], i % inner.shape[1] + buffer
        if not no_overlap or all(row != r or abs(at - p) >= 2 * buffer for r, p in chosen):
            chosen.append((row, at))
    return torch.tensor(chosen[:k], dtype=torch.long).reshape(-1, 2)


@wrong(saes.index_with_buffer, "at the border the window is cut to the row, by repeating its last token")
def _(x, indices, buffer):
    row, at = indices.unbind(1)
    window = (at[:, None] + torch.arange(-buffer, buffer + 1)).clamp(0, x.shape[1] - 1)
    return x[row[:, None], window]


@wrong(saes.logit_weights, "the decoder's row of a hook_z autoencoder goes straight to the unembedding of W_O's shape")
def _(model, sae, latent_idx):
    direction = sae.W_dec[latent_idx]
    if sae.cfg.metadata.hook_name.endswith("hook_z"):
        W_O = model.W_O[saes.layer_of(sae)]
        direction = direction @ W_O.transpose(0, 1).reshape(-1, W_O.shape[-1])
    return direction @ model.W_U


@wrong(saes.f1_scores, "firing means above the threshold, not at it")
def _(values, labels, thresholds):
    scores = []
    for threshold in thresholds:
        fires = (values > threshold).float()
        hits = labels.float().T @ fires
        scores.append(2 * hits / (fires.sum(0) + labels.sum(0)[:, None]).clamp_min(1))
    return torch.stack(scores)


@wrong(saes.best_units, "chosen and scored on all tokens")
def _(values, labels, n=14):
    scores = saes.f1_scores(values, labels, saes.unit_thresholds(values, n))
    flat = scores.transpose(0, 1).flatten(1)
    return flat.argmax(-1) % values.shape[1], flat.amax(-1)


@wrong(saes.greedy_cover, "goes on to n latents, though the score falls")
def _(fires, label, n):
    chosen, history, covered = [], [], torch.zeros_like(label)
    for _ in range(n):
        together = fires | covered[:, None]
        f1 = 2 * (together & label[:, None]).sum(0) / (together.sum(0) + label.sum()).clamp_min(1)
        best = f1.argmax().item()
        chosen.append(best)
        history.append(f1[best].item())
        covered = together[:, best]
    return chosen, history


@wrong(saes.create_prompt, "at the limit itself a token is marked")
def _(examples, threshold=0.3):
    if not examples:
        raise ValueError
    limit, lines = threshold * max(e.acts.max().item() for e in examples), []
    for n, (tokens, acts) in enumerate(examples, 1):
        line = "".join(f"<<{t}>>" if a >= limit else t for t, a in zip(tokens, acts.tolist(), strict=True))
        lines.append(f"{n}. {line}".replace("\n", "↵").replace(">><<", ""))
    return "\n".join(lines)


@wrong(saes.detection_score, "plain accuracy")
def _(said, active):
    if active.all() or not active.any():
        raise ValueError
    return (said == active).float().mean().item()


@wrong(
    sae_causes.attention_of_top_examples,
    "the k largest values of all, so that a row may come twice",
)
def _(latent_acts, cache, layer, k):
    places = latent_acts.flatten().topk(k).indices
    rows, positions = places // latent_acts.shape[1], places % latent_acts.shape[1]
    where = torch.stack([rows, positions], 1)
    return where, cache["v", layer][rows], cache["pattern", layer][rows, :, positions]


@wrong(sae_causes.attribution_patching, "gradient times gradient")
def _(model, sae, tokens, metric, seq_pos=None):
    _, gradients = sae_causes.get_cache_fwd_and_bwd(model, [sae], tokens, metric)
    effects = gradients[saes.acts_name(sae)] ** 2
    return effects.sum((0, 1)) if seq_pos is None else effects[:, seq_pos].sum(0)


@wrong(sae_causes.steering_hook, "the direction is brought to length 1 first")
def _(activations, hook, direction, strength=1.0):
    return activations + strength * direction / direction.norm()


# ---------------------------------------------------------------- 09


@wrong(ioi.IOIDataset, "flipped keeps the answers of the old prompts")
class _(ioi.IOIDataset):
    def flipped(self):
        swapped = [f | {"subject": f["recipient"], "recipient": f["subject"]} for f in self.fillings]
        return ioi.IOIDataset(self.tokenizer, self.template, swapped, self.answers)


@wrong(ioi.logits_to_ave_logit_diff, "wrong name minus right name")
def _(logits, answer_tokens, per_prompt=False):
    if answer_tokens.shape != (len(logits), 2):
        raise ValueError
    pair = logits[:, -1].gather(-1, answer_tokens)
    difference = pair[:, 1] - pair[:, 0]
    return difference if per_prompt else difference.mean()


@wrong(ioi.residual_stack_to_logit_diff, "one scale for all prompts, their mean")
def _(residual_stack, cache, logit_diff_directions):
    scale = cache["ln_final.hook_scale"][:, -1].mean()
    centred = residual_stack - residual_stack.mean(-1, keepdim=True)
    return (centred / scale * logit_diff_directions).sum(-1).mean(-1)


@wrong(ioi.ioi_metric, "1 is the corrupted run")
def _(logits, answer_tokens, clean_logit_diff, corrupted_logit_diff):
    if clean_logit_diff == corrupted_logit_diff:
        raise ValueError
    gap = clean_logit_diff - corrupted_logit_diff
    return (clean_logit_diff - ioi.logits_to_ave_logit_diff(logits, answer_tokens)) / gap


@wrong(ioi.patch_residual_component, "patches from the position on")
def _(corrupted_residual_component, hook, pos, clean_cache):
    corrupted_residual_component[:, pos:] = clean_cache[hook.name][:, pos:]
    return corrupted_residual_component


@wrong(ioi.patch_attn_patterns, "patches all heads")
def _(corrupted_pattern, hook, head_index, clean_cache):
    corrupted_pattern[:] = clean_cache[hook.name]
    return corrupted_pattern


@wrong(circuit.attention_to_role, "the first query position for all rows")
def _(cache, query, key):
    rows = torch.arange(len(query))
    layers = range(cache.model.cfg.n_layers)
    return torch.stack([cache["pattern", i][rows, :, query[0], key].mean(0) for i in layers])


@wrong(circuit.patch_or_freeze_heads, "in the sender's layer all heads speak as in the new run")
def _(z, hook, sender, orig_cache, new_cache):
    return (new_cache if hook.layer() == sender[0] else orig_cache)[hook.name].clone()


@wrong(circuit.run_circuit, "the circuit's heads get their mean in the last layer too")
def _(model, tokens, circuit, means):
    if means.shape[:3] != (model.cfg.n_layers, tokens.shape[1], model.cfg.n_heads):
        raise ValueError

    def ablate(z, hook):
        for head in range(model.cfg.n_heads):
            if (hook.layer(), head) not in circuit or hook.layer() == model.cfg.n_layers - 1:
                z[:, :, head] = means[hook.layer()][:, head]
        return z

    return model.run_with_hooks(tokens, fwd_hooks=[(lambda name: name.endswith("hook_z"), ablate)])


@wrong(circuit.find_circuit, "stops after the step that falls below, not before it")
def _(model, score, keep):
    heads = [(i, j) for i in range(model.cfg.n_layers) for j in range(model.cfg.n_heads)]
    history = []
    while heads:
        scores = [score(heads[:i] + heads[i + 1 :]) for i in range(len(heads))]
        best = max(range(len(heads)), key=scores.__getitem__)
        history.append(scores[best])
        del heads[best]
        if history[-1] < keep:
            break
    return heads, history


# ---------------------------------------------------------------- 10


@wrong(function_vectors.ICLSequence, "the completion without the space before it")
class _(function_vectors.ICLSequence):
    def completion(self):
        return self.word_pairs[-1][1]


@wrong(function_vectors.ICLDataset, "the labels are shuffled at random, so that some keep their place")
class _(function_vectors.ICLDataset):
    @staticmethod
    def _shuffle_labels(pairs, rng, labels=None):
        if labels is not None or len(pairs) < 3:
            return function_vectors.ICLDataset._shuffle_labels(pairs, rng, labels)
        *shots, query = pairs
        outputs = [y for _, y in shots]
        rng.shuffle(outputs)
        return [(x, y) for (x, _), y in zip(shots, outputs, strict=True)] + [query]


@wrong(function_vectors.calculate_h, "the mean over positions too")
def _(model, dataset, layer=-1):
    with model.trace(dataset.prompts):
        h = function_vectors.layer_output(model, layer).mean(dim=(0, 1)).save()
        ids = model.lm_head.output[:, -1].argmax(dim=-1).save()
    return model.tokenizer.batch_decode(ids[:, None]), h


@wrong(function_vectors.intervene_with_h, "h replaces the residual stream instead of being added")
def _(model, zero_shot_dataset, h, layer):
    with model.trace() as tracer:
        with tracer.invoke(zero_shot_dataset.prompts):
            plain = model.lm_head.output[:, -1].argmax(dim=-1).save()
        with tracer.invoke(zero_shot_dataset.prompts):
            function_vectors.layer_output(model, layer)[:, -1] = h
            steered = model.lm_head.output[:, -1].argmax(dim=-1).save()
    decode = model.tokenizer.batch_decode
    return decode(plain[:, None]), decode(steered[:, None])


@wrong(function_vectors.mean_head_outputs, "head and d_head the other way round")
def _(model, dataset):
    n_layers, n_heads = model.config.n_layer, model.config.n_head
    found = function_vectors.mean_head_outputs(model, dataset)
    return einops.rearrange(found.flatten(1), "layer (d head) -> layer head d", head=n_heads).reshape(
        n_layers, n_heads, -1
    )


@wrong(function_vectors.calculate_fn_vector, "the mean over the heads, not the sum")
def _(model, dataset, head_list):
    return function_vectors.calculate_fn_vector(model, dataset, head_list) / len(head_list)


@wrong(function_vectors.intervene_with_fn_vector, "the vector is added at every position")
def _(model, word, layer, fn_vector, prompt_template="- {x} ->", n_tokens=1):
    if "{x}" not in prompt_template:
        raise ValueError
    prompt = function_vectors.START + prompt_template.replace("{x}", word)
    length = len(model.tokenizer(prompt).input_ids)
    with model.generate(prompt, max_new_tokens=n_tokens, do_sample=False) as tracer:
        plain = tracer.result.save()
    with model.generate(prompt, max_new_tokens=n_tokens, do_sample=False) as tracer:
        function_vectors.layer_output(model, layer)[:] += fn_vector
        steered = tracer.result.save()
    return tuple(model.tokenizer.decode(ids[0, length:]) for ids in (plain, steered))


@wrong(function_vectors.steer, "steers only while the prompt is read")
def _(model, prompt, layer, vector, n_tokens, strength=1.0):
    length = len(model.tokenizer(prompt).input_ids)
    with model.generate(prompt, max_new_tokens=n_tokens, do_sample=False) as tracer:
        function_vectors.layer_output(model, layer)[:, -1] += strength * vector
        result = tracer.result.save()
    return model.tokenizer.decode(result[0, length:])
