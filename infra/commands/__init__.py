"""Groups of the `millrace` command, one module a group. Each command imports what it needs when it runs."""

import logging
import sys
from typing import TextIO

from rich.console import Console, RenderableType


class CommandError(Exception):
    """One sentence for the user: what was got, what is allowed, what to do."""


PIPE_WIDTH = 200
"""Columns of a table that goes to a file or another program, which should hold whole ids."""


def say(what: RenderableType) -> None:
    """Shows a line or a table on standard output."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    console.print(what, markup=False)


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is when a record comes, so that it outlives a redirection."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def show_progress() -> None:
    """Shows what the models report while they train, on standard error."""
    logger = logging.getLogger("models")
    if not logger.handlers:
        handler = _StandardError()
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
