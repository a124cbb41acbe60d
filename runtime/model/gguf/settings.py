"""The keys that every architecture has in common: from a file to the names of `config.json`."""

from __future__ import annotations

import math
from typing import Any

from ...api.errors import ModelFileError
from ...untrusted.family import ExpertNames, Family
from .container import Contents
from .said import Said

WITHOUT_EFFECT = {
    "vocab_size": "the vocabulary's own length counts",
    "tensor_data_layout": "says who wrote the file; the order of rows is llama.cpp's in all files",
    "rope.dimension_sections": "of pictures, whose places have more than one number",
    "rope.scaling.finetuned": "says how the model was trained",
    "rope.scaling.yarn_ext_factor": "YaRN is mixed in in full wherever its type is stated",
    "rope.scaling.yarn_attn_factor": "YaRN's own, which follows from its factor",
    "attention.layer_norm_epsilon": "of another kind of norm than these models have",
    "attention.group_norm_epsilon": "of another kind of norm than these models have",
    "attention.sliding_window_pattern": "read where layers slide",
    "rope.freq_base_swa": "read where layers slide",
    "rope.scaling.yarn_beta_fast": "read where the type is YaRN",
    "rope.scaling.yarn_beta_slow": "read where the type is YaRN",
    "rope.scaling.factor": "read unless the type is none",
    "rope.scale_linear": "an older name of the factor, read where there is no newer one",
    "expert_used_count": "of no expert, as none are let through",
    "use_parallel_residual": "of GPT-NeoX alone; early converters wrote it for all",
    "pooling_type": "of embeddings; it changes no next token",
}
"""Keys without the architecture, each with the reason why a model computes the same without it."""
_NEUTRAL: dict[str, tuple[tuple[Any, ...], str]] = {
    "attention.causal": ((True,), "the family reads from left to right"),
    "attn_logit_softcapping": ((0,), "the family has no soft cap of scores"),
    "final_logit_softcapping": ((0,), "the family has no soft cap of logits"),
    "attention.clamp_kqv": ((0,), "the family clamps nothing"),
    "attention.max_alibi_bias": ((0,), "the family has rotary positions"),
    "attention.temperature_scale": ((0,), "the family's queries have one temperature"),
    "embedding_scale": ((0, 1), "the family scales its embeddings in a way of its own, or not at all"),
    "residual_scale": ((0, 1), "the family does not scale what its layers add"),
    "logit_scale": ((0, 1), "the family does not scale its logits"),
    "rope.scaling.alpha": ((0,), "the family has no such scaling"),
    "rope.scaling.yarn_log_multiplier": ((0,), "the family has no such factor"),
}  # fmt: skip
"""Keys, each with the values that change nothing, and the reason why any other is refused."""


def common(said: Said, contents: Contents, family: Family) -> dict[str, Any]:
    """Make the settings that config.json has for every family. Raises ModelFileError for an impossible number, and for
    a setting that the family does not have."""
    assert family.gguf is not None
    factors, own = family.gguf.factors, family.gguf.reads
    layers = said.whole("block_count", "num_hidden_layers")
    drafts = said.whole("nextn_predict_layers", default=0)
    if drafts >= layers:
        raise said.fail("nextn_predict_layers", drafts, f"there are {layers} blocks with the model's own")
    experts = said.whole("expert_count", default=0)
    if experts and family.form.experts is None:
        why = "a mixture of experts, which this family does not have"
        raise said.refuse("expert_count", experts, why, "take a dense model")
    hidden = said.whole("embedding_length", "hidden_size")
    heads = said.whole("attention.head_count", "num_attention_heads")
    if not said.has("attention.key_length") and hidden % (2 * heads):
        raise said.fail(
            "embedding_length",
            hidden,
            f"expected a multiple of twice {said.architecture}.attention.head_count, {heads}",
        )
    count_kv = ("attention.head_count_kv", "num_key_value_heads", heads)
    kv_heads = max(said.by_layer(*count_kv)) if count_kv[0] in family.gguf.by_layer else said.whole(*count_kv)
    head_dim = said.whole("attention.key_length", "head_dim", hidden // heads)
    if not family.form.is_latent and (width := said.whole("attention.value_length", "head_dim", head_dim)) != head_dim:
        raise said.refuse("attention.value_length", width, f"keys have {head_dim}")
    for name, (allowed, why) in _NEUTRAL.items():
        if name not in factors.keys() | own and (value := said.value(name)) is not None and value not in allowed:
            raise said.refuse(name, value, why)
    return {
        **{theirs: factor(said, ours) for ours, theirs in factors.items()},
        **(_experts(said, family.form.experts) if family.form.experts is not None else {}),
        "vocab_size": _vocabulary(contents),
        "hidden_size": hidden,
        "intermediate_size": _width(said, family),
        "num_hidden_layers": layers - drafts,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": said.whole("context_length", "max_position_embeddings"),
        family.form.norm_eps: _epsilon(said, family.form.norm_eps),
        "tie_word_embeddings": "output.weight" not in contents.tensors,
        **{f"{name}_token_id": _token(contents, said, name, key) for name, key in _TOKENS.items()},
    }


def _width(said: Said, family: Family) -> int:
    """Of a plain MLP, which families whose layers all have experts need not say; where widths differ, the first one."""
    assert family.gguf is not None
    if "feed_forward_length" in family.gguf.by_layer:
        return said.by_layer("feed_forward_length", "intermediate_size")[0]
    default = None if "intermediate_size" in family.names else 0
    return said.whole("feed_forward_length", "intermediate_size", default)


def _experts(said: Said, names: ExpertNames) -> dict[str, int]:
    """The sizes of a mixture of experts, and whether there is one in families that may have none."""
    switch: dict[str, int] = {} if names.switch is None else {names.switch: bool(said.whole("expert_count", default=0))}
    if names.switch is not None and not switch[names.switch]:
        return switch
    found = switch | {names.count: said.whole("expert_count", names.count)}
    if not said.has("expert_used_count"):
        raise said.fail("expert_count", found[names.count], "but not expert_used_count, of how many; is it complete?")
    found[names.chosen] = said.whole("expert_used_count", names.chosen)
    if names.width != "intermediate_size":
        found[names.width] = said.whole("expert_feed_forward_length", names.width)
    else:
        dense = said.whole("feed_forward_length", names.width)
        if (width := said.whole("expert_feed_forward_length", default=0)) not in (0, dense):
            raise said.refuse(
                "expert_feed_forward_length", width, f"{said.architecture}.feed_forward_length says {dense}"
            )
    if names.shared is not None:
        found[names.shared] = said.whole("expert_shared_feed_forward_length", names.shared)
    if names.shared_count is not None:
        found[names.shared_count] = said.whole("expert_shared_count", names.shared_count)
    if found[names.chosen] > found[names.count]:
        raise said.fail("expert_used_count", found[names.chosen], f"of {found[names.count]} experts")
    return found


def factor(said: Said, name: str) -> float:
    """A number above 0 by which something is multiplied; 1 where the file is silent, and where it says 0."""
    found = said.number(name, 0.0)
    if not 0 <= found <= 1e6:
        raise said.fail(name, found, "expected a number from 0 to 1e6")
    return found or 1.0


def check_scale(said: Said, scalar: int) -> None:
    """Raise ModelFileError if the file asks for another scale of scores than one over the root of `scalar`."""
    found = said.number("attention.scale", 0.0)
    if found != 0 and not math.isclose(found, scalar**-0.5, rel_tol=1e-5):
        raise said.refuse("attention.scale", found, f"the family multiplies by {scalar**-0.5:.6g}")


def window(said: Said, context: int) -> int | None:
    """The number of tokens that a sliding layer sees; None if that is all that the model may read."""
    found = said.whole("attention.sliding_window", default=0)
    return found if 0 < found < context else None


def no_window(said: Said, context: int, why: str = "the family's layers see everything") -> None:
    """Raise ModelFileError if layers slide."""
    if (found := window(said, context)) is not None:
        raise said.refuse("attention.sliding_window", found, why, "take the model's directory, or another model")


_TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding"}


def _token(contents: Contents, said: Said, name: str, key: str) -> int | None:
    full = f"tokenizer.ggml.{key}_token_id"
    found = contents.keys.get(full)
    if found is not None and (type(found) is not int or not 0 <= found < 1 << 31):
        raise ModelFileError(f"{said.path}: {full}: {found!r:.60}, expected a token's number")
    return found if found is not None and found < _vocabulary(contents) else None


_EPSILONS = {
    "rms_norm_eps": "attention.layer_norm_rms_epsilon", "norm_eps": "attention.layer_norm_rms_epsilon",
    "layer_norm_eps": "attention.layer_norm_epsilon",
}  # fmt: skip


def _epsilon(said: Said, name: str) -> float:
    found = said.number(_EPSILONS[name])
    if not 0 <= found <= 1:
        raise said.fail(_EPSILONS[name], found, "expected a number from 0 to 1")
    return found


def _vocabulary(contents: Contents) -> int:
    """The number of rows that the embedding has; the file may name fewer tokens, not more."""
    tokens, table = contents.keys.count("tokenizer.ggml.tokens"), contents.tensors.get("token_embd.weight")
    for name, found in (("tokenizer.ggml.tokens", tokens), ("token_embd.weight", table)):
        if found is None:
            raise ModelFileError(
                f"{contents.path}: not a readable GGUF model: {name}: the file does not say it; is it complete?"
            )
    assert tokens is not None
    assert table is not None
    rows = table.shape[0]
    if tokens > rows:
        raise ModelFileError(
            f"{contents.path}: {tokens} tokens in the vocabulary, token_embd.weight has {rows} rows; take another file"
        )
    return rows
