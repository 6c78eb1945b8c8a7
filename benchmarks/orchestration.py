"""What ZenML and MLflow cost an episode: the same episodes with them and as bare functions, in one run.

    python -m benchmarks.orchestration [--episodes 4]

Both sides do the real work (compress and evaluate the demo model in child processes) in state roots of their own,
with the same seed and so the same strategies. The first episode of each side (imports, new databases) is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

__all__ = ["main"]


def main() -> None:
    """Print seconds an episode of both sides and their difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=4, help="counted episodes a side")
    parser.add_argument("--side", choices=("bare", "full"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(_seconds(arguments.side, arguments.episodes)))
        return
    found = {side: _in_own_process(side, arguments.episodes) for side in ("bare", "full")}
    bare, full = (statistics.median(found[side]) for side in ("bare", "full"))
    for side, seconds in found.items():
        print(f"{side}: {' '.join(f'{value:.2f}' for value in seconds)} s, median {statistics.median(seconds):.2f} s")
    print(f"ZenML + MLflow over bare functions: {full - bare:+.2f} s an episode, ratio {full / bare:.2f}")


def _in_own_process(side: str, episodes: int) -> list[float]:
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-m", "benchmarks.orchestration", "--side", side, "--episodes", str(episodes)]
        environment = {**os.environ, "ACF_HOME": root}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(done.stderr)
    seconds: list[float] = json.loads(done.stdout.strip().splitlines()[-1])
    return seconds


def _seconds(side: str, episodes: int) -> list[float]:
    from agentic_compression.records import EvaluationSettings, StudyConfig

    study = StudyConfig(
        model="demo", dataset="demo", name="benchmark", episodes=episodes, evaluation=EvaluationSettings(limit=200)
    )
    run_one = _bare() if side == "bare" else _full()
    taken = []
    for _ in range(episodes + 1):
        begun = time.perf_counter()
        run_one(study)
        taken.append(time.perf_counter() - begun)
    return taken[1:]


def _bare():  # type: ignore[no-untyped-def]
    from agentic_compression import study as domain
    from agentic_compression.execution import shared_supervisor
    from agentic_compression.settings import get_settings
    from agentic_compression.testing.memory_history import MemoryHistory

    bench = domain.Workbench(get_settings(), MemoryHistory(), shared_supervisor())
    Path(bench.settings.experiments).mkdir(parents=True, exist_ok=True)

    def run_one(study):  # type: ignore[no-untyped-def]
        spec = domain.infer_model_spec(study, bench)
        dataset, _ = domain.validate_data(study, bench)
        plan = domain.plan_episode(study, spec, dataset, bench)
        compressed = domain.compress(study, spec, dataset, plan, bench)
        evaluated = domain.evaluate(study, dataset, compressed, bench)
        domain.update_frontier(study, plan, compressed, evaluated, bench)

    return run_one


def _full():  # type: ignore[no-untyped-def]
    from agentic_compression import orchestration
    from agentic_compression.settings import get_settings

    settings = get_settings()
    orchestration.prepare_environment(settings)
    orchestration.ensure_stack(settings)
    return orchestration.run_episode


if __name__ == "__main__":
    main()
