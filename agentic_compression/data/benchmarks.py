"""The named benchmarks: what the harness's own task reads, and how one document reads as text.

Documents have the schema of the Hub dataset that lm-evaluation-harness's own task definition names, whether they come
from a local file (``benchmark_files``) or from the Hub (``benchmark_hub``): prompts and scores are the harness's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from agentic_compression.data.split import Document

__all__ = ["BENCHMARKS", "Benchmark", "HarnessTask", "Reading", "check_readings", "reading_of"]


@dataclass(frozen=True)
class Reading:
    """A document as people read it. ``choices`` is empty for generation, ``answer`` is empty for plain text."""

    question: str
    choices: tuple[str, ...] = ()
    answer_index: int = 0
    answer: str = ""
    joint: str | None = None  # stands between the two where the answer continues the question

    @property
    def text(self) -> str:
        """For calibration and perplexity: the question with its right answer."""
        if not self.answer:
            return self.question
        if self.joint is not None:
            return f"{self.question}{self.joint}{self.answer}"
        return f"Question: {self.question}\nAnswer: {self.answer}"


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

    Attributes:
        name: as users write it.
        reading: a document as people read it.
        hub: (harness task, Hub dataset, configuration).
        evaluated: the split that is asked.
        spare: splits never evaluated, best first.
        few_shot: answered examples put before every question.
        convention: where that number comes from.
        by_items: tasks weigh by their items and share a limit, as MMLU's subjects do in the harness's group; otherwise
            they weigh the same and the limit holds for each.
    """

    name: str
    reading: Callable[[Document], Reading]
    hub: tuple[tuple[str, str, str | None], ...]
    evaluated: str
    spare: tuple[str, ...]
    few_shot: int
    convention: str
    by_items: bool = False


def reading_of(lm_eval_task: str, document: Document) -> Reading:
    """A document of a harness task as people read it."""
    return _benchmark_of(lm_eval_task).reading(document)


def check_readings(benchmark: Benchmark, tasks: Iterable[HarnessTask]) -> None:
    """Every document must be readable, in texts, with a right answer among its choices.

    Raises:
        LookupError, TypeError, ValueError, ArithmeticError, AttributeError: where one is not, whatever it lacks.
    """
    for task in tasks:
        for document in (document for documents in task.splits.values() for document in documents):
            found = benchmark.reading(document)
            if not all(isinstance(text, str) for text in (found.question, *found.choices, found.answer)):
                raise TypeError(f"question, choices and answer are texts, got {str(found)[:100]}")
            if found.choices and not 0 <= found.answer_index < len(found.choices):
                raise ValueError(
                    f"the answer is one of the choices, got number {found.answer_index} of {found.choices}"
                )


def _benchmark_of(lm_eval_task: str) -> Benchmark:
    for benchmark in BENCHMARKS.values():
        if any(task == lm_eval_task for task, _, _ in benchmark.hub):
            return benchmark
    raise KeyError(lm_eval_task)


def _choice(question: str, choices: list[str], answer: int, *, joint: str | None = None) -> Reading:
    if not isinstance(choices, list):
        raise TypeError(f"choices are a list, got {str(choices)[:100]!r}")
    return Reading(question, tuple(choices), answer, choices[answer], joint)


def _labelled(document: Document) -> Reading:
    choices = document["choices"]
    return _choice(document["question"], choices["text"], choices["label"].index(document["answerKey"]))


def _truthful(document: Document) -> Reading:
    targets = document["mc1_targets"]
    return _choice(document["question"], targets["choices"], targets["labels"].index(1))


def _hellaswag(document: Document) -> Reading:
    question = f"{document['activity_label']}: {document['ctx_a']} {document['ctx_b'].capitalize()}".strip()
    return _choice(question, document["endings"], int(document["label"]), joint=" ")


def _winogrande(document: Document) -> Reading:
    before, blank, after = document["sentence"].partition("_")
    if not blank:
        raise ValueError(f"a sentence has a blank _ for the options, got {document['sentence'][:100]!r}")
    endings = [f"{document[option]}{after}" for option in ("option1", "option2")]
    return _choice(before.strip(), endings, int(document["answer"]) - 1, joint=" ")


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

_BBH_TASKS = (
    "boolean_expressions", "causal_judgement", "date_understanding", "disambiguation_qa", "dyck_languages",
    "formal_fallacies", "geometric_shapes", "hyperbaton", "logical_deduction_five_objects",
    "logical_deduction_seven_objects", "logical_deduction_three_objects", "movie_recommendation",
    "multistep_arithmetic_two", "navigate", "object_counting", "penguins_in_a_table",
    "reasoning_about_colored_objects", "ruin_names", "salient_translation_error_detection", "snarks",
    "sports_understanding", "temporal_sequences", "tracking_shuffled_objects_five_objects",
    "tracking_shuffled_objects_seven_objects", "tracking_shuffled_objects_three_objects", "web_of_lies",
    "word_sorting",
)  # fmt: skip

_DEFINITION = "the harness's own definition"
_UNSET = "the harness's own definition, which names no number; leaderboards that use {} must not be compared with this"

BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark(
            "gsm8k",
            lambda d: Reading(d["question"], answer=d["answer"]),
            (("gsm8k", "openai/gsm8k", "main"),),
            "test",
            ("train",),
            5,
            _DEFINITION,
        ),
        Benchmark(
            "commonsenseqa",
            _labelled,
            (("commonsense_qa", "tau/commonsense_qa", None),),
            "validation",
            ("train",),
            0,
            _UNSET.format("7 examples"),
        ),
        Benchmark(
            "truthfulqa",
            _truthful,
            tuple((f"truthfulqa_{kind}", "truthfulqa/truthful_qa", "multiple_choice") for kind in ("mc1", "mc2")),
            "validation",
            (),
            0,
            f"{_DEFINITION}, whose prompt begins with the six questions and answers of the paper (arXiv 2109.07958)",
        ),
        Benchmark(
            "humaneval",
            lambda d: Reading(d["prompt"], answer=d["canonical_solution"], joint=""),
            (("humaneval", "openai/openai_humaneval", None),),
            "test",
            (),
            0,
            f"{_DEFINITION} and the paper (arXiv 2107.03374)",
        ),
        Benchmark(
            "bigbench_hard",
            lambda d: Reading(d["input"], answer=d["target"]),
            tuple((f"bbh_cot_fewshot_{task}", "SaylorTwift/bbh", task) for task in _BBH_TASKS),
            "test",
            (),
            3,
            f"{_DEFINITION} with the paper's chain-of-thought examples (arXiv 2210.09261)",
            by_items=True,
        ),
        Benchmark(
            "mmlu",
            lambda d: _choice(d["question"], d["choices"], d["answer"]),
            tuple((f"mmlu_{subject}", "cais/mmlu", subject) for subject in _MMLU_SUBJECTS),
            "test",
            ("dev",),
            5,
            "the paper (arXiv 2009.03300): the five examples of a subject's dev split; the definition names no number",
            by_items=True,
        ),
        Benchmark(
            "hellaswag",
            _hellaswag,
            (("hellaswag", "Rowan/hellaswag", None),),
            "validation",
            ("train",),
            0,
            _UNSET.format("10 examples"),
        ),
        Benchmark(
            "arc",
            _labelled,
            tuple((f"arc_{level.lower()}", "allenai/ai2_arc", f"ARC-{level}") for level in ("Easy", "Challenge")),
            "test",
            ("train",),
            0,
            _UNSET.format("25 examples"),
        ),
        Benchmark(
            "winogrande",
            _winogrande,
            (("winogrande", "allenai/winogrande", "winogrande_xl"),),
            "validation",
            ("train",),
            0,
            _UNSET.format("5 examples"),
        ),
        Benchmark(
            "wikitext",
            lambda d: Reading(d["page"]),
            (("wikitext", "EleutherAI/wikitext_document_level", "wikitext-2-raw-v1"),),
            "test",
            ("train", "validation"),
            0,
            "plain text has no examples",
        ),
    )
}
