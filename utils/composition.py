"""Composition: what the heads' weights say by themselves, how heads feed each other,
and which path between two heads matters.

A *head* is a pair `(layer, head)`. The methods follow Elhage et al. (2021), "A
Mathematical Framework for Transformer Circuits".
"""

from collections.abc import Sequence

import einops
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import ActivationCache, FactoredMatrix, HookedTransformer
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import get_act_name

from utils.induction import Head, require_head, require_tokens

# What chapter 05 imports: all but its exercises.
__all__ = ["random_comp_scores", "top_5_acc"]

# ---------------------------------------------------------------- weights alone


def followers_named(
    table: Float[Tensor, "d_vocab d_vocab"],
    tokens: Int[Tensor, "batch pos"],
    at_least: int = 50,
) -> float:
    """Of the tokens that another follows `at_least` times in the texts, the share whose
    most frequent follower has the largest entry of their row in the table.

    Where several follow equally often, each of them is right. No pair reaches from one
    text into the next.

    Raises:
        ValueError: no token is followed so often.
    """
    n = len(table)
    pairs = tokens[:, :-1].flatten() * n + tokens[:, 1:].flatten()
    counts = torch.bincount(pairs, minlength=n**2).reshape(n, n)
    often = counts.sum(dim=1) >= at_least
    if not often.any():
        raise ValueError(f"no token is followed by another {at_least} times")
    named = counts.gather(1, table.argmax(dim=1, keepdim=True)).squeeze(1)
    return (named == counts.amax(dim=1))[often].float().mean().item()


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


def copying_by_direction(full_OV_circuit: FactoredMatrix) -> Float[Tensor, " d_head"]:
    """The cosine between what each singular direction reads and what it writes, that of
    the largest singular value first: 1 where it writes the tokens that it reads, 0
    where it writes others.

    The matrix is the sum of S[i] U[:, i] V[:, i]ᵀ: attending to the tokens of U[:, i]
    raises the logits of V[:, i].

    Raises:
        ValueError: the matrix is not square: what is read and what is written can't be
            compared.
    """
    if full_OV_circuit.ldim != full_OV_circuit.rdim:
        raise ValueError(
            "what is read and written must be the same tokens; this matrix is "
            f"{list(full_OV_circuit.shape)}"
        )
    read, written = full_OV_circuit.U, full_OV_circuit.V
    return (read * written).sum(dim=0)


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


def decompose_qk(
    decomposed_qk_input: Float[Tensor, "component seq d_model"],
    ind_head_index: Head,
    model: HookedTransformer,
) -> tuple[
    Float[Tensor, "component seq d_head"], Float[Tensor, "component seq d_head"]
]:
    """The parts of a head's queries, and of its keys, that come from each component.

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
    return tuple(
        einops.einsum(
            decomposed_qk_input,
            weights[ind_head_index],
            "component seq d_model, d_model d_head -> component seq d_head",
        )
        for weights in (model.W_Q, model.W_K)
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
