"""The table of chapters: read from the sources' first lines, true of the files, and clear about what is wrong."""

import ast
import importlib
import re

import pytest

from utils.workbook import SOURCE, WorkbookError
from utils.workbook.build import build, drift, read_notebook
from utils.workbook.chapters import MODELS, exercise, read_chapter, source_cells, table


def test_rows_are_true_of_the_course():
    rows = table()
    assert [r.name for r in rows] == sorted(p.stem for p in SOURCE.glob("*.md"))
    for row in rows:
        assert not row.exercises or {e.target.split(".")[1] for e in row.exercises} == set(row.modules)
        for module in row.modules:
            assert importlib.util.find_spec(f"utils.{module}") and importlib.util.find_spec(f"utils.checks.{module}")
        assert not row.exercises or 0 < row.minutes(core=True) <= row.minutes()


def code_of(row):
    return [c.source for c in source_cells(row.path)[1:] if c.cell_type == "code" and not c.metadata.get("exercise")]


@pytest.mark.parametrize("row", table(), ids=lambda row: row.number)
def test_a_chapter_that_loads_a_model_says_of_which_it_is_true_and_settles_it_first(row):
    first, *others = code_of(row)
    settled = f'\nsettle_models("{row.number}")'
    if row.models == "none":
        assert not re.search(r"\bload(_\w+)?\(\"", "\n".join([first, *others])) and "settle_models" not in first
    else:
        assert first.count(settled) == 1 and not re.search(r"= load", first.partition(settled)[0])
        assert "settle_models(" not in "\n".join(others)


def is_rounding(bound):
    return any(isinstance(n, ast.Constant) and type(n.value) is float and n.value <= 1e-3 for n in ast.walk(bound))


@pytest.mark.parametrize("row", table(), ids=lambda row: row.number)
def test_a_plain_assert_compares_for_equality_so_that_no_model_can_break_it(row):
    ordered = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
    for code in code_of(row):
        asserts = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Assert)]
        for node in (part for found in asserts for part in ast.walk(found)):
            if isinstance(node, ast.Compare) and any(isinstance(op, ordered) for op in node.ops):
                assert is_rounding(node.comparators[-1]), f"make it a claim: {ast.unparse(node)}"


def test_an_unknown_word_for_the_models_is_refused(tmp_path):
    file = written(tmp_path, "01_a", "---\nmodules: [a]\nmodels: mine\nneeds: []\n---\n\n# 01 · A\n")
    with pytest.raises(WorkbookError, match="states models: 'mine'.*any, dual, own"):
        read_chapter(file)
    assert {row.models for row in table()} == {*MODELS}


def test_core_comes_from_importance_unless_the_marker_says_otherwise():
    def core(**more):
        return exercise({"exercise": "utils.a.b", "minutes": 5, **more}).core

    assert core(importance=4) and not core(importance=3) and not core()
    assert core(importance=1, core=True) and not core(importance=5, core=False)
    with pytest.raises(WorkbookError, match="core='false': write true or false"):
        core(core="false")


def written(folder, name, text):
    (folder / f"{name}.md").write_text(text)
    return folder / f"{name}.md"


@pytest.mark.parametrize(
    "text, said",
    [
        ("# 01 · No front matter\n", "must begin with its front matter"),
        ("---\nmodules: [a]\n---\n\n# 01 · No needs\n", "must begin with its front matter"),
        ("---\nmodules: [a\nneeds: []\n---\n\n# 01 · Not YAML\n", "must begin with its front matter"),
        ("---\n- a\n---\n\n# 01 · A list\n", "must begin with its front matter"),
        ("---\nmodules: [a]\nneeds: [2]\n---\n\n# 01 · No quotes\n", 'needs: \\["02"]'),
        ('---\nmodules: [a]\nneeds: "02"\n---\n\n# 01 · No list\n', 'needs: \\["02"]'),
        ("---\nmodules: [a]\nneeds: []\n---\n\nNo heading\n", "must begin with its front matter"),
        ("---\nmodules: [a]\nneeds: []\n---\n\n# 02 · Another number\n", "the same number"),
    ],
)
def test_a_wrong_beginning_is_named(text, said, tmp_path):
    with pytest.raises(WorkbookError, match=said):
        read_chapter(written(tmp_path, "01_sample", text))


def test_what_a_chapter_needs_comes_before_it(tmp_path):
    written(tmp_path, "01_a", '---\nmodules: []\nneeds: ["02"]\n---\n\n# 01 · A\n')
    written(tmp_path, "02_b", "---\nmodules: []\nneeds: []\n---\n\n# 02 · B\n")
    with pytest.raises(WorkbookError, match="01_a.md needs '02'"):
        table(tmp_path)


def test_a_number_is_given_once(tmp_path):
    for name in ("01_a", "01_b"):
        written(tmp_path, name, "---\nmodules: []\nneeds: []\n---\n\n# 01 · A\n")
    with pytest.raises(WorkbookError, match="01_a.md and 01_b.md have the same number"):
        table(tmp_path)


def test_an_exercise_of_a_module_that_is_not_named(tmp_path):
    marker = '```python exercise="utils.runtime.device" difficulty=1 importance=1 minutes=5\n```\n'
    written(tmp_path, "01_a", f"---\nmodules: [other]\nneeds: []\n---\n\n# 01 · A\n\n{marker}")
    with pytest.raises(WorkbookError, match="utils.runtime.device is not among"):
        table(tmp_path)


def test_an_empty_chapter_can_be_added(tmp_path):
    folders = [tmp_path / n for n in ("source", "chapters", "solutions")]
    folders[0].mkdir()
    written(folders[0], "12_new", "---\nmodules: [new]\nneeds: []\n---\n\n# 12 · New\n\nNothing yet.\n")
    assert len(build(*folders)) == 3 and drift(*folders) == []
    assert [c.source for c in read_notebook(folders[1] / "12_new.ipynb").cells][1:-1] == ["# 12 · New\n\nNothing yet."]
