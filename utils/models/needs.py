"""What a model needs, from its sizes: parameters, memory, arithmetic.

`python -m utils.models.needs` prints the tables of docs/larger-models.md.
"""

from dataclasses import dataclass

GB = 1e9


@dataclass(frozen=True)
class Sizes:
    """A decoder's sizes. `gpt2`: learned positions, biases, LayerNorm, tied embeddings; `llama`: none of these."""

    name: str
    build: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_mlp: int
    d_vocab: int
    n_ctx: int

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    def parameters(self) -> int:
        """Weights in all, an embedding that is also the unembedding counted once."""
        d, mlp = self.d_model, self.d_mlp
        kv = self.n_kv_heads * self.d_head
        attention, norms = 2 * d * d + 2 * d * kv, 2 * d
        if self.build == "gpt2":
            layer = attention + (2 * d + 2 * kv) + 2 * d * mlp + (mlp + d) + 2 * norms
            return self.n_layers * layer + (self.d_vocab + self.n_ctx) * d + 2 * d
        return self.n_layers * (attention + 3 * d * mlp + norms) + 2 * self.d_vocab * d + d

    def weights(self, bytes_each: int = 4) -> int:
        """Bytes of the weights."""
        return self.parameters() * bytes_each

    def flops(self, context: int) -> int:
        """Arithmetic of one token's way forward, in multiply-adds counted as two: the matrices, and attention over
        `context` tokens. Backward costs twice as much again.
        """
        looked_up = self.d_vocab * self.d_model + (self.n_ctx * self.d_model if self.build == "gpt2" else 0)
        matrices = self.parameters() - looked_up
        if self.build == "gpt2":
            matrices += self.d_vocab * self.d_model  # it is looked up, and multiplied with at the end
        return 2 * matrices + 4 * self.n_layers * self.d_model * context

    def cached(self, context: int) -> int:
        """Numbers that transformer_lens's full cache holds for each token of a row of `context` tokens (a model of
        GPT-2's build, processed: no weights in its LayerNorms)."""
        stream = 6 * self.d_model  # resid_pre, attn_out, resid_mid, normalized twice, mlp_out; resid_post below
        heads = 4 * self.d_model + 2 * self.n_heads * context  # q, k, v, z; scores and pattern
        layer = stream + self.d_model + heads + 2 * self.d_mlp + 2  # and the two scales
        ends = 4 * self.d_model + 1 + self.d_vocab  # embed, pos_embed; ln_final and its scale; unembed's in and out
        return self.n_layers * layer + ends

    def training(self, bytes_each: int = 4) -> int:
        """Bytes of weights, gradients and AdamW's two moments, before any activation."""
        return self.weights(bytes_each) + 3 * self.weights(4)


MODELS = (
    Sizes("pico-gpt", "gpt2", 4, 192, 8, 8, 768, 3584, 256),
    Sizes("GPT-2 small", "gpt2", 12, 768, 12, 12, 3072, 50_257, 1024),
    Sizes("Llama 3.1 8B", "llama", 32, 4096, 32, 8, 14_336, 128_256, 131_072),
    Sizes("Llama 3.1 70B", "llama", 80, 8192, 64, 8, 28_672, 128_256, 131_072),
)
# Chapter → (what it does, tokens through the model, of which backward, length of a row, rows at once that are cached
# whole). Tokens are of the shipped notebooks, counted roughly.
CHAPTERS = {
    "02 Transformer": ("forward passes of single texts", 2e5, 0.0, 64, 8),
    "03 Sampling": ("generation, a token at a time", 1e5, 0.0, 64, 0),
    "04 Inspection": ("caches of a few prompts", 1e5, 0.0, 64, 16),
    "05 Induction": ("ablations over repeated rows", 2e6, 0.0, 101, 16),
    "08 Autoencoders": ("activations for latents", 3e6, 0.1, 128, 16),
    "09 Indirect objects": ("patching, each head and place", 2e6, 0.05, 20, 100),
    "10 Function vectors": ("sweeps over heads, 15 tasks", 2e6, 0.0, 30, 0),
}
# Sustained arithmetic, assumed: a laptop's processor, one data-centre GPU in bfloat16 at a quarter of its peak.
RATES = {"laptop": 1e11, "one GPU": 2e14}


def engine(model: Sizes) -> str:
    """Where a model runs: weights in float32 in 8 GB, in bfloat16 in three quarters of 80 GB, or on NDIF."""
    if model.weights(4) < 8 * GB:
        return "laptop"
    return "one GPU" if model.weights(2) < 60 * GB else "NDIF"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, seconds):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def tables() -> str:
    """Both tables of the page, as Markdown."""
    lines = ["| model | parameters | weights, float32 | bfloat16 | AdamW training, float32 | GFLOP a token | engine |"]
    lines.append("| --- " * 7 + "|")
    for m in MODELS:
        values = (f"{x / GB:#.3g} GB" for x in (m.weights(4), m.weights(2), m.training(4)))
        row = [m.name, f"{m.parameters():,}", *values, f"{m.flops(128) / 1e9:#.3g}", engine(m)]
        lines.append(f"| {' | '.join(row)} |")
    lines += ["", f"| chapter | what it does | {' | '.join(m.name for m in MODELS[1:])} |", "| --- " * 5 + "|"]
    for name, (what, tokens, backward, length, whole) in CHAPTERS.items():
        row = [name, what]
        for m in MODELS[1:]:
            where = engine(m)
            seconds = (
                tokens * (1 + 2 * backward) * m.flops(length) / RATES["laptop" if where == "laptop" else "one GPU"]
            )
            bytes_each = 4 if where == "laptop" else 2
            memory = m.weights(bytes_each) + bytes_each * length * max(whole * m.cached(length), 8 * m.d_vocab)
            row.append(f"{memory / GB:#.3g} GB, {duration(seconds)}, {where}")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(tables())
