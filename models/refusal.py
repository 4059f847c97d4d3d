"""Bad input told in one sentence: what every command of this room does with a `RefusalError`."""

import logging
import sys
from collections.abc import Callable


class RefusalError(ValueError):
    """Input that a command cannot work with. The message says what was got, what is allowed and what to do."""


def run(main: Callable[[], None]) -> None:
    """Runs a command's main: a `RefusalError` becomes one sentence on stderr and exit status 1."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s")
    try:
        main()
    except RefusalError as refusal:
        sys.stderr.write(f"error: {refusal}\n")
        raise SystemExit(1) from None
