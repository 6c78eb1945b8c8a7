"""Wrong input ends in one line, exit code 2, within a second or two, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = {
    "missing model": (["-m", "./nope", "-d", "demo"], "does not exist"),
    "missing dataset file": (["-m", "demo", "-d", "./nope.jsonl"], "does not exist"),
    "unknown benchmark": (["-m", "demo", "-d", "gsm9k"], "gsm8k"),
    "no dataset": (["-m", "demo"], "--dataset is missing"),
    "unknown planner": (["-m", "demo", "-d", "demo", "--planner", "tpee"], "tpe"),
    "no key": (["-m", "demo", "-d", "demo", "--planner", "llm"], "OPENAI_API_KEY environment variable not set"),
    "constraint": (["-m", "demo", "-d", "demo", "--constraint", "speed<=1"], "a constraint is"),
    "zero episodes": (["-m", "demo", "-d", "demo", "-e", "0"], "at least 1"),
    "study name": (["-m", "demo", "-d", "demo", "--name", "../x"], "name"),
    "no study file": (["--config", "nope.yaml"], "no study file"),
    "unknown option": (["--fast"], "--help"),
}


def _run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if key not in {"OPENAI_API_KEY"}}
    environment = {**kept, "ACF_HOME": str(home / "state"), "COLUMNS": "300"}
    command = [sys.executable, "-m", "agentic_compression.cli.main", "run", *arguments]
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("case", CASES)
def test_wrong_input_ends_in_one_line(tmp_path: Path, case: str) -> None:
    arguments, words = CASES[case]
    done = _run(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert words in lines[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("one_choice.jsonl", b'{"question": "q", "choices": ["a"], "answer": 0}\n', "choice"),
        ("twice.jsonl", b'{"id": "1", "question": "q", "answer": "a"}\n' * 2, "1"),
        ("latin.jsonl", b'{"text": "caf\xe9"}\n', "UTF-8"),
        ("empty.jsonl", b"", "empty"),
        ("columns.csv", b"prompt,reply\nq,a\n", "column"),
        ("commas.csv", b"question,answer\nAdd, what is 1+1?,2\n", "row 1 has 3 fields"),
        ("columns_twice.csv", b"question,answer,answer\nq,a,b\n", "more than once"),
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n', "line 2"),
    ],
)
def test_a_malformed_dataset_says_what_and_where(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    done = _run(tmp_path, "-m", "demo", "-d", f"./{name}")
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
