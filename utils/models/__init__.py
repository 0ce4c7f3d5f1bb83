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
    load_tokenizer,
    measured,
    training_curve,
)
from utils.models.registry import PROFILES, profile

__all__ = [
    "Checkpoint",
    "DamagedWeightsError",
    "HubUnreachableError",
    "PROFILES",
    "WEIGHTS",
    "checkpoints",
    "corpus",
    "folder",
    "load",
    "load_hf",
    "load_nnsight",
    "load_tokenizer",
    "measured",
    "profile",
    "training_curve",
    "verified",
    "write_manifest",
]
