"""Rows of YAML text, a list of mappings or one document for each row, each with the line where it begins."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from dpo_lightning.data.examples import Origin
from dpo_lightning.data.readers.bad_rows import BadRows, RowError
from dpo_lightning.data.readers.json_objects import find_rows
from dpo_lightning.data.readers.source import Source
from dpo_lightning.data.readers.text_cleaning import excerpt_name

SCALARS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float"))
"""Types of plain scalars that are converted; any other scalar, such as a date, is read as its text."""

MAX_DEPTH = 200
"""Nested lists and mappings; more are refused before Python's limit of recursion is reached."""


def parse_yaml_rows(text: str, source: Source, bad: BadRows) -> Iterator[tuple[int, Any]]:
    """Parse YAML into a line number and a value for each row.

    `yes`, `no`, `on` and `off` without quotes are booleans, as in YAML 1.1. Tags of Python objects are never resolved.

    Args:
        text: the file's content.
        source: its name; receives a note if the rows are in a mapping.
        bad: receives an error for each row that cannot be parsed.
    """
    import yaml

    try:
        documents = [node for node in yaml.compose_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)) if node]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = RowError(f"not YAML ({error.problem or error.context})", fix="correct the line, or write JSON lines")
        bad.refuse(Origin(source.name, mark.line + 1 if mark else 1), problem)
        return
    except (yaml.YAMLError, RecursionError) as error:
        shown = getattr(error, "reason", "") or "nested too deep"
        bad.refuse(Origin(source.name, 1), RowError(f"not YAML ({shown})", fix="correct the file, or write JSON lines"))
        return
    builder = _Builder(yaml)
    if len(documents) == 1 and isinstance(documents[0], yaml.MappingNode):
        yield from _parse_mapping(documents[0], builder, source, bad)
        return
    alone = len(documents) == 1 and isinstance(documents[0], yaml.SequenceNode)
    yield from _build_rows(documents[0].value if alone else documents, builder, source, bad)


def _parse_mapping(document: Any, builder: _Builder, source: Source, bad: BadRows) -> Iterator[tuple[int, Any]]:
    """Parse one mapping: it contains the rows, or is the only one."""
    line = document.start_mark.line + 1
    try:
        found = find_rows(builder.build(document), source, "")
    except RowError as error:
        bad.refuse(Origin(source.name, line), error)
        return
    if isinstance(found, str):
        nodes = next(value for key, value in document.value if key.value == found)
        yield from _build_rows(nodes.value, _Builder(builder.yaml), source, bad)
        return
    for values in found:
        yield line, values


def _build_rows(nodes: list[Any], builder: _Builder, source: Source, bad: BadRows) -> Iterator[tuple[int, Any]]:
    for node in nodes:
        line = node.start_mark.line + 1
        try:
            value = builder.build(node)
        except RowError as error:
            bad.add(Origin(source.name, line), error)
        else:
            yield line, value


class _Builder:
    """Builds values from YAML nodes; each list and mapping once, so that aliases cannot multiply them."""

    def __init__(self, yaml: Any) -> None:
        self.yaml = yaml
        self._scalars = yaml.constructor.SafeConstructor()
        self._built: set[int] = set()

    def build(self, node: Any, depth: int = 0) -> Any:
        """Build the value of a node.

        Raises:
            RowError: an alias, a repeated key, a number that JSON lacks, or a value that is nested too deep.
        """
        if isinstance(node, self.yaml.ScalarNode):
            return self._build_scalar(node)
        if id(node) in self._built:
            raise RowError("an alias repeats a list or a mapping", fix="write its values out")
        self._built.add(id(node))
        if depth > MAX_DEPTH:
            raise RowError("YAML is nested too deep", fix="flatten the value")
        if isinstance(node, self.yaml.SequenceNode):
            return [self.build(item, depth + 1) for item in node.value]
        values: dict[str, Any] = {}
        for key, item in node.value:
            if not isinstance(key, self.yaml.ScalarNode) or key.tag.endswith(":merge"):
                raise RowError("a key is not text", key.tag, "write each key as text")
            if key.value in values:
                raise RowError(f"duplicate key '{excerpt_name(key.value)}'", fix="write each key once")
            values[key.value] = self.build(item, depth + 1)
        return values

    def _build_scalar(self, node: Any) -> Any:
        if node.tag not in SCALARS:
            return node.value
        try:
            value = self._scalars.construct_object(node)
        except (ValueError, OverflowError, self.yaml.YAMLError):
            raise RowError("not a number", node.value, "write a number, or text in quotes") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise RowError(f"{node.value} is not a finite number", fix="write a number or null, or remove the field")
        return value
