"""Transcoders: training, loading, measuring the shipped ones; in place of the MLPs."""

import json
import os
import shutil
from functools import partial

import pytest
import torch
from sae_lens import SAE, HookedSAETransformer

from utils import transcoders as chapter
from utils.checks.sae_models import lm_model, lm_tokens, lm_transcoder
from utils.models import DamagedWeightsError, load, load_tokenizer, load_transcoder, loading
from utils.models import files as model_files
from utils.models.registry import EMBEDDED
from utils.training import transcoders
from utils.training.__main__ import main
from utils.training.config import TRANSCODER_RUNS, TranscoderRun
from utils.transcoders import Transcoder, places, transcoder_hooks, transcoder_metrics
from utils.world import rows, sample

TINY = partial(TranscoderRun, d_sae=192, k=8.0, n_tokens=60 * 256, n_different=8_192, batch_tokens=256)


@pytest.fixture(scope="module")
def model():
    return load("lm", cls=HookedSAETransformer)


@pytest.fixture(scope="module")
def tokens():
    return rows(sample(150, 5), load_tokenizer().backend_tokenizer, 128).long()[:16]


@pytest.fixture(autouse=True, scope="module")
def short_shards():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transcoders, "DOCUMENTS_PER_SHARD", 200)
        yield


@pytest.mark.parametrize("skip", [False, True] if "WORKBOOK_FULL" in os.environ else [True], ids=str)
def test_training_saves_what_sae_lens_loads(skip, model, tokens, tmp_path):
    settings = TINY(1, skip=skip)
    made = transcoders.train(settings, tmp_path, model)
    assert made == tmp_path / settings.name and not (tmp_path / f"{settings.name}.part").exists()
    released = SAE.load_from_disk(made)
    assert places(released) == ("blocks.1.ln2.hook_normalized", "blocks.1.hook_mlp_out")
    assert released.cfg.metadata.training["settings"]["n_tokens"] == settings.n_tokens
    found = transcoder_metrics(model, released, tokens)
    assert found["explained_variance"] > 0.2 and 4 < found["L0"] < 16
    for name in ("W_enc", "W_dec"):  # centred: nothing that LayerNorm takes off is in them
        matrix = getattr(released, name)
        assert matrix.mean(0 if name == "W_enc" else 1).abs().max() < 1e-3 * matrix.abs().max()


def test_the_inputs_of_all_layers_are_collected_once(model, tmp_path, monkeypatch):
    first = transcoders.kept_inputs(model, TINY(2), tmp_path)
    monkeypatch.setattr(transcoders, "mlp_inputs", None)  # not asked again
    other = transcoders.kept_inputs(model, TINY(3, k=30.0), tmp_path)
    assert first.shape == other.shape and not torch.equal(first, other)


def test_dead_latents_are_set_anew():
    generator = torch.Generator().manual_seed(0)
    coder = Transcoder(6, 5, 8)
    optimizer = torch.optim.Adam(coder.parameters())
    x, error = torch.randn(20, 6, generator=generator), torch.randn(20, 5, generator=generator)
    coder(x).sum().backward()
    optimizer.step()
    kept = coder.W_dec[:6].clone()
    dead = torch.tensor([6, 7])
    transcoders._set_anew(coder, optimizer, dead, x, error, 0.1, generator)
    assert torch.equal(coder.W_dec[:6], kept) and torch.allclose(coder.W_dec[dead].norm(dim=1), torch.ones(2))
    assert optimizer.state[coder.W_dec]["exp_avg"][dead].abs().sum() == 0
    # It is on where it was set: at the token whose error it writes.
    nearest = torch.cdist(coder.W_dec[dead], torch.nn.functional.normalize(error, dim=1)).argmin(1)
    assert (coder.encode(x)[nearest, dead] > 0).all()


def test_every_shipped_one_fits_explains_the_mlp_and_is_ours(model, tokens):
    listed = EMBEDDED.transcoders
    assert list(TRANSCODER_RUNS) == [listed.source.format(layer=layer) for layer in listed.layers]
    assert listed.layers == tuple(range(model.cfg.n_layers))
    for run in TRANSCODER_RUNS.values():
        released = load_transcoder(run.layer)
        assert hasattr(released, "W_skip") == run.skip
        assert not released.W_dec.requires_grad
        _, cache = model.run_with_cache(tokens, names_filter=places(released)[0])
        x = cache[places(released)[0]]
        assert torch.allclose(Transcoder.of(released)(x), released(x), atol=1e-4)
        measured = json.loads((model_files.WEIGHTS / run.name / "measured.json").read_text())
        value = {row["figure"].split(",")[0]: row["value"] for row in measured["figures"]}
        assert value["explained variance of the MLP's output"] >= 0.92 and value["L0"] <= 26, run.name
        assert [row["figure"] for row in measured["figures"] if row["reached"] is False] == [], run.name
        card = (model_files.WEIGHTS / run.name / "README.md").read_text()
        assert all(row["figure"] in card and f"{row['value']:.3f}" in card for row in measured["figures"])


def test_all_weights_stay_small():
    size = sum(path.stat().st_size for path in model_files.WEIGHTS.rglob("*.safetensors"))
    assert size < 85e6


def test_attached_by_sae_lens_it_is_as_by_our_hooks_but_for_the_skip_connection(model, tokens):
    released, skip = load_transcoder(2), load_transcoder(0)
    for each, same in ((released, True), (skip, False)):
        ours = model.run_with_hooks(tokens, fwd_hooks=transcoder_hooks(model, [each]))
        with model.saes(saes=[each]):
            theirs = model(tokens)
        assert torch.allclose(ours, theirs, atol=1e-3) == same


BAD = {
    "another model": (partial(lm_transcoder, hook_name="blocks.7.ln2.hook_normalized"), "does not have: load"),
    "two layers": (partial(lm_transcoder, hook_name_out="blocks.0.hook_mlp_out"), "same layer's MLP"),
    "no MLP": (partial(lm_transcoder, hook_name_out="blocks.1.hook_attn_out"), "same layer's MLP"),
    "another width": (partial(load_transcoder, 1), "reads 192 numbers and writes 192"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_is_refused_in_one_sentence(what):
    make, says = BAD[what]
    for call in (
        partial(transcoder_hooks, lm_model(), [make()]),
        partial(chapter.check_transcoder, lm_model(), make()),
    ):
        with pytest.raises(ValueError, match=says):
            call()


def test_two_at_one_place_and_unknown_ones_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="two transcoders write blocks.1.hook_mlp_out"):
        transcoder_hooks(lm_model(), [lm_transcoder(1), lm_transcoder(1)])
    with pytest.raises(ValueError, match="no transcoder for layer 4: choose one of 0, 1, 2, 3"):
        load_transcoder(4)
    monkeypatch.setenv("WORKBOOK_MODELS", "hub")
    with pytest.raises(ValueError, match="set WORKBOOK_MODELS=embedded"):
        load_transcoder(1)


def test_an_unknown_transcoder_is_not_trained(capsys):
    assert main(["train", "pico-transcoder-9"]) == 2
    assert "pico-transcoder-3" in capsys.readouterr().err


def test_a_damaged_file_is_not_loaded(tmp_path, monkeypatch):
    root = tmp_path / "weights"
    root.mkdir()
    shutil.copy(model_files.WEIGHTS / "manifest.json", root)
    shutil.copytree(model_files.WEIGHTS / "pico-transcoder-1", root / "pico-transcoder-1")
    monkeypatch.setattr(loading, "WEIGHTS", root)
    assert load_transcoder(1).cfg.d_sae
    weights = root / "pico-transcoder-1" / "sae_weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-10] ^= 1
    weights.write_bytes(content)
    with pytest.raises(DamagedWeightsError, match="checksum differs; nothing was loaded"):
        load_transcoder(1)


def test_hooks_leave_nothing_behind():
    model, tokens = lm_model(), lm_tokens()
    before = model(tokens)
    model.run_with_hooks(tokens, fwd_hooks=transcoder_hooks(model, [lm_transcoder(0, True), lm_transcoder(1)]))
    assert torch.equal(model(tokens), before)
