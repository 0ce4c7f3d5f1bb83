"""Merge new versions of chapters with a learner's copies, by what each cell holds.

Editors renew or drop cell ids, drop metadata, merge, split and paste cells. So a cell is known by, in this order: the
exercise in its metadata, the function that it defines, the text that was delivered, the words it shares with it, and
its id last. Three notebooks take part: the new version, the learner's copy, and the version that was delivered
before, by which a text of ours is told from one of theirs.

The words used here: a *slot* is a cell of the new version. A learner's cell that is as it was delivered is *ours*, any
other is *theirs*. Theirs *claims* the slots whose text it was made from; the rest are their own cells, and stay behind
the cell they followed.
"""

import ast
import copy
import hashlib
import re
import uuid
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import lru_cache

import nbformat

from utils.moved import Moved

OURS = ("workbook", "exercise")  # what we write into a cell's metadata
CHECK = re.compile(r"(?:\w+ = )?check\((\w+)\)")
ABOUT = re.compile(r"\*Difficulty [●○]{5} · importance [●○]{5} · about \d+ minutes[^\n]*\*")
OUR_ID = re.compile(r"learned$|(nav|sitting|task|about|check|code|markdown|raw)-")
DEFINES = re.compile(r"^(?:(?:async )?(?:def|class) +(\w+)|(\w+) *(?::[^=\n]+)?=(?!=)(?! *check\())", re.M)
GUESSES = re.compile(r"^expect\(\s*(['\"])(.*?)\1", re.M)
ALIKE = 0.5  # share of words in common, from which two texts are versions of one another
EDITED = 0.7  # the same for a text that a learner edited, where nothing else tells what it was


def digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:10]


@lru_cache(10_000)
def canonical(text: str) -> str:
    """The text by which cells are compared: one kind of line end, nothing invisible at the ends."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def defined(source: str) -> set[str]:
    """Names that a cell defines or imports at its top level, also where it can't be parsed yet, and its guesses."""
    return _definitions(source) | guessed(source)


def guessed(source: str) -> set[str]:
    """What a cell's calls of `expect` predict, as 'expect "…"'; also where they can't be parsed yet."""
    return {f'expect "{text}"' for _, text in GUESSES.findall(canonical(source))}


def _definitions(source: str) -> set[str]:
    try:
        nodes = ast.parse(canonical(source)).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {a or b for a, b in DEFINES.findall(canonical(source))}
    names = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    names |= {a.asname or a.name for n in nodes if isinstance(n, ast.ImportFrom) for a in n.names}
    given = [n for n in nodes if isinstance(n, ast.Assign | ast.AnnAssign) and not _is_check(n.value)]
    targets = [t for n in given for t in (n.targets if isinstance(n, ast.Assign) else [n.target])]
    return names | {t.id for t in targets if isinstance(t, ast.Name)}


def _is_check(value) -> bool:
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "check"


def alike(a: Counter, b: Counter) -> float:
    """Twice the words in common, over all words: 1 for the same words, 0 for none in common."""
    return 2 * (a & b).total() / max(1, a.total() + b.total())


def _words(text: str) -> Counter:
    return Counter(re.findall(r"\w+|[^\w\s]", text))


def _squashed(text: str) -> str:
    """Without blank lines, which editors add and take where they split and merge cells."""
    return "\n".join(line for line in text.split("\n") if line)


def _within(part: str, whole: str) -> bool:
    """Whether all lines of one text stand in the other in their order, whatever was written between them."""
    lines = iter(whole.split("\n"))
    return all(line in lines for line in part.split("\n"))


@dataclass
class Delivered:
    """A cell of ours, of the new version or of the one before."""

    cell: nbformat.NotebookNode
    chapter: str
    text: str = field(init=False)
    words: Counter = field(init=False)

    def __post_init__(self):
        self.text = canonical(self.cell.source)
        self.words = _words(self.text)

    @property
    def id(self) -> str:
        return self.cell.get("id", "")

    @property
    def target(self) -> str | None:
        return self.cell.metadata.get("exercise")

    @property
    def name(self) -> str | None:
        """The exercise's name, or the first prediction of a cell of guesses."""
        return self.target.rpartition(".")[2] if self.target else min(guessed(self.cell.source), default=None)


@dataclass
class Mine:
    """A cell of the learner's copy, and what was found out about it."""

    cell: nbformat.NotebookNode
    text: str
    ours: bool = False
    slot: int | None = None  # the slot that it holds or stands at
    claims: list[int] = field(default_factory=list)  # of theirs
    parts: list[int] = field(default_factory=list)  # slots of whose text it is a part, all of which is there
    alike: bool = False  # it claims a slot by nothing but its words
    dropped: bool = False


@dataclass
class Group:
    """What stands at one slot: cells of theirs that take its place, then their own cells that follow it."""

    answers: list = field(default_factory=list)
    own: list = field(default_factory=list)
    filled: bool = False  # what is ours is not delivered beside it
    holder: nbformat.NotebookNode | None = None  # the untouched cell, for its outputs


def merge(
    new: dict[str, nbformat.NotebookNode],
    mine: dict[str, nbformat.NotebookNode],
    before: dict[str, nbformat.NotebookNode] | None = None,
    moved: Moved | None = None,
) -> tuple[dict[str, nbformat.NotebookNode], list[str]]:
    """The new version of some chapters with everything in it that a learner wrote, and notes about what changed.

    A cell that the learner changed stays as it is, at its place in the new version; a cell of the learner's own stays
    behind the cell it followed; outputs of unchanged cells stay. What nobody touched is replaced. No text of the
    learner's is changed or lost.

    Args:
        new: the new version, by chapter.
        mine: the learner's copies, by the chapter's name at the time. Where a text stands in several of them, it is
            taken once; where they differ, both are kept, that of the last one nearer to the check.
        before: the version that was delivered last, where it is known.
        moved: what was renamed since.
    """
    merger = _Merger(new, before or {}, moved or Moved())
    cells = {name: merger.find_ours(name, notebook) for name, notebook in mine.items()}
    held = {m.slot for copy in cells.values() for m in copy if m.ours}
    taken: Counter = Counter()
    for name in reversed(mine):  # the newest first: its places count
        merger.add(name, cells[name], held, taken)
    return merger.result(new, mine), merger.notes


class _Merger:
    def __init__(self, new, before, moved):
        self.moved, self.notes = moved, []
        self.slots = [Delivered(c, name) for name, nb in new.items() for c in nb.cells]
        self.before = [Delivered(c, name) for name, nb in before.items() for c in nb.cells]
        self.groups = [Group() for _ in self.slots]
        self.top: dict[str, list] = {name: [] for name in new}
        self.chapters = list(new)
        self.by_text, self.by_id, self.by_target, self.by_name, self.by_digest = (defaultdict(list) for _ in range(5))
        for i, slot in enumerate(self.slots):
            self.by_text[slot.text].append(i)
            self.by_digest[slot.cell.metadata.get("workbook")].append(i)
            self.by_id[slot.id].append(i)
            if slot.target:
                self.by_target[slot.target].append(i)
                self.by_name[slot.name].append(i)
            for name in guessed(slot.cell.source):
                self.by_name[name].append(i)
        known = [d.target for d in self.before if d.target] + list(moved.exercises)
        for old in known:
            found = [i for home in moved.homes(old) for i in self.by_target.get(home, [])]
            self.by_target.setdefault(old, found)
            self.by_name.setdefault(old.rpartition(".")[2], found)
        self.before_text, self.before_id, self.before_digest = (defaultdict(list) for _ in range(3))
        for j, d in enumerate(self.before):
            self.before_text[d.text].append(j)
            self.before_id[d.id].append(j)
            self.before_digest[d.cell.metadata.get("workbook") or digest(d.cell.source)].append(j)
        self.successor = self._successors()

    # -------- from a cell of the version before to a slot

    def _successors(self) -> list[int | None]:
        """For each cell of the version before its slot: of the same text, exercise or id, or of nearly its words."""
        found: list[int | None] = [None] * len(self.before)
        free = defaultdict(list, {text: list(at) for text, at in self.by_text.items()})
        for j, d in enumerate(self.before):
            at = self._by_identity(d)
            if at is not None and self.slots[at].text == d.text and at in free[d.text]:
                free[d.text].remove(at)
                found[j] = at
        for j, d in enumerate(self.before):
            if found[j] is None and (here := self._near(free[d.text], d.chapter)):
                found[j] = here[0]
                free[d.text].remove(here[0])
        taken = {at for at in found if at is not None}
        for j, d in enumerate(self.before):
            at = self._by_identity(d)
            if found[j] is None and at is not None and at not in taken:
                found[j] = at
        taken |= {at for at in found if at is not None}
        pairs = [
            (alike(d.words, slot.words), -i, -j)
            for j, d in enumerate(self.before)
            for i, slot in enumerate(self.slots)
            if found[j] is None and i not in taken and d.cell.cell_type == slot.cell.cell_type
        ]
        for score, i, j in sorted(pairs, reverse=True):  # the most alike first
            if score >= ALIKE and found[-j] is None and -i not in taken:
                found[-j] = -i
                taken.add(-i)
        return found

    def _by_identity(self, d: Delivered) -> int | None:
        if d.target:
            return next(iter(self.by_target.get(d.target, [])), None)
        return next(iter(self._by_cell_id(d.id)), None)

    def _by_cell_id(self, id: str) -> list[int]:
        """Slots of that id; "task-f", "about-f" and "check-f" follow a renamed f."""
        if id in self.by_id:
            return self.by_id[id]
        kind, _, name = id.partition("-")
        if kind in ("task", "about", "check"):
            return [i for at in self.by_name.get(name, []) for i in self.by_id.get(f"{kind}-{self.slots[at].name}", [])]
        return []

    def _near(self, at: list[int], *chapters: str) -> list[int]:
        """Those of the slots that stand in what became of the chapters; all where none does."""
        homes = {home for c in chapters for home in self.moved.chapter_homes(c)}
        return [i for i in at if self.slots[i].chapter in homes] or list(at)

    def _most_alike(self, words: Counter, at: list[int], cell_type: str | None = None) -> int | None:
        scores = [
            (alike(words, self.slots[i].words), -i) for i in at if cell_type in (None, self.slots[i].cell.cell_type)
        ]
        score, i = max(scores, default=(0, 0))
        return -i if score >= ALIKE else None

    # -------- one copy of the learner's

    def find_ours(self, name: str, notebook) -> list[Mine]:
        """The cells of one copy; which are as they were delivered is known."""
        cells = [Mine(c, canonical(c.source)) for c in notebook.cells]
        self._find_ours(cells, name)
        self._find_parts(cells)
        return cells

    def add(self, name: str, cells: list[Mine], held: set[int | None], taken: Counter) -> None:
        """Place every cell of one copy; untouched cells of any copy hold the slots `held`, texts in `taken` stand."""
        self._find_theirs(cells, name, held)
        self._choose(cells)
        self._place(cells, name, taken)

    def _find_ours(self, cells: list[Mine], name: str) -> None:
        """Mark what is as it was delivered, and give each its slot; further copies of a text are the learner's."""
        by_text = defaultdict(list)
        for k, m in enumerate(cells):
            stamp = m.cell.metadata.get("workbook")
            stamped = stamp in (digest(m.text), digest(m.cell.source.replace("\r\n", "\n")), digest(m.cell.source))
            if m.text in self.by_text or m.text in self.before_text or stamped or self._pattern(m.text):
                by_text[m.text].append(k)
        for text, at in by_text.items():
            slots = set(self._near(self.by_text.get(text, []), name))
            slots |= {self.successor[j] for j in self.before_text.get(text, [])} - {None}
            if not slots and text not in self.before_text:  # of an earlier version, which is not at hand
                slots |= {i for k in at for i in self._guess(cells[k], name)}
            most = max(len(self.by_text.get(text, [])), len(self.before_text.get(text, [])), 1)
            if text not in self.before_text:
                most = max(most, sum(digest(text) in cells[k].cell.get("id", "") for k in at))
            if ABOUT.fullmatch(text) and text not in self.by_text and text not in self.before_text:
                most = len(at)
            # Those with the id of a slot first, then what can mean one slot only.
            for k in at:
                ids = [i for i in self._ids(cells[k].cell) if i in slots]
                if ids and most:
                    cells[k].ours, cells[k].slot = True, ids[0]
                    slots.discard(ids[0])
                    most -= 1
            free = [k for k in at if not cells[k].ours]
            if len(slots) == len(free) == 1 and most:
                cells[free[0]].ours, cells[free[0]].slot = True, slots.pop()
                free = []
            by_text[text] = (free, slots, most)
        exercises = {k: s for k, m in enumerate(cells) if not m.ours and (s := self._exercise(m, name))}
        # Then those without a copy, in their order; of copies that which stands nearest to its slot.
        for free, slots, most in sorted(by_text.values(), key=lambda text: (len(text[0]) > text[2], text[0])):
            while free and most:
                around = {k: self._neighbours(cells, k, exercises) for k in (free if len(free) > most else free[:1])}
                fits = [(self._distance(i, around[k]), k, i) for k in around for i in slots]
                _, k, i = min(fits, default=(0, free[0], None))
                cells[k].ours, cells[k].slot = True, i
                free.remove(k)
                slots.discard(i)
                most -= 1

    def _pattern(self, text: str) -> bool:
        """Whether only we write such a text; asked where what was delivered is not known."""
        if self.before:
            return False
        check = CHECK.fullmatch(text)
        return bool(ABOUT.fullmatch(text) or check and check[1] in self.by_name)

    def _guess(self, m: Mine, name: str) -> list[int]:
        """The slot of a delivered text whose version is not at hand."""
        if check := CHECK.fullmatch(m.text):
            return self._near(self._by_cell_id(f"check-{check[1]}"), name)[:1]
        if at := self._exercise(m, name) or self._ids(m.cell):
            return at[:1]
        if ABOUT.fullmatch(m.text):
            return []
        best = self._most_alike(_words(m.text), self._near(range(len(self.slots)), name), m.cell.cell_type)
        return [] if best is None else [best]

    def _ids(self, cell) -> list[int]:
        """Slots that the cell's id says."""
        id = cell.get("id", "")
        found = [self.successor[j] for j in self.before_id.get(id, [])] or self._by_cell_id(id)
        return [i for i in found if i is not None]

    def _has_our_id(self, cell) -> bool:
        """Whether the id says that the cell is one of ours, of whatever version."""
        id = cell.get("id", "")
        return bool(OUR_ID.match(id)) or id in self.by_id or id in self.before_id or id in self.by_name

    def _exercise(self, m: Mine, name: str) -> list[int]:
        """The slots of the exercises that a cell says it is, by its metadata or the functions that it defines."""
        found = []
        if target := m.cell.metadata.get("exercise"):
            found += self._near(self.by_target.get(target, []), name)[:1]
        if "expect(" in m.text or any(n in m.text for n in self.by_name):
            for n in sorted(defined(m.cell.source)):
                found += self._near(self.by_name.get(n, []), name)[:1]
        return list(dict.fromkeys(found))

    def _neighbours(self, cells: list[Mine], k: int, exercises: dict[int, list[int]]) -> tuple[int | None, int | None]:
        """The slots known for the cells before and after the k-th."""

        def slot(i):
            return cells[i].slot if cells[i].slot is not None else next(iter(exercises.get(i, [])), None)

        back = next((s for i in range(k - 1, -1, -1) if (s := slot(i)) is not None), None)
        ahead = next((s for i in range(k + 1, len(cells)) if (s := slot(i)) is not None), None)
        return back, ahead

    def _distance(self, i: int, around: tuple[int | None, int | None]) -> int:
        """How far the slot is from standing right behind the first of those two, or right before the second."""
        back, ahead = around
        far = len(self.slots) + i
        return min(far if back is None else abs(i - back - 1), far if ahead is None else abs(ahead - 1 - i))

    def _find_theirs(self, cells: list[Mine], name: str, held: set[int | None]) -> None:
        """What each of theirs was made from: the slots that it claims, the most certain first."""
        home = {self.successor[j] for j, d in enumerate(self.before) if d.chapter == name}
        open_slots = [i for i in self._near(range(len(self.slots)), name) if i not in held]
        old = [(j, self.successor[j]) for j in range(len(self.before)) if self.successor[j] is not None]
        for k, m in enumerate(cells):
            if m.ours:
                continue
            claims = self._exercise(m, name)
            stamp = m.cell.metadata.get("workbook")
            stamped = {self.successor[j] for j in self.before_digest.get(stamp, [])} - {None}
            stamped = stamped or set(self._near(self.by_digest.get(stamp, []), name))
            if stamped and not claims:
                around = self._neighbours(cells, k, {})
                claims.append(min(sorted(stamped), key=lambda i, around=around: self._distance(i, around)))
            if not m.text:  # an emptied cell of ours comes back
                m.ours = m.dropped = self._has_our_id(m.cell) or any(key in m.cell.metadata for key in OURS)
                m.slot = next(iter(claims + self._ids(m.cell)), None) if m.ours else None
                continue
            claims += m.parts
            claims += self._contained(m, cells, k, claims, open_slots, old)
            claims += self._ids(m.cell)[:1]
            if not claims and (best := self._most_alike_of_all(m, old)) in open_slots:
                claims.append(best)
                m.alike = True
            # What another copy holds, and was never delivered in this one, was pasted from there.
            m.claims = [i for i in dict.fromkeys(claims) if not (i in held and home and i not in home)]

    def _fills(self, m: Mine, at: int) -> bool:
        """Whether nothing of ours is needed beside the cell: a changed text is, and an exercise that was renamed."""
        slot, target = self.slots[at], m.cell.metadata.get("exercise") or ""
        if asked := guessed(slot.cell.source):
            return asked <= guessed(m.cell.source)
        if not slot.target:
            return not m.alike and not self._changed(at, m)
        names = defined(m.cell.source)
        if slot.name in names or target.rpartition(".")[2] == slot.name:
            return True
        return at not in self.by_target.get(target, []) and not any(at in self.by_name.get(n, []) for n in names)

    def _find_parts(self, cells: list[Mine]) -> None:
        """What was split or merged and is else as delivered: ours where the new version has another text."""
        held = {m.slot for m in cells if m.ours}
        known = [(d.text, self.successor[j]) for j, d in enumerate(self.before)]
        known += [(slot.text, i) for i, slot in enumerate(self.slots)]
        texts = [(_squashed(text), i, i is None or self.slots[i].text != text) for text, i in known if text]
        texts = [(text, i, changed) for text, i, changed in texts if i not in held]
        for k, m in enumerate(cells):
            if m.ours or not m.text or m.parts:
                continue
            for whole, i, changed in texts:
                part, end = _squashed(m.text), k + 1
                while part != whole and whole.startswith(part + "\n") and end < len(cells) and not cells[end].ours:
                    part = f"{part}\n{_squashed(cells[end].text)}"
                    end += 1
                if part == whole:
                    for piece in cells[k:end]:
                        piece.ours, piece.slot, piece.parts = changed, i if changed else None, [i]
                    break
            rest, merged = _squashed(m.text), []
            while rest and not m.parts:
                found = next((t for t in texts if f"{rest}\n".startswith(f"{t[0]}\n")), None)
                if found is None:
                    break
                merged.append(found)
                rest = rest[len(found[0]) + 1 :]
            if not rest and any(changed for _, _, changed in merged):
                m.ours, m.slot = True, next((i for _, i, _ in merged if i is not None), None)

    def _contained(self, m, cells, k, claims, open_slots, old) -> list[int]:
        """Open slots whose text, of this version or the one before, stands within the cell."""
        texts = [(i, self.slots[i].text) for i in open_slots]
        texts += [(i, self.before[j].text) for j, i in old if i in set(open_slots)]
        found = [i for i, text in texts if text and _within(text, m.text)]
        # Of several slots with one text only the nearest is meant.
        at = claims[0] if claims else self._neighbours(cells, k, {})[0] or 0
        nearest: dict[str, int] = {}
        for i in sorted(set(found), key=lambda i: abs(i - at)):
            nearest.setdefault(self.slots[i].text, i)
        return sorted(nearest.values())

    def _most_alike_of_all(self, m: Mine, old) -> int | None:
        """The slot whose text, of this version or the one before, is nearly the cell's."""
        words = _words(m.text)
        scores = [(alike(words, slot.words), -i) for i, slot in enumerate(self.slots)]
        scores += [(alike(words, self.before[j].words), -i) for j, i in old]
        score, i = max(scores, default=(0, 0))
        gone = max((alike(words, d.words) for j, d in enumerate(self.before) if self.successor[j] is None), default=0)
        return -i if score >= EDITED and score >= gone else None

    @staticmethod
    def _copy(a: Mine, b: Mine) -> bool:
        """Whether one cell is a copy of the other, not a part of the same."""
        return bool(defined(a.cell.source) & defined(b.cell.source)) or alike(_words(a.text), _words(b.text)) >= EDITED

    def _origin(self, m: Mine, at: int) -> str | None:
        """The earlier exercise that a cell answers, where it is now that of the slot `at` under another name."""
        target = m.cell.metadata.get("exercise") or ""
        names = [n for n in defined(m.cell.source) if at in self.by_name.get(n, [])]
        if not names and at in self.by_target.get(target, []):
            names = [target.rpartition(".")[2]]
        return next((n for n in sorted(names) if n != self.slots[at].name), None)

    def _exercises(self, m: Mine) -> set[str]:
        """Names of the exercises that a cell is: by its metadata and its functions."""
        target = m.cell.metadata.get("exercise")
        return {n for n in defined(m.cell.source) if n in self.by_name} | (
            {target.rpartition(".")[2]} if target else set()
        )

    def _choose(self, cells: list[Mine]) -> None:
        """For each slot that theirs claim: which of them stands there, or whether the untouched one does."""
        claimants = defaultdict(list)
        for k, m in enumerate(cells):
            for i in m.claims:
                claimants[i].append(k)
        holders = {m.slot: k for k, m in enumerate(cells) if m.ours and not m.dropped and m.slot is not None}
        for i, at in claimants.items():

            def rank(k, i=i):
                m = cells[k]
                back, ahead = self._neighbours(cells, k, {})
                in_place = (back is None or back <= i) and (ahead is None or i <= ahead)
                by_id = i in self._ids(m.cell)
                return by_id, self.slots[i].name in defined(m.cell.source), in_place, m.claims[0] == i, -k

            best = max(at, key=rank)
            # Of several exercises that became one each answer goes there, of several answers to one the best.
            by_origin = defaultdict(list)
            for k in at:
                by_origin[self._origin(cells[k], i)].append(k)
            chosen = {best, *(max(ks, key=rank) for origin, ks in by_origin.items() if origin)}
            ours = cells[holders[i]] if i in holders else None
            # An answer under an earlier name stands already beside what is ours: an update before this one saw to it.
            answers = self._exercises(cells[best])
            settled = ours and ours.text == self.slots[i].text and self.slots[i].name not in answers
            # The other one of two exercises that became one gives way.
            if ours and (not self._exercises(ours) or self._exercises(ours) & answers or settled):
                strong = self.slots[i].target and i in self._exercise(cells[best], self.slots[i].chapter)
                by_id, by_name, in_place = rank(best)[:3]
                renamed = by_name and self.slots[i].name not in defined(ours.cell.source)
                if settled or not strong or not renamed and (i in self._ids(ours.cell) or not (by_id or in_place)):
                    for k in at:
                        cells[k].claims.remove(i)
                    continue
                if not renamed:  # a pasted copy of the delivered text, beside the answer
                    ours.ours, ours.slot = False, None
            for k in at:
                if k not in chosen:
                    cells[k].claims.remove(i)
            piece = best - 1  # the front part of a split cell goes with it
            while piece >= 0 and piece in at and not cells[piece].claims and not self._copy(cells[piece], cells[best]):
                cells[piece].slot = i
                piece -= 1
        for m in cells:
            if m.claims:
                fills = [i for i in m.claims if self._fills(m, i)]
                m.slot = min([i for i in fills if self.slots[i].target] or fills or m.claims)

    def _place(self, cells: list[Mine], name: str, taken: Counter) -> None:
        """Put each cell into the group of its slot, or of the slot whose cell it followed."""
        home = next((c for c in self.moved.chapter_homes(name) if c in self.top), self.chapters[0])
        fresh = Counter()
        for m in cells:
            for i in m.claims:
                here = self.slots[i].chapter == self.slots[m.slot].chapter  # a notebook needs all that is its own
                self.groups[i].filled |= here and self._fills(m, i)
        here: list | None = None
        for m in cells:
            if m.ours:
                if m.slot is not None:
                    group = self.groups[m.slot]
                    here = group.own
                    if not m.dropped and not (group.holder and group.holder.get("outputs")):
                        group.holder = m.cell
                continue
            if m.slot is not None:
                here = self.groups[m.slot].own
            fresh[m.cell.source] += 1
            if fresh[m.cell.source] <= taken[m.cell.source] and m.text:
                continue
            cell = nbformat.NotebookNode(m.cell)  # not deep: outputs may be large
            cell.metadata = copy.deepcopy(m.cell.metadata)
            self._stamp(cell, m)
            if m.slot is not None:
                self.groups[m.slot].answers.append((name, cell, bool(m.claims)))
            else:
                (self.top[home] if here is None else here).append(cell)
        if name in self.top:  # what stands in today's chapters is not brought there again from an old copy
            taken |= fresh

    def _stamp(self, cell, m: Mine) -> None:
        """Write into a cell of theirs which slot it stands for, and say where the task has changed."""
        old = {key: cell.metadata.pop(key, None) for key in OURS}
        if m.slot is None:
            target = old["exercise"]
            if target and not self.by_target.get(target):
                self.notes.append(f"{target}: no longer in the chapter; your cell is kept as one of your own.")
            return
        slot = self.slots[m.slot]
        what = slot.name or f"“{slot.text[:40].splitlines()[0]}…”"
        if not self.groups[m.slot].filled:
            change = "the exercise has a new name" if slot.target else "the text has changed"
            if m.claims and not m.alike:
                self.notes.append(f"{what}: {change}; the new cell stands above yours.")
            return
        cell.metadata["workbook"] = slot.cell.metadata.get("workbook") or digest(slot.cell.source)
        if slot.target:
            cell.metadata["exercise"] = slot.target
        if m.claims and slot.target and self._changed(m.slot, m):
            self.notes.append(f"{what}: the task has changed; your answer is kept, the new one is in chapters/.")

    def _changed(self, at: int, m: Mine) -> bool:
        """Whether the slot's text is another than the one that the cell was made from."""
        slot, stamp = self.slots[at], m.cell.metadata.get("workbook")
        if self.before:
            return slot.text not in {self.before[j].text for j, i in enumerate(self.successor) if i == at}
        if stamp:
            return stamp != slot.cell.metadata.get("workbook")
        return not slot.target and not m.parts and not _within(slot.text, m.text)

    # -------- all together

    def result(self, new, mine) -> dict[str, nbformat.NotebookNode]:
        ids: set[str] = set()
        made = {}
        for name, notebook in new.items():
            made[name] = copy.copy(notebook)
            old = mine.get(name)
            made[name].metadata = nbformat.from_dict({**(old.metadata if old else {}), **notebook.metadata})
            made[name].nbformat_minor = max(5, notebook.nbformat_minor)
            made[name].cells = [self._own(c, ids) for c in self.top[name]]
        order = {name: n for n, name in enumerate(mine)}
        folded = {i for d, i in zip(self.before, self.successor, strict=True) if _is_folded(d.cell)}
        for i, (slot, group) in enumerate(zip(self.slots, self.groups, strict=True)):
            cells = made[slot.chapter].cells
            answers = sorted(group.answers, key=lambda a: order[a[0]])
            if not group.filled:
                cells.append(_delivered(slot, group.holder, was_folded=i in folded))
            whole = [c for _, c, claims in answers if claims]
            best = next((c for c in reversed(whole) if slot.name in defined(c.source)), whole[-1] if whole else None)
            for _, cell, _ in answers:
                if cell is best and group.filled:
                    cell["id"] = slot.id
                    cells.append(cell)
                else:
                    cells.append(self._own(cell, ids))
            cells += [self._own(c, ids) for c in group.own]
        return made

    def _own(self, cell, ids: set[str]) -> nbformat.NotebookNode:
        """The cell with an id that no other has, nor one of ours."""
        id = cell.get("id", "")
        if id in ids or self._has_our_id(cell) or not re.fullmatch(r"[\w-]{1,64}", id, re.A):
            cell["id"] = uuid.uuid4().hex[:8]
        ids.add(cell["id"])
        return cell


def _is_folded(cell) -> bool:
    return bool(cell.metadata.get("jupyter", {}).get("source_hidden"))


def _delivered(slot: Delivered, holder, was_folded: bool) -> nbformat.NotebookNode:
    """The cell as delivered, with the pictures that a learner put into it and, where its text is the same, its outputs;
    what they opened is open."""
    cell = copy.deepcopy(slot.cell)
    if holder is not None and holder.get("attachments") and cell.cell_type == "markdown":
        cell["attachments"] = {**holder.attachments, **cell.get("attachments", {})}
    if holder is not None and canonical(holder.source) == slot.text:
        if was_folded and not _is_folded(holder):
            cell.metadata.pop("jupyter", None)
        cell.metadata = nbformat.from_dict({**holder.metadata, **cell.metadata})
        if cell.cell_type == holder.cell_type == "code":
            cell.outputs, cell.execution_count = holder.outputs, holder.execution_count
    return cell
