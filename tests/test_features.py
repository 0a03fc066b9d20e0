"""The prefix's outputs are the same for whoever asks, and batches cut from them lose nothing."""

import torch

from study.augment import draw
from study.features import CHUNK, prefix_outputs, rebatch
from study.models import build, preprocessing


def outputs(images, order, *, precision="fp32", draws=None):
    classifier = build("resnet18", classes=3, unfreeze_depth=1, pretrained=None, seed=0)
    return list(
        prefix_outputs(
            classifier,
            preprocessing("resnet18", 32),
            torch.from_numpy(images.pixels),
            order,
            draws=draws,
            device=torch.device("cpu"),
            precision=precision,
        )
    )


def test_rebatch_keeps_every_value_in_order():
    values = torch.arange(23)
    batches = list(rebatch(values.split(5), [7, 7, 1, 8]))
    assert [len(batch) for batch in batches] == [7, 7, 1, 8]
    assert torch.equal(torch.cat(batches), values)


def test_rebatch_gives_copies_that_autograd_may_save():
    with torch.inference_mode():
        chunk = torch.ones(4)
    (batch,) = rebatch([chunk], [4])
    assert not batch.is_inference()


def test_prefix_outputs_follow_the_order(make_images):
    images = make_images(CHUNK)
    forward, backward = (outputs(images, order)[0] for order in (torch.arange(CHUNK), torch.arange(CHUNK).flip(0)))
    torch.testing.assert_close(forward, backward.flip(0))


def test_prefix_outputs_come_in_chunks_of_one_size(make_images):
    sizes = [len(chunk) for chunk in outputs(make_images(CHUNK + 6), torch.arange(CHUNK + 6))]
    assert sizes == [CHUNK, 6]


def test_prefix_outputs_are_repeated_bit_for_bit(make_images):
    images, order = make_images(20), torch.arange(20)
    draws = draw(20, seed=0, epoch=1)
    first, second = (outputs(images, order, precision="bf16", draws=draws)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_prefix_outputs_leave_autograd_on_between_chunks(make_images):
    classifier = build("resnet18", classes=3, unfreeze_depth=1, pretrained=None, seed=0)
    stream = prefix_outputs(
        classifier, preprocessing("resnet18", 32), torch.from_numpy(make_images(8).pixels), torch.arange(8),
        draws=None, device=torch.device("cpu"), precision="fp32",
    )  # fmt: skip
    next(stream)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
