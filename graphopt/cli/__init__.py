"""The ``graphopt`` command. Subcommands are imported when they run, so that ``--help`` costs next to nothing."""

from __future__ import annotations

import importlib
import sys

import click

import graphopt

_COMMANDS = {
    "run": "Optimize a model, check the result, and write it with a report.",
    "eval": "Measure a model's accuracy and throughput on labelled images.",
    "compare": "Put two models side by side: accuracy, agreement, size, cost, latency.",
    "inspect": "Show what is in a model, what it costs, and what passes would do.",
    "passes": "List the passes, or show the options of one.",
    "bench": "Time models against each other, interleaved.",
}
INTERRUPTED = 130
INTERNAL = 3


class _Lazy(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in _COMMANDS:
            return None
        found: click.Command = importlib.import_module(f"graphopt.cli.{name}").command
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in _COMMANDS:
            from graphopt.spec import unknown

            raise unknown("command", args[0], _COMMANDS)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        # From the table above, not from the commands: importing them all would be the whole cost of --help.
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(graphopt.__version__, prog_name="graphopt")
def cli() -> None:
    """Optimize trained image classifiers: ONNX in, ONNX out, every claim measured.

    Exit codes: 0 all gates hold, 1 a gate failed, 2 usage, configuration or input, 3 a pass or the tool failed.
    """


def main() -> None:
    """Entry point: runs a command and turns what it raises into one message and the documented exit code."""
    sys.exit(run(sys.argv[1:]))


def run(args: list[str]) -> int:
    """Run the command line; returns the exit code. Messages go to stderr."""
    from graphopt.errors import GraphoptError

    try:
        result = cli.main(args, prog_name="graphopt", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except GraphoptError as error:
        click.echo(f"graphopt: error: {error}", err=True)
        return error.exit_code
    except click.ClickException as error:
        click.echo(f"graphopt: error: {error.format_message()}", err=True)
        if isinstance(error, click.UsageError) and error.ctx is not None:
            click.echo(f"  hint: see {error.ctx.command_path} --help", err=True)
        return 2
    except (KeyboardInterrupt, click.Abort):
        click.echo("graphopt: interrupted; nothing was written", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output went away; python would complain again at exit
        return 0
    except Exception as error:
        if {"-v", "--verbose"} & set(args):
            import traceback

            traceback.print_exc()
        click.echo(
            f"graphopt: internal error: {type(error).__name__}: {error}\n"
            "  hint: this is a bug in graphopt; rerun with -v for the traceback and report it",
            err=True,
        )
        return INTERNAL
