"""What ends a reply, and where a prompt begins, while a model runs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_models import CHATML, SPECIAL, save_tiny_model
from tokenizer_kinds import TEMPLATES, render_here, tokenizer_of
from tokenizers import Tokenizer, processors

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.model.model import Model

KV: dict[str, Any] = {"disk_gb": 0, "host_gb": 0.05}


def ends(template: str | None, config: Any = None, generation: Any = None) -> set[str]:
    tokenizer = tokenizer_of("bytes")
    tokenizer.chat_template = template
    ids = [[tokenizer.convert_tokens_to_ids(text) for text in texts] for texts in (config or [], generation or [])]
    configs = [SimpleNamespace(eos_token_id=found[0] if len(found) == 1 else found or None) for found in ids]
    model = SimpleNamespace(tokenizer=tokenizer, config=configs[0], hf=SimpleNamespace(generation_config=configs[1]))
    return set(tokenizer.convert_ids_to_tokens(sorted(vars(Model)["eos_ids"].func(model))))


def test_every_end_that_a_model_states_or_is_known_for(monkeypatch: pytest.MonkeyPatch) -> None:
    render_here(monkeypatch)
    known = {"</s>", "<eos>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>"}  # of the tokenizer's own words
    assert ends(None) == known
    assert ends(None, ["<s>"], ["[B_INST]", "[E_INST]"]) == known | {"<s>", "[B_INST]", "[E_INST]"}
    asks = "{% for m in messages %}[B_INST]{{ m.content }}{% if m.role == 'user' %}[E_INST]{% endif %}{% endfor %}"
    assert ends(asks) == known | {"[B_INST]"}  # the template's own: the next turn begins


@pytest.mark.parametrize("end", SPECIAL[::2])
def test_no_end_is_shown_or_kept_twice(end: str, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Runtime.load(tiny_llama, dtype="float32", kv=KVConfig(**KV)) as runtime:
        say, script = runtime.tokenizer.convert_tokens_to_ids, list[int]()
        monkeypatch.setattr("stratakv.runtime.engine.sampling.Sampler.choose", lambda *_: script.pop(0))
        chat = runtime.chat()
        for text in ("ok", "no"):
            script[:] = [*map(say, text), say(end), say("x")]
            reply = chat.send("Well?")
            assert (reply.text, reply.finish_reason) == (text, "eos")
        said = runtime.tokenizer.decode(chat._sequence.tokens, skip_special_tokens=False)
        turn = "<|im_start|>user\nWell?<|im_end|>\n<|im_start|>assistant\n"
        assert said == f"{turn}ok<|im_end|>\n{turn}no"


@pytest.mark.parametrize("bos", [True, False])
def test_prompts_and_plain_conversations_begin_as_the_tokenizer_says(bos: bool, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", chat=False)
    backend = Tokenizer.from_file(str(model / "tokenizer.json"))
    single, ids = f"{'<|endoftext|> ' if bos else ''}$A <|im_end|>", [(SPECIAL[0], 0), (SPECIAL[2], 2)]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    backend.save(str(model / "tokenizer.json"))
    with Runtime.load(model, dtype="float32", kv=KVConfig(**KV)) as runtime:
        ids = runtime.tokenizer("Once").input_ids
        assert (ids[0] == 0, ids[-1] == 2) == (bos, True)
        assert runtime.generate("Once", max_new_tokens=1)[0].usage.prompt_tokens == 4 + bos
        given = runtime.generate("<|endoftext|>Once", max_new_tokens=1)[0]
        assert given.usage.prompt_tokens == 5  # it is there already
        chat = runtime.chat()
        reply = chat.send("Once", max_new_tokens=1)
        assert chat._sequence.tokens[: reply.usage.prompt_tokens].tolist() == ids[:-1]


def test_what_a_template_does_to_earlier_turns_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    render_here(monkeypatch)
    from stratakv.runtime.model.template import Template

    moving = (
        "{% for m in messages if m.role != 'system' %}{% if loop.last and messages[0].role == 'system' %}"
        "{{ messages[0].content }}\n{% endif %}[B_INST]{{ m.content.split('</think>')[-1] }}[E_INST]{% endfor %}"
    )
    tokenizer = tokenizer_of("bytes")
    for template, count in ((moving, 2), (TEMPLATES["gemma"], 0), (TEMPLATES["mistral"], 0), (CHATML, 0), (None, 0)):
        tokenizer.chat_template = template
        assert len(Template(tokenizer).habits()) == count
