"""An NDIF server of one's own: `make ndif` serves the profile's language model, `make ndif-test` runs chapter 10 on it.

NDIF has an environment of its own in `.ndif/`, which shares the workbook's packages and can't import the workbook, as
on a real server. A server is five kinds of processes: redis, ray, NDIF's controller, its API, the model's actor. All
are descendants of this one, which ends them when it ends; those that outlived a killed one are ended at the next start.
"""

import contextlib
import ctypes
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from utils.workbook import ROOT, WorkbookError
from utils.workbook.execute import OFFLINE, nbval
from utils.workbook.files import write_whole

HOME = ROOT / ".ndif"
VENV = HOME / "venv"
PYTHON = VENV / "bin" / "python"
SERVER = Path(__file__).with_name("ndif_server")
REQUIREMENTS = SERVER / "requirements.txt"
PORT = 8001
MEMORY = 4.0  # GB that must be free: 3.3 were used
LIMIT = 64_000_000  # bytes of one request
START_SECONDS = 300
ATTEMPTS = 3  # to start ray
DTYPES = ("float32", "bfloat16")
SUBREAPER = 36  # prctl's name for "orphans among my descendants become my children"


# ---------------------------------------------------------------- what it needs


def redis_server() -> str:
    """The path of redis-server; on Debian, where this is root, it is installed.

    Raises:
        WorkbookError: there is none, and it can't be installed.
    """
    if not shutil.which("redis-server") and os.geteuid() == 0 and shutil.which("apt-get"):
        print("Installing redis-server.", flush=True)
        subprocess.call(["apt-get", "update", "-qq"])
        # Installed, it would start as a service of its own.
        with tempfile.TemporaryDirectory() as folder:
            policy = Path(folder) / "policy"
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
            quiet = {"DEBIAN_FRONTEND": "noninteractive", "POLICYRCD": str(policy)}
            subprocess.call(["apt-get", "install", "-y", "-qq", "redis-server"], env={**os.environ, **quiet})
    if found := shutil.which("redis-server"):
        return found
    raise WorkbookError("NDIF needs redis-server, and there is none here: apt install redis-server, as root.")


def environment() -> None:
    """Make `.ndif/venv`, or leave it where it is as the requirements say.

    Raises:
        WorkbookError: pip did not get through.
    """
    base = [p for p in sys.path if p.endswith(("site-packages", "dist-packages"))]
    wanted = "\n".join([sys.version, str(ROOT), *base, REQUIREMENTS.read_text(encoding="utf-8")])
    stamp = VENV / ".installed"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted and PYTHON.exists():
        return
    print("Installing NDIF into .ndif; once, for about two minutes and 0.5 GB.", flush=True)
    if subprocess.call([sys.executable, "-m", "venv", "--clear", str(VENV)]):
        raise WorkbookError("Making .ndif failed (the lines above say why). Is this folder writable?")
    purelib = [str(PYTHON), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.check_output(purelib, text=True).strip())
    # Folders named in a .pth file are searched, and their own .pth files are not read: `utils` stays outside.
    (packages / "workbook_packages.pth").write_text("\n".join(base) + "\n", encoding="utf-8")
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    if sys.version_info < (3, 12):  # NDIF 0.1.2 asks for 3.12, and its API and actor run on 3.11
        pip.append("--ignore-requires-python")
    if subprocess.call([*pip, "-r", str(REQUIREMENTS)]):
        raise WorkbookError(
            "Installing NDIF failed (the lines above say why). With a network, the same command goes on."
        )
    write_whole(stamp, wanted)


def enough_memory() -> None:
    """
    Raises:
        WorkbookError: less memory is free than a server takes.
    """
    free = psutil.virtual_memory().available / 1e9
    if free < MEMORY:
        raise WorkbookError(f"NDIF needs {MEMORY:.0f} GB of free memory, and {free:.1f} GB are free: close something.")


def free_port(port: int) -> int:
    """
    Raises:
        WorkbookError: another process listens there, or that is no port.
    """
    if not 1024 <= port <= 65535:
        raise WorkbookError(f"PORT={port} can't be: choose one of 1024 to 65535.")
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("127.0.0.1", port))
        except OSError as error:
            raise WorkbookError(f"Port {port} is taken ({error.strerror}): make ndif PORT={port + 1}") from None
    return port


def any_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


# ---------------------------------------------------------------- its processes


def keep_orphans() -> None:
    """From now on a descendant whose parent ends becomes this process's child, so that `descendants` knows all."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)


def descendants() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def end(processes: list[psutil.Process], seconds: float = 5) -> None:
    """Ask these to end, and kill what is still there after some seconds."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    for process in psutil.wait_procs(processes, seconds)[1]:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, seconds)


def end_those_left(file: Path) -> int:
    """End what a server that was killed has left running, by id and time of birth; returns how many there were."""
    try:
        known = json.loads(file.read_text())
    except (OSError, ValueError):
        return 0
    left = []
    for pid, born in known:
        with contextlib.suppress(psutil.Error):
            if abs((process := psutil.Process(pid)).create_time() - born) < 0.01:
                left.append(process)
    end(left)
    file.unlink(missing_ok=True)
    return len(left)


def listening(processes: list[psutil.Process]) -> list[str]:
    """ "name address:port" of everything that listens and can be reached from another machine."""
    found = set()
    for process in processes:
        with contextlib.suppress(psutil.Error):
            for c in process.net_connections(kind="tcp"):
                if c.status == psutil.CONN_LISTEN and not c.laddr.ip.startswith(("127.", "::1", "::ffff:127.")):
                    found.add(f"{process.name()} {c.laddr.ip}:{c.laddr.port}")
    return sorted(found)


# ---------------------------------------------------------------- the server


@dataclass
class Server:
    """A server that runs: its address, and the files that tell what it did."""

    port: int
    run: Path
    began: float = field(default_factory=time.monotonic)

    @property
    def host(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def counts(self) -> list[int]:
        """The bytes of each request that was accepted."""
        file = self.run / "requests"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def memory(self) -> float:
        """GB of all processes, shared pages once."""
        held = 0
        for process in descendants():
            with contextlib.suppress(psutil.Error):
                held += getattr(process.memory_full_info(), "pss", 0)
        return held / 1e9


@contextlib.contextmanager
def serving(dtype: str = "float32", port: int = PORT, limit: int = LIMIT, key: str = "") -> Iterator[Server]:
    """A server for the length of the body; everything that it started has ended afterwards, however the body ends.

    Raises:
        WorkbookError: something that it needs is missing, or it did not start; the message says what to do.
    """
    if dtype not in DTYPES:
        raise WorkbookError(f"There is no DTYPE {dtype!r} here: choose one of {', '.join(DTYPES)}.")
    with alone():
        run, state = HOME / "run", HOME / "processes.json"
        if ended := end_those_left(state):
            print(f"Ended {ended} processes of a server that had been killed.", flush=True)
        free_port(port)
        enough_memory()
        redis = redis_server()
        environment()
        shutil.rmtree(run, ignore_errors=True)
        run.mkdir(parents=True)
        keep_orphans()
        # The paths of ray's sockets may not be long: not in the workbook's folder.
        scratch = Path(tempfile.mkdtemp(prefix="ndif-"))
        server = Server(port, run)
        try:
            for name, step in steps(server, dtype, redis, scratch, limit, key):
                step()
                known = [(p.pid, p.create_time()) for p in descendants() if p.is_running()]
                write_whole(state, json.dumps(known))
                print(f"{time.monotonic() - server.began:6.1f} s  {name}", flush=True)
            yield server
        finally:
            end(descendants())
            state.unlink(missing_ok=True)
            shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """One server a folder: a second would take the first's processes for those of one that was killed.

    Raises:
        WorkbookError: one runs.
    """
    HOME.mkdir(exist_ok=True)
    with open(HOME / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            said = (
                "A server of this folder runs or starts: use that one, or end it first (Ctrl-C where it was started)."
            )
            raise WorkbookError(said) from None
        yield


def steps(server: Server, dtype: str, redis: str, scratch: Path, limit: int, key: str):
    """(name, what to call), in order."""
    from utils.models import load_nnsight  # imports torch, for seconds

    model = load_nnsight("lm")
    model_key = model.to_model_key()
    device = str(model.device)
    size = sum(p.numel() * p.element_size() for p in model._module.parameters())
    run, ports = server.run, {name: any_port() for name in ("redis", "ray", "client", "dashboard")}
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    env = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("WORKBOOK_", "NDIF_", "PYTHON"))},
        **(OFFLINE if os.environ.get("WORKBOOK_MODELS", "embedded") == "embedded" else {}),
        "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(SERVER),
        "PYTHONNOUSERSITE": "1",
        "OMP_NUM_THREADS": threads,
        "WORKBOOK_DEVICE": device,
        "WORKBOOK_NDIF_LIMIT": str(limit),
        "WORKBOOK_NDIF_KEY": key,
        "WORKBOOK_NDIF_COUNTS": str(run / "requests"),
        "NDIF_HOME": str(run),
        "NDIF_REDIS_URL": f"redis://127.0.0.1:{ports['redis']}",
        "NDIF_RAY_ADDRESS": f"ray://127.0.0.1:{ports['client']}",
        "NDIF_API_PORT": str(server.port),
        "NDIF_API_URL": server.host,
        "NDIF_DEFAULT_MODEL_ACTOR_CLASS": "workbook_actor.ModelActor",
        "NDIF_DEFAULT_PADDING_BIAS": "0",
        "NDIF_OBJECT_STORE_URL": f"http://127.0.0.1:{any_port()}",  # nobody is there: only results over 8 MiB need it
        # Ray's ports lie on every address, whatever address it is given: who has not this word is refused there.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Half a minute to a minute each, which are too few on a busy machine.
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": str(START_SECONDS),
        "RAY_DASHBOARD_SUBPROCESS_MODULE_WAIT_READY_TIMEOUT": str(START_SECONDS),
        "RAY_CLIENT_SERVER_CHECK_CHANNEL_TIMEOUT_S": str(START_SECONDS),
        "RAY_worker_register_timeout_seconds": str(START_SECONDS),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # an actor that reserves no GPU may see it
        "GRPC_ENABLE_FORK_SUPPORT": "0",
    }

    def start(name: str, *command: str, **more: str) -> subprocess.Popen:
        # A session of its own: Ctrl-C in the terminal reaches this process, which ends the others in order.
        with open(run / f"{name}.log", "w") as log:
            return subprocess.Popen(
                command, cwd=run, env={**env, **more}, stdout=log, stderr=log, start_new_session=True
            )

    def failed(name: str) -> WorkbookError:
        lines = [line for line in (run / f"{name}.log").read_text(errors="replace").splitlines() if line.strip()]
        return WorkbookError(f"NDIF's {name} did not start; .ndif/run/{name}.log ends:\n" + "\n".join(lines[-5:]))

    def finish(name: str, *command: str, **more: str) -> None:
        process = start(name, *command, **more)
        try:
            code = process.wait(START_SECONDS)
        except subprocess.TimeoutExpired:
            code = -1
        if code:
            raise failed(name)

    def answers(name: str, process: subprocess.Popen, asks) -> None:
        until = time.monotonic() + START_SECONDS
        while not asks():
            if process.poll() is not None or time.monotonic() > until:
                raise failed(name)
            time.sleep(1)

    def take(port: int):
        def asks() -> bool:
            with socket.socket() as one:
                return one.connect_ex(("127.0.0.1", port)) == 0

        return asks

    def connected() -> bool:
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{server.host}/connected", timeout=5).status == 200
        return False

    def start_redis():
        command = (redis, "--port", str(ports["redis"]), "--bind", "127.0.0.1", "--save", "")
        answers("redis", start("redis", *command), take(ports["redis"]))

    def start_ray():
        own = json.dumps({"head": 10, "cuda_memory_bytes": 4_000_000_000, "cpu_memory_bytes": 1_000_000_000})
        command = [
            str(PYTHON),
            "-m",
            "workbook_ray",
            "start",
            "--head",
            "--block",
            "--node-ip-address=127.0.0.1",
            f"--port={ports['ray']}",
        ]
        command += [f"--ray-client-server-port={ports['client']}", "--num-cpus=2", "--num-gpus=1", f"--resources={own}"]
        command += ["--object-store-memory=200000000", "--include-dashboard=true", "--dashboard-host=127.0.0.1"]
        command += [f"--dashboard-port={ports['dashboard']}", f"--temp-dir={scratch}"]
        for name in ("dashboard-agent-grpc", "dashboard-agent-listen", "runtime-env-agent", "metrics-export"):
            command.append(f"--{name}-port={any_port()}")

        def started() -> bool:
            return "Ray runtime started" in (run / "ray.log").read_text(errors="replace")

        for attempt in range(ATTEMPTS):
            before = descendants()
            try:
                return answers("ray", start("ray", *command), started)
            except WorkbookError:  # some of its limits can't be set
                with contextlib.suppress(OSError):
                    shutil.copytree(scratch, run / "ray-logs", ignore=_only_logs, dirs_exist_ok=True)
                end([process for process in descendants() if process not in before])
                if attempt == ATTEMPTS - 1:
                    raise

    def start_controller():
        module = "ndif.services.ray.deployments.controller.controller"
        finish("controller", str(PYTHON), "-m", module, RAY_ADDRESS=f"127.0.0.1:{ports['ray']}")

    def start_api():
        command = ("gunicorn", "--config", "python:ndif.services.api.gunicorn_conf")
        answers("api", start("api", *command, "--bind", f"127.0.0.1:{server.port}", "workbook_api:app"), connected)

    def deploy():
        wanted = {"checkpoint": "lm", "model_key": model_key, "size_bytes": size, "dtype": dtype, "pinned": True}
        file = run / "models.yaml"
        file.write_text(json.dumps({"models": [wanted]}))  # JSON is YAML
        finish("deploy", "ndif", "deploy", "-f", str(file))

    return (
        ("redis", start_redis),
        ("ray", start_ray),
        ("the controller", start_controller),
        ("the API", start_api),
        (f"the model, in {dtype} on {device}", deploy),
    )


def _only_logs(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if name in ("sockets", "session_latest", "runtime_resources")]


# ---------------------------------------------------------------- the commands


@contextlib.contextmanager
def ending_on_signals() -> Iterator[None]:
    """A SIGTERM or a closed terminal ends the body as Ctrl-C does; a second one does not break off what ends it."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def stop(*_):
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {each: signal.signal(each, stop) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def serve(dtype: str = "float32", port: int = PORT) -> None:
    """Serve until Ctrl-C; prints what points nnsight at it."""
    with ending_on_signals(), serving(dtype, port) as server:
        print(f"\nNDIF serves `lm` at {server.host}, {server.memory():.1f} GB. In another terminal:")
        print(f"\n    WORKBOOK_REMOTE=1 NDIF_HOST={server.host} make lab\n")
        if open_ports := listening(descendants()):
            print(
                "These ports can be reached from other machines; ray answers only who holds a word drawn for this run:"
            )
            print("    " + ", ".join(open_ports))
        print("Ctrl-C ends it.", flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            print("\nEnding the server.", flush=True)


def test(dtype: str = "float32") -> int:
    """Start a server; compare each traced function with its local value, run chapter 10 on it, compare the counts of
    requests and bytes. Returns how many of these failed."""
    began = time.monotonic()
    redis_server()
    environment()
    if not own_network():
        print("This system gives no network of our own (unshare): ray listens on every address meanwhile.", flush=True)
    with ending_on_signals(), serving(dtype, any_port()) as server, tempfile.TemporaryDirectory() as folder:
        ready, counts = time.monotonic() - began, Path(folder) / "sent"
        os.environ.update({"NDIF_HOST": server.host, "NDIF_API_KEY": "none", "WORKBOOK_SENT": str(counts)})
        os.environ["NNSIGHT_CONFIG"] = str(SERVER / "nnsight.yaml")
        os.environ["WORKBOOK_SERVER_DTYPE"] = dtype
        pytest = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-s",
            "-p",
            "no:cacheprovider",
            "tests/server_function_vectors.py",
        ]
        failed = ["traced functions"] if subprocess.call(pytest, cwd=ROOT) else []
        if dtype == "float32":  # a chapter's references are float32's
            os.environ["WORKBOOK_REMOTE"] = "1"
            failed += ["chapter 10"] if nbval("10") else []
        sent = counts.read_text().split() if counts.exists() else []
        there, here = sorted(server.counts()), sorted(map(int, sent))
        if there != here:
            failed.append(f"counts: the server took {len(there)} requests, {sum(there)} bytes")
        print(f"{len(here)} requests, {sum(here):,} bytes sent; the server counts {len(there)}, {sum(there):,}.")
        print(f"{server.memory():.1f} GB; ready after {ready:.0f} s, all in {time.monotonic() - began:.0f} s.")
    print(f"Failed: {', '.join(failed)}." if failed else "All is as on this machine.")
    return len(failed)


def own_network() -> bool:
    """Give this process, and whatever it starts from now on, a network that holds nothing but loopback; False where the
    system does not allow that, and then nothing has changed."""
    tries = [sys.executable, "-c", "from utils.workbook.ndif import enter_network; enter_network()"]
    if subprocess.call(tries, cwd=ROOT, stderr=subprocess.DEVNULL):
        return False
    enter_network()
    return True


def enter_network() -> None:
    """
    Raises:
        OSError: not allowed, perhaps half done.
    """
    libc, user, group = ctypes.CDLL(None, use_errno=True), os.getuid(), os.getgid()
    new_network, new_user = 0x40000000, 0x10000000
    if libc.unshare(new_network):
        if libc.unshare(new_user | new_network):
            raise OSError(ctypes.get_errno(), "unshare")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    with socket.socket() as one:  # loopback is down in a new network
        fcntl.ioctl(one, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x40))
