"""Indirect objects, the circuit: who speaks to whom (path patching), what each head
does, and which heads are enough.

The prompts, the roles and the patching of single activations are in `utils.ioi`. The
methods follow Wang et al. (2023), "Interpretability in the Wild: a Circuit for Indirect
Object Identification in GPT-2 small".
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens import ActivationCache, HookedTransformer
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import get_act_name

from utils.ioi import Head, require_same_length

# What chapter 09 imports: all but its exercises.
__all__ = ["mean_z", "path_patch_to_logits", "score_heads"]

# ---------------------------------------------------------------- path patching


def patch_or_freeze_heads(
    z: Float[Tensor, "batch seq n_heads d_head"],
    hook: HookPoint,
    sender: Head,
    orig_cache: ActivationCache,
    new_cache: ActivationCache,
) -> Float[Tensor, "batch seq n_heads d_head"]:
    """Hook for every layer's z: all heads as in the original run, but the sender as in
    the new run.

    Raises:
        ValueError: a cached run's prompts are of another length.
    """
    orig, new = orig_cache[hook.name], new_cache[hook.name]
    for cached in (orig, new):
        require_same_length(z, cached)
    z[:] = orig
    layer, head = sender
    if hook.layer() == layer:
        z[:, :, head] = new[:, :, head]
    return z


def path_patch_to_logits(
    model: HookedTransformer,
    orig_tokens: Int[Tensor, "batch seq"],
    orig_cache: ActivationCache,
    new_cache: ActivationCache,
    sender: Head,
) -> Float[Tensor, "batch seq d_vocab"]:
    """The original run's logits, had the sender spoken to the logits alone as in the
    new run.

    All other heads are frozen, so that no later head hears the change. MLPs are
    recomputed: they belong to the path.

    Raises:
        ValueError: a cached run's prompts are of another length.

    Source: Wang et al. (2023), section 3 and appendix B.
    """
    for cache in (orig_cache, new_cache):
        require_same_length(orig_tokens, cache)
    hook = partial(
        patch_or_freeze_heads, sender=sender, orig_cache=orig_cache, new_cache=new_cache
    )
    return model.run_with_hooks(
        orig_tokens, fwd_hooks=[(lambda name: name.endswith("hook_z"), hook)]
    )


def path_patch_to_heads(
    model: HookedTransformer,
    orig_tokens: Int[Tensor, "batch seq"],
    orig_cache: ActivationCache,
    new_cache: ActivationCache,
    sender: Head,
    receivers: Sequence[Head],
    receiver_input: str = "q",
) -> Float[Tensor, "batch seq d_vocab"]:
    """The original run's logits, had the sender spoken to the receivers' queries (or
    keys, values) as in the new run.

    Args:
        receivers: heads in later layers than the sender's.
        receiver_input: "q", "k" or "v".

    Raises:
        ValueError: a receiver does not come after the sender, `receiver_input` is none
            of the three, or a cached run's prompts are of another length
            (`require_same_length`).
    """
    for cache in (orig_cache, new_cache):
        require_same_length(orig_tokens, cache)
    if receiver_input not in ("q", "k", "v"):
        raise ValueError(f"receiver_input is {receiver_input!r}: choose q, k or v")
    if any(layer <= sender[0] for layer, _ in receivers):
        raise ValueError(
            f"the head {tuple(sender)} can only send to heads of later layers, not to "
            f"{list(receivers)}"
        )
    # First run: what the receivers would be given, with every other head frozen.
    freeze = partial(
        patch_or_freeze_heads, sender=sender, orig_cache=orig_cache, new_cache=new_cache
    )
    names = {get_act_name(receiver_input, layer) for layer, _ in receivers}
    with model.hooks(fwd_hooks=[(lambda name: name.endswith("hook_z"), freeze)]):
        _, received = model.run_with_cache(
            orig_tokens, names_filter=lambda name: name in names
        )

    # Second run: nothing is frozen, the receivers get that and pass it on.
    def give(vectors: Float[Tensor, "batch seq n_heads d_head"], hook: HookPoint):
        for layer, head in receivers:
            if layer == hook.layer():
                vectors[:, :, head] = received[hook.name][:, :, head]
        return vectors

    return model.run_with_hooks(
        orig_tokens, fwd_hooks=[(name, give) for name in sorted(names)]
    )


def score_heads(
    model: HookedTransformer,
    score: Callable[[Head], float | Tensor],
    n_layers: int | None = None,
    desc: str = "heads",
) -> Float[Tensor, "layer head"]:
    """`score(head)` for all heads of the first `n_layers` layers (default: all); zero
    for the others.
    """
    scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    layers = range(model.cfg.n_layers if n_layers is None else n_layers)
    for head in tqdm(
        [(layer, head) for layer in layers for head in range(model.cfg.n_heads)],
        desc=desc,
    ):
        scores[head] = float(score(head))
    return scores


# ---------------------------------------------------------------- what a head does


def attention_to_role(
    cache: ActivationCache, query: Int[Tensor, " batch"], key: Int[Tensor, " batch"]
) -> Float[Tensor, "layer head"]:
    """How much each head attends from one position to another, mean over prompts;
    positions differ by prompt.
    """
    rows = torch.arange(len(query), device=query.device)
    return torch.stack(
        [
            cache["pattern", layer][rows, :, query, key].mean(dim=0)
            for layer in range(cache.model.cfg.n_layers)
        ]
    )


def copying_scores(
    model: HookedTransformer, name_tokens: Int[Tensor, " names"], top_k: int = 5
) -> Float[Tensor, "layer head"]:
    """How often a head that attends to a name would raise that same name into the
    model's top guesses, 0 to 1.

    The name's vector is its embedding after the first MLP, as in the paper. It goes
    through the head's OV circuit, the final LayerNorm and the unembedding, and nothing
    else; biases of values and outputs are left out.

    Source: Wang et al. (2023), section 3.1, "copy score".
    """
    first = model.blocks[0]
    # A sequence of one token each, so that the first MLP can be applied.
    resid = model.W_E[name_tokens][:, None]
    resid = resid + first.apply_mlp(first.ln2(resid))
    scores = torch.zeros(model.cfg.n_layers, model.cfg.n_heads)
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            out = (
                model.blocks[layer].ln1(resid)
                @ model.W_V[layer, head]
                @ model.W_O[layer, head]
            )
            guesses = (
                model.unembed(model.ln_final(out))[:, 0].topk(top_k, dim=-1).indices
            )
            scores[layer, head] = (
                (guesses == name_tokens[:, None]).any(dim=-1).float().mean()
            )
    return scores


# ---------------------------------------------------------------- a circuit


def mean_z(
    model: HookedTransformer, tokens: Int[Tensor, "batch seq"]
) -> Float[Tensor, "layer seq head d_head"]:
    """Every head's mean output over prompts, at each position: what it says when it
    knows only the template.
    """
    _, cache = model.run_with_cache(
        tokens, names_filter=lambda name: name.endswith("hook_z")
    )
    return torch.stack(
        [cache["z", layer].mean(dim=0) for layer in range(model.cfg.n_layers)]
    )


def run_circuit(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch seq"],
    circuit: Iterable[Head],
    means: Float[Tensor, "layer seq head d_head"],
) -> Float[Tensor, "batch seq d_vocab"]:
    """The model with only the circuit's heads at work: every other head gives its mean,
    whatever the prompt.

    Raises:
        ValueError: the means belong to prompts of another length or to another model.
    """
    if means.shape[:3] != (model.cfg.n_layers, tokens.shape[1], model.cfg.n_heads):
        raise ValueError(
            f"means are for {means.shape[1]} tokens, {means.shape[0]} layers: take "
            "them on such prompts"
        )
    circuit = set(circuit)

    def mean_ablate(z: Float[Tensor, "batch seq n_heads d_head"], hook: HookPoint):
        layer = hook.layer()
        outside = [
            head for head in range(model.cfg.n_heads) if (layer, head) not in circuit
        ]
        z[:, :, outside] = means[layer][:, outside]
        return z

    return model.run_with_hooks(
        tokens, fwd_hooks=[(lambda name: name.endswith("hook_z"), mean_ablate)]
    )


def find_circuit(
    model: HookedTransformer, score: Callable[[Iterable[Head]], float], keep: float
) -> tuple[list[Head], list[float]]:
    """A small circuit, by taking away from the whole model the head that is missed
    least, again and again.

    Args:
        score: of a circuit, for example its logit difference.
        keep: stop before the score falls below this.

    Returns:
        The heads left, and the score after each removal. No single head can be removed
        from the circuit without falling below `keep`. It is a small circuit, not surely
        the smallest.
    """
    circuit = [
        (layer, head)
        for layer in range(model.cfg.n_layers)
        for head in range(model.cfg.n_heads)
    ]
    history = []
    with tqdm(total=len(circuit), desc="heads taken away") as bar:
        while circuit:
            scores = [
                score(circuit[:i] + circuit[i + 1 :]) for i in range(len(circuit))
            ]
            best = max(range(len(circuit)), key=lambda i: scores[i])
            if scores[best] < keep:
                break
            history.append(scores[best])
            del circuit[best]
            bar.update()
    return circuit, history
