"""What seeing a request costs: processor time a request of counts, log lines and spans, sending included.

The request itself is a recorded one of the tiny bundle that does nothing but hand its record over, so the differences
between the rows are the cost; the collector runs in a process of its own.
"""

import asyncio
import logging
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

from rich.console import Console

from infra.settings import ROOT
from models.bundle import Bundle
from serving import ranking_pb2 as pb
from serving.answer import to_proto
from serving.item_snapshot import ItemSnapshot
from serving.live import Live
from serving.metrics import Metrics
from serving.observation import observed
from serving.observed_requests import ObservedRequests
from serving.pipeline import Pipeline, PipelineConfig
from serving.query import Query
from serving.stages import Progress
from serving.tracing import OtlpTracer
from serving.users import unknown_user
from tests.bench.report import BenchError, Row
from tests.serving_bundle import START_MS, write_tiny_bundle

REQUESTS, WARM_UP = 3_000, 200
_COLLECTOR = """
import sys
from tests.observed_service import collector
with collector() as (_, endpoint):
    print(endpoint, flush=True)
    sys.stdin.read()
"""


class _Context:
    """As much of a gRPC context as the interceptor reads."""

    def __init__(self, flags: str) -> None:
        traceparent = f"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{flags}"
        self._metadata = (("user-agent", "grpc-python"), ("traceparent", traceparent))

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    def details(self) -> str:
        return ""


class _Users:
    def read(self, user_id: str, instant_ms: int, *_: float) -> object:
        return unknown_user(user_id, instant_ms)


def _recorded() -> tuple[Progress, pb.Slate]:
    """The record of one real request."""
    with TemporaryDirectory() as directory:
        live = Live(ItemSnapshot().finalise_all(START_MS))
        live.switch(Bundle.load(write_tiny_bundle(Path(directory))))
    pipeline = Pipeline(users=_Users(), slates=None, config=PipelineConfig(), clock_ms=lambda: START_MS)  # type: ignore[arg-type]
    progress = Progress(monotonic_s=perf_counter, deadline_s=perf_counter() + 60)
    if live.view is None:
        raise BenchError("the tiny bundle gives no view; see tests/serving_bundle.py.")
    slate = to_proto(pipeline.recommend(live.view, Query(request_id="r", user_id="u", count=50), progress))
    return progress, slate


@contextmanager
def _collector() -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-c", _COLLECTOR], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        if process.stdout is None or process.stdin is None:
            raise BenchError("the collector has no pipes.")
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


def _cpu_us(
    answer: Callable[..., Awaitable[object]], flags: str = "00", after: Callable[[], object] = lambda: None
) -> float:
    """Processor microseconds a call of all threads of this process, `after` included."""
    request, context = pb.RecommendRequest(user_id="u", count=50), _Context(flags)

    async def calls(n: int) -> None:
        for k in range(n):
            await answer(request, context)
            if not k % 50:
                await asyncio.sleep(0.02)  # the pace of a service, so that no queue overflows

    asyncio.run(calls(WARM_UP))
    began_s = process_time()
    asyncio.run(calls(REQUESTS))
    after()
    return (process_time() - began_s) / REQUESTS * 1e6


def run(console: Console) -> list[Row]:
    """The cost of each part, as differences."""
    logging.basicConfig(level=logging.INFO, force=True)
    progress, slate = _recorded()

    async def answer(*_: object) -> pb.Slate:
        seen = observed()
        # The stages lie within the request, as they would.
        seen.started_s -= 0.01
        seen.request_id, seen.wanted, seen.progress, seen.slate = "r", 50, progress, slate
        return slate

    rows: list[Row] = []

    def say(name: str, value: float) -> None:
        console.print(f"{name}: {value:.0f} µs")
        rows.append(Row(name=name, value=round(value, 1), unit="µs of processor time a request"))

    bare = _cpu_us(answer)
    seen = _cpu_us(ObservedRequests(metrics=Metrics(), slow_ms=60_000)._observed("Recommend", answer))
    say("counts and log, no collector", seen - bare)
    with _collector() as endpoint:
        for name, flags in ("span not sampled", "00"), ("span of every request, sent", "01"):
            metrics = Metrics()
            tracer = OtlpTracer(endpoint=endpoint, ratio=1, metrics=metrics)
            observe = ObservedRequests(metrics=metrics, slow_ms=60_000, tracer=tracer)
            say(
                f"{name}, more than without",
                _cpu_us(observe._observed("Recommend", answer), flags, tracer.close) - seen,
            )
            lost = [metrics.spans.labels(fate)._value.get() for fate in ("failed", "dropped")]
            if any(lost):
                raise BenchError(f"{sum(lost):.0f} spans were lost; the figure would flatter.")
    return rows
