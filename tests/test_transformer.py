"""Each part of the transformer beside TransformerLens's on the same weights, and the tools of chapter 02."""

import math

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

from utils import transformer as t
from utils.checks.models import LIKE_GPT2, random_demo
from utils.models import load

TOKENS = torch.randint(0, 50, (2, 11), generator=torch.Generator().manual_seed(0))


def hooked(**more) -> HookedTransformer:
    sizes = {name: size for name, size in vars(LIKE_GPT2).items() if name.startswith(("d_", "n_"))}
    cfg = dict(act_fn="gelu_new", normalization_type="LN", device="cpu", seed=0)
    return HookedTransformer(HookedTransformerConfig(**(sizes | cfg | more)))


@pytest.fixture(scope="module")
def demo():
    return random_demo()


@pytest.fixture(scope="module")
def lens(demo):
    model = hooked()
    model.load_state_dict(demo.state_dict(), strict=False)
    return model


@pytest.fixture(scope="module")
def cache(lens):
    return lens.run_with_cache(TOKENS)[1]


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- the parts


def test_parameters_have_the_names_and_shapes_of_transformer_lens(demo, lens):
    theirs = {name: p.shape for name, p in lens.named_parameters()}
    assert {name: p.shape for name, p in demo.named_parameters()} == theirs


def test_every_part_gives_what_transformer_lens_gives(demo, lens, cache):
    close(demo.embed(TOKENS), cache["embed"])
    close(demo.pos_embed(TOKENS), cache["pos_embed"])
    for layer, (own, theirs) in enumerate(zip(demo.blocks, lens.blocks, strict=True)):
        resid_pre, resid_mid = cache["resid_pre", layer], cache["resid_mid", layer]
        close(own.ln1(resid_pre), theirs.ln1(resid_pre))
        # The cache's `normalized` is LayerNorm's output before its scale and shift.
        close(own.ln1(resid_pre), cache["normalized", layer, "ln1"] * own.ln1.w + own.ln1.b)
        close(own.attn(own.ln1(resid_pre)), cache["attn_out", layer])
        close(own.mlp(own.ln2(resid_mid)), cache["mlp_out", layer])
        close(own(resid_pre), cache["resid_post", layer])
    close(demo.unembed(demo.ln_final(cache["resid_post", 2])), lens(TOKENS))


def test_the_whole_model_gives_the_log_probabilities_of_transformer_lens(demo, lens):
    close(demo(TOKENS).log_softmax(-1), lens(TOKENS).log_softmax(-1))
    close(t.from_transformer_lens(lens)(TOKENS), lens(TOKENS))


def test_with_the_trained_weights_every_part_gives_what_transformer_lens_gives():
    lens = load("lm", processed=False).to("cpu", print_details=False)
    own = t.from_transformer_lens(lens)
    tokens = torch.randint(0, own.cfg.d_vocab, (2, 64), generator=torch.Generator().manual_seed(0))
    logits, cache = lens.run_with_cache(tokens)
    for layer, block in enumerate(own.blocks):
        resid_pre, resid_mid = cache["resid_pre", layer], cache["resid_mid", layer]
        close(block.attn(block.ln1(resid_pre)), cache["attn_out", layer])
        close(block.mlp(block.ln2(resid_mid)), cache["mlp_out", layer])
        close(block(resid_pre), cache["resid_post", layer])
    close(own(tokens).log_softmax(-1), logits.log_softmax(-1))
    folded = t.DemoTransformer(own.cfg).double()
    folded.load_state_dict(t.fold_layer_norm(own.double().state_dict()))
    change = folded(tokens).log_softmax(-1) - own(tokens).log_softmax(-1)
    assert change.abs().max() < 1e-5


def test_the_mask_hides_exactly_the_future(demo):
    pattern = demo.blocks[0].attn.apply_causal_mask(torch.zeros(1, 3, 4, 4)).softmax(-1)
    expected = torch.ones(4, 4).tril() / torch.arange(1, 5)[:, None]
    torch.testing.assert_close(pattern, expected.expand(1, 3, 4, 4))


def test_shapes_are_those_of_the_cache(cache):
    shapes = t.activation_shapes(LIKE_GPT2, *TOKENS.shape)
    named = {name.removeprefix("blocks.0."): tuple(x.shape) for name, x in cache.items()}
    for name, shape in shapes.items():
        if name not in ("tokens", "logits"):
            assert named[name] == shape, name


@pytest.mark.parametrize("other", [{"attn_only": True}, {"positional_embedding_type": "rotary", "rotary_dim": 8}])
def test_another_architecture_is_refused(other):
    with pytest.raises(ValueError, match="not built like GPT-2"):
        t.from_transformer_lens(hooked(**other))


def test_a_folded_model_is_refused():
    with pytest.raises(ValueError, match="processed=False"):
        t.from_transformer_lens(hooked(normalization_type="LNPre"))


# ---------------------------------------------------------------- loss, baselines, training


def test_log_probs_are_of_the_next_token(demo):
    logits = demo(TOKENS)
    want = -torch.nn.functional.cross_entropy(logits[:, :-1].mT, TOKENS[:, 1:], reduction="none")
    torch.testing.assert_close(t.get_log_probs(logits, TOKENS), want)


def test_unigram_loss_is_the_entropy_where_train_is_test():
    rows = torch.tensor([[0, 0, 0, 1], [0, 0, 1, 1]])
    counts = torch.tensor([5.1, 3.1])
    log_probs = (counts / counts.sum()).log()
    want = -log_probs[rows[:, 1:]].mean().item()
    assert t.unigram_loss(rows, rows, 2) == pytest.approx(want)
    with pytest.raises(ValueError, match="alpha"):
        t.unigram_loss(rows, rows, 2, alpha=0)


def test_bigram_loss_equals_the_slow_formula():
    draw = torch.Generator().manual_seed(0)
    train, test = torch.randint(0, 6, (5, 9), generator=draw), torch.randint(0, 7, (3, 9), generator=draw)
    frequency = torch.bincount(train.flatten(), minlength=7) + 0.1
    frequency = frequency / frequency.sum()
    losses = []
    for row in test.tolist():
        for a, b in zip(row, row[1:], strict=False):
            pairs = [(x, y) for r in train.tolist() for x, y in zip(r, r[1:], strict=False)]
            p = (pairs.count((a, b)) + frequency[b].item()) / (sum(x == a for x, _ in pairs) + 1)
            losses.append(-math.log(p))
    assert t.bigram_loss(train, test, 7) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def learnable_rows(n=64):
    """Each token is followed by the next number, always: a rule that a small model finds."""
    start = torch.randint(0, 50, (n, 1), generator=torch.Generator().manual_seed(0))
    return (start + torch.arange(12)) % 50


def test_training_lowers_the_loss_below_the_unigram_baseline():
    torch.manual_seed(0)
    model = t.DemoTransformer(LIKE_GPT2)
    rows = learnable_rows()
    losses = t.Trainer(model, rows, steps=60, batch_size=16, lr=1e-2).fit()
    assert losses[-1] < 1.0 < t.unigram_loss(rows, rows, 50)


def test_an_interrupted_training_goes_on_to_the_same_end():
    ends = []
    for stop in (None, 7):
        torch.manual_seed(0)
        model = t.DemoTransformer(LIKE_GPT2)
        calls = 0

        def step(*args, stop=stop):
            nonlocal calls
            calls += 1
            if calls == stop:
                raise KeyboardInterrupt
            return t.training_step(*args)

        trainer = t.Trainer(model, learnable_rows(), steps=15, batch_size=8, step=step)
        if stop:
            with pytest.raises(KeyboardInterrupt):
                trainer.fit()
            assert len(trainer.losses) == stop - 1
        ends.append(trainer.fit())
    assert ends[0] == ends[1] and len(ends[0]) == 15


def test_evaluate_is_the_mean_loss(demo):
    want = -t.get_log_probs(demo(TOKENS), TOKENS).mean().item()
    assert t.evaluate(demo, TOKENS, batch_size=1) == pytest.approx(want, rel=1e-5)


# ---------------------------------------------------------------- tied embeddings


def test_a_tied_table_is_symmetric_and_an_untied_one_is_not():
    draw = torch.Generator().manual_seed(0)
    W_E, W_U = torch.randn(30, 8, generator=draw), torch.randn(8, 30, generator=draw)
    assert t.antisymmetric_share(t.bigram_logits(W_E, W_E.T)) < 1e-6
    assert 0.6 < t.antisymmetric_share(t.bigram_logits(W_E, W_U)) < 0.8


def test_the_best_free_table_is_that_of_the_frequencies():
    counts = torch.tensor([[1.0, 3.0], [0.0, 4.0]])
    assert t.best_free_loss(counts) == pytest.approx(0.5 * (0.25 * 2 + 0.75 * math.log2(4 / 3)))


def test_the_best_symmetric_table_loses_nothing_on_symmetric_counts_and_something_on_others():
    draw = torch.Generator().manual_seed(0)
    counts = torch.randint(1, 20, (12, 12), generator=draw).float()
    even = counts + counts.T
    assert t.best_symmetric_loss(even) == pytest.approx(t.best_free_loss(even), abs=2e-3)
    ring = torch.eye(12).roll(1, dims=1) * 50 + 1  # token i is followed by i + 1
    lost = t.best_symmetric_loss(ring) - t.best_free_loss(ring)
    # Symmetric tables can't tell forwards from backwards: one of two neighbours, so nearly one bit.
    assert 0.5 < lost < 1.0


# ---------------------------------------------------------------- LayerNorm folding


def test_folding_keeps_the_log_probabilities(demo):
    state = demo.state_dict()
    before = {name: x.clone() for name, x in state.items()}
    folded = t.DemoTransformer(LIKE_GPT2)
    folded.load_state_dict(t.fold_layer_norm(state))
    torch.testing.assert_close(folded(TOKENS).log_softmax(-1), demo(TOKENS).log_softmax(-1), rtol=0, atol=1e-5)
    assert all(torch.equal(before[name], x) for name, x in state.items())
    assert all((p == 1).all() for name, p in folded.named_parameters() if name.endswith(("ln1.w", "ln_final.w")))


def test_folding_agrees_with_transformer_lens(demo, lens):
    own = t.fold_layer_norm(demo.state_dict())
    theirs = hooked(normalization_type="LNPre")
    theirs.load_and_process_state_dict(
        lens.state_dict(), fold_ln=True, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    # TransformerLens also takes the mean over d_model out of what reads the stream; that changes no output.
    want = theirs.blocks[1].attn.W_Q
    got = own["blocks.1.attn.W_Q"]
    torch.testing.assert_close(got - got.mean(dim=1, keepdim=True), want, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own["blocks.1.mlp.b_in"], theirs.blocks[1].mlp.b_in, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- positions


def test_similarity_by_distance():
    W_pos = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    torch.testing.assert_close(t.similarity_by_distance(W_pos), torch.tensor([1.0, 0.0, -1.0]))


def test_shortformer_attention_gives_what_transformer_lens_gives():
    lens = hooked(attn_only=True, normalization_type=None, positional_embedding_type="shortformer")
    cache = lens.run_with_cache(TOKENS)[1]
    attn = t.ShortformerAttention(LIKE_GPT2)
    attn.load_state_dict(lens.blocks[1].attn.state_dict(), strict=False)
    close(attn(cache["resid_pre", 1], cache["pos_embed"]), cache["attn_out", 1])
