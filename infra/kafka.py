"""A real single-node Kafka broker from its jars (KRaft, broker and controller in one), and the project's topics."""

import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from tenacity import retry, retry_if_exception, stop_after_delay, wait_fixed

from features.erasure import SEGMENT_MS
from features.names import Topics
from features.tiles import FAMILIES, TILE_TOPIC_MS
from infra.jvm import shared_classes

CLUSTER_ID = "MillraceLocalBroker0001"
PROBE_S = 2.0
ANSWER_S = 30.0
"""How long a question to the broker may take."""
Offsets = Mapping[tuple[str, int], int]
"""The next offset of each (topic, partition)."""


@dataclass(frozen=True, kw_only=True)
class BrokerConfig:
    """One broker on the loopback interface."""

    data_dir: Path
    """Holds the log segments, `server.properties` and `log4j2.properties`."""
    jars_dir: Path
    """Where `infra/poms/kafka` was copied to."""
    port: int
    controller_port: int
    heap_mb: int = 512
    jvm_args: str = ""
    """More flags of its JVM."""

    @property
    def bootstrap_servers(self) -> str:
        """What clients are given."""
        return f"127.0.0.1:{self.port}"

    @property
    def _java(self) -> list[str]:
        logging = f"-Dlog4j2.configurationFile={self.data_dir / 'log4j2.properties'}"
        flags = [f"-Xmx{self.heap_mb}m", "-XX:+UseG1GC", shared_classes("kafka"), *self.jvm_args.split(), logging]
        return ["java", *flags, "-cp", f"{self.jars_dir}/*"]

    @property
    def command(self) -> list[str]:
        """Starts the broker in the foreground; `format_broker` must have run once before."""
        return [*self._java, "kafka.Kafka", str(self.data_dir / "server.properties")]


def format_broker(config: BrokerConfig) -> None:
    """Writes the broker's files and formats its storage. A formatted directory is left as it is."""
    config.data_dir.mkdir(parents=True, exist_ok=True)
    properties = config.data_dir / "server.properties"
    properties.write_text(_server_properties(config))
    (config.data_dir / "log4j2.properties").write_text(_LOGGING)
    if (config.data_dir / "log" / "meta.properties").exists():
        return
    tool = ["kafka.tools.StorageTool", "format", "--standalone", "-t", CLUSTER_ID, "-c", str(properties)]
    done = subprocess.run([*config._java, *tool], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"cannot format the broker's storage in {config.data_dir}: {done.stdout}{done.stderr}")


def _server_properties(config: BrokerConfig) -> str:
    listeners = f"PLAINTEXT://127.0.0.1:{config.port},CONTROLLER://127.0.0.1:{config.controller_port}"
    lines = {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{config.controller_port}",
        "listeners": listeners,
        "advertised.listeners": listeners,
        "controller.listener.names": "CONTROLLER",
        "log.dirs": str(config.data_dir / "log"),
        "auto.create.topics.enable": "false",
        "num.partitions": "4",
        # One node holds every replica.
        "offsets.topic.replication.factor": "1",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.num.partitions": "4",
        "group.initial.rebalance.delay.ms": "0",
        # Simulated history has timestamps in the past: keep every segment unless a topic says otherwise.
        "log.retention.ms": "-1",
    }
    return "".join(f"{name}={value}\n" for name, value in lines.items())


_LOGGING = """\
status=error
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d{ISO8601} %p %c{1}: %m%n
rootLogger.level=warn
rootLogger.appenderRef.console.ref=console
"""


def derived_topics(topics: Topics) -> tuple[str, ...]:
    """What the stream job writes of one version; batch adds day tiles to the tile topics."""
    outcomes = (topics.interactions, topics.duplicates, topics.too_late, topics.dead_letters)
    return (*outcomes, *(topics.tiles(family.name) for family in FAMILIES))


def topic_configs(topics: Topics) -> dict[str, dict[str, str]]:
    """Every topic with its configuration. Facts keep everything; tiles and items are compacted by key, and tiles go
    when no store would take them any more.
    """
    keep = {"retention.ms": "-1"}
    compact = {"cleanup.policy": "compact"}
    expire = {"cleanup.policy": "compact,delete", "retention.ms": str(TILE_TOPIC_MS), "segment.ms": str(SEGMENT_MS)}
    tiles = {topics.tiles(family.name): expire for family in FAMILIES}
    kept = (topics.events, topics.slates, topics.too_late, topics.duplicates, topics.interactions)
    # A refused record of the largest size grows by a third in base64.
    letters = {**keep, "max.message.bytes": str(2 * 1024 * 1024)}
    # A Rank of 10,000 items, as far as it is logged, with all features.
    slates = {**keep, "max.message.bytes": str(4 * 1024 * 1024)}
    return {
        **dict.fromkeys(kept, keep),
        topics.slates: slates,
        topics.dead_letters: letters,
        topics.items: compact,
        **tiles,
    }


def create_topics(bootstrap_servers: str, topics: Topics, partitions: int = 2) -> None:
    """Creates the project's topics; those that exist are left as they are. Raises `KafkaException` otherwise."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    existing = set(admin.list_topics(timeout=30).topics)
    wanted = [
        NewTopic(name, num_partitions=partitions, replication_factor=1, config=config)
        for name, config in topic_configs(topics).items()
        if name not in existing
    ]
    for name, future in (admin.create_topics(wanted) if wanted else {}).items():
        try:
            future.result(timeout=30)
        except KafkaException as error:
            raise RuntimeError(f"cannot create the topic {name} on {bootstrap_servers}: {error}") from error


def delete_topics(bootstrap_servers: str, topics: Topics) -> None:
    """Deletes the derived topics of one version, as far as they exist. Raises `KafkaException`."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    existing = set(admin.list_topics(timeout=ANSWER_S).topics)
    unwanted = [name for name in derived_topics(topics) if name in existing]
    for future in (admin.delete_topics(unwanted) if unwanted else {}).values():
        future.result(timeout=ANSWER_S)


# How far somebody has come.


def broker_answers(bootstrap_servers: str) -> bool:
    """Whether a broker answers within `PROBE_S`."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    try:
        return bool(admin.list_topics(timeout=PROBE_S).brokers)
    except KafkaException:
        return False


def topic_spans(consumer: Consumer, topics: Iterable[str]) -> dict[tuple[str, int], tuple[int, int]]:
    """The first offset of each partition, and the one that its next record will have. Raises `KafkaException`."""
    places = [
        (topic, partition)
        for topic in topics
        for partition in consumer.list_topics(topic, timeout=ANSWER_S).topics[topic].partitions
    ]
    return {place: _span(consumer, TopicPartition(*place)) for place in places}


def _is_moving(error: BaseException) -> bool:
    """Whether the partition is without a leader for the moment, as after its topic was made."""
    moving = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE)
    return isinstance(error, KafkaException) and error.args[0].code() in moving


@retry(retry=retry_if_exception(_is_moving), stop=stop_after_delay(ANSWER_S), wait=wait_fixed(0.2), reraise=True)
def _span(consumer: Consumer, place: TopicPartition) -> tuple[int, int]:
    return consumer.get_watermark_offsets(place, timeout=ANSWER_S)


def partition_spans(bootstrap_servers: str, topic: str) -> dict[int, tuple[int, int]]:
    """`topic_spans` of one topic by partition, for who has no consumer. Raises `KafkaException`."""
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": "millrace-spans", "log_level": 0})
    try:
        return {partition: span for (_, partition), span in topic_spans(consumer, [topic]).items()}
    finally:
        consumer.close()


def end_offsets(consumer: Consumer, topics: Iterable[str]) -> dict[tuple[str, int], int]:
    """The offset that the next record of each partition will have. Raises `KafkaException`."""
    return {place: end for place, (_, end) in topic_spans(consumer, topics).items()}


def committed_offsets(consumer: Consumer, places: Iterable[tuple[str, int]]) -> dict[tuple[str, int], int]:
    """What the consumer's group has committed; a partition without a commit is left out. Raises `KafkaException`."""
    asked = [TopicPartition(*place) for place in places]
    found = consumer.committed(asked, timeout=ANSWER_S)
    return {(place.topic, place.partition): place.offset for place in found if place.offset >= 0}


def records_left(ends: Offsets, reached: Offsets) -> int:
    """Records between the two; a partition that is not in `reached` counts from its first offset."""
    return sum(max(end - reached.get(place, 0), 0) for place, end in ends.items())
