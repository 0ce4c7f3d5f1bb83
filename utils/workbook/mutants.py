"""Do the checks see every wrong answer? Mutants of each solution (`mutation.py` makes them) are judged as answers.

`make mutants` runs them, several processes at once; what was judged for the same files is kept in `.cache/mutants`, a
file an exercise, and not judged again. A mutant that its check accepts is a survivor. It counts as equal to the
solution where it agrees on inputs drawn from the annotations (`draws.py`) or a reason of `EQUAL` holds for it; all
other survivors count as accepted.
"""

import ast
import hashlib
import importlib
import inspect
import json
import os
import random
import re
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import torch

from utils.checks import engine, guards
from utils.checks.engine import Exercise
from utils.checks.limits import TookTooLong, limited
from utils.checks.proof import remembered
from utils.workbook import ROOT, SOURCE, chapter_names
from utils.workbook.answers import defined
from utils.workbook.chapters import source_cells
from utils.workbook.draws import equal
from utils.workbook.mutation import HELPERS, Mutant, mutants_of

RESULTS = ROOT / ".cache" / "mutants"
SHARE = 0.98  # of the mutants that are not equal must be rejected
SECONDS = 2  # of processor time for one mutant, and three times what the solution takes
DRAWING_SECONDS = 60  # for the inputs drawn to compare a survivor with its solution
CHUNK = 40  # mutants that one process judges
SAMPLE = 20, 5  # in `make test`: of so many exercises so many mutants


@dataclass(frozen=True)
class Judged:
    """What became of a mutant: "rejected", "equal" or "accepted", and why."""

    number: int
    rule: str
    line: int
    change: str
    state: str
    says: str
    seconds: float


@dataclass(frozen=True)
class Task:
    """An exercise of a chapter, and for a class the methods that the learner writes."""

    chapter: str
    target: str
    methods: tuple[str, ...]

    @property
    def exercise(self) -> Exercise:
        module, name = self.target.removeprefix("utils.").rsplit(".", 1)
        return importlib.import_module(f"utils.checks.{module}").chapter.exercises[name]

    @property
    def mutants(self) -> list[Mutant]:
        return mutants_of(inspect.getsource(self.exercise.solution), list(self.methods))

    @property
    def file(self) -> Path:
        return RESULTS / f"{self.target.removeprefix('utils.')}.jsonl"


def tasks(wanted: str | None = None) -> list[Task]:
    """The exercises of one chapter or of all."""
    found = []
    for name in chapter_names(wanted):
        for cell in source_cells(SOURCE / f"{name}.md"):
            if target := cell.metadata.get("exercise"):
                found.append(Task(name, target, _methods(target, cell.metadata.get("todo", ""))))
    return found


def _methods(target: str, todo: str) -> tuple[str, ...]:
    module, name = target.rsplit(".", 1)
    solution = getattr(importlib.import_module(module), name)
    if not isinstance(solution, type):
        return ()
    named = [n for n, f in vars(solution).items() if not n.startswith("__") and not isinstance(f, type)]
    return tuple(todo.split() or named)


# ---------------------------------------------------------------- one mutant


def built(task: Task, mutant: Mutant) -> Callable:
    """The mutant as a function or class, in its module's names.

    Raises:
        Exception: it can't even be defined.
    """
    return defined(mutant.source, task.target, "mutant", HELPERS)


def judge(task: Task, number: int, mutant: Mutant) -> Judged:
    """Give a mutant to the check; a survivor is compared with the solution on drawn inputs."""
    exercise, started = task.exercise, time.thread_time()

    def judged(state: str, says: str) -> Judged:
        seconds = round(time.thread_time() - started, 2)
        return Judged(number, mutant.rule, mutant.line, mutant.change, state, says, seconds)

    try:
        fn = built(task, mutant)
    except Exception as error:
        return judged("rejected", f"{type(error).__name__} where it is defined")
    verdict = exercise.verdict(fn, brief=True)
    if verdict.state != "solved":
        return judged("rejected", verdict.says)
    for reason, holds in EQUAL.items():
        if holds(task, mutant):
            return judged("equal", reason)
    agrees = None if isinstance(exercise.solution, type) else _agrees(fn, exercise.solution)
    if agrees:
        return judged("equal", "agrees on 1,000 inputs drawn from the annotations, 100 where a model is run")
    return judged("accepted", "differs on a drawn input" if agrees is False else "no inputs can be drawn")


def _agrees(fn: Callable, solution: Callable) -> bool | None:
    """On drawn inputs; a mutant that never ends does not."""
    try:
        with guards.kernel_kept():
            return limited(DRAWING_SECONDS, equal, fn, solution)
    except TookTooLong:
        return False


def _carries_no_gradient(task: Task, mutant: Mutant) -> bool:
    cut = mutant.rule == "no_grad" or "_detached(" in mutant.change
    exercise = task.exercise
    if not cut and not re.search(r"\.detach\(\) → (?!.*\.detach)", mutant.change):
        return False
    if cut and "gradients" in exercise.without:
        return True
    fn = exercise.solution if cut else built(task, mutant)
    return all(not isinstance(exercise.gradients(fn, args)[0], list) for args in exercise.prepared())


def _dropped(m: Mutant, *keywords: str) -> bool:
    return m.rule == "dropped keyword" and m.change.startswith(tuple(f"without {k}=:" for k in keywords))


def _commutes(task: Task, m: Mutant) -> bool:
    before = m.change.partition(" → ")[0]
    of_two = re.match(r"(min|max|torch\.minimum|torch\.maximum)\(", before) or re.search(
        r"\.(transpose|swapaxes)\(", before
    )
    return m.rule == "swapped arguments" and of_two is not None


def _same_eigenvalues(task: Task, m: Mutant) -> bool:
    line = inspect.getsource(task.exercise.solution).splitlines()[m.line - 1]
    return m.rule == "swapped arguments" and "linalg.eigvals(" in line and " @ " in m.change


def _own(task: Task, m: Mutant) -> bool:
    """In place on a value that is no parameter: what is given is looked at by the check."""
    target = re.search(r" → (\w+) ([-+*/|&]|//)= | → (\w+)\.(sort|reverse)\(\) or ", m.change)
    return m.rule == "in place" and target is not None


def _fewer_at_the_barrier(task: Task, m: Mutant) -> bool:
    line = inspect.getsource(task.exercise.solution).splitlines()[m.line - 1]
    return m.rule in ("sign", "dropped term") and "tracer.barrier(" in line


def _may_change(task: Task, m: Mutant) -> bool:
    kinds = m.rule in ("in place", "clone or detach", "dropped statement")
    return kinds and any(re.search(rf"\b{name}\b", m.change) for name in task.exercise.in_place)


def _refused_below(task: Task, m: Mutant) -> bool:
    """A guard is gone, inputs of the check come to it, and what follows refuses them with the same exception."""
    return _weaker(m) and m.line in _guards_met(task)


def _weaker(m: Mutant) -> bool:
    """A guard is gone, or refuses less than before."""
    before = m.change.partition(" → ")[0]
    gone = m.rule in ("condition", "dropped statement") and m.change.endswith((" → False", " → pass"))
    less = m.rule in ("condition", "dropped term") and " or " in before
    never = m.rule == "swapped arguments" and before.startswith("require(")  # of the sentence, which is true
    fewer = m.rule in ("early return", "first row only") and before.startswith("for ") and "require" in before
    return gone or less or never or fewer


@cache
def _guards_met(task: Task) -> set[int]:
    """The lines of the solution's guards (an `if` that raises, or a call) that refuse an input of the check."""
    solution = task.exercise.solution
    source, start = inspect.getsourcelines(solution)
    raising = set()
    for args in task.exercise.prepared():
        tb = getattr(task.exercise._run(solution, args).error, "__traceback__", None)
        while tb:
            if tb.tb_frame.f_code.co_filename == inspect.getsourcefile(solution):
                raising.add(tb.tb_lineno - start + 1)
            tb = tb.tb_next
    tree = ast.parse(textwrap.dedent("".join(source)))
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If | ast.Expr | ast.For)]
    met = [node for node in guards if raising & {*range(node.lineno, node.end_lineno + 1)}]
    # The `if`, and the `raise` in it.
    return {line for node in met for line in (node.lineno, *(each.lineno for each in getattr(node, "body", ())))}


def _default_axis(task: Task, m: Mutant) -> bool:
    """topk takes the last axis, cat the first, normalize the second, which is the last of a matrix."""
    return _dropped(m, "dim") and re.search(
        r"\.topk\([^()]*(\(.*\))?[^()]*, dim=-1\)|cat\(.*dim=0\)|normalize\(.*dim=-1\)", m.change
    )


OTHER_TYPE = re.compile(r"\.(tolist|item)\(\)$|^(int|float|bool|list|tuple|set)\(")
# Reason → whether it holds for a mutant that its check accepts.
EQUAL: dict[str, Callable[[Task, Mutant], bool]] = {
    "nothing that comes out carries a gradient that anyone uses": _carries_no_gradient,
    "without it, the device is the one where everything is": lambda task, m: _dropped(m, "device"),
    "`strict` only guards against lengths that never differ": lambda task, m: (
        _dropped(m, "strict") or m.change.startswith("strict=:")
    ),
    "min, max and transpose take their two in either order": _commutes,
    "A @ B and B @ A have the same eigenvalues, zeros aside": _same_eigenvalues,
    "changed in place is the function's own value": _own,
    "changed in place is what the task lets it change": _may_change,
    "another type of the same value, which every comparison leaves free": lambda task, m: (
        m.rule == "unwrapped" and OTHER_TYPE.search(m.change.partition(" → ")[0]) is not None
    ),
    "a cache, a filter of what is kept or an early stop changes the time, and no number": lambda task, m: (
        "use_cache" in m.change
        or m.change.startswith("cache = KeyValueCache(")
        or _dropped(m, "names_filter", "stop_at_layer", "return_type")
    ),
    "the same axis, counted from the front": lambda task, m: (
        m.rule == "axis" and re.search(r"(^|: )-(\d) → \2$", m.change) is not None
    ),
    "the lines below refuse the same inputs with the same exception": _refused_below,
    "the axis is the function's default": _default_axis,
    "on a CPU torch's sort keeps the order of equal ones, also where it isn't asked to": lambda task, m: (
        _dropped(m, "stable") or m.change == "stable=: True → False"
    ),
    "how many are computed at once changes the time, and no number": lambda task, m: (
        re.search(r"\b(heads_per_pass|at_once|(batch|chunk)_size is always)\b", m.change) is not None
    ),
    "a symmetric matrix has the same sums by row and by column": lambda task, m: (
        m.rule == "axis" and m.change == "-1 → -2" and "gram.pow(2).sum(-2)" in m.source
    ),
    "what is skipped changes the time, and no number": lambda task, m: m.change in ("continue → pass", "break → pass"),
    "a blank line more in a file of numbers is read over": lambda task, m: "text.endswith(" in m.change,
    "an eps that only parts 0 from 0": lambda task, m: m.change == "eps=: 1e-12 → 2e-12",
    "the keys' bias adds the same to all scores of a query": lambda task, m: (
        m.change.endswith("self.b_K") or ("self.b_K → " in m.change)
    ),
    "nnsight serves invokes in their order: a barrier that waits for fewer lets the same values through": (
        _fewer_at_the_barrier
    ),
    "a progress bar": lambda task, m: m.change.startswith(("bar.", "tqdm(")),
}


# ---------------------------------------------------------------- all of them


# What a survivor's verdict depends on beside the check: why it may be equal, and the inputs that are drawn for it.
OF_SURVIVORS = ("mutants.py", "draws.py", "../checks/drawn_models.py")


def digest(task: Task, state: str = "accepted") -> str:
    """Of what a mutant's verdict depends on: the solution's module, its checks, the engine, and the rules."""
    checks = Path(engine.__file__).parent
    names = {f"{m.rsplit('.', 1)[1]}.py" for m in (task.target.rsplit(".", 1)[0],)}
    shared = {
        "engine.py",
        "guards.py",
        "devices.py",
        "compare.py",
        "limits.py",
        "models.py",
        "sae_models.py",
        "proof.py",
    }
    files = [ROOT / f"{task.target.rsplit('.', 1)[0].replace('.', '/')}.py"]
    files += [checks / name for name in sorted(names | shared)]
    own = ("mutation.py", "answers.py", *(OF_SURVIVORS if state != "rejected" else ()))
    files += [Path(__file__).parent / name for name in own]
    found = hashlib.sha256(torch.__version__.encode() + repr(task).encode())
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


def kept(task: Task) -> dict[int, Judged]:
    """What was judged before, for the same files; the last word on each."""
    found = {}
    try:
        lines = task.file.read_text().splitlines()
    except OSError:
        return {}
    now = {state: digest(task, state) for state in ("rejected", "equal", "accepted")}
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a process was ended while it wrote
        if row.pop("digest") == now[row["state"]]:
            found[row["number"]] = Judged(**row)
    return found


def run(wanted: str | None = None, jobs: int | None = None, sample: bool = False) -> int:
    """Judge all mutants of a chapter or of all, print the table and the survivors; returns how many are accepted,
    0 where at least `SHARE` of those that are not equal are rejected.

    Args:
        sample: only a few, always the same.
    """
    RESULTS.mkdir(parents=True, exist_ok=True)
    asked = sampled(tasks(wanted)) if sample else {task: range(len(task.mutants)) for task in tasks(wanted)}
    todo = []
    for task, numbers in asked.items():
        if not (done := kept(task)):
            task.file.unlink(missing_ok=True)
        left = [n for n in numbers if n not in done]
        todo += [(task, left[i : i + CHUNK]) for i in range(0, len(left), CHUNK)]
    print(f"{sum(len(numbers) for _, numbers in todo):,} mutants to judge", flush=True)
    _in_processes(todo, jobs or os.cpu_count())
    found = {task: [j for n, j in kept(task).items() if n in numbers] for task, numbers in asked.items()}
    print("\n".join([*table(found), *survivors(found)]))
    states = Counter(j.state for judged in found.values() for j in judged)
    lacking = sum(len(numbers) for numbers in asked.values()) - states.total()
    if lacking:
        print(f"{lacking} mutants were not judged: run it again.")
    enough = states["rejected"] >= SHARE * (states["rejected"] + states["accepted"])
    return lacking + (0 if enough else states["accepted"])


def sampled(every: list[Task], seed: int = 0) -> dict[Task, list[int]]:
    """A fixed sample for `make test`: task → the numbers of its mutants."""
    draw = random.Random(seed)
    exercises, of_each = SAMPLE
    chosen = draw.sample(every, min(exercises, len(every)))
    return {task: draw.sample(range(n := len(task.mutants)), min(of_each, n)) for task in chosen}


def _in_processes(todo: list[tuple[Task, list[int]]], jobs: int) -> None:
    """Give each chunk to a forked process, so many at once; one that dies goes on after the mutant that ended it."""
    waiting, running, begun = todo[::-1], {}, len(todo)
    while waiting or running:
        while waiting and len(running) < jobs:
            task, numbers = waiting.pop()
            sys.stdout.flush()
            if (child := os.fork()) == 0:
                _judge_chunk(task, numbers)
            running[child] = task, numbers
        child, status = os.wait()
        if child not in running:
            continue
        task, numbers = running.pop(child)
        left = [n for n in numbers if n not in kept(task)]
        if left and status:
            mutant = task.mutants[left[0]]
            _write(task, Judged(left[0], mutant.rule, mutant.line, mutant.change, "rejected", "it ends the kernel", 0))
            if left[1:]:
                waiting.append((task, left[1:]))
        done = begun - len(waiting) - len(running)
        print(f"[{done} of {begun}] {task.target}", file=sys.stderr, flush=True)


def _judge_chunk(task: Task, numbers: Iterable[int]) -> None:
    """In a process of its own: judge, write line by line, and end."""
    code = 1
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        torch.set_num_threads(1)
        mutants = task.mutants
        with remembered(task.exercise, {}):
            start = time.thread_time()
            task.exercise.verdict(task.exercise.solution, brief=True)
            engine.SECONDS = SECONDS + 3 * (time.thread_time() - start)
            for number in numbers:
                _write(task, judge(task, number, mutants[number]))
        code = 0
    finally:
        os._exit(code)


def _write(task: Task, judged: Judged) -> None:
    line = json.dumps({"digest": digest(task, judged.state), **asdict(judged)}, ensure_ascii=False)
    with open(task.file, "a", encoding="utf-8") as file:  # one write: several processes append to it
        file.write(line + "\n")


# ---------------------------------------------------------------- what is said


def table(found: dict[Task, list[Judged]]) -> list[str]:
    """Made, rejected, equal and accepted, by chapter and by rule."""
    by_chapter = [(task.chapter, j.state) for task, judged in found.items() for j in judged]
    by_rule = [(j.rule, j.state) for judged in found.values() for j in judged]
    equal_by = Counter(j.says for judged in found.values() for j in judged if j.state == "equal")
    lines = []
    for title, rows in (("chapter", by_chapter), ("rule", by_rule)):
        lines += ["", f"{title:<22}{'made':>7}{'rejected':>10}{'equal':>7}{'accepted':>10}"]
        for name in [*sorted({name for name, _ in rows}), "in all"]:
            states = Counter(state for of, state in rows if name in (of, "in all"))
            asked = states["rejected"] + states["accepted"]
            share = f"  ({states['rejected'] / asked:.1%} rejected)" if asked else ""
            counts = f"{states['rejected']:>10}{states['equal']:>7}{states['accepted']:>10}"
            lines.append(f"{name:<22}{states.total():>7}{counts}{share}")
    return [*lines, "", *(f"equal, {count}: {reason}" for reason, count in equal_by.most_common())]


def survivors(found: dict[Task, list[Judged]]) -> list[str]:
    """The accepted ones, a line each."""
    return [
        f"accepted: {task.target.removeprefix('utils.')}, {j.rule}, line {j.line}: {j.change}"
        for task, judged in found.items()
        for j in judged
        if j.state == "accepted"
    ]
