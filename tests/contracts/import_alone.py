"""Run as a script by ``test_imports``: imports each named package first, in a process forked before anything else.

Prints JSON: package to ``{error, loaded, third_party}``, where ``loaded`` are the heavy libraries that came along.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def main() -> None:
    """``import_alone.py '[[names], [names that need zenml], [heavy libraries]]'``."""
    light, adapters, heavy = json.loads(sys.argv[1])
    children = {name: _fork(name, heavy) for name in light}
    results = {name: _result(*child) for name, child in children.items()}
    importlib.import_module("zenml")  # once for all of them: it takes seconds
    children = {name: _fork(name, heavy) for name in adapters}
    results |= {name: _result(*child) for name, child in children.items()}
    print(json.dumps(results))


def _fork(name: str, heavy: list[str]) -> tuple[int, int]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        with Path(os.devnull).open("w") as nowhere:
            sys.stdout = sys.stderr = nowhere
            error = None
            try:
                importlib.import_module(name)
            except BaseException:
                error = traceback.format_exc(limit=-4)
        found = {
            "error": error,
            "loaded": [item for item in heavy if item in sys.modules],
            "third_party": sorted({item.partition(".")[0] for item in sys.modules} - set(sys.stdlib_module_names)),
        }
        with os.fdopen(writing, "w") as pipe:
            json.dump(found, pipe)
        os._exit(0)
    os.close(writing)
    return pid, reading


def _result(pid: int, reading: int) -> dict[str, Any]:
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return json.loads(text) if text else {"error": f"ended with {code}", "loaded": [], "third_party": []}


if __name__ == "__main__":
    main()
