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
