"""What the machine and the checkout have and lack, with what to do about it."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil

from infra.bootstrap import ARCHIVES, ENVIRONMENTS, FUNCTIONS, JARS, JAVA_AT_LEAST, Bootstrap, java_version
from infra.processes import port_is_free, port_owner
from infra.settings import LOOPBACK, PREFIX, ROOT, Settings, jars_dir
from infra.stack import Stack

DEMO_MEMORY_GB = 12
"""Budget of the demo at its peak; the idle stack takes about 3."""
LEAST_MEMORY_GB = 4
SQLITE = "sqlite:///"
RUN_DISK_GB = 3
"""What a demo writes, with room to spare."""
SHOWN_VERSIONS: dict[str, tuple[str, ...]] = {
    "app": ("pyspark", "delta-spark", "torch", "mlflow", "feast"),
    "serve": ("feast", "onnxruntime", "grpcio"),
    "stream": ("apache-flink",),
    "airflow": ("apache-airflow",),
}
"""The packages whose versions the report names, by environment."""


class Verdict(StrEnum):
    """Only `MISSING` keeps Millrace from running."""

    OK = "ok"
    WARNING = "warning"
    MISSING = "missing"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report. `advice` is empty where nothing is to be done."""

    what: str
    verdict: Verdict
    found: str
    advice: str = ""


def examine(settings: Settings) -> Iterator[Finding]:
    """Every check in turn; none of them changes anything."""
    yield from _tools()
    yield from _built()
    yield _memory()
    yield _disk()
    yield from _ports(settings)
    yield from _champion(settings)


def _judge(what: str, *, good: bool, found: str, advice: str, otherwise: Verdict = Verdict.MISSING) -> Finding:
    return Finding(what=what, verdict=Verdict.OK if good else otherwise, found=found, advice="" if good else advice)


def _tools() -> Iterator[Finding]:
    python = _version(["python3.11", "--version"])
    yield _judge(
        "Python 3.11",
        good=python is not None,
        found=python or "no python3.11 on PATH",
        advice="install Python 3.11 with its venv module",
    )
    java = java_version()
    yield _judge(
        f"Java {JAVA_AT_LEAST}+",
        good=java is not None and java >= JAVA_AT_LEAST,
        found=f"Java {java}" if java else "no java on PATH that runs",
        advice=f"install a JDK {JAVA_AT_LEAST} or newer and put its bin folder on PATH",
    )
    maven = _version(["mvn", "--version"])
    yield _judge("Maven", good=maven is not None, found=maven or "no mvn on PATH", advice="install Maven 3.8 or newer")


def _version(command: list[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout).strip()
    return plain.splitlines()[0] if done.returncode == 0 and plain else None


def _built() -> Iterator[Finding]:
    stale_venvs, stale_jars, stale_others = Bootstrap(ROOT, lambda _: None).pending()
    for name in ENVIRONMENTS:
        yield _judge(
            f"environment {name}",
            good=name not in stale_venvs,
            found=_installed(name),
            advice="run make setup",
        )
    for name in JARS:
        count = len(list(jars_dir(name).glob("*.jar")))
        yield _judge(f"{name} jars", good=name not in stale_jars, found=f"{count} jars", advice="run make setup")
    for what in (FUNCTIONS, *ARCHIVES):
        said = "not built from these sources" if what in stale_others else "built"
        yield _judge(what, good=what not in stale_others, found=said, advice="run make setup")


def _packages(environment: str) -> Path | None:
    return next((ROOT / ".venv" / environment / "lib").glob("python3*/site-packages"), None)


def _installed(environment: str) -> str:
    packages = _packages(environment)
    if packages is None:
        return "not built"
    names = SHOWN_VERSIONS[environment]
    found = [
        f"{name} {info.stem.split('-')[1]}"
        for name in names
        for info in packages.glob(f"{name.replace('-', '_')}-*.dist-info")
    ]
    return ", ".join(found) or "none of its packages"


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    found = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB available"
    advice = f"the demo may take {DEMO_MEMORY_GB} GB: end other programs"
    verdict = Verdict.MISSING if memory.available < LEAST_MEMORY_GB * 1e9 else Verdict.WARNING
    return _judge(
        "memory", good=memory.available >= DEMO_MEMORY_GB * 1e9, found=found, advice=advice, otherwise=verdict
    )


def _disk() -> Finding:
    free_gb = shutil.disk_usage(ROOT).free / 1e9
    advice = f"a run needs {RUN_DISK_GB} GB: make room on the disk of {ROOT}"
    return _judge("disk", good=free_gb >= RUN_DISK_GB, found=f"{free_gb:.1f} GB free", advice=advice)


def _ports(settings: Settings) -> Iterator[Finding]:
    ours = {port for status in Stack(settings).status() if status.pid for port in status.ports}
    for name, port in settings.ports.items():
        if port in ours:
            yield Finding(what=f"port {port}", verdict=Verdict.OK, found=f"{name}, in use by this stack")
            continue
        free = port_is_free(LOOPBACK, port)
        yield _judge(
            f"port {port}",
            good=free,
            found=f"{name}, free" if free else f"{name}, taken by {port_owner(port)}",
            advice=f"end that program, or set {PREFIX}{name.upper()} or {PREFIX}PORT_BASE to another number",
        )


def _champion(settings: Settings) -> Iterator[Finding]:
    """Whether MLflow's alias follows the champion that is served; nothing to say before the first promotion."""
    from models.bundle import CHAMPION

    registry_file = Path(settings.mlflow_uri.removeprefix(SQLITE))
    if settings.mlflow_uri.startswith(SQLITE) and not registry_file.exists():
        if (settings.bundles_dir / CHAMPION).exists():
            advice = "put its file back, or promote a bundle anew"
            yield Finding(what="registry", verdict=Verdict.WARNING, found=f"no {registry_file}", advice=advice)
        return
    from models.promotion import disagreement
    from models.refusal import RefusalError
    from models.registry import Registry

    try:
        differs = disagreement(Registry(settings.mlflow_uri), settings.bundles_dir)
    except RefusalError as error:
        differs = str(error)
    yield _judge(
        "registry",
        good=differs is None,
        found=differs or "its aliases follow champion.json",
        advice="see millrace models list",
        otherwise=Verdict.WARNING,
    )
