"""What is asked of a learner's functions in the last part of chapter 11: attribution graphs."""

from functools import cache

import torch

from utils import attribution
from utils.checks.circuits import INSIDE, _text
from utils.checks.sae_models import lm_model, lm_transcoder
from utils.checks.transcoders import _alone, chapter

exercise = chapter.exercise


# ---------------------------------------------------------------- frozen_hooks


def _use_frozen(fn, model, tokens, direction):
    """What is read at the end, and its gradient at every place that the text comes through, with the hooks."""

    def run(model):
        got = {}

        def keep(x, hook):
            got[hook.name] = x

        hooks = [*fn(model), ("hook_embed", lambda x, hook: x.detach().requires_grad_(True))]
        ends = ["hook_embed", "blocks.0.hook_mlp_out", "ln_final.hook_normalized"]
        with torch.enable_grad():
            model.run_with_hooks(tokens, fwd_hooks=[*hooks, *((end, keep) for end in ends)])
            last = got[ends[2]]
            gradients = torch.autograd.grad((last * direction).sum(), [got[end] for end in ends[:2]])
        return last.detach(), *gradients

    return _alone(run, model)


frozen_hooks = exercise(attribution.frozen_hooks, use=_use_frozen, without=INSIDE)


@frozen_hooks.cases
def _():
    for seed in range(3):
        direction = torch.randn(1, 5 + seed, lm_model().cfg.d_model, generator=torch.Generator().manual_seed(seed))
        yield lm_model(), _text(5 + seed, seed), direction


def _held(model, kinds=("pattern", "scale"), hold=lambda x: x.detach(), but=()):
    names = [name for name in model.hook_dict if name.endswith(kinds) and name not in but]
    return [(name, lambda x, hook: hold(x)) for name in names]


@frozen_hooks.mistake("the LayerNorms' scales react: hold every hook_scale too")
def _(model):
    return _held(model, ("pattern",))


@frozen_hooks.mistake("the attention patterns react: hold every hook_pattern too")
def _(model):
    return _held(model, ("scale",))


@frozen_hooks.mistake("the last LayerNorm has a scale as well, ln_final.hook_scale")
def _(model):
    return _held(model, but=("ln_final.hook_scale",))


@frozen_hooks.mistake("you held the scores: the softmax behind them is held by holding its patterns, values unchanged")
def _(model):
    return _held(model, ("scale",)) + _held(model, ("hook_attn_scores",), torch.zeros_like)


@frozen_hooks.mistake("to hold is to keep the value and stop the gradient: you changed the value")
def _(model):
    return _held(model, hold=torch.ones_like)


@frozen_hooks.mistake("you held what heads put out, so that nothing flows through attention: hold only where they look")
def _(model):
    return _held(model, ("pattern", "scale", "hook_z"))


@frozen_hooks.mistake("you held what LayerNorm gives: then nothing flows at all, hold only what it divides by")
def _(model):
    return _held(model, ("pattern", "scale", "hook_normalized"))


@frozen_hooks.right
def _(model):
    def stop(x, hook):
        return x.clone().detach()

    found = [("ln_final.hook_scale", stop)]
    for layer in range(model.cfg.n_layers):
        found += [(f"blocks.{layer}.{at}", stop) for at in ("attn.hook_pattern", "ln1.hook_scale", "ln2.hook_scale")]
    return found


# ---------------------------------------------------------------- edges_into


@cache
def _frozen_run(seed):
    chosen = [lm_transcoder(0, skip=seed == 1), lm_transcoder(1)]
    return attribution.frozen_run(lm_model(), chosen, _text(5 + seed, seed)), chosen


def _use_edges(fn, seed, layer, enter):
    return fn(*_frozen_run(seed), layer, enter)


edges_into = exercise(attribution.edges_into, use=_use_edges, without=INSIDE, atol=1e-5)


@edges_into.cases
def _():
    for seed, layer in ((0, 1), (1, 2), (2, 2), (0, 0)):
        run, _ = _frozen_run(seed)
        enter = torch.zeros(4, *run.embed.shape[1:])
        drawn = torch.randn(4, enter.shape[-1], generator=torch.Generator().manual_seed(seed))
        enter[torch.arange(4), torch.arange(4) % enter.shape[1]] = drawn
        yield seed, layer, enter


for first, where in enumerate(("into layer 0", "into layer 1")):
    edges_into.step(where)(lambda seed, layer, enter, first=first: layer == first)


def _edges(run, chosen, layer, enter, act=True, by="W_dec", error=True, rest=True, embed=None, carry=True, size=False):
    """Edges one target and one source at a time."""
    rows = []
    for target in enter:
        sources = [run.embed, *run.written[:layer]]
        with torch.enable_grad():
            made = torch.autograd.grad((run.read[layer][0] * target).sum(), sources, retain_graph=True)
        if not carry:
            at = target.abs().sum(-1) > 0
            made = [each * at[None, :, None] for each in made]
        latents, errors = torch.zeros(len(run.latents)), torch.zeros(len(run.errors), target.shape[0])
        for i, (below, pos, latent) in enumerate(run.latents.tolist()):
            if below < layer:
                t = chosen[below]
                direction = t.W_dec[latent] if by == "W_dec" else t.W_enc[:, latent]
                latents[i] = made[1 + below][0, pos] @ direction * (run.acts[i] if act else 1)
        for below in range(layer if error else 0):
            errors[below] = (made[1 + below][0] * run.errors[below]).sum(-1)
        brought = run.embed[0] if embed is None else embed
        tokens = (made[0][0] * brought).sum(-1)
        last = (target * run.rest[layer][0]).sum() if rest else torch.tensor(0.0)
        rows.append(torch.cat([latents, errors.flatten(), tokens, last[None]]))
    found = torch.stack(rows).detach()
    return found.abs() if size else found


@edges_into.mistake("the activation is missing: an edge is what was written, activation times decoder row, by gradient")
def _(*args):
    return _edges(*args, act=False)


@edges_into.mistake("a latent writes its row of W_dec; its column of W_enc is what it reads")
def _(*args):
    return _edges(*args, by="W_enc")


@edges_into.mistake("the errors' edges are missing: what transcoders miss is written to the stream as well")
def _(*args):
    return _edges(*args, error=False)


@edges_into.mistake("the last column is missing: what no node wrote, enter times run.rest[layer]")
def _(*args):
    return _edges(*args, rest=False)


@edges_into.mistake("a token brings its embedding: multiply its gradient by run.embed")
def _(run, chosen, layer, enter):
    return _edges(run, chosen, layer, enter, embed=torch.ones_like(run.embed[0]))


@edges_into.mistake("sources at other positions are missing: held patterns carry them over")
def _(*args):
    return _edges(*args, carry=False)


@edges_into.mistake("an edge has a sign: don't take its size")
def _(*args):
    return _edges(*args, size=True)


@edges_into.law("the edges into a latent and its bias must add up to what the latent is")
def _(edges_into):
    run, chosen = _frozen_run(1)
    here = run.latents[:, 0] == 1
    _, pos, latent = run.latents[here].T
    enter = torch.zeros(len(pos), *run.embed.shape[1:])
    enter[torch.arange(len(pos)), pos] = chosen[1].W_enc[:, latent].T
    made = edges_into(run, chosen, 1, enter).sum(1) + chosen[1].b_enc[latent]
    return torch.allclose(made, run.acts[here], atol=1e-4)


edges_into.right(_edges)


# ---------------------------------------------------------------- graphs by hand


def _graph(seed, n=9, n_answers=2):
    """Edges of a small graph without circles: the last nodes are answers, and the two before them have no sources."""
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randn(n, n, generator=generator).tril(-1)
    edges[torch.rand(n, n, generator=generator) < 0.3] = 0
    edges[-n_answers:, -n_answers:] = 0
    weights = torch.zeros(n)
    weights[-n_answers:] = torch.rand(n_answers, generator=generator) + 0.2
    edges[1] = 0
    return edges, weights


indirect_influence = exercise(attribution.indirect_influence)


@indirect_influence.cases
def _():
    for seed in range(4):
        yield _graph(seed, 7 + seed)


def _shared(edges, weights, size=torch.abs, axis=1, steps=50, first=False, again=False):
    size = size(edges)
    shares = size / size.abs().sum(axis, keepdim=True).clamp_min(1e-10)
    flow, total = weights, weights.clone() if first else torch.zeros_like(weights)
    for _ in range(steps):
        flow = flow @ shares
        total = flow if again else total + flow
    return total


@indirect_influence.mistake("an edge counts by its size: without it two of opposite sign cancel")
def _(edges, weights):
    return _shared(edges, weights, size=lambda e: e)


@indirect_influence.mistake("each target shares out among its sources: a row adds up to 1, not a column")
def _(edges, weights):
    return _shared(edges, weights, axis=0)


@indirect_influence.mistake("only direct edges: go on until nothing is left to share out")
def _(edges, weights):
    return _shared(edges, weights, steps=1)


@indirect_influence.mistake("what is shared out first is no influence itself: begin the sum behind the first step")
def _(edges, weights):
    return _shared(edges, weights, first=True)


@indirect_influence.mistake("edges are [target, source]: influence goes from a row to its columns")
def _(edges, weights):
    return _shared(edges.T, weights)


@indirect_influence.mistake("the rows are not shared out: divide each by its sum")
def _(edges, weights):
    size, flow, total = edges.abs(), weights, torch.zeros_like(weights)
    for _ in range(30):
        flow = flow @ size
        total = total + flow
    return total


@indirect_influence.law("with one path only, all its nodes must have the answer's whole weight")
def _(indirect_influence):
    edges = torch.diag(torch.tensor([-3.0, 0.1, 20.0, 7.0]), -1)
    weights = torch.tensor([0, 0, 0, 0, 2.0])
    return torch.allclose(indirect_influence(edges, weights), torch.tensor([2.0, 2, 2, 2, 0]))


@indirect_influence.right
def _(edges, weights):
    size = edges.abs()
    shares = torch.nan_to_num(size / size.sum(1, keepdim=True))
    return torch.linalg.solve((torch.eye(len(edges)) - shares).T, weights) - weights


graph_scores = exercise(attribution.graph_scores)


@graph_scores.cases
def _():
    for seed in range(4):
        edges, weights = _graph(seed, 8 + seed)
        kinds = torch.arange(len(edges))
        yield edges, weights, (kinds == 1) | (kinds == 3), kinds == 0


def _scored(edges, weights, errors, tokens, of=None, counted=lambda influence, w: influence + w, wrong=None, ends=None):
    size = edges.abs()
    shares = size / size.sum(1, keepdim=True).clamp_min(1e-10)
    influence = _shared(edges, weights)
    t, e = influence[tokens].sum(), influence[errors].sum()
    replaced = t / (influence.sum() if of == "all" else e if of == "ratio" else t + e)
    known = shares[:, ~errors].sum(1) if wrong == "no inputs" else 1 - shares[:, errors].sum(1)
    if wrong == "tokens":
        known = shares[:, tokens].sum(1)
    counts = counted(influence, weights)
    found = replaced.item(), ((known * counts).sum() / counts.sum()).item()
    return found[::-1] if wrong == "order" else found


@graph_scores.mistake("replacement is the tokens' share of what ends in tokens or errors, not of all influence")
def _(*args):
    return _scored(*args, of="all")


@graph_scores.mistake("replacement is a share, tokens over both: you divided by the errors alone")
def _(*args):
    return _scored(*args, of="ratio")


@graph_scores.mistake("completeness weighs each node by its influence: you took a plain mean")
def _(*args):
    return _scored(*args, counted=lambda influence, w: torch.ones_like(w))


@graph_scores.mistake("the answers count with their weights in completeness: add them to the influence")
def _(*args):
    return _scored(*args, counted=lambda influence, w: influence)


@graph_scores.mistake("a node with no inputs has none that are errors: 1 - the errors' share")
def _(*args):
    return _scored(*args, wrong="no inputs")


@graph_scores.mistake("replacement comes first, then completeness")
def _(*args):
    return _scored(*args, wrong="order")


@graph_scores.right
def _(edges, weights, errors, tokens):
    shares = torch.nan_to_num(edges.abs() / edges.abs().sum(1, keepdim=True))
    influence = torch.linalg.solve((torch.eye(len(edges)) - shares).T, weights) - weights
    known = torch.where(errors, 0.0, shares).sum(1) + (edges == 0).all(1)
    counts = influence + weights
    t, e = (influence @ kind.float() for kind in (tokens, errors))
    return float(t / (t + e)), float(counts @ known / counts.sum())


# ---------------------------------------------------------------- predicted_effects

predicted_effects = exercise(attribution.predicted_effects)


@predicted_effects.cases
def _():
    for seed in range(3):
        edges, _ = _graph(seed, 9 + seed)
        yield edges, torch.rand(5 + seed, generator=torch.Generator().manual_seed(seed)) + 0.5, edges[-1]


def _paths(edges, acts, answer, steps=40, by=None, times=True, whole=False, turned=False):
    n = len(acts)
    by = acts if by is None else by
    one = (edges[:n, :n].T if turned else edges[:n, :n]) / by
    total = flow = answer[:n] / acts
    for _ in range(steps):
        flow = flow @ one
        total = total + flow
    return total * acts if times else total


@predicted_effects.mistake("direct edges only: what a latent does through others counts too")
def _(*args):
    return _paths(*args, steps=0)


@predicted_effects.mistake("paths of two steps only: go on until nothing is left")
def _(*args):
    return _paths(*args, steps=1)


@predicted_effects.mistake("an edge over its source's activation is the derivative: divide columns, not rows")
def _(edges, acts, answer):
    return _paths(edges, acts, answer, by=acts[:, None])


@predicted_effects.mistake("the derivative is not yet the effect: times the activation")
def _(*args):
    return _paths(*args, times=False)


@predicted_effects.mistake("edges are not derivatives: divide by the source's activation before you multiply them")
def _(edges, acts, answer):
    return _paths(edges, acts, answer, by=torch.ones_like(acts))


@predicted_effects.mistake("edges are [target, source]: you went the wrong way")
def _(*args):
    return _paths(*args, turned=True)


@predicted_effects.right
def _(edges, acts, answer):
    n = len(acts)
    steps = torch.eye(n) - edges[:n, :n] / acts
    return torch.linalg.solve(steps.T, answer[:n] / acts) * acts
