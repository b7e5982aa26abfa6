"""The annotated source: every module of `fbt` is a page, its notes beside its code.

A module is a document like any other: `_toc.yml` lists the file, and `ModuleParser`
parses it. So nothing is written twice, and the page takes its place in the contents,
the search and the reading order. The API page and the chapters link to the
definitions, and each definition links back to them.

A page can show a picture of all imports and a list of all modules::

    ```{source-map}
    The caption of the picture.
    ```
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers import Parser
from fbt_imports import drawing
from fbt_modules import Definition, Module, Package
from fbt_notes import note, prose
from fbt_repository import has_address
from fbt_rows import Row, code_lines, rows
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

Target = Definition | Module
package = cache(Package)


# In lower case, like the nodes of docutils.
class definition_links(nodes.General, nodes.Element):  # type: ignore[misc]
    """A placeholder for the links back from a definition.

    The links are known only once all pages are read.
    """


class Origin:
    """A page of the book, and the addresses of definitions relative to it."""

    def __init__(self, app: Sphinx, docname: str) -> None:
        self.app, self.docname = app, docname
        self.package = package(Path(app.srcdir))

    def address(self, target: Target) -> str:
        """Return the address of a module or a definition."""
        if isinstance(target, Module):
            return self.app.builder.get_relative_uri(self.docname, target.docname)
        return f"{self.address(self.package.modules[target.module])}#{target.dotted}"

    def links(self, targets: list[Target]) -> list[nodes.Node]:
        """Return links to modules and definitions by name, separated by commas."""
        links = [reference(t.name, self.address(t), code=True) for t in targets]
        return comma_separated(links)


def reference(text: str, address: str, code: bool = False) -> nodes.reference:
    """Return a link inside the book."""
    shown = nodes.literal("", text) if code else nodes.Text(text)
    return nodes.reference("", "", shown, internal=True, refuri=address)


def comma_separated(links: list[nodes.Node]) -> list[nodes.Node]:
    """Separate links by commas."""
    return [node for link in links for node in (nodes.Text(", "), link)][1:]


def items(
    described: list[tuple[nodes.Node, list[nodes.Node]]], style: str
) -> nodes.definition_list:
    """Return a definition list of terms and their descriptions."""
    result = [
        nodes.definition_list_item(
            "", nodes.term("", "", term), nodes.definition("", *description)
        )
        for term, description in described
    ]
    return nodes.definition_list("", *result, classes=[style])


class Page:
    """Builds the nodes of one module's page."""

    def __init__(
        self, module: Module, origin: Origin, document: nodes.document
    ) -> None:
        self.module, self.origin, self.document = module, origin, document
        self.package = origin.package
        self.code = code_lines(module, module.uses(self.package), self.link)
        self.owner = ""  # the class whose section is open

    def link(self, dotted: str) -> tuple[str, str]:
        """Return the address and the title for a name in the code."""
        target = self.package.resolve(dotted)
        assert target is not None  # `uses` keeps only names with a definition
        if isinstance(target, Module):
            name, about = target.name, target.docstring.partition("\n")[0]
        else:
            name, about = target.dotted, target.about
        return self.origin.address(target), f"{name}: {about}" if about else name

    def address_in_note(self, name: str) -> str | None:
        """Return the address for a name in a note, or None.

        The name may be a dotted one, one of the module, or one of the enclosing
        class.
        """
        first, dot, rest = name.partition(".")
        candidates = [f"{self.owner}.{name}"] if self.owner else []
        candidates += [self.module.names.get(first, first) + dot + rest]
        for target in map(self.package.resolve, candidates):
            if target is not None:
                return self.origin.address(target)
        return None

    def build(self) -> nodes.section:
        """Return the whole page."""
        first, *others = rows(self.module)
        title = nodes.title("", self.module.path.as_posix())
        about = {"ids": [self.module.name], "classes": ["fbt-module"]}
        page = nodes.section("", title, *self.row(first), **about)
        page[1] += self.neighbours()
        open_sections = [page]
        for row in others:
            if row.heading is not None:
                depth = (
                    row.heading.name.count(".")
                    if isinstance(row.heading, Definition)
                    else 0
                )
                del open_sections[depth + 1 :]
                section = self.section(row.heading)
                open_sections[-1] += section
                open_sections.append(section)
            open_sections[-1] += self.row(row)
        return page

    def section(self, heading: Definition | str) -> nodes.section:
        """Return the section of a definition, or of a part of a C++ file."""
        if isinstance(heading, str):
            title = nodes.title("", heading)
            return nodes.section("", title, ids=[nodes.make_id(heading)])
        outer, inner = heading.dotted.rpartition(".")[0], f"{heading.name}."
        if any(name.startswith(inner) for name in self.module.definitions):
            self.owner = heading.dotted
        else:
            self.owner = outer if outer != self.module.name else ""
        title = nodes.title("", "", nodes.literal("", heading.name))
        return nodes.section("", title, ids=[heading.dotted])

    def row(self, row: Row) -> list[nodes.Node]:
        """Return the notes of a row, then its code."""
        beside = nodes.container(classes=["fbt-note"])
        if isinstance(row.heading, Definition):
            beside += definition_links(dotted=row.heading.dotted)
        for entry in row.notes:
            lines = range(entry.first, entry.last + 1)
            anchors = "".join(f'<span id="L{n}"></span>' for n in lines)
            beside += nodes.raw("", anchors, format="html")
            beside += note(entry.text, self.document, self.address_in_note)
        code = "".join(self.code[number] for number in row.code)
        block = f"<pre>{code}</pre>" if code else ""
        markup = f'<div class="fbt-code highlight">{block}</div>'
        return [beside, nodes.raw("", markup, format="html")]

    def neighbours(self) -> list[nodes.Node]:
        """List what the module imports, what imports it, and what it defines."""
        imports, module = self.package.imports, self.module
        definitions = module.definitions.values()
        groups: list[tuple[str, list[Target]]] = [
            ("imports", [*imports(module)]),
            (
                "imported by",
                [m for m in self.package.modules.values() if module in imports(m)],
            ),
            ("defines", [d for d in definitions if d.headed and "." not in d.name]),
        ]
        entries: list[tuple[nodes.Node, list[nodes.Node]]] = []
        for title, targets in groups:
            if targets:
                links = nodes.paragraph("", "", *self.origin.links(targets))
                entries.append((nodes.Text(title), [links]))
        return [items(entries, "fbt-neighbours")] if entries else []


class ModuleParser(Parser):  # type: ignore[misc]  # docutils has no types
    """Parse a file of the package as a document."""

    supported: ClassVar[tuple[str, ...]] = ("fbt-module",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Fill the document with the page of its module."""
        env = document.settings.env
        origin = Origin(env.app, env.docname)
        module = origin.package.of_document(env.docname)
        assert module is not None, f"{env.docname} is not a module of fbt"
        env.metadata[env.docname]["html_theme.sidebar_secondary.remove"] = "true"
        document += Page(module, origin, document).build()


class SourceMap(SphinxDirective):
    """A picture of all imports, and a list of all modules in reading order."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Build both from the modules themselves."""
        origin = Origin(self.env.app, self.env.docname)
        contents = self.config.external_site_map[self.env.docname].subtrees
        files = [Path(str(item)) for tree in contents for item in tree.items]
        documents = [file.with_suffix("").as_posix() for file in files]
        modules = [*filter(None, map(origin.package.of_document, documents))]
        entries = []
        for module in modules:
            summary = module.docstring.partition("\n")[0]
            description = prose(summary, self.state.document)
            imports: list[Target] = [*origin.package.imports(module)]
            if imports:
                line = [nodes.Text("imports "), *origin.links(imports)]
                links = nodes.paragraph("", "", *line, classes=["fbt-ways-back"])
                description.append(links)
            name, address = module.path.as_posix(), origin.address(module)
            entries.append((reference(name, address, code=True), description))
        markup = f'<div class="fbt-figure">{drawing(origin.package, modules)}</div>'
        text = self.parse_inline("\n".join(self.content))[0]
        drawn = nodes.raw("", markup, format="html")
        figure = nodes.figure("", drawn, nodes.caption("", "", *text))
        return [figure, items(entries, "fbt-modules")]


def link_to_source(app: Sphinx, doctree: nodes.document) -> None:
    """Link pages into the package, and API entries, to the annotated definitions."""
    origin = Origin(app, app.env.docname)
    links = backlinks(app).setdefault(origin.docname, [])
    theme = app.config.html_theme_options
    blob = re.escape(f"{theme['repository_url']}/blob/{theme['repository_branch']}/")
    file = re.compile(rf"{blob}(fbt/[\w/]+)\.(?:py|cpp)(?:#L(\d+)-L\d+)?")
    for link in list(doctree.findall(nodes.reference)):
        match = file.fullmatch(link.get("refuri", ""))
        module = origin.package.of_document(match[1]) if match else None
        if match is None or module is None:
            continue
        if match[2]:  # links of `fbt.show` include line numbers
            target = module.at(int(match[2]))
            if has_address(app.config):
                remote = nodes.reference("", "on GitHub", refuri=link["refuri"])
                after = link.parent.index(link) + 1
                link.parent.insert(after, [nodes.Text(" · "), remote])
            link += nodes.Text(", annotated")
        else:
            target = module.definitions.get(link.astext(), module)
        link["refuri"], link["internal"] = origin.address(target), True
        if isinstance(target, Definition):
            links.append((target.dotted, *location(link, origin.docname)))
    for signature in doctree.findall(addnodes.desc_signature):
        dotted = f"{signature.get('module')}.{signature.get('fullname')}"
        entry = origin.package.resolve(dotted)
        if isinstance(entry, Definition) and signature["ids"]:
            link = reference("[source]", origin.address(entry))
            link["classes"].append("viewcode-link")  # the class that the theme styles
            signature += link
            links.append((entry.dotted, "API", signature["ids"][0]))


def location(link: nodes.Node, docname: str) -> tuple[str, str]:
    """Name the chapter or the section around a link, and give its anchor."""
    section = link.parent
    while not isinstance(section, nodes.section):
        section = section.parent
    chapter = re.match(r"book/0*(\d+)-", docname)
    name = f"chapter {chapter[1]}" if chapter else section[0].astext()
    return name, section["ids"][0]


def backlinks(app: Sphinx) -> dict[str, list[tuple[str, str, str]]]:
    """Return the definitions that each page links to.

    For each link: the dotted name, the name of the linking place, and its anchor.
    """
    links = vars(app.env).setdefault("fbt_ways_back", {})
    assert isinstance(links, dict)
    return links


def link_back(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Link each definition to the pages that show it and the modules that use it."""
    origin = Origin(app, docname)
    for placeholder in list(doctree.findall(definition_links)):
        pages: dict[str, nodes.Node] = {}
        for page, links in sorted(backlinks(app).items()):
            for dotted, text, anchor in links:
                if dotted == placeholder["dotted"]:
                    uri = app.builder.get_relative_uri(docname, page)
                    pages.setdefault(text, reference(text, f"{uri}#{anchor}"))
        users: list[Target] = [*origin.package.users(placeholder["dotted"])]
        groups = (
            ("in ", comma_separated([*pages.values()])),
            ("used by ", origin.links(users)),
        )
        lines = [
            nodes.paragraph("", text, *targets, classes=["fbt-ways-back"])
            for text, targets in groups
            if targets
        ]
        placeholder.replace_self(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    for suffix in (".py", ".cpp"):
        app.add_source_suffix(suffix, "fbt-module")
    app.add_source_parser(ModuleParser)
    app.add_directive("source-map", SourceMap)
    app.connect("doctree-read", link_to_source)
    app.connect("doctree-resolved", link_back)
    # `backlinks` collects in one process; parallel readers would have to send theirs.
    return {"parallel_read_safe": False, "parallel_write_safe": True}
