"""Read and check ``params.yaml``; every error names file and key."""

from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.representer import RoundTripRepresenter

from tasks.params.names import suggest
from tasks.params.sections import Params


class ParamsError(ValueError):
    """A message for the user that names the file, the key and what to do."""


def load(path: Path) -> Params:
    """Read and check ``params.yaml``.

    Raises:
        ParamsError: the file is missing or not YAML, or a key is unknown, missing or out of range; the
            message names file and key.
    """
    return validate(read_tree(path), path)


def _null(to: Any, _: None) -> Any:
    return to.represent_scalar("tag:yaml.org,2002:null", "null")


class _NullInWords(RoundTripRepresenter):
    """Writes None as ``null``, not as an empty value."""

    yaml_representers = RoundTripRepresenter.yaml_representers | {type(None): _null}


def round_trip() -> YAML:
    """Return a YAML reader and writer that keeps comments and order."""
    yaml = YAML()
    yaml.width = 200  # long lines stay whole
    yaml.Representer = _NullInWords
    return yaml


def read_tree(path: Path) -> Any:
    """Return the sections of a file as they are written, unchecked.

    Raises:
        ParamsError: the file is missing, not YAML, or holds no sections.
    """
    try:
        tree = round_trip().load(path.read_text())
    except FileNotFoundError:
        raise ParamsError(f"{path}: not found; run from the project's root folder") from None
    except YAMLError as error:
        raise ParamsError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ParamsError(f"{path}: expected sections such as `dpo:`, found {type(tree).__name__}")
    return tree


def validate(tree: Any, path: Path) -> Params:
    """Check the sections of a file.

    Raises:
        ParamsError: a key is unknown, missing or out of range; one line each, which names file and key.
    """
    try:
        return Params.model_validate(tree, context={"folder": path.parent})
    except ValidationError as error:
        raise ParamsError("\n".join(_explain(e, path) for e in error.errors())) from None


def _explain(error: Any, path: Path) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        parents, leaf = error["loc"][:-1], error["loc"][-1]
        model: Any = Params
        for part in parents:
            if isinstance(part, int):  # index in a list of sections
                model = next(iter(get_args(model)), None)
            else:
                model = model.model_fields[part].annotation if hasattr(model, "model_fields") else None
        known = list(model.model_fields) if hasattr(model, "model_fields") else []
        section = "".join(f"{part}." for part in parents)
        return f"{path}: unknown key {key}{suggest(str(leaf), known, section)}"
    if error["type"] == "missing":
        return f"{path}: missing key {key}; add it"
    said = error["msg"].removeprefix("Value error, ")
    where = f"{path}: {key}" if key else str(path)
    return f"{where}: {said}" + ("" if isinstance(error["input"], dict) else f", got {error['input']!r}")
