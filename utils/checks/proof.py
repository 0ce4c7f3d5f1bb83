"""For proofs of the checks, in which many answers to one exercise are judged one after the other."""

from collections.abc import Iterator
from contextlib import contextmanager

from utils.checks.engine import Exercise


@contextmanager
def remembered(exercise: Exercise, kept: dict) -> Iterator[None]:
    """What the solution and the known mistakes give on an exercise's inputs is computed once and kept in `kept`; what
    is judged runs as ever.
    """
    known = {id(fn) for fn in (exercise.solution, *exercise.mistakes.values())}
    own = {name: vars(exercise).get(name) for name in ("_cases", "_run", "verdict")}
    cases, run, verdict = (getattr(exercise, name) for name in own)
    judged, numbers = [None], {}

    def numbered():
        numbers.clear()
        for i, args in enumerate(cases()):
            numbers[id(args)] = i
            yield args

    def run_once(fn, args, **how):
        if id(fn) not in known or fn is judged[0] or id(args) not in numbers:
            return run(fn, args, **how)
        key = (id(fn), numbers[id(args)], *how.items())
        if key not in kept:
            kept[key] = run(fn, args, **how)
        return kept[key]

    def judge(fn, **how):
        judged[0] = fn
        return verdict(fn, **how)

    exercise._cases, exercise._run, exercise.verdict = numbered, run_once, judge
    try:
        yield
    finally:
        for name, value in own.items():
            if value is None:
                vars(exercise).pop(name, None)
            else:
                setattr(exercise, name, value)
