"""The settings that a user may give."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from ...retrieval import IndexParams, split_spec
from ...retrieval.placement_registry import PlacementSpec, placement_spec
from ...storage.codecs.compression import check_compression
from . import typed
from .typed import DTYPES, shown

PREFETCH = ("auto", "on", "off")
MAX_STOPS, MAX_STOP_CHARACTERS = 1024, 1 << 20
"""The most stop strings, and the most characters of all together: each string is looked for at every token, and
sessions keep them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KVConfig:
    """The places where the KV cache may live, and how much of it a decode step reads. 1 GB is 10**9 bytes."""

    gpu_gb: float | None = None
    """Cap of the device tier. None: from free GPU memory; on a CPU-only machine, no such tier."""
    host_gb: float | None = None
    """Cap of the host tier. None: half of the memory that is free once the model is loaded."""
    disk_gb: float | None = None
    """Cap of the store folder, over all models in it; 0: no disk tier. None: half of what the disk has free
    and the store holds, at most 64 GB (docs/decisions/0025)."""
    path: str | os.PathLike[str] | None = None
    """Store folder. None: `stratakv/kv` in the user's cache directory."""
    index: str = "auto"
    """The way to find the tokens that matter; see `stratakv.retrieval`."""
    placement: str | None = None
    """Which tokens are worth a place near, such as `snapkv:keep=0.1,mode=hot`; see `stratakv.retrieval.placement`. In
    the mode `visible` steps read what it keeps, and `index` and `budget` mean nothing. None: all are equals."""
    profile: str | os.PathLike[str] | None = None
    """Profile for an index or a codec that needs one. None: where `stratakv calibrate` puts it."""
    budget: int | float = 2048
    """Tokens read per KV head and layer at each decode step, sinks, window and tail included; or a
    fraction of the context, in (0, 1)."""
    sink: int = 16
    """The number of first tokens of the context, which are always read."""
    local: int = 64
    """The number of most recent tokens, which are always read."""
    page_size: int = 16
    """Tokens per page."""
    dtype: str = "auto"
    """Element type of the cache. `auto`: the model's. `bfloat16` under a float32 model halves its
    bytes at a mean KL below 1e-4 (docs/decisions/0003)."""
    prefetch: str = "auto"
    """Bring up the tokens that a layer will probably read while the layer below computes: `on`, `off`, or `auto`, which
    does it where that is seen to save more time than it takes. Changes no answer."""
    codec: str = "zstd"
    """The encoding of pages on disk, by name or as `name:setting=value`. `zstd`, `raw`: lossless. `int8`, `int4`: that
    many bits a number and a scale per group of them (docs/decisions/0013). `kivi`, `rotatekv`, `logquant`, `zipcache`,
    `kvquant`: published codecs of 2 bits and more, with settings such as `kivi:bits=4`. `adaptive`: lossless while
    reading pages back could hide behind computing, else as many of them as int4 as would make reads fit. Lossy pages
    are exact in memory and approximate once they have left it: answers then depend on what was spilled and when, and no
    longer repeat to the bit."""
    state_every: int | None = None
    """Tokens between the places in a prompt where layers without pages (sliding, recurrent) leave their state for other
    conversations: whole pages and multiples of 64. 0: only where a prompt ends. None: so many that states add at most a
    quarter to what pages take on disk (docs/decisions/0048). Models whose layers all have pages leave none."""

    def __post_init__(self) -> None:
        _take(self, typed.real, "gpu_gb", "host_gb", "disk_gb")
        _take(self, typed.whole, "sink", "local", "page_size", "state_every")
        _take(self, typed.text, "index", "placement", "prefetch", "codec")
        _take(self, typed.named, "dtype")
        _take(self, typed.path, "path", "profile")
        object.__setattr__(self, "budget", _whole_or_real("budget", self.budget))
        for name in ("gpu_gb", "host_gb", "disk_gb"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} is a number of gigabytes from 0, not {value}")
        for name, least in (("sink", 0), ("local", 0), ("page_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is a number of tokens from {least}, not {getattr(self, name)}")
        if self.state_every is not None and (self.state_every < 0 or self.state_every % math.lcm(64, self.page_size)):
            raise ValueError(
                f"state_every is a multiple of {math.lcm(64, self.page_size)} tokens (whole pages, and of 64) or 0, "
                f"not {self.state_every}"
            )
        if self.host_gb == 0 or self.gpu_gb == 0:
            raise ValueError("gpu_gb and host_gb are more than 0; leave them out for the default")
        self._check_index()
        if self.dtype not in ("auto", *DTYPES):
            raise ValueError(f"the cache's dtype is auto, float32, bfloat16 or float16, not {shown(self.dtype)}")
        check_compression(self.codec)
        if self.prefetch not in PREFETCH:
            raise ValueError(f"prefetch is {', '.join(PREFETCH[:-1])} or {PREFETCH[-1]}, not {shown(self.prefetch)}")
        self._check_budget()

    def _check_index(self) -> None:
        _, settings = split_spec(self.index)
        if settings:  # only the index itself knows their ranges, and it takes a tensor library to ask it
            from ..process.threads import import_torch

            import_torch()
            from ...retrieval.registry import index_class

            index_class(self.index)

        if (placing := self.placing) is not None and placing.settings:
            from ..process.threads import import_torch

            import_torch()
            placing.load()

    @property
    def placing(self) -> PlacementSpec | None:
        """What `placement` says. Raises ValueError for an unknown name, or a value of `keep` or `mode` out of range."""
        return None if self.placement is None else placement_spec(self.placement)

    def _check_budget(self) -> None:
        if isinstance(self.budget, float):
            if not 0 < self.budget < 1:
                raise ValueError(f"budget is a whole number of tokens or a fraction in (0, 1), not {self.budget}")
        elif self.budget < self.min_budget:
            raise ValueError(
                f"budget is at least {self.min_budget} tokens, not {self.budget}: "
                f"sink {self.sink} + local {self.local} + two pages of {self.page_size}"
            )

    @property
    def min_budget(self) -> int:
        """The least budget in tokens: the forced ones, rounded up to pages, the unsealed tail, and one page to
        choose."""
        params, size = self.index_params(), self.page_size
        return (params.units(self.sink, size) + params.units(self.local, size) + 2) * size

    def budget_tokens(self, context: int) -> int:
        """The number of tokens to read when the context has `context` tokens."""
        if self.budget >= 1:
            return int(self.budget)
        return max(self.min_budget, math.ceil(self.budget * context))

    def index_params(self) -> IndexParams:
        return IndexParams(page_size=self.page_size, sink=self.sink, local=self.local)

    def retrieval_settings(self) -> dict[str, Any]:
        """The settings that the KV of generated tokens depends on."""
        found = {name: getattr(self, name) for name in ("index", "budget", "sink", "local", "page_size")}
        if (placing := self.placing) is not None and placing.is_visible:
            found["placement"] = self.placement
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationConfig:
    """The settings by which tokens are chosen; names as in Hugging Face's `GenerationConfig`."""

    max_new_tokens: int = 512
    """The most tokens of a reply; -1: as many as there is room for."""
    do_sample: bool = False
    temperature: float = 0.7
    """Used only with `do_sample`, like the next three."""
    top_p: float = 0.95
    top_k: int = 50
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_repeats: int | None = None
    """A reply ends, with `finish_reason` "repeats", once its last words are this many copies of the same in a row, 48
    tokens or more together. It changes no token before. 0: never. None: 3 in a chat, never in `Runtime.generate`."""
    stop_strings: tuple[str, ...] = ()
    seed: int | None = None
    """Seed of the draws, from 0 to 2**64 - 1. In a batch, prompt number n draws with seed + n, as it would alone: equal
    prompts get different replies, the same ones each time. None: fresh randomness each time."""
    drop_thinking: bool = False
    """In a chat whose template leaves the thinking out of earlier replies: forget a reply's thinking when it is done,
    and read the rest again with the next message, as the template writes it (docs/TEMPLATES.md). Otherwise a
    conversation remembers all it said."""
    ignore_eos: bool = False
    """Go on past the end-of-sequence token and past repeats (benchmarks)."""

    def __post_init__(self) -> None:
        _take(self, typed.whole, "max_new_tokens", "top_k", "seed", "max_repeats")
        _take(self, typed.real, "temperature", "top_p", "min_p", "repetition_penalty")
        _take(self, typed.flag, "do_sample", "drop_thinking", "ignore_eos")
        object.__setattr__(self, "stop_strings", typed.texts("stop_strings", self.stop_strings))
        checks = {
            "max_new_tokens": (
                self.max_new_tokens >= 1 or self.max_new_tokens == -1, "at least 1, or -1 for as many as fit",
            ),
            "temperature": (
                1e-3 <= self.temperature < math.inf, "above 0, from 0.001; for greedy decoding leave do_sample off",
            ),
            "top_p": (0 < self.top_p <= 1, "in (0, 1]"),
            "top_k": (self.top_k >= 0, "at least 0 (0 switches it off)"),
            "min_p": (0 <= self.min_p < 1, "in [0, 1)"),
            "repetition_penalty": (1e-3 <= self.repetition_penalty <= 1e3, "above 0, from 0.001 to 1000"),
            "max_repeats": (2 <= (self.max_repeats or 2) <= 1000, "from 2 to 1000, or 0 for never"),
            "stop_strings": (
                len(self.stop_strings) <= MAX_STOPS and sum(map(len, self.stop_strings)) <= MAX_STOP_CHARACTERS,
                f"at most {MAX_STOPS} texts of {MAX_STOP_CHARACTERS} characters together",
            ),
            "seed": (self.seed is None or 0 <= self.seed < 1 << 64, "a whole number from 0 to 2**64 - 1"),
        }  # fmt: skip
        for name, (good, range_text) in checks.items():
            if not good:
                raise ValueError(f"{name} is {range_text}, not {shown(getattr(self, name))}")

    @classmethod
    def from_kwargs(cls, base: GenerationConfig | None = None, **kwargs: Any) -> GenerationConfig:
        """A configuration made of keyword arguments over `base`; knows the aliases `max_tokens` and `stop`.

        Raises ValueError for a name that is unknown or a value out of range, WrongTypeError for one of another type.
        """
        for alias, name in (("max_tokens", "max_new_tokens"), ("stop", "stop_strings")):
            if alias in kwargs and name in kwargs:
                raise ValueError(f"{alias} is another name of {name}; give one of them")
            if alias in kwargs:
                kwargs[name] = kwargs.pop(alias)
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(kwargs) - known)
        if unknown:
            raise ValueError(f"unknown generation argument(s) {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        return cls(**{**(asdict(base) if base else {}), **kwargs})

    def of_batch(self, count: int) -> list[GenerationConfig]:
        """The settings for each of `count` prompts that are continued together, with seeds of their own: one seed would
        draw the same numbers for each."""
        if self.seed is None:
            return [self] * count
        return [replace(self, seed=(self.seed + number) % (1 << 64)) for number in range(count)]


def _whole_or_real(name: str, value: Any) -> int | float:
    """An int if the number is whole, else a float."""
    number = typed.real(name, value)
    return typed.whole(name, value) if number.is_integer() else number


def _take(settings: object, kind: Callable[[str, Any], Any], *names: str) -> None:
    """Convert these fields of a frozen dataclass by `kind`, a function of `typed`. None stays where it is the
    default."""
    defaults = {field.name: field.default for field in fields(settings)}  # type: ignore[arg-type]
    for name in names:
        value = getattr(settings, name)
        if value is not None or defaults[name] is not None:
            object.__setattr__(settings, name, kind(name, value))
