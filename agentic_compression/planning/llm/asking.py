"""One question to the language model: asked, checked, corrected once, and within what a study may spend."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from agentic_compression.planning.llm.decision import Decision, Rules, decision_model, json_schema, read_decision
from agentic_compression.planning.llm.endpoint import Answered, Endpoint
from agentic_compression.planning.llm.prompt import PROMPT_VERSION, estimated_tokens
from agentic_compression.planning.llm.reply import InvalidAnswerError
from agentic_compression.planning.llm.texts import Redactor, plain_line
from agentic_compression.records import EpisodeRecord, PlannerCall
from agentic_compression.settings import Settings

__all__ = ["Advice", "Budget", "ask_for_decision"]

_ROUNDS = 2  # the question, and one chance to put the answer right
_KEPT_ANSWER = 20_000
_QUOTED_ANSWER = 4000

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Budget:
    """What a study may still spend on its language model.

    Args:
        calls: left.
        usd: left.
    """

    calls: int
    usd: float

    @classmethod
    def of_study(cls, settings: Settings, history: Sequence[EpisodeRecord]) -> Budget:
        """What the settings allow, less what the recorded episodes took."""
        made = [call for record in history for call in record.calls]
        spent = sum(call.cost_usd or 0.0 for call in made)
        return cls(calls=settings.planner_max_calls - len(made), usd=settings.planner_max_usd - spent)

    def refusal(self, endpoint: Endpoint, prompt_tokens: int) -> str:
        """Why the next call is not made; empty when it may be. A call counts with the longest answer it may bring."""
        if self.calls <= 0:
            return "the study's calls to the language model are used up (ACF_PLANNER_MAX_CALLS)"
        most = endpoint.cost(prompt_tokens, endpoint.limits.max_tokens)
        if most is not None and most > self.usd:
            return f"the study has {max(self.usd, 0):.4f} USD left for the language model (ACF_PLANNER_MAX_USD)"
        return ""

    def less(self, call: PlannerCall) -> Budget:
        """What is left after a call."""
        return Budget(self.calls - 1, self.usd - (call.cost_usd or 0.0))


@dataclass(frozen=True)
class Advice:
    """A decision, or the reason why there is none; and the calls it took."""

    decision: Decision | None
    calls: tuple[PlannerCall, ...] = ()
    reason: str = ""


def ask_for_decision(
    endpoint: Endpoint, messages: Sequence[dict[str, str]], rules: Rules, budget: Budget, redact: Redactor
) -> Advice:
    """Ask until there is a decision that may be carried out, at most twice.

    Args:
        endpoint: of the language model.
        messages: the question.
        rules: what it allows.
        budget: of the study.
        redact: takes secrets out of what is kept.
    """
    model = decision_model(rules)
    schema, talk = json_schema(model), list(messages)
    calls: tuple[PlannerCall, ...] = ()
    reason = ""
    for _ in range(_ROUNDS):
        if refusal := budget.refusal(endpoint, estimated_tokens(talk)):
            return Advice(None, calls, "; ".join(text for text in (reason, refusal) if text))
        answered = endpoint.ask(talk, schema)
        call = _call_of(endpoint, talk, answered, redact)
        budget = budget.less(call)
        if answered.reply is None:
            _log.warning("planner: the language model gave no answer: %s", answered.failure)
            return Advice(None, (*calls, call), answered.failure)
        try:
            decision = read_decision(answered.reply.usable, model, rules)
        except InvalidAnswerError as problem:
            reason = plain_line(redact(str(problem)), 300)
            calls = (*calls, call.model_copy(update={"status": "invalid", "error": reason}))
            _log.info("planner: the answer cannot be used: %s", reason)
            if problem.without_object:
                endpoint.demand_less()
            talk = [*talk, *_correction(answered.reply.text, redact(str(problem)))]
        else:
            endpoint.remember()
            return Advice(decision, (*calls, call))
    return Advice(None, calls, f"no usable answer: {reason}")


def _correction(answer: str, problem: str) -> list[dict[str, str]]:
    told = (
        f"That answer cannot be carried out: {plain_line(problem, 1200)}\n"
        "Answer once more with one JSON object that follows the rules, and nothing else."
    )
    return [
        {"role": "assistant", "content": answer[:_QUOTED_ANSWER] or "(empty)"},
        {"role": "user", "content": told},
    ]


def _call_of(endpoint: Endpoint, talk: Sequence[dict[str, str]], answered: Answered, redact: Redactor) -> PlannerCall:
    reply = answered.reply
    return PlannerCall(
        model=endpoint.model,
        prompt_version=PROMPT_VERSION,
        prompt=redact(json.dumps(list(talk), ensure_ascii=False)),
        answer=redact(reply.text or reply.refusal)[:_KEPT_ANSWER] if reply else "",
        prompt_tokens=reply.prompt_tokens if reply else 0,
        completion_tokens=reply.completion_tokens if reply else 0,
        cost_usd=answered.cost,
        seconds=answered.seconds,
        started_at=answered.started_at,
        attempts=answered.attempts,
        status="ok" if reply else "failed",
        error=plain_line(redact(answered.failure), 300),
    )
