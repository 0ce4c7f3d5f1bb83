"""The chapters' diagrams: nothing overlaps, is cut off, small or pale; each has its place and says what is seen."""

import base64
import re
from itertools import combinations

import pytest

from utils.workbook import CHAPTERS, SOURCE, WorkbookError
from utils.workbook.build import read_notebook
from utils.workbook.chapters import table
from utils.workbook.diagrams import DRAWINGS, LINE, canvas, cell_sources, files

ALT = "A river from left to right, with a tributary of every part."


def faults(drawn: canvas.Canvas) -> list[str]:
    """What is wrong with the texts of a drawing."""
    said = [f"{t.text!r} is cut off" for t in drawn.texts if t.x0 < 4 or t.x1 > drawn.width - 4]
    said += [f"{t.text!r} is cut off" for t in drawn.texts if t.y0 < 4 or t.y1 > drawn.height - 4]
    said += [f"{t.text!r} is too small" for t in drawn.texts if t.size < 12]
    for a, b in combinations(drawn.texts, 2):
        if a.x0 < b.x1 and b.x0 < a.x1 and a.y0 < b.y1 and b.y0 < a.y1:
            said.append(f"{a.text!r} overlaps {b.text!r}")
    return said


@pytest.mark.parametrize("name", DRAWINGS)
def test_texts_keep_clear_of_each_other_and_of_the_edge(name):
    drawn = DRAWINGS[name]()
    assert not faults(drawn)
    assert drawn.width <= 720  # a notebook's page at 1280 pixels: nothing is drawn smaller than it says


@pytest.mark.parametrize(
    "texts, fault",
    [
        ([(20, 50, "a long text from the left edge", {})], "cut off"),
        ([(100, 5, "high", {})], "cut off"),
        ([(100, 50, "one", {}), (110, 55, "two", {})], "overlaps"),
        ([(100, 50, "tiny", {"size": 9})], "too small"),
    ],
)
def test_what_is_wrong_is_found(texts, fault):
    drawn = canvas.Canvas(200, 100, "wrong")
    for x, y, text, style in texts:
        drawn.text(x, y, text, **style)
    assert fault in " ".join(faults(drawn))


@pytest.mark.parametrize("theme", [canvas.LIGHT, canvas.DARK], ids=["light", "dark"])
def test_texts_stand_out_from_the_ground(theme):
    def luminance(colour):
        shares = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for name in theme.keys() - {"ground", "line"}:
        low, high = sorted((luminance(theme[name]), luminance(theme["ground"])))
        assert (high + 0.05) / (low + 0.05) >= 4.5, name


def test_no_text_has_the_colour_of_lines():
    for name, text in files().items():
        assert 'class="line text' not in text.replace('"line text" cx', ""), name


def test_a_drawing_needs_nothing_from_elsewhere():
    for name, text in files().items():
        own = text.replace('xmlns="http://www.w3.org/2000/svg"', "")
        assert not re.search(r"https?:|<script|<image|@import|<foreignObject", own), name


def test_every_chapter_has_a_diagram_and_every_diagram_its_place():
    places = {row.number: [m["name"] for m in LINE.finditer(row.path.read_text(encoding="utf-8"))] for row in table()}
    assert not [number for number, names in places.items() if not names]
    assert sorted(sum(places.values(), [])) == sorted(DRAWINGS)  # each once


def test_the_notebook_holds_the_drawing_itself():
    cells = [c.source for c in read_notebook(CHAPTERS / "02_transformer.ipynb").cells if c.source.startswith("![")]
    (data,) = re.findall(r"\[river\]: data:image/svg\+xml;base64,(\S+)$", "\n".join(cells), re.M)
    assert base64.b64decode(data).decode() == files()["river.svg"]


def test_a_text_is_cut_at_its_diagrams():
    line = f"![{ALT}](../../docs/diagrams/river.svg)"
    before, drawing, after = cell_sources(f"Before.\n\n{line}\n\nAfter.")
    assert (before, after) == ("Before.", "After.") and drawing.startswith(f"![{ALT}][river]\n\n[river]: data:")
    assert cell_sources("No diagram.\n") == ["No diagram.\n"]
    assert len(cell_sources(f"{line}\n\n{line}")) == 2


@pytest.mark.parametrize(
    "line, sentence",
    [
        (f"![{ALT}](../../docs/diagrams/lake.svg)", "draws no such one"),
        ("![A river.](../../docs/diagrams/river.svg)", "says what is seen"),
    ],
)
def test_what_a_source_must_not_show(line, sentence):
    with pytest.raises(WorkbookError, match=sentence):
        cell_sources(line)


def test_no_line_that_means_a_diagram_is_overlooked():
    for path in SOURCE.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        assert text.count("docs/diagrams/") == len(LINE.findall(text)), path.name
