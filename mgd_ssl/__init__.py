"""Self-supervised pretraining of small networks, guided by large ones through Matching Guided Distillation."""

from mgd_ssl.config import PretrainConfig
from mgd_ssl.errors import Interrupted, TrainingError, UserError
from mgd_ssl.margin import relu_margin
from mgd_ssl.matching import MatchingStatistics, assign, matching_cost
from mgd_ssl.method import DistilledMoCo
from mgd_ssl.mgd import MGD
from mgd_ssl.pretrain import PretrainResult, pretrain
from mgd_ssl.reducers import REDUCERS
from mgd_ssl.taps import FeatureTaps
from mgd_ssl.teacher import Teacher
from moco import MoCo

__all__ = [
    "MGD",
    "REDUCERS",
    "DistilledMoCo",
    "FeatureTaps",
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
