"""What stands between a study's results and their promotion: the checked results table.

The report is kept beside the study's other files. A table that has not changed is not checked again, and rows of
unchanged episodes are not read again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from agentic_compression.frontier import comparable, excluded
from agentic_compression.records import EpisodeRecord, Excluded, Record, ValidationCheck
from agentic_compression.storage import write_atomically, write_record
from agentic_compression.study.results_page import results_page
from agentic_compression.study.results_suite import SUITE_VERSION, Finding, check_rows
from agentic_compression.study.results_table import ResultRow, result_rows
from agentic_compression.study.workbench import Workbench

__all__ = ["REPORT_FILES", "ResultsValidation", "validate_results"]

REPORT_FILES = ("results_validation.json", "results_validation.html")


class ResultsValidation(Record):
    """``results_validation.json``: every expectation, and every row that did not meet one."""

    study: str
    success: bool
    table_digest: str
    checks: tuple[ValidationCheck, ...]
    findings: tuple[Finding, ...]
    rows: tuple[ResultRow, ...]
    environment_excluded: tuple[Excluded, ...] = ()
    library_version: str

    @property
    def excluded(self) -> tuple[Excluded, ...]:
        """Episodes that are neither ranked nor promoted, each with every reason."""
        reasons = {item.episode: [item.reason] for item in self.environment_excluded}
        for finding in self.findings:
            if finding.consequence == "excluded":
                reasons.setdefault(finding.episode, []).append(f"{finding.expectation}: {finding.reason}")
        return tuple(
            Excluded(episode=episode, reason="; ".join(dict.fromkeys(reasons[episode]))) for episode in sorted(reasons)
        )

    @property
    def withheld(self) -> Mapping[int, str]:
        """Episodes that may be ranked and are not promoted, each with every reason."""
        reasons: dict[int, list[str]] = {}
        for finding in self.findings:
            if finding.consequence == "withheld":
                reasons.setdefault(finding.episode, []).append(f"{finding.expectation}: {finding.reason}")
        return {episode: "; ".join(dict.fromkeys(found)) for episode, found in sorted(reasons.items())}

    def ranked(self, records: Sequence[EpisodeRecord]) -> list[EpisodeRecord]:
        """The records as the frontier may see them: excluded ones without their results."""
        return comparable(records, self.excluded)


def validate_results(study: str, records: Sequence[EpisodeRecord], bench: Workbench) -> ResultsValidation:
    """Check the study's results table and write the report; the caller holds the study's lock.

    Args:
        study: its name.
        records: everything recorded of it.
        bench: gives the full evaluations and keeps the report with the study's history.
    """
    folder = bench.folder(study)
    kept = _kept(folder / REPORT_FILES[0])
    rows = result_rows(records, lambda episode: bench.history.evaluation(study, episode), kept.rows if kept else ())
    digest = _digest(rows)
    if kept is not None and kept.table_digest == digest and (folder / REPORT_FILES[1]).is_file():
        return kept
    checks, findings, version = check_rows(rows) if rows else ((), (), "")
    apart = excluded(records)
    report = ResultsValidation(
        study=study,
        success=not apart and all(finding.consequence == "warning" for finding in findings),
        table_digest=digest,
        checks=checks,
        findings=findings,
        rows=rows,
        environment_excluded=apart,
        library_version=version,
    )
    page = results_page(study, checks, (report.excluded, report.withheld, findings), version)
    texts = zip(REPORT_FILES, (report.model_dump_json(indent=2), page), strict=True)
    write_atomically(folder / REPORT_FILES[1], page)
    bench.history.attach(study, dict(texts))
    write_record(folder / REPORT_FILES[0], report)  # last: it says that the others belong to this table
    return report


def _kept(path: Path) -> ResultsValidation | None:
    """The report that lies there; None when there is none, or it is damaged or of another suite: it is made again."""
    try:
        report = ResultsValidation.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        return None
    return report if report.table_digest == _digest(report.rows) else None


def _digest(rows: Sequence[ResultRow]) -> str:
    text = "\n".join((str(SUITE_VERSION), *(row.model_dump_json() for row in rows)))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
