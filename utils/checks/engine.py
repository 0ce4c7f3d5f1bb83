"""The check engine: run a learner's function beside the solution and name the first thing that is wrong.

A chapter's checks module states its exercises like this:

    chapter = Chapter(tokenization)
    exercise, check, hint, compare = chapter.exercise, chapter.check, chapter.hint, chapter.compare

    merge_pair = exercise(tokenization.merge_pair)

    @merge_pair.cases
    def _():
        yield (["a", "b", "a"], ("a", "b"))

    @merge_pair.refused
    def _():
        yield ([], ("a", "b"))

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
import functools
import importlib
import inspect
import itertools
import sys
import time
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from IPython import get_ipython
from IPython.display import Markdown, display

from utils.checks import guards, progress
from utils.checks.answers import (
    answer_behind,
    code_files,
    code_of,
    describe,
    frame_name,
    is_stub,
    line_of,
    notebook_values,
    source_of,
    stand_in,
    with_names,
)
from utils.checks.compare import difference, short
from utils.checks.devices import drawn
from utils.checks.guards import tensors_in
from utils.checks.hints import read_hints, read_table, read_todo, read_why
from utils.checks.limits import Interrupted, Printed, TookTooLong, interruptible, limited, printed
from utils.runtime import seed_everything

SECONDS = 20
# For `without`: of a measurement of a model, nobody trains through it.
MEASURED = {"gradients": "a number to read: no later cell trains through it"}
PRINTED = 2_000  # characters of an answer's own output that a check lets through
GREEN, YELLOW, RED, OFF = "\033[32m", "\033[33m", "\033[31m", "\033[0m"


@dataclass
class Outcome:
    """What came of one call: a value, or the exception that it raised."""

    value: object = None
    error: BaseException | None = None
    left: tuple[str, ...] = ()  # what it did not put back
    random: tuple = ()  # the states of the random generators before and after each call, and in the end


@dataclass
class Verdict:
    """`state` is "solved", "unwritten", "wrong" or "broken" (the check itself); `says` is the sentence to print,
    `detail` up to three more lines; `failed` the arguments at which a result is wrong."""

    state: str
    says: str
    detail: list[str]
    failed: tuple | None = None


class Exercise:
    """One function or class to write: the solution, the inputs to try it on, and the mistakes to recognise.

    Of every answer is asked, beside what the author states (`guards.py` says how):

    - "clean": arguments, models and the kernel are as they were after the call; `in_place` names the parameters that
      the task says to change;
    - "defaults": the parameters have the defaults that are asked for;
    - "again": called with other random numbers and without gradients it is right too, draws anew where the solution
      does and only there, and does not seed;
    - "seed": another seed given, another result, the solution's;
    - "gradients": where the solution's result carries a gradient, the answer's does too, and the same, for arguments
      and for parameters, a class's own too;
    - "one pass": what is an `Iterable` by its annotation may be a generator;
    - "batch of one": tensors with a dimension `batch` may hold one row.

    Args:
        use: calls the answer with a case's arguments; by default plainly.
        same: compares two results of `use` in one sentence or None; by default `difference`.
        in_place: parameter → why an answer may change it.
        without: what of the above is not asked → why.
    """

    def __init__(
        self,
        solution: Callable,
        use=None,
        same=None,
        rtol=1e-3,
        atol=1e-5,
        in_place: Mapping[str, str] | None = None,
        without: Mapping[str, str] | None = None,
    ):
        self.in_place, self.without, self._plain = in_place or {}, without or {}, same is None
        self.solution, self.name = solution, solution.__name__
        self.target = f"{solution.__module__}.{self.name}"
        self.direct = use is None  # a case holds the answer's own arguments
        self.use = use or (lambda fn, *args: fn(*args))
        self.same = same or (lambda got, want, *args: difference(got, want, rtol, atol))
        self.mistakes: dict[str, Callable] = {}
        self.laws: dict[str, Callable] = {}
        self.steps: dict[str, tuple[Callable, Callable]] = {}
        self.right_answers: list[Callable] = []
        self._cases: Callable[[], Iterable[tuple]] = lambda: [()]

    # -------- how a chapter states the exercise
    def cases(self, generator: Callable[[], Iterable[tuple]]):
        """Decorator: a function that yields the argument tuples to try."""
        self._cases = generator
        return generator

    def refused(self, generator: Callable[[], Iterable[tuple]]):
        """Decorator, after `cases`: a function that yields argument tuples at which the solution raises."""
        cases = self._cases
        self._cases = lambda: itertools.chain(cases(), generator())
        return generator

    def mistake(self, sentence: str):
        """Decorator: a typical wrong answer, and what to tell a learner who wrote it."""
        return self._into(self.mistakes, sentence)

    def law(self, sentence: str):
        """Decorator: takes the function under test, returns whether what `sentence` demands holds."""
        return self._into(self.laws, sentence)

    def step(self, what: str, part: Callable = lambda result: result):
        """Decorator, in the order of the steps: of a long function, what can be right before all is. It takes a case's
        arguments and says whether the step concerns them; `part` takes from a result what counts there."""

        def register(concerns: Callable) -> Callable:
            self.steps[what] = concerns, part
            return concerns

        return register

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
    def verdict(self, fn: Callable, brief: bool = False) -> Verdict:
        """Judge `fn`; never raises on behalf of the learner's code, and gives it `SECONDS` seconds of
        processor time in all.

        What the solution and the known mistakes take is not counted. The kernel is as before, random states too.

        Args:
            brief: stop at the first thing that is wrong, and name no mistake.
        """
        where = code_files(fn)
        with guards.kernel_kept(), printed(PRINTED) as streams:
            try:
                return interruptible(_Judge(self, fn, where, streams, brief).verdict)
            except TookTooLong as error:
                says = f"did not finish within {SECONDS} s: is there a loop that never ends?"
                return Verdict("wrong", says, line_of(error, where))

    def prepared(self) -> list[tuple]:
        """The cases; where shared models were spoilt, built anew.

        Raises:
            NotPrepared: that did not help.
        """
        try:
            with drawn():
                return list(self._cases())
        except Exception:
            guards.rebuild_shared()
        try:
            with drawn():
                return list(self._cases())
        except Exception as error:
            raise NotPrepared(describe(error)) from error

    def _watch(self, seed: int | None = None) -> guards.Watch:
        return guards.Watch(self.solution, self.in_place, seed)

    def _run(self, fn: Callable, args: tuple, seed: int = 0, grad: bool = True) -> Outcome:
        watch = self._watch(seed or None)
        outcome = Outcome()
        try:
            seed_everything(seed)
            with torch.set_grad_enabled(grad), watch.over(fn) as watched:
                outcome.value = self.use(watched, *copy.deepcopy(args, _models_in(args)))
                if watch.left:  # what is put back now may be the result as well
                    outcome.value = guards.kept(outcome.value)
        except (TookTooLong, Interrupted):
            raise
        except BaseException as error:  # `exit()` or KeyboardInterrupt in an answer must not end the kernel
            outcome.error = error
        outcome.left, outcome.random = tuple(watch.left), (*watch.random, guards.random_states())
        return outcome

    def _compare(self, got: Outcome, want: Outcome, args: tuple) -> str | None:
        if want.error is not None:
            expected = type(want.error)
            if got.error is None:
                return f"accepted this input, but should raise {describe(want.error)}"
            return None if isinstance(got.error, expected) else f"raised {describe(got.error)}, not {expected.__name__}"
        if got.error is not None:
            return f"raised {describe(got.error)}"
        try:
            return self.same(got.value, want.value, *args)
        except Exception as error:
            return f"returned something that can't be compared ({describe(error)})"

    def gradients(self, fn: Callable, args: tuple):
        """The gradients of a projection of the result, None where it carries none, or in words what was raised; and
        the inputs that they are for, with names."""
        args = copy.deepcopy(args, models := _models_in(args))
        names = guards.parameters_of(self.solution)
        inputs = [(names[i] if i < len(names) else "the input", t) for i, a in enumerate(args) for t in tensors_in(a)]
        for model in models.values():
            if isinstance(model, torch.nn.Module):
                inputs += [(f"{name}` of the model `", p) for name, p in model.named_parameters()]
        inputs = [(n, t) for n, t in inputs if t.is_leaf and not t.is_inference() and n not in self.in_place]
        needed = [t.requires_grad for _, t in inputs]
        watch = self._watch()
        try:
            seed_everything(0)
            for _, t in inputs:
                t.requires_grad_(True)
            with torch.enable_grad(), watch.over(fn) as watched:
                result = self.use(watched, *args)
                reached = [*inputs, *watch.parameters.items()]
                return guards.gradients(result, [t for _, t in reached]), reached
        except (TookTooLong, Interrupted):
            raise
        except BaseException as error:
            return f"raised {describe(error)}", inputs
        finally:
            for (_, t), before in zip(inputs, needed, strict=True):
                t.requires_grad_(before)

    def obeys(self, law: Callable, fn: Callable) -> bool:
        """Whether the law holds for `fn`; a law that raises does not hold."""
        return self.broken(law, fn)[0] is None

    def broken(self, law: Callable, fn: Callable) -> tuple[str | None, list[str]]:
        """None where the law holds, else why not; and what `fn` did not put back."""
        seed_everything(0)
        watch = self._watch()
        why = None
        try:
            with torch.enable_grad(), watch.over(fn, as_ours=True) as watched:
                why = None if law(watched) else ""
        except (TookTooLong, Interrupted):
            raise
        except BaseException as error:
            why = f"there it raised {describe(error)}"
        return why, watch.left


class NotPrepared(Exception):
    """A check's own inputs can't be made."""


class _Judge:
    """One answer before the check: what it has used of its time, and what it left behind."""

    def __init__(self, exercise: Exercise, fn: Callable, where: set[str], streams: list[Printed], brief: bool):
        self.exercise, self.fn, self.where, self.streams, self.brief = exercise, fn, where, streams, brief
        self.used = 0.0
        self.left: list[str] = []
        self.open: list[str] = []  # methods of a class that are not written yet: ours stand in for them

    def verdict(self) -> Verdict:
        exercise = self.exercise
        try:
            cases = exercise.prepared()
        except NotPrepared as error:
            says = f"this check can't make its inputs ({error}): restart the kernel and run the cells above again"
            return Verdict("broken", says, [])
        verdict = self._judge(cases)
        if self.left:
            guards.rebuild_shared()
        return verdict

    def _limited(self, call: Callable, *args, **options):
        """`call` within what is left of the answer's time."""
        start = time.thread_time()
        result = limited(max(0.01, SECONDS - self.used), functools.partial(call, *args, **options))
        self.used += time.thread_time() - start
        return result

    def _run(self, args: tuple, **how) -> Outcome:
        outcome = self._limited(self.exercise._run, self.fn, args, **how)
        self.left += outcome.left
        return outcome

    def _compare(self, got: Outcome, want: Outcome, args: tuple) -> str | None:
        return self._limited(self.exercise._compare, got, want, args)  # a lazy result computes here

    def _judge(self, cases: list[tuple]) -> Verdict:
        exercise = self.exercise
        wants = [exercise._run(exercise.solution, args) for args in cases]
        gots, unwritten = [], None
        for args, want in zip(cases, wants, strict=True):
            got = self._run(args)
            if not isinstance(want.error, NotImplementedError) and is_stub(got.error, self.where):
                unwritten = unwritten or got.error
                if not exercise.steps:
                    break
            gots.append(got)
            if self.brief and not unwritten and (said := self._compare(got, want, args)):
                return Verdict("wrong", said, [])
        if unwritten:
            right = self._right_steps(gots, wants, cases)
            if right:
                return Verdict("unwritten", f"{right[0]}; the rest is not written yet", [])
            return self._so_far(frame_name(unwritten, self.where), cases)
        said = [self._compare(got, want, args) for got, want, args in zip(gots, wants, cases, strict=True)]
        for stream in self.streams:
            stream.muted = True  # what an answer prints was seen once
        if any(said):
            # What a refused input shows least of all is how the answer computes.
            first = min((i for i, s in enumerate(said) if s), key=lambda i: wants[i].error is not None)
            found = functools.partial(Verdict, "wrong", failed=cases[first] if exercise.direct else None)
            detail = [*self._right_steps(gots, wants, cases), *notebook_values(self.fn, exercise.solution)]
            if named := self._named(gots, wants, cases, first):
                return found(named, [*detail, *self.left[:1]])
            detail += line_of(gots[first].error, self.where) or self._shown(cases[first], gots[first], wants[first])
            if gots[first].error is None and (law := self._broken_law()):
                return found(law[0], [said[first], *detail])
            return found(with_names(said[first], exercise.solution), [*detail, *self.left[:1]])
        if law := self._broken_law():
            return Verdict("wrong", law[0], [*self._right_steps(gots, wants, cases), *law[1:], *self.left[:1]])
        left = [] if "clean" in exercise.without else self.left[:1]
        if said := left or self._asked_of_all(cases, wants, gots):
            return Verdict("wrong", said[0], [])
        return Verdict("solved", "right", [])

    def _so_far(self, method: str | None, cases: list[tuple]) -> Verdict:
        """What is not written yet; of a class also whether the methods that are written are right beside ours."""
        exercise, mine, first = self.exercise, self.fn, not self.open
        steps = vars(exercise.solution) if isinstance(exercise.solution, type) and isinstance(mine, type) else {}
        if method not in steps or method in self.open or "__class__" in code_of(steps[method]).co_freevars:
            part = "" if method in (None, exercise.name) else f" (`{method}`)"
            return Verdict("unwritten", f"not written yet{part}", [])
        self.open.append(method)
        judge = _Judge(
            exercise, type(mine)(mine.__name__, (mine,), {method: steps[method]}), self.where, self.streams, self.brief
        )
        judge.used, judge.left, judge.open = self.used, self.left, self.open
        verdict, self.used = judge._judge(cases), judge.used
        if not first or verdict.state == "unwritten":
            return verdict
        rest = f"not written yet ({_listed(n for n in steps if n in self.open)})"
        written = [n for n in read_todo(exercise.target) if n not in self.open]
        if not written:
            return Verdict("unwritten", rest, [])
        if verdict.state == "solved":
            return Verdict("unwritten", f"right so far: {_listed(written)}; {rest}", [])
        return Verdict(verdict.state, verdict.says, [rest, *verdict.detail])

    def _right_steps(self, gots, wants, cases) -> list[str]:
        """Of a long function in steps, in one line, those that are right up to the first that is not."""
        right = []
        for n, (what, (concerns, part)) in enumerate(self.exercise.steps.items(), start=1):
            for got, want, args in zip(gots, wants, cases, strict=False):
                if concerns(*args) and self._compare(_part(got, part), _part(want, part), args):
                    return [f"right so far: {'; '.join(right)}"] if right else []
            right.append(f"step {n}, {what}")
        return [f"right so far: {'; '.join(right)}"] if right else []

    def _shown(self, args: tuple, got: Outcome, want: Outcome) -> list[str]:
        """The input with its parameters' names and, where they are small, both results whole."""
        names = [*guards.parameters_of(self.exercise.solution)] if self.exercise.direct else []
        shown = [short(a, 60) for a in args]
        given = [" = ".join(filter(None, pair)) for pair in itertools.zip_longest(names[: len(args)], shown)]
        lines = [f"on the input: {', '.join(given) or 'none'}"]
        if got.error is None and want.error is None:
            both = [self._limited(short, outcome.value, 100) for outcome in (got, want)]
            if both[0] != both[1] and not any(text.endswith("…") or "tensor of shape" in text for text in both):
                lines.append(f"yours gives {both[0]}, expected {both[1]}")
        return lines

    def _named(self, gots, wants, cases, first: int) -> str | None:
        """The mistake whose outcomes equal the learner's everywhere (where the input is not refused), or else, with
        "perhaps", on the first case that differs."""
        exercise, on_first = self.exercise, None
        for sentence, wrong in exercise.mistakes.items():
            outcome = exercise._run(wrong, cases[first])
            # A mistake that is right here explains nothing here.
            if not exercise._compare(outcome, wants[first], cases[first]):
                continue
            if self._compare(gots[first], outcome, cases[first]):
                continue
            others = (i for i in range(len(cases)) if i != first and (wants[i].error is None or wants[first].error))
            if not any(self._compare(gots[i], exercise._run(wrong, cases[i]), cases[i]) for i in others):
                return sentence
            on_first = on_first or sentence
        return on_first and f"perhaps {on_first}"

    def _broken_law(self) -> list[str] | None:
        """The sentence of a law that does not hold, and the exception where there is one."""
        for sentence, law in self.exercise.laws.items():
            why, left = self._limited(self.exercise.broken, law, self.fn)
            self.left += left
            if why is not None:
                return [sentence, why] if why else [sentence]
        return None

    # -------- what every exercise asks
    def _asked_of_all(self, cases, wants, gots) -> list[str]:
        asked = {
            "defaults": self._defaults,
            "again": self._again,
            "seed": self._seed,
            "gradients": self._gradients,
            "one pass": self._one_pass,
            "batch of one": self._batch_of_one,
        }
        for name, ask in asked.items():
            if name not in self.exercise.without and (said := ask(cases, wants, gots)):
                return [said]
        return [] if "clean" in self.exercise.without else self.left[:1]

    def _defaults(self, cases, wants, gots) -> str | None:
        solution, pairs = self.exercise.solution, [(self.exercise.solution, self.fn)]
        if isinstance(solution, type):
            methods = (name for name, f in vars(solution).items() if inspect.isroutine(getattr(solution, name)))
            pairs = [(getattr(solution, name), getattr(self.fn, name, None)) for name in methods]
        for ours, mine in pairs:
            mine = guards.signature_of(mine)
            for name, parameter in guards.signature_of(ours).items():
                default = mine[name].default if name in mine else parameter.default
                if parameter.default is not parameter.empty and _another_default(default, parameter.default):
                    if default is parameter.empty:
                        return f"`{name}` needs its default: {name}={short(parameter.default)}"
                    return f"the default of `{name}` is {short(parameter.default)}, not {short(default)}"
        return None

    def _again(self, cases, wants, gots) -> str | None:
        exercise, same_draws = self.exercise, []
        for args, want, got in zip(cases, wants, gots, strict=True):
            want_again = exercise._run(exercise.solution, args, seed=1, grad=False)
            grad = type(want_again.error) is not type(want.error)
            if grad and type(want_again.error).__name__ in (exercise.solution.__doc__ or ""):
                if said := self._compare(self._run(args, seed=1, grad=False), want_again, args):
                    return f"called without gradients: {said}"
                continue
            if grad:  # it can't do without
                want_again = exercise._run(exercise.solution, args, seed=1)
                if type(want_again.error) is not type(want.error):
                    continue
            got_again = self._run(args, seed=1, grad=grad)
            if _seeded(got.random, got_again.random, want.random, want_again.random):
                return "your function seeds the random numbers of the whole kernel: leave the seed as it is"
            if want.error is not None:
                continue
            if _differ(want.value, want_again.value, **CLEARLY):
                same_draws.append(got_again.error is None and not _differ(got.value, got_again.value))
            elif said := self._compare(got_again, want_again, args):
                how = "" if grad else "without gradients and "
                return f"right once, but called again, {how}with other random numbers: {said}"
        if same_draws and all(same_draws):
            return "it draws the same numbers in every call: don't fix a seed inside"
        return None

    def _seed(self, cases, wants, gots) -> str | None:
        exercise = self.exercise
        if "seed" not in guards.parameters_of(exercise.solution):
            return None
        ours, mine = (_rebound(fn, exercise.solution, _another_seed) for fn in (exercise.solution, self.fn))
        for args, want, before in zip(cases, wants, gots, strict=True):
            other = exercise._run(ours, args)
            if other.error is not None or want.error is not None:
                continue
            got = self._limited(exercise._run, mine, args)
            if said := self._compare(got, other, args):
                return f"with another `seed`: {said}"
            if _differ(other.value, want.value, **CLEARLY) and not _differ(got.value, before.value):
                return "another `seed` gives the same result: draw from the seed that is given"
        return None

    def _gradients(self, cases, wants, gots) -> str | None:
        exercise = self.exercise
        if not exercise._plain:
            return None
        for args, want in zip(cases, wants, strict=True):
            if want.error is not None:
                continue
            ours, inputs = exercise.gradients(exercise.solution, args)
            if isinstance(ours, str) or ours is None:
                continue
            mine, theirs = self._limited(exercise.gradients, self.fn, args)
            if isinstance(mine, str):
                return f"where its input needs gradients, it {mine}"
            if mine is None and all(name.startswith("self.") for name, _ in inputs):
                return "your result carries no gradient, so nothing could be trained: no detach, numpy or no_grad here"
            own = {name: i for i, (name, _) in enumerate(theirs) if name.startswith("self.")}
            largest = max((float(g.abs().max()) for g in ours if g is not None and g.numel()), default=0.0)
            for i, (name, at) in enumerate(inputs):
                place = own.get(name) if name.startswith("self.") else i
                if place is None:  # an answer's class may keep its weights under other names
                    continue
                said = guards.another_gradient(mine[place] if mine else None, ours[i], at, largest)
                if said == "cut":
                    return (
                        f"no gradient reaches `{name}` through your result: no detach, .item(), numpy or no_grad here"
                    )
                if said:
                    return f"right numbers, but another gradient with respect to `{name}`: is a part of it detached?"
        return None

    def _one_pass(self, cases, wants, gots) -> str | None:
        iterables = [n for n, p in guards.signature_of(self.exercise.solution).items() if _is_iterable(p.annotation)]
        if not iterables or isinstance(self.exercise.solution, type):
            return None

        def once(name, value, annotation):
            return value if name not in iterables or isinstance(value, str) else iter(value)

        said = self._with_other_arguments(once, cases, wants)
        return said and f"where `{iterables[0]}` can be walked through only once, as a generator: {said}"

    def _batch_of_one(self, cases, wants, gots) -> str | None:
        annotations = [p.annotation for p in guards.signature_of(self.exercise.solution).values()]
        # What else is given may hold as many things as there are rows: a cache, a list of answers.
        if not self.exercise._plain or not all(map(_tensor_or_plain, annotations)):
            return None
        if not any("batch" in _dims(a) for a in annotations):
            return None

        def first_row(name, value, annotation):
            dims = _dims(annotation)
            if not isinstance(value, torch.Tensor) or "batch" not in dims or len(dims) != value.ndim:
                return value
            return value.narrow(dims.index("batch"), 0, 1)

        said = self._with_other_arguments(first_row, cases, wants)
        return said and f"right, but not for a batch of one: {said}"

    def _with_other_arguments(self, change: Callable, cases, wants) -> str | None:
        """What is wrong where each argument is changed by `change(name, value, annotation)`, if the solution is right
        there too."""

        def edit(arguments, parameters):
            for name, value in arguments.items():
                arguments[name] = change(name, value, parameters[name].annotation)

        ours, mine = (_rebound(fn, self.exercise.solution, edit) for fn in (self.exercise.solution, self.fn))
        for args, want in zip(cases, wants, strict=True):
            other = self.exercise._run(ours, args)
            if other.error is None and want.error is None:
                got = self._limited(self.exercise._run, mine, args)
                if said := self._compare(got, other, args):
                    return said
        return None


def _dims(annotation: object) -> list[str]:
    return getattr(annotation, "dim_str", "").split()


def _tensor_or_plain(annotation: object) -> bool:
    kinds = typing.get_args(annotation) or (annotation,)
    return all(hasattr(kind, "dim_str") or kind in (bool, int, float, str, type(None)) for kind in kinds)


def _is_iterable(annotation: object) -> bool:
    return any(typing.get_origin(a) is Iterable for a in (annotation, *typing.get_args(annotation)))


def _rebound(fn: Callable, solution: Callable, edit: Callable) -> Callable:
    """`fn`, called with what `edit(arguments, parameters)` makes, in place, of the arguments by their names."""
    signature = inspect.signature(solution)

    @functools.wraps(fn, updated=())
    def rebound(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        edit(bound.arguments, signature.parameters)
        return fn(*bound.args, **bound.kwargs)

    return rebound


def _part(outcome: Outcome, part: Callable) -> Outcome:
    if outcome.error is not None:
        return outcome
    try:
        return replace(outcome, value=part(outcome.value))
    except Exception as error:  # an answer may have returned anything
        return replace(outcome, error=error)


def _another_default(got: object, want: object) -> bool:
    if callable(want):  # the notebook's own function of that name is as good
        return getattr(got, "__name__", None) != getattr(want, "__name__", None)
    return got is not want and _differ(got, want)


def _seeded(mine: tuple, mine_again: tuple, ours: tuple, ours_again: tuple) -> bool:
    """Whether a generator of the answer's stands where it stood after another seed, and the solution's does not."""
    if len({len(states) for states in (mine, mine_again, ours, ours_again)}) > 1:  # it makes calls of its own
        mine, mine_again, ours, ours_again = ([states[-1]] for states in (mine, mine_again, ours, ours_again))
    calls = zip(mine, mine_again, ours, ours_again, strict=True)
    return any(a == b and c != d for call in calls for a, b, c, d in zip(*call, strict=True))


# Other random numbers, not another order of summing.
CLEARLY = dict(rtol=1e-3, atol=1e-3)


def _differ(a: object, b: object, **tolerance: float) -> bool:
    try:
        return difference(a, b, **tolerance) is not None
    except Exception:
        return True


def _another_seed(arguments: dict, parameters: Mapping) -> None:
    seed = arguments.get("seed", parameters["seed"].default)
    if isinstance(seed, int):
        arguments["seed"] = seed + 1000


WHOLE_CHAPTER = object()  # what `check` is called with where it is called with nothing


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
        _chapters.append(self)
        _explain_missing_names()
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

    def check(self, fn: Callable = WHOLE_CHAPTER) -> Callable | None:
        """Print whether `fn` is right, and what is wrong with it otherwise; record the progress.

        Returns `fn` where it is right, else a stand-in for it: the workbook's own version, so that the notebook's
        later cells work, with `fn` as its `mine` and the arguments at which `fn` is wrong as its `failed`. A stand-in
        that is checked again means its `mine`. `check()` shows what is open in the chapter, each with a link to its
        cell.
        """
        if fn is WHOLE_CHAPTER:
            return self._show_what_is_open()
        exercise = self._find(fn, sys._getframe(1).f_globals)
        if exercise is None:
            return fn
        if fn is exercise.solution:
            self._record(exercise.name, "taken")
            _say(YELLOW, "○", exercise.name, "this is the workbook's own version.", [], self._count())
            return fn
        fn = answer_behind(fn)
        verdict = exercise.verdict(fn)
        if verdict.state == "broken":
            _say(YELLOW, "○", exercise.name, verdict.says + ".", [], "Until then the notebook goes on as it is.")
            return fn
        if verdict.state == "solved":
            self._record(exercise.name, "solved")
            _say(GREEN, "✓", exercise.name, "right.", [], self._count())
            return fn
        name = exercise.name
        self._record(name, "tried" if verdict.state == "wrong" else "open")
        goes_on = "Until then the notebook goes on with the workbook's version"
        if verdict.state == "unwritten":
            next_step = f"Write it in the cell above, or ask for hint({name}). {goes_on}."
            _say(YELLOW, "○", name, verdict.says + ".", [], next_step)
        else:
            yours = f"{name}.mine" if verdict.failed is None else f"{name}.mine(*{name}.failed)"
            next_step = f"Change the cell above and run both again, or ask for hint({name}). {goes_on}; yours: {yours}"
            _say(RED, "✗", name, verdict.says, verdict.detail, next_step)
        return stand_in(exercise.solution, fn, verdict.failed)

    def compare(self, fn: Callable | str) -> None:
        """Show the workbook's version of an exercise beside the learner's, once that is right or given up, and why it
        is written so.
        """
        exercise = self._find(fn, sys._getframe(1).f_globals)
        if exercise is None:
            return
        name = exercise.name
        if {**self._states, **self._recorded()}.get(name) not in ("solved", "taken"):
            print(f"First yours: compare({name}) shows the workbook's version once {name} is ✓. hint({name}) helps.")
            return
        parts = {"Yours": source_of(answer_behind(fn)), "The workbook's": inspect.getsource(exercise.solution)}
        if fn is exercise.solution or isinstance(fn, str):
            del parts["Yours"]
        blocks = [f"**{title}**\n\n```python\n{text.rstrip()}\n```" for title, text in parts.items() if text]
        if why := read_why(exercise.target):
            blocks.append(f"**Why so.** {why}")
        _show_markdown("\n\n".join(blocks))

    def hint(self, fn: Callable | str) -> None:
        """Show the next hint for an exercise; after the last one, how to take the solution."""
        exercise = self._find(fn, sys._getframe(1).f_globals)
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

    def _show_what_is_open(self) -> None:
        count = self._count()
        listed = read_table(self.modules) or [{"target": f".{name}"} for name in self.exercises]
        lines = []
        for e in listed:
            name = e["target"].rpartition(".")[2]
            state = self._states.get(name, "open")
            if state in ("open", "tried"):
                kind = f", {'core' if e['core'] else 'optional'}, {e['minutes']} minutes" if "core" in e else ""
                tried = ", tried" if state == "tried" else ""
                lines.append(f"- [{e.get('title') or name}](#cell-id={name}) (`{name}`{kind}{tried})")
        if lines:
            _show_markdown("\n".join([f"**Still open** ({count[:-1]}):", "", *lines]))
        else:
            print(f"{GREEN}✓ Nothing is open: {count}{OFF}")

    def _find(self, fn, names: Mapping[str, object]) -> Exercise | None:
        """The exercise of this name; a lambda, a partial or a decorator's inner function by what it is bound to
        among `names`."""
        name = fn if isinstance(fn, str) else getattr(fn, "__name__", None)
        bound = [key for key, value in names.items() if value is fn and key in self.exercises]
        if len(bound) == 1:
            return self.exercises[bound[0]]
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
        self._states |= self._recorded()
        solved = sum(self._states.get(name) == "solved" for name in self.exercises)
        return f"{solved} of {len(self.exercises)} in this chapter."

    def _recorded(self) -> dict[str, str]:
        """What earlier sittings solved counts too."""
        return progress.load().get(self.name, {}) if progress.work_folder() else {}


_chapters: list[Chapter] = []


def _explain_missing_names() -> None:
    """In a notebook, the NameError of an exercise that was not run yet says so, in place of a traceback."""

    def explain(shell, kind, error, trace, tb_offset=None):
        if any(error.name in chapter.exercises for chapter in _chapters):
            said = f"{error.name} is not there yet: run its exercise's cell first, then this one."
            error._render_traceback_ = lambda: [f"{RED}✗ {said}{OFF}"]
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)

    if get_ipython() is not None:
        get_ipython().set_custom_exc((NameError,), explain)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


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
