"""Checkpoints that are served, and the servers' launcher; started once, because importing torch takes seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from agentic_compression.demo import model_path

if TYPE_CHECKING:
    from tests.integration.serving_servers import Running, Servers


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    from tests.integration.serving_servers import Servers

    servers = Servers(tmp_path_factory.mktemp("servers"))
    yield servers
    servers.close()


@pytest.fixture(scope="session")
def served_folders(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model in float32, in 8 bits, and as GGUF in float16; made while the launcher imports its libraries."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from agentic_compression.methods.compress import compress
    from agentic_compression.methods.request import CompressionRequest
    from agentic_compression.records import Strategy

    root = tmp_path_factory.mktemp("served")
    dense = root / "dense"
    AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32).save_pretrained(dense)
    AutoTokenizer.from_pretrained(model_path()).save_pretrained(dense)
    folders = {"dense": dense}
    for name, strategy in {"packed": "rtn:bits=8,group_size=128", "gguf": "gguf:type=F16"}.items():
        outcome = compress(
            CompressionRequest(
                model_path=str(dense),
                base_digest="demo",
                strategy=Strategy.parse(strategy),
                checkpoints_root=str(root / "made"),
                threads=1,
            )
        )
        assert outcome.checkpoint is not None, outcome.error
        folders[name] = Path(outcome.checkpoint.path)
    return folders


@pytest.fixture(scope="session")
def endless_folders(served_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two of them without a token that ends an answer, so that answers are as long as a test needs."""
    root = tmp_path_factory.mktemp("endless")
    folders = {}
    for form in ("dense", "gguf"):
        folders[form] = shutil.copytree(served_folders[form], root / form)
        for name in ("tokenizer_config.json", "generation_config.json", "config.json"):
            values = json.loads((folders[form] / name).read_text())
            kept = {key: value for key, value in values.items() if not key.startswith("eos_token")}
            (folders[form] / name).write_text(json.dumps(kept))
    return folders


@pytest.fixture(scope="session")
def server(servers: Servers, served_folders: dict[str, Path]) -> Iterator[Running]:
    """All three checkpoints behind one server."""
    with servers.running(dict(served_folders), settings={"ACF_SERVE_MAX_BODY_BYTES": 50_000}) as running:
        yield running
