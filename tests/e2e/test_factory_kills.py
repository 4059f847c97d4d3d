"""`kill -9` of what Airflow runs, in mid-run: the run ends in the tables of an undisturbed one."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from features.names import LakeTables
from features.tiles import FAMILIES
from infra.airflow import DAG_IDS
from infra.airflow_client import now
from infra.demo.chain import Chain
from infra.demo.world_scenario import WorldScenario
from streaming.records import Record
from tests.conftest import wait_for

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1_800)]
DAG = "training_examples"
TIMEOUT_S = 600.0
TILES = [f"{LakeTables().day_tiles}/{family.name}" for family in FAMILIES]


def contents(lake: Path, table: str) -> tuple[int, str]:
    """Rows and a digest of the table's content, whatever the order of rows and files."""
    found = DeltaTable(str(lake / table)).to_pyarrow_table()
    plain = [field.name for field in found.schema if not pa.types.is_nested(field.type)]
    by = [(name, "ascending") for name in (("event_id",) if "event_id" in plain else sorted(plain))]
    ordered = found.select(sorted(found.column_names)).sort_by(by).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, ordered.schema.remove_metadata()) as writer:
        writer.write_table(ordered.replace_schema_metadata())
    return len(ordered), hashlib.sha256(sink.getvalue()).hexdigest()


def driver(chain: Chain, job: str = DAG) -> psutil.Process | None:
    """The JVM of the Spark driver at work on the job."""
    return _find(
        chain, lambda command: command[0].endswith("java") and any(part.endswith(f"batch/{job}.py") for part in command)
    )


def task(chain: Chain) -> psutil.Process | None:
    """The process in which Airflow runs the task."""
    return _find(chain, lambda command: command[0].startswith("airflow worker -- ") and "Executor" not in command[0])


def scheduler(chain: Chain) -> psutil.Process | None:
    pid = chain.stack.supervisor.info()["airflow-scheduler"].pid
    return psutil.Process(pid) if pid else None


def _find(chain: Chain, wanted: Callable[[list[str]], bool]) -> psutil.Process | None:
    for process in chain.stack.supervisor.processes():
        try:
            command = process.cmdline()
        except psutil.Error:
            continue
        if command and wanted(command):
            return process
    return None


@pytest.mark.parametrize("victim", [driver, task, scheduler])
def test_killed_in_mid_run(
    scenario: tuple[WorldScenario, list[Record]], victim: Callable[[Chain], psutil.Process | None]
) -> None:
    chain = scenario[0].chain
    lake = chain.settings.lake_dir
    undisturbed = contents(lake, LakeTables().examples)
    version = DeltaTable(str(lake / LakeTables().examples)).version()
    chain.airflow.set_paused([dag_id for dag_id in DAG_IDS if dag_id != DAG], paused=True)
    since = now()
    chain.airflow.trigger(DAG)
    wait_for(lambda: driver(chain), "the Spark driver", timeout_s=120, every_s=0.2)
    found = wait_for(lambda: victim(chain), "the process to kill")
    assert isinstance(found, psutil.Process)
    found.kill()
    chain.airflow.wait_for_chain([DAG], since, chain.phases.say, TIMEOUT_S)
    wait_for(lambda: driver(chain) is None, "every driver to end", timeout_s=300)
    table = DeltaTable(str(lake / LakeTables().examples))
    assert table.version() > version, "nothing was written again"
    assert contents(lake, LakeTables().examples) == undisturbed


def test_a_backfill_whose_driver_is_killed_between_two_tables(
    scenario: tuple[WorldScenario, list[Record]],
) -> None:
    """Its first part has replaced the tiles of one family and not yet those of the other."""
    chain = scenario[0].chain
    lake = chain.settings.lake_dir
    undisturbed = [contents(lake, table) for table in TILES]
    assert all(rows for rows, _ in undisturbed)
    chain.airflow.set_paused(DAG_IDS, paused=True)
    chain.airflow.set_paused(["backfill"], paused=False)
    yesterday = datetime.now(UTC).date() - timedelta(days=1)
    days = {"start": str(yesterday - timedelta(days=3)), "end": str(yesterday), "days_a_job": 2}
    before = [version(lake, table) for table in TILES]
    since = now()
    chain.airflow.trigger("backfill", {"step": "day_tiles", **days})
    wait_for(lambda: version(lake, TILES[0]) > before[0], "the first family's tiles", timeout_s=180, every_s=0.02)
    found = driver(chain, "backfill")
    assert found is not None
    found.kill()
    assert version(lake, TILES[1]) == before[1], "the driver was killed too late to prove anything"
    chain.airflow.wait_for_chain(["backfill"], since, chain.phases.say, TIMEOUT_S)
    assert [contents(lake, table) for table in TILES] == undisturbed
    # The first part was written by the killed job and by its rerun, the second part once.
    written = [version(lake, table) - old for table, old in zip(TILES, before, strict=True)]
    assert written[0] > written[1] >= 2


def version(lake: Path, table: str) -> int:
    return DeltaTable(str(lake / table)).version()
