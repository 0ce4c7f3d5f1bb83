"""From logits to text: choosing tokens, sampling, beam search. (`utils.kv_cache` holds
the cache of keys and values.)

Shapes: a row of `logits`, `(batch, d_vocab)`, belongs to one text of the batch; the
choosing functions return one token id a row. A model is a `DemoTransformer` of
`utils.transformer`; where no cache is used, anything that maps tokens to logits will
do. Texts that are shorter than the longest of their batch are padded with `PAD` on the
left.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from utils.kv_cache import KeyValueCache, forward_with_cache
from utils.transformer import DemoTransformer, get_log_probs

# What chapter 03 imports: all but its exercises.
__all__ = [
    "PAD",
    "apply_temperature",
    "greedy_search",
    "repetition_rate",
    "require",
    "require_logits",
    "require_prompts",
    "surprise",
]

PAD = -1  # no token's id: nothing is read from it, and it counts as no occurrence


# ---------------------------------------------------------------- what is allowed


def require(condition: bool, message: str) -> None:
    """Raise a ValueError with this message unless the condition holds (a NaN in a
    comparison never does).
    """
    if not condition:
        raise ValueError(message)


def require_logits(logits: Float[Tensor, "batch d_vocab"]) -> None:
    """Refuse logits that leave no token to choose: all minus infinity, or a NaN."""
    require(
        not logits.isnan().any(),
        "logits hold NaN: they must be numbers or minus infinity",
    )
    impossible = logits.isneginf().all(dim=-1)
    require(
        not impossible.any(),
        "logits are all minus infinity in some row: at least one token must be "
        "possible",
    )


def require_prompts(prompts: Sequence[Sequence[int]], n_ctx: int) -> None:
    """Refuse an empty prompt, and one that leaves no room for a new token in the
    context.
    """
    require(len(prompts) > 0, "prompt: the list of prompts is empty, give at least one")
    for prompt in prompts:
        require(len(prompt) > 0, "prompt is empty: it must hold at least one token")
        require(
            len(prompt) <= n_ctx,
            f"prompt has {len(prompt)} tokens: the model's context allows from 1 to "
            f"n_ctx={n_ctx}",
        )


# -------------------------------- choosing the next token


def greedy_search(logits: Float[Tensor, "batch d_vocab"]) -> Int[Tensor, "batch"]:
    """The most likely token of each row.

    Raises:
        ValueError: a row of logits is all minus infinity.
    """
    require_logits(logits)
    return logits.argmax(dim=-1)


def apply_temperature(
    logits: Float[Tensor, "batch d_vocab"], temperature: float
) -> Float[Tensor, "batch d_vocab"]:
    """Logits whose softmax is the distribution at this temperature: `softmax(z / T)`.

    Raises:
        ValueError: the temperature is not above 0 and finite.
    """
    require(
        0 < temperature < math.inf,
        f"temperature is {temperature}: it must be above 0 and finite",
    )
    return logits / temperature


def apply_frequency_penalty(
    input_ids: Int[Tensor, "batch pos"],
    logits: Float[Tensor, "batch d_vocab"],
    freq_penalty: float,
) -> Float[Tensor, "batch d_vocab"]:
    """Lower each token's logit by `freq_penalty` for every time that the row's text
    already holds it.

    `PAD` in `input_ids` counts as nothing. Source: the OpenAI API's
    `frequency_penalty`.

    Raises:
        ValueError: the penalty is not finite.
    """
    require(
        math.isfinite(freq_penalty),
        f"freq_penalty is {freq_penalty}: it must be a finite number",
    )
    # One 1 for each token that is there, added up in the column of its id.
    counts = torch.zeros_like(logits)
    counts.scatter_add_(
        dim=-1, index=input_ids.clamp(min=0), src=(input_ids != PAD).to(logits.dtype)
    )
    return logits - freq_penalty * counts


def sample_basic(logits: Float[Tensor, "batch d_vocab"]) -> Int[Tensor, "batch"]:
    """Draw one token a row from the softmax of its logits.

    Raises:
        ValueError: a row of logits is all minus infinity.
    """
    require_logits(logits)
    return torch.multinomial(logits.softmax(dim=-1), num_samples=1).squeeze(-1)


def sample_top_k(
    logits: Float[Tensor, "batch d_vocab"], k: int
) -> Int[Tensor, "batch"]:
    """Draw from the k most likely tokens only, in proportion to their probabilities
    (Fan et al. 2018).

    Tokens that tie with the k-th stay too, as in transformers.

    Raises:
        ValueError: k is not a whole number from 1 to d_vocab, or a row of logits is all
            minus infinity.
    """
    d_vocab = logits.shape[-1]
    require(
        isinstance(k, int) and 1 <= k <= d_vocab,
        f"k is {k}: it must be a whole number from 1 to {d_vocab}",
    )
    # All logits below the k-th largest of their row become impossible.
    kth_largest = logits.topk(k, dim=-1).values[:, -1:]
    return sample_basic(logits.masked_fill(logits < kth_largest, -math.inf))


def sample_top_p(
    logits: Float[Tensor, "batch d_vocab"], top_p: float, min_tokens_to_keep: int = 1
) -> Int[Tensor, "batch"]:
    """Draw from the nucleus: the fewest most likely tokens whose probabilities add up
    to at least `top_p`.

    At least `min_tokens_to_keep` tokens stay. Source: Holtzman et al. 2020.

    Raises:
        ValueError: `top_p` is not in (0, 1], `min_tokens_to_keep` not from 1 to
            d_vocab, or a row is impossible.
    """
    d_vocab = logits.shape[-1]
    require(0 < top_p <= 1, f"top_p is {top_p}: it must lie in (0, 1]")
    allowed = isinstance(min_tokens_to_keep, int) and 1 <= min_tokens_to_keep <= d_vocab
    require(
        allowed,
        f"min_tokens_to_keep is {min_tokens_to_keep}: it must be a whole number from 1 "
        f"to {d_vocab}",
    )
    require_logits(logits)
    # Most likely first; a token stays if those before it have not yet reached top_p.
    probs, ids = logits.softmax(dim=-1).sort(dim=-1, descending=True)
    mass_before = probs.cumsum(dim=-1) - probs
    outside = mass_before >= top_p
    outside[:, :min_tokens_to_keep] = False
    # Draw a place in the sorted row, then look up whose place it is.
    place = torch.multinomial(probs.masked_fill(outside, 0), num_samples=1)
    return ids.gather(dim=-1, index=place).squeeze(-1)


def sample_min_p(
    logits: Float[Tensor, "batch d_vocab"], min_p: float
) -> Int[Tensor, "batch"]:
    """Draw from the tokens that are at least `min_p` times as likely as the row's
    likeliest, in proportion to their probabilities (Nguyen et al. 2024).

    Raises:
        ValueError: `min_p` is not in [0, 1], or a row of logits is all minus infinity.
    """
    require(0 <= min_p <= 1, f"min_p is {min_p}: it must lie in [0, 1]")
    probs = logits.softmax(dim=-1)
    too_low = probs < min_p * probs.max(dim=-1, keepdim=True).values
    return sample_basic(logits.masked_fill(too_low, -math.inf))


def sample_next_token(
    input_ids: Int[Tensor, "batch pos"],
    logits: Float[Tensor, "batch d_vocab"],
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    frequency_penalty: float = 0.0,
) -> Int[Tensor, "batch"]:
    """Choose the next token of each row: penalty, then temperature, then top-k or top-p
    or neither.

    Temperature 0 means greedy.

    Raises:
        ValueError: an argument is out of its range, or both `top_k` and `top_p` are
            given.
    """
    require(
        0 <= temperature < math.inf,
        f"temperature is {temperature}: it must be 0 (greedy) or above, and finite",
    )
    require(
        top_k is None or top_p is None,
        "top_k and top_p are both given: choose one of them",
    )
    if frequency_penalty != 0:
        logits = apply_frequency_penalty(input_ids, logits, frequency_penalty)
    if temperature == 0:
        return greedy_search(logits)
    logits = apply_temperature(logits, temperature)
    if top_k is not None:
        return sample_top_k(logits, top_k)
    if top_p is not None:
        return sample_top_p(logits, top_p)
    return sample_basic(logits)


@torch.inference_mode()
def sample_tokens(
    model: nn.Module,
    tokens: Int[Tensor, "batch pos"],
    max_tokens_generated: int,
    eos_token_id: int | None = None,
    **kwargs,
) -> Int[Tensor, "batch longer"]:
    """Append tokens one at a time, each time running the model over the whole text.

    Stops after `max_tokens_generated` tokens, at the model's context, or once every row
    has ended. A row that has produced the end-of-text token is filled up with it.

    Args:
        kwargs: passed on to `sample_next_token`.
    """
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for _ in range(max_tokens_generated):
        if ended.all() or tokens.shape[1] == model.cfg.n_ctx:
            break
        # Only the last position predicts what is not there yet.
        logits = model(tokens)[:, -1]
        new = sample_next_token(tokens, logits, **kwargs)
        if eos_token_id is not None:
            new = new.masked_fill(ended, eos_token_id)
            ended = ended | (new == eos_token_id)
        tokens = torch.cat([tokens, new[:, None]], dim=1)
    return tokens


# ---------------------------------------------------------------- measuring texts


def entropy(logits: Float[Tensor, "batch d_vocab"]) -> Float[Tensor, "batch"]:
    """Entropy of each row's softmax, in bits: 0 for a certain token, log2(d_vocab) for
    equal logits.
    """
    # log_softmax is -inf for impossible tokens; 0 * -inf would be NaN, so these count
    # 0.
    log_probs = logits.log_softmax(dim=-1)
    terms = log_probs.exp() * log_probs
    return -terms.nan_to_num(nan=0.0).sum(dim=-1) / math.log(2)


@torch.no_grad()
def surprise(
    model: nn.Module, tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch pos-1"]:
    """How unexpected each token after the first was to the model, in bits: -log2 of its
    probability.
    """
    return -get_log_probs(model(tokens), tokens) / math.log(2)


def distinct_n(texts: Sequence[Sequence[int]], n: int) -> float:
    """The share of different n-grams among all n-grams of the texts (Li et al. 2016); 1
    where nothing repeats.

    Raises:
        ValueError: n is below 1, or no text has n tokens.
    """
    require(n >= 1, f"n is {n}: it must be at least 1")
    # No n-gram reaches from one text into the next.
    ngrams = [
        tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)
    ]
    require(len(ngrams) > 0, f"texts: none of them has n={n} tokens")
    return len(set(ngrams)) / len(ngrams)


def repetition_rate(texts: Sequence[Sequence[int]], n: int = 4) -> float:
    """The share of a text's n-grams that stood in the same text before, averaged over
    the texts.
    """
    return 1 - sum(distinct_n([text], n) for text in texts) / len(texts)


# ---------------------------------------------------------------- beam search


def banned_tokens(tokens: Sequence[int], n: int) -> set[int]:
    """The tokens that would complete an n-gram that the text already holds.

    Raises:
        ValueError: n is below 1.
    """
    require(n >= 1, f"no_repeat_ngram_size is {n}: it must be at least 1")
    # The next token would stand behind these n - 1 (none of them for n = 1).
    last = tuple(tokens[len(tokens) - n + 1 :])
    starts = range(len(tokens) - n + 1)
    return {tokens[i + n - 1] for i in starts if tuple(tokens[i : i + n - 1]) == last}


@dataclass
class Beams:
    """Several continuations of one prompt, each with the sum of the log-probabilities
    of its new tokens.

    `parents[i]` is the row of the cache that belongs to beam i (used with a cache
    only).
    """

    model: nn.Module
    tokens: Int[Tensor, "beam pos"]
    logprob_sums: Float[Tensor, "beam"]
    parents: Int[Tensor, "beam"] | None = None
    cache: "KeyValueCache | None" = None

    def next_log_probs(self) -> Float[Tensor, "beam d_vocab"]:
        """Log-probabilities of each beam's next token."""
        if self.cache is None:
            logits = self.model(self.tokens)
        else:
            logits = forward_with_cache(
                self.model, self.tokens[:, self.cache.length :], self.cache
            )
        return logits[:, -1].log_softmax(dim=-1)

    def select(self, rows: Int[Tensor, "rows"]) -> "Beams":
        """These beams, in this order, with the part of the cache that is theirs."""
        if self.cache is not None:
            self.cache.select(self.parents[rows])
        return Beams(
            self.model, self.tokens[rows], self.logprob_sums[rows], None, self.cache
        )

    def ranked(self) -> list[tuple[float, list[int]]]:
        """Pairs (sum of log-probabilities, tokens), best first."""
        return sorted(
            zip(self.logprob_sums.tolist(), self.tokens.tolist(), strict=True),
            reverse=True,
        )

    def generate(self, k: int, no_repeat_ngram_size: int | None = None) -> "Beams":
        """The k best continuations of every beam by one token: `beam * k` candidates.

        With `no_repeat_ngram_size` a token that would repeat an n-gram of its own beam
        (prompt included) gets minus infinity. `parents` says which beam a candidate
        comes from.
        """
        log_probs = self.next_log_probs()
        # The ban looks at each beam's own text.
        if no_repeat_ngram_size is not None:
            for row, tokens in zip(log_probs, self.tokens.tolist(), strict=True):
                row[list(banned_tokens(tokens, no_repeat_ngram_size))] = -math.inf
        # The k best of each beam, flattened: the sum grows by the new token's
        # log-probability.
        new_log_probs, new = log_probs.topk(min(k, log_probs.shape[-1]), dim=-1)
        parents = torch.arange(len(self.tokens), device=new.device).repeat_interleave(
            new.shape[1]
        )
        tokens = torch.cat([self.tokens[parents], new.reshape(-1, 1)], dim=1)
        logprob_sums = self.logprob_sums[parents] + new_log_probs.flatten()
        return Beams(self.model, tokens, logprob_sums, parents, self.cache)

    def filter(
        self, num_beams: int, eos_token_id: int | None = None
    ) -> tuple["Beams", list[tuple[float, list[int]]]]:
        """The `num_beams` best candidates that go on, best first, and those among the
        best that have ended.

        A candidate has ended if its last token is `eos_token_id`; it counts only if it
        is itself one of the `num_beams` best candidates. Candidates of probability 0
        are dropped.

        Returns:
            The beams to go on with, and a list of (sum of log-probabilities, tokens).
        """
        order = self.logprob_sums.argsort(descending=True, stable=True)
        order = order[~self.logprob_sums[order].isneginf()]
        ends = self.tokens[order, -1] == (PAD if eos_token_id is None else eos_token_id)
        # Ended ones among the best are set aside; the places they leave are filled from
        # further down.
        ended = order[:num_beams][ends[:num_beams]]
        finished = [
            (self.logprob_sums[row].item(), self.tokens[row].tolist()) for row in ended
        ]
        return self.select(order[~ends][:num_beams]), finished


@torch.inference_mode()
def beam_search(
    model: nn.Module,
    tokens: Int[Tensor, "pos"],
    num_beams: int,
    max_tokens_generated: int,
    eos_token_id: int | None = None,
    no_repeat_ngram_size: int | None = None,
    use_cache: bool = True,
) -> list[tuple[float, list[int]]]:
    """Search for the continuations with the largest sum of log-probabilities, keeping
    `num_beams` at a time.

    Ends after `max_tokens_generated` tokens, at the model's context, or once
    `num_beams` texts have ended and no running beam is better than the worst of them
    (more tokens only lower a sum).

    Returns:
        Up to `num_beams` pairs (sum of log-probabilities in nats, tokens with the
        prompt), best first.

    Raises:
        ValueError: `num_beams` is not from 1 to d_vocab, or the prompt is empty or too
            long.
    """
    d_vocab = model.cfg.d_vocab
    require(
        1 <= num_beams <= d_vocab,
        f"num_beams is {num_beams}: it must be a whole number from 1 to {d_vocab}",
    )
    require_prompts([tokens.tolist()], model.cfg.n_ctx)
    n_max = min(len(tokens) + max_tokens_generated, model.cfg.n_ctx)
    cache = (
        KeyValueCache(model.cfg, 1, n_max, tokens.new_zeros(1)) if use_cache else None
    )
    beams = Beams(
        model, tokens[None], torch.zeros(1, device=tokens.device), None, cache
    )
    finished: list[tuple[float, list[int]]] = []
    for _ in range(n_max - len(tokens)):
        # One candidate of each beam may end the text, so one more than num_beams is
        # enough.
        candidates = beams.generate(num_beams + 1, no_repeat_ngram_size)
        going_on, newly_finished = candidates.filter(num_beams, eos_token_id)
        finished = sorted(finished + newly_finished, reverse=True)[:num_beams]
        if len(going_on.tokens) == 0:  # the ban has left nothing possible
            return finished or beams.ranked()
        beams = going_on
        if len(finished) == num_beams and finished[-1][0] >= beams.logprob_sums[0]:
            return finished
    # What still runs at the end counts as well.
    return sorted(finished + beams.ranked(), reverse=True)[:num_beams]


def trap_for_beams(
    num_beams: int,
) -> tuple[Float[Tensor, "first"], Float[Tensor, "first second"]]:
    """Texts of two tokens, of which beam search misses the likeliest by far.

    Returns:
        first: the probability of each first token.
        second: row i, the probabilities of the second token after the first token i.
            The likeliest text is at least twice as likely as the likeliest that
            `num_beams` beams find, whatever they keep where tokens tie.

    Raises:
        ValueError: there is no beam.
    """
    require(num_beams >= 1, f"num_beams is {num_beams}: it must be at least 1")
    # As many tempting first tokens as beams, and one that is a little less likely...
    first = torch.tensor([1.0] * num_beams + [0.9])
    # ... but has one certain continuation, where theirs are spread over ten.
    second = torch.full((num_beams + 1, 10), 0.1)
    second[-1] = torch.eye(10)[0]
    return first / first.sum(), second


# ---------------------------------------------------------------- texts in, texts out


class TransformerSampler:
    """Continue texts with a model and its tokenizer.

    Args:
        model: a `DemoTransformer`.
        tokenizer: a Hugging Face tokenizer; its `bos_token_id` opens every prompt, its
            `eos_token_id` ends a text.
    """

    def __init__(self, model: DemoTransformer, tokenizer):
        self.model, self.tokenizer = model, tokenizer

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt, behind the tokenizer's BOS token where it has one."""
        require(len(prompt) > 0, "prompt is empty: it must hold at least one character")
        bos = self.tokenizer.bos_token_id
        ids = self.tokenizer.encode(prompt, add_special_tokens=False)
        return ids if bos is None else [bos, *ids]

    @torch.inference_mode()
    def generate(
        self,
        prompts: list[list[int]],
        max_tokens_generated: int = 100,
        use_cache: bool = True,
        stop_at_eos: bool = True,
        progress: bool = False,
        **kwargs,
    ) -> list[list[int]]:
        """The prompts' token ids, each followed by its new ones (an end-of-text token
        is the last where it came).

        Stops after `max_tokens_generated` tokens, when every text has ended, or when
        the longest prompt's text has reached the model's context.

        Args:
            kwargs: passed on to `sample_next_token`.

        Raises:
            ValueError: a prompt is empty or longer than the context, or an argument is
                out of its range.
        """
        cfg, device = self.model.cfg, self.model.embed.W_E.device
        require_prompts(prompts, cfg.n_ctx)
        require(
            max_tokens_generated >= 0,
            f"max_tokens_generated is {max_tokens_generated}: it must be 0 or above",
        )
        # Left padding brings all prompts' last tokens into one column.
        longest = max(len(prompt) for prompt in prompts)
        padding = torch.tensor(
            [longest - len(prompt) for prompt in prompts], device=device
        )
        tokens = torch.tensor(
            [[PAD] * (longest - len(prompt)) + list(prompt) for prompt in prompts],
            device=device,
        )
        n_max = min(longest + max_tokens_generated, cfg.n_ctx)
        eos = self.tokenizer.eos_token_id if stop_at_eos else None
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        cache = KeyValueCache(cfg, len(prompts), n_max, padding)
        for _ in tqdm(range(n_max - longest), disable=not progress, unit="token"):
            # With the cache only what it has not seen goes through the model, without
            # it everything.
            if not use_cache:
                cache = KeyValueCache(cfg, len(prompts), n_max, padding)
            logits = forward_with_cache(self.model, tokens[:, cache.length :], cache)[
                :, -1
            ]
            new = sample_next_token(tokens, logits, **kwargs)
            # A text that has ended gets nothing more.
            new = new.masked_fill(ended, PAD)
            tokens = torch.cat([tokens, new[:, None]], dim=1)
            if eos is not None:
                ended = ended | (new == eos)
                if ended.all():
                    break
        return [[token for token in row if token != PAD] for row in tokens.tolist()]

    def sample(
        self, prompt: str | list[str], max_tokens_generated: int = 100, **kwargs
    ) -> str | list[str]:
        """Continue a prompt, or each of a batch of prompts; the arguments are those of
        `generate`.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        rows = self.generate(
            [self.encode(p) for p in prompts], max_tokens_generated, **kwargs
        )
        texts = [self.tokenizer.decode(row, skip_special_tokens=True) for row in rows]
        return texts[0] if isinstance(prompt, str) else texts

    def beam_search(
        self,
        prompt: str,
        num_beams: int,
        max_tokens_generated: int = 50,
        no_repeat_ngram_size: int | None = None,
        use_cache: bool = True,
    ) -> list[tuple[float, str]]:
        """Pairs (sum of log-probabilities, text), best first, as the function
        `beam_search` finds them.
        """
        tokens = torch.tensor(self.encode(prompt), device=self.model.embed.W_E.device)
        eos = self.tokenizer.eos_token_id
        found = beam_search(
            self.model,
            tokens,
            num_beams,
            max_tokens_generated,
            eos,
            no_repeat_ngram_size,
            use_cache,
        )
        return [
            (score, self.tokenizer.decode(ids, skip_special_tokens=True))
            for score, ids in found
        ]
