"""A picture of a package's imports: modules from the top down, with arcs between.

An import that follows from others is left out: of three modules of which each imports
those below it, the first has no arc to the third. So are private modules such as
`_checks.py`, which nearly all others import.
"""

from __future__ import annotations

import html
import re
from functools import cache
from itertools import groupby

from fbt_modules import Module, Package

ROW, NAMES = 21, 168  # the height of a row, the width of the names
PRIVATE = re.compile(r"_[a-z]")
BULGE = 4.7  # how far an arc bulges per row


def row_labels(modules: list[Module]) -> dict[str, str]:
    """Return the label of each module in the picture.

    Modules of one folder that are listed together share the folder's label.
    """
    folders = ["/".join(module.path.parts[:2]) + "/" for module in modules]
    runs = [folder for folder, _ in groupby(folders)]
    return {
        module.name: folder
        if module.path.parts[2:] and runs.count(folder) == 1
        else module.path.as_posix()
        for module, folder in zip(modules, folders, strict=True)
    }


def direct(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the imports of each module that no path of other imports implies."""

    @cache
    def below(name: str) -> frozenset[str]:
        found = imports[name]
        return frozenset(found).union(*map(below, found))

    return {
        name: {one for one in found if not any(one in below(o) for o in found)}
        for name, found in imports.items()
    }


def drawing(package: Package, modules: list[Module]) -> str:
    """Draw the imports of a package as SVG.

    Args:
        package: the modules and their imports.
        modules: the modules to draw, from the top to the bottom.
    """
    modules = [one for one in modules if not PRIVATE.match(one.path.name)]
    label_of = row_labels(modules)
    names = list(dict.fromkeys(label_of.values()))
    y = {name: ROW * (index + 0.5) for index, name in enumerate(names)}
    arcs: dict[str, set[str]] = {name: set() for name in names}
    for module in modules:
        label = label_of[module.name]
        imported = (label_of.get(one.name, label) for one in package.imports(module))
        arcs[label] |= {*imported} - {label}
    arcs = direct(arcs)
    groups = []
    for name in names:
        paths = []
        for other in sorted(arcs[name], key=names.index):
            height = y[other] - y[name]
            radii = f"{BULGE * (8 + height / ROW):.1f} {height / 2:g}"
            d = f"M{NAMES + 8} {y[name]:g}a{radii} 0 0 1 0 {height:g}"
            paths.append(f'<path d="{d}"/>')
        text = f'<text x="{NAMES}" y="{y[name] + 4:g}">{html.escape(name)}</text>'
        dot = f'<circle cx="{NAMES + 8}" cy="{y[name]:g}" r="2.5"/>'
        groups.append(f"<g>{''.join(paths)}{dot}{text}</g>")
    width = NAMES + 8 + BULGE * (8 + len(names)) + 4
    summary = (
        f"{len(names)} modules and folders, one below the other, "
        "with an arc down to each one that is imported and not implied by other arcs."
    )
    size = f"0 0 {width:.0f} {ROW * len(names)}"
    return (
        f'<svg class="fbt-imports" role="img" aria-label="{summary}" '
        f'viewBox="{size}">{"".join(groups)}</svg>'
    )
