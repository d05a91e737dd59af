"""MLflow, at `MLFLOW_TRACKING_URI` or where it keeps runs by itself (mlflow.org/docs/latest/ml/tracking)."""

import os
import time
from collections.abc import Mapping
from typing import Any

# a server that does not answer costs the training seconds, once, and not the minutes that MLflow would try again
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from mgd_ssl.run.sinks.sink import PROJECT, Opening, numbers_of

AT_ONCE, LONGEST = 100, 500  # parameters of one call, characters of a value: MLflow's own bounds


class Mlflow:
    """The run at MLflow, under the same id from start to end.

    Args:
        opening: folder, settings, and the id that the run has there already.
    """

    def __init__(self, opening: Opening) -> None:
        self._client = MlflowClient()
        if opening.known is not None:
            self.known = opening.known
            self._client.update_run(self.known, status="RUNNING")
            return
        run = self._client.create_run(self._experiment(), run_name=opening.folder.resolve().name)
        self.known = str(run.info.run_id)
        params = [Param(key, str(value)[:LONGEST]) for key, value in opening.settings.items()]
        for first in range(0, len(params), AT_ONCE):
            self._client.log_batch(self.known, params=params[first : first + AT_ONCE])

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found is not None else self._client.create_experiment(name))

    def add(self, row: Mapping[str, Any]) -> None:
        """Log the numbers of a row at its step."""
        now = int(1000 * time.time())
        metrics = [Metric(tag, float(value), now, row["step"]) for tag, value in numbers_of(row).items()]
        self._client.log_batch(self.known, metrics=metrics)

    def close(self) -> None:
        """Say that nobody trains it now; a resume says otherwise."""
        self._client.set_terminated(self.known)


def open_sink(opening: Opening) -> Mlflow:
    """The sink of a run."""
    return Mlflow(opening)
