"""Plays stories again: `python -m tests.simulation SEED` tells one line by line, `--seeds N` checks N from SEED on."""

import argparse
import logging
import sys
import time

from tests.simulation.promises import BrokenPromiseError, check
from tests.simulation.story import FLEETS, play


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seed", type=int)
    parser.add_argument("--seeds", type=int, metavar="N", help="check N seeds from this one on, without their stories")
    parser.add_argument(
        "--fleet", choices=FLEETS, default="month", help="how large it is, and what goes wrong (default: %(default)s)"
    )
    parser.add_argument(
        "--about", metavar="WORD", default="", help="tell only lines with this word: a host, a schedule"
    )
    args = parser.parse_args()
    logging.disable()
    broken = 0
    for seed in range(args.seed, args.seed + (args.seeds or 1)):
        begin = time.process_time()
        lines: list[str] = []
        story = play(seed, FLEETS[args.fleet](seed), None if args.seeds else lines.append)
        sys.stdout.writelines(f"{line}\n" for line in lines if args.about in line)
        verdict = "every promise holds"
        try:
            check(story)
        except BrokenPromiseError as error:
            broken, verdict = broken + 1, str(error)
        spent = time.process_time() - begin
        trace = story.trace.hexdigest()[:16]
        sys.stdout.write(f"seed {seed}: {len(story.db.jobs)} jobs, {spent:.1f} s, trace {trace}: {verdict}\n")
    return min(broken, 1)


sys.exit(main())
