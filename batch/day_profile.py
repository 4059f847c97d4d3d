"""What one event date of a table looks like beside the days before it: a row of figures for a quality suite to judge.

A figure is NaN where there is nothing to hold the day against; the suite lets those pass.
"""

import datetime
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from features.drift import Counts, binned, kolmogorov_smirnov, total_variation
from features.quality import DISTANCE
from features.quality_limits import SuiteLimits

Date = datetime.date
MIN_JUDGED = 100
"""A share of fewer rows is not judged, and a class of which fewer are usual: chance alone would shut the gate."""


@dataclass(frozen=True, kw_only=True)
class Profiled:
    """The columns whose distributions are compared."""

    classes: str
    """A column of few values."""
    numbers: tuple[str, ...]


@dataclass(kw_only=True)
class DayTally:
    """Counts of one date's rows."""

    rows: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, Counts] = field(default_factory=dict)
    unknown_items: int = 0

    def number(self, name: str) -> Counts:
        """Counts a bin of a column's values; zeros where it had none."""
        return self.numbers.get(name, binned([]))

    def add(self, batch: pa.RecordBatch, profiled: Profiled, known_items: pa.Array) -> None:
        """Counts the batch's rows in."""
        self.rows += batch.num_rows
        for entry in batch.column(profiled.classes).value_counts().to_pylist():
            name = str(entry["values"])
            self.classes[name] = self.classes.get(name, 0) + entry["counts"]
        for name in profiled.numbers:
            values = batch.column(name).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
            self.numbers[name] = self.number(name) + binned(values)
        known = pc.sum(pc.is_in(batch.column("item_id"), value_set=known_items)).as_py() or 0
        self.unknown_items += batch.num_rows - known


@dataclass(frozen=True, kw_only=True)
class Calendar:
    """Which days are judged, and which each is held against."""

    today: Date
    judged: tuple[Date, ...]
    rows: Mapping[Date, int]
    """Rows of each date that the table has."""
    left_out: frozenset[Date]
    """In quarantine: no reference for others."""
    limits: SuiteLimits

    @property
    def accepted(self) -> frozenset[Date]:
        """Days that somebody has said are as they should be."""
        return frozenset(day.date for day in self.limits.accepted_days)

    def references(self, date: Date) -> list[Date]:
        """The days before it that it is held against, oldest first; none where they are too few or it is accepted."""
        if date in self.accepted:
            return []
        before = [date - datetime.timedelta(days=n) for n in range(self.limits.reference_days, 0, -1)]
        fit = [
            day
            for day in before
            if self.rows.get(day, 0) >= self.limits.min_day_rows and day not in self.left_out | self.accepted
        ]
        return fit if len(fit) >= self.limits.min_reference_days else []

    @property
    def read(self) -> list[Date]:
        """Every date whose rows are needed."""
        return sorted({day for date in self.judged for day in (date, *self.references(date))})


def tally_days(
    dataset: ds.Dataset, dates: Iterable[Date], profiled: Profiled, known_items: pa.Array
) -> dict[Date, DayTally]:
    """Counts each date's rows, a batch at a time. Columns that the table lacks are not compared."""
    present = Profiled(
        classes=profiled.classes, numbers=tuple(name for name in profiled.numbers if name in dataset.schema.names)
    )
    tallies = {}
    for date in dates:
        tallies[date] = DayTally()
        columns = [present.classes, *present.numbers, "item_id"]
        for batch in dataset.to_batches(columns=columns, filter=pc.field("event_date") == date):
            tallies[date].add(batch, present, known_items)
    return tallies


def compare_days(calendar: Calendar, tallies: Mapping[Date, DayTally], profiled: Profiled) -> pd.DataFrame:
    """One row a judged date: `FIGURES`, and the distance of each number."""
    return pd.DataFrame(
        [_compare(calendar, date, tallies, profiled) for date in calendar.judged],
        columns=["event_date", "rows", *FIGURES, *(distance_of(name) for name in profiled.numbers)],
    )


FIGURES = ("volume_ratio", "class_ratio", "class_distance", "unknown_share")
"""Rows per usual rows, the least share per usual share of a class, the distance of the classes, unknown items."""


def distance_of(column: str) -> str:
    """The figure's name of a number's distance."""
    return f"{DISTANCE}{column}"


def _compare(calendar: Calendar, date: Date, tallies: Mapping[Date, DayTally], profiled: Profiled) -> dict[str, object]:
    day, references = tallies[date], [tallies[each] for each in calendar.references(date)]
    figures: dict[str, object] = {"event_date": date, "rows": day.rows}
    if date not in calendar.accepted:
        figures["unknown_share"] = share(day.unknown_items, day.rows)
    if not references:
        return figures
    if date < calendar.today:
        figures["volume_ratio"] = day.rows / float(np.median([each.rows for each in references]))
    if day.rows < calendar.limits.min_day_rows:
        return figures
    names = sorted({name for each in (day, *references) for name in each.classes})
    counts = np.array([day.classes.get(name, 0) for name in names])
    usual = np.array([sum(each.classes.get(name, 0) for each in references) for name in names])
    figures["class_distance"] = total_variation(counts, usual)
    figures["class_ratio"] = _least_ratio(counts, usual)
    for name in profiled.numbers:
        together = np.sum([each.number(name) for each in references], axis=0)
        if min(together.sum(), day.number(name).sum()) >= calendar.limits.min_day_rows:
            figures[distance_of(name)] = kolmogorov_smirnov(day.number(name), together)
    return figures


def _least_ratio(counts: Counts, usual: Counts) -> float:
    """Least of count over usual count, of the classes of which at least `MIN_JUDGED` are usual."""
    expected = usual / usual.sum() * counts.sum()
    judged = expected >= MIN_JUDGED
    return float((counts[judged] / expected[judged]).min(initial=np.inf)) if judged.any() else np.nan


def share(part: int, whole: int) -> float:
    """The part of the whole; NaN of fewer than `MIN_JUDGED`."""
    return part / whole if whole >= MIN_JUDGED else np.nan


def add_figure(days: pd.DataFrame, name: str, of: Callable[[Date], float], accepted: Collection[Date]) -> None:
    """Adds a figure to each judged date that is not accepted as it is."""
    days[name] = [np.nan if date in accepted else of(date) for date in days["event_date"]]
