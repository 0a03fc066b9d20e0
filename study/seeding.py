"""Every random number is a function of (seed, purpose, epoch) and of nothing else.

That pairs the trials of a study: the augmented images of epoch 3 are the same for all of them, whatever their
batch size or device, which takes noise out of their comparison and lets them share work.
"""

import hashlib


def derive_seed(seed: int, purpose: str, epoch: int = 0) -> int:
    """Return a 63-bit seed for one purpose, independent of the seeds of all other purposes and epochs."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{epoch}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
