"""supervisord keeps the stack's programs: its generated configuration, and its control over a unix socket."""

import hashlib
import shlex
import subprocess
import sys
import tempfile
import xmlrpc.client
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from supervisor.xmlrpc import SupervisorTransport  # type: ignore[import-untyped]

from infra.processes import OWNER_VARIABLE, end, owned_by, wait_until, with_descendants
from infra.settings import inherited_environment

LOG_BYTES = 10_000_000
LOG_BACKUPS = 2
MAX_SOCKET_PATH = 100
"""Unix socket addresses hold 107 bytes; a longer path moves the socket to the temporary directory."""
UP_STATES = ("STARTING", "RUNNING")


class SupervisorError(RuntimeError):
    """One sentence: what supervisord refused or why it does not answer."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """One process that supervisord starts, watches, restarts and stops."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment that supervisord was started with."""
    directory: Path
    stop_wait_s: int = 10
    """From SIGTERM to SIGKILL, both sent to the program's process group."""


@dataclass(frozen=True, kw_only=True)
class ProgramInfo:
    """What supervisord knows of a program: `state` is STOPPED, STARTING, RUNNING, BACKOFF, EXITED or FATAL."""

    name: str
    state: str
    pid: int
    """0 when it does not run."""
    exit_status: int
    uptime_s: float

    @property
    def is_up(self) -> bool:
        """Whether it runs or is being started."""
        return self.state in UP_STATES


def render(programs: Iterable[Program], *, directory: Path, logs_dir: Path) -> str:
    """The configuration's text. Raises `ValueError` for a value that supervisord's format cannot carry."""
    head = f"""\
[unix_http_server]
file={_value(str(socket_path(directory)))}
chmod=0700

[supervisord]
logfile={_value(str(logs_dir / "supervisord.log"))}
logfile_maxbytes={LOG_BYTES}
logfile_backups={LOG_BACKUPS}
pidfile={_value(str(directory / "supervisord.pid"))}
childlogdir={_value(str(logs_dir))}
identifier=millrace

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""
    return head + "".join(_section(program, logs_dir) for program in programs)


def _section(program: Program, logs_dir: Path) -> str:
    environment = ",".join(f"{name}={_quoted(text)}" for name, text in sorted(program.environment.items()))
    return f"""
[program:{program.name}]
command={_value(shlex.join(program.command))}
directory={_value(str(program.directory))}
environment={_value(environment)}
autostart=false
autorestart=true
startsecs=1
startretries=5
stopsignal=TERM
stopwaitsecs={program.stop_wait_s}
stopasgroup=true
killasgroup=true
redirect_stderr=true
stdout_logfile={_value(str(log_path(logs_dir, program.name)))}
stdout_logfile_maxbytes={LOG_BYTES}
stdout_logfile_backups={LOG_BACKUPS}
"""


def _value(text: str) -> str:
    # supervisord expands %(…)s, and cuts a value at " ;" and " #", which it reads as comments.
    if "\n" in text or " ;" in text or " #" in text:
        raise ValueError(f"got {text!r}; a value in supervisord's configuration holds no line break, ' ;' or ' #'")
    return text.replace("%", "%%")


def _quoted(text: str) -> str:
    if '"' not in text:
        return f'"{text}"'
    if "'" in text:
        raise ValueError(f"got {text!r}; an environment value holds at most one kind of quote")
    return f"'{text}'"


def socket_path(directory: Path) -> Path:
    """Where supervisord listens: in its directory, or under a short name of its own when that path is too long."""
    near = directory / "supervisord.sock"
    if len(str(near)) <= MAX_SOCKET_PATH:
        return near
    digest = hashlib.sha256(str(directory).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"millrace-{digest}.sock"


def log_path(logs_dir: Path, program: str) -> Path:
    """Standard output and error of a program; older parts end in `.1`, `.2`."""
    return logs_dir / f"{program}.log"


class Supervisor:
    """One supervisord, in one directory. It outlives this process: `millrace up` ends and the stack stays."""

    def __init__(self, *, directory: Path, logs_dir: Path) -> None:
        self.directory = directory
        self.logs_dir = logs_dir
        self.conf = directory / "supervisord.conf"

    def is_running(self) -> bool:
        """Whether supervisord answers."""
        if not socket_path(self.directory).exists():
            return False
        try:
            return bool(self._call("getState")["statename"] == "RUNNING")
        except SupervisorError:
            return False

    def launch(self, programs: Iterable[Program]) -> None:
        """Writes the configuration and starts supervisord as a daemon; it starts no program by itself."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.logs_dir.mkdir(parents=True, exist_ok=True)
        self._configure(programs)
        command = [sys.executable, "-W", "ignore", "-m", "supervisor.supervisord", "-c", str(self.conf)]
        done = subprocess.run(command, env=self.environment(), capture_output=True, text=True, check=False)
        if done.returncode or not wait_until(self.is_running, 15):
            raise SupervisorError(
                f"supervisord did not start ({(done.stderr + done.stdout).strip() or 'no output'}); "
                f"see {self.logs_dir / 'supervisord.log'}."
            )

    def reconcile(self, programs: Iterable[Program]) -> None:
        """Makes these the programs of the running supervisord: others are stopped and removed, new ones known.

        A program that it knows already goes on as it is, with the command it was started by.
        """
        wanted = list(programs)
        names = {program.name for program in wanted}
        self._configure(wanted)
        self._call("reloadConfig")
        known = set(self.info())
        self.stop(known - names)
        for name in sorted(known - names):
            self._call("removeProcessGroup", name)
        for program in wanted:
            if program.name not in known:
                self._call("addProcessGroup", program.name)

    def _configure(self, programs: Iterable[Program]) -> None:
        # Environments hold secrets: the file is the owner's alone before anything is written to it.
        self.conf.touch(mode=0o600)
        self.conf.chmod(0o600)
        self.conf.write_text(render(programs, directory=self.directory, logs_dir=self.logs_dir))

    def environment(self) -> dict[str, str]:
        """What supervisord and everything below it inherit: the caller's variables and the owner's mark."""
        return {**inherited_environment(), OWNER_VARIABLE: str(self.conf)}

    def start(self, name: str) -> None:
        """Starts one program and returns at once; `info` tells what became of it."""
        self._call("startProcess", name, False)

    def stop(self, names: Iterable[str], timeout_s: float = 30.0) -> None:
        """Stops the programs together and waits until supervisord has seen them end."""
        wanted = set(names)
        for name, info in self.info().items():
            # BACKOFF counts as running: supervisord is about to start it again.
            if name in wanted and (info.is_up or info.state == "BACKOFF"):
                self._call("stopProcess", name, False)
        ended = ("STOPPED", "EXITED", "FATAL")
        wait_until(lambda: all(i.state in ended for n, i in self.info().items() if n in wanted), timeout_s)

    def info(self) -> dict[str, ProgramInfo]:
        """Every configured program by name; empty when supervisord does not run."""
        if not socket_path(self.directory).exists():
            return {}
        return {entry["name"]: _program_info(entry) for entry in self._call("getAllProcessInfo")}

    def processes(self) -> list[psutil.Process]:
        """supervisord and everything below it, orphans included."""
        return with_descendants(owned_by(self.conf))

    def shutdown(self, family: Iterable[psutil.Process]) -> int:
        """Ends supervisord and the family, which `processes` returned before anything was stopped.

        Returns how many processes needed SIGKILL.
        """
        told = self.is_running()
        if told:
            self._call("shutdown")
        killed = end(family, patience_s=2.0 if told else 0.0)
        # What the family started while it was being stopped.
        killed += end(self.processes(), patience_s=0.0)
        socket_path(self.directory).unlink(missing_ok=True)
        return killed

    def _call(self, method: str, *arguments: object) -> Any:
        transport = SupervisorTransport(None, None, f"unix://{socket_path(self.directory)}")
        try:
            with xmlrpc.client.ServerProxy("http://127.0.0.1", transport=transport) as server:
                return getattr(server.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as fault:
            raise SupervisorError(f"supervisord refused {method}{arguments}: {fault.faultString}.") from fault
        except (OSError, xmlrpc.client.ProtocolError) as error:
            raise SupervisorError(f"supervisord does not answer on {socket_path(self.directory)}: {error}.") from error


def _program_info(entry: Mapping[str, Any]) -> ProgramInfo:
    running = entry["statename"] == "RUNNING"
    return ProgramInfo(
        name=entry["name"],
        state=entry["statename"],
        pid=entry["pid"],
        exit_status=entry["exitstatus"],
        uptime_s=float(entry["now"] - entry["start"]) if running else 0.0,
    )
