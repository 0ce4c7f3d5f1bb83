"""Recorded outputs of all chapters, changed by rule: every false one is noticed, every harmless one is let pass.

The changes are drawn from the solved notebooks with a seed, so that they follow each new recording.
"""

import base64
import copy
import itertools
import math
import random
import re
from collections import defaultdict
from typing import NamedTuple

import numpy as np
import pytest

from utils.workbook import SOLUTIONS, chapter_names
from utils.workbook.build import read_notebook
from utils.workbook.compare import ATOL, LIVE_VIEW, MEASURED, PLOTLY, RTOL, differences

PLAIN = {"rtol": RTOL, "atol": ATOL, "counts": 0, "coarse": ""}
EACH = 4  # changes of each kind
FLOAT = re.compile(r"(?<![\w.,+−-])([-−]?)(\d+)\.(\d+)(?![\w.,%]| ?%)")
COUNT = re.compile(r"(?<![\w.,:/+−-])\d+(?![\w.,:/%]| ?%)")
LARGE = re.compile(r"(?<![\w.,:/+−-])(?:[1-9]\d{0,2}(?:,\d{3})+|[2-9]\d{3}|\d{5,})(?![\w.,:/%]| ?%)")
WORD = re.compile(r"(?<![\w&;#\\<=\"-])[a-z]{4,}(?![\w=;:(\"-])")


class Cell(NamedTuple):
    """The recorded outputs of a cell, and its tolerance."""

    chapter: str
    id: str
    outputs: list
    tolerance: dict

    def notices(self, changed: list) -> bool:
        return bool(differences(changed, self.outputs, **self.tolerance))


def recorded() -> list[Cell]:
    cells = []
    for name in chapter_names():
        for cell in read_notebook(SOLUTIONS / f"{name}.ipynb").cells:
            if cell.get("outputs"):
                own = {k: v for k, v in cell.metadata.get("tolerance", {}).items() if k != "why"}
                cells.append(Cell(name, cell.id, cell.outputs, PLAIN | own))
    return cells


# ---------------------------------------------------------------- places in outputs


def places(outputs, *kinds):
    """(holder, key) of each text of these kinds: "print", "table", "HTML"."""
    found = []
    for out in outputs:
        data = out.get("data", {})
        if "print" in kinds and out.output_type == "stream":
            found.append((out, "text"))
        if "table" in kinds and "text/markdown" in data:
            found.append((data, "text/markdown"))
        if "HTML" in kinds and "text/html" in data:
            found.append((data, "text/html"))
    return found


def figures(outputs):
    return [out.data[PLOTLY] for out in outputs if PLOTLY in out.get("data", {})]


def at(content, path):
    for key in path:
        content = content.get(key, {}) if isinstance(content, dict) else {}
    return content


def arrays(outputs, kinds):
    """(trace, key, values) of each typed array of these dtype kinds in the outputs' figures."""
    for figure in figures(outputs):
        for trace in figure["data"]:
            for key, value in trace.items():
                if isinstance(value, dict) and "bdata" in value and np.dtype(value["dtype"]).kind in kinds:
                    yield trace, key, np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"]).copy()


def put(trace, key, values, dtype=None):
    values = values.astype(dtype or values.dtype)
    trace[key] |= {"bdata": base64.b64encode(values.tobytes()).decode(), "dtype": values.dtype.str.lstrip("<|")}


def span(number: float, tolerance: dict, unit: float = 0.0) -> float:
    """How far such a number may be off."""
    return tolerance["rtol"] * abs(number) + tolerance["atol"] + unit


def write(match: re.Match, value: float) -> str:
    return f"{value:.{len(match[3])}f}"


def replaced(text: str, match: re.Match, new: str) -> str:
    return text[: match.start()] + new + text[match.end() :]


def in_text(kinds, pattern, change):
    """A kind of change: one match of `pattern` in a text of these kinds, drawn, becomes `change(match, …)`."""

    def apply(outputs, tolerance, draw):
        found = [
            (*place, m) for place in places(outputs, *kinds) for m in pattern.finditer("".join(place[0][place[1]]))
        ]
        draw.shuffle(found)
        for holder, key, match in found:
            if (new := change(match, tolerance)) not in (None, match[0]):
                holder[key] = replaced("".join(holder[key]), match, new)
                return True
        return False

    return apply


def in_array(kinds, change):
    """A kind of change: the values of one array, drawn, become `change(values, …)`; None leaves them."""

    def apply(outputs, tolerance, draw):
        found = list(arrays(outputs, kinds))
        draw.shuffle(found)
        for trace, key, values in found:
            if (new := change(values, tolerance, draw)) is not None:
                put(trace, key, new)
                return True
        return False

    return apply


def in_figure(change):
    """A kind of change: one figure, drawn, is given to `change`, which says whether it applies."""

    def apply(outputs, tolerance, draw):
        found = figures(outputs)
        draw.shuffle(found)
        return any(change(figure, draw) for figure in found)

    return apply


def in_traces(change):
    """The same for a figure that has traces; some hold only shapes."""
    return in_figure(lambda figure, draw: bool(figure["data"]) and change(figure, draw))


# ---------------------------------------------------------------- what must be noticed


def another_digit(match, tolerance):
    """The nearest number beyond the tolerance."""
    value, unit = float(match[0].replace("−", "-")), 10.0 ** -len(match[3])
    units = math.floor(span(value, tolerance, unit) / unit + 1e-3) + 1
    return write(match, value + units * unit * (1 if value >= 0 else -1)) if value else None


def unit_of_few_digits(match, tolerance):
    """A label such as a head's 1.6, or a number with too few digits: one unit is another one."""
    value, unit = float(match[0].replace("−", "-")), 10.0 ** -len(match[3])
    known = tolerance["coarse"] or not 0.021 * abs(value) < unit or unit <= 2 * span(value, tolerance)
    return None if known or not value else write(match, value + (unit if value > 0 else -unit))


def last_digit_of_large_count(match, tolerance):
    new = int(match[0].replace(",", "")) + 1 + tolerance["counts"]
    return f"{new:,}" if "," in match[0] else str(new)


def another_sign(match, tolerance):
    value = float(match[0].replace("−", "-"))
    return write(match, -value) if abs(value) > span(value, tolerance, 10.0 ** -len(match[3])) else None


def point_moved(match, tolerance):
    value = float(match[0].replace("−", "-"))
    return write(match, 10 * value) if 9 * abs(value) > span(value, tolerance, 10.0 ** -len(match[3])) else None


def another_count(match, tolerance):
    return str(int(match[0]) + 1 + tolerance["counts"])


def another_letter(match, tolerance):
    return match[0][:-1] + ("a" if match[0][-1] != "a" else "b")


def on_lines(change):
    def apply(outputs, tolerance, draw):
        for holder, key in places(outputs, "print"):
            lines = "".join(holder[key]).splitlines(keepends=True)
            if changed := change(lines, draw):
                holder[key] = "".join(changed)
                return True
        return False

    return apply


def without_a_line(lines, draw):
    filled = [i for i, line in enumerate(lines) if line.strip()]
    return [*lines[: (i := draw.choice(filled))], *lines[i + 1 :]] if len(filled) > 1 else None


def with_lines_swapped(lines, draw):
    def words(line):
        return re.sub(r"[\d.,\s+−-]", "", line)

    pairs = [i for i in range(len(lines) - 1) if words(lines[i]) != words(lines[i + 1])]
    if not pairs or not lines[-1].endswith("\n"):
        return None
    i = draw.choice(pairs)
    return [*lines[:i], lines[i + 1], lines[i], *lines[i + 2 :]]


def with_a_new_line(lines, draw):
    return [*lines, "and one more\n"] if lines and lines[-1].endswith("\n") else None


def without_an_output(outputs, tolerance, draw):
    compared = [i for i, o in enumerate(outputs) if o.output_type == "stream" or PLOTLY in o.data]
    if compared:
        del outputs[draw.choice(compared)]
    return bool(compared)


def with_an_error(outputs, tolerance, draw):
    outputs.append({"output_type": "error", "ename": "ValueError", "evalue": "it broke", "traceback": []})
    return True


def text_at(*path):
    def change(figure, draw):
        holder = at(figure["layout"], path[:-1])
        if isinstance(holder.get(path[-1]), str) and holder[path[-1]]:
            holder[path[-1]] += " not"
            return True
        return False

    return change


def trace_name(figure, draw):
    named = [t for t in figure["data"] if isinstance(t.get("name"), str)]
    if named:
        draw.choice(named)["name"] += "s"
    return bool(named)


def extra_trace(figure, draw):
    figure["data"].append(copy.deepcopy(draw.choice(figure["data"])))
    return True


def missing_trace(figure, draw):
    del figure["data"][draw.randrange(len(figure["data"]))]
    return True


def traces_swapped(figure, draw):
    data = figure["data"]
    if len(data) < 2 or data[0].get("name") == data[1].get("name"):
        return False
    data[0], data[1] = data[1], data[0]
    return True


def another_type(figure, draw):
    trace = draw.choice(figure["data"])
    trace["type"] = "bar" if trace["type"] != "bar" else "scatter"
    return True


def another_colour(figure, draw):
    coloured = [
        part
        for trace in figure["data"]
        for part in (trace.get("line", {}), trace.get("marker", {}))
        if isinstance(part.get("color"), str)
    ]
    if coloured:
        draw.choice(coloured)["color"] = "black"
    return bool(coloured)


def axis_type(figure, draw):
    axis = figure["layout"].setdefault("xaxis", {})
    axis["type"] = "log" if axis.get("type") != "log" else "linear"
    return True


def tick_label(figure, draw):
    labelled = [
        axis for axis in (at(figure, ["layout", "xaxis"]), at(figure, ["layout", "yaxis"])) if "ticktext" in axis
    ]
    if labelled:
        labels = draw.choice(labelled)["ticktext"]
        labels[0], labels[-1] = labels[-1], labels[0]
        return labels[0] != labels[-1]
    return False


def annotation(figure, draw):
    written = [a for a in figure["layout"].get("annotations", []) if a.get("text")]
    if written:
        draw.choice(written)["text"] += "!"
    return bool(written)


def too_many(values, tolerance, draw):
    """Places of finite values, one more than the cell lets move; none where all may."""
    finite = np.flatnonzero(np.isfinite(values)).tolist()
    n = int(tolerance.get("moved", 0) * values.size) + 1
    return draw.sample(finite, n) if n <= len(finite) else []


def plot_value(values, tolerance, draw):
    places = too_many(values, tolerance, draw)
    for i in places:
        values.flat[i] += 2 * span(values.flat[i], tolerance)
    return values if places else None


def plot_nan(values, tolerance, draw):
    places = too_many(values, tolerance, draw)
    values.flat[places] = np.nan
    return values if places else None


def plot_count(values, tolerance, draw):
    values = values.astype(np.int64)
    values.flat[draw.randrange(values.size)] += 1 + tolerance["counts"]
    return values


def shorter(outputs, tolerance, draw):
    for trace, key, values in arrays(outputs, "fiu"):
        if "shape" not in trace[key] and len(values) > 1:
            put(trace, key, values[:-1])
            return True
    return False


TAMPERED = {
    "a digit of a printed number": in_text(["print"], FLOAT, another_digit),
    "a unit of a number of few digits": in_text(["print"], FLOAT, unit_of_few_digits),
    "a sign": in_text(["print"], FLOAT, another_sign),
    "a decimal point": in_text(["print"], FLOAT, point_moved),
    "nan for a number": in_text(["print"], FLOAT, lambda match, tolerance: "nan"),
    "a count": in_text(["print"], COUNT, another_count),
    "the last digit of a large count": in_text(["print"], LARGE, last_digit_of_large_count),
    "a word": in_text(["print"], WORD, another_letter),
    "a missing line": on_lines(without_a_line),
    "a new line": on_lines(with_a_new_line),
    "two lines swapped": on_lines(with_lines_swapped),
    "a missing output": without_an_output,
    "an error": with_an_error,
    "a number in a table": in_text(["table"], FLOAT, another_digit),
    "a count in a table": in_text(["table"], COUNT, another_count),
    "a word in a table": in_text(["table"], WORD, another_letter),
    "a word in a page": in_text(["HTML"], re.compile(r"(?<=>)[^<>&\d]{3,}(?=<)"), lambda match, _: "else"),
    "a colour in a page": in_text(["HTML"], re.compile(r"(?<=rgba\()\d+, \d+(?=, )"), lambda match, _: "1, 2"),
    "a plot's value": in_array("f", plot_value),
    "nan for a plot's value": in_array("f", plot_nan),
    "a plot's count": in_array("iu", plot_count),
    "a plot's length": shorter,
    "a title": in_figure(text_at("title", "text")),
    "an axis' name": in_figure(text_at("xaxis", "title", "text")),
    "an axis' kind": in_figure(axis_type),
    "a tick's label": in_figure(tick_label),
    "an annotation": in_figure(annotation),
    "a legend's name": in_traces(trace_name),
    "an extra trace": in_traces(extra_trace),
    "a missing trace": in_traces(missing_trace),
    "two traces swapped": in_traces(traces_swapped),
    "a trace's kind": in_traces(another_type),
    "a colour": in_traces(another_colour),
}


# ---------------------------------------------------------------- what must pass


def fine(match) -> bool:
    """Whether a unit of the last place is at most 2 % of the number."""
    return 10.0 ** -len(match[3]) <= 0.0199 * abs(float(match[0].replace("−", "-")))


def one_unit(match, tolerance):
    value, unit = float(match[0].replace("−", "-")), 10.0 ** -len(match[3])
    return write(match, value + (unit if value > 0 else -unit)) if fine(match) else None


def at_a_border(match, tolerance):
    """A value half-way between two printed ones, with relative noise of 3e-7, printed again."""
    value, unit = float(match[0].replace("−", "-")), 10.0 ** -len(match[3])
    near = [write(match, (value - unit / 2) * (1 + noise)) for noise in (3e-7, -3e-7)]
    return next((text for text in near if text != match[0]), None) if fine(match) else None


def trimmed(match, tolerance):
    return f"{float(match[0]):.9g}" if match[3].endswith("0") and not match[1] else None


def noisy(values, tolerance, draw):
    return values * (1 + 3e-7 * np.random.default_rng(draw.randrange(2**32)).standard_normal(values.shape))


def other_zeros(values, tolerance, draw):
    return np.where(values == 0, -values, values) if (values == 0).any() else None


def wider(values, tolerance, draw):
    return values.astype(np.float64)


def plain_list(outputs, tolerance, draw):
    for trace, key, values in arrays(outputs, "fiu"):
        if "shape" not in trace[key] and np.isfinite(values).all():
            trace[key] = values.tolist()
            return True
    return False


def within_slack(values, tolerance, draw):
    return values + tolerance["counts"] if tolerance["counts"] else None


def split_prints(outputs, tolerance, draw):
    for i, out in enumerate(outputs):
        if out.output_type == "stream":
            text = "".join(out["text"])
            cut = draw.randrange(len(text) + 1)
            outputs[i : i + 1] = [{**out, "text": text[:cut]}, {**out, "text": text[cut:]}]
            return True
    return False


def added(*new):
    def apply(outputs, tolerance, draw):
        place = draw.randrange(len(outputs) + 1)
        outputs[place:place] = copy.deepcopy(list(new))
        return True

    return apply


def display(**data):
    return {"output_type": "display_data", "metadata": {}, "data": {k.replace("_", "/"): v for k, v in data.items()}}


def minus(outputs, tolerance, draw):
    for holder, key in places(outputs, "print", "table"):
        text = "".join(holder[key])
        if re.search(r"(?<![\w.])-(?=\d)", text):
            holder[key] = re.sub(r"(?<![\w.])-(?=\d)", "−", text)
            return True
    return False


def live(outputs, tolerance, draw):
    views = [o.data for o in outputs if o.get("data", {}).get("text/plain") == LIVE_VIEW]
    for data in views:
        data["text/html"] = "<script>draw(0.5)</script>"
    return bool(views)


def wider_columns(outputs, tolerance, draw):
    for holder, key in places(outputs, "print"):
        text = "".join(holder[key])
        if re.search(r" (?=\d)", text):
            holder[key] = re.sub(r" (?=\d)", "  ", text)
            return True
    return False


TIME = {"text_html": "<div>a step: 3.2 ms</div>", "text_plain": f"a step: {MEASURED}"}
HARMLESS = {
    "one unit of a printed number": in_text(["print"], FLOAT, one_unit),
    "noise at a border of rounding": in_text(["print"], FLOAT, at_a_border),
    "one unit in a table": in_text(["table"], FLOAT, one_unit),
    "zeros cut off": in_text(["print", "table"], FLOAT, trimmed),
    "one unit of an opacity": in_text(["HTML"], re.compile(r"(?<=, )()(0)\.([1-9]\d\d)(?=\))"), one_unit),
    "another minus": minus,
    "noise in a plot": in_array("f", noisy),
    "negative zeros in a plot": in_array("f", other_zeros),
    "a plot's precision": in_array("f", wider),
    "a plot's values as a list": plain_list,
    "prints in several parts": split_prints,
    "widths of columns": wider_columns,
    "a progress bar": added({"output_type": "stream", "name": "stderr", "text": "100%|███| 3/3 [00:01<00:00]"}),
    "a widget": added(display(**{"application_vnd.jupyter.widget-view+json": {}, "text_plain": "HBox(...)"})),
    "a picture": added(display(image_png="iVBORw0KGgo=", text_plain="<Figure size 640x480>")),
    "a time": added(display(**TIME)),
    "a live view": live,
}
# Kinds for which the recorded notebooks may hold no place: the same line is added to both sides.
PAIRS = {
    "a device": ("tensor(1.5)", "tensor(1.5, device='cuda:0')"),
    "an address": ("<Head object at 0x7f3a12345670>", "<Head object at 0x55d0c0ffee00>"),
    "1 for 0.9999999 as floats": ("tensor(1.)", "tensor(0.9999999)"),
    "a small number for 0 as floats": ("error: 0", "error: 1.192e-07"),
    "an array wrapped elsewhere": ("tensor([[1.25, 3.5],\n        [0.5, 7.75]])", "tensor([[1.25, 3.5], [0.5, 7.75]])"),
}


def with_line(outputs, line):
    return [*copy.deepcopy(outputs), {"output_type": "stream", "name": "stdout", "text": f"{line}\n"}]


# ---------------------------------------------------------------- the two tests


def changes(kinds, cells, seed):
    """(kind, cell, changed outputs): for each kind EACH cells of different chapters as far as there are some."""
    for kind, apply in kinds.items():
        draw = random.Random(f"{seed} {kind}")
        turns = defaultdict(int)
        ranked = []
        for cell in draw.sample(cells, len(cells)):  # first one cell of each chapter, then a second of each
            ranked.append((turns[cell.chapter], cell))
            turns[cell.chapter] += 1
        # A kind with few places comes back to the same cell and draws another one.
        order = [cell for _, cell in sorted(ranked, key=lambda pair: pair[0])] * EACH
        changed = (
            (cell, outputs) for cell in order if apply(outputs := copy.deepcopy(cell.outputs), cell.tolerance, draw)
        )
        for cell, outputs in itertools.islice(changed, EACH):
            yield kind, cell, outputs


def table(title, results):
    """kind -> [as it should be?] as lines of a table."""
    lines = [f"{title:44}{'changes':>8}{'as they should':>16}"]
    lines += [f"  {kind:42}{len(right):8}{sum(right):16}" for kind, right in results.items()]
    return "\n".join([*lines, f"  {'all':42}{sum(map(len, results.values())):8}{sum(map(sum, results.values())):16}"])


@pytest.fixture(scope="module")
def cells():
    found = recorded()
    assert not any(cell.notices(cell.outputs) for cell in found)
    return found


@pytest.mark.parametrize("kinds, noticed, least", [(TAMPERED, True, 100), (HARMLESS, False, 60)])
def test_false_outputs_are_noticed_and_harmless_ones_pass(kinds, noticed, least, cells, capsys):
    results, wrong, chapters = defaultdict(list), [], set()
    for kind, cell, outputs in changes(kinds, cells, seed=0):
        results[kind].append(cell.notices(outputs) == noticed)
        chapters.add(cell.chapter)
        if not results[kind][-1]:
            wrong.append((kind, cell.chapter, cell.id, differences(outputs, cell.outputs, **cell.tolerance)))
    if not noticed:
        draw = random.Random(0)
        for kind, (line, other) in PAIRS.items():
            for cell in draw.sample(cells, EACH):
                got, want = with_line(cell.outputs, other), with_line(cell.outputs, line)
                results[kind].append(not differences(got, want, **cell.tolerance))
    with capsys.disabled():
        print("\n" + table("must be noticed" if noticed else "must pass", results))
    assert not wrong
    assert all(map(all, results.values()))
    assert sum(map(len, results.values())) >= least and chapters == set(chapter_names())
    assert min(len(results[kind]) for kind in kinds) >= 3
