"""Which sentence goes on? A task that a model of 260,000 parameters can do, made from a file of short stories.

    python -m benchmarks.planners.stories ../shared/corpora/tinystories_sample.jsonl /tmp/stories

writes below the folder: ``hellaswag/hellaswag_val.jsonl`` in HellaSwag's own form (a beginning and four sentences, one
of which is the next; the others are from other stories), so that the harness' own definition asks it; and texts to
calibrate on and to measure perplexity and divergence on, from stories that no item is made of.
"""

from __future__ import annotations

import json
import random
import re
import sys
from pathlib import Path

CALIBRATION, HELD_OUT, ITEMS, CHOICES = 250, 60, 600, 4
_SENTENCE = re.compile(r"(?<=[.!?\"])\s+")
_LEAST_LETTERS, _MOST_LETTERS = 20, 90


def main() -> None:
    """Write the three files."""
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    texts = [json.loads(line)["text"] for line in source.read_text().splitlines()]
    random.Random(0).shuffle(texts)
    _write(folder / "calibration.jsonl", [{"text": text} for text in texts[:CALIBRATION]])
    _write(folder / "heldout.jsonl", [{"text": text} for text in texts[CALIBRATION : CALIBRATION + HELD_OUT]])
    _write(folder / "hellaswag" / "hellaswag_val.jsonl", items(texts[CALIBRATION + HELD_OUT :]))


def items(texts: list[str]) -> list[dict[str, object]]:
    """Up to ``ITEMS`` of them, two a story at most."""
    draw = random.Random(1)
    stories = [[part.replace("\n", " ") for part in _SENTENCE.split(text) if part.strip()] for text in texts]
    usable = [s for story in stories for s in story[2:] if _LEAST_LETTERS <= len(s) <= _MOST_LETTERS]
    found: list[dict[str, object]] = []
    for number, story in enumerate(stories):
        places = [n for n in range(2, len(story)) if _LEAST_LETTERS <= len(story[n]) <= _MOST_LETTERS]
        for place in draw.sample(places, min(2, len(places))):
            others = [sentence for sentence in draw.sample(usable, 20) if sentence not in story][: CHOICES - 1]
            endings = [story[place], *others]
            order = draw.sample(range(CHOICES), CHOICES)
            found.append(
                {
                    "ind": len(found),
                    "activity_label": "Story",
                    "ctx_a": " ".join(story[:place][-4:]),
                    "ctx_b": "",
                    "ctx": " ".join(story[:place][-4:]),
                    "endings": [endings[n] for n in order],
                    "label": order.index(0),
                    "source_id": f"story~{number}",
                    "split": "val",
                    "split_type": "indomain",
                }
            )
    return found[:ITEMS]


def _write(path: Path, rows: list[dict[str, object]] | list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
