"""Write files whole or not at all: beside the old one, then renamed over it."""

import contextlib
import errno
import os
import secrets
import time
from pathlib import Path

from utils.workbook import WorkbookError

HALF = ".half"
ABANDONED = 60  # seconds after which no living process can still be writing a half file


def write_whole(path: Path, text: str | bytes) -> None:
    """Write `text` to `path` so that a crash at any moment leaves the old file or the new one.

    A link is followed, the permissions stay. Half files that an earlier crash left beside `path` are removed.

    Raises:
        WorkbookError: the disk is full, or the folder or file can't be written.
    """
    path = Path(os.path.realpath(path))
    data = text.encode() if isinstance(text, str) else text
    half = path.with_name(f".{path.name}.{secrets.token_hex(4)}{HALF}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clean_up(path.parent)
        try:
            with open(half, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                half.chmod(path.stat().st_mode & 0o777)
            os.replace(half, path)
        except BaseException:
            with contextlib.suppress(OSError):
                half.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot_write(path, error) from None


def cannot_write(path: Path, error: OSError) -> WorkbookError:
    """One sentence that says why `path` was not written, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return WorkbookError(f"{path.name} was not written: the disk is full. Make room, then run this again.")
    reason = error.strerror or str(error)
    taken = error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP)
    advice = "move what has that name elsewhere" if taken else "check the folder's permissions"
    return WorkbookError(f"{path.parent}/{path.name} can't be written ({reason}): {advice}.")


def clean_up(folder: Path) -> None:
    """Remove the half files that a crash left in `folder`; those that may still be written stay."""
    for half in folder.glob(f"*{HALF}"):
        with contextlib.suppress(OSError):
            if half.stat().st_mtime < time.time() - ABANDONED:
                half.unlink()


def free_name(folder: Path, stem: str, suffix: str) -> Path:
    """A file of that name in `folder` that no other process has or will get; it is made, empty.

    Raises:
        OSError: the folder can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        path = folder / f"{stem}{f'-{number}' if number > 1 else ''}{suffix}"
        try:
            path.open("x").close()
            return path
        except FileExistsError:
            number += 1
