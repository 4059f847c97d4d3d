"""Spark refuses the same records, for the same reason, as `features.events.parse_event`."""

import json
import random
from collections.abc import Iterator

from pyspark.sql import SparkSession

from batch.contract_sql import read_contract
from features.events import FIELDS, FUTURE_SKEW_MS, MAX_EVENT_BYTES, ContractError, EventType, parse_event

NOW_MS = 1_760_000_000_000
VALID = {
    "event_id": "e-1",
    "event_type": "watch",
    "event_time_ms": NOW_MS,
    "user_id": "u1",
    "item_id": "i1",
    "category": "music",
    "creator_id": "c1",
    "request_id": "r1",
    "position": 3,
    "watch_ms": 900,
    "duration_ms": 1_000,
    "device": "phone",
    "schema_version": 1,
}
ABSENT = object()
ODD_VALUES = [
    ABSENT, None, "", " ", "a b", "a\n", "é", "x" * 32, "x" * 33, "x" * 64, "x" * 65, "x" * 128, "x" * 129,
    0, 1, 2, -1, -0.0, 1.0, 1.5, True, False, "7", "07", "+7", "-7", "7\n", "1e3", "1.5", "1e300", 1e300, 10**17,
    99, 100, 10**18, 10**30, 10**1_100, 86_400_000, 86_400_001, 9_999, 10_000, {}, {"a": 1}, [], [1], '{"a":1}', "{",
    "[", "[1]", "\x00", "\ud800", "like", "LIKE", NOW_MS + FUTURE_SKEW_MS, NOW_MS + FUTURE_SKEW_MS + 1, 1_000,
    str(NOW_MS),
]  # fmt: skip
TEXT = json.dumps(VALID)
ODD_BYTES = [
    b"", b" ", b"null", b"1", b'"x"', b"[]", b"{}", b"[" + TEXT.encode() + b"]", TEXT.encode() + b" x", b"NaN",
    TEXT.encode() + b"}", TEXT.encode() + b"]", TEXT.encode() + b"," + TEXT.encode(), TEXT.encode() + b" \n\t\r ",
    b"\xef\xbb\xbf" + TEXT.encode(), TEXT.encode("utf-16"), b"\xff\xfe", TEXT.replace('"', "'").encode(),
    TEXT[:-1].encode(), TEXT.replace("phone", "ph\tone").encode(), TEXT.replace("phone", "\\ud83d\\ude00").encode(),
    b'{"event_type":"like","event_type":null}', b'{"event_type":null,"event_type":"like"}', b'{"extra":NaN}',
    TEXT.replace('"u1"', "NaN").encode(), TEXT.replace('"u1"', "01").encode(), TEXT.replace('"u1"', "-0").encode(),
    TEXT.replace('"u1"', '{"a":').encode(), TEXT.replace("3", "1e400").encode(),
    TEXT.replace("u1", "u\xed\xa0\x80").encode("latin-1"),
    TEXT.replace("}", ',"more":{"a":[1,2,{}]}}').encode(), TEXT.replace("1}", '2,"mood":"calm"}').encode(),
    TEXT.replace("1}", '100,"mood":"calm"}').encode(),
    TEXT.replace("}", ',"pad":"' + "x" * MAX_EVENT_BYTES + '"}').encode(), TEXT.replace("}", "/*c*/}").encode(),
]  # fmt: skip


def odd_records(rng: random.Random) -> Iterator[bytes]:
    """Every field with every odd value, for several types; then records with several faults at once."""
    yield from ODD_BYTES
    for field in FIELDS:
        for value in ODD_VALUES:
            yield record({"event_type": rng.choice(list(EventType)), field.name: value})
    for _ in range(1_500):
        faults = rng.sample(FIELDS, rng.randint(1, 3))
        yield record({field.name: rng.choice(ODD_VALUES) for field in faults})
    for event_type in EventType:
        yield record({"event_type": event_type})


def record(changes: dict[str, object]) -> bytes:
    return json.dumps({name: value for name, value in {**VALID, **changes}.items() if value is not ABSENT}).encode()


def judge(value: bytes) -> tuple[str | None, dict[str, object]]:
    try:
        event = parse_event(value, NOW_MS)
    except ContractError as error:
        return error.reason, dict.fromkeys(field.name for field in FIELDS)
    return None, {field.name: getattr(event, field.name) for field in FIELDS}


def test_spark_and_python_agree_on_every_odd_record(spark: SparkSession) -> None:
    values = list(odd_records(random.Random(3)))
    rows = [(n, bytearray(value), NOW_MS) for n, value in enumerate(values)]
    judged = read_contract(spark.createDataFrame(rows, "n INT, value BINARY, arrival_ms BIGINT")).collect()
    assert len(judged) == len(values)
    disagreements = []
    for row in judged:
        reason, fields = judge(values[row.n])
        got = {name: row[name] for name in fields}
        if (row.reason, got) != (reason, fields):
            disagreements.append((values[row.n][:200], row.reason, reason))
    assert disagreements == [], "value, what Spark says, what Python says"
    assert 100 < sum(row.reason is None for row in judged) < len(values) - 500, "the test has both kinds"
