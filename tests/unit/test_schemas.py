"""The committed schemas are the generated ones, and they describe what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from agentic_compression.frontier import build_frontier
from agentic_compression.records import EpisodeResults, FinalResults
from agentic_compression.schemas import SCHEMAS, json_schemas
from tests.unit.frontier.studies import BASELINE_VALUES, episode

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "schemas"


def test_committed_schemas_equal_the_generated_ones() -> None:
    committed = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    assert committed == json_schemas(), "run: python scripts/write_schemas.py"
    assert set(committed) == set(SCHEMAS)


@pytest.mark.parametrize("name", list(SCHEMAS))
def test_schema_is_itself_valid(name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is a development dependency")
    jsonschema.Draft202012Validator.check_schema(json.loads(json_schemas()[name]))


def test_written_files_and_studies_fit_their_schemas() -> None:
    jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is a development dependency")
    schemas = {name: json.loads(text) for name, text in json_schemas().items()}
    document = build_frontier("s", [episode(0, BASELINE_VALUES)])
    jsonschema.validate(json.loads(document.model_dump_json()), schemas["pareto_frontier.schema.json"])
    result = EpisodeResults(episode=0, status="succeeded", strategy="baseline")
    jsonschema.validate(json.loads(result.model_dump_json()), schemas["episode_results.schema.json"])
    final = FinalResults(
        study="s",
        model="demo",
        dataset="demo",
        planner="tpe",
        seed=0,
        episodes_run=0,
        episodes_by_status={"succeeded": 1},
        termination_reason=None,
        baseline=document.baseline,
        solutions=document.solutions,
        hypervolume_by_episode=(0.1,),
        wall_seconds=1.0,
        energy_kwh=0.1,
        co2_grams=1.0,
        energy_source="estimated",
    )
    jsonschema.validate(json.loads(final.model_dump_json()), schemas["final_results.schema.json"])
    study = {"model": "demo", "dataset": "demo", "constraints": ["accuracy_drop<=0.02"]}
    jsonschema.validate(study, schemas["study.schema.json"])
    jsonschema.validate({**study, "constraints": "size_ratio<=0.5"}, schemas["study.schema.json"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**study, "episdoes": 3}, schemas["study.schema.json"])
