"""Results of first stages: shared, damaged, too large, and of strategies that end where a condition was looked at."""

from __future__ import annotations

import errno
import os
import sys
import time
from pathlib import Path

import pytest
import torch

from agentic_compression.checkpoints import load_checkpoint
from agentic_compression.methods import compress, content_key
from agentic_compression.methods import prefixes as prefixes_module
from agentic_compression.methods.prefixes import PREFIXES, make_room, promote, stored_prefix
from tests.unit.methods.test_compress import base, done, request
from tests.unit.methods.tiny_models import logits

__all__ = ["base"]


def stored(root: Path, name: str, size: int, age_s: float) -> Path:
    folder = root / PREFIXES / name
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(size))
    then = time.time() - age_s
    os.utime(folder, (then, then))
    return folder


def test_room_is_made_from_what_was_unused_for_longest(tmp_path: Path) -> None:
    old, older, fresh = (stored(tmp_path, str(age), 10, age) for age in (7200, 9000, 5))
    assert make_room(tmp_path, 10, 30)
    assert [old.exists(), older.exists(), fresh.exists()] == [True, False, True]
    assert not make_room(tmp_path, 25, 30)  # what was just used stays
    assert fresh.exists()


def test_what_can_never_fit_evicts_nothing(tmp_path: Path) -> None:
    kept = stored(tmp_path, "kept", 10, 9000)
    assert not make_room(tmp_path, 31, 30)
    assert kept.exists()


def test_folders_that_vanish_meanwhile_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored(tmp_path, "gone", 10, 9000)
    stored(tmp_path, ".half.partial", 10**6, 9000)

    def vanish(_: Path) -> int:
        raise FileNotFoundError

    monkeypatch.setattr(prefixes_module, "folder_bytes", vanish)
    assert make_room(tmp_path, 10, 30)


def test_intermediate_result_becomes_the_checkpoint_without_being_built_again(base: Path, tmp_path: Path) -> None:
    wanted = request(base, tmp_path, "rtn:bits=4,group_size=32")
    looked_at = compress(wanted.model_copy(update={"intermediate": True}))
    assert Path(done(looked_at)).parent.name == PREFIXES
    final = compress(wanted)
    assert final.cached
    assert Path(done(final)) == (tmp_path / content_key(wanted)).resolve()
    assert not any((tmp_path / PREFIXES).iterdir())


def test_damaged_prefix_is_dropped_and_its_stages_are_carried_out_again(base: Path, tmp_path: Path) -> None:
    whole = request(base, tmp_path, "magnitude:sparsity=0.5 | rtn:bits=4,group_size=32")
    expected = logits(load_checkpoint(done(compress(whole.model_copy(update={"seed": 0})))).model)
    other = tmp_path / "other"
    first = request(base, other, "magnitude:sparsity=0.5", intermediate=True)
    folder = Path(done(compress(first)))
    next(folder.glob("*.safetensors")).unlink()
    again = compress(request(base, other, "magnitude:sparsity=0.5 | rtn:bits=4,group_size=32"))
    assert torch.equal(logits(load_checkpoint(done(again)).model), expected)
    assert stored_prefix(other, folder.name) is None


def test_damaged_checkpoint_is_set_aside_and_built_again(base: Path, tmp_path: Path) -> None:
    wanted = request(base, tmp_path, "rtn:bits=4,group_size=32")
    folder = Path(done(compress(wanted)))
    (folder / "acf_checkpoint.json").unlink()
    again = compress(wanted)
    assert not again.cached
    assert Path(done(again)) == folder
    assert len(list(tmp_path.glob(".*.partial"))) == 1  # nothing is deleted that might be somebody's


def test_full_disk_while_keeping_a_prefix_costs_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = sys.modules["agentic_compression.methods.compress"]
    saved = module.save_checkpoint

    def full(model: object, tokenizer: object, path: Path, *rest: object, **named: object) -> object:
        if path.parent.name == PREFIXES:
            raise OSError(errno.ENOSPC, "No space left on device")
        return saved(model, tokenizer, path, *rest, **named)

    monkeypatch.setattr(module, "save_checkpoint", full)
    monkeypatch.setattr(module, "_WORTH_KEEPING_SECONDS", 0.0)
    assert done(compress(request(base, tmp_path, "magnitude:sparsity=0.5 | rtn:bits=4,group_size=32")))


def test_promotion_never_replaces_a_checkpoint(tmp_path: Path) -> None:
    prefix = stored(tmp_path, "key", 1, 0)
    (tmp_path / "key").mkdir()
    promote(tmp_path, "key")
    assert prefix.exists()
