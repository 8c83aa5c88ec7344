"""Write a page from templates: one HTML text that needs no other file."""

from collections.abc import Callable, Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: Path, content: Mapping[str, object], filters: Mapping[str, Callable[..., object]]) -> str:
    """Return the page of a template; others that it includes lie beside it.

    Args:
        template: its file.
        content: what it may name; any other name is an error.
        filters: functions for its ``|``.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,  # whatever a model wrote or the data says is text, never markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(template.name).render(content)
