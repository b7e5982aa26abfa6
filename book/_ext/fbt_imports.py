"""A picture of a package's imports: its modules from the top down, an arc to each one that is imported."""

from __future__ import annotations

import html
from itertools import groupby

from fbt_modules import Module, Package

ROW, NAMES, BULGE = 21, 168, 4.7  # the height of a line, the width of the names, how far an arc bulges a line


def folded(modules: list[Module]) -> dict[str, str]:
    """The names of modules in the picture: those of a folder that stand together are one."""
    folders = ["/".join(module.path.parts[:2]) + "/" for module in modules]
    runs = [folder for folder, _ in groupby(folders)]
    return {
        module.name: folder if module.path.parts[2:] and runs.count(folder) == 1 else module.path.as_posix()
        for module, folder in zip(modules, folders, strict=True)
    }


def drawing(package: Package, modules: list[Module]) -> str:
    """An SVG of who imports whom.

    Args:
        package: the modules and their imports.
        modules: which to draw, from the top to the bottom.
    """
    of = folded(modules)
    names = list(dict.fromkeys(of.values()))
    row = {name: ROW * (index + 0.5) for index, name in enumerate(names)}
    arcs: dict[str, set[str]] = {name: set() for name in names}
    for module in modules:
        arcs[of[module.name]] |= {of[other.name] for other in package.imports(module)} - {of[module.name]}
    groups = []
    for name in names:
        paths = []
        for other in sorted(arcs[name], key=names.index):
            height = row[other] - row[name]
            radii = f"{BULGE * (8 + height / ROW):.1f} {height / 2:g}"
            paths.append(f'<path d="M{NAMES + 8} {row[name]:g}a{radii} 0 0 1 0 {height:g}"/>')
        label = f'<text x="{NAMES}" y="{row[name] + 4:g}">{html.escape(name)}</text>'
        dot = f'<circle cx="{NAMES + 8}" cy="{row[name]:g}" r="2.5"/>'
        groups.append(f"<g>{''.join(paths)}{dot}{label}</g>")
    width = NAMES + 8 + BULGE * (8 + len(names)) + 4
    said = f"{len(names)} modules and folders, one below the other, and an arc down to each that one imports."
    size = f"0 0 {width:.0f} {ROW * len(names)}"
    drawn = f'<svg class="fbt-imports" role="img" aria-label="{said}" viewBox="{size}">'
    return f"{drawn}{''.join(groups)}</svg>"
