"""Chapter 10: nnsight's numbers against transformers' own hooks, the fast effects against the slow ones, bad input."""

import importlib.abc
import os
import sys

import nnsight
import pytest
import torch
from jaxtyping import Float
from nnsight.intervention.backends.local import LocalSimulationBackend as Backend
from nnsight.schema.request import RequestModel
from torch import Tensor

from utils import function_vectors as fv
from utils.checks import function_vectors as check_fv
from utils.checks.compare import difference
from utils.checks.function_vectors import HEADS, LAYERS, PAIRS, few_shot, small_model, vector, zero_shot
from utils.models import load_nnsight
from utils.world import TASKS


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def ids_of(dataset):
    return torch.tensor(small_model().tokenizer(dataset.prompts, add_special_tokens=False).input_ids)


# ---------------------------------------------------------------- prompts


def test_a_sequence_asks_for_its_last_pair():
    sequence = fv.ICLSequence(PAIRS[:2])
    assert sequence.prompt() == "<|endoftext|>- hot -> cold\n- big ->" and sequence.completion() == " small"
    assert fv.ICLSequence(PAIRS[:1], "qa").prompt() == "<|endoftext|>Q: hot\nA:"
    with pytest.raises(ValueError, match="at least one pair"):
        fv.ICLSequence([])
    with pytest.raises(ValueError, match="no layout"):
        fv.ICLSequence(PAIRS, "list")


def test_data_sets_are_seeded_and_draw_no_pair_twice():
    data = fv.ICLDataset(PAIRS, 30, 4, seed=3)
    assert data.prompts == fv.ICLDataset(PAIRS, 30, 4, seed=3).prompts != fv.ICLDataset(PAIRS, 30, 4, seed=4).prompts
    assert all(len(set(seq.word_pairs)) == 5 for seq in data.seqs) and len(data) == 30
    turned = fv.ICLDataset(PAIRS, 30, 2, bidirectional=True)
    assert {seq.word_pairs[-1] in PAIRS for seq in turned.seqs} == {True, False}
    queries = [("x", "y")]
    assert set(fv.ICLDataset(PAIRS, 5, 3, queries=queries).completions) == {" y"}


def test_shuffled_labels_are_all_wrong_and_labels_may_be_given():
    data = fv.ICLDataset(PAIRS, 30, 4, seed=3)
    right = dict(PAIRS)
    for spoilt in (data.create_corrupted_dataset(), data.create_corrupted_dataset(labels=[*right.values(), "Q"])):
        for before, after in zip(data.seqs, spoilt.seqs, strict=True):
            assert before.word_pairs[-1] == after.word_pairs[-1]
            assert [x for x, _ in before.word_pairs] == [x for x, _ in after.word_pairs]
            assert all(right[x] != y for x, y in after.word_pairs[:-1])
    corrupted = fv.ICLDataset(PAIRS, 5, 4, corrupted=True)
    assert all(right[x] != y for seq in corrupted.seqs for x, y in seq.word_pairs[:-1])


def test_bad_data_is_refused():
    with pytest.raises(ValueError, match="too few"):
        fv.ICLDataset(PAIRS, 2, 8)
    with pytest.raises(ValueError, match="raise n_prepended"):
        fv.ICLDataset(PAIRS, 2, 1, corrupted=True)
    with pytest.raises(ValueError, match="leave such words out"):
        fv.completion_ids(small_model().tokenizer, [" cold", " coldness"])
    pairs = fv.one_token_pairs(small_model().tokenizer, {"hot": "cold", "big": "gigantic", "bigger": "small"})
    assert pairs == [("hot", "cold")]


# ---------------------------------------------------------------- against transformers' hooks


def test_h_equals_a_plain_hook():
    hf, dataset, kept = small_model()._module, few_shot(), []
    handle = hf.transformer.h[1].register_forward_hook(lambda module, args, output: kept.append(output))
    logits = hf(ids_of(dataset)).logits
    handle.remove()
    state = kept[0] if torch.is_tensor(kept[0]) else kept[0][0]
    completions, h = fv.calculate_h(small_model(), dataset, 1)
    assert torch.allclose(h, state[:, -1].mean(dim=0), atol=1e-5)
    assert completions == small_model().tokenizer.batch_decode(logits[:, -1].argmax(-1)[:, None])


def test_prompts_of_unequal_length_give_the_numbers_of_single_runs():
    mixed = zero_shot(2)
    mixed.seqs = [few_shot(1).seqs[0], zero_shot(1).seqs[0]]
    _, h = fv.calculate_h(small_model(), mixed, 1)
    singles = []
    for seq in mixed.seqs:
        one = zero_shot(1)
        one.seqs = [seq]
        singles.append(fv.calculate_h(small_model(), one, 1)[1])
    assert torch.allclose(h, torch.stack(singles).mean(dim=0), atol=1e-4)
    with pytest.raises(ValueError, match="one_token_pairs"):
        mixed.create_corrupted_dataset = lambda: mixed
        fv.causal_effects_fast(small_model(), mixed)


def test_fast_effects_equal_one_trace_a_head():
    dataset = few_shot(5)
    slow = fv.calculate_fn_vectors_and_intervene(small_model(), dataset)
    assert slow.shape == (LAYERS, HEADS) and slow.abs().max() > 1e-4
    assert torch.allclose(slow, fv.causal_effects_fast(small_model(), dataset), rtol=1e-3, atol=1e-8)
    other = dataset.create_corrupted_dataset(labels=[y for _, y in PAIRS])
    slow = fv.calculate_fn_vectors_and_intervene(small_model(), dataset, [2, 0], other)
    assert torch.allclose(slow, fv.causal_effects_fast(small_model(), dataset, other)[[2, 0]], rtol=1e-3, atol=1e-8)


def test_the_vector_of_two_lists_of_heads_adds_up():
    whole, a, b = (
        fv.calculate_fn_vector(small_model(), few_shot(), heads) for heads in ([(0, 1), (2, 3)], [(0, 1)], [(2, 3)])
    )
    assert torch.allclose(whole, a + b, atol=1e-5)
    with pytest.raises(ValueError, match="there is no head"):
        fv.calculate_fn_vector(small_model(), few_shot(), [(0, HEADS)])
    with pytest.raises(ValueError, match="at least one head"):
        fv.calculate_fn_vector(small_model(), few_shot(), [])


# ---------------------------------------------------------------- steering


def test_a_vector_of_zeros_writes_what_the_model_writes():
    zeros = torch.zeros_like(vector())
    plain, steered = fv.intervene_with_fn_vector(small_model(), "hot", 1, zeros, n_tokens=3)
    assert plain == steered == fv.steer(small_model(), fv.START + "- hot ->", 1, vector(), 3, strength=0.0)
    with pytest.raises(ValueError, match="needs {x}"):
        fv.intervene_with_fn_vector(small_model(), "hot", 1, zeros, "- hot ->")
    with pytest.raises(ValueError, match="belong together"):
        fv.accuracy(small_model(), zero_shot(), vector())


# ---------------------------------------------------------------- far away


class Lacking(importlib.abc.MetaPathFinder):
    """What a stock NDIF server does not have installed can't be imported."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("utils", "jaxtyping", "transformer_lens", "sae_lens", "plotly"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture
def far_away(monkeypatch):
    """Traces are packed as for a server and unpacked where the course is not installed; yields the packets' sizes."""
    hide, put_back, serialize = Backend._hide_local_modules, Backend._restore, RequestModel.serialize
    lacking, sizes = Lacking(), []

    def hidden(self):
        modules = hide(self)
        sys.meta_path.insert(0, lacking)
        return modules

    def restored(self, modules):
        sys.meta_path.remove(lacking)
        put_back(self, modules)

    def counted(*args, **kwargs):
        sizes.append(len(blob := serialize(*args, **kwargs)))
        return blob

    monkeypatch.setattr(Backend, "_hide_local_modules", hidden)
    monkeypatch.setattr(Backend, "_restore", restored)
    monkeypatch.setattr(RequestModel, "serialize", counted)
    monkeypatch.setenv("WORKBOOK_REMOTE", "local")
    yield sizes


def traced(name: str):
    """What a function of the chapter that traces gives on the checks' own model."""
    model, few, zero = small_model(), few_shot(5), zero_shot()
    return {
        "calculate_h": lambda: fv.calculate_h(model, few, 1),
        "intervene_with_h": lambda: fv.intervene_with_h(model, zero, vector(), 1),
        "calculate_h_and_intervene": lambda: fv.calculate_h_and_intervene(model, few, zero, 1),
        "mean_head_outputs": lambda: fv.mean_head_outputs(model, few),
        "calculate_fn_vectors_and_intervene": lambda: fv.calculate_fn_vectors_and_intervene(model, few, [1]),
        "calculate_fn_vector": lambda: fv.calculate_fn_vector(model, few, [(1, 0), (2, 1)]),
        "intervene_with_fn_vector": lambda: fv.intervene_with_fn_vector(model, "hot", 1, vector()),
        "steer": lambda: fv.steer(model, few.prompts[0], 1, vector(), 3),
        "accuracy": lambda: fv.accuracy(model, zero, vector(), 1),
    }[name]()


TRACED = (
    "calculate_h",
    "intervene_with_h",
    "calculate_h_and_intervene",
    "mean_head_outputs",
    "calculate_fn_vectors_and_intervene",
    "calculate_fn_vector",
    "intervene_with_fn_vector",
    "steer",
    "accuracy",
)


@pytest.mark.parametrize("name", TRACED)
def test_traces_run_where_the_course_is_not_installed(name, far_away, monkeypatch):
    there = traced(name)
    assert far_away
    monkeypatch.delenv("WORKBOOK_REMOTE")
    assert difference(there, traced(name)) is None


def doubled(x: Float[Tensor, "seq d_vocab"]):
    return 2 * x


def test_an_annotation_that_no_server_can_evaluate_is_refused(far_away):
    model = small_model()
    with pytest.raises(ModuleNotFoundError, match="jaxtyping"), model.trace("hot", remote="local"):
        nnsight.save(doubled(model.lm_head.output[0]))


def test_checks_send_nothing_away(far_away):
    assert check_fv.calculate_h.verdict(fv.calculate_h).state == "solved"
    assert not far_away and os.environ["WORKBOOK_REMOTE"] == "local"


def test_the_folder_of_a_model_is_not_looked_up_at_the_hub():
    assert load_nnsight("lm")._remoteable_model_key()


def test_remote_needs_a_key_from_the_environment(monkeypatch):
    monkeypatch.delenv("WORKBOOK_REMOTE", raising=False)
    assert fv.remote_options() == {}
    monkeypatch.setenv("WORKBOOK_REMOTE", "1")
    monkeypatch.delenv("NDIF_API_KEY", raising=False)
    with pytest.raises(ValueError, match="NDIF_API_KEY"):
        fv.calculate_h(small_model(), few_shot())
    monkeypatch.setenv("NDIF_API_KEY", "not-a-key")
    assert fv.remote_options() == {"remote": True} and "NDIF_API_KEY" in os.environ
    monkeypatch.delenv("NDIF_API_KEY")
    monkeypatch.setattr(nnsight.CONFIG.API, "HOST", "http://localhost:5001")
    assert fv.remote_options() == {"remote": True}
    monkeypatch.setenv("WORKBOOK_REMOTE", "yes")
    with pytest.raises(ValueError, match="set it to 1 or local"):
        fv.remote_options()


# ---------------------------------------------------------------- the shipped model


def test_all_words_of_the_tasks_are_one_token():
    tokenizer = load_nnsight("lm").tokenizer
    short = [task for task in TASKS if len(fv.one_token_pairs(tokenizer, TASKS[task].seen)) < 20]
    assert not short
