"""Other machines, simulated: run the solved notebooks and the checks' own solutions under settings that differ from
this one as another machine would, and say which cells differ there.

A setting is noise on every rounded result (`utils.workbook.noise`), another code path of torch and MKL, another
number of threads, another hash seed, a second device (`utils.pretend`), or the GPU where there is one. Each
result is a file in `.cache/portable/`, valid as long as the digest of what it depends on: an interrupted run goes on
where it stopped. The module is pytest's plugin too, which records what each cell gave: `-p utils.workbook.portable
--record-cells FILE`.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from utils.workbook import ROOT, SOLUTIONS, WorkbookError, chapter_names
from utils.workbook.compare import ATOL, RTOL, number_pairs
from utils.workbook.files import write_whole

CACHE = ROOT / ".cache" / "portable"
CHECKS = "checks"  # beside the chapters: every exercise's solution and right answers before its check
GPU = "cuda"  # a setting where torch sees one
SAMPLE = ("00", "04"), "noise-1"  # what `make test` runs of this: chapter 01 has nothing that rounds
STYLE = re.compile(r"\x1b\[[\d;]*m")


def settings(seeds: int = 3) -> dict[str, dict[str, str]]:
    """Name → environment; `noise-N` gets its kernel's start-up file besides."""

    def threads(n):
        return {"OMP_NUM_THREADS": str(n), "MKL_NUM_THREADS": str(n)}

    return {
        **{f"noise-{n}": threads(1) | {"PYTHONHASHSEED": str(n)} for n in range(1, seeds + 1)},
        # Torch's own kernels, MKL's and oneDNN's each choose a code path by the processor.
        "cpu-default": threads(1)
        | {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41"},
        "cpu-avx2": threads(1) | {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
        **{f"threads-{n}": threads(n) for n in (1, 2, 4)},
        **{f"hash-{n}": threads(1) | {"PYTHONHASHSEED": str(n)} for n in (7, 11)},
        "pretend": threads(1) | {"WORKBOOK_DEVICE": "pretend"},
        GPU: threads(1) | {"WORKBOOK_DEVICE": GPU},
    }


def portable(
    wanted: str | None = None,
    seeds: int = 3,
    setting: str | None = None,
    sample: bool = False,
    jobs: int | None = None,
) -> int:
    """Run what is not yet in the cache, print the table and every cell that differs; returns how many differ.

    Args:
        wanted: a chapter, or "checks" for the exercises' own solutions; all without it.
        setting: one setting's name; all without it.
        sample: two short chapters under one seed, run anew: the part of `make test`.
        jobs: how many threads at once; as many as there are cores without it.
    """
    known = settings(max(seeds, int(setting.split("-")[1])) if re.fullmatch(r"noise-\d+", setting or "") else seeds)
    if setting and setting not in known:
        raise WorkbookError(f"There is no setting {setting!r}. The settings are: {', '.join(known)}.")
    if setting == GPU and not has_gpu():
        raise WorkbookError("torch sees no GPU here. `pretend` finds a forgotten `device=` without one.")
    chosen = [setting] if setting else [name for name in known if name != GPU or has_gpu()]
    chapters = [CHECKS] if wanted == CHECKS else [*chapter_names(wanted), *([] if wanted else [CHECKS])]
    if sample:
        chosen, chapters = [SAMPLE[1]], [name for number in SAMPLE[0] for name in chapter_names(number)]
    results = run_all([(s, c) for s in chosen for c in chapters], known, jobs or os.cpu_count() or 1, fresh=sample)
    print("\n".join(report(results)))
    return sum(len(failures(r)) for r in results.values())


def has_gpu() -> bool:
    import torch  # here, so that pytest with this plugin starts without it

    return torch.cuda.is_available()


def run_all(jobs: list[tuple[str, str]], known: dict, cores: int, fresh: bool = False) -> dict[tuple[str, str], dict]:
    """(setting, chapter) → result, from the cache or run now, as many threads at once as there are cores."""
    results = {} if fresh else {job: found for job in jobs if (found := cached(*job, known[job[0]]))}
    waiting = [job for job in jobs if job not in results]
    for threads in sorted({known[s]["OMP_NUM_THREADS"] for s, _ in waiting}, key=int):
        pool = ThreadPoolExecutor(max(1, cores // int(threads)))
        running = {
            pool.submit(run, *job, known[job[0]]): job for job in waiting if known[job[0]]["OMP_NUM_THREADS"] == threads
        }
        try:
            for done in as_completed(running):
                job = running[done]
                results[job] = done.result()
                print(
                    f"[{len(results)}/{len(jobs)}] {job[0]} {job[1]}: {len(failures(results[job]))} cells differ, "
                    f"{results[job]['seconds']:.0f} s of processor time",
                    flush=True,
                )
        finally:
            pool.shutdown(cancel_futures=True)
    return {job: results[job] for job in jobs}


def run(setting: str, chapter: str, environment: dict[str, str]) -> dict:
    """Run one chapter, or the checks, under one setting and keep the result.

    Raises:
        WorkbookError: pytest did not get through, or the kernel started without the noise that the setting asks for.
    """
    from utils.workbook.execute import CELL_SECONDS, OFFLINE

    noisy = setting.startswith("noise-")
    before = digest(chapter, environment)
    with tempfile.TemporaryDirectory() as folder:
        record, profile = Path(folder) / "record.json", Path(folder) / "ipython"
        environment = {**os.environ, **OFFLINE, **environment}
        command = [sys.executable, "-m", "pytest", "-p", "utils.workbook.portable", "--record-cells", str(record)]
        command += ["-p", "no:cacheprovider", "-q"]
        if chapter == CHECKS:
            command += ["tests/test_checks.py", "-k", "test_solution_passes or test_right_answer_passes"]
            command += ["--noise", setting.split("-")[1]] if noisy else []
        else:
            command += ["-p", "utils.workbook.nbval_plugin", "--nbval", "--nbval-current-env"]
            command += [f"--nbval-cell-timeout={CELL_SECONDS}"]
            command.append(str(SOLUTIONS / f"{chapter}.ipynb"))
            if noisy:
                from utils.workbook.noise import kernel_profile

                environment |= kernel_profile(int(setting.split("-")[1]), profile)
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        if done.returncode not in (0, 1):  # 1: cells differ
            said = (done.stdout + done.stderr)[-3000:]
            raise WorkbookError(f"{chapter} under {setting}: pytest did not get through.\n{said}")
        result = json.loads(record.read_text())
        if noisy and chapter != CHECKS:
            counted = profile / "noisy_results"
            if not counted.exists():
                raise WorkbookError(f"{chapter} under {setting}: the kernel's start-up file did not run.")
            result["noisy_results"] = int(counted.read_text())
    result["digest"] = before
    write_whole(CACHE / setting / f"{chapter}.json", json.dumps(result))
    return result


def cached(setting: str, chapter: str, environment: dict[str, str]) -> dict | None:
    path = CACHE / setting / f"{chapter}.json"
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return result if result["digest"] == digest(chapter, environment) else None


def digest(chapter: str, environment: dict[str, str]) -> str:
    """Of all that a result depends on: notebook, the package, the comparison, weights, torch and the setting."""
    package, machinery = ROOT / "utils", ROOT / "utils" / "workbook"
    files = {path for path in package.rglob("*.py") if machinery not in path.parents}
    files |= {machinery / f"{name}.py" for name in ("compare", "nbval_plugin", "noise")}
    files.add(ROOT / "utils" / "models" / "weights" / "manifest.json")
    files.add(ROOT / "tests" / "test_checks.py" if chapter == CHECKS else SOLUTIONS / f"{chapter}.ipynb")
    said = hashlib.sha256(json.dumps([sys.version, version("torch"), environment]).encode())
    for path in sorted(files):
        said.update(path.read_bytes())
    return said.hexdigest()


def failures(result: dict) -> dict[str, str]:
    return {cell: said for cell, said in result["cells"].items() if said}


def report(results: dict[tuple[str, str], dict]) -> list[str]:
    """The table setting × chapter with the number of cells that differ, then each of them with its first difference."""
    names = list(dict.fromkeys(setting for setting, _ in results))
    chapters = list(dict.fromkeys(chapter for _, chapter in results))
    lines = ["", " | ".join(["setting".ljust(12), *(c.split("_")[0].rjust(6) for c in chapters)])]
    for name in names:
        counts = [str(len(failures(results[name, c]))) if (name, c) in results else "" for c in chapters]
        lines.append(" | ".join([name.ljust(12), *(n.rjust(6) for n in counts)]))
    for (setting, chapter), result in results.items():
        lines += [f"{chapter} under {setting}, {cell}: {said}" for cell, said in failures(result).items()]
    return lines if any(failures(r) for r in results.values()) else [*lines, "No cell differs."]


# ---------------------------------------------------------------- how far numbers move


def spread(wanted: str | None = None, seeds: int = 8, jobs: int | None = None) -> list[str]:
    """Run a chapter, or all, under noise and say how far each number moves that moves beyond the default tolerance.

    Returns a table's lines for each chapter; `.cache/spread/` keeps it, and its numbers as JSON.
    """
    known, chapters, said = settings(seeds), chapter_names(wanted), []
    every = [(f"noise-{n}", chapter) for chapter in chapters for n in range(1, seeds + 1)]
    results = run_all(every, known, jobs or os.cpu_count() or 1)
    folder = CACHE.with_name("spread")
    folder.mkdir(parents=True, exist_ok=True)
    for chapter in chapters:
        notebook = json.loads((SOLUTIONS / f"{chapter}.ipynb").read_text(encoding="utf-8"))
        recorded = {cell["id"]: cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"}
        own = {setting: result for (setting, name), result in results.items() if name == chapter}
        rows = spread_rows([result["outputs"] for result in own.values()], recorded)
        lines = [f"{chapter}: {len(rows)} places move by more than {RTOL:g} of the number and {ATOL:g}.", ""]
        if rows:
            lines += ["| cell | where | recorded | min | max | moves | of it | 3 × atol | or 3 × rtol |"]
            lines += ["| --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
        for row in rows:
            numbers = [row[k] for k in ("recorded", "min", "max", "moves", "share", "atol", "rtol")]
            lines.append(f"| {row['cell']} | {row['where']} | " + " | ".join(f"{n:.4g}" for n in numbers) + " |")
        for setting, result in own.items():
            lines += [f"{setting}, {cell}: {text}" for cell, text in failures(result).items()]
        write_whole(folder / f"{chapter}.md", "\n".join(lines) + "\n")
        write_whole(folder / f"{chapter}.json", json.dumps(rows, indent=1))
        said += [*lines, ""]
    return said


def spread_rows(runs: list[dict[str, list]], recorded: dict[str, list]) -> list[dict]:
    """A row for each number, or figure's array, that moves beyond the default tolerance in one of the runs.

    Args:
        runs: for each machine, cell's id → outputs.
        recorded: cell's id → recorded outputs.

    Returns:
        dicts: cell, where; of the worst element the recorded value, min and max over the machines, how far it moves
        from the recorded one and which share of it that is; `atol` and `rtol`, each three times what would by itself
        cover all elements; whole numbers have no rtol.
    """
    rows = []
    for cell, before in recorded.items():
        seen = {}
        for run in runs:
            for where, new, old in number_pairs(run.get(cell, []), before):
                seen.setdefault(where, (old, []))[1].append(new)
        for where, (old, new) in seen.items():
            whole, old, new = old.dtype.kind == "i", old.ravel().astype(float), np.stack(new).reshape(len(new), -1)
            moves = np.nan_to_num(np.abs(new - old), nan=0.0).max(0, initial=0.0)
            allowed = 0.5 if whole else ATOL + RTOL * np.nan_to_num(np.abs(old))
            if not (moves > allowed).any():
                continue
            worst = int(np.argmax(moves / allowed))
            share = np.divide(moves, np.abs(old), out=np.zeros_like(moves), where=old != 0)
            rows.append(
                {
                    "cell": cell,
                    "where": where + (f", element {worst} of {old.size}" if old.size > 1 else ""),
                    "recorded": old[worst],
                    "min": float(new[:, worst].min()),
                    "max": float(new[:, worst].max()),
                    "moves": moves[worst],
                    "share": share[worst],
                    "atol": 3 * moves.max(),
                    "rtol": 0.0 if whole else 3 * share.max(),
                }
            )
    return rows


# ---------------------------------------------------------------- pytest's plugin


def pytest_addoption(parser):
    parser.addoption("--record-cells", metavar="FILE", help="write what each cell or test gave")
    parser.addoption("--noise", type=int, metavar="SEED", help="run the tests under rounding noise")


def pytest_configure(config):
    if config.getoption("--record-cells"):
        config.pluginmanager.register(Recorder(config))


class Recorder:
    """Cell's id or test's name → its first difference, or None; a cell's outputs; processor seconds."""

    def __init__(self, config):
        self.path = Path(config.getoption("--record-cells"))
        self.cells, self.outputs = {}, {}
        self.seed = config.getoption("--noise")

    def pytest_collection_finish(self):
        if self.seed is not None:
            from utils.workbook import noise

            noise.start(self.seed)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        cell = getattr(item, "cell", None)
        name = cell.id if cell else item.name
        if report.when == "call" or not report.passed:
            self.cells[name] = None if report.passed else _first_difference(item, call, report)
        if cell and report.when == "call":
            self.outputs[name] = getattr(item, "test_outputs", [])
        return report

    def pytest_sessionfinish(self):
        seconds = sum(os.times()[:4])  # this process and its kernel
        record = {"cells": self.cells, "seconds": seconds, "outputs": self.outputs}
        if self.seed is not None:
            from utils.workbook import noise

            record["noisy_results"] = noise.counts.total()
        write_whole(self.path, json.dumps(record))


def _first_difference(item, call, report) -> str:
    error = call.excinfo.value if call.excinfo else report.longrepr
    if getattr(error, "inner_traceback", None) and item.name.startswith("Cell"):
        lines = [STYLE.sub("", line).strip() for line in error.inner_traceback.splitlines()]
        if "differ" in str(error):
            return re.sub(r"^.*?, cell \S+: ", "", next(filter(None, lines)))
        return next(filter(None, reversed(lines)))
    return STYLE.sub("", str(error)).strip().split("\n")[0]
