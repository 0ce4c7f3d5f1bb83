"""Compare a notebook's new outputs with the recorded ones, and say where they differ.

Text must agree exactly outside of numbers, whole numbers exactly. A float may be off by a relative and an absolute
tolerance and, where it was printed, by one unit of its last place. That unit counts only where it is at most 2 % of
the number: what is printed more coarsely is a label (head 1.6) or a constant of the author, or `coarse_numbers` lists
its cell. A float printed without a point ("1" for 0.99996) is known by the float on the other side. A Plotly figure is
compared as data: its strings like printed text, its arrays numerically. Not compared: stderr and progress bars,
widgets, object addresses, device names, on which side of its point a label stands, views that are drawn by a script,
measured times and memory, and pictures (they differ by a library's version).
"""

import ast
import base64
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import NamedTuple

import numpy as np

RTOL, ATOL = 1e-3, 1e-5
COARSE = 0.02  # the largest share of a printed number that one unit of its last place may be
LIVE_VIEW = "A live view: run this cell to see it."  # what `show.live` leaves in a recorded notebook
MEASURED = "(measured: run this cell to see it)"  # what `show.measured` leaves, after its label
PLOTLY = "application/vnd.plotly.v1+json"
SKIPPED = {"application/vnd.jupyter.widget-view+json", "image/png", "image/jpeg"}
NUMBER = re.compile(
    r"(?<![\w.])[-+−]?(?:"
    r"\d+\.(?=[,\])]|\s+[-\d\]])"  # arrays print 2.0 as "2."; a sentence may end in "12."
    r"|(?:(?:\d{1,3}(?:[,_]\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?"
    r"|nan|inf)(?![\w.]*\w)(?:(?=(\s?%)))?",
    re.I,
)
ADDRESS = re.compile(r"0x[0-9a-f]{6,}", re.I)
DEVICE = re.compile(r",? ?device='[\w:]+'|device\(type='\w+'(?:, index=\d+)?\)")
WRAPPED = re.compile(r"(?<=[,\]\d.])\n +(?=[-−\d.\[]|nan|inf)")  # where a printed array goes on in the next line
COLOUR = re.compile(r"rgba?\([^)]*\)")


class Tolerance(NamedTuple):
    """How far a number may be off: floats by a share and an amount, whole numbers by an amount.

    `moved`: this share of a figure's array of floats may be off by any amount.
    `coarse`: also a float printed with few digits may be one unit of its last place off.
    """

    rtol: float = RTOL
    atol: float = ATOL
    counts: int = 0
    moved: float = 0.0
    coarse: bool = False


class Number(NamedTuple):
    """A printed number: its value, the unit of its last place (None where zeros were cut off), whether it is whole."""

    value: float
    unit: float | None
    whole: bool


def differences(
    got: list[dict],
    want: list[dict],
    rtol: float = RTOL,
    atol: float = ATOL,
    counts: int = 0,
    moved: float = 0.0,
    coarse: str = "",
) -> list[str]:
    """Sentences that name what differs between two lists of cell outputs; empty where they agree.

    Args:
        got, want: the outputs of one cell, new and recorded.
        rtol, atol: how far a float may be off, as a share of the recorded one and as an amount.
        counts: how far a whole number may be off.
        moved: which share of each float array of a figure may differ by more than that: dots that change places.
        coarse: why it doesn't matter that floats are printed with few digits; one unit of their last place is allowed.
    """
    tolerance = Tolerance(rtol, atol, counts, moved, bool(coarse))
    got, want = list(_shown(got)), list(_shown(want))
    said = []
    for i, ((kind, new), (kind_before, before)) in enumerate(zip(got, want, strict=False)):
        where = f"output {i} ({kind})"
        if kind != kind_before:
            return [*said, f"output {i} is now {kind}, recorded {kind_before}"]
        said += [f"{where}{path}: {s}" for path, s in _values(new, before, "", tolerance)]
    for kind, value in got[len(want) :]:
        said.append(f"a new output that is not recorded ({kind}): {_clip(value)}")
    for kind, value in want[len(got) :]:
        said.append(f"a recorded output is missing ({kind}): {_clip(value)}")
    return said


def number_pairs(got: list[dict], want: list[dict]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(where, new, recorded) of the numbers that stand at one place in both; a figure's array is one of them.

    Whole numbers come as integers, where both are whole.
    """
    for i, ((kind, new), (kind_before, before)) in enumerate(zip(_shown(got), _shown(want), strict=False)):
        if kind == kind_before:
            yield from _pairs(new, before, f"output {i} ({kind})")


def _pairs(got, want, path: str):
    new, before = (np.asarray(v) if type(v) in (int, float) else _decoded(v) for v in (got, want))
    if new is not None and before is not None:
        if new.shape == before.shape:
            whole = new.dtype.kind in "iu" and before.dtype.kind in "iu"
            yield path, *(v.astype(int if whole else float) for v in (new, before))
    elif isinstance(got, str) and isinstance(want, str):
        for i, (new, before) in enumerate(zip(_lines(got), _lines(want), strict=False)):
            if _words(new) == _words(before):
                for j, (x, y) in enumerate(zip(_numbers(new), _numbers(before), strict=True)):
                    values = (int(n.value) if x.whole and y.whole else n.value for n in (x, y))
                    yield f"{path} line {i + 1}, number {j + 1}", *map(np.asarray, values)
    elif isinstance(got, dict) and isinstance(want, dict):
        for key in sorted(got.keys() & want.keys()):
            yield from _pairs(got[key], want[key], f"{path}.{key}")
    elif isinstance(got, list) and isinstance(want, list):
        for i, (g, w) in enumerate(zip(got, want, strict=False)):
            yield from _pairs(g, w, f"{path}[{i}]")


def not_recorded(data: dict) -> bool:
    """Whether this output shows its HTML only to who runs the cell: a live view, or what was measured."""
    return "".join(data.get("text/plain", "")).endswith((LIVE_VIEW, MEASURED))


def _shown(outputs: list[dict]) -> Iterator[tuple[str, object]]:
    """(kind, value) of everything that is compared; neighbouring prints are one text."""
    text = ""
    for out in outputs:
        if out["output_type"] == "stream":
            if out["name"] == "stdout":
                text += "".join(out["text"])
            continue
        if out["output_type"] == "error":
            text += f"{out['ename']}: {out['evalue']}\n"
            continue
        data = {k: v for k, v in out["data"].items() if k not in SKIPPED}
        if len(data) < len(out["data"]) or not data or not_recorded(data):
            continue  # a widget or picture; its text form names only an address
        if text:
            yield "printed text", text
            text = ""
        if PLOTLY in data:
            figure = data[PLOTLY]
            yield "figure", {k: figure[k] for k in ("data", "layout", "frames") if k in figure}
        elif "text/html" in data:
            html = "".join(data["text/html"])
            if "<script" not in html:
                yield "HTML", html
        else:
            kind = next((k for k in ("text/markdown", "text/latex", "text/plain") if k in data), min(data))
            value = data[kind]
            yield kind, "".join(value) if isinstance(value, list) else value
    if text:
        yield "printed text", text


def _values(got, want, path: str, tolerance: Tolerance) -> Iterator[tuple[str, str]]:
    if _is_array(want) or _is_array(got):
        yield from _arrays(got, want, path, tolerance)
    elif isinstance(got, str) and isinstance(want, str):
        yield from _texts(got, want, path, tolerance)
    elif isinstance(got, dict) and isinstance(want, dict):
        for key in sorted(got.keys() | want.keys()):
            if key not in got or key not in want:
                yield f"{path}.{key}", f"{_clip(got.get(key))}, recorded {_clip(want.get(key))}"
            elif key != "textposition":  # a label above or below its arrow's end, by a sign that rounding can turn
                yield from _values(got[key], want[key], f"{path}.{key}", tolerance)
    elif isinstance(got, list) and isinstance(want, list):
        if len(got) != len(want):
            yield path, f"{len(got)} items, recorded {len(want)}"
            return
        for i, (g, w) in enumerate(zip(got, want, strict=True)):
            yield from _values(g, w, f"{path}[{i}]", tolerance)
    elif {type(got), type(want)} <= {int, float}:
        whole = type(got) is type(want) is int
        if path.startswith(".layout"):
            tolerance = tolerance._replace(counts=0)  # sizes and places, no counts
        if not _close(got, want, whole, tolerance):
            yield path, f"{_clip(got)}, recorded {_clip(want)}"
    elif got != want:
        yield path, f"{_clip(got)}, recorded {_clip(want)}"


def _close(got, want, whole: bool, tolerance: Tolerance, unit: float = 0.0):
    if whole:
        return np.abs(np.subtract(got, want, dtype=float)) <= tolerance.counts
    # A millionth more: the difference of two decimals is itself rounded.
    return np.isclose(got, want, rtol=tolerance.rtol, atol=tolerance.atol + unit * (1 + 1e-6), equal_nan=True)


def _is_array(value) -> bool:
    return isinstance(value, dict) and "bdata" in value


def _decoded(value) -> np.ndarray | None:
    if _is_array(value):
        flat = np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"])
        shape = value.get("shape")
        return flat.reshape([int(n) for n in str(shape).split(",")]) if shape else flat
    try:
        array = np.array(value) if isinstance(value, list) else None
    except ValueError:
        return None
    return array if array is not None and array.dtype.kind in "iuf" else None


def _arrays(got, want, path: str, tolerance: Tolerance):
    new, before = _decoded(got), _decoded(want)
    if new is None or before is None:
        yield path, f"{_clip(got)}, recorded {_clip(want)}"
    elif new.shape != before.shape:
        yield path, f"shape {list(new.shape)}, recorded {list(before.shape)}"
    else:
        whole = new.dtype.kind in "iu" and before.dtype.kind in "iu"
        same = _close(new, before, whole, tolerance)
        if (~same).sum() > (0 if whole else tolerance.moved) * same.size:
            first = tuple(np.argwhere(~same)[0].tolist())
            count = f"{int((~same).sum())} of {same.size} values differ, first "
            yield f"{path}{list(first)}", f"{count}{new[first]:.6g}, recorded {before[first]:.6g}"


# ---------------------------------------------------------------- printed numbers


def _texts(got: str, want: str, path: str, tolerance: Tolerance):
    got, want = _lines(got), _lines(want)
    for i, (new, before) in enumerate(zip(got, want, strict=False)):
        x, y = _numbers(new), _numbers(before)
        if _words(new) != _words(before) or len(x) != len(y):
            yield path, f"line {i + 1} is {_clip(new)}, recorded {_clip(before)}"
            return
        if not all(map(_agree, x, y, [tolerance] * len(x))):
            yield path, f"line {i + 1} has a number beyond the tolerance: {_clip(new)}, recorded {_clip(before)}"
            return
    if len(got) != len(want):
        yield path, f"{len(got)} lines, recorded {len(want)}"


def _lines(text: str) -> list[str]:
    return WRAPPED.sub(" ", DEVICE.sub("", ADDRESS.sub("0x…", text))).splitlines()


def _words(line: str) -> str:
    # The blanks before a number depend on its width and sign.
    return " ".join(re.sub(r"\s*\0", "\0", NUMBER.sub("\0", line)).split())


def _numbers(line: str) -> list[Number]:
    return [_number(match) for match in NUMBER.finditer(line)]


def _number(match: re.Match) -> Number:
    text = match[0].replace(",", "").replace("_", "").replace("−", "-").lower()
    value = float(text)
    if text.endswith("."):
        return Number(value, None, False)
    if not np.isfinite(value):
        return Number(value, 0.0, False)
    mantissa, _, exponent = text.partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return Number(value, unit, text.lstrip("-+").isdigit() and not match[1])  # "12 %" is a rounded share


def _agree(new: Number, before: Number, tolerance: Tolerance) -> bool:
    # Where one side is printed more finely, zeros were cut off the other: `.3g` prints 0.5 for 0.5003.
    unit = min((n.unit for n in (new, before) if n.unit is not None), default=0.0)
    if unit >= 1 and None in (new.unit, before.unit):
        unit = 0.0
    if not tolerance.coarse and _is_coarse(new, unit) and _is_coarse(before, unit):
        unit = 0.0
    return bool(_close(new.value, before.value, new.whole and before.whole, tolerance, unit))


def _is_coarse(number: Number, unit: float) -> bool:
    if number.value == 0:
        return unit > 0.01 * (1 + 1e-6)  # "0.00" says enough of what is nothing, "0.0" may be a head's name
    return unit > COARSE * abs(number.value) * (1 + 1e-6)


# ---------------------------------------------------------------- numbers printed too coarsely


def coarse_numbers(notebook) -> list[str]:
    """Cells that print a measured number so coarsely that one unit of its last place is over 2 % of it.

    A sentence for each cell. Left out are zeros, whole numbers, what lies within the cell's own tolerance, constants
    of the author (the number stands in the cell's code, or in a statement that defines a name used there), heads'
    names ("1.6"), cells that state a reason (`coarse="…"` in the fence), and the closing tables, which repeat others.
    """
    said, defined = [], {}
    for cell in notebook.cells:
        if cell.cell_type != "code" or (code := _parsed(cell.source)) is None:
            continue
        facts = _facts(code, defined)
        for statement in code.body:
            defined |= dict.fromkeys(_defines(statement), _facts(statement, defined))
        own = cell.metadata.get("tolerance", {})
        if own.get("coarse") or re.search(r"show\.findings\(|^guesses\(\)", cell.source, re.M):
            continue
        share, amount = max(COARSE, own.get("rtol", RTOL)), own.get("atol", ATOL)
        found = []
        for match in (m for text in _read_texts(cell.outputs) for m in NUMBER.finditer(text)):
            value, unit, whole = _number(match)
            constant = abs(value) in facts.literals or (match[1] and round(abs(value) / 100, 9) in facts.literals)
            head = facts.names_heads and re.fullmatch(r"\d\.1?\d", match[0])
            coarse = unit and value and unit > max(share * abs(value), amount) * (1 + 1e-6)
            if coarse and not (whole or constant or head):
                found.append(match[0] + (match[1] or ""))
        if found:
            said.append(f"the cell {cell.id} prints too few digits of {_list(found)}")
    return said


def _list(found: list[str], limit: int = 8) -> str:
    different = list(dict.fromkeys(found))
    rest = len(different) - limit
    return ", ".join(different[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _read_texts(outputs: list[dict]) -> Iterator[str]:
    """What a reader reads in the outputs: no arrays, no colours, no places on a page."""
    for kind, value in _shown(outputs):
        if kind == "HTML":
            page = _Page()
            page.feed(value)
            yield from page.texts
        elif kind == "figure":
            yield from _strings(value)
        elif isinstance(value, str):
            yield value


class _Page(HTMLParser):
    """The texts and tooltips of some HTML."""

    def __init__(self):
        super().__init__()
        self.texts = []

    def handle_starttag(self, tag, attrs):
        self.texts += [value for name, value in attrs if name == "title" and value]

    def handle_data(self, data):
        self.texts.append(data)


def _strings(value) -> Iterator[str]:
    if isinstance(value, str):
        yield COLOUR.sub("", value)
    elif isinstance(value, dict):
        for key, part in value.items():
            if key not in ("bdata", "template", "path"):
                yield from _strings(part)
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


class _Facts(NamedTuple):
    """Of some code: the numbers that stand in it and in what defines its names; whether heads' names are made."""

    literals: set[float]
    own_literals: set[float]
    names_heads: bool


def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except SyntaxError:  # a line magic
        return None


def _facts(code: ast.AST, defined: dict[str, _Facts]) -> _Facts:
    nodes = list(ast.walk(code))
    used = [defined[n.id] for n in nodes if isinstance(n, ast.Name) and n.id in defined]
    constants = [n.value for n in nodes if isinstance(n, ast.Constant)]
    own = {abs(float(c)) for c in constants if type(c) in (int, float)}
    own.update(abs(n.value) for c in constants if isinstance(c, str) for n in _numbers(c))
    heads = any(isinstance(n, ast.JoinedStr) and "}.{" in ast.unparse(n) for n in nodes)
    # Numbers reach one definition far, heads' names any number.
    return _Facts(own.union(*(f.own_literals for f in used)), own, heads or any(f.names_heads for f in used))


def _defines(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return [statement.name]
    assigned = isinstance(statement, ast.Assign | ast.AnnAssign)
    return [n.id for n in ast.walk(statement) if assigned and isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]


def _clip(value, limit: int = 100) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
