"""Rows in lines for people, and where one contestant overtakes another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def crossovers(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each of ours against each baseline and batch: the context from which on ours took less time per token at
    every measured length, or None."""
    found = []
    for batch in dict.fromkeys(row["batch"] for row in rows):
        times = _times([row for row in rows if row["batch"] == batch])
        for ours in (name for name in times if name.startswith("stratakv")):
            for other in (name for name in times if not name.startswith("stratakv")):
                shared = sorted(times[ours].keys() & times[other].keys())
                found.append({
                    "ours": ours, "baseline": other, "batch": batch, "contexts": shared,
                    "ahead_from": _ahead_from([(c, times[ours][c] < times[other][c]) for c in shared]),
                })  # fmt: skip
    return found


def _times(rows: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """By contestant and context: the median step of the first turn, in ms."""
    times: dict[str, dict[int, float]] = {}
    for row in rows:
        for one in row["contestants"]:
            times.setdefault(one["name"], {})[row["context"]] = one["first_turn"]["tpot_ms_p50"]
    return times


def _ahead_from(ahead: list[tuple[int, bool]]) -> int | None:
    found = None
    for context, is_ahead in reversed(ahead):
        if not is_ahead:
            break
        found = context
    return found


def describe_row(row: dict[str, Any]) -> Iterator[str]:
    """A table of one context and batch."""
    width = max((len(name) for name in [*row["left_out"], *(one["name"] for one in row["contestants"])]), default=0)
    label = ", random KV" if row["random_kv"] else ""
    yield f"{row['context']} tokens, batch {row['batch']}{label}: ms per token p50 / p90, tokens/s, TTFT in s"
    for one in row["contestants"]:
        yield f"  {one['name']:{width}}  {_turn(one['first_turn'])}; second turn {_turn(one['second_turn'])}"
        if "counters" in one["first_turn"]:
            yield f"  {'':{width}}  {_traffic(one['first_turn'])}"
    for name, reason in row["left_out"].items():
        yield f"  {name:{width}}  left out: {reason}"


def describe_crossover(one: dict[str, Any]) -> str:
    """Who is ahead of whom from where on."""
    who = f"{one['ours']} against {one['baseline']}, batch {one['batch']}"
    lengths = ", ".join(map(str, one["contexts"]))
    if one["ahead_from"] is None:
        return f"{who}: not ahead at {one['contexts'][-1]} tokens (measured: {lengths})"
    return f"{who}: ahead from {one['ahead_from']} tokens on (measured: {lengths})"


def _turn(turn: dict[str, Any]) -> str:
    first = "-" if turn["ttft_s"] is None else f"{turn['ttft_s']:.2f}"
    return f"{turn['tpot_ms_p50']:.1f} / {turn['tpot_ms_p90']:.1f}, {turn['tokens_per_s']:.1f}, {first}"


def _traffic(turn: dict[str, Any]) -> str:
    moved = [f"{name.removesuffix('_bytes')} {n / 1e6:.2f} MB" for name, n in turn["bytes_per_step"].items() if n]
    hidden = turn["hidden_share"]
    return (
        f"a step: {', '.join(moved) or 'no page moved'}; hit rate {turn['hit_rate']:.1%}, "
        f"stalled {turn['stall_share']:.1%}, "
        + ("" if hidden is None else f"{hidden:.0%} of transfer time hidden, ")
        + f"{turn['roofline']['share']:.1%} of the roofline"
    )
