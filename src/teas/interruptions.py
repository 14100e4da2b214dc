"""An interruption reaches the command, wherever it falls."""

import _thread
import sys
import threading
from typing import Any

_AGAIN = 0.05  # seconds: most callbacks of C have returned by then; if not, the interruption is lost and raised once more


def raise_lost_interruptions() -> None:
    """Interrupt again, a moment later, wherever Python can't raise a KeyboardInterrupt: in a finaliser, or in a callback of C as numba has them.

    Python prints and forgets such an exception (`sys.unraisablehook`), and the command would go on as if nobody had pressed Ctrl-C.
    """
    report = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            report(unraisable)
            return
        again = threading.Timer(_AGAIN, _thread.interrupt_main)
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
