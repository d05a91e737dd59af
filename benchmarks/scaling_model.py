"""The model of docs/scaling.md: what a step moves between GPUs, and what it would wait for; nothing is measured.

python -m benchmarks.scaling_model
"""

import tyro
from rich.table import Table

from mgd_ssl.bench.scaling_model import MB, moved
from mgd_ssl.bench.tables import show


def main(images_per_second: float = 3000, launch_ms: float = 12, gb_per_second: float = 25) -> None:
    """Print where a step's time would go, and the milliseconds as JSON on the last line.

    Args:
        images_per_second: of one GPU that has enough of them in a batch.
        launch_ms: milliseconds the kernels of a step take to launch; no batch is faster.
        gb_per_second: into each GPU from other nodes.
    """
    names = list(moved(8, 256))
    table = Table("GPUs", "batch", "a GPU", "compute ms", *(f"{name} MB / ms" for name in names))
    result = []
    for gpus, batch in ((8, 256), (64, 256), (64, 2048), (512, 2048), (512, 16384)):
        compute = max(launch_ms, 1000 * batch / gpus / images_per_second)
        sizes = moved(gpus, batch)
        times = {name: size / (gb_per_second * MB) for name, size in sizes.items()}  # ms
        shown = (f"{size / MB:.1f} / {times[name]:.1f}" for name, size in sizes.items())
        table.add_row(str(gpus), str(batch), f"{batch / gpus:g}", f"{compute:.1f}", *shown)
        result.append({"gpus": gpus, "batch": batch, "compute": compute, **times})
    show(table, result, width=140)


if __name__ == "__main__":
    tyro.cli(main, prog="python -m benchmarks.scaling_model")
