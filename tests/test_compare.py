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
from utils.workbook.compare import LIVE_VIEW, MEASURED, PLOTLY, coarse_numbers, differences


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

CLAIM = "from utils import show; show.claim('share', 0.99996, 0.5, 1, control={'none': 0.3})"
TIMED = "from utils import show\nwith show.timed('a step'): pass"
TOLERANCES = {
    "own tolerance": {"rtol": 0.1, "why": "a test"},
    "own slack of counts": {"counts": 2, "why": "a test"},
    "beyond the slack of counts": {"counts": 2, "why": "a test"},
    "few digits, with a reason": {"coarse": "a test"},
}

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
    "own slack of counts": ("print(297, 'bins')", printed("296 bins\n"), True),
    "beyond the slack of counts": ("print(299, 'bins')", printed("296 bins\n"), False),
    "few digits, with a reason": ("print('share 0.03')", printed("share 0.04\n"), True),
    "few digits, without": ("print('share 0.03')", printed("share 0.04\n"), False),
    "one unit of the last place": ("print('share 0.61')", printed("share 0.62\n"), True),
    "two units of the last place": ("print('share 0.61')", printed("share 0.63\n"), False),
    "a claim": (CLAIM, printed("share: 1   (control: none: 0.30)\n"), True),
    "another claim": (CLAIM, printed("share: 0.99   (control: none: 0.30)\n"), False),
    "a time": (TIMED, shown("text/plain", f"a step: {MEASURED}"), True),
    "a time is no print": (TIMED, printed("a step: 3 ms"), False),
    "an error": ("1 / 0", [], False),
}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nbval")
    cells = [
        new_code_cell(source, outputs=outputs, execution_count=1, id=f"cell-{i}")
        for i, (source, outputs, _) in enumerate(CELLS.values())
    ]
    for name, tolerance in TOLERANCES.items():
        cells[list(CELLS).index(name)].metadata["tolerance"] = tolerance
    nbformat.write(new_notebook(cells=cells), folder / "self_test.ipynb")
    dies = [new_code_cell("import os; os._exit(1)", execution_count=1, id="dies")]
    nbformat.write(new_notebook(cells=dies), folder / "dies.ipynb")
    command = [sys.executable, "-m", "pytest", "-p", "utils.workbook.nbval_plugin", "--nbval", "--nbval-current-env"]
    command += ["-p", "no:cacheprovider", "-rA", "-c", "/dev/null", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    states = re.findall(r"^(PASSED|FAILED) .*/(\w+)\.ipynb::Cell (\d+)", done.stdout, re.M)
    return {(notebook, int(n)): state == "PASSED" for state, notebook, n in states}, done.stdout


@pytest.mark.parametrize("name", CELLS)
def test_nbval_fails_exactly_in_the_wrong_cells(name, verdicts):
    passed, output = verdicts
    assert passed["self_test", list(CELLS).index(name)] == CELLS[name][2], output[-3000:]


def test_report_names_cell_and_value(verdicts):
    output = verdicts[1]
    index = list(CELLS).index("figure: value")
    assert f"cell cell-{index}: output 0 (figure).data[0].y[1]: 1 of 2 values differ, first 2.5, recorded 2.6" in output


def test_dead_kernel_fails_at_once(verdicts):
    passed, output = verdicts
    assert passed["dies", 0] is False, output


def test_placeholders_have_one_name():
    assert show.LIVE_VIEW == LIVE_VIEW and show.MEASURED == MEASURED


def test_integer_arrays_are_exact_but_for_stated_slack():
    counts = [figure([n], dtype=np.int16) for n in (5000, 5001, 5003)]
    assert differences(counts[0], counts[1])
    assert not differences(counts[1], counts[2], counts=2) and differences(counts[0], counts[2], counts=2)
    assert not differences(figure([5000.0]), figure([5001.0]))


def test_slack_of_counts_is_for_data_not_for_layout_and_not_for_truth():
    def bars(heights, height, shown=True):
        return shown_figure({"data": [{"y": heights, "visible": shown}], "layout": {"height": height}})

    def shown_figure(content):
        return shown(PLOTLY, content)

    assert not differences(bars([409, 3], 300), bars([410, 3], 300), counts=1)
    assert differences(bars([409, 3], 300), bars([409, 3], 301), counts=1)
    assert differences(bars([409], 300, True), bars([409], 300, False), counts=1)
    assert differences(bars([409, 3], 300), bars([410, 3], 300))


# (new, recorded, do they agree?)
NUMBERS = [
    ("loss 0.9999", "loss 1", True),  # a float without a point, known by the other side
    ("loss 1", "loss 1.000", True),
    ("loss 2", "loss 1.000", False),
    ("144", "144.0", True),
    ("error 0", "error 1e-09", True),
    ("error 0", "error 0.4", False),
    ("tensor(2.)", "tensor(1.9999)", True),
    ("tensor(2.)", "tensor(3.)", False),
    ("[1. 2.]", "[1. 3.]", False),
    ("tensor([0., 1.])", "tensor([1.0000e-07, 1.0000e+00])", True),
    ("tensor([ 0.5012, -0.3000])", "tensor([0.5012, 0.3000])", False),
    ("tensor([ 0.0000, 0.7000])", "tensor([-0.0000,  0.7000])", True),
    ("tensor([[0.51, 0.62],\n        [0.71, 0.82]])", "tensor([[0.51, 0.62], [0.71, 0.82]])", True),
    ("tensor([[0.51, 0.62],\n        [0.71, 0.86]])", "tensor([[0.51, 0.62], [0.71, 0.82]])", False),
    ("in all 12. Then", "in all 13. Then", False),  # a sentence's end, no array
    ("5,000 tokens", "5,001 tokens", False),  # counts
    ("5_000", "5_001", False),
    ("5,000.0 tokens", "5,001.0 tokens", True),
    ("rise 12,345.6", "rise 12,545.6", False),
    ("[1,2,3]", "[1,2,4]", False),
    ("1.234e-03", "1.235e-03", True),
    ("1.23e-03", "1.27e-03", False),
    ("1.2e+05", "1.3e+05", False),
    ("1e+01", "9.9995", True),
    ("1e+01", "2e+01", False),
    ("3e-06", "2e-06", True),  # below the absolute tolerance
    ("share 67%", "share 68%", True),  # a rounded share
    ("share 67 %", "share 69 %", False),
    ("67 of 100", "68 of 100", False),
    ("rise 12.3 %", "rise 12.4 %", True),
    ("rise −0.512", "rise -0.512", True),
    ("rise −0.512", "rise 0.512", False),
    ("rise +0.512", "rise 0.512", True),
    ("from 0.51-0.62", "from 0.51-0.62", True),
    ("0.00 of the rest", "0.01 of the rest", True),
    ("0.00 of the rest", "0.02 of the rest", False),
    ("head 1.6", "head 1.7", False),
    ("head 0.0", "head 0.1", False),
    ("0.5 of them", "0.6 of them", False),  # by `.4g`: as printed, one unit; but 20 % of it
    ("0.5 of them", "0.5003 of them", True),
    ("0.49 of them", "0.50 of them", True),
    ("L1H6", "L1H7", False),
    ("blocks.0.hook", "blocks.1.hook", False),
    ("10³ tokens", "10² tokens", False),
    ("version 1.2.3", "version 1.2.4", False),
    ("a nan", "a 0.5", False),
    ("inf", "nan", False),
    ("inf", "-inf", False),
    ("| share | 0.3123 | 0 to 1 | shuffled: 0.033 |", "| share | 0.3124 | 0 to 1 | shuffled: 0.033 |", True),
    ("| share | 0.3123 | 0 to 1 | shuffled: 0.033 |", "| share | 0.3123 | 0 to 2 | shuffled: 0.033 |", False),
    ("| share | 1.000 | 0 to 1 |", "| share | 1 | 0 to 1 |", True),
    ("table   3   0.51", "table  13   0.51", False),
    ("table    9.99", "table   10.00", True),  # a number's width
    ("1 2", "12", False),
    ("#", "5", False),
]


@pytest.mark.parametrize("new, before, agree", NUMBERS)
def test_what_a_printed_number_means(new, before, agree):
    title = [{"data": [], "layout": {"annotations": [{"text": text}]}} for text in (new, before)]
    for kind in (printed, lambda text: shown("text/markdown", text), lambda text: shown("text/html", f"<b>{text}</b>")):
        assert (not differences(kind(new), kind(before))) == agree
        assert (not differences(kind(before), kind(new))) == agree
    assert (not differences(shown(PLOTLY, title[0]), shown(PLOTLY, title[1]))) == agree


def test_plain_lists_and_typed_arrays_are_the_same_data():
    typed = figure([1, 2.5])
    plain = shown(PLOTLY, {**typed[0].data[PLOTLY], "data": [{"type": "scatter", "y": [1.0, 2.5]}]})
    assert not differences(typed, plain)
    plain[0].data[PLOTLY]["data"][0]["y"][1] = 2.6
    assert differences(typed, plain)


def test_a_label_may_stand_on_the_other_side():
    above, below = (
        [dict(shown(PLOTLY, {"data": [{"textposition": side, "text": ["a"]}]})[0])] for side in ("top", "bottom")
    )
    assert not differences(above, below)
    below[0]["data"][PLOTLY]["data"][0]["text"] = ["b"]
    assert differences(above, below)


def test_some_dots_may_move_but_none_may_come_or_go():
    before, ten = figure([*range(20)]), [*range(20)]
    ten[3], ten[4] = 4.5, 9.0
    assert differences(figure(ten), before) and not differences(figure(ten), before, moved=0.1)
    assert differences(figure(ten), before, moved=0.09)
    assert differences(figure([*range(19)]), before, moved=0.9)
    assert differences(printed("1.5 2.5\n"), printed("1.5 3.5\n"), moved=0.9), "printed numbers don't move"


# ---------------------------------------------------------------- too few digits


def coarse(*cells):
    """(source, output, tolerance) of each cell -> the numbers listed."""
    made = []
    for source, outputs, *tolerance in cells:
        outputs = printed(outputs) if isinstance(outputs, str) else outputs
        made.append(new_code_cell(source, outputs=outputs, metadata={"tolerance": dict(*tolerance)}))
    return [said.rpartition(" of ")[2] for said in coarse_numbers(new_notebook(cells=made))]


COARSE = {
    "two digits are few": ("f()", "shares 0.03, 0.49 and -0.12, not 0.51", "0.03, 0.49, -0.12"),
    "shares in percent": ("f()", "12 % or 3.1% or 67%, 95.1 %", "12 %, 3.1%"),
    "exponents": ("f()", "1e-04, 1.2e+03, 1.23e+03", "1e-04, 1.2e+03"),
    "zero, whole numbers, words, nothing": ("f()", "0.00 3 12,345 L1H6 1.2.3 nan inf [2.]", None),
    "below the absolute tolerance": ("f()", "error 3e-06", None),
    "a constant": ("f(0.03, -0.12)", "p = 0.03, q = -0.12", None),
    "a constant in a string": ("print('up to 0.3')", "up to 0.3", None),
    "a constant as a share": ("f(0.05)", "5 % and 6 %", "6 %"),
    "not the author's constant": ("f(0.03)", "p = 0.03, r = 0.04", "0.04"),
    "the closing table": ("show.findings()", "| share | 0.03 |", None),
    "a head's name": ("print(f'{layer}.{head}')", "1.6", None),
    "no head's name": ("print(f'{layer}.{head}')", "-1.6 and 0.07", "-1.6, 0.07"),
}


@pytest.mark.parametrize("name", COARSE)
def test_numbers_with_too_few_digits_are_listed(name):
    source, output, listed = COARSE[name]
    assert coarse((source, output)) == ([listed] if listed else [])


def test_definitions_of_used_names_hold_constants_and_names_of_heads():
    assert coarse(("ps = [0.03, 0.1]", ""), ("f(ps)", "0.03 0.1 0.2")) == ["0.2"]
    assert coarse(("def run():\n    return 0.03", ""), ("run()", "0.03 0.04")) == ["0.04"]
    assert coarse(("def name(l, h):\n    return f'{l}.{h}'", ""), ("x = name(1, 6)", ""), ("x", "1.6")) == []
    assert coarse(("p = 0.03", ""), ("q = f(p)", ""), ("print(q)", "0.03")) == ["0.03"]


def test_own_tolerance_or_a_reason_settles_few_digits():
    assert coarse(("f()", "0.43 0.03", {"rtol": 0.1})) == ["0.03"]
    assert coarse(("f()", "0.43 0.03", {"rtol": 0.1, "atol": 0.02})) == []
    assert coarse(("f()", "0.03", {"coarse": "a label"})) == []


def test_strings_of_figures_and_pages_count_but_not_their_looks():
    content = {"data": [{"name": "share 0.03", "marker": {"color": "rgba(1, 2, 3, 0.07)"}, "y": [0.1, 0.2]}]}
    assert coarse(("f()", shown(PLOTLY, content))) == ["0.03"]
    page = '<span title="token 3: 0.04" style="opacity: 0.01; color: rgba(1, 2, 3, 0.07)">the share is 0.05</span>'
    assert coarse(("f()", shown("text/html", page))) == ["0.04, 0.05"]
