"""The event contract is the recorded one, and only a compatible extension of it can be released."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from features.contract_versions import ContractChangeError, breaking_changes, check, contract, main, record, recorded

Contract = dict[str, Any]
OPTIONAL = {"kind": "id", "required_for": [], "max_bytes": 8}


def changed(change: Callable[[Contract], object], version: int = 2) -> Contract:
    new = copy.deepcopy(contract())
    change(new)
    return {**new, "schema_version": version}


def with_field(**field: object) -> Callable[[Contract], object]:
    return lambda new: new["fields"].update(mood={**OPTIONAL, **field})


def of_field(name: str, **values: object) -> Callable[[Contract], object]:
    return lambda new: new["fields"][name].update(values)


def test_the_contract_is_the_released_one() -> None:
    """When this fails: `python -m features.contract_versions` says which change is allowed and how to make it."""
    assert main([]) == 0


def test_an_added_optional_field_is_compatible() -> None:
    assert breaking_changes(contract(), changed(with_field())) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_field(required_for=["watch"]), "field mood: required from the start, but older producers"),
        (lambda new: new["fields"].pop("device"), "field device: removed"),
        (of_field("device", max_bytes=16), "field device: max_bytes was 32, is 16"),
        (of_field("device", max_bytes=64), "field device: max_bytes was 32, is 64"),
        (of_field("device", required_for=["click"]), r"field device: required_for was \[\], is \['click'\]"),
        (of_field("watch_ms", required_for=[]), r"field watch_ms: required_for was \['watch'\], is \[\]"),
        (of_field("position", maximum=99), "field position: maximum was 9999, is 99"),
        (of_field("position", kind="id"), "field position: kind was integer, is id"),
        (lambda new: new["event_types"].append("purchase"), "event type purchase: older readers refuse"),
        (lambda new: new["event_types"].remove("like"), "event type like: newer readers refuse"),
        (lambda new: new["rules"].update(max_event_bytes=9), "max_event_bytes: was 16384, is 9"),
    ],
)  # fmt: skip
def test_every_other_change_is_refused(change: Callable[[Contract], object], said: str) -> None:
    new = changed(change)
    with pytest.raises(ContractChangeError, match=f"version 2 does not extend version 1: {said}.*version 100$"):
        check(new, {1: contract(), 2: new})
    check(changed(change, version=100), {1: contract(), 100: changed(change, version=100)})


def test_a_released_version_stays_as_it_was() -> None:
    silently = changed(with_field(), version=1)
    with pytest.raises(ContractChangeError, match="version 1 was released otherwise: optional fields were added"):
        check(silently, {1: contract()})


def test_each_version_extends_all_before_it() -> None:
    """A field that one version adds may not go in the next, though the one before did not have it."""
    second, third = changed(with_field()), {**contract(), "schema_version": 3}
    with pytest.raises(ContractChangeError, match="version 3 does not extend version 2: field mood: removed"):
        check(third, {1: contract(), 2: second, 3: third})


def test_a_new_version_is_recorded_once(tmp_path: Path) -> None:
    record(contract(), tmp_path)
    second = changed(with_field())
    with pytest.raises(ContractChangeError, match="version 2 is not recorded"):
        check(second, recorded(tmp_path))
    assert json.loads(record(second, tmp_path).read_text()) == second
    check(second, recorded(tmp_path))
    with pytest.raises(ContractChangeError, match="version 2 does not extend version 1"):
        record(changed(with_field(required_for=["like"])), tmp_path)
    with pytest.raises(ContractChangeError, match="released with another content"):
        record(changed(with_field(max_bytes=9)), tmp_path)
