"""A learner's own copies in `work/`: start them, bring them up to date without losing anything, show progress."""

import os
import shutil
import time
from pathlib import Path

import nbformat

from utils.checks.progress import WORK, load
from utils.workbook import CHAPTERS, WorkbookError, chapter_names
from utils.workbook.build import digest, read_notebook


def start(chapters: Path = CHAPTERS, work: Path = WORK) -> list[str]:
    """Copy each chapter into `work` where no copy stands; returns sentences to print.

    Raises:
        WorkbookError: the folder can't be written.
    """
    said = []
    try:
        work.mkdir(exist_ok=True)
        for file in sorted(chapters.glob("*.ipynb")):
            copy = work / file.name
            if not copy.exists():
                shutil.copy(file, copy)
                said.append(f"{copy.name}: copied, ready to start.")
            elif _outdated(file, copy):
                said.append(f"{copy.name}: there is a newer version; `make update` brings it in and keeps your work.")
    except OSError as error:
        raise WorkbookError(f"The folder {work.name}/ can't be written ({error}): check its permissions.") from None
    return said


def _outdated(file: Path, copy: Path) -> bool:
    try:
        mine = {c.get("id") for c in nbformat.read(copy, 4).cells}
    except Exception:
        return False  # `update` says what is wrong with it; starting JupyterLab must still work
    return any(c.id not in mine for c in read_notebook(file).cells)


# ---------------------------------------------------------------- update


def update(wanted: str | None = None, chapters: Path = CHAPTERS, work: Path = WORK) -> list[str]:
    """Bring the copies in `work` up to date; returns sentences to print.

    Raises:
        WorkbookError: a copy is not readable or not writable. All others are updated first, nothing is overwritten.
    """
    said, faults = [], []
    for name in chapter_names(wanted):
        file, copy = chapters / f"{name}.ipynb", work / f"{name}.ipynb"
        try:
            if not copy.exists():
                copy.parent.mkdir(exist_ok=True)
                shutil.copy(file, copy)
                said.append(f"{name}: copied, ready to start.")
                continue
            mine = read_notebook(copy)
            merged, notes = merge(read_notebook(file), mine)
            if _same(merged, mine):
                said.append(f"{name}: up to date.")
                continue
            backup = work / "backup" / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}.ipynb"
            backup.parent.mkdir(exist_ok=True)
            shutil.copy(copy, backup)
            half = copy.with_suffix(".half")
            nbformat.write(merged, half)
            os.replace(half, copy)
            said.append(f"{name}: updated; the version before is backup/{backup.name}.")
            said += [f"  {note}" for note in notes]
        except WorkbookError as error:
            faults.append(str(error))
        except OSError as error:
            faults.append(f"{name} can't be written ({error}): check the folder's permissions.")
    if faults:
        raise WorkbookError("\n".join([*said, *faults]))
    return said


def _same(a, b) -> bool:
    def essence(notebook):
        return [(c.get("id"), c.cell_type, c.source, c.metadata.get("workbook")) for c in notebook.cells]

    return essence(a) == essence(b)


def _untouched(cell) -> bool:
    """Whether a cell is still as the workbook delivered it; a cell of the learner's own is not."""
    return cell.metadata.get("workbook") == digest(cell.source)


def merge(new: nbformat.NotebookNode, mine: nbformat.NotebookNode) -> tuple[nbformat.NotebookNode, list[str]]:
    """The new version of a chapter with everything in it that the learner wrote, and notes about what changed.

    A cell that the learner changed stays as it is, in its place; a cell of the learner's own stays behind the cell
    it followed; outputs of unchanged cells stay. What the workbook delivered and nobody touched is replaced.
    """
    delivered = {c.id for c in new.cells}
    known = {c.get("id"): c for c in mine.cells if c.get("id") in delivered}
    notes, own, behind = [], {}, None
    for cell in mine.cells:
        if cell.get("id") in delivered:
            behind = cell.id
        elif not _untouched(cell):
            if target := cell.metadata.get("exercise"):
                notes.append(f"{target}: no longer in the chapter; your cell is kept as one of your own.")
            cell.metadata.pop("workbook", None)
            own.setdefault(behind, []).append(cell)
    cells = own.get(None, [])
    for cell in new.cells:
        before = known.get(cell.id)
        if before is not None and not _untouched(before):
            if before.metadata.get("workbook") != cell.metadata["workbook"]:
                notes.append(f"{cell.id}: the task has changed; your answer is kept, the new one is in chapters/.")
            before.metadata["workbook"] = cell.metadata["workbook"]
            cell = before
        elif before is not None and before.source == cell.source and cell.cell_type == "code":
            cell.outputs, cell.execution_count = before.outputs, before.execution_count
        cells += [cell, *own.get(cell.id, [])]
    new.cells = cells
    return new, notes


# ---------------------------------------------------------------- progress


def progress_table(chapters: Path = CHAPTERS, work: Path = WORK) -> str:
    """A table of exercises solved, tried and taken from the solution, per chapter."""
    done = load(work)
    rows = [f"{'chapter':28} {'solved':>9}  {'tried':>5}  {'taken':>5}"]
    for file in sorted(chapters.glob("*.ipynb")):
        names = [c.id for c in read_notebook(file).cells if c.metadata.get("exercise")]
        states = done.get(file.stem.split("_", 1)[1], {})
        counts = {s: sum(states.get(n) == s for n in names) for s in ("solved", "tried", "taken")}
        bar = "█" * round(10 * counts["solved"] / max(1, len(names)))
        solved = f"{counts['solved']} of {len(names)}"
        rows.append(f"{file.stem:28} {solved:>9}  {counts['tried']:5}  {counts['taken']:5}  {bar}")
    return "\n".join(rows)
