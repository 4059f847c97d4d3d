"""The JVM behind PyFlink: started with our flags, known by its process, and never outliving Python.

PyFlink starts its gateway JVM with flags from the environment and forgets the process, so a killed Python can leave
a JVM that still writes to Kafka. `install_launcher` has PyFlink start it here instead.
"""

import ctypes
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO

from pyflink import java_gateway, pyflink_gateway_server

log = logging.getLogger("millrace.flink")

HEAP_MB = 1_024
"""Checkpoint coordination, JSON, Kafka clients and the mini-cluster; state lives in RocksDB, outside the heap."""
JVM_FLAGS = (
    f"-Xmx{HEAP_MB}m",
    "-XX:+UseG1GC",
    "-XX:MaxMetaspaceSize=320m",
    # Kafka's and Netty's buffers; what RocksDB takes is bounded by Flink's managed memory.
    "-XX:MaxDirectMemorySize=384m",
    # A heap that is full ends the process, and the supervisor starts it again from the last checkpoint.
    "-XX:+ExitOnOutOfMemoryError",
)
"""The environment's JVM_ARGS come after these, so they win."""
ALLOCATOR_ARENAS = "2"
"""glibc would keep one arena a thread, and RocksDB's fragments in each of them."""
STOP_GRACE_S = 5.0
"""How long the JVM may take to end by itself before SIGKILL; state is in the last checkpoint either way."""

_LOGGING = """\
status=error
rootLogger.level={level}
rootLogger.appenderRef.console.ref=console
appender.console.type=Console
appender.console.name=console
appender.console.target=SYSTEM_ERR
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d{{ISO8601}} %p %c{{1}}: %m%n
# Two metrics of Flink's own sinks share a name; it says so for every sink and subtask.
logger.metrics.name=org.apache.flink.metrics.MetricGroup
logger.metrics.level=error
"""


class GatewayProcess:
    """The gateway's process, once PyFlink has asked for it. One a Python process, as PyFlink itself has it."""

    def __init__(self, work_dir: Path, log_level: str) -> None:
        self.work_dir = work_dir
        self.log_level = log_level
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self, env: dict[str, str], args: list[str]) -> subprocess.Popen[bytes]:
        """Starts the JVM; PyFlink calls it with the environment to use and the gateway's class."""
        # A killed JVM leaves its temporary files; they are ours alone.
        shutil.rmtree(self.work_dir, ignore_errors=True)
        (self.work_dir / "tmp").mkdir(parents=True)
        config = self.work_dir / "log4j2.properties"
        config.write_text(_LOGGING.format(level=self.log_level))
        env |= {"LOG4J_PROPERTIES": str(config), "FLINK_LOG_DIR": str(self.work_dir)}
        env.setdefault("MALLOC_ARENA_MAX", ALLOCATOR_ARENAS)
        self.process = subprocess.Popen(
            _command(env, args, self.work_dir / "tmp"),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=_prepared(os.getpid()),
            env=env,
        )
        assert self.process.stderr is not None
        threading.Thread(target=_copy, args=(self.process.stderr,), daemon=True).start()
        log.info("the JVM runs as process %d", self.process.pid)
        return self.process

    def is_alive(self) -> bool:
        """Whether the JVM runs; False before it was started."""
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """Ends the JVM: SIGTERM, then SIGKILL after the grace. Nothing to do where none runs."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def install_launcher(gateway: GatewayProcess) -> None:
    """Has PyFlink start its gateway by `gateway.launch`. Call it before anything else of PyFlink."""
    java_gateway.launch_gateway_server_process = gateway.launch


def _command(env: dict[str, str], args: list[str], tmp_dir: Path) -> list[str]:
    server = pyflink_gateway_server
    server.prepare_environment_variables(env)
    program = server.construct_program_args(args)
    flags = [f"-Djava.io.tmpdir={tmp_dir}", *JVM_FLAGS, *env.get("JVM_ARGS", "").split(), *server.get_jvm_opts(env)]
    log_flags = server.construct_log_settings(env)
    classpath = ["-cp", server.construct_flink_classpath(env)]
    return [server.find_java_executable(), *flags, *log_flags, *classpath, program.main_class, *program.other_args]


def _prepared(parent_pid: int) -> Callable[[], None]:
    """What the child does before it becomes the JVM: ignores Ctrl-C, which is Python's to handle, and asks Linux for
    SIGKILL when Python dies (PyFlink's own watchdog sees it only where the JVM can still be asked to exit).
    """
    set_death_signal = None
    if sys.platform == "linux":
        set_death_signal = ctypes.CDLL(None, use_errno=True).prctl

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if set_death_signal is not None:
            pr_set_pdeathsig = 1
            set_death_signal(pr_set_pdeathsig, signal.SIGKILL)
            if os.getppid() != parent_pid:
                os.kill(os.getpid(), signal.SIGKILL)

    return prepare


def _copy(stream: IO[bytes]) -> None:
    """Passes the JVM's log on to ours. Unread, the pipe would fill and block the JVM."""
    for line in stream:
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
