"""What ``acf run`` says when it ends: new episodes, moved aliases, the legend, plain words."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from agentic_compression.cli import live
from agentic_compression.cli.ending import AliasMove, alias_moves, closing_line, final_json, known_moves
from agentic_compression.cli.live import LiveView, frontier_table, plain_reason
from agentic_compression.frontier import build_frontier
from agentic_compression.records import FinalResults, FrontierDocument, StudyConfig
from agentic_compression.registry import rollback
from agentic_compression.settings import get_settings
from agentic_compression.study.files import final_results
from agentic_compression.study.retention import drop_dominated
from tests.unit.frontier.studies import BASELINE_VALUES, episode
from tests.unit.registry.desks import Studio, frontier

POINTS = {0: (0.95, 40.0), 1: (0.94, 10.0), 2: (0.93, 5.0)}
CONFIG = StudyConfig(model="demo", dataset="demo", name="told")
BASE = episode(0, BASELINE_VALUES)
BETTER = episode(1, (0.49, 40.0, 2.0, 1.0, 4.0), label="rtn")


def _results(reason: str | None, *records: object) -> tuple[FinalResults, FrontierDocument]:
    found = [record for record in records if record is not None]
    document = build_frontier("told", found)  # type: ignore[arg-type]
    return final_results(CONFIG, document, found, reason), document  # type: ignore[arg-type]


def _printed(view_of: FrontierDocument | None, results: FinalResults, added: int, *moves: AliasMove) -> str:
    view = LiveView(CONFIG, detailed=False)
    view._console = Console(file=io.StringIO(), width=200)
    if view_of is not None:
        view._on_event("frontier", {"document": view_of})
    view.final(results, Path("/studies/told"), added, moves)
    assert isinstance(view._console.file, io.StringIO)
    return view._console.file.getvalue()


@pytest.mark.parametrize(
    ("reason", "words", "more"),
    [
        ("converged", "converged", "--episodes +N"),
        ("max_episodes", "every episode", "--episodes +N"),
        ("time_budget", "time budget", "--budget-hours"),
        ("carbon_budget", "carbon budget", "--carbon-budget-kg"),
        ("target_met", "target", "target_hypervolume"),
        ("search_space_exhausted", "no strategies left", "--max-stages"),
        ("planner_end", "planner", "--planner"),
    ],
)
def test_a_run_that_ran_nothing_says_so_and_what_to_do(home: Path, reason: str, words: str, more: str) -> None:
    results, _ = _results(reason, BASE, BETTER)
    told = closing_line(results, Path("/x"), added=0)
    assert told.startswith("nothing run: ")
    assert "after 1 episode;" in told
    assert words in told
    assert more in told.partition("for more: ")[2]
    for added in (1, None):
        assert closing_line(results, Path("/x"), added).startswith(f"done ({reason}): 2 episodes (2 succeeded)")


def test_episodes_of_this_run_are_told_apart_from_earlier_ones(home: Path) -> None:
    results, _ = _results("converged", BASE, BETTER)
    assert "1 of them new" in closing_line(results, Path("/x"), 1)
    assert "new" not in closing_line(results, Path("/x"), 2)


def test_ctrl_c_before_the_baseline_prints_no_empty_table(home: Path) -> None:
    results, document = _results("interrupted")
    printed = _printed(document, results, 0)
    assert printed.splitlines() == [
        "interrupted before the baseline was measured: nothing is recorded; next: the same command again"
    ]
    later, _ = _results("interrupted", BASE)
    assert closing_line(later, Path("/x"), 0).startswith("interrupted: 1 episode (1 succeeded)")


def test_the_table_says_what_its_mark_means(home: Path) -> None:
    results, document = _results("converged", BASE, BETTER)
    printed = _printed(document, results, 1)
    assert [line for line in printed.splitlines() if "◆" in line][-1].strip().startswith("◆ best compromise")
    assert printed.count("◆") == 2
    assert "converged" in printed
    unmarked = document.model_copy(
        update={"solutions": tuple(item.model_copy(update={"is_knee": False}) for item in document.solutions)}
    )
    assert frontier_table(unmarked, None).caption is None


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        (
            "rung 0: with its 3.1 ms, 0.007649 GB of memory, 0.00512 GB on disk, 2 g CO2e",
            "told from its size and costs: with its 3.1 ms, 7.649 MB of memory, 5.12 MB on disk, 2 g CO2e",
        ),
        ("rung 2: an accuracy of at most 0.5", "told from the first questions: an accuracy of at most 0.5"),
        ("7.6e-05 GB of memory", "0.076 MB of memory"),
        ("0.5 GB at least, 9.5 GB are free", "500 MB at least, 9500 MB are free"),
        ("9.5 GB at least, 24.25 GB are free", "9.5 GB at least, 24.25 GB are free"),
        ("it stands on rung 0: no", "it stands on rung 0: no"),
        ("of-3 GBps, v1.2 GBytes", "of-3 GBps, v1.2 GBytes"),
    ],
)
def test_a_reason_is_told_in_plain_words(stored: str, told: str) -> None:
    assert plain_reason(stored) == told
    assert plain_reason(told) == told
    assert set(live._RUNGS) == {"0", "1", "2", "3"}


def _study_of(studio: Studio, study: str) -> StudyConfig:
    return StudyConfig(model=studio.name.removesuffix("--demo"), dataset="demo", name=study)


def test_aliases_that_a_run_moved_are_told_with_a_way_back_that_works(studio: Studio) -> None:
    study = studio.study(POINTS)
    config = _study_of(studio, study)
    studio.promote(study, (0, 1))
    first = {move.alias: move for move in alias_moves(studio.bench, config, ())}
    assert {alias: move.versions for alias, move in first.items()} == {
        alias: ("", version) for alias, version in studio.aliases().items()
    }
    assert {move.back for move in first.values()} == {""}

    known, before = known_moves(studio.bench, config), studio.aliases()
    assert alias_moves(studio.bench, config, known) == []
    studio.promote(study, (0, 1, 2), knee=2)
    after = studio.aliases()
    moves = alias_moves(studio.bench, config, known)
    assert {move.alias for move in moves} == {alias for alias in after if before.get(alias) != after[alias]}
    (champion,) = (move for move in moves if move.alias == "champion")
    assert str(champion) == (
        f"champion {before['champion']} → {after['champion']}; "
        f"back: acf registry rollback {studio.name} --alias champion"
    )
    results, document = _results("converged", BASE, BETTER)
    assert str(champion) in _printed(document, results, 1, *moves).splitlines()
    told = json.loads(json.dumps(final_json(results, 1, moves)))
    assert told["episodes_added"] == 1
    assert {"model": studio.name, "alias": "champion"}.items() <= told["alias_moves"][moves.index(champion)].items()
    assert FinalResults.model_validate({k: v for k, v in told.items() if k in FinalResults.model_fields}) == results

    rollback(studio.client, studio.desk.journal, studio.name, alias="champion")
    assert studio.aliases()["champion"] == before["champion"]


def test_only_moves_of_this_study_are_told_and_a_way_back_that_is_barred_says_why(studio: Studio) -> None:
    study = studio.study(POINTS)
    config = _study_of(studio, study)
    studio.promote(study, (0, 1))
    known, before = known_moves(studio.bench, config), studio.aliases()["champion"]
    studio.promote(study, (0, 1, 2), knee=2)
    other = config.model_copy(update={"name": "another"})
    assert alias_moves(studio.bench, other, known) == []
    shutil.rmtree(studio.home / f"{study}-1")
    (champion,) = (move for move in alias_moves(studio.bench, config, known) if move.alias == "champion")
    assert champion.versions[0] == before
    assert f"acf rebuild {study} 1" in champion.back


def test_clean_names_what_stays_and_why(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from agentic_compression import study as domain
    from agentic_compression.cli.main import app

    monkeypatch.setattr(domain, "open_workbench", lambda: studio.bench)
    studio.home = get_settings().checkpoints
    study = studio.study(POINTS)
    studio.promote(study, (0, 1, 2))
    for alias in set(studio.aliases()) - {"champion"}:
        studio.client.delete_registered_model_alias(studio.name, alias)
    (get_settings().experiments / study).mkdir(parents=True)

    asked = CliRunner().invoke(app, ["clean", "nostudy"], input="y\n")
    assert study in str(asked.exception)
    assert "Remove study" not in asked.output
    assert studio.history.exists(study)

    kept = studio.aliases()["champion"]
    done = CliRunner().invoke(app, ["clean", study, "--yes"])
    assert done.exit_code == 0, done.output
    first, second = done.stdout.splitlines()
    assert first == f"removed study {study}: 3 episodes, 2 versions, 2 checkpoints"
    assert second.startswith(f"{studio.name}/{kept} stays, version and checkpoint: held by champion")
    studio.client.delete_registered_model_alias(studio.name, "champion")
    drop_dominated(studio.bench, frontier("nothing", []), [])
    assert not list(get_settings().checkpoints.glob(f"{study}-*"))
