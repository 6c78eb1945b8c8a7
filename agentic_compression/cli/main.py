"""Entry point of ``acf``: commands are thin, heavy imports happen inside them, errors end in one line."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated, NoReturn

import typer

from agentic_compression import __version__
from agentic_compression.cli import (
    chat,
    compare,
    export,
    inspect,
    maintain,
    mcp,
    memory,
    plan,
    registry,
    run,
    serve,
    work,
)
from agentic_compression.errors import AcfError

__all__ = ["app", "main"]

_EPILOG = """Examples:

  acf run --model demo --dataset demo --episodes 5

  acf run -m ./my-model -d my_questions.jsonl --constraint "accuracy_drop<=0.02"

  acf frontier demo-demo
"""

app = typer.Typer(
    name="acf",
    help="Find the best compressed versions of a language model: plan, compress, measure, keep the Pareto frontier.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"acf {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""


app.command("run")(run.run)
app.command("plan")(plan.plan)
app.command("mcp")(mcp.mcp)
app.command("spec")(inspect.spec)
app.command("methods")(inspect.methods)
app.command("frontier")(inspect.frontier)
app.command("analyze")(inspect.analyze)
app.command("compress")(work.compress)
app.command("evaluate")(work.evaluate)
app.command("compare")(compare.compare)
app.command("rebuild")(work.rebuild)
app.command("serve")(serve.serve)
app.command("chat")(chat.chat)
app.command("export")(export.export)
app.command("doctor")(maintain.doctor)
app.command("clean")(maintain.clean)
app.command("env")(maintain.env)
app.add_typer(registry.app, name="registry")
app.add_typer(memory.app, name="memory")


def main() -> None:
    """Run the command line; every expected failure is one line on standard error and an exit code."""
    try:
        code = app(standalone_mode=False)
    except KeyboardInterrupt:
        _fail("interrupted; the same command goes on where it stopped", 130)
    except AcfError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        _fail(*_explain(error))
    _exit(code if isinstance(code, int) else 0)


def _explain(error: Exception) -> tuple[str, int]:
    """One line and an exit code for errors of the libraries; anything unexpected keeps its traceback."""
    if type(error).__name__ == "NoArgsIsHelpError":  # the help was printed
        sys.exit(2)
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # click's usage errors
        context = getattr(error, "ctx", None)
        hint = f" (see: {context.command_path} --help)" if context is not None else ""
        return f"{error.format_message()}{hint}", 2
    if type(error).__name__ == "Abort":
        return "aborted", 130
    if type(error).__name__ == "ValidationError" and hasattr(error, "errors"):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']}, got {str(first.get('input'))[:120]!r}", 2
    if isinstance(error, OSError) or type(error).__name__ in {"MlflowException", "OperationalError", "Timeout"}:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}", 1
    raise error


def _fail(message: str, code: int) -> NoReturn:
    typer.secho("error: ", fg=typer.colors.RED, err=True, nl=False)
    typer.echo(message, err=True)
    _exit(code)


def _exit(code: int) -> NoReturn:
    """End the process; with ZenML and MLflow loaded, skip the seconds that tearing down their modules takes."""
    if "zenml" not in sys.modules and "mlflow" not in sys.modules:
        sys.exit(code)
    from agentic_compression.execution import shared_supervisor

    shared_supervisor().close()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
