"""Recorded replays: nothing that was answered is lost or asked again, and the record is played as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import ttest_1samp

from agentic_compression.planning.llm.endpoint import Limits
from agentic_compression.planning.llm.prompt import PROMPT_VERSION
from agentic_compression.records import content_digest
from agentic_compression.testing.language_model import Response, answer, decision, scripted_model
from benchmarks.planners.replay import Replay
from benchmarks.planners.table import DATA, Table
from benchmarks.planners.transcripts import Transcript, _summary, course, lines, read_all, record_replay

GIVEN, EPISODES = 2, 6
pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="module")
def table() -> Table:
    return Table.read(DATA / "demo.json")


def _second(body: dict[str, Any], number: int) -> Response:
    return answer(decision("search", candidate=2))


def _recorded(
    table: Table, folder: Path, script: Callable[[dict[str, Any], int], Response], model: str = "scripted"
) -> tuple[Transcript, list[dict[str, Any]]]:
    with scripted_model(script) as server:
        endpoint = server.url, model, "no-key", Limits(timeout_s=60.0)
        try:
            made = record_replay(table, "demo", Replay(table, 3, given=GIVEN), EPISODES, endpoint, folder)
        except RuntimeError:
            made = Transcript.model_validate_json((folder / "demo-3.json").read_text())
        return made, server.requests


def test_a_recorded_replay_is_played_as_it_was(table: Table, tmp_path: Path) -> None:
    made, requests = _recorded(table, tmp_path, _second)
    assert made.complete
    assert (made.model, made.prompt_version, made.table, made.seed) == ("scripted", PROMPT_VERSION, "demo", 3)
    assert [step.source for step in made.steps] == ["seed"] * GIVEN + ["hybrid:optimizer"] * (EPISODES - GIVEN)
    calls = [call for step in made.steps for call in step.calls]
    assert [call.answer for call in calls] == [decision("search", candidate=2)] * (EPISODES - GIVEN)
    assert len(requests) == len(calls)
    assert len({call.prompt for call in calls}) == len(calls)
    assert all(len(call.prompt) == len(content_digest("")) for call in calls)
    assert read_all(["demo"], tmp_path) == [made]
    assert read_all(["another"], tmp_path) == []
    played = course(made, table)
    assert played.strategies[1:] == [step.strategy for step in made.steps]
    replay = Replay(table, 3, given=GIVEN)
    rows = [table.baseline, *(replay.rows[step.strategy] for step in made.steps)]
    known = [replay.record(replay_strategy, 1).objectives for replay_strategy in map(_parsed, rows)]
    assert played.volumes[-1] == pytest.approx(replay.volume([item for item in known if item]) / replay.best)
    printed = "\n".join(lines([made], table))
    assert "recorded: scripted, transcripts: 1" in printed
    assert "greybox alone" in printed
    assert "one transcript: nothing is said of others" in printed


def _parsed(row: Any) -> Any:
    from agentic_compression.records import BASELINE, Strategy

    return BASELINE if row.strategy == "baseline" else Strategy.parse(row.strategy)


def test_a_recording_that_was_stopped_goes_on_where_it_was(table: Table, tmp_path: Path) -> None:
    whole, _ = _recorded(table, tmp_path / "whole", _second)

    def failing(body: dict[str, Any], number: int) -> Response:
        return _second(body, number) if number < 2 else Response.error(401, "gone")

    part, _ = _recorded(table, tmp_path / "part", failing)
    assert not part.complete
    assert len(part.steps) == GIVEN + 2  # and none that the optimizer decided because no answer came
    assert not any(step.fallback for step in part.steps)
    rest, requests = _recorded(table, tmp_path / "part", _second)
    assert len(requests) == EPISODES - GIVEN - 2
    assert [step.strategy for step in rest.steps] == [step.strategy for step in whole.steps]
    assert [[call.prompt for call in step.calls] for step in rest.steps] == [
        [call.prompt for call in step.calls] for step in whole.steps
    ]
    again, requests = _recorded(table, tmp_path / "part", _second)
    assert again == rest
    assert requests == []


def test_an_answer_before_the_stop_is_not_asked_for_again(table: Table, tmp_path: Path) -> None:
    def stopped(body: dict[str, Any], number: int) -> Response:
        return answer("colourless green ideas") if number == 0 else Response.error(401, "gone")

    part, _ = _recorded(table, tmp_path, stopped)
    assert [given.text for given in part.answers] == ["colourless green ideas"]
    assert len(part.steps) == GIVEN
    made, requests = _recorded(table, tmp_path, _second)
    assert [message["role"] for message in requests[0]["messages"]] == ["system", "user", "assistant", "user"]
    assert [call.status for call in made.steps[GIVEN].calls] == ["invalid", "ok"]
    assert made.answers == ()


def test_an_unusable_answer_is_recorded_as_the_models_failure(table: Table, tmp_path: Path) -> None:
    made, _ = _recorded(table, tmp_path, lambda body, number: answer("colourless green ideas"))
    assert made.complete
    assert all("no usable answer" in step.fallback for step in made.steps[GIVEN:])


def test_a_transcript_of_another_model_or_table_is_not_gone_on_with(table: Table, tmp_path: Path) -> None:
    made, _ = _recorded(table, tmp_path, _second)
    other = table.model_copy(update={"rows": table.rows[:-1]})
    endpoint = "http://127.0.0.1:9/v1", "another", "no-key", Limits()
    with pytest.raises(RuntimeError, match="has another data, model"):
        record_replay(other, "demo", Replay(other, 3, given=GIVEN), EPISODES, endpoint, tmp_path)
    with pytest.raises(ValueError, match="another state of the table"):
        course(made, other)


def test_no_interval_is_given_that_so_few_cannot_bear() -> None:
    values = [0.01, -0.02, 0.03, 0.005, -0.01, 0.02]
    assert "one transcript" in _summary(values[:1])
    assert "from -0.0200 to +0.0300 (n = 3" in _summary(values[:3])
    interval = ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert f"[{interval.low:+.4f}, {interval.high:+.4f}] (n = 6" in _summary(values)
