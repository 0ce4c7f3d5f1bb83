"""Other models than the shipped ones: a hub's cache with its real layout, a learner's own folder, and what is wrong."""

import json
import os
import shutil

import fake_hub
import huggingface_hub.constants
import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook
from sae_lens import HookedSAETransformer
from safetensors.torch import load_file, save_file

from utils import models, runtime, show, world
from utils.models import loading, registry
from utils.runtime import device
from utils.workbook import WorkbookError, execute


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    cache = tmp_path_factory.mktemp("hub")
    fake_hub.fill(cache)
    return cache


@pytest.fixture
def hub(filled, monkeypatch):
    """The hub profile over the cache, without network."""
    monkeypatch.setenv("WORKBOOK_MODELS", "hub")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(filled))
    return filled


@pytest.fixture
def damaged(hub, tmp_path, monkeypatch):
    """A copy of the cache that a test may damage."""
    shutil.copytree(hub, tmp_path / "hub", symlinks=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder for a profile file; call it with the file's text."""

    def write(text: str):
        (tmp_path / "mine.toml").write_text(text)
        monkeypatch.setenv("WORKBOOK_MODELS", str(tmp_path / "mine.toml"))
        return tmp_path

    return write


def ids(name: str = "lm"):
    tokenizer = models.load_tokenizer(name)
    return torch.tensor([[world.bos_id(tokenizer), *world.encode(tokenizer, ["The capital of France is"])[0].ids]])


# ---------------------------------------------------------------- the hub's models


def test_gpt2_is_the_same_in_every_library_and_its_text_begins_with_its_own_token(hub, capfd):
    hf, tokens = models.load_hf(), ids()
    assert tokens[0, 0] == len(models.load_tokenizer()) - 1 > 0
    want = hf(tokens).logits.log_softmax(-1)
    for processed in (True, False):
        model = models.load("lm", processed, cls=HookedSAETransformer)
        assert (model(tokens).log_softmax(-1) - want).abs().max() < 1e-4
        assert model.to_tokens("The capital of France is").tolist() == tokens.tolist()
        assert not model.training and not any(p.requires_grad for p in model.parameters())
    out, err = capfd.readouterr()
    assert out == err == ""


def test_a_model_in_transformer_lens_own_form(hub):
    want = fake_hub.attention_only(1, len(models.load_tokenizer("attn1l")), "LN", "standard").eval()
    for processed in (True, False):
        got = models.load("attn1l", processed)
        assert (got(ids("attn1l")).log_softmax(-1) - want(ids("attn1l")).log_softmax(-1)).abs().max() < 1e-4
        assert got.cfg.normalization_type == ("LNPre" if processed else "LN")


def test_weights_of_other_sizes_than_the_profile_says_are_refused(hub):
    with pytest.raises(models.DamagedWeightsError, match=r"attn2l: .* lacks .*W_"):
        models.load("attn2l")


def test_the_released_autoencoders(hub):
    for place in ("resid", "z"):
        sae = models.load_sae(place, 0)
        assert not sae.training and not any(p.requires_grad for p in sae.parameters())
        assert sae.cfg.metadata.hook_name == {"resid": "blocks.0.hook_resid_pre", "z": "blocks.0.attn.hook_z"}[place]
        with pytest.raises(models.HubUnreachableError):
            models.load_sae(place, 1)


def test_text_becomes_the_tokens_of_the_model_at_hand(hub):
    documents, tokenizer = world.sample(12, 77), models.load_tokenizer()
    bos = world.bos_id(tokenizer)
    assert {row[0] for row in world.rows(documents, tokenizer, 32).tolist()} == {bos}
    assert {tokens[0].item() for tokens, _ in world.token_labels(documents, tokenizer)} == {bos}
    rows = models.corpus(12, tokenized=True, context=32)["input_ids"]
    assert {row[0] for row in rows} == {bos} and min(map(min, rows)) >= 0


def test_a_large_vocabulary_keeps_its_ids():
    tokenizer = fake_hub.tokenizer()
    tokenizer.add_tokens([f"<extra {i}>" for i in range(2**15)])
    document = world.Document(f"one <extra {2**15 - 1}>", "facts", [])
    rows = world.rows([document], tokenizer, 3)
    assert rows.min() >= 0 and len(tokenizer) - 1 in world.encode(tokenizer, [document.text])[0].ids


# ---------------------------------------------------------------- chapters on other models


def test_a_chapter_says_whose_models_it_is_about_and_the_small_worlds_stay_on_ours(own, monkeypatch, capsys):
    monkeypatch.setattr(runtime, "running", {})
    monkeypatch.setenv("WORKBOOK_MODELS", "")
    for number in ("05", "09"):
        runtime.settle_models(number)
    assert capsys.readouterr().out == ""
    own('device = "auto"\n[models.lm]\nsource = "gpt2"\n')
    monkeypatch.setenv("WORKBOOK_DEVICE", "")
    monkeypatch.delenv("WORKBOOK_DEVICE")
    runtime.settle_models("05")
    said = capsys.readouterr().out
    assert said.startswith("This run is on the models of WORKBOOK_MODELS=") and said.count("\n") == 1
    assert registry.entry("lm").source == "gpt2"
    runtime.settle_models("09")
    said = capsys.readouterr().out
    assert "runs on the workbook's own models, not on those of" in said and said.count("\n") == 1
    assert runtime.on_own_models() and registry.entry("lm").source == "pico-gpt"
    assert os.environ["WORKBOOK_DEVICE"] == "auto"
    with pytest.raises(ValueError, match="there is no chapter '9'"):
        runtime.settle_models("9")


def test_the_closing_table_lists_what_the_text_says_of_ours_only(hub, monkeypatch):
    said = []
    monkeypatch.setattr("utils.show.claims.display", lambda markdown: said.append(markdown.data))
    monkeypatch.setattr(runtime, "running", runtime.running)
    for number in ("02", "01"):
        runtime.running.clear()
        if number == "02":
            runtime.settle_models(number)
        show.findings()
    assert "of the workbook's own models only:\n\n- Only with the first MLP does" in said[0]
    assert "own models only" not in said[1]


# ---------------------------------------------------------------- damage, and absence of a network


def snapshot(cache, name):
    return fake_hub.repository(cache, name)


def test_weights_under_other_names_are_refused(damaged):
    file = snapshot(damaged, "gpt2") / "model.safetensors"
    save_file({key.replace("attn", "attention"): v for key, v in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(models.DamagedWeightsError, match=r"lm: gpt2 lacks .*attn.*; it has instead .*attention"):
        models.load("lm")
    file = snapshot(damaged, "NeelNanda/Attn_Only_1L512W_C4_Code") / "model_final.pth"
    torch.save({key.replace("W_Q", "W_q"): v for key, v in torch.load(file).items()}, file)
    with pytest.raises(models.DamagedWeightsError, match=r"attn1l: .* lacks blocks.0.attn.W_Q; it has .*W_q"):
        models.load("attn1l")


@pytest.mark.parametrize("file", ["gpt2/model.safetensors", "gpt2/config.json", "gpt2/tokenizer.json"])
@pytest.mark.parametrize("size", [0, 40])
def test_a_file_that_is_cut_off_is_told_from_a_missing_network(damaged, file, size):
    name, file = file.split("/")
    path = snapshot(damaged, name) / file
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(models.DamagedWeightsError, match=f"a file of gpt2 is damaged.*delete it from {damaged}"):
        models.load("lm")


def test_a_pickle_that_is_cut_off(damaged):
    path = snapshot(damaged, "NeelNanda/Attn_Only_1L512W_C4_Code") / "model_final.pth"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(models.DamagedWeightsError, match="is damaged"):
        models.load("attn1l")


def test_what_is_not_in_the_cache_asks_for_a_network(hub):
    with pytest.raises(models.HubUnreachableError, match="connect to the network"):
        models.load("large")


def test_a_tokenizer_costs_no_model(hub, monkeypatch):
    monkeypatch.setattr(loading, "load_hf", None)
    monkeypatch.setattr(loading, "load", None)
    for name in ("lm", "attn2l", "attn1l"):
        assert models.load_tokenizer(name).bos_token == "<|endoftext|>"


# ---------------------------------------------------------------- a profile of one's own


@pytest.mark.parametrize("folder", ["model", "llama-7b", "gemma"])
def test_a_llama_of_ones_own_whatever_its_folder_is_called(own, folder):
    root = own(f'device = "cpu"\n[models.lm]\nsource = "./{folder}"\n')
    hf, tokens = fake_hub.llama(root / folder), ids()
    assert device().type == "cpu" and tokens[0, 0] > 0
    for processed in (True, False):
        model = models.load("lm", processed)
        assert model.cfg.normalization_type == ("RMSPre" if processed else "RMS") and model.cfg.n_key_value_heads == 2
        assert (model(tokens).log_softmax(-1) - hf(tokens).logits.log_softmax(-1)).abs().max() < 1e-4


def test_half_precision_and_a_model_for_nnsight(own):
    root = own('[models.lm]\nsource = "./model"\ndtype = "bfloat16"\n')
    hf, tokens = fake_hub.gpt2(root / "model"), ids()
    model, traced = models.load("lm"), models.load_nnsight()
    assert model.W_E.dtype == torch.bfloat16 == next(traced.parameters()).dtype
    with traced.trace(tokens):
        logits = traced.lm_head.output.save()
    want = hf(tokens).logits.log_softmax(-1)
    assert max((got.float().log_softmax(-1) - want).abs().max() for got in (model(tokens), logits)) < 0.1


def test_weights_of_ones_own_in_transformer_lens_form_and_its_autoencoder(own):
    root = own("")
    words = fake_hub.tokenizer()
    words.save_pretrained(root / "words")
    (root / "two").mkdir()
    want = fake_hub.attention_only(2, len(words), None, "shortformer").eval()
    save_file(want.state_dict(), root / "two" / "weights.safetensors")
    sizes = {key: getattr(want.cfg, key) for key in ("n_layers", "d_model", "n_heads", "d_head", "n_ctx", "d_vocab")}
    lines = [f"{key} = {value}" for key, value in sizes.items()]
    lines += ["attn_only = true", 'normalization_type = "none"', 'positional_embedding_type = "shortformer"']
    shutil.copytree(models.WEIGHTS / "pico-sae-resid-2", root / "sae-2")
    own(
        '[models.attn2l]\nsource = "two"\nweights = "weights.safetensors"\ntokenizer = "words"\n'
        + "\n".join(["[models.attn2l.config]", *lines])
        + '\n[saes.resid]\nsource = "./sae-{layer}"\nlayers = [2, 3]\n'
    )
    model = models.load("attn2l")
    assert torch.equal(model(ids("attn2l")), want(ids("attn2l")))
    assert models.sae_layers() == (2, 3) and models.load_sae("resid", 2).cfg.d_in == 192
    with pytest.raises(ValueError, match="could not be loaded"):
        models.load_sae("resid", 3)
    with pytest.raises(ValueError, match="no model 'lm' .*the known ones are attn2l"):
        models.load("lm")
    with pytest.raises(ValueError, match="choose one of resid"):
        models.sae_layers("z")
    with pytest.raises(ValueError, match="transformer_lens only"):
        models.load_hf("attn2l")


LM = '[models.lm]\nsource = "gpt2"\n'
WRONG = {
    "[models": "can't be read as TOML",
    "model = 3": "unknown entry 'model'",
    'device = "tpu"': "device is 'tpu'",
    "models = 3": "each of models is a table",
    "[models]\nlm = 'gpt2'": "each of models is a table",
    "[models.lm]\nabout = 'x'": r"models\.lm lacks `source`",
    "[models.lm]\nsource = 3": r"models\.lm\.source is 3; it is a text",
    "[models.lm]\nsource = './nowhere'": "there is no folder",
    "[models.lm]\nsource = 'a/b/c'": "there is no folder",
    LM + "dtype = 'int8'": "dtype is 'int8'",
    LM + "layer = 3": r"unknown entry models\.lm\.layer",
    LM + "[models.lm.config]\nd_model = 3": "config needs `weights`",
    "[saes.resid]\nsource = 'x'": "lists layers",
    "[saes.resid]\nsource = 'x'\nlayers = [true]": "lists layers",
    "[saes.resid]\nsource = 'x'\nlayers = 3": "it is a list of layers",
    "\x00": "can't be read as TOML",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_entry_is_one_sentence(own, text):
    own(text)
    with pytest.raises(ValueError, match=WRONG[text]) as problem:
        models.load("lm")
    assert str(problem.value).count("\n") == 0 and "mine.toml" in str(problem.value)


@pytest.mark.parametrize(("named", "said"), [("nowhere.toml", "there is no file"), ("gpt2", "the path of a profile")])
def test_a_profile_that_is_none(monkeypatch, named, said):
    monkeypatch.setenv("WORKBOOK_MODELS", named)
    with pytest.raises(ValueError, match=said):
        models.load("lm")


def test_the_shipped_profile_is_whole_and_a_changed_file_is_read_again(own, monkeypatch):
    monkeypatch.setenv("WORKBOOK_MODELS", "hub")
    assert {*registry.current().models} >= {*registry.EMBEDDED.models}
    assert registry.current().saes.keys() == registry.EMBEDDED.saes.keys()
    own(LM)
    assert registry.entry("lm").source == "gpt2" and device().type == "cpu"
    own(LM.replace("gpt2", "gpt2-medium"))
    assert registry.entry("lm").source == "gpt2-medium"


def test_a_folder_that_lacks_its_weights(own):
    root = own('[models.lm]\nsource = "./model"\n')
    fake_hub.gpt2(root / "model")
    (root / "model" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="could not be loaded"):
        models.load("lm")
    (root / "model" / "config.json").write_text(json.dumps({"model_type": "gpt2"})[:-1])
    with pytest.raises(models.DamagedWeightsError, match="copy it again"):
        models.load("lm")


# ---------------------------------------------------------------- references of other models


def test_nothing_is_recorded_from_weights_that_are_absent_or_random(hub, own, monkeypatch, tmp_path):
    monkeypatch.setattr(execute, "_run", None)
    for profile, said in (
        ("random-0", "needs the real weights, and these are random"),
        ("hub", r"lm predicts a text at \d+\.\d nats a token, where guessing costs 6\.\d"),
    ):
        with pytest.raises(WorkbookError, match=f"^Nothing was recorded: execute PROFILE={profile} .*{said}"):
            execute.execute("04", tmp_path, profile=profile)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(WorkbookError, match="needs the real weights.*connect to the network"):
        execute.execute("04", tmp_path, profile="hub")
    monkeypatch.setenv("WORKBOOK_MODELS", "random-0")  # the variable alone says it, too
    with pytest.raises(WorkbookError, match="these are random"):
        execute.execute("04", tmp_path)


def test_references_of_real_weights_have_a_folder_of_their_own(own, tmp_path, monkeypatch):
    root = own(f'[models.lm]\nsource = "{models.WEIGHTS / "pico-gpt"}"\n')
    monkeypatch.setattr(execute, "_run", lambda notebook, path: notebook.cells[0].update(execution_count=1))
    monkeypatch.setattr(execute, "chapter_names", lambda wanted: ["01_a"])
    monkeypatch.setattr(execute, "settle", list)
    nbformat.write(new_notebook(cells=[new_code_cell("1")]), tmp_path / "01_a.ipynb")
    before = (tmp_path / "01_a.ipynb").read_bytes()
    execute.execute("01", tmp_path, profile=str(root / "mine.toml"))
    assert (tmp_path / "mine" / "01_a.ipynb").exists() and (tmp_path / "01_a.ipynb").read_bytes() == before


def test_what_is_not_recorded_is_run_and_not_compared(monkeypatch, capsys, tmp_path):
    called = []
    monkeypatch.setattr(execute.subprocess, "call", lambda command, **how: called.append((command, how["env"])) or 0)
    monkeypatch.setenv("WORKBOOK_MODELS", "")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert execute.nbval("04", profile="hub") == 0
    assert capsys.readouterr().out == "not recorded on hub: 04_inspection; every cell must run\n"
    ((command, environment),) = called
    assert "--nbval-lax" in command and "--nbval" not in command and environment["WORKBOOK_MODELS"] == "hub"
    assert command[-1] == "solutions/04_inspection.ipynb" and "HF_HUB_OFFLINE" not in environment
    monkeypatch.setattr(execute.references, "folder", lambda profile: execute.SOLUTIONS)  # as if they were recorded
    assert execute.nbval("04", profile="hub") == 0 and "--nbval" in called[1][0]
    assert capsys.readouterr().out == ""
