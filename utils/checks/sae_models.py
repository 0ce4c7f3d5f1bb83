"""Small language models with autoencoders, and what they compute, for the checks of chapter 08 and its tests.

Apart from `utils.checks.models`, because sae_lens takes seconds to import and no other chapter needs it.
"""

import warnings
from functools import cache

import torch
from datasets import Dataset
from sae_lens import (
    SAE,
    ActivationsStore,
    HookedSAETransformer,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
)
from sae_lens.saes.sae import SAEMetadata
from sae_lens.saes.transcoder import (
    JumpReLUSkipTranscoder,
    JumpReLUSkipTranscoderConfig,
    JumpReLUTranscoder,
    JumpReLUTranscoderConfig,
)
from torch import Tensor
from transformer_lens import HookedTransformerConfig

from utils import saes
from utils.checks.models import tokenizer_of
from utils.runtime import device

# ---------------------------------------------------------------- as pico-gpt

LM_WORDS = "the cat saw a red bird and then it ran home to eat".split()


@cache
def lm_model() -> HookedSAETransformer:
    """Two layers, random weights and biases. Its heads side by side are as wide as its stream, as in pico-gpt."""
    torch.manual_seed(0)
    tokenizer = tokenizer_of(" " + " ".join(LM_WORDS))
    sizes = dict(n_layers=2, d_model=12, n_heads=3, d_head=4, n_ctx=16, d_vocab=len(tokenizer))
    cfg = HookedTransformerConfig(**sizes, act_fn="gelu_new", normalization_type="LNPre", seed=0, device=str(device()))
    model = HookedSAETransformer(cfg)
    model.tokenizer = tokenizer  # only its words are needed
    for name, parameter in model.named_parameters():
        parameter.data.normal_(0, 0.5 if name.split(".")[-1].startswith("b") else 0.4)
    return model.eval().requires_grad_(False)


@cache
def lm_sae(place: str = "hook_resid_pre", layer: int = 1) -> JumpReLUSAE:
    """An untrained autoencoder with all biases and thresholds at work; its latent 3 is dead."""
    generator = torch.Generator().manual_seed(len(place))
    reshape = {"reshape_activations": "hook_z"} if place.endswith("hook_z") else {}
    metadata = SAEMetadata(hook_name=f"blocks.{layer}.{place}", context_size=8, prepend_bos=True, model_name="small")
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=12, d_sae=20, metadata=metadata, **reshape))
    for name, scale in (("W_enc", 0.4), ("W_dec", 0.4), ("b_enc", 0.3), ("b_dec", 0.3)):
        parameter = getattr(sae, name)
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    sae.threshold.data.copy_(0.1 + 0.6 * torch.rand(20, generator=generator))
    sae.b_enc.data[3] = -100
    return sae.eval().requires_grad_(False).to(device())


def lm_tokens(rows: int = 6, seq: int = 8, seed: int = 0) -> Tensor:
    """Random words after `<|endoftext|>`, which stands in the middle of some rows too."""
    words = torch.tensor(lm_model().tokenizer.encode(" " + " ".join(LM_WORDS)))
    generator = torch.Generator().manual_seed(seed)
    tokens = words[torch.randint(0, len(words), (rows, seq), generator=generator)]
    tokens[:, 0] = 0
    tokens[1::3, 4] = 0
    return tokens


def lm_store(sae, tokens: Tensor, size: int = 2) -> ActivationsStore:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ActivationsStore.from_sae(
            model=lm_model(), sae=sae, dataset=Dataset.from_dict({"input_ids": tokens.tolist()}), streaming=False,
            context_size=tokens.shape[1], store_batch_size_prompts=size,
        )  # fmt: skip


@cache
def lm_transcoder(layer: int = 1, skip: bool = False, **metadata) -> JumpReLUTranscoder:
    """An untrained transcoder of a layer of `lm_model`, biases, thresholds and skip connection at work; its rows are
    not centred, its latent 3 is dead. `metadata` says other places than its own.
    """
    generator = torch.Generator().manual_seed(10 + layer + 5 * skip)
    own = {"hook_name": f"blocks.{layer}.ln2.hook_normalized", "hook_name_out": f"blocks.{layer}.hook_mlp_out"}
    kind = (JumpReLUSkipTranscoder, JumpReLUSkipTranscoderConfig) if skip else (
        JumpReLUTranscoder, JumpReLUTranscoderConfig
    )  # fmt: skip
    about = SAEMetadata(**(own | {"model_name": "small"} | metadata))
    made = kind[0](kind[1](d_in=12, d_out=12, d_sae=18 + layer, apply_b_dec_to_input=False, metadata=about))
    scales = {"W_enc": 0.4, "W_dec": 0.4, "b_enc": 0.3, "b_dec": 0.3, "W_skip": 0.2}
    for name, scale in scales.items():
        if (parameter := getattr(made, name, None)) is not None:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale + 0.1)
    made.threshold.data.copy_(torch.rand(18 + layer, generator=generator) - 0.3)
    made.b_enc.data[3] = -100
    return made.eval().requires_grad_(False).to(device())


# ---------------------------------------------------------------- where all sizes differ

BATCH, SEQ, D_SAE, LAYER = 4, 7, 24, 1


@cache
def small_model() -> HookedSAETransformer:
    """Random weights and biases; all dimensions differ, so that a transpose shows."""
    torch.manual_seed(0)
    sizes = dict(n_layers=3, d_model=16, n_heads=3, d_head=5, n_ctx=16, d_vocab=29)
    cfg = HookedTransformerConfig(**sizes, act_fn="gelu_new", normalization_type="LN", seed=0, device=str(device()))
    model = HookedSAETransformer(cfg)
    return _with_biases(model)


@cache
def linear_model() -> HookedSAETransformer:
    """One layer of attention and no LayerNorm: after the attention, the logits are linear in everything."""
    sizes = dict(n_layers=1, d_model=16, n_heads=3, d_head=5, n_ctx=16, d_vocab=29, attn_only=True)
    model = HookedSAETransformer(
        HookedTransformerConfig(**sizes, normalization_type=None, seed=1, device=str(device()))
    )
    model.ln_final = torch.nn.Identity()  # transformer_lens makes none without a normalization
    return _with_biases(model)


def _with_biases(model: HookedSAETransformer) -> HookedSAETransformer:
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if name.split(".")[-1].startswith("b"):
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval().requires_grad_(False)


@cache
def small_sae(hook_name: str = "blocks.1.attn.hook_z", architecture: str = "jumprelu") -> SAE:
    """Random weights with biases (and, for JumpReLU, thresholds) that are not zero; about half the latents are active.

    A `standard` one doesn't take b_dec off its input. Latent 3 is dead.
    """
    generator = torch.Generator().manual_seed(3)
    z = hook_name.endswith("hook_z")
    kinds = {"jumprelu": (JumpReLUSAE, JumpReLUSAEConfig), "standard": (StandardSAE, StandardSAEConfig)}
    cls, config = kinds[architecture]
    options = {"reshape_activations": "hook_z"} if z else {}
    jump = architecture == "jumprelu"
    metadata = SAEMetadata(hook_name=hook_name)
    sae = cls(config(d_in=15 if z else 16, d_sae=D_SAE, apply_b_dec_to_input=jump, metadata=metadata, **options))
    for name, scale in {"W_enc": 1.0, "W_dec": 0.5, "b_enc": 0.2, "b_dec": 0.3, "threshold": 0.0}.items():
        if (parameter := getattr(sae, name, None)) is not None:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    if jump:
        sae.threshold.data += 0.1
    sae.b_enc.data[3] = -100.0
    return sae.eval().requires_grad_(False).to(device())


@cache
def small_runs():
    """(tokens, the model's own cache, cache with the autoencoder and its error term)."""
    tokens = torch.randint(0, 29, (BATCH, SEQ), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        _, own = small_model().run_with_cache(tokens)
        _, attached = small_model().run_with_cache_with_saes(tokens, saes=[small_sae()], use_error_term=True)
    return tokens, own, attached


def small_acts() -> torch.Tensor:
    """The small autoencoder's latents, "batch seq latent"."""
    return small_runs()[2][saes.acts_name(small_sae())]


def small_metric(logits):
    """Mean logit difference of two tokens after the last position."""
    return (logits[:, -1, 11] - logits[:, -1, 5]).mean()


@cache
def small_answers() -> torch.Tensor:
    """For each prompt the unembedding of one token minus that of another, "batch d_model"."""
    model, right, wrong = small_model(), torch.tensor([3, 8, 1, 20]), torch.tensor([7, 2, 15, 0])
    return (model.W_U[:, right] - model.W_U[:, wrong]).T * model.ln_final.w
