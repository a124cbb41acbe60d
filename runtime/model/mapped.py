"""The files that a model's weights are mapped from: a program that writes into one changes the model while it runs.

KV computed from then on belongs to no model, and must not be found under the name of the one that was loaded. A file
that was put in its place changes nothing: the old one stays mapped, and nobody finds it any more to write to.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...storage import DiskTier, StorageFullError
from ..api.errors import ModelFileError
from ..untrusted.directory import weight_files
from .digests import Stamp, stamp
from .identity import TENSORS, file_tensors, gguf_digest, stamps
from .locate import file_digest, files_digest, recalled


class MappedWeights:
    """The weights of a model, about to be read: `files`, those of a GGUF model, or the ones in `directory`. Raises
    ModelFileError, OSError."""

    def __init__(self, directory: Path, files: Sequence[Path] = ()) -> None:
        self._directory, self._files, self._before = directory, files, stamps(directory, files)
        self._kind, self._digest = ("", file_digest) if files else (TENSORS, file_tensors)
        """What is asked where a stamp has changed: the bytes of a GGUF file, the tensors of the others."""
        self._known: dict[Path, tuple[Stamp, str | None]] = {}

    def guard(self, disk: DiskTier | None) -> None:
        """Let `disk` keep only KV of these weights from now on; they have been read.

        Raises ModelFileError if they were replaced meanwhile: their pages would have another's name.
        """
        if stamps(self._directory, self._files) != self._before or not self._are_named():
            raise ModelFileError(f"{self._directory}: the model was replaced while it was read; load it again")
        paths = self._files or weight_files(self._directory)
        self._known = {path: (stamp(path), recalled(path, self._kind)) for path in paths}
        if disk is not None:
            disk.check_before_writing(self.require_unchanged)

    def _are_named(self) -> bool:
        """True unless the directory was made for what the GGUF files were a moment before."""
        made = gguf_digest(self._directory) if self._files else None
        return made is None or files_digest(list(self._files)).startswith(made)

    def require_unchanged(self) -> None:
        """Raise StorageFullError if somebody has written into one of the files. Call it after whatever was computed
        with them: a file's time is set before its bytes."""
        for path, (before, known) in self._known.items():
            try:
                now = stamp(path)
            except OSError:  # the file is gone, or may not be read any more
                continue
            if now == before or now[0] != before[0]:
                continue
            if known is None or self._digest(path) != known:
                raise StorageFullError(
                    f"{path} was written to while the model was in use: nothing that it computes is stored any more; "
                    "load it again"
                )
            self._known[path] = now, known
