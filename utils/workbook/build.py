"""From chapters/source/*.md: chapters/*.ipynb (stubs, no outputs) and solutions/*.ipynb (solved, outputs kept)."""

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from utils.checks.hints import without_notes
from utils.workbook import CHAPTERS, README, ROOT, SOLUTIONS, SOURCE, WorkbookError, chapter_names, diagrams, reference
from utils.workbook.chapters import MODELS, TASK, as_json, exercise, read_chapter, source_cells, table
from utils.workbook.compare import coarse_numbers
from utils.workbook.files import write_whole
from utils.workbook.merge import digest
from utils.workbook.predictions import calls, folded, predictions
from utils.workbook.signposts import with_signposts
from utils.workbook.ties import Places, stale

KERNEL = {
    "kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"},
    "language_info": {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"},
}
LARGEST = 1_000_000  # bytes of a solved notebook: larger ones are slow to open and to review
# In a cell's fence, with a reason in `why`.
TOLERANCES = {"rtol": (int, float), "atol": (int, float), "counts": (int,), "moved": (float,)}
# In a cell of its own, what follows hints or an answer doesn't stick to their last line; and a heading is a place to
# go to.
PARTS = re.compile(r"(?<=</details>)\n+(?!\n|<details>)|\n+(?=#{2,4} \S)")


# ---------------------------------------------------------------- code of an exercise


@cache
def _definitions(module: str) -> dict[str, str]:
    """Source texts of the functions and classes of "utils.tokenization", read without importing it."""
    text = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
    lines, found = text.splitlines(), {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            found[node.name] = "\n".join(lines[start - 1 : node.end_lineno]) + "\n"
    return found


def solution_code(target: str) -> str:
    """Source text of "utils.tokenization.count_pairs".

    Raises:
        WorkbookError: there is no such module or function.
    """
    module, _, name = target.rpartition(".")
    try:
        return _definitions(module)[name]
    except (OSError, KeyError):
        raise WorkbookError(f"The exercise {target!r} is unknown: correct its name in the chapter's source.") from None


def stub_code(code: str, todo: list[str] | None = None, guide: bool = False) -> str:
    """The part of a solution that a learner starts from: signatures and docstrings, bodies left to write.

    Args:
        code: source text of one function or class.
        todo: for a class, the names of the methods to write; None means all but those with double underscores.
        guide: keep the body's full-line comments as a guide.
    """
    node = ast.parse(code).body[0]
    lines = code.splitlines()
    if isinstance(node, ast.ClassDef):
        methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
        names = todo or [m.name for m in methods if not m.name.startswith("__")]
        if unknown := set(names) - {m.name for m in methods}:
            raise WorkbookError(f"The class {node.name} has no method {sorted(unknown)[0]!r}: correct the `todo`.")
        functions = [m for m in methods if m.name in names]
    else:
        functions = [node]
    for function in reversed(functions):  # from the end, so that earlier line numbers stay true
        has_docstring = ast.get_docstring(function) is not None
        first = function.body[0]
        start = first.end_lineno if has_docstring else first.lineno - 1
        # Comments right above the first statement belong to the body.
        while not has_docstring and lines[start - 1].strip().startswith("#"):
            start -= 1
        pad = " " * first.col_offset
        body = lines[start : function.end_lineno]
        kept = [pad + x.strip() for x in body if x.strip().startswith("#")] if guide else []
        lines[start : function.end_lineno] = [*kept, f"{pad}raise NotImplementedError"]
    return "\n".join(lines) + "\n"


# ---------------------------------------------------------------- one chapter


def _about(cell) -> str:
    def dots(key):
        value = cell.metadata.get(key)
        if not isinstance(value, int) or not 1 <= value <= 5:
            raise WorkbookError(f"The exercise {cell.metadata['exercise']!r} needs {key}= from 1 to 5 in its source.")
        return "●" * value + "○" * (5 - value)

    about = exercise(cell.metadata)
    optional = "" if about.core else " · optional"
    return (
        f"*Difficulty {dots('difficulty')} · importance {dots('importance')} · about {about.minutes} minutes{optional}*"
    )


def _tolerance(cell) -> dict:
    own = {k: cell.metadata[k] for k in TOLERANCES if k in cell.metadata}
    for name, value in own.items():
        if type(value) not in TOLERANCES[name] or not value > 0:
            kind = "a whole number" if TOLERANCES[name] == (int,) else "a number"
            raise WorkbookError(f"A cell states {name}={value!r}: write {kind} above 0.")
    if own and not cell.metadata.get("why"):
        raise WorkbookError(f'A cell states {own} without a reason: add why="…" to its fence.')
    own |= {"why": cell.metadata["why"]} if own else {}
    if "coarse" in cell.metadata:
        if not isinstance(cell.metadata["coarse"], str) or not cell.metadata["coarse"].strip():
            raise WorkbookError('A cell states coarse without a reason: write coarse="why few digits are enough".')
        own["coarse"] = cell.metadata["coarse"]
    return {"tolerance": own} if own else {}


def _widest(tolerances: list[dict]) -> dict:
    """The tolerance of a table that repeats what those cells measure."""
    widest = {key: max(t[key] for t in tolerances if key in t) for key in set().union(*tolerances) & TOLERANCES.keys()}
    return dict(sorted(widest.items())) | {"why": "as in the cells that measure"} if widest else {}


def _is_folded(cell) -> bool:
    if not isinstance(value := cell.metadata.get("folded", False), bool):
        raise WorkbookError(f"A cell states folded={value!r}: write folded=true, or nothing.")
    return value


def chapter_cells(path: Path, solved: bool) -> list:
    """The cells of one notebook: the text as written, each exercise as [about, code, check]."""
    read_chapter(path)  # its beginning is of the right form, or this raises
    cells, task = [], None
    for cell in source_cells(path)[1:]:  # the first is the front matter
        target = cell.metadata.get("exercise")
        if cell.cell_type == "markdown":
            texts = (t for part in PARTS.split(folded(without_notes(cell.source))) for t in diagrams.cell_sources(part))
            parts = [new_markdown_cell(text) for text in texts]
            task = next((part for part in reversed(parts) if TASK.match(part.source)), task)
            cells += parts
        elif cell.cell_type == "code" and not target:
            hidden = {"jupyter": {"source_hidden": True}} if _is_folded(cell) and not solved else {}
            cells.append(new_code_cell(cell.source, metadata=_tolerance(cell) | hidden))
        elif cell.cell_type == "code":
            if cell.source.strip():
                raise WorkbookError(f"{path.name}: the exercise cell {target!r} must be empty; its code is in utils/.")
            name = target.rpartition(".")[2]
            if task is None:
                raise WorkbookError(
                    f"{path.name}: the exercise {target!r} has no heading: write `### Exercise: what it is` above it."
                )
            task.id, task = f"task-{name}", None
            code = solution_code(target)
            stub = stub_code(code, cell.metadata.get("todo", "").split() or None, bool(cell.metadata.get("guide")))
            if ast.dump(ast.parse(stub)) == ast.dump(ast.parse(code)):
                raise WorkbookError(f"{path.name}: the stub of {target!r} equals its solution.")
            meta = {"exercise": target}
            source = (code if solved else stub).rstrip()
            cells.append(new_markdown_cell(_about(cell), id=f"about-{name}"))
            cells.append(new_code_cell(source, id=name, metadata=meta))
            cells.append(new_code_cell(f"{name} = check({name})", id=f"check-{name}"))
        else:
            raise WorkbookError(f"{path.name}: a raw cell has no place in a chapter.")
    widest = _widest([cells[p.answered].metadata.get("tolerance", {}) for p in predictions(cells, path.stem)])
    for cell in cells:
        if widest and cell.cell_type == "code" and any(calls(cell.source, "guesses")):
            cell.metadata["tolerance"] = widest
    rows = table(path.parent)
    return with_signposts(cells, next(row for row in rows if row.path == path), rows)


def build_chapter(path: Path, solved: bool) -> nbformat.NotebookNode:
    """The notebook of one source, without outputs.

    Every cell has a stable id: exercises by name, others by content. In the learner's notebook the metadata
    `workbook` holds the digest of what was delivered, by which `update` knows what a learner has changed.
    """
    seen: dict[str, int] = {}
    own = ("task-", "about-", "check-", "nav-", "sitting-", "learned")
    cells = chapter_cells(path, solved)
    for cell in cells:
        if not cell.id.startswith(own) and "exercise" not in cell.metadata:
            name = f"{cell.cell_type}-{digest(cell.source)}"
            seen[name] = seen.get(name, 0) + 1
            cell.id = name if seen[name] == 1 else f"{name}-{seen[name]}"
        if not solved:
            cell.metadata["workbook"] = digest(cell.source)
    if twice := [id for id, times in Counter(c.id for c in cells if "exercise" in c.metadata).items() if times > 1]:
        raise WorkbookError(f"{path.name}: two exercises are called {twice[0]!r}: give one of them another name.")
    notebook = new_notebook(cells=cells, metadata=nbformat.from_dict(KERNEL))
    nbformat.validate(notebook)
    return notebook


# What closes a chapter → the calls that it repeats.
TABLES = {"guesses()": ("expect", "grade"), "findings()": ("claim", "identity"), "check()": ("check",)}


@cache
def all_calls(source: str) -> list[str]:
    """The text of every call in a cell, as it would be written anew; none where it can't be parsed."""
    try:
        return [ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    except SyntaxError:
        return []


def with_outputs(new: nbformat.NotebookNode, old: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """`new` with the outputs of the cells that stand unchanged in `old`; a closing table repeats what cells above it
    say, and keeps its own only where those are the same."""
    recorded = {c.id: c for c in old.cells if c.cell_type == "code"}

    def said(notebook, names):
        found = (call for c in notebook.cells if c.cell_type == "code" for call in all_calls(c.source))
        return [call for call in found if call.split("(")[0].split(".")[-1] in names]

    stale = {table for table, names in TABLES.items() if said(new, names) != said(old, names)}
    for cell in new.cells:
        before = recorded.get(cell.id)
        if before and before.source == cell.source and not any(table in cell.source for table in stale):
            cell.outputs, cell.execution_count = before.outputs, before.execution_count
    return new


# ---------------------------------------------------------------- all chapters


def readme_with_table(readme: Path, source: Path) -> str:
    """The README with its table of chapters, between the two marker comments, made anew from the sources."""
    head = ["chapter", "needs", "models", "exercises", "hours: core, all", "solved"]
    rows = [f"| {' | '.join(head)} |", f"| {' | '.join(['---'] * len(head))} |"]
    for c in table(source):
        title = f"[{c.number} · {c.title}](chapters/{c.name}.ipynb)"
        core = sum(e.core for e in c.exercises)
        counts = f"{len(c.exercises)}, {core} core | {c.minutes(core=True) / 60:.1f}, {c.minutes() / 60:.1f}"
        rows.append(
            f"| {title} | {' '.join(c.needs)} | {MODELS[c.models]} | {counts} | [outputs](solutions/{c.name}.ipynb) |"
        )
    before, _, rest = readme.read_text(encoding="utf-8").partition("<!-- chapters -->")
    _, _, after = rest.partition("<!-- /chapters -->")
    return "\n".join([f"{before}<!-- chapters -->", *rows, f"<!-- /chapters -->{after}"])


def _notebooks(source: Path, chapters: Path, solutions: Path, wanted: str | None):
    """(file, its text as it should be) for every generated notebook."""
    for name in chapter_names(wanted, source):
        yield chapters / f"{name}.ipynb", nbformat.writes(build_chapter(source / f"{name}.md", solved=False)) + "\n"
        solved = build_chapter(source / f"{name}.md", solved=True)
        file = solutions / f"{name}.ipynb"
        if file.exists():
            solved = with_outputs(solved, read_notebook(file))
        yield file, nbformat.writes(solved) + "\n"
    yield chapters / "table.json", as_json(table(source))


def _documents() -> dict[Path, str]:
    """Every file of docs/ that is generated, with its text as it should be."""
    drawn = {diagrams.FOLDER / name: text for name, text in diagrams.files().items()}
    return drawn | {ROOT / "docs" / name: text for name, text in reference.files().items()}


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read a notebook file.

    Raises:
        WorkbookError: it is missing, not valid JSON, or no notebook.
    """
    try:
        return nbformat.read(path, 4)
    except FileNotFoundError:
        raise WorkbookError(f"{path.name} is not there: `make notebooks` generates it.") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise WorkbookError(f"{path} is not a readable notebook ({reason}). Nothing was changed.") from None


def build(source=SOURCE, chapters=CHAPTERS, solutions=SOLUTIONS, wanted: str | None = None) -> list[Path]:
    """Write every notebook whose text differs; returns those written."""
    written = []
    documents = _documents() if source == SOURCE else {}
    for file, text in [*documents.items(), *_notebooks(source, chapters, solutions, wanted)]:
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            write_whole(file, text)
            written.append(file)
    if source == SOURCE and (text := readme_with_table(README, source)) != README.read_text(encoding="utf-8"):
        write_whole(README, text)
        written.append(README)
    return written


def drift(source=SOURCE, chapters=CHAPTERS, solutions=SOLUTIONS) -> list[str]:
    """What is not as the sources say, one sentence each; empty where all is well."""
    said = []
    for file, text in _notebooks(source, chapters, solutions, None):
        name = f"{file.parent.name}/{file.name}"
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            said.append(f"{name} differs from its source: run `make notebooks`, then `make execute`.")
    if source == SOURCE and readme_with_table(README, source) != README.read_text(encoding="utf-8"):
        said.append("The README's table of chapters differs from the sources: run `make notebooks`.")
    documents = _documents() if source == SOURCE else {}
    for file in sorted({*documents, *diagrams.FOLDER.glob("*")} if documents else ()):
        if not file.exists() or file.read_text(encoding="utf-8") != documents.get(file):
            said.append(f"{file.relative_to(ROOT)} is not as it is generated: run `make notebooks`.")
    names = set(chapter_names(source=source))
    for file in [*sorted(chapters.glob("[!.]*.ipynb")), *sorted(solutions.glob("[!.]*.ipynb"))]:
        if file.stem not in names:
            said.append(f"{file.parent.name}/{file.name} has no source chapters/source/{file.stem}.md.")
    for name in sorted(names):
        text = (source / f"{name}.md").read_text(encoding="utf-8")
        said += [f"chapters/source/{name}.md: {s}" for s in stale(text, Places(name, solutions))]
    for file in sorted(solutions.glob("[!.]*.ipynb")):
        said += [f"solutions/{file.name}: {s}" for s in recording_faults(read_notebook(file))]
        said += [f"solutions/{file.name}: {s}" for s in coarse_numbers(read_notebook(file))]
        if file.stat().st_size > LARGEST:
            said.append(f"solutions/{file.name} has {file.stat().st_size:,} bytes; at most {LARGEST:,} are allowed.")
    return said


def coarse(wanted: str | None = None, solutions=SOLUTIONS) -> list[str]:
    """The cells of solved notebooks that print too few digits of a measured number, one sentence each."""
    files = [solutions / f"{name}.ipynb" for name in chapter_names(wanted)]
    return [f"{file.stem}: {s}" for file in files for s in coarse_numbers(read_notebook(file))]


def recording_faults(notebook: nbformat.NotebookNode) -> list[str]:
    """Cells not executed since they changed, recorded errors, checks that did not pass: a sentence for each kind."""
    code = [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]
    ran = [c for c in code if c.execution_count is not None]
    faults = {
        "not executed since it changed: run `make execute`": [c for c in code if c.execution_count is None],
        "recorded with an error": [c for c in ran if any(o.output_type == "error" for o in c.outputs)],
        "a check that did not pass: does the first cell import all that the solution needs?": [
            c for c in ran if c.id.startswith("check-") and "✓" not in "".join(o.get("text", "") for o in c.outputs)
        ],
    }
    return [
        f"the cell {cells[0].id}{f' and {len(cells) - 1} more' if cells[1:] else ''}: {what}"
        for what, cells in faults.items()
        if cells
    ]
