"""Chapter 05: weights and paths show the circuit that was built by hand; scores agree with TransformerLens."""

import pytest
import torch
from built_models import INDUCTION, PREVIOUS, induction_circuit, passages
from transformer_lens import FactoredMatrix, HookedTransformer

from utils import composition as com
from utils import induction as ind
from utils.checks.models import repeated, small_attn


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


def test_the_weights_alone_show_the_built_circuit(built):
    copying = com.full_OV_circuit(built, [INDUCTION])
    assert com.top_1_acc(copying, 7) == 1 and com.top_5_acc(copying) == 1
    assert com.copying_score(copying) > 0.99
    pattern = com.pos_by_pos_pattern(built, PREVIOUS)
    assert pattern.diagonal(offset=-1).min() > 0.99
    assert com.top_1_acc(com.find_K_comp_full_circuit(built, PREVIOUS, INDUCTION)) == 1
    assert com.top_1_acc(com.find_K_comp_full_circuit(built, (0, 0), INDUCTION)) < 0.1


def test_composition_is_found_and_the_path_is_causal(built, passage):
    W_OV = FactoredMatrix(built.W_V[0], built.W_O[0])
    K = FactoredMatrix(built.W_K[1], built.W_Q[1].transpose(-2, -1))
    scores = com.get_batched_comp_scores(W_OV, K)
    assert ind.best_head(scores.nan_to_num()) == (PREVIOUS[1], INDUCTION[1])
    _, cache = built.run_with_cache(passage[0], remove_batch_dim=True)
    components = com.decompose_qk_input(cache)
    q, k = com.decompose_qk(components, INDUCTION, built)
    stds = com.attn_score_stds(com.decompose_attn_scores(q, k, built))
    assert divmod(int(stds.argmax()), stds.shape[1]) == (0, 2)  # the embedding with head 0.1
    _, cut = com.run_with_path_ablated(built, passage, PREVIOUS, INDUCTION, "k")
    _, other = com.run_with_path_ablated(built, passage, PREVIOUS, INDUCTION, "q")
    assert ind.induction_attn_detector(cut)[INDUCTION] < 0.1
    assert ind.induction_attn_detector(other)[INDUCTION] > 0.99


@pytest.mark.parametrize("kind", ["Q", "K", "V"])
def test_composition_scores_agree_with_transformer_lens(kind):
    model = small_attn()
    W_OV = FactoredMatrix(model.W_V[0], model.W_O[0])
    readers = {
        "Q": FactoredMatrix(model.W_Q[1], model.W_K[1].transpose(-2, -1)),
        "K": FactoredMatrix(model.W_K[1], model.W_Q[1].transpose(-2, -1)),
        "V": FactoredMatrix(model.W_V[1], model.W_O[1]),
    }
    oracle = model.all_composition_scores(kind)[0, :, 1]
    assert torch.allclose(com.get_batched_comp_scores(W_OV, readers[kind]), oracle, atol=1e-4)


# ---------------------------------------------------------------- no head, layer count or vocabulary is hard-wired


def test_every_method_runs_on_another_model_of_the_same_format():
    """Three layers of five heads, random weights: all identities hold, nothing is assumed."""
    model, tokens, n_heads = small_attn(3, 5), repeated(4, 9), 5
    logits = model(tokens)
    _, one_cache = model.run_with_cache(tokens[0], remove_batch_dim=True)
    for receiver in ((1, 4), (2, 3)):
        components = com.decompose_qk_input(one_cache, receiver[0])
        assert len(components) == 2 + receiver[0] * n_heads
        q, k = com.decompose_qk(components, receiver, model)
        total = com.decompose_attn_scores(q, k, model).sum((0, 1))
        cached = one_cache["attn_scores", receiver[0]][receiver[1]]
        assert torch.allclose(total[cached.isfinite()], cached[cached.isfinite()], rtol=1e-3, atol=1e-2)
        assert 0 <= com.top_1_acc(com.find_K_comp_full_circuit(model, (0, 4), receiver)) <= 1
        for channel in "qkv":
            ablated, patterns = com.run_with_path_ablated(model, tokens, (0, 2), receiver, channel)
            assert ablated.shape == logits.shape and patterns["pattern", 2].shape == (4, n_heads, 19, 19)
    assert com.pos_by_pos_pattern(model, (2, 4)).shape == (29, 29)
    assert -1 <= com.copying_score(com.full_OV_circuit(model, [(2, 1), (2, 4)])) <= 1


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("head", [(2, 0), (0, 3), (-1, 0), (0, -1)])
def test_a_head_out_of_range_is_named(head):
    model = small_attn()
    calls = [
        lambda: com.full_OV_circuit(model, [(1, 1), head]),
        lambda: com.pos_by_pos_pattern(model, head),
        lambda: com.decompose_qk(torch.zeros(5, 7, 10), head, model),
        lambda: com.find_K_comp_full_circuit(model, head, (1, 1)),
        lambda: com.run_with_path_ablated(model, repeated(2), (0, 0), head),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="there is no head"):
            call()


def test_what_comes_from_another_model_is_refused():
    model = small_attn()
    _, batch = model.run_with_cache(repeated(2))
    with pytest.raises(ValueError, match="batch"):
        com.decompose_qk_input(batch)
    with pytest.raises(ValueError, match="another model"):
        com.decompose_qk(torch.zeros(5, 7, 12), (1, 1), model)
    with pytest.raises(ValueError, match="another model"):
        com.decompose_attn_scores(torch.zeros(5, 7, 6), torch.zeros(5, 7, 6), model)
    with pytest.raises(ValueError, match="no path"):
        com.run_with_path_ablated(model, repeated(2), (1, 0), (1, 1))
    with pytest.raises(ValueError, match="choose"):
        com.run_with_path_ablated(model, repeated(2), (0, 0), (1, 1), "pattern")
    with pytest.raises(ValueError, match="square"):
        com.copying_score(FactoredMatrix(torch.zeros(5, 2), torch.zeros(2, 4)))
