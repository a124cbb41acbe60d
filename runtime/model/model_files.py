"""Opening a model directory: configuration and weights, checked before anything is allocated for them."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..api.errors import ModelFileError
from ..process.apart import without_progress_bar
from ..untrusted.directory import check_weights
from ..untrusted.families import FAMILIES
from ..untrusted.numbers import check_allocation, check_complete, check_family, check_shape
from ..untrusted.rope import NAMES, Rope, Table, for_transformers, read_rope
from ..untrusted.settings import read_config
from . import mxfp4
from .decoder import Decoder, inputs_width, is_recurrent
from .head_shapes import HeadShape, check_alike, head_dims, head_shapes
from .latent import Latent
from .mlp import Mixture, dense_width, is_mixture
from .sharing import check_sharing, num_writing
from .tensors import account

if TYPE_CHECKING:
    from .packing import Packing

ATTENTION = "stratakv"
"""Our name among transformers' attention functions."""


def attention(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The attention function that transformers' layers call. It hands on to the `attend` given to `Model.run_layer`."""
    at: Any = module.layer_idx
    out: Tensor = kwargs["strata_attend"](int(at), query, key, value, float(kwargs["scaling"]))
    return out.transpose(1, 2), None


_KINDS_OF_LAYERS = ("layer_types", "full_attn_idxs", "full_attention_interval")
"""Names in `config.json` by which some layers attend and some are recurrent."""


def read_configuration(directory: Path, modules: str, *, has_weights: bool = True) -> Any:
    """Read transformers' configuration of a model, and check that the files can be what it says; its positions are
    `config.rope`.

    Args:
        has_weights: False if its weights are elsewhere, and checked.

    Raises ModelFileError, and whatever transformers raises.
    """
    path = directory / "config.json"
    family, settings = read_config(path)
    tables = read_rope(path, family, settings)
    plain = {name: value for name, value in settings.items() if name not in NAMES}
    if FAMILIES[family].form.mixer is not None and not any(plain.get(name) is not None for name in _KINDS_OF_LAYERS):
        raise ModelFileError(f"{path}: layer_types: the file does not say which layers attend")
    plain |= {"name_or_path": str(directory), **for_transformers(family, tables), **_spelled_layers(family, plain)}
    config = make_configuration(family, plain, modules)
    _check_config(config, directory, has_weights=has_weights)
    config.rope = _rope(path, config, tables)
    return config


def _spelled_layers(family: str, settings: dict[str, Any]) -> dict[str, Any]:
    """`layer_types` where a file spells them as transformers' class cannot read them: as a text such as "LLLG", or by
    having no window at all."""
    pattern, count = settings.get("sliding_window_pattern"), settings.get("num_hidden_layers")
    if not FAMILIES[family].form.rotates_in_windows or settings.get("layer_types") is not None or count is None:
        return {}
    if settings.get("sliding_window", 0) is None:
        return {"layer_types": ["full_attention"] * count}
    if not isinstance(pattern, str) or not pattern or set(pattern) - {"L", "G"}:
        return {}
    slides = [pattern[at % len(pattern)] == "L" and at < count - 1 for at in range(count)]  # the last one never does
    return {"layer_types": ["sliding_attention" if one else "full_attention" for one in slides]}


def make_configuration(family: str, settings: dict[str, Any], modules: str = "own") -> Any:
    """Make transformers' configuration of a family from settings that `untrusted.settings` let through. Raises what it
    raises."""
    if family == "llama" and modules == "own":
        from .llama_config import LlamaConfig

        return LlamaConfig(**settings)
    from transformers import AutoConfig

    return AutoConfig.for_model(family, **settings)


def rope_of(config: Any) -> Rope:
    """The positions of a configuration of `read_configuration`, or of one that was made in memory."""
    found = getattr(config, "rope", None)
    if isinstance(found, Rope):
        return found
    path, family = Path("config.json"), config.model_type
    tables = read_rope(path, family, {"rope_parameters": config.rope_parameters})
    return _rope(path, config, tables)


def _rope(path: Path, config: Any, tables: Mapping[str, Table]) -> Rope:
    dims = head_dims(config, tables)
    return Rope.of(path, config.model_type, tables, head_dims=dims, max_positions=config.max_position_embeddings)


def own_modules(
    directory: Path, config: Any, dtype: torch.dtype, device: torch.device, packing: Packing | None = None
) -> Any:
    """Make layers of `decoder` with the directory's weights. Arguments, and what is raised: as `weights.load_decoder`
    has them."""
    from .weights import load_decoder

    decoder = load_decoder(directory, config, dtype, device, packing)
    read_generation(directory, decoder)
    return decoder


def read_generation(directory: Path, decoder: Decoder) -> None:
    """Give a decoder the directory's settings of generation, if there are any. Raises what transformers raises."""
    from transformers.generation.configuration_utils import GenerationConfig

    if (directory / "generation_config.json").is_file():
        decoder.generation_config = GenerationConfig.from_pretrained(directory, local_files_only=True)


def transformers_modules(directory: Path, config: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Load transformers' own model onto a device. Its attention is `attention`. Raises ModelFileError and what
    transformers raises."""
    from transformers import AutoModelForCausalLM
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(ATTENTION, attention)
    if FAMILIES[config.model_type].form.has_sinks:
        raise ModelFileError(
            f"{directory}: transformers' {config.model_type} asks for rotary tables of half a head, and unpacks its "
            "weights by code of its own; run it with our layers"
        )
    if FAMILIES[config.model_type].form.mixer is not None:
        raise ModelFileError(
            f"{directory}: transformers' recurrent layers keep their states to themselves, so its {config.model_type} "
            "cannot be run over a store; run it with our layers"
        )
    if Latent.of(config) is not None:
        raise ModelFileError(f"{directory}: {config.model_type} runs with our own layers only: it attends to latents")
    if num_writing(config) < config.num_hidden_layers or inputs_width(config):
        raise ModelFileError(
            f"{directory}: {config.model_type} runs with our own layers only where layers share keys or read embeddings"
        )
    config._experts_implementation = "eager"  # the order of sums that ours have
    account(directory, Decoder(config))
    with without_progress_bar():
        hf, found = AutoModelForCausalLM.from_pretrained(
            directory, config=config, dtype=dtype, attn_implementation=ATTENTION, use_safetensors=True,
            output_loading_info=True, local_files_only=True, trust_remote_code=False,
        )  # fmt: skip
    check_complete(directory, found)
    return hf.to(device).eval()


def _check_config(config: Any, directory: Path, *, has_weights: bool) -> None:
    check_family(directory, config.model_type)
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, name, None) is not None and name != FAMILIES[config.model_type].form.logit_cap:
            raise ModelFileError(f"{directory / 'config.json'}: {name}: {getattr(config, name)} is not supported")
    kinds = set(getattr(config, "layer_types", None) or [])
    has_mixer = FAMILIES[config.model_type].form.mixer is not None
    if unknown := kinds - {"full_attention", *(("conv", "linear_attention") if has_mixer else ("sliding_attention",))}:
        raise ModelFileError(f"{directory}: layers of type {', '.join(sorted(unknown))} are not supported")
    slides = FAMILIES[config.model_type].needs_window or "sliding_attention" in kinds
    if slides and getattr(config, "sliding_window", None) is None:
        raise ModelFileError(f"{directory / 'config.json'}: sliding_window: null, but the model has layers that slide")
    check_sharing(directory / "config.json", config)
    _check_inputs(config, directory / "config.json")
    if getattr(config, "use_bidirectional_attention", False) not in (None, False, "vision"):  # of pictures alone
        raise ModelFileError(f"{directory}: use_bidirectional_attention is not supported")
    _check_experts(config, directory / "config.json")
    _check_latent(config, directory / "config.json")
    check_alike(directory / "config.json", config)
    sizes = _sizes(config)
    for shape in head_shapes(config):
        check_shape(directory / "config.json", {**sizes, **_named(shape)})
    if not has_weights:
        return
    weights = check_weights(directory)
    elements = weights.elements
    if FAMILIES[config.model_type].packed is not None:
        elements += sum(prod(shape) for name, shape in weights.shapes.items() if name.endswith(mxfp4.BLOCKS))
    check_allocation(directory / "config.json", sizes, elements, len(weights.shapes), num_with_heads(config))


def _check_experts(config: Any, path: Path) -> None:
    names = FAMILIES[config.model_type].form.experts
    if names is None or not names.are_there(config):
        return
    for name in (names.count, names.chosen, names.width):
        if getattr(config, name) is None:
            raise ModelFileError(f"{path}: {name}: the file does not say it, and the model has experts")
    count, chosen = getattr(config, names.count), getattr(config, names.chosen)
    if chosen > count:
        raise ModelFileError(f"{path}: {names.chosen}: {chosen}, of {count} experts")
    if names.groups is not None:
        groups, some = (getattr(config, name) for name in names.groups)
        each = count // groups
        if count % groups or some > groups or (groups > 1 and (each < 2 or chosen > some * each)):
            raise ModelFileError(f"{path}: {names.groups[0]}: {some} of {groups}, of {count} experts")
    kinds, layers = getattr(config, "mlp_layer_types", None), config.num_hidden_layers
    if kinds is not None and (len(kinds) != layers or set(kinds) - {"dense", "sparse"}):
        raise ModelFileError(f"{path}: mlp_layer_types: expected dense or sparse for each of {layers} layers")


def _check_latent(config: Any, path: Path) -> None:
    if Latent.of(config) is None:
        return
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads != kv_heads:
        raise ModelFileError(f"{path}: num_key_value_heads: {kv_heads}, but each of {heads} heads has keys of its own")


def _check_inputs(config: Any, path: Path) -> None:
    name = FAMILIES[config.model_type].form.layer_vocabulary
    if inputs_width(config) and name is not None and getattr(config, name) < config.vocab_size:
        raise ModelFileError(f"{path}: {name}: {getattr(config, name)}, of {config.vocab_size} tokens")


def check_vocabulary(tokenizer: Any, size: int, directory: Path) -> None:
    """Raise ModelFileError for a token beyond `size`.

    A token without weights would be read from beyond the table. Special tokens may have none: Gemma 3's text models
    have one for images, which no text is split into.
    """
    ids = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False).values()
    added = [number for number, token in tokenizer.added_tokens_decoder.items() if not token.special]
    largest = max([*ids, *added], default=-1)
    if largest >= size:
        raise ModelFileError(f"{directory / 'tokenizer.json'}: vocabulary: token {largest}, the model has {size}")


def num_with_heads(config: Any) -> int:
    """The number of layers that have weights for each head's q, k and v."""
    if Latent.of(config) is not None:
        return 0
    return sum(not is_recurrent(config, at) for at in range(num_writing(config)))


def narrowest(config: Any) -> int:
    """The least width of a layer's MLP, all experts of a mixture together."""
    mixture = Mixture.of(config)
    if mixture is None:
        return dense_width(config)
    are = {is_mixture(config, at) for at in range(config.num_hidden_layers)}
    return min(mixture.count * mixture.width if one else dense_width(config) for one in are)


def _sizes(config: Any) -> dict[str, int]:
    """The sizes that decide the shapes of the weights, with the family's defaults where the file is silent; of layers
    that differ, the smallest."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": narrowest(config),
        "num_hidden_layers": config.num_hidden_layers,
        **_named(min(head_shapes(config), key=lambda shape: (shape.heads + shape.kv_heads) * shape.dim)),
    }


def _named(shape: HeadShape) -> dict[str, int]:
    """By their names in `config.json`."""
    return {
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "head_dim": shape.dim,
    }  # fmt: skip
