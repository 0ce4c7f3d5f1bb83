"""The small models that answers are tried on: a transpose shows and a forgotten bias shows."""

import ast
from pathlib import Path

import pytest
import torch

from utils import checks
from utils.checks.models import CFG, LIKE_GPT2, random_demo, small_attn, small_demo, small_gpt, small_hf, tokenizer_of

MODELS = {
    "attention only": small_attn,
    "attention only, more heads": lambda: small_attn(3, 5),
    "TransformerLens": small_gpt,
    "TransformerLens, more layers": lambda: small_gpt(4, 3),
    "chapter 02": small_demo,
    "chapter 02, like GPT-2": random_demo,
}


def sizes_of(cfg) -> list[int]:
    names = ("n_layers", "n_heads", "d_head", "d_model", "d_mlp", "d_vocab", "n_ctx")
    return [getattr(cfg, name) for name in names if getattr(cfg, name)]


@pytest.mark.parametrize("name", MODELS)
def test_all_sizes_differ_and_no_bias_is_zero(name):
    model = MODELS[name]()
    sizes = sizes_of(model.cfg)
    assert len(set(sizes)) == len(sizes)
    biases = {n: p for n, p in model.named_parameters() if n.split(".")[-1].startswith("b") and n != "unembed.b_U"}
    if name.startswith("attention only"):  # the two-layer model has none
        assert not any(p.any() for p in biases.values())
    else:
        assert biases and all((p != 0).all() for p in biases.values())


def test_the_model_in_transformers_has_biases_too():
    model = small_hf(tokenizer_of("a b c"), n_layers=3, n_heads=5, d_head=4)
    assert all((p != 0).all() for name, p in model.named_parameters() if name.endswith("bias"))


def test_sizes_of_chapter_02_differ():
    for cfg in (CFG, LIKE_GPT2):
        assert len(set(sizes_of(cfg))) == 7
    assert LIKE_GPT2.n_heads * LIKE_GPT2.d_head == LIKE_GPT2.d_model


def test_a_seed_gives_another_model():
    ids = torch.tensor([[1, 2, 3]])
    assert not torch.allclose(small_demo(0)(ids), small_demo(1)(ids))


def test_every_check_model_says_on_which_device_it_is():
    """TransformerLens takes a GPU where there is one, whatever the device in use."""
    calls = [
        (path.name, node)
        for path in Path(checks.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "HookedTransformerConfig"
    ]
    assert len(calls) >= 5
    for name, node in calls:
        assert any(word.arg == "device" for word in node.keywords), f"utils/checks/{name}, line {node.lineno}"


def test_making_cases_leaves_the_shared_models_as_they_are():
    from test_checks import EXERCISES

    from utils.checks import sae_models

    def weights():
        shared = (sae_models.lm_model(), sae_models.lm_sae(), sae_models.small_model(), sae_models.small_sae())
        return [tensor.clone() for model in shared for tensor in model.state_dict().values()]

    before = weights()
    for exercise in EXERCISES:
        if exercise.target.split(".")[1] in ("saes", "probes", "sae_causes", "transcoders", "circuits"):
            list(exercise._cases())
            assert all(map(torch.equal, before, weights())), exercise.target
