"""What the service counts of who may call, how much, and what happens under pressure or outage."""

from prometheus_client import CollectorRegistry, Counter, Gauge

from serving.breaker import STATES


class GuardMetrics:
    """A part of `serving.metrics.Metrics`. `caller` is a name of the callers file, or empty for a stranger."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.calls = Counter(
            "ranking_caller_calls",
            "Calls by caller and what the gate said: admitted, no_key, unknown_key, method (not allowed), rate.",
            ["caller", "outcome"],
            registry=registry,
        )
        self.callers_refused = Counter(
            "ranking_callers_refused",
            "Changes of the callers file that were refused; the callers before go on.",
            registry=registry,
        )
        self.rate_store_errors = Counter(
            "ranking_rate_store_errors",
            "Calls whose rate was kept by this process alone, since the rate store did not answer.",
            registry=registry,
        )
        self.candidate_share = Gauge(
            "ranking_candidate_share",
            "Share of the optional candidates that requests may score now; 1 unless the service is busy.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.candidate_share.set(1)
        self.last_resort = Counter(
            "ranking_last_resort",
            "Answers made of what is in memory, since the pipeline was too late or failed.",
            registry=registry,
        )
        self.store_retries = Counter(
            "ranking_store_retries", "Reads of the store that were retried.", registry=registry
        )
        self.store_circuit = Gauge(
            "ranking_store_circuit",
            "1 for the state of the store's circuit breaker: closed, open, half-open.",
            ["state"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.enter_circuit_state(STATES[0])

    def enter_circuit_state(self, state: str) -> None:
        """Marks the state of the store's circuit breaker."""
        for one in STATES:
            self.store_circuit.labels(one).set(one == state)
