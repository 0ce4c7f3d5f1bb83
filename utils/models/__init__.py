"""The workbook's models by name: `load("lm")`, `load("attn2l")`, `load("attn1l")`, the same calls in both profiles."""

from utils.models.corpus import corpus
from utils.models.files import WEIGHTS, DamagedWeightsError, verified, write_manifest
from utils.models.loading import (
    Checkpoint,
    HubUnreachableError,
    checkpoints,
    folder,
    load,
    load_hf,
    load_nnsight,
    load_sae,
    load_tokenizer,
    load_transcoder,
    measured,
    sae_layers,
    training_curve,
)
from utils.models.registry import profile

__all__ = [
    "Checkpoint",
    "DamagedWeightsError",
    "HubUnreachableError",
    "WEIGHTS",
    "checkpoints",
    "corpus",
    "folder",
    "load",
    "load_hf",
    "load_nnsight",
    "load_sae",
    "load_tokenizer",
    "load_transcoder",
    "measured",
    "profile",
    "sae_layers",
    "training_curve",
    "verified",
    "write_manifest",
]
