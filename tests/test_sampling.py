"""Sampling and beam search, beside transformers' `generate` on the same weights."""

import math
import os

import pytest
import torch
from scipy.stats import chisquare
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from utils import sampling as s
from utils.checks.models import LIKE_GPT2, random_demo, to_hf
from utils.models import load, load_hf
from utils.transformer import Config, from_transformer_lens

DRAWS = 20_000


class Tokenizer:
    """As much of a tokenizer as the sampler needs: one token a character."""

    bos_token_id, eos_token_id = 1, 0

    def encode(self, text, add_special_tokens=False):
        return [2 + ord(c) % 40 for c in text]

    def decode(self, ids, skip_special_tokens=True):
        return " ".join(str(i) for i in ids if not skip_special_tokens or i > 1)


@pytest.fixture(scope="module")
def model():
    return random_demo()


@pytest.fixture(scope="module")
def hf(model):
    return to_hf(model)


@pytest.fixture
def sampler(model):
    return s.TransformerSampler(model, Tokenizer())


def random_logits(rows=3, d_vocab=30, seed=0):
    return 2 * torch.randn(rows, d_vocab, generator=torch.Generator().manual_seed(seed))


def frequencies_fit(draw, probs):
    """Chi-square test of `DRAWS` draws; False if an impossible token was drawn."""
    torch.manual_seed(1)
    counts = torch.bincount(draw(DRAWS), minlength=len(probs)).double()
    possible = probs > 0
    if counts[~possible].sum() > 0:
        return False
    expected = probs[possible].double() / probs[possible].double().sum() * DRAWS
    counts, (rare, common) = counts[possible], (expected < 5, expected >= 5)
    # Cells below five expected draws are joined into one, as the test asks.
    if rare.any():
        counts = torch.cat([counts[common], counts[rare].sum()[None]])
        expected = torch.cat([expected[common], expected[rare].sum()[None]])
    if len(counts) == 1:  # one possible token: nothing to test
        return True
    return chisquare(counts.numpy(), expected.numpy()).pvalue > 1e-3


# ---------------------------------------------------------------- choosing


@pytest.mark.parametrize("prompt_length", [1, 5])
def test_greedy_gives_the_tokens_of_transformers(model, hf, prompt_length):
    prompt = torch.randint(1, 50, (4, prompt_length), generator=torch.Generator().manual_seed(3))
    own = s.sample_tokens(model, prompt, 20, eos_token_id=0, temperature=0)
    theirs = hf.generate(prompt, do_sample=False, max_new_tokens=20, attention_mask=torch.ones_like(prompt))
    assert own.tolist() == theirs.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_basic_sampling_has_the_softmax_distribution(seed):
    logits = random_logits(1, seed=seed)
    assert frequencies_fit(lambda n: s.sample_basic(logits.expand(n, -1)), logits.softmax(-1)[0])


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_temperature_has_the_distribution_of_transformers(temperature):
    logits = random_logits(1)
    probs = TemperatureLogitsWarper(temperature)(None, logits).softmax(-1)[0]

    def draw(n):
        return s.sample_next_token(torch.zeros(n, 1).long(), logits.expand(n, -1), temperature=temperature)

    assert frequencies_fit(draw, probs)


@pytest.mark.parametrize("k", [1, 2, 7, 30])
def test_top_k_has_the_distribution_of_transformers(k):
    logits = random_logits(1)
    logits[0, 3] = logits[0].topk(7).values[-1]  # a tie at the border: both stay
    probs = TopKLogitsWarper(k)(None, logits).softmax(-1)[0]
    assert frequencies_fit(lambda n: s.sample_top_k(logits.expand(n, -1), k), probs)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("keep", [1, 4])
def test_top_p_has_the_distribution_of_transformers(top_p, keep):
    logits = random_logits(1, seed=4)
    # At top_p = 1 transformers leaves the warper out.
    warped = logits if top_p == 1 else TopPLogitsWarper(top_p, min_tokens_to_keep=keep)(None, logits)

    def draw(n):
        return s.sample_top_p(logits.expand(n, -1), top_p, keep)

    assert frequencies_fit(draw, warped.softmax(-1)[0])


def test_ties_at_the_border_of_the_nucleus_keep_as_many_as_transformers():
    """Among equal tokens either may stay: transformers keeps the higher ids, we the lower; their number is the same."""
    logits = torch.tensor([[0.4, 0.2, 0.2, 0.2]]).log()
    torch.manual_seed(0)
    own = set(s.sample_top_p(logits.expand(2000, -1), 0.5).tolist())
    theirs = TopPLogitsWarper(0.5)(None, logits)[0].isfinite().nonzero().flatten().tolist()
    assert own == {0, 1} and theirs == [0, 3]


def test_the_chi_square_test_can_fail():
    logits = random_logits(1)
    assert not frequencies_fit(lambda n: s.sample_basic(logits.expand(n, -1) * 1.1), logits.softmax(-1)[0])


def test_sampled_continuations_have_the_distribution_of_generate(model, hf):
    """Two tokens drawn with top-k by both libraries: the same distribution over pairs."""
    prompt = torch.tensor([[5, 9, 3]])
    torch.manual_seed(0)
    own = s.sample_tokens(model, prompt.expand(DRAWS, -1), 2, top_k=4, temperature=1.3)[:, -2:]
    logits = model(prompt)[:, -1] / 1.3
    first = TopKLogitsWarper(4)(None, logits).softmax(-1)[0]
    joint = {}
    for a in first.nonzero().flatten().tolist():
        longer = torch.cat([prompt, torch.tensor([[a]])], dim=1)
        second = TopKLogitsWarper(4)(None, hf(longer).logits[:, -1] / 1.3).softmax(-1)[0]
        joint |= {(a, b): (first[a] * second[b]).item() for b in second.nonzero().flatten().tolist()}
    keys = list(joint)
    ids = torch.tensor([keys.index(tuple(pair)) for pair in own.tolist()])
    assert frequencies_fit(lambda n: ids, torch.tensor([joint[key] for key in keys]))


def test_frequency_penalty_counts_each_row_apart_and_no_padding():
    ids = torch.tensor([[s.PAD, 2, 2, 4], [1, 1, 1, 0]])
    penalised = s.apply_frequency_penalty(ids, torch.zeros(2, 6), 0.5)
    assert penalised.tolist() == [[0, 0, -1, 0, -0.5, 0], [-0.5, -1.5, 0, 0, 0, 0]]


def test_entropy_and_its_limits():
    logits = random_logits(4)
    expected = torch.distributions.Categorical(logits=logits).entropy() / math.log(2)
    torch.testing.assert_close(s.entropy(logits), expected)
    assert s.entropy(logits / 1e-3).max() < 1e-3
    torch.testing.assert_close(s.entropy(logits / 1e6), torch.full((4,), math.log2(30)), atol=1e-4, rtol=0)
    assert s.entropy(torch.tensor([[0.0, -math.inf, 0.0]])).item() == pytest.approx(1)


def test_distinct_and_repetition():
    assert s.distinct_n([[1, 2, 1, 2], [1, 2]], 2) == pytest.approx(2 / 4)
    assert s.repetition_rate([[1, 1, 1, 1], [1, 2, 3, 4]], 2) == pytest.approx((2 / 3) / 2)


# ---------------------------------------------------------------- beam search


@pytest.mark.parametrize("ban", [None, 1, 2, 3])
@pytest.mark.parametrize("num_beams", [1, 2, 4, 8])
def test_beam_search_finds_what_transformers_finds(model, hf, num_beams, ban):
    for seed in range(4 if "WORKBOOK_FULL" in os.environ else 1):
        prompt = torch.randint(1, 50, (1, 4), generator=torch.Generator().manual_seed(seed))
        theirs = hf.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            num_beams=num_beams,
            num_return_sequences=num_beams,
            no_repeat_ngram_size=ban,
            max_new_tokens=15,
            do_sample=False,
            length_penalty=0.0,
            early_stopping=False,
            output_scores=True,
            return_dict_in_generate=True,
        )
        for use_cache in (False, True):
            own = s.beam_search(model, prompt[0], num_beams, 15, 0, ban, use_cache)
            for (_, tokens), row in zip(own, theirs.sequences.tolist(), strict=True):
                assert tokens + [0] * (len(row) - len(tokens)) == row, use_cache
            if num_beams > 1:
                scores = torch.tensor([score for score, _ in own])
                torch.testing.assert_close(scores, theirs.sequences_scores, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("num_beams, ban", [(1, None), (4, None), (8, 3)])
def test_the_trained_model_writes_what_transformers_writes(num_beams, ban):
    own, theirs = from_transformer_lens(load("lm", processed=False)).cpu(), load_hf("lm").cpu()
    prompt = torch.randint(1, own.cfg.d_vocab, (1, 8), generator=torch.Generator().manual_seed(5))
    found = s.beam_search(own, prompt[0], num_beams, 20, 0, ban)[0][1]
    how = dict(num_beams=num_beams, no_repeat_ngram_size=ban, length_penalty=0.0, do_sample=False, pad_token_id=0)
    row = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, **how)[0].tolist()
    assert found + [0] * (len(row) - len(found)) == row


def test_some_of_the_compared_beams_end_early(model):
    lengths = set()
    for seed in range(4):
        prompt = torch.randint(1, 50, (4,), generator=torch.Generator().manual_seed(seed))
        lengths |= {len(tokens) for _, tokens in s.beam_search(model, prompt, 8, 15, 0)}
    assert len(lengths) > 1, "the comparison with transformers would not cover texts that end"


def test_the_ban_is_per_beam(model):
    for _, tokens in s.beam_search(model, torch.tensor([5, 9, 3]), 6, 20, None, no_repeat_ngram_size=2):
        pairs = list(zip(tokens, tokens[1:], strict=False))
        assert len(set(pairs)) == len(pairs)


def test_beam_search_with_every_token_is_exhaustive():
    model = random_demo(Config(d_model=8, n_layers=1, n_heads=2, d_head=4, d_mlp=8, d_vocab=5, n_ctx=8), seed=2)
    found = s.beam_search(model, torch.tensor([1, 2]), 5, 2)
    texts = torch.tensor([[1, 2, a, b] for a in range(5) for b in range(5)])
    sums = model(texts).log_softmax(-1)[:, 1:3].gather(-1, texts[:, 2:, None]).sum((1, 2))
    assert found[0][1] == texts[sums.argmax()].tolist()
    assert found[0][0] == pytest.approx(sums.max().item(), abs=1e-4)


def test_a_ban_on_everything_ends_cleanly(model):
    small = random_demo(Config(d_model=8, n_layers=1, n_heads=2, d_head=4, d_mlp=8, d_vocab=4, n_ctx=30))
    for use_cache in (False, True):
        found = s.beam_search(small, torch.tensor([1]), 2, 20, None, 1, use_cache)
        assert all(len(set(tokens)) == len(tokens) == 4 for _, tokens in found) and len(found) == 2


# ---------------------------------------------------------------- with and without the cache


@pytest.mark.parametrize("kwargs", [{"temperature": 0}, {"top_k": 5}, {"top_p": 0.9, "frequency_penalty": 0.5}])
def test_cached_sampling_equals_uncached(sampler, kwargs):
    prompts = [[1, 5, 7], [1], [1, 9, 9, 9, 9]]
    texts = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        texts.append(sampler.generate(prompts, 20, use_cache=use_cache, **kwargs))
    assert texts[0] == texts[1]


def test_a_batch_of_different_lengths_gives_what_each_prompt_gives_alone(sampler):
    prompts = [[1, 5, 7], [1], [1, 9, 9, 9, 9]]
    together = sampler.generate(prompts, 20, temperature=0, frequency_penalty=0.3)
    alone = [sampler.generate([p], 20, temperature=0, frequency_penalty=0.3)[0] for p in prompts]
    assert together == alone


# ---------------------------------------------------------------- the sampler, and what ends a text


def test_a_text_ends_with_eos_or_at_the_limit(model):
    prompt = torch.randint(1, 50, (32, 3), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    rows = s.sample_tokens(model, prompt, 25, eos_token_id=0, temperature=1.5).tolist()
    ended = [row for row in rows if 0 in row]
    assert 0 < len(ended) < 32
    assert all(set(row[row.index(0) :]) == {0} for row in ended)


def test_the_sampler_stops_at_eos(sampler):
    torch.manual_seed(0)
    rows = sampler.generate([[1, 4, 4]] * 32, 25, temperature=1.5)
    assert any(row[-1] == 0 for row in rows) and any(0 not in row for row in rows)
    assert all(0 not in row[:-1] for row in rows)


def test_generation_ends_at_the_context(model, sampler):
    assert len(sampler.generate([[1, 2, 3]], 500, stop_at_eos=False)[0]) == LIKE_GPT2.n_ctx
    assert s.sample_tokens(model, torch.tensor([[1, 2]]), 500).shape[1] == LIKE_GPT2.n_ctx
    assert all(len(tokens) == LIKE_GPT2.n_ctx for _, tokens in s.beam_search(model, torch.tensor([1, 2]), 2, 500))


def test_sample_takes_one_prompt_or_several(sampler):
    one = sampler.sample("abc", 5, temperature=0)
    assert sampler.sample(["abc", "d"], 5, temperature=0)[0] == one
    assert sampler.beam_search("abc", 3, 5)[0][1].startswith(one.split()[0])


# ---------------------------------------------------------------- bad input

IDS, LOGITS = torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 6)
IMPOSSIBLE = torch.full((1, 6), -math.inf)


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda: s.apply_temperature(LOGITS, -1.0), "temperature"),
        (lambda: s.apply_temperature(LOGITS, math.nan), "temperature"),
        (lambda: s.sample_next_token(IDS, LOGITS, temperature=-0.5), "temperature"),
        (lambda: s.sample_next_token(IDS, LOGITS, temperature=math.nan), "temperature"),
        (lambda: s.sample_next_token(IDS, LOGITS, top_k=2, top_p=0.5), "top_k and top_p"),
        (lambda: s.sample_next_token(IDS, LOGITS, frequency_penalty=math.nan), "freq_penalty"),
        (lambda: s.sample_top_k(LOGITS, 0), "k is 0"),
        (lambda: s.sample_top_k(LOGITS, 7), "from 1 to 6"),
        (lambda: s.sample_top_k(LOGITS, 2.5), "k is 2.5"),
        (lambda: s.sample_top_p(LOGITS, 0.0), "top_p"),
        (lambda: s.sample_top_p(LOGITS, 1.1), r"\(0, 1\]"),
        (lambda: s.sample_top_p(LOGITS, math.nan), "top_p"),
        (lambda: s.sample_top_p(LOGITS, 0.5, 0), "min_tokens_to_keep"),
        (lambda: s.sample_top_p(LOGITS, 0.5, 7), "from 1 to 6"),
        (lambda: s.greedy_search(IMPOSSIBLE), "minus infinity"),
        (lambda: s.sample_basic(IMPOSSIBLE), "minus infinity"),
        (lambda: s.sample_top_k(IMPOSSIBLE, 2), "minus infinity"),
        (lambda: s.sample_top_p(IMPOSSIBLE, 0.5), "minus infinity"),
        (lambda: s.sample_basic(LOGITS * math.nan), "NaN"),
        (lambda: s.distinct_n([[1]], 2), "n=2"),
        (lambda: s.banned_tokens([1, 2], 0), "no_repeat_ngram_size"),
    ],
)
def test_bad_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda x: x.sample(""), "prompt is empty"),
        (lambda x: x.sample(["a", ""]), "prompt is empty"),
        (lambda x: x.generate([[1], []]), "prompt is empty"),
        (lambda x: x.generate([]), "list of prompts is empty"),
        (lambda x: x.sample("a" * 60), "n_ctx=40"),
        (lambda x: x.generate([[1]], -1), "max_tokens_generated"),
        (lambda x: x.beam_search("a" * 60, 2), "n_ctx=40"),
        (lambda x: x.beam_search("", 2), "prompt is empty"),
        (lambda x: x.beam_search("a", 0), "num_beams"),
        (lambda x: x.beam_search("a", 51), "from 1 to 50"),
        (lambda x: x.sample("a", temperature=-1), "temperature"),
        (lambda x: x.sample("a", top_k=51), "from 1 to 50"),
        (lambda x: x.sample("a", top_p=0), "top_p"),
    ],
)
def test_bad_calls_of_the_sampler_are_named(sampler, call, named):
    with pytest.raises(ValueError, match=named):
        call(sampler)
