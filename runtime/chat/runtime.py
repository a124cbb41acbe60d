"""The front door: a model, a store, and the operations on them."""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import torch

from ...storage import Arena, PageLayout, TieredStore
from ...storage.codecs.compression import is_lossy
from ...storage.codecs.registry import plain_spec, profile_part
from ...storage.errors import NoRoomError
from ...storage.files.file_names import as_text
from ...storage.transfer import clock
from ..api import typed
from ..api.config import GenerationConfig, KVConfig
from ..api.errors import WrongTypeError
from ..api.reply import Reply
from ..api.stats import Stats, TierStats
from ..engine.batch import check_open_pages, within_memory
from ..engine.engine import Engine
from ..engine.generate import generate, read_prompt
from ..engine.held import held_by
from ..engine.indexes import make_indexes
from ..engine.planner import Plan, chunk_of, make_plan
from ..engine.profile import Profiles
from ..engine.sequence import Sequence
from ..layers.prefetch import Prefetcher
from ..layers.workspace import Workspace
from ..model.conversion import tell
from ..model.identity import former_identity, gguf_digest, identity_of
from ..model.locate import cache_dir, locate, locate_file
from ..model.mapped import MappedWeights
from ..model.model import Model
from ..model.template import Template, as_array
from ..model.which_weights import which_weights
from ..process import compiled
from ..process.apart import apart
from ..process.devices import pick_device, pick_dtype
from ..process.threads import one_in_a_child
from ..process.turns import Turns
from ..sessions import session
from ..sessions.home import find_home
from ..sessions.saved import needed_chains
from ..sessions.store_cap import in_use_beside, open_disk, with_disk, without_disk
from .chat import Chat
from .loaded import Loaded
from .long_texts import refuse_long

logger = logging.getLogger(__name__)


class Runtime(Loaded):
    """A loaded model over a tiered KV store. Make one with `Runtime.load`; close it, or use `with`."""

    def __init__(
        self, model: Model, store: TieredStore, engine: Engine, plan: Plan, config: KVConfig, name: str,
        profiles: Profiles,
    ) -> None:  # fmt: skip
        super().__init__(model, store, engine, plan, config, name, profiles)
        self._finalizer = weakref.finalize(self, _close, engine.turns, engine.prefetcher, store)

    @classmethod
    @apart()
    def load(
        cls,
        model: str | os.PathLike[str],
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        weights: str = "auto",
        kv: KVConfig | None = None,
        local_files_only: bool = False,
        on_convert: Callable[[str], None] = tell,
        on_compile: Callable[[], None] = compiled.tell,
    ) -> Runtime:
        """Load a model and open its store.

        Args:
            model: alias (`smollm2`, `gemma3-270m`), hub id, Hugging Face directory or `.gguf` path.
            device: `auto`, `cpu`, `cuda` or `cuda:N`.
            dtype: `auto`, `float32`, `bfloat16` or `float16`. `auto` is bfloat16 (float16 on a GPU that
                lacks it). On a CPU that multiplies 16-bit matrices slowly, prefill computes in float32.
            weights: the weights that decode multiplies with. `file`: a GGUF file's as they stand in it, on a CPU:
                neither converted nor held in memory, and not rounded to `dtype`. They are another model than the
                converted ones to a store, which keeps their caches apart. `own`: the model's. `int8`: rounded to 8
                bits; `int4`, on a GPU: to 4 bits. Lossy: replies differ from the model's own. On a GPU they are rounded
                as they are loaded, and nothing else of the layers is there: prompts are read with them, too, and to a
                store they are another model. On a CPU `int8` is beside the layers' own, in half again as much memory,
                and prompts are read with those. `auto`: `file` where decode is compiled and all matrices can be read
                so, else `own`.
            kv: the places where the cache may live, and how it is read.
            on_convert: called before a GGUF file is converted (once per file) with its name, the room that this needs
                and the room free.
            on_compile: called, from another thread, before decode is compiled for this processor (once per version).

        Raises:
            ModelFileError: the model is not there, not usable, or was replaced meanwhile. ValueError: device, dtype or
                weights unknown, or the model's weights cannot be had so.
            ProfileError: the index or the codec needs a profile of this model, and has none.
            DoesNotFitError: the tiers' caps are too small to work in.
            StoreUnavailableError: the store folder cannot be used.
        """
        if not isinstance(kv, KVConfig | None):
            raise WrongTypeError(f"kv is a KVConfig, not {typed.shown(kv)}")
        model, kv = str(typed.path("model", model)), kv or KVConfig()
        device, dtype = typed.named("device", device), typed.named("dtype", dtype)
        weights = typed.text("weights", weights)
        local_files_only = typed.flag("local_files_only", local_files_only)
        typed.called("on_convert", on_convert)
        typed.called("on_compile", on_compile)
        one_in_a_child()
        where = pick_device(device)
        kind = pick_dtype(dtype, where)
        weights = which_weights(weights, model, where, kind, kv.dtype)
        if where.type == "cpu" and compiled.is_available():  # not before a file has been looked at that may be damaged
            compiled.begin(cache_dir(), on_compile)
        files: list[Path] = []
        if weights == "file":
            directory, files = locate_file(model)
        else:
            directory = locate(model, kind, local_files_only=local_files_only, on_convert=on_convert)
        mapped = MappedWeights(directory, files)
        profiles = Profiles(directory, model)
        profiles.needed(kv)  # before the weights are read: a missing profile is told at once
        check: list[Future[None]] = []
        with ThreadPoolExecutor(1) as beside:  # the template is rendered by another process, while weights are read
            loaded = Model.load(
                directory, where, getattr(torch, kind), weights, files=files,
                on_tokenizer=lambda tokenizer: check.append(beside.submit(Template(tokenizer).check)),
            )  # fmt: skip
            check[0].result()
        runtime = cls.over(loaded, directory, kv, profiles)
        try:
            mapped.guard(runtime.store.disk)
        except BaseException:
            runtime.close()
            raise
        logger.info("%s on %s, weights=%s", runtime.name, where, loaded.weights)
        return runtime

    @classmethod
    def over(cls, model: Model, directory: Path, kv: KVConfig, profiles: Profiles) -> Runtime:
        """Open a store for a model that is in memory already; several runtimes may share one.

        Args:
            directory: the directory it was loaded from; names it in the store.

        Raises as `load` does.
        """
        where, name = model.device, profiles.name
        dtype = str(model.dtype).removeprefix("torch.") if kv.dtype == "auto" else kv.dtype
        layout = page_layout(model, kv.page_size, dtype)
        folder = Path(os.path.expanduser(kv.path)) if kv.path is not None else cache_dir() / "kv"
        held, chunk = held_by(model, layout), chunk_of(where.type, layout)
        plan = with_disk(make_plan(kv, layout, len(model.tiered), where, chunk, held), kv, folder)
        if kv.disk_gb is None and not plan.disk_bytes:
            logger.warning("going on without a disk tier, nothing is kept: to keep something %s", plan.disk_knob)
        try:
            store = _open_store(plan, model, directory, profiles, kv, folder, where)
        except NoRoomError as error:
            logger.warning("going on without a disk tier, nothing is kept: %s", error)
            plan = without_disk(plan, folder)
            store = _open_store(plan, model, directory, profiles, kv, folder, where)
        in_use = 0 if store.disk is None else in_use_beside(store.disk.folder)
        plan = replace(plan, disk_bytes=0 if store.disk is None else max(0, plan.disk_bytes - in_use))
        engine = Engine(
            model, store, make_indexes(model, kv, profiles.needed(kv)), kv,
            Workspace(layout, plan.span_tokens, where, model.turns, num_past=plan.num_past), chunk,
            None if kv.prefetch == "off" else Prefetcher(is_forced=kv.prefetch == "on"),
        )  # fmt: skip
        return cls(model, store, engine, plan, kv, as_text(name), profiles)

    def reading(self, kv: KVConfig, like: Engine | None = None) -> Engine:
        """A second engine over the same model and store that finds its tokens as `kv` says (index, budget,
        sink, local); its tiers are this runtime's. Sequences of one can be forked by the other.

        Args:
            like: an engine that differs in its budget only, or in how much its placement keeps. Both then share the
                index and placement objects, so that a fork copies what they know instead of learning it again.
        """
        engine = self.engine
        indexes = (
            make_indexes(self.model, kv, self.profiles.needed(kv)) if like is None else list(like.indexes.values())
        )
        return Engine(
            engine.model, engine.store, indexes, kv, engine.workspace, engine.chunk, engine.prefetcher,
            None if like is None else like.placements,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"<Runtime of {self.name} on {self.model.device}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Runtime can be neither copied nor sent to another process: it holds a model and an open store; load one "
            "there with Runtime.load, over the same store folder"
        )

    def chat(self, system: str | None = None, session: str | None = None) -> Chat:
        """Begin a conversation; `session` resumes one that was saved under that name.

        Raises SessionError if there is no such session; ValueError if `system` cannot be used; ForkedError in a child
        of the process that loaded the model.
        """
        self.engine.turns.require_process()
        if session is not None:
            if system is not None:
                raise ValueError("a resumed session has its system prompt already; give session or system, not both")
            return Chat.resume(self, session)
        system = None if system is None else typed.text("the system prompt", system)
        return Chat(self, self.engine.new_sequence(), system=system)

    def generate(self, prompts: str | Iterable[str], **generation: Any) -> list[Reply]:
        """Continue several prompts of any lengths in one batch; a `Reply` per prompt, in order. A single text is a
        batch of one.

        Prompts are continued as they are, without a chat template: whoever calls writes control tokens into them, and
        takes them out of texts that come from others. They begin as `tokenizer(prompt)` does, with BOS if the
        tokenizer is made so (once, where the prompt has it already); an EOS that it would put behind them is left out.

        Raises:
            ValueError: a prompt is empty, or a generation argument is unknown or out of range.
            WrongTypeError: a prompt is no text, or a generation argument is of another type.
            DoesNotFitError: together they exceed the tiers, or one exceeds the model's window.
        """
        asked = clock.now()
        config = GenerationConfig.from_kwargs(**generation)
        self.engine.turns.require_process()
        texts = [typed.text(f"prompt {number}", each) for number, each in enumerate(typed.several("prompts", prompts))]
        for number, text in enumerate(texts):
            refuse_long(self, 0, text, f"prompt {number}")
        template = Template(self.tokenizer)
        ids = [template.encode_prompt(text) for text in texts]
        for number, prompt in enumerate(ids):
            if not prompt:
                raise ValueError(f"prompt {number} is empty")
            self.check_fits(0, len(prompt) + 1, f"prompt {number}")
        if not ids:
            return []
        with self.engine.turn():  # conversations that were dropped have given their pages up
            config = self._within_room(config, [len(prompt) for prompt in ids])
        sequences: list[Sequence] = []
        replies, logits = [Reply() for _ in ids], []
        try:
            for prompt, reply in zip(ids, replies, strict=True):
                sequences.append(self.engine.new_sequence())
                logits.append(read_prompt(self.engine, sequences[-1], as_array(prompt), reply))
            for _ in generate(self.engine, sequences, logits, config.of_batch(len(ids)), replies, asked):
                pass
        finally:
            for sequence in sequences:
                sequence.close()
        return replies

    def _within_room(self, config: GenerationConfig, lengths: list[int]) -> GenerationConfig:
        """The settings with a number of new tokens that the tiers hold: for `max_new_tokens=-1` as many as fit for each
        of the batch. A number that is too large is refused."""
        check_open_pages(self.plan, self.store, len(lengths))
        window, new = self.model.max_positions, config.max_new_tokens
        if new > 0:
            self._check_room(0, sum(length + min(new, window - length) for length in lengths), "the batch")
        else:
            self._check_room(0, sum(lengths) + len(lengths), "the batch")  # tokens that may come claim no room yet
            new = max(1, self.room_tokens(sum(lengths)) // len(lengths))
        new = within_memory(self.plan, self.store, window, lengths, new, is_asked=config.max_new_tokens > 0)
        return replace(config, max_new_tokens=new)

    def stats(self) -> Stats:
        """Bytes and pages per tier, reads by tier, bytes moved per edge, stalls."""
        counters = self.store.counters
        tiers: dict[str, TierStats] = {}
        reads = {"gpu": counters.gpu_reads, "host": counters.host_reads, "disk": counters.disk_reads}
        for tier in (self.store.gpu, self.store.host, self.store.disk):
            if tier is not None:
                tiers[tier.name] = {
                    "cap_bytes": tier.cap_bytes, "used_bytes": tier.used_bytes,
                    "pages": tier.num_pages, "page_reads": reads[tier.name],
                }  # fmt: skip
        return {
            "model": self.name,
            "device": str(self.model.device),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "weights": self.model.weights,
            "kv_dtype": self.store.layout.dtype,
            "index": self.engine.index_name,
            "budget": self.config.budget,
            "tokens_read": self.engine.tokens_read,
            "tiers": tiers,
            "hit_rate": counters.hit_rate,
            "edges": {
                "host_to_gpu_bytes": counters.host_to_gpu_bytes,
                "gpu_to_host_bytes": counters.gpu_to_host_bytes,
                "disk_to_host_bytes": counters.disk_to_host_bytes,
                "host_to_disk_bytes": counters.host_to_disk_bytes,
            },
            "pages_written": counters.pages_written,
            "pages_shared": counters.pages_shared,
            "pages_recomputed": counters.pages_recomputed,
            "states": 0 if self.store.disk is None else self.store.disk.num_states,
            "state_every": self.engine.prefixes.state_every,
            "stall_s": counters.stall_s,
            "codec": self.config.codec,
            "int4_share": self.store.compression.share,
            "disk_error": str(self.store.disk_error) if self.store.disk_error else None,
        }

    def sessions(self) -> list[str]:
        """Names of the sessions saved for this model and these settings."""
        return session.names(self.store.disk) if self.store.disk is not None else []

    def close(self) -> None:
        """Finish writing and close the store, between two steps of whoever is using it. Safe to call twice, and in a
        forked child, where it does nothing.

        Raises ConversationError from inside `on_progress`.
        """
        if self.engine.turns.is_forked:
            return
        with self.engine.turn():
            self._finalizer()

    def __enter__(self) -> Runtime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def page_layout(model: Model, page_size: int, dtype: str) -> PageLayout:
    """The layout of a model's pages."""
    return PageLayout(
        num_heads=model.num_kv_heads, page_size=page_size, head_dim=model.head_dim, value_dim=model.value_dim,
        dtype=dtype,
    )  # fmt: skip


def _open_store(
    plan: Plan, model: Model, directory: Path, profiles: Profiles, kv: KVConfig, folder: Path, device: torch.device
) -> TieredStore:
    layout = plan.layout
    disk = None
    known = profiles.needed(kv) if profile_part(kv.codec) else {}
    if plan.disk_bytes:
        settings: dict[str, Any] = {
            "dtype": str(model.dtype),
            "layout": {**layout.stated(), "keys_rotated": True},  # which every store says, for all keys are
        }
        if model.weights == "file":
            settings["products"] = "file"  # in fp32 with the file's numbers, whatever the dtype
        elif model.packing is not None:
            settings |= model.packing.stated
        if is_lossy(kv.codec):
            settings["codec"] = plain_spec(kv.codec)  # its pages may be approximate: no other run may find them
        if known:
            settings["codec_profile"] = bytes(next(iter(known.values()))["digest"].tolist()).hex()
        home = find_home(
            folder, profiles.name, identity_of(directory, settings), {"gguf": gguf_digest(directory)},
            former=lambda: former_identity(directory, settings),
        )  # fmt: skip
        disk = open_disk(home, plan.disk_bytes, plan.disk_knob)
    reserved = plan.reserved_bytes
    cuda = device.type == "cuda"
    cpu = torch.device("cpu")
    gpu = None
    if plan.gpu_bytes is not None:
        gpu = Arena("gpu", plan.gpu_bytes, layout.page_bytes, device, reserved_bytes=reserved)
        reserved = 0
    regions = len(model.tiered) if cuda else 1
    host = Arena("host", plan.host_bytes, layout.page_bytes, cpu, pin=cuda, reserved_bytes=reserved, regions=regions)
    learned = {layer: {name: tensor.numpy() for name, tensor in parts.items()} for layer, parts in known.items()}
    store = TieredStore(layout, len(model.tiered), host=host, gpu=gpu, disk=disk, codec=kv.codec, profiles=learned)
    if disk is not None:
        store.chains_to_keep = lambda: needed_chains(disk)
    return store


def _close(turns: Turns, prefetcher: Prefetcher | None, store: TieredStore) -> None:
    if turns.is_forked:  # a child that ends: its threads are not there, and what it has of the store is the parent's
        return
    if prefetcher is not None:
        prefetcher.close()
    store.close()
