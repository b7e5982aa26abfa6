"""Links into the repository, which lead nowhere until it has an address.

While the address in `_config.yml` is the placeholder, pages have no such links: links
to a page's source lead to the page, other links become plain text, and the theme's
buttons are left out. `make repository` brings them back.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from fbt._repository import PLACEHOLDER

BUTTONS = ("use_repository_button", "use_edit_page_button", "use_issues_button")


def has_address(config: Any) -> bool:
    """Return whether the repository's address is set."""
    return f"/{PLACEHOLDER}/" not in config.html_theme_options["repository_url"]


def drop_buttons(app: Sphinx, config: Any) -> None:
    """Leave out the theme's buttons that lead into the repository."""
    if not has_address(config):
        theme = config.html_theme_options
        theme.pop("launch_buttons", None)
        theme.update(dict.fromkeys(BUTTONS, False))


def drop_links(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Replace links into the repository by links to pages, or by their text."""
    if has_address(app.config):
        return
    theme = app.config.html_theme_options
    blob = f"{theme['repository_url']}/blob/{theme['repository_branch']}/"
    for link in list(doctree.findall(nodes.reference)):
        uri = link.get("refuri", "")
        if f"/{PLACEHOLDER}/" not in uri:
            continue
        path, _, anchor = uri.removeprefix(blob).partition("#")
        page = app.env.path2doc(path) if uri.startswith(blob) else None
        if page in app.env.found_docs:
            address = app.builder.get_relative_uri(docname, page)
            link["refuri"] = f"{address}#{anchor}" if anchor else address
            link["internal"] = True
        else:
            link.replace_self(link.children)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    app.connect("config-inited", drop_buttons)
    app.connect("doctree-resolved", drop_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
