"""Great Expectations over a study's results: every expectation can fail, and says what follows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentic_compression import study as domain
from agentic_compression.checkpoints.manifest import MANIFEST_NAME, AdaptedModule, CheckpointManifest
from agentic_compression.records import Environment, EpisodeRecord, Estimate, Evaluation, Report, RungReading, Strategy
from agentic_compression.settings import get_settings
from agentic_compression.study.results_validation import ResultsValidation, validate_results
from agentic_compression.testing.memory_history import MemoryHistory
from agentic_compression.testing.records import make_evaluation, make_plan, make_record
from agentic_compression.testing.scripted_supervisor import ScriptedSupervisor

Change = Callable[[EpisodeRecord], EpisodeRecord]


def _record(folder: Path, episode: int, bits: int = 8, **changes: Any) -> EpisodeRecord:
    evaluation = make_evaluation(size_bytes=10_000_000 - 500_000 * (16 - bits if episode else 0))
    record = make_record(
        make_plan("s", episode, f"rtn:bits={bits}" if episode else ""), folder / str(episode), evaluation
    )
    assert record.checkpoint is not None
    measured = evaluation.model_copy(update={"checkpoint_digest": record.checkpoint.digest})
    return record.model_copy(update={"evaluation": measured, "environment": evaluation.environment, **changes})


def _measured(record: EpisodeRecord, **changes: Any) -> EpisodeRecord:
    assert record.evaluation is not None
    return record.model_copy(update={"evaluation": record.evaluation.model_copy(update=changes)})


def _nested(record: EpisodeRecord, part: str, **changes: Any) -> EpisodeRecord:
    return _measured(record, **{part: getattr(record.evaluation, part).model_copy(update=changes)})


def _benchmark(record: EpisodeRecord, **changes: Any) -> EpisodeRecord:
    assert record.evaluation is not None
    return _measured(record, benchmarks=(record.evaluation.benchmarks[0].model_copy(update=changes),))


def _objective(record: EpisodeRecord, **changes: float) -> EpisodeRecord:
    assert record.objectives is not None
    return record.model_copy(update={"objectives": record.objectives.model_copy(update=changes)})


def _stored(record: EpisodeRecord, **changes: Any) -> EpisodeRecord:
    assert record.checkpoint is not None
    return record.model_copy(update={"checkpoint": record.checkpoint.model_copy(update=changes)})


def _bench(*records: EpisodeRecord) -> domain.Workbench:
    history = MemoryHistory()
    for record in records:
        history.record(record)
    return domain.Workbench(get_settings(), history, ScriptedSupervisor())


def _validate(*records: EpisodeRecord) -> ResultsValidation:
    bench = _bench(*records)
    return validate_results("s", bench.history.records("s"), bench)


def _explain(record: EpisodeRecord) -> None:
    """Write the manifest that accounts for the checkpoint's bytes."""
    assert record.checkpoint is not None
    manifest = CheckpointManifest(
        base_digest="b", strategy=Strategy(), modules={"model.layers.0.mlp.up_proj": AdaptedModule(rank=8)}
    )
    (Path(record.checkpoint.path) / MANIFEST_NAME).write_text(manifest.model_dump_json())


def _reading(passed: bool) -> tuple[RungReading, ...]:
    return (RungReading(rung=2, quantity="accuracy", value=0.5, low=0.4, high=0.6, n=10, passed=passed),)


NAN = math.nan
EXCLUDED: dict[str, tuple[Change, str]] = {
    "infinite": (lambda r: _objective(r, latency_ms=math.inf), "latency_ms"),
    "nan": (lambda r: _objective(r, co2_grams=NAN), "co2_grams"),
    "nan bound": (lambda r: r.model_copy(update={"intervals": {**r.intervals, "memory_gb": (NAN, 1.0)}}), "memory_gb"),
    "accuracy": (lambda r: _objective(r, accuracy=1.5), "[0, 1]"),
    "no latency": (lambda r: _objective(r, latency_ms=0.0), "latency_ms must be above 0 ms"),
    "no memory": (lambda r: _objective(r, memory_gb=0.0), "memory_gb must be above 0"),
    "no size": (lambda r: _objective(r, model_size_gb=0.0), "model_size_gb must be above 0"),
    "no co2": (lambda r: _objective(r, co2_grams=0.0), "co2_grams must be above 0"),
    "other items": (lambda r: _benchmark(r, items_digest="other"), "items of demo_mc"),
    "fewer items": (lambda r: _benchmark(r, score=Estimate(value=0.9, low=0.8, high=1, n=10)), "number of items"),
    "other harness": (lambda r: _benchmark(r, harness="lm-eval 9"), "harness of demo_mc"),
    "search split": (lambda r: _measured(r, split="search"), "items must be"),
    "measured energy": (lambda r: _nested(r, "energy", source="measured"), "energy source"),
    "other device": (lambda r: _nested(r, "environment", device="cuda:0"), "device must be the baseline's 'cpu'"),
    "other threads": (lambda r: _nested(r, "environment", threads=7), "threads"),
    "rejected": (lambda r: r.model_copy(update={"status": "rejected"}), "rejected"),
    "proxy": (lambda r: r.model_copy(update={"screening": _reading(False)}), "rung 2"),
}
WITHHELD: dict[str, tuple[Change, str]] = {
    "interval beside": (lambda r: r.model_copy(update={"intervals": {"latency_ms": (11.0, 12.0)}}), "must contain"),
    "interval below": (lambda r: r.model_copy(update={"intervals": {"latency_ms": (1.0, 2.0)}}), "must contain"),
    "no evaluation": (lambda r: r.model_copy(update={"evaluation": None}), "no evaluation"),
    "no digest": (lambda r: _stored(_measured(r, checkpoint_digest=""), digest=""), "content digest"),
    "other checkpoint": (lambda r: _measured(r, checkpoint_digest="other"), "what is stored"),
    "other bytes": (lambda r: _measured(r, size_bytes=5), "bytes"),
    "grown": (
        lambda r: _stored(_measured(r, size_bytes=11_000_000), size_bytes=11_000_000),
        "larger than the baseline",
    ),
}


def test_sound_results_pass(home: Path) -> None:
    report = _validate(*(_record(home, number, bits) for number, bits in ((0, 8), (1, 8), (2, 4))))
    assert report.success, report.findings
    assert (report.excluded, report.withheld, report.findings) == ((), {}, ())
    assert len(report.checks) > 20


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> ResultsValidation:
    """One study with every fault, an episode each, checked once."""
    from agentic_compression.study.results_suite import check_rows
    from agentic_compression.study.results_table import result_rows

    folder = tmp_path_factory.mktemp("spoiled")
    records = [_record(folder, 0)]
    for number, (change, _) in enumerate([*EXCLUDED.values(), *WITHHELD.values()], start=1):
        made = _record(folder, number)
        made = _measured(_stored(made, digest=f"d{number}"), checkpoint_digest=f"d{number}")
        records.append(change(made))
    rows = result_rows(records, lambda episode: None)
    checks, findings, version = check_rows(rows)
    return ResultsValidation(
        study="s", success=False, table_digest="", checks=checks, findings=findings, rows=rows, library_version=version
    )


@pytest.mark.parametrize("name", [*EXCLUDED, *WITHHELD])
def test_every_fault_is_found_with_its_consequence(spoiled: ResultsValidation, name: str) -> None:
    episode = [*EXCLUDED, *WITHHELD].index(name) + 1
    reasons = {item.episode: item.reason for item in spoiled.excluded}
    if name in EXCLUDED:
        assert EXCLUDED[name][1] in reasons[episode]
        assert "expect_" in reasons[episode]
    else:
        assert episode not in reasons
        assert WITHHELD[name][1] in spoiled.withheld[episode]


def test_only_the_faulty_rows_are_named(spoiled: ResultsValidation) -> None:
    assert 0 not in {finding.episode for finding in spoiled.findings}
    assert len({finding.episode for finding in spoiled.findings}) == len(EXCLUDED) + len(WITHHELD)


def test_reports_on_other_items_are_excluded_and_a_missing_one_is_not(home: Path) -> None:
    records = [_record(home, number) for number in range(4)]
    reports = []
    for record in records:
        assert record.evaluation is not None
        reports.append(Report(accuracy=record.evaluation.accuracy, benchmarks=record.evaluation.benchmarks))
    other = reports[1].benchmarks[0].model_copy(update={"items_digest": "other"})
    reports[1] = reports[1].model_copy(update={"benchmarks": (other,)})
    reports[3] = reports[3].model_copy(update={"benchmarks": ()})
    records = [
        _stored(_measured(record, checkpoint_digest=f"d{record.episode}"), digest=f"d{record.episode}")
        for record in records
    ]
    report = _validate(
        records[0].model_copy(update={"report": reports[0]}),
        records[1].model_copy(update={"report": reports[1]}),
        records[2],
        records[3].model_copy(update={"report": reports[3]}),
    )
    left_out = {item.episode: item.reason for item in report.excluded}
    assert list(left_out) == [1, 3]
    assert "reported items of demo_mc" in left_out[1]
    assert "reported tasks must be the baseline's 'demo_mc', got ''" in left_out[3]


def test_one_checkpoint_with_two_results_is_withheld(home: Path) -> None:
    first = _stored(_record(home, 1), digest="twin")
    slow = make_evaluation(latency_ms=20, size_bytes=first.checkpoint.size_bytes if first.checkpoint else 0)
    second = make_record(make_plan("s", 2, "rtn:bits=8"), home / "2", slow)
    second = _stored(second, digest="twin")
    pair = [_measured(record, checkpoint_digest="twin") for record in (first, second)]
    report = _validate(_record(home, 0), *pair)
    assert set(report.withheld) == {1, 2}
    assert "episode 2 (latency_ms" in report.withheld[1]
    same = _validate(_record(home, 0), pair[0], pair[0].model_copy(update={"episode": 2}))
    assert same.success


def test_bytes_that_the_checkpoint_accounts_for_are_a_warning(home: Path) -> None:
    record = WITHHELD["grown"][0](_record(home, 1))
    _explain(record)
    report = _validate(_record(home, 0), record)
    assert report.success
    (finding,) = report.findings
    assert finding.consequence == "warning"
    assert "1 layers keep 16-bit adapters" in finding.reason


def test_the_report_is_kept_and_an_unchanged_table_is_not_checked_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = _bench(_record(home, 0), EXCLUDED["other items"][0](_record(home, 1)))
    records = bench.history.records("s")
    report = validate_results("s", records, bench)
    assert not report.success
    folder = bench.folder("s")
    assert json.loads((folder / "results_validation.json").read_text())["success"] is False
    page = (folder / "results_validation.html").read_text()
    assert "items of demo_mc" in page
    assert "http" not in page
    assert isinstance(bench.history, MemoryHistory)
    assert bench.history.attached["s"]["results_validation.html"] == page
    read: list[int] = []

    def evaluation(study: str, episode: int) -> Evaluation | None:
        read.append(episode)
        return None

    monkeypatch.setattr(bench.history, "evaluation", evaluation)
    monkeypatch.setattr("agentic_compression.study.results_validation.check_rows", None)
    assert validate_results("s", records, bench) == report
    assert read == []


@pytest.mark.parametrize("damage", ["cut", "row", "suite"])
def test_a_damaged_report_is_made_again(home: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    """Rows are kept from one report to the next, so that a wrong one would stay in all of them."""
    bench = _bench(_record(home, 0))
    validate_results("s", bench.history.records("s"), bench)
    path = bench.folder("s") / "results_validation.json"
    sound = path.read_text()
    if damage == "cut":
        path.write_text("{")
    elif damage == "row":
        path.write_text(sound.replace('"threads": "', '"threads": "9'))
        assert path.read_text() != sound
    else:
        monkeypatch.setattr("agentic_compression.study.results_validation.SUITE_VERSION", 99)
        monkeypatch.setattr("agentic_compression.study.results_table._numbers", lambda *_: {})
    made = validate_results("s", bench.history.records("s"), bench)
    if damage == "suite":
        assert [row.numbers for row in made.rows] == [{}]
    else:
        assert path.read_text() == sound


@pytest.mark.parametrize("broken", ["page", "history", "report"])
def test_a_report_that_was_cut_short_is_made_again(home: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Killed between two files: the next call must not take the old page for the new report's."""
    bench = _bench(_record(home, 0))
    validate_results("s", bench.history.records("s"), bench)
    bench.history.record(EXCLUDED["other items"][0](_record(home, 1)))

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        module = "agentic_compression.study.results_validation"
        names = {"page": f"{module}.write_atomically", "report": f"{module}.write_record"}
        if broken == "history":
            patch.setattr(bench.history, "attach", die)
        else:
            patch.setattr(names[broken], die)
        with pytest.raises(KeyboardInterrupt):
            validate_results("s", bench.history.records("s"), bench)
    validate_results("s", bench.history.records("s"), bench)
    assert isinstance(bench.history, MemoryHistory)
    for name, text in bench.history.attached["s"].items():
        assert "items of demo_mc" in text
        assert (bench.folder("s") / name).read_text().strip() == text.strip()


def test_an_evaluation_that_comes_back_is_read(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The history's files can be out of reach for a while; the row made meanwhile must not stay."""
    bench = _bench(_record(home, 0), _record(home, 1))
    with monkeypatch.context() as patch:
        patch.setattr(bench.history, "evaluation", lambda study, episode: None)
        assert list(validate_results("s", bench.history.records("s"), bench).withheld) == [1]
    assert validate_results("s", bench.history.records("s"), bench).success


def test_a_checkpoint_that_comes_back_explains_its_bytes(home: Path) -> None:
    """Rebuilt after its folder was deleted: what it says of its size is read then."""
    grown = WITHHELD["grown"][0](_record(home, 1))
    bench = _bench(_record(home, 0), grown)
    assert list(validate_results("s", bench.history.records("s"), bench).withheld) == [1]
    _explain(grown)
    assert validate_results("s", bench.history.records("s"), bench).success


def test_a_study_ranks_and_learns_from_comparable_episodes_alone(home: Path) -> None:
    from agentic_compression.records import StudyConfig

    other = _nested(_record(home, 1, bits=2), "environment", device="cuda:0 (H200)")
    other = other.model_copy(update={"environment": Environment(device="cuda:0 (H200)")})
    bench = _bench(_record(home, 0), other)
    config = StudyConfig(model="m", dataset="d", name="s")
    bench.history.open_study(config)
    from agentic_compression.study.episode import rebuild_frontier

    document = rebuild_frontier(config, bench, termination=None)
    assert [solution.episode for solution in document.solutions] == [0]
    (left_out,) = document.excluded
    assert left_out.episode == 1
    assert "device is cuda:0 (H200), the baseline's cpu" in left_out.reason


@pytest.mark.parametrize("text", ["<script>", "&"])
def test_the_page_escapes_what_comes_from_data(home: Path, text: str) -> None:
    bench = _bench(_record(home, 0), _benchmark(_record(home, 1), items_digest=text))
    validate_results("s", bench.history.records("s"), bench)
    page = (bench.folder("s") / "results_validation.html").read_text()
    assert "<script>" not in page
    assert "items of demo_mc" in page
