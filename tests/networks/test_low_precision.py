"""A teacher in half precision yields what autocast makes of it, with weights that are cast once."""

from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mgd_ssl.networks import low_precision
from mgd_ssl.networks.backbones import build_backbone
from mgd_ssl.networks.low_precision import half_teacher, has_native_bfloat16, teacher_dtype
from mgd_ssl.networks.teacher import Teacher

CPU = torch.device("cpu")


class Casts(TorchDispatchMode):
    """Counts casts to bfloat16, by the number of dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.__name__.startswith("_to_copy") and (kwargs or {}).get("dtype") == torch.bfloat16:
            self.count += 1
        return func(*args, **(kwargs or {}))


def teacher(folded: bool) -> Teacher:
    torch.manual_seed(0)
    backbone = build_backbone("thin_resnet14")
    for _ in range(3):
        backbone(torch.randn(8, 3, 32, 32))  # BatchNorms see something
    made = Teacher(backbone)
    if folded:
        made.fold()
    return made


@pytest.mark.parametrize("folded", [True, False])
def test_maps_are_those_of_autocast_bit_for_bit(folded: bool) -> None:
    whole = teacher(folded)
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    images = torch.randn(4, 3, 32, 32)
    full = whole(images)
    half = half_teacher(whole, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = whole(images)
        with Casts() as casts:
            found = half(images)
    assert casts.count == 1  # the images
    for one, other, exact in zip(found, expected, full, strict=True):
        assert one.dtype == torch.bfloat16
        assert torch.equal(one, other)
        assert not one.requires_grad
        cosine = torch.nn.functional.cosine_similarity(one.float().flatten(1), exact.flatten(1))
        assert cosine.min() > 0.999
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())
    assert all(torch.equal(*pair) for pair in zip(whole(images), full, strict=True))  # it is read by its own taps


@pytest.mark.parametrize(
    ("wanted", "training", "native", "dtype"),
    [
        ("float32", None, True, None), ("bfloat16", None, False, torch.bfloat16),
        ("auto", None, True, torch.bfloat16), ("auto", None, False, None),
        ("float32", torch.float16, True, torch.float16), ("bfloat16", torch.bfloat16, True, torch.bfloat16),
    ],
)  # fmt: skip
def test_precision_of_the_teacher_is_at_most_that_of_the_training(
    monkeypatch: pytest.MonkeyPatch, wanted: str, training: torch.dtype | None, native: bool, dtype: torch.dtype | None
) -> None:
    monkeypatch.setattr(low_precision, "has_native_bfloat16", lambda device: native)
    assert teacher_dtype(wanted, training, CPU) == dtype


@pytest.mark.parametrize(
    ("flags", "native"), [("sse avx512_bf16 avx", True), ("amx_bf16", True), ("avx512f avx512_vnni", False)]
)
def test_processors_that_multiply_in_bfloat16_say_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, native: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor: 0\nflags: fpu {flags} vme\n")
    monkeypatch.setattr(low_precision, "ABOUT", tmp_path / "cpuinfo")
    assert has_native_bfloat16(CPU) == native
    monkeypatch.setattr(low_precision, "ABOUT", tmp_path / "nothing")
    assert not has_native_bfloat16(CPU)
