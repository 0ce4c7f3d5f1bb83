"""Chapter 04: our small versions agree with TransformerLens's, and say what is wrong with bad input."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformer_lens.utilities import get_act_name

from utils import inspection as ins
from utils.checks.models import noise, random_tokens, small_gpt


@pytest.fixture
def model():
    return small_gpt(4, 3)


def test_every_name_of_the_cache_is_what_act_name_makes(model):
    _, cache = model.run_with_cache(random_tokens(1, 7))
    made = {ins.act_name(name) for name in ("embed", "pos_embed")}
    kinds = (*ins.IN_ATTENTION, *ins.IN_MLP, "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
    made |= {ins.act_name(name, layer) for name in kinds for layer in range(model.cfg.n_layers)}
    left = {name for name in set(cache.keys()) - made if not any(part in name for part in ("ln", "unembed"))}
    assert not left
    for alias in ins.ALIASES:
        assert ins.act_name(alias, 10) == get_act_name(alias, 10)


def test_memory_is_the_sum_over_all_activations(model):
    _, cache = model.run_with_cache(random_tokens(2, 9))
    assert sum(ins.memory_by_kind(cache).values()) == sum(x.nbytes for x in cache.values())


def test_a_filter_keeps_exactly_what_it_names(model):
    _, cache = model.run_with_cache(random_tokens(1, 7), names_filter=ins.keep_only(["pattern", "resid_post"], [0, 3]))
    assert list(cache.keys()) == [get_act_name(name, layer) for layer in (0, 3) for name in ("pattern", "resid_post")]


@settings(max_examples=200, deadline=None)
@given(n=st.integers(1, 30), values=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_best_f1_is_the_best_over_all_thresholds(n, values, seed):
    """Beside every threshold tried one by one, on activations of few values (nearly all equal) to many."""
    draw = torch.Generator().manual_seed(seed)
    activations = torch.randint(values, (n, 4), generator=draw) / 7
    labels = torch.rand(n, generator=draw) < 0.3
    labels[seed % n] = True
    f1, threshold = ins.best_f1(activations, labels)
    for neuron in range(4):
        column = activations[:, neuron]
        tried = [ins.f1_score(column >= value, labels) for value in column]
        assert f1[neuron].item() == pytest.approx(max(tried))
        assert ins.f1_score(column >= threshold[neuron], labels) == pytest.approx(max(tried))


def test_best_f1_gives_only_what_a_threshold_reaches():
    f1, threshold = ins.best_f1(torch.tensor([[1.0], [1.0], [0.0], [0.0]]), torch.tensor([True, False, False, False]))
    assert f1.item() == pytest.approx(2 / 3) and threshold.item() == 1
    # On equal activations there is one threshold only: all tokens.
    assert ins.best_f1(torch.zeros(4, 1), torch.tensor([True, False, False, False]))[0].item() == pytest.approx(0.4)


def test_our_hooks_do_what_transformer_lens_does(model):
    """The same in-place and returned edits, on our small model and on a hook point of TransformerLens."""
    tiny, x = ins.TinyMLP(4, 7, 3).requires_grad_(False), noise(5, 4)

    def silence(post, hook):
        post[:, :3] = 0.0

    by_hand = (x @ tiny.W_in).relu()
    by_hand[:, :3] = 0
    assert torch.allclose(ins.run_with_hooks(tiny, x, [("hook_post", silence)]), by_hand @ tiny.W_out)
    assert torch.equal(tiny(x), (x @ tiny.W_in).relu() @ tiny.W_out)


def test_no_hook_is_left_behind_after_an_error():
    tiny, x = ins.TinyMLP(4, 7, 3).requires_grad_(False), noise(5, 4)
    before = tiny(x)

    def fails(x, hook):
        raise ZeroDivisionError

    def doubles(x, hook):
        return 2 * x

    for hooks in ([("hook_pre", doubles), ("hook_post", fails)], [("hook_pre", doubles), ("nowhere", doubles)]):
        with pytest.raises((ZeroDivisionError, ValueError)):
            ins.run_with_hooks(tiny, x, hooks)
        assert torch.equal(tiny(x), before)


def test_gradients_are_those_of_a_restarted_pass(model):
    tokens = random_tokens(2, 11)
    got = ins.gradient_cache(model, tokens, lambda name: name.endswith("resid_pre"))
    _, cache = model.run_with_cache(tokens)
    for layer in range(model.cfg.n_layers):
        start = cache["resid_pre", layer].detach().requires_grad_(True)
        logits = model(start, start_at_layer=layer)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        (want,) = torch.autograd.grad(loss, start)
        assert torch.allclose(got[get_act_name("resid_pre", layer)], want, atol=1e-6)


def test_gradients_leave_weights_and_hooks_alone(model):
    before = {name: p.grad for name, p in model.named_parameters()}
    ins.gradient_cache(model, random_tokens(1, 7), lambda name: name.endswith("hook_z"))
    assert all(p.grad is before[name] and not p.requires_grad for name, p in model.named_parameters())
    assert not any(point.has_hooks() for point in model.hook_dict.values())


def test_other_sizes_work_too():
    """No layer count, head count or width is hard-wired."""
    model = small_gpt(12, 2)
    assert ins.stack_over_layers(model, "mlp.W_in").shape == (12, 20, 80)
    _, cache = model.run_with_cache(random_tokens(3, 5), names_filter=ins.keep_only(["q", "k", "pattern"], [11]))
    assert torch.allclose(ins.attention_pattern(cache["q", 11], cache["k", 11]), cache["pattern", 11], atol=1e-5)
    gradients = ins.gradient_cache(model, random_tokens(1, 6), ins.keep_only(["post"], [0, 10]))
    assert {tuple(g.shape) for g in gradients.values()} == {(1, 6, 80)} and len(gradients) == 2


def test_bad_input_is_named(model):
    calls = {
        "has no weight 'attn.W_X'": lambda: ins.stack_over_layers(model, "attn.W_X"),
        "must have one shape": lambda: ins.attention_pattern(noise(1, 5, 3, 4), noise(1, 6, 3, 4)),
        "for 2 tokens": lambda: ins.top_tokens(noise(3), ["a", "b"], 1),
        "rows of activations for 4 labels": lambda: ins.best_f1(noise(3, 2), noise(4) > 0),
        "nothing to predict": lambda: ins.best_f1(noise(3, 2), torch.zeros(3, dtype=torch.bool)),
        "predictions": lambda: ins.f1_score(noise(3) > 0, noise(4) > 0),
        "fits no hook point": lambda: ins.run_with_hooks(ins.TinyMLP(4, 7, 3), noise(5, 4), [("hook_z", print)]),
        "fits no activation": lambda: ins.gradient_cache(model, random_tokens(1, 5), lambda name: False),
    }
    for message, call in calls.items():
        with pytest.raises(ValueError, match=message):
            call()
    with torch.no_grad(), pytest.raises(ValueError, match="switched off"):
        ins.gradient_cache(model, random_tokens(1, 5), lambda name: True)
