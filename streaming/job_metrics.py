"""What the stream job tells Prometheus: Flink's own figures, asked for by its REST interface at each scrape."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from features.clock import wall_clock_ms

TIMEOUT_S = 2.0
SOURCE_METRICS = {
    "pendingRecords": ("millrace_stream_lag_records", "Records of the events topic that the job has not read yet"),
    "numRecordsIn": ("millrace_stream_records_read", "Records of the events topic that this run has read"),
}
"""Flink's metric of the source: ours, and what it says."""


class JobCollector(Collector):
    """Reads one Flink cluster. Without an answer it says only that the job is down."""

    def __init__(self, rest_url: str, now_ms: Callable[[], int]) -> None:
        """`now_ms` is the clock of the checkpoint's age."""
        self._rest_url = rest_url
        self._now_ms = now_ms

    def collect(self) -> Iterator[Metric]:
        """The figures now."""
        try:
            jobs = self._get("/jobs/overview")["jobs"]
            running = [job for job in jobs if job["state"] == "RUNNING"]
            found = [*self._source(running[0]["jid"]), *self._checkpoints(running[0]["jid"])] if running else []
        except (urllib.error.URLError, OSError, KeyError, ValueError):
            running, found = [], []
        yield GaugeMetricFamily("millrace_stream_up", "1 while the job runs", value=len(running))
        yield from found

    def _source(self, job: str) -> Iterator[Metric]:
        vertices = self._get(f"/jobs/{job}")["vertices"]
        (source,) = [vertex["id"] for vertex in vertices if "KafkaSource" in vertex["name"]]
        path = f"/jobs/{job}/vertices/{source}/metrics"
        # Subtasks come as `0.Source__KafkaSource….pendingRecords`.
        wanted = {
            each["id"]: each["id"].rsplit(".", 1)[1]
            for each in self._get(path)
            if ".Source__KafkaSource" in each["id"] and each["id"].rsplit(".", 1)[1] in SOURCE_METRICS
        }
        totals = dict.fromkeys(SOURCE_METRICS, 0.0)
        for each in self._get(f"{path}?get={','.join(wanted)}") if wanted else ():
            totals[wanted[each["id"]]] += float(each["value"])
        lag, read = (SOURCE_METRICS[name] for name in totals)
        yield GaugeMetricFamily(*lag, value=totals["pendingRecords"])
        yield CounterMetricFamily(*read, value=totals["numRecordsIn"])

    def _checkpoints(self, job: str) -> Iterator[Metric]:
        said = self._get(f"/jobs/{job}/checkpoints")
        failed = said["counts"]["failed"]
        yield CounterMetricFamily("millrace_stream_checkpoints_failed", "Failed checkpoints of this run", value=failed)
        newest = said["latest"]["completed"]
        if newest is None:
            return
        ended_ms = newest["trigger_timestamp"] + newest["end_to_end_duration"]
        figures = {
            "millrace_stream_checkpoint_age_seconds": (
                "Since the newest checkpoint was complete",
                (self._now_ms() - ended_ms) / 1_000,
            ),
            "millrace_stream_checkpoint_duration_seconds": (
                "Of the newest complete checkpoint",
                newest["end_to_end_duration"] / 1_000,
            ),
            "millrace_stream_checkpoint_bytes": ("State in the newest complete checkpoint", newest["state_size"]),
        }
        for name, (said_of_it, value) in figures.items():
            yield GaugeMetricFamily(name, said_of_it, value=value)

    def _get(self, path: str) -> Any:
        url = f"{self._rest_url}{path}"  # always http, on this machine
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310
            return json.load(answer)


def serve_metrics(rest_port: int, port: int) -> Callable[[], None]:
    """Serves the figures on 127.0.0.1; returns what ends it. Raises `OSError` when the port is taken."""
    registry = CollectorRegistry(auto_describe=False)
    server, _ = start_http_server(port, addr="127.0.0.1", registry=registry)
    # After the start, since registering scrapes once.
    registry.register(JobCollector(f"http://127.0.0.1:{rest_port}", wall_clock_ms))
    return server.shutdown
