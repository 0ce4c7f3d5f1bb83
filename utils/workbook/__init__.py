"""The course machinery: build notebooks from their sources, record and compare outputs, serve a learner's copies."""

import sys
from pathlib import Path

# nbformat's validator would compile a grammar of web addresses on import, for seconds; no notebook needs it.
sys.modules.setdefault("rfc3987_syntax", None)

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
SOURCE = ROOT / "chapters" / "source"
CHAPTERS = ROOT / "chapters"
SOLUTIONS = ROOT / "solutions"


class WorkbookError(Exception):
    """Something that a person has to put right; the text says what, in one or two sentences."""


def chapter_names(wanted: str | None = None, source: Path | None = None) -> list[str]:
    """Names of the chapters ("01_tokenization"), all or the one that `wanted` means.

    `wanted` is the whole name, its number ("01", "1") or the rest ("tokenization").

    Raises:
        WorkbookError: there is no such chapter.
    """
    return pick(sorted(p.stem for p in (source or SOURCE).glob("[!.]*.md")), wanted)


def pick(names: list[str], wanted: str | None) -> list[str]:
    """Those of the names that `wanted` means; see `chapter_names`."""
    if not wanted:
        return names
    wanted = Path(wanted).stem
    found = [n for n in names if wanted in (n, n.split("_", 1)[0], n.split("_", 1)[0].lstrip("0"), n.split("_", 1)[-1])]
    if not found:
        raise WorkbookError(f"There is no chapter {wanted!r}. The chapters are: {', '.join(names) or 'none yet'}.")
    return found
