"""Small random models, caches and hook points, to draw inputs of functions that run a model."""

import inspect
import random
import typing
from collections.abc import Callable

import torch
from torch import nn
from transformer_lens import ActivationCache, HookedTransformer, HookedTransformerConfig

from utils.checks.models import hook_point, new_model
from utils.transformer import Config, DemoTransformer

LENGTHS = (2, 3, 5, 7, 9, 11)
# What an activation is called, by the last of its dimensions.
PLACES = {("d_head",): "z", ("query", "key"): "pattern", ("d_model",): "resid_pre"}


class World:
    """A model, and the sizes that its activations have: dimension's name → size."""

    def __init__(self, draw: random.Random, demo: bool):
        self.draw = draw
        self.model = (demo_transformer if demo else hooked_transformer)(draw)
        self.model.requires_grad_(False).eval()
        cfg, seq = self.model.cfg, draw.choice(LENGTHS)
        self.sizes = dict(batch=draw.choice((1, 2, 3)), d_model=cfg.d_model, d_head=cfg.d_head, d_vocab=cfg.d_vocab)
        self.sizes |= dict.fromkeys(("n_heads", "heads", "head", "nheads"), cfg.n_heads)
        self.sizes |= dict.fromkeys(("layer", "n_layers"), cfg.n_layers)
        self.sizes |= dict.fromkeys(("seq", "pos", "query", "key"), seq)

    def ids(self, shape: list[int]) -> torch.Tensor:
        """Token ids; of a single dimension, positions."""
        below = self.sizes["d_vocab"] if len(shape) > 1 else self.sizes["seq"]
        return torch.tensor([self.draw.randrange(below) for _ in range(torch.Size(shape).numel())]).reshape(shape)

    def cache(self) -> ActivationCache:
        """Of a run on other tokens; now and then of another length, or without its batch."""
        batch, seq = self.sizes["batch"], self.sizes["seq"]
        alone = self.draw.random() < 0.15
        seq += self.draw.random() < 0.1
        tokens = self.ids([1 if alone else batch, seq])
        return self.model.run_with_cache(tokens, remove_batch_dim=alone)[1]

    def hook(self, dims: list[str]):
        name = next((name for ends, name in PLACES.items() if tuple(dims[-len(ends) :]) == ends), "resid_pre")
        return hook_point(name, self.draw.randrange(self.model.cfg.n_layers))

    def function(self, annotation) -> Callable:
        """A metric of logits, or a score of heads in which some tie."""
        (taken, *_), _ = typing.get_args(annotation)
        if hasattr(taken, "dim_str"):
            weights = torch.linspace(-1, 1, self.sizes["d_vocab"])
            return lambda logits: (logits[:, -1] * weights).sum(-1).mean()
        return lambda heads: float(sum((7 * layer + 3 * head) % 5 - 1 for layer, head in heads))


def of(fn: Callable, draw: random.Random) -> World | None:
    """What the inputs of a function are drawn from, where it takes a model or a cache."""
    taken = [p.annotation for p in inspect.signature(fn, eval_str=True).parameters.values()]
    if not any(each in (HookedTransformer, ActivationCache, DemoTransformer, nn.Module) for each in taken):
        return None
    return World(draw, demo=DemoTransformer in taken or nn.Module in taken)


def hooked_transformer(draw: random.Random) -> HookedTransformer:
    attn_only = draw.random() < 0.5
    cfg = HookedTransformerConfig(
        n_layers=draw.choice((1, 2, 3)),
        n_heads=draw.choice((1, 2, 3)),
        d_head=draw.choice((1, 2, 4)),
        d_model=draw.choice((3, 5, 8)),
        d_mlp=None if attn_only else 7,
        d_vocab=draw.choice((4, 6, 9)),
        n_ctx=12,
        act_fn=None if attn_only else "gelu_new",
        attn_only=attn_only,
        normalization_type=draw.choice((None, None, "LN", "LNPre", "RMS")),
        positional_embedding_type=draw.choice(("standard", "shortformer")),
        use_attn_result=True,
        device="cpu",
    )
    return _filled(new_model(cfg), draw)


def demo_transformer(draw: random.Random) -> DemoTransformer:
    d_head, n_heads = draw.choice((1, 2, 4)), draw.choice((1, 2, 3))
    sizes = dict(d_model=draw.choice((3, 5, 8)), d_head=d_head, n_heads=n_heads, d_mlp=7, n_layers=draw.choice((1, 2)))
    return _filled(DemoTransformer(Config(**sizes, d_vocab=draw.choice((4, 6, 9)), n_ctx=12)), draw)


def _filled(model: nn.Module, draw: random.Random) -> nn.Module:
    """With random weights; biases are left as they are in a third of the models."""
    generator, biases = torch.Generator().manual_seed(draw.randrange(10**6)), draw.random() < 0.67
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if biases or not name.split(".")[-1].startswith("b"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model
