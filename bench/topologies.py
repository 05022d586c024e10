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
REST_S = 20.0


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
            time.sleep(REST_S)
            ratios = []
            for number in range(rounds):
                rates = [workload.measure(context) for context in contexts]
                ratios.append(rates[0] / rates[1])
                print(f"round {number + 1}: {rates[0]:,.0f} against {rates[1]:,.0f}", flush=True)
    middle = statistics.median(ratios)
    print(f"{name}: {middle:.2f} of one of each ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
