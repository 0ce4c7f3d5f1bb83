"""The fourth hundred: the solution with one fault put around it."""

import math
from collections import Counter
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

import torch
import torch.nn.functional as F

from outside_answers import Answers
from utils import composition as comp
from utils import double_descent, function_vectors, induction, inspection, ioi, kv_cache, sae_causes, saes, toolbox
from utils import ioi_circuit as circuit
from utils import sampling as sp
from utils import superposition as sup
from utils import tensors as ts
from utils import tokenization as tok
from utils import toy_saes as toy
from utils import transformer as tf

ANSWERS = Answers()


def wrong(solution, why, change=None):
    """The solution's result changed by `change(result, *args)`; without one a decorator."""
    if change is None:
        return ANSWERS.wrong(solution, why)

    @wraps(solution)
    def answer(*args, **kwargs):
        return change(solution(*args, **kwargs), *args, **kwargs)

    return ANSWERS.wrong(solution, why)(answer)


def variant(base, why, **methods):
    """A class with other methods."""
    return ANSWERS.wrong(base, why)(type(base.__name__, (base,), methods))


# ---------------------------------------------------------------- 00

wrong(ts.centred, "in place", lambda out, x, dim: x.copy_(out))
wrong(
    ts.head_norms,
    "the square root of the mean square",
    lambda out, x, n: x.unflatten(-1, (n, -1)).pow(2).sum(-1).mean((0, 1)).sqrt(),
)
wrong(ts.bytes_held, "bits", lambda out, tensors: 8 * out)
wrong(ts.mean_residual, "before the layer: the stream is divided by its length", lambda out, *a: out / out.norm())
wrong(ts.best_allowed, "logarithms of the probabilities", lambda out, *a: (out[0], out[1].log()))
wrong(ts.most_similar_earlier, "0 for the first position", lambda out, x: out.clamp_min(0))
wrong(toolbox.expand_keys, "all heads with key head 0", lambda out, k, n: out[:, :, :1].expand(-1, -1, n, -1))
wrong(toolbox.vocab_by_id, "leading spaces are dropped", lambda out, t: [x.lstrip("Ġ") for x in out])
wrong(toolbox.standard_scores, "half as large", lambda out, values: [x / 2 for x in out])
wrong(toolbox.gpt2_places, "of layer 0, whichever is asked for", lambda out, layer: toolbox.gpt2_places(0))
wrong(ts.first_lost_integer, "the one after it", lambda out, dtype: out + 1)


@wrong(toolbox.weights_kept, "new tensors in the old ones' places")
@contextmanager
def _(module):
    kept = {n: p.detach().clone() for n, p in module.state_dict().items()}
    try:
        yield
    finally:
        for name, value in kept.items():
            owner = module.get_submodule(name.rpartition(".")[0])
            leaf = name.rpartition(".")[2]
            if leaf in owner._parameters:
                owner._parameters[leaf] = torch.nn.Parameter(value)
            else:
                owner._buffers[leaf] = value


@wrong(toolbox.cached_on_disk, "all functions share a file for each set of arguments")
def _(folder):
    def decorator(fn):
        def shared(*args, **kwargs):
            return fn(*args, **kwargs)

        cached = toolbox.cached_on_disk(Path(folder))(shared)
        return wraps(fn)(lambda *args, **kwargs: cached(*args, **kwargs))

    return decorator


# ---------------------------------------------------------------- 01

wrong(tok.to_symbols, "a list of one text", lambda out, piece: ("".join(out),))
wrong(tok.pretokenize, "pieces of whitespace are left out", lambda out, text: [p for p in out if p.strip()])
wrong(
    tok.count_pairs,
    "pairs whatever their order",
    lambda out, words: Counter({tuple(sorted(k)): v for k, v in out.items()}),
)
wrong(tok.merge_pair, "only the first place", lambda out, word, pair: _first_merge(word, pair))
wrong(tok.train_bpe, "merges counted from 256", lambda out, *a: (out[0], {k: v + 256 for k, v in out[1].items()}))
wrong(tok.encode, "a space in front", lambda out, text, v, m: tok.encode(" " + text.lstrip(" "), v, m) if text else out)
wrong(tok.decode, "text", lambda out, ids, vocab: out.decode("utf-8", "replace"))
wrong(
    tok.longest_match_encode,
    "by merges",
    lambda out, text, vocab: [vocab[s] for p in tok.pretokenize(text) for s in tok.to_symbols(p)],
)
wrong(tok.find_disagreements, "sorted", lambda out, *a: sorted(out))
wrong(tok.split_special, "special tokens are lost", lambda out, text, special: [p for p in out if p not in special])
variant(tok.BPETokenizer, "strips what it decodes", decode=lambda self, ids: tok.BPETokenizer.decode(self, ids).strip())


def _first_merge(word, pair):
    for i in range(len(word) - 1):
        if word[i : i + 2] == tuple(pair):
            return (*word[:i], "".join(pair), *word[i + 2 :])
    return word


# ---------------------------------------------------------------- 02

variant(tf.Embed, "of length 1", forward=lambda self, tokens: F.normalize(self.W_E[tokens], dim=-1))
variant(tf.Unembed, "log-probabilities", forward=lambda self, x: tf.Unembed.forward(self, x).log_softmax(-1))
variant(tf.MLP, "a ReLU", forward=lambda self, x: F.relu(x @ self.W_in + self.b_in) @ self.W_out + self.b_out)
variant(
    tf.LayerNorm,
    "eps is 1e-5, whatever is configured",
    forward=lambda self, x: F.layer_norm(x, x.shape[-1:], self.w, self.b, 1e-3),
)
variant(tf.PosEmbed, "a row for each token of the batch", forward=lambda self, t: self.W_pos[: t.shape[1]])
variant(tf.TransformerBlock, "the stream is left out", forward=lambda self, x: tf.TransformerBlock.forward(self, x) - x)
variant(tf.ShortformerAttention, "values too", forward=lambda self, x, pos: tf.Attention.forward(self, x + pos))
wrong(tf.get_log_probs, "cross-entropies, the sign turned", lambda out, *a: -out)
wrong(tf.bigram_logits, "minus the row's mean", lambda out, *a: out - out.mean(-1, keepdim=True))
wrong(tf.similarity_by_distance, "absolute cosines", lambda out, W: out.abs())
wrong(tf.bigram_loss, "in bits", lambda out, *a, **k: out / math.log(2))
wrong(
    tf.fold_layer_norm,
    "the output's bias is folded twice",
    lambda out, s: out | {"unembed.b_U": 2 * out["unembed.b_U"] + 1e-2},
)
wrong(tf.training_step, "the sum over tokens", lambda out, model, opt, tokens: out * tokens[:, 1:].numel())

# ---------------------------------------------------------------- 03

wrong(sp.entropy, "of the whole batch", lambda out, logits: out.mean().expand(len(out)))
wrong(
    sp.apply_frequency_penalty,
    "the penalty's size",
    lambda out, ids, logits, p: sp.apply_frequency_penalty(ids, logits, abs(p)),
)
wrong(sp.sample_basic, "the likeliest", lambda out, logits: logits.argmax(-1))
wrong(sp.sample_top_k, "from k + 1", lambda out, logits, k: sp.sample_top_k(logits, min(k + 1, logits.shape[-1])))
wrong(sp.sample_top_p, "the nucleus of 0.9", lambda out, logits, p, n=1: sp.sample_top_p(logits, 0.9, n))
wrong(sp.sample_min_p, "min_p is halved", lambda out, logits, p: sp.sample_min_p(logits, p / 2))
wrong(sp.sample_tokens, "without the prompt", lambda out, model, tokens, *a, **k: out[:, tokens.shape[1] :])
wrong(sp.banned_tokens, "a list", lambda out, tokens, n: sorted(out))
wrong(sp.distinct_n, "as a percentage", lambda out, *a: 100 * out)
wrong(sp.beam_search, "without the prompt", lambda out, model, tokens, *a, **k: [(s, t[len(tokens) :]) for s, t in out])
wrong(sp.trap_for_beams, "rows that do not add up to 1", lambda out, n: (out[0], out[1] * 1.5))
wrong(kv_cache.forward_with_cache, "the last position only", lambda out, *a: out[:, -1:])
variant(
    kv_cache.KeyValueCache,
    "padding may be seen",
    allowed=lambda self, new: torch.ones(len(self.padding), new, self.length + new).tril(self.length).bool(),
)

# ---------------------------------------------------------------- 04

wrong(inspection.stack_over_layers, "from the last layer to the first", lambda out, *a: out.flip(0))
wrong(inspection.memory_by_kind, "as text", lambda out, cache: {k: str(v) for k, v in out.items()})
wrong(inspection.attention_pattern, "query and key the other way round", lambda out, q, k: out.mT)
wrong(inspection.top_tokens, "the lowest first", lambda out, *a, **k: out[::-1])
wrong(inspection.f1_score, "accuracy", lambda out, p, labels: (p == labels).float().mean().item())
wrong(inspection.best_f1, "thresholds halfway to the next value", lambda out, *a: (out[0], out[1] - 0.01))
wrong(inspection.bind_head, "head 0", lambda out, fn, head: inspection.bind_head(fn, 0))
wrong(
    inspection.scale_head_hook,
    "in the place of the others",
    lambda out, z, hook, head, factor: torch.zeros_like(out).index_copy(2, torch.tensor([head]), out[:, :, [head]]),
)
wrong(
    inspection.gradient_cache,
    "of the summed loss",
    lambda out, model, tokens, f: {k: v * tokens[:, 1:].numel() for k, v in out.items()},
)
wrong(inspection.act_name, "with the model's name in front", lambda out, *a, **k: "model." + out)
variant(inspection.HookPoint, "hooks are called from the last to the first", forward=lambda self, x: _reversed(self, x))


def _reversed(self, x):
    for fn in reversed(self.hook_fns):
        out = fn(x, hook=self)
        x = x if out is None else out
    return x


# ---------------------------------------------------------------- 05

wrong(
    induction.generate_repeated_tokens,
    "BOS again at the end",
    lambda out, *a, **k: torch.cat([out[:, :-1], out[:, :1]], 1),
)
wrong(induction.attention_detectors, "per text", lambda out, cache: {k: v[None] for k, v in out.items()})
wrong(induction.induction_attn_detector, "square roots", lambda out, cache: out.sqrt())
wrong(induction.in_context_learning_score, "its size", lambda out, *a: abs(out))
wrong(induction.logit_attribution, "the direct path last", lambda out, *a: out.roll(-1, -1))
wrong(induction.get_ablation_scores, "layers and heads swapped", lambda out, *a, **k: out.mT)
wrong(induction.induction_targets, "0 where the token is new", lambda out, tokens: out.clamp_min(0))
wrong(comp.top_1_acc, "rounded", lambda out, *a, **k: round(out, 1))
wrong(comp.copying_score, "never negative", lambda out, m: max(out, 0.0))
wrong(comp.decompose_qk, "queries and keys swapped", lambda out, *a: out[::-1])
wrong(comp.decompose_attn_scores, "masked", lambda out, *a: out.tril())
wrong(comp.get_comp_score, "squared", lambda out, *a: out**2)
wrong(comp.run_with_path_ablated, "no cache of patterns", lambda out, *a, **k: (out[0], {}))

# ---------------------------------------------------------------- 06

wrong(sup.factored_code, "numbers 0 and 1", lambda out, *a: out.float())
wrong(sup.interference, "the root", lambda out, *a, **k: out.sqrt())
wrong(sup.drop_baseline, "the sum over features", lambda out, p, *a: out * p.shape[-1])
wrong(sup.pca_baseline, "no loss is below 0.01", lambda out, *a: out.clamp_min(0.01))
wrong(sup.generate_correlated_features, "one size in a row", lambda out, *a: (out > 0) * out.amax(-1, keepdim=True))
wrong(sup.compute_dimensionality, "at most 1/2", lambda out, W: out.clamp_max(0.5))
wrong(sup.top_neuron_share, "1 for a zero feature", lambda out, W: torch.where(out == 0, 1.0, out))
wrong(sup.feature_capacity, "they add up to 1", lambda out, W: out / out.sum(-1, keepdim=True))
wrong(sup.quadratic_loss, "the mean over features", lambda out, W, *a: out / W.shape[-1])
wrong(sup.allocate_capacity, "whole numbers", lambda out, *a: out.round())
wrong(double_descent.generate_dataset, "of length 2", lambda out, *a: 2 * out)

# ---------------------------------------------------------------- 07

wrong(toy.match_latents, "absolute cosines", lambda out, *a: (out[0], out[1].abs()))
wrong(toy.dead_latents, "the living ones", lambda out, w: ~out)
wrong(toy.shrinkage, "never above 1", lambda out, *a: out.clamp_max(1.0))
wrong(toy.rectangle, "a truth value", lambda out, x: out.bool())
wrong(
    toy.resample_simple,
    "unit directions with a negative last entry turned round",
    lambda out, sae, *a: sae.W_dec.data.copy_(sae.W_dec.data * sae.W_dec.data[..., -1:].sign()) * 0,
)
variant(
    toy.ToySAE, "no bias is added by the decoder", decode=lambda self, acts: toy.ToySAE.decode(self, acts) - self.b_dec
)
variant(toy.TopKToySAE, "the k + 1 largest", forward=lambda self, h: _top(self, h))
variant(toy.JumpReLUToySAE, "the loss without its sparsity", forward=lambda self, h: _without(self, h))


def _top(self, h):
    acts = self.pre_activations(h).relu()
    least = acts.topk(min(self.cfg.k + 1, acts.shape[-1]), -1).values[..., -1:]
    acts = acts * (acts >= least)
    out = self.decode(acts)
    loss = (h - out).pow(2).mean(-1)
    return {"L_reconstruction": loss}, loss, acts, out


def _without(self, h):
    losses, _, acts, out = toy.JumpReLUToySAE.forward(self, h)
    return losses, losses["L_reconstruction"], acts, out


# ---------------------------------------------------------------- 08

wrong(saes.get_sae_acts, "1 where active", lambda out, *a: (out > 0).float())
wrong(saes.index_with_buffer, "from right to left", lambda out, *a: out.flip(-1))
wrong(saes.logit_weights, "probabilities", lambda out, *a: out.softmax(-1))
wrong(saes.f1_scores, "at least 0.01", lambda out, *a: out.clamp_min(0.01))
wrong(
    saes.greedy_cover,
    "the scores' gains",
    lambda out, *a: (out[0], [b - a for a, b in zip([0, *out[1]], out[1], strict=False)]),
)
wrong(saes.by_document, "from the last document to the first", lambda out, *a, **k: out.flip(0))
wrong(saes.simulation_score, "squared", lambda out, *a: out**2)
wrong(sae_causes.direct_feature_attribution, "positions and heads swapped", lambda out, *a: (out[0].mT, out[1]))
wrong(sae_causes.latent_directions, "of length 1", lambda out, *a: F.normalize(out, dim=-1))
wrong(sae_causes.attribution_patching, "its size", lambda out, *a, **k: out.abs())
wrong(sae_causes.steering_hook, "against the direction", lambda out, acts, hook, d, strength=1.0: acts - strength * d)

# ---------------------------------------------------------------- 09

wrong(ioi.logits_to_ave_logit_diff, "the size", lambda out, *a, **k: out.abs())
wrong(
    ioi.residual_stack_to_logit_diff, "for each prompt", lambda out, stack, *a: out[..., None].expand(stack.shape[:-1])
)
wrong(ioi.ioi_metric, "never below 0", lambda out, *a: out.clamp_min(0))
wrong(ioi.patch_residual_component, "returns the position only", lambda out, x, hook, pos, cache: out[:, pos])
wrong(ioi.get_act_patch_resid_pre, "positions first", lambda out, *a: out.mT)
wrong(ioi.get_act_patch_heads_by_pos, "positions and heads swapped", lambda out, *a: out.mT)
wrong(circuit.attention_to_role, "the sum over prompts", lambda out, cache, query, key: out * len(query))
wrong(circuit.path_patch_to_heads, "the last position only", lambda out, *a, **k: out[:, -1:])
wrong(circuit.copying_scores, "0 or 1", lambda out, *a, **k: out.round())
wrong(circuit.run_circuit, "log-probabilities", lambda out, *a: out.log_softmax(-1))
wrong(
    circuit.find_circuit,
    "the heads taken away",
    lambda out, model, *a: ([h for h in _heads(model) if h not in out[0]], out[1]),
)


def _heads(model):
    return [(i, j) for i in range(model.cfg.n_layers) for j in range(model.cfg.n_heads)]


# ---------------------------------------------------------------- 10

fv = function_vectors
variant(fv.ICLSequence, "without the space", completion=lambda self: fv.ICLSequence.completion(self).strip())
wrong(fv.calculate_h, "of length 1", lambda out, *a, **k: (out[0], F.normalize(out[1], dim=0)))
wrong(fv.intervene_with_h, "the two the other way round", lambda out, *a: out[::-1])
wrong(fv.calculate_h_and_intervene, "means over prompts", lambda out, *a: tuple(x.mean() for x in out))
wrong(fv.mean_head_outputs, "heads first", lambda out, *a: out.transpose(0, 1))
wrong(fv.calculate_fn_vectors_and_intervene, "no effect is negative", lambda out, *a, **k: out.clamp_min(0))
wrong(fv.calculate_fn_vector, "the mean over heads", lambda out, model, data, heads: out / len(heads))
wrong(fv.intervene_with_fn_vector, "stripped", lambda out, *a, **k: tuple(x.strip() for x in out))
wrong(fv.steer, "with the prompt", lambda out, model, prompt, *a, **k: prompt + out)
wrong(
    fv.causal_effects_one_trace,
    "layers in their order, whatever is asked for",
    lambda out, model, data, layers=None, corrupted=None: (
        out if layers is None else out[torch.tensor(layers).argsort()]
    ),
)
wrong(
    fv.resumable_sweep, "the file is gone when all is done", lambda out, measure, heads, file: (file.unlink(), out)[1]
)
