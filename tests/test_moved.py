"""What moved since the first version: followed by names, by states, and by imports from an old place."""

import ast
import importlib
import json
import lzma
import sys
from pathlib import Path

import pytest

from utils.checks import progress
from utils.moved import Moved, _Finder
from utils.workbook import ROOT

MOVED = """
[chapters]
"07_saes" = ["07_toy", "08_saes"]
"08_saes" = ["08_autoencoders"]
"05_a" = ["05_a", "06_b"]
[modules]
"utils.old" = "utils.mid"
"utils.mid" = ["utils.new", "utils.show.new"]
[exercises]
"utils.old.one" = "utils.mid.one"
"utils.mid.one" = "utils.new.first"
"utils.old.two" = "utils.new.first"
"utils.old.three" = ["utils.new.third", "utils.new.fourth"]
"""
# The modules of the first version that a learner's notebook could import.
FIRST_MODULES = (
    "explainers flowchart function_vectors induction inspection ioi models runtime saes sampling show show_saes "
    "show_saes_causes show_saes_lm show_superposition superposition tokenization transformer world"
).split()


@pytest.fixture
def moved(tmp_path):
    (tmp_path / "moved.toml").write_text(MOVED)
    return Moved(tmp_path / "moved.toml")


def test_moves_are_followed(moved, tmp_path):
    assert moved.homes("utils.old.one") == ["utils.new.first"]
    assert moved.homes("utils.other.f") == ["utils.other.f"]
    assert moved.chapter_homes("07_saes") == ["07_toy", "08_autoencoders"]
    assert moved.chapter_homes("05_a") == ["05_a", "06_b"]
    assert moved.module_homes("utils.old") == ["utils.new", "utils.show.new"]
    assert Moved(tmp_path / "none").homes("utils.f") == ["utils.f"]
    (tmp_path / "moved.toml").write_text('[chapters]\n"07_saes" ["07_toy"]\n')
    with pytest.raises(ValueError, match=r"moved.toml can't be read: .*line 2"):
        Moved(tmp_path / "moved.toml")


def test_states_follow_what_moved(moved, tmp_path):
    for name in ("one", "three"):
        progress.record("old", name, "solved", tmp_path)
    new = progress.load(tmp_path, moved)["new"]
    assert new == {"first": "tried", "third": "solved", "fourth": "solved"}  # of two that became one, one is open
    progress.record("old", "two", "taken", tmp_path)
    assert progress.load(tmp_path, moved)["new"]["first"] == "taken"
    progress.record("new", "first", "solved", tmp_path)
    assert progress.load(tmp_path, moved)["new"]["first"] == "solved"


def test_an_import_from_an_old_place_names_the_new_one(monkeypatch):
    import utils

    names = {"utils.runtime.gone": ["utils.saes.ToySAE"], "utils.no_more.f": ["utils.a.f", "utils.b.g"]}
    modules = {"utils.views": ["utils.show.a", "utils.show.b"]}
    monkeypatch.setattr(sys, "meta_path", [_Finder(modules, names), *sys.meta_path])
    for name in ("utils.runtime", "utils.no_more"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.delattr(utils, "runtime", raising=False)
    with pytest.raises(ImportError, match="utils.runtime.gone has moved: from utils.saes import ToySAE"):
        from utils.runtime import gone  # noqa: F401
    with pytest.raises(ImportError, match="from utils.a import f; from utils.b import g"):
        from utils.no_more import f  # noqa: F401
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from utils.runtime import nothing  # noqa: F401
    for statement in ("import utils.views as v", "from utils import views", "from utils.views import plot"):
        with pytest.raises(ImportError, match="utils.views has moved: it is now utils.show.a and utils.show.b"):
            exec(statement, {})
    from utils.runtime import device

    assert callable(device)
    import inspect

    assert "def device" in inspect.getsource(device)


def test_a_name_that_left_is_no_attribute():
    import utils.saes

    assert not hasattr(utils.saes, "ToySAE") and getattr(utils.saes, "ToySAE", None) is None
    with pytest.raises(AttributeError, match="utils.saes.*ToySAE"):
        utils.saes.ToySAE  # noqa: B018
    assert hasattr(utils.saes, "Example") and "ToySAE" not in dir(utils.saes)


def test_every_module_of_the_first_version_is_here_or_in_the_list_of_what_moved():
    moved, there = Moved(), {p.stem if p.is_file() else p.name for p in (ROOT / "utils").iterdir()}
    lost = [m for m in FIRST_MODULES if m not in there and f"utils.{m}" not in moved.modules]
    assert not lost, "add to chapters/moved.toml where these are now"
    here = [m for m in moved.modules if (ROOT / m.replace(".", "/")).with_suffix(".py").exists()]
    here += [m for m in moved.modules if (ROOT / m.replace(".", "/")).exists()]
    assert not here, "listed, and here"
    for old in moved.modules:
        for home in moved.module_homes(old):
            importlib.import_module(home)


def imports(code: str) -> list[str]:
    """The import statements of a cell, one name each."""
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except SyntaxError:  # a magic
        return []
    plain = [f"import {a.name}" for n in nodes if isinstance(n, ast.Import) for a in n.names]
    froms = [n for n in nodes if isinstance(n, ast.ImportFrom)]
    return plain + [f"from {n.module} import {a.name}" for n in froms for a in n.names]


def test_every_import_of_the_first_version_works_or_says_where_to_go():
    packed = (Path(__file__).parent / "fixtures" / "first_version.json.xz").read_bytes()
    cells = [cell for cells in json.loads(lzma.decompress(packed)).values() for cell in cells]
    lines = {line for kind, _, _, text in cells if kind == "code" for line in imports(text) if " utils" in line}
    gone = []
    for line in sorted(lines):
        try:
            exec(line, {})
        except ImportError as error:
            assert "has moved: " in str(error), f"{line}: {error}"
            gone.append(line)
    assert len(lines) > 100 and {"import utils.show_saes", "from utils.saes import TrainableSAE"} <= set(gone)
