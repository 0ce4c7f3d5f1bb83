"""`make random-control`: shuffled models, claims written down whatever they come to, and what is a fault."""

import json
from dataclasses import replace

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook
from safetensors.torch import load_file, save_file

from utils.models import files
from utils.models.shuffled import shuffled
from utils.workbook import WorkbookError, control
from utils.workbook.chapters import table

ROW = next(row for row in table() if row.number == "04")


@pytest.fixture
def weights(tmp_path):
    """A folder of weights as they are shipped: a model, a training curve, a manifest."""
    root = tmp_path / "weights"
    (root / "pico").mkdir(parents=True)
    torch.manual_seed(0)
    tensors = {"W": torch.randn(20, 3), "ln": torch.rand(20) + 1, "steps": torch.arange(9)}
    save_file(tensors, root / "pico" / "model.safetensors", {"format": "pt"})
    rows = [{"step": k, "tokens": 8 * k, "loss": 9.0 - k, "induction": [[k / 9]]} for k in range(9)]
    (root / "pico" / "training.json").write_text(json.dumps({"steps": 9, "metrics": rows}))
    files.write_manifest(root)
    return root


def test_shuffled_weights_keep_their_numbers_and_nothing_else(weights, tmp_path):
    made = [shuffled(seed, weights, tmp_path / f"random-{seed}") for seed in (0, 1)]
    ours = load_file(weights / "pico" / "model.safetensors")
    theirs = [load_file(root / "pico" / "model.safetensors") for root in made]
    for key in ("W", "ln"):
        assert not torch.equal(theirs[0][key], ours[key]) and not torch.equal(theirs[0][key], theirs[1][key])
        for mixed in theirs:
            assert torch.equal(mixed[key].flatten().sort().values, ours[key].flatten().sort().values)
    assert torch.equal(theirs[0]["steps"], ours["steps"])
    curve = json.loads((made[0] / "pico" / "training.json").read_text())["metrics"]
    assert [row["tokens"] for row in curve] == [8 * k for k in range(9)]
    assert [row["loss"] for row in curve] != [9.0 - k for k in range(9)]
    assert all(row["induction"] == [[(9 - row["loss"]) / 9]] for row in curve)  # a state moves as a whole
    files.verified(made[0] / "pico" / "model.safetensors", root=made[0])
    (made[0] / "stays").write_text("")
    assert (shuffled(0, weights, tmp_path / "random-0") / "stays").exists()  # it is made once


CELLS = {
    "claims": (
        "import torch\nimport utils.show as show\nfrom utils.models import load\n"
        "from utils.runtime import settle_models\n"
        'settle_models("09")\nmodel = load("attn1l")\n'
        'show.claim("is a number", 1.0, 0, 2, control={"none": 5})\n'
        'show.claim("learned by head 3", model.W_E.sum(), 1e6, 2e6, control={"none": 5})\n'
        'show.claim("none found", torch.zeros(0), 0, 2, control={"none": []})'
    ),
    "check-x": "x = check(x)",
    "raises": 'show.claim("largest", max([]), 0, 2, control={"none": 5})',
    "goes on": 'show.claim("still here", float("nan"), 0, 2, control={"none": 5})',
}


def test_a_run_reaches_every_claim_or_says_which_it_does_not(tmp_path, monkeypatch, capsys):
    notebook = new_notebook(cells=[new_code_cell(code, id=id.replace(" ", "-")) for id, code in CELLS.items()])
    nbformat.write(notebook, tmp_path / ROW.file)
    monkeypatch.setattr(control, "SOLUTIONS", tmp_path)
    reasons = tmp_path / "control.toml"
    monkeypatch.setattr(control, "LIST", reasons)
    monkeypatch.setattr(control, "listed", lambda read=control.listed: read(reasons))
    assert control.control("04", (0,), [ROW], tmp_path / "results") == 2
    said = capsys.readouterr().out
    assert "04, seed 0: 3 cells, 1 raised, 1 of them with claims; 4 claims reached, 1 hold" in said
    assert "cell raises: ValueError: max()" in said and "random models make this claim true: is a number" in said
    result = json.loads((tmp_path / "results" / f"{ROW.name}-0.json").read_text())
    assert result["unreached"] == ["raises"] and result["claims"][2][1] == "nothing to measure"
    monkeypatch.setattr(control, "run_chapter", None)  # what is there is not run again
    reasons.write_text('[[claim]]\nchapter = "04"\nwhat = "is a number"\nwhy = "it is one"\n')
    assert control.control("04", (0,), [ROW], tmp_path / "results") == 1
    with pytest.raises(WorkbookError, match="There is no chapter '4'"):
        control.control("4", (0,), [ROW], tmp_path / "results")


def test_a_list_too_long_or_without_reasons_is_refused(tmp_path):
    file = tmp_path / "control.toml"
    row = '[[claim]]\nchapter = "04"\nwhat = "head {} of 12"\nwhy = "{}"\n'
    file.write_text("".join(row.format(k, "so") for k in range(control.MOST)))
    assert control.listed(file) == {("04", "head # of #"): "so"}
    file.write_text(file.read_text() + row.format(9, "so"))
    with pytest.raises(WorkbookError, match=f"{control.MOST} are the most"):
        control.listed(file)
    file.write_text(row.format(1, ""))
    with pytest.raises(WorkbookError, match="needs `why`"):
        control.listed(file)


def test_a_change_of_the_notebook_or_its_module_is_run_anew(tmp_path):
    path = tmp_path / ROW.file
    nbformat.write(new_notebook(cells=[new_code_cell("x = 1")]), path)
    before = control.digest_of(ROW, path)
    nbformat.write(new_notebook(cells=[new_code_cell("x = 2")]), path)
    assert control.digest_of(replace(ROW), path) != before
