"""Packed weights kept on disk between runs: a base is packed once, and read in seconds afterwards.

An entry is a directory of safetensors files with bitsandbytes' names and layout, keyed by the bytes
of the base and the way it was packed. It is published by one rename, and its hashes are verified
before it is used. A cache that cannot be written is no error: the next run packs again.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from loractl import leftovers
from loractl.digests import file_sha256
from loractl.models.stored import Stored, tensors_in
from loractl.ops.packed import Packed
from loractl.paths import cache_home, make_private_directory
from loractl.quant import bitsandbytes_files
from loractl.quant.kinds import Quantization

LAYOUT = 1
"""Of the entries; a change of the packing or of the files makes older ones useless."""
UNUSED_DAYS = 30
FILE_BYTES = 256 << 20
"""Bytes of a file before the next one begins: they are copied once while it is written."""
_ENTRY = re.compile(r"[0-9a-f]{32}")
ACCOUNT = "account.json"


@dataclass(frozen=True)
class Entry:
    """Where the weights of one base, packed in one way, are or would be."""

    place: Path

    @staticmethod
    def of(fingerprint: str, chosen: Quantization) -> "Entry":
        parts = (str(LAYOUT), fingerprint, chosen.kind, chosen.dtype, str(chosen.head))
        key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
        return Entry(cache_home() / "packed" / key)

    def tensors(self) -> dict[str, Stored]:
        """Its tensors by their names; empty if it is not there or not whole."""
        found: dict[str, Stored] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            make_private_directory(self.place.parent)  # raises if others could have written there
            account = json.loads((self.place / ACCOUNT).read_text("utf-8"))
            for name, sha256 in account["sha256"].items():
                if file_sha256(self.place / name) != sha256:
                    return {}
                found |= tensors_in(self.place / name)
            os.utime(self.place)
        return found

    def keep(self, packed: Iterable[tuple[str, Packed]], n_bytes: int) -> None:
        """Write weights by their names in the base's files, if there is room for them: they take
        `n_bytes` at most, and are needed one after another."""
        root = self.place.parent
        with contextlib.suppress(OSError):
            make_private_directory(root)
            _forget_unused(root)
            if 2 * n_bytes > shutil.disk_usage(root).free:
                return
            with leftovers.making_in_cache(root) as working:
                entry = working / self.place.name
                entry.mkdir()
                sha256 = {}
                for number, tensors in enumerate(_in_files(packed)):
                    name = f"packed-{number:05}.safetensors"
                    save_file(tensors, entry / name)
                    sha256[name] = file_sha256(entry / name)
                (entry / ACCOUNT).write_text(json.dumps({"sha256": sha256}), "utf-8")
                shutil.rmtree(self.place, ignore_errors=True)
                os.rename(entry, self.place)


def _in_files(packed: Iterable[tuple[str, Packed]]) -> Iterator[dict[str, Tensor]]:
    tensors: dict[str, Tensor] = {}
    size = 0
    for name, one in packed:
        added = bitsandbytes_files.tensors_of(one, name)
        tensors |= {full: tensor.cpu() for full, tensor in added.items()}
        size += sum(tensor.nbytes for tensor in added.values())
        if size >= FILE_BYTES:
            yield tensors
            tensors, size = {}, 0
    if tensors:
        yield tensors


def _forget_unused(root: Path) -> None:
    """Remove entries that no run has used for a month; other files stay."""
    oldest = time.time() - UNUSED_DAYS * 86400
    for entry in root.iterdir():
        if _ENTRY.fullmatch(entry.name) and entry.stat().st_mtime < oldest:
            shutil.rmtree(entry, ignore_errors=True)
