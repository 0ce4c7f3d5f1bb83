"""Drawings that several subjects share: arrows in the plane, a slider through training, bars, curves over a sweep."""

from collections.abc import Callable, Sequence

import numpy as np
import plotly.graph_objects as go

from utils import show

# Pixels: as wide as a notebook's page.
WIDTH = 900


# ---------------------------------------------------------------- directions in the plane


def arrow(x: float, y: float, label: str = "", size: int = 7, symbol: str = "circle", **style) -> go.Scatter:
    """A line from the origin with a dot and a label at its end; `style` holds `line`, `name` and the like."""
    style = dict(mode="lines+markers+text", showlegend=False) | style
    colour = style.get("line", {}).get("color")
    return go.Scatter(
        x=np.array([0, x], dtype=np.float32),
        y=np.array([0, y], dtype=np.float32),
        text=["", label],
        textposition="bottom center" if y < -0.05 else "top center",
        marker=dict(size=[0, size], symbol=symbol, color=colour),
        **style,
    )


def square_axes(figure: go.Figure, panels: int = 1, limit: float = 1.45, ticks: Sequence[float] = (-1, 0, 1)) -> None:
    """Equal scales from -limit to limit in every panel, with few ticks."""
    figure.update_xaxes(range=[-limit, limit], tickvals=list(ticks))
    figure.update_yaxes(range=[-limit, limit], tickvals=list(ticks))
    for axis in ("x", *(f"x{i}" for i in range(2, panels + 1))):
        figure.update_yaxes(scaleanchor=axis, selector=dict(anchor=axis))
    figure.update_annotations(font_size=12)


def through_training(
    draw: Callable[[int], list[go.Scatter]], steps: Sequence[int], title: str, frames: int = 20, limit: float = 1.45
) -> go.Figure:
    """A picture of the plane with a slider through training.

    Args:
        draw: the traces at the k-th record; always as many.
        steps: the training step of each record.
    """
    picks = np.unique(np.linspace(0, len(steps) - 1, frames).astype(int))
    figure = go.Figure(draw(picks[-1]))
    figure.frames = [go.Frame(data=draw(k), name=str(steps[k])) for k in picks]
    jump = dict(mode="immediate", transition=dict(duration=0), frame=dict(duration=0, redraw=False))
    stops = [dict(method="animate", label=f.name, args=[[f.name], jump]) for f in figure.frames]
    slider = dict(active=len(stops) - 1, steps=stops, currentvalue=dict(prefix="step "), pad=dict(t=45))
    figure.update_layout(title=title, width=520, height=560, sliders=[slider])
    figure.update_layout(xaxis_title="hidden dimension 0", yaxis_title="hidden dimension 1")
    square_axes(figure, limit=limit)
    return figure


# ---------------------------------------------------------------- numbers side by side


def bars(
    series: dict[str, Sequence[float]],
    names: Sequence[str],
    title: str,
    xaxis: str,
    yaxis: str,
    intervals: dict[str, Sequence[tuple[float, float]]] | None = None,
) -> go.Figure:
    """Groups of bars side by side: one group for each name, one bar in it for each series. Names may repeat.

    Args:
        intervals: for some of the series the two ends (low, high) of each bar's interval, drawn as a thin line.
    """
    figure = go.Figure()
    repeated = len(set(names)) < len(names)  # Plotly draws bars of one name over each other
    for label, values in series.items():
        values, error = show.to_numpy(values), None
        if intervals and label in intervals:
            low, high = show.to_numpy(intervals[label]).T
            error = dict(symmetric=False, array=high - values, arrayminus=values - low)
        x = list(range(len(names)) if repeated else names)
        figure.add_bar(name=label, x=x, y=values, error_y=error)
    if repeated:
        figure.update_xaxes(tickvals=list(range(len(names))), ticktext=list(names))
    figure.update_layout(title=title, xaxis_title=xaxis, yaxis_title=yaxis, barmode="group")
    return figure


def next_tokens(probs, names: Sequence[str], title: str, kept=None) -> go.Figure:
    """The likeliest next tokens as bars.

    Args:
        probs: the probability of each token, the likeliest first.
        names: as many token strings.
        kept: for each token whether it may be drawn; the others are pale.
    """
    probs = show.to_numpy(probs)
    opacity = None if kept is None else np.where(show.to_numpy(kept), 1.0, 0.25)
    figure = go.Figure(go.Bar(x=list(range(len(probs))), y=probs, marker=dict(opacity=opacity)))
    figure.update_xaxes(tickvals=list(range(len(probs))), ticktext=[show.label(name) for name in names], tickangle=-45)
    figure.update_layout(title=title, xaxis_title="next token", yaxis_title="probability")
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
            line = show.to_numpy([float(values[-1]) + float(slope) * (at - x[-1]) for at in x])
            dotted = dict(color=colour, dash="dot")
            figure.add_scatter(x=list(x), y=line, mode="lines", line=dotted, showlegend=False)
        y = show.to_numpy(values)
        figure.add_scatter(name=label, x=list(x), y=y, mode="lines+markers", line=dict(color=colour))
    figure.update_layout(title=title, xaxis_title=xaxis, yaxis_title=yaxis)
    return figure


def agreement(series: dict[str, tuple], title: str, xaxis: str, yaxis: str) -> go.Figure:
    """Pairs that should agree, with the line where they do.

    Args:
        series: for each label (x, y, hover texts).
    """
    figure = go.Figure()
    ends = [0.0, 0.0]
    for label, (x, y, texts) in series.items():
        x, y = show.to_numpy(x), show.to_numpy(y)
        ends = [min(ends[0], x.min(), y.min()), max(ends[1], x.max(), y.max())]
        figure.add_scatter(name=label, x=x, y=y, mode="markers", text=list(texts))
    ends = show.to_numpy(ends)
    figure.add_scatter(name="equal", x=ends, y=ends, mode="lines", line=dict(color=show.GREY, dash="dash"))
    figure.update_layout(title=title, xaxis_title=xaxis, yaxis_title=yaxis)
    return figure
