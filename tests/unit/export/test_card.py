"""The model card: what is known, what is said to be unknown, and texts of others that must stay text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.checkpoints.manifest import AppliedStage, CheckpointManifest, PackedModule
from agentic_compression.export.card import model_card
from agentic_compression.export.card_text import code, line, prose, quoted
from agentic_compression.export.check import tolerance_of
from agentic_compression.export.origin import Licence, Origin, licence_of
from agentic_compression.records import ExportCheck, ExportRecord, PromptCheck, Strategy
from agentic_compression.settings import Settings
from agentic_compression.testing.records import make_evaluation, make_plan, make_record

HOSTILE = [
    "a\n---\nlicense: evil\n---\n# owned",
    "x: [1, 2\n- {{ }}",
    "```python\nimport os\n```",
    "<script>alert(1)</script>",
    "](https://evil.example) | | | **b** `c`",
    "\u202egnp.exe\u202c\x00\x1b[31m",
    "!!python/object/apply:os.system ['true']",
    "`" * 7,
]


def card_of(base: str | None, note: str = "", answer: str = "b", **changes: Any) -> tuple[str, Origin]:
    packed = PackedModule(bits=4, group_size=32, symmetric=False)
    manifest = CheckpointManifest(
        base_digest="d",
        strategy=Strategy.parse("rtn:bits=4,group_size=32"),
        stages=(AppliedStage(method="rtn", notes=(note,) if note else ()),),
        modules={"model.layers.0.mlp.up_proj": packed},
    )
    origin = Origin(
        source="x", folder=Path("/x"), digest="0123456789abcdef", size_bytes=1000, manifest=manifest, base_model=base,
        base_folder=None, licence=Licence("apache-2.0"), **changes,
    )  # fmt: skip
    check = ExportCheck(
        runtime="transformers 5", reference="transformers 5", tokens=9, top1_agreement=1.0, mean_kl=0.0, max_kl=0.0,
        prompts=(PromptCheck(prompt="a\nb", expected="a", answer=answer, same=False, gap=0.1),),
        tolerance=tolerance_of(),
    )  # fmt: skip
    record = ExportRecord(
        format="hf", form="as stored", source="x", source_digest=origin.digest, strategy="rtn", code_version="0.1",
        created_at="2026-11-22T00:00:00+00:00", checkpoint_bytes=1000, notes=(note,) if note else (), check=check,
        packages={"torch": "2.13.0+cpu", "transformers": "5.17.0", "compressed-tensors": "0.19.0"},
    )  # fmt: skip
    return model_card(record, origin), origin


def front_matter(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    text, _, _ = card[4:].partition("\n---\n")
    values: dict[str, Any] = yaml.safe_load(text)
    return values


def skeleton(card: str) -> list[str]:
    """What gives a card its shape: headings, fences and table rows."""
    return [re.sub(r"^(# ).*", r"\1", row) for row in card.splitlines() if re.match(r"(#+ |\s*```|\||---)", row)]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_change_no_structure(text: str) -> None:
    plain, _ = card_of("model", "note", "answer")
    hostile, _ = card_of(text, text, text)
    assert skeleton(hostile) == skeleton(plain)
    assert front_matter(hostile) == front_matter(plain)
    assert not re.search(r"(?<!\\)<script", re.sub(r"`[^`\n]*`", "", hostile))
    assert not re.search("[\u202a-\u202e\u0000-\u0008\u001b]", hostile)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=80))
def test_any_name_is_text(text: str) -> None:
    plain, _ = card_of("model", "note", "answer")
    card, _ = card_of(text or None, text, text)
    values = front_matter(card)
    values.pop("base_model", None)
    values.pop("base_model_relation", None)
    assert values == front_matter(plain)
    assert skeleton(card) == skeleton(plain)


@given(st.text(max_size=60))
def test_inline_code_ends_where_it_should(text: str) -> None:
    shown = code(text)
    fence = re.match("`+", shown)
    assert fence is not None
    assert shown.endswith(fence[0])
    inside = shown[len(fence[0]) : -len(fence[0])]
    assert fence[0] not in re.findall("`+", inside)
    assert "\n" not in shown + prose(text) + quoted(text)


def test_lines_are_cut() -> None:
    assert line("a" * 500) == "a" * 399 + "…"
    assert line(" a \n\t b ") == "a b"


def test_what_is_not_known_is_said_to_be_unknown() -> None:
    card, _ = card_of(None)
    assert "Source model: unknown" in card
    assert "no study on this machine has measured" in card
    assert "measured on: unknown" in card
    assert "base_model" not in front_matter(card)


def test_hub_names_stand_in_the_front_matter_and_paths_do_not() -> None:
    assert front_matter(card_of("org/model-1")[0])["base_model"] == "org/model-1"
    card, _ = card_of("/home/someone/secret/model")
    assert "base_model" not in front_matter(card)
    assert "someone" not in card
    assert "`model`" in card


def test_measured_numbers_stand_beside_the_baselines(tmp_path: Path) -> None:
    def episode(number: int, accuracy: float) -> Any:
        evaluation = make_evaluation(accuracy, latency_ms=12.5 - number, size_bytes=2_000_000)
        plan = make_plan("study", number, "rtn:bits=4" if number else "")
        return make_record(plan, tmp_path / str(number), evaluation, run_id=None, environment=evaluation.environment)

    mine, baseline = episode(1, 0.91), episode(0, 0.97)
    card, _ = card_of("org/model", study="study", measured=mine, baseline=baseline)
    row = next(row for row in card.splitlines() if row.startswith("| accuracy |"))
    assert row == "| accuracy | 0.91 (0.88 – 0.94) | 0.97 (0.94 – 1) | fraction correct |"
    assert "| latency of one request | 11.5 (11.3 – 11.7) | 12.5 (12.3 – 12.7) | ms |" in card
    assert "| size on disk | 2 | 2 | MB |" in card
    assert "estimated" in card


def test_packages_are_named_as_pypi_has_them() -> None:
    card, _ = card_of("org/model")
    assert "pip install torch==2.13.0 transformers==5.17.0 compressed-tensors==0.19.0" in card


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("---\nlicense: MIT\n---\n# x", "mit"),
        ("---\nlicense: [a, b]\n---\n", None),
        ("---\nlicense: 'a\n---\n", None),
        ("---\nlicense: !!python/object/apply:os.getcwd []\n---\n", None),
        ("---\n- license\n---\n", None),
        ("---\nlicense: 'x y; rm -rf'\n---\n", None),
        ("# no front matter", None),
        (None, None),
    ],
)
def test_licences_are_read_from_the_models_own_card(text: str | None, name: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    found = licence_of("model", tmp_path, Settings())
    assert found.name == name
    assert bool(found.why) == (name is None)


def test_a_hub_that_cannot_be_asked_leaves_the_licence_unknown() -> None:
    found = licence_of("org/model", None, Settings(HF_ENDPOINT="http://127.0.0.1:9"))
    assert found.name is None
    assert "could not be asked" in found.why
