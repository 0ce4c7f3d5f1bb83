"""The induction circuit: find it by its attention, then prove it by attribution and
ablation. (`utils.composition` goes on with weights, composition and paths.)

A *head* is a pair `(layer, head)`. A *repeated sequence* is BOS, a passage of random
tokens, and the same passage again: `1 + 2 * seq_len` tokens. The methods follow Olsson
et al. (2022), "In-context Learning and Induction Heads".
"""

from collections.abc import Callable
from functools import partial

import einops
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformer_lens import ActivationCache, HookedTransformer
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import get_act_name

# What chapter 05 imports: all but its exercises.
__all__ = [
    "Head",
    "attention_to_targets",
    "best_head",
    "half_length",
    "heads_above",
    "require_head",
    "require_tokens",
]

Head = tuple[int, int]


# -------------------------------- what is asked of inputs


def require_tokens(model: HookedTransformer, tokens: Int[Tensor, "batch seq"]) -> None:
    """Make sure that `model` can read `tokens`.

    Raises:
        ValueError: they are no batch of ids, longer than the context, unknown to the
            model, or on another device.
    """
    if tokens.ndim != 2 or tokens.is_floating_point():
        raise ValueError(
            f"tokens must be integers of shape (batch, seq), not {tokens.dtype} of "
            f"{list(tokens.shape)}"
        )
    if tokens.shape[1] > model.cfg.n_ctx:
        raise ValueError(
            f"{tokens.shape[1]} tokens do not fit the context of {model.cfg.n_ctx}: "
            "shorten them"
        )
    if (
        tokens.numel()
        and not 0 <= int(tokens.min()) <= int(tokens.max()) < model.cfg.d_vocab
    ):
        raise ValueError(
            f"token ids go from 0 to {model.cfg.d_vocab - 1}: were these made for "
            "another model?"
        )
    if tokens.device.type != model.W_E.device.type:
        raise ValueError(
            f"tokens are on {tokens.device}, the model on {model.W_E.device}: use "
            "tokens.to(...)"
        )


def require_head(model: HookedTransformer, head: Head) -> None:
    """Make sure that `model` has this head.

    Raises:
        ValueError: the layer or the head is out of range.
    """
    layer, index = head
    if not (0 <= layer < model.cfg.n_layers and 0 <= index < model.cfg.n_heads):
        size = f"{model.cfg.n_layers} layers of {model.cfg.n_heads} heads"
        raise ValueError(
            f"there is no head {tuple(head)}: the model has {size}, both counted from 0"
        )


def half_length(n_tokens: int) -> int:
    """`seq_len` of a repeated sequence with so many tokens.

    Raises:
        ValueError: no repeated sequence has this length.
    """
    if n_tokens < 5 or n_tokens % 2 == 0:
        raise ValueError(
            f"{n_tokens} tokens are no BOS and twice the same passage of at least two "
            "tokens"
        )
    return (n_tokens - 1) // 2


# ---------------------------------------------------------------- the task


def generate_repeated_tokens(
    model: HookedTransformer, seq_len: int, batch_size: int = 1
) -> Int[Tensor, "batch {1+2*seq_len}"]:
    """Repeated sequences: BOS, `seq_len` random tokens, the same tokens again.

    The tokens are drawn evenly from the whole vocabulary, for each sequence anew, on
    the CPU, so that a seed gives the same sequences on every device; they come on the
    model's device.

    Raises:
        ValueError: `1 + 2 * seq_len` tokens do not fit the model's context.
    """
    if 1 + 2 * seq_len > model.cfg.n_ctx:
        raise ValueError(
            f"{1 + 2 * seq_len} tokens do not fit the context of {model.cfg.n_ctx}: "
            "lower seq_len"
        )
    bos = torch.full((batch_size, 1), model.tokenizer.bos_token_id)
    passage = torch.randint(0, model.cfg.d_vocab, (batch_size, seq_len))
    return torch.cat([bos, passage, passage], dim=1).to(model.W_E.device)


def run_and_cache_model_repeated_tokens(
    model: HookedTransformer, seq_len: int, batch_size: int = 1
) -> tuple[
    Int[Tensor, "batch seq"], Float[Tensor, "batch seq d_vocab"], ActivationCache
]:
    """Run the model on new repeated sequences; returns the tokens, the logits and the
    cache of activations.
    """
    rep_tokens = generate_repeated_tokens(model, seq_len, batch_size)
    rep_logits, rep_cache = model.run_with_cache(rep_tokens)
    return rep_tokens, rep_logits, rep_cache


def get_log_probs(
    logits: Float[Tensor, "batch seq d_vocab"], tokens: Int[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq-1"]:
    """The log-probability, in nats, that the model gives to each token that really
    comes next.

    Entry `i` is the prediction made at position `i`, of the token at `i + 1`; the last
    position predicts a token that we don't have.
    """
    log_probs = logits[:, :-1].log_softmax(dim=-1)
    return log_probs.gather(-1, tokens[:, 1:, None])[..., 0]


# ---------------------------------------------------------------- attention


def attention_detectors(
    cache: ActivationCache,
) -> dict[str, Float[Tensor, "layer head"]]:
    """How much each head attends to three kinds of keys: means over batch and queries,
    0 to 1.

    Returns:
        "current": to the token itself. "previous": to the token before. "first": to the
        first token, BOS. Query 0 is left out of "current" and "first", since BOS sees
        nothing but itself; "previous" begins with query 1 anyway.
    """
    scores = {"current": [], "previous": [], "first": []}
    for layer in range(cache.model.cfg.n_layers):
        pattern = cache["pattern", layer]
        stripes = {
            "current": pattern.diagonal(dim1=-2, dim2=-1)[..., 1:],
            "previous": pattern.diagonal(offset=-1, dim1=-2, dim2=-1),
            "first": pattern[:, :, 1:, 0],
        }
        for kind, stripe in stripes.items():
            scores[kind].append(stripe.mean(dim=(0, -1)))
    return {kind: torch.stack(rows) for kind, rows in scores.items()}


def induction_attn_detector(cache: ActivationCache) -> Float[Tensor, "layer head"]:
    """The induction score of each head, 0 to 1, from a cache of repeated sequences.

    It is the mean attention that the tokens of the second passage pay to the token
    *after* their first occurrence: `seq_len - 1` positions back.

    Raises:
        ValueError: the cached sequences can't be BOS and twice the same passage.

    Source: Olsson et al. (2022), the "prefix matching score" on random sequences.
    """
    seq_len = half_length(cache["pattern", 0].shape[-1])
    scores = []
    for layer in range(cache.model.cfg.n_layers):
        # The diagonal of all (query, key) with key = query - (seq_len - 1); its first
        # entry is the query seq_len - 1.
        stripe = cache["pattern", layer].diagonal(
            offset=-(seq_len - 1), dim1=-2, dim2=-1
        )
        # The second passage starts at the query seq_len + 1.
        scores.append(stripe[..., 2:].mean(dim=(0, -1)))
    return torch.stack(scores)


def induction_score_hook(
    pattern: Float[Tensor, "batch head query key"],
    hook: HookPoint,
    scores: Float[Tensor, "layer head"],
) -> None:
    """Write the induction scores of one layer's heads into that layer's row of
    `scores`; changes no activation.

    With hooks, unlike with a cache, no pattern is kept: this works on models too large
    to cache.
    """
    seq_len = half_length(pattern.shape[-1])
    stripe = pattern.diagonal(offset=-(seq_len - 1), dim1=-2, dim2=-1)
    scores[hook.layer()] = stripe[..., 2:].mean(dim=(0, -1))


def heads_above(scores: Float[Tensor, "layer head"], threshold: float) -> list[Head]:
    """The heads that score above the threshold, best first."""
    heads = [tuple(pair) for pair in (scores > threshold).nonzero().tolist()]
    return sorted(heads, key=lambda head: -scores[head].item())


def best_head(scores: Float[Tensor, "layer head"]) -> Head:
    """The head with the highest score."""
    return tuple(divmod(int(scores.argmax()), scores.shape[1]))


def in_context_learning_score(
    log_probs: Float[Tensor, "batch seq"], early: slice, late: slice
) -> float:
    """The loss at late positions minus the loss at early ones, in nats: negative where
    context helps.

    Args:
        log_probs: those of the right tokens, as `get_log_probs` gives them.
        early, late: the positions to average over.

    Source: Olsson et al. (2022), who take the 500th and the 50th token.
    """
    loss = -log_probs
    return (loss[:, late].mean() - loss[:, early].mean()).item()


# ---------------------------------------------------------------- attribution


def logit_attribution(
    embed: Float[Tensor, "seq d_model"],
    l1_results: Float[Tensor, "seq nheads d_model"],
    l2_results: Float[Tensor, "seq nheads d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
    tokens: Int[Tensor, "seq"],
) -> Float[Tensor, "seq-1 n_components"]:
    """Split the logit of each right next token into what each component writes towards
    it.

    Args:
        embed: the token embeddings.
        l1_results, l2_results: what each head of the first and of the second layer adds
            to the residual stream. (A deeper model's later layers can follow in
            `l2_results`, joined along the heads.)
        W_U: the unembedding.
        tokens: one sequence.

    Returns:
        The components are the embedding (the direct path), the first layer's heads, the
        second layer's heads. Row `i` belongs to the prediction at position `i`. Without
        biases and LayerNorm a row adds up to the logit.

    Raises:
        ValueError: the tensors are not of the same sequence or model.
    """
    if not len(tokens) == len(embed) == len(l1_results) == len(l2_results):
        lengths = [len(x) for x in (tokens, embed, l1_results, l2_results)]
        raise ValueError(
            f"tokens, embed and results have {lengths} positions: they must belong to "
            "one sequence"
        )
    if (
        not W_U.shape[0]
        == embed.shape[-1]
        == l1_results.shape[-1]
        == l2_results.shape[-1]
    ):
        raise ValueError(
            "embed, results and W_U differ in d_model: do they come from one model?"
        )
    # One direction for each position: that of the token which comes next.
    W_U_correct = W_U[:, tokens[1:]]
    components = torch.cat([embed[:, None], l1_results, l2_results], dim=1)
    return einops.einsum(
        components[:-1],
        W_U_correct,
        "seq component d_model, d_model seq -> seq component",
    )


# ---------------------------------------------------------------- ablation


def head_ablation_hook(
    z: Float[Tensor, "batch seq n_heads d_head"],
    hook: HookPoint,
    head_index_to_ablate: int,
    kind: str = "zero",
) -> None:
    """Replace one head's output, in place; all other heads stay as they are.

    Args:
        kind: what stands in its place. "zero": nothing. "mean": the mean over the
            batch, at each position. "resample": the output on another sequence, at each
            position: sequence `i` gets that of sequence `i - 1`, the first one that of
            the last.

    Raises:
        ValueError: another kind; or one sequence only, which is its own mean and has no
            other to take from ("zero" needs none).
    """
    if kind not in ("zero", "mean", "resample"):
        raise ValueError(f"kind is {kind!r}: choose 'zero', 'mean' or 'resample'")
    if kind != "zero" and len(z) < 2:
        raise ValueError(
            f"within a batch of one sequence {kind!r} changes nothing: give more "
            "sequences"
        )
    ours = z[:, :, head_index_to_ablate]
    if kind == "zero":
        z[:, :, head_index_to_ablate] = 0.0
    elif kind == "mean":
        z[:, :, head_index_to_ablate] = ours.mean(dim=0)
    else:
        z[:, :, head_index_to_ablate] = ours.roll(1, dims=0)


def get_ablation_scores(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch seq"],
    ablation_function: Callable = head_ablation_hook,
) -> Float[Tensor, "layer head"]:
    """How much the loss rises, in nats, when each head is ablated, one at a time.

    The loss is the mean over the last `seq_len - 1` predictions: the tokens that could
    be copied from the first passage.

    Args:
        tokens: repeated sequences.
        ablation_function: a hook for `z`, called with the keyword
            `head_index_to_ablate`.

    Raises:
        ValueError: the model can't read the tokens, or they are no repeated sequences.
    """
    require_tokens(model, tokens)
    seq_len = half_length(tokens.shape[1])

    def repeated_loss(logits):
        return -get_log_probs(logits, tokens)[:, -(seq_len - 1) :].mean()

    # Without ablation, for comparison.
    clean_loss = repeated_loss(model(tokens))
    scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads, device=tokens.device)
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            # Bind the head by its keyword: the first place belongs to the activation.
            ablate = partial(ablation_function, head_index_to_ablate=head)
            logits = model.run_with_hooks(
                tokens, fwd_hooks=[(get_act_name("z", layer), ablate)]
            )
            scores[layer, head] = repeated_loss(logits) - clean_loss
    return scores


def get_ablation_scores_batched(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch seq"],
    ablation_function: Callable = head_ablation_hook,
    heads_per_pass: int | None = None,
) -> Float[Tensor, "layer head"]:
    """The same numbers as `get_ablation_scores`, in fewer and shorter passes.

    What lies before the ablated head does not change, so it is computed once: each pass
    restarts right after the attention of the head's own layer, with several heads side
    by side in the batch. Logits are computed only where the loss looks; for the last
    layer of a linear model, only the head's own part of them.

    Args:
        heads_per_pass: how many heads of a layer share a pass. By default all on a GPU,
            and one on a CPU, where wider batches fall out of the cache.

    Raises:
        ValueError: the model can't read the tokens, or they are no repeated sequences.
    """
    require_tokens(model, tokens)
    seq_len = half_length(tokens.shape[1])
    cfg, batch, where_it_counts = model.cfg, len(tokens), slice(-seq_len, -1)
    heads_per_pass = heads_per_pass or (cfg.n_heads if tokens.is_cuda else 1)
    targets, has_bias = tokens[:, -(seq_len - 1) :], bool(model.b_U.any())
    after_attn = "resid_post" if cfg.attn_only else "resid_mid"
    ends = (after_attn, "hook_z", "pos_embed")
    _, cache = model.run_with_cache(
        tokens, names_filter=lambda name: name.endswith(ends), return_type=None
    )
    positional = (
        cache["pos_embed"] if cfg.positional_embedding_type == "shortformer" else None
    )

    def go_on(resid, layer):
        """The logits that count, from the residual stream after the attention of
        `layer`.
        """
        if not cfg.attn_only:
            block = model.blocks[layer]
            resid = resid + block.apply_mlp(
                resid if cfg.normalization_type is None else block.ln2(resid)
            )
        if layer + 1 < cfg.n_layers:
            shared = (
                None
                if positional is None
                else positional.repeat(len(resid) // batch, 1, 1)
            )
            resid = model(
                resid,
                start_at_layer=layer + 1,
                stop_at_layer=cfg.n_layers,
                shortformer_pos_embed=shared,
            )
        resid = resid[:, where_it_counts]
        resid = resid if cfg.normalization_type is None else model.ln_final(resid)
        logits = resid.flatten(0, 1) @ model.W_U
        return logits + model.b_U if has_bias else logits

    def losses(logits):
        """The mean loss of each copy of the batch."""
        copies = len(logits) // targets.numel()
        loss = cross_entropy(
            logits, targets.repeat(copies, 1).flatten(), reduction="none"
        )
        return einops.reduce(loss, "(copy token) -> copy", "mean", copy=copies)

    last = cfg.n_layers - 1
    clean_logits = go_on(cache[after_attn, last], last)
    scores = torch.zeros(cfg.n_layers, cfg.n_heads, device=tokens.device)
    for layer in range(cfg.n_layers):
        z, W_O, hook = (
            cache["z", layer],
            model.W_O[layer],
            model.hook_dict[get_act_name("z", layer)],
        )
        # After the last attention of a linear model nothing but the head's own part of
        # the logits changes.
        direct = layer == last and cfg.attn_only and cfg.normalization_type is None
        for heads in torch.arange(cfg.n_heads).split(1 if direct else heads_per_pass):
            changes = []
            for head in heads.tolist():
                edited = z.clone()
                returned = ablation_function(
                    edited, hook=hook, head_index_to_ablate=head
                )
                edited = edited if returned is None else returned
                changes.append(edited[:, :, head] - z[:, :, head])
            if direct:
                change = changes[0][:, where_it_counts].flatten(0, 1)
                logits = torch.addmm(clean_logits, change, W_O[head] @ model.W_U)
            else:
                resid = cache[after_attn, layer]
                copies = [
                    resid + c @ W_O[h]
                    for h, c in zip(heads.tolist(), changes, strict=True)
                ]
                logits = go_on(torch.cat(copies), layer)
            scores[layer, heads] = losses(logits)
    return scores - losses(clean_logits)


# ---------------------------------------------------------------- ordinary text


def induction_targets(tokens: Int[Tensor, "seq"]) -> Int[Tensor, "seq"]:
    """Where an induction head should look from each position of any text.

    That is the position right after the *latest* earlier occurrence of the same token;
    -1 where the token is new, or where that position is the query itself.
    """
    targets = torch.full_like(tokens, -1)
    latest = {}
    for query, token in enumerate(tokens.tolist()):
        if token in latest and latest[token] + 1 < query:
            targets[query] = latest[token] + 1
        latest[token] = query
    return targets


def attention_to_targets(
    model: HookedTransformer, tokens: Int[Tensor, "seq"], targets: Int[Tensor, "seq"]
) -> Float[Tensor, "query layer head"]:
    """What each head pays from each query to its target; only the queries with a target
    (not -1), in their order.

    Raises:
        ValueError: the model can't read the tokens.
    """
    require_tokens(model, tokens[None])
    queries = (targets >= 0).nonzero()[:, 0]
    _, cache = model.run_with_cache(
        tokens[None], names_filter=lambda name: name.endswith("pattern")
    )
    rows = [
        cache["pattern", l][0][:, queries, targets[queries]].T
        for l in range(model.cfg.n_layers)
    ]
    return torch.stack(rows, dim=1)
