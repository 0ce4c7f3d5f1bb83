"""What has moved since the first version: chapters, modules and exercises that were
renamed, split or merged.

`chapters/moved.toml` is the list. `make update` and the progress read it, and an import
from an old place ends in an ImportError that names the new one.
"""

import sys
import tomllib
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

MOVED = Path(__file__).parents[1] / "chapters" / "moved.toml"


class Moved:
    """The list of what moved: `chapters`, `modules` and `exercises` map an old name to
    new ones.

    Args:
        path: the list; where there is none, nothing moved.
    """

    def __init__(self, path: Path = MOVED):
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        try:
            table = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path.name} can't be read: {error}") from None
        self.chapters, self.modules, self.exercises = (
            {
                old: [new] if isinstance(new, str) else new
                for old, new in table.get(kind, {}).items()
            }
            for kind in ("chapters", "modules", "exercises")
        )

    def homes(self, target: str) -> list[str]:
        """Where "utils.saes.ToySAE" is today, also after several moves; itself where it
        did not move."""
        return _follow(self.exercises, target, [])

    def chapter_homes(self, name: str) -> list[str]:
        """The chapters that "07_saes" became; itself where it did not move."""
        return _follow(self.chapters, name, [])

    def module_homes(self, name: str) -> list[str]:
        """The modules that "utils.show_saes" became; itself where it did not move."""
        return _follow(self.modules, name, [])


def _follow(table: dict[str, list[str]], name: str, seen: list[str]) -> list[str]:
    # A name that is old and new (a chapter that kept a part) ends the walk.
    if name in seen or name not in table:
        return [name]
    found = [end for new in table[name] for end in _follow(table, new, [*seen, name])]
    return list(dict.fromkeys(found))


class _Finder:
    """Finds what is gone, to say where it is: modules, and names that left a module.

    A module that lost a name is read as a package without files. `from utils.saes
    import ToySAE` then asks the finders for a module of that name, since the module has
    no such attribute, and is told here where it went; `hasattr` asks nobody.
    """

    def __init__(self, modules: dict[str, list[str]], names: dict[str, list[str]]):
        self.modules, self.names = modules, names
        self.left = {old.rpartition(".")[0] for old in names}

    def find_spec(self, fullname, path=None, target=None):
        if fullname in self.modules:
            homes = " and ".join(self.modules[fullname])
            raise ImportError(f"{fullname} has moved: it is now {homes}", name=fullname)
        if fullname in self.names:
            homes = (new.rpartition(".") for new in self.names[fullname])
            lines = "; ".join(f"from {home} import {new}" for home, _, new in homes)
            raise ImportError(f"{fullname} has moved: {lines}", name=fullname)
        if fullname not in self.left:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        spec = spec or ModuleSpec(fullname, None, origin="moved")
        if spec.submodule_search_locations is None:
            spec.submodule_search_locations = []
        return spec


def install() -> None:
    """Let imports from an old place say where the new one is."""
    moved = Moved()
    if not any(isinstance(f, _Finder) for f in sys.meta_path):
        modules = {old: moved.module_homes(old) for old in moved.modules}
        names = {old: moved.homes(old) for old in moved.exercises}
        sys.meta_path.insert(0, _Finder(modules, names))
