"""Alert rules, dashboard and scrape configuration name only metrics, labels and values that the programs have."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from features.ledger import Outcome
from infra.settings import ROOT, Settings
from serving import ranking_pb2
from serving.logs import SERVER_FAULTS
from serving.metrics import Metrics
from serving.slate_metrics import FATES, SlateMetrics
from serving.stages import SOURCE_OUTCOMES, STAGES
from streaming.job_metrics import JobCollector
from streaming.writer_metrics import WriterMetrics

FOLDER = ROOT / "infra" / "observability"
ALERTS = yaml.safe_load((FOLDER / "alerts.yml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
SCRAPES = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["scrape_configs"]
RUNBOOK = (FOLDER / "README.md").read_text()

FUNCTIONS = {"sum", "min", "max", "count", "rate", "increase", "delta", "histogram_quantile", "max_over_time"}
KEYWORDS = {"by", "on", "or", "and", "unless", "group_left", "group_right", "without", "bool"}
GROUPING = r"\b(?:by|on|without|group_left|group_right)\s*\(([^)]*)\)"
TOKEN = re.compile(
    r"(?P<name>[a-zA-Z_:][\w:]*)\s*(?P<matchers>\{[^}]*\})?|(?P<range>\[[^\]]+\])|(?P<open>\()|(?P<close>\))"
    r"|(?P<number>\d+(\.\d+)?)|(?P<operator>==|>=|<=|!=|[-+*/><,])|(?P<space>\s+)"
)
OF_THE_SCRAPE = {"job", "instance"}
METHODS = {method.name for method in ranking_pb2.DESCRIPTOR.services_by_name["RankingService"].methods}
VALUES: Mapping[tuple[str, str], set[str]] = {
    ("up", "job"): {scrape["job_name"] for scrape in SCRAPES},
    ("ranking_requests_total", "code"): {code.name for code in grpc.StatusCode},
    ("ranking_requests_total", "method"): METHODS,
    ("ranking_request_seconds_bucket", "method"): METHODS,
    ("ranking_empty_slates_total", "method"): METHODS,
    ("ranking_degraded_total", "stage"): set(STAGES),
    ("ranking_source_calls_total", "outcome"): set(SOURCE_OUTCOMES),
    ("ranking_slates_total", "fate"): set(FATES),
    ("ranking_spans_total", "fate"): set(FATES),
    ("millrace_stream_outcomes_total", "outcome"): {str(outcome) for outcome in Outcome},
}
"""Which values a label that an expression selects by may have."""


@dataclass(frozen=True)
class Series:
    """One name that Prometheus would store."""

    kind: str
    labels: frozenset[str]


class CannedJob(JobCollector):
    """The stream job's collector before a cluster whose answers are written here."""

    def _get(self, path: str) -> Any:
        if path == "/jobs/overview":
            return {"jobs": [{"jid": "j", "state": "RUNNING"}]}
        if path == "/jobs/j":
            return {"vertices": [{"id": "v", "name": "KafkaSource events"}]}
        if path == "/jobs/j/checkpoints":
            done = {"trigger_timestamp": 1, "end_to_end_duration": 2, "state_size": 3}
            return {"counts": {"failed": 0}, "latest": {"completed": done}}
        names = ("0.Source__KafkaSource.pendingRecords", "0.Source__KafkaSource.numRecordsIn")
        return [{"id": name, "value": "1"} for name in names]


def _of_objects(metrics: object) -> Iterator[tuple[str, Series]]:
    """The series of a program's metric objects, whether or not any has a value yet."""
    for metric in vars(metrics).values():
        if not isinstance(metric, MetricWrapperBase):
            continue
        kind, labels = metric._type, frozenset(metric._labelnames)
        suffixes = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}[kind]
        for suffix in suffixes:
            yield f"{metric._name}{suffix}", Series(kind, labels | ({"le"} if suffix == "_bucket" else set()))


def _of_the_job() -> Iterator[tuple[str, Series]]:
    for family in CannedJob("", lambda: 10).collect():
        for sample in family.samples:
            yield sample.name, Series(family.type, frozenset(sample.labels))


EXIST: Mapping[str, Series] = {
    "up": Series("gauge", frozenset()),
    **dict(_of_objects(Metrics())),
    **dict(_of_objects(SlateMetrics(CollectorRegistry()))),
    **dict(_of_objects(WriterMetrics())),
    **dict(_of_the_job()),
}


@dataclass(frozen=True)
class Selector:
    """A metric as an expression names it, within the functions that hold it."""

    metric: str
    matchers: tuple[tuple[str, str], ...]
    function: str
    """The innermost function around it."""


def parsed(expression: str) -> tuple[list[Selector], set[str]]:
    """The selectors of a PromQL expression and the labels that it groups by. Raises `ValueError` for anything that is
    neither a known function or keyword nor a name.
    """
    groups = re.findall(GROUPING, expression)
    return _selectors(re.sub(GROUPING, " ", expression)), set(re.findall(r"\w+", " ".join(groups)))


def _selectors(rest: str) -> list[Selector]:
    selectors, functions = [], []
    at, pending = 0, ""
    while at < len(rest):
        found = TOKEN.match(rest, at)
        if found is None:
            raise ValueError(f"cannot read {rest[at:]!r}")
        at, name = found.end(), found["name"]
        if name in KEYWORDS:
            continue
        if name and (name in FUNCTIONS or rest[at:].lstrip().startswith("(")):
            if name not in FUNCTIONS:
                raise ValueError(f"unknown function {name}")
            pending = name
        elif name:
            matchers = re.findall(r'(\w+)\s*(?:=~|!~|!=|=)\s*"([^"]*)"', found["matchers"] or "")
            around = next((function for function in reversed(functions) if function), "")
            selectors.append(Selector(name, tuple(matchers), around))
        elif found["open"]:
            functions.append(pending)
            pending = ""
        elif found["close"]:
            functions.pop()
    if functions:
        raise ValueError("a parenthesis is not closed")
    return selectors


def faults(expression: str, shown: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    """What is wrong with an expression, `shown` being labels that a legend or an annotation prints."""
    selectors, grouped = parsed(expression.replace("$__rate_interval", "5m"))
    found = [] if selectors else ["names no metric"]
    kept = {label for each in selectors if each.metric in EXIST for label in EXIST[each.metric].labels} | OF_THE_SCRAPE
    for each in selectors:
        series = EXIST.get(each.metric)
        if series is None:
            found.append(f"no program has the metric {each.metric}")
            continue
        if each.function in ("rate", "increase") and series.kind not in ("counter", "histogram"):
            found.append(f"{each.function} of the {series.kind} {each.metric}")
        if each.function == "delta" and series.kind != "gauge":
            found.append(f"delta of the {series.kind} {each.metric}")
        for label, values in each.matchers:
            if label not in series.labels | OF_THE_SCRAPE:
                found.append(f"{each.metric} has no label {label}")
            elif values != "$instance":
                allowed = VALUES.get((each.metric, label), set())
                found += [f"{each.metric} has no {label} {v}" for v in values.split("|") if v not in allowed]
    found += [f"groups by {label}, which no metric of it has" for label in grouped - kept]
    aggregated = re.search(r"\b(sum|min|max|count)\b", expression) is not None
    known = grouped if aggregated else kept
    return found + [f"shows {label}, which the result does not have" for label in shown - known]


def test_the_programs_metrics_are_found() -> None:
    assert {"ranking_requests_total", "millrace_writer_lag_rows", "millrace_stream_checkpoint_age_seconds"} <= set(
        EXIST
    )
    assert EXIST["ranking_requests_total"] == Series("counter", frozenset({"method", "code"}))


@pytest.mark.parametrize(
    ("expression", "shown", "fault"),
    [
        ("sum(rate(ranking_requests[5m]))", (), "no program has the metric ranking_requests"),
        ('ranking_requests_total{status="OK"}', (), "ranking_requests_total has no label status"),
        ('ranking_requests_total{code="FINE|OK"}', (), "ranking_requests_total has no code FINE"),
        ("sum by (stage) (rate(ranking_requests_total[5m]))", (), "groups by stage, which no metric of it has"),
        ("rate(ranking_in_flight[5m])", (), "rate of the gauge ranking_in_flight"),
        ("delta(ranking_shed_total[5m])", (), "delta of the counter ranking_shed_total"),
        ("sum(rate(ranking_requests_total[5m]))", ("method",), "shows method, which the result does not have"),
        ("1 > 0", (), "names no metric"),
    ],
)
def test_faults_are_found(expression: str, shown: tuple[str, ...], fault: str) -> None:
    assert faults(expression, set(shown)) == [fault]


@pytest.mark.parametrize("expression", ["sum(ranking_shed_total", "summ(ranking_shed_total)", "ranking_shed_total ? 1"])
def test_what_is_no_expression_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match=r"parenthesis|unknown function|cannot read"):
        parsed(expression)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_alert_is_whole_and_names_what_exists(rule: dict[str, Any]) -> None:
    assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"\d+[smh]", rule["for"]) and rule["labels"] == {"severity": rule["labels"]["severity"]}
    assert rule["labels"]["severity"] in ("page", "ticket")
    summary = rule["annotations"]["summary"]
    assert summary.endswith(".")
    assert faults(rule["expr"], set(re.findall(r"\$labels\.(\w+)", summary))) == []
    assert rule["annotations"]["runbook"] == f"infra/observability/README.md#{rule['alert'].lower()}"
    section = re.search(rf"^### {rule['alert']}\n(.+?)(?=^#|\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert section is not None and section[1].strip(), f"README.md does not say what to do about {rule['alert']}"


def test_alerts_and_runbook_agree() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    assert re.findall(r"^### (\w+)$", RUNBOOK, re.MULTILINE) == names
    titles = {panel["title"] for panel in PANELS}
    for quoted in re.findall(r'"([A-Z][^"]+)"', RUNBOOK):
        assert quoted in titles, f"README.md sends to the panel {quoted!r}, which the dashboard does not have"


def test_errors_are_what_logs_and_spans_call_the_services_fault() -> None:
    (rule,) = [rule for rule in RULES if rule["alert"] == "RankingErrors"]
    (codes,) = [dict(each.matchers)["code"] for each in parsed(rule["expr"])[0] if each.matchers]
    assert set(codes.split("|")) == SERVER_FAULTS


def test_each_program_has_alerts_on_its_own_metrics() -> None:
    used = {each.metric for rule in RULES for each in parsed(rule["expr"])[0]}
    for prefix in ("ranking_", "millrace_writer_", "millrace_stream_"):
        assert any(metric.startswith(prefix) for metric in used)


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_each_panel_is_whole_and_names_what_exists(panel: dict[str, Any]) -> None:
    assert panel["title"] and panel["description"].endswith(".") and panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"} and panel["targets"]
    for target in panel["targets"]:
        assert faults(target["expr"], set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))) == []
        assert target["datasource"] == panel["datasource"]
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_the_dashboard_is_one() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids) and DASHBOARD["uid"] and DASHBOARD["title"]
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert faults(variables["instance"]["query"]["query"].removeprefix("label_values(").split(",")[0]) == []
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert {"Online writer", "Stream job"} <= set(rows)


def test_no_panel_covers_another() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_prometheus_scrapes_the_programs_where_they_are() -> None:
    targets = {scrape["job_name"]: scrape["static_configs"][0]["targets"] for scrape in SCRAPES}
    ports = Settings()
    assert targets == {
        "millrace-stream-job": [f"127.0.0.1:{ports.flink_metrics_port}"],
        "millrace-writer": [f"127.0.0.1:{ports.writer_metrics_port}"],
        "millrace-ranking": [f"127.0.0.1:{ports.serving_metrics_port}"],
    }
