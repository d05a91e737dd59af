"""The teacher of a training step in half precision: frozen, so its weights are cast once and not in every step."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from mgd_ssl.networks.teacher import Teacher

ABOUT = Path("/proc/cpuinfo")


class HalfTeacher:
    """A copy of a teacher that sees images in half precision.

    It yields bit for bit what autocast makes of the teacher itself. Only convolutions and linear layers are cast, as
    these are what autocast computes in half precision.

    Args:
        teacher: as it is to stay, for matching and evaluation.
        dtype: of the copy.
    """

    def __init__(self, teacher: Teacher, dtype: torch.dtype) -> None:
        backbone = copy.deepcopy(teacher.backbone)
        for module in backbone.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.to(dtype)
        self.dtype = dtype
        self.teacher = Teacher(backbone, teacher.report, teacher.stages)

    def __call__(self, images: Tensor) -> list[Tensor]:
        """Pre-ReLU maps [N, C_t, H, W] of every stage, in half precision."""
        with torch.autocast(images.device.type, dtype=self.dtype):
            return self.teacher(images)


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
