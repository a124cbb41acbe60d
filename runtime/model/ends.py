"""Tokens that end a reply, known by their texts.

Files often state one token that ends a text and leave out the one that ends a turn, whose text is all that is known
of it. llama.cpp has a list of such texts, and exceptions to it; this is the same list (checked against b11549).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

TURN_ENDS = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>", "<EOT>", "_<EOT>",
    "[EOT]", "<｜end▁of▁sentence｜>", "<end_of_utterance>", "<|eom_id|>", "<|return|>", "<|call|>", "<|calls|>",
    "<|flush|>", "</s>", "[EOS]", "<eos>", "<turn|>", "<|tool_response>", "[e~[",
})  # fmt: skip
"""Texts that end a turn, a text, or a message to a tool."""
FILE_ENDS = frozenset({
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>",
    "<reponame>", "<|file_sep|>",
})  # fmt: skip
"""Texts that stand between the files of a repository, or fill up a batch of them: after these a model goes on with
something else."""

_ENDS = TURN_ENDS | FILE_ENDS


def well_known_ends(tokens: Mapping[str, int], stated: Iterable[int] = ()) -> list[int]:
    """Ids of tokens that end a reply, in ascending order.

    Args:
        tokens: text -> id of the tokens that may be ends: added ones, or all whose type says more than "a word".
        stated: ids that the model's own files call an end.
    """
    there = {text for text in _ENDS if text in tokens}
    ends = {tokens[text] for text in there} | set(stated)
    calls = bool(there & {"<|call|>", "<|calls|>"})
    if "<|end|>" in there and calls and there & {"<|return|>", "<|flush|>"}:
        ends.discard(tokens["<|end|>"])  # it ends a message, after which the reply goes on
    if "</s>" in there and "<|tool_response>" in there:
        ends.discard(tokens["</s>"])  # an ordinary word in Gemma 4
    return sorted(ends)
