"""The transformer's flowchart, drawn from a model's sizes: every tensor with its name and shape."""

from itertools import pairwise

import plotly.graph_objects as go

from utils.show import COLOURS, FAINT, GREY
from utils.transformer import Config, activation_shapes

# Name of the tensor: (column, row). The residual stream runs up column 0; its readers and writers stand beside it.
PLACES = {
    "tokens": (0, 0),
    "hook_embed": (0, 1),
    "hook_pos_embed": (-1, 1),
    "hook_resid_pre": (0, 2),
    "ln1.hook_normalized": (1.2, 3),
    "attn.hook_q": (1.2, 4),
    "attn.hook_k": (2.2, 4),
    "attn.hook_v": (3.2, 4),
    "attn.hook_attn_scores": (1.2, 5),
    "attn.hook_pattern": (1.2, 6),
    "attn.hook_z": (3.2, 7),
    "hook_attn_out": (1.2, 8),
    "hook_resid_mid": (0, 8),
    "ln2.hook_normalized": (1.2, 9),
    "mlp.hook_pre": (1.2, 10),
    "mlp.hook_post": (1.2, 11),
    "hook_mlp_out": (1.2, 12),
    "hook_resid_post": (0, 12),
    "ln_final.hook_normalized": (0, 13),
    "logits": (0, 14),
}
# From, to, and the weights or the step on the way.
ARROWS = [
    ("tokens", "hook_embed", "W_E"),
    ("tokens", "hook_pos_embed", "W_pos"),
    ("hook_embed", "hook_resid_pre", ""),
    ("hook_pos_embed", "hook_resid_pre", "+"),
    ("hook_resid_pre", "ln1.hook_normalized", "LayerNorm"),
    ("ln1.hook_normalized", "attn.hook_q", "W_Q"),
    ("ln1.hook_normalized", "attn.hook_k", "W_K"),
    ("ln1.hook_normalized", "attn.hook_v", "W_V"),
    ("attn.hook_q", "attn.hook_attn_scores", "q · k / √d_head"),
    ("attn.hook_k", "attn.hook_attn_scores", ""),
    ("attn.hook_attn_scores", "attn.hook_pattern", "mask, softmax"),
    ("attn.hook_pattern", "attn.hook_z", "mix of values"),
    ("attn.hook_v", "attn.hook_z", ""),
    ("attn.hook_z", "hook_attn_out", "W_O, sum over heads"),
    ("hook_resid_pre", "hook_resid_mid", ""),
    ("hook_attn_out", "hook_resid_mid", "+"),
    ("hook_resid_mid", "ln2.hook_normalized", "LayerNorm"),
    ("ln2.hook_normalized", "mlp.hook_pre", "W_in"),
    ("mlp.hook_pre", "mlp.hook_post", "gelu"),
    ("mlp.hook_post", "hook_mlp_out", "W_out"),
    ("hook_resid_mid", "hook_resid_post", ""),
    ("hook_mlp_out", "hook_resid_post", "+"),
    ("hook_resid_post", "ln_final.hook_normalized", "LayerNorm"),
    ("ln_final.hook_normalized", "logits", "W_U"),
]
STREAM = {"hook_resid_pre", "hook_resid_mid", "hook_resid_post"}


def legs(start: str, end: str) -> list[tuple[float, float]]:
    """The points of an arrow that runs upright and level only: first up where it leaves or nears the stream's column.

    From elsewhere it first runs level. A straight arrow has no corner.
    """
    (x0, y0), (x1, y1) = PLACES[start], PLACES[end]
    up_first = start in STREAM or abs(x1) < abs(x0)
    corner = (x0, y1) if up_first else (x1, y0)
    return list(dict.fromkeys([(x0, y0), corner, (x1, y1)]))


def clearance(name: str, level: bool) -> float:
    """Pixels from the middle of a tensor's box to its edge, on the way of a level or an upright arrow."""
    return 3.3 * len(name) + 6 if level else 20


def flowchart(cfg: Config, batch: int | str = "batch", pos: int | str = "pos") -> go.Figure:
    """One box for each tensor, one arrow for each step; read it from the bottom to the top."""
    shapes = activation_shapes(cfg, batch, pos)
    figure = go.Figure()
    for start, end, step in ARROWS:
        points = legs(start, end)
        for i, ((x0, y0), (x1, y1)) in enumerate(pairwise(points)):
            first, last, level = i == 0, i == len(points) - 2, y0 == y1
            away = clearance(start, level) if first else 0
            short = clearance(end, level) if last else 0
            figure.add_annotation(
                x=x1, y=y1, ax=x0, ay=y0, xref="x", yref="y", axref="x", ayref="y", text="",
                showarrow=True, arrowhead=2 if last else 0, arrowwidth=1.2, arrowcolor=GREY,
                startstandoff=away, standoff=short,
            )  # fmt: skip
        if step:  # beside the middle of the last leg
            middle = (away - short) / 2 * (1 if x1 > x0 else -1)
            side = dict(yanchor="bottom", xshift=middle) if level else dict(xanchor="left", xshift=4)
            x, y = (x0 + x1) / 2, (y0 + y1) / 2
            figure.add_annotation(x=x, y=y, text=step, showarrow=False, font=dict(size=11), **side)
    for name, (x, y) in PLACES.items():
        colour = COLOURS[0] if name in STREAM else COLOURS[2] if "attn" in name else COLOURS[1]
        sizes = ", ".join(str(size) for size in shapes[name])
        figure.add_annotation(
            x=x, y=y, text=f"<b>{name}</b><br>({sizes})", showarrow=False, font=dict(size=11, color=colour),
            bordercolor=colour, borderpad=3,
        )  # fmt: skip
    figure.add_shape(type="rect", x0=-0.4, x1=3.8, y0=1.5, y1=12.38, line=dict(color=FAINT, dash="dot"))
    figure.add_annotation(x=3.7, y=12.1, text=f"one block; there are {cfg.n_layers}", showarrow=False, xanchor="right")
    figure.update_layout(
        title=f"Every tensor of a GPT-2 with {cfg.n_layers} layers, {cfg.n_heads} heads and d_model = {cfg.d_model}",
        height=1000,
    )
    figure.update_xaxes(visible=False, range=[-1.45, 3.85])
    figure.update_yaxes(visible=False, range=[-0.6, 14.6])
    return figure
