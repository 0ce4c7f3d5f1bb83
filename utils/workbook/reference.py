"""docs/glossary.md and docs/cheat-sheet.md, from docs/reference.toml and the chapters' sources."""

import re
import tomllib
from pathlib import Path

from utils.workbook import ROOT, SOURCE, WorkbookError
from utils.workbook.chapters import Chapter, table

REFERENCE = ROOT / "docs" / "reference.toml"
FENCED = re.compile(r"^(```|~~~).*?^\1$", re.M | re.S)


def files(reference: Path = REFERENCE, source: Path = SOURCE) -> dict[str, str]:
    """Name and text of both files.

    Raises:
        WorkbookError: a chapter does not make a term that it is said to make.
    """
    about = tomllib.loads(reference.read_text(encoding="utf-8"))
    return {"glossary.md": _glossary(about["term"], table(source)), "cheat-sheet.md": _cheat_sheet(about["sheet"])}


def section_of(term: str, text: str) -> str | None:
    """The heading `## …` of the first section that has the term in bold, in italics or in a heading.

    Capitals don't matter.
    """
    made = re.compile(rf"\*{re.escape(term)}\*|^#+ .*\b{re.escape(term)}(?!\w).*$", re.I | re.M)
    prose = FENCED.sub(lambda code: "\n" * code[0].count("\n"), text)
    if not (found := made.search(prose)):
        return None
    before = re.findall(r"^#{1,2} (.+)$", prose[: found.end()], re.M)
    return before[-1]


def _glossary(terms: list[dict], chapters: list[Chapter]) -> str:
    by_number = {c.number: c for c in chapters}
    lines = [
        "# Glossary",
        "",
        "Terms of the field as this course uses them, each with the chapter and section that make it.",
        "",
    ]
    for term in sorted(terms, key=lambda term: term["name"].lower()):
        chapter = by_number.get(term["chapter"])
        section = chapter and section_of(term.get("form", term["name"]), chapter.path.read_text(encoding="utf-8"))
        if not section:
            raise WorkbookError(
                f"Chapter {term['chapter']} does not make the term {term.get('form', term['name'])!r} of "
                "docs/reference.toml: write it in bold where it is explained, or name another chapter."
            )
        place = f"[{chapter.number}](../chapters/{chapter.name}.ipynb)"
        where = "" if section == f"{chapter.number} · {chapter.title}" else f", *{section}*"
        lines.append(f"- **{term['name']}**: {term['says']} ({place}{where})")
    return "\n".join(lines) + "\n"


def _cheat_sheet(sheets: list[dict]) -> str:
    parts = [
        "# Cheat sheet",
        "The calls of TransformerLens, sae_lens, nnsight and circuitsvis as this course uses them. The blocks run one "
        "after the other, in a notebook of this course or with its `.venv`.",
    ]
    for sheet in sheets:
        parts += [f"## {sheet['title']}", f"```python\n{sheet['code'].strip()}\n```"]
    return "\n\n".join(parts) + "\n"
