"""The streaming chain as the benchmarks run it: broker, Flink job and writer, with the stack's own settings."""

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from confluent_kafka import Consumer

from features import specs
from features.names import Topics
from features.repo import FeatureRepo, apply_repo, write_repo
from infra.kafka import BrokerConfig, broker_answers, create_topics, end_offsets, format_broker
from infra.programs import giving_way
from infra.settings import ROOT, environment_python, jars_dir, load_settings
from tests.bench.report import BenchError
from tests.conftest import free_port, running

READY_S = 120.0


@dataclass
class Chain:
    """What runs, and where. Everything it writes is in a directory of its own and goes with it."""

    directory: Path
    broker: BrokerConfig
    topics: Topics
    stack: ExitStack
    pids: dict[str, int] = field(default_factory=dict)

    @property
    def bootstrap_servers(self) -> str:
        """What Kafka clients are given."""
        return self.broker.bootstrap_servers

    @property
    def repo(self) -> Path:
        """The feature repo, once the writer was started."""
        return self.directory / "repo"

    def start(self, name: str, command: list[str], env: dict[str, str] | None = None) -> None:
        """Starts a program of the chain, whose log is `<name>.log`."""
        process = self.stack.enter_context(running(command, self.directory / f"{name}.log", env))
        self.pids[name] = process.pid

    def start_flink(self) -> None:
        """The stream job, with the stack's parallelism, heap and niceness."""
        settings = load_settings()
        flags = ["--bootstrap-servers", self.bootstrap_servers, "--checkpoint-dir", str(self.directory / "flink")]
        flags += ["--jars-dir", str(jars_dir("flink")), "--rest-port", str(free_port())]
        flags += ["--metrics-port", str(free_port())]
        flags += ["--parallelism", str(settings.flink_parallelism)]
        command = [str(environment_python("stream")), "-m", "streaming.job", *flags]
        jvm_args = f"-Xmx{settings.flink_heap_mb}m"
        self.start("flink", giving_way(command, settings.flink_niceness), {"JVM_ARGS": jvm_args})

    def start_writer(self, store: str | None = None) -> None:
        """The online writer, into SQLite where no other store is given."""
        location = store or str(self.directory / "online.db")
        write_repo(FeatureRepo(directory=self.repo, location=location, offline_root=self.directory / "offline"))
        apply_repo(self.repo)
        flags = ["--bootstrap-servers", self.bootstrap_servers, "--feature-repo", str(self.repo)]
        command = [str(environment_python("serve")), "-m", "streaming.writer", *flags, "--metrics-port", "0"]
        self.start("writer", command)

    def end_offset(self, topic: str) -> int:
        """How many records the topic's partitions have got, all together."""
        with _consumer(self.bootstrap_servers) as consumer:
            return sum(end_offsets(consumer, [topic]).values())

    def cpu_s(self, name: str) -> float:
        """Processor time of a program and all below it so far."""
        return sum(sum(process.cpu_times()[:2]) for process in self._family(name))

    def memory_mb(self, name: str) -> float:
        """Resident memory of a program and all below it."""
        return sum(process.memory_info().rss for process in self._family(name)) / 1e6

    def check(self) -> None:
        """Raises `BenchError` with the last lines of a program that has ended."""
        for name, pid in self.pids.items():
            if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                said = (self.directory / f"{name}.log").read_text().splitlines()[-5:]
                raise BenchError(f"{name} has ended: {' '.join(said)}")

    def _family(self, name: str) -> list[psutil.Process]:
        own = psutil.Process(self.pids[name])
        return [own, *own.children(recursive=True)]


@contextmanager
def open_chain() -> Iterator[Chain]:
    """A broker with the project's topics; the other programs are started by the benchmark. Ends all of them."""
    directory = Path(tempfile.mkdtemp(prefix="bench-", dir=_var()))
    try:
        with ExitStack() as stack:
            jars, heap_mb = jars_dir("kafka"), load_settings().kafka_heap_mb
            broker = BrokerConfig(
                data_dir=directory / "kafka",
                jars_dir=jars,
                port=free_port(),
                controller_port=free_port(),
                heap_mb=heap_mb,
            )
            format_broker(broker)
            chain = Chain(directory=directory, broker=broker, topics=Topics(version=specs.version()), stack=stack)
            chain.start("kafka", broker.command)
            wait_until(lambda: broker_answers(broker.bootstrap_servers), READY_S, "the broker", chain)
            create_topics(broker.bootstrap_servers, chain.topics, load_settings().topic_partitions)
            yield chain
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def wait_until(condition, timeout_s: float, what: str, chain: Chain, every_s: float = 0.2) -> None:
    """Polls until the condition holds. Raises `BenchError` after the deadline or when a program has ended."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        chain.check()
        if time.monotonic() > deadline:
            raise BenchError(f"waited {timeout_s:.0f} s in vain for {what}; logs in {chain.directory}.")
        time.sleep(every_s)


def _var() -> Path:
    directory = ROOT / "var" / "bench"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextmanager
def _consumer(bootstrap_servers: str) -> Iterator[Consumer]:
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "bench", "log_level": 0})
    try:
        yield consumer
    finally:
        consumer.close()
