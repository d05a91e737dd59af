"""The cases of the settings of `detect`."""

from mgd_ssl.tasks.detection.config import DetectConfig
from tests.tasks.cases import Cases

case = Cases(DetectConfig)
