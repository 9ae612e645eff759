"""Packed rows by key, one generation after the other: what stores keep, and how it is found.

Below `batches`, which turns columns into rows. A subclass keeps bytes and small values; that
what is read belongs together, that nothing lost is taken for nothing there, and that a view
filled anew changes over in one step is settled here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import TYPE_CHECKING

from steadfeast.featurestore.errors import LostRowsError, StoreUnavailableError
from steadfeast.featurestore.online.progress import Head, Place, Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from feast import RepoConfig

    from steadfeast.featurestore.online.packing import Layouts
    from steadfeast.featurestore.online.waiting import Merge
    from steadfeast.featurestore.rows import Layout

HEAD = "head"
_TRIES = 5


class RowStore(ABC):
    """Rows of every view and generation; `space` names one view of one project."""

    embedded = False
    """Whether a read waits for nothing but this machine's disk."""

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}
        """Where rows were found; another place than that must have been filled."""

    @abstractmethod
    def release(self) -> None:
        """Close the connections that are not in use."""

    @abstractmethod
    def _get(
        self, config: RepoConfig, place: Place, keys: Sequence[bytes]
    ) -> list[bytes | None] | None:
        """Return what is kept for each key; None when `place` is not what is served."""

    @abstractmethod
    def _put(
        self,
        config: RepoConfig,
        place: Place,
        layout: Layout,
        pairs: Sequence[tuple[bytes, bytes]],
        merge: Merge,
    ) -> int | None:
        """Keep `layout`, and merge each value with its key's; return how many changed.

        None when the place is gone. Values are single rows that are due at `merge.settled`, or
        whatever `merge` made.
        """

    @abstractmethod
    def _delete(self, config: RepoConfig, place: Place, keys: Sequence[bytes]) -> int:
        """Remove what is kept for `keys`; return for how many there was something."""

    @abstractmethod
    def _pairs(self, config: RepoConfig, place: Place) -> Iterator[list[tuple[bytes, bytes]]]:
        """Yield all `(key, value)` in batches."""

    @abstractmethod
    def _layouts(self, config: RepoConfig, space: str) -> Layouts:
        """Return the layouts of `space` by their ids."""

    @abstractmethod
    def _apply(self, config: RepoConfig, space: str, layout: Layout) -> None:
        """Keep `layout` as the one of `space` that was applied last."""

    @abstractmethod
    def _serve(self, config: RepoConfig, space: str, old: Head | None, new: Head) -> bool:
        """Serve what `new` says if `old` is what is served; say whether it was.

        Then there is room for the rows of its places, and rows and progress of every generation
        that no head names go, but never those of one that others have begun meanwhile.
        """

    @abstractmethod
    def _drop(self, config: RepoConfig, spaces: Iterable[str]) -> None:
        """Remove everything kept for `spaces`."""

    @abstractmethod
    def _value(self, config: RepoConfig, space: str, name: str) -> bytes | None:
        """Return a small value."""

    @abstractmethod
    def _swap(
        self, config: RepoConfig, space: str, name: str, old: bytes | None, new: bytes
    ) -> bool:
        """Keep a small value if `old` is what is there; say whether it was."""

    @abstractmethod
    def _describe(self, config: RepoConfig) -> str:
        """Return the store's kind and place, without secrets."""

    def _doubt(self, config: RepoConfig) -> str:  # noqa: ARG002 - a file loses no single rows
        """Say why single rows may be missing; empty when they cannot be."""
        return ""

    def _is_new(self, config: RepoConfig, space: str) -> bool:  # noqa: ARG002 - nor is it asked
        """Say whether nobody can take the rows of a first generation for those of an older one."""
        return True

    # generations

    def head(self, config: RepoConfig, space: str) -> Head | None:
        """Return which generation is served; None when the store has nothing of the view."""
        kept = self._value(config, space, HEAD)
        return None if kept is None else Head.of(space, kept)

    def open_space(self, config: RepoConfig, space: str) -> Head:
        """Return which generation is served, after making a first one if there is none."""
        while (head := self.head(config, space)) is None:
            place = Place.new(space, first=self._is_new(config, space))
            self._serve(config, space, None, Head(place))
        return head

    def begin(self, config: RepoConfig, space: str) -> Place:
        """Begin a generation that is to replace the one that is served; see `commit`."""
        place = Place.new(space, first=False)
        while True:
            head = self.open_space(config, space)
            if self._serve(config, space, head, Head(head.served, place)):
                return place

    def commit(self, config: RepoConfig, place: Place, progress: Progress) -> bool:
        """Serve a generation from now on; False when another one was begun meanwhile."""
        space, head = place.space, self.head(config, place.space)
        if head is None or head.filling != place:
            return False
        self._swap(config, space, _progress(place), None, progress.to_bytes())
        return self._serve(config, space, head, Head(place))

    def abandon(self, config: RepoConfig, place: Place) -> None:
        """Remove a generation that will not be served."""
        head = self.head(config, place.space)
        if head is not None:
            # Also when others have replaced it: its last rows may have come after they did.
            filling = None if head.filling == place else head.filling
            self._serve(config, place.space, head, Head(head.served, filling))

    # progress

    def progress_at(self, config: RepoConfig, place: Place) -> Progress:
        """Return what the rows of `place` are."""
        return Progress.of(self._value(config, place.space, _progress(place)))

    def advance(self, config: RepoConfig, place: Place, reached: Progress) -> None:
        """Move the mark of a generation forward, never back."""

        def further(before: Progress) -> Progress:
            if before.until is not None and (reached.until or 0) < before.until:
                return before
            return replace(reached, left_out=before.left_out)

        self._change(config, place, further)

    def count_left_out(self, config: RepoConfig, place: Place, rows: int) -> None:
        """Add to the rows that were not taken."""
        self._change(config, place, lambda old: replace(old, left_out=old.left_out + rows))

    def _change(
        self, config: RepoConfig, place: Place, how: Callable[[Progress], Progress]
    ) -> None:
        while True:
            kept = self._value(config, place.space, _progress(place))
            before = Progress.of(kept)
            after = how(before)
            if after == before:
                return
            if self._swap(config, place.space, _progress(place), kept, after.to_bytes()):
                return

    # rows

    def _read_rows(
        self, config: RepoConfig, space: str, keys: Sequence[bytes], view: str, *, strict: bool
    ) -> list[bytes | None]:
        """Return what is kept for each key of the generation that is served.

        Raises:
            LostRowsError: `strict`, and the store has lost the view's rows or never had any.
        """
        place = self._places.get(space)
        for _ in range(_TRIES):
            if place is not None:
                rows = self._get(config, place, keys)
                if rows is not None:
                    return rows
            place = self._find(config, space, view, strict=strict)
            if place is None:
                return [None] * len(keys)
        raise StoreUnavailableError(self._describe(config), f"{view!r} changes under every read")

    def _find(self, config: RepoConfig, space: str, view: str, *, strict: bool) -> Place | None:
        head, known = self.head(config, space), self._places.get(space)
        if head is None:
            if strict:
                raise LostRowsError(self._describe(config), view)
            return None
        # What replaces a generation is filled first; one that is not stands for a loss.
        replaced = known is not None and known != head.served
        if replaced and self.progress_at(config, head.served).until is None:
            if strict:
                raise LostRowsError(self._describe(config), view)
            return head.served
        self._places[space] = head.served
        return head.served

    def _write_rows(
        self,
        config: RepoConfig,
        space: str,
        layout: Layout,
        pairs: Sequence[tuple[bytes, bytes]],
        merge: Merge,
        place: Place | None,
    ) -> int:
        """Merge values into one generation that is being filled, or into all there are."""
        if place is not None:
            return self._put(config, place, layout, pairs, merge) or 0
        changed = 0
        while True:
            head = self.open_space(config, space)
            counts = [self._put(config, one, layout, pairs, merge) for one in head.places]
            changed += counts[0] or 0
            if None not in counts and self.head(config, space) == head:
                return changed

    def _delete_rows(self, config: RepoConfig, space: str, keys: Sequence[bytes]) -> int:
        head = self.head(config, space)
        counts = [self._delete(config, place, keys) for place in head.places] if head else [0]
        return counts[0]

    def _forget(self, config: RepoConfig, spaces: Sequence[str]) -> None:
        self._drop(config, spaces)
        for space in spaces:
            self._places.pop(space, None)


def _progress(place: Place) -> str:
    return f"progress:{place.generation}"
