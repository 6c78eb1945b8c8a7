"""Run by path under ``python -I -S``: finds the guardian without the package's own ``__init__`` and site-packages."""

import os
import sys
import types

if __name__ == "__main__":
    _package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    for _name, _folder in (
        ("agentic_compression", _package),
        ("agentic_compression.sandbox", os.path.join(_package, "sandbox")),
    ):
        sys.modules[_name] = _module = types.ModuleType(_name)
        _module.__path__ = [_folder]

    from agentic_compression.sandbox.inside.guardian import main

    main()
