"""What healing wins back on a real trained model; held-out stories are neither calibrated nor trained on."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from agentic_compression.methods import CompressionRequest, compress
from agentic_compression.records import Strategy
from tests.unit.methods.test_stories import perplexity
from tests.unit.methods.tiny_models import STORIES, STORIES_TEXT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not STORIES.is_dir(), reason="../shared/models/stories260K is not on this machine"),
]

# Largest allowed perplexity over that of float32, and the ratio before healing. A third of the default number of steps;
# what the default reaches stands in docs/measurements.
TARGETS = {
    "magnitude:sparsity=0.5 | distill:steps=100": (10.2**0.5, 10.2),
    "rtn:bits=2,group_size=32 | distill:steps=100": (4.0, 30.0),
}


@pytest.mark.parametrize("strategy", TARGETS)
def test_healing_wins_back_most_of_what_was_lost(strategy: str, tmp_path: Path) -> None:
    texts = [json.loads(line)["text"] for line in STORIES_TEXT.read_text().splitlines()]
    held_out, rest = texts[128:248], texts[:128] + texts[248:]
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in rest))
    outcome = compress(
        CompressionRequest(
            model_path=str(STORIES),
            base_digest="stories260K",
            strategy=Strategy.parse(strategy),
            calibration_path=str(text),
            calibration_digest="stories",
            calibration_tokens=512,
            checkpoints_root=str(tmp_path / "checkpoints"),
        )
    )
    assert outcome.checkpoint is not None
    ratio = perplexity(outcome.checkpoint.path, held_out) / perplexity(STORIES, held_out)
    allowed, before = TARGETS[strategy]
    assert ratio <= allowed
    assert math.log(ratio) < math.log(before) / 2
