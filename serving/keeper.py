"""The keeper: the one process of a service that works out the item features, for its workers to read.

`serving.processes` starts it with the service's own flags: `python -m serving.keeper --parent PID FLAGS`.
"""

import logging
import sys
import time
from collections.abc import Sequence

from features.backends import open_backend
from features.repo import store_location
from serving import priority
from serving.logs import log_as_json
from serving.options import parse_arguments
from serving.processes import end_with_parent, stop_on_signal
from serving.snapshot_files import SnapshotWriter
from serving.upkeep import Upkeep

_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Keeps the snapshot until SIGTERM or SIGINT; returns the process's exit status."""
    config = parse_arguments(arguments)
    end_with_parent(config.parent)
    priority.lower(priority.BELOW_WORKERS)
    log_as_json(config.log_level)
    stop = stop_on_signal()
    upkeep = Upkeep(
        publication=SnapshotWriter(config.snapshot_dir),
        open_store=lambda version: open_backend(store_location(config.feature_repo), version),
        bootstrap_servers=config.bootstrap_servers,
        topics=config.topics,
        clock_ms=lambda: time.time_ns() // 1_000_000,
    )
    upkeep.run(stop)
    _log.info("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
