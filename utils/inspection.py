"""Looking inside a transformer: weights, the activation cache, attention, neurons, and
hooks written from scratch.
"""

import re
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformer_lens import ActivationCache, HookedTransformer

# ---------------------------------------------------------------- weights and names


def stack_over_layers(
    model: HookedTransformer, path: str
) -> Float[Tensor, "layer ..."]:
    """One weight of every block, layer by layer on top of each other.

    Args:
        path: where a block keeps it, such as "attn.W_Q" or "mlp.W_in".

    Raises:
        ValueError: the blocks have no such weight.
    """
    try:
        return torch.stack([attrgetter(path)(block) for block in model.blocks])
    except AttributeError:
        raise ValueError(
            f"a block has no weight {path!r}: name it like 'attn.W_Q' or 'mlp.W_in'"
        ) from None


ALIASES = {
    "attn": "pattern",
    "attn_logits": "attn_scores",
    "query": "q",
    "key": "k",
    "value": "v",
    "mlp_pre": "pre",
    "mlp_post": "post",
}
IN_ATTENTION = ("q", "k", "v", "z", "result", "attn_scores", "pattern")
IN_MLP = ("pre", "post")


def act_name(name: str, layer: int | None = None) -> str:
    """The full name of an activation from its short one.

    `act_name("embed")` is `hook_embed`; `act_name("resid_pre", 3)` is
    `blocks.3.hook_resid_pre`; `act_name("pattern", 0)` is `blocks.0.attn.hook_pattern`;
    `act_name("pre", 2)` is `blocks.2.mlp.hook_pre`. A name may hold its layer, as in
    `k6`, or be an alias: `attn` means `pattern`, see `ALIASES`.

    Source: `get_act_name` of TransformerLens, which knows a few more.
    """
    # "k6" is ("k", 6).
    if match := re.fullmatch(r"([a-z_]+)(\d+)", name):
        name, layer = match[1], int(match[2])
    name = ALIASES.get(name, name)
    if layer is None:
        return f"hook_{name}"
    part = "attn." if name in IN_ATTENTION else "mlp." if name in IN_MLP else ""
    return f"blocks.{layer}.{part}hook_{name}"


# ---------------------------------------------------------------- the cache


def memory_by_kind(cache: ActivationCache) -> dict[str, int]:
    """Bytes that a cache holds for each kind of activation, the most first.

    A kind is the last part of a name: all of `blocks.0.attn.hook_q`,
    `blocks.1.attn.hook_q`, … are `hook_q`.
    """
    sizes = {}
    for name, activation in cache.items():
        kind = name.split(".")[-1]
        sizes[kind] = (
            sizes.get(kind, 0) + activation.numel() * activation.element_size()
        )
    return dict(sorted(sizes.items(), key=lambda item: -item[1]))


def keep_only(names: Sequence[str], layers: Sequence[int]) -> Callable[[str], bool]:
    """A filter for `run_with_cache(names_filter=...)`: true for exactly these
    activations in these layers.

    Args:
        names: short names such as "pattern" or "resid_post".
    """
    wanted = {act_name(name, layer) for name in names for layer in layers}
    return lambda name: name in wanted


# ---------------------------------------------------------------- attention


def attention_pattern(
    q: Float[Tensor, "batch query head d_head"],
    k: Float[Tensor, "batch key head d_head"],
) -> Float[Tensor, "batch head query key"]:
    """The attention pattern from queries and keys: scale by the square root of d_head,
    mask the future, softmax.

    Raises:
        ValueError: queries and keys differ in shape.
    """
    if q.shape != k.shape:
        raise ValueError(
            f"queries {list(q.shape)} and keys {list(k.shape)} must have one shape"
        )
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    future = torch.ones_like(scores, dtype=torch.bool).triu(diagonal=1)
    return scores.masked_fill(future, -torch.inf).softmax(dim=-1)


def change_without(
    model: HookedTransformer, tokens: Int[Tensor, "batch pos"], dropped: int, start: int
) -> Float[Tensor, "layer head"]:
    """How much each head's z changes when the token at position `dropped` is taken out
    of every text.

    At each token from position `start` on: the length of the difference, as a share of
    the length of z in the whole text; then the mean over texts and tokens.

    Raises:
        ValueError: `dropped` is not before `start`, or `start` not in the text.
    """
    if not 0 <= dropped < start < tokens.shape[1]:
        raise ValueError(
            f"{dropped}, {start}: take out a token before the first that is compared,"
            f" which is one of {tokens.shape[1]}"
        )
    others = torch.cat([tokens[:, :dropped], tokens[:, dropped + 1 :]], dim=1)
    whole, rest = (
        model.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_z"))[1]
        for ids in (tokens, others)
    )
    changes = []
    for layer in range(model.cfg.n_layers):
        z = whole["z", layer][:, start:]
        # Behind the gap every token stands one place earlier.
        difference = rest["z", layer][:, start - 1 :] - z
        changes.append((difference.norm(dim=-1) / z.norm(dim=-1)).mean(dim=(0, 1)))
    return torch.stack(changes)


# ---------------------------------------------------------------- neurons


def top_tokens(
    activations: Float[Tensor, "token"], str_tokens: Sequence[str], k: int = 5
) -> list[tuple[str, float]]:
    """The k tokens on which a neuron is most active, with its activations, the highest
    first.

    Raises:
        ValueError: there is not one activation for each token.
    """
    if len(activations) != len(str_tokens):
        raise ValueError(f"{len(activations)} activations for {len(str_tokens)} tokens")
    values, places = activations.topk(k)
    return [
        (str_tokens[place], value)
        for place, value in zip(places.tolist(), values.tolist(), strict=True)
    ]


def promoted_share(
    activations: Float[Tensor, "token neuron"],
    next_tokens: Int[Tensor, "token"],
    W_out: Float[Tensor, "neuron d_model"],
    W_U: Float[Tensor, "d_model d_vocab"],
    n: int = 10,
    k: int = 30,
) -> Float[Tensor, "neuron"]:
    """Do a neuron's two ends agree? Of the n tokens on which it is most active, the
    share whose next token is among the k that its output vector promotes most.

    What it promotes is what it would add to the logits, `W_out @ W_U` (Geva et al.
    2021).
    """
    strongest = activations.topk(n, dim=0).indices
    followed_by = next_tokens[strongest].T
    promoted = (W_out @ W_U).topk(k, dim=-1).indices
    # [neuron n k]: is this next token that promoted one?
    found = followed_by[:, :, None] == promoted[:, None, :]
    return found.any(dim=-1).float().mean(dim=-1)


def f1_score(predicted: Bool[Tensor, "token"], labels: Bool[Tensor, "token"]) -> float:
    """The harmonic mean of precision and recall, 0 to 1; 0 where nothing is rightly
    predicted.

    Raises:
        ValueError: predictions and labels differ in number.
    """
    if predicted.shape != labels.shape:
        raise ValueError(
            f"predictions {list(predicted.shape)} and labels {list(labels.shape)} must "
            "have one shape"
        )
    hits = (predicted & labels).sum()
    return (2 * hits / (predicted.sum() + labels.sum()).clamp(min=1)).item()


def best_f1(
    activations: Float[Tensor, "token neuron"], labels: Bool[Tensor, "token"]
) -> tuple[Float[Tensor, "neuron"], Float[Tensor, "neuron"]]:
    """For each neuron the highest F1 that any threshold gives, and that threshold.

    A token is predicted where the activation reaches the threshold. The thresholds to
    try are the activations themselves, all at once: sorted, the n-th highest one
    predicts n tokens. Of equal activations a threshold predicts all or none, so only
    the last of them counts.

    Raises:
        ValueError: there is not one label for each token, or no label is true.
    """
    if len(activations) != len(labels):
        raise ValueError(
            f"{len(activations)} rows of activations for {len(labels)} labels"
        )
    if not labels.any():
        raise ValueError("no token carries the label: there is nothing to predict")
    thresholds, order = activations.sort(dim=0, descending=True)
    hits = labels[order].cumsum(dim=0)
    predicted = torch.arange(1, len(labels) + 1, device=labels.device)[:, None]
    reached = thresholds != thresholds.roll(-1, dims=0)
    reached[-1] = True
    f1, place = (2 * hits / (predicted + labels.sum()) * reached).max(dim=0)
    return f1, thresholds.gather(0, place[None])[0]


# ---------------------------------------------------------------- hooks from scratch


class HookPoint(nn.Module):
    """An identity in the middle of a model, where functions can look at what passes by,
    and change it.

    A hook is called as `hook_fn(x, hook=self)`. What it returns goes on in the place of
    `x`; where it returns None, `x` itself goes on (which the hook may have edited in
    place).
    """

    def __init__(self, name: str = ""):
        super().__init__()
        self.name = name
        self.hook_fns: list[Callable] = []

    def add_hook(self, hook_fn: Callable) -> None:
        """Call this function too, after those that are there."""
        self.hook_fns.append(hook_fn)

    def reset_hooks(self) -> None:
        """Remove all functions."""
        self.hook_fns.clear()

    def forward(self, x: Tensor) -> Tensor:
        """Pass `x` through all functions, one after the other; each gets what the one
        before made of it.
        """
        for hook_fn in self.hook_fns:
            returned = hook_fn(x, hook=self)
            x = x if returned is None else returned
        return x


class TinyMLP(nn.Module):
    """A model small enough to hook by hand: `W_in`, ReLU, `W_out`, with hook points
    `hook_pre` and `hook_post`.
    """

    def __init__(self, d_in: int, d_mlp: int, d_out: int, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.W_in = nn.Parameter(torch.randn(d_in, d_mlp, generator=generator))
        self.W_out = nn.Parameter(torch.randn(d_mlp, d_out, generator=generator))
        self.hook_dict = nn.ModuleDict(
            {name: HookPoint(name) for name in ("hook_pre", "hook_post", "hook_out")}
        )

    def forward(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_out"]:
        pre = self.hook_dict["hook_pre"](x @ self.W_in)
        post = self.hook_dict["hook_post"](pre.relu())
        return self.hook_dict["hook_out"](post @ self.W_out)


def run_with_hooks(
    model: nn.Module, x: Tensor, fwd_hooks: Sequence[tuple[str | Callable, Callable]]
) -> Tensor:
    """Run a model with some hooks, and leave none of them behind, whatever happens.

    Args:
        model: has a `hook_dict` from name to hook point.
        fwd_hooks: pairs of where and what. Where: a hook point's name, or a filter that
            takes a name and returns whether it is meant. What: the hook function.

    Raises:
        ValueError: a name or filter fits no hook point.
    """
    try:
        for where, hook_fn in fwd_hooks:
            matches = [
                name
                for name in model.hook_dict
                if (where(name) if callable(where) else name == where)
            ]
            if not matches:
                raise ValueError(
                    f"{where!r} fits no hook point: choose from {list(model.hook_dict)}"
                )
            for name in matches:
                model.hook_dict[name].add_hook(hook_fn)
        return model(x)
    finally:
        for point in model.hook_dict.values():
            point.reset_hooks()


# -------------------------------- TransformerLens's hooks


def pattern_hooks(hook_fn: Callable) -> list[tuple[Callable, Callable]]:
    """The `fwd_hooks` that call `hook_fn` on the attention pattern of every layer: one
    pair of filter and function.
    """
    return [(lambda name: name.endswith("hook_pattern"), hook_fn)]


def bind_head(hook_fn: Callable, head: int) -> Callable:
    """A hook that TransformerLens can call, from `hook_fn(z, hook, head)`: the head is
    bound by its keyword.
    """
    return partial(hook_fn, head=head)


def scale_head_hook(
    z: Float[Tensor, "batch seq head d_head"], hook, head: int, factor: float
) -> Tensor:
    """Multiply one head's output by a factor; returns the whole activation, in its
    shape.
    """
    z = z.clone()
    z[:, :, head] *= factor
    return z


def gradient_cache(
    model: HookedTransformer,
    tokens: Int[Tensor, "batch seq"],
    names_filter: Callable[[str], bool],
) -> dict[str, Tensor]:
    """The gradient of the mean loss with respect to each activation that the filter
    lets through, by name.

    Raises:
        ValueError: the filter fits no activation, or autograd is off.
    """
    if not torch.is_grad_enabled():
        raise ValueError(
            "gradients are switched off: wrap the call in torch.enable_grad()"
        )
    if not any(map(names_filter, model.hook_dict)):
        raise ValueError("the filter fits no activation")
    gradients = {}

    def keep(gradient, hook):
        gradients[hook.name] = gradient.detach().clone()

    # The weights are frozen, so autograd needs another place to start from: the
    # embedding.
    def start(embed, hook):
        return embed.detach().requires_grad_(True)

    with model.hooks(
        fwd_hooks=[("hook_embed", start)], bwd_hooks=[(names_filter, keep)]
    ):
        model(tokens, return_type="loss").backward()
    return gradients
