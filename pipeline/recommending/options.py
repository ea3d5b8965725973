"""What a command line says of events and of what is to be written of them."""

from __future__ import annotations

import argparse

from ..settings import check_and_build, merge
from ..settings.sources import Source
from .config import RecommendConfig


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add where events are and tables go, one option for each setting, and where it is done."""
    parser.add_argument("--events", metavar="FILE|FOLDER", required=True, help="Parquet: who had which item")
    parser.add_argument("--out", metavar="FOLDER", help="where the tables go; by default beside the release")
    for name in ("customer", "item", "weight", "time"):
        parser.add_argument(f"--{name}", metavar="COLUMN", help=f"the column of the {name} (default: {name})")
    parser.add_argument("--half-life", metavar="90d", help="how old an event is that counts half as much as the newest")
    parser.add_argument("--top", metavar="N", help="rows a customer or an item (default 20)")
    parser.add_argument("--most-items", metavar="N", help="of a customer's items so many ask (default 50)")
    parser.add_argument("--again", action="store_true", default=None, help="offer also what a customer has had")
    parser.add_argument(
        "--on",
        choices=("process", "ray"),
        default="process",
        help="this process, or Ray tasks: on the cluster of cluster.address, or of this machine",
    )


def settings_of(options: argparse.Namespace) -> RecommendConfig:
    """Return the settings of a command line. Raises ConfigError."""
    given = {name: getattr(options, name) for name in RecommendConfig.model_fields}
    told = {name: value for name, value in given.items() if value is not None}
    return check_and_build(merge([Source("the options", told)]), RecommendConfig)
