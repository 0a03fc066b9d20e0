"""Images keep their order, and fingerprints tell images apart."""

import numpy as np
from support.images import indices, numbered

from study.data.images import Images, fingerprint


def test_images_take_keeps_the_order_asked_for() -> None:
    taken = numbered(3, 3).take(np.array([4, 0]))
    assert indices(taken) == [4, 0]
    assert taken.pixels.flags.c_contiguous


def test_fingerprint_is_equal_for_equal_images() -> None:
    assert fingerprint(numbered(3, 4)) == fingerprint(numbered(3, 4))
    assert len(fingerprint(numbered(3, 4))) == 16


def test_fingerprint_tells_pixels_labels_shape_and_parts_apart() -> None:
    images = numbered(4, 4)
    variants = [
        (images,),
        (Images(images.pixels + 1, images.labels),),
        (Images(images.pixels, 1 - images.labels),),
        (Images(images.pixels.reshape(8, 1, 3, 1), images.labels),),
        (images.take(np.arange(4)), images.take(np.arange(4, 8))),
    ]
    assert len({fingerprint(*variant) for variant in variants}) == len(variants)
