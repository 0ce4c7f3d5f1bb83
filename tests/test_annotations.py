"""The stubs' annotations, enforced: on every input of its check a solution takes and gives what they say."""

import inspect
import os
import random
from contextlib import contextmanager

import jaxtyping
import pytest
import torch
from beartype import BeartypeConf, beartype
from jaxtyping import Float
from test_checks import EXERCISES, METHODS
from torch import Tensor

FULL = "WORKBOOK_FULL" in os.environ
TRIED = EXERCISES if FULL else random.Random(0).sample(EXERCISES, 20)
# A whole number is one: 0 passes for 0.0.
enforced = jaxtyping.jaxtyped(typechecker=beartype(conf=BeartypeConf(is_pep484_tower=True)))
STAND_INS = {"vocab_by_id": "a dictionary stands in for a tokenizer"}
TRIED = [e for e in TRIED if e.name not in STAND_INS]


def checked(exercise):
    """The solution, or the methods of it that are to be written, with its annotations enforced."""
    solution = exercise.solution
    if inspect.isgeneratorfunction(inspect.unwrap(solution)):
        return contextmanager(enforced(inspect.unwrap(solution)))
    if not isinstance(solution, type):
        return enforced(solution)
    methods = {}
    for name in METHODS[exercise.target]:
        method = vars(solution)[name]
        if isinstance(method, staticmethod | classmethod):
            methods[name] = type(method)(enforced(method.__func__))
        elif isinstance(method, property):
            methods[name] = property(enforced(method.fget), method.fset and enforced(method.fset))
        elif inspect.isfunction(method):
            methods[name] = enforced(method)
    return type(solution)(solution.__name__, (solution,), methods)


@pytest.mark.parametrize("exercise", TRIED, ids=[e.target.removeprefix("utils.") for e in TRIED])
def test_a_solution_keeps_to_its_annotations(exercise):
    fn = checked(exercise)
    for args in exercise.prepared():
        if exercise._run(exercise.solution, args).error is None:
            error = exercise._run(fn, args).error
            assert error is None, f"{type(error).__name__}: {error}"


def test_an_annotation_that_is_wrong_is_seen():
    @enforced
    def corner(x: Float[Tensor, "row column"]) -> int:
        return float(x[0, 0])

    for wrong in (torch.zeros(2, 2), torch.zeros(2)):
        with pytest.raises(jaxtyping.TypeCheckError):
            corner(wrong)
