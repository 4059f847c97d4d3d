"""Structured logs: one JSON object a line, with the request id and the trace id where there is a request.

No personal data is logged: whatever a line would say within a request, the values of its personal fields and its API
key are cut out (`serving.observation.PERSONAL_FIELDS`), also of tracebacks.
"""

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime

from serving.observation import Observation, observed

_log = logging.getLogger(__name__)

_EXTRAS = (
    "request_id",
    "trace_id",
    "method",
    "code",
    "reason",
    "ms",
    "bundle_id",
    "arm",
    "items",
    "degraded",
    "stage_ms",
    "suppressed",
)
REDACTED = "[redacted]"
WHOLE_WORD_BELOW = 6
"""Shorter values are cut out only where they stand alone, so that a user called `u` leaves the rest readable."""
BURST_LINES, BURST_S = 20, 10.0
"""So many lines of one message and code go out in one stretch of time; a later one says how many did not."""
MAX_KINDS = 1_000
"""Beyond so many different messages the counts begin anew."""
SERVER_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""Status codes that are the service's fault, by OpenTelemetry's conventions for RPC."""


def redacted(text: str, values: Iterable[str]) -> str:
    """The text without the values, as they are or as `repr` writes them."""
    # Only those that occur: a request may name 10,000 items, and an expression of so many takes long to compile.
    forms = {form for value in values for form in (value, repr(value)[1:-1]) if form in text}
    if not forms:
        return text
    # The longest first, since one value may begin another.
    patterns = (
        re.escape(form) if len(form) >= WHOLE_WORD_BELOW else rf"(?<![A-Za-z0-9]){re.escape(form)}(?![A-Za-z0-9])"
        for form in sorted(forms, key=len, reverse=True)
    )
    return re.sub("|".join(patterns), REDACTED, text)


class JsonFormatter(logging.Formatter):
    """Time, level, logger, message, the known extras and the traceback, if any."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        request = observed()
        personal = request.personal()
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redacted(record.getMessage(), personal),
        }
        ids = {"request_id": request.request_id, "trace_id": request.trace_id}
        fields.update({name: value for name, value in ids.items() if value})
        fields.update({name: getattr(record, name) for name in _EXTRAS if hasattr(record, name)})
        if record.exc_info:
            fields["exception"] = redacted(self.formatException(record.exc_info), personal)
        return json.dumps(fields)


class Bursts(logging.Filter):
    """Holds back what a failing part would repeat with each request; debug lines pass."""

    def __init__(self) -> None:
        super().__init__()
        self._window: dict[tuple[str, str, str], int] = {}
        self._lines: dict[tuple[str, str, str], int] = defaultdict(int)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line goes out; it then carries the count of those before it that did not as `suppressed`."""
        if record.levelno <= logging.DEBUG:
            return True
        kind = (record.name, str(record.msg), getattr(record, "code", ""))
        window = int(record.created / BURST_S)
        if len(self._window) > MAX_KINDS:
            self._window.clear()
            self._lines.clear()
        if self._window.get(kind) != window:
            self._window[kind] = window
            suppressed = self._lines.pop(kind, 0) - BURST_LINES
            if suppressed > 0:
                record.suppressed = suppressed
        self._lines[kind] += 1
        return self._lines[kind] <= BURST_LINES


def log_as_json(level: str) -> None:
    """Sends every logger's records to standard error as JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    handler.addFilter(Bursts())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def log_request(request: Observation, code: str, reason: str, seconds: float, slow_ms: float) -> None:
    """One line for a request that failed or took `slow_ms`; for every other one a line at debug."""
    ms = round(seconds * 1000, 3)
    if code != "OK":
        level, message = logging.WARNING if code in SERVER_FAULTS else logging.INFO, "request failed"
    elif ms >= slow_ms:
        level, message = logging.WARNING, "request slow"
    else:
        level, message = logging.DEBUG, "request answered"
    if not _log.isEnabledFor(level):
        return
    # What was got may be personal whatever the field: only the field is named.
    extras: dict[str, object] = {"method": request.method, "code": code, "ms": ms}
    if reason:
        extras["reason"] = redacted(reason.partition(": got ")[0], request.personal())
    if request.progress is not None:
        extras["degraded"] = sorted({note.stage for note in request.progress.degraded})
        # A copy, since the stages of a request whose caller has gone still run.
        extras["stage_ms"] = {stage: round(spent, 3) for stage, spent in request.progress.stage_ms.copy().items()}
    if request.slate is not None:
        slate = request.slate
        extras.update(bundle_id=slate.bundle_id, arm=slate.experiment_arm, items=len(slate.items))
    _log.log(level, message, extra=extras)
