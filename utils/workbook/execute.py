"""Run solved notebooks: record their outputs, or compare a new run with the recorded ones."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from tqdm import tqdm

from utils.workbook import ROOT, SOLUTIONS, WorkbookError, chapter_names
from utils.workbook.build import KERNEL, read_notebook
from utils.workbook.compare import SKIPPED, not_recorded
from utils.workbook.lab import settle

CELL_SECONDS = 600
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def execute(wanted: str | None = None, solutions: Path = SOLUTIONS) -> list[str]:
    """Run the solved notebooks and record their outputs as the references; returns sentences to print.

    Raises:
        WorkbookError: a cell failed; that notebook's file stays as it was.
    """
    if os.environ.get("WORKBOOK_MODELS", "embedded") == "embedded":
        os.environ.update(OFFLINE)
    said = settle()
    for name in chapter_names(wanted):
        path = solutions / f"{name}.ipynb"
        notebook = read_notebook(path)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        _run(notebook, path)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = [o for o in cell.outputs if _worth_keeping(o)]
                cell.metadata.pop("execution", None)
        notebook.metadata = nbformat.from_dict(KERNEL)
        half = path.with_suffix(".half")
        half.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")
        os.replace(half, path)
        said.append(f"{name}: executed and recorded ({path.stat().st_size:,} bytes).")
    return said


def _run(notebook, path: Path) -> None:
    client = NotebookClient(
        notebook, timeout=CELL_SECONDS, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    )
    with tqdm(total=len(notebook.cells), desc=path.stem, unit="cell") as bar:
        client.on_cell_complete = lambda **_: bar.update()
        try:
            client.execute()
        except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
            cell = next(
                (c.id for c in notebook.cells if any(o.output_type == "error" for o in c.get("outputs", []))), "?"
            )
            raise WorkbookError(f"{path.stem} stopped in the cell {cell}; nothing was recorded.\n{error}") from None


def _worth_keeping(output) -> bool:
    if output.output_type == "stream":
        return output.name == "stdout"
    data = output.get("data", {})
    if not_recorded(data) and "text/html" in data:
        del data["text/html"]  # what was measured; or a script, which runs only where the notebook is trusted
    return not SKIPPED & set(data)


def nbval(wanted: str | None = None, extra: list[str] = ()) -> int:
    """Run the solved notebooks again and compare with what is recorded; returns pytest's exit code."""
    if not chapter_names(wanted):
        raise WorkbookError("There is no chapter to run yet.")
    files = [str(SOLUTIONS / f"{name}.ipynb") for name in chapter_names(wanted)]
    command = [sys.executable, "-m", "pytest", "-p", "utils.workbook.nbval_plugin", "--nbval", "--nbval-current-env"]
    command += [f"--nbval-cell-timeout={CELL_SECONDS}", "-p", "no:cacheprovider", *extra, *files]
    settle()
    env = dict(os.environ)
    if env.get("WORKBOOK_MODELS", "embedded") == "embedded":
        env.update(OFFLINE)
    return subprocess.call(command, cwd=ROOT, env=env)
