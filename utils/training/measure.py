"""What a model can do, measured on held-out data. A model is any function from tokens to logits."""

from collections.abc import Callable

import einops
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from utils.training.config import Config
from utils.world import repeated_tokens

Predict = Callable[[Int[Tensor, "batch seq"]], Float[Tensor, "batch seq vocab"]]

# Passages for measuring: a seed that no training step uses.
REPEAT_SEED = 99


def repeated_losses(predict: Predict, vocabulary_size: int, half: int = 50, n: int = 32) -> tuple[float, float]:
    """Mean loss in nats on the first and on the second copy of random passages of `half` tokens."""
    tokens = repeated_tokens(n, half, vocabulary_size, REPEAT_SEED)
    with torch.no_grad():
        log_probs = F.log_softmax(predict(tokens).float(), dim=-1)
    loss = -log_probs[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return loss[:, :half].mean().item(), loss[:, half:].mean().item()


def head_scores(state: dict[str, Tensor], config: Config, half: int = 50, n: int = 4) -> dict[str, list]:
    """Scores of every head of an attention-only model on repeated random passages, as nested lists [layer][head].

    `previous`: mean attention to the token before. `induction`: mean attention, from the second copy, to the token
    after the same token's first occurrence.
    """
    tokens = repeated_tokens(n, half, config.vocabulary_size, REPEAT_SEED)
    resid = state["embed.W_E"][tokens]
    pos = state["pos_embed.W_pos"][: tokens.shape[1]]
    mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
    previous, induction = [], []
    for layer in range(config.n_layers):
        W_Q, W_K, W_V, W_O = (state[f"blocks.{layer}.attn.W_{x}"] for x in "QKVO")
        q = einops.einsum(resid + pos, W_Q, "b s d, h d k -> b h s k")
        k = einops.einsum(resid + pos, W_K, "b s d, h d k -> b h s k")
        v = einops.einsum(resid, W_V, "b s d, h d k -> b h s k")
        scores = q @ k.transpose(-1, -2) / config.d_head**0.5
        pattern = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        previous.append(pattern.diagonal(-1, -2, -1).mean((0, 2)).tolist())
        # From position half + 1 on, the token stood `half` places before; the one after it `half - 1` places before.
        stripe = pattern.diagonal(-(half - 1), -2, -1)[..., 2:]
        induction.append(stripe.mean((0, 2)).tolist())
        resid = resid + einops.einsum(pattern @ v, W_O, "b h s k, h k d -> b s d")
    rounded = {"previous": previous, "induction": induction}
    return {name: [[round(x, 4) for x in row] for row in table] for name, table in rounded.items()}
