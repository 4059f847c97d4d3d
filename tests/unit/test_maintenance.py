"""What maintenance removes and, above all, what it never removes; every step does nothing when it is repeated."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from batch.maintain import Upkeep, maintain
from features.erasure import STATE_DAYS, TOPIC_DAYS, ages_out
from features.names import MS_PER_DAY, LakeTables
from features.retention import Retention, RetentionError
from infra.maintenance.files import old_checkpoints, old_logs
from infra.maintenance.topics import due_ms
from infra.settings import load_settings
from models import clean_up
from models.champions import promotion_lock, set_champion
from models.refusal import RefusalError
from models.registry import CHALLENGER, Registry
from tests.serving_bundle import write_tiny_bundle

TABLES = LakeTables()
NOW_MS = 1_800_000_000_000
KEPT = Retention(events_days=40, day_tiles_days=50, slates_days=5, feature_files_days=3)


def day(days_ago: int) -> str:
    return datetime.fromtimestamp((NOW_MS - days_ago * MS_PER_DAY) / 1000, tz=UTC).date().isoformat()


def age(path: Path, days: float) -> None:
    """Makes a file or directory look as if it had been written so long ago."""
    then_s = NOW_MS / 1000 - days * 86_400
    for each in (*path.rglob("*"), path):
        os.utime(each, (then_s, then_s))


class TestLake:
    @pytest.fixture
    def lake(self, tmp_path: Path) -> Path:
        arrivals = [NOW_MS - days * MS_PER_DAY for days in (60, 41, 39, 1)]
        for table in (TABLES.bronze_events, TABLES.silver_events, TABLES.dead_letters):
            for arrival_ms in arrivals:
                write_deltalake(str(tmp_path / table), pa.table({"arrival_ms": [arrival_ms]}), mode="append")
        write_deltalake(str(tmp_path / TABLES.slates), pa.table({"served_at_ms": arrivals}))
        tiles = pa.table({"event_date": pa.array([day(60), day(45)]).cast(pa.date32()), "n": [1, 2]})
        write_deltalake(str(tmp_path / TABLES.day_tiles / "item"), tiles, partition_by=["event_date"])
        shut = pa.table({"partition": [day(60), day(2), "all"], "suite": ["events"] * 3})
        write_deltalake(str(tmp_path / TABLES.quarantine), shut)
        write_deltalake(str(tmp_path / TABLES.items), pa.table({"item_id": ["old"]}))
        for view in ("user_daily", "item_daily"):
            for days_ago in (9, 4, 2, 1) if view == "user_daily" else (9,):
                file = tmp_path / TABLES.offline_features / view / f"{day(days_ago)}.parquet"
                file.parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(pa.table({"n": [1]}), file)
        return tmp_path

    def rows(self, lake: Path) -> dict[str, int]:
        logs = sorted(lake.rglob("_delta_log"))
        return {log.parent.relative_to(lake).as_posix(): DeltaTable(str(log.parent)).count() for log in logs}

    def run(self, lake: Path, *, dry_run: bool = False) -> dict[str, object]:
        return maintain(Upkeep(lake=lake, retention=KEPT, now_ms=NOW_MS, dry_run=dry_run))

    def test_each_table_has_its_time(self, lake: Path) -> None:
        said = {table["table"]: table["rows_expired"] for table in self.run(lake)["tables"]}
        assert self.rows(lake) == {
            TABLES.bronze_events: 2,
            TABLES.silver_events: 2,
            TABLES.dead_letters: 2,
            TABLES.slates: 1,
            f"{TABLES.day_tiles}/item": 1,
            TABLES.quarantine: 2,
            TABLES.items: 1,
        }
        assert said == {
            TABLES.bronze_events: 2,
            TABLES.silver_events: 2,
            TABLES.dead_letters: 2,
            TABLES.slates: 3,
            f"{TABLES.day_tiles}/item": 1,
            TABLES.quarantine: 1,
            TABLES.items: 0,
        }
        kept = {file.relative_to(lake / TABLES.offline_features).as_posix() for file in lake.rglob("*_daily/*.parquet")}
        assert kept == {f"user_daily/{day(2)}.parquet", f"user_daily/{day(1)}.parquet", f"item_daily/{day(9)}.parquet"}

    def test_a_dry_run_says_the_same_and_removes_nothing(self, lake: Path) -> None:
        files = sorted(lake.rglob("*"))
        dry = self.run(lake, dry_run=True)
        assert sorted(lake.rglob("*")) == files
        wet = self.run(lake)
        assert [table["rows_expired"] for table in dry["tables"]] == [table["rows_expired"] for table in wet["tables"]]
        assert dry["feature_files_removed"] == wet["feature_files_removed"]

    def test_a_repetition_does_nothing(self, lake: Path) -> None:
        self.run(lake)
        before = sorted(lake.rglob("*"))
        again = self.run(lake)
        assert not any(table["rows_expired"] or table["files_merged"] for table in again["tables"])
        assert again["feature_files_removed"] == []
        assert sorted(file for file in lake.rglob("*.parquet")) == [
            file for file in before if file.suffix == ".parquet"
        ]

    def test_old_files_go_when_no_reader_can_need_them(self, lake: Path) -> None:
        self.run(lake)
        table = lake / TABLES.bronze_events
        assert len(list(table.glob("*.parquet"))) == 4, "a reader of an older version is served for a week"
        (run_now,) = [each for each in self.run(lake)["tables"] if each["table"] == TABLES.bronze_events]
        assert run_now["old_files_removed"] == 0
        for _ in range(40):
            write_deltalake(str(table), pa.table({"arrival_ms": [NOW_MS]}), mode="append")
        merged = {each["table"]: each["files_merged"] for each in self.run(lake)["tables"]}
        assert merged[TABLES.bronze_events] > 30
        assert DeltaTable(str(table)).count() == 42


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """One for all: making its tables takes seconds."""
    return Registry(f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}")


class TestBundles:
    def make(self, bundles: Path, count: int) -> list[str]:
        """Bundles that differ, old enough to go."""
        made = [write_tiny_bundle(bundles, label=f"n{n}").name for n in range(count)]
        for bundle_id in made:
            age(bundles / bundle_id, 30)
        return made

    def test_what_somebody_may_ask_for_stays(self, tmp_path: Path, registry: Registry) -> None:
        bundles = tmp_path / "bundles"
        oldest, first, second, champion, challenger, named, unused = self.make(bundles, 7)
        for bundle_id in (oldest, first, second, champion):
            set_champion(bundles, bundle_id)
        registry.set_alias(CHALLENGER, registry.register(challenger, bundles / challenger, None, {}))
        young = write_tiny_bundle(bundles, label="young").name
        age(bundles / young, 1)
        (tmp_path / "experiments.toml").write_text(f'bundle = "{named}"\n')
        draft = bundles / ".bundle-0.draft-1"
        draft.mkdir()
        age(draft, 2)
        arguments = (bundles, registry, Retention(bundles_kept=2), [tmp_path / "experiments.toml"], NOW_MS)
        would_go = clean_up.clean_bundles(*arguments, dry_run=True)
        assert len(list(bundles.iterdir())) == 11
        gone = clean_up.clean_bundles(*arguments, dry_run=False)
        assert gone == would_go
        assert {path.name for path in gone} == {oldest, unused, draft.name}
        left = {path.name for path in bundles.iterdir() if path.is_dir()}
        assert left == {first, second, champion, challenger, named, young}
        assert clean_up.clean_bundles(*arguments, dry_run=False) == []

    def test_nothing_goes_while_a_promotion_is_under_way(self, tmp_path: Path, registry: Registry) -> None:
        self.make(tmp_path / "bundles", 1)
        with promotion_lock(tmp_path / "bundles"), pytest.raises(RefusalError, match="another promotion"):
            clean_up.clean_bundles(tmp_path / "bundles", registry, Retention(), [], NOW_MS, dry_run=False)
        assert len(list((tmp_path / "bundles").glob("bundle-*"))) == 1

    def test_an_unreadable_champion_stops_it(self, tmp_path: Path, registry: Registry) -> None:
        bundles = tmp_path / "bundles"
        self.make(bundles, 1)
        (bundles / "champion.json").write_text("{")
        with pytest.raises(RefusalError, match="cannot be read"):
            clean_up.clean_bundles(bundles, registry, Retention(), [], NOW_MS, dry_run=False)
        assert len(list(bundles.glob("bundle-*"))) == 1

    def test_old_training_runs_go_but_the_latest(self, tmp_path: Path) -> None:
        for name, days in (("a", 90), ("b", 40), ("c", 40), (".d.draft-7", 3)):
            run = tmp_path / "ranker" / name
            run.mkdir(parents=True)
            (run / "report.json").write_text("{}")
            age(run, days)
        (tmp_path / "ranker" / "latest.json").write_text(json.dumps({"run_id": "b"}))
        gone = clean_up.clean_runs(tmp_path, Retention(), NOW_MS, dry_run=False)
        assert {path.name for path in gone} == {"a", "c", ".d.draft-7"}
        assert [path.name for path in sorted((tmp_path / "ranker").iterdir())] == ["b", "latest.json"]


class TestFiles:
    def checkpoint(self, root: Path, place: str, hours: float, *, whole: bool = True) -> Path:
        path = root / place
        path.mkdir(parents=True)
        (path.parent / "shared").mkdir(exist_ok=True)
        (path / "data").write_text("state")
        if whole:
            (path / "_metadata").write_text("what it is made of")
        for each in (*path.rglob("*"), path, path.parent / "shared"):
            os.utime(each, (NOW_MS / 1000 - hours * 3_600,) * 2)
        return path

    def test_what_a_job_would_start_from_stays(self, tmp_path: Path) -> None:
        dead = self.checkpoint(tmp_path, "v1/dead/chk-9", 90)
        unfinished = self.checkpoint(tmp_path, "v1/live/chk-7", 70, whole=False)
        self.checkpoint(tmp_path, "v1/live/chk-8", 60)
        self.checkpoint(tmp_path, "v1/live/chk-9", 59, whole=False)  # under way when the job was last seen
        self.checkpoint(tmp_path, "v1/starting/chk-1", 1, whole=False)
        self.checkpoint(tmp_path, "v2/only/chk-1", 500)
        savepoint = tmp_path / "v1" / "savepoint-1"
        savepoint.mkdir()
        age(savepoint, 4)
        (tmp_path / "v1" / "run").mkdir()
        age(tmp_path / "v1" / "run", 50)
        found = set(old_checkpoints(tmp_path, Retention(checkpoint_hours=24), NOW_MS))
        assert found == {dead.parent, unfinished, savepoint}

    def test_logs_have_their_times(self, tmp_path: Path) -> None:
        settings = load_settings(var_dir=tmp_path)
        for root in (settings.airflow_home / "logs", settings.request_log_dir, settings.logs_dir):
            for days in (0, 2, 40):
                file = root / "deep" / f"{days}.log"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text("line")
                os.utime(file, (NOW_MS / 1000 - days * 86_400,) * 2)
        found = {path.relative_to(tmp_path).as_posix() for path in old_logs(settings, Retention(), NOW_MS)}
        assert found == {"airflow/logs/deep/40.log", "request-log/deep/2.log", "request-log/deep/40.log"}


def test_records_are_due_when_a_month_has_passed() -> None:
    old, new = NOW_MS - TOPIC_DAYS * MS_PER_DAY, NOW_MS - MS_PER_DAY
    assert due_ms({}, NOW_MS) is None
    assert due_ms({"a": new}, NOW_MS) is None
    assert due_ms({"a": new, "b": old - 5, "c": old}, NOW_MS) == old


def test_the_stated_dates_are_not_before_what_the_parts_keep() -> None:
    source = (Path(__file__).parents[2] / "streaming" / "flink_checkpoints.py").read_text()
    assert "TOLERATED_OUTAGE_MS = 72 * MS_PER_HOUR" in source
    dates = {each.what: each.until for each in ages_out(NOW_MS)}
    assert dates["Flink state and checkpoints"] == day(-STATE_DAYS)
    assert dates["Kafka: events, slates, interactions and refused records"] == day(-TOPIC_DAYS - 2)


class TestRetention:
    def test_without_a_file_the_defaults_hold(self, tmp_path: Path) -> None:
        assert Retention.read(tmp_path / "none.toml") == Retention.read(None) == Retention()
        (tmp_path / "own.toml").write_text("bundles_kept = 9\n")
        assert Retention.read(tmp_path / "own.toml").bundles_kept == 9

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("slates = 3", "slates: got 3"),
            ("slates_days = 0", "slates_days: got 0"),
            ("slates_days = 'x'", "slates_days: got 'x'"),
            ("events_days = 900", "day_tiles_days 730 is less than events_days 900"),
            ("events_days", "cannot be read as TOML"),
        ],
    )
    def test_what_is_wrong_is_one_sentence(self, tmp_path: Path, text: str, said: str) -> None:
        (tmp_path / "own.toml").write_text(text)
        with pytest.raises(RetentionError) as refused:
            Retention.read(tmp_path / "own.toml")
        assert said in str(refused.value)
        assert "\n" not in str(refused.value)
