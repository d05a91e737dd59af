"""`mgd-ssl teachers`, and which published file a file is."""

import hashlib
from pathlib import Path

import pytest
import torch
import torchvision

from mgd_ssl.cli import main
from mgd_ssl.networks.known import KNOWN, NON_COMMERCIAL, recognise
from mgd_ssl.networks.layouts import LAYOUTS, PLAIN
from tests.networks.foreign import backbone, moco_v2


def test_the_lists_are_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    assert main(["teachers"]) == 0
    told = capsys.readouterr().out
    for layout in (*LAYOUTS, PLAIN):
        assert layout.name in told
    for known in KNOWN:
        row = next(line for line in told.splitlines() if known.name in line and known.licence in line)
        assert known.arch in row and f"{known.top1:g}" in row


def test_a_file_is_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "moco_v2_800ep_pretrain.pth.tar"
    torch.save(moco_v2().checkpoint, path)
    assert main(["teachers", str(path), "--arch", "thin_resnet10"]) == 0
    told = capsys.readouterr().out
    assert "MoCo v1/v2 layout" in told and "projection head 128-128-16" in told and "the momentum copy" in told
    assert f"licence of its weights: {NON_COMMERCIAL}" in told
    assert "by its name it is MoCo v2, 800 epochs, published top-1 71.1" in told
    assert "has the name of MoCo v2, 800 epochs and another hash" in told
    assert main(["teachers", str(tmp_path / "no.pth")]) == 2


def test_torchvisions_files_have_the_hashes_and_accuracies_that_torchvision_says() -> None:
    known = {each.file: each for each in KNOWN if each.file.startswith("resnet") and each.sha256}
    weights = {
        weights.url.rpartition("/")[2]: weights
        for arch in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
        for weights in torchvision.models.get_model_weights(arch)
    }
    assert known.keys() == weights.keys()
    for file, each in known.items():
        assert file == f"{each.arch}-{each.sha256}.pth"
        assert each.top1 == weights[file].meta["_metrics"]["ImageNet-1K"]["acc@1"]


def test_a_hash_proves_and_a_name_does_not(tmp_path: Path) -> None:
    v2 = next(each for each in KNOWN if each.name == "MoCo v2, 200 epochs")
    for name in ("renamed.pth", v2.file):
        seen = recognise(name, v2.md5, "0" * 64)
        assert seen is not None and (seen.known, seen.proven, seen.other) == (v2, True, "")
    other = hashlib.md5(b"other").hexdigest()
    seen = recognise(v2.file, other, "0" * 64)
    assert seen is not None and (seen.known, seen.proven, seen.other) == (v2, False, other[:8])
    resnet = next(each for each in KNOWN if each.sha256)
    seen = recognise("x.pth", "", resnet.sha256 + "0" * 56)
    assert seen is not None and seen.proven and seen.known == resnet
    assert recognise("resnet50.pth", "", "0" * 64) is None  # Barlow Twins' and VICReg's alike
    assert recognise("", "", "") is None


def test_names_are_told_apart_and_licences_are_given() -> None:
    files = [each.file for each in KNOWN if each.file]
    assert len(files) == len(set(files)) and len({each.name for each in KNOWN}) == len(KNOWN)
    layouts = {layout.name for layout in (*LAYOUTS, PLAIN)}
    assert all(each.licence and each.source.startswith("https://") and each.layout in layouts for each in KNOWN)
    fair = ("MoCo", "SwAV", "DeepCluster", "SeLa")
    assert all((each.licence == NON_COMMERCIAL) == each.name.startswith(fair) for each in KNOWN)


def test_the_docs_list_every_known_file_and_layout() -> None:
    page = (Path(__file__).parents[2] / "docs" / "teachers.md").read_text()
    for each in KNOWN:
        (row,) = (line for line in page.splitlines() if line.startswith(f"| {each.name}") and each.file in line)
        assert f"| {each.arch} | {each.top1:g} | {each.licence} |" in row and each.source in row
    assert all(name in page for layout in LAYOUTS for name in layout.name.replace("v1/v2", "v1").split(", "))


def test_a_backbone_of_nobody_known_has_no_licence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(backbone().state_dict(), tmp_path / "resnet50.pth")
    assert main(["teachers", str(tmp_path / "resnet50.pth")]) == 0
    assert "licence of its weights: not known here" in capsys.readouterr().out
