"""`millrace erase USER`: a user out of everything that can be deleted by key, and a report that a scan confirmed."""

import json
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

from features.clock import wall_clock_ms
from infra.commands import CommandError, say
from infra.processes import port_is_free
from infra.settings import LOOPBACK, ROOT, Settings, environment_python

TIMEOUT_S = 6 * 3_600.0
DAG_ID = "erase_user"


def erase(settings: Settings, user_id: str) -> dict[str, Any]:
    """Refuses the user at once, then runs the DAG, or its steps where no Airflow runs; returns the report.

    Raises `CommandError`.
    """
    from features.backends import StoreUnavailableError, open_backend
    from features.erasure import ErasureError, checked_user, digest_of
    from features.repo import CONFIG_FILE, FeatureRepoError, store_location

    try:
        digest = digest_of(checked_user(user_id))
        if not (settings.feature_repo_dir / CONFIG_FILE).exists():
            raise CommandError(f"no feature repo in {settings.feature_repo_dir} yet; start the stack with millrace up.")
        with open_backend(store_location(settings.feature_repo_dir)) as store:
            rows = store.erase_user(user_id, wall_clock_ms())
    except (ErasureError, FeatureRepoError, StoreUnavailableError) as error:
        raise CommandError(str(error)) from None
    say(f"{user_id} is refused from now on; {rows:,} rows removed from the online store")
    if port_is_free(LOOPBACK, settings.airflow_port):
        say("Airflow does not run, and with it nobody who writes the lake: its steps are run here")
        _run_steps(settings, digest)
    else:
        _run_dag(settings, digest)
    report: dict[str, Any] = json.loads((settings.erasures_dir / f"{digest}.json").read_text())
    return report


def _run_dag(settings: Settings, digest: str) -> None:
    from infra.airflow_client import AirflowClient, AirflowError, now

    try:
        with closing(AirflowClient(settings)) as client:
            client.wait_for_dags([DAG_ID])
            client.set_paused([DAG_ID], paused=False)
            since = now()
            client.trigger(DAG_ID, {"digest": digest})
            client.wait_for_chain([DAG_ID], since, say, TIMEOUT_S)
    except AirflowError as error:
        raise CommandError(str(error)) from None


def _run_steps(settings: Settings, digest: str) -> None:
    lake, repo = ("--lake", str(settings.lake_dir)), ("--feature-repo", str(settings.feature_repo_dir))
    also = ("--also", str(settings.workspace_dir))
    of = ("--digest", digest)
    _step("erase_door", *lake, *repo, *of)
    _step("erase_lake", *lake, "--checkpoints", str(settings.spark_checkpoints_dir), *also, *of)
    _step("erase_report", *lake, *repo, *also, "--reports", str(settings.erasures_dir), *of)


def _step(module: str, *flags: str) -> None:
    command = [str(environment_python("app")), "-m", f"batch.{module}", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it said nothing").splitlines()[-1]
        raise CommandError(f"{said.rstrip('.')}; the user is refused, run millrace erase again to finish.")


def report_file(settings: Settings, report: dict[str, Any]) -> Path:
    """The report as a person reads it."""
    return settings.erasures_dir / f"{report['digest']}.md"
