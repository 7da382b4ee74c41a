"""`kubectl lamplighter`: the commands that ask a server, of a cluster that kubectl knows. See `cluster`.

kubectl runs `kubectl-lamplighter`, and for completion `kubectl_complete-lamplighter`, with the words after its own.
"""

import copy
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from click.shell_completion import ShellComplete

from cli import options, terminal
from cli.cluster import Chosen, connected
from cli.main import InOrder, make_errors_safe
from cli.main import main as lamplighter
from cli.options import FILE, Access

PROGRAM = "kubectl lamplighter"
NO_FILES, ALL = 4, 0
"""What kubectl's shell does with completions: not offer files as well, or the usual (cobra's ShellCompDirective)."""
_REPLACED = frozenset({"server", "data_dir", "token_file", "ca_file"})
_PARTS = frozenset({"agent", "controller"})
"""Commands that reach a server, and are no one's who uses kubectl."""


@click.group(cls=InOrder, context_settings=lamplighter.context_settings)
def plugin() -> None:
    """Look after the backups of a cluster: the commands of `lamplighter` for the server in the cluster.

    The cluster is that of your kubeconfig, and you are who you are there: the server asks RBAC what you may do. Without
    -n, the namespace is that of your kubeconfig's context.
    """
    make_errors_safe()


def main() -> None:
    """Run the plugin."""
    plugin(prog_name=PROGRAM)


def complete() -> None:
    """Print completions of the words that are typed so far, as kubectl asks its plugins for them."""
    *words, incomplete = sys.argv[1:] or [""]
    with ExitStack() as stack:

        def access(given: Mapping[str, Any]) -> Access:
            return stack.enter_context(connected(_chosen(given)))

        found = ShellComplete(plugin, {"obj": access}, PROGRAM, "").get_completions(words, incomplete)
    for item in found:
        if item.type == "plain":
            terminal.say(f"{item.value}\t{item.help}" if item.help else str(item.value))
    terminal.say(f":{NO_FILES if all(it.type == 'plain' for it in found) else ALL}")


_OPTIONS: list[click.Parameter] = [
    click.Option(["--kubeconfig"], type=FILE, help="The kubeconfig to use, as of kubectl."),
    click.Option(
        ["--context"], default="", help="The context of the kubeconfig to use.", show_default="the current one"
    ),
    click.Option(
        ["--service"],
        metavar="NAMESPACE/NAME",
        default="",
        envvar="LAMPLIGHTER_SERVICE",
        show_envvar=True,
        help="The server's Service.",
        show_default="the one with Lamplighter's labels",
    ),
    click.Option(
        ["--service-account", "account"],
        metavar="[NAMESPACE/]NAME",
        default="",
        envvar="LAMPLIGHTER_SERVICE_ACCOUNT",
        show_envvar=True,
        help="Be this service account, by a token that kubectl creates: where your kubeconfig has no token.",
        show_default="you",
    ),
    click.Option(["--token-file"], type=FILE, help="File with a token of the cluster.", show_default="kubeconfig's"),
    click.Option(["--ca-file"], type=FILE, help="CA certificates for the server (PEM).", show_default="the cluster's"),
    click.Option(
        ["--tls-name"],
        default="",
        help="The name in the server's certificate.",
        show_default="SERVICE.NAMESPACE.svc",
    ),
]


def _chosen(given: Mapping[str, Any]) -> Chosen:
    """What the options of a command chose."""
    return Chosen(**{name: given[name] for name in Chosen._fields if given.get(name) is not None})


def _in_cluster(command: click.Command) -> click.Command:
    """A command of `lamplighter` with the options that choose a cluster in place of those that choose a server."""
    wrapped = vars(command.callback)["__wrapped__"]  # what `options.access` gives the access to

    def run(**given: Any) -> None:
        own = {name: given.pop(name) for name in Chosen._fields}
        if given.get("only_client"):
            wrapped(Access("", Path(), None, None), **given)
            return
        with connected(_chosen(own)) as access:
            wrapped(access, **given)

    made = copy.copy(command)
    params = [it for it in command.params if it.name not in _REPLACED]
    vars(made).update(callback=run, params=[*params, *_OPTIONS])
    return made


for _name, _command in lamplighter.commands.items():
    if _name not in _PARTS and options.asks_server(_command):
        plugin.add_command(_in_cluster(_command))
