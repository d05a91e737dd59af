"""What a pretraining's student begins with: random weights, or those of a file."""

from typing import NamedTuple

from torch import nn

from mgd_ssl.config import PretrainConfig
from mgd_ssl.errors import UserError
from mgd_ssl.networks.account import LoadReport
from mgd_ssl.networks.backbones import head_of, initial_encoder, without_head
from mgd_ssl.networks.normalisation import USUAL
from mgd_ssl.networks.weights import Asked, load_trained
from mgd_ssl.run.folder import find_weights
from mgd_ssl.run.log import logger
from mgd_ssl.run.runtime import on_rank_zero


class BegunEncoder(NamedTuple):
    """A student before its first step."""

    encoder: nn.Module  # with MoCo's projection head
    report: LoadReport | None = None  # of its weights; None: they are random
    head_kept: bool = False  # whether the head is the file's


def begin(config: PretrainConfig) -> BegunEncoder:
    """The student with its projection head, on the CPU.

    Raises:
        UserError: for weights that do not fit.
    """
    moco = config.moco
    encoder = initial_encoder(config.student, moco.dim, moco.head_width, config.seed)
    path = config.student_weights
    if path is None:
        return BegunEncoder(encoder)
    trained = load_trained(on_rank_zero(lambda: find_weights(path)), Asked(config.student, head="any"))
    if trained.report.normalisation != USUAL:
        raise UserError(
            f"{trained.report.path} was trained on input with {trained.report.normalisation}, and a student's has "
            f"{USUAL}: begin with other weights"
        )
    encoder.load_state_dict({**encoder.state_dict(), **without_head(encoder, trained.backbone.state_dict())})
    kept = trained.head is not None and _shapes(trained.head) == _shapes(head_of(encoder))
    if kept:
        assert trained.head is not None
        head_of(encoder).load_state_dict(trained.head.state_dict())
    return BegunEncoder(encoder, trained.report, kept)


def tell_beginning(begun: BegunEncoder) -> None:
    """One line on where the student's weights come from, if they come from a file."""
    if begun.report is not None:
        logger.info("student %s; its projection head is %s", begun.report, "kept" if begun.head_kept else "drawn anew")


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}
