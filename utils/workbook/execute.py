"""Run solved notebooks: record their outputs, or compare a new run with the recorded ones."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from tqdm import tqdm

from utils.workbook import ROOT, SOLUTIONS, WorkbookError, chapter_names, references
from utils.workbook.build import KERNEL, read_notebook
from utils.workbook.compare import SKIPPED, not_recorded
from utils.workbook.files import write_whole
from utils.workbook.kernels import LIBRARIES
from utils.workbook.lab import settle

CELL_SECONDS = 600  # of the kernel's processor time: a busy machine ends no cell
START_SECONDS = 3600  # by the clock, for a kernel to start: ends what hangs, not what a busy machine delays
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# The allocator keeps blocks of up to 256 MB: to get them from the system at each step costs as much as the arithmetic.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**28), "MALLOC_TRIM_THRESHOLD_": str(2**29)}
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


def execute(
    wanted: str | None = None, solutions: Path = SOLUTIONS, changed: bool = False, profile: str | None = None
) -> list[str]:
    """Run the solved notebooks and record their outputs as the references; returns sentences to print.

    Args:
        profile: on which models, as in `WORKBOOK_MODELS`; others than the workbook's own have references of their own.
        changed: run each only as far as its last cell that changed since it was recorded; what stands below keeps its
            outputs, and `make test` tells whether they still hold.

    Raises:
        WorkbookError: a cell failed; that notebook's file stays as it was. Or the profile's weights are not there, or
            random: nothing is recorded from those.
    """
    profile = profile or os.environ.get("WORKBOOK_MODELS", "")
    if profile in ("", "embedded"):
        os.environ.update(OFFLINE)
    references.require_real(profile)
    os.environ.update(KEEP_MEMORY)
    said = settle()
    for name in chapter_names(wanted):
        path = references.folder(profile, solutions) / f"{name}.ipynb"
        notebook = read_notebook(solutions / f"{name}.ipynb" if not (changed and path.exists()) else path)
        below = notebook.cells[_end(notebook) if changed else len(notebook.cells) :]
        del notebook.cells[len(notebook.cells) - len(below) :]
        if not notebook.cells:
            said.append(f"{name}: no cell has changed since it was recorded.")
            continue
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        _run(notebook, solutions / path.name)
        notebook.cells += below
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = [o for o in cell.outputs if _worth_keeping(o)]
                cell.metadata.pop("execution", None)
        notebook.metadata = nbformat.from_dict(KERNEL)
        path.parent.mkdir(exist_ok=True)
        write_whole(path, nbformat.writes(notebook) + "\n")
        said.append(f"{name}: executed and recorded ({path.stat().st_size:,} bytes).")
    return said


def _end(notebook) -> int:
    """Where the cells end that must run for every cell to be recorded."""
    new = [i for i, c in enumerate(notebook.cells) if c.cell_type == "code" and c.source and c.execution_count is None]
    return max(new, default=-1) + 1


def _run(notebook, path: Path) -> None:
    client = NotebookClient(
        notebook,
        timeout=None,
        startup_timeout=START_SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    )
    with tqdm(total=len(notebook.cells), desc=path.stem, unit="cell") as bar:
        client.on_cell_complete = lambda **_: bar.update()
        try:
            with _time_limit(client):
                client.execute()
        except (CellExecutionError, DeadKernelError) as error:
            cell = next(
                (c.id for c in notebook.cells if any(o.output_type == "error" for o in c.get("outputs", []))), "?"
            )
            raise WorkbookError(f"{path.stem} stopped in the cell {cell}; nothing was recorded.\n{error}") from None


@contextmanager
def _time_limit(client: NotebookClient):
    """Interrupt the cell that uses more than `CELL_SECONDS` of the kernel's processor time."""
    before, ended = [0.0], threading.Event()
    client.on_cell_execute = lambda **_: before.__setitem__(0, kernel_seconds(client.km))

    def watch():
        while not ended.wait(5):
            if kernel_seconds(client.km) - before[0] > CELL_SECONDS:
                os.kill(client.km.provisioner.process.pid, signal.SIGINT)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _worth_keeping(output) -> bool:
    if output.output_type == "stream":
        return output.name == "stdout"
    data = output.get("data", {})
    if not_recorded(data) and "text/html" in data:
        del data["text/html"]  # what was measured; or a script, which runs only where the notebook is trusted
    return not SKIPPED & set(data)


def nbval(wanted: str | None = None, extra: list[str] = (), profile: str | None = None) -> int:
    """Run the solved notebooks again and compare with what is recorded; returns pytest's exit code.

    On a profile without references every cell runs, none may raise, and a line says that nothing is compared.

    Raises:
        WorkbookError: there is no such chapter, or none at all.
    """
    profile = profile or os.environ.get("WORKBOOK_MODELS", "")
    files, unrecorded = [], []
    if profile not in ("", "embedded"):
        os.environ["WORKBOOK_MODELS"] = profile
        at = references.folder(profile)
        unrecorded = [file for file in solved_notebooks(wanted) if not (at / Path(file).name).exists()]
        files = [str(p.relative_to(ROOT)) for n in chapter_names(wanted) if (p := at / f"{n}.ipynb").exists()]
        if unrecorded:
            print(f"not recorded on {profile}: {' '.join(Path(f).stem for f in unrecorded)}; every cell must run")
    for file in solved_notebooks(wanted) if profile in ("", "embedded") else ():
        if any(c.cell_type == "code" for c in read_notebook(ROOT / file).cells):
            files.append(file)
        else:
            print(f"{Path(file).stem} has no code cell: there is nothing to run or to compare.")
    lax = run_pytest(unrecorded, extra, compared=False) if unrecorded else 0
    return max(lax, run_pytest(files, extra) if files else 0)


def solved_notebooks(wanted: str | None = None) -> list[str]:
    """The files of one chapter or of all, from the repository's root."""
    names = chapter_names(wanted)
    if not names:
        raise WorkbookError("There is no chapter to run yet.")
    return [str((SOLUTIONS / f"{name}.ipynb").relative_to(ROOT)) for name in names]


def run_pytest(files: list[str], extra: list[str] = (), compared: bool = True) -> int:
    """Run tests and notebooks in as many processes as there are cores, one thread each; returns pytest's exit code."""
    processes = "0" if len(files) == 1 and files[0].endswith(".ipynb") else "auto"
    command = [sys.executable, "-m", "pytest", "-p", "utils.workbook.nbval_plugin", "-p", "utils.workbook.testing"]
    command += ["--nbval" if compared else "--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={CELL_SECONDS}"]
    if sys.platform == "linux":  # elsewhere a process that has imported such libraries can't be forked
        command += ["--kernels-with", " ".join(LIBRARIES)]
    command += ["-n", processes, "--no-loadscope-reorder", *extra, *files]
    settle()
    environment = {**ONE_THREAD, **KEEP_MEMORY, **os.environ}
    if environment.get("WORKBOOK_MODELS", "embedded") == "embedded":
        environment.update(OFFLINE)
    return subprocess.call(command, cwd=ROOT, env=environment)


def kernel_seconds(manager) -> float:
    """Processor time that a kernel has used, and its children that have ended; 0 where it is gone."""
    try:
        return sum(psutil.Process(manager.provisioner.process.pid).cpu_times()[:4])
    except (psutil.Error, AttributeError):
        return 0.0
