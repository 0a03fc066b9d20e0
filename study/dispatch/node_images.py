"""Give each node of a cluster its own store of decoded images, filled through Ray in pieces where it must be.

The study's own node has decoded all images. A node that sees that node's store, in a shared folder, reads from there.
Another node asks for the pixels of the rows that its trials need, and keeps them in its own store. It decodes nothing
again: other versions of a decoder may give other pixels.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from typing import Any

import numpy as np
import ray
from numpy.typing import NDArray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from study.data.images import Images
from study.data.pixel_store import PixelStore, Unusable, default_directory
from study.data.stored_pixels import StoredPixels, windows
from study.errors import DataError
from study.limits import free_memory_bytes
from study.training.run_trial import Inputs

Fetch = Callable[[NDArray[np.int64]], NDArray[np.uint8]]
"""Function from rows of the study's store to their images (n, 3, height, width)."""


class ImageServer:
    """Actor on the study's own node that reads rows of its store for other nodes."""

    def __init__(self, pixels: StoredPixels) -> None:
        """Serve the file of these images."""
        self._pixels = pixels

    def read(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images of these rows of the file."""
        return replace(self._pixels, rows=rows)[:]


def serve_images(parts: Iterable[Images | None]) -> list[Any]:
    """Start a server for each file of images, for nodes that do not see it; it lives as long as its handle."""
    start: Any = ray.remote(num_cpus=0)(ImageServer)
    node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    files = {part.pixels.mark: part.pixels for part in parts if part and isinstance(part.pixels, StoredPixels)}
    return [
        start.options(name=_name(mark), get_if_exists=True, scheduling_strategy=node).remote(
            replace(pixels, rows=np.empty(0, np.int64))
        )
        for mark, pixels in files.items()
    ]


def with_local_images(inputs: Inputs) -> Inputs:
    """Return the inputs of a trial with images that this node can read, copied to its store if need be.

    Raises:
        DataError: the images can neither be read nor copied.
    """
    return replace(
        inputs,
        train=_localise(inputs.train),
        validation=inputs.validation and _localise(inputs.validation),
        test=inputs.test and _localise(inputs.test),
    )


def _localise(images: Images) -> Images:
    pixels = images.pixels
    if not isinstance(pixels, StoredPixels):
        return images
    try:
        pixels.hold()
        return images
    except DataError:
        try:
            server: Any = ray.get_actor(_name(pixels.mark))
        except ValueError:
            server = None
        if server is None:  # a study on one computer has no server
            raise
    store = PixelStore(default_directory())

    def fetch(rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        images: Any = ray.get(server.read.remote(rows))
        return np.asarray(images)

    with suppress(Unusable, OSError):
        return Images(copy_images(pixels, store, fetch), images.labels)
    if pixels.nbytes > free_memory_bytes():
        raise DataError(
            f"{store.directory}: must have room for the study's images on every node, but lacks it, and"
            f" {pixels.nbytes / 1e9:,.2f} GB do not fit into memory. Free disk space."
        )
    return Images(
        np.concatenate([fetch(pixels.rows[part]) for part in windows(len(pixels), pixels.image_bytes)]), images.labels
    )


def copy_images(pixels: StoredPixels, store: PixelStore, fetch: Fetch) -> StoredPixels:
    """Return these images from a store of this node, which gets those that it lacks in pieces of bounded size.

    Where several processes of the node need the same images, one copies them, and the others wait.

    Args:
        pixels: images in the store of another node.
        store: store of this node.
        fetch: function that reads rows on the other node.

    Raises:
        Unusable: the store has no room, or does not work.
        OSError: the disk is full or fails.
    """
    names = [blake2b(f"{pixels.mark} {row}".encode(), digest_size=16).digest() for row in pixels.rows.tolist()]
    with store.open(f"copy of {pixels.mark}", {"size": [*pixels.side[::-1]]}) as pack:
        if missing := int((pack.rows_of(names) < 0).sum()):
            if lacking := store.reserve(pack, missing):
                raise Unusable(f"{store.directory}: must have room, but lacks {lacking:,} bytes.")
            with pack.writing():
                missing_at = np.flatnonzero(pack.rows_of(names) < 0)
                for part in windows(len(missing_at), pixels.image_bytes):
                    some = missing_at[part]
                    for at, image in zip(some.tolist(), fetch(pixels.rows[some]), strict=True):
                        pack.add(names[at], image)
        return pack.pixels(pack.rows_of(names)).hold()


def _name(mark: str) -> str:
    return f"images-{mark}"
