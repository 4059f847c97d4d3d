"""What is told when a task has failed for good: one line of JSON in the log and, where somebody listens, a POST."""

import json
import logging
import urllib.request
from collections.abc import Mapping
from typing import Any

log = logging.getLogger("millrace.alerts")

TIMEOUT_S = 5.0
MAX_REASON = 500
"""Characters of the exception that are told."""


def failure_of(context: Mapping[str, Any]) -> dict[str, Any]:
    """The failed task, by Airflow's context of its callbacks."""
    task = context["ti"]
    return {
        "event": "task_failed",
        "dag_id": task.dag_id,
        "task_id": task.task_id,
        "map_index": task.map_index,
        "run_id": task.run_id,
        "try_number": task.try_number,
        "log_url": getattr(task, "log_url", None),
        "reason": " ".join(str(context.get("exception") or "").split())[:MAX_REASON],
    }


def tell(failure: Mapping[str, Any], url: str) -> None:
    """Writes the line; posts it when there is a URL. Never raises: the task has failed already."""
    line = json.dumps(failure, sort_keys=True)
    log.error("%s", line)
    if not url.startswith(("http://", "https://")):
        return
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, line.encode(), headers, method="POST")  # noqa: S310  checked above
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):  # noqa: S310
            return
    except (OSError, ValueError) as error:
        log.warning("nobody was told of the failed task: %s does not answer (%s)", url, error)
