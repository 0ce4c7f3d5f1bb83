"""What chapter 04 asks of a learner's functions."""

import copy
from functools import partial

import torch
from torch import nn
from transformer_lens import ActivationCache
from transformer_lens.hook_points import HookPoint as LensHookPoint
from transformer_lens.utilities import get_act_name

from utils import inspection as ins
from utils.checks.compare import difference
from utils.checks.engine import MEASURED, Chapter
from utils.checks.models import noise, random_tokens, small_gpt, tokens
from utils.runtime import device

chapter = Chapter(ins)
exercise, check, hint, compare = chapter.exercise, chapter.check, chapter.hint, chapter.compare


# ---- stack_over_layers ----

stack_over_layers = exercise(ins.stack_over_layers)


@stack_over_layers.cases
def _():
    yield small_gpt(4, 3), "attn.W_Q"
    yield small_gpt(4, 3), "mlp.W_in"
    yield small_gpt(12, 2), "attn.b_O"


@stack_over_layers.refused
def _():
    for path in ("attn.W_X", "mlq.W_in", "W_Q"):
        yield small_gpt(4, 3), path


def block_weights(model, path):
    part, name = path.split(".")
    return [getattr(getattr(block, part), name) for block in model.blocks]


@stack_over_layers.mistake("you joined the layers along a dimension that was there: torch.stack makes a new one")
def _(model, path):
    return torch.cat(block_weights(model, path))


@stack_over_layers.mistake("the layer must be the first dimension, not the last")
def _(model, path):
    return torch.stack(block_weights(model, path), dim=-1)


@stack_over_layers.mistake("this is layer 0 only: go through all model.blocks")
def _(model, path):
    return block_weights(model, path)[0]


@stack_over_layers.mistake("this is a list: stack it into one tensor")
def _(model, path):
    return [weight.flatten()[:1] for weight in block_weights(model, path)]


@stack_over_layers.law("it must equal TransformerLens's own stack, model.W_Q and model.W_out")
def _(stack_over_layers):
    model = small_gpt(4, 3)
    pairs = (("attn.W_Q", model.W_Q), ("mlp.W_out", model.W_out))
    return all(difference(stack_over_layers(model, path), want) is None for path, want in pairs)


@stack_over_layers.right
def _(model, path):
    if f"blocks.0.{path}" not in dict(model.named_parameters()):
        raise ValueError("no such weight")
    names = [f"blocks.{layer}.{path}" for layer in range(model.cfg.n_layers)]
    return torch.stack([model.get_parameter(name) for name in names])


# ---- act_name ----

act_name = exercise(ins.act_name)


@act_name.cases
def _():
    yield from (
        ("embed",),
        ("pos_embed", None),
        ("resid_pre", 3),
        ("resid_post", 0),
        ("attn_out", 2),
        ("pattern", 0),
        ("attn", 11),
        ("attn_scores", 1),
        ("key", 6),
        ("pre", 2),
        ("mlp_post", 5),
        ("k6",),
        ("post10",),
    )


def named(name, layer=None, parse=True, aliases=True, attention=ins.IN_ATTENTION, mlp=ins.IN_MLP):
    digits = name[len(name.rstrip("0123456789")) :]
    if parse and digits:
        name, layer = name.removesuffix(digits), int(digits)
    if aliases:
        name = ins.ALIASES.get(name, name)
    if layer is None:
        return f"hook_{name}"
    return f"blocks.{layer}.{'attn.' if name in attention else 'mlp.' if name in mlp else ''}hook_{name}"


@act_name.mistake("you left out the part of the block: q, k, v, z, pattern are in `attn.`, pre and post in `mlp.`")
def _(name, layer=None):
    return named(name, layer, attention=(), mlp=())


@act_name.mistake("the aliases are missing: look the name up in ALIASES first")
def _(name, layer=None):
    return named(name, layer, aliases=False)


@act_name.mistake("a name may hold its layer: k6 is k in layer 6")
def _(name, layer=None):
    return named(name, layer, parse=False)


@act_name.mistake("layer 0 is a layer: compare with `is None`, since `not 0` is true")
def _(name, layer=None):
    return f"hook_{named(name)[5:]}" if not layer and not name[-1].isdigit() else named(name, layer)


@act_name.mistake("you took only the last digit: a model may have ten layers and more")
def _(name, layer=None):
    return named(name[:-1], int(name[-1])) if name[-1].isdigit() else named(name, layer)


@act_name.right
def _(name, layer=None):
    return get_act_name(name, layer)


# ---- memory_by_kind ----

memory_by_kind = exercise(ins.memory_by_kind)


@memory_by_kind.cases
def _():
    yield (small_gpt(4, 3).run_with_cache(random_tokens(2, 13))[1],)
    yield (small_gpt(12, 2).run_with_cache(random_tokens(1, 7), names_filter=lambda n: "hook_z" in n)[1],)
    mixed = {"hook_embed": torch.zeros(2, 3), "blocks.0.hook_x": torch.zeros(4, 2, dtype=torch.float64)}
    yield (ActivationCache(mixed, small_gpt(4, 3)),)
    views = {"hook_embed": torch.zeros(9, 3)[:2], "blocks.0.hook_x": torch.zeros(1, 3).expand(5, 3)}
    yield (ActivationCache(views, small_gpt(4, 3)),)


def sizes(cache, key, size):
    out = {}
    for name, activation in cache.items():
        out[key(name)] = out.get(key(name), 0) + size(activation)
    return dict(sorted(out.items(), key=lambda item: -item[1]))


def in_bytes(activation):
    return activation.numel() * activation.element_size()


@memory_by_kind.mistake("you counted numbers: multiply by the bytes that each one takes, element_size()")
def _(cache):
    return sizes(cache, lambda name: name.split(".")[-1], lambda a: a.numel())


@memory_by_kind.mistake("you kept one layer for each kind: add the layers up")
def _(cache):
    return {name.split(".")[-1]: in_bytes(activation) for name, activation in cache.items()}


@memory_by_kind.mistake("these are full names: a kind is the part after the last dot")
def _(cache):
    return sizes(cache, lambda name: name, in_bytes)


@memory_by_kind.mistake("float64 takes 8 bytes, float16 takes 2: ask element_size() instead of writing 4")
def _(cache):
    return sizes(cache, lambda name: name.split(".")[-1], lambda a: 4 * a.numel())


@memory_by_kind.law("all kinds together must be the size of the whole cache")
def _(memory_by_kind):
    cache = small_gpt(4, 3).run_with_cache(random_tokens(2, 13))[1]
    return sum(memory_by_kind(cache).values()) == sum(map(in_bytes, cache.values()))


@memory_by_kind.law("the kind that takes most comes first")
def _(memory_by_kind):
    out = list(memory_by_kind(small_gpt(4, 3).run_with_cache(random_tokens(2, 13))[1]).values())
    return out == sorted(out, reverse=True) and len(out) > 3


@memory_by_kind.right
def _(cache):
    kinds = {name.rpartition(".")[2] for name in cache.keys()}
    total = {kind: sum(a.nbytes for n, a in cache.items() if n.rpartition(".")[2] == kind) for kind in kinds}
    return {kind: total[kind] for kind in sorted(total, key=total.get, reverse=True)}


# ---- keep_only ----


def what_is_kept(fn, model, names, layers):
    return [name for name in model.hook_dict if fn(names, layers)(name)]


keep_only = exercise(ins.keep_only, use=what_is_kept)


@keep_only.cases
def _():
    yield small_gpt(12, 2), ["pattern"], [1]
    yield small_gpt(12, 2), ["q", "resid_post"], [0, 11]
    yield small_gpt(4, 3), ["k", "pre"], [2]
    yield small_gpt(4, 3), ["k", "pre"], []


@keep_only.mistake("'blocks.1' is also the beginning of 'blocks.11': compare whole names")
def _(names, layers):
    return lambda name: any(f"blocks.{layer}" in name and name.endswith("hook_" + n) for n in names for layer in layers)


@keep_only.mistake("looking for letters inside a name finds too much: 'pre' is in 'resid_pre' too")
def _(names, layers):
    return lambda name: any(f"blocks.{layer}." in name and n in name for n in names for layer in layers)


@keep_only.mistake("you kept every layer: look at the layers that were asked for")
def _(names, layers):
    return lambda name: any(name.endswith("hook_" + n) for n in names)


@keep_only.mistake("you kept the first name only: go through all names and all layers")
def _(names, layers):
    return lambda name: name in [ins.act_name(names[0], layer) for layer in layers]


@keep_only.right
def _(names, layers):
    def kept(name):
        parts = name.split(".")
        return len(parts) > 2 and parts[0] == "blocks" and int(parts[1]) in layers and parts[-1][5:] in names

    return kept


# ---- attention_pattern ----

attention_pattern = exercise(ins.attention_pattern)


@attention_pattern.cases
def _():
    yield noise(2, 7, 3, 5), noise(2, 7, 3, 5, seed=1)
    cache = small_gpt(4, 3).run_with_cache(random_tokens(2, 11))[1]
    yield cache["q", 1], cache["k", 1]


@attention_pattern.refused
def _():
    yield noise(2, 7, 3, 5), noise(2, 6, 3, 5)
    yield noise(2, 7, 3, 5), noise(1, 7, 3, 5)


def raw_scores(q, k):
    return torch.einsum("bqhd,bkhd->bhqk", q, k)


def masked(scores, fill=-torch.inf):
    return scores.masked_fill(torch.ones_like(scores).triu(1).bool(), fill)


@attention_pattern.mistake("you left out the scale: divide by the square root of d_head")
def _(q, k):
    return masked(raw_scores(q, k)).softmax(-1)


@attention_pattern.mistake("you divided by d_head: divide by its square root")
def _(q, k):
    return masked(raw_scores(q, k) / q.shape[-1]).softmax(-1)


@attention_pattern.mistake("you left out the mask: a query must not see later keys")
def _(q, k):
    return (raw_scores(q, k) / q.shape[-1] ** 0.5).softmax(-1)


@attention_pattern.mistake("your softmax runs over the queries: each query's weights over the keys sum to 1, dim=-1")
def _(q, k):
    return masked(raw_scores(q, k) / q.shape[-1] ** 0.5).softmax(-2)


@attention_pattern.mistake("query and key are exchanged: the rows belong to the queries")
def _(q, k):
    return ins.attention_pattern(k, q)


@attention_pattern.mistake("you masked after the softmax: then the rows no longer sum to 1")
def _(q, k):
    return masked((raw_scores(q, k) / q.shape[-1] ** 0.5).softmax(-1), 0)


@attention_pattern.law("it must equal the pattern that the model itself cached")
def _(attention_pattern):
    cache = small_gpt(4, 3).run_with_cache(random_tokens(2, 11))[1]
    return difference(attention_pattern(cache["q", 2], cache["k", 2]), cache["pattern", 2]) is None


@attention_pattern.right
def _(q, k):
    if q.shape != k.shape:
        raise ValueError("queries and keys differ in shape")
    q, k = q.transpose(1, 2), k.transpose(1, 2)
    identity = torch.eye(k.shape[-2], device=q.device).expand(*k.shape[:-1], -1)
    return nn.functional.scaled_dot_product_attention(q, k, identity, is_causal=True)


# ---- change_without ----

change_without = exercise(ins.change_without, without=MEASURED)


@change_without.cases
def _():
    yield small_gpt(2, 3), random_tokens(2, 9), 0, 5
    yield small_gpt(3, 5), random_tokens(3, 8, seed=1), 2, 3
    yield small_gpt(2, 3), random_tokens(1, 6, seed=2), 1, 5


@change_without.refused
def _():
    yield small_gpt(2, 3), random_tokens(2, 9), 5, 5
    yield small_gpt(2, 3), random_tokens(2, 9), 6, 5
    yield small_gpt(2, 3), random_tokens(2, 9), -1, 5
    yield small_gpt(2, 3), random_tokens(2, 9), 0, 9


def z_of(model, tokens):
    cache = model.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_z"))[1]
    return torch.stack([cache["z", layer] for layer in range(model.cfg.n_layers)])


def without(tokens, dropped):
    return torch.cat([tokens[:, :dropped], tokens[:, dropped + 1 :]], dim=1)


def relative(new, old, over=None, dims=(1, 2)):
    return ((new - old).norm(dim=-1) / (old if over is None else over).norm(dim=-1)).mean(dims)


@change_without.mistake("behind the gap every token stands one place earlier: compare each with itself")
def _(model, tokens, dropped, start):
    if not dropped < start < tokens.shape[1]:
        raise ValueError
    whole, rest = z_of(model, tokens)[:, :, start:], z_of(model, without(tokens, dropped))[:, :, start:]
    return relative(rest, whole[:, :, : rest.shape[2]])


@change_without.mistake("you always took out the first token: `dropped` says which")
def _(model, tokens, dropped, start):
    return relative(z_of(model, tokens[:, 1:])[:, :, start - 1 :], z_of(model, tokens)[:, :, start:])


@change_without.mistake("put nothing in its place: the token is taken out, and the text is one shorter")
def _(model, tokens, dropped, start):
    other = tokens.clone()
    other[:, dropped] = 0
    return relative(z_of(model, other)[:, :, start:], z_of(model, tokens)[:, :, start:])


@change_without.mistake("the share is of z in the whole text, not of z without the token")
def _(model, tokens, dropped, start):
    new = z_of(model, without(tokens, dropped))[:, :, start - 1 :]
    return relative(new, z_of(model, tokens)[:, :, start:], over=new)


@change_without.mistake("that is a length: divide it by the length of z in the whole text")
def _(model, tokens, dropped, start):
    new, old = z_of(model, without(tokens, dropped))[:, :, start - 1 :], z_of(model, tokens)[:, :, start:]
    return (new - old).norm(dim=-1).mean((1, 2))


@change_without.mistake("you averaged z before you took its length: changes in opposite directions cancel")
def _(model, tokens, dropped, start):
    new, old = z_of(model, without(tokens, dropped))[:, :, start - 1 :], z_of(model, tokens)[:, :, start:]
    return (new.mean((1, 2)) - old.mean((1, 2))).norm(dim=-1) / old.mean((1, 2)).norm(dim=-1)


@change_without.mistake("you compared all tokens behind the gap: begin at `start`")
def _(model, tokens, dropped, start):
    return relative(z_of(model, without(tokens, dropped))[:, :, dropped:], z_of(model, tokens)[:, :, dropped + 1 :])


@change_without.law("where places don't matter and the heads move the same from every token, nothing may change")
def _(change_without):
    model = copy.deepcopy(small_gpt(2, 3))
    model.pos_embed.W_pos[:] = 0  # places don't matter
    for block in model.blocks:
        block.attn.W_V[:] = 0
    return change_without(model, random_tokens(2, 9, seed=3), 1, 4).abs().max() < 1e-4


@change_without.right
def _(model, tokens, dropped, start):
    keep = [place for place in range(tokens.shape[1]) if place != dropped]
    if dropped < 0 or dropped >= start or start >= tokens.shape[1]:
        raise ValueError("take out a token before the first that is compared")
    new, old = z_of(model, tokens[:, keep]), z_of(model, tokens)
    sizes = [
        (new[:, :, place - 1] - old[:, :, place]).pow(2).sum(-1).sqrt() / old[:, :, place].pow(2).sum(-1).sqrt()
        for place in range(start, tokens.shape[1])
    ]
    return torch.stack(sizes).mean((0, 2))


# ---- promoted_share ----

promoted_share = exercise(ins.promoted_share, without=MEASURED)


def _memories(n_tokens, neurons, d_model, d_vocab, seed=0):
    """Activations of which some know what comes next."""
    W_out, W_U = noise(neurons, d_model, seed=seed), noise(d_model, d_vocab, seed=seed + 1)
    following = tokens(n_tokens, seed=seed + 2, below=d_vocab)
    known = (W_out @ W_U)[:, following].T
    return known * 0.5 + noise(n_tokens, neurons, seed=seed + 3, scale=2.0), following, W_out, W_U


@promoted_share.cases
def _():
    yield *_memories(60, 7, 5, 23), 8, 4
    yield *_memories(41, 5, 6, 19, seed=9), 5, 1
    yield _memories(80, 4, 7, 90, seed=20)


def _shares(activations, following, W_out, W_U, n=10, k=30, largest=True, promoted=True, kind="any"):
    followed_by = following[activations.topk(n, dim=0, largest=largest).indices].T
    known = (W_out @ W_U).topk(k, dim=-1, largest=promoted).indices
    found = followed_by[:, :, None] == known[:, None, :]
    return getattr(found, kind)(dim=-1).float().mean(-1)


@promoted_share.mistake("those are the tokens on which it is least active")
def _(activations, next_tokens, W_out, W_U, n=10, k=30):
    return _shares(activations, next_tokens, W_out, W_U, n, k, largest=False)


@promoted_share.mistake("those are the tokens that it makes least likely: the promoted ones have the largest logits")
def _(activations, next_tokens, W_out, W_U, n=10, k=30):
    return _shares(activations, next_tokens, W_out, W_U, n, k, promoted=False)


@promoted_share.mistake("you took the largest absolute activations: a neuron that is below zero is not active")
def _(activations, next_tokens, W_out, W_U, n=10, k=30):
    return _shares(activations.abs(), next_tokens, W_out, W_U, n, k)


@promoted_share.mistake("that is the share of the promoted tokens that follow: asked is that of the n next tokens")
def _(activations, next_tokens, W_out, W_U, n=10, k=30):
    followed_by = next_tokens[activations.topk(n, dim=0).indices].T
    known = (W_out @ W_U).topk(k, dim=-1).indices
    return (followed_by[:, :, None] == known[:, None, :]).any(1).float().mean(-1)


@promoted_share.mistake("`next_tokens` is shifted already: entry i is what follows token i")
def _(activations, next_tokens, W_out, W_U, n=10, k=30):
    return _shares(activations, next_tokens.roll(-1), W_out, W_U, n, k)


@promoted_share.mistake("n and k are exchanged: n tokens of the text, k of the vocabulary")
def _(activations, next_tokens, W_out, W_U, n=10, k=30):
    return _shares(activations, next_tokens, W_out, W_U, k, n)


@promoted_share.mistake("that is one number for all: each neuron has its own share")
def _(activations, next_tokens, W_out, W_U, n=10, k=30):
    return _shares(activations, next_tokens, W_out, W_U, n, k).mean()


@promoted_share.law("a neuron that writes one token's direction just before that token must have a share of 1")
def _(promoted_share):
    one_each = torch.eye(6, device=device())
    following = torch.arange(6, device=device()).repeat(3)
    return promoted_share(one_each[following], following, one_each, one_each, n=3, k=1).min() > 0.999


@promoted_share.right
def _(activations, next_tokens, W_out, W_U, n=10, k=30):
    logits, out = W_out @ W_U, []
    for neuron in range(len(W_out)):
        best = set(logits[neuron].argsort(descending=True)[:k].tolist())
        places = activations[:, neuron].argsort(descending=True)[:n]
        out.append(sum(t in best for t in next_tokens[places].tolist()) / n)
    return torch.tensor(out, device=W_out.device)


# ---- top_tokens ----

top_tokens = exercise(ins.top_tokens)

WORDS = [" a", "b", " c", "\n", " a", "é", "7"]


@top_tokens.cases
def _():
    yield torch.tensor([0.5, -3.0, 2.0, 1.0, 2.5, -0.2, 0.1]), WORDS, 3
    yield noise(7, seed=3), WORDS, 5


@top_tokens.refused
def _():
    yield noise(6), WORDS, 3
    yield noise(8), WORDS, 3


@top_tokens.mistake("you took the largest absolute values: a strongly negative neuron is off, not on")
def _(activations, str_tokens, k=5):
    places = activations.abs().topk(k).indices.tolist()
    return [(str_tokens[place], activations[place].item()) for place in places]


@top_tokens.mistake("these are the lowest activations: take the highest")
def _(activations, str_tokens, k=5):
    return [(str_tokens[place], activations[place].item()) for place in activations.argsort()[:k].tolist()]


@top_tokens.mistake("the token comes first, then its activation")
def _(activations, str_tokens, k=5):
    return [pair[::-1] for pair in ins.top_tokens(activations, str_tokens, k)]


@top_tokens.mistake("you sorted upwards: the highest activation comes first")
def _(activations, str_tokens, k=5):
    return ins.top_tokens(activations, str_tokens, k)[::-1]


@top_tokens.right
def _(activations, str_tokens, k=5):
    pairs = zip(str_tokens, activations.tolist(), strict=True)
    return sorted(pairs, key=lambda pair: -pair[1])[:k]


# ---- f1_score ----

f1_score = exercise(ins.f1_score)


def flags(text):
    return torch.tensor([letter == "x" for letter in text])


@f1_score.cases
def _():
    yield flags("xx..x...."), flags("x..xx...x")
    yield flags("xxxx."), flags("x...x")
    yield flags("....."), flags("x...x")
    yield flags("xx..."), flags("..xx.")
    yield flags("..."), flags("...")


@f1_score.refused
def _():
    yield flags("xx."), flags("x")
    yield flags("x.x"), flags("xx.x")


def counted(predicted, labels):
    both = (predicted & labels).sum().item()
    return both, predicted.sum().item(), labels.sum().item()


@f1_score.mistake("this is the accuracy: with a rare label, predicting nothing already scores high")
def _(predicted, labels):
    return (predicted == labels).float().mean().item()


@f1_score.mistake("this is the precision: a neuron that fires once, rightly, would have 1")
def _(predicted, labels):
    both, n, _ = counted(predicted, labels)
    return both / max(n, 1)


@f1_score.mistake("this is the recall: a neuron that always fires would have 1")
def _(predicted, labels):
    both, _, n = counted(predicted, labels)
    return both / max(n, 1)


@f1_score.mistake("you took the mean of precision and recall: F1 is their harmonic mean")
def _(predicted, labels):
    both, n, m = counted(predicted, labels)
    return (both / max(n, 1) + both / max(m, 1)) / 2


@f1_score.mistake("where nothing is predicted you divide by zero: the score there is 0")
def _(predicted, labels):
    both, n, m = counted(predicted, labels)
    precision, recall = torch.tensor(both) / n, torch.tensor(both) / m
    return (2 * precision * recall / (precision + recall)).item()


@f1_score.law("a perfect prediction must score 1")
def _(f1_score):
    return abs(f1_score(flags("x..xx"), flags("x..xx")) - 1) < 1e-6


@f1_score.right
def _(predicted, labels):
    if len(predicted) != len(labels):
        raise ValueError("not one label for each prediction")
    both, n, m = counted(predicted, labels)
    return 2 / (n / both + m / both) if both else 0.0


# ---- best_f1 ----

best_f1 = exercise(ins.best_f1, without={"gradients": "a score, which nothing is trained on"})


@best_f1.cases
def _():
    labels = noise(23, seed=5) > 0.6
    yield noise(23, 4) + 1.5 * labels[:, None] * torch.tensor([0.0, 1.0, 2.0, -1.0], device=labels.device), labels
    yield noise(11, 3, seed=1), noise(11, seed=2) > 0
    yield noise(29, 5, seed=8).round(), noise(29, seed=9) > 0.4  # many activations are equal
    yield labels.new_tensor([[1.0], [1.0], [0.0], [0.0]], dtype=torch.float), labels.new_tensor([1, 0, 0, 0])
    yield torch.stack([torch.ones(5), torch.tensor([3.0, 3.0, 3.0, 1.0, 0.0])], 1).to(labels.device), labels[:5] | True


@best_f1.refused
def _():
    yield noise(5, 2), noise(4) > -9
    yield noise(5, 2), noise(5) > 9


def over_thresholds(activations, labels, score, thresholds=None):
    best, at = [], []
    for column in activations.T:
        tries = column.tolist() if thresholds is None else thresholds
        scores = [score(column >= threshold, labels) for threshold in tries]
        best.append(max(scores))
        at.append(tries[scores.index(max(scores))])
    return torch.tensor(best), torch.tensor(at)


@best_f1.mistake("you tried one threshold, 0: try all the activations")
def _(activations, labels):
    return over_thresholds(activations, labels, ins.f1_score, [0.0])


@best_f1.mistake("you took the threshold with the best accuracy: take the one with the best F1")
def _(activations, labels):
    return over_thresholds(activations, labels, lambda p, l: (p == l).float().mean().item())


@best_f1.mistake("you returned where the threshold stands in the order: return the threshold itself")
def _(activations, labels):
    f1, threshold = ins.best_f1(activations, labels)
    order = activations.sort(dim=0, descending=True).values
    return f1, (order == threshold).float().argmax(0).float()


@best_f1.mistake("where activations are equal no threshold stops between them: count only the last of a run")
def _(activations, labels):
    thresholds, order = activations.sort(dim=0, descending=True)
    hits, n = labels[order].cumsum(0), torch.arange(1, len(labels) + 1, device=labels.device)[:, None]
    f1, place = (2 * hits / (n + labels.sum())).max(dim=0)
    return f1, thresholds.gather(0, place[None])[0]


@best_f1.mistake("you sorted upwards: the n highest activations are the n first only in descending order")
def _(activations, labels):
    thresholds, order = activations.sort(dim=0)
    hits, n = labels[order].cumsum(0), torch.arange(1, len(labels) + 1, device=labels.device)[:, None]
    f1, place = (2 * hits / (n + labels.sum())).max(dim=0)
    return f1, thresholds.gather(0, place[None])[0]


@best_f1.law("at the threshold returned, f1_score must give the F1 returned")
def _(best_f1):
    labels, activations = noise(23, seed=5) > 0.6, torch.cat([noise(23, 2), noise(23, 2, seed=1).round()], dim=1)
    f1, threshold = best_f1(activations, labels)
    got = [ins.f1_score(activations[:, i] >= threshold[i], labels) for i in range(4)]
    return difference(torch.tensor(got), f1) is None


@best_f1.right
def _(activations, labels):
    if len(activations) != len(labels) or not labels.any():
        raise ValueError("nothing to predict")
    return over_thresholds(activations, labels, ins.f1_score)


# ---- HookPoint ----


def use_hook_point(HookPoint, kind):
    """What comes out of a hook point with some hooks on it, and what they have seen."""
    point, seen = HookPoint("here"), []

    def look(x, *, hook):
        seen.append((hook is point, x.clone()))

    def double(x, *, hook):
        seen.append(("double", x.clone()))
        return 2 * x

    def add_in_place(x, *, hook):
        x += 1

    def nothing_left(x, *, hook):
        return torch.zeros_like(x)

    hooks = {"look": look, "double": double, "add": add_in_place, "zero": nothing_left}
    for name in kind.split():
        point.reset_hooks() if name == "reset" else point.add_hook(hooks[name])
    out = point(torch.arange(6.0).reshape(2, 3) - 2)
    return {"out": out, "seen": seen}


HookPoint = exercise(ins.HookPoint, use=use_hook_point)


@HookPoint.cases
def _():
    yield ("",)
    yield ("look",)
    yield ("double look",)
    yield ("double double add",)
    yield ("zero look",)
    yield ("double reset look",)


def wrong_point(forward, reset=None):
    """The right class with another `forward` (or `reset_hooks`), as a class of the same name."""
    body = {"forward": forward or ins.HookPoint.forward}
    if reset:
        body["reset_hooks"] = reset
    return type("HookPoint", (ins.HookPoint,), body)


def always_takes_the_result(self, x):
    for hook_fn in self.hook_fns:
        x = hook_fn(x, hook=self)
    return x


def never_takes_the_result(self, x):
    for hook_fn in self.hook_fns:
        hook_fn(x, hook=self)
    return x


def every_hook_gets_the_first_input(self, x):
    out = x
    for hook_fn in self.hook_fns:
        returned = hook_fn(x, hook=self)
        out = out if returned is None else returned
    return out


def takes_true_results_only(self, x):
    for hook_fn in self.hook_fns:
        returned = hook_fn(x, hook=self)
        x = returned if returned is not None and returned.any() else x
    return x


HookPoint.mistake("a hook that returns None leaves x as it is: you passed the None on")(
    wrong_point(always_takes_the_result)
)
HookPoint.mistake("what a hook returns takes the place of x: you threw it away")(wrong_point(never_takes_the_result))
HookPoint.mistake("each hook gets what the one before made of x: you gave all of them the first x")(
    wrong_point(every_hook_gets_the_first_input)
)
HookPoint.mistake("a tensor of zeros is a result too: test `is None`")(wrong_point(takes_true_results_only))
HookPoint.mistake("reset_hooks must remove all functions: some are still called")(
    wrong_point(None, reset=lambda self: None)
)


@HookPoint.right
class _:
    """Not an `nn.Module`: the hooks live in a tuple."""

    def __init__(self, name=""):
        self.name, self.all = name, ()

    def add_hook(self, hook_fn):
        self.all = (*self.all, hook_fn)

    def reset_hooks(self):
        self.all = ()

    def __call__(self, x):
        for hook_fn in self.all:
            if (new := hook_fn(x, hook=self)) is not None:
                x = new
        return x


# ---- run_with_hooks ----


def doubled(x, hook):
    return 2 * x


def everywhere(name):
    return True


def squared(x, hook):
    return x * x


def plus_one(x, hook):
    x += 1


def broken(x, hook):
    raise ZeroDivisionError


def tiny():
    return ins.TinyMLP(4, 7, 3).requires_grad_(False).to(device())


def hooked_run(fn, x, fwd_hooks):
    """The result with hooks, and after it the result without: nothing may be left behind."""
    model = tiny()
    try:
        out = fn(model, x.clone(), fwd_hooks)
    except ZeroDivisionError:
        out = "the hook's own error came through"
    return {"with hooks": out, "without, afterwards": model(x)}


run_with_hooks = exercise(ins.run_with_hooks, use=hooked_run)


@run_with_hooks.cases
def _():
    x = noise(5, 4)
    yield x, [("hook_post", doubled)]
    yield x, [("hook_pre", doubled), ("hook_post", plus_one)]
    yield x, [(is_hidden, doubled)]
    yield x, [(is_hidden, squared)]
    yield x, [(is_hidden, plus_one)]
    yield x, [(everywhere, doubled)]
    yield x, []
    yield x, [("hook_post", doubled), ("hook_pre", broken)]
    yield x, [("hook_nowhere", doubled)]
    yield x, [("hook_p", doubled)]  # a part of two names


def is_hidden(name):
    return name in ("hook_pre", "hook_post")


def add_all(model, fwd_hooks, limit=None):
    for where, hook_fn in fwd_hooks:
        names = [name for name in model.hook_dict if (where(name) if callable(where) else name == where)]
        if not names:
            raise ValueError(where)
        for name in names[:limit]:
            model.hook_dict[name].add_hook(hook_fn)


def reset_all(model):
    for point in model.hook_dict.values():
        point.reset_hooks()


@run_with_hooks.mistake("the hooks are still there afterwards: remove them when the run is over")
def _(model, x, fwd_hooks):
    add_all(model, fwd_hooks)
    return model(x)


@run_with_hooks.mistake("after a hook has failed the hooks are still there: use try and finally")
def _(model, x, fwd_hooks):
    add_all(model, fwd_hooks)
    out = model(x)
    reset_all(model)
    return out


@run_with_hooks.mistake("a filter may fit several hook points: add the hook to all of them")
def _(model, x, fwd_hooks):
    try:
        add_all(model, fwd_hooks, limit=1)
        return model(x)
    finally:
        reset_all(model)


@run_with_hooks.mistake("a name that fits nothing must not pass in silence: raise a ValueError")
def _(model, x, fwd_hooks):
    known = [(w, f) for w, f in fwd_hooks if callable(w) or w in model.hook_dict]
    return ins.run_with_hooks(model, x, known)


@run_with_hooks.mistake("you removed the hooks before the run: remove them after it")
def _(model, x, fwd_hooks):
    add_all(model, fwd_hooks)
    reset_all(model)
    return model(x)


@run_with_hooks.right
def _(model, x, fwd_hooks):
    pairs = []
    for where, hook_fn in fwd_hooks:
        fits = where if callable(where) else where.__eq__
        pairs.append([(model.hook_dict[n], hook_fn) for n in model.hook_dict if fits(n)])
        if not pairs[-1]:
            raise ValueError(where)
    try:
        for point, hook_fn in sum(pairs, []):
            point.add_hook(hook_fn)
        out = model(x)
    except BaseException:
        reset_all(model)
        raise
    reset_all(model)
    return out


# ---- pattern_hooks ----


def names_called(fn, model):
    """The hook points at which the hook is called in a run of TransformerLens."""
    called = []

    def note(x, hook):
        called.append(hook.name)

    model.run_with_hooks(random_tokens(1, 5), fwd_hooks=fn(note))
    return called


pattern_hooks = exercise(ins.pattern_hooks, use=names_called)


@pattern_hooks.cases
def _():
    yield (small_gpt(4, 3),)
    yield (small_gpt(12, 2),)


@pattern_hooks.mistake("a list with two things is no list of pairs: write [(filter, hook_fn)], the comma inside")
def _(hook_fn):
    return [(lambda name: name.endswith("pattern")), hook_fn]


@pattern_hooks.mistake("you hooked one layer: a filter that fits the name's end takes all of them")
def _(hook_fn):
    return [("blocks.0.attn.hook_pattern", hook_fn)]


@pattern_hooks.mistake("your filter fits nothing, and TransformerLens says nothing then: names end in `hook_pattern`")
def _(hook_fn):
    return [(lambda name: name == "pattern", hook_fn)]


@pattern_hooks.mistake("your filter fits more than patterns: everything in `attn` is too much")
def _(hook_fn):
    return [(lambda name: ".attn." in name, hook_fn)]


@pattern_hooks.right
def _(hook_fn):
    return [(lambda name: "attn.hook_pattern" in name, hook_fn)]


# ---- bind_head ----


def zero_head(z, hook, head):
    z[:, :, head] = 0.0


def double_head(z, hook, head):
    return torch.cat([z[:, :, :head], 2 * z[:, :, head : head + 1], z[:, :, head + 1 :]], dim=2)


def after_binding(fn, z, head, hook_fn=zero_head):
    """The activation after TransformerLens has called the bound hook, or what Python says against the call."""
    point = LensHookPoint()
    point.name = "blocks.1.attn.hook_z"
    try:
        bound = fn(hook_fn, head)
        point.add_hook(bound)
        return point(z)
    except TypeError as error:
        return "TypeError: " + str(error).rpartition("() ")[2]


bind_head = exercise(ins.bind_head, use=after_binding)


@bind_head.cases
def _():
    yield noise(2, 7, 3, 5), 1
    yield noise(2, 7, 4, 5), 0
    yield noise(2, 7, 3, 5), 1, double_head


@bind_head.mistake("partial(hook_fn, head) fills the first place, the activation's: bind by keyword, head=head")
def _(hook_fn, head):
    return partial(hook_fn, head)


@bind_head.mistake("you called the hook now: return a function that will be called later")
def _(hook_fn, head):
    return hook_fn(head=head)


@bind_head.mistake("your function takes the hook under another name: TransformerLens passes it as hook=")
def _(hook_fn, head):
    return lambda z, point: hook_fn(z, point, head)


@bind_head.mistake("nothing was bound: the head has no value when the hook is called")
def _(hook_fn, head):
    return hook_fn


@bind_head.right
def _(hook_fn, head):
    return lambda z, hook: hook_fn(z, hook, head)


# ---- scale_head_hook ----


def scaled(fn, z, head, factor):
    """What the model goes on with."""
    returned = fn(z, hook=None, head=head, factor=factor)
    return z if returned is None else returned


scale_head_hook = exercise(ins.scale_head_hook, use=scaled, in_place={"z": "a hook may edit it"})


@scale_head_hook.cases
def _():
    yield noise(2, 7, 3, 5), 1, 0.5
    yield noise(1, 4, 3, 5, seed=1), 2, -2.0


@scale_head_hook.mistake("you returned the head alone: a hook must return the whole activation, in its shape")
def _(z, hook, head, factor):
    return z[:, :, head] * factor


@scale_head_hook.mistake(
    "nothing has changed: `x = x * factor` makes a new tensor; write into z, or return the new one"
)
def _(z, hook, head, factor):
    part = z[:, :, head]
    part = part * factor  # noqa: F841


@scale_head_hook.mistake("you scaled every head: scale [:, :, head] only")
def _(z, hook, head, factor):
    return z * factor


@scale_head_hook.mistake("you scaled a position: the dimensions are batch, seq, head, so [:, :, head]")
def _(z, hook, head, factor):
    z[:, head] *= factor


@scale_head_hook.law("a factor of 1 must change nothing")
def _(scale_head_hook):
    z = noise(2, 7, 3, 5)
    return torch.equal(scaled(scale_head_hook, z.clone(), 1, 1.0), z)


@scale_head_hook.right
def _(z, hook, head, factor):
    z[:, :, head] = z[:, :, head] * factor


# ---- gradient_cache ----

gradient_cache = exercise(ins.gradient_cache)


def is_z(name):
    return name.endswith("hook_z")


def fits_none(name):
    return False


def of_embed(name):
    return name in ("hook_embed", "blocks.1.hook_mlp_out")


def in_layer_2(name):
    return name.startswith("blocks.2.") and name.endswith(("resid_pre", "hook_post"))


@gradient_cache.cases
def _():
    yield small_gpt(4, 3), random_tokens(2, 11), is_z
    yield small_gpt(4, 3), random_tokens(5, 7), in_layer_2
    yield small_gpt(4, 3), random_tokens(1, 6), of_embed


@gradient_cache.refused
def _():
    yield small_gpt(4, 3), random_tokens(2, 11), fits_none


def through(model, tokens, names_filter, scale=1.0, what="gradient"):
    """Gradients (or activations) by retain_grad on a forward hook."""
    kept = {}

    def keep(x, hook):
        if hook.name == "hook_embed":
            x = x.detach().requires_grad_(True)
        if names_filter(hook.name):
            x.retain_grad()
            kept[hook.name] = x
        return x

    with model.hooks(fwd_hooks=[(lambda name: name == "hook_embed" or names_filter(name), keep)]):
        (scale * model(tokens, return_type="loss")).backward()
    return {name: x.grad if what == "gradient" else x.detach() for name, x in kept.items()}


@gradient_cache.mistake("these are the activations: a backward hook gets their gradients")
def _(model, tokens, names_filter):
    return through(model, tokens, names_filter, what="activation")


@gradient_cache.mistake("you took the gradient of the summed loss: the mean is asked for, return_type='loss'")
def _(model, tokens, names_filter):
    return through(model, tokens, names_filter, scale=tokens[:, 1:].numel())


@gradient_cache.mistake("you kept one gradient: keep them by name, hook.name")
def _(model, tokens, names_filter):
    name, gradient = next(iter(through(model, tokens, names_filter).items()))
    return {name: gradient}


@gradient_cache.mistake("you forgot .backward(): without it no backward hook is called")
def _(model, tokens, names_filter):
    return {}


@gradient_cache.law("a small step along the gradient must change the loss by the step's length times the gradient's")
def _(gradient_cache):
    model, tokens = small_gpt(4, 3), random_tokens(2, 11)
    gradient = gradient_cache(model, tokens, is_z)["blocks.3.attn.hook_z"]
    step = 1e-2 * gradient / gradient.norm()

    def move(z, hook):
        return z + step

    with torch.no_grad():
        there = model.run_with_hooks(tokens, return_type="loss", fwd_hooks=[("blocks.3.attn.hook_z", move)])
        change = (there - model(tokens, return_type="loss")).item()
    return abs(change / (1e-2 * gradient.norm().item()) - 1) < 0.1


@gradient_cache.right
def _(model, tokens, names_filter):
    if not torch.is_grad_enabled() or not any(names_filter(name) for name in model.hook_dict):
        raise ValueError("there are no gradients")
    return through(model, tokens, names_filter)
