"""The command line's frame: finds commands by file name, and turns errors into one line and an exit status."""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import platform
import signal
import sys
from typing import Any

import click

import softcache.cli
from softcache._version import __version__
from softcache.addresses import printable
from softcache.console import show_messages
from softcache.distributed import rank
from softcache.errors import OtherRankError, SoftcacheError, nearest
from softcache.remembered import set_process

ORDER = (
    "teach", "layers", "plan", "dump", "train", "compare", "sweep", "eval", "report", "export", "info", "verify",
    "trim", "convert", "copy", "losses", "presets",
)  # fmt: skip


class LazyGroup(click.Group):
    """Commands are the files of ``softcache/cli``; only the one that runs is imported, so that help is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        found = {m.name for m in pkgutil.iter_modules(softcache.cli.__path__) if not m.name.startswith("_")}
        return [name for name in ORDER if name in found] + sorted(found - set(ORDER))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        return importlib.import_module(f"softcache.cli.{cmd_name}").command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and not args[0].startswith("-") and args[0] not in self.list_commands(ctx):
            raise click.UsageError(f"no command is called {args[0]!r}{nearest(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)


def _show_versions(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    """softcache's, torch's and Python's: what whoever is asked for help wants to know first."""
    if not value or ctx.resilient_parsing:
        return
    try:
        torch = importlib.metadata.version("torch")  # which takes seconds to import
    except importlib.metadata.PackageNotFoundError:
        torch = "not installed"
    click.echo(f"softcache {__version__}, torch {torch}, Python {platform.python_version()}")
    ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    expose_value=False,
    is_eager=True,
    callback=_show_versions,
    help="Show versions and stop.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option("--quiet", "-q", is_flag=True, help="Print results and errors only.")
@click.option(
    "--allow",
    multiple=True,
    metavar="SPEC",
    help="Follow this path, or run this code, where a folder names it: file.py:factory, folder:PATH; repeatable.",
)
@click.option("--no-remember", is_flag=True, help="Don't remember which paths and code were given for which folder.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads that torch may use.  [default: one a core]")
@click.pass_context
def main(
    ctx: click.Context, debug: bool, quiet: bool, allow: tuple[str, ...], no_remember: bool, threads: int | None
) -> None:
    """Run an expensive teacher once; train many students from its stored outputs.

    \b
      softcache teach --model resnet50              train a teacher on the digits that come with softcache
      softcache dump  --teacher resnet50            keep its logits for 4 augmented views of every image
      softcache train --student resnet18 --T 4      distil, as often as you like, at any temperature
    """
    ctx.obj = {"debug": debug, "threads": threads}
    show_messages(quiet=quiet)
    set_process(writes=not no_remember, allowed=allow)


def run(arguments: list[str] | None = None) -> int:
    """Runs a command; returns the exit status: 0 done, 1 failed, 2 usage, 130 and 143 after a signal."""
    debug = "--debug" in (arguments if arguments is not None else sys.argv)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        result = main.main(args=arguments, prog_name="softcache", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except SoftcacheError as error:
        if debug:
            raise
        if not isinstance(error, OtherRankError):
            print(f"softcache: {printable(error)}", file=sys.stderr)
        return error.exit_status
    except (KeyboardInterrupt, click.Abort):
        print("softcache: interrupted", file=sys.stderr)
        return 130
    except Terminated:
        if rank() == 0:  # torchrun ends all of them
            print("softcache: terminated", file=sys.stderr)
        return 143
    except BrokenPipeError:
        return 1
    except Exception as error:
        if debug:
            raise
        text = " ".join(printable(error).split()) or type(error).__name__
        print(f"softcache: {type(error).__name__}: {text[:300]} (--debug shows where)", file=sys.stderr)
        return 1


class Terminated(BaseException):
    """SIGTERM, as an exception, so that what is half-written is dropped on the way out."""


def _terminate(number: int, frame: Any) -> None:
    raise Terminated
