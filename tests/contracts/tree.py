"""What several contract tests ask: the files of the packages, and the command line as a tree."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer.main

from agentic_compression.cli.main import app

__all__ = ["PACKAGES", "ROOT", "acf_calls", "commands", "package_folders", "problem_with_call", "source_files"]

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("agentic_compression", "pipelines", "steps", "materializers")


def package_folders() -> list[Path]:
    """Every Python package below the four top-level ones, these included."""
    return sorted(init.parent for name in PACKAGES for init in (ROOT / name).rglob("__init__.py"))


def source_files(*folders: str) -> list[Path]:
    """Every Python file below the given top-level folders."""
    return sorted(path for name in folders for path in (ROOT / name).rglob("*.py"))


@cache
def commands() -> dict[str, Any]:
    """Every command by what one types, groups included: ``acf``, ``acf run``, ``acf registry list`` …"""
    return dict(_walk("acf", typer.main.get_command(app)))


def _walk(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from _walk(f"{path} {name}", child)


def acf_calls(text: str) -> list[list[str]]:
    """The arguments of every ``acf …`` call in shell text, without comments, redirections and what follows the call."""
    calls = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        named = (words for words in _simple_commands(line) if words and Path(words[0]).name == "acf")
        calls.extend(words[1:] for words in named)
    return calls


def _simple_commands(line: str) -> list[list[str]]:
    opened = line.replace('"$(', "$( ").replace(')"', " )")
    lexer = shlex.shlex(opened, posix=True, punctuation_chars="();<>|&")
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("();<>|&"):
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def problem_with_call(arguments: list[str]) -> str | None:
    """Why the command line refuses these arguments (unknown command, option or value), or None. Nothing is run."""
    path, rest = "acf", list(arguments)
    while rest and f"{path} {rest[0]}" in commands():
        path = f"{path} {rest.pop(0)}"
    command = commands()[path]
    if getattr(command, "commands", None) is not None and rest and not rest[0].startswith("-"):
        return f"{path} has no command {rest[0]!r}"
    if set(rest) & {"--help", "-h", "--version"}:
        return None
    try:
        command.make_context(path, rest)
    except Exception as error:
        return f"{path} {shlex.join(rest)}: {error}"
    return None
