"""How long a frontier of many episodes takes: from scratch, and one more episode.

Run: ``python benchmarks/frontier.py [EPISODES]``. Timings depend on the machine; the ratios within one run do not much.
"""

from __future__ import annotations

import random
import statistics
import sys
import time

from agentic_compression.frontier import FrontierBuilder, build_frontier, hypervolume_by_episode
from agentic_compression.records import EpisodeRecord, Objectives, Strategy

EPISODES = 10_000
BASELINE = Objectives(accuracy=0.7, latency_ms=100.0, memory_gb=4.0, model_size_gb=2.0, co2_grams=10.0)


def synthetic_study(episodes: int, seed: int = 0) -> list[EpisodeRecord]:
    """A trade-off with correlated costs and 2 % noise: fewer bytes cost accuracy. For timing only."""
    draw = random.Random(seed)
    records = [_record(0, BASELINE)]
    for episode in range(1, episodes + 1):
        share, skill = draw.uniform(0.1, 1.0), draw.random()
        noise = [draw.gauss(1.0, 0.02) for _ in range(4)]
        records.append(
            _record(
                episode,
                Objectives(
                    accuracy=min(max(0.7 * share ** (0.15 + 0.5 * skill) * noise[0], 0.0), 1.0),
                    latency_ms=100 * (0.4 + 0.8 * share * draw.uniform(0.7, 1.3)) * noise[1],
                    memory_gb=4 * (0.2 + 0.8 * share) * noise[2],
                    model_size_gb=2 * share,
                    co2_grams=10 * (0.3 + 0.9 * share * draw.uniform(0.7, 1.3)) * noise[3],
                ),
            )
        )
    return records


def _record(episode: int, objectives: Objectives) -> EpisodeRecord:
    values = objectives.model_dump()
    intervals = {name: (value * 0.98, value * 1.02) for name, value in values.items()}
    return EpisodeRecord(
        study="bench",
        episode=episode,
        strategy=Strategy.parse("rtn:bits=4") if episode else Strategy(),
        status="succeeded",
        objectives=objectives,
        intervals=intervals,
    )


def main() -> None:
    episodes = int(sys.argv[1]) if len(sys.argv) > 1 else EPISODES
    records = synthetic_study(episodes + 20)
    start = time.perf_counter()
    build_frontier("bench", records[:3])
    imports = time.perf_counter() - start
    start = time.perf_counter()
    document = build_frontier("bench", records[: episodes + 1])
    scratch = time.perf_counter() - start
    builder = FrontierBuilder("bench")
    builder.extend(records[: episodes + 1])
    builder.document()
    steps = []
    for record in records[episodes + 1 :]:
        start = time.perf_counter()
        builder.add(record)
        grown = builder.document()
        steps.append(time.perf_counter() - start)
    same = grown == build_frontier("bench", records)
    start = time.perf_counter()
    history = hypervolume_by_episode(records)
    by_episode = time.perf_counter() - start
    print(f"episodes: {episodes} x 5 objectives; solutions: {len(document.solutions)}; hypervolume: {history[-1]:.4f}")
    print(f"first call of a process (imports numpy and moocore): {imports * 1e3:.1f} ms")
    print(f"from scratch: {scratch * 1e3:.1f} ms")
    print(f"one more episode: median {statistics.median(steps) * 1e3:.2f} ms, worst {max(steps) * 1e3:.2f} ms")
    print(f"from scratch / one more: {scratch / statistics.median(steps):.0f}x")
    print(f"hypervolume after every episode: {by_episode * 1e3:.0f} ms, {by_episode / scratch:.1f}x from scratch")
    print(f"incremental equals from scratch: {same}")
    if not same:
        raise SystemExit("the incremental frontier differs from the one built from scratch")


if __name__ == "__main__":
    main()
