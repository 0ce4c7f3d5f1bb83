"""Pictures of what latents cause: the effects of all latents, from the largest to the smallest."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from utils import show


def sorted_effects(series: dict[str, Sequence[float]], title: str, yaxis: str) -> go.Figure:
    """Effects from the largest to the smallest, one line for each series."""
    figure = go.Figure()
    for label, values in series.items():
        figure.add_scatter(name=label, y=np.sort(show.to_numpy(values))[::-1], mode="lines")
    figure.update_layout(title=title, xaxis_title="live latents, by their effect", yaxis_title=yaxis)
    return figure
