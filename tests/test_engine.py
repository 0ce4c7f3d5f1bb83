"""The check engine: what a learner is told in every kind of trouble."""

import re
import sys
import types

import numpy as np
import pytest
import torch

from utils import checks
from utils.checks import engine, hints, progress
from utils.checks.compare import difference
from utils.checks.engine import Chapter


def double(x):
    """Twice x."""
    return 2 * x


double.__module__ = "utils.sample"


@pytest.fixture
def chapter():
    chapter = Chapter(types.SimpleNamespace(__name__="utils.sample"))
    exercise = chapter.exercise(double)

    @exercise.cases
    def _():
        yield (torch.tensor([[1.0, 2.0, 3.0]]),)
        yield (torch.zeros(2, 0),)

    @exercise.mistake("you squared: add the value to itself")
    def _(x):
        return x**2

    @exercise.mistake("you forgot to double: multiply by 2")
    def _(x):
        return x

    @exercise.law("half of the result must be the input")
    def _(double):
        return torch.equal(double(torch.tensor([7.0])) / 2, torch.tensor([7.0]))

    return chapter


def told(chapter, fn, capsys):
    fn.__name__ = "double"
    result = chapter.check(fn)
    text = re.sub(r"\033\[\d+m", "", capsys.readouterr().out)
    assert len(text.splitlines()) <= 5
    return result, text


def test_right_answer_is_returned(chapter, capsys):
    def answer(x):
        return x + x

    result, text = told(chapter, answer, capsys)
    assert result is answer
    assert text.startswith("✓ double: right.") and "1 of 1" in text


WRONG = {
    "not written yet": lambda x: (_ for _ in ()).throw(NotImplementedError),
    "you squared: add the value to itself": lambda x: x * x,
    "you forgot to double": lambda x: x.clone(),
    "returned None, expected a tensor of shape [1, 3]: is a `return` missing?": lambda x: None,
    "returned str": lambda x: "a",
    "returned shape [3, 1], expected [1, 3]": lambda x: 2 * x.mT,
    "3 of 3 values differ, first at [0, 0]: got 3, expected 2": lambda x: 3 * x,
    "raised ZeroDivisionError: division by zero": lambda x: 1 / 0,
    "raised SystemExit": lambda x: exit(),
    "raised RecursionError": lambda x: (lambda f: f(f))(lambda f: f(f)),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_problem_is_named_and_the_solution_returned(sentence, chapter, capsys):
    result, text = told(chapter, WRONG[sentence], capsys)
    assert result is double
    assert sentence in text
    assert "hint(double)" in text


def test_line_of_the_exception_is_shown(chapter, capsys):
    def answer(x):
        y = x + 1
        return y.no_such_attribute

    assert "return y.no_such_attribute" in told(chapter, answer, capsys)[1]


def test_broken_law_is_named_where_the_cases_agree(chapter, capsys):
    def answer(x):
        return 2 * x if x.shape != (1,) else x

    assert "half of the result must be the input" in told(chapter, answer, capsys)[1]


def test_endless_loop_is_stopped(chapter, capsys, monkeypatch):
    monkeypatch.setattr(engine, "SECONDS", 0.3)

    def answer(x):
        while True:
            try:
                pass
            except Exception:
                pass

    result, text = told(chapter, answer, capsys)
    assert result is double
    assert "did not finish within 0.3 s" in text and "in line" in text


def test_inputs_are_copied(chapter, capsys):
    def answer(x):
        x *= 2
        return x

    assert told(chapter, answer, capsys)[0] is answer


def test_solution_itself_counts_as_taken(chapter, capsys):
    assert chapter.check(double) is double
    assert "the workbook's own version" in capsys.readouterr().out
    assert chapter._states == {"double": "taken"}


def test_unknown_name_and_no_function(chapter, capsys):
    assert chapter.check(len) is len
    assert "no exercise called 'len'" in capsys.readouterr().out
    chapter.check(3)
    assert "no function" in capsys.readouterr().out


def test_expected_exception():
    def solution(x):
        raise ValueError("no")

    exercise = engine.Exercise(solution)
    exercise.cases(lambda: [(1,)])
    assert exercise.verdict(solution).state == "solved"
    assert exercise.verdict(lambda x: x).says == "accepted this input, but should raise ValueError"
    assert exercise.verdict(lambda x: {}[x]).says.startswith("raised KeyError")


def test_hints_come_one_by_one(tmp_path, monkeypatch, capsys):
    source = tmp_path / "01_sample.md"
    source.write_text(
        '```python exercise="utils.sample.double" difficulty=1\n```\n\n'
        + "".join(
            f"<details>\n<summary>Hint {i}: more</summary>\n\ntext {i}\n\n```python\nx = {i}\n```\n\n</details>\n\n"
            for i in (1, 2)
        )
        + "```python\nafter\n```\n\n<details>\n<summary>Hint 9: of another</summary>\nno\n</details>\n"
    )
    found = hints.read_hints("utils.sample.double", tmp_path)
    assert [title for title, _ in found] == ["Hint 1: more", "Hint 2: more"]
    assert "x = 2" in found[1][1]
    monkeypatch.setattr(engine, "read_hints", lambda target: found)
    chapter = Chapter(types.SimpleNamespace(__name__="utils.sample"))
    chapter.exercise(double)
    for expected in ("text 1", "text 2", "from utils.sample import double"):
        chapter.hint("double")
        assert expected in capsys.readouterr().out


def test_checks_of_a_second_module_are_read_when_asked_for(monkeypatch, tmp_path, capsys):
    (tmp_path / "sample_more.py").write_text(
        """
        from utils.sample import chapter

        def treble(x):
            return 3 * x

        treble.__module__ = "utils.sample_more"
        chapter.exercise(treble)
        """.replace("\n        ", "\n")
    )
    first, second = (types.SimpleNamespace(__name__=f"utils.{name}") for name in ("sample", "sample_more"))
    first.chapter = chapter = Chapter(first, second)
    chapter.exercise(double)
    monkeypatch.setitem(sys.modules, "utils.sample", first)
    monkeypatch.setattr(checks, "__path__", [str(tmp_path)])
    monkeypatch.setattr(progress, "WORK", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert list(chapter.exercises) == ["double", "treble"]
    chapter.check(chapter.exercises["treble"].solution)
    assert "0 of 2 in this chapter" in capsys.readouterr().out
    assert progress.load(tmp_path) == {"sample": {"treble": "taken"}}
    chapter.hint("treble")
    assert "from utils.sample_more import treble" in capsys.readouterr().out
    monkeypatch.delitem(sys.modules, "utils.checks.sample_more")


# ---------------------------------------------------------------- progress


def test_nothing_is_recorded_outside_of_work(monkeypatch, tmp_path):
    monkeypatch.setattr(progress, "WORK", tmp_path / "work")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path)
    progress.record("sample", "double", "solved")
    assert not list(tmp_path.rglob("*solved*"))
    monkeypatch.chdir(tmp_path / "work")
    progress.record("sample", "double", "solved")
    assert progress.load(tmp_path / "work") == {"sample": {"double": "solved"}}


# ---------------------------------------------------------------- comparing results


@pytest.mark.parametrize(
    "got, want",
    [
        (torch.tensor([1.0, 2.0], dtype=torch.float64), torch.tensor([1.0, 2.0])),
        (np.array([1.0, 2.0]), torch.tensor([1.0, 2.0])),
        ([1.0, 2.0], torch.tensor([1.0, 2.0])),
        (torch.tensor(0.5), 0.5),
        (float("nan"), float("nan")),
        (torch.tensor([float("nan")]), torch.tensor([float("nan")])),
        ((1, "a"), [1, "a"]),
        ({"a": torch.ones(2)}, {"a": torch.ones(2)}),
        ({1, 2}, frozenset({2, 1})),
        (torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0])),
    ],
)
def test_same(got, want):
    assert difference(got, want) is None


@pytest.mark.parametrize(
    "got, want, sentence",
    [
        (torch.tensor([5001]), torch.tensor([5000]), "1 of 1 values differ"),
        (5001, 5000, "got 5001, expected 5000"),
        (True, 1, "returned bool"),
        ([1, 2], [1, 2, 3], "has 2 items, expected 3"),
        ([1, 3, 3], [1, 2, 3], "item 1: got 3, expected 2"),
        ({"a": 1}, {"a": 1, "b": 2}, "the key 'b' is missing"),
        ({"a": 1, "c": 2}, {"a": 1}, "the key 'c' should not be there"),
        ({1}, {1, 2}, "2 is missing"),
        ("abc", b"abc", "returned str, expected bytes"),
        (torch.ones(2, 3), torch.ones(3, 2), "returned shape [2, 3], expected [3, 2]"),
        (torch.ones(3), 1.0, "returned a tensor of shape [3], expected float"),
        ("x" * 40 + "a", "x" * 40 + "b", "differs from character 40 on"),
        (float("nan"), 1.0, "got nan, expected 1"),
    ],
)
def test_different(got, want, sentence):
    assert sentence in difference(got, want)
