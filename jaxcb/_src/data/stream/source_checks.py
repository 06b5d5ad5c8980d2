"""Checks of a source beyond the form of its batches: that a resumed run gets the batches that it would have got."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxcb._src.data.inputs import as_arrays
from jaxcb._src.data.sources import Source
from jaxcb._src.data.stream.iterator_state import check_restorable
from jaxcb._src.storage.fingerprint import batch_fingerprint

_PASSES = 3  # passes whose first batches are compared: an order that changes does so in the second one


class SourceChecks:
    """Notices a source that cannot resume, or that gives other batches than it should.

    Without a state of the user's iterator, a resumed run iterates again over the batches that it has had. So a
    checkpoint contains checksums: of the batch that was trained on last, and of the first batches of two passes, if
    they differ. Only some values of a batch are read for one.

    Args:
        source: where the batches come from.
        warn: reports a difference.
        resumes: whether the run writes checkpoints.
        saved: position of the source in the checkpoint from which the run resumes; None for a new run.
    """

    def __init__(
        self,
        source: Source,
        warn: Callable[[str], None],
        *,
        resumes: bool,
        saved: Mapping[str, Any] | None = None,
    ) -> None:
        self._source, self._warn, self.resumes = source, warn, resumes
        self._worker_copies = _epoch_is_not_sent(source.data)
        saved = saved or {}
        # passes and checksums of their first batches: of pass 0, and of one that differs from it
        self._firsts: list[tuple[int, str]] = [(number, value) for number, value in saved.get("first", ())]
        self._starts_again = bool(self._firsts) and saved["pass"] > 0 and saved["batches"] == 0
        self._seen: dict[int, str] = {}  # passes that have begun in this process, and those checksums

    def get_state(self, number: int, batches: int) -> dict[str, Any]:
        """Returns what a checkpoint has to contain, as JSON, after some batches of pass `number`."""
        begun = number + (batches > 0)  # passes; the thread may have begun others in advance
        firsts = [[first, value] for first, value in self._firsts if first < begun]
        return {"first": firsts} if firsts and self.resumes else {}

    def check_first(self, number: int, batch: Any, iterator: Any, state: Mapping[str, Any]) -> None:
        """Checks the first batch of a pass, and the state of the iterator after it.

        Args:
            number: number of the pass.
            batch: the batch, as the source returns it.
            iterator: the user's iterator, if it has a state.
            state: that state, as `{"iterator": JSON}`; empty if it has none.

        Raises:
            DataError: for a state that no other process could restore.
        """
        if state:
            if self.resumes:
                check_restorable(iterator, state["iterator"], self._source.what)
            return
        # the hash of a list is part of the request; a pass may be begun again
        if self._source.per_epoch or isinstance(self._source.data, list) or number in self._seen:
            return
        if len(self._seen) == _PASSES or not (self.resumes or self._worker_copies):
            return
        found = self._checksum_of(batch)
        if found is None:
            return
        if self._worker_copies and self._seen.get(number - 1) == found:
            self._worker_copies = False  # said once
            self._warn(
                f"{self._source.what}: set_epoch of the loader's dataset has no effect: "
                f"{self._source.describe(number)} begins with the batches of the pass before it. With "
                "persistent_workers=True each worker keeps the copy of the dataset that it began with. Pass "
                "persistent_workers=False, or keep the epoch in shared memory: in the dataset, "
                "self.epoch = torch.tensor(0).share_memory_(), and self.epoch.fill_(epoch) in set_epoch."
            )
        self._compare_passes(number, found)
        self._seen[number] = found

    def tell_of_lost_state(self, why: str) -> None:
        """Says that a checkpoint does not contain the state of the user's iterator."""
        if self.resumes:
            self._warn(
                f"{self._source.what}: {why}. A resumed run iterates over its batches again, from their start up to "
                "its position. A state of JSON values, bytes, tuples and NumPy arrays can be saved."
            )

    def check_replayed(self, what: str, batches: int, batch: Any, state: Mapping[str, Any]) -> None:
        """Compares a batch that was skipped last with the one that was trained on last.

        Args:
            what: name of the pass.
            batches: number of the batch.
            batch: as the source returns it.
            state: the position in the checkpoint.
        """
        expected = state.get("checksum")
        if expected is None or self._checksum_of(batch) in (None, expected):
            return
        self._starts_again = False
        self._warn(
            f"{what}: batch {batches} is not the batch that the run was trained on before it was resumed. The data "
            "comes in another order, or has changed: some rows are used twice in this epoch, and others not at all. "
            f"{_cure(self._source.data)}"
        )

    def _compare_passes(self, number: int, found: str) -> None:
        """Compares the first batch of a pass with those of the passes before the run was resumed."""
        if self._starts_again and len(self._firsts) > 1 and found == self._firsts[0][1]:
            self._warn(
                f"{self._source.describe(number)} begins with the batch of pass 1, and before the run was resumed each "
                "pass had an order of its own: the orders start again. "
                f"{_cure(self._source.data)}"
            )
        self._starts_again = False
        if not self._firsts and number == 0:
            self._firsts = [(0, found)]
        elif len(self._firsts) == 1 and found != self._firsts[0][1]:
            self._firsts = [*self._firsts, (number, found)]

    def _checksum_of(self, batch: Any) -> str | None:
        try:
            arrays, _ = as_arrays(batch, self._source.what)
        except Exception:  # invalid batches are refused where they are used
            return None
        return batch_fingerprint(jax.tree.leaves(arrays))


def _epoch_is_not_sent(data: Any) -> bool:
    """Returns whether a PyTorch loader keeps its workers, which may not learn of a `set_epoch` of its dataset."""
    dataset = getattr(data, "dataset", None)
    keeps = bool(getattr(data, "persistent_workers", False)) and getattr(data, "num_workers", 0) > 0
    # the data sets of Hugging Face share the number of the epoch with their workers
    return keeps and callable(getattr(dataset, "set_epoch", None)) and "datasets" not in _libraries(dataset)


def _cure(data: Any) -> str:
    """Returns what to do about an order that cannot be repeated."""
    if "torch" in _libraries(data):
        return (
            "Make the order a function of the epoch: sampler=torch.utils.data.DistributedSampler(dataset, "
            "num_replicas=1, rank=0), or train_data=lambda epoch, controls: torch.utils.data.DataLoader(dataset, "
            "shuffle=True, generator=torch.Generator().manual_seed(epoch), ...)."
        )
    if "tensorflow" in _libraries(data):
        return (
            "Make the order a function of the epoch: train_data=lambda epoch, controls: "
            "dataset.shuffle(size, seed=epoch).batch(n), with deterministic operations only."
        )
    return (
        "Make the order a function of the epoch: a set_epoch method, or train_data=lambda epoch, controls: ...; or "
        "give the iterator get_state and set_state."
    )


def _libraries(data: Any) -> set[str]:
    return {cls.__module__.partition(".")[0] for cls in type(data).__mro__}
