"""Read and check files of earlier stages: every error is one message with file and key."""

import json
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field, FiniteFloat, TypeAdapter, ValidationError

Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Checked = TypeVar("Checked", bound=BaseModel)


class InputError(ValueError):
    """A file of an earlier stage is missing, broken or does not fit the others; names the file."""


def text(path: Path, stage: str) -> str:
    """Return the text of a file that a stage makes.

    Raises:
        InputError: It is missing or cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} is missing; `dvc repro {stage}` makes it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None


def record(path: Path, stage: str, kind: type[Checked]) -> Checked:
    """Return the one record of a JSON file.

    Raises:
        InputError: The file is missing or no JSON, or a key is missing or wrong.
    """
    return _parsed(path, stage, TypeAdapter(kind))


def listed(path: Path, stage: str, kind: type[Checked]) -> tuple[Checked, ...]:
    """Return the records of a JSON file that holds a list of them.

    Raises:
        InputError: As in `record`.
    """
    listed: TypeAdapter[tuple[Checked, ...]] = TypeAdapter(tuple[kind, ...])  # type: ignore[valid-type]  # built at run time
    return _parsed(path, stage, listed)


def rows(path: Path, stage: str, kind: type[Checked]) -> tuple[Checked, ...]:
    """Return the records of a JSONL file, one a line.

    Raises:
        InputError: As in `record`; names the line.
    """
    found = []
    # JSON may hold U+2028 and its like unescaped, so only a newline ends a row
    for number, line in enumerate(text(path, stage).split("\n"), start=1):
        if line.strip():
            try:
                found.append(kind.model_validate_json(line))
            except ValidationError as error:
                again = f"; `dvc repro -f {stage}` makes it again"
                raise InputError(f"{path}, line {number}: {_first(error)}{again}") from None
    return tuple(found)


Parsed = TypeVar("Parsed")


def _parsed(path: Path, stage: str, adapter: TypeAdapter[Parsed]) -> Parsed:
    content = text(path, stage)
    try:
        json.loads(content)
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    try:
        return adapter.validate_json(content)
    except ValidationError as error:
        raise InputError(f"{path}: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc'])) or 'row'}: {first['msg']}"
