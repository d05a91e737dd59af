"""Small packs, and what is left by them."""

from pathlib import Path
from typing import Any

MINE = ("config.json", "result.json", ".lock")  # tell the place and the machine


def settings(photos: Path, out: Path, **changes: Any) -> dict[str, Any]:
    return {"images": photos, "out": out, "shard_images": 6, "workers": 0, "max_unreadable": 0.1, **changes}


def left_by(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name not in MINE}
