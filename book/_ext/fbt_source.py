"""The annotated source: every module of `fbt` is a page of the book, its notes beside its code.

A module is a document like any other: `_toc.yml` names the file, and `ModuleParser` reads it. So there is no second
copy of anything, and a page has its place in the contents, the search and the order of reading. The API page and the
chapters lead to the lines, and each definition back to them. In a page, a table and a picture of all modules::

    ```{source-map}
    ```
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers import Parser
from fbt_imports import drawing
from fbt_modules import Definition, Module, Package
from fbt_notes import note, prose
from fbt_rows import Row, code_lines, rows
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

SUFFIXES = (".py", ".cpp")


class definition_links(nodes.General, nodes.Element):  # noqa: N801  # named like docutils' own nodes
    """A place for the ways back from a definition; what they are is known once all pages are read."""


@cache
def package(root: str) -> Package:
    """The package below a folder, read once."""
    return Package(Path(root))


class Page:
    """Makes the nodes of one module's page."""

    def __init__(self, module: Module, package: Package, document: nodes.document, app: Sphinx) -> None:
        self.module, self.package, self.document, self.app = module, package, document, app
        self.code = code_lines(module, module.uses(package), self.link)
        self.owner = ""  # the class whose section is open

    def address(self, found: Definition | Module) -> str:
        """Where a definition or a module is, seen from this page."""
        return address(self.app, self.module.docname, self.package, found)

    def link(self, dotted: str) -> tuple[str, str]:
        """Address and title for a name in the code."""
        found = self.package.resolve(dotted)
        assert found is not None  # `uses` keeps names that lead somewhere
        about = found.docstring.partition("\n")[0] if isinstance(found, Module) else found.about
        name = found.name if isinstance(found, Module) else found.dotted
        return self.address(found), f"{name}: {about}" if about else name

    def of_note(self, name: str) -> str | None:
        """Where a name in a note leads: it may be a full name, one of the module's or one of the class around."""
        first, dot, rest = name.partition(".")
        candidates = [f"{self.owner}.{name}"] if self.owner else []
        candidates += [self.module.names.get(first, first) + dot + rest]
        found = next(filter(None, map(self.package.resolve, candidates)), None)
        return None if found is None else self.address(found)

    def build(self) -> nodes.section:
        """The whole page."""
        first, *others = rows(self.module)
        title = nodes.title("", self.module.path.as_posix())
        page = nodes.section("", title, *self.row(first), ids=[self.module.name], classes=["fbt-module"])
        page[1] += self.about()
        open_sections = [page]
        for row in others:
            if row.heading is not None:
                name = row.heading if isinstance(row.heading, str) else row.heading.name
                depth = 1 + name.count(".") if isinstance(row.heading, Definition) else 1
                del open_sections[depth:]
                section = self.section(row.heading)
                open_sections[-1] += section
                open_sections.append(section)
            open_sections[-1] += self.row(row)
        return page

    def section(self, heading: Definition | str) -> nodes.section:
        """The section of a definition, or of a part of a C++ file."""
        if isinstance(heading, str):
            return nodes.section("", nodes.title("", heading), ids=[nodes.make_id(heading)])
        parts = heading.name.split(".")
        is_class = any(name.startswith(f"{heading.name}.") for name in self.module.definitions)
        self.owner = heading.dotted if is_class else f"{self.module.name}.{parts[0]}" if parts[1:] else ""
        return nodes.section("", nodes.title("", "", nodes.literal("", heading.name)), ids=[heading.dotted])

    def row(self, row: Row) -> list[nodes.Node]:
        """The notes of a row, then its code."""
        beside = nodes.container(classes=["fbt-note"])
        if isinstance(row.heading, Definition):
            beside += definition_links(dotted=row.heading.dotted)
        for part in row.notes:
            anchors = "".join(f'<span id="L{n}"></span>' for n in range(part.first, part.last + 1))
            beside += nodes.raw("", anchors, format="html")
            beside += note(part.text, self.document, self.of_note) if part.text else []
        lines = "".join(self.code[number] for number in row.code)
        code = f'<div class="fbt-code highlight"><pre>{lines}</pre></div>' if lines else ""
        return [beside, nodes.raw("", code or "<div></div>", format="html")]

    def about(self) -> list[nodes.Node]:
        """What the module imports, who imports it and what it defines."""
        imports = self.package.imports(self.module)
        importers = [m for m in self.package.modules.values() if self.module in self.package.imports(m)]
        defined = [made for made in self.module.definitions.values() if made.headed and "." not in made.name]
        groups: list[tuple[str, list[nodes.Node]]] = [
            ("imports", [self.reference(other, other.name) for other in imports]),
            ("imported by", [self.reference(other, other.name) for other in importers]),
            ("defines", [self.reference(made, made.name) for made in defined]),
        ]
        items = [
            nodes.definition_list_item("", nodes.term("", title), nodes.definition("", nodes.paragraph("", "", *joined(links))))
            for title, links in groups
            if links
        ]
        return [nodes.definition_list("", *items, classes=["fbt-neighbours"])] if items else []

    def reference(self, found: Definition | Module, text: str) -> nodes.reference:
        """A link to a definition or a module."""
        return nodes.reference("", "", nodes.literal("", text), internal=True, refuri=self.address(found))


def joined(links: list[nodes.Node]) -> list[nodes.Node]:
    """Links with commas between them."""
    return [part for link in links for part in (nodes.Text(", "), link)][1:]


def address(app: Sphinx, docname: str, package: Package, found: Definition | Module) -> str:
    """Where a definition or a module is, seen from a page."""
    module = found if isinstance(found, Module) else package.modules[found.module]
    page = app.builder.get_relative_uri(docname, module.docname)
    return page if isinstance(found, Module) else f"{page}#{found.dotted}"


class ModuleParser(Parser):
    """Reads a file of the package as a document."""

    supported: ClassVar[tuple[str, ...]] = ("fbt-module",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Fill the document with the page of the module that it is."""
        env = document.settings.env
        known = package(str(env.srcdir))
        module = known.of_document(env.docname)
        assert module is not None, f"{env.docname} is no module of fbt"
        env.metadata[env.docname]["html_theme.sidebar_secondary.remove"] = "true"
        document += Page(module, known, document, env.app).build()


class SourceMap(SphinxDirective):
    """A list of all modules in the order of the contents, and a picture of who imports whom."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Make both from the modules themselves."""
        app, docname = self.env.app, self.env.docname
        known = package(str(self.env.srcdir))
        listed = [str(item) for tree in app.config.external_site_map[docname].subtrees for item in tree.items]
        found = [known.of_document(str(Path(name).with_suffix(""))) for name in listed]
        modules = [module for module in found if module is not None]
        items = []
        for module in modules:
            page = nodes.reference(
                "", "", nodes.literal("", str(module.path)), internal=True, refuri=address(app, docname, known, module)
            )
            about = prose(module.docstring.partition("\n")[0], self.state.document)
            items.append(nodes.definition_list_item("", nodes.term("", "", page), nodes.definition("", *about)))
        picture = nodes.raw("", f'<div class="fbt-figure">{drawing(known, modules)}</div>', format="html")
        caption = nodes.caption("", "", *self.parse_inline("\n".join(self.content))[0])
        return [nodes.figure("", picture, caption), nodes.definition_list("", *items, classes=["fbt-modules"])]


def lead_to_source(app: Sphinx, doctree: nodes.document) -> None:
    """Lead links into the package, and the entries of the API page, to the annotated lines; note who leads there."""
    env, docname = app.env, app.env.docname
    known = package(str(env.srcdir))
    shown = ways_back(app).setdefault(docname, [])
    options = app.config.html_theme_options
    blob = re.escape(f"{options['repository_url']}/blob/{options['repository_branch']}/")
    file = re.compile(rf"{blob}(fbt/[\w/]+)\.(?:py|cpp)(?:#L(\d+)-L\d+)?")
    for link in list(doctree.findall(nodes.reference)):
        place = file.fullmatch(link.get("refuri", ""))
        module = known.of_document(place[1]) if place else None
        if place is None or module is None:
            continue
        text = link.astext()
        if place[2]:
            found = module.at(int(place[2]))
            remote = nodes.reference("", "on GitHub", refuri=link["refuri"])
            link.parent.insert(link.parent.index(link) + 1, [nodes.Text(" · "), remote])
            link += nodes.Text(", annotated")
        else:
            found = module.definitions.get(text, module)
        link["refuri"], link["internal"] = address(app, docname, known, found), True
        if isinstance(found, Definition):
            shown.append((found.dotted, *around(link, docname)))
    for signature in doctree.findall(addnodes.desc_signature):
        found = known.resolve(f"{signature.get('module')}.{signature.get('fullname')}")
        if isinstance(found, Definition) and signature["ids"]:
            to = address(app, docname, known, found)
            signature += nodes.reference("", "[source]", internal=True, refuri=to, classes=["viewcode-link"])
            shown.append((found.dotted, "API", signature["ids"][0]))


def around(link: nodes.Node, docname: str) -> tuple[str, str]:
    """What to call the place where a link stands, the chapter or else the section, and the section's anchor."""
    section = link.parent
    while not isinstance(section, nodes.section):
        section = section.parent
    chapter = re.match(r"book/0*(\d+)-", docname)
    return f"chapter {chapter[1]}" if chapter else section[0].astext(), section["ids"][0]


def ways_back(app: Sphinx) -> dict[str, list[tuple[str, str, str]]]:
    """By page, the definitions that it leads to: dotted name, what to call the place that does, and its anchor."""
    kept = vars(app.env).setdefault("fbt_ways_back", {})
    assert isinstance(kept, dict)
    return kept


def lead_back(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Fill in the links from each definition of a module to the pages that show it and the modules that use it."""
    known = package(str(app.srcdir))
    for place in list(doctree.findall(definition_links)):
        pages: dict[str, nodes.Node] = {}
        for page in sorted(ways_back(app)):
            for dotted, text, anchor in ways_back(app)[page]:
                if dotted == place["dotted"]:
                    uri = f"{app.builder.get_relative_uri(docname, page)}#{anchor}"
                    pages.setdefault(text, nodes.reference("", text, internal=True, refuri=uri))
        users: list[nodes.Node] = []
        for module in known.users(place["dotted"]):
            uri = address(app, docname, known, module)
            users.append(nodes.reference("", "", nodes.literal("", module.name), internal=True, refuri=uri))
        said = [(text, links) for text, links in (("in ", [*pages.values()]), ("used by ", users)) if links]
        lines = [nodes.paragraph("", text, *joined(links), classes=["fbt-links"]) for text, links in said]
        place.replace_self(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    for suffix in SUFFIXES:
        app.add_source_suffix(suffix, "fbt-module")
    app.add_source_parser(ModuleParser)
    app.add_directive("source-map", SourceMap)
    app.connect("doctree-read", lead_to_source)
    app.connect("doctree-resolved", lead_back)
    # `ways_back` gathers in one process what the pages of another would have to send.
    return {"parallel_read_safe": False, "parallel_write_safe": True}
