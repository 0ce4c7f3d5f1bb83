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
from utils.show import claims, drawings


def test_template_suits_light_and_dark():
    layout = px.line(y=[1, 2]).layout.template.layout
    assert layout.paper_bgcolor == "rgba(0,0,0,0)" and layout.plot_bgcolor == "rgba(0,0,0,0)"
    grey = [int(show.GREY[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in grey]
    luminance = sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
    dark = 0.0055  # JupyterLab's dark ground, #111
    assert 1.05 / (luminance + 0.05) > 4 and (luminance + 0.05) / (dark + 0.05) > 4  # 4.35 at most


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
    assert f"rgba({show.RED_RGB}, 0.750)" in page and f"rgba({show.BLUE_RGB}, 0.375)" in page
    with pytest.raises(ValueError, match="1 values for 2 tokens"):
        show.token_strip(["a", "b"], [1.0])


@pytest.fixture
def no_claims(monkeypatch):
    monkeypatch.setattr(claims, "_claims", [])


def test_claims_bounds_are_met_to_single_precision(no_claims):
    show.claim("a mean of ones, on another machine", 1 + 2**-23, 0.5, 1, control={"none": 0})
    for value, low, high in ((1.001, 0.5, 1), (1e-9, 0, 0), (0.4999, 0.5, 1)):
        with pytest.raises(AssertionError, match="outside"):
            show.claim("a share", value, low, high, control={"none": -1})


def test_claim_prints_asserts_and_records(capsys, monkeypatch, no_claims):
    shown = []
    monkeypatch.setattr(claims, "display", shown.append)
    show.claim("loss, nats", 0.5, 0, 1, control={"shuffled": 3.1})
    assert "loss, nats: 0.5000   (control: shuffled: 3.10)" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="outside 0 to 1"):
        show.claim("other", 2, 0, 1, control={"none": -1})
    with pytest.raises(AssertionError):
        show.claim("not a number", float("nan"), 0, 1, control={"none": -1})
    show.claim("loss, nats", 0.6, 0, 1, control={"a": 3, "b": 4})  # a cell run twice replaces its row
    show.findings()
    assert "| loss, nats | 0.6000 | 0 to 1 | a: 3, b: 4 |" in shown[0].data and "0.5" not in shown[0].data


def test_on_other_models_a_claim_reports_and_asserts_nothing(capsys, monkeypatch, no_claims):
    monkeypatch.setenv("WORKBOOK_MODELS", "hub")
    said = []
    monkeypatch.setattr("utils.show.claims.display", lambda markdown: said.append(markdown.data))
    for value in (0.2, float("nan"), [0.1, 0.7], 0):
        show.claim("share", value, 0.5, 0.9, control={"shuffled": 0.6})
    assert "share: 0.2000   (control: shuffled: 0.600; the workbook's own model: 0.5 to 0.9)" in capsys.readouterr().out
    show.claim("of none", torch.zeros(0), 0.5, 0.9, control={"shuffled": []})
    assert "of none: nothing to measure   (control: shuffled: nothing to measure;" in capsys.readouterr().out
    show.identity("effects", 1e-6, 1e-6, 1e-4, broken=0.0)
    with pytest.raises(AssertionError, match="the largest difference"):
        show.identity("effects", 1e-2, 1e-6, 1e-4, broken=0.0)
    show.findings()
    assert said[0].startswith("Measured on the models of `WORKBOOK_MODELS=hub`.\n\n| claim | measured | the workbook's")
    monkeypatch.setenv("WORKBOOK_MODELS", "embedded")
    with pytest.raises(AssertionError, match="outside"):
        show.claim("share", 0.2, 0.5, 0.9, control={"shuffled": 0.0})


@pytest.mark.parametrize(
    "control",
    [
        {"shuffled": 0.5},
        {"at the border": 1.0},
        {"one of the seeds": [3.0, 0.2, 5.0]},
        {"fine": 7.0, "not fine": torch.tensor(0.1)},
        {"draws": torch.tensor([0.3, 2.0])},
    ],
)
def test_an_interval_that_holds_its_control_is_refused(control, no_claims):
    with pytest.raises(AssertionError, match="the number shows nothing"):
        show.claim("a share", 0.7, 0, 1, control=control)


@pytest.mark.parametrize("control", ["", "shuffled 0.2", {}, {"shuffled": "0.2"}, None])
def test_a_claim_without_a_number_for_its_control_is_refused(control, no_claims):
    with pytest.raises(ValueError, match="takes its control as numbers"):
        show.claim("a share", 0.7, 0.5, 1, control=control)


def test_samples_are_claimed_with_their_interval(capsys, no_claims):
    samples = torch.randn(400, generator=torch.Generator().manual_seed(0)) + 3
    state = torch.get_rng_state(), np.random.get_state()[1].copy()
    show.claim("a mean", samples, 2.5, 3.5, control={"nothing": 0.0, "five draws": [0.1, 0.2, 0.0, -0.1, 0.3]})
    said = capsys.readouterr().out
    mean, low, high = (float(x) for x in re.findall(r"\d\.\d+", said)[:3])
    assert abs(mean - samples.mean()) < 1e-3 and 2 * 1.96 / 20 == pytest.approx(high - low, rel=0.15)
    assert "five draws: -0.100 to 0.300 (5 times)" in said
    assert torch.equal(torch.get_rng_state(), state[0]) and (np.random.get_state()[1] == state[1]).all()
    with pytest.raises(AssertionError, match="outside"):  # the mean lies inside, its interval doesn't
        show.claim("a mean", samples, 2.99, 3.5, control={"nothing": 0.0})


def test_an_identity_shows_that_a_fault_would_be_seen(capsys, no_claims):
    a = torch.randn(3, 4)
    show.identity("ours and the library's", a + 1e-7, a, 1e-5, broken=a.flip(0))
    assert "ours and the library's: equal to 1e-05   (broken on purpose: " in capsys.readouterr().out
    show.identity("largest error", 1e-8, 0, 1e-6, broken=0.5)
    for got, broken, says in ((a + 1e-3, a.flip(0), "largest difference"), (a, a + 1e-4, "broken, it is off by")):
        with pytest.raises(AssertionError, match=says):
            show.identity("ours", got, a, 1e-5, broken=broken)
    with pytest.raises(ValueError, match="can't be compared"):
        show.identity("ours", a, a[:2], 1e-5, broken=a)


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
def test_claim_prints_floats_as_floats_and_counts_as_counts(value, text, capsys, monkeypatch, no_claims):
    show.claim("x", value, -1e9, 1e9, control={"none": 1e10})
    assert capsys.readouterr().out == f"x: {text}   (control: none: 1.00e+10)\n"
    shown = []
    monkeypatch.setattr(claims, "display", shown.append)
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
    monkeypatch.setattr(show, "_loaded", [])
    pattern = torch.rand(2, 3, 3)
    for _ in range(2):
        show.live(cv.attention.attention_heads(tokens=["a", "b", "c"], attention=pattern))
    assert len(pages) == 2 and len(pages[0]) > 1_000_000 and len(pages[1]) < 10_000
    assert all("unpkg" not in page.rpartition("<div")[2] for page in pages)


def test_a_live_view_escapes_what_a_token_holds(monkeypatch):
    pages = []
    monkeypatch.setattr(show, "_display_live", pages.append)
    monkeypatch.setattr(show, "_loaded", ["this version"])
    tokens = ["</script><img src=x onerror=alert(1)>", "<!--<script>", "a\u2028"]
    show.live(cv.tokens.colored_tokens(tokens=tokens, values=[0.0, 1.0, 2.0]))
    page = pages[-1]
    script = page[page.index(">", page.index("<script")) + 1 : page.index("</script>")]
    assert page.count("</script") == 1 and "<" not in script and "<img" not in page
    props, _ = json.JSONDecoder().raw_decode(script, script.index('{"tokens"'))
    assert props["tokens"] == tokens
    assert "const { render, ColoredTokens } = window.CircuitsVis;" in script


@pytest.mark.parametrize(
    "token, shown",
    [
        ("\r\n", "␍↵"),
        ("\0", "␀"),
        ("\x7f", "␡"),
        ("a\u200bb", "a⟨U+200B⟩b"),
        ("\u200f", "⟨U+200F⟩"),
        ("\u202eabc", "⟨U+202E⟩abc"),
        ("\xa0", "⟨U+00A0⟩"),
        ("\xad", "⟨U+00AD⟩"),
        ("\u0301", "◌\u0301"),
        ("e\u0301", "e\u0301"),
        ("\ufe0f", "⟨U+FE0F⟩"),
        ("  a b ", "··a b·"),
        ("שלום", "שלום"),
    ],
)
def test_a_token_without_a_picture_is_shown(token, shown):
    assert show.visible(token) == shown


def test_tokens_from_right_to_left_stay_in_order_and_in_boxes_of_their_own():
    page = show.token_strip(["a", "שלום", "1", "مرحبا"], [1, 2, 3, 4]).data
    boxes = page.split("<span ")[1:]
    assert [("unicode-bidi: isolate" in box) for box in boxes] == [False, True, False, True]


def test_labels_hold_no_markup_for_plotly():
    tokens = ["<b>", "</B>", "<br>", "<|endoftext|>", "a<b", "&lt;", "R&D;", "R&D", "<a href='x'>"]
    figure = show.heatmap(np.eye(9), x=tokens, y=tokens)
    said = ("&lt;b>", "&lt;/B>", "&lt;br>", "<|endoftext|>", "a&lt;b", "&amp;lt;", "R&amp;D;", "R&D", "&lt;a href='x'>")
    assert figure.layout.xaxis.ticktext == figure.layout.yaxis.ticktext == said


def test_bars_of_equal_names_stand_side_by_side():
    figure = drawings.bars({"a": [1.0, 2.0, 3.0], "b": [4.0, 5.0, 6.0]}, ["x", "y", "x"], "t", "", "")
    assert list(figure.data[0].x) == [0, 1, 2] and figure.layout.xaxis.ticktext == ("x", "y", "x")
    assert list(drawings.bars({"a": [1.0, 2.0]}, ["x", "y"], "t", "", "").data[0].x) == ["x", "y"]


def test_a_moved_slider_draws_the_figure_in_its_place(monkeypatch):
    class Handle:
        def update(self, bundle, raw):
            assert raw
            figure = bundle.get("application/vnd.plotly.v1+json")
            updates.append(figure["layout"]["title"]["text"] if figure else "away with the one before")

    shown, updates = [], []
    monkeypatch.setattr(show, "display", lambda *args, **kwargs: shown.append((args[0], kwargs)) or Handle())

    def draw(top_p, heat):
        calls.append((top_p, heat))
        return show.go.Figure(layout=dict(title=f"{top_p} {heat}"))

    calls = []
    show.sliders(draw, top_p=(0.9, 0, 1, 0.1), heat=(1, 0, 2, 0.5))
    (bundle, how), (box, _) = shown
    assert bundle["application/vnd.plotly.v1+json"]["layout"]["title"]["text"] == "0.9 1" and how["raw"]
    assert [bar.description for bar in box.children] == ["top p", "heat"]
    box.children[1].value = 0.5
    box.children[0].value = 0.3
    assert updates == ["away with the one before", "0.9 0.5"] + ["away with the one before", "0.3 0.5"]

    calls.clear()
    show.sliders(draw, draw(0.5, 1), top_p=(0.5, 0, 1, 0.1), heat=(1, 0, 2, 0.5))
    assert calls == [(0.5, 1)]  # nothing is drawn beside the figure that is there


def test_next_tokens_keep_repeated_names_apart():
    figure = drawings.next_tokens(torch.tensor([0.5, 0.3]), [" a", " a"], "two", torch.tensor([True, False]))
    assert figure.layout.xaxis.ticktext == ("·a", "·a") and list(figure.data[0].marker.opacity) == [1.0, 0.25]
