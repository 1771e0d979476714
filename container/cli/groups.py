"""Groups whose commands are imported when they are called, and the kinds of commands.

A group knows names, aliases and one-line helps from a table; so listing them, and completing them,
imports none of their modules.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from container.cli.failure import INTERRUPTED, PROCESS_FAILURE, Ended, OutputGone, UsageRefused


class Entry(NamedTuple):
    """One command of a group."""

    name: str
    target: str
    """`package.module:attribute` of the command."""
    help: str
    aliases: tuple[str, ...] = ()


class LazyGroup(click.Group):
    """A group over a table of entries."""

    usage_status = 2
    failure_status = 1

    def __init__(self, *args: Any, entries: Sequence[Entry] = (), **options: Any) -> None:
        super().__init__(*args, **options)
        self.entries = tuple(entries)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; without any argument show the help, which is no error."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help())
            ctx.exit()
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the table's order, aliases left out."""
        return [entry.name for entry in self.entries]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command of a name or alias."""
        for entry in self.entries:
            if cmd_name == entry.name or cmd_name in entry.aliases:
                module, _, attribute = entry.target.partition(":")
                command: click.Command = getattr(importlib.import_module(module), attribute)
                return command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of the first argument; a typing error gets a suggestion."""
        name = args[0]
        if self.get_command(ctx, name) is None and not ctx.resilient_parsing:
            if name.startswith("-"):
                self.parse_args(ctx, args)
            from difflib import get_close_matches

            known = [known for entry in self.entries for known in (entry.name, *entry.aliases)]
            close = get_close_matches(name, known, n=1)
            hint = f'did you mean "{close[0]}"?' if close else f'see "{ctx.command_path} --help"'
            raise UsageRefused(f'no command "{name}"', hint=hint, context=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table."""
        rows = [(", ".join((entry.name, *entry.aliases)), entry.help) for entry in self.entries]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete names from the table, and this group's own options."""
        names = [
            CompletionItem(entry.name, help=entry.help)
            for entry in self.entries
            if entry.name.startswith(incomplete)
        ]
        return names + click.Command.shell_complete(self, ctx, incomplete)


class Verb(click.Command):
    """A command: 1 when it failed, 2 when it was called wrongly."""

    usage_status = 2
    failure_status = 1

    def invoke(self, ctx: click.Context) -> Any:
        """Run it; an error leaves with the status that this kind of command gives it."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            # Before click sees it, which would make a failure of it.
            raise OutputGone from error
        except KeyboardInterrupt as error:
            raise Ended(INTERRUPTED) from error
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise
        except Exception as error:
            error.__dict__.setdefault("container_status", self.failure_status)
            raise


class ProcessVerb(Verb):
    """A command whose status is its container's: ours is 125. Options end at the first argument."""

    usage_status = PROCESS_FAILURE
    failure_status = PROCESS_FAILURE

    def __init__(self, *args: Any, **options: Any) -> None:
        settings: dict[str, Any] = dict(options.pop("context_settings", None) or {})
        settings.setdefault("allow_interspersed_args", False)
        super().__init__(*args, context_settings=settings, **options)
