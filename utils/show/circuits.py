"""Pictures of an attribution graph."""

from collections.abc import Sequence

import plotly.graph_objects as go
import torch
from jaxtyping import Int
from torch import Tensor

from utils import show
from utils.attribution import Graph, indirect_influence

WIDTHS = (0.6, 1.4, 2.6, 4.5)  # of the edges, weakest first


def plot_graph(
    graph: Graph,
    kept: Int[Tensor, " kept"],
    words: Sequence[str],
    answers: Sequence[str],
    describe=lambda layer, latent: "",
    most_edges: int = 100,
    title: str = "",
) -> go.Figure:
    """The kept nodes, layers upward and positions rightward, and the strongest edges between them.

    An edge is as wide as what it has to do with the answers: its share of its target's inputs, times the target's
    influence. Blue raises, orange lowers.

    Args:
        kept: nodes of the graph; its answers are shown always.
        words: the text's tokens.
        describe: for a latent what is said of it where the pointer rests on its node.
    """
    run, seq = graph.run, len(words)
    answer_nodes = torch.arange(len(graph.edges))[graph.nodes("answers")]
    nodes = torch.cat([kept.to(answer_nodes), answer_nodes]).unique().tolist()
    where, said, symbols = {}, {}, {}
    cells: dict[tuple[int, int], list[int]] = {}
    errors, tokens = graph.nodes("errors").start, graph.nodes("tokens").start
    for node in nodes:
        if node >= answer_nodes[0]:
            row, column, text, symbol = len(run.errors) + 1, seq - 1, answers[node - answer_nodes[0]], "star"
        elif node >= tokens:
            row, column, text, symbol = 0, node - tokens, f"token {words[node - tokens]!r}", "square"
        elif node >= errors:
            layer, column = divmod(node - errors, seq)
            row, text, symbol = layer + 1, f"error of MLP {layer} on {words[column]!r}", "diamond"
        else:
            layer, column, latent = run.latents[node].tolist()
            about = describe(layer, latent)
            row, symbol = layer + 1, "circle"
            text = f"layer {layer}, latent {latent} on {words[column]!r}: {run.acts[node]:.3g}" + f"<br>{about}" * bool(
                about
            )
        cells.setdefault((row, column), []).append(node)
        said[node], symbols[node] = text, symbol
    # A column is as wide as its fullest row.
    widths = [max([1.0, *(0.45 * len(some) for (_, at), some in cells.items() if at == i)]) for i in range(seq)]
    left = [sum(widths[:i]) for i in range(seq)]
    for (row, column), some in cells.items():
        for i, node in enumerate(some):
            where[node] = (left[column] + widths[column] * (i + 0.5) / len(some), row)
    edges = graph.without_rest
    influence = indirect_influence(edges, graph.weights) + graph.weights
    inner = edges[nodes][:, nodes]
    share = inner.abs() / edges[nodes].abs().sum(1, keepdim=True).clamp_min(1e-10) * influence[nodes][:, None]
    strongest = share.flatten().topk(min(most_edges, int((share > 0).sum())))
    figure = go.Figure()
    places = strongest.indices.tolist()
    for level, width in enumerate(WIDTHS):
        cut = [len(places) * (len(WIDTHS) - level - i) // len(WIDTHS) for i in (1, 0)]
        for positive, colour in ((True, show.COLOURS[0]), (False, show.COLOURS[1])):
            x, y = [], []
            for place in places[cut[0] : cut[1]]:
                target, source = divmod(place, len(nodes))
                if (inner[target, source] > 0) == positive:
                    for at in (where[nodes[source]], where[nodes[target]]):
                        x.append(at[0])
                        y.append(at[1])
                    x.append(None)
                    y.append(None)
            line = dict(color=colour, width=width)
            figure.add_scatter(x=x, y=y, mode="lines", line=line, opacity=0.55, hoverinfo="skip", showlegend=False)
    for symbol, name in (("circle", "latent"), ("diamond", "error"), ("square", "token"), ("star", "answer")):
        some = [node for node in nodes if symbols[node] == symbol]
        figure.add_scatter(
            name=name, x=[where[n][0] for n in some], y=[where[n][1] for n in some], text=[said[n] for n in some],
            mode="markers", marker=dict(symbol=symbol, size=11, line=dict(width=1, color="white")), hoverinfo="text",
        )  # fmt: skip
    layers = [f"layer {layer}" for layer in range(len(run.errors))]
    figure.update_yaxes(tickvals=list(range(len(layers) + 2)), ticktext=["tokens", *layers, "answer"])
    centres = [start + width / 2 for start, width in zip(left, widths, strict=True)]
    figure.update_xaxes(tickvals=centres, ticktext=[w.replace("\n", "⏎") for w in words], tickangle=-45)
    figure.update_layout(title=title, height=520, yaxis_title="", xaxis_title="position")
    return figure
