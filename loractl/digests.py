"""SHA-256 of files, for manifests, accounts and fingerprints."""

import hashlib
from pathlib import Path

PIECE = 4 << 20


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal. Raises OSError.

    Reads large pieces: hashlib.file_digest gives up the GIL every 256 KiB and then waits for it,
    and during imports 269 MB took 1.0 to 1.6 s instead of 0.5.
    """
    digest, piece = hashlib.sha256(), memoryview(bytearray(PIECE))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(piece):
            digest.update(piece[:count])
    return digest.hexdigest()
