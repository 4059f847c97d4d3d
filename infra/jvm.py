"""Flags that start a JVM sooner."""

from infra.settings import jars_dir

QUICK_COMPILER = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m"
"""For what runs for a minute: only the first of Java's two compilers. With the 48 MB of code cache that it is given
otherwise, what Spark and Flink generate fills it, and what comes later is interpreted."""


def shared_classes(name: str) -> str:
    """Maps the classes of `kafka` or `spark` from the archive that `infra.class_archives` has made. Without it, or with
    one of other jars or another Java, the JVM loads them as ever.
    """
    return f"-XX:SharedArchiveFile={jars_dir(name) / 'classes.jsa'}"
