"""The start page: what the table of chapters, the learner's folder and the marks of progress say, as HTML.

Nothing is kept: each request reads the folders anew. It is sound HTML, so that its text alone makes sense, and its
colours are JupyterLab's CSS variables (`files/style.css` of the lab extension), so that themes come by themselves.
"""

import contextlib
import io
import json
import os
from collections import Counter
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from utils.checks.progress import STATES, WORK, load, progress_folder
from utils.moved import Moved
from utils.workbook import CHAPTERS, ROOT

DONE = ("solved", "taken")
DOCUMENTS = {"glossary": "Glossary", "cheat-sheet": "Cheat sheet"}  # docs/NAME.md, shown where they are there
DELIVERY = 5  # seconds within which a copy and what is remembered of it are written


@dataclass
class Row:
    """A chapter with what the learner has done of it; `states` by exercise's name, all open without one."""

    name: str
    number: str
    title: str
    needs: list[str]
    exercises: list[dict]
    models: str = "none"
    ours: list[str] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)
    here: bool = True  # there is a copy of it in the learner's folder

    @property
    def file(self) -> str:
        return f"{self.name}.ipynb"

    @property
    def open(self) -> list[dict]:
        return [e for e in self.exercises if self.state(e) not in DONE]

    def state(self, exercise: dict) -> str:
        return self.states.get(name_of(exercise), "open")

    def count(self, *states: str) -> int:
        return sum(self.state(e) in states for e in self.exercises)

    def minutes(self, core: bool = False, still_open: bool = False) -> int:
        return sum(e["minutes"] for e in (self.open if still_open else self.exercises) if e["core"] or not core)


def name_of(exercise: dict) -> str:
    return exercise["target"].rpartition(".")[2]


def rows(chapters: Path = CHAPTERS, work: Path = WORK) -> tuple[list[Row], str]:
    """The chapters as they stand with the learner, and what could not be read (empty where all could)."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):  # it belongs on the page, not into the terminal at every look
        done = load(work, Moved(chapters / "moved.toml"))
    found = []
    for row in json.loads((chapters / "table.json").read_text(encoding="utf-8")):
        of = {(e["target"].split(".")[-2], name_of(e)) for e in row["exercises"]}
        states = {name: done[module][name] for module, name in of if name in done.get(module, {})}
        found.append(Row(**row, states=states, here=(work / f"{row['name']}.ipynb").exists()))
    return found, said.getvalue().strip()


# ---------------------------------------------------------------- where the learner was


def last_worked_on(found: list[Row], work: Path = WORK) -> tuple[Row, str | None] | None:
    """The chapter whose marks or notebook changed last, and the exercise checked last in it; None where none did."""
    marks = _marks(work)
    latest = []
    for row in found:
        checked = [(marks[e["target"]], name_of(e)) for e in row.exercises if e["target"] in marks]
        when, name = max(checked, default=(0.0, None))
        latest.append((max(when, _changed(work, row.file)), row.number, row, name))
    when, _, row, name = max(latest, key=lambda x: x[:2], default=(0.0, "", None, None))
    return (row, name) if when else None


def _marks(work: Path) -> dict[str, float]:
    """When each exercise was checked last."""
    found: Counter = Counter()
    with contextlib.suppress(OSError), os.scandir(progress_folder(work)) as entries:
        for entry in entries:
            target, _, state = entry.name.rpartition(".")
            if state in STATES:
                with contextlib.suppress(OSError):
                    found[f"utils.{target}"] = max(found[f"utils.{target}"], entry.stat().st_mtime)
    return found


def _changed(work: Path, file: str) -> float:
    """When the learner saved the notebook; 0 where it is as it was delivered."""
    with contextlib.suppress(OSError):
        when = (work / file).stat().st_mtime
        if when > (work / ".delivered" / file).stat().st_mtime + DELIVERY:
            return when
    return 0.0


def next_exercise(found: list[Row], work: Path = WORK) -> tuple[Row, dict | None] | None:
    """Where to go on: (chapter, exercise); without an exercise at the chapter's top, None where all is done.

    In the chapter last worked on it is the exercise checked last, or the next open one after it; where none is open
    there, it is the first chapter after it that has one.
    """
    last = last_worked_on(found, work)
    row, name = last or (found[0], None)
    names = [name_of(e) for e in row.exercises]
    at = names.index(name) if name in names else 0
    for e in row.exercises[at:] + row.exercises[:at]:
        if row.state(e) not in DONE:
            return (row, e) if last else (row, None)
    at = found.index(row)
    later = next((r for r in found[at:] + found[:at] if r.open), None)
    return (later, next(iter(later.open)) if later.states else None) if later else None


# ---------------------------------------------------------------- the map

ROW, GAP = 112, 32  # pixels: a chapter's height, and what is left for arrows below it
COLUMNS, WIDE, ALLEY = 3, 29.0, 6.5  # percent of the width: a column, and the alley between two


def places(found: list[Row]) -> dict[str, tuple[int, int]]:
    """Number of a chapter → (line, column): below all that it needs, near to it, what leads far in the middle."""
    needs = {row.number: row.needs for row in found}

    def depth(number):
        return 1 + max((depth(n) for n in needs[number]), default=-1)

    def followers(number):
        return sum(number in above(other) for other in needs)

    def above(number):
        return {n for need in needs[number] for n in (need, *above(need))}

    at: dict[str, tuple[int, int]] = {}
    for number in sorted(needs, key=lambda n: (depth(n), -followers(n), n)):
        line, used = depth(number), Counter(column for _, column in at.values())
        while not (free := set(range(COLUMNS)) - {c for other, c in at.values() if other == line}):
            line += 1
        columns = [at[n][1] for n in needs[number]]
        near = sum(columns) / len(columns) if columns else COLUMNS // 2
        at[number] = line, min(free, key=lambda c: (abs(c - near), used[c], -c))
    return at


def arrows(found: list[Row]) -> str:
    """An arrow from each chapter to those that need it, as SVG; its lengths across are percent of the map's width."""
    at, drawn = places(found), []
    taken = set(at.values())

    def left(column):
        return column * (WIDE + ALLEY)

    for row in found:
        for n, need in enumerate(row.needs):
            (line, column), (end, target) = at[need], at[row.number]
            top, bottom = line * (ROW + GAP) + ROW, end * (ROW + GAP)
            x, to = left(column) + WIDE / 2, left(target) + WIDE / 2
            between = {(between, target) for between in range(line + 1, end)}
            if not between & taken:  # straight down, at the next line over to the other column
                turn = top + GAP / 2
                steps = [(x, top), (x, turn), (to, turn), (to, bottom)] if x != to else [(x, top), (x, bottom)]
            else:  # past what stands between, in the alley at the left; a track for each chapter
                track = left(target) - ALLEY * (0.7 - 0.4 * (line % 2))
                enter = bottom + ROW * (n + 1) / (len(row.needs) + 1)
                start = top - ROW / 2
                steps = [(left(column), start), (track, start), (track, enter), (left(target), enter)]
            lines = [
                f'<line x1="{x1:.1f}%" y1="{y1:.0f}" x2="{x2:.1f}%" y2="{y2:.0f}"{end}/>'
                for (x1, y1), (x2, y2), end in zip(
                    steps, steps[1:], [""] * (len(steps) - 2) + [' marker-end="url(#wb-tip)"'], strict=False
                )
            ]
            drawn.append(f'<g data-arrow="{need}-{row.number}">{"".join(lines)}</g>')
    height = (1 + max((line for line, _ in at.values()), default=0)) * (ROW + GAP) - GAP
    tip = '<marker id="wb-tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
    tip += '<path d="M0 0 L8 4 L0 8 z"/></marker>'
    return f'<svg aria-hidden="true" width="100%" height="{height}"><defs>{tip}</defs>{"".join(drawn)}</svg>'


# ---------------------------------------------------------------- HTML


def page(chapters: Path = CHAPTERS, work: Path = WORK, base_url: str = "/", docs: Path = ROOT / "docs") -> str:
    """The page as the body of an HTML document; links work in the lab (`data-open`, `data-at`) and without it."""
    found, fault = rows(chapters, work)

    def link(row: Row, at: str = "") -> str:
        to = f"{base_url.rstrip('/')}/lab/tree/{row.file}"
        return f'href="{escape(to)}" data-open="{escape(row.file)}"' + (f' data-at="{escape(at)}"' if at else "")

    parts = [
        '<div class="wb"><div><h1>Look inside language models</h1>',
        f"<p>You write short functions in {len(found)} notebooks; a check says at once that one is right, or names the "
        "mistake. All models are small and come along, and every number is measured on this machine.</p></div>",
    ]
    if fault:
        parts.append(f'<p class="fault" role="alert">{escape(fault)}</p>')
    if (models := os.environ.get("WORKBOOK_MODELS", "embedded")) not in ("", "embedded"):
        own = " and ".join(row.number for row in found if row.models == "own")
        parts.append(
            f"<p>They run on the models of <code>WORKBOOK_MODELS={escape(models)}</code>; chapters {own}, which are "
            "about the small world, on the workbook's own.</p>"
        )
    fresh = not any(row.states for row in found)  # who arrives reads first how it works
    middle = [HOW, _map(found, link), _paths(found)] if fresh else [_map(found, link), _paths(found), HOW]
    parts += [_go_on(found, work, link), *middle, _more(docs, base_url), "</div>"]
    return "\n".join(parts)


def _go_on(found: list[Row], work: Path, link) -> str:
    at = next_exercise(found, work)
    if at is None:
        return "<section><h2>All is solved</h2><p>There is no exercise left. What is open now is yours.</p></section>"
    row, exercise = at
    fresh = last_worked_on(found, work) is None
    heading = "Begin here" if fresh else "Go on where you were"
    where = f"<b>{row.number} · {escape(row.title)}</b>"
    if exercise is None:
        what = f"{where}, from its beginning"
        target, button = link(row), f"Open chapter {row.number}"
    else:
        kind = "core" if exercise["core"] else "optional"
        state = {"tried": ", tried"}.get(row.state(exercise), "")
        title = f"{escape(exercise['title'])}: " if exercise["title"] else ""
        what = f"{where}<br>{title}<code>{name_of(exercise)}</code>, {kind}, {exercise['minutes']} minutes{state}"
        target, button = link(row, name_of(exercise)), "Go on"
    other = ""
    if exercise and not exercise["core"]:
        names = [name_of(e) for e in row.exercises]
        rest = row.exercises[names.index(name_of(exercise)) :]
        core = next((e for e in rest if e["core"] and e in row.open), None)
        if core:
            skip = f"<a {link(row, name_of(core))}>the next core exercise, <code>{name_of(core)}</code></a>"
            other = f'<p class="skip">Or skip to {skip}.</p>'
    return (
        f'<section class="go"><h2>{heading}</h2><p>{what}</p>'
        f'<a class="button" id="wb-go" {target}>{button}</a>{other}</section>'
    )


def hours(minutes: int) -> str:
    return f"{minutes / 60:.1f} h"


def _map(found: list[Row], link) -> str:
    at, cards = places(found), []
    for row in found:
        line, column = at[row.number]
        of, solved, tried = len(row.exercises), row.count(*DONE), row.count("tried")
        done = f"{solved} of {of} solved" + (f'<span class="more">, {tried} tried</span>' if tried else "")
        bar = "".join(
            f'<i class="{kind}" style="width:{100 * n / max(1, of):.1f}%"></i>'
            for kind, n in (("solved", solved), ("tried", tried))
            if n
        )
        needs = f'<span class="more"> · needs {", ".join(row.needs)}</span>' if row.needs else ""
        missing = "" if row.here else " <em>not in your folder: make start brings it</em>"
        cards.append(
            f'<li style="grid-area:{line + 1}/{column + 1}"><a class="card" id="wb-{row.number}" {link(row)}>'
            f'<b><span class="number">{row.number}</span> {escape(row.title)}</b>{missing}'
            f'<span class="bar" aria-hidden="true">{bar}</span>'
            f"<small>{done}{needs}<br>core {hours(row.minutes(core=True))}, all {hours(row.minutes())}</small></a></li>"
        )
    return (
        '<section><h2>Chapters</h2><p class="note">An arrow leads from a chapter to those that build on it.</p>'
        f'<div class="map">{arrows(found)}<ol>{"".join(cards)}</ol></div></section>'
    )


def _paths(found: list[Row]) -> str:
    def path(name: str, what: str, core: bool) -> str:
        chosen = [(row, e) for row in found for e in row.exercises if e["core"] or not core]
        solved = sum(row.state(e) in DONE for row, e in chosen)
        left = sum(row.minutes(core, still_open=True) for row in found)
        whole = sum(row.minutes(core) for row in found)
        rest = f", {hours(left)} left" if 0 < left < whole else ""
        return f"<dt>{name}: {hours(whole)}{rest}</dt><dd>{solved} of {len(chosen)} {what} solved.</dd>"

    return (
        "<section><h2>Two ways through</h2><dl>"
        + path("The fast path", "core exercises", True)
        + path("The whole", "exercises, core and optional,", False)
        + '</dl><p class="note">Hours are those of writing the exercises. Any can be skipped: a notebook goes on with '
        "the workbook's own version.</p></section>"
    )


HOW = """<section class="how"><h2>How it works</h2>
<figure aria-label="An exercise: your function, then what its check says">
<pre>def merge_pair(word, pair):
    …  <span>your code</span></pre>
<pre class="wrong">✗ you merged only the first place</pre>
<pre class="right">✓ merge_pair: right.</pre>
</figure>
<ol>
<li><b>Check.</b> Write your function in the exercise's cell and run it and the cell below: ✓, or the mistake by its
name.</li>
<li><b>Hint.</b> <code>hint(name)</code> gives one hint at a time, the last is nearly the code. Nothing blocks you.</li>
<li><b>Predict.</b> Guess before you run: your guess stays, and the chapter's end shows it beside the measurement.</li>
</ol></section>"""


def _more(docs: Path, base_url: str) -> str:
    links = [
        f'<a href="{escape(base_url)}workbook/document/{name}" data-document="{name}">{title}</a>'
        for name, title in DOCUMENTS.items()
        if (docs / f"{name}.md").exists()
    ]
    return f'<nav aria-label="To look things up"><p>To look things up: {" · ".join(links)}</p></nav>' if links else ""
