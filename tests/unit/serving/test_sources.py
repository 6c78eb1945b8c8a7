"""Names and references of what is served."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import pytest

from agentic_compression.errors import ConfigurationError, ModelError
from agentic_compression.serving.sources import FolderSource, RegistrySource, Target, read_sources


def no_registry() -> NoReturn:
    raise AssertionError("a folder needs no registry")


def test_names_are_given_or_come_from_the_folder(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        folder.mkdir()
    sources = read_sources([str(folder) for folder in folders], ["first"], no_registry)
    assert list(sources) == ["first", "two"]
    assert sources["two"].resolve() == Target(folders[1])
    assert not sources["two"].follows


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a", "b", "c"], "at most"), (["same", "same"], "twice"), (["with space"], "letters, digits")],
)
def test_wrong_names_are_refused(names: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        read_sources([str(tmp_path), str(tmp_path)], names, no_registry)


def test_wrong_references_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="check the path"):
        read_sources([str(tmp_path / "nowhere")], [], no_registry)
    with pytest.raises(ModelError, match="NAME@ALIAS"):
        RegistrySource(None, "models:/name")  # type: ignore[arg-type]


def test_only_files_of_weights_count(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "tokenizer.json").write_bytes(b"x" * 50)
    assert FolderSource(tmp_path).resolve().weights_bytes() == 100


def test_an_alias_that_moves_meanwhile_gives_one_version_whole(tmp_path: Path) -> None:
    """Every look at the alias finds it elsewhere: folder and number are still of one version."""

    class Restless:
        looks = 0

        def get_model_version_by_alias(self, name: str, alias: str) -> SimpleNamespace:
            self.looks += 1
            return self.get_model_version(name, str(1 + self.looks % 2))

        def get_model_version(self, name: str, number: str) -> SimpleNamespace:
            return SimpleNamespace(name=name, version=number, source=(tmp_path / number).as_uri(), tags={}, aliases=[])

        def get_registered_model(self, name: str) -> SimpleNamespace:
            self.looks += 1
            return SimpleNamespace(name=name, aliases={"champion": str(1 + self.looks % 2)})

    for number in ("1", "2"):
        (tmp_path / number).mkdir()
    source = RegistrySource(Restless(), "models:/model@champion")  # type: ignore[arg-type]
    for _ in range(4):
        target = source.resolve()
        assert target.folder.name == target.version
