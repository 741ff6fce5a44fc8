"""The command line."""

import argparse
from pathlib import Path

from . import experiments
from .again import again
from .backbones import HUB, PRETRAINED
from .cost import cost
from .experiments import HEAVY, LENGTHS, SEEDS, Options
from .features import features
from .methods import METHODS
from .networks import NETWORKS
from .scratch import scratch
from .store import RESULTS
from .way_back import way_back

# What each does, and the networks it is for.
EXPERIMENTS = {
    "search": (experiments.search, experiments.SMALL),
    "length": (experiments.length, LENGTHS),
    "trade_off": (experiments.trade_off, experiments.SMALL),
    "tasks": (experiments.tasks, ["dense"]),
    "text": (experiments.text, ["minilm"]),
    "photographs": (experiments.photographs, ["efficientnet_lite0"]),
    "transformer": (experiments.transformer, ["vit"]),
    "scratch": (scratch, ["dense"]),
    "scenes": (experiments.scenes, experiments.SCENES),
    "way_back": (way_back, ["dense"]),
    "features": (features, ["dense"]),
    "cost": (cost, ["dense"]),
    "again": (again, ["dense"]),
}


def main(arguments=None):
    parser = argparse.ArgumentParser(
        "python -m benchmarks.forgetting",
        description="Measure what fine-tuning keeps and learns.",
    )
    parser.add_argument("experiment", choices=[*EXPERIMENTS, "report"])
    parser.add_argument(
        "network", nargs="?", choices=[*NETWORKS, *HUB, *PRETRAINED]
    )
    parser.add_argument("--methods", nargs="+", choices=list(METHODS))
    parser.add_argument(
        "--seeds",
        type=int,
        metavar="N",
        help=f"{len(SEEDS)}, and fewer on {', '.join(HEAVY)}, where not given",
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument(
        "--quick", action="store_true", help="see that it runs; learn nothing"
    )
    parser.add_argument(
        "--images",
        type=Path,
        default=Path("out/images"),
        help="where `report` draws (default: %(default)s)",
    )
    given = parser.parse_args(arguments)
    if given.experiment == "report":
        from .report import report

        return report(given.results, given.images)
    experiment, networks = EXPERIMENTS[given.experiment]
    for network in [given.network] if given.network else networks:
        seeds = HEAVY.get(network, SEEDS)
        if given.seeds is not None:
            seeds = tuple(range(given.seeds))
        options = Options(
            folder=given.results,
            methods=given.methods and tuple(given.methods),
            seeds=seeds,
            quick=given.quick,
        )
        experiment(network, options)


if __name__ == "__main__":
    main()
