"""Open JupyterLab on the learner's copies, and run kernels as the workbook needs them whatever is set around it."""

import os
import sys
import tempfile
from pathlib import Path

from tornado.netutil import bind_sockets

from utils.checks.progress import WORK
from utils.workbook import WorkbookError
from utils.workbook.delivery import start

SETTINGS = Path(__file__).parent / "jupyter"  # switches off what asks the network, or a language server
FIRST_PORT = 8888
# Where a shell says that Jupyter and IPython keep their files; left out where nothing can be written there.
JUPYTERS_FOLDERS = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "XDG_DATA_HOME")


def settle() -> list[str]:
    """Keep other installations' kernels and settings out of every Jupyter started from here; returns sentences.

    A `python3` kernel on JUPYTER_PATH, or of the user where JUPYTER_PREFER_ENV_PATH says so, would come before ours.
    Where the home folder can't be written, one in `work/` stands for it: Jupyter keeps its run-time files there.

    Raises:
        WorkbookError: neither the home folder nor `work/` can be written.
    """
    os.environ.pop("JUPYTER_PATH", None)
    os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
    os.environ["WORKBOOK_WORK"] = str(WORK)  # kernels start in other folders
    for name in JUPYTERS_FOLDERS:
        if os.environ.get(name) and not _writable(Path(os.environ[name])):
            del os.environ[name]
    try:
        if _writable(Path.home()):
            return []
    except RuntimeError:  # there is none
        pass
    home = WORK / ".home"
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkbookError(
            f"Neither your home folder nor {WORK} can be written ({error}): name a folder that can, WORKBOOK_WORK=…"
        ) from None
    os.environ["HOME"] = str(home)
    return [f"Your home folder can't be written: Jupyter's settings are kept in {home}."]


def _writable(folder: Path) -> bool:
    """Whether files can be made there, or in the first folder above it that there is."""
    try:
        there = next(f for f in (folder, *folder.parents) if f.exists())
        with tempfile.TemporaryFile(dir=there):
            return True
    except OSError:
        return False


def lab(port: str | None = None, browser: bool = True) -> None:
    """Start the copies and replace this process by JupyterLab, which prints its URL when it is ready.

    Raises:
        WorkbookError: `port` is no port or is taken, or `work/` can't be written.
    """
    chosen = free_port(port)
    for line in [*start(), *settle()]:
        print(line)
    # Given here, these win over a user's Jupyter configuration; the log holds errors, and our one line with the URL.
    options = {
        # There are no language servers here, and to look for them takes time at each start; sources are not edited.
        "ServerApp.jpserver_extensions": "{'utils.workbook.server': True, 'jupyter_lsp': False, 'jupytext': False}",
        "LabApp.extra_labextensions_path": SETTINGS / "labextensions",
        "ServerApp.session_manager_class": "utils.workbook.server.OneKernelEach",
        "ServerApp.root_dir": WORK,
        "FileContentsManager.root_dir": WORK,
        "FileContentsManager.preferred_dir": WORK,
        "ServerApp.port": chosen,
        # Without a port of the user's own, a start at the same moment may take this one: the next is as good.
        "ServerApp.port_retries": 0 if port else 50,
        "Application.log_level": "WARN",
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
    command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
    if not browser:
        command.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # as in a container
    paths = [str(SETTINGS), *filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")])]
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(paths)
    if not port and chosen != FIRST_PORT:
        print(f"Port {FIRST_PORT} is taken, by another JupyterLab perhaps: this one takes {chosen}.")
    sys.stdout.flush()
    os.execv(sys.executable, command)


def free_port(wanted: str | None) -> int:
    """The port that is asked for, else the first free one from 8888 on.

    Raises:
        WorkbookError: it is no port, is taken, or may not be used.
    """
    if not wanted:
        for port in range(FIRST_PORT, FIRST_PORT + 1000):
            if not _refusal(port):
                return port
        raise WorkbookError("No port from 8888 to 9887 is free: name another, for example `make lab PORT=10000`.")
    if not wanted.isdecimal() or not 0 < int(wanted) < 65536:
        raise WorkbookError(f"{wanted!r} is no port: name one from 1024 to 65535, for example `make lab PORT=8888`.")
    if refusal := _refusal(int(wanted)):
        other = free_port(None)
        if isinstance(refusal, PermissionError):
            raise WorkbookError(f"Port {wanted} may not be used by you: try `make lab PORT={other}`.")
        raise WorkbookError(f"Port {wanted} is taken: choose another, for example `make lab PORT={other}`.")
    return int(wanted)


def _refusal(port: int) -> OSError | None:
    """Why the server could not listen there; asked as it asks itself, so that a port just left counts as free."""
    try:
        for socket in bind_sockets(port, "localhost"):
            socket.close()
    except OSError as error:
        return error
    return None
