"""Energy of one request of the fixed workload: idle power first, then blocks of requests.

Idle power is *included* in a request's joules: it is what the electricity meter counts, and a checkpoint that answers
sooner saves it too (MLPerf Power and ML.ENERGY count so as well). It is measured beside, so that the energy above idle
can be stated as well: ``joules = idle watts x seconds + net joules``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from agentic_compression.evaluation.cost import co2_grams, electricity_cost
from agentic_compression.evaluation.energy import SYSTEM_CLOCK, Clock, EnergyCounter, EnergyMeter, next_update, polled
from agentic_compression.evaluation.grid import GridFactor
from agentic_compression.evaluation.intervals import bootstrap_median
from agentic_compression.evaluation.latency import collector_off
from agentic_compression.evaluation.request import EvaluationRequest
from agentic_compression.evaluation.workload import Workload
from agentic_compression.records import EnergyMeasurement, Estimate
from agentic_compression.runtimes import Runtime

__all__ = [
    "Block",
    "Idle",
    "RequestEnergy",
    "counts_single_requests",
    "energy_blocks",
    "energy_measurement",
    "measure_energy",
    "measure_idle",
]

_REQUESTS = 1000
_FINE_S = 1e-4
_BLOCKS = 5
_UPDATES = 20
_LEAST_S = 0.25
_LIMIT_S = 30.0
_IDLE_WINDOW_S = 1.0
_IDLE_PATIENCE_S = 8.0
_STEADY = 0.05


@dataclass(frozen=True)
class Idle:
    """Power with the model loaded and nothing asked."""

    watts: float
    settled: bool
    waited_s: float


@dataclass(frozen=True)
class Block:
    """Some requests in a row, and the energy and time of one."""

    joules: float
    seconds: float
    requests: int


@dataclass(frozen=True)
class RequestEnergy:
    """Joules a request, one an observation, and how they were come by."""

    counter: EnergyCounter
    joules: tuple[float, ...]
    net_joules: tuple[float, ...] = ()
    idle: Idle | None = None


def measure_energy(
    runtime: Runtime,
    workload: Workload,
    counter: EnergyCounter,
    timed: Sequence[float],
    clock: Clock = SYSTEM_CLOCK,
) -> RequestEnergy:
    """Joules of single requests as the counter gave them while they were timed, or of blocks where it is too coarse.

    Args:
        runtime: the loaded, warm checkpoint.
        workload: the request.
        counter: as ``select_counter`` gave it.
        timed: joules of each timed request; used when the counter resolves a ten-thousandth of a second.
        clock: the system's.
    """
    if counts_single_requests(counter):
        return RequestEnergy(counter, tuple(timed))
    idle = measure_idle(counter, clock)
    blocks = energy_blocks(runtime, workload, counter, idle.watts if idle else 0.0, clock)
    net = tuple(block.joules - idle.watts * block.seconds for block in blocks) if idle else ()
    return RequestEnergy(counter, tuple(block.joules for block in blocks), net, idle)


def counts_single_requests(counter: EnergyCounter) -> bool:
    """Whether the counter moves often enough for a single request."""
    return counter.resolution_s < _FINE_S


def measure_idle(counter: EnergyCounter, clock: Clock = SYSTEM_CLOCK) -> Idle | None:
    """Watts while nothing is asked; None where the counter only estimates.

    Windows of a second, from one update to another, until two in a row agree within 5 % (a GPU that has just
    worked keeps its clocks and its heat for a while, which would be charged to the next trial), at most 8 s.
    ``settled`` says whether they did.
    """
    if counter.source == "estimated":
        return None
    began, previous = clock.now(), None
    with polled(counter):
        while True:
            watts = _window(counter, clock)
            waited = clock.now() - began
            settled = previous is not None and abs(watts - previous) <= _STEADY * max(watts, previous)
            if settled or waited >= _IDLE_PATIENCE_S:
                return Idle(watts, settled, waited)
            previous = watts


def energy_blocks(
    runtime: Runtime, workload: Workload, counter: EnergyCounter, idle_watts: float = 0.0, clock: Clock = SYSTEM_CLOCK
) -> list[Block]:
    """Five blocks of requests, each at least 20 updates of the counter long (NVML: 2 s) and read at its updates.

    Slow requests stop it after 30 s, with two blocks at least, so that there is a spread.
    """
    blocks: list[Block] = []
    began, span = clock.now(), max(_LEAST_S, _UPDATES * counter.resolution_s)
    with collector_off():
        while len(blocks) < _BLOCKS and (len(blocks) < 2 or clock.now() - began < _LIMIT_S):
            requests = 0
            with EnergyMeter(counter, aligned=True, idle_watts=idle_watts, clock=clock) as meter:
                started = clock.now()
                while requests == 0 or clock.now() - started < span:
                    workload.serve(runtime)
                    requests += 1
            read = meter.reading
            blocks.append(Block(read.joules / requests, read.seconds / requests, requests))
    return blocks


def energy_measurement(
    energy: RequestEnergy, request: EvaluationRequest, grid: GridFactor, total_joules: float
) -> EnergyMeasurement:
    """The record: medians with bootstrap intervals, CO2e and cost of 1,000 requests.

    Args:
        energy: of the requests.
        request: gives the answer's length, PUE and price.
        grid: grams a kWh.
        total_joules: of the whole evaluation.
    """
    joules = bootstrap_median(energy.joules, seed=0)
    grams = co2_grams(_REQUESTS, grid.grams_per_kwh, request.pue)
    price, idle = request.price_per_kwh, energy.idle
    return EnergyMeasurement(
        joules_per_request=joules,
        co2_grams_per_1000_requests=_scaled(joules, grams),
        source=energy.counter.source,
        method=energy.counter.method,
        reason=energy.counter.reason,
        grid_grams_per_kwh=grid.grams_per_kwh,
        grid_region=grid.region,
        grid_source=grid.source,
        grid_year=grid.year,
        pue=request.pue,
        total_joules=total_joules,
        joules_per_token=joules.value / request.settings.new_tokens,
        net_joules_per_request=bootstrap_median(energy.net_joules, seed=0) if energy.net_joules else None,
        idle_watts=idle.watts if idle else None,
        idle_settled=idle.settled if idle else None,
        idle="included" if idle else "not applicable",
        price_per_kwh=price,
        cost_per_1000_requests=None
        if price is None
        else electricity_cost(_REQUESTS * joules.value, price, request.pue),
        currency="" if price is None else request.currency,
    )


def _window(counter: EnergyCounter, clock: Clock) -> float:
    before, began = next_update(counter, clock)
    clock.sleep(_IDLE_WINDOW_S)
    after, ended = next_update(counter, clock)
    return (after - before) / (ended - began)


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(
        value=estimate.value * factor,
        low=estimate.low * factor,
        high=estimate.high * factor,
        n=estimate.n,
        spread=estimate.spread * factor,
    )
