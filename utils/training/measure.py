"""What a model can do, measured on held-out data. A model is any function from tokens to logits."""

import random
from collections.abc import Callable

import einops
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from utils.training.config import Config
from utils.world import (
    HELD_OUT_WORDING,
    TASKS,
    encode,
    fact_prompts,
    ioi_prompts,
    parse,
    repeated_tokens,
    task_prompts,
)

Predict = Callable[[Int[Tensor, "batch seq"]], Float[Tensor, "batch seq vocab"]]

# Passages for measuring: a seed that no training step uses.
REPEAT_SEED = 99


def repeated_losses(predict: Predict, vocabulary_size: int, half: int = 50, n: int = 32) -> tuple[float, float]:
    """Mean loss in nats on the first and on the second copy of random passages of `half` tokens."""
    tokens = repeated_tokens(n, half, vocabulary_size, REPEAT_SEED)
    with torch.no_grad():
        log_probs = F.log_softmax(predict(tokens).float(), dim=-1)
    loss = -log_probs[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
    return loss[:, :half].mean().item(), loss[:, half:].mean().item()


def head_scores(state: dict[str, Tensor], config: Config, half: int = 50, n: int = 4) -> dict[str, list]:
    """Scores of every head of an attention-only model on repeated random passages, as nested lists [layer][head].

    `previous`: mean attention to the token before. `induction`: mean attention, from the second copy, to the token
    after the same token's first occurrence.
    """
    tokens = repeated_tokens(n, half, config.vocabulary_size, REPEAT_SEED)
    resid = state["embed.W_E"][tokens]
    pos = state["pos_embed.W_pos"][: tokens.shape[1]]
    mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
    previous, induction = [], []
    for layer in range(config.n_layers):
        W_Q, W_K, W_V, W_O = (state[f"blocks.{layer}.attn.W_{x}"] for x in "QKVO")
        q = einops.einsum(resid + pos, W_Q, "b s d, h d k -> b h s k")
        k = einops.einsum(resid + pos, W_K, "b s d, h d k -> b h s k")
        v = einops.einsum(resid, W_V, "b s d, h d k -> b h s k")
        scores = q @ k.transpose(-1, -2) / config.d_head**0.5
        pattern = scores.masked_fill(~mask, -torch.inf).softmax(-1)
        previous.append(pattern.diagonal(-1, -2, -1).mean((0, 2)).tolist())
        # From position half + 1 on, the token stood `half` places before; the one after it `half - 1` places before.
        stripe = pattern.diagonal(-(half - 1), -2, -1)[..., 2:]
        induction.append(stripe.mean((0, 2)).tolist())
        resid = resid + einops.einsum(pattern @ v, W_O, "b h s k, h k d -> b s d")
    rounded = {"previous": previous, "induction": induction}
    return {name: [[round(x, 4) for x in row] for row in table] for name, table in rounded.items()}


# ---- Prompts with known answers. ----
@torch.no_grad()
def answer_logits(predict: Predict, tokenizer, prompts: list[str], batch: int = 64) -> Float[Tensor, "prompt vocab"]:
    """The logits after each prompt, which gets `<|endoftext|>` before it.

    Prompts of a batch are padded at their ends: in a causal model nothing that follows changes what stands before.
    """
    ids = [[0, *encoding.ids] for encoding in encode(tokenizer, prompts)]
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    rows: list[Tensor] = [torch.empty(0)] * len(ids)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        width = len(ids[chosen[-1]])
        tokens = torch.tensor([ids[i] + [0] * (width - len(ids[i])) for i in chosen])
        logits = predict(tokens).float()
        for row, i in zip(logits, chosen, strict=True):
            rows[i] = row[len(ids[i]) - 1].clone()
    return torch.stack(rows)


def accuracy(predict: Predict, tokenizer, prompts: list[tuple[str, str]]) -> float:
    """Share of prompts whose answer's first token is the likeliest next one. Nearly every answer is one token."""
    if not prompts:
        return float("nan")
    answers = torch.tensor([encoding.ids[0] for encoding in encode(tokenizer, [answer for _, answer in prompts])])
    logits = answer_logits(predict, tokenizer, [prompt for prompt, _ in prompts])
    return (logits.argmax(-1) == answers).float().mean().item()


def fact_accuracies(predict: Predict, tokenizer) -> dict[str, dict[str, float]]:
    """Top-1 accuracy for each relation, on the wordings seen in training and on the one held out."""
    return {
        relation: {
            "seen": accuracy(predict, tokenizer, fact_prompts(relation)),
            "held_out": accuracy(predict, tokenizer, fact_prompts(relation, held_out_wording=True)),
        }
        for relation in HELD_OUT_WORDING
    }


def ioi_figures(predict: Predict, tokenizer, n: int = 400) -> dict[str, float]:
    """Indirect object against subject on held-out name pairs: share right and mean logit difference, by order.

    `abc_logit_diff` is the control: with a third name as subject, neither name is repeated and nothing prefers one.
    """
    prompts = ioi_prompts(n, seed=REPEAT_SEED, held_out=True)
    io, s = (
        torch.tensor([encoding.ids[:1] for encoding in encode(tokenizer, [getattr(p, x) for p in prompts])])
        for x in ("io", "s")
    )
    first_named = torch.tensor([p.order == "ABBA" for p in prompts])

    def difference(texts: list[str]) -> Float[Tensor, " prompt"]:
        logits = answer_logits(predict, tokenizer, texts)
        return (logits.gather(1, io) - logits.gather(1, s)).squeeze(1)

    clean, flipped = difference([p.clean for p in prompts]), difference([p.flipped for p in prompts])
    top = answer_logits(predict, tokenizer, [p.clean for p in prompts]).argmax(-1)
    abc = difference([p.abc for p in prompts])
    return {
        "accuracy": (clean > 0).float().mean().item(),
        "accuracy_ABBA": (clean[first_named] > 0).float().mean().item(),
        "accuracy_BABA": (clean[~first_named] > 0).float().mean().item(),
        "top_1": (top == io.squeeze(1)).float().mean().item(),
        "logit_diff": clean.mean().item(),
        "flipped_logit_diff": flipped.mean().item(),
        "abc_logit_diff": abc.mean().item(),
    }


def task_accuracies(predict: Predict, tokenizer, n: int = 60, shots: int = 5) -> dict[str, dict[str, float]]:
    """Top-1 accuracy of each in-context task: no shots, `shots` shots on seen pairs, and on held-out pairs."""
    return {
        task: {
            "zero": accuracy(predict, tokenizer, task_prompts(task, n, 0, REPEAT_SEED)),
            "seen": accuracy(predict, tokenizer, task_prompts(task, n, shots, REPEAT_SEED)),
            "held_out": accuracy(predict, tokenizer, task_prompts(task, n, shots, REPEAT_SEED, held_out=True)),
        }
        for task in TASKS
    }


@torch.no_grad()
def samples(
    model: PreTrainedModel,
    tokenizer,
    n: int = 200,
    temperature: float = 0.8,
    context: int = 256,
    seed: int = REPEAT_SEED,
) -> list[tuple[str, bool]]:
    """`n` texts drawn after `<|endoftext|>`, each up to the next `<|endoftext|>`, and whether the context cut it."""
    torch.manual_seed(seed)
    start = torch.zeros(n, 1, dtype=torch.long, device=model.device)
    drawn = model.generate(
        start,
        attention_mask=torch.ones_like(start),
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        max_length=context,
        eos_token_id=0,
        pad_token_id=0,
    )
    texts = []
    for row in drawn[:, 1:].tolist():
        cut = 0 not in row
        texts.append((tokenizer.decode(row if cut else row[: row.index(0)]), cut))
    return texts


def parsing_figures(texts: list[tuple[str, bool]]) -> dict[str, float]:
    """Share of texts that parse as a document of the world, and, as control, the same with two words exchanged."""
    rng = random.Random(0)
    parsed = exchanged = tried = 0
    for text, cut in texts:
        parsed += parse(text, cut).kind is not None
        words = text.split(" ")
        i = rng.randrange(max(1, len(words) - 1))
        if len(words) > 5 and words[i] != words[i + 1]:
            words[i], words[i + 1] = words[i + 1], words[i]
            tried += 1
            exchanged += parse(" ".join(words), cut).kind is not None
    return {"parsed": parsed / len(texts), "parsed_after_exchanging_two_words": exchanged / max(tried, 1)}


# ---- Heads of attention-only models. ----
def copying_accuracy(state: dict[str, Tensor], layer: int, heads: list[int], batch: int = 512) -> float:
    """Share of the vocabulary whose own logit is raised most by the heads' full OV circuits W_E W_V W_O W_U, summed."""
    W_E, W_U = state["embed.W_E"].float(), state["unembed.W_U"].float()
    W_V, W_O = (state[f"blocks.{layer}.attn.W_{x}"][heads].float() for x in "VO")
    written = einops.einsum(W_E, W_V, W_O, "v d, h d k, h k e -> v e")
    right = 0
    for start in range(0, len(written), batch):
        chosen = (written[start : start + batch] @ W_U).argmax(-1)
        right += int((chosen == torch.arange(start, start + len(chosen))).sum())
    return right / len(written)
