"""Which way to a model: direct, proxy, cloud, or none; and why.

Usage: python scripts/choose_backend.py [--private] [--offline] [--outside-domain]
           [--programs N] [--cost DOLLARS --budget DOLLARS] [--seconds S --patience S] [--json]

  --private          the data, tool results included, must not leave the machine
  --offline          there is no network
  --outside-domain   the work is not what your own model was made for
  --programs N       how many of your programs use the model (default 1)
  --cost, --budget   a hosted model's cost, and what may be spent, in dollars a month
  --seconds, --patience   a turn with a hosted model, and what a person will wait

Measure cost and seconds over one whole turn of the agent: references/choosing-a-backend.md.
"""

from __future__ import annotations

import argparse
import json
import sys


def choose(private=False, offline=False, in_domain=True, programs=1, cost=0.0, budget=None,
           seconds=0.0, patience=None):  # fmt: skip
    """The pattern, and a list of reasons that is never empty."""
    against = []
    if private:
        against.append("The data must not leave the machine.")
    if offline:
        against.append("There is no network.")
    if budget is not None and cost > budget:
        against.append(f"A hosted model costs {cost:g} dollars a month; the budget is {budget:g}.")
    if patience is not None and seconds > patience:
        against.append(f"A hosted model takes {seconds:g} s a turn; people wait {patience:g} s.")
    if not in_domain:
        return ("none", against) if against else ("cloud", ["Only a large model can do this."])
    reasons = ["Your own model was made for this.", *against]
    if programs > 1:
        return "proxy", [*reasons, f"{programs} programs share it: one address, one lock."]
    return "direct", [*reasons, "One program, one model: nothing in between is needed."]


def main(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="%(prog)s"
    )
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--offline", action="store_true")
    parser.add_argument("--outside-domain", action="store_true")
    parser.add_argument("--programs", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    for name, default in {"cost": 0.0, "budget": None, "seconds": 0.0, "patience": None}.items():
        parser.add_argument(f"--{name}", type=float, default=default)
    given = vars(parser.parse_args(arguments))
    as_json, outside = given.pop("json"), given.pop("outside_domain")
    pattern, reasons = choose(in_domain=not outside, **given)
    if as_json:
        print(json.dumps({"pattern": pattern, "reasons": reasons}))
    else:
        print(f"{pattern}: {' '.join(reasons)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
