"""The first thing that `make lab` does: a copy of each chapter in `work/`, as fast as can be."""

import contextlib
import json
import time
from pathlib import Path

from utils.checks.progress import WORK
from utils.moved import Moved
from utils.workbook import CHAPTERS, WorkbookError
from utils.workbook.files import cannot_write, clean_up, free_name, write_whole

DELIVERED = ".delivered"  # in `work/`: each chapter as it was delivered last, by which an update knows what is ours


def start(chapters: Path = CHAPTERS, work: Path = WORK) -> list[str]:
    """Copy each chapter into `work` where no copy stands, or one that a crash cut off; returns sentences to print.

    Raises:
        WorkbookError: the folder can't be written.
    """
    said, fresh, outdated = [], [], []
    moved = Moved(chapters / "moved.toml")
    with writing(work):
        work.mkdir(parents=True, exist_ok=True)
    clean_up(work)
    for file in sorted(chapters.glob("[!.]*.ipynb")):
        copy = work / file.name
        if not copy.exists():
            deliver(file, copy)
            fresh.append(copy.name)
        elif _cut_off(copy, file):
            kept = backup(copy, copy.read_bytes())
            deliver(file, copy)
            said.append(f"{copy.name}: a crash had cut it off; copied anew. What was there is backup/{kept.name}.")
        elif _outdated(file, copy):
            outdated.append(copy.name)
    if fresh:
        said.append(f"{_counted(fresh)} copied into {work}, ready to start.")
    if outdated:
        said.append(f"There is a newer version of {_counted(outdated)}: `make update` brings it in, keeping your work.")
    for old in old_copies(chapters, work, moved):
        said.append(f"{old}.ipynb is now {listed(moved.chapter_homes(old))}: `make update` brings your work there.")
    return said


def _counted(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} chapters"


def deliver(file: Path, copy: Path) -> None:
    data = file.read_bytes()
    write_whole(copy.parent / DELIVERED / file.name, data)
    write_whole(copy, data)


def _cut_off(copy: Path, file: Path) -> bool:
    """Whether the copy is the beginning of what was delivered: an earlier version copied in place, and could crash."""
    with writing(copy):
        size = copy.stat().st_size
        whole = [p for p in (file, copy.parent / DELIVERED / file.name) if p.exists() and p.stat().st_size > size]
        data = copy.read_bytes() if whole else b""
        return any(p.read_bytes().startswith(data) for p in whole)


def _outdated(file: Path, copy: Path) -> bool:
    """Whether there is something to bring in: by what was delivered last, and by what the copy's cells came from."""
    before, data = copy.parent / DELIVERED / file.name, file.read_bytes()
    try:
        if before.exists() and before.read_bytes() == data:
            return bool(_stamps(json.loads(copy.read_bytes())) - _stamps(json.loads(data)))
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False  # `update` says what is wrong with it; starting JupyterLab must still work
    return _has_news(file, copy)


def _stamps(notebook: dict) -> set[str]:
    return {(c.get("metadata") or {}).get("workbook") for c in notebook["cells"]} - {None}


def _has_news(file: Path, copy: Path) -> bool:
    """The same where a chapter is not as it was delivered; nbformat takes longer to import than all else here."""
    from utils.workbook.build import read_notebook
    from utils.workbook.copies import parse
    from utils.workbook.merge import canonical

    def texts(notebook) -> list[tuple[str, str]]:
        return [(c.cell_type, canonical(c.source)) for c in notebook.cells]

    new = read_notebook(file)
    try:
        before = copy.parent / DELIVERED / file.name
        if before.exists() and texts(read_notebook(before)) != texts(new):
            return True
        mine = parse(copy, copy.read_bytes())
    except Exception:
        return False  # as above
    if _stamps(mine) or before.exists():
        return bool(_stamps(mine) - _stamps(new))
    return bool(set(texts(new)) - set(texts(mine)))


def old_copies(chapters: Path, work: Path, moved: Moved) -> list[str]:
    """Copies of chapters that have become others."""
    return [
        n for n in sorted(moved.chapters) if (work / f"{n}.ipynb").exists() and not (chapters / f"{n}.ipynb").exists()
    ]


def listed(names: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


@contextlib.contextmanager
def writing(path: Path):
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from None


def backup(copy: Path, data: bytes) -> Path:
    with writing(copy.parent / "backup"):
        kept = free_name(copy.parent / "backup", f"{copy.stem}-{time.strftime('%Y%m%d-%H%M%S')}", ".ipynb")
    try:
        write_whole(kept, data)
    except WorkbookError:
        kept.unlink(missing_ok=True)
        raise
    return kept
