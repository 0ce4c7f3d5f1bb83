"""Which exercises a learner has solved: one empty file for each, in `.progress/` beside the learner's notebooks.

`.progress/tokenization.merge_pair.solved` says all in its name. To record is to make a file: any number of kernels
can do that at once, on any file system, and no half-written file can exist. One listing of the folder reads all.
"""

import contextlib
import json
import os
import secrets
import sys
from pathlib import Path

from utils.moved import Moved

ROOT = Path(__file__).parents[2]
# Another folder for the learner's copies, for example on a larger disk, is named by WORKBOOK_WORK; a relative one is
# meant from the workbook's folder, wherever a kernel runs.
WORK = ROOT / os.path.expanduser(os.environ.get("WORKBOOK_WORK") or "work")
STATES = ["tried", "taken", "solved"]  # from worst to best: the best that was reached counts


def progress_folder(folder: Path | None = None) -> Path:
    return (folder or WORK) / ".progress"


def load(folder: Path | None = None, moved: Moved | None = None) -> dict[str, dict[str, str]]:
    """`{chapter: {exercise: "solved" | "taken" | "tried"}}`; empty where nothing is recorded.

    The chapter is the last part of the module's name. What was recorded under an earlier name of an exercise counts
    for today's; one that several became counts as the least of them. What can't be read is said on stderr.
    """
    folder = folder or WORK
    moved = moved or Moved()
    found: dict[str, str] = {}
    for target, state in [*_old_file(folder), *_marks(folder)]:
        if state in STATES:
            found[target] = _better(found.get(target), state)
    for new in {home for old in moved.exercises for home in moved.homes(old)}:
        if state := _state(new, found, moved, []):
            found[_short(new)] = state
    done: dict[str, dict[str, str]] = {}
    for target, state in found.items():
        chapter, _, exercise = target.rpartition(".")
        done.setdefault(chapter, {})[exercise] = state
    return done


def record(chapter: str, exercise: str, state: str, folder: Path | None = None) -> None:
    """Note an exercise's state; what was solved once stays solved. Only inside `work/`, where learners work."""
    folder = folder or work_folder()
    if folder is None:
        return
    mark = progress_folder(folder) / f"{chapter}.{exercise}.{state}"
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        print(f"Your progress could not be saved ({error}). Your notebook is not affected.", file=sys.stderr)


def work_folder() -> Path | None:
    here = Path.cwd().resolve()
    return WORK if here == WORK.resolve() or WORK.resolve() in here.parents else None


def _state(target: str, found: dict[str, str], moved: Moved, seen: list[str]) -> str | None:
    """An exercise's own state or, where it is better, the least of those that it was made from."""
    own = found.get(_short(target))
    olds = [old for old, new in moved.exercises.items() if target in new and old not in seen]
    states = [_state(old, found, moved, [*seen, target]) for old in olds]
    if not any(states):
        return own
    return _better(own, min((s or "tried" for s in states), key=STATES.index))


def _short(target: str) -> str:
    """ "tokenization.merge_pair" of "utils.tokenization.merge_pair"."""
    return ".".join(target.split(".")[-2:])


def _better(a: str | None, b: str) -> str:
    return max(a or b, b, key=STATES.index)


def _marks(folder: Path) -> list[tuple[str, str]]:
    """(chapter.exercise, state) of every mark."""
    try:
        names = os.listdir(progress_folder(folder))
    except FileNotFoundError:
        return []
    except OSError as error:
        print(f"Your progress can't be read ({error}). Your notebook is not affected.", file=sys.stderr)
        return []
    return [(target, state) for target, _, state in (n.rpartition(".") for n in names) if target.count(".") == 1]


def _old_file(folder: Path) -> list[tuple[str, str]]:
    """What the first version of the workbook recorded, all in `.progress.json`.

    A damaged one is renamed, each under a name of its own, and said so.
    """
    path = folder / ".progress.json"
    try:
        if not path.exists():
            return []
        done = json.loads(path.read_text(encoding="utf-8"))
        return [(f"{chapter}.{exercise}", state) for chapter, d in done.items() for exercise, state in d.items()]
    except (ValueError, AttributeError) as error:  # bad JSON, bad UTF-8, or no table of chapters
        kept = path.with_name(f".progress.damaged-{secrets.token_hex(4)}.json")
        with contextlib.suppress(OSError):
            path.rename(kept)
            print(
                f"The progress file of an earlier version was damaged ({error}). It is kept as {kept.name}; run your "
                "notebooks' check cells again to count what they solve.",
                file=sys.stderr,
            )
    except OSError as error:
        print(f"The earlier version's progress can't be read ({error}).", file=sys.stderr)
    return []
