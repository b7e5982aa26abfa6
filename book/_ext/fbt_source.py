"""The annotated source: every module of `fbt` is a page of the book, its notes beside its code.

A module is a document like any other: `_toc.yml` names the file, and `ModuleParser` reads it. So there is no
second copy of anything, and a page has its place in the contents, in the search and in the order of reading.
The API page and the chapters lead to the definitions, and each definition back to them. In a page, a picture
of who imports whom and a list of all modules::

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
from fbt_rows import Row, code_lines, rows
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

Found = Definition | Module
package = cache(Package)


class definition_links(nodes.General, nodes.Element):  # type: ignore[misc]  # named as docutils names nodes
    """A place for the ways back from a definition; what they are is known once all pages are read."""


class Place:
    """A page of the book, and how definitions of the package are reached from it."""

    def __init__(self, app: Sphinx, docname: str) -> None:
        self.app, self.docname = app, docname
        self.package = package(Path(app.srcdir))

    def address(self, found: Found) -> str:
        """Where a module or a definition is."""
        module = found if isinstance(found, Module) else self.package.modules[found.module]
        page = self.app.builder.get_relative_uri(self.docname, module.docname)
        return page if isinstance(found, Module) else f"{page}#{found.dotted}"

    def links(self, found: list[Found]) -> list[nodes.Node]:
        """Links to modules and definitions by their names, with commas between them."""
        return joined([reference(made.name, self.address(made), code=True) for made in found])


def reference(text: str, address: str, code: bool = False) -> nodes.reference:
    """A link inside the book."""
    shown = nodes.literal("", text) if code else nodes.Text(text)
    return nodes.reference("", "", shown, internal=True, refuri=address)


def joined(links: list[nodes.Node]) -> list[nodes.Node]:
    """Links with commas between them."""
    return [part for link in links for part in (nodes.Text(", "), link)][1:]


def items(described: list[tuple[nodes.Node, list[nodes.Node]]], style: str) -> nodes.definition_list:
    """Terms and what is said of each."""
    made = [
        nodes.definition_list_item("", nodes.term("", "", term), nodes.definition("", *said))
        for term, said in described
    ]
    return nodes.definition_list("", *made, classes=[style])


class Page:
    """Makes the nodes of one module's page."""

    def __init__(self, module: Module, place: Place, document: nodes.document) -> None:
        self.module, self.place, self.document = module, place, document
        self.package = place.package
        self.code = code_lines(module, module.uses(self.package), self.link)
        self.owner = ""  # the class whose section is open

    def link(self, dotted: str) -> tuple[str, str]:
        """Address and title for a name in the code."""
        found = self.package.resolve(dotted)
        assert found is not None  # `uses` keeps names that lead somewhere
        about = found.docstring.partition("\n")[0] if isinstance(found, Module) else found.about
        name = found.name if isinstance(found, Module) else found.dotted
        return self.place.address(found), f"{name}: {about}" if about else name

    def of_note(self, name: str) -> str | None:
        """Where a name in a note leads: it may be a full one, the module's, or one of the class around."""
        first, dot, rest = name.partition(".")
        candidates = [f"{self.owner}.{name}"] if self.owner else []
        candidates += [self.module.names.get(first, first) + dot + rest]
        found = [made for made in map(self.package.resolve, candidates) if made is not None]
        return self.place.address(found[0]) if found else None

    def build(self) -> nodes.section:
        """The whole page."""
        first, *others = rows(self.module)
        title = nodes.title("", self.module.path.as_posix())
        page = nodes.section("", title, *self.row(first), ids=[self.module.name], classes=["fbt-module"])
        page[1] += self.neighbours()
        open_sections = [page]
        for row in others:
            if row.heading is not None:
                depth = row.heading.name.count(".") if isinstance(row.heading, Definition) else 0
                del open_sections[depth + 1 :]
                section = self.section(row.heading)
                open_sections[-1] += section
                open_sections.append(section)
            open_sections[-1] += self.row(row)
        return page

    def section(self, heading: Definition | str) -> nodes.section:
        """The section of a definition, or of a part of a C++ file."""
        if isinstance(heading, str):
            return nodes.section("", nodes.title("", heading), ids=[nodes.make_id(heading)])
        outer = heading.dotted.rpartition(".")[0]
        is_class = any(name.startswith(f"{heading.name}.") for name in self.module.definitions)
        self.owner = heading.dotted if is_class else outer if outer != self.module.name else ""
        return nodes.section("", nodes.title("", "", nodes.literal("", heading.name)), ids=[heading.dotted])

    def row(self, row: Row) -> list[nodes.Node]:
        """The notes of a row, then its code."""
        beside = nodes.container(classes=["fbt-note"])
        if isinstance(row.heading, Definition):
            beside += definition_links(dotted=row.heading.dotted)
        for part in row.notes:
            anchors = "".join(f'<span id="L{n}"></span>' for n in range(part.first, part.last + 1))
            beside += nodes.raw("", anchors, format="html")
            beside += note(part.text, self.document, self.of_note)
        lines = "".join(self.code[number] for number in row.code)
        code = f"<pre>{lines}</pre>" if lines else ""
        return [beside, nodes.raw("", f'<div class="fbt-code highlight">{code}</div>', format="html")]

    def neighbours(self) -> list[nodes.Node]:
        """What the module imports, who imports it, and what it defines."""
        known, module = self.package, self.module
        groups: list[tuple[str, list[Found]]] = [
            ("imports", [*known.imports(module)]),
            ("imported by", [m for m in known.modules.values() if module in known.imports(m)]),
            ("defines", [m for m in module.definitions.values() if m.headed and "." not in m.name]),
        ]
        said = [
            (nodes.Text(title), [nodes.paragraph("", "", *self.place.links(found))])
            for title, found in groups
            if found
        ]
        return [items(said, "fbt-neighbours")] if said else []


class ModuleParser(Parser):  # type: ignore[misc]  # docutils has no types
    """Reads a file of the package as a document."""

    supported: ClassVar[tuple[str, ...]] = ("fbt-module",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        """Fill the document with the page of the module that it is."""
        env = document.settings.env
        place = Place(env.app, env.docname)
        module = place.package.of_document(env.docname)
        assert module is not None, f"{env.docname} is no module of fbt"
        env.metadata[env.docname]["html_theme.sidebar_secondary.remove"] = "true"
        document += Page(module, place, document).build()


class SourceMap(SphinxDirective):
    """A picture of who imports whom, and a list of all modules, in the order of the contents."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Make both from the modules themselves."""
        place = Place(self.env.app, self.env.docname)
        contents = self.config.external_site_map[self.env.docname].subtrees
        files = [Path(str(item)) for tree in contents for item in tree.items]
        modules = [m for file in files if (m := place.package.of_document(file.with_suffix("").as_posix()))]
        listed = []
        for module in modules:
            said = prose(module.docstring.partition("\n")[0], self.state.document)
            imports: list[Found] = [*place.package.imports(module)]
            if imports:
                line = [nodes.Text("imports "), *place.links(imports)]
                said.append(nodes.paragraph("", "", *line, classes=["fbt-ways-back"]))
            listed.append((reference(module.path.as_posix(), place.address(module), code=True), said))
        markup = f'<div class="fbt-figure">{drawing(place.package, modules)}</div>'
        caption = nodes.caption("", "", *self.parse_inline("\n".join(self.content))[0])
        return [nodes.figure("", nodes.raw("", markup, format="html"), caption), items(listed, "fbt-modules")]


def lead_to_source(app: Sphinx, doctree: nodes.document) -> None:
    """Lead links into the package, and the entries of the API page, to the annotated definitions."""
    place = Place(app, app.env.docname)
    shown = ways_back(app).setdefault(place.docname, [])
    theme = app.config.html_theme_options
    blob = re.escape(f"{theme['repository_url']}/blob/{theme['repository_branch']}/")
    file = re.compile(rf"{blob}(fbt/[\w/]+)\.(?:py|cpp)(?:#L(\d+)-L\d+)?")
    for link in list(doctree.findall(nodes.reference)):
        match = file.fullmatch(link.get("refuri", ""))
        module = place.package.of_document(match[1]) if match else None
        if match is None or module is None:
            continue
        if match[2]:  # what `fbt.show` displays names its lines
            found = module.at(int(match[2]))
            remote = nodes.reference("", "on GitHub", refuri=link["refuri"])
            link.parent.insert(link.parent.index(link) + 1, [nodes.Text(" · "), remote])
            link += nodes.Text(", annotated")
        else:
            found = module.definitions.get(link.astext(), module)
        link["refuri"], link["internal"] = place.address(found), True
        if isinstance(found, Definition):
            shown.append((found.dotted, *around(link, place.docname)))
    for signature in doctree.findall(addnodes.desc_signature):
        entry = place.package.resolve(f"{signature.get('module')}.{signature.get('fullname')}")
        if isinstance(entry, Definition) and signature["ids"]:
            link = reference("[source]", place.address(entry))
            link["classes"].append("viewcode-link")  # as the theme knows it
            signature += link
            shown.append((entry.dotted, "API", signature["ids"][0]))


def around(link: nodes.Node, docname: str) -> tuple[str, str]:
    """What to call the place of a link, the chapter or else the section, and the section's anchor."""
    section = link.parent
    while not isinstance(section, nodes.section):
        section = section.parent
    chapter = re.match(r"book/0*(\d+)-", docname)
    return f"chapter {chapter[1]}" if chapter else section[0].astext(), section["ids"][0]


def ways_back(app: Sphinx) -> dict[str, list[tuple[str, str, str]]]:
    """By page, the definitions it leads to: dotted name, what to call the place that does, its anchor."""
    kept = vars(app.env).setdefault("fbt_ways_back", {})
    assert isinstance(kept, dict)
    return kept


def lead_back(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Lead each definition of a module to the pages that show it and the modules that use it."""
    place = Place(app, docname)
    for gap in list(doctree.findall(definition_links)):
        pages: dict[str, nodes.Node] = {}
        for page, ways in sorted(ways_back(app).items()):
            for _, text, anchor in (way for way in ways if way[0] == gap["dotted"]):
                address = f"{app.builder.get_relative_uri(docname, page)}#{anchor}"
                pages.setdefault(text, reference(text, address))
        users: list[Found] = [*place.package.users(gap["dotted"])]
        said = (("in ", joined([*pages.values()])), ("used by ", place.links(users)))
        gap.replace_self(
            [nodes.paragraph("", text, *links, classes=["fbt-ways-back"]) for text, links in said if links]
        )


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension with Sphinx."""
    for suffix in (".py", ".cpp"):
        app.add_source_suffix(suffix, "fbt-module")
    app.add_source_parser(ModuleParser)
    app.add_directive("source-map", SourceMap)
    app.connect("doctree-read", lead_to_source)
    app.connect("doctree-resolved", lead_back)
    # `ways_back` gathers in one process what the pages of another would have to send.
    return {"parallel_read_safe": False, "parallel_write_safe": True}
