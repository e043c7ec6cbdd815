# SPDX-License-Identifier: Apache-2.0
"""Pages: one file, nothing from outside, light and dark, phone and paper. Text is in templates/;
whatever is put into a page is escaped, unless it is `Markup`."""

from typing import Any

import jinja2

TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader(__package__),
    autoescape=jinja2.select_autoescape(["html"]),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def render(template: str, **values: Any) -> str:
    """A file of templates/, filled in; the same values make the same page."""
    return TEMPLATES.get_template(template).render(values)
