"""An NDIF server of one's own, without starting one: what it needs, what it refuses, what it ends; and what a client
says where the server does not answer, knows no such key, or finds a request too large."""

import asyncio
import http.server
import importlib.util
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading

import nnsight
import psutil
import pytest
import torch
import zstandard
from nnsight.intervention.backends.remote import RemoteError
from nnsight.schema.request import RequestModel

from utils import function_vectors as fv
from utils.checks.function_vectors import HEADS, few_shot, small_model
from utils.models import load_nnsight, remote
from utils.workbook import ROOT, WorkbookError, full, ndif

# ---------------------------------------------------------------- what a server needs


def test_without_redis_one_line_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(WorkbookError, match="apt install redis-server"):
        ndif.redis_server()


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(ndif, "HOME", tmp_path)


def test_a_second_server_of_the_folder_leaves_the_first_alone(home, monkeypatch):
    monkeypatch.setattr(ndif, "enough_memory", lambda: pytest.fail("it went on"))
    first = subprocess.Popen(["sleep", "600"])
    state = ndif.HOME / "processes.json"
    try:
        state.write_text(json.dumps([[first.pid, psutil.Process(first.pid).create_time()]]))
        with ndif.alone(), pytest.raises(WorkbookError, match="runs or starts: use that one"), ndif.serving():
            pass
        assert first.poll() is None and state.exists()
        with ndif.alone():  # free again
            pass
    finally:
        first.kill()
        first.wait()


def test_a_taken_port_is_named(home):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(WorkbookError, match=f"Port {port} is taken .*PORT={port + 1}"):
            ndif.free_port(port)
        with pytest.raises(WorkbookError, match="is taken"), ndif.serving(port=port):
            pass
    assert ndif.free_port(port) == port


@pytest.mark.parametrize("port", [0, 80, 70000])
def test_a_port_that_is_none_is_refused(port):
    with pytest.raises(WorkbookError, match="1024 to 65535"):
        ndif.free_port(port)


def test_too_little_memory_is_said_before_anything_starts(monkeypatch):
    memory = psutil.virtual_memory()._replace(available=1_300_000_000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    with pytest.raises(WorkbookError, match="1.3 GB are free"):
        ndif.enough_memory()


def test_an_unknown_dtype_is_refused():
    with pytest.raises(WorkbookError, match="choose one of float32, bfloat16"), ndif.serving("int8"):
        pass


# ---------------------------------------------------------------- its processes

STARTS = """
import subprocess, time
from utils.workbook import ndif
ndif.keep_orphans()
# They don't end when asked to.
shell = "trap '' TERM; sleep 600 & sleep 600 & echo started"
subprocess.Popen(["sh", "-c", shell], start_new_session=True).wait()
with ndif.ending_on_signals():
    try:
        print(*[p.pid for p in ndif.descendants()], flush=True)
        time.sleep(600)
    finally:
        print("ending", flush=True)
        ndif.end(ndif.descendants(), 2)
        print("ended", flush=True)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_stopped_server_leaves_no_process_not_even_orphans(name):
    process = subprocess.Popen([sys.executable, "-c", STARTS], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "started\n"
    orphans = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
    assert len(orphans) == 2 and all(p.is_running() for p in orphans)
    process.send_signal(getattr(signal, name))
    assert process.stdout.readline() == "ending\n"
    process.send_signal(getattr(signal, name))  # an impatient second one breaks nothing off
    assert process.stdout.readline() == "ended\n" and process.wait(60)
    assert not psutil.wait_procs(orphans, 10)[1]


def test_what_a_killed_server_left_is_ended_by_id_and_birth(tmp_path):
    left, other = (subprocess.Popen(["sleep", "600"]) for _ in range(2))
    try:
        born = psutil.Process(left.pid).create_time()
        file = tmp_path / "processes.json"
        # The second id is in use again by another process, born later; the third is nobody's.
        file.write_text(json.dumps([[left.pid, born], [other.pid, born - 100], [2**22 + 1, born]]))
        assert ndif.end_those_left(file) == 1
        assert left.wait(10) is not None and other.poll() is None and not file.exists()
        file.write_text("half a fi")
        assert ndif.end_those_left(file) == 0
    finally:
        left.kill()
        other.kill()
        left.wait()
        other.wait()


def test_what_listens_for_others_is_named():
    with socket.create_server(("127.0.0.1", 0)), socket.create_server(("0.0.0.0", 0)) as for_all:
        said = ndif.listening([psutil.Process()])
        assert f"0.0.0.0:{for_all.getsockname()[1]}" in " ".join(said) and "127.0.0.1" not in " ".join(said)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has them")
def test_a_network_of_its_own_holds_loopback_or_nothing_has_changed():
    tries = """
import socket, psutil
from utils.workbook import ndif
before = set(psutil.net_if_addrs())
if ndif.own_network():
    assert set(psutil.net_if_addrs()) <= {"lo"}
else:
    assert set(psutil.net_if_addrs()) == before
with socket.create_server(("127.0.0.1", 0)) as one:
    socket.create_connection(one.getsockname(), timeout=5).close()
"""
    done = subprocess.run([sys.executable, "-c", tries], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- the server's door


def asked(size: int, given: str = "", limit: int = 64_000_000, key: str = "") -> tuple[int, str]:
    """The status and what is said of it; (200, "through") where the application behind the door was reached."""
    spec = importlib.util.spec_from_file_location("workbook_door", ndif.SERVER / "workbook_door.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sent, parts = [], [{"more_body": True}, {"more_body": True}, {"more_body": False}]

    async def behind(scope, receive, send):
        sent.extend([{"status": 200}, {"body": b'{"detail": "through"}'}])

    async def receive():
        return parts.pop(0)

    async def send(message):
        sent.append(message)

    headers = [(b"content-length", str(size).encode()), (b"ndif-api-key", given.encode())]
    asyncio.run(
        module.door(behind, limit, key)({"type": "http", "path": "/request", "headers": headers}, receive, send)
    )
    assert sent[0]["status"] == 200 or not parts, "the rest of the request was not read"
    return sent[0]["status"], json.loads(sent[1]["body"])["detail"]


def test_the_door_refuses_what_is_too_large():
    assert asked(64_000_000) == (200, "through")
    assert asked(70_000_000) == (413, "The request holds 70.0 MB, and this server takes 64.0 MB at once.")


def test_the_door_knows_the_key():
    assert asked(1, "right", key="right") == (200, "through")
    assert asked(1, "wrong", key="right") == asked(1, "", key="right") == (403, "Invalid API key.")
    assert asked(1, "anything") == (200, "through")


# ---------------------------------------------------------------- what a client says


@pytest.fixture
def refuses():
    """A server that refuses every request with what is put into `answer`; yields (address, answer)."""
    answer = {"status": 403, "detail": "Invalid API key."}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            if answer["status"] is None:
                return  # the connection ends without an answer
            body = json.dumps({"detail": answer["detail"]}).encode()
            self.send_response(answer["status"])
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", answer
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def far(monkeypatch):
    """Traces go to whatever NDIF_HOST would name."""
    monkeypatch.setenv("WORKBOOK_REMOTE", "1")
    monkeypatch.setattr(nnsight.CONFIG.APP, "REMOTE_LOGGING", False)
    return lambda host: monkeypatch.setattr(nnsight.CONFIG.API, "HOST", host)


def test_a_server_that_is_not_there_is_named(far):
    with socket.create_server(("127.0.0.1", 0)) as gone:
        host = f"http://127.0.0.1:{gone.getsockname()[1]}"
    far(host)
    with pytest.raises(remote.ServerError, match=f"{host} does not answer .*make ndif"):
        fv.accuracy(load_nnsight("lm"), fv.ICLDataset([("hot", "cold"), ("big", "small")], 1, 0))


def test_an_address_may_end_in_a_slash(far):
    far("http://127.0.0.1:8001/")
    remote.remote_options()
    assert nnsight.CONFIG.API.HOST == "http://127.0.0.1:8001"


REFUSALS = {
    "wrong key": (403, "Invalid API key.", "does not know your key: set NDIF_API_KEY"),
    "no key": (401, "Missing or invalid API key. Please visit …", "does not know your key"),
    "too large": (413, "The request holds 70.0 MB, and this server takes 64.0 MB at once.", "Send fewer prompts"),
    "gone": (None, "", "does not answer"),
    "its own words": (503, "compute backend is reconnecting", "backend is reconnecting"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_a_server_refuses_is_said_in_a_sentence(name, refuses, far):
    host, answer = refuses
    answer["status"], answer["detail"], said = REFUSALS[name]
    far(host)
    options = {**remote.remote_options(), "blocking": False}
    model = load_nnsight("lm")
    with pytest.raises((remote.ServerError, RemoteError), match=said), model.trace("hot", **options):
        model.lm_head.output.save()


def test_what_a_server_computed_in_16_bits_comes_back_as_float32(far):
    saved = {"z": [torch.ones(2, dtype=torch.bfloat16)], "ids": torch.tensor([7]), "word": "hot", "x": torch.ones(1)}
    blob = io.BytesIO()
    torch.save(saved, blob)
    got = remote.PlainBackend("model", host="http://127.0.0.1:1").finalize(zstandard.compress(blob.getvalue()))
    assert got["z"][0].dtype == got["x"].dtype == torch.float32 and got["ids"].dtype == torch.int64
    assert got["word"] == "hot" and got["z"][0].tolist() == [1, 1]


# ---------------------------------------------------------------- what a client sends


def test_requests_and_bytes_are_counted_without_a_server(monkeypatch):
    monkeypatch.delenv("WORKBOOK_REMOTE", raising=False)
    with torch.no_grad(), remote.sent() as out:
        slow = fv.calculate_fn_vectors_and_intervene(small_model(), few_shot(4), [0, 2])
    assert out.requests == 2 + 2 * HEADS and 1000 * out.requests < out.bytes < 30_000 * out.requests
    with torch.no_grad(), remote.sent() as once:
        assert torch.allclose(fv.causal_effects_one_trace(small_model(), few_shot(4), [0, 2]), slow, atol=1e-7)
    assert once.requests == 1 and once.bytes < out.bytes / 4
    assert "WORKBOOK_REMOTE" not in os.environ
    with torch.no_grad(), remote.sent() as none:
        fv.causal_effects_fast(small_model(), few_shot(4))  # only the heads' means are traced
    assert none.requests == 1


def test_a_count_ends_where_its_body_raises(monkeypatch):
    before = RequestModel.serialize
    monkeypatch.setenv("WORKBOOK_REMOTE", "0")
    with pytest.raises(KeyError), remote.sent():
        raise KeyError
    assert RequestModel.serialize == before and os.environ["WORKBOOK_REMOTE"] == "0"


def test_full_leaves_the_server_out_only_where_it_is_told(monkeypatch):
    monkeypatch.setenv("NDIF", "no")
    assert not any("ndif-test" in command for command in full.wanted().values())
    monkeypatch.delenv("NDIF")
    assert any("ndif-test" in command for command in full.wanted().values())
