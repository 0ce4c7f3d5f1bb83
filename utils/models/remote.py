"""Traces that run on a server: count what they send, and say in a sentence what goes wrong."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import nnsight
import torch
import zstandard
from nnsight.intervention.backends import remote
from nnsight.schema.request import RequestModel
from torch.utils._pytree import tree_map

PUBLIC = "https://api.ndif.us"
OWN = "start one with `make ndif`, or unset WORKBOOK_REMOTE to run on this machine"


class ServerError(RuntimeError):
    """A server could not be reached, went away, or refused a request."""


class PlainBackend(remote.RemoteBackend):
    """nnsight's, whose errors say what to do."""

    def _serialize(self, tracer):
        data = super()._serialize(tracer)
        if file := os.environ.get("WORKBOOK_SENT"):  # `make ndif-test` compares with what the server counted
            with open(file, "a", encoding="utf-8") as counts:
                counts.write(f"{len(data)}\n")
        return data

    def finalize(self, content):
        """What comes back, in float32 where the server computes in 16 bits, as the local weights are."""
        return tree_map(_widened, super().finalize(content))

    def request(self, request, tracer):
        with _said(self.host):
            return super().request(request, tracer)

    def submit(self, tracer):
        with _said(self.host):
            return super().submit(tracer)

    def poll(self, tracer=None):
        with _said(self.host):
            return super().poll(tracer)


def _widened(value):
    return value.float() if isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.half) else value


@contextmanager
def _said(host: str) -> Iterator[None]:
    import httpx
    import websocket

    try:
        yield
    except (OSError, websocket.WebSocketException, httpx.HTTPError) as error:
        lost = isinstance(error, (websocket.WebSocketConnectionClosedException, ConnectionResetError))
        state = "went away while it worked" if lost else "does not answer"
        raise ServerError(f"The NDIF server at {host} {state} ({type(error).__name__}): {OWN}") from error
    except remote.RemoteError as error:
        said = str(error)
        if "API key" in said:
            raise ServerError(f"{host} does not know your key: set NDIF_API_KEY to the one that it gave you") from error
        if "MB at once" in said:
            raise ServerError(f"{said} Send fewer prompts or heads in one trace") from error
        if isinstance(error.__cause__, httpx.TransportError):
            raise ServerError(f"The NDIF server at {host} does not answer: {OWN}") from error
        raise


def remote_options() -> dict:
    """What to pass to `trace` and `generate`, by `WORKBOOK_REMOTE`: nothing without it;
    `1`, run on NDIF, or on the server that `NDIF_HOST` names; `local`, pack the trace
    as for a server, and run what was unpacked here.

    Raises:
        ValueError: the variable holds another word, or NDIF's own server is asked
            without a key in the environment.
    """
    where = os.environ.get("WORKBOOK_REMOTE", "")
    if where in ("", "0"):
        return {}
    if where not in ("1", "local"):
        raise ValueError(f"WORKBOOK_REMOTE is {where!r}: set it to 1 or local")
    if where == "1" and nnsight.CONFIG.API.HOST == PUBLIC and not os.environ.get("NDIF_API_KEY"):
        raise ValueError(
            "WORKBOOK_REMOTE=1 needs NDIF's key in the environment: set NDIF_API_KEY (free at login.ndif.us), "
            "or unset WORKBOOK_REMOTE to run on this machine"
        )
    nnsight.CONFIG.API.HOST = nnsight.CONFIG.API.HOST.rstrip("/")  # which nnsight puts paths behind
    # The source of `layer_output` and the like travels with each request.
    nnsight.register("utils")
    remote.RemoteBackend = PlainBackend  # what `remote=True` takes
    return {"remote": True if where == "1" else "local"}


@dataclass
class Sent:
    """What went out: how many requests, and how many bytes in all, compressed."""

    requests: int = 0
    bytes: int = 0


@contextmanager
def sent() -> Iterator[Sent]:
    """Count what the body's traces send. Without a server they are packed, counted, unpacked and run here."""
    so_far, serialize, before = Sent(), RequestModel.serialize, os.environ.get("WORKBOOK_REMOTE")

    def counted(tracer, compress=False):
        data = serialize(tracer, compress)
        so_far.requests += 1
        so_far.bytes += len(data if compress else zstandard.ZstdCompressor(level=6).compress(data))
        return data

    RequestModel.serialize = counted
    if before != "1":
        os.environ["WORKBOOK_REMOTE"] = "local"
    try:
        yield so_far
    finally:
        RequestModel.serialize = serialize
        if before is None:
            os.environ.pop("WORKBOOK_REMOTE", None)
        else:
            os.environ["WORKBOOK_REMOTE"] = before
