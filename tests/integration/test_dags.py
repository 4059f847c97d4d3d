"""The DAGs as Airflow reads them, in its own environment: imports, graph, operator notes, parse time."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from features import specs
from infra.airflow import ASSETS, DAG_IDS, UPKEEP_DAG_IDS, WATCH_DAG_IDS
from infra.settings import PREFIX, ROOT, environment_python

MAX_PARSE_CPU_S = 2.0
"""Of one file."""
REMOVE_FILES = ("erase_user.lake", "maintenance.lake")
"""What removes files of the lake takes the place of a Spark job."""
HEAVY = ("pyspark", "pyflink", "torch", "mlflow", "feast", "pandas", "numpy", "grpc", "deltalake", "sklearn")
PASSES_ON = {"backfill.plan": "batch/backfill.py"}
"""Tasks that hand flags of theirs on to the jobs of the next task."""
NOTES = ("Purpose", "Inputs", "Outputs", "Owner", "Rerun", "On failure")

READ = """
import json, pathlib, sys, time
import airflow.sdk, airflow.providers.standard.operators.bash
import airflow.providers.apache.spark.operators.spark_submit
from airflow.dag_processing.dagbag import DagBag

before, parse_cpu_s, bags = set(sys.modules), {}, []
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.py")):
    began = time.process_time()
    bags.append(DagBag(str(path), bundle_path=None))
    parse_cpu_s[path.name] = time.process_time() - began
imported = sorted(set(sys.modules) - before)
dags = {d.dag_id: d for bag in bags for d in bag.dags.values()}
errors = {path: error for bag in bags for path, error in bag.import_errors.items()}

def trigger(dag):
    condition = getattr(dag.timetable, "asset_condition", None)
    return sorted(a.name for a in condition.objects) if condition else dag.schedule

def of(t, name):
    return t.partial_kwargs.get(name) if t.is_mapped else getattr(t, name, None)

def task(t):
    fields = ("bash_command", "application", "application_args", "pool", "retries", "retry_exponential_backoff")
    shown = {name: of(t, name) for name in fields if of(t, name) is not None}
    if t.is_mapped:
        shown["mapped_over"] = sorted(t.upstream_task_ids)
    return {**shown, "operator": t.task_type, "timeout_s": of(t, "execution_timeout").total_seconds(),
            "owner": of(t, "owner"), "outlets": [a.name for a in of(t, "outlets") or []],
            "tells": [call.__name__ for call in of(t, "on_failure_callback") or []],
            "downstream": sorted(t.downstream_task_ids)}

shown = {d.dag_id: {"schedule": trigger(d), "max_active_runs": d.max_active_runs, "catchup": d.catchup,
         "tags": sorted(d.tags), "timeout_s": d.dagrun_timeout.total_seconds(),
         "params": {name: d.params.get_param(name).schema for name in d.params},
         "tasks": {t.task_id: task(t) for t in d.tasks}} for d in dags.values()}
out = {"errors": errors, "parse_cpu_s": parse_cpu_s, "imported": imported, "dags": shown,
       "docs": {d.dag_id: d.doc_md for d in dags.values()}}
open(sys.argv[2], "w").write(json.dumps(out))
"""


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What Airflow makes of `dags/`."""
    return read_by_airflow(tmp_path_factory.mktemp("airflow"), ROOT / "dags")


def read_by_airflow(home: Path, dags: Path, **settings: str) -> dict[str, Any]:
    out = home / "read.json"
    env = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    env |= {"AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    env |= {f"{PREFIX}{name.upper()}": value for name, value in settings.items()}
    command = [str(environment_python("airflow")), "-c", READ, str(dags), str(out)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-2_000:]
    return json.loads(out.read_text())


def test_every_dag_imports(read: dict[str, Any]) -> None:
    assert read["errors"] == {}
    assert set(read["dags"]) == {*DAG_IDS, *UPKEEP_DAG_IDS, *WATCH_DAG_IDS}
    assert {path.stem for path in (ROOT / "dags").glob("*.py")} == set(read["dags"]), "one file a DAG, named after it"


def test_the_graph_is_the_golden_one(read: dict[str, Any], matches_golden: Callable[[str, str], None]) -> None:
    text = json.dumps(read["dags"], indent=1, sort_keys=True) + "\n"
    matches_golden("dags.json", text.replace(str(ROOT), "<root>").replace(specs.version(), "<version>"))


def test_parsing_is_quick_and_light(read: dict[str, Any]) -> None:
    for file, parse_cpu_s in read["parse_cpu_s"].items():
        assert parse_cpu_s < MAX_PARSE_CPU_S, f"dags/{file} takes {parse_cpu_s:.1f} s of processor time to read"
    heavy = [name for name in read["imported"] if name.split(".")[0] in HEAVY]
    assert not heavy, f"reading the DAGs imports {heavy}; a DAG holds names and order only"


def test_each_dag_has_notes_for_its_operator(read: dict[str, Any]) -> None:
    for dag_id, notes in read["docs"].items():
        lacking = [name for name in NOTES if f"### {name}" not in notes]
        assert not lacking, f"dags/{dag_id}.py: doc_md lacks {lacking}"


def test_each_run_is_alone_and_bounded(read: dict[str, Any]) -> None:
    for dag_id, dag in read["dags"].items():
        assert dag["max_active_runs"] == 1, f"{dag_id}: one run at a time"
        assert dag["catchup"] is False, dag_id
        assert dag["timeout_s"] > 0, f"{dag_id} has no limit"
        for task_id, task in dag["tasks"].items():
            where = f"{dag_id}.{task_id}"
            assert task["timeout_s"] > 0, f"{where} has no limit"
            assert task["retries"] > 0 or task_id == "gate", f"{where} is not tried again"
            in_turn = task["operator"] == "SparkSubmitOperator" or where in REMOVE_FILES
            assert task["pool"] == ("spark" if in_turn else "default_pool"), where


def test_somebody_answers_for_each_dag(read: dict[str, Any]) -> None:
    for dag_id, dag in read["dags"].items():
        assert dag["tags"], f"dags/{dag_id}.py has no tags"
        for task_id, task in dag["tasks"].items():
            where = f"{dag_id}.{task_id}"
            assert task["owner"] not in ("", "airflow"), f"{where} has no owner"
            assert task["retry_exponential_backoff"], f"{where} is tried again without a growing pause"
            assert task["tells"] == ["tell_of_failure"], f"{where} fails unseen"


def test_each_param_has_a_form(read: dict[str, Any]) -> None:
    for dag_id, dag in read["dags"].items():
        for name, schema in dag["params"].items():
            assert {"type", "title"} <= set(schema), f"{dag_id}: the parameter {name} needs type and title"
            bounded = {"enum", "format", "pattern", "minimum"} & set(schema) or schema["type"] == "boolean"
            assert bounded, f"{dag_id}: anything can be given for {name}, which ends in a shell command"


def test_the_ranker_takes_the_settings_that_a_file_gives(tmp_path: Path) -> None:
    (tmp_path / "dags").mkdir()
    shutil.copy(ROOT / "dags" / "train_ranker.py", tmp_path / "dags")
    read = read_by_airflow(tmp_path, tmp_path / "dags", ranker_config="ple.json")
    assert read["dags"]["train_ranker"]["tasks"]["train"]["bash_command"].endswith(" --config ple.json")


def test_a_trigger_of_the_first_dag_reaches_the_last(read: dict[str, Any]) -> None:
    dags = read["dags"]
    emitted = {
        asset: dag_id for dag_id, dag in dags.items() for task in dag["tasks"].values() for asset in task["outlets"]
    }
    assert set(emitted) == set(ASSETS), "every asset has one task that emits it"
    assert not [
        task
        for dag_id in (*UPKEEP_DAG_IDS, *WATCH_DAG_IDS)
        for task in dags[dag_id]["tasks"].values()
        if task["outlets"]
    ]
    reached = {DAG_IDS[0]}
    for dag_id in DAG_IDS[1:]:
        awaited = dags[dag_id]["schedule"]
        assert isinstance(awaited, list), f"{dag_id} waits for assets"
        assert {emitted[asset] for asset in awaited} <= reached, f"{dag_id} waits for a later DAG"
        reached.add(dag_id)


def test_a_gate_stands_between_a_table_and_those_who_wait_for_it(read: dict[str, Any]) -> None:
    gated = (
        ("lake_ingest", "lake_events"),
        ("offline_features", "offline_features"),
        ("training_examples", "examples"),
    )
    for dag_id, asset in gated:
        tasks = read["dags"][dag_id]["tasks"]
        (emitting,) = [name for name, task in tasks.items() if asset in task["outlets"]]
        assert emitting in ["gate", *tasks["gate"]["downstream"]], f"{dag_id} emits {asset} from {emitting}"


def _command(task: dict[str, Any]) -> tuple[Path, list[str]]:
    """The file that a task runs, and the names of the flags that it gives."""
    if task["operator"] == "SparkSubmitOperator":
        path, arguments = Path(task["application"]), task.get("application_args", [])
    else:
        module, *arguments = task["bash_command"].split(" -m ")[1].split()
        path = ROOT / module.replace(".", "/")
        path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    return path, [text.lstrip("'").split("=")[0] for text in arguments if text.lstrip("'").startswith("--")]


def test_what_the_dags_run_exists_and_knows_its_flags(read: dict[str, Any]) -> None:
    for dag_id, dag in read["dags"].items():
        for task_id, task in dag["tasks"].items():
            path, flags = _command(task)
            assert path.is_file(), f"{dag_id} runs {path}, which is not there"
            shared = (ROOT / "batch" / "command.py").read_text() if path.parent.name == "batch" else ""
            if module_that_passes_on := PASSES_ON.get(f"{dag_id}.{task_id}"):
                shared += (ROOT / module_that_passes_on).read_text()
            known = path.read_text() + shared
            unknown = [flag for flag in flags if f'"{flag}"' not in known]
            assert not unknown, f"{dag_id}.{task_id} gives {unknown}, which {path} does not take"
