"""The agent's tools over the Model Context Protocol, on standard input and output.

One piece of work runs at a time, in a thread of its own, and reports its progress. While serving, whatever else is
printed goes to standard error.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field, ValidationError

from agentic_compression import __version__
from agentic_compression.agent import tools
from agentic_compression.errors import AcfError
from agentic_compression.execution import shared_supervisor
from agentic_compression.records.study import STUDY_NAME

__all__ = ["make_server", "serve"]

Result = TypeVar("Result")
Model = Annotated[
    str, Field(min_length=1, max_length=512, description="Hub id, checkpoint folder, models:/NAME@ALIAS, or 'demo'")
]
Dataset = Annotated[str, Field(min_length=1, max_length=512, description="benchmark name(s), data file, or 'demo'")]
Study = Annotated[str, Field(pattern=STUDY_NAME, description="name of a study")]
Objective = Annotated[str, Field(min_length=1, max_length=4000, description="the wish in natural language")]
Checkpoint = Annotated[str, Field(min_length=1, max_length=512, description="STUDY:EPISODE or a checkpoint folder")]

_INSTRUCTIONS = """\
Compresses language models and measures the results. Begin with plan_compression; show the user what was understood \
and what was not; then call execute_experiment until nothing is left, and reflect_and_improve. Numbers of plans are \
estimates, numbers of outcomes are measured.
"""
_PAUSE_S = 0.2


def serve() -> None:
    """Serve until standard input is closed."""
    make_server().run("stdio")


def make_server() -> MCPServer[Any]:
    """The server with its tools."""
    server: MCPServer[Any] = MCPServer(
        "agentic-compression", instructions=_INSTRUCTIONS, version=__version__, log_level="WARNING"
    )
    one_at_a_time = anyio.Lock()

    async def work(context: Context, run: Callable[[], Result]) -> Result:
        async with one_at_a_time:
            return await anyio.to_thread.run_sync(_reporting, context, run)

    @server.tool()
    async def list_methods(context: Context) -> list[dict[str, Any]]:
        """Compression methods with their parameters, and whether each can run on this machine."""
        return await work(context, tools.list_methods)

    @server.tool()
    async def plan_compression(
        context: Context,
        model: Model,
        dataset: Dataset,
        objective: Objective,
        carbon_budget_grams: Annotated[float | None, Field(gt=0, description="CO2e of the whole study")] = None,
        episodes: Annotated[int | None, Field(ge=1, le=1000, description="compressed episodes")] = None,
        limit: Annotated[int | None, Field(ge=1, description="items a task")] = None,
    ) -> dict[str, Any]:
        """Read a wish into constraints and plan the experiments that serve it, with estimates. Runs nothing."""
        study = {"evaluation": {"limit": limit}}
        return await work(context, lambda: tools.plan(model, dataset, objective, carbon_budget_grams, episodes, study))

    @server.tool()
    async def execute_experiment(
        context: Context,
        study: Study,
        item: Annotated[int | None, Field(ge=1, description="of the plan; the next open one when left out")] = None,
    ) -> dict[str, Any]:
        """Carry out one item of a study's plan and measure it. Takes seconds to hours; reports progress."""
        return await work(context, lambda: tools.execute(study, item))

    @server.tool()
    async def reflect_and_improve(context: Context, study: Study, objective: Objective | None = None) -> dict[str, Any]:
        """What a study found against its objective, what was learned, and what to try next."""
        return await work(context, lambda: tools.reflect(study, objective))

    @server.tool()
    async def compare(
        context: Context, baseline: Checkpoint, candidate: Checkpoint, dataset: Dataset = "demo"
    ) -> dict[str, Any]:
        """Two checkpoints on the same items: paired difference, flips, ratios of costs, a verdict."""
        return await work(context, lambda: tools.compare(baseline, candidate, dataset))

    @server.tool()
    async def recommend(
        context: Context, model: Model, dataset: Dataset, limit: Annotated[int, Field(ge=1, le=50)] = 5
    ) -> list[dict[str, Any]]:
        """Strategies that did well in similar studies, from memory, with the reasons."""
        return await work(context, lambda: tools.recommended(model, dataset, limit))

    return server


def _reporting(context: Context, run: Callable[[], Result]) -> Result:
    """Run in this thread with the progress of child processes passed on; expected errors become the tool's."""
    supervisor, last = shared_supervisor(), 0.0
    before = supervisor.progress

    def told(what: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last < _PAUSE_S and done < total:
            return
        last = time.monotonic()
        anyio.from_thread.run(context.report_progress, float(done), float(total), what)

    supervisor.progress = told
    try:
        return run()
    except ValidationError as error:
        first = error.errors()[0]
        raise ToolError(f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}") from error
    except AcfError as error:
        raise ToolError(str(error)) from error
    finally:
        supervisor.progress = before
