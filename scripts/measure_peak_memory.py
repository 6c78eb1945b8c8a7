"""What compressing a large model needs at its peak, beside the model's own bytes.

    python scripts/measure_peak_memory.py 1b docs/measurements/peak_memory_1b.json

A model with random bfloat16 weights is made (`scripts/make_random_model.py`), then every strategy compresses it in a
fresh process. The peak is the growth of that process, the loaded model included. Calibration is 8 texts of at least
512 tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STRATEGIES = ("rtn:bits=4,group_size=128", "gptq:bits=4,group_size=128", "gguf:type=Q4_K_M", "gguf:type=Q8_0")
TEXTS, TOKENS = 8, 512


def main() -> None:
    """Read the command line, measure, write JSON and a Markdown table beside it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("size", help="of scripts/make_random_model.py")
    parser.add_argument("output", type=Path)
    parser.add_argument("--only", default="", help="strategies that contain this text")
    arguments = parser.parse_args()
    known = json.loads(arguments.output.read_text())["rows"] if arguments.output.exists() else []
    done = {row["strategy"] for row in known}
    with tempfile.TemporaryDirectory(prefix="acf-peak-") as root:
        os.environ["ACF_HOME"] = root
        base = Path(root) / "base"
        maker = ROOT / "scripts" / "make_random_model.py"
        subprocess.run([sys.executable, str(maker), arguments.size, str(base)], check=True)
        for strategy in STRATEGIES:
            if strategy not in done and arguments.only in strategy:
                known.append(measure(base, Path(root), strategy))
                print(f"{strategy}: {known[-1]['ratio']:.3f} x, {known[-1]['seconds']:.0f} s", flush=True)
                document = {"command": f"scripts/measure_peak_memory.py {arguments.size}", "rows": known}
                arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    arguments.output.with_suffix(".md").write_text(table(arguments.size, known))


def measure(base: Path, root: Path, strategy: str) -> dict[str, Any]:
    """Compress in a fresh process and return what it took."""
    from agentic_compression.execution import shared_supervisor
    from agentic_compression.methods.request import CompressionRequest
    from agentic_compression.records import CompressionOutcome, Strategy
    from agentic_compression.storage import folder_bytes

    shared_supervisor().start()
    texts = root / "texts.jsonl"
    words = " ".join(f"w{number}" for number in range(TOKENS))  # three tokens a word or more: no vocabulary is known
    texts.write_text("".join(json.dumps({"text": f"{number} {words}"}) + "\n" for number in range(TEXTS)))
    request = CompressionRequest(
        model_path=str(base),
        base_digest=base.name,
        strategy=Strategy.parse(strategy),
        calibration_path=str(texts),
        calibration_digest="texts",
        calibration_samples=TEXTS,
        calibration_tokens=TOKENS,
        checkpoints_root=str(root / "checkpoints"),
    )
    done = shared_supervisor().run("agentic_compression.methods.compress:compress", request, timeout_s=3600)
    assert done.result is not None, done.error
    outcome = CompressionOutcome.model_validate(done.result)
    assert outcome.checkpoint is not None, outcome.error
    size = folder_bytes(base)
    return {
        "strategy": strategy,
        "model_bytes": size,
        "peak_bytes": outcome.peak_bytes,
        "ratio": outcome.peak_bytes / size,
        "seconds": done.wall_seconds,
        "checkpoint_bytes": outcome.checkpoint.size_bytes,
    }


def table(size: str, rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        f"# Peak memory of compressing a {size} model",
        "",
        f"`python scripts/measure_peak_memory.py {size} FILE.json` · random bfloat16 weights, CPU, fresh processes; "
        f"the peak is the process's growth, the model included; {TEXTS} x {TOKENS} calibration tokens",
        "",
        "| strategy | model GB | peak GB | peak / model | seconds | checkpoint GB |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{row['strategy']}` | {row['model_bytes'] / 1e9:.2f} | {row['peak_bytes'] / 1e9:.2f} "
        f"| {row['ratio']:.2f} | {row['seconds']:.0f} | {row['checkpoint_bytes'] / 1e9:.2f} |"
        for row in rows
    ]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
