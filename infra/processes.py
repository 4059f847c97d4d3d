"""Processes of this machine: who holds a port, what belongs to a stack, how much memory it takes, and ending it."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

OWNER_VARIABLE = "SUPERVISED_BY"
"""Set for every process of a stack to its supervisor's configuration, so that orphans are found too."""


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now. Connections that linger after a close do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def free_ports(host: str, count: int, *, besides: Iterable[int] = ()) -> list[int]:
    """Distinct ports that nothing listens on now and that are none of `besides`."""
    taken, found = set(besides), list[int]()
    with contextlib.ExitStack() as probes:
        while len(found) < count:
            probe = probes.enter_context(socket.socket())
            probe.bind((host, 0))
            port = int(probe.getsockname()[1])
            if port not in taken:
                found.append(port)
    return found


def port_owner(port: int) -> str:
    """Who listens on a TCP port, as words for an error message."""
    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections(kind="tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr[1] == port
            if listens and connection.pid:
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return "another process"


def owned_by(owner: Path) -> list[psutil.Process]:
    """Every live process that was started under the supervisor with this configuration, orphans included.

    They bear its mark, or are in the session of one that does and leads it: a process that gives itself a title, as
    Airflow's do, writes over its environment.
    """
    # Of another user's process psutil says None.
    processes = list(psutil.process_iter(["environ"]))
    marked = {p.pid for p in processes if (p.info["environ"] or {}).get(OWNER_VARIABLE) == str(owner)}
    return [process for process in processes if process.pid in marked or _session(process.pid) in marked]


def _session(pid: int) -> int:
    """The process that leads its session; 0 where it has ended meanwhile."""
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def with_descendants(roots: Iterable[psutil.Process]) -> list[psutil.Process]:
    """The processes and all below them, once each."""
    found: dict[int, psutil.Process] = {}
    for root in roots:
        found[root.pid] = root
        with contextlib.suppress(psutil.NoSuchProcess):
            found.update((child.pid, child) for child in root.children(recursive=True))
    return list(found.values())


def end(processes: Iterable[psutil.Process], *, patience_s: float, grace_s: float = 3.0) -> int:
    """Ends the processes: waits for those that were told to, then SIGTERM, then SIGKILL; returns how many needed that.

    psutil compares creation times, so a pid that was given to another program meanwhile is left alone.
    """
    _, alive = psutil.wait_procs(list(processes), timeout=patience_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(alive, timeout=grace_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=grace_s)
    return len(alive)


def memory_mb(processes: Iterable[psutil.Process]) -> float:
    """Proportional set size of the processes together, so that shared pages count once; RSS where it is unknown."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            try:
                total += process.memory_full_info().pss
            except (psutil.AccessDenied, AttributeError):
                total += process.memory_info().rss
    return total / 1e6


class PeakMemory:
    """Samples a figure in a thread and keeps the largest: `with PeakMemory(stack.memory_mb) as peak: …; peak.mb`."""

    def __init__(self, sample_mb: Callable[[], float], every_s: float = 1.0) -> None:
        self.mb = 0.0
        self._sample_mb = sample_mb
        self._every_s = every_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peak-memory", daemon=True)

    def _watch(self) -> None:
        while not self._done.is_set():
            self.mb = max(self.mb, self._sample_mb())
            self._done.wait(self._every_s)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()


def wait_until(condition: Callable[[], bool], timeout_s: float, every_s: float = 0.1) -> bool:
    """Polls until the condition holds; False after the deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every_s)
    return True
