"""Toy sparse autoencoders: laws of each form, resampling, training, measures, and clear errors."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils import toy_saes
from utils.runtime import seed_everything
from utils.show import toy_saes as views
from utils.superposition import ToyModel, ToyModelConfig

FORMS = [toy_saes.ToySAE, toy_saes.GatedToySAE, toy_saes.TopKToySAE, toy_saes.JumpReLUToySAE]
SMALL = dict(max_examples=25, deadline=None)


@pytest.fixture(autouse=True)
def seeded():
    seed_everything(0)


def toy_model(inst=2, d_in=2, feats=5, p=0.3):
    return ToyModel(ToyModelConfig(inst, feats, d_in), p)


def toy_sae(kind=toy_saes.ToySAE, inst=2, d_in=2, d_sae=5, **changes):
    return kind(toy_saes.ToySAEConfig(inst, d_in, d_sae, **changes), toy_model(inst, d_in))


def perfect_sae(kind=toy_saes.ToySAE, **changes):
    """One feature per dimension, and latents that are these features: nothing to find, only sizes to get right."""
    model = ToyModel(ToyModelConfig(1, 2, 2), 0.3)
    sae = kind(toy_saes.ToySAEConfig(1, 2, 2, **changes), model)
    with torch.no_grad():
        for matrix in (model.W, sae.W_enc, sae.W_dec):
            matrix.copy_(torch.eye(2))
    return sae


# ---------------------------------------------------------------- configuration


@pytest.mark.parametrize("wrong", [dict(n_inst=0), dict(d_in=0), dict(d_sae=0), dict(sparsity_coeff=-0.1),
                                   dict(weight_normalize_eps=-1.0), dict(ste_epsilon=0.0), dict(initial_threshold=0.0),
                                   dict(k=0), dict(k=6)])  # fmt: skip
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValueError):
        toy_saes.ToySAEConfig(**{"n_inst": 1, **wrong})


def test_a_model_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="2 instances of 2 hidden dimensions"):
        toy_saes.ToySAE(toy_saes.ToySAEConfig(3), toy_model(2))
    with pytest.raises(ValueError, match="n_inst and d_in"):
        toy_saes.ToySAE(toy_saes.ToySAEConfig(2, d_in=4), toy_model(2))


@pytest.mark.parametrize("wrong", [dict(resample_method="magic"), dict(resample_window=0), dict(steps=0),
                                   dict(batch_size=0), dict(log_freq=0),
                                   dict(resample_window=20, resample_freq=10)])  # fmt: skip
def test_impossible_trainings_are_refused(wrong):
    with pytest.raises(ValueError):
        toy_sae().optimize(**{"steps": 2, "batch_size": 4, **wrong})


# ---------------------------------------------------------------- forms


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("tied", [False, True])
def test_shapes_norms_and_gradients(kind, tied):
    sae = toy_sae(kind, tied_weights=tied, ste_epsilon=0.5)
    h = sae.generate_batch(64)
    loss_dict, loss, acts, h_reconstructed = sae(h)
    assert loss.shape == (64, 2) and acts.shape == (64, 2, 5) and h_reconstructed.shape == h.shape == (64, 2, 2)
    assert all(part.shape == (64, 2) for part in loss_dict.values()) and (acts >= 0).all()
    assert sae.W_dec_normalized.norm(dim=-1).allclose(torch.ones(2, 5), atol=1e-5)
    loss.mean(0).sum().backward()
    trained = {name: p for name, p in sae.named_parameters() if p.requires_grad}
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.values())
    assert not any(name.startswith("model.") for name in trained) and ("_W_dec" in trained) != tied


@pytest.mark.parametrize("kind", [toy_saes.ToySAE, toy_saes.GatedToySAE, toy_saes.JumpReLUToySAE])
def test_sparsity_coefficient_0_leaves_the_errors(kind):
    loss_dict, loss, _, _ = (sae := toy_sae(kind, sparsity_coeff=0.0))(sae.generate_batch(32))
    assert loss.allclose(loss_dict["L_reconstruction"] + loss_dict.get("L_aux", 0))


@pytest.mark.parametrize("kind", FORMS)
def test_a_latent_without_a_chance_is_dead(kind):
    sae = toy_sae(kind)
    with torch.no_grad():
        sae.b_enc[:, 3] = -math.inf
    acts = sae(sae.generate_batch(500))[2]
    dead = toy_saes.dead_latents((acts > 0).float().mean(0)[None])
    assert dead[:, 3].all() and not dead.all()


@given(st.integers(1, 6), st.integers(0, 100))
@settings(**SMALL)
def test_top_k_has_at_most_k(k, seed):
    seed_everything(seed)
    sae = toy_sae(toy_saes.TopKToySAE, d_in=3, d_sae=6, k=k)
    active = (sae(sae.generate_batch(50))[2] > 0).sum(-1)
    assert active.max() <= k


@given(st.floats(0.05, 0.9), st.floats(0.02, 0.1))
@settings(**SMALL)
def test_straight_through_gradients_are_slopes_of_averages(theta, eps):
    z = torch.linspace(0, 1, 50_001)
    for function, slope in ((toy_saes.Heaviside, -1.0), (toy_saes.JumpReLU, -theta)):
        limit = torch.tensor(theta, requires_grad=True)
        function.apply(z, limit, eps).mean().backward()
        assert limit.grad.item() == pytest.approx(slope, abs=0.01)


def test_jump_relu_at_threshold_0_is_the_relu():
    z = torch.randn(100, 3, requires_grad=True)
    out = toy_saes.JumpReLU.apply(z, torch.zeros(3), 0.1)
    out.sum().backward()
    assert torch.equal(out, z.relu()) and torch.equal(z.grad, (z > 0).float())


# ---------------------------------------------------------------- resampling


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("method", ["simple", "advanced"])
@pytest.mark.parametrize("tied", [False, True])
def test_resampling_touches_dead_latents_only(kind, method, tied):
    sae = toy_sae(kind, tied_weights=tied)
    with torch.no_grad():
        for parameter in sae.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    window = torch.rand(4, 2, 5)
    window[:, 0, 1] = window[:, 1, 2:4] = 0
    window[:3, 0, 0] = 0  # woke up in time
    dead = torch.zeros(2, 5, dtype=torch.bool)
    dead[0, 1] = dead[1, 2] = dead[1, 3] = True
    before = {name: p.detach().clone() for name, p in sae.named_parameters()}
    if method == "simple":
        sae.resample_simple(window, 0.5)
    else:
        sae.resample_advanced(window, 0.5, 64)
    for name, parameter in sae.named_parameters():
        if name.startswith("model.") or name == "b_dec":
            assert torch.equal(parameter, before[name])
        else:
            now, then = (p.mT if name == "W_enc" else p for p in (parameter, before[name]))
            assert torch.equal(now[~dead], then[~dead]), name
            assert (now[dead] != then[dead]).all(), name
    start = {"r_mag": 0.0, "b_mag": 0.0, "b_enc": 0.0, "log_threshold": math.log(0.1)}
    for name, value in start.items():
        if hasattr(sae, name):
            assert (getattr(sae, name)[dead] == value).all()
    assert sae.W_dec_normalized[dead].norm(dim=-1).allclose(torch.ones(3), atol=1e-5)


def test_resampled_latents_forget_their_past():
    sae = toy_sae()
    optimizer = torch.optim.Adam([p for p in sae.parameters() if p.requires_grad])
    sae(sae.generate_batch(100))[1].sum().backward()
    optimizer.step()
    latents = torch.zeros(2, 5, dtype=torch.bool)
    latents[0, 2] = latents[1, 4] = True
    sae._forget(optimizer, latents)
    for name, parameter in sae.named_parameters():
        if not name.startswith("model."):
            moment = optimizer.state[parameter]["exp_avg_sq"]
            if name == "b_dec":
                assert (moment > 0).all()
            else:
                moment = moment.mT if name == "W_enc" else moment
                assert (moment[latents] == 0).all() and (moment[~latents] > 0).any(), name


def test_badly_rebuilt_inputs_attract_latents_by_the_square_of_their_loss():
    sae = toy_saes.ToySAE(toy_saes.ToySAEConfig(1, 2, 4_000), toy_model(1))
    batch = torch.tensor([[[1.0, 0.0]], [[0.0, 2**0.5]]])  # losses 1 and 2
    sae.generate_batch = lambda batch_size: batch
    with torch.no_grad():
        sae.b_enc.fill_(-math.inf)
    sae.resample_advanced(torch.zeros(1, 1, 4_000), 0.5, 2)
    assert (sae.W_dec[0, :, 1] > 0.5).float().mean().item() == pytest.approx(4 / 5, abs=0.03)
    assert sae.W_enc.norm(dim=1).allclose(torch.full((1, 4_000), 0.5))  # none alive: the mean length counts as 1


def test_without_loss_nobody_is_resampled():
    sae = perfect_sae()
    before = sae.W_dec.detach().clone()
    sae.resample_advanced(torch.zeros(2, 1, 2), 0.5, 32)
    assert torch.equal(sae.W_dec, before)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("method", [None, "simple", "advanced"])
def test_training_lowers_the_loss_and_records(kind, method):
    sae = toy_sae(kind, ste_epsilon=0.1, sparsity_coeff=0.02)
    W = sae.model.W.detach().clone()
    history = sae.optimize(60, 64, resample_method=method, resample_freq=20, resample_window=5, log_freq=25)
    assert history.steps == [25, 50, 60]
    assert history.frac_active.shape == (3, 2, 5) and history.resampled.shape == (2,)
    assert history.W_enc.shape == (3, 2, 2, 5) and history.W_dec.shape == (3, 2, 5, 2)
    assert history.W_dec.norm(dim=-1).allclose(torch.ones(3, 2, 5), atol=1e-5)
    assert all(curve.shape == (3, 2) and curve.isfinite().all() for curve in history.losses.values())
    assert torch.equal(sae.model.W, W)  # the toy model is frozen
    fresh = toy_sae(kind, ste_epsilon=0.1, sparsity_coeff=0.02)
    fresh.model.load_state_dict(sae.model.state_dict())
    h = sae.generate_batch(2_000)
    assert sae(h)[1].mean() < fresh(h)[1].mean()


def test_training_is_the_same_on_any_number_of_threads():
    results, before = [], torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        seed_everything(0)
        sae = toy_sae()
        sae.optimize(30, 128, resample_method="advanced", resample_freq=10, resample_window=5)
        results.append(sae.W_enc.detach().clone())
        assert torch.get_num_threads() == threads
    torch.set_num_threads(before)
    assert torch.equal(*results)


def test_l1_shrinks_by_what_the_argument_says_and_a_gate_does_not():
    sizes = torch.zeros(200, 1, 2)
    sizes[:, 0, 0] = torch.linspace(0.4, 1, 200)  # one feature, with the dimension to itself
    short = {}
    for name, kind, changes in (
        ("L1", toy_saes.ToySAE, dict(sparsity_coeff=0.2)),
        ("half the L1", toy_saes.ToySAE, dict(sparsity_coeff=0.1)),
        ("no sparsity", toy_saes.ToySAE, dict(sparsity_coeff=0.0)),
        ("gated", toy_saes.GatedToySAE, dict(sparsity_coeff=0.2)),
    ):
        seed_everything(0)
        sae = perfect_sae(kind, **changes)
        sae.optimize(300, 256)
        with torch.no_grad():
            # Of the reconstruction, not of the latent: b_dec moves too, to the mean of what is dropped.
            short[name] = (sizes - sae(sizes)[3]).mean(0)[0, 0].item()
    assert short["L1"] == pytest.approx(0.2, abs=0.01)
    assert short["half the L1"] == pytest.approx(0.1, abs=0.01)
    assert short["no sparsity"] == pytest.approx(0, abs=0.01) and short["gated"] == pytest.approx(0, abs=0.01)


# ---------------------------------------------------------------- measures


@given(st.integers(1, 5), st.integers(1, 7), st.integers(1, 6), st.integers(0, 50))
@settings(**SMALL)
def test_matches_are_the_best_there_are(d_in, d_sae, feats, seed):
    generator = torch.Generator().manual_seed(seed)
    W_dec, W = torch.randn(d_sae, d_in, generator=generator), torch.randn(d_in, feats, generator=generator)
    index, cosine = toy_saes.match_latents(W_dec, W)
    table = torch.nn.functional.cosine_similarity(W.T[:, None], W_dec[None], dim=-1)
    assert cosine.allclose(table.amax(-1), atol=1e-5)
    assert table.gather(1, index[:, None])[:, 0].allclose(cosine, atol=1e-5)


def test_a_silenced_latent_matches_nothing():
    index, cosine = toy_saes.match_latents(
        torch.tensor([[0.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 0.0], [1.0, 3.0]])
    )
    assert index.tolist() == [1, 1] and cosine.tolist() == pytest.approx([0.5**0.5, 1.0])


@given(st.floats(0.1, 3), st.integers(0, 20))
@settings(**SMALL)
def test_shrinkage_is_the_factor_that_a_correction_would_take_out(factor, seed):
    h = torch.randn(50, 2, 3, generator=torch.Generator().manual_seed(seed))
    assert toy_saes.shrinkage(h, factor * h).tolist() == pytest.approx([factor] * 2, rel=1e-4)
    rebuilt = factor * h + 0.2 * h.flip(0)
    g = toy_saes.shrinkage(h, rebuilt)[:, None]
    error = [(rebuilt / (g * change) - h).pow(2).sum((0, 2)) for change in (1.0, 0.9, 1.1)]
    assert (error[0] < error[1]).all() and (error[0] < error[2]).all()


def test_an_answer_of_zeros_has_shrinkage_0():
    assert toy_saes.shrinkage(torch.ones(4, 2, 3), torch.zeros(4, 2, 3)).tolist() == [0, 0]


# ---------------------------------------------------------------- pictures


def test_pictures_draw_each_latent_and_feature():
    sae = toy_sae()
    history = sae.optimize(10, 16)
    W, dead = sae.model.W, torch.tensor([[True, False, False, False, False]] * 2)
    figure = views.plot_latents(sae.W_enc.detach(), sae.W_dec_normalized.detach(), W, dead, "title", ["a", "b"])
    assert len(figure.data) == 2 * 2 * (5 + 5) and sum("dead" in trace.name for trace in figure.data) == 4
    long = views.plot_latents(3 * sae.W_enc.sign().detach(), sae.W_dec.detach(), W, dead, "title", ["a", "b"])
    assert all(axis.range[0] < -3 and axis.range[1] > 3 for axis in long.select_xaxes())
    assert len(views.plot_sae_training(history, W, 1, "title").frames) == 10
    assert len(views.plot_dead_share({"none": history}, "title").data) == 1
    size = torch.rand(7)
    assert len(views.plot_activation_against_size(size, {"L1": size, "L0": size}, "title").data) == 4
    with pytest.raises(ValueError, match="two dimensions"):
        views.plot_latents(torch.zeros(1, 3, 5), torch.zeros(1, 5, 3), torch.zeros(1, 3, 5), dead[:1], "t", ["a"])
