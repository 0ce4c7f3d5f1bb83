"""`ray`, with more patience: its head waits 30 seconds for its raylet, and that 15 for its agents to write down their
ports. Both are too few on a busy machine, and can't be set. All ports are chosen beforehand here.

Runs in NDIF's environment.
"""

import inspect
import time

from ray import _raylet
from ray._private import node, services
from ray.scripts.scripts import main

start_raylet = services.start_raylet


def with_ports_known(*args, **kwargs):
    given = inspect.signature(start_raylet).bind(*args, **kwargs).arguments
    for name in ("METRICS_AGENT", "METRICS_EXPORT", "DASHBOARD_AGENT_LISTEN", "RUNTIME_ENV_AGENT"):
        port = given[f"{name.lower()}_port"]
        _raylet.persist_port(given["session_dir"], given["node_id"], getattr(_raylet, f"{name}_PORT_NAME"), port)
    return start_raylet(*args, **kwargs)


class Patient:
    """The module `time` with a slow clock."""

    @staticmethod
    def monotonic() -> float:
        return time.monotonic() / 10

    def __getattr__(self, name):
        return getattr(time, name)


services.start_raylet = with_ports_known
node.time = Patient()
main()
