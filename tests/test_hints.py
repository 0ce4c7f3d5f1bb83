"""What stands beside an exercise: last hints that run once their gaps are filled, and why a solution is written so."""

import importlib
import os
import random

import pytest
from test_checks import EXERCISES, IDS

from utils.checks import engine
from utils.checks.hints import read_why
from utils.workbook import SOURCE, WorkbookError, hints
from utils.workbook.build import build_chapter

FULL = "WORKBOOK_FULL" in os.environ
TRIED = EXERCISES if FULL else random.Random(0).sample(EXERCISES, 20)


@pytest.mark.parametrize("exercise", EXERCISES, ids=IDS)
def test_the_last_hint_is_code_with_gaps(exercise):
    compile(hints.filled(exercise.target), exercise.name, "exec")


@pytest.mark.parametrize("exercise", TRIED, ids=[e.target.removeprefix("utils.") for e in TRIED])
def test_the_last_hint_filled_is_right(exercise, monkeypatch):
    monkeypatch.setattr(engine, "SECONDS", 300)
    verdict = exercise.verdict(hints.answer(exercise.target))
    assert verdict.state == "solved", (verdict.says, verdict.detail)


BAD = {
    "no gap": ("return x\n", [], "0 gaps"),
    "one expression too many": ("return ...\n", ["x", "x"], "1 gaps, and 2 expressions"),
    "no code": ("return x of\n", [], "no code"),
    "a statement in a gap": ("return ...\n", ["x = 1"], "no code"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_hint_that_can_not_be_filled_is_named(what, monkeypatch):
    code, gaps, says = BAD[what]
    monkeypatch.setattr(hints, "read_gaps", lambda target: (code, gaps))
    with pytest.raises(WorkbookError, match=says):
        hints.filled("utils.tokenization.decode")


def test_a_gap_is_filled_by_its_place():
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patched:
        patched.setattr(hints, "read_gaps", lambda target: ('é = "..."\nreturn é[..., ...], ...\n', ["...", "0", "é"]))
        assert hints.filled("utils.tokenization.decode").endswith('    é = "..."\n    return é[..., 0], é\n')


SAID = {e.target: why for e in EXERCISES if (why := read_why(e.target))}


def test_most_solutions_say_why_they_are_written_so():
    assert len(SAID) >= 0.75 * len(EXERCISES)
    assert all(why.endswith(".") and "\n" not in why and len(why) <= 240 for why in SAID.values())


def test_what_stands_beside_an_exercise_is_no_part_of_its_notebook():
    chapter = SOURCE / "01_tokenization.md"
    assert "<!-- why" in chapter.read_text(encoding="utf-8") and "<!-- gaps" in chapter.read_text(encoding="utf-8")
    cells = build_chapter(chapter, solved=False).cells
    assert not any("<!--" in cell.source or cell.source.startswith("\n") for cell in cells)


def test_compare_says_why(capsys, monkeypatch):
    monkeypatch.setattr(engine.progress, "work_folder", lambda: None)
    chapter = importlib.import_module("utils.checks.tokenization").chapter
    monkeypatch.setattr(chapter, "_states", {"merge_pair": "solved"})
    chapter.compare("merge_pair")
    text = capsys.readouterr().out
    assert text.index("return tuple(merged)") < text.index(SAID["utils.tokenization.merge_pair"])
