"""The cases of the settings of `detect`."""

from mgd_ssl.tasks.detection.config import DetectConfig
from tests.tasks.cases import Cases
from tests.tasks.runtime_cases import add_to

case = Cases(DetectConfig)
add_to(case)
