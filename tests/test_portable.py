"""The simulation of other machines: noise reaches every rounded result, nothing else, and finds the old faults."""

import json
import random
import threading

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from torch.utils.flop_counter import FlopCounterMode

from utils.workbook import WorkbookError, noise, portable
from utils.workbook.execute import START_SECONDS

DRAW = torch.Generator().manual_seed(0)
A, B, V = (torch.randn(*shape, generator=DRAW) for shape in ((6, 8), (8, 6), (8,)))
SQUARE = A @ A.T + torch.eye(6)
HEADS = torch.randn(2, 3, 4, 5, generator=DRAW)
LABELS = torch.tensor([0, 3, 5, 1, 2, 7])


def backward(of, x=A):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(of(x), x, torch.ones_like(of(x)))[0]


# What the notebooks call → the operator that must have had the noise.
CALLS = {
    "A @ B": (lambda: A @ B, "mm"),
    "a vector": (lambda: A @ V, "addmv"),
    "dot": (lambda: V @ V, "dot"),
    "batched": (lambda: HEADS @ HEADS.mT, "bmm"),
    "addmm": (lambda: torch.addmm(A @ B, A, B), "addmm"),
    "baddbmm": (lambda: torch.baddbmm(HEADS[0], HEADS[0] @ HEADS[0].mT, HEADS[0]), "baddbmm"),
    "F.linear": (lambda: F.linear(A, B.T), "mm"),
    "F.linear, bias": (lambda: F.linear(A, B.T, V[:6]), "addmm"),
    "einsum": (lambda: torch.einsum("ij,jk->ik", A, B), "bmm"),
    "einsum of three": (lambda: torch.einsum("bhqd,bhkd,de->bhqk", HEADS, HEADS, torch.eye(5)), "bmm"),
    "attention": (
        lambda: F.scaled_dot_product_attention(HEADS, HEADS, HEADS, is_causal=True),
        "_scaled_dot_product_flash_attention_for_cpu",
    ),
    "attention, masked": (
        lambda: F.scaled_dot_product_attention(HEADS, HEADS, HEADS, HEADS[..., :4]),
        "_scaled_dot_product_flash_attention_for_cpu",
    ),
    "nn.MultiheadAttention": (lambda: attend(HEADS[0]), "_scaled_dot_product_flash_attention_for_cpu"),
    "convolution": (lambda: F.conv1d(HEADS[0], HEADS[:, 0]), "mkldnn_convolution"),
    "sum": (lambda: A.sum(), "sum"),
    "sum over a dimension": (lambda: A.sum(0), "sum"),
    "mean": (lambda: A.mean(), "mean"),
    "mean over a dimension": (lambda: A.mean(-1, keepdim=True), "mean"),
    "prod": (lambda: A.prod(-1), "prod"),
    "cumsum": (lambda: A.cumsum(-1), "cumsum"),
    "var": (lambda: A.var(-1), "var"),
    "std": (lambda: A.std(), "std"),
    "norm": (lambda: A.norm(dim=-1), "linalg_vector_norm"),
    "cosine similarity": (lambda: F.cosine_similarity(A, A + V, dim=-1), "sum"),
    "cdist": (lambda: torch.cdist(A, B.T), "_cdist_forward"),
    "softmax": (lambda: A.softmax(-1), "_softmax"),
    "log_softmax": (lambda: A.log_softmax(-1), "_log_softmax"),
    "logsumexp": (lambda: A.logsumexp(-1), "logsumexp"),
    "cross entropy": (lambda: F.cross_entropy(A, LABELS), "_log_softmax"),
    "nll": (lambda: F.nll_loss(A, LABELS), "nll_loss_forward"),
    "mse": (lambda: F.mse_loss(A, A + 0.3), "mse_loss"),
    "F.layer_norm": (lambda: F.layer_norm(A, (8,)), "native_layer_norm"),
    "nn.LayerNorm": (lambda: torch.nn.LayerNorm(8)(A).detach(), "native_layer_norm"),
    "exp": (lambda: A.exp(), "exp"),
    "exp in place": (lambda: A.clone().exp_(), "exp"),
    "exp into a result": (lambda: torch.exp(A, out=torch.empty(6, 8)), "exp"),
    "exp, transposed": (lambda: A.T.exp(), "exp"),
    "sqrt": (lambda: SQUARE.diag().sqrt(), "sqrt"),
    "rsqrt": (lambda: SQUARE.diag().rsqrt(), "rsqrt"),
    "log": (lambda: SQUARE.diag().log(), "log"),
    "pow": (lambda: A**3, "pow"),
    "a number to powers": (lambda: 2.5**A, "pow"),
    "a whole number to powers": (lambda: 50**A, "pow"),
    "a number times logarithms": (lambda: torch.xlogy(2, SQUARE.diag()), "xlogy"),
    "tanh": (lambda: A.tanh(), "tanh"),
    "sigmoid": (lambda: A.sigmoid(), "sigmoid"),
    "gelu": (lambda: F.gelu(A), "gelu"),
    "svd": (lambda: torch.linalg.svdvals(A), "_linalg_svd"),
    "eigh": (lambda: torch.linalg.eigvalsh(SQUARE), "_linalg_eigh"),
    "eigvals": (lambda: torch.linalg.eigvals(SQUARE), "_linalg_eigvals"),
    "qr": (lambda: torch.linalg.qr(SQUARE)[0], "linalg_qr"),
    "solve": (lambda: torch.linalg.solve(SQUARE, A), "_linalg_solve_ex"),
    "inverse": (lambda: torch.linalg.inv(SQUARE), "linalg_inv_ex"),
    "backward of a product": (lambda: backward(lambda x: x @ B), "mm"),
    "backward of softmax": (lambda: backward(lambda x: x.softmax(-1) ** 2), "_softmax_backward_data"),
    "backward of log_softmax": (lambda: backward(lambda x: x.log_softmax(-1)), "_log_softmax_backward_data"),
    "backward of LayerNorm": (lambda: backward(lambda x: F.layer_norm(x, (8,)) ** 3), "native_layer_norm_backward"),
    "backward of gelu": (lambda: backward(F.gelu), "gelu_backward"),
    "backward of an embedding": (
        lambda: backward(lambda x: F.embedding(LABELS[:3], x).exp()),
        "embedding_dense_backward",
    ),
    "backward of attention": (
        lambda: backward(lambda x: F.scaled_dot_product_attention(x, x, x), HEADS),
        "_scaled_dot_product_flash_attention_for_cpu_backward",
    ),
    "jacrev": (lambda: torch.func.jacrev(lambda x: (x @ B).tanh())(A), "tanh_backward"),
    "jacrev in chunks": (lambda: torch.func.jacrev(lambda x: (x @ B).tanh(), chunk_size=2)(A), "mm"),
    "vmap": (lambda: torch.func.vmap(lambda x: x.softmax(-1))(A), "_softmax"),
    "bfloat16": (lambda: A.bfloat16() @ B.bfloat16(), "mm"),
    "more values than the pool": (lambda: torch.ones(noise.STRETCH + 5).exp(), "exp"),
}


def attend(x):
    attention = torch.nn.MultiheadAttention(5, 1, batch_first=True).eval()
    with torch.no_grad():
        for i, parameter in enumerate(attention.parameters()):
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view(parameter.shape).roll(i))
        return attention(x, x, x, need_weights=False)[0]


@pytest.fixture(scope="module")
def four_noisy():
    """Name → the results of four calls under noise, and which operators were reached."""
    found = {}
    with noise.noise(seed=1) as counts:
        for name, (call, _) in CALLS.items():
            counts.clear()
            found[name] = [call() for _ in range(4)], dict(counts)
    return found


@pytest.mark.parametrize("name", CALLS)
def test_noise_reaches(name, four_noisy):
    call, operator = CALLS[name]
    plain, ((noisy, *others), counts) = call(), four_noisy[name]
    assert counts.get(operator, 0) > 0, counts
    assert not all(torch.equal(other, plain) for other in others)
    size = noise.SIZE[plain.dtype.to_real()]
    torch.testing.assert_close(noisy, plain, rtol=0, atol=30 * size * plain.abs().max().item())


@pytest.mark.parametrize(
    "name", ["A @ B", "F.linear, bias", "einsum", "attention", "nn.LayerNorm", "sum", "exp in place"]
)
def test_noise_reaches_every_context(name):
    call, operator = CALLS[name]
    with noise.noise(seed=1) as counts:
        for context in (torch.no_grad, torch.inference_mode, FlopCounterMode):
            before = counts[operator]
            with context(display=False) if context is FlopCounterMode else context():
                call()
            assert counts[operator] > before, context
        before = counts[operator]
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
        assert counts[operator] > before, "another thread"


UNTOUCHED = {
    "sum of integers": lambda: LABELS.sum(),
    "count": lambda: (A > 0).sum(-1),
    "cumsum of integers": lambda: LABELS.cumsum(0),
    "order": lambda: A.argsort(-1),
    "largest": lambda: A.max(-1).values,
    "moved values": lambda: torch.einsum("ij->ji", A)[2:].reshape(-1),
    "one rounding": lambda: (A + V) * A / 3 - A,
    "randn": lambda: torch.randn(50, generator=torch.Generator().manual_seed(3)),
    "rand": lambda: torch.rand(50, generator=torch.Generator().manual_seed(3)),
    "randperm": lambda: torch.randperm(50, generator=torch.Generator().manual_seed(3)),
    "bernoulli": lambda: torch.bernoulli(torch.full((50,), 0.4), generator=torch.Generator().manual_seed(3)),
    "multinomial": lambda: torch.multinomial(torch.ones(50), 20, generator=torch.Generator().manual_seed(3)),
    "dropout": lambda: (torch.manual_seed(3), F.dropout(torch.ones(50)))[1],
    "initial weights": lambda: (torch.manual_seed(3), torch.nn.Linear(4, 5).weight.detach())[1],
}


def test_noise_leaves():
    plain = {name: call() for name, call in UNTOUCHED.items()}
    with noise.noise(seed=1):
        for name, call in UNTOUCHED.items():
            assert torch.equal(call(), plain[name]), name


def test_no_generator_of_the_course_moves():
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    with noise.noise(seed=1):
        for call, _ in CALLS.values():
            if call is not CALLS["nn.MultiheadAttention"][0]:  # draws its first weights
                call()
        after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_noise_is_drawn_anew_and_a_seed_is_a_machine():
    def three(seed):
        with noise.noise(seed):
            return [A @ B for _ in range(3)]

    one, again, two = three(1), three(1), three(2)
    assert not torch.equal(one[0], one[1])
    assert all(map(torch.equal, one, again)) and not any(map(torch.equal, one, two))


def test_without_a_gpu_its_setting_says_so(monkeypatch):
    monkeypatch.setattr(portable, "has_gpu", lambda: False)
    with pytest.raises(WorkbookError, match="no GPU here"):
        portable.portable("04", setting="cuda")
    known = []
    monkeypatch.setattr(portable, "run_all", lambda jobs, *_, **__: known.extend(s for s, _ in jobs) or {})
    portable.portable("04")
    assert "pretend" in known and "cuda" not in known


def test_stop_gives_torch_back():
    plain = A @ B
    with noise.noise(seed=1):
        pass
    assert torch.equal(A @ B, plain)


def test_errors_read_the_same():
    with noise.noise(seed=1), pytest.raises(RuntimeError, match=r"shapes cannot be multiplied \(6x8 and 6x8\)"):
        A @ A


# ---------------------------------------------------------------- whole notebooks

NOTEBOOK = {  # cell → (source, must it fail?)
    "start": ("import torch, numpy as np, plotly.graph_objects as go\nx = torch.full((200,), 0.25)", False),
    "a histogram at a border": (
        "go.Figure(go.Bar(y=np.histogram(x.sqrt(), [0, 0.5, 1])[0]), layout=dict(template='none')).show()",
        True,
    ),
    "a count at a border": ("print((x.sqrt() >= 0.5).sum().item(), 'of 200')", True),
    "the author's rounding": (
        "rounded = (x.sqrt() * 0.005).numpy().round(3)\n"
        "go.Figure(go.Scatter(y=rounded), layout=dict(template='none')).show()",
        True,
    ),
    "an exact zero": ("assert (x @ x - x @ x).item() == 0 == (x.exp() - x.exp()).abs().max()", True),
    "a whole number for a float": ("print([f'{p:.4g}' for p in x.sqrt().mul(2 * 0.99995).tolist()])", None),
    "a number": ("print(f'{x.sqrt().mean():.3f} and {(x @ x).item():.2f}')", False),
    "draws": ("torch.manual_seed(0); print(torch.randn(5), torch.randperm(9).tolist())", False),
    "a near zero": ("assert torch.allclose(x @ x, x @ x)", False),
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("portable")
    cells = [new_code_cell(code, id=name.replace(" ", "-").replace("'", "")) for name, (code, _) in NOTEBOOK.items()]
    notebook = new_notebook(cells=cells)
    NotebookClient(notebook, kernel_name="python3", startup_timeout=START_SECONDS).execute()
    nbformat.write(notebook, folder / "old_faults.ipynb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(portable, "SOLUTIONS", folder)
        patch.setattr(portable, "CACHE", folder / "cache")
        known = portable.settings(seeds=1)
        result = portable.run_all([(s, "old_faults") for s in ("noise-1", "hash-7")], known, cores=1)
        yield folder, known, notebook, result


@pytest.mark.parametrize("name", [n for n, (_, fails) in NOTEBOOK.items() if fails is not None])
def test_old_faults_and_only_they_fail_under_noise(name, ran):
    result = ran[3]["noise-1", "old_faults"]
    assert bool(result["cells"][name.replace(" ", "-").replace("'", "")]) == NOTEBOOK[name][1], result["cells"]
    assert result["noisy_results"] > 0


def test_printed_digits_change_under_noise(ran):
    id_ = "a-whole-number-for-a-float"
    recorded = next(c for c in ran[2].cells if c.id == id_).outputs[0].text
    assert ran[3]["noise-1", "old_faults"]["outputs"][id_][0]["text"] != recorded


def test_same_machine_agrees(ran):
    assert not portable.failures(ran[3]["hash-7", "old_faults"])


def test_report_names_cell_and_first_difference(ran):
    lines = portable.report(ran[3])
    assert lines[1].split() == ["setting", "|", "old"] and lines[2].split() == ["noise-1", "|", "4"]
    assert any(line.startswith("old_faults under noise-1, an-exact-zero: AssertionError") for line in lines)
    assert any("the-authors-rounding: output 0 (figure).data[0].y" in line for line in lines)


def test_a_result_is_kept_until_what_it_depends_on_changes(ran, monkeypatch):
    folder, known, _, results = ran
    monkeypatch.setattr(portable, "run", lambda *_: pytest.fail("ran again"))
    assert portable.run_all(list(results), known, cores=1) == results
    path = folder / "old_faults.ipynb"
    before = path.read_text()
    path.write_text(before + "\n")
    assert portable.cached("hash-7", "old_faults", known["hash-7"]) is None
    path.write_text(before)
    assert portable.cached("hash-7", "old_faults", known["hash-7"] | {"PYTHONHASHSEED": "8"}) is None
    kept = folder / "cache" / "hash-7" / "old_faults.json"
    whole = kept.read_text()
    kept.write_text(whole[:50])
    assert portable.cached("hash-7", "old_faults", known["hash-7"]) is None
    kept.write_text(whole)
    assert portable.cached("hash-7", "old_faults", known["hash-7"]) == json.loads(whole)


def test_unknown_setting_is_named():
    with pytest.raises(WorkbookError, match="no setting 'noize'.*noise-1.*cpu-default"):
        portable.portable(setting="noize")


# ---------------------------------------------------------------- how far numbers move


def outputs(printed, y, count=3, label="a"):
    figure = {"data": [{"y": y, "name": label}], "layout": {}}
    text = f"{label} loss {printed}, {count} heads\n"
    return [
        {"output_type": "stream", "name": "stdout", "text": text},
        {"output_type": "display_data", "data": {"application/vnd.plotly.v1+json": figure}},
    ]


def test_spread_names_what_moves_and_how_far():
    runs = [{"c": outputs(0.51, [1.0, 2.2])}, {"c": outputs(0.5, [1.0, 1.9], count=5)}]
    loss, heads, array = portable.spread_rows(runs, {"c": outputs(0.5, [1.0, 2.0]), "d": []})
    assert (loss["where"], loss["recorded"], loss["min"], loss["max"]) == (
        "output 0 (printed text) line 1, number 1",
        0.5,
        0.5,
        0.51,
    )
    assert loss["atol"] == pytest.approx(0.03) and loss["rtol"] == pytest.approx(0.06)
    assert (heads["recorded"], heads["max"], heads["atol"], heads["rtol"]) == (3, 5, 6, 0)
    assert array["where"] == "output 1 (figure).data[0].y, element 1 of 2"
    assert (array["min"], array["max"]) == (1.9, 2.2) and array["rtol"] == pytest.approx(0.3)


def test_spread_leaves_out_what_holds_and_what_reads_otherwise():
    runs = [{"c": outputs(0.5001, [1.0, 2.001])}, {"c": outputs(0.7, [1.0, 2.0, 3.0], label="b")}]
    assert not portable.spread_rows(runs, {"c": outputs(0.5, [1.0, 2.0])})


def test_spread_of_a_notebook(ran):
    runs = [result["outputs"] for result in ran[3].values()]
    recorded = {c.id: c.outputs for c in ran[2].cells}
    rows = portable.spread_rows(runs, recorded)
    assert {r["cell"] for r in rows} == {
        "a-histogram-at-a-border",
        "a-count-at-a-border",
        "the-authors-rounding",
    }
