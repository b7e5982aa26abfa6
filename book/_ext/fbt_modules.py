"""The package's modules as text: their definitions, imports, and which of each other's names they use.

They are read with `ast`; nothing is imported. `Package.resolve` follows a dotted name to its definition,
through imports, re-exports and base classes; `Module.uses` finds the names in the code that lead to one.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
Named = Function | ast.ClassDef


@dataclass
class Definition:
    """A class, function, method, field or constant: what a name in the code can lead to.

    Attributes:
        module: where it stands, such as "fbt.attention".
        name: its name inside the module, such as "Attention.forward".
        first, line, last: its lines; `first` is its first decorator, `line` where its name stands.
        about: the first line of its docstring, or "".
        headed: whether it begins a section of its page.
    """

    module: str
    name: str
    first: int
    line: int
    last: int
    about: str = ""
    headed: bool = False

    @property
    def dotted(self) -> str:
        """Its full name, which is also its anchor."""
        return f"{self.module}.{self.name}"


@dataclass
class Use:
    """A name in the code, from column `start` to `stop` of a line, and the dotted name it stands for.

    Attributes:
        imported: whether it stands in an import, which may only pass it on.
    """

    line: int
    start: int
    stop: int
    dotted: str
    imported: bool = False


class Module:
    """One file of the package.

    Args:
        path: relative to the repository, such as fbt/attention.py.
        text: what is in it.
    """

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text
        self.lines = text.removesuffix("\n").split("\n") if text else []
        self.docname = path.with_suffix("").as_posix()
        self.name = self.docname.replace("/", ".").removesuffix(".__init__")
        self.tree = ast.parse(text if path.suffix == ".py" else "")
        self.definitions: dict[str, Definition] = {}
        self.names: dict[str, str] = {}  # at the top of the module, with the dotted names they stand for
        self._define(self.tree.body, "")

    def _define(self, body: list[ast.stmt], inside: str) -> None:
        for node in body:
            if isinstance(node, Named):
                name, about = inside + node.name, (ast.get_docstring(node) or "").partition("\n")[0]
                known = self.definitions.get(name)
                # An `overload` or the setter of a property: one definition, where its docstring is.
                if known is None or (about and not known.about):
                    lines = [node.lineno, *(decorator.lineno for decorator in node.decorator_list)]
                    first = min(lines) if known is None else known.first
                    known = Definition(self.name, name, first, node.lineno, node.end_lineno or 0, about)
                    self.definitions[name] = known
                # A class says what its constructor takes, so the two stay together.
                known.headed = bool(about) or node.name != "__init__"
                if isinstance(node, ast.ClassDef):
                    self._define(node.body, f"{name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    if isinstance(target, ast.Name):
                        line, last = node.lineno, node.end_lineno or 0
                        made = Definition(self.name, inside + target.id, line, line, last)
                        self.definitions.setdefault(made.name, made)
            elif isinstance(node, ast.If | ast.With | ast.Try) and not inside:
                self._define(node.body, inside)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                self.names |= imported(node)
        if not inside:
            self.names |= {name: f"{self.name}.{name}" for name in self.definitions if "." not in name}

    @property
    def docstring(self) -> str:
        """What the file says of itself first."""
        if self.path.suffix == ".py":
            return ast.get_docstring(self.tree) or ""
        comment = takewhile(lambda line: line.startswith("//"), self.lines)
        return "\n".join(line.removeprefix("//").strip() for line in comment)

    def at(self, line: int) -> Definition | Module:
        """The definition that begins on a line, or the module."""
        headed = (made for made in self.definitions.values() if made.headed)
        return next((made for made in headed if line in (made.first, made.line)), self)

    def uses(self, package: Package) -> list[Use]:
        """The names in the code that the package defines, in the order of the lines."""
        found = _Uses(self, package)
        found.visit(self.tree)
        return sorted(found.uses, key=lambda use: (use.line, use.start))


def imported(node: ast.Import | ast.ImportFrom) -> dict[str, str]:
    """The names that an import binds, with the dotted names they stand for."""
    if isinstance(node, ast.ImportFrom):
        return {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return {alias.asname or alias.name: alias.name for alias in node.names}


class Package:
    """The modules of `fbt`, by their dotted names.

    Args:
        root: the folder that the package's folder is in.
    """

    def __init__(self, root: Path) -> None:
        files = [*root.glob("fbt/**/*.py"), *root.glob("fbt/**/*.cpp")]
        read = [Module(path.relative_to(root), path.read_text(encoding="utf-8")) for path in sorted(files)]
        self.modules = {module.name: module for module in read}

    def of_document(self, docname: str) -> Module | None:
        """The module whose page this is."""
        return next((module for module in self.modules.values() if module.docname == docname), None)

    def users(self, dotted: str) -> list[Module]:
        """The modules that use a definition of another, those that only pass it on not counted."""
        return [self.modules[name] for name in sorted(self._users.get(dotted, ()))]

    @cached_property
    def _users(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for module in self.modules.values():
            for use in module.uses(self):
                used = self.resolve(use.dotted)
                if isinstance(used, Definition) and used.module != module.name and not use.imported:
                    found.setdefault(used.dotted, set()).add(module.name)
        return found

    def resolve(self, dotted: str) -> Definition | Module | None:
        """What a dotted name stands for, if the package defines it."""
        parts = dotted.split(".")
        for n in range(len(parts), 0, -1):
            module = self.modules.get(".".join(parts[:n]))
            if module is not None:
                return self._member(module, parts[n:]) if parts[n:] else module
        return None

    def _member(self, module: Module, parts: list[str]) -> Definition | Module | None:
        found = module.definitions.get(".".join(parts))
        if found is not None:
            return found
        owner = module.names.get(parts[0])
        if owner is None:
            return None
        if owner != f"{module.name}.{parts[0]}":  # imported from elsewhere
            return self.resolve(".".join([owner, *parts[1:]]))
        for base in self.bases(module, parts[0]):
            inherited = self.resolve(".".join([base, *parts[1:]])) if parts[1:] else None
            if inherited is not None:
                return inherited
        return None

    def bases(self, module: Module, name: str) -> list[str]:
        """The dotted names of a class's bases."""
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                written = [ast.unparse(base).split(".") for base in node.bases]
                return [".".join([module.names.get(first, first), *rest]) for first, *rest in written]
        return []

    def imports(self, module: Module) -> list[Module]:
        """The modules of the package that a module imports as it runs, not for type checkers alone."""
        for_types = {
            inner
            for node in ast.walk(module.tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        found = set()
        for node in set(ast.walk(module.tree)) - for_types:
            if isinstance(node, ast.Import | ast.ImportFrom):
                for dotted in imported(node).values():
                    places = [dotted, dotted.rpartition(".")[0]]
                    found |= {next((place for place in places if place in self.modules), "")}
        return [self.modules[name] for name in sorted(found - {""})]


class _Uses(ast.NodeVisitor):
    """Collects the uses of names; a name that a function binds itself is its own and leads nowhere."""

    def __init__(self, module: Module, package: Package) -> None:
        self.module, self.package = module, package
        self.uses: list[Use] = []
        self.bound: list[set[str]] = []
        self.owner = ""  # the class around, as a dotted name

    def _use(self, line: int, start: int, text: str, dotted: str, imported: bool = False) -> None:
        found = self.package.resolve(dotted)
        itself = isinstance(found, Definition) and (found.module, found.line) == (self.module.name, line)
        if found is None or itself:
            return
        source = self.module.lines[line - 1]
        start = len(source.encode()[:start].decode())  # ast counts bytes
        if source[start : start + len(text)] == text:
            self.uses.append(Use(line, start, start + len(text), dotted, imported))

    def _dotted(self, node: ast.expr) -> str | None:
        """What an expression of names and dots stands for."""
        if isinstance(node, ast.Name):
            if node.id in ("self", "cls") and self.owner:
                return self.owner
            bound = any(node.id in names for names in self.bound)
            return None if bound else self.module.names.get(node.id)
        if isinstance(node, ast.Attribute):
            before = self._dotted(node.value)
            return None if before is None else f"{before}.{node.attr}"
        if isinstance(node, ast.Call) and ast.unparse(node) == "super()" and self.owner:
            name = self.owner.removeprefix(f"{self.module.name}.")
            return next(iter(self.package.bases(self.module, name)), None)
        return None

    def visit_Name(self, node: ast.Name) -> None:
        dotted = self._dotted(node)
        if dotted is not None and dotted != self.owner:
            self._use(node.lineno, node.col_offset, node.id, dotted)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        dotted = self._dotted(node)
        if dotted is not None and node.end_lineno is not None and node.end_col_offset is not None:
            self._use(node.end_lineno, node.end_col_offset - len(node.attr.encode()), node.attr, dotted)
        self.visit(node.value)

    def visit_Constant(self, node: ast.Constant) -> None:
        """A quoted name is a type that is imported for type checkers alone."""
        if isinstance(node.value, str) and node.value[:1].isupper() and node.value in self.module.names:
            self._use(node.lineno, node.col_offset + 1, node.value, self.module.names[node.value])

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module is not None:
            last = node.module.rpartition(".")[2]
            start = self.module.lines[node.lineno - 1].index(node.module) + len(node.module) - len(last)
            self._use(node.lineno, start, last, node.module, True)
        for alias in node.names:
            self._use(alias.lineno, alias.col_offset, alias.name, f"{node.module}.{alias.name}", True)

    def visit_Assign(self, node: ast.Assign) -> None:
        if ast.unparse(node.targets[0]) != "__all__":  # names that are passed on
            self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        around, self.owner = self.owner, f"{self.owner or self.module.name}.{node.name}"
        self.generic_visit(node)
        self.owner = around

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        own = {inner.arg for inner in ast.walk(node) if isinstance(inner, ast.arg)}
        own |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
        own |= {inner.name for inner in ast.walk(node) if isinstance(inner, Named) and inner is not node}
        for decorator in node.decorator_list:
            self.visit(decorator)
        self.bound.append(own)
        for part in (node.args, *node.body, *([node.returns] if node.returns else [])):
            self.visit(part)
        self.bound.pop()
