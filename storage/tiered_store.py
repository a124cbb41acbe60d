"""The tiered store: pages in GPU memory, host memory and on disk behind one page id.

A page enters sealed (`put`, `seal`), gets a page id, and from then on is somewhere. `gather` copies
the wanted parts of pages into the caller's buffer from wherever they are, and moves pages up as it
goes. Attention, heads and sequences are unknown here: a page is bytes made of equal parts.

    tiered_store   the public face: pages in, sharing, pages out
    residency      which page lies in which slot; makes room          under one lock
      arena        slots of a memory tier: the state machine
      page_table   names and columns by page id
      eviction     which page gives way
    intake         new pages; waits for room
    loading        pages up: two-phase tickets                        reads without the lock
    gathering      rows of pages into the caller's buffer
    sending        whole pages to the device, beside its other work
    links          the edges: how long busy
    write_behind   pages down: the queue and the writer thread        writes without the lock
    disk_tier      records in LMDB

A page's life

                    open_page                  seal, put             writer commits
    (nothing) -------------------> open ------------------> dirty --------------------> clean
                                    | discard                 ^ in host memory,           | host evicts
                                    v                         | stays there               v
                                 (nothing)                    |                       on disk only
                                                              +---- replace ----+         | gather, prefetch
                                                                                +--- clean, in memory again

     state          where it is                       what may be trusted
     open           a FILLING slot of `compute`       nothing; the caller alone writes it
     dirty          host (and gpu)                    the bytes in memory; there is no record, or an old one
     clean          disk, host, gpu in any mixture    every copy
     damaged        disk, found on a read             nothing, until `replace`

Invariants  (1) a page with references is in host memory, or stored on disk, or both
            (2) host evicts only pages whose disk record is committed; gpu copies are always spare
            (3) no tier holds a byte above its cap: slots are counted before they are handed out
            (4) reads return exactly the bytes that were put, or raise CorruptPageError. Lossy codecs and
                `adaptive` give this up for the pages that they quantise: such a page is exact until it
                has left memory and approximate when it comes back, so results depend on what was spilled.
                A page that came back is never encoded again: errors do not add up
Threads     one thread brings pages in; any thread may load, gather and hold. Bookkeeping is under one lock.
            Encoding, writing and reading disk happen without it: a dirty page can neither move nor be evicted,
            and a page that is being read has a ticket.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from .codecs.codec import Profile
from .codecs.compression import Compression, make_compression
from .counters import Counters
from .disk.disk_tier import DiskTier
from .errors import ClosedError, StorageFullError
from .memory.arena import Arena
from .memory.page_table import PageTable
from .memory.residency import Residency
from .page import PageLayout, page_key
from .transfer.gathering import Gatherer
from .transfer.intake import Intake, OpenPage
from .transfer.links import Links
from .transfer.loading import Loader, Ticket
from .transfer.sending import Sending
from .transfer.write_behind import WriteBehind

_FEW = 32
"""Pages per round of a prefetch: between rounds it can be cancelled, and others get their turn to read."""


class TieredStore:
    """Pages over up to three tiers.

    Args:
        layout: shape of a page; the store itself uses only its bytes and tokens, codecs the rest.
        num_layers: how many layers share the tiers; each has an even share (see `eviction`).
        host: the host tier. Without `gpu` it is also where attention reads.
        gpu: the device pool, or None.
        disk: the disk tier, or None (then nothing can leave host memory).
        codec: the encoding of pages on the disk edge: `zstd` or `raw`, which are lossless, or the spec of a codec that
            is not (see `codecs.registry`), or `adaptive` (see `codecs.compression`).
        profiles: what was learned about each layer, for codecs that need it.
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
        profiles: Mapping[int, Profile] | None = None,
    ) -> None:
        self.layout = layout
        self.num_layers = num_layers
        self.host, self.gpu, self.disk = host, gpu, disk
        self.counters = Counters()
        self.compression: Compression = make_compression(codec, layout, profiles)
        self._table = PageTable(layout.page_size)
        self._residency = Residency(host, gpu, self._table, num_layers, self.counters)
        self._lock = self._residency.lock
        self.links = Links()
        self._loader = Loader(self._residency, disk, lambda: self.compression, self.links)
        self._gatherer = Gatherer(self._residency, self._loader, self.links)
        self.sending = Sending(self._residency, self._loader, self.links, self.still, self._passing)
        self._writing = WriteBehind(self._residency, disk, lambda: self.compression)
        self._intake = Intake(self._residency, self._loader, self._writing)
        self._closed = False
        if disk is not None:
            disk.reads_codecs(self.compression.readers)

    @property
    def disk_error(self) -> StorageFullError | None:
        """The reason why the disk tier takes no writes at the moment; None if it takes them. Pages then stay in host
        memory."""
        return self._writing.disk_error

    @property
    def chains_to_keep(self) -> Callable[[], set[bytes]] | None:
        """Gives the chains that sessions still need when room is made on disk; None: no sweep (see `WriteBehind`)."""
        return self._writing.chains_to_keep

    @chains_to_keep.setter
    def chains_to_keep(self, chains: Callable[[], set[bytes]] | None) -> None:
        self._writing.chains_to_keep = chains

    # Pages in

    @property
    def compute(self) -> Arena:
        """The tier attention reads from and open pages live in."""
        return self.gpu if self.gpu is not None else self.host

    def open_page(self, layer: int) -> OpenPage:
        """A new page to fill, in the compute tier. Raises CapacityError."""
        with self._lock:
            self._require_open()
            return self._intake.open(self.compute, layer)

    def discard(self, page: OpenPage) -> None:
        """Give an open page back unsealed."""
        with self._lock:
            self.compute.free(np.array([page.slot]))

    def seal(self, page: OpenPage, chain: bytes, tokens: np.ndarray) -> int:
        """Name a full open page, keep it, and queue it for disk. Returns its page id."""
        with self._lock:
            self._require_open()
            return self._intake.seal(page, chain, tokens)

    def put(self, layer: int, chains: Sequence[bytes], tokens: np.ndarray, data: torch.Tensor) -> np.ndarray:
        """Keep sealed pages of one layer; returns their page ids, each with one reference.

        Pages that are already in memory under the same key are shared, not copied.

        Args:
            chains: chain hash per page. tokens: uint32 `[n, L]`.
            data: `[n, page_bytes]` bytes on any device.

        Raises:
            CapacityError: the host tier is full of pages that may not leave it; none is kept.
        """
        with self._lock:
            self._require_open()
            return self._intake.put(layer, chains, tokens, data)

    def replace(self, pid: int, data: torch.Tensor) -> None:
        """Overwrite a damaged page with recomputed bytes (uint8 `[page_bytes]`) and store it again."""
        with self._lock:
            self._require_open()
            self._intake.replace(pid, data)

    def describe(self, pid: int) -> tuple[np.ndarray, bytes]:
        """A page's token ids (uint32 `[L]`) and its key."""
        return self._table.tokens[pid].copy(), self._table.keys[pid]

    # Sharing

    def num_known(self, chains: list[bytes], layers: Sequence[int]) -> int:
        """Count the leading `chains` that exist, in memory or on disk, in every one of `layers`. Making room takes none
        of them until the next call."""
        with self._lock:
            self._require_open()
            count = self._num_known(chains, layers)
            self._residency.counted = set(chains[:count])
            return count

    def _num_known(self, chains: list[bytes], layers: Sequence[int]) -> int:
        in_memory = 0
        for chain in chains:
            if not all(page_key(layer, chain) in self._table.pids for layer in layers):
                break
            in_memory += 1
        if self.disk is None:
            return in_memory
        self.disk.used(chains[:in_memory])
        if in_memory == len(chains):
            return in_memory
        rest = chains[in_memory:]
        missing = lambda chain: (  # noqa: E731
            key for layer in layers if (key := page_key(layer, chain)) not in self._table.pids
        )
        return in_memory + self.disk.num_leading(rest, missing)

    def adopt(self, layer: int, chains: Sequence[bytes], tokens: np.ndarray) -> np.ndarray:
        """Give page ids to pages that `num_known` counted, one reference each. Moves no bytes."""
        with self._lock:
            self._require_open()
            pids = []
            for chain, ids in zip(chains, tokens, strict=True):
                pid = self._intake.share(page_key(layer, chain), ids)
                if pid is None:
                    pid = self._table.add(layer, chain, ids)
                    self._table.stored[pid] = True
                pids.append(pid)
            return np.array(pids, dtype=np.int64)

    def retain(self, pids: np.ndarray) -> None:
        with self._lock:
            np.add.at(self._table.refs, pids, 1)

    def release(self, pids: np.ndarray) -> None:
        """Drop one reference each. Unreferenced pages that are on disk, or will be, stay as cache until their room is
        needed; others go at once."""
        with self._lock:
            self._residency.release(pids, keep_unstored=self._writing.will_store)

    # Pages out

    def gather(
        self, pids: np.ndarray, pages: np.ndarray, parts_of: np.ndarray, parts: int, out: torch.Tensor,
        *, promote: bool = True, ahead: bool = False,
    ) -> None:  # fmt: skip
        """`out[i] = part parts_of[i] of page pids[pages[i]]`, from wherever each page is.

        Args:
            pids: distinct page ids `[p]`.
            pages, parts_of: int64 `[m]`: which of `pids`, and which of its `parts` equal parts.
            out: contiguous `[m, page_bytes / parts / itemsize]`, on any device.
            promote: also copy pages into the gpu pool, as far as it has room. Otherwise nothing but the
                asked parts leaves host memory.
            ahead: nobody waits for it: counted neither as reads nor as a stall. It is there at `links.host.due`.

        Raises:
            CorruptPageError: pages on disk failed verification; `out` is then unspecified.
        """
        with self._lock:
            self._require_open()
            if not ahead and self._gatherer.gather_nearest(pids, pages, parts_of, parts, out):
                return
        with self._passing(pids, ahead=ahead) as ticket:
            self._gatherer.gather(ticket, pages, parts_of, parts, out, promote=promote)

    @contextmanager
    def still(self) -> Iterator[None]:
        """Keep every page where it is for the length of the block, so that it can be read by its address (`places`).
        Other threads that move pages wait."""
        with self._lock:
            self._require_open()
            yield

    def places(self, pids: np.ndarray, out: np.ndarray) -> bool:
        """Write into `out`, int64 `[p]`, the addresses of pages that are all in host memory where attention reads. They
        are good for as long as the store is `still`, and when it is again, if there have been no `departures` since.
        Returns False if not all of them are."""
        if self.gpu is not None:
            return False
        np.take(self._table.host_slot, pids, out=out)
        if len(out) and out.min() < 0:
            return False
        out *= self.host.page_bytes
        out += self.host.data.data_ptr()
        return True

    def slots_in(self, arena: Arena, pids: np.ndarray) -> np.ndarray:
        """The slots of pages in one tier, int64 `[p]`, below 0 for those that are not there; good as `places` are."""
        slots: np.ndarray = self._residency.slots_of(arena)[pids]
        return slots

    @property
    def departures(self) -> int:
        """Times that pages have left host memory. Read it while the store is `still`."""
        return self.host.departures

    def touch(self, pids: np.ndarray) -> None:
        """Note that somebody reads these pages: when room is needed others go first."""
        with self._lock:
            self._residency.clock += 1
            self._residency.touch(pids)
            self._residency.note_read(pids)

    def count_read(self, pids: np.ndarray) -> None:
        """Count pages, distinct for each layer that read them by their `places`, in the same block of `still`."""
        self.touch(pids)
        self.counters.host_reads += len(pids)

    def prefetch(self, pids: np.ndarray, is_cancelled: Callable[[], bool]) -> None:
        """Bring those of `pids` (distinct, of one layer, held by the caller) that are on disk only into host memory
        before somebody asks, a few at a time, until `is_cancelled` returns True. Stops at the layer's share of host
        memory: a page that displaced another wanted one would gain nothing. Any thread may call it. Damaged pages are
        left for whoever reads them."""
        with self._lock:
            self._residency.touch(pids)
            near = self._table.is_resident(pids)
        share = self.host.num_slots // max(self.num_layers, 1)
        coming = pids[~near][: max(0, share - int(near.sum()))]
        few = max(1, min(_FEW, share // 4))
        for start in range(0, len(coming), few):
            if is_cancelled():
                return
            with self._passing(coming[start : start + few], ahead=True) as ticket:
                self._loader.finish(ticket)

    @contextmanager
    def _passing(self, pids: np.ndarray, *, ahead: bool = False) -> Iterator[Ticket]:
        """A ticket that ends with the block, on its own: whoever needs room may wait for that."""
        with self._lock:
            self._require_open()
            self._residency.clock += 1
            ticket = self._loader.begin(pids)
            ticket.is_ahead = ahead
            self._residency.num_passing += 1
        try:
            yield ticket
        finally:
            with self._lock:
                self._residency.num_passing -= 1
                self._loader.end(ticket, keep_unstored=self._writing.will_store)

    def reserve(self, layer: int, count: int) -> np.ndarray:
        """Take up to `count` slots of the gpu pool for the caller's own copies of parts of pages. They count under the
        pool's cap, and all of a layer's reserved slots are at most three quarters of its share. Without a gpu tier
        there are none."""
        with self._lock:
            self._require_open()
            return self._residency.reserve(layer, count)

    def unreserve(self, layer: int, slots: np.ndarray) -> None:
        """Give slots from `reserve` back."""
        with self._lock:
            self._residency.unreserve(layer, slots)

    def rank(self, pids: np.ndarray, cold: np.ndarray) -> None:
        """Of these pages those that are `cold`, bool `[p]`, give way before others when room is needed. Until they are
        ranked anew; pages begin as equals."""
        with self._lock:
            self._table.cold[pids] = cold

    def is_resident(self, pids: np.ndarray) -> np.ndarray:
        """True for each page that needs no disk read now, bool `[p]`."""
        return self._table.is_resident(pids)

    def make_room(self, needed: int) -> int:
        """Make room on disk for `needed` bytes. Returns how many records were removed (see `WriteBehind`)."""
        return self._writing.make_room(needed)

    @property
    def num_unstored(self) -> int:
        """Number of pages that are in host memory and not on disk; their slots stay taken until they are."""
        with self._lock:
            return self._residency.num_unstored()

    # Life of the store

    def flush(self) -> None:
        """Wait until every sealed page is durable. Raises StorageFullError if that cannot be."""
        with self._lock:
            self._require_open()
        self._writing.flush()

    def close(self) -> None:
        """Write what is queued, stop the writer, unpin host memory, close the disk tier. Safe to call twice."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._writing.close()
        self._loader.close()
        self.host.close()
        if self.disk is not None:
            self.disk.close()

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedError("the store is closed")
        if self.disk is not None:
            self.disk.require_process()

    def check_integrity(self) -> None:
        """Check every invariant at the top of these files from scratch. Raises AssertionError."""
        with self._lock:
            self._residency.check_integrity()
            self._loader.check_integrity()
