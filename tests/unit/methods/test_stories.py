"""Numbers on a real trained model, against perplexities of an independent float64 implementation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from agentic_compression.checkpoints import load_checkpoint
from agentic_compression.methods import CompressionRequest, compress
from agentic_compression.records import Strategy
from tests.unit.methods.tiny_models import STORIES, STORIES_TEXT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not STORIES.is_dir(), reason="../shared/models/stories260K is not on this machine"),
]

# Perplexity over that of float32, 3.877; asymmetric grids, groups of 32.
REFERENCES = {
    "rtn:bits=4,group_size=32": 4.276 / 3.877,
    "gptq:bits=4,group_size=32,least_error=false": 4.131 / 3.877,
    "rtn:bits=3,group_size=32": 6.795 / 3.877,
    "gptq:bits=3,group_size=32,least_error=false": 5.648 / 3.877,
}


# Pruning: at most 3 % above the ratios of an independent float64 implementation on another held-out text. Ours compares
# SparseGPT's scores within rows, which is better here; with compare=block, the paper's way, 50 % gives 4.5.
PRUNED = {
    "magnitude:sparsity=0.3": 1.398,
    "wanda:sparsity=0.3": 1.236,
    "sparsegpt:sparsity=0.3": 1.202,
    "magnitude:sparsity=0.5": 10.2,
    "wanda:sparsity=0.5": 4.85,
    "sparsegpt:sparsity=0.5": 4.10,
}
OTHERS = (
    "rtn:bits=8",
    "gptq:bits=4,group_size=32",
    "gptq:bits=3,group_size=32",
    "gptq:bits=2,group_size=32",
    "gptq:bits=3,group_size=32,act_order=true",
    "magnitude:pattern=2:4",
    "wanda:pattern=2:4",
    "sparsegpt:pattern=2:4",
    "asvd:rank_ratio=0.9,alpha=0",
    "asvd:rank_ratio=0.9",
    "svd_llm:rank_ratio=0.9",
    "svd_llm:rank_ratio=0.7",
)


def perplexity(path: str | Path, texts: list[str]) -> float:
    """One story a window, BOS first, every token after it scored; padding comes after a story and is not scored."""
    loaded = load_checkpoint(path)
    rows = [torch.tensor(loaded.tokenizer(text, truncation=True, max_length=512)["input_ids"]) for text in texts]
    rows.sort(key=len)
    loss, count = 0.0, 0
    with torch.no_grad():
        for some in (rows[start : start + 20] for start in range(0, len(rows), 20)):
            ids = torch.nn.utils.rnn.pad_sequence(some, batch_first=True)
            scores = loaded.model(input_ids=ids).logits[:, :-1].double().log_softmax(-1)
            found = scores.gather(2, ids[:, 1:, None])[..., 0]
            loss -= sum(float(row[: len(one) - 1].sum()) for row, one in zip(found, some, strict=True))
            count += sum(len(one) - 1 for one in some)
    return math.exp(loss / count)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [json.loads(line)["text"] for line in STORIES_TEXT.read_text().splitlines()]


@pytest.fixture(scope="module")
def ratios(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    folder = tmp_path_factory.mktemp("stories")
    calibration = folder / "calibration.jsonl"
    calibration.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:128]))
    held_out = texts[128:248]
    dense = perplexity(STORIES, held_out)
    found = {}
    for strategy in (*REFERENCES, *PRUNED, *OTHERS):
        outcome = compress(
            CompressionRequest(
                model_path=str(STORIES),
                base_digest="stories260K",
                strategy=Strategy.parse(strategy),
                calibration_path=str(calibration),
                calibration_digest="stories",
                calibration_tokens=512,
                checkpoints_root=str(folder / "checkpoints"),
            )
        )
        assert outcome.checkpoint is not None
        found[strategy] = perplexity(outcome.checkpoint.path, held_out) / dense
    return found


@pytest.mark.parametrize("strategy", REFERENCES)
def test_perplexity_ratio_is_in_line_with_the_reference(strategy: str, ratios: dict[str, float]) -> None:
    tolerance = 0.035 if strategy.startswith("gptq") else 0.08 if "bits=3" in strategy else 0.05
    assert ratios[strategy] == pytest.approx(REFERENCES[strategy], rel=tolerance)


def test_gptq_beats_rounding_and_eight_bits_cost_nothing(ratios: dict[str, float]) -> None:
    assert ratios["gptq:bits=4,group_size=32"] < ratios["rtn:bits=4,group_size=32"]
    assert ratios["gptq:bits=3,group_size=32"] < 0.9 * ratios["rtn:bits=3,group_size=32"]
    assert ratios["gptq:bits=3,group_size=32,act_order=true"] < ratios["rtn:bits=3,group_size=32"]
    assert ratios["rtn:bits=8"] == pytest.approx(1, abs=0.005)
    for bits in (4, 3):  # clipping helps, the more the fewer bits
        assert ratios[f"gptq:bits={bits},group_size=32"] < ratios[f"gptq:bits={bits},group_size=32,least_error=false"]
    assert ratios["gptq:bits=2,group_size=32"] < 12  # an independent GPTQ without clipping gave 31


@pytest.mark.parametrize("strategy", PRUNED)
def test_pruning_is_no_worse_than_the_reference(strategy: str, ratios: dict[str, float]) -> None:
    assert 1.1 < ratios[strategy] < 1.03 * PRUNED[strategy]


@pytest.mark.parametrize("what", ["sparsity=0.3", "sparsity=0.5", "pattern=2:4"])
def test_inputs_beat_magnitude_and_repair_beats_both(what: str, ratios: dict[str, float]) -> None:
    assert ratios[f"sparsegpt:{what}"] < ratios[f"wanda:{what}"] < ratios[f"magnitude:{what}"]


def test_whitening_beats_scaling_and_scaling_the_plain_decomposition(ratios: dict[str, float]) -> None:
    assert ratios["svd_llm:rank_ratio=0.9"] < 0.4 * ratios["asvd:rank_ratio=0.9"]
    assert ratios["asvd:rank_ratio=0.9"] < ratios["asvd:rank_ratio=0.9,alpha=0"]
    assert ratios["svd_llm:rank_ratio=0.9"] < ratios["svd_llm:rank_ratio=0.7"]
