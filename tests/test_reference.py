"""The glossary and the cheat sheet: every term has its place, every call runs."""

import re

import pytest

from utils.workbook import ROOT, WorkbookError
from utils.workbook.reference import files, section_of

TERM = '[[term]]\nname = "{}"\nchapter = "02"\nsays = "x"\nsheet = []\n'


@pytest.mark.parametrize(
    "text, section",
    [
        ("# 02 · T\n\n## 1 · Map\n\nThe **residual stream**.", "1 · Map"),
        ("# 02 · T\n\n## 1 · Map\n\n### The residual stream: a road\n", "1 · Map"),
        ("# 02 · T\n\n## 1 · Map\n\nThe *Residual stream*.", "1 · Map"),
        ("# 02 · T\n\nThe **residual stream**.\n\n## 1 · Map", "02 · T"),
        ("# 02 · T\n\n## 1 · Map\n\nThe residual stream.", None),
        ("# 02 · T\n\n## 1 · Map\n\n### The residual streams\n", None),
        ("# 02 · T\n\n## 1 · Map\n\n```python\n# residual stream\n```\n", None),
        ("# 02 · T\n\n## 1 · Map\n\n~~~python\n# residual stream\n~~~\n", None),
    ],
)
def test_a_term_is_made_where_it_is_emphasised_or_a_heading(text, section):
    assert section_of("residual stream", text) == section


def test_a_term_that_its_chapter_does_not_make_is_refused(tmp_path):
    (tmp_path / "reference.toml").write_text(TERM.format("flux capacitor") + '[[sheet]]\ntitle = "x"\ncode = "1"\n')
    with pytest.raises(WorkbookError, match="does not make the term 'flux capacitor'"):
        files(tmp_path / "reference.toml")


def test_each_term_stands_once():
    names = re.findall(r"^- \*\*(.+?)\*\*", files()["glossary.md"], re.M)
    assert len(names) > 50 and len(names) == len({name.lower() for name in names})


def test_the_links_of_the_glossary_lead_somewhere():
    for link in re.findall(r"\]\((.+?)\)", files()["glossary.md"]):
        assert (ROOT / "docs" / link).exists(), link


def test_the_calls_of_the_cheat_sheet_run(monkeypatch):
    from utils import show

    views = []
    monkeypatch.setattr(show, "_display_live", views.append)
    names = {}
    sheet = files()["cheat-sheet.md"]
    for code in re.findall(r"^```python\n(.+?)^```", sheet, re.M | re.S):
        # A trace reads its own source: the block has the sheet's lines in a file of its own.
        exec(compile(code, _written(code, len(names)), "exec"), names)
    assert (names["changed"] - names["late"]).abs().max() > 0  # a head is gone in one of them
    assert names["rebuilt"].shape[-1] == names["sae"].cfg.d_in
    assert names["two"].shape[0] == 2 and len(views) == 2


def _written(code: str, number: int) -> str:
    """A name under which Python finds this source, as a notebook's cells are found."""
    import linecache

    name = f"<sheet {number}>"
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    return name


def test_the_cheat_sheet_has_two_pages_at_most():
    lines = files()["cheat-sheet.md"].splitlines()
    assert len(lines) <= 2 * 62 and max(map(len, lines)) <= 190
