"""Chapter 09: the data set, and every method against transformer_lens's own patching or another way to compute it."""

import os
import re
from functools import partial

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig, patching

from utils import ioi
from utils.checks.ioi import metric, small_runs
from utils.checks.models import hook_point, small_gpt, tokenizer_of
from utils.models import load_tokenizer
from utils.world import HELD_OUT_NAME_PAIRS
from utils.world.templates import IOI as TEMPLATES


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("lm")


# ---------------------------------------------------------------- the data set


@pytest.mark.parametrize("template", range(len(TEMPLATES)))
def test_roles_point_at_their_names(tokenizer, template):
    data = ioi.IOIDataset.sample(tokenizer, 8, template, seed=template)
    assert data.tokens.shape[0] == len(data) == 8 and (data.tokens[:, 0] == tokenizer.bos_token_id).all()
    rows = torch.arange(8)
    for role, column in (("IO", 0), ("S1", 1), ("S2", 1)):
        assert torch.equal(data.tokens[rows, data.positions[role]], data.answer_tokens[:, column]), role
    assert (data.positions["S1"] < data.positions["S2"]).all()
    assert torch.equal(data.positions["S1+1"], data.positions["S1"] + 1)
    assert (data.positions["END"] == data.tokens.shape[1] - 1).all()
    order = data.positions["IO"] < data.positions["S1"]
    assert order.tolist() == [i % 2 == 0 for i in range(8)]


@pytest.mark.parametrize("template", range(len(TEMPLATES)))
def test_flipped_differs_at_s2_only_and_abc_at_the_names_only(tokenizer, template):
    data = ioi.IOIDataset.sample(tokenizer, 8, template)
    flipped, abc, rows = data.flipped(), data.abc(), torch.arange(8)
    differ = data.tokens != flipped.tokens
    assert (differ.sum(dim=1) == 1).all() and differ[rows, data.positions["S2"]].all()
    assert torch.equal(flipped.answer_tokens, data.answer_tokens.flip(1))
    differ = data.tokens != abc.tokens
    assert (differ.sum(dim=1) == 3).all()
    assert all(differ[rows, data.positions[role]].all() for role in ("IO", "S1", "S2"))
    assert torch.equal(abc.answer_tokens, data.answer_tokens)
    assert all(torch.equal(abc.positions[role], data.positions[role]) for role in data.positions)
    assert abc.texts != data.abc(seed=1).texts and abc.texts == data.abc(seed=0).texts


def test_a_seed_gives_the_same_prompts_and_held_out_pairs_are_used(tokenizer):
    sample = partial(ioi.IOIDataset.sample, tokenizer, 12, 1)
    assert sample(seed=3).texts == sample(seed=3).texts != sample(seed=4).texts
    pairs = {frozenset(pair) for pair in HELD_OUT_NAME_PAIRS}
    assert all(frozenset(answer) in pairs for answer in sample(name_pairs=HELD_OUT_NAME_PAIRS).answers)


def test_bad_names_and_templates_are_refused(tokenizer):
    with pytest.raises(ValueError, match="is .* tokens .*choose a word that is one token|equally long"):
        ioi.IOIDataset.sample(tokenizer, 2, name_pairs=[("Mary", "Xqzwvbartholomew")])
    with pytest.raises(ValueError, match="no template 99"):
        ioi.IOIDataset.sample(tokenizer, 2, template=99)
    with pytest.raises(ValueError, match="equally long"):
        fillings = [dict(name="a", name2="b", subject="a", recipient="b", gift=gift) for gift in ("c", "c d")]
        text = " {name} {name2} {subject} gave {gift} to {recipient}."
        ioi.IOIDataset(tokenizer_of(" a b c d gave to"), text, fillings)


# ---------------------------------------------------------------- metrics and attribution


def test_metric_is_1_on_the_clean_and_0_on_the_corrupted_run():
    clean, corrupted, *_ = small_runs()
    got = [metric(small_gpt()(tokens)).item() for tokens in (clean, corrupted)]
    assert got == pytest.approx([1, 0], abs=1e-4)


def test_bad_answers_and_references_are_refused():
    clean, _, answers, *_ = small_runs()
    logits = small_gpt()(clean)
    with pytest.raises(ValueError, match="must be of shape"):
        ioi.logits_to_ave_logit_diff(logits, answers[:2])
    with pytest.raises(ValueError, match="nothing could be restored"):
        ioi.ioi_metric(logits, answers, 1.0, 1.0)


def test_parts_add_up_to_the_logit_difference():
    model = small_gpt()
    clean, _, answers, cache, _ = small_runs()
    directions = (model.W_U[:, answers[:, 0]] - model.W_U[:, answers[:, 1]]).T
    # This model's final LayerNorm is not folded: its weight belongs to the direction, its bias adds a constant.
    constant = (directions @ model.ln_final.b).mean() + (model.b_U[answers[:, 0]] - model.b_U[answers[:, 1]]).mean()
    parts = cache.decompose_resid(layer=-1, pos_slice=-1)
    by_part = ioi.residual_stack_to_logit_diff(parts, cache, directions * model.ln_final.w)
    want = ioi.logits_to_ave_logit_diff(model(clean), answers)
    assert torch.allclose(by_part.sum() + constant, want, atol=1e-4)


# ---------------------------------------------------------------- patching, against transformer_lens


def test_residual_sweep_equals_the_librarys():
    _, corrupted, _, cache, _ = small_runs()
    ours = ioi.get_act_patch_resid_pre(small_gpt(), corrupted, cache, metric)
    assert torch.allclose(ours, patching.get_act_patch_resid_pre(small_gpt(), corrupted, cache, metric), atol=1e-5)


@pytest.mark.parametrize("activation, name", [("z", "out"), ("q", "q"), ("k", "k"), ("v", "v"), ("pattern", "pattern")])
def test_head_sweeps_equal_the_librarys(activation, name):
    _, corrupted, _, cache, _ = small_runs()
    ours = ioi.get_act_patch_heads(small_gpt(), corrupted, cache, metric, activation)
    theirs = getattr(patching, f"get_act_patch_attn_head_{name}_all_pos")(small_gpt(), corrupted, cache, metric)
    assert torch.allclose(ours, theirs, atol=1e-5) and ours.abs().max() > 1e-3
    with pytest.raises(ValueError, match="choose z, q, k, v or pattern"):
        ioi.get_act_patch_heads(small_gpt(), corrupted, cache, metric, "mlp")


def attention_only() -> HookedTransformer:
    sizes = dict(n_layers=3, d_model=20, n_heads=5, d_head=6, n_ctx=32, d_vocab=37, attn_only=True)
    return HookedTransformer(HookedTransformerConfig(**sizes, normalization_type="LNPre", seed=4))


@pytest.mark.parametrize("model", [small_gpt(), attention_only()], ids=["with MLPs", "attention only"])
@pytest.mark.parametrize("corrupt_at", [0, 4, 8] if "WORKBOOK_FULL" in os.environ else [4])
def test_fast_sweep_over_positions_equals_the_librarys(model, corrupt_at):
    clean, _, answers, *_ = small_runs()
    corrupted = clean.clone()
    corrupted[:, corrupt_at] = (clean[:, corrupt_at] + 5) % 37
    ask = partial(ioi.logits_to_ave_logit_diff, answer_tokens=answers)
    _, cache = model.run_with_cache(clean)
    ours = ioi.get_act_patch_heads_by_pos(model, corrupted, cache, ask)
    theirs = patching.get_act_patch_attn_head_out_by_pos(model, corrupted, cache, ask)
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_prompts_of_unequal_length_are_refused_with_both_lengths():
    _, corrupted, _, clean_cache, _ = small_runs()
    other = corrupted[:, :-2]
    sweeps = [ioi.get_act_patch_resid_pre, ioi.get_act_patch_heads, ioi.get_act_patch_heads_by_pos]
    sweeps += [partial(ioi.get_act_patch_heads, activation=name) for name in ("q", "pattern")]
    for sweep in sweeps:
        for tokens in (other, torch.cat([corrupted, corrupted], dim=1)):
            said = f"prompts of {tokens.shape[1]} tokens, but the cached run had {corrupted.shape[1]}"
            with pytest.raises(ValueError, match=said):
                sweep(small_gpt(), tokens, clean_cache, metric)
    _, patterns = small_gpt().run_with_cache(corrupted, names_filter="blocks.0.attn.hook_pattern")
    with pytest.raises(ValueError, match="7 tokens, but the cached run had 9"):
        ioi.require_same_length(other, patterns)
    assert ioi.require_same_length(corrupted, patterns) is None
    hooks = {
        "resid_pre": partial(ioi.patch_residual_component, pos=4),
        "v": partial(ioi.patch_head_vector, head_index=3),
        "pattern": partial(ioi.patch_attn_patterns, head_index=3),
    }
    for name, hook in hooks.items():
        there = clean_cache[name, 1]
        with pytest.raises(ValueError, match=re.escape(f"the cached run had {list(there.shape)}")):
            hook(there[:, :-2].clone(), hook=hook_point(name, 1), clean_cache=clean_cache)
