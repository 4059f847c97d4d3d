"""Page tokens: what they carry, what is refused, and that a hash table that is kept says what a fresh one says."""

import base64
import random
import zlib

import numpy as np
import pytest

from serving.paging import FIRST_PAGE, MAX_SCROLLED, MAX_TOKEN_CHARACTERS, ItemHashes, TokenError, read_token

IDS = tuple(f"item-{k:05d}" for k in range(3_000))


def _shown(item_ids: tuple[str, ...], token: str) -> set[str]:
    shown_I = ItemHashes().shown(item_ids, read_token(token, "u"))
    return set() if shown_I is None else {item_ids[i] for i in np.flatnonzero(shown_I)}


def test_a_token_remembers_every_page() -> None:
    first = FIRST_PAGE.next_token("u", IDS[:3])
    second = read_token(first, "u").next_token("u", IDS[7:9])
    assert _shown(IDS, "") == set()
    assert _shown(IDS, first) == {*IDS[:3]}
    assert _shown(IDS, second) == {*IDS[:3], *IDS[7:9]}


def test_items_that_left_the_catalogue_and_an_empty_catalogue_do_no_harm() -> None:
    token = FIRST_PAGE.next_token("u", ("gone", IDS[1]))
    assert _shown(IDS, token) == {IDS[1]}
    assert _shown((), token) == set()


def test_items_of_equal_hash_are_left_out_together() -> None:
    one, other = "plumless", "buckeroo"  # a known collision of CRC-32
    assert zlib.crc32(one.encode()) == zlib.crc32(other.encode())
    assert _shown((one, "z", other, "a"), FIRST_PAGE.next_token("u", [one])) == {one, other}


def test_a_scroll_ends_at_its_bound() -> None:
    token = FIRST_PAGE.next_token("u", IDS[: MAX_SCROLLED - 1])
    assert 0 < len(token) <= MAX_TOKEN_CHARACTERS
    assert read_token(token, "u").next_token("u", IDS[-1:]) == ""
    assert FIRST_PAGE.next_token("u", IDS[:MAX_SCROLLED]) == ""


def test_every_altered_character_is_refused() -> None:
    token = FIRST_PAGE.next_token("u", IDS[:5])
    for at in range(len(token)):
        altered = token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]
        with pytest.raises(TokenError):
            read_token(altered, "u")


@pytest.mark.parametrize("rubbish", ["?", "A", "AAAA", "=" * 8, "ü", "A" * (MAX_TOKEN_CHARACTERS + 4)])
def test_what_is_no_token_is_refused(rubbish: str) -> None:
    with pytest.raises(TokenError, match="leave it empty for a first page"):
        read_token(rubbish, "u")


def test_random_bytes_are_refused() -> None:
    draws = random.Random(0)
    for _ in range(300):
        with pytest.raises(TokenError):
            read_token(base64.urlsafe_b64encode(draws.randbytes(draws.randrange(1, 60))).decode(), "u")


def test_a_token_of_another_user_or_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    token = FIRST_PAGE.next_token("u", IDS[:5])
    with pytest.raises(TokenError, match="a token of the same user_id"):
        read_token(token, "")
    monkeypatch.setattr("serving.paging.VERSION", 2)
    with pytest.raises(TokenError, match="a token of version 2, this one is of version 1"):
        read_token(token, "u")


def test_hashes_that_are_kept_say_what_fresh_ones_say() -> None:
    draws, kept = random.Random(1), ItemHashes()
    ids = IDS[:50]
    for _ in range(60):
        change = draws.randrange(4)
        if change == 0:
            ids = (*ids, f"new-{draws.random()}")
        elif change == 1:
            ids = tuple(draws.sample(IDS, draws.randrange(0, 80)))
        elif change == 2:
            ids = (*ids,)
        scroll = read_token(FIRST_PAGE.next_token("u", draws.sample(IDS, 30) + list(ids[:5])), "u")
        one, fresh = kept.shown(ids, scroll), ItemHashes().shown(ids, scroll)
        assert one is not None and fresh is not None and one.tolist() == fresh.tolist()
        assert one[:5].all()
