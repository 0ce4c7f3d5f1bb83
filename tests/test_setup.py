"""The set-up by `make`, without a network: moved, copied, broken off, made by other tools, hidden by other packages."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from utils.workbook import ROOT, chapter_names, delivery

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")

# pip finds nothing anywhere but in the folders that a test names.
FULL = "WORKBOOK_FULL" in os.environ
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull, "PIP_CONSTRAINT": ""}


def make(course: Path, *words: str, **env: str) -> subprocess.CompletedProcess:
    """`make` in that folder, as from a shell in which no environment is active."""
    clean = {k: v for k, v in os.environ.items() if k not in ("CONDA_DEFAULT_ENV", "VIRTUAL_ENV", "MAKEFLAGS")}
    command = ["make", "--no-print-directory", f"PYTHON={sys.executable}", *words]
    return subprocess.run(command, cwd=course, capture_output=True, text=True, env={**clean, **OFFLINE, **env})


def python(course: Path, code: str, folder: str = ".", **env: str) -> str:
    """What the Python in `.venv` prints, run in a folder of the course."""
    command = [course / ".venv" / "bin" / "python", "-c", code]
    done = subprocess.run(command, cwd=course / folder, capture_output=True, text=True, env={**os.environ, **env})
    assert done.returncode == 0 and "Error" not in done.stderr, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A course that requires no packages, set up."""
    course = tmp_path_factory.mktemp("made") / "course"
    # All that importing the package and setting up can read: whole folders, not names that a change would leave behind.
    for path in (
        ROOT / "Makefile",
        *ROOT.glob("chapters/*.toml"),
        *ROOT.glob("utils/*.py"),
        *ROOT.glob("utils/workbook/*.py"),
    ):
        copy = course / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    (course / "requirements.txt").write_text("# nothing\n")
    for folder in ("work", "solutions"):
        (course / folder).mkdir()
    done = make(course, "setup")
    assert done.returncode == 0, done.stderr
    return course


@pytest.fixture
def course(made, tmp_path):
    """A copy of it elsewhere, as copying leaves it."""
    copy = tmp_path / "a copy of the ъ course"
    shutil.copytree(made, copy, symlinks=True)
    return copy


def in_kernel(course: Path, folder: str, **env: str) -> str:
    """Where a kernel in that folder finds the package: started as JupyterLab starts one, with our `python3`."""
    code = (
        "import nbformat, nbclient\n"
        "book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('import utils.workbook; utils.__file__')])\n"
        "nbclient.NotebookClient(book, kernel_name='python3', startup_timeout=3600).execute()\n"
        "print(eval(book.cells[0].outputs[0]['data']['text/plain']))"
    )
    # The packages of the Python that runs this test, behind those of the course's own.
    (site,) = (course / ".venv" / "lib").glob("*/site-packages")
    (site / "installed.pth").write_text("".join(f"{path}\n" for path in sys.path if "site-packages" in path))
    return python(course, code, folder, **env)


def here(course: Path) -> str:
    return str(course / "utils" / "__init__.py")


def test_a_copied_folder_goes_on_and_a_renamed_one(course):
    for folder in ("work", "solutions") if FULL else ("work",):  # before any `make`
        assert in_kernel(course, folder) == here(course)
    for name in (course.name, "renamed") if FULL else ("renamed",):
        course = course.rename(course.with_name(name))
        assert make(course, "setup").returncode == 0
        said = subprocess.check_output([course / ".venv" / "bin" / "pip", "--version"], text=True)
        assert str(course) in said
        code = ". .venv/bin/activate; python -c 'import utils; print(utils.__file__)'"
        assert subprocess.check_output(["sh", "-c", code], cwd=course, text=True).strip() == here(course)
    stamp = (course / ".venv" / ".installed").stat().st_mtime_ns
    os.utime(course / "requirements.txt")
    done = make(course, "setup")
    assert done.stdout.strip() == "Everything is installed." and not done.stderr
    assert (course / ".venv" / ".installed").stat().st_mtime_ns == stamp


def test_another_package_of_that_name_hides_nothing(course, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for folder in (other, course / "work"):
        (folder / "utils.py").write_text("raise SystemExit('another utils')\n")
    assert in_kernel(course, "work", PYTHONPATH=str(other)) == here(course)
    assert python(course, "import utils; print(utils.__file__)", "work", PYTHONPATH=str(other)) == here(course)


def test_what_only_costs_time_is_not_imported(course):
    """jsonschema, and with it nbformat, takes the module where it is there."""
    (site,) = (course / ".venv" / "lib").glob("*/site-packages")
    (site / "rfc3987_syntax.py").write_text("raise SystemExit('imported')\n")
    code = "import contextlib\nwith contextlib.suppress(ImportError): import rfc3987_syntax\nprint('without')"
    assert python(course, code) == "without"


def test_settings_of_other_pythons_stay_outside(course):
    (course / "more.mk").write_text("shown:\n\t@env\n")
    names = ["PYTHONPATH", "PYTHONHOME", "PYTHONOPTIMIZE", "PYTHONWARNINGS", "PYTHONDONTWRITEBYTECODE"]
    said = make(course, "-f", "Makefile", "-f", "more.mk", "shown", **dict.fromkeys(names, "error"))
    assert said.returncode == 0 and not {line.partition("=")[0] for line in said.stdout.splitlines()} & set(names)


def broken_off(venv: Path) -> None:
    """As when `python -m venv` is interrupted, or as made by `uv venv`: no pip."""
    for found in venv.glob("lib/*/site-packages/pip*"):
        shutil.rmtree(found)
    for found in venv.glob("bin/pip*"):
        found.unlink()
    (venv / ".installed").unlink()


def half_a_pip(venv: Path) -> None:
    (found,) = venv.glob("lib/*/site-packages/pip")
    shutil.rmtree(found / "_internal")


def without_packages(venv: Path) -> None:
    shutil.rmtree(venv / "lib")


def another_python(venv: Path) -> None:
    """As made by a Python that does not fit, or copied from another machine."""
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    (venv / "bin" / "python").chmod(0o755)


def python_gone(venv: Path) -> None:
    for link in venv.glob("bin/python*"):
        link.unlink()
        link.symlink_to("/nowhere/python3")


def empty(venv: Path) -> None:
    shutil.rmtree(venv)
    venv.mkdir()


@pytest.mark.skipif(not FULL, reason="seven seconds each: in make test-full")
@pytest.mark.parametrize(
    "damage", [broken_off, python_gone, half_a_pip, without_packages, another_python, empty], ids=lambda d: d.__name__
)
def test_a_venv_that_is_not_whole_is_mended(course, damage):
    damage(course / ".venv")
    (course / "requirements.txt").write_text("# nothing, said differently\n")
    done = make(course, "setup")
    assert done.returncode == 0, done.stderr
    assert python(course, "import pip, utils; print(utils.__file__)", "work") == here(course)


def test_a_python_that_does_not_fit_and_none_at_all(made, tmp_path):
    shutil.copytree(made, tmp_path / "course", ignore=shutil.ignore_patterns(".venv"))
    old = tmp_path / "old_python"
    fake = "import runpy, sys; sys.version_info = (3, 10); runpy.run_path(sys.argv[1], run_name='__main__')"
    old.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{fake}" "$@"\n')
    old.chmod(0o755)
    done = make(tmp_path / "course", "setup", f"PYTHON={old}")
    assert done.returncode and "Python 3.10 does not fit: the workbook needs 3.11 to 3.13. Name one" in done.stderr
    done = make(tmp_path / "course", "setup", "PYTHON=no_such_python")
    assert done.returncode and "There is no no_such_python here: install Python 3.11, 3.12 or 3.13" in done.stderr
    assert not (tmp_path / "course" / ".venv").exists()


def wheel(folder: Path) -> None:
    """A package of one module, as a registry holds it."""
    folder.mkdir()
    with zipfile.ZipFile(folder / "sample_package-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("sample_package.py", "answer = 42\n")
        info = "sample_package-1.0.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: sample-package\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"sample_package.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")


def test_an_installation_that_was_broken_off_goes_on(course, tmp_path):
    wheel(tmp_path / "wheels")
    (course / "requirements.txt").write_text("sample-package==1.0\n")
    done = make(course, "setup")
    assert done.returncode and "Installing failed" in done.stderr and "With a network" in done.stderr
    found = {"PIP_FIND_LINKS": str(tmp_path / "wheels")}
    assert make(course, "setup", **found).returncode == 0
    (site,) = (course / ".venv" / "lib").glob("*/site-packages")
    for lost in ("sample_package-1.0.dist-info/RECORD", *(["sample_package.py"] if FULL else [])):
        (site / lost).unlink()
        (course / ".venv" / ".installed").unlink()  # as when pip is interrupted
        assert make(course, "setup", **found).returncode == 0
        assert python(course, "import sample_package; print(sample_package.answer)") == "42"
        assert (site / lost).exists()


def test_environment_states_nothing_twice():
    assert "-r requirements.txt" in (ROOT / "environment.yml").read_text()
    pins = [x for x in (ROOT / "requirements.txt").read_text().splitlines() if x and not x.startswith("#")]
    assert pins and all("==" in pin for pin in pins)


def test_files_that_macos_leaves_beside_others_are_no_chapters(tmp_path):
    """`._name` holds what a file system without macOS's extra data has no other place for."""
    source, chapters, work = (tmp_path / name for name in ("source", "chapters", "work"))
    for folder, kind in ((source, "md"), (chapters, "ipynb"), (work, "ipynb")):
        folder.mkdir()
        (folder / f"._01_sample.{kind}").write_bytes(b"\0\5\x16\7")
    assert chapter_names(source=source) == []
    assert delivery.start(chapters, work) == []
    assert [path.name for path in work.iterdir()] == ["._01_sample.ipynb"]
