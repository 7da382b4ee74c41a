"""`helm` as docs have people type it, by Helm itself: install, upgrade and uninstall, with `-n` and `--set`."""

import argparse
from typing import Any

from helm_python import Chart, Config, parse_set_string

ACTIONS = ("install", "upgrade", "uninstall")


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Values over values, as helm lays them."""
    both = {key: merged(below[key], above[key]) for key in below.keys() & above.keys() if isinstance(above[key], dict)}
    return below | above | both


def main() -> None:
    """Do what the arguments say, in the cluster of KUBECONFIG."""
    parser = argparse.ArgumentParser(prog="helm")
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument("name")
    parser.add_argument("chart", nargs="?")
    parser.add_argument("-n", dest="namespace")
    parser.add_argument("--set", action="append", default=[])
    reuse = parser.add_mutually_exclusive_group()
    reuse.add_argument("--reuse-values", action="store_true")
    reuse.add_argument("--reset-then-reuse-values", action="store_true")
    args = parser.parse_args()
    values: dict[str, Any] = {}
    for given in args.set:
        values = merged(values, parse_set_string(given))
    helm = Config(namespace=args.namespace)
    if args.action == "uninstall":
        helm.uninstall(args.name)
        return
    with Chart.load(args.chart) as chart:
        if args.action == "install":
            helm.install(chart, args.name, values, namespace=args.namespace)
        else:
            helm.upgrade(chart, args.name, merged(helm.get_values(args.name), values), namespace=args.namespace)


if __name__ == "__main__":
    main()
