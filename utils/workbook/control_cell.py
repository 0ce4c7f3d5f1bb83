"""What a kernel of `make random-control` does first: write down what each claim comes to, and let no step train."""

import json

import torch

import utils.show as show
from utils import runtime
from utils.show import claims


def begin(log: str, untrained: int | None) -> None:
    """Append each claim to the file `log`; `untrained`, models draw their weights from other seeds and keep them."""
    made = show.claim

    def claim(*args, **kwargs):
        made(*args, **kwargs)
        with open(log, "a", encoding="utf-8") as file:
            file.write(json.dumps(claims.judged[-1], ensure_ascii=False) + "\n")

    show.claim = claim
    if untrained is not None:
        seeds = runtime.seed_everything
        runtime.seed_everything = lambda seed: seeds(seed + 10_000 * (untrained + 1))
        for kind in vars(torch.optim).values():
            if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
                kind.step = lambda self, closure=None: closure and closure()
