"""What the build adds to a chapter so that nobody is lost: ways to its neighbours, sittings, what is open at its end.

All of it follows from the table of chapters and the exercises' markers; nothing of it is written by hand.
"""

import re
from itertools import pairwise

from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell

from utils.workbook import WorkbookError
from utils.workbook.chapters import LONGEST_SITTING, Chapter

# The lab shows its start page for a link of this title; elsewhere the README's table is the start.
START = '[Start page](../README.md "The start page")'
HEADING = re.compile(r"#{2,4} ")
SECTION = re.compile(r"## ")


def with_signposts(cells: list[NotebookNode], row: Chapter, rows: list[Chapter]) -> list[NotebookNode]:
    """The chapter's cells with those added that lead through it, each with an id of its own.

    Raises:
        WorkbookError: an exercise takes longer than a sitting may.
    """
    before = next((a for a, b in pairwise(rows) if b == row), None)
    after = next((b for a, b in pairwise(rows) if a == row), None)
    ways = [START]
    ways += [f"[← {before.number} · {before.title}]({before.name}.ipynb)"] if before else []
    ways += [f"[{after.number} · {after.title} →]({after.name}.ipynb)"] if after else []
    line = " · ".join(ways)
    made = [new_markdown_cell(line, id="nav-top"), *with_sittings(cells, row)]
    if row.learned:
        made.append(new_markdown_cell(_learned(row, rows), id="learned"))
    if row.exercises:
        made.append(new_code_cell("check()", id="check-all"))
    return [*made, new_markdown_cell(line, id="nav-end")]


def _learned(row: Chapter, rows: list[Chapter]) -> str:
    of = {r.number: r for r in rows}

    def link(number: str) -> str:
        return f"[{number} · {of[number].title}]({of[number].name}.ipynb)"

    lines = ["## What you can do now", ""]
    for what, where in row.learned:
        lines.append(f"- {what}" + (f" (next in {', '.join(map(link, where))})" if where else ""))
    if followers := [r.number for r in rows if row.number in r.needs]:
        lines += ["", f"On this chapter build {', '.join(map(link, followers))}."]
    return "\n".join(lines)


# ---------------------------------------------------------------- sittings


def with_sittings(cells: list[NotebookNode], row: Chapter) -> list[NotebookNode]:
    """The cells with a line where a sitting begins, which says its minutes."""
    units = _units(cells, row)
    sittings = list(grouped([(e.minutes, begins_section) for _, begins_section, e in units]))
    at, done = {}, 0
    for k, size in enumerate(sittings, 1):
        part = units[done : done + size]
        if (longest := max(part, key=lambda unit: unit[2].minutes)[2]).minutes > LONGEST_SITTING:
            raise WorkbookError(
                f"{row.path.name}: {longest.target} takes {longest.minutes} minutes, and a sitting at most "
                f"{LONGEST_SITTING}: split it."
            )
        whole = sum(e.minutes for *_, e in part)
        core = sum(e.minutes for *_, e in part if e.core)
        at[part[0][0]] = new_markdown_cell(
            f"**Sitting {k} of {len(sittings)}** · about {whole} minutes of exercises: core {core}, "
            f"optional {whole - core}",
            id=f"sitting-{k}",
        )
        done += size
    return [c for i, cell in enumerate(cells) for c in (*([at[i]] if i in at else []), cell)]


def _units(cells, row: Chapter) -> list[tuple[int, bool, object]]:
    """For each exercise: (the cell at which a sitting that starts with it begins, whether a section does, exercise)."""
    exercises = {e.target: e for e in row.exercises}
    units, heading, section = [], None, None
    for i, cell in enumerate(cells):
        if cell.cell_type == "markdown" and HEADING.match(cell.source):
            heading = i if heading is None else heading
            # A section without exercises belongs to the sitting before it, the first one to the first.
            section = i if SECTION.match(cell.source) and (units or section is None) else section
        elif target := cell.metadata.get("exercise"):
            units.append((heading if section is None else section, section is not None, exercises[target]))
            heading = section = None
    return units


def grouped(units: list[tuple[int, bool]]) -> list[int]:
    """How many units each sitting has: no sitting too long, as few as can be within a section, as few in all, even.

    Args:
        units: (minutes, whether a section begins with it).
    """
    best = {0: ((0, 0, 0), [])}
    for end in range(1, len(units) + 1):
        found = []
        for start in range(end - 1, -1, -1):
            minutes = sum(m for m, _ in units[start:end])
            if minutes > LONGEST_SITTING and end - start > 1:
                break
            (within, many, squares), sizes = best[start]
            cost = (within + (not units[start][1]), many + 1, squares + minutes**2)
            found.append((cost, [*sizes, end - start]))
        best[end] = min(found)
    return best[len(units)][1]
