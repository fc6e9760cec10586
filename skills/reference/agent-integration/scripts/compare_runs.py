"""Two runs on the same cases: is the new one better, worse, or may the difference be luck?

Usage: python scripts/compare_runs.py BEFORE.jsonl AFTER.jsonl [--floor SHARE]

  BEFORE, AFTER    a line of JSON for each case: {"id": "case-1", "ok": true}
  --floor SHARE    the share, 0 to 1, below which AFTER is refused whatever BEFORE was

Only the cases whose verdict changed count. If neither run were better, each of them would be a
toss of a coin; p says how often coins fall at least this unevenly (McNemar's exact test). The
exit status is 0 when AFTER passes, 1 when it is worse with p below 0.05 or under the floor, and
2 when the runs cannot be compared.
"""

from __future__ import annotations

import argparse
import json
import math
import sys

SURE = 0.05


def read(lines):
    """Verdicts by the id of their case."""
    verdicts = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            case = json.loads(line)
            id, ok = case["id"], case["ok"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f'line {number} is no {{"id": …, "ok": …}}') from None
        if not isinstance(ok, bool):
            raise ValueError(f"line {number}: ok must be true or false")
        if id in verdicts:
            raise ValueError(f"line {number}: the case {id!r} for the second time")
        verdicts[id] = ok
    if not verdicts:
        raise ValueError("there is no case in it")
    return verdicts


def compare(before, after):
    """How many cases were won, how many lost, and p."""
    if before.keys() != after.keys():
        other = sorted(map(str, before.keys() ^ after.keys()))
        raise ValueError(f"{len(other)} cases are in one run only, such as {other[0]}")
    won = sum(after[id] and not before[id] for id in before)
    lost = sum(before[id] and not after[id] for id in before)
    tail = sum(math.comb(won + lost, k) for k in range(min(won, lost) + 1))
    return won, lost, min(1.0, 2 * tail / 2 ** (won + lost))


def share(verdicts):
    """The share of right cases with its 95 % interval (Wilson), as text."""
    n, right, z = len(verdicts), sum(verdicts.values()), 1.959964
    middle = (right + z * z / 2) / (n + z * z)
    half = z * math.sqrt(right * (n - right) / n + z * z / 4) / (n + z * z)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return f"{right} of {n} right, {right / n:.1%} ({low:.1%} to {high:.1%})"


def main(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage="%(prog)s"
    )
    parser.add_argument("before")
    parser.add_argument("after")
    parser.add_argument("--floor", type=float, default=0.0)
    given = parser.parse_args(arguments)
    runs = []
    for path in (given.before, given.after):
        try:
            with open(path, encoding="utf-8") as lines:
                runs.append(read(lines))
        except (OSError, ValueError) as problem:
            print(f"{path} cannot be used: {problem}")
            return 2
    try:
        won, lost, p = compare(*runs)
    except ValueError as problem:
        print(f"The runs cannot be compared: {problem}")
        return 2
    print(f"before: {share(runs[0])}\nafter:  {share(runs[1])}")
    print(f"changed: {won} won, {lost} lost, p = {p:.3g}")
    if p < SURE and lost > won:
        print("refused: worse, and hardly by chance")
        return 1
    if sum(runs[1].values()) < given.floor * len(runs[1]):
        print(f"refused: below the floor of {given.floor:.1%}")
        return 1
    print("passes: " + ("better, and hardly by chance" if p < SURE else "no difference was shown"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
