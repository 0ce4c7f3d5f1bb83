"""What an answer may use of the machine: time, and place in the notebook for what it prints."""

import ctypes
import io
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

WALL = 10  # by the clock an answer has so many times its processor time: a busy machine must not fail it
AGAIN = 0.05  # seconds between two attempts to stop an answer that goes on
STUCK = (
    "\nThe check can't stop this answer: it is in one long call of a library, or it holds all signals back. Interrupt "
    "the kernel (the ■ above); if that does not help, restart it.\n"
)


class TookTooLong(BaseException):
    """Raised inside code that runs past its limit; not an Exception, so that `except Exception` does not hide it."""


class Interrupted(KeyboardInterrupt):
    """The learner's own interrupt, to be told from a KeyboardInterrupt that an answer raises."""


def _in_main_thread() -> bool:
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()


def limited(seconds: float, call: Callable, *args):
    """`call(*args)`, stopped by `TookTooLong` once it has used so many seconds of its thread's processor time, which a
    busy machine does not stretch; `WALL` times as much by the clock stops one that sleeps.

    The alarm signal interrupts it, and then every line that it runs, so that no bare `except` can swallow it. A
    watchdog beside the main thread stops one that ignores the signal, and says so where neither helps (one huge
    matrix product). In other threads than the main one there is no limit.
    """
    if not _in_main_thread():
        return call(*args)

    main, started, used = threading.get_ident(), time.monotonic(), time.thread_time()
    stopper, done, lock, out = _Stopper(sys._getframe()), threading.Event(), threading.Lock(), sys.stdout
    ending = []

    def over(thread_time: float) -> bool:
        return thread_time - used >= seconds or time.monotonic() - started >= WALL * seconds

    def alarm(signum, frame):
        if over(time.thread_time()) and not ending:
            signal.setitimer(signal.ITIMER_REAL, AGAIN, AGAIN)
            stopper.stop(frame, TookTooLong)

    class Late(TookTooLong):
        def __init__(self):  # runs where it is caught
            super().__init__()
            stopper.insist(sys._getframe(1), TookTooLong)

    def watch():
        while not over(_thread_time_of(main)):
            if done.wait(min(seconds, 1.0)):
                return
        tries = 0
        while not done.wait(AGAIN if tries else 1.0):  # the alarm has the first turn
            with lock:
                if not done.is_set():
                    _raise_in(main, Late)
            tries += 1
            if tries == 100:
                print(STUCK, file=out, flush=True)

    def end():
        ending.append(True)
        stopper.end()
        with lock:  # after it no more is sent, and what was sent is raised
            done.set()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    before = signal.signal(signal.SIGALRM, alarm)
    signal.setitimer(signal.ITIMER_REAL, min(seconds, 1.0), min(seconds, 1.0))
    threading.Thread(target=watch, name="watchdog of a check", daemon=True).start()
    try:
        return call(*args)
    finally:
        while True:  # no call before the try: it would be a place for an alarm to come in
            try:
                end()
                break
            except TookTooLong:  # a last alarm may come in there
                pass


def _thread_time_of(thread: int) -> float:
    """Seconds of processor time of another thread, where the system tells (Linux), else of the whole process."""
    if hasattr(time, "pthread_getcpuclockid"):
        return time.clock_gettime(time.pthread_getcpuclockid(thread))
    return time.process_time()


def _raise_in(thread: int, error: type[BaseException]) -> None:
    """Have `error` raised in another thread at its next step. (To take it back with NULL leaves CPython 3.11 with a
    flag up, in which a traced call never begins.)"""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))


class _Stopper:
    """Raises in a running frame, and again at the next line inside of the frame `outside`, in case that a bare
    `except` swallowed it."""

    def __init__(self, outside):
        self.outside, self.trace, self.frames, self.tries = outside, sys.gettrace(), [], 0

    def stop(self, frame, error: type[BaseException]):
        self.insist(frame, error)
        raise error

    def insist(self, frame, error: type[BaseException]):
        """Have `error` raised at the next line of this frame or of one that called it."""

        def again(inner, event, arg):
            if event == "line":
                # Tracing ends with the error: a signal soon after is for a handler around this one.
                self.tries += 1
                if error is TookTooLong:
                    signal.setitimer(signal.ITIMER_REAL, 2e-6 * 2 ** (self.tries % 6), AGAIN)
                raise error
            return again

        while frame is not None and frame is not self.outside:
            if not frame.f_code.co_filename.startswith(CHECKS):
                frame.f_trace = again
                self.frames.append(frame)
            frame = frame.f_back
        if self.frames:
            sys.settrace(lambda *new_call: None)

    def end(self):
        if self.frames:
            sys.settrace(self.trace)
        while self.frames:
            self.frames.pop().f_trace = None


CHECKS = str(Path(__file__).parent)  # what stands here cleans up after an answer: it is left in peace


def interruptible(call: Callable, *args):
    """`call(*args)`, in which the learner's interrupt arrives as `Interrupted`, also through one bare `except`."""
    if not _in_main_thread():
        return call(*args)
    stopper = _Stopper(sys._getframe())

    def interrupt(signum, frame):
        stopper.stop(frame, Interrupted)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        return call(*args)
    finally:
        stopper.end()
        signal.signal(signal.SIGINT, before)


class Printed(io.TextIOBase):
    """Passes on what is printed, up to `limit` characters in all; the rest is counted."""

    def __init__(self, out, limit: int):
        self.out, self.left, self.lost, self.muted = out, limit, 0, False

    def write(self, text: str) -> int:
        if self.muted:
            return len(text)
        shown = text[: self.left]
        self.left -= len(shown)
        self.lost += len(text) - len(shown)
        if shown:
            self.out.write(shown)
        return len(text)

    def flush(self) -> None:
        self.out.flush()


@contextmanager
def printed(limit: int):
    """What the body prints comes out up to so many characters, then a line that says how many were left out."""
    streams = [Printed(stream, limit) for stream in (sys.stdout, sys.stderr)]
    out = sys.stdout
    try:
        with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
            yield streams
    finally:
        lost = sum(stream.lost for stream in streams)
        if lost:
            print(f"\n… {lost:,} more characters that your function printed", file=out)
