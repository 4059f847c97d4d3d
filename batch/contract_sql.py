"""The event contract compiled to Spark SQL: the same rules, in the same order, as `features.events.parse_event`.

`read_contract` turns raw records into typed fields and the reason of refusal, with no Python per record.
"""

from pyspark.sql import DataFrame
from pyspark.sql.functions import expr

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

_END = "millrace.end"
"""A field that no event has. It marks the element behind the record, by which text after the record is found."""
_STRICT_JSON = f"map('allowSingleQuotes', 'false', 'allowNonNumericNumbers', 'false', 'maxNumLen', '{MAX_EVENT_BYTES}')"


def read_contract(records: DataFrame) -> DataFrame:
    """Judges raw records with the columns `value` (binary) and `arrival_ms`, and whatever else they carry.

    Adds `reason` (null when valid), one typed column per event field, `too_late` and `event_date` (UTC); these
    are null where the record is refused. Every row comes back, in no stated order.
    """
    parsed = records.select("*", expr(_parsed_sql()).alias("_parsed")).select("*", expr(_RECORD_SQL).alias("_record"))
    texts = parsed.select("*", *(expr(_text_sql(field)).alias(_text(field)) for field in FIELDS))
    judged = texts.select("*", expr(_reason_sql()).alias("reason"))
    typed = judged.select(*records.columns, "reason", *(expr(_typed_sql(field)).alias(field.name) for field in FIELDS))
    return typed.select(
        "*",
        expr(f"arrival_ms - event_time_ms > {HORIZON_MS}").alias("too_late"),
        expr("CAST(timestamp_millis(event_time_ms) AS DATE)").alias("event_date"),
    )


def _reason_sql() -> str:
    event_type = next(field for field in FIELDS if field.kind is FieldKind.EVENT_TYPE)
    rules = [
        (f"octet_length(value) > {MAX_EVENT_BYTES}", str(Reason.OVERSIZED)),
        ("_record IS NULL", str(Reason.UNPARSABLE)),
        *_field_rules(event_type),
        *(rule for field in FIELDS if field is not event_type for rule in _field_rules(field)),
        (f"CAST(_event_time_ms AS BIGINT) - arrival_ms > {FUTURE_SKEW_MS}", str(Reason.FUTURE)),
    ]
    whens = " ".join(f"WHEN {broken} THEN '{reason}'" for broken, reason in rules)
    return f"CASE {whens} END"


def _field_rules(field: EventField) -> list[tuple[str, str]]:
    text = _text(field)
    invalid = f"{text} IS NOT NULL AND NOT ({_valid_sql(field)})"
    rules = [(invalid, f"{Reason.INVALID}:{field.name}")]
    if field.required_for:
        absent = f"{text} IS NULL"
        if field.required_for != ALL_TYPES:
            absent = f"({absent} AND _event_type IN ({_quoted(field.required_for)}))"
        rules.insert(0, (absent, f"{Reason.MISSING}:{field.name}"))
    return rules


def _valid_sql(field: EventField) -> str:
    text = _text(field)
    if field.kind is FieldKind.EVENT_TYPE:
        return f"{text} IN ({_quoted(ALL_TYPES)})"
    if field.kind is FieldKind.ID:
        return f"length({text}) <= {field.max_bytes} AND {_matches(text, ID_PATTERN)}"
    # The conversion is tried only on text that matched: CASE decides the order, AND does not.
    number = f"CAST({text} AS BIGINT) BETWEEN {field.minimum} AND {field.maximum}"
    return f"CASE WHEN {_matches(text, INTEGER_PATTERN)} THEN {number} ELSE false END"


def _matches(text: str, pattern: str) -> str:
    return rf"{text} RLIKE r'\A(?:{pattern})\z'"


def _typed_sql(field: EventField) -> str:
    kind = "BIGINT" if field.kind is FieldKind.INTEGER else "STRING"
    return f"CASE WHEN reason IS NULL THEN CAST({_text(field)} AS {kind}) END"


def _parsed_sql() -> str:
    """The record as the first element of an array whose second is ours.

    Spark's JSON functions read one value and never look at what follows it.
    """
    columns = ", ".join(f"{field.name} STRING" for field in FIELDS)
    readable = f"octet_length(value) <= {MAX_EVENT_BYTES} AND is_valid_utf8(value)"
    wrapped = f"""concat('[', CASE WHEN {readable} THEN CAST(value AS STRING) END, ',{{"{_END}":"1"}}]')"""
    return f"from_json({wrapped}, 'ARRAY<STRUCT<{columns}, `{_END}` STRING>>', {_STRICT_JSON})"


_RECORD_SQL = f"CASE WHEN size(_parsed) = 2 AND _parsed[1].`{_END}` = '1' THEN _parsed[0] END"
"""The fields as text; null when the value is not one JSON object in UTF-8 and nothing else."""


def _text_sql(field: EventField) -> str:
    """A field's text; null where it is absent, null, an object or an array; what no pattern matches for a fraction.

    Spark gives objects, arrays and numbers as text too; only where a text looks like one is the record read again to
    see whether it was a string.
    """
    text = f"_record.{field.name}"
    kind = f"schema_of_variant(from_json(CAST(value AS STRING), '{field.name} VARIANT', {_STRICT_JSON}).{field.name})"
    nested = f"left({text}, 1) IN ('{{', '[') AND {kind} RLIKE '^(OBJECT|ARRAY)'"
    fraction = f"{text} RLIKE '^-?[0-9]+([.]|[.0-9]*[eE])' AND {kind} != 'STRING'"
    return f"CASE WHEN {nested} THEN NULL WHEN {fraction} THEN 'the number ' || {text} ELSE {text} END"


def _text(field: EventField) -> str:
    return f"_{field.name}"


def _quoted(names: frozenset[object] | frozenset[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(str(name) for name in names))
