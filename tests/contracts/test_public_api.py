"""What the packages export, and rules that every source file keeps."""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.contracts.tree import PACKAGES, ROOT, package_folders, source_files

MOST_LINES = 450
VAGUE_NAMES = {"utils", "util", "common", "helpers", "helper", "misc", "base"}
UNSAFE_MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
# Running a program is what these are for; both confine their process before they read it.
CONFINED_EXECUTION = {
    "agentic_compression/sandbox/inside/tester.py",
    "agentic_compression/sandbox/inside/worker.py",
}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
DOMAIN = [path for path in package_folders() if path.relative_to(ROOT).parts[0] == "agentic_compression"]
EVERYWHERE = (*PACKAGES, "tests", "scripts", "benchmarks")


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _exported(path: Path) -> list[str] | None:
    for node in _tree(path).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if _is_annotated(node) else []
        if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
            assert isinstance(node, ast.Assign | ast.AnnAssign)
            assert node.value is not None
            names: list[str] = list(ast.literal_eval(node.value))
            return names
    return None


def _is_annotated(node: ast.stmt) -> bool:
    return isinstance(node, ast.AnnAssign)


def _defined(path: Path) -> Iterator[str]:
    """Public functions and classes that the file itself defines at its top level."""
    for node in _tree(path).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node.name


def _imported(path: Path) -> Iterator[str]:
    """Names that a package's ``__init__`` takes over from its own modules."""
    package = ".".join(path.parent.relative_to(ROOT).parts)
    for node in _tree(path).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(package):
            yield from (alias.asname or alias.name for alias in node.names)


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_packages_export_all_they_take_over() -> None:
    problems = {}
    for folder in package_folders():
        path = folder / "__init__.py"
        offered = {name for name in (*_defined(path), *_imported(path)) if not name.startswith("_")}
        exported = _exported(path) or []
        if missing := offered - set(exported):
            problems[_name(path)] = f"not in __all__: {sorted(missing)}"
        elif len(exported) != len(set(exported)):
            problems[_name(path)] = "a name is twice in __all__"
    assert problems == {}


@pytest.mark.parametrize("folder", DOMAIN, ids=_name)
def test_exported_names_exist_and_are_documented(folder: Path) -> None:
    package = importlib.import_module(".".join(folder.relative_to(ROOT).parts))
    bare = []
    for name in getattr(package, "__all__", ()):
        item = getattr(package, name)
        documentable = inspect.isclass(item) or inspect.isfunction(item)
        if documentable and item.__module__.startswith("agentic_compression") and not _documentation(item):
            bare.append(name)
    assert not bare, f"no docstring: {bare}"


def _documentation(item: object) -> str:
    """A class's own docstring, not one it inherits."""
    text = vars(item).get("__doc__") if inspect.isclass(item) else inspect.getdoc(item)
    return str(text or "").strip()


def test_modules_begin_with_a_docstring() -> None:
    files = [path for path in source_files(*PACKAGES) if path.read_text().strip()]
    assert [_name(path) for path in files if not ast.get_docstring(_tree(path))] == []


def test_no_module_has_a_vague_name() -> None:
    vague = [_name(path) for path in source_files(*EVERYWHERE) if path.stem in VAGUE_NAMES]
    vague += [_name(path) for path in package_folders() if path.name in VAGUE_NAMES]
    assert vague == []


def test_no_file_is_too_long() -> None:
    lengths = {_name(path): len(path.read_text().splitlines()) for path in source_files(*EVERYWHERE)}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def test_no_data_is_run_as_code() -> None:
    found = [
        f"{_name(path)}:{line}: {what}"
        for path in source_files(*PACKAGES)
        for line, what in _unsafe(_tree(path))
        if not (_name(path) in CONFINED_EXECUTION and what in {"exec(…)", "compile(…)"})
    ]
    assert found == []


def _unsafe(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found = {alias.name.partition(".")[0] for alias in node.names} & UNSAFE_MODULES
            yield from ((node.lineno, f"import {name}") for name in found)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in UNSAFE_MODULES:
            yield node.lineno, f"from {node.module} import …"
        elif isinstance(node, ast.Call):
            yield from ((node.lineno, what) for what in _unsafe_call(node))


def _unsafe_call(node: ast.Call) -> Iterator[str]:
    called = ast.unparse(node.func)
    if called in UNSAFE_CALLS or called in {"os.system", "os.popen"}:
        yield f"{called}(…)"
    for keyword in node.keywords:
        value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
        if keyword.arg == "shell" and value is not False:
            yield f"{called}(shell=…)"
    if called == "torch.load" and not any(keyword.arg == "weights_only" for keyword in node.keywords):
        yield "torch.load(…) without weights_only=True"
    if called in {"yaml.load", "yaml.unsafe_load", "yaml.full_load"}:
        yield f"{called}(…) where yaml.safe_load will do"
