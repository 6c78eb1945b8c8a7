"""Programs that try to reach the files, the network, the processes or the kernel's interfaces: real processes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agentic_compression.errors import UnavailableError
from agentic_compression.sandbox import (
    check_function,
    isolation,
    isolation_unavailable_reason,
    run,
)
from tests.integration.sandboxing import BRIEF, LIMITS, SOLUTION, TEST, confined, judge, nothing_is_left, probe

__all__ = ["nothing_is_left"]  # a fixture that every test here uses

pytestmark = confined


def test_fork_is_denied() -> None:
    if "seccomp" not in isolation():
        pytest.skip("new processes are limited, not denied, without seccomp")
    assert probe("""
        import os, subprocess, sys
        for what in (os.fork, lambda: subprocess.run([sys.executable, '-c', '0']), lambda: os.execv('/bin/sh', ['sh'])):
            try: what()
            except OSError: continue
            return 'started a process'
        return 'blocked'
    """).passed


def test_planted_secrets_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / ".ssh" / "id_ed25519"
    secret.parent.mkdir()
    secret.write_text("PRIVATE KEY")
    tmp_path.chmod(0o755)
    monkeypatch.setenv("API_TOKEN", "hunter2")
    result = probe(f"""
        import os
        if any('hunter2' in value for value in os.environ.values()): return 'environment'
        os.symlink({str(secret)!r}, 'link') if {"namespaces" in isolation()!r} else None
        for path in ({str(secret)!r}, '/etc/passwd', '/proc/self/environ', '/proc/1/environ', '/proc/self/mem', 'link',
                     '../../../..{secret}', '/proc/{os.getpid()}/environ', '/proc/{os.getpid()}/mem',
                     f'/proc/{{os.getppid()}}/environ', '/proc/self/root{secret}', '/proc/self/cwd', '/dev/mem',
                     {str(Path(__file__))!r}, '/root/.bashrc'):
            try: return path, open(path, 'rb').read(20)
            except OSError: pass
        return 'blocked'
    """)
    assert result.passed, result


def test_nothing_outside_can_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    target = tmp_path / "victim"
    target.write_text("whole")
    target.chmod(0o666)
    result = probe(f"""
        import os
        attempts = (
            lambda: open({str(target)!r}, 'w'), lambda: os.unlink({str(target)!r}),
            lambda: os.chmod({str(target)!r}, 0),
            lambda: os.truncate({str(target)!r}, 0), lambda: os.mkdir({str(tmp_path / "new")!r}),
            lambda: open(os.__file__, 'a'), lambda: os.utime({str(target)!r}, (0, 0)),
            lambda: os.rename({str(target)!r}, {str(tmp_path / "moved")!r}), lambda: os.mknod('/tmp/device'),
            lambda: os.chmod(os.__file__, 0o777), lambda: open('/new', 'w'), lambda: os.chroot('/tmp'),
        )
        for number, attempt in enumerate(attempts):
            try: attempt()
            except OSError: continue
            return number
        return 'blocked'
    """)
    assert result.passed, result
    assert [path.name for path in tmp_path.iterdir()] == ["victim"]
    assert target.read_text() == "whole"


def test_disk_cannot_be_filled() -> None:
    result = probe("""
        written = 0
        for number in range(5000):
            try:
                with open(f'file{number}', 'wb') as file: written += file.write(bytes(200_000))
            except OSError: break
        return 'blocked' if written < 2_000_000 else written
    """)
    assert result.passed, result


def test_nothing_arrives_at_real_listeners(tmp_path: Path) -> None:
    """TCP, UDP, a unix socket by path and one in the abstract namespace, each with a listener that would notice."""
    tmp_path.chmod(0o777)
    arrived: list[str] = []
    tcp, udp = socket.socket(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    unix, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    path, name = str(tmp_path / "s"), f"\0acf-{os.getpid()}"
    listeners = {"tcp": tcp, "udp": udp, "unix": unix, "abstract": abstract}
    tcp.bind(("127.0.0.1", 0)), udp.bind(("127.0.0.1", 0)), unix.bind(path), abstract.bind(name)
    Path(path).chmod(0o777)
    tcp.listen(), unix.listen()

    def listen(kind: str, listener: socket.socket) -> None:
        listener.settimeout(0.3)
        try:
            listener.accept()[0].close() if kind in {"tcp", "unix"} else listener.recv(10)
            arrived.append(kind)
        except TimeoutError:
            return

    result = probe(f"""
        import ctypes, socket
        done = []
        def attempt(family, kind, address):
            try:
                with socket.socket(family, kind) as s:
                    s.settimeout(1)
                    s.connect(address)
                    s.send(b'x')
                    done.append(str(address))
            except OSError: pass
        attempt(socket.AF_INET, socket.SOCK_STREAM, ('127.0.0.1', {tcp.getsockname()[1]}))
        attempt(socket.AF_INET, socket.SOCK_DGRAM, ('127.0.0.1', {udp.getsockname()[1]}))
        attempt(socket.AF_UNIX, socket.SOCK_STREAM, {path!r})
        attempt(socket.AF_UNIX, socket.SOCK_DGRAM, {name!r})
        try:
            a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            a.sendto(b'x', {name!r}); done.append('pair')
        except OSError: pass
        return done or 'blocked'
    """)
    threads = [threading.Thread(target=listen, args=pair) for pair in listeners.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for listener in listeners.values():
        listener.close()
    assert result.passed, result
    assert arrived == []


def test_no_process_can_be_signalled_or_traced() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as bystander:
        result = probe(f"""
            import ctypes, os, signal
            libc = ctypes.CDLL(None, use_errno=True)
            attempts = [lambda p=p: os.kill(p, 9) for p in ({bystander.pid}, {os.getpid()}, os.getppid() or 1, -1, 0)]
            attempts.append(lambda: os.killpg(os.getpgrp() or {os.getpgrp()}, 9))
            attempts.append(lambda: os.pidfd_open({bystander.pid}))
            for attempt in attempts:
                try: attempt()
                except OSError: continue
                return 'signalled'
            if libc.ptrace(16, {bystander.pid}, 0, 0) == 0: return 'traced'
            import fcntl
            r, w = os.pipe()
            try: fcntl.fcntl(r, fcntl.F_SETOWN, {bystander.pid}); return 'owner'
            except OSError: pass
            return 'blocked'
        """)
        assert bystander.poll() is None
        bystander.kill()
    assert result.passed, result


def test_kernel_interfaces_are_denied_to_raw_system_calls() -> None:
    if os.uname().machine != "x86_64" or "seccomp" not in isolation():
        pytest.skip("the numbers are those of x86_64, and only seccomp denies all of them")
    numbers = {
        "mount": 165,
        "unshare": 272,
        "bpf": 321,
        "keyctl": 250,
        "io_uring_setup": 425,
        "ptrace": 101,
        "setns": 308,
    }
    numbers |= {"process_vm_readv": 310, "userfaultfd": 323, "perf_event_open": 298, "prctl": 157, "seccomp": 317}
    numbers |= {"socket": 41, "connect": 42, "x32 socket": 0x40000000 + 41, "clone3": 435, "vfork": 58, "memfd": 319}
    result = probe(f"""
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        for name, number in {numbers!r}.items():
            ctypes.set_errno(0)
            if libc.syscall(number, 0, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() not in (1, 38):
                return name, ctypes.get_errno()
        return 'blocked'
    """)
    assert result.passed, result


def test_no_descriptor_but_its_own_is_open() -> None:
    result = probe("""
        import os
        found = []
        for number in range(256):
            try: os.fstat(number)
            except OSError: continue
            found.append(number)
        return 'blocked' if len(found) == 5 and not os.read(0, 10) else found
    """)
    assert result.passed, result


def test_bounds_of_the_limits_cannot_be_raised() -> None:
    result = probe("""
        import resource
        for kind in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE, resource.RLIMIT_NOFILE):
            soft, hard = resource.getrlimit(kind)
            if hard == resource.RLIM_INFINITY: return 'unbounded'
            try: resource.setrlimit(kind, (hard + 1, hard + 1)); return 'raised'
            except (ValueError, OSError): pass
        return 'blocked'
    """)
    assert result.passed, result


def test_asyncio_threads_and_scratch_files_work() -> None:
    result = judge("""
        import asyncio, concurrent.futures, hashlib, random, tempfile
        async def later(x): await asyncio.sleep(0); return x * x
        def square(x):
            hashlib.sha256(b'x').hexdigest()
            with concurrent.futures.ThreadPoolExecutor(2) as pool: assert pool.submit(pow, 2, 3).result() == 8
            return asyncio.run(later(x))
    """)
    assert result.passed, result


@pytest.mark.parametrize(
    "without", [("namespaces",), ("landlock",), ("seccomp",), ("namespaces", "seccomp", "landlock")], ids="-".join
)
def test_each_layer_alone_can_be_missing(without: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on machines that lack a layer: refused when files or network are uncovered, else held and right."""
    found = {layer: "taken away" if layer in without else "" for layer in ("namespaces", "landlock", "seccomp")}
    monkeypatch.setattr(run, "_probe", lambda: found)
    insist = len(without) == 3
    if insist:
        assert "landlock: taken away" in (isolation_unavailable_reason() or "")
        with pytest.raises(UnavailableError, match="cannot be kept from the network and the files"):
            judge(SOLUTION)
    result = check_function(SOLUTION, TEST, "square", limits=LIMITS, insist=insist)
    assert result.passed
    assert set(result.isolation) == {"namespaces", "landlock", "seccomp", "limits"} - set(without)
    if not insist:
        assert probe("""
            import os, socket
            for attempt in (lambda: open('/etc/passwd'), lambda: socket.create_connection(('127.0.0.1', 22), 1)):
                try: attempt(); return 'reached'
                except OSError: pass
            return 'blocked'
        """).passed


@pytest.mark.parametrize("layers", [("namespaces",), ()], ids=["namespaces", "none"])
def test_daemons_die_with_the_check(layers: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no filter forbids processes, a double-forked daemon that left the session is found and killed."""
    found = {layer: "" if layer in layers else "taken away" for layer in ("namespaces", "landlock", "seccomp")}
    monkeypatch.setattr(run, "_probe", lambda: found)
    program = """
        import os, time
        def square(x):
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(300)
                os._exit(0)
            time.sleep(0.1)
            return x * x
    """
    result = check_function(textwrap.dedent(program), TEST, "square", limits=LIMITS, insist=True)
    assert result.passed, result  # and the fixture finds nobody left


def test_fork_bomb_without_a_filter_is_bounded_and_swept_up(monkeypatch: pytest.MonkeyPatch) -> None:
    if "namespaces" not in isolation():
        pytest.skip("needs a process namespace")
    monkeypatch.setattr(run, "_probe", lambda: {"namespaces": "", "landlock": "", "seccomp": "taken away"})
    result = judge("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", limits=BRIEF)
    assert result.status == "timed_out"


def test_checks_run_side_by_side() -> None:
    programs = [SOLUTION, "def square(x): return 0\n"] * 4
    with ThreadPoolExecutor(4) as pool:
        assert [result.passed for result in pool.map(judge, programs)] == [True, False] * 4


def test_text_over_the_bound_is_refused_unrun() -> None:
    assert judge("#" * 2_000_000).status == "refused"
    assert judge("x = '\ud800'").status == "refused"


_THREADS = """
import threading, time
threading.stack_size(32768)
started = 0
try:
    while started < 600:
        threading.Thread(target=time.sleep, args=(100,)).start()
        started += 1
except RuntimeError:
    pass
def square(x):
    return x * x if started < 600 else started
"""


def test_threads_are_bounded() -> None:
    if "namespaces" not in isolation():
        pytest.skip("root is not counted where the program keeps its user")
    assert judge(_THREADS, limits=LIMITS.model_copy(update={"memory_bytes": 1 << 30})).passed


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
@pytest.mark.skipif(shutil.which("unshare") is None or shutil.which("setpriv") is None, reason="needs util-linux")
def test_ordinary_user_is_confined_too(tmp_path: Path) -> None:
    """The same checks as nobody, in a mount namespace that lets nobody read this interpreter."""
    script = textwrap.dedent(f"""
        import os, sys
        sys.path[:0] = {[path for path in sys.path if path]!r}
        from agentic_compression.sandbox import check_function, isolation, isolation_unavailable_reason
        assert os.getuid() == 65534 and isolation_unavailable_reason() is None, isolation_unavailable_reason()
        assert check_function({SOLUTION!r}, {TEST!r}, 'square').passed
        read = "def square(x):\\n    try: return open('/etc/passwd').read()\\n    except OSError: return x * x"
        assert check_function(read, {TEST!r}, 'square').passed
        root = "import os\\ndef square(x):\\n    return x * x if os.getuid() and os.getppid() == 0 else 0"
        if 'namespaces' in isolation(): assert check_function(root, {TEST!r}, 'square').passed
        threads = check_function({_THREADS!r}, {TEST!r}, 'square')
        assert threads.passed, threads
        print(*isolation())
    """)
    prefix = Path(sys.base_prefix)
    reach = ""
    if prefix.is_relative_to("/root"):
        reach = f"mount --bind {prefix} /mnt && mount -t tmpfs none /root && mkdir -p {prefix} &&"
        reach += f" mount --move /mnt {prefix} &&"
    command = f'{reach} exec setpriv --reuid 65534 --regid 65534 --clear-groups {sys.executable} -c "$SCRIPT"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", command],
        env={"SCRIPT": script, "PATH": os.environ["PATH"]},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "limits" in done.stdout
