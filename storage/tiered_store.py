"""The tiered store: pages in GPU memory, host memory and on disk behind one page id.

A page enters sealed (`put`, `seal`), gets a page id, and from then on is somewhere. `gather` copies
the wanted parts of pages into the caller's buffer from wherever they are, and moves pages up as it
goes. Attention, heads and sequences are unknown here: a page is bytes made of equal parts.

Invariants  (1) a page with references is in host memory, or stored on disk, or both
            (2) host evicts only pages whose disk record is committed; gpu copies are always spare
            (3) no tier holds a byte above its cap: slots are counted before they are handed out
            (4) reads return exactly the bytes that were put, or raise CorruptPageError. The codec `adaptive`
                gives this up for the share of pages that it writes as int4: such a page is exact until it
                has left memory and approximate when it comes back, so results depend on what was spilled.
                What came back is never encoded again: errors do not add up
Life of a page   open (a filling slot) -> sealed, dirty in host -> written behind by the one writer
                 thread -> clean: may leave host memory -> back on demand, up to the gpu pool
Threads     one caller thread plus the writer; all bookkeeping under one lock. The writer encodes
            outside the lock: a dirty page can neither move nor be evicted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from . import record
from .arena import NO_PAGE, Arena
from .compression import Compression, make_compression
from .counters import Counters
from .disk_tier import DiskTier
from .errors import CapacityError, ClosedError, CorruptPageError, StorageError, StorageFullError
from .page import CHAIN_BYTES, PageLayout, page_key
from .page_table import NO_SLOT, PageTable

logger = logging.getLogger(__name__)

_BATCH_BYTES = 4 << 20
_SWEPT_SHARE = 16
"""A sweep of a full disk tier makes room for this part of its cap, and a batch is at most as large: LMDB writes
a changed tree page anew before the old one is free."""
_RETRY_S = 10.0
"""After a write that failed, how long until the writer looks whether the disk takes writes again."""


@dataclass(slots=True)
class OpenPage:
    """A page being filled: `bytes` is its slot's memory, uint8 `[page_bytes]`, writable until sealed."""

    layer: int
    slot: int
    bytes: torch.Tensor


class TieredStore:
    """Pages over up to three tiers.

    Args:
        layout: shape of a page; the store itself uses only its bytes and tokens, codecs the rest.
        num_layers: how many layers share the tiers; each has an even share (see `Arena.victims`).
        host: the host tier. Without `gpu` it is also where attention reads.
        gpu: the device pool, or None.
        disk: the disk tier, or None (then nothing can leave host memory).
        codec: how pages are encoded on the disk edge: `zstd` or `raw`, which are lossless, or `adaptive`, which
            is not (see `compression`).
    """

    def __init__(
        self,
        layout: PageLayout,
        num_layers: int,
        *,
        host: Arena,
        gpu: Arena | None = None,
        disk: DiskTier | None = None,
        codec: str = "zstd",
    ) -> None:
        self.layout = layout
        self.num_layers = num_layers
        self.host, self.gpu, self.disk = host, gpu, disk
        self.counters = Counters()
        self._pids: dict[bytes, int] = {}
        self._keys: list[bytes] = []
        self._free_pids: list[int] = []
        self._table = PageTable(layout.page_size)
        self._clock = 0
        self._lock = threading.Condition(threading.RLock())
        self.compression: Compression = make_compression(codec, layout)
        self._queue: deque[int] = deque()
        self._in_flight = 0
        self._closed = False
        self.disk_error: StorageFullError | None = None
        """Why the disk tier takes no writes at the moment; pages then stay in host memory."""
        self.chains_to_keep: Callable[[], set[bytes]] | None = None
        """Which chains sessions still need when room is made on disk; None: never sweep."""
        self._counted: set[bytes] = set()
        """What `num_known` last counted. It stays until it is asked again: the caller is about to adopt it."""
        self._writer = threading.Thread(target=self._write_behind, name="stratakv-writer", daemon=True)
        if disk is not None:
            self._writer.start()

    # Pages in

    @property
    def compute(self) -> Arena:
        """The tier attention reads from and open pages live in."""
        return self.gpu if self.gpu is not None else self.host

    def open_page(self, layer: int) -> OpenPage:
        """A fresh page to fill. Raises CapacityError."""
        with self._lock:
            self._require_open()
            slot = int(self._room(self.compute, 1, layer)[0])
        return OpenPage(layer, slot, self.compute.data[slot])

    def discard(self, page: OpenPage) -> None:
        """Give an open page back unsealed."""
        with self._lock:
            self.compute.free(np.array([page.slot]))

    def seal(self, page: OpenPage, chain: bytes, tokens: np.ndarray) -> int:
        """An open page is full: name it, keep it, queue it for disk. Returns its page id."""
        with self._lock:
            self._require_open()
            known = self._share(page_key(page.layer, chain), tokens)
            slot = np.array([page.slot])
            if known is not None:
                self.compute.free(slot)
                return known
            host_slot = self._room(self.host, 1, page.layer) if self.gpu is not None else slot
            pid = self._new_pid(page.layer, chain, tokens)
            if self.gpu is not None:
                self.host.data[int(host_slot[0])].copy_(page.bytes)
                self.counters.gpu_to_host_bytes += self.layout.page_bytes
                self.gpu.settle(slot, np.array([pid]), self._clock)
                self._table.gpu_slot[pid] = page.slot
            self._settle_host(host_slot, np.array([pid]))
            return pid

    def put(self, layer: int, chains: Sequence[bytes], tokens: np.ndarray, data: torch.Tensor) -> np.ndarray:
        """Keep sealed pages of one layer; returns their page ids, each with one reference.

        Pages that are already in memory under the same key are shared, not copied.

        Args:
            chains: chain hash per page. tokens: uint32 `[n, L]`.
            data: `[n, page_bytes]` bytes on any device.

        Raises:
            CapacityError: the host tier is full of pages that may not leave it; none is kept.
        """
        pids = np.empty(len(chains), dtype=np.int64)
        done = 0
        with self._lock:
            self._require_open()
            while done < len(chains):
                known = self._share(page_key(layer, chains[done]), tokens[done])
                if known is not None:
                    pids[done] = known
                    done += 1
                    continue
                run = done + 1
                while run < len(chains) and page_key(layer, chains[run]) not in self._pids:
                    run += 1
                try:
                    slots = self._room(self.host, run - done, layer)
                except CapacityError:
                    self.release(pids[:done])
                    raise
                stop = done + len(slots)
                fresh = [self._new_pid(layer, chains[i], tokens[i]) for i in range(done, stop)]
                self.host.data[torch.from_numpy(slots)] = data[done:stop].to(self.host.data.device)
                if data.is_cuda:
                    self.counters.gpu_to_host_bytes += len(slots) * self.layout.page_bytes
                self._settle_host(slots, np.array(fresh))
                pids[done:stop] = fresh
                done = stop
        return pids

    def replace(self, pid: int, data: torch.Tensor) -> None:
        """Overwrite a damaged page with recomputed bytes (uint8 `[page_bytes]`) and store it again."""
        with self._lock:
            self._require_open()
            while self._in_flight:  # the page may be among those being encoded
                self._lock.wait()
            slot = int(self._table.host_slot[pid])
            if slot == NO_SLOT:
                slots = self._room(self.host, 1, int(self._table.layer[pid]))
                slot = int(slots[0])
                self.host.settle(slots, np.array([pid]), self._clock)
                self._table.host_slot[pid] = slot
            self.host.data[slot].copy_(data)
            gpu_slot = int(self._table.gpu_slot[pid])
            if gpu_slot != NO_SLOT:
                self._drop_gpu(np.array([gpu_slot]))
            self._table.stored[pid] = False
            self.counters.pages_recomputed += 1
            if pid not in self._queue:
                self._enqueue(pid)

    def describe(self, pid: int) -> tuple[np.ndarray, str]:
        """A page's token ids (uint32 `[L]`) and its key in hexadecimal."""
        return self._table.tokens[pid].copy(), self._keys[pid].hex()

    def delete_damaged(self, pids: list[int]) -> str:
        """Remove damaged records from disk, so that no later prefix finds them; returns their names."""
        assert self.disk is not None
        keys = [self._keys[pid] for pid in pids]
        self.disk.delete_pages(keys)
        return ", ".join(key.hex() for key in keys)

    # Sharing

    def num_known(self, chains: list[bytes], layers: Sequence[int]) -> int:
        """How many leading `chains` exist, in memory or on disk, in every one of `layers`. They stay until the next
        call."""
        with self._lock:
            self._require_open()
            count = self._num_known(chains, layers)
            self._counted = set(chains[:count])
            return count

    def _num_known(self, chains: list[bytes], layers: Sequence[int]) -> int:
        in_memory = 0
        for chain in chains:
            if not all(page_key(layer, chain) in self._pids for layer in layers):
                break
            in_memory += 1
        if self.disk is None:
            return in_memory
        self.disk.used(chains[:in_memory])
        if in_memory == len(chains):
            return in_memory
        rest = chains[in_memory:]
        missing = lambda chain: (  # noqa: E731
            key for layer in layers if (key := page_key(layer, chain)) not in self._pids
        )
        return in_memory + self.disk.num_leading(rest, missing)

    def adopt(self, layer: int, chains: Sequence[bytes], tokens: np.ndarray) -> np.ndarray:
        """Page ids for pages that `num_known` counted, one reference each. Moves no bytes."""
        with self._lock:
            self._require_open()
            pids = []
            for chain, ids in zip(chains, tokens, strict=True):
                pid = self._share(page_key(layer, chain), ids)
                if pid is None:
                    pid = self._new_pid(layer, chain, ids)
                    self._table.stored[pid] = True
                pids.append(pid)
            return np.array(pids, dtype=np.int64)

    def retain(self, pids: np.ndarray) -> None:
        with self._lock:
            np.add.at(self._table.refs, pids, 1)

    def release(self, pids: np.ndarray) -> None:
        """Drop one reference each. Unreferenced pages stay as cache until their room is needed."""
        with self._lock:
            np.subtract.at(self._table.refs, pids, 1)
            assert (self._table.refs[pids] >= 0).all(), "a page was released twice"
            for pid in np.unique(pids[self._table.refs[pids] == 0]).tolist():
                unbacked = self.disk is None or (self.disk_error and not self._table.stored[pid])
                if unbacked or not self.is_resident(np.array([pid]))[0]:
                    self._forget(pid)

    # Pages out

    def gather(
        self, pids: np.ndarray, pages: np.ndarray, parts_of: np.ndarray, parts: int, out: torch.Tensor,
        *, promote: bool = True,
    ) -> None:  # fmt: skip
        """`out[i] = part parts_of[i] of page pids[pages[i]]`, from wherever each page is.

        Args:
            pids: distinct page ids `[p]`.
            pages, parts_of: int64 `[m]`: which of `pids`, and which of its `parts` equal parts.
            out: contiguous `[m, page_bytes / parts / itemsize]`, on any device.
            promote: also copy pages into the gpu pool, as far as it has room. Otherwise nothing but the
                asked parts leaves host memory.

        Raises:
            CorruptPageError: pages on disk failed verification; `out` is then unspecified.
        """
        with self._lock:
            self._require_open()
            self._clock += 1
            spill = self._load(pids)
            if self.gpu is not None and promote:
                self._promote(pids)
            self._copy_rows(pids, pages, parts_of, parts, out, spill)

    def is_resident(self, pids: np.ndarray) -> np.ndarray:
        """Which pages need no disk read now, bool `[p]`."""
        resident: np.ndarray = (self._table.host_slot[pids] >= 0) | (self._table.gpu_slot[pids] >= 0)
        return resident

    def _load(self, pids: np.ndarray) -> dict[int, torch.Tensor]:
        """Bring pages up from disk. Those the host has no room for are returned, by page id."""
        table, counters = self._table, self.counters
        on_gpu = table.gpu_slot[pids] >= 0
        on_host = ~on_gpu & (table.host_slot[pids] >= 0)
        missing = pids[~on_gpu & ~on_host]
        counters.gpu_reads += int(on_gpu.sum())
        counters.host_reads += int(on_host.sum())
        self._touch(pids)
        if not len(missing):
            return {}
        assert self.disk is not None, "a page is in no tier"
        started = time.perf_counter()
        counters.disk_reads += len(missing)
        counters.disk_to_host_bytes += len(missing) * self.layout.page_bytes
        layer = int(table.layer[missing[0]])
        held = table.host_slot[pids[on_host]]
        self.host.leases[held] += 1
        slots = self._take_or_evict(self.host, len(missing), layer)
        self.host.leases[held] -= 1
        spill = {int(pid): torch.empty(self.layout.page_bytes, dtype=torch.uint8) for pid in missing[len(slots) :]}
        host = self.host.data.numpy()

        def buffer(i: int) -> np.ndarray:
            return host[slots[i]] if i < len(slots) else spill[int(missing[i])].numpy()

        keys = [self._keys[pid] for pid in missing.tolist()]
        with self.compression.reading():
            failures = self.disk.read_pages(keys, table.tokens[missing], buffer, self.compression.readers)
        good = np.array([i for i in range(len(slots)) if i not in failures], dtype=np.int64)
        self.host.settle(slots[good], missing[good], self._clock)
        table.host_slot[missing[good]] = slots[good]
        self.host.free(np.delete(slots, good))
        counters.stall_s += time.perf_counter() - started
        if failures:
            self._report(missing, failures)
        return spill

    def _report(self, pids: np.ndarray, failures: dict[int, str]) -> None:
        named = [f"{self._keys[pids[i]].hex()}: {why}" for i, why in failures.items()]
        raise CorruptPageError(
            f"{len(named)} stored page(s) cannot be used ({'; '.join(named[:3])})",
            [int(pids[i]) for i in failures],
        )

    def _promote(self, pids: np.ndarray) -> None:
        """Copy host pages into the gpu pool, as far as it has room beside what this call reads."""
        gpu, table = self.gpu, self._table
        assert gpu is not None
        wanted = pids[(table.gpu_slot[pids] < 0) & (table.host_slot[pids] >= 0)]
        if not len(wanted):
            return
        held = table.gpu_slot[pids]
        held = held[held >= 0]
        gpu.leases[held] += 1
        slots = self._take_or_evict(gpu, len(wanted), int(table.layer[wanted[0]]))
        gpu.leases[held] -= 1
        wanted = wanted[: len(slots)]
        if not len(wanted):
            return
        source = self.host.data[torch.from_numpy(table.host_slot[wanted])]
        gpu.data[torch.from_numpy(slots).to(gpu.data.device)] = source.to(gpu.data.device)
        gpu.settle(slots, wanted, self._clock)
        table.gpu_slot[wanted] = slots
        self.counters.host_to_gpu_bytes += len(wanted) * self.layout.page_bytes

    def _copy_rows(
        self,
        pids: np.ndarray,
        pages: np.ndarray,
        parts_of: np.ndarray,
        parts: int,
        out: torch.Tensor,
        spill: dict[int, torch.Tensor],
    ) -> None:
        pending = np.ones(len(pages), dtype=bool)
        tiers = [(self.gpu, self._table.gpu_slot)] if self.gpu is not None else []
        for arena, slot_of in [*tiers, (self.host, self._table.host_slot)]:
            slots = slot_of[pids][pages]
            here = pending & (slots >= 0)
            if not here.any():
                continue
            rows = torch.from_numpy(slots[here] * parts + parts_of[here]).to(arena.data.device)
            source = arena.rows(parts).view(out.dtype)
            if here.all():
                if source.device == out.device:
                    torch.index_select(source, 0, rows, out=out)
                else:
                    out.copy_(source.index_select(0, rows))
                self._count_streamed(arena, out)
                return
            found = source.index_select(0, rows)
            self._count_streamed(arena, found)
            out[torch.from_numpy(here).to(out.device)] = found.to(out.device)
            pending &= ~here
        for i in np.flatnonzero(pending).tolist():
            page = spill[int(pids[pages[i]])]
            out[i] = page.view(parts, -1)[parts_of[i]].view(out.dtype).to(out.device)

    def _count_streamed(self, arena: Arena, moved: torch.Tensor) -> None:
        if self.gpu is not None and arena is self.host:
            self.counters.host_to_gpu_bytes += moved.nbytes

    def _touch(self, pids: np.ndarray) -> None:
        for arena, slot_of in ((self.gpu, self._table.gpu_slot), (self.host, self._table.host_slot)):
            if arena is not None:
                slots = slot_of[pids]
                arena.last_use[slots[slots >= 0]] = self._clock

    # Room

    def _room(self, arena: Arena, count: int, layer: int) -> np.ndarray:
        """1 to `count` slots, waiting for the writer if every page is still dirty."""
        started, tried = time.perf_counter(), False
        while not len(slots := self._take_or_evict(arena, count, layer, force=True)):
            if self.disk_error and not tried:
                tried = True
                self._try_disk_again()
                continue
            if self.disk is None or self.disk_error or not (self._queue or self._in_flight):
                raise CapacityError(self._full_message(arena))
            self._lock.wait()
            self.counters.stall_s += time.perf_counter() - started
            started = time.perf_counter()
        return slots

    def _full_message(self, arena: Arena) -> str:
        knob = "--gpu-kv-gb" if arena is self.gpu else "--host-kv-gb"
        reason = f"; {self.disk_error}" if self.disk_error else ""
        return (
            f"the {arena.name} tier is full: {arena.num_slots} pages of {arena.page_bytes} bytes "
            f"under a cap of {arena.cap_bytes}, none of which may leave it; raise {knob}{reason}"
        )

    def _take_or_evict(self, arena: Arena, count: int, layer: int, *, force: bool = False) -> np.ndarray:
        slots = arena.take(count, layer)
        if len(slots) == count:
            return slots
        evictable = self._table.stored[arena.page] if arena is self.host else np.True_
        evictable = np.broadcast_to(evictable, arena.num_slots)
        victims = arena.victims(count - len(slots), evictable, layer, self.num_layers, force=force)
        if len(victims):
            (self._drop_gpu if arena is self.gpu else self._drop_host)(victims)
            slots = np.concatenate([slots, arena.take(len(victims), layer)])
        return slots

    def _drop_gpu(self, slots: np.ndarray) -> None:
        assert self.gpu is not None
        pids = self.gpu.page[slots]
        self._table.gpu_slot[pids] = NO_SLOT
        self.gpu.free(slots)
        for pid in pids[(self._table.refs[pids] == 0) & (self._table.host_slot[pids] == NO_SLOT)].tolist():
            self._forget(pid)

    def _drop_host(self, slots: np.ndarray) -> None:
        pids = self.host.page[slots]
        assert self._table.stored[pids].all(), "evicting a page that is not on disk"
        self._table.host_slot[pids] = NO_SLOT
        self.host.free(slots)
        for pid in pids[self._table.refs[pids] == 0].tolist():
            self._forget(pid)

    def _settle_host(self, slots: np.ndarray, pids: np.ndarray) -> None:
        self.host.settle(slots, pids, self._clock)
        self._table.host_slot[pids] = slots
        for pid in pids.tolist():
            self._enqueue(pid)

    # Page ids

    def _share(self, key: bytes, tokens: np.ndarray) -> int | None:
        pid = self._pids.get(key)
        if pid is None or not np.array_equal(self._table.tokens[pid], tokens):
            return None
        self._table.refs[pid] += 1
        self.counters.pages_shared += 1
        return pid

    def _new_pid(self, layer: int, chain: bytes, tokens: np.ndarray) -> int:
        key = page_key(layer, chain)
        if self._free_pids:
            pid = self._free_pids.pop()
            self._keys[pid] = key
        else:
            pid = len(self._keys)
            self._keys.append(key)
        self._table.reset(pid, layer, tokens)
        self._pids[key] = pid
        return pid

    def _forget(self, pid: int) -> None:
        """Nobody refers to the page: drop its copies in memory and recycle its id."""
        for arena, slot_of in ((self.gpu, self._table.gpu_slot), (self.host, self._table.host_slot)):
            slot = slot_of[pid]
            if arena is not None and slot >= 0:
                arena.free(np.array([slot]))
            slot_of[pid] = NO_SLOT
        if self._pids.get(self._keys[pid]) == pid:
            del self._pids[self._keys[pid]]
        self._free_pids.append(pid)

    # Write-behind

    def _enqueue(self, pid: int) -> None:
        if self.disk is not None and self.disk_error is None:
            self._queue.append(pid)
            self._lock.notify_all()

    def _write_behind(self) -> None:
        while (pids := self._next_batch()) is not None:
            if not pids:
                error = self._probe()
                with self._lock:
                    self._probed(error)
                continue
            error = self._try_write(pids)
            with self._lock:
                self._in_flight = 0
                if error is None:
                    self._table.stored[pids] = True
                    self.counters.pages_written += len(pids)
                else:
                    self.disk_error = error
                    self._queue.clear()
                    self._forget_unbacked()
                    logger.warning("pages stay in host memory: %s", error)
                self._lock.notify_all()

    def _next_batch(self) -> list[int] | None:
        """Pages to write; none: it is time to see whether the disk takes writes again; None: closed."""
        batch_pages = max(1, self._batch_bytes // self.layout.page_bytes)
        with self._lock:
            while not self._queue and not self._closed:
                if not self._lock.wait(_RETRY_S if self.disk_error else None) and self.disk_error:
                    return []
            if not self._queue:
                return None
            pids = [self._queue.popleft() for _ in range(min(batch_pages, len(self._queue)))]
            self._in_flight = len(pids)
            return pids

    @property
    def _batch_bytes(self) -> int:
        assert self.disk is not None
        return min(_BATCH_BYTES, self.disk.cap_bytes // _SWEPT_SHARE)

    def _probe(self) -> StorageFullError | None:
        assert self.disk is not None
        try:
            self.disk.probe(self._batch_bytes)
        except StorageFullError as error:
            return error
        return None

    def _probed(self, error: StorageFullError | None) -> None:
        """After a failure: if the disk takes writes again, queue what only memory holds."""
        if self.disk_error is None:
            return
        self.disk_error = error
        if error is None:
            pids = self.host.page[self.host.page != NO_PAGE]
            waiting = pids[~self._table.stored[pids]].tolist()
            logger.warning("the disk tier takes writes again; %d pages are queued", len(waiting))
            for pid in waiting:
                self._enqueue(pid)

    def _try_disk_again(self) -> None:
        """Somebody needs the disk now: make room and look whether it takes writes."""
        assert self.disk_error is not None
        try:
            if self.disk_error.is_at_cap:
                self.make_room(self._batch_bytes)
        except StorageError as error:
            self._probed(StorageFullError(str(error)))
        else:
            self._probed(self._probe())

    def _forget_unbacked(self) -> None:
        """No page will be written any more: those that nobody refers to would only hold room."""
        pids = self.host.page[self.host.page != NO_PAGE]
        for pid in pids[(self._table.refs[pids] == 0) & ~self._table.stored[pids]].tolist():
            if self._keys[pid][-CHAIN_BYTES:] not in self._counted:
                self._forget(pid)

    def _try_write(self, pids: list[int]) -> StorageFullError | None:
        assert self.disk is not None
        try:
            records = [(self._keys[pid], self._pack(pid)) for pid in pids]
            needed = sum(len(packed) for _, packed in records)
            while True:
                try:
                    self.disk.write_pages(records)
                    break
                except StorageFullError as error:
                    if not (error.is_at_cap and self.make_room(needed)):
                        raise
        except StorageFullError as error:
            return error
        except Exception as error:  # callers wait for this thread: whatever stops it is told to them
            return StorageFullError(f"writing pages stopped: {error!r}")
        self.counters.host_to_disk_bytes += needed
        return None

    def _pack(self, pid: int) -> bytes:
        assert self.disk is not None
        raw = self.host.data[int(self._table.host_slot[pid])].numpy()
        codec = self.compression.codec_for(self._keys[pid], raw)
        return record.pack(
            record.PAGE,
            self.disk.fingerprint,
            self._keys[pid],
            codec.encode(raw),
            codec=codec.code,
            raw_bytes=raw.nbytes,
            tokens=self._table.tokens[pid],
        )

    def make_room(self, needed: int) -> int:
        """Make room on disk: drop the least recently used records that neither a process nor a session needs.
        A good deal more than `needed`, since looking for them reads every key."""
        if self.chains_to_keep is None or self.disk is None:
            return 0
        kept = self.chains_to_keep()
        with self._lock:  # no page may gain its first reference while its record is deleted
            kept |= self._counted | {key[-CHAIN_BYTES:] for key, pid in self._pids.items() if self._table.refs[pid] > 0}
            room = max(2 * needed, self.disk.cap_bytes // _SWEPT_SHARE)
            removed = self.disk.sweep(lambda key: key[-CHAIN_BYTES:] in kept, room)
            for key, pid in list(self._pids.items()):
                if self._table.stored[pid] and not self._table.refs[pid] and not self.disk.contains(key):
                    self._forget(pid)
        return removed

    def flush(self) -> None:
        """Wait until every sealed page is durable. Raises StorageFullError if that cannot be."""
        with self._lock:
            self._require_open()
            if self.disk_error:
                self._try_disk_again()
            while (self._queue or self._in_flight) and not self.disk_error:
                self._lock.wait()
            if self.disk_error:
                raise self.disk_error

    def close(self) -> None:
        """Write what is queued, stop the writer, close the disk tier. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._lock.notify_all()
        if self.disk is not None:
            self._writer.join()
            self.disk.close()

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError("the store is closed")
        if self.disk is not None:
            self.disk.require_process()

    def check_integrity(self) -> None:
        """Every invariant at the top of this file, re-added from scratch."""
        with self._lock:
            table, count = self._table, len(self._keys)
            live = np.setdiff1d(np.arange(count), self._free_pids)
            for arena, slot_of in ((self.gpu, table.gpu_slot), (self.host, table.host_slot)):
                if arena is None:
                    continue
                arena.check_integrity()
                here = live[slot_of[live] >= 0]
                assert (arena.page[slot_of[here]] == here).all(), f"{arena.name}: slots and table differ"
                assert len(here) == arena.num_pages, f"{arena.name}: a slot holds a forgotten page"
                assert not arena.leases.any(), f"{arena.name}: a lease outlived its call"
            somewhere = (table.host_slot[live] >= 0) | table.stored[live]
            assert somewhere[table.refs[live] > 0].all(), "a referenced page is nowhere"
            assert (table.refs[live] >= 0).all(), "negative references"
            assert self.is_resident(live[table.refs[live] == 0]).all(), "a page nobody can use has an id"
            assert all(self._keys[pid] == key for key, pid in self._pids.items()), "keys and ids differ"


__all__ = ["NO_PAGE", "OpenPage", "TieredStore"]
