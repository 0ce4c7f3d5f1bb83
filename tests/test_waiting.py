"""A cell that runs long says so, one that is short or shows a bar of its own does not."""

import io
import time
from contextlib import redirect_stderr

import pytest
from tqdm import tqdm

from utils.show import waiting

CELLS = {
    "long": (lambda: time.sleep(0.5), True),
    "short": (lambda: None, False),
    "with its own bar": (lambda: [time.sleep(0.1) for _ in tqdm(range(5), desc="mine")], False),
}


@pytest.mark.parametrize("name", CELLS)
def test_what_is_shown_beside_a_cell(name, monkeypatch):
    monkeypatch.setattr(waiting, "AFTER", 0.2)
    monkeypatch.setattr(waiting, "EVERY", 0.05)
    cell, shown = CELLS[name]
    watch = waiting.Waiting()
    with redirect_stderr(io.StringIO()) as said:
        watch.start()
        cell()
        watch.stop()
    assert ("this cell has run for 00:00" in said.getvalue()) == shown
    assert not tqdm._instances


def test_an_interrupted_cell_leaves_no_watch_behind(monkeypatch):
    monkeypatch.setattr(waiting, "AFTER", 0.01)
    watch = waiting.Waiting()
    watch.start()
    time.sleep(0.1)
    watch.start()  # the next cell, with no end of the one before
    watch.stop()
    assert watch._thread is None and not tqdm._instances
