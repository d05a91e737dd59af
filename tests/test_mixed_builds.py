"""A torchvision that does not belong to its torch is told of in a sentence."""

import pytest

from mgd_ssl.errors import exit_code


def failing(words: str) -> int:
    raise RuntimeError(words)  # as torch.library does when torchvision is imported


def test_a_torchvision_without_its_operators(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: failing("operator torchvision::nms does not exist")) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "torchvision was built for another torch" in line and "torchvision::nms" in line and "--index-url" in line


def test_other_operators_are_not_its_fault() -> None:
    with pytest.raises(RuntimeError):
        exit_code(lambda: failing("operator mine::nms does not exist"))
