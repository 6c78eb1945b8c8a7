"""The language-model planner: the model decides, the optimizer stands by.

Every failure of the model, of the network or of the budget leaves the episode to the optimizer, with the reason.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from agentic_compression.planning.interface import Optimizer
from agentic_compression.planning.llm.asking import Advice, Budget, ask_for_decision
from agentic_compression.planning.llm.candidates import Moment, open_candidates
from agentic_compression.planning.llm.context import describe
from agentic_compression.planning.llm.decision import Decision, Rules
from agentic_compression.planning.llm.endpoint import Endpoint
from agentic_compression.planning.llm.progress import baseline_of
from agentic_compression.planning.llm.prompt import PromptTooLongError, messages_of
from agentic_compression.planning.llm.review import LLM, LLM_OPTIMIZER
from agentic_compression.planning.llm.texts import Redactor, plain_line
from agentic_compression.records import (
    Candidate,
    EpisodeRecord,
    PlannerCall,
    Proposal,
    SearchSpace,
    Situation,
    Strategy,
)
from agentic_compression.settings import Settings

__all__ = ["Consultation", "LlmPlanner"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Consultation:
    """How a planner asks its language model.

    Args:
        planner: its name, with which every rationale begins.
        own: source of the model's own strategies.
        searched: source of the optimizer's.
        optimizer: gives the candidates, and decides when the model does not.
        endpoint: of the model; None when none is configured.
        settings: limits, and the secrets that must not show.
    """

    planner: str
    own: str
    searched: str
    optimizer: Optimizer
    endpoint: Endpoint | None
    settings: Settings

    def decide(self, moment: Moment, *, may_override: bool) -> Proposal:
        """Ask the model what to try.

        Args:
            moment: where the study stands.
            may_override: whether a strategy of its own is allowed.
        """
        candidates = open_candidates(self.optimizer, moment)
        if not candidates:
            return self._without_candidates(moment)
        if len(candidates) == 1 and not may_override:
            return self.take(candidates, "the language model was not asked: there is one candidate")
        compressed = len({record.episode for record in moment.history if record.episode > 0})
        rules = Rules(
            space=moment.space,
            candidates=candidates,
            may_override=may_override,
            may_end=compressed >= self.settings.planner_min_episodes,
            taken=moment.taken,
            running=moment.in_flight,
        )
        advice = self._ask(moment, rules)
        if advice.decision is None:
            return self.take(candidates, f"no decision of the language model: {advice.reason}", advice)
        return self._carry_out(advice.decision, advice.calls, candidates, moment)

    def take(self, candidates: Sequence[Candidate], reason: str, advice: Advice | None = None) -> Proposal:
        """The optimizer's first candidate.

        Args:
            candidates: at least one.
            reason: why it is taken.
            advice: of the model that was asked in vain; None when it was not to be asked.
        """
        return Proposal(
            strategy=candidates[0].strategy,
            source=self.searched,
            rationale=f"{self.planner}: first candidate of {self.optimizer.name}; {reason}",
            expected=candidates[0].expected,
            calls=advice.calls if advice else (),
            fallback=advice.reason if advice else "",
        )

    def _ask(self, moment: Moment, rules: Rules) -> Advice:
        if self.endpoint is None:
            return Advice(None, reason="OPENAI_API_KEY is not set")
        token = self.settings.hf_token
        key = self.settings.openai_api_key
        secrets = Redactor(secret.get_secret_value() for secret in (key, token) if secret is not None)
        budget = Budget.of_study(self.settings, moment.history)
        try:
            context = describe(rules, moment.history, moment.situation)
            messages, _ = messages_of(context, rules, self.settings.planner_prompt_tokens, secrets)
            return ask_for_decision(self.endpoint, messages, rules, budget, secrets)
        except PromptTooLongError as problem:
            return Advice(None, reason=str(problem))
        except Exception as problem:  # an episode is worth more than an opinion on it
            reason = plain_line(secrets(f"{type(problem).__name__}: {problem}"), 300)
            _log.warning("planner: asking the language model failed: %s", reason)
            return Advice(None, reason=reason)

    def _carry_out(
        self, decision: Decision, calls: tuple[PlannerCall, ...], candidates: Sequence[Candidate], moment: Moment
    ) -> Proposal:
        expected = decision.expected.in_units(baseline_of(moment.history))
        if decision.action == "end":
            rationale = f"{self.planner}: the language model ends the study: {decision.rationale}"
            return Proposal(end="planner_end", source=self.own, rationale=rationale, calls=calls)
        if decision.strategy is not None:
            rationale = f"{self.planner}: {decision.action} of the language model: {decision.rationale}"
            return Proposal(
                strategy=decision.strategy, source=self.own, rationale=rationale, expected=expected, calls=calls
            )
        number = decision.candidate or 0
        which = f"candidate {number + 1} of {len(candidates)} of {self.optimizer.name}"
        return Proposal(
            strategy=candidates[number].strategy,
            source=self.searched,
            rationale=f"{self.planner}: the language model takes {which}: {decision.rationale}",
            expected=expected,
            calls=calls,
        )

    def _without_candidates(self, moment: Moment) -> Proposal:
        """The end of the search, or a strategy that is running already; whoever asked sees to the latter."""
        proposal = self.optimizer.propose(moment.space, moment.history, moment.seed, moment.situation)
        rationale = f"{self.planner}: {proposal.rationale}"
        return proposal.model_copy(update={"source": self.searched, "rationale": rationale})


class LlmPlanner:
    """Asks the model every time; it may propose what it likes within the space.

    Args:
        optimizer: its candidates are shown to the model, and its first one is tried when the model fails.
        endpoint: of the model; None when none is configured, and then every episode is the optimizer's.
        settings: limits and secrets.
    """

    name = "llm"

    def __init__(self, optimizer: Optimizer, endpoint: Endpoint | None, settings: Settings) -> None:
        self._consultation = Consultation(self.name, LLM, LLM_OPTIMIZER, optimizer, endpoint, settings)

    def propose(
        self,
        space: SearchSpace,
        history: Sequence[EpisodeRecord],
        seed: int,
        situation: Situation | None = None,
    ) -> Proposal:
        """The model's choice; see ``Planner``. Not the same every time: it is a language model's."""
        return self.propose_beside(space, history, seed, situation)

    def propose_beside(
        self,
        space: SearchSpace,
        history: Sequence[EpisodeRecord],
        seed: int,
        situation: Situation | None = None,
        in_flight: Sequence[Strategy] = (),
    ) -> Proposal:
        """The same beside strategies that are running; see ``ConsultingPlanner``."""
        moment = Moment(space, history, seed, situation, in_flight)
        return self._consultation.decide(moment, may_override=True)
