"""Reports of the chat's commands about the conversation and its store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING

from rich.table import Table

from ..api.config import GenerationConfig
from ..api.figures import Stopwatch, shown
from ..api.reply import REPEATS
from ..process.terminal import printable
from ..sessions.elsewhere import names_by_settings
from ..sessions.store_cap import beside, told_about

if TYPE_CHECKING:
    from rich.console import Console

    from ..chat.chat import Chat
    from ..chat.runtime import Runtime


def status(runtime: Runtime, chat: Chat) -> str:
    """The status in one line: tokens in context, bytes per tier, speed, hit rate."""
    stats, last = runtime.stats(), chat.last
    tiers = " ".join(f"{name} {tier['used_bytes'] / 1e6:.0f} MB" for name, tier in stats["tiers"].items())
    ended = f" · {REPEATS}; /set max_repeats 0 lets it go on" if last.finish_reason == "repeats" else ""
    return (
        f"{chat.num_tokens} tokens in context · {tiers} · "
        f"{shown(last.timings.steps_per_second, '.1f')} tok/s · hit rate {shown(stats['hit_rate'], '.0%')}{ended}"
    )


def stats(console: Console, runtime: Runtime, chat: Chat) -> None:
    found = runtime.stats()
    table = Table("tier", "cap", "used", "pages", "page reads", box=None, header_style="dim")
    for name, tier in found["tiers"].items():
        sizes = [f"{size / 1e6:.1f} MB" for size in (tier["cap_bytes"], tier["used_bytes"])]
        table.add_row(name, *sizes, str(tier["pages"]), str(tier["page_reads"]))
    console.print(table)
    moved = ", ".join(
        f"{edge.removesuffix('_bytes').replace('_', ' ')} {n / 1e6:.1f} MB" for edge, n in found["edges"].items()
    )
    console.print(f"moved: {moved}")
    if found["state_every"]:
        console.print(
            f"{found['states']} states on disk for other conversations that begin alike; a prompt leaves one every "
            f"{found['state_every']} tokens"
        )
    if found["codec"] == "adaptive":
        console.print(f"{found['int4_share']:.0%} of new pages are written to disk as int4")
    console.print(
        f"hit rate {shown(found['hit_rate'], '.1%')}, stalled {found['stall_s']:.2f} s, "
        f"{found['tokens_read']} tokens read per head at the last step"
    )
    console.print(status(runtime, chat))


def loaded(runtime: Runtime) -> str:
    """The model, where it computes, and what decode multiplies with."""
    dtype = str(runtime.model.dtype).removeprefix("torch.")
    weights = {"own": f"in {dtype}", "int8": "in int8", "int4": "in int4", "file": "as its file has them"}[
        runtime.model.weights
    ]
    return f"{printable(runtime.name)} on {runtime.model.device}, weights {weights}"


def sessions_elsewhere(runtime: Runtime) -> list[str]:
    """A line for each other way to load the model that finds sessions of its own."""
    if runtime.store.disk is None:
        return []
    others = names_by_settings(runtime.store.disk)
    return [f"with {settings}: {', '.join(map(printable, sorted(names)))}" for settings, names in others.items()]


def show(console: Console, runtime: Runtime) -> None:
    from ..model.template import Template

    console.print(
        f"{loaded(runtime)}, cache in {runtime.store.layout.dtype}; "
        f"index {runtime.engine.index_name}, budget {runtime.config.budget}"
    )
    console.print(
        f"{runtime.plan.token_bytes} bytes of KV per token; trained for {runtime.model.max_positions} positions"
    )
    for habit in Template(runtime.tokenizer).habits():
        console.print(f"chat template: {habit}")
    for tier, cap, tokens in runtime.plan.rows():
        console.print(f"  {tier:5} cap {cap:>8}  holds {tokens} tokens")
    if runtime.store.disk is not None:
        console.print(f"  store {printable(str(runtime.store.disk.folder))}")
        for line in told_about(beside(runtime.store.disk.folder)):
            console.print(f"  beside it {printable(line)}")


def settings(config: GenerationConfig) -> str:
    return " ".join(f"{field.name}={getattr(config, field.name)!r}" for field in fields(config))


def timed(work: Callable[[], object]) -> float:
    """The seconds that `work` takes."""
    with Stopwatch() as watch:
        work()
    return watch.seconds
