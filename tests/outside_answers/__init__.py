"""Wrong answers to exercises, written from docstring and text alone, before the check of the exercise was read.

A hundred in each module, at least eight a chapter, each with what is wrong with it. `tests/test_outside_answers.py` has
the checks judge them.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Wrong:
    target: str
    why: str
    answer: Callable


class Answers(list):
    """A hundred: `@answers.wrong(solution, why)` adds one."""

    def wrong(self, solution: Callable, why: str):
        def register(answer: Callable) -> Callable:
            self.append(Wrong(f"{solution.__module__}.{solution.__name__}", why, answer))
            return answer

        return register
