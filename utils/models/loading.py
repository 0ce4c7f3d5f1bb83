"""Load the workbook's models into transformer_lens, transformers and nnsight."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from utils.models.files import WEIGHTS, read_json, shipped, verified
from utils.models.registry import entry, profile, sae_entry
from utils.runtime import device

TOKENIZER = "pico-gpt"  # the folder whose tokenizer all shipped models share


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' notices of deprecation, and their progress bars, out of the notebooks."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            if bars:
                transformers_logging.enable_progress_bar()


class HubUnreachableError(RuntimeError):
    """A model of the hub profile could not be fetched."""


@contextmanager
def _hub(name: str) -> Iterator[None]:
    """Turn whatever a library says without network into one sentence."""
    try:
        with _quiet():
            yield
    except (OSError, ValueError) as problem:
        raise HubUnreachableError(
            f"{entry(name).source} could not be fetched from the hub ({type(problem).__name__}): "
            "connect to the network, or set WORKBOOK_MODELS=embedded for the models shipped with the workbook"
        ) from problem


def folder(name: str) -> Path:
    """The absolute folder of a shipped model; its path is registered with transformer_lens and sae_lens.

    Raises:
        ValueError: no such model, or the profile is not `embedded`.
    """
    source = entry(name).source
    if profile() != "embedded":
        raise ValueError(f"{name!r} has no folder in profile {profile()!r}: set WORKBOOK_MODELS=embedded")
    path = (WEIGHTS / source).resolve()
    if str(path) not in OFFICIAL_MODEL_NAMES:
        OFFICIAL_MODEL_NAMES.append(str(path))
    return path


def load_tokenizer(name: str = "lm") -> PreTrainedTokenizerBase:
    """The model's tokenizer, as transformers loads it (it adds no `<|endoftext|>` of its own)."""
    if profile() == "embedded":
        entry(name)
        path = WEIGHTS.resolve() / TOKENIZER
        verified(path / "tokenizer.json", path / "tokenizer_config.json", root=WEIGHTS.resolve())
        with _quiet():
            return AutoTokenizer.from_pretrained(path)
    with _hub(name):
        return AutoTokenizer.from_pretrained(load(name).cfg.tokenizer_name)


def load_hf(name: str = "lm") -> PreTrainedModel:
    """A language model as transformers has it, in float32 and ready to evaluate.

    Raises:
        ValueError: the model has no transformers form (the attention-only ones), or is unknown.
        DamagedWeightsError: a file's checksum differs; nothing is loaded.
        HubUnreachableError: hub profile without network.
    """
    source = entry(name).source
    if name.startswith("attn"):
        raise ValueError(f"{name!r} exists in transformer_lens only: use load({name!r})")
    if profile() == "hub":
        with _hub(name):
            repo = "gpt2" if source == "gpt2-small" else source
            return AutoModelForCausalLM.from_pretrained(repo).eval().to(device())
    path = folder(name)
    names = ("config.json", "generation_config.json", "model.safetensors")
    verified(*(path / each for each in names), root=WEIGHTS.resolve())
    with _quiet():
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval().to(device())


def load_nnsight(name: str = "lm"):
    """A language model wrapped by nnsight: `with model.trace(prompt): ...`. Raises as `load_hf`."""
    hf = load_hf(name)
    tokenizer = load_tokenizer(name)
    with _quiet():
        from nnsight import LanguageModel

        # Without a device, nnsight's pipeline moves the model to the first GPU that it finds.
        model = LanguageModel(hf, tokenizer=tokenizer, device=device())
        if profile() == "embedded":
            from nnsight.modeling import huggingface

            # A folder's name is its id, also for a remote trace: nothing is looked up at the hub.
            huggingface._ID_CACHE[model.repo_id] = model.repo_id
        return model


def load(name: str = "lm", processed: bool = True, cls: type[HookedTransformer] = HookedTransformer):
    """A model in transformer_lens, ready to evaluate, with gradients of weights switched off.

    Args:
        name: `lm`, `attn2l` or `attn1l` (see `PROFILES`).
        processed: fold LayerNorm into the next weights and centre what writes to the residual stream and the
            unembedding: same log-probabilities, simpler algebra. Attention-only models have nothing to fold.
        cls: `HookedTransformer`, or a subclass such as sae_lens's `HookedSAETransformer`.

    Raises:
        ValueError: unknown model or profile.
        DamagedWeightsError: a file's checksum differs; nothing is loaded.
        HubUnreachableError: hub profile without network.
    """
    source = entry(name).source
    if profile() == "hub":
        with _hub(name):
            model = _from_hub(source, processed, cls)
    elif name == "lm":
        model = _gpt2(name, processed, cls)
    else:
        model = _attention_only(name, folder(name) / "model.safetensors", cls)
    return model.eval().requires_grad_(False)


def _gpt2(name: str, processed: bool, cls: type[HookedTransformer]) -> HookedTransformer:
    hf, tokenizer = load_hf(name), load_tokenizer(name)
    c = hf.config
    with _quiet():
        # Written out rather than guessed by transformer_lens, which judges an architecture by words in the path.
        cfg = HookedTransformerConfig(
            model_name=entry(name).source,
            n_layers=c.n_layer,
            n_heads=c.n_head,
            d_model=c.n_embd,
            d_head=c.n_embd // c.n_head,
            d_mlp=4 * c.n_embd,
            n_ctx=c.n_positions,
            eps=c.layer_norm_epsilon,
            d_vocab=c.vocab_size,
            act_fn="gelu_new",
            normalization_type="LNPre" if processed else "LN",
            original_architecture="GPT2LMHeadModel",
            tokenizer_name=str(WEIGHTS.resolve() / TOKENIZER),
            device=str(device()),
            init_weights=False,
        )
        state = convert_gpt2_weights(hf, cfg)
        model = cls(cfg, tokenizer)
        model.load_and_process_state_dict(
            state,
            fold_ln=processed,
            center_writing_weights=processed,
            center_unembed=processed,
            fold_value_biases=processed,
        )
    return model


def _attention_only(name: str, weights: Path, cls: type[HookedTransformer]) -> HookedTransformer:
    path, root = folder(name), WEIGHTS.resolve()
    verified(weights, root=root)
    kwargs = read_json(path / "hooked_config.json", root)
    tokenizer = load_tokenizer(name)
    with _quiet():
        cfg = HookedTransformerConfig(
            **kwargs, tokenizer_name=str(root / TOKENIZER), device=str(device()), init_weights=False
        )
        model = cls(cfg, tokenizer)
        state = {key: tensor.float() for key, tensor in load_file(weights).items()}
        # The biases that transformer_lens makes are zero and are not stored.
        state |= {key: torch.zeros_like(p) for key, p in model.named_parameters() if key not in state}
        model.load_and_process_state_dict(
            state, fold_ln=False, center_writing_weights=False, center_unembed=False, fold_value_biases=False
        )
    return model


def _from_hub(source: str, processed: bool, cls: type[HookedTransformer]) -> HookedTransformer:
    if source != "callummcdougall/attn_only_2L_half":
        read = cls.from_pretrained if processed else cls.from_pretrained_no_processing
        return read(source, device=str(device()))
    from huggingface_hub import hf_hub_download

    weights = torch.load(hf_hub_download(source, "attn_only_2L_half.pth"), map_location="cpu", weights_only=True)
    cfg = HookedTransformerConfig(
        model_name="attn-only-2l-half",
        d_model=768,
        d_head=64,
        n_heads=12,
        n_layers=2,
        n_ctx=2048,
        d_vocab=50278,
        attention_dir="causal",
        attn_only=True,
        tokenizer_name="EleutherAI/gpt-neox-20b",
        seed=398,
        normalization_type=None,
        positional_embedding_type="shortformer",
        device=str(device()),
    )
    model = cls(cfg)
    model.load_state_dict({k: v for k, v in weights.items() if not k.endswith(("mask", "IGNORE"))}, strict=False)
    return model


def sae_layers(place: str = "resid") -> tuple[int, ...]:
    """The layers that have a trained autoencoder: of the residual stream (`resid`) or of the heads' outputs (`z`)."""
    return sae_entry(place).layers


def load_sae(place: str, layer: int):
    """A trained sparse autoencoder of the language model `load("lm")`, as sae_lens's `SAE`.

    It belongs to the processed model (LayerNorm folded, writers centred), which `load` gives by default.

    Args:
        place: `resid`, the residual stream before `layer`, or `z`, the outputs of the layer's heads.

    Raises:
        ValueError: unknown place, or no autoencoder for this layer.
        DamagedWeightsError: a file's checksum differs; nothing is loaded.
        HubUnreachableError: hub profile without network.
    """
    from sae_lens import SAE

    source, sae_id, layers, _ = sae_entry(place)
    if layer not in layers:
        raise ValueError(f"no {place!r} autoencoder for layer {layer}: choose one of {', '.join(map(str, layers))}")
    if profile() == "hub":
        with _hub("lm"):
            return SAE.from_pretrained(source, sae_id.format(layer=layer), device=str(device()))
    path = WEIGHTS.resolve() / source.format(layer=layer)
    verified(path / "cfg.json", path / "sae_weights.safetensors", root=WEIGHTS.resolve())
    return SAE.load_from_disk(path).to(device()).eval().requires_grad_(False)


@dataclass(frozen=True)
class Checkpoint:
    """Weights of an attention-only model after `step` training steps, `tokens` tokens."""

    model: str
    step: int
    tokens: int
    path: Path

    def load(self, cls: type[HookedTransformer] = HookedTransformer) -> HookedTransformer:
        """The model as it was then. Raises as `load`."""
        return _attention_only(self.model, self.path, cls).eval().requires_grad_(False)


def checkpoints(name: str = "attn2l") -> list[Checkpoint]:
    """The shipped checkpoints of a model, from its first step to its last.

    Raises:
        ValueError: the model has none (its message lists those that have), or the profile is not `embedded`.
        DamagedWeightsError: a checkpoint is missing or not whole.
    """
    path, root = folder(name), WEIGHTS.resolve()
    listed = shipped(path / "checkpoints", root)
    if not listed:
        raise ValueError(f"{name!r} has no checkpoints: use attn2l or attn1l")
    verified(*listed, root=root)
    measured = read_json(path / "training.json", root)
    per_step = measured["config"]["batch_rows"] * measured["config"]["n_ctx"]
    files = [(int(file.stem.split("_")[1]), file) for file in listed]
    files.append((measured["steps"], path / "model.safetensors"))
    return [Checkpoint(name, step, step * per_step, file) for step, file in sorted(files)]


def training_curve(name: str = "attn2l") -> list[dict]:
    """What was measured while the model was trained, one dictionary for each measurement.

    Keys: `step`, `tokens`, `minutes`, `learning_rate`, `training_loss`, `validation_loss`, `repeat_first`,
    `repeat_second` (nats), and for attention-only models `previous` and `induction` (scores by layer and head).
    """
    return read_json(folder(name) / "training.json", WEIGHTS.resolve())["metrics"]


def measured(name: str = "lm") -> dict:
    """The figures of the model card, as `python -m utils.training report` measured them."""
    return read_json(folder(name) / "measured.json", WEIGHTS.resolve())
