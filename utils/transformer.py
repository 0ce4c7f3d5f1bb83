"""GPT-2's architecture, part by part, with TransformerLens's parameter names and
shapes; then its parts examined.

Every part maps the residual stream, `(batch, pos, d_model)`, to something of that
shape; only `Embed` reads tokens and only `Unembed` writes logits. Sources: Radford et
al. 2019 (GPT-2), Elhage et al. 2021 ("A Mathematical Framework for Transformer
Circuits"), TransformerLens.
"""

import math
from dataclasses import dataclass

import einops
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

# What chapter 02 imports: all but its exercises.
__all__ = [
    "Config",
    "State",
    "Trainer",
    "activation_shapes",
    "best_embedding_loss",
    "best_free_loss",
    "best_symmetric_loss",
    "evaluate",
    "table_loss",
    "unigram_loss",
]

State = dict[str, Tensor]


@dataclass
class Config:
    """The sizes of a GPT-2; the defaults are GPT-2 small's."""

    d_model: int = 768
    n_layers: int = 12
    n_heads: int = 12
    d_head: int = 64
    d_mlp: int = 3072
    d_vocab: int = 50257
    n_ctx: int = 1024
    layer_norm_eps: float = 1e-5
    init_range: float = 0.02

    @classmethod
    def of(cls, cfg) -> "Config":
        """The same sizes, read from the `cfg` of a TransformerLens model.

        Raises:
            ValueError: that model is not built like GPT-2.
        """
        positions, act, norm = (
            cfg.positional_embedding_type,
            cfg.act_fn,
            cfg.normalization_type,
        )
        if (
            cfg.attn_only
            or positions != "standard"
            or act != "gelu_new"
            or norm not in ("LN", "LNPre")
        ):
            raise ValueError(
                "this model is not built like GPT-2 (LayerNorm, MLPs with gelu_new, "
                "learned positions)"
            )
        names = (
            "d_model",
            "n_layers",
            "n_heads",
            "d_head",
            "d_mlp",
            "d_vocab",
            "n_ctx",
        )
        return cls(
            **{name: getattr(cfg, name) for name in names}, layer_norm_eps=cfg.eps
        )


# ---------------------------------------------------------------- the parts


class LayerNorm(nn.Module):
    """Bring each residual vector to mean 0 and variance 1, then scale by `w` and shift
    by `b` (Ba et al. 2016).
    """

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        self.w = nn.Parameter(torch.ones(cfg.d_model))
        self.b = nn.Parameter(torch.zeros(cfg.d_model))

    def forward(
        self, residual: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        # Centre: subtract the mean over d_model.
        centred = residual - residual.mean(dim=-1, keepdim=True)
        # Divide by the standard deviation; the variance is a plain mean, with
        # layer_norm_eps added under the root.
        scale = (
            centred.pow(2).mean(dim=-1, keepdim=True) + self.cfg.layer_norm_eps
        ).sqrt()
        # Scale and shift with what was learned.
        return centred / scale * self.w + self.b


class Embed(nn.Module):
    """Look up each token's vector."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.W_E = nn.Parameter(
            torch.empty(cfg.d_vocab, cfg.d_model).normal_(std=cfg.init_range)
        )

    def forward(
        self, tokens: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        return self.W_E[tokens]


class PosEmbed(nn.Module):
    """Look up each position's vector: the same for every text, learned, absolute."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.W_pos = nn.Parameter(
            torch.empty(cfg.n_ctx, cfg.d_model).normal_(std=cfg.init_range)
        )

    def forward(
        self, tokens: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        batch, n_pos = tokens.shape
        return einops.repeat(
            self.W_pos[:n_pos], "pos d_model -> batch pos d_model", batch=batch
        )


class Attention(nn.Module):
    """Causal self-attention: each head moves information to a position from it and
    earlier ones.
    """

    IGNORE: Float[Tensor, ""]

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        into_head, into_model = (
            (cfg.n_heads, cfg.d_model, cfg.d_head),
            (cfg.n_heads, cfg.d_head, cfg.d_model),
        )
        self.W_Q = nn.Parameter(torch.empty(into_head).normal_(std=cfg.init_range))
        self.W_K = nn.Parameter(torch.empty(into_head).normal_(std=cfg.init_range))
        self.W_V = nn.Parameter(torch.empty(into_head).normal_(std=cfg.init_range))
        self.W_O = nn.Parameter(torch.empty(into_model).normal_(std=cfg.init_range))
        self.b_Q = nn.Parameter(torch.zeros(cfg.n_heads, cfg.d_head))
        self.b_K = nn.Parameter(torch.zeros(cfg.n_heads, cfg.d_head))
        self.b_V = nn.Parameter(torch.zeros(cfg.n_heads, cfg.d_head))
        self.b_O = nn.Parameter(torch.zeros(cfg.d_model))
        self.register_buffer("IGNORE", torch.tensor(float("-inf")))

    def forward(
        self, normalized_resid_pre: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        x = normalized_resid_pre
        # Queries, keys and values of every head: (batch, pos, n_heads, d_head).
        into_heads = (
            "batch pos d_model, n_heads d_model d_head -> batch pos n_heads d_head"
        )
        q = einops.einsum(x, self.W_Q, into_heads) + self.b_Q
        k = einops.einsum(x, self.W_K, into_heads) + self.b_K
        v = einops.einsum(x, self.W_V, into_heads) + self.b_V
        # Scores: each query with each key, divided by the root of d_head, masked, then
        # softmax over the keys.
        pairs = (
            "batch query n_heads d_head, batch key n_heads d_head"
            " -> batch n_heads query key"
        )
        attn_scores = einops.einsum(q, k, pairs) / self.cfg.d_head**0.5
        pattern = self.apply_causal_mask(attn_scores).softmax(dim=-1)
        # Each query's mix of values.
        mix = (
            "batch n_heads query key, batch key n_heads d_head"
            " -> batch query n_heads d_head"
        )
        z = einops.einsum(pattern, v, mix)
        # Back to the residual stream: every head writes, the writes add up, one bias
        # for all.
        out = (
            "batch query n_heads d_head, n_heads d_head d_model -> batch query d_model"
        )
        return einops.einsum(z, self.W_O, out) + self.b_O

    def apply_causal_mask(
        self, attn_scores: Float[Tensor, "batch n_heads query key"]
    ) -> Float[Tensor, "batch n_heads query key"]:
        """Put `IGNORE` wherever the key comes after the query."""
        # True above the diagonal: there the key lies in the query's future.
        n_query, n_key = attn_scores.shape[-2:]
        future = torch.ones(
            n_query, n_key, dtype=torch.bool, device=attn_scores.device
        ).triu(diagonal=1)
        return attn_scores.masked_fill(future, self.IGNORE)


class MLP(nn.Module):
    """Two linear maps with GPT-2's `gelu` (its tanh form, `gelu_new`) between them, at
    each position alone.
    """

    def __init__(self, cfg: Config):
        super().__init__()
        self.W_in = nn.Parameter(
            torch.empty(cfg.d_model, cfg.d_mlp).normal_(std=cfg.init_range)
        )
        self.W_out = nn.Parameter(
            torch.empty(cfg.d_mlp, cfg.d_model).normal_(std=cfg.init_range)
        )
        self.b_in = nn.Parameter(torch.zeros(cfg.d_mlp))
        self.b_out = nn.Parameter(torch.zeros(cfg.d_model))

    def forward(
        self, normalized_resid_mid: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        pre = normalized_resid_mid @ self.W_in + self.b_in
        post = nn.functional.gelu(pre, approximate="tanh")
        return post @ self.W_out + self.b_out


class TransformerBlock(nn.Module):
    """One layer: attention, then MLP; each reads a normalized copy of the stream and
    adds its result to the stream.
    """

    def __init__(self, cfg: Config):
        super().__init__()
        self.ln1 = LayerNorm(cfg)
        self.attn = Attention(cfg)
        self.ln2 = LayerNorm(cfg)
        self.mlp = MLP(cfg)

    def forward(
        self, resid_pre: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_model"]:
        resid_mid = resid_pre + self.attn(self.ln1(resid_pre))
        resid_post = resid_mid + self.mlp(self.ln2(resid_mid))
        return resid_post


class Unembed(nn.Module):
    """Read a logit for each token of the vocabulary off the stream."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.W_U = nn.Parameter(
            torch.empty(cfg.d_model, cfg.d_vocab).normal_(std=cfg.init_range)
        )
        self.b_U = nn.Parameter(torch.zeros(cfg.d_vocab))

    def forward(
        self, normalized_resid_final: Float[Tensor, "batch pos d_model"]
    ) -> Float[Tensor, "batch pos d_vocab"]:
        return normalized_resid_final @ self.W_U + self.b_U


class DemoTransformer(nn.Module):
    """The whole GPT-2: embeddings, the blocks, a last LayerNorm, the unembedding."""

    def __init__(self, cfg: Config):
        super().__init__()
        self.cfg = cfg
        self.embed = Embed(cfg)
        self.pos_embed = PosEmbed(cfg)
        self.blocks = nn.ModuleList(
            [TransformerBlock(cfg) for _ in range(cfg.n_layers)]
        )
        self.ln_final = LayerNorm(cfg)
        self.unembed = Unembed(cfg)

    def forward(
        self, tokens: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_vocab"]:
        residual = self.embed(tokens) + self.pos_embed(tokens)
        for block in self.blocks:
            residual = block(residual)
        return self.unembed(self.ln_final(residual))


def from_transformer_lens(model) -> DemoTransformer:
    """A `DemoTransformer` with the weights of a TransformerLens model, which must be
    loaded with `processed=False`.

    Raises:
        ValueError: the model is not built like GPT-2, or its LayerNorms are folded
            away.
    """
    state = model.state_dict()
    if "ln_final.w" not in state:
        raise ValueError(
            "this model's LayerNorms are folded into its weights: load it with "
            "processed=False"
        )
    own = DemoTransformer(Config.of(model.cfg)).to(model.cfg.device)
    own.load_state_dict(
        {name: state[name] for name, _ in own.named_parameters()}, strict=False
    )
    return own.eval().requires_grad_(False)


def activation_shapes(
    cfg: Config, batch: int | str = "batch", pos: int | str = "pos"
) -> dict[str, tuple]:
    """The shape of every activation, by TransformerLens's name without its layer; in
    the order of computation.
    """
    stream, heads = (batch, pos, cfg.d_model), (batch, pos, cfg.n_heads, cfg.d_head)
    scores, neurons = (batch, cfg.n_heads, pos, pos), (batch, pos, cfg.d_mlp)
    return {
        "tokens": (batch, pos),
        "hook_embed": stream,
        "hook_pos_embed": stream,
        "hook_resid_pre": stream,
        "ln1.hook_scale": (batch, pos, 1),
        "ln1.hook_normalized": stream,
        "attn.hook_q": heads,
        "attn.hook_k": heads,
        "attn.hook_v": heads,
        "attn.hook_attn_scores": scores,
        "attn.hook_pattern": scores,
        "attn.hook_z": heads,
        "hook_attn_out": stream,
        "hook_resid_mid": stream,
        "ln2.hook_scale": (batch, pos, 1),
        "ln2.hook_normalized": stream,
        "mlp.hook_pre": neurons,
        "mlp.hook_post": neurons,
        "hook_mlp_out": stream,
        "hook_resid_post": stream,
        "ln_final.hook_scale": (batch, pos, 1),
        "ln_final.hook_normalized": stream,
        "logits": (batch, pos, cfg.d_vocab),
    }


# ---------------------------------------------------------------- loss and baselines


def get_log_probs(
    logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos-1"]:
    """The log-probability, in nats, that the model gave to each token that really came
    next.

    The last position's prediction has nothing to be compared with, and the first token
    is predicted by nothing.
    """
    log_probs = logits.log_softmax(dim=-1)
    # The logits at position i belong to the token at position i + 1.
    return log_probs[:, :-1].gather(dim=-1, index=tokens[:, 1:, None]).squeeze(-1)


def unigram_loss(
    train: Int[Tensor, "rows pos"],
    test: Int[Tensor, "rows pos"],
    d_vocab: int,
    alpha: float = 0.1,
) -> float:
    """Cross-entropy (nats a token) on `test[:, 1:]` of the tokens' frequencies in
    `train`, each count raised by alpha.

    Raises:
        ValueError: `alpha` is not positive, so that a token new in `test` would cost
            infinitely much.
    """
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha}: it must be above 0")
    counts = torch.bincount(train.flatten(), minlength=d_vocab) + alpha
    log_probs = (counts / counts.sum()).log()
    return -log_probs[test[:, 1:]].mean().item()


def bigram_loss(
    train: Int[Tensor, "rows pos"],
    test: Int[Tensor, "test_rows test_pos"],
    d_vocab: int,
    strength: float = 1.0,
) -> float:
    """Cross-entropy (nats a token) on `test[:, 1:]` of predicting each token from the
    one before it.

    `p(b | a) = (count(a, b) + strength * p(b)) / (count(a) + strength)`: the tokens'
    frequencies fill what pairs have not been seen (MacKay and Peto 1995).
    """
    frequency = torch.bincount(train.flatten(), minlength=d_vocab) + 0.1
    frequency = frequency / frequency.sum()
    # A pair as one number; only pairs that occur are counted, since a full table has
    # d_vocab² entries.
    seen, counts = torch.unique(
        train[:, :-1] * d_vocab + train[:, 1:], return_counts=True
    )
    asked = test[:, :-1] * d_vocab + test[:, 1:]
    place = torch.searchsorted(seen, asked).clamp(max=len(seen) - 1)
    pair_count = torch.where(seen[place] == asked, counts[place], 0)
    first_count = torch.bincount(train[:, :-1].flatten(), minlength=d_vocab)[
        test[:, :-1]
    ]
    probs = (pair_count + strength * frequency[test[:, 1:]]) / (first_count + strength)
    return -probs.log().mean().item()


# ---------------------------------------------------------------- training


def training_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Int[Tensor, "batch pos"]
) -> float:
    """One step of gradient descent on next-token prediction; returns the loss before
    it, in nats a token.
    """
    loss = -get_log_probs(model(tokens), tokens).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


class Trainer:
    """Train from scratch with AdamW; interrupt `fit` at any moment, and calling it
    again goes on where it stopped.

    The learning rate rises over the first tenth of the steps and falls to zero along a
    cosine.

    Args:
        model: maps tokens to logits.
        rows: training tokens, `(rows, pos)`; batch `i` is drawn by a generator seeded
            with `seed + i`.
        steps, batch_size, lr: as usual.
        step: one step, as `training_step`.
    """

    def __init__(
        self,
        model,
        rows,
        steps: int,
        batch_size: int,
        lr: float = 1e-3,
        seed: int = 0,
        step=training_step,
    ):
        self.model, self.rows, self.steps, self.batch_size, self.seed = (
            model,
            rows,
            steps,
            batch_size,
            seed,
        )
        self.step = step
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01
        )
        warm = max(1, steps // 10)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer,
            lambda i: (
                (i + 1) / warm
                if i < warm
                else 0.5 + 0.5 * math.cos(math.pi * i / steps)
            ),
        )
        self.losses: list[float] = []

    def fit(self) -> list[float]:
        """Run the steps that are left; returns the loss of every step so far."""
        device = next(self.model.parameters()).device
        self.model.train()
        with tqdm(
            total=self.steps, initial=len(self.losses), desc="training", unit="step"
        ) as bar:
            while len(self.losses) < self.steps:
                draw = torch.Generator().manual_seed(self.seed + len(self.losses))
                chosen = torch.randint(
                    len(self.rows), (self.batch_size,), generator=draw
                )
                loss = self.step(
                    self.model, self.optimizer, self.rows[chosen].to(device)
                )
                self.schedule.step()
                self.losses.append(loss)
                bar.set_postfix(loss=f"{loss:.2f}", refresh=False)
                bar.update()
        self.model.eval()
        return self.losses


@torch.no_grad()
def evaluate(
    model: nn.Module, rows: Int[Tensor, "rows pos"], batch_size: int = 16
) -> float:
    """Mean cross-entropy, in nats a token."""
    batches = rows.split(batch_size)
    losses = [-get_log_probs(model(batch), batch).flatten() for batch in batches]
    return torch.cat(losses).mean().item()


# ---------------------------------------------------------------- tied embeddings


def bigram_logits(
    W_E: Float[Tensor, "tokens d_model"], W_U: Float[Tensor, "d_model tokens"]
) -> Float[Tensor, "tokens tokens"]:
    """What the direct path says: entry [a, b] is the logit that token a alone gives to
    b as the next token.
    """
    return W_E @ W_U


def antisymmetric_share(table: Float[Tensor, "n n"]) -> float:
    """How much of a table changes its sign under transposition: |A| / |table| with A =
    (table - table^T) / 2.

    0 for a symmetric table, about 0.71 for independent random entries, 1 for an
    antisymmetric table.
    """
    antisymmetric = (table - table.T) / 2
    return (antisymmetric.norm() / table.norm()).item()


def table_loss(
    table: Float[Tensor, "n n"], counts: Float[Tensor, "n n"]
) -> Float[Tensor, ""]:
    """Cross-entropy in bits a token of the rows' softmax on observed pairs; `counts[a,
    b]`: how often b follows a.
    """
    pair_probs = counts / counts.sum()
    return -(pair_probs * table.log_softmax(dim=-1)).sum() / math.log(2)


def best_free_loss(counts: Float[Tensor, "n n"]) -> float:
    """The lowest `table_loss` that any table reaches: that of the observed conditional
    frequencies, in bits.
    """
    rows = counts.sum(dim=-1, keepdim=True)
    log_probs = (counts / rows.clamp(min=1)).clamp(min=1e-12).log2()
    return -(counts / counts.sum() * log_probs).sum().item()


def best_symmetric_loss(counts: Float[Tensor, "n n"], steps: int = 400) -> float:
    """The lowest `table_loss` of a symmetric table, in bits: a convex problem, solved
    with Adam.
    """
    half = torch.zeros_like(counts, requires_grad=True)
    with torch.no_grad():
        half += ((counts + counts.T) / 2 + 1e-2).log()
    optimizer = torch.optim.Adam([half], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = table_loss(half + half.T, counts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return loss.item()


def best_embedding_loss(
    counts: Float[Tensor, "n n"],
    d_model: int,
    tied: bool,
    steps: int = 400,
    seed: int = 0,
) -> tuple[float, float]:
    """Train `W_E` (and `W_U`, or its transpose where tied) on observed pairs, with
    nothing between them.

    Returns:
        The `table_loss` that is reached, in bits, and the `antisymmetric_share` of the
        table.
    """
    draw = torch.Generator().manual_seed(seed)
    W_E = torch.randn(len(counts), d_model, generator=draw) / d_model**0.25
    W_U = torch.randn(d_model, len(counts), generator=draw) / d_model**0.25
    weights = [W.requires_grad_() for W in ([W_E] if tied else [W_E, W_U])]
    optimizer = torch.optim.Adam(weights, lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        table = bigram_logits(W_E, W_E.T if tied else W_U)
        loss = table_loss(table, counts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return loss.item(), antisymmetric_share(table.detach())


# ---------------------------------------------------------------- LayerNorm folding


def fold_layer_norm(state: State) -> State:
    """Move the scale `w` and the shift `b` of every LayerNorm into the linear maps that
    read its output.

    Args:
        state: the `state_dict` of a `DemoTransformer`; it stays as it is.

    Returns:
        A new state with the same outputs, in which every LayerNorm has w = 1 and b = 0.
    """
    state = {name: tensor.clone() for name, tensor in state.items()}

    def fold(norm: str, weight: str, bias: str) -> None:
        # (x * w + b) @ W + c = x @ (w * W) + (b @ W + c); W is (..., d_model, out).
        w, b, W = state[f"{norm}.w"], state[f"{norm}.b"], state[weight]
        state[bias] = state[bias] + b @ W
        state[weight] = w[:, None] * W

    n_layers = sum(name.endswith("attn.W_Q") for name in state)
    for layer in range(n_layers):
        block = f"blocks.{layer}"
        # The queries, keys and values read ln1's output, the MLP reads ln2's.
        for letter in "QKV":
            fold(f"{block}.ln1", f"{block}.attn.W_{letter}", f"{block}.attn.b_{letter}")
        fold(f"{block}.ln2", f"{block}.mlp.W_in", f"{block}.mlp.b_in")
    # The unembedding reads the last LayerNorm's output.
    fold("ln_final", "unembed.W_U", "unembed.b_U")
    # What has been moved must not be applied twice.
    norms = [
        name.removesuffix(".w")
        for name in state
        if name.endswith(("ln1.w", "ln2.w", "ln_final.w"))
    ]
    for norm in norms:
        state[f"{norm}.w"] = torch.ones_like(state[f"{norm}.w"])
        state[f"{norm}.b"] = torch.zeros_like(state[f"{norm}.b"])
    return state


# ---------------------------------------------------------------- positions


def similarity_by_distance(
    W_pos: Float[Tensor, "n_ctx d_model"],
) -> Float[Tensor, "n_ctx"]:
    """Entry d: the mean cosine similarity of all pairs of positions that are d apart
    (entry 0 is 1).
    """
    unit = W_pos / W_pos.norm(dim=-1, keepdim=True)
    cosine = unit @ unit.T
    # Pairs that are d apart stand on the d-th diagonal.
    return torch.stack([cosine.diagonal(d).mean() for d in range(len(W_pos))])


class ShortformerAttention(Attention):
    """Attention that adds positions to what queries and keys read, never to the values
    (Press et al. 2021).

    The stream itself then carries no positions: no head can copy them onwards.
    """

    def forward(
        self,
        normalized_resid_pre: Float[Tensor, "batch pos d_model"],
        pos_embed: Float[Tensor, "batch pos d_model"],
    ) -> Float[Tensor, "batch pos d_model"]:
        x = normalized_resid_pre
        with_pos = x + pos_embed
        into_heads = (
            "batch pos d_model, n_heads d_model d_head -> batch pos n_heads d_head"
        )
        q = einops.einsum(with_pos, self.W_Q, into_heads) + self.b_Q
        k = einops.einsum(with_pos, self.W_K, into_heads) + self.b_K
        # The values read the stream alone.
        v = einops.einsum(x, self.W_V, into_heads) + self.b_V
        pairs = (
            "batch query n_heads d_head, batch key n_heads d_head"
            " -> batch n_heads query key"
        )
        pattern = self.apply_causal_mask(
            einops.einsum(q, k, pairs) / self.cfg.d_head**0.5
        ).softmax(dim=-1)
        z = einops.einsum(
            pattern,
            v,
            "batch n_heads query key, batch key n_heads d_head -> batch query n_heads "
            "d_head",
        )
        out = (
            "batch query n_heads d_head, n_heads d_head d_model -> batch query d_model"
        )
        return einops.einsum(z, self.W_O, out) + self.b_O
