"""Training: what a step sees, checkpoints that are whole or not used, resuming, and the formats that come out."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

from utils.training import measure, processes
from utils.training.__main__ import main
from utils.training.architectures import AttentionOnly, build, hooked_config, waves
from utils.training.config import CONFIGS, config, smoke
from utils.training.data import Batches, repeated_rows
from utils.training.export import chosen_steps, export
from utils.training.loop import Run, learning_rate, read_checkpoint, snapshot_steps, write_checkpoint
from utils.training.smoke import run_smoke
from utils.workbook import ROOT
from utils.world import train_tokenizer
from utils.world.tokens import save_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(512, n_documents=300)


@pytest.fixture
def tiny():
    return dataclasses.replace(smoke(CONFIGS["pico-attn-2l"]), steps=12, evaluate_every=4, save_every=4)


@pytest.mark.parametrize("name", ["pico-attn-2l", *(["pico-gpt"] if "WORKBOOK_FULL" in os.environ else [])])
def test_the_loss_falls_and_a_resumed_run_equals_a_whole_one(name, capsys):
    assert run_smoke(CONFIGS[name])
    assert "the same weights" in capsys.readouterr().out


def test_batches_are_a_function_of_the_step(tiny, tokenizer):
    a, b = Batches(tiny, tokenizer), Batches(tiny, tokenizer)
    later = b.batch(40)  # another shard, asked for first
    assert torch.equal(a.batch(3), b.batch(3)) and torch.equal(a.batch(40), later)
    assert not torch.equal(a.batch(3), a.batch(4))
    assert a.batch(0).shape == (tiny.batch_rows, tiny.n_ctx)
    with pytest.raises(ValueError, match="documents_per_shard"):
        Batches(dataclasses.replace(tiny, documents_per_shard=5), tokenizer)


def test_repeated_rows_repeat_and_differ_from_those_measured(tiny):
    rows = repeated_rows(20, tiny, seed=5)
    assert rows.shape == (20, tiny.n_ctx) and (rows[:, 0] == 0).all()
    again = 0
    for row in rows.tolist():
        ends = [i for i, token in enumerate(row) if token == 0] + [len(row)]
        for start, end in zip(ends, ends[1:], strict=False):
            passage = row[start + 1 : end]
            again += any(passage[:k] == passage[k : 2 * k] for k in range(1, len(passage) // 2 + 1))
    assert again >= 20


def test_the_learning_rate_rises_stays_falls_and_changes():
    c = dataclasses.replace(
        CONFIGS["pico-gpt"], steps=1000, warmup=100, decay=0.25, learning_rate=1.0, changes=((600, 0.5, 0.1),)
    )
    rates = [learning_rate(c, step) for step in range(1000)]
    assert rates[0] == 0.01 and rates[100] == rates[599] == 1.0 and rates[600] == rates[749] == 0.5
    assert rates[999] == pytest.approx(0.002) and min(rates) > 0


def test_a_restart_begins_the_rate_anew_and_a_mix_holds_from_its_step_on():
    c = dataclasses.replace(
        CONFIGS["pico-gpt"],
        steps=2000,
        restarts=(1000,),
        warmup=100,
        decay=0.25,
        learning_rate=1.0,
        changes=(),
        mixes=((500, (("facts", 9.0),)), (1500, ())),
    )
    rates = [learning_rate(c, step) for step in range(2000)]
    assert rates[999] == pytest.approx(0.004) and rates[1000] == 0.01 and rates[1100] == rates[1749] == 1.0
    assert rates[1999] == pytest.approx(0.004) and min(rates) > 0
    assert c.weights(499) is None and c.weights(500) == {"facts": 9.0} and c.weights(1500) == {}


def test_an_unknown_model_is_refused(capsys):
    with pytest.raises(ValueError, match="pico-attn-1l"):
        config("pico")
    assert main(["train", "pico"]) == 2
    assert "choose one of pico-gpt" in capsys.readouterr().err


# ---- Checkpoints. ----
def test_a_damaged_checkpoint_is_never_used(tmp_path):
    path = tmp_path / "state.ckpt"
    assert read_checkpoint(path) is None
    write_checkpoint({"step": 1, "x": torch.ones(1000)}, path)
    write_checkpoint({"step": 2, "x": torch.ones(1000)}, path)
    assert read_checkpoint(path)["step"] == 2
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match="checksum differs"):
        assert read_checkpoint(path)["step"] == 1
    damaged = bytearray(whole)
    damaged[-100] ^= 1
    path.write_bytes(damaged)
    (tmp_path / "state.ckpt.previous").unlink()
    with pytest.warns(UserWarning, match="checksum differs"):
        assert read_checkpoint(path) is None


def test_a_half_written_checkpoint_is_never_resumed(tmp_path, tiny, tokenizer, monkeypatch):
    run = Run(tiny, tokenizer, tmp_path)
    run.train(until=4)
    # Killed while writing the next one: only the temporary file is half there.
    (tmp_path / "state.ckpt.part").write_bytes(b"half")
    assert Run(tiny, tokenizer, tmp_path).step == 4
    # Killed between the two renames: the newest is gone, the one before is whole.
    (tmp_path / "state.ckpt").rename(tmp_path / "state.ckpt.previous")
    assert Run(tiny, tokenizer, tmp_path).step == 4


def test_metrics_after_the_checkpoint_are_written_once(tmp_path, tiny, tokenizer):
    tiny = dataclasses.replace(tiny, save_every=8)
    Run(tiny, tokenizer, tmp_path).train(until=7)  # measured at 4, not saved: begins anew
    run = Run(tiny, tokenizer, tmp_path)
    assert run.step == 0
    run.train()
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == [4, 8, 12]


# ---- Several processes. ----
TWO = """
import dataclasses, sys
from tokenizers import Tokenizer
from utils.training import loop
from utils.training.config import CONFIGS, smoke
from utils.training.loop import Run

loop.autocasts = lambda where: False  # bfloat16 rounds a half batch otherwise than a whole one
tiny = dataclasses.replace(smoke(CONFIGS["pico-gpt"]), steps=6, evaluate_every=2, save_every=2, learning_rate=2e-3)
tokenizer = Tokenizer.from_file(sys.argv[1])
Run(tiny, tokenizer, sys.argv[2]).train(until=3)
run = Run(tiny, tokenizer, sys.argv[2])
assert run.step == 2, run.step
run.train()
"""


@pytest.mark.skipif(not os.environ.get("WORKBOOK_FULL"), reason="a minute: in make test-full")
def test_two_processes_train_as_one(tmp_path, tokenizer):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "two.py").write_text(TWO)
    arguments = [str(tmp_path / "two.py"), str(tmp_path / "tokenizer.json")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, command in (("one", []), ("two", torchrun)):
        command = [sys.executable, *command, *arguments, str(tmp_path / name)]
        done = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [m["step"] for m in one] == [m["step"] for m in two] == [2, 4, 6]
    for a, b in zip(one, two, strict=True):
        for key in ("training_loss", "validation_loss", "repeat_first", "repeat_second"):
            assert abs(a[key] - b[key]) < 1e-4 + 1e-9, (key, a, b)  # they are rounded to 1e-4


def test_a_batch_that_cannot_be_shared_evenly_is_refused(monkeypatch):
    monkeypatch.setattr(processes.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(processes.dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(processes.dist, "get_rank", lambda: 1)
    assert processes.share(torch.arange(6)[:, None]).flatten().tolist() == [1, 4]
    with pytest.raises(ValueError, match="8 rows can't be shared evenly by 3 processes"):
        processes.share(torch.zeros(8, 2))


# ---- What comes out. ----
def test_the_trained_network_is_the_hooked_transformer():
    c = smoke(CONFIGS["pico-attn-2l"])
    torch.manual_seed(1)
    network = build(c)
    hooked = HookedTransformer(HookedTransformerConfig(**hooked_config(c)))
    state = network.hooked_state()
    state |= {k: torch.zeros_like(p) for k, p in hooked.named_parameters() if k not in state}
    hooked.load_and_process_state_dict(
        state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    tokens = torch.randint(0, c.vocabulary_size, (3, 20))
    with torch.no_grad():
        torch.testing.assert_close(network(tokens), hooked(tokens), atol=1e-4, rtol=1e-4)
        _, cache = hooked.run_with_cache(tokens := torch.cat([torch.zeros(1, 1).long(), *2 * [tokens[:1]]], dim=1))
    scores = measure.head_scores(network.hooked_state(), c, half=20, n=2)
    assert len(scores["previous"]) == 2 and len(scores["induction"][0]) == c.n_heads
    # The same scores, read from transformer_lens's patterns.
    repeated = measure.repeated_tokens(2, 20, c.vocabulary_size, measure.REPEAT_SEED)
    _, cache = hooked.run_with_cache(repeated)
    for layer in range(2):
        pattern = cache["pattern", layer]
        want = pattern.diagonal(-1, -2, -1).mean((0, 2))
        torch.testing.assert_close(torch.tensor(scores["previous"][layer]), want, atol=1e-3, rtol=0)
        want = pattern[:, :, range(21, 41), range(2, 22)].mean((0, 2))
        torch.testing.assert_close(torch.tensor(scores["induction"][layer]), want, atol=1e-3, rtol=0)


def test_positions_start_as_waves_of_the_given_size():
    table = waves(64, 32, 0.5)
    assert table.shape == (64, 32)
    assert table.pow(2).mean().sqrt() == pytest.approx(0.5, rel=1e-5)


def test_an_unfinished_run_can_be_exported(tmp_path, tiny, tokenizer):
    save_tokenizer(tokenizer, str(tmp_path / "tokenizer"), 48)
    with pytest.raises(FileNotFoundError, match="make models MODEL="):
        export(tiny, tmp_path / "none", tmp_path / "out", tmp_path / "tokenizer")
    Run(tiny, tokenizer, tmp_path / "run").train(until=8)
    export(tiny, tmp_path / "run", tmp_path / "out", tmp_path / "tokenizer")
    summary = json.loads((tmp_path / "out" / "training.json").read_text())
    assert summary["steps"] == 8 and len(summary["metrics"]) == 2
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert len(list((tmp_path / "out" / "checkpoints").glob("step_*.safetensors"))) >= 4


def test_checkpoints_are_chosen_densely_where_the_loss_falls():
    metrics = [
        {"step": step, "repeat_first": 8.0, "repeat_second": 8.0 if step < 500 else 1.0 if step > 600 else 4.0}
        for step in range(50, 1001, 50)
    ]
    available = [step for step in snapshot_steps(1000) if step < 1000]
    steps = chosen_steps(metrics, available, n=9)
    assert len(set(steps)) == 9 and steps[0] == 0
    assert sum(430 <= step <= 660 for step in steps) >= 4


# ---- Measuring. ----
def test_measures_tell_a_perfect_model_from_one_that_guesses(tokenizer):
    vocabulary = tokenizer.get_vocab_size()

    def guess(tokens):
        return torch.zeros(*tokens.shape, vocabulary)

    def copycat(tokens):  # knows that what follows stood `half` places before
        half = (tokens.shape[1] - 1) // 2
        logits = torch.zeros(*tokens.shape, vocabulary)
        for i in range(half, tokens.shape[1] - 1):
            logits[torch.arange(len(tokens)), i, tokens[:, i + 1 - half]] = 50.0
        return logits

    first, second = measure.repeated_losses(guess, vocabulary, 10, 4)
    assert first == second == pytest.approx(math.log(vocabulary), rel=1e-4)
    first, second = measure.repeated_losses(copycat, vocabulary, 10, 4)
    assert first == pytest.approx(math.log(vocabulary), rel=1e-4) and second < 1e-3

    prompts = [("- hot ->", " cold"), ("- big ->", " small")]
    answers = [tokenizer.encode(answer).ids[0] for _, answer in prompts]

    def knows_the_first(tokens):
        logits = torch.zeros(*tokens.shape, vocabulary)
        logits[..., answers[0]] = 1.0
        return logits

    assert measure.accuracy(knows_the_first, tokenizer, prompts) == 0.5


def test_padding_changes_no_answer(tokenizer):
    c = smoke(CONFIGS["pico-gpt"])
    torch.manual_seed(0)
    network = build(c).eval()
    prompts = ["When Mary", "When Mary and John went to the store, John gave a book to"]
    together = measure.answer_logits(network, tokenizer, prompts)
    alone = torch.cat([measure.answer_logits(network, tokenizer, [prompt]) for prompt in prompts])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_samples_end_where_the_model_ends_them(tokenizer):
    torch.manual_seed(0)
    model = build(smoke(CONFIGS["pico-gpt"])).model.eval()
    with torch.no_grad():
        # Whatever was said, the bias of the last LayerNorm points to one token.
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(1e6 * model.transformer.wte.weight[300])
        assert measure.samples(model, tokenizer, n=2, context=10) == [(tokenizer.decode([300] * 9), True)] * 2
        model.transformer.ln_f.bias.copy_(1e6 * model.transformer.wte.weight[0])
        assert measure.samples(model, tokenizer, n=2, context=10) == [("", False)] * 2


def test_copying_is_perfect_for_an_identity_and_not_for_noise():
    torch.manual_seed(0)
    d, v = 24, 20
    state = {"embed.W_E": torch.eye(v, d), "unembed.W_U": torch.eye(d, v)}
    state |= {"blocks.0.attn.W_V": torch.eye(d).repeat(2, 1, 1), "blocks.0.attn.W_O": torch.eye(d).repeat(2, 1, 1)}
    state["blocks.0.attn.W_V"][1] = torch.randn(d, d)
    assert measure.copying_accuracy(state, 0, [0]) == 1.0
    assert measure.copying_accuracy(state, 0, [1]) < 0.3
    assert isinstance(build(smoke(CONFIGS["pico-attn-1l"])), AttentionOnly)
