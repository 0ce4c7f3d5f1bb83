"""Which exercises a learner has solved: one small JSON file beside the learner's notebooks in `work/`."""

import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Another folder for the learner's copies, for example on a larger disk, is named by WORKBOOK_WORK; a relative one is
# meant from the workbook's folder, wherever a kernel runs.
WORK = ROOT / Path(os.environ.get("WORKBOOK_WORK") or "work").expanduser()


def progress_file(folder: Path = WORK) -> Path:
    return folder / ".progress.json"


def load(folder: Path = WORK) -> dict[str, dict[str, str]]:
    """`{chapter: {exercise: "solved" | "taken" | "tried"}}`; empty where nothing is recorded.

    A damaged file is renamed to `.progress.damaged-….json` and said so on stderr; counting then starts anew.
    """
    path = progress_file(folder)
    if not path.exists():
        return {}
    try:
        done = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(done, dict) and all(isinstance(d, dict) for d in done.values())):
            raise ValueError("not a table of chapters")
    except ValueError as error:  # covers bad JSON and bad UTF-8
        kept = path.with_name(f".progress.damaged-{time.strftime('%Y%m%d-%H%M%S')}.json")
        path.rename(kept)
        print(
            f"The progress file was damaged ({error}). It is kept as {kept.name}, counting starts anew: "
            "run your notebooks' check cells again to fill it.",
            file=sys.stderr,
        )
        return {}
    return done


def record(chapter: str, exercise: str, state: str, folder: Path | None = None) -> None:
    """Note an exercise's state; what was solved once stays solved. Only inside `work/`, where learners work."""
    folder = folder or work_folder()
    if folder is None:
        return
    done = load(folder)
    states = done.setdefault(chapter, {})
    if states.get(exercise) != "solved":
        states[exercise] = state
    # Written beside and renamed, so that a killed kernel never leaves half a file.
    half = progress_file(folder).with_suffix(".half")
    try:
        half.write_text(json.dumps(done, indent=1, sort_keys=True), encoding="utf-8")
        os.replace(half, progress_file(folder))
    except OSError as error:
        print(f"Your progress could not be saved ({error}). Your notebook is not affected.", file=sys.stderr)


def work_folder() -> Path | None:
    here = Path.cwd().resolve()
    return WORK if here == WORK.resolve() or WORK.resolve() in here.parents else None
