"""An interruption reaches the command, wherever it falls."""

import _thread
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_AGAIN = 0.05  # seconds: most callbacks of C have returned by then; if not, the interruption is lost and raised once more


@contextmanager
def interruptions_reach_us() -> Iterator[None]:
    """Interrupt again, a moment later, where Python can't raise a KeyboardInterrupt: in a finaliser, or in a callback of C as numba has them.

    Python prints and forgets such an exception (`sys.unraisablehook`), and the command would go on as if nobody had pressed Ctrl-C, or fail, for what the
    callback had to do is not done: an exception that follows is the interruption's.
    """
    report, timers = sys.unraisablehook, list[threading.Timer]()

    def hook(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            report(unraisable)
            return
        timers.append(threading.Timer(_AGAIN, _thread.interrupt_main))
        timers[-1].start()

    sys.unraisablehook = hook
    try:
        yield
    except Exception as error:
        if timers:
            raise KeyboardInterrupt from error
        raise
    finally:
        sys.unraisablehook = report
        for timer in timers:
            timer.cancel()
