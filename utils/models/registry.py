"""Which model answers to which name, in which profile: the one table."""

import os
from typing import NamedTuple


class Entry(NamedTuple):
    """Where a model comes from: a shipped folder, or a name on the hub."""

    source: str
    about: str


PROFILES: dict[str, dict[str, Entry]] = {
    "embedded": {
        "lm": Entry("pico-gpt", "GPT-2 architecture, 4 layers, trained on the small world"),
        "attn2l": Entry("pico-attn-2l", "attention-only, 2 layers, shortformer positions"),
        "attn1l": Entry("pico-attn-1l", "attention-only, 1 layer, shortformer positions"),
    },
    "hub": {
        "lm": Entry("gpt2-small", "GPT-2 small, 124 M parameters"),
        "attn2l": Entry("callummcdougall/attn_only_2L_half", "attention-only, 2 layers, shortformer positions"),
        "attn1l": Entry("attn-only-1l", "attention-only, 1 layer (transformer_lens's own)"),
        "large": Entry("EleutherAI/gpt-j-6b", "GPT-J, 6 B parameters: for a GPU or NDIF"),
    },
}


class SAEEntry(NamedTuple):
    """Where the sparse autoencoders of one place in the model come from; `{layer}` stands for the layer."""

    source: str  # a shipped folder, or a release on the hub
    sae_id: str  # the name within the release; empty for a shipped folder
    layers: tuple[int, ...]
    about: str


SAES: dict[str, dict[str, SAEEntry]] = {
    "embedded": {
        "resid": SAEEntry("pico-sae-resid-{layer}", "", (2, 3), "residual stream before a layer of pico-gpt"),
        "z": SAEEntry("pico-sae-z-{layer}", "", (0, 1, 2, 3), "outputs of a layer's attention heads in pico-gpt"),
    },
    "hub": {
        "resid": SAEEntry("gpt2-small-res-jb", "blocks.{layer}.hook_resid_pre", tuple(range(12)), "residual stream"),
        "z": SAEEntry("gpt2-small-hook-z-kk", "blocks.{layer}.hook_z", tuple(range(12)), "attention heads' outputs"),
    },
}


def profile() -> str:
    """The profile that `WORKBOOK_MODELS` names: `embedded` (default) or `hub`.

    Raises:
        ValueError: the variable holds another word.
    """
    name = os.environ.get("WORKBOOK_MODELS", "embedded")
    if name not in PROFILES:
        raise ValueError(f"WORKBOOK_MODELS is {name!r}: set it to one of {', '.join(PROFILES)}")
    return name


def entry(name: str) -> Entry:
    """The model that `name` means in the current profile.

    Raises:
        ValueError: no such model in this profile; the message lists the known ones.
    """
    known = PROFILES[profile()]
    if name not in known:
        raise ValueError(f"no model {name!r} in profile {profile()!r}: the known ones are {', '.join(known)}")
    return known[name]


def sae_entry(place: str) -> SAEEntry:
    """The autoencoders that `place` means in the current profile.

    Raises:
        ValueError: no such place; the message lists the known ones.
    """
    known = SAES[profile()]
    if place not in known:
        raise ValueError(f"no autoencoders of {place!r}: choose one of {', '.join(known)}")
    return known[place]
