"""Key, address and model come from the environment, and what is missing is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentic_compression.errors import ConfigurationError
from agentic_compression.planning import canonical, load_planner, propose_episode, select_planner
from agentic_compression.records import Strategy
from agentic_compression.settings import get_settings
from agentic_compression.testing.language_model import answer, decision, scripted_model
from tests.unit.planning.llm_studies import KEY, history, situation
from tests.unit.planning.spaces import SPACE

OWN = decision("quantization", stages=[{"method": "gptq", "parameters": {"bits": 3, "group_size": 32}}])
OWN_STRATEGY = canonical(SPACE, Strategy.parse("gptq:bits=3,group_size=32"))


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACF_HOME", str(tmp_path))
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "ACF_PLANNER_MODEL"):
        monkeypatch.delenv(name, raising=False)
    get_settings.cache_clear()
    return monkeypatch


def _set(patch: pytest.MonkeyPatch, **values: str) -> None:
    for name, value in values.items():
        patch.setenv(name, value)
    get_settings.cache_clear()


def test_url_key_and_model_come_from_the_environment(configured: pytest.MonkeyPatch) -> None:
    with scripted_model(lambda body, number: answer(OWN)) as server:
        _set(configured, OPENAI_API_KEY=KEY, OPENAI_BASE_URL=server.url, ACF_PLANNER_MODEL="house-model")
        proposal = propose_episode("llm", SPACE, history(), 0, situation=situation())
        assert server.requests[0]["model"] == "house-model"
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"
        _, note = select_planner("llm", has_api_key=True)
        assert "house-model at 127.0.0.1" in note
        assert KEY not in note
    assert proposal.strategy == OWN_STRATEGY
    assert proposal.source == "llm"


def test_an_endpoint_of_ones_own_needs_no_key_and_the_note_says_so(configured: pytest.MonkeyPatch) -> None:
    with scripted_model(lambda body, number: answer(OWN)) as server:
        _set(configured, OPENAI_BASE_URL=server.url)
        _, note = select_planner("hybrid", has_api_key=False)
        assert "placeholder" in note
        proposal = propose_episode("llm", SPACE, history(), 0)
        assert server.headers[0]["authorization"] == "Bearer no-key"
    assert proposal.fallback == ""
    planner, note = select_planner("auto", has_api_key=False)
    assert planner.name not in {"llm", "hybrid"}
    assert "--planner hybrid" in note


@pytest.mark.parametrize("name", ["llm", "hybrid"])
def test_without_key_and_endpoint_it_is_a_usage_error(configured: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY environment variable not set") as caught:
        propose_episode(name, SPACE, [], 0)
    assert caught.value.exit_code == 2


def test_auto_with_a_key_is_hybrid(configured: pytest.MonkeyPatch) -> None:
    _set(configured, OPENAI_API_KEY=KEY)
    planner, note = select_planner("auto", has_api_key=True)
    assert planner.name == "hybrid"
    assert "gpt-4o at api.openai.com" in note
    assert load_planner("llm").name == "llm"


def test_a_url_with_a_password_is_a_usage_error(configured: pytest.MonkeyPatch) -> None:
    _set(configured, OPENAI_BASE_URL="http://user:hunter22@host/v1")
    with pytest.raises(ConfigurationError, match="OPENAI_BASE_URL") as caught:
        select_planner("llm", has_api_key=False)
    assert "hunter22" not in str(caught.value)


def test_strategies_in_flight_reach_the_model_through_the_study(configured: pytest.MonkeyPatch) -> None:
    with scripted_model(lambda body, number: answer(OWN)) as server:
        _set(configured, OPENAI_API_KEY=KEY, OPENAI_BASE_URL=server.url)
        proposal = propose_episode("llm", SPACE, history(), 0, in_flight=[OWN_STRATEGY])
        assert len(server.requests) == 2  # asked and corrected, not asked again for every suggestion that runs
    assert proposal.strategy is not None
    assert proposal.strategy.key != OWN_STRATEGY.key
    assert proposal.fallback
