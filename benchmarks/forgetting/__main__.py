"""The command line."""

import argparse
from pathlib import Path

from .experiments import LENGTHS, SEEDS, Options, length, search, trade_off
from .methods import METHODS
from .store import RESULTS

EXPERIMENTS = {"search": search, "length": length, "trade_off": trade_off}


def main(arguments=None):
    parser = argparse.ArgumentParser(
        "python -m benchmarks.forgetting",
        description="Measure what fine-tuning keeps and learns.",
    )
    parser.add_argument("experiment", choices=[*EXPERIMENTS, "report"])
    parser.add_argument("network", nargs="?", choices=list(LENGTHS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=len(SEEDS), metavar="N")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--quick", action="store_true", help="see that it runs; learn nothing"
    )
    given = parser.parse_args(arguments)
    options = Options(
        folder=given.results,
        methods=given.methods and tuple(given.methods),
        seeds=tuple(range(given.seeds)),
        quick=given.quick,
    )
    if given.experiment == "report":
        from .report import report

        return report(given.results)
    for network in [given.network] if given.network else LENGTHS:
        EXPERIMENTS[given.experiment](network, options)


if __name__ == "__main__":
    main()
