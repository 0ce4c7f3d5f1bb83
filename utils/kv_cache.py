"""The cache of keys and values: what a transformer need not compute again for the next
token, and what that saves.
"""

import einops
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from utils.transformer import Attention, Config, DemoTransformer


class KeyValueCache:
    """Keys and values of every layer, for all tokens that went through the model so
    far.

    `keys` and `values` are `(n_layers, batch, n_heads, n_max, d_head)`; the first
    `length` places of `n_max` are in use. A row's first `padding` places hold no text
    (batches of prompts of different lengths are padded on the left).

    Raises:
        ValueError: more tokens than `n_max` are put in.
    """

    def __init__(
        self,
        cfg: Config,
        batch: int = 1,
        n_max: int | None = None,
        padding: Int[Tensor, "batch"] | None = None,
    ):
        self.n_max = min(n_max or cfg.n_ctx, cfg.n_ctx)
        self.padding = (
            torch.zeros(batch, dtype=torch.long) if padding is None else padding
        )
        self.keys = torch.empty(
            cfg.n_layers,
            batch,
            cfg.n_heads,
            self.n_max,
            cfg.d_head,
            device=self.padding.device,
        )
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def append(
        self,
        layer: int,
        k: Float[Tensor, "batch n_heads new d_head"],
        v: Float[Tensor, "batch n_heads new d_head"],
    ) -> tuple[
        Float[Tensor, "batch n_heads key d_head"],
        Float[Tensor, "batch n_heads key d_head"],
    ]:
        """Store the new tokens' keys and values of one layer; returns that layer's old
        and new ones together.

        `length` stays as it is: the other layers still have to store theirs.
        """
        end = self.length + k.shape[2]
        if end > self.n_max:
            raise ValueError(
                f"the cache has room for n_max={self.n_max} tokens, not for {end}"
            )
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def positions(self, new: int) -> Int[Tensor, "batch new"]:
        """The position of each of the `new` next tokens in its own text; 0 in the
        padding.
        """
        places = torch.arange(
            self.length, self.length + new, device=self.padding.device
        )
        return (places - self.padding[:, None]).clamp(min=0)

    def allowed(self, new: int) -> Bool[Tensor, "batch new key"]:
        """Which keys (old and new) each new query may see: none after it, and none of
        the padding.

        A query that is itself padding sees padding, so that its softmax has something
        to add up.
        """
        query = torch.arange(
            self.length, self.length + new, device=self.padding.device
        )[:, None]
        key = torch.arange(self.length + new, device=self.padding.device)[None, :]
        padding = self.padding[:, None, None]
        return (key <= query) & ((key >= padding) == (query >= padding))

    def select(self, rows: Int[Tensor, "rows"]) -> None:
        """Keep these rows, in this order; a row may be taken several times."""
        self.keys, self.values = (
            self.keys.index_select(1, rows),
            self.values.index_select(1, rows),
        )
        self.padding = self.padding[rows]


def attention_with_cache(
    attn: Attention,
    normalized_resid_pre: Float[Tensor, "batch new d_model"],
    cache: KeyValueCache,
    layer: int,
    allowed: Bool[Tensor, "batch new key"],
) -> Float[Tensor, "batch new d_model"]:
    """What `attn` writes at the new positions only; the earlier positions' keys and
    values come from the cache.
    """
    # Queries, keys and values of the new positions.
    into_heads = "batch new d_model, n_heads d_model d_head -> batch n_heads new d_head"
    q = einops.einsum(normalized_resid_pre, attn.W_Q, into_heads) + attn.b_Q[:, None]
    k = einops.einsum(normalized_resid_pre, attn.W_K, into_heads) + attn.b_K[:, None]
    v = einops.einsum(normalized_resid_pre, attn.W_V, into_heads) + attn.b_V[:, None]
    # Keys and values of all positions: `new` rows of scores instead of a whole square.
    k, v = cache.append(layer, k, v)
    attn_scores = q @ k.transpose(-1, -2) / attn.cfg.d_head**0.5
    pattern = attn_scores.masked_fill(~allowed[:, None], attn.IGNORE).softmax(dim=-1)
    out = "batch n_heads new d_head, n_heads d_head d_model -> batch new d_model"
    return einops.einsum(pattern @ v, attn.W_O, out) + attn.b_O


@torch.inference_mode()
def forward_with_cache(
    model: DemoTransformer, tokens: Int[Tensor, "batch new"], cache: KeyValueCache
) -> Float[Tensor, "batch new d_vocab"]:
    """Logits at the new tokens, the same as if the model had read the whole text; the
    cache grows by them.
    """
    new = tokens.shape[1]
    # The positions go on where the cache ends.
    positions, allowed = cache.positions(new), cache.allowed(new)
    residual = model.embed.W_E[tokens.clamp(min=0)] + model.pos_embed.W_pos[positions]
    for layer, block in enumerate(model.blocks):
        residual = residual + attention_with_cache(
            block.attn, block.ln1(residual), cache, layer, allowed
        )
        residual = residual + block.mlp(block.ln2(residual))
    # Only now have all layers stored their keys and values.
    cache.length += new
    return model.unembed(model.ln_final(residual))


def flops_per_new_token(cfg: Config, length: int, cached: bool) -> dict[str, int]:
    """Floating-point operations for one more token after `length` tokens, of each kind
    of matrix product.

    A product of (a, b) with (b, c) counts 2abc. Without a cache all `length + 1`
    positions are computed anew, and the masked half of the scores too.
    """
    n_key = length + 1
    n_query = 1 if cached else n_key
    d_heads = cfg.n_heads * cfg.d_head
    per_layer = {
        "queries, keys, values": 3 * 2 * n_query * cfg.d_model * d_heads,
        "scores": 2 * n_query * n_key * d_heads,
        "mix of values": 2 * n_query * n_key * d_heads,
        "output": 2 * n_query * d_heads * cfg.d_model,
        "MLP": 2 * 2 * n_query * cfg.d_model * cfg.d_mlp,
    }
    unembed = {"unembedding": 2 * n_query * cfg.d_model * cfg.d_vocab}
    return {name: cfg.n_layers * flops for name, flops in per_layer.items()} | unembed
