"""Files of GLM-4.7-Flash: sizes of the latent form and of a head's own; what is of another shape is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from gguf_contents import changed, contents_of, like, refusal
from gguf_models import random_model, write_gguf

from stratakv.runtime.model.gguf.architectures import ARCHITECTURES, read_settings
from stratakv.runtime.model.gguf.directory import read_model
from stratakv.runtime.model.gguf.weights_file import pieces
from stratakv.runtime.model.which_weights import which_weights


def test_sizes_are_those_of_the_heads_that_are_never_made() -> None:
    found = read_settings(changed("deepseek2"))[1]
    expected = {
        "num_attention_heads": 4, "num_key_value_heads": 4, "kv_lora_rank": 64, "q_lora_rank": 48,
        "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 24, "mlp_layer_types": ["dense", "sparse"],
        "n_routed_experts": 6, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "norm_topk_prob": True,
        "routed_scaling_factor": pytest.approx(1.8), "rope_interleave": True,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "before latents": ({"attention.key_length_mla": None}, "attention.key_length: 80 is not supported: there is no"),
    "heads for keys": ({"attention.head_count_kv": 4}, "attention.head_count_kv: 4 is not supported: it is 1 where"),
    "keys": ({"attention.key_length": 96}, "attention.key_length: 96 is not supported: it is 80 where"),
    "values": ({"attention.value_length": 80}, "attention.value_length: 80 is not supported: it is 64 where"),
    "all of it rotates": ({"attention.key_length_mla": 16}, "attention.key_length_mla: 16, expected more than the 16"),
    "one product for queries": ({"attention.q_lora_rank": None}, "attention.kv_lora_rank: 64 is not supported"),
    "softmax": ({"expert_gating_func": 1}, "expert_gating_func: 1 is not supported: the family's is 2"),
    "nothing said of shares": ({"expert_gating_func": None}, "expert_gating_func: 1 is not supported"),
    "groups": ({"expert_group_count": 4}, "expert_group_count: 4, deepseek2.expert_group_used_count is 1"),
    "dense": ({"leading_dense_block_count": 3}, "leading_dense_block_count: 3, of 2 layers"),
    "stretched": (
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}, "rope.scaling.factor: 4.0 is not supported"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_another_shape_is_refused(case: str) -> None:
    keys, problem = REFUSED[case]
    assert problem in refusal(read_settings, changed("deepseek2", keys))


def test_the_published_files_are_silent_about_shares() -> None:
    """Known by 47 layers and 154,880 tokens; with the layer that drafts by 48."""
    for layers, drafts in ((47, 0), (48, 1)):
        keys = {"expert_gating_func": None, "block_count": layers, "nextn_predict_layers": drafts}
        embedding = like("deepseek2", "token_embd.weight", shape=(154_880, 64))
        found = read_settings(changed("deepseek2", keys, {"token_embd.weight": embedding}))[1]
        assert found["num_hidden_layers"] == 47
    assert "expert_gating_func: 1" in refusal(read_settings, changed("deepseek2", keys))


def test_rows_for_keys_and_values_stand_in_one_or_by_head(tmp_path: Path) -> None:
    model = random_model("deepseek2", num_hidden_layers=1)
    (weight,) = [one for name, one in model.state_dict().items() if name.endswith("kv_b_proj.weight")]

    def in_one(name: str, values: Any) -> Any:
        return {"attn_k_b": [(name.replace("attn_k_b", "attn_kv_b"), weight.numpy())], "attn_v_b": []}.get(
            name.split(".")[-2], [(name, values)]
        )

    for number, change in enumerate((None, in_one)):
        (path,) = write_gguf(tmp_path / f"{number}.gguf", model, "deepseek2", change=change)
        (found,) = [one for one in read_model([path]).weights if one.name.endswith("kv_b_proj.weight")]
        assert torch.equal(torch.cat([*pieces(found, torch.float32)]), weight)
        assert which_weights("auto", str(path), torch.device("cpu"), "float32", "auto") == "own"
    assert "attn_k_b.weight" in contents_of("deepseek2").tensors["blk.0.attn_k_b.weight"].name
    assert ARCHITECTURES["deepseek2"].family == "glm4_moe_lite"
