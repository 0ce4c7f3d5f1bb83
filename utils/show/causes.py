"""Pictures of what latents cause: sources of a latent, effects of latents, curves of ablation and of steering."""

from collections.abc import Sequence

import plotly.graph_objects as go

import utils.show as show
from utils.show.drawings import agreement, bars, curves

# What chapter 08 draws with.
__all__ = ["agreement", "bars", "curves", "sorted_effects"]


def sorted_effects(series: dict[str, Sequence[float]], title: str, yaxis: str) -> go.Figure:
    """Effects from the largest to the smallest, one line for each series."""
    figure = go.Figure()
    for label, values in series.items():
        values = sorted(show.to_numpy(values).tolist(), reverse=True)
        figure.add_scatter(name=label, y=[round(v, 4) for v in values], mode="lines")
    figure.update_layout(title=title, xaxis_title="live latents, by their effect", yaxis_title=yaxis)
    return figure
