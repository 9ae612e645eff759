"""Every exception of the project's own, one tree.

Bottom of `featurestore`: imports nothing of ours. An error carries its data as attributes, so
that a caller can act on it without reading the message; the message is for the person. What a
user can put right derives from `UserError`: the command line prints it in one line and exits
with 2.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime
    from pathlib import Path


class SteadfeastError(Exception):
    """Root of the tree."""


class UserError(SteadfeastError):
    """Something the user gave is wrong and can be put right."""


class ConfigError(UserError):
    """A configuration file is missing, unreadable or wrong.

    Attributes:
        path: The file.
        problems: `(field, problem)` pairs; the field is dotted, empty for the whole file.
    """

    def __init__(self, path: Path, problems: Sequence[tuple[str, str]]) -> None:
        self.path, self.problems = path, tuple(problems)
        super().__init__(
            "\n".join(
                f"{path}: {field}: {text}" if field else f"{path}: {text}"
                for field, text in problems
            )
        )


class DurationError(UserError):
    """A length of time that cannot be read.

    Attributes:
        text: What was given.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        super().__init__(f"{text!r} is not a duration; write a number and a unit, as 30s, 6h, 7d")


class NotFoundError(UserError):
    """A name that does not exist, with the nearest that do.

    Attributes:
        kind: What was looked for, for example "feature view".
        name: The name asked for.
        known: The names there are.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(sorted(known))
        near = get_close_matches(name, self.known, n=3) or self.known[:5]
        hint = f"; did you mean {', '.join(near)}?" if near else "; there is none yet"
        super().__init__(f"no {kind} {name!r}{hint}")


class RawDataError(UserError):
    """A raw data file is missing, lacks a column, or holds a value that cannot be read.

    Attributes:
        path: The file.
        problem: What is wrong with it, naming the column and the row where there is one.
    """

    def __init__(self, path: Path | str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: {problem}")


class DefinitionsError(UserError):
    """The definitions under the repo folder and the registry do not belong together.

    Attributes:
        view: The on-demand view.
        repo: The repo folder.
        problem: What does not fit.
    """

    def __init__(self, view: str, repo: Path, problem: str) -> None:
        self.view, self.repo, self.problem = view, repo, problem
        super().__init__(
            f"on-demand view {view!r} {problem} in {repo}; run `steadfeast store apply`"
        )


class RefusedDefinitionError(UserError):
    """A definition means different things to training and serving, or nothing to one of them.

    Attributes:
        subject: What is at fault, for example "feature view 'sales', key 'zip'".
        problem: Why, and what would be right.
    """

    def __init__(self, subject: str, problem: str) -> None:
        self.subject, self.problem = subject, problem
        super().__init__(f"{subject}: {problem}")


class OnDemandError(UserError):
    """An on-demand view returned something other than what it declares.

    Attributes:
        view: The on-demand view.
        feature: The feature, empty when it is about all of them.
    """

    def __init__(self, view: str, feature: str, problem: str) -> None:
        self.view, self.feature = view, feature
        subject = f"on-demand view {view!r}" + (f", feature {feature!r}" if feature else "")
        super().__init__(f"{subject}: {problem}")


class UndescribableCodeError(UserError):
    """Code of an on-demand view depends on something that no contract can describe.

    Attributes:
        function: The function.
        name: The name in it that cannot be described.
    """

    def __init__(self, function: str, name: str, problem: str) -> None:
        self.function, self.name = function, name
        super().__init__(
            f"{function} uses {name!r}, {problem}: a contract must describe all that decides a "
            "value; pass it as a constant, or compute it inside the function"
        )


class ContractMismatchError(SteadfeastError):
    """The contract asked for is not the one that would be served.

    Attributes:
        service: The feature service.
        asked: SHA-256 asked for.
        served: SHA-256 of what this store serves now.
        differences: What differs, in words; empty when the asked contract was never applied here.
        reasons: Why it cannot be served, or replayed, from the definitions that were kept with it.
    """

    def __init__(
        self,
        service: str,
        asked: str,
        served: str,
        differences: Sequence[str],
        reasons: Sequence[str] = (),
    ) -> None:
        self.service, self.asked, self.served = service, asked, served
        self.differences, self.reasons = tuple(differences), tuple(reasons)
        detail = "; ".join(differences) or "the asked contract was never applied to this store"
        if reasons:
            detail += "; it cannot be served beside: " + "; ".join(reasons)
        super().__init__(f"{service}: asked for contract {asked}, serving {served}: {detail}")


class EntityRowsError(UserError):
    """Entity rows lack a column, or hold values of a wrong type.

    Attributes:
        service: The feature service.
        column: The first column at fault, or "" for the whole.
        problem: What is wrong with it.
    """

    def __init__(self, service: str, column: str, problem: str) -> None:
        self.service, self.column, self.problem = service, column, problem
        subject = f"entity column {column!r}" if column else "entity rows:"
        super().__init__(f"{service}: {subject} {problem}")


class FutureKnowledgeError(UserError):
    """Entity rows or labels lie after the time that a training set may know of.

    Attributes:
        column: The column that says so.
        rows: How many rows are too late.
        as_known_at: The limit.
    """

    def __init__(self, column: str, rows: int, as_known_at: datetime) -> None:
        self.column, self.rows, self.as_known_at = column, rows, as_known_at
        noun = "row has" if rows == 1 else "rows have"
        super().__init__(
            f"{rows} entity {noun} {column!r} after as_known_at={as_known_at.isoformat()}; "
            "drop them, or move as_known_at"
        )


class ManifestError(UserError):
    """A training-set manifest cannot be read, or its data is not what it says.

    Attributes:
        path: The manifest.
        problem: What is wrong.
    """

    def __init__(self, path: Path, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: {problem}")


class ArchiveError(SteadfeastError):
    """Definitions that were kept with a contract are not what was kept; nothing of them runs.

    Attributes:
        path: The archive.
        problem: What is wrong with it.
    """

    def __init__(self, path: Path, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(f"{path}: {problem}")


class ReplayError(UserError):
    """A manifest does not replay to the same bytes.

    Attributes:
        id: The training set.
        reasons: What is gone or has changed since, one sentence each.
    """

    def __init__(self, identity: str, reasons: Sequence[str]) -> None:
        self.id, self.reasons = identity, tuple(reasons)
        super().__init__(f"training set {identity} cannot be replayed: " + "; ".join(reasons))


class ErasedError(ReplayError):
    """Rows of a training set were erased: it is no longer what its manifest says, for good.

    Attributes:
        erasure: Name of the erasure.
        at: When it was, ISO 8601.
        rows: How many rows went.
    """

    def __init__(self, identity: str, erasure: str, at: str, rows: int) -> None:
        self.erasure, self.at, self.rows = erasure, at, rows
        noun = "row was" if rows == 1 else "rows were"
        super().__init__(identity, [f"{rows} {noun} erased from it at {at} by erasure {erasure}"])


class SourceError(UserError):
    """A feature view's data cannot be read, or is not what the view says it is.

    Attributes:
        view: The feature view, or the data source's name where no view is known.
        location: The path or address of the data.
        column: The column at fault, or "".
    """

    def __init__(self, view: str, location: str, problem: str, *, column: str = "") -> None:
        self.view, self.location, self.column = view, location, column
        where = f"column {column!r}: " if column else ""
        owner = f"feature view {view!r}: " if view else ""
        super().__init__(f"{owner}{location}: {where}{problem}")


class EntityFrameError(UserError):
    """The entity frame lacks something or holds what cannot be used.

    Attributes:
        column: The column at fault, or "" for the whole frame.
        problem: What is wrong with it.
    """

    def __init__(self, problem: str, *, column: str = "") -> None:
        self.column, self.problem = column, problem
        where = f"column {column!r}: " if column else ""
        # Not super(): a subclass that is also one of Feast's errors would get Feast's message.
        Exception.__init__(self, f"entity frame: {where}{problem}")


class ResourceError(UserError):
    """A query ran out of the memory or the disk that it may use.

    Attributes:
        memory_limit: The limit in DuckDB's words, for example "4.0 GiB".
        temp_directory: Where it spills.
    """

    def __init__(self, problem: str, memory_limit: str, temp_directory: str) -> None:
        self.memory_limit, self.temp_directory = memory_limit, temp_directory
        super().__init__(
            f"out of resources (memory_limit {memory_limit}, spilling to {temp_directory}): "
            f"{problem}"
        )


class UnsupportedTypeError(UserError):
    """A column has a type that cannot be stored.

    Attributes:
        column: Its name.
        type: The type, as text.
    """

    def __init__(self, column: str, type_: object, reason: str) -> None:
        self.column, self.type = column, str(type_)
        super().__init__(f"column {column!r} of type {type_} cannot be stored: {reason}")


class InvalidKeysError(UserError, KeyError):
    """Entity keys are missing or of the wrong type; a KeyError, as Feast's own.

    Attributes:
        view: The feature view they are for.
    """

    def __init__(self, view: str, problem: str) -> None:
        self.view = view
        super().__init__(f"keys of feature view {view!r}: {problem}")

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would show its repr


class InvalidBatchError(UserError):
    """A batch offered to the online store does not fit its feature view.

    Attributes:
        view: The feature view.
        column: The column at fault.
    """

    def __init__(self, view: str, column: str, problem: str) -> None:
        self.view, self.column = view, column
        super().__init__(f"feature view {view!r}: column {column!r}: {problem}")


class CorruptRowError(SteadfeastError):
    """A stored row cannot be trusted; its value is not served.

    Attributes:
        view: The feature view.
        key_hash: First 16 hexadecimal digits of the BLAKE2b hash of the encoded key, so that
            the row can be found without a person's identifier in a log.
    """

    def __init__(self, view: str, key_hash: str, problem: str) -> None:
        self.view, self.key_hash = view, key_hash
        super().__init__(
            f"feature view {view!r}: the stored row of the key with hash {key_hash} {problem};"
            " write it again or delete the entity"
        )


class StoreUnavailableError(SteadfeastError):
    """The online store does not answer within its deadline.

    Attributes:
        store: Its kind and place, without secrets.
    """

    def __init__(self, store: str, problem: str) -> None:
        self.store = store
        super().__init__(f"{store} is not available: {problem}")


class LostRowsError(StoreUnavailableError):
    """The online store has lost rows that it should serve, or may lose some at any time.

    Attributes:
        view: The feature view.
    """

    def __init__(self, store: str, view: str, problem: str = "") -> None:
        self.store, self.view = store, view
        lost = "holds no rows of it: they were lost, or the view was never applied here"
        remedy = "run `steadfeast store apply` and `materialize`, which fills it from the start"
        problem = problem or f"{lost}; {remedy}"
        Exception.__init__(self, f"feature view {view!r} is not served: {store} {problem}")


class LogUnavailableError(SteadfeastError):
    """The served log has no room in memory, and the disk takes nothing.

    Attributes:
        folder: Where it writes.
        reason: The operating system's.
    """

    def __init__(self, folder: Path, reason: OSError) -> None:
        self.folder, self.reason = folder, reason
        super().__init__(f"the served log under {folder} cannot be written: {reason}")


class DamagedFilesError(UserError):
    """Files of the served log or of the labels cannot be read.

    Attributes:
        problems: Of each file, what is wrong with it.
    """

    def __init__(self, problems: Mapping[Path, str]) -> None:
        self.problems = dict(problems)
        (path, problem), *others = self.problems.items()
        more = f", and {len(others)} more: {', '.join(str(one) for one, _ in others)}"
        super().__init__(
            f"{path}: truncated or damaged ({problem}){more * bool(others)}; restore it from a "
            "copy, or move it away, and its rows are lost"
        )


class LogRefusedError(UserError, ValueError):
    """What was given to the served log is no such thing; nothing of the call was taken.

    Attributes:
        service: The feature service.
        part: Which argument.
    """

    def __init__(self, service: str, part: str, problem: str) -> None:
        self.service, self.part = service, part
        super().__init__(f"served log of {service!r}: {part} {problem}")


class InvalidStoreError(UserError):
    """A configured store does not go with ours.

    Attributes:
        store: Name of its class.
    """

    def __init__(self, store: str, problem: str) -> None:
        self.store = store
        super().__init__(f"{store} {problem}")


class MissingExtraError(UserError):
    """Something needs an optional part of the distribution that is not installed.

    Attributes:
        extra: Its name.
    """

    def __init__(self, extra: str) -> None:
        self.extra = extra
        super().__init__(f"this needs the extra {extra!r}: pip install 'steadfeast[{extra}]'")


class RequestError(UserError):
    """A request to the edge cannot be read.

    Attributes:
        field: The part at fault.
        problem: What is wrong with it.
    """

    def __init__(self, field: str, problem: str) -> None:
        self.field, self.problem = field, problem
        super().__init__(f"{field}: {problem}")


class WorkerError(SteadfeastError):
    """A worker of the server ended by itself.

    Attributes:
        code: Its exit code; negative for a signal.
    """

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(f"a worker ended with exit code {code}; its own output says why")


class ClusterError(SteadfeastError):
    """A cluster that the store runs on cannot be reached, does not fit, or gave up."""


class AddressError(UserError):
    """An address cannot be served on.

    Attributes:
        address: It, as given.
        problem: Why not.
    """

    def __init__(self, address: str, problem: str) -> None:
        self.address, self.problem = address, problem
        super().__init__(f"address {address}: {problem}")
