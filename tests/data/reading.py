"""Images and batches as tests read them."""

from pathlib import Path

import torch

from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.images import Images
from mgd_ssl.data.samples import Backend, PretrainBatch, TwoViews
from mgd_ssl.data.views_device import finish_views
from moco import ViewPolicy


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def names(images: Images) -> list[str]:
    return [images.name(i) for i in range(len(images))]


def contents(images: Images) -> list[bytes]:
    return [images.read(i) for i in range(len(images))]


def two_views(root: Path, seed: int = 0, backend: Backend = "reference") -> TwoViews:
    return TwoViews(ImageList.scan(root), ViewPolicy(), 32, seed, backend)


def keys(epoch: int, count: int = 20) -> list[tuple[int, int]]:
    return [(epoch, index) for index in range(count)]


def finished(batch: PretrainBatch) -> torch.Tensor:
    """[2, N, H, W, 3], whoever had to finish the views."""
    views = torch.stack([batch.im_q, batch.im_k])
    if batch.rows is None:
        return views
    return torch.stack([finish_views(*pair, 2.0) for pair in zip(views, batch.rows, strict=True)])
