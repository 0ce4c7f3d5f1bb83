"""Small random models, activations and tokens to try answers on, for the checks and the tests.

All sizes differ, so that a transpose shows, and biases are not zero where the real model has some.
"""

import warnings
import zlib
from functools import cache, partial
from types import SimpleNamespace

import einops
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import nn
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities import get_act_name
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from utils.models import load
from utils.runtime import device
from utils.transformer import Config, DemoTransformer

# ---------------------------------------------------------------- numbers and tokens


def noise(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Normal numbers, on the device that the notebooks compute on."""
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device())


def tokens(*shape: int, seed: int = 0, below: int) -> torch.Tensor:
    """Token ids from 0 to `below` - 1, there too."""
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed)).to(device())


def tokenizer_of(text: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer in which every word of the text is one token."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|endoftext|>"
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=[end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text] * 2, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, pad_token=end)


# ---------------------------------------------------------------- hooks


def hook_point(name: str, layer: int) -> HookPoint:
    point = HookPoint()
    point.name = get_act_name(name, layer)
    return point


def hooked(fn, activation, *args, **kwargs):
    """What the model goes on with: a hook may edit in place or return a new tensor."""
    returned = fn(activation, *args, **kwargs)
    return activation if returned is None else returned


# ---------------------------------------------------------------- attention only, as the two-layer model

BOS, D_VOCAB = 7, 19
random_tokens = partial(tokens, below=D_VOCAB)


def new_model(cfg: HookedTransformerConfig) -> HookedTransformer:
    """A model without trained weights, and as much of a tokenizer as TransformerLens asks for."""
    # Building draws weights: a model that is built once and kept must not move the caller's random state.
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="HookedTransformer is deprecated")
        model = HookedTransformer(cfg).requires_grad_(False)
    model.tokenizer = SimpleNamespace(bos_token_id=BOS, padding_side="right", pad_token_id=None)
    return model


@cache
def small_attn(n_layers: int = 2, n_heads: int = 3) -> HookedTransformer:
    """An attention-only model with random weights; the two-layer model, whose format it has, has no biases."""
    sizes = dict(n_layers=n_layers, n_heads=n_heads, d_head=4, d_model=10, d_vocab=D_VOCAB, n_ctx=29)
    cfg = HookedTransformerConfig(
        **sizes,
        attn_only=True,
        normalization_type=None,
        positional_embedding_type="shortformer",
        use_attn_result=True,
        device=str(device()),
    )
    model = new_model(cfg)
    generator = torch.Generator().manual_seed(n_layers)
    for name, weight in model.named_parameters():
        if not name.endswith(("b_Q", "b_K", "b_V", "b_O", "b_U")):
            size = 0.4 if "attn" in name else 0.8
            weight.copy_(size * torch.randn(weight.shape, generator=generator))
    return model


@cache
def without_head(model: HookedTransformer, head: tuple[int, int]) -> HookedTransformer:
    """The same model, but that head writes nothing."""
    changed = new_model(model.cfg)
    changed.load_state_dict(model.state_dict())
    changed.blocks[head[0]].attn.W_O[head[1]] = 0
    return changed


def repeated(batch: int, seq_len: int = 6, seed: int = 0) -> torch.Tensor:
    """Sequences of BOS and twice the same passage."""
    passage = random_tokens(batch, seq_len, seed=seed)
    return torch.cat([torch.full_like(passage[:, :1], BOS), passage, passage], dim=1)


def cached(ids: torch.Tensor, model: HookedTransformer | None = None, **options):
    """The activations of one run."""
    return (model or small_attn()).run_with_cache(ids, **options)[1]


@cache
def real_attn() -> HookedTransformer:
    """The trained two-layer model."""
    model = load("attn2l")
    model.set_use_attn_result(True)
    return model


def real_repeated(batch: int, seq_len: int) -> torch.Tensor:
    """Repeated sequences for it."""
    model = real_attn()
    passage = tokens(batch, seq_len, below=model.cfg.d_vocab)
    return torch.cat([torch.full_like(passage[:, :1], model.tokenizer.bos_token_id), passage, passage], dim=1)


# ---------------------------------------------------------------- GPT-2's architecture


def with_biases(model: nn.Module, size: float = 0.3) -> nn.Module:
    """The model with random biases, those of LayerNorms too; no gradients."""
    for name, parameter in model.named_parameters():
        if name.split(".")[-1].startswith("b"):
            parameter.data.normal_(0, size)
    return model.eval().requires_grad_(False)


@cache
def small_gpt(
    n_layers: int = 3, n_heads: int = 5, norm: str | None = "LN", attn_only: bool = False
) -> HookedTransformer:
    """A GPT-2 in TransformerLens with random weights and biases, or one that lacks a part."""
    torch.manual_seed(0)
    sizes = dict(n_layers=n_layers, n_heads=n_heads, d_head=6, d_model=20, d_mlp=80, d_vocab=37, n_ctx=32)
    parts = dict(act_fn="gelu_new", normalization_type=norm, attn_only=attn_only)
    cfg = HookedTransformerConfig(**sizes, **parts, device=str(device()), seed=0)
    return with_biases(new_model(cfg))


def small_hf(tokenizer: PreTrainedTokenizerFast, n_layers: int, n_heads: int, d_head: int) -> GPT2LMHeadModel:
    """A GPT-2 in transformers with strong random weights and biases."""
    torch.manual_seed(0)
    sizes = dict(n_layer=n_layers, n_head=n_heads, n_embd=n_heads * d_head, n_positions=64, vocab_size=len(tokenizer))
    ids = dict(bos_token_id=0, eos_token_id=None, pad_token_id=0)
    model = with_biases(GPT2LMHeadModel(GPT2Config(**sizes, **ids, initializer_range=0.25)), 0.1).to(device())
    model.generation_config.do_sample = True  # as many a model that is downloaded: who wants greedy text says so
    return model


CFG = Config(d_model=12, n_layers=2, n_heads=3, d_head=5, d_mlp=20, d_vocab=17, n_ctx=14)


def filled(module: nn.Module, scale: float = 0.5) -> nn.Module:
    """The same random numbers for parameters of the same name, biases and LayerNorms too."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = noise(*parameter.shape, seed=zlib.crc32(name.encode()) % 10_000, scale=scale)
            parameter.copy_(values + 1 if name.split(".")[-1] == "w" else values)
    return module.to(device())


def small_demo(seed: int = 0) -> DemoTransformer:
    """A `DemoTransformer` with random weights; the seed changes its embeddings."""
    torch.manual_seed(seed)
    model = filled(DemoTransformer(CFG), scale=0.6).requires_grad_(False).eval()
    model.embed.W_E += seed * torch.randn_like(model.embed.W_E) * 0.3
    return model


# As GPT-2 has it: the heads' widths add up to d_model.
LIKE_GPT2 = Config(d_model=24, n_layers=3, n_heads=4, d_head=6, d_mlp=44, d_vocab=50, n_ctx=40)


def random_demo(cfg: Config = LIKE_GPT2, seed: int = 0, spread: float = 0.35) -> DemoTransformer:
    """All weights random, biases and LayerNorms too, large enough for peaked predictions."""
    model = DemoTransformer(cfg)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * spread)
            if name.endswith((".ln1.w", ".ln2.w", "ln_final.w")):
                parameter += 1
        model.unembed.b_U.zero_()  # GPT-2 has none
    return model.eval().requires_grad_(False).to(device())


def to_hf(model: DemoTransformer, eos_token_id: int | None = 0) -> GPT2LMHeadModel:
    """The same model in transformers."""
    cfg = model.cfg
    config = GPT2Config(
        vocab_size=cfg.d_vocab,
        n_positions=cfg.n_ctx,
        n_embd=cfg.d_model,
        n_layer=cfg.n_layers,
        n_head=cfg.n_heads,
        n_inner=cfg.d_mlp,
        layer_norm_epsilon=cfg.layer_norm_eps,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=eos_token_id,
        pad_token_id=0,
    )
    state = {
        "transformer.wte.weight": model.embed.W_E,
        "transformer.wpe.weight": model.pos_embed.W_pos,
        "transformer.ln_f.weight": model.ln_final.w,
        "transformer.ln_f.bias": model.ln_final.b,
        "lm_head.weight": model.unembed.W_U.T,
    }
    for layer, block in enumerate(model.blocks):
        attn, mlp, h = block.attn, block.mlp, f"transformer.h.{layer}"
        into = [einops.rearrange(W, "h d e -> d (h e)") for W in (attn.W_Q, attn.W_K, attn.W_V)]
        state |= {
            f"{h}.ln_1.weight": block.ln1.w,
            f"{h}.ln_1.bias": block.ln1.b,
            f"{h}.ln_2.weight": block.ln2.w,
            f"{h}.ln_2.bias": block.ln2.b,
            f"{h}.attn.c_attn.weight": torch.cat(into, dim=1),
            f"{h}.attn.c_attn.bias": torch.cat([b.flatten() for b in (attn.b_Q, attn.b_K, attn.b_V)]),
            f"{h}.attn.c_proj.weight": einops.rearrange(attn.W_O, "h e d -> (h e) d"),
            f"{h}.attn.c_proj.bias": attn.b_O,
            f"{h}.mlp.c_fc.weight": mlp.W_in,
            f"{h}.mlp.c_fc.bias": mlp.b_in,
            f"{h}.mlp.c_proj.weight": mlp.W_out,
            f"{h}.mlp.c_proj.bias": mlp.b_out,
        }
    hf = GPT2LMHeadModel(config).eval()
    missing, unexpected = hf.load_state_dict({k: v.contiguous() for k, v in state.items()}, strict=False)
    assert not unexpected and not missing, (missing, unexpected)
    return hf
