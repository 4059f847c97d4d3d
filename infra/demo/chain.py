"""The running chain as the demo uses it: publish, wait until features are served, train through Airflow, ask."""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from confluent_kafka import Consumer

from features.items import Item
from features.tiles import FAMILIES
from infra.airflow import DAG_IDS
from infra.airflow_client import AirflowClient, now
from infra.demo import DemoError
from infra.demo.accounts import account, count_records
from infra.demo.phases import Phases
from infra.kafka import committed_offsets, end_offsets, records_left
from infra.programs import topics
from infra.ranking import ranking_client
from infra.settings import Settings
from infra.stack import Stack
from serving.client import RankingClient
from streaming.producer import publish_items, publish_records
from streaming.records import Ledger, Record
from streaming.writer_config import WriterConfig

CHAIN_TIMEOUT_S = 900.0
FEATURES_TIMEOUT_S = 300.0
SERVICE_TIMEOUT_S = 60.0
INGEST = DAG_IDS[0]


@dataclass(frozen=True, kw_only=True)
class Chain:
    """One stack and its Airflow, told about by `phases`."""

    settings: Settings
    stack: Stack
    phases: Phases
    airflow: AirflowClient
    began: datetime

    @classmethod
    def start(cls, stack: Stack, phases: Phases) -> "Chain":
        """Starts every program of the stack. Raises `StackError`."""
        stack.start(phases.say)
        return cls(
            settings=stack.settings,
            stack=stack,
            phases=phases,
            airflow=AirflowClient(stack.settings),
            began=now(),
        )

    def publish(self, items: Iterable[Item], records: Iterable[Record], now_ms: int) -> None:
        """Sends the catalogue, then the records, through Kafka. Raises `ProduceError`."""
        names, servers = topics(), self.settings.bootstrap_servers
        sent = publish_items(items, bootstrap_servers=servers, topic=names.items, now_ms=now_ms)
        self.phases.say(f"{sent:,} items published")
        sent = publish_records(
            records, bootstrap_servers=servers, topic=names.events, on_progress=self._every(100_000, "records sent")
        )
        self.phases.say(f"{sent:,} records published")

    def _every(self, step: int, what: str) -> Any:
        def progress(count: int) -> None:
            if count % step == 0:
                self.phases.say(f"{count:,} {what}")

        return progress

    def train(self) -> None:
        """Triggers the lake ingest and waits for the chain of DAGs that it sets off, up to a promoted bundle.

        Raises `AirflowError` naming the task that failed.
        """
        self.airflow.wait_for_dags(DAG_IDS)
        since = now()
        self.airflow.set_paused(DAG_IDS, paused=False)
        self.airflow.trigger(INGEST)
        self.airflow.wait_for_chain(DAG_IDS, since, self.phases.say, CHAIN_TIMEOUT_S)

    def settle(self, ledger: Ledger) -> dict[str, Any]:
        """Brings the lake up to date through Airflow, without retraining, and returns the accounts."""
        self.wait_for_features(ledger)
        self._ingest_again()
        return account(ledger, self.settings.lake_dir, self.settings.bootstrap_servers, topics())

    def _ingest_again(self) -> None:
        # The DAGs downstream would follow the ingest's asset.
        since = now()
        self.airflow.set_paused([dag_id for dag_id in DAG_IDS if dag_id != INGEST], paused=True)
        self.airflow.trigger(INGEST)
        self.airflow.wait_for_chain([INGEST], since, self.phases.say, CHAIN_TIMEOUT_S)

    def dag_runs(self) -> list[dict[str, Any]]:
        """Every Airflow run since the start, with its state and seconds, on the phases' clock."""
        return [
            {
                "dag_id": run.dag_id,
                "run_id": run.run_id,
                "state": run.state,
                "seconds": round(run.seconds or 0.0, 1),
                "start_s": round(run.started_at.timestamp() - self.phases.began_ms / 1_000, 1),
            }
            for run in self.airflow.runs(self.began)
            if run.started_at
        ]

    def wait_for_features(self, ledger: Ledger) -> None:
        """Returns when the stream has counted every event of the ledger and the writer has stored every row.

        Raises `DemoError` when that takes too long.
        """
        deadline = time.monotonic() + FEATURES_TIMEOUT_S
        while (left := self._unstored(ledger)) > 0:
            if time.monotonic() > deadline:
                raise DemoError(
                    f"{left:,} rows had not reached the online store after {FEATURES_TIMEOUT_S:.0f} s; "
                    f"see flink.log and writer.log in {self.settings.logs_dir}."
                )
            time.sleep(0.3)

    def _unstored(self, ledger: Ledger) -> int:
        names, servers = topics(), self.settings.bootstrap_servers
        uncounted = len(ledger.counted_ids) - count_records(servers, names.interactions)
        if uncounted > 0:
            return uncounted
        stored = [names.interactions, *(names.tiles(family.name) for family in FAMILIES)]
        return sum(group_lag(servers, WriterConfig.group, topic) for topic in stored)

    def client(self) -> RankingClient:
        """A client of the service, once it serves the promoted bundle. Raises `DemoError` when it does not."""
        client = ranking_client(self.settings)
        deadline = time.monotonic() + SERVICE_TIMEOUT_S
        while not client.serving():
            if time.monotonic() > deadline:
                client.close()
                raise DemoError(
                    f"the service did not take the promoted bundle within {SERVICE_TIMEOUT_S:.0f} s; "
                    f"see {self.settings.logs_dir / 'serving.log'}."
                )
            time.sleep(0.2)
        return client

    def wait_for_champion(self, client: RankingClient) -> None:
        """Returns when the service answers with the champion. Raises `DemoError` when it does not."""
        wanted, deadline = self.champion()[0], time.monotonic() + SERVICE_TIMEOUT_S
        while (got := client.recommend("nobody", count=1).bundle_id) != wanted:
            if time.monotonic() > deadline:
                raise DemoError(
                    f"the service still serves {got} {SERVICE_TIMEOUT_S:.0f} s after {wanted} was promoted; "
                    f"see {self.settings.logs_dir / 'serving.log'}."
                )
            time.sleep(0.2)

    def champion(self) -> tuple[str, dict[str, Any]]:
        """The promoted bundle's id and the metrics that its manifest holds."""
        pointer = json.loads((self.settings.bundles_dir / "champion.json").read_text())
        bundle_id = str(pointer["bundle_id"])
        manifest = json.loads((self.settings.bundles_dir / bundle_id / "manifest.json").read_text())
        return bundle_id, manifest["metrics"]


def group_lag(bootstrap_servers: str, group: str, topic: str) -> int:
    """Records of the topic that the consumer group has not committed yet."""
    consumer = Consumer({"bootstrap.servers": bootstrap_servers, "group.id": group, "enable.auto.commit": False})
    try:
        ends = end_offsets(consumer, [topic])
        return records_left(ends, committed_offsets(consumer, ends))
    finally:
        consumer.close()
