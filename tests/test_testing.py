"""The one run of tests and notebooks: what shares a process, what comes first, what is counted, what is resumed."""

import json
import subprocess
import sys

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from utils.workbook import ROOT, full, mistakes, testing
from utils.workbook.mistakes import Shell, in_a_child
from utils.workbook.nbval_plugin import get_message

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


def test_notebooks_run_first_and_the_kernels_time_is_counted(tmp_path):
    for name, burn in {"a_short": "1", "b_long": BURN}.items():
        cells = [new_code_cell(source, execution_count=1, id=f"cell-{i}") for i, source in enumerate((burn, "2;"))]
        if name == "a_short":
            cells[0].outputs = [new_output("execute_result", data={"text/plain": "1"})]
        nbformat.write(new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
    (tmp_path / "test_unit.py").write_text("def test_one(): pass\n\ndef test_two(): assert 1 == 2\n")
    seconds = tmp_path / "seconds.json"
    command = [sys.executable, "-m", "pytest", "-p", "utils.workbook.nbval_plugin", "-p", "utils.workbook.testing"]
    command += ["--nbval", "--nbval-current-env", "-n", "2", "--no-loadscope-reorder", "-v", "-c", "/dev/null"]
    command += [f"--rootdir={tmp_path}", str(tmp_path)]
    run = {"cwd": ROOT, "capture_output": True, "text": True}
    env = {"WORKBOOK_TEST_SECONDS": str(seconds), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env={**__import__("os").environ, **env}, **run)
    assert "5 passed" in done.stdout and "1 failed" in done.stdout, done.stdout
    assert "assert 1 == 2" in done.stdout
    counted = json.loads(seconds.read_text())["this run"]
    assert counted["b_long.ipynb"] > counted["a_short.ipynb"] + 0.3
    assert set(counted) == {"a_short.ipynb", "b_long.ipynb", "test_unit.py"}
