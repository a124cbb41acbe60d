"""Positions at any length: whatever way a text has come, its logits are those of transformers' one forward pass."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY, reference_model, save_tiny_model
from torch import Tensor

from stratakv.runtime import Chat, KVConfig, Runtime, SessionError
from stratakv.runtime.api.progress import Progress
from stratakv.runtime.engine.sequence import Sequence

TOLERANCE = 2e-5
"""Of the largest logit, in fp32. The wrong table of two is off by more than a tenth of it."""
LIMIT = 70
"""Tokens of the longest text that the short table turns: no whole number of pages."""
TOKENS = np.random.default_rng(5).integers(3, VOCABULARY, 400)
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": LIMIT, "factor": 8.0,
    "short_factor": [1.0, 1.2, 1.1, 1.3], "long_factor": [1.0, 3.0, 7.0, 9.0],
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "longrope": ("phi3", {"hidden_size": 64, "num_attention_heads": 4, "partial_rotary_factor": 0.5,
                          "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.5},
                          "original_max_position_embeddings": LIMIT}),
    "longrope of llama": ("llama", {"rope_parameters": LONGROPE}),
    "longrope beside a window": ("gemma3_text", {
        "head_dim": 8, "sliding_window": 20,
        "rope_parameters": {"full_attention": LONGROPE, "sliding_attention": {"rope_type": "default"}}}),
    "dynamic": ("llama", {"rope_parameters": DYNAMIC, "max_position_embeddings": LIMIT}),
    "yarn": ("qwen2", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "beta_fast": 16.0,
                                           "original_max_position_embeddings": 128, "truncate": False}}),
    "llama3": ("llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0,
                                             "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                             "original_max_position_embeddings": 64}}),
    "linear": ("olmo2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
}  # fmt: skip
GROWING = [name for name in SETTINGS if name.startswith("longrope")]


class Side:
    """A model of one of `SETTINGS`, ours and transformers'."""

    def __init__(self, name: str, folder: Path) -> None:
        family, changes = SETTINGS[name]
        self.folder, self.store = save_tiny_model(folder / "model", family, **copy.deepcopy(changes)), folder / "kv"
        self.reference = reference_model(self.folder)

    def load(self, **kv: Any) -> Runtime:
        return Runtime.load(self.folder, dtype="float32", kv=KVConfig(path=self.store, **{"index": "dense", **kv}))

    def expected(self, tokens: np.ndarray) -> Tensor:
        """After each token `[n, vocabulary]`, of one forward pass. Its tables would remember earlier texts."""
        self.reference.model.rotary_emb = type(self.reference.model.rotary_emb)(self.reference.config)
        with torch.inference_mode():
            found: Tensor = self.reference(torch.from_numpy(tokens.astype(np.int64))[None]).logits[0]
        return found

    def check(self, sequence: Sequence, logits: Tensor | None) -> None:
        """Whether `logits` are those after all tokens of the sequence."""
        assert logits is not None
        close(logits, self.expected(sequence.tokens)[-1])


def close(found: Tensor, expected: Tensor) -> None:
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


def some(start: int, stop: int) -> np.ndarray:
    return TOKENS[start:stop].astype(np.uint32)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Side]:
    made: dict[str, Side] = {}

    def side(name: str) -> Side:
        if name not in made:
            made[name] = Side(name, tmp_path_factory.mktemp("positions"))
        return made[name]

    return side


@pytest.fixture
def longrope(sides: Callable[[str], Side], tmp_path: Path) -> Side:
    side = copy.copy(sides("longrope"))
    side.store = tmp_path / "kv"
    return side


@pytest.fixture
def runtime(longrope: Side) -> Iterator[Runtime]:
    with longrope.load() as runtime:
        yield runtime
        runtime.store.check_integrity()


@pytest.mark.parametrize("name", SETTINGS)
def test_one_piece_pieces_decode_and_a_resumed_session(name: str, sides: Callable[[str], Side]) -> None:
    side = sides(name)
    with side.load() as runtime:
        engine = runtime.engine
        for length in (LIMIT, LIMIT + 1, 400):
            sequence = engine.new_sequence()
            side.check(sequence, engine.prefill(sequence, some(0, length)).logits)
            sequence.close()
        chat = runtime.chat()
        grown = chat._sequence
        for start, stop in ((200, 210), (210, 231), (231, 260)):
            side.check(grown, engine.prefill(grown, some(start, stop)).logits)
        for token in some(260, 280):  # a text of 61 to 80 tokens
            logits = engine.decode([grown], [int(token)])[0]
            if name != "dynamic":
                side.check(grown, logits)
        chat.save("grown")
        reach = grown.past.reach
        assert bool(reach) == name.startswith("longrope")
    with side.load() as runtime:
        resumed = runtime.chat(session="grown")
        assert resumed.restored == resumed.num_tokens == 80
        assert resumed._sequence.past.reach == reach
        logits = runtime.engine.decode([resumed._sequence], [7])[0]
        if name != "dynamic":
            side.check(resumed._sequence, logits)
        done = runtime.engine.prefill(resumed._sequence, some(0, 30))
        side.check(resumed._sequence, done.logits)
        assert done.num_computed == (111 if name == "dynamic" else 30)


@pytest.mark.filterwarnings("ignore:.past_key_values. is deprecated:FutureWarning")  # not in the lowest version
def test_dynamic_tables_in_decode_are_those_of_a_cache(sides: Callable[[str], Side]) -> None:
    """transformers turns each new token by the tables of the text that it ends, and keeps what its cache has."""
    side = sides("dynamic")
    side.expected(TOKENS[:3])
    with side.load() as runtime, torch.inference_mode():
        sequence, known = runtime.engine.new_sequence(), runtime.engine.new_sequence()
        for each in (sequence, known):
            runtime.engine.prefill(each, some(0, 60), reuse=False)
        at_once = runtime.engine.decode_known(known, some(60, 90))
        cache = side.reference(torch.from_numpy(TOKENS[:60])[None], use_cache=True).past_key_values
        for at, token in enumerate(some(60, 90)):
            one = torch.tensor([[int(token)]])
            expected = side.reference(one, past_key_values=cache, use_cache=True).logits[0, -1]
            close(runtime.engine.decode([sequence], [int(token)])[0], expected)
            close(at_once[at], expected)


@pytest.mark.parametrize("name", GROWING)
def test_known_tokens_across_the_limit(name: str, sides: Callable[[str], Side]) -> None:
    side = sides(name)
    with side.load() as runtime:
        sequence = runtime.engine.new_sequence()
        runtime.engine.prefill(sequence, some(100, 160))
        found = runtime.engine.decode_known(sequence, some(160, 190))
        every = [side.expected(TOKENS[100 : 161 + at])[-1] for at in range(30)]
        close(found, torch.stack(every))


def test_a_batch_on_both_sides_of_the_limit(longrope: Side, runtime: Runtime) -> None:
    engine = runtime.engine
    sequences = [engine.new_sequence() for _ in range(3)]
    for sequence, length in zip(sequences, (10, LIMIT - 2, 150), strict=True):
        engine.prefill(sequence, some(0, length))
    for _ in range(5):
        logits = engine.decode(sequences, [9, 8, 7])
        for sequence, row in zip(sequences, logits, strict=True):
            longrope.check(sequence, row)


def test_a_fork_on_either_side_goes_on_by_itself(longrope: Side, runtime: Runtime) -> None:
    engine, sequence = runtime.engine, runtime.engine.new_sequence()
    engine.prefill(sequence, some(0, LIMIT - 1))
    below = engine.fork(sequence)
    engine.decode_known(sequence, some(300, 310))
    above = engine.fork(sequence)
    past = above.past
    assert past.reach == sequence.past.reach > below.past.reach
    for each in (below, above, sequence):
        longrope.check(each, engine.prefill(each, some(40, 41)).logits)
        longrope.check(each, engine.decode([each], [5])[0])
    assert above.past is past  # nothing was computed again


def test_going_back_across_the_limit(longrope: Side, runtime: Runtime) -> None:
    """To a point before it, and from there another way: nothing of the longer text is left, and its pages are free."""
    engine, sequence = runtime.engine, runtime.engine.new_sequence()
    engine.prefill(sequence, some(0, 60), reuse=False)
    engine.decode([sequence], [4])
    point = sequence.snapshot()
    engine.decode_known(sequence, some(300, 315))
    longer = sequence.layers
    engine.rollback(sequence, point)
    for token in (11, 12):
        longrope.check(sequence, engine.decode([sequence], [token])[0])
    assert not any(len(layer.pids) for layer in longer)
    assert sequence.origins.tolist() == [0] * 60 + [1] * 3
    engine.decode_known(sequence, some(320, 335))
    longrope.check(sequence, engine.decode([sequence], [6])[0])
    del point
    sequence.close()
    with engine.turn():
        assert not engine.pasts.abandoned
    runtime.store.flush()
    assert not runtime.store.num_unstored


@pytest.mark.parametrize("is_decode", [True, False])
def test_an_interruption_while_it_is_computed_again(
    is_decode: bool, longrope: Side, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, sequence = runtime.engine, runtime.engine.new_sequence()
    engine.prefill(sequence, some(0, LIMIT))
    before = list(sequence.chains), sequence.past

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    work = (lambda: engine.decode([sequence], [3])) if is_decode else (lambda: engine.prefill(sequence, some(0, 9)))
    for name in ("run_layer", "logits"):
        if is_decode and name == "logits":
            continue
        with monkeypatch.context() as patch:
            patch.setattr(runtime.model, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                work()
        assert (sequence.chains, sequence.past) == before
    with monkeypatch.context() as patch:  # the text was computed again, the step that needed it fails
        patch.setattr(sequence, "seal", interrupted)
        patch.setattr(sequence, "commit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.decode([sequence], [3])
    assert (sequence.num_tokens, sequence.past) == (LIMIT, before[1])
    longrope.check(sequence, engine.decode([sequence], [3])[0])


def test_pages_of_one_side_are_never_taken_for_the_other(longrope: Side) -> None:
    """Several conversations on one store and a restart: what is adopted is right, and what can be is adopted."""
    for is_again in (False, True):
        with longrope.load() as runtime:
            cached = []
            for length in (LIMIT - 6, 160, LIMIT, 200, 120):
                sequence = runtime.engine.new_sequence()
                done = runtime.engine.prefill(sequence, some(0, length))
                longrope.check(sequence, done.logits)
                cached.append(done.num_cached)
                sequence.close()
            size = runtime.config.page_size
            whole = [(length - 1) // size * size for length in (LIMIT - 6, 160, LIMIT, 200, 120)]
            assert cached == (whole if is_again else [0, 0, 64, 160, 112])


def test_reading_says_how_much_and_decode_says_why(
    longrope: Side, runtime: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    engine, sequence = runtime.engine, runtime.engine.new_sequence()
    engine.prefill(sequence, some(0, 64))
    seen: list[Progress] = []
    done = engine.prefill(sequence, some(64, 100), on_progress=seen.append)
    assert (done.num_cached, done.num_computed, seen[-1].total, seen[-1].processed) == (0, 100, 100, 100)
    short = engine.new_sequence()
    engine.prefill(short, some(200, 200 + LIMIT))
    with caplog.at_level(logging.WARNING, "stratakv"):
        engine.decode([short], [3])
        engine.decode([short], [3])
    assert [record.message.split(",")[0] for record in caplog.records] == [f"the text is {LIMIT + 1} tokens long now"]


def test_damaged_pages_are_made_again_with_the_positions_they_had(longrope: Side) -> None:
    with longrope.load() as runtime:
        chat = runtime.chat()
        runtime.engine.prefill(chat._sequence, some(0, 160))
        chat.save("long")
    (folder,) = longrope.store.iterdir()
    with lmdb.open(str(folder), max_dbs=3, map_size=1 << 30) as environment:
        pages = environment.open_db(b"pages")
        with environment.begin(db=pages, write=True) as transaction:
            for key, value in list(transaction.cursor())[::4]:
                transaction.put(key, value[:-9] + bytes([value[-9] ^ 4]) + value[-8:])
    with longrope.load() as runtime:
        resumed = runtime.chat(session="long")
        sequence = resumed._sequence
        longrope.check(sequence, runtime.engine.decode([sequence], [3])[0])
        assert runtime.stats()["pages_recomputed"] > 4


@pytest.mark.parametrize("reach", [1, LIMIT, LIMIT + 2, -1, True, 10**6])
def test_a_session_whose_reach_cannot_be_is_refused(reach: int, longrope: Side, runtime: Runtime) -> None:
    chat = runtime.chat()
    runtime.engine.prefill(chat._sequence, some(0, 160))
    chat._sequence.past.reach = reach
    chat.save("odd")
    with pytest.raises(SessionError, match="reach"):
        runtime.chat(session="odd")


def check_reply(chat: Chat, side: Side) -> None:
    """Of a greedy reply that grew over the limit: each token is one that transformers would have chosen."""
    tokens, start = chat._sequence.tokens, chat.last.usage.prompt_tokens
    assert start < LIMIT < chat.num_tokens
    assert chat.last.tokens[: chat.num_tokens - start] == tokens[start:].tolist()
    for at in range(start, chat.num_tokens):
        row = side.expected(tokens[:at])[-1]
        assert row[int(tokens[at])] >= row.max() - TOLERANCE * row.abs().max()


def test_a_reply_that_grows_over_it_is_taken_back_and_cut(longrope: Side, runtime: Runtime) -> None:
    chat, settings = runtime.chat(), {"max_new_tokens": 40, "ignore_eos": True, "max_repeats": 0}
    chat.read_text("x" * 4)
    for _ in range(2):
        chat.send("a b", **settings) if not chat.last.tokens else list(chat.regenerate(**settings))
        check_reply(chat, longrope)
    with contextlib.closing(chat.regenerate(**settings)) as stream:
        while chat.num_tokens <= LIMIT:  # what was shown ends there, at the latest: some is held back
            next(stream)
    chat.send("c", max_new_tokens=3, ignore_eos=True)
    longrope.check(chat._sequence, runtime.engine.decode([chat._sequence], [3])[0])


def test_an_index_knows_the_positions_of_its_sequence(longrope: Side) -> None:
    with longrope.load(index="shadowkv") as runtime:
        model, sequence = runtime.model, runtime.engine.new_sequence()
        runtime.engine.prefill(sequence, some(0, 200))
        layer = sequence.layers[0]
        keys, positions = torch.randn(2, 8, model.head_dim), torch.arange(20, 28)
        expected = model.rotate(0, keys[None], keys[None], model.tables(20, 28, sequence.past.reach))[1][0]
        close(layer.index.layer.rotation.rotate(keys, positions), expected)
        assert runtime.engine.fork(sequence).layers[0].index is layer.index
