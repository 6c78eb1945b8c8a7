"""The Hub over a real socket: a small server that speaks the few routes that are asked."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from agentic_compression.errors import ModelError
from agentic_compression.records import MethodDescription
from agentic_compression.settings import Settings
from agentic_compression.spec import hub, infer_spec, preferred_methods
from tests.unit.spec.checkpoints import CONFIG, PARAMETERS, tensors


class _Hub(ThreadingHTTPServer):
    """Answers ``/api/models/<id>`` and ``/<id>/resolve/main/<file>`` from dictionaries; counts requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.failures: list[int] = []
        self.requests: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, model: str, *, config: dict[str, Any] | None, **info: Any) -> None:
        names = info.pop("names", ["config.json", "model.safetensors"])
        self.models[model] = {"id": model, "siblings": [{"rfilename": name} for name in names], "gated": False, **info}
        if config is not None:
            self.files[f"{model}/config.json"] = json.dumps(config).encode()


class _Handler(BaseHTTPRequestHandler):
    server: _Hub

    def do_GET(self) -> None:  # noqa: PLR0911
        path = self.path.partition("?")[0]
        self.server.requests.append((path, self.headers.get("Authorization")))
        if self.server.failures:
            return self._send(self.server.failures.pop(0), b"{}")
        if path.startswith("/api/models/"):
            model = self.server.models.get(path.removeprefix("/api/models/"))
            if model is None:
                return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            return self._send(200, json.dumps(model).encode())
        model_id, _, name = path.lstrip("/").partition("/resolve/main/")
        content = self.server.files.get(f"{model_id}/{name}")
        gated = self.server.models.get(model_id, {}).get("gated")
        if gated and not self.headers.get("Authorization"):
            return self._send(401, b"{}", {"X-Error-Code": "GatedRepo"})
        if content is None:
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        if span := self.headers.get("Range"):
            first, last = span.removeprefix("bytes=").split("-")
            return self._send(206, content[int(first) : int(last) + 1])
        return self._send(200, content)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@pytest.fixture
def server(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Hub]:
    monkeypatch.setattr(hub, "_BASE_SECONDS", 0.001)
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with _Hub() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running
        running.shutdown()
        thread.join()


_COUNTS = {"parameters": {"BF16": PARAMETERS}, "total": PARAMETERS}


def test_infer_spec_uses_hub_metadata(server: _Hub) -> None:
    server.add("org/small", config=CONFIG, safetensors=_COUNTS)
    spec = infer_spec("org/small", settings=Settings())
    assert spec.parameters == PARAMETERS
    assert spec.sources[0].source == "hub_metadata"
    assert (spec.family, spec.layers, spec.dtype, spec.gated, spec.path) == ("llama", 1, "bfloat16", False, None)
    assert spec.bytes_per_parameter == 2


def test_infer_spec_downloads_no_weights_and_writes_no_cache(server: _Hub, home: Path) -> None:
    server.add("org/small", config=CONFIG, safetensors=_COUNTS)
    infer_spec("org/small", settings=Settings())
    assert [path for path, _ in server.requests] == ["/api/models/org/small", "/org/small/resolve/main/config.json"]
    assert not list(home.rglob("*.json"))


def test_infer_spec_counts_tied_embeddings_of_the_hub_once(server: _Hub) -> None:
    server.add("org/tied", config={**CONFIG, "tie_word_embeddings": True}, safetensors=_COUNTS)
    assert infer_spec("org/tied", settings=Settings()).parameters == PARAMETERS - 24 * 16


def test_infer_spec_reads_remote_headers_when_the_model_is_quantized(server: _Hub) -> None:
    content = tensors()
    for name in [name for name in content if "_proj" in name]:
        weight = content.pop(name)
        content[name.removesuffix("weight") + "qweight"] = np.zeros((weight.shape[1] // 8, weight.shape[0]), np.int32)
        content[name.removesuffix("weight") + "scales"] = np.zeros((1, weight.shape[0]), np.float16)
    quantization = {"quant_method": "gptq", "bits": 4}
    server.add("org/int4", config={**CONFIG, "quantization_config": quantization}, safetensors=_COUNTS)
    server.files["org/int4/model.safetensors"] = save(content)
    spec = infer_spec("org/int4", settings=Settings())
    assert spec.parameters == PARAMETERS
    assert spec.dtype == "int4"


def test_infer_spec_names_the_licence_page_when_a_model_is_gated(server: _Hub) -> None:
    server.add("org/gated", config=CONFIG, safetensors=_COUNTS, gated="manual")
    with pytest.raises(
        ModelError, match=r"org/gated is gated; accept its licence at .*/org/gated and set HF_TOKEN"
    ) as e:
        infer_spec("org/gated", settings=Settings())
    assert "\n" not in str(e.value)


def test_infer_spec_sends_the_token_and_never_shows_it(server: _Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    server.add("org/gated", config=CONFIG, safetensors=_COUNTS, gated="auto")
    spec = infer_spec("org/gated", settings=Settings())
    assert spec.gated is True
    assert {token for _, token in server.requests} == {"Bearer hf_secret"}
    assert "hf_secret" not in spec.model_dump_json()


def test_infer_spec_suggests_a_listed_model_when_missing(server: _Hub) -> None:
    with pytest.raises(ModelError, match=r"does not exist on .*did you mean .*Qwen/Qwen2.5-7B"):
        infer_spec("Qwen/Qwen2.5-7Bb", settings=Settings())


@pytest.mark.parametrize("failures", [[429], [503, 500], [429, 502, 504]])
def test_infer_spec_retries_when_the_hub_is_busy(server: _Hub, failures: list[int]) -> None:
    server.add("org/small", config=CONFIG, safetensors=_COUNTS)
    server.failures = list(failures)
    assert infer_spec("org/small", settings=Settings()).parameters == PARAMETERS
    assert len(server.requests) == 2 + len(failures)


def test_infer_spec_falls_to_the_table_when_the_hub_stays_down(server: _Hub) -> None:
    server.failures = [503] * 50
    spec = infer_spec("Qwen/Qwen2.5-0.5B", settings=Settings())
    assert spec.parameters == 494_032_768
    assert spec.sources[0].source == "size_table"
    assert "status 503 after 4 attempts" in spec.warnings[0]
    assert len(server.requests) == 4


def test_infer_spec_refuses_pickle_only_models(server: _Hub) -> None:
    server.add("org/old", config=CONFIG, names=["config.json", "pytorch_model.bin"])
    with pytest.raises(ModelError, match="only pickle weights"):
        infer_spec("org/old", settings=Settings())


def test_infer_spec_refuses_models_of_another_kind(server: _Hub) -> None:
    server.add("org/bert", config={"model_type": "bert", "architectures": ["BertModel"]}, safetensors=_COUNTS)
    with pytest.raises(ModelError, match="not a causal language model"):
        infer_spec("org/bert", settings=Settings())


@pytest.fixture
def offline(home: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(hub, "_BASE_SECONDS", 0.001)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
    return Settings()


def test_infer_spec_uses_table_then_name_when_offline(offline: Settings) -> None:
    table = infer_spec("meta-llama/Llama-2-7b-hf", settings=offline)
    assert [source.source for source in table.sources] == ["size_table", "name"]
    assert (table.parameters, table.gated, table.size_class) == (6_738_415_616, True, "medium")
    named = infer_spec("some-org/new-model-13b", settings=offline)
    assert [source.source for source in named.sources] == ["name"]
    assert (named.parameters, named.family, named.layers) == (13_000_000_000, "unknown", None)
    assert any("assumed" in warning for warning in named.warnings)


def test_infer_spec_warns_when_table_and_name_disagree(offline: Settings) -> None:
    spec = infer_spec("google/gemma-7b", settings=offline)
    assert any("8,537,680,896" in warning and "7,000,000,000" in warning for warning in spec.warnings)


def test_infer_spec_says_so_when_nothing_answers(offline: Settings) -> None:
    with pytest.raises(ModelError, match="nothing is known of model some-org/mystery"):
        infer_spec("some-org/mystery", settings=offline)


def test_preferred_methods_offers_only_what_is_available() -> None:
    def method(name: str, category: Any, calibration: bool, available: bool = True) -> MethodDescription:
        return MethodDescription(name=name, category=category, summary="", paper="", needs_calibration=calibration,
                                 available=available, unavailable_reason=None if available else "no GPU")  # fmt: skip

    methods = [
        method("round", "quantization", False),
        method("prune", "pruning", False),
        method("calibrated", "quantization", True),
        method("absent", "quantization", True, available=False),
    ]
    assert preferred_methods("tiny", methods) == ("calibrated", "prune", "round")
    assert preferred_methods("huge", methods) == ("round", "calibrated", "prune")
