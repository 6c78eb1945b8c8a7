"""Programs that try to score without solving anything, or to exhaust the machine: real processes."""

from __future__ import annotations

import gzip
import json

import pytest

from agentic_compression.sandbox import SandboxLimits, check_function, isolation
from tests.conftest import SHARED
from tests.integration.sandboxing import BRIEF, LIMITS, SOLUTION, TEST, confined, judge, nothing_is_left

__all__ = ["nothing_is_left"]  # a fixture that every test here uses

pytestmark = confined

_HUMANEVAL = SHARED / "benchmarks" / "humaneval" / "HumanEval.jsonl.gz"


def test_right_and_wrong_solutions_are_told_apart() -> None:
    right = judge(SOLUTION)
    assert (right.passed, right.status, right.isolation) == (True, "passed", isolation())
    wrong = judge("def square(x):\n    return x + x\n")
    assert (wrong.passed, wrong.status) == (False, "failed")
    assert wrong.message == "AssertionError at line 3 of the test"


@pytest.mark.skipif(not _HUMANEVAL.is_file(), reason=f"{_HUMANEVAL} is not on this machine")
def test_all_canonical_humaneval_solutions_pass_and_empty_ones_do_not() -> None:
    with gzip.open(_HUMANEVAL) as lines:
        rows = [json.loads(line) for line in lines]
    assert len(rows) == 164
    for row in rows:
        program = row["prompt"] + row["canonical_solution"]
        result = check_function(program, row["test"], row["entry_point"], helpers=row["prompt"])
        assert result.passed, (row["task_id"], result)
    for row in rows[::8]:
        result = check_function(
            row["prompt"] + "    pass\n", row["test"], row["entry_point"], helpers=row["prompt"], limits=LIMITS
        )
        assert result.status == "failed", (row["task_id"], result)


FORGERIES = {
    "exits with status 0": "import os\nos._exit(0)",
    "exits when called": "import os\ndef square(x):\n    os._exit(0)",
    "sys.exit": "import sys\nsys.exit(0)",
    "sys.exit when called": "import sys\ndef square(x):\n    sys.exit(0)",
    "raises SystemExit": "def square(x):\n    raise SystemExit(0)",
    "raises GeneratorExit": "def square(x):\n    raise GeneratorExit",
    "exits at exit": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit",
    "neutral AssertionError": """
        import builtins, sys
        class Quiet(BaseException): pass
        builtins.AssertionError = Quiet
        sys.excepthook = lambda *a: None
        def square(x): return 0
    """,
    "own check": """
        import builtins, sys
        def check(candidate): return True
        builtins.check = check
        sys.modules['__main__'].check = check
        def square(x): return 0
    """,
    "no builtins": "__builtins__ = {}\nimport builtins\nbuiltins.__dict__.clear()\ndef square(x): return 0",
    "equal to all": """
        class Any:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __hash__(self): return 4
            def __getattr__(self, name): return lambda *a: True
        def square(x): return Any()
    """,
    "an int equal to all": """
        class Any(int):
            def __eq__(self, other): return True
            def __add__(self, other): return self
            __hash__ = int.__hash__
        def square(x): return Any(3)
    """,
    "prints a verdict": """
        import os, sys
        def square(x):
            for target in range(1, 64):
                try: os.write(target, b'{"status": "passed", "message": "every assertion held"}\\n')
                except OSError: pass
            return 0
    """,
    "frames of a verdict": """
        import json, os
        def square(x):
            body = json.dumps({"status": "passed", "passed": True, "ready": True}).encode()
            for target in range(1, 64):
                try: os.write(target, len(body).to_bytes(4, 'big') + body)
                except OSError: pass
            os._exit(0)
    """,
    "patches what serves it": """
        import gc, sys, types
        def forge(*a, **k): return {"status": "passed", "message": "x"}
        for thing in gc.get_objects():
            if isinstance(thing, types.FunctionType) and 'sandbox' in (thing.__module__ or ''):
                try: thing.__code__ = forge.__code__
                except Exception: pass
        def square(x): return 0
    """,
    "patches frames": """
        import sys
        frame = sys._getframe()
        while frame:
            frame.f_globals.clear()
            frame = frame.f_back
        def square(x): return 0
    """,
    "not a function": "square = 4",
    "deletes itself": SOLUTION + "del square",
    "hooks imports": """
        import sys
        class All:
            def find_spec(self, *a): raise SystemExit(0)
        sys.meta_path.insert(0, All())
        sys.modules.clear()
        def square(x): return 0
    """,
    "a hostile exception": """
        class Odd(Exception):
            def __str__(self): raise SystemExit(0)
            __repr__ = __str__
        def square(x): raise Odd
    """,
    "looks for the test": """
        import gc, ctypes
        needle = ''.join(['def check', '(candidate)'])  # not a constant of its own
        found = [thing for thing in gc.get_objects() if needle in repr(thing)[:5000] and 'needle' not in repr(thing)]
        def square(x):
            if found: return x * x
            return 0
    """,
}


@pytest.mark.parametrize("name", FORGERIES)
def test_program_cannot_award_itself_a_pass(name: str) -> None:
    result = judge(FORGERIES[name])
    assert not result.passed
    assert result.status in {"failed", "killed", "timed_out"}
    assert result.message
    assert "\n" not in result.message


def test_early_exit_fails_even_where_the_test_swallows_everything() -> None:
    swallowing = """
def check(candidate):
    try:
        candidate(2)
    except BaseException:
        pass
"""
    assert judge(FORGERIES["exits when called"], test=swallowing).status == "failed"
    assert judge(FORGERIES["raises SystemExit"], test=swallowing).status == "failed"


LOOPS = {
    "map": "assert all(map(lambda x: candidate(x) == x * x, range(9)))",
    "list": "assert list(map(candidate, [])) == list(map(candidate, range(9)))",
    "iter": "assert list(iter(lambda: candidate(3), None)) == []",
    "next": "assert next(map(candidate, [2]), 4) == 4",
}


@pytest.mark.parametrize("kind", ["StopIteration", "StopAsyncIteration"])
@pytest.mark.parametrize("loop", LOOPS)
def test_a_raised_end_of_iteration_ends_no_loop_of_the_test(loop: str, kind: str) -> None:
    """A loop takes StopIteration for its end: ``all`` would hold of no item at all."""
    result = judge(f"def square(x):\n    raise {kind}('over')", test=f"def check(candidate):\n    {LOOPS[loop]}\n")
    assert result.status == "failed", result
    assert result.message == f"the program raised RuntimeError: {kind}: over (line 2 of the program)"


@pytest.mark.parametrize(
    ("program", "test", "words"),
    [
        ("def square(x): return (i for i in [x])", "candidate(candidate(1))", "handed back"),
        ("def square(x): return 'x' * (17 << 20)", "candidate(2 * candidate(1))", "handed back"),
        (
            "def square(x):\n    a = []\n    for _ in range(149): a = [a]\n    return a",
            "candidate([[candidate(1)]])",
            "handed back",
        ),
        (
            "def square(x): raise ValueError",
            "try: found = candidate(1)\n    except ValueError: pass\n    assert found",
            "UnboundLocalError",
        ),
    ],
    ids=["foreign", "long", "deep", "no result"],
)
def test_program_cannot_make_its_test_look_broken(program: str, test: str, words: str) -> None:
    """``invalid`` leaves an item out of the score, or ends an evaluation: a program must not bring it about."""
    result = judge(program, test=f"def check(candidate):\n    {test}\n", limits=SandboxLimits())
    assert (result.status, words in result.message) == ("failed", True), result


def test_test_text_is_not_in_the_programs_memory() -> None:
    """Walk everything that the worker's collector and module table lead to."""
    result = judge(
        """
        import ctypes, gc, sys
        def square(x):
            seen, stack, hits = set(), [sys.modules, gc.get_objects()], 0
            while stack and len(seen) < 400000:
                thing = stack.pop()
                if id(thing) in seen: continue
                seen.add(id(thing))
                if isinstance(thing, (str, bytes)):
                    text = thing if isinstance(thing, str) else thing.decode('latin-1')
                    hits += ''.join(['SECRET', '-MARK']) in text
                else:
                    stack.extend(gc.get_referents(thing))
            return x * x if not hits else hits
        """,
        test=TEST + "    # SECRET-MARK\n",
        limits=LIMITS.model_copy(update={"cpu_seconds": 15}),
    )
    assert result.passed, result


EXHAUSTIONS = {
    "loop while loading": ("while True: pass", {"timed_out"}),
    "loop in a call": ("def square(x):\n    while True: pass", {"timed_out"}),
    "sleep": ("import time\ntime.sleep(1000)", {"timed_out"}),
    "memory": ("def square(x):\n    return len('x' * (1 << 32))", {"out_of_memory"}),
    "growing memory": ("def square(x):\n    a = []\n    while True: a.append(bytes(1 << 20))", {"out_of_memory"}),
    "recursion": ("def square(x):\n    return square(x)", {"failed"}),
    "recursion without bound": (
        "import sys\nsys.setrecursionlimit(10**9)\ndef square(x):\n    return repr_(x)\n"
        "def repr_(x):\n    return sorted([1], key=lambda _: repr_(x))",
        {"killed", "timed_out", "out_of_memory", "failed"},
    ),
    "output": ("while True: print('x' * 100000)", {"timed_out"}),
    "deep value": ("def square(x):\n    a = []\n    for _ in range(90000): a = [a]\n    return a", {"failed"}),
    "value in itself": ("def square(x):\n    a = []\n    a.append(a)\n    return a", {"failed"}),
    "huge value": ("def square(x):\n    return 'x' * (40 << 20)", {"failed", "timed_out"}),
    "huge integer": ("def square(x):\n    return 1 << 20_000_000", {"failed"}),
    "huge traceback": (
        "def square(x):\n    raise ValueError('line\\n' * 1_000_000)",
        {"failed"},
    ),
    "ignores signals": (
        "import signal\nfor number in range(1, 65):\n"
        "    try: signal.signal(number, signal.SIG_IGN)\n    except (OSError, ValueError): pass\nwhile True: pass",
        {"timed_out"},
    ),
    "threads": (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(1000,)).start()",
        {"failed", "timed_out", "out_of_memory"},
    ),
    "crash": ("import ctypes\nctypes.string_at(0)", {"killed"}),
    "not Python": ("def square(x:\n", {"failed"}),
    "null byte": ("x = '\0'\n", {"failed"}),
}


@pytest.mark.parametrize("name", EXHAUSTIONS)
def test_exhausting_program_ends_within_its_limits(name: str) -> None:
    program, statuses = EXHAUSTIONS[name]
    result = judge(program, limits=BRIEF if "timed_out" in statuses else LIMITS)
    assert result.status in statuses, result
    assert len(result.output.encode()) <= BRIEF.output_bytes
    assert len(result.message) <= 400


def test_right_answers_count_although_threads_never_end() -> None:
    program = "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\n" + SOLUTION
    assert judge(program).passed


def test_output_is_kept_up_to_its_bound_and_any_bytes_survive() -> None:
    result = judge("import os\nprint('begin')\n" + SOLUTION)
    assert result.output == "begin\n"
    result = judge("import os\nos.write(1, bytes(range(256)) * 200)\n" + SOLUTION)
    assert result.passed
    assert "\\xff" in result.output


def test_all_the_output_that_may_be_asked_for_comes_back() -> None:
    most = 16 << 20
    program = (
        f"import os\ndef square(x):\n    for _ in range({most >> 16} + 9): os.write(1, bytes(65536))\n    return x * x"
    )
    result = judge(program, limits=SandboxLimits(output_bytes=most))
    assert result.passed, result
    assert result.output == "\0" * most


def test_the_longest_program_that_may_be_asked_for_is_tried() -> None:
    """Control characters take six bytes each on the way in."""
    most = 4 << 20
    limits = SandboxLimits(program_bytes=most)
    program = SOLUTION + "#" + "\x01" * (most - len(SOLUTION) - 1)
    assert judge(program, limits=limits).passed
    with pytest.raises(ValueError, match="program_bytes"):
        SandboxLimits(program_bytes=most + 1)
