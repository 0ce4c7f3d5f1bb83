"""What has moved since the first version: chapters and exercises that were renamed,
split or merged.

`chapters/moved.toml` is the list. `make update` and the progress read it, and an import
from an old place ends in an ImportError that names the new one.
"""

import sys
import tomllib
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

MOVED = Path(__file__).parents[1] / "chapters" / "moved.toml"


class Moved:
    """The list of what moved: `chapters` and `exercises` map an old name to new ones.

    Args:
        path: the list; where there is none, nothing moved.
    """

    def __init__(self, path: Path = MOVED):
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        table = tomllib.loads(text)
        self.chapters: dict[str, list[str]] = table.get("chapters", {})
        self.exercises: dict[str, list[str]] = {
            old: [new] if isinstance(new, str) else new
            for old, new in table.get("exercises", {}).items()
        }

    def homes(self, target: str) -> list[str]:
        """Where "utils.saes.ToySAE" is today, also after several moves; itself where it
        did not move."""
        return _follow(self.exercises, target, [])

    def chapter_homes(self, name: str) -> list[str]:
        """The chapters that "07_saes" became; itself where it did not move."""
        return _follow(self.chapters, name, [])


def _follow(table: dict[str, list[str]], name: str, seen: list[str]) -> list[str]:
    # A name that is old and new (a chapter that kept a part) ends the walk.
    if name in seen or name not in table:
        return [name]
    found = [end for new in table[name] for end in _follow(table, new, [*seen, name])]
    return list(dict.fromkeys(found))


class _Finder:
    """Finds the modules from which something moved, and lets them say where it is."""

    def __init__(self, exercises: dict[str, list[str]]):
        self.names: dict[str, dict[str, list[str]]] = {}
        for old, new in exercises.items():
            module, _, name = old.rpartition(".")
            self.names.setdefault(module, {})[name] = new

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in self.names:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        spec = spec or ModuleSpec(fullname, None, origin="moved")
        spec.loader = _Signpost(spec.loader, self.names[fullname])
        return spec


class _Signpost:
    """Loads a module as ever, or an empty one where it is gone, and answers for the
    names that moved out of it."""

    def __init__(self, loader, names: dict[str, list[str]]):
        self.loader, self.names = loader, names

    def __getattr__(self, name):  # what else the import system asks of a loader
        return getattr(self.__dict__["loader"], name)

    def create_module(self, spec):
        return self.loader.create_module(spec) if self.loader else None

    def exec_module(self, module):
        if self.loader:
            self.loader.exec_module(module)

        def moved(name: str):
            if name not in self.names:
                what = f"module {module.__name__!r} has no attribute {name!r}"
                raise AttributeError(what)
            homes = (new.rpartition(".") for new in self.names[name])
            lines = "; ".join(f"from {home} import {new}" for home, _, new in homes)
            raise ImportError(f"{module.__name__}.{name} has moved: {lines}")

        module.__getattr__ = moved


def install() -> None:
    """Let imports from an old place say where the new one is."""
    moved = Moved()
    if moved.exercises and not any(isinstance(f, _Finder) for f in sys.meta_path):
        names = {old: moved.homes(old) for old in moved.exercises}
        sys.meta_path.insert(0, _Finder(names))
