"""Make `.venv` and install what the workbook needs; mend it where it was broken off, moved or made by another tool.

`make` runs this file by its path, with whatever Python there is: standard library only, no syntax newer than 3.6.
"""

import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
REQUIREMENTS = ROOT / "requirements.txt"
STAMP = VENV / ".installed"  # the folder's path, then requirements.txt, both as they were when all was done
OLDEST, NEWEST = (3, 11), (3, 13)

# Lists every installed package of which a file is missing; one that was broken off has no list of its files.
INCOMPLETE = """
from importlib.metadata import distributions
for found in distributions():
    if not found.files or not all(found.locate_file(file).exists() for file in found.files if file.suffix != ".pyc"):
        print(found.name + "==" + found.version)
"""


def call(*command):
    """The exit code of `.venv`'s Python with these arguments; not 0 where it can't be run at all."""
    try:
        return subprocess.call([str(PYTHON)] + list(command), cwd=str(ROOT))
    except OSError:
        return 127


def holds(*command):
    """Whether `.venv`'s Python does this without an error; says nothing."""
    try:
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return subprocess.call([str(PYTHON)] + list(command), cwd=str(ROOT), **quiet) == 0
    except OSError:
        return False


def make():
    """A `.venv` with a fitting Python and pip: the one that is there, or a new one."""
    has_pip = ("-m", "pip", "--version")
    if holds("-c", f"import sys; sys.exit(not {OLDEST} <= sys.version_info[:2] <= {NEWEST})"):
        if holds(*has_pip) or (holds("-m", "ensurepip", "--upgrade") and holds(*has_pip)):
            return
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        mine = ".".join(map(str, sys.version_info[:2]))
        sys.exit(f"Python {mine} does not fit: the workbook needs 3.11 to 3.13. Name one: make PYTHON=python3.12 ...")
    if VENV.exists():
        print("The folder .venv holds no working Python 3.11 to 3.13 with pip: it is made anew.", flush=True)
    if subprocess.call([sys.executable, "-m", "venv", "--clear", str(VENV)]):
        sys.exit(
            "Making .venv failed (the lines above say why). Is this folder writable, and Python's venv module "
            "installed (on Debian and Ubuntu: apt install python3-venv)?"
        )


def install():
    """Everything in requirements.txt, whole; what is there already needs no network."""
    print("Installing into .venv; once, for some minutes.", flush=True)
    pip = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-user")
    if call(*pip, "-r", str(REQUIREMENTS)):
        sys.exit("Installing failed (the lines above say why). With a network, the same command goes on.")
    broken = subprocess.check_output([str(PYTHON), "-c", INCOMPLETE]).decode().split()
    if broken and call(*pip, "--ignore-installed", "--no-deps", *broken):
        sys.exit(f"These packages are incomplete: {' '.join(broken)}. With a network, the same command mends them.")


def mend_scripts():
    """Name this folder's Python in the first line of every script in `.venv/bin`, and this folder in `activate`."""
    call("-m", "venv", "--without-pip", str(VENV))
    python = os.fsencode(str(PYTHON))
    # The second form is for paths with spaces, or too long for a first line; pip writes both.
    head = re.compile(rb"\A(#!/[^\n]*python[0-9.]*\n|#!/bin/sh\n'''exec' [^\n]*\n' '''\n)")
    new = b"#!/bin/sh\n'''exec' \"" + python + b'" "$0" "$@"\n\' \'\'\'\n'
    if b" " not in python and len(python) < 125:
        new = b"#!" + python + b"\n"
    for script in sorted((VENV / "bin").iterdir()):
        if script.is_symlink() or not script.is_file():
            continue
        text = script.read_bytes()
        if head.match(text):
            half = script.with_name(script.name + ".half")
            half.write_bytes(new + text[head.match(text).end() :])
            half.chmod(script.stat().st_mode)
            os.replace(str(half), str(script))


FINDER = """# Written by make: the workbook's package `utils` comes before any other of that name.
# And `rfc3987_syntax` is not there: it compiles 38 grammars when imported, four seconds of processor time at each start
# of a kernel, of pytest and of JupyterLab. jsonschema takes it where it can, for addresses that are not ASCII.
import os
import sys
from importlib.machinery import PathFinder

FOLDER = os.path.normpath(os.path.join(sys.prefix, {root}))


class Workbook:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "rfc3987_syntax":
            raise ModuleNotFoundError("The workbook goes without " + name, name=name)
        return PathFinder.find_spec(name, [FOLDER]) if name == "utils" else None


sys.meta_path.insert(0, Workbook)
"""


def place():
    """Let the Python that runs this find the package, from every folder and before any other `utils`.

    `workbook.pth` is read whenever that Python starts. Its first line puts a finder before all others, so that no
    `utils.py` in a learner's folder, on PYTHONPATH or in another package hides ours; its second names the folder for
    editors. The paths are relative for `.venv`, which may be moved together with the folder.
    """
    packages = Path(sysconfig.get_path("purelib"))
    inside = ROOT in Path(sys.prefix).parents
    root = os.path.relpath(str(ROOT), sys.prefix) if inside else str(ROOT)
    path = os.path.relpath(str(ROOT), str(packages)) if inside else str(ROOT)
    for name, text in (
        ("_workbook_finder.py", FINDER.format(root=ascii(root))),
        ("workbook.pth", f"import _workbook_finder\n{path}\n"),
    ):
        file = packages / name
        try:
            if not file.exists() or file.read_text(encoding="utf-8") != text:
                file.write_text(text, encoding="utf-8")
        except OSError as error:
            print(f"{file} can't be written ({error}): notebooks may not find the package `utils`.", file=sys.stderr)


def locked():
    """Wait for another set-up in this folder; the lock ends with this process."""
    try:
        import fcntl

        file = open(str(REQUIREMENTS))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Another command is installing into .venv: waiting for it.", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        return file
    except (ImportError, OSError):  # some network folders have no locks
        return None


def main():
    if sys.argv[1:] == ["place"]:
        return place()
    lock = locked()
    make()
    wanted = os.fsencode(os.getcwd()) + b"\n" + REQUIREMENTS.read_bytes()
    before = STAMP.read_bytes() if STAMP.exists() else b""
    if before.partition(b"\n")[2] != wanted.partition(b"\n")[2]:
        install()
    if before != wanted:
        mend_scripts()
    if call(str(Path(__file__).resolve()), "place"):
        sys.exit("The Python in .venv can't be run: remove the folder .venv and give the same command again.")
    STAMP.write_bytes(wanted)
    if lock:
        lock.close()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("Interrupted. The same command goes on where this one stopped.")
    except OSError as error:
        sys.exit(f"Setting up .venv failed ({error}): is this folder writable, and is there room on the disk?")
