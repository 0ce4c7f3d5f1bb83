"""Which files are shipped, and whether they are whole."""

import hashlib
import json
import os
import re
from pathlib import Path

SHIPPED = Path(__file__).parent / "weights"
MANIFEST = "manifest.json"
RANDOM = re.compile(r"random-(\d+)")  # as WORKBOOK_MODELS: the same models, their numbers shuffled (`shuffled.py`)


def random_folder(seed: int) -> Path:
    """Where the shuffled models of a seed lie."""
    return Path(__file__).parents[2] / ".cache" / "random" / f"random-{seed}"


_random = RANDOM.fullmatch(os.environ.get("WORKBOOK_MODELS", ""))
WEIGHTS = random_folder(int(_random[1])) if _random else SHIPPED


class DamagedWeightsError(RuntimeError):
    """A shipped file is missing or not what the manifest says."""


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest(root: Path) -> dict[str, str]:
    """The SHA-256 of every shipped file, by its path below `root`."""
    restore = f"Nothing was loaded. Restore it with: git checkout -- utils/models/weights/{MANIFEST}"
    try:
        table = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedWeightsError(f"{MANIFEST}: the file is missing. {restore}") from None
    except ValueError as problem:  # bad JSON or bad UTF-8
        raise DamagedWeightsError(f"{MANIFEST}: the file is damaged ({problem}). {restore}") from None
    if not isinstance(table, dict) or not table or not all(isinstance(digest, str) for digest in table.values()):
        raise DamagedWeightsError(f"{MANIFEST}: the file is damaged (no table of files). {restore}")
    return table


def write_manifest(root: Path = WEIGHTS, folder: str = "") -> dict[str, str]:
    """Record the SHA-256 of every file below `root` that is loaded from, and return the table.

    Args:
        root: where the shipped folders are.
        folder: only this model's files are recorded anew; all others keep the checksums that they have.
    """
    paths = [p for p in (root / folder).rglob("*") if p.suffix in (".safetensors", ".json") and p.name != MANIFEST]
    kept = (
        {name: digest for name, digest in _manifest(root).items() if not name.startswith(f"{folder}/")}
        if folder
        else {}
    )
    found = {p.relative_to(root).as_posix(): sha256(p) for p in paths if not p.name.startswith(".")}
    table = dict(sorted((kept | found).items()))
    half = root / f".{MANIFEST}.half"
    half.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    os.replace(half, root / MANIFEST)
    return table


def shipped(folder: Path, root: Path = WEIGHTS) -> list[Path]:
    """The files that belong in a folder according to the manifest, whether they are there or not."""
    prefix = folder.relative_to(root).as_posix() + "/"
    return [root / name for name in _manifest(root) if name.startswith(prefix)]


# Files found whole, by path, size and time of change: each is read for its checksum once.
_whole: set[tuple[str, int, int]] = set()


def verified(*paths: Path, root: Path = WEIGHTS) -> None:
    """Compare files with the manifest before anything is loaded from them.

    Raises:
        DamagedWeightsError: a file or the manifest is missing or can't be read, the manifest lacks the file, or its
            checksum differs.
    """
    table = _manifest(root)
    for path in paths:
        name = path.relative_to(root).as_posix()
        restore = f"Restore it with: git checkout -- utils/models/weights/{name}"
        if not path.exists():
            raise DamagedWeightsError(f"{name}: the file is missing; nothing was loaded. {restore}")
        stat = os.stat(path)
        key = (str(path), stat.st_size, stat.st_mtime_ns)
        if key in _whole:
            continue
        if name not in table:
            raise DamagedWeightsError(
                f"{MANIFEST}: it knows no {name}; nothing was loaded. "
                f"Restore it with: git checkout -- utils/models/weights/{MANIFEST}"
            )
        try:
            digest = sha256(path)
        except OSError as problem:
            raise DamagedWeightsError(
                f"{name}: it can't be read ({problem.strerror}); nothing was loaded. Move it away. {restore}"
            ) from None
        if digest != table[name]:
            raise DamagedWeightsError(f"{name}: checksum differs; nothing was loaded. {restore}")
        _whole.add(key)


def read_json(path: Path, root: Path = WEIGHTS):
    """What a shipped JSON file holds, after `verified`."""
    verified(path, root=root)
    return json.loads(path.read_text(encoding="utf-8"))
