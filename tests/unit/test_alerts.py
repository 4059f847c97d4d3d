"""A task that has failed for good is told of: in the log always, to a URL where one is set."""

import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from infra.alerts import MAX_REASON, failure_of, tell
from infra.settings import SettingsError, load_settings
from tests.conftest import free_port

TASK = SimpleNamespace(dag_id="lake_ingest", task_id="gate", map_index=-1, run_id="manual", try_number=3, log_url="u")


@pytest.fixture
def posted() -> Iterator[tuple[str, list[dict[str, object]]]]:
    got: list[dict[str, object]] = []

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Listener)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", got
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_line_and_the_post_say_the_same(
    posted: tuple[str, list[dict[str, object]]], caplog: pytest.LogCaptureFixture
) -> None:
    url, got = posted
    failure = failure_of({"ti": TASK, "exception": ValueError("the gate\n is closed " + "x" * 999)})
    tell(failure, url)
    assert got == [failure] == [json.loads(caplog.messages[0])]
    assert (failure["dag_id"], failure["task_id"], failure["try_number"]) == ("lake_ingest", "gate", 3)
    assert str(failure["reason"]).startswith("the gate is closed")
    assert len(str(failure["reason"])) == MAX_REASON


def test_who_does_not_answer_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tell(failure_of({"ti": TASK}), f"http://127.0.0.1:{free_port()}")
        tell(failure_of({"ti": TASK}), "")
    assert [message.startswith("nobody was told") for message in caplog.messages] == [False, True, False]


def test_a_url_is_http() -> None:
    with pytest.raises(SettingsError, match="MILLRACE_ALERT_URL"):
        load_settings(alert_url="ftp://somewhere")
