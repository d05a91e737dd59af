"""What a result was made with: versions, commit, machine."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any


def environment() -> dict[str, Any]:
    """Versions, commit and machine of this process, for the files that hold results."""
    import torch  # here, so that results can be read without it
    import torchvision

    from moco.dist import world_size

    return {
        "mgd_ssl": version("mgd_ssl"),
        "git": git_hash(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "processes": world_size(),
        "host": platform.node(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def git_hash() -> str | None:
    """Commit of this source tree, None for an installed package."""
    folder = Path(__file__).parent
    try:
        answer = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
