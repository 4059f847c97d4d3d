"""What the user did with each impression: the ranker's labels."""

from pyspark.sql import Column, DataFrame
from pyspark.sql.functions import expr

from features.events import COMPLETION_PERCENT, EventType
from features.names import MS_PER_DAY

ATTRIBUTION_MS = MS_PER_DAY
"""An event is due to an impression of the same user and item at most this long before it."""

_BINARY = {
    "label_click": EventType.CLICK,
    "label_like": EventType.LIKE,
    "label_share": EventType.SHARE,
    "label_hide": EventType.HIDE,
}
_LABELLED = (*_BINARY.values(), EventType.WATCH)


def label_impressions(events: DataFrame, impressions: DataFrame) -> DataFrame:
    """Adds `label_click`, `label_like`, `label_share`, `label_hide` (0 or 1), `label_completion` and
    `label_watch_fraction` (of the longest watch, in [0, 1]; both null without a watch).

    Due to an impression are the events of its user and item in `[t, t + ATTRIBUTION_MS)` that carry its request_id
    or none. `impressions` have a unique `event_id`.
    """
    types = ", ".join(f"'{event_type}'" for event_type in _LABELLED)
    reactions = events.where(f"event_type IN ({types})").selectExpr(
        "user_id", "item_id", "request_id AS of_request", "event_type", "event_time_ms", "watch_ms", "duration_ms"
    )
    places = impressions.select("event_id", "user_id", "item_id", "request_id", "t_ms")
    due = places.join(reactions, ["user_id", "item_id"]).where(
        f"event_time_ms >= t_ms AND event_time_ms < t_ms + {ATTRIBUTION_MS} "
        "AND (of_request IS NULL OR of_request = request_id)"
    )
    labels = due.groupBy("event_id").agg(*_labels())
    told = (f"coalesce({name}, 0) AS {name}" for name in _BINARY)
    joined = impressions.join(labels, "event_id", "left")
    return joined.selectExpr(*impressions.columns, *told, "label_completion", "label_watch_fraction")


def _labels() -> list[Column]:
    watched = f"event_type = '{EventType.WATCH}'"
    completed = f"CASE WHEN {watched} THEN CAST(watch_ms * 100 >= duration_ms * {COMPLETION_PERCENT} AS INT) END"
    fraction = f"CASE WHEN {watched} THEN least(CAST(watch_ms AS DOUBLE) / CAST(duration_ms AS DOUBLE), 1D) END"
    binary = (
        expr(f"max(CAST(event_type = '{event_type}' AS INT))").alias(name) for name, event_type in _BINARY.items()
    )
    return [
        *binary,
        expr(f"max({completed})").alias("label_completion"),
        expr(f"max({fraction})").alias("label_watch_fraction"),
    ]
