"""Look for violations for a long time: ``python -m tests.fuzz --seconds 60 --seed 7``."""

from __future__ import annotations

import argparse
import random
import sys
import textwrap

import torch

from tests.fuzz.properties import PROPERTIES
from tests.fuzz.running import Found, search


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="per property (60)")
    parser.add_argument("--examples", type=int, help="per property, instead of seconds")
    parser.add_argument("--seed", type=int, help="of the first example; by default a random one")
    parser.add_argument("--only", default="", help="properties whose name holds this")
    return parser.parse_args(arguments)


def _say(found: Found) -> None:
    print(f"\n  VIOLATION {found.violation}\n{textwrap.indent(found.example.text, '    ')}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run all properties; return 1 if there is a violation."""
    options = _options(arguments)
    torch.set_num_threads(1)
    first = options.seed if options.seed is not None else random.SystemRandom().randrange(2**31)
    print(f"seed {first}", flush=True)
    violations = 0
    for each in PROPERTIES:
        if options.only not in each.name:
            continue
        print(f"\n{each.name}", flush=True)
        seconds = None if options.examples else options.seconds
        tally = search(each, first_seed=first, seconds=seconds, examples=options.examples, say=_say)
        violations += len(tally.found)
        print(
            f"  {sum(tally.outcomes.values())} examples of {len(tally.names)} kinds of lines, "
            f"{len(tally.found)} violations, seen {tally.again} times more"
        )
        for outcome, count in tally.outcomes.most_common():
            print(f"  {count:6} {outcome}")
    print(f"\nseed {first}: {violations} violations")
    return min(violations, 1)


if __name__ == "__main__":
    sys.exit(main())
