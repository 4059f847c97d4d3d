"""What the command shows of bundles, gates and value weights, as tables."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group
from rich.table import Table

from models.catalogue import Entry
from models.champions import Champions
from models.compare_bundles import Difference, MetricDifference
from models.gates import GateResult
from models.promotion import OVERRIDE, gates_of


def list_view(entries: Sequence[Entry]) -> Table:
    """Every bundle, one a line; figures are those of its own training's test examples."""
    table = _table(
        "version", "bundle", "made (UTC)", "alias", "click AUC", "slate NDCG", "directory", folded=("gates",)
    )
    for entry in entries:
        table.add_row(
            entry.version or "-",
            entry.bundle_id,
            utc(entry.made_at_ms),
            " ".join(entry.aliases),
            number(entry.click_auc),
            number(entry.slate_ndcg),
            "there" if entry.present else "gone",
            entry.gates or ("not judged" if entry.version else "not registered"),
        )
    return table


def show_view(entry: Entry, manifest: Mapping[str, Any], weights: Mapping[str, float], champions: Champions) -> Group:
    """All that is known of one bundle."""
    facts = Table(box=None, show_header=False)
    facts.add_column(no_wrap=True)
    facts.add_column(overflow="fold")
    stories = {name: text for name, text in sorted(entry.tags.items()) if name.startswith(OVERRIDE)}
    switched = [f"{utc(one.at_ms)} {one.action}" for one in champions.history if one.bundle_id == entry.bundle_id]
    for name, told in {
        "bundle": entry.bundle_id,
        "version": entry.version or "not registered",
        "alias": " ".join(entry.aliases),
        "made (UTC)": utc(entry.made_at_ms),
        "origin": entry.origin,
        "directory": "there" if entry.present else "gone",
        "gates": entry.gates or "not judged",
        **stories,
        "champion (UTC)": "; ".join(switched),
        "features": manifest.get("features_version", ""),
        "code": manifest.get("code_version", ""),
        "MLflow run": entry.run_id,
    }.items():
        if told:
            facts.add_row(name, str(told))
    for section in ("runs", "seeds", "delta_versions", "configuration"):
        for name, fact in flat(manifest.get(section, {})):
            facts.add_row(f"{section.replace('_', ' ')}: {name}", str(fact))
    gates = gates_of(entry.tags)
    parts = [facts, weights_view(weights) if weights else "", _metrics(manifest), _files(manifest)]
    return Group(*parts, *([gates_view(gates)] if gates else []))


def gates_view(gates: Sequence[GateResult]) -> Table:
    """Each gate's verdict with its numbers."""
    table = _table("gate", "verdict", folded=("detail",))
    for gate in gates:
        table.add_row(gate.gate, "passed" if gate.passed else "refused", gate.detail)
    return table


def diff_view(a: str, b: str, differences: Sequence[Difference]) -> Table:
    """Every fact in which two bundles differ."""
    table = _table("differs", "what", "change", folded=(a, b))
    for one in differences:
        change = "" if one.change is None else f"{one.change:+.4g}"
        table.add_row(one.section, one.name, change, _fact(one.a), _fact(one.b))
    return table


def metrics_view(a: str, b: str, metrics: Sequence[MetricDifference]) -> Table:
    """Both bundles on the same examples."""
    table = _table("on the same examples", a, b, "change", "95% interval", "")
    for one in metrics:
        interval = f"[{one.change.low:+.4f}, {one.change.high:+.4f}]"
        told = "differs" if one.told else ""
        table.add_row(one.metric, number(one.a), number(one.b), f"{one.change.value:+.4f}", interval, told)
    return table


def weights_view(weights: Mapping[str, float], new: Mapping[str, float] | None = None) -> Table:
    """Value weights by head; with `new` ones beside those that they replace."""
    table = _table("head", "weight") if new is None else _table("head", "weight", "new weight")
    for head, weight in weights.items():
        changed = [] if new is None else [f"{new[head]:g}" if new[head] != weight else ""]
        table.add_row(head, f"{weight:g}", *changed)
    return table


def utc(at_ms: int | None) -> str:
    """An instant in UTC to the second; empty when it is not known."""
    return f"{datetime.fromtimestamp(at_ms / 1_000, UTC):%Y-%m-%d %H:%M:%S}" if at_ms is not None else ""


def number(value: float | None) -> str:
    """A metric to four digits; empty when it is not known."""
    return "" if value is None else f"{value:.4f}"


def flat(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The leaves of a nested record, each with its path."""
    found: list[tuple[str, Any]] = []
    for name, value in record.items():
        found += flat(value, f"{prefix}{name} ") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return found


def _table(*columns: str, folded: Sequence[str] = ()) -> Table:
    table = Table(box=None)
    for column in columns:
        table.add_column(column, no_wrap=True)
    for column in folded:
        table.add_column(column, overflow="fold")
    return table


def _metrics(manifest: Mapping[str, Any]) -> Table:
    table = _table("metric of its training", "value")
    for name, value in flat(manifest.get("metrics", {})):
        table.add_row(name, number(value) if isinstance(value, float) else str(value))
    return table


def _files(manifest: Mapping[str, Any]) -> Table:
    table = _table("file", "SHA-256")
    for name, digest in sorted(manifest.get("files", {}).items()):
        table.add_row(name, str(digest)[:16])
    return table


def _fact(fact: Any) -> str:
    if fact is None:
        return "-"
    return f"{fact:.6g}" if isinstance(fact, float) else str(fact)
