"""What a worker counts; the parent adds up and answers scrapes (`serving.server`).

Labels have few values each: methods, gRPC codes, stages, sources of the bundle, words of a fixed set, and the bundles
of one run. Each gauge says how the processes of one service are merged (`prometheus_client`'s multiprocess mode): the
worst of them where one can be worse than the others.
"""

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from serving.guard_metrics import GuardMetrics
from serving.observation import Observation
from serving.slate_metrics import FATES, SlateMetrics
from serving.stages import HYDRATE, STAGES
from serving.user_read_error import UserReadError

SHADOW_FATES = ("scored", "skipped", "failed")
_SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0)
_CORRELATION = (-0.5, 0.0, 0.25, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0)
_OVERLAP = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_SOURCE_SECONDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
_AGE_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 60, 600, 3_600, 86_400)
_SWITCH_SECONDS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """All of the service's metrics, in a registry of their own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "ranking_requests", "Requests by method and status code.", ["method", "code"], registry=registry
        )
        self.request_seconds = Histogram(
            "ranking_request_seconds",
            "Time from arrival to answer.",
            ["method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.shed = Counter("ranking_shed", "Requests refused because too many were under way.", registry=registry)
        self.in_flight = Gauge(
            "ranking_in_flight", "Requests under way.", registry=registry, multiprocess_mode="livesum"
        )
        self._add_stages(registry)
        self._add_slates(registry)
        self._add_bundle(registry)
        self._add_parts(registry)
        self.guard = GuardMetrics(registry)
        self.slate_log = SlateMetrics(registry)
        self._add_rules(registry)
        self._add_experiments(registry)
        self._start_at_zero()
        # Looking labels up costs more than counting: a request took 92 µs, with these kept 36.
        self._stage_seconds = cache(self.stage_seconds.labels)
        self._filtered_items = cache(self.filtered_items.labels)
        self._placed_items = cache(self.placed_items.labels)
        self._of_source = cache(self._source_children)

    def _add_stages(self, registry: CollectorRegistry) -> None:
        self.stage_seconds = Histogram(
            "ranking_stage_seconds", "Time of each stage.", ["stage"], buckets=_SECONDS, registry=registry
        )
        self.degraded = Counter(
            "ranking_degraded", "Answers in which the stage fell back.", ["stage"], registry=registry
        )
        self.store_errors = Counter(
            "ranking_store_errors",
            "Answers for which the online store said nothing of the user, by why: timeout, failed, closed (left "
            "alone after failures), busy (too many reads under way), no_time (the deadline was near).",
            ["kind"],
            registry=registry,
        )
        self.source_calls = Counter(
            "ranking_source_calls",
            "Calls of candidate sources by outcome: found, empty, failed, absent (not in the bundle), no_time.",
            ["source", "outcome"],
            registry=registry,
        )
        self.source_candidates = Counter(
            "ranking_source_candidates", "Candidates that each source proposed.", ["source"], registry=registry
        )
        self.source_seconds = Histogram(
            "ranking_source_seconds",
            "Time of each call of a source.",
            ["source"],
            buckets=_SOURCE_SECONDS,
            registry=registry,
        )

    def _add_slates(self, registry: CollectorRegistry) -> None:
        self.candidates = Histogram(
            "ranking_candidates",
            "Candidates scored.",
            buckets=(0, 10, 50, 100, 200, 300, 500, 1_000, 10_000),
            registry=registry,
        )
        self.slate_items = Histogram(
            "ranking_slate_items",
            "Items returned.",
            ["method"],
            buckets=(0, 1, 5, 10, 20, 50, 100, 200, 500, 10_000),
            registry=registry,
        )
        self.empty_slates = Counter(
            "ranking_empty_slates",
            "Answers without an item to requests that asked for some.",
            ["method"],
            registry=registry,
        )
        self.newest_event_age_seconds = Histogram(
            "ranking_newest_event_age_seconds",
            "Age of the user's newest event behind an answer.",
            buckets=_AGE_SECONDS,
            registry=registry,
        )
        self.feedback_events = Counter(
            "ranking_feedback_events",
            "Events of Feedback by fate: accepted, refused, unacknowledged.",
            ["fate"],
            registry=registry,
        )
        self.spans = Counter(
            "ranking_spans", "Trace spans by fate: sent, failed, dropped.", ["fate"], registry=registry
        )

    def _add_bundle(self, registry: CollectorRegistry) -> None:
        self.bundle_info = Gauge(
            "ranking_bundle_info",
            "1 for the bundle in use, 0 for those before it.",
            ["bundle_id"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.bundle_switch_seconds = Histogram(
            "ranking_bundle_switch_seconds",
            "From seeing a promotion to answering from it: loading, verifying, warming up.",
            buckets=_SWITCH_SECONDS,
            registry=registry,
        )
        self.bundles_refused = Gauge(
            "ranking_bundles_refused",
            "Promotions refused since the start.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.bundles_loaded = Gauge(
            "ranking_bundles_loaded", "Bundles in memory.", registry=registry, multiprocess_mode="livemax"
        )
        self.on_earlier_champion = Gauge(
            "ranking_on_earlier_champion",
            "1 while another bundle answers than champion.json names, since that one cannot be served.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._bundle_id: str | None = None

    def _add_parts(self, registry: CollectorRegistry) -> None:
        self.catalogue_items = Gauge(
            "ranking_catalogue_items",
            "Items of the live catalogue.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.catalogue_age_seconds = Gauge(
            "ranking_catalogue_age_seconds",
            "Since an item or its availability, or the bundle, last changed the catalogue.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.snapshot_age_seconds = Gauge(
            "ranking_item_snapshot_age_seconds",
            "Age of the item features.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.records_refused = Gauge(
            "ranking_records_refused",
            "Records of a topic that break its contract.",
            ["topic"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.kafka_connected = Gauge(
            "ranking_kafka_connected",
            "Whether the broker answers for a topic: items, tiles (both read), slates (written).",
            ["topic"],
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.start_time_seconds = Gauge(
            "ranking_start_time_seconds",
            "When the process started, seconds since the epoch; of several, the newest.",
            registry=registry,
            multiprocess_mode="livemax",
        )

    def _add_experiments(self, registry: CollectorRegistry) -> None:
        self.arms = Counter("ranking_arm_answers", "Answers by experiment arm.", ["experiment_arm"], registry=registry)
        self.experiments_refused = Gauge(
            "ranking_experiments_refused",
            "Experiments files and bundles of theirs refused since the start.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.shadow = Counter(
            "ranking_shadow",
            "Answers drawn for the challenger by fate: scored, skipped, failed.",
            ["fate"],
            registry=registry,
        )
        self.shadow_seconds = Histogram(
            "ranking_shadow_seconds", "Time of the challenger's scoring.", buckets=_SECONDS, registry=registry
        )
        self.shadow_rank_correlation = Histogram(
            "ranking_shadow_rank_correlation",
            "Spearman's rho of the champion's and the challenger's scores of a request's candidates.",
            buckets=_CORRELATION,
            registry=registry,
        )
        self.shadow_top_overlap = Histogram(
            "ranking_shadow_top_overlap",
            "Share of the champion's best k that are among the challenger's, k being the slate's length.",
            buckets=_OVERLAP,
            registry=registry,
        )

    def _add_rules(self, registry: CollectorRegistry) -> None:
        self.filtered_items = Counter(
            "ranking_filtered_items",
            "Items of the catalogue that each filter left out, summed over the answers.",
            ["reason"],
            registry=registry,
        )
        self.placed_items = Counter(
            "ranking_placed_items",
            "Positions that were explored or pinned, and candidates that were deduplicated.",
            ["how"],
            registry=registry,
        )
        self.rules_info = Gauge(
            "ranking_rules_info",
            "1 for the version of the rules in use, 0 for those before it.",
            ["version"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.rules_refused = Gauge(
            "ranking_rules_refused",
            "Changes of the rules file refused since the start.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.rules_unknown_names = Gauge(
            "ranking_rules_unknown_names",
            "Items, creators, categories and languages of the rules that the catalogue does not hold.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self._rules_version: str | None = None

    def _start_at_zero(self) -> None:
        """What alerts watch is there from the start: a counter that appears with 1 has not increased."""
        for fate in FATES:
            self.spans.labels(fate)
        for stage in STAGES:
            self.degraded.labels(stage)
        for fate in SHADOW_FATES:
            self.shadow.labels(fate)
        for kind in UserReadError.KINDS:
            self.store_errors.labels(kind)

    def use_bundle(self, bundle_id: str, switch_s: float | None = None) -> None:
        """Marks the bundle in use, and how long it took to switch to it."""
        if self._bundle_id is not None:
            self.bundle_info.labels(self._bundle_id).set(0)
        self._bundle_id = bundle_id
        self.bundle_info.labels(bundle_id).set(1)
        if switch_s is not None:
            self.bundle_switch_seconds.observe(switch_s)

    def use_rules(self, version: str) -> None:
        """Marks the rules in use."""
        if self._rules_version is not None:
            self.rules_info.labels(self._rules_version).set(0)
        self._rules_version = version
        self.rules_info.labels(version).set(1)

    def _source_children(self, source: str, outcome: str) -> tuple[Counter, Counter, Histogram]:
        calls = self.source_calls.labels(source, outcome)
        return calls, self.source_candidates.labels(source), self.source_seconds.labels(source)

    def observe(self, request: Observation, code: str, seconds: float) -> None:
        """Counts a request that is over: its outcome, and for an answer all that is behind it."""
        self.requests.labels(request.method, code).inc()
        if code != "OK":
            return
        self.request_seconds.labels(request.method).observe(seconds)
        self._observe_progress(request)
        slate = request.slate
        if slate is None:
            return
        self.arms.labels(slate.experiment_arm).inc()
        self.candidates.observe(slate.candidates_scored)
        self.slate_items.labels(request.method).observe(len(slate.items))
        if request.wanted and not slate.items:
            self.empty_slates.labels(request.method).inc()
        if slate.HasField("newest_event_age_ms"):
            self.newest_event_age_seconds.observe(slate.newest_event_age_ms / 1000)

    def _observe_progress(self, request: Observation) -> None:
        progress = request.progress
        if progress is None:
            return
        for stage, ms in progress.stage_ms.items():
            self._stage_seconds(stage).observe(ms / 1000)
        for stage in {note.stage for note in progress.degraded}:
            self.degraded.labels(stage).inc()
        for note in progress.degraded:
            if note.stage == HYDRATE and note.kind:
                self.store_errors.labels(note.kind).inc()
        for reason, items in progress.filtered.items():
            self._filtered_items(reason).inc(items)
        for how, items in progress.placed.items():
            self._placed_items(how).inc(items)
        for call in progress.source_calls:
            calls, candidates, seconds = self._of_source(call.source, call.outcome)
            calls.inc()
            candidates.inc(call.candidates)
            seconds.observe(call.end_s - call.start_s)
