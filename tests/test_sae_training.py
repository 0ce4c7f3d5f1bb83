"""Training, loading and measuring the shipped sparse autoencoders."""

import json
import os
import shutil
from functools import partial

import pytest
from sae_lens import SAE, HookedSAETransformer

from utils.models import DamagedWeightsError, load, load_sae, load_tokenizer, loading, sae_layers
from utils.models import files as model_files
from utils.saes import sae_metrics
from utils.training import saes
from utils.training.__main__ import main
from utils.training.config import SAE_RUNS, SAERun
from utils.world import rows, sample

# The threshold that takes the place of the k largest is a running mean: it needs some hundred steps.
TINY = partial(SAERun, d_sae=256, k=8.0, n_tokens=200 * 128, batch_tokens=128)
BARELY = partial(TINY, n_tokens=10 * 128)
RESID, Z = "blocks.2.hook_resid_pre", "blocks.1.attn.hook_z"
FULL = "WORKBOOK_FULL" in os.environ
PLACES = (RESID, Z) if FULL else (Z,)


@pytest.fixture(autouse=True, scope="module")
def short_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saes, "DOCUMENTS_PER_SHARD", 200)
        yield


@pytest.fixture(scope="module")
def model():
    return load("lm", cls=HookedSAETransformer)


@pytest.fixture(scope="module")
def tokens():
    return rows(sample(150, 5), load_tokenizer().backend_tokenizer, 128).long()[:8]


def trained(settings, folder, model):
    made = saes.train(settings, folder, model)
    assert made == folder / settings.name and not (folder / f"{settings.name}.part").exists()
    sae = SAE.load_from_disk(made)
    assert sae.cfg.metadata.hook_name == settings.hook_name and sae.W_dec.shape == (256, 192)
    assert sae.cfg.metadata.training["settings"]["n_tokens"] == settings.n_tokens
    return sae


@pytest.fixture(scope="module")
def barely(model, tmp_path_factory):
    """Place → an autoencoder that has seen ten batches."""
    return {place: trained(BARELY(place), tmp_path_factory.mktemp("barely"), model) for place in PLACES}


@pytest.mark.parametrize("place", PLACES)
def test_training_saves_what_sae_lens_loads(place, barely):
    assert barely[place].cfg.metadata.hook_name == place


@pytest.mark.skipif(not FULL, reason="twelve seconds: in make test-full")
def test_a_trained_one_beats_one_that_was_barely_trained(model, tokens, barely, tmp_path):
    well = sae_metrics(model, trained(TINY(Z), tmp_path, model), tokens)
    before = sae_metrics(model, barely[Z], tokens)
    assert well["explained_variance"] > before["explained_variance"] + 0.3
    assert 4 < well["L0"] < 16 and before["L0"] > 50


def test_every_shipped_autoencoder_fits_the_model_and_reconstructs(model, tokens):
    assert set(SAE_RUNS) == {f"pico-sae-{place}-{layer}" for place in ("resid", "z") for layer in sae_layers(place)}
    assert len(sae_layers("resid")) >= 2 and sae_layers("z") == tuple(range(model.cfg.n_layers))
    for place in ("resid", "z"):
        for layer in sae_layers(place):
            sae = load_sae(place, layer)
            metrics = sae_metrics(model, sae, tokens)
            assert sae.cfg.d_sae >= 8 * model.cfg.d_model and not sae.W_dec.requires_grad
            assert metrics["explained_variance"] > 0.9 and metrics["L0"] < 30
            # Zeros in the last layer's heads cost two hundredths of a nat, so the share is noisy on few tokens.
            assert metrics["loss_recovered"] > 0.9


def test_an_unknown_place_or_layer_is_named():
    with pytest.raises(ValueError, match="no 'resid' autoencoder for layer 7: choose one of"):
        load_sae("resid", 7)
    with pytest.raises(ValueError, match="choose one of resid, z"):
        load_sae("mlp", 0)


def test_a_damaged_autoencoder_is_not_loaded(tmp_path, monkeypatch):
    root = tmp_path / "weights"
    root.mkdir()
    shutil.copy(model_files.WEIGHTS / "manifest.json", root)
    name = f"pico-sae-z-{sae_layers('z')[0]}"
    shutil.copytree(model_files.WEIGHTS / name, root / name)
    monkeypatch.setattr(loading, "WEIGHTS", root)
    assert load_sae("z", 0).cfg.d_sae
    weights = root / name / "sae_weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-10] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DamagedWeightsError, match="checksum differs; nothing was loaded"):
        load_sae("z", 0)
    weights.unlink()
    with pytest.raises(DamagedWeightsError, match="the file is missing"):
        load_sae("z", 0)


def test_the_card_tells_what_was_measured():
    for name in SAE_RUNS:
        folder = model_files.WEIGHTS / name
        figures = json.loads((folder / "measured.json").read_text())["figures"]
        card = (folder / "README.md").read_text()
        assert all(row["figure"] in card and f"{row['value']:.3f}" in card for row in figures)


def test_an_unknown_autoencoder_is_refused(capsys):
    assert main(["train", "pico-sae-resid-9"]) == 2
    assert "pico-sae-resid-2" in capsys.readouterr().err


@pytest.mark.skipif(not FULL, reason="twenty seconds: in make test-full")
def test_sae_lens_own_runner_trains_one_that_loads(tmp_path):
    settings = SAERun("blocks.2.hook_resid_pre", k=8, d_sae=256, n_tokens=20_000, batch_tokens=512, context=64)
    saes.with_runner(settings, tmp_path, documents=300)
    (folder,) = {path.parent for path in tmp_path.rglob("sae_weights.safetensors")}
    sae = SAE.load_from_disk(folder)
    assert (sae.cfg.d_in, sae.cfg.d_sae) == (192, 256) and sae.cfg.metadata.hook_name == settings.hook_name
