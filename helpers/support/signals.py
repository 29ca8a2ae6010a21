"""Turn Ctrl-C and other signals into a clean stop between two batches."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace


@contextmanager
def catch_stop_signals() -> Iterator[SimpleNamespace]:
    """Turn a signal to stop into something to look at between two batches.

    Signals: Ctrl-C or a notebook's stop button, SIGTERM (a cluster's time is up), SIGHUP (the
    terminal was closed). A second Ctrl-C interrupts at once. A signal that is ignored, as SIGHUP is
    under nohup, stays ignored.

    Yields:
        What has a `number`: the signal's, once one has come, and 0 before.
    """
    request = SimpleNamespace(number=0)

    def handle(number, frame):
        if request.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        request.number = number

    if threading.current_thread() is not threading.main_thread():
        yield request  # only the main thread may handle signals
        return
    names = ("SIGINT", "SIGTERM", "SIGHUP")  # Windows lacks the last
    known = [getattr(signal, name) for name in names if hasattr(signal, name)]
    caught = [n for n in known if signal.getsignal(n) not in (signal.SIG_IGN, None)]
    before = {number: signal.signal(number, handle) for number in caught}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
