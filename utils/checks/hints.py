"""Read what a chapter's author wrote of an exercise: its hints, `<details>` blocks of the source, and its heading."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "chapters" / "source"

FENCE = re.compile(r'^```python [^\n]*?exercise="([\w.]+)"[^\n]*\n```[ \t]*$', re.M)
TODO = re.compile(r'\btodo="([^"]*)"')
DETAILS = re.compile(r"<details>\s*<summary>(.*?)</summary>(.*?)</details>", re.S)
NEXT_CODE = re.compile(r"^```python", re.M)
CODE = re.compile(r"^~~~python\n(.*?)^~~~$", re.M | re.S)
# After the last hint's code: what fills its gaps, a line each, in their order. No learner sees it.
GAPS = re.compile(r"\n*<!-- gaps\n(.*?)^-->", re.M | re.S)
# Below the exercise's marker: a sentence why the solution is written as it is, for `compare`.
WHY = re.compile(r"\n*<!-- why\n(.*?)^-->", re.M | re.S)
# Below a paragraph: which recorded outputs its numbers come from, and what holds for the course's own models only.
TIES = re.compile(r"\n*<!-- (?:measured|ours)\n.*?^-->", re.M | re.S)


def read_todo(target: str, folder: Path = SOURCE) -> list[str]:
    """The methods to write of a class, as its marker names them; none where it names none."""
    for _, fence in _markers(target, folder):
        if todo := TODO.search(fence[0]):
            return todo[1].split()
    return []


def read_hints(target: str, folder: Path = SOURCE) -> list[tuple[str, str]]:
    """The (title, text) pairs between the exercise `target` ("utils.tokenization.count_pairs") and the next code cell.

    Only `<details>` whose summary starts with "Hint" count.
    """
    return [(title, GAPS.sub("", text)) for title, text in _as_written(target, folder)]


def read_gaps(target: str, folder: Path = SOURCE) -> tuple[str, list[str]]:
    """The code of the last hint of an exercise, with its gaps `...`, and the expression that fills each."""
    written = _as_written(target, folder)
    text = written[-1][1] if written else ""
    code, gaps = CODE.search(text), GAPS.search(text)
    return code[1] if code else "", gaps[1].splitlines() if gaps else []


def read_why(target: str, folder: Path = SOURCE) -> str:
    """Why the solution is written as it is, in a sentence; empty where there is nothing to say."""
    for text, fence in _markers(target, folder):
        found = WHY.match(text, fence.end())
        return found[1].strip() if found else ""
    return ""


def without_notes(text: str) -> str:
    """A chapter's text as a learner sees it: without the notes of its author."""
    return TIES.sub("", WHY.sub("", GAPS.sub("", text))).lstrip("\n")


def _as_written(target: str, folder: Path) -> list[tuple[str, str]]:
    for text, fence in _markers(target, folder):
        rest = text[fence.end() :]
        # A hint may hold code of its own: cut at the first fence outside the <details> blocks.
        outside = DETAILS.sub(lambda d: " " * len(d[0]), rest)
        end = NEXT_CODE.search(outside)
        found = DETAILS.findall(rest[: end.start()] if end else rest)
        return [(title.strip(), body.strip()) for title, body in found if title.strip().startswith("Hint")]
    return []


def _markers(target: str, folder: Path) -> Iterator[tuple[str, re.Match]]:
    """The markers of an exercise in the chapters' sources, each with the text that it stands in."""
    for path in sorted(folder.glob("[!.]*.md")):
        text = path.read_text(encoding="utf-8")
        yield from ((text, fence) for fence in FENCE.finditer(text) if fence[1] == target)


def read_table(modules: list[str], folder: Path = SOURCE.parent) -> list[dict]:
    """The exercises of a chapter's modules, in the notebook's order: `{"target", "title", "minutes", "core"}` of each.

    Empty where the table of chapters is not there.
    """
    try:
        rows = json.loads((folder / "table.json").read_text(encoding="utf-8"))
        return [e for row in rows for e in row["exercises"] if e["target"].rpartition(".")[0] in modules]
    except (OSError, ValueError, KeyError):
        return []
