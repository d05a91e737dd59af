"""`mgd-ssl doctor`: what a run would meet, before it is started."""

import json
from collections.abc import Sequence

from rich.console import Console

from mgd_ssl.command_line import parse
from mgd_ssl.config import DataConfig
from mgd_ssl.doctor.config import DoctorConfig

MACHINE_ALONE: tuple[list[str], ...] = ([], ["--json"])


def main(argv: Sequence[str]) -> int:
    """Print the page, or the same as JSON."""
    alone = list(argv) in MACHINE_ALONE
    if alone:
        config = DoctorConfig(data=DataConfig(train="none"), as_json="--json" in argv)
    else:
        config = parse(DoctorConfig, argv, "mgd-ssl doctor")
    from mgd_ssl.doctor.examine import examine, examine_machine  # torch is loaded once the settings are right

    found = examine_machine(config) if alone else examine(config)
    if config.as_json:
        print(json.dumps(found))
        return 0
    from mgd_ssl.doctor.page import show

    show(found, Console())
    if alone:
        print("with the arguments of mgd-ssl pretrain it looks at images and teacher, and takes a few steps")
    return 0
