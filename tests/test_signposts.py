"""What the build adds to a chapter: ways to its neighbours, sittings, what was learned, what is open at its end."""

import re
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_course import SOURCE, cell

from utils.checks import engine, hints
from utils.checks.engine import Chapter
from utils.workbook import CHAPTERS, SOLUTIONS, WorkbookError
from utils.workbook.build import build, read_notebook
from utils.workbook.chapters import LONGEST_SITTING, table
from utils.workbook.signposts import grouped

ROWS = table()


def built(course, **texts):
    """The notebook of the sample chapter among these others, whose sources are given by name."""
    source, chapters, solutions, _ = course
    for name, text in texts.items():
        (source / f"{name}.md").write_text(text)
    build(source, chapters, solutions)
    return read_notebook(chapters / "01_sample.ipynb")


def chapter(number, needs="[]", rest=""):
    return f"---\nmodules: []\nneeds: {needs}\n{rest}---\n\n# {number} · C{number}\n"


def test_a_chapter_leads_to_its_neighbours_at_top_and_end(course):
    notebook = built(course, **{"00_a": chapter("00"), "02_b": chapter("02", '["01"]')})
    line = '[Start page](../README.md "The start page") · [← 00 · C00](00_a.ipynb) · [02 · C02 →](02_b.ipynb)'
    assert [notebook.cells[i].id for i in (0, -1)] == ["nav-top", "nav-end"]
    assert notebook.cells[0].source == notebook.cells[-1].source == line
    assert "←" not in read_notebook(course[1] / "00_a.ipynb").cells[0].source


def test_what_was_learned_leads_on(course):
    text = SOURCE.replace("needs: []", 'needs: []\nlearned: ["a device chosen -> 02", "patience"]')
    said = cell(built(course, **{"01_sample": text, "02_b": chapter("02", '["01"]')}), "learned").source
    assert "- a device chosen (next in [02 · C02](02_b.ipynb))\n- patience\n" in said
    assert said.endswith("On this chapter build [02 · C02](02_b.ipynb).")


@pytest.mark.parametrize("number", ["01", "00", "09"])
def test_what_is_learned_is_used_later_only(course, number):
    text = SOURCE.replace("needs: []", f'needs: []\nlearned: ["a device -> {number}"]')
    with pytest.raises(WorkbookError, match=f"01_sample.md: what is learned is used in '{number}'"):
        built(course, **{"01_sample": text, "00_a": chapter("00")})


def test_an_exercise_longer_than_a_sitting_is_refused(course):
    with pytest.raises(WorkbookError, match="utils.runtime.device takes 95 minutes, and a sitting at most 90: split"):
        built(course, **{"01_sample": SOURCE.replace("minutes=5", "minutes=95")})


@given(st.lists(st.tuples(st.integers(1, LONGEST_SITTING), st.booleans()), max_size=25))
def test_sittings_are_short_and_break_sections_only_where_they_must(units):
    sizes = grouped(units)
    assert sum(sizes) == len(units) and all(sizes)
    at = 0
    starts = []
    for size in sizes:
        assert sum(minutes for minutes, _ in units[at : at + size]) <= LONGEST_SITTING
        starts.append(at)
        at += size
    # Where every section fits into a sitting, none is broken.
    sections, total = [], 0
    for k, (minutes, begins) in enumerate(units):
        total = minutes if begins or not k else total + minutes
        sections.append(total)
    if max(sections, default=0) <= LONGEST_SITTING:
        assert all(units[k][1] for k in starts[1:])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_chapter_says_its_sittings_and_what_they_take(row):
    cells = read_notebook(CHAPTERS / f"{row.name}.ipynb").cells
    said = [re.search(r"about (\d+) .* core (\d+), optional (\d+)", c.source) for c in cells if "sitting-" in c.id]
    minutes = [tuple(map(int, s.groups())) for s in said]
    numbered = [c.id for c in cells if re.match(r"## 1 ·|\*\*Sitting 1 ", c.source)]
    assert numbered[:1] == ["sitting-1"] and len(numbered) <= 2, "a numbered section stands above the first sitting"
    assert all(whole == core + optional <= LONGEST_SITTING for whole, core, optional in minutes)
    assert sum(whole for whole, *_ in minutes) == row.minutes()
    assert sum(core for _, core, _ in minutes) == row.minutes(core=True)
    assert row.learned and cell(read_notebook(CHAPTERS / f"{row.name}.ipynb"), "learned")
    last = [c for c in read_notebook(SOLUTIONS / f"{row.name}.ipynb").cells if c.cell_type == "code"][-1]
    assert (last.id, last.source) == ("check-all", "check()")


# ---------------------------------------------------------------- what is open


def double(x):
    """Twice x."""
    return 2 * x


def triple(x):
    """Thrice x."""
    return 3 * x


@pytest.fixture
def exercises(monkeypatch):
    made = Chapter(SimpleNamespace(__name__="utils.sample"))
    for solution in (double, triple):
        made.exercise(solution)
    listed = [
        {"target": "utils.sample.triple", "title": "three times", "minutes": 5, "core": True},
        {"target": "utils.sample.double", "title": "twice", "minutes": 3, "core": False},
    ]
    monkeypatch.setattr(engine, "read_table", lambda modules: listed if modules == ["utils.sample"] else [])
    return made


def test_what_is_open_stands_in_the_notebooks_order_each_with_a_link(exercises, capsys):
    exercises._record("double", "tried")
    assert exercises.check() is None
    assert capsys.readouterr().out.splitlines() == [
        "**Still open** (0 of 2 in this chapter):",
        "",
        "- [three times](#cell-id=triple) (`triple`, core, 5 minutes)",
        "- [twice](#cell-id=double) (`double`, optional, 3 minutes, tried)",
    ]


def test_nothing_open_is_said_and_a_taken_solution_is_not_open(exercises, capsys):
    exercises._record("double", "taken")
    exercises._record("triple", "solved")
    exercises.check()
    assert "✓ Nothing is open: 1 of 2 in this chapter." in capsys.readouterr().out


def test_none_is_still_no_exercise(exercises, capsys):
    exercises.check(None)
    assert "has no exercise called" in capsys.readouterr().out


def test_without_a_table_the_names_are_listed(exercises, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(engine, "read_table", lambda modules: hints.read_table(modules, tmp_path))
    (tmp_path / "table.json").write_text("{")
    exercises.check()
    assert "- [double](#cell-id=double) (`double`)" in capsys.readouterr().out
