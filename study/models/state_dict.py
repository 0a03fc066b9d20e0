"""Name the tensors of a network, and tell them apart by a digest."""

import hashlib
from collections.abc import Iterable

from torch import Tensor, nn

StateDict = dict[str, Tensor]
"""Tensors of a network by their names."""


def digest_state(state: StateDict) -> str:
    """Return the digest of a state dict: 16 hexadecimal digits."""
    digest = hashlib.sha256()
    _feed(digest, state)
    return _shorten(digest)


def digest_parts(parts: Iterable[nn.Module]) -> list[str]:
    """Return the digests of the first 1, 2, … parts: those of `digest_state` for them in an nn.Sequential."""
    digest, digests = hashlib.sha256(), []
    for number, part in enumerate(parts):
        _feed(digest, part.state_dict(prefix=f"{number}."))
        digests.append(_shorten(digest))
    return digests


def _feed(digest: "hashlib._Hash", state: StateDict) -> None:
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].cpu().contiguous().numpy().data)


def _shorten(digest: "hashlib._Hash") -> str:
    return digest.hexdigest()[:16]
