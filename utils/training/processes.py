"""Several processes that train one model: each takes its share of every batch, gradients and losses are averaged.

`torchrun --nproc-per-node 2 -m utils.training train pico-gpt` starts them; without torchrun there is one process, and
nothing here does anything.
"""

import os

import torch
import torch.distributed as dist
from jaxtyping import Int
from torch import Tensor, nn


def join(where: torch.device) -> torch.device:
    """Meet the other processes that torchrun started; returns this one's device (of several GPUs its own)."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return where
    if where.type == "cuda":
        where = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(where)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo")
    return where


def first() -> bool:
    """Whether this process is the one that writes files and shows the bar."""
    return not dist.is_initialized() or dist.get_rank() == 0


def wait() -> None:
    """For all the others to come as far."""
    if dist.is_initialized():
        dist.barrier()


def share(batch: Int[Tensor, "batch seq"]) -> Int[Tensor, "share seq"]:
    """This process's rows of a batch: every n-th, so that documents and repeated passages come to all.

    Raises:
        ValueError: the batch can't be shared evenly; then a mean of means would not be its mean.
    """
    if not dist.is_initialized():
        return batch
    if len(batch) % dist.get_world_size():
        raise ValueError(
            f"{len(batch)} rows can't be shared evenly by {dist.get_world_size()} processes: take another number"
        )
    return batch[dist.get_rank() :: dist.get_world_size()]


def average(model: nn.Module, loss: Tensor) -> float:
    """Make every gradient, and the loss, the mean over all processes."""
    mean = loss.detach().clone()
    if dist.is_initialized():
        for each in [p.grad for p in model.parameters() if p.grad is not None] + [mean]:
            dist.all_reduce(each)
            each /= dist.get_world_size()
    return mean.item()
