"""Structured logs: one JSON object a line, with the request id where there is one. No personal data is logged."""

import json
import logging
from datetime import UTC, datetime

_EXTRAS = ("request_id", "method", "code")


class JsonFormatter(logging.Formatter):
    """Time, level, logger, message, the known extras and the traceback, if any."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields.update({name: getattr(record, name) for name in _EXTRAS if hasattr(record, name)})
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def log_as_json(level: str) -> None:
    """Sends every logger's records to standard error as JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
