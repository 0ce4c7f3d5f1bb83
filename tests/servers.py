"""Waiting for JupyterLab as the tests start it."""

import socket
import subprocess
import time

PATIENCE = 900  # seconds by the clock: ends what hangs, not what a busy machine delays


def wait_until_it_listens(port: int, process: subprocess.Popen) -> None:
    """jupyter_server prints its URL first (`ServerApp.start_app`) and listens after that (a callback of its loop)."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            if process.poll() is not None or time.monotonic() > end:
                raise
        time.sleep(0.1)
