"""What the command shows of a ranker that was trained on one's own table."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from models.tabular.config import RUN

BASELINES = {"single_task": "its own network", "lightgbm": "LightGBM", "training_rate": "training rate"}


def ranker_view(report: Mapping[str, Any]) -> Table:
    """A row a task, and one for each baseline that the report has of it."""
    rows = report[RUN]["rows"]
    table = Table("task", "AUC", "95% interval", "log loss", "ECE", "ECE before", "labels", "rate", box=None)
    table.title = f"{report[RUN]['split']}: {rows[report[RUN]['split']]:,} rows"
    for column in table.columns:
        column.no_wrap = True
    for task, metrics in report.items():
        if task == RUN:
            continue
        interval = " to ".join(map(_number, metrics["auc_interval"]))
        start = [task, _number(metrics["auc"]), interval, _number(metrics["log_loss"]), _number(metrics["ece"])]
        table.add_row(*start, _number(metrics["ece_before"]), f"{metrics['examples']:,}", _number(metrics["rate"]))
        for name, said in BASELINES.items():
            if name in metrics:
                found = metrics[name]
                shown = [_number(found.get(key)) for key in ("auc", "log_loss", "ece")]
                table.add_row(f"  {said}", shown[0], "", *shown[1:])
    return table


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.4f}"
