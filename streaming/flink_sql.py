"""The stream job as Flink SQL text, compiled from the contract (`features`). Pure functions; no engine here.

    events topic ─► records ─► judged ─┬─► dead letters     reason is not null
                   (text of   (first   ├─► too late         arrival - event time beyond the horizon
                    fields)   broken   └─► counted          first of each (user_id, event_id) by offset
                              rule)           ├─► interactions
                                              └─► one GROUP BY a tile family ─► compacted tile topics

Every record that is read leaves by exactly one of: dead letters, too late, duplicate of a counted one, counted.
"""

import hashlib
from dataclasses import dataclass

from features.events import (
    ALL_TYPES,
    FIELDS,
    FUTURE_SKEW_MS,
    HORIZON_MS,
    ID_PATTERN,
    INTEGER_PATTERN,
    MAX_EVENT_BYTES,
    EventField,
    FieldKind,
    Reason,
)
from features.names import Topics
from features.tiles import FAMILIES, TileFamily, column_sql

UTF8_MAX_BYTES = 3
"""Most bytes that one UTF-16 unit of a decoded text can have come from."""
MAX_DEAD_LETTER_BYTES = 2 * 1024 * 1024
"""Largest record that the job produces: the broker's largest record (1 MiB) in base64, with its envelope."""

_INTERACTION_FIELDS = (
    "event_id",
    "event_type",
    "event_time_ms",
    "user_id",
    "item_id",
    "category",
    "creator_id",
    "watch_ms",
    "duration_ms",
)
_PLACE = ("partition", "offset", "arrival_ms")
_PLACE_TYPES = {"partition": "INT", "offset": "BIGINT", "arrival_ms": "BIGINT"}


@dataclass(frozen=True, kw_only=True)
class JobSql:
    """The job's statements, in the order of execution; the inserts belong in one statement set."""

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
        return ";\n\n".join((*self.tables, *self.views, *self.inserts)) + ";\n"


def compile_job(topics: Topics, bootstrap_servers: str, families: tuple[TileFamily, ...] = FAMILIES) -> JobSql:
    """The whole job between these topics."""
    return JobSql(
        tables=(
            source_table(topics, bootstrap_servers),
            *sink_tables(topics, bootstrap_servers),
            *(tile_table(family, topics, bootstrap_servers) for family in families),
        ),
        views=(*record_views(), judged_view(), *counted_views()),
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
        "`proctime` AS PROCTIME()",
    ]
    return _table("events_topic", columns, options)


def sink_tables(topics: Topics, bootstrap_servers: str) -> tuple[str, str, str]:
    """Dead letters, too late events and interactions: appended, at least once."""
    place = [f"`{name}` {_PLACE_TYPES[name]}" for name in _PLACE]
    letter = ["`reason` STRING", *place, "`value` STRING", "`value_base64` STRING"]
    plain = {"format": "json", "json.encode.ignore-null-fields": "true"}
    event = [_declared(field) for field in FIELDS]
    interaction = [_declared(field) for field in FIELDS if field.name in _INTERACTION_FIELDS]
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
        # Freshness before batching: a few milliseconds still fill batches under load.
        "properties.linger.ms": "5",
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


def record_views() -> tuple[str, str]:
    """The record as text, then each field as text: null where it is absent, null, an object or an array.

    `barrier` keeps the planner from merging this view into the next, where it would read the JSON once for every
    mention of a field: it merges no projection of which a non-deterministic column is mentioned twice. One run
    each over 500,000 events, without the tiles: 81 s of processor time without it, 40 s with it, start-up included.
    """
    decoded = (
        "CREATE VIEW decoded AS\n"
        "SELECT `value`, DECODE(`value`, 'UTF-8') AS `text`, `partition`, `offset`, `proctime`,\n"
        f"  {_EPOCH_MS} AS arrival_ms\n"
        "FROM events_topic"
    )
    texts = ",\n  ".join(f"JSON_VALUE(`text`, '$.{field.name}') AS {_text(field)}" for field in FIELDS)
    place = _names((*_PLACE, "proctime"))
    records = f"CREATE VIEW records AS\nSELECT `value`, `text`, {place}, RAND() AS barrier,\n  {texts}\nFROM decoded"
    return decoded, records


_EPOCH_MS = (
    "CAST(TIMESTAMPDIFF(SECOND, TO_TIMESTAMP_LTZ(0, 3), `arrival`) AS BIGINT) * 1000"
    " + EXTRACT(MILLISECOND FROM `arrival`)"
)


def judged_view() -> str:
    """Adds `reason`: the first broken rule as `features.events.parse_event` names it; null for a valid event."""
    rules = "\n    ".join(f"WHEN {broken} THEN '{reason}'" for broken, reason in contract_rules())
    texts = ", ".join(_text(field) for field in FIELDS)
    place = _names((*_PLACE, "proctime"))
    return (
        f"CREATE VIEW judged AS\nSELECT `value`, `text`, {place}, {texts},\n"
        f"  CASE\n    {rules}\n  END AS reason\nFROM records\n{_BARRIER}"
    )


_BARRIER = "WHERE barrier + barrier >= 0"
"""Always true; see `record_views`."""


def contract_rules() -> list[tuple[str, str]]:
    """The contract's rules in order: when a record breaks one (SQL over `records`), and the reason to give."""
    event_type = next(field for field in FIELDS if field.kind is FieldKind.EVENT_TYPE)
    return [
        (_OVERSIZED, str(Reason.OVERSIZED)),
        (f"`value` IS NULL OR NOT ({_IS_UTF8}) OR NOT ({_IS_OBJECT})", str(Reason.UNPARSABLE)),
        *_field_rules(event_type),
        *(rule for field in FIELDS if field is not event_type for rule in _field_rules(field)),
        (f"CAST(event_time_ms_text AS BIGINT) - arrival_ms > {FUTURE_SKEW_MS}", str(Reason.FUTURE)),
    ]


# Each test has a cheap half that nearly every record passes, and an exact half for the rest.
_OVERSIZED = (
    f"CHAR_LENGTH(`text`) > {MAX_EVENT_BYTES // UTF8_MAX_BYTES}"
    f" AND CHAR_LENGTH(DECODE(`value`, 'ISO-8859-1')) > {MAX_EVENT_BYTES}"
)
# Decoding puts U+FFFD in the place of what is not UTF-8.
_IS_UTF8 = "POSITION(U&'\\FFFD' IN `text`) = 0 OR ENCODE(`text`, 'UTF-8') = `value`"
# Flink reads one JSON value and never looks behind it. A text that closes its only brace at its end has nothing
# behind; any other is one value if and only if it is one both as an array's element and as an object's member.
_IS_OBJECT = (
    "`text` IS JSON OBJECT AND ("
    "REGEXP(`text`, '\\A[^}\\]]*\\}[ \\t\\n\\r]*\\z')"
    " OR (CONCAT('[', `text`, ']') IS JSON ARRAY AND CONCAT('{\"\":', `text`, '}') IS JSON OBJECT))"
)


def _field_rules(field: EventField) -> list[tuple[str, str]]:
    text = _text(field)
    rules = [(f"NOT ({_valid_sql(field)})", f"{Reason.INVALID}:{field.name}")]
    if field.required_for:
        absent = f"{text} IS NULL"
        if field.required_for != ALL_TYPES:
            absent = f"{text} IS NULL AND event_type_text IN ({_quoted(field.required_for)})"
        rules.insert(0, (absent, f"{Reason.MISSING}:{field.name}"))
    return rules


def _valid_sql(field: EventField) -> str:
    """Whether a field's text is valid; null (which breaks no rule) where it is null."""
    text = _text(field)
    match field.kind:
        case FieldKind.EVENT_TYPE:
            return f"{text} IN ({_quoted(ALL_TYPES)})"
        case FieldKind.ID:
            return f"CHAR_LENGTH({text}) <= {field.max_bytes} AND {_matches(text, ID_PATTERN)}"
        case FieldKind.INTEGER:
            # TRY_CAST, since AND promises no order; the pattern decides what an integer is.
            number = f"TRY_CAST({text} AS BIGINT) BETWEEN {field.minimum} AND {field.maximum}"
            return f"{_matches(text, INTEGER_PATTERN)} AND {number}"


def _matches(text: str, pattern: str) -> str:
    return f"REGEXP({text}, '\\A(?:{pattern})\\z')"


def counted_views() -> tuple[str, str, str]:
    """Valid events typed; those in time; and of each (user_id, event_id) the first by offset.

    A user's events share a partition and every shuffle keeps their order, so the first to be processed is the first
    by offset.
    """
    typed = ",\n  ".join(
        f"CAST({_text(field)} AS BIGINT) AS `{field.name}`"
        if field.kind is FieldKind.INTEGER
        else f"{_text(field)} AS `{field.name}`"
        for field in FIELDS
    )
    place = _names((*_PLACE, "proctime"))
    valid = f"CREATE VIEW valid AS\nSELECT {place},\n  {typed}\nFROM judged\nWHERE reason IS NULL"
    in_time = f"CREATE VIEW in_time AS\nSELECT *\nFROM valid\nWHERE arrival_ms - event_time_ms <= {HORIZON_MS}"
    kept = _names(_INTERACTION_FIELDS)
    counted = (
        f"CREATE VIEW counted AS\nSELECT {kept}\nFROM (\n"
        "  SELECT *, ROW_NUMBER() OVER (PARTITION BY user_id, event_id ORDER BY proctime ASC) AS copy\n"
        "  FROM in_time\n)\nWHERE copy = 1"
    )
    return valid, in_time, counted


# Inserts: the outputs.


def side_inserts() -> tuple[str, str, str]:
    """Everything but tiles. A dead letter carries its text, or base64 where that is no text or oversized."""
    is_text = f"reason <> '{Reason.OVERSIZED}' AND ({_IS_UTF8})"
    dead = (
        f"INSERT INTO dead_letters\nSELECT reason, {_names(_PLACE)},\n"
        f"  CASE WHEN {is_text} THEN `text` END,\n"
        f"  CASE WHEN NOT ({is_text}) THEN TO_BASE64(`value`) END\n"
        "FROM judged\nWHERE reason IS NOT NULL"
    )
    late = (
        f"INSERT INTO too_late\nSELECT {_names(tuple(f.name for f in FIELDS))}, {_names(_PLACE)}\n"
        f"FROM valid\nWHERE arrival_ms - event_time_ms > {HORIZON_MS}"
    )
    return dead, late, f"INSERT INTO interactions\nSELECT {_names(_INTERACTION_FIELDS)}\nFROM counted"


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


def _text(field: EventField) -> str:
    return f"{field.name}_text"


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _quoted(names: frozenset[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names))
