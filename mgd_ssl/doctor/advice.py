"""How long the run will take, and what to change first."""

from typing import Any

from mgd_ssl.bench.scaling_model import Measured, step_seconds
from mgd_ssl.config import PretrainConfig

DEVICES = (1, 4, 8)
MUCH_WAITING = 0.1  # share of the time
FULL = 0.9  # of what there is


def forecast(config: PretrainConfig, num_images: int, steps: dict[str, Any], gpu: bool) -> list[dict[str, Any]]:
    """Hours of the whole run for numbers of devices like this one, by the model of docs/scaling.md."""
    batch = config.optim.batch_size
    whole = steps["step_seconds"] + steps["mean_wait_seconds"]
    waits = steps["data_wait"] > 0.02  # else the workers were never behind, and how fast they can be is not known
    data = whole if waits else 0.0
    size = config.data.image_size
    measured = Measured(batch, steps["step_seconds"], data, steps["parameters"], size, gpu)
    number = config.optim.epochs * (num_images // batch)
    looked_at = steps["matching_updates"] * min(config.mgd.matching_images, num_images)
    rows = []
    for devices in DEVICES:
        seconds = step_seconds(measured, devices)
        if seconds is not None:
            hours = (number * seconds + looked_at * steps["look_seconds"] / devices) / 3600
            rows.append({"devices": devices, "hours": round(hours, 4), "device_hours": round(devices * hours, 4)})
    return rows


def advice(config: PretrainConfig, found: dict[str, Any]) -> list[str]:
    """What to change, the most urgent first; each ends with the flags."""
    machine, images, steps = found["machine"], found["images"], found["steps"]
    told = [*_on_images(config, images), *_on_speed(config, machine, images, steps), *_on_learning(config, images)]
    if machine["disk_free_gb"] < steps["disk_needed_gb"]:
        needed = steps["disk_needed_gb"]
        told.insert(
            0, f"checkpoints take {needed} GB and {machine['disk_free_gb']} are free: make room, or --out ELSEWHERE"
        )
    return told


def _on_images(config: PretrainConfig, images: dict[str, Any]) -> list[str]:
    told, size = [], config.data.image_size
    share = images["broken"] / max(1, images["decoded"])
    if share > config.data.max_unreadable:
        told.append(
            f"{share:.1%} of the images cannot be read, and the run stops above {config.data.max_unreadable:.1%}: mend "
            f"them, or --data.max-unreadable {min(1.0, 2 * share):.2g}"
        )
    if "short_side" in images and images["short_side"][1] < size:
        smaller = max(32, 16 * (images["short_side"][1] // 16))
        told.append(
            f"half of the images are smaller than the views of {size} pixels (median {images['short_side'][1]}): "
            f"--data.image-size {smaller}"
        )
    return told


def _on_speed(
    config: PretrainConfig, machine: dict[str, Any], images: dict[str, Any], steps: dict[str, Any]
) -> list[str]:
    told, runtime = [], config.runtime
    if steps["data_wait"] > MUCH_WAITING:
        workers = steps["workers"]
        more = workers + 1 if machine["device"] == "cpu" else machine["cores"]
        if more > workers and workers < machine["cores"]:
            told.append(f"{steps['data_wait']:.0%} of the time waits for data: --data.workers {more}")
        if "short_side" in images and images["short_side"][1] > 2 * config.data.image_size:
            side = 2 * config.data.image_size
            told.append(
                "the images are much larger than the views, and decoding them is most of the work: "
                f"mgd-ssl pack {config.data.train} SHARDS --short-side {side}, then --data.train SHARDS"
            )
    if machine["device"] == "cuda" and runtime.precision == "float32" and machine["bfloat16"]:
        told.append("this GPU computes in bfloat16 at a multiple of the speed: --runtime.precision bfloat16")
    if machine["device"] == "cuda" and not runtime.compile:
        told.append("kernels can be fused: --runtime.compile")
    largest = steps["largest_batch"]
    if largest is not None and largest < config.optim.batch_size:
        told.append(
            f"a batch of {config.optim.batch_size} may not fit, about {largest} would: --optim.batch-size {largest}, "
            "or more processes"
        )
    return told


def _on_learning(config: PretrainConfig, images: dict[str, Any]) -> list[str]:
    told, batch = [], config.optim.batch_size
    if config.moco.queue_size > images["images"]:
        fitting = max(batch, images["images"] // 2 // batch * batch)
        told.append(
            f"the queue of {config.moco.queue_size} holds more keys than there are images ({images['images']}): "
            f"--moco.queue-size {fitting}"
        )
    if config.moco.bn_splits == 1 and batch % 8 == 0 and batch >= 16:
        told.append("in a single process BatchNorm is not shuffled: --moco.bn-splits 8")
    if config.teacher is None:
        told.append("there is no teacher, so this is plain MoCo v2: --teacher FILE")
    if config.knn.train is None:
        told.append("nothing shows whether it learns: --knn.train LABELLED --knn.val LABELLED, where there are labels")
    return told
