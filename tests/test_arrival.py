"""The table of what each chapter offers who goes through it: counted from the sources, no field empty."""

import pytest

from utils.workbook.arrival import COLUMNS, arrival, offers
from utils.workbook.chapters import table


@pytest.mark.parametrize("row", table(), ids=lambda row: row.name)
def test_every_chapter_has_all_of_it(row):
    filled = dict(zip(COLUMNS, offers(row), strict=True))
    assert not [column for column, text in filled.items() if not text]
    paired, _, asked = filled["predictions"].partition(" of ")
    assert paired == asked


def test_the_table_has_a_line_for_each_chapter():
    lines = arrival()
    assert lines[0].split("  ")[0] == "chapter" and len(lines) == 1 + len(table())
