"""The one run of tests and notebooks: what shares a process, what comes first, what is counted, what is resumed."""

import json
import os
import subprocess
import sys
from queue import Empty
from types import SimpleNamespace

import nbformat
import psutil
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook, new_output
from nbval.kernel import CURRENT_ENV_KERNEL_NAME, RunningKernel

from utils.workbook import ROOT, WorkbookError, execute, full, mistakes, nbval_plugin, testing
from utils.workbook.kernels import Nursery
from utils.workbook.mistakes import Shell, in_a_child

BURN = "import time\nend = time.process_time() + 0.5\nwhile time.process_time() < end: pass"


@pytest.mark.parametrize(
    "nodeid, group",
    [
        ("solutions/01_a.ipynb::Cell 3", "solutions/01_a.ipynb"),
        ("tests/test_show.py::test_heatmap[a-2]", "tests/test_show.py"),
        ("tests/test_checks.py::test_solution_passes[ioi.ioi_metric]", "tests/test_checks.py[ioi.ioi_metric]"),
        ("tests/test_checks.py::test_mistake_is_named[ioi.ioi_metric-12]", "tests/test_checks.py[ioi.ioi_metric]"),
        ("tests/test_checks.py::test_other", "tests/test_checks.py"),
    ],
)
def test_group(nodeid, group):
    assert testing.group_of(nodeid) == group


def test_every_group_has_a_part():
    assert testing.part_of("solutions/01_a.ipynb") == "solved notebooks"
    assert testing.part_of("tests/test_checks.py[ioi.ioi_metric]") == "proof of the checks"
    assert testing.part_of("tests/test_show.py") == "all else"


def test_the_longest_notebook_comes_first_and_the_proof_last(monkeypatch):
    monkeypatch.setattr(testing, "_kept", lambda which: {"solutions/02_b.ipynb": 9.0, "solutions/01_a.ipynb": 3.0})
    ids = ["tests/test_checks.py::test_solution_passes[a.f]", "tests/test_checks.py::test_solution_passes[a.g]"]
    ids += ["tests/test_checks.py::test_mistake_is_named[a.f-0]", "tests/test_show.py::test_x"]
    ids += ["solutions/01_a.ipynb::Cell 0", "solutions/01_a.ipynb::Cell 1", "solutions/02_b.ipynb::Cell 0"]
    items = [SimpleNamespace(nodeid=nodeid) for nodeid in ids]
    testing.pytest_collection_modifyitems(items)
    assert [item.nodeid for item in items] == [ids[i] for i in (6, 4, 5, 3, 0, 2, 1)]


def test_one_run_of_tests_and_notebooks(tmp_path):
    for name, source in {"short": "1;", "long": BURN}.items():
        cells = [new_code_cell(code, execution_count=1, id=f"cell-{i}") for i, code in enumerate((source, "2;"))]
        nbformat.write(new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
    (tmp_path / "test_unit.py").write_text("def test_one(): pass\n\ndef test_two(): assert 1 == 2\n")
    command = [sys.executable, "-m", "pytest", "-p", "utils.workbook.nbval_plugin", "-p", "utils.workbook.testing"]
    command += ["--nbval", "--nbval-current-env", "-n", "2", "--no-loadscope-reorder", "-c", "/dev/null"]
    # No time at all for a kernel to start: the plugin's own limit stands above it.
    command += ["--nbval-kernel-startup-timeout=0", "--kernels-with=json", f"--rootdir={tmp_path}", str(tmp_path)]
    environment = {**os.environ, "WORKBOOK_TEST_SECONDS": str(tmp_path / "seconds.json")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "assert 1 == 2" in done.stdout and "1 failed, 5 passed" in done.stdout, done.stdout
    counted = json.loads((tmp_path / "seconds.json").read_text())["this run"]
    assert set(counted) == {"short.ipynb", "long.ipynb", "test_unit.py", testing.IMPORTS}
    assert counted["long.ipynb"] > counted["short.ipynb"] and counted[testing.IMPORTS] > 0
    assert testing.part_of(testing.IMPORTS) == "solved notebooks"


def printed_by(kernel: RunningKernel, code: str) -> list[str]:
    """The lines that the code prints there."""
    asked, printed = kernel.kc.execute(code), ""
    while True:
        message = kernel.get_message("iopub", timeout=60)
        if message["parent_header"].get("msg_id") == asked:
            if message["content"].get("execution_state") == "idle":
                return printed.splitlines()
            printed += message["content"].get("text", "")


def test_a_forked_kernel_is_as_one_that_starts_anew(tmp_path, monkeypatch):
    """Same folder, paths and environment, none of the course's modules, a group of its own for signals."""
    monkeypatch.setattr(RunningKernel, "__init__", testing._start)  # without this worker's own nursery
    code = "import json, os, sys; print(json.dumps([os.getcwd(), sys.path, os.environ['OF_OUR_OWN']]))\n"
    code += "print([name for name in sys.modules if name.split('.')[0] == 'utils'], os.getpgid(0) == os.getpid())"
    nursery = Nursery(["wave"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OF_OUR_OWN", "set later")
        with nursery.starts_kernels():
            forked = RunningKernel(CURRENT_ENV_KERNEL_NAME, str(tmp_path), startup_timeout=execute.START_SECONDS)
        anew = RunningKernel(CURRENT_ENV_KERNEL_NAME, str(tmp_path), startup_timeout=execute.START_SECONDS)
    try:
        said = [printed_by(kernel, code) for kernel in (forked, anew)]
        assert said[0] == said[1] and said[0][1] == "[] True"
        loaded = [printed_by(kernel, "print('wave' in sys.modules)") for kernel in (forked, anew)]
        assert loaded == [["True"], ["False"]]
    finally:
        anew.stop()
        forked.stop()
    assert not forked.is_alive()
    with nursery.starts_kernels():
        left = RunningKernel(CURRENT_ENV_KERNEL_NAME, str(tmp_path), startup_timeout=execute.START_SECONDS)
    nursery.close()
    assert not psutil.pid_exists(left.km.provisioner.process.pid)


def test_a_kernel_that_can_not_start_ends_and_another_is_started(monkeypatch, tmp_path):
    """As where its port was taken meanwhile: it must not wait for itself, and the next one gets other ports."""
    monkeypatch.setattr(testing, "_nursery", nursery := Nursery(["wave"]))
    monkeypatch.setattr(testing, "_libraries", ["wave"])
    launch, tries = nursery.launch, []

    def launch_the_first_in_vain(command, **options):
        tries.append(command)
        return launch([*command, "--IPKernelApp.trio_loop=no"] if len(tries) == 1 else command, **options)

    monkeypatch.setattr(nursery, "launch", launch_the_first_in_vain)
    try:
        kernel = RunningKernel(CURRENT_ENV_KERNEL_NAME, str(tmp_path), startup_timeout=execute.START_SECONDS)
        assert printed_by(kernel, "print(1 + 1)") == ["2"] and len(tries) == 2
        kernel.stop()
    finally:
        nursery.close()


@pytest.mark.parametrize("used, ends", [(0.0, False), (700.0, True)])
def test_a_cells_limit_counts_the_kernels_time(monkeypatch, used, ends):
    """An hour by the clock in which the kernel got no processor ends no cell; so much processor time does."""
    clock, seconds = iter(range(0, 10**6, 600)), iter([0.0] + [used] * 100)
    monkeypatch.setattr(nbval_plugin.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(nbval_plugin, "kernel_seconds", lambda _: next(seconds))
    answers = iter([Empty, Empty, "message"])

    def get(self, stream, timeout):
        answer = next(answers)
        if answer is Empty:
            raise Empty
        return answer

    monkeypatch.setattr(nbval_plugin, "_get_message", get)
    kernel = SimpleNamespace(km=None, is_alive=lambda: True)
    if ends:
        with pytest.raises(Empty):
            nbval_plugin.get_message(kernel, "shell", timeout=600)
    else:
        assert nbval_plugin.get_message(kernel, "shell", timeout=600) == "message"


def test_recording_ends_a_cell_that_uses_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "CELL_SECONDS", 1)
    monkeypatch.setattr(execute, "chapter_names", lambda wanted: ["01_a"])
    nbformat.write(new_notebook(cells=[new_code_cell("while True: pass", id="endless")]), tmp_path / "01_a.ipynb")
    with pytest.raises(WorkbookError, match="stopped in the cell endless; nothing was recorded.*"):
        execute.execute("01", tmp_path)


def test_recording_runs_no_further_than_the_last_changed_cell(tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "chapter_names", lambda wanted: ["01_a"])
    cells = [new_code_cell(code, id=f"cell{i}") for i, code in enumerate(("x = 1", "print(x)", "1 / 0"))]
    cells[0].execution_count = cells[2].execution_count = 1
    cells[2].outputs = [new_output("stream", text="as it was\n")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "01_a.ipynb")
    execute.execute("01", tmp_path, changed=True)
    after = nbformat.read(tmp_path / "01_a.ipynb", 4).cells
    assert [c.outputs[0].text if c.outputs else "" for c in after] == ["", "1\n", "as it was\n"]
    assert "no cell has changed" in execute.execute("01", tmp_path, changed=True)[-1]


def test_a_chapter_without_code_is_said_and_passes(tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(execute, "run_pytest", lambda files, extra: ran.append(files) or 3)
    files = [str(tmp_path / name) for name in ("01_words.ipynb", "02_code.ipynb")]
    for file, new in zip(files, (nbformat.v4.new_markdown_cell, new_code_cell), strict=True):
        nbformat.write(new_notebook(cells=[new("1 + 1")]), file)
    monkeypatch.setattr(execute, "solved_notebooks", lambda wanted: files if wanted is None else files[:1])
    assert execute.nbval("01") == 0 and ran == []
    assert capsys.readouterr().out == "01_words has no code cell: there is nothing to run or to compare.\n"
    assert execute.nbval() == 3 and ran == [files[1:]]


# ---------------------------------------------------------------- named mistakes in the notebooks

SHOWN = """print("before", 0.5)
display({"text/plain": "shown"}, raw=True)
print("after")
6 * 7"""


def in_a_shell(*cells) -> list[str | None]:
    return in_a_child(lambda: [Shell.instance().difference(cell) for cell in cells])


def test_a_cell_gives_in_this_process_what_a_kernel_gives(tmp_path):
    outputs = [new_output("stream", name="stdout", text="before 0.5\n")]
    outputs += [new_output("display_data", data={"text/plain": "shown"})]
    outputs += [new_output("stream", name="stdout", text="after\n")]
    outputs += [new_output("execute_result", data={"text/plain": "42"})]
    cell = new_code_cell(SHOWN, outputs=outputs)
    swapped = new_code_cell(SHOWN, outputs=[outputs[1], outputs[0], *outputs[2:]])
    silent, failing = new_code_cell("6 * 7;"), new_code_cell("no_such_name")
    wide = new_code_cell("print(1.04)", outputs=[new_output("stream", name="stdout", text="1.00\n")])
    wide.metadata["tolerance"] = {"rtol": 0.1, "why": "a test"}
    said = in_a_shell(cell, swapped, silent, failing, wide)
    assert said[0] is None and said[1] and said[2] is None and said[4] is None
    assert said[3].startswith("NameError")


def test_a_child_answers_raises_or_dies():
    assert in_a_child(lambda: {"a": 1}) == {"a": 1}
    with pytest.raises(WorkbookError, match="ZeroDivisionError"):
        in_a_child(lambda: 1 / 0)
    with pytest.raises(ChildProcessError, match="no answer"):
        in_a_child(lambda: os._exit(3))


def test_a_chapter_from_which_children_are_forked_runs_on_one_thread(tmp_path, monkeypatch):
    """With more, a child that computes waits for ever for threads that only its parent has."""
    code = "import torch; print(torch.get_num_threads())"
    cell = new_code_cell(code, outputs=[new_output("stream", name="stdout", text="1\n")])
    nbformat.write(new_notebook(cells=[cell]), tmp_path / "01_a.ipynb")
    monkeypatch.setattr(mistakes, "SOLUTIONS", tmp_path)

    def on_two():
        torch.set_num_threads(2)
        return list(mistakes._exercises_met("01_a"))

    assert in_a_child(on_two) == []


# ---------------------------------------------------------------- what is too long for every change


def test_full_runs_again_only_what_did_not_pass_for_these_files(tmp_path, capfd):
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "a.py").write_text("1")
    parts = {"good": [sys.executable, "-c", "print('ran good')"], "bad": [sys.executable, "-c", "raise SystemExit(1)"]}

    def run():
        failed = full.test_full(parts, tmp_path / "cache" / "state.json", tmp_path)
        return failed, "ran good" in capfd.readouterr().out

    assert run() == (1, True)
    assert run() == (1, False)
    (tmp_path / "utils" / "a.py").write_text("2")
    assert run() == (1, True)
