"""The open-loop load generator `ghz`, built once from the Go module proxy, and what it measures.

Requests are sent at their rate whether or not earlier ones have been answered, so queueing is not hidden.
"""

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from infra.settings import ROOT
from tests.bench.report import BenchError

VERSION = "v0.120.0"
CACHE = ROOT / "var" / "ghz"
GO_PLACES = ("/usr/local/go/bin/go", "/usr/lib/go/bin/go")
"""Where Go is installed beside the search path."""
WARM_UP_SHARE = 0.1
"""Of the requests, the first: connections are made and caches filled."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """What came of a load: milliseconds of each answer with status OK, in the order of sending, and every status."""

    latency_ms: np.ndarray
    statuses: Mapping[str, int]

    @property
    def all_ok(self) -> bool:
        """Whether every request was answered, with status OK."""
        return set(self.statuses) == {"OK"}

    def quantile_ms(self, q: float) -> float:
        """A quantile in percent, without the warm-up."""
        return float(np.percentile(self.latency_ms[int(len(self.latency_ms) * WARM_UP_SHARE) :], q))


def binary() -> Path:
    """The generator, built if it is not there yet. Raises `BenchError` when it cannot be."""
    path = CACHE / VERSION / "ghz"
    if path.exists():
        return path
    go = shutil.which("go") or next((place for place in GO_PLACES if Path(place).exists()), None)
    if go is None:
        raise BenchError("the load generator ghz is built with Go, which is not found; install Go 1.22 or later.")
    env = {**os.environ, "GOBIN": str(path.parent), "GOPATH": str(CACHE / "go"), "GOFLAGS": "-modcacherw"}
    command = [go, "install", f"github.com/bojand/ghz/cmd/ghz@{VERSION}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"ghz {VERSION} cannot be built: {done.stderr.strip().splitlines()[-1:]}.")
    return path


@contextmanager
def started_load(
    address: str, requests: Path, *, rate: int, count: int, timeout_s: float, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts `count` requests a `1 / rate` seconds apart, taken in turn from a file of JSON; `read` has the outcome."""
    command = [str(binary()), "--insecure", "--async", "--call", "millrace.ranking.v1.RankingService.Recommend"]
    command += ["--proto", str(ROOT / "serving" / "ranking.proto"), "--import-paths", str(ROOT)]
    command += ["--rps", str(rate), "--total", str(count), "--concurrency", "20", "--connections", "4"]
    command += ["--timeout", f"{round(timeout_s * 1000)}ms", "--data-file", str(requests), "--format", "json"]
    with log.open("wb") as out, subprocess.Popen([*command, address], stdout=out, stderr=subprocess.STDOUT) as process:
        try:
            yield process
        finally:
            process.kill()


def load(address: str, requests: Path, *, rate: int, seconds: float, timeout_s: float, log: Path) -> Load:
    """Runs the load to its end. Raises `BenchError` when the generator fails."""
    count = round(rate * seconds)
    with started_load(address, requests, rate=rate, count=count, timeout_s=timeout_s, log=log) as process:
        process.wait()
    return read(log)


def read(log: Path) -> Load:
    """What a load that has ended wrote. Raises `BenchError` when it wrote something else."""
    try:
        details = json.loads(log.read_text())["details"]
    except (ValueError, KeyError) as error:
        raise BenchError(f"ghz failed: {log.read_text()[:300]}") from error
    details.sort(key=lambda each: each["timestamp"])
    answered = [each["latency"] / 1e6 for each in details if each["status"] == "OK"]
    return Load(latency_ms=np.array(answered), statuses=Counter(each["status"] for each in details))
