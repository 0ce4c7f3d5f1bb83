"""The check engine: run a learner's function beside the solution and name the first thing that is wrong.

A chapter's checks module states its exercises like this:

    chapter = Chapter(tokenization)
    exercise, check, hint = chapter.exercise, chapter.check, chapter.hint

    merge_pair = exercise(tokenization.merge_pair)

    @merge_pair.cases
    def _():
        yield (["a", "b", "a"], ("a", "b"))

    @merge_pair.mistake("you merged only the first place: go on to the end of the word")
    def _(symbols, pair): ...

    @merge_pair.law("merging must not change the spelled text")
    def _(merge_pair): return "".join(merge_pair(["a", "b"], ("a", "b"))) == "ab"

    @merge_pair.right
    def _(symbols, pair): ...

A chapter of two modules says `Chapter(saes, sae_causes)` in `utils.checks.saes`, from which its notebook imports
`check`; the exercises of the second stand in `utils.checks.sae_causes`, which imports `chapter` from there.
"""

import copy
import importlib
import linecache
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType

import torch
from IPython import get_ipython
from IPython.display import Markdown, display

from utils.checks import progress
from utils.checks.compare import difference, short
from utils.checks.hints import read_hints
from utils.checks.limits import TookTooLong, time_limit
from utils.runtime import seed_everything

SECONDS = 20
GREEN, YELLOW, RED, OFF = "\033[32m", "\033[33m", "\033[31m", "\033[0m"


@dataclass
class Outcome:
    """What came of one call: a value, or the exception that it raised."""

    value: object = None
    error: BaseException | None = None


@dataclass
class Verdict:
    """`state` is "solved", "unwritten" or "wrong"; `says` is the sentence to print, `detail` up to two more lines."""

    state: str
    says: str
    detail: list[str]


class Exercise:
    """One function or class to write: the solution, the inputs to try it on, and the mistakes to recognise."""

    def __init__(self, solution: Callable, use=None, same=None, rtol=1e-3, atol=1e-5):
        self.solution, self.name = solution, solution.__name__
        self.target = f"{solution.__module__}.{self.name}"
        self.use = use or (lambda fn, *args: fn(*args))
        self.same = same or (lambda got, want, *args: difference(got, want, rtol, atol))
        self.mistakes: dict[str, Callable] = {}
        self.laws: dict[str, Callable] = {}
        self.right_answers: list[Callable] = []
        self._cases: Callable[[], Iterable[tuple]] = lambda: [()]

    # -------- how a chapter states the exercise
    def cases(self, generator: Callable[[], Iterable[tuple]]):
        """Decorator: a function that yields the argument tuples to try."""
        self._cases = generator
        return generator

    def mistake(self, sentence: str):
        """Decorator: a typical wrong answer, and what to tell a learner who wrote it."""
        return self._into(self.mistakes, sentence)

    def law(self, sentence: str):
        """Decorator: takes the function under test, returns whether what `sentence` demands holds."""
        return self._into(self.laws, sentence)

    def right(self, answer: Callable):
        """Decorator: another right answer, which the check must accept."""
        self.right_answers.append(answer)
        return answer

    @staticmethod
    def _into(table: dict[str, Callable], sentence: str):
        def register(fn: Callable) -> Callable:
            if sentence in table:
                raise ValueError(f"stated twice: {sentence!r}")
            table[sentence] = fn
            return fn

        return register

    # -------- how a learner's function is judged
    def verdict(self, fn: Callable) -> Verdict:
        """Judge `fn`; never raises on behalf of the learner's code, and gives it `SECONDS` seconds of
        processor time in all.

        What the solution and the known mistakes take is not counted.
        """
        where = _code_files(fn)
        try:
            return self._judge(fn, where, spent=[])
        except TookTooLong as error:
            says = f"did not finish within {SECONDS} s: is there a loop that never ends?"
            return Verdict("wrong", says, _line_of(error, where))

    @staticmethod
    def _limited(spent: list[float], call: Callable, *args):
        """`call(*args)` within what is left of the check's time; what it took is added to `spent`."""
        start = time.thread_time()
        with time_limit(max(0.01, SECONDS - sum(spent))):
            result = call(*args)
        spent.append(time.thread_time() - start)
        return result

    def _judge(self, fn: Callable, where: set[str], spent: list[float]) -> Verdict:
        args_list = list(self._cases())
        wants = [self._run(self.solution, args) for args in args_list]
        gots = []
        for args, want in zip(args_list, wants, strict=True):
            got = self._limited(spent, self._run, fn, args)
            if isinstance(got.error, NotImplementedError) and not isinstance(want.error, NotImplementedError):
                method = _frame_name(got.error, where)
                part = "" if method in (None, self.name) else f" (`{method}`)"
                return Verdict("unwritten", f"not written yet{part}", [])
            gots.append(got)
        said = [self._compare(got, want, args) for got, want, args in zip(gots, wants, args_list, strict=True)]
        if any(said):
            first = next(i for i, s in enumerate(said) if s)
            if named := self._named(gots, wants, args_list, first):
                return Verdict("wrong", named, [])
            detail = _line_of(gots[first].error, where) or [f"on the input: {_inputs(args_list[first])}"]
            if gots[first].error is None and (law := self._limited(spent, self._broken_law, fn)):
                return Verdict("wrong", law, [said[first], *detail])
            return Verdict("wrong", said[first], detail)
        if law := self._limited(spent, self._broken_law, fn):
            return Verdict("wrong", law, [])
        return Verdict("solved", "right", [])

    def _run(self, fn: Callable, args: tuple) -> Outcome:
        try:
            seed_everything(0)
            with torch.enable_grad():
                return Outcome(self.use(fn, *copy.deepcopy(args, _models_in(args))))
        except (Exception, SystemExit) as error:  # `exit()` in an answer must not end the kernel
            return Outcome(error=error)

    def _compare(self, got: Outcome, want: Outcome, args: tuple) -> str | None:
        if want.error is not None:
            expected = type(want.error)
            if got.error is None:
                return f"accepted this input, but should raise {expected.__name__}"
            return (
                None if isinstance(got.error, expected) else f"raised {_describe(got.error)}, not {expected.__name__}"
            )
        if got.error is not None:
            return f"raised {_describe(got.error)}"
        try:
            return self.same(got.value, want.value, *args)
        except Exception as error:
            return f"returned something that can't be compared ({_describe(error)})"

    def _named(self, gots, wants, args_list, first: int) -> str | None:
        """The mistake whose outcomes equal the learner's everywhere, or else on the first case that differs."""
        on_first = None
        for sentence, wrong in self.mistakes.items():
            outcome = self._run(wrong, args_list[first])
            # A mistake that is right here explains nothing here.
            if not self._compare(outcome, wants[first], args_list[first]):
                continue
            if self._compare(gots[first], outcome, args_list[first]):
                continue
            on_first = on_first or sentence
            others = (i for i in range(len(args_list)) if i != first)
            if not any(self._compare(gots[i], self._run(wrong, args_list[i]), args_list[i]) for i in others):
                return sentence
        return on_first

    def _broken_law(self, fn: Callable) -> str | None:
        for sentence, law in self.laws.items():
            if not self.obeys(law, fn):
                return sentence
        return None

    def obeys(self, law: Callable, fn: Callable) -> bool:
        """Whether the law holds for `fn`; a law that raises does not hold."""
        seed_everything(0)
        try:
            with torch.enable_grad():
                return bool(law(fn))
        except Exception:
            return False


class Chapter:
    """All exercises of one chapter, and the two calls that its notebook makes: `check` and `hint`.

    Args:
        modules: of the solutions. The first gives the chapter's name, under which progress is recorded; the checks of
            each further one are read from the module of its name in `utils.checks` when they are first asked for.
    """

    def __init__(self, *modules: ModuleType):
        self.modules = [module.__name__ for module in modules]
        self.name, *self._further = (name.rsplit(".", 1)[-1] for name in self.modules)
        self._exercises: dict[str, Exercise] = {}
        self._states: dict[str, str] = {}
        self._hints_given: dict[str, int] = {}

    def exercise(self, solution: Callable, **options) -> Exercise:
        """Register an exercise; the options are those of `Exercise`."""
        self._exercises[solution.__name__] = exercise = Exercise(solution, **options)
        return exercise

    @property
    def exercises(self) -> dict[str, Exercise]:
        """By name, in the order of the modules."""
        for name in self._further:
            importlib.import_module(f"utils.checks.{name}")
        return self._exercises

    def check(self, fn: Callable) -> Callable:
        """Print whether `fn` is right, and what is wrong with it otherwise; record the progress.

        Returns `fn` where it is right, else the workbook's own version, so that the notebook's later cells work.
        """
        exercise = self._find(fn)
        if exercise is None:
            return fn
        if fn is exercise.solution:
            self._record(exercise.name, "taken")
            _say(YELLOW, "○", exercise.name, "this is the workbook's own version.", [], self._count())
            return fn
        verdict = exercise.verdict(fn)
        if verdict.state == "solved":
            self._record(exercise.name, "solved")
            _say(GREEN, "✓", exercise.name, "right.", [], self._count())
            return fn
        self._record(exercise.name, "tried" if verdict.state == "wrong" else "open")
        goes_on = "Until then the notebook goes on with the workbook's version."
        if verdict.state == "unwritten":
            next_step = f"Write it in the cell above, or ask for hint({exercise.name}). {goes_on}"
            _say(YELLOW, "○", exercise.name, verdict.says + ".", [], next_step)
        else:
            next_step = f"Change the cell above and run both again, or ask for hint({exercise.name}). {goes_on}"
            _say(RED, "✗", exercise.name, verdict.says, verdict.detail, next_step)
        return exercise.solution

    def hint(self, fn: Callable | str) -> None:
        """Show the next hint for an exercise; after the last one, how to take the solution."""
        exercise = self._find(fn)
        if exercise is None:
            return
        hints = read_hints(exercise.target)
        given = self._hints_given.get(exercise.name, 0)
        self._hints_given[exercise.name] = given + 1
        if given < len(hints):
            title, text = hints[given]
            more = f"\n\n*{given + 1} of {len(hints)}; call it again for the next.*"
            _show_markdown(f"**{title}**\n\n{text}{more}")
        else:
            take = f"from {exercise.solution.__module__} import {exercise.name}"
            _show_markdown(f"No more hints. To go on with the solution, run this in a cell:\n\n```python\n{take}\n```")

    def _find(self, fn) -> Exercise | None:
        name = fn if isinstance(fn, str) else getattr(fn, "__name__", None)
        if name in self.exercises:
            return self.exercises[name]
        what = f"{name!r}" if name else f"{short(fn, 30)}, which is no function"
        known = ", ".join(self.exercises)
        print(f"{RED}✗ This chapter has no exercise called {what}.{OFF} Keep the name given: one of {known}.")
        return None

    def _record(self, name: str, state: str) -> None:
        if self._states.get(name) != "solved":
            self._states[name] = state
        if state != "open":
            progress.record(self.name, name, state)

    def _count(self) -> str:
        # What earlier sittings solved counts too.
        if progress.work_folder():
            self._states = {**self._states, **progress.load().get(self.name, {})}
        solved = sum(self._states.get(name) == "solved" for name in self.exercises)
        return f"{solved} of {len(self.exercises)} in this chapter."


def _models_in(args: tuple) -> dict[int, object]:
    """The models among the inputs and those that an input holds, as a cache does: `deepcopy` keeps them as they are."""
    held = [value for a in args for value in (a, *getattr(a, "__dict__", {}).values())]
    return {id(value): value for value in held if callable(getattr(value, "parameters", None))}


def _say(colour: str, sign: str, name: str, sentence: str, detail: list[str], last: str) -> None:
    lines = [f"{colour}{sign} {name}: {sentence}{OFF}", *(f"  {d}" for d in detail[:3]), f"  {last}"]
    print("\n".join(lines))


def _show_markdown(text: str) -> None:
    if get_ipython() is None:
        print(text)
    else:
        display(Markdown(text))


def _describe(error: BaseException) -> str:
    text = " ".join(str(error).split())
    text = text if len(text) <= 120 else text[:119] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _inputs(args: tuple) -> str:
    return ", ".join(short(a, 50) for a in args) or "none"


def _code_files(fn: Callable) -> set[str]:
    """The files (for a notebook: the cells) that hold the learner's code."""
    functions = vars(fn).values() if isinstance(fn, type) else [fn]
    return {f.__code__.co_filename for f in functions if hasattr(f, "__code__")}


def _learner_frames(error: BaseException | None, files: set[str]):
    tb = error.__traceback__ if error else None
    while tb:
        if tb.tb_frame.f_code.co_filename in files:
            yield tb
        tb = tb.tb_next


def _line_of(error: BaseException | None, files: set[str]) -> list[str]:
    frames = list(_learner_frames(error, files))
    if not frames:
        return []
    tb = frames[-1]
    source = linecache.getline(tb.tb_frame.f_code.co_filename, tb.tb_lineno).strip()
    return [f"in line {tb.tb_lineno} of the cell: {source}"]


def _frame_name(error: BaseException, files: set[str]) -> str | None:
    frames = list(_learner_frames(error, files))
    return frames[-1].tb_frame.f_code.co_name if frames else None
