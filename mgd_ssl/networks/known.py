"""Published files that teachers come from: whose they are, under which licence, how good; without torch.

A hash stands here only where it was published; the others are known by their name, which proves nothing.
"""

from typing import NamedTuple

from mgd_ssl.networks.layouts import PLAIN

NON_COMMERCIAL = "CC-BY-NC 4.0 (non-commercial)"
MOCO, MOCO3 = "https://github.com/facebookresearch/moco", "https://github.com/facebookresearch/moco-v3"
SWAV, DINO = "https://github.com/facebookresearch/swav", "https://github.com/facebookresearch/dino"
DINO2 = "https://github.com/facebookresearch/dinov2"
BARLOW, VICREG = "https://github.com/facebookresearch/barlowtwins", "https://github.com/facebookresearch/vicreg"
SIMCLR, BYOL = "https://github.com/tonylins/simclr-converter", "https://github.com/ajtejankar/byol-convert"
TORCHVISION = "https://docs.pytorch.org/vision/stable/models.html"
# in full as public download scripts have them; MoCo's README gives the first eight digits
MD5 = {
    "moco_v1_200ep_pretrain.pth.tar": "b251726a57be750490c34a7602b59076",
    "moco_v2_200ep_pretrain.pth.tar": "59fd9945645e27d585be89338ce9232e",
    "moco_v2_800ep_pretrain.pth.tar": "a04e12f8b0e44fdcac1fb4e06f33727b",
}


class Known(NamedTuple):
    """A published file."""

    name: str  # `MoCo v2, 200 epochs`
    file: str  # as it is downloaded; empty where others are called the same
    arch: str
    top1: float  # published, ImageNet-1k: linear evaluation in its own protocol, of torchvision's their classifiers
    licence: str
    source: str
    layout: str = PLAIN.name
    md5: str = ""
    sha256: str = ""  # its first digits
    pixels: bool = False  # whether it sees pixels from 0 to 1, without mean and deviation


def _fair(name: str, file: str, top1: float, layout: str, source: str) -> Known:
    return Known(name, file, "resnet50", top1, NON_COMMERCIAL, source, layout, MD5.get(file, ""))


def _dinov2(letter: str, size: str, top1: float, registers: float) -> list[Known]:
    file, arch = f"dinov2_vit{letter}14", f"vit_{size}_patch14"
    name = f"DINOv2 ViT-{letter.upper() if letter != 'g' else 'g'}/14"
    return [
        Known(name, f"{file}_pretrain.pth", f"{arch}_dinov2", top1, "Apache-2.0", DINO2),
        Known(f"{name}, registers", f"{file}_reg4_pretrain.pth", f"{arch}_reg4_dinov2", registers, "Apache-2.0", DINO2),
    ]


KNOWN = (
    _fair("MoCo v1, 200 epochs", "moco_v1_200ep_pretrain.pth.tar", 60.6, "MoCo v1/v2", MOCO),
    _fair("MoCo v2, 200 epochs", "moco_v2_200ep_pretrain.pth.tar", 67.7, "MoCo v1/v2", MOCO),
    _fair("MoCo v2, 800 epochs", "moco_v2_800ep_pretrain.pth.tar", 71.1, "MoCo v1/v2", MOCO),
    _fair("MoCo v3, 100 epochs", "r-50-100ep.pth.tar", 68.9, "MoCo v3", MOCO3),
    _fair("MoCo v3, 300 epochs", "r-50-300ep.pth.tar", 72.8, "MoCo v3", MOCO3),
    _fair("MoCo v3, 1000 epochs", "r-50-1000ep.pth.tar", 74.6, "MoCo v3", MOCO3),
    *(
        _fair(f"SwAV, {epochs} epochs", f"swav_{epochs}ep_pretrain.pth.tar", top1, "SwAV", SWAV)
        for epochs, top1 in ((100, 72.1), (200, 73.9), (400, 74.6), (800, 75.3))
    ),
    _fair("SwAV, 200 epochs, batch 256", "swav_200ep_bs256_pretrain.pth.tar", 72.7, "SwAV", SWAV),
    _fair("SwAV, 400 epochs, batch 256", "swav_400ep_bs256_pretrain.pth.tar", 74.3, "SwAV", SWAV),
    _fair("SwAV, 400 epochs, two crops", "swav_400ep_2x224_pretrain.pth.tar", 70.1, "SwAV", SWAV),
    _fair("DeepCluster-v2, 400 epochs", "deepclusterv2_400ep_pretrain.pth.tar", 74.3, "SwAV", SWAV),
    _fair("DeepCluster-v2, 800 epochs", "deepclusterv2_800ep_pretrain.pth.tar", 75.2, "SwAV", SWAV),
    _fair("SeLa-v2, 400 epochs", "selav2_400ep_pretrain.pth.tar", 71.8, "SwAV", SWAV),
    Known("DINO ResNet-50", "dino_resnet50_pretrain.pth", "resnet50", 75.3, "Apache-2.0", DINO),
    Known(
        "DINO ResNet-50, full checkpoint", "dino_resnet50_pretrain_full_checkpoint.pth", "resnet50", 75.3, "Apache-2.0",
        DINO, "DINO",
    ),
    Known("Barlow Twins, 1000 epochs", "", "resnet50", 73.5, "MIT", BARLOW),
    Known("VICReg, 1000 epochs", "", "resnet50", 73.2, "MIT", VICREG),
    Known("SimCLR, converted", "resnet50-1x.pth", "resnet50", 69.1, "Apache-2.0", SIMCLR, pixels=True),
    Known("BYOL, converted", "pretrain_res50x1.pth.tar", "resnet50", 74.4, "Apache-2.0", BYOL),
    Known("DINO ViT-S/16", "dino_deitsmall16_pretrain.pth", "vit_small_patch16_224", 77.0, "Apache-2.0", DINO),
    Known("DINO ViT-S/8", "dino_deitsmall8_pretrain.pth", "vit_small_patch8_224", 79.7, "Apache-2.0", DINO),
    Known("DINO ViT-B/16", "dino_vitbase16_pretrain.pth", "vit_base_patch16_224", 78.2, "Apache-2.0", DINO),
    Known("DINO ViT-B/8", "dino_vitbase8_pretrain.pth", "vit_base_patch8_224", 80.1, "Apache-2.0", DINO),
    *_dinov2("s", "small", 81.1, 80.9),
    *_dinov2("b", "base", 84.5, 84.6),
    *_dinov2("l", "large", 86.3, 86.7),
    *_dinov2("g", "giant", 86.5, 87.1),
    *(
        Known(f"{arch} {version}", f"{arch}-{sha}.pth", arch, top1, "BSD-3-Clause", TORCHVISION, sha256=sha)
        for arch, version, sha, top1 in (
            ("resnet18", "IMAGENET1K_V1", "f37072fd", 69.758),
            ("resnet34", "IMAGENET1K_V1", "b627a593", 73.314),
            ("resnet50", "IMAGENET1K_V1", "0676ba61", 76.130),
            ("resnet50", "IMAGENET1K_V2", "11ad3fa6", 80.858),
            ("resnet101", "IMAGENET1K_V1", "63fe2227", 77.374),
            ("resnet101", "IMAGENET1K_V2", "cd907fc2", 81.886),
            ("resnet152", "IMAGENET1K_V1", "394f9c45", 78.312),
            ("resnet152", "IMAGENET1K_V2", "f82ba261", 82.284),
        )
    ),
)  # fmt: skip


class Recognised(NamedTuple):
    """A file that may be a published one."""

    known: Known
    proven: bool  # by a hash; else by its name alone
    other: str = ""  # the hash found where a file of that name has another


def recognise(name: str, md5: str, sha256: str) -> Recognised | None:
    """Which published file it is, None when it is none by hash or name.

    Args:
        name: of the file, without its folder.
        md5: of its bytes.
        sha256: likewise.
    """
    for known in KNOWN:
        if (known.md5 and known.md5 == md5) or (known.sha256 and sha256.startswith(known.sha256)):
            return Recognised(known, True)
    named = next((known for known in KNOWN if known.file and known.file == name), None)
    if named is None:
        return None
    published = named.md5 or named.sha256
    return Recognised(named, False, (md5 if named.md5 else sha256)[:8] if published else "")
