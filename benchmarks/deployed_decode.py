"""Decoding speed of a model as it is deployed, and where the speed comes from.

    python -m benchmarks.deployed_decode [--size 125m] [--output FILE.json] [--threads 2] [--only NAME ...]

The weights are random: speed and bytes do not depend on their values. Every candidate is compressed by the package,
then each round loads every candidate in a fresh process and times decoding through its own runtime; the figure is the
median over rounds. Three ratios are told apart: what the runtime alone gave (GGUF F16 over torch float32), what
compression gave on top (candidate over GGUF F16), and how near decoding comes to its floor, the bytes that one token
must read over the bandwidth measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PROMPT, NEW_TOKENS, REPEATS = 16, 64, 3
CANDIDATES = {
    "torch float32": "float32",
    "torch bfloat16": "bfloat16",
    "torch, rtn 4 bits": "rtn:bits=4,group_size=128",
    "torch, int8": "int8",
    "torch, nf4": "nf4",
    "GGUF F16": "gguf:type=F16",
    "GGUF Q8_0": "gguf:type=Q8_0",
    "GGUF Q4_K_M": "gguf:type=Q4_K_M",
    "GGUF Q4_0": "gguf:type=Q4_0",
    "GGUF Q3_K_M": "gguf:type=Q3_K_M",
    "GGUF Q2_K": "gguf:type=Q2_K",
    "channels -30 %, GGUF Q4_K_M": "drop_channels:share=0.3 | gguf:type=Q4_K_M",
    "channels -30 %, GGUF Q4_0": "drop_channels:share=0.3 | gguf:type=Q4_0",
    "layers -30 %, channels -30 %, GGUF Q4_0": (
        "drop_layers:share=0.3,criterion=influence | drop_channels:share=0.3 | gguf:type=Q4_0"
    ),
}
_TIME = """
import json, sys, torch
torch.set_num_threads(int(sys.argv[2]))
from agentic_compression.runtimes.select import open_runtime
runtime = open_runtime(sys.argv[1], threads=int(sys.argv[2]))
prompt = [token % runtime.vocabulary for token in range(3, 3 + int(sys.argv[3]))]
new = int(sys.argv[4])
with torch.inference_mode():
    runtime.time_request(prompt, new)
    runs = [runtime.time_request(prompt, new) for _ in range(int(sys.argv[5]))]
rates = [1000 * (new - 1) / (run.request_ms - run.first_token_ms) for run in runs]
print("RATES", json.dumps(rates), runtime.weights_bytes)
"""
_BANDWIDTH = """
import sys
from agentic_compression.runtimes.machine_speed import reading_bandwidth, with_threads
with with_threads(int(sys.argv[1])):
    print("BANDWIDTH", reading_bandwidth())
"""


def main() -> None:
    """Build the candidates, time them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", default="125m", help="of scripts/make_random_model.py")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="these candidates only")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="acf-decode-") as root:
        wanted = [name for name in CANDIDATES if not arguments.only or name in arguments.only]
        folders = build(Path(root), arguments.size, wanted)
        rates: dict[str, list[float]] = {name: [] for name in folders}
        bandwidth = 0.0
        for number in range(arguments.rounds):
            bandwidth = max(bandwidth, float(run(_BANDWIDTH, "BANDWIDTH", str(arguments.threads))[0]))
            for name, folder in folders.items():
                rates[name].append(time_one(folder, arguments.threads))
                print(f"round {number + 1}: {name}: {rates[name][-1]:.1f} tokens/s", file=sys.stderr, flush=True)
        rows = [row(name, folder, rates[name], bandwidth) for name, folder in folders.items()]
    sizes = {"size": arguments.size, "threads": arguments.threads}
    document = {**sizes, "bandwidth_gb_per_s": bandwidth / 1e9, "rows": relate(rows)}
    if arguments.output:
        arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    print(table(document))


def build(root: Path, size: str, names: list[str]) -> dict[str, Path]:
    """One folder a candidate."""
    from agentic_compression.methods import CompressionRequest, compress
    from agentic_compression.records import Strategy

    base = root / "base"
    subprocess.run([sys.executable, str(ROOT / "scripts" / "make_random_model.py"), size, str(base)], check=True)
    texts = ROOT / "agentic_compression" / "demo" / "data" / "train_sample.jsonl"
    folders = {}
    for name in names:
        strategy = CANDIDATES[name]
        if strategy == "bfloat16":
            folders[name] = base
        elif strategy == "float32":
            folders[name] = widen(base, root / "float32")
        else:
            request = CompressionRequest(
                model_path=str(base),
                base_digest="random",
                strategy=Strategy.parse(strategy),
                calibration_path=str(texts),
                calibration_digest="demo",
                calibration_samples=16,
                checkpoints_root=str(root / "made"),
            )
            made = compress(request).checkpoint
            assert made is not None
            folders[name] = Path(made.path)
        print(f"built {name}", file=sys.stderr, flush=True)
    return folders


def widen(base: Path, folder: Path) -> Path:
    """The same model stored in float32."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()

    AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


def run(code: str, mark: str, *arguments: str) -> list[str]:
    """Run code in a fresh interpreter and return the words after the mark it prints."""
    ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    found = [line for line in ran.stdout.splitlines() if line.startswith(mark)]
    if not found:
        raise RuntimeError(f"the timed process failed: {ran.stderr[-1000:]}")
    return found[0].removeprefix(mark).strip().rsplit(" ", 1)


def time_one(folder: Path, threads: int) -> float:
    """Median decoding rate of one fresh process, tokens a second."""
    numbers = (str(threads), str(PROMPT), str(NEW_TOKENS), str(REPEATS))
    rates, _ = run(_TIME, "RATES", str(folder), *numbers)
    return statistics.median(json.loads(rates))


def bytes_per_token(folder: Path) -> int:
    """Bytes of the weights that decoding one token reads."""
    from agentic_compression.runtimes.select import llama_file
    from agentic_compression.runtimes.token_costs import cost_of_gguf, cost_of_model

    file = llama_file(folder)
    if file is not None:
        return cost_of_gguf(file).bytes_read
    from agentic_compression.checkpoints import load_checkpoint

    return cost_of_model(load_checkpoint(folder).model).bytes_read


def row(name: str, folder: Path, rates: list[float], bandwidth: float) -> dict[str, Any]:
    """What was measured of one candidate."""
    read, rate = bytes_per_token(folder), statistics.median(rates)
    shipped = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in {".gguf", ".safetensors"})
    return {
        "name": name,
        "strategy": CANDIDATES[name],
        "weights_bytes": shipped,
        "bytes_per_token": read,
        "tokens_per_s": rate,
        "rates": rates,
        "of_floor": rate * read / bandwidth,
    }


def relate(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add the ratios to torch float32 and to GGUF F16, where those were measured."""
    by_name = {item["name"]: item["tokens_per_s"] for item in rows}
    for item in rows:
        for field, against in (("over_float32", "torch float32"), ("over_gguf_f16", "GGUF F16")):
            item[field] = item["tokens_per_s"] / by_name[against] if against in by_name else None
    return rows


def table(document: dict[str, Any]) -> str:
    """Markdown."""
    lines = [
        f"{document['size']} model, {document['threads']} threads, "
        f"measured read bandwidth {document['bandwidth_gb_per_s']:.1f} GB/s",
        "",
        "| candidate | weights MB | MB read a token | tokens/s | over torch float32 | over GGUF F16 | of the floor |",
        "|---|---|---|---|---|---|---|",
    ]
    for item in document["rows"]:
        ratios = [f"{item[key]:.2f}×" if item[key] else "" for key in ("over_float32", "over_gguf_f16")]
        lines.append(
            f"| {item['name']} | {item['weights_bytes'] / 1e6:.1f} | {item['bytes_per_token'] / 1e6:.1f} "
            f"| {item['tokens_per_s']:.1f} | {' | '.join(ratios)} | {item['of_floor']:.0%} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
