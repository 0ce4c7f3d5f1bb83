"""`make gpu`: which parts it runs where, what it refuses, and what it says of a part that failed."""

import sys

import pytest

from utils.workbook import WorkbookError, gpu


def test_without_a_gpu_it_says_how_to_go_on(monkeypatch):
    monkeypatch.setattr(gpu, "has_gpu", lambda: False)
    with pytest.raises(WorkbookError, match="no GPU here: make gpu DEVICE=pretend"):
        gpu.parts("cuda", "embedded")
    for device, models in (("tpu", "embedded"), ("cpu", "mine")):
        with pytest.raises(WorkbookError, match="DEVICE is one of cuda, pretend, cpu, MODELS one of embedded, hub"):
            gpu.parts(device, models)


def test_the_parts_are_compared_run_through_or_left_out(monkeypatch):
    monkeypatch.setattr(gpu, "has_gpu", lambda: True)
    on_gpu = gpu.parts("cuda", "embedded")
    assert list(on_gpu) == ["notebooks and checks, compared", "unit tests"]
    assert on_gpu["unit tests"][1]["WORKBOOK_DEVICE"] == "cuda"
    assert list(gpu.parts("pretend", "embedded")) == ["notebooks and checks, compared"]
    assert "01" in gpu.parts("cpu", "embedded", "01")["notebooks and checks, compared"][0]
    (command, environment), *more = gpu.parts("cuda", "hub", "01").values()
    assert "--nbval-lax" in command and environment["WORKBOOK_MODELS"] == "hub" and not more
    assert command[-1].endswith("01_tokenization.ipynb") and "HF_HUB_OFFLINE" not in environment


def test_a_part_that_fails_is_named(monkeypatch, capsys):
    fails = ([sys.executable, "-c", "raise SystemExit(3)"], {})
    monkeypatch.setattr(gpu, "parts", lambda *_: {"one": fails, "two": ([sys.executable, "-c", ""], {})})
    assert gpu.gpu("cpu") == 1
    said = capsys.readouterr().out.strip().splitlines()
    assert said[0].startswith("one, embedded on cpu:") and said[0].endswith("FAILED")
    assert said[1].endswith("passed")
