"""Every way to store a layer in every format: written, loaded where it is to run, compared; broken ones show."""

from __future__ import annotations

import json
import math
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from agentic_compression.checkpoints import load_checkpoint
from agentic_compression.checkpoints.low_rank_linear import LowRankLinear
from agentic_compression.errors import AcfError, ConfigurationError
from agentic_compression.export import ExportRequest, export_checkpoint, exporting
from agentic_compression.export import build as building
from agentic_compression.export.build import BuildRequest, Built, build
from agentic_compression.export.check import PROMPTS, CheckRequest, check, parting_gap, problem_with, tolerance_of
from agentic_compression.export.dense import make_dense
from agentic_compression.export.plan import plan_export
from agentic_compression.export.targets import open_target
from agentic_compression.records import ExportCheck, ExportFormat, PromptCheck
from agentic_compression.runtimes import GenerationOptions, open_runtime
from agentic_compression.settings import Settings
from tests.unit.export.checkpoints import BY_HAND, STRATEGIES, InProcess, applied, built, checked, made
from tests.unit.methods.bitsandbytes_reference import bitsandbytes
from tests.unit.methods.tiny_models import logits, tiny_model

EVERY = (*STRATEGIES, *BY_HAND)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: made(name, root / name) for name in EVERY}


@pytest.mark.parametrize("name", EVERY)
def test_plain_transformers_answers_alike(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    if name in {"int8", "nf4"}:
        bitsandbytes()
    built(folders[name], "hf", tmp_path / "hf")
    result = checked(folders[name], "hf", tmp_path / "hf", rounds=name in {"int8", "fp8"})
    assert result.passed, result.problem
    assert result.tokens > 100
    own = load_checkpoint(folders[name]).model
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", local_files_only=True).eval()
    expected, got = logits(own).double(), logits(plain).double()
    limit = 0.05 if name in {"int8", "fp8"} else 0.02
    assert float((got - expected).norm() / expected.norm()) < limit


@pytest.mark.parametrize("name", ["zeros", "low_rank", "low_rank_packed", "adapted", "zeros_and_int8"])
def test_what_has_no_standard_form_becomes_dense(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    made_of = built(folders[name], "hf", tmp_path / "hf")
    assert made_of.form == "dense float32"
    assert "quantization_config" not in json.loads((tmp_path / "hf" / "config.json").read_text())
    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    assert tensors["model.layers.0.mlp.up_proj.weight"].shape == (128, 64)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_products_of_quantized_factors_have_the_models_own_width() -> None:
    model = tiny_model("llama", torch.bfloat16)
    pair = LowRankLinear(*(torch.nn.Linear(*shape, bias=False).bfloat16() for shape in ((64, 32), (32, 128))))
    model.model.layers[0].mlp.up_proj = pair
    applied(model, "rtn:bits=8,group_size=32")
    assert make_dense(model) == 14
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", ["rtn4", "rtn8", "int8", "fp8", "zeros_and_int8"])
def test_compressed_tensors_folders_answer_alike(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    built(folders[name], "compressed-tensors", tmp_path / "made")
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    rounds = name in {"int8", "fp8", "zeros_and_int8"}
    result = checked(folders[name], "compressed-tensors", tmp_path / "made", rounds=rounds)
    assert result.passed, result.problem


def test_int8_codes_survive_compressed_tensors_exactly(folders: dict[str, Path], tmp_path: Path) -> None:
    built(folders["int8"], "compressed-tensors", tmp_path / "made")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "made", local_files_only=True).eval()
    own = load_checkpoint(folders["int8"]).model
    name = "model.layers.1.mlp.down_proj"
    logits(plain)  # compressed-tensors unpacks its layers when they first run
    unpacked = plain.get_submodule(name)
    layer = own.get_submodule(name)
    expected = layer.codes.float() * layer.scale.float()[:, None]
    assert torch.allclose(unpacked.weight.float(), expected, rtol=1e-2, atol=1e-6)
    assert torch.equal(unpacked.bias, layer.bias) if layer.bias is not None else unpacked.bias is None


@pytest.mark.parametrize("name", ["dense", "rtn4", "low_rank_packed", "adapted"])
def test_gguf_files_answer_alike(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    made_of = built(folders[name], "gguf", tmp_path / "gguf", "F16")
    assert made_of.form == "F16"
    result = checked(folders[name], "gguf", tmp_path / "gguf")
    assert result.passed, result.problem
    assert result.runtime.startswith("llama.cpp")


@pytest.mark.slow
def test_onnx_graphs_answer_alike_at_any_length(folders: dict[str, Path], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    built(folders["rtn4"], "onnx", tmp_path / "onnx")
    result = checked(folders["rtn4"], "onnx", tmp_path / "onnx")
    assert result.passed, result.problem
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx", providers=["CPUExecutionProvider"])
    own = load_checkpoint(folders["rtn4"], dtype="float32").model
    for rows, tokens in ((1, 1), (3, 11)):
        ids = torch.randint(2, 250, (rows, tokens))
        feed = {"input_ids": ids.numpy(), "attention_mask": torch.ones_like(ids).numpy()}
        with torch.no_grad():
            expected = own(input_ids=ids).logits
        got = torch.from_numpy(session.run(["logits"], feed)[0])
        assert float((got - expected).norm() / expected.norm()) < 0.02


@pytest.mark.parametrize("wanted", ["hf", "gguf"])
def test_a_corrupted_export_does_not_pass(wanted: ExportFormat, folders: dict[str, Path], tmp_path: Path) -> None:
    built(folders["dense"], wanted, tmp_path / "made", "F16" if wanted == "gguf" else None)
    if wanted == "hf":
        path = tmp_path / "made" / "model.safetensors"
        tensors = load_file(path)
        tensors["model.layers.1.mlp.down_proj.weight"].neg_()
        save_file(tensors, path, metadata={"format": "pt"})
    else:
        path = tmp_path / "made" / "model.gguf"
        data = bytearray(path.read_bytes())
        data[-60_000:-30_000] = bytes(30_000)
        path.write_bytes(bytes(data))
    result = checked(folders["dense"], wanted, tmp_path / "made")
    assert not result.passed
    assert "KL divergence" in result.problem


def test_weights_that_miss_are_an_error(folders: dict[str, Path], tmp_path: Path) -> None:
    built(folders["dense"], "hf", tmp_path / "made")
    path = tmp_path / "made" / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.down_proj.weight"]
    path.unlink()
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(AcfError, match=r"misses 1 weights.*down_proj"):
        checked(folders["dense"], "hf", tmp_path / "made")


def test_code_that_comes_with_a_model_is_not_run(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # what transformers asks when nobody has said no
    built(folders["dense"], "hf", tmp_path / "made")
    (tmp_path / "made" / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    path = tmp_path / "made" / "config.json"
    code = {"AutoConfig": "theirs.Config", "AutoModelForCausalLM": "theirs.Model"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model_type": "theirs", "auto_map": code}))
    with pytest.raises(ValueError, match="trust_remote_code"):
        open_target("hf", tmp_path / "made", 1)
    assert not (tmp_path / "ran").exists()


def test_another_tokenizer_is_an_error(folders: dict[str, Path], tmp_path: Path) -> None:
    built(folders["dense"], "hf", tmp_path / "made")
    path = tmp_path / "made" / "tokenizer.json"
    values = json.loads(path.read_text())
    values["post_processor"] = None
    path.write_text(json.dumps(values))
    with pytest.raises(AcfError, match="tokenizer reads"):
        checked(folders["dense"], "hf", tmp_path / "made")


def test_the_checkpoint_itself_is_not_changed(folders: dict[str, Path], tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in folders["zeros"].iterdir()}
    for wanted in ("hf", "gguf"):
        built(folders["zeros"], wanted, tmp_path / wanted)
    assert {path.name: path.read_bytes() for path in folders["zeros"].iterdir()} == before


@pytest.mark.parametrize("name", ["dense", "rtn4"])
def test_an_export_edited_in_place_leaves_the_checkpoint_alone(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    before = {path.name: path.read_bytes() for path in folders[name].iterdir()}
    built(folders[name], "hf", tmp_path / "hf")
    for path in (tmp_path / "hf").iterdir():
        assert not path.samefile(folders[name] / path.name)
        assert path.read_bytes() == before[path.name]
        with path.open("r+b") as file:
            file.write(b"edited")
        path.chmod(0o600)
    assert {path.name: path.read_bytes() for path in folders[name].iterdir()} == before
    assert all(path.stat().st_mode & 0o044 for path in folders[name].iterdir() if path.name == "config.json")


def test_the_space_of_a_copy_is_asked_for(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(building, "require_space", lambda _, needed: asked.append(needed))
    built(folders["dense"], "hf", tmp_path / "hf")
    assert asked == [sum(path.stat().st_size for path in (tmp_path / "hf").iterdir())]


@pytest.mark.parametrize("name", ["dense", "zeros", "nf4", "low_rank", "adapted"])
def test_compressed_tensors_refuses_with_the_reason(name: str, folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigurationError, match=r"compressed-tensors .*; use --format hf"):
        plan_export(folders[name], "compressed-tensors")


@pytest.mark.parametrize("asked", ["IQ2_XXS", "Q9", "q4_k_m"])
def test_gguf_types_that_cannot_be_made_are_refused(asked: str, folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigurationError, match="--type is one of"):
        plan_export(folders["dense"], "gguf", asked)


def test_a_type_without_gguf_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigurationError, match="--type is of GGUF files"):
        plan_export(folders["dense"], "hf", "Q8_0")


def chances(*rows: dict[int, float]) -> NDArray[np.float64]:
    """Log-probabilities over eight tokens, by row; what is not named has the rest."""
    table = np.full((len(rows), 8), np.nan)
    for row, named in enumerate(rows):
        table[row] = (1 - sum(named.values())) / (8 - len(named))
        for token, value in named.items():
            table[row, token] = value
    logs: NDArray[np.float64] = np.log(table)
    return logs


LIKELY = chances({3: 0.8, 4: 0.1, 1: 0.02}, {5: 0.45, 6: 0.4, 1: 0.01}, {2: 0.6, 1: 0.3, 7: 0.02}, {1: 0.9, 2: 0.05})
PARTINGS = [
    ([3, 5, 2], [3, 5, 2], None),
    ([3, 5, 2], [4, 5, 2], math.log(0.8 / 0.1)),
    ([3, 5, 2], [3, 6, 7, 7], math.log(0.45 / 0.4)),
    ([3, 5, 2], [3, 5], math.log(0.6 / 0.3)),  # the export stops early
    ([3, 5], [3, 5, 2], math.log(0.6 / 0.3)),  # and late
    ([3, 5, 2], [], math.log(0.8 / 0.02)),
    ([3, 5], [3, 5, 1, 4], math.inf),  # an end token that no longer ends anything
    ([3, 5, 2], [3, 9, 2], math.inf),  # a token the checkpoint does not have
]


@pytest.mark.parametrize(("expected", "answer", "gap"), PARTINGS)
def test_the_gap_is_that_of_the_tokens_where_answers_part(
    expected: list[int], answer: list[int], gap: float | None
) -> None:
    found = parting_gap(LIKELY, expected, answer, {1})
    assert found == (gap if gap is None else pytest.approx(gap))


def test_answers_that_stop_elsewhere_without_a_tie_do_not_pass() -> None:
    """Distributions that agree on every token excuse no other answer."""
    gap = parting_gap(LIKELY, [3, 5, 2], [], {1})
    prompt = PromptCheck(prompt="p", expected="abc", answer="", same=False, gap=gap)
    problem = problem_with(result_of(0.0, 0.0, 1.0).model_copy(update={"prompts": (prompt,)}))
    assert "they part at tokens 3.69 nats apart" in problem
    lost = prompt.model_copy(update={"gap": math.inf})
    assert "where they part" in problem_with(result_of(0.0, 0.0, 1.0).model_copy(update={"prompts": (lost,)}))
    assert PromptCheck.model_validate_json(lost.model_dump_json()).gap == math.inf


def test_an_export_that_lost_its_end_token_does_not_pass(folders: dict[str, Path], tmp_path: Path) -> None:
    """The answer's second token ends it in the checkpoint; the export's configuration names another end."""
    source = tmp_path / "source"
    shutil.copytree(folders["dense"], source)
    first = checked(source, "hf", folders["dense"])
    assert first.passed
    with closing(open_runtime(str(source), "cpu", 1)) as runtime:
        ids = runtime.tokenizer(PROMPTS[0], verbose=False)["input_ids"]
        end = runtime.generate([ids], GenerationOptions(new_tokens=4), 1)[0].ids[1]
    path = source / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [1, end]}))
    built(source, "hf", tmp_path / "made")
    assert checked(source, "hf", tmp_path / "made").passed
    made_config = tmp_path / "made" / "generation_config.json"
    made_config.write_text(json.dumps(json.loads(made_config.read_text()) | {"eos_token_id": 1}))
    result = checked(source, "hf", tmp_path / "made")
    assert result.mean_kl < 1e-6
    assert not result.passed
    assert "greedy answers to" in result.problem


def faulty_build(request: BuildRequest) -> Built:
    """Halves a projection on the way, whatever the type: a conversion fault that low-bit limits excuse."""
    loaded = load_checkpoint(request.source)
    with torch.no_grad():
        loaded.model.model.layers[1].mlp.down_proj.weight.mul_(0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("agentic_compression.checkpoints.load_checkpoint", lambda _: loaded)
        return build(request)


def test_limits_for_few_bits_excuse_no_fault_of_the_conversion(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here: Any = InProcess()
    state = Settings(ACF_HOME=tmp_path / "state")
    request = ExportRequest(source=str(folders["dense"]), format="gguf", gguf_type="Q2_K", output=tmp_path / "made")
    record = export_checkpoint(request, state, here)
    note = next(note for note in record.notes if note.startswith("rounding of Q2_K measured: KL divergence"))
    assert note in (tmp_path / "made" / "README.md").read_text().replace("\\", "")
    assert sorted(path.name for path in tmp_path.glob("made/*.gguf")) == ["model.gguf"]
    monkeypatch.setattr(exporting, "_BUILD", f"{__name__}:faulty_build")
    (tmp_path / "tried").mkdir()
    plan = plan_export(folders["dense"], "gguf", "Q2_K")
    faulty_build(
        BuildRequest(source=str(folders["dense"]), folder=str(tmp_path / "tried"), plan=plan, gguf_type="Q2_K")
    )
    lax = CheckRequest(
        source=str(folders["dense"]), folder=str(tmp_path / "tried"), format="gguf", tolerance=tolerance_of("Q2_K")
    )
    assert check(lax).passed, "the fault is one that the lax limits let through"
    with pytest.raises(AcfError, match="the conversion itself is at fault"):
        export_checkpoint(request.model_copy(update={"output": tmp_path / "broken"}), state, here)
    assert not (tmp_path / "broken").exists()


def result_of(mean: float, largest: float, agreement: float) -> ExportCheck:
    return ExportCheck(
        runtime="a", reference="b", prompts=(), tokens=9, top1_agreement=agreement, mean_kl=mean, max_kl=largest,
        tolerance=tolerance_of(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("mean", "largest", "agreement", "said"),
    [(0.01, 0.1, 0.95, ""), (0.03, 0.1, 0.95, "a token"), (0.01, 0.6, 0.95, "up to"), (0.01, 0.1, 0.8, "agree on")],
)
def test_each_limit_is_held(mean: float, largest: float, agreement: float, said: str) -> None:
    problem = problem_with(result_of(mean, largest, agreement))
    assert said in problem
    assert bool(problem) == bool(said)


def test_fewer_bits_may_differ_by_more() -> None:
    allowed = [tolerance_of(name).mean_kl for name in ("F16", "Q8_0", "Q6_K", "Q5_K_M", "IQ4_XS", "Q3_K_S", "Q2_K")]
    assert allowed == sorted(allowed)
    assert tolerance_of("F32") == tolerance_of("BF16") == tolerance_of()
