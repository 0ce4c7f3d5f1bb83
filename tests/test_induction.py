"""Chapter 05: the methods find a circuit that was built by hand and fit any model of the format."""

from functools import partial

import pytest
import torch
from built_models import INDUCTION, PREVIOUS, induction_circuit, passages
from transformer_lens import HookedTransformer, HookedTransformerConfig

from utils import induction as ind
from utils.checks.models import new_model, random_tokens, repeated, small_attn

MEAN = partial(ind.head_ablation_hook, kind="mean")


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def built() -> HookedTransformer:
    return induction_circuit()


@pytest.fixture(scope="module")
def passage() -> torch.Tensor:
    return passages()


def test_the_built_circuit_is_found_by_its_attention(built, passage):
    _, cache = built.run_with_cache(passage)
    previous, induction = ind.attention_detectors(cache)["previous"], ind.induction_attn_detector(cache)
    assert ind.best_head(previous) == PREVIOUS and previous[PREVIOUS] > 0.99
    assert ind.heads_above(induction, 0.4) == [INDUCTION] and induction[INDUCTION] > 0.99
    scores = torch.zeros(2, 2)
    hook = lambda pattern, hook: ind.induction_score_hook(pattern, hook, scores)  # noqa: E731
    built.run_with_hooks(passage, fwd_hooks=[(lambda name: name.endswith("pattern"), hook)])
    assert torch.allclose(scores, induction, atol=1e-6)


def test_heads_that_do_nothing_attend_evenly(built, passage):
    _, cache = built.run_with_cache(passage)
    scores = ind.attention_detectors(cache)
    for kind in ("current", "first"):
        expected = torch.tensor([1 / (query + 1) for query in range(1, 23)]).mean()
        assert torch.isclose(scores[kind][0, 0], expected, atol=1e-5)


def test_attribution_sees_the_induction_head_only(built, passage):
    logits, cache = built.run_with_cache(passage[0], remove_batch_dim=True)
    parts = ind.logit_attribution(cache["embed"], cache["result", 0], cache["result", 1], built.W_U, passage[0])
    right = logits[0, :-1].gather(-1, passage[0][1:, None])[:, 0]
    assert torch.allclose(parts.sum(-1), right, atol=1e-4)
    # Components: embedding, 0.0, 0.1, 1.0, 1.1.
    assert (parts[-10:, 3] > 11.9).all() and parts[-10:, 2].abs().max() < 1e-5


def test_ablation_needs_both_heads(built, passage):
    for hook in (partial(ind.head_ablation_hook, kind=kind) for kind in ("zero", "mean", "resample")):
        scores = ind.get_ablation_scores(built, passage, hook)
        assert scores[PREVIOUS] > 2 and scores[INDUCTION] > 2
        assert scores[0, 0].abs() < 1e-5 and scores[1, 1].abs() < 1e-5
        assert torch.allclose(ind.get_ablation_scores_batched(built, passage, hook), scores, atol=1e-5)


def test_the_fast_sweep_also_fits_models_with_mlps_and_layernorm():
    cfg = HookedTransformerConfig(
        n_layers=3, n_heads=3, d_head=4, d_model=10, d_vocab=19, n_ctx=29, d_mlp=21, act_fn="gelu", device="cpu", seed=1
    )
    model, tokens = new_model(cfg), repeated(4)
    for hook in (ind.head_ablation_hook, MEAN):
        loop = ind.get_ablation_scores(model, tokens, hook)
        for heads_per_pass in (1, 2, 3):
            batched = ind.get_ablation_scores_batched(model, tokens, hook, heads_per_pass)
            assert torch.allclose(batched, loop, atol=1e-5)
    assert loop.abs().max() > 1e-4


def test_a_random_generator_does_not_depend_on_the_device_and_fills_the_context():
    torch.manual_seed(5)
    first = ind.generate_repeated_tokens(small_attn(), 14, 3)
    torch.manual_seed(5)
    assert torch.equal(first, ind.generate_repeated_tokens(small_attn(), 14, 3)) and first.shape == (3, 29)


# ---------------------------------------------------------------- no head, layer count or vocabulary is hard-wired


def test_every_method_runs_on_another_model_of_the_same_format():
    """Three layers of five heads and another vocabulary, random weights: all identities hold, nothing is assumed.

    What the chapter *claims* about induction can't hold here, and does not: no head scores as one.
    """
    model = small_attn(3, 5)
    n_layers, n_heads = 3, 5
    torch.manual_seed(0)
    tokens, logits, cache = ind.run_and_cache_model_repeated_tokens(model, 9, 4)
    assert logits.shape == (4, 19, 19) and ind.get_log_probs(logits, tokens).shape == (4, 18)
    for found in (*ind.attention_detectors(cache).values(), ind.induction_attn_detector(cache)):
        assert found.shape == (n_layers, n_heads)
    assert ind.heads_above(ind.induction_attn_detector(cache), 0.6) == []
    scores = ind.get_ablation_scores(model, tokens, MEAN)
    assert torch.allclose(ind.get_ablation_scores_batched(model, tokens, MEAN), scores, atol=1e-5)

    one = tokens[0]
    one_logits, one_cache = model.run_with_cache(one, remove_batch_dim=True)
    later = torch.cat([one_cache["result", layer] for layer in range(1, n_layers)], dim=1)
    parts = ind.logit_attribution(one_cache["embed"], one_cache["result", 0], later, model.W_U, one)
    right = one_logits[0, :-1].gather(-1, one[1:, None])[:, 0]
    assert parts.shape == (18, 1 + n_layers * n_heads) and torch.allclose(parts.sum(-1), right, atol=1e-3)
    assert ind.attention_to_targets(model, one, ind.induction_targets(one)).shape[1:] == (n_layers, n_heads)


# ---------------------------------------------------------------- bad input


def test_tokens_that_the_model_cannot_read_are_refused():
    model = small_attn()
    for tokens, message in (
        (random_tokens(2, 31), "do not fit the context"),
        (random_tokens(2, 9) + 11, "another model"),
        (random_tokens(2, 9).float(), "integers"),
        (random_tokens(1, 9)[0], "shape"),
        (torch.empty(2, 0, dtype=torch.long, device="meta"), "use tokens.to"),
    ):
        with pytest.raises(ValueError, match=message):
            ind.require_tokens(model, tokens)
    with pytest.raises(ValueError, match="do not fit"):
        ind.generate_repeated_tokens(model, 15)
    with pytest.raises(ValueError, match="twice the same"):
        ind.get_ablation_scores(model, random_tokens(2, 12))


def test_what_comes_from_another_model_is_refused():
    model, other = small_attn(), small_attn(2, 5)
    _, even = model.run_with_cache(random_tokens(2, 12))
    with pytest.raises(ValueError, match="twice the same"):
        ind.induction_attn_detector(even)
    with pytest.raises(ValueError, match="one sequence"):
        ind.logit_attribution(
            torch.zeros(7, 10), torch.zeros(6, 3, 10), torch.zeros(7, 3, 10), model.W_U, torch.zeros(7)
        )
    with pytest.raises(ValueError, match="one model"):
        ind.logit_attribution(
            torch.zeros(7, 9), torch.zeros(7, 3, 9), torch.zeros(7, 3, 9), other.W_U, torch.zeros(7, dtype=torch.long)
        )
    with pytest.raises(ValueError, match="one sequence"):
        MEAN(torch.zeros(1, 5, 3, 4), None, 1)
    with pytest.raises(ValueError, match="choose 'zero'"):
        ind.head_ablation_hook(torch.zeros(2, 5, 3, 4), None, 1, "median")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_tokens_on_the_cpu_with_a_model_on_the_gpu_are_refused():
    model = HookedTransformer(small_attn().cfg).to("cuda")
    with pytest.raises(ValueError, match="use tokens.to"):
        ind.get_ablation_scores(model, repeated(2).cpu())
