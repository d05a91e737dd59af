"""Two processes calibrate a teacher in 8 bits as one does, each by its own images."""

from pathlib import Path

import torch
import torch.distributed as dist

from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.networks.int8 import Ranges, seen_ranges
from mgd_ssl.networks.teacher import Teacher
from moco.dist import rank, world_size
from tests.ranks import on_ranks


def teacher_and_images() -> tuple[Teacher, torch.Tensor]:
    torch.manual_seed(0)
    return Teacher(build_backbone("thin_resnet10")), torch.randn(6, 3, 32, 32)


def ranges_of_a_part() -> Ranges:
    dist.init_process_group("gloo")
    teacher, images = teacher_and_images()
    found = seen_ranges(teacher, [images[rank() :: world_size()]])
    dist.destroy_process_group()
    return found


def test_ranges_are_the_same_on_all_ranks_and_those_of_all_images(tmp_path: Path) -> None:
    first, second = on_ranks(2, tmp_path / "ranks", ranges_of_a_part)
    assert first == second
    teacher, images = teacher_and_images()
    for name, limits in seen_ranges(teacher, [images]).items():
        torch.testing.assert_close(torch.tensor(first[name]), torch.tensor(limits), rtol=1e-5, atol=1e-6)
