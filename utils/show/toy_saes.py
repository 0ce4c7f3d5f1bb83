"""Pictures of toy autoencoders: latents beside true features, training, activations against true sizes."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
from jaxtyping import Bool, Float
from plotly.subplots import make_subplots
from torch import Tensor

from utils import show
from utils.show.drawings import WIDTH, arrow, square_axes, through_training
from utils.toy_saes import SAEHistory


def _features(W: Float[Tensor, "2 feats"]) -> list[go.Scatter]:
    """The true directions, as dotted grey rays of length 1.25."""
    ends = 1.25 * show.to_numpy(W / W.norm(dim=0).clamp_min(1e-9))
    line = dict(width=2, color=show.GREY, dash="dot")
    return [
        go.Scatter(
            x=np.array([0, x], dtype=np.float32),
            y=np.array([0, y], dtype=np.float32),
            mode="lines",
            line=line,
            name=f"feature {i}",
            showlegend=False,
        )
        for i, (x, y) in enumerate(ends.T)
    ]


def _latents(rows: Float[Tensor, "d_sae 2"], dead: Bool[Tensor, " d_sae"]) -> list[go.Scatter]:
    """Each latent as an arrow with its number; a dead one in grey and with a cross at its end."""
    arrows = []
    for i, ((x, y), is_dead) in enumerate(zip(show.to_numpy(rows), dead.tolist(), strict=True)):
        line = dict(width=2, color=show.GREY if is_dead else show.COLOURS[i % len(show.COLOURS)])
        size, symbol, note = (9, "x", ", dead") if is_dead else (7, "circle", "")
        arrows.append(arrow(x, y, str(i), size, symbol, line=line, name=f"latent {i}{note}"))
    return arrows


def plot_latents(
    W_enc: Float[Tensor, "inst 2 d_sae"],
    W_dec: Float[Tensor, "inst d_sae 2"],
    W: Float[Tensor, "inst 2 feats"],
    dead: Bool[Tensor, "inst d_sae"],
    title: str,
    subtitles: Sequence[str],
) -> go.Figure:
    """Encoder columns above, decoder rows below, one column of panels per instance; true features dotted.

    Raises:
        ValueError: the hidden vectors do not have two dimensions.
    """
    if W.shape[1] != 2:
        raise ValueError(f"plot_latents needs hidden vectors of two dimensions; W has shape {list(W.shape)}")
    n = len(W)
    figure = make_subplots(2, n, column_titles=list(subtitles), horizontal_spacing=0.02, vertical_spacing=0.05)
    for i in range(n):
        for row, latents in ((1, W_enc[i].T), (2, W_dec[i])):
            for trace in _features(W[i]) + _latents(latents, dead[i]):
                figure.add_trace(trace, row=row, col=i + 1)
    side = min(300, WIDTH / n)
    figure.update_layout(title=title, width=max(n * side, 520) + 60, height=2 * side + 130)
    reach = max(float(W_enc.abs().max()), float(W_dec.abs().max()))
    square_axes(figure, 2 * n, limit=max(1.5, 1.2 * reach))  # with room for the number at an arrow's end
    figure.update_yaxes(title_text="encoder: hidden dim. 1", row=1, col=1)
    figure.update_yaxes(title_text="decoder: hidden dim. 1", row=2, col=1)
    figure.update_xaxes(title_text="hidden dim. 0", row=2)
    return figure


def plot_sae_training(
    history: SAEHistory, W: Float[Tensor, "inst 2 feats"], instance: int, title: str, frames: int = 20
) -> go.Figure:
    """The decoder rows of one instance over its true features, with a slider through training."""

    def traces(k):
        dead = history.frac_active[k, instance] == 0
        return _features(W[instance]) + _latents(history.W_dec[k, instance], dead)

    return through_training(traces, history.steps, title, frames, limit=1.5)


def plot_dead_share(histories: dict[str, SAEHistory], title: str) -> go.Figure:
    """Share of all latents that were active on no input of the recorded batch, against the training step."""
    figure = go.Figure()
    for name, history in histories.items():
        share = (history.frac_active == 0).float().mean(dim=(1, 2))
        figure.add_trace(go.Scatter(x=history.steps, y=show.to_numpy(share), mode="lines", name=name))
    figure.update_layout(title=title, width=WIDTH, height=380, xaxis_title="training step")
    figure.update_yaxes(title_text="share of latents silent on the batch", tickformat=".0%", rangemode="tozero")
    return figure


def plot_activation_against_size(
    size: Float[Tensor, " n"], acts: dict[str, Float[Tensor, " n"]], title: str
) -> go.Figure:
    """One panel per form: the activation of a feature's latent against the feature's true size, with the line y = x."""
    figure = make_subplots(1, len(acts), subplot_titles=list(acts), horizontal_spacing=0.02, shared_yaxes=True)
    x = show.to_numpy(size)
    top = float(x.max()) * 1.05
    line = dict(color=show.GREY, dash="dot")
    for i, values in enumerate(acts.values(), start=1):
        marker = dict(size=4, color=show.COLOURS[(i - 1) % len(show.COLOURS)])
        figure.add_trace(go.Scatter(x=[0, top], y=[0, top], mode="lines", line=line, showlegend=False), row=1, col=i)
        dots = go.Scatter(x=x, y=show.to_numpy(values), mode="markers", marker=marker, showlegend=False)
        figure.add_trace(dots, row=1, col=i)
    figure.update_layout(title=title, width=WIDTH, height=330)
    figure.update_xaxes(title_text="true size", range=[0, top])
    figure.update_yaxes(range=[-0.03, top])
    figure.update_yaxes(title_text="activation of its latent", col=1)
    figure.update_annotations(font_size=12)
    return figure
