"""Write-behind: the queue of dirty pages and the one thread that writes them.

A page's way to disk

    sealed, dirty --enqueue--> queued --writer takes a batch--> in flight --commit--> stored (clean)
                                                                    |
                                                                    +-- disk full, nothing to sweep --> given up

Invariants  (1) a page is `stored` only after the transaction that holds it committed
            (2) a queued or in-flight page stays where it is in host memory: only stored pages are evicted there
            (3) once the disk is given up (`disk_error`), the queue is empty and stays so
Threads     the writer takes batches and marks them under the lock, and encodes and commits without it.
            Whatever stops it is kept in `disk_error` and told to whoever waits.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from . import record
from .compression import Compression
from .disk_tier import DiskTier
from .errors import StorageFullError
from .page import CHAIN_BYTES
from .residency import Residency

logger = logging.getLogger(__name__)

_BATCH_BYTES = 4 << 20


class WriteBehind:
    """Owns the writer thread.

    Args:
        disk: None: pages stay in host memory and nothing is ever queued.
        compression: asked before every page; it may be another one each time.
    """

    def __init__(self, residency: Residency, disk: DiskTier | None, compression: Callable[[], Compression]) -> None:
        self.disk = disk
        self.disk_error: StorageFullError | None = None
        """Why the disk tier was given up; pages then stay in host memory."""
        self.chains_to_keep: Callable[[], set[bytes]] | None = None
        """Which chains sessions still need when room is made on disk; None: never sweep."""
        self._residency, self._compression = residency, compression
        self._table, self._lock = residency.table, residency.lock
        self._queue: deque[int] = deque()
        self._in_flight = 0
        self._closed = False
        self._writer = threading.Thread(target=self._write_behind, name="stratakv-writer", daemon=True)
        if disk is not None:
            self._writer.start()

    @property
    def is_busy(self) -> bool:
        """Pages will become clean without anybody's doing."""
        return self.disk is not None and not self.disk_error and bool(self._queue or self._in_flight)

    @property
    def will_store(self) -> bool:
        """Dirty pages get to disk sooner or later."""
        return self.disk is not None and not self.disk_error

    def enqueue(self, pid: int) -> None:
        if self.will_store:
            self._queue.append(pid)
            self._lock.notify_all()

    def is_queued(self, pid: int) -> bool:
        return pid in self._queue

    @property
    def is_encoding(self) -> bool:
        """Pages in flight are being read from host memory, without the lock."""
        return self._in_flight > 0

    def flush(self) -> None:
        """Wait until every sealed page is durable. Raises StorageFullError if that cannot be."""
        with self._lock:
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
        batch_pages = max(1, _BATCH_BYTES // self._residency.host.page_bytes)
        while True:
            with self._lock:
                while not self._queue and not self._closed:
                    self._lock.wait()
                if not self._queue:
                    return
                pids = [self._queue.popleft() for _ in range(min(batch_pages, len(self._queue)))]
                self._in_flight = len(pids)
            error = self._try_write(pids)
            with self._lock:
                self._in_flight = 0
                if error is None:
                    self._table.stored[pids] = True
                    self._residency.counters.pages_written += len(pids)
                else:
                    self.disk_error = error
                    self._queue.clear()
                    self._residency.forget_unbacked()
                    logger.warning("pages stay in host memory: %s", error)
                self._lock.notify_all()

    def _try_write(self, pids: list[int]) -> StorageFullError | None:
        assert self.disk is not None
        try:
            records = [(self._table.keys[pid], self._pack(pid)) for pid in pids]
            try:
                self.disk.write_pages(records)
            except StorageFullError:
                if not self._sweep():
                    raise
                self.disk.write_pages(records)
        except StorageFullError as error:
            return error
        except Exception as error:  # callers wait for this thread: whatever stops it is told to them
            return StorageFullError(f"writing pages stopped: {error!r}")
        self._residency.counters.host_to_disk_bytes += sum(len(packed) for _, packed in records)
        return None

    def _pack(self, pid: int) -> bytes:
        assert self.disk is not None
        raw = self._residency.host.data[int(self._table.host_slot[pid])].numpy()
        key = self._table.keys[pid]
        codec = self._compression().codec_for(key, raw)
        return record.pack(
            record.PAGE,
            self.disk.fingerprint,
            key,
            codec.encode(raw),
            codec=codec.code,
            raw_bytes=raw.nbytes,
            tokens=self._table.tokens[pid],
        )

    def _sweep(self) -> int:
        """Make room on disk: drop records that neither this process nor a session refers to."""
        if self.chains_to_keep is None or self.disk is None:
            return 0
        kept = self.chains_to_keep()
        with self._lock:  # no page may gain its first reference while its record is deleted
            table = self._table
            kept |= {key[-CHAIN_BYTES:] for key, pid in table.pids.items() if table.refs[pid] > 0}
            removed = self.disk.sweep(lambda key: key[-CHAIN_BYTES:] in kept)
            for key, pid in list(table.pids.items()):
                if table.stored[pid] and not table.refs[pid] and not self.disk.contains(key):
                    self._residency.forget(pid)
        return removed
