"""Self-supervised pretraining of small networks, guided by large ones through Matching Guided Distillation."""

from mgd_ssl.config import PretrainConfig
from mgd_ssl.distillation.guided_student import GuidedStudent
from mgd_ssl.errors import Interrupted, TrainingError, UserError
from mgd_ssl.mgd.margin import relu_margin
from mgd_ssl.mgd.matching import MatchingStatistics, assign, matching_cost
from mgd_ssl.mgd.mgd import MGD
from mgd_ssl.mgd.reducers import REDUCERS
from mgd_ssl.networks.taps import FeatureTaps
from mgd_ssl.networks.teacher import Teacher
from mgd_ssl.tasks.moco import GuidedMoCo
from mgd_ssl.tasks.pretraining import PretrainResult, pretrain
from moco import MoCo

__all__ = [
    "MGD",
    "REDUCERS",
    "FeatureTaps",
    "GuidedMoCo",
    "GuidedStudent",
    "Interrupted",
    "MatchingStatistics",
    "MoCo",
    "PretrainConfig",
    "PretrainResult",
    "Teacher",
    "TrainingError",
    "UserError",
    "assign",
    "matching_cost",
    "pretrain",
    "relu_margin",
]
