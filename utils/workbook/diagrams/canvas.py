"""A sheet to draw on: SVG with a ground of its own, in colours that read in light and dark.

JupyterLab's theme and the browser's preference may differ, so a drawing never shows the page through: both its
grounds, the light and the dark one, come with their own colours.
"""

from html import escape
from typing import NamedTuple

LIGHT = dict(
    ground="#f7f8fa", ink="#1f2933", soft="#55606b", line="#8a96a3",
    blue="#1663a8", orange="#a34f00", green="#0b6b4a", pink="#9a3372",
)  # fmt: skip
DARK = dict(
    ground="#1d2229", ink="#e8edf2", soft="#a9b4c0", line="#76828f",
    blue="#7ab8f5", orange="#f2a65a", green="#5fcf9f", pink="#ea9bc9",
)  # fmt: skip
# Shares of the font's size: about DejaVu Sans, the widest of the usual fonts.
NARROW, WIDE = set("ijl.,:;'|!()[] ftrI·"), set("mwMWQ@→←↓⋯…%—×−")
MONO = 0.61


class Text(NamedTuple):
    """A text as it was drawn, with the box that it takes up at most."""

    text: str
    x0: float
    y0: float
    x1: float
    y1: float
    size: float


def width_of(text: str, size: float, mono: bool = False, bold: bool = False) -> float:
    """Pixels that a text takes up at most."""
    if mono:
        return MONO * size * len(text)
    shares = (0.42 if c in NARROW else 0.98 if c in WIDE else 0.7 if c.isupper() else 0.62 for c in text)
    return size * sum(shares) * (1.1 if bold else 1)


class Canvas:
    """Shapes and texts in the order in which they are drawn; `svg` is the whole file."""

    def __init__(self, width: int, height: int, title: str):
        self.width, self.height, self.title = width, height, title
        self.texts: list[Text] = []
        self._parts: list[str] = []

    def text(
        self, x: float, y: float, text: str, colour="ink", size=15, anchor="middle", mono=False, bold=False
    ) -> None:
        """One line, `y` being its middle; it has a rim of the ground's colour, so that it may stand on a line."""
        width = width_of(text, size, mono, bold)
        left = x - {"start": 0, "middle": width / 2, "end": width}[anchor]
        self.texts.append(Text(text, left, y - 0.62 * size, left + width, y + 0.62 * size, size))
        kind = f"{colour} text" + (" mono" if mono else "") + (" bold" if bold else "")
        place = f'x="{x:g}" y="{y + 0.35 * size:g}" font-size="{size}" text-anchor="{anchor}"'
        self._parts.append(f'<text class="{kind}" {place}>{escape(text)}</text>')

    def box(self, x, y, width, height, text="", colour="line", mono=False, filled=0.0, dashed=False, size=15) -> None:
        """A box around the middle `x`, `y`, with a text in it."""
        dash = ' stroke-dasharray="4 4"' if dashed else ""
        left, top = x - width / 2, y - height / 2
        place = f'x="{left:g}" y="{top:g}" width="{width:g}" height="{height:g}" rx="5"'
        self._parts.append(f'<rect class="ground" {place}/>')
        self._parts.append(f'<rect class="{colour} shape" {place} fill-opacity="{filled:g}"{dash}/>')
        if text:
            self.text(x, y, text, "ink" if colour == "line" else colour, size=size, mono=mono)

    def line(self, *points: tuple[float, float], colour="line", width=1.6, arrow=True, dashed=False) -> None:
        """A line through the points, with an arrow's head at its end."""
        path = "M" + " L".join(f"{x:g},{y:g}" for x, y in points)
        self.path(path, colour, width, arrow, dashed)

    def path(self, path: str, colour="line", width=1.6, arrow=True, dashed=False, opacity=1.0) -> None:
        """A line along an SVG path."""
        head = f' marker-end="url(#{colour})"' if arrow else ""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        faint = f' stroke-opacity="{opacity:g}"' if opacity < 1 else ""
        self._parts.append(f'<path class="{colour} way" d="{path}" stroke-width="{width:g}"{dash}{faint}{head}/>')

    def dot(self, x: float, y: float, radius: float = 3, colour="line") -> None:
        """A filled dot."""
        self._parts.append(f'<circle class="{colour} text" cx="{x:g}" cy="{y:g}" r="{radius:g}" stroke="none"/>')

    def svg(self) -> str:
        """The file: no script, no font and no picture from elsewhere."""

        def colours(theme: dict[str, str]) -> str:
            own = "".join(f".{name}{{color:{value}}}" for name, value in theme.items() if name != "ground")
            return f".ground{{fill:{theme['ground']};stroke:none}}.text{{stroke:{theme['ground']}}}{own}"

        style = (
            f"{colours(LIGHT)}@media (prefers-color-scheme:dark){{{colours(DARK)}}}"
            ".text{fill:currentColor;stroke-width:4px;paint-order:stroke;stroke-linejoin:round;"
            "font-family:system-ui,-apple-system,'Segoe UI','Helvetica Neue',Arial,sans-serif}"
            ".mono{font-family:ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace}.bold{font-weight:600}"
            ".shape{fill:currentColor;stroke:currentColor;stroke-width:1.4px}"
            ".way{fill:none;stroke:currentColor;stroke-linejoin:round}"
            "marker path{fill:currentColor}"
        )
        heads = "".join(
            f'<marker id="{name}" class="{name}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            'markerUnits="userSpaceOnUse" orient="auto"><path d="M0,0 L8,4 L0,8 z"/></marker>'
            for name in LIGHT
            if name not in ("ground", "ink")
        )
        size = f'width="{self.width}" height="{self.height}" viewBox="0 0 {self.width} {self.height}"'
        body = "\n".join(self._parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n<title>{escape(self.title)}</title>\n'
            f"<style>{style}</style>\n<defs>{heads}</defs>\n"
            f'<rect class="ground" width="{self.width}" height="{self.height}" rx="8"/>\n{body}\n</svg>\n'
        )
