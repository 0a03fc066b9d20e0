"""The audit finds copies, leaks and contradicting labels, and nothing where there is none."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from study.data.audit import audit_images, drop_leaks
from study.data.images import Dataset, Images

CLASSES = ("cat", "dog")


def picture(number: int, side: int = 64) -> np.ndarray:
    """A smooth picture with detail that no other number has, (3, side, side) uint8."""
    coarse = np.random.default_rng(number).integers(0, 256, (9, 9, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)).transpose(2, 0, 1)


def pictures(*numbers: int, labels: list[int] | None = None) -> Images:
    labels = [number % 2 for number in numbers] if labels is None else labels
    return Images(np.stack([picture(number) for number in numbers]), np.array(labels))


def dataset(train: Images, test: Images, validation: Images | None = None) -> Dataset:
    return Dataset("pets", CLASSES, train, test, 1.0, validation)


def saved_again(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)).transpose(2, 0, 1)


def half_size_and_back(image: np.ndarray) -> np.ndarray:
    small = Image.fromarray(image.transpose(1, 2, 0)).resize((32, 32), Image.Resampling.BILINEAR)
    return np.asarray(small.resize((64, 64), Image.Resampling.BILINEAR)).transpose(2, 0, 1)


def brighter(image: np.ndarray) -> np.ndarray:
    return (image * 0.8 + 40).astype(np.uint8)


def test_different_pictures_are_no_copies():
    audit = audit_images(dataset(pictures(*range(200)), pictures(*range(200, 260))))
    assert audit.groups == ()
    assert list(audit.warnings()) == []


def test_digits_have_no_copies():
    from study.data.sources import load_dataset

    digits = load_dataset("digits", fraction=1.0, seed=0, image_size=32, data_dir=None)
    assert audit_images(digits).groups == ()


def test_exact_copies_are_found_and_counted():
    audit = audit_images(dataset(pictures(0, 1, 2, 0, 0), pictures(5, 6)))
    assert [(group.members, group.exact) for group in audit.groups] == [((0, 3, 4), True)]
    assert audit.extra_copies == 2


@pytest.mark.parametrize("change", [lambda image: saved_again(image, 50), half_size_and_back, brighter])
def test_near_copies_are_found(change):
    changed = Images(np.stack([change(picture(number)) for number in range(20)]), np.zeros(20, np.int64))
    audit = audit_images(dataset(pictures(*range(30)), changed))
    assert [group.members for group in audit.groups] == [(number, 30 + number) for number in range(20)]
    assert not any(group.exact for group in audit.groups)


def test_leaks_are_test_images_seen_in_training():
    audit = audit_images(dataset(pictures(0, 1, 2), pictures(7, 1, 9, 4), pictures(4, 5)))
    assert audit.leaked_test == [1, 3]
    assert "2 test images of 4 are also among the training or validation images" in next(audit.warnings())


def test_dropped_leaks_are_told_as_dropped():
    audit = audit_images(dataset(pictures(0, 1, 2), pictures(1, 9)))
    (warning,) = audit.warnings(dropped=True)
    assert warning.startswith("1 test image of 2 was also among the training images, for example ")
    assert warning.endswith(". The copies were dropped from training")


def test_copies_within_the_training_images_are_no_leak():
    audit = audit_images(dataset(pictures(0, 0, 1), pictures(2, 3)))
    assert (audit.leaked_test, audit.extra_copies) == ([], 1)


def test_copies_of_two_classes_are_contradictions():
    audit = audit_images(dataset(pictures(0, 1, 0, labels=[0, 1, 1]), pictures(2, 3)))
    assert [group.members for group in audit.contradictions] == [(0, 2)]
    assert "2 images stand under several classes" in next(audit.warnings())


@pytest.mark.parametrize(("classes", "said"), [(("Cat", "cat"), ["for example Cat and cat"]), (("Dog", "cat"), [])])
def test_classes_that_differ_only_in_case_are_named(classes, said):
    audit = audit_images(Dataset("pets", classes, pictures(0, 1), pictures(2, 3), 1.0))
    named = [re.search(r"only in upper and lower case, (.*); if", warning)[1] for warning in audit.warnings()]
    assert named == said


def test_drop_leaks_keeps_every_test_image():
    whole = dataset(pictures(0, 1, 2), pictures(1, 9), pictures(9, 5))
    dropped = drop_leaks(whole, audit_images(whole))
    assert np.array_equal(dropped.train.pixels, pictures(0, 2).pixels)
    assert np.array_equal(dropped.validation.pixels, pictures(5).pixels)
    assert np.array_equal(dropped.test.pixels, whole.test.pixels)
    assert dropped.found.leaks_dropped == 2
    assert audit_images(dropped).leaks == []


def test_plain_images_are_compared_pixel_by_pixel():
    plain = np.stack([np.full((3, 64, 64), value, np.uint8) for value in (0, 10, 10, 200)])
    audit = audit_images(dataset(Images(plain, np.array([0, 0, 1, 1])), pictures(0, 1)))
    assert [group.members for group in audit.groups] == [(1, 2)]


def test_renamed_class_changes_the_fingerprint_of_the_data():
    train, test = pictures(0, 1), pictures(2, 3)
    one, other = (Dataset("pets", classes, train, test, 1.0) for classes in (("cat", "dog"), ("dog", "cat")))
    assert one.fingerprint != other.fingerprint
