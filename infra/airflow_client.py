"""Airflow's REST API as the stack and the demo use it: pools, pausing, triggering, and waiting for chains of runs."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from infra.airflow import USER, passwords_path
from infra.settings import Settings

PAGE = 100
"""The most rows that the API returns at once."""
READ_ATTEMPTS = 5
TIMEOUT_S = 30.0


class AirflowError(RuntimeError):
    """One sentence: what Airflow refused, or which task failed and where its log is."""


@dataclass(frozen=True, kw_only=True)
class DagRun:
    """One run of a DAG. `run_type` is `manual`, `scheduled` or `asset_triggered`."""

    dag_id: str
    run_id: str
    run_type: str
    state: str
    """queued, running, success or failed."""
    queued_at: datetime
    started_at: datetime | None
    ended_at: datetime | None

    @property
    def seconds(self) -> float | None:
        """From start to end; None until it has ended."""
        if self.started_at is None or self.ended_at is None:
            return None
        return (self.ended_at - self.started_at).total_seconds()


class AirflowClient:
    """Speaks to the API server of one stack as the generated user."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._http = httpx.Client(base_url=settings.airflow_url, timeout=TIMEOUT_S, trust_env=False)
        self._log_in()

    def _log_in(self) -> None:
        password = json.loads(passwords_path(self._settings).read_text())[USER]
        answer = self._send("POST", "/auth/token", {"username": USER, "password": password})
        self._http.headers["Authorization"] = f"Bearer {answer['access_token']}"

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    # One call each.

    def set_pool(self, name: str, slots: int, description: str) -> None:
        """Creates the pool, or leaves one of this name as it is."""
        body = {"name": name, "slots": slots, "description": description}
        self._send("POST", "/api/v2/pools", body, also_allowed=httpx.codes.CONFLICT)

    def dag_ids(self) -> list[str]:
        """Every DAG that the DAG processor has read without error, sorted."""
        return sorted(dag["dag_id"] for dag in self._get("dags")["dags"])

    def import_errors(self) -> list[str]:
        """Why files of the DAG folder could not be read: file and last line of the trace."""
        errors = self._get("importErrors")["import_errors"]
        return [f"{error['filename']}: {error['stack_trace'].strip().splitlines()[-1]}" for error in errors]

    def set_paused(self, dag_ids: Iterable[str], paused: bool) -> None:
        """Pauses or unpauses. A paused DAG starts no runs; asset events wait for it."""
        for dag_id in dag_ids:
            self._send("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": paused})

    def trigger(self, dag_id: str, conf: Mapping[str, object] | None = None) -> str:
        """Queues a run with these parameters, which starts when the DAG is not paused, and returns its id."""
        body = {"logical_date": None, "conf": dict(conf or {})}
        return str(self._send("POST", f"/api/v2/dags/{dag_id}/dagRuns", body)["dag_run_id"])

    def runs(self, since: datetime | None = None) -> list[DagRun]:
        """Runs of all DAGs queued at or after `since`, by the time of queueing; the last hundred at most."""
        rows = self._get("dags/~/dagRuns", order_by="-run_after")["dag_runs"]
        found = sorted((_dag_run(row) for row in rows), key=lambda run: run.queued_at)
        return [run for run in found if since is None or run.queued_at >= since]

    def failure(self, run: DagRun) -> str:
        """One sentence on a failed run: its first failed task and the task's log."""
        tasks = self._get(f"dags/{run.dag_id}/dagRuns/{run.run_id}/taskInstances")["task_instances"]
        for task in tasks:
            if task["state"] == "failed":
                log = self._task_log(run, task["task_id"], task["try_number"])
                return f"the task {task['task_id']} of {run.dag_id} failed at attempt {task['try_number']}; see {log}."
        return f"the run {run.run_id} of {run.dag_id} failed without a failed task; see {self._settings.logs_dir}."

    def task_links(self, dag_id: str, run_id: str, task_id: str) -> dict[str, str]:
        """The addresses that a task of a run links to, by name."""
        links: dict[str, str] = self._get(f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/links")[
            "extra_links"
        ]
        return links

    def page(self, url: str) -> str:
        """A page of Airflow's server, such as a task's Data Docs. Raises `AirflowError` when it is not there."""
        answer = self._http.get(url)
        if answer.is_error:
            raise AirflowError(f"Airflow answered GET {url} with {answer.status_code}")
        return answer.text

    # Waiting.

    def wait_for_dags(self, dag_ids: Sequence[str], timeout_s: float = 60) -> None:
        """Returns when all of them are known. Raises `AirflowError` naming a file that cannot be imported."""
        deadline = time.monotonic() + timeout_s
        while missing := sorted(set(dag_ids) - set(self.dag_ids())):
            if errors := self.import_errors():
                raise AirflowError(f"a DAG file cannot be imported: {errors[0]}.")
            if time.monotonic() > deadline:
                log = self._settings.logs_dir / "airflow-dag-processor.log"
                raise AirflowError(f"Airflow has not read {', '.join(missing)} within {timeout_s:.0f} s; see {log}.")
            time.sleep(0.3)

    def wait_for_chain(
        self, dag_ids: Sequence[str], since: datetime, progress: Callable[[str], None], timeout_s: float
    ) -> list[DagRun]:
        """Waits until each DAG has had a successful run queued since then, however it was triggered.

        Returns the first such run of each, in the order of `dag_ids`. Raises `AirflowError` as soon as one fails.
        """
        deadline = time.monotonic() + timeout_s
        told: set[tuple[str, str]] = set()
        while True:
            runs = [run for run in self.runs(since) if run.dag_id in dag_ids]
            self._tell(runs, told, progress)
            done: dict[str, DagRun] = {}
            for run in runs:
                if run.state == "success":
                    done.setdefault(run.dag_id, run)
            if len(done) == len(set(dag_ids)):
                return [done[dag_id] for dag_id in dag_ids]
            if time.monotonic() > deadline:
                left = ", ".join(dag_id for dag_id in dag_ids if dag_id not in done)
                raise AirflowError(
                    f"no successful run of {left} within {timeout_s:.0f} s; see {self._settings.logs_dir}."
                )
            time.sleep(0.5)

    def _tell(self, runs: Sequence[DagRun], told: set[tuple[str, str]], progress: Callable[[str], None]) -> None:
        for run in runs:
            if (run.run_id, run.state) in told:
                continue
            told.add((run.run_id, run.state))
            if run.state == "failed":
                raise AirflowError(self.failure(run))
            if run.state in ("running", "success"):
                took = f" after {run.seconds:.1f} s" if run.seconds is not None else ""
                progress(f"{run.dag_id}: {run.state}{took}")

    # Below.

    def _task_log(self, run: DagRun, task_id: str, attempt: int) -> Path:
        folder = self._settings.airflow_home / "logs" / f"dag_id={run.dag_id}" / f"run_id={run.run_id}"
        return folder / f"task_id={task_id}" / f"attempt={attempt}.log"

    def _get(self, path: str, **parameters: str) -> Any:
        query = {"limit": str(PAGE), **parameters}
        for attempt in range(1, READ_ATTEMPTS + 1):
            try:
                return self._checked(self._http.get(f"/api/v2/{path}", params=query))
            except httpx.TransportError as error:
                # A busy machine, or supervisord is restarting the server: reading again does no harm.
                if attempt == READ_ATTEMPTS:
                    raise _unreachable(self._settings, error) from error
                time.sleep(attempt)
        raise AssertionError("unreachable")

    def _send(self, method: str, path: str, body: dict[str, Any], also_allowed: int | None = None) -> Any:
        try:
            answer = self._http.request(method, path, json=body)
        except httpx.TransportError as error:
            raise _unreachable(self._settings, error) from error
        return None if answer.status_code == also_allowed else self._checked(answer)

    def _checked(self, answer: httpx.Response) -> Any:
        if answer.is_error:
            request = answer.request
            raise AirflowError(
                f"Airflow answered {request.method} {request.url} with {answer.status_code}: {answer.text}"
            )
        return answer.json()


def _unreachable(settings: Settings, error: httpx.TransportError) -> AirflowError:
    log = settings.logs_dir / "airflow-api.log"
    return AirflowError(
        f"Airflow does not answer on {settings.airflow_url} ({error or type(error).__name__}); see {log}."
    )


def now() -> datetime:
    """The instant to give as `since` before a trigger."""
    return datetime.now(UTC)


def _dag_run(row: dict[str, Any]) -> DagRun:
    return DagRun(
        dag_id=row["dag_id"],
        run_id=row["dag_run_id"],
        run_type=row["run_type"],
        state=row["state"],
        queued_at=_instant(row["queued_at"]) or _instant(row["run_after"]) or datetime.fromtimestamp(0, UTC),
        started_at=_instant(row["start_date"]),
        ended_at=_instant(row["end_date"]),
    )


def _instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
