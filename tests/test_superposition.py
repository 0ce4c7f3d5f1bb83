"""Toy models of superposition: data, models, measures, and the defined results at the edges."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import superposition as sup
from utils.checks.superposition import polygon
from utils.runtime import seed_everything

SMALL = dict(max_examples=25, deadline=None)


@pytest.fixture(autouse=True)
def seeded():
    seed_everything(0)


# ---------------------------------------------------------------- codes


@pytest.mark.parametrize("factors, width", [((16,), 16), ((2, 8), 10), ((2, 2, 2, 2), 8)])
def test_sixteen_items(factors, width):
    code = sup.factored_code(16, factors)
    assert code.shape == (16, width) and len(code.unique(dim=0)) == 16


def test_too_many_items_are_refused():
    with pytest.raises(ValueError, match="add options"):
        sup.factored_code(17, (2, 8))


# ---------------------------------------------------------------- data


@given(p=st.floats(0, 1), feats=st.integers(0, 4))
@settings(**SMALL)
def test_features_are_on_as_often_as_asked(p, feats):
    batch = sup.generate_uncorrelated_features(torch.full((2, feats), p), 4_000)
    assert batch.shape == (4_000, 2, feats) and ((batch >= 0) & (batch <= 1)).all()
    if feats:
        assert abs((batch > 0).float().mean() - p) < 0.04


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_probability_0_and_1_are_exact(p):
    on = sup.generate_uncorrelated_features(torch.full((1, 3), p), 1_000) > 0
    assert on.float().mean() == pytest.approx(p, abs=1e-3)
    assert (sup.generate_correlated_features(torch.full((1, 2), p), 500) > 0).float().mean() == pytest.approx(
        p, abs=1e-2
    )


def test_a_model_lays_its_features_out_as_promised():
    cfg = sup.ToyModelConfig(n_inst=2, n_features=5, n_correlated_pairs=1, n_anticorrelated_pairs=1)
    on = sup.ToyModel(cfg, 0.4).generate_batch(2_000) > 0
    assert (on[..., 0] == on[..., 1]).all() and on[..., 0].any()
    assert not (on[..., 2] & on[..., 3]).any()
    assert (on[..., 4] & on[..., 0]).any() and (on[..., 4] & ~on[..., 0]).any()
    assert on.float().mean(0).flatten().tolist() == pytest.approx([0.4] * 10, abs=0.05)


def test_excluding_features_cannot_both_be_frequent():
    with pytest.raises(ValueError, match="at most 0.5"):
        sup.generate_anticorrelated_features(torch.tensor([[0.51]]), 10)


# ---------------------------------------------------------------- models


@pytest.mark.parametrize("kind", [sup.ToyModel, sup.NeuronModel, sup.NeuronComputationModel])
@pytest.mark.parametrize("feats, d_hidden", [(0, 2), (1, 2), (3, 5), (4, 1)])
@pytest.mark.parametrize("p", [0.0, 1.0])
def test_edges_train_without_nan(kind, feats, d_hidden, p):
    model = kind(sup.ToyModelConfig(2, feats, d_hidden), p)
    history = model.optimize(steps=3, batch_size=8)
    W = model.W.detach()
    measures = [sup.compute_dimensionality(W), sup.feature_capacity(W), sup.interference(W), sup.top_neuron_share(W)]
    assert all(m.shape == (2, feats) and m.isfinite().all() for m in measures)
    assert history.losses.isfinite().all() and model.evaluate(16).isfinite().all()
    assert sup.drop_baseline(model.feature_probability, model.importance, d_hidden).isfinite().all()
    assert sup.pca_baseline(model.generate_batch(16), model.importance, d_hidden).isfinite().all()
    assert sup.features_per_neuron(W).shape == (2, d_hidden)


def test_instances_do_not_touch_each_other():
    models = sup.ToyModel(sup.ToyModelConfig(3), 0.2)
    alone = sup.ToyModel(sup.ToyModelConfig(1), 0.2)
    with torch.no_grad():
        alone.W.copy_(models.W[1:2])
    batch = models.generate_batch(64)
    together, single = (
        models.calculate_loss(models(batch), batch),
        alone.calculate_loss(alone(batch[:, 1:2]), batch[:, 1:2]),
    )
    assert together[1].item() == pytest.approx(single.item(), rel=1e-5)
    together.sum().backward()
    single.sum().backward()
    assert torch.allclose(models.W.grad[1:2], alone.W.grad, atol=1e-7)


@pytest.mark.parametrize("wrong", [dict(n_inst=0), dict(n_inst=1, n_features=-1), dict(n_inst=1, d_hidden=0),
                                   dict(n_inst=1, n_features=3, n_correlated_pairs=2)])  # fmt: skip
def test_impossible_shapes_are_refused(wrong):
    with pytest.raises(ValueError):
        sup.ToyModelConfig(**wrong)


def test_impossible_probabilities_and_batches_are_refused():
    with pytest.raises(ValueError, match="outside"):
        sup.ToyModel(sup.ToyModelConfig(1), 1.2)
    with pytest.raises(ValueError, match="at least 1"):
        sup.ToyModel(sup.ToyModelConfig(1)).generate_batch(0)


def test_training_is_the_same_on_any_number_of_threads():
    results = []
    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        seed_everything(0)
        model = sup.ToyModel(sup.ToyModelConfig(2), 0.1)
        model.optimize(steps=50, batch_size=256)
        results.append(model.W.detach().clone())
        assert torch.get_num_threads() == threads
        torch.set_num_threads(before)
    assert torch.equal(*results)


def test_training_taken_up_again_ends_where_it_would_have(tmp_path):
    def train(file, steps_before_the_stop=None):
        seed_everything(0)
        model = sup.ToyModel(sup.ToyModelConfig(2), 0.2)
        options = dict(steps=40, batch_size=32, log_every=10, checkpoint=file)
        if steps_before_the_stop:

            class Stopped(Exception):
                pass

            drawn, generate = [], model.generate_batch

            def stop(batch_size):
                drawn.append(1)
                if len(drawn) > steps_before_the_stop:
                    raise Stopped
                return generate(batch_size)

            model.generate_batch = stop
            with pytest.raises(Stopped):
                model.optimize(**options)
            model = sup.ToyModel(sup.ToyModelConfig(2), 0.2)  # another start: the file has to bring everything back
        history = model.optimize(**options)
        return model.W.detach(), history

    whole, whole_history = train(tmp_path / "whole.pt")
    resumed, resumed_history = train(tmp_path / "resumed.pt", steps_before_the_stop=25)
    assert torch.equal(whole, resumed)
    assert whole_history.steps == resumed_history.steps == [10, 20, 30, 40]
    assert torch.equal(whole_history.losses, resumed_history.losses)


# ---------------------------------------------------------------- measures


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 50))
@settings(**SMALL)
def test_dimensionality_is_capacity_and_stays_within_the_rank(d_hidden, feats, seed):
    W = torch.randn(d_hidden, feats, generator=torch.Generator().manual_seed(seed))
    W[:, 0] *= seed % 3  # sometimes a zero feature
    D = sup.compute_dimensionality(W)
    assert torch.allclose(D, sup.feature_capacity(W), atol=1e-5)
    assert (D >= 0).all() and (D <= 1 + 1e-5).all() and D.sum() <= min(d_hidden, feats) + 1e-4


def test_dimensionality_of_known_shapes():
    assert torch.allclose(sup.compute_dimensionality(0.3 * polygon(5)), torch.full((5,), 0.4))
    assert torch.allclose(sup.compute_dimensionality(polygon(3)), torch.full((3,), 2 / 3))
    assert torch.allclose(sup.compute_dimensionality(torch.diag(torch.tensor([1.0, 5.0]))), torch.ones(2))
    assert sup.compute_dimensionality(torch.zeros(2, 3)).tolist() == [0, 0, 0]


def test_interference_of_a_pentagon():
    cosines = [math.cos(2 * math.pi * k / 5) for k in range(1, 5)]
    assert torch.allclose(sup.interference(polygon(5)), torch.full((5,), sum(c**2 for c in cosines)))
    assert torch.allclose(
        sup.interference(polygon(5), relu=True), torch.full((5,), sum(max(c, 0) ** 2 for c in cosines))
    )


def test_small_measures():
    assert sup.neighbour_angles(polygon(5)).tolist() == pytest.approx([72] * 5, abs=1e-3)
    assert sup.neighbour_angles(torch.zeros(2, 3)).tolist() == []
    assert sup.pair_cosines(polygon(4)[:, [0, 2, 1, 0]]).tolist() == pytest.approx([-1, 0], abs=1e-6)
    assert sup.share_near_plateaus(torch.tensor([0.5, 0.41, 0.2, 0.99])) == 0.75
    assert sup.share_near_plateaus(torch.zeros(0)) == 0
    assert sup.features_per_neuron(torch.tensor([[1.0, 0.5, 0.1], [0.01, 0.0, 0.0]])).tolist() == [2, 0]


def test_baselines_agree_on_independent_features():
    p, importance = torch.tensor([[0.1, 0.5, 0.9]]), torch.tensor([[1.0, 0.5, 0.2]])
    batch = sup.generate_uncorrelated_features(p, 200_000)
    for d_hidden in (0, 1, 2, 3):
        drop, pca = sup.drop_baseline(p, importance, d_hidden), sup.pca_baseline(batch, importance, d_hidden)
        assert drop.item() == pytest.approx(pca.item(), rel=0.02, abs=1e-6)


# ---------------------------------------------------------------- capacity


@given(kurtosis=st.floats(1, 200), d_hidden=st.integers(1, 5), seed=st.integers(0, 20))
@settings(**SMALL)
def test_allocation_spends_exactly_the_budget(kurtosis, d_hidden, seed):
    value = 0.1 + torch.rand(5, generator=torch.Generator().manual_seed(seed))
    capacity = sup.allocate_capacity(value, kurtosis, d_hidden)
    assert ((capacity >= 0) & (capacity <= 1)).all() and capacity.sum().item() == pytest.approx(d_hidden, abs=1e-2)
    order = value.sort().indices
    assert (capacity[order].diff() >= -1e-4).all()  # more value, no less capacity


def test_gradient_descent_finds_the_allocation():
    value, kurtosis = torch.tensor([[1.2, 1.0, 0.8, 0.5]]), torch.tensor([8.0])
    W = sup.train_quadratic(value, kurtosis, d_hidden=2, steps=1_500)
    assert torch.allclose(sup.feature_capacity(W)[0], sup.allocate_capacity(value[0], 8.0, 2), atol=0.02)


def test_values_of_zero_get_nothing():
    assert sup.allocate_capacity(torch.zeros(3), 10.0, 2).tolist() == [0, 0, 0]
    assert sup.allocate_capacity(torch.tensor([1.0, 0.0, 0.0]), 10.0, 2)[1:].tolist() == [0, 0]
    with pytest.raises(ValueError, match="at least 1"):
        sup.allocate_capacity(torch.ones(3), 0.9, 1)


# ---------------------------------------------------------------- the effect itself, small


def test_sparse_features_are_kept_in_superposition_and_dense_ones_are_not():
    model = sup.ToyModel(sup.ToyModelConfig(2), torch.tensor([[1.0], [0.05]]), 0.9 ** torch.arange(5))
    model.optimize(steps=1_500, batch_size=256, lr=2e-2)
    kept = (model.W.detach().norm(dim=1) > 0.5).sum(-1)
    ratio = model.evaluate(20_000) / sup.drop_baseline(model.feature_probability, model.importance, 2)
    assert kept[0] <= 3 < kept[1] and ratio[1] < 0.5 < 0.9 < ratio[0]
