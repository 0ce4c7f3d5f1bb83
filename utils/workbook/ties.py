"""Numbers in a chapter's prose, tied to the cells that compute them.

Below a paragraph, or a cell whose title says a number, a note names where each number comes from:

    Without it the loss rises by 8.16 nats, half of what the model had won, and two of the three others cost nothing.

    <!-- measured
    8.16 = "loss rise without the previous-token head, nats: #"
    half = "loss rise without …: #" / "nats gained: #"
    two of the three = len("04: others … cost nothing: #") / 3
    -->

On the left stand the words as they are above; on the right arithmetic over quoted places in the recorded outputs of
this chapter, or of another one ("04: …"). In a place `#` is the number, `_` a number and `…` any text to pass over.
What a figure shows is written "title | trace | x: #", or "title | y | x: #". A place may name several numbers: each
has to fit, or `max`, `min`, `sum`, `mean`, `median`, `len` makes one of them, and `below(place, bound)` a share. One
without # holds the words themselves. A number of somebody else's is `published("Radford and others, 2019: 50257")`.
The second line with the same words ties their second place.

A number has to agree with its place to its last digit, a share in words ("half", "most", "a dozen") to lie in the
interval that the word means (`meaning`). No learner sees a note.
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import nbformat
import numpy as np

from utils.workbook import SOLUTIONS, SOURCE, WorkbookError, chapter_names
from utils.workbook.compare import PLOTLY, SKIPPED, _decoded, _Page, not_recorded
from utils.workbook.predictions import ANSWER, COUNTED

NOTE = re.compile(r"^<!-- (measured|ours)\n(.*?)^-->", re.M | re.S)
TIE = re.compile(r"(.+?) = (.+)")
HEAD = re.compile(r"\((\d), (\d{1,2})\)")  # what code prints as (1, 6), the text calls 1.6
CHAPTER = re.compile(r"(\d\d): ")
MOST_POINTS = 1_000  # of a figure's trace: larger ones are pictures, no numbers to quote
RECORDED = r"[-+−]?(?:\d{1,3}(?:[,_]\d{3})+|\d+|(?=\.\d))(?:\.\d*)?(?:e[-+]?\d+)?"

# ---------------------------------------------------------------- what was recorded


def recorded_lines(notebook) -> list[str]:
    """What a solved notebook printed and drew, a line each; without the closing tables, which repeat it."""
    lines = []
    for cell in notebook.cells:
        if cell.cell_type == "code" and not re.search(r"show\.findings\(|^guesses\(\)", cell.source, re.M):
            lines += [HEAD.sub(r"\1.\2", " ".join(line.split())) for line in _printed(cell)]
    return [line for line in lines if line]


def _printed(cell) -> Iterator[str]:
    for out in cell.outputs:
        if out["output_type"] == "stream":
            if out["name"] == "stdout":
                text = re.sub(r"\x1b\[\d+m", "", "".join(out["text"]))
                yield from ANSWER.sub(r"\1 | measured: \2", text).splitlines()
            continue
        data = out.get("data", {})
        if PLOTLY in data:
            title = _text(data[PLOTLY]["layout"].get("title"))
            if any(number not in cell.source for number in re.findall(r"[\d.,]*\d", title)):
                yield title  # it was made of what was measured
            yield from _drawn(data[PLOTLY], title)
        elif "text/html" in data and not not_recorded(data):
            yield from _rows("".join(data["text/html"]))
        elif not data.keys() & SKIPPED:
            yield from "".join(data.get("text/markdown", data.get("text/plain", ""))).splitlines()


def _rows(html: str) -> Iterator[str]:
    for row in re.split(r"</tr>|</p>|</div>|<br ?/?>", html):
        page = _Page()
        page.feed(row)
        yield " ".join(text.strip() for text in page.texts)


def _drawn(figure: dict, title: str) -> Iterator[str]:
    for trace in figure["data"]:
        x, y, z = (_list(trace.get(axis)) for axis in "xyz")
        name = f"{title} | {trace['name']}" if trace.get("name") else title
        if trace.get("type") == "heatmap" and z and len(z) * len(z[0]) <= MOST_POINTS:
            xs, ys = x or range(len(z[0])), y or range(len(z))
            for b, row in zip(ys, z, strict=True):
                yield from (f"{name} | {b} | {a}: {v:.6g}" for a, v in zip(xs, row, strict=True) if _is(v))
        elif y and len(y) <= MOST_POINTS and trace.get("type") != "heatmap":
            x = x or list(range(len(y)))
            labels, values = (y, x) if trace.get("orientation") == "h" else (x, y)
            pairs = zip(labels, values, strict=False)
            yield from (f"{name} | {_short(a)}: {v:.6g}" for a, v in pairs if _is(v))
    for note in figure["layout"].get("annotations", []):
        yield _text(note.get("text"))


def _is(value) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _short(value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _text(value) -> str:
    text = value.get("text", "") if isinstance(value, dict) else value or ""
    return re.sub(r"<[^>]+>", " ", str(text))


def _list(value) -> list:
    array = _decoded(value) if isinstance(value, dict) else None
    return array.tolist() if array is not None else value if isinstance(value, list) else []


@cache
def _place(text: str) -> re.Pattern:
    """The pattern of a place in a line."""
    special = {"#": rf"(?<![\w.])({RECORDED})(?!\w)(\s?%)?", "…": ".*?", "_": rf"(?<![\w.])(?:{RECORDED})%?"}
    parts = re.split(r"(#|…|(?<!\w)_(?!\w))", text)
    pattern = "".join(special[part] if part in special else re.escape(part) for part in parts)
    return re.compile((r"(?<!\w)" if text[:1].isalnum() else "") + pattern)


class Places:
    """The recorded outputs of the chapters, in which places are looked up."""

    def __init__(self, name: str, solutions: Path = SOLUTIONS, lines: dict[str, list[str]] | None = None):
        self.name, self.solutions = name, solutions
        self.lines = lines or {}  # number of the chapter → its lines

    def of(self, number: str) -> list[str]:
        if number not in self.lines:
            files = sorted(self.solutions.glob(f"{number}_*.ipynb"))
            if not files:
                raise WorkbookError(f"{self.name}: there is no chapter {number} whose outputs a note could name.")
            self.lines[number] = recorded_lines(nbformat.read(files[0], 4))
        return self.lines[number]

    def find(self, text: str) -> list[float]:
        """The numbers at a place.

        Raises:
            WorkbookError: it names no `#`, or nothing recorded reads so.
        """
        other = CHAPTER.match(text)
        lines, wanted = self.of(other[1] if other else self.name[:2]), text[other.end() :] if other else text
        if wanted.count("#") > 1:
            raise WorkbookError(f'the place "{text}" must have one #, where the number stands')
        wanted = " ".join(wanted.split())
        longest, place = max(re.split(r"#|…|(?<!\w)_(?!\w)", wanted), key=len), _place(wanted)
        hits = (m for line in lines if longest in line for m in place.finditer(line))
        if "#" in wanted:  # a title says nothing that its figure doesn't show
            hits = (m for m in hits if m.start(1) > m.string.find(" | ") or "| measured:" in m.string)
        found = [(_value(m[1]) / (100 if m[2] else 1)) if "#" in wanted else 1.0 for m in hits]
        if not found:
            raise WorkbookError(f'nothing recorded reads "{text}"')
        return found


def _value(text: str) -> float:
    return float(text.replace(",", "").replace("_", "").replace("−", "-"))


OPERATORS: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
FUNCTIONS: dict[str, Callable] = {
    "max": np.max,
    "min": np.min,
    "sum": np.sum,
    "mean": np.mean,
    "median": np.median,
    "len": np.size,
    "abs": np.abs,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "cos": lambda degrees: np.cos(np.radians(degrees)),
}


def evaluate(expression: str, places: Places) -> np.ndarray:
    """The numbers that the right side of a tie stands for.

    Raises:
        WorkbookError: it is no arithmetic over places and numbers, or a place is not found.
    """

    def of(node) -> np.ndarray:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return np.array(places.find(node.value))
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            return np.array([node.value], float)
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](of(node.left), of(node.right))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -of(node.operand)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "published":
            return np.array([_published(ast.literal_eval(node.args[0]))])
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "below" and len(node.args) == 2:
            values, bound = map(of, node.args)
            return np.array([(values <= bound).mean()])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS:
            return np.ravel(FUNCTIONS[node.func.id](np.concatenate([np.ravel(of(a)) for a in node.args])))
        raise WorkbookError(f"`{ast.unparse(node)}` is neither a quoted place nor arithmetic")

    try:
        return of(ast.parse(expression.strip(), mode="eval").body)
    except SyntaxError:
        raise WorkbookError(f"`{expression}` is no arithmetic over quoted places") from None
    except ValueError:
        raise WorkbookError(f"`{expression}`: its places name unequally many numbers") from None


def _published(text: str) -> float:
    """The number that a source gives for what nothing here measures: "Radford and others, 2019: 50257"."""
    found = re.fullmatch(rf".*\b(?:19|20)\d\d\b.*: ({RECORDED})", text)
    if not found:
        raise WorkbookError(f'a published number is given as "who, the year: the number", not "{text}"')
    return _value(found[1])


# ---------------------------------------------------------------- what a number or a word means

COUNT = {word: float(n) for word, n in COUNTED.items()} | {"a": 1.0, "an": 1.0, "no": 0.0, "fifteen": 15.0}
COUNT |= {word: 10.0 * n for n, word in enumerate("twenty thirty forty fifty sixty seventy eighty ninety".split(), 2)}
COUNT |= {"hundred": 100.0, "a hundred": 100.0, "thousand": 1000.0, "a thousand": 1000.0}
NTHS = "third quarter fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
PARTS = {"half": 2, "halve": 2} | {word: n for n, word in enumerate(NTHS, 3)}
PARTS |= {"twentieth": 20, "fiftieth": 50, "hundredth": 100, "thousandth": 1000, "tenthousandth": 10_000}
HOW_MANY = "|".join(sorted(COUNT, key=len, reverse=True))
SCALE = {"million": 1e6, "billion": 1e9, "thousand": 1e3}
SAID = re.compile(
    r"(?<![\w.#^])(?<!\w[-–])[+\-−]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:e[-−+]?\d+)?(?![\w²³⁸])(?!\.\d)(?!-\w)"
    r"(?:\s?(%)|\s(million|billion)\b)?"
)
NEAR = re.compile(r"\b(about|some|around|roughly|nearly|almost|≈)\s+(?:\w+\s+)?$", re.I)
LESS = re.compile(r"\b(at most|up to|less than|under|below|within|fewer than|no more than)\s+(?:\w+\s+)?$", re.I)
MORE = re.compile(r"\b(at least|more than|over|above)\s+(?:\w+\s+)?$", re.I)
FRACTION = re.compile(rf"\b(?:({HOW_MANY})[ -])?({'|'.join(PARTS)})(?:s|ves)?\b", re.I)
TIMES = re.compile(
    rf"\b(?:(twice|double|halves)|({HOW_MANY}|(?<![\d.,])[\d.,]*\d)[ -](?:times|fold)|(two|three|four|five|ten)fold)\b",
    re.I,
)
OF = re.compile(
    rf"(?<![\d.,])\b({HOW_MANY}|\d+) (?:\w+ )?(?:out )?(?:of|in) (?:(?:the|its|our|these|all) )?({HOW_MANY}|\d+)\b",
    re.I,
)
SLACK = 0.15  # how far off "a third" or "twice" may be, as a share of it


def meaning(words: str, before: str = "") -> tuple[float, float]:
    """The interval in which a number lies for which these words are true.

    Args:
        words: a number ("0.914", "1,870", "95 %") or a share in words ("a third", "two of the three", "most").
        before: what stands before it, for "about" and "at most".

    Raises:
        WorkbookError: the words say no number and no share.
    """
    lead = before + words[: len(words) - len(words.lstrip())]
    if number := SAID.search(words):
        lead += words[: number.start()]
        if not OF.search(words) and not TIMES.search(words):
            return _around(*_said(number), lead)
    low = words.casefold().replace("ten-thousandth", "tenthousandth")
    for pattern, known in WORDS:
        if pattern.search(low):
            return known
    if many := OF.search(low):
        n, m = (_count(many[k]) for k in (1, 2))
        off = 0.1 * n / m if " in " in many[0] else 1e-6  # "five in six" is a share, "239 of 507" was counted
        return _bounds(n / m, off, lead + low[: many.start()])
    if times := TIMES.search(low):
        n = {"twice": 2.0, "double": 2.0, "halves": 0.5}.get(times[1] or "") or _count(times[2] or times[3])
        return _bounds(n, SLACK * n, lead + low[: times.start()])
    if len(parts := list(FRACTION.finditer(low))) > 1:  # from a third to a fifth
        sizes = [_fraction(p) for p in parts]
        return min(sizes) * (1 - SLACK), max(sizes) * (1 + SLACK)
    if parts:
        share = _fraction(parts[0])
        return _bounds(share, SLACK * share, lead + low[: parts[0].start()])
    if low.strip() in COUNT:
        return _bounds(COUNT[low.strip()], 1e-6, lead)
    raise WorkbookError(f"“{words}” says no number and no share that could be measured")


WORDS = [
    (re.compile(p), known)
    for p, known in {
        r"\bcouple of dozen": (20.0, 28.0),
        r"\bdozen": (10.0, 14.0),
        r"\b(nearly|almost|practically|virtually) the same": (0.9, 1.1),
        r"\b(nearly|almost|practically|virtually) (all|every|always|the whole|ever)": (0.9, 1.0),
        r"\ball but exact": (0.98, 1.02),
        r"\bhal(?:ves|ved|ving)\b": (0.5 * (1 - SLACK), 0.5 * (1 + SLACK)),
        r"\b(hardly|nearly|almost|practically|virtually) (any|ever|none|no|nothing|never|a)\b": (-0.1, 0.1),
        r"\bnext to n": (-0.1, 0.1),
        r"\b(nothing|nobody|none|no others?|never)\b": (-0.02, 0.02),
        r"\bevery\b|\ball\b": (0.98, 1.02),
        r"more than the whole": (1.0, math.inf),
        r"\bby far\b": (1.5, math.inf),
        r"(?<!at )\b(most|mostly|majority)\b": (0.5, 1.0),
    }.items()
]


def _count(text: str) -> float:
    text = text.casefold()
    return COUNT[text] if text in COUNT else float(text.replace(",", ""))


def _fraction(match: re.Match) -> float:
    return (COUNT[match[1].casefold()] if match[1] else 1.0) / PARTS[match[2].casefold()]


def _said(match: re.Match) -> tuple[float, float]:
    """(value, unit of the last place) of a number in the text."""
    text = re.sub(r"[ ,%]|million|billion", "", match[0]).replace("−", "-").lower()
    mantissa, _, exponent = text.partition("e")
    scale = 10.0 ** int(exponent or 0) * (0.01 if match[1] else 1) * SCALE.get(match[2] or "", 1)
    return float(mantissa) * scale, 10.0 ** -len(mantissa.partition(".")[2]) * scale


def _around(value: float, unit: float, before: str) -> tuple[float, float]:
    near = max(unit / 2, 0.05 * abs(value)) if NEAR.search(before) else unit / 2
    return _bounds(value, near * (1 + 1e-6) + 1e-12, before)


def _bounds(value: float, off: float, before: str) -> tuple[float, float]:
    if MORE.search(before):
        return value, math.inf
    if LESS.search(before):
        return -math.inf, value * (1 + 1e-9)
    if re.search(r"\b(nearly|almost)\s+$", before):
        return value - 1.5 * off, value * (1 + 1e-9)
    return value - off, value + off


# ---------------------------------------------------------------- the notes of a source


@dataclass
class Note:
    """One note of a source: what it stands below, and its lines."""

    kind: str  # "measured" or "ours"
    above: str  # the text, or the cell's code, that its phrases stand in
    start: int  # where that begins in the source
    at: int  # where the note itself begins
    lines: list[str] = field(default_factory=list)


STRING = re.compile(r'"[^"\n]*"|\'[^\'\n]*\'')
SCOPE = re.compile(r"^<!-- .*?^-->|^```.*?^```[ \t]*$|^#{1,4} .*?$", re.M | re.S)


def notes(source: str) -> list[Note]:
    """The notes of a source; a note stands for what is above it, as far as the last heading, cell or note.

    Where a cell is right above it, it stands for the cell's titles.
    """
    found: list[Note] = []
    for note in NOTE.finditer(source):
        last = None
        for mark in SCOPE.finditer(source, 0, note.start()):
            last = mark
        start = last.end() if last else 0
        above = source[start : note.start()]
        if last and last[0].startswith("```") and not above.strip():
            start = last.start()
            above = _strings_only(source[start : note.start()])
        elif last and found and last.start() == found[-1].at and not above.strip():  # a second note below the same
            start, above = found[-1].start, found[-1].above
        lines = [line.strip() for line in note[2].splitlines() if line.strip()]
        found.append(Note(note[1], above, start, note.start(), lines))
    return found


def _strings_only(code: str) -> str:
    """The code as long as it is, with everything blanked but its strings, of which titles are made."""
    kept = {k for m in STRING.finditer(code) for k in range(*m.span())}
    return "".join(c if k in kept else " " for k, c in enumerate(code))


def flat(text: str) -> str:
    """The text with each run of blanks, a line's end included, as one blank; as long as before."""
    return re.sub(r"\s", " ", text)


def marks(note: Note) -> Iterator[tuple[str, str, tuple[int, int] | None]]:
    """(words, where they come from, where they stand in the source) of a note's lines.

    The second line with the same words is about the second time that they stand there.
    """
    seen: dict[str, int] = {}
    for line in note.lines:
        tie = TIE.fullmatch(line) if note.kind == "measured" else None
        words, source = (tie[1], tie[2]) if tie else (line, "")
        k = seen[words] = seen.get(words, -1) + 1
        edges = [r"(?<![\w.])" if words[:1].isalnum() else "", r"(?![\w%]|\.\d)" if words[-1:].isalnum() else ""]
        pattern = re.compile(edges[0] + re.escape(words) + edges[1])
        places = [(note.start + m.start(), note.start + m.end()) for m in pattern.finditer(flat(note.above))]
        yield words, source, places[k] if k < len(places) else None


def stale(source: str, places: Places) -> list[str]:
    """What of a source's notes isn't as recorded, a sentence each; empty where all is well."""
    said = []
    for note in notes(source):
        for words, expression, at in marks(note):
            if note.kind == "measured" and not expression:
                said.append(f"a note's line “{words}” is not of the form `words = where they come from`.")
            elif not at:
                said.append(f"a note names “{words}”, which doesn't stand above it (so often).")
            elif expression and (problem := _misfit(source, words, expression, at, places)):
                said.append(f"“{sentence_at(source, *at)}”: {problem}.")
    return said


def ours(wanted: str | None = None) -> list[str]:
    """What holds for the course's own models only: every sentence, title or prediction that a note names."""
    said = []
    for name in chapter_names(wanted):
        source = (SOURCE / f"{name}.md").read_text(encoding="utf-8")
        for note in notes(source):
            places = sorted({at for _, _, at in marks(note) if at})
            sentences = dict.fromkeys((source.count("\n", 0, a) + 1, sentence_at(source, a, b)) for a, b in places)
            said += [f"{name}.md:{line}: {sentence}" for line, sentence in sentences]
    return said


def ours_only(source: str) -> list[str]:
    """The sentences, titles and predictions of a source that hold for the course's own models only, numbers aside."""
    said = []
    for note in notes(source):
        in_cell = source.startswith("```", note.start)
        for words, _, at in marks(note) if note.kind == "ours" else ():
            said += (
                [words if in_cell else sentence_at(source, *at).removeprefix("**What you should see.** ")] if at else []
            )
    return list(dict.fromkeys(said))


def _misfit(source: str, words: str, expression: str, at: tuple[int, int], places: Places) -> str:
    try:
        if (plain := re.fullmatch(r'"([^"#]+)"', expression)) and words.casefold() in plain[1].casefold():
            places.find(plain[1])
            return ""
        got = evaluate(expression, places)
        low, high = meaning(words, flat(source[max(0, at[0] - 30) : at[0]]))
    except WorkbookError as error:
        return f"{words} can't be looked up: {error}"
    slack = 2e-4 * np.abs(got)  # what is recorded was rounded, too
    if ((got >= low - slack) & (got <= high + slack)).all():
        return ""
    return f"{words} is {', '.join(f'{v:.5g}' for v in got[:4])} now, by {expression}"


def sentence_at(source: str, start: int, end: int, limit: int = 160) -> str:
    """The sentence around a place in the source."""
    before = max(source.rfind(mark, 0, start) + len(mark) for mark in (". ", "? ", "\n\n", ": "))
    after = min((k for k in (source.find(m, end) for m in (". ", ".\n", "? ", "\n\n")) if k >= 0), default=end)
    text = flat(source[before : after + 1]).strip()
    return text if len(text) <= limit else text[: limit - 1] + "…"
