"""A user's object, named `file.py:name` or `package.module:name`: found without importing anything, or imported.

A plan is checked before any code of the user's runs: that the file is there, is Python and names the object can be read
from its syntax tree. A name that only running the file could show (a star import, a module `__getattr__`) passes.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from ladder.base.errors import UserError


def locate(target: str) -> Path | None:
    """The file that defines `target`; None for a module without a Python source (an extension module).

    Raises UserError where there is no such file or module, or it surely does not define the name.
    """
    where, colon, name = target.rpartition(":")
    if not colon or not where or not name:
        message = f"{target!r} names no object"
        raise UserError(message, hint="write file.py:name or package.module:name")
    path = Path(where) if where.endswith(".py") else _module(where)
    if path is None:
        return None
    if not path.is_file():
        raise UserError(f"there is no file {str(path)!r}", hint="give a path from the working directory, or a full one")
    try:
        tree = ast.parse(path.read_bytes(), str(path))  # bytes: with a BOM or a coding line, as Python reads it
    except (SyntaxError, ValueError) as err:
        line = err.lineno if isinstance(err, SyntaxError) else None
        raise UserError(f"is not Python: {err}", file=path, line=line) from err
    except OSError as err:
        raise UserError(f"cannot be read: {err}", file=path) from err
    names = defined(tree)
    if name not in names and not {"*", "__getattr__"} & names:
        raise UserError(f"{where} defines no {name!r}", hint=f"it defines: {', '.join(sorted(names)) or 'nothing'}")
    return path


def imported(target: str) -> Any:
    """The object that `target` names; its file or module is executed. Raises UserError."""
    path = locate(target)
    where, _, name = target.rpartition(":")
    for directory in (Path.cwd(), *([path.parent] if path is not None and where.endswith(".py") else [])):
        if str(directory.resolve()) not in sys.path:
            sys.path.append(str(directory.resolve()))  # what a file imports may lie beside it
    try:
        module = _executed(path) if path is not None and where.endswith(".py") else importlib.import_module(where)
    except (Exception, SystemExit) as err:
        raise UserError(f"cannot import {target!r}: {type(err).__name__}: {err}") from err
    if name not in vars(module):
        raise UserError(f"{where} has no {name!r}")
    return vars(module)[name]


def _executed(path: Path) -> ModuleType:
    """The module made of a file. It is named after path and contents, so that two files of one name are two modules,
    and a file that was changed is another one."""
    name = "ladder_user_" + hashlib.sha256(str(path.resolve()).encode() + b"\0" + path.read_bytes()).hexdigest()[:16]
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def defined(tree: ast.Module) -> set[str]:
    """Names that a module binds anywhere outside functions and classes; "*" for a star import."""
    names: set[str] = set()
    nodes: list[ast.AST] = list(tree.body)
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        nodes += ast.iter_child_nodes(node)
    return names


def _module(dotted: str) -> Path | None:
    """The source of a module, found by walking down its packages. Raises UserError where there is none."""
    search = [str(Path.cwd()), *sys.path]
    origin: str | None = None
    parts = dotted.split(".")
    for i in range(len(parts)):
        name = ".".join(parts[: i + 1])
        spec = importlib.machinery.PathFinder.find_spec(name, search)
        if spec is None:
            raise UserError(f"there is no module {name!r}", hint="is it installed, or in the working directory?")
        search, origin = list(spec.submodule_search_locations or []), spec.origin
    return Path(origin) if origin and origin.endswith(".py") else None
