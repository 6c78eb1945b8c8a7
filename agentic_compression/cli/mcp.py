"""``acf mcp``: the agent's tools for other programs, over the Model Context Protocol on standard input and output."""

from __future__ import annotations

__all__ = ["mcp"]


def mcp() -> None:
    """Serve the agent's tools over MCP on stdin and stdout, until the client closes them.

    Tools: plan_compression, execute_experiment, reflect_and_improve, compare, recommend, list_methods. Paths are taken
    only below the state root and the working folder.

    A client starts the command acf with the argument mcp, and with ACF_HOME in its environment where the state lies
    elsewhere than in the working folder.

    Examples:

      acf mcp
    """
    from agentic_compression.agent.server import serve

    serve()
