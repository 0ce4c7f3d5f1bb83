"""Shared by all tests: no hub, and the share of named mistakes that the checks catch."""

import os
from collections import Counter

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_DATASETS_OFFLINE="1")

import beartype  # noqa: F401 -- before nnsight, which puts on `object` a method without a hash: beartype can't load then
import pytest
from small_course import SOURCE

from utils import workbook
from utils.checks.proof import remembered
from utils.workbook.build import build

_caught: list[bool] = []
_histories: Counter = Counter()


def pytest_addoption(parser):
    parser.addoption("--histories", type=int, default=200, help="how many random histories of a learner's copy")


@pytest.fixture
def mistakes_caught(record_property):
    """Call it with whether a named mistake was caught; the share is printed at the end of the run."""
    return lambda caught: record_property("caught", caught)


def pytest_runtest_logreport(report):
    if report.when == "call":
        _caught.extend(value for name, value in report.user_properties if name == "caught")
        for name, value in report.user_properties:
            if name == "histories":
                _histories.update(value)


def pytest_terminal_summary(terminalreporter):
    if _histories:
        counts = ", ".join(f"{what} {n}" for what, n in sorted(_histories.items()))
        terminalreporter.write_line(f"Histories of a learner's copy: {counts}")
    if _caught:
        terminalreporter.write_line(
            f"Named mistakes caught with their own message: {sum(_caught)} of {len(_caught)} "
            f"({sum(_caught) / len(_caught):.0%})"
        )


@pytest.fixture
def outcomes_kept(request):
    """What is known of an exercise is computed once for its whole proof, not once for each mistake."""
    exercise = request.getfixturevalue("exercise")
    if _kept.get("exercise") is not exercise:
        _kept.clear()
        _kept["exercise"] = exercise
    with remembered(exercise, _kept):
        yield


_kept: dict = {}


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course of one chapter in an empty folder: (source, chapters, solutions, work)."""
    folders = [tmp_path / n for n in ("source", "chapters", "solutions", "work")]
    folders[0].mkdir()
    (folders[0] / "01_sample.md").write_text(SOURCE)
    monkeypatch.setattr(workbook, "SOURCE", folders[0])
    build(*folders[:3])
    return folders
