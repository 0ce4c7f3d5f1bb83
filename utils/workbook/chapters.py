"""The table of chapters: everything that lists chapters reads it here, and it reads the chapters' sources.

A source begins with its front matter, then its heading; number and name come from the file's name:

    ---
    modules: [induction, composition]
    models: dual
    needs: ["02", "04"]
    learned: ["find induction heads, and show that they are the cause -> 09", …]
    ---

    # 05 · The induction circuit

`models` says of which models the text is true (`MODELS`); where it loads none, nothing stands there. `learned`
completes "You can now …"; after an arrow stand the chapters that use it next.
"""

import json
import re
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import yaml

from utils.workbook import SOURCE, WorkbookError, chapter_names

MODELS = {  # as the front matter has it → as the tables of chapters have it
    "none": "",  # it loads none, or trains its own
    "any": "any",  # about the method: it holds for all models
    "dual": "own, others beside",  # the same questions to another model, whose answers may differ
    "own": "own",  # about the small world
}
CORE_FROM = 4  # exercises of this importance and more are on the fast path, where the marker says nothing else
LONGEST_SITTING = 90  # minutes
TASK = re.compile(r"#{2,4} Exercise: (.+)")  # the heading of an exercise
FRONT_MATTER = re.compile(r"---\n(.*?)\n---\n+# (\d\d) · ([^\n]+)\n", re.S)


@dataclass(frozen=True)
class Exercise:
    """One exercise marker: the function to write, its minutes, whether it is on the fast path; and its heading."""

    target: str  # "utils.tokenization.count_pairs"
    minutes: int
    core: bool
    title: str = ""

    @property
    def name(self) -> str:
        return self.target.rpartition(".")[2]


@dataclass(frozen=True)
class Chapter:
    """One row of the table; `needs` holds the numbers of the chapters that come before it."""

    path: Path
    number: str
    title: str
    modules: tuple[str, ...]
    needs: tuple[str, ...]
    learned: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (what, numbers of the chapters that use it next)
    models: str = "none"

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def file(self) -> str:
        return f"{self.name}.ipynb"

    @cached_property
    def exercises(self) -> tuple[Exercise, ...]:
        """The exercises in their order.

        Raises:
            WorkbookError: a marker lacks its minutes.
        """
        found, title = [], ""
        for cell in source_cells(self.path):
            if cell.metadata.get("exercise"):
                found.append(replace(exercise(cell.metadata), title=title))
            elif cell.cell_type == "markdown":
                title = next((m[1] for line in reversed(cell.source.split("\n")) if (m := TASK.match(line))), title)
        return tuple(found)

    def minutes(self, core: bool = False) -> int:
        """Minutes to write all exercises, or those on the fast path only."""
        return sum(e.minutes for e in self.exercises if e.core or not core)


def source_cells(path: Path) -> list:
    """The cells of a source as jupytext reads them, its front matter first."""
    return _cells_of(path.read_text(encoding="utf-8"))


@cache
def _cells_of(text: str) -> list:
    import jupytext  # takes half a second; what only reads front matters does without

    return jupytext.reads(text, fmt="md").cells


def exercise(marker: dict) -> Exercise:
    """The exercise that a cell's marker describes.

    Raises:
        WorkbookError: it lacks its minutes, or its `core` is neither true nor false.
    """
    if not isinstance(marker.get("core", True), bool):
        raise WorkbookError(f"The exercise {marker['exercise']!r} states core={marker['core']!r}: write true or false.")
    if not isinstance(marker.get("minutes"), int):
        raise WorkbookError(f"The exercise {marker['exercise']!r} needs minutes= in its source.")
    return Exercise(marker["exercise"], marker["minutes"], marker.get("core", marker.get("importance", 0) >= CORE_FROM))


def read_chapter(path: Path) -> Chapter:
    """The row of one source.

    Raises:
        WorkbookError: its beginning is not of the form above, or its heading has another number than its file.
    """
    found = FRONT_MATTER.match(path.read_text(encoding="utf-8"))
    try:
        about = yaml.safe_load(found[1])
        modules, needs = (about[key] for key in ("modules", "needs"))
        if not all(isinstance(x, list) and all(isinstance(name, str) for name in x) for x in (modules, needs)):
            raise TypeError
        models = about.get("models", "none")
        learned = tuple(_learned(text) for text in about.get("learned", ()))
    except (TypeError, KeyError, yaml.YAMLError):
        raise WorkbookError(
            f'{path.name} must begin with its front matter (---, modules: [name], needs: ["02"], ---) and its heading '
            f"`# {path.stem[:2]} · …`: see another chapter's first lines."
        ) from None
    if path.stem[:2] != found[2]:
        raise WorkbookError(f"{path.name} has the heading {found[2]!r}: give file and heading the same number.")
    if models not in MODELS:
        raise WorkbookError(f"{path.name} states models: {models!r} in its front matter: write {', '.join(MODELS)}.")
    return Chapter(path, found[2], found[3], tuple(modules), tuple(needs), learned, models)


def _learned(text: str) -> tuple[str, tuple[str, ...]]:
    what, _, where = text.partition(" -> ")
    return what, tuple(re.findall(r"\d\d", where))


def table(source: Path | None = None) -> list[Chapter]:
    """All chapters in their order.

    Raises:
        WorkbookError: a source's beginning is wrong, two have one number, one needs a chapter that is not there or
            comes later, or an exercise is of a module that the front matter does not name.
    """
    rows = [read_chapter((source or SOURCE) / f"{name}.md") for name in chapter_names(source=source)]
    numbers = {row.number for row in rows}
    for i, row in enumerate(rows):
        if i and row.number == rows[i - 1].number:
            raise WorkbookError(f"{rows[i - 1].path.name} and {row.path.name} have the same number: change one.")
        if unknown := set(row.needs) - {r.number for r in rows[:i]}:
            raise WorkbookError(f"{row.path.name} needs {sorted(unknown)[0]!r}: no chapter before it has that number.")
        if early := {n for _, where in row.learned for n in where if n <= row.number or n not in numbers}:
            raise WorkbookError(f"{row.path.name}: what is learned is used in {min(early)!r}: no chapter after it.")
        for e in row.exercises:
            if e.target.split(".")[-2] not in row.modules:
                raise WorkbookError(f"{row.path.name}: the module of {e.target} is not among the `modules` it names.")
    return rows


def as_json(rows: list[Chapter]) -> str:
    """The table as `chapters/table.json` keeps it, for what must start fast: the lab's pages and the checks."""
    from utils.workbook.ties import ours_only  # it reads notebooks: what only reads front matters does without

    kept = [
        {
            "name": row.name,
            "number": row.number,
            "title": row.title,
            "needs": row.needs,
            "models": row.models,
            "ours": ours_only(row.path.read_text(encoding="utf-8")),
            "exercises": [asdict(e) for e in row.exercises],
        }
        for row in rows
    ]
    return json.dumps(kept, indent=1, ensure_ascii=False) + "\n"
