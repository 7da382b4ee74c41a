"""The `lamplighter` command: its commands in the order of its help, and how their errors are shown."""

import signal
import sys
from typing import Any

import click

from cli import terminal
from cli.commands import about, objects, overview, parts, planning, remote

# httpx has a command line of its own, and goes without where that cannot be imported. With all that it imports in turn
# it is a fifth of the time of a short command, none of which has imported httpx yet.
sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]

EPILOG = """
\b
First steps:
  lamplighter up examples/quickstart    run a server, an agent and your schedules on this machine
  lamplighter status                    say whether everything is backed up, and what is wrong
  lamplighter get schedules             list what is declared, and whether every host holds it
  lamplighter get jobs                  list what ran, and how it ended
  lamplighter get problems              list everything that is wrong
  lamplighter logs JOB                  show restic's output
  lamplighter restore REPOSITORY ...    get files back

`lamplighter COMMAND --help` lists a command's options, and the environment variable for each.
"""


EXTRAS = {
    "up": "all",
    "server": "server",
    "agent": "agent",
    "controller": "controller",
    "keys": "server,controller",
    "plan": "cli,controller",
}
"""The extra of pyproject.toml that each command needs; a command that is not listed needs `cli`."""
INTERRUPTED = 128 + signal.SIGINT
"""The exit code after Ctrl-C, as shells have it."""


class InOrder(click.Group):
    """Lists its commands in the order in which they were added, and makes the messages of errors safe to print."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in order."""
        return list(self.commands)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse the group's own options."""
        with terminal.safe_errors():
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. Raises click.ClickException, with the extra to install, where a package is missing.

        Ctrl-C ends any command without a word, with INTERRUPTED.
        """
        with terminal.safe_errors():
            try:
                return super().invoke(ctx)
            except ModuleNotFoundError as error:
                raise _not_installed(error, ctx.invoked_subcommand or "") from None
            except KeyboardInterrupt:
                raise click.exceptions.Exit(INTERRUPTED) from None


@click.group(
    cls=InOrder, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="lamplighter")
def main() -> None:
    """Back up your machines: you declare schedules, and each due run happens once on each host.

    The server holds what every host should do, agents do it with restic, and `get` shows which hosts did not.
    """
    make_errors_safe()


def make_errors_safe() -> None:
    """Have the tracebacks of unexpected errors be safe to print."""
    sys.excepthook = terminal.excepthook


for _command in (
    *(parts.up, parts.server, parts.agent, parts.controller, parts.keys),
    *(overview.status, planning.plan, objects.get, objects.describe, objects.events),
    *(remote.jobs, remote.run, remote.resume, remote.cancel, remote.job_logs),
    *(remote.restore, remote.snapshots, remote.ls),
    *(remote.create, objects.delete, remote.enrol, remote.revoke, remote.drain, remote.undrain),
    *(about.version, about.completion),
):
    main.add_command(_command)


def _not_installed(error: ModuleNotFoundError, command: str) -> click.ClickException:
    """The error that names the extra to install for a command whose package is missing."""
    package = (error.name or "").partition(".")[0]
    extra = "postgresql" if package == "psycopg" else EXTRAS.get(command, "cli")
    remedy = f"install Lamplighter with the extra `{extra}`, as in pip install '….whl[{extra}]'"
    return click.ClickException(f"`lamplighter {command}` needs the Python package {package}: {remedy}")
