"""The `millrace` command at its edge: one sentence and a non-zero exit for what is wrong, nothing half-started."""

import io
import logging
import re
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from features.backends import open_backend
from features.erasure import digest_of
from features.events import EventType
from features.names import LakeTables
from features.repo import FeatureRepo, write_repo
from features.user_state import Interaction
from infra.commands import show_progress
from infra.settings import ROOT

TABLES = LakeTables()
MILLRACE = Path(sys.executable).parent / "millrace"


def _run(*arguments: str, tmp_path: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    path = f"{MILLRACE.parent}:/usr/bin:/bin"
    env = {"PATH": path, "HOME": str(tmp_path), "MILLRACE_VAR_DIR": str(tmp_path / "var"), **settings}
    command = [str(MILLRACE), *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("up", "--nonsense"), 2, "No such option"),
        (("launch",), 2, "No such command"),
        (("up", "redis"), 1, "unknown program redis; allowed: airflow"),
        (("status",), 1, "does not run; start it with millrace up"),
        (("reprocess", "--nonsense"), 2, "No such option"),
        (("reprocess", "--retire"), 1, "does not run; start it with millrace up"),
        (("logs", "redis"), 1, "no log of 'redis'"),
        (("logs", "--lines", "0"), 2, "--lines"),
        (("replay",), 2, "Missing argument"),
        (("replay", "nowhere.jsonl"), 2, "does not exist"),
        (("replay", "README.md", "--rate", "fast"), 2, "--rate"),
        (("features", "robot", "x"), 2, "is not one of 'user', 'item'"),
        (("features", "user", "u1"), 1, "start the stack with millrace up"),
        (("erase",), 2, "Missing argument"),
        (("erase", "no body"), 1, "user: got 'no body'; allowed: 1 to 128 characters"),
        (("erase", "u1"), 1, "start the stack with millrace up"),
        (("recommend", "u1"), 1, "nothing listens on port"),
        (("recommend", "u1", "--count", "0"), 2, "--count"),
        (("similar", "i1"), 1, "nothing listens on port"),
        (("lineage", "r1"), 1, "no slate 'r1' in"),
        (("lineage",), 2, "Missing argument"),
        (("rules", "check"), 2, "Missing argument"),
        (("rules", "check", "nowhere.toml"), 1, "rules nowhere.toml cannot be read"),
        (("why", "u1"), 2, "Missing argument"),
        (("why", "u1", "i1"), 1, "has no request of 'u1'; ask for a slate first"),
        (("replay-request", "r1"), 1, "has no request 'r1'; give the request_id of a slate"),
        (("train", "ranker", "--examples", "t.parquet"), 2, "--config"),
        (
            ("train", "ranker", "--examples", "t.parquet", "--config", "nowhere.json"),
            1,
            "give a JSON, TOML or YAML file",
        ),
        (("evaluate", "ranker", "--model", "m", "--examples", "t.csv", "--split", "none"), 2, "is not one of 'train'"),
        (("demo", "--data", "netflix"), 2, "is not one of 'world', 'movielens'"),
        (("demo", "--users", "1"), 1, "--users: got 1; input should be greater than or equal to"),
    ],
)
def test_what_is_wrong_ends_in_one_sentence(
    tmp_path: Path, arguments: tuple[str, ...], code: int, said: str, free_port_base: int
) -> None:
    done = _run(*arguments, tmp_path=tmp_path, MILLRACE_PORT_BASE=str(free_port_base))
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert done.stderr.startswith("millrace: ")
    assert done.stderr.count("\n") == 1, f"more than one sentence: {done.stderr}"
    assert not (tmp_path / "var").exists(), "something was written"


def test_a_callers_key_is_shown_once_and_its_hash_is_kept(tmp_path: Path) -> None:
    import hashlib

    from serving.callers import read_callers

    file = tmp_path / "callers.toml"
    keys = {}
    for name, more in (("home", ("--method", "Recommend", "--rate", "5")), ("search", ())):
        done = _run("callers", "add", name, "--file", str(file), *more, tmp_path=tmp_path)
        assert done.returncode == 0, done.stderr
        keys[name] = done.stdout.splitlines()[0]
    assert file.stat().st_mode & 0o777 == 0o600
    callers = read_callers(file)
    home, search = callers.of(keys["home"]), callers.of(keys["search"])
    assert home is not None and (home.name, home.methods, home.requests_per_second) == ("home", ["Recommend"], 5)
    assert search is not None and search.name == "search" and len(search.methods) == 5
    assert (
        keys["home"] not in file.read_text() and hashlib.sha256(keys["home"].encode()).hexdigest() in file.read_text()
    )
    before = file.read_text()
    for wrong, said in (
        (("home",), "there already"),
        (("Home Page",), "caller.2.name"),
        (("other", "--method", "Delete"), "caller.2.methods.0"),
        (("other", "--rate", "0"), "caller.2.requests_per_second"),
    ):
        done = _run("callers", "add", *wrong, "--file", str(file), tmp_path=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1) and said in done.stderr
    assert file.read_text() == before


def test_a_wrong_setting_ends_in_one_sentence(tmp_path: Path) -> None:
    done = _run("up", tmp_path=tmp_path, MILLRACE_KAFKA_PORT="none")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "MILLRACE_KAFKA_PORT" in done.stderr


def test_a_busy_port_is_named_with_its_owner_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = _run("up", "kafka", tmp_path=tmp_path, MILLRACE_KAFKA_PORT=str(port))
    assert done.returncode == 1
    assert f"port {port} of kafka is taken by process" in done.stderr
    assert "MILLRACE_KAFKA_PORT or MILLRACE_PORT_BASE" in done.stderr
    assert not (tmp_path / "var").exists(), "something was started"


def test_down_without_a_stack_is_no_error(tmp_path: Path) -> None:
    done = _run("down", tmp_path=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "the stack does not run")


def test_a_user_is_erased_where_no_airflow_runs(tmp_path: Path, free_port_base: int) -> None:
    """The command does the DAG's steps itself; the report names nobody."""
    var = tmp_path / "var"
    write_repo(FeatureRepo(directory=var / "feature-repo", location=str(var / "store.db"), offline_root=var))
    names = {"item_id": "i", "category": "c", "creator_id": "k"}
    liked = Interaction(event_id="e", event_type=EventType.LIKE, event_time_ms=1, user_id="ada", **names)
    with open_backend(str(var / "store.db")) as store:
        store.write_interactions([liked], {})
    for table in (TABLES.slates, TABLES.examples):
        write_deltalake(str(var / "lake" / table), pa.table({"user_id": ["ada", "eve"], "n": [1, 2]}))
    done = _run("erase", "ada", tmp_path=tmp_path, MILLRACE_PORT_BASE=str(free_port_base))
    assert done.returncode == 0, done.stderr
    assert "ada is refused from now on; 2 rows removed" in done.stdout
    assert "a scan of store and files found nothing of them" in done.stdout
    for table in (TABLES.slates, TABLES.examples):
        assert DeltaTable(str(var / "lake" / table)).to_pyarrow_table()["user_id"].to_pylist() == ["eve"]
    report = (var / "erasures" / f"{digest_of('ada')}.md").read_text()
    assert "Kafka: events, slates" in report


def test_doctor_names_what_a_machine_without_java_lacks(tmp_path: Path, free_port_base: int) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    done = _run("doctor", tmp_path=tmp_path, PATH=str(empty), MILLRACE_PORT_BASE=str(free_port_base))
    assert done.returncode == 1
    assert "no java on PATH" in done.stdout
    assert "install Maven" in done.stdout
    assert "of the checks above failed" in done.stderr


def test_without_a_command_the_help_lists_them(tmp_path: Path) -> None:
    done = _run(tmp_path=tmp_path)
    commands = (
        "up",
        "down",
        "status",
        "logs",
        "doctor",
        "reprocess",
        "replay",
        "features",
        "ledger",
        "erase",
        "recommend",
        "demo",
    )
    for command in commands:
        assert command in done.stdout


def test_the_example_of_rules_is_shown(tmp_path: Path) -> None:
    done = _run("rules", "check", "serving/rules.example.toml", tmp_path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the ranking service takes this file" in done.stdout
    assert re.search(r"pin +launch +position 0 +art07 +on home; in en, pt; with tv, phone; ", done.stdout)
    assert re.search(r"block +legal-42 +1 items, 1 creators +always", done.stdout)


def test_progress_goes_to_the_standard_error_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirection that ended before, as a test runner's does, leaves nothing closed behind."""
    ended, current = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", ended)
    show_progress()
    ended.close()
    monkeypatch.setattr(sys, "stderr", current)
    logging.getLogger("models.anything").warning("said now")
    assert "said now" in current.getvalue()
