"""Take a model through every compression method and write what came of it as a table.

    python scripts/measure_methods.py demo demo docs/measurements/methods_demo.json --threads 1 --steps 100
    python scripts/measure_methods.py MODEL_FOLDER TEXTS.jsonl docs/measurements/methods_stories260k.json

The rows are kept in the JSON file as they are measured: run again, it goes on where it stopped. Beside it a Markdown
table of the same name is written. Every row is one strategy, compressed and measured in fresh processes exactly as an
episode is; ``reload`` says what a further fresh process found: the largest difference between the logits of plain
transformers and of this package, or that two loads agree, or that llama.cpp itself was what was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

GROUP = "group_size=32"
HEAL = "distill"
STRATEGIES = (
    "baseline",
    "gguf:type=F16",
    *(f"rtn:bits={bits},{GROUP}" for bits in (8, 4, 3, 2)),
    *(f"gptq:bits={bits},{GROUP}" for bits in (8, 4, 3, 2)),
    f"awq:bits=4,{GROUP}",
    *(f"autoround:bits={bits},{GROUP}" for bits in (8, 4, 3, 2)),
    "mixed_precision:target_bits=4.5",
    "mixed_precision:target_bits=3.5",
    "int8",
    "nf4",
    *(f"gguf:type={kind}" for kind in ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q3_K_M", "Q2_K")),
    *(f"{method}:sparsity={share}" for share in (0.3, 0.5) for method in ("magnitude", "wanda", "sparsegpt")),
    *(f"{method}:pattern=2:4" for method in ("magnitude", "wanda", "sparsegpt")),
    "drop_layers:share=0.2",
    "drop_heads:share=0.3",
    "drop_channels:share=0.3",
    *(f"{method}:rank_ratio={share}" for share in (0.9, 0.7) for method in ("asvd", "svd_llm")),
    f"magnitude:sparsity=0.5 | {HEAL}",
    f"wanda:sparsity=0.5 | {HEAL}",
    "wanda:sparsity=0.5 | lora",
    f"drop_channels:share=0.3 | {HEAL}",
    "drop_channels:share=0.3 | lora",
    f"drop_layers:share=0.2 | {HEAL}",
    f"svd_llm:rank_ratio=0.7 | {HEAL}",
    *(f"gptq:bits={bits},{GROUP} | {HEAL}" for bits in (4, 3, 2)),
    "nf4 | qlora",
    f"gptq:bits=3,{GROUP} | qlora",
    f"wanda:sparsity=0.3 | gptq:bits=4,{GROUP}",
    f"drop_channels:share=0.2 | {HEAL} | gptq:bits=4,{GROUP}",
    f"drop_channels:share=0.2 | {HEAL} | gguf:type=Q4_K_M",
)
_RELOAD = """
import sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM
from agentic_compression.checkpoints import load_checkpoint
folder = Path(sys.argv[1])
ours = load_checkpoint(folder).model
ids = torch.arange(5, 37).unsqueeze(0) % ours.config.vocab_size
with torch.inference_mode():
    mine = ours(input_ids=ids).logits.float()
    other = (AutoModelForCausalLM.from_pretrained(folder, dtype="auto") if sys.argv[2] == "transformers"
             else load_checkpoint(folder).model)(input_ids=ids).logits.float()
spread = float(mine.std())
agreement = float((mine.argmax(-1) == other.argmax(-1)).float().mean())
print("DIFFERENCE", float((mine - other).abs().max()) / spread, agreement)
"""


def main() -> None:
    """Read the command line, measure what is missing, write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("output", type=Path)
    parser.add_argument("--only", help="strategies that contain this text")
    parser.add_argument("--limit", type=int, default=300, help="items a task")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--steps", type=int, default=None, help="training steps of every healing stage")
    arguments = parser.parse_args()
    rows = json.loads(arguments.output.read_text())["rows"] if arguments.output.exists() else []
    with tempfile.TemporaryDirectory(prefix="acf-measure-") as root:
        os.environ["ACF_HOME"] = root
        bench = Measurements(arguments)
        done = {row["strategy"] for row in rows}
        listed = [with_steps(text, arguments.steps) for text in STRATEGIES]
        wanted = [text for text in listed if text not in done and (arguments.only or "") in text]
        for number, text in enumerate(wanted, start=1):
            row = bench.measure(text)
            rows.append(row)
            shown = row["error"] or f"{row['bytes']:,} bytes, accuracy {row['accuracy']:.4f}, {row['reload']}"
            print(f"{number}/{len(wanted)} {text}: {shown}", flush=True)
            given = [Path(text).name if "/" in text else text for text in sys.argv[1:]]
            document = {
                "model": Path(arguments.model).name,
                "command": " ".join(["scripts/measure_methods.py", *given]),
                "machine": bench.machine,
                "rows": rows,
            }
            arguments.output.write_text(json.dumps(document, indent=1) + "\n")
    arguments.output.with_suffix(".md").write_text(table(json.loads(arguments.output.read_text())))


def with_steps(text: str, steps: int | None) -> str:
    """The strategy with the number of steps written into its training stages."""
    return text if steps is None else re.sub(r"(distill|lora)(?=$| \|)", rf"\1:steps={steps}", text)


class Measurements:
    """Carries strategies out and measures them, in one temporary state root."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from agentic_compression.execution import shared_supervisor

        shared_supervisor().start()
        from agentic_compression.records import EvaluationSettings, StudyConfig
        from agentic_compression.study import infer_model_spec, open_workbench
        from agentic_compression.study.episode import dataset_of

        evaluation = EvaluationSettings(limit=arguments.limit, threads=arguments.threads, new_tokens=32)
        self.config = StudyConfig(
            model=arguments.model,
            dataset=arguments.dataset,
            name="methods",
            max_stages=8,
            evaluation=evaluation,
        )
        self.bench = open_workbench()
        self.spec = infer_model_spec(self.config, self.bench)
        self.dataset = dataset_of(self.config, self.bench.settings)
        self.machine: dict[str, Any] = {}

    def measure(self, text: str) -> dict[str, Any]:
        """One row."""
        from agentic_compression.methods import search_space
        from agentic_compression.records import EpisodePlan, Strategy
        from agentic_compression.study import compress, evaluate

        space = search_space(8)
        strategy = space.complete(Strategy.parse(text))
        row: dict[str, Any] = {"strategy": text, "label": strategy.label, "error": space.problem_with(strategy)}
        if row["error"]:
            return row
        plan = EpisodePlan(study="methods", episode=0, strategy=strategy, planner="by hand", source="user", seed=0)
        compressed = compress(self.config, self.spec, self.dataset, plan, self.bench)
        row |= {"compress_seconds": compressed.seconds, "compress": compressed.model_dump(mode="json")}
        evaluated = evaluate(self.config, self.dataset, compressed, self.bench)
        if evaluated.evaluation is None or compressed.checkpoint is None:
            return row | {"error": evaluated.error or compressed.error}
        evaluation = evaluated.evaluation
        self.machine = evaluation.environment.model_dump(mode="json")
        latency = evaluation.latency
        return row | {
            "bytes": compressed.checkpoint.size_bytes,
            "weights_bytes": evaluation.memory.weights_bytes,
            "accuracy": evaluation.accuracy.value,
            "perplexity": evaluation.perplexity.perplexity.value if evaluation.perplexity else None,
            "decode_tokens_per_s": 1000 / latency.decode_ms_per_token.value,
            "request_ms": latency.request_ms.value,
            "memory_bytes": evaluation.memory.peak_growth_bytes.value,
            "runtime": evaluation.environment.runtime,
            "loads_with": compressed.checkpoint.loads_with,
            "reload": reload(compressed.checkpoint.path, compressed.checkpoint.loads_with),
        }


def reload(folder: str, loads_with: tuple[str, ...]) -> str:
    """What a fresh process finds when it loads the folder."""
    if "llama.cpp" in loads_with:
        return "llama.cpp (measured in it)"
    how = "transformers" if "transformers" in loads_with else "acf"
    ran = subprocess.run(
        [sys.executable, "-c", _RELOAD, folder, how], capture_output=True, text=True, check=False, timeout=600
    )
    found = [line.split()[1:] for line in ran.stdout.splitlines() if line.startswith("DIFFERENCE")]
    if not found:
        return f"{how}: failed: {' '.join(ran.stderr.split())[-200:]}"
    difference, agreement = map(float, found[0])
    if difference == 0:
        return f"{how}, equal logits"
    return f"{how}, logits within {difference:.1g} σ, top-1 agrees {agreement:.0%}"


def estimates(rows: list[dict[str, Any]]) -> str:
    """How far memory and time told before each compression were from what it took."""
    from agentic_compression.methods.estimates import estimate_errors
    from agentic_compression.records import CompressionOutcome

    outcomes = [CompressionOutcome.model_validate(row["compress"]) for row in rows if "compress" in row]
    errors = estimate_errors(outcomes)
    if errors is None:
        return "No estimates to compare."
    return (
        f"Estimates made before compressing, against what it took, over {errors.outcomes} compressions: median "
        f"relative error {errors.peak_bytes or 0:.0%} of the peak memory and {errors.seconds or 0:.0%} of the seconds."
    )


def table(document: dict[str, Any]) -> str:
    """The Markdown table of the rows."""
    rows = document["rows"]
    base = next((row for row in rows if row["strategy"] == "baseline"), None)
    machine = document["machine"]
    lines = [
        f"# Every method on {Path(document['model']).name}",
        "",
        f"`python {document['command']}`",
        "",
        f"{machine.get('cpu', '')} {machine.get('device', '')}, {machine.get('threads', '')} threads. Bytes are of all "
        "that must be shipped. Memory is the growth of a fresh process that loads and serves the checkpoint, peak that "
        "of the process that compresses. Perplexity ratios are to the baseline's.",
        "",
        *([document["note"], ""] if "note" in document else []),
        "| strategy | bytes | of baseline | accuracy | perplexity | ratio | tokens/s | runtime | memory MB "
        "| compress s | peak MB | reload |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        strategy = row["strategy"].replace("|", "\\|")
        if row["error"]:
            lines.append(f"| `{strategy}` | {row['error']} | | | | | | | | | | |".replace("\n", " "))
            continue
        ppl, first = row["perplexity"], base["perplexity"] if base else None
        ratio = f"{ppl / first:.3f}" if ppl and first else ""
        lines.append(
            f"| `{strategy}` | {row['bytes']:,} | {row['bytes'] / base['bytes'] if base else 1:.1%} "
            f"| {row['accuracy']:.4f} | {f'{ppl:.3f}' if ppl else ''} | {ratio} "
            f"| {row['decode_tokens_per_s']:.0f} | {row['runtime']} | {row['memory_bytes'] / 1e6:.1f} "
            f"| {row['compress_seconds']:.1f} | {row['compress']['peak_bytes'] / 1e6:.0f} | {row['reload']} |"
        )
    lines += ["", estimates(rows)]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
