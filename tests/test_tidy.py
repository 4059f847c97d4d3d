"""House rules that a machine can see. Each failure names the place, what was got and what is allowed."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("features", "streaming", "batch", "models", "serving", "infra", "dags")
GENERATED = {"serving/ranking_pb2.py", "serving/ranking_pb2_grpc.py"}

MAY_IMPORT: dict[str, set[str]] = {
    "features": {"features"},
    "streaming": {"features", "streaming"},
    "batch": {"features", "batch"},
    "models": {"features", "models"},
    "serving": {"features", "models", "serving"},
    "dags": {"features", "infra.airflow", "infra.airflow_gate"},
    "infra": set(ROOMS),
}
"""Which of the project's rooms a room may import."""

NEVER_IMPORT: dict[str, set[str]] = {
    "features": {"pyspark", "pyflink", "torch", "airflow", "mlflow", "grpc"},
    "streaming": {"pyspark", "torch", "airflow", "mlflow", "grpc"},
    "batch": {"pyflink", "torch", "airflow", "mlflow", "grpc"},
    "models": {"pyspark", "pyflink", "airflow", "grpc", "confluent_kafka"},
    "serving": {"pyspark", "pyflink", "torch", "airflow", "mlflow"},
    "dags": {"pyspark", "pyflink", "torch", "mlflow", "feast", "pandas", "numpy", "grpc"},
    "infra": {"pyspark", "pyflink", "torch"},
}
"""Which libraries a room never imports."""

STDLIB_ONLY = (
    *("names", "events", "contract_versions", "items", "slates", "specs", "tiles", "interest", "daily", "ledger"),
    "packed",
    "reference",
)
"""Files of `features/` that every environment reads."""

MAX_FUNCTION_LINES = 70
MAX_MODULE_LINES = 500
WALL_CLOCK = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("datetime", "today")}
WALL_CLOCK_FILES = {"features/clock.py"}
"""Where the wall clock is read besides entry points (a `main` function) and `infra/`."""
MARKERS = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")


def _modules() -> list[Path]:
    found = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    return [path for path in found if path.relative_to(ROOT).as_posix() not in GENERATED]


MODULES = _modules()


@pytest.fixture(params=MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def module(request: pytest.FixtureRequest) -> Path:
    return request.param


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def _within(name: str, allowed: set[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in allowed)


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_the_rooms_are_found() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(ROOMS)


def test_imports_stay_within_the_rooms_rules(module: Path) -> None:
    room = module.relative_to(ROOT).parts[0]
    for line, name in _imports(ast.parse(module.read_text())):
        top = name.split(".")[0]
        if top in ROOMS:
            assert _within(name, MAY_IMPORT[room]), (
                f"{module}:{line} imports {name}; {room}/ may import {sorted(MAY_IMPORT[room])}"
            )
        assert top not in NEVER_IMPORT[room], f"{module}:{line} imports {name}; {room}/ never imports {top}"


@pytest.mark.parametrize("name", STDLIB_ONLY)
def test_the_contract_needs_the_standard_library_only(name: str) -> None:
    path = ROOT / "features" / f"{name}.py"
    for line, imported in _imports(ast.parse(path.read_text())):
        top = imported.split(".")[0]
        assert top in sys.stdlib_module_names or top == "features", f"{path}:{line} imports {imported}"


def test_lengths(module: Path) -> None:
    text = module.read_text()
    lines = text.count("\n")
    assert lines <= MAX_MODULE_LINES, f"{module} has {lines} lines; allowed {MAX_MODULE_LINES}: split it by noun"
    for function in _functions(ast.parse(text)):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        where = f"{module}:{function.lineno} {function.name}"
        assert length <= MAX_FUNCTION_LINES, f"{where} has {length} lines; allowed {MAX_FUNCTION_LINES}"


def test_the_environment_is_read_in_settings_only(module: Path) -> None:
    if module == ROOT / "infra" / "settings.py":
        return
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv"):
            pytest.fail(f"{module}:{node.lineno} reads the environment; only infra/settings.py may")


def test_the_wall_clock_is_read_in_entry_points_only(module: Path) -> None:
    place = module.relative_to(ROOT)
    if place.parts[0] == "infra" or place.as_posix() in WALL_CLOCK_FILES:
        return
    tree = ast.parse(module.read_text())
    mains = [(f.lineno, f.end_lineno or f.lineno) for f in _functions(tree) if f.name == "main"]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner = node.func.value
        name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
        if (name, node.func.attr) in WALL_CLOCK and not any(low <= node.lineno <= high for low, high in mains):
            pytest.fail(f"{module}:{node.lineno} reads the wall clock; take the instant or a clock as an argument")


def test_no_leftovers(module: Path) -> None:
    text = module.read_text()
    for number, line in enumerate(text.splitlines(), start=1):
        assert not MARKERS.search(line), f"{module}:{number} has a leftover marker: {line.strip()}"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
            pytest.fail(f"{module}:{node.lineno} prints; use logging, or the command's console")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            pytest.fail(f"{module}:{node.lineno} has a bare except; name the errors")


def test_no_registry_host_and_no_machine_path_in_committed_files() -> None:
    """Packages are named, never the hosts that serve them; paths are relative to the checkout."""
    hosts = re.compile(r"https?://[\w.-]*(pypi|pythonhosted|maven\.org|npmjs|debian)[\w.-]*")
    paths = re.compile(r"(?<![\w.])/(work|root|home/[a-z]+)/")
    suffixes = {".py", ".toml", ".txt", ".xml", ".md", ".sh", ".json", ".yaml", ".proto"}
    skipped = {".venv", ".jars", ".data", "var", ".git", "build"}
    files = [p for p in ROOT.iterdir() if p.is_file() and p.suffix in suffixes]
    files += [p for top in ROOT.iterdir() if top.is_dir() and top.name not in skipped for p in top.rglob("*")]
    for path in (p for p in files if p.is_file() and p.suffix in suffixes and p != Path(__file__)):
        text = path.read_text()
        for pattern in (hosts, paths):
            match = pattern.search(text)
            assert match is None, f"{path} holds {match.group(0) if match else ''!r}"
