"""A learner's notebooks as files: outputs, which may be hundreds of megabytes, pass through as they are.

nbformat would check, copy and split them several times over, for a minute where 200 MB take seconds.
"""

import contextlib
import copy
import json
import logging
import re
import warnings
from pathlib import Path

import nbformat
from nbformat.sign import NotebookNotary
from nbformat.v4.rwbase import rejoin_lines
from nbformat.warnings import MissingIDFieldWarning

from utils.workbook import WorkbookError


def parse(path: Path, data: bytes) -> nbformat.NotebookNode:
    """The notebook of a file's bytes, of nbformat 3 or 4; outputs are plain lists, as they stand in the file.

    What other programs leave out of a cell, or null, is put back: its id, source, metadata, outputs. Of cells with one
    id the first keeps it.

    Raises:
        WorkbookError: it is no notebook.
    """
    try:
        raw = json.loads(data.decode("utf-8-sig"))
        outputs = _taken_out(_completed(raw["cells"])) if raw["nbformat"] == 4 else []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MissingIDFieldWarning)
            notebook = nbformat.reads(json.dumps(raw), 4)
        for cell, found in zip(notebook.cells, outputs, strict=raw["nbformat"] == 4):
            if found:
                cell["outputs"] = found
        return notebook
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise WorkbookError(
            f"{path} is not a readable notebook ({reason}). Nothing was changed. Save it as UTF-8 in a "
            "text editor; or move it elsewhere: an earlier version may be in backup/, else `make start` copies the "
            "chapter anew."
        ) from None


def _completed(cells: list) -> list:
    ids = set()
    for cell in cells:
        if not isinstance(cell.get("id"), str) or cell["id"] in ids:
            cell.pop("id", None)  # nbformat gives it one
        ids.add(cell.get("id"))
        cell["source"] = cell.get("source") or ""
        cell["metadata"] = cell.get("metadata") or {}
        if cell["cell_type"] == "code":
            cell["outputs"] = cell.get("outputs") or []
            cell.setdefault("execution_count", None)
    return cells


def _taken_out(cells: list) -> list[list]:
    """The outputs of each cell, which are left empty in it."""
    found = []
    for cell in cells:
        found.append(cell["outputs"] if cell["cell_type"] == "code" and isinstance(cell.get("outputs"), list) else [])
        if found[-1]:
            cell["outputs"] = []
    return found


def text_of(notebook: nbformat.NotebookNode) -> str:
    """The notebook as the text of a file."""
    light = copy.copy(notebook)
    light["cells"] = [nbformat.NotebookNode(c) for c in notebook.cells]
    outputs = _taken_out(light.cells)
    raw = json.loads(nbformat.writes(light))
    for k, cell in enumerate(raw["cells"]):
        if outputs[k]:
            cell["outputs"] = k

    def put_back(line: re.Match) -> str:
        dumped = json.dumps(outputs[int(line[1])], sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return f'   "outputs": {dumped}'

    text = json.dumps(raw, indent=1, sort_keys=True, ensure_ascii=False)
    text = re.sub(r'^   "outputs": (\d+)', put_back, text, flags=re.M) + "\n"
    # Halves of characters, as JavaScript cuts them, can stand in a file of UTF-8 as escapes only.
    return re.sub("[\ud800-\udfff]", lambda half: f"\\u{ord(half[0]):04x}", text)


# What a learner ran may show scripts (interactive views); Jupyter knows such notebooks by a signature of all they hold.


def trusted(notebook: nbformat.NotebookNode) -> bool:
    """Whether the notebook is signed, or holds no outputs that would need it."""
    if not any(c.get("outputs") for c in notebook.cells):
        return True
    with contextlib.suppress(Exception), _notary() as notary:  # no home that can be written: nothing is trusted
        return notary.check_signature(_joined(notebook))
    return False


def sign(notebook: nbformat.NotebookNode) -> None:
    with contextlib.suppress(Exception), _notary() as notary:
        notary.sign(_joined(notebook))


def _joined(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook as nbformat reads it, by which it is signed: lines joined to texts."""
    joined = copy.copy(notebook)
    joined["cells"] = [nbformat.NotebookNode(c) for c in notebook.cells]
    for cell in joined.cells:
        if cell.get("outputs"):
            cell["outputs"] = [nbformat.NotebookNode(o) for o in cell.outputs]
            for output in cell.outputs:
                if isinstance(output.get("data"), dict):
                    dict.__setitem__(output, "data", dict(output["data"]))
    return rejoin_lines(joined)


def _notary() -> NotebookNotary:
    log = logging.getLogger("utils.workbook.notary")
    log.addHandler(logging.NullHandler())
    log.propagate = False
    return NotebookNotary(log=log)
