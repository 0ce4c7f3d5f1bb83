"""The chapters' diagrams, drawn by code: a source says `![what is seen](../../docs/diagrams/river.svg)`.

The build writes docs/diagrams/ (which GitHub shows beside a source) and puts the drawing itself into the notebook, in a
Markdown cell of its own: as a link's target with its data, for JupyterLab shows no SVG that is attached to a cell.
"""

import base64
import re

from utils.workbook import ROOT, WorkbookError
from utils.workbook.diagrams import early, late

FOLDER = ROOT / "docs" / "diagrams"
DRAWINGS = {f.__name__: f for f in (*early.DRAWINGS, *late.DRAWINGS)}
LINE = re.compile(r"^!\[(?P<alt>[^\]\n]*)\]\(\.\./\.\./docs/diagrams/(?P<name>\w+)\.svg\)$", re.M)


def files() -> dict[str, str]:
    """Name and text of every file of docs/diagrams/."""
    return {f"{name}.svg": draw().svg() for name, draw in DRAWINGS.items()}


def cell_sources(text: str) -> list[str]:
    """A Markdown text cut at its diagrams, each of which becomes a text of its own that holds the drawing.

    Raises:
        WorkbookError: there is no such drawing, or it has no alternative text.
    """
    pieces, end = [], 0
    for found in LINE.finditer(text):
        pieces += [text[end : found.start()].strip("\n"), _embedded(found["name"], found["alt"])]
        end = found.end()
    return [piece for piece in (*pieces, text[end:].strip("\n") if pieces else text) if piece]


def _embedded(name: str, alt: str) -> str:
    if name not in DRAWINGS:
        raise WorkbookError(f"A source shows the diagram {name!r}: utils/workbook/diagrams/ draws no such one.")
    if len(alt) < 40:
        raise WorkbookError(f"The diagram {name!r} needs a text between its brackets that says what is seen.")
    data = base64.b64encode(DRAWINGS[name]().svg().encode()).decode()
    return f"![{alt}][{name}]\n\n[{name}]: data:image/svg+xml;base64,{data}"
