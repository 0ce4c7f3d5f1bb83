"""A kernel in which fifty bad answers were checked still accepts all solutions: nothing that one leaves stays."""

import functools
import inspect
import os
import random
import signal

import torch
from test_checks import EXERCISES
from torch import nn

from utils.checks import engine

ASKED = [e for e in EXERCISES if not isinstance(e.solution, type)]


def spoil(value, draw: random.Random) -> None:
    """Change a tensor, or leave something at a model or a container."""
    if isinstance(value, torch.Tensor):
        value.data.fill_(1)
    elif isinstance(value, nn.Module):
        module = draw.choice(list(value.modules()))
        draw.choice(
            [
                lambda: module.register_forward_hook(lambda *args: torch.zeros_like(args[-1])),
                lambda: value.train(not value.training),
                lambda: [parameter.data.zero_() for parameter in value.parameters()],
                lambda: module._parameters.clear(),
            ]
        )()
    elif isinstance(value, list | dict | set):
        value.clear()
    else:
        for held in getattr(value, "__dict__", {}).values():
            if isinstance(held, dict | list | nn.Module):
                spoil(held, draw)


KERNEL = [
    lambda: torch.set_default_dtype(torch.float64),
    lambda: torch.set_grad_enabled(False),
    lambda: torch.manual_seed(0),
    lambda: os.chdir("/"),
    lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    lambda: exec("raise KeyboardInterrupt"),
    lambda: print("x" * 100_000),
]


def bad(exercise, draw: random.Random):
    """The solution, or one of the named mistakes, that leaves something behind."""
    answer = draw.choice([exercise.solution, *exercise.mistakes.values()])

    @functools.wraps(answer)
    def answers(*args, **kwargs):
        out = answer(*args, **kwargs)
        for value in (*args, *kwargs.values()):
            spoil(value, draw)
        draw.choice(KERNEL)()
        return out

    return answers if inspect.isfunction(answer) else answer


def test_fifty_bad_answers_spoil_nothing(monkeypatch, capsys):
    """Fifty and all solutions where all is run, else twelve and the solutions of the same exercises."""
    monkeypatch.setattr(engine, "SECONDS", 300)
    full = "WORKBOOK_FULL" in os.environ
    draw = random.Random(0)
    tried = [draw.choice(ASKED) for _ in range(50 if full else 12)]
    accepted = [e.name for e in tried if e.verdict(bad(e, draw)).state == "solved"]
    unwell = [(e.name, v.says) for e in (ASKED if full else tried) if (v := e.verdict(e.solution)).state != "solved"]
    assert not unwell
    # One whose arguments are all numbers or texts may leave nothing but prints.
    assert len(accepted) <= len(tried) / 10, accepted
