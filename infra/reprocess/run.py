"""The rebuild: start the new version, let it catch up, switch readers over, stop and remove the old one.

Every step can be done twice, and what to do next is read from the stack and the store alone, so a rebuild that was
interrupted, killed even, goes on when it is run again. Until the switch readers know nothing of the new version.
"""

import fcntl
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

from features import specs
from features.backends import open_backend
from features.backends.following import RECHECK_S
from features.names import Topics
from infra.kafka import delete_topics
from infra.processes import free_ports
from infra.programs import last_line
from infra.reprocess import ReprocessError, Source
from infra.reprocess.catch_up import CatchUp, StalledError
from infra.reprocess.choice import next_generation, spec_hash_of, version_to_build
from infra.reprocess.day_tiles import DayTileCopy
from infra.reprocess.source import check_source, send_from_lake
from infra.settings import LOOPBACK, Settings
from infra.stack import Progress, Stack
from infra.streams import Stream
from infra.supervisor import log_path
from streaming.flink_checkpoints import CheckpointError, checkpoint_to_restore
from streaming.flink_sql import compile_job

FOLLOW_S = 3 * RECHECK_S
"""After it every reader has looked for the version, and has ended what it was reading."""


@dataclass(frozen=True, kw_only=True)
class _Rebuild:
    """One rebuild: from which stream to which."""

    stack: Stack
    say: Progress
    source: Source
    old: Stream
    new: Stream

    @property
    def settings(self) -> Settings:
        return self.stack.settings

    @property
    def same_definitions(self) -> bool:
        return spec_hash_of(self.old.version) == spec_hash_of(self.new.version)

    @property
    def of_other_definitions(self) -> list[Stream]:
        """What feeds readers whose code has other specs; they cannot read the new version."""
        wanted = spec_hash_of(self.new.version)
        return [stream for stream in self.stack.streams() if spec_hash_of(stream.version) != wanted]


def rebuild(stack: Stack, say: Progress, *, source: Source = Source.KAFKA, keep_old: bool = False) -> str:
    """Rebuilds the features, switches readers to them and returns their version.

    Raises `ReprocessError`, `StackError`, `SupervisorError`, `StoreUnavailableError` or `KafkaException`; the version
    that was running then goes on, and so do the programs of the new one as far as they came.
    """
    with _alone(stack):
        stack.start(say, ["kafka"])
        made = _planned(stack, say, source)
        say(f"building {made.new.version} beside {made.old.version}, from the first event in {source}")
        old, new = Topics(version=made.old.version), Topics(version=made.new.version)
        with closing(DayTileCopy(stack.settings.bootstrap_servers, old, new)) as day_tiles:
            try:
                _build(made, day_tiles)
            except KeyboardInterrupt:
                say(f"interrupted: {new.version} is built on by the stack; run millrace reprocess again to finish")
                raise
            _stop_old(made)
            if made.same_definitions:
                say(f"{day_tiles.copy():,} more day tiles copied")  # what batch has sent to the old topics meanwhile
        if not keep_old:
            _retire(stack, say)
    return made.new.version


def retire_unused(stack: Stack, say: Progress) -> None:
    """Keeps the version that is read now alone: other streams are stopped, their rows, checkpoints and topics deleted.

    Raises `ReprocessError` when the stack does not run, and as `rebuild` does.
    """
    if not stack.supervisor.is_running():
        raise ReprocessError(f"the stack in {stack.settings.var_dir} does not run; start it with millrace up.")
    with _alone(stack):
        current = stack.streams()[0]
        with open_backend(stack.settings.online_store_url, current.version) as store:
            named = store.version_for(spec_hash_of(current.version))
        if named != current.version:
            raise ReprocessError(f"the switch to {named} is not finished; run millrace reprocess again.")
        stack.use_streams([current])
        _retire(stack, say)


@contextmanager
def _alone(stack: Stack) -> Iterator[None]:
    path = stack.settings.var_dir / "reprocess.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ReprocessError(f"another millrace reprocess works in {path.parent}; wait until it ends.") from None
        yield


def _planned(stack: Stack, say: Progress, source: Source) -> _Rebuild:
    settings = stack.settings
    check_source(settings, source, Topics(version=specs.version()), _now_ms())
    old = stack.streams()[0]
    with open_backend(settings.online_store_url, specs.version()) as store:
        named = store.version_for(specs.version())

    def refused(version: str) -> bool:
        try:
            _check_checkpoint(settings, version)
        except CheckpointError as error:
            say(f"{version} is passed over: {error}")
            return True
        return False

    version = version_to_build(running=old.version, named=named, refused=refused)
    known = [stream for stream in stack.streams() if stream.version == version]
    new = known[0] if known else _on_free_ports(settings, version)
    return _Rebuild(stack=stack, say=say, source=source, old=old, new=new)


def _check_checkpoint(settings: Settings, version: str) -> None:
    """Raises `CheckpointError` where the stream job would."""
    plan_hash = compile_job(Topics(version=version), settings.bootstrap_servers).plan_hash
    checkpoint_to_restore(settings.flink_checkpoints_dir / version, plan_hash, _now_ms())


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _on_free_ports(settings: Settings, version: str) -> Stream:
    names = ("flink_rest_port", "flink_metrics_port", "writer_metrics_port")
    ports = free_ports(LOOPBACK, len(names), besides=settings.ports.values())
    return Stream(version=version, ports=dict(zip(names, ports, strict=True)))


def _build(made: _Rebuild, day_tiles: DayTileCopy) -> None:
    """Starts the new version, lets it catch up, and switches readers to it."""
    stack, new = made.stack, made.new
    servers, version = made.settings.bootstrap_servers, new.version
    stack.use_streams(_distinct(made.old, *made.of_other_definitions, new))
    stack.start(made.say, [new.named("flink"), new.named("writer")])
    check = _check_of(made)
    if made.same_definitions:
        made.say(f"{day_tiles.copy():,} day tiles copied")
    elif made.source is Source.KAFKA:
        made.say(f"day tiles of {version} are written by the next run of the offline_features DAG")
    topics = Topics(version=version)
    if made.source is Source.LAKE:
        # Once more: what Kafka has removed since is what the new job, which runs by now, may not have read.
        first = check_source(made.settings, made.source, topics, _now_ms())
        send_from_lake(made.settings, topics, first, made.say, check)
    with open_backend(made.settings.online_store_url, version) as store:
        with closing(CatchUp(servers, topics, store, made.say)) as catch_up:
            try:
                catch_up.wait(check)
            except StalledError as error:
                raise ReprocessError(f"{version} does not catch up: {error}; see {made.settings.logs_dir}.") from error
        store.switch(spec_hash_of(version), version)
    made.say(f"readers are switched to {version}")
    time.sleep(FOLLOW_S)


def _distinct(*streams: Stream) -> list[Stream]:
    return list({stream.version: stream for stream in streams}.values())


def _stop_old(made: _Rebuild) -> None:
    """Leaves the new stream alone, and what feeds the service where its code may have other definitions."""
    feeding = made.of_other_definitions if _serves(made.stack) else []
    made.stack.use_streams([made.new, *feeding])
    for stream in feeding:
        made.say(
            f"the service may still read {stream.version}, so that goes on: promote a bundle for "
            f"{made.new.version}, restart the service, then run millrace reprocess --retire"
        )


def _check_of(made: _Rebuild) -> Callable[[], None]:
    """What raises `ReprocessError` when a program of the new version has been given up by supervisord."""
    names = [made.new.named("flink"), made.new.named("writer")]

    def check() -> None:
        infos = made.stack.supervisor.info()
        for name in names:
            state = infos[name].state if name in infos else "gone"
            if state in ("FATAL", "EXITED", "STOPPED", "gone"):
                log = log_path(made.settings.logs_dir, name)
                raise ReprocessError(f"{name} is {state} ({last_line(log)}); see {log}, then run it again.")

    return check


def _serves(stack: Stack) -> bool:
    info = stack.supervisor.info().get("serving")
    return info is not None and info.is_up


def _retire(stack: Stack, say: Progress) -> None:
    """Deletes rows, checkpoints and topics of every version that no stream of the stack works on."""
    settings, used = stack.settings, {stream.version for stream in stack.streams()}
    checkpoints = [path for path in settings.flink_checkpoints_dir.glob("*") if path.name.isalnum()]
    for directory in sorted(path for path in checkpoints if path.name not in used):
        version = directory.name
        with open_backend(settings.online_store_url, version) as store:
            if store.version_for(spec_hash_of(version)) == version:
                # Readers and the broker may still know it: whoever comes back to these definitions starts anew.
                store.switch(spec_hash_of(version), next_generation(version))
            store.drop_tiles()
        delete_topics(settings.bootstrap_servers, Topics(version=version))
        shutil.rmtree(directory)  # last: what is left of a version is found by it
        say(f"rows, checkpoints and topics of {version} are deleted")
