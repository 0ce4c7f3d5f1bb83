"""From a run's folder to the shipped folder: configuration, weights in fp16, checkpoints, the training curve."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from utils.training.architectures import GPT2, build, hooked_config
from utils.training.config import Config
from utils.training.loop import read_checkpoint

# Beside the final weights, which are the last checkpoint.
N_CHECKPOINTS = 9


def chosen_steps(metrics: list[dict], available: list[int], n: int = N_CHECKPOINTS) -> list[int]:
    """`n` of the available steps: the first, some spread evenly in log-time, and most where the loss falls fastest.

    The steps divide evenly a length that grows with log-time and with the change of the loss on second copies.
    """
    known = {0: metrics[0]["repeat_first"]} | {m["step"]: m["repeat_second"] for m in metrics}

    def loss_at(step: int) -> float:
        below = max(s for s in known if s <= step)
        above = min((s for s in known if s >= step), default=below)
        if above == below:
            return known[below]
        return known[below] + (known[above] - known[below]) * (step - below) / (above - below)

    available = sorted(available)
    if len(available) <= n:
        return available
    length = [0.0]
    total_drop = sum(abs(loss_at(b) - loss_at(a)) for a, b in zip(available, available[1:], strict=False)) or 1.0
    total_log = torch.log2(torch.tensor(available[-1] / max(available[1], 1))).item() + 1
    for a, b in zip(available, available[1:], strict=False):
        log_step = 1.0 if a == 0 else torch.log2(torch.tensor(b / a)).item()
        length.append(length[-1] + 0.4 * log_step / total_log + 0.6 * abs(loss_at(b) - loss_at(a)) / total_drop)
    chosen: list[int] = []
    for i in range(n):
        wanted = length[-1] * i / n
        free = [k for k in range(len(available)) if available[k] not in chosen]
        chosen.append(available[min(free, key=lambda k: abs(length[k] - wanted))])
    return sorted(chosen)


def export(config: Config, run: Path, target: Path, tokenizer_folder: Path) -> None:
    """Write the model's shipped folder from the newest weights of a run (also of one that is not finished).

    Raises:
        FileNotFoundError: the run has no whole checkpoint yet.
    """
    state = read_checkpoint(run / "state.ckpt")
    if state is None:
        raise FileNotFoundError(f"{config.name}: nothing trained yet, run `make models MODEL={config.name}` first")
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [m for m in metrics if m["step"] <= state["step"]]
    target.mkdir(parents=True, exist_ok=True)
    model = build(config)
    model.load_state_dict(state["model"])
    if isinstance(model, GPT2):
        if target != tokenizer_folder:
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(tokenizer_folder / name, target / name)
        transformers_logging.disable_progress_bar()
        model.model.half().save_pretrained(target)
        described = json.loads((target / "config.json").read_text())
        # Stored in 16 bits, computed in 32; transformer_lens reads n_ctx, which transformers leaves out.
        described |= {"n_ctx": config.n_ctx, "dtype": "float32"}
        (target / "config.json").write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")
    else:
        (target / "hooked_config.json").write_text(json.dumps(hooked_config(config), indent=1) + "\n")
        half = {name: tensor.half() for name, tensor in model.hooked_state().items()}
        save_file(half, target / "model.safetensors")
        shutil.rmtree(target / "checkpoints", ignore_errors=True)
        (target / "checkpoints").mkdir()
        snapshots = {int(p.stem.split("_")[1]): p for p in (run / "snapshots").glob("step_*.safetensors")}
        available = [step for step in snapshots if step < state["step"]]
        for step in chosen_steps(metrics, available):
            load_file(snapshots[step])  # raises if the file is damaged
            shutil.copy(snapshots[step], target / "checkpoints" / snapshots[step].name)
    summary = {
        "config": config.to_dict(),
        "steps": state["step"],
        "tokens": state["step"] * config.batch_rows * config.n_ctx,
        "minutes": round(state["seconds"] / 60, 1),
        "hardware": state.get("hardware", "two CPU cores, one thread, bfloat16 products"),
        "metrics": metrics,
    }
    (target / "training.json").write_text(json.dumps(summary) + "\n")
    for path in target.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
