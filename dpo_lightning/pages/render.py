"""`render`: fills a template of this folder; all values are shown as text."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: Any) -> str:
    """Return the HTML of a template, such as `comparison.html.j2`.

    Strings are escaped, whatever markup they hold. A page runs no script and requests nothing: its content security
    policy (W3C CSP, in `base.html.j2`) forbids both, also for markup that a template marks as safe.

    Args:
        template: the name of a file in this folder, which extends `base.html.j2`.
        **values: what the template shows. One that it names and that is missing is an error.

    Returns:
        The page, which UTF-8 can encode: unpaired surrogates are replaced by `?`.

    Raises:
        jinja2.TemplateError: the template is missing or faulty, or a value is.
    """
    page = load_templates().get_template(template).render(**values)
    return page.encode("utf-8", "replace").decode("utf-8")


@cache
def load_templates() -> Environment:
    """Return the environment of the templates, with the filters `number` and `interval`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": format_number, "interval": format_interval}
    return environment


def format_number(value: float | None) -> str:
    """Format a figure with at most four digits, such as `0.7125`, `12` or `1.2e-05`; `–` for None."""
    return "–" if value is None else f"{value:.4g}"


def format_interval(value: Any) -> str:
    """Format an estimate with its bounds, such as `0.7 [0.61, 0.78]`, or alone where it has none.

    Args:
        value: an `Interval`, a dictionary with its keys, or None.
    """
    if value is None:
        return format_number(None)
    parts = value if isinstance(value, dict) else value._asdict()
    estimate, low, high = (parts[name] for name in ("estimate", "low", "high"))
    if low is None or high is None:
        return format_number(estimate)
    return f"{format_number(estimate)} [{format_number(low)}, {format_number(high)}]"
