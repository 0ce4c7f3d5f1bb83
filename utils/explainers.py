"""Who explains a latent: the world's own labels (the default, needs no service), or a
language model behind an API.

Both kinds have the same two methods. `explain` sees a latent's activations and says in
words what it stands for. `simulate` gets those words alone and guesses the activations
on other text; how well is measured in `score`.
"""

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Protocol

import einops
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from utils.saes import (
    Example,
    create_prompt,
    detection_score,
    get_k_largest_indices,
    index_with_buffer,
    simulation_score,
)
from utils.world import LABELS


class Explainer(Protocol):
    """What an explainer can do. `truth` is the world's labels on each token: only
    `WorldExplainer` looks at it.
    """

    def explain(
        self,
        tokens: Int[Tensor, "row seq"],
        acts: Float[Tensor, "row seq"],
        truth: Bool[Tensor, "row seq label"] | None = None,
    ) -> str:
        """One latent, in words."""
        ...

    def simulate(
        self,
        explanation: str,
        tokens: Int[Tensor, "row seq"],
        truth: Bool[Tensor, "row seq label"] | None = None,
    ) -> Float[Tensor, "row seq"]:
        """The activations that the words lead one to expect, on any scale; 0 where the
        latent should be silent.
        """
        ...


def score(
    explainer: Explainer,
    explanation: str,
    tokens: Int[Tensor, "row seq"],
    acts: Float[Tensor, "row seq"],
    truth: Bool[Tensor, "row seq label"] | None = None,
    window: int = 16,
) -> tuple[float, float]:
    """(detection, simulation) score of an explanation on text that it was not made
    from.

    For detection the rows are cut into windows of `window` tokens: is the latent active
    anywhere in this one?
    """
    simulated = explainer.simulate(explanation, tokens, truth)
    said, active = (
        einops.rearrange(
            x > 0, "row (chunk window) -> (row chunk) window", window=window
        ).any(dim=-1)
        for x in (simulated, acts)
    )
    return detection_score(said, active), simulation_score(simulated, acts)


# -------------------------------- the world's own labels


def correlations(
    guesses: Float[Tensor, "guess token"], acts: Float[Tensor, " token"]
) -> Float[Tensor, " guess"]:
    """`simulation_score` of many guesses at once."""
    guesses, truth = guesses - guesses.mean(dim=1, keepdim=True), acts - acts.mean()
    lengths = guesses.norm(dim=1) * truth.norm()
    return torch.where(lengths > 0, guesses @ truth / lengths, 0.0)


PART = re.compile(
    r'(?:the token ("(?:[^"\\]|\\.)*")|([\w:>=]+)) \(([\d.]+(?:e[-+]\d+)?)\)'
)


class WorldExplainer:
    """Explains by label statistics and frequent tokens: `country (3.10), the token "
    King" (1.20)`.

    An explanation names up to `parts` labels or tokens, each with the latent's mean
    activation where it holds. To simulate, a token gets the largest of these numbers
    among what holds on it, and 0 where nothing does.

    Args:
        tokenizer: the model's.
        labels: the names of the columns of `truth`.
        gain: a further part must raise the correlation with the true activations by
            this much.
    """

    def __init__(
        self,
        tokenizer,
        labels: Sequence[str] = tuple(LABELS),
        parts: int = 3,
        gain: float = 0.02,
    ):
        self.vocabulary = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
        self.labels, self.parts, self.gain = list(labels), parts, gain

    def explain(self, tokens, acts, truth=None) -> str:
        """The parts that together follow the activations best, found one after the
        other.

        Raises:
            ValueError: no labels, or the latent is nowhere active.
        """
        if truth is None or not (acts > 0).any():
            raise ValueError(
                "WorldExplainer needs the labels of each token, and a latent that is "
                "active somewhere"
            )
        # The tokens on which most of the latent's activation falls.
        by_token = acts.new_zeros(len(self.vocabulary)).index_add_(
            0, tokens.flatten(), acts.flatten()
        )
        frequent = by_token.topk(30).indices
        candidates = self.labels + [
            f"the token {json.dumps(self.vocabulary[i], ensure_ascii=False)}"
            for i in frequent
        ]
        holds = torch.cat(
            [truth.flatten(0, 1).T, tokens.flatten() == frequent[:, None]]
        ).float()
        mean = (holds @ acts.flatten()) / holds.sum(dim=1).clamp_min(1)

        chosen, guess, best = [], torch.zeros_like(acts.flatten()), 0.0
        while len(chosen) < self.parts:
            trials = torch.maximum(guess, mean[:, None] * holds)
            scores = correlations(trials, acts.flatten())
            if scores.max() < best + self.gain:
                break
            best = scores.max().item()
            # Labels that hold on the same tokens score alike: the first of them.
            winner = (scores > best - 1e-5).nonzero()[0].item()
            chosen.append(winner)
            guess = trials[winner]
        return ", ".join(f"{candidates[i]} ({mean[i]:#.3g})" for i in chosen)

    def simulate(self, explanation: str, tokens, truth=None):
        """Raises:
        ValueError: the explanation has no part that this explainer understands.
        """
        guess = torch.zeros(tokens.shape, device=tokens.device)
        parts = PART.findall(explanation)
        if not parts:
            raise ValueError(
                f"{explanation!r} names neither a label nor a token with its "
                "activation in brackets"
            )
        for token, label, size in parts:
            if token:
                word = json.loads(token)
                holds = torch.tensor(
                    [text == word for text in self.vocabulary], device=tokens.device
                )[tokens]
            else:
                holds = truth[..., self.labels.index(label)]
            guess = torch.maximum(guess, float(size) * holds)
        return guess


# -------------------------------- a language model behind an API

# For each key in the environment: where to ask, which model by default, and the header
# that carries the key.
SERVICES = {
    "ANTHROPIC_API_KEY": (
        "https://api.anthropic.com/v1/messages",
        "claude-haiku-4-5",
        lambda key: {"x-api-key": key, "anthropic-version": "2023-06-01"},
    ),
    "OPENAI_API_KEY": (
        "https://api.openai.com/v1/chat/completions",
        "gpt-4o-mini",
        lambda key: {"authorization": f"Bearer {key}"},
    ),
}


class ServiceError(RuntimeError):
    """The language model's service did not answer, or not with what was asked for."""


def ask(prompt: str, timeout: float = 60) -> str:
    """One answer of a language model. It costs what the service charges;
    `WORKBOOK_EXPLAINER` names another model.

    Raises:
        ValueError: no key in the environment.
        ServiceError: the service can't be reached in time, refuses, or answers in
            another form.
    """
    variable = next((name for name in SERVICES if os.environ.get(name)), None)
    if variable is None:
        raise ValueError(
            f"no key for a service: set {' or '.join(SERVICES)}, or use "
            "WorldExplainer, which needs none"
        )
    url, model, header = SERVICES[variable]
    model = os.environ.get("WORKBOOK_EXPLAINER", model)
    body = {
        "model": model,
        "max_tokens": 2000,
        "messages": [{"role": "user", "content": prompt}],
    }
    headers = {"content-type": "application/json", **header(os.environ[variable])}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            answer = json.load(reply)
        found = (
            answer["content"][0]["text"]
            if "content" in answer
            else answer["choices"][0]["message"]["content"]
        )
    except urllib.error.HTTPError as problem:
        says = problem.read(300).decode(errors="replace")
        raise ServiceError(
            f"{url} refused with status {problem.code}: {says}"
        ) from None
    except OSError as problem:
        raise ServiceError(
            f"{url} did not answer within {timeout:g} s ({problem}): is there a "
            "network?"
        ) from None
    except (ValueError, LookupError, TypeError):
        raise ServiceError(
            f"{url} answered in a form that is not known: has its interface changed?"
        ) from None
    return found.strip()


EXPLAIN = """\
Below are pieces of text on which one feature inside a small language model is \
most active. What it \
is active on stands
between << and >>. Say in one short sentence what the marked parts have in common. \
Name what holds for all of them; do
not list them. If it matters, say what stands before them.

"""
SIMULATE = """\
A feature inside a small language model is described as: {explanation}

How active is it on each of these {n} tokens? Answer with a JSON list of {n} \
whole numbers from 0 (not at all) to 10, in
the tokens' order, and nothing else.

{tokens}"""


class LanguageModelExplainer:
    """Explains and simulates by asking a language model; it never sees the world's
    labels.

    Args:
        tokenizer: the model's.
        ask: takes a prompt and returns the answer.
        k, buffer: how many examples it is shown, and how many tokens to each side of
            their middle.
    """

    def __init__(
        self, tokenizer, ask: Callable[[str], str] = ask, k: int = 15, buffer: int = 8
    ):
        self.tokenizer, self.ask, self.k, self.buffer = tokenizer, ask, k, buffer

    def explain(self, tokens, acts, truth=None) -> str:
        """One sentence. Raises as `create_prompt` and `ask`."""
        indices = get_k_largest_indices(acts, self.k, self.buffer)
        windows = (index_with_buffer(x, indices, self.buffer) for x in (tokens, acts))
        examples = [
            Example(self._texts(t), a)
            for t, a in zip(*windows, strict=True)
            if a[self.buffer] > 0
        ]
        return self.ask(EXPLAIN + create_prompt(examples))

    def simulate(self, explanation: str, tokens, truth=None):
        """One question for each row. Raises ServiceError where an answer is no list of
        as many numbers as tokens.
        """
        return torch.stack([self._simulate_row(explanation, row) for row in tokens])

    def _simulate_row(
        self, explanation: str, row: Int[Tensor, " seq"]
    ) -> Float[Tensor, " seq"]:
        texts = json.dumps(self._texts(row), ensure_ascii=False)
        answer = self.ask(
            SIMULATE.format(explanation=explanation, n=len(row), tokens=texts)
        )
        try:
            numbers = torch.tensor(
                json.loads(answer[answer.index("[") : answer.rindex("]") + 1]),
                dtype=torch.float,
                device=row.device,
            )
        except (ValueError, TypeError):
            numbers = torch.zeros(0)
        if numbers.shape != row.shape:
            raise ServiceError(
                f"the language model was asked for {len(row)} numbers and answered "
                f"{answer[:80]!r}"
            )
        return numbers

    def _texts(self, tokens: Int[Tensor, " seq"]) -> list[str]:
        return self.tokenizer.batch_decode(tokens[:, None])
