"""The parent of a service's processes: starts them, starts again what dies, and ends all together."""

import asyncio
import ctypes
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event
from time import perf_counter

from prometheus_client.multiprocess import mark_process_dead

_log = logging.getLogger(__name__)

KEEPER, WORKER, SCRIBE = "keeper", "worker", "scribe"
ONE_THREAD = ("OPENBLAS_NUM_THREADS=1", "OMP_NUM_THREADS=1")
"""Processes and pipeline threads are the parallelism. Measured on two busy cores: the scores of 50,000 items by their
64 factors take 2.5 ms of processor time and 52 ms at the 99th percentile with OpenBLAS's own threads, 0.6 and 16 ms
with one."""
FIRST_BACK_OFF_S, MAX_BACK_OFF_S = 0.2, 10.0
"""How long after a death the next start is; doubled for each that dies again within `SETTLED_S`."""
SETTLED_S = 30.0
CANNOT_START = 3
"""Exit status of a child that another start would not help; it has said why. At the first start the service ends."""
END_S = 20.0
"""How long a child may take to end after SIGTERM: longer than a worker drains."""


class StartError(RuntimeError):
    """Why the service cannot start, in one sentence."""


def end_with_parent(parent: int | None) -> None:
    """Has the kernel end this process when its parent dies, on Linux; elsewhere it ends with its parent's orders only.

    Without a parent nothing happens. Call it first: a parent that has died meanwhile ends this process, too.
    """
    if parent is None:
        return
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit(f"the parent {parent} has ended.")


def stop_on_signal() -> Event:
    """What is set at SIGTERM or SIGINT. For a process without an event loop."""
    stop = Event()
    for signal_ in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_, lambda *_: stop.set())
    return stop


def reserve_port(host: str, port: int) -> socket.socket:
    """Takes a port for this service's workers, which share it by SO_REUSEPORT, and for nobody else.

    SO_REUSEPORT alone would let another service's workers share it silently, so the port is first bound without.
    The socket returned is never listened on. Raises `StartError`.
    """
    reserved = None
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
        reserved = socket.socket()
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((host, port))
    except OSError as error:
        if reserved is not None:
            reserved.close()
        raise StartError(f"port {port} of {host} is taken or cannot be used ({error}); give another --port.") from error
    return reserved


class Processes:
    """One keeper and some workers, each with a scribe where there is something to log slates to; all of them
    `python -m serving.ROLE --parent PID FLAGS`.
    """

    def __init__(
        self,
        *,
        workers: int,
        flags: Sequence[str],
        metrics_dir: Path,
        scribes: bool = True,
        pinned_to: Sequence[int] = (),
    ) -> None:
        """Workers stay on the cores `pinned_to` in turn; without any, on whichever the system chooses.

        Python's lock has a request's threads run one after the other, and each hand-over to another core finds that
        core's caches cold. Measured on two cores, in turns on one service: 24.2 ms a request free, 19.1 pinned.
        """
        self._flags = flags
        self._cores = [pinned_to[worker % len(pinned_to)] if pinned_to else None for worker in range(workers)]
        self._metrics_dir = metrics_dir
        self._scribes = scribes
        self._stopping = asyncio.Event()
        self._running: dict[int, str] = {}
        self._failed = False

    def stop(self) -> None:
        """Has `run` end everything and return."""
        self._stopping.set()

    async def run(self) -> bool:
        """Keeps the processes until `stop`; then ends the workers, which answer what is under way, the scribes, which
        write what that leaves, and the keeper.

        False when it ended because a child could not start.
        """
        keeping = [asyncio.create_task(self._keep(KEEPER, ()))]
        for number, core in enumerate(self._cores):
            pinned = () if core is None else ("--core", str(core))
            keeping.append(asyncio.create_task(self._keep(WORKER, ("--number", str(number), *pinned))))
            if self._scribes:
                keeping.append(asyncio.create_task(self._keep(SCRIBE, ("--number", str(number)))))
        await self._stopping.wait()
        for role in (WORKER, SCRIBE, KEEPER):
            await self._end(role)
        await asyncio.gather(*keeping)
        return not self._failed

    async def _keep(self, role: str, own_flags: Sequence[str]) -> None:
        back_off_s, is_first = FIRST_BACK_OFF_S, True
        while not self._stopping.is_set():
            started_s = perf_counter()
            status = await self._run_one(role, own_flags)
            if self._stopping.is_set():
                return
            if is_first and status == CANNOT_START:
                self._failed = True
                self.stop()
                return
            is_first = False
            back_off_s = FIRST_BACK_OFF_S if perf_counter() - started_s > SETTLED_S else back_off_s
            _log.error("a %s has ended with status %d; another starts in %.1f s", role, status, back_off_s)
            await self._wait(back_off_s)
            back_off_s = min(2 * back_off_s, MAX_BACK_OFF_S)

    async def _run_one(self, role: str, own_flags: Sequence[str]) -> int:
        # `env` adds to what is inherited.
        environment = ["env", f"PROMETHEUS_MULTIPROC_DIR={self._metrics_dir}", *ONE_THREAD]
        own_flags = ["--parent", str(os.getpid()), *own_flags]
        command = [sys.executable, "-m", f"serving.{role}", *own_flags, *self._flags]
        process = await asyncio.create_subprocess_exec(*environment, *command)
        self._running[process.pid] = role
        if self._stopping.is_set():
            process.terminate()
        status = await process.wait()
        del self._running[process.pid]
        mark_process_dead(process.pid, str(self._metrics_dir))  # type: ignore[no-untyped-call]
        return status

    async def _end(self, role: str) -> None:
        self._send(role, signal.SIGTERM)
        until_s = perf_counter() + END_S
        while role in self._running.values() and perf_counter() < until_s:
            await asyncio.sleep(0.02)
        self._send(role, signal.SIGKILL)

    def _send(self, role: str, signal_: signal.Signals) -> None:
        for pid in [pid for pid, running in self._running.items() if running == role]:
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.kill(pid, signal_)

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return
