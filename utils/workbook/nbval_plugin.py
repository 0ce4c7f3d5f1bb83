"""nbval with our comparison of outputs: `pytest -p utils.workbook.nbval_plugin --nbval solutions/`.

nbval 0.11 is pinned: its comparison is replaced and three faults are worked round (`x;` prints nothing under
store_history=False; a dead kernel waits out the cell's whole time limit; a minute to start one is short where all
processors are busy).
"""

import time
from queue import Empty

import nbval.kernel
import nbval.plugin as nbv

from utils.workbook.compare import differences
from utils.workbook.execute import START_SECONDS, kernel_seconds

SHOWN = 5


def pytest_configure(config):
    config.option.nbval_kernel_startup_timeout = START_SECONDS


def compare_outputs(self, test, ref, skip_compare=None) -> bool:
    own = self.cell.metadata.get("tolerance", {})
    said = differences(test, ref, **{k: v for k, v in own.items() if k != "why"})
    more = [f"… and {len(said) - SHOWN} more"] if len(said) > SHOWN else []
    self.comparison_traceback = [f"{self.path.name}, cell {self.cell.id}: {s}" for s in said[:SHOWN]] + more
    return not said


def execute_cell_input(self, cell_input, allow_stdin=None):
    return self.kc.execute(cell_input, store_history=True, allow_stdin=allow_stdin, stop_on_error=False)


_get_message = nbval.kernel.RunningKernel.get_message


def get_message(self, stream, timeout=None):
    """A limit counts the kernel's processor time, so that a busy machine ends no cell; twenty times as much by the
    clock ends one that waits for ever. A second or less is a poll, and stays by the clock.
    """
    polls = timeout is not None and timeout <= 1
    used, end = kernel_seconds(self.km), time.monotonic() + (timeout or 1e9) * (1 if polls else 20)
    while True:
        try:
            return _get_message(self, stream, timeout=min(5, max(0, end - time.monotonic())))
        except Empty:
            late = time.monotonic() >= end or (timeout and kernel_seconds(self.km) - used > timeout)
            if late or not self.is_alive():
                raise


nbv.IPyNbCell.compare_outputs = compare_outputs
nbval.kernel.RunningKernel.execute_cell_input = execute_cell_input
nbval.kernel.RunningKernel.get_message = get_message
