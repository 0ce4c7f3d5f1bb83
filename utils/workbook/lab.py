"""Open JupyterLab on the learner's copies."""

import os
import socket
import sys
from pathlib import Path

from utils.checks.progress import WORK
from utils.workbook import WorkbookError
from utils.workbook.learner import start

SETTINGS = Path(__file__).parent / "jupyter"  # switches off JupyterLab's question about news from the network


def lab(port: int | None = None, browser: bool = True) -> None:
    """Start the copies and replace this process by JupyterLab; its log prints the URL.

    Raises:
        WorkbookError: `port` is taken, or `work/` can't be written.
    """
    for line in start():
        print(line)
    if port is not None and not _free(port):
        raise WorkbookError(f"Port {port} is taken: choose another, for example `make lab PORT={port + 1}`.")
    port = port or next(p for p in range(8888, 9888) if _free(p))
    command = [sys.executable, "-m", "jupyter", "lab", f"--ServerApp.root_dir={WORK}", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
    if not browser:
        command.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # as in a container
    paths = [str(SETTINGS), *filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")])]
    os.environ["JUPYTER_CONFIG_PATH"] = os.pathsep.join(paths)
    sys.stdout.flush()
    os.execv(sys.executable, command)


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
