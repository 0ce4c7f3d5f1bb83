"""What chapter 03 asks of a learner's functions and classes, and the mistakes it recognises."""

import dataclasses
import math

import torch
from torch import nn

from utils import kv_cache as kv
from utils import sampling as sp
from utils import speculation
from utils import transformer as tf
from utils.checks.compare import difference
from utils.checks.engine import Chapter
from utils.checks.models import noise, random_demo, small_demo
from utils.runtime import device

chapter = Chapter(sp, kv, speculation)
exercise, check, hint, compare = chapter.exercise, chapter.check, chapter.hint, chapter.compare

numbers = noise
DRAWS = 10_000

# ---------------------------------------------------------------- samplers are compared by their frequencies


def use_sampler(draw, *args, **kwargs):
    """Draw many times from each row of logits, which is the last of the tensors in `args`."""
    at = max(i for i, a in enumerate(args) if isinstance(a, torch.Tensor))
    many = [a.repeat_interleave(DRAWS, 0) if isinstance(a, torch.Tensor) else a for a in args]
    drawn = draw(*many, **kwargs)
    rows, d_vocab = args[at].shape
    if drawn.shape != (rows * DRAWS,):
        return {"one token a row": list(drawn.shape), "frequencies": None}
    counts = [torch.bincount(row, minlength=d_vocab) for row in drawn.reshape(rows, DRAWS)]
    return {"one token a row": [rows * DRAWS], "frequencies": torch.stack(counts) / DRAWS}


def same_frequencies(got, want, *args):
    """Frequencies may differ by chance, by up to five standard deviations; impossible tokens stay impossible."""
    if not isinstance(got, dict):
        return difference(got, want)
    if got["one token a row"] != want["one token a row"]:
        return (
            f"returned shape {got['one token a row']} for {want['one token a row'][0]} rows, expected one token a row"
        )
    got, want = got["frequencies"], want["frequencies"]
    if got is None or want is None:
        return None if got is want else "returned something else than one token a row"
    if got.shape != want.shape:
        return "returned a token that is not in the vocabulary"
    p = (got + want) / 2
    far = (got - want).abs() > 5 * (2 * p * (1 - p) / DRAWS).sqrt() + 1e-9
    # Every allowed token of the cases comes up often, so one that never came up was not allowed.
    far |= (want == 0) != (got == 0)
    if not far.any():
        return None
    row, token = far.nonzero()[0].tolist()
    return f"token {token} came up in {got[row, token]:.1%} of {DRAWS:,} draws, expected about {want[row, token]:.1%}"


# Two rows with probabilities from 4 % to 45 %, in no order.
PROBS = torch.tensor([[0.10, 0.04, 0.30, 0.06, 0.45, 0.05], [0.25, 0.20, 0.06, 0.14, 0.05, 0.30]], device=device())
LOGITS = PROBS.log() + 1.5
ONE_IMPOSSIBLE = LOGITS.masked_fill(torch.tensor([[False], [True]], device=device()), -math.inf)  # the second row


# ---------------------------------------------------------------- trap_for_beams


def use_trap(fn, num_beams):
    """What beam search makes of it; where tokens tie, the worse for whoever set the trap."""
    first, second = fn(num_beams)
    if first.ndim != 1 or second.ndim != 2 or len(second) != len(first):
        return {"a row of `second` for each first token": False}
    rows = [first, *second]
    if not all(bool((row >= 0).all()) and abs(float(row.sum()) - 1) < 1e-4 for row in rows):
        return {"probabilities add up to 1": False}
    best = first * second.amax(-1)
    border = first.sort(descending=True).values[:num_beams][-1]
    found = float(best[first >= border - 1e-6].max())
    return {
        "the likeliest text begins with a token that no beam keeps": bool(first[best.argmax()] < border - 1e-6),
        "nor where tokens tie": bool(first[best.argmax()] != border),
        "it is twice as likely as what the beams find": bool(best.max() >= 2 * found * (1 - 1e-6)),
    }


def same_trap(got, want, *args):
    if not isinstance(got, dict) or not isinstance(want, dict):
        return difference(got, want)
    return None if got == want else next((f"not so: {what}" for what, holds in got.items() if not holds), "too good")


trap_for_beams = exercise(sp.trap_for_beams, use=use_trap, same=same_trap)


@trap_for_beams.cases
def _():
    for num_beams in (1, 2, 4, 16):
        yield (num_beams,)


@trap_for_beams.refused
def _():
    yield (0,)
    yield (-2,)


def trap(num_beams, last=0.9, flat=10, tempting=None, normalized=True):
    if num_beams < 1:
        raise ValueError("there is no beam")
    first = torch.tensor([1.0] * (tempting or num_beams) + [last])
    second = torch.full((len(first), flat), 1 / flat)
    second[-1] = torch.eye(flat)[0]
    return (first / first.sum() if normalized else first), second


@trap_for_beams.mistake("beam search finds your likeliest text: its first token is among the likeliest first tokens")
def _(num_beams):
    return trap(num_beams, last=1.5)


@trap_for_beams.mistake("the first token of the likeliest text ties with others: make it clearly less likely")
def _(num_beams):
    return trap(num_beams, last=1.0)


@trap_for_beams.mistake("the likeliest text is less than twice as likely: spread the others' continuations thinner")
def _(num_beams):
    return trap(num_beams, flat=2)


@trap_for_beams.mistake("probabilities must add up to 1, those of the first token and each row of the second")
def _(num_beams):
    return trap(num_beams, normalized=False)


@trap_for_beams.mistake("your trap has room for two beams whatever num_beams is: it needs more first tokens than beams")
def _(num_beams):
    return trap(num_beams, tempting=2)


@trap_for_beams.right
def _(num_beams):
    if num_beams < 1:
        raise ValueError("there is no beam")
    weights = 1 / torch.arange(10, 12 + num_beams)
    second = torch.eye(64)[torch.zeros(len(weights), dtype=torch.long)]
    second[:num_beams] = 1 / 64
    return weights / weights.sum(), second


# ---------------------------------------------------------------- entropy

entropy = exercise(sp.entropy)


@entropy.cases
def _():
    yield (numbers(3, 7),)
    yield (torch.zeros(1, 8),)
    yield (torch.tensor([[0.0, -math.inf, 0.0, -math.inf], [-math.inf, 5.0, -math.inf, -math.inf]]),)


def entropy_nats(logits, dim=-1):
    log_probs = logits.log_softmax(dim)
    return -(log_probs.exp() * log_probs).nan_to_num(nan=0.0).sum(-1)


@entropy.mistake("this is in nats: divide by ln 2 (or use log2) to get bits")
def _(logits):
    return entropy_nats(logits)


@entropy.mistake("the sign is wrong: log-probabilities are negative, entropy is minus their mean")
def _(logits):
    return -entropy_nats(logits) / math.log(2)


@entropy.mistake("an impossible token gives 0 · (-inf) = NaN: it must count 0, for example with nan_to_num")
def _(logits):
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1) / math.log(2)


@entropy.mistake("your softmax runs over the rows: it must run over the vocabulary, dim=-1")
def _(logits):
    return entropy_nats(logits, dim=0) / math.log(2)


@entropy.mistake("you took the plain mean: weight each log-probability by its probability and sum")
def _(logits):
    return -(logits.log_softmax(-1).exp() * logits.log_softmax(-1)).nan_to_num(nan=0.0).mean(-1) / math.log(2)


@entropy.law("n equally likely tokens have log2(n) bits, a certain one 0")
def _(entropy):
    certain = torch.tensor([[100.0, 0.0, 0.0]])
    return abs(entropy(torch.ones(1, 16)).item() - 4) < 1e-4 and abs(entropy(certain).item()) < 1e-4


@entropy.right
def _(logits):
    return torch.distributions.Categorical(probs=logits.softmax(-1)).entropy() / math.log(2)


# ---------------------------------------------------------------- apply_frequency_penalty

apply_frequency_penalty = exercise(sp.apply_frequency_penalty)


@apply_frequency_penalty.cases
def _():
    yield torch.tensor([[2, 2, 5, 0], [1, 4, 4, 4]]), numbers(2, 7), 0.5
    yield torch.tensor([[sp.PAD, sp.PAD, 3, 3]]), numbers(1, 6, seed=1), 2.0
    yield torch.tensor([[1, 1, 0]]), numbers(1, 6, seed=2), -1.0


@apply_frequency_penalty.refused
def _():
    for penalty in (math.inf, math.nan):
        yield torch.tensor([[1, 1, 0]]), numbers(1, 6), penalty


def penalised(input_ids, logits, strength, once=False, padding=False):
    out = logits.clone()
    for row, ids in enumerate(input_ids.tolist()):
        for token in set(ids) if once else ids:
            if token != sp.PAD or padding:
                out[row, token] -= strength
    return out


@apply_frequency_penalty.mistake("you penalised each token once: subtract the penalty for every time it occurs")
def _(input_ids, logits, freq_penalty):
    return penalised(input_ids, logits, freq_penalty, once=True)


@apply_frequency_penalty.mistake("you added the penalty: a repeated token must become less likely, so subtract")
def _(input_ids, logits, freq_penalty):
    return penalised(input_ids, logits, -freq_penalty)


@apply_frequency_penalty.mistake("you counted PAD (-1), which Python reads as the last token: it must count as nothing")
def _(input_ids, logits, freq_penalty):
    return penalised(input_ids, logits, freq_penalty, padding=True)


@apply_frequency_penalty.mistake("you counted the tokens of all rows together: each row has its own text")
def _(input_ids, logits, freq_penalty):
    return penalised(input_ids.reshape(1, -1).expand(len(logits), -1), logits, freq_penalty)


@apply_frequency_penalty.mistake("you divided the logits, which raises negative ones: subtract freq_penalty * count")
def _(input_ids, logits, freq_penalty):
    counts = -penalised(input_ids, torch.zeros_like(logits), 1.0)
    return logits / (1 + counts * freq_penalty)


@apply_frequency_penalty.law("a penalty of 0 must change nothing, and the logits that were given must stay as they are")
def _(apply_frequency_penalty):
    ids, x = torch.tensor([[1, 1, 2]]), numbers(1, 5)
    before = x.clone()
    apply_frequency_penalty(ids, x, 1.0)
    return torch.equal(x, before) and torch.allclose(apply_frequency_penalty(ids, x, 0.0), x)


@apply_frequency_penalty.mistake(
    "a penalty of 0 must change nothing, and the logits that were given must stay as they are"
)
def _(input_ids, logits, freq_penalty):
    logits -= logits - penalised(input_ids, logits, freq_penalty)
    return logits


@apply_frequency_penalty.right
def _(input_ids, logits, freq_penalty):
    if not math.isfinite(freq_penalty):
        raise ValueError("the penalty must be finite")
    rows = [torch.bincount(row[row >= 0], minlength=logits.shape[-1]) for row in input_ids]
    return logits - torch.stack(rows) * freq_penalty


# ---------------------------------------------------------------- sample_basic

sample_basic = exercise(sp.sample_basic, use=use_sampler, same=same_frequencies)


@sample_basic.cases
def _():
    yield (LOGITS,)


@sample_basic.refused
def _():
    yield (torch.full((2, 3), -math.inf),)
    yield (ONE_IMPOSSIBLE,)


@sample_basic.mistake("you always take the most likely token: draw at random, for example with torch.multinomial")
def _(logits):
    return logits.argmax(-1)


@sample_basic.mistake("all tokens came up equally often: draw in proportion to the softmax of the logits")
def _(logits):
    return torch.randint(logits.shape[-1], logits.shape[:1])


@sample_basic.mistake("your softmax runs over the rows: it must run over the vocabulary, dim=-1")
def _(logits):
    return torch.multinomial(logits.softmax(0), 1)[:, 0]


@sample_basic.mistake("multinomial returns (batch, 1): drop the last dimension with squeeze(-1)")
def _(logits):
    return torch.multinomial(logits.softmax(-1), 1)


@sample_basic.mistake("you used the logits as weights: take their softmax first")
def _(logits):
    return torch.multinomial(logits - logits.min() + 1e-3, 1)[:, 0]


@sample_basic.right
def _(logits):
    sp.require_logits(logits)
    # The Gumbel trick: the largest of the logits plus noise is distributed as the softmax.
    return (logits - torch.empty_like(logits).exponential_().log()).argmax(-1)


# ---------------------------------------------------------------- sample_top_k

sample_top_k = exercise(sp.sample_top_k, use=use_sampler, same=same_frequencies)


@sample_top_k.cases
def _():
    yield LOGITS, 3
    yield LOGITS, 1
    yield LOGITS, 6
    yield torch.tensor([[1.0, 2.0, 1.0, 0.0, 1.0, -1.0], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]), 2  # ties with the k-th


@sample_top_k.refused
def _():
    for k in (0, 7, 2.5):
        yield LOGITS, k
    yield torch.full((2, 6), -math.inf), 3
    yield ONE_IMPOSSIBLE, 3


@sample_top_k.mistake("you returned the place within the top k: look up which token stands there (gather)")
def _(logits, k):
    return torch.multinomial(logits.topk(k).values.softmax(-1), 1)[:, 0]


@sample_top_k.mistake("you kept one token too few: the k-th stays, so remove logits < the k-th, not <=")
def _(logits, k):
    kth = logits.topk(k).values[:, -1:]
    return sp.sample_basic(logits.masked_fill((logits <= kth) & (logits < logits.amax(-1, True)), -math.inf))


@sample_top_k.mistake("you kept the k least likely tokens: topk with largest=True, or sort descending")
def _(logits, k):
    kth = logits.topk(k, largest=False).values[:, -1:]
    return sp.sample_basic(logits.masked_fill(logits > kth, -math.inf))


@sample_top_k.mistake("you set the other logits to 0, which is e⁰ in the softmax: set them to minus infinity")
def _(logits, k):
    return sp.sample_basic(logits.masked_fill(logits < logits.topk(k).values[:, -1:], 0.0))


@sample_top_k.mistake("you chose evenly among the k: draw in proportion to their probabilities")
def _(logits, k):
    kept = logits.masked_fill(logits < logits.topk(k).values[:, -1:], -math.inf)
    return sp.sample_basic(kept.masked_fill(kept.isfinite(), 0.0))


@sample_top_k.mistake("you ignored k: all tokens can still come up")
def _(logits, k):
    return sp.sample_basic(logits)


@sample_top_k.mistake("you used the first row's border for all rows: keep the dimension, values[:, -1:]")
def _(logits, k):
    return sp.sample_basic(logits.masked_fill(logits < logits.topk(k).values[0, -1], -math.inf))


@sample_top_k.right
def _(logits, k):
    sp.require_logits(logits)
    if k not in range(1, logits.shape[-1] + 1):
        raise ValueError("k must be a whole number from 1 to d_vocab")
    least = logits.sort(dim=-1, descending=True).values[:, k - 1 : k]
    return torch.distributions.Categorical(probs=logits.softmax(-1) * (logits >= least)).sample()


# ---------------------------------------------------------------- sample_top_p

sample_top_p = exercise(sp.sample_top_p, use=use_sampler, same=same_frequencies)


@sample_top_p.cases
def _():
    yield LOGITS, 0.7, 1
    yield LOGITS, 0.2, 1
    yield LOGITS, 0.2, 3
    yield LOGITS, 0.2, 6
    yield LOGITS, 1.0, 1
    yield torch.tensor([[2.0, 1.0, 1.0]]).log(), 0.5, 1  # the first alone adds up to top_p


@sample_top_p.refused
def _():
    for top_p, keep in ((0.0, 1), (1.1, 1), (0.5, 0), (0.5, 7), (0.5, 1.5)):
        yield LOGITS, top_p, keep
    yield torch.full((2, 6), -math.inf), 0.5, 1
    yield ONE_IMPOSSIBLE, 0.5, 1


def nucleus(logits, top_p, keep, inside=None, descending=True, lookup=True):
    probs, ids = logits.softmax(-1).sort(-1, descending=descending)
    total = probs.cumsum(-1)
    inside = (total - probs < top_p) if inside is None else inside(probs, total)
    inside[:, :keep] = True
    place = torch.multinomial(probs.masked_fill(~inside, 0), 1)
    return (ids.gather(-1, place) if lookup else place)[:, 0]


@sample_top_p.mistake("you dropped the token that crosses top_p: it stays, so compare the mass before it with top_p")
def _(logits, top_p, min_tokens_to_keep=1):
    return nucleus(logits, top_p, min_tokens_to_keep, inside=lambda probs, total: total <= top_p + 1e-6)


@sample_top_p.mistake("you sorted the least likely first: the nucleus holds the most likely tokens")
def _(logits, top_p, min_tokens_to_keep=1):
    return nucleus(logits, top_p, min_tokens_to_keep, descending=False)


@sample_top_p.mistake("you returned the place in the sorted row: look up which token stands there (gather)")
def _(logits, top_p, min_tokens_to_keep=1):
    return nucleus(logits, top_p, min_tokens_to_keep, lookup=False)


@sample_top_p.mistake("you ignored min_tokens_to_keep: that many tokens stay even where the first reaches top_p")
def _(logits, top_p, min_tokens_to_keep=1):
    return nucleus(logits, top_p, 1)


@sample_top_p.mistake(
    "you kept the tokens whose own probability is at least 1 - top_p: add probabilities up with cumsum"
)
def _(logits, top_p, min_tokens_to_keep=1):
    return nucleus(logits, top_p, min_tokens_to_keep, inside=lambda probs, total: probs >= 1 - top_p)


@sample_top_p.mistake("you kept one token too many: stop at the token that makes the sum reach top_p")
def _(logits, top_p, min_tokens_to_keep=1):
    return nucleus(
        logits,
        top_p,
        min_tokens_to_keep,
        inside=lambda probs, total: nn.functional.pad(total - probs < top_p, (1, 0), value=True)[:, :-1],
    )


@sample_top_p.mistake("you ignored top_p: all tokens can still come up")
def _(logits, top_p, min_tokens_to_keep=1):
    return sp.sample_basic(logits)


@sample_top_p.right
def _(logits, top_p, min_tokens_to_keep=1):
    sp.require_logits(logits)
    if not 0 < top_p <= 1 or min_tokens_to_keep not in range(1, logits.shape[-1] + 1):
        raise ValueError("an argument is out of its range")
    kept = torch.full_like(logits, -math.inf)
    for first in {tuple(row) for row in logits.tolist()}:
        row = torch.tensor(first)
        probs, n, total = row.softmax(-1), 0, 0.0
        for token in row.argsort(descending=True).tolist():
            if total >= top_p and n >= min_tokens_to_keep:
                break
            kept[(logits == row).all(-1), token] = row[token]
            total, n = total + probs[token].item(), n + 1
    return torch.distributions.Categorical(logits=kept).sample()


# ---------------------------------------------------------------- sample_min_p

sample_min_p = exercise(sp.sample_min_p, use=use_sampler, same=same_frequencies)


@sample_min_p.cases
def _():
    for min_p in (0.0, 0.1, 0.3, 0.5, 0.9, 1.0):
        yield LOGITS, min_p
    yield LOGITS.masked_fill(torch.tensor([[0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]]).bool(), -math.inf), 0.25


@sample_min_p.refused
def _():
    for min_p in (-0.1, 1.1, math.nan):
        yield LOGITS, min_p
    yield torch.full((2, 6), -math.inf), 0.5
    yield ONE_IMPOSSIBLE, 0.5


def _kept(logits, kept):
    return sp.sample_basic(logits.masked_fill(~kept, -math.inf))


@sample_min_p.mistake("you kept the tokens with a probability of at least min_p: it is min_p times the best one's")
def _(logits, min_p):
    probs = logits.softmax(-1)
    return _kept(logits, (probs >= min_p) | (probs == probs.amax(-1, keepdim=True)))


@sample_min_p.mistake("you compared with the best token of the whole batch: each row has its own")
def _(logits, min_p):
    probs = logits.softmax(-1)
    return _kept(logits, (probs >= min_p * probs.max()) | (probs == probs.amax(-1, keepdim=True)))


@sample_min_p.mistake(
    "you kept the fewest tokens that add up to min_p: that is top-p, here the best one is the measure"
)
def _(logits, min_p):
    return nucleus(logits, min_p, 1)


@sample_min_p.mistake("you dropped what is likely: keep the tokens *above* the border")
def _(logits, min_p):
    probs = logits.softmax(-1)
    return _kept(logits, (probs < min_p * probs.amax(-1, keepdim=True)) | (probs == probs.amin(-1, keepdim=True)))


@sample_min_p.mistake("what is left is drawn evenly: draw in proportion to the probabilities")
def _(logits, min_p):
    probs = logits.softmax(-1)
    return torch.multinomial((probs >= min_p * probs.amax(-1, keepdim=True)).float(), 1)[:, 0]


@sample_min_p.mistake("you compared logits: min_p is a share of the best one's probability")
def _(logits, min_p):
    return _kept(logits, logits >= min_p * logits.amax(-1, keepdim=True))


@sample_min_p.mistake("you ignored min_p: all tokens can still come up")
def _(logits, min_p):
    return sp.sample_basic(logits)


@sample_min_p.right
def _(logits, min_p):
    sp.require_logits(logits)
    if not 0 <= min_p <= 1:
        raise ValueError("min_p must lie in [0, 1]")
    border = logits.amax(-1, keepdim=True) + (math.log(min_p) if min_p else -math.inf)
    return torch.distributions.Categorical(logits=logits.where(logits >= border - 1e-6, -math.inf)).sample()


# ---------------------------------------------------------------- sample_next_token


def use_next(fn, ids, logits, kwargs):
    return use_sampler(fn, ids, logits, **kwargs)


sample_next_token = exercise(sp.sample_next_token, use=use_next, same=same_frequencies)
IDS = torch.tensor([[4, 4, 1], [0, 5, 2]], device=device())


@sample_next_token.cases
def _():
    yield IDS, LOGITS, {}
    yield IDS, LOGITS, {"temperature": 0.0}
    yield IDS, LOGITS, {"temperature": 0.0, "frequency_penalty": 1.0}
    yield IDS, LOGITS, {"temperature": 2.0, "frequency_penalty": 0.7}
    yield IDS, LOGITS, {"temperature": 2.0, "top_k": 3}
    yield IDS, LOGITS, {"temperature": 2.0, "top_p": 0.6}
    yield IDS, LOGITS, {"frequency_penalty": -1.0}


@sample_next_token.refused
def _():
    yield IDS, LOGITS, {"temperature": -0.5}
    yield IDS, LOGITS, {"temperature": -1.0}
    yield IDS, LOGITS, {"temperature": math.inf}
    yield IDS, LOGITS, {"top_k": 2, "top_p": 0.5}
    yield IDS, LOGITS, {"top_k": 0}
    yield IDS, LOGITS, {"top_p": 0.0}
    yield IDS, LOGITS, {"frequency_penalty": math.inf}
    yield IDS, ONE_IMPOSSIBLE, {}


def next_token(ids, logits, temperature=1.0, top_k=None, top_p=None, frequency_penalty=0.0, skip="", order="pt"):
    if temperature == 0 and skip != "penalty first":
        return sp.greedy_search(logits if skip == "penalty" else logits - _penalty(ids, logits, frequency_penalty))
    if temperature == 0:
        return sp.greedy_search(logits)
    if order == "pt":
        logits = (logits - _penalty(ids, logits, frequency_penalty) * (skip != "penalty")) / temperature
    else:
        logits = logits / temperature - _penalty(ids, logits, frequency_penalty)
    if top_k and skip != "top_k":
        return sp.sample_top_k(logits, top_k)
    if top_p and skip != "top_p":
        return sp.sample_top_p(logits, top_p)
    return sp.sample_basic(logits)


def _penalty(ids, logits, strength):
    return logits - sp.apply_frequency_penalty(ids, logits, strength)


@sample_next_token.mistake("you applied the temperature before the penalty: penalty first, then temperature")
def _(ids, logits, **kwargs):
    return next_token(ids, logits, **kwargs, order="tp")


@sample_next_token.mistake("you ignored frequency_penalty")
def _(ids, logits, **kwargs):
    return next_token(ids, logits, **kwargs, skip="penalty")


@sample_next_token.mistake("at temperature 0 you skipped the penalty: apply it first, then choose greedily")
def _(ids, logits, **kwargs):
    return next_token(ids, logits, **kwargs, skip="penalty first")


@sample_next_token.mistake("you ignored top_k")
def _(ids, logits, **kwargs):
    return next_token(ids, logits, **kwargs, skip="top_k")


@sample_next_token.mistake("you ignored top_p")
def _(ids, logits, **kwargs):
    return next_token(ids, logits, **kwargs, skip="top_p")


@sample_next_token.mistake("temperature 0 divides by zero: treat it apart, as greedy")
def _(ids, logits, temperature=1.0, **kwargs):
    if temperature == 0:
        raise ZeroDivisionError("float division by zero")
    return next_token(ids, logits, temperature, **kwargs)


@sample_next_token.mistake("you ignored temperature")
def _(ids, logits, temperature=1.0, **kwargs):
    return next_token(ids, logits, 0 if temperature == 0 else 1.0, **kwargs)


@sample_next_token.right
def _(ids, logits, temperature=1.0, top_k=None, top_p=None, frequency_penalty=0.0):
    if not 0 <= temperature < math.inf or None not in (top_k, top_p):
        raise ValueError("an argument is out of its range, or both filters are given")
    logits = sp.apply_frequency_penalty(ids, logits, frequency_penalty)
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits / temperature
    if top_p is not None:
        return sp.sample_top_p(logits, top_p)
    return sp.sample_top_k(logits, logits.shape[-1] if top_k is None else top_k)


# ---------------------------------------------------------------- sample_tokens


class Counter(nn.Module):
    """A stand-in for a model: after tokens that add up to s comes, for certain, the token (s + 1) mod 7."""

    def __init__(self):
        super().__init__()
        self.cfg = tf.Config(d_vocab=7, n_ctx=12)

    def forward(self, tokens):
        if tokens.shape[1] > self.cfg.n_ctx:
            raise IndexError(f"{tokens.shape[1]} tokens are more than the context of {self.cfg.n_ctx} holds")
        return nn.functional.one_hot((tokens.cumsum(-1) + 1) % 7, 7).float() * 50


def use_tokens(fn, *args):
    return fn(Counter(), *args, temperature=0)


sample_tokens = exercise(sp.sample_tokens, use=use_tokens)


@sample_tokens.cases
def _():
    yield torch.tensor([[1, 3], [2, 2], [5, 4]]), 4, None
    yield torch.tensor([[1, 3], [2, 2], [0, 1]]), 5, 4
    yield torch.tensor([[1, 2], [2, 1]]), 5, 1
    yield torch.tensor([[1, 3]]), 40, None
    yield torch.tensor([[3, 3], [1, 3]]), 5, 0  # 0 is a token like any other


def loop(model, tokens, n, eos=None, logits=None, keep=True, stop="all", limit=True, **kwargs):
    ended = torch.zeros(len(tokens), dtype=torch.bool)
    for _ in range(n):
        if (stop == "all" and ended.all()) or (stop == "any" and ended.any()):
            break
        if limit and tokens.shape[1] == model.cfg.n_ctx:
            break
        new = (model(tokens)[:, -1] if logits is None else logits(model, tokens)).argmax(-1)
        if eos is not None:
            new = new.masked_fill(ended & keep, eos)
            ended = ended | (new == eos)
        tokens = torch.cat([tokens, new[:, None]], 1)
    return tokens


@sample_tokens.mistake("you gave the model only the last token: without a cache it must read the whole text each time")
def _(*args, **kwargs):
    return loop(*args, logits=lambda model, tokens: model(tokens[:, -1:])[:, -1])


@sample_tokens.mistake("you used the logits of the first position: the last position predicts the new token, [:, -1]")
def _(*args, **kwargs):
    return loop(*args, logits=lambda model, tokens: model(tokens)[:, 0])


@sample_tokens.mistake("you went on after eos_token_id: a row that has ended gets only eos_token_id from then on")
def _(*args, **kwargs):
    return loop(*args, keep=False)


@sample_tokens.mistake("you stopped when the first row ended: go on until every row has")
def _(*args, **kwargs):
    return loop(*args, stop="any")


@sample_tokens.mistake("you went on when every row had ended: stop there")
def _(*args, **kwargs):
    return loop(*args, stop="never")


@sample_tokens.mistake("you ran past the context: stop when the text has n_ctx tokens")
def _(*args, **kwargs):
    return loop(*args, limit=False)


@sample_tokens.mistake("you returned the new tokens only: the prompt belongs to the result")
def _(model, tokens, *args, **kwargs):
    return loop(model, tokens, *args)[:, tokens.shape[1] :]


@sample_tokens.right
def _(model, tokens, max_tokens_generated, eos_token_id=None, **kwargs):
    rows, eos = [row.tolist() for row in tokens], eos_token_id
    start = tokens.shape[1]
    while len(rows[0]) < min(start + max_tokens_generated, model.cfg.n_ctx):
        if eos is not None and all(eos in row[start:] for row in rows):
            break
        best = model(torch.tensor(rows))[:, -1].argmax(-1).tolist()
        rows = [row + [eos if eos is not None and eos in row[start:] else b] for row, b in zip(rows, best, strict=True)]
    return torch.tensor(rows)


# ---------------------------------------------------------------- distinct_n

distinct_n = exercise(sp.distinct_n)


@distinct_n.cases
def _():
    yield [[1, 2, 1, 2, 1]], 2
    yield [[1, 2, 3], [1, 2, 4, 4], [5]], 2
    yield [[1, 1, 1], [1, 2, 3, 1, 2, 3]], 1
    yield [[1, 2, 3, 4], [4, 1, 2, 3]], 3
    yield [[1, 2, 3], [4]], 3
    yield [[1, 11, 2], [11, 1, 2]], 2  # the same digits


@distinct_n.refused
def _():
    yield [[1, 2, 3]], 0
    yield [[1, 2], [3]], 3


@distinct_n.mistake("you made n-grams across the end of a text: each text has its own")
def _(texts, n):
    return sp.distinct_n([[token for text in texts for token in text]], n)


@distinct_n.mistake("you averaged the texts' own shares: put the n-grams of all texts together first")
def _(texts, n):
    long = [text for text in texts if len(text) >= n]
    return sum(sp.distinct_n([text], n) for text in long) / len(long)


@distinct_n.mistake("you divided by the number of tokens: divide by the number of n-grams")
def _(texts, n):
    grams = {tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)}
    return len(grams) / sum(len(text) for text in texts)


@distinct_n.mistake("you lost the last n-gram of each text: there are len(text) - n + 1 of them")
def _(texts, n):
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n)]
    return len(set(grams)) / max(1, len(grams))


@distinct_n.mistake("this is the share of repeated n-grams: subtract it from 1")
def _(texts, n):
    return 1 - sp.distinct_n(texts, n)


@distinct_n.right
def _(texts, n):
    if n < 1 or all(len(text) < n for text in texts):
        raise ValueError("no text has n tokens")
    grams = [gram for text in texts for gram in zip(*(text[i:] for i in range(n)), strict=False)]
    return len(set(grams)) / len(grams)


# ---------------------------------------------------------------- banned_tokens

banned_tokens = exercise(sp.banned_tokens)


@banned_tokens.cases
def _():
    yield [1, 2, 3, 1, 2], 3
    yield [1, 2, 1, 3, 1, 4, 1], 2
    yield [5, 6, 5], 1
    yield [5], 3
    yield [7, 7, 7], 3
    yield [1, 2, 3, 4], 2
    yield [1, 11, 5, 11, 1], 3  # the same digits


@banned_tokens.refused
def _():
    yield [1, 2, 1], 0


@banned_tokens.mistake("you compared the last n tokens: the new one is the n-th, so compare the last n - 1")
def _(tokens, n):
    last = tuple(tokens[-n:])
    return {tokens[i + n] for i in range(len(tokens) - n) if tuple(tokens[i : i + n]) == last}


@banned_tokens.mistake(
    "tokens[-0:] is the whole list: for n = 1 nothing is compared, and every token of the text is banned"
)
def _(tokens, n):
    return set() if n == 1 else sp.banned_tokens(tokens, n)


@banned_tokens.mistake("you looked at one earlier occurrence only: ban what followed at every one")
def _(tokens, n):
    last = tuple(tokens[len(tokens) - n + 1 :])
    for i in range(len(tokens) - n, -1, -1):
        if tuple(tokens[i : i + n - 1]) == last:
            return {tokens[i + n - 1]}
    return set()


@banned_tokens.mistake("you banned every token of the text: only those that would complete an n-gram seen before")
def _(tokens, n):
    return set(tokens)


@banned_tokens.mistake("you missed the last n-gram of the text: there are len(tokens) - n + 1 of them")
def _(tokens, n):
    last = tuple(tokens[len(tokens) - n + 1 :])
    return {tokens[i + n - 1] for i in range(len(tokens) - n) if tuple(tokens[i : i + n - 1]) == last}


@banned_tokens.law("with n = 1 no token may come twice")
def _(banned_tokens):
    return set(banned_tokens([4, 2, 4], 1)) == {2, 4}


@banned_tokens.right
def _(tokens, n):
    sp.require(n >= 1, "n must be at least 1")
    followers: dict[tuple, set] = {}
    for i in range(len(tokens) - n + 1):
        *first, last = tokens[i : i + n]
        followers.setdefault(tuple(first), set()).add(last)
    return followers.get(tuple(tokens[len(tokens) - n + 1 :]), set())


# ---------------------------------------------------------------- Beams

BEAMS = torch.tensor([[3, 4, 3, 5], [6, 7, 8, 6], [3, 4, 9, 3]], device=device())
SUMS = torch.tensor([-1.0, -1.5, -3.0], device=device())


def as_class(cls, beams):
    return cls(**{f.name: getattr(beams, f.name) for f in dataclasses.fields(beams)})


def described(beams):
    return {"tokens": beams.tokens.tolist(), "log-probability sums": beams.logprob_sums}


def use_beams(cls, k, ban, sums, num_beams, eos):
    model = small_demo(1)
    candidates = cls(model, BEAMS, SUMS).generate(k, ban)
    order = candidates.logprob_sums.argsort(descending=True)
    seen = {
        "number of candidates": len(candidates.tokens),
        "candidates' tokens": candidates.tokens[order][: 2 * k].tolist(),
        "candidates' sums": candidates.logprob_sums[order],
        "candidates' parents": candidates.parents[order][: 2 * k].tolist(),
    }
    # For the filter, candidates with sums of our own choice.
    rows = torch.arange(len(sums))
    prompt = torch.stack([rows % 4 + 1, rows % 3 + 4, torch.where(rows % 2 == 0, 2, rows + 3)], 1)
    kept, finished = cls(model, prompt, sums, rows).filter(num_beams, eos)
    seen |= {"kept by filter": kept.tokens.tolist(), "sums kept by filter": kept.logprob_sums}
    seen |= {"finished": sorted((round(score, 4), list(text)) for score, text in finished)}
    return seen


def same_beams(got, want, *args):
    if not isinstance(got, dict):
        return difference(got, want)
    for name in want:
        if said := difference(got[name], want[name]):
            return f"{name}: {said}"
    return None


NO_GRADIENT = {"gradients": "a search: nobody trains through it"}
Beams = exercise(sp.Beams, use=use_beams, same=same_beams, without=NO_GRADIENT)


@Beams.cases
def _():
    mixed = torch.tensor([-3.0, -1.0, -2.0, -5.0, -2.5, -1.5, -6.0, -0.5])
    yield 4, None, mixed, 3, 2
    yield 5, 2, mixed, 4, None
    yield 3, 1, torch.tensor([-1.0, -4.0, -2.0, -math.inf, -3.0]), 3, 2


def generated(beams, k, ban, sums=None, banned=None, interleave=True):
    log_probs = beams.next_log_probs()
    if ban is not None:
        for row, text in enumerate(beams.tokens.tolist()):
            bans = banned(beams, row, ban) if banned else sp.banned_tokens(text, ban)
            log_probs[row, list(bans)] = -math.inf
    new_log_probs, new = log_probs.topk(k, -1)
    parents = torch.arange(len(new)).repeat_interleave(k) if interleave else torch.arange(len(new)).repeat(k)
    old = beams.logprob_sums[parents]
    total = old + new_log_probs.flatten() if sums is None else sums(old, new_log_probs.flatten())
    return sp.Beams(beams.model, torch.cat([beams.tokens[parents], new.reshape(-1, 1)], 1), total, parents)


@Beams.mistake("generate: the sums must grow; add the new token's log-probability to its beam's sum")
class _(sp.Beams):
    def generate(self, k, no_repeat_ngram_size=None):
        return generated(self, k, no_repeat_ngram_size, sums=lambda old, new: new)


@Beams.mistake("generate: you added probabilities: a text's log-probability is a sum of log-probabilities")
class _(sp.Beams):
    def generate(self, k, no_repeat_ngram_size=None):
        return generated(self, k, no_repeat_ngram_size, sums=lambda old, new: old + new.exp())


@Beams.mistake("generate: the ban is shared between beams; each beam's own text decides what it may not say")
class _(sp.Beams):
    def generate(self, k, no_repeat_ngram_size=None):
        def everyone(beams, row, n):
            return set().union(*(sp.banned_tokens(text, n) for text in beams.tokens.tolist()))

        return generated(self, k, no_repeat_ngram_size, banned=everyone)


@Beams.mistake("generate: you ignored no_repeat_ngram_size")
class _(sp.Beams):
    def generate(self, k, no_repeat_ngram_size=None):
        return generated(self, k, None)


@Beams.mistake("generate: tokens and beams got mixed up; k candidates of beam 0 come first, so repeat_interleave")
class _(sp.Beams):
    def generate(self, k, no_repeat_ngram_size=None):
        return generated(self, k, no_repeat_ngram_size, interleave=False)


def filtered(beams, num_beams, eos, ended_among="best", refill=True, ascending=False, leave=False, impossible=False):
    order = beams.logprob_sums.argsort(descending=not ascending)
    if not impossible:
        order = order[~beams.logprob_sums[order].isneginf()]
    ends = beams.tokens[order, -1] == (sp.PAD if eos is None else eos)
    ended = order[ends] if ended_among == "all" else order[:num_beams][ends[:num_beams]]
    finished = [(beams.logprob_sums[r].item(), beams.tokens[r].tolist()) for r in ended]
    going = order if leave else order[~ends]
    kept = going[:num_beams] if refill else order[:num_beams][~ends[:num_beams]]
    return beams.select(kept), finished


@Beams.mistake("filter: a text that ended counts only if it is itself among the num_beams best candidates")
class _(sp.Beams):
    def filter(self, num_beams, eos_token_id=None):
        return filtered(self, num_beams, eos_token_id, ended_among="all")


@Beams.mistake("filter: ended texts leave places free; fill them with the best that go on, up to num_beams")
class _(sp.Beams):
    def filter(self, num_beams, eos_token_id=None):
        return filtered(self, num_beams, eos_token_id, refill=False)


@Beams.mistake("filter: you kept the worst; the largest sum is the best (sums are negative)")
class _(sp.Beams):
    def filter(self, num_beams, eos_token_id=None):
        return filtered(self, num_beams, eos_token_id, ascending=True)


@Beams.mistake("filter: ended texts must not go on as beams")
class _(sp.Beams):
    def filter(self, num_beams, eos_token_id=None):
        return filtered(self, num_beams, eos_token_id, leave=True)


@Beams.mistake("filter: a candidate with sum -inf is impossible (banned); drop it even if places stay empty")
class _(sp.Beams):
    def filter(self, num_beams, eos_token_id=None):
        return filtered(self, num_beams, eos_token_id, impossible=True)


@Beams.right
class _(sp.Beams):
    def generate(self, k, no_repeat_ngram_size=None):
        log_probs, rows = self.next_log_probs(), []
        for i, text in enumerate(self.tokens.tolist()):
            bans = sp.banned_tokens(text, no_repeat_ngram_size) if no_repeat_ngram_size else set()
            allowed = [(-math.inf if t in bans else p, t) for t, p in enumerate(log_probs[i].tolist())]
            for p, t in sorted(allowed, reverse=True)[:k]:
                rows.append((text + [t], self.logprob_sums[i].item() + p, i))
        texts, sums, parents = zip(*rows, strict=True)
        return sp.Beams(self.model, torch.tensor(texts), torch.tensor(sums), torch.tensor(parents), self.cache)


# ---------------------------------------------------------------- beam_search


def use_beam_search(fn, prompt, *args):
    found = fn(small_demo(1), prompt, *args)
    return [(round(score, 3), list(text)) for score, text in found]


beam_search = exercise(sp.beam_search, use=use_beam_search)
PROMPT = torch.tensor([3, 4], device=device())


@beam_search.cases
def _():
    for eos in (None, 5, 9):
        yield PROMPT, 3, 4, eos, None, True
    yield PROMPT, 4, 5, 6, 1, False
    yield PROMPT, 2, 30, None, None, True
    yield PROMPT, 3, 6, 11, None, True  # enough have ended, and a running one is better
    yield torch.tensor([13, 16, 10]), 3, 3, 3  # one has ended, and as many as before must go on
    yield PROMPT, 1, 4
    yield PROMPT, 17, 1
    first = int(small_demo(1)(PROMPT[None])[0, -1].argmax())
    for num_beams in (1, 2, 3):
        yield PROMPT, num_beams, 3, first  # the best candidate ends at once
    yield PROMPT, 17, 3, 0  # every token is among the candidates, and 0 ends a text


@beam_search.refused
def _():
    for num_beams in (0, 18):
        yield PROMPT, num_beams, 4
    yield torch.tensor([], dtype=torch.long), 2, 4
    yield torch.tensor([3] * 15), 2, 4


def within_context(prompt, n):
    return 0 < len(prompt) <= len(prompt) + n <= small_demo(1).cfg.n_ctx


def searched_within(prompt, num_beams, n):
    return 1 <= num_beams <= small_demo(1).cfg.d_vocab and within_context(prompt, n)


@beam_search.step("texts that don't end")
def _(prompt, num_beams, n, eos=None, ban=None, cached=True):
    return eos is None and ban is None and searched_within(prompt, num_beams, n)


@beam_search.step("texts that end")
def _(prompt, num_beams, n, eos=None, ban=None, cached=True):
    return eos is not None and ban is None and searched_within(prompt, num_beams, n)


@beam_search.step("the ban")
def _(prompt, num_beams, n, eos=None, ban=None, cached=True):
    return ban is not None and searched_within(prompt, num_beams, n)


def search(
    model, prompt, num_beams, n, eos=None, ban=None, cached=True, stop=True, running=True, ended=True, limit=True
):
    n_max = len(prompt) + n
    n_max = min(n_max, model.cfg.n_ctx) if limit else n_max
    beams, finished = sp.Beams(model, prompt[None], torch.zeros(1)), []
    for _ in range(n_max - len(prompt)):
        going_on, new = beams.generate(num_beams + 1, ban).filter(num_beams, eos)
        finished = sorted(finished + new, reverse=True)[:num_beams]
        if not len(going_on.tokens):
            return finished or beams.ranked()
        beams = going_on
        if stop == "first" and finished:
            break
        if len(finished) == num_beams and finished[-1][0] >= beams.logprob_sums[0] and stop is True:
            return finished
    found = finished * ended + beams.ranked() * running
    return sorted(found, reverse=True)[:num_beams]


@beam_search.mistake("texts that ended are lost: collect what filter returns as finished")
def _(*args):
    return search(*args, ended=False, stop=False)


@beam_search.mistake("beams that still run at the end are lost: rank them with the finished ones")
def _(*args):
    return search(*args, running=False)


@beam_search.mistake("you stopped at the first text that ended: another beam may still be better")
def _(*args):
    return search(*args, stop="first")


@beam_search.mistake("the best must come first: sort by the sum, descending")
def _(*args):
    return search(*args)[::-1]


@beam_search.mistake("this is greedy: keep num_beams beams, not one")
def _(model, prompt, num_beams, *args):
    return search(model, prompt, 1, *args)


@beam_search.mistake("you didn't pass no_repeat_ngram_size on to generate")
def _(model, prompt, num_beams, n, eos=None, ban=None, cached=True):
    return search(model, prompt, num_beams, n, eos)


@beam_search.mistake("you divided the sums by the length: results are plain sums of log-probabilities")
def _(model, prompt, *args):
    return [(score / (len(text) - len(prompt)), text) for score, text in search(model, prompt, *args)]


@beam_search.mistake("you ran past the context: stop when the text has n_ctx tokens")
def _(model, prompt, num_beams, n, eos=None, ban=None, cached=True):
    if len(prompt) + n > model.cfg.n_ctx:
        raise IndexError("index out of range in W_pos")
    return search(model, prompt, num_beams, n, eos, ban)


@beam_search.law("a beam as wide as the vocabulary must find the best of all texts of two tokens")
def _(beam_search):
    model = small_demo(1)
    texts = torch.cartesian_prod(torch.arange(17), torch.arange(17))
    texts = torch.cat([PROMPT.expand(len(texts), -1), texts], 1)
    sums = tf.get_log_probs(model(texts), texts)[:, 1:].sum(-1)
    score, text = beam_search(model, PROMPT, 17, 2)[0]
    return list(text) == texts[sums.argmax()].tolist() and abs(score - sums.max().item()) < 1e-3


@beam_search.law("where the ban leaves no token at all, what was found before comes back, best first")
def _(beam_search):
    model = random_demo(tf.Config(d_model=8, n_layers=1, n_heads=2, d_head=4, d_mlp=12, d_vocab=4, n_ctx=14))
    prompt = torch.tensor([1, 3])
    pairs = [
        (beam_search(model, prompt, beams, 9, eos, 1), sp.beam_search(model, prompt, beams, 9, eos, 1))
        for beams in (1, 2, 3)
        for eos in (None, 0, 2)
    ]
    return all(difference([(s, list(t)) for s, t in got], want) is None for got, want in pairs)


@beam_search.right
def _(model, prompt, num_beams, *args):
    sp.require(0 < num_beams <= model.cfg.d_vocab, "num_beams must be from 1 to d_vocab")
    sp.require_prompts([prompt.tolist()], model.cfg.n_ctx)
    return search(model, prompt, num_beams, *args)


# ---------------------------------------------------------------- TransformerSampler


class Letters:
    """As much of a tokenizer as the sampler needs: one token a letter."""

    bos_token_id, eos_token_id = 0, 9

    def encode(self, text, add_special_tokens=False):
        return [1 + ord(c) % 16 for c in text]

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(96 + i) for i in ids)


def use_transformer_sampler(cls, prompts, n, kwargs):
    return cls(small_demo(1), Letters()).generate(prompts, n, temperature=0, **kwargs)


TransformerSampler = exercise(sp.TransformerSampler, use=use_transformer_sampler)


@TransformerSampler.cases
def _():
    prompts = [[3, 4, 5], [1], [6, 2, 2, 8]]
    yield [[3, 4, 5]], 4, {"stop_at_eos": False}
    yield prompts, 4, {"stop_at_eos": False}
    yield prompts, 4, {"stop_at_eos": False, "use_cache": False}
    yield [[3, 4, 5], [10], [13], [12, 14], [16, 11, 2, 8], [15]], 8, {}
    yield [[15], [12, 14], [5]], 9, {}
    yield [[3, 4], [5]], 6, {"frequency_penalty": 3.0, "stop_at_eos": False}
    yield [[3, 4], [5]], 40, {"stop_at_eos": False}
    yield [[3, 4], [5]], 0, {}
    yield [[9, 3, 4], [5, 9, 2]], 5, {}  # what ends a text may stand in a prompt: many models begin with it


@TransformerSampler.refused
def _():
    yield [], 4, {}
    yield [[3, 4], []], 4, {}
    yield [[3] * 15], 4, {}
    yield [[3, 4]], -1, {}
    yield [[3, 4]], 4, {"top_k": 0}


def sampled_within(prompts, n):
    return n >= 0 and bool(prompts) and all(within_context(prompt, n) for prompt in prompts)


@TransformerSampler.step("one prompt")
def _(prompts, n, kwargs):
    return len(prompts) == 1 and kwargs == {"stop_at_eos": False} and sampled_within(prompts, n)


@TransformerSampler.step("prompts of several lengths")
def _(prompts, n, kwargs):
    return kwargs == {"stop_at_eos": False} and sampled_within(prompts, n)


@TransformerSampler.step("texts that end")
def _(prompts, n, kwargs):
    return kwargs == {} and sampled_within(prompts, n)


def run_sampler(
    self, prompts, n, use_cache=True, stop_at_eos=True, progress=False, left=True, pad=None, eos=True, fill=True,
    strip=True, limit=True, kwargs_on=True, refill=False, **kwargs
):  # fmt: skip
    longest, cfg = max(map(len, prompts)), self.model.cfg
    padding = torch.tensor([longest - len(p) for p in prompts])
    rows = [[sp.PAD] * (longest - len(p)) + p if left else p + [sp.PAD] * (longest - len(p)) for p in prompts]
    tokens, n_max = torch.tensor(rows), min(longest + n, cfg.n_ctx)
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    known = padding if pad is None else torch.zeros_like(padding)
    cache = kv.KeyValueCache(cfg, len(prompts), padding=known)
    if not limit and longest + n > cfg.n_ctx:
        raise ValueError("the cache has room for fewer tokens")
    for _ in range(n_max - longest):
        if not use_cache:
            cache = kv.KeyValueCache(cfg, len(prompts), padding=known)
        if refill:
            cache.length = 0
            logits = kv.forward_with_cache(self.model, tokens[:, -1:], cache)[:, -1]
        else:
            logits = kv.forward_with_cache(self.model, tokens[:, cache.length :], cache)[:, -1]
        new = sp.sample_next_token(tokens, logits, **(kwargs if kwargs_on else {"temperature": 0}))
        new = new.masked_fill(ended & fill, sp.PAD)
        tokens = torch.cat([tokens, new[:, None]], 1)
        if stop_at_eos and eos:
            ended = ended | (new == self.tokenizer.eos_token_id)
            if ended.all():
                break
    return [[t for t in row if t != sp.PAD or not strip] for row in tokens.tolist()]


def wrong_sampler(sentence, **how):
    """The sampler with one mistake put in."""

    @TransformerSampler.mistake(sentence)
    class _(sp.TransformerSampler):
        def generate(self, prompts, max_tokens_generated=100, **kwargs):
            return run_sampler(self, prompts, max_tokens_generated, **kwargs, **how)


wrong_sampler("you padded on the right: then the last column is no prompt's last token; pad on the left", left=False)
wrong_sampler("the cache doesn't know the padding: pass it to KeyValueCache, else positions and mask are wrong", pad=0)
wrong_sampler("you ignored the end-of-text token", eos=False)
wrong_sampler("a text that has ended went on: give it PAD from then on", fill=False)
wrong_sampler("PAD is left in the results: take it out", strip=False)
wrong_sampler("you ran past the context: longest prompt and new tokens together have n_ctx places", limit=False)
wrong_sampler("you didn't pass the sampling arguments on to sample_next_token", kwargs_on=False)
wrong_sampler("the model forgot the text: don't start the cache anew when only the last token is fed", refill=True)


@TransformerSampler.right
class _(sp.TransformerSampler):
    def generate(self, prompts, max_tokens_generated=100, use_cache=True, stop_at_eos=True, progress=False, **kwargs):
        sp.require_prompts(prompts, self.model.cfg.n_ctx)
        sp.require(max_tokens_generated >= 0, "max_tokens_generated must be 0 or above")
        eos, longest = self.tokenizer.eos_token_id, max(map(len, prompts))
        texts = []
        room = min(max_tokens_generated, self.model.cfg.n_ctx - longest)
        for prompt in prompts:
            tokens = sp.sample_tokens(self.model, torch.tensor([prompt]), room, eos if stop_at_eos else None, **kwargs)
            texts.append(tokens[0].tolist())
        return texts
