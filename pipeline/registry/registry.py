"""Models and their versions, kept by MLflow.

Above `formats`. A version is an MLflow run plus model files; its tags say what it was trained
on, and two aliases say what it is for: `challenger` is the last one registered, `champion` the
one that serves. The default backend is a SQLite file with artifacts in a folder; nothing here
uses MLflow's process-wide state, so several registries can be open at once.

What may be in a file is declared here by its format, never by what MLflow stores beside the file,
which whoever can write the file can write too.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import platform
import sqlite3
import tempfile
import warnings
from contextlib import closing
from functools import partial
from importlib.metadata import version as library_version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from steadfeast.featurestore.errors import NotFoundError, UserError
from steadfeast.featurestore.tables import private_folder
from steadfeast.pipeline.queue import model_files
from steadfeast.pipeline.registry import formats
from steadfeast.pipeline.registry.formats import UntrustedModelError
from steadfeast.pipeline.registry.mlflow_runs import MlflowRuns
from steadfeast.pipeline.registry.onnx_export import OnnxServing, export
from steadfeast.pipeline.registry.relocation import FOLDER, relocate
from steadfeast.pipeline.registry.version import FEATURES, PREFIX, Facts, LoadedModel

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import pyarrow as pa

    from steadfeast.pipeline.config import PipelineConfig

CHAMPION, CHALLENGER = "champion", "challenger"

_LIBRARIES = ("numpy", "pandas", "pyarrow", "scikit-learn", "skops", "mlflow")
_FILES = f"{PREFIX}files"
_SIGNATURE = f"{PREFIX}signature"
_HISTORY = f"{PREFIX}champions"
_HISTORY_LENGTH = 100


class RegistryError(UserError):
    """MLflow's backend cannot be opened.

    Attributes:
        tracking_uri: The backend.
    """

    def __init__(self, tracking_uri: str, problem: str) -> None:
        self.tracking_uri = tracking_uri
        super().__init__(f"model registry {tracking_uri}: {problem}")


class Registry:
    """The models of one MLflow backend; usable from any thread.

    Args:
        tracking_uri: MLflow's.
        artifacts: Folder that model files go to; None leaves it to the backend.
        trusted: Types that skops may build in addition to `TRUSTED_TYPES`, per model.
        recorded: Returns the hashes of a version's files as its run recorded them, by model and
            version; None where no run did.
        key: Signs what is registered; with it, only what it signed is loaded.

    Raises:
        RegistryError: MLflow cannot open the backend.
    """

    def __init__(
        self,
        tracking_uri: str,
        artifacts: Path | None,
        trusted: Mapping[str, tuple[str, ...]],
        recorded: Callable[[str, str], Mapping[str, str] | None] = lambda *_: None,
        key: str = "",
    ) -> None:
        # Read when mlflow is imported, and no other switch turns its reports off.
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        import mlflow  # noqa: PLC0415 - after the switch
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 - comes with mlflow

        self._uri, self._trusted = tracking_uri, trusted
        self._recorded, self._key = recorded, key.encode()
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        with warnings.catch_warnings():
            # MLflow's mapping uses a loader that SQLAlchemy 2.1 deprecates; said once, here.
            warnings.filterwarnings("ignore", message="The ``noload`` loader")
            try:
                self._client = mlflow.MlflowClient(tracking_uri=tracking_uri)
                self._client.search_registered_models(max_results=1)  # opens the store
            except (mlflow.MlflowException, SQLAlchemyError) as error:
                raise RegistryError(tracking_uri, str(error).partition("\n")[0]) from error
        self.runs = MlflowRuns(self._client, artifacts)

    @classmethod
    def open(cls, config: PipelineConfig) -> Self:
        """Open the registry that `config` names; creates the SQLite file if need be."""
        private_folder(config.state)
        uri = config.tracking_uri or f"sqlite:///{config.state / 'mlflow.db'}"
        _look_over(uri)
        if config.tracking_uri is None:
            relocate(config.state / "mlflow.db")
        return cls(
            uri,
            config.state / FOLDER if config.tracking_uri is None else None,
            {name: model.trusted_types for name, model in config.models.items()},
            partial(model_files, config.state / "runs.db"),
            config.signing_key.get_secret_value(),
        )

    def champion_version(self, model: str) -> str | None:
        """Return the champion's version without loading it; None if there is none."""
        return self.alias(model, CHAMPION)

    def alias(self, model: str, name: str) -> str | None:
        """Return the version with the alias `name`; None if none has it."""
        return self._aliases(model).get(name)

    def champion(self, model: str) -> LoadedModel | None:
        """Load the champion; None if there is none."""
        version = self.champion_version(model)
        return None if version is None else self.load(model, version)

    def load(self, model: str, version: str, *, serving: bool = False) -> LoadedModel:
        """Load one version.

        Args:
            model: Its model.
            version: As the registry counts them.
            serving: Predict by its ONNX files, where it has any; else by the estimator itself.

        Raises:
            NotFoundError: There is no such version.
            UntrustedModelError: The file is not the one registered or not the one that its run
                recorded, is not signed, or holds types that nobody listed.
        """
        import mlflow.artifacts  # noqa: PLC0415 - see __init__

        found = self._version(model, version)
        what = f"model {model} version {version}"
        folder = mlflow.artifacts.download_artifacts(
            artifact_uri=found.source, tracking_uri=self._uri
        )
        # What is read is what the version's own record lists, and nothing that lies beside it.
        files, digests = {}, json.loads(found.tags.get(_FILES, "{}"))
        if self._recorded(model, str(version)) not in (None, digests):
            problem = "the registry lists other files than the run recorded that made it"
            raise UntrustedModelError(what, problem)
        signature = self._signature(model, digests, Facts.from_tags(found.tags))
        if self._key and not hmac.compare_digest(signature, found.tags.get(_SIGNATURE, "")):
            raise UntrustedModelError(what, "pipeline.signing_key has not signed it as it is")
        for name, digest in digests.items():
            files[name] = Path(folder, Path(name).name).read_bytes()
            if hashlib.sha256(files[name]).hexdigest() != digest:
                raise UntrustedModelError(what, f"{name} is not the file that was registered")
        estimator = formats.read(files, self._trusted.get(model, ()), what)
        facts = Facts.from_tags(found.tags)
        fast = OnnxServing.read(files, facts.target) if serving else None
        return LoadedModel(model, str(version), estimator, facts, fast)

    def files(self, model: str, version: str) -> dict[str, str]:
        """Return the SHA-256 of each file of a version, in hexadecimal, as they were registered.

        Raises:
            NotFoundError: There is no such version.
        """
        return dict(json.loads(self._version(model, version).tags.get(_FILES, "{}")))

    def facts(self, model: str, version: str) -> Facts:
        """Return what is known of a version.

        Raises:
            NotFoundError: There is no such version.
        """
        return Facts.from_tags(self._version(model, version).tags)

    def find(self, model: str, run_id: str) -> str | None:
        """Return the version that run `run_id` registered; None if it did not."""
        found = self._client.search_model_versions(
            f"name = '{model}' and tag.`{PREFIX}run_id` = '{run_id}'"
        )
        return str(found[0].version) if found else None

    def register(
        self,
        model: str,
        estimator: Any,
        facts: Facts,
        recipe_metrics: Mapping[str, float] | None = None,
        rows: pa.Table | None = None,
    ) -> str:
        """Store `estimator` as a new version, alias `challenger`; return the version.

        Once per run: what the run `facts.run_id` has registered before is returned as it is.
        `recipe_metrics` are logged with MLflow's run under `recipe.` names. With the training
        set's `rows` it is exported to ONNX for serving, where that says the same on all of them.

        Raises:
            UntrustedModelError: The estimator holds types that nobody listed.
        """
        version = self.find(model, facts.run_id)
        if version is None:
            extra = {f"recipe.{name}": value for name, value in (recipe_metrics or {}).items()}
            version = self._add(model, estimator, facts, {**facts.metrics, **extra}, rows)
        if self._aliases(model).get(CHAMPION) != version:
            self._client.set_registered_model_alias(model, CHALLENGER, version)
        return version

    def set_champion(self, model: str, version: str) -> str | None:
        """Make `version` the champion; return the version that was. Repeating it is harmless.

        Raises:
            NotFoundError: There is no such version.
        """
        self._version(model, version)
        before = self.champion_version(model)
        if before == version:
            return before
        if before is not None:
            # History first: cut off here, its last entry is the champion, which is skipped.
            past = [*self._history(model), before][-_HISTORY_LENGTH:]
            self._client.set_registered_model_tag(model, _HISTORY, json.dumps(past))
        self._point(model, version)
        return before

    def restore_champion(self, model: str) -> str:
        """Make the champion before this one the champion again; return its version.

        Raises:
            NotFoundError: There was none.
        """
        now, past = self.champion_version(model), self._history(model)
        while past and past[-1] == now:
            past.pop()
        if not past:
            raise NotFoundError("earlier champion of model", model, ())
        version = past[-1]
        self._point(model, version)
        self._client.set_registered_model_tag(model, _HISTORY, json.dumps(past[:-1]))
        return version

    def _point(self, model: str, version: str) -> None:
        self._client.set_registered_model_alias(model, CHAMPION, version)
        if self._aliases(model).get(CHALLENGER) == version:
            self._client.delete_registered_model_alias(model, CHALLENGER)

    def _add(
        self,
        model: str,
        estimator: Any,
        facts: Facts,
        metrics: Mapping[str, float],
        rows: pa.Table | None,
    ) -> str:
        files = formats.write(estimator)
        formats.read(files, self._trusted.get(model, ()), f"the challenger of model {model}")
        names = (*_LIBRARIES, *formats.libraries_of(files))
        libraries = {name: library_version(name) for name in names}
        if rows is not None:
            files |= export(estimator, facts.features, facts.target, facts.classes, rows)
        with tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                Path(folder, name).write_bytes(content)
            digests = {n: hashlib.sha256(c).hexdigest() for n, c in files.items()}
            tags = facts.tags() | {
                _FILES: json.dumps(digests),
                _SIGNATURE: self._signature(model, digests, facts),
                f"{PREFIX}python": platform.python_version(),
                f"{PREFIX}libraries": json.dumps(libraries),
            }
            # A run's tags are shorter than a version's: the list of features may not fit.
            short = {name: value for name, value in tags.items() if name != FEATURES}
            run = self.runs.open(model, facts.run_id, short)
            self._client.log_artifacts(run.info.run_id, folder, "model")
        for name, value in metrics.items():
            self._client.log_metric(run.info.run_id, name, value)
        self._client.set_terminated(run.info.run_id)
        if not self._registered(model):
            self._client.create_registered_model(model)
        return str(
            self._client.create_model_version(
                model, f"{run.info.artifact_uri}/model", run.info.run_id, tags=tags
            ).version
        )

    def _signature(self, model: str, digests: Mapping[str, str], facts: Facts) -> str:
        """Return what signs a version; nothing without a key."""
        if not self._key:
            return ""
        signed = json.dumps([model, sorted(digests.items()), sorted(facts.tags().items())])
        return hmac.new(self._key, signed.encode(), hashlib.sha256).hexdigest()

    def _registered(self, model: str) -> bool:
        return bool(self._client.search_registered_models(f"name = '{model}'"))

    def _aliases(self, model: str) -> dict[str, str]:
        found = self._client.search_registered_models(f"name = '{model}'")
        return {name: str(version) for name, version in found[0].aliases.items()} if found else {}

    def _history(self, model: str) -> list[str]:
        tags = self._client.get_registered_model(model).tags if self._registered(model) else {}
        return list(json.loads(tags.get(_HISTORY, "[]")))

    def _version(self, model: str, version: str) -> Any:
        # Listed rather than asked for: the name of what is near belongs in the error.
        found = {
            str(one.version): one for one in self._client.search_model_versions(f"name = '{model}'")
        }
        if version not in found:
            raise NotFoundError(f"version of model {model}", version, found)
        return found[version]


def _look_over(tracking_uri: str) -> None:
    """Read a SQLite backend whole: MLflow fails only at the damaged page that it happens to read.

    Raises:
        RegistryError: It is damaged.
    """
    file = Path(tracking_uri.removeprefix("sqlite:///"))
    if not tracking_uri.startswith("sqlite:///") or not file.is_file():
        return
    damaged = "truncated or damaged; stop the pipeline and restore the file from a copy"
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as con:
            (found,) = con.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError:
        return  # locked, or a folder that cannot be written: MLflow says what it cannot do
    except sqlite3.DatabaseError as error:
        raise RegistryError(tracking_uri, f"{damaged} ({error})") from error
    if found != "ok":
        raise RegistryError(tracking_uri, f"{damaged} ({' '.join(found.split())})")
