"""Several processes at one port: what shares it, what dies and comes again, and what ends with what."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator

import psutil
import pytest

from features.names import Topics
from serving import priority
from serving.client import RankingClient, RankingError
from serving.processes import StartError, reserve_port
from serving.request_log import RequestLogReader
from tests.conftest import ROOT, free_port, wait_for
from tests.ranking_service import SERVE_PYTHON, Service, promoted, ranking_service

NO_KAFKA = Topics(version="none")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("processes")
    flags = ("--processes", "2", "--pin", "--request-log", str(directory / "request-log"))
    with ranking_service(directory, None, NO_KAFKA, *flags) as started:
        promoted(started)
        yield started


def _pids(service: Service, role: str) -> set[int]:
    found = set()
    for child in psutil.Process(service.process.pid).children():
        try:
            if f"serving.{role}" in child.cmdline():
                found.add(child.pid)
        except psutil.Error:
            continue
    return found


def _degraded(service: Service) -> str:
    with RankingClient(service.address, 5.0) as client:
        return client.recommend("u").degraded.get("retrieve", "")


def _answers(service: Service) -> bool:
    """Whether a new connection, which any worker may take, is answered from the bundle."""
    try:
        return not _degraded(service)
    except RankingError:
        return False


def _ours(pid: int) -> float:
    return float(psutil.Process(pid).cpu_times().user)


def test_each_worker_stays_on_a_core_of_its_own(service: Service) -> None:
    cores = sorted(os.sched_getaffinity(0))
    wanted = sorted([cores[worker % len(cores)]] for worker in range(2))

    def of_workers() -> list[list[int]]:
        return sorted(psutil.Process(pid).cpu_affinity() for pid in _pids(service, "worker"))

    wait_for(lambda: of_workers() == wanted, "both workers, the second of which may still be starting")
    for other in _pids(service, "keeper") | _pids(service, "scribe"):
        assert psutil.Process(other).cpu_affinity() == cores


def test_keeper_and_scribes_give_way_to_workers(service: Service) -> None:
    own = psutil.Process().nice()
    assert {psutil.Process(pid).nice() for pid in _pids(service, "worker")} == {own}
    for role in ("keeper", "scribe"):
        niceness = {psutil.Process(pid).nice() for pid in _pids(service, role)}
        assert niceness == {max(own, priority.BELOW_WORKERS)}, role


def test_the_workers_share_the_port_and_one_address_has_their_metrics(service: Service) -> None:
    workers = _pids(service, "worker")
    assert len(workers) == 2 and len(_pids(service, "keeper")) == 1
    before = service.metric('ranking_requests_total{code="OK",method="Recommend"}')
    spread = {pid: _ours(pid) for pid in workers}
    wait_for(lambda: _answers(service) and all(_ours(pid) > was for pid, was in spread.items()), "work for both")
    for _ in range(20):
        assert _answers(service)
    wait_for(lambda: service.metric('ranking_requests_total{code="OK",method="Recommend"}') >= before + 20, "counts")
    assert service.metric("ranking_catalogue_items") == 200, "a gauge is one of the workers', not their sum"


def test_a_keeper_that_is_killed_comes_again_and_answers_go_on_meanwhile(service: Service) -> None:
    (keeper,) = _pids(service, "keeper")
    snapshot = service.shared_dir / "snapshot" / "current.json"
    before = snapshot.read_text()
    psutil.Process(keeper).suspend()
    wait_for(lambda: "their keeper does not run" in _degraded(service), "word of the silent keeper", timeout_s=15)
    psutil.Process(keeper).kill()
    wait_for(lambda: _pids(service, "keeper") - {keeper}, "another keeper")
    wait_for(lambda: snapshot.read_text() != before and _answers(service), "features of the new keeper")
    assert "a keeper has ended with status -9" in service.log.read_text()


def test_a_worker_that_is_killed_comes_again(service: Service) -> None:
    before = _pids(service, "worker")
    psutil.Process(killed := min(before)).kill()
    wait_for(lambda: len(_pids(service, "worker") - {killed}) == 2, "another worker")
    wait_for(lambda: all(_answers(service) for _ in range(10)), "answers at every connection")
    assert service.metric('ranking_requests_total{code="OK",method="Recommend"}') > 0, "what it counted stays"


def test_a_scribe_that_is_killed_comes_again_and_logs_go_on(service: Service) -> None:
    before = _pids(service, "scribe")
    assert len(before) == 2
    for scribe in before:
        psutil.Process(scribe).kill()
    wait_for(lambda: len(_pids(service, "scribe") - before) == 2 and _answers(service), "other scribes, and answers")
    kept = service.metric('ranking_logged_requests_total{fate="kept"}')
    wait_for(
        lambda: _answers(service) and service.metric('ranking_logged_requests_total{fate="kept"}') > kept,
        "requests of the other scribes in the log",
    )


def test_a_port_is_neither_shared_with_strangers_nor_lost_to_them(service: Service) -> None:
    port = int(service.address.rsplit(":", 1)[1])
    flags = ["--port", str(port), "--bundles", "var/x", "--feature-repo", "var/x"]
    second = subprocess.run(
        [SERVE_PYTHON, "-m", "serving.server", *flags], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert second.returncode == 1 and f"port {port} of 127.0.0.1 is taken" in second.stderr
    assert "Traceback" not in second.stderr and _answers(service)
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        with pytest.raises(StartError, match="is taken"):
            reserve_port("127.0.0.1", stranger.getsockname()[1])


def test_a_port_is_held_before_anybody_listens() -> None:
    port = free_port()
    with reserve_port("127.0.0.1", port), pytest.raises(StartError, match="is taken"):
        reserve_port("127.0.0.1", port)


def test_sigterm_ends_all_and_leaves_nothing_but_the_last_request(service: Service) -> None:
    with RankingClient(service.address, 5.0) as client:
        request_id = client.recommend("u").request_id
    family = psutil.Process(service.process.pid).children(recursive=True)
    service.process.send_signal(signal.SIGTERM)
    assert service.process.wait(20) == 0
    assert not [process for process in family if process.is_running()]
    assert not service.shared_dir.exists()
    assert RequestLogReader(service.bundles.parent / "request-log").has(request_id)


def test_children_end_with_a_parent_that_is_killed(tmp_path_factory: pytest.TempPathFactory) -> None:
    with ranking_service(tmp_path_factory.mktemp("orphans"), None, NO_KAFKA) as started:
        family = psutil.Process(started.process.pid).children(recursive=True)
        assert len(family) == 2
        started.process.kill()
        _, alive = psutil.wait_procs(family, timeout=10)
        assert not alive
        shutil.rmtree(started.shared_dir)  # the next service at this port would remove it
