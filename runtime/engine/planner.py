"""Deciding before any work what lives where, and saying so when it cannot be done."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch

from ...storage import PageLayout
from ...storage.codecs.compression import is_lossy
from ...storage.codecs.registry import ADAPTIVE, make_codec
from ...storage.disk.record import record_bytes
from ...storage.disk.room import stored_bytes
from ..api.config import KVConfig
from ..api.errors import DoesNotFitError
from ..layers.past_blocks import ROTATING
from ..layers.workspace import KEY_BLOCK, Workspace
from .held import NOTHING, Held
from .machine_caps import check_caps

GB = 10**9
_CHUNK = {"cpu": 512, "cuda": 2048}
_CHUNK_OF_LATENTS = 2048
"""Keys and values of heads are made from latents once for all rows of a call."""
_DEFAULT_SPAN = 4096
FREE_SHARE = 0.8
"""Of a GPU's free memory, where no cap is given: indexes' states and activations have the rest."""
_PAST_SHARE = 8
"""One part in so many of a device's cap is for blocks of a past that prefill reads: enough for 131,072 tokens of an 8B
model beside its weights on a card of 24 GB, which then cross to the device once for all rows of a span."""
_MOST_PAST = 64 + ROTATING
"""Blocks of 131,072 tokens, and those that come and go. What a past has beyond that crosses for every chunk of rows."""
_PAGES_PER_LAYER = 4
"""Fewest slots per tiered layer in the compute tier: the open page and a few to read."""
RECORD_OVERHEAD = 1.2
"""An incompressible page on disk against its raw bytes: header and LMDB's 4 KiB rounding."""
_CHURN = 1.05
"""LMDB writes what it changes anew before it gives the old up: room for that, where pages take as much as is said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Byte caps per tier and how prefill works inside them."""

    layout: PageLayout
    num_tiered: int
    """Layers whose KV is tiered."""
    gpu_bytes: int | None
    host_bytes: int
    disk_bytes: int
    """The disk tier's cap: how much of the store this model may come to have."""
    span_tokens: int
    """Rows of one layer-major prefill span."""
    num_past: int = 0
    """Buffers in a device's memory for blocks of the past that prefill reads."""
    held: Held = NOTHING
    """What a sequence holds beside its pages, in the compute tier: there is room for that of one."""
    store_bytes: int = 0
    """The cap of the store, in which other models may have folders, too."""
    disk_share: float = RECORD_OVERHEAD
    """Bytes that a page takes on disk per raw byte, at most; see `disk_share`."""
    disk_knob: str = "raise disk_gb"
    """How a user lets the store hold more, for messages."""

    @property
    def token_bytes(self) -> int:
        """KV of one token over all tiered layers."""
        return self.layout.token_bytes * self.num_tiered

    @property
    def workspace_bytes(self) -> int:
        return Workspace.bytes_for(self.layout, self.span_tokens, self.num_past)

    @property
    def reserved_bytes(self) -> int:
        """Bytes of the compute tier that are not for pages."""
        return self.workspace_bytes + self.held.sequence_bytes

    @property
    def compute_pool_bytes(self) -> int:
        """Bytes that the compute tier has left for pages."""
        return (self.gpu_bytes if self.gpu_bytes is not None else self.host_bytes) - self.reserved_bytes

    @property
    def host_pool_bytes(self) -> int:
        return self.host_bytes if self.gpu_bytes is not None else self.compute_pool_bytes

    def capacity_tokens(self) -> int:
        """Tokens whose sealed pages the tiers can keep. GPU copies are spare and add nothing."""
        return self.disk_tokens(self.disk_bytes) if self.disk_bytes else self.host_tokens()

    def disk_tokens(self, disk_bytes: int) -> int:
        """Tokens that so many bytes of disk keep, compressible or not."""
        return int(disk_bytes / self.disk_share) // self.token_bytes if self.token_bytes else sys.maxsize

    def disk_need(self, tokens: int) -> int:
        """Bytes of disk that keep so many tokens, compressible or not."""
        return int(tokens * self.token_bytes * self.disk_share) + 1

    def host_tokens(self, num_taken: int = 0) -> int:
        """Tokens that host memory keeps beside `num_taken` pages that cannot leave it."""
        if not self.token_bytes:  # all layers keep a window only
            return sys.maxsize
        pool = self.host_pool_bytes - num_taken * self.layout.page_bytes
        return max(0, pool // self.token_bytes - self.layout.page_size)

    def check(self, tokens: int, what: str, disk_bytes: int | None = None) -> None:
        """Raises DoesNotFitError, with the sum, if `tokens` exceed what the tiers can keep.

        Args:
            disk_bytes: of the disk tier for them. None: as planned.
        """
        disk = self.disk_bytes if disk_bytes is None else disk_bytes
        most = self.disk_tokens(disk) if disk else self.host_tokens()
        if tokens <= most:
            return
        tiers = f"host {_gb(self.host_pool_bytes)}"
        if disk:
            beside = f", {_gb(self.store_bytes - disk)} more in other folders" if self.store_bytes > disk else ""
            kind = " when incompressible" if self.disk_share == RECORD_OVERHEAD else ""
            tiers = f"disk {_gb(disk)} (up to {self.disk_share:.3g}x the raw bytes{kind}{beside})"
        knob = self.disk_knob if disk else f"raise host_gb, or {self.disk_knob}"
        raise DoesNotFitError(
            f"{what} does not fit: {tokens} tokens x {self.token_bytes} bytes = {_gb(tokens * self.token_bytes)}, "
            f"but there is {tiers}, enough for {most} tokens; {knob}"
        )

    def rows(self) -> list[tuple[str, str, str]]:
        """(tier, cap, tokens whose pages it holds), for people."""
        found = []
        if self.gpu_bytes is not None:
            beside = f"{_gb(self.workspace_bytes)} workspace"
            if self.held.sequence_bytes:
                beside += f" + {_gb(self.held.sequence_bytes)} {self.held.named}"
            found.append(("gpu", _gb(self.gpu_bytes), f"{self._tokens(self.compute_pool_bytes)} + {beside}"))
        found.append(("host", _gb(self.host_bytes), self._tokens(self.host_pool_bytes)))
        found.append(("disk", _gb(self.disk_bytes), self._tokens(int(self.disk_bytes / self.disk_share))))
        return found

    def _tokens(self, pages_bytes: int) -> str:
        return f"{pages_bytes // self.token_bytes}" if self.token_bytes else "any number of"


def chunk_of(device_type: str, layout: PageLayout) -> int:
    """Prefill rows per layer call. They follow the grid of positions, so that results do not depend on caps."""
    return _CHUNK[device_type] if layout.value_dim is None else _CHUNK_OF_LATENTS


def make_plan(
    config: KVConfig, layout: PageLayout, num_tiered: int, device: torch.device, chunk: int, held: Held = NOTHING
) -> Plan:  # fmt: skip
    """The memory tiers' caps from the configuration, or from what is free now. `sessions.store_cap` adds the disk tier.

    Raises:
        ValueError: a cap is more than the machine has.
        DoesNotFitError: the compute tier cannot hold its workspace, what a sequence holds beside pages, and a few pages
            per layer.
    """
    check_caps(config, torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else None)
    gpu = None
    if config.gpu_gb is not None:
        gpu = int(config.gpu_gb * GB)
    elif device.type == "cuda":
        gpu = int(free_memory(device) * FREE_SHARE)
    host = int(config.host_gb * GB) if config.host_gb is not None else available_memory() // 2
    plan = plan_within(gpu, host, layout, num_tiered, chunk, held)
    return replace(plan, disk_share=disk_share(config.codec, layout))


def disk_share(codec: str, layout: PageLayout) -> float:
    """Bytes that a page takes on disk per raw byte, at most. What a lossy codec cannot hold, which is written as zstd,
    may take more."""
    if codec == ADAPTIVE or not is_lossy(codec):
        return RECORD_OVERHEAD
    payload = make_codec(codec, layout).payload_bytes
    return _CHURN * stored_bytes(record_bytes(payload, layout.page_size)) / layout.page_bytes


def plan_within(
    gpu: int | None, host: int, layout: PageLayout, num_tiered: int, chunk: int, held: Held = NOTHING
) -> Plan:  # fmt: skip
    """A plan under these caps in bytes, whatever the machine has. Raises DoesNotFitError as `make_plan`."""
    compute = gpu if gpu is not None else host
    pages = _PAGES_PER_LAYER * num_tiered * layout.page_bytes
    spare = compute - pages - Workspace.bytes_for(layout, 0) - held.sequence_bytes
    span = max(chunk, min(_DEFAULT_SPAN, spare // 2 // layout.token_bytes // chunk * chunk))
    plan = Plan(
        layout=layout, num_tiered=num_tiered, gpu_bytes=gpu, host_bytes=host, disk_bytes=0, span_tokens=span, held=held,
        num_past=0 if gpu is None else _past_blocks(spare - span * layout.token_bytes, layout),
    )  # fmt: skip
    if plan.compute_pool_bytes < pages:
        name, knob = ("device", "gpu_gb") if gpu is not None else ("host", "host_gb")
        beside = f"{_gb(held.sequence_bytes)} {held.named} + " if held.sequence_bytes else ""
        raise DoesNotFitError(
            f"{name} cap {_gb(compute)} is too small: {_gb(plan.workspace_bytes)} workspace + {beside}"
            f"{_PAGES_PER_LAYER} pages x {num_tiered} layers x {layout.page_bytes} bytes = "
            f"{_gb(plan.reserved_bytes + pages)}; raise {knob}"
        )
    if plan.host_pool_bytes < 2 * num_tiered * layout.page_bytes:
        raise DoesNotFitError(
            f"host cap {_gb(host)} is too small: 2 pages x {num_tiered} layers x {layout.page_bytes} bytes = "
            f"{_gb(2 * num_tiered * layout.page_bytes)}; raise host_gb"
        )
    return plan


def _past_blocks(spare: int, layout: PageLayout) -> int:
    """Buffers for blocks of the past that `spare` bytes have room for, beside pages. Fewer than two are of no use, nor
    are any where pages do not divide a block."""
    if KEY_BLOCK % layout.page_size:
        return 0
    one = Workspace.bytes_for(layout, 0, 1) - Workspace.bytes_for(layout, 0)
    count = min(_MOST_PAST, spare // _PAST_SHARE // one)
    return count if count >= ROTATING else 0


def free_memory(device: torch.device) -> int:
    """Bytes of a device's memory that can be taken now."""
    return int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else available_memory()


def available_memory() -> int:
    """Bytes that can be taken now: what the system has free, or the control group or the process's limit allows."""
    free = int(psutil.virtual_memory().available)
    addresses, _ = resource.getrlimit(resource.RLIMIT_AS)
    if addresses != resource.RLIM_INFINITY:
        free = min(free, max(0, addresses - psutil.Process().memory_info().vms))
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            room = int(Path(limit).read_text()) - int(Path(used).read_text())
        except (OSError, ValueError):  # no such controller, or "max": no limit
            continue
        free = min(free, max(room, 0))
    return free


def _gb(count: int) -> str:
    return f"{count / GB:.3g} GB"
