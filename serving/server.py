"""The ranking service: `python -m serving.server --port P --bundles DIR …`.

This process answers no requests. It starts one keeper, which works out the item features, one worker or more, which
share the port, and a scribe for each, which logs what it has served; it starts again what dies, adds up their metrics,
and ends all with itself. SIGTERM drains: requests under way are answered, and their slates logged.
"""

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.multiprocess import MultiProcessCollector

from serving.access import AccessError
from serving.logs import log_as_json
from serving.options import ServerConfig, parse_arguments
from serving.processes import Processes, StartError, reserve_port


async def serve(config: ServerConfig, flags: Sequence[str]) -> bool:
    """Runs the service until SIGTERM or SIGINT; False when a child could not start. Raises `StartError`."""
    try:
        config.access.check()
    except AccessError as error:
        raise StartError(str(error)) from error
    with reserve_port(config.host, config.port):
        _fresh_shared_dir(config)
        try:
            if config.metrics_port is not None:
                _serve_metrics(config, config.metrics_port)
            cores = sorted(os.sched_getaffinity(0))
            processes = Processes(
                workers=config.processes or len(cores),
                flags=flags,
                metrics_dir=config.metrics_dir,
                scribes=config.logs_slates,
                pinned_to=cores if config.pin else (),
            )
            for signal_ in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(signal_, processes.stop)
            return await processes.run()
        finally:
            shutil.rmtree(config.shared_dir, ignore_errors=True)


def _fresh_shared_dir(config: ServerConfig) -> None:
    """Makes the directory, for this user alone; removes what a service that was killed has left at this port."""
    try:
        shutil.rmtree(config.shared_dir, ignore_errors=True)
        config.shared_dir.mkdir(mode=0o700)
        config.snapshot_dir.mkdir()
        config.metrics_dir.mkdir()
    except OSError as error:
        raise StartError(f"{config.shared_dir} cannot be made ({error}); remove what is there.") from error


def _serve_metrics(config: ServerConfig, port: int) -> None:
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(config.metrics_dir))  # type: ignore[no-untyped-call]
    try:
        start_http_server(port, addr="127.0.0.1", registry=registry)
    except OSError as error:
        raise StartError(f"port {port} is taken ({error}); give another --metrics-port.") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the service; returns the process's exit status."""
    flags = sys.argv[1:] if arguments is None else arguments
    config = parse_arguments(flags)
    log_as_json(config.log_level)
    try:
        return 0 if asyncio.run(serve(config, flags)) else 1
    except StartError as error:
        sys.stderr.write(f"serving.server: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
