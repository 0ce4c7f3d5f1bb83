"""The shipped models with every tensor's numbers shuffled: what has the shapes and sizes of ours, and learned nothing.

A claim that holds for them too says nothing about what ours has learned. `WORKBOOK_MODELS=random-0` loads those of
seed 0 in the place of ours; `make random-control` makes them and runs the chapters on them.
"""

import json
import os
import shutil
from pathlib import Path
from tempfile import mkdtemp

import torch
from safetensors.torch import load_file, save_file

from utils.models.files import MANIFEST, SHIPPED, random_folder, sha256, write_manifest


def shuffled(seed: int, root: Path = SHIPPED, to: Path | None = None) -> Path:
    """The folder of the shuffled copy of seed `seed`, made where it isn't there; returns it.

    The numbers of each tensor change places within it, so that its mean, its spread and its signs stay; the states of
    a training curve change places, too.
    """
    to = to or random_folder(seed)
    made_of = sha256(root / MANIFEST)
    if (to / "made_of").is_file() and (to / "made_of").read_text() == made_of:
        return to
    generator = torch.Generator().manual_seed(seed)
    to.parent.mkdir(parents=True, exist_ok=True)
    half = Path(mkdtemp(dir=to.parent))
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.name != MANIFEST):
        copy = half / path.relative_to(root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            mixed = {key: _mixed(value, generator) for key, value in sorted(tensors.items())}
            save_file(mixed, copy, {"format": "pt"})
        elif path.name == "training.json" and "metrics" in (table := json.loads(path.read_text(encoding="utf-8"))):
            rows = table["metrics"]
            order = torch.randperm(len(rows), generator=generator).tolist()
            kept = {key for row in rows for key in row} - {"step", "tokens"}
            table["metrics"] = [
                row | {key: rows[k][key] for key in kept if key in rows[k]} for row, k in zip(rows, order, strict=True)
            ]
            copy.write_text(json.dumps(table), encoding="utf-8")
        else:
            shutil.copyfile(path, copy)
    write_manifest(half)
    (half / "made_of").write_text(made_of)
    shutil.rmtree(to, ignore_errors=True)
    os.replace(half, to)
    return to


def _mixed(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor.flatten()[torch.randperm(tensor.numel(), generator=generator)].reshape(tensor.shape).contiguous()
