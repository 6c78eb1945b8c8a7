"""The named benchmarks: what the harness's own task reads, and how one document reads as text.

Documents have the schema of the Hub dataset that lm-evaluation-harness's own task definition names, whether they come
from a local file (``benchmark_files``) or from the Hub (``benchmark_hub``): prompts and scores are the harness's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agentic_compression.data.split import Document

__all__ = ["BENCHMARKS", "NOT_OFFERED", "Benchmark", "HarnessTask", "Reading", "reading_of"]


@dataclass(frozen=True)
class Reading:
    """A document as people read it. ``choices`` is empty for generation, ``answer`` is empty for plain text."""

    question: str
    choices: tuple[str, ...] = ()
    answer_index: int = 0
    answer: str = ""
    continues: bool = False  # the answer continues the question's sentence

    @property
    def text(self) -> str:
        """For calibration and perplexity: the question with its right answer."""
        if not self.answer:
            return self.question
        return (
            f"{self.question} {self.answer}" if self.continues else f"Question: {self.question}\nAnswer: {self.answer}"
        )


@dataclass(frozen=True)
class HarnessTask:
    """One task of the harness with its documents by split."""

    task: str
    splits: Mapping[str, list[Document]]
    evaluated: str
    name: str = ""


@dataclass(frozen=True)
class Benchmark:
    """A named benchmark.

    ``hub`` lists (harness task, Hub dataset, configuration); ``spare`` names splits never evaluated, best first.
    """

    name: str
    reading: Callable[[Document], Reading]
    hub: tuple[tuple[str, str, str | None], ...]
    evaluated: str
    spare: tuple[str, ...]
    shared_limit: bool = False  # a limit counts over all tasks together (MMLU's subjects)


NOT_OFFERED: Mapping[str, str] = {
    "humaneval": (
        "humaneval runs code that the model writes, which needs the sandbox that is not built yet; "
        "choose gsm8k or a file of your own"
    ),
    "bigbench_hard": (
        "bigbench_hard has no local task definition yet (27 tasks with chain-of-thought prompts); choose mmlu or arc"
    ),
}


def reading_of(lm_eval_task: str, document: Document) -> Reading:
    """A document of a harness task as people read it."""
    return _benchmark_of(lm_eval_task).reading(document)


def _benchmark_of(lm_eval_task: str) -> Benchmark:
    for benchmark in BENCHMARKS.values():
        if any(task == lm_eval_task for task, _, _ in benchmark.hub):
            return benchmark
    raise KeyError(lm_eval_task)


def _choice(question: str, choices: list[str], answer: int, *, continues: bool = False) -> Reading:
    return Reading(question, tuple(choices), answer, choices[answer], continues)


def _labelled(document: Document) -> Reading:
    choices = document["choices"]
    return _choice(document["question"], choices["text"], choices["label"].index(document["answerKey"]))


def _truthful(document: Document) -> Reading:
    targets = document["mc1_targets"]
    return _choice(document["question"], targets["choices"], targets["labels"].index(1))


def _hellaswag(document: Document) -> Reading:
    question = f"{document['activity_label']}: {document['ctx_a']} {document['ctx_b'].capitalize()}".strip()
    return _choice(question, document["endings"], int(document["label"]), continues=True)


def _winogrande(document: Document) -> Reading:
    before, _, after = document["sentence"].partition("_")
    endings = [f"{document[option]}{after}" for option in ("option1", "option2")]
    return _choice(before.strip(), endings, int(document["answer"]) - 1, continues=True)


_MMLU_SUBJECTS = (
    "abstract_algebra", "anatomy", "astronomy", "business_ethics", "clinical_knowledge", "college_biology",
    "college_chemistry", "college_computer_science", "college_mathematics", "college_medicine", "college_physics",
    "computer_security", "conceptual_physics", "econometrics", "electrical_engineering", "elementary_mathematics",
    "formal_logic", "global_facts", "high_school_biology", "high_school_chemistry", "high_school_computer_science",
    "high_school_european_history", "high_school_geography", "high_school_government_and_politics",
    "high_school_macroeconomics", "high_school_mathematics", "high_school_microeconomics", "high_school_physics",
    "high_school_psychology", "high_school_statistics", "high_school_us_history", "high_school_world_history",
    "human_aging", "human_sexuality", "international_law", "jurisprudence", "logical_fallacies", "machine_learning",
    "management", "marketing", "medical_genetics", "miscellaneous", "moral_disputes", "moral_scenarios",
    "nutrition", "philosophy", "prehistory", "professional_accounting", "professional_law", "professional_medicine",
    "professional_psychology", "public_relations", "security_studies", "sociology", "us_foreign_policy", "virology",
    "world_religions",
)  # fmt: skip

BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "gsm8k",
            lambda d: Reading(d["question"], answer=d["answer"]),
            (("gsm8k", "openai/gsm8k", "main"),),
            "test",
            ("train",),
        ),
        Benchmark(
            "commonsenseqa", _labelled, (("commonsense_qa", "tau/commonsense_qa", None),), "validation", ("train",)
        ),
        Benchmark(
            "truthfulqa",
            _truthful,
            tuple((f"truthfulqa_{kind}", "truthfulqa/truthful_qa", "multiple_choice") for kind in ("mc1", "mc2")),
            "validation",
            (),
        ),
        Benchmark(
            "mmlu",
            lambda d: _choice(d["question"], d["choices"], d["answer"]),
            tuple((f"mmlu_{subject}", "cais/mmlu", subject) for subject in _MMLU_SUBJECTS),
            "test",
            ("dev",),
            shared_limit=True,
        ),
        Benchmark("hellaswag", _hellaswag, (("hellaswag", "Rowan/hellaswag", None),), "validation", ("train",)),
        Benchmark(
            "arc",
            _labelled,
            tuple((f"arc_{level.lower()}", "allenai/ai2_arc", f"ARC-{level}") for level in ("Easy", "Challenge")),
            "test",
            ("train",),
        ),
        Benchmark(
            "winogrande",
            _winogrande,
            (("winogrande", "allenai/winogrande", "winogrande_xl"),),
            "validation",
            ("train",),
        ),
        Benchmark(
            "wikitext",
            lambda d: Reading(d["page"]),
            (("wikitext", "EleutherAI/wikitext_document_level", "wikitext-2-raw-v1"),),
            "test",
            ("train", "validation"),
        ),
    )
}
