"""Model servers under load, side by side, and a soak test of ours.

    python -m benchmarks.serving [MODEL] [--seconds 6] [--clients 1,4,16] [--rounds 3] [--threads 1]
    python -m benchmarks.serving [MODEL] --soak 60 [--clients 64]

Comparison: N clients stream answers of one length over real sockets, from the same checkpoint served by
``acf serve`` and by ``transformers serve``, and, as a GGUF file in float16, by ``acf serve`` and by llama.cpp's own
server. Beside them stands our engine without a server: the scheduler with the same requests in one process, and the
runtime's ``time_batch``, which decodes equal requests and makes no text. All are measured in turns, because a machine's
speed drifts; figures are medians of the rounds and ratios are medians of the rounds' ratios.

All decode greedily (temperature 0), so that no server's own defaults of sampling count. Every request has a prompt of
its own that differs from the first word on, so that caches of prompts do not decide. Threads and slots are the same;
otherwise the others' servers are as they come from their makers, llama.cpp's cache of prompts included. A server is not
available, with the reason, when its first token takes more than 25 s from its start, when an answer fails or is shorter
than asked for, or when answers still come long after a measurement's end. The default run takes less than 10 minutes.

Soak: many clients stream at once, and some hang up in the middle. No answer may break, no request may be left, the
engine that unloads must be gone, and the server's memory must be back where it was. The exit code is 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.serving_clients import Endpoint, Tally, storm
from benchmarks.serving_contenders import contenders, copy_endless, make_gguf, run_llama_server, running
from benchmarks.serving_offline import offline, print_offline
from benchmarks.serving_soak import show, soak

_OURS, _SCHEDULER, _RUNTIME = "acf serve", "scheduler alone", "runtime alone"
_LATE_S = 20.0
"""For the answers that are under way when a measurement's time is over."""
Samples = dict[tuple[str, str, int], list[tuple[float, list[float]]]]
"""By form, server and clients: of every round, tokens a second, and seconds to the first tokens."""


def compare(arguments: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Everything, as JSON values."""
    counts = [int(part) for part in arguments.clients.split(",")]
    folders = {"dense": copy_endless(arguments.model, root / "dense")}
    folders["gguf"] = copy_endless(make_gguf(arguments.model, root / "made"), root / "gguf")
    samples: Samples = defaultdict(list)
    missing: dict[tuple[str, str], str] = {}
    with ExitStack() as stack:
        servers: list[tuple[str, str, Endpoint]] = []
        for number, contender in enumerate(
            contenders(folders["dense"], folders["gguf"], max(counts), arguments.threads)
        ):
            try:
                endpoint, _ = stack.enter_context(running(contender, root / f"server-{number}.log"))
                servers.append((contender.form, contender.name, endpoint))
            except RuntimeError as error:
                missing[contender.form, contender.name] = str(error)[:600]
            _say(f"{contender.form} {contender.name}: {missing.get((contender.form, contender.name), 'answers')}")
        for turn in range(arguments.rounds):
            _measure_round(arguments, counts, servers[turn:] + servers[:turn], samples, missing)
            for form, folder in folders.items():
                alone = offline(folder, max(counts), arguments.new_tokens, arguments.seconds, arguments.threads)
                for name, rate in zip((_SCHEDULER, _RUNTIME), alone, strict=True):
                    samples[form, name, max(counts)].append((rate, []))
                    _say(f"{form} {name}, {max(counts)} requests: {rate:.1f} tokens/s")
    return {
        "model": str(arguments.model),
        "new_tokens": arguments.new_tokens,
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "rates": _summaries(samples),
        "not_available": {f"{form} {name}": why for (form, name), why in missing.items()},
    }


def _measure_round(
    arguments: argparse.Namespace,
    counts: list[int],
    servers: list[tuple[str, str, Endpoint]],
    samples: Samples,
    missing: dict[tuple[str, str], str],
) -> None:
    for clients in counts:
        for form, name, endpoint in servers:
            if (form, name) in missing:
                continue
            begun = time.perf_counter()
            tally = asyncio.run(_storm_in_time(endpoint, clients, arguments.seconds, arguments.new_tokens))
            if tally.errors or not tally.answers:
                missing[form, name] = f"with {clients} clients: {tally.errors[:2] or 'no answer'}"
                _say(f"{form} {name}, {missing[form, name]}")
                continue
            rate = tally.tokens / (time.perf_counter() - begun)
            samples[form, name, clients].append((rate, tally.first_token_s))
            _say(f"{form} {name}, {clients} clients: {rate:.1f} tokens/s")


async def _storm_in_time(endpoint: Endpoint, clients: int, seconds: float, new_tokens: int) -> Tally:
    try:
        async with asyncio.timeout(seconds + _LATE_S):
            return await storm(endpoint, clients, seconds, new_tokens)
    except TimeoutError:
        return Tally(errors=[f"answers still came {_LATE_S:g} s after the measurement"])


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _summaries(samples: Samples) -> list[dict[str, Any]]:
    found = []
    for (form, name, clients), rounds in samples.items():
        firsts = [seconds for _, of_round in rounds for seconds in of_round]
        base = samples.get((form, _OURS, clients), [])
        ratios = [ours / rate for (ours, _), (rate, _) in zip(base, rounds, strict=False)]
        found.append(
            {
                "form": form,
                "server": name,
                "clients": clients,
                "tokens_per_s": statistics.median(rate for rate, _ in rounds),
                "first_token_ms": statistics.median(firsts) * 1e3 if firsts else None,
                "ours_over_this": statistics.median(ratios) if ratios else None,
                "rounds": len(rounds),
            }
        )
    return sorted(found, key=lambda item: (item["form"], item["clients"], item["server"]))


def _table(found: dict[str, Any]) -> str:
    lines = [f"{'form':6} {'clients':>7}  {'server':42} {'tokens/s':>9} {'first token':>12} {'acf serve/this':>14}"]
    for item in found["rates"]:
        first = "" if item["first_token_ms"] is None else f"{item['first_token_ms']:.1f} ms"
        ratio = "" if item["ours_over_this"] is None else f"{item['ours_over_this']:.2f}"
        cells = f"{item['tokens_per_s']:9.1f} {first:>12} {ratio:>14}"
        lines.append(f"{item['form']:6} {item['clients']:7}  {item['server']:42} {cells}")
    return "\n".join([*lines, *(f"not available: {name}: {why}" for name, why in found["not_available"].items())])


def _read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="checkpoint folder; the demo model when left out")
    parser.add_argument("--seconds", type=float, default=6.0, help="of a measurement")
    parser.add_argument("--rounds", type=int, default=3, help="all servers in turns")
    parser.add_argument("--clients", help="1,4,16; of the soak test 64")
    parser.add_argument("--new-tokens", type=int, default=32, help="of an answer")
    parser.add_argument("--threads", type=int, default=1, help="of an engine")
    parser.add_argument("--soak", type=float, metavar="SECONDS", help="soak test instead of the comparison")
    parser.add_argument("--growth-mb", type=float, default=30.0, help="that the server may keep after the soak test")
    parser.add_argument("--offline", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--llama-server", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--slots", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.clients = arguments.clients or ("64" if arguments.soak else "1,4,16")
    if arguments.model is None:
        from agentic_compression.demo import model_path

        arguments.model = model_path()
    return arguments


def main() -> int:
    """Measure, print JSON on standard output and a table on standard error; the exit code."""
    arguments = _read_arguments()
    if arguments.llama_server:
        run_llama_server(arguments.llama_server, arguments.port, arguments.slots, arguments.threads)
        return 0
    if arguments.offline:
        asked = (arguments.offline, arguments.new_tokens, arguments.seconds, arguments.threads)
        print_offline(arguments.model, *asked)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are ended too
    with tempfile.TemporaryDirectory(prefix="acf-serving-") as folder:
        if arguments.soak:
            endless = copy_endless(arguments.model, Path(folder) / "model")
            asked = (int(arguments.clients), arguments.new_tokens, arguments.threads, arguments.growth_mb)
            found = soak(endless, arguments.soak, *asked)
            table, code = show(found), int(bool(found["problems"]))
        else:
            found = compare(arguments, Path(folder))
            table, code = _table(found), 0
    print(json.dumps(found, indent=2))
    print(table, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
