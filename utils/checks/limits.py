"""Stop a learner's endless loop without killing the kernel."""

import signal
import threading
import time
from contextlib import contextmanager


class TookTooLong(BaseException):
    """Raised inside code that runs past its limit; not an Exception, so that `except Exception` does not hide it."""


@contextmanager
def time_limit(seconds: float):
    """Raise `TookTooLong` in the body once it has used so many seconds of its thread's processor time, which a busy
    machine does not stretch; ten times as much by the clock ends one that sleeps.

    Works through the alarm signal, hence in the main thread of Unix systems only (where a notebook's cells run);
    elsewhere the body runs without a limit. A single call into C code (one huge matrix product) is not interrupted.
    The alarm comes every second and goes on, for loops that swallow it with a bare `except`.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    used, started = time.thread_time(), time.monotonic()

    def stop(signum, frame):
        if time.thread_time() - used >= seconds or time.monotonic() - started >= 10 * seconds:
            raise TookTooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, min(seconds, 1.0), min(seconds, 1.0))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
