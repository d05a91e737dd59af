"""What `mgd-ssl embed` costs beside the bare forward passes, in seconds of processor time.

    python -m benchmarks.embed [--images 512] [--size 224]

Photographs of `mgd-ssl bench` become JPEG files; a ResNet-18 embeds them in one process with one thread, and looks at
as many ready tensors. Processor time, because the machine may be shared.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mgd_ssl.bench.photographs import jpeg, photograph
from mgd_ssl.config import RuntimeConfig
from mgd_ssl.data.folder import ImageList
from mgd_ssl.data.samples import CentreCrops
from mgd_ssl.evaluation.config import EmbedConfig
from mgd_ssl.evaluation.embedding import embed
from mgd_ssl.networks.untrained import load_evaluated

BATCH = 64


def main() -> None:
    """Print processor time an image of the whole, of the forward passes and of decoding and cropping."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", type=int, default=224)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "photographs"
        folder.mkdir()
        contents = [jpeg(photograph(seed)) for seed in range(16)]
        for number in range(args.images):
            (folder / f"{number:05d}.jpg").write_bytes(contents[number % len(contents)])
        weights, one_thread = Path("random:resnet18"), RuntimeConfig(device="cpu", threads=1)
        config = EmbedConfig(
            checkpoint=weights, data=folder, out=Path(place) / "features.npy", image_size=args.size,
            workers=0, batch_size=BATCH, runtime=one_thread,
        )  # fmt: skip
        images = CentreCrops(ImageList.scan(folder), args.size, 0)
        network = load_evaluated(weights)[0].eval().to(memory_format=torch.channels_last)
        ready = torch.rand(BATCH, 3, args.size, args.size).contiguous(memory_format=torch.channels_last)
        batches = range(0, args.images, BATCH)

        @torch.inference_mode()
        def forward() -> None:
            for _ in batches:
                network(ready)

        def decode() -> None:
            for start in batches:
                images.__getitems__(range(start, min(start + BATCH, args.images)))

        for name, work in (("embed", lambda: embed(config)), ("forward passes", forward), ("decoding", decode)):
            print(f"{name:15} {1000 * seconds(work) / args.images:7.2f} ms an image")


def seconds(work: Callable[[], object]) -> float:
    """Processor time of this process."""
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main()
