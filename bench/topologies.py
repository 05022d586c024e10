"""Several adjudicators, journals and storage files in one process against one of each.

python bench/topologies.py [point-read|update] [rounds] [seconds]: alternating rounds; the ratio of
their rates is the median over the rounds.
"""

from __future__ import annotations

import os
import statistics
import sys
import time

from meridian.bench import servers, workloads

SEVERAL = ("--storage-shards", "4", "--adjudicators", "3", "--journals", "2")


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "update"
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 5.0
    workload = workloads.WORKLOADS[name]
    with servers.scratch() as directory:
        os.environ["MERIDIAN_STATE_DIR"] = str(directory)
        with (
            servers.ours(directory / "one") as one,
            servers.ours(directory / "several", *SEVERAL) as several,
        ):
            contexts = [workloads.Context(dsn, directory, seconds) for dsn in (several, one)]
            for context in contexts:
                workload.set_up(context)
            time.sleep(workload.rest_s)
            ratios = []
            for number in range(rounds):
                # Who goes first changes from round to round.
                order = contexts if number % 2 == 0 else contexts[::-1]
                rates = {context.dsn: workload.measure(context) for context in order}
                ratios.append(rates[several] / rates[one])
                print(f"round {number + 1}: {rates[several]:,.0f} against {rates[one]:,.0f}")
    middle = statistics.median(ratios)
    print(f"{name}: {middle:.2f} of one of each ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
