"""15,000 labelled pictures that a package registry ships: emoji of four vendors, PNGs of 64 pixels with transparency.

The classes are Unicode's 99 subcategories. Three vendors are for training, the fourth is held out, so that what is
counted as right is the thing and not the hand that drew it. Nothing of it is distributed with this program; the
pictures have licences of their own: https://www.npmjs.com/package/emoji-datasource.
"""

import gzip
import io
import json
import tarfile
import urllib.request
from pathlib import Path

VERSION = "16.0.0"
TRAIN, HELD_OUT = ("apple", "google", "twitter"), "facebook"
EDGE = 64


def fetch(folder: Path) -> Path:
    """Write `train/CLASS/*.png` and `val/CLASS/*.png` under a folder, unless they are there: 340 MB are downloaded."""
    if folder.exists():
        return folder
    half = folder.with_suffix(".half")
    for vendor in (*TRAIN, HELD_OUT):
        name = f"emoji-datasource-{vendor}"
        address = f"https://registry.npmjs.org/{name}/-/{name}-{VERSION}.tgz"
        with urllib.request.urlopen(address) as answer:
            whole = io.BytesIO(gzip.decompress(answer.read()))  # read in any order
        with tarfile.open(fileobj=whole) as package:
            _unpack(package, vendor, half / ("val" if vendor == HELD_OUT else "train"))
    half.rename(folder)
    return folder


def _unpack(package: tarfile.TarFile, vendor: str, folder: Path) -> None:
    """One vendor's pictures, by their subcategory; skin tones are of the class of their emoji."""
    emoji = json.loads(_read(package, "package/emoji.json"))
    for one in emoji:
        kind = folder / f"{one['category']} {one['subcategory']}".replace(" ", "_").replace("/", "_")
        kind.mkdir(parents=True, exist_ok=True)
        for form in (one, *one.get("skin_variations", {}).values()):
            if form[f"has_img_{vendor}"]:
                picture = _read(package, f"package/img/{vendor}/{EDGE}/{form['image']}")
                (kind / f"{vendor}_{form['image']}").write_bytes(picture)


def _read(package: tarfile.TarFile, name: str) -> bytes:
    member = package.extractfile(name)
    if member is None:
        raise FileNotFoundError(name)
    return member.read()
