"""The import contracts in pyproject.toml hold."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

from tests.contracts.tree import PACKAGES, ROOT

_LINT = "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache', '--no-logo'])"


def test_import_contracts_are_kept() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LINT], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_contracts_cover_every_package() -> None:
    """A new package that no layer names would escape the layers unnoticed."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(contract["layers"] for contract in settings["contracts"] if contract["type"] == "layers")
    named = {name.strip() for layer in layers for name in layer.split("|")}
    parts = {f"agentic_compression.{path.stem}" for path in (ROOT / "agentic_compression").iterdir() if _is_code(path)}
    unnamed = parts - named - {"agentic_compression.__init__", "agentic_compression.testing"}
    assert set(settings["root_packages"]) == set(PACKAGES)
    assert not unnamed, f"add to the layers in pyproject.toml: {sorted(unnamed)}"


def _is_code(path: Path) -> bool:
    return path.suffix == ".py" or (path / "__init__.py").is_file()
