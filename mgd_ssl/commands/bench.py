"""`mgd-ssl bench`: the training step against the bare networks, the views, and what limits a run."""

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mgd_ssl.bench.config import BenchConfig
from mgd_ssl.bench.tables import stage_table, step_table
from mgd_ssl.command_line import parse


def main(argv: Sequence[str]) -> int:
    """Print a table, and the same as JSON on the last line."""
    config = parse(BenchConfig, argv, "mgd-ssl bench")
    from mgd_ssl.bench.measure import measure, memory, views  # torch is loaded once the settings are known to be right

    result: dict[str, Any] = {}
    console = Console()
    if config.only != "views":
        result |= measure(config)
        if config.memory:
            result |= memory(config)
        console.print(step_table(config, result))
    if (config.views and config.task == "pretrain") or config.only == "views":
        result |= views(config)
        console.print(views_table(config, result))
        console.print(verdict(result), soft_wrap=True)
    print(json.dumps({**config.model_dump(mode="json"), **result}))
    return 0


def views_table(config: BenchConfig, result: dict[str, Any]) -> Table:
    """The stages of the views, and how they reach the training process."""
    table = stage_table(config.image_size, result["stages"])
    table.add_row("hand-over", str(result["handover_fresh_memory_us"]), str(result["handover_us"]), "", "")
    return table


def verdict(result: dict[str, Any]) -> str:
    """What limits a training on this machine, and how many cores keep the step busy."""
    backend, cores = result["backend"], result["cores"]
    cost = result["stages"][f"whole, {backend}"]["fast"] + result["handover_us"]
    fed = f"a core feeds {1e6 / cost:.0f} images/s through the {backend} backend"
    if "step_images_per_second" not in result:
        return f"{fed}; this machine has {cores}."
    speed = result["step_images_per_second"]
    needed = speed * cost / 1e6
    slower = "data" if needed > cores else "step"
    return (
        f"The {slower} is the bottleneck: the step takes {speed} images/s on the {result['device']}, and {fed}, so "
        f"{needed:.2g} cores keep it busy; this machine has {cores}."
    )
