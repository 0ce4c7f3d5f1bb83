"""What is asked of a learner's functions in the second half of chapter 08."""

from functools import cache, partial

import einops
import torch
from transformer_lens.hook_points import HookPoint

from utils import ioi, sae_causes, saes
from utils.checks.models import small_gpt
from utils.checks.sae_models import (
    BATCH,
    D_SAE,
    LAYER,
    SEQ,
    linear_model,
    small_acts,
    small_answers,
    small_metric,
    small_model,
    small_runs,
    small_sae,
)
from utils.checks.saes import chapter
from utils.runtime import device
from utils.world import parse, sample

exercise = chapter.exercise


def _use_model(fn, model, attached, *args):
    """A wrong answer may leave hooks or autoencoders behind; they must not spoil the next one."""
    try:
        return fn(model, attached, *args)
    finally:
        model.reset_saes()
        # An attached autoencoder's hooks are its own: the model doesn't reach them any more.
        for module in [model, *(attached if isinstance(attached, list) else [attached])]:
            module.reset_hooks()


# ---------------------------------------------------------------- attention_of_top_examples

attention_of_top_examples = exercise(sae_causes.attention_of_top_examples)


@attention_of_top_examples.cases
def _():
    cache = small_runs()[1]
    yield small_acts()[..., 1], cache, LAYER, 3
    yield small_acts()[..., 4] + torch.arange(SEQ) / 10, cache, 2, 2
    # Two tokens of one row are the most active of all.
    acts = torch.zeros(BATCH, SEQ)
    acts[2, 5], acts[2, 3], acts[0, 4], acts[3, 6] = 4.0, 3.0, 2.0, 1.0
    yield acts, cache, 0, 3


def _top(latent_acts, k):
    largest, positions = latent_acts.max(dim=1)
    rows = largest.topk(k).indices
    return rows, positions[rows]


def _read(cache, layer, rows, positions):
    where = torch.stack([rows, positions], dim=1)
    return where, cache["v", layer][rows], cache["pattern", layer][rows, :, positions]


@attention_of_top_examples.mistake("query and key are swapped: a pattern is [batch, head, query, key]")
def _(latent_acts, cache, layer, k):
    where, v, _ = sae_causes.attention_of_top_examples(latent_acts, cache, layer, k)
    return where, v, cache["pattern", layer][where[:, 0], :, :, where[:, 1]]


@attention_of_top_examples.mistake("you took the first k rows: take those with the largest activation")
def _(latent_acts, cache, layer, k):
    return _read(cache, layer, torch.arange(k), latent_acts.argmax(dim=1)[:k])


@attention_of_top_examples.mistake("you took the k largest tokens of all: take each row's largest first, then k rows")
def _(latent_acts, cache, layer, k):
    best = latent_acts.flatten().topk(k).indices
    return _read(cache, layer, best // latent_acts.shape[1], best % latent_acts.shape[1])


@attention_of_top_examples.mistake(
    "you took v at the latent's own position: keep all positions, the heads read them all"
)
def _(latent_acts, cache, layer, k):
    where, v, pattern = sae_causes.attention_of_top_examples(latent_acts, cache, layer, k)
    return where, v[torch.arange(k), where[:, 1]], pattern


@attention_of_top_examples.mistake(
    "you took the attention from the last position: take it from where the latent is active"
)
def _(latent_acts, cache, layer, k):
    where, v, _ = sae_causes.attention_of_top_examples(latent_acts, cache, layer, k)
    return where, v, cache["pattern", layer][where[:, 0], :, -1]


@attention_of_top_examples.mistake("you took the rows with the smallest activations: take the largest")
def _(latent_acts, cache, layer, k):
    largest, positions = latent_acts.max(dim=1)
    rows = largest.topk(k, largest=False).indices
    return _read(cache, layer, rows, positions[rows])


@attention_of_top_examples.law("pattern times v must give the heads' z at that place")
def _(attention_of_top_examples):
    cache = small_runs()[1]
    where, v, pattern = attention_of_top_examples(small_acts()[..., 2], cache, LAYER, 3)
    z = einops.einsum(pattern, v, "k head seqK, k seqK head d_head -> k head d_head")
    return torch.allclose(z, cache["z", LAYER][where[:, 0], where[:, 1]], atol=1e-5)


@attention_of_top_examples.right
def _(latent_acts, cache, layer, k):
    rows = sorted(range(len(latent_acts)), key=lambda row: -latent_acts[row].max().item())[:k]
    places = [(row, latent_acts[row].argmax().item()) for row in rows]
    v = torch.stack([cache["v", layer][row] for row, _ in places])
    return torch.tensor(places), v, torch.stack([cache["pattern", layer][row, :, pos] for row, pos in places])


# ---------------------------------------------------------------- direct_feature_attribution

direct_feature_attribution = exercise(sae_causes.direct_feature_attribution)


@direct_feature_attribution.cases
def _():
    for layer, latent, sae in (
        (1, 1, small_sae()),
        (1, 7, small_sae()),
        (1, 0, small_sae()),
        (2, 4, small_sae("blocks.2.attn.hook_z", "standard")),
    ):
        _, v, pattern = sae_causes.attention_of_top_examples(small_acts()[..., latent], small_runs()[1], layer, 3)
        yield v, pattern, sae, latent


def _bias(sae, latent_idx):
    return sae.b_enc[latent_idx] - sae.cfg.apply_b_dec_to_input * (sae.b_dec @ sae.W_enc[:, latent_idx])


def _attribute(v, pattern, W):
    return torch.einsum("khs,kshd,hd->ksh", pattern, v, W)


def _column(sae, latent_idx, heads):
    return sae.W_enc[:, latent_idx].reshape(heads, -1)


@direct_feature_attribution.mistake("the biases are missing: b_enc, less what b_dec takes off the input")
def _(v, pattern, sae, latent_idx):
    return _attribute(v, pattern, _column(sae, latent_idx, 3)), torch.tensor(0.0)


@direct_feature_attribution.mistake(
    "the encoder sees z - b_dec: take b_dec @ W_enc[:, latent] off the bias, not b_enc alone"
)
def _(v, pattern, sae, latent_idx):
    return _attribute(v, pattern, _column(sae, latent_idx, 3)), sae.b_enc[latent_idx]


@direct_feature_attribution.mistake("b_dec is taken off the input only where sae.cfg.apply_b_dec_to_input says so")
def _(v, pattern, sae, latent_idx):
    bias = sae.b_enc[latent_idx] - sae.b_dec @ sae.W_enc[:, latent_idx]
    return _attribute(v, pattern, _column(sae, latent_idx, 3)), bias


@direct_feature_attribution.mistake("you used W_dec: what a latent reads is a column of W_enc")
def _(v, pattern, sae, latent_idx):
    return _attribute(v, pattern, sae.W_dec[latent_idx].reshape(3, 5)), _bias(sae, latent_idx)


@direct_feature_attribution.mistake("values are not weighted: multiply by the pattern, how much of each was read")
def _(v, pattern, sae, latent_idx):
    return _attribute(v, torch.ones_like(pattern), _column(sae, latent_idx, 3)), _bias(sae, latent_idx)


@direct_feature_attribution.mistake(
    "the column is cut wrongly: it is (head d_head), one head's numbers after the other's"
)
def _(v, pattern, sae, latent_idx):
    W = einops.rearrange(sae.W_enc[:, latent_idx], "(d_head head) -> head d_head", head=3)
    return _attribute(v, pattern, W), _bias(sae, latent_idx)


@direct_feature_attribution.mistake("you summed over heads: keep one number for each source token and head")
def _(v, pattern, sae, latent_idx):
    return _attribute(v, pattern, _column(sae, latent_idx, 3)).sum(-1), _bias(sae, latent_idx)


@direct_feature_attribution.law("all sources and the bias must add up to the latent's pre-activation")
def _(direct_feature_attribution):
    _, own, attached = small_runs()
    where, v, pattern = sae_causes.attention_of_top_examples(small_acts()[..., 2], own, LAYER, 3)
    by_source, bias = direct_feature_attribution(v, pattern, small_sae(), 2)
    before = attached["blocks.1.attn.hook_z.hook_sae_acts_pre"][where[:, 0], where[:, 1], 2]
    return torch.allclose(by_source.sum(dim=(1, 2)) + bias, before, atol=1e-4)


@direct_feature_attribution.right
def _(v, pattern, sae, latent_idx):
    brought = v * pattern.permute(0, 2, 1)[..., None]
    by_source = (brought * sae.W_enc[:, latent_idx].view(1, 1, v.shape[2], v.shape[3])).sum(-1)
    # What an encoder makes of nothing at all is its bias.
    nothing = torch.zeros(v.shape[2] * v.shape[3]) - sae.b_dec * sae.cfg.apply_b_dec_to_input
    return by_source, (nothing @ sae.W_enc + sae.b_enc)[latent_idx]


# ---------------------------------------------------------------- latent_directions

latent_directions = exercise(sae_causes.latent_directions)


@latent_directions.cases
def _():
    yield small_model(), small_sae()
    yield small_model(), small_sae("blocks.2.attn.hook_z", "standard")
    yield small_model(), small_sae("blocks.1.hook_resid_pre")


def _through(W, W_O):
    return einops.einsum(W, W_O, "latent head d_head, head d_head d_model -> latent d_model")


def _by_head(W, pattern="latent (head d_head) -> latent head d_head"):
    return einops.rearrange(W, pattern, head=3)


@latent_directions.mistake("you used W_enc: what a latent writes is a row of W_dec")
def _(model, sae):
    sae_causes.require_hook_z(sae)
    return _through(_by_head(sae.W_enc.T), model.W_O[saes.layer_of(sae)])


@latent_directions.mistake("W_O of the wrong layer: take that of the autoencoder, layer_of(sae)")
def _(model, sae):
    sae_causes.require_hook_z(sae)
    return _through(_by_head(sae.W_dec), model.W_O[0])


@latent_directions.mistake("the rows are cut wrongly: each is (head d_head), one head's numbers after the other's")
def _(model, sae):
    sae_causes.require_hook_z(sae)
    return _through(_by_head(sae.W_dec, "latent (d_head head) -> latent head d_head"), model.W_O[saes.layer_of(sae)])


@latent_directions.mistake("you stopped at W_dec: it lives among the heads' outputs, W_O brings it into the stream")
def _(model, sae):
    sae_causes.require_hook_z(sae)
    return sae.W_dec


@latent_directions.mistake("you added b_O to every latent: it is written once, whatever the latents do")
def _(model, sae):
    sae_causes.require_hook_z(sae)
    return sae_causes.latent_directions(model, sae) + model.b_O[saes.layer_of(sae)]


@latent_directions.law("latents times directions must be what their decoded sum writes through W_O")
def _(latent_directions):
    sae, acts = small_sae(), small_acts()
    z = (sae.decode(acts) - sae.b_dec.view(3, 5)).view(BATCH, SEQ, 3, 5)
    want = einops.einsum(z, small_model().W_O[LAYER], "b s head d_head, head d_head d_model -> b s d_model")
    return torch.allclose(acts @ latent_directions(small_model(), sae), want, atol=1e-4)


@latent_directions.right
def _(model, sae):
    sae_causes.require_hook_z(sae)
    return sae.W_dec @ model.W_O[saes.layer_of(sae)].flatten(0, 1)


# ---------------------------------------------------------------- latent_logit_attribution

latent_logit_attribution = exercise(sae_causes.latent_logit_attribution)


@cache
def small_directions() -> torch.Tensor:
    # Shifted, so that the mean that the LayerNorm takes off shows.
    return sae_causes.latent_directions(small_model(), small_sae()) + torch.linspace(-1, 1, D_SAE)[:, None]


@latent_logit_attribution.cases
def _():
    yield small_acts()[:, -1], small_directions(), small_runs()[1], small_answers()
    without_mean = small_gpt(norm="RMS").run_with_cache(small_runs()[0])[1]  # this norm takes off no mean
    yield small_acts()[:, -1], small_directions(), without_mean, small_answers()


def _attributed(acts, directions, cache, answers, scale_at=-1, centre=True):
    if centre:
        directions = directions - directions.mean(dim=-1, keepdim=True)
    return acts * (answers @ directions.T) / cache["ln_final.hook_scale"][:, scale_at]


@latent_logit_attribution.mistake("the activations are missing: a latent writes its activation times its direction")
def _(acts, directions, cache, logit_diff_directions):
    return _attributed(torch.ones_like(acts), directions, cache, logit_diff_directions)


@latent_logit_attribution.mistake("the final LayerNorm's scale is missing: divide by it")
def _(acts, directions, cache, logit_diff_directions):
    return (
        sae_causes.latent_logit_attribution(acts, directions, cache, logit_diff_directions)
        * (cache["ln_final.hook_scale"][:, -1])
    )


@latent_logit_attribution.mistake("you took the scale of the first position: the answer is read off at the last")
def _(acts, directions, cache, logit_diff_directions):
    return _attributed(acts, directions, cache, logit_diff_directions, scale_at=0)


@latent_logit_attribution.mistake("the mean is not taken off: LayerNorm removes each direction's mean over d_model")
def _(acts, directions, cache, logit_diff_directions):
    return _attributed(acts, directions, cache, logit_diff_directions, centre=False)


@latent_logit_attribution.mistake("every prompt got the first one's answers: use each prompt's own direction")
def _(acts, directions, cache, logit_diff_directions):
    return _attributed(acts, directions, cache, logit_diff_directions[:1])


@latent_logit_attribution.mistake("you took the mean over prompts: give one number for each prompt and latent")
def _(acts, directions, cache, logit_diff_directions):
    return _attributed(acts, directions, cache, logit_diff_directions).mean(0)


@latent_logit_attribution.law("latents, b_dec and error must add up to what the layer's heads write of the answer")
def _(latent_logit_attribution):
    model, sae, (_, own, _) = small_model(), small_sae(), small_runs()
    W_O = model.W_O[LAYER].flatten(0, 1)
    z = own["z", LAYER][:, -1].flatten(1)
    error = z - sae.decode(small_acts())[:, -1].flatten(1)
    ones = torch.ones(BATCH, 1)
    total = latent_logit_attribution(
        small_acts()[:, -1], sae_causes.latent_directions(model, sae), own, small_answers()
    )
    total = total.sum(1) + latent_logit_attribution(ones, (sae.b_dec @ W_O)[None], own, small_answers())[:, 0]
    for i in range(BATCH):
        total[i] += latent_logit_attribution(ones, (error[i] @ W_O)[None], own, small_answers())[i, 0]
    want = (z @ W_O - (z @ W_O).mean(1, keepdim=True)) / own["ln_final.hook_scale"][:, -1]
    return torch.allclose(total, (want * small_answers()).sum(1), atol=1e-4)


@latent_logit_attribution.right
def _(acts, directions, cache, logit_diff_directions):
    written = acts[..., None] * directions
    if not cache.model.cfg.normalization_type.startswith("RMS"):
        written = written - written.mean(dim=-1, keepdim=True)
    written = written / cache["ln_final.hook_scale"][:, -1:]
    return (written * logit_diff_directions[:, None]).sum(dim=-1)


# ---------------------------------------------------------------- logits_to_ave_logit_diff


def _use_logit_diff(fn, logits, *args):
    logits.requires_grad_()
    value = fn(logits, *args)
    tensor = isinstance(value, torch.Tensor)
    return {"value": value, "a tensor": tensor, "gradients flow": tensor and value.requires_grad}


logits_to_ave_logit_diff = exercise(sae_causes.logits_to_ave_logit_diff, use=_use_logit_diff)


@logits_to_ave_logit_diff.cases
def _():
    logits = torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(5)) * 2
    right, wrong = torch.tensor([1, 9, 4]), torch.tensor([2, 0, 7])
    yield logits, right, wrong
    yield logits, right, wrong, "sum"
    yield logits, right, wrong, None
    yield logits, right, wrong, "mean", True
    yield logits, right, wrong, "sum", True
    yield logits, right, wrong, None, True
    yield logits, right, wrong, "median"


def _logit_diff(logits, right, wrong, reduction="mean", keep_as_tensor=False, at=-1):
    if reduction not in ("mean", "sum", None):
        raise ValueError
    rows = torch.arange(len(logits))
    diff = logits[rows, at, right] - logits[rows, at, wrong]
    diff = diff if reduction is None else getattr(diff, reduction)()
    return diff if keep_as_tensor else diff.tolist()


@logits_to_ave_logit_diff.mistake("the sign is turned: right minus wrong")
def _(logits, right, wrong, *options):
    return _logit_diff(logits, wrong, right, *options)


@logits_to_ave_logit_diff.mistake("you looked at the first position: the answer comes after the last token, [:, -1]")
def _(logits, right, wrong, *options):
    return _logit_diff(logits, right, wrong, *options, **({"at": 0}))


@logits_to_ave_logit_diff.mistake("you took log-probabilities of one token: subtract the wrong token's logit")
def _(logits, right, wrong, *options):
    return _logit_diff(
        torch.cat([logits.log_softmax(-1), torch.zeros(3, 5, 1)], dim=-1), right, 0 * wrong + 11, *options
    )


@logits_to_ave_logit_diff.mistake("every prompt got all answers: pair row i with correct_toks[i]")
def _(logits, right, wrong, reduction="mean", keep_as_tensor=False):
    if reduction not in ("mean", "sum", None):
        raise ValueError
    diff = logits[:, -1, right] - logits[:, -1, wrong]
    diff = diff.mean(1) if reduction is None else getattr(diff, reduction)()
    return diff if keep_as_tensor else diff.tolist()


@logits_to_ave_logit_diff.mistake("keep_as_tensor=True must give the tensor itself, so that gradients flow through it")
def _(logits, right, wrong, reduction="mean", keep_as_tensor=False):
    return _logit_diff(logits, right, wrong, reduction)


@logits_to_ave_logit_diff.mistake("you always gave a tensor: without keep_as_tensor return numbers, with .tolist()")
def _(logits, right, wrong, reduction="mean", keep_as_tensor=False):
    return _logit_diff(logits, right, wrong, reduction, True)


@logits_to_ave_logit_diff.law("exchanging right and wrong must turn the sign")
def _(logits_to_ave_logit_diff):
    logits, a, b = torch.randn(3, 2, 6), torch.tensor([0, 1, 2]), torch.tensor([3, 4, 5])
    there, back = (logits_to_ave_logit_diff(logits, *pair, "sum") for pair in ((a, b), (b, a)))
    return abs(there + back) < 1e-4 < abs(there)


@logits_to_ave_logit_diff.right
def _(logits, right, wrong, reduction="mean", keep_as_tensor=False):
    if reduction not in ("mean", "sum", None):
        raise ValueError("choose mean, sum or None")
    diff = logits[:, -1].gather(1, torch.stack([right, wrong], 1)) @ torch.tensor([1.0, -1.0])
    diff = {"mean": diff.mean(), "sum": diff.sum(), None: diff}[reduction]
    if keep_as_tensor:
        return diff
    return diff.item() if diff.ndim == 0 else [x.item() for x in diff]


# ---------------------------------------------------------------- ablate_sae_latent


def _use_ablation(fn, acts, *args):
    returned = fn(acts, HookPoint(), *args)
    return acts if returned is None else returned


ablate_sae_latent = exercise(
    sae_causes.ablate_sae_latent, use=_use_ablation, in_place={"sae_acts": "a hook may edit them"}
)


@ablate_sae_latent.cases
def _():
    acts = torch.rand(2, 6, 8, generator=torch.Generator().manual_seed(6)) + 0.1
    yield acts, 5, 2
    yield acts, 4, None
    yield acts, None, 3
    yield acts, None, None
    yield acts, 0, 0
    yield acts, 1, -1


@ablate_sae_latent.mistake(
    "None as an index makes a new axis, and the next index falls on the wrong one: use slice(None)"
)
def _(sae_acts, hook, latent_idx=None, seq_pos=None):
    # The published version.
    sae_acts[:, seq_pos, latent_idx] = 0.0
    return sae_acts


@ablate_sae_latent.mistake("0 is a latent and a position too: ask `is None`, not whether the number is true")
def _(sae_acts, hook, latent_idx=None, seq_pos=None):
    sae_acts[:, seq_pos if seq_pos else slice(None), latent_idx if latent_idx else slice(None)] = 0.0
    return sae_acts


@ablate_sae_latent.mistake("latent and position are swapped: the tensor is [batch, seq, latent]")
def _(sae_acts, hook, latent_idx=None, seq_pos=None):
    at, of = (slice(None) if x is None else x for x in (seq_pos, latent_idx))
    sae_acts[:, of, at] = 0.0
    return sae_acts


@ablate_sae_latent.mistake("you ablated in the first prompt only: the whole batch")
def _(sae_acts, hook, latent_idx=None, seq_pos=None):
    sae_causes.ablate_sae_latent(sae_acts[:1], hook, latent_idx, seq_pos)
    return sae_acts


@ablate_sae_latent.mistake("you kept that latent and ablated all others: set only the one named to zero")
def _(sae_acts, hook, latent_idx=None, seq_pos=None):
    return sae_acts - sae_causes.ablate_sae_latent(sae_acts.clone(), hook, latent_idx, seq_pos)


@ablate_sae_latent.law("ablating a dead latent must change nothing")
def _(ablate_sae_latent):
    got = _use_ablation(ablate_sae_latent, small_acts().clone(), 3)
    return torch.equal(got, small_acts())


@ablate_sae_latent.law("with all latents ablated the autoencoder must put out b_dec")
def _(ablate_sae_latent):
    got = small_sae().decode(_use_ablation(ablate_sae_latent, small_acts().clone()))
    return torch.allclose(got, small_sae().b_dec.view(3, 5).expand_as(got))


@ablate_sae_latent.right
def _(sae_acts, hook, latent_idx=None, seq_pos=None):
    keep = torch.ones_like(sae_acts)
    rows = range(sae_acts.shape[1]) if seq_pos is None else [seq_pos]
    columns = range(sae_acts.shape[2]) if latent_idx is None else [latent_idx]
    for row in rows:
        for column in columns:
            keep[:, row, column] = 0
    return sae_acts * keep


# ---------------------------------------------------------------- ablation_sweep

LATENTS = torch.tensor([8, 1, 3, 0, 4, 2], device=device())


def _loop(model, sae, tokens, latents, metric, seq_pos=None, error=True, spoil=None):
    """A sweep with a choice of faults: `spoil(run, hook)` runs the model."""
    effects = []
    with torch.no_grad(), model.saes([sae], use_error_term=error):
        before = metric(model(tokens))
        for latent_idx in latents.tolist():
            hook = partial(sae_causes.ablate_sae_latent, latent_idx=latent_idx, seq_pos=seq_pos)
            hooks = [(saes.acts_name(sae), hook)]
            run = spoil or (lambda hooks: model.run_with_hooks(tokens, fwd_hooks=hooks))
            effects.append(before - metric(run(hooks)))
    return torch.stack(effects)


ablation_sweep = exercise(sae_causes.ablation_sweep, use=_use_model)


@ablation_sweep.cases
def _():
    tokens = small_runs()[0]
    yield small_model(), small_sae(), tokens, LATENTS, small_metric, 4
    yield small_model(), small_sae(), tokens, LATENTS[:3], small_metric
    yield small_model(), small_sae("blocks.1.hook_resid_pre"), tokens, LATENTS[:3], small_metric, SEQ - 1
    yield small_model(), small_sae(), tokens, LATENTS[:2], small_metric, 0


@ablation_sweep.mistake("the sign is turned: an effect is the metric before minus the metric after")
def _(model, sae, tokens, latents, metric, seq_pos=None):
    return -_loop(model, sae, tokens, latents, metric, seq_pos)


@ablation_sweep.mistake("use_error_term=True is missing: what the autoencoder gets wrong was lost in all your runs")
def _(model, sae, tokens, latents, metric, seq_pos=None):
    return _loop(model, sae, tokens, latents, metric, seq_pos, error=False)


@ablation_sweep.mistake("you ablated at all positions: pass seq_pos on")
def _(model, sae, tokens, latents, metric, seq_pos=None):
    return _loop(model, sae, tokens, latents, metric)


@ablation_sweep.mistake("hooks of earlier latents were still there: run_with_hooks removes its own, add_hook does not")
def _(model, sae, tokens, latents, metric, seq_pos=None):
    def run(hooks):
        model.add_hook(*hooks[0])
        return model(tokens)

    return _loop(model, sae, tokens, latents, metric, seq_pos, spoil=run)


@ablation_sweep.mistake("you counted latents from 0 on: ablate those that `latents` names")
def _(model, sae, tokens, latents, metric, seq_pos=None):
    return _loop(model, sae, tokens, torch.arange(len(latents)), metric, seq_pos)


@ablation_sweep.mistake("you returned the metric after ablation: the effect is how far it fell")
def _(model, sae, tokens, latents, metric, seq_pos=None):
    with torch.no_grad():
        return metric(model(tokens)) - _loop(model, sae, tokens, latents, metric, seq_pos)


@ablation_sweep.law("a dead latent must have no effect, a live one must")
def _(ablation_sweep):
    args = small_model(), small_sae(), small_runs()[0], torch.tensor([3, 1]), small_metric, 4
    dead, live = _use_model(ablation_sweep, *args)
    return abs(dead) < 1e-5 and abs(live) > 1e-3


@ablation_sweep.right
def _(model, sae, tokens, latents, metric, seq_pos=None):
    clean = metric(model(tokens))
    effects = []
    for latent_idx in latents:

        def off(acts, hook, latent_idx=latent_idx):
            acts[:, slice(None) if seq_pos is None else seq_pos, latent_idx] = 0

        model.add_sae(sae, use_error_term=True)
        effects.append(clean - metric(model.run_with_hooks(tokens, fwd_hooks=[(saes.acts_name(sae), off)])))
        model.reset_saes()
    return torch.tensor([effect.item() for effect in effects])


# ---------------------------------------------------------------- ablation_effects

ablation_effects = exercise(sae_causes.ablation_effects, use=_use_model)


@ablation_effects.cases
def _():
    tokens = small_runs()[0]
    yield small_model(), small_sae(), tokens, LATENTS, small_metric, 4
    yield small_model(), small_sae(), tokens, LATENTS, small_metric, -1, 4
    yield small_model(), small_sae(), tokens, LATENTS, small_metric, -2
    yield small_model(), small_sae(), tokens, LATENTS[:2], small_metric, 0
    yield small_model(), small_sae("blocks.0.attn.hook_z"), tokens, LATENTS, small_metric, 2
    yield linear_model(), small_sae("blocks.0.attn.hook_z"), tokens, LATENTS, small_metric, SEQ - 1
    yield small_model(), small_sae("blocks.1.hook_resid_pre"), tokens, LATENTS, small_metric, 4


def _batched(model, sae, tokens, latents, metric, seq_pos, error=True, acts=None, lost=None, baseline=None, sign=-1):
    """The batched sweep with a choice of faults."""
    directions, layer, pos = sae_causes.latent_directions(model, sae), saes.layer_of(sae), seq_pos % tokens.shape[1]
    with torch.no_grad(), model.saes([sae], use_error_term=error):
        logits, cache = model.run_with_cache(tokens)
    all_acts = cache[saes.acts_name(sae)]
    here = all_acts[:, pos][:, latents] if acts is None else acts(all_acts, pos)
    change = here.T[..., None] * directions[latents][:, None] if lost is None else lost(here)
    name = "resid_post" if model.cfg.attn_only else "resid_mid"
    resid_mid = cache[name, layer][:, pos] + sign * change
    with torch.no_grad():
        out = ioi.finish_run(model, resid_mid.flatten(0, 1), layer, pos, cache).chunk(len(latents))
    return torch.stack([metric(logits if baseline is None else baseline) - metric(copy) for copy in out])


@ablation_effects.mistake("you added what the latent writes: ablating takes it away")
def _(model, sae, tokens, latents, metric, seq_pos, at_once=64):
    return _batched(model, sae, tokens, latents, metric, seq_pos, sign=1)


@ablation_effects.mistake("the activation is missing: a latent writes its activation times its direction")
def _(model, sae, tokens, latents, metric, seq_pos, at_once=64):
    return _batched(
        model, sae, tokens, latents, metric, seq_pos, acts=lambda acts, pos: torch.ones(BATCH, len(latents))
    )


@ablation_effects.mistake("use_error_term=True is missing: the cached run was not the model's own")
def _(model, sae, tokens, latents, metric, seq_pos, at_once=64):
    return _batched(model, sae, tokens, latents, metric, seq_pos, error=False)


@ablation_effects.mistake("you took the activations of the last position: take those at seq_pos")
def _(model, sae, tokens, latents, metric, seq_pos, at_once=64):
    return _batched(model, sae, tokens, latents, metric, seq_pos, acts=lambda acts, pos: acts[:, -1][:, latents])


@ablation_effects.mistake("you used the mean activation: each prompt loses its own")
def _(model, sae, tokens, latents, metric, seq_pos, at_once=64):
    def mean(acts, pos):
        return acts[:, pos][:, latents].mean(0, keepdim=True).expand(BATCH, -1)

    return _batched(model, sae, tokens, latents, metric, seq_pos, acts=mean)


@ablation_effects.mistake(
    "copies and prompts are mixed up: stack as (latent batch), all prompts of one latent together"
)
def _(model, sae, tokens, latents, metric, seq_pos, at_once=64):
    directions = sae_causes.latent_directions(model, sae)[latents]

    def mixed(here):
        return (here[..., None] * directions).reshape(len(latents), BATCH, -1)

    return _batched(model, sae, tokens, latents, metric, seq_pos, lost=mixed)


@ablation_effects.law("the numbers must be those of one whole run for each latent")
def _(ablation_effects):
    args = small_model(), small_sae(), small_runs()[0], torch.arange(D_SAE), small_metric, 3
    return torch.allclose(_use_model(ablation_effects, *args), _loop(*args), atol=1e-4)


@ablation_effects.law("in a linear model a latent's effect must be activation × direction · answer")
def _(ablation_effects):
    model, sae, tokens = linear_model(), small_sae("blocks.0.attn.hook_z"), small_runs()[0]
    got = _use_model(ablation_effects, model, sae, tokens, torch.arange(D_SAE), small_metric, SEQ - 1)
    acts = sae.encode(model.run_with_cache(tokens)[1]["z", 0])[:, -1]
    along = sae_causes.latent_directions(model, sae) @ (model.W_U[:, 11] - model.W_U[:, 5])
    return torch.allclose(got, (acts * along).mean(0), atol=1e-4)


@ablation_effects.right
def _(model, sae, tokens, latents, metric, seq_pos, at_once=64):
    sae_causes.require_hook_z(sae)
    return _loop(model, sae, tokens, latents, metric, seq_pos)


# ---------------------------------------------------------------- get_cache_fwd_and_bwd

get_cache_fwd_and_bwd = exercise(sae_causes.get_cache_fwd_and_bwd, use=_use_model)


def _two():
    return [small_sae("blocks.0.hook_resid_pre"), small_sae()]


@get_cache_fwd_and_bwd.cases
def _():
    yield small_model(), [small_sae()], small_runs()[0], small_metric
    yield small_model(), _two(), small_runs()[0], small_metric


def _gradients(model, attached, tokens, metric, error=True, name=saes.acts_name):
    kept = {}

    def keep(x, hook):
        kept[hook.name] = x.requires_grad_()

    with torch.enable_grad(), model.saes(list(attached), use_error_term=error):
        value = metric(model.run_with_hooks(tokens, fwd_hooks=[(name(sae), keep) for sae in attached]))
        gradients = torch.autograd.grad(value, list(kept.values()))
    return {k: x.detach() for k, x in kept.items()}, dict(zip(kept, gradients, strict=True))


@get_cache_fwd_and_bwd.mistake("use_error_term=True is missing: this was not the model's own run")
def _(model, attached, tokens, metric):
    return _gradients(model, attached, tokens, metric, error=False)


@get_cache_fwd_and_bwd.mistake("the two are swapped: activations first, gradients second")
def _(model, attached, tokens, metric):
    return _gradients(model, attached, tokens, metric)[::-1]


@get_cache_fwd_and_bwd.mistake("you multiplied already: give the gradients alone, the product comes later")
def _(model, attached, tokens, metric):
    fwd, bwd = _gradients(model, attached, tokens, metric)
    return fwd, {name: fwd[name] * bwd[name] for name in fwd}


@get_cache_fwd_and_bwd.mistake("only the first autoencoder was attached: attach all of them")
def _(model, attached, tokens, metric):
    return _gradients(model, attached[:1], tokens, metric)


@get_cache_fwd_and_bwd.mistake("you took hook_sae_acts_pre: the latents are hook_sae_acts_post")
def _(model, attached, tokens, metric):
    return _gradients(
        model, attached, tokens, metric, name=lambda sae: f"{sae.cfg.metadata.hook_name}.hook_sae_acts_pre"
    )


@get_cache_fwd_and_bwd.law("with the error term the metric of the run must be the model's own")
def _(get_cache_fwd_and_bwd):
    seen = []

    def metric(logits):
        seen.append(small_metric(logits).item())
        return small_metric(logits)

    _use_model(get_cache_fwd_and_bwd, small_model(), _two(), small_runs()[0], metric)
    return abs(seen[-1] - small_metric(small_model()(small_runs()[0])).item()) < 1e-4


@get_cache_fwd_and_bwd.law("in a linear model the gradient must be direction · answer, on every prompt")
def _(get_cache_fwd_and_bwd):
    model, sae = linear_model(), small_sae("blocks.0.attn.hook_z")
    _, bwd = _use_model(get_cache_fwd_and_bwd, model, [sae], small_runs()[0], small_metric)
    want = sae_causes.latent_directions(model, sae) @ (model.W_U[:, 11] - model.W_U[:, 5]) / BATCH
    return torch.allclose(bwd[saes.acts_name(sae)][:, -1], want.expand(BATCH, -1), atol=1e-4)


@get_cache_fwd_and_bwd.right
def _(model, attached, tokens, metric):
    kept = {}

    def keep(x, hook):
        kept[hook.name] = x = x if x.requires_grad else x.requires_grad_()
        x.retain_grad()
        return x

    for sae in attached:
        model.add_sae(sae, use_error_term=True)
    with torch.enable_grad(), model.hooks(fwd_hooks=[(lambda name: name.endswith("acts_post"), keep)]):
        metric(model(tokens)).backward()
    model.reset_saes()
    return kept, {name: x.grad for name, x in kept.items()}


# ---------------------------------------------------------------- attribution_patching

attribution_patching = exercise(sae_causes.attribution_patching, use=_use_model)


@attribution_patching.cases
def _():
    yield small_model(), small_sae(), small_runs()[0], small_metric, 4
    yield small_model(), small_sae("blocks.1.hook_resid_pre"), small_runs()[0], small_metric
    yield small_model(), small_sae(), small_runs()[0], small_metric, 0


def _product(model, sae, tokens, metric):
    fwd, bwd = sae_causes.get_cache_fwd_and_bwd(model, [sae], tokens, metric)
    return fwd[saes.acts_name(sae)], bwd[saes.acts_name(sae)]


def _at(x, seq_pos):
    return x if seq_pos is None else x[:, seq_pos : seq_pos + 1]


@attribution_patching.mistake("that is the gradient alone: multiply by the activation, which is what ablation removes")
def _(model, sae, tokens, metric, seq_pos=None):
    return _at(_product(model, sae, tokens, metric)[1], seq_pos).sum((0, 1))


@attribution_patching.mistake("sum over prompts: the metric is a mean already, so its gradients hold the 1 / batch")
def _(model, sae, tokens, metric, seq_pos=None):
    acts, gradients = _product(model, sae, tokens, metric)
    return _at(acts * gradients, seq_pos).mean(0).sum(0)


@attribution_patching.mistake("you summed over all positions: take seq_pos where it is given")
def _(model, sae, tokens, metric, seq_pos=None):
    acts, gradients = _product(model, sae, tokens, metric)
    return (acts * gradients).sum((0, 1))


@attribution_patching.mistake("the sign is turned: ablation takes the activation away, an effect is before minus after")
def _(model, sae, tokens, metric, seq_pos=None):
    acts, gradients = _product(model, sae, tokens, metric)
    return -_at(acts * gradients, seq_pos).sum((0, 1))


@attribution_patching.mistake("you summed both before multiplying: each prompt's activation meets its own gradient")
def _(model, sae, tokens, metric, seq_pos=None):
    acts, gradients = (_at(x, seq_pos) for x in _product(model, sae, tokens, metric))
    return acts.mean(0).sum(0) * gradients.sum((0, 1))


@attribution_patching.law("in a linear model attribution must equal ablation")
def _(attribution_patching):
    args = linear_model(), small_sae("blocks.0.attn.hook_z"), small_runs()[0]
    got = _use_model(attribution_patching, *args, small_metric, SEQ - 1)
    want = sae_causes.ablation_effects(*args, torch.arange(D_SAE), small_metric, SEQ - 1)
    return torch.allclose(got, want, atol=1e-4) and bool(want.abs().max() > 0.01)


@attribution_patching.right
def _(model, sae, tokens, metric, seq_pos=None):
    acts, gradients = _product(model, sae, tokens, metric)
    each = einops.einsum(acts, gradients, "batch seq latent, batch seq latent -> seq latent")
    return each.sum(0) if seq_pos is None else each[seq_pos]


# ---------------------------------------------------------------- steering_hook


def _use_steering(fn, activations, *args):
    returned = fn(activations, HookPoint(), *args)
    return activations if returned is None else returned


steering_hook = exercise(sae_causes.steering_hook, use=_use_steering, in_place={"activations": "a hook may edit them"})


@steering_hook.cases
def _():
    generator = torch.Generator().manual_seed(7)
    activations, direction = torch.randn(3, 5, 8, generator=generator), torch.randn(8, generator=generator) * 3
    yield activations, direction, 2.5
    yield activations, direction
    yield activations, direction, -1.0


@steering_hook.mistake("you pushed the last position only: push all of them")
def _(activations, hook, direction, strength=1.0):
    activations[:, -1] += strength * direction
    return activations


@steering_hook.mistake("you put the direction in the stream's place: add it to what is there")
def _(activations, hook, direction, strength=1.0):
    return (strength * direction).expand_as(activations)


@steering_hook.mistake("you scaled the direction to length 1: strength counts in units of the direction as given")
def _(activations, hook, direction, strength=1.0):
    return activations + strength * direction / direction.norm()


@steering_hook.mistake("strength is ignored: multiply the direction by it")
def _(activations, hook, direction, strength=1.0):
    return activations + direction


@steering_hook.mistake("you pushed the other way: add, don't subtract")
def _(activations, hook, direction, strength=1.0):
    return activations - strength * direction


@steering_hook.law("pushing there and back must change nothing, pushing there must")
def _(steering_hook):
    x, direction = torch.randn(2, 3, 8), torch.randn(8)
    there = _use_steering(steering_hook, x.clone(), direction, 4.0)
    back = _use_steering(steering_hook, there.clone(), direction, -4.0)
    return torch.allclose(back, x, atol=1e-5) and bool(
        ((there - x).norm(dim=-1) - 4 * direction.norm()).abs().max() < 1e-4
    )


@steering_hook.right
def _(activations, hook, direction, strength=1.0):
    activations += torch.mul(direction, strength)


# ---------------------------------------------------------------- kind_shares

kind_shares = exercise(sae_causes.kind_shares)


@cache
def _texts() -> list[str]:
    """World documents, some finished, some cut in the middle of a sentence, some that are no document."""
    documents = [d.text for d in sample(9, 5, ["french", "story", "numbers", "facts"])]
    end = "<|endoftext|>"
    finished = [text + end for text in documents[:5]]
    cut = [text[: len(text) - 7] for text in documents[5:]]
    return [*finished, *cut, "no document at all" + end, documents[0][:-7] + end, ""]


@kind_shares.cases
def _():
    yield (_texts(),)
    yield (_texts()[:3],)
    yield (_texts()[5:],)
    yield ([d.text + "<|endoftext|>" for d in sample(6, 4, ["echo", "letter"])],)  # ending in letters of the mark
    yield [text.replace("<|endoftext|>", " END") for text in _texts()], " END"


def _count(texts, cut, end="<|endoftext|>", strip=True):
    kinds = [parse(text.removesuffix(end) if strip else text, cut(text)).kind for text in texts]
    return {kind: kinds.count(kind) / len(kinds) for kind in set(kinds)}


@kind_shares.mistake("you read every text as a finished one: without the end mark it was cut, parse(text, cut=True)")
def _(texts, end="<|endoftext|>"):
    return _count(texts, lambda text: False)


@kind_shares.mistake("you read every text as cut: one that has the end mark is finished, and must be whole")
def _(texts, end="<|endoftext|>"):
    return _count(texts, lambda text: True)


@kind_shares.mistake("the end mark is still in the text: take it off before parsing")
def _(texts, end="<|endoftext|>"):
    return _count(texts, lambda text: not text.endswith(end), strip=False)


@kind_shares.mistake("texts of no kind are left out: count them too, under None")
def _(texts, end="<|endoftext|>"):
    shares = sae_causes.kind_shares(texts)
    shares.pop(None, None)
    total = sum(shares.values())
    return {kind: share / total for kind, share in shares.items()}


@kind_shares.mistake("these are counts: divide by the number of texts")
def _(texts, end="<|endoftext|>"):
    return {kind: share * len(texts) for kind, share in sae_causes.kind_shares(texts).items()}


@kind_shares.law("the shares must add up to 1")
def _(kind_shares):
    return abs(sum(kind_shares(_texts()).values()) - 1) < 1e-6


@kind_shares.right
def _(texts, end="<|endoftext|>"):
    shares = {}
    for text in texts:
        whole = text.endswith(end)
        kind = parse(text[: -len(end)] if whole else text, not whole).kind
        shares[kind] = shares.get(kind, 0) + 1 / len(texts)
    return shares
