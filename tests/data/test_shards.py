"""Tar shards read at random: against the folder they were made from, webdataset and tarfile."""

import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from mgd_ssl import Interrupted, UserError, pretrain
from mgd_ssl.data import shards
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.loader import batches
from mgd_ssl.data.order import chunks
from mgd_ssl.data.samples import CentreCrops, TwoViews
from mgd_ssl.data.shard_index import ShardIndex
from mgd_ssl.data.shard_scan import scan_shard
from mgd_ssl.data.shards import ShardImages, cache_path
from mgd_ssl.data.sources import open_images, scan_labelled
from mgd_ssl.run.log import logger
from moco import ViewPolicy
from tests.conftest import write_images
from tests.data.reading import contents, names
from tests.data.tars import jpegs, read_in_child, write_tar
from tests.runs import assert_same_end, processes, stop_after, tiny, trained_teacher

pytestmark = pytest.mark.usefixtures("cache")


# a folder and its pack


def test_a_pack_gives_the_batches_of_its_folder(image_folder: Path, packed: Path) -> None:
    folder, shard_images = ImageList.scan(image_folder / "train"), open_images(packed / "train")
    assert isinstance(shard_images, ShardImages) and len(shard_images.index.shards) == 5
    assert contents(shard_images) == contents(folder)
    assert [name.partition("/")[2] for name in names(shard_images)] == names(folder)
    assert shard_images.name(11) == f"shard-000001.tar/{folder.name(11)}"
    keys = [(epoch, index) for epoch in (0, 3) for index in np.random.default_rng(0).permutation(48).tolist()]
    views = [TwoViews(images, ViewPolicy(), 32, seed=1).__getitems__(keys) for images in (folder, shard_images)]
    assert torch.equal(views[0].im_q, views[1].im_q) and torch.equal(views[0].im_k, views[1].im_k)
    crops = [CentreCrops(images, 32, seed=1).__getitems__(range(48)) for images in (folder, shard_images)]
    assert torch.equal(crops[0].images, crops[1].images) and not crops[1].unreadable


def test_a_pack_is_labelled_like_its_folder(image_folder: Path, packed: Path) -> None:
    for train, val in ((packed, packed), (image_folder, packed), (packed, image_folder)):
        sets = scan_labelled(train / "train", val / "val")
        expected = scan_labelled(image_folder / "train", image_folder / "val")
        for one, two in zip(sets, expected, strict=True):
            assert np.array_equal(one.labels, two.labels)


def test_a_run_on_shards_is_the_run_on_the_folder_and_resumes(
    image_folder: Path, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = trained_teacher(tmp_path, image_folder)
    pretrain(**tiny(image_folder, tmp_path / "folder", teacher=teacher))
    knn = {"train": packed / "train", "val": packed / "val", "every_epochs": 3, "k": 3}
    pretrain(**tiny(packed, tmp_path / "shards", teacher=teacher))
    assert_same_end(tmp_path / "shards", tmp_path / "folder")

    settings = tiny(packed, tmp_path / "stopped", teacher=teacher)
    with monkeypatch.context() as patched:
        stop_after(patched, 5)
        with pytest.raises(Interrupted):
            pretrain(**settings)
    settings["data"]["workers"] = 2
    pretrain(**settings)
    assert_same_end(tmp_path / "stopped", tmp_path / "folder")

    on_folder = {"train": image_folder / "train", "val": image_folder / "val", "every_epochs": 3, "k": 3}
    results = [
        pretrain(**tiny(packed, tmp_path / f"knn{i}", knn=settings)) for i, settings in enumerate((knn, on_folder))
    ]
    assert results[0].knn == results[1].knn and results[0].knn


def test_a_run_on_shards_is_not_that_of_other_shards(image_folder: Path, packed: Path, tmp_path: Path) -> None:
    pretrain(**tiny(packed, tmp_path / "run", optim={"epochs": 1}))
    with pytest.raises(UserError, match=r"the images of data.train: 48 -> 48, or other names"):
        pretrain(**tiny(image_folder, tmp_path / "run", optim={"epochs": 1}))


def test_shards_may_move_but_not_change(packed: Path, tmp_path: Path) -> None:
    members = dict(zip("abcd", jpegs(tmp_path, 4), strict=True))
    before = write_tar(tmp_path / "here" / "x.tar", {f"{key}.jpg": content for key, content in members.items()})
    moved = write_tar(tmp_path / "there" / "x.tar", {f"{key}.jpg": content for key, content in members.items()})
    other = write_tar(tmp_path / "elsewhere" / "x.tar", {f"{key}.jpg": members["a"] for key in members})
    first, second, third = (open_images(path).fingerprint() for path in (before, moved, other))
    assert first == second != third
    assert open_images(before).state() != open_images(moved).state()
    state = open_images(before).state()
    os.utime(before, (1, 1))
    assert open_images(before).state() != state


def test_shards_of_webdataset_are_read_like_webdataset_reads_them(foreign: Path) -> None:
    images = open_images(foreign)
    urls = [str(foreign / f"part{i}.tar") for i in range(2)]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert contents(images) == [sample["jpg"] for sample in samples]
    assert names(images) == [f"part{i // 10}.tar/{i:04d}.jpg" for i in range(20)]
    labels, classes = images.labels()
    assert labels.tolist() == [int(sample["cls"]) for sample in samples] and classes == ["0", "1", "2"]
    assert not images.ignored


def test_every_way_to_name_shards_opens_them(foreign: Path) -> None:
    (foreign.parent / "list.txt").write_text("# two shards\nforeign/part0.tar\n\nforeign/part1.tar\n")
    fingerprints = {
        open_images(path).fingerprint() for path in (foreign, foreign / "*.tar", foreign.parent / "list.txt")
    }
    assert len(fingerprints) == 1
    assert len(open_images(foreign / "part1.tar")) == 10
    (foreign.parent / "list.txt").write_text(f"{foreign / 'part1.tar'}\n{foreign / 'part0.tar'}")
    assert names(open_images(foreign.parent / "list.txt"))[0] == "part1.tar/0010.jpg"  # in the order of the list


def test_shards_are_scanned_once(foreign: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_images(foreign)
    monkeypatch.setattr(shards, "scan_shard", lambda path, name: pytest.fail("scanned again"))
    second = open_images(foreign)
    assert names(second) == names(first) and contents(second) == contents(first)
    assert np.array_equal(second.labels()[0], first.labels()[0])


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b"?"), lambda path: os.truncate(path, 900)])
def test_a_spoilt_cache_is_made_anew(foreign: Path, spoil: Callable[[Path], None]) -> None:
    expected = names(open_images(foreign))
    spoil(cache_path(sorted(foreign.glob("*.tar"))))
    assert names(open_images(foreign)) == expected


def test_without_a_writable_cache_the_index_stays_in_memory(
    foreign: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (foreign.parent / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(foreign.parent / "file"))
    monkeypatch.setattr(logger, "propagate", True)
    images = open_images(foreign)
    assert len(images) == 20 and images.index.path is None  # type: ignore[attr-defined]
    assert "the next run looks through the shards again" in caplog.text


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_plain_tars_of_a_folder_have_the_labels_of_their_folders(tmp_path: Path, format: int) -> None:
    images, long = jpegs(tmp_path, 4), "sub/" * 30 + "long"
    wanted = {f"cat/{long}.jpg": images[0], "cat/b.c.JPEG": images[1], "dog/1.png": images[2], "dog/2.jpg": images[3]}
    if format != tarfile.USTAR_FORMAT:
        wanted[f"dög/{'ü' * 60}.jpg"] = images[0]
    others = {"README": b"hello", "cat/._b.c.JPEG": b"macOS", "dog/notes.txt": b"?"}
    members = {f"./{name}": content for name, content in (wanted | others).items()}
    found = open_images(write_tar(tmp_path / "x.tar", members, format))
    assert names(found) == [f"x.tar/{name}" for name in wanted] and contents(found) == list(wanted.values())
    assert found.labels()[1] == sorted({name.partition("/")[0] for name in wanted})
    assert found.ignored == [f"x.tar/./{name}" for name in others]


def test_links_and_folders_in_a_tar_are_no_images(tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 2)
    (tmp_path / "photos" / "link.jpg").symlink_to("0000.jpg")
    os.link(tmp_path / "photos" / "0001.jpg", tmp_path / "photos" / "twin.jpg")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "photos", "photos")
    found = open_images(tmp_path / "x.tar")
    assert len(found) == 2 and len(found.ignored) == 2


def test_classes_by_name_and_by_number(tmp_path: Path) -> None:
    image = jpegs(tmp_path, 1)[0]

    def labels(**classes: str) -> tuple[list[int], list[str]]:
        members: dict[str, bytes] = {}
        for key, value in classes.items():
            members |= {f"{key}.cls": value.encode(), f"{key}.jpg": image}
        found, known = open_images(write_tar(tmp_path / f"{len(list(tmp_path.glob('*.tar')))}.tar", members)).labels()
        return found.tolist(), known

    assert labels(a="zebra", b="ant", c="zebra\n") == ([1, 0, 1], ["ant", "zebra"])
    assert labels(a="10", b="9", c="10") == ([1, 0, 1], ["9", "10"])
    assert labels(a="1", b="ant") == ([0, 1], ["1", "ant"])


def test_numbers_of_classes_are_named_by_folders_where_there_is_one_for_each(tmp_path: Path) -> None:
    image = jpegs(tmp_path, 1)[0]
    of_folders = {"zebra/1": "0", "ant/2": "1", "zebra/3": "0"}
    mixed = {**of_folders, "bee/4": "1"}
    for number, (classes, known) in enumerate(((of_folders, ["zebra", "ant"]), (mixed, ["0", "1"]))):
        members: dict[str, bytes] = {}
        for key, value in classes.items():
            members |= {f"{key}.jpg": image, f"{key}.cls": value.encode()}
        assert open_images(write_tar(tmp_path / f"{number}.tar", members)).labels()[1] == known


def test_sources_with_other_numbers_for_the_same_classes_are_labelled_alike(tmp_path: Path) -> None:
    image = jpegs(tmp_path, 1)[0]
    write_tar(
        tmp_path / "train" / "x.tar", {"zebra/1.jpg": image, "zebra/1.cls": b"0", "ant/2.jpg": image, "ant/2.cls": b"1"}
    )
    for name in ("ant", "zebra"):
        write_images(tmp_path / "val" / name, 1)
    train, val = scan_labelled(tmp_path / "train", tmp_path / "val")
    assert train.labels.tolist() == [0, 1] and val.labels.tolist() == [1, 0]


@pytest.mark.parametrize("kind", ["pack", "foreign"])
def test_another_process_reads_the_same(packed: Path, foreign: Path, kind: str) -> None:
    images = open_images(packed / "train" if kind == "pack" else foreign)
    contents(images)  # its shards are open here
    queue = processes.Queue()
    child = processes.Process(target=read_in_child, args=(images, queue))  # pickled, as for a spawned one
    child.start()
    assert queue.get(timeout=60) == (contents(images), names(images), images.labels()[0].tolist())
    child.join()
    if kind == "pack":
        assert len(pickle.dumps(images)) < 500  # it maps the index of the folder


def test_forked_workers_read_while_this_process_does(packed: Path) -> None:
    images = open_images(packed / "train")
    expected = contents(images)
    dataset, order = CentreCrops(images, 32, seed=0), chunks(np.arange(48), 5)
    alone = [dataset.__getitems__(part).images for part in order]
    with batches(dataset, order, 2, pin=False) as loader:
        for batch, other in zip(loader, alone, strict=True):
            assert torch.equal(batch.images, other)
            assert contents(images) == expected


def test_many_shards_do_not_use_up_the_file_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = jpegs(tmp_path, 1)[0]
    for i in range(shards.OPEN_SHARDS + 20):
        write_tar(tmp_path / "many" / f"{i:04d}.tar", {"x.jpg": image})
    images = open_images(tmp_path / "many")
    shards._opened.cache_clear()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        assert set(contents(images)) == {image}
    assert len(os.listdir("/proc/self/fd")) == before + shards.OPEN_SHARDS
    shards._opened.cache_clear()
    assert len(os.listdir("/proc/self/fd")) == before


def test_index_of_shards_survives_the_file(foreign: Path) -> None:
    index = open_images(foreign).index  # type: ignore[attr-defined]
    loaded = ShardIndex.load(cache_path(sorted(foreign.glob("*.tar"))))
    assert np.array_equal(loaded.rows, index.rows) and np.array_equal(loaded.packed, index.packed)
    assert (loaded.shards, loaded.classes, loaded.ignored) == (index.shards, index.classes, index.ignored)
    assert scan_shard(foreign / "part1.tar", "part1.tar").shards == [index.shards[1]]
