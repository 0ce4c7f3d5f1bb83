"""Attribution graphs: the laws that hold exactly, on a small model, and what is refused."""

import copy

import pytest
import torch

from utils import attribution
from utils.checks.sae_models import lm_model, lm_tokens, lm_transcoder
from utils.show import circuits as figures


@pytest.fixture(scope="module")
def transcoders():
    return [lm_transcoder(0, skip=True), lm_transcoder(1)]


@pytest.fixture(scope="module")
def direction():
    W_U = lm_model().W_U
    return W_U[:, 5] - W_U[:, 7]


@pytest.fixture(scope="module")
def text():
    return lm_tokens(1, 9)


@pytest.fixture(scope="module")
def graph(transcoders, direction, text):
    return attribution.attribution_graph(lm_model(), transcoders, text, direction[None], chunk_size=7)


def test_with_errors_in_place_the_model_is_what_it_was(graph, transcoders, text):
    everyone = torch.arange(len(graph.run.latents))
    own = lm_model()(text)[0, -1]
    for held in (True, False):
        assert torch.allclose(attribution.with_only(lm_model(), transcoders, graph, everyone, held), own, atol=1e-4)
    assert not torch.allclose(attribution.with_only(lm_model(), transcoders, graph, everyone[1::2]), own, atol=1e-2)


def test_edges_into_every_node_add_up(graph, direction, text):
    _, cache = lm_model().run_with_cache(text)
    read = cache["ln_final.hook_normalized"][0, -1] @ direction
    sums = graph.edges.sum(1)
    assert torch.allclose(sums[graph.nodes("latents")], graph.run.acts, atol=1e-4)
    assert torch.allclose(sums[graph.nodes("answers")], read, atol=1e-4)
    assert graph.edges[graph.nodes("errors").start : graph.nodes("answers").start].abs().max() == 0


def test_no_edge_comes_from_a_later_position_or_the_same_layer(graph):
    layer, position, _ = graph.run.latents.T
    among = graph.edges[graph.nodes("latents"), graph.nodes("latents")]
    allowed = (layer[None] < layer[:, None]) & (position[None] <= position[:, None])
    assert among[~allowed].abs().max() == 0 and among[allowed].abs().max() > 0.1
    across = allowed & (position[None] < position[:, None])
    assert among[across].abs().max() > 1e-3  # held patterns carry them over


def test_what_is_predicted_is_the_ablation_with_everything_held(graph, transcoders, direction):
    told = attribution.predicted_effects(graph.edges, graph.run.acts, graph.edges[graph.nodes("answers")][0])
    everyone = torch.arange(len(told))
    ablate = (lm_model(), transcoders, graph, direction, everyone)
    largest = told.abs().max()
    assert (attribution.measured_effects(*ablate, batch=11) - told).abs().max() < 1e-4 * largest
    for live in ("gates", "mlps", "patterns", "scales"):
        assert (attribution.measured_effects(*ablate, live=[live]) - told).abs().max() > 1e-3 * largest, live


def test_a_live_model_is_the_model(graph, transcoders, direction, text):
    """With MLPs, patterns and scales live, one latent's part is taken off what an otherwise untouched model writes."""
    chosen = 4
    layer, pos, latent = graph.run.latents[chosen].tolist()
    lost = graph.run.acts[chosen] * transcoders[layer].W_dec[latent]

    def without(out, hook):
        out[0, pos] -= lost
        return out

    read = []
    for hooks in ([], [(f"blocks.{layer}.hook_mlp_out", without)]):
        keep = ("ln_final.hook_normalized", lambda x, hook: read.append(x[0, -1] @ direction))
        lm_model().run_with_hooks(text, fwd_hooks=[*hooks, keep])
    live = ("mlps", "patterns", "scales")
    some = torch.tensor([chosen])
    made = attribution.measured_effects(lm_model(), transcoders, graph, direction, some, live)
    assert made.item() == pytest.approx((read[0] - read[1]).item(), abs=1e-4)


def test_a_graph_with_no_errors_is_explained_in_full(graph):
    edges = graph.without_rest
    kinds = graph.is_kind("errors"), graph.is_kind("tokens")
    with_errors = attribution.graph_scores(edges, graph.weights, *kinds)
    edges[:, graph.nodes("errors")] = 0
    assert max(with_errors) < 0.99
    assert attribution.graph_scores(edges, graph.weights, *kinds) == pytest.approx((1, 1))


def test_the_fewest_nodes_that_have_a_share():
    influence = torch.tensor([0.1, 0.4, 0.0, 0.3, 0.2])
    assert attribution.most_influential(influence, 0.69).tolist() == [1, 3]
    assert attribution.most_influential(influence, 0.71).tolist() == [1, 3, 4]


def test_the_picture_has_the_strongest_edges(graph):
    influence = attribution.indirect_influence(graph.without_rest, graph.weights)
    kept = attribution.most_influential(influence, 0.6)
    words = [f"w{i}" for i in range(9)]
    figure = figures.plot_graph(graph, kept, words, ["this, not that"], lambda layer, latent: "a label", 12, "Title")
    lines = [trace for trace in figure.data if trace.mode == "lines"]
    assert sum(len(trace.x) for trace in lines) == 3 * 12
    nodes = {trace.name: trace for trace in figure.data if trace.mode == "markers"}
    assert sum(len(trace.x) for trace in nodes.values()) == len(kept) + 1
    assert "a label" in nodes["latent"].text[0] and nodes["answer"].text == ("this, not that",)


def test_bad_input_is_refused_in_one_sentence(graph, transcoders, direction, text):
    first, second = transcoders
    silent = [copy.deepcopy(each) for each in transcoders]
    for each in silent:
        each.b_enc.data -= 1e3
    bad = {
        "a transcoder for each of the 2 layers, in order": lambda: attribution.frozen_run(
            lm_model(), [second, first], text
        ),
        "17 tokens are more than the context of 16": lambda: attribution.frozen_run(
            lm_model(), transcoders, lm_tokens(1, 17)
        ),
        "no latent is active": lambda: attribution.frozen_run(lm_model(), silent, text),
        "give a shorter text, or more most_bytes": lambda: attribution.attribution_graph(
            lm_model(), transcoders, text, direction[None], most_bytes=100
        ),
        "choose one of latents, errors, tokens, rest, answers": lambda: graph.nodes("heads"),
        "'scale' is not one of gates": lambda: attribution.measured_effects(
            lm_model(), transcoders, graph, direction, torch.tensor([0]), ["scale"]
        ),
    }
    for says, call in bad.items():
        with pytest.raises(ValueError, match=says):
            call()
