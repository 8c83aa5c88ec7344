"""Write a page from templates: one HTML text that needs no other file."""

from collections.abc import Callable, Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: Path, content: Mapping[str, object], filters: Mapping[str, Callable[..., object]]) -> str:
    """Return the page of a template; templates that it includes are in the same folder.

    Args:
        template: the template's file.
        content: the template's variables; any other name is an error.
        filters: the template's filters by name.
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
