"""Running code that a language model wrote, and judging it by tests it cannot reach.

The contract::

    isolation_unavailable_reason() -> str | None   # None: programs can be confined here
    isolation() -> tuple[str, ...]   # the layers in effect, of "namespaces", "landlock", "seccomp", "limits"
    check_function(program, test, entry_point, *, helpers="", limits=SandboxLimits(), insist=False) -> ProgramResult
    pass_at_k(n, c, k) -> float   # unbiased estimate of Chen et al., arXiv 2107.03374

For a HumanEval problem and one completion::

    check_function(row["prompt"] + completion, row["test"], row["entry_point"], helpers=row["prompt"])

``program`` is the untrusted text and must define ``entry_point``. ``test`` defines ``check(candidate)`` and is trusted,
as is ``helpers``, which runs before it and gives it names such as ``poly`` (HumanEval 32, 38 and 50 use functions of
their prompt). ``result.passed`` is the score; ``result.status == "invalid"`` means that the *test* could not run or
asks for something this design cannot do: it says nothing about the program; report it, do not count it as wrong.
``UnavailableError`` is raised where this machine cannot keep the program from the network and the files;
``insist=True`` runs it all the same with resource limits alone, and ``result.isolation`` says so. Calls may come from
several threads at once; each costs one fresh interpreter and two forks of it.

**Why the program cannot award itself a pass.** Tests and solution in one interpreter share everything: the program can
exit with status 0, replace ``check``, return objects that equal anything, or search the heap for a secret, so no flag
or nonce held there proves anything. Here they run in two processes. The *worker* executes the program and answers
calls; the *tester* executes ``check(proxy)``, where ``proxy(*args)`` sends the arguments through a pipe and rebuilds
the answer from a format of plain values (``inside/wire.py``; no pickle, no code, no foreign ``__eq__``). The worker
never holds the tests, not even in memory it inherited, and the verdict leaves through a pipe that it does not have.
All that the program controls is which values it returns, and that is what the tests judge. A worker that exits, dies,
or breaks the protocol fails, even when the test swallows the exception. A program whose answers are all right passes
even when it leaves threads behind: they end with it.

**What this cannot do.** Tests that hand functions or objects of their own classes to the candidate, look at the
candidate's attributes, need it to change its arguments in place, or compare identity (other than of ``None``, ``True``
and ``False``). Results arrive as copies: ``None``, ``bool``, ``int``, ``float``, ``complex``, ``str``, ``bytes``,
``bytearray``, ``list``, ``tuple``, ``dict``, ``set``, ``frozenset``, ``range``, ``Fraction`` and ``Decimal`` keep type
and value, instances of their subclasses become the plain type, everything else (generators, instances) becomes an
object that equals nothing. An exception arrives as its nearest built-in type, ``StopIteration`` as ``RuntimeError``:
it would end a loop of the test. The program sees the standard library
only and cannot start processes. It does not defend against flaws of the kernel.
"""

from __future__ import annotations

from agentic_compression.sandbox.estimate import pass_at_k
from agentic_compression.sandbox.result import ProgramResult, SandboxLimits
from agentic_compression.sandbox.run import check_function, isolation, isolation_unavailable_reason

__all__ = [
    "ProgramResult",
    "SandboxLimits",
    "check_function",
    "isolation",
    "isolation_unavailable_reason",
    "pass_at_k",
]
