"""Chapter 10's traced functions on the NDIF server that NDIF_HOST names, beside their local values: `make ndif-test`.

How far the values may differ, relative to the largest: in bfloat16, which rounds to 8 bits, three times what was seen
(1.7e-2 for log-probabilities). Words that a model writes are compared in float32 only: a tie can fall the other way.
"""

import os

import pytest
import torch

from utils import function_vectors as fv
from utils.models import load_nnsight
from utils.world import TASKS

DTYPE = os.environ["WORKBOOK_SERVER_DTYPE"]
# Relative to the largest local value.
TOLERANCE = {"float32": 1e-5, "bfloat16": 0.05}[DTYPE]


@pytest.fixture(scope="module", autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def traced():
    """Name → call of a function that traces, on the shipped model."""
    model = load_nnsight("lm")
    pairs = fv.one_token_pairs(model.tokenizer, TASKS["capital"].seen)
    few, zero = fv.ICLDataset(pairs, 8, 5, seed=1), fv.ICLDataset(pairs, 8, 0, seed=2)
    spoilt = few.create_corrupted_dataset(labels=["dog", "cat", "big", "small", "red"])
    h = fv.calculate_h(model, few, 1)[1]
    return {
        "calculate_h": lambda: fv.calculate_h(model, few, 1),
        "intervene_with_h": lambda: fv.intervene_with_h(model, zero, h, 1),
        "calculate_h_and_intervene": lambda: fv.calculate_h_and_intervene(model, few, zero, 1),
        "mean_head_outputs": lambda: fv.mean_head_outputs(model, few),
        "calculate_fn_vectors_and_intervene": lambda: fv.calculate_fn_vectors_and_intervene(model, few, [1], spoilt),
        "causal_effects_one_trace": lambda: fv.causal_effects_one_trace(model, few, [1, 2], spoilt),
        "causal_effects_fast": lambda: fv.causal_effects_fast(model, few, spoilt),
        "calculate_fn_vector": lambda: fv.calculate_fn_vector(model, few, [(1, 0), (2, 1)]),
        "intervene_with_fn_vector": lambda: fv.intervene_with_fn_vector(model, "Spain", 1, h),
        "steer": lambda: fv.steer(model, fv.START + "The dog is", 1, h, 6),
        "accuracy": lambda: fv.accuracy(model, zero, h, 1),
    }


NAMES = (
    "calculate_h",
    "intervene_with_h",
    "calculate_h_and_intervene",
    "mean_head_outputs",
    "calculate_fn_vectors_and_intervene",
    "causal_effects_one_trace",
    "causal_effects_fast",
    "calculate_fn_vector",
    "intervene_with_fn_vector",
    "steer",
    "accuracy",
)


def far_from(there, here) -> float:
    """The largest difference, relative to the largest local value; words count only in float32, as 0 or infinity."""
    if isinstance(here, torch.Tensor):
        return ((there.float().cpu() - here).abs().max() / here.abs().max()).item()
    if isinstance(here, list | tuple):
        return max(map(far_from, there, here), default=0.0)
    if isinstance(here, str):
        return 0.0 if there == here or DTYPE != "float32" else float("inf")
    return abs(there - here) if DTYPE == "float32" else 0.0


@pytest.mark.parametrize("name", NAMES)
def test_the_server_gives_the_local_value(name, traced, monkeypatch, record_property):
    monkeypatch.delenv("WORKBOOK_REMOTE", raising=False)
    here = traced[name]()
    monkeypatch.setenv("WORKBOOK_REMOTE", "1")
    far = far_from(traced[name](), here)
    print(f"\n{name:36} {far:.1e}")
    assert far <= TOLERANCE
