"""The shipped models: offline, whole or refused, fast to load, the same in every library, and at their bars."""

import json
import shutil
import socket
import warnings
from functools import cache
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import ActivationsStore, HookedSAETransformer

from utils import models, world
from utils.models import files, loading
from utils.training import measure
from utils.training.config import CONFIGS

SHIPPED = {"lm": "pico-gpt", "attn2l": "pico-attn-2l", "attn1l": "pico-attn-1l"}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Every test runs with sockets blocked."""

    def refuse(*arguments, **options):
        raise OSError("a test asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def copy_of_weights(tmp_path, monkeypatch):
    """A copy of the shipped folder that a test may damage."""
    root = tmp_path / "weights"
    shutil.copytree(models.WEIGHTS, root)
    monkeypatch.setattr(files, "WEIGHTS", root)
    monkeypatch.setattr(loading, "WEIGHTS", root)
    return root


@pytest.fixture(scope="module")
def tokens():
    tokenizer = models.load_tokenizer()
    ids = [[0, *tokenizer.encode(d.text)][:60] for d in world.sample(60, 77)]
    return torch.tensor([row for row in ids if len(row) == 60][:4])


@pytest.mark.parametrize("name", SHIPPED)
def test_a_model_loads_without_network_and_without_noise(name, capfd):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = models.load(name)
    out, err = capfd.readouterr()
    assert not caught and out == "" and err == ""
    assert model.cfg.n_ctx == CONFIGS[SHIPPED[name]].n_ctx
    assert not any(p.requires_grad for p in model.parameters()) and not model.training
    assert model.to_str_tokens("When Mary")[0] == "<|endoftext|>"
    # The tokenizer's folder is named absolutely: another working directory changes nothing.
    assert Path(model.cfg.tokenizer_name).is_absolute()


def test_the_language_model_is_the_same_in_every_library(tokens):
    hf, nnsight_model = models.load_hf(), models.load_nnsight()
    with torch.no_grad():
        want = hf(tokens).logits.log_softmax(-1)
        for processed in (True, False):
            got = models.load("lm", processed=processed)(tokens).log_softmax(-1)
            assert (got - want).abs().max() < 1e-4
        with nnsight_model.trace(tokens):
            logits = nnsight_model.lm_head.output.save()
    assert (logits.log_softmax(-1) - want).abs().max() < 1e-4


def test_processing_folds_what_it_says(tokens):
    folded, plain = models.load("lm"), models.load("lm", processed=False)
    assert folded.cfg.normalization_type == "LNPre" and plain.cfg.normalization_type == "LN"
    assert folded.W_U.mean(-1).abs().max() < 1e-5 and plain.W_U.mean(-1).abs().max() > 1e-4


def test_a_subclass_of_the_hooked_transformer_can_be_asked_for(tokens):
    model = models.load("lm", cls=HookedSAETransformer)
    assert isinstance(model, HookedSAETransformer)
    torch.testing.assert_close(model(tokens), models.load("lm")(tokens), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["attn2l", "attn1l"])
def test_the_attention_only_models_are_what_they_are_called(name):
    model = models.load(name)
    cfg = model.cfg
    assert cfg.attn_only and cfg.positional_embedding_type == "shortformer" and cfg.normalization_type is None
    assert cfg.n_layers == int(name[4]) and cfg.n_heads == 12
    biases = [p for key, p in model.named_parameters() if ".b_" in key]
    assert biases and all((p == 0).all() for p in biases)


@pytest.mark.parametrize("name", ["attn2l", "attn1l"])
def test_checkpoints_lead_from_chance_to_the_shipped_model(name, tokens):
    checkpoints = models.checkpoints(name)
    assert len(checkpoints) >= 10 and checkpoints[0].step == 0
    assert [c.step for c in checkpoints] == sorted({c.step for c in checkpoints})
    last = models.load(name)
    first_loss = checkpoints[0].load()(tokens, return_type="loss")
    assert abs(first_loss - torch.tensor(float(last.cfg.d_vocab)).log()) < 0.5
    assert torch.equal(checkpoints[-1].load()(tokens), last(tokens))
    assert last(tokens, return_type="loss") < first_loss - 4
    curve = models.training_curve(name)
    assert curve[-1]["step"] == checkpoints[-1].step and curve[-1]["tokens"] == checkpoints[-1].tokens


def test_the_phase_change_is_in_the_checkpoints_of_two_layers_and_not_of_one():
    drops = {}
    for name in ("attn2l", "attn1l"):
        curve = [m["repeat_second"] for m in models.training_curve(name)]
        drops[name] = curve[0] - curve[-1]
    assert drops["attn2l"] > 5 and abs(drops["attn1l"]) < 0.5


# ---- Bad input. ----
@pytest.mark.parametrize("damage", ["truncated", "one bit", "missing"])
def test_damaged_weights_are_refused(copy_of_weights, damage):
    path = copy_of_weights / "pico-gpt" / "model.safetensors"
    content = bytearray(path.read_bytes())
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "one bit":
        content[-1] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    with pytest.raises(models.DamagedWeightsError) as problem:
        models.load("lm")
    message = str(problem.value)
    assert "pico-gpt/model.safetensors" in message and "nothing was loaded" in message
    assert "git checkout -- utils/models/weights/pico-gpt/model.safetensors" in message
    assert ("missing" if damage == "missing" else "checksum differs") in message


def test_a_folder_in_place_of_the_weights_is_refused(copy_of_weights):
    path = copy_of_weights / "pico-gpt" / "model.safetensors"
    path.unlink()
    path.mkdir()
    with pytest.raises(models.DamagedWeightsError, match=r"pico-gpt/model.safetensors: it can't be read.*Move it away"):
        models.load("lm")


@pytest.mark.parametrize("damage", ["lacks a file", "numbers"])
def test_a_manifest_that_lacks_something_is_the_one_named(copy_of_weights, damage):
    manifest = copy_of_weights / "manifest.json"
    table = json.loads(manifest.read_text())
    del table["pico-attn-1l/hooked_config.json"]
    manifest.write_text(json.dumps(table if damage == "lacks a file" else dict.fromkeys(table, 3)))
    with pytest.raises(models.DamagedWeightsError) as problem:
        models.load("attn1l")
    assert str(problem.value).endswith("git checkout -- utils/models/weights/manifest.json")


def test_a_damaged_checkpoint_or_tokenizer_is_refused(copy_of_weights):
    checkpoint = models.checkpoints("attn2l")[3]
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:-7])
    with pytest.raises(models.DamagedWeightsError, match="checksum differs"):
        checkpoint.load()
    tokenizer = copy_of_weights / "pico-gpt" / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    with pytest.raises(models.DamagedWeightsError, match="tokenizer.json: checksum differs"):
        models.load("attn2l")


def test_a_missing_checkpoint_is_named_when_they_are_listed(copy_of_weights):
    models.checkpoints("attn2l")[4].path.unlink()
    with pytest.raises(
        models.DamagedWeightsError, match=r"step_\d+.safetensors: the file is missing.*git checkout -- "
    ):
        models.checkpoints("attn2l")


READERS = {
    "pico-attn-2l/training.json": (lambda: models.checkpoints("attn2l"), lambda: models.training_curve("attn2l")),
    "pico-gpt/measured.json": (lambda: models.measured("lm"),),
    "pico-attn-2l/hooked_config.json": (lambda: models.load("attn2l"),),
    "pico-gpt/generation_config.json": (lambda: models.load("lm"),),
    "manifest.json": (lambda: models.load("attn2l"), lambda: models.checkpoints("attn2l"), models.load_tokenizer),
}


@pytest.mark.parametrize("name", READERS)
def test_every_file_that_is_read_is_verified_and_named_with_the_way_to_restore_it(copy_of_weights, name):
    path = copy_of_weights / name
    for damage in (None, path.read_bytes()[:40], b"[]", b"\xff"):
        path.unlink()
        for read in READERS[name] if damage is None else ():
            check_that_it_is_named(read, name)
        path.write_bytes(damage or b"")
        for read in READERS[name]:
            check_that_it_is_named(read, name)


def check_that_it_is_named(read, name):
    with pytest.raises(models.DamagedWeightsError) as problem:
        read()
    message = str(problem.value)
    assert message.startswith(f"{name}: ") and "\n" not in message
    assert message.endswith(f"git checkout -- utils/models/weights/{name}")


def test_one_models_new_files_do_not_vouch_for_anothers(copy_of_weights):
    for name in ("pico-gpt/measured.json", "pico-attn-1l/measured.json"):
        (copy_of_weights / name).write_text("{}")
    (copy_of_weights / "pico-gpt" / "._model.safetensors").write_bytes(b"left by another system")
    before = json.loads((copy_of_weights / "manifest.json").read_text())
    assert files.write_manifest(copy_of_weights, folder="pico-gpt").keys() == before.keys()
    assert models.measured("lm") == {}
    with pytest.raises(models.DamagedWeightsError, match="pico-attn-1l/measured.json: checksum differs"):
        models.measured("attn1l")


def test_unknown_names_are_refused(monkeypatch):
    with pytest.raises(ValueError, match="lm, attn2l, attn1l"):
        models.load("gpt5")
    with pytest.raises(ValueError, match="attn2l or attn1l"):
        models.checkpoints("lm")
    with pytest.raises(ValueError, match="transformer_lens only"):
        models.load_hf("attn2l")
    monkeypatch.setenv("WORKBOOK_MODELS", "cloud")
    with pytest.raises(ValueError, match="embedded, hub"):
        models.load("lm")


@pytest.mark.parametrize("call", [models.load, models.load_hf, models.load_nnsight, models.load_tokenizer])
def test_the_hub_profile_without_network_says_how_to_go_on(monkeypatch, call):
    monkeypatch.setenv("WORKBOOK_MODELS", "hub")
    with pytest.raises(models.HubUnreachableError, match="WORKBOOK_MODELS=embedded") as problem:
        call("lm")
    assert "\n" not in str(problem.value)


def test_the_hub_profile_has_no_shipped_folder(monkeypatch):
    monkeypatch.setenv("WORKBOOK_MODELS", "hub")
    with pytest.raises(ValueError, match="WORKBOOK_MODELS=embedded"):
        models.folder("attn2l")


def test_what_only_the_workbooks_models_have_stays_theirs_and_says_so(monkeypatch, capsys):
    last = models.checkpoints("attn2l")[-1].load()
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("WORKBOOK_MODELS", "hub")
    theirs = models.checkpoints("attn2l")[-1].load()
    assert "checkpoints of attn2l are those of the workbook's own" in capsys.readouterr().out
    assert torch.equal(theirs.W_E, last.W_E) and theirs.tokenizer.get_vocab() == last.tokenizer.get_vocab()
    assert models.training_curve("attn2l") and "training of attn2l" in capsys.readouterr().out


def test_a_path_with_another_models_name_in_it_changes_nothing(copy_of_weights, tmp_path, monkeypatch):
    root = tmp_path / "llama-gemma"
    shutil.copytree(copy_of_weights, root)
    monkeypatch.setattr(loading, "WEIGHTS", root)
    assert models.load("lm").cfg.original_architecture == "GPT2LMHeadModel"


# ---- What is shipped. ----
def test_every_shipped_file_is_in_the_manifest_and_all_are_small():
    everything = [p for p in models.WEIGHTS.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in everything) < 85e6
    read = [p for p in everything if p.suffix in (".safetensors", ".json") and p.name != "manifest.json"]
    assert len(read) >= 40
    models.verified(*read)


def test_every_card_states_its_licence():
    folders = [p for p in models.WEIGHTS.iterdir() if p.is_dir()]
    assert len(folders) >= 9 and (models.WEIGHTS.parents[2] / "LICENSE").read_text().startswith("MIT License")
    for folder in folders:
        assert "| licence | MIT" in (folder / "README.md").read_text(encoding="utf-8"), folder.name


@pytest.mark.parametrize("folder", SHIPPED.values())
def test_every_model_has_a_card_made_from_its_measures(folder):
    from utils.training.report import card

    path = models.WEIGHTS / folder
    measured, training = (json.loads((path / f"{x}.json").read_text()) for x in ("measured", "training"))
    config = CONFIGS[folder].__class__(**training["config"])
    assert (path / "README.md").read_text() == card(config, measured, training)
    assert measured["figures"]


def test_the_measures_in_the_cards_are_those_of_the_shipped_weights():
    """A few figures again, on the shipped weights: the card was not written for another model."""
    for name, key in (("attn2l", "second copy"), ("lm", "second copy")):
        model = models.load(name)
        _, second = measure.repeated_losses(lambda t, model=model: model(t), model.cfg.d_vocab, 50)
        (row,) = [row for row in models.measured(name)["figures"] if key in row["figure"]]
        assert second == pytest.approx(row["value"], abs=2e-3)
    hf, tokenizer = models.load_hf(), models.load_tokenizer().backend_tokenizer
    with torch.no_grad():
        found = measure.accuracy(lambda t: hf(t).logits, tokenizer, world.fact_prompts("currency", True))
    assert found == pytest.approx(models.measured("lm")["details"]["facts"]["currency"]["held_out"], abs=0.015)


def test_the_corpus_is_a_data_set():
    text = models.corpus(20)
    assert text.column_names == ["text", "kind"] and len(text) == 20
    rows = models.corpus(100, tokenized=True, context=64)
    assert {len(row) for row in rows["input_ids"]} == {64} and {row[0] for row in rows["input_ids"]} == {0}
    assert models.corpus(5)["text"] != models.corpus(5, seed=10_001)["text"]


# ---- Text becomes the same ids, whatever was called before. ----
TEXTS = ["The capital of France is", "", "Où est la clé? 12 + 30", " a<|endoftext|>b\n\n", "one two " * 300]
DOCUMENTS = world.sample(12, 77)


class Loaded:
    """A model and a tokenizer in each of the forms that the chapters use."""

    def __init__(self):
        self.lm, self.attn = models.load("lm", cls=HookedSAETransformer), models.load("attn2l")
        self.nnsight, self.tokenizer = models.load_nnsight(), models.load_tokenizer()

    def __repr__(self):
        return "the models"  # a failing example is shown with its arguments

    def tokenizers(self):
        return [self.lm.tokenizer, self.attn.tokenizer, self.nnsight.tokenizer, self.tokenizer]

    def ids(self) -> dict[str, list]:
        """What each way from text to ids makes of the same texts."""
        return {
            "encode": [[e.ids for e in world.encode(t, TEXTS)] for t in self.tokenizers()],
            "token_labels": [[x.tolist() for x, _ in world.token_labels(DOCUMENTS, t)] for t in self.tokenizers()],
            "without BOS": [
                [x.tolist() for x, _ in world.token_labels(DOCUMENTS, t, [], bos=False)] for t in self.tokenizers()
            ],
            "rows": [world.rows(DOCUMENTS, t, 64).tolist() for t in self.tokenizers()],
            "is_one_token": [world.tokens.is_one_token(" and", t) for t in self.tokenizers()],
            "corpus": models.corpus(12, tokenized=True)["input_ids"][:],
            "transformers": [t(TEXTS, add_special_tokens=False).input_ids for t in self.tokenizers()],
            "transformer_lens": [m.to_tokens(text)[0].tolist() for m in (self.lm, self.attn) for text in TEXTS],
            "as strings": [self.lm.to_str_tokens(text) for text in TEXTS],
        }

    def changed(self) -> list[str]:
        """The ways that give other ids than on freshly loaded models, each asked for the first time."""
        first, now = first_ids(), self.ids()
        return [way for way in first if now[way] != first[way]]


@pytest.fixture(scope="module")
def loaded():
    return Loaded()


@cache
def first_ids() -> dict[str, list]:
    return Loaded().ids()


def _store(loaded: Loaded) -> None:
    texts = Dataset.from_dict({"text": [document.text for document in DOCUMENTS]})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sae = models.load_sae("resid", models.sae_layers()[0])
        store = ActivationsStore.from_sae(loaded.lm, sae, texts, streaming=False, store_batch_size_prompts=2)
        store.get_batch_tokens()


def _trace(loaded: Loaded) -> None:
    with loaded.nnsight.trace(["The capital", "The capital of France"]):
        loaded.nnsight.lm_head.output.save()


def _load(loaded: Loaded) -> None:
    loaded.lm = models.load("lm", cls=HookedSAETransformer)


CALLS = {
    "one text": lambda x: x.lm.to_tokens("The capital of"),
    "many texts": lambda x: x.lm.to_tokens(["The", "The capital of France"]),
    "many texts, padded left": lambda x: x.attn.to_tokens(["The", "The capital of France"], padding_side="left"),
    "no BOS": lambda x: x.attn.to_tokens("The capital of", prepend_bos=False),
    "strings": lambda x: x.lm.to_str_tokens("The capital of"),
    "forward": lambda x: x.lm(["The", "The capital of France"]),
    "generate": lambda x: x.lm.generate(["The", "The capital of"], max_new_tokens=2, verbose=False),
    "tokenizer": lambda x: [t("The capital of") for t in x.tokenizers()],
    "tokenizer, padded": lambda x: [t(["The", "The capital of"], padding=True) for t in x.tokenizers()],
    "tokenizer, cut": lambda x: [t(TEXTS, truncation=True, max_length=5) for t in x.tokenizers()],
    "tokenizer, special tokens as text": lambda x: [t(TEXTS, split_special_tokens=True) for t in x.tokenizers()],
    "load_tokenizer": lambda x: models.load_tokenizer()(TEXTS, padding="max_length", max_length=9, truncation=True),
    "load": _load,
    "trace": _trace,
    "store": _store,
    "token_labels": lambda x: [world.token_labels(DOCUMENTS, t) for t in x.tokenizers()],
    "corpus": lambda x: models.corpus(12, tokenized=True),
}


@settings(max_examples=12, deadline=None)
@given(calls=st.lists(st.sampled_from(sorted(CALLS)), min_size=1, max_size=6))
def test_any_order_of_calls_leaves_the_ids_as_they_are(loaded, calls):
    for call in calls:
        CALLS[call](loaded)
    assert loaded.changed() == []


def test_all_ways_from_text_to_ids_agree(loaded):
    first = first_ids()
    plain = [e.ids for e in world.encode(loaded.tokenizer, TEXTS)]
    assert first["encode"] == first["transformers"] == [plain] * 4
    n_ctx = [model.cfg.n_ctx for model in (loaded.lm, loaded.attn)]
    assert first["transformer_lens"] == [[0, *ids][:n] for n in n_ctx for ids in plain]
    without, labelled = first["without BOS"], first["token_labels"]
    assert labelled == [[[0, *ids] for ids in without[0]]] * 4
    assert without == [[e.ids for e in world.encode(loaded.tokenizer, [d.text for d in DOCUMENTS])]] * 4


def test_encode_leaves_the_settings_of_a_tokenizer_as_they_were():
    tokenizer = models.load_tokenizer().backend_tokenizer
    tokenizer.enable_padding(length=9, pad_id=3, direction="left")
    tokenizer.enable_truncation(7, stride=1, direction="left")
    tokenizer.encode_special_tokens = True
    before = tokenizer.to_str(), tokenizer.encode_special_tokens
    assert [len(encoding.ids) for encoding in world.encode(tokenizer, ["", "one two " * 50])] == [0, 101]
    assert (tokenizer.to_str(), tokenizer.encode_special_tokens) == before


def test_each_model_has_a_tokenizer_of_its_own(loaded):
    again = models.load("lm"), models.load_nnsight(), models.load_tokenizer()
    backends = [t.backend_tokenizer for t in (*loaded.tokenizers(), again[0].tokenizer, again[1].tokenizer, again[2])]
    assert len({id(backend) for backend in backends}) == len(backends)
