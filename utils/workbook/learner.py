"""A learner's own copies in `work/`: bring them up to date without losing anything, show progress."""

import contextlib
from pathlib import Path

from utils.checks.progress import WORK, load
from utils.moved import Moved
from utils.workbook import CHAPTERS, WorkbookError, pick
from utils.workbook.build import read_notebook
from utils.workbook.copies import parse, sign, text_of, trusted
from utils.workbook.delivery import DELIVERED, backup, deliver, listed, old_copies
from utils.workbook.files import cannot_write, clean_up, write_whole
from utils.workbook.merge import merge

RELOAD = (
    "If a chapter is open in JupyterLab: save what you have there; where it asks, choose Overwrite and run "
    "`make update` again. Where all was saved, choose File → Reload Notebook from Disk."
)

# ---------------------------------------------------------------- update


def update(wanted: str | None = None, chapters: Path = CHAPTERS, work: Path = WORK) -> list[str]:
    """Bring the copies in `work` up to date; returns sentences to print.

    Raises:
        WorkbookError: a copy is not readable or not writable. All others are updated first, nothing is overwritten.
    """
    moved = Moved(chapters / "moved.toml")
    names = sorted(p.stem for p in chapters.glob("[!.]*.ipynb"))
    old = old_copies(chapters, work, moved)
    picked = {home for name in pick([*names, *old], wanted) for home in moved.chapter_homes(name)}
    said, faults, changed = [], [], False
    clean_up(work)
    for family in _families(names, old, moved):
        if not picked & set(family):
            continue
        try:
            lines, wrote = _update_family([n for n in family if n in names], family, chapters, work, moved)
            said += lines
            changed |= wrote
        except WorkbookError as error:
            faults.append(str(error))
        except OSError as error:
            faults.append(str(cannot_write(work / f"{family[0]}.ipynb", error)))
    if changed:
        said.append(RELOAD)
    if faults:
        raise WorkbookError("\n".join([*said, *faults]))
    return said


def _families(names: list[str], old: list[str], moved: Moved) -> list[list[str]]:
    """Chapters that have to be merged together, because cells went from one into another; old names first."""
    families = {name: {name} for name in [*old, *names]}

    def join(a: str, b: str):
        both = families[a] | families[b]
        for name in both:
            families[name] = both

    for name in old:
        for home in moved.chapter_homes(name):
            if home in families:
                join(name, home)
    order = {name: n for n, name in enumerate(families)}
    return [list(f) for f in dict.fromkeys(tuple(sorted(f, key=order.get)) for f in families.values())]


def _update_family(names: list[str], family: list[str], chapters: Path, work: Path, moved: Moved):
    """Update the chapters `names` from all the copies of `family`: (sentences, whether a copy was changed)."""
    for _ in range(3):
        stamps = {n: _stamp(work / f"{n}.ipynb") for n in family}
        have = [n for n in family if stamps[n]]
        said = []
        for name in names:
            if name not in have:
                deliver(chapters / f"{name}.ipynb", work / f"{name}.ipynb")
                said.append(f"{name}: copied, ready to start.")
        if not have:
            return said, False
        data = {n: (work / f"{n}.ipynb").read_bytes() for n in have}
        mine = {n: parse(work / f"{n}.ipynb", data[n]) for n in have}
        before = {}
        for n in have:
            with contextlib.suppress(WorkbookError):  # without it an update knows less, and still loses nothing
                before[n] = read_notebook(work / DELIVERED / f"{n}.ipynb")
        new = {n: read_notebook(chapters / f"{n}.ipynb") for n in names}
        try:
            merged, notes = merge(new, mine, before, moved)
        except Exception as error:  # what no program that we know writes; the other chapters go on
            raise WorkbookError(
                f"{listed(have)}: nothing was changed, because this copy is like none that we know ({error!r}). Save "
                "it in JupyterLab and run this again; or move it elsewhere, and `make start` gives you a fresh one."
            ) from None
        changed = [n for n in names if n not in mine or not _same(merged[n], mine[n])]
        gone = [n for n in have if n not in names]
        signed = all(trusted(mine[n]) for n in have) if changed else False
        texts = {n: text_of(merged[n]) for n in changed}
        # JupyterLab may have saved in the meantime: then what it saved is merged.
        if any(_stamp(work / f"{n}.ipynb") != stamps[n] for n in have):
            continue
        kept = {n: backup(work / f"{n}.ipynb", data[n]) for n in have if n in changed or n in gone}
        for name in changed:
            write_whole(work / f"{name}.ipynb", texts[name])
            if signed:
                sign(parse(work / f"{name}.ipynb", texts[name].encode()))
        for name in names:
            _remember(chapters / f"{name}.ipynb", work)
        for name in gone:
            (work / f"{name}.ipynb").unlink()
            where = f"your work is in {listed(moved.chapter_homes(name))}"
            said.append(f"{name}: has become other chapters; {where}, the old copy is backup/{kept[name].name}.")
        for name in names:
            if name in kept:
                said.append(f"{name}: updated; the version before is backup/{kept[name].name}.")
            elif name in have:
                said.append(f"{name}: up to date.")
        return said + [f"  {note}" for note in notes], bool(changed)
    raise WorkbookError(f"{have[0]} is being written by another program all the time: run `make update` again.")


def _stamp(copy: Path) -> tuple | None:
    try:
        s = copy.stat()
    except FileNotFoundError:
        return None
    return s.st_mtime_ns, s.st_size, s.st_ino


def _remember(file: Path, work: Path) -> None:
    """Keep what was delivered, where it is not kept yet."""
    kept, data = work / DELIVERED / file.name, file.read_bytes()
    if not kept.exists() or kept.read_bytes() != data:
        write_whole(kept, data)


def _same(a, b) -> bool:
    def essence(notebook):
        return [(c.get("id"), c.cell_type, c.source, dict(c.metadata)) for c in notebook.cells]

    return essence(a) == essence(b)


# ---------------------------------------------------------------- progress


def progress_table(chapters: Path = CHAPTERS, work: Path = WORK) -> str:
    """A table of exercises solved, tried and taken from the solution, per chapter."""
    done = load(work, Moved(chapters / "moved.toml"))
    rows = [f"{'chapter':28} {'solved':>9}  {'tried':>5}  {'taken':>5}"]
    for file in sorted(chapters.glob("[!.]*.ipynb")):
        targets = [c.metadata.exercise.split(".") for c in read_notebook(file).cells if c.metadata.get("exercise")]
        # A chapter of two modules records under the first one's name.
        states = {k: v for module in {t[-2] for t in targets} for k, v in done.get(module, {}).items()}
        counts = {s: sum(states.get(t[-1]) == s for t in targets) for s in ("solved", "tried", "taken")}
        bar = "█" * round(10 * counts["solved"] / max(1, len(targets)))
        solved = f"{counts['solved']} of {len(targets)}"
        rows.append(f"{file.stem:28} {solved:>9}  {counts['tried']:5}  {counts['taken']:5}  {bar}")
    return "\n".join(rows)
