"""What another program may name."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentic_compression.agent.confinement import allowed_reference
from agentic_compression.errors import ConfigurationError
from agentic_compression.settings import get_settings


@pytest.mark.parametrize("name", ["demo", "gsm8k,arc", "org/model-1.5b", "models:/demo--demo@champion"])
def test_names_pass(name: str, home: Path) -> None:
    assert allowed_reference(name, get_settings()) == name


@pytest.mark.parametrize(
    "name",
    [
        "/etc",
        "../x",
        "~/x",
        "a/../../x",
        "/etc/passwd.jsonl",
        "gsm8k,/etc/hosts",
        "x\x00y",
        "models:/../../etc@a",
        "a b",
        "",
    ],
)
def test_paths_elsewhere_do_not(name: str, home: Path) -> None:
    with pytest.raises(ConfigurationError):
        allowed_reference(name, get_settings())


def test_files_below_the_root_pass_and_links_out_of_it_do_not(
    home: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    inside = home / "questions.jsonl"
    inside.write_text("{}")
    assert allowed_reference(str(inside), get_settings())
    assert allowed_reference("questions.jsonl", get_settings())
    outside = tmp_path_factory.mktemp("elsewhere") / "secret.jsonl"
    outside.write_text("{}")
    (home / "link.jsonl").symlink_to(outside)
    with pytest.raises(ConfigurationError, match="must lie below"):
        allowed_reference("link.jsonl", get_settings())
