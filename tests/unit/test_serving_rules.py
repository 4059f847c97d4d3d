"""The rules file: what it says when it is read, what is refused, whom a rule is for, and how a change is followed."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import serving
from models.item_table import train_item_table
from serving.filters import exclusions
from serving.options import parse_arguments
from serving.processes import StartError
from serving.query import ItemRules
from serving.rule_index import RuleIndexes, index_rules, unknown_names
from serving.rules import MAX_NAMES, NO_RULES, Audience, Rules, RulesError, read_rules
from serving.rules_watch import RulesWatcher
from serving.users import unknown_user
from serving.worker import Worker
from tests.serving_bundle import START_MS, tiny_items

TABLE = train_item_table(tiny_items())
EXAMPLE = Path(serving.__file__).parent / "rules.example.toml"


def _audience(**changed: Any) -> Audience:
    usual: dict[str, Any] = {
        "surface": "home",
        "language": "en",
        "device": "tv",
        "interests": frozenset({"art"}),
        "instant_ms": START_MS,
    }
    return Audience(**{**usual, **changed})


def _rules(text: str, tmp_path: Path) -> Rules:
    file = tmp_path / "rules.toml"
    file.write_text(text)
    return read_rules(file)


def _ms(*when: int) -> int:
    return int(datetime(*when, tzinfo=UTC).timestamp() * 1000)  # type: ignore[arg-type, misc]


def test_the_example_is_read_and_shows_every_key() -> None:
    rules = read_rules(EXAMPLE)
    text = EXAMPLE.read_text()
    assert len(rules.version) == 12
    for kind, field in Rules.model_fields.items():
        if kind == "version":
            continue
        model = field.annotation.__args__[0]  # type: ignore[union-attr]
        assert f"[[{kind}]]" in text
        for key, of_rule in model.model_fields.items():
            assert f"\n{of_rule.alias or key} = " in text, f"the example lacks {kind}.{key}"
    assert unknown_names(rules, TABLE) == 1  # the creator cats-9


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[pin]]\nname='a'\nitem='x'\nposition=-1", "pin 'a', position: input should be greater than or"),
        ("[[pin]]\nname='a'\nitem='x'\nposition=500", "pin 'a', position: input should be less than 500"),
        ("[[pin]]\nname='a'\nposition=1", "pin 'a', item: field required"),
        ("[[pin]]\nitem='x'\nposition=1", "pin number 0, name: field required"),
        ("[[pin]]\nname='a b'\nitem='x'\nposition=1", "pin 'a b', name: string should match"),
        (
            "[[pin]]\nname='a'\nitem='x'\nposition=1\nposiition=2",
            "unknown key pin 'a', posiition",
        ),
        (
            "[[pin]]\nname='a'\nitem='x'\nposition=1\nfrom=2026-01-01T00:00:00",
            "pin 'a', from: input should have timezone info",
        ),
        (
            "[[pin]]\nname='a'\nitem='x'\nposition=1\nfrom=2026-01-02T00:00:00Z\nuntil=2026-01-01T00:00:00Z",
            "pin 'a': got from 2026-01-02T00:00:00+00:00, until 2026-01-01T00:00:00+00:00; allowed: from < until",
        ),
        ("[[boost]]\nname='b'\nadd=1", "boost 'b': got none of items, creators, categories, languages"),
        ("[[boost]]\nname='b'\nitems=['x']", "boost 'b': got add=None, multiply=None; allowed: exactly one"),
        ("[[boost]]\nname='b'\nitems=['x']\nadd=1\nmultiply=2", "allowed: exactly one"),
        ("[[boost]]\nname='b'\nitems=['x']\nadd=nan", "boost 'b', add: input should be a finite number"),
        ("[[block]]\nname='c'", "block 'c': got none of items, creators, categories"),
        ("[[block]]\nname='c'\nitems=['x', '']", "block 'c', items.1: string should have at least 1"),
        ("[[block]]\nname='c'\nitems='x'", "block 'c', items: input should be a valid"),
        ("[[block]]\nname='c'\nitems=['x']\n[[pin]]\nname='c'\nitem='x'\nposition=0", "the name 'c' twice"),
        ("[[versions]]\nname='d'\nitems=['x']", "versions 'd', items: tuple should have at least 2"),
        ("[[versions]]\nname='d'\nitems=['x', 'x']", "the item 'x' twice in versions"),
        ("[[blocks]]\nname='c'", "unknown key blocks; allowed: pin, boost, block, versions"),
        ("version='1'", "unknown key version; allowed: pin, boost, block, versions"),
        ("pin = 3", "pin: input should be a valid"),
        ("[[pin", "cannot be read: "),
        (
            "[[pin]]\nname='a'\nitem='x'\nposition=-1\n[[block]]\nname='c'\nitems=['x']\nkey=1",
            "pin 'a', position: input should be greater than or equal to 0; unknown key block 'c', key.",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(RulesError) as refused:
        _rules(text, tmp_path)
    sentence = str(refused.value)
    assert said in sentence and "\n" not in sentence and str(tmp_path / "rules.toml") in sentence


def test_the_lists_of_a_file_are_bounded_together(tmp_path: Path) -> None:
    half = ", ".join(f"'i{k}'" for k in range(MAX_NAMES // 2))
    both = f"[[block]]\nname='a'\nitems=[{half}]\n[[block]]\nname='b'\nitems=[{half}"
    assert len(_rules(both + "]", tmp_path).block) == 2
    with pytest.raises(RulesError, match=r"got 20001 ids and names; allowed: 20000"):
        _rules(both + ", 'one-more']", tmp_path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RulesError, match=r"rules .*nowhere cannot be read"):
        read_rules(tmp_path / "nowhere")


def test_an_empty_file_has_no_rules_but_a_version(tmp_path: Path) -> None:
    rules = _rules("", tmp_path)
    assert rules.version != NO_RULES.version and not (rules.pin or rules.boost or rules.block or rules.versions)


@pytest.mark.parametrize(
    ("when", "holds", "does_not"),
    [
        ("surfaces=['home']", {}, {"surface": "search"}),
        ("languages_of_users=['en']", {}, {"language": None}),
        ("devices=['tv', 'phone']", {"device": "phone"}, {"device": ""}),
        ("interests=['art']", {}, {"interests": frozenset()}),
        ("from=2026-01-01T00:00:00Z", {"instant_ms": _ms(2026, 1, 1)}, {"instant_ms": _ms(2026, 1, 1) - 1}),
        ("until=2026-01-01T01:00:00+01:00", {"instant_ms": _ms(2026, 1, 1) - 1}, {"instant_ms": _ms(2026, 1, 1)}),
        ("surfaces=['home']\ndevices=['tv']", {}, {"device": "phone"}),
    ],
)
def test_a_rule_holds_for_its_audience(
    when: str, holds: dict[str, Any], does_not: dict[str, Any], tmp_path: Path
) -> None:
    index = index_rules(_rules(f"[[block]]\nname='c'\nitems=['art00']\n{when}", tmp_path), TABLE)
    blocked_I = index.blocked(_audience(**holds))
    assert blocked_I is not None and np.flatnonzero(blocked_I).tolist() == [TABLE.index["art00"]]
    assert index.blocked(_audience(**does_not)) is None


def test_blocks_name_items_creators_and_categories(tmp_path: Path) -> None:
    text = "[[block]]\nname='c'\nitems=['art00', 'nope']\ncreators=['cats-1', 'nobody']\ncategories=['song', 'none']"
    blocked_I = index_rules(_rules(text, tmp_path), TABLE).blocked(_audience())
    assert blocked_I is not None
    expected = {
        item.item_id
        for item in tiny_items()
        if item.item_id == "art00" or item.creator_id == "cats-1" or item.category == "song"
    }
    assert {TABLE.item_ids[i] for i in np.flatnonzero(blocked_I)} == expected


def test_boosts_name_languages_too_and_unknown_names_boost_nothing(tmp_path: Path) -> None:
    text = "[[boost]]\nname='b'\nlanguages=['pt']\nadd=1\n[[boost]]\nname='c'\nitems=['nope']\nmultiply=0"
    rules = _rules(text, tmp_path)
    item_index_C = np.arange(4, dtype=np.int32)
    (boost,) = index_rules(rules, TABLE).effects(_audience(), item_index_C, ()).boosts
    assert (boost.rule, boost.add, boost.multiply) == ("b", 1.0, 1.0)
    assert boost.boosted_C.tolist() == [item.language == "pt" for item in tiny_items()[:4]]
    assert unknown_names(rules, TABLE) == 1


def test_a_multiplier_of_zero_is_one(tmp_path: Path) -> None:
    index = index_rules(_rules("[[boost]]\nname='b'\nitems=['art00']\nmultiply=0", tmp_path), TABLE)
    assert index.effects(_audience(), np.array([0], np.int32), ()).boosts[0].multiply == 0


def test_which_pins_hold(tmp_path: Path) -> None:
    def pin(name: str, item: str, position: int, more: str = "") -> str:
        return f"[[pin]]\nname='{name}'\nitem='{item}'\nposition={position}\n{more}\n"

    text = (
        pin("late", "art03", 7) + pin("unknown", "nope", 0) + pin("seen", "art01", 0)
        + pin("again", "art01", 3, "repeat=true") + pin("hidden", "art02", 0, "repeat=true")
        + pin("first", "art04", 1) + pin("second", "art04", 2) + pin("elsewhere", "art05", 0, "surfaces=['tv']")
    )  # fmt: skip
    index = index_rules(_rules(text, tmp_path), TABLE)
    state = unknown_user("u", START_MS)
    state = type(state)(**{**vars(state), "seen": {"art01": START_MS}, "hidden": frozenset({"art02"})})
    excluded = exclusions(TABLE, state, ItemRules())
    found = index.pinned(_audience(), excluded, 8)
    assert [(pin.rule, pin.position) for pin in found] == [("first", 1), ("again", 3), ("late", 7)]
    assert [pin.rule for pin in index.pinned(_audience(), excluded, 7)] == ["first", "again"]
    assert index.pinned(_audience(), excluded, 0) == ()


def test_an_index_is_kept_until_rules_or_table_change(tmp_path: Path) -> None:
    indexes, rules = RuleIndexes(), _rules("", tmp_path)
    kept = indexes.of(rules, TABLE)
    assert indexes.of(rules, TABLE) is kept
    assert indexes.of(NO_RULES, TABLE).rules is NO_RULES
    assert indexes.of(NO_RULES, train_item_table([])).table is not TABLE


def _replace(file: Path, text: str) -> None:
    new = file.with_suffix(".new")
    new.write_text(text)
    new.replace(file)


def test_a_change_is_followed_and_a_bad_one_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file, switched = tmp_path / "rules.toml", list[str]()
    file.write_text("")
    watcher = RulesWatcher(file, switched.append)
    first = watcher.rules
    watcher.look()
    assert watcher.rules is first and watcher.refused == 0
    _replace(file, "[[block]]\nname='c'\nitems=['art00']")
    watcher.look()
    second = watcher.rules
    assert second.block and switched == [first.version, second.version]
    _replace(file, "[[block]]\nname='c'")
    for _ in range(2):
        watcher.look()
        assert watcher.rules is second and watcher.refused == 1
    assert f"version {second.version} goes on: rules {file}: block 'c'" in caplog.text
    file.unlink()
    watcher.look()
    assert watcher.rules is second and watcher.refused == 2
    _replace(file, "")
    watcher.look()
    assert watcher.rules.version == first.version and switched[-1] == first.version


def test_a_bad_file_at_the_start_is_refused_and_none_is_no_rules(tmp_path: Path) -> None:
    with pytest.raises(RulesError):
        RulesWatcher(tmp_path / "nowhere")
    nowhere = ["--port", "1", "--bundles", str(tmp_path), "--feature-repo", str(tmp_path), "--rules", "nowhere.toml"]
    with pytest.raises(StartError, match=r"rules nowhere.toml cannot be read: .* does not start without the rules"):
        Worker(parse_arguments(nowhere), clock_ms=lambda: 0)
    watcher = RulesWatcher(None)
    watcher.start()
    watcher.look()
    watcher.stop()
    assert watcher.rules is NO_RULES
