"""What each quality gate looks at: the rows, and the suite of expectations that they must meet."""

import datetime
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable
from great_expectations import ExpectationSuite

from batch.day_profile import (
    FIGURES,
    Calendar,
    Date,
    Profiled,
    add_figure,
    compare_days,
    distance_of,
    share,
    tally_days,
)
from features.daily import ACTIVITY_VIEWS, CREATED, DAILY_VIEWS, EVENT_TIMESTAMP, DailyFeature
from features.events import EventType
from features.names import MS_PER_DAY, Topics
from features.quality import (
    DELAY_MS,
    EVENT_COLUMNS,
    ITEM_COLUMNS,
    SLATE_COLUMNS,
    SLATE_ITEM_COLUMNS,
    days_suite,
    events_suite,
    example_columns,
    examples_suite,
    items_suite,
    slate_items_suite,
    slates_suite,
    view_suite,
)
from features.quality_limits import SuiteLimits
from features.quarantine import ALL, SUITE_TABLES, TABLES
from features.specs import Entity, WindowedFeature, features_of

JUDGED_DAYS = 3
"""Today and the days that a late event may still reach (`features.events.HORIZON_MS`)."""
_ITEMS_A_SLATE = 20
"""As many rows as a slate has usually: of slates, that part of `max_rows` is judged."""
_DATE = "event_date"
_EVENTS = Profiled(classes="event_type", numbers=("watch_ms", "duration_ms", "position"))
_USER_FEATURES = tuple(
    each.name
    for entity in (Entity.USER, Entity.USER_CATEGORY)
    for each in features_of(entity)
    if each.window_ms <= MS_PER_DAY
)
"""Longer windows fill up for as long as they are, so their values drift while a table is young; counts of few items,
creators and categories move together, with the size of the platform."""
_EXAMPLES = Profiled(classes="label_click", numbers=("duration_ms", "position", *_USER_FEATURES))


class MissingTableError(RuntimeError):
    """The gate has nothing to judge."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a gate is asked."""

    lake: Path
    now_ms: int
    limits: SuiteLimits
    held: frozenset[str]
    """Partitions that the suite holds in quarantine: they are judged again, however old."""
    max_rows: int
    """Rows judged one by one, in whole partitions."""
    asked: frozenset[Date] = frozenset()
    """More dates to judge, as after a backfill."""

    @property
    def today(self) -> Date:
        """The UTC date of now."""
        return utc_date(self.now_ms)

    @property
    def held_dates(self) -> frozenset[Date]:
        """The dates among `held`."""
        return frozenset(Date.fromisoformat(partition) for partition in self.held - {ALL})


@dataclass(frozen=True, kw_only=True)
class Check:
    """Some rows and what is expected of them. A column `event_date` says which partition each row is of."""

    rows: pd.DataFrame
    suite: ExpectationSuite


@dataclass(frozen=True, kw_only=True)
class Judged:
    """All that a gate looks at, of one version of its table."""

    version: int
    checks: Sequence[Check]


def utc_date(time_ms: int) -> Date:
    """The UTC date of an instant."""
    return datetime.datetime.fromtimestamp(time_ms / 1000, tz=datetime.UTC).date()


def open_table(lake: Path, name: str) -> DeltaTable:
    """The table. Raises `MissingTableError`."""
    path = str(lake / name)
    if not DeltaTable.is_deltatable(path):
        raise MissingTableError(f"no table at {path}: run the job that writes it first.")
    return DeltaTable(path)


def rows_by_date(table: DeltaTable) -> dict[Date, int]:
    """Rows of each event date, by the table's log alone."""
    files = pa.table(table.get_add_actions(flatten=True)).to_pandas()
    if not len(files):
        return {}
    per_date = files.groupby(f"partition.{_DATE}")["num_records"].sum()
    return {_as_date(date): int(rows) for date, rows in per_date.items()}


def _as_date(value: object) -> Date:
    return value if type(value) is Date else Date.fromisoformat(str(value)[:10])


def sample_dates(rows: dict[Date, int], max_rows: int, also: Iterable[Date]) -> list[Date]:
    """The newest dates until they hold `max_rows` rows, and those asked for besides."""
    wanted, total = set(also) & set(rows), 0
    for date in sorted(rows, reverse=True):
        if total >= max_rows:
            break
        wanted.add(date)
        total += rows[date]
    return sorted(wanted)


def _read(dataset: ds.Dataset, columns: Sequence[str], chosen: ds.Expression | None = None) -> pd.DataFrame:
    # A column that the table lacks stays out; every expectation on it fails and names it.
    present = [name for name in columns if name in dataset.schema.names]
    rows: pd.DataFrame = dataset.to_table(columns=present, filter=chosen).to_pandas()
    return rows


def _calendar(request: Request, rows: dict[Date, int]) -> Calendar:
    newest = {request.today - datetime.timedelta(days=n) for n in range(JUDGED_DAYS)}
    return Calendar(
        today=request.today,
        judged=tuple(sorted(newest | request.held_dates | request.asked)),
        rows=rows,
        left_out=request.held_dates,
        limits=request.limits,
    )


def _days_of(
    request: Request, calendar: Calendar, dataset: ds.Dataset, profiled: Profiled
) -> tuple[pd.DataFrame, list[str]]:
    """Figures of the judged days, and their names."""
    known = pa.array([], pa.string())
    if DeltaTable.is_deltatable(str(request.lake / TABLES.items)):
        items = DeltaTable(str(request.lake / TABLES.items)).to_pyarrow_table(columns=["item_id"])
        known = items.column("item_id").combine_chunks()
    tallies = tally_days(dataset, calendar.read, profiled, known)
    present = [name for name in profiled.numbers if name in dataset.schema.names]
    return compare_days(calendar, tallies, profiled), [*FIGURES, *map(distance_of, present)]


def judge_events(request: Request) -> Judged:
    """Silver events: every rule of the contract, and each day beside its week, the catalogue and the dead letters."""
    table = open_table(request.lake, TABLES.silver_events)
    dataset, per_date = table.to_pyarrow_dataset(), rows_by_date(table)
    dates = sample_dates(per_date, request.max_rows, request.held_dates | request.asked)
    rows = _read(dataset, EVENT_COLUMNS, pc.field(_DATE).isin(dates))
    if {"arrival_ms", "event_time_ms"} <= set(rows.columns):
        rows[DELAY_MS] = rows["arrival_ms"] - rows["event_time_ms"]
    calendar = _calendar(request, per_date)
    days, figures = _days_of(request, calendar, dataset, _EVENTS)
    dead = _dead_letters(request)
    add_figure(
        days,
        "dead_share",
        lambda date: share(dead.get(date, 0), dead.get(date, 0) + per_date.get(date, 0)),
        calendar.accepted,
    )
    return Judged(
        version=table.version(),
        checks=(
            Check(rows=rows, suite=events_suite(request.now_ms, request.limits)),
            Check(rows=days, suite=days_suite("events", request.limits, [*figures, "dead_share"])),
        ),
    )


def _dead_letters(request: Request) -> dict[Date, int]:
    """Records of the events topic that broke the contract, by the date of their arrival."""
    path = str(request.lake / TABLES.dead_letters)
    if not DeltaTable.is_deltatable(path):
        return {}
    of_events = pc.field("topic") == Topics(version="").events
    arrivals = DeltaTable(path).to_pyarrow_dataset().to_table(columns=["arrival_ms"], filter=of_events)
    day, count = np.unique(arrivals.column("arrival_ms").to_numpy() // MS_PER_DAY, return_counts=True)
    return {utc_date(int(d) * MS_PER_DAY): int(n) for d, n in zip(day, count, strict=True)}


def judge_items(request: Request) -> Judged:
    """The catalogue, the first `max_rows` rows of it."""
    table = open_table(request.lake, TABLES.items)
    dataset = table.to_pyarrow_dataset()
    present = [name for name in ITEM_COLUMNS if name in dataset.schema.names]
    rows = dataset.head(request.max_rows, columns=present).to_pandas()
    return Judged(version=table.version(), checks=(Check(rows=rows, suite=items_suite(request.limits)),))


def judge_slates(request: Request) -> Judged:
    """The slates served today and the days before that are judged, and the items in them."""
    table = open_table(request.lake, TABLES.slates)
    first = min({request.today - datetime.timedelta(days=JUDGED_DAYS), *request.held_dates, *request.asked})
    dataset = table.to_pyarrow_dataset()
    served = pc.field("served_at_ms") >= _start_ms(first)
    read = dataset.to_table(columns=[*SLATE_COLUMNS, "items"], filter=served | pc.field("served_at_ms").is_null())
    read = read.slice(max(0, read.num_rows - request.max_rows // _ITEMS_A_SLATE)).combine_chunks()
    slates = read.drop_columns("items").to_pandas()
    slates[_DATE] = [ALL if pd.isna(at) else str(utc_date(int(at))) for at in slates["served_at_ms"]]
    shown = pd.DataFrame(pc.list_flatten(read.column("items")).to_pylist(), columns=SLATE_ITEM_COLUMNS[1:])
    of_slate = slates.loc[pc.list_parent_indices(read.column("items")).to_pylist(), ["request_id", _DATE]]
    shown = pd.concat([of_slate.reset_index(drop=True), shown], axis=1)
    return Judged(
        version=table.version(),
        checks=(
            Check(rows=slates, suite=slates_suite(request.now_ms, request.limits)),
            Check(rows=shown, suite=slate_items_suite()),
        ),
    )


def _start_ms(date: Date) -> int:
    return (date - Date(1970, 1, 1)).days * MS_PER_DAY


def judge_examples(request: Request) -> Judged:
    """Training examples: every feature's range, and each day beside its week, its impressions and its slates."""
    table = open_table(request.lake, TABLES.examples)
    dataset, per_date = table.to_pyarrow_dataset(), rows_by_date(table)
    dates = sample_dates(per_date, request.max_rows, request.held_dates | request.asked)
    rows = _read(dataset, example_columns(), pc.field(_DATE).isin(dates))
    calendar = _calendar(request, per_date)
    days, figures = _days_of(request, calendar, dataset, _EXAMPLES)
    add_figure(days, "completeness", _completeness(request, per_date), calendar.accepted)
    add_figure(days, "unlike_slate_share", _unlike_slates(request, dataset), calendar.accepted)
    figures += ["completeness", "unlike_slate_share"]
    return Judged(
        version=table.version(),
        checks=(
            Check(rows=rows, suite=examples_suite(request.limits)),
            Check(rows=days, suite=days_suite("examples", request.limits, figures)),
        ),
    )


def _completeness(request: Request, per_date: dict[Date, int]) -> Callable[[Date], float]:
    """Examples per impression of a day that is over; NaN for one without impressions."""
    path = str(request.lake / TABLES.silver_events)
    events = DeltaTable(path).to_pyarrow_dataset() if DeltaTable.is_deltatable(path) else None

    def of(date: Date) -> float:
        if events is None or date >= request.today:
            return np.nan
        chosen = (pc.field(_DATE) == date) & (pc.field("event_type") == EventType.IMPRESSION)
        impressions = events.count_rows(filter=chosen)
        return per_date.get(date, 0) / impressions if impressions else np.nan

    return of


def _unlike_slates(request: Request, examples: ds.Dataset) -> Callable[[Date], float]:
    """Share of a date's examples whose slate was logged and does not hold their item."""
    path = str(request.lake / TABLES.slates)
    slates = DeltaTable(path).to_pyarrow_dataset() if DeltaTable.is_deltatable(path) else None

    def of(date: Date) -> float:
        if slates is None:
            return np.nan
        near = (pc.field("served_at_ms") >= _start_ms(date) - MS_PER_DAY) & (
            pc.field("served_at_ms") < _start_ms(date) + MS_PER_DAY
        )
        logged = slates.to_table(columns=["request_id", "items"], filter=near)
        shown = {
            (request_id, item["item_id"])
            for request_id, items in zip(*(logged.column(n).to_pylist() for n in ("request_id", "items")), strict=True)
            for item in items or ()
        }
        requests = {request_id for request_id, _ in shown}
        of_date = examples.to_table(columns=["request_id", "item_id"], filter=pc.field(_DATE) == date)
        pairs = zip(*(of_date.column(n).to_pylist() for n in ("request_id", "item_id")), strict=True)
        judged = [pair in shown for pair in pairs if pair[0] in requests]
        return share(len(judged) - sum(judged), len(judged))

    return of


def judge_features(request: Request) -> Judged:
    """The newest run date's file of every offline feature view, beside those of earlier dates."""
    root = request.lake / TABLES.offline_features
    views: list[tuple[str, Entity, Sequence[WindowedFeature | DailyFeature]]] = [
        *((view, entity, features_of(entity)) for entity, view in ACTIVITY_VIEWS.items()),
        *((view.name, view.entity, view.features) for view in DAILY_VIEWS),
    ]
    checks, sizes, newest = [], [], Date.min
    for name, entity, features in views:
        files = {Date.fromisoformat(path.stem): path for path in sorted((root / name).glob("*.parquet"))}
        if not files:
            raise MissingTableError(f"no file in {root / name}: run the job that writes it first.")
        date, *before = sorted(files, reverse=True)
        newest = max(newest, date)
        rows = pd.read_parquet(files[date]).assign(**{_DATE: str(date)})
        for column in {EVENT_TIMESTAMP, CREATED} & set(rows.columns):
            rows[column] = rows[column].astype("datetime64[ms, UTC]").astype("int64")
        checks.append(Check(rows=rows, suite=view_suite(name, entity, features, request.now_ms, request.limits)))
        sizes.append((date, name, len(rows), _beside(len(rows), [files[each] for each in before], request.limits)))
    days = pd.DataFrame(sizes, columns=[_DATE, "view", "rows", "volume_ratio"])
    checks.append(Check(rows=days, suite=days_suite("features", request.limits, ["volume_ratio"])))
    return Judged(version=int(newest.strftime("%Y%m%d")), checks=checks)


def _beside(rows: int, earlier: Sequence[Path], limits: SuiteLimits) -> float:
    """Rows per row of the median of the newest earlier files that are large enough."""
    sizes = [ds.dataset(path).count_rows() for path in earlier[: limits.reference_days]]
    fit = [size for size in sizes if size >= limits.min_day_rows]
    return rows / float(np.median(fit)) if len(fit) >= limits.min_reference_days else np.nan


GATES: dict[str, Callable[[Request], Judged]] = {
    "events": judge_events,
    "items": judge_items,
    "slates": judge_slates,
    "features": judge_features,
    "examples": judge_examples,
}
if GATES.keys() != SUITE_TABLES.keys():
    raise AssertionError("every suite has a gate, and every gate a table whose readers it can stop")
