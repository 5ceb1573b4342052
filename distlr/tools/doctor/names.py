"""The meaning of the names of a script, from its imports and single assignments, never from their letters.

A name that is imported or assigned twice, as different things, or that comes as an argument, stands for nothing known.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

__all__ = ["Names"]

_SAME = {"tensorflow.keras": "keras", "tensorflow.python.keras": "keras", "horovod.keras": "horovod.tensorflow.keras"}

_LONGEST = 500  # characters of a name

Value = str | ast.expr | None  # a module or what is imported from one; an expression; unknown


class _Scope:
    """The names of a module, a class or a function."""

    def __init__(self, parent: _Scope | None) -> None:
        self.parent = parent
        self.values: dict[str, list[Value]] = {}
        self.outer: set[str] = set()  # declared `global` or `nonlocal`

    def bind(self, name: str, value: Value) -> None:
        home: _Scope = self
        while name in home.outer and home.parent is not None:
            home = home.parent
        values = home.values.setdefault(name, [])
        if len(values) < 2 and value not in values:  # with two it stands for nothing known
            values.append(value)

    def find(self, name: str) -> list[Value]:
        scope: _Scope | None = self
        while scope is not None:
            if name in scope.values:
                return scope.values[name]
            scope = scope.parent
        return []


class Names(ast.NodeVisitor):
    """Resolves expressions of one module.

    >>> tree = ast.parse("import horovod.tensorflow.keras as h\\nopt = h.DistributedOptimizer(1)\\nopt")
    >>> Names(tree).of(tree.body[-1].value)
    'horovod.tensorflow.keras.DistributedOptimizer()'
    """

    def __init__(self, tree: ast.Module) -> None:
        self._scopes: dict[ast.AST, _Scope] = {}
        self._resolved: dict[ast.AST, str | None] = {}
        self._scope = _Scope(None)
        self.visit(tree)

    def of(self, node: ast.AST) -> str | None:
        """The dotted name of an expression, where `keras` is also `tensorflow.keras`; a call ends with "()"."""
        name = self.spelled(node)
        if name is None:
            return None
        for prefix, same in _SAME.items():
            if name == prefix or name.startswith(f"{prefix}."):
                return same + name[len(prefix) :]
        return name

    def spelled(self, node: ast.AST) -> str | None:
        """The dotted name, as it is imported."""
        return self._resolve(node)

    def value(self, node: ast.expr) -> ast.expr:
        """The expression that a name was assigned, once; the node itself for anything else."""
        seen = set()
        while isinstance(node, ast.Name) and node not in seen:
            seen.add(node)
            values = self._scopes[node].find(node.id) if node in self._scopes else []
            if len(values) != 1 or not isinstance(values[0], ast.expr):
                break
            node = values[0]
        return node

    def _resolve(self, node: ast.AST) -> str | None:
        """Follows names to their assigned expressions; each node is resolved once, however long the script is."""
        trail: dict[ast.AST, str] = {}  # the nodes passed, and what each adds to the name of the next
        name: str | None = None
        while node not in trail:
            if node in self._resolved:
                name = self._resolved[node]
                break
            if isinstance(node, ast.Attribute):
                trail[node], node = f".{node.attr}", node.value
            elif isinstance(node, ast.Call):
                trail[node], node = "()", node.func
            else:
                value = self._known(node)
                trail[node] = ""
                if not isinstance(value, ast.expr):
                    name = value
                    break
                node = value
        for passed, addition in reversed(trail.items()):
            name = None if name is None or len(name) > _LONGEST else name + addition
            self._resolved[passed] = name
        return name

    def _known(self, node: ast.AST) -> Value:
        """The meaning of a name, if it has exactly one."""
        values = self._scopes[node].find(node.id) if isinstance(node, ast.Name) and node in self._scopes else []
        return values[0] if len(values) == 1 else None

    # -- reading the module ------------------------------------------------------------------------------

    def visit_Import(self, node: ast.Import) -> None:
        """`import a.b` is `a`, and `import a.b as c` is `a.b`."""
        for alias in node.names:
            top = alias.name.partition(".")[0]
            self._scope.bind(alias.asname or top, alias.name if alias.asname else top)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        """`from a import b` is `a.b`."""
        for alias in node.names:
            known = node.module is not None and not node.level and alias.name != "*"
            self._scope.bind(alias.asname or alias.name, f"{node.module}.{alias.name}" if known else None)

    def visit_Assign(self, node: ast.Assign) -> None:
        """One name, or several from as many expressions."""
        self.visit(node.value)
        for target in node.targets:
            for part, value in _pairs(target, node.value):
                self._assign(part, value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """Like an assignment, if it has a value."""
        if node.value is not None:
            self.visit(node.value)
            self._assign(node.target, node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        """`x *= 2` does not change the meaning of `x`."""
        self.visit(node.value)
        self._scopes.update({part: self._scope for part in ast.walk(node.target) if isinstance(part, ast.Name)})

    def visit_Name(self, node: ast.Name) -> None:
        """A use, or a binding by a loop, `with` and the like."""
        self._scopes[node] = self._scope
        if isinstance(node.ctx, ast.Store):
            self._scope.bind(node.id, None)

    def visit_Global(self, node: ast.Global | ast.Nonlocal) -> None:
        """Assignments to these names then belong to a scope further out."""
        self._scope.outer.update(node.names)

    visit_Nonlocal = visit_Global

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """A scope of its own."""
        self._inside(node, [*node.bases, *node.decorator_list], node.body, [])

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        """A scope of its own, with arguments."""
        self._inside(node, [*_defaults(node.args), *node.decorator_list], node.body, _arguments(node.args))

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        """Like a function."""
        self._within([node.body], _arguments(node.args))

    def _inside(
        self,
        node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
        before: list[ast.expr],
        body: list[ast.stmt],
        arguments: list[str],
    ) -> None:
        self._scope.bind(node.name, None)
        for expression in before:
            self.visit(expression)
        self._within(body, arguments)

    def _within(self, body: list[ast.stmt] | list[ast.expr], arguments: list[str]) -> None:
        self._scope = _Scope(self._scope)
        for name in arguments:
            self._scope.bind(name, None)
        for part in body:
            self.visit(part)
        assert self._scope.parent is not None
        self._scope = self._scope.parent

    def _assign(self, target: ast.expr, value: ast.expr | None) -> None:
        if not isinstance(target, ast.Name) or value is None:
            self.visit(target)
        elif isinstance(value, ast.Constant) and value.value is None:
            self._scopes[target] = self._scope  # `hvd = None` where an import failed: it stays what it is elsewhere
        else:
            self._scopes[target] = self._scope
            self._scope.bind(target.id, value)


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.expr, ast.expr | None]]:
    """Each target with its value; None if a call or a loop unpacks it."""
    if not isinstance(target, ast.Tuple | ast.List):
        yield target, value
    elif isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts):
        for part, part_value in zip(target.elts, value.elts, strict=True):
            yield from _pairs(part, part_value)
    else:
        yield target, None


def _arguments(arguments: ast.arguments) -> list[str]:
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return [argument.arg for argument in every if argument is not None]


def _defaults(arguments: ast.arguments) -> list[ast.expr]:
    return [default for default in (*arguments.defaults, *arguments.kw_defaults) if default is not None]
