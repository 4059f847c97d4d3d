"""What the service counts, in the Prometheus text format on the loopback interface."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0)
_AGE_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60, 600, 3_600, 86_400)


class RuleMetrics:
    """What filters, rules and the rerank stage did to the answers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.filtered = Counter(
            "ranking_filtered_items",
            "Items of the catalogue left out by each filter, summed over the answers.",
            ["reason"],
            registry=registry,
        )
        self.placed = Counter(
            "ranking_placed_items",
            "Positions that were explored or pinned, and candidates that were deduplicated.",
            ["how"],
            registry=registry,
        )
        self.info = Gauge(
            "ranking_rules_info", "1 for the version of the rules in use.", ["version"], registry=registry
        )
        self.refused = Gauge(
            "ranking_rules_refused", "Changes of the rules file refused since the start.", registry=registry
        )
        self.unknown = Gauge(
            "ranking_rules_unknown_names",
            "Items, creators, categories and languages of the rules that the catalogue does not hold.",
            registry=registry,
        )

    def use(self, version: str) -> None:
        """Marks the rules in use."""
        self.info.clear()
        self.info.labels(version).set(1)


class Metrics:
    """All of the service's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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
        self.in_flight = Gauge("ranking_in_flight", "Requests under way.", registry=self.registry)
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
        self.rules = RuleMetrics(self.registry)
        self.logged_requests = Counter(
            "ranking_logged_requests",
            "Requests by fate in the request log: kept, dropped.",
            ["fate"],
            registry=self.registry,
        )
        self.feedback_events = Counter(
            "ranking_feedback_events",
            "Events of Feedback by fate: accepted, refused, unacknowledged.",
            ["fate"],
            registry=self.registry,
        )
        self.bundle_info = Gauge(
            "ranking_bundle_info", "1 for the bundle in use.", ["bundle_id"], registry=self.registry
        )
        self.bundles_refused = Gauge(
            "ranking_bundles_refused", "Promotions refused since the start.", registry=self.registry
        )
        self.catalogue_items = Gauge("ranking_catalogue_items", "Items of the live catalogue.", registry=self.registry)
        self.snapshot_age_seconds = Gauge(
            "ranking_item_snapshot_age_seconds", "Age of the item features.", registry=self.registry
        )
        self.records_refused = Gauge(
            "ranking_records_refused", "Records of a topic that break its contract.", ["topic"], registry=self.registry
        )

    def serve(self, port: int) -> None:
        """Answers scrapes on 127.0.0.1. Raises `OSError` when the port is taken."""
        start_http_server(port, addr="127.0.0.1", registry=self.registry)

    def use_bundle(self, bundle_id: str) -> None:
        """Marks the bundle in use."""
        self.bundle_info.clear()
        self.bundle_info.labels(bundle_id).set(1)
