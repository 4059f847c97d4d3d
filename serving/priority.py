"""The kernel's priorities of single threads, so that what can wait gives way to requests on the same core."""

import os
import threading

LOWEST, LOW = 19, 10
"""Nice values: of a thread that may be kept waiting for as long as others run, and of one that gets a tenth then."""


def lower(niceness: int) -> None:
    """Lowers the priority of this thread; it cannot be raised again."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
