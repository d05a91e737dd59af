"""Views and crops of images, the order they are seen in, and the batches made of them.

Whatever is random is a function of (seed, epoch, index, view), so batches depend neither on the number of data
workers nor on where a run was resumed.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from mgd_ssl.config import DataConfig, Decoding
from mgd_ssl.data.decode import decode_pixels_told, decode_told
from mgd_ssl.data.images import Images, Noted, Unreadable
from mgd_ssl.data.space import Space
from mgd_ssl.data.views_cpu import Pixels, cut_view, render_view_fast
from mgd_ssl.errors import UserError, out_of_files
from moco import View, ViewKey, ViewPolicy, draw_unplaced, place_view, render_view
from moco.augment import Unplaced
from moco.keyed import keyed_generator

STRIP = 4  # sides of an image differ by this factor at most when it is resized for a centre crop
FIRST_CROP = 4  # number of the first local crop among the views of an image: before it come two, and two of a bag's
REPLACEMENTS = 50  # other images tried in place of an unreadable one before giving up

Backend = Literal["reference", "cpu", "device"]
T = TypeVar("T")
Decoder = Callable[[bytes, Decoding], tuple[T, bool]]  # a file's pixels, and whether they were composited


class PretrainBatch(NamedTuple):
    """Views of every image, mostly two."""

    im_q: Tensor  # [N, H, W, 3] uint8
    im_k: Tensor  # [N, H, W, 3] uint8; empty where nothing looks at key views
    unreadable: list[Unreadable]
    rows: Tensor | None = None  # [V, N, 15], the rows of `View` by which the device has yet to finish all
    others: tuple[Tensor, ...] = ()  # [N, H, W, 3] uint8: the views of another image of the same bag
    crops: Tensor | None = None  # [N L, h, w, 3] uint8: L local crops of every image, side by side
    crop_rows: Tensor | None = None  # [N L, 15]

    @property
    def views(self) -> list[Tensor]:
        """All of them, in the order of the rows."""
        return [view for view in (self.im_q, self.im_k, *self.others) if len(view)]


class EvalBatch(NamedTuple):
    """Centre crops."""

    images: Tensor  # [N, H, W, 3] uint8
    indices: Tensor  # [N] where they come from; of the replacement where an image was unreadable
    unreadable: list[Unreadable]


class Samples:
    """Decoding with replacement: an unreadable image gives way to another one, the same one every time."""

    def __init__(self, images: Images, seed: int) -> None:
        self.images, self.seed = images, seed

    def decode(self, index: int, noted: Noted) -> tuple[Image.Image, int]:
        """`load` through Pillow, as RGB."""
        return self.load(index, noted, decode_told)

    def load(self, index: int, noted: Noted, how: Decoder[T]) -> tuple[T, int]:
        """The image at `index` or its replacement, and where that one is; what there is to tell is noted.

        Args:
            index: of the image.
            noted: where to.
            how: decoder of a file's bytes.

        Raises:
            UserError: when nothing can be decoded in many tries.
        """
        candidate = index
        for attempt in range(REPLACEMENTS):
            try:
                image, composited = how(self.images.read(candidate), self.images.decoding)
                noted.decoded += 1
                noted.composited += composited
                return image, candidate
            except Exception as error:  # decoders raise anything: OSError, SyntaxError, struct.error, ...
                if (told := out_of_files(error)) is not None:  # which is not the image's fault
                    raise UserError(str(told)) from error
                noted.append(Unreadable(self.images.name(candidate), f"{type(error).__name__}: {error}"))
            generator = keyed_generator(self.seed, "replacement", index, attempt)
            candidate = int(generator.integers(len(self.images)))
        failure = noted[-1]
        if not self.images.root.exists():
            raise UserError(f"{self.images.root} is gone: bring it back, then run the same command again")
        raise UserError(
            f"{REPLACEMENTS} images tried in a row are unreadable, last {self.images.root / failure.name} "
            f"({failure.why}): check that the folder holds whole images"
        )


class LocalCrops(NamedTuple):
    """Small views of every image beside the others."""

    policy: ViewPolicy
    size: int  # edge in pixels
    number: int  # L an image


class Companions(Protocol):
    """What tells another image of the same bag."""

    def member(self, epoch: int, index: int) -> int:
        """Its index, a function of the arguments and of the run's seed."""
        ...


class TwoViews(Samples, Dataset[PretrainBatch]):
    """Query and key view of each image, addressed by (epoch, index).

    Args:
        images: what to look at.
        policy: distribution of the views.
        size: edge of a view in pixels.
        seed: of the run.
        backend: what renders them: PIL, this core's fast way, or that for the geometry and the device for the rest.

    `alone` leaves the key view out; `bags` adds two views of another image (see `Companions`), `local` small ones.
    """

    alone = False
    bags: Companions | None = None
    local: LocalCrops | None = None

    def __init__(
        self, images: Images, policy: ViewPolicy, size: int, seed: int, backend: Backend = "reference"
    ) -> None:
        super().__init__(images, seed)
        self.policy, self.size, self.backend = policy, size, backend

    @property
    def num_views(self) -> int:
        """V of every sample."""
        return 4 if self.bags is not None else 1 if self.alone else 2

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> PretrainBatch:
        """A batch; the loader calls this once with all keys of the batch."""
        space = self.space(len(keys))
        return self.batch(space, self.fill(keys, space))

    def space(self, num_images: int) -> Space:
        """Memory for a batch."""
        views = torch.empty((self.num_views, num_images, self.size, self.size, 3), dtype=torch.uint8)
        rows = torch.empty((self.num_views, num_images, len(View._fields)))
        if self.local is None:
            return Space(views, rows)
        _, size, number = self.local
        crops = torch.empty((num_images, number, size, size, 3), dtype=torch.uint8)
        return Space(views, rows, crops, torch.empty((num_images, number, len(View._fields))))

    def fill(self, keys: Sequence[tuple[int, int]], space: Space) -> list[Unreadable]:
        """Write the views of a batch; what there is to tell of its files is returned."""
        how: Decoder[Image.Image | Pixels] = decode_told if self.backend == "reference" else decode_pixels_told
        out, table = space.views.numpy(), list[list[View]]()
        views = range(self.num_views)
        unplaced = [[draw_unplaced(self.policy, ViewKey(self.seed, *key, v)) for v in views] for key in keys]
        crops = [self.unplaced_crops(*key) for key in keys]
        noted = Noted()
        for i, key in enumerate(keys):
            placed: list[View] = []
            for index in self.sources(*key):
                image: Image.Image | Pixels = self.load(index, noted, how)[0]  # once for both of its views
                width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
                if not placed and self.local is not None:
                    local = [place_view(each, self.local.policy, width, height) for each in crops[i]]
                    self.fill_crops(image, local, space, i)
                for each in unplaced[i][len(placed) : len(placed) + 2]:
                    view = place_view(each, self.policy, width, height)
                    self.render(image, view, out[len(placed), i])
                    placed.append(view)
            table.append(placed)
        space.rows[:, : len(keys)] = torch.tensor(table).transpose(0, 1)
        return noted

    def unplaced_crops(self, epoch: int, index: int) -> list[Unplaced]:
        """The local crops of an image before it is known."""
        if self.local is None:
            return []
        keys = [ViewKey(self.seed, epoch, index, FIRST_CROP + n) for n in range(self.local.number)]
        return [draw_unplaced(self.local.policy, key) for key in keys]

    def fill_crops(self, image: Image.Image | Pixels, crops: Sequence[View], space: Space, i: int) -> None:
        """Write the local crops of the image at place i."""
        assert space.crops is not None and space.crop_rows is not None
        for crop, out in zip(crops, space.crops[i].numpy(), strict=True):
            self.render(image, crop, out)
        space.crop_rows[i] = torch.tensor(crops)

    def sources(self, epoch: int, index: int) -> list[int]:
        """Images that the views are of, two of each."""
        return [index] if self.bags is None else [index, self.bags.member(epoch, index)]

    def render(self, image: Image.Image | Pixels, view: View, out: Pixels) -> None:
        """One view, or its geometric part where the device does the rest: [size, size, 3]."""
        if isinstance(image, Image.Image):
            out[:] = np.asarray(render_view(image, view, len(out)))
        elif self.backend == "cpu":
            render_view_fast(image, view, out)
        else:
            cut_view(image, view, out)

    def batch(self, space: Space, unreadable: list[Unreadable]) -> PretrainBatch:
        """What `fill` has written, in place."""
        im_q, *more = space.views
        rows = space.rows if self.backend == "device" else None
        batch = PretrainBatch(im_q, more[0] if more else im_q[:0], unreadable, rows, tuple(more[1:]))
        if space.crops is None or space.crop_rows is None:
            return batch
        crop_rows = None if rows is None else space.crop_rows.flatten(0, 1)
        return batch._replace(crops=space.crops.flatten(0, 1), crop_rows=crop_rows)


CROP_VERSION = 1  # to be raised when the pixels of `CentreCrops` change; caches of features hold it


class CentreCrops(Samples, Dataset[EvalBatch]):
    """The image as it is evaluated: short side to 256/224 of the size, centre crop (as published)."""

    def __init__(self, images: Images, size: int, seed: int) -> None:
        super().__init__(images, seed)
        self.size = size

    def __getitems__(self, indices: Sequence[int]) -> EvalBatch:
        """A batch; the loader calls this once with all indices of the batch."""
        crops = np.empty((len(indices), self.size, self.size, 3), dtype=np.uint8)
        used, noted = [], Noted()
        for row, index in enumerate(indices):
            image, where = self.decode(index, noted)
            reach = STRIP * min(image.size)  # the ends of a long strip are out of the crop, but would be enlarged first
            image = TF.center_crop(image, [min(image.height, reach), min(image.width, reach)])
            image = TF.resize(image, [round(self.size * 256 / 224)], InterpolationMode.BILINEAR)
            crops[row] = np.asarray(TF.center_crop(image, [self.size, self.size]))
            used.append(where)
        return EvalBatch(torch.from_numpy(crops), torch.tensor(used), noted)


def chosen_backend(wanted: Literal["auto"] | Backend, device: torch.device) -> Backend:
    """What renders the views of a run that trains on `device`."""
    if wanted != "auto":
        return wanted
    return "device" if device.type == "cuda" else "cpu"


def decoding_of(config: DataConfig) -> Decoding:
    """How the images of a run become pixels, also those of its k-NN."""
    return Decoding(config.background, config.max_pixels)


def decoding_as_in(run: Path | None, background: str | None, max_pixels: int | None) -> Decoding:
    """How the images of an evaluation become pixels: as told, else as in the run's folder, else as usual.

    Raises:
        UserError: when the run's settings make no sense.
    """
    told = {"background": background, "max_pixels": max_pixels}
    try:
        of_run = json.loads((run / "config.json").read_text())["config"]["data"] if run else {}
        chosen = {key: of_run.get(key) if value is None else value for key, value in told.items()}
        return decoding_of(
            DataConfig(train=Path(), **{key: value for key, value in chosen.items() if value is not None})
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{run}/config.json is damaged ({error}): restore it, or pass another checkpoint") from error


def view_policy(config: DataConfig) -> ViewPolicy:
    """Distribution of the views a configuration asks for."""
    recipe = {"v1": ViewPolicy.v1, "v2": ViewPolicy, "weak": ViewPolicy.weak}[config.recipe]()
    return replace(recipe, scale=config.crop_scale, blur_sigma=config.blur_sigma)
