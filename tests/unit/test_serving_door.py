"""An erased user is anonymous to the service, within a second of the request, and as long as the store is away."""

from pathlib import Path

import pytest

from features.backends import Backend, StoreUnavailableError, open_backend
from features.erasure import digest_of
from serving.door import Door
from serving.query import Query

QUERY = Query(request_id="r", user_id="ada", count=5)


def test_the_erased_are_anonymous_and_the_others_are_not(tmp_path: Path) -> None:
    store = open_backend(str(tmp_path / "store.db"))
    door = Door(lambda: open_backend(str(tmp_path / "store.db")))
    door.refresh()
    assert door.admitted(QUERY) is QUERY
    with store:
        store.erase_user("ada", 7)
    door.refresh()
    assert (door.admitted(QUERY).user_id, door.admitted(QUERY).request_id) == ("", "r")
    assert door.admitted(Query(request_id="r", user_id="adam", count=5)).user_id == "adam"
    assert door.admitted(Query(request_id="r", user_id="", count=5)).user_id == ""
    door.stop()


def test_a_store_that_is_away_makes_nobody_known_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_backend(str(tmp_path / "store.db")) as store:
        store.refuse_user(digest_of("ada"), 7)
    away = False

    def opened() -> Backend:
        if away:
            raise StoreUnavailableError("the online store does not answer.")
        return open_backend(str(tmp_path / "store.db"))

    door = Door(opened)
    door.refresh()
    away = True
    door._store.close()  # type: ignore[union-attr]
    for _ in range(3):
        door.refresh()
    assert door.refuses("ada")
    assert len(caplog.messages) == 1, "said once"
    away = False
    door.refresh()
    assert door.refuses("ada")
    door.stop()
