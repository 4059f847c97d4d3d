"""Fixtures shared by the tests: free ports, processes that always end, and one real Kafka broker a session."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO

import pytest

from features import specs
from features.names import Topics
from infra.jvm import QUICK_COMPILER

# PySpark takes a process whose main module has no file, as a test process of pytest-xdist, for a run of its doctests
# and ends it.
sys.modules["__main__"].__dict__.setdefault("__file__", None)

ROOT = Path(__file__).resolve().parent.parent
JARS = ROOT / ".jars"
TEST_STACK = {f"{name}_jvm_args": QUICK_COMPILER for name in ("kafka", "flink", "spark")} | {
    "flink_niceness": 1,
    "airflow_niceness": 2,
}
"""Settings of a stack that lives for minutes, beside other tests that give way to nobody."""
GOLDEN = ROOT / "tests" / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--regenerate-golden` writes the golden files anew, to be reviewed as a diff."""
    parser.addoption("--regenerate-golden", action="store_true", help="write tests/golden/ anew instead of comparing")


@pytest.fixture
def matches_golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares a text with the golden file of a name; fails with what to do when they differ."""

    def check(name: str, got: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--regenerate-golden"):
            path.write_text(got)
        golden = path.read_text() if path.exists() else ""
        assert got == golden, f"{path} is not what the code says: review the change, then pytest --regenerate-golden"

    return check


def free_port() -> int:
    """A TCP port of the loopback interface that nothing listens on now."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def free_port_base(worker_id: str) -> int:
    """A number for MILLRACE_PORT_BASE above which nothing listens, below the ports that the system hands out.

    Up to four test processes that run side by side draw from hundreds of their own, so never the same.
    """
    from infra.processes import port_is_free

    first = 20_000 + 100 * (int(worker_id.removeprefix("gw")) % 4 if worker_id != "master" else 0)
    for base in random.sample(range(first, 32_000, 400), k=30):
        if all(port_is_free("127.0.0.1", base + offset) for offset in range(100)):
            return base
    pytest.fail("no 100 free ports in a row between 20000 and 32000")


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 60.0, every_s: float = 0.05) -> object:
    """Polls until the condition is truthy and returns it; fails with `what` after the deadline."""
    deadline = time.monotonic() + timeout_s
    while not (got := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"waited {timeout_s} s in vain for {what}")
        time.sleep(every_s)
    return got


@contextmanager
def running(command: list[str], log: Path, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a command in a process group of its own and ends the whole group, by its id, on leaving."""
    with log.open("ab") as out:
        process = _start(command, out, env)
        try:
            yield process
        finally:
            _end(process)


def _start(command: list[str], out: IO[bytes], env: dict[str, str] | None) -> subprocess.Popen[bytes]:
    full = {**os.environ, **(env or {})}
    return subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, env=full, process_group=0)


def _end(process: subprocess.Popen[bytes]) -> None:
    for sent, grace_s in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, sent)
        except ProcessLookupError:
            break
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            continue
    process.wait(10)


@contextmanager
def running_broker(data_dir: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A real broker without topics: its bootstrap servers and its process."""
    from infra.kafka import BrokerConfig, broker_answers, format_broker

    config = BrokerConfig(
        data_dir=data_dir,
        jars_dir=JARS / "kafka",
        port=free_port(),
        controller_port=free_port(),
        heap_mb=384,
        jvm_args=QUICK_COMPILER,
    )
    format_broker(config)
    with running(config.command, data_dir / "broker.log") as process:
        wait_for(
            lambda: broker_answers(config.bootstrap_servers),
            f"the broker on {config.bootstrap_servers}; see {data_dir}/broker.log",
        )
        yield config.bootstrap_servers, process


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Bootstrap servers of a real broker that lives for the session, without topics."""
    with running_broker(tmp_path_factory.mktemp("kafka")) as (bootstrap_servers, _):
        yield bootstrap_servers


@pytest.fixture
def topics(kafka_broker: str, request: pytest.FixtureRequest) -> Topics:
    """Fresh topics of one test on the shared broker, each name prefixed with the test's own."""
    from infra.kafka import create_topics

    own = f"{specs.version()}x{abs(hash(request.node.nodeid)):x}"
    names = Topics(version=own, events=f"events.{own}", items=f"items.{own}", slates=f"slates.{own}")
    create_topics(kafka_broker, names)
    return names
