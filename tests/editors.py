"""What other programs do to a notebook when a learner works in it: facts, each with where it is to be seen.

A notebook is here the plain JSON of nbformat 4. Each editor has the ways in which cells are split, merged and pasted
in it, and `save`, what a notebook is after it was opened and written.
"""

import copy
import json
import random

import jupytext
import nbformat
from nbformat import NotebookNode

ids = random.Random(0)  # a test seeds it


def new_id() -> str:
    return f"{ids.getrandbits(32):08x}"


def code(source: str, metadata: dict | None = None) -> dict:
    return {
        "cell_type": "code",
        "metadata": metadata or {},
        "source": source,
        "outputs": [],
        "execution_count": None,
        "id": new_id(),
    }


class Editor:
    """An editor that keeps everything: the base of the others."""

    name = "plain"

    def split(self, cells: list[dict], k: int, at: int) -> None:
        raise NotImplementedError

    def merge(self, cells: list[dict], k: int) -> bool:
        """Merge cell k with the next; whether the editor allows it."""
        raise NotImplementedError

    def pasted(self, cell: dict) -> dict:
        raise NotImplementedError

    def save(self, notebook: dict) -> dict:
        return notebook


class JupyterLab(Editor):
    """The installed JupyterLab: share/jupyter/lab/static/jlab_core.*.js.

    There, `splitCell` inserts the front parts as new cells with a copy of the metadata, and the last part keeps the
    cell; new lines at the cut are dropped. `mergeCells` deletes the cells and inserts one with the sources joined by
    an empty line, of the active cell's type and metadata, without an id. Paste sets `id` to undefined but for a code
    cell that was cut. `fromJSON` raises `nbformat_minor` to 5 and cells without an id get one.
    """

    name = "JupyterLab"

    def split(self, cells, k, at):
        cell = cells[k]
        front = {**copy.deepcopy(cell), "id": new_id(), "source": cell["source"][:at].strip("\n")}
        if "outputs" in front:
            front["outputs"], front["execution_count"] = [], None
        cell["source"] = cell["source"][at:].strip("\n")
        cells.insert(k, front)

    def merge(self, cells, k):
        a, b = cells[k : k + 2]
        cells[k : k + 2] = [self._merged(a, a["source"] + "\n\n" + b["source"])]
        return True

    @staticmethod
    def _merged(first: dict, source: str) -> dict:
        cell = {**copy.deepcopy(first), "id": new_id(), "source": source}
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
        return cell

    def pasted(self, cell):
        return {**copy.deepcopy(cell), "id": new_id()}

    def save(self, notebook):
        notebook["nbformat_minor"] = max(5, notebook["nbformat_minor"])
        for cell in notebook["cells"]:
            cell.setdefault("id", new_id())
            cell["metadata"].pop("trusted", None)
        notebook["metadata"]["language_info"] = {"name": "python", "version": "3.11.7", "nbconvert_exporter": "python"}
        return notebook


class VSCode(Editor):
    """microsoft/vscode, extensions/ipynb and workbench/contrib/notebook.

    `createCodeCellFromNotebookCell` and its like (extensions/ipynb/src/serializers.ts): a cell keeps metadata and id,
    CR-LF becomes LF. Splitting (workbench/contrib/notebook/browser, `computeCellLinesContents`): the first part stays
    the cell, the others have empty metadata. `joinSelectedCells` (controller/cellOperations.ts): only cells of one
    kind, joined by one line end, with the first one's metadata. `copyCellRange` clones the metadata, and
    notebookModelStoreSync.ts gives an id only to a cell that has none: a copy may carry the same id.
    """

    name = "VS Code"

    def split(self, cells, k, at):
        cell = cells[k]
        rest = {**copy.deepcopy(cell), "id": new_id(), "metadata": {}, "source": cell["source"][at:]}
        if "outputs" in rest:
            rest["outputs"], rest["execution_count"] = [], None
        cell["source"] = cell["source"][:at]
        cells.insert(k + 1, rest)

    def merge(self, cells, k):
        a, b = cells[k : k + 2]
        if a["cell_type"] != b["cell_type"]:
            return False
        a["source"] += "\n" + b["source"]
        del cells[k + 1]
        return True

    def pasted(self, cell):
        return copy.deepcopy(cell)

    def save(self, notebook):
        for cell in notebook["cells"]:
            cell["source"] = cell["source"].replace("\r\n", "\n")
        return notebook


class Colab(JupyterLab):
    """Google Colab. It writes nbformat 4.0 for a notebook created or copied there, which has no cell ids, and keeps
    the ids of one opened as 4.5 (googlecolab/colabtools issue 5402). Its own cell id stands in the metadata, and a
    split in another program doubles it (issue 581).
    """

    name = "Colab"

    def split(self, cells, k, at):
        VSCode.split(self, cells, k, at)

    def save(self, notebook):
        copied = int(new_id(), 16) % 2
        for cell in notebook["cells"]:
            cell["metadata"].setdefault("id", new_id())
            if copied:
                cell.pop("id", None)
        if copied:
            notebook["nbformat_minor"] = 0
        notebook["metadata"]["colab"] = {"provenance": []}
        return notebook


class Jupytext(JupyterLab):
    """A round trip through the installed jupytext, which is run: cells get new ids, outputs are dropped."""

    fmt = ""

    def save(self, notebook):
        node = nbformat.from_dict(notebook)
        return json.loads(json.dumps(jupytext.reads(jupytext.writes(node, self.fmt), self.fmt)))


class Percent(Jupytext):
    name, fmt = "jupytext py:percent", "py:percent"


class Markdown(Jupytext):
    name, fmt = "jupytext md", "md"


class Nbformat3(JupyterLab):
    """A round trip through nbformat 3, by the installed nbformat (`nbformat.convert`); it has no cell ids."""

    name = "nbformat 3"

    def save(self, notebook):
        return json.loads(json.dumps(nbformat.convert(nbformat.from_dict(notebook), 3)))


class Nbstripout(JupyterLab):
    """nbstripout: outputs dropped, cell ids replaced by 0, 1, 2 … unless --keep-id, and the metadata that its
    `filter.<name>.extrakeys` names dropped (its README), here all of a cell's.
    """

    name = "nbstripout"

    def save(self, notebook):
        for k, cell in enumerate(notebook["cells"]):
            cell["id"], cell["metadata"] = str(k), {}
            if cell["cell_type"] == "code":
                cell["outputs"], cell["execution_count"] = [], None
        return notebook


EDITORS = [JupyterLab(), VSCode(), Colab(), Percent(), Markdown(), Nbformat3(), Nbstripout()]


def plain(node: NotebookNode) -> dict:
    return json.loads(json.dumps(node))
