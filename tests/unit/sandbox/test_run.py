"""Refusals and the statuses that speak about the test instead of the program."""

from __future__ import annotations

import pytest

from agentic_compression.errors import UnavailableError
from agentic_compression.sandbox import SandboxLimits, check_function, isolation, isolation_unavailable_reason, run

_HERE = isolation_unavailable_reason()
confined = pytest.mark.skipif(_HERE is not None, reason=f"no isolation on this machine: {_HERE}")
SOLUTION = "def double(x):\n    return 2 * x\n"


def test_other_systems_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.sys, "platform", "darwin")
    monkeypatch.setattr(run, "_probe", run._probe.__wrapped__)
    assert isolation_unavailable_reason() == "programs can be confined on Linux only, this is darwin"
    for insist in (False, True):
        with pytest.raises(UnavailableError, match="run the evaluation on Linux"):
            check_function(SOLUTION, "", "double", insist=insist)


@pytest.mark.parametrize(
    ("missing", "what"),
    [
        ({"namespaces", "seccomp"}, "the network"),
        ({"namespaces", "landlock"}, "the files"),
        ({"namespaces", "landlock", "seccomp"}, "the network and the files"),
        ({"namespaces"}, None),
        ({"landlock", "seccomp"}, None),
    ],
)
def test_network_and_files_must_both_be_covered(
    missing: set[str], what: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = {name: "off" if name in missing else "" for name in ("namespaces", "landlock", "seccomp")}
    monkeypatch.setattr(run, "_probe", lambda: layers)
    reason = isolation_unavailable_reason()
    assert (reason is None) == (what is None)
    assert set(isolation()) == {"namespaces", "landlock", "seccomp", "limits"} - missing
    if what is not None:
        assert f"cannot be kept from {what} here (" in str(reason)
        with pytest.raises(UnavailableError, match="insist"):
            check_function(SOLUTION, "", "double")


@confined
@pytest.mark.parametrize(
    ("test", "helpers", "message"),
    [
        ("def check(:", "", "the test cannot run: SyntaxError"),
        ("x = 1", "", "the test cannot run: KeyError: 'check'"),
        ("def check(f): pass", "", "the test never called the function"),
        ("def check(f): assert f(1) == other(2)", "", "a name it was not given: NameError: name 'other'"),
        ("def check(f): assert f(len)", "", "type builtin_function_or_method cannot be handed to the program"),
        ("def check(f): assert f('x' * (40 << 20))", "", "is too long"),
        ("def check(f): pass", "1 +", "the test cannot run: SyntaxError"),
    ],
)
def test_broken_test_says_nothing_about_the_program(test: str, helpers: str, message: str) -> None:
    result = check_function(SOLUTION, test, "double", helpers=helpers)
    assert (result.passed, result.status) == (False, "invalid")
    assert message in result.message


@confined
def test_test_sees_helpers_the_function_by_name_and_its_exceptions() -> None:
    program = "class Mine(KeyError): pass\ndef double(x):\n    if x is None: raise Mine('no')\n    return 2 * x\n"
    test = """
def check(candidate):
    assert candidate(4) == helper(8) == double(x=4)
    try:
        candidate(None)
    except KeyError as error:
        assert 'no' in str(error)
    else:
        raise AssertionError
"""
    helpers = "def helper(x): return x\ndef double(x): pass\n"
    assert check_function(program, test, "double", helpers=helpers).passed


@confined
def test_message_names_the_programs_exception_and_line() -> None:
    result = check_function("def double(x):\n    return x / 0\n", "def check(f): f(1)", "double")
    assert result.message == "the program raised ZeroDivisionError: division by zero (line 2 of the program)"
    result = check_function("import no_such_module\n", "def check(f): f(1)", "double")
    assert result.message.startswith("the program raised ModuleNotFoundError: No module named 'no_such_module'")
    result = check_function("x = 1\n", "def check(f): f(1)", "double", limits=SandboxLimits(seconds=5))
    assert result.message == "the program does not define the function"


@confined
def test_message_of_any_characters_arrives() -> None:
    """Characters beyond the basic plane take twelve bytes each on the way."""
    name, text = "É" * 90, "\U0001f600" * 300
    for kind in ("Exception", "SystemExit"):
        program = f"class {name}({kind}): pass\ndef double(x):\n    raise {name}({text!r})\n"
        result = check_function(program, "def check(f): f(1)", "double")
        assert result.status == "failed"
        assert result.message.startswith("the program raised ")
        assert text[:250] in result.message
