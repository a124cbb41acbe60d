"""The options of a run of the benchmark."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ...retrieval.registry import index_class
from ...storage.codecs.registry import profile_part
from ...storage.files.file_names import as_text
from ..api.config import KVConfig
from ..api.typed import shown
from ..model.products import IN_MEMORY

_MOST = {"steps": 10**6, "turn_tokens": 10**8, "contexts": 10**8, "batches": 1024, "layers": 1024}
"""The most of each number: more could not be measured in a lifetime, or is held by no machine."""
BASELINES = ("dense", "offloaded", "quantised", "llama.cpp")
"""All baselines, of which transformers runs the first three."""
SHORTEST = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Caps:
    """Caps of the tiers in GB; None as in `KVConfig`."""

    gpu_gb: float | None = None
    host_gb: float | None = None
    disk_gb: float | None = None

    def given(self) -> dict[str, float]:
        """The caps that are not None, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name.removesuffix('_gb')} {value:.3g} GB" for name, value in self.given().items())


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchOptions:
    """Options of a run. It has a row for every context and batch; in a row stand every index under every cap, and the
    baselines."""

    model: str = "smollm2"
    shape: str | None = None
    """A shape of random weights to measure in place of `model`."""
    layers: int | None = None
    """Number of layers of the shape; None: all it has."""
    device: str = "auto"
    dtype: str = "auto"
    weights: tuple[str, ...] = ("own",)
    """Weights that decode multiplies with as in `Runtime.load`, measured side by side."""
    contexts: tuple[int, ...] = (512, 7500)
    batches: tuple[int, ...] = (1,)
    indexes: tuple[str, ...] = ("bounds",)
    caps: tuple[Caps, ...] = (Caps(),)
    budget: int | float = 1024
    kv_dtype: str = "auto"
    codec: str = "zstd"
    placement: str | None = None
    profile: Path | None = None
    kv_dir: Path | None = None
    """The folder in which stores are made; each is new, and removed. None: the system's folder for temporary files."""
    steps: int = 256
    """Timed decode steps of the first turn; the second has a quarter as many."""
    turn_tokens: int = 64
    """Prompt tokens of the second turn."""
    random_kv: bool = False
    """Contexts are random numbers written into the store instead of a prefill's results."""
    prefetch: tuple[str, ...] = ("auto",)
    """Values of prefetch as in `KVConfig`, measured side by side."""
    baselines: tuple[str, ...] = BASELINES
    breakdown: bool = False
    """Say what each operation of a step took."""
    gpu_memory_cap: float | None = None
    """GB that model and KV may take on the device together, as if it were a card of that size."""
    link_gbps: float | None = None
    """GB per second that host-to-device copies are slowed down to; `disk_gbps` likewise disk reads."""
    disk_gbps: float | None = None
    text: Path | None = None
    trace: Path | None = None
    """The file for a trace of a few decode steps, for a browser's profiler."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.turn_tokens < 1:
            raise ValueError(f"bench needs at least 1 step and 1 token a turn, not {self.steps} and {self.turn_tokens}")
        if not self.contexts or min(self.contexts) < SHORTEST:
            raise ValueError(f"contexts are {SHORTEST} tokens or more, not {_listed(self.contexts)}")
        if not self.batches or min(self.batches) < 1:
            raise ValueError(f"batches are 1 sequence or more, not {_listed(self.batches)}")
        for name, most in _MOST.items():
            asked = getattr(self, name)
            if max(asked if isinstance(asked, tuple) else (asked or 0,)) > most:
                raise ValueError(f"{name}: at most {most} can be measured, not {shown(asked)}")
        unknown = [name for name in self.baselines if name not in BASELINES]
        if unknown:
            raise ValueError(f"baselines are {', '.join(BASELINES)}, or none; not {', '.join(unknown)}")
        wrong = [name for name in self.weights if name not in IN_MEMORY]
        if wrong:
            names, said = ", ".join(IN_MEMORY), ", ".join(wrong)
            raise ValueError(f"weights are {names}, not {said}: transformers reads what is measured, too")
        for name in ("gpu_memory_cap", "link_gbps", "disk_gbps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is more than 0, not {value}")
        if self.layers is not None and self.layers < 1:
            raise ValueError(f"layers is at least 1, not {self.layers}")
        if self.layers is not None and self.shape is None:
            raise ValueError("layers can be chosen for a shape only; a model has the layers it has")
        if self.profile is not None and not any(map(self._needs_profile, self.indexes)):
            raise ValueError(f"none of the indexes {', '.join(self.indexes)} needs a profile; leave it out (profile=)")
        for index, caps, prefetch in itertools.product(self.indexes, self.caps, self.prefetch):
            self.kv(Path(), index, caps, prefetch=prefetch)  # raises for bad settings before anything is measured

    @property
    def later_steps(self) -> int:
        """Timed decode steps of the second turn."""
        return max(1, self.steps // 4)

    def _needs_profile(self, index: str) -> bool:
        return bool(index_class(index)[0].needs_profile or profile_part(self.codec))

    def kv(self, folder: Path, index: str, caps: Caps, *, prefetch: str = "auto") -> KVConfig:
        return KVConfig(
            path=folder, index=index, budget=self.budget, dtype=self.kv_dtype, codec=self.codec,
            placement=self.placement,
            profile=self.profile if self._needs_profile(index) else None,
            gpu_gb=caps.gpu_gb, host_gb=caps.host_gb, disk_gb=caps.disk_gb, prefetch=prefetch,
        )  # fmt: skip

    def as_dict(self) -> dict[str, Any]:
        """The options that a result states."""
        found = {name: value for name, value in asdict(self).items() if value not in (None, ())}
        return {name: as_text(value) if isinstance(value, str | Path) else value for name, value in found.items()}

    def with_gpu_room(self, weights_bytes: int) -> BenchOptions:
        """Set the device tier's cap to what `gpu_memory_cap` leaves for it, where no other cap was given.

        Raises ValueError if the model alone is too large.
        """
        if self.gpu_memory_cap is None:
            return self
        cap = int(1e9 * self.gpu_memory_cap)
        room = cap - weights_bytes - int(_APART * cap)
        if room <= 0:
            raise ValueError(
                f"a memory cap of {cap / 1e9:.3g} GB leaves nothing for the KV cache: weights "
                f"{weights_bytes / 1e9:.3g} GB + {_APART * cap / 1e9:.3g} GB for indexes and activations; "
                "raise gpu_memory_cap"
            )
        return replace(self, caps=tuple(replace(c, gpu_gb=c.gpu_gb or room / 1e9) for c in self.caps))


_APART = 0.15
"""Share of the card's memory that is kept for indexes' states and activations."""


def crossed(gpu: list[float | None], host: list[float | None], disk: list[float | None]) -> tuple[Caps, ...]:
    """Every combination of caps."""
    return tuple(Caps(gpu_gb=g, host_gb=h, disk_gb=d) for g, h, d in itertools.product(gpu, host, disk))


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(shown, numbers)) or "none"
