"""Derive the seed of every random number from (seed, purpose, epoch) and from nothing else.

So the trials of a study are paired: all trials see the same augmented images in epoch 3, whatever their batch size or
device. This takes noise out of their comparison and lets trials share work.
"""

import hashlib


def derive_seed(seed: int, purpose: str, epoch: int = 0) -> int:
    """Return a 63-bit seed for one purpose, independent of the seeds of all other purposes and epochs."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
