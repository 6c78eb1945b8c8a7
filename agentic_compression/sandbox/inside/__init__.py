"""What runs in the sandbox's own processes: standard library only, started by path with ``python -I -S``.

``guardian`` starts first, makes the namespaces (``mounts``), forks the ``tester`` and the ``worker``, watches them and
reports. Both confine themselves (``confine``, ``landlock``, ``seccomp``) before they read anything, and talk in plain
values (``wire``).
"""
