"""Recorded episodes for the frontier's tests."""

from __future__ import annotations

from hypothesis import strategies as st

from agentic_compression.records import CheckpointRef, EpisodeRecord, EpisodeStatus, Objectives, Strategy

__all__ = ["BASELINE_VALUES", "NOISE", "NO_NOISE", "episode", "records_strategy"]

Values = tuple[float, float, float, float, float]

BASELINE_VALUES: Values = (0.5, 100.0, 4.0, 2.0, 10.0)
NO_NOISE: Values = (0.0, 0.0, 0.0, 0.0, 0.0)
NOISE: Values = (0.05, 5.0, 0.2, 0.0, 0.5)
"""Epsilon by objective: what ``fixed_reference`` must find."""

_NAMES = tuple(Objectives.model_fields)


def episode(
    number: int, values: Values | None, noise: Values = NOISE, status: EpisodeStatus = "succeeded", label: str = ""
) -> EpisodeRecord:
    """One record; ``values`` are (accuracy, latency, memory, size, CO2), None for an episode without a result."""
    half = (noise[0] * 1.959963984540054, *noise[1:])
    intervals = {}
    if values is not None:
        intervals = {name: (v - h, v + h) for name, v, h in zip(_NAMES, values, half, strict=True)}
    return EpisodeRecord(
        study="a study",
        episode=number,
        strategy=Strategy.parse(label or ("gptq:bits=4" if number else "")),
        status=status if values is not None else (status if status != "succeeded" else "failed"),
        error=None if values is not None else "planted",
        objectives=Objectives(**dict(zip(_NAMES, values, strict=True))) if values is not None else None,
        intervals=intervals,
        checkpoint=CheckpointRef(path=f"/store/it's {number}", digest=f"{number:016x}", size_bytes=1, strategy_key="k"),
        rationale=f"reason {number}",
    )


@st.composite
def records_strategy(draw: st.DrawFn, max_size: int = 12, noise: Values | None = None) -> list[EpisodeRecord]:
    """A baseline and episodes on a coarse lattice (so that ties and equal points happen), a few without a result."""
    chosen = draw(st.sampled_from([NO_NOISE, NOISE])) if noise is None else noise
    point = st.one_of(
        st.tuples(
            st.integers(0, 10).map(lambda n: n / 10),
            st.integers(1, 12).map(lambda n: n * 20.0),
            st.integers(1, 12).map(lambda n: n * 0.8),
            st.integers(1, 5).map(lambda n: n * 0.9),
            st.integers(1, 12).map(lambda n: n * 2.0),
        ),
        st.tuples(
            st.floats(0, 1),
            st.floats(50, 150),
            st.floats(2, 6),
            st.floats(1, 3),
            st.floats(5, 15),
        ),
        st.none(),
    )
    points = draw(st.lists(point, max_size=max_size))
    return [episode(0, BASELINE_VALUES, chosen), *(episode(n, p, chosen) for n, p in enumerate(points, start=1))]
