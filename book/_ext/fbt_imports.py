"""A picture of a package's imports: its modules from the top to the bottom, and an arc to each one that is imported."""

from __future__ import annotations

import html

from fbt_modules import Module, Package

ROW, NAMES, STEP = 21, 168, 8.5  # the height of a line, the width of the names, how far an arc bulges a line


def folded(module: Module) -> str:
    """The name of a module in the picture: a folder of modules is one."""
    return "/".join(module.path.parts[:2]) + ("/" if len(module.path.parts) > 2 else "")


def drawing(package: Package, modules: list[Module]) -> str:
    """An SVG of who imports whom.

    Args:
        package: the modules and their imports.
        modules: which to draw, from the top to the bottom.
    """
    names = list(dict.fromkeys(folded(module) for module in modules))
    row = {name: ROW * (index + 0.5) for index, name in enumerate(names)}
    arcs: dict[str, set[str]] = {name: set() for name in names}
    for module in modules:
        arcs[folded(module)] |= {folded(other) for other in package.imports(module)} - {folded(module)}
    groups = []
    for name in names:
        paths = []
        for other in sorted(arcs[name], key=names.index):
            height = row[other] - row[name]
            bulge = STEP * (8 + abs(height) / ROW) / 1.8
            turn = 1 if height > 0 else 0
            paths.append(
                f'<path d="M{NAMES + 8} {row[name]:g}a{bulge:.1f} {abs(height) / 2:g} 0 0 {turn} 0 {height:g}"/>'
            )
        label = f'<text x="{NAMES}" y="{row[name] + 4:g}">{html.escape(name)}</text>'
        dot = f'<circle cx="{NAMES + 8}" cy="{row[name]:g}" r="2.5"/>'
        groups.append(f"<g>{''.join(paths)}{dot}{label}</g>")
    width = NAMES + 8 + STEP * (8 + len(names)) / 1.8 + 4
    said = f"{len(names)} modules and folders from the top to the bottom, with an arc from each down to each it imports."
    return (
        f'<svg class="fbt-imports" role="img" aria-label="{said}" viewBox="0 0 {width:.0f} {ROW * len(names)}">'
        f"{''.join(groups)}</svg>"
    )
