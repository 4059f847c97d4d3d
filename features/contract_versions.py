"""Versions of the event contract: `python -m features.contract_versions [--record]`.

Each released version stands in `features/contracts/events-<version>.json`. The command exits with 1 when the code's
contract is not the recorded one of its `SCHEMA_VERSION`, or a version is not a compatible extension of the one before
it; `--record` writes the file of a new version.

Compatible, in both directions: readers of the older version take the newer one's events (they leave out what they do
not know), and readers of the newer version take the older one's. So a version may add optional fields and nothing else;
producers and readers are then deployed in any order. Avro and Confluent's registry call it FULL_TRANSITIVE.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from features.events import (
    ALL_TYPES,
    FIELDS,
    FUTURE_SKEW_MS,
    GENERATION_SIZE,
    HORIZON_MS,
    ID_PATTERN,
    INTEGER_PATTERN,
    MAX_EVENT_BYTES,
    SCHEMA_VERSION,
    EventField,
    FieldKind,
)

CONTRACTS = Path(__file__).parent / "contracts"
Contract = Mapping[str, Any]


class ContractChangeError(ValueError):
    """A contract that may not be released as it is; each line says what was got and what to do."""


def contract() -> dict[str, Any]:
    """The code's own contract as data."""
    return {
        "schema_version": SCHEMA_VERSION,
        "event_types": sorted(str(event_type) for event_type in ALL_TYPES),
        "rules": {
            "max_event_bytes": MAX_EVENT_BYTES,
            "horizon_ms": HORIZON_MS,
            "future_skew_ms": FUTURE_SKEW_MS,
            "id_pattern": ID_PATTERN,
            "integer_pattern": INTEGER_PATTERN,
        },
        "fields": {field.name: _field(field) for field in FIELDS},
    }


def _field(field: EventField) -> dict[str, Any]:
    described: dict[str, Any] = {
        "kind": str(field.kind),
        "required_for": sorted(str(event_type) for event_type in field.required_for),
    }
    if field.kind is FieldKind.ID:
        described["max_bytes"] = field.max_bytes
    if field.kind is FieldKind.INTEGER:
        described |= {"minimum": field.minimum, "maximum": field.maximum}
    return described


def breaking_changes(old: Contract, new: Contract) -> list[str]:
    """What in the new contract keeps it from being a compatible extension of the old one; empty if it is one."""
    return list(_breaking_changes(old, new))


def _breaking_changes(old: Contract, new: Contract) -> Iterator[str]:
    for event_type in sorted({*old["event_types"]} ^ {*new["event_types"]}):
        who = "older readers refuse" if event_type in new["event_types"] else "newer readers refuse"
        yield f"event type {event_type}: {who} its events"
    for rule in sorted(old["rules"].keys() | new["rules"].keys()):
        was, now = old["rules"].get(rule), new["rules"].get(rule)
        if was != now:
            yield f"{rule}: was {was}, is {now}: the two versions refuse different events"
    for name, was in old["fields"].items():
        now = new["fields"].get(name)
        if now is None:
            yield f"field {name}: removed, and older readers and tables still have it; keep it, optional or not"
        elif now != was:
            parts = ", ".join(f"{key} was {was.get(key)}, is {now.get(key)}" for key in now if was.get(key) != now[key])
            yield f"field {name}: {parts}: the two versions refuse different events"
    for name, field in new["fields"].items():
        if name not in old["fields"] and field["required_for"]:
            yield f"field {name}: required from the start, but older producers do not send it; make it optional"


def generation(version: int) -> int:
    """Which generation a version is of; versions of one generation extend each other."""
    return version // GENERATION_SIZE


def recorded(folder: Path = CONTRACTS) -> dict[int, Contract]:
    """The released contracts by version, oldest first."""
    found = [json.loads(path.read_text()) for path in folder.glob("events-*.json")]
    return {each["schema_version"]: each for each in sorted(found, key=lambda each: int(each["schema_version"]))}


def check(current: Contract, released: Mapping[int, Contract]) -> None:
    """Raises `ContractChangeError` unless the current contract is recorded and each version extends those before it."""
    version = current["schema_version"]
    problems: list[str] = []
    if version not in released:
        problems.append(f"version {version} is not recorded: run python -m features.contract_versions --record")
    elif released[version] != current:
        changes = breaking_changes(released[version], current) or ["optional fields were added"]
        problems += [f"version {version} was released otherwise: {change}; raise SCHEMA_VERSION" for change in changes]
    chain = [*(each for number, each in released.items() if number < version), current]
    for at, new in enumerate(chain):
        problems += _not_extended(new, chain[:at])
    if problems:
        raise ContractChangeError("\n".join(problems))


def _not_extended(new: Contract, before: Sequence[Contract]) -> Iterator[str]:
    version = new["schema_version"]
    for old in before:
        if generation(old["schema_version"]) == generation(version):
            for change in breaking_changes(old, new):
                yield (
                    f"version {version} does not extend version {old['schema_version']}: {change}; "
                    f"or start the next generation with version {(generation(version) + 1) * GENERATION_SIZE}"
                )


def record(current: Contract, folder: Path = CONTRACTS) -> Path:
    """Writes the file of a version that has none and extends those before it. Raises `ContractChangeError`."""
    check(current, recorded(folder) | {current["schema_version"]: current})
    path = folder / f"events-{current['schema_version']}.json"
    if path.exists() and json.loads(path.read_text()) != current:
        raise ContractChangeError(f"{path.name} was released with another content; raise SCHEMA_VERSION")
    path.write_text(json.dumps(current, indent=1) + "\n")
    return path


def main(arguments: list[str] | None = None) -> int:
    """The command. Exit code 0 when the contract may be released; 1 with a line a problem."""
    parser = argparse.ArgumentParser(prog="python -m features.contract_versions", description=__doc__)
    parser.add_argument("--record", action="store_true", help="write the file of this version")
    given = parser.parse_args(arguments)
    try:
        if given.record:
            record(contract())
        check(contract(), recorded())
    except ContractChangeError as error:
        sys.stderr.write("".join(f"contract: {line}.\n" for line in str(error).splitlines()))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
