"""JupyterLab as `make lab` starts it: really started on a free port, among foreign settings and kernels."""

import contextlib
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from servers import PATIENCE, wait_until_it_listens

from utils.workbook import ROOT, WorkbookError, lab

URL = re.compile(r"http://localhost:(\d+)/lab\?token=\w+")


@pytest.fixture
def home(tmp_path):
    """A home folder whose Jupyter settings are all against us, and a foreign kernel beside it."""
    folder = tmp_path / "home"
    (folder / ".jupyter").mkdir(parents=True)
    for name in ("jupyter_server_config.py", "jupyter_lab_config.py"):
        (folder / ".jupyter" / name).write_text(
            "c.FileContentsManager.root_dir = '/usr'\nc.FileContentsManager.preferred_dir = '/usr/lib'\n"
            "c.ServerApp.root_dir = '/usr'\nc.ServerApp.port = 9\n"
        )
    kernel = tmp_path / "modules" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    (kernel / "kernel.json").write_text(json.dumps({"argv": ["/bin/false"], "display_name": "foreign"}))
    return folder


class Lab:
    """`make lab BROWSER=no`, waited for until its URL stands in what it prints."""

    def __init__(self, *words: str, **env: str):
        clean = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "CONDA_DEFAULT_ENV", "JUPYTER_TOKEN")}
        # The Python that runs this test stands for the one that `make` sets up.
        command = ["make", "--no-print-directory", "lab", "BROWSER=no", "STAMP=", f"PY={sys.executable}", *words]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(command, cwd=ROOT, env={**clean, **env}, start_new_session=True, **pipes)
        self.said, end = "", time.monotonic() + PATIENCE
        while not URL.search(self.said) and time.monotonic() < end:
            if select.select([self.process.stdout], [], [], 1)[0]:
                some = os.read(self.process.stdout.fileno(), 65536).decode()
                if not some:
                    break
                self.said += some
        if not URL.search(self.said):
            self.__exit__()
            raise AssertionError(f"no URL in what make lab printed: {self.said}")
        self.url, self.port = URL.search(self.said)[0], int(URL.search(self.said)[1])
        wait_until_it_listens(self.port, self.process)

    def ask(self, path: str):
        token = self.url.partition("?")[2]
        address = f"http://127.0.0.1:{self.port}{path}?{token}"
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return opener.open(address, timeout=PATIENCE)

    def get(self, path: str):
        with self.ask(path) as answer:
            return answer.read().decode()

    def __enter__(self):
        return self

    def __exit__(self, *problem):
        for _ in range(PATIENCE // 5):  # a signal that comes before the server's loop runs is lost
            os.killpg(self.process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.communicate(timeout=5)
        raise AssertionError("the server does not stop")


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_the_lab_starts_among_foreign_settings_and_again_on_the_same_port(home, tmp_path):
    port = unused_port()
    env = {"HOME": str(home), "JUPYTER_PATH": str(tmp_path / "modules"), "JUPYTER_PREFER_ENV_PATH": "0"}
    env |= {"WORKBOOK_WORK": os.path.relpath(tmp_path / "copies", ROOT)}
    with Lab(f"PORT={port}", **env) as first:
        assert first.port == port
        assert "<title>JupyterLab</title>" in first.get("/lab")
        files = {file["name"] for file in json.loads(first.get("/api/contents/"))["content"]}
        assert files == {path.name for path in (ROOT / "chapters").glob("*.ipynb")}
        kernel = json.loads(first.get("/api/kernelspecs"))["kernelspecs"]["python3"]["spec"]
        assert kernel["argv"][0] != "/bin/false"
        # Browsers ask each time whether our part is still the same: an update shows at once.
        ours = json.loads((lab.SETTINGS / "labextensions" / "workbook-start" / "package.json").read_text())
        with first.ask(f"/lab/extensions/workbook-start/{ours['jupyterlab']['_build']['load']}") as answer:
            assert answer.headers["Cache-Control"] == "no-cache"
        # The URL comes once and last, and no log before it.
        after = first.said.partition(first.url)[2]
        assert first.said.count(first.url) == 1 and "[I" not in first.said and "[W" not in first.said
        assert len(after.splitlines()) <= 2
        # A tab that stays open: the server closes this connection, which then is in TIME_WAIT.
        tab = socket.create_connection(("127.0.0.1", port))
        tab.sendall(b"GET /api HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200" in tab.recv(100)
    tab.close()
    with Lab(f"PORT={port}", **env) as second:
        assert second.port == port


def test_a_port_just_left_counts_as_free_and_a_taken_one_does_not():
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    with pytest.raises(WorkbookError, match=rf"Port {port} is taken: choose another, for example `make lab PORT=\d+`"):
        lab.free_port(str(port))
    client = socket.create_connection(("127.0.0.1", port))
    accepted, _ = server.accept()
    accepted.close()  # closed by the server first: its end waits in TIME_WAIT
    client.close()
    server.close()
    assert lab.free_port(str(port)) == port


@pytest.mark.parametrize("wanted", ["70000", "0", "-1", "eight", "8888.0", "²"])
def test_what_is_no_port_is_said(wanted):
    with pytest.raises(WorkbookError, match="is no port: name one from 1024 to 65535"):
        lab.free_port(wanted)


def test_a_port_that_may_not_be_used(monkeypatch):
    def refuse(port, address):
        if port == 80:
            raise PermissionError(13, "Permission denied")
        return []

    monkeypatch.setattr(lab, "bind_sockets", refuse)
    with pytest.raises(WorkbookError, match="Port 80 may not be used by you: try `make lab PORT=8888`"):
        lab.free_port("80")


@pytest.fixture
def started(monkeypatch, tmp_path):
    """`lab` up to where JupyterLab would take over; gives the command."""
    commands = []
    monkeypatch.setattr(lab, "WORK", tmp_path)
    monkeypatch.setattr(lab, "start", lambda: [])
    monkeypatch.setattr(lab.os, "execv", lambda path, command: commands.append(command))
    for name in ("HOME", "JUPYTER_PATH", "JUPYTER_PREFER_ENV_PATH", "WORKBOOK_WORK", "JUPYTER_CONFIG_PATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    return commands


def test_a_move_to_another_port_is_said(started, monkeypatch, capsys):
    monkeypatch.setattr(lab, "_refusal", lambda port: OSError() if port < 8890 else None)
    lab.lab(browser=False)
    assert "Port 8888 is taken, by another JupyterLab perhaps: this one takes 8890." in capsys.readouterr().out
    assert "--ServerApp.port=8890" in started[0] and "--ServerApp.port_retries=50" in started[0]


def test_a_home_that_cannot_be_written(started, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HOME", "/dev/null/home")
    lab.lab(browser=False)
    assert os.environ["HOME"] == str(tmp_path / ".home") and (tmp_path / ".home").is_dir()
    assert "Your home folder can't be written: Jupyter's settings are kept in" in capsys.readouterr().out
    monkeypatch.setenv("HOME", "/dev/null/home")
    monkeypatch.setattr(lab, "WORK", Path("/dev/null/work"))
    with pytest.raises(WorkbookError, match="Neither your home folder nor /dev/null/work can be written"):
        lab.settle()


def test_folders_of_jupyter_that_cannot_be_written(started, monkeypatch, tmp_path):
    for name in lab.JUPYTERS_FOLDERS:
        monkeypatch.setenv(name, "/dev/null/folder")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "made" / "later"))
    lab.settle()
    assert [name for name in lab.JUPYTERS_FOLDERS if name in os.environ] == ["IPYTHONDIR"]


def test_a_kernel_runs_where_the_home_cannot_be_written(tmp_path):
    code = (
        "import nbformat, nbclient; from utils.workbook.lab import settle; settle()\n"
        "book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('print(6 * 7)')])\n"
        "nbclient.NotebookClient(book, kernel_name='python3', startup_timeout=3600).execute()\n"
        "print(book.cells[0].outputs[0].text)"
    )
    env = {**os.environ, "HOME": "/dev/null/home", "WORKBOOK_WORK": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "42", done.stderr


def test_a_terminal_that_is_not_utf_8(tmp_path):
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "WORKBOOK_WORK": str(tmp_path)}
    chapter = sorted((ROOT / "chapters").glob("01*.ipynb"))[0]
    names = [c["id"] for c in json.loads(chapter.read_text(encoding="utf-8"))["cells"] if "exercise" in c["metadata"]]
    (tmp_path / ".progress.json").write_text(json.dumps({"tokenization": dict.fromkeys(names, "solved")}))
    command = [sys.executable, "-m", "utils.workbook", "progress"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"?" * 10 in done.stdout


@pytest.mark.parametrize(
    "value, folder", [("mine", ROOT / "mine"), ("/tmp/mine", Path("/tmp/mine")), ("~no.one/a", ROOT / "~no.one/a")]
)
def test_another_folder_for_the_copies(value, folder, tmp_path):
    code = "from utils.checks.progress import WORK; print(WORK)"
    env = {**os.environ, "WORKBOOK_WORK": value, "PYTHONPATH": str(ROOT)}
    said = subprocess.check_output([sys.executable, "-c", code], cwd=tmp_path, env=env, text=True)
    assert said.strip() == str(folder)
