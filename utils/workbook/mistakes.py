"""Named mistakes in the solved notebooks: put in place of its solution, each must change a recorded output.

A check names a mistake; this proves that the references see it as well, so that no tolerance is wide enough to let it
through. `chapters/mistakes.toml` lists at least three for each chapter, with the cell that shows it. A chapter runs
once in this process, its check cells left out (they would put the solution back); at an exercise, a forked child goes
on with the mistake in place of the solution, up to the first output that nbval would refuse.
"""

import importlib
import io
import json
import os
import pickle
import signal
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from IPython.core.displayhook import DisplayHook
from IPython.core.displaypub import DisplayPublisher
from IPython.core.interactiveshell import InteractiveShell
from nbformat.v4 import new_output
from traitlets import Type
from traitlets.config import Config

from utils.workbook import CHAPTERS, SOLUTIONS, WorkbookError, chapter_names
from utils.workbook.build import read_notebook
from utils.workbook.compare import differences
from utils.workbook.execute import CELL_SECONDS
from utils.workbook.files import write_whole

LIST = CHAPTERS / "mistakes.toml"
AT_LEAST = 3  # for each chapter
ANEW = "`python -m utils.workbook mistakes --search NN` finds others."


@dataclass(frozen=True)
class Mistake:
    """A wrong implementation that the checks know, by chapter, exercise ("utils.ioi.ioi_metric") and sentence."""

    chapter: str
    exercise: str
    says: str


@dataclass(frozen=True)
class Shown:
    """Where a mistake first changes an output: the cell's id, what differs there, the seconds until then.

    `cell` is None where no output of the notebook differs.
    """

    cell: str | None
    says: str
    seconds: float


def listed(wanted: str | None = None, sample: bool = False) -> dict[Mistake, dict]:
    """The mistakes of `chapters/mistakes.toml`, of one chapter or of all, with the cell and seconds noted there.

    Args:
        sample: only the one of each chapter that shows soonest.
    """
    names, found = chapter_names(wanted), {}
    for row in tomllib.loads(LIST.read_text(encoding="utf-8"))["mistake"]:
        if row["chapter"] in names:
            found[Mistake(row["chapter"], row["exercise"], row["says"])] = row
    if sample:
        soonest = {}
        for mistake in sorted(found, key=lambda m: -found[m]["seconds"]):
            soonest[mistake.chapter] = mistake
        found = {m: found[m] for m in found if m in soonest.values()}
    return found


def named_mistakes(wanted: str | None = None, sample: bool = False) -> int:
    """Put each listed mistake into its notebook; print where it shows, and return how many show nowhere.

    Raises:
        WorkbookError: a notebook differs without any mistake, or a listed mistake is no longer there.
    """
    hidden = 0
    for name in chapter_names(wanted):
        rows = list(listed(name, sample))
        for mistake in rows:
            mistakes_of(mistake.exercise)  # imported here, once for all children
        for mistake, shown in in_a_child(partial(run_chapter, name, rows)).items() if rows else ():
            hidden += shown.cell is None
            where = f"{shown.cell}: {shown.says}" if shown.cell else "NO OUTPUT DIFFERS"
            print(f"{name}, {mistake.exercise}, {mistake.says!r}: {where} [{shown.seconds:.0f} s]", flush=True)
    return hidden


def search(wanted: str | None = None, every: bool = False) -> list[str]:
    """Find three mistakes of each chapter that show, in exercises spread over it, and list them; returns sentences.

    Args:
        every: try all mistakes of the chapter and say which show nowhere.
    """
    said, kept = [], listed() if LIST.exists() else {}
    for name in chapter_names(wanted):
        exercises = exercises_of(name)  # imports what the children need
        cuts = [len(exercises) * i // AT_LEAST for i in range(AT_LEAST + 1)]
        thirds = [exercises[start:end] for start, end in pairwise(cuts)]
        seen = in_a_child(partial(search_chapter, name, thirds, every))
        shown = {mistake: where for mistake, where in seen.items() if where.cell}
        kept = {mistake: row for mistake, row in kept.items() if mistake.chapter != name}
        for third in thirds:
            candidates = [mistake for mistake in shown if mistake.exercise in third]
            for mistake in sorted(candidates, key=lambda m: shown[m].seconds)[:1]:
                kept[mistake] = {"cell": shown[mistake].cell, "seconds": round(shown[mistake].seconds, 1)}
        _write(kept)
        said.append(f"{name}: {len(shown)} of {len(seen)} named mistakes change an output.")
        said += [f"  changes none: {m.exercise}, {m.says!r} {w.says}" for m, w in seen.items() if not w.cell]
    return said


def _write(rows: dict[Mistake, dict]) -> None:
    head = "# Written by `python -m utils.workbook mistakes --search`: named mistakes that change a recorded output.\n"
    tables = []
    for mistake, row in sorted(rows.items(), key=lambda item: item[0].chapter):
        fields = {**vars(mistake), **{name: row[name] for name in ("cell", "seconds")}}
        lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in fields.items()]
        tables.append("\n[[mistake]]\n" + "".join(lines))
    write_whole(LIST, head + "".join(tables))


# ---------------------------------------------------------------- running a chapter


def exercises_of(name: str) -> list[str]:
    """The exercises of a chapter for which the checks name mistakes, in their order."""
    cells = read_notebook(SOLUTIONS / f"{name}.ipynb").cells
    return [e for cell in cells if (e := cell.metadata.get("exercise")) and mistakes_of(e)]


def mistakes_of(exercise: str) -> dict[str, Callable]:
    """Sentence → wrong implementation, as the checks state them."""
    module, name = exercise.removeprefix("utils.").rsplit(".", 1)
    return importlib.import_module(f"utils.checks.{module}").chapter.exercises[name].mistakes


def run_chapter(name: str, wanted: list[Mistake]) -> dict[Mistake, Shown]:
    """Run a chapter's notebook as far as needed and try each mistake at its exercise.

    Raises:
        WorkbookError: a cell differs without any mistake, or a mistake is unknown to the checks.
    """
    found = {}
    for exercise, try_one in _exercises_met(name):
        for mistake in wanted:
            if mistake.exercise == exercise:
                if mistake.says not in mistakes_of(exercise):
                    raise WorkbookError(f"{exercise} has no mistake {mistake.says!r} any more: {ANEW}")
                found[mistake] = try_one(mistake.says)
        if len(found) == len(wanted):
            return found
    lost = next(mistake for mistake in wanted if mistake not in found)
    raise WorkbookError(f"{name} has no exercise {lost.exercise} any more: {ANEW}")


def search_chapter(name: str, thirds: list[list[str]], every: bool) -> dict[Mistake, Shown]:
    """Try mistakes of each third of the exercises, each only as long as it may show sooner than those before it; all
    mistakes, up to the notebook's end, where `every` is asked for.
    """
    found, soonest = {}, [float(CELL_SECONDS)] * len(thirds)
    for exercise, try_one in _exercises_met(name):
        third = next((i for i, exercises in enumerate(thirds) if exercise in exercises), None)
        for says in mistakes_of(exercise):
            left = CELL_SECONDS if every else soonest[third] - time.process_time()
            if left < 1:
                break
            found[Mistake(name, exercise, says)] = shown = try_one(says, left)
            print(f"{name}, {exercise}, {says!r}: {shown.cell} [{shown.seconds:.0f} s]", file=sys.stderr, flush=True)
            if shown.cell:
                soonest[third] = min(soonest[third], shown.seconds)
                if not every:
                    break
        if exercise == thirds[-1][-1]:
            break
    return found


def _exercises_met(name: str) -> Iterator[tuple[str, Callable[..., Shown]]]:
    """Run the notebook cell by cell; at each exercise yield it, and a function that tries one of its mistakes."""
    torch.set_num_threads(1)  # a forked child would wait for ever for its parent's other threads
    cells = [c for c in read_notebook(SOLUTIONS / f"{name}.ipynb").cells if c.cell_type == "code"]
    cells = [c for c in cells if not c.id.startswith("check-")]
    os.chdir(SOLUTIONS)
    shell = Shell.instance()
    for i, cell in enumerate(cells):
        if said := shell.difference(cell):
            raise WorkbookError(f"{name} differs without any mistake, in the cell {cell.id}: {said}")
        if exercise := cell.metadata.get("exercise"):
            yield exercise, partial(_try, shell, exercise, cells[i + 1 :])


def _try(shell: "Shell", exercise: str, cells: list, says: str, seconds: float = CELL_SECONDS) -> Shown:
    before = time.process_time()

    def first_difference() -> Shown:
        signal.setitimer(signal.ITIMER_PROF, seconds)  # ends the child
        shell.user_ns[exercise.rsplit(".", 1)[1]] = mistakes_of(exercise)[says]
        for cell in cells:
            if said := shell.difference(cell):
                return Shown(cell.id, said, before + time.process_time())
        return Shown(None, "", before + time.process_time())

    try:
        return in_a_child(first_difference)
    except ChildProcessError as error:
        return Shown(None, f"({error})", before)


def in_a_child(call: Callable):
    """What `call` returns, run in a forked child, so that nothing that it does stays behind.

    Raises:
        ChildProcessError: the child ended without an answer.
        WorkbookError: what the child raised.
    """
    sys.stdout.flush()
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        with os.fdopen(write, "wb") as pipe:
            try:
                pickle.dump(call(), pipe)
            except BaseException as error:
                pickle.dump(error if isinstance(error, WorkbookError) else WorkbookError(repr(error)), pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    if not answer:
        raise ChildProcessError(f"the child ended with the status {status} and no answer")
    result = pickle.loads(answer)
    if isinstance(result, Exception):
        raise result
    return result


# ---------------------------------------------------------------- a kernel in this process


class Publisher(DisplayPublisher):
    def publish(self, data, metadata=None, **_):
        self.shell.outputs.append(new_output("display_data", data=data))


class Hook(DisplayHook):
    def write_output_prompt(self):
        pass

    def write_format_data(self, format_dict, md_dict=None):
        self.shell.outputs.append(new_output("execute_result", data=format_dict))


class Printed(io.TextIOBase):
    def __init__(self, outputs: list):
        self.outputs = outputs

    def write(self, text: str) -> int:
        self.outputs.append(new_output("stream", name="stdout", text=text))
        return len(text)


class Shell(InteractiveShell):
    """IPython in this process, which can fork; what a cell shows is kept in order, as a kernel would send it."""

    display_pub_class = Type(Publisher)
    displayhook_class = Type(Hook)

    def __init__(self, **options):
        config = Config()
        config.HistoryManager.enabled = False
        super().__init__(config=config, **options)
        self.outputs = []

    def difference(self, cell) -> str | None:
        """Run the cell; the first sentence of what nbval would say of it, or None."""
        self.outputs.clear()
        with redirect_stdout(Printed(self.outputs)), redirect_stderr(io.StringIO()):
            result = self.run_cell(cell.source, store_history=True)
        if error := result.error_before_exec or result.error_in_exec:
            return f"{type(error).__name__}: {error}"
        own = {k: v for k, v in cell.metadata.get("tolerance", {}).items() if k != "why"}
        return next(iter(differences(self.outputs, cell.outputs, **own)), None)


# By this name libraries such as rich know that they write into a notebook, and how.
Shell.__name__ = "ZMQInteractiveShell"
