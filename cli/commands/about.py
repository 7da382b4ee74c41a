"""The commands about this program itself: version and completion."""

import click

from cli import options

COMPLETE = "_LAMPLIGHTER_COMPLETE"
"""The environment variable by which click's scripts ask this program for words."""


@click.command()
@click.option("--client", "only_client", is_flag=True, help="Only of this program: ask no server.")
@options.output("text", "yaml", "json")
@options.access
def version(access: options.Access, only_client: bool, output: str) -> None:
    """Show the versions of this program and of the server."""
    from cli import versions

    versions.version(None if only_client else access, output)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that has a shell complete commands, options, types and names.

    \b
      source <(lamplighter completion bash)                # in ~/.bashrc
      source <(lamplighter completion zsh)                 # in ~/.zshrc, after compinit
      lamplighter completion fish | source                 # in ~/.config/fish/config.fish

    Names come from the server that the environment or the options name, within two seconds.
    """
    from cli import completing, terminal

    terminal.write(completing.script(shell, "lamplighter", COMPLETE))
