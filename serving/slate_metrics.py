"""What becomes of served slates, counted by the worker that served them and by its scribe."""

from prometheus_client import CollectorRegistry, Counter

FATES = ("sent", "failed", "dropped")
LOG_FATES = ("kept", "dropped")


class SlateMetrics:
    """A part of `serving.metrics.Metrics` in a worker, and all that a scribe counts. Every fate starts at 0, since
    to an alert a counter that appears with 1 has not increased.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.slates = Counter("ranking_slates", "Slates by fate: sent, failed, dropped.", ["fate"], registry=registry)
        self.logged_requests = Counter(
            "ranking_logged_requests",
            "Requests by fate in their log: kept, dropped.",
            ["fate"],
            registry=registry,
        )
        for fate in FATES:
            self.slates.labels(fate)
        for fate in LOG_FATES:
            self.logged_requests.labels(fate)
