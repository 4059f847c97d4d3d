"""A slate's lineage as a tree."""

from typing import Any

from rich.tree import Tree

from infra.bundle_views import utc
from infra.lineage import Step


def lineage_view(step: Step) -> Tree:
    """The step with all that it was made from below it."""
    tree = Tree(_title(step))
    _fill(tree, step)
    return tree


def _fill(tree: Tree, step: Step) -> None:
    for name, fact in step.facts.items():
        if name == "offsets":
            for span in fact:
                tree.add(
                    f"Kafka {span['topic']}-{span['partition']}: offsets {span['first']} to {span['last']}, "
                    f"{span['records']} records"
                )
        elif fact not in (None, "", [], {}):
            tree.add(f"{name}: {_said(name, fact)}")
    if step.missing:
        tree.add(f"missing: {step.missing}")
    for source in step.made_from:
        _fill(tree.add(_title(source)), source)


def _title(step: Step) -> str:
    return f"{step.kind} {step.name}"


def _said(name: str, fact: Any) -> str:
    if name.endswith("_ms") and isinstance(fact, int):
        return f"{utc(fact)} UTC ({fact})"
    if isinstance(fact, dict):
        return ", ".join(f"{key} {value}" for key, value in fact.items())
    return "; ".join(map(str, fact)) if isinstance(fact, list) else str(fact)
