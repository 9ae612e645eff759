"""MLflow's runs, one for each run of the pipeline.

Below `registry`. A model has an experiment of its name. MLflow's run has the pipeline's run id as
its name and as a tag, so a run that was cut off goes on in the one that it left.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from steadfeast.pipeline.registry.version import PREFIX

if TYPE_CHECKING:
    from collections.abc import Mapping

RUN_ID = f"{PREFIX}run_id"
Status = Literal["FINISHED", "FAILED", "KILLED"]


class MlflowRuns:
    """The runs of one MLflow backend.

    Args:
        client: MLflow's `MlflowClient`.
        artifacts: Folder that a new experiment's files go to; None leaves it to the backend.
    """

    def __init__(self, client: Any, artifacts: Path | None) -> None:
        self.client, self._artifacts = client, artifacts

    def open(self, model: str, run_id: str, tags: Mapping[str, str]) -> Any:
        """Return MLflow's run of ours, made if it is not there, with `tags` set."""
        found = self._find(self._experiment(model), run_id)
        if found is None:
            named = {RUN_ID: run_id, **tags}
            return self.client.create_run(self._experiment(model), tags=named, run_name=run_id)
        for name, value in tags.items():
            self.client.set_tag(found.info.run_id, name, value)
        return found

    def resume(self, model: str, run_id: str, tags: Mapping[str, str]) -> None:
        """Open MLflow's run of ours, and have it shown as running."""
        self.client.update_run(self.open(model, run_id, tags).info.run_id, status="RUNNING")

    def end(self, model: str, run_id: str, status: Status, tags: Mapping[str, str]) -> None:
        """End MLflow's run of ours with `tags`; nothing happens if there is none."""
        found = self._there(model, run_id)
        if found is None:
            return
        for name, value in tags.items():
            self.client.set_tag(found.info.run_id, name, value)
        self.client.set_terminated(found.info.run_id, status)

    def params(self, model: str, run_id: str) -> dict[str, str]:
        """Return the parameters that MLflow's run of ours has; none if there is no such run."""
        found = self._there(model, run_id)
        return {} if found is None else dict(found.data.params)

    def file(self, model: str, run_id: str, name: str) -> bytes | None:
        """Return an artifact at the top of MLflow's run of ours; None if it is not there."""
        found = self._there(model, run_id)
        if found is None:
            return None
        listed = {one.path for one in self.client.list_artifacts(found.info.run_id)}
        if name not in listed:
            return None
        with tempfile.TemporaryDirectory() as folder:
            got = self.client.download_artifacts(found.info.run_id, name, folder)
            return Path(got).read_bytes()

    def _there(self, model: str, run_id: str) -> Any:
        experiment = self.client.get_experiment_by_name(model)
        return None if experiment is None else self._find(experiment.experiment_id, run_id)

    def _experiment(self, model: str) -> str:
        experiment = self.client.get_experiment_by_name(model)
        if experiment is not None:
            return str(experiment.experiment_id)
        location = self._artifacts.absolute().as_uri() if self._artifacts else None
        return str(self.client.create_experiment(model, artifact_location=location))

    def _find(self, experiment_id: str, run_id: str) -> Any:
        found = self.client.search_runs(
            [experiment_id], f"tags.`{RUN_ID}` = '{run_id}'", max_results=1
        )
        return found[0] if found else None
