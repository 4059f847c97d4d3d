"""What the online writer is told, and the topics it reads."""

import argparse
import socket
from dataclasses import dataclass
from pathlib import Path

from features import specs
from features.ledger import Outcome
from features.names import Topics
from features.tiles import FAMILIES


@dataclass(frozen=True, kw_only=True)
class WriterConfig:
    """One process of the online writer. Processes of one group share the topics' partitions."""

    bootstrap_servers: str
    feature_repo: Path
    """Directory written by `features.repo`: it names the store."""
    topics: Topics
    metrics_port: int
    """Prometheus metrics on 127.0.0.1; 0 takes a free port, which is logged."""
    group: str = "millrace-online-writer"
    max_batch: int = 60_000
    """Rows of all topics written at once, a transaction a topic: bounds memory and the time that other writers wait.
    Rows of a large batch share pages, which are then written once (infra/adr/0013)."""
    linger_ms: int = 3
    """How long a batch waits for more rows after its first."""
    expire_every_s: float = 600.0
    """How often tiles past their retention are removed."""
    fixed_now_ms: int | None = None
    """The instant against which retention is counted; the wall clock when None."""

    def __post_init__(self) -> None:
        if self.max_batch < 1 or self.linger_ms < 0 or self.expire_every_s <= 0:
            raise ValueError(
                f"online writer: got max_batch={self.max_batch}, linger_ms={self.linger_ms}, "
                f"expire_every_s={self.expire_every_s}; allowed: at least 1, at least 0, above 0."
            )

    @property
    def instance(self) -> str | None:
        """The process's lasting name in its group, so that one that was killed takes its partitions up at once.

        None without a port of its own: Kafka then waits for the session to end before it hands them on.
        """
        return f"{socket.gethostname()}-{self.metrics_port}" if self.metrics_port else None

    @property
    def families(self) -> dict[str, str]:
        """The tile family of each tile topic."""
        return {self.topics.tiles(family.name): family.name for family in FAMILIES}

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """What became of the records of the events topic that stand in each topic."""
        return {
            self.topics.interactions: Outcome.COUNTED,
            self.topics.duplicates: Outcome.DUPLICATE,
            self.topics.too_late: Outcome.TOO_LATE,
            self.topics.dead_letters: Outcome.DEAD,
        }

    @property
    def subscribed(self) -> list[str]:
        """Every topic that is read."""
        return [*self.families, *self.outcomes]


def parse_flags(arguments: list[str] | None = None) -> WriterConfig:
    """The configuration from command-line flags. Raises `ValueError` or exits with 2, as argparse does."""
    parser = argparse.ArgumentParser(prog="python -m streaming.writer", description="Tiles and interactions to store")
    parser.add_argument("--bootstrap-servers", required=True)
    parser.add_argument("--feature-repo", type=Path, required=True, help="directory written by features.repo")
    parser.add_argument("--metrics-port", type=int, required=True, help="on 127.0.0.1; 0 for a free one")
    parser.add_argument("--group", default=WriterConfig.group, help="consumer group (default %(default)s)")
    parser.add_argument("--topics-version", default=specs.version(), help="suffix of the derived topics")
    parser.add_argument("--max-batch", type=int, default=WriterConfig.max_batch)
    parser.add_argument("--linger-ms", type=int, default=WriterConfig.linger_ms)
    parser.add_argument("--expire-every-s", type=float, default=WriterConfig.expire_every_s)
    parser.add_argument("--now-ms", type=int, help="fixed instant for retention; default the wall clock")
    flags = parser.parse_args(arguments)
    return WriterConfig(
        bootstrap_servers=flags.bootstrap_servers,
        feature_repo=flags.feature_repo,
        topics=Topics(version=flags.topics_version),
        metrics_port=flags.metrics_port,
        group=flags.group,
        max_batch=flags.max_batch,
        linger_ms=flags.linger_ms,
        expire_every_s=flags.expire_every_s,
        fixed_now_ms=flags.now_ms,
    )
