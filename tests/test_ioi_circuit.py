"""Chapter 09: path patching where it must equal plain patching, and circuits where they must equal the model."""

from functools import partial

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

from utils import ioi
from utils import ioi_circuit as circuit
from utils.checks.ioi import small_runs
from utils.checks.models import small_gpt


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


# ---------------------------------------------------------------- path patching


def test_path_from_the_last_layer_to_the_logits_is_plain_patching():
    """Nothing comes after the last layer's heads, so freezing the others makes no difference."""
    clean, _, _, orig, new = small_runs()
    hook = partial(ioi.patch_head_vector, head_index=3, clean_cache=new)
    plain = small_gpt().run_with_hooks(clean, fwd_hooks=[("blocks.2.attn.hook_z", hook)])
    assert torch.allclose(circuit.path_patch_to_logits(small_gpt(), clean, orig, new, (2, 3)), plain, atol=1e-5)


def test_path_to_all_later_heads_and_values_alike_restores_plain_patching_without_mlps():
    """In an attention-only model with two layers, what a head of layer 0 does is: its own path to the logits, and
    its paths into queries, keys and values of layer 1, all at once."""
    sizes = dict(n_layers=2, d_model=20, n_heads=3, d_head=6, n_ctx=32, d_vocab=37, attn_only=True)
    model = HookedTransformer(HookedTransformerConfig(**sizes, normalization_type=None, seed=5))
    clean, corrupted, *_ = small_runs()
    orig, new = (model.run_with_cache(tokens)[1] for tokens in (clean, corrupted))
    hook = partial(ioi.patch_head_vector, head_index=1, clean_cache=new)
    plain = model.run_with_hooks(clean, fwd_hooks=[("blocks.0.attn.hook_z", hook)])
    direct = circuit.path_patch_to_logits(model, clean, orig, new, (0, 1)) - model(clean)
    freeze = partial(circuit.patch_or_freeze_heads, sender=(0, 1), orig_cache=orig, new_cache=new)
    with model.hooks(fwd_hooks=[(lambda name: name.endswith("hook_z"), freeze)]):
        _, heard = model.run_with_cache(clean)
    hooks = [(f"blocks.1.attn.hook_{x}", lambda _, hook: heard[hook.name]) for x in "qkv"]
    through_heads = model.run_with_hooks(clean, fwd_hooks=hooks) - model(clean)
    assert torch.allclose(model(clean) + direct + through_heads, plain, atol=1e-4)


def test_paths_refuse_receivers_before_the_sender():
    clean, _, _, orig, new = small_runs()
    with pytest.raises(ValueError, match="only send to heads of later layers"):
        circuit.path_patch_to_heads(small_gpt(), clean, orig, new, (1, 0), [(1, 2)], "q")
    with pytest.raises(ValueError, match="choose q, k or v"):
        circuit.path_patch_to_heads(small_gpt(), clean, orig, new, (0, 0), [(1, 2)], "z")


# ---------------------------------------------------------------- circuits


def test_paths_refuse_prompts_of_another_length():
    clean, _, _, orig_cache, new_cache = small_runs()
    _, short = small_gpt().run_with_cache(clean[:, :-1])
    for first, second in ((short, new_cache), (orig_cache, short)):
        for call in (circuit.path_patch_to_logits, partial(circuit.path_patch_to_heads, receivers=[(2, 1)])):
            with pytest.raises(ValueError, match="9 tokens, but the cached run had 8"):
                call(small_gpt(), clean, first, second, sender=(0, 1))


def test_a_circuit_of_all_heads_is_the_model_and_wrong_means_are_refused():
    model, (clean, corrupted, *_) = small_gpt(), small_runs()
    means = circuit.mean_z(model, corrupted)
    everything = [(layer, head) for layer in range(3) for head in range(5)]
    assert torch.allclose(circuit.run_circuit(model, clean, everything, means), model(clean), atol=1e-5)
    assert not torch.allclose(circuit.run_circuit(model, clean, everything[1:], means), model(clean), atol=1e-3)
    with pytest.raises(ValueError, match="take them on such prompts"):
        circuit.run_circuit(model, clean[:, :-1], everything, means)
