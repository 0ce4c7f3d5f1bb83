"""The start page: what it says of a learner's folder in every state, damaged ones included."""

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from utils.checks import progress
from utils.workbook import CHAPTERS, start_page
from utils.workbook.chapters import as_json, table
from utils.workbook.start_page import arrows, last_worked_on, name_of, next_exercise, page, places, rows

ROWS = table()


@pytest.fixture
def work(tmp_path):
    """A learner's folder as it is delivered, an hour ago."""
    (tmp_path / ".delivered").mkdir()
    for row in ROWS:
        for folder in (tmp_path, tmp_path / ".delivered"):
            (folder / f"{row.name}.ipynb").write_text("{}")
            os.utime(folder / f"{row.name}.ipynb", (1e9, 1e9))
    return tmp_path


def mark(work, target, state, when):
    module, _, name = target.removeprefix("utils.").rpartition(".")
    progress.record(module, name, state, work)
    os.utime(work / ".progress" / f"{module}.{name}.{state}", (when, when))


def exercise(number, k):
    return next(row for row in ROWS if row.number == number).exercises[k]


def goes_on(work):
    at = next_exercise(rows(work=work)[0], work)
    return at and (at[0].number, at[1] and name_of(at[1]))


def test_the_table_is_that_of_the_sources():
    assert (CHAPTERS / "table.json").read_text(encoding="utf-8") == as_json(ROWS)


def test_with_other_models_the_page_says_which_chapters_stay_on_ours(work, monkeypatch):
    assert "WORKBOOK_MODELS" not in page(work=work)
    monkeypatch.setenv("WORKBOOK_MODELS", "hub")
    assert "WORKBOOK_MODELS=hub</code>; chapters 09 and 11, which" in page(work=work)


# ---------------------------------------------------------------- go on where you were


def test_who_arrives_begins_at_the_first_chapters_top(work):
    assert goes_on(work) == ("00", None)
    assert "Begin here" in page(work=work) and "Open chapter 00" in page(work=work)


def test_a_tried_exercise_is_gone_on_with_and_after_a_solved_one_the_next(work):
    mark(work, exercise("01", 2).target, "solved", 2e9)
    mark(work, exercise("00", 0).target, "solved", 1.9e9)
    assert goes_on(work) == ("01", exercise("01", 3).name)
    mark(work, exercise("05", 4).target, "tried", 2.1e9)
    assert goes_on(work) == ("05", exercise("05", 4).name)
    assert 'data-open="05_induction.ipynb"' in page(work=work) and "Go on where you were" in page(work=work)


def test_what_was_skipped_comes_when_the_end_is_reached(work):
    mark(work, exercise("01", -1).target, "solved", 2e9)
    assert goes_on(work) == ("01", exercise("01", 0).name)


def test_a_chapter_all_solved_leads_to_the_next_and_a_course_all_solved_says_so(work):
    for k in range(len(ROWS[1].exercises)):
        mark(work, ROWS[1].exercises[k].target, "solved", 2e9)
    assert goes_on(work) == ("02", None)
    for row in ROWS:
        for e in row.exercises:
            mark(work, e.target, "taken", 2e9)
    assert goes_on(work) is None and "All is solved" in page(work=work)


def test_a_notebook_saved_later_than_all_marks_counts(work):
    mark(work, exercise("01", 2).target, "solved", 1.5e9)
    os.utime(work / "04_inspection.ipynb", (1.6e9, 1.6e9))
    assert goes_on(work) == ("04", exercise("04", 0).name)


def test_a_delivered_notebook_is_not_worked_on(work):
    os.utime(work / "04_inspection.ipynb", (1e9 + 2, 1e9 + 2))
    assert last_worked_on(rows(work=work)[0], work) is None


def test_where_the_next_is_optional_the_next_core_one_is_offered(work):
    row = next(r for r in ROWS if not r.exercises[0].core and any(e.core for e in r.exercises))
    os.utime(work / f"{row.name}.ipynb", (1.6e9, 1.6e9))
    first_core = next(e.name for e in row.exercises if e.core)
    assert re.search(rf'Or skip to <a [^>]*data-at="{first_core}"', page(work=work))


# ---------------------------------------------------------------- true in every state


def test_states_are_counted_and_shown(work):
    mark(work, exercise("01", 0).target, "solved", 2e9)
    mark(work, exercise("01", 1).target, "taken", 2e9)
    mark(work, exercise("01", 2).target, "tried", 2e9)
    text = Text.of(page(work=work))
    assert f"01 Tokenization 2 of {len(ROWS[1].exercises)} solved, 1 tried" in text
    assert text.count("0 of ") >= len(ROWS) - 1


def test_an_exercise_of_the_second_module_counts(work):
    row = next(r for r in ROWS if len(r.modules) > 1)
    target = next(e.target for e in row.exercises if e.target.split(".")[-2] == row.modules[1])
    mark(work, target, "solved", 2e9)
    assert f"1 of {len(row.exercises)} solved" in Text.of(page(work=work))


def test_a_damaged_progress_folder_is_said_on_the_page_not_on_the_terminal(work, capsys):
    (work / ".progress").write_text("no folder")
    said = page(work=work)
    assert 'role="alert"' in said and "Your progress can&#x27;t be read" in said and "Begin here" in said
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "name", ["x", "a.b.c.solved", "tokenization.merge_pair.half", ".solved", "tokenization..solved"]
)
def test_strange_files_among_the_marks_change_nothing(work, name):
    before = page(work=work)
    (work / ".progress").mkdir()
    (work / ".progress" / name).write_text("?")
    assert page(work=work) == before


def test_without_any_notebook_the_page_says_how_to_get_them(tmp_path):
    said = page(work=tmp_path / "nothing")
    assert said.count("make start brings it") == len(ROWS) and "Begin here" in said


def test_names_are_escaped_and_links_follow_the_base_url(work, tmp_path):
    (tmp_path / "chapters").mkdir()
    listed = json.loads((CHAPTERS / "table.json").read_text(encoding="utf-8"))
    listed[0]["title"] = "<script>alert(1)</script>"
    (tmp_path / "chapters" / "table.json").write_text(json.dumps(listed))
    shutil.copy(CHAPTERS / "moved.toml", tmp_path / "chapters")
    said = page(tmp_path / "chapters", work, base_url="/user/me/")
    assert "<script>" not in said and "&lt;script&gt;" in said
    assert 'href="/user/me/lab/tree/01_tokenization.ipynb"' in said


def test_what_is_to_be_looked_up_is_linked_where_it_is_there(work, tmp_path):
    assert "To look things up" not in page(work=work, docs=tmp_path)
    (tmp_path / "glossary.md").write_text("# Glossary")
    said = page(work=work, docs=tmp_path)
    assert 'data-document="glossary"' in said and "cheat-sheet" not in said


class Text(HTMLParser):
    """A page's text alone, without what is hidden from readers."""

    def __init__(self):
        super().__init__()
        self.words, self.hidden, self.ids, self.headings = [], 0, [], []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.hidden += tag == "svg"
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.headings += [tag] if re.fullmatch("h[1-6]", tag) else []

    def handle_endtag(self, tag):
        self.hidden -= tag == "svg"

    def handle_data(self, data):
        if not self.hidden:
            self.words.append(data)

    @classmethod
    def of(cls, html):
        parser = cls()
        parser.feed(html)
        return " ".join(" ".join(parser.words).split()).replace(" ,", ",")


def test_its_text_alone_makes_sense_and_its_outline_is_sound(work):
    parser = Text()
    parser.feed(page(work=work))
    assert len(parser.ids) == len(set(parser.ids))
    assert parser.headings[0] == "h1" and set(parser.headings[1:]) == {"h2"}
    text = Text.of(page(work=work))
    for row in ROWS:
        assert f"{row.number} {row.title}" in text
        if row.needs:
            assert f"needs {', '.join(row.needs)}" in text
    minutes = sum(row.minutes(core=True) for row in ROWS), sum(row.minutes() for row in ROWS)
    assert f"The fast path: {minutes[0] / 60:.1f} h" in text and f"The whole: {minutes[1] / 60:.1f} h" in text


# ---------------------------------------------------------------- the map


def test_every_chapter_has_a_place_below_what_it_needs_and_an_arrow_from_each():
    found = rows()[0]
    at, drawn = places(found), arrows(found)
    assert len(set(at.values())) == len(found)
    for row in found:
        for need in row.needs:
            assert at[need][0] < at[row.number][0]
            assert drawn.count(f'data-arrow="{need}-{row.number}"') == 1
    assert drawn.count("marker-end") == sum(len(row.needs) for row in found)


def test_more_chapters_on_a_line_than_there_are_columns():
    made = [dict(name=f"{k:02}_x", number=f"{k:02}", title="x", needs=[], exercises=[]) for k in range(8)]
    from utils.workbook.start_page import Row

    at = places([Row(**m) for m in made])
    assert len(set(at.values())) == 8


def test_the_style_leaves_the_room_that_the_arrows_count_on():
    style = (Path(start_page.__file__).parent / "jupyter/labextensions/workbook-start/files" / "style.css").read_text()
    assert f"grid-auto-rows: {start_page.ROW}px; gap: {start_page.GAP}px" in style
