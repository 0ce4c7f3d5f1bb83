"""`make gpu`: everything that a GPU may compute otherwise, run there; with the minutes and the memory of each part.

On a machine without one, `DEVICE=cpu` or `pretend` (the CPU as a second device) runs the same parts.
"""

import os
import shutil
import subprocess
import sys

from utils.workbook import ROOT, WorkbookError
from utils.workbook.execute import CELL_SECONDS, OFFLINE, ONE_THREAD, solved_notebooks
from utils.workbook.portable import has_gpu
from utils.workbook.testing import Watch

DEVICES, MODELS = ("cuda", "pretend", "cpu"), ("embedded", "hub")
# What needs a browser, a server or a set-up of its own tells nothing about a device.
ELSEWHERE = ("browser", "setup", "lab", "learner", "histories", "update", "ndif", "waiting", "arrival")


class GPUWatch(Watch):
    """Peak memory of the first GPU too, 0 where there is none."""

    gpu_peak = 0.0

    def _sample(self):
        asks = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
        if not shutil.which(asks[0]):
            return super()._sample()
        while not self.ended.wait(2):
            said = subprocess.run(asks, capture_output=True, text=True).stdout.strip()
            self.gpu_peak = max(self.gpu_peak, float(said) * 2**20 / 1e9 if said.isdigit() else 0)
        return None


def parts(device: str, models: str, chapter: str | None = None) -> dict[str, tuple[list[str], dict[str, str]]]:
    """Name → (command, environment).

    Raises:
        WorkbookError: there is no such device or profile, or torch sees no GPU.
    """
    if device not in DEVICES or models not in MODELS:
        raise WorkbookError(f"DEVICE is one of {', '.join(DEVICES)}, MODELS one of {', '.join(MODELS)}.")
    if device == "cuda" and not has_gpu():
        raise WorkbookError("torch sees no GPU here: make gpu DEVICE=pretend runs the same without one.")
    where = {**ONE_THREAD, "WORKBOOK_DEVICE": device, "WORKBOOK_MODELS": models}
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    if models == "hub":  # other numbers than the recorded ones: run through, nothing is compared
        notebooks = [*pytest, "--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={CELL_SECONDS}"]
        return {"notebooks, run through": ([*notebooks, *solved_notebooks(chapter)], where)}
    where |= OFFLINE
    portable = [
        sys.executable,
        "-m",
        "utils.workbook",
        "portable",
        "--setting",
        "threads-1" if device == "cpu" else device,
    ]
    found = {"notebooks and checks, compared": (portable + ([chapter] if chapter else []), where)}
    if device != "pretend" and not chapter:  # tests make tensors of their own, on the CPU
        left_out = " and ".join(f"not {name}" for name in ELSEWHERE)
        found["unit tests"] = ([*pytest, "tests", "-k", left_out], where)
    return found


def gpu(device: str = "cuda", models: str = "embedded", chapter: str | None = None) -> int:
    """Run the parts; print what each took. Returns how many failed."""
    lines, failed = [], 0
    for name, (command, environment) in parts(device, models, chapter).items():
        with GPUWatch() as watch:
            code = subprocess.call(command, cwd=ROOT, env={**os.environ, **environment})
        failed += bool(code)
        memory = f"{watch.gpu_peak:.1f} GB on the GPU" if watch.gpu_peak else f"{watch.peak / 1e9:.1f} GB"
        lines.append(
            f"{name}, {models} on {device}: {watch.wall / 60:.1f} minutes, {memory}, {'FAILED' if code else 'passed'}"
        )
    print("\n".join(["", *lines]))
    return failed
