"""Where the notebooks compute on another device than the CPU, all that a check draws lies there.

So an answer that forgets `device=` mixes two devices in its check, as it would in the notebook. On a CPU nothing here
does anything.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch.overrides import TorchFunctionMode

from utils.runtime import device

# What makes a tensor without being given one. Not `empty`: weights are drawn into it, on the CPU, the same everywhere.
MAKERS = {
    getattr(torch, name)
    for name in "arange eye full linspace logspace ones rand randint randn randperm scalar_tensor tensor tril_indices "
    "triu_indices zeros as_tensor bernoulli normal".split()
}


class Drawn(TorchFunctionMode):
    """Sends what is made without a `device` to the notebooks' own; while `asked` is true, nothing: an answer runs."""

    def __init__(self, place: torch.device):
        super().__init__()
        self.place, self.asked = place, False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if self.asked or func not in MAKERS or kwargs.get("device") is not None or made.device.type != "cpu":
            return made
        # Drawn on the CPU first: the same numbers on every device.
        return made.detach().to(self.place).requires_grad_(made.requires_grad)


@contextlib.contextmanager
def drawn() -> Iterator[Drawn | None]:
    """The body's tensors lie where the notebooks compute; None where that is the CPU."""
    place = device()
    if place.type == "cpu":
        yield None
        return
    with Drawn(place) as mode:
        yield mode


@contextlib.contextmanager
def answering(mode: Drawn | None) -> Iterator[None]:
    """In the body an answer runs, whose tensors lie where it puts them."""
    if mode is None:
        yield
        return
    before, mode.asked = mode.asked, True
    try:
        yield
    finally:
        mode.asked = before
