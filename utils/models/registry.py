"""Which model answers to which name, in which profile: the one table.

The shipped models stand below. All other profiles are files: `hub.toml` beside this one, and the learner's own.
"""

import os
import tomllib
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from utils.models.files import RANDOM

ROOT = Path(__file__).parents[2]
HUB = Path(__file__).parent / "hub.toml"
DTYPES = ("float32", "float16", "bfloat16")


class Entry(NamedTuple):
    """Where a model comes from: a shipped folder, another folder, or a name on the hub."""

    source: str
    about: str
    dtype: str = "float32"
    weights: str = ""  # the file, where the model is in transformer_lens's own form and not in transformers'
    tokenizer: str = ""  # a folder or name on the hub; empty: beside the model
    config: dict = {}  # of such a model where it lies beside no config.json that transformer_lens knows to read

    @property
    def is_folder(self) -> bool:
        return os.path.isabs(self.source)


class SAEEntry(NamedTuple):
    """Where the sparse autoencoders of one place in the model come from; `{layer}` stands for the layer."""

    source: str  # a folder, or a release on the hub
    sae_id: str  # the name within the release; empty for a folder
    layers: tuple[int, ...]
    about: str


class Profile(NamedTuple):
    """Models and autoencoders by the names that the chapters use, and transcoders where there are some."""

    models: dict[str, Entry]
    saes: dict[str, SAEEntry]
    transcoders: SAEEntry | None = None
    device: str = ""  # where WORKBOOK_DEVICE is not set


EMBEDDED = Profile(
    {
        "lm": Entry("pico-gpt", "GPT-2 architecture, 4 layers, trained on the small world"),
        "attn2l": Entry("pico-attn-2l", "attention-only, 2 layers, shortformer positions"),
        "attn1l": Entry("pico-attn-1l", "attention-only, 1 layer, shortformer positions"),
    },
    {
        "resid": SAEEntry("pico-sae-resid-{layer}", "", (2, 3), "residual stream before a layer of pico-gpt"),
        "z": SAEEntry("pico-sae-z-{layer}", "", (0, 1, 2, 3), "outputs of a layer's attention heads in pico-gpt"),
    },
    SAEEntry("pico-transcoder-{layer}", "", (0, 1, 2, 3), "in the place of a layer's MLP in pico-gpt"),
)


def profile() -> str:
    """What `WORKBOOK_MODELS` names: `embedded` (default), `hub`, or the absolute path of a profile file.

    `random-0` is `embedded` with other weights (`shuffled.py`).

    Raises:
        ValueError: the variable holds another word, or the file is missing.
    """
    name = os.environ.get("WORKBOOK_MODELS") or "embedded"
    if name in ("embedded", "hub"):
        return name
    if RANDOM.fullmatch(name):
        return "embedded"
    path = ROOT / os.path.expanduser(name)  # a relative one is meant from the workbook's folder, wherever a kernel runs
    if path.suffix != ".toml":
        raise ValueError(f"WORKBOOK_MODELS is {name!r}: set it to embedded, hub, or the path of a profile (.toml)")
    if not path.is_file():
        raise ValueError(f"WORKBOOK_MODELS is {name!r}, but there is no file {path}")
    return str(path)


def current() -> Profile:
    """The profile that `WORKBOOK_MODELS` names. Raises ValueError, in a sentence, for a file that is none."""
    name = profile()
    if name == "embedded":
        return EMBEDDED
    path = HUB if name == "hub" else Path(name)
    return _read(path, path.stat().st_mtime_ns)


def entry(name: str) -> Entry:
    """The model that `name` means in the current profile.

    Raises:
        ValueError: no such model in this profile; the message lists the known ones.
    """
    known = current().models
    if name not in known:
        raise ValueError(f"no model {name!r} in profile {profile()!r}: the known ones are {', '.join(known)}")
    return known[name]


def sae_entry(place: str) -> SAEEntry:
    """The autoencoders that `place` means in the current profile.

    Raises:
        ValueError: no such place; the message lists the known ones.
    """
    known = current().saes
    if place not in known:
        raise ValueError(
            f"no autoencoders of {place!r} in profile {profile()!r}: choose one of {', '.join(known) or 'none'}"
        )
    return known[place]


# ---------------------------------------------------------------- profile files

STRING, TABLE = (str, "a text in quotes"), (dict, "a table")
KEYS = {
    "models": {"source": STRING, "about": STRING, "dtype": STRING, "weights": STRING, "tokenizer": STRING}
    | {"config": TABLE},
    "saes": {"source": STRING, "sae_id": STRING, "about": STRING, "layers": (list, "a list of layers")},
}
DEVICES = ("cpu", "cuda", "auto")


@lru_cache
def _read(path: Path, changed: int) -> Profile:
    """A profile file that stood in `path` at that time."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError) as problem:
        raise ValueError(f"{path} can't be read as TOML: {problem}") from None
    for key, value in table.items():
        if key not in ("models", "saes", "device"):
            raise ValueError(f"{path}: unknown entry {key!r}; what may stand there: device, models, saes")
        if key == "device" and value not in DEVICES:
            raise ValueError(f"{path}: device is {value!r}; set it to {', '.join(DEVICES)}")
    models, saes = ({n: _checked(path, kind, n, t) for n, t in _tables(path, table, kind)} for kind in KEYS)
    for name, given in models.items():
        if given.get("dtype", DTYPES[0]) not in DTYPES:
            raise ValueError(f"{path}: models.{name}.dtype is {given['dtype']!r}; set it to {', '.join(DTYPES)}")
        if "config" in given and "weights" not in given:
            raise ValueError(f"{path}: models.{name}.config needs `weights`, the name of the file that it is for")
    for name, given in saes.items():
        layers = given.get("layers", [])
        if not layers or not all(type(layer) is int and layer >= 0 for layer in layers):
            raise ValueError(f"{path}: saes.{name}.layers lists layers, for example [0, 1, 2]")
    return Profile(
        {name: Entry(**{"about": "", **given}) for name, given in models.items()},
        {
            name: SAEEntry(**{"about": "", "sae_id": "", **given, "layers": tuple(given["layers"])})
            for name, given in saes.items()
        },
        device=table.get("device", ""),
    )


def _tables(path: Path, table: dict, kind: str):
    tables = table.get(kind, {})
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        raise ValueError(f"{path}: each of {kind} is a table, [{kind}.name]")
    return tables.items()


def _checked(path: Path, kind: str, name: str, given: dict) -> dict:
    keys = KEYS[kind]
    for key, value in given.items():
        if key not in keys:
            raise ValueError(f"{path}: unknown entry {kind}.{name}.{key}; what may stand there: {', '.join(keys)}")
        wanted, called = keys[key]
        if not isinstance(value, wanted):
            raise ValueError(f"{path}: {kind}.{name}.{key} is {value!r}; it is {called}")
    if not given.get("source"):
        raise ValueError(f"{path}: {kind}.{name} lacks `source`, a folder or a name on the hub")
    places = [key for key in ("source", "tokenizer") if given.get(key)]
    return given | {key: _place(path, f"{kind}.{name}.{key}", given[key]) for key in places}


def _place(path: Path, what: str, named: str) -> str:
    """A folder's absolute path, seen from the profile file; a name on the hub as it is."""
    folder = path.parent / os.path.expanduser(named)
    if folder.is_dir() or "{layer}" in named and folder.parent.is_dir() and named.startswith((".", "/", "~")):
        return str(folder.resolve())
    if named.startswith((".", "/", "~")) or named.count("/") > 1:
        raise ValueError(f"{path}: {what} is {named!r}, but there is no folder {folder}")
    return named
