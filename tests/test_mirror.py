"""Tests mirror the tree: `storage/disk/record.py` is tested by `tests/storage/disk/test_record.py`.

Where one file would be too long, others continue its name (`test_repl_lines.py`). Beside the mirror stand promises that
no single module keeps: `whole/` (conversations and commands across all rooms), `versions/` (what other versions wrote),
`hostile/` (what attackers write), `faults/` (what disks, processes and machines do), `docs/` (what pages say), `gpu/`
and `compare/` (what needs a device, or llama.cpp). A package is tested by `test_<package>.py` beside its folder.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from places import ROOT, TESTS

FOLDERS = ("runtime", "storage", "retrieval", "kernels")
THROUGH = {
    "docs/test_models.py": "runtime.model.gguf.said",
    "faults/test_full_disk.py": "storage.disk.reserve",
    "hostile/test_fuzz_models.py": "runtime.untrusted.weights",
    "hostile/test_hostile_sessions.py": "runtime.sessions.session_check storage.disk.sessions",
    "kernels/compiled/test_attention.py": "kernels.compiled.tiles",
    "kernels/compiled/test_choice.py": "kernels.compiled.scores",
    "kernels/compiled/test_blocks.py": "kernels.compiled.block_code kernels.compiled.block_sums",
    "kernels/compiled/test_operation.py": "kernels.compiled.kept",
    "kernels/compiled/test_team.py": "kernels.compiled.work",
    "kernels/test_gather.py": "kernels.gather_rows",
    "kernels/test_topk_pages.py": "kernels.launch",
    "retrieval/indexes/test_leoam.py": "retrieval.structures.chunk_choice retrieval.structures.refine",
    "retrieval/indexes/test_magicpig.py": "retrieval.structures.collision_sample",
    "retrieval/indexes/test_shadowkv.py": "retrieval.layer",
    "retrieval/test_index.py": ("retrieval retrieval.indexes.dense retrieval.indexes.oracle retrieval.indexes.window"),
    "runtime/api/test_figures.py": "runtime.cli.repl_report",
    "runtime/api/test_typed.py": "runtime.api.config",
    "runtime/bench/test_llama_c.py": "runtime.bench.llama_side",
    "runtime/bench/test_run.py": (
        "runtime.bench.bandwidths runtime.bench.correctness runtime.bench.options runtime.bench.ours "
        "runtime.bench.random_kv runtime.bench.shapes runtime.bench.subject runtime.bench.trace "
        "runtime.bench.transformers_side"
    ),
    "runtime/chat/test_chat.py": (
        "runtime.api.progress runtime.chat.loaded runtime.chat.reply_stream runtime.chat.runtime "
        "runtime.engine.generate"
    ),
    "runtime/cli/test_app.py": "runtime.__main__ runtime.cli.options",
    "runtime/cli/test_bench_command.py": "runtime.bench.breakdown_plot runtime.bench.plot runtime.process.hardware",
    "runtime/cli/test_eval_command.py": (
        "runtime.evaluation.plain runtime.evaluation.plot runtime.evaluation.report runtime.evaluation.run "
        "runtime.evaluation.suites.fidelity runtime.evaluation.suites.needles runtime.evaluation.suites.tasks"
    ),
    "runtime/cli/test_repl.py": "runtime.cli.loading",
    "runtime/cli/test_repl_lines.py": "runtime.cli.chat_setup",
    "runtime/cli/test_sessions_command.py": "runtime.sessions.housekeeping",
    "runtime/cli/test_typed_line.py": "runtime.cli.typed_settings",
    "runtime/engine/test_compiled_step.py": (
        "runtime.engine.compiled_form runtime.layers.attend_rows runtime.layers.score_rows "
        "runtime.layers.standing "
        "runtime.layers.tiered_rows runtime.model.step_rows"
    ),
    "runtime/engine/test_batch.py": "runtime.engine.planner",
    "runtime/engine/test_prefixes.py": "runtime.engine.indexes runtime.engine.known_tokens",
    "runtime/evaluation/suites/test_exact.py": (
        "runtime.evaluation.suites.exact_kernels runtime.evaluation.suites.once runtime.evaluation.suites.save_and_wait"
    ),
    "runtime/evaluation/test_calibrate.py": "runtime.engine.profile runtime.layers.page_queries",
    "runtime/evaluation/test_harness.py": "runtime.evaluation.probe",
    "runtime/evaluation/test_tasks.py": (
        "runtime.evaluation.tasks.aggregation runtime.evaluation.tasks.dialogue runtime.evaluation.tasks.haystack "
        "runtime.evaluation.tasks.intensive runtime.evaluation.tasks.niah runtime.evaluation.tasks.questions "
        "runtime.evaluation.tasks.quoting runtime.evaluation.tasks.tracing"
    ),
    "runtime/evaluation/test_texts.py": "runtime.evaluation.archives runtime.evaluation.fetch",
    "runtime/layers/test_prefetch.py": "runtime.layers.lookahead runtime.layers.workspace",
    "runtime/layers/test_row_cache.py": "runtime.layers.page_reader",
    "runtime/model/gguf/test_directory.py": (
        "runtime.model.gguf.architectures runtime.model.gguf.container runtime.model.gguf.weights_file"
    ),
    "runtime/model/gguf/test_plan.py": "runtime.model.gguf.settings",
    "runtime/model/gguf/test_tokenizer.py": "runtime.model.gguf.pre_tokenizers",
    "runtime/model/gguf/test_vocabulary.py": "runtime.model.gguf.merges runtime.model.tokens",
    "runtime/model/test_decoder.py": "runtime.model.llama_config runtime.model.rotary runtime.model.weights",
    "runtime/model/test_file_weights.py": "runtime.model.gguf.tensors_digest",
    "runtime/model/test_identity.py": "runtime.model.model_files",
    "runtime/model/test_lean_layer.py": "runtime.model.products",
    "runtime/model/test_strip_rows.py": "kernels.compiled.block_products",
    "runtime/model/test_template.py": "runtime.model.encoder",
    "runtime/model/test_tensors.py": "runtime.model.model runtime.model.mapped",
    "runtime/process/test_outputs.py": "runtime.evaluation.progress",
    "runtime/process/test_standard_input.py": "runtime.cli.chat_command runtime.cli.one_shot",
    "runtime/sessions/test_home.py": "runtime.model.locate runtime.sessions.elsewhere",
    "runtime/sessions/test_store_cap.py": "runtime.sessions.saved",
    "runtime/untrusted/test_directory.py": "runtime.untrusted.tokenizer",
    "runtime/untrusted/test_template_render.py": "runtime.untrusted.template_child",
    "storage/disk/test_disk_tier.py": "storage.disk.lmdb_file storage.disk.stored_records storage.disk.uses",
    "storage/disk/test_record.py": "storage.codecs storage.disk.pieces",
    "storage/disk/test_share.py": "storage.disk.folder_lease",
    "storage/memory/test_arena.py": "storage.memory.residency",
    "storage/test_tiered_store.py": (
        "storage storage.transfer.gathering storage.transfer.intake storage.transfer.write_behind"
    ),
    "storage/transfer/test_links.py": "storage.transfer.clock",
    "versions/test_gguf_versions.py": "runtime.model.gguf.rope",
    "versions/test_later_versions.py": "runtime.sessions.session_header",
    "whole/test_again.py": "runtime.model.head",
    "whole/test_guest.py": "runtime runtime.process.apart",
    "whole/test_positions.py": (
        "runtime.engine.engine runtime.engine.pasts runtime.engine.reaching runtime.layers.sliding"
    ),
    "whole/test_spill.py": (
        "runtime.engine.sequence runtime.engine.recompute runtime.layers.pages runtime.layers.span "
        "runtime.layers.stored runtime.layers.tiered runtime.layers.upkeep"
    ),
}
"""Test file -> modules that show what they do only there, beside or through those that call them.

A test of their own would be artificial: what is in `engine`, `layers`, `sessions`, `chat`, and the suites works on a
loaded model over an open store, and shows in what a conversation then says; what is in `cli` and the reports shows in
what a command prints; the makers of tasks, the parts of an index and the readers of a GGUF file keep promises that one
test states for all of them; a disk's own parts show in what the tier keeps when it is killed, full or damaged. Kernels
and registries that have one test for every case of a table are in that test."""


def behaves(tree: ast.AST) -> bool:
    """Whether some function does more than say what it would: protocols, data and tables have nothing to test."""
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return any(not isinstance(statement, ast.Expr | ast.Raise) for body in bodies for statement in body)


def modules() -> dict[str, Path]:
    """Module, without `stratakv` -> where its test file is if it has one of its own."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if behaves(ast.parse(path.read_text())):
                name = path.parent if path.name == "__init__.py" else path.with_suffix("")
                name = name.relative_to(ROOT)
                found[".".join(name.parts)] = TESTS / name.parent / f"test_{name.name}.py"
    return found


def through() -> list[tuple[str, Path]]:
    return [(module, TESTS / test) for test, names in THROUGH.items() for module in names.split()]


def test_each_module_that_does_something_has_its_test() -> None:
    without = {module for module, own in modules().items() if not own.exists()}
    elsewhere = {module for module, _ in through()}
    assert without - elsewhere == set(), "neither a test file at the path of each, nor a line in THROUGH"


def test_the_list_of_others_is_short_and_true() -> None:
    """Whoever gets a test of its own, or goes, leaves the list; no module is on it twice."""
    names = [module for module, _ in through()]
    assert sorted({*names}) == sorted(names)
    known = modules()
    assert [module for module in names if module not in known or known[module].exists()] == []
    assert [str(test) for _, test in through() if not test.exists()] == []


@pytest.mark.parametrize("folder", ["runtime", "storage", "retrieval"])
def test_each_test_file_is_named_after_a_module(folder: str) -> None:
    there = [
        ROOT / path.relative_to(TESTS).parent / path.stem.removeprefix("test_")
        for path in (TESTS / folder).rglob("test_*.py")
    ]
    names = {path.parent / path.stem for path in (ROOT / folder).rglob("*.py")}
    names |= {path.parent for path in (ROOT / folder).rglob("__init__.py")}
    assert [str(one) for one in there if not any(one == name or is_continued(one, name) for name in names)] == []


def is_continued(test: Path, module: Path) -> bool:
    return test.parent == module.parent and test.name.startswith(f"{module.name}_")


def test_a_module_without_a_test_is_seen() -> None:
    assert behaves(ast.parse("def f():\n    'Doc.'\n    return 1"))
    assert not behaves(ast.parse("class P(Protocol):\n    def f(self) -> int: ...\nX = 1"))
    assert not behaves(ast.parse("def f():\n    'Doc.'\n    raise NotImplementedError"))
    assert modules()["storage.disk.record"] == TESTS / "storage" / "disk" / "test_record.py"
    assert modules()["runtime.evaluation.tasks"] == TESTS / "runtime" / "evaluation" / "test_tasks.py"
