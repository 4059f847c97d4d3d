"""The kernel's priorities of single threads, so that what can wait gives way to requests on the same core."""

import os
import sys
import threading

LOWEST, LOW, BELOW_WORKERS = 19, 10, 5
"""Nice values: of a thread that may be kept waiting for as long as others run, of one that gets a tenth of what a
worker gets then, and of one that gets a third."""


def lower(niceness: int) -> None:
    """Lowers the priority of this thread, and of those that it starts from now on, to that value unless it is lower
    already; it cannot be raised again. Only Linux knows priorities of threads: elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, max(niceness, os.getpriority(os.PRIO_PROCESS, thread)))
