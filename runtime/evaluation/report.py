"""A result as tables for people. docs/EVALUATION.md explains the columns."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..api.figures import shown

_WIDTH = 1_000
"""Characters of a line in a file or a pipe: tables there are as wide as they need to be."""
_FIDELITY = (
    "tokens read", "recall", "mass", "out. err",
    "KL", "x oracle", "95 %", "p99", "worst KL", "top-1 %", "ppl %", "B/token", "fixed kB",
)  # fmt: skip
_QUESTIONS = {
    "sparse": "read sparsely",
    "exact": "read exactly up to the reply",
    "prompt": "the first question in the prompt",
}


def show(result: dict[str, Any], console: Console | None = None) -> None:
    """Print a result and what it passed or missed."""
    console = console or Console()
    if not console.is_terminal:
        console.width = _WIDTH
    console.print(_TABLES[result["suite"]](result))
    for line in _verdicts(result):
        console.print(line, highlight=False, markup=False)


def _exact(result: dict[str, Any]) -> Table:
    table = _table(result["suite"], "check", right=("error", "bound"), last=("",))
    for check in result["checks"]:
        verdict = "ok" if check["passed"] else escape(f"FAILED {check['note']}")
        table.add_row(check["name"], shown(check["error"], ".2g"), f"{check['bound']:.2g}", verdict)
    return table


def _fidelity(result: dict[str, Any]) -> Table:
    table = _table(_title(result), "", right=_FIDELITY)
    budget = None
    for row in result["variants"]:
        if row["budget"] != budget:
            table.add_section()
        budget = row["budget"]
        interval = row["kl_interval"]
        table.add_row(
            row["label"], f"{row['tokens_read']:.0f}",
            *(f"{row[name]:.3f}" for name in ("recall", "mass", "output_error")),
            f"{row['kl']:.4f}", shown(row["kl_over_oracle"], ".1f"),
            "-" if interval is None else "-".join(f"{end:.3f}" for end in interval),
            f"{row['kl_p99']:.3f}", f"{row['worst_context_kl']:.4f}", f"{100 * row['top1_agree']:.1f}",
            f"{100 * row['perplexity_change']:+.1f}", f"{row['index_bytes']:.0f}",
            f"{row['index_fixed_bytes'] / 1000:.1f}",
        )  # fmt: skip
    return table


def _needles(result: dict[str, Any]) -> Table:
    modes = tuple(result["variants"][0]["modes"])
    table = _table(_title(result), "digits right, %", right=("tokens read", *modes, "worst turn", "worst depth"))
    for row in result["variants"]:
        cells = [_against(row["modes"][mode]["digits"]) for mode in modes]
        worst = [f"{100 * row[name]:+.0f}" for name in ("worst_turn", "worst_depth")]
        table.add_row(row["label"], f"{row['tokens_read']:.0f}", *cells, *worst)
    return table


def _tasks(result: dict[str, Any]) -> Table:
    rows = result["variants"]
    table = _table(_title(result), "found % / forced %", right=tuple(row["label"] for row in rows))
    for task in result["tasks"]:
        of = [row["by_task"][task] for row in rows]
        mark = "" if task in rows[0]["gated"] else " (not gated)"
        table.add_row(f"{task}{' *' if of[0]['intensive'] else ''}{mark}", *map(_both, of))
    table.add_section()
    table.add_row("all tasks", *(_both(row["all_tasks"]) for row in rows))
    table.add_row("gated tasks", *(_against(row["gated_found"]) if row["gated_found"] else "-" for row in rows))
    table.add_row("kept of dense, %", *(_kept(row) for row in rows))
    table.add_row("worst gated task", *(row["worst_task"] or "-" for row in rows))
    table.add_row("empty replies", *(str(row["all_tasks"]["empty"]) for row in rows))
    table.add_row("tokens read", *(f"{row['tokens_read']:.0f}" for row in rows))
    return table


_TABLES = {"exact": _exact, "fidelity": _fidelity, "needles": _needles, "tasks": _tasks}


def _both(of: dict[str, Any]) -> str:
    return f"{100 * of['found']['other']:.0f} / {100 * of['forced']['other']:.0f}"


def _kept(row: dict[str, Any]) -> str:
    """Found, over the gated tasks, and forced, over all of them, as shares of dense."""
    shares = (row["found_over_dense"], row["forced_over_dense"])
    return " / ".join("-" if share is None else f"{100 * share:.1f}" for share in shares)


def _against(of: dict[str, Any]) -> str:
    """The share, and in brackets how many pairs only dense had right and only this one had, if there are any."""
    if not of["only_dense"] and not of["only_other"]:
        return f"{100 * of['other']:.1f}"
    return f"{100 * of['other']:.1f} (-{of['only_dense']} +{of['only_other']})"


def _title(result: dict[str, Any]) -> str:
    exempt = len(result["exempt_windows"])
    layers = f", {exempt} of {exempt + result['indexed_layers']} layers exempt" if exempt else ""
    return (
        f"{result['suite']}: {result['model']} {result['dtype']}, {result['samples']} x {result['ctx']} tokens, "
        f"{_QUESTIONS[result['question']]}{layers}"
    )


def _table(title: str, first: str, *, right: tuple[str, ...], last: tuple[str, ...] = ()) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column(first)
    for name in right:
        table.add_column(name, justify="right")
    for name in last:
        table.add_column(name)
    return table


def _verdicts(result: dict[str, Any]) -> list[str]:
    if result["suite"] == "exact":
        failed = sum(not check["passed"] for check in result["checks"])
        return [f"{failed} of {len(result['checks'])} checks failed" if failed else "all checks passed"]
    found = []
    for row in result["variants"]:
        if "misses" in row:
            if row["misses"]:
                found.append(f"{row['label']} misses: {'; '.join(row['misses'])}")
            if row["undecided"]:
                found.append(f"{row['label']}: {len(row['undecided'])} of its marks undecided, the samples are too few")
            if not row["misses"] and not row["undecided"]:
                found.append(f"{row['label']} meets all marks")
    return found
