"""`mgd-ssl export`: a trained network in the format of another library."""

from collections.abc import Sequence

from mgd_ssl.command_line import parse
from mgd_ssl.export.config import ExportConfig
from mgd_ssl.printable import printable, printable_lines


def main(argv: Sequence[str]) -> int:
    """Export, and say how exactly the other library computes the same and how it is loaded."""
    config = parse(ExportConfig, argv, "mgd-ssl export")
    from mgd_ssl.export.exported import export  # torch is loaded once the settings are known to be right

    exported = export(config)
    what = "features" if exported.classes is None else f"logits of {exported.classes} classes"
    print(printable(f"{exported.arch}, {what}: {exported.path}"))
    print(
        f"loaded back and compared on the same images: largest difference {exported.difference:.3g}, "
        f"largest output {exported.largest:.3g}"
    )
    print(printable_lines(exported.usage))
    if config.push:
        from mgd_ssl.export.hub import push

        print(f"uploaded: {printable(push(config.out, config.push, f'{exported.arch}, by mgd-ssl export'))}")
    return 0
