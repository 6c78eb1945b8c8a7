"""The hybrid planner: the optimizer proposes, the language model chooses or overrides, and results set how often.

What the model may override is a share of the episodes that shrinks when its own strategies add less hypervolume than
the optimizer's (see ``llm.shares``). A model that has lost its share is not asked, which saves what asking costs.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentic_compression.planning.interface import Optimizer
from agentic_compression.planning.llm.candidates import Moment, open_candidates
from agentic_compression.planning.llm.endpoint import Endpoint
from agentic_compression.planning.llm.planner import Consultation
from agentic_compression.planning.llm.review import HYBRID_LLM, HYBRID_OPTIMIZER
from agentic_compression.planning.llm.shares import Standing, standing
from agentic_compression.records import EpisodeRecord, Proposal, SearchSpace, Situation, Strategy
from agentic_compression.settings import Settings

__all__ = ["HybridPlanner"]


class HybridPlanner:
    """The optimizer and a language model, each with the share that its results earn.

    Args:
        optimizer: gives the candidates.
        endpoint: of the model; None when none is configured, and then every episode is the optimizer's.
        settings: limits, secrets, and the largest share of the model's own strategies.
    """

    name = "hybrid"

    def __init__(self, optimizer: Optimizer, endpoint: Endpoint | None, settings: Settings) -> None:
        self._consultation = Consultation(self.name, HYBRID_LLM, HYBRID_OPTIMIZER, optimizer, endpoint, settings)

    def propose(
        self,
        space: SearchSpace,
        history: Sequence[EpisodeRecord],
        seed: int,
        situation: Situation | None = None,
    ) -> Proposal:
        """The next strategy of either source; see ``Planner``. Not the same every time when the model is asked."""
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
        stands = standing(history, seed, self._consultation.settings.planner_override_share)
        proposal = self._propose(moment, stands)
        return proposal.model_copy(update={"rationale": f"{proposal.rationale} [{stands.note}]"})

    def _propose(self, moment: Moment, stands: Standing) -> Proposal:
        if not stands.asked:
            candidates = open_candidates(self._consultation.optimizer, moment)
            if candidates:
                return self._consultation.take(candidates, "the language model was not asked")
        return self._consultation.decide(moment, may_override=stands.may_override)
