"""The whole examination: machine, images, teacher, steps, forecast, advice."""

import tempfile
from pathlib import Path
from typing import Any

from mgd_ssl.config import PretrainConfig
from mgd_ssl.data.samples import decoding_of
from mgd_ssl.data.sources import open_images
from mgd_ssl.doctor.advice import advice, forecast
from mgd_ssl.doctor.config import DoctorConfig
from mgd_ssl.doctor.look import disk_needed_gb, look_at_images, look_at_teacher
from mgd_ssl.doctor.machine import look_at_machine
from mgd_ssl.doctor.trial import Setup, largest_batch, take_steps
from mgd_ssl.errors import UserError
from mgd_ssl.networks.int8 import check_int8
from mgd_ssl.networks.placing import placed
from mgd_ssl.run.runtime import Runtime, process
from mgd_ssl.tasks.automatic import facts_of, filled, told
from mgd_ssl.tasks.beginning import begin
from mgd_ssl.tasks.moco import build_method, check_sizes
from mgd_ssl.tasks.teachers import load_teacher
from moco.dist import world_size


def examine_machine(config: PretrainConfig) -> dict[str, Any]:
    """The machine alone."""
    with process(config.runtime) as runtime:
        return {"machine": look_at_machine(config.out, runtime)}


def examine(config: DoctorConfig) -> dict[str, Any]:
    """All there is to say about a run that is not started yet; nothing is kept.

    Raises:
        UserError: when a setting, a file or a folder is at fault, as the run itself would say.
    """
    with tempfile.TemporaryDirectory() as folder, process(config.runtime) as runtime:
        if world_size() > 1:
            raise UserError("doctor looks at one process: start it without torchrun")
        run = config.pretraining(Path(folder))
        machine = look_at_machine(config.out, runtime)
        images = open_images(run.data.train, decoding_of(run.data))
        facts = facts_of(run, images, runtime.device)
        run, filled_in = filled(run, facts)
        check_sizes(run, len(images))
        seen = look_at_images(images, config.sample, run.seed)
        images.ignored = []  # are told on the page, not of a file that is thrown away
        teacher = load_teacher(run)
        if run.teacher_precision == "int8":
            check_int8(teacher, runtime.device)
        method = build_method(run, teacher, begin(run).encoder)
        if teacher is not None:
            teacher.fold()
        for module in (method, teacher):
            if module is not None:
                placed(module, runtime.device, runtime.memory_format)
        taught = look_at_teacher(run, teacher, runtime)
        steps = take_steps(Setup(run, images, method, teacher, runtime), config.steps)
        steps["disk_needed_gb"] = disk_needed_gb(run, steps["state_bytes"])
        steps["largest_batch"] = _largest(machine, steps, runtime)
        gpu = runtime.device.type == "cuda"
        found = {"machine": machine, "images": seen, "teacher": taught, "steps": steps}
        return found | {
            "automatic": told(filled_in, facts) if filled_in else None,
            "forecast": forecast(run, len(images), steps, gpu), "advice": advice(run, found),
            "settings": run.model_dump(mode="json", exclude={"out"}),
        }  # fmt: skip


def _largest(machine: dict[str, Any], steps: dict[str, Any], runtime: Runtime) -> int | None:
    total = machine["gpu_memory_gb"] if runtime.device.type == "cuda" else machine["memory_free_gb"]
    return largest_batch(steps["activation_mb_an_image"], total, steps["state_bytes"])
