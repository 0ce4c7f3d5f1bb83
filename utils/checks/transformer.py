"""What chapter 02 asks of a learner's functions and classes, and the mistakes it recognises."""

import dataclasses
import math
from functools import partial

import einops
import torch
from torch import nn

from utils import transformer as tf
from utils import variants
from utils.checks.compare import difference
from utils.checks.engine import Chapter
from utils.checks.models import CFG, filled, noise, tokens
from utils.runtime import device

chapter = Chapter(tf, variants)
exercise, check, hint, compare = chapter.exercise, chapter.check, chapter.hint, chapter.compare

LARGE_EPS = dataclasses.replace(CFG, layer_norm_eps=0.3)
numbers, random_ids = noise, partial(tokens, below=CFG.d_vocab)


def use_part(part, cfg, *inputs):
    """Build the part, give it random weights, apply it."""
    return filled(part(cfg))(*inputs)


# ---------------------------------------------------------------- LayerNorm

LayerNorm = exercise(tf.LayerNorm, use=use_part)


@LayerNorm.cases
def _():
    yield CFG, numbers(2, 7, 12) * 3 + 1
    yield LARGE_EPS, numbers(2, 7, 12, seed=1) + 2
    yield CFG, torch.zeros(1, 2, 12)


@LayerNorm.mistake("you divided by the sample's deviation (n - 1): the variance here is a plain mean, correction=0")
class _(tf.LayerNorm):
    def forward(self, x):
        variance = x.var(dim=-1, keepdim=True)
        return (x - x.mean(-1, keepdim=True)) / (variance + self.cfg.layer_norm_eps).sqrt() * self.w + self.b


@LayerNorm.mistake("you added layer_norm_eps to the deviation: it belongs under the root, sqrt(variance + eps)")
class _(tf.LayerNorm):
    def forward(self, x):
        deviation = x.var(dim=-1, keepdim=True, correction=0).sqrt()
        return (x - x.mean(-1, keepdim=True)) / (deviation + self.cfg.layer_norm_eps) * self.w + self.b


@LayerNorm.mistake("you left layer_norm_eps out: a vector of equal numbers would divide by 0")
class _(tf.LayerNorm):
    def forward(self, x):
        return (x - x.mean(-1, keepdim=True)) / x.std(dim=-1, keepdim=True, correction=0) * self.w + self.b


@LayerNorm.mistake("you didn't subtract the mean before dividing: that is RMSNorm")
class _(tf.LayerNorm):
    def forward(self, x):
        return x / (x.pow(2).mean(-1, keepdim=True) + self.cfg.layer_norm_eps).sqrt() * self.w + self.b


@LayerNorm.mistake("you normalized over the positions: take mean and variance over the last dimension, d_model")
class _(tf.LayerNorm):
    def forward(self, x):
        centred = x - x.mean(1, keepdim=True)
        return centred / (x.var(1, keepdim=True, correction=0) + self.cfg.layer_norm_eps).sqrt() * self.w + self.b


@LayerNorm.mistake("you left out the learned part: multiply by self.w and add self.b at the end")
class _(tf.LayerNorm):
    def forward(self, x):
        return nn.functional.layer_norm(x, x.shape[-1:], eps=self.cfg.layer_norm_eps)


@LayerNorm.mistake("you added self.b before multiplying with self.w: first scale, then shift")
class _(tf.LayerNorm):
    def forward(self, x):
        return (nn.functional.layer_norm(x, x.shape[-1:], eps=self.cfg.layer_norm_eps) + self.b) * self.w


@LayerNorm.law("with w = 1 and b = 0 every vector must come out with mean 0 and variance 1")
def _(LayerNorm):
    out = LayerNorm(CFG).to(device())(numbers(3, 4, 12) * 5 + 2)
    return torch.allclose(out.mean(-1), torch.zeros(3, 4), atol=1e-5) and torch.allclose(
        out.var(-1, correction=0), torch.ones(3, 4), atol=1e-3
    )


@LayerNorm.right
class _(tf.LayerNorm):
    def forward(self, x):
        return nn.functional.layer_norm(x, x.shape[-1:], self.w, self.b, self.cfg.layer_norm_eps)


# ---------------------------------------------------------------- Embed

Embed = exercise(tf.Embed, use=use_part)


@Embed.cases
def _():
    yield CFG, random_ids(2, 7)
    yield CFG, torch.tensor([[16]])
    yield CFG, torch.zeros(2, 3, dtype=torch.long)


@Embed.mistake("you multiplied by sqrt(d_model), as the first transformer did: GPT-2 takes the vector as it is")
class _(tf.Embed):
    def forward(self, tokens):
        return self.W_E[tokens] * self.W_E.shape[1] ** 0.5


@Embed.mistake("you embedded only the first text of the batch: index W_E with all of `tokens`")
class _(tf.Embed):
    def forward(self, tokens):
        return self.W_E[tokens[0]]


@Embed.mistake("your last two dimensions are swapped: the result is (batch, pos, d_model), just W_E[tokens]")
class _(tf.Embed):
    def forward(self, tokens):
        return self.W_E[tokens].mT


@Embed.mistake("you added up the vectors of a text, which loses their order: keep one vector a token")
class _(tf.Embed):
    def forward(self, tokens):
        return self.W_E[tokens].sum(1)


@Embed.right
class _(tf.Embed):
    def forward(self, tokens):
        return nn.functional.one_hot(tokens, len(self.W_E)).float() @ self.W_E


# ---------------------------------------------------------------- PosEmbed

PosEmbed = exercise(tf.PosEmbed, use=use_part)


@PosEmbed.cases
def _():
    yield CFG, random_ids(3, 7)
    yield CFG, random_ids(1, CFG.n_ctx)


@PosEmbed.mistake("you looked up W_pos[tokens]: positions are 0, 1, 2, … whatever the tokens are")
class _(tf.PosEmbed):
    def forward(self, tokens):
        return self.W_pos[tokens]


@PosEmbed.mistake("you returned all n_ctx positions: take only as many as the text has tokens, tokens.shape[1]")
class _(tf.PosEmbed):
    def forward(self, tokens):
        return self.W_pos.expand(len(tokens), -1, -1)


@PosEmbed.mistake("the batch dimension is missing: repeat the vectors for each text of the batch")
class _(tf.PosEmbed):
    def forward(self, tokens):
        return self.W_pos[: tokens.shape[1]]


@PosEmbed.mistake("you counted positions from 1: the first token stands at position 0")
class _(tf.PosEmbed):
    def forward(self, tokens):
        return self.W_pos.roll(-1, 0)[: tokens.shape[1]].expand(len(tokens), -1, -1)


@PosEmbed.mistake("you took one position for each text: tokens.shape[0] is the batch, tokens.shape[1] the length")
class _(tf.PosEmbed):
    def forward(self, tokens):
        return einops.repeat(self.W_pos[: tokens.shape[0]], "pos d_model -> batch pos d_model", batch=tokens.shape[1])


@PosEmbed.right
class _(tf.PosEmbed):
    def forward(self, tokens):
        return self.W_pos[torch.arange(tokens.shape[-1]).repeat(tokens.shape[0], 1)]


# ---------------------------------------------------------------- Attention


def use_attention(part, cfg, x, scores):
    attn = filled(part(cfg))
    # Any large negative number will do as IGNORE, so the masked scores are compared after their softmax.
    return {"mask": attn.apply_causal_mask(scores).softmax(-1), "out": attn(x)}


Attention = exercise(tf.Attention, use=use_attention)


@Attention.cases
def _():
    yield CFG, numbers(2, 7, 12), numbers(2, 3, 7, 7, seed=1)
    yield CFG, numbers(1, 1, 12, seed=2), numbers(1, 3, 1, 1, seed=3)


def attention(attn, x, divide=None, dim=-1, biases=True, out_bias=1, mask=None, swap=False, after=False):
    """Attention with a mistake put in."""
    heads = "batch pos d_model, n_heads d_model d_head -> batch n_heads pos d_head"
    weights = [(attn.W_Q, attn.b_Q), (attn.W_K, attn.b_K), (attn.W_V, attn.b_V)]
    q, k, v = (einops.einsum(x, W, heads) + b[:, None] * biases for W, b in weights)
    q, k = (k, q) if swap else (q, k)
    scores = q @ k.mT / (attn.cfg.d_head**0.5 if divide is None else divide)
    mask = mask or attn.apply_causal_mask
    if after:
        pattern = scores.softmax(-1).tril()
    else:
        pattern = mask(scores).softmax(dim)
    out = einops.einsum(pattern @ v, attn.W_O, "batch n_heads pos d_head, n_heads d_head d_model -> batch pos d_model")
    return out + out_bias * attn.b_O


@Attention.mistake("you divided the scores by sqrt(d_model): divide by sqrt(d_head), the length of what is multiplied")
class _(tf.Attention):
    def forward(self, x):
        return attention(self, x, divide=self.cfg.d_model**0.5)


@Attention.mistake("you divided the scores by d_head: divide by its square root")
class _(tf.Attention):
    def forward(self, x):
        return attention(self, x, divide=self.cfg.d_head)


@Attention.mistake("you didn't divide the scores by sqrt(d_head)")
class _(tf.Attention):
    def forward(self, x):
        return attention(self, x, divide=1)


@Attention.mistake(
    "your softmax runs over the queries: each query's weights must add up to 1, so softmax over the keys"
)
class _(tf.Attention):
    def forward(self, x):
        return attention(self, x, dim=-2)


@Attention.mistake("you masked after the softmax, so rows don't add up to 1: mask the scores, then softmax")
class _(tf.Attention):
    def forward(self, x):
        return attention(self, x, after=True)


@Attention.mistake("you didn't call apply_causal_mask in forward: every position sees the future")
class _(tf.Attention):
    def forward(self, x):
        return attention(self, x, mask=lambda scores: scores)


@Attention.mistake("your mask is off by one: a position must see itself, so triu(diagonal=1), not triu()")
class _(tf.Attention):
    def forward(self, x):
        return attention(self, x)

    def apply_causal_mask(self, scores):
        return scores.masked_fill(torch.ones_like(scores).triu().bool(), self.IGNORE)


@Attention.mistake("your mask is off by one: each position sees the next one; use triu(diagonal=1)")
class _(tf.Attention):
    def forward(self, x):
        return attention(self, x)

    def apply_causal_mask(self, scores):
        return scores.masked_fill(torch.ones_like(scores).triu(2).bool(), self.IGNORE)


@Attention.mistake(
    "you masked the past: keys (columns) after the query (row) lie above the diagonal, so triu, not tril"
)
class _(tf.Attention):
    def forward(self, x):
        return attention(self, x)

    def apply_causal_mask(self, scores):
        return scores.masked_fill(torch.ones_like(scores).tril(-1).bool(), self.IGNORE)


@Attention.mistake("you set future scores to 0, which softmax turns into a weight of e⁰: fill in self.IGNORE instead")
class _(tf.Attention):
    def forward(self, x):
        return attention(self, x)

    def apply_causal_mask(self, scores):
        return scores.tril()


@Attention.mistake("you left out the biases b_Q, b_K and b_V")
class _(tf.Attention):
    def forward(self, x):
        return attention(self, x, biases=False)


@Attention.mistake("you left out the bias b_O")
class _(tf.Attention):
    def forward(self, x):
        return attention(self, x, out_bias=0)


@Attention.mistake("you added b_O once for each head: add it once, after summing over the heads")
class _(tf.Attention):
    def forward(self, x):
        return attention(self, x, out_bias=self.cfg.n_heads)


@Attention.mistake("queries and keys are swapped: rows of the scores are queries (made with W_Q), columns are keys")
class _(tf.Attention):
    def forward(self, x):
        return attention(self, x, swap=True)


@Attention.law("what comes later must not change what a position gets: the mask leaks")
def _(Attention):
    attn, x = filled(Attention(CFG)), numbers(1, 6, 12)
    changed = x.clone()
    changed[:, 4:] = 9.0
    return torch.allclose(attn(x)[:, :4], attn(changed)[:, :4], atol=1e-5)


@Attention.right
class _(tf.Attention):
    def forward(self, x):
        q, k, v = (torch.einsum("bpd,hde->bhpe", x, W) for W in (self.W_Q, self.W_K, self.W_V))
        q, k, v = q + self.b_Q[:, None], k + self.b_K[:, None], v + self.b_V[:, None]
        z = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return torch.einsum("bhpe,hed->bpd", z, self.W_O) + self.b_O

    def apply_causal_mask(self, scores):
        n = scores.shape[-1]
        return torch.where(torch.arange(n)[:, None] >= torch.arange(n), scores, -1e9)


# ---------------------------------------------------------------- MLP

# The two forms of gelu differ by less than 0.0005, so these results are compared more closely.
MLP = exercise(tf.MLP, use=use_part, rtol=1e-5, atol=1e-5)


@MLP.cases
def _():
    yield CFG, numbers(2, 7, 12)
    yield CFG, numbers(1, 3, 12, seed=1) * 3


@MLP.mistake("you used the exact gelu: GPT-2 has its tanh form, gelu(x, approximate='tanh')")
class _(tf.MLP):
    def forward(self, x):
        return nn.functional.gelu(x @ self.W_in + self.b_in) @ self.W_out + self.b_out


@MLP.mistake("you used relu: GPT-2 has gelu, in its tanh form")
class _(tf.MLP):
    def forward(self, x):
        return (x @ self.W_in + self.b_in).relu() @ self.W_out + self.b_out


@MLP.mistake("you left out b_in: it is added before the gelu")
class _(tf.MLP):
    def forward(self, x):
        return nn.functional.gelu(x @ self.W_in, approximate="tanh") @ self.W_out + self.b_out


@MLP.mistake("you left out b_out: it is added at the end")
class _(tf.MLP):
    def forward(self, x):
        return nn.functional.gelu(x @ self.W_in + self.b_in, approximate="tanh") @ self.W_out


@MLP.mistake("you added b_in after the gelu: it belongs to the first linear map, so add it before")
class _(tf.MLP):
    def forward(self, x):
        return (nn.functional.gelu(x @ self.W_in, approximate="tanh") + self.b_in) @ self.W_out + self.b_out


@MLP.mistake("you left out the gelu: two linear maps in a row are only one linear map")
class _(tf.MLP):
    def forward(self, x):
        return (x @ self.W_in + self.b_in) @ self.W_out + self.b_out


@MLP.right
class _(tf.MLP):
    def forward(self, x):
        pre = einops.einsum(x, self.W_in, "b p d, d m -> b p m") + self.b_in
        post = 0.5 * pre * (1 + torch.tanh(math.sqrt(2 / math.pi) * (pre + 0.044715 * pre**3)))
        return einops.einsum(post, self.W_out, "b p m, m d -> b p d") + self.b_out


# ---------------------------------------------------------------- TransformerBlock

TransformerBlock = exercise(tf.TransformerBlock, use=use_part)


@TransformerBlock.cases
def _():
    yield CFG, numbers(2, 7, 12)
    yield CFG, numbers(1, 2, 12, seed=1) * 4


@TransformerBlock.mistake("the attention's result replaces the stream: add it, resid_pre + attn(…)")
class _(tf.TransformerBlock):
    def forward(self, x):
        x = self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


@TransformerBlock.mistake("the MLP's result replaces the stream: add it, resid_mid + mlp(…)")
class _(tf.TransformerBlock):
    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return self.mlp(self.ln2(x))


@TransformerBlock.mistake(
    "you normalized after adding, as the first transformer did: GPT-2 normalizes what a part reads"
)
class _(tf.TransformerBlock):
    def forward(self, x):
        x = self.ln1(x + self.attn(x))
        return self.ln2(x + self.mlp(x))


@TransformerBlock.mistake(
    "attention and MLP read the same stream here: the MLP must read it after attention has written"
)
class _(tf.TransformerBlock):
    def forward(self, x):
        return x + self.attn(self.ln1(x)) + self.mlp(self.ln2(x))


@TransformerBlock.mistake("you left the LayerNorms out: attention reads ln1 of the stream, the MLP ln2")
class _(tf.TransformerBlock):
    def forward(self, x):
        x = x + self.attn(x)
        return x + self.mlp(x)


@TransformerBlock.mistake(
    "you added to the normalized stream: LayerNorm makes a copy for reading, the stream stays as it is"
)
class _(tf.TransformerBlock):
    def forward(self, x):
        x = self.ln1(x)
        x = x + self.attn(x)
        x = self.ln2(x)
        return x + self.mlp(x)


@TransformerBlock.right
class _(tf.TransformerBlock):
    def forward(self, x):
        attn_out = self.attn(self.ln1(x))
        return x + attn_out + self.mlp(self.ln2(x + attn_out))


# ---------------------------------------------------------------- Unembed

Unembed = exercise(tf.Unembed, use=use_part)


@Unembed.cases
def _():
    yield CFG, numbers(2, 7, 12)


@Unembed.mistake("you left out the bias b_U")
class _(tf.Unembed):
    def forward(self, x):
        return x @ self.W_U


@Unembed.mistake("you returned probabilities: logits are the numbers before the softmax")
class _(tf.Unembed):
    def forward(self, x):
        return (x @ self.W_U + self.b_U).softmax(-1)


@Unembed.mistake("you returned log-probabilities: logits are the numbers before the log_softmax")
class _(tf.Unembed):
    def forward(self, x):
        return (x @ self.W_U + self.b_U).log_softmax(-1)


@Unembed.mistake("you returned the last position only: every position predicts its next token")
class _(tf.Unembed):
    def forward(self, x):
        return x[:, -1] @ self.W_U + self.b_U


@Unembed.right
class _(tf.Unembed):
    def forward(self, x):
        return torch.einsum("bpd,dv->bpv", x, self.W_U) + self.b_U


# ---------------------------------------------------------------- DemoTransformer

DemoTransformer = exercise(tf.DemoTransformer, use=use_part)


@DemoTransformer.cases
def _():
    yield CFG, random_ids(2, 7)
    yield CFG, random_ids(1, CFG.n_ctx, seed=1)


@DemoTransformer.mistake("you left out the positions: the stream starts as embed + pos_embed")
class _(tf.DemoTransformer):
    def forward(self, tokens):
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.unembed(self.ln_final(x))


@DemoTransformer.mistake("you left out ln_final: the unembedding reads a normalized stream too")
class _(tf.DemoTransformer):
    def forward(self, tokens):
        x = self.embed(tokens) + self.pos_embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.unembed(x)


@DemoTransformer.mistake(
    "you added the stream to each block's result: a block returns the stream with its own part added"
)
class _(tf.DemoTransformer):
    def forward(self, tokens):
        x = self.embed(tokens) + self.pos_embed(tokens)
        for block in self.blocks:
            x = x + block(x)
        return self.unembed(self.ln_final(x))


@DemoTransformer.mistake("every block read the embeddings: each must read what the block before it returned")
class _(tf.DemoTransformer):
    def forward(self, tokens):
        x = self.embed(tokens) + self.pos_embed(tokens)
        for block in self.blocks:
            out = block(x)
        return self.unembed(self.ln_final(out))


@DemoTransformer.mistake("you returned log-probabilities: return the logits")
class _(tf.DemoTransformer):
    def forward(self, tokens):
        return super().forward(tokens).log_softmax(-1)


@DemoTransformer.law("a later token must not change the logits before it")
def _(DemoTransformer):
    model, ids = filled(DemoTransformer(CFG)), random_ids(1, 6)
    changed = ids.clone()
    changed[:, 4] = (ids[:, 4] + 1) % 17
    out, other = model(ids), model(changed)
    return torch.allclose(out[:, :4], other[:, :4], atol=1e-5) and not torch.allclose(out[:, 4:], other[:, 4:])


@DemoTransformer.right
class _(tf.DemoTransformer):
    def forward(self, tokens):
        return self.unembed(self.ln_final(nn.Sequential(*self.blocks)(self.embed(tokens) + self.pos_embed(tokens))))


# ---------------------------------------------------------------- get_log_probs

get_log_probs = exercise(tf.get_log_probs)


@get_log_probs.cases
def _():
    yield numbers(2, 7, 17, scale=2), random_ids(2, 7)
    yield numbers(3, 2, 17, seed=1), random_ids(3, 2, seed=1)
    yield numbers(2, 3, 17, seed=2, scale=60), random_ids(2, 3, seed=2)  # probabilities that are 0 in single precision


@get_log_probs.mistake("you didn't shift: logits at position i predict the token at i + 1, so [:, :-1] meets [:, 1:]")
def _(logits, tokens):
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[:, :-1, 0]


@get_log_probs.mistake("you shifted the wrong way: drop the last position's logits and the first token")
def _(logits, tokens):
    return logits.log_softmax(-1)[:, 1:].gather(-1, tokens[:, :-1, None])[..., 0]


@get_log_probs.mistake("you took the raw logits: log_softmax first, else they are no log-probabilities")
def _(logits, tokens):
    return logits[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]


@get_log_probs.mistake("your log_softmax runs over the positions: it must run over the vocabulary, dim=-1")
def _(logits, tokens):
    return logits.log_softmax(1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]


@get_log_probs.mistake("you returned probabilities: take the logarithm (log_softmax instead of softmax)")
def _(logits, tokens):
    return logits.softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]


@get_log_probs.mistake("these are losses: a log-probability is not negated")
def _(logits, tokens):
    return -tf.get_log_probs(logits, tokens)


@get_log_probs.mistake("you averaged: return one log-probability for each predicted token")
def _(logits, tokens):
    return tf.get_log_probs(logits, tokens).mean()


@get_log_probs.law("equal logits give every token the log-probability -ln(d_vocab)")
def _(get_log_probs):
    return torch.allclose(get_log_probs(torch.ones(2, 5, 17), random_ids(2, 5)), torch.full((2, 4), -math.log(17)))


@get_log_probs.right
def _(logits, tokens):
    batch, n = tokens.shape
    rows, places = torch.arange(batch)[:, None], torch.arange(n - 1)
    return logits.log_softmax(-1)[rows, places, tokens[:, 1:]]


# ---------------------------------------------------------------- bigram_loss

bigram_loss = exercise(tf.bigram_loss)


@bigram_loss.cases
def _():
    yield random_ids(6, 9, below=5), random_ids(4, 8, below=5, seed=1), 7, 1.0
    yield random_ids(6, 9, below=4, seed=2), random_ids(4, 8, below=6, seed=3), 7, 2.5


def table(train, d_vocab):
    counts = torch.zeros(d_vocab, d_vocab)
    for row in train.tolist():
        for a, b in zip(row, row[1:], strict=False):
            counts[a, b] += 1
    return counts


def frequencies(train, d_vocab):
    counts = torch.bincount(train.flatten(), minlength=d_vocab) + 0.1
    return counts / counts.sum()


def mean_loss(probs, test):
    return -probs[test[:, :-1], test[:, 1:]].log().mean().item()


@bigram_loss.mistake("you left out the smoothing: a pair that never occurred gets probability 0 and an infinite loss")
def _(train, test, d_vocab, strength=1.0):
    counts = table(train, d_vocab)
    return mean_loss(counts / counts.sum(1, keepdim=True), test)


@bigram_loss.mistake(
    "you added the same number to all pairs: add strength * p(b), so that frequent tokens stay frequent"
)
def _(train, test, d_vocab, strength=1.0):
    counts = table(train, d_vocab) + strength / d_vocab
    return mean_loss(counts / counts.sum(1, keepdim=True), test)


@bigram_loss.mistake("you predicted backwards: p(b | a) divides by how often a occurs as first token, not b as second")
def _(train, test, d_vocab, strength=1.0):
    counts = table(train, d_vocab)
    probs = (counts + strength * frequencies(train, d_vocab)) / (counts.sum(0) + strength)
    return mean_loss(probs, test)


@bigram_loss.mistake("you divided by the number of all pairs: p(b | a) divides by the count of a")
def _(train, test, d_vocab, strength=1.0):
    counts = table(train, d_vocab)
    return mean_loss((counts + strength * frequencies(train, d_vocab)) / (counts.sum() + strength), test)


@bigram_loss.mistake(
    "you counted pairs across the ends of rows: rows are separate texts, so use train[:, :-1], train[:, 1:]"
)
def _(train, test, d_vocab, strength=1.0):
    return tf.bigram_loss(train.reshape(1, -1), test, d_vocab, strength)


@bigram_loss.mistake("you counted a as first token in every column: the last of each row is followed by nothing")
def _(train, test, d_vocab, strength=1.0):
    firsts = torch.bincount(train.flatten(), minlength=d_vocab)[:, None]
    probs = (table(train, d_vocab) + strength * frequencies(train, d_vocab)) / (firsts + strength)
    return mean_loss(probs, test)


@bigram_loss.mistake("this is in bits: use the natural logarithm, as the models' losses do")
def _(train, test, d_vocab, strength=1.0):
    return tf.bigram_loss(train, test, d_vocab, strength) / math.log(2)


@bigram_loss.right
def _(train, test, d_vocab, strength=1.0):
    counts = table(train, d_vocab) + strength * frequencies(train, d_vocab)
    return mean_loss(counts / counts.sum(1, keepdim=True), test)


# ---------------------------------------------------------------- training_step


def use_training_step(step, rows, n_steps):
    """Train a tiny model for some steps of plain gradient descent."""
    model = filled(tf.DemoTransformer(CFG), scale=0.3)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)  # left from what was done before
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = [step(model, optimizer, rows) for _ in range(n_steps)]
    return {"losses": losses, "b_U": model.unembed.b_U, "W_E": model.embed.W_E}


training_step = exercise(tf.training_step, use=use_training_step, in_place={"model": "training changes its weights"})


@training_step.cases
def _():
    yield random_ids(4, 7), 3


@training_step.mistake("gradients pile up from step to step: call optimizer.zero_grad() before loss.backward()")
def _(model, optimizer, tokens):
    loss = -tf.get_log_probs(model(tokens), tokens).mean()
    loss.backward()
    optimizer.step()
    return loss.item()


@training_step.mistake(
    "nothing was learned: call optimizer.step() right after loss.backward(); zero_grad() comes before both"
)
def _(model, optimizer, tokens):
    loss = -tf.get_log_probs(model(tokens), tokens).mean()
    optimizer.zero_grad()
    loss.backward()
    return loss.item()


@training_step.mistake("you maximise the log-probability of being wrong: the loss is minus the mean log-probability")
def _(model, optimizer, tokens):
    loss = tf.get_log_probs(model(tokens), tokens).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@training_step.mistake("you summed the losses: take their mean, else the step grows with the batch")
def _(model, optimizer, tokens):
    loss = -tf.get_log_probs(model(tokens), tokens).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@training_step.mistake("the model learns to repeat its input: compare logits[:, :-1] with tokens[:, 1:]")
def _(model, optimizer, tokens):
    loss = nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


@training_step.right
def _(model, optimizer, tokens):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    return float(loss.detach())


# ---------------------------------------------------------------- bigram_logits

bigram_logits = exercise(tf.bigram_logits)


@bigram_logits.cases
def _():
    yield numbers(6, 3), numbers(3, 6, seed=1)
    yield numbers(4, 3, seed=2), numbers(3, 4, seed=3)


@bigram_logits.mistake("your table is transposed: the row is the token that is there, the column the one that follows")
def _(W_E, W_U):
    return W_U.T @ W_E.T


@bigram_logits.mistake("you multiplied W_E with itself: the second factor is W_U, also where the model is tied")
def _(W_E, W_U):
    return W_E @ W_E.T


@bigram_logits.mistake("you took the softmax: return the logits themselves")
def _(W_E, W_U):
    return (W_E @ W_U).softmax(-1)


@bigram_logits.mistake("these are cosines: multiply the vectors as they are, their lengths count")
def _(W_E, W_U):
    return nn.functional.normalize(W_E, dim=1) @ nn.functional.normalize(W_U, dim=0)


@bigram_logits.law("where W_U is W_E transposed, the table must equal its transpose")
def _(bigram_logits):
    W_E = numbers(6, 3)
    out = bigram_logits(W_E, W_E.T)
    return torch.allclose(out, out.T, atol=1e-5)


@bigram_logits.right
def _(W_E, W_U):
    return einops.einsum(W_E, W_U, "a d, d b -> a b")


# ---------------------------------------------------------------- antisymmetric_share

# Near 0 and 1 a share found from the other part's, 1 - share², has lost half of its digits.
antisymmetric_share = exercise(
    tf.antisymmetric_share, same=lambda got, want, *args: difference(got, want, rtol=0, atol=2e-3)
)


@antisymmetric_share.cases
def _():
    yield (numbers(6, 6),)
    yield (1e-6 * numbers(5, 5, seed=1),)
    yield (torch.tensor([[1.0, 2.0], [2.0, 3.0]]),)
    yield (torch.tensor([[0.0, 2.0], [-2.0, 0.0]]),)


@antisymmetric_share.mistake("you forgot to halve: the antisymmetric part is (table - table.T) / 2")
def _(table):
    return ((table - table.T).norm() / table.norm()).item()


@antisymmetric_share.mistake("that is the symmetric part's share: subtract the transpose instead of adding it")
def _(table):
    return (((table + table.T) / 2).norm() / table.norm()).item()


@antisymmetric_share.mistake("you divided by the symmetric part: divide by the norm of the whole table")
def _(table):
    return ((table - table.T).norm() / (table + table.T).norm()).item()


@antisymmetric_share.mistake("you squared the share: divide norms, not squared norms")
def _(table):
    return tf.antisymmetric_share(table) ** 2


@antisymmetric_share.law("a symmetric table has share 0, an antisymmetric one share 1")
def _(antisymmetric_share):
    x = numbers(5, 5)
    return abs(antisymmetric_share(x + x.T)) < 2e-3 and abs(antisymmetric_share(x - x.T) - 1) < 2e-3


@antisymmetric_share.right
def _(table):
    symmetric = (table + table.T) / 2
    return math.sqrt(max(0.0, 1 - (symmetric.norm() / table.norm()).item() ** 2))


# ---------------------------------------------------------------- fold_layer_norm

IDS = random_ids(2, 7)


def use_fold(fold, state):
    """Load what comes out into a model: any state with the same outputs and idle LayerNorms is right."""
    model = tf.DemoTransformer(dataclasses.replace(CFG, n_layers=len(norms_of(state)) // 2)).to(device())
    folded = fold(state)
    model.load_state_dict(folded)
    idle = {name: p.clone() for name, p in model.named_parameters() if name.endswith((".w", ".b"))}
    return {"log_probs": model(IDS).log_softmax(-1), **idle}


def same_fold(got, want, *args):
    if said := difference(got, want):
        return f"after folding, {said}"
    return None


fold_layer_norm = exercise(
    tf.fold_layer_norm,
    use=use_fold,
    same=same_fold,
    without={"gradients": "weights to load into a model: they begin a new graph there"},
)


@fold_layer_norm.cases
def _():
    yield (filled(tf.DemoTransformer(CFG)).state_dict(),)
    yield (filled(tf.DemoTransformer(dataclasses.replace(CFG, n_layers=11))).state_dict(),)


def norms_of(state):
    """Each LayerNorm's name, and the weights and biases that read it."""
    return {
        f"blocks.{layer}.{norm}": [(f"blocks.{layer}.{W}", f"blocks.{layer}.{b}") for W, b in maps]
        for layer in range(sum(name.endswith("W_Q") for name in state))
        for norm, maps in {
            "ln1": [(f"attn.W_{x}", f"attn.b_{x}") for x in "QKV"],
            "ln2": [("mlp.W_in", "mlp.b_in")],
        }.items()
    } | {"ln_final": [("unembed.W_U", "unembed.b_U")]}


def fold(state, norms=None, shift=True, order="right", reset=True, copy=True, only=None, square=False):
    """Folding with a mistake put in."""
    norms = norms or norms_of(state)
    state = {k: v.clone() for k, v in state.items()} if copy else state
    for norm, maps in norms.items():
        w, b = state[f"{norm}.w"], state[f"{norm}.b"]
        for W_name, b_name in maps:
            if only and not W_name.endswith(only):
                continue
            W = state[W_name]
            folded = w[:, None] * W
            if shift:
                state[b_name] = state[b_name] + b @ (folded if order == "wrong" else W)
            state[W_name] = w[:, None] * folded if square else folded
        if reset:
            state[f"{norm}.w"], state[f"{norm}.b"] = torch.ones_like(w), torch.zeros_like(b)
    return state


@fold_layer_norm.mistake("you folded b through weights that w had already scaled: b @ W needs the W from before")
def _(state):
    return fold(state, order="wrong")


@fold_layer_norm.mistake("you left out the shift: the new bias is the old one plus b @ W")
def _(state):
    return fold(state, shift=False)


@fold_layer_norm.mistake("w and b are now applied twice: set every LayerNorm to w = 1 and b = 0 after folding")
def _(state):
    return fold(state, reset=False)


@fold_layer_norm.mistake("ln_final is missing: the unembedding reads a LayerNorm too, so fold it into W_U and b_U")
def _(state):
    return fold(state, {k: v for k, v in norms_of(state).items() if k != "ln_final"})


@fold_layer_norm.mistake("you reset ln_final without folding it into W_U and b_U")
def _(state):
    return fold(state, norms_of(state) | {"ln_final": []})


@fold_layer_norm.mistake("you folded ln1 into W_Q only: keys and values read its output too")
def _(state):
    return fold(state, {k: [m for m in v if m[0][-1] not in "KV"] for k, v in norms_of(state).items()})


@fold_layer_norm.mistake("you folded ln1 into queries and keys only: the values read its output too")
def _(state):
    return fold(state, {k: [m for m in v if m[0][-1] != "V"] for k, v in norms_of(state).items()})


@fold_layer_norm.mistake("you divided by w: LayerNorm multiplies with w, so its reader must too")
def _(state):
    inverse = {k: 1 / v if k.endswith(".w") else v for k, v in state.items()}
    return fold(inverse)


@fold_layer_norm.law("the state that you were given must stay as it was: work on a copy")
def _(fold_layer_norm):
    state = {k: v.clone() for k, v in filled(tf.DemoTransformer(CFG)).state_dict().items()}
    before = {k: v.clone() for k, v in state.items()}
    fold_layer_norm(state)
    return state.keys() == before.keys() and all(torch.equal(state[k], before[k]) for k in before)


@fold_layer_norm.mistake("the state that you were given must stay as it was: work on a copy")
def _(state):
    return fold(state, copy=False)


@fold_layer_norm.right
def _(state):
    new = fold(state)
    # TransformerLens also takes out the mean over d_model, which changes no output.
    for name, W in new.items():
        if name.endswith("mlp.W_in"):
            new[name] = W - W.mean(0, keepdim=True)
    return new


# ---------------------------------------------------------------- similarity_by_distance

similarity_by_distance = exercise(tf.similarity_by_distance)


@similarity_by_distance.cases
def _():
    yield (numbers(8, 5) * torch.arange(1, 9)[:, None],)
    yield (1e-6 * numbers(6, 5, seed=1),)
    yield (torch.eye(4),)


def cosines(W):
    unit = W / W.norm(dim=-1, keepdim=True)
    return unit @ unit.T


@similarity_by_distance.mistake("these are dot products: divide each vector by its length first")
def _(W):
    return torch.stack([(W @ W.T).diagonal(d).mean() for d in range(len(W))])


@similarity_by_distance.mistake("you compared with position 0 only: average over all pairs that are d apart")
def _(W):
    return cosines(W)[0]


@similarity_by_distance.mistake("you summed: there are fewer pairs at large distances, so take the mean")
def _(W):
    return torch.stack([cosines(W).diagonal(d).sum() for d in range(len(W))])


@similarity_by_distance.mistake("your distances start at 1: entry 0 is each position with itself")
def _(W):
    return torch.stack([cosines(W).diagonal(d).mean() for d in range(1, len(W))])


@similarity_by_distance.mistake("you took absolute values: opposite directions count -1")
def _(W):
    return torch.stack([cosines(W).abs().diagonal(d).mean() for d in range(len(W))])


@similarity_by_distance.law("a position is exactly similar to itself: entry 0 must be 1, and all entries in [-1, 1]")
def _(similarity_by_distance):
    out = similarity_by_distance(3 * numbers(9, 4, seed=5))
    return abs(out[0].item() - 1) < 1e-5 and len(out) == 9 and out.abs().max() <= 1 + 1e-5


@similarity_by_distance.right
def _(W):
    n = len(W)
    sums, counts = torch.zeros(n), torch.zeros(n)
    for i in range(n):
        for j in range(i, n):
            sums[j - i] += nn.functional.cosine_similarity(W[i], W[j], dim=0)
            counts[j - i] += 1
    return sums / counts


# ---------------------------------------------------------------- ShortformerAttention

ShortformerAttention = exercise(tf.ShortformerAttention, use=use_part)


@ShortformerAttention.cases
def _():
    yield CFG, numbers(2, 7, 12), numbers(2, 7, 12, seed=1)


def shortformer(attn, x, pos, into="qk"):
    heads = "batch pos d_model, n_heads d_model d_head -> batch n_heads pos d_head"
    q, k, v = (
        einops.einsum(x + pos if letter in into else x, W, heads) + b[:, None]
        for letter, W, b in (("q", attn.W_Q, attn.b_Q), ("k", attn.W_K, attn.b_K), ("v", attn.W_V, attn.b_V))
    )
    pattern = attn.apply_causal_mask(q @ k.mT / attn.cfg.d_head**0.5).softmax(-1)
    return einops.einsum(pattern @ v, attn.W_O, "b n p e, n e d -> b p d") + attn.b_O


@ShortformerAttention.mistake("your values read the positions too: only queries and keys may")
class _(tf.ShortformerAttention):
    def forward(self, x, pos):
        return shortformer(self, x, pos, "qkv")


@ShortformerAttention.mistake("your keys don't read the positions: both queries and keys do")
class _(tf.ShortformerAttention):
    def forward(self, x, pos):
        return shortformer(self, x, pos, "q")


@ShortformerAttention.mistake("your queries don't read the positions: both queries and keys do")
class _(tf.ShortformerAttention):
    def forward(self, x, pos):
        return shortformer(self, x, pos, "k")


@ShortformerAttention.mistake("you left the positions out altogether: queries and keys read x + pos_embed")
class _(tf.ShortformerAttention):
    def forward(self, x, pos):
        return shortformer(self, x, pos, "")


@ShortformerAttention.mistake("you added the positions to the result: then the stream carries them after all")
class _(tf.ShortformerAttention):
    def forward(self, x, pos):
        return shortformer(self, x, pos) + pos


@ShortformerAttention.law("a lone token attends to itself, so its position must change nothing")
def _(ShortformerAttention):
    attn, x = filled(ShortformerAttention(CFG)), numbers(1, 1, 12)
    return torch.allclose(attn(x, numbers(1, 1, 12, seed=1)), attn(x, numbers(1, 1, 12, seed=2)), atol=1e-5)


@ShortformerAttention.right
class _(tf.ShortformerAttention):
    def forward(self, x, pos):
        return shortformer(self, x, pos)
