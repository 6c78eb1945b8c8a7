"""The model card: what is known, what is said to be unknown, and texts of others that must stay text."""

from __future__ import annotations

import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from agentic_compression.checkpoints.manifest import AppliedStage, CheckpointManifest, PackedModule
from agentic_compression.export import origin as origin_module
from agentic_compression.export.card import model_card
from agentic_compression.export.card_text import code, line, prose, quoted
from agentic_compression.export.check import tolerance_of
from agentic_compression.export.origin import Licence, Origin, find_origin, licence_of
from agentic_compression.records import ExportCheck, ExportRecord, PromptCheck, Report, Strategy, StudyConfig
from agentic_compression.settings import Settings
from agentic_compression.spec import infer_spec
from agentic_compression.storage import write_record
from agentic_compression.testing.records import make_evaluation, make_plan, make_record
from tests.unit.export.checkpoints import made

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
        source="x", folder=changes.pop("folder", Path("/x")), digest="0123456789abcdef", size_bytes=1000,
        manifest=changes.pop("manifest", manifest), base_model=base, base_folder=None,
        licence=changes.pop("licence", Licence(("apache-2.0",))), **changes,
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
    assert front_matter(card_of("org/model-1", on_hub=True)[0])["base_model"] == "org/model-1"
    local, _ = card_of("org/model-1")
    assert "base_model" not in front_matter(local)
    assert "org/" not in local
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


@pytest.mark.parametrize("reported", [True, False])
def test_accuracies_on_other_items_do_not_stand_side_by_side(reported: bool, tmp_path: Path) -> None:
    """In a split study what never stood on the frontier was asked the search items only."""

    def episode(number: int, accuracy: float, *, report: bool) -> Any:
        evaluation = make_evaluation(accuracy)
        plan = make_plan("study", number, "rtn:bits=4" if number else "")
        changes = {"report": Report(accuracy=evaluation.accuracy, benchmarks=evaluation.benchmarks)} if report else {}
        return make_record(plan, tmp_path / str(number), evaluation, run_id=None, **changes)

    mine, baseline = episode(1, 0.91, report=reported), episode(0, 0.97, report=True)
    card, _ = card_of("model", study="study", measured=mine, baseline=baseline)
    row = next(row for row in card.splitlines() if row.startswith("| accuracy |"))
    text = "Accuracy is on the items the search used, not comparable with the baseline's."
    assert (text in card) is not reported
    assert ("0.97" in row) is reported
    assert "all items" not in card
    assert "| size on disk | 10 | 10 | MB |" in card


def test_what_the_user_says_of_the_source_is_said_to_be_so(tmp_path: Path) -> None:
    card, _ = card_of("org/model", on_hub=True, stated=True)
    assert "Source model: `org/model`, as stated by the user." in card
    assert "as stated" not in card_of("org/model", on_hub=True)[0]


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers for every model with the licence of a stranger."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        answer = {"id": "org/model", "cardData": {"license": "other", "license_name": "x", "license_link": "LICENSE"}}
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.asked.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize(
    ("case", "on_hub", "name"),
    [
        ("local", False, "org/model"),  # the study read a folder, which may be gone by now
        ("hub", True, "org/model"),
        ("stated", True, "org/model"),
        ("stated folder", False, "org/model"),
        ("unknown", False, "org/model"),
    ],
)
def test_only_a_model_of_the_hub_is_looked_up_there(
    case: str, on_hub: bool, name: str, hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = Settings(ACF_HOME=tmp_path / "state", HF_ENDPOINT=hub)
    folder = made("rtn4", tmp_path / "checkpoint")
    study = state.experiments / "s"
    study.mkdir(parents=True)
    spec = infer_spec(str(folder), settings=state).model_copy(
        update={"model": name, "path": str(tmp_path / "gone") if case == "local" else None, "digest": "tiny"}
    )
    if case in {"local", "hub"}:
        write_record(study / "model_spec.json", spec)
    (study / "study.json").write_text(StudyConfig(model=name, dataset="demo", name="s").model_dump_json())
    monkeypatch.setattr(origin_module, "_evidence", lambda *_: ("s", None, None))
    if case == "stated folder":
        (tmp_path / name).mkdir(parents=True)
    found = find_origin(str(folder), folder, state, name if case.startswith("stated") else None)
    assert (found.base_model, found.on_hub, bool(Hub.asked)) == (name, on_hub, on_hub)
    assert found.stated is case.startswith("stated")
    expected = Licence(("other",), title="x", link=f"{hub}/{name}/blob/main/LICENSE")
    assert (found.licence == expected) is on_hub


@pytest.mark.parametrize(
    ("quantization", "needed"),
    [
        ({"quant_method": "gptq"}, ["optimum", "gptqmodel"]),
        ({"quant_method": "bitsandbytes"}, ["accelerate", "bitsandbytes"]),
        ({"load_in_4bit": True}, ["accelerate", "bitsandbytes"]),
        ({"quant_method": "compressed-tensors"}, ["compressed-tensors==0.19.0"]),
        ({"quant_method": "new`thing"}, []),
        (None, []),
    ],
)
def test_models_quantized_elsewhere_name_what_they_need(
    quantization: dict[str, Any] | None, needed: list[str], tmp_path: Path
) -> None:
    config = {} if quantization is None else {"quantization_config": quantization}
    (tmp_path / "config.json").write_text(json.dumps(config))
    card, _ = card_of("model", manifest=None, folder=tmp_path)
    install = next(row for row in card.splitlines() if row.startswith("pip install"))
    assert install == " ".join(["pip install torch==2.13.0 transformers==5.17.0", *needed])
    assert ("It is quantized by ``new`thing``;" in card) == (quantization == {"quant_method": "new`thing"})


def test_packages_are_named_as_pypi_has_them() -> None:
    card, _ = card_of("org/model")
    assert "pip install torch==2.13.0 transformers==5.17.0 compressed-tensors==0.19.0" in card


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("---\nlicense: MIT\n---\n# x", ("mit",)),
        ("---\nlicense: [MIT, apache-2.0]\n---\n", ("mit", "apache-2.0")),
        ("---\nlicense: [mit, 'x y; rm -rf']\n---\n", ()),
        ("---\nlicense: []\n---\n", ()),
        ("---\nlicense: 'a\n---\n", ()),
        ("---\nlicense: !!python/object/apply:os.getcwd []\n---\n", ()),
        ("---\n- license\n---\n", ()),
        ("---\nlicense: 'x y; rm -rf'\n---\n", ()),
        ("# no front matter", ()),
        (None, ()),
    ],
)
def test_licences_are_read_from_the_models_own_card(text: str | None, names: tuple[str, ...], tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    found = licence_of("model", tmp_path, Settings())
    assert found.names == names
    assert bool(found.why) == (not names)


def test_a_licence_of_another_name_keeps_its_name_and_link(tmp_path: Path) -> None:
    link = "https://example.org/licence"
    (tmp_path / "README.md").write_text(f"---\nlicense: other\nlicense_name: gemma\nlicense_link: {link}\n---\n")
    found = licence_of("model", tmp_path, Settings())
    assert (found.names, found.title, found.link) == (("other",), "gemma", link)
    card, _ = card_of("model", licence=found)
    values = front_matter(card)
    assert (values["license"], values["license_name"], values["license_link"]) == ("other", "gemma", link)
    assert "other (gemma), the licence of the source model `model`, which applies to these weights too." in card
    assert card.rstrip().endswith(f"Its text: <{link}>.")


@pytest.mark.parametrize("link", ["javascript:alert(1)", "https://a/> [x](y)", "../../secret", 7])
def test_links_to_licences_are_addresses_or_files_of_the_model(link: Any, tmp_path: Path) -> None:
    values = yaml.safe_dump({"license": "other", "license_name": "a\n# b", "license_link": link})
    (tmp_path / "README.md").write_text(f"---\n{values}---\n")
    assert licence_of("model", tmp_path, Settings()) == Licence(("other",))


def test_a_hub_that_cannot_be_asked_leaves_the_licence_unknown() -> None:
    found = licence_of("org/model", None, Settings(HF_ENDPOINT="http://127.0.0.1:9"), on_hub=True)
    assert not found.names
    assert "could not be asked" in found.why
    local = licence_of("org/model", None, Settings(HF_ENDPOINT="http://127.0.0.1:9"))
    assert local.why == "the source model's folder is not here"
