"""Rows as lines for people, and the contexts at which one contestant overtakes another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..api.figures import shown


def crossovers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Find where each of ours overtakes each baseline, by batch: the context from which on ours took less time per step
    at every measured length, or None. Where one step is all that was timed nobody is ahead: those lengths are
    undecided, and so is the verdict."""
    found = []
    for batch in dict.fromkeys(row["batch"] for row in rows):
        turns = _turns([row for row in rows if row["batch"] == batch])
        for ours in (name for name in turns if name.startswith("stratakv")):
            for other in (name for name in turns if not name.startswith("stratakv")):
                shared = sorted(turns[ours].keys() & turns[other].keys())
                pairs = [(turns[ours][context], turns[other][context]) for context in shared]
                undecided = [c for c, pair in zip(shared, pairs, strict=True) if 1 in (t.get("steps") for t in pair)]
                ahead = [mine["tpot_ms_p50"] < theirs["tpot_ms_p50"] for mine, theirs in pairs]
                found.append({
                    "ours": ours, "baseline": other, "batch": batch, "contexts": shared, "undecided": undecided,
                    "ahead_from": None if undecided else _ahead_from(list(zip(shared, ahead, strict=True))),
                })  # fmt: skip
    return found


def _turns(rows: list[dict[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """The first turns by contestant and context."""
    turns: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        for one in row["contestants"]:
            turns.setdefault(one["name"], {})[row["context"]] = one["first_turn"]
    return turns


def _ahead_from(ahead: list[tuple[int, bool]]) -> int | None:
    found = None
    for context, is_ahead in reversed(ahead):
        if not is_ahead:
            break
        found = context
    return found


def describe_row(row: dict[str, Any]) -> Iterator[str]:
    """Describe one context and batch as a table."""
    width = max((len(name) for name in [*row["left_out"], *(one["name"] for one in row["contestants"])]), default=0)
    label = ", random KV" if row["random_kv"] else ""
    yield f"{row['context']} tokens, batch {row['batch']}{label}: ms per step p50 / p90, tokens/s, TTFT in s"
    for one in row["contestants"]:
        yield f"  {one['name']:{width}}  {_turn(one['first_turn'])}; second turn {_turn(one['second_turn'])}"
        if "counters" in one["first_turn"]:
            yield f"  {'':{width}}  {_traffic(one['first_turn'])}"
        if "breakdown" in one["first_turn"]:
            yield from breakdown_table(one["first_turn"]["breakdown"])
    for name, reason in row["left_out"].items():
        yield f"  {name:{width}}  left out: {reason}"


def describe_crossover(one: dict[str, Any]) -> str:
    """Say who is ahead of whom, and from which context on."""
    who = f"{one['ours']} against {one['baseline']}, batch {one['batch']}"
    lengths = ", ".join(map(str, one["contexts"]))
    if one["undecided"]:
        return f"{who}: undecided, one step is too few (measured: {lengths})"
    if one["ahead_from"] is None:
        return f"{who}: not ahead at {one['contexts'][-1]} tokens (measured: {lengths})"
    return f"{who}: ahead from {one['ahead_from']} tokens on (measured: {lengths})"


def _turn(turn: dict[str, Any]) -> str:
    steps = " / ".join(shown(turn[name], ".1f") for name in ("tpot_ms_p50", "tpot_ms_p90"))
    return f"{steps}, {shown(turn['tokens_per_s'], '.1f')}, {shown(turn['ttft_s'], '.2f')}"


def _traffic(turn: dict[str, Any]) -> str:
    moved = [f"{name.removesuffix('_bytes')} {n / 1e6:.2f} MB" for name, n in turn["bytes_per_step"].items() if n]
    hidden, share = turn["hidden_share"], turn["roofline"]["share"]
    return (
        f"a step: {', '.join(moved) or 'no page moved'}; hit rate {shown(turn['hit_rate'], '.1%')}, "
        f"stalled {shown(turn['stall_share'], '.1%')}, "
        + ("" if hidden is None else f"{hidden:.0%} of transfer time hidden, ")
        + ("faster than the roofline: out of caches" if share is None else f"{share:.1%} of the roofline")
    )


def breakdown_table(found: dict[str, Any]) -> Iterator[str]:
    """What the parts of a step took, as a table."""
    if found["form"] == "pytorch":
        yield "    PyTorch computes these steps, one operation after the other: no part is timed by itself"
    whole, steps = found["total"]["took_ms"], found["averaged_steps"]
    yield f"    {f'mean of {steps} steps':24}{'ms':>10}{'of step':>10}{'MB':>10}{'of memory speed':>18}"
    for part in [*found["parts"], {"operation": "total", **found["total"]}]:
        read, share = part["read_bytes"], part["memory_share"]
        yield (
            f"    {part['operation']:24}{part['took_ms']:10.3f}{part['took_ms'] / whole:10.1%}"
            f"{shown(None if read is None else read / 1e6, '.2f'):>10}{shown(share, '.0%'):>18}"
        )
