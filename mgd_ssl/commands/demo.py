"""`mgd-ssl demo`: the whole job on an image set made on the spot, in minutes."""

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.markup import escape

from mgd_ssl.demo.results import draw, summarised, write_tables
from mgd_ssl.demo.study import DemoConfig, explanation, one_seed, seeds, show
from mgd_ssl.demo.textures import TEXTURES
from mgd_ssl.files import writing
from mgd_ssl.printable import printable
from mgd_ssl.report.page import write_report
from mgd_ssl.run.read import read_runs
from mgd_ssl.settings import parse


def main(argv: Sequence[str]) -> int:
    """Run what is not finished yet, then print and save the table."""
    config = parse(DemoConfig, argv, "mgd-ssl demo")
    use_gpu = config.device != "cpu" and torch.cuda.is_available()
    device = "cuda" if use_gpu else "cpu"
    console = Console()
    folders = [folder for seed in seeds(config) for folder in one_seed(config, seed, device, console)]
    runs = read_runs(folders)
    rows = summarised(runs, num_classes=len(TEXTURES))
    first = [run for run in runs if run.seed == config.seed]
    with writing(config.out):
        write_tables(rows, config.out)
        draw(first, config.out / "images" / f"seed{config.seed}" / "val", config.out / "demo.png")
    show(rows, console)
    console.print(explanation(config, device), highlight=False)
    report, *_ = write_report(folders, config.out / "report.html")
    out = escape(printable(config.out))
    console.print(f"Saved: {out}/table.md, table.csv, demo.png; runs in {out}/runs", highlight=False)
    console.print(f"Report on these runs, for a browser: {escape(printable(report))}", highlight=False, soft_wrap=True)
    return 0
