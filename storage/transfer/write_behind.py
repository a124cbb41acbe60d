"""Write-behind: the queue of dirty pages and the one thread that writes them.

A page's way to disk

    sealed, dirty --enqueue--> queued --writer takes bundles--> in flight --commit--> stored (clean)
                                                                    |
                                                                    +-- full or failing --> waits for a probe

Invariants  (1) a page is `stored` only after the transaction that holds it committed
            (2) a queued or in-flight page stays where it is in host memory: only stored pages are evicted there
            (3) while the disk takes no writes (`disk_error`), the queue is empty. The writer looks every few seconds
                whether it does again, and whoever needs it looks at once; then all that memory alone holds is queued
Threads     the writer takes bundles and marks them under the lock, and encodes and commits without it.
            Whatever stops it is kept in `disk_error` and told to whoever waits.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

import numpy as np

from ..codecs.compression import Compression
from ..disk import record
from ..disk.disk_tier import DiskTier
from ..errors import StorageError, StorageFullError
from ..memory.arena import NO_PAGE
from ..memory.residency import Residency
from ..page import CHAIN_BYTES, ROOT, next_chain

logger = logging.getLogger(__name__)

_BUNDLE_BYTES = 4 << 20
_SWEPT_SHARE = 16
"""A sweep of a full disk tier frees 1 / `_SWEPT_SHARE` of its cap, and a bundle is at most as large: LMDB writes a
changed tree page anew before the old one is free."""
_RETRY_S = 10.0
"""Seconds after a failed write until the writer looks whether the disk takes writes again."""


class WriteBehind:
    """Owns the writer thread.

    Args:
        disk: None: pages stay in host memory and nothing is ever queued.
        compression: asked before every page; it may be another one each time.
    """

    def __init__(self, residency: Residency, disk: DiskTier | None, compression: Callable[[], Compression]) -> None:
        self.disk = disk
        self.disk_error: StorageFullError | None = None
        """The reason why the disk tier takes no writes at the moment; None if it takes them. Pages then stay in host
        memory."""
        self.chains_to_keep: Callable[[], set[bytes]] | None = None
        """Returns the chains that sessions still need when room is made on disk; None: never sweep. It raises
        UnknownPagesError where that is not known."""
        self._residency, self._compression = residency, compression
        self._table, self._lock = residency.table, residency.lock
        self._queue: deque[int] = deque()
        self._in_flight = 0
        self._has_told = False
        self._closed = False
        self._writer = threading.Thread(target=self._write_behind, name="stratakv-writer", daemon=True)
        if disk is not None:
            self._writer.start()

    @property
    def is_busy(self) -> bool:
        """True if queued pages will become clean without anybody's doing."""
        return self.disk is not None and not self.disk_error and bool(self._queue or self._in_flight)

    @property
    def will_store(self) -> bool:
        """True if dirty pages get to disk sooner or later."""
        return self.disk is not None and not self.disk_error

    def enqueue(self, pid: int) -> None:
        if self.will_store:
            self._queue.append(pid)
            self._lock.notify_all()

    def is_queued(self, pid: int) -> bool:
        return pid in self._queue

    @property
    def is_encoding(self) -> bool:
        """True while pages in flight are being read from host memory, without the lock."""
        return self._in_flight > 0

    def flush(self) -> None:
        """Wait until every sealed page is durable. Raises StorageFullError if that cannot be."""
        with self._lock:
            if self.disk_error:
                self.try_disk_again()
            while (self._queue or self._in_flight) and not self.disk_error:
                self._lock.wait()
            if self.disk_error:
                raise self.disk_error

    def close(self) -> None:
        """Write what is queued and stop the writer."""
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        if self.disk is not None:
            self._writer.join()

    def _write_behind(self) -> None:
        while (pids := self._next_bundle()) is not None:
            if not pids:
                error = self._probe()
                with self._lock:
                    self._probed(error)
                continue
            done = self._try_write(pids)
            with self._lock:
                self._in_flight = 0
                if not isinstance(done, StorageFullError):
                    self._wrote(np.array(pids), done)
                else:
                    self.disk_error = done
                    self._queue.clear()
                    self._residency.forget_unbacked()
                    logger.warning("pages stay in host memory: %s", done)
                self._lock.notify_all()

    def _wrote(self, pids: np.ndarray, taken: set[bytes]) -> None:
        """Mark pages as stored, except those whose keys a later version's records have `taken`."""
        out = np.array([self._table.keys[pid] in taken for pid in pids.tolist()], dtype=bool)
        self._table.stored[pids[~out]] = True
        self._residency.counters.pages_written += int((~out).sum())
        if out.any():
            assert self.disk is not None
            if not self._has_told:
                logger.warning(
                    "%s has pages that a later version of stratakv wrote; they stay as they are, and what is read here "
                    "in their place is in host memory only", self.disk.folder,
                )  # fmt: skip
            self._has_told = True
        self._table.kept_out[pids] = out
        self._residency.forget_unbacked(pids[out])

    def _next_bundle(self) -> list[int] | None:
        """Wait for pages to write and return their ids; an empty list when it is time to look whether the disk takes
        writes again; None when closed."""
        bundle_pages = max(1, self._bundle_bytes // self._residency.host.page_bytes)
        with self._lock:
            while not self._queue and not self._closed:
                if not self._lock.wait(_RETRY_S if self.disk_error else None) and self.disk_error:
                    return []
            if not self._queue:
                return None
            pids = [self._queue.popleft() for _ in range(min(bundle_pages, len(self._queue)))]
            self._in_flight = len(pids)
            return pids

    @property
    def _bundle_bytes(self) -> int:
        assert self.disk is not None
        return min(_BUNDLE_BYTES, self.disk.cap_bytes // _SWEPT_SHARE)

    def _probe(self) -> StorageFullError | None:
        assert self.disk is not None
        try:
            self.disk.probe(self._bundle_bytes)
        except StorageFullError as error:
            return error
        return None

    def _probed(self, error: StorageFullError | None) -> None:
        """Note the result of a probe after a failure. If the disk takes writes again, queue what only memory holds."""
        if self.disk_error is None:
            return
        self.disk_error = error
        if error is None:
            pids = self._residency.host.page[self._residency.host.page != NO_PAGE]
            waiting = pids[~self._table.stored[pids]].tolist()
            logger.warning("the disk tier takes writes again; %d pages are queued", len(waiting))
            for pid in waiting:
                self.enqueue(pid)

    def try_disk_again(self) -> None:
        """Make room now, since somebody needs the disk, and look whether it takes writes."""
        assert self.disk_error is not None
        try:
            if self.disk_error.is_at_cap:
                self.make_room(self._bundle_bytes)
        except StorageError as error:
            self._probed(error if isinstance(error, StorageFullError) else StorageFullError(str(error)))
        else:
            self._probed(self._probe())

    def _try_write(self, pids: list[int]) -> set[bytes] | StorageFullError:
        """Write pages, as `DiskTier.write_pages`. An error that stops it is returned, for whoever waits."""
        assert self.disk is not None
        try:
            records = [(self._table.keys[pid], self._pack(pid)) for pid in pids]
            needed = sum(len(packed) for _, packed in records)
            while True:
                try:
                    taken = self.disk.write_pages(records) or set()
                    break
                except StorageFullError as error:
                    if not (error.is_at_cap and self.make_room(needed)):
                        raise
        except StorageFullError as error:
            return error
        except Exception as error:  # callers wait for this thread: whatever stops it is told to them
            return StorageFullError(f"writing pages stopped: {error!r}")
        self._residency.counters.host_to_disk_bytes += needed
        return taken

    def _pack(self, pid: int) -> bytes:
        assert self.disk is not None
        raw = self._residency.host.data[int(self._table.host_slot[pid])].numpy()
        key, tokens = self._table.keys[pid], self._table.tokens[pid]
        codec = self._compression().codec_for(key, raw, is_first=key[-CHAIN_BYTES:] == next_chain(ROOT, tokens))
        return record.pack(
            record.PAGE,
            self.disk.fingerprint,
            key,
            codec.encode(raw),
            codec=codec.code,
            raw_bytes=raw.nbytes,
            tokens=tokens,
        )

    def make_room(self, needed: int) -> int:
        """Make room on disk: remove the least recently used records that neither a process nor a session needs. Frees a
        good deal more than `needed` bytes, since looking for such records reads every key. Returns how many were
        removed."""
        if self.chains_to_keep is None or self.disk is None:
            return 0
        kept = self.chains_to_keep()
        with self._lock:  # no page may gain its first reference while its record is deleted
            kept |= self._residency.counted
            kept |= {key[-CHAIN_BYTES:] for key, pid in self._table.pids.items() if self._table.refs[pid] > 0}
            room = max(2 * needed, self.disk.cap_bytes // _SWEPT_SHARE)
            removed = self.disk.sweep(lambda key: key[-CHAIN_BYTES:] in kept, room)
            for key, pid in list(self._table.pids.items()):
                if self._table.stored[pid] and not self._table.refs[pid] and not self.disk.contains(key):
                    self._residency.forget(pid)
        return removed
