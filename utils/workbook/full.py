"""`make test-full`: what is too long for every change. A part that passed for this state of the tree is not run again.

`make test` holds a sample of each part (tests/test_samples.py); the nightly workflow runs them all, and so does whoever
makes a release.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from utils.workbook import ROOT
from utils.workbook.execute import OFFLINE
from utils.workbook.files import write_whole

WORKBOOK = [sys.executable, "-m", "utils.workbook"]
PYTEST = ["env", "WORKBOOK_FULL=1", sys.executable, "-m", "pytest"]

# Name → command. Each says itself what failed, and returns non-zero then.
PARTS = {
    "named mistakes": [*WORKBOOK, "mistakes"],
    "mutants": [*WORKBOOK, "mutants"],
    "other machines": [*WORKBOOK, "portable"],
    "models that have learned nothing": [*WORKBOOK, "random-control"],
    "bad answers": [*PYTEST, "tests/test_poison.py"],
    "wrong answers from outside": [
        *PYTEST,
        "tests/test_outside_answers.py",
    ],
    "annotations": [*PYTEST, "tests/test_annotations.py"],
    "last hints": [*PYTEST, "tests/test_hints.py"],
    "last hints in the notebooks": [*WORKBOOK, "hints"],
    "set-up": [*PYTEST, "tests/test_setup.py"],
    "sliders": [*PYTEST, "tests/test_browser.py", "-k", "slider"],
    "training, on two processes and by sae_lens's own runner": [
        *PYTEST,
        "tests/test_training.py",
        "tests/test_sae_training.py",
        "tests/test_transcoders.py",
    ],
    "more cases of unit tests": [
        *PYTEST,
        "tests/test_pretend.py",
        "tests/test_devices.py",
        "tests/test_tokenization.py",
        "tests/test_sampling.py",
        "tests/test_ioi.py",
    ],
    "chapter 10 on a server": [*WORKBOOK, "ndif-test"],
    "histories of a learner's copy": [sys.executable, "-m", "pytest", "tests/test_histories.py", "--histories=2000"],
}
STATE = ROOT / ".cache" / "test_full.json"
TREE = ("utils", "tests", "chapters", "solutions", "pyproject.toml", "requirements.txt")
KINDS = {".py", ".ipynb", ".md", ".toml", ".txt", ".json", ".yaml"}


def wanted() -> dict[str, list[str]]:
    """The parts; `NDIF=no` leaves out the one that needs redis."""
    left_out = {"chapter 10 on a server"} if os.environ.get("NDIF") == "no" else set()
    return {name: command for name, command in PARTS.items() if name not in left_out}


def test_full(parts: dict[str, list[str]] | None = None, state: Path = STATE, root: Path = ROOT) -> int:
    """Run the parts one after the other and print the table of them; returns how many failed."""
    now, failed = digest(root), []
    for name, command in (wanted() if parts is None else parts).items():
        if _passed(state).get(name) == now:
            print(f"{name}: passed before, for the same files.", flush=True)
            continue
        print(f"{name}: {' '.join(command[1:])}", flush=True)
        if subprocess.call(command, cwd=root, env={**os.environ, **OFFLINE}):
            failed.append(name)
            continue
        write_whole(state, json.dumps({**_passed(state), name: now}, indent=1))
    print(f"Failed: {', '.join(failed)}." if failed else "All parts passed.")
    return len(failed)


def digest(root: Path = ROOT) -> str:
    """Of all files that a result can depend on, and of Python's version; the weights by their manifest."""
    found = hashlib.sha256(platform.python_version().encode())
    for name in TREE:
        for path in sorted((root / name).rglob("*")) if (root / name).is_dir() else [root / name]:
            if path.suffix in KINDS and path.is_file():
                found.update(f"{path.relative_to(root)} {path.stat().st_size} ".encode() + path.read_bytes())
    return found.hexdigest()


def _passed(state: Path) -> dict[str, str]:
    try:
        return json.loads(state.read_text())
    except (OSError, ValueError):
        return {}
