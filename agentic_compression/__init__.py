"""Agentic Compression Framework: find the best compressed versions of a language model by itself.

The package is layered; data flows one way, ``spec → plan → compress → evaluate → frontier → promote``:

* ``records``      frozen Pydantic records, the arrows between all the others (pydantic and stdlib only)
* ``settings``, ``errors``, ``storage``, ``execution``   the floor every stage stands on
* ``checkpoints``  how a compressed model is written, read and run
* ``spec``, ``data``, ``methods``, ``evaluation``, ``planning``, ``frontier``, ``tracking``, ``registry``   the stages
* ``study``        composes the stages into episodes and keeps a study's files
* ``orchestration`` the one module that starts ZenML pipelines
* ``cli``          the ``acf`` command
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
