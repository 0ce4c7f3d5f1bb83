"""A cell that runs for more than three seconds says so, where it shows no progress bar of its own."""

import threading

from IPython import get_ipython
from tqdm import tqdm

AFTER = 3.0  # seconds
EVERY = 1.0


class Waiting:
    """IPython's events around a cell: `start` before it, `stop` after it."""

    def __init__(self):
        self._ended = threading.Event()
        self._thread = None

    def start(self, *_) -> None:
        self.stop()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(self._ended,), daemon=True, name="watchdog of a cell")
        self._thread.start()

    def stop(self, *_) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @staticmethod
    def _watch(ended: threading.Event) -> None:
        if ended.wait(AFTER) or tqdm._instances:  # its own bar is better
            return
        with tqdm(bar_format="this cell has run for {elapsed}", leave=False) as clock:
            while not ended.wait(EVERY):
                clock.refresh()


def show_waiting() -> None:
    """From now on, in a notebook: see above."""
    shell = get_ipython()
    if shell is not None and not hasattr(shell, "workbook_waiting"):
        shell.workbook_waiting = waiting = Waiting()
        shell.events.register("pre_run_cell", waiting.start)
        shell.events.register("post_run_cell", waiting.stop)
