"""Attribution graphs: what tokens, latents and errors of a text gave to one another,
attention patterns and the scales of LayerNorm held.

Sources: "Transcoders Find Interpretable LLM Feature Circuits" (arXiv 2406.11944);
"Circuit Tracing" (Ameisen and others 2025, transformer-circuits.pub); the same of
autoencoders: "Sparse Feature Circuits" (arXiv 2403.19647).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import HookedSAETransformer
from sae_lens.saes.transcoder import Transcoder as ReleasedTranscoder
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from utils.saes import layer_of
from utils.transcoders import check_transcoder, places

__all__ = [
    "FrozenRun",
    "Graph",
    "attribution_graph",
    "frozen_run",
    "measured_effects",
    "most_influential",
    "with_only",
]


def frozen_hooks(model: HookedSAETransformer) -> list[tuple[str, Callable]]:
    """Hooks that hold every attention pattern and every LayerNorm's scale: their
    values stay what they are, and no gradient goes through them.

    Their places in the model end in `hook_pattern` and `hook_scale`; that of the last
    LayerNorm is one of them.

    Source: arXiv 2406.11944, section 4; "Circuit Tracing" (transformer-circuits.pub,
    2025), "local replacement model".
    """
    held = [name for name in model.hook_dict if name.endswith(("pattern", "scale"))]
    return [(name, lambda x, hook: x.detach()) for name in held]


@dataclass
class FrozenRun:
    """One text in a model whose MLPs are transcoders plus what these miss, patterns and
    scales held. All that is read is then linear in what was written.

    `embed` and `written[layer]` are the leaves of the way back: what tokens bring, and
    what a layer's latents, error and bias write together. `read[layer]` is what its
    transcoder reads, `read[n_layers]` what the unembedding reads. `rest` is what would
    be read if neither tokens, latents nor errors wrote anything: positions and biases.
    """

    tokens: Int[Tensor, "1 seq"]
    embed: Float[Tensor, "1 seq d_model"]
    written: list[Float[Tensor, "1 seq d_model"]]
    read: list[Float[Tensor, "1 seq d_model"]]
    rest: list[Float[Tensor, "1 seq d_model"]]
    errors: list[Float[Tensor, "seq d_model"]]
    latents: Int[Tensor, "latent 3"]  # layer, position, latent
    acts: Float[Tensor, " latent"]
    held: dict[str, Tensor]  # patterns and scales


def frozen_run(
    model: HookedSAETransformer,
    transcoders: Sequence[ReleasedTranscoder],
    tokens: Int[Tensor, "1 seq"],
) -> FrozenRun:
    """Run a text with transcoders and errors in place, patterns and scales held.

    Raises:
        ValueError: not one transcoder for each layer in their order, one that doesn't
            fit, a text longer than the context, or no active latent.
    """
    for each in transcoders:
        check_transcoder(model, each)
    if list(map(layer_of, transcoders)) != list(range(model.cfg.n_layers)):
        raise ValueError(
            f"give a transcoder for each of the {model.cfg.n_layers} layers, in order"
        )
    if tokens.shape[1] > model.cfg.n_ctx:
        raise ValueError(
            f"{tokens.shape[1]} tokens are more than the context of {model.cfg.n_ctx}: "
            "give a shorter text"
        )
    held: dict[str, Tensor] = {}
    embed, written, read, acts, errors, rest = [], [], [], [], [], []
    reads = [*(places(t)[0] for t in transcoders), "ln_final.hook_normalized"]
    writes = [places(t)[1] for t in transcoders]

    def leaf(x: Tensor, hook: HookPoint) -> Tensor:
        embed.append(x.detach().requires_grad_(True))
        return embed[0]

    def keep(x: Tensor, hook: HookPoint) -> None:
        held[hook.name] = x.detach()

    def replace(out: Tensor, hook: HookPoint) -> Tensor:
        t, x = transcoders[hook.layer()], read[-1]
        acts.append(t.encode(x)[0].detach())
        errors.append((out - t(x))[0].detach())
        written.append((out - _skipped(t, x)).detach().requires_grad_(True))
        return written[-1] + _skipped(t, x)

    hooks = [
        ("hook_embed", leaf),
        *frozen_hooks(model),
        *((name, keep) for name, _ in frozen_hooks(model)),
        *((name, lambda x, hook: read.append(x)) for name in reads),
        *((name, replace) for name in writes),
    ]
    with torch.enable_grad():
        model.run_with_hooks(tokens, fwd_hooks=hooks)

    def bias(out: Tensor, hook: HookPoint) -> Tensor:
        t = transcoders[hook.layer()]
        return t.b_dec + _skipped(t, rest[-1]) + torch.zeros_like(out)

    hooks = [
        ("hook_embed", lambda x, hook: torch.zeros_like(x)),
        *((name, lambda x, hook: held[hook.name]) for name in held),
        *((name, lambda x, hook: rest.append(x)) for name in reads),
        *((name, bias) for name in writes),
    ]
    with torch.no_grad():
        model.run_with_hooks(tokens, fwd_hooks=hooks)
    on = [each.nonzero() for each in acts]
    layers = [torch.full_like(where[:, :1], layer) for layer, where in enumerate(on)]
    latents = torch.cat([torch.cat(layers), torch.cat(on)], dim=1)
    if not len(latents):
        raise ValueError("no latent is active: give another text")
    values = torch.cat([each[w.unbind(1)] for each, w in zip(acts, on, strict=True)])
    return FrozenRun(
        tokens, embed[0], written, read, rest, errors, latents, values, held
    )


def _skipped(transcoder: ReleasedTranscoder, x: Tensor) -> Tensor | float:
    """What goes past a transcoder's latents."""
    return x @ transcoder.W_skip.T if hasattr(transcoder, "W_skip") else 0.0


def edges_into(
    run: FrozenRun,
    transcoders: Sequence[ReleasedTranscoder],
    layer: int,
    enter: Float[Tensor, "target seq d_model"],
) -> Float[Tensor, "target source"]:
    """The edges into targets that read at one place: for every source what it wrote,
    times the gradient there.

    Args:
        layer: the targets read `run.read[layer]`.
        enter: for each target the direction that it reads, at the position where it
            stands, and zeros at all others.

    Returns:
        The sources in this order: all latents as in `run.latents`, the errors layer
        after layer and in each position after position, the tokens, and one for all
        that no node wrote (`run.rest`). Edges from what stands above `layer` are 0.

    Source: "Circuit Tracing" (transformer-circuits.pub, 2025), "attribution graphs".
    """
    sources = [run.embed, *run.written[:layer]]
    gradients = torch.autograd.grad(
        run.read[layer],
        sources,
        enter[:, None],
        is_grads_batched=True,
        retain_graph=True,
    )
    gradients = [each[:, 0] for each in gradients]  # [target, seq, d_model]
    latents = enter.new_zeros(len(enter), len(run.latents))
    errors = enter.new_zeros(len(enter), len(run.errors), enter.shape[1])
    for below, gradient in enumerate(gradients[1:]):
        errors[:, below] = (gradient * run.errors[below]).sum(-1)
        for pos in range(enter.shape[1]):
            here = (run.latents[:, 0] == below) & (run.latents[:, 1] == pos)
            rows = transcoders[below].W_dec[run.latents[here, 2]]
            wrote = run.acts[here, None] * rows
            latents[:, here] = gradient[:, pos] @ wrote.T
    tokens = (gradients[0] * run.embed[0]).sum(-1)
    rest = (enter * run.rest[layer]).sum((-1, -2))
    return torch.cat([latents, errors.flatten(1), tokens, rest[:, None]], 1).detach()


@dataclass
class Graph:
    """Which node of a text gave how much to which: `edges[target, source]`.

    Nodes in this order: latents, errors, tokens, the rest, answers. Rows of errors,
    tokens and the rest are zero: nothing is said of how they came about.
    """

    run: FrozenRun
    edges: Float[Tensor, "node node"]
    n_answers: int

    def nodes(self, kind: str) -> slice:
        """Where the nodes of one kind stand: latents, errors, tokens, rest, answers."""
        seq = self.run.tokens.shape[1]
        sizes = {
            "latents": len(self.run.latents),
            "errors": len(self.run.errors) * seq,
            "tokens": seq,
            "rest": 1,
            "answers": self.n_answers,
        }
        start = 0
        for name, size in sizes.items():
            if name == kind:
                return slice(start, start + size)
            start += size
        raise ValueError(f"no nodes {kind!r}: choose one of {', '.join(sizes)}")

    def is_kind(self, kind: str) -> Bool[Tensor, " node"]:
        """True where the nodes of one kind stand."""
        found = torch.zeros(len(self.edges), dtype=torch.bool)
        found[self.nodes(kind)] = True
        return found

    @property
    def weights(self) -> Float[Tensor, " node"]:
        """One for each answer, zero for all other nodes."""
        return self.is_kind("answers").to(self.edges)

    @property
    def without_rest(self) -> Float[Tensor, "node node"]:
        """The edges without those from what no node wrote: as they are scored."""
        edges = self.edges.clone()
        edges[:, self.nodes("rest")] = 0
        return edges


def attribution_graph(
    model: HookedSAETransformer,
    transcoders: Sequence[ReleasedTranscoder],
    tokens: Int[Tensor, "1 seq"],
    answers: Float[Tensor, "answer d_model"],
    chunk_size: int = 128,
    most_bytes: float = 2e9,
) -> Graph:
    """The graph of one text, by `edges_into` for every latent and every answer.

    Args:
        answers: directions that are read after the last token, such as the difference
            of two columns of W_U.
        chunk_size: so many targets are gone back from at once.
        most_bytes: what the edges may take.

    Raises:
        ValueError: as `frozen_run`, or the edges would take too much memory.
    """
    run = frozen_run(model, transcoders, tokens)
    n_layers, seq = len(transcoders), tokens.shape[1]
    n_sources = len(run.latents) + (n_layers + 1) * seq + 1
    needed = 4 * (n_sources + len(answers)) ** 2
    if needed > most_bytes:
        raise ValueError(
            f"a graph of {seq} tokens and {len(run.latents)} latents takes "
            f"{needed / 1e9:.1f} GB: give a shorter text, or more most_bytes"
        )
    edges = torch.zeros(n_sources + len(answers), n_sources + len(answers))
    edges = edges.to(tokens.device)

    def enter(pos: Tensor, directions: Tensor) -> Tensor:
        found = directions.new_zeros(len(directions), seq, model.cfg.d_model)
        found[torch.arange(len(directions)), pos] = directions
        return found

    for layer, t in enumerate(transcoders):
        for some in (run.latents[:, 0] == layer).nonzero()[:, 0].split(chunk_size):
            _, pos, latent = run.latents[some].T
            read = enter(pos, t.W_enc[:, latent].T)
            edges[some, :n_sources] = edges_into(run, transcoders, layer, read)
            edges[some, n_sources - 1] += t.b_enc[latent]
    last = torch.full((len(answers),), seq - 1)
    found = edges_into(run, transcoders, n_layers, enter(last, answers))
    edges[n_sources:, :n_sources] = found
    return Graph(run, edges, len(answers))


def indirect_influence(
    edges: Float[Tensor, "node node"], weights: Float[Tensor, " node"]
) -> Float[Tensor, " node"]:
    """How much each node has to do with the answers, along all paths: each target's
    influence is shared out among its sources by the size of their edges, again and
    again, and each node's shares are added up.

    Args:
        edges: [target, source]; no node is its own ancestor. A target with no edges
            shares nothing out.
        weights: what is shared out first, such as one for each answer; it counts as no
            influence itself.

    Source: "Circuit Tracing" (transformer-circuits.pub, 2025), appendix on pruning.
    """
    size = edges.abs()
    shares = size / size.sum(dim=1, keepdim=True).clamp_min(1e-10)
    flow, influence = weights @ shares, torch.zeros_like(weights)
    while flow.any():
        influence = influence + flow
        flow = flow @ shares
    return influence


def graph_scores(
    edges: Float[Tensor, "node node"],
    weights: Float[Tensor, " node"],
    errors: Bool[Tensor, " node"],
    tokens: Bool[Tensor, " node"],
) -> tuple[float, float]:
    """How much of the answers a graph explains.

    Returns:
        Replacement: of the influence that ends in tokens or errors, the share that ends
        in tokens. Completeness: the share of the inputs of a node that are no errors,
        averaged over the nodes by their influence, the answers by their weights.

    Source: "Circuit Tracing" (transformer-circuits.pub, 2025), "evaluating graphs".
    """
    influence = indirect_influence(edges, weights)
    ends = influence[tokens].sum(), influence[errors].sum()
    size = edges.abs()
    shares = size / size.sum(dim=1, keepdim=True).clamp_min(1e-10)
    known, counts = 1 - shares[:, errors].sum(dim=1), influence + weights
    complete = (known * counts).sum() / counts.sum()
    return (ends[0] / sum(ends)).item(), complete.item()


def most_influential(
    influence: Float[Tensor, " node"], share: float
) -> Int[Tensor, " kept"]:
    """The fewest nodes that have this share of all influence, the strongest first."""
    ranked = influence.sort(descending=True)
    before = ranked.values.cumsum(0) - ranked.values
    return ranked.indices[before < share * influence.sum()]


def predicted_effects(
    edges: Float[Tensor, "node node"],
    acts: Float[Tensor, " latent"],
    answer: Float[Tensor, " node"],
) -> Float[Tensor, " latent"]:
    """What an answer would lose without each latent, along all paths of the graph: its
    activation, times the derivative of the answer by it.

    An edge over its source's activation is a derivative along one direct way. Along all
    ways, with D the derivatives from latent to latent and d those of the answer, it is
    d + d D + d D D + …; since no latent is its own ancestor, the sum ends.

    Args:
        edges: [target, source], the latents first, in the order of their layers.
        answer: the answer's row of the edges.
    """
    n = len(acts)
    steps = edges[:n, :n] / acts
    total = flow = answer[:n] / acts
    while flow.abs().sum() > 0:
        flow = flow @ steps
        total = total + flow
    return total * acts


@torch.no_grad()
def measured_effects(
    model: HookedSAETransformer,
    transcoders: Sequence[ReleasedTranscoder],
    graph: Graph,
    answer: Float[Tensor, " d_model"],
    latents: Int[Tensor, " chosen"],
    live: Sequence[str] = (),
    batch: int = 64,
) -> Float[Tensor, " chosen"]:
    """What an answer really loses without each of these latents, one at a time: its
    activation times its direction is taken off what its layer writes.

    Args:
        answer: the direction that is read after the last token.
        latents: their places in `graph.run.latents`.
        live: what reacts: `gates` (which latents are on; by default those of the clean
            run, whatever comes in), `mlps` (the model's own, in place of transcoders
            and errors), `patterns`, `scales`.

    Raises:
        ValueError: another word in `live`.
    """
    if unknown := set(live) - {"gates", "mlps", "patterns", "scales"}:
        raise ValueError(
            f"{unknown.pop()!r} is not one of gates, mlps, patterns, scales"
        )
    run, seq = graph.run, graph.run.tokens.shape[1]
    on = [run.acts.new_zeros(seq, t.W_dec.shape[0]) for t in transcoders]
    for layer, pos, latent in run.latents.tolist():
        on[layer][pos, latent] = 1
    kept = tuple(kind[:-1] for kind in ("patterns", "scales") if kind not in live)
    held = [name for name in run.held if kept and name.endswith(kept)]
    found = []
    for some in latents.split(batch):
        layers, positions, ids = run.latents[some].T
        read: dict[int, Tensor] = {}
        last: list[Tensor] = []

        def keep(x: Tensor, hook: HookPoint, read=read) -> None:
            read[hook.layer()] = x

        def write(out, hook, read=read, some=some, at=(layers, positions, ids)):
            layer = hook.layer()
            t, x = transcoders[layer], read[layer]
            if "mlps" not in live:
                pre = x @ t.W_enc + t.b_enc
                acts = t.encode(x) if "gates" in live else pre * on[layer]
                out = acts @ t.W_dec + t.b_dec + _skipped(t, x) + run.errors[layer]
            here = (at[0] == layer).nonzero()[:, 0]
            lost = run.acts[some[here], None] * t.W_dec[at[2][here]]
            return out.index_put((here, at[1][here]), -lost, accumulate=True)

        hooks = [
            *((n, lambda x, hook: run.held[hook.name].expand_as(x)) for n in held),
            *((places(t)[0], keep) for t in transcoders),
            *((places(t)[1], write) for t in transcoders),
            (
                "ln_final.hook_normalized",
                lambda x, hook, last=last: last.append(x[:, -1] @ answer),
            ),
        ]
        model.run_with_hooks(run.tokens.expand(len(some), -1), fwd_hooks=hooks)
        found.append(last[0])
    return run.read[-1][0, -1].detach() @ answer - torch.cat(found)


@torch.no_grad()
def with_only(
    model: HookedSAETransformer,
    transcoders: Sequence[ReleasedTranscoder],
    graph: Graph,
    kept: Int[Tensor, " kept"],
    held: bool = False,
) -> Float[Tensor, " d_vocab"]:
    """The logits after the last token where of all latents only these can be on. The
    errors are as in the clean run; patterns and scales only where `held`.
    """
    run = graph.run
    allowed = [torch.zeros(run.tokens.shape[1], t.W_dec.shape[0]) for t in transcoders]
    for layer, pos, latent in run.latents[kept].tolist():
        allowed[layer][pos, latent] = 1
    read: dict[int, Tensor] = {}

    def keep(x: Tensor, hook: HookPoint) -> None:
        read[hook.layer()] = x

    def write(out: Tensor, hook: HookPoint) -> Tensor:
        layer = hook.layer()
        t, x = transcoders[layer], read[layer]
        acts = t.encode(x) * allowed[layer].to(x)
        return acts @ t.W_dec + t.b_dec + _skipped(t, x) + run.errors[layer]

    hooks = [
        *((n, lambda x, hook: run.held[hook.name]) for n in run.held if held),
        *((places(t)[0], keep) for t in transcoders),
        *((places(t)[1], write) for t in transcoders),
    ]
    return model.run_with_hooks(run.tokens, fwd_hooks=hooks)[0, -1]
