"""Models whose weights are written down by hand, so that it is known what a method has to find in them."""

from types import SimpleNamespace

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

from utils.checks.models import new_model

N_TOKENS, N_CTX = 23, 25
PREVIOUS, INDUCTION = (0, 1), (1, 0)


@torch.no_grad()
def induction_circuit() -> HookedTransformer:
    """An induction circuit written down weight by weight; the other two heads do nothing.

    The residual stream has a part for the token, a part for the copied token and a part for the position.
    """
    token, copied, position = 0, N_TOKENS, 2 * N_TOKENS
    cfg = HookedTransformerConfig(
        n_layers=2,
        n_heads=2,
        d_head=N_CTX,
        d_model=2 * N_TOKENS + N_CTX,
        d_vocab=N_TOKENS,
        n_ctx=N_CTX,
        attn_only=True,
        normalization_type=None,
        positional_embedding_type="shortformer",
        use_attn_result=True,
        device="cpu",
    )
    model = new_model(cfg)
    model.tokenizer = SimpleNamespace(bos_token_id=0, padding_side="right", pad_token_id=None)
    for parameter in model.parameters():
        parameter.zero_()
    for t in range(N_TOKENS):
        model.embed.W_E[t, token + t] = 1
        model.unembed.W_U[token + t, t] = 1
    for p in range(N_CTX):
        model.pos_embed.W_pos[p, position + p] = 1
    previous, induction = model.blocks[0].attn, model.blocks[1].attn
    for p in range(N_CTX - 1):
        previous.W_Q[1, position + p + 1, p] = 30
        previous.W_K[1, position + p, p] = 30
    for t in range(N_TOKENS):
        previous.W_V[1, token + t, t] = 1
        previous.W_O[1, t, copied + t] = 1
        induction.W_Q[0, token + t, t] = 30
        induction.W_K[0, copied + t, t] = 30
        induction.W_V[0, token + t, t] = 1
        induction.W_O[0, t, token + t] = 12
    return model


def passages() -> torch.Tensor:
    """Repeated sequences in which no token stands twice in a passage."""
    half = torch.stack(
        [torch.randperm(N_TOKENS - 1, generator=torch.Generator().manual_seed(i))[:11] + 1 for i in range(6)]
    )
    return torch.cat([torch.zeros(6, 1, dtype=torch.long), half, half], dim=1)
