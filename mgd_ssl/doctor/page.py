"""What `mgd-ssl doctor` found, as one page of a terminal."""

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mgd_ssl.printable import printable

Line = tuple[str, str]


def show(found: dict[str, Any], console: Console) -> None:
    """Print the page."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in lines(found):
        table.add_row(name, Text(printable(value)))
    console.print(table)
    for number, sentence in enumerate(found.get("advice", []), start=1):
        console.print(Text(printable(f"{number}. {sentence}")), soft_wrap=True)
    if found.get("advice") == []:
        console.print("nothing to change")


def lines(found: dict[str, Any]) -> Iterator[Line]:
    """Name and value of every line."""
    yield from _machine(found["machine"])
    if "images" in found:
        yield from _images(found["images"])
        if found["automatic"]:
            yield "settings", found["automatic"]
        yield from _teacher(found["teacher"])
        yield from _steps(found["steps"], found["settings"])
        for row in found["forecast"]:
            many = f"{row['devices']} devices like this one" if row["devices"] > 1 else "this device alone"
            yield (
                "the whole run",
                f"{duration(row['hours'])} on {many}, {row['device_hours']:.3g} device hours",
            )


def _machine(machine: dict[str, Any]) -> Iterator[Line]:
    memory = f"{machine['memory_free_gb']} of {machine['memory_gb']} GB free"
    yield "machine", f"{machine['cores']} cores, memory {memory}"
    if "gpu" in machine:
        yield (
            "GPU",
            (
                f"{machine['gpus']} x {machine['gpu']}, "
                f"{machine['gpu_memory_free_gb']} of {machine['gpu_memory_gb']} GB free, "
                f"driver {machine['driver']}, CUDA {machine['cuda']}"
            ),
        )
    else:
        yield "GPU", f"none that torch sees: computes on {machine['device']}"
    if "shared_memory_gb" in machine:
        yield "shared memory", f"{machine['shared_memory_gb']} GB free"
    yield (
        "disk",
        (f"{machine['disk']}: {machine['disk_free_gb']} GB free, 64 MB written at {machine['disk_write_mb_s']} MB/s"),
    )
    versions = machine["versions"]
    yield "versions", ", ".join(f"{name} {versions[name]}" for name in ("mgd_ssl", "torch", "torchvision", "python"))


def _images(images: dict[str, Any]) -> Iterator[Line]:
    classes = f", {images['classes']} classes" if images["classes"] else ", without classes"
    formats = ", ".join(f"{count} {name}" for name, count in images["formats"].items())
    yield "images", f"{images['images']}{classes}; {images['decoded']} decoded: {formats or 'none can be read'}"
    if "short_side" in images:
        smallest, median, largest = images["short_side"]
        yield (
            "sizes",
            f"short side {smallest} to {largest}, median {median} pixels; {images['decode_ms']} ms to decode one",
        )
    if images["ignored_files"]:
        yield "ignored", f"files without an image's extension: {images['ignored_files']}"
    if images["broken"]:
        yield "broken", f"{images['broken']} of {images['decoded']}, first {'; '.join(images['first_broken'])}"


def _teacher(teacher: dict[str, Any]) -> Iterator[Line]:
    yield "teacher", teacher["teacher"] or "none"
    for note in teacher["notes"]:
        yield "", note
    if "knn_protocol" in teacher:
        accuracies = [
            f"{whose} {teacher[f'knn_{name}']} %"
            for name, whose in (("teacher", "teacher"), ("student_untrained", "untrained student"))
            if f"knn_{name}" in teacher
        ]
        yield "k-NN", f"{', '.join(accuracies)} ({teacher['knn_protocol']})"


def _steps(steps: dict[str, Any], settings: dict[str, Any]) -> Iterator[Line]:
    yield (
        "steps",
        (
            f"{steps['steps']} taken: {1000 * steps['step_seconds']:.0f} ms each, "
            f"{steps['images_per_second']:.1f} images/s, "
            f"{steps['data_wait']:.0%} waiting for data ({steps['workers']} data workers)"
        ),
    )
    batch, largest = settings["optim"]["batch_size"], steps["largest_batch"]
    peak = f"peak {steps['peak_memory_gb']} GB, " if "peak_memory_gb" in steps else ""
    fits = f"about {largest} images would fit (estimated)" if largest else "not known how many would fit"
    yield "memory", f"{peak}{steps['activation_mb_an_image']} MB an image and step at batch {batch}; {fits}"
    yield "checkpoints", f"{steps['disk_needed_gb']} GB"


def duration(hours: float) -> str:
    """`3 min`, `5.2 h`, `4.1 days`."""
    if hours < 1:
        return f"{max(1, round(60 * hours))} min"
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"
