"""`make test` in one run of pytest, a process a core, one thread each; and where the processor's time went.

As a plugin (`-p utils.workbook.testing`) it hands out notebooks first and the longest of them before the others, keeps
what shares fixtures in one process, starts a notebook's kernel with the libraries imported, and counts each test's
processor time, its kernel's and its children's included.
"""

import gc
import json
import os
import re
import subprocess
import threading
import time
from collections import Counter
from contextlib import nullcontext, suppress
from pathlib import Path

import nbval.kernel
import psutil
import pytest
from xdist.scheduler import LoadScopeScheduling

from utils.workbook import ROOT
from utils.workbook.execute import kernel_seconds, run_pytest, solved_notebooks
from utils.workbook.files import write_whole
from utils.workbook.kernels import Nursery

PROOF = tuple(
    f"tests/test_{name}" for name in ("checks", "mutants", "hints", "named", "poison", "outside_answers", "annotations")
)
# Part → (its share in minutes of processor time, for twelve chapters; the files whose names begin so).
PARTS = {
    "solved notebooks": (14.0, ("solutions/", "tests/test_samples")),  # those that run again under noise too
    "proof of the checks": (4.0, PROOF),
    "browser": (1.5, ("tests/test_browser",)),
    "the learner's work": (1.5, ("tests/test_update", "tests/test_learner", "tests/test_histories")),
    "all else": (3.0, ()),
}
LONGEST_NOTEBOOK = 120  # seconds
IMPORTS = "solutions/ (what all kernels import)"
MEMORY = 6.0  # GB
ATTEMPTS = 3  # to start a notebook's kernel


def test(arguments: list[str] = ()) -> int:
    """Run lint, generation, all unit tests and all solved notebooks; print what it took. Returns the exit code."""
    for target in ("lint", "drift"):
        if code := subprocess.call(["make", "--no-print-directory", target], cwd=ROOT):
            return code
    with Watch() as watch:
        code = run_pytest(["tests", *solved_notebooks()], arguments)
    print("\n".join(watch.table()))
    return code


class Watch:
    """Wall time, processor time and peak memory of all processes that the body starts, and the parts' seconds."""

    def __enter__(self):
        self.started, self.peak, self.ended = time.monotonic(), 0, threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.ended.set()
        self.thread.join()
        self.wall = time.monotonic() - self.started

    def _sample(self):
        while not self.ended.wait(5):
            processes = psutil.Process().children(recursive=True)
            # To count shared pages once takes long, and gives less than the plain sum: only where that is a new peak.
            if held_by(processes, lambda process: process.memory_info().rss) > self.peak:
                self.peak = max(self.peak, held_by(processes, once))

    def table(self) -> list[str]:
        """The lines to print: part, share, measured; what is not counted test by test is part of the rest."""
        seconds, parts = _kept("this run"), Counter()
        for group, s in seconds.items():
            parts[part_of(group)] += s
        own = os.times()
        parts["all else"] += max(0, own.user + own.system + own.children_user + own.children_system - parts.total())
        lines = ["", f"{'processor minutes':<22}share  measured"]
        lines += [f"{name:<22}{share:5.1f}  {parts[name] / 60:8.1f}" for name, (share, _) in PARTS.items()]
        whole = sum(share for share, _ in PARTS.values())
        lines.append(f"{'in all':<22}{whole:5.1f}  {parts.total() / 60:8.1f}  in {self.wall / 60:.1f} minutes")
        if notebooks := {g: s for g, s in seconds.items() if g.endswith(".ipynb")}:
            longest = max(notebooks, key=notebooks.get)
            lines.append(f"longest notebook: {longest}, {notebooks[longest]:.0f} s of at most {LONGEST_NOTEBOOK}")
        return [*lines, f"peak memory: {self.peak / 1e9:.1f} GB of at most {MEMORY:.0f}"]


def held_by(processes, memory) -> int:
    """Bytes, summed over the processes that have not ended meanwhile."""
    held = 0
    for process in processes:
        with suppress(psutil.Error):
            held += memory(process)
    return held


def once(process) -> int:
    """Bytes of which each is counted in one process only where several share them."""
    memory = process.memory_full_info()
    return getattr(memory, "pss", memory.uss)


def part_of(group: str) -> str:
    return next(name for name, (_, starts) in PARTS.items() if not starts or group.startswith(starts))


# ---------------------------------------------------------------- pytest's plugin


def group_of(nodeid: str) -> str:
    """What runs in one process, in order: a notebook, a file of tests; of the checks' proof an exercise."""
    file, _, test = nodeid.partition("::")
    if "test_checks" not in file or "[" not in test:
        return file
    return f"{file}[{re.sub(r'-[0-9]+$', '', test[:-1].partition('[')[2])}]"


class Scheduler(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)


def pytest_xdist_make_scheduler(config, log):
    return Scheduler(config, log)


_start = nbval.kernel.RunningKernel.__init__
_libraries: list[str] = []
_nursery: Nursery | None = None  # of this worker, where it has run a notebook


def pytest_addoption(parser):
    parser.addoption("--kernels-with", metavar="MODULES", help="each worker imports them once, for all its kernels")


def pytest_configure(config):
    if hasattr(config, "workerinput"):
        gc.disable()  # what is imported and collected stays: to look for garbage in it costs a third of the time
        _libraries[:] = (config.getoption("--kernels-with") or "").split()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def start(self, *args, **options):
    global _nursery
    if _libraries and not _nursery:
        _nursery = Nursery(_libraries)
    with _nursery.starts_kernels() if _nursery else nullcontext():
        for attempt in range(ATTEMPTS):
            try:
                return _start(self, *args, **options)
            except RuntimeError:  # it died: another process took one of its ports first
                if attempt == ATTEMPTS - 1:
                    raise


nbval.kernel.RunningKernel.__init__ = start


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    took, first = _kept("known"), {}
    for i, item in enumerate(items):
        first.setdefault(group_of(item.nodeid), i)

    def place(item):
        group = group_of(item.nodeid)
        return not group.endswith(".ipynb"), -took.get(group, 0), "[" in group, first[group]

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    item.seconds = -_used(item)
    return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item):
    # The kernel ends with the notebook's last cell: ask before.
    kernel = _kernel_seconds(item)
    result = yield
    item.seconds += _used(item, kernel)
    return result


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    if call.when == "teardown":
        item.user_properties.append(("seconds", item.seconds))
    return (yield)


def _used(item, kernel: float | None = None) -> float:
    own = os.times()
    if hasattr(item, "cell"):
        return own.user + own.system + (_kernel_seconds(item) if kernel is None else kernel)
    return own.user + own.system + own.children_user + own.children_system


def _kernel_seconds(item) -> float:
    running = getattr(item.parent, "kernel", None)
    return kernel_seconds(running.km) if hasattr(running, "km") else 0.0


_seconds: Counter = Counter()  # of this run, by group


def pytest_runtest_logreport(report):
    for name, value in report.user_properties:
        if name == "seconds" and report.when == "teardown":
            _seconds[group_of(report.nodeid)] += value


def pytest_testnodedown(node):
    _seconds[IMPORTS] += getattr(node, "workeroutput", {}).get("nursery", 0)


def pytest_sessionfinish(session):
    if _nursery:
        session.config.workeroutput["nursery"] = _nursery.seconds()
        _nursery.close()
    if not _seconds or hasattr(session.config, "workerinput"):
        return
    file = _file()
    write_whole(file, json.dumps({"this run": _seconds, "known": {**_kept("known"), **_seconds}}, indent=1))


def _kept(which: str) -> dict[str, float]:
    """Group → processor seconds, of the last run ("this run") or of each group's last ("known")."""
    try:
        return json.loads(_file().read_text())[which]
    except (OSError, ValueError, KeyError):
        return {}


def _file() -> Path:
    return Path(os.environ.get("WORKBOOK_TEST_SECONDS", ROOT / ".cache" / "test_seconds.json"))
