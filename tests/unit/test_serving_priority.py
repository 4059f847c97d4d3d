"""A thread's priority is its own."""

import os
from concurrent.futures import ThreadPoolExecutor
from threading import get_native_id

from serving import priority


def _niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, get_native_id())


def test_a_thread_gives_way_and_the_others_do_not() -> None:
    before = _niceness()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        assert one.submit(_niceness).result() == before
        one.submit(priority.lower, priority.LOW).result()
        assert one.submit(_niceness).result() == max(before, priority.LOW)
        one.submit(priority.lower, priority.LOWEST).result()
        assert one.submit(_niceness).result() == priority.LOWEST
        one.submit(priority.lower, priority.BELOW_WORKERS).result()
        assert one.submit(_niceness).result() == priority.LOWEST, "it is never raised"
        assert other.submit(_niceness).result() == _niceness() == before
