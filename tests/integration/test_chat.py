"""``acf chat`` as a process: answers, what they took, two models side by side, and Ctrl-C in a terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from agentic_compression.demo import model_path
from agentic_compression.runtimes import GenerationOptions, open_runtime

PATIENCE_S = 240.0
COMMAND = [sys.executable, "-m", "agentic_compression.cli.main", "chat"]
QUESTION = "Put 6 3 4 3 3 in order."


def test_two_models_answer_each_line_and_what_it_took_is_told(home: Path, served_folders: dict[str, Path]) -> None:
    gguf = str(served_folders["gguf"])
    done = subprocess.run(
        [*COMMAND, "demo", "--versus", gguf, "--temperature", "0", "--json", "--max-tokens", "20"],
        input=f"{QUESTION}\nPut 9 1 in order.\n/reset\n\n{QUESTION}\n",
        env={**os.environ, "ACF_HOME": str(home)},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    replies = [json.loads(line) for line in done.stdout.splitlines()]
    assert [reply["model"] for reply in replies] == ["demo", gguf] * 3
    runtime = open_runtime(model_path(), threads=1)
    ids = runtime.tokenizer(f"<s>Question: {QUESTION}\nAnswer:", add_special_tokens=False)["input_ids"]
    (expected,) = runtime.generate([ids], GenerationOptions(20), 1)
    for first, again in ((replies[0], replies[4]), (replies[1], replies[5])):
        assert first["text"] == again["text"] == expected.text
        assert first["prompt_tokens"] == again["prompt_tokens"] == len(ids)
    assert replies[2]["prompt_tokens"] > len(ids), "what was said before is asked too"
    for reply in replies:
        assert reply["joules"] > 0
        assert reply["energy_source"] in {"estimated", "measured"}
        assert reply["memory_bytes"] > 1_000_000
        assert 0 < reply["first_token_s"] <= reply["seconds"]
        assert reply["joules_per_token"] * reply["tokens"] == pytest.approx(reply["joules"])
    assert "/reset forgets" in done.stderr


def test_ctrl_c_stops_the_answer_and_not_the_program(home: Path, endless_folders: dict[str, Path]) -> None:
    ours, theirs = pty.openpty()
    command = [*COMMAND, str(endless_folders["dense"]), "--max-tokens", "480"]
    environment = {**os.environ, "ACF_HOME": str(home), "TERM": "xterm"}
    os.set_blocking(ours, False)

    def read_until(enough: Callable[[bytes], bool]) -> None:
        """Read the terminal until what came since the last call is enough."""
        seen, deadline = b"", time.monotonic() + PATIENCE_S
        while not enough(seen):
            assert time.monotonic() < deadline, seen
            assert program.poll() is None, seen
            try:
                seen += os.read(ours, 65_536)
            except BlockingIOError:
                time.sleep(0.01)

    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, cwd=home) as program:
        read_until(lambda seen: b"stops an answer" in seen and b"> " in seen)
        loaded = psutil.Process(program.pid).children(recursive=True)
        os.write(ours, b"Once there was\n")
        read_until(lambda seen: len(seen) > 60)  # the echo and the beginning of the answer
        program.send_signal(signal.SIGINT)
        read_until(lambda seen: b"stopped" in seen and b"> " in seen)
        program.send_signal(signal.SIGINT)  # at the prompt: a hint, not the end
        read_until(lambda seen: b"/quit" in seen)
        os.write(ours, b"/quit\n")
        assert program.wait(60) == 0
    assert loaded
    assert not [child for child in loaded if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    os.close(ours)
    os.close(theirs)
