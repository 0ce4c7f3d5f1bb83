"""The induction circuit: find it by its attention, then prove it by attribution,
ablation, weights and composition.

A *head* is a pair `(layer, head)`. A *repeated sequence* is BOS, a passage of random
tokens, and the same passage again: `1 + 2 * seq_len` tokens. The methods follow Elhage
et al. (2021), "A Mathematical Framework for Transformer Circuits", and Olsson et al.
(2022), "In-context Learning and Induction Heads".
"""

from collections.abc import Callable, Sequence
from functools import partial

import einops
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformer_lens import ActivationCache, FactoredMatrix, HookedTransformer
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import get_act_name

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
) -> Int[Tensor, "batch 1+2*seq_len"]:
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


def current_attn_detector(cache: ActivationCache) -> Float[Tensor, "layer head"]:
    """How much each head attends to the token itself: the mean over batch and queries,
    0 to 1.

    Query 0 is left out: BOS sees nothing but itself.
    """
    scores = []
    for layer in range(cache.model.cfg.n_layers):
        to_itself = cache["pattern", layer].diagonal(dim1=-2, dim2=-1)[..., 1:]
        scores.append(to_itself.mean(dim=(0, -1)))
    return torch.stack(scores)


def prev_attn_detector(cache: ActivationCache) -> Float[Tensor, "layer head"]:
    """How much each head attends to the token before: the mean over batch and queries
    (from 1 on), 0 to 1.
    """
    scores = []
    for layer in range(cache.model.cfg.n_layers):
        to_previous = cache["pattern", layer].diagonal(offset=-1, dim1=-2, dim2=-1)
        scores.append(to_previous.mean(dim=(0, -1)))
    return torch.stack(scores)


def first_attn_detector(cache: ActivationCache) -> Float[Tensor, "layer head"]:
    """How much each head attends to the first token, BOS: the mean over batch and
    queries, 0 to 1.

    Query 0 is left out: BOS sees nothing but itself.
    """
    scores = []
    for layer in range(cache.model.cfg.n_layers):
        to_first = cache["pattern", layer][:, :, 1:, 0]
        scores.append(to_first.mean(dim=(0, -1)))
    return torch.stack(scores)


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


def head_zero_ablation_hook(
    z: Float[Tensor, "batch seq n_heads d_head"],
    hook: HookPoint,
    head_index_to_ablate: int,
) -> None:
    """Set one head's output to zero, in place."""
    z[:, :, head_index_to_ablate] = 0.0


def head_mean_ablation_hook(
    z: Float[Tensor, "batch seq n_heads d_head"],
    hook: HookPoint,
    head_index_to_ablate: int,
) -> None:
    """Replace one head's output by its mean over the batch, at each position, in place.

    Raises:
        ValueError: there is one sequence only, which is its own mean.
    """
    if len(z) < 2:
        raise ValueError(
            "the mean over a batch of one sequence changes nothing: give more sequences"
        )
    z[:, :, head_index_to_ablate] = z[:, :, head_index_to_ablate].mean(dim=0)


def head_resample_ablation_hook(
    z: Float[Tensor, "batch seq n_heads d_head"],
    hook: HookPoint,
    head_index_to_ablate: int,
) -> None:
    """Replace one head's output by what it is on another sequence, at each position, in
    place.

    Sequence `i` gets the output of sequence `i - 1`, the first one that of the last.

    Raises:
        ValueError: there is one sequence only, and nothing to take from.
    """
    if len(z) < 2:
        raise ValueError(
            "resampling within a batch of one sequence changes nothing: give more "
            "sequences"
        )
    z[:, :, head_index_to_ablate] = z[:, :, head_index_to_ablate].roll(1, dims=0)


def get_ablation_scores(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch seq"],
    ablation_function: Callable = head_zero_ablation_hook,
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
    ablation_function: Callable = head_zero_ablation_hook,
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


# ---------------------------------------------------------------- weights alone


def full_OV_circuit(model: HookedTransformer, heads: Sequence[Head]) -> FactoredMatrix:
    """`W_E W_V W_O W_U` of some heads together, "d_vocab d_vocab", kept as two thin
    factors.

    Row: the token that is attended to. Column: the token whose logit it raises. Several
    heads that attend to the same token add up: their `W_V` stand side by side, their
    `W_O` on top of each other.

    Raises:
        ValueError: the model has no such head.
    """
    for head in heads:
        require_head(model, head)
    W_V = torch.cat([model.W_V[head] for head in heads], dim=1)
    W_O = torch.cat([model.W_O[head] for head in heads], dim=0)
    return FactoredMatrix(model.W_E @ W_V, W_O @ model.W_U)


def top_1_acc(full_OV_circuit: FactoredMatrix, batch_size: int = 500) -> float:
    """The fraction of rows whose largest entry lies on the diagonal, from `batch_size`
    rows at a time.

    The whole matrix would have d_vocab² entries, 10 GB for GPT-2; it is never built.
    """
    A, B = full_OV_circuit.A, full_OV_circuit.B
    correct = 0
    for rows in torch.arange(len(A), device=A.device).split(batch_size):
        correct += ((A[rows] @ B).argmax(dim=-1) == rows).sum().item()
    return correct / len(A)


def top_5_acc(full_OV_circuit: FactoredMatrix, batch_size: int = 500) -> float:
    """The fraction of rows whose diagonal entry is among the five largest."""
    A, B = full_OV_circuit.A, full_OV_circuit.B
    correct = 0
    for rows in torch.arange(len(A), device=A.device).split(batch_size):
        correct += ((A[rows] @ B).topk(5, dim=-1).indices == rows[:, None]).sum().item()
    return correct / len(A)


def copying_score(full_OV_circuit: FactoredMatrix) -> float:
    """Sum of the eigenvalues over the sum of their absolute values: 1 copies every
    direction, -1 suppresses it.

    A B and B A have the same non-zero eigenvalues, and B A is small.

    Raises:
        ValueError: the matrix is not square, and has no eigenvalues.

    Source: Elhage et al. (2021), "Copying heads".
    """
    if full_OV_circuit.ldim != full_OV_circuit.rdim:
        raise ValueError(
            "only square matrices have eigenvalues; this one is "
            f"{list(full_OV_circuit.shape)}"
        )
    eigenvalues = torch.linalg.eigvals(full_OV_circuit.B @ full_OV_circuit.A)
    return (eigenvalues.real.sum() / eigenvalues.abs().sum()).item()


def pos_by_pos_pattern(
    model: HookedTransformer, head: Head
) -> Float[Tensor, "query key"]:
    """The attention pattern of a head if it saw nothing but positions: scale, mask,
    softmax.

    Raises:
        ValueError: the model has no such head.
    """
    require_head(model, head)
    query = model.W_pos @ model.W_Q[head]
    key = model.W_pos @ model.W_K[head]
    scores = query @ key.T / model.cfg.d_head**0.5
    future = torch.ones_like(scores, dtype=torch.bool).triu(diagonal=1)
    return scores.masked_fill(future, -torch.inf).softmax(dim=-1)


# ---------------------------------------------------------------- composition


def decompose_qk_input(
    cache: ActivationCache, layer: int = 1
) -> Float[Tensor, "component seq d_model"]:
    """What the queries and keys of a layer are computed from, component by component.

    Args:
        cache: of one sequence, without its batch dimension; the model computes `result`
            (`use_attn_result`).
        layer: whose queries and keys; the components are the token embedding, then
            every head of every earlier layer, then the position embedding.

    Raises:
        ValueError: the cache holds a batch, lacks `result`, or is of a model with MLPs,
            LayerNorm or another kind of positions.
    """
    cfg = cache.model.cfg
    if not (
        cfg.attn_only
        and cfg.normalization_type is None
        and cfg.positional_embedding_type == "shortformer"
    ):
        raise ValueError(
            "the components add up only in an attention-only model without LayerNorm, "
            "with shortformer positions"
        )
    if cache["embed"].ndim != 2:
        raise ValueError(
            "the cache holds a batch: use run_with_cache(tokens[0], "
            "remove_batch_dim=True)"
        )
    if get_act_name("result", 0) not in cache:
        raise ValueError(
            "the cache has no `result`: call model.set_use_attn_result(True) and run "
            "again"
        )
    heads = [
        einops.rearrange(cache["result", l], "seq head d_model -> head seq d_model")
        for l in range(layer)
    ]
    return torch.cat([cache["embed"][None], *heads, cache["pos_embed"][None]])


def decompose_q(
    decomposed_qk_input: Float[Tensor, "component seq d_model"],
    ind_head_index: Head,
    model: HookedTransformer,
) -> Float[Tensor, "component seq d_head"]:
    """The part of a head's queries that comes from each component.

    Raises:
        ValueError: the model has no such head, or its residual stream has another
            width.
    """
    require_head(model, ind_head_index)
    if decomposed_qk_input.shape[-1] != model.cfg.d_model:
        raise ValueError(
            f"the components are not {model.cfg.d_model} wide: they come from another "
            "model"
        )
    W_Q = model.W_Q[ind_head_index]
    return einops.einsum(
        decomposed_qk_input,
        W_Q,
        "component seq d_model, d_model d_head -> component seq d_head",
    )


def decompose_k(
    decomposed_qk_input: Float[Tensor, "component seq d_model"],
    ind_head_index: Head,
    model: HookedTransformer,
) -> Float[Tensor, "component seq d_head"]:
    """The part of a head's keys that comes from each component.

    Raises:
        ValueError: the model has no such head, or its residual stream has another
            width.
    """
    require_head(model, ind_head_index)
    if decomposed_qk_input.shape[-1] != model.cfg.d_model:
        raise ValueError(
            f"the components are not {model.cfg.d_model} wide: they come from another "
            "model"
        )
    W_K = model.W_K[ind_head_index]
    return einops.einsum(
        decomposed_qk_input,
        W_K,
        "component seq d_model, d_model d_head -> component seq d_head",
    )


def decompose_attn_scores(
    decomposed_q: Float[Tensor, "q_component query d_head"],
    decomposed_k: Float[Tensor, "k_component key d_head"],
    model: HookedTransformer,
) -> Float[Tensor, "q_component k_component query key"]:
    """The part of each attention score that comes from each pair of components; not
    masked.

    Summed over both components it is the score before mask and softmax.

    Raises:
        ValueError: queries and keys are not of this model's heads.
    """
    if not decomposed_q.shape[-1] == decomposed_k.shape[-1] == model.cfg.d_head:
        raise ValueError(
            f"queries and keys are not {model.cfg.d_head} wide: they come from another "
            "model"
        )
    scores = einops.einsum(
        decomposed_q,
        decomposed_k,
        "q_component query d_head, k_component key d_head -> q_component k_component "
        "query key",
    )
    return scores / model.cfg.d_head**0.5


def attn_score_stds(
    decomposed_scores: Float[Tensor, "q_component k_component query key"],
) -> Float[Tensor, "q_component k_component"]:
    """How much each pair of components can shape the pattern, in units of attention
    score.

    For each query from 1 on: the standard deviation (dividing by n) of its scores over
    the keys it may see, keys 0 to the query itself. Then the mean over queries. A part
    of the score that is the same for all keys of a query is lost in the softmax, and
    counts as nothing here.
    """
    rows = [
        decomposed_scores[..., query, : query + 1].std(dim=-1, correction=0)
        for query in range(1, decomposed_scores.shape[-1])
    ]
    return torch.stack(rows).mean(dim=0)


def find_K_comp_full_circuit(
    model: HookedTransformer, prev_token_head_index: Head, ind_head_index: Head
) -> FactoredMatrix:
    """`W_E W_Q W_Kᵀ W_OVᵀ W_Eᵀ`, "d_vocab d_vocab": how a token's query matches a key
    written by the earlier head.

    Row: the token at the query. Column: the token that the previous-token head has
    copied to the key's position. For an induction circuit the largest entry of each row
    is on the diagonal.

    Raises:
        ValueError: the model has no such head, or the first one does not come before
            the second.
    """
    require_head(model, prev_token_head_index)
    require_head(model, ind_head_index)
    if prev_token_head_index[0] >= ind_head_index[0]:
        raise ValueError(
            f"head {prev_token_head_index} does not come before {ind_head_index}: it "
            "can't feed its keys"
        )
    query = model.W_E @ model.W_Q[ind_head_index]
    W_OV = model.W_V[prev_token_head_index] @ model.W_O[prev_token_head_index]
    key = model.W_E @ W_OV @ model.W_K[ind_head_index]
    return FactoredMatrix(query, key.T)


def get_comp_score(
    W_A: Float[Tensor, "in_A out_A"], W_B: Float[Tensor, "out_A out_B"]
) -> float:
    """How much of what `W_A` writes `W_B` reads: the Frobenius norm of the product over
    the product of the norms.

    Raises:
        ValueError: `W_B` does not read what `W_A` writes.

    Source: Elhage et al. (2021), "The norm of the composed matrices".
    """
    if W_A.shape[1] != W_B.shape[0]:
        raise ValueError(
            f"W_A writes {W_A.shape[1]} dimensions, W_B reads {W_B.shape[0]}"
        )
    return ((W_A @ W_B).norm() / (W_A.norm() * W_B.norm())).item()


def get_batched_comp_scores(
    W_As: FactoredMatrix, W_Bs: FactoredMatrix
) -> Float[Tensor, "n_A n_B"]:
    """The composition score of every matrix in `W_As` with every one in `W_Bs`.

    Args:
        W_As: "n_A d_model d_model" in factors; W_Bs: "n_B d_model d_model" in factors.
    """
    # One new dimension each, so that they broadcast to all pairs.
    W_As, W_Bs = W_As.unsqueeze(1), W_Bs.unsqueeze(0)
    return (W_As @ W_Bs).norm() / (W_As.norm() * W_Bs.norm())


def random_comp_scores(
    d_model: int, d_head: int, n: int = 100, seed: int = 0
) -> Float[Tensor, "n"]:
    """Composition scores of `n` pairs of random matrices in a head's shape: what chance
    alone gives.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw():
        factors = torch.randn(2, n, d_model, d_head, generator=generator)
        return FactoredMatrix(factors[0], factors[1].transpose(-2, -1))

    W_A, W_B = draw(), draw()
    return (W_A @ W_B).norm() / (W_A.norm() * W_B.norm())


def run_with_path_ablated(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch seq"],
    sender: Head,
    receiver: Head,
    channel: str = "k",
) -> tuple[Float[Tensor, "batch seq d_vocab"], ActivationCache]:
    """Run the model with one path cut: the receiver's queries, keys or values don't see
    what the sender writes.

    All else of the model, the sender's other readers and the receiver's other inputs,
    stays as it is.

    Args:
        channel: "q", "k" or "v": which input of the receiver.

    Returns:
        The logits, and a cache of the patterns.

    Raises:
        ValueError: the model can't read the tokens or has no such head; the sender does
            not come before the receiver; another channel; or a LayerNorm stands
            between, so that the path is no sum.
    """
    require_tokens(model, tokens)
    require_head(model, sender)
    require_head(model, receiver)
    if sender[0] >= receiver[0]:
        raise ValueError(
            f"head {sender} does not come before {receiver}: there is no path to cut"
        )
    if channel not in ("q", "k", "v"):
        raise ValueError(f"channel is {channel!r}: choose 'q', 'k' or 'v'")
    if model.cfg.normalization_type is not None:
        raise ValueError(
            "with LayerNorm the receiver's input is no sum: this works on models "
            "without"
        )
    # What the sender writes into the residual stream.
    _, cache = model.run_with_cache(tokens, names_filter=get_act_name("z", sender[0]))
    written = cache["z", sender[0]][:, :, sender[1]] @ model.W_O[sender]
    # What the receiver reads of it.
    weights = {"q": model.W_Q, "k": model.W_K, "v": model.W_V}[channel]
    read = written @ weights[receiver]

    def cut(x: Float[Tensor, "batch seq n_heads d_head"], hook: HookPoint):
        x[:, :, receiver[1]] -= read

    with model.hooks(fwd_hooks=[(get_act_name(channel, receiver[0]), cut)]):
        return model.run_with_cache(
            tokens, names_filter=lambda name: name.endswith("pattern")
        )


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
