"""The checks' own proof: right answers pass, every named mistake is caught with its own sentence."""

import importlib
import inspect
import pkgutil
import re

import pytest
import torch

from utils import checks
from utils.checks import engine
from utils.checks.engine import Chapter
from utils.checks.hints import read_hints
from utils.workbook import mutants
from utils.workbook.chapters import table

MODULES = [importlib.import_module(f"utils.checks.{m.name}") for m in pkgutil.iter_modules(checks.__path__)]
# A chapter's second module has the same one.
CHAPTERS = list(dict.fromkeys(m.chapter for m in MODULES if isinstance(getattr(m, "chapter", None), Chapter)))
EXERCISES = [e for c in CHAPTERS for e in c.exercises.values()]
IDS = [e.target.removeprefix("utils.") for e in EXERCISES]
METHODS = {task.target: task.methods for task in mutants.tasks()}  # of classes, those that are to be written
CONSTANTS = [0, None, "", [], {}, torch.zeros(1)]


@pytest.fixture(autouse=True)
def patience(monkeypatch, outcomes_kept):
    """The proof is about verdicts, not about speed: a busy machine must not turn one into "did not finish"."""
    monkeypatch.setattr(engine, "SECONDS", 300)


def numbered(attribute):
    items = [
        pytest.param(exercise, item, id=f"{name}-{i}")
        for exercise, name in zip(EXERCISES, IDS, strict=True)
        for i, item in enumerate(getattr(exercise, attribute))
    ]
    return pytest.mark.parametrize("exercise, item", items)


def constant(value):
    return lambda *args, **kwargs: value


def stub_of(solution):
    """The solution with nothing written: for a class, its public methods."""

    def stub(*args, **kwargs):
        raise NotImplementedError

    if not isinstance(solution, type):
        return stub
    methods = {n: stub for n, f in vars(solution).items() if not n.startswith("__") and not isinstance(f, property)}
    methods = {n: s for n, s in methods.items() if callable(getattr(solution, n))}
    return type(solution.__name__, (solution,), methods)


@pytest.mark.parametrize("exercise", EXERCISES, ids=IDS)
def test_solution_passes(exercise):
    verdict = exercise.verdict(exercise.solution)
    assert verdict.state == "solved", (verdict.says, verdict.detail)


@numbered("right_answers")
def test_right_answer_passes(exercise, item):
    verdict = exercise.verdict(item)
    assert verdict.state == "solved", (verdict.says, verdict.detail)


@numbered("mistakes")
def test_mistake_is_named(exercise, item, mistakes_caught):
    said = exercise.verdict(exercise.mistakes[item]).says
    mistakes_caught(said == item)
    assert said == item


@pytest.mark.parametrize("exercise", EXERCISES, ids=IDS)
def test_stub_and_constants_are_rejected(exercise):
    assert exercise.verdict(stub_of(exercise.solution)).state == "unwritten"
    for value in CONSTANTS:
        assert exercise.verdict(constant(value)).state == "wrong", value


@pytest.mark.parametrize("exercise", EXERCISES, ids=IDS)
def test_every_law_can_be_broken(exercise):
    for sentence, law in exercise.laws.items():
        wrong = [*exercise.mistakes.values(), *(constant(value) for value in CONSTANTS)]
        assert any(not exercise.obeys(law, fn) for fn in wrong), sentence


@pytest.mark.parametrize("exercise", EXERCISES, ids=IDS)
def test_every_promised_exception_is_provoked(exercise):
    solution = exercise.solution
    parts = [getattr(solution, name) for name in METHODS[exercise.target]] or [solution]
    if solution.__init__ in parts:
        parts.append(solution)
    said = [re.search(r"^ *Raises:\n(.*?)(\n\n|\Z)", inspect.getdoc(f) or "", re.M | re.S) for f in parts]
    promised = {name for text in said if text for name in re.findall(r"^    (\w+):", text[1], re.M)}
    raised = {type(exercise._run(solution, args).error).__name__ for args in exercise.prepared()}
    assert promised <= raised


# A slow loop that is there is right; each of its four steps makes it faster, and the check says ✓ after each.
ALWAYS_RIGHT = {"utils.tokenization.train_bpe"}
LONG = {e.target for row in table() for e in row.exercises if e.minutes >= 30}


@pytest.mark.parametrize("exercise", [e for e in EXERCISES if e.target in LONG], ids=lambda e: e.target)
def test_a_long_task_comes_in_steps_with_a_check_of_each(exercise):
    if len(METHODS[exercise.target]) > 1 or exercise.target in ALWAYS_RIGHT:  # a class's methods are its steps
        return
    cases = exercise.prepared()
    wants = [exercise._run(exercise.solution, args) for args in cases]
    right_steps = engine._Judge(exercise, exercise.solution, set(), [], False)._right_steps
    gots = [engine.Outcome(error=NotImplementedError()) for _ in cases]
    assert len(exercise.steps) > 1 and not right_steps(gots, wants, cases)
    for n, (concerns, _) in enumerate(exercise.steps.values(), start=1):
        gots = [want if concerns(*args) else got for got, want, args in zip(gots, wants, cases, strict=True)]
        assert f"step {n}," in right_steps(gots, wants, cases)[0]
    assert any(got.error for got in gots), "what comes after the last step?"


@pytest.mark.parametrize("exercise", EXERCISES, ids=IDS)
def test_exercise_is_complete(exercise):
    assert len(exercise.mistakes) >= 3
    assert all(len(sentence) <= 160 for sentence in exercise.mistakes)
    assert exercise.right_answers, "state one differently written right answer"
    assert len(read_hints(exercise.target)) == 3
