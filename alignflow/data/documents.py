"""Rows of JSON documents as pandas writes a table and as the data set viewer of the Hugging Face Hub answers."""

from collections.abc import Mapping, Sequence
from typing import Any

from alignflow.data.forms.turns import is_turn

CUT_CELLS = "cells cut off by the data set viewer"


def table_of(document: Any) -> list[Any] | None:
    """Return the rows of a table that is written by columns, by row names, or with its header apart; else None.

    These are pandas' ``to_json`` with ``orient`` columns, index and split, and ``to_dict("list")``.
    """
    if not isinstance(document, Mapping) or not document:
        return None
    names, rows = document.get("columns"), document.get("data")
    if isinstance(names, list) and isinstance(rows, list) and all(isinstance(row, list) for row in rows):
        return [dict(zip(map(str, names), row, strict=False)) for row in rows]
    parts = list(document.values())
    if all(isinstance(part, Mapping) for part in parts):
        return _of_objects(document)
    alike = len(parts) > 1 and all(isinstance(part, list) and len(part) == len(parts[0]) for part in parts)
    if alike and not any(is_turn(one) for part in parts for one in part):
        return [dict(zip(document, row, strict=True)) for row in zip(*parts, strict=True)]
    return None


def _of_objects(document: Mapping[str, Mapping[str, Any]]) -> list[Any] | None:
    if document.keys() and all(key.isdigit() for key in document):
        return list(document.values())
    inner = [list(part) for part in document.values()]
    if all(keys == inner[0] for keys in inner) and inner[0] and all(key.isdigit() for key in inner[0]):
        return [{name: part[key] for name, part in document.items()} for key in inner[0]]
    return None


def row_of(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return a record without the viewer's wrapper; None if the viewer cut off some of its cells."""
    if not isinstance(content.get("row"), dict) or not content.keys() <= {"row_idx", "row", "truncated_cells"}:
        return content
    cut: Sequence[str] | None = content.get("truncated_cells")
    row: Mapping[str, Any] = content["row"]
    return None if cut else row
