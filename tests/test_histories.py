"""Random histories of a learner's copy: what learners and editors do to it, and updates to ten versions of a chapter.

`--histories` says how many: 200 in `make test`, 2,000 in `make test-full`. What the learner writes carries a mark,
§17§, by which the test finds it whatever the editors did.
"""

import ast
import contextlib
import difflib
import io
import json
import lzma
import os
import random
import re
import shutil
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import editors
import nbformat
from editors import EDITORS, code, plain

from utils import tokenization
from utils.moved import Moved
from utils.workbook import CHAPTERS, delivery, learner
from utils.workbook.build import solution_code
from utils.workbook.merge import canonical, digest

MARK = re.compile(r"§\d+§")
STOCK = json.loads(lzma.decompress((Path(__file__).parent / "fixtures" / "first_version.json.xz").read_bytes()))
LENGTH = 30  # cells of a chapter that take part: whole ones would take minutes
CHECKED = 50  # in one history of so many the answers are right, and the checks themselves are run
CHECKED_CHAPTER = "01_tokenization"
NAMES = [n for n in STOCK if Moved().chapter_homes(n) == [n]]


# ---------------------------------------------------------------- ten versions of a chapter


@dataclass
class Cell:
    """A delivered cell; `key` stays the same from version to version whatever happens to its text."""

    key: str
    kind: str
    source: str
    exercise: str | None = None
    id: str = ""


@dataclass
class Version:
    """The chapters of one version, and what moved since the first."""

    chapters: dict[str, list[Cell]]
    moved_chapters: dict[str, list[str]] = field(default_factory=dict)
    moved_exercises: dict[str, list[str]] = field(default_factory=dict)

    def cells(self) -> list[Cell]:
        return [c for cells in self.chapters.values() for c in cells]

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, cells in self.chapters.items():
            (folder / f"{name}.ipynb").write_text(nbformat.writes(as_notebook(cells)))
        lines = ["[chapters]", *(f"{json.dumps(k)} = {json.dumps(v)}" for k, v in self.moved_chapters.items())]
        lines += ["[exercises]"]
        lines += [
            f"{json.dumps(k)} = {json.dumps(v[0] if len(v) == 1 else v)}" for k, v in self.moved_exercises.items()
        ]
        (folder / "moved.toml").write_text("\n".join(lines))
        return folder


def as_notebook(cells: list[Cell]) -> nbformat.NotebookNode:
    made, seen = [], Counter()
    for c in cells:
        id = c.id
        if not id.startswith(("about-", "check-")) and not c.exercise:
            id = f"{c.kind}-{digest(c.source)}"
            seen[id] += 1
            id += f"-{seen[id]}" if seen[id] > 1 else ""
        cell = {"cell_type": c.kind, "id": id, "source": c.source, "metadata": {"workbook": digest(c.source)}}
        if c.exercise:
            cell["metadata"]["exercise"] = c.exercise
        if c.kind == "code":
            cell |= {"outputs": [], "execution_count": None}
        made.append(cell)
    return nbformat.from_dict({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def first_version(name: str) -> Version:
    start = 2 if name == CHECKED_CHAPTER else 2 + random.Random(name).randrange(len(STOCK[name]) - LENGTH - 2)
    part = STOCK[name][:2] + STOCK[name][start : start + LENGTH]
    cells = [Cell(f"{name}:{n}", kind, text, exercise, id) for n, (kind, id, exercise, text) in enumerate(part)]
    return Version({name: cells})


def todays_version(name: str, last: Version, first: Version) -> Version:
    """The chapter as it is today; a cell's key is that of the first version where exercise, id or text is the same."""
    real = Moved()
    known = {}
    for c in first.cells():
        for sign in (*(real.homes(c.exercise) if c.exercise else ()), c.id, (c.kind, c.source)):
            known.setdefault(sign, c.key)
    cells = []
    today = nbformat.read(CHAPTERS / f"{name}.ipynb", 4).cells
    shared = [n for n, c in enumerate(today) if n > 1 and {c.metadata.get("exercise"), c.id} & set(known)]
    for n, c in enumerate(today[:2] + today[shared[0] : shared[-1] + 1]):
        exercise = c.metadata.get("exercise")
        signs = (exercise, c.id, (c.cell_type, c.source))
        key = next((known[s] for s in signs if s in known), f"{name}:today:{n}")
        key = key if key not in {d.key for d in cells} else f"{name}:today:{n}"
        cells.append(Cell(key, c.cell_type, c.source, exercise, c.id))
    now = {c.key: c.exercise for c in cells if c.exercise}
    keys = {c.exercise: [c.key] for c in first.cells() if c.exercise} | all_names(last)
    moved = {old: [now[k] for k in at if k in now] for old, at in keys.items()}
    for old, new in last.moved_exercises.items():
        moved.setdefault(old, [e for n in new for e in moved.get(n, [])])
    moved = {old: new for old, new in moved.items() if new and new != [old]}
    return Version({name: cells}, {n: [name] for n in last.chapters if n != name}, moved)


def all_names(version: Version) -> dict[str, list[str]]:
    """Every exercise's name of this version → the keys of what it came from."""
    return {c.exercise: [c.key, *getattr(c, "swallowed", [])] for c in version.cells() if c.exercise}


def next_version(old: Version, rng: random.Random, number: int, renames: bool = True) -> Version:
    """Another version: texts and stubs reworded, cells new, gone or elsewhere, exercises renamed and merged, and the
    chapter cut in two."""
    chapters = {
        n: [Cell(**{k: getattr(c, k) for k in Cell.__annotations__}) for c in cs] for n, cs in old.chapters.items()
    }
    for n, cs in old.chapters.items():
        for a, b in zip(chapters[n], cs, strict=True):
            a.swallowed = list(getattr(b, "swallowed", []))
    moved, moved_chapters = dict(old.moved_exercises), dict(old.moved_chapters)
    for cells in chapters.values():
        plain_cells = [c for c in cells if not c.exercise and not c.id.startswith(("about-", "check-"))]
        for c in rng.sample(plain_cells, len(plain_cells) // 6):  # reword
            lines = c.source.split("\n")
            at = rng.randrange(len(lines))
            if c.kind == "markdown":
                lines[at] += f" (Said otherwise in version {number}.)"
            else:
                lines.insert(0, f"# version {number}")
            c.source = "\n".join(lines)
        exercises = [c for c in cells if c.exercise]
        for c in rng.sample(exercises, len(exercises) // 4):  # another stub
            c.source = c.source.replace(
                "raise NotImplementedError", f"# version {number}\n    raise NotImplementedError"
            )
        if number % 2:
            cells.remove(rng.choice(plain_cells))
        for _ in range(1):
            at = rng.randrange(len(cells))
            kind = rng.choice(["code", "markdown"])
            words = rng.sample(sorted(set(re.findall(r"[a-z]{4,}", " ".join(c.source for c in cells)))), 9)
            text = f"new_in_{number} = {words}" if kind == "code" else f"New in version {number}: {' '.join(words)}."
            cells.insert(at, Cell(f"new:{number}:{at}", kind, text))
        if number in (3, 7):  # a part goes elsewhere
            a, b = sorted(rng.sample(range(len(cells)), 2))
            b = min(b, a + 12)
            block = cells[a:b]
            del cells[a:b]
            at = rng.randrange(len(cells))
            cells[at:at] = block
        if renames and number in (4, 6) and len(exercises) > 2:  # a new name
            c = rng.choice(exercises)
            rename(cells, c, f"{c.exercise}_v{number}", moved)
        if renames and number in (5, 8) and len(exercises) > 2:  # two exercises become one
            a, b = rng.sample(exercises, 2)
            merged = f"{a.exercise}_and_{number}"
            moved[b.exercise] = [merged]
            follow(moved, b.exercise, merged)
            a.swallowed += [b.key, *b.swallowed]
            name = b.exercise.rpartition(".")[2]
            cells[:] = [c for c in cells if c is not b and c.id not in (f"about-{name}", f"check-{name}")]
            rename(cells, a, merged, moved)
    if number == 6 and len(chapters) == 1:
        (name, cells), *_ = chapters.items()
        cut = len(cells) // 2
        while cells[cut].exercise or cells[cut].id.startswith("check-"):  # never within an exercise
            cut += 1
        chapters = {f"{name}_one": cells[:cut], f"{name}_two": cells[cut:]}
        moved_chapters[name] = list(chapters)
    return Version(chapters, moved_chapters, moved)


def follow(moved: dict, old: str, new: str) -> None:
    """Every name that led to `old` leads to `new`."""
    for k, v in moved.items():
        moved[k] = [new if x == old else x for x in v]


def rename(cells: list[Cell], c: Cell, new: str, moved: dict) -> None:
    old, a, b = c.exercise, c.exercise.rpartition(".")[2], new.rpartition(".")[2]
    follow(moved, old, new)
    moved[old] = [new]
    c.exercise, c.id, c.source = new, b, re.sub(rf"\b{a}\b", b, c.source)
    for d in cells:
        if d.id == f"check-{a}":
            d.id, d.source = f"check-{b}", f"{b} = check({b})"
        if d.id == f"about-{a}":
            d.id = f"about-{b}"


@cache
def versions(name: str, renames: bool = True) -> list[Version]:
    rng, made = random.Random(name), [first_version(name)]
    for number in range(1, 9):
        made.append(next_version(made[-1], rng, number, renames))
    return [*made, todays_version(name, made[-1], made[0])]


# ---------------------------------------------------------------- one history


def overlap(a: str, b: str) -> bool:
    a, b = squashed(a), squashed(b)
    return bool(a and b) and (a in b or b in a)


def squashed(text: str) -> str:
    return "\n".join(line for line in canonical(text).split("\n") if line)


class History:
    def __init__(self, seed: int, tmp: Path, counts: Counter):
        self.rng, self.counts, self.tmp = random.Random(seed), counts, tmp
        editors.ids.seed(seed)
        self.checked = seed % CHECKED == 0
        self.name = CHECKED_CHAPTER if self.checked else self.rng.choice(NAMES)
        self.versions = versions(self.name, renames=not self.checked)
        self.work = tmp / "work"
        self.now = 0
        self.origin: dict[str, str | None] = {}  # mark → key of the delivered cell it was written into; None: own
        self.texts: dict[str, str | None] = {}  # mark → the delivered text at that time
        self.loose: set[str] = set()  # marks in cells that were split, pasted, moved or merged: their place is theirs
        self.changed: set[str] = set()  # keys of cells that were split, merged or deleted
        self.pasted: list[str] = []
        self.log: list[str] = []

    # -------- the files

    def chapters(self) -> Path:
        folder = self.tmp / f"v{self.now}"
        return folder if folder.exists() else self.versions[self.now].write(folder)

    def copies(self) -> dict[str, dict]:
        found = {}
        for path in sorted(self.work.glob("*.ipynb")):
            raw = json.loads(path.read_text())
            found[path.stem] = (
                raw if raw["nbformat"] == 4 else plain(nbformat.from_dict(nbformat.convert(nbformat.from_dict(raw), 4)))
            )
            for c in found[path.stem]["cells"]:
                c["source"] = "".join(c["source"])
        return found

    # -------- what a learner does

    def run(self) -> None:
        delivery.start(self.chapters(), self.work)
        for _ in range(self.rng.randint(2, 3)):
            self.session()
            self.now = min(9, self.now + self.rng.randint(1, 4))
            self.update()

    def session(self) -> None:
        """Open a copy in one editor, do a few things, save it."""
        name = self.rng.choice(sorted(self.copies()))
        notebook = self.copies()[name]
        self.editor = self.rng.choice(EDITORS)
        self.log.append(f"version {self.now}, {name}, {self.editor.name}")
        self.counts[self.editor.name] += 1
        for _ in range(self.rng.randint(3, 7)):
            operation = self.rng.choice(OPERATIONS)
            k = self.rng.randrange(len(notebook["cells"]))
            if operation(self, notebook["cells"], k) is not False:
                self.counts[operation.__name__] += 1
                self.log.append(f"  {operation.__name__} at {k}")
        stood = {key for c in notebook["cells"] if (key := self.key_of(c))}
        wrote = {m: squashed(c["source"]) for c in notebook["cells"] for m in self.all_marks(c)}
        saved = self.editor.save(notebook)
        (self.work / f"{name}.ipynb").write_text(json.dumps(saved))
        # An editor may join cells when it writes; what an editor did to a delivered text makes it the learner's.
        now = {
            m: squashed(c["source"]) for nb in self.copies().values() for c in nb["cells"] for m in self.all_marks(c)
        }
        self.loose |= {m for m, text in wrote.items() if now.get(m) != text}
        self.changed |= stood - {self.key_of(c) for nb in self.copies().values() for c in nb["cells"]}

    def mark(self, key: str | None) -> str:
        mark = f"§{len(self.origin)}§"
        self.origin[mark] = key
        self.texts[mark] = next((c.source for c in self.versions[self.now].cells() if c.key == key), None)
        return mark

    def key_of(self, cell: dict) -> str | None:
        """The delivered cell of today's version that this one is, by its text."""
        here = self.versions[self.now].cells()
        found = [c for c in here if canonical(c.source) == canonical(cell["source"])]
        return found[0].key if len(found) == 1 else None

    def exercise(self, key: str) -> str:
        return next(c.exercise for c in self.versions[self.now].cells() if c.key == key)

    def all_marks(self, cell: dict) -> list[str]:
        return MARK.findall(cell["source"])

    def was_copied(self, cell: dict, cells: list[dict]) -> bool:
        """Whether its text stands twice, or was pasted: which of the two is the delivered one is not to be known."""
        texts = [canonical(c["source"]) for c in cells] + [canonical(p) for p in self.pasted]
        return texts.count(canonical(cell["source"])) > 1

    def loosen(self, *cells: dict) -> None:
        """The cells were split or merged: where they stand is the learner's choice."""
        for c in cells:
            self.loose |= set(self.all_marks(c))
            self.changed |= {d.key for d in self.versions[self.now].cells() if overlap(d.source, c["source"])}

    # -------- the update, and what must hold of it

    def update(self) -> None:
        version = self.versions[self.now]
        before = self.copies()
        self.log.append(f"update to version {self.now}")
        passed = self.passes(before) if self.checked else set()
        learner.update(chapters=self.chapters(), work=self.work)
        files = {p: p.read_bytes() for p in self.work.glob("*.ipynb")}
        after = self.copies()
        assert set(after) == set(version.chapters), "the chapters of the version"
        old, new = ([c for nb in nbs.values() for c in nb["cells"]] for nbs in (before, after))
        self.check_texts(old, new, version)
        self.check_places(before, after, version)
        self.check_delivered(new, version)
        if self.checked:
            assert passed <= (now := self.passes(after)), f"no longer solved: {passed - now}"
            self.counts["checks that passed"] += len(passed)
        for nb in after.values():
            ids = [c["id"] for c in nb["cells"]]
            assert len(set(ids)) == len(ids), "an id stands twice"
        learner.update(chapters=self.chapters(), work=self.work)
        again = {p: p.read_bytes() for p in self.work.glob("*.ipynb")}
        assert again == files, f"a second update changes something: {difference(files, again)}"
        assert not [s for s in delivery.start(self.chapters(), self.work) if "newer" in s], (
            "start announces what is there"
        )
        self.counts["update"] += 1

    def passes(self, copies: dict[str, dict]) -> set[str]:
        """The exercises whose checks pass where the answers and checks of the copies are run in their order."""
        today = nbformat.read(CHAPTERS / f"{self.name}.ipynb", 4).cells
        setup = next(c for c in today if c.cell_type == "code" and "import check" in c.source)
        imports = [n for n in ast.parse(setup.source).body if isinstance(n, ast.Import | ast.ImportFrom)]
        names: dict = {"__name__": "__main__", **vars(tokenization)}  # the exercises before these, and helpers
        exec(compile(ast.Module(imports, []), "setup", "exec"), names)
        assert "check" in names
        said = io.StringIO()
        for cell in (c for nb in copies.values() for c in nb["cells"] if c["cell_type"] == "code"):
            if "check(" in cell["source"] or "def " in cell["source"] and self.all_marks(cell):
                with contextlib.suppress(Exception), contextlib.redirect_stdout(said):
                    exec(cell["source"], names)
        return set(re.findall(r"✓ (\w+)", said.getvalue()))

    def check_texts(self, old: list[dict], new: list[dict], version: Version) -> None:
        """Every text of the learner's stands byte for byte, as often as before, and none is made up."""
        a, b = (Counter(c["source"] for c in cells if self.all_marks(c)) for cells in (old, new))
        assert a == b, f"the learner's texts: lost {list(a - b)[:2]}, doubled {list(b - a)[:2]}"
        known = {canonical(c["source"]) for c in old} | {canonical(c.source) for c in version.cells()}
        assert not (made_up := [c["source"] for c in new if canonical(c["source"]) not in known]), made_up[:2]

    def check_places(self, before: dict, after: dict, version: Version) -> None:
        texts = Counter(canonical(c.source) for c in version.cells())
        index = {canonical(c.source): i for i, c in enumerate(version.cells()) if texts[canonical(c.source)] == 1}
        keys = {c.key: i for i, c in enumerate(version.cells())}
        old = [c for nb in before.values() for c in nb["cells"]]
        new = [c for nb in after.values() for c in nb["cells"]]
        once = Counter(canonical(c["source"]) for c in new)
        index = {text: i for text, i in index.items() if once[text] == 1}  # a pasted copy stands elsewhere
        slots = [index.get(canonical(c["source"])) for c in new]
        stood = Counter(canonical(c["source"]) for c in old)
        tops = {sum(len(nb["cells"]) for nb in list(before.values())[:n]) for n in range(len(before))}
        for mark, key in self.origin.items():
            at = [k for k, c in enumerate(new) if mark in c["source"]]
            if key in keys and not (cell := version.cells()[keys[key]]).exercise and cell.source != self.texts[mark]:
                self.loose.add(mark)  # the text is another now: the cell is the learner's own from here on
            if key is not None and key not in keys:
                self.loose.add(mark)  # its exercise became a part of another
            if not at or mark in self.loose:
                continue
            if key in keys:
                back = next((s for s in slots[: at[0]][::-1] if s is not None), -1)
                ahead = next((s for s in slots[at[0] :] if s is not None), len(keys))
                assert back <= keys[key] <= ahead, f"{mark} is not at its place {keys[key]}, but from {back} to {ahead}"
                if canonical(version.cells()[keys[key]].source) in once:
                    self.loose.add(mark)  # the text or name is another now: the cell is the learner's own from here on
            elif key is None:
                (k,) = [k for k, c in enumerate(old) if mark in c["source"]]
                if (
                    k not in tops
                    and index.get(text := canonical(old[k - 1]["source"])) is not None
                    and stood[text] == 1
                ):
                    followed = next(c for c in new[at[0] - 1 :: -1] if canonical(c["source"]) in index)
                    assert canonical(followed["source"]) == text, f"{mark} does not follow the cell that it followed"

    def check_delivered(self, new: list[dict], version: Version) -> None:
        """Every delivered cell stands once: where it is, or within what the learner made of it."""
        marked = {key for mark, key in self.origin.items() if any(mark in c["source"] for c in new)}
        # For an exercise the learner's answer stands instead, so long as it keeps its name.
        # A text that no version holds is of the learner's making, whatever of ours stands in it.
        delivered = {canonical(c.source) for v in self.versions[: self.now + 1] for c in v.cells()}
        ours = "\n\n".join(squashed(c["source"]) for c in new if canonical(c["source"]) in delivered)
        everything = "\n\n".join(squashed(c["source"]) for c in new)
        expected = "\n\n".join(squashed(c.source) for c in version.cells())
        everything, ours, expected = (f"\n{t}\n".replace("\n\n", "\n\n\n") for t in (everything, ours, expected))
        for c in version.cells():
            text = squashed(c.source)
            line = f"\n{text}\n"
            wanted = expected.count(line)
            joined = f"\n{everything}\n".replace("\n\n\n", "\n").count(line)  # also where it is split
            wanted_joined = f"\n{expected}\n".replace("\n\n\n", "\n").count(line)
            copies = sum(line in f"\n{squashed(p)}\n" for p in self.pasted)
            if c.key not in marked | self.changed:
                assert joined >= wanted_joined, f"not there: {c.id} {c.source[:80]!r}"
            assert c.key in self.changed or ours.count(line) <= wanted + copies, (
                f"more than once: {c.id} {c.source[:80]!r}"
            )
        # No fresh stub beside an answer.
        for mark, key in self.origin.items():
            c = next((c for c in version.cells() if c.key == key and c.exercise), None)
            if c and mark not in self.loose and not copies_of(c, self.pasted):
                name = c.exercise.rpartition(".")[2]
                if any(mark in d["source"] and f"def {name}(" in d["source"] for d in new):
                    assert squashed(c.source) not in {squashed(d["source"]) for d in new}, f"a fresh stub of {name}"


def difference(a: dict, b: dict) -> list:
    a, b = (json.dumps([json.loads(x[p]) for p in sorted(x)], indent=1).split("\n") for x in (a, b))
    return [line[:200] for line in difflib.unified_diff(a, b, n=2)][:30]


def copies_of(c: Cell, pasted: list[str]) -> bool:
    return any(squashed(c.source) in squashed(p) for p in pasted)


# -------- operations: each changes the cells and returns False where it does not apply


def answer(h: History, cells: list[dict], k: int):
    """Write an exercise; half of the time in an exercise that is open."""
    stubs = [i for i, c in enumerate(cells) if "raise NotImplementedError" in c["source"] and not h.all_marks(c)]
    stubs = [i for i in stubs if h.key_of(cells[i]) and re.search(r"^(def|class) ", cells[i]["source"], re.M)]
    if not stubs:
        return False
    cell = cells[h.rng.choice(stubs)]
    mark = h.mark(h.key_of(cell))
    if h.was_copied(cell, cells):
        h.loose.add(mark)  # a pasted copy of the stub: it stays where it was pasted
    name = re.search(r"^(?:def|class) (\w+)", cell["source"], re.M)[1]
    right = [f"# {mark}\n{solution_code(h.exercise(h.origin[mark]))}"] if h.checked else []
    cell["source"] = h.rng.choice(
        right
        or [
            cell["source"].replace("raise NotImplementedError", f"return {mark!r}"),
            f"def {name}(*args, **options):\n    # {mark}\n    return args\n",
            f"# mine {mark}\n\n\ndef helper():\n    pass\n\n\ndef {name}(x):\n    return helper()",
            f"def {name}(x:\n    return [  # {mark}",
        ]
    )
    cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": f"ran {mark}"}]


def answer_again(h: History, cells: list[dict], k: int):
    """Change what was written before."""
    mine = [c for c in cells if h.all_marks(c)]
    if not mine:
        return False
    cell = h.rng.choice(mine)
    cell["source"] += f"\n# again {len(h.log)}"


def guess(h: History, cells: list[dict], k: int):
    """Type into a delivered text or example: behind it, before it, or between its lines."""
    c = cells[k]
    key = h.key_of(c)
    if key is None or "raise NotImplementedError" in c["source"]:
        return False
    lines = c["source"].split("\n")
    mark = h.mark(key)
    if h.was_copied(c, cells):
        h.loose.add(mark)
    lines.insert(
        h.rng.choice([len(lines), len(lines), 0, len(lines) // 2]),
        f"my guess: {mark}" if c["cell_type"] == "markdown" else f"# {mark}",
    )
    c["source"] = "\n".join(lines)


def own_code(h: History, cells: list[dict], k: int):
    cells.insert(k + 1, code(f"scratch = {h.mark(None)!r}\nscratch"))


def own_text(h: History, cells: list[dict], k: int):
    cells.insert(
        k + 1, {"cell_type": "markdown", "metadata": {}, "source": f"My note {h.mark(None)}.", "id": editors.new_id()}
    )


def own_at_the_top(h: History, cells: list[dict], k: int):
    cells.insert(0, code(f"{h.mark(None)!r}"))


def split(h: History, cells: list[dict], k: int):
    if "\n" not in cells[k]["source"].strip("\n"):
        return False
    h.loosen(cells[k])
    ends = [m.end() for m in re.finditer("\n", cells[k]["source"].strip("\n"))]
    h.editor.split(cells, k, h.rng.choice(ends))


def merge(h: History, cells: list[dict], k: int):
    if k + 1 == len(cells):
        return False
    pair = [dict(c) for c in cells[k : k + 2]]
    if not h.editor.merge(cells, k):
        return False
    h.loosen(*pair)


def paste(h: History, cells: list[dict], k: int):
    copy = h.editor.pasted(cells[k])
    h.loose |= set(h.all_marks(copy))
    h.pasted.append(copy["source"])
    if "raise NotImplementedError" in copy["source"]:
        h.loosen(copy)  # which of two stubs is the exercise's is not to be known
    cells.insert(h.rng.randrange(len(cells)), copy)


def move(h: History, cells: list[dict], k: int):
    cell = cells.pop(k)
    h.loose |= set(h.all_marks(cell))
    cells.insert(max(0, k + h.rng.choice([-3, -1, 1, 5])), cell)


def delete(h: History, cells: list[dict], k: int):
    del cells[k]


def raw(h: History, cells: list[dict], k: int):
    change_type(cells[k], "raw")


def to_markdown(h: History, cells: list[dict], k: int):
    change_type(cells[k], "markdown")


def change_type(cell: dict, kind: str) -> None:
    cell["cell_type"] = kind
    cell.pop("outputs", None)
    cell.pop("execution_count", None)


def run(h: History, cells: list[dict], k: int):
    if cells[k]["cell_type"] != "code":
        return False
    cells[k]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "1"}]
    cells[k]["execution_count"] = 1


def clear(h: History, cells: list[dict], k: int):
    cells[k]["source"] = ""


def windows_lines(h: History, cells: list[dict], k: int):
    for c in cells:
        c["source"] = c["source"].replace("\r\n", "\n").replace("\n", "\r\n")


OPERATIONS = [answer] * 4 + [guess] * 4
OPERATIONS += [answer_again, own_code, own_code, own_text, own_at_the_top, split, merge, paste, move, delete]
OPERATIONS += [raw, to_markdown, run, clear, windows_lines]


# ---------------------------------------------------------------- the tests


def one_history(seed: int, tmp: Path, counts: Counter) -> str | None:
    """The fault that a history shows, with what led to it; None where all held."""
    history = History(seed, tmp, counts)
    try:
        history.run()
    except Exception as error:  # an AssertionError, or whatever the update raised
        return f"seed {seed}: {type(error).__name__}: {error}\n" + "\n".join(history.log)
    counts["histories"] += 1
    return None


CHUNK = 50


def pytest_generate_tests(metafunc):
    if "first_seed" in metafunc.fixturenames:
        metafunc.parametrize("first_seed", range(0, metafunc.config.getoption("histories"), CHUNK))


def test_random_histories(first_seed, tmp_path, monkeypatch, record_property):
    monkeypatch.setattr(os, "fsync", lambda file: None)  # waits for the disk; the kills of test_learner.py have it
    counts, faults = Counter(), []
    for seed in range(first_seed, first_seed + CHUNK):
        if fault := one_history(seed, tmp_path / str(seed), counts):
            faults.append(fault)
        shutil.rmtree(tmp_path / str(seed), ignore_errors=True)
    record_property("histories", dict(counts))
    assert not faults, f"{len(faults)} of {CHUNK} histories:\n" + "\n\n".join(faults[:3])
    assert {e.name for e in EDITORS} | {o.__name__ for o in OPERATIONS} <= set(counts)
