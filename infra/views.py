"""What the command shows of the online store and of slates, as tables."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table

from features.backends import Backend
from features.ledger import Account, Outcome
from features.specs import Entity, WindowedFeature, features_of
from features.user_state import UserState
from serving.client import Slate
from serving.rules import BlockRule, BoostRule, Rule, Rules

HISTORY_SHOWN = 10


class UnknownKeyError(LookupError):
    """One sentence: the store has no event of this user or item."""


def user_view(backend: Backend, user_id: str, now_ms: int) -> Group:
    """The user's windows, categories and latest interactions at the instant. Raises `UnknownKeyError`."""
    state = backend.read_user(user_id, now_ms)
    if state.newest_event_ms is None:
        raise UnknownKeyError(
            f"the online store has no event of the user {user_id!r}; see the writer with millrace logs."
        )
    age_s = (now_ms - state.newest_event_ms) / 1_000
    sets = f"seen {len(state.seen)} items, hidden {len(state.hidden)}, follows {len(state.followed)} creators"
    head = f"user {user_id}: newest event {age_s:.1f} s ago; {sets}"
    windows = _windows(features_of(Entity.USER), {"value": state.features_F.tolist()})
    return Group(head, windows, _categories(state), _history(state, now_ms))


def item_view(backend: Backend, item_id: str, now_ms: int) -> Group:
    """The item's windows at the instant. Raises `UnknownKeyError`."""
    values = backend.read_entity(Entity.ITEM, [(item_id,)], now_ms)
    newest_ms = int(values.newest_event_ms_G[0])
    if not newest_ms:
        raise UnknownKeyError(
            f"the online store has no event of the item {item_id!r}; see the writer with millrace logs."
        )
    head = f"item {item_id}: newest event {(now_ms - newest_ms) / 1_000:.1f} s ago"
    return Group(head, _windows(features_of(Entity.ITEM), {"value": values.values_GF[0].tolist()}))


def slate_view(slate: Slate) -> Group:
    """The slate's items in their order, with where each came from; above them what the answer says of itself."""
    table = Table("", "item", "category", "creator", "score", "click", "sources", "explored", box=None)
    for item in slate.items:
        click = item.head_probabilities.get("click")
        table.add_row(
            str(item.position + 1),
            item.item_id,
            item.category,
            item.creator_id,
            f"{item.score:.4f}",
            "" if click is None else f"{click:.1%}",
            ", ".join(item.sources),
            f"p={item.propensity:.2f}" if item.explored else "",
        )
    age_ms = slate.newest_event_age_ms
    newest = "no event known" if age_ms is None else f"newest event {age_ms / 1_000:.1f} s old"
    head = (
        f"bundle {slate.bundle_id}, arm {slate.experiment_arm}, {newest}, {slate.candidates_scored} candidates scored"
    )
    worse = [f"degraded: {stage}: {reason}" for stage, reason in slate.degraded.items()]
    return Group(head, *worse, table)


def rules_view(rules: Rules) -> Table:
    """Every rule of a file: its kind and name, what it does to which items, and when and for whom."""
    table = Table("kind", "rule", "does", "to", "when", box=None)
    for pin in rules.pin:
        table.add_row("pin", pin.name, f"position {pin.position}", pin.item, _when(pin))
    for boost in rules.boost:
        does = f"add {boost.add:g}" if boost.add is not None else f"multiply by {boost.multiply:g}"
        table.add_row("boost", boost.name, does, _targets(boost), _when(boost))
    for block in rules.block:
        table.add_row("block", block.name, "", _targets(block), _when(block))
    for versions in rules.versions:
        table.add_row("versions", versions.name, "", f"{len(versions.items)} items", "always")
    return table


def _targets(rule: BoostRule | BlockRule) -> str:
    named = {"items": rule.items, "creators": rule.creators, "categories": rule.categories}
    if isinstance(rule, BoostRule):
        named["languages"] = rule.languages
    return ", ".join(f"{len(names)} {kind}" for kind, names in named.items() if names)


def _when(rule: Rule) -> str:
    lists = {
        "on": rule.surfaces,
        "in": rule.languages_of_users,
        "with": rule.devices,
        "interested in": rule.interests,
        "from": () if rule.starts is None else (rule.starts.isoformat(),),
        "until": () if rule.ends is None else (rule.ends.isoformat(),),
    }
    return "; ".join(f"{word} {', '.join(names)}" for word, names in lists.items() if names) or "always"


def _windows(features: Sequence[WindowedFeature], columns: dict[str, Sequence[float]]) -> Table:
    table = Table("feature", *columns, box=None)
    for row, feature in enumerate(features):
        table.add_row(feature.name, *(_number(feature, values[row]) for values in columns.values()))
    return table


def _number(feature: WindowedFeature, value: float) -> str:
    return f"{value:.0f}" if feature.is_integer else f"{value:.4f}"


def _categories(state: UserState) -> Table:
    rows = state.category_features_KF.tolist()
    columns = dict(zip(state.categories, rows, strict=True))
    return _windows(features_of(Entity.USER_CATEGORY), columns)


def _history(state: UserState, now_ms: int) -> Table:
    table = Table("interaction", "ago", "item", "category", box=None)
    for seen in state.history[:HISTORY_SHOWN]:
        ago = f"{(now_ms - seen.event_time_ms) / 1_000:.0f} s"
        table.add_row(seen.event_type, ago, seen.item_id, seen.category)
    return table


def ledger_view(accounts: Sequence[Account]) -> Table:
    """What became of the records of each partition, and of all."""
    table = Table("partition", "produced", *Outcome, "missing", "twice", box=None)
    for account in accounts:
        table.add_row(str(account.partition), *map(_grouped, _figures(account)))
    totals = [sum(column) for column in zip(*map(_figures, accounts), strict=True)]
    table.add_row("all", *map(_grouped, totals))
    return table


def _figures(account: Account) -> list[int]:
    outcomes = [account.outcomes[outcome] for outcome in Outcome]
    return [account.produced, *outcomes, account.missing, account.twice]


def _grouped(value: int) -> str:
    return f"{value:,}"
