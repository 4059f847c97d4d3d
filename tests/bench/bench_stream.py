"""How many events a second the whole job takes from Kafka to Kafka, for ten minutes, and the chain into the store.

A backlog stands in the events topic; broker, job and, in the second part, the writer share the machine. The rate is
that of events that come out, read off the ends of the topics: interactions for the job (one for each counted event),
and for the chain the least of what the store's offsets say of that topic and of the tile topics. Settings are the
stack's, the same as in bench_freshness.
"""

import time
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from rich.console import Console

from features.backends import open_backend
from features.repo import store_location
from tests.bench.chain import Chain, open_chain, wait_until
from tests.bench.load import Load, produce_backlog
from tests.bench.report import Row

LOAD = Load()
WARM_UP_S = 60.0
WINDOW_S = 15.0


@dataclass(frozen=True, kw_only=True)
class Part:
    """One measurement."""

    name: str
    into_store: bool
    seconds: float
    most_per_s: int
    """What the backlog is sized for: a rate above it ends the run early, and the row's settings say so."""


JOB = Part(name="events_per_s", into_store=False, seconds=600.0, most_per_s=28_000)
CHAIN = Part(name="chain_events_per_s", into_store=True, seconds=300.0, most_per_s=20_000)


@dataclass(frozen=True)
class Sample:
    """The state at one time."""

    at_s: float
    out: int
    cpu_s: float
    memory_mb: float


def run(console: Console) -> list[Row]:
    """The job alone, then the chain with its writer."""
    return [row for part in (JOB, CHAIN) for row in _measure(console, part)]


def _measure(console: Console, part: Part) -> list[Row]:
    count = int(part.most_per_s * part.seconds)
    with open_chain() as chain:
        console.print(f"{part.name}: {count:,} events into the topic")
        now_ms = time.time_ns() // 1_000_000
        produce_backlog(chain.bootstrap_servers, chain.topics.events, LOAD, count, now_ms, part.most_per_s)
        chain.start_flink()
        if part.into_store:
            chain.start_writer()
        progress = _stored if part.into_store else _counted
        wait_until(lambda: progress(chain) > 0, 120.0, "the first event", chain)
        samples = _watch(console, chain, part, count, progress)
        return _rows(part.name, samples, count)


def _counted(chain: Chain) -> int:
    return chain.end_offset(chain.topics.interactions)


def _stored(chain: Chain) -> int:
    with open_backend(store_location(chain.repo)) as store:
        topics = [chain.topics.interactions, chain.topics.tiles("user_category"), chain.topics.tiles("item")]
        return min(sum(store.offsets(topic).values()) for topic in topics)


def _watch(console: Console, chain: Chain, part: Part, count: int, progress) -> list[Sample]:
    samples: list[Sample] = []
    began_s = time.monotonic()
    programs = [program for program in chain.pids if program != "kafka"]
    while time.monotonic() - began_s < part.seconds:
        time.sleep(WINDOW_S)
        chain.check()
        cpu_s = sum(chain.cpu_s(program) for program in chain.pids)
        memory_mb = sum(chain.memory_mb(program) for program in programs)
        samples.append(Sample(time.monotonic(), progress(chain), cpu_s, memory_mb))
        rate = _rate(samples[-2], samples[-1]) if len(samples) > 1 else 0
        console.print(f"{part.name}: {samples[-1].out:,} of {count:,}, {rate:,.0f}/s, {memory_mb:,.0f} MB")
        if samples[-1].out > 0.97 * count:
            break
    return samples


def _rate(one: Sample, other: Sample) -> float:
    return (other.out - one.out) / (other.at_s - one.at_s)


def _rows(name: str, samples: list[Sample], count: int) -> list[Row]:
    steady = [sample for sample in samples if sample.at_s - samples[0].at_s >= WARM_UP_S - WINDOW_S][:-1]
    first, last = steady[0], steady[-1]
    windows = [_rate(one, other) for one, other in pairwise(steady)]
    settings = {
        "users": LOAD.users,
        "items": LOAD.items,
        "seed": LOAD.seed,
        "backlog": count,
        "measured_s": round(last.at_s - first.at_s),
        "windows": len(windows),
    }
    third = max(len(steady) // 3, 1)
    peaks = [max(sample.memory_mb for sample in part) for part in (steady[:third], steady[-third:])]
    cpu_us = 1e6 * (last.cpu_s - first.cpu_s) / (last.out - first.out)
    return [
        Row(name=name, value=_rate(first, last), unit="events/s", settings=settings),
        Row(name=f"{name}: median window", value=median(windows), unit="events/s", settings=settings),
        Row(name=f"{name}: worst window", value=min(windows), unit="events/s", settings=settings),
        Row(name=f"{name}: processor time an event, broker included", value=cpu_us, unit="µs", settings=settings),
        Row(name=f"{name}: memory without the broker, peak", value=max(peaks), unit="MB", settings=settings),
        Row(name=f"{name}: memory, last third over first", value=peaks[1] / peaks[0], unit="ratio", settings=settings),
    ]
