"""What `config.json` says about positions: every spelling of it, and what contradicts itself or cannot be."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_configs import HUB
from tiny_models import reference_model, save_tiny_model

from stratakv.runtime import KVConfig, ModelFileError, Runtime
from stratakv.runtime.model.head_shapes import head_shape
from stratakv.runtime.model.identity import model_key
from stratakv.runtime.untrusted.rope import Rope, read_rope

HERE = Path("config.json")
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}
LISTS = {"short_factor": [1.0, 1.5], "long_factor": [2.0, 9.0]}
LONGROPE = {"type": "longrope", **LISTS}


def rope(family: str, settings: dict[str, Any], head_dim: int = 64, max_positions: int = 4096) -> Rope:
    tables = read_rope(HERE, family, copy.deepcopy(settings))
    return Rope.of(HERE, family, tables, head_dims=dict.fromkeys(tables, head_dim), max_positions=max_positions)


SPELLINGS: dict[str, list[dict[str, Any]]] = {
    "plain": [
        {"rope_theta": 1e6},
        {"rope_theta": 1000000, "rope_scaling": None},
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 1e6}},
        {"rope_parameters": {"type": "default"}, "rope_theta": 1e6},
        {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}, "rope_theta": 1e6, "rope_scaling": {}},
    ],
    "yarn": [
        {"rope_theta": 1e7, "rope_scaling": YARN},
        {"rope_theta": 1e7, "rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 256}},
        {"rope_parameters": {"rope_theta": 1e7, **YARN}},
        {"rope_parameters": {"rope_theta": 1e7, "rope_type": "default"}, "rope_scaling": YARN},
        {"rope_parameters": {"rope_theta": 1e7, "rope_type": "yarn", "factor": 4.0, "finetuned": True},
         "original_max_position_embeddings": 256},
        {"rope_parameters": {"full_attention": {"rope_theta": 1e7, **YARN}, "sliding_attention": None}},
        {"rope_theta": 1e7, "rope_scaling": {"type": "yarn", **YARN, "attention_factor": None}},
    ],
}  # fmt: skip
GEMMA: list[dict[str, Any]] = [
    {"rope_theta": 1e6, "rope_local_base_freq": 2e4, "rope_scaling": {"type": "linear", "factor": 8.0}},
    {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                         "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}}},
    {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 2e4}},
     "rope_scaling": {"rope_type": "linear", "factor": 8}},
    {"rope_parameters": {"rope_type": "linear", "factor": 8.0}, "rope_local_base_freq": 20000},
]  # fmt: skip
PHI: list[dict[str, Any]] = [
    {"rope_scaling": {"type": "su", **LISTS}, "original_max_position_embeddings": 512, "partial_rotary_factor": 0.5},
    {"rope_scaling": {"type": "yarn", **LISTS}, "original_max_position_embeddings": 512, "partial_rotary_factor": 0.5},
    {"rope_parameters": {"rope_type": "longrope", **LISTS, "rope_theta": 1e4, "partial_rotary_factor": 0.5,
                         "original_max_position_embeddings": 512}},
    {"rope_scaling": {"type": "longrope", **LISTS}, "rope_parameters": {"partial_rotary_factor": 0.5},
     "original_max_position_embeddings": 512},
]  # fmt: skip


OLMO: list[dict[str, Any]] = [
    {"rope_theta": 2e5, "rope_scaling": YARN},
    {"rope_parameters": {"rope_theta": 2e5, **YARN}},
    {"rope_parameters": {"full_attention": YARN, "sliding_attention": {"rope_type": "default"}}, "rope_theta": 2e5},
    {"rope_parameters": {"full_attention": {"rope_theta": 2e5, **YARN}, "sliding_attention": {"rope_theta": 2e5}}},
]


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "olmo2", "smollm3", "granite", "exaone4"])
@pytest.mark.parametrize("kind", SPELLINGS)
def test_spellings_of_one_thing(kind: str, family: str) -> None:
    first, *others = [rope(family, settings) for settings in SPELLINGS[kind]]
    assert others == [first] * len(others)


@pytest.mark.parametrize(("family", "spellings"), [("gemma3_text", GEMMA), ("phi3", PHI), ("olmo3", OLMO)])
def test_spellings_of_families_with_ways_of_their_own(family: str, spellings: list[dict[str, Any]]) -> None:
    first, *others = [rope(family, settings, head_dim=8) for settings in spellings]
    assert others == [first] * len(others)


def test_defaults_are_the_familys() -> None:
    assert rope("llama", {}).tables["every_layer"]["rope_theta"] == 1e4
    assert rope("smollm3", {}).tables["every_layer"]["rope_theta"] == 2e6
    assert {kind: table["rope_theta"] for kind, table in rope("gemma3_text", {}).tables.items()} == {
        "full_attention": 1e6, "sliding_attention": 1e4
    }  # fmt: skip
    assert rope("phi3", {"rope_scaling": {"type": "longrope", **LISTS}}, 4).tables["every_layer"][
        "original_max_position_embeddings"
    ] == 4096  # fmt: skip


def test_a_usual_table_is_that_of_a_file_that_says_its_base_or_nothing() -> None:
    usual = {
        "rope_type": "yarn", "rope_theta": 150_000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
        "truncate": False, "original_max_position_embeddings": 4096,
    }  # fmt: skip
    for said in ({}, {"rope_scaling": None}, {"rope_parameters": None}):
        assert rope("gpt_oss", said).tables["every_layer"] == usual
    assert rope("gpt_oss", {"rope_theta": 1e4, "rope_scaling": None}).tables["every_layer"] == usual | {
        "rope_theta": 1e4
    }
    plain = rope("gpt_oss", {"rope_parameters": {"rope_type": "default"}}).tables["every_layer"]
    assert plain == {"rope_type": "default", "rope_theta": 150_000.0}


def saying(folder: Path, **changes: Any) -> Path:
    """A model's directory whose `config.json` says that about positions, and nothing else."""
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    for name in ("rope_parameters", "rope_scaling", "rope_theta"):
        settings.pop(name, None)
    path.write_text(json.dumps(settings | changes))
    return folder


def test_what_a_page_adds_to_a_finished_config_is_computed(tmp_path: Path) -> None:
    """Beside `rope_parameters` transformers takes `rope_scaling` for all that is said, and the base for 10,000."""
    folder = save_tiny_model(tmp_path / "model", "qwen2", max_position_embeddings=256)
    saying(folder, rope_parameters={"rope_theta": 1e7, **YARN})
    reference = reference_model(folder)
    saying(folder, rope_parameters={"rope_theta": 1e7, "rope_type": "default"}, rope_scaling=YARN)
    ids = torch.randint(3, 200, (1, 400), generator=torch.Generator().manual_seed(2))
    with Runtime.load(folder, dtype="float32", kv=KVConfig(path=tmp_path / "kv")) as runtime, torch.inference_mode():
        expected = reference(ids).logits[0, -1]
        found = runtime.engine.prefill(runtime.engine.new_sequence(), ids[0].numpy().astype("uint32")).logits
        assert found is not None
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
        assert runtime.model.max_positions == 1024
        assert len(runtime.generate("x" * 600, max_new_tokens=2, ignore_eos=True)[0].tokens) == 2


@pytest.mark.parametrize("name", HUB)
def test_a_hub_model_is_turned_as_transformers_does(name: str) -> None:
    from transformers import AutoConfig

    settings = {key: value for key, value in HUB[name].items() if key not in ("auto_map", "model_type")}
    family = HUB[name]["model_type"]
    config = AutoConfig.for_model(family, **copy.deepcopy(settings))
    head_dim = head_shape(config, 0).dim
    found = rope(family, settings, head_dim, config.max_position_embeddings)
    theirs = config.rope_parameters
    for kind, table in found.tables.items():
        expected = {key: value for key, value in theirs.get(kind, theirs).items() if key not in ("type",)}
        assert {key: value for key, value in table.items() if key in expected} == {
            key: value for key, value in expected.items() if key in table or value != 1.0
        }
    assert found.window == config.max_position_embeddings


WINDOWS: list[tuple[str, dict[str, Any], int, int]] = [
    ("yarn", {"factor": 4.0, "original_max_position_embeddings": 32768}, 32768, 131072),
    ("yarn", {"factor": 4.0, "original_max_position_embeddings": 32768}, 40960, 131072),  # as Qwen3 is published
    ("yarn", {"factor": 2.0, "original_max_position_embeddings": 32768}, 131072, 131072),
    ("yarn", {"factor": 4.0}, 32768, 131072),
    ("linear", {"factor": 4.0, "original_max_position_embeddings": 4096}, 4096, 16384),
    ("linear", {"factor": 8.0}, 131072, 131072),  # as Gemma 3 is published
    ("dynamic", {"factor": 2.0}, 32768, 65536),
    ("llama3", {"factor": 32.0, "original_max_position_embeddings": 8192, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0}, 131072, 131072),  # as Llama 3.2 is published
    ("llama3", {"factor": 8.0, "original_max_position_embeddings": 8192, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0}, 8192, 65536),
    ("yarn", {"factor": 1e9, "original_max_position_embeddings": 32768}, 32768, 1 << 27),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "said", "max_positions", "window"), WINDOWS)
def test_windows(kind: str, said: dict[str, Any], max_positions: int, window: int) -> None:
    found = rope("qwen2", {"rope_scaling": {"rope_type": kind, **said}}, max_positions=max_positions)
    assert found.window == window


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "two bases": ("llama", {"rope_theta": 1e6, "rope_parameters": {"rope_theta": 1e4}}, "rope_theta"),
    "two kinds": ("llama", {"rope_scaling": YARN, "rope_parameters": {"rope_type": "linear", "factor": 4.0}}, "yarn"),
    "two names of the kind": ("llama", {"rope_scaling": {"type": "linear", **YARN}}, "rope_type"),
    "two factors": ("gemma3_text", {"rope_scaling": {"type": "linear", "factor": 8.0}, "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 4.0}}}, "factor"),
    "two tables": ("qwen3", {"rope_parameters": {"full_attention": {"rope_theta": 1e6},
                                                 "sliding_attention": {"rope_theta": 1e4}}}, "rope_theta"),
    "two lengths": ("phi3", {"rope_scaling": {"type": "longrope", **LISTS, "original_max_position_embeddings": 256},
                             "original_max_position_embeddings": 512}, "original_max_position_embeddings"),
    "unknown kind": ("llama", {"rope_scaling": {"type": "xdrope", "factor": 2.0}}, "'xdrope' is not supported"),
    "no kind": ("llama", {"rope_scaling": {"factor": 2.0}}, "factor"),
    "another family's kind": ("phi3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "default, longrope"),
    "queries that do not say how they grow": ("ministral3", {"rope_parameters": YARN}, "llama_4_scaling_beta"),
    "nor from where": (
        "ministral3", {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "llama_4_scaling_beta": 0.1}}, "original"
    ),
    "growth of others": ("llama", {"rope_parameters": {**YARN, "llama_4_scaling_beta": 0.1}}, "llama_4_scaling_beta"),
    "growth that shrinks": (
        "ministral3", {"rope_parameters": {**YARN, "llama_4_scaling_beta": -0.1}}, "llama_4_scaling_beta"
    ),
    "unknown layers": ("gemma3_text", {"rope_parameters": {"chunked_attention": {}}}, "chunked_attention"),
    "unknown name": ("llama", {"rope_scaling": {**YARN, "long_mscale": 1.2}}, "long_mscale"),
    "another kind's name": ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 8}}, "beta_fast"),
    "no factor": ("llama", {"rope_scaling": {"type": "linear"}}, "factor"),
    "no lists": ("phi3", {"rope_scaling": {"type": "longrope"}}, "short_factor"),
    "a list too long": ("phi3", {"rope_scaling": {**LONGROPE, "short_factor": [1.0] * 3}}, "3 numbers"),
    "a list of texts": ("phi3", {"rope_scaling": {**LONGROPE, "long_factor": ["1", "2"]}}, "long_factor"),
    "a list with a zero": ("phi3", {"rope_scaling": {**LONGROPE, "long_factor": [1.0, 0]}}, "long_factor"),
    "a part of the head": ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    "no number": ("llama", {"rope_theta": "1e6"}, "rope_theta"),
    "a huge number": ("llama", {"rope_theta": 10**400}, "rope_theta"),
    "no base": ("llama", {"rope_theta": 1.0}, "rope_theta"),
    "infinite": ("llama", {"rope_scaling": {"type": "linear", "factor": float("inf")}}, "factor"),
    "a factor that shrinks": ("llama", {"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor"),
    "no length": ("llama", {"rope_scaling": {**YARN, "original_max_position_embeddings": 0}}, "original_max"),
    "no bool": ("llama", {"rope_scaling": {**YARN, "truncate": "no"}}, "truncate"),
    "no order": ("llama", {"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 4.0,
                                            "high_freq_factor": 4.0}}, "high_freq_factor"),
    "no object": ("llama", {"rope_scaling": "yarn"}, "rope_scaling"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_contradicts_itself_or_cannot_be_is_told_in_one_line(what: str) -> None:
    family, settings, named = WRONG[what]
    with pytest.raises(ModelFileError, match=named) as caught:
        rope(family, settings, head_dim=4)
    assert "\n" not in str(caught.value)


def test_the_longest_reach_is_one_and_a_dynamic_one_is_the_length() -> None:
    longrope = rope("phi3", {"rope_scaling": {"type": "longrope", **LISTS}}, 4)
    assert [longrope.reach(length) for length in (1, 4096, 4097, 100000)] == [0, 0, 4097, 4097]
    equal = {"short_factor": [2.0, 9.0], "long_factor": [2.0, 9.0]}
    assert rope("phi3", {"rope_scaling": {"type": "longrope", **equal}}, 4).reach(100000) == 0
    dynamic = rope("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}})
    assert [dynamic.reach(length) for length in (4096, 4097, 5000)] == [0, 4097, 5000]
    assert [dynamic.is_reach(*pair) for pair in ((0, 9), (5000, 5000), (5000, 4999), (4096, 5000))] == [
        True, True, False, False
    ]  # fmt: skip
    assert rope("llama", {"rope_scaling": YARN}).reach(1 << 26) == 0


MISREAD: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "longrope": ({"rope_theta": 1e6}, {"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4,
                                                       "long_factor": [2.0] * 4}}),
    "dynamic": ({"rope_theta": 1e6}, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
    "a mixture": ({"rope_parameters": {"rope_theta": 1e7}}, {"rope_scaling": YARN}),
    "the length beside it": ({"original_max_position_embeddings": 256},
                             {"rope_scaling": {"type": "yarn", "factor": 4.0}}),
}  # fmt: skip


@pytest.mark.parametrize("what", MISREAD)
def test_what_was_computed_with_other_positions_is_another_model(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = saying(save_tiny_model(tmp_path / "model"), **MISREAD[what][0], **MISREAD[what][1])
    found = model_key(folder)
    monkeypatch.setattr("stratakv.runtime.model.identity.was_misread", lambda *_: False)
    assert model_key(folder) != found


def test_a_name_that_has_no_effect_changes_no_name(tmp_path: Path) -> None:
    folder = saying(save_tiny_model(tmp_path / "model"), rope_theta=1e6)
    found = model_key(folder)
    assert model_key(saying(folder, rope_theta=1e6, original_max_position_embeddings=256)) == found
    found = model_key(saying(folder, rope_theta=1e6, rope_scaling=YARN))
    assert model_key(saying(folder, rope_theta=1e6, rope_scaling=YARN, original_max_position_embeddings=256)) == found


def test_base_of_layers_that_slide() -> None:
    """OLMo 3's files say one for all, Gemma 3's one for each kind."""
    found = rope("olmo3", {"rope_theta": 2e5, "rope_scaling": YARN}).tables
    assert [found[kind]["rope_theta"] for kind in ("full_attention", "sliding_attention")] == [2e5, 2e5]
    assert [found[kind]["rope_type"] for kind in ("full_attention", "sliding_attention")] == ["yarn", "default"]
    assert rope("gemma3_text", {"rope_theta": 2e5}).tables["sliding_attention"]["rope_theta"] == 1e4


def test_queries_grow_as_the_file_says() -> None:
    said = {"rope_parameters": {**YARN, "llama_4_scaling_beta": 0.1, "max_position_embeddings": 4096}}
    assert rope("ministral3", said).query_growth == (0.1, 256)
    assert rope("llama", {"rope_scaling": YARN}).query_growth is None
