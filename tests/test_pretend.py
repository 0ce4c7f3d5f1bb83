"""The second device that is the CPU in disguise refuses what a GPU refuses, and computes what the CPU computes.

It is registered with torch once for all, so each case runs in one process of its own.
"""

import json
import os
import subprocess
import sys

import pytest

from utils.workbook import ROOT

BEFORE = """
import numpy as np, torch
import torch.nn.functional as F
import nnsight
from nnsight.intervention import serialization
from utils import pretend

pretend.start()
D = "pretend"
torch.manual_seed(0)
x, ids = torch.randn(3, 4, device=D), torch.tensor([2, 0, 1], device=D)
layer = torch.nn.Linear(4, 5).to(D)
nnsight.register("utils")  # as for a server: what is in the package travels by its source


def unpacked(value):
    return serialization.loads(serialization.dumps(value))
"""
# The faults that a chapter had on a GPU, and their like: each is one forgotten `device=`.
REFUSED = {
    "a product": "x @ torch.randn(4, 2)",
    "a mask": "x.masked_fill(torch.ones(3, 4).tril().bool(), 0.0)",
    "where": "torch.where(torch.arange(4) < 2, x, 0.0)",
    "places for gather": "x.gather(1, torch.zeros(3, 1, dtype=torch.long))",
    "an index of the other device": "torch.randn(3, 4)[ids]",
    "a comparison": "ids == torch.arange(3)",
    "stack": "torch.stack([x[0], torch.zeros(4)])",
    "cat with BOS": "torch.cat([torch.full((1,), 0), ids])",
    "counting": "torch.zeros(3).index_add_(0, ids, torch.ones(3, device=D))",
    "an input to a module": "layer(torch.randn(2, 4))",
    "a module left behind": "torch.nn.Linear(4, 5)(x)",
    "a table's rows": "F.embedding(torch.tensor([0, 2]), x)",
    "adding in place": "torch.zeros(4).add_(x[0])",
    "allclose": "torch.allclose(x, torch.zeros(3, 4))",
    "numpy": "x.numpy()",
    "an array of it": "np.asarray(x)",
    "the CPU's generator": "torch.randn(3, device=D, generator=torch.Generator().manual_seed(0))",
    "positions": "torch.arange(3) + ids",
}
ALLOWED = {
    "a number": "(x * torch.tensor(2.0)).device.type == D",
    "an index on the CPU": "torch.equal(x[torch.tensor([1])].cpu(), x[1:2].cpu())",
    "writing into it": "x.clone().copy_(torch.ones(3, 4)).sum().item() == 12",
    "there and back": "x.cpu().to(D).device.type == D and type(x.cpu()) is torch.Tensor",
    "gradients": "layer(x).sum().backward() is None and layer.weight.grad.device.type == D",
    "new weights": "setattr(layer.bias, 'data', torch.ones(5, device=D)) is None and layer.bias.sum().item() == 5",
    "tolist": "ids.tolist() == [2, 0, 1]",
    "the CPU's random numbers": "torch.equal(x.cpu(), (torch.manual_seed(0), torch.randn(3, 4))[1])",
    "a factory that fills what it was given": "torch.eye(3, 2, device=D).shape == (3, 2)",
    "memory": "x[1:].untyped_storage().data_ptr() == x.untyped_storage().data_ptr() != 0",
    "packing for a server": "(y := unpacked([x])[0]).device.type == D and torch.equal(x.cpu(), y.cpu())",
    "packing what needs a gradient": "unpacked(x.clone().requires_grad_() * 2).requires_grad",
    "packing integers": "unpacked(ids).dtype == torch.int64",
    "packing a part with its whole": "len(serialization.dumps(torch.zeros(9, 999, device=D)[0])) > 4 * 9 * 999",
}
if "WORKBOOK_FULL" in os.environ:  # importing transformer_lens takes three times as long as all else here
    BEFORE += "from utils.models import load\n"
    ALLOWED["a loaded model"] = "torch.allclose(load('attn1l').to(D)(ids[None]).cpu(), load('attn1l')(ids[None].cpu()))"
RUN = """
import json, sys
said = {}
for name, code in json.loads(sys.stdin.read()).items():
    try:
        said[name] = str(eval(code))
    except (RuntimeError, TypeError) as error:
        said[name] = f"{type(error).__name__}: {error}"
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said():
    done = subprocess.run(
        [sys.executable, "-c", BEFORE + RUN],
        input=json.dumps(REFUSED | ALLOWED),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", REFUSED)
def test_a_forgotten_device_is_refused(said, name):
    assert any(word in said[name] for word in ("device", "indices should be", "can't convert")), said[name]


@pytest.mark.parametrize("name", ALLOWED)
def test_what_a_gpu_allows_works(said, name):
    assert said[name] == "True"
