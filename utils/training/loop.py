"""The training loop. Kill it at any moment: the same call goes on where the last whole checkpoint was written."""

import hashlib
import io
import json
import math
import os
import shutil
import time
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from tqdm.auto import tqdm

from utils.runtime import device
from utils.training import processes
from utils.training.architectures import AttentionOnly, build
from utils.training.config import Config
from utils.training.data import Batches, repeated_rows
from utils.training.measure import head_scores, repeated_losses
from utils.world import rows, sample

VALIDATION_SEED = 7  # far below the seeds of the training shards


# ---- Checkpoints that are whole or not used. ----
def write_checkpoint(state: dict, path: Path) -> None:
    """Write `state` so that `path` always holds a whole checkpoint: checksum first, temporary file, atomic rename.

    The checkpoint before is kept beside it as `<name>.previous`.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    temporary = path.with_name(path.name + ".part")
    with open(temporary, "wb") as file:
        file.write(hashlib.sha256(content).digest() + content)
        file.flush()
        os.fsync(file.fileno())
    if path.exists():
        os.replace(path, path.with_name(path.name + ".previous"))
    os.replace(temporary, path)


def read_checkpoint(path: Path) -> dict | None:
    """The newest whole checkpoint at `path` or `<name>.previous`; None where there is none.

    A file that is damaged or half written is left aside with a warning, never loaded.
    """
    for candidate in (path, path.with_name(path.name + ".previous")):
        if not candidate.exists():
            continue
        content = candidate.read_bytes()
        if hashlib.sha256(content[32:]).digest() == content[:32]:
            return torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
        warnings.warn(f"{candidate.name}: checksum differs, so this checkpoint is not used", stacklevel=2)
    return None


def snapshot_steps(steps: int) -> list[int]:
    """Steps at which weights are kept: powers of two at first, then every fortieth of the run."""
    powers = [0, *(2**k for k in range(4, 20))]
    stride = max(1, steps // 60)
    return sorted({step for step in powers if step < steps} | set(range(stride, steps, stride)) | {steps})


# ---- One step. ----
def learning_rate(config: Config, step: int) -> float:
    """Warm-up, plateau, straight fall to zero over the last `decay` of the steps; the same again after a restart."""
    first = max([0, *(restart for restart in config.restarts if restart <= step)])
    last = min([config.steps, *(restart for restart in config.restarts if restart > step)])
    plateau, _ = config.rates(step)
    return plateau * min(1.0, (step - first + 1) / config.warmup, (last - step) / (config.decay * (last - first)))


def optimizers_for(model: nn.Module, config: Config) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon (Jordan et al. 2024) for the matrices inside the blocks and AdamW for the rest.

    Vectors and position tables are not decayed.
    """
    inside, decayed, others = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or "pos" in name or "wpe" in name:
            others.append(parameter)
        elif config.muon and ".h." in name:
            inside.append(parameter)
        else:
            decayed.append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizers = [torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)]
    if inside:
        # Scaled so that an update is as large as one of AdamW: one learning rate serves both.
        muon = torch.optim.Muon(
            inside, lr=config.learning_rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
        optimizers.append(muon)
    return optimizers


def next_token_loss(logits: Float[Tensor, "batch seq vocab"], tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
    """Mean cross entropy of each next token, in nats."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def autocasts(where: torch.device) -> bool:
    """Whether bfloat16 products pay here: on a GPU, and on processors that have them in hardware."""
    return where.type == "cuda" or bool(torch.cpu._is_avx512_bf16_supported())


# ---- The run. ----
class Run:
    """One training run in a folder: `state.ckpt`, `metrics.jsonl`, `snapshots/`, `final.safetensors`."""

    def __init__(self, config: Config, tokenizer: Tokenizer, folder: str | Path, compiled: bool = False):
        self.config, self.folder = config, Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "snapshots").mkdir(exist_ok=True)
        self.where = processes.join(device())
        self.autocast = autocasts(self.where)
        torch.manual_seed(0)
        self.model = build(config).to(self.where)
        self.optimizers = optimizers_for(self.model, config)
        self.batches = Batches(config, tokenizer)
        self.step, self.seconds = 0, 0.0
        self.metrics_path = self.folder / "metrics.jsonl"
        self.validation = rows(sample(400, VALIDATION_SEED), tokenizer, config.n_ctx)[:32].long()
        self.repeats = repeated_rows(8, config, VALIDATION_SEED)
        self._resume()
        processes.wait()  # nobody writes before all have read
        self._loss = torch.compile(self._batch_loss) if compiled else self._batch_loss

    def _resume(self) -> None:
        state = read_checkpoint(self.folder / "state.ckpt")
        if state is None:
            if processes.first():
                self.metrics_path.unlink(missing_ok=True)
            return
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.step, self.seconds = state["step"], state["seconds"]
        # Metrics that were written after the checkpoint belong to steps that will run again.
        lines = self.metrics_path.read_text().splitlines() if self.metrics_path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= self.step]
        if processes.first():
            self.metrics_path.write_text("".join(line + "\n" for line in kept))

    def _save(self) -> None:
        write_checkpoint(
            {
                "model": self.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "step": self.step,
                "seconds": self.seconds,
            },
            self.folder / "state.ckpt",
        )

    def _weights(self) -> dict[str, Tensor]:
        if isinstance(self.model, AttentionOnly):
            return self.model.hooked_state()
        # The output matrix is the embedding itself: stored once.
        state = self.model.model.state_dict()
        return {k: v.cpu().contiguous() for k, v in state.items() if k != "lm_head.weight"}

    def _snapshot(self) -> None:
        path = self.folder / "snapshots" / f"step_{self.step:06d}.safetensors"
        save_file({name: tensor.half() for name, tensor in self._weights().items()}, f"{path}.part")
        os.replace(f"{path}.part", path)

    def _batch_loss(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, ""]:
        with torch.autocast(self.where.type, torch.bfloat16, enabled=self.autocast):
            return next_token_loss(self.model(tokens), tokens)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Losses on held-out documents and repeated passages; for an attention-only model the scores of its heads."""
        self.model.eval()
        where = self.where
        found = {
            "validation_loss": float(
                next_token_loss(self.model(self.validation.to(where)).float().cpu(), self.validation)
            )
        }
        half = min(50, (self.config.n_ctx - 1) // 2)
        first, second = repeated_losses(
            lambda t: self.model(t.to(where)).float().cpu(), self.config.vocabulary_size, half, 16
        )
        found |= {"repeat_first": first, "repeat_second": second}
        if isinstance(self.model, AttentionOnly):
            found |= head_scores(self.model.hooked_state(), self.config, half)
        self.model.train()
        return {name: round(value, 4) if isinstance(value, float) else value for name, value in found.items()}

    def train(self, until: int | None = None) -> dict[str, float]:
        """Train up to `until` (default: to the end of the configuration) and return the last metrics."""
        config = self.config
        until = config.steps if until is None else min(until, config.steps)
        writes = processes.first()
        kept_steps = set(snapshot_steps(config.steps)) if config.snapshots and writes else set()
        losses: list[float] = []
        last: dict[str, float] = {}
        begun = time.monotonic() - self.seconds
        if self.step == 0 and kept_steps:
            self._snapshot()
        bar = tqdm(
            total=config.steps,
            initial=self.step,
            desc=config.name,
            unit="step",
            mininterval=5,
            disable=not writes,
        )
        with bar:
            while self.step < until:
                for optimizer in self.optimizers:
                    for group in optimizer.param_groups:
                        group["lr"] = learning_rate(config, self.step)
                loss = self._loss(processes.share(self.batches.batch(self.step)).to(self.where))
                loss.backward()
                mean_loss = processes.average(self.model, loss)
                nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                for optimizer in self.optimizers:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                self.step += 1
                losses.append(mean_loss)
                if not math.isfinite(losses[-1]):
                    raise FloatingPointError(f"{config.name}: the loss is {losses[-1]} at step {self.step}")
                bar.update()
                self.seconds = time.monotonic() - begun
                if self.step in kept_steps:
                    self._snapshot()
                if writes and (self.step % config.evaluate_every == 0 or self.step == config.steps):
                    last = {
                        "step": self.step,
                        "tokens": self.step * config.batch_rows * config.n_ctx,
                        "minutes": round(self.seconds / 60, 2),
                        "learning_rate": learning_rate(config, self.step - 1),
                        "training_loss": round(sum(losses) / len(losses), 4),
                        **self.evaluate(),
                    }
                    losses = []
                    with open(self.metrics_path, "a") as file:
                        file.write(json.dumps(last) + "\n")
                    bar.set_postfix(loss=last["validation_loss"], second=last["repeat_second"])
                if writes and (self.step % config.save_every == 0 or self.step == config.steps):
                    self._save()
        if self.step >= config.steps and writes:
            path = self.folder / "final.safetensors"
            save_file(self._weights(), f"{path}.part")
            os.replace(f"{path}.part", path)
        return last


def forget(folder: str | Path) -> None:
    """Remove a run's folder, to begin anew."""
    shutil.rmtree(folder, ignore_errors=True)
