"""Strike small studies with faults, and check that each is exact: `python tests/chaos/run.py [FAULT=TIMES …]`.

Without arguments this takes about two hours on two cores. If a study is not exact, its directory is kept and the exit
code is 1.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from faults import FAULTS, Outcome, Reference, run_reference
from room import FULL

# Studies share the cores with each other and with this process; threads that wait by spinning would take those cores.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    names = ", ".join(FAULTS)
    parser.add_argument("faults", nargs="*", metavar="FAULT=TIMES", help=f"number of strikes per fault ({names})")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments (default: 0)")
    options = parser.parse_args()
    wanted = {name: times for name, (_, times) in FAULTS.items()}
    if options.faults:
        wanted = {name: int(times) for name, _, times in (text.partition("=") for text in options.faults)}
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        reference = run_reference(Path(folder), FULL)
    print(f"reference: {reference.lines} lines in the journal", flush=True)
    rows = []
    exact = True
    for name, times in wanted.items():
        outcomes = strike(name, times, reference, options.seed)
        rows.append(row_of(name, outcomes))
        exact = exact and not any(outcome.faults for outcome in outcomes)
    print("\n| fault | strikes | studies | exact studies | phase of the study |\n|---|---:|---:|---:|---|")
    print("\n".join(rows))
    return 0 if exact else 1


def strike(name: str, times: int, reference: Reference, seed: int) -> list[Outcome]:
    """Run studies until a fault has struck `times` times."""
    fault, _ = FAULTS[name]
    outcomes: list[Outcome] = []
    while sum(len(outcome.strikes) for outcome in outcomes) < times:
        room = Path(tempfile.mkdtemp(prefix="chaos-"))
        started = time.monotonic()
        try:
            outcome = fault(room, random.Random(f"{seed} {name} {len(outcomes)}"), reference)
        except Exception as error:  # a session or a service hangs, or a file to be read is missing
            outcome = Outcome(["unknown"], [f"{type(error).__name__}: {error}"])
        judgement = "exact" if not outcome.faults else f"NOT EXACT, see {room}: {'; '.join(outcome.faults)}"
        moments = " · ".join(outcome.strikes) or "not struck"
        print(f"{name} {len(outcomes)}: {moments}: {judgement} ({time.monotonic() - started:.0f} s)", flush=True)
        if not outcome.faults:
            shutil.rmtree(room)
        outcomes.append(outcome)
    return outcomes


def row_of(name: str, outcomes: list[Outcome]) -> str:
    """Build a fault's row of the table, as Markdown."""
    strikes = [strike for outcome in outcomes for strike in outcome.strikes]
    places = Counter(strike.partition(",")[0] for strike in strikes)
    where = ", ".join(f"{place} {count}" for place, count in places.most_common())
    exact = sum(not outcome.faults for outcome in outcomes)
    return f"| {name} | {len(strikes)} | {len(outcomes)} | {exact} | {where} |"


if __name__ == "__main__":
    sys.exit(main())
