"""Which of the optimizer's strategies the language model may choose from."""

from __future__ import annotations

from agentic_compression.planning.llm.candidates import Moment, open_candidates
from tests.unit.planning.llm_studies import ListedOptimizer, history
from tests.unit.planning.spaces import SPACE


def _offered(*labels: str) -> list[tuple[str, ...]]:
    moment = Moment(SPACE, history()[:1], 0, None, ())
    found = open_candidates(ListedOptimizer(*labels), moment)
    return [tuple(stage.method for stage in item.strategy.stages) for item in found]


def test_no_more_than_a_few_of_the_same_methods_while_there_are_others() -> None:
    many = [f"rtn:bits={bits},group_size={size}" for bits in (2, 3, 4, 8) for size in (32, 64, 128)]
    found = _offered(*many, "magnitude:sparsity=0.3", "magnitude:sparsity=0.3 | rtn:bits=4")
    assert found[:4] == [("rtn",), ("rtn",), ("magnitude",), ("magnitude", "rtn")]
    assert found[4:] == [("rtn",)] * 4  # and then those, the best first, up to the limit


def test_the_best_stays_first_and_few_are_left_as_they_are() -> None:
    assert _offered("magnitude:sparsity=0.5", "rtn:bits=2", "rtn:bits=3") == [("magnitude",), ("rtn",), ("rtn",)]
    assert len(_offered(*(f"rtn:bits={bits}" for bits in (2, 3, 4, 8)))) == 4
