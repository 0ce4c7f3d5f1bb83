"""Kernels that begin with the libraries imported: each is a fork of a process that has imported them, and nothing else.

A kernel spends ten seconds of processor time on importing torch and transformer_lens. The workers of `make test` do
so once each, on Linux. Everywhere else a kernel starts anew: for learners, where outputs are recorded, and in
`make portable`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from jupyter_client.provisioning import local_provisioner

# What most chapters import; nnsight changes every object (`x.save()`), and would do so in all chapters.
SERVER = Path(__file__).with_name("nursery.py")
LIBRARIES = ["circuitsvis", "plotly.express", "plotly.graph_objects", "transformer_lens"]


class Nursery:
    """The process that has imported the libraries; it forks a kernel when asked."""

    def __init__(self, libraries: list[str] = LIBRARIES):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, str(SERVER), *libraries], text=True, **pipes)

    def ask(self, **question):
        print(json.dumps(question), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def seconds(self) -> float:
        """The processor time of this process itself, its kernels' left out."""
        return sum(psutil.Process(self.process.pid).cpu_times()[:2])

    def close(self) -> None:
        """End it, and the kernels that still run."""
        self.process.stdin.close()
        self.process.wait()

    @contextmanager
    def starts_kernels(self) -> Iterator[None]:
        """Within it, jupyter_client's kernels are forked here."""
        anew = local_provisioner.launch_kernel
        local_provisioner.launch_kernel = self.launch
        try:
            yield
        finally:
            local_provisioner.launch_kernel = anew

    def launch(self, command: list[str], env: dict[str, str] | None = None, cwd: str | None = None, **_) -> "Kernel":
        arguments = command[command.index("ipykernel_launcher") :]
        return Kernel(self, self.ask(start=arguments, env=dict(env or os.environ), cwd=str(cwd or os.getcwd())))


class Kernel:
    """What jupyter_client uses of a `subprocess.Popen`."""

    stdin = stdout = stderr = None

    def __init__(self, nursery: Nursery, pid: int):
        self.nursery, self.pid, self.returncode = nursery, pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.nursery.ask(ended=self.pid)
        return self.returncode

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.05)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)
