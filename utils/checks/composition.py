"""What chapter 05 asks of a learner's functions on weights, composition and paths."""

import copy
from collections import Counter
from functools import partial
from types import SimpleNamespace

import einops
import torch
from transformer_lens import ActivationCache, FactoredMatrix, HookedTransformer
from transformer_lens.utilities import get_act_name

from utils import composition as com
from utils import induction as ind
from utils.checks.compare import difference
from utils.checks.induction import ROUNDING, chapter
from utils.checks.models import (
    cached,
    noise,
    random_tokens,
    real_attn,
    real_repeated,
    repeated,
    small_attn,
    small_gpt,
    tokens,
    without_head,
)
from utils.runtime import device

exercise = chapter.exercise


# ---- followers_named ----

followers_named = exercise(com.followers_named)


def _spoken(seed: int = 0, n: int = 9, batch: int = 12, seq_len: int = 31):
    """Texts in which each token has a favourite follower, and a table that knows two thirds of them."""
    favourite = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(device())
    texts = tokens(batch, seq_len, seed=seed, below=n)
    for place in range(1, seq_len, 2):
        texts[:, place] = favourite[texts[:, place - 1]]
    table = noise(n, n, seed=seed)
    table[torch.arange(n) % 3 > 0] += 9 * torch.nn.functional.one_hot(favourite, n)[torch.arange(n) % 3 > 0]
    return table, texts


@followers_named.cases
def _():
    yield *_spoken(), 20
    yield _spoken(1, n=7, batch=60, seq_len=12)
    table, texts = _spoken(2)
    texts[texts == 4] = 5  # a token that never occurs
    yield table, texts, 1
    ends = torch.tensor([[1, 0, 2], [2, 0, 1], [1, 0, 2]], device=device())  # the rows' ends would make pairs
    yield torch.tensor([[0.0, 0, 1], [0, 1, 0], [1, 0, 0]], device=device()), ends, 2
    tie = torch.tensor([[0, 1, 0, 2, 0]], device=device())  # 1 and 2 follow 0 equally often
    yield torch.tensor([[0.0, 1, 2], [1, 0, 0], [1, 0, 0]], device=device()), tie, 1


@followers_named.refused
def _():
    yield *_spoken(), 1_000


def _counted(table, texts, across=False):
    n = len(table)
    first, second = (texts.flatten()[:-1], texts.flatten()[1:]) if across else (texts[:, :-1], texts[:, 1:])
    return torch.bincount((first * n + second).flatten(), minlength=n**2).view(n, n)


def _named(table, counts, at_least, often=None, axis=1):
    often = counts.sum(1) >= at_least if often is None else often
    if not often.any():
        raise ValueError("no token is followed so often")
    best = table.argmax(axis)
    return (counts[torch.arange(len(table)), best] == counts.amax(1))[often].float().mean().item()


@followers_named.mistake("your pairs reach from one text into the next: pair within each text")
def _(table, tokens, at_least=50):
    return _named(table, _counted(table, tokens, across=True), at_least)


@followers_named.mistake("the row is the token that comes first: you took the largest entry of a column")
def _(table, tokens, at_least=50):
    return _named(table, _counted(table, tokens), at_least, axis=0)


@followers_named.mistake("you counted which token comes *before*: the pairs are exchanged")
def _(table, tokens, at_least=50):
    return _named(table, _counted(table, tokens).T, at_least)


@followers_named.mistake("all tokens had a say: leave out those that are followed less than `at_least` times")
def _(table, tokens, at_least=50):
    counts = _counted(table, tokens)
    return _named(table, counts, at_least, often=torch.ones_like(counts[0], dtype=torch.bool))


@followers_named.mistake("`at_least` times is enough: you left out tokens that are followed exactly so often")
def _(table, tokens, at_least=50):
    return _named(table, _counted(table, tokens), at_least + 1)


@followers_named.mistake("you weighed tokens by how often they occur: each counts once")
def _(table, tokens, at_least=50):
    counts = _counted(table, tokens)
    total = counts.sum(1)
    right = counts[torch.arange(len(table)), table.argmax(1)] == counts.amax(1)
    often = total >= at_least
    return ((right & often) * total).sum().item() / (often * total).sum().item()


@followers_named.mistake("where several follow equally often, each of them is right: you took the first only")
def _(table, tokens, at_least=50):
    counts = _counted(table, tokens)
    often = counts.sum(1) >= at_least
    return (table.argmax(1) == counts.argmax(1))[often].float().mean().item()


@followers_named.law("a table of the counts themselves must name every most frequent follower")
def _(followers_named):
    table, texts = _spoken(4)
    return abs(followers_named(_counted(table, texts).float(), texts, 5) - 1) < 1e-5


@followers_named.right
def _(table, tokens, at_least=50):
    after = {}
    for text in tokens.tolist():
        for a, b in zip(text, text[1:], strict=False):
            after.setdefault(a, Counter())[b] += 1
    after = {a: count for a, count in after.items() if sum(count.values()) >= at_least}
    if not after:
        raise ValueError(f"no token is followed by another {at_least} times")
    best = table.argmax(1).tolist()
    return sum(count[best[a]] == max(count.values()) for a, count in after.items()) / len(after)


# ---- full_OV_circuit ----


def factored(got, want, *args):
    """Compare matrices in factors; they may be factored otherwise, but must not be multiplied out."""
    if not isinstance(got, FactoredMatrix):
        return f"returned {type(got).__name__}, expected a FactoredMatrix: d_vocab × d_vocab numbers are too many"
    if got.A.shape[-1] > 2 * want.A.shape[-1]:
        return f"its factors are not thin: they meet in {got.A.shape[-1]} dimensions, where {want.A.shape[-1]} do"
    return difference(got.AB, want.AB)


def needing_gradients() -> HookedTransformer:
    """A copy of the small model whose weights are trained."""
    return copy.deepcopy(small_attn()).requires_grad_(True)


full_OV_circuit = exercise(com.full_OV_circuit, same=factored)


@full_OV_circuit.law("where the model's weights need gradients, the circuit carries them: no detach, no no_grad")
def _(circuit):
    return circuit(needing_gradients(), [(1, 2)]).AB.requires_grad


@full_OV_circuit.cases
def _():
    yield small_attn(), [(1, 2)]
    yield small_attn(), [(1, 0), (1, 2)]
    yield small_attn(3, 5), [(2, 1), (0, 0)]


@full_OV_circuit.refused
def _():
    for head in ((2, 0), (1, 3), (0, -1)):
        yield small_attn(), [(0, 0), head]


def sum_of(matrices):
    return FactoredMatrix(sum(matrices), torch.eye(sum(matrices).shape[1], device=device()))


@full_OV_circuit.mistake("this is the transpose: rows are the tokens attended to, so W_E stands first")
def _(model, heads):
    return com.full_OV_circuit(model, heads).T


@full_OV_circuit.mistake("you multiplied the heads' matrices: heads in one layer add up")
def _(model, heads):
    matrix = torch.eye(model.cfg.d_model, device=device())
    for head in heads:
        matrix = matrix @ model.W_V[head] @ model.W_O[head]
    return FactoredMatrix(model.W_E @ matrix, model.W_U)


@full_OV_circuit.mistake("you added W_V and W_O before multiplying, which mixes the heads: join them along d_head")
def _(model, heads):
    W_V, W_O = sum(model.W_V[h] for h in heads), sum(model.W_O[h] for h in heads)
    return FactoredMatrix(model.W_E @ W_V, W_O @ model.W_U)


@full_OV_circuit.mistake("you added the positions to what is copied: values read token embeddings only")
def _(model, heads):
    right = com.full_OV_circuit(model, heads)
    W_V = torch.cat([model.W_V[head] for head in heads], dim=1)
    return FactoredMatrix((model.W_E + model.W_pos[: len(model.W_E)]) @ W_V, right.B)


@full_OV_circuit.mistake("you left out W_E and W_U: the full circuit goes from token to token")
def _(model, heads):
    W_V = torch.cat([model.W_V[head] for head in heads], dim=1)
    return FactoredMatrix(W_V, torch.cat([model.W_O[head] for head in heads]))


@full_OV_circuit.right
def _(model, heads):
    for head in heads:
        ind.require_head(model, head)
    layers, indices = [h[0] for h in heads], [h[1] for h in heads]
    W_V = einops.rearrange(model.W_V[layers, indices], "head d_model d_head -> d_model (head d_head)")
    W_O = einops.rearrange(model.W_O[layers, indices], "head d_head d_model -> (head d_head) d_model")
    return model.W_E @ FactoredMatrix(W_V, W_O) @ model.W_U


# ---- top_1_acc ----

top_1_acc = exercise(com.top_1_acc)


def nearly_identity(n, inner, seed):
    """A factored matrix with some of its largest entries on the diagonal, more in columns than in rows."""
    A, B = noise(n, inner, seed=seed), noise(inner, n, seed=seed + 1)
    B = 0.8 * A.T + B
    B[:, 0] *= 4
    return FactoredMatrix(A, B)


@top_1_acc.cases
def _():
    yield nearly_identity(23, 5, 0), 7
    yield nearly_identity(31, 6, 3), 100
    yield com.full_OV_circuit(small_attn(), [(1, 0)]), 1


@top_1_acc.mistake("you took the largest entry of each column: rows are the tokens attended to")
def _(full_OV_circuit, batch_size=500):
    return (full_OV_circuit.AB.argmax(0) == torch.arange(full_OV_circuit.rdim)).float().mean().item()


@top_1_acc.mistake("in each batch you compared with 0, 1, 2, ... again: compare with the rows' own numbers")
def _(full_OV_circuit, batch_size=500):
    parts = full_OV_circuit.AB.split(batch_size)
    return sum((p.argmax(-1) == torch.arange(len(p))).sum().item() for p in parts) / full_OV_circuit.ldim


@top_1_acc.mistake("you counted rows and did not divide: return a fraction")
def _(full_OV_circuit, batch_size=500):
    return com.top_1_acc(full_OV_circuit) * full_OV_circuit.ldim


@top_1_acc.mistake("you took absolute values: a large negative entry means that the token is suppressed")
def _(full_OV_circuit, batch_size=500):
    return (full_OV_circuit.AB.abs().argmax(-1) == torch.arange(full_OV_circuit.ldim)).float().mean().item()


@top_1_acc.law("the identity, in factors, copies every token: 1.0, whatever the batch size")
def _(top_1_acc):
    eye = torch.eye(11, device=device())
    return all(abs(top_1_acc(FactoredMatrix(eye, eye), n) - 1) < 1e-6 for n in (1, 4, 50))


@top_1_acc.right
def _(full_OV_circuit, batch_size=500):
    n = full_OV_circuit.ldim
    hits = 0
    for start in range(0, n, batch_size):
        block = full_OV_circuit.A[start : start + batch_size] @ full_OV_circuit.B
        hits += sum(int(row.argmax()) == start + i for i, row in enumerate(block))
    return hits / n


# ---- copying_score ----

copying_score = exercise(com.copying_score)


@copying_score.cases
def _():
    yield (nearly_identity(23, 5, 0),)
    suppressing = nearly_identity(9, 4, 1)
    yield (FactoredMatrix(-suppressing.A, suppressing.B),)
    yield (com.full_OV_circuit(small_attn(), [(1, 0), (1, 1)]),)


@copying_score.refused
def _():
    yield (FactoredMatrix(noise(6, 3), noise(3, 7)),)


@copying_score.mistake("these are singular values, which are never negative: take the eigenvalues")
def _(full_OV_circuit):
    S = torch.linalg.svdvals(full_OV_circuit.AB)
    return (S.sum() / S.abs().sum()).item()


@copying_score.mistake("you took the absolute value of the sum: its sign tells copying from suppressing")
def _(full_OV_circuit):
    values = torch.linalg.eigvals(full_OV_circuit.B @ full_OV_circuit.A)
    return (values.sum().abs() / values.abs().sum()).item()


@copying_score.mistake("you divided by the number of eigenvalues: divide by the sum of their absolute values")
def _(full_OV_circuit):
    return torch.linalg.eigvals(full_OV_circuit.B @ full_OV_circuit.A).real.mean().item()


@copying_score.mistake("you counted how many eigenvalues are positive: weigh them by their size")
def _(full_OV_circuit):
    return (torch.linalg.eigvals(full_OV_circuit.B @ full_OV_circuit.A).real > 0).float().mean().item()


@copying_score.law("turning the sign of the circuit must turn the sign of the score")
def _(copying_score):
    matrix = FactoredMatrix(noise(9, 4), noise(4, 9, seed=1))
    return abs(copying_score(matrix) + copying_score(FactoredMatrix(-matrix.A, matrix.B))) < 1e-4


@copying_score.right
def _(full_OV_circuit):
    if full_OV_circuit.shape[-2] != full_OV_circuit.shape[-1]:
        raise ValueError("not square")
    values = full_OV_circuit.eigenvalues
    return (values.sum() / values.abs().sum()).real.item()


# ---- copying_by_direction ----


copying_by_direction = exercise(com.copying_by_direction)


@copying_by_direction.cases
def _():
    yield (FactoredMatrix(noise(9, 4), noise(4, 9, seed=1)),)
    yield (FactoredMatrix(noise(13, 3, seed=2), noise(3, 13, seed=3)),)
    copying = noise(11, 5, seed=4)
    yield (FactoredMatrix(copying, copying.T + 0.3 * noise(5, 11, seed=5)),)


@copying_by_direction.refused
def _():
    yield (FactoredMatrix(noise(6, 3), noise(3, 7)),)


def _directions(circuit, of=lambda U, S, V: (U * V).sum(0)):
    if circuit.ldim != circuit.rdim:
        raise ValueError("not square")
    return of(circuit.U, circuit.S, circuit.V)


DIRECTIONS = {
    "each direction is weighted by its singular value: the cosine alone": lambda U, S, V: (U * S * V).sum(0),
    "you took the mean over the tokens: U and V have length 1, so their product's sum is the cosine": lambda U, S, V: (
        U * V
    ).mean(0),
    "you summed over the directions: one number for each of them, so sum over the tokens": lambda U, S, V: (U * V).sum(
        1
    ),
    "the sign is lost: a direction that writes against what it reads is negative": lambda U, S, V: (U * V).sum(0).abs(),
    "these are squares: the cosine has a sign": lambda U, S, V: (U * V).sum(0) ** 2,
    "the smallest singular value comes first: the largest": lambda U, S, V: (U * V).sum(0).flip(0),
    "you sorted the cosines: leave them in the order of the singular values": lambda U, S, V: (
        (U * V).sum(0).sort(descending=True).values
    ),
    "this is one number for the whole matrix: one for each direction": lambda U, S, V: (U * S * V).sum() / S.sum(),
    "you compared each direction with itself: what it reads is U, what it writes V": lambda U, S, V: (U * U).sum(0),
    "these are all pairs of directions: each one's reading with its own writing": lambda U, S, V: U.T @ V,
}
for sentence, of in DIRECTIONS.items():
    copying_by_direction.mistake(sentence)(partial(_directions, of=of))


@copying_by_direction.mistake("these are the factors' columns and rows, no singular directions: take .U and .V")
def _(circuit):
    if circuit.ldim != circuit.rdim:
        raise ValueError("not square")
    return torch.nn.functional.cosine_similarity(circuit.A, circuit.B.T, dim=0)


@copying_by_direction.mistake("these are eigenvalues: the cosine of .U and .V, column by column")
def _(circuit):
    if circuit.ldim != circuit.rdim:
        raise ValueError("not square")
    return torch.linalg.eigvals(circuit.B @ circuit.A).real


@copying_by_direction.law("the cosines times the singular values must add up to the sum of the eigenvalues, the trace")
def _(copying_by_direction):
    circuit = FactoredMatrix(noise(9, 4, seed=6), noise(4, 9, seed=7))
    total = (copying_by_direction(circuit) * circuit.S).sum()
    return abs(total - (circuit.B @ circuit.A).trace()) < 1e-3


@copying_by_direction.law("with its sign turned round a matrix must have the same cosines, negative")
def _(copying_by_direction):
    circuit = FactoredMatrix(noise(9, 4, seed=6), noise(4, 9, seed=7))
    turned = copying_by_direction(FactoredMatrix(-circuit.A, circuit.B))
    return torch.allclose(turned, -copying_by_direction(circuit), atol=1e-4)


@copying_by_direction.right
def _(circuit):
    if circuit.ldim != circuit.rdim:
        raise ValueError("not square")
    U, _, Vh = torch.linalg.svd(circuit.A @ circuit.B, full_matrices=False)
    return torch.stack([U[:, i] @ Vh[i] for i in range(circuit.mdim)])


# ---- pos_by_pos_pattern ----

pos_by_pos_pattern = exercise(com.pos_by_pos_pattern)


@pos_by_pos_pattern.cases
def _():
    yield small_attn(), (0, 1)
    yield small_attn(3, 5), (2, 0)
    yield small_attn(2, 5), (1, 4)
    yield real_attn(), (0, 3)


@pos_by_pos_pattern.refused
def _():
    for head in ((2, 0), (1, 3), (-1, 0)):
        yield small_attn(), head


def position_scores(model, head):
    return model.W_pos @ model.W_Q[head] @ model.W_K[head].T @ model.W_pos.T


def causal(scores, fill=-torch.inf):
    return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), fill)


@pos_by_pos_pattern.mistake("you left out the scale: divide the scores by the square root of d_head")
def _(model, head):
    return causal(position_scores(model, head)).softmax(-1)


@pos_by_pos_pattern.mistake("you divided by the square root of d_model: the scale is that of d_head")
def _(model, head):
    return causal(position_scores(model, head) / model.cfg.d_model**0.5).softmax(-1)


@pos_by_pos_pattern.mistake("you masked after the softmax: then the rows no longer sum to 1; mask with -inf before it")
def _(model, head):
    return causal((position_scores(model, head) / model.cfg.d_head**0.5).softmax(-1), 0)


@pos_by_pos_pattern.mistake("you masked with 0, and exp(0) is 1: mask with -inf")
def _(model, head):
    return causal(position_scores(model, head) / model.cfg.d_head**0.5, 0).softmax(-1)


@pos_by_pos_pattern.mistake("you exchanged query and key: W_Q belongs to the rows")
def _(model, head):
    return causal(position_scores(model, head).T / model.cfg.d_head**0.5).softmax(-1)


@pos_by_pos_pattern.law("each row must sum to 1, with nothing above the diagonal")
def _(pos_by_pos_pattern):
    pattern = pos_by_pos_pattern(small_attn(), (0, 1))
    return (pattern.sum(-1) - 1).abs().max() < 1e-5 and pattern.triu(1).abs().max() < 1e-9


@pos_by_pos_pattern.right
def _(model, head):
    ind.require_head(model, head)
    layer, index = head
    attn = model.blocks[layer].attn
    q, k = model.W_pos @ attn.W_Q[index], model.W_pos @ attn.W_K[index]
    scores = einops.einsum(q, k, "query d_head, key d_head -> query key") / attn.attn_scale
    weights = (scores - scores.max(-1, keepdim=True).values).exp().tril()
    return weights / weights.sum(-1, keepdim=True)


# ---- decompose_qk_input ----

decompose_qk_input = exercise(com.decompose_qk_input)


def one_cache(model, tokens):
    return cached(tokens[None], model, remove_batch_dim=True)


@decompose_qk_input.cases
def _():
    yield one_cache(small_attn(), repeated(1)[0]), 1
    yield one_cache(small_attn(3, 5), random_tokens(1, 11)[0]), 2
    yield one_cache(small_attn(3, 5), random_tokens(1, 8)[0]), 1
    yield one_cache(real_attn(), real_repeated(1, 10)[0]), 1


@decompose_qk_input.refused
def _():
    yield cached(repeated(2)), 1
    yield one_cache(small_gpt(), random_tokens(1, 8)[0]), 1
    whole = one_cache(small_attn(), repeated(1)[0])
    kept = {name: value for name, value in whole.items() if name != "blocks.0.attn.hook_result"}
    yield ActivationCache(kept, small_attn(), has_batch_dim=False), 1
    fits = dict(attn_only=True, normalization_type=None, positional_embedding_type="shortformer", n_heads=3)
    for other in ({"attn_only": False}, {"normalization_type": "LN"}, {"positional_embedding_type": "standard"}):
        model = SimpleNamespace(cfg=SimpleNamespace(**fits | other))
        yield ActivationCache(whole.cache_dict, model, has_batch_dim=False), 1


def parts(cache, layer):
    heads = [cache["result", l].transpose(0, 1) for l in range(layer)]
    return cache["embed"][None], torch.cat(heads), cache["pos_embed"][None]


@decompose_qk_input.mistake("you left out the positions: with shortformer, queries and keys read them in every layer")
def _(cache, layer=1):
    embed, heads, _ = parts(cache, layer)
    return torch.cat([embed, heads])


@decompose_qk_input.mistake("the order is embedding, heads, positions: yours is another")
def _(cache, layer=1):
    embed, heads, pos = parts(cache, layer)
    return torch.cat([embed, pos, heads])


@decompose_qk_input.mistake("you took `z`, each head's output before W_O: take `result`, what it adds to the stream")
def _(cache, layer=1):
    embed, heads, pos = parts(cache, layer)
    z = torch.cat([cache["z", l].transpose(0, 1) for l in range(layer)])
    return torch.cat([embed, torch.nn.functional.pad(z, (0, heads.shape[-1] - z.shape[-1])), pos])


@decompose_qk_input.mistake("you took the layer's own heads: its queries are computed before they write")
def _(cache, layer=1):
    embed, heads, pos = parts(cache, layer)
    return torch.cat([embed, heads[: -cache.model.cfg.n_heads], cache["result", layer].transpose(0, 1), pos])


@decompose_qk_input.law("the components must add up to what queries and keys are computed from, resid_pre + pos_embed")
def _(decompose_qk_input):
    cache = one_cache(small_attn(3, 5), random_tokens(1, 11)[0])
    return difference(decompose_qk_input(cache, 2).sum(0), cache["resid_pre", 2] + cache["pos_embed"]) is None


@decompose_qk_input.right
def _(cache, layer=1):
    cfg = cache.model.cfg
    if not cfg.attn_only or cfg.normalization_type or cfg.positional_embedding_type != "shortformer":
        raise ValueError("another kind of model")
    if cache["embed"].ndim > 2 or "blocks.0.attn.hook_result" not in cache:
        raise ValueError("a batch, or no result")
    components = [cache["embed"]]
    for l in range(layer):
        components += [cache["result", l][:, h] for h in range(cache.model.cfg.n_heads)]
    return torch.stack([*components, cache["pos_embed"]])


# ---- decompose_qk ----

decompose_qk = exercise(com.decompose_qk)


@decompose_qk.cases
def _():
    yield noise(5, 13, 10), (1, 2), small_attn()
    yield noise(8, 11, 10, seed=1), (2, 0), small_attn(3, 5)


@decompose_qk.refused
def _():
    for head in ((2, 0), (0, 3)):
        yield noise(5, 13, 10), head, small_attn()
    yield noise(5, 13, 9), (1, 2), small_attn()


@decompose_qk.mistake("you exchanged the two: queries (W_Q) first, then keys (W_K)")
def _(decomposed_qk_input, ind_head_index, model):
    return com.decompose_qk(decomposed_qk_input, ind_head_index, model)[::-1]


@decompose_qk.mistake("both are queries: the keys need W_K")
def _(decomposed_qk_input, ind_head_index, model):
    return (com.decompose_qk(decomposed_qk_input, ind_head_index, model)[0],) * 2


@decompose_qk.mistake("both are keys: the queries need W_Q")
def _(decomposed_qk_input, ind_head_index, model):
    return (com.decompose_qk(decomposed_qk_input, ind_head_index, model)[1],) * 2


@decompose_qk.mistake("you took the head from layer 0: index W_Q and W_K by the pair (layer, head)")
def _(decomposed_qk_input, ind_head_index, model):
    return com.decompose_qk(decomposed_qk_input, (0, ind_head_index[1]), model)


@decompose_qk.mistake("you divided by the square root of d_head here: that belongs to the scores")
def _(decomposed_qk_input, ind_head_index, model):
    return tuple(x / model.cfg.d_head**0.5 for x in com.decompose_qk(decomposed_qk_input, ind_head_index, model))


@decompose_qk.mistake("you added the components up: keep one row for each")
def _(decomposed_qk_input, ind_head_index, model):
    return tuple(x.sum(0) for x in com.decompose_qk(decomposed_qk_input, ind_head_index, model))


@decompose_qk.law("the parts must add up to the cached queries and keys")
def _(decompose_qk):
    cache = one_cache(small_attn(), repeated(1)[0])
    got = decompose_qk(com.decompose_qk_input(cache), (1, 2), small_attn())
    return all(difference(x.sum(0), cache[name, 1][:, 2]) is None for x, name in zip(got, "qk", strict=True))


@decompose_qk.right
def _(decomposed_qk_input, ind_head_index, model):
    ind.require_head(model, ind_head_index)
    if decomposed_qk_input.shape[-1] != model.cfg.d_model:
        raise ValueError("of another model")
    layer, index = ind_head_index
    attn = model.blocks[layer].attn
    return decomposed_qk_input @ attn.W_Q[index], decomposed_qk_input @ attn.W_K[index]


# ---- decompose_attn_scores ----

decompose_attn_scores = exercise(com.decompose_attn_scores)


@decompose_attn_scores.cases
def _():
    yield noise(5, 7, 4), noise(5, 7, 4, seed=1), small_attn()
    yield noise(3, 6, 4, seed=2), noise(5, 6, 4, seed=3), small_attn(3, 5)
    yield noise(3, 6, 6, seed=2), noise(5, 6, 6, seed=3), small_gpt()


@decompose_attn_scores.refused
def _():
    yield noise(5, 7, 4), noise(5, 7, 3), small_attn()
    yield noise(5, 7, 5), noise(5, 7, 5), small_attn()


def outer(q, k):
    return torch.einsum("aqd,bkd->abqk", q, k)


@decompose_attn_scores.mistake("you left out the scale: divide by the square root of d_head")
def _(decomposed_q, decomposed_k, model):
    return outer(decomposed_q, decomposed_k)


@decompose_attn_scores.mistake("you divided by the square root of d_model: the scale is that of d_head")
def _(decomposed_q, decomposed_k, model):
    return outer(decomposed_q, decomposed_k) / model.cfg.d_model**0.5


@decompose_attn_scores.mistake("query and key components are exchanged: the first dimension is the query's component")
def _(decomposed_q, decomposed_k, model):
    return com.decompose_attn_scores(decomposed_q, decomposed_k, model).transpose(0, 1)


@decompose_attn_scores.mistake("query and key positions are exchanged: the third dimension is the query's position")
def _(decomposed_q, decomposed_k, model):
    return com.decompose_attn_scores(decomposed_q, decomposed_k, model).transpose(2, 3)


@decompose_attn_scores.mistake("you masked: only the sum is masked, each part is taken as it is")
def _(decomposed_q, decomposed_k, model):
    return causal(com.decompose_attn_scores(decomposed_q, decomposed_k, model))


@decompose_attn_scores.law("summed over both components, the parts must be the cached scores (where not masked)")
def _(decompose_attn_scores):
    model, cache = small_attn(), one_cache(small_attn(), repeated(1)[0])
    components = com.decompose_qk_input(cache)
    q, k = com.decompose_qk(components, (1, 2), model)
    scores, want = decompose_attn_scores(q, k, model).sum((0, 1)), cache["attn_scores", 1][2]
    seen = want.isfinite()
    return difference(scores[seen], want[seen]) is None


@decompose_attn_scores.right
def _(decomposed_q, decomposed_k, model):
    if {decomposed_q.shape[-1], decomposed_k.shape[-1]} != {model.cfg.d_head}:
        raise ValueError("of another model")
    q = decomposed_q[:, None] / model.blocks[0].attn.attn_scale
    return q @ decomposed_k[None].transpose(-2, -1)


# ---- attn_score_stds ----

attn_score_stds = exercise(com.attn_score_stds)


@attn_score_stds.cases
def _():
    yield (noise(3, 4, 7, 7),)
    yield (noise(2, 5, 6, 6, seed=1) + 3 * noise(2, 5, 6, 1, seed=2),)
    yield (noise(4, 4, 3, 3, seed=3),)
    yield (noise(2, 3, 2, 2, seed=4),)


@attn_score_stds.mistake("you took all queries and keys at once: what a whole row shares is lost in the softmax")
def _(decomposed_scores):
    return decomposed_scores.flatten(-2).std(-1, correction=0)


@attn_score_stds.mistake("you counted keys that the query can't see: take keys 0 to the query itself")
def _(decomposed_scores):
    return decomposed_scores[..., 1:, :].std(-1, correction=0).mean(-1)


@attn_score_stds.mistake("these are variances: take the square root, or std")
def _(decomposed_scores):
    n = decomposed_scores.shape[-1]
    rows = [decomposed_scores[..., q, : q + 1].var(-1, correction=0) for q in range(1, n)]
    return torch.stack(rows).mean(0)


@attn_score_stds.mistake("you took the spread over queries: for each query, the spread over its keys")
def _(decomposed_scores):
    n = decomposed_scores.shape[-1]
    return torch.stack([decomposed_scores[..., k:, k].std(-1, correction=0) for k in range(n - 1)]).mean(0)


@attn_score_stds.law("a number added to all scores of a query must change nothing, as in the softmax")
def _(attn_score_stds):
    scores = noise(3, 4, 7, 7)
    return difference(attn_score_stds(scores + 5 * noise(3, 4, 7, 1, seed=1)), attn_score_stds(scores)) is None


@attn_score_stds.right
def _(decomposed_scores):
    n = decomposed_scores.shape[-1]
    seen = torch.ones(n, n, device=decomposed_scores.device).tril()
    count = seen.sum(-1, keepdim=True)
    mean = (decomposed_scores * seen).sum(-1, keepdim=True) / count
    variance = (((decomposed_scores - mean) ** 2) * seen).sum(-1) / count[:, 0]
    return variance.clamp(min=0).sqrt()[..., 1:].mean(-1)


# ---- find_K_comp_full_circuit ----

find_K_comp_full_circuit = exercise(com.find_K_comp_full_circuit, same=factored)


@find_K_comp_full_circuit.law(
    "where the model's weights need gradients, the circuit carries them: no detach, no no_grad"
)
def _(circuit):
    return circuit(needing_gradients(), (0, 1), (1, 2)).AB.requires_grad


@find_K_comp_full_circuit.cases
def _():
    yield small_attn(), (0, 1), (1, 2)
    yield small_attn(3, 5), (1, 0), (2, 2)


@find_K_comp_full_circuit.refused
def _():
    yield small_attn(), (1, 0), (1, 2)
    yield small_attn(), (1, 0), (0, 2)
    yield small_attn(), (0, 3), (1, 2)
    yield small_attn(), (0, 1), (2, 0)


def k_circuit(model, prev, ind_head, inner=None, right="W_K"):
    W_OV = model.W_V[prev] @ model.W_O[prev] if inner is None else inner
    left = model.W_E @ model.W_Q[ind_head]
    return FactoredMatrix(left, (model.W_E @ W_OV @ getattr(model, right)[ind_head]).T)


@find_K_comp_full_circuit.mistake("this is the transpose: rows are the tokens at the query")
def _(model, prev_token_head_index, ind_head_index):
    return com.find_K_comp_full_circuit(model, prev_token_head_index, ind_head_index).T


@find_K_comp_full_circuit.mistake("you put the earlier head on the query's side: it feeds the keys (K-composition)")
def _(model, prev_token_head_index, ind_head_index):
    W_OV = model.W_V[prev_token_head_index] @ model.W_O[prev_token_head_index]
    left = model.W_E @ W_OV @ model.W_Q[ind_head_index]
    return FactoredMatrix(left, (model.W_E @ model.W_K[ind_head_index]).T)


@find_K_comp_full_circuit.mistake("you left out the earlier head: the key reads what its OV circuit has written")
def _(model, prev_token_head_index, ind_head_index):
    return k_circuit(model, None, ind_head_index, torch.eye(model.cfg.d_model, device=device()))


@find_K_comp_full_circuit.mistake("you used the earlier head's QK circuit: what it writes is W_V W_O, its OV circuit")
def _(model, prev_token_head_index, ind_head_index):
    W_QK = model.W_Q[prev_token_head_index] @ model.W_K[prev_token_head_index].T
    return k_circuit(model, None, ind_head_index, W_QK)


@find_K_comp_full_circuit.right
def _(model, prev_token_head_index, ind_head_index):
    for head in (prev_token_head_index, ind_head_index):
        ind.require_head(model, head)
    if prev_token_head_index[0] >= ind_head_index[0]:
        raise ValueError("in the wrong order")
    W_QK = FactoredMatrix(model.W_Q[ind_head_index], model.W_K[ind_head_index].T)
    W_OV = FactoredMatrix(model.W_V[prev_token_head_index], model.W_O[prev_token_head_index])
    return model.W_E @ W_QK @ W_OV.T @ model.W_E.T


# ---- get_comp_score ----

get_comp_score = exercise(com.get_comp_score)


@get_comp_score.cases
def _():
    yield noise(5, 7), noise(7, 4, seed=1)
    yield noise(6, 6), noise(6, 6, seed=1)
    yield 1e-6 * noise(5, 4), noise(4, 3, seed=1)


@get_comp_score.refused
def _():
    yield noise(5, 7), noise(6, 4)


@get_comp_score.mistake("you took the largest singular value: the Frobenius norm is the root of all squares' sum")
def _(W_A, W_B):
    norm = partial(torch.linalg.matrix_norm, ord=2)
    return (norm(W_A @ W_B) / norm(W_A) / norm(W_B)).item()


@get_comp_score.mistake("you divided by the sum of the norms: divide by their product")
def _(W_A, W_B):
    return ((W_A @ W_B).norm() / (W_A.norm() + W_B.norm())).item()


@get_comp_score.mistake("you did not divide by the norms: a large matrix is not a well composed one")
def _(W_A, W_B):
    return (W_A @ W_B).norm().item()


@get_comp_score.mistake("you forgot the root: these are squared norms")
def _(W_A, W_B):
    return ((W_A @ W_B).pow(2).sum() / W_A.pow(2).sum() / W_B.pow(2).sum()).item()


@get_comp_score.law("a matrix twice as large must score the same")
def _(get_comp_score):
    W_A, W_B = noise(5, 7), noise(7, 4, seed=1)
    return abs(get_comp_score(2 * W_A, W_B) - get_comp_score(W_A, W_B)) < 1e-5


@get_comp_score.right
def _(W_A, W_B):
    if W_A.shape[1] != W_B.shape[0]:
        raise ValueError("W_B does not read what W_A writes")
    return torch.linalg.svdvals((W_A / W_A.norm()) @ (W_B / W_B.norm())).pow(2).sum().sqrt().item()


# ---- get_batched_comp_scores ----

get_batched_comp_scores = exercise(com.get_batched_comp_scores)


@get_batched_comp_scores.cases
def _():
    yield FactoredMatrix(noise(5, 8, 3), noise(5, 3, 8)), FactoredMatrix(noise(4, 8, 2), noise(4, 2, 8, seed=1))
    model = small_attn()
    yield FactoredMatrix(model.W_V[0], model.W_O[0]), FactoredMatrix(model.W_K[1], model.W_Q[1].transpose(-2, -1))


def pairwise_scores(W_As, W_Bs, score):
    return torch.stack([torch.stack([torch.as_tensor(score(a, b)) for b in W_Bs.AB]) for a in W_As.AB])


@get_batched_comp_scores.mistake("this is the transpose: the first dimension counts W_As")
def _(W_As, W_Bs):
    return com.get_batched_comp_scores(W_As, W_Bs).T


@get_batched_comp_scores.mistake("you multiplied in the other order: W_A is read by W_B, so it is W_A @ W_B")
def _(W_As, W_Bs):
    return pairwise_scores(W_As, W_Bs, lambda a, b: (b @ a).norm() / a.norm() / b.norm())


@get_batched_comp_scores.mistake("you divided by the norm over the whole batch: each matrix has its own")
def _(W_As, W_Bs):
    return pairwise_scores(W_As, W_Bs, lambda a, b: (a @ b).norm()) / W_As.AB.norm() / W_Bs.AB.norm()


@get_batched_comp_scores.law("each pair must score as it does alone, in get_comp_score")
def _(get_batched_comp_scores):
    W_As = FactoredMatrix(noise(5, 8, 3), noise(5, 3, 8))
    W_Bs = FactoredMatrix(noise(4, 8, 2), noise(4, 2, 8, seed=1))
    alone = com.get_comp_score(W_As.AB[3], W_Bs.AB[1])
    return abs(get_batched_comp_scores(W_As, W_Bs)[3, 1].item() - alone) < 1e-4


@get_batched_comp_scores.right
def _(W_As, W_Bs):
    A, B = W_As.AB, W_Bs.AB
    products = einops.einsum(A, B, "a i j, b j k -> a b i k").norm(dim=(-2, -1))
    return products / A.norm(dim=(-2, -1))[:, None] / B.norm(dim=(-2, -1))


# ---- run_with_path_ablated ----


def logits_and_patterns(fn, model, *args):
    logits, cache = fn(model, *args)
    return {"logits": logits, "patterns": [cache["pattern", l] for l in range(model.cfg.n_layers)]}


run_with_path_ablated = exercise(com.run_with_path_ablated, use=logits_and_patterns, atol=ROUNDING)


@run_with_path_ablated.cases
def _():
    yield small_attn(), repeated(5), (0, 1), (1, 2), "k"
    yield small_attn(), repeated(6), (0, 2), (1, 0), "q"
    yield small_attn(3, 5), random_tokens(2, 11), (0, 0), (1, 1), "v"
    yield real_attn(), real_repeated(2, 10), (0, 5), (1, 3), "k"


@run_with_path_ablated.refused
def _():
    for sender, receiver in (((1, 0), (1, 2)), ((0, 3), (1, 2)), ((0, 1), (1, 3))):
        yield small_attn(), repeated(5), sender, receiver, "k"
    yield small_attn(), repeated(5), (0, 1), (1, 2), "z"
    yield small_attn(), random_tokens(2, 31), (0, 1), (1, 2), "k"
    yield small_gpt(), random_tokens(2, 9), (0, 1), (1, 2), "k"


def cut_path(model, tokens, sender, receiver, channel="k", all_heads=False, sign=-1.0):
    z = cached(tokens, model)["z", sender[0]]
    written = z[:, :, sender[1]] @ model.W_O[sender]
    weight = {"q": model.W_Q, "k": model.W_K, "v": model.W_V}[channel]

    def hook(x, hook):
        if all_heads:
            x += sign * einops.einsum(written, weight[receiver[0]], "b s m, h m d -> b s h d")
        else:
            x[:, :, receiver[1]] += sign * (written @ weight[receiver])

    with model.hooks(fwd_hooks=[(get_act_name(channel, receiver[0]), hook)]):
        return model.run_with_cache(tokens)


@run_with_path_ablated.mistake("you took the sender out for every reader: only the receiver must not see it")
def _(model, tokens, sender, receiver, channel="k"):
    ablate = partial(ind.head_ablation_hook, head_index_to_ablate=sender[1])
    with model.hooks(fwd_hooks=[(get_act_name("z", sender[0]), ablate)]):
        return model.run_with_cache(tokens)


@run_with_path_ablated.mistake("you cut the path to every head of the receiver's layer: edit [:, :, receiver[1]] only")
def _(model, tokens, sender, receiver, channel="k"):
    return cut_path(model, tokens, sender, receiver, channel, all_heads=True)


@run_with_path_ablated.mistake("you added what the sender writes: subtract it")
def _(model, tokens, sender, receiver, channel="k"):
    return cut_path(model, tokens, sender, receiver, channel, sign=1.0)


@run_with_path_ablated.mistake("you set all of the receiver's input to zero: take away the sender's part only")
def _(model, tokens, sender, receiver, channel="k"):
    def hook(x, hook):
        x[:, :, receiver[1]] = 0

    with model.hooks(fwd_hooks=[(get_act_name(channel, receiver[0]), hook)]):
        return model.run_with_cache(tokens)


@run_with_path_ablated.mistake("you cut the keys whatever the channel: use the one that was asked for")
def _(model, tokens, sender, receiver, channel="k"):
    return cut_path(model, tokens, sender, receiver, {"k": "q"}.get(channel, "k"))


@run_with_path_ablated.law("cutting the path from a head that writes nothing must change nothing")
def _(run_with_path_ablated):
    model, tokens = without_head(small_attn(), (0, 1)), repeated(5)
    return difference(run_with_path_ablated(model, tokens, (0, 1), (1, 2), "k")[0], model(tokens)) is None


@run_with_path_ablated.right
def _(model, tokens, sender, receiver, channel="k"):
    ind.require_tokens(model, tokens)
    ind.require_head(model, sender)
    ind.require_head(model, receiver)
    if sender[0] >= receiver[0] or channel not in ("q", "k", "v") or model.cfg.normalization_type:
        raise ValueError("there is no such path")
    result = cached(tokens, model)["result", sender[0]][:, :, sender[1]]

    def without(x, hook):
        out = x.clone()
        out[:, :, receiver[1]] = x[:, :, receiver[1]] - result @ weight
        return out

    weight = getattr(model, f"W_{channel.upper()}")[receiver]
    model.reset_hooks()
    model.add_hook(f"blocks.{receiver[0]}.attn.hook_{channel}", without)
    out = model.run_with_cache(tokens)
    model.reset_hooks()
    return out
