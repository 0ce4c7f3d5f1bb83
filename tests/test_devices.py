"""A forgotten `device=` is found without a GPU: on the device that is the CPU in disguise a check passes its own
solution, and refuses it with one `device=` taken out, by rule, wherever there is one that a GPU would miss.

The device is registered with torch once for all, so each case runs in one process of its own.
"""

import json
import os
import subprocess
import sys

import pytest

from utils.workbook import ROOT

# No fault on a GPU either: an index may lie on the CPU.
ONLY_AN_INDEX = {
    ("utils.speculation.accept_drafted", "torch.arange(batch)"),
    ("utils.sae_causes.logits_to_ave_logit_diff", "torch.arange(len(logits))"),
    ("utils.ioi_circuit.attention_to_role", "torch.arange(len(query))"),
    ("utils.transcoders.k_sparse_f1", "torch.arange(labels.shape[1])"),
}
# These have places enough for `make test`; all the others take minutes.
SAMPLE = ["utils.transformer.Attention", "utils.sampling.sample_tokens", "utils.kv_cache.KeyValueCache"]
SAMPLE += ["utils.sampling.Beams", "utils.speculation.accept_drafted", "utils.inspection.best_f1"]
SAMPLE += ["utils.superposition.interference", "utils.superposition.generate_uncorrelated_features"]
TARGETS = None if "WORKBOOK_FULL" in os.environ else SAMPLE
PLANT = """
import json, sys
from utils.checks import engine
from utils.workbook import mutants

engine.SECONDS = 300  # on a busy machine
asked = json.loads(sys.argv[1])
for task in mutants.tasks():
    if asked and task.target not in asked:
        continue
    planted = [m for m in task.mutants if m.rule == "dropped keyword" and m.change.startswith("without device=:")]
    for name, answer in [("the solution", task.exercise.solution)] * bool(planted) + [
        (f"line {m.line}, {m.change}", mutants.built(task, m)) for m in planted
    ]:
        verdict = task.exercise.verdict(answer, brief=name != "the solution")
        print(json.dumps([task.target, name, verdict.state, verdict.says]))
"""
DRAW = """
import torch
from utils.checks.compare import difference
from utils.checks.devices import answering, drawn
from utils.runtime import device

place = device()
torch.manual_seed(0)
plain = torch.randn(3)
torch.manual_seed(0)
with drawn() as mode:
    x = torch.randn(3, requires_grad=True)
    assert x.device == torch.zeros(1).to(place).device and x.is_leaf and x.requires_grad
    assert torch.equal(x.detach().cpu(), plain)
    assert torch.zeros(2, device="cpu").device.type == "cpu"
    with answering(mode):
        with answering(mode):
            assert torch.arange(3).device.type == "cpu"
        assert torch.arange(3).device.type == "cpu"
    assert torch.tensor([1]).device.type == place.type
assert torch.arange(3).device.type == "cpu"

there, here = torch.ones(3).to(place), torch.ones(3)
assert "lies on cpu, expected on pretend: is a `device=` missing?" in difference(here, there)
assert "lies on pretend, expected on cpu: .cpu() takes it there" in difference(there, here)
assert difference({"x": [here]}, {"x": [there]}).startswith("at key 'x': item 0: lies on cpu")
assert difference(there, there) is difference(here.sum(), there.sum()) is None
assert difference([1.0, 1.0, 1.0], there) is None
"""


def on_the_pretended_device(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "WORKBOOK_DEVICE": "pretend"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_a_check_draws_lies_on_the_device_and_what_an_answer_makes_where_it_puts_it():
    on_the_pretended_device(DRAW)


@pytest.fixture(scope="module")
def verdicts():
    said = on_the_pretended_device(PLANT, json.dumps(TARGETS))
    return [json.loads(line) for line in said.splitlines() if line.startswith('["utils.')]


def test_every_device_taken_out_of_a_solution_is_found(verdicts):
    solutions = [v for v in verdicts if v[1] == "the solution"]
    planted = [v for v in verdicts if v[1] != "the solution"]
    print(f"{sum(v[2] == 'wrong' for v in planted)} of {len(planted)} planted faults found")
    assert [v for v in solutions if v[2] != "solved"] == []
    missed = {(v[0], v[1].partition(" → ")[2]) for v in planted if v[2] != "wrong"}
    assert missed == {place for place in ONLY_AN_INDEX if TARGETS is None or place[0] in TARGETS}
    assert len(planted) - len(missed) >= 10
