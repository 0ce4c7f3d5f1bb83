"""The cache of keys and values: the same logits with it and without, and what it saves."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from utils import kv_cache as kv
from utils.checks.models import LIKE_GPT2, random_demo
from utils.sampling import PAD


@pytest.fixture(scope="module")
def model():
    return random_demo()


def test_cached_logits_equal_uncached_at_every_step(model):
    tokens = torch.randint(0, 50, (3, 40), generator=torch.Generator().manual_seed(0))
    want = model(tokens)
    cache = kv.KeyValueCache(LIKE_GPT2, 3)
    got = [kv.forward_with_cache(model, tokens[:, :7], cache)]
    got += [kv.forward_with_cache(model, tokens[:, i : i + 1], cache) for i in range(7, 40)]
    torch.testing.assert_close(torch.cat(got, dim=1), want, rtol=1e-5, atol=1e-5)


def test_cached_logits_with_prompts_of_different_lengths(model):
    lengths, longest = [3, 9, 1, 6], 9
    draw = torch.Generator().manual_seed(0)
    texts = [torch.randint(0, 50, (n + 10,), generator=draw) for n in lengths]
    padding = torch.tensor([longest - n for n in lengths])
    padded = torch.stack([torch.cat([torch.full((longest - len(t) + 10,), PAD), t]) for t in texts])
    cache = kv.KeyValueCache(LIKE_GPT2, 4, padding=padding)
    steps = [kv.forward_with_cache(model, padded[:, :longest], cache)]
    steps += [kv.forward_with_cache(model, padded[:, i : i + 1], cache) for i in range(longest, longest + 10)]
    got = torch.cat(steps, dim=1)
    for row, (text, pad) in enumerate(zip(texts, padding.tolist(), strict=True)):
        torch.testing.assert_close(got[row, pad:], model(text[None])[0], rtol=1e-5, atol=1e-5)


def test_select_keeps_the_rows_asked_for(model):
    tokens = torch.randint(0, 50, (2, 6), generator=torch.Generator().manual_seed(0))
    cache = kv.KeyValueCache(LIKE_GPT2, 2)
    kv.forward_with_cache(model, tokens[:, :5], cache)
    rows = torch.tensor([1, 0, 1])
    cache.select(rows)
    torch.testing.assert_close(kv.forward_with_cache(model, tokens[rows, 5:], cache), model(tokens)[rows, 5:])


@pytest.mark.parametrize("cached", [False, True])
def test_the_cost_model_counts_what_torch_counts(model, cached):
    cache, tokens = kv.KeyValueCache(LIKE_GPT2, 1), torch.ones(1, 12, dtype=torch.long)
    if cached:
        kv.forward_with_cache(model, tokens[:, :11], cache)
    with FlopCounterMode(display=False) as counter:
        kv.forward_with_cache(model, tokens[:, cache.length :], cache)
    assert counter.get_total_flops() == sum(kv.flops_per_new_token(LIKE_GPT2, 11, cached).values())


def test_a_full_cache_says_so(model):
    cache = kv.KeyValueCache(LIKE_GPT2, 1, n_max=3)
    with pytest.raises(ValueError, match="n_max=3"):
        kv.forward_with_cache(model, torch.ones(1, 4, dtype=torch.long), cache)
