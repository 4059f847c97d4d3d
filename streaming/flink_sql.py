"""The stream job as Flink SQL text, compiled from the contract (`features`). Pure functions; no engine here.

    events topic ─► judged ──┬─► dead letters   reason is not null
                   (fields,  ├─► too late       arrival - event time beyond the horizon
                    or first └─► marked ─┬─► duplicates     all but the first of a (user_id, event_id) by offset
                    broken               └─► counted ─┬─► interactions
                    rule)                             └─► one GROUP BY a tile family ─► compacted tile topics

Every record that is read leaves by exactly one of dead letters, too late, duplicates and interactions, with its
partition and offset, so that the accounts can be proved (`features.ledger`).
"""

import hashlib
import json
from dataclasses import dataclass

from features.events import (
    ALL_TYPES,
    FIELDS,
    FUTURE_SKEW_MS,
    HORIZON_MS,
    ID_PATTERN,
    INTEGER_PATTERN,
    INTERACTION_FIELDS,
    MAX_EVENT_BYTES,
    EventField,
    FieldKind,
    Reason,
)
from features.names import Topics
from features.tiles import FAMILIES, TileFamily, column_sql

FUNCTIONS = {"read_event": "millrace.ReadEvent", "bit_or": "millrace.BitOr"}
"""The functions of streaming/java by the names that the SQL calls them by."""
MAX_DEAD_LETTER_BYTES = 2 * 1024 * 1024
"""Largest record that the job produces: the broker's largest record (1 MiB) in base64, with its envelope."""

_IDENTITY = ("event_id", "user_id")
"""In this order: ids that grow with time then stand together in the state (infra/adr/0006)."""
_SOURCE = ("partition", "offset")
_PLACE = (*_SOURCE, "arrival_ms")
_PLACE_TYPES = {"partition": "INT", "offset": "BIGINT", "arrival_ms": "BIGINT"}


@dataclass(frozen=True, kw_only=True)
class JobSql:
    """The job's statements, in the order of execution; the inserts belong in one statement set."""

    functions: tuple[str, ...]
    tables: tuple[str, ...]
    views: tuple[str, ...]
    inserts: tuple[str, ...]

    @property
    def plan_hash(self) -> str:
        """SHA-256 of what shapes the state (views and inserts, not connections): two plans never share a checkpoint."""
        return hashlib.sha256("\n".join((*self.views, *self.inserts)).encode()).hexdigest()

    @property
    def script(self) -> str:
        """All statements as one text, for people and for the golden file."""
        return ";\n\n".join((*self.functions, *self.tables, *self.views, *self.inserts)) + ";\n"


def compile_job(topics: Topics, bootstrap_servers: str, families: tuple[TileFamily, ...] = FAMILIES) -> JobSql:
    """The whole job between these topics."""
    return JobSql(
        functions=tuple(f"CREATE TEMPORARY SYSTEM FUNCTION {name} AS '{java}'" for name, java in FUNCTIONS.items()),
        tables=(
            source_table(topics, bootstrap_servers),
            *sink_tables(topics, bootstrap_servers),
            *(tile_table(family, topics, bootstrap_servers) for family in families),
        ),
        views=(*judged_views(), *counted_views()),
        inserts=(*side_inserts(), *(tile_insert(family) for family in families)),
    )


# Tables: what the topics look like to Flink.


def source_table(topics: Topics, bootstrap_servers: str) -> str:
    """Raw bytes, so that no record can fail to be read; where it stands and when it arrived from Kafka itself."""
    options = {
        **_kafka(topics.events, bootstrap_servers),
        "format": "raw",
        # Where a checkpoint is restored, its offsets win.
        "scan.startup.mode": "earliest-offset",
        "properties.group.id": f"millrace-stream-{topics.version}",
        "properties.isolation.level": "read_committed",
    }
    columns = [
        "`value` BYTES",
        "`arrival` TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL",
        "`partition` INT METADATA VIRTUAL",
        "`offset` BIGINT METADATA VIRTUAL",
    ]
    return _table("events_topic", columns, options)


def sink_tables(topics: Topics, bootstrap_servers: str) -> tuple[str, ...]:
    """Dead letters, too late events, duplicates and interactions: appended, at least once, each with its place."""
    place = [f"`{name}` {_PLACE_TYPES[name]}" for name in _PLACE]
    letter = ["`reason` STRING", *place, "`value` STRING", "`value_base64` STRING"]
    plain = {"format": "json", "json.encode.ignore-null-fields": "true"}
    event = [_declared(field) for field in FIELDS]
    source = [f"`{name}` {_PLACE_TYPES[name]}" for name in _SOURCE]
    copy = [*(_declared(field) for field in FIELDS if field.name in _IDENTITY), *source]
    interaction = [*(_declared(field) for field in FIELDS if field.name in INTERACTION_FIELDS), *source]
    by_user = {
        "key.format": "raw",
        "key.fields": "user_id",
        "value.format": "json",
        "value.fields-include": "ALL",
        "value.json.encode.ignore-null-fields": "true",
    }
    sink = _producer()
    return (
        _table("dead_letters", letter, {**_kafka(topics.dead_letters, bootstrap_servers), **plain, **sink}),
        _table("too_late", [*event, *place], {**_kafka(topics.too_late, bootstrap_servers), **plain, **sink}),
        _table("duplicates", copy, {**_kafka(topics.duplicates, bootstrap_servers), **plain, **sink}),
        _table("interactions", interaction, {**_kafka(topics.interactions, bootstrap_servers), **by_user, **sink}),
    )


def tile_table(family: TileFamily, topics: Topics, bootstrap_servers: str) -> str:
    """The family's compacted topic: the latest row of a tile under the tile's key."""
    key = (*family.key_fields, "tile_ms", "tile_start_ms")
    numbers = ("tile_ms", "tile_start_ms", "n", "max_event_time_ms", *(column.name for column in family.columns))
    columns = [
        *(f"`{name}` STRING" for name in family.key_fields),
        *(f"`{name}` BIGINT" for name in numbers),
        f"PRIMARY KEY ({_names(key)}) NOT ENFORCED",
    ]
    options = {
        "connector": "upsert-kafka",
        "topic": topics.tiles(family.name),
        "properties.bootstrap.servers": bootstrap_servers,
        "key.format": "json",
        "value.format": "json",
        **_producer(),
    }
    return _table(_tile_table_name(family), columns, options)


def _kafka(topic: str, bootstrap_servers: str) -> dict[str, str]:
    return {"connector": "kafka", "topic": topic, "properties.bootstrap.servers": bootstrap_servers}


def _producer() -> dict[str, str]:
    """At least once: rows are absolute and idempotent, and a transaction would hold each back to a checkpoint."""
    return {
        "sink.delivery-guarantee": "at-least-once",
        # A few milliseconds fill batches under load and are few of the tenth of a second that freshness may take.
        "properties.linger.ms": "10",
        "properties.compression.type": "lz4",
        "properties.max.request.size": str(MAX_DEAD_LETTER_BYTES),
    }


def _table(name: str, columns: list[str], options: dict[str, str]) -> str:
    body = ",\n  ".join(columns)
    settings = ",\n  ".join(f"'{key}' = '{value}'" for key, value in options.items())
    return f"CREATE TABLE {name} (\n  {body}\n) WITH (\n  {settings}\n)"


def _declared(field: EventField) -> str:
    return f"`{field.name}` {'BIGINT' if field.kind is FieldKind.INTEGER else 'STRING'}"


# Views: the contract.


def contract_json() -> str:
    """The event contract as the function `read_event` reads it (streaming/java/millrace/Contract.java)."""
    fields = [
        {
            "name": field.name,
            "kind": field.kind,
            "required_for": sorted(field.required_for),
            "max_bytes": field.max_bytes,
            "minimum": field.minimum,
            "maximum": field.maximum,
        }
        for field in FIELDS
    ]
    rules = {
        "max_event_bytes": MAX_EVENT_BYTES,
        "future_skew_ms": FUTURE_SKEW_MS,
        "event_types": sorted(ALL_TYPES),
        "id_pattern": ID_PATTERN,
        "integer_pattern": INTEGER_PATTERN,
        "fields": fields,
    }
    return json.dumps(rules)


def judged_views() -> tuple[str, str, str]:
    """Each record with `reason`, the first broken rule as `features.events.parse_event` names it, or its fields."""
    place = _names(_PLACE)
    arrived = (
        "CREATE VIEW arrived AS\nSELECT `value`, `partition`, `offset`,\n"
        f"  {_EPOCH_MS} AS arrival_ms\nFROM events_topic"
    )
    read = (
        f"CREATE VIEW read AS\nSELECT `value`, {place},\n"
        f"  read_event({_literal(contract_json())}, `value`, arrival_ms) AS event\nFROM arrived"
    )
    columns = ", ".join(f"read.event.`{name}` AS `{name}`" for name in ("reason", *(field.name for field in FIELDS)))
    judged = f"CREATE VIEW judged AS\nSELECT `value`, {place},\n  {columns}\nFROM read"
    return arrived, read, judged


_EPOCH_MS = (
    "CAST(TIMESTAMPDIFF(SECOND, TO_TIMESTAMP_LTZ(0, 3), `arrival`) AS BIGINT) * 1000"
    " + EXTRACT(MILLISECOND FROM `arrival`)"
)


def counted_views() -> tuple[str, str, str]:
    """Valid events in time; whether each is a copy of one before; and those that are none.

    A user's events share a partition and every shuffle keeps their order, so the first to be processed is the first
    by offset. ROW_NUMBER would drop the copies unseen.
    """
    kept = _names((*INTERACTION_FIELDS, *_SOURCE))
    in_time = (
        f"CREATE VIEW in_time AS\nSELECT {kept}\nFROM judged\n"
        f"WHERE reason IS NULL AND arrival_ms - event_time_ms <= {HORIZON_MS}"
    )
    so_far = f"COUNT(*) OVER (PARTITION BY {_names(_IDENTITY)} ORDER BY PROCTIME())"
    marked = f"CREATE VIEW marked AS\nSELECT {kept}, {so_far} > 1 AS is_copy\nFROM in_time"
    counted = f"CREATE VIEW counted AS\nSELECT {kept}\nFROM marked\nWHERE NOT is_copy"
    return in_time, marked, counted


# Inserts: the outputs.


def side_inserts() -> tuple[str, ...]:
    """Everything but tiles. A dead letter carries its text, or base64 where that is no text or oversized."""
    text = "DECODE(`value`, 'UTF-8')"
    # Decoding puts U+FFFD in the place of what is not UTF-8.
    is_text = f"reason <> '{Reason.OVERSIZED}' AND ENCODE({text}, 'UTF-8') = `value`"
    dead = (
        f"INSERT INTO dead_letters\nSELECT reason, {_names(_PLACE)},\n"
        f"  CASE WHEN {is_text} THEN {text} END,\n"
        f"  CASE WHEN NOT ({is_text}) THEN TO_BASE64(`value`) END\n"
        "FROM judged\nWHERE reason IS NOT NULL"
    )
    late = (
        f"INSERT INTO too_late\nSELECT {_names(tuple(f.name for f in FIELDS))}, {_names(_PLACE)}\n"
        f"FROM judged\nWHERE reason IS NULL AND arrival_ms - event_time_ms > {HORIZON_MS}"
    )
    copies = f"INSERT INTO duplicates\nSELECT {_names((*_IDENTITY, *_SOURCE))}\nFROM marked\nWHERE is_copy"
    counted = f"INSERT INTO interactions\nSELECT {_names((*INTERACTION_FIELDS, *_SOURCE))}\nFROM counted"
    return dead, late, copies, counted


def tile_insert(family: TileFamily) -> str:
    """One GROUP BY: absolute, growing rows of one tile family.

    `tile_ms` is grouped by, and spelled as if it depended on the event, because the planner has to see that the
    topic's key is the GROUP BY key: otherwise it withdraws each row, by a tombstone, before it sends the next.
    """
    keys = _names((*family.key_fields, "tile_ms", "tile_start_ms"))
    columns = "".join(f",\n  {column_sql(column)} AS `{column.name}`" for column in family.columns)
    start = f"event_time_ms - MOD(event_time_ms, {family.tile_ms})"
    size = f"event_time_ms * 0 + {family.tile_ms}"
    return (
        f"INSERT INTO {_tile_table_name(family)}\n"
        f"SELECT {keys},\n"
        f"  COUNT(*) AS n,\n  MAX(event_time_ms) AS max_event_time_ms{columns}\n"
        f"FROM (SELECT *, {size} AS tile_ms, {start} AS tile_start_ms FROM counted)\n"
        f"GROUP BY {keys}"
    )


def _tile_table_name(family: TileFamily) -> str:
    return f"tiles_{family.name}"


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _literal(text: str) -> str:
    quoted = text.replace("'", "''")
    return f"'{quoted}'"
