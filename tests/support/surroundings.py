"""What a process is like around us: everything global that a library could change and should not."""

from __future__ import annotations

import decimal
import gc
import json
import locale
import logging
import os
import random
import signal
import socket
import sys
import tempfile
import threading
import warnings
from typing import Any


def plain() -> dict[str, Any]:
    """Of Python and the process."""
    umask = os.umask(0o77)
    os.umask(umask)
    root = logging.getLogger()
    return {
        "environment": dict(os.environ),
        "folder, umask": (os.getcwd(), umask),
        "hooks": (sys.excepthook, sys.displayhook, sys.unraisablehook, threading.excepthook, sys.gettrace()),
        "import paths": (list(sys.path), list(sys.path_hooks)),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "locale": locale.setlocale(locale.LC_ALL),
        "random": random.getstate(),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "recursion, switches, digits": (
            sys.getrecursionlimit(), sys.getswitchinterval(), sys.get_int_max_str_digits(),
        ),
        "garbage": (gc.isenabled(), gc.get_threshold(), list(gc.callbacks)),
        "logging": (root.level, list(root.handlers), root.manager.disable, logging.getLoggerClass()),
        "loggers": {
            name: (one.level, list(one.handlers), one.propagate, one.disabled)
            for name, one in root.manager.loggerDict.items()
            if isinstance(one, logging.Logger) and (one.level or one.handlers or one.disabled or not one.propagate)
        },
        "decimal, sockets": (str(decimal.getcontext()), socket.getdefaulttimeout()),
        "threads": sorted(thread.name for thread in threading.enumerate()),
    }  # fmt: skip


def with_libraries() -> dict[str, Any]:
    """Of the libraries under us too."""
    import numpy as np
    import torch
    import transformers

    backends = torch.backends
    return {
        **plain(),
        "numpy": (np.geterr(), np.geterrcall(), np.random.get_state()[1].tolist(), np.get_printoptions()),  # type: ignore[index,union-attr]
        "torch types": (torch.get_default_dtype(), torch.get_default_device(), torch.get_float32_matmul_precision()),
        "torch threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch modes": (
            torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_anomaly_enabled(),
            torch.are_deterministic_algorithms_enabled(), torch.is_autocast_enabled("cpu"),
        ),
        "torch random": torch.get_rng_state().tolist(),
        "torch backends": (
            backends.cudnn.enabled, backends.cudnn.benchmark, backends.cudnn.deterministic, backends.cudnn.allow_tf32,
            backends.cuda.matmul.allow_tf32, backends.mkldnn.enabled, backends.cuda.flash_sdp_enabled(),
            backends.cuda.mem_efficient_sdp_enabled(), backends.cuda.math_sdp_enabled(),
        ),
        "denormal numbers": float(torch.tensor(1e-40) * 1),
        "transformers": (transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()),
    }  # fmt: skip


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [f"{name}: {before[name]!s:.200} -> {after[name]!s:.200}" for name in before if before[name] != after[name]]


def probe(model: str) -> dict[str, list[str]]:
    """What each step of a program that uses us changes."""
    found: dict[str, list[str]] = {}
    before = plain()
    import stratakv.runtime as package

    found["import"] = differences(before, plain())
    import faiss  # noqa: F401  the libraries under us, with what each of them changes when it is imported
    import lmdb  # noqa: F401
    import torch  # noqa: F401
    import transformers

    transformers.AutoModelForCausalLM  # noqa: B018
    before = with_libraries()
    kv = package.KVConfig(path=tempfile.mkdtemp(), host_gb=0.05, disk_gb=0.05)
    with package.Runtime.load(model, kv=kv) as runtime:
        found["load"] = differences({**before, "threads": 0}, {**with_libraries(), "threads": 0})
        chat = runtime.chat()
        chat.read_text("k1 v2 k3 v4 k5 v6 k7 " * 9)
        for settings in ({"seed": 3}, {}, {"min_p": 0.1, "repetition_penalty": 1.5}):
            chat.send("a b ?", max_new_tokens=3, do_sample=True, **settings)
        runtime.generate(["a", "b c"], max_new_tokens=2, do_sample=True)
        chat.save("kept")
        runtime.chat(session="kept").close()
        found["use"] = differences({**before, "threads": 0}, {**with_libraries(), "threads": 0})
    found["close"] = differences(before, with_libraries())
    return found


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1])))
