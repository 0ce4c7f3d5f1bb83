"""What each chapter offers who arrives and goes through it, counted from the sources: a row for each chapter."""

import re

from utils.workbook.build import build_chapter
from utils.workbook.chapters import Chapter, table
from utils.workbook.predictions import PREDICT, predictions

COLUMNS = ("chapter", "predictions", "recall", "sittings", "diagrams", "core min.", "learned", "links", "last cell")


def offers(row: Chapter) -> tuple[str, ...]:
    """The row's texts, in the order of `COLUMNS`; an empty one says that there is none."""
    cells = build_chapter(row.path, solved=False).cells
    text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
    asked, paired = text.count(PREDICT), len({p.asked for p in predictions(cells, row.name)})
    recalled = re.findall(r"^\*\*Recall\.\*\*.*?(?=<details>|\Z)", text, re.M | re.S)
    ids = {c.id for c in cells}
    ways = [re.findall(r"\]\((\S+\.\w+)", c.source) for c in cells if c.id.startswith("nav-")]
    ended = next((c for c in reversed(cells) if c.cell_type == "code"), None)
    counts = {
        "predictions": f"{paired} of {asked}" if paired else "",
        "recall": sum(len(re.findall(r"^\d+\. ", part, re.M)) for part in recalled),
        "sittings": sum(id.startswith("sitting-") for id in ids),
        "diagrams": text.count("data:image/svg+xml"),
        "core min.": row.minutes(core=True),
        "learned": len(row.learned),
        "links": len(ways[0]) if len(ways) == 2 and ways[0] == ways[1] else 0,
        "last cell": ended.source if ended and ended.id == "check-all" else "",
    }
    return row.number, *(str(counts[column] or "") for column in COLUMNS[1:])


def arrival() -> list[str]:
    """The table's lines."""
    lines = [COLUMNS, *(offers(row) for row in table())]
    widths = [max(len(line[k]) for line in lines) for k in range(len(COLUMNS))]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
