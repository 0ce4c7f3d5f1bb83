"""Pictures of toy models: features as arrows in the plane, WᵀW with the bias, neurons, dataset sizes side by side."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Float
from plotly.subplots import make_subplots
from torch import Tensor

from utils import show
from utils.double_descent import SizeResult
from utils.show.drawings import WIDTH, arrow, square_axes, through_training
from utils.superposition import History, compute_dimensionality, features_per_neuron


def _arrows(W: Float[Tensor, "2 feats"]) -> list[go.Scatter]:
    """One arrow per feature, its number at the end unless the feature is dropped."""
    arrows = []
    for i, (x, y) in enumerate(show.to_numpy(W).T):
        line = dict(width=2, color=show.COLOURS[i % len(show.COLOURS)])
        arrows.append(arrow(x, y, str(i) if np.hypot(x, y) > 0.3 else "", line=line, name=f"feature {i}"))
    return arrows


def plot_features_in_2d(
    W: Float[Tensor, "inst 2 feats"],
    title: str,
    subtitles: Sequence[str] | None = None,
    hidden: Float[Tensor, "inst 2 points"] | None = None,
    columns: int = 4,
) -> go.Figure:
    """A grid with one panel per instance: each feature as an arrow from the origin, data points in grey on top.

    Raises:
        ValueError: the models do not have two hidden dimensions.
    """
    if W.ndim != 3 or W.shape[1] != 2:
        raise ValueError(f"plot_features_in_2d needs W of shape [inst, 2, feats], not {list(W.shape)}")
    columns = min(columns, len(W))
    rows = -(-len(W) // columns)
    figure = make_subplots(
        rows, columns, subplot_titles=subtitles, horizontal_spacing=0.03, vertical_spacing=0.14 / rows
    )
    for i in range(len(W)):
        place = dict(row=i // columns + 1, col=i % columns + 1)
        for trace in _arrows(W[i]):
            figure.add_trace(trace, **place)
        if hidden is not None:
            x, y = show.to_numpy(hidden[i])
            marker = dict(size=3, color=show.GREY)
            points = go.Scatter(x=x, y=y, mode="markers", marker=marker, showlegend=False, name="data point")
            figure.add_trace(points, **place)
    width = min(WIDTH, 360 * columns + 60)
    figure.update_layout(title=title, width=width, height=width / columns * rows + 110)
    square_axes(figure, columns * rows)
    for row in range(1, rows + 1):
        figure.update_yaxes(title_text="hidden dimension 1", row=row, col=1)
    figure.update_xaxes(title_text="hidden dimension 0", row=rows)
    return figure


def plot_training(history: History, instance: int, title: str, frames: int = 20) -> go.Figure:
    """The features of one instance in the plane, with a slider through training."""
    return through_training(lambda k: _arrows(history.W[k, instance]), history.steps, title, frames)


def plot_gram(
    W: Float[Tensor, "inst d_hidden feats"], b: Float[Tensor, "inst feats"], title: str, subtitles: Sequence[str]
) -> go.Figure:
    """WᵀW of each instance with its bias as one more column on the right; blue above 0, red below."""
    n, feats = len(W), W.shape[-1]
    figure = make_subplots(1, n, subplot_titles=subtitles, horizontal_spacing=0.02)
    for i in range(n):
        table = np.full((feats, feats + 2), np.nan, dtype=np.float32)
        table[:, :feats] = show.to_numpy(W[i].T @ W[i])
        table[:, feats + 1] = show.to_numpy(b[i])
        figure.add_trace(go.Heatmap(z=table, coloraxis="coloraxis", name=subtitles[i]), row=1, col=i + 1)
    ticks = [*range(feats), feats + 1]
    figure.update_xaxes(tickvals=ticks, ticktext=[*map(str, range(feats)), "b"], showgrid=False, zeroline=False)
    figure.update_yaxes(autorange="reversed", showgrid=False, zeroline=False, tickvals=list(range(feats)))
    figure.update_yaxes(showticklabels=False, selector=lambda axis: axis.anchor != "x")
    figure.update_layout(
        title=title,
        width=WIDTH,
        height=WIDTH / n + 130,
        coloraxis=dict(colorscale=show.DIVERGING, cmid=0, cmin=-1, cmax=1, colorbar=dict(title="weight")),
    )
    figure.update_xaxes(title_text="feature in", col=1)
    figure.update_yaxes(title_text="feature out", col=1)
    figure.update_annotations(font_size=12)
    return figure


def plot_dimensionality(
    dimensionality: Float[Tensor, "inst feats"],
    control: Float[Tensor, "inst feats"],
    inverse_density: Float[Tensor, " inst"],
    plateaus: dict[str, float],
    title: str,
) -> go.Figure:
    """Dimensionality of every feature by sparsity, with a line at each plateau, and a histogram beside it.

    Within an instance features are sorted and spread sideways, so that equal values show as a flat run; below 0.1 they
    are left out. The histogram shows how many features have each dimensionality, beside those in `control`.
    """
    figure = make_subplots(1, 2, column_widths=[0.72, 0.28], shared_yaxes=True, horizontal_spacing=0.02)
    x, y = [], []
    # A place for each feature, seen or not: the figure's data have one shape on every machine.
    places = np.minimum(0.76 * np.arange(dimensionality.shape[1], dtype=np.float32) / 25 - 0.38, 0.38)
    for i in range(len(dimensionality)):
        values = show.to_numpy(dimensionality[i].sort(descending=True).values)
        x.append(i + places)
        y.append(np.where(values > 0.1, values, np.nan))
    marker = dict(size=4, color=show.COLOURS[0])
    dots = go.Scatter(x=np.concatenate(x), y=np.concatenate(y), mode="markers", marker=marker, name="trained")
    figure.add_trace(dots.update(showlegend=False), row=1, col=1)
    bins = dict(start=0.1, end=1.02, size=0.02)
    random = show.to_numpy(control.flatten())
    for name, values, colour in (
        ("random directions", np.where(random > 0.1, random, np.nan), show.GREY),
        ("trained", np.concatenate(y), show.COLOURS[0]),
    ):
        bars = go.Histogram(y=values, ybins=bins, marker=dict(color=colour), name=name)
        figure.add_trace(bars, row=1, col=2)
    for name, height in plateaus.items():
        figure.add_hline(y=height, line=dict(color=show.GREY, width=1, dash="dot"))
        figure.add_annotation(x=1.01, xref="paper", xanchor="left", y=height, yref="y", text=name, showarrow=False)
    figure.update_layout(title=title, width=WIDTH + 60, height=470, barmode="overlay", margin_r=130)
    figure.update_layout(legend=dict(x=0.76, y=0.02, xanchor="left"))
    figure.update_xaxes(tickvals=list(range(len(x))), ticktext=[f"{d:.3g}" for d in inverse_density.tolist()], col=1)
    figure.update_xaxes(title_text="1 / (1 - sparsity), one model each", col=1)
    figure.update_xaxes(title_text="features", col=2)
    figure.update_yaxes(title_text="dimensionality", range=[0, 1.08], col=1)
    figure.update_yaxes(range=[0, 1.08], col=2)
    return figure


def plot_neurons(W: Float[Tensor, "inst d_hidden feats"], title: str, subtitles: Sequence[str]) -> go.Figure:
    """Each neuron as a bar stacked from the sizes of its weights, sorted by how many features it serves.

    Blue: one feature; orange: several. Weights that `features_per_neuron` does not count are left out, and so is what a
    neuron serves beyond eight.
    """
    figure = make_subplots(1, len(W), subplot_titles=subtitles, horizontal_spacing=0.03, shared_yaxes=True)
    for i in range(len(W)):
        serves = show.to_numpy(features_per_neuron(W[i]))
        largest_first = -np.sort(-show.to_numpy(W[i].abs()), axis=1)
        order = np.lexsort((-largest_first[:, 0], serves))
        colours = [show.COLOURS[0] if k == 1 else show.COLOURS[1] for k in serves[order]]
        for layer in range(min(8, largest_first.shape[1])):
            height = np.where(layer < serves, largest_first[:, layer], 0)[order]
            bars = go.Bar(
                x=np.arange(len(height)),
                y=height,
                marker=dict(color=colours, line=dict(width=0.5, color="white")),
                showlegend=False,
                name=f"weight {layer}",
            )
            figure.add_trace(bars, row=1, col=i + 1)
    figure.update_layout(title=title, barmode="stack", width=WIDTH, height=360)
    figure.update_xaxes(title_text="neuron, sorted")
    figure.update_yaxes(title_text="weights, added up", col=1)
    figure.update_annotations(font_size=12)
    return figure


def plot_sizes(results: Sequence[SizeResult], picks: Sequence[int], title: str) -> go.Figure:
    """Features above, training points below, one column per dataset size in `picks`: each vector as an arrow."""
    chosen = [r for r in results if r.n_points in picks]
    figure = make_subplots(
        2,
        len(chosen),
        subplot_titles=[f"T = {r.n_points:,}" for r in chosen],
        horizontal_spacing=0.012,
        vertical_spacing=0.06,
    )
    for column, result in enumerate(chosen, start=1):
        for row, vectors in ((1, result.W), (2, result.hidden)):
            # Scaled to the longest: lengths differ a hundredfold between sizes, and only the shape matters here.
            points = show.to_numpy(vectors / vectors.norm(dim=0).max().clamp_min(1e-9))[:, :400]
            rays = np.full((3, points.shape[1], 2), np.nan, dtype=np.float32)
            rays[0], rays[1] = 0, points.T
            rays = rays.transpose(1, 0, 2).reshape(-1, 2)
            colour = show.COLOURS[0] if row == 1 else show.COLOURS[1]
            figure.add_trace(
                go.Scatter(
                    x=rays[:, 0],
                    y=rays[:, 1],
                    mode="lines+markers",
                    line=dict(width=1, color=colour),
                    marker=dict(size=3, color=colour),
                    showlegend=False,
                    name=("feature", "data point")[row - 1],
                ),
                row=row,
                col=column,
            )
    figure.update_layout(title=title, width=WIDTH + 60, height=400)
    square_axes(figure, 2 * len(chosen), limit=1.1)
    figure.update_xaxes(showticklabels=False)
    figure.update_yaxes(showticklabels=False)
    figure.update_yaxes(title_text="features", row=1, col=1)
    figure.update_yaxes(title_text="data points", row=2, col=1)
    figure.update_annotations(font_size=12)
    return figure


def plot_double_descent(results: Sequence[SizeResult], constant_loss: float, title: str) -> go.Figure:
    """Train and test loss against dataset size, and below what stands out there: features or data points.

    The lower panel shows the largest dimensionality of a feature and of a data point.
    """
    sizes = [r.n_points for r in results]
    figure = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.09, row_heights=[0.6, 0.4])
    for name, values, colour in (
        ("test loss", [r.test_loss for r in results], show.COLOURS[4]),
        ("training loss", [r.train_loss for r in results], show.COLOURS[0]),
    ):
        figure.add_trace(
            go.Scatter(
                x=sizes, y=np.array(values, dtype=np.float32), name=name, mode="lines+markers", line=dict(color=colour)
            ),
            row=1,
            col=1,
        )
    line = dict(color=show.GREY, dash="dot")
    constant = go.Scatter(x=sizes, y=[constant_loss] * len(sizes), mode="lines", line=line, name="one constant answer")
    figure.add_trace(constant, row=1, col=1)
    for name, vectors, colour in (("features", "W", show.COLOURS[0]), ("data points", "hidden", show.COLOURS[1])):
        values = [compute_dimensionality(getattr(r, vectors)).max().item() for r in results]
        figure.add_trace(
            go.Scatter(
                x=sizes,
                y=np.array(values, dtype=np.float32),
                name=f"largest among the {name}",
                mode="lines+markers",
                line=dict(color=colour, dash="dash"),
            ),
            row=2,
            col=1,
        )
    figure.update_layout(title=title, width=WIDTH, height=560)
    figure.add_vline(x=results[0].W.shape[1], line=dict(color=show.GREY, dash="dot"))
    ticks = [3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000]
    figure.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{t:,}" for t in ticks])
    figure.update_xaxes(title_text="data points in the training set (dotted: as many as features)", row=2)
    # A memorised dataset has a loss of almost 0: it leaves the panel at the bottom.
    losses = dict(type="log", range=[-1.3, 1.4], tickvals=[0.1, 0.3, 1, 3, 10], title_text="squared error per point")
    figure.update_yaxes(losses, row=1)
    figure.update_yaxes(title_text="dimensionality", range=[0, 1], row=2)
    return figure


def plot_capacity(
    capacity: Float[Tensor, "inst feats"], x: Sequence[float], title: str, xaxis: str, theory: Tensor | None = None
) -> go.Figure:
    """Capacity of each feature against something on a logarithmic axis; `theory` as thin lines beneath the dots."""
    figure = go.Figure()
    for i in range(capacity.shape[1]):
        colour = show.COLOURS[i % len(show.COLOURS)]
        if theory is not None:
            figure.add_trace(
                go.Scatter(
                    x=list(x),
                    y=show.to_numpy(theory[:, i]),
                    mode="lines",
                    showlegend=False,
                    line=dict(color=colour, width=1),
                    name=f"theory, feature {i}",
                )
            )
        figure.add_trace(
            go.Scatter(
                x=list(x),
                y=show.to_numpy(capacity[:, i]),
                name=f"feature {i}",
                mode="markers" if theory is not None else "lines+markers",
                marker=dict(color=colour, size=7),
                line=dict(color=colour),
            )
        )
    figure.update_layout(title=title, width=WIDTH, height=420, xaxis_title=xaxis, yaxis_title="capacity")
    figure.update_xaxes(type="log", tickvals=[1, 2, 3, 5, 10, 20, 30, 50, 100])
    return figure
