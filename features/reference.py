"""The page of all features, written from the lists: `python -m features.reference` writes features/REFERENCE.md."""

import sys
from collections.abc import Iterable
from pathlib import Path

from features.daily import ACTIVITY_VIEWS, DAILY_VIEWS, DailyView
from features.names import MS_PER_DAY, MS_PER_MINUTE
from features.specs import KEY_FIELDS, WINDOWED_FEATURES, Entity, features_of
from features.tiles import feature_columns, resolution_ms

PAGE = Path(__file__).with_name("REFERENCE.md")
_HEAD = """\
# Features

Written from [specs.py](specs.py) and [daily.py](daily.py) by `python -m features.reference`; a test compares.

The value of a windowed feature at an instant counts the events that had arrived before it, in the tiles from
`floor(instant - window)` to `floor(instant)`. The resolution is the tile to which the window's tail is rounded; the
head tile is whole. Integers are exact, others 64-bit floats.
"""


def page() -> str:
    """The whole page."""
    windowed = (line for entity in Entity for line in _windowed(entity))
    daily = (line for view in DAILY_VIEWS for line in _table(view.name, KEY_FIELDS[view.entity], _daily(view)))
    return "\n".join([_HEAD, *windowed, *daily, *_values(), *_selections()])


def _windowed(entity: Entity) -> list[str]:
    rows = [["feature", "definition", "default", "type", "resolution", "tile columns"]]
    for feature in features_of(entity):
        columns = ", ".join(column.name for column in feature_columns(feature))
        kind = "integer" if feature.is_integer else "float"
        resolution = "day" if resolution_ms(feature) == MS_PER_DAY else f"{resolution_ms(feature) // MS_PER_MINUTE} min"
        rows.append([f"`{feature.name}`", feature.meaning, f"{feature.default:.12g}", kind, resolution, columns])
    return _table(ACTIVITY_VIEWS[entity], KEY_FIELDS[entity], rows)


def _daily(view: DailyView) -> list[list[str]]:
    rows = [["feature", "meaning", "type"]]
    return rows + [[f"`{feature.name}`", feature.meaning, feature.dtype] for feature in view.features]


def _values() -> list[str]:
    values = {feature.value.name: feature.value for feature in WINDOWED_FEATURES if feature.value is not None}
    rows = [["value", "meaning", "how many"]]
    rows += [[f"`{value.name}`", value.meaning, f"{value.size:,}"] for _, value in sorted(values.items())]
    return ["## Values", "", *_lines(rows)]


def _selections() -> list[str]:
    chosen = [each for feature in WINDOWED_FEATURES for each in (feature.events, feature.per) if each is not None]
    rows = [["events", "types", "at least"]]
    for name, selection in sorted({each.name: each for each in chosen}.items()):
        least = "" if selection.min_watch_percent is None else f"{selection.min_watch_percent}% of the duration"
        rows.append([name, ", ".join(sorted(selection.event_types)), least])
    return ["## Events", "", *_lines(rows)]


def _table(title: str, keys: Iterable[str], rows: list[list[str]]) -> list[str]:
    return [f"## {title}", "", f"By {', '.join(f'`{key}`' for key in keys)}.", "", *_lines(rows)]


def _lines(rows: list[list[str]]) -> list[str]:
    head, *body = rows
    return [_line(head), _line(["---"] * len(head)), *map(_line, body), ""]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Writes the page."""
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
