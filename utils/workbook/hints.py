"""The last hint of each exercise: code with gaps `...`, which runs and is right once they are filled.

What fills each gap stands beside it in the chapter's source (`utils.checks.hints.GAPS`). `make test-full` runs every
notebook with the last hints in place of the solutions.
"""

import ast
import textwrap
from collections.abc import Callable

import nbformat

from utils.checks.hints import read_gaps, read_todo
from utils.workbook import ROOT, WorkbookError
from utils.workbook.answers import defined
from utils.workbook.build import read_notebook, solution_code, stub_code
from utils.workbook.execute import run_pytest, solved_notebooks
from utils.workbook.files import write_whole

FOLDER = ROOT / ".cache" / "hints"


def filled(target: str) -> str:
    """The source of an exercise whose body is the last hint's code, its gaps filled, and nothing else.

    Of a class the hint holds the methods to write, which then replace the stub's.

    Raises:
        WorkbookError: the code does not parse, has no gap, another number of gaps than stand beside it, or one that is
            no expression.
    """
    code, fills = read_gaps(target)
    try:
        gaps = sorted(
            (node.lineno, node.col_offset)
            for node in ast.walk(ast.parse(code))
            if isinstance(node, ast.Constant) and node.value is Ellipsis
        )
        for fill in fills:
            ast.parse(f"x[{fill}]", mode="eval")
    except SyntaxError as error:
        raise WorkbookError(f"{target}: the last hint is no code: {error}") from None
    if not gaps or len(gaps) != len(fills):
        raise WorkbookError(f"{target}: the last hint has {len(gaps)} gaps, and {len(fills)} expressions beside it")
    lines = [line.encode() for line in code.splitlines()]
    for (line, column), fill in reversed(list(zip(gaps, fills, strict=True))):
        text = lines[line - 1]
        lines[line - 1] = text[:column] + fill.encode() + text[column + len("...") :]
    body = textwrap.indent("\n".join(line.decode() for line in lines), "    ") + "\n"
    given = solution_code(target)
    if isinstance(ast.parse(given).body[0], ast.ClassDef):
        return stub_code(given, read_todo(target) or None) + body
    head, _, _ = stub_code(given).rpartition("    raise NotImplementedError")
    return head + body


def answer(target: str) -> Callable:
    """`filled` as a function or class, in the names of the module that its solution stands in."""
    return defined(filled(target), target, "last hint")


def notebooks(wanted: str | None = None) -> int:
    """Run the solved notebooks with the last hints, filled, in place of the solutions, and compare what they give with
    what is recorded; returns pytest's exit code.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    files = []
    for name in solved_notebooks(wanted):
        notebook = read_notebook(ROOT / name)
        for cell in notebook.cells:
            if target := cell.metadata.get("exercise"):
                cell.source = filled(target).rstrip()
        file = FOLDER / (ROOT / name).name
        write_whole(file, nbformat.writes(notebook) + "\n")
        files.append(str(file.relative_to(ROOT)))
    return run_pytest(files)
