"""Copies are independent of what they were copied from, and links bring nothing in from elsewhere."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentic_compression.errors import ModelError
from agentic_compression.export import ExportRequest, export_checkpoint
from agentic_compression.export.copying import copy_file, legal_files, require_own_files
from agentic_compression.settings import Settings
from tests.unit.export.checkpoints import made


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=10_000))
def test_a_copy_has_the_content_and_nothing_else_in_common(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data)
    copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == data
    with (tmp_path / "b").open("r+b") as file:
        file.write(b"edited")
    assert (tmp_path / "a").read_bytes() == data


def test_blocks_are_shared_where_the_file_system_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def clone(_: Any, request: int, source: int) -> int:
        asked.append(request)
        raise OSError(errno.EOPNOTSUPP, "no reflinks here")

    monkeypatch.setattr(fcntl, "ioctl", clone)
    (tmp_path / "a").write_bytes(b"data")
    copy_file(tmp_path / "a", tmp_path / "b")
    assert asked == [0x40049409]
    assert (tmp_path / "b").read_bytes() == b"data"


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "additional_chat_templates"])
def test_a_link_that_leads_elsewhere_is_refused_by_name(name: str, tmp_path: Path) -> None:
    made("rtn4", tmp_path / "checkpoint")
    (tmp_path / "private").write_text("secret")
    (tmp_path / "checkpoint" / name).unlink(missing_ok=True)
    (tmp_path / "checkpoint" / name).symlink_to("../private")
    nobody: Any = None
    request = ExportRequest(source=str(tmp_path / "checkpoint"), format="hf", output=tmp_path / "made")
    with pytest.raises(ModelError, match=f"{name} is a link that leads out"):
        export_checkpoint(request, Settings(ACF_HOME=tmp_path / "state"), nobody)
    assert not (tmp_path / "made").exists()


def test_links_within_the_folder_and_of_a_hub_cache_stand(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a").write_text("a")
    (tmp_path / "own" / "b").symlink_to("a")
    require_own_files(tmp_path / "own")
    cache = tmp_path / "hub" / "models--org--name"
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "blobs" / "abcd").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/abcd")
    require_own_files(snapshot)
    other = tmp_path / "hub" / "models--org--other" / "blobs"
    other.mkdir(parents=True)
    (other / "abcd").write_text("{}")
    (snapshot / "tokenizer.json").symlink_to("../../../models--org--other/blobs/abcd")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        require_own_files(snapshot)


def test_legal_texts_are_those_of_the_usual_names(tmp_path: Path) -> None:
    kept = ["LICENSE", "LICENCE.txt", "Notice.md", "USE_POLICY.md", "license"]
    for name in (*kept, "LICENSE_KEYS.json", "notice-to-self.doc", "licenses.db", "NOTICE.txt.bak", "use_policy_draft"):
        (tmp_path / name).write_text(name)
    assert [path.name for path in legal_files(tmp_path)] == sorted(kept)
    assert legal_files(None) == legal_files(tmp_path / "nowhere") == []
    (tmp_path / "LICENCE").symlink_to("/etc/hostname")
    with pytest.raises(ModelError, match="LICENCE is a link"):
        legal_files(tmp_path)
