"""Gradients between latents: two ways of our own, and torch's finite steps, on the shipped model."""

import pytest
import torch
from sae_lens import HookedSAETransformer

from utils import circuits
from utils.checks.sae_models import lm_model, lm_sae, lm_tokens
from utils.models import load, load_sae


@pytest.fixture(scope="module")
def model():
    return load("lm", cls=HookedSAETransformer)


@pytest.fixture(scope="module")
def text(model):
    return model.to_tokens("The capital of France is Paris")


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_the_fast_gradients_are_those_of_jacrev(model, text, chunk_size):
    pair = load_sae("resid", 2), load_sae("resid", 3)
    slow, *_ = circuits.latent_to_latent_gradients(text, *pair, model)
    fast, earlier, later = circuits.fast_latent_gradients(text, *pair, model, chunk_size)
    assert slow.shape == (len(earlier.values), len(later.values)) and torch.allclose(fast, slow, atol=1e-4)
    back = later.indices[None, :, 1] < earlier.indices[:, None, 1]
    assert fast[back].abs().max() == 0 and fast.abs().max() > 0.1


def test_a_gradient_is_what_a_small_step_does(model, text):
    sae = load_sae("resid", 3)
    gradients, acts, ids = circuits.latent_to_logit_gradients(text, sae, model, k=5)
    stream = model(text, stop_at_layer=3)
    strongest = acts.values.argmax()
    _, pos, latent = acts.indices[strongest]
    moved = []
    for step in (1e-2, -1e-2):
        changed = stream.clone()
        changed[0, pos] += step * sae.W_dec[latent]
        logits = model(changed, start_at_layer=3)[0, -1]
        moved.append(logits[ids] - logits.mean())
    assert torch.allclose((moved[0] - moved[1]) / 2e-2, gradients[strongest], atol=5e-3)


def test_a_louder_token_moves_what_its_gradient_says(model, text):
    sae = load_sae("resid", 2)
    gradients, acts = circuits.token_to_latent_gradients(text, sae, model)
    up, down = torch.ones(text.shape), torch.ones(text.shape)
    up[0, 4], down[0, 4] = 1.005, 0.995
    made = [circuits.tokens_to_latent_acts(scales, text, sae, model)[acts.indices.unbind(1)] for scales in (up, down)]
    change = (made[0] - made[1]) / 0.01
    assert torch.corrcoef(torch.stack([change, gradients[4]]))[0, 1] > 0.99


BAD = {  # (earlier, later), what is said
    "order": ((lm_sae(), lm_sae("hook_resid_pre", 0)), "does not come after blocks.1.hook_resid_pre"),
    "same place": ((lm_sae(), lm_sae()), "give the earlier autoencoder first"),
    "heads' outputs": ((lm_sae("attn.hook_z", 0), lm_sae()), "take one of the residual stream"),
    "another model": ((lm_sae("hook_resid_pre", 7), lm_sae()), "does not have"),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("way", [circuits.latent_to_latent_gradients, circuits.fast_latent_gradients])
def test_what_makes_no_circuit_is_refused_in_one_sentence(way, what):
    pair, says = BAD[what]
    with pytest.raises(ValueError, match=says):
        way(lm_tokens(1, 6), *pair, lm_model())


def test_nothing_active_is_said():
    with pytest.raises(ValueError, match="nothing is active: give another text"):
        circuits.SparseTensor.from_dense(torch.zeros(1, 3, 4))
