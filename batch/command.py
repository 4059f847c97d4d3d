"""What the jobs' command lines share: topic flags, the report, the sentence on failure."""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from features import specs
from features.names import Topics


def add_topic_flags(parser: argparse.ArgumentParser) -> None:
    """`--bootstrap-servers` and the names of the topics, by default those of this version of the features."""
    names = Topics(version=specs.version())
    parser.add_argument("--bootstrap-servers", required=True)
    parser.add_argument("--events-topic", default=names.events)
    parser.add_argument("--items-topic", default=names.items)
    parser.add_argument("--slates-topic", default=names.slates)
    parser.add_argument("--topics-version", default=names.version)


def topics_of(given: argparse.Namespace) -> Topics:
    """The topics that the flags name."""
    return Topics(
        version=given.topics_version, events=given.events_topic, items=given.items_topic, slates=given.slates_topic
    )


def write_report(report: dict[str, object], path: Path | None) -> None:
    """One JSON line on standard output and, where asked, the same in a file, replaced at once."""
    sys.stdout.write(json.dumps(report, sort_keys=True) + "\n")
    if path is not None:
        write_json(report, path)


def write_json(record: Mapping[str, object], path: Path) -> None:
    """The record as a line of JSON in the file, replaced at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(json.dumps(record, sort_keys=True) + "\n")
    unfinished.replace(path)


def fail(job: str, error: Exception) -> int:
    """Says what went wrong in one sentence on standard error, and gives the exit code."""
    sentence = " ".join(str(error).split("\n\n")[0].split())
    sys.stderr.write(f"{job}: {sentence}\n")
    return 1
