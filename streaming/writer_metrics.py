"""What the online writer tells Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

BATCH_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0)


class WriterMetrics:
    """Counters and gauges of one writer process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.rows = Counter(
            "millrace_writer_rows",
            "Records read, by outcome: written, expired (past retention, not stored) or tombstone (ignored)",
            ["topic", "outcome"],
            registry=self.registry,
        )
        self.malformed = Counter(
            "millrace_writer_malformed", "Records that are no rows; the writer stops", ["topic"], registry=self.registry
        )
        self.outcomes = Counter(
            "millrace_stream_outcomes",
            "Records of the events topic by what became of them: counted, duplicate, too_late, dead",
            ["outcome"],
            registry=self.registry,
        )
        self.dead_letters = Counter(
            "millrace_stream_dead_letters", "Dead letters by reason", ["reason"], registry=self.registry
        )
        self.store_errors = Counter(
            "millrace_writer_store_errors", "Attempts at which the store was away", registry=self.registry
        )
        self.kafka_errors = Counter(
            "millrace_writer_kafka_errors", "Errors that Kafka reported", registry=self.registry
        )
        self.store_up = Gauge(
            "millrace_writer_store_up", "1 if the last attempt found the store", registry=self.registry
        )
        self.partitions = Gauge("millrace_writer_partitions", "Partitions read by this process", registry=self.registry)
        self.batch_seconds = Histogram(
            "millrace_writer_batch_seconds",
            "From the first record of a batch to its rows in the store",
            buckets=BATCH_SECONDS,
            registry=self.registry,
        )
        self.lag_rows = Gauge(
            "millrace_writer_lag_rows", "Records not yet in the store", ["topic", "partition"], registry=self.registry
        )
        self.freshness_ms = Gauge(
            "millrace_writer_freshness_ms",
            "Now less the newest event time of the last batch, when it was written",
            ["topic"],
            registry=self.registry,
        )
