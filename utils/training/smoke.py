"""A training run of seconds that shows that the loss falls and that a killed run ends as an unbroken one."""

import tempfile
from pathlib import Path

import torch

from utils.training.config import Config, smoke
from utils.training.loop import Run
from utils.world import train_tokenizer


def run_smoke(config: Config, folder: Path | None = None) -> bool:
    """Train the tiny version of `config` twice, once broken off and resumed; True if all is as it should be."""
    small = smoke(config)
    tokenizer = train_tokenizer(small.vocabulary_size, n_documents=500)
    with tempfile.TemporaryDirectory() as temporary:
        root = folder or Path(temporary)
        whole = Run(small, tokenizer, root / "whole")
        before = whole.evaluate()["validation_loss"]
        after = whole.train()["validation_loss"]
        Run(small, tokenizer, root / "broken").train(until=small.steps // 2 + 3)
        resumed = Run(small, tokenizer, root / "broken")
        resumed_at = resumed.step
        resumed.train()
        a, b = whole.model.state_dict(), resumed.model.state_dict()
        same = all(torch.equal(a[name], b[name]) for name in a)
    falls = after < before - 1
    print(f"{small.name}: loss {before:.2f} -> {after:.2f} ({'falls' if falls else 'DOES NOT FALL'}); ", end="")
    print(f"resumed from step {resumed_at}: {'the same weights' if same else 'OTHER WEIGHTS'}")
    return falls and same and resumed_at == small.save_every
