"""How fast eight toy models train together, beside a plain loop over single models.

    python tests/bench_superposition.py [--steps 1000] [--repeat 5]

Eight instances of five features in two dimensions, batches of 1,024. The loop is the plain model that one would write
for a single instance, with `torch.optim.Adam`, and trains one model after the other. One thread; seconds are those of
the processor, so that other programs on the machine count little; of `--repeat` runs in turn the fastest. Before the
race both train on the same batches from the same start, and must reach the same losses.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from utils.runtime import seed_everything
from utils.superposition import ToyModel, ToyModelConfig, constant

INSTANCES, FEATURES, HIDDEN, BATCH, LR = 8, 5, 2, 1024, 1e-2
PROBABILITY = 50 ** -torch.linspace(0, 1, INSTANCES)
IMPORTANCE = 0.9 ** torch.arange(FEATURES)


class Single(nn.Module):
    """One toy model, written plainly."""

    def __init__(self, W: torch.Tensor):
        super().__init__()
        self.W, self.b = nn.Parameter(W.clone()), nn.Parameter(torch.zeros(FEATURES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x @ self.W.T @ self.W + self.b)


def train_single(model: Single, p: torch.Tensor, steps: int, batches: list | None = None) -> float:
    """Train one model; draws its batches unless they are given. Returns the last loss."""
    optimizer = torch.optim.Adam(model.parameters(), lr=LR)
    for step in range(steps):
        drawn = batches is None
        x = torch.rand(BATCH, FEATURES) * (torch.rand(BATCH, FEATURES) < p) if drawn else batches[step]
        loss = (IMPORTANCE * (x - model(x)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def together(steps: int, batches: list | None = None) -> tuple[ToyModel, list[float]]:
    """Train all instances at once; returns the model as it was before, and the last losses."""
    model = ToyModel(ToyModelConfig(INSTANCES, FEATURES, HIDDEN), PROBABILITY[:, None], IMPORTANCE)
    start = ToyModel(model.cfg)
    start.load_state_dict(model.state_dict())
    if batches is not None:
        waiting = iter(batches)
        model.generate_batch = lambda batch_size: next(waiting)
    history = model.optimize(steps, BATCH, LR, schedule=constant)
    return start, history.losses[-1].tolist()


def one_by_one(steps: int) -> list[float]:
    starts = torch.randn(INSTANCES, HIDDEN, FEATURES) / 2
    return [train_single(Single(W), p, steps) for W, p in zip(starts, PROBABILITY, strict=True)]


def largest_gap(steps: int) -> float:
    """Largest relative difference of the last losses after training both on the same batches."""
    source = ToyModel(ToyModelConfig(INSTANCES, FEATURES, HIDDEN), PROBABILITY[:, None], IMPORTANCE)
    batches = [source.generate_batch(BATCH) for _ in range(steps)]
    start, fast = together(steps, batches)
    slow = [
        train_single(Single(start.W[i].detach()), PROBABILITY[i], steps, [x[:, i] for x in batches])
        for i in range(INSTANCES)
    ]
    return max(abs(a - b) / b for a, b in zip(fast, slow, strict=True))


def status(field: str) -> float:
    """A memory figure of this process in MiB: VmRSS (now) or VmHWM (peak since the last reset). Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def added_memory(way: str, steps: int) -> str:
    """MiB that training adds to a fresh process at its peak."""
    if not Path("/proc/self/clear_refs").exists():
        return "not measured on this system"
    command = [sys.executable, __file__, "--memory-of", way, "--steps", str(steps)]
    return f"{json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout):.1f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--memory-of", choices=["together", "loop"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ways = {"together": together, "loop": one_by_one}
    if args.memory_of:
        ways[args.memory_of](3)  # what the libraries load at their first step is not counted
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = status("VmRSS")
        ways[args.memory_of](args.steps)
        print(status("VmHWM") - before)
        return

    seed_everything(0)
    gap = largest_gap(200)
    print(f"same start, same batches, 200 steps: losses differ by at most {gap:.1e} of their size")
    if gap > 1e-3:
        sys.exit("The two ways of training do not reach the same losses: the race means nothing.")
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.repeat):
        for way, train in ways.items():
            start = time.process_time()
            train(args.steps)
            seconds[way].append(time.process_time() - start)
    for way, runs in seconds.items():
        speed, memory = args.steps / min(runs), added_memory(way, args.steps)
        print(f"{way:9} {speed:7,.0f} steps of all {INSTANCES} models a second; memory added at the peak: {memory}")
    print(f"together is {min(seconds['loop']) / min(seconds['together']):.1f} times as fast (asked for: 4)")


if __name__ == "__main__":
    main()
