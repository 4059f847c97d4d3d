"""What a worker counts. With several, the parent adds up counters and histograms and combines the gauges as each
says, over the workers that live (prometheus_client's multiprocess mode).
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0)
_AGE_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60, 600, 3_600, 86_400)


class Metrics:
    """All of the service's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._bundle_id: str | None = None
        self.requests = Counter(
            "ranking_requests", "Requests by method and status code.", ["method", "code"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "ranking_request_seconds",
            "Time from arrival to answer.",
            ["method"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.stage_seconds = Histogram(
            "ranking_stage_seconds", "Time of each stage.", ["stage"], buckets=_SECONDS, registry=self.registry
        )
        self.degraded = Counter(
            "ranking_degraded", "Answers in which the stage fell back.", ["stage"], registry=self.registry
        )
        self.shed = Counter("ranking_shed", "Requests refused because too many were under way.", registry=self.registry)
        self.in_flight = Gauge(
            "ranking_in_flight", "Requests under way.", registry=self.registry, multiprocess_mode="livesum"
        )
        self.candidates = Histogram(
            "ranking_candidates",
            "Candidates scored.",
            buckets=(0, 10, 50, 100, 200, 300, 500, 1_000, 10_000),
            registry=self.registry,
        )
        self.newest_event_age_seconds = Histogram(
            "ranking_newest_event_age_seconds",
            "Age of the user's newest event behind an answer.",
            buckets=_AGE_SECONDS,
            registry=self.registry,
        )
        self.slates = Counter(
            "ranking_slates", "Slates by fate: sent, failed, dropped.", ["fate"], registry=self.registry
        )
        self.bundle_info = Gauge(
            "ranking_bundle_info",
            "1 for a bundle that answers, 0 for one that did.",
            ["bundle_id"],
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.bundles_refused = Gauge(
            "ranking_bundles_refused",
            "Promotions refused since the start.",
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.catalogue_items = Gauge(
            "ranking_catalogue_items",
            "Items of the live catalogue.",
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.snapshot_age_seconds = Gauge(
            "ranking_item_snapshot_age_seconds",
            "Age of the item features.",
            registry=self.registry,
            multiprocess_mode="livemax",
        )
        self.records_refused = Gauge(
            "ranking_records_refused",
            "Records of a topic that break its contract.",
            ["topic"],
            registry=self.registry,
            multiprocess_mode="livemax",
        )

    def use_bundle(self, bundle_id: str) -> None:
        """Marks the bundle in use; one that was stays at 0."""
        if self._bundle_id is not None:
            self.bundle_info.labels(self._bundle_id).set(0)
        self._bundle_id = bundle_id
        self.bundle_info.labels(bundle_id).set(1)
