"""Self-supervised pretraining of small networks, guided by large ones through Matching Guided Distillation.

The public names are imported when they are asked for, so that `import mgd_ssl` and `mgd-ssl --help` load no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mgd_ssl.classify_settings import ClassifyConfig as ClassifyConfig
    from mgd_ssl.config import PretrainConfig as PretrainConfig
    from mgd_ssl.distillation.guided_student import GuidedStudent as GuidedStudent
    from mgd_ssl.errors import Interrupted as Interrupted
    from mgd_ssl.errors import TrainingError as TrainingError
    from mgd_ssl.errors import UserError as UserError
    from mgd_ssl.mgd.margin import relu_margin as relu_margin
    from mgd_ssl.mgd.matching import MatchingStatistics as MatchingStatistics
    from mgd_ssl.mgd.matching import assign as assign
    from mgd_ssl.mgd.matching import matching_cost as matching_cost
    from mgd_ssl.mgd.mgd import MGD as MGD
    from mgd_ssl.mgd.reducers import REDUCERS as REDUCERS
    from mgd_ssl.networks.taps import FeatureTaps as FeatureTaps
    from mgd_ssl.networks.teacher import Teacher as Teacher
    from mgd_ssl.tasks.classifier import GuidedClassifier as GuidedClassifier
    from mgd_ssl.tasks.classify import ClassifyResult as ClassifyResult
    from mgd_ssl.tasks.classify import classify as classify
    from mgd_ssl.tasks.moco import GuidedMoCo as GuidedMoCo
    from mgd_ssl.tasks.student import PretrainResult as PretrainResult
    from mgd_ssl.tasks.student import pretrain as pretrain
    from moco import MoCo as MoCo

_HOMES = {
    "ClassifyConfig": "mgd_ssl.classify_settings",
    "PretrainConfig": "mgd_ssl.config",
    "GuidedStudent": "mgd_ssl.distillation.guided_student",
    "Interrupted": "mgd_ssl.errors",
    "TrainingError": "mgd_ssl.errors",
    "UserError": "mgd_ssl.errors",
    "relu_margin": "mgd_ssl.mgd.margin",
    "MatchingStatistics": "mgd_ssl.mgd.matching",
    "assign": "mgd_ssl.mgd.matching",
    "matching_cost": "mgd_ssl.mgd.matching",
    "MGD": "mgd_ssl.mgd.mgd",
    "REDUCERS": "mgd_ssl.mgd.reducers",
    "FeatureTaps": "mgd_ssl.networks.taps",
    "Teacher": "mgd_ssl.networks.teacher",
    "GuidedClassifier": "mgd_ssl.tasks.classifier",
    "ClassifyResult": "mgd_ssl.tasks.classify",
    "classify": "mgd_ssl.tasks.classify",
    "GuidedMoCo": "mgd_ssl.tasks.moco",
    "PretrainResult": "mgd_ssl.tasks.student",
    "pretrain": "mgd_ssl.tasks.student",
    "MoCo": "moco",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
