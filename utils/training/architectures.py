"""The networks as they are trained, and how their weights become the formats that the libraries load."""

import math

import einops
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from utils.training.config import Config


def waves(n_ctx: int, d_model: int, std: float) -> Float[Tensor, "n_ctx d_model"]:
    """Where learned positions start: sines and cosines of frequencies from 2 down to half a turn in the context.

    A shift by one position is then a rotation, which a head can do at once; from random vectors it must first be
    learned for each position. Trained GPT-2 position tables end as such waves, and Shortformer's are fixed ones.
    """
    frequencies = torch.logspace(math.log10(2.0), math.log10(math.pi / n_ctx), d_model // 2)
    angles = torch.arange(n_ctx)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1) * std * 2**0.5


class AttentionOnly(nn.Module):
    """Attention-only transformer with shortformer positions: no LayerNorm, no MLP, no biases.

    Positions are added to what queries and keys read, in every layer, and never to values (Press et al. 2021).
    The same function as transformer_lens's `HookedTransformer` with `hooked_config(config)`, only faster to train.
    Parameters carry transformer_lens's names.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        L, H, D, K = config.n_layers, config.n_heads, config.d_model, config.d_head
        std = 0.8 / D**0.5  # transformer_lens's default
        self.W_E = nn.Parameter(torch.randn(config.vocabulary_size, D) * std)
        self.W_pos = nn.Parameter(waves(config.n_ctx, D, config.position_std))
        self.W_Q, self.W_K, self.W_V = (nn.Parameter(torch.randn(L, H, D, K) * std) for _ in range(3))
        self.W_O = nn.Parameter(torch.randn(L, H, K, D) * std)
        self.W_U = nn.Parameter(torch.randn(D, config.vocabulary_size) * std)

    def forward(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
        resid = F.embedding(tokens, self.W_E)
        pos = self.W_pos[: tokens.shape[1]]
        for layer in range(self.config.n_layers):
            # One matrix product for all heads: "head d_model d_head -> d_model (head d_head)".
            W_Q, W_K, W_V = (
                einops.rearrange(W[layer], "head d_model d_head -> d_model (head d_head)")
                for W in (self.W_Q, self.W_K, self.W_V)
            )
            q, k, v = (
                einops.rearrange(x, "batch seq (head d_head) -> batch head seq d_head", head=self.config.n_heads)
                for x in ((resid + pos) @ W_Q, (resid + pos) @ W_K, resid @ W_V)
            )
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            z = einops.rearrange(z, "batch head seq d_head -> batch seq (head d_head)")
            resid = resid + z @ einops.rearrange(self.W_O[layer], "head d_head d_model -> (head d_head) d_model")
        return resid @ self.W_U

    def hooked_state(self) -> dict[str, Float[Tensor, "..."]]:
        """The weights under transformer_lens's names, without its biases (they are zero)."""
        state = {"embed.W_E": self.W_E, "pos_embed.W_pos": self.W_pos, "unembed.W_U": self.W_U}
        for layer in range(self.config.n_layers):
            for name in ("W_Q", "W_K", "W_V", "W_O"):
                state[f"blocks.{layer}.attn.{name}"] = getattr(self, name)[layer]
        return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def hooked_config(config: Config) -> dict:
    """Keyword arguments of `HookedTransformerConfig` for an attention-only model, fit for JSON."""
    return {
        "model_name": config.name,
        "n_layers": config.n_layers,
        "n_heads": config.n_heads,
        "d_model": config.d_model,
        "d_head": config.d_head,
        "n_ctx": config.n_ctx,
        "d_vocab": config.vocabulary_size,
        "attn_only": True,
        "positional_embedding_type": "shortformer",
        "normalization_type": None,
        "attention_dir": "causal",
        "act_fn": None,
        "seed": 0,
    }


class GPT2(nn.Module):
    """GPT-2 of the transformers library; `forward` gives the logits alone."""

    def __init__(self, config: Config):
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        self.model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=config.vocabulary_size,
                n_positions=config.n_ctx,
                n_ctx=config.n_ctx,  # transformer_lens reads it
                n_embd=config.d_model,
                n_layer=config.n_layers,
                n_head=config.n_heads,
                bos_token_id=0,
                eos_token_id=0,
                resid_pdrop=0.0,
                embd_pdrop=0.0,
                attn_pdrop=0.0,
            )
        )
        self.model.transformer.wpe.weight.data = waves(config.n_ctx, config.d_model, config.position_std)

    def forward(self, tokens: Int[Tensor, "batch seq"]) -> Float[Tensor, "batch seq vocab"]:
        return self.model(tokens, use_cache=False).logits


def build(config: Config) -> AttentionOnly | GPT2:
    """A freshly initialised network; call `torch.manual_seed` before."""
    if config.architecture == "gpt2":
        return GPT2(config)
    if config.architecture == "attention-only":
        return AttentionOnly(config)
    raise ValueError(f"no architecture {config.architecture!r}: choose gpt2 or attention-only")
