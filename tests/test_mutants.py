"""Mutants: what the rules change, when one counts as equal, and a sample of them before the checks."""

import ast
import inspect

import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import ActivationCache, HookedTransformer
from transformer_lens.hook_points import HookPoint

from utils.workbook import draws, mutants, mutation

SOURCE = '''
def mean_of(x: Tensor, keep: int = 0, *, scale=2.0) -> Tensor:
    """The mean."""
    if keep < 0:
        raise ValueError(f"keep is {keep}")
    out = -x[:, keep].abs().mean(dim=-1) + einsum(x, "a b -> b a")
    for row in x:
        out = out + row.sum(0, keepdim=True)
    return out.clone() * scale
'''
CHANGES = [
    ("axis", "dim=: -1 → 0"),
    ("axis", "'a b -> b a' → 'a b -> a b'"),
    ("axis", "(:, keep) → (keep, :)"),
    ("comparison", "keep < 0 → keep <= 0"),
    ("condition", "keep < 0 → False"),
    ("constant", "0 → 1"),
    ("default", "2.0 → 4.0"),
    ("dropped keyword", "without keepdim=: row.sum(0, keepdim=True) → row.sum(0)"),
    ("dropped statement", 'raise ValueError(f"keep is {keep}") → pass'.replace('"', "'")),
    ("dropped term", "out.clone() * scale → scale"),
    ("clone or detach", "out.clone() → out"),
    ("clone or detach", "return out.clone() * scale → return _detached(out.clone() * scale)"),
    ("unwrapped", "x[:, keep].abs() → x[:, keep]"),
    ("swapped arguments", "einsum(x, 'a b -> b a') → einsum('a b -> b a', x)"),
    ("ignored parameter", "scale is always 2.0"),
    ("fixed seed", "torch.manual_seed(0) at the beginning"),
    ("no_grad", "all under torch.no_grad()"),
    ("in place", "out = out + row.sum(0, keepdim=True) → out += row.sum(0, keepdim=True)"),
    ("early return", "return out"),
    ("first row only", "the first of `x` for all"),
]


def test_each_rule_makes_its_change_and_no_other():
    made = mutation.mutants_of(SOURCE)
    for rule, change in CHANGES:
        assert any(m.rule == rule and m.change == change for m in made), (rule, change)
    assert len({m.source for m in made}) == len(made)
    assert all(ast.parse(m.source) for m in made)
    assert mutation.mutants_of(SOURCE) == made  # each change is undone
    assert not any("keep is" in m.change for m in made if m.rule == "constant")  # what an exception says


def test_of_a_class_only_what_the_learner_writes():
    source = "class A:\n    def given(self):\n        return 1 + 1\n    def asked(self):\n        return 2 + 2\n"
    made = mutation.mutants_of(source, ["asked"])
    assert made and all("return 1 + 1" in m.source for m in made)


def scaled(x: Float[Tensor, "batch d"], factor: float = 2.0) -> Float[Tensor, "batch d"]:
    return x * factor


AGREES = {
    "the same": (lambda x, factor=2.0: factor * x, True),
    "another number": (lambda x, factor=2.0: x * 2, False),
    "another gradient": (lambda x, factor=2.0: x.detach() * factor, False),
    "its input changed": (lambda x, factor=2.0: x.mul_(factor), False),
    "one row only": (lambda x, factor=2.0: x[:1] * factor, False),
    "an exception": (lambda x, factor=2.0: 1 / len(x[1:]) and x * factor, False),
}


@pytest.mark.parametrize("name", AGREES)
def test_equal_is_what_agrees_on_drawn_inputs(name):
    fn, same = AGREES[name]
    assert draws.equal(fn, scaled) is same


def at_the_end(model: HookedTransformer, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch d_vocab"]:
    return model(tokens)[:, -1]


def patched(x: Float[Tensor, "batch seq d_model"], hook: HookPoint, cache: ActivationCache) -> Tensor:
    return x + cache[hook.name].mean()


WITH_MODELS = {
    "the same": (at_the_end, lambda model, tokens: model(tokens)[:, [-1]][:, 0], True),
    "at the beginning": (at_the_end, lambda model, tokens: model(tokens)[:, 0], False),
    "the first text's": (at_the_end, lambda model, tokens: model(tokens[:1])[:, -1], False),
    "a patch, the same": (patched, lambda x, hook, cache: cache[hook.name].mean() + x, True),
    "a patch of another layer": (patched, lambda x, hook, cache: x + cache["resid_pre", 0].mean(), False),
}


@pytest.mark.parametrize("name", WITH_MODELS)
def test_models_and_caches_are_drawn_too(name):
    solution, fn, same = WITH_MODELS[name]
    assert draws.equal(fn, solution) is same


def test_new_reasons_leave_what_was_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(mutants, "RESULTS", tmp_path)
    task = next(t for t in mutants.tasks("01") if t.target.endswith("merge_pair"))
    for number, state in enumerate(("rejected", "equal", "accepted")):
        mutants._write(task, mutants.Judged(number, "rule", 1, "change", state, "says", 0.0))
    assert [*mutants.kept(task)] == [0, 1, 2]
    monkeypatch.setattr(mutants, "OF_SURVIVORS", ("draws.py",))
    assert [*mutants.kept(task)] == [0]


def test_dimensions_of_one_name_have_one_size():
    def rows(x: Float[Tensor, "a b"], y: Int[Tensor, "b-1 a"], names: list[str], n: int | None = None): ...

    rows.__annotations__ = {k: v for k, v in inspect.signature(rows).parameters.items() for v in [v.annotation]}
    for seed in range(50):
        x, y, names, n = draws.arguments(rows, draws.random.Random(seed))
        assert y.shape == (x.shape[1] - 1, x.shape[0]) and y.dtype == torch.int64
        assert all(isinstance(name, str) for name in names) and (n is None or isinstance(n, int))


def test_annotations_that_say_too_little_are_not_drawn_from():
    def fn(model): ...

    assert draws.equal(fn, fn) is None


def test_results_are_kept_until_a_file_changes(tmp_path, monkeypatch):
    monkeypatch.setattr(mutants, "RESULTS", tmp_path)
    task = next(t for t in mutants.tasks("01") if t.target.endswith("merge_pair"))
    judged = mutants.judge(task, 0, task.mutants[0])
    mutants._write(task, judged)
    task.file.write_text(task.file.read_text() + '{"half a li')
    assert mutants.kept(task) == {0: judged}
    monkeypatch.setattr(mutants, "digest", lambda task, state: "another")
    assert mutants.kept(task) == {}


def test_an_unchanged_solution_is_no_mutant():
    """nnsight reads the lines of a trace again: a text that it can't find would be rejected for that alone."""
    task = next(t for t in mutants.tasks("10") if t.target.endswith("calculate_h"))
    unchanged = mutation.Mutant("none", 1, "", inspect.getsource(task.exercise.solution))
    verdict = task.exercise.verdict(mutants.built(task, unchanged))
    assert verdict.state == "solved", verdict.says
