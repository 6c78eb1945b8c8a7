"""The findings as Markdown files for people, with front matter for programs; a person's notes in them stay.

``knowledge/methods/gptq.md``, ``knowledge/pairs/wanda--gptq.md``, ``knowledge/sizes/tiny.md`` and
``knowledge/families/llama.md`` are a function of the experiments, apart from what stands between ``NOTES_BEGIN`` and
``NOTES_END``. Front matter is YAML whose values are written as JSON, which is YAML too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

from agentic_compression.memory.experiments import read_experiences
from agentic_compression.memory.findings import Finding, findings
from agentic_compression.memory.quarantine import set_aside
from agentic_compression.memory.workspace import Workspace, read_regular
from agentic_compression.storage import write_atomically

__all__ = ["NOTES_BEGIN", "NOTES_END", "refresh_knowledge", "write_knowledge"]

NOTES_BEGIN = "<!-- notes: what you write between these two lines is kept -->"
NOTES_END = "<!-- end of notes -->"

_MOST_BYTES = 4 << 20
_MOST_STUDIES = 12
_FOLDERS = {"method": "methods", "pair": "pairs", "size": "sizes", "family": "families"}


def refresh_knowledge(workspace: Workspace, size_class: Callable[[int], str]) -> int:
    """Derive every file from the experiments again; returns how many were written.

    Args:
        workspace: where memory lies.
        size_class: the class of a number of parameters.
    """
    with workspace.lock():
        return write_knowledge(workspace, findings(read_experiences(workspace).values(), size_class))


def write_knowledge(workspace: Workspace, found: Sequence[Finding]) -> int:
    """Rewrite the files that have changed; the caller holds the workspace's lock. Returns how many were written.

    A file whose experiments are gone is removed, unless it holds notes: then it stays and says so.
    """
    pages = _pages(found)
    for path in sorted(workspace.knowledge.glob("*/*")):
        if path.suffix == ".md" and path.parent.name in _FOLDERS.values():
            kind = next(kind for kind, folder in _FOLDERS.items() if folder == path.parent.name)
            pages.setdefault((kind, path.stem), (path.stem, []))
    written = 0
    for (kind, stem), (subject, items) in sorted(pages.items()):
        written += _update(workspace, workspace.knowledge / _FOLDERS[kind] / f"{stem}.md", kind, subject, items)
    return written


def _pages(found: Sequence[Finding]) -> dict[tuple[str, str], tuple[str, list[Finding]]]:
    """By kind and file name: the subject and its findings."""
    pages: dict[tuple[str, str], tuple[str, list[Finding]]] = {}
    for item in found:
        if item.scope == "all":
            kind, subject = "method" if len(item.methods) == 1 else "pair", " → ".join(item.methods)
            stem = "--".join(item.methods)
        else:
            kind, subject = item.scope, item.where
            stem = _stem(item.where)
        pages.setdefault((kind, stem), (subject, []))[1].append(item)
    return pages


def _stem(name: str) -> str:
    """A file name for a name from outside; one that had to be changed gets a digest, so that no two share a file."""
    safe = re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")[:48]
    return safe if safe == name else f"{safe or 'unnamed'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _update(workspace: Workspace, path: Path, kind: str, subject: str, items: Sequence[Finding]) -> bool:
    old = b""
    try:
        old = read_regular(path, _MOST_BYTES)
    except FileNotFoundError:
        pass
    except ValueError as error:
        set_aside(workspace, path, str(error))
    except OSError:  # not ours to read, so not ours to overwrite
        return False
    notes = _notes(old)
    if not items and not notes.strip():
        path.unlink(missing_ok=True)
        return True
    text = _page(kind, subject, items).encode() + b"\n".join((NOTES_BEGIN.encode(), notes, NOTES_END.encode())) + b"\n"
    if text == old:
        return False
    write_atomically(path, text)
    return True


def _notes(old: bytes) -> bytes:
    """What stands between the marks; without the second everything after the first, without the first everything."""
    _, begin, rest = old.partition(NOTES_BEGIN.encode())
    inside = (rest.rpartition(NOTES_END.encode())[0] if NOTES_END.encode() in rest else rest) if begin else old
    return inside.removeprefix(b"\n").removesuffix(b"\n")


def _page(kind: str, subject: str, items: Sequence[Finding]) -> str:
    studies = sorted({study for item in items for study in (*item.provenance, *item.contradicted_by)})
    facts = {
        "kind": kind,
        "subject": subject,
        "n": max((item.n for item in items), default=0),
        "studies": studies,
        "findings": [item.model_dump(mode="json") for item in items],
    }
    front = "\n".join(f"{name}: {_json(value)}" for name, value in facts.items())
    return f"---\n{front}\n---\n\n# {_plain(subject)}\n\n{_body(kind, items)}\n## Notes\n\n"


def _body(kind: str, items: Sequence[Finding]) -> str:
    if not items:
        return "Nothing is remembered of this any more.\n"
    by_methods: dict[tuple[str, ...], list[Finding]] = defaultdict(list)
    for item in items:
        by_methods[item.methods].append(item)
    parts = []
    for methods, group in by_methods.items():
        heading = f"## {' → '.join(methods)}\n\n" if kind in {"size", "family"} else ""
        parts.append(heading + "".join(_sentence(item) for item in group))
    return "\n".join(parts)


def _sentence(item: Finding) -> str:
    """One finding: what held, how often, how surely, from where, and against what."""
    lines = [
        f"- **{item.claim}**: held in {item.held} of {item.n} measurements and in {item.studies_held} of "
        f"{item.studies} studies, confidence {item.confidence:.2f}. {_quantity(item)} {_provenance(item.provenance)}"
    ]
    if item.contradicted_by:
        lines.append(f"  Contradicted {_provenance(item.contradicted_by)}")
    return "\n".join(lines) + "\n"


def _quantity(item: Finding) -> str:
    if item.quantity == "failed":
        return ""
    name = "Loss of accuracy" if item.quantity == "accuracy_drop" else f"`{item.quantity}` over the baseline's"
    return (
        f"{name}: median {item.median:.3f}, standard deviation {item.spread:.3f}, from {item.low:.3f} "
        f"to {item.high:.3f}."
    )


def _provenance(episodes: dict[str, str]) -> str:
    named = [f"`{study}` {numbers}" for study, numbers in list(episodes.items())[:_MOST_STUDIES]]
    more = len(episodes) - len(named)
    return f"by episodes of {'; '.join(named)}{f'; and {more} studies more (front matter)' if more else ''}."


def _plain(text: str) -> str:
    """A name from outside as a heading: nothing that Markdown or HTML would act on."""
    return re.sub(r"[^\w .:→-]+", " ", text).strip() or "unnamed"


def _json(value: object) -> str:
    """As one line of YAML; no text from outside can write one of the marks."""
    return json.dumps(value, ensure_ascii=True, separators=(", ", ": ")).replace("<", "\\u003c")
