"""The champion in production against the bundle before it: click rate, hide rate, catalogue coverage.

Both are of the main arm's slates, each bundle at its own time, so a change of the season weighs on the comparison: the
limits are wide, and a guardrail is broken only when the interval over users excludes no change, too.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from models.metrics.bootstrap import Interval, bootstrap
from models.monitor_limits import MonitorLimits
from models.served_log import Bools, Int64s, Objects, ServedLog

CLICK_RATE, HIDE_RATE, COVERAGE = "click_rate", "hide_rate", "coverage"
SEED = 0
ROUNDS = 200

Statistic = Callable[[Int64s, bool], float]
"""Of some rows, those of now (True) or before."""


@dataclass(frozen=True, kw_only=True)
class Guardrail:
    """One comparison. Rates are per impression; coverage is distinct items in as many slots as the shorter log has."""

    name: str
    now: float
    before: float
    change: Interval
    """Relative to before, with its interval over users; NaN when before is 0."""
    broken: bool
    limit: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The guardrails of two bundles, or why they were not compared."""

    guardrails: tuple[Guardrail, ...] = ()
    not_compared: str = ""

    @property
    def broken(self) -> list[Guardrail]:
        """Those that refuse."""
        return [guardrail for guardrail in self.guardrails if guardrail.broken]


def compare_served(now: ServedLog, before: ServedLog, now_id: str, before_id: str, limits: MonitorLimits) -> Comparison:
    """Compares the items of two bundles, each in its own log."""
    now, before = (log.take(log.bundle_N == bundle_id) for log, bundle_id in ((now, now_id), (before, before_id)))
    for bundle_id, log in ((now_id, now), (before_id, before)):
        impressions, users = int(log.shown_N.sum()), len(set(log.user_N.tolist()))
        if impressions < limits.min_rows or users < limits.min_users:
            needed = f"needed are {limits.min_rows} and {limits.min_users}"
            return Comparison(not_compared=f"{bundle_id} has {impressions} impressions of {users} users; {needed}")
    now_N = np.arange(len(now) + len(before)) < len(now)
    shown_N = np.concatenate([now.shown_N, before.shown_N])
    user_N = _dense(now.user_N, before.user_N)
    clicks = _rate(now_N, shown_N, np.concatenate([now.clicked_N, before.clicked_N]))
    hides = _rate(now_N, shown_N, np.concatenate([now.hidden_N, before.hidden_N]))
    items = _coverage(now_N, _dense(now.item_N, before.item_N))
    return Comparison(
        guardrails=(
            _judged(CLICK_RATE, clicks, user_N, -limits.max_click_drop),
            _judged(HIDE_RATE, hides, user_N, limits.max_hide_rise),
            _judged(COVERAGE, items, user_N, -limits.max_coverage_drop),
        )
    )


def _judged(name: str, statistic: Statistic, user_N: Int64s, limit: float) -> Guardrail:
    """`limit` below 0 is a drop, else a rise."""

    def change(rows: Int64s) -> float:
        before = statistic(rows, False)
        return statistic(rows, True) / before - 1 if before else float("nan")

    found = bootstrap(change, user_N, np.random.default_rng(SEED), ROUNDS)
    everything = np.arange(len(user_N))
    worse = found.value < limit and found.high < 0 if limit < 0 else found.value > limit and found.low > 0
    return Guardrail(
        name=name,
        now=statistic(everything, True),
        before=statistic(everything, False),
        change=found,
        broken=bool(worse),
        limit=limit,
    )


def _rate(now_N: Bools, shown_N: Bools, happened_N: Bools) -> Statistic:
    def rate(rows: Int64s, now: bool) -> float:
        chosen = rows[(now_N[rows] == now) & shown_N[rows]]
        return float(happened_N[chosen].mean()) if len(chosen) else float("nan")

    return rate


def _coverage(now_N: Bools, item_N: Int64s) -> Statistic:
    """Distinct items in as many slots, drawn once, as both bundles have."""
    place_N = np.random.default_rng(SEED).permutation(len(item_N))
    slots = int(min(now_N.sum(), (~now_N).sum()))

    def coverage(rows: Int64s, now: bool) -> float:
        own = rows[now_N[rows] == now]
        first = own[np.argsort(place_N[own], kind="stable")[:slots]]
        return float(len(np.unique(item_N[first])))

    return coverage


def _dense(now: Objects, before: Objects) -> Int64s:
    """Each name as a number."""
    _, index_N = np.unique(np.concatenate([now, before]).astype(str), return_inverse=True)
    return index_N.astype(np.int64)
