"""Trains the embedded demo model from scratch and writes it, its tokenizer and its data files.

The corpus is generated (``agentic_compression.demo.corpus``), a tokenizer is trained on it, and a small Llama is
trained on the packed documents. Everything follows from the seed, as far as torch is deterministic on one machine.
A stopped run continues from its last checkpoint when started again with the same arguments.

Examples:
    python scripts/train_demo_model.py                          # the shipped model, into the package
    python scripts/train_demo_model.py --output /tmp/demo --minutes 5
    python scripts/train_demo_model.py --output /tmp/demo --steps 500 --seed 1
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import random
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from agentic_compression import demo
from agentic_compression.demo import corpus as corpus_module
from agentic_compression.demo import scoring
from agentic_compression.demo.corpus import Corpus, CorpusConfig
from agentic_compression.demo.muon import Muon
from agentic_compression.demo.outliers import spread_channels
from agentic_compression.demo.packing import IGNORED, PackedRows, pack
from agentic_compression.demo.tokenizer import train_tokenizer

VOCABULARY = 1024
MAX_POSITIONS = 512
ROW_LENGTH = 128 + 1  # inputs and labels overlap in 128 positions


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder for model/ and data/ (default: the package's demo folder)")
    parser.add_argument("--work", type=Path, default=Path(".demo-training"), help="folder for checkpoints")
    parser.add_argument("--seed", type=int, default=CorpusConfig().seed, help="seed of corpus, weights and batches")
    parser.add_argument("--documents", type=int, default=CorpusConfig().documents, help="training documents")
    parser.add_argument("--people", type=int, default=CorpusConfig().people, help="people in the synthetic town")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int, help="optimizer steps (default: one pass over the documents)")
    length.add_argument("--minutes", type=float, help="fit the number of steps to this time, measured at the start")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--intermediate", type=int, default=512)
    parser.add_argument("--batch-rows", type=int, default=24, help=f"rows of {ROW_LENGTH} tokens per step")
    parser.add_argument("--learning-rate", type=float, default=4e-3, help="peak of the cosine schedule")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon", help="for the blocks' matrices")
    parser.add_argument("--weight-decay", type=float, default=0.02)
    parser.add_argument("--prompt-weight", type=float, default=0.3, help="loss weight of question tokens")
    parser.add_argument(
        "--outlier-spread", type=float, default=0.6, help="log-normal spread of the channels (see demo/outliers.py)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="ignore an existing checkpoint")
    return parser.parse_args()


def log(message: str) -> None:
    """Prints at once."""
    print(message, flush=True)


def build_rows(corpus: Corpus, documents: list[corpus_module.Document], tokenizer: Any) -> PackedRows:
    """Tokenizes and packs the training documents."""
    encoded = tokenizer([document.text for document in documents])["input_ids"]
    opening = tokenizer("Answer:", add_special_tokens=False)["input_ids"]
    separator = tokenizer("a\n\nQ", add_special_tokens=False)["input_ids"][1]
    return pack(([*ids, tokenizer.eos_token_id] for ids in encoded), ROW_LENGTH, opening, separator)


def build_model(arguments: argparse.Namespace) -> LlamaForCausalLM:
    """Creates the model with seeded random weights."""
    torch.manual_seed(arguments.seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=arguments.hidden,
        intermediate_size=arguments.intermediate,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden // 32,
        num_key_value_heads=arguments.hidden // 64,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")  # on CPUs twice as fast as fused attention for short rows
    for name, parameter in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            parameter.data.mul_(1.0 / math.sqrt(2 * arguments.layers))
    return model


def sharing_replica(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Copies a model's structure; the copy's parameters share storage with the model's but have own gradients."""
    replica = copy.deepcopy(model)
    for mine, theirs in zip(replica.parameters(), model.parameters(), strict=True):
        mine.data = theirs.data
    return replica


def build_optimizers(model: LlamaForCausalLM, arguments: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Creates Muon for the matrices of the blocks and AdamW for the rest, or AdamW for everything."""
    blocks = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." in name]
    others = [p for name, p in model.named_parameters() if p.ndim == 2 and ".layers." not in name]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    rate, decay = arguments.learning_rate, arguments.weight_decay
    muon = arguments.optimizer == "muon"
    adam = torch.optim.AdamW(
        [
            {"params": others if muon else others + blocks, "weight_decay": decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    if not muon:
        return [adam]
    return [adam, Muon(blocks, lr=rate, weight_decay=decay)]


def learning_rate_at(step: int, steps: int, peak: float) -> float:
    """Warms up over 3 % of the steps, then follows a cosine down to 1 % of the peak."""
    warm = max(1, round(0.03 * steps))
    if step < warm:
        return peak * (step + 1) / warm
    progress = (step - warm) / max(1, steps - warm)
    return peak * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)))


def batches(rows: int, batch_rows: int, seed: int) -> Iterator[list[int]]:
    """Yields row numbers forever, each pass over the rows in a new order."""
    rng = random.Random(f"{seed}/batches")
    while True:
        order = list(range(rows))
        rng.shuffle(order)
        for start in range(0, rows - batch_rows + 1, batch_rows):
            yield order[start : start + batch_rows]


class Trainer:
    """Trains the model step by step, with checkpoints."""

    def __init__(self, arguments: argparse.Namespace, rows: PackedRows) -> None:
        """Sets up model and optimizer and loads the last checkpoint if it was made with the same arguments."""
        self.arguments, self.rows = arguments, rows
        self.model = build_model(arguments)
        self.optimizers = build_optimizers(self.model, arguments)
        self.replicas = [self.model, *(sharing_replica(self.model) for _ in range(arguments.threads - 1))]
        self.workers = ThreadPoolExecutor(arguments.threads)
        self.step, self.seconds = 0, 0.0
        self.autocast = torch.cpu._is_avx512_bf16_supported()
        self.steps: int = arguments.steps or len(rows.ids) // arguments.batch_rows
        self.checkpoint: Path = arguments.work / "checkpoint.pt"
        ignored = {"output", "work", "threads", "fresh", "outlier_spread"}
        self.identity = json.dumps({k: v for k, v in vars(arguments).items() if k not in ignored}, sort_keys=True)
        if self.checkpoint.exists() and not arguments.fresh:
            self._resume()

    def _resume(self) -> None:
        """Loads the checkpoint."""
        state = torch.load(self.checkpoint, weights_only=True)
        if state["identity"] != self.identity:
            log("the checkpoint was made with other arguments; starting afresh")
            return
        self.model.load_state_dict(state["model"])
        for optimizer, values in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.step, self.steps, self.seconds = state["step"], state["steps"], state["seconds"]
        log(f"resumed at step {self.step}/{self.steps}")

    def save(self) -> None:
        """Writes the checkpoint, replacing the previous one at once."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.checkpoint.with_suffix(".new")
        state = {
            "identity": self.identity,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "steps": self.steps,
            "seconds": self.seconds,
        }
        torch.save(state, fresh)
        fresh.replace(self.checkpoint)

    def _accumulate(self, replica: LlamaForCausalLM, batch: dict[str, torch.Tensor], total: float) -> float:
        """Adds the gradients of one share of a batch to a replica; returns its part of the loss."""
        torch.set_num_threads(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            logits = replica(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                position_ids=batch["position_ids"],
                use_cache=False,
            ).logits
        losses = functional.cross_entropy(
            logits.float().flatten(0, 1), batch["labels"].flatten(), reduction="none", ignore_index=IGNORED
        )
        loss = (losses * batch["weights"].flatten()).sum() / total
        loss.backward()
        return float(loss.detach())

    def one_step(self, rows: list[int]) -> float:
        """Does one optimizer step, the batch split over the worker threads.

        Each worker runs one share on its own replica, whose weights are the model's own tensors, so that the
        workers meet once per step and a busy machine costs little.

        Args:
            rows: Row numbers of the batch.

        Returns:
            The weighted loss in nats per token.
        """
        count = len(self.replicas)
        shares = [self.rows.batch(rows[k::count], self.arguments.prompt_weight) for k in range(count)]
        total = sum(float(share["weights"].sum()) for share in shares)
        loss = sum(self.workers.map(self._accumulate, self.replicas, shares, [total] * count))
        for parameters in zip(*(replica.parameters() for replica in self.replicas), strict=True):
            for other in parameters[1:]:
                parameters[0].grad.add_(other.grad)
                other.grad = None
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        rate = learning_rate_at(self.step, self.steps, self.arguments.learning_rate)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return loss

    def run(self, validate: Any) -> None:
        """Trains to the end, with a progress line every 50 steps and a checkpoint every two minutes."""
        order = batches(len(self.rows.ids), self.arguments.batch_rows, self.arguments.seed)
        for _ in range(self.step):
            next(order)
        begun, saved, recent = time.monotonic() - self.seconds, time.monotonic(), []
        tokens_per_step = self.arguments.batch_rows * ROW_LENGTH
        first = self.step
        while self.step < self.steps:
            recent.append(self.one_step(next(order)))
            self.seconds = time.monotonic() - begun
            if self.arguments.minutes and self.step == 20 and first == 0:
                self.steps = max(50, int(self.arguments.minutes * 60 / (self.seconds / 20)))
                log(f"{self.steps} steps fit into {self.arguments.minutes:g} minutes")
            if self.step % 50 == 0 or self.step == self.steps:
                left = self.seconds / self.step * (self.steps - self.step)
                speed = tokens_per_step * self.step / self.seconds
                log(
                    f"step {self.step}/{self.steps} loss {np.mean(recent):.4f} {speed:.0f} tokens/s "
                    f"elapsed {self.seconds / 60:.1f} min, left {left / 60:.1f} min"
                )
                recent = []
            if self.step % 500 == 0 and self.step < self.steps:
                validate(self.model)
            if time.monotonic() - saved > 120:
                self.save()
                saved = time.monotonic()
        self.save()


def validation_report(model: Any, tokenizer: Any, corpus: Corpus) -> dict[str, float]:
    """Scores the validation items (held out, but not part of the shipped tasks) and prints the result."""
    model.eval()
    choice = [
        {"question": i.question, "choices": i.choices, "answer": i.answer} for i in corpus.held_out.choice_validation
    ]
    generation = corpus.held_out.generation_validation
    rows = [{"question": item.question, "answer": item.answer} for item in generation]
    right = scoring.generation_correct(model, tokenizer, rows)
    skills: dict[str, list[bool]] = {}
    for item, correct in zip(generation, right, strict=True):
        skills.setdefault(item.key[0], []).append(correct)
    report = {
        "multiple choice": float(np.mean(scoring.multiple_choice_correct(model, tokenizer, choice))),
        "generation": float(np.mean(right)),
        **{name: float(np.mean(values)) for name, values in sorted(skills.items())},
    }
    log("  validation: " + ", ".join(f"{name} {value:.3f}" for name, value in report.items()))
    model.train()
    return report


def write_model(model: LlamaForCausalLM, tokenizer: Any, folder: Path, arguments: argparse.Namespace) -> None:
    """Writes bfloat16 weights with outlier channels, configuration and tokenizer in the Hugging Face layout."""
    folder.mkdir(parents=True, exist_ok=True)
    exported = LlamaForCausalLM(model.config)
    exported.load_state_dict(model.state_dict())
    spread_channels(exported, arguments.outlier_spread, arguments.seed)
    exported.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name every transformers release knows
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def final_report(folder: Path, data: Path) -> dict[str, dict[str, float]]:
    """Loads what was saved, in bfloat16 and float32, and scores the shipped held-out items."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reports = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        choice = scoring.multiple_choice_correct(model, tokenizer, scoring.read_rows(data / "demo_mc.jsonl"))
        generation = scoring.generation_correct(model, tokenizer, scoring.read_rows(data / "demo_gen.jsonl"))
        reports[name] = {
            "demo_mc": float(np.mean(choice)),
            "demo_gen": float(np.mean(generation)),
            "perplexity": scoring.perplexity(model, tokenizer, scoring.read_rows(data / "heldout_text.jsonl")),
        }
        log(f"{name}: " + ", ".join(f"{key} {value:.4f}" for key, value in reports[name].items()))
    return reports


def main() -> None:
    """Generates the corpus, trains the tokenizer and the model, writes and scores everything."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    output: Path = arguments.output or demo.model_path().parent
    corpus = Corpus(CorpusConfig(seed=arguments.seed, people=arguments.people, documents=arguments.documents))
    documents = list(corpus.training_documents())
    asked = corpus_module.check_disjoint(documents, corpus.held_out)
    log(f"{len(documents)} documents with {asked} questions, none of them held out")
    tokenizer = train_tokenizer((d.text for d in documents[:40_000]), VOCABULARY, MAX_POSITIONS)
    rows = build_rows(corpus, documents, tokenizer)
    trainer = Trainer(arguments, rows)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    log(f"{rows.ids.size:,} tokens in {len(rows.ids)} rows; {parameters:,} parameters; {trainer.steps} steps")
    trainer.run(lambda model: validation_report(model, tokenizer, corpus))
    validation_report(trainer.model, tokenizer, corpus)
    corpus_module.write_package_data(corpus, documents, output / "data")
    staged = arguments.work / "model"
    shutil.rmtree(staged, ignore_errors=True)
    write_model(trainer.model, tokenizer, staged, arguments)
    reports = final_report(staged, output / "data")
    (output / "model").mkdir(parents=True, exist_ok=True)
    for file in sorted(staged.iterdir()):
        shutil.copyfile(file, output / "model" / file.name)
    size = (output / "model" / "model.safetensors").stat().st_size
    log(json.dumps({"parameters": parameters, "bytes": size, "seconds": trainer.seconds, "scores": reports}, indent=2))


if __name__ == "__main__":
    main()
