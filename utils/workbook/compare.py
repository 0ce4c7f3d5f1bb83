"""Compare a notebook's new outputs with the recorded ones, and say where they differ.

Text must agree exactly outside of floats, integers exactly, floats within a relative tolerance; a Plotly figure is
compared as data: titles exactly, arrays numerically. Not compared: stderr and progress bars, widgets, object
addresses, device names, views that are drawn by a script, and pictures (they differ by a library's version).
"""

import base64
import re
from collections.abc import Iterator

import numpy as np

RTOL, ATOL = 1e-3, 1e-5
LIVE_VIEW = "A live view: run this cell to see it."  # what `show.live` leaves in a recorded notebook
PLOTLY = "application/vnd.plotly.v1+json"
SKIPPED = {"application/vnd.jupyter.widget-view+json", "image/png", "image/jpeg"}
NUMBER = re.compile(
    r"(?<![\w.])[-+−]?(?:\d[\d_,]*\.\d+(?:e[-+]?\d+)?|\d+\.(?=[,\]])|\.\d+(?:e[-+]?\d+)?|\d+e[-+]?\d+|nan|inf)"
    r"(?![\w.]*\w)",
    re.I,
)
ADDRESS = re.compile(r"0x[0-9a-f]{6,}", re.I)
DEVICE = re.compile(r",? ?device='[\w:]+'|device\(type='\w+'(?:, index=\d+)?\)")


def differences(got: list[dict], want: list[dict], rtol: float = RTOL, atol: float = ATOL) -> list[str]:
    """Sentences that name what differs between two lists of cell outputs; empty where they agree."""
    got, want = list(_shown(got)), list(_shown(want))
    said = []
    for i, ((kind, new), (kind_before, before)) in enumerate(zip(got, want, strict=False)):
        where = f"output {i} ({kind})"
        if kind != kind_before:
            return [*said, f"output {i} is now {kind}, recorded {kind_before}"]
        said += [f"{where}{path}: {s}" for path, s in _values(new, before, "", rtol, atol)]
    for kind, value in got[len(want) :]:
        said.append(f"a new output that is not recorded ({kind}): {_clip(value)}")
    for kind, value in want[len(got) :]:
        said.append(f"a recorded output is missing ({kind}): {_clip(value)}")
    return said


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
        if len(data) < len(out["data"]) or not data:
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
        elif data == {"text/plain": LIVE_VIEW}:
            continue
        else:
            kind = next((k for k in ("text/markdown", "text/latex", "text/plain") if k in data), min(data))
            value = data[kind]
            yield kind, "".join(value) if isinstance(value, list) else value
    if text:
        yield "printed text", text


def _values(got, want, path: str, rtol: float, atol: float) -> Iterator[tuple[str, str]]:
    if _is_array(want) or _is_array(got):
        yield from _arrays(got, want, path, rtol, atol)
    elif isinstance(got, str) and isinstance(want, str):
        yield from _texts(got, want, path, rtol, atol)
    elif isinstance(got, dict) and isinstance(want, dict):
        for key in sorted(got.keys() | want.keys()):
            if key not in got or key not in want:
                yield f"{path}.{key}", f"{_clip(got.get(key))}, recorded {_clip(want.get(key))}"
            else:
                yield from _values(got[key], want[key], f"{path}.{key}", rtol, atol)
    elif isinstance(got, list) and isinstance(want, list):
        if len(got) != len(want):
            yield path, f"{len(got)} items, recorded {len(want)}"
            return
        for i, (g, w) in enumerate(zip(got, want, strict=True)):
            yield from _values(g, w, f"{path}[{i}]", rtol, atol)
    elif type(got) is float or type(want) is float:
        numbers = isinstance(got, int | float) and isinstance(want, int | float)
        if not numbers or not np.isclose(got, want, rtol=rtol, atol=atol, equal_nan=True):
            yield path, f"{_clip(got)}, recorded {_clip(want)}"
    elif got != want:
        yield path, f"{_clip(got)}, recorded {_clip(want)}"


def _is_array(value) -> bool:
    return isinstance(value, dict) and "bdata" in value


def _decoded(value) -> np.ndarray | None:
    if _is_array(value):
        flat = np.frombuffer(base64.b64decode(value["bdata"]), value["dtype"])
        shape = value.get("shape")
        return flat.reshape([int(n) for n in str(shape).split(",")]) if shape else flat
    try:
        return np.array(value, dtype=float) if isinstance(value, list) else None
    except (TypeError, ValueError):
        return None


def _arrays(got, want, path, rtol, atol):
    new, before = _decoded(got), _decoded(want)
    if new is None or before is None:
        yield path, f"{_clip(got)}, recorded {_clip(want)}"
    elif new.shape != before.shape:
        yield path, f"shape {list(new.shape)}, recorded {list(before.shape)}"
    else:
        exact = new.dtype.kind in "iu" and before.dtype.kind in "iu"
        same = new == before if exact else np.isclose(new, before, rtol=rtol, atol=atol, equal_nan=True)
        if not same.all():
            first = tuple(np.argwhere(~same)[0].tolist())
            count = f"{int((~same).sum())} of {same.size} values differ, first "
            yield f"{path}{list(first)}", f"{count}{new[first]:.6g}, recorded {before[first]:.6g}"


def _texts(got: str, want: str, path: str, rtol: float, atol: float):
    for i, (new, before) in enumerate(zip(_lines(got), _lines(want), strict=False)):
        x, y = ([_number(n) for n in NUMBER.findall(line)] for line in (new, before))
        words, words_before = (" ".join(NUMBER.sub("#", line).split()) for line in (new, before))
        if words != words_before or len(x) != len(y):
            yield path, f"line {i + 1} is {_clip(new)}, recorded {_clip(before)}"
            return
        if not np.allclose(x, y, rtol=rtol, atol=atol, equal_nan=True):
            yield path, f"line {i + 1} has a number beyond the tolerance: {_clip(new)}, recorded {_clip(before)}"
            return
    if len(_lines(got)) != len(_lines(want)):
        yield path, f"{len(_lines(got))} lines, recorded {len(_lines(want))}"


def _lines(text: str) -> list[str]:
    return DEVICE.sub("", ADDRESS.sub("0x…", text)).splitlines()


def _number(text: str) -> float:
    return float(text.replace(",", "").replace("_", "").replace("−", "-"))


def _clip(value, limit: int = 100) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
