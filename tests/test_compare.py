"""The comparison's self-test: a notebook whose wrong cells, and no others, must fail under nbval."""

import re
import subprocess
import sys

import nbformat
import numpy as np
import plotly.graph_objects as go
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from utils import show
from utils.workbook import ROOT
from utils.workbook.compare import LIVE_VIEW, PLOTLY, differences


def printed(text):
    return [new_output("stream", name="stdout", text=text)]


def shown(kind, value):
    return [new_output("display_data", data={kind: value})]


def figure(values, title="a rise", dtype=np.float32):
    fig = go.Figure(go.Scatter(y=np.array(values, dtype=dtype)), layout=dict(title=title, template="none"))
    return shown(PLOTLY, fig.to_dict())


FIGURE = """import numpy as np, plotly.graph_objects as go
from utils import show
go.Figure(go.Scatter(y=np.array([1, 2.5], dtype=np.float32)), layout=dict(title="a rise", template="none")).show()"""

# (source, recorded outputs, must it pass?)
CELLS = {
    "equal": ("print('loss 0.123456, 3 heads')", printed("loss 0.123456, 3 heads\n"), True),
    "float within tolerance": ("print('loss 0.123456')", printed("loss 0.123457\n"), True),
    "one digit of a float": ("print('loss 0.123456')", printed("loss 0.133456\n"), False),
    "large integer, last digit": ("print(50000)", printed("50001\n"), False),
    "a word": ("print('loss 0.5')", printed("lass 0.5\n"), False),
    "sign": ("print(-0.5)", printed("0.5\n"), False),
    "nan is nan": ("print(float('nan'))", printed("nan\n"), True),
    "nan for a number": ("print(0.5)", printed("nan\n"), False),
    "version numbers are words": ("print('1.2.3')", printed("1.2.4\n"), False),
    "line missing": ("print('a')", printed("a\nb\n"), False),
    "output missing": ("pass", printed("a\n"), False),
    "output new": ("print('a')", [], False),
    "semicolon shows nothing": ("1;", [], True),
    "address": ("object()", shown("text/plain", "<object at 0x7f0000000000>"), True),
    "device": ("print(\"tensor(1.5, device='cuda:0')\")", printed("tensor(1.5)\n"), True),
    "stderr": ("import sys; print('warning', file=sys.stderr)", [], True),
    "progress bar": ("from tqdm.auto import tqdm\nfor _ in tqdm(range(3)): pass", [], True),
    "figure": (FIGURE, figure([1, 2.5]), True),
    "figure: value": (FIGURE, figure([1, 2.6]), False),
    "figure: title": (FIGURE, figure([1, 2.5], title="a fall"), False),
    "figure: length": (FIGURE, figure([1, 2.5, 3]), False),
    "static HTML": (
        "from IPython.display import HTML; HTML('<b>x 0.5</b>')",
        shown("text/html", "<b>x 0.6</b>"),
        False,
    ),
    "live view": (
        "from utils import show; show._display_live('<script>1</script>')",
        shown("text/plain", LIVE_VIEW),
        True,
    ),
    "own tolerance": ("print(1.04)", printed("1.0\n"), True),
    "an error": ("1 / 0", [], False),
}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nbval")
    cells = [
        new_code_cell(source, outputs=outputs, execution_count=1, id=f"cell-{i}")
        for i, (source, outputs, _) in enumerate(CELLS.values())
    ]
    cells[list(CELLS).index("own tolerance")].metadata["tolerance"] = {"rtol": 0.1, "why": "a test"}
    nbformat.write(new_notebook(cells=cells), folder / "self_test.ipynb")
    return run_nbval(folder / "self_test.ipynb")


def run_nbval(path):
    command = [sys.executable, "-m", "pytest", "-p", "utils.workbook.nbval_plugin", "--nbval", "--nbval-current-env"]
    command += ["-p", "no:cacheprovider", "-rA", "-c", "/dev/null", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    states = re.findall(r"^(PASSED|FAILED) .*::Cell (\d+)", done.stdout, re.M)
    return {int(n): state == "PASSED" for state, n in states}, done.stdout


@pytest.mark.parametrize("name", CELLS)
def test_nbval_fails_exactly_in_the_wrong_cells(name, verdicts):
    passed, output = verdicts
    assert passed[list(CELLS).index(name)] == CELLS[name][2], output[-3000:]


def test_report_names_cell_and_value(verdicts):
    output = verdicts[1]
    index = list(CELLS).index("figure: value")
    assert f"cell cell-{index}: output 0 (figure).data[0].y[1]: 1 of 2 values differ, first 2.5, recorded 2.6" in output


def test_dead_kernel_fails_at_once(tmp_path):
    cells = [new_code_cell("import os; os._exit(1)", execution_count=1, id="dies")]
    nbformat.write(new_notebook(cells=cells), tmp_path / "dies.ipynb")
    passed, output = run_nbval(tmp_path / "dies.ipynb")
    assert passed == {0: False}, output


def test_live_view_has_one_name():
    assert show.LIVE_VIEW == LIVE_VIEW


def test_integer_arrays_are_exact():
    assert differences(figure([5000], dtype=np.int16), figure([5001], dtype=np.int16))
    assert not differences(figure([5000.0]), figure([5001.0]))
