"""Duplicates: found when a picture is stored again, and only then."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from ornstein.data import duplicates as module
from ornstein.data.digits import digits
from ornstein.data.duplicates import Duplicates, duplicates, leaked, thumbnails


def textures(count, side=32, channels=3, seed=0):
    """Different pictures, uint8 [N, C, H, W]: a few soft patches and a little grain."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(40, 200, (count, 6, 6, channels)).astype(np.uint8)
    soft = [
        Image.fromarray(c.squeeze(-1) if channels == 1 else c).resize((side, side), 3)
        for c in coarse
    ]
    fine = np.stack([np.asarray(image).reshape(side, side, channels) for image in soft])
    grainy = fine + rng.normal(0, 6, fine.shape)
    return np.clip(np.rint(grainy), 0, 255).astype(np.uint8).transpose(0, 3, 1, 2)


def picture(x):
    return Image.fromarray(x[0] if len(x) == 1 else x.transpose(1, 2, 0))


def pixels(image):
    x = np.asarray(image)
    return x[None] if x.ndim == 2 else x.transpose(2, 0, 1)


def encoded(x, kind="JPEG", **options):
    buffer = io.BytesIO()
    picture(x).save(buffer, kind, **options)
    return pixels(Image.open(buffer).convert("L" if len(x) == 1 else "RGB"))


def resized(x, factor):
    image = picture(x)
    other = image.resize((round(image.width * factor), round(image.height * factor)), 3)
    return pixels(other.resize(image.size, Image.Resampling.LANCZOS))


def brightened(x, factor):
    return pixels(ImageEnhance.Brightness(picture(x)).enhance(factor))


AGAIN = {
    "JPEG 80": lambda x: encoded(x, quality=80),
    "JPEG 50": lambda x: encoded(x, quality=50),
    "WebP": lambda x: encoded(x, "WEBP", quality=70),
    "larger and back": lambda x: resized(x, 1.7),
    "smaller and back": lambda x: resized(x, 0.7),
    "lighter": lambda x: brightened(x, 1.15),
    "darker": lambda x: brightened(x, 0.8),
    "more contrast": lambda x: pixels(ImageEnhance.Contrast(picture(x)).enhance(1.2)),
    "one pixel off": lambda x: np.where(np.arange(x.size).reshape(x.shape) == 7, 255 - x, x),
    "all of it": lambda x: brightened(encoded(resized(x, 1.3), quality=75), 1.1),
}


# Near-duplicates


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("how", AGAIN)
def test_a_picture_stored_again_is_found(how, channels):
    x = textures(150, channels=channels)
    again = [np.asarray(AGAIN[how](x[i]), np.uint8) for i in range(0, 150, 15)]
    found = duplicates(np.concatenate([x, again]), (0, 255))
    assert found.exact == ()
    assert found.near == tuple((15 * k, 150 + k) for k in range(10))
    assert found.compared == 160


def test_different_digits_are_not_duplicates():
    """However alike two handwritten digits are: there is no pair among 1797."""
    x, _ = digits()
    assert duplicates(x, (0, 16)) == Duplicates((), (), 1797)


def test_digits_stored_again_are_found_among_the_others():
    x, _ = digits()
    x = np.stack([pixels(picture(d * np.uint8(15)).resize((28, 28), 3)) for d in x[:600]])
    again = [encoded(x[i], quality=60) for i in range(0, 600, 30)]
    again += [brightened(x[i], 0.85) for i in range(7, 600, 30)]
    found = duplicates(np.concatenate([x, again]), (0, 255)).near
    truth = {(30 * k, 600 + k) for k in range(20)} | {(30 * k + 7, 620 + k) for k in range(20)}
    assert set(found) <= truth
    assert len(found) >= 38


def test_what_has_another_colour_is_another_picture():
    """The same disc in the same place: a grey thumbnail could not tell red from green."""
    y, x = np.mgrid[:32, :32]
    discs = []
    for k, colour in enumerate([(220, 30, 30), (30, 200, 30), (40, 40, 230), (230, 200, 20)] * 10):
        inside = (y - 8 - k // 4) ** 2 + (x - 16) ** 2 < 36
        discs.append(np.where(inside, np.array(colour).reshape(3, 1, 1), 250).astype(np.uint8))
    groups = duplicates(np.stack(discs), (0, 255)).near
    assert all(i % 4 == j % 4 for group in groups for i in group for j in group)


def test_flat_pictures_are_no_duplicates():
    flat = np.stack([np.full((3, 16, 16), v, np.uint8) for v in (0, 80, 160, 255)])
    noise = np.random.default_rng(0).integers(0, 2, flat.shape, dtype=np.uint8)
    x = np.concatenate([textures(30, 16), flat, flat // 2 + 40 + noise])
    assert duplicates(x, (0, 255)).near == ()


def test_a_picture_may_be_there_several_times():
    x = textures(150)
    again = [np.asarray(AGAIN[how](x[3]), np.uint8) for how in list(AGAIN)[:5]]
    found = duplicates(np.concatenate([x, again, x[3:4]]), (0, 255))
    assert found.near == ((3, 150, 151, 152, 153, 154),)
    assert found.exact == ((3, 155),)
    assert found.compared == 155


def test_both_conditions_agree_with_a_table_of_all_distances():
    """An independent implementation in float64, without components: it has all the pairs."""
    rng = np.random.default_rng(3)
    x = textures(90, side=8, channels=1)
    x = np.concatenate([x, np.clip(x[::3] + rng.normal(0, 9, x[::3].shape), 0, 255).astype("u1")])
    u = x.reshape(len(x), -1).astype(np.float64)
    u -= u.mean(axis=1, keepdims=True)
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    far = np.linalg.norm(u[:, None] - u[None], axis=-1) + np.diag(np.full(len(u), np.inf))
    tenth = np.sort(far, axis=1)[:, 9]
    near = (u @ u.T >= 0.95) & (3 * far <= np.minimum(tenth[:, None], tenth))
    pairs = {(i, j) for i, j in np.argwhere(near).tolist() if i < j}
    assert 10 < len(pairs) <= 30  # some are found and some are not
    assert set(duplicates(x, (0, 255)).near) == pairs


def test_thumbnails_do_not_see_brightness_and_contrast():
    x = textures(5).astype(np.float64)
    u, deviation = thumbnails(x)
    again, other = thumbnails(0.6 * x + 31)
    torch.testing.assert_close(u, again, atol=1e-5, rtol=0)
    torch.testing.assert_close(other, 0.6 * deviation, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(u.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(u.mean(dim=1), torch.zeros(5), atol=1e-6, rtol=0)
    assert u.shape == (5, 3 * 16 * 16)


def test_components_bring_nothing_apart():
    x = textures(80)
    u, z = thumbnails(x)[0], module._components(x, np.arange(80))
    assert z.shape == (80, 64)
    assert (torch.cdist(z, z) <= torch.cdist(u, u) + 1e-3).all()
    assert z.square().sum() > 0.95 * (u - u.mean(dim=0)).square().sum()


def test_parts_change_nothing(monkeypatch):
    x = np.concatenate([textures(60), textures(60) // 2 + 50])
    whole, calls = duplicates(x, (0, 255)), []
    monkeypatch.setattr(module, "_TABLE", 7 * 120)
    assert duplicates(x, (0, 255), lambda *at: calls.append(at)) == whole
    assert len(whole.near) == 60
    assert calls[:2] == [(7, 120), (14, 120)]
    assert calls[-1] == (120, 120)


def test_of_very_many_some_are_compared(monkeypatch):
    monkeypatch.setattr(module, "MOST", 50)
    x = textures(70)
    found = duplicates(np.concatenate([x, x[:20]]), (0, 255))
    assert found.compared == 50
    assert len(found.exact) == 20


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_few_pictures(count):
    x = textures(count)
    assert duplicates(x, (0, 255)).near == ()
    again = np.concatenate([x, [encoded(x[0], quality=85)]])
    assert duplicates(again, (0, 255)).near == ((0, count),)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 3, 5), (3, 1, 40), (3, 17, 19)])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_any_shape(shape, kind):
    x = np.random.default_rng(0).integers(0, 256, (40, *shape)).astype(kind) / kind(1)
    found = duplicates(x.astype(kind))
    assert all(len(group) > 1 for group in found.exact + found.near)


# Exact duplicates


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(4,), (1, 6, 6)])
def test_equal_samples(kind, shape):
    x = np.random.default_rng(0).integers(0, 256, (3000, *shape)).astype(kind)
    x[[7, 2999]], x[40] = x[3], x[41]
    assert duplicates(x).exact == ((3, 7, 2999), (40, 41))
    assert duplicates(x[::-1]).exact == ((0, 2992, 2996), (2958, 2959))


def test_leaks_are_counted_once():
    found = Duplicates(
        exact=((0, 1), (2, 3, 4), (5, 6)), near=((2, 7), (8, 9), (5, 10, 11)), compared=12
    )
    held_out = np.zeros(12, bool)
    held_out[[1, 2, 3, 8, 9, 10]] = True
    # 1 equals 0; 2 and 3 equal 4; 8 and 9 are both held out; 10 is near 5
    assert leaked(found, held_out) == ([1, 2, 3], [10])
    # through its equal 4, which is trained on, the copy 3 of 2 makes 7 a leak as well
    held_out[:] = False
    held_out[7] = True
    assert leaked(found, held_out) == ([], [7])
