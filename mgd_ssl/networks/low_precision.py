"""The teacher of a training step in half precision: frozen, so its weights are cast once and not in every step."""

import copy
from pathlib import Path

import torch
from torch import nn

from mgd_ssl.networks.teacher import Teacher

ABOUT = Path("/proc/cpuinfo")


def half_teacher(teacher: Teacher, dtype: torch.dtype) -> Teacher:
    """A copy of a teacher for autocast of a type: bit for bit the same as itself there.

    Only convolutions and linear layers are cast, as these are what autocast computes in half precision. The teacher
    itself stays as it is, for matching and evaluation.

    Args:
        teacher: on its device.
        dtype: of autocast.
    """
    backbone, head = copy.deepcopy(teacher.backbone), copy.deepcopy(teacher.head)
    for module in [*backbone.modules(), *(head.modules() if head is not None else [])]:
        if isinstance(module, nn.Conv2d | nn.Linear):
            for name, parameter in list(module.named_parameters(recurse=False)):
                setattr(module, name, nn.Parameter(parameter.to(dtype), requires_grad=False))
    return Teacher(backbone, teacher.report, teacher.stages, head)


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether a device multiplies in bfloat16 itself, rather than by way of float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return ABOUT.exists() and bool({"avx512_bf16", "amx_bf16"} & set(ABOUT.read_text().split()))


def teacher_dtype(wanted: str, training: torch.dtype | None, device: torch.device) -> torch.dtype | None:
    """In which precision a teacher sees the images of a step; None: in float32.

    Args:
        wanted: by the settings.
        training: of the run; a teacher is never computed in more.
        device: of the run.
    """
    if training is not None:
        return training
    return torch.bfloat16 if wanted == "bfloat16" or (wanted == "auto" and has_native_bfloat16(device)) else None
