"""Build and drift on a small course; bad input to each."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from small_course import SOURCE, cell

from utils.workbook import ROOT, WorkbookError, chapter_names
from utils.workbook.__main__ import main
from utils.workbook.build import build, build_chapter, drift, read_notebook, solution_code, stub_code, with_outputs

# ---------------------------------------------------------------- build


def test_learner_and_solved_notebook(course):
    source, chapters, solutions, _ = course
    mine, solved = (nbformat.read(d / "01_sample.ipynb", 4) for d in (chapters, solutions))
    for notebook in (mine, solved):
        nbformat.validate(notebook)
        ids = [c.id for c in notebook.cells]
        assert ids[ids.index("task-device") :][:4] == ["task-device", "about-device", "device", "check-device"]
        assert "●●○○○" in cell(notebook, "about-device").source
        assert cell(notebook, "check-device").source == "device = check(device)"
    assert cell(solved, "device").source == solution_code("utils.runtime.device").rstrip()
    stub = cell(mine, "device").source
    assert stub.startswith("def device() -> torch.device:") and stub.endswith("raise NotImplementedError")
    assert "Raises:" in stub and "os.environ" not in stub
    assert solved.cells[-3].metadata.tolerance == {"rtol": 0.1, "why": "an example"}


def test_an_exercises_heading_begins_a_cell_of_its_own(course):
    source, chapters, _, _ = course
    text = SOURCE.replace("### Exercise: a device", "More.\n\n### Exercise: a device\n\nThe task.")
    (source / "01_sample.md").write_text(text)
    build(*course[:3])
    assert cell(read_notebook(chapters / "01_sample.ipynb"), "task-device").source == (
        "### Exercise: a device\n\nThe task."
    )


def test_text_after_the_hints_is_a_cell_of_its_own(course):
    source, chapters, solutions, _ = course
    hints = "<details>\n<summary>1</summary>\n\nA.\n\n</details>\n\n<details>\n<summary>2</summary>\n\nB.\n\n</details>"
    text = SOURCE.replace("More text.", f"{hints}\n\nMore text.").replace("Some text.", f"Some text.\n\n{hints}")
    (source / "01_sample.md").write_text(text)
    build(source, chapters, solutions)
    for folder in (chapters, solutions):
        texts = [c.source for c in read_notebook(folder / "01_sample.ipynb").cells if c.cell_type == "markdown"]
        assert texts[1].endswith(f"Some text.\n\n{hints}")  # nothing follows: no empty cell
        assert texts[-3:-1] == [hints, "More text."]


def test_second_build_writes_nothing(course):
    assert build(*course[:3]) == []


def test_changed_word_keeps_other_cells_and_outputs(course):
    source, chapters, solutions, _ = course
    path = solutions / "01_sample.ipynb"
    solved = nbformat.read(path, 4)
    before = [c.id for c in solved.cells]
    for c in solved.cells:
        if c.cell_type == "code":
            c.execution_count, c.outputs = 1, [nbformat.v4.new_output("stream", text="1\n")]
    path.write_text(nbformat.writes(solved) + "\n")
    (source / "01_sample.md").write_text(SOURCE.replace("Some text", "Other text").replace("x = 1", "x = 2"))
    assert len(build(source, chapters, solutions)) == 2
    after = nbformat.read(path, 4)
    assert sum(a != b for a, b in zip(before, [c.id for c in after.cells], strict=True)) == 2
    ran = {c.source: c.execution_count for c in after.cells if c.cell_type == "code"}
    assert ran["x = 2"] is None and ran["print(x)"] == 1
    said = " ".join(drift(source, chapters, solutions))
    assert ": not executed since it changed" in said
    assert "the cell check-device and 1 more: a check that did not pass" in said


def test_the_table_of_predictions_is_recorded_anew_where_one_has_changed():
    def notebook(answer):
        cells = {"a": 'expect("n", ...)', "b": f'grade("n", {answer})', "c": "guesses()", "d": "x = 1"}
        return new_notebook(cells=[new_code_cell(code, id=id, execution_count=1) for id, code in cells.items()])

    for answer, kept in ((4, [1, 1, 1, 1]), (5, [1, None, None, 1])):
        new = notebook(answer)
        for c in new.cells:
            c.execution_count = None
        assert [c.execution_count for c in with_outputs(new, notebook(4)).cells] == kept


def test_drift_names_what_is_wrong(course):
    source, chapters, solutions, _ = course
    (chapters / "02_lost.ipynb").write_text((chapters / "01_sample.ipynb").read_text())
    text = (chapters / "01_sample.ipynb").read_text()
    (chapters / "01_sample.ipynb").write_text(text.replace("Some text", "Edited by hand"))
    said = "\n".join(drift(source, chapters, solutions))
    assert "chapters/01_sample.ipynb differs from its source" in said
    assert "chapters/02_lost.ipynb has no source" in said


@pytest.mark.parametrize(
    "old, new, sentence",
    [
        ("utils.runtime.device", "utils.runtime.nothing", "'utils.runtime.nothing' is unknown"),
        ("utils.runtime.device", "utils.no_module.f", "'utils.no_module.f' is unknown"),
        ("difficulty=2", "difficulty=6", "difficulty= from 1 to 5"),
        ("minutes=5", "", "needs minutes="),
        ('why="an example"', "", "without a reason"),
        ("rtol=0.1", 'rtol="much"', "rtol='much': write a number above 0"),
        ("rtol=0.1", "counts=1.5", "counts=1.5: write a whole number above 0"),
        ("rtol=0.1", "atol=0", "atol=0: write a number above 0"),
        ("rtol=0.1", "coarse=true", "coarse without a reason"),
        ("### Exercise: a device", "", "no heading: write `### Exercise: what it is`"),
        ("minutes=5\n", "minutes=5\ndef device(): pass\n", "must be empty"),
        (
            "More text.",
            '### Exercise: again\n\n```python exercise="utils.runtime.device" difficulty=1 importance=1 minutes=1\n```',
            "two exercises are called 'device'",
        ),
    ],
)
def test_bad_source_is_named_and_nothing_written(course, old, new, sentence):
    source, chapters, solutions, _ = course
    before = (chapters / "01_sample.ipynb").read_text()
    (source / "01_sample.md").write_text(SOURCE.replace(old, new))
    with pytest.raises(WorkbookError, match=sentence):
        build(source, chapters, solutions)
    assert (chapters / "01_sample.ipynb").read_text() == before


CLASS = '''class Box:
    """A box."""

    def __init__(self, side: float):
        self.side = side

    def area(self) -> float:
        """Its area."""
        # the sides are equal
        return self.side**2

    @property
    def edge(self) -> float:
        # one of four
        return self.side
'''


def test_stub_of_a_class():
    stub = stub_code(CLASS)
    assert "self.side = side" in stub and stub.count("raise NotImplementedError") == 2
    assert "# the sides" not in stub and "# one of four" not in stub and '"""Its area."""' in stub
    assert stub_code(CLASS, todo=["__init__"]).count("raise NotImplementedError") == 1
    assert "# the sides are equal" in stub_code(CLASS, guide=True)
    with pytest.raises(WorkbookError, match="no method 'volume'"):
        stub_code(CLASS, todo=["volume"])


def test_chapter_names(course):
    for wanted in ("01_sample", "01", "1", "sample", "chapters/01_sample.ipynb", None):
        assert chapter_names(wanted) == ["01_sample"]
    with pytest.raises(WorkbookError, match="There is no chapter 'foo'. The chapters are: 01_sample."):
        chapter_names("foo")


# ---------------------------------------------------------------- the commands


def test_unknown_chapter_and_command(monkeypatch, capsys):
    for command in ("build", "execute", "nbval", "update"):
        monkeypatch.setattr(sys, "argv", ["utils.workbook", command, "no_such_chapter"])
        assert main() == 1
        said = capsys.readouterr().err
        assert "There is no chapter 'no_such_chapter'" in said and "Traceback" not in said
    done = subprocess.run([sys.executable, "-m", "utils.workbook", "dance"], cwd=ROOT, capture_output=True)
    assert done.returncode == 2


def test_read_notebook_of_nothing(tmp_path):
    with pytest.raises(WorkbookError, match="is not there"):
        read_notebook(tmp_path / "none.ipynb")


def test_learner_notebooks_carry_no_outputs():
    for path in Path(ROOT / "chapters").glob("*.ipynb"):
        notebook = json.loads(path.read_text())
        assert not any(c.get("outputs") for c in notebook["cells"]), path.name


def test_build_chapter_is_deterministic(course):
    path = course[0] / "01_sample.md"
    assert nbformat.writes(build_chapter(path, True)) == nbformat.writes(build_chapter(path, True))
