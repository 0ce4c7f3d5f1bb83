"""What latents cause: attribution, ablation, gradients and steering, each against another way to compute it."""

from functools import partial

import pytest
import torch
from sae_lens import HookedSAETransformer

from utils import sae_causes, saes
from utils.checks.sae_models import (
    linear_model,
    small_acts,
    small_answers,
    small_metric,
    small_model,
    small_runs,
    small_sae,
)
from utils.models import load, load_tokenizer
from utils.world import sample


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def attached_logits(model, sae, hook=None, error=True):
    """The model's logits with the autoencoder in it, and a hook on the latents."""
    hooks = [] if hook is None else [(saes.acts_name(sae), hook)]
    with model.saes([sae], use_error_term=error):
        return model.run_with_hooks(small_runs()[0], fwd_hooks=hooks)


# ---------------------------------------------------------------- reading and writing


@pytest.mark.parametrize("architecture", ["jumprelu", "standard"])
def test_sources_and_bias_add_up_to_the_pre_activation(architecture):
    sae = small_sae("blocks.2.attn.hook_z", architecture)
    own = small_runs()[1]
    _, attached = small_model().run_with_cache_with_saes(small_runs()[0], saes=[sae])
    before = attached["blocks.2.attn.hook_z.hook_sae_acts_pre"]
    for latent in range(sae.cfg.d_sae):
        where, v, pattern = sae_causes.attention_of_top_examples(before[..., latent], own, 2, 2)
        by_source, bias = sae_causes.direct_feature_attribution(v, pattern, sae, latent)
        got = by_source.sum(dim=(1, 2)) + bias
        assert torch.allclose(got, before[where[:, 0], where[:, 1], latent], atol=1e-4), latent


def test_no_source_comes_after_the_latents_own_position():
    where, v, pattern = sae_causes.attention_of_top_examples(small_acts()[..., 1], small_runs()[1], 1, 4)
    by_source, _ = sae_causes.direct_feature_attribution(v, pattern, small_sae(), 1)
    for (_, position), sources in zip(where.tolist(), by_source, strict=True):
        assert (sources[position + 1 :] == 0).all() and sources[: position + 1].abs().min() > 0


def test_direct_attribution_is_what_the_logits_lose_with_all_else_frozen():
    """In the last layer without an MLP, taking a latent's writing out of the frozen LayerNorm is its attribution."""
    model, sae = small_model(), small_sae("blocks.2.attn.hook_z")
    tokens, own, _ = small_runs()
    acts = sae.encode(own["z", 2])[:, -1]
    directions = sae_causes.latent_directions(model, sae)
    got = sae_causes.latent_logit_attribution(acts, directions, own, small_answers())
    resid, scale = own["resid_post", 2][:, -1], own["ln_final.hook_scale"][:, -1]

    def answer(resid):
        return ((resid - resid.mean(dim=-1, keepdim=True)) / scale * small_answers()).sum(dim=-1)

    for latent in (1, 4, 8):
        without = resid - acts[:, latent, None] * directions[latent]
        assert torch.allclose(answer(resid) - answer(without), got[:, latent], atol=1e-4)


def test_autoencoders_of_other_places_are_refused():
    resid = small_sae("blocks.1.hook_resid_pre")
    assert saes.layer_of(resid) == 1
    with pytest.raises(ValueError, match="take one of hook_z"):
        sae_causes.latent_directions(small_model(), resid)
    with pytest.raises(ValueError, match="take one of hook_z"):
        sae_causes.ablation_effects(small_model(), resid, small_runs()[0], torch.arange(3), small_metric, 2)
    nameless = small_sae("hook_embed")
    with pytest.raises(ValueError, match="set sae.cfg.metadata.hook_name"):
        saes.layer_of(nameless)
    with pytest.raises(ValueError, match="'mean', 'sum' or None"):
        sae_causes.logits_to_ave_logit_diff(torch.zeros(1, 1, 3), torch.tensor([0]), torch.tensor([1]), reduction="max")


# ---------------------------------------------------------------- cause


def test_with_the_error_term_the_run_is_exact():
    for sae in (small_sae(), small_sae("blocks.1.hook_resid_pre"), small_sae("blocks.2.attn.hook_z", "standard")):
        own = small_model()(small_runs()[0])
        assert torch.allclose(attached_logits(small_model(), sae), own, atol=1e-5)
        assert not torch.allclose(attached_logits(small_model(), sae, error=False), own, atol=1e-3)


def test_ablating_a_dead_latent_changes_nothing_and_ablating_all_leaves_b_dec():
    model, sae = small_model(), small_sae()
    assert (small_acts()[..., 3] == 0).all()
    dead = attached_logits(model, sae, partial(sae_causes.ablate_sae_latent, latent_idx=3))
    assert torch.equal(dead, attached_logits(model, sae))
    none_left = attached_logits(model, sae, sae_causes.ablate_sae_latent, error=False)

    def only_b_dec(z, hook):
        return sae.b_dec.view(3, 5).expand_as(z)

    want = model.run_with_hooks(small_runs()[0], fwd_hooks=[("blocks.1.attn.hook_z", only_b_dec)])
    assert torch.allclose(none_left, want, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 1, 2])
@pytest.mark.parametrize("position", [0, 3, 6, -1])
@pytest.mark.parametrize("at_once", [1, 5, 64])
def test_batched_sweep_equals_the_loop(layer, position, at_once):
    args = small_model(), small_sae(f"blocks.{layer}.attn.hook_z"), small_runs()[0], torch.arange(24), small_metric
    loop = sae_causes.ablation_sweep(*args, position)
    batched = sae_causes.ablation_effects(*args, position, at_once)
    assert torch.allclose(loop, batched, atol=1e-5)
    # In the last layer only the last position can change what is said there.
    assert bool(loop.abs().max() > 1e-3) == (layer < 2 or position in (6, -1))


def test_nothing_stays_attached():
    model, sae = small_model(), small_sae()
    before = model(small_runs()[0])
    sae_causes.ablation_sweep(model, sae, small_runs()[0], torch.tensor([1]), small_metric, 2)
    sae_causes.ablation_effects(model, sae, small_runs()[0], torch.tensor([1]), small_metric, 2)
    sae_causes.get_cache_fwd_and_bwd(model, [sae], small_runs()[0], small_metric)
    assert not model.acts_to_saes and not sae.hook_sae_acts_post.fwd_hooks
    assert torch.equal(model(small_runs()[0]), before)
    assert not any(parameter.requires_grad for parameter in [*model.parameters(), *sae.parameters()])


# ---------------------------------------------------------------- gradients


def test_gradients_equal_small_changes():
    model, sae = small_model().double(), small_sae().double()
    sae.dtype = model.cfg.dtype = torch.float64
    try:
        tokens = small_runs()[0]
        acts, gradients = sae_causes.get_cache_fwd_and_bwd(model, [sae], tokens, small_metric)
        name, step = saes.acts_name(sae), 1e-5
        for row, position, latent in ((0, 2, 1), (3, 6, 4), (2, 0, 8)):

            def nudge(x, hook, sign, place=(row, position, latent)):
                x[place] += sign * step
                return x

            up, down = (small_metric(attached_logits(model, sae, partial(nudge, sign=s))) for s in (1, -1))
            slope = (up - down) / (2 * step)
            assert slope.item() == pytest.approx(gradients[name][row, position, latent].item(), abs=1e-7)
        assert acts[name].shape == gradients[name].shape == (4, 7, 24)
    finally:
        model.float()
        sae.float()
        sae.dtype = model.cfg.dtype = torch.float32


def test_attribution_equals_ablation_in_a_linear_model_only():
    tokens, latents = small_runs()[0], torch.arange(24)
    for model, sae, equal in (
        (linear_model(), small_sae("blocks.0.attn.hook_z"), True),
        (small_model(), small_sae(), False),
    ):
        ablated = sae_causes.ablation_effects(model, sae, tokens, latents, small_metric, 6)
        attributed = sae_causes.attribution_patching(model, sae, tokens, small_metric, 6)
        assert torch.allclose(ablated, attributed, atol=1e-5) == equal


# ---------------------------------------------------------------- steering


def test_texts_are_judged_as_what_they_are():
    documents = sample(40, 3)
    texts = [d.text + "<|endoftext|>" for d in documents]
    shares = sae_causes.kind_shares(texts)
    assert shares == {kind: sum(d.kind == kind for d in documents) / 40 for kind in {d.kind for d in documents}}
    unfinished = [d.text[:-4] for d in sample(20, 4, ["french"])]
    assert sae_causes.kind_shares(unfinished) == {"french": 1.0}
    assert sae_causes.kind_shares([text + "<|endoftext|>" for text in [*unfinished, "nothing of the sort"]]) == {
        None: 1.0
    }


def test_sentences_are_taken_as_texts_of_their_own():
    end = "<|endoftext|>"
    texts = ["Le chien est grand. Où est la maison de Mary? My" + end, 'He said: "Go on." Then he le', ""]
    assert sae_causes.finished_sentences(texts) == [
        "Le chien est grand." + end,
        "Où est la maison de Mary?" + end,
        'He said: "Go on."' + end,
    ]
    french = [d.text + end for d in sample(30, 8, ["french"])]
    assert sae_causes.kind_shares(sae_causes.finished_sentences(french)) == {"french": 1.0}


def test_a_batch_holds_each_documents_tokens_and_labels_once():
    tokenizer, documents = load_tokenizer(), sample(6, 9)
    tokens, truth, counted = sae_causes.labelled_batch(documents, tokenizer, ["name", "country"], 30)
    assert tokens.shape == counted.shape == (6, 30) and truth.shape == (6, 30, 2)
    for row, mask, document in zip(tokens, counted, documents, strict=True):
        assert not mask[0] and document.text.startswith(tokenizer.decode(row[mask]))
    assert not truth[~counted].any()


def test_generation_is_the_models_own_and_hooks_push_it():
    """Greedy text must be what whole runs without a cache say; a hook must be at work at every step."""
    model = load("lm", cls=HookedSAETransformer)
    (text,) = sae_causes.generate_texts(model, "The capital of", 1, 6, temperature=1e-4)
    tokens = model.to_tokens("The capital of")
    for _ in range(6):
        tokens = torch.cat([tokens, model(tokens)[:, -1:].argmax(dim=-1)], dim=1)
    assert text == model.tokenizer.decode(tokens[0, 1:])
    seen = []
    sae_causes.generate_texts(
        model, "", 2, 3, [("blocks.1.hook_resid_pre", lambda x, hook: seen.append(tuple(x.shape[:2])))]
    )
    assert seen == [(2, 1)] * 3
    assert not model.blocks[1].hook_resid_pre.fwd_hooks
    assert sae_causes.generate_texts(model, "", 2, 5, seed=1) == sae_causes.generate_texts(model, "", 2, 5, seed=1)
