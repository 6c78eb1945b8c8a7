"""The stand-ins for a language model: what each wants, and that a course with one is a course with that one."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import pytest

from agentic_compression.planning.grid import canonical
from agentic_compression.planning.llm.review import HYBRID_LLM, HYBRID_OPTIMIZER
from agentic_compression.records import Strategy
from benchmarks.planners import language, transcripts
from benchmarks.planners.__main__ import _print_language
from benchmarks.planners.language import STAND_INS, default_settings, play_stand_in, preferences
from benchmarks.planners.replay import Course, Replay
from benchmarks.planners.table import DATA, Table

GIVEN, EPISODES = 2, 9


@pytest.fixture(scope="module")
def replay() -> Replay:
    return Replay(Table.read(DATA / "demo.json"), 1, given=GIVEN)


def test_the_contrarian_wants_what_covers_least(replay: Replay) -> None:
    wanted = list(islice(preferences("contrarian", replay), 20))
    volumes = {
        canonical(replay.space, record.strategy).label: replay.volume([record.objectives])
        for row in replay.table.rows[1:]
        if (record := replay.record(Strategy.parse(row.strategy), 1)).objectives is not None
    }
    found = [volumes[strategy.label] for strategy in wanted]
    assert found == sorted(volumes.values())[:20]


def test_the_lover_of_defaults_begins_with_the_usual_four_bits_and_stays_legal(replay: Replay) -> None:
    wanted = list(preferences("default-lover", replay))
    first = wanted[0].stages[0]
    assert (first.method, first.parameters["bits"], first.parameters["group_size"]) == ("gptq", 4, 128)
    assert all(replay.space.problem_with(strategy) is None for strategy in wanted)
    for strategy in wanted[1:]:
        for stage in strategy.stages:
            method = replay.space.method(stage.method)
            assert method is not None
            assert dict(stage.parameters).items() <= {item.name: item.default for item in method.parameters}.items()
    assert {strategy.stages[0].method for strategy in wanted} == {method.name for method in replay.space.offered}


def test_the_follower_leaves_everything_to_the_optimizer(replay: Replay) -> None:
    course = play_stand_in(replay, "hybrid:follower", EPISODES)
    assert course.sources == ["", *["seed"] * GIVEN, *[HYBRID_OPTIMIZER] * (EPISODES - GIVEN)]


@pytest.mark.parametrize("character", ["default-lover", "contrarian"])
def test_a_hybrid_carries_out_overrides_within_their_share(replay: Replay, character: str) -> None:
    course = play_stand_in(replay, f"hybrid:{character}", EPISODES)
    own = [label for label, source in zip(course.strategies, course.sources, strict=True) if source == HYBRID_LLM]
    assert 0 < len(own) <= default_settings().planner_override_share * (EPISODES - GIVEN)
    wanted = [strategy.label for strategy in preferences(character, replay)]
    assert own == [label for label in wanted if label in own]  # in the order of its preferences
    assert len(set(course.strategies)) == EPISODES + 1


def test_an_llm_planner_carries_out_nothing_else(replay: Replay) -> None:
    course = play_stand_in(replay, "llm:contrarian", GIVEN + 3)
    assert course.strategies[GIVEN + 1 :] == [s.label for s in islice(preferences("contrarian", replay), 3)]
    assert course.sources[GIVEN + 1 :] == ["llm"] * 3


def test_an_answer_that_cannot_be_used_is_no_course(replay: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "scripted_answer", lambda *_: "colourless green ideas")
    with pytest.raises(RuntimeError, match="seed 1, episode 3: no usable answer"):
        play_stand_in(replay, "llm:follower", EPISODES)


def test_stand_ins_do_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = default_settings()
    monkeypatch.setenv("ACF_PLANNER_OVERRIDE_SHARE", "0.9")
    monkeypatch.setenv("ACF_PLANNER_MAX_CALLS", "1")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    assert default_settings() == usual
    assert usual.openai_api_key is None


def test_a_character_that_is_not_known_is_refused(replay: Replay) -> None:
    with pytest.raises(ValueError, match=f"known: {STAND_INS[0]}"):
        play_stand_in(replay, "hybrid:nobody", EPISODES)


def test_stand_ins_are_printed_as_such_and_always_beside_the_search_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(transcripts, "FOLDER", tmp_path)
    alone, worse = [Course([0.9] * 41, [])] * 3, [Course([0.8] * 41, [])] * 3
    _print_language("demo", {"greybox": alone, "hybrid:contrarian": worse}, GIVEN)
    printed = capsys.readouterr().out.splitlines()
    assert "scripts, no language models" in printed[1]
    assert printed[3].startswith("greybox alone ")
    assert printed[3].endswith("the ablation")
    assert printed[4].startswith("hybrid:contrarian (stand-in) ")
    assert printed[4].endswith("+0.1000 [+0.1000, +0.1000]")
    assert printed[5] == "no recorded transcripts"
