"""The shared views: labels, escaping, claims, circuitsvis without a network."""

import json
import re
import socket

import circuitsvis as cv
import numpy as np
import plotly.express as px
import pytest
import torch

from utils import show


def test_template_suits_light_and_dark():
    layout = px.line(y=[1, 2]).layout.template.layout
    assert layout.paper_bgcolor == "rgba(0,0,0,0)" and layout.plot_bgcolor == "rgba(0,0,0,0)"
    grey = [int(show.GREY[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in grey]
    luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    dark = 0.0055  # JupyterLab's dark ground, #111
    assert 1.05 / (luminance + 0.05) > 3 and (luminance + 0.05) / (dark + 0.05) > 3  # WCAG's bound for large text


def test_heatmap_keeps_repeated_labels_and_halves_the_size():
    figure = show.heatmap(torch.eye(3, dtype=torch.float64), x=["a", " a", "a"], title="t", xaxis="key", yaxis="query")
    assert figure.layout.xaxis.ticktext == ("a", "·a", "a")
    assert figure.data[0].zmid == 0
    assert json.loads(figure.to_json())["data"][0]["z"]["dtype"] == "f4"
    assert show.heatmap(np.eye(2), centre=None).data[0].zmid is None


@pytest.mark.parametrize("call", [lambda: show.heatmap(torch.ones(3)), lambda: show.heatmap(torch.eye(2), x=["a"])])
def test_heatmap_refuses_what_does_not_fit(call):
    with pytest.raises(ValueError, match="shape|labels"):
        call()


def test_token_strip_is_static_and_escaped():
    page = show.token_strip(["<b>", " a", "\n"], [1.0, -2.0, float("nan")], title="<i>").data
    assert "<script" not in page and "&lt;b&gt;" in page and "·a" in page and "↵" in page and "&lt;i&gt;" in page
    assert f"rgba({show.RED_RGB}, 0.75)" in page and f"rgba({show.BLUE_RGB}, 0.38)" in page
    with pytest.raises(ValueError, match="1 values for 2 tokens"):
        show.token_strip(["a", "b"], [1.0])


def test_claim_prints_asserts_and_records(capsys, monkeypatch):
    monkeypatch.setattr(show, "_claims", [])
    shown = []
    monkeypatch.setattr(show, "display", shown.append)
    show.claim("loss, nats", 0.5, 0, 1, control="shuffled 3.1")
    assert "loss, nats: 0.5000   (control: shuffled 3.1)" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="outside 0 to 1"):
        show.claim("other", 2, 0, 1)
    with pytest.raises(AssertionError):
        show.claim("not a number", float("nan"), 0, 1)
    show.claim("loss, nats", 0.6, 0, 1)  # a cell run twice replaces its row
    show.findings()
    assert "| loss, nats | 0.6000 | 0 to 1 |" in shown[0].data and "0.5" not in shown[0].data


@pytest.mark.parametrize(
    "value, text",
    [
        (3, "3"),
        (12_345, "12345"),
        (np.int64(7), "7"),
        (torch.tensor(8), "8"),
        (torch.tensor([9]).sum(), "9"),
        (1.0, "1.000"),
        (0.99996, "1.000"),
        (torch.tensor(2.0), "2.000"),
        (np.float32(0), "0.000"),
        (-144.0, "-144.0"),
        (999.96, "1000.0"),
        (1234.56, "1234.6"),
        (12345.0, "1.234e+04"),
        (3.5e-8, "3.500e-08"),
    ],
)
def test_claim_prints_floats_as_floats_and_counts_as_counts(value, text, capsys, monkeypatch):
    monkeypatch.setattr(show, "_claims", [])
    show.claim("x", value, -1e9, 1e9)
    assert capsys.readouterr().out == f"x: {text}\n"
    shown = []
    monkeypatch.setattr(show, "display", shown.append)
    show.findings()
    assert f"| x | {text} |" in shown[0].data


def test_times_and_memory_are_shown_to_who_runs_the_cell_only(monkeypatch):
    shown = []
    monkeypatch.setattr(show, "display", lambda data, raw: shown.append(data))
    with show.timed("one <step>"):
        pass
    show.measured("memory", "12 MB")
    assert re.fullmatch(r"<div>one &lt;step&gt;: [\d.e-]+ ms</div>", shown[0]["text/html"])
    assert shown[0]["text/plain"] == f"one <step>: {show.MEASURED}"
    assert shown[1] == {"text/html": "<div>memory: 12 MB</div>", "text/plain": f"memory: {show.MEASURED}"}


def test_circuitsvis_shows_without_a_network_and_loads_its_bundle_once(monkeypatch):
    def closed(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", closed)
    pages = []
    monkeypatch.setattr(show, "_display_live", pages.append)
    show._load_circuitsvis.cache_clear()
    pattern = torch.rand(2, 3, 3)
    for _ in range(2):
        show.live(cv.attention.attention_heads(tokens=["a", "b", "c"], attention=pattern))
    assert len(pages) == 3 and len(pages[0]) > 1_000_000
    assert all("unpkg" not in page and len(page) < 10_000 for page in pages[1:])
