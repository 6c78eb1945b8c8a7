"""Replays of the hybrid planner with a real language model, recorded once and played again from the record.

    python -m benchmarks.planners.transcripts record TABLE --seed N --episodes E --base-url http://host:port/v1
    python -m benchmarks.planners.transcripts replay [--tables demo]

``record`` asks any OpenAI-compatible endpoint (``OPENAI_BASE_URL``, ``OPENAI_API_KEY`` and ``ACF_PLANNER_MODEL`` where
the options are left out) and writes ``benchmarks/data/transcripts/TABLE-N.json`` after every answer. Stopped, it is
gone on with by the same command; an answer that was given is not asked for again. ``replay`` asks nothing: it tries the
recorded strategies in their order, reckons the hypervolume anew from the table, and prints it beside what the optimizer
comes to alone with the same seed, half of the items and given strategies.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from agentic_compression.planning import load_planner
from agentic_compression.planning.hybrid import HybridPlanner
from agentic_compression.planning.llm.endpoint import DEFAULT_URL, PLACEHOLDER_KEY, Answered, Endpoint, Limits, Messages
from agentic_compression.planning.llm.prompt import PROMPT_VERSION
from agentic_compression.planning.llm.reply import Reply
from agentic_compression.planning.llm.review import HYBRID_LLM
from agentic_compression.planning.registry import load_optimizer
from agentic_compression.records import BASELINE, EpisodeRecord, Expected, PlannerCall, Record, Strategy, content_digest
from agentic_compression.settings import get_settings
from agentic_compression.storage import write_atomically
from benchmarks.planners.replay import Course, Replay, course_of, episodes_of, play
from benchmarks.planners.table import DATA, Table

__all__ = ["FOLDER", "Step", "Transcript", "course", "lines", "read_all", "record_replay"]

FOLDER = DATA / "transcripts"
OPTIMIZER = "greybox"
_FEWEST = 5  # differences before an interval is given: of fewer, Student's is wider than anything that could be said
_AT = (5, 10, 20, 40)


class Step(Record):
    """One episode after the baseline."""

    strategy: str = Field(description="label")
    source: str
    rationale: str = ""
    expected: Expected = Field(default_factory=dict)
    calls: tuple[PlannerCall, ...] = Field(default=(), description="in the prompt's place its digest")
    fallback: str = ""


class Given(Record):
    """An answer of the episode that has no step yet."""

    prompt: str = Field(description="digest of the messages")
    text: str
    refusal: str = ""
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    started_at: str = ""


class Transcript(Record):
    """One replay with a language model."""

    table: str
    data: str = Field(description="digest of the table")
    seed: int
    given: int = Field(description="strategies that were given before the planner chose")
    episodes: int = Field(description="that were asked for")
    planner: str = "hybrid"
    model: str
    date: str = Field(description="of the first call, UTC")
    prompt_version: str
    override_share: float
    steps: tuple[Step, ...] = ()
    answers: tuple[Given, ...] = Field(default=(), description="of the episode that has no step yet")
    ended: str = Field(default="", description="why there are no more steps; empty where there may be")

    def write(self, folder: Path) -> None:
        """The whole of it, at once."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{self.table}-{self.seed}.json", self.model_dump_json(indent=1) + "\n")

    @property
    def complete(self) -> bool:
        """Whether nothing is left to be asked."""
        return bool(self.ended) or len(self.steps) >= self.episodes


class _Keeper:
    """The transcript being made, on disk after every change."""

    def __init__(self, transcript: Transcript, folder: Path) -> None:
        self.transcript, self._folder = transcript, folder

    def change(self, **fields: Any) -> None:
        self.transcript = self.transcript.model_copy(update=fields)
        self.transcript.write(self._folder)


class _KeepingEndpoint(Endpoint):
    """An endpoint that keeps every answer before it is used, and does not ask again what was answered.

    Args:
        keeper: of the transcript.
        arguments: of ``Endpoint``.
    """

    def __init__(self, keeper: _Keeper, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._keeper = keeper

    def ask(self, messages: Messages, schema: dict[str, Any]) -> Answered:
        """See ``Endpoint``."""
        digest = content_digest(list(messages))
        for held in self._keeper.transcript.answers:
            if held.prompt == digest:
                said = Reply(held.text, held.refusal, held.finish_reason, held.prompt_tokens, held.completion_tokens)
                return Answered(said, seconds=held.seconds, started_at=held.started_at, mode=self.dialect.mode)
        answered = super().ask(messages, schema)
        if (reply := answered.reply) is not None:
            fields = {name: getattr(reply, name) for name in ("text", "refusal", "finish_reason")}
            tokens = {name: getattr(reply, name) for name in ("prompt_tokens", "completion_tokens")}
            given = Given(prompt=digest, seconds=answered.seconds, started_at=answered.started_at, **fields, **tokens)
            self._keeper.change(answers=(*self._keeper.transcript.answers, given))
        return answered


def record_replay(
    table: Table,
    name: str,
    replay: Replay,
    episodes: int,
    endpoint: tuple[str, str, str, Limits],
    folder: Path = FOLDER,
) -> Transcript:
    """Play one replay with the hybrid planner and a language model, going on with what is on disk.

    Args:
        table: with its specification.
        name: of the table.
        replay: of the table.
        episodes: compressed ones at most.
        endpoint: URL, model, key and limits.
        folder: of the transcripts.

    Raises:
        RuntimeError: when the model gives no answer, or when what is on disk is of another table or model. Nothing of
            the episode is kept then but its answers, and the same call goes on there.
    """
    settings = get_settings()
    begun = Transcript(
        table=name,
        data=_digest(table),
        seed=replay.seed,
        given=replay.given,
        episodes=episodes,
        model=endpoint[1],
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        prompt_version=PROMPT_VERSION,
        override_share=settings.planner_override_share,
    )
    path = folder / f"{name}-{replay.seed}.json"
    keeper = _Keeper(
        _continued(Transcript.model_validate_json(path.read_text()), begun) if path.exists() else begun, folder
    )
    if keeper.transcript.complete:
        return keeper.transcript
    planner = HybridPlanner(load_optimizer(), _KeepingEndpoint(keeper, *endpoint), settings)
    done = _records(keeper.transcript, replay)
    for record in episodes_of(replay, planner, episodes, table.header.spec, done):
        if record.episode <= len(keeper.transcript.steps):
            continue
        if record.calls and record.calls[-1].status == "failed":
            raise RuntimeError(
                f"episode {record.episode}: no answer: {record.fallback}; the same command goes on there"
            )
        keeper.change(steps=(*keeper.transcript.steps, _step(record)), answers=())
        print(f"episode {record.episode}: {record.rationale or record.source}", flush=True)
    if not keeper.transcript.complete:
        last = keeper.transcript.answers[-1].text if keeper.transcript.answers else "no strategy is left"
        keeper.change(ended=last)
    return keeper.transcript


def _continued(held: Transcript, begun: Transcript) -> Transcript:
    fixed = ("data", "given", "model", "prompt_version", "override_share")
    if other := [name for name in fixed if getattr(held, name) != getattr(begun, name)]:
        raise RuntimeError(
            f"the transcript of {held.table}, seed {held.seed}, has another {', '.join(other)}; "
            "record another seed, or delete its file"
        )
    return held.model_copy(update={"episodes": begun.episodes})


def _step(record: EpisodeRecord) -> Step:
    calls = tuple(call.model_copy(update={"prompt": content_digest(call.prompt)}) for call in record.calls)
    told = {name: getattr(record, name) for name in ("source", "rationale", "expected", "fallback")}
    return Step(strategy=record.strategy.label, calls=calls, **told)


def _records(transcript: Transcript, replay: Replay) -> tuple[EpisodeRecord, ...]:
    """The recorded decisions carried out again, without the baseline's record."""
    found = []
    for episode, step in enumerate(transcript.steps, start=1):
        told = {name: getattr(step, name) for name in ("source", "rationale", "expected", "calls", "fallback")}
        found.append(replay.record(Strategy.parse(step.strategy), episode).model_copy(update=told))
    return tuple(found)


def _digest(table: Table) -> str:
    return content_digest(table.model_dump(mode="json"))


def read_all(tables: Sequence[str], folder: Path | None = None) -> list[Transcript]:
    """All transcripts of these tables, by table and seed."""
    found = [Transcript.model_validate_json(path.read_text()) for path in sorted((folder or FOLDER).glob("*.json"))]
    return sorted((item for item in found if item.table in tables), key=lambda item: (item.table, item.seed))


def course(transcript: Transcript, table: Table) -> Course:
    """The recorded strategies in their order, with what the table says of them.

    Raises:
        ValueError: when the table is not the one that was recorded on.
    """
    if transcript.data != _digest(table):
        raise ValueError(f"transcript {transcript.table}-{transcript.seed} is of another state of the table")
    replay = Replay(table, transcript.seed, given=transcript.given)
    return course_of(replay, (replay.record(BASELINE, 0), *_records(transcript, replay)))


def lines(transcripts: Sequence[Transcript], table: Table) -> list[str]:
    """What recorded models came to on one table, beside the optimizer alone."""
    printed: list[str] = []
    for model in dict.fromkeys(item.model for item in transcripts):
        items = [item for item in transcripts if item.model == model and item.steps]
        printed += [f"recorded: {model}, transcripts: {len(items)}" + ("" if items else " (none has an episode yet)")]
        differences = []
        for item in items:
            recorded, episodes = course(item, table), len(item.steps)
            replay = Replay(table, item.seed, given=item.given)
            alone = play(replay, load_planner(OPTIMIZER), episodes, table.header.spec)
            own = sum(source == HYBRID_LLM for source in recorded.sources)
            state = "" if item.complete else f" of {item.episodes}"
            printed += [
                f"  seed {item.seed}, {item.date[:10]}, prompt {item.prompt_version}, {episodes}{state} episodes, "
                f"{sum(len(step.calls) for step in item.steps)} calls, {own} strategies its own",
                _line("hybrid", recorded, item.given),
                _line(f"{OPTIMIZER} alone", alone, item.given),
            ]
            if episodes > item.given:
                differences.append(recorded.area(item.given) - alone.area(item.given))
        printed += [f"  hybrid ahead of {OPTIMIZER} alone in area: {_summary(differences)}"] if differences else []
    return printed


def _line(name: str, found: Course, given: int) -> str:
    reached = [f"{found.volumes[at]:.3f}" if at < len(found.volumes) else "     " for at in _AT]
    area = f"{found.area(given):.4f}" if len(found.volumes) > given + 1 else "     -"
    return f"    {name:14} {'  '.join(reached)}  area {area}"


def _summary(differences: Sequence[float]) -> str:
    """The mean, and of the spread as much as so many values can say."""
    count = len(differences)
    if count == 1:
        return f"{differences[0]:+.4f} (one transcript: nothing is said of others)"
    mean = f"{statistics.fmean(differences):+.4f}"
    if count < _FEWEST:
        return f"{mean}, from {min(differences):+.4f} to {max(differences):+.4f} (n = {count}, too few for an interval)"
    from scipy.stats import t

    half = float(t.ppf(0.975, count - 1)) * statistics.stdev(differences) / count**0.5
    middle = statistics.fmean(differences)
    return f"{mean} [{middle - half:+.4f}, {middle + half:+.4f}] (n = {count}, Student's 95 % interval)"


def main() -> None:
    """Record, or print what was recorded."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ways = parser.add_subparsers(dest="way", required=True)
    recorder = ways.add_parser("record", help="play one replay with a language model")
    recorder.add_argument("table")
    recorder.add_argument("--seed", type=int, default=0)
    recorder.add_argument("--episodes", type=int, default=20)
    recorder.add_argument("--given", type=int, default=Replay.given)
    recorder.add_argument("--base-url", help="OPENAI_BASE_URL where left out")
    recorder.add_argument("--model", help="ACF_PLANNER_MODEL where left out")
    recorder.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="of one answer")
    player = ways.add_parser("replay", help="print what was recorded")
    player.add_argument("--tables", default="")
    options = parser.parse_args()
    if options.way == "record":
        _record(options)
        return
    names = options.tables.split(",") if options.tables else sorted(path.stem for path in DATA.glob("*.json"))
    for name in names:
        if found := read_all([name]):
            print("\n".join([name, *lines(found, Table.read(DATA / f"{name}.json"))]))


def _record(options: argparse.Namespace) -> None:
    settings = get_settings()
    key = settings.openai_api_key.get_secret_value() if settings.openai_api_key else PLACEHOLDER_KEY
    url, model = options.base_url or settings.openai_base_url or DEFAULT_URL, options.model or settings.planner_model
    limits = Limits(settings.planner_max_tokens, options.timeout, deadline_s=options.timeout)
    table = Table.read(DATA / f"{options.table}.json")
    replay = Replay(table, options.seed, given=options.given)
    try:
        made = record_replay(table, options.table, replay, options.episodes, (url, model, key, limits))
    except RuntimeError as problem:
        raise SystemExit(str(problem)) from None
    print("\n".join(lines([made], table)))


if __name__ == "__main__":
    main()
