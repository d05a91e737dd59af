"""`mgd-ssl teachers`: whose files are read, which are known; `mgd-ssl teachers FILE...`: what they hold."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mgd_ssl.command_line import parse
from mgd_ssl.networks.known import KNOWN
from mgd_ssl.networks.layouts import LAYOUTS, PLAIN
from mgd_ssl.printable import printable
from mgd_ssl.settings import Settings

CONTAINERS = (
    ("safetensors", "any of these names in a .safetensors file"),
    ("Hugging Face folder", "ResNet, ViT and DINOv2 of transformers, and timm: config.json beside model.safetensors"),
    ("ViT of timm", "DINO, DINOv2, DINOv3 and others, with the extra timm; --teacher-arch where shapes do not tell"),
)


class TeachersConfig(Settings):
    """List layouts and known files: mgd-ssl teachers ; or load files strictly and tell of them: mgd-ssl teachers
    FILE..."""

    arch: str | None = None
    """Architecture of the given files; None: told from the shapes."""


def main(argv: Sequence[str]) -> int:
    """Print the lists, or the account of every file."""
    words = list(argv)
    flags = [i for i, word in enumerate(words) if word == "--arch" and i + 1 < len(words)]
    values = {i + 1 for i in flags}
    files = [Path(word) for i, word in enumerate(words) if not word.startswith("-") and i not in values]
    options = [word for i, word in enumerate(words) if word.startswith("-") or i in values]
    config = parse(TeachersConfig, options, "mgd-ssl teachers")
    if files:
        tell(files, config.arch)
    else:
        show()
    return 0


def show() -> None:
    """The layouts that are read and the files that are known, without torch."""
    console = Console(soft_wrap=False)
    layouts = Table("layout", "what is read", title="Layouts")
    for layout in (*LAYOUTS, PLAIN):
        layouts.add_row(layout.name, layout.told)
    for name, told in CONTAINERS:
        layouts.add_row(name, told)
    known = Table("known as", "file", "network", "top-1", "licence", "told by", title="Known files")
    for each in KNOWN:
        by = "hash" if each.md5 or each.sha256 else "name" if each.file else "-"
        known.add_row(each.name, each.file or "(others have its name)", each.arch, f"{each.top1:g}", each.licence, by)
    console.print(layouts)
    console.print(known)
    console.print(
        "top-1: as published, ImageNet-1k, linear evaluation (of torchvision's files their own classifiers). A name "
        "proves nothing; sources: docs/teachers.md.",
        style="dim",
    )


def tell(files: Sequence[Path], arch: str | None) -> None:
    """Load every file strictly, and say what it is."""
    from mgd_ssl.networks.weights import Asked, load_trained  # loads torch
    from mgd_ssl.run.folder import find_weights

    for file in files:
        report = load_trained(find_weights(file), Asked(arch, head="any")).report
        print(printable(str(report)))
        for note in report.notes() + report.warnings():
            print(f"  {printable(note)}")
