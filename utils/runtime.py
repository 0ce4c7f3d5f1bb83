"""Where a notebook computes, from which seed and on whose models: the choices that
every chapter shares.
"""

import json
import os
import random
from pathlib import Path

import numpy as np
import torch

TABLE = Path(__file__).parents[1] / "chapters" / "table.json"
running = {}  # the row of the chapter that runs, from its first cell on


def device() -> torch.device:
    """The device that `WORKBOOK_DEVICE` names, else the profile of the models: `cpu`
    (default), `cuda`, `auto` (cuda where there is one), or `pretend`, the CPU as a
    second device: a test finds a missing `device=` with it.

    Raises:
        ValueError: the variable holds another word.
        RuntimeError: `cuda` is asked for and torch sees none.
    """
    name = os.environ.get("WORKBOOK_DEVICE") or _device_of_profile() or "cpu"
    if name == "pretend":
        from utils import pretend

        pretend.start()
    elif name not in ("cpu", "cuda", "auto"):
        raise ValueError(f"WORKBOOK_DEVICE is {name!r}: set it to cpu, cuda or auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(
            "WORKBOOK_DEVICE is cuda, but torch sees no GPU: set it to cpu or auto"
        )
    return torch.device(name)


def _device_of_profile() -> str:
    if not os.environ.get("WORKBOOK_MODELS", "").endswith(".toml"):
        return ""
    from utils.models.registry import current

    return current().device


def on_own_models() -> bool:
    """Whether the models are the workbook's own, which its sentences are about; with
    another `WORKBOOK_MODELS` than `embedded` they are not.
    """
    return os.environ.get("WORKBOOK_MODELS") in (None, "", "embedded")


def settle_models(chapter: str, table: Path = TABLE) -> None:
    """Say whose models a chapter's text is about, where `WORKBOOK_MODELS` names others.

    A chapter about the small world goes on with the workbook's own models then, on the
    device that the profile names; all others load those that are asked for.

    Args:
        chapter: its number, `"04"`.

    Raises:
        ValueError: the table of chapters has no such chapter.
    """
    rows = {row["number"]: row for row in json.loads(table.read_text("utf-8"))}
    if chapter not in rows:
        raise ValueError(
            f"there is no chapter {chapter!r}: its number is of two digits"
        )
    running.update(rows[chapter])
    if on_own_models():
        return
    others = f"WORKBOOK_MODELS={os.environ['WORKBOOK_MODELS']}"
    if running["models"] == "own" and not others.startswith("WORKBOOK_MODELS=random-"):
        if named := _device_of_profile():
            os.environ.setdefault("WORKBOOK_DEVICE", named)
        os.environ["WORKBOOK_MODELS"] = "embedded"
        print(
            f"This chapter is about the small world: it runs on the workbook's own"
            f" models, not on those of {others}."
        )
        return
    print(
        f"This run is on the models of {others}. What the text says of numbers, heads"
        " and neurons is about the workbook's own; a claim shows yours beside them."
    )


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:  # the same numbers, without a note with its stack for each absent device
        torch.default_generator.manual_seed(seed)
