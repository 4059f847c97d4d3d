"""The real ranking service as a process in its own environment, for tests that call it."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from features.names import Topics
from features.repo import FeatureRepo, write_repo
from serving.client import RankingClient, Slate
from tests.conftest import ROOT, free_port, running, wait_for
from tests.serving_bundle import promote, write_tiny_bundle

SERVE_PYTHON = str(ROOT / ".venv" / "serve" / "bin" / "python")


@dataclass
class Service:
    """One running service and where its parts lie."""

    address: str
    metrics_url: str
    bundles: Path
    store: Path
    process: subprocess.Popen[bytes]
    log: Path
    topics: Topics

    @property
    def shared_dir(self) -> Path:
        """What its processes share, as `serving.options` says."""
        return Path("/dev/shm") / f"millrace-serving-{self.address.rsplit(':', 1)[1]}"

    def metric(self, line_start: str) -> float:
        text = httpx.get(self.metrics_url, timeout=5).text
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(line_start))

    def resident_bytes(self) -> int:
        """Memory of all its processes."""
        parent = psutil.Process(self.process.pid)
        return sum(process.memory_info().rss for process in (parent, *parent.children(recursive=True)))


def write_feature_repo(directory: Path) -> Path:
    """Writes a feature repo with an SQLite store and returns the store's file."""
    store = directory / "online.db"
    write_repo(FeatureRepo(directory=directory / "repo", location=str(store), offline_root=directory / "offline"))
    return store


@contextmanager
def ranking_service(
    directory: Path, kafka: str | None, topics: Topics, *extra: str, repo: bool = True
) -> Iterator[Service]:
    """Starts the service with extra flags and waits until it answers; ends it on leaving."""
    store = write_feature_repo(directory) if repo else directory / "online.db"
    port, metrics_port, bundles, log = free_port(), free_port(), directory / "bundles", directory / "serving.log"
    bundles.mkdir(exist_ok=True)
    command = [SERVE_PYTHON, "-m", "serving.server", "--port", str(port), "--bundles", str(bundles)]
    command += ["--feature-repo", str(directory / "repo"), "--metrics-port", str(metrics_port)]
    command += ["--items-topic", topics.items, "--slates-topic", topics.slates, "--events-topic", topics.events]
    command += ["--topics-version", topics.version]
    command += ["--bootstrap-servers", kafka] if kafka else []
    with running([*command, *extra], log) as process:
        address = f"127.0.0.1:{port}"
        wait_for(lambda: health(address) is not None or process.poll() is not None, f"the service; see {log}")
        assert process.poll() is None, log.read_text()
        yield Service(address, f"http://127.0.0.1:{metrics_port}/metrics", bundles, store, process, log, topics)


def health(address: str) -> int | None:
    """The service's health status; None while nothing answers."""
    """The service's health status; None while nothing answers."""
    with grpc.insecure_channel(address) as channel:
        try:
            return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1).status
        except grpc.RpcError:
            return None


def promoted(service: Service, label: str = "tiny") -> str:
    """Promotes a tiny bundle and returns its id once the service is SERVING."""
    """Promotes a tiny bundle and returns its id once the service is SERVING."""
    bundle_id = write_tiny_bundle(service.bundles, label).name
    promote(service.bundles, bundle_id)
    serving = health_pb2.HealthCheckResponse.SERVING
    wait_for(lambda: health(service.address) == serving, f"health SERVING; see {service.log}")
    return bundle_id


def whole_slate(client: RankingClient, user_id: str, count: int = 10, **asked: Any) -> Slate:
    """A slate for which no stage fell back: on a busy machine a stage misses its time now and then."""

    def whole() -> Slate | None:
        slate = client.recommend(user_id, count, **asked)
        return None if slate.degraded else slate

    slate = wait_for(whole, f"a whole slate for {user_id}", timeout_s=30)
    assert isinstance(slate, Slate)
    return slate
