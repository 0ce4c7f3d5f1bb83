"""Views that the chapters share: the Plotly template, heatmaps, token strips, claims, circuitsvis without a network.

Importing this module sets the template for every Plotly figure: transparent ground and mid-grey text, so that the
same figure reads well in JupyterLab's light and dark themes. It also lets a cell that runs long say so.
"""

import html
import re
import time
import unicodedata
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import ipywidgets as widgets
import numpy as np
import plotly.graph_objects as go
import plotly.io as pio
import torch
from IPython.display import HTML, display

from utils.show.claims import claim as claim
from utils.show.claims import findings as findings
from utils.show.claims import identity as identity
from utils.show.waiting import show_waiting

# As far from white as from JupyterLab's dark ground, a contrast of 4 and more to each.
GREY = "#767e86"
FAINT = "rgba(128, 136, 144, 0.25)"
# Strength is opacity, so that nothing shows the page's own ground in either theme.
RED_RGB, BLUE_RGB = "200, 45, 50", "25, 105, 200"
RED, NO_RED = f"rgba({RED_RGB}, 1)", f"rgba({RED_RGB}, 0.03)"
BLUE, NO_BLUE = f"rgba({BLUE_RGB}, 1)", f"rgba({BLUE_RGB}, 0.03)"
DIVERGING = [[0, RED], [0.5, NO_RED], [0.5, NO_BLUE], [1, BLUE]]  # red below, blue above the centre, as in the field
SEQUENTIAL = [[0, NO_BLUE], [1, BLUE]]
# Told apart in both themes and by colour-blind readers (after Okabe and Ito, 2008).
COLOURS = ["#2b7fc4", "#e07b00", "#00966a", "#c45a9a", "#d0483e", "#8a7a00", "#4aa8d8", GREY]

_axis = dict(gridcolor=FAINT, zerolinecolor=FAINT, linecolor=FAINT, automargin=True)
_axis["title"] = dict(font=dict(size=13))  # larger, a title of some words is cut off at JupyterLab's 360 pixels
_bar = dict(outlinewidth=0, title=dict(side="right", font=dict(size=13)))  # on top it would touch the highest tick
pio.templates["workbook"] = go.layout.Template(
    layout=dict(
        font=dict(color=GREY, size=13),
        title=dict(x=0.01, xanchor="left", font=dict(size=16, weight=700)),
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        colorway=COLOURS,
        colorscale=dict(diverging=DIVERGING, sequential=SEQUENTIAL),
        coloraxis=dict(colorbar=_bar),
        xaxis=_axis,
        yaxis=_axis,
        margin=dict(l=60, r=30, t=60, b=50),
        hoverlabel=dict(font=dict(size=13)),
        shapedefaults=dict(line=dict(color=GREY)),  # Plotly's own black is not seen on a dark ground
    ),
    data=dict(heatmap=[dict(colorbar=_bar)]),
)
show_waiting()
pio.templates.default = "workbook"
pio.renderers.default = "plotly_mimetype"  # data only: the notebook's own plotly draws it, without a network


def to_numpy(values) -> np.ndarray:
    """Any array as numpy; floats as float32, which halves a figure's size in the notebook."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().float().numpy() if values.is_floating_point() else values.detach().cpu().numpy()
    values = np.asarray(values)
    return values.astype(np.float32) if values.dtype.kind == "f" else values


def heatmap(
    z,
    x: Sequence[str] | None = None,
    y: Sequence[str] | None = None,
    title: str = "",
    xaxis: str = "",
    yaxis: str = "",
    centre: float | None = 0,
    colourbar: str = "",
    zmin: float | None = None,
    zmax: float | None = None,
) -> go.Figure:
    """A matrix as colours, row 0 on top.

    Args:
        z: the matrix, `(rows, columns)`.
        x, y: labels of columns and rows; they may repeat, as tokens do.
        title: the finding, as a sentence.
        xaxis, yaxis, colourbar: names with units.
        centre: the value without colour, for signed data; None for data that starts at nothing.
        zmin, zmax: ends of the colour scale; by default the data's.

    Raises:
        ValueError: `z` is no matrix, or the labels do not fit it.
    """
    z = to_numpy(z)
    if z.ndim != 2:
        raise ValueError(f"heatmap draws a matrix; z has shape {list(z.shape)}")
    for labels, size, name in ((x, z.shape[1], "x"), (y, z.shape[0], "y")):
        if labels is not None and len(labels) != size:
            raise ValueError(f"{name} has {len(labels)} labels for {size} entries of z")
    scale = dict(colorscale=SEQUENTIAL if centre is None else DIVERGING, zmid=centre, zmin=zmin, zmax=zmax)
    figure = go.Figure(go.Heatmap(z=z, colorbar=dict(title=colourbar), **scale))
    figure.update_layout(title=title, xaxis_title=xaxis, yaxis_title=yaxis)
    figure.update_yaxes(autorange="reversed", showgrid=False, zeroline=False)
    figure.update_xaxes(showgrid=False, zeroline=False)
    if x is not None:
        figure.update_xaxes(tickvals=list(range(len(x))), ticktext=[label(t) for t in x])
    if y is not None:
        figure.update_yaxes(tickvals=list(range(len(y))), ticktext=[label(t) for t in y])
    return figure


# ---------------------------------------------------------------- tokens


def visible(token: str) -> str:
    """A token as a reader can see it: spaces at its ends as ·, line ends as ↵, tabs as ⇥.

    Other characters without a picture of their own are shown too: control characters by Unicode's pictures for them
    (␍ for a carriage return, ␀ for NUL), those of no width and unusual spaces by their number (⟨U+200B⟩), and a mark
    that stands on the letter before it, where there is none, on a dotted circle.
    """
    dotted = re.sub(r"^ +| +$", lambda spaces: "·" * len(spaces[0]), str(token))
    shown = "".join(map(_picture, dotted))
    if not shown or not unicodedata.category(shown[0]).startswith("M"):
        return shown
    is_selector = "VARIATION SELECTOR" in unicodedata.name(shown[0], "")  # stands on nothing and has no picture
    return f"⟨U+{ord(shown[0]):04X}⟩{shown[1:]}" if is_selector else f"◌{shown}"


def _picture(character: str) -> str:
    code, category = ord(character), unicodedata.category(character)
    if character in "\n\t":
        return "↵" if character == "\n" else "⇥"
    if code < 32 or code == 127:
        return chr(0x2400 + code) if code < 32 else "␡"
    if category in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") or (category == "Zs" and character != " "):
        return f"⟨U+{code:04X}⟩"
    return character


# What Plotly takes for markup in a label: its few tags, and entities.
_MARKUP = re.compile(r"<(?=/?(?:br|sup|sub|s|u|b|i|a|span|em|strong)\b)|&(?=#?\w+;)", re.IGNORECASE)


def label(token: str) -> str:
    """A token as a label in a Plotly figure: `visible`, with nothing in it that Plotly would take for markup."""
    return _MARKUP.sub(lambda found: html.escape(found[0]), visible(token))


def token_strip(tokens: Sequence[str], values=None, title: str = "", limit: float | None = None) -> HTML:
    """Tokens as a line of boxes, shaded by `values` (blue above zero, red below) where given.

    Static HTML with inline colours only: it shows in a notebook that is not trusted, and where no script runs.

    Args:
        tokens: the token strings.
        values: one number a token, or None: then neighbours alternate in shade so that borders are seen.
        title: a line above.
        limit: the absolute value with full colour; by default the largest.

    Raises:
        ValueError: the values are not one a token.
    """
    if values is not None:
        values = to_numpy(values).ravel().tolist()
        if len(values) != len(tokens):
            raise ValueError(f"{len(values)} values for {len(tokens)} tokens")
    largest = limit or max((abs(v) for v in values or [] if v == v), default=0) or 1.0
    boxes = []
    for i, token in enumerate(tokens):
        if values is None:
            colour, tip = (f"rgba({BLUE_RGB}, {0.16 + 0.16 * (i % 2):.2f})", f"token {i}")
        else:
            rgb = BLUE_RGB if values[i] >= 0 else RED_RGB
            strength = min(1.0, abs(values[i]) / largest) if values[i] == values[i] else 0.0
            colour, tip = (f"rgba({rgb}, {0.75 * strength:#.3g})", f"token {i}: {values[i]:#.3g}")
        text = html.escape(visible(token)) or "∅"
        style = f"background-color: {colour}; padding: 2px 3px"
        if any(unicodedata.bidirectional(character) in ("R", "AL", "AN") for character in text):
            style += "; unicode-bidi: isolate"  # letters from right to left: the box keeps its place among the others
        boxes.append(f'<span title="{tip}" style="{style}">{text}</span>')
    head = f"<div><strong>{html.escape(title)}</strong></div>" if title else ""
    return HTML(f'{head}<div style="font-family: monospace; line-height: 1.9">{"".join(boxes)}</div>')


# ---------------------------------------------------------------- times and memory

MEASURED = "(measured: run this cell to see it)"


def measured(label: str, value: str) -> None:
    """Show "label: value" to whoever runs the cell, for what differs from machine to machine: a time, used memory.

    A recorded notebook holds a placeholder in its place, and nothing is compared.

    Args:
        label: what was measured.
        value: the result with its unit, for example "3.2 ms".
    """
    page = f"<div>{html.escape(label)}: {html.escape(value)}</div>"
    display({"text/html": page, "text/plain": f"{label}: {MEASURED}"}, raw=True)


@contextmanager
def timed(label: str) -> Iterator[None]:
    """Measure the wall time of a `with` block and show it as `measured` does; nothing where the block raises."""
    began = time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    measured(label, f"{seconds:.3g} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms")


# ---------------------------------------------------------------- sliders


def sliders(draw: Callable[..., go.Figure], shown: go.Figure | None = None, **ranges: tuple) -> None:
    """Show a figure with sliders below it; moving one draws the figure anew in its place.

    A notebook that is only read shows the first figure. Nothing is computed before a slider is moved.

    Args:
        draw: makes the figure from a value for each slider.
        shown: the first figure, where it is there already; by default `draw` of the first values.
        ranges: for each argument of `draw` (first value, lowest, highest, step).
    """
    first = {name: value for name, (value, *_) in ranges.items()}
    figure = display((shown or draw(**first))._repr_mimebundle_(), raw=True, display_id=uuid.uuid4().hex)
    bars = {
        name: widgets.FloatSlider(
            value, min=low, max=high, step=step, description=name.replace("_", " "), continuous_update=False,
            layout=dict(width="480px"), style=dict(description_width="120px"),
        )
        for name, (value, low, high, step) in ranges.items()
    }  # fmt: skip

    def moved(_) -> None:
        drawn = draw(**{name: bar.value for name, bar in bars.items()})
        figure.update({"text/plain": "…"}, raw=True)  # else JupyterLab keeps the figure that it has drawn
        figure.update(drawn._repr_mimebundle_(), raw=True)

    for bar in bars.values():
        bar.observe(moved, "value")
    display(widgets.VBox(list(bars.values())))


# ---------------------------------------------------------------- circuitsvis

LIVE_VIEW = "A live view: run this cell to see it."


_loaded: list[str] = []  # the versions of circuitsvis whose bundle this kernel has shown


def _bundle() -> str:
    """The script that draws circuitsvis's views at the first call, nothing afterwards."""
    import circuitsvis

    if _loaded:
        return ""
    _loaded.append(circuitsvis.__version__)
    script = (Path(circuitsvis.__file__).parent / "dist" / "cdn" / "iife.js").read_text(encoding="utf-8")
    return f"<script>{script.replace('</script>', '')}\nwindow.CircuitsVis = CircuitsVis;</script>"


def live(view) -> None:
    """Display a circuitsvis view without a network; its bundle of 1.3 MB goes into the notebook only once.

    Args:
        view: what a circuitsvis function returns, for example `circuitsvis.attention.attention_heads(...)`.
    """
    wait = "while (!window.CircuitsVis) await new Promise(r => setTimeout(r, 100));"
    form = r"(?s)(.*?<script[^>]*>)(.*?)import (\{.*?\}) from \"https://unpkg\.com/[^\"]+\";(.*)(</script>.*)"
    if not (parts := re.fullmatch(form, view.cdn_src)):
        raise ValueError("this circuitsvis view is not of the known form: its pinned version has changed")
    opening, before, names, props, closing = parts.groups()
    # A token may hold what ends a script: in JavaScript's strings the six characters \u003c are a "<".
    props = props.replace("<", r"\u003c")
    _display_live(f"{_bundle()}{opening}{before}{wait} const {names} = window.CircuitsVis;{props}{closing}")


def _display_live(page: str) -> None:
    display({"text/html": page, "text/plain": LIVE_VIEW}, raw=True)
