"""Attention over selected units of paged sequences: against plain attention, and Triton against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closeness import assert_close, poison_empty
from torch import Tensor
from triton_device import DEVICE, MARKS

from stratakv.kernels.decode_attention import decode_attention_reference
from stratakv.kernels.paged_attention import (
    paged_attention,
    paged_attention_reference,
    paged_attention_triton,
)
from stratakv.kernels.rotary import rotated

pytestmark = MARKS
KERNELS = [paged_attention_reference, paged_attention_triton]
PAGE = 8


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_empty(monkeypatch)


class Drawn:
    """Two sequences of 4 and 6 pages, scattered over a pool whose other slots are NaN."""

    def __init__(self, heads: int = 3, dim: int = 64, dtype: torch.dtype = torch.float32, groups: int = 2) -> None:
        self.random = torch.Generator().manual_seed(heads * 1000 + dim)
        self.groups, self.heads, self.dim = groups, heads, dim
        self.q = self.normal(2, groups, heads, dim).to(dtype)
        self.kv = self.normal(2, 6 * PAGE, groups, 2, dim).to(dtype)  # by sequence and position
        self.table = torch.full((2, 6), 10**9, dtype=torch.int32, device=DEVICE)
        slots = torch.randperm(16, generator=self.random).int().to(DEVICE)
        self.table[0, :4], self.table[1] = slots[:4], slots[4:10]
        self.pool = torch.full((16, groups, 2, PAGE, dim), float("nan"), dtype=dtype, device=DEVICE)
        for row, pages in ((0, 4), (1, 6)):
            each = self.kv[row, : pages * PAGE].view(pages, PAGE, groups, 2, dim)
            self.pool[self.table[row, :pages].long()] = each.permute(0, 2, 3, 1, 4)
        self.scale = dim**-0.5

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.random).to(DEVICE)

    def ids(self, unit: int, count: int) -> Tensor:
        """Distinct ones for each KV head of each sequence, `[2, G, count]`."""
        most = [pages * PAGE // unit for pages in (4, 6)]
        rows = [
            torch.stack([torch.randperm(n, generator=self.random)[:count].sort().values for _ in range(self.groups)])
            for n in most
        ]
        return torch.stack(rows).to(DEVICE)

    def plain(self, row: int, group: int, positions: list[int], turn: Any = None) -> tuple[Tensor, Tensor]:
        """Attention of one KV head over tokens at `positions`, un-paged."""
        keys, values = self.kv[row, positions, group].unbind(1)
        keys = keys if turn is None else rotated(keys.float(), turn[0][positions], turn[1][positions])
        runs = [(keys.unsqueeze(0), values.unsqueeze(0))]
        out, lse = decode_attention_reference(self.q[row, group].unsqueeze(0), runs, scale=self.scale)
        return out[0], lse[0]


def close(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    assert found[0].dtype == dtype
    assert found[1].dtype == torch.float32
    assert_close("out", found[0], expected[0], dtype)
    assert torch.equal(found[1].isinf(), expected[1].isinf())
    assert_close("lse", found[1].nan_to_num(neginf=0), expected[1].nan_to_num(neginf=0))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("unit", [1, 4, PAGE])
def test_against_plain_attention(kernel: Any, unit: int) -> None:
    """Ragged: other selections for each head, other counts, and a length that ends inside a selected unit."""
    drawn = Drawn()
    ids = drawn.ids(unit, 4)
    counts = torch.tensor([[4, 2], [3, 1]], dtype=torch.int32, device=DEVICE)
    ids[0, 1, 2:] = ids[1, 1, 1:] = 10**9  # what does not count may be anything
    last = int(ids[1, 0, 2]) * unit + unit // 2 + 1
    lengths = torch.tensor([1000, last], device=DEVICE)
    out, lse = kernel(
        drawn.q, drawn.pool, drawn.table, ids, unit=unit, scale=drawn.scale, counts=counts, lengths=lengths
    )
    for row in range(2):
        for group in range(2):
            units = ids[row, group, : counts[row, group]].tolist()
            positions = [i * unit + offset for i in units for offset in range(unit)]
            seen = [at for at in positions if at < lengths[row]]
            if seen:
                expected = drawn.plain(row, group, seen)
                close((out[row, group], lse[row, group]), expected, torch.float32)
            else:
                assert out[row, group].eq(0).all()
                assert lse[row, group].eq(-torch.inf).all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("width", [32, 16, 1])
def test_keys_are_rotated_by_their_positions(kernel: Any, width: int) -> None:
    drawn = Drawn()
    angle = torch.arange(6 * PAGE, device=DEVICE).unsqueeze(1) * drawn.normal(1, width)
    turn = angle.cos() * 1.1, angle.sin() * 1.1
    ids = drawn.ids(4, 5)
    out, lse = kernel(drawn.q, drawn.pool, drawn.table, ids, unit=4, scale=drawn.scale, cos=turn[0], sin=turn[1])
    for row in range(2):
        for group in range(2):
            positions = [i * 4 + offset for i in ids[row, group].tolist() for offset in range(4)]
            close((out[row, group], lse[row, group]), drawn.plain(row, group, positions, turn), torch.float32)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sides", [1, 2])
def test_keys_may_come_from_elsewhere(kernel: Any, sides: int) -> None:
    """Those in the pool are not looked at, and need not be there."""
    drawn = Drawn()
    pool = drawn.pool[:, :, 1:].contiguous() if sides == 1 else drawn.pool.clone()
    pool[:, :, :-1] = torch.nan
    ids, counts = drawn.ids(2, 5), torch.tensor([[5, 0], [4, 1]], device=DEVICE)
    keys = torch.full((2, 2, 10, drawn.dim), torch.nan, device=DEVICE)
    places = {}
    for row in range(2):
        for group in range(2):
            units = ids[row, group, : counts[row, group]].tolist()
            places[row, group] = [i * 2 + offset for i in units for offset in range(2)]
            keys[row, group, : len(places[row, group])] = drawn.kv[row, places[row, group], group, 0]
    out, lse = kernel(drawn.q, pool, drawn.table, ids, unit=2, scale=drawn.scale, counts=counts, keys=keys)
    for (row, group), positions in places.items():
        if positions:
            close((out[row, group], lse[row, group]), drawn.plain(row, group, positions), torch.float32)
        else:
            assert out[row, group].eq(0).all()
            assert lse[row, group].eq(-torch.inf).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_bias(kernel: Any) -> None:
    """Dropping tokens leaves attention over the others; a bias of log 2 counts a token twice; all dropped is empty."""
    drawn = Drawn(heads=2)
    ids = torch.tensor([[[0, 2], [0, 2]]] * 2, device=DEVICE)
    bias = torch.zeros(2, 2, 2, 2 * PAGE, device=DEVICE)
    bias[0, 0, :, PAGE:] = -torch.inf
    bias[0, 1, 0, 3] = torch.tensor(2.0).log()
    bias[1, 1, 1] = -torch.inf
    out, lse = kernel(drawn.q, drawn.pool, drawn.table, ids, unit=PAGE, scale=drawn.scale, bias=bias)
    first, both = list(range(PAGE)), [*range(PAGE), *range(2 * PAGE, 3 * PAGE)]
    close((out[0, 0], lse[0, 0]), drawn.plain(0, 0, first), torch.float32)
    twice, plain = drawn.plain(0, 1, [*both, 3]), drawn.plain(0, 1, both)
    close((out[0, 1, :1], lse[0, 1, :1]), (twice[0][:1], twice[1][:1]), torch.float32)
    close((out[0, 1, 1:], lse[0, 1, 1:]), (plain[0][1:], plain[1][1:]), torch.float32)
    assert out[1, 1, 1].eq(0).all()
    assert lse[1, 1, 1] == -torch.inf


@pytest.mark.parametrize(
    ("heads", "dim", "dtype"),
    [
        (1, 64, torch.float16), (2, 80, torch.float32), (5, 96, torch.bfloat16), (8, 256, torch.float32),
        (16, 512, torch.bfloat16),
    ],
)  # fmt: skip
def test_triton_against_the_reference(heads: int, dim: int, dtype: torch.dtype) -> None:
    drawn = Drawn(heads, dim, dtype)
    ids = drawn.ids(2, 11)
    turn = drawn.normal(6 * PAGE, dim // 2), drawn.normal(6 * PAGE, dim // 2)
    given: dict[str, Any] = {
        "unit": 2, "scale": drawn.scale, "counts": torch.tensor([[11, 0], [10, 1]], device=DEVICE),
        "lengths": torch.tensor([31, 47], device=DEVICE), "bias": drawn.normal(2, 2, heads, 22),
    }  # fmt: skip
    for rotation in ({}, {"cos": turn[0], "sin": turn[1]}, {"keys": drawn.normal(2, 2, 22, dim)}):
        of = drawn.q, drawn.pool, drawn.table, ids
        found = paged_attention_triton(*of, **given, **rotation, splits=2)
        close(found, paged_attention_reference(*of, **given, **rotation), dtype)


@pytest.mark.parametrize("splits", [None, 1, 2, 5])
@pytest.mark.parametrize("count", [0, 1, 24])
def test_any_cut_gives_the_one_softmax(count: int, splits: int | None) -> None:
    drawn = Drawn(groups=1)
    of = drawn.q, drawn.pool, drawn.table, drawn.ids(1, count)
    found = paged_attention_triton(*of, unit=1, scale=drawn.scale, splits=splits)
    close(found, paged_attention_reference(*of, unit=1, scale=drawn.scale), torch.float32)


def test_sequences_in_launches_of_their_own_are_cut_like_the_batch() -> None:
    """To the bit, on a device that a single one would fill with smaller parts."""
    drawn = Drawn(groups=1, dim=256)
    ids, given = drawn.ids(1, 24), {"unit": 1, "scale": drawn.scale}
    together = paged_attention_triton(drawn.q, drawn.pool, drawn.table, ids, **given)
    for b in range(2):
        row = slice(b, b + 1)
        alone = paged_attention_triton(drawn.q[row], drawn.pool, drawn.table[row], ids[row], **given, beside=1)
        assert all(torch.equal(one, both[row]) for one, both in zip(alone, together, strict=True))


def test_slots_may_lie_apart() -> None:
    """As in an arena that has more in a slot."""
    drawn = Drawn()
    wide = torch.full((16, 2 * drawn.pool[0].numel()), float("nan"), device=DEVICE)
    wide[:, : drawn.pool[0].numel()] = drawn.pool.flatten(1)
    pool = wide.as_strided(drawn.pool.shape, (wide.stride(0), *drawn.pool.stride()[1:]))
    ids = drawn.ids(4, 5)
    found = paged_attention_triton(drawn.q, pool, drawn.table, ids, unit=4, scale=drawn.scale)
    close(found, paged_attention(drawn.q, drawn.pool, drawn.table, ids, unit=4, scale=drawn.scale), torch.float32)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": 3}, "divisor of the page size 8, not 3"),
        ({"counts": torch.zeros(2, 3)}, r"counts: expected \[2, 2\], got \[2, 3\]"),
        ({"bias": torch.zeros(2, 2, 3, 5)}, r"bias: expected \[2, 2, 3, 20\]"),
        ({"cos": torch.zeros(48, 32)}, "together"),
        ({"cos": torch.zeros(48, 33), "sin": torch.zeros(48, 33)}, "1 to 32 channels, half of those it turns, not 33"),
        ({"keys": torch.zeros(2, 2, 5, 64)}, r"keys: expected \[2, 2, 20, 64\]"),
        ({name: torch.zeros(48, 32) for name in ("cos", "sin")} | {"keys": torch.zeros(2, 2, 20, 64)}, "already"),
        ({"pool": torch.zeros(16, 2, 1, PAGE, 64)}, r"pool: expected \[16, 2, 2, 8, 64\]"),
        ({"cos": torch.zeros(32, 48).T, "sin": torch.zeros(48, 32)}, "contiguous"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    drawn = Drawn()
    given: dict[str, Any] = {"pool": drawn.pool, "unit": 4, "scale": 1.0, **changes}
    with pytest.raises(ValueError, match=message):
        paged_attention(drawn.q, table=drawn.table, ids=drawn.ids(4, 5), **given)
