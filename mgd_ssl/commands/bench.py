"""`mgd-ssl bench`: the training step against the bare networks, the views, and what limits a run."""

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from mgd_ssl.bench.config import BenchConfig
from mgd_ssl.bench.tables import stage_table, step_table
from mgd_ssl.command_line import parse
from mgd_ssl.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Print a table, and the same as JSON on the last line."""
    config = parse(BenchConfig, argv, "mgd-ssl bench")
    if config.only == "gpu":
        return gpu_checks()
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


def gpu_checks() -> int:
    """Print what a GPU passes, and the numbers as JSON on the last line; 1 when it does not pass all.

    Raises:
        UserError: when there is none.
    """
    from mgd_ssl.config import RuntimeConfig
    from mgd_ssl.run.runtime import process

    try:
        with process(RuntimeConfig(device="cuda", precision="float32")) as runtime:
            from mgd_ssl.bench.gpu_checks import CHECKS, run_checks

            found = run_checks(runtime, CHECKS)
    except UserError as error:
        raise UserError(f"{error}; --only gpu checks a GPU, so run it where there is one") from error
    table = Table("check", "passed", "numbers", title="checks of the GPU")
    for name, numbers in found.items():
        shown = ", ".join(f"{key} {value}" for key, value in numbers.items() if key != "passed")
        table.add_row(name, "yes" if numbers["passed"] else "NO", shown)
    Console().print(table)
    print(json.dumps(found))
    return 0 if all(numbers["passed"] for numbers in found.values()) else 1
