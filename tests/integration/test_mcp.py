"""``acf mcp`` as a child process, driven by the protocol's own client: tools, checks, progress, a small study."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import ClientSession, StdioServerParameters, stdio_client

TOOLS = {"list_methods", "plan_compression", "execute_experiment", "reflect_and_improve", "compare", "recommend"}


@asynccontextmanager
async def connected(home: Path) -> AsyncIterator[ClientSession]:
    environment = {**os.environ, "ACF_HOME": str(home)}
    environment.pop("OPENAI_API_KEY", None)
    server = StdioServerParameters(
        command=sys.executable, args=["-m", "agentic_compression.cli.main", "mcp"], env=environment, cwd=home
    )
    with (home / "server.log").open("w") as log:
        async with stdio_client(server, errlog=log) as (read, write), ClientSession(read, write) as session:
            await session.initialize()
            yield session


def text_of(result: Any) -> str:
    return "".join(part.text for part in result.content if part.type == "text")


def value_of(result: Any) -> Any:
    assert not result.is_error, text_of(result)
    return (
        json.loads(text_of(result)) if len(result.content) == 1 else [json.loads(part.text) for part in result.content]
    )


def test_tools_are_listed_with_their_limits(home: Path) -> None:
    async def talk() -> None:
        async with connected(home) as session:
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            assert set(tools) == TOOLS
            limits = tools["plan_compression"].input_schema["properties"]["objective"]
            assert limits["maxLength"] == 4000
            methods = value_of(await session.call_tool("list_methods", {}))
            assert {"gptq", "lora", "distill"} <= {method["name"] for method in methods}

    anyio.run(talk)


WRONG: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("plan_compression", {"model": "/etc", "dataset": "demo", "objective": "smallest"}, "must lie below"),
    ("plan_compression", {"model": "demo", "dataset": "../x.jsonl", "objective": "smallest"}, "must lie below"),
    ("plan_compression", {"model": "demo", "dataset": "demo", "objective": ""}, "objective"),
    ("plan_compression", {"model": "demo", "dataset": "demo", "objective": "x", "episodes": 0}, "episodes"),
    ("execute_experiment", {"study": "../../etc"}, "study"),
    ("execute_experiment", {"study": "never-begun"}, "no plan"),
    ("reflect_and_improve", {"study": "never-begun"}, "no frontier"),
    ("compare", {"baseline": "/etc", "candidate": "/usr"}, "must lie below"),
    ("recommend", {"model": "~/x", "dataset": "demo"}, "must lie below"),
)


def test_wrong_arguments_are_refused(home: Path) -> None:
    async def talk() -> None:
        async with connected(home) as session:
            for tool, arguments, words in WRONG:
                result = await session.call_tool(tool, arguments)
                assert result.is_error, (tool, arguments)
                assert words in text_of(result)
                assert "Traceback" not in text_of(result)

    anyio.run(talk)


@pytest.mark.slow
def test_a_study_over_the_protocol(home: Path) -> None:
    heard: list[str] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append(f"{message} {progress}/{total}")

    async def talk() -> None:
        async with connected(home) as session:
            wish = {"model": "demo", "dataset": "demo", "objective": "smallest model, sing to it", "episodes": 1}
            plan = value_of(await session.call_tool("plan_compression", {**wish, "limit": 20}))
            assert plan["wish"]["not_understood"] == ["sing to it"]
            study = plan["study"]["name"]
            left = [item["number"] for item in plan["items"]]
            while left:
                done = value_of(await session.call_tool("execute_experiment", {"study": study}, progress_callback=hear))
                assert done["item"]["number"] == left[0]
                assert done["item"]["status"] == "done", done
                left = done["left"]
            assert done["termination_reason"] == "max_episodes"
            assert heard
            over = await session.call_tool("execute_experiment", {"study": study})
            assert over.is_error
            assert "nothing left to do" in text_of(over)
            found = value_of(await session.call_tool("reflect_and_improve", {"study": study}))
            assert found["best"]["episode"] == 1
            compared = value_of(
                await session.call_tool("compare", {"baseline": f"{study}:0", "candidate": f"{study}:1"})
            )
            assert compared["verdict"] in {"better", "worse", "indistinguishable"}
            assert compared["ratios"]["model_size_gb"]["value"] < 1
            advice = value_of(await session.call_tool("recommend", {"model": "demo", "dataset": "demo"}))
            assert isinstance(advice, list | dict)

    anyio.run(talk)
