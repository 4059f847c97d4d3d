"""`python -m models.monitor_alerts --monitor-report FILE`: ends with exit status 1 when the monitor found alerts."""

import argparse
import json
import logging
from pathlib import Path

from models import refusal

log = logging.getLogger(__name__)


class MonitorError(refusal.RefusalError):
    """Something that is served is wrong."""


def judge(report: Path) -> None:
    """Raises `MonitorError` that tells every alert of the report, or that it cannot be read."""
    try:
        record = json.loads(report.read_text())
        alerts = [f"{one['check']} {one['subject']}".strip() + f": {one['detail']}" for one in record["alerts"]]
        went_to = record["rollback"]["went_to"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MonitorError(f"{report} cannot be read ({error}); run python -m models.monitor first.") from error
    if alerts:
        acted = f" Rolled back to {went_to}." if went_to else ""
        raise MonitorError(f"{'; '.join(alerts)}.{acted} The figures are in {report}.")
    log.info("no alerts in %s", report)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--monitor-report", type=Path, required=True, help="what models.monitor wrote")
    judge(parser.parse_args().monitor_report)


if __name__ == "__main__":
    refusal.run(main)
