"""A promotion by hand tries the version before its alias moves: when it asks, what a wrong answer does, and force."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from agentic_compression import study as domain
from agentic_compression import tracking
from agentic_compression.cli.main import app
from agentic_compression.errors import AcfError, ConfigurationError
from agentic_compression.records import JournalEntry, Promoted, PromotionPolicy, PromotionRequest
from agentic_compression.registry import move_aliases
from agentic_compression.registry.moves import Note
from agentic_compression.study.promotion import promote, require_promoted, smoke_test, verdict_on
from tests.unit.registry.desks import Studio

POINTS = {0: (0.95, 40.0), 1: (0.94, 10.0), 2: (0.93, 5.0), 3: (0.70, 4.0)}
"""Version 2 is the champion, 3 may follow it, 4 is significantly less accurate."""


@pytest.fixture
def tried(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Studio:
    monkeypatch.setattr(domain, "open_workbench", lambda: studio.bench)
    monkeypatch.setattr(tracking, "open_client", lambda _: studio.client)
    studio.promote(studio.study(POINTS), (0, 1, 2, 3))
    return studio


def _promote(studio: Studio, version: str = "3", **options: Any) -> Promoted:
    desk = studio.desk
    request = PromotionRequest(model=studio.name, version=version, alias="champion", policy=studio.policy, **options)
    return promote(desk, request, verdict_on(desk, request), studio.bench)


def _acf(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["registry", "promote", *arguments, "-a", "champion"], env={"COLUMNS": "200"})


def _journal(studio: Studio) -> list[JournalEntry]:
    return studio.desk.journal.entries(studio.name)


def test_the_alias_is_where_it_was_while_the_version_is_asked(tried: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    run = tried.supervisor.run

    def watch(*arguments: Any, **named: Any) -> Any:
        seen.append(tried.aliases()["champion"])
        return run(*arguments, **named)

    monkeypatch.setattr(tried.supervisor, "run", watch)
    promoted = _promote(tried)
    assert (promoted.status, promoted.smoke and promoted.smoke.passed) == ("promoted", True)
    assert seen == ["2"]
    assert tried.supervisor.asked == [f"models:/{tried.name}/3"]
    assert tried.aliases()["champion"] == "3"
    assert (_journal(tried)[-1].forced, _journal(tried)[-2].why) == (False, "promoted by hand")


def test_a_wrong_answer_keeps_the_alias_and_writes_nothing(tried: Studio) -> None:
    tried.supervisor.broken = {"3"}
    before, lines = tried.aliases(), len(_journal(tried))
    promoted = _promote(tried)
    assert (promoted.status, promoted.verdict.passed) == ("refused", True)
    with pytest.raises(AcfError, match=r"/3 as champion did not take the alias, its smoke test failed: failed: script"):
        require_promoted(promoted)
    assert (tried.aliases(), len(_journal(tried))) == (before, lines)


@pytest.mark.parametrize(("version", "forced"), [("3", ["smoke test"]), ("4", ["accuracy not worse", "smoke test"])])
def test_force_goes_on_and_the_journal_keeps_what_spoke_against_it(
    tried: Studio, version: str, forced: list[str]
) -> None:
    tried.supervisor.broken = {version}
    promoted = require_promoted(_promote(tried, version, force=True, reason="wanted"))
    assert promoted.status == "promoted"
    assert tried.aliases()["champion"] == version
    entry = tried.desk.journal.moves(tried.name)[-1]
    assert entry.forced
    assert entry.why.startswith("wanted (forced: ")
    assert entry.why.endswith("smoke test: failed: scripted)")
    assert [name for name in ("accuracy not worse", "smoke test") if name in entry.why] == forced


@pytest.mark.parametrize(
    ("version", "options", "status"),
    [
        ("2", {}, "unchanged"),
        ("3", {"require_approval": True}, "requested"),
        ("4", {}, "refused"),
    ],
)
def test_what_does_not_move_is_not_tried(tried: Studio, version: str, options: dict[str, Any], status: str) -> None:
    promoted = _promote(tried, version, **options)
    assert (promoted.status, promoted.smoke) == (status, None)
    assert tried.supervisor.asked == []


def test_what_the_rules_make_a_request_is_not_tried(tried: Studio) -> None:
    tried.policy = PromotionPolicy(require_approval=True)
    assert _promote(tried).status == "requested"
    assert tried.supervisor.asked == []


@pytest.mark.parametrize(
    ("version", "options", "told"),
    [
        ("3", {}, "the gate compared with"),
        ("3", {"force": True, "reason": "wanted"}, "the gate compared with"),
        ("4", {"force": True, "reason": "wanted"}, "when the version was tried it was at"),
    ],
)
def test_an_alias_that_moved_while_the_version_was_asked_stays(
    tried: Studio, monkeypatch: pytest.MonkeyPatch, version: str, options: dict[str, Any], told: str
) -> None:
    run = tried.supervisor.run

    def run_slowly(*arguments: Any, **named: Any) -> Any:
        move_aliases(tried.client, tried.desk.journal, tried.name, {"champion": "1"}, Note("promote", "quicker"))
        return run(*arguments, **named)

    monkeypatch.setattr(tried.supervisor, "run", run_slowly)
    with pytest.raises(AcfError, match=f"moved to version 1 meanwhile, {told} 2"):
        _promote(tried, version, **options)
    assert tried.aliases()["champion"] == "1"


def test_the_pipelines_steps_ask_once(tried: Studio) -> None:
    """They promote without a workbench, and their last step asks what the alias serves then."""
    desk = tried.desk
    request = PromotionRequest(model=tried.name, version="3", alias="champion", force=True, reason="wanted")
    promoted = promote(desk, request, verdict_on(desk, request))
    assert tried.supervisor.asked == []
    tried.supervisor.broken = {"3"}
    taken_back = smoke_test(desk, promoted, tried.bench)
    assert tried.supervisor.asked == [f"models:/{tried.name}/3"]
    assert tried.aliases()["champion"] == "2"
    with pytest.raises(AcfError, match="was taken back, its smoke test failed"):
        require_promoted(taken_back)


def test_the_command_prints_the_answer_and_json_holds_it(tried: Studio) -> None:
    told = _acf(f"{tried.name}/3").output
    assert f"smoke test of models:/{tried.name}/3: 'p' → 'a', the same as its checkpoint's own" in told
    found = json.loads(_acf(f"{tried.name}/2", "--json").stdout)
    assert (found["status"], found["smoke"]["passed"], found["smoke"]["answer"]) == ("promoted", True, "a")


def _no_pipeline(_: PromotionRequest) -> Promoted:
    raise AssertionError("nothing is to be measured")


def test_the_command_says_which_of_both_is_so_and_measures_nothing(
    tried: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentic_compression.cli.registry_moves._through_pipeline", _no_pipeline)
    already = f"champion of {tried.name} is at version 2 already; nothing moved"
    assert already in _acf(f"{tried.name}/2").output
    assert tried.supervisor.asked == []
    assert already in _acf(f"{tried.name}/2", "--pipeline", "--require-approval").output
    assert tried.supervisor.asked == [f"models:/{tried.name}/2"]
    request = json.loads(_acf(f"{tried.name}/3", "--require-approval", "--json").stdout)["entry"]["id"]
    for options in ([], ["--pipeline"]):
        told = _acf(f"{tried.name}/3", "--require-approval", *options)
        assert f"the same move to version 3 waits for approval already; next: acf registry approve {request}" in (
            " ".join(told.output.split())
        )
    assert tried.supervisor.asked == [f"models:/{tried.name}/2"]
    with pytest.raises(AssertionError, match="nothing is to be measured"):
        raise _acf(f"{tried.name}/3", "--pipeline").exception


def test_the_command_refuses_a_wrong_answer_with_both_texts(tried: Studio) -> None:
    tried.supervisor.broken = {"3"}
    refused = _acf(f"{tried.name}/3", "--json")
    assert isinstance(refused.exception, AcfError)
    assert refused.exception.exit_code == 1
    assert "smoke test failed: failed: scripted" in str(refused.exception)
    told = json.loads(refused.stdout)
    assert (told["status"], told["smoke"]["passed"], told["entry"]) == ("refused", False, None)
    forced = _acf(f"{tried.name}/3", "--force", "-r", "wanted")
    assert forced.exit_code == 0, forced.output
    assert f"FAILED  smoke test of models:/{tried.name}/3: failed: scripted" in forced.output
    assert "champion of " in forced.output


def test_the_command_can_leave_it_out_but_not_of_the_pipeline(tried: Studio) -> None:
    tried.supervisor.broken = {"3"}
    told = json.loads(_acf(f"{tried.name}/3", "--no-smoke", "--json").stdout)
    assert (told["status"], told["smoke"]) == ("promoted", None)
    assert tried.supervisor.asked == []
    refused = _acf(f"{tried.name}/2", "--no-smoke", "--pipeline")
    assert isinstance(refused.exception, ConfigurationError)
    assert tried.aliases()["champion"] == "3"
