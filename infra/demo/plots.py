"""The report's pictures, as inline SVG drawn by matplotlib."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

ARM_COLOURS = {"oracle": "#adb5bd", "millrace": "#0b7285", "popular": "#e8890c", "random": "#868e96"}
_ACCENT = ARM_COLOURS["millrace"]
_STATE_COLOURS = {"success": "#2b8a3e", "failed": "#c92a2a"}


def click_rates(rates: Mapping[str, Mapping[str, float]], by_round: Mapping[str, Sequence[float]]) -> str:
    """Bars with intervals, one an arm, and beside them each arm's rate by round."""
    figure, (bars, lines) = _figure(1, 2, height=3.2)
    arms = sorted(rates, key=lambda arm: rates[arm]["value"])
    values = [rates[arm]["value"] for arm in arms]
    errors = [[rates[a]["value"] - rates[a]["low"] for a in arms], [rates[a]["high"] - rates[a]["value"] for a in arms]]
    bars.barh(arms, values, xerr=errors, color=[ARM_COLOURS[arm] for arm in arms], capsize=3, height=0.6)
    for y, arm in enumerate(arms):
        _beside(bars, f"{rates[arm]['value']:.1%}", rates[arm]["high"], y)
    bars.set_xlim(0, max(rates[arm]["high"] for arm in arms) * 1.2)
    bars.set_xlabel("clicks per impression")
    for arm, rounds in by_round.items():
        lines.plot(range(1, len(rounds) + 1), rounds, marker="o", markersize=3, color=ARM_COLOURS[arm], label=arm)
    lines.set_xlabel("round")
    lines.set_ylim(bottom=0)
    lines.legend(frameon=False, fontsize=8)
    return _svg(figure)


def accuracy(hr: Mapping[str, Mapping[str, float]], ndcg: Mapping[str, Mapping[str, float]]) -> str:
    """HR@10 and NDCG@10 of each arm, with intervals."""
    figure, panels = _figure(1, 2, height=2.4)
    for panel, (name, metric) in zip(panels, (("HR@10", hr), ("NDCG@10", ndcg)), strict=True):
        arms = sorted(metric, key=lambda arm: metric[arm]["value"])
        low = [metric[arm]["value"] - metric[arm]["low"] for arm in arms]
        high = [metric[arm]["high"] - metric[arm]["value"] for arm in arms]
        values = [metric[arm]["value"] for arm in arms]
        panel.barh(arms, values, xerr=[low, high], color=[ARM_COLOURS[a] for a in arms], capsize=3, height=0.55)
        for y, arm in enumerate(arms):
            _beside(panel, f"{metric[arm]['value']:.3f}", metric[arm]["high"], y)
        panel.set_xlim(0, max(metric[arm]["high"] for arm in arms) * 1.25)
        panel.set_xlabel(name)
    return _svg(figure)


def latencies(event_to_slate_ms: Sequence[float] | None, recommend_ms: Sequence[float]) -> str:
    """Histograms of both latencies, p50 and p99 marked."""
    named = [("event to slate, ms", event_to_slate_ms), ("Recommend, ms", recommend_ms)]
    shown = [(name, values) for name, values in named if values]
    figure, panels = _figure(1, len(shown), height=2.6)
    for panel, (name, values) in zip(panels, shown, strict=True):
        p50, p99 = (float(at) for at in np.percentile(values, [50, 99]))
        panel.hist(np.minimum(values, p99 * 1.2), bins=40, color=_ACCENT)
        for label, at in (("p50", p50), ("p99", p99)):
            panel.axvline(at, color="#1d2733", linewidth=0.9, linestyle="--")
            panel.annotate(f"{label} {at:.0f}", (at, panel.get_ylim()[1]), fontsize=8, ha="left", va="top")
        panel.set_xlabel(name)
    return _svg(figure)


def timeline(phases: Sequence[Mapping[str, Any]], dag_runs: Sequence[Mapping[str, Any]]) -> str:
    """Phases and DAG runs as bars over the seconds since the demo began."""
    rows = [(str(phase["name"]), phase["start_s"], phase["seconds"], _ACCENT) for phase in phases]
    rows += [
        (str(run["dag_id"]), run["start_s"], run["seconds"], _STATE_COLOURS.get(run["state"], "#e8890c"))
        for run in sorted(dag_runs, key=lambda run: run["start_s"])
    ]
    figure, (panel,) = _figure(1, 1, height=0.8 + 0.27 * len(rows))
    for y, (_, start_s, seconds, colour) in enumerate(rows):
        panel.barh(y, seconds, left=start_s, color=colour, height=0.62)
        _beside(panel, f"{seconds:.0f} s", start_s + seconds, y)
    panel.set_yticks(range(len(rows)), [name for name, *_ in rows])
    panel.invert_yaxis()
    panel.margins(x=0.08)
    panel.set_xlabel("seconds since the start; green bars are Airflow runs")
    return _svg(figure)


def _beside(panel: Axes, text: str, x: float, y: float) -> None:
    panel.annotate(text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8)


def _figure(rows: int, columns: int, height: float) -> tuple[Figure, list[Axes]]:
    mpl.rcParams.update({"font.size": 9, "svg.fonttype": "none", "font.family": "sans-serif"})
    figure = Figure(figsize=(9.5, height), layout="constrained")
    panels = [figure.add_subplot(rows, columns, index + 1) for index in range(rows * columns)]
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
