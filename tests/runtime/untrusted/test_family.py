"""What an entry of the table of families leaves out is as in Llama."""

from __future__ import annotations

from dataclasses import fields

from stratakv.runtime.untrusted.families import FAMILIES
from stratakv.runtime.untrusted.family import EVERY_LAYER, USUAL_THETA, Family, Form


def test_what_is_left_out_is_as_in_llama() -> None:
    llama, plain = FAMILIES["llama"], Form()
    assert {one.name for one in fields(Form) if getattr(plain, one.name) != getattr(llama.form, one.name)} == {
        "qkv_bias", "out_bias", "mlp_bias",
    }  # fmt: skip


def test_layers_turned_alike_have_one_table() -> None:
    one = Family(names=frozenset(), form=Form())
    assert one.thetas == {EVERY_LAYER: USUAL_THETA}
    assert not one.has_tables_by_kind
    assert Family(
        names=frozenset(), form=Form(), thetas={"full_attention": 1e6, "sliding_attention": 1e4}
    ).has_tables_by_kind
