"""The package's modules as text: definitions, imports and the names they use.

Modules are parsed with `ast`; nothing is imported. `Package.resolve` follows a dotted
name to its definition, through imports, re-exports and base classes. `Module.uses`
finds the names in the code that have a definition.
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
    """A class, function, method, field or constant that names in the code refer to.

    Attributes:
        module: the module it is defined in, such as "fbt.attention".
        name: its name inside the module, such as "Attention.forward".
        first, line, last: the lines of its first decorator, its name and its end.
        about: the first line of its docstring, or "".
        headed: whether it has a section of its own on the page.
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
    """A name in the code, and the definition that it refers to.

    Attributes:
        line: its line number.
        start, stop: its columns.
        dotted: the dotted name it refers to.
        imported: whether it is part of an import, which may only re-export it.
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
        text: its content.
    """

    def __init__(self, path: Path, text: str) -> None:
        self.path, self.text = path, text
        self.lines = text.removesuffix("\n").split("\n") if text else []
        self.docname = path.with_suffix("").as_posix()
        self.name = self.docname.replace("/", ".").removesuffix(".__init__")
        self.tree = ast.parse(text if path.suffix == ".py" else "")
        self.definitions: dict[str, Definition] = {}
        # Top-level names, with the dotted names they refer to.
        self.names: dict[str, str] = {}
        self._define(self.tree.body, "")

    def _define(self, body: list[ast.stmt], inside: str) -> None:
        for node in body:
            if isinstance(node, Named):
                name = inside + node.name
                about = (ast.get_docstring(node) or "").partition("\n")[0]
                known = self.definitions.get(name)
                # An `overload` or a property's setter is one definition, where its
                # docstring is.
                if known is None or (about and not known.about):
                    line, last = node.lineno, node.end_lineno or 0
                    decorators = [
                        decorator.lineno for decorator in node.decorator_list
                    ]
                    first = min([line, *decorators]) if known is None else known.first
                    known = Definition(self.name, name, first, line, last, about)
                    self.definitions[name] = known
                # A class documents its constructor's arguments: keep them together.
                known.headed = bool(about) or node.name != "__init__"
                if isinstance(node, ast.ClassDef):
                    self._define(node.body, f"{name}.")
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = (
                    node.targets if isinstance(node, ast.Assign) else [node.target]
                )
                for target in targets:
                    if isinstance(target, ast.Name):
                        line, last = node.lineno, node.end_lineno or 0
                        name = inside + target.id
                        definition = Definition(self.name, name, line, line, last)
                        self.definitions.setdefault(name, definition)
            elif isinstance(node, ast.If | ast.With | ast.Try) and not inside:
                self._define(node.body, inside)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                self.names |= imported(node)
        if not inside:
            names = [name for name in self.definitions if "." not in name]
            self.names |= {name: f"{self.name}.{name}" for name in names}

    @property
    def docstring(self) -> str:
        """The module's docstring, or a C++ file's first comment."""
        if self.path.suffix == ".py":
            return ast.get_docstring(self.tree) or ""
        comment = takewhile(lambda line: line.startswith("//"), self.lines)
        return "\n".join(line.removeprefix("//").strip() for line in comment)

    def at(self, line: int) -> Definition | Module:
        """Return the definition that begins on a line, or else the module."""
        for definition in self.definitions.values():
            if definition.headed and line in (definition.first, definition.line):
                return definition
        return self

    def uses(self, package: Package) -> list[Use]:
        """Return the names in the code that the package defines, by line."""
        visitor = _Uses(self, package)
        visitor.visit(self.tree)
        return sorted(visitor.uses, key=lambda use: (use.line, use.start))


def imported(node: ast.Import | ast.ImportFrom) -> dict[str, str]:
    """Return the names that an import binds, with the dotted names they refer to."""
    if isinstance(node, ast.ImportFrom):
        return {
            alias.asname or alias.name: f"{node.module}.{alias.name}"
            for alias in node.names
        }
    return {alias.asname or alias.name: alias.name for alias in node.names}


class Package:
    """The modules of `fbt`, by their dotted names.

    Args:
        root: the folder that contains the package's folder.
    """

    def __init__(self, root: Path) -> None:
        files = [*root.glob("fbt/**/*.py"), *root.glob("fbt/**/*.cpp")]
        modules = [
            Module(path.relative_to(root), path.read_text(encoding="utf-8"))
            for path in sorted(files)
        ]
        self.modules = {module.name: module for module in modules}

    def of_document(self, docname: str) -> Module | None:
        """Return the module that a page shows."""
        modules = self.modules.values()
        return next((module for module in modules if module.docname == docname), None)

    def users(self, dotted: str) -> list[Module]:
        """Return the modules that use a definition of another, without re-exports."""
        return [self.modules[name] for name in sorted(self._users.get(dotted, ()))]

    @cached_property
    def _users(self) -> dict[str, set[str]]:
        users: dict[str, set[str]] = {}
        for module in self.modules.values():
            for use in module.uses(self):
                definition = self.resolve(use.dotted)
                if (
                    isinstance(definition, Definition)
                    and definition.module != module.name
                    and not use.imported
                ):
                    users.setdefault(definition.dotted, set()).add(module.name)
        return users

    def resolve(self, dotted: str) -> Definition | Module | None:
        """Return what a dotted name refers to, if the package defines it."""
        names = dotted.split(".")
        for n in range(len(names), 0, -1):
            module = self.modules.get(".".join(names[:n]))
            if module is not None:
                return self._member(module, names[n:]) if names[n:] else module
        return None

    def _member(self, module: Module, names: list[str]) -> Definition | Module | None:
        definition = module.definitions.get(".".join(names))
        if definition is not None:
            return definition
        owner = module.names.get(names[0])
        if owner is None:
            return None
        if owner != f"{module.name}.{names[0]}":  # imported from elsewhere
            return self.resolve(".".join([owner, *names[1:]]))
        for base in self.bases(module, names[0]):
            inherited = (
                self.resolve(".".join([base, *names[1:]])) if names[1:] else None
            )
            if inherited is not None:
                return inherited
        return None

    def bases(self, module: Module, name: str) -> list[str]:
        """Return the dotted names of a class's bases."""
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                bases = [ast.unparse(base).split(".") for base in node.bases]
                return [
                    ".".join([module.names.get(first, first), *rest])
                    for first, *rest in bases
                ]
        return []

    def imports(self, module: Module) -> list[Module]:
        """Return the modules that a module imports, also for type checkers only."""
        names = set()
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for dotted in imported(node).values():
                    candidates = [dotted, dotted.rpartition(".")[0]]
                    known = (name for name in candidates if name in self.modules)
                    names |= {next(known, "")}
        return [self.modules[name] for name in sorted(names - {""})]


class _Uses(ast.NodeVisitor):
    """Collect the uses of names.

    A name that a function binds itself is local, so it does not count as a use.
    """

    def __init__(self, module: Module, package: Package) -> None:
        self.module, self.package = module, package
        self.uses: list[Use] = []
        self.bound: list[set[str]] = []
        self.owner = ""  # the enclosing class, as a dotted name

    def _use(
        self, line: int, start: int, text: str, dotted: str, imported: bool = False
    ) -> None:
        definition = self.package.resolve(dotted)
        if definition is None:
            return
        origin = (definition.name, 0)
        if isinstance(definition, Definition):
            origin = (definition.module, definition.line)
        if origin == (self.module.name, line):  # the definition itself
            return
        source = self.module.lines[line - 1]
        start = len(source.encode()[:start].decode())  # ast counts bytes
        if source[start : start + len(text)] == text:
            self.uses.append(Use(line, start, start + len(text), dotted, imported))

    def _dotted(self, node: ast.expr) -> str | None:
        """Return the dotted name that an expression of names and dots refers to."""
        if isinstance(node, ast.Name):
            if node.id in ("self", "cls") and self.owner:
                return self.owner
            bound = any(node.id in names for names in self.bound)
            return None if bound else self.module.names.get(node.id)
        if isinstance(node, ast.Attribute):
            before = self._dotted(node.value)
            return None if before is None else f"{before}.{node.attr}"
        if (
            isinstance(node, ast.Call)
            and ast.unparse(node) == "super()"
            and self.owner
        ):
            name = self.owner.removeprefix(f"{self.module.name}.")
            return next(iter(self.package.bases(self.module, name)), None)
        return None

    def visit_Name(self, node: ast.Name) -> None:
        dotted = self._dotted(node)
        if dotted is not None and dotted != self.owner:
            self._use(node.lineno, node.col_offset, node.id, dotted)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        dotted = self._dotted(node)
        line, stop = node.end_lineno, node.end_col_offset
        if dotted is not None and line is not None and stop is not None:
            self._use(line, stop - len(node.attr.encode()), node.attr, dotted)
        self.visit(node.value)

    def visit_Constant(self, node: ast.Constant) -> None:
        """Count a quoted name as a use: a type imported for type checkers only."""
        name = node.value
        if isinstance(name, str) and name[:1].isupper() and name in self.module.names:
            dotted = self.module.names[name]
            self._use(node.lineno, node.col_offset + 1, name, dotted)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        if node.module is not None:
            last = node.module.rpartition(".")[2]
            start = self.module.lines[node.lineno - 1].index(node.module)
            start += len(node.module) - len(last)
            self._use(node.lineno, start, last, node.module, True)
        for alias in node.names:
            dotted = f"{node.module}.{alias.name}"
            self._use(alias.lineno, alias.col_offset, alias.name, dotted, True)

    def visit_Assign(self, node: ast.Assign) -> None:
        if ast.unparse(node.targets[0]) != "__all__":  # re-exported names
            self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        outer = self.owner
        self.owner = f"{outer or self.module.name}.{node.name}"
        self.generic_visit(node)
        self.owner = outer

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        inside = [inner for inner in ast.walk(node) if inner is not node]
        own = {inner.arg for inner in inside if isinstance(inner, ast.arg)}
        own |= {inner.name for inner in inside if isinstance(inner, Named)}
        names = [inner for inner in inside if isinstance(inner, ast.Name)]
        own |= {name.id for name in names if not isinstance(name.ctx, ast.Load)}
        for decorator in node.decorator_list:
            self.visit(decorator)
        self.bound.append(own)
        for part in (node.args, *node.body):
            self.visit(part)
        if node.returns is not None:
            self.visit(node.returns)
        self.bound.pop()
