"""Builds what Millrace runs on: uv, the four environments from hash-locked files, the JVM jars from poms, the stream
job's functions from their Java sources, archives of classes from which JVMs start sooner, and Python's compiled loops.

Run by the system's Python 3.11 with nothing installed: `python3.11 infra/bootstrap.py`. Every part is stamped with
the hash of what it was built from, so a second run only compares stamps.
"""

import argparse
import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENTS = ("serve", "stream", "airflow", "app")
"""Smallest first, so that the largest installation overlaps with nothing but Maven."""
JARS = ("kafka", "flink", "spark")
FUNCTIONS = "functions of the stream job"
LOOPS = "compiled loops"
LOOP_ROOMS, LOOP_MARK = ("features", "models", "serving"), "from features.compiled import"
"""Where they are, and the line that tells."""
ARCHIVES = {"class archive of kafka": ("kafka", "kafka"), "class archive of spark": ("spark", "app")}
"""By what the user reads: the name in `infra/class_archives.py`, and the part that the classes come with."""
ARCHIVE_SOURCES = ("infra/class_archives.py", "batch/class_archive_job.py")
PYTHON = (3, 11)
JAVA_AT_LEAST = 17
DISK_NEEDED_GB = 10
"""Four environments take 8 GB (torch with CUDA is 5 of them), jars 0.2; the rest is for the run."""
ATTEMPTS = 5
FIRST_PAUSE_S = 2.0
"""Pause after the first failed attempt; it doubles each time, so five attempts span half a minute."""
RECIPE = "1"
"""Part of every stamp: raise it when this file builds differently from the same inputs."""


class BootstrapError(Exception):
    """One sentence for the user: what is missing or failed, and what to do."""


class Bootstrap:
    """Builds below one repository root. `say` receives one progress line at a time."""

    def __init__(self, root: Path, say: Callable[[str], None]) -> None:
        self.root = root
        self.venvs = root / ".venv"
        self.jars = root / ".jars"
        self.say = say
        self.stopping = threading.Event()
        """Set on the first failure or Ctrl-C, so that the other thread starts nothing more."""
        self.children: set[subprocess.Popen[bytes]] = set()

    def pending(self) -> tuple[list[str], list[str], list[str]]:
        """The environments, the jar folders and what else is missing or was built from something else."""
        venvs = [name for name in ENVIRONMENTS if not self._is_current(*self._environment_stamp(name))]
        jars = [name for name in JARS if not self._is_current(*self._jars_stamp(name))]
        stale = {"stream", "flink"} & {*venvs, *jars} or not self._is_current(*self._functions_stamp())
        loops = [] if self._is_current(*self._loops_stamp()) else [LOOPS]
        return venvs, jars, [*([FUNCTIONS] if stale else []), *self._pending_archives({*venvs, *jars}), *loops]

    def run(self) -> list[str]:
        """Brings everything up to date and returns the names of the parts that were built."""
        pending_venvs, pending_jars, others = self.pending()
        if not pending_venvs and not pending_jars and not others:
            return []
        check_machine()
        if "app" in pending_venvs:
            check_disk(self.root)
        self.venvs.mkdir(parents=True, exist_ok=True)
        with self._exclusive(), ThreadPoolExecutor(max_workers=2) as pool:
            self._side_by_side(
                pool.submit(self._build_environments, pending_venvs), pool.submit(self._fetch_all, pending_jars)
            )
            if FUNCTIONS in others:
                self._build_functions()
            lanes = [pool.submit(self._archive_classes, what) for what in others if what in ARCHIVES]
            self._side_by_side(*lanes, *([pool.submit(self._compile_loops)] if LOOPS in others else []))
        return [*pending_venvs, *(f"{name} jars" for name in pending_jars), *others]

    def _side_by_side(self, *lanes: Future[None]) -> None:
        """Waits for all; the first failure and Ctrl-C stop the others."""
        try:
            while not all(lane.done() for lane in lanes):
                time.sleep(0.05)
                if any(lane.done() and lane.exception() for lane in lanes):
                    self._stop_children()
        except KeyboardInterrupt:
            self._stop_children()
            raise
        errors = [error for lane in lanes if (error := lane.exception())]
        if errors:
            raise next((error for error in errors if not isinstance(error, _StoppedError)), errors[0])

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One bootstrap of a checkout at a time; a second one waits and then finds the work done."""
        with (self.venvs / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.say("waiting for another set-up of this checkout")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _stop_children(self) -> None:
        self.stopping.set()
        for child in list(self.children):
            child.terminate()

    # Environments.

    def _environment_stamp(self, name: str) -> tuple[Path, str]:
        project = tomllib.loads((self.root / "pyproject.toml").read_text())
        installed = repr((project["project"], project["tool"]["setuptools"]))
        lock = (self.root / "infra" / "requirements" / f"{name}.txt").read_text()
        return self.venvs / name / ".millrace-stamp", _hash(RECIPE, sys.version, str(self.root), installed, lock)

    def _build_environments(self, names: list[str]) -> None:
        if names:
            self._install_uv()
        for name in names:
            if not self._is_current(*self._environment_stamp(name)):
                self._build_environment(name)

    def _install_uv(self) -> None:
        lock = self.root / "infra" / "requirements" / "uv.txt"
        stamp, wanted = self.venvs / "uv" / ".millrace-stamp", _hash(RECIPE, sys.version, lock.read_text())
        if self._is_current(stamp, wanted):
            return
        with self._timed("uv"):
            home = self.venvs / "uv"
            made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], capture_output=True, text=True)
            if made.returncode:
                last = _last_line(made.stdout + made.stderr)
                raise BootstrapError(
                    f"{sys.executable} -m venv failed ({last}); install the venv module of Python 3.11 "
                    "(on Debian: apt-get install python3.11-venv) and run make setup again."
                )
            self._retry("pip", [str(home / "bin" / "pip"), "install", "-q", "--require-hashes", "-r", str(lock)])
            stamp.write_text(wanted)

    def _build_environment(self, name: str) -> None:
        home = self.venvs / name
        uv, python = str(self.venvs / "uv" / "bin" / "uv"), str(home / "bin" / "python")
        stamp, wanted = self._environment_stamp(name)
        with self._timed(f"environment {name}"):
            stamp.unlink(missing_ok=True)
            if not _runs(python):
                self._retry(name, [uv, "venv", "-q", "--clear", "--python", sys.executable, str(home)])
            lock = str(self.root / "infra" / "requirements" / f"{name}.txt")
            self._retry(name, [uv, "pip", "sync", "-q", "--require-hashes", "--python", python, lock])
            # Setuptools is in every lock, so nothing is downloaded to build the project itself.
            editable = ["--no-deps", "--no-build-isolation", "-e", str(self.root)]
            self._retry(name, [uv, "pip", "install", "-q", "--python", python, *editable])
            stamp.write_text(wanted)

    # Jars.

    def _jars_stamp(self, name: str) -> tuple[Path, str]:
        return self.jars / name / ".millrace-stamp", _hash(RECIPE, self._pom(name).read_text())

    def _pom(self, name: str) -> Path:
        return self.root / "infra" / "poms" / name / "pom.xml"

    def _fetch_all(self, names: list[str]) -> None:
        for name in names:
            if not self._is_current(*self._jars_stamp(name)):
                self._fetch_jars(name)

    def _fetch_jars(self, name: str) -> None:
        target, fresh = self.jars / name, self.jars / f".{name}.new"
        with self._timed(f"{name} jars"):
            shutil.rmtree(fresh, ignore_errors=True)
            copy = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={fresh}"]
            # -U: without it Maven remembers a failed download and does not try again.
            self._retry(f"{name} jars", ["mvn", "-q", "-B", "-U", "-f", str(self._pom(name)), *copy])
            if not list(fresh.glob("*.jar")):
                raise BootstrapError(f"Maven copied no jar for {self._pom(name)}; look at its dependencies.")
            (fresh / ".millrace-stamp").write_text(self._jars_stamp(name)[1])
            shutil.rmtree(target, ignore_errors=True)
            fresh.rename(target)

    # The stream job's functions: Java, compiled against the very jars that they run with.

    def _functions_stamp(self) -> tuple[Path, str]:
        sources = [path.read_text() for path in self._functions_sources()]
        lock = (self.root / "infra" / "requirements" / "stream.txt").read_text()
        return self.jars / "flink" / ".functions-stamp", _hash(RECIPE, lock, *sources)

    def _functions_sources(self) -> list[Path]:
        return sorted((self.root / "streaming" / "java").rglob("*.java"))

    def _build_functions(self) -> None:
        stamp, wanted = self._functions_stamp()
        if self._is_current(stamp, wanted):
            return
        classes = self.jars / ".functions"
        shutil.rmtree(classes, ignore_errors=True)
        lib = next((self.venvs / "stream").glob("lib/python*/site-packages/pyflink/lib"))
        # -parameters: Flink knows arguments and state by the names of parameters.
        compile_all = ["javac", "--release", "17", "-parameters", "-cp", f"{lib}/*", "-d", str(classes)]
        pack = ["jar", "--create", "--file", str(stamp.parent / "millrace-functions.jar"), "-C", str(classes), "."]
        with self._timed(FUNCTIONS):
            stamp.unlink(missing_ok=True)
            for command in ([*compile_all, *map(str, self._functions_sources())], pack):
                code, output = self._call(command)
                if code:
                    raise BootstrapError(f"{command[0]} failed on streaming/java: {output.strip()}")
            stamp.write_text(wanted)
        shutil.rmtree(classes, ignore_errors=True)

    # Loops that numba compiles when their modules are imported, so that no service has to when it starts.

    def _loops_stamp(self) -> tuple[Path, str]:
        lock = (self.root / "infra" / "requirements" / "serve.txt").read_text()
        sources = [path.read_text() for path in self._loops_sources()]
        return self.venvs / "serve" / ".loops-stamp", _hash(RECIPE, str(self.root), lock, *sources)

    def _loops_sources(self) -> list[Path]:
        sources = [path for room in LOOP_ROOMS for path in sorted((self.root / room).rglob("*.py"))]
        return [path for path in sources if LOOP_MARK in path.read_text()]

    def _compile_loops(self) -> None:
        stamp, wanted = self._loops_stamp()
        modules = [".".join(path.relative_to(self.root).with_suffix("").parts) for path in self._loops_sources()]
        with self._timed(LOOPS):
            code, output = self._call(
                [str(self.venvs / "serve" / "bin" / "python"), "-c", f"import {', '.join(modules)}"]
            )
            if self.stopping.is_set():
                raise _StoppedError(f"{LOOPS}: stopped")
            if code:
                raise BootstrapError(f"{LOOPS}: {_last_line(output)}")
            stamp.write_text(wanted)

    # Archives of what the JVMs load, which is of these jars at this place.

    def _archive_stamp(self, what: str) -> tuple[Path, str]:
        name, part = ARCHIVES[what]
        sources = [(self.root / each).read_text() for each in ARCHIVE_SOURCES]
        _, classes = self._environment_stamp(part) if part in ENVIRONMENTS else self._jars_stamp(part)
        java = str(Path(shutil.which("java") or "").resolve())
        return self.jars / name / ".classes-stamp", _hash(RECIPE, str(self.root), java, classes, *sources)

    def _pending_archives(self, rebuilt: set[str]) -> list[str]:
        return [
            what
            for what, of in ARCHIVES.items()
            if rebuilt.intersection(of) or not self._is_current(*self._archive_stamp(what))
        ]

    def _archive_classes(self, what: str) -> None:
        stamp, wanted = self._archive_stamp(what)
        with self._timed(what):
            python = str(self.venvs / "app" / "bin" / "python")
            code, output = self._call([python, "-m", "infra.class_archives", ARCHIVES[what][0]])
            if self.stopping.is_set():
                raise _StoppedError(f"{what}: stopped")
            if code:
                raise BootstrapError(_last_line(output))
            if output:
                self.say(f"{what}: {_last_line(output)}")
            stamp.write_text(wanted)

    # All of them.

    def _is_current(self, stamp: Path, wanted: str) -> bool:
        return stamp.is_file() and stamp.read_text() == wanted

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.monotonic()
        self.say(f"{what}: building")
        yield
        self.say(f"{what}: ready after {time.monotonic() - began:.0f} s")

    def _retry(self, what: str, command: list[str]) -> None:
        """Runs a command that downloads, up to `ATTEMPTS` times with a pause that doubles."""
        for attempt in range(1, ATTEMPTS + 1):
            code, output = self._call(command)
            if self.stopping.is_set():
                raise _StoppedError(f"{what}: stopped")
            if code == 0:
                return
            if attempt < ATTEMPTS:
                pause_s = FIRST_PAUSE_S * 2 ** (attempt - 1)
                reason = _last_line(output)
                self.say(f"{what}: attempt {attempt} of {ATTEMPTS} failed ({reason}); trying again in {pause_s:.0f} s")
                self.stopping.wait(pause_s)
        log = self.venvs / "bootstrap.log"
        log.write_text(f"$ {' '.join(command)}\n{output}")
        raise BootstrapError(f"{what}: failed {ATTEMPTS} times ({_last_line(output)}); see {log}, then run make setup.")

    def _call(self, command: list[str]) -> tuple[int, str]:
        # PYTHONPATH would let foreign packages into the builds; uv's 30 s are short for a 0.5 GB wheel.
        cleaned = ["env", "-u", "PYTHONPATH", "UV_HTTP_TIMEOUT=180", *command]
        child = subprocess.Popen(cleaned, cwd=self.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.children.add(child)
        try:
            output, _ = child.communicate()
        finally:
            self.children.discard(child)
        return child.returncode, output.decode(errors="replace")


class _StoppedError(Exception):
    """The other lane failed or the user pressed Ctrl-C."""


def check_machine() -> None:
    """Raises `BootstrapError` naming everything that the machine lacks: Python 3.11, a JDK, Maven."""
    lacking = []
    if sys.version_info[:2] != PYTHON:
        lacking.append(f"Python 3.11 (this is {sys.version_info.major}.{sys.version_info.minor}; run python3.11)")
    java = java_version()
    if java is None:
        lacking.append(f"Java {JAVA_AT_LEAST} or newer (no java on PATH answers; install a JDK)")
    elif java < JAVA_AT_LEAST:
        lacking.append(f"Java {JAVA_AT_LEAST} or newer (java on PATH is {java})")
    if shutil.which("javac") is None:
        lacking.append("a JDK (java is there and javac is not; install the JDK, not only the runtime)")
    if shutil.which("mvn") is None:
        lacking.append("Maven 3.8 or newer (no mvn on PATH)")
    if lacking:
        raise BootstrapError(f"this machine lacks {'; '.join(lacking)}. Install it and run make setup again.")


def check_disk(root: Path) -> None:
    """Raises `BootstrapError` when the checkout's disk cannot hold the environments."""
    free_gb = shutil.disk_usage(root).free / 1e9
    if free_gb < DISK_NEEDED_GB:
        raise BootstrapError(
            f"{root} has {free_gb:.1f} GB free and the set-up needs {DISK_NEEDED_GB}; make room first."
        )


def java_version() -> int | None:
    """Major version of the java on PATH (8 for 1.8); None when there is none that runs."""
    try:
        done = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', done.stderr + done.stdout)
    return int(found.group(1)) if done.returncode == 0 and found else None


def _runs(python: str) -> bool:
    code = f"import sys; sys.exit(sys.version_info[:2] != {PYTHON})"
    try:
        return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _last_line(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "no output"


def _say(line: str) -> None:
    sys.stdout.write(f"setup: {line}\n")
    sys.stdout.flush()


def main() -> int:
    """Entry point; 0 when all is ready, 1 with one sentence when something is missing, 130 on Ctrl-C."""
    argparse.ArgumentParser(description="Build Millrace's environments and fetch its jars.").parse_args()
    began = time.monotonic()
    try:
        built = Bootstrap(ROOT, _say).run()
    except BootstrapError as error:
        sys.stderr.write(f"setup: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("setup: stopped; run make setup to go on\n")
        return 130
    if built:
        _say(f"{', '.join(built)} built in {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
