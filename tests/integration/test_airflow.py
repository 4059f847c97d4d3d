"""The stack's Airflow for real: it starts, runs DAGs that are triggered over REST and by assets, and ends."""

import datetime
import json
import shutil
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from features.erasure import digest_of
from features.items import Item
from features.names import LakeTables
from features.repo import FeatureRepo, write_repo
from infra.airflow import SPARK_POOL, UPKEEP_DAG_IDS, passwords_path
from infra.airflow_client import AirflowClient, AirflowError, now
from infra.settings import ROOT, Settings, load_settings
from infra.stack import Stack
from tests.conftest import TEST_STACK, wait_for

TABLES = LakeTables()
LEAVES = "ada-lovelace"
DAGS = """
from pathlib import Path
from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Asset
from infra.airflow import dag_settings, default_args
from infra.airflow_gate import GateOperator

made = Asset(name="made", uri="millrace://test/made")
here = Path(__file__).parent

with DAG(dag_id="make", schedule=None, default_args=default_args(5)):
    SparkSubmitOperator(task_id="submit", application=str(here / "application.py"), conn_id="spark_default",
                        pool="spark", application_args=[str(here / "spark.txt")], driver_memory="512m") >> BashOperator(
        task_id="emit", bash_command=f"echo {dag_settings().lake_dir} > {here}/lake.txt", outlets=[made])

with DAG(dag_id="follow", schedule=[made], default_args=default_args(5)):
    BashOperator(task_id="look", bash_command=f"test -s {here}/lake.txt", inlets=[made])

with DAG(dag_id="broken", schedule=None, default_args=default_args(5, retries=0)):
    BashOperator(task_id="refuse", bash_command="echo the gate says no; exit 7")

with DAG(dag_id="gated", schedule=None, default_args=default_args(5, retries=0)):
    GateOperator(task_id="gate", suites=("items",))
"""
DAG_IDS = ["make", "follow", "broken", "gated"]
APPLICATION = """
import os, sys
from pyspark import SparkConf, __version__
Path = __import__("pathlib").Path
Path(sys.argv[1]).write_text(f"{sys.prefix} {__version__} {os.environ['SPARK_HOME']}")
"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, free_port_base: int) -> Settings:
    folder = tmp_path_factory.mktemp("airflow")
    dags = folder / "dags"
    dags.mkdir()
    (dags / "dags_of_the_test.py").write_text(DAGS)
    (dags / "application.py").write_text(APPLICATION)
    for dag_id in UPKEEP_DAG_IDS:
        shutil.copy(ROOT / "dags" / f"{dag_id}.py", dags)
    (dags / ".airflowignore").write_text("application.py\n")
    places = {"var_dir": folder / "var", "dags_dir": dags, "port_base": free_port_base}
    return load_settings(**places, spark_driver_mb=512, **TEST_STACK)


@pytest.fixture(scope="module")
def stack(settings: Settings) -> Iterator[Stack]:
    with Stack(settings) as stack:
        stack.start(lambda _: None, ["airflow"])
        family = stack.supervisor.processes()
        yield stack
    assert stack.supervisor.processes() == []
    left = [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not left, f"these outlived the stack: {left}"


@pytest.fixture(scope="module")
def airflow(stack: Stack) -> Iterator[AirflowClient]:
    with closing(AirflowClient(stack.settings)) as client:
        known = [*DAG_IDS, *UPKEEP_DAG_IDS]
        client.wait_for_dags(known)
        client.set_paused(known, paused=False)
        yield client


def test_secrets_are_the_owners_alone(stack: Stack) -> None:
    for path in (passwords_path(stack.settings), stack.settings.airflow_home / "keys.json", stack.supervisor.conf):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_a_triggered_dag_sets_off_the_one_that_waits_for_its_asset(airflow: AirflowClient, settings: Settings) -> None:
    said: list[str] = []
    since = now()
    run_id = airflow.trigger("make")
    make, follow = airflow.wait_for_chain(["make", "follow"], since, said.append, 180)
    assert (make.run_id, make.run_type, make.state) == (run_id, "manual", "success")
    assert (follow.run_type, follow.state) == ("asset_triggered", "success")
    assert follow.seconds is not None
    assert any(line.startswith("make: success after") for line in said)
    assert (settings.dags_dir / "lake.txt").read_text().strip() == str(settings.lake_dir), "the DAG sees this stack"
    prefix, version, home = (settings.dags_dir / "spark.txt").read_text().split()
    assert Path(prefix).name == "app"
    assert home.startswith(prefix)
    assert version
    told = {
        "make.emit": {"inputs": [], "outputs": [("millrace", "test/made")]},
        "follow.look": {"inputs": [("millrace", "test/made")], "outputs": []},
    }
    wait_for(lambda: told.items() <= completed(settings).items(), "the lineage of both tasks", 30)


def completed(settings: Settings) -> dict[str, dict[str, list[tuple[str, str]]]]:
    """What each task that succeeded read and wrote, as its OpenLineage event tells."""
    events = [json.loads(file.read_text()) for file in settings.openlineage_dir.iterdir()]
    assert {event["job"]["namespace"] for event in events} <= {f"millrace.{settings.stack}"}
    return {
        event["job"]["name"]: {
            side: [(each["namespace"], each["name"]) for each in event[side]] for side in ("inputs", "outputs")
        }
        for event in events
        if event["eventType"] == "COMPLETE"
    }


def test_the_dags_beside_the_chain_run(airflow: AirflowClient, settings: Settings) -> None:
    """An erasure, a dry run of the maintenance and a backfill of a day without events, on a lake of a few rows."""
    repo = FeatureRepo(
        directory=settings.feature_repo_dir, location=settings.online_store_url, offline_root=settings.lake_dir
    )
    write_repo(repo)
    events = pa.table(
        {"user_id": [LEAVES, "eve"], "arrival_ms": [1, 2], "event_date": pa.array([datetime.date(2026, 1, 1)] * 2)}
    )
    place = {"topic": ["t", "t"], "partition": pa.array([0, 0], pa.int32()), "offset": [1, 2]}
    for name, values in place.items():
        events = events.append_column(name, pa.array(values))
    silver, slates = (str(settings.lake_dir / table) for table in (TABLES.silver_events, TABLES.slates))
    write_deltalake(silver, events, partition_by=["event_date"])
    write_deltalake(slates, pa.table({"user_id": [LEAVES, "eve"], "served_at_ms": [1, 2]}))
    asked = {
        "erase_user": {"digest": digest_of(LEAVES)},
        "backfill": {"step": "day_tiles", "start": "2026-01-02", "end": "2026-01-02"},
        "maintenance": {"dry_run": True},
    }
    since = now()
    for dag_id, conf in asked.items():
        airflow.trigger(dag_id, conf)
    airflow.wait_for_chain(list(asked), since, lambda _: None, 300)
    assert DeltaTable(silver).to_pyarrow_table()["user_id"].to_pylist() == ["eve"]
    assert DeltaTable(slates).to_pyarrow_table()["user_id"].to_pylist() == ["eve"], "past its time, but a dry run"
    assert (settings.erasures_dir / f"{digest_of(LEAVES)}.md").exists()
    everything = b"".join(file.read_bytes() for file in settings.airflow_home.rglob("*") if file.is_file())
    assert digest_of(LEAVES).encode() in everything
    assert LEAVES.encode() not in everything, "Airflow is never told who it was"
    with pytest.raises(AirflowError, match=r"4(00|22)"):
        airflow.trigger("erase_user", {"digest": LEAVES})


def test_a_failed_task_is_named_with_its_log(airflow: AirflowClient) -> None:
    since = now()
    airflow.trigger("broken")
    with pytest.raises(AirflowError, match=r"the task refuse of broken failed at attempt 1; see (.*)\.$") as failed:
        airflow.wait_for_chain(["broken"], since, lambda _: None, 120)
    log = Path(str(failed.value).split("; see ")[1].rstrip("."))
    said = log.read_text()
    assert "the gate says no" in said
    assert '\\"event\\": \\"task_failed\\"' in said, "the line of the alert"


def test_a_shut_gate_links_its_data_docs_for_those_who_are_logged_in(
    airflow: AirflowClient, settings: Settings
) -> None:
    items = [vars(Item(item_id=f"i{n}", category="c", creator_id="k", language="en", duration_ms=0, published_at_ms=1))
             for n in range(2)]  # fmt: skip
    write_deltalake(str(settings.lake_dir / LakeTables().items), pa.Table.from_pylist(items))
    since = now()
    run_id = airflow.trigger("gated")
    with pytest.raises(AirflowError, match="the task gate of gated failed") as failed:
        airflow.wait_for_chain(["gated"], since, lambda _: None, 120)
    link = airflow.task_links("gated", run_id, "gate")["Data Docs"]
    log = Path(str(failed.value).split("; see ")[1].rstrip(".")).read_text()
    assert f"Data Docs: {link}" in log
    assert "the gate items is closed for all: expect_column_values_to_be_between(duration_ms)" in log
    page = airflow.page(link)
    assert "items" in page
    with httpx.Client(trust_env=False) as stranger:
        assert stranger.get(link).status_code == 401
    with pytest.raises(AirflowError, match="404"):
        airflow.page(link.replace("run-", "no-"))


def test_a_pool_is_made_once(airflow: AirflowClient) -> None:
    airflow.set_pool(SPARK_POOL, 1, "again")


def test_what_airflow_refuses_is_told(airflow: AirflowClient) -> None:
    with pytest.raises(AirflowError, match="404"):
        airflow.trigger("nonsense")
    with pytest.raises(AirflowError, match="Airflow has not read nonsense within 0 s"):
        airflow.wait_for_dags(["nonsense"], timeout_s=0)
