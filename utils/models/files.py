"""Which files are shipped, and whether they are whole."""

import hashlib
import json
import os
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
MANIFEST = "manifest.json"


class DamagedWeightsError(RuntimeError):
    """A shipped file is missing or not what the manifest says."""


def sha256(path: Path) -> str:
    """The file's SHA-256, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(root: Path = WEIGHTS) -> dict[str, str]:
    """Record the SHA-256 of every weight, configuration and tokenizer file below `root`, and return the table."""
    kept = (".safetensors", ".json")
    paths = sorted(p for p in root.rglob("*") if p.suffix in kept and p.name not in (MANIFEST, "measured.json"))
    table = {path.relative_to(root).as_posix(): sha256(path) for path in paths}
    (root / MANIFEST).write_text(json.dumps(table, indent=1) + "\n")
    return table


# Files found whole, by path, size and time of change: each is read for its checksum once.
_whole: set[tuple[str, int, int]] = set()


def verified(*paths: Path, root: Path = WEIGHTS) -> None:
    """Compare files with the manifest before anything is loaded from them.

    Raises:
        DamagedWeightsError: a file is missing, unknown to the manifest, or its checksum differs.
    """
    table = json.loads((root / MANIFEST).read_text())
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
            raise DamagedWeightsError(f"{name}: not in the manifest; nothing was loaded. {restore}")
        if sha256(path) != table[name]:
            raise DamagedWeightsError(f"{name}: checksum differs; nothing was loaded. {restore}")
        _whole.add(key)
