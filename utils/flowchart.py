"""The transformer's flowchart, drawn from a model's sizes: every tensor with its name and shape."""

import plotly.graph_objects as go

from utils.show import COLOURS, FAINT, GREY
from utils.transformer import Config, activation_shapes

# Name of the tensor: (column, row). The residual stream runs up column 0; its readers and writers stand beside it.
PLACES = {
    "tokens": (0, 0),
    "hook_embed": (-0.6, 1),
    "hook_pos_embed": (0.6, 1),
    "hook_resid_pre": (0, 2),
    "ln1.hook_normalized": (1, 3),
    "attn.hook_q": (0.9, 4),
    "attn.hook_k": (1.9, 4),
    "attn.hook_v": (2.9, 4),
    "attn.hook_attn_scores": (1.4, 5),
    "attn.hook_pattern": (1.4, 6),
    "attn.hook_z": (2.4, 7),
    "hook_attn_out": (1, 8),
    "hook_resid_mid": (0, 9),
    "ln2.hook_normalized": (1, 10),
    "mlp.hook_pre": (1, 11),
    "mlp.hook_post": (1, 12),
    "hook_mlp_out": (1, 13),
    "hook_resid_post": (0, 14),
    "ln_final.hook_normalized": (0, 15),
    "logits": (0, 16),
}
# From, to, and the weights or the step on the way.
ARROWS = [
    ("tokens", "hook_embed", "W_E"),
    ("tokens", "hook_pos_embed", "W_pos"),
    ("hook_embed", "hook_resid_pre", "+"),
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


def flowchart(cfg: Config, batch: int | str = "batch", pos: int | str = "pos") -> go.Figure:
    """One box for each tensor, one arrow for each step; read it from the bottom to the top."""
    shapes = activation_shapes(cfg, batch, pos)
    figure = go.Figure()
    for start, end, step in ARROWS:
        (x0, y0), (x1, y1) = PLACES[start], PLACES[end]
        figure.add_annotation(
            x=x1, y=y1 - 0.3, ax=x0, ay=y0 + 0.3, xref="x", yref="y", axref="x", ayref="y", text="",
            showarrow=True, arrowhead=2, arrowwidth=1.2, arrowcolor=GREY,
        )  # fmt: skip
        if step:
            x, y = (x0 + x1) / 2, (y0 + y1) / 2
            figure.add_annotation(x=x, y=y, text=step, showarrow=False, xanchor="left", xshift=6, font=dict(size=11))
    for name, (x, y) in PLACES.items():
        colour = COLOURS[0] if name in STREAM else COLOURS[2] if "attn" in name else COLOURS[1]
        sizes = ", ".join(str(size) for size in shapes[name])
        figure.add_annotation(
            x=x, y=y, text=f"<b>{name}</b><br>({sizes})", showarrow=False, font=dict(size=11, color=colour),
            bordercolor=colour, borderpad=3,
        )  # fmt: skip
    figure.add_shape(type="rect", x0=-0.85, x1=3.4, y0=1.5, y1=14.5, line=dict(color=FAINT, dash="dot"))
    figure.add_annotation(x=3.3, y=14.2, text=f"one block; there are {cfg.n_layers}", showarrow=False, xanchor="right")
    figure.update_layout(
        title=f"Every tensor of a GPT-2 with {cfg.n_layers} layers, {cfg.n_heads} heads and d_model = {cfg.d_model}",
        height=1000,
    )
    figure.update_xaxes(visible=False, range=[-1.2, 3.6])
    figure.update_yaxes(visible=False, range=[-0.6, 16.6])
    return figure
