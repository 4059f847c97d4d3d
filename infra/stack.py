"""The local stack as one thing: start in order, stop to the last grandchild, status and memory.

with Stack(load_settings()) as stack:
    stack.start(progress)
    ...
"""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil

from infra.airflow import write_secrets
from infra.processes import memory_mb, port_is_free, port_owner, with_descendants
from infra.programs import Context, Step, StepError, last_line, select, steps_of
from infra.settings import LOOPBACK, PREFIX, Settings
from infra.streams import Stream, save_streams, saved_streams, version_to_run
from infra.supervisor import Program, Supervisor, log_path

Progress = Callable[[str], None]


class StackError(RuntimeError):
    """One sentence for the user: what is in the way or failed, where to look, what to do."""


@dataclass(frozen=True, kw_only=True)
class ProgramStatus:
    """One program of the stack now."""

    name: str
    state: str
    """supervisord's word: RUNNING, STOPPED, BACKOFF, …"""
    pid: int
    uptime_s: float
    memory_mb: float
    """Of the program and everything below it."""
    ports: tuple[int, ...]
    log: str


class Stack:
    """One local stack. Several `Stack` objects of equal settings stand for the same stack.

    As a context manager it stops the stack on leaving, however that comes about.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.supervisor = Supervisor(directory=settings.var_dir / "supervisor", logs_dir=settings.logs_dir)
        self._settings_file = settings.var_dir / "supervisor" / "settings.json"

    def start(self, progress: Progress, programs: Sequence[str] | None = None) -> None:
        """Starts the named programs and what they need (all for None), and returns when every one is ready.

        What runs already is left alone. When one does not come up, everything that this call started is stopped
        and `StackError` says in one sentence which and where its log is. `progress` receives one line at a time.
        """
        launched = not self.supervisor.is_running()
        streams = self._first_streams() if launched else self.streams()
        try:
            steps = select(programs, steps_of(streams))
        except ValueError as error:
            raise StackError(str(error)) from None
        running = {name for name, info in self.supervisor.info().items() if info.is_up}
        self._check_settings_agree(launched)
        self._check_ports(steps, running)
        try:
            if launched:
                self._launch(streams)
            self._start_steps(steps, running, progress)
        except BaseException as error:
            with _uninterrupted():
                if launched:
                    self.stop()
                else:
                    self.supervisor.stop({step.name for step in steps} - running)
            if isinstance(error, RuntimeError | OSError):
                raise StackError(f"{str(error).rstrip('.')}; what this start had begun is stopped.") from error
            raise

    def stop(self, progress: Progress = lambda _: None) -> int:
        """Stops everything, Kafka last, grandchildren and orphans included; returns how many needed SIGKILL.

        A stack that does not run is no error.
        """
        with _uninterrupted():
            family = self.supervisor.processes()
            if not family:
                return 0
            if self.supervisor.is_running():
                names = [name for name in self.supervisor.info() if name != "kafka"]
                progress("stopping the programs")
                self.supervisor.stop(names)
                progress("stopping kafka")
                self.supervisor.stop(["kafka"])
            killed = self.supervisor.shutdown(family)
            progress(f"stopped {len(family)} processes" + (f", {killed} of them by SIGKILL" if killed else ""))
            return killed

    def status(self) -> list[ProgramStatus]:
        """Every program in the order of starting; empty when the stack does not run."""
        infos = self.supervisor.info()
        return [self._status_of(step) for step in steps_of(self.streams()) if step.name in infos]

    def streams(self) -> list[Stream]:
        """The streams of the running stack, the one that is read first."""
        return saved_streams(self.settings)

    def use_streams(self, streams: Sequence[Stream]) -> None:
        """Makes these the running stack's streams: stops and removes the others, makes new ones known.

        `start` starts them. Whatever else runs goes on; done again, it changes nothing.
        """
        known = self.streams()
        # Interrupted before the end, the list still has everything that may run.
        save_streams(self.settings, [*known, *(stream for stream in streams if stream not in known)])
        self.supervisor.reconcile(_programs(steps_of(streams), self.settings))
        save_streams(self.settings, streams)

    def _first_streams(self) -> list[Stream]:
        """What a stack that is not up yet will run: the version that the store names."""
        from features.backends import StoreUnavailableError

        try:
            return [Stream(version=version_to_run(self.settings))]
        except StoreUnavailableError as error:
            raise StackError(str(error)) from error

    def memory_mb(self) -> float:
        """Memory of all processes of the stack together, shared pages counted once."""
        return memory_mb(self.supervisor.processes())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # Before the start.

    def _check_settings_agree(self, launched: bool) -> None:
        if launched or not self._settings_file.is_file():
            return
        ours, theirs = self.settings.environment(), json.loads(self._settings_file.read_text())
        differ = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
        if differ:
            raise StackError(
                f"the stack in {self.settings.var_dir} runs with another {', '.join(differ)}; stop it first with "
                f"millrace down, or choose another {PREFIX}STACK."
            )

    def _check_ports(self, steps: Sequence[Step], running: set[str]) -> None:
        for step in steps:
            for name in step.ports:
                port = step.settings(self.settings).ports[name]
                if step.name not in running and not port_is_free(LOOPBACK, port):
                    raise StackError(
                        f"port {port} of {step.name} is taken by {port_owner(port)}; stop that, or set "
                        f"{PREFIX}{name.upper()} or {PREFIX}PORT_BASE to another number."
                    )

    def _launch(self, streams: Sequence[Stream]) -> None:
        orphans = self.supervisor.processes()
        if orphans:
            # supervisord was killed; what it left would write to the same files.
            self.supervisor.shutdown(orphans)
        self.supervisor.directory.mkdir(parents=True, exist_ok=True)
        self.settings.logs_dir.mkdir(parents=True, exist_ok=True)
        # The programs' environments carry Airflow's keys.
        write_secrets(self.settings)
        self._settings_file.write_text(json.dumps(self.settings.environment()))
        save_streams(self.settings, streams)
        self.supervisor.launch(_programs(steps_of(streams), self.settings))

    # The start itself: every step waits for its own predecessors, so independent ones overlap.

    def _start_steps(self, steps: Sequence[Step], running: set[str], progress: Progress) -> None:
        context = Context(
            settings=self.settings, cancelled=threading.Event(), environment=self.supervisor.environment()
        )
        futures: dict[str, Future[None]] = {}
        with ThreadPoolExecutor(max_workers=len(steps)) as pool:
            try:
                for step in steps:
                    before = [futures[name] for name in step.after]
                    known = _is_done(step, steps, running)
                    futures[step.name] = pool.submit(self._run_step, step, before, known, context, progress)
                done, _ = wait(futures.values(), return_when=FIRST_EXCEPTION)
            finally:
                context.cancelled.set()
        errors = [error for future in done if (error := future.exception())]
        if errors:
            raise errors[0]

    def _run_step(
        self, step: Step, before: Sequence[Future[None]], known: bool, context: Context, progress: Progress
    ) -> None:
        for future in before:
            future.result()
        if context.cancelled.is_set():
            return
        began = time.monotonic()
        if step.prepare and not known:
            step.prepare(context)
        if step.program and not known:
            self.supervisor.start(step.name)
        if step.program and step.ready:
            self._wait_ready(step, context)
        if not context.cancelled.is_set():
            took = "already there" if known else f"ready after {time.monotonic() - began:.1f} s"
            progress(f"{step.name}: {took}")

    def _wait_ready(self, step: Step, context: Context) -> None:
        assert step.ready is not None
        deadline = time.monotonic() + self.settings.start_timeout_s
        log = log_path(self.settings.logs_dir, step.name)
        while not context.cancelled.is_set():
            info = self.supervisor.info()[step.name]
            if not info.is_up:
                raise StepError(f"{step.name} ended while starting ({last_line(log)}); see {log}")
            if info.state == "RUNNING" and step.ready(step.settings(self.settings)):
                return
            if time.monotonic() > deadline:
                waited_s = self.settings.start_timeout_s
                raise StepError(f"{step.name} was not ready after {waited_s:.0f} s ({last_line(log)}); see {log}")
            context.cancelled.wait(0.2)

    def _status_of(self, step: Step) -> ProgramStatus:
        info = self.supervisor.info()[step.name]
        try:
            family = with_descendants([psutil.Process(info.pid)]) if info.pid else []
        except psutil.NoSuchProcess:
            family = []
        return ProgramStatus(
            name=step.name,
            state=info.state,
            pid=info.pid,
            uptime_s=info.uptime_s,
            memory_mb=memory_mb(family),
            ports=tuple(step.settings(self.settings).ports[name] for name in step.ports),
            log=str(log_path(self.settings.logs_dir, step.name)),
        )


def _programs(steps: Sequence[Step], settings: Settings) -> list[Program]:
    return [step.program(step.settings(settings)) for step in steps if step.program]


def _is_done(step: Step, steps: Sequence[Step], running: set[str]) -> bool:
    """Whether the program runs; for a preparation, whether every program that it is for does."""
    if step.program:
        return step.name in running
    served = [other for other in steps if step.name in other.after or (step.group and other.group == step.group)]
    return bool(served) and all(other.name in running for other in served if other.program)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Ignores Ctrl-C and SIGTERM while the stack is being stopped: half a stop would leave processes behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
