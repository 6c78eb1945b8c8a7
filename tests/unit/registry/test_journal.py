"""The journal against a plain model of it, and with a damaged file."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.errors import AcfError
from agentic_compression.registry.journal import AliasJournal, new_entry

ALIASES = ("champion", "smallest")


def _move(journal: AliasJournal, before: dict[str, str], after: dict[str, str], undoes: str = "") -> str:
    action = "rollback" if undoes else "promote"
    entry = new_entry(kind="intended", model="m", action=action, before=before, after=after, undoes=undoes)
    journal.append(entry)
    journal.append(new_entry(id=entry.id, kind="done", model="m", action=action))
    return entry.id


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.dictionaries(st.sampled_from(ALIASES), st.sampled_from("123"), min_size=1), st.sampled_from(ALIASES)
        ),
        max_size=8,
    )
)
def test_standing_moves_are_a_stack_by_alias(steps: list[dict[str, str] | str]) -> None:
    """A dictionary moves aliases; a name takes its last move back, of that alias alone."""
    with tempfile.TemporaryDirectory() as folder:
        journal = AliasJournal(Path(folder))
        stacks: dict[str, list[tuple[str, str, str]]] = {alias: [] for alias in ALIASES}
        current = dict.fromkeys(ALIASES, "")
        for step in steps:
            if isinstance(step, str):
                if stacks[step]:
                    identity, before, after = stacks[step].pop()
                    _move(journal, {step: after}, {step: before}, undoes=identity)
                    current[step] = before
                continue
            after = {alias: version for alias, version in step.items() if current[alias] != version}
            if after:
                before = {alias: current[alias] for alias in after}
                identity = _move(journal, before, after)
                for alias, version in after.items():
                    stacks[alias].append((identity, before[alias], version))
                current |= after
        found = journal.standing("m")
        for alias in ALIASES:
            mine = [(change.entry.id, change.before, change.entry.after[alias]) for change in found.get(alias, [])]
            assert mine == stacks[alias]


@pytest.mark.parametrize("keep", range(0, 60, 7))
def test_a_half_written_last_line_is_passed_over_and_overwritten(tmp_path: Path, keep: int) -> None:
    journal = AliasJournal(tmp_path)
    _move(journal, {"champion": ""}, {"champion": "1"})
    whole = (tmp_path / "journal.jsonl").read_bytes()
    torn = new_entry(kind="intended", model="m", action="promote", after={"champion": "2"}).model_dump_json().encode()
    (tmp_path / "journal.jsonl").write_bytes(whole + torn[:keep])
    assert len(journal.entries()) == 2
    assert journal.unfinished() == []
    _move(journal, {"champion": "1"}, {"champion": "3"})
    assert [entry.after for entry in journal.moves("m")] == [{"champion": "1"}, {"champion": "3"}]


def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "journal.jsonl").write_text('{"id": 1}\n')
    with pytest.raises(AcfError, match=r"journal\.jsonl:1"):
        AliasJournal(tmp_path).entries()


def test_two_processes_do_not_write_at_once(tmp_path: Path) -> None:
    import multiprocessing

    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_write_twenty, args=(tmp_path,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    entries = AliasJournal(tmp_path).entries()
    assert len(entries) == 120
    for first, second in zip(entries[::2], entries[1::2], strict=True):
        assert (first.kind, second.kind, first.id) == ("intended", "done", second.id)


def _write_twenty(folder: Path) -> None:
    journal = AliasJournal(folder)
    for _ in range(20):
        with journal.locked():
            _move(journal, {}, {"champion": "1"})
