"""Chapter 00: shapes and sums beside torch and einops, the tables beside the models, and what is said of bad input."""

import gc
import weakref

import einops
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from transformer_lens import ActivationCache, HookedTransformer
from transformer_lens.utilities import get_act_name

from utils import tensors as ts
from utils import toolbox
from utils.checks.models import noise, random_tokens, small_gpt
from utils.checks.tensors import bytes_held, mean_residual
from utils.checks.toolbox import self_test, timed
from utils.models import load, load_hf

SIZES = st.integers(0, 4)


# ---------------------------------------------------------------- broadcasting and einsum


@settings(max_examples=300, deadline=None)
@given(a=st.lists(SIZES, max_size=4).map(tuple), b=st.lists(SIZES, max_size=4).map(tuple))
def test_broadcast_shape_is_torchs(a, b):
    try:
        want = tuple((torch.zeros(a) + torch.zeros(b)).shape)
    except RuntimeError:
        with pytest.raises(ValueError, match="do not fit"):
            ts.broadcast_shape(a, b)
    else:
        assert ts.broadcast_shape(a, b) == want


@st.composite
def patterns(draw):
    """A pattern of einops with one to three tensors, and the tensors."""
    names = draw(st.lists(st.sampled_from(["a", "b", "head", "pos", "d_model"]), min_size=1, unique=True))
    sizes = {name: draw(st.integers(1, 3)) for name in names}
    parts = draw(st.lists(st.lists(st.sampled_from(names), unique=True, max_size=3), min_size=1, max_size=3))
    used = sorted({name for part in parts for name in part})
    kept = draw(st.permutations(used))[: draw(st.integers(0, len(used)))]
    tensors = [noise(*(sizes[name] for name in part), seed=i) for i, part in enumerate(parts)]
    return f"{', '.join(map(' '.join, parts))} -> {' '.join(kept)}", tensors


@settings(max_examples=200, deadline=None)
@given(made=patterns())
def test_einsum_by_loops_is_einops_and_torchs(made):
    pattern, tensors = made
    got = ts.einsum_by_loops(pattern, *tensors)
    torch.testing.assert_close(got, einops.einsum(*tensors, pattern))
    letters = {"a": "a", "b": "b", "head": "h", "pos": "p", "d_model": "m"}
    short = "->".join(
        ",".join("".join(letters[name] for name in part.split()) for part in side.split(","))
        for side in pattern.split("->")
    )
    torch.testing.assert_close(got, torch.einsum(short, *tensors))


@pytest.mark.parametrize(
    "pattern, shapes, said",
    [
        ("a b, b -> a", [(2, 3)], "does not fit"),
        ("a b, b -> a", [(2, 3), (3, 1)], "does not fit"),
        ("a b, b -> a", [(2, 3), (2,)], "two sizes"),
        ("a b -> c", [(2, 3)], "'c' stands nowhere"),
    ],
)
def test_a_pattern_that_does_not_fit_is_refused(pattern, shapes, said):
    with pytest.raises(ValueError, match=said):
        ts.einsum_by_loops(pattern, *map(torch.zeros, shapes))


# ---------------------------------------------------------------- numbers and memory


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_every_whole_number_below_the_first_lost_one_is_held(dtype):
    lost = ts.first_lost_integer(dtype)
    below = torch.arange(max(0, lost - 100_000), lost, dtype=torch.float64)
    assert torch.equal(below.to(dtype).double(), below)
    assert torch.tensor(lost, dtype=dtype).item() != lost


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_tensor_weighs_its_numbers(dtype):
    x = torch.zeros(6, 10, dtype=dtype)
    assert ts.bytes_held([x]) == ts.bytes_held([x[0], x.T]) == 120
    assert ts.bytes_held([]) == 0


def test_the_peak_counts_what_lives_at_one_time():
    def one_after_the_other():
        for _ in range(5):
            torch.zeros(1000).exp()

    def all_at_once():
        return [torch.zeros(1000) for _ in range(5)]

    given_before = torch.zeros(1000)
    assert ts.peak_bytes(one_after_the_other) <= 3 * 4000
    assert ts.peak_bytes(all_at_once) == 5 * 4000
    assert ts.peak_bytes(lambda: given_before.view(10, 100).T) == 0
    assert ts.peak_bytes(lambda: given_before.add_(1)) == 0
    assert ts.peak_bytes(lambda: given_before + 1) == 4000


def test_the_lean_sweep_needs_a_quarter_and_is_the_mean():
    model, rows = small_gpt(4, 3), random_tokens(8, 11)
    everything = ts.peak_bytes(lambda: model.run_with_cache(rows))
    assert 4 * ts.peak_bytes(lambda: ts.mean_residual(model, rows, 2)) < everything
    _, cache = model.run_with_cache(rows)
    torch.testing.assert_close(ts.mean_residual(model, rows, 2), cache["resid_post", 2][:, -1].mean(0))


def test_the_gradient_leaves_nothing_alive():
    x = torch.ones(3)
    seen = []

    def fn(leaf):
        seen.append(weakref.ref(leaf))
        return (leaf**2).sum()

    torch.testing.assert_close(ts.gradient_of(fn, x), 2 * x)
    gc.collect()
    assert seen[0]() is None


# ---------------------------------------------------------------- the libraries


@pytest.fixture(scope="module")
def in_both():
    """transformers' model and TransformerLens's cache of one run, without processing."""
    tokens = torch.arange(2, 26).reshape(2, 12)
    return load_hf("lm"), tokens, load("lm", processed=False).run_with_cache(tokens)[1]


@pytest.mark.parametrize("layer", [0, 3])
def test_the_places_hold_equal_numbers(layer, in_both):
    hf, tokens, cache = in_both
    for name, place in toolbox.gpt2_places(layer).items():
        want = cache[name, layer].flatten(2)
        got = toolbox.tensor_at(hf, place, input_ids=tokens)
        assert (got - want).abs().max() < 1e-3 * want.abs().max(), name


def test_the_vocabulary_is_the_tokenizers(in_both):
    tokenizer = load("lm").tokenizer
    by_id = toolbox.vocab_by_id(tokenizer)
    assert by_id == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))


def test_a_hook_for_each_layer_knows_its_layer():
    model, seen = small_gpt(4, 3), []
    hooks = toolbox.layer_hooks("z", range(4), lambda z, layer: seen.append(layer))
    model.run_with_hooks(random_tokens(1, 5), fwd_hooks=hooks)
    assert seen == [0, 1, 2, 3] and [name for name, _ in hooks] == [get_act_name("z", layer) for layer in range(4)]


def test_a_map_says_what_is_installed():
    console = Console(width=300)
    with console.capture() as drawn:
        console.print(toolbox.outline(HookedTransformer, "from_pretrained", "W_in"))
        console.print(toolbox.outline(ActivationCache, "decompose_resid"))
    assert "fold_ln" in drawn.get() and "cls" not in drawn.get() and "(attribute)" in drawn.get()


def test_results_on_disk_are_whole_or_absent(tmp_path):
    @toolbox.cached_on_disk(tmp_path)
    def broken(x):
        return lambda: x  # no result that torch.save can write

    with pytest.raises(Exception, match="pickle|local"):
        broken(1)
    assert not list(tmp_path.glob("*.pt"))


# ---------------------------------------------------------------- what the checks say


def test_the_self_test_says_which_sections_to_do():
    right = toolbox.self_test()
    verdict = self_test.verdict(lambda: right | {2: 7, 9: 200})
    assert "questions 2, 9" in verdict.says and "sections 1, 6" in verdict.says
    verdict = self_test.verdict(lambda: {n: right[n] for n in right if n != 8})
    assert "question 8" in verdict.says and "section 5" in verdict.says
    assert self_test.verdict(lambda: right).state == "solved"


def test_a_decorator_that_forgets_an_argument_is_not_accepted():
    def takes_no_keywords(fn):
        def wrapper(*args):
            wrapper.seconds.append(0.0)
            return fn(*args)

        wrapper.seconds = []
        return wrapper

    assert timed.verdict(takes_no_keywords).state == "wrong"


def test_a_sweep_that_keeps_views_of_whole_caches_is_not_accepted():
    def keeps(model, rows, layer):
        if not 0 <= layer < model.cfg.n_layers:
            raise ValueError
        caches = [model.run_with_cache(row[None])[1] for row in rows]
        return torch.stack([cache["resid_post", layer][0, -1] for cache in caches]).mean(0)

    assert mean_residual.verdict(keeps).state == "wrong"


def test_bytes_counted_by_shape_are_not_accepted():
    assert bytes_held.verdict(lambda tensors: sum(t.nbytes for t in tensors)).state == "wrong"
