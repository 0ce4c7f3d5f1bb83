"""Pictures of what latents cause: sources of a latent, effects of latents, curves of ablation and of steering."""

from collections.abc import Sequence

import plotly.graph_objects as go

import utils.show as show


def bars(series: dict[str, Sequence[float]], names: Sequence[str], title: str, xaxis: str, yaxis: str) -> go.Figure:
    """Groups of bars side by side: one group for each name, one bar in it for each series. Names may repeat."""
    figure = go.Figure()
    repeated = len(set(names)) < len(names)  # Plotly draws bars of one name over each other
    for label, values in series.items():
        figure.add_bar(
            name=label,
            x=list(range(len(names)) if repeated else names),
            y=show.to_numpy(values).round(4),
        )
    if repeated:
        figure.update_xaxes(tickvals=list(range(len(names))), ticktext=list(names))
    figure.update_layout(title=title, xaxis_title=xaxis, yaxis_title=yaxis, barmode="group")
    return figure


def sorted_effects(series: dict[str, Sequence[float]], title: str, yaxis: str) -> go.Figure:
    """Effects from the largest to the smallest, one line for each series."""
    figure = go.Figure()
    for label, values in series.items():
        values = sorted(show.to_numpy(values).tolist(), reverse=True)
        figure.add_scatter(name=label, y=[round(v, 4) for v in values], mode="lines")
    figure.update_layout(title=title, xaxis_title="live latents, by their effect", yaxis_title=yaxis)
    return figure


def agreement(series: dict[str, tuple], title: str, xaxis: str, yaxis: str) -> go.Figure:
    """A scatter of pairs that should agree, with the line where they do.

    Args:
        series: for each label (x, y, hover texts).
    """
    figure = go.Figure()
    ends = [0.0, 0.0]
    for label, (x, y, texts) in series.items():
        x, y = show.to_numpy(x), show.to_numpy(y)
        ends = [min(ends[0], x.min(), y.min()), max(ends[1], x.max(), y.max())]
        figure.add_scatter(name=label, x=x.round(4), y=y.round(4), mode="markers", text=list(texts))
    ends = [round(float(end), 4) for end in ends]
    figure.add_scatter(name="equal", x=ends, y=ends, mode="lines", line=dict(color=show.GREY, dash="dash"))
    figure.update_layout(title=title, xaxis_title=xaxis, yaxis_title=yaxis)
    return figure


def curves(
    x: Sequence[float], series: dict[str, Sequence[float]], title: str, xaxis: str, yaxis: str, straight: bool = False
) -> go.Figure:
    """Measured curves over the same x; with `straight`, each one's tangent at the right end as a dotted line.

    Args:
        series: for each label the values; with `straight`, a pair (values, slope at the last x).
    """
    figure = go.Figure()
    for i, (label, values) in enumerate(series.items()):
        colour = show.COLOURS[i % len(show.COLOURS)]
        if straight:
            values, slope = values
            line = [float(values[-1]) + float(slope) * (at - x[-1]) for at in x]
            dotted = dict(color=colour, dash="dot")
            figure.add_scatter(x=list(x), y=[round(v, 4) for v in line], mode="lines", line=dotted, showlegend=False)
        y = show.to_numpy(values).round(4)
        figure.add_scatter(name=label, x=list(x), y=y, mode="lines+markers", line=dict(color=colour))
    figure.update_layout(title=title, xaxis_title=xaxis, yaxis_title=yaxis)
    return figure
