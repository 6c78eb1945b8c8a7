"""``acf registry`` over a real store: what it prints, what it refuses, with which exit code."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from agentic_compression import study as domain
from agentic_compression import tracking
from agentic_compression.cli.main import app
from agentic_compression.errors import AcfError, ModelError
from agentic_compression.records import PromotionPolicy
from agentic_compression.registry import AliasJournal, model_folder
from agentic_compression.registry.journal import new_entry
from tests.unit.registry.desks import Studio

POINTS = {0: (0.95, 40.0), 1: (0.94, 10.0), 2: (0.93, 5.0), 3: (0.70, 4.0)}


@pytest.fixture
def shown(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Studio:
    """Commands see the same store and the studies in memory."""
    monkeypatch.setattr(domain, "open_workbench", lambda: studio.bench)
    monkeypatch.setattr(tracking, "open_client", lambda _: studio.client)
    studio.promote(studio.study(POINTS), (0, 1, 2, 3))
    return studio


def _acf(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["registry", *arguments], env={"COLUMNS": "200"})


def test_promote_prints_every_condition_and_the_way_back(shown: Studio) -> None:
    result = _acf("promote", f"{shown.name}/3", "--alias", "champion")
    assert result.exit_code == 0, result.output
    assert "passed  accuracy not worse: -0.0100 against version 2" in result.output
    assert f"acf registry rollback {shown.name} --alias champion" in result.output
    assert shown.aliases()["champion"] == "3"
    assert _acf("rollback", shown.name, "--alias", "champion").output.startswith(f"{shown.name}: champion 3 → 2")
    assert shown.aliases()["champion"] == "2"


def test_a_planted_worse_challenger_is_refused(shown: Studio) -> None:
    result = _acf("promote", f"{shown.name}/4", "--alias", "champion", "--json")
    assert isinstance(result.exception, AcfError)
    assert result.exception.exit_code == 1
    assert "-0.2400 against version 2" in str(result.exception)
    verdict = json.loads(result.stdout)["verdict"]
    assert [check["name"] for check in verdict["checks"] if not check["passed"]] == ["accuracy not worse"]
    assert shown.aliases()["champion"] == "2"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["promote", "NAME/3", "--alias", "champion", "--force"], "--reason"),
        (["promote", "NAME/3", "--alias", "winner"], "aliases are champion"),
        (["promote", "NAME/99", "--alias", "champion"], "versions of NAME: 1, 2, 3, 4; aliases: "),
        (["promote", "nothing-here/2", "--alias", "champion"], "NAME"),
        (["promote", "NAME", "--alias", "champion"], "MODEL/NUMBER"),
        (["rollback", "NAME", "--alias", "nonsense"], "no move of alias nonsense"),
        (["approve", "nonsense"], "waiting: none"),
        (["show", "NAME@nobody"], "champion (2)"),
    ],
)
def test_wrong_usage_names_what_is_allowed(shown: Studio, arguments: list[str], told: str) -> None:
    before = shown.aliases()
    result = _acf(*(argument.replace("NAME", shown.name) for argument in arguments))
    assert isinstance(result.exception, AcfError), result.output
    assert result.exception.exit_code == 2
    assert told.replace("NAME", shown.name) in str(result.exception)
    assert shown.aliases() == before


def test_an_alias_or_a_model_that_is_not_there_is_refused_with_those_that_are(shown: Studio) -> None:
    with pytest.raises(ModelError, match=rf"versions of {shown.name}: 1, 2, 3, 4; aliases: .*champion \(2\)"):
        model_folder(shown.client, f"models:/{shown.name}@nope")
    with pytest.raises(ModelError, match=rf"registered models: .*{shown.name}"):
        model_folder(shown.client, "models:/nothing-here/2")


def test_history_show_and_diff_tell_what_happened(shown: Studio) -> None:
    _acf("promote", f"{shown.name}/4", "-a", "champion", "--force", "-r", "for a test")
    entries = json.loads(_acf("history", shown.name, "--json").stdout)
    assert [(entry["kind"], entry["action"]) for entry in entries] == [
        ("intended", "follow"), ("done", "follow"), ("intended", "promote"), ("done", "promote"),
    ]  # fmt: skip
    assert entries[2]["forced"]
    assert "champion 2 → 4" in _acf("history").output
    told = json.loads(_acf("show", f"{shown.name}@champion", "--json").stdout)
    assert told["version"] == "4"
    assert told["tags"]["acf.baseline.verdict"] == "worse"
    assert "mlflow models serve" in _acf("show", f"{shown.name}/2").output
    compared = json.loads(_acf("diff", f"{shown.name}/2", f"{shown.name}/4", "--json").stdout)
    assert compared["comparison"]["verdict"] == "worse"
    assert compared["comparison"]["flips"]["right_to_wrong"] == 24
    assert "worse at n=100" in _acf("diff", f"{shown.name}/2", f"{shown.name}/4").output


def test_a_request_is_listed_and_approved(shown: Studio) -> None:
    _acf("promote", f"{shown.name}/3", "-a", "champion", "--require-approval")
    assert shown.aliases()["champion"] == "2"
    (waiting,) = json.loads(_acf("approve", "--json").stdout)
    assert f"acf registry approve {waiting['id']}" in _acf("list", shown.name).output.replace("\n", " ")
    assert "champion 2 → 3" in _acf("approve", waiting["id"]).output
    assert shown.aliases()["champion"] == "3"
    assert "nothing waits" in _acf("approve").output


def test_list_counts_refusals_that_show_explains_and_says_what_a_study_wants_taken_away(shown: Studio) -> None:
    shown.name = f"{shown.name}-again"
    study = shown.records(next(iter(shown.history._records)))[0].study
    shown.promote(study, (0, 1, 2))
    shown.promote(study, (0, 1, 2, 3))

    def told(*arguments: str) -> str:
        return str(_acf(*arguments).output.replace("\n", " "))

    assert f"1 version was refused aliases; see: acf registry show {shown.name}/4" in told("list", shown.name)
    assert "-0.2300" not in told("list", shown.name)
    reason = " ".join(told("show", f"{shown.name}/4").replace("│", " ").split())
    assert "not passed: accuracy not worse: -0.2300 against version 3" in reason
    shown.policy = PromotionPolicy(require_approval=True)
    shown.promote(study, (0, 1))
    assert f"{shown.name}/3 is superseded and holds fastest, smallest, greenest" in told("list", shown.name)
    (entry,) = shown.desk.journal.pending(shown.name)
    assert "smallest 3 → 2" in told("list", shown.name)
    assert f"(the frontier of {study}; asked by study {study} of {entry.who}" in told("list", shown.name)
    shown.promote(study, (0, 1), withheld={0: "not trusted", 1: "not trusted"})
    assert "champion 2 → none (taken away, version 2 is withheld)" in told("approve")
    shown.client.set_registered_model_alias(shown.name, "champion", "1")
    assert "champion 2 → none (out of date: at 1 now)" in told("approve")


def test_approve_tries_the_version_and_the_history_keeps_apart_who_asked(shown: Studio) -> None:
    shown.policy = PromotionPolicy(require_approval=True)
    study = shown.records(next(iter(shown.history._records)))[0].study
    shown.promote(study, (0, 1))
    (entry,) = shown.desk.journal.pending(shown.name)
    shown.supervisor.broken = {"2"}
    refused = _acf("approve", entry.id)
    assert isinstance(refused.exception, AcfError)
    assert f"acf registry approve {entry.id} --reject" in str(refused.exception)
    assert "asked (waits)" in _acf("history").output
    shown.supervisor.broken = set()
    assert f"smoke test of models:/{shown.name}/2: 'p' → 'a'" in _acf("approve", entry.id).output
    told = " ".join(_acf("history").output.replace("│", " ").split())
    assert "approved what study" in told


def test_show_and_diff_tell_numbers_with_their_units(shown: Studio) -> None:
    rows = {
        name.strip(): value.strip()
        for _, name, value, _ in (
            line.split("│") for line in _acf("show", f"{shown.name}/3").output.splitlines() if line.count("│") == 3
        )
    }
    assert rows["size, MB"] == "5.00"
    assert rows["latency, ms"].startswith("8.0 [")
    assert rows["accuracy"].startswith("0.930")
    assert rows["accuracy beside the baseline"].startswith("-0.02 [")
    assert rows["state"] == "frontier"
    assert "checkpoint" in _acf("diff", f"{shown.name}/2", f"{shown.name}/4").output


def test_history_marks_what_was_said_of_a_model_deleted_since(shown: Studio) -> None:
    assert "deleted" not in _acf("history").output
    shown.client.delete_registered_model(shown.name)
    assert "deleted" in _acf("history").output


def test_any_command_completes_a_move_that_was_cut_short(shown: Studio) -> None:
    journal = AliasJournal(shown.bench.settings.root / "data" / "registry")
    journal.append(
        new_entry(
            kind="intended", model=shown.name, action="promote", before={"champion": "2"}, after={"champion": "3"}
        )
    )
    versions = json.loads(_acf("list", shown.name, "--json").stdout)
    assert [item["version"] for item in versions if "champion" in item["aliases"]] == ["3"]
    assert journal.moves(shown.name)[-1].recovered
