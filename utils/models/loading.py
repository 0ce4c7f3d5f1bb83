"""Load the workbook's models into transformer_lens, transformers and nnsight."""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from json import JSONDecodeError
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryDirectory
from zipfile import BadZipFile

import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.loading_from_pretrained import get_pretrained_model_config, get_pretrained_state_dict
from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from utils.models.files import WEIGHTS, DamagedWeightsError, read_json, shipped, verified
from utils.models.registry import EMBEDDED, Entry, current, entry, profile, sae_entry
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
    """A model from the hub is not in the cache and could not be fetched."""


DAMAGE = (SafetensorError, UnpicklingError, JSONDecodeError, EOFError, BadZipFile, UnicodeDecodeError)
MISSING_ON_HUB = (RepositoryNotFoundError, RemoteEntryNotFoundError, RevisionNotFoundError)


@contextmanager
def _outside(name: str, source: str) -> Iterator[None]:
    """Turn whatever a library says of files that are not the workbook's own into one sentence."""
    try:
        with _quiet():
            yield
    except (DamagedWeightsError, HubUnreachableError):
        raise
    except Exception as problem:
        chain = [*_chain(problem)]
        reason = f"{type(problem).__name__}: {' '.join(str(problem).split())[:150]}"
        if any(isinstance(link, DAMAGE) or "PytorchStreamReader" in str(link) for link in chain):
            mend = (
                "copy it again"
                if os.path.isabs(source)
                else f"delete it from {constants.HF_HUB_CACHE} and load it again"
            )
            raise DamagedWeightsError(f"{name}: a file of {source} is damaged ({reason}): {mend}") from problem
        if any(isinstance(link, MISSING_ON_HUB) for link in chain):
            raise ValueError(f"{name}: the hub has no such model or file, {source}: mend the profile") from problem
        if not isinstance(problem, (OSError, ValueError)):
            raise
        if os.path.isabs(source):
            raise ValueError(f"{name}: the folder {source} could not be loaded ({reason})") from problem
        raise HubUnreachableError(
            f"{source} could not be fetched from the hub ({type(problem).__name__}): "
            "connect to the network, or set WORKBOOK_MODELS=embedded for the models shipped with the workbook"
        ) from problem


def _chain(problem: BaseException | None) -> Iterator[BaseException]:
    """An exception and those from which it came."""
    while problem is not None:
        yield problem
        problem = problem.__cause__ or problem.__context__


def folder(name: str) -> Path:
    """The absolute folder of a shipped model; its path is registered with transformer_lens and sae_lens.

    Raises:
        ValueError: no such model, or the profile is not `embedded`.
    """
    entry(name)
    if profile() != "embedded":
        raise ValueError(f"{name!r} has no folder in profile {profile()!r}: set WORKBOOK_MODELS=embedded")
    return _shipped_folder(name)


def _shipped_folder(name: str) -> Path:
    """That of the workbook's own model of this name, whatever the profile says."""
    if name not in EMBEDDED.models:
        raise ValueError(f"the workbook ships no model {name!r}: the known ones are {', '.join(EMBEDDED.models)}")
    path = (WEIGHTS / EMBEDDED.models[name].source).resolve()
    if str(path) not in OFFICIAL_MODEL_NAMES:
        OFFICIAL_MODEL_NAMES.append(str(path))
    return path


def load_tokenizer(name: str = "lm") -> PreTrainedTokenizerBase:
    """The model's tokenizer, as transformers loads it (it adds no `<|endoftext|>` of its own)."""
    found = entry(name)
    if profile() == "embedded":
        return _shipped_tokenizer()
    source = found.tokenizer or _named_tokenizer(name, found) or found.source
    with _outside(name, source):
        try:
            return AutoTokenizer.from_pretrained(source)
        except OSError:  # without a network it asks for a config.json, which a tokenizer alone has not
            return AutoTokenizer.from_pretrained(os.path.dirname(hf_hub_download(source, "tokenizer.json")))


def _shipped_tokenizer() -> PreTrainedTokenizerBase:
    path = WEIGHTS.resolve() / TOKENIZER
    verified(path / "tokenizer.json", path / "tokenizer_config.json", root=WEIGHTS.resolve())
    with _quiet():
        return AutoTokenizer.from_pretrained(path)


def _named_tokenizer(name: str, found: Entry) -> str | None:
    """The tokenizer that a model in transformer_lens's own form names in its config.json."""
    if not found.weights or found.config:
        return None
    return _json_beside(name, found).get("tokenizer_name")


def load_hf(name: str = "lm") -> PreTrainedModel:
    """A language model as transformers has it, ready to evaluate, in float32 or what the profile says.

    Raises:
        ValueError: the model has no transformers form (the attention-only ones), or is unknown.
        DamagedWeightsError: a file is not whole, or lacks weights of the model; nothing is loaded.
        HubUnreachableError: a model from the hub without network.
    """
    found = entry(name)
    if found.weights or (name.startswith("attn") and profile() == "embedded"):
        raise ValueError(f"{name!r} exists in transformer_lens only: use load({name!r})")
    if profile() == "embedded":
        source = folder(name)
        names = ("config.json", "generation_config.json", "model.safetensors")
        verified(*(source / each for each in names), root=WEIGHTS.resolve())
    else:
        source = found.source
    with _outside(name, str(source)):
        model, said = AutoModelForCausalLM.from_pretrained(
            source, dtype=getattr(torch, found.dtype), output_loading_info=True
        )
    lacking = {*said["missing_keys"], *(key for key, *_ in said["mismatched_keys"])}
    _nothing_lacks(name, str(source), lacking, set(said["unexpected_keys"]))
    return model.eval().to(device())


def _nothing_lacks(name: str, source: str, lacking: set[str], unknown: set[str]) -> None:
    """Raises DamagedWeightsError where weights would stay as they were drawn at random."""
    if lacking:
        others = f"; it has instead {_few(unknown)}" if unknown else ""
        raise DamagedWeightsError(
            f"{name}: {source} lacks {_few(lacking)}{others}. Nothing was loaded: is it that model?"
        )


def _few(keys: set[str]) -> str:
    first = sorted(keys)[:2]
    return ", ".join(first) + (f" and {len(keys) - 2} more" if len(keys) > 2 else "")


def load_nnsight(name: str = "lm"):
    """A language model wrapped by nnsight: `with model.trace(prompt): ...`. Raises as `load_hf`."""
    hf = load_hf(name)
    tokenizer = load_tokenizer(name)
    with _quiet():
        from nnsight import LanguageModel

        # Without a device, nnsight's pipeline moves the model to the first GPU that it finds.
        model = LanguageModel(hf, tokenizer=tokenizer, device=device())
        if entry(name).is_folder or profile() == "embedded":
            from nnsight.modeling import huggingface

            # A folder's name is its id, also for a remote trace: nothing is looked up at the hub.
            huggingface._ID_CACHE[model.repo_id] = model.repo_id
        return model


def load(name: str = "lm", processed: bool = True, cls: type[HookedTransformer] = HookedTransformer):
    """A model in transformer_lens, ready to evaluate, with gradients of weights switched off.

    Args:
        name: `lm`, `attn2l` or `attn1l` (see `utils/models/registry.py`).
        processed: fold LayerNorm into the next weights and centre what writes to the residual stream and the
            unembedding: same log-probabilities, simpler algebra. Attention-only models have nothing to fold.
        cls: `HookedTransformer`, or a subclass such as sae_lens's `HookedSAETransformer`.

    Raises:
        ValueError: unknown model or profile.
        DamagedWeightsError: a file's checksum differs; nothing is loaded.
        HubUnreachableError: hub profile without network.
    """
    found = entry(name)
    if found.weights:
        model = _own_form(name, found, processed, cls)
    elif profile() == "embedded" and name.startswith("attn"):
        model = _attention_only(name, folder(name) / "model.safetensors", cls)
    else:
        model = _from_transformers(name, processed, cls)
    return model.eval().requires_grad_(False)


def _processing(processed: bool, cfg: HookedTransformerConfig) -> dict[str, bool]:
    """What is folded and centred: what the model's normalisation allows."""
    centres = processed and cfg.normalization_type in ("LN", "LNPre")
    return dict(
        fold_ln=processed and cfg.normalization_type is not None and cfg.positional_embedding_type != "shortformer",
        center_writing_weights=centres,
        center_unembed=processed and cfg.normalization_type is not None,
        fold_value_biases=processed,
    )


def _from_transformers(name: str, processed: bool, cls: type[HookedTransformer]) -> HookedTransformer:
    found, hf, tokenizer = entry(name), load_hf(name), load_tokenizer(name)
    with _quiet(), TemporaryDirectory() as neutral:
        # transformer_lens judges an architecture by words in the path, and asks the hub by name: it reads the
        # configuration alone, in a folder whose name says nothing.
        config = deepcopy(hf.config)
        if hasattr(config, "n_positions") and not hasattr(config, "n_ctx"):
            config.n_ctx = config.n_positions  # as the released GPT-2 has it, and transformer_lens asks for it
        config.save_pretrained(neutral)
        cfg = get_pretrained_model_config(
            neutral, hf_cfg=config.to_dict(), device=str(device()), fold_ln=processed, dtype=hf.dtype
        )
        cfg.model_name = Path(found.source).name
        cfg.tokenizer_name = tokenizer.name_or_path
        state = get_pretrained_state_dict(neutral, cfg, hf)
        model = cls(cfg, tokenizer)
        model.load_and_process_state_dict(state, **_processing(processed, cfg))
    return model


def _attention_only(name: str, weights: Path, cls: type[HookedTransformer]) -> HookedTransformer:
    path, root = _shipped_folder(name), WEIGHTS.resolve()
    verified(weights, root=root)
    kwargs = read_json(path / "hooked_config.json", root)
    tokenizer = _shipped_tokenizer()
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


def _own_form(name: str, found: Entry, processed: bool, cls: type[HookedTransformer]) -> HookedTransformer:
    """A model that was saved by transformer_lens: its weights under their names there."""
    kwargs = dict(found.config or _converted(name, found))
    if kwargs.get("normalization_type") == "none":
        kwargs["normalization_type"] = None
    tokenizer = load_tokenizer(name)
    with _outside(name, found.source):
        path = _file(found, found.weights)
        weights = load_file(path) if path.endswith(".safetensors") else torch.load(path, "cpu", weights_only=True)
        cfg = HookedTransformerConfig(
            **{"model_name": Path(found.source).name, **kwargs, "tokenizer_name": tokenizer.name_or_path},
            device=str(device()),
            dtype=getattr(torch, found.dtype),
            init_weights=False,
        )
        model = cls(cfg, tokenizer)
    made = model.state_dict()
    state = {key: value.to(cfg.dtype) for key, value in weights.items() if not key.endswith(BUFFERS)}
    wanted = {key for key in made if not key.endswith(BUFFERS)}
    biases = {key for key in wanted if key.rsplit(".", 1)[-1].startswith("b_")}  # zero where they are not stored
    wrong = {key for key in wanted & state.keys() if state[key].shape != made[key].shape}
    _nothing_lacks(name, found.source, wanted - state.keys() - biases | wrong, state.keys() - wanted)
    if unknown := state.keys() - wanted:
        raise DamagedWeightsError(f"{name}: {found.source} has {_few(unknown)}, which the model has no place for")
    state |= {key: torch.zeros_like(made[key]) for key in biases - state.keys()}
    with _quiet():
        fold = _processing(processed and cfg.normalization_type is not None, cfg)
        if fold["fold_ln"] and cfg.normalization_type in ("LN", "RMS"):
            cfg.normalization_type += "Pre"
            model = cls(cfg, tokenizer)
        model.load_and_process_state_dict(state, **fold)
    return model


BUFFERS = ("mask", "IGNORE", "rotary_sin", "rotary_cos")


def _file(found: Entry, file: str) -> str:
    """Where a file of the model lies: in its folder, or in the cache of the hub, fetched if need be."""
    if found.is_folder:
        return os.path.join(found.source, file)
    return hf_hub_download(found.source, file)


def _json_beside(name: str, found: Entry) -> dict:
    with _outside(name, found.source), open(_file(found, "config.json"), encoding="utf-8") as file:
        return json.load(file)


def _converted(name: str, found: Entry) -> dict:
    """transformer_lens's configuration from the config.json beside weights in its own form."""
    c = _json_beside(name, found)
    same = ("d_model", "n_layers", "d_mlp", "d_head", "n_heads", "n_ctx", "d_vocab", "act_fn", "attn_only")
    try:
        return {key: c[key] for key in same} | {
            "final_rms": c.get("final_rms", False),
            "normalization_type": c.get("normalization", c.get("normalization_type")),
            "positional_embedding_type": "shortformer" if c.get("shortformer_pos") else "standard",
        }
    except KeyError as missing:
        raise ValueError(
            f"{name}: config.json of {found.source} lacks {missing}: write the sizes into the profile, "
            f"[models.{name}.config]"
        ) from None


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
    if profile() == "embedded":
        path = WEIGHTS.resolve() / source.format(layer=layer)
        verified(path / "cfg.json", path / "sae_weights.safetensors", root=WEIGHTS.resolve())
        sae = SAE.load_from_disk(path)
    else:
        place = source.format(layer=layer)
        with _outside(f"{place}, layer {layer}", place):
            if os.path.isabs(place):
                sae = SAE.load_from_disk(place)
            else:
                sae = SAE.from_pretrained(place, sae_id.format(layer=layer), device=str(device()))
    return sae.to(device()).eval().requires_grad_(False)


def load_transcoder(layer: int):
    """A trained transcoder of an MLP of `load("lm")`, as sae_lens's `JumpReLUTranscoder`; that of layer 0 has a skip
    connection (`JumpReLUSkipTranscoder`).

    It belongs to the processed model (LayerNorm folded, writers centred), which `load` gives by default: it reads
    `blocks.LAYER.ln2.hook_normalized` and makes `blocks.LAYER.hook_mlp_out`.

    Raises:
        ValueError: no transcoder for this layer, or the profile has none.
        DamagedWeightsError: a file's checksum differs; nothing is loaded.
    """
    from sae_lens import SAE

    found = current().transcoders
    if found is None:
        raise ValueError(f"profile {profile()!r} has no transcoders: set WORKBOOK_MODELS=embedded")
    if layer not in found.layers:
        raise ValueError(f"no transcoder for layer {layer}: choose one of {', '.join(map(str, found.layers))}")
    path = WEIGHTS.resolve() / found.source.format(layer=layer)
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

    In another profile than `embedded` they are still those of the workbook's own model, and a line says so.

    Raises:
        ValueError: the model has none; the message lists those that have.
        DamagedWeightsError: a checkpoint is missing or not whole.
    """
    path, root = _shipped_folder(name), WEIGHTS.resolve()
    listed = shipped(path / "checkpoints", root)
    if not listed:
        raise ValueError(f"{name!r} has no checkpoints: use attn2l or attn1l")
    _say_own(f"The checkpoints of {name} are")
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
    _say_own(f"The figures of the training of {name} are")
    return read_json(_shipped_folder(name) / "training.json", WEIGHTS.resolve())["metrics"]


def _say_own(what: str) -> None:
    if profile() != "embedded":
        print(f"{what} those of the workbook's own model.")


def measured(name: str = "lm") -> dict:
    """The figures of the model card, as `python -m utils.training report` measured them."""
    return read_json(folder(name) / "measured.json", WEIGHTS.resolve())
