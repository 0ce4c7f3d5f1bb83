"""Indirect objects: which heads of a language model know who gets the gift, and how
they work together.

"When Mary and John went to the store, John gave a book to" goes on with " Mary". Three
names are told apart by role: the *indirect object* IO (Mary), the *subject's* first
mention S1 and its second S2 (John). END is the last token. The task and the methods
follow Wang et al. (2023), "Interpretability in the Wild: a Circuit for Indirect Object
Identification in GPT-2 small". A *head* is a pair `(layer, head)`.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import einops
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import ActivationCache, HookedTransformer
from transformer_lens.cache.key_value_cache_entry import (
    TransformerLensKeyValueCacheEntry,
)
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import get_act_name

from utils.runtime import device
from utils.world.lexicon import GIFTS, NAMES, PLACES
from utils.world.templates import IOI as TEMPLATES

# What chapter 09 imports: all but its exercises.
__all__ = [
    "Head",
    "finish_run",
    "get_act_patch_heads",
    "one_token_words",
    "require_same_length",
    "token_id",
]

Head = tuple[int, int]


# ---------------------------------------------------------------- the prompts


def token_id(tokenizer, word: str) -> int:
    """The one token of a word with its leading space.

    Raises:
        ValueError: the word is more than one token.
    """
    ids = tokenizer(" " + word, add_special_tokens=False).input_ids
    if len(ids) != 1:
        pieces = tokenizer.convert_ids_to_tokens(ids)
        raise ValueError(
            f"{word!r} is {len(ids)} tokens {pieces}: choose a word that is one token"
        )
    return ids[0]


def one_token_words(tokenizer, words: Iterable[str]) -> list[str]:
    """Those of the words that, with their leading space, are one token."""
    return [
        w
        for w in words
        if len(tokenizer(" " + w, add_special_tokens=False).input_ids) == 1
    ]


class IOIDataset:
    """Prompts of one template, all of the same length: `IOIDataset.sample(tokenizer,
    16)` draws some.

    Even rows name the indirect object first ("When IO and S went …"), odd rows the
    subject ("When S and IO …").

    Attributes:
        fillings: for each prompt what fills the template's slots: the two people as
            introduced (`name`, `name2`), who acts (`subject`), who receives
            (`recipient`, the answer), `place` and `gift`.
        texts: the prompts, up to the word before the answer.
        tokens: Int "batch seq", beginning with BOS.
        answer_tokens: Int "batch 2", the right name and the wrong one.
        positions: for each of the roles "IO", "S1", "S1+1", "S2", "END" its position,
            Int "batch".
    """

    def __init__(
        self,
        tokenizer,
        template: str,
        fillings: Sequence[dict],
        answers: Sequence[tuple[str, str]] | None = None,
    ):
        """
        Args:
            template: with slots in braces, ending in "{recipient}" and punctuation.
            answers: (right, wrong) of each prompt; by default the recipient and the
                subject.

        Raises:
            ValueError: a name is more than one token, or the prompts differ in length.
        """
        self.tokenizer, self.template, self.fillings = (
            tokenizer,
            template,
            list(fillings),
        )
        self.answers = list(
            answers or [(f["recipient"], f["subject"]) for f in fillings]
        )
        open_end = template.split(" {recipient}")[0]
        self.texts = [open_end.format(**filling) for filling in fillings]
        rows = tokenizer(
            [tokenizer.bos_token + text for text in self.texts],
            add_special_tokens=False,
        ).input_ids
        if len(lengths := sorted({len(row) for row in rows})) > 1:
            raise ValueError(
                f"the prompts have {lengths} tokens, but must be equally long: use "
                "words of one token each"
            )
        self.tokens = torch.tensor(rows, device=device())
        self.answer_tokens = torch.tensor(
            [[token_id(tokenizer, name) for name in pair] for pair in self.answers],
            device=device(),
        )
        self.positions = self._find_positions()

    @classmethod
    def sample(
        cls,
        tokenizer,
        n: int,
        template: int = 0,
        seed: int = 0,
        name_pairs: Sequence[tuple] | None = None,
    ):
        """`n` prompts of the world's template with this number, drawn from a seed.

        Args:
            name_pairs: the pairs of names to draw from; by default any two of the
                world's names.

        Raises:
            ValueError: there is no such template, or a given name is more than one
                token.
        """
        if not 0 <= template < len(TEMPLATES):
            raise ValueError(
                f"there is no template {template}: they go from 0 to "
                f"{len(TEMPLATES) - 1}"
            )
        names, places, gifts = (
            one_token_words(tokenizer, words) for words in (NAMES, PLACES, GIFTS)
        )
        rng = random.Random(seed)
        fillings = []
        for i in range(n):
            a, b = rng.choice(name_pairs) if name_pairs else rng.sample(names, 2)
            subject, recipient = (b, a) if i % 2 == 0 else (a, b)
            people = {"name": a, "name2": b, "subject": subject, "recipient": recipient}
            fillings.append(
                people | {"place": rng.choice(places), "gift": rng.choice(gifts)}
            )
        return cls(tokenizer, TEMPLATES[template].text, fillings)

    def flipped(self) -> "IOIDataset":
        """The same prompts with the other person acting: only the token at S2 differs,
        and the answer is swapped.
        """
        fillings = [
            f | {"subject": f["recipient"], "recipient": f["subject"]}
            for f in self.fillings
        ]
        return IOIDataset(self.tokenizer, self.template, fillings)

    def abc(self, seed: int = 0) -> "IOIDataset":
        """The same prompts with three new, different names: nobody is named twice, so
        nothing tells who receives.

        Each prompt's new names are none of its old ones. The answers stay those of the
        old prompts, so that the same question can be put to both.
        """
        rng = random.Random(seed)
        names = one_token_words(self.tokenizer, NAMES)
        fillings = []
        for f in self.fillings:
            new = rng.sample(
                [name for name in names if name not in (f["name"], f["name2"])], 3
            )
            # The recipient stays in its place: the first or the second name.
            recipient = new[0] if f["recipient"] == f["name"] else new[1]
            fillings.append(
                f
                | {
                    "name": new[0],
                    "name2": new[1],
                    "subject": new[2],
                    "recipient": recipient,
                }
            )
        return IOIDataset(self.tokenizer, self.template, fillings, self.answers)

    def _find_positions(self) -> dict[str, Int[Tensor, " batch"]]:
        found = {role: [] for role in ("IO", "S1", "S1+1", "S2", "END")}
        for row, f in zip(self.tokens.tolist(), self.fillings, strict=True):
            first, second = (
                row.index(token_id(self.tokenizer, f[slot]))
                for slot in ("name", "name2")
            )
            io, s1 = (first, second) if f["recipient"] == f["name"] else (second, first)
            # The subject acts after both were introduced: its last mention.
            s2 = len(row) - 1 - row[::-1].index(token_id(self.tokenizer, f["subject"]))
            for role, position in zip(
                found, (io, s1, s1 + 1, s2, len(row) - 1), strict=True
            ):
                found[role].append(position)
        return {
            role: torch.tensor(positions, device=device())
            for role, positions in found.items()
        }

    def __len__(self) -> int:
        return len(self.texts)


# ---------------------------------------------------------------- how sure the model is


def logits_to_ave_logit_diff(
    logits: Float[Tensor, "batch seq d_vocab"],
    answer_tokens: Int[Tensor, "batch 2"],
    per_prompt: bool = False,
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """The logit of the right name minus that of the wrong one, after the last token:
    its mean, or one per prompt.

    Raises:
        ValueError: there is not one pair of answers for each prompt.
    """
    if answer_tokens.shape != (len(logits), 2):
        raise ValueError(
            f"answer_tokens must be of shape ({len(logits)}, 2), not "
            f"{list(answer_tokens.shape)}"
        )
    answer_logits = logits[:, -1].gather(-1, answer_tokens)
    logit_diff = answer_logits[:, 0] - answer_logits[:, 1]
    return logit_diff if per_prompt else logit_diff.mean()


def ioi_metric(
    logits: Float[Tensor, "batch seq d_vocab"],
    answer_tokens: Int[Tensor, "batch 2"],
    clean_logit_diff: float,
    corrupted_logit_diff: float,
) -> Float[Tensor, ""]:
    """How much of the way from the corrupted to the clean behaviour: 0 as on the
    corrupted prompts, 1 as on the clean.

    Raises:
        ValueError: the two reference values are equal, and there is no way to measure.
    """
    if clean_logit_diff == corrupted_logit_diff:
        raise ValueError(
            "clean and corrupted prompts have the same logit difference: nothing could "
            "be restored"
        )
    logit_diff = logits_to_ave_logit_diff(logits, answer_tokens)
    return (logit_diff - corrupted_logit_diff) / (
        clean_logit_diff - corrupted_logit_diff
    )


# ---------------------------------------------------------------- who writes the answer


def residual_stack_to_logit_diff(
    residual_stack: Float[Tensor, "... batch d_model"],
    cache: ActivationCache,
    logit_diff_directions: Float[Tensor, "batch d_model"],
) -> Float[Tensor, "..."]:
    """What each part of the final residual stream adds to the logit difference, mean
    over prompts.

    Args:
        residual_stack: parts of the residual stream at the last position.
        cache: of the run that the parts come from; it holds the scale of the final
            LayerNorm there.
        logit_diff_directions: for each prompt the unembedding of its right name minus
            that of its wrong name.

    The LayerNorm's scale is frozen at the value it had, so that the parts add up
    exactly (all but the unembedding's bias). That describes this run; it does not say
    what would happen without a part.
    """
    # One scale for each prompt, that of the last position.
    scale = cache["ln_final.hook_scale"][:, -1]
    if cache.model.cfg.normalization_type in ("LN", "LNPre"):
        residual_stack = residual_stack - residual_stack.mean(dim=-1, keepdim=True)
    return einops.einsum(
        residual_stack / scale,
        logit_diff_directions,
        "... batch d_model, batch d_model -> ... batch",
    ).mean(dim=-1)


# ---------------------------------------------------------------- activation patching


def require_same_length(
    run: Int[Tensor, "batch seq"] | Float[Tensor, "batch ..."],
    cached: ActivationCache | Float[Tensor, "batch ..."],
) -> None:
    """Nothing where what the cached run has stands at the same places.

    A patch puts what one run had at a position where the other has that position: in
    prompts of another length nothing lines up.

    Args:
        run: tokens, or a run's activations at a hook.
        cached: beside tokens the other run's cache, beside activations what the other
            run had at that hook.

    Raises:
        ValueError: the lengths differ; of activations, any dimension.
    """
    if isinstance(cached, Tensor):
        if run.shape != cached.shape:
            raise ValueError(
                f"activations {list(run.shape)}, but the cached run had "
                f"{list(cached.shape)}: patch between prompts of the same length"
            )
        return
    name, values = next(iter(cached.items()))
    # Patterns and scores are "batch head query key", all else "batch seq ...".
    of_attention = name.endswith(("hook_pattern", "hook_attn_scores"))
    length = values.shape[2 if of_attention else 1]
    if run.shape[1] != length:
        raise ValueError(
            f"prompts of {run.shape[1]} tokens, but the cached run had {length}: "
            "patch between prompts of the same length"
        )


def patch_residual_component(
    corrupted_residual_component: Float[Tensor, "batch seq d_model"],
    hook: HookPoint,
    pos: int,
    clean_cache: ActivationCache,
) -> Float[Tensor, "batch seq d_model"]:
    """Hook: at one position, what the clean run had there, for the whole batch.

    Raises:
        ValueError: the two runs' prompts differ in length (`require_same_length`).
    """
    clean = clean_cache[hook.name]
    require_same_length(corrupted_residual_component, clean)
    corrupted_residual_component[:, pos] = clean[:, pos]
    return corrupted_residual_component


def patch_head_vector(
    corrupted_head_vector: Float[Tensor, "batch seq n_heads d_head"],
    hook: HookPoint,
    head_index: int,
    clean_cache: ActivationCache,
) -> Float[Tensor, "batch seq n_heads d_head"]:
    """Hook for z, q, k or v: one head's vectors as in the clean run, everywhere.

    Raises:
        ValueError: the two runs' prompts differ in length (`require_same_length`).
    """
    clean = clean_cache[hook.name]
    require_same_length(corrupted_head_vector, clean)
    corrupted_head_vector[:, :, head_index] = clean[:, :, head_index]
    return corrupted_head_vector


def patch_attn_patterns(
    corrupted_pattern: Float[Tensor, "batch n_heads query key"],
    hook: HookPoint,
    head_index: int,
    clean_cache: ActivationCache,
) -> Float[Tensor, "batch n_heads query key"]:
    """Hook for the pattern: one head looks where it looked in the clean run; its values
    stay.

    Raises:
        ValueError: the two runs' prompts differ in length (`require_same_length`).
    """
    clean = clean_cache[hook.name]
    require_same_length(corrupted_pattern, clean)
    corrupted_pattern[:, head_index] = clean[:, head_index]
    return corrupted_pattern


def get_act_patch_resid_pre(
    model: HookedTransformer,
    corrupted_tokens: Int[Tensor, "batch seq"],
    clean_cache: ActivationCache,
    patching_metric: Callable[[Float[Tensor, "batch seq d_vocab"]], Tensor],
) -> Float[Tensor, "layer seq"]:
    """The metric of the corrupted run with the clean residual stream put in before each
    layer, at each position.

    Raises:
        ValueError: the two runs' prompts differ in length (`require_same_length`).
    """
    require_same_length(corrupted_tokens, clean_cache)
    n_layers, seq = model.cfg.n_layers, corrupted_tokens.shape[1]
    results = torch.zeros(n_layers, seq, device=corrupted_tokens.device)
    for layer in range(n_layers):
        for pos in range(seq):
            hook = partial(patch_residual_component, pos=pos, clean_cache=clean_cache)
            logits = model.run_with_hooks(
                corrupted_tokens, fwd_hooks=[(get_act_name("resid_pre", layer), hook)]
            )
            results[layer, pos] = patching_metric(logits)
    return results


def get_act_patch_heads(
    model: HookedTransformer,
    corrupted_tokens: Int[Tensor, "batch seq"],
    clean_cache: ActivationCache,
    patching_metric: Callable[[Float[Tensor, "batch seq d_vocab"]], Tensor],
    activation: str = "z",
) -> Float[Tensor, "layer head"]:
    """The metric of the corrupted run with one head's clean activation put in, for each
    head.

    Args:
        activation: "z" (all that a head puts out), "q", "k", "v", or "pattern".

    Raises:
        ValueError: heads have no such activation, or the two runs' prompts differ in
            length.
    """
    require_same_length(corrupted_tokens, clean_cache)
    if activation not in ("z", "q", "k", "v", "pattern"):
        raise ValueError(
            f"{activation!r} is not an activation of a head: choose z, q, k, v or "
            "pattern"
        )
    hook_function = (
        patch_attn_patterns if activation == "pattern" else patch_head_vector
    )
    results = torch.zeros(
        model.cfg.n_layers, model.cfg.n_heads, device=corrupted_tokens.device
    )
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            hook = partial(hook_function, head_index=head, clean_cache=clean_cache)
            logits = model.run_with_hooks(
                corrupted_tokens, fwd_hooks=[(get_act_name(activation, layer), hook)]
            )
            results[layer, head] = patching_metric(logits)
    return results


def finish_run(
    model: HookedTransformer,
    resid_mid: Float[Tensor, "batch d_model"],
    layer: int,
    pos: int,
    cache: ActivationCache,
) -> Float[Tensor, "batch 1 d_vocab"]:
    """The last position's logits of a cached run, had the residual stream after the
    attention of `layer` been `resid_mid` at position `pos`.

    Nothing before `layer` and no position before `pos` can change: their keys and
    values are taken from the cache.

    Args:
        resid_mid: one or several variants of the cached batch, one after the other.
        cache: holds resid_post, k and v of all layers.
    """
    copies, last = (
        len(resid_mid) // len(cache["resid_post", layer]),
        model.cfg.n_layers - 1,
    )
    resid = cache["resid_post", layer][:, pos:].repeat(copies, 1, 1)
    resid[:, 0] = _add_mlp(model, layer, resid_mid[:, None])[:, 0]
    for later in range(layer + 1, last + 1):
        block = model.blocks[later]
        k, v = (
            cache[name, later][:, :pos].repeat(copies, 1, 1, 1) for name in ("k", "v")
        )
        if later < last:
            past = TransformerLensKeyValueCacheEntry(
                past_keys=k, past_values=v, frozen=True
            )
            resid = block(resid, past_kv_cache_entry=past)
            continue
        # In the last layer only the last position's query counts.
        q, new_k, new_v = block.attn.calculate_qkv_matrices(
            block.ln1(resid[:, -1:]), *[block.ln1(resid)] * 2
        )
        k, v = torch.cat([k, new_k], dim=1), torch.cat([v, new_v], dim=1)
        pattern = block.attn.calculate_attention_scores(q, k).softmax(dim=-1)
        z = block.attn.calculate_z_scores(v, pattern)
        attn_out = einops.einsum(
            z, block.attn.W_O, "b q head d_head, head d_head d_model -> b q d_model"
        )
        resid = _add_mlp(model, later, resid[:, -1:] + attn_out + block.attn.b_O)
    return model.unembed(model.ln_final(resid[:, -1:]))


def _add_mlp(
    model: HookedTransformer, layer: int, resid_mid: Float[Tensor, "batch seq d_model"]
):
    block = model.blocks[layer]
    return (
        resid_mid
        if model.cfg.attn_only
        else resid_mid + block.apply_mlp(block.ln2(resid_mid))
    )


def get_act_patch_heads_by_pos(
    model: HookedTransformer,
    corrupted_tokens: Int[Tensor, "batch seq"],
    clean_cache: ActivationCache,
    patching_metric: Callable[[Float[Tensor, "batch seq d_vocab"]], Tensor],
) -> Float[Tensor, "layer seq head"]:
    """The metric of the corrupted run with one head's clean z put in at one position,
    for all heads and positions.

    The same numbers as one run for each
    (`transformer_lens.patching.get_act_patch_attn_head_out_by_pos`), several times
    faster: a pass starts where the patch is, with all heads of the layer side by side
    in the batch. The metric must look at the last position only.

    Raises:
        ValueError: the two runs' prompts differ in length (`require_same_length`).
    """
    require_same_length(corrupted_tokens, clean_cache)
    after_attn = "resid_post" if model.cfg.attn_only else "resid_mid"
    kept = ("hook_z", "hook_k", "hook_v", "hook_resid_mid", "hook_resid_post")
    corrupted_logits, cache = model.run_with_cache(
        corrupted_tokens, names_filter=lambda name: name.endswith(kept)
    )
    (n_layers, n_heads), seq = (
        (model.cfg.n_layers, model.cfg.n_heads),
        corrupted_tokens.shape[1],
    )
    # What is not computed below has no effect: where both runs agree, and in the last
    # layer all but the last position.
    results = torch.full(
        (n_layers, seq, n_heads), float(patching_metric(corrupted_logits))
    )
    for layer in range(n_layers):
        change = einops.einsum(
            clean_cache["z", layer] - cache["z", layer],
            model.W_O[layer],
            "batch seq head d_head, head d_head d_model -> seq head batch d_model",
        )
        for pos in range(seq) if layer < n_layers - 1 else [seq - 1]:
            if not change[pos].any():
                continue
            patched = cache[after_attn, layer][:, pos] + change[pos]
            logits = finish_run(model, patched.flatten(0, 1), layer, pos, cache)
            results[layer, pos] = torch.stack(
                [patching_metric(copy) for copy in logits.chunk(n_heads)]
            )
    return results.to(corrupted_tokens.device)
