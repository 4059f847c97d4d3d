"""Going back by itself when a promoted bundle breaks the guardrails: once, and never to a bundle that was left so."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from features.names import MS_PER_HOUR
from models.bundle import BundleError, loaded
from models.champions import Champions, promotion_lock, read_champions
from models.guardrails import Comparison, Guardrail
from models.monitor_limits import MonitorLimits
from models.promotion import roll_back
from models.registry import Registry

ROLLBACK = "rollback"


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Where to go back to, or why not."""

    target: str | None = None
    reason: str = ""
    """Why the bundle is left, or why it is not."""


def promoted_at(known: Champions) -> int | None:
    """When the champion became it, unless that was by a roll-back; None where that is not known."""
    last = known.history[-1] if known.history else None
    return None if last is None or last.action == ROLLBACK or last.bundle_id != known.bundle_id else last.at_ms


def decide(
    known: Champions, comparison: Comparison, now_ms: int, limits: MonitorLimits, serves: Callable[[str], bool]
) -> Decision:
    """The newest champion before this one that was never rolled back from and can still be served.

    None when no guardrail is broken, when the champion came by a roll-back itself, and during the cooldown.
    """
    if not comparison.broken:
        return Decision(reason=comparison.not_compared or "the guardrails hold")
    why = "; ".join(map(told, comparison.broken))
    if not limits.automatic_rollback:
        return Decision(reason=f"automatic_rollback is off, though {why}")
    if promoted_at(known) is None:
        return Decision(reason=f"the champion came by a roll-back, so that it stays, though {why}")
    last_ms = max((switch.at_ms for switch in known.history if switch.action == ROLLBACK), default=None)
    if last_ms is not None and now_ms - last_ms < limits.rollback_cooldown_h * MS_PER_HOUR:
        ago = (now_ms - last_ms) / MS_PER_HOUR
        return Decision(reason=f"a roll-back {ago:.1f} h ago is too recent for another one, though {why}")
    left = {switch.replaced for switch in known.history if switch.action == ROLLBACK}
    for target in dict.fromkeys(known.before[::-1]):
        if target not in left and target != known.bundle_id and serves(target):
            return Decision(target=target, reason=why)
    return Decision(reason=f"no champion before it can be gone back to, though {why}")


def told(guardrail: Guardrail) -> str:
    """A broken guardrail in a clause."""
    change = guardrail.change
    return (
        f"{guardrail.name} went from {guardrail.before:.4g} to {guardrail.now:.4g}, by {change.value:+.1%} "
        f"[{change.low:+.1%}, {change.high:+.1%}], allowed: {guardrail.limit:+.0%}"
    )


def carry_out(
    decision: Decision, champion: str, tracking_uri: str, workspace: Path, bundles_dir: Path, now_ms: int
) -> str | None:
    """Rolls back to the decision's target if the champion is still the one that was judged; returns where to."""
    if decision.target is None:
        return None
    with promotion_lock(bundles_dir):
        if read_champions(bundles_dir).bundle_id != champion:
            return None
        return roll_back(
            Registry(tracking_uri), workspace, bundles_dir, decision.target, now_ms, f"monitor: {decision.reason}"
        )


def serves(bundles_dir: Path, bundle_id: str) -> bool:
    """Whether the bundle is there, whole and for this code's features."""
    try:
        loaded(bundles_dir, bundle_id)
    except BundleError:
        return False
    return True
