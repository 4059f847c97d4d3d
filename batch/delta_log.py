"""Delta's log, as far as it quotes data: the least and greatest values of files, and the predicates of deletes.

Both are optional in the protocol (https://github.com/delta-io/delta/blob/master/PROTOCOL.md), so a commit stays valid
without them, and every version keeps its number, which streams that read the table count on.
"""

import json
from pathlib import Path
from typing import Any

from deltalake import DeltaTable

from batch.user_traces import texts, whole_id


def log_files(table: Path) -> list[Path]:
    """Every file of the table's log, in the folders that Spark makes in it, too."""
    return sorted(path for path in (table / "_delta_log").rglob("*") if path.is_file())


def redact_log(table: Path, user_id: str) -> list[str]:
    """Takes the user's id out of the table's log; names the files that were changed or removed.

    Statistics go of files whose commit quotes the id; they only serve to skip files. Checkpoints that quote it make
    way for a new one. Checksums of both go with them: they are optional, too.
    """
    log, found = table / "_delta_log", whole_id(user_id).search
    quoting = [file for file in log_files(table) if any(found(text) for text in texts(file))]
    if not quoting:
        return []
    commits = [file for file in quoting if file.suffix == ".json"]
    for commit in commits:
        _replace(commit, "".join(_redacted(line, user_id) for line in commit.read_text().splitlines(keepends=True)))
    stale = [file for file in quoting if file.suffix in (".parquet", ".crc")]
    if any(file.suffix == ".parquet" for file in stale):
        DeltaTable(str(table)).create_checkpoint()
        newest = max(log.glob("*.checkpoint*.parquet"), key=lambda file: file.name)
        stale = [file for file in stale if file != newest]
    for file in stale:
        _remove(file)
    return [file.name for file in quoting]


def _redacted(line: str, user_id: str) -> str:
    if whole_id(user_id).search(line.encode()) is None:
        return line
    action: dict[str, Any] = json.loads(line)
    for name in ("add", "remove"):
        action.get(name, {}).pop("stats", None)
    action.get("commitInfo", {}).pop("operationParameters", None)
    return json.dumps(action, separators=(",", ":")) + "\n"


def _replace(file: Path, text: str) -> None:
    unfinished = file.with_name(f".{file.name}.unfinished")
    unfinished.write_text(text)
    unfinished.replace(file)
    _remove(file.with_name(f".{file.name}.crc"))  # Hadoop's, of the file as it was


def _remove(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.with_name(f".{file.name}.crc").unlink(missing_ok=True)
