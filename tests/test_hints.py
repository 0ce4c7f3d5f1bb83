"""The last hints: code that runs and is right once its gaps are filled."""

import os
import random

import pytest
from test_checks import EXERCISES, IDS

from utils.checks import engine
from utils.workbook import WorkbookError, hints

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
