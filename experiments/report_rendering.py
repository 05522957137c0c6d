"""From a template and what it shows to one HTML file without scripts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.report_charts import percent
from experiments.run_folder import write_text

TEMPLATES = Path(__file__).resolve().parent / "templates"


def render(template: str, values: Mapping[str, Any], path: Path) -> None:
    """Write a page.

    Args:
        template: name of a file in experiments/templates.
        values: all that it shows; a name that it needs and that is missing is an error.
        path: HTML file to write.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["percent"] = percent
    write_text(path, environment.get_template(template).render(values))


def shown(folder: Path) -> Path:
    """A folder as commands name it: relative to the working folder where it lies below."""
    here = folder.resolve()
    return here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else folder
