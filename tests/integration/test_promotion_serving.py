"""``mlflow models serve`` over a real socket, with the demo model behind a registered version."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentic_compression import demo
from agentic_compression.checkpoints import checkpoint_ref
from agentic_compression.records import BASELINE, SmokeResult
from agentic_compression.registry.mlflow_model import write_mlflow_model
from agentic_compression.registry.smoke import SmokeRequest, smoke
from agentic_compression.tracking import open_client

pytestmark = pytest.mark.slow

PROMPT = "Question: Reverse the list lamp net knife cup.\nAnswer:"
OTHERS = ["Question: Sort the digits 2 7 2 9 8.\nAnswer:", "Once there was a"]
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registry with ``served@champion``; its address."""
    folder = tmp_path_factory.mktemp("served")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    client = open_client(uri)
    stored = folder / "stored"
    shutil.copytree(demo.model_path(), stored)
    source = write_mlflow_model(folder / "models", "served", checkpoint_ref(stored, BASELINE.key), PROMPT)
    client.create_registered_model("served")
    client.create_model_version("served", source=source.as_uri())
    client.set_registered_model_alias("served", "champion", "1")
    return uri


@pytest.fixture(scope="module")
def address(registry: str) -> Iterator[str]:
    """The scoring server's address, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "MLFLOW_TRACKING_URI": registry,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/served@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        _wait(f"http://127.0.0.1:{port}/ping", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=60)


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline:
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    pytest.fail("the server did not answer in time")


def _ask(address: str, body: dict[str, object]) -> list[str]:
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        found: list[str] = json.loads(answer.read())["predictions"]
        return found


@pytest.mark.timeout(900)
def test_a_served_version_answers_as_its_checkpoint(address: str) -> None:
    answers = _ask(address, {"inputs": [PROMPT], "params": {"max_new_tokens": 8}})
    assert answers == [" cup knife net lamp"]
    assert _ask(address, {"dataframe_split": {"columns": ["prompt"], "data": [[PROMPT]]}})[0].startswith(answers[0])


def _greedy(prompt: str, new_tokens: int) -> str:
    """transformers alone, the arg max of every step without a cache."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(demo.model_path())
    model: Any = AutoModelForCausalLM.from_pretrained(demo.model_path(), dtype="auto")
    ids = tokenizer(prompt)["input_ids"]
    begin = len(ids)
    with torch.no_grad():
        for _ in range(new_tokens):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
    return str(tokenizer.decode(ids[begin:], skip_special_tokens=True))


@pytest.mark.timeout(900)
def test_answers_of_several_lengths_are_the_checkpoints_greedy_ones(address: str) -> None:
    prompts = [PROMPT, *OTHERS]
    answers = _ask(address, {"inputs": prompts, "params": {"max_new_tokens": 12}})
    assert answers == [_greedy(prompt, 12) for prompt in prompts]
    assert len(set(answers)) == len(prompts)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "body",
    [{"nonsense": [PROMPT]}, {"inputs": ["word " * 5000]}, {"inputs": [PROMPT], "params": {"max_new_tokens": 0}}],
)
def test_wrong_input_is_the_callers_error_and_the_server_goes_on(address: str, body: dict[str, object]) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        _ask(address, body)
    assert refused.value.code == 400
    assert _ask(address, {"inputs": [PROMPT], "params": {"max_new_tokens": 1}})


@pytest.mark.timeout(900)
def test_the_smoke_test_tells_a_working_version_from_a_broken_one(registry: str, tmp_path: Path) -> None:
    result = smoke(SmokeRequest(uri="models:/served@champion", registry=registry))
    assert result == SmokeResult(
        uri="models:/served@champion",
        prompt=PROMPT,
        answer=result.expected,
        expected=result.expected,
        passed=True,
    )
    assert result.expected.startswith(" cup knife net lamp")
