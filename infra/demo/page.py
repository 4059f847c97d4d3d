"""The demo's report as one HTML file: no script, no font, no picture from elsewhere."""

import html
from typing import Any

from infra.demo import plots

_STYLE = """
:root { color-scheme: light; --ink: #1d2733; --soft: #66727f; --line: #dde3e9; --accent: #0b7285; }
body { font: 15px/1.55 system-ui, sans-serif; color: var(--ink); max-width: 1000px; margin: 2.5rem auto;
  padding: 0 1.2rem; }
h1 { font-size: 1.7rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .5rem; }
p, figcaption { color: var(--soft); } figure { margin: .8rem 0; } svg { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .28rem .9rem .28rem 0; border-bottom: 1px solid var(--line); text-align: left; }
td.n, th.n { text-align: right; } .scroll { overflow-x: auto; }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.card { border: 1px solid var(--line); border-radius: 8px; padding: .6rem 1rem; min-width: 8.5rem; }
.card b { display: block; font-size: 1.35rem; } .card span { color: var(--soft); font-size: .85rem; }
.slate { display: flex; gap: 4px; margin: .25rem 0 .8rem; }
.slate div { flex: 1; border-radius: 5px; padding: .45rem .2rem; text-align: center; font-size: .72rem;
  background: #eef1f4; color: var(--soft); overflow: hidden; }
.slate div.new { background: var(--accent); color: #fff; }
"""


def render_page(report: dict[str, Any]) -> str:
    """The page of one report, as `Report.as_dict` gives it."""
    sections = (
        _cards(report),
        _accuracy(report),
        _click_rate(report),
        _closed_loop(report),
        _taste_change(report),
        _latency(report),
        _accounts(report),
        _timeline(report),
        _models(report),
        _absent(report),
    )
    body = "\n".join(section for section in sections if section)
    title = f"Millrace demo: {html.escape(str(report['data']))}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>{title}</h1>\n"
        f"<p>Seed {report['seed']}, bundle {html.escape(str(report['bundle_id']))}. "
        "Every figure is from this run.</p>\n"
        f"{body}\n</body></html>\n"
    )


def _cards(report: dict[str, Any]) -> str:
    shown = [
        ("events produced", _number(report["events_produced"])),
        ("events lost", _number(report["events_lost"])),
        ("event to slate, p50", _ms(report["event_to_slate_ms_p50"])),
        ("Recommend, p50", _ms(report["recommend_ms_p50"])),
        ("whole run", f"{sum(report['seconds'].values()):.0f} s"),
        ("memory at the peak", f"{report['memory_peak_mb'] / 1000:.1f} GB"),
    ]
    cards = "".join(f'<div class="card"><b>{value}</b><span>{name}</span></div>' for name, value in shown)
    return f'<div class="cards">{cards}</div>'


def _click_rate(report: dict[str, Any]) -> str:
    if not report["click_rate"]:
        return ""
    return _section(
        "Click rate by arm",
        "Each arm has its own clone of every live user; bars are 95% bootstrap intervals over users. Right: by round.",
        plots.click_rates(report["click_rate"], report["click_rate_by_round"]),
    )


def _closed_loop(report: dict[str, Any]) -> str:
    if not report.get("closed_loop"):
        return ""
    rows = []
    for number, turn in enumerate(report["closed_loop"]):
        shares = turn["gap_share"]
        cells = [", ".join(turn["bundle_ids"]), *(_share(shares[name]) for name in ("clicks", "watch", "few_events"))]
        for arm in ("millrace", "popular", "oracle"):
            got = turn["arms"][arm]
            cells.append(f"{got['watch_s_per_slate']:.0f} s, {got['age_days']:.1f} days, {got['coverage']:.0%}")
        rows.append("".join(f"<td>{html.escape(cell)}</td>" for cell in (str(number), *cells)))
    names = ("trained again", "bundle", "clicks", "watch", "clicks, few events", "millrace", "popular", "oracle")
    head = "".join(f"<th>{name}</th>" for name in names)
    table = f"<table><tr>{head}</tr>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"
    note = (
        "Share of the way from the popular arm to the oracle (95% bootstrap intervals over users); few events: users "
        "without a history, at slates before which they had done 5 to 14 things. By arm: time watched a slate, mean "
        "age of the items shown, share of the catalogue shown."
    )
    return _section("The closed loop", note, f'<div class="scroll">{table}</div>')


def _share(share: dict[str, float] | None) -> str:
    return "–" if share is None else f"{share['value']:.0%} [{share['low']:.0%}, {share['high']:.0%}]"


def _accuracy(report: dict[str, Any]) -> str:
    if not report["hr_at_10"]:
        return ""
    note = (
        "Served slates against the held-out interactions, full catalogue minus seen items, no exploration; "
        "bars are 95% bootstrap intervals over users."
    )
    return _section("Accuracy on held-out ratings", note, plots.accuracy(report["hr_at_10"], report["ndcg_at_10"]))


def _taste_change(report: dict[str, Any]) -> str:
    change = report["taste_change"]
    if not change:
        return ""
    category = change["category"]
    rows = []
    for when in ("before", "after"):
        cells = "".join(
            f'<div class="{"new" if item["category"] == category else ""}">{html.escape(item["category"])}</div>'
            for item in change[when]
        )
        share = change[f"{when}_share"]
        rows.append(f'<div>{when}: {share:.0%} {html.escape(category)}</div><div class="slate">{cells}</div>')
    note = (
        f"User {change['user_id']}, before and after {change['events']} events in {category}, a category new to them."
    )
    return _section("A change of taste", note, "".join(rows))


def _latency(report: dict[str, Any]) -> str:
    note = (
        "Left: from producing an event to the first slate that reflects it. "
        "Right: one Recommend call, seen by the client, beside everything else on this machine."
    )
    figure = plots.latencies(report["event_to_slate_ms"], report["recommend_ms"])
    return _section("How fresh, how fast", note, figure)


def _accounts(report: dict[str, Any]) -> str:
    keys = (
        "events_produced",
        "events_in_lake",
        "duplicates_sent",
        "duplicates_removed",
        "malformed_sent",
        "dead_letters",
        "late_sent",
        "too_late",
        "events_lost",
    )
    rows = "".join(f'<tr><td>{key}</td><td class="n">{_number(report[key])}</td></tr>' for key in keys)
    return _section("Accounts", "events_lost compares ids, not counts.", f"<table>{rows}</table>")


def _timeline(report: dict[str, Any]) -> str:
    note = "Phases of the run, and the Airflow runs within them."
    return _section("Where the time went", note, plots.timeline(report["phases"], report["dag_runs"]))


def _models(report: dict[str, Any]) -> str:
    tables = [_metric_table(name, metrics) for name, metrics in report["models"].items() if isinstance(metrics, dict)]
    return _section("Models", "On the time split's held-out part, as training reported them.", "".join(tables))


def _metric_table(title: str, rows: dict[str, Any]) -> str:
    nested = {name: row for name, row in rows.items() if isinstance(row, dict)}
    if not nested:
        return ""
    columns = list(
        dict.fromkeys(key for row in nested.values() for key, got in row.items() if not isinstance(got, dict))
    )
    head = "".join(f'<th class="n">{html.escape(column)}</th>' for column in columns)
    lines = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f'<td class="n">{_number(row.get(column))}</td>' for column in columns)
        + "</tr>"
        for name, row in nested.items()
    )
    return f'<div class="scroll"><table><tr><th>{html.escape(title)}</th>{head}</tr>{lines}</table></div><br>'


def _absent(report: dict[str, Any]) -> str:
    if not report["absent"]:
        return ""
    rows = "".join(f"<tr><td>{key}</td><td>{html.escape(why)}</td></tr>" for key, why in report["absent"].items())
    return _section("Does not apply to this run", "", f"<table>{rows}</table>")


def _section(title: str, note: str, body: str) -> str:
    caption = f"<p>{html.escape(note)}</p>" if note else ""
    return f"<section><h2>{title}</h2>{caption}<figure>{body}</figure></section>"


def _number(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return html.escape(str(value))


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} ms"
