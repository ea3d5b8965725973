"""Colour profiles against the published matrices and curves, in NumPy; and what happens where a profile is no use."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageCms

from pipeline.images import ImagesConfig, decode
from pipeline.images import colour as colour_module

CONFIG = ImagesConfig(size=32, fit="stretch")
Curve = Callable[[np.ndarray], np.ndarray]


def srgb_light(value: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1: the light of sRGB's values, 0..1."""
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def srgb_value(light: np.ndarray) -> np.ndarray:
    light = light.clip(0, 1)
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def power(exponent: float) -> Curve:
    return lambda value: value**exponent


# Chromaticities of red, green, blue and white: sRGB (BT.709), Display P3 (SMPTE EG 432-1 with D65), Adobe RGB (1998),
# ProPhoto (ROMM, ISO 22028-2, D50).
D65, D50 = (0.3127, 0.3290), (0.3457, 0.3585)
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), D65)
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), D65)
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), D65)
PROPHOTO = ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001), D50)
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def xyz(point: tuple[float, float]) -> np.ndarray:
    x, y = point
    return np.array([x / y, 1.0, (1 - x - y) / y])


def to_d50(space: tuple) -> np.ndarray:
    """The matrix from a space's light to XYZ under D50: SMPTE RP 177, then Bradford, as ICC.1 asks of profiles."""
    columns = np.stack([xyz(point) for point in space[:3]], 1)
    matrix = columns * np.linalg.solve(columns, xyz(space[3]))
    cones = (BRADFORD @ xyz(D50)) / (BRADFORD @ xyz(space[3]))
    return np.linalg.inv(BRADFORD) @ np.diag(cones) @ BRADFORD @ matrix


def expected(rgb: np.ndarray, space: tuple, light: Curve) -> np.ndarray:
    """What colours of a space look like in sRGB, uint8 levels as float; outside of it they are clipped."""
    linear = np.linalg.solve(to_d50(SRGB), to_d50(space) @ light(rgb.astype(float).T / 255))
    return 255 * srgb_value(linear).T


def fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def curve_tag(light: Curve) -> bytes:
    table = np.round(light(np.linspace(0, 1, 4096)) * 65535).astype(">u2").tobytes()
    return b"curv" + bytes(4) + struct.pack(">I", 4096) + table


def icc(channels: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile of version 2 for a display, from its tags (ICC.1:2001-04, section 6)."""
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 2) + b"t\0" + bytes(78),
        b"cprt": b"text" + bytes(4) + b"-\0",
        **tags,
    }
    offset, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, content in tags.items():
        table += struct.pack(">4sII", name, offset + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    size = offset + len(body)
    white = b"".join(fixed(value) for value in xyz(D50))
    head = struct.pack(">I4sI4s4s4s", size, b"none", 0x02400000, b"mntr", channels, b"XYZ ") + bytes(12) + b"acsp"
    head += bytes(128 - len(head) - 60) + white + bytes(48)
    return head + struct.pack(">I", len(tags)) + table + body


def rgb_profile(space: tuple, light: Curve) -> bytes:
    matrix = to_d50(space)
    columns = {
        name: b"XYZ " + bytes(4) + b"".join(map(fixed, matrix[:, at]))
        for at, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))
    }
    curve = curve_tag(light)
    white = b"XYZ " + bytes(4) + b"".join(map(fixed, xyz(D50)))
    return icc(b"RGB ", {b"wtpt": white, **columns, b"rTRC": curve, b"gTRC": curve, b"bTRC": curve})


def grey_profile(light: Curve) -> bytes:
    white = b"XYZ " + bytes(4) + b"".join(map(fixed, xyz(D50)))
    return icc(b"GRAY", {b"wtpt": white, b"kTRC": curve_tag(light)})


def save(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def one(colour: tuple[int, ...], mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (40, 40), colour if len(colour) > 1 else colour[0])


SPACES = {
    "Display P3": (P3, srgb_light),
    "Adobe RGB": (ADOBE, power(563 / 256)),
    "ProPhoto": (PROPHOTO, power(1.8)),
    "sRGB primaries, gamma 1": (SRGB, power(1.0)),
}
COLOURS = [(200, 30, 40), (30, 160, 60), (40, 60, 190), (128, 128, 128), (255, 255, 255), (0, 0, 0), (230, 200, 90)]


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_profile_is_converted_to_srgb(name: str, kind: str) -> None:
    space, light = SPACES[name]
    profile = rgb_profile(space, light)
    lossless = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    for colour in COLOURS:
        pixels = decode(save(one(colour), kind, icc_profile=profile, **lossless), CONFIG)
        wanted = expected(np.array([colour]), space, light)
        # A steep curve makes several levels in sRGB of one level of JPEG's rounding.
        beside = np.array(colour).clip(1, 254) + np.array([[1], [-1]])
        slope = np.abs(expected(beside, space, light) - wanted).max()
        assert np.abs(pixels[5, 5] - wanted).max() <= (1.5 if kind != "JPEG" else 1.5 + 2 * slope), (colour, wanted)


@pytest.mark.parametrize("name", SPACES)
def test_negative_control_the_profile_matters(name: str) -> None:
    space, light = SPACES[name]
    colours = np.array(COLOURS)
    assert np.abs(expected(colours, space, light) - colours).max() > 15
    plain = decode(save(one(COLOURS[0]), "PNG"), CONFIG)
    assert plain[5, 5].tolist() == list(COLOURS[0])


def test_the_formula_gives_what_is_published() -> None:
    """Display P3 (1, 0, 0) is sRGB (1.0930, -0.2267, -0.1501) before clipping: W3C CSS Color 4, and Adobe's matrix."""
    linear = np.linalg.solve(to_d50(SRGB), to_d50(P3))
    np.testing.assert_allclose(linear[0], [1.2249, -0.2247, 0.0], atol=2e-3)
    adobe = np.linalg.solve(to_d50(SRGB), to_d50(ADOBE))
    np.testing.assert_allclose(adobe[0], [1.3984, -0.3984, 0.0], atol=2e-3)


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.2])
@pytest.mark.parametrize("mode", ["L", "LA", "16 bits"])
def test_grey_profiles(gamma: float, mode: str) -> None:
    for level in (0, 40, 128, 200, 255):
        if mode == "16 bits":
            picture = Image.fromarray(np.full((40, 40), level * 257, np.uint16))
        else:
            picture = one((level,) if mode == "L" else (level, 255), mode)
        pixels = decode(save(picture, "PNG", icc_profile=grey_profile(power(gamma))), CONFIG)
        wanted = 255 * srgb_value(np.array((level / 255) ** gamma))
        assert np.abs(pixels[5, 5] - wanted).max() <= 1.5
        assert len(set(pixels[5, 5].tolist())) == 1


def test_transparency_is_laid_over_the_white_of_srgb() -> None:
    profile = rgb_profile(ADOBE, power(563 / 256))
    half = decode(save(one((200, 30, 40, 128), "RGBA"), "PNG", icc_profile=profile), CONFIG)[5, 5]
    colour = expected(np.array([[200, 30, 40]]), ADOBE, power(563 / 256))[0]
    assert np.abs(half - (255 - (255 - colour) * 128 / 255)).max() <= 2
    hidden = decode(save(one((200, 30, 40, 0), "RGBA"), "PNG", icc_profile=profile), CONFIG)[5, 5]
    assert hidden.tolist() == [255, 255, 255]


def test_palettes_are_converted_too() -> None:
    picture = one((0,), "P")
    picture.putpalette([200, 30, 40])
    pixels = decode(save(picture, "PNG", icc_profile=rgb_profile(P3, srgb_light)), CONFIG)
    assert np.abs(pixels[5, 5] - expected(np.array([[200, 30, 40]]), P3, srgb_light)).max() <= 1.5


def cmyk_profile() -> bytes:
    """A printer whose inks leave (1 - c)(1 - k) of sRGB's values: 9 points an ink, of 16 bits, to XYZ."""
    grid = np.linspace(0, 1, 9)
    inks = np.stack(np.meshgrid(grid, grid, grid, grid, indexing="ij"), -1).reshape(-1, 4)
    light = srgb_light((1 - inks[:, :3]) * (1 - inks[:, 3:]))
    cells = np.round((to_d50(SRGB) @ light.T).T * 32768).clip(0, 65535).astype(">u2").tobytes()
    straight = np.array([0, 65535], ">u2").tobytes()
    matrix = b"".join(map(fixed, np.eye(3).ravel()))
    table = (
        b"mft2"
        + bytes(4)
        + bytes([4, 3, 9, 0])
        + matrix
        + struct.pack(">HH", 2, 2)
        + straight * 4
        + cells
        + straight * 3
    )
    white = b"XYZ " + bytes(4) + b"".join(map(fixed, xyz(D50)))
    return icc(b"CMYK", {b"wtpt": white, b"A2B0": table, b"A2B1": table}).replace(b"mntr", b"prtr", 1)


@pytest.mark.parametrize("kind", ["TIFF", "JPEG"])
def test_inks_go_by_their_profile(kind: str) -> None:
    """At the profile's own points the answer is known; without the profile inks are subtracted from white."""
    profile = cmyk_profile()
    for inks in ((0, 0, 0, 0), (255, 0, 0, 0), (0, 128, 64, 0), (32, 64, 96, 128)):
        options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
        pixels = decode(save(one(inks, "CMYK"), kind, icc_profile=profile, **options), CONFIG)[5, 5]
        share = np.array(inks) / 255
        assert np.abs(pixels - 255 * (1 - share[:3]) * (1 - share[3])).max() <= 4, inks


def test_inks_of_a_real_press_differ_from_the_subtraction() -> None:
    """A profile with 9 points of a press whose black and inks are not perfect: pixels are littleCMS's own."""
    profile = cmyk_profile()
    changed = profile.replace(profile[-1000:-30], bytes(970))
    picture = one((10, 200, 150, 20), "CMYK")
    by_hand = ImageCms.profileToProfile(
        picture,
        ImageCms.ImageCmsProfile(io.BytesIO(changed)),
        ImageCms.createProfile("sRGB"),
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    assert by_hand is not None
    pixels = decode(save(picture, "TIFF", icc_profile=changed), CONFIG)
    assert np.abs(pixels[5, 5].astype(int) - np.asarray(by_hand)[5, 5]).max() <= 1


def test_profiles_of_srgb_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    plain = decode(save(noise, "PNG"), CONFIG)
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (own, rgb_profile(SRGB, srgb_light)):
        assert np.array_equal(decode(save(noise, "PNG", icc_profile=profile), CONFIG), plain)
        assert colour_module._transform(profile, "RGB") is None


@pytest.mark.parametrize(
    "profile",
    [
        b"", b"x", bytes(5000), rgb_profile(P3, srgb_light)[:300], rgb_profile(P3, srgb_light)[:-3000],
        np.random.default_rng(0).bytes(3000), grey_profile(power(1.8)), cmyk_profile(),
        rgb_profile(P3, srgb_light)[:128] + np.random.default_rng(1).bytes(3000),
    ],
    ids=["empty", "a letter", "zeros", "the head", "cut", "noise", "of grey", "of inks", "a head, then noise"],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_a_profile_that_is_no_use_counts_as_none(profile: bytes, kind: str) -> None:
    picture = one((200, 30, 40))
    assert np.array_equal(decode(save(picture, kind, icc_profile=profile), CONFIG), decode(save(picture, kind), CONFIG))


@pytest.mark.parametrize(
    ("name", "data"), [(b"gAMA", struct.pack(">I", 100_000)), (b"cICP", bytes((9, 16, 0, 1))), (b"sRGB", b"\0")]
)
def test_chunks_of_a_png_that_are_no_profile_change_nothing(name: bytes, data: bytes) -> None:
    ramp = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))).convert("RGB")
    plain = save(ramp, "PNG")
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    head = 8 + 25  # the signature and IHDR
    told = plain[:head] + chunk + plain[head:]
    assert Image.open(io.BytesIO(told)).info != Image.open(io.BytesIO(plain)).info or name == b"cICP"
    assert np.array_equal(decode(told, ImagesConfig(size=64)), decode(plain, ImagesConfig(size=64)))


def test_damaged_profiles_never_decide_over_a_picture() -> None:
    generator = np.random.default_rng(3)
    whole = rgb_profile(ADOBE, power(2.2))
    for _ in range(150):
        damaged = bytearray(whole)
        for place in generator.integers(0, 300, 4):
            damaged[place] = generator.integers(256)
        assert decode(save(one((200, 30, 40)), "PNG", icc_profile=bytes(damaged)), CONFIG).shape == (32, 32, 3)


def test_a_profile_is_converted_before_the_picture_is_turned_and_padded() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("RGB", (80, 40), (200, 30, 40))
    pixels = decode(
        save(picture, "JPEG", quality=100, subsampling=0, exif=exif, icc_profile=rgb_profile(P3, srgb_light)),
        ImagesConfig(size=32),
    )
    assert np.abs(pixels - expected(np.array([[200, 30, 40]]), P3, srgb_light)).max() <= 3
