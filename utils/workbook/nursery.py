"""The process whose forks are kernels (`kernels.py`): it imports the modules named on its command line, nothing else.

Run by its path, standard library only, so that a kernel finds no module of the course loaded.
"""

import gc
import importlib
import json
import os
import signal
import sys


def serve() -> None:
    """Answer the lines that come until there are no more: a kernel to start, or whether one has ended."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is no answer
    gc.disable()  # what is imported stays: to look for garbage in it costs a fifth of the time
    for name in ["ipykernel.kernelapp", *sys.argv[1:]]:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()
    running = set()
    for line in sys.stdin:
        asked = json.loads(line)
        if pid := asked.get("ended"):
            ended, status = os.waitpid(pid, os.WNOHANG)
            running.discard(ended)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        else:
            if (answer := os.fork()) == 0:
                return become_kernel(asked["start"], asked["env"], asked["cwd"])
            _own_group(answer)
            running.add(answer)
        print(json.dumps(answer), file=answers, flush=True)
    for pid in running:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def become_kernel(arguments: list[str], env: dict[str, str], cwd: str) -> None:
    """What `python -m ipykernel_launcher` does, with its signals and its ends of pipes as jupyter_client sets them."""
    _own_group(0)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    os.environ.clear()
    os.environ.update(env, JPY_PARENT_PID=str(os.getppid()))
    os.chdir(cwd)
    sys.argv = arguments
    from ipykernel.kernelapp import launch_new_instance

    # Whatever ends it: a kernel that can't start (its port was taken meanwhile) would else wait for its own sockets.
    try:
        launch_new_instance()
    except BaseException:
        os._exit(1)
    os._exit(0)


def _own_group(pid: int) -> None:
    """Signals to a kernel's group must reach it alone: said by it and by its parent, whichever comes first."""
    os.setpgid(pid, pid)


if __name__ == "__main__":
    del sys.path[0]  # this folder
    serve()
