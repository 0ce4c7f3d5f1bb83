"""The house's own order: who imports whom, how long a file may be, how wide a cell."""

import ast
import importlib
import re
from itertools import chain
from pathlib import Path

import pytest

from utils.workbook import CHAPTERS, README, ROOT, SOLUTIONS
from utils.workbook.build import read_notebook
from utils.workbook.chapters import table

UTILS = ROOT / "utils"
MODULES = sorted({module for row in table() for module in row.modules})
FOLDERS = sorted(p.name for p in UTILS.iterdir() if p.is_dir() and any(p.glob("*.py")))


def imported(path: Path) -> set[str]:
    """The names below `utils` that a file imports anywhere in it, as "checks.engine"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            here = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*here, *([node.module] if node.module else [])])
            found |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Call):  # importlib.import_module("utils.show")
            found |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return {name.removeprefix("utils.") for name in found if name.startswith("utils.")}


def wings(path: Path) -> set[str]:
    """The folders of `utils` that a file imports from."""
    return {name.split(".")[0] for name in imported(path)} & set(FOLDERS)


def test_chapter_modules_import_no_checks_no_views_and_no_machinery():
    for path in UTILS.glob("*.py"):
        assert not wings(path) & {"checks", "show", "workbook"}, path.name


@pytest.mark.parametrize("folder", [f for f in FOLDERS if f != "workbook"])
def test_nothing_imports_the_machinery(folder):
    for path in (UTILS / folder).rglob("*.py"):
        assert "workbook" not in wings(path), path.relative_to(ROOT)


# What only reads files: the learner's progress, and what a chapter's author wrote beside an exercise.
READ_ONLY = {
    "checks.progress",
    *(f"checks.progress.{name}" for name in ("WORK", "STATES", "load", "progress_folder")),
    "checks.hints",
    *(f"checks.hints.{name}" for name in ("read_gaps", "read_todo", "without_notes")),
}


def test_the_machinery_imports_no_teaching_code():
    for path in (UTILS / "workbook").rglob("*.py"):
        if path.name == "control_cell.py":  # runs in a notebook's kernel, where it listens to the claims
            continue
        names = {name.split(".")[0] for name in imported(path)}
        assert not names & {*MODULES, "show"}, path.name
        if path.name in ("draws.py", "mutants.py"):  # they judge the checks
            continue
        assert {name for name in imported(path) if name.startswith("checks.")} <= READ_ONLY, path.name


def test_checks_of_one_chapter_borrow_nothing_from_another():
    chapter_of = {module: row.number for row in table() for module in row.modules}
    for module, number in chapter_of.items():
        for name in imported(UTILS / "checks" / f"{module}.py"):
            if name.startswith("checks."):
                assert chapter_of.get(name.split(".")[1], number) == number, f"checks/{module}.py imports {name}"


def test_no_module_is_too_long_to_be_read():
    for path in UTILS.rglob("*.py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        most = 1_400 if path.parent.name == "checks" else 700
        assert lines <= most, f"{path.relative_to(ROOT)} has {lines} lines: cut it in two, each named for its subject"


@pytest.mark.parametrize("row", table(), ids=lambda row: row.name)
def test_no_cell_is_wider_than_the_page(row):
    notebooks = (read_notebook(folder / f"{row.name}.ipynb") for folder in (CHAPTERS, SOLUTIONS))
    for cell in chain.from_iterable(n.cells for n in notebooks):
        if cell.cell_type == "code":
            wide = [line for line in cell.source.splitlines() if len(line) > 88]
            assert not wide, f"{row.name}, cell {cell.id}: over 88 columns"


@pytest.mark.parametrize("module", MODULES)
def test_what_a_notebook_imports_at_once_holds_no_exercise(module):
    exercises = {e.target for row in table() for e in row.exercises}
    tree = ast.parse((UTILS / f"{module}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            assert not {f"utils.{module}.{name}" for name in ast.literal_eval(node.value)} & exercises


def test_what_the_table_for_those_from_arena_names_is_there():
    text = (ROOT / "docs" / "coming-from-arena.md").read_text(encoding="utf-8")
    named = re.findall(r"`(?:transformer_lens\.)?([a-z_]+)\.([A-Za-z_]+)", text)
    ours = [(module, name) for module, name in named if (UTILS / f"{module}.py").exists()]
    assert len(ours) >= 15
    assert not [(m, name) for m, name in ours if not hasattr(importlib.import_module(f"utils.{m}"), name)]


def test_the_readme_is_short_and_leads_to_what_is_there():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    for file in re.findall(r"(?:\]\(|src(?:set)?=\")(?!http|#)([^)\"#]+)", text):
        assert (ROOT / file).exists(), file
