"""Decoding: a table of good and bad files, each made here, with the pixels or the refusal that it must give."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile, features
from pydantic import ValidationError

from pipeline.errors import CodebooksError, PhotoRefused
from pipeline.images import REASONS, ImagesConfig, decode, transform_id

Rgb = tuple[int, int, int]
RED, GREEN, BLUE, WHITE = (200, 30, 40), (30, 160, 60), (40, 60, 190), (240, 240, 240)
GREYS = (10, 90, 170, 250)
STRETCH = ImagesConfig(size=32, fit="stretch")


def quadrants(mode: str = "RGB", colours: tuple = (RED, GREEN, BLUE, WHITE), size: tuple = (96, 64)) -> Image.Image:
    """A picture of four plain quadrants: upper left, upper right, lower left, lower right."""
    picture = Image.new(mode, size)
    width, height = size[0] // 2, size[1] // 2
    for place, colour in zip(((0, 0), (width, 0), (0, height), (width, height)), colours, strict=True):
        picture.paste(colour, (*place, place[0] + width, place[1] + height))
    return picture


def save(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def frames(kind: str, mode: str = "RGB", **options: object) -> bytes:
    """An animation whose first frame has the quadrants; the second is black."""
    return save(quadrants().convert(mode), kind, save_all=True, append_images=[Image.new(mode, (96, 64))], **options)


def oriented(value: int, kind: str = "JPEG", **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return save(quadrants(), kind, exif=exif, **options)


def grey16(kind: str, dtype: str = "<u2") -> bytes:
    array = np.zeros((64, 96), dtype)
    array[:32, :48], array[:32, 48:], array[32:, :48], array[32:, 48:] = 0, 65535, 128 * 257, 10 * 257
    return save(Image.fromarray(array), kind)


def palette(**options: object) -> bytes:
    picture = quadrants("P", (0, 1, 2, 3))
    picture.putpalette([*RED, *GREEN, *BLUE, *WHITE])
    return save(picture, **options)


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def damaged_exif() -> bytes:
    entries = struct.pack("<HHI4s", 0x010F, 2, 500, b"\x40\x00\x00\x00")  # 500 characters that are not there
    entries += struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    return b"Exif\x00\x00II*\x00\x08\x00\x00\x00" + struct.pack("<H", 2) + entries + bytes(4)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_bomb() -> bytes:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_bomb() -> bytes:
    data = bytearray(save(quadrants(), "JPEG"))
    start = data.index(b"\xff\xc0")  # the frame header: marker, length, precision, height, width
    data[start + 5 : start + 9] = struct.pack(">HH", 60_000, 60_000)
    return bytes(data)


def webp_bomb() -> bytes:
    data = bytearray(frames("WEBP"))
    assert data[12:16] == b"VP8X"
    data[24:30] = (59_999).to_bytes(3, "little") * 2
    return bytes(data)


def gif_bomb() -> bytes:
    data = bytearray(palette(kind="GIF"))
    data[6:10] = struct.pack("<HH", 60_000, 60_000)
    return bytes(data)


def bmp_bomb() -> bytes:
    data = bytearray(save(quadrants(), "BMP"))
    data[18:26] = struct.pack("<ii", 60_000, 60_000)
    return bytes(data)


def wrong_checksum() -> bytes:
    """One checksum of the picture's data is wrong; the data are as they were."""
    data = bytearray(save(quadrants(), "PNG"))
    data[data.index(b"IEND") - 5] ^= 0xFF  # last byte of the checksum before the last chunk
    return bytes(data)


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


@dataclass(frozen=True)
class Good:
    """A file that decodes; four colours at the quadrants' centres, or one for all; the largest allowed difference."""

    name: str
    make: Callable[[], bytes]
    colours: tuple[Rgb, Rgb, Rgb, Rgb] | Rgb = (RED, GREEN, BLUE, WHITE)
    off_by: int = 0


def grey(*levels: int) -> tuple:
    return tuple((level,) * 3 for level in levels)


# Where the quadrants (a: upper left, b: upper right, c, d) are to be seen for each value (EXIF 2.3, section 4.6.4 A).
ORIENTED = {
    1: (RED, GREEN, BLUE, WHITE),
    2: (GREEN, RED, WHITE, BLUE),  # mirrored left to right
    3: (WHITE, BLUE, GREEN, RED),  # upside down
    4: (BLUE, WHITE, RED, GREEN),  # mirrored top to bottom
    5: (RED, BLUE, GREEN, WHITE),  # row 0 is the left side, column 0 the top
    6: (BLUE, RED, WHITE, GREEN),  # row 0 is the right side
    7: (WHITE, GREEN, BLUE, RED),  # row 0 is the right side, column 0 the bottom
    8: (GREEN, WHITE, RED, BLUE),  # row 0 is the left side, column 0 the bottom
}
JPEG = 5  # what quantisation may change in a plain area

GOOD = [
    Good("jpeg", lambda: save(quadrants(), "JPEG", quality=90), off_by=JPEG),
    Good("jpeg progressive", lambda: save(quadrants(), "JPEG", progressive=True), off_by=JPEG),
    Good("jpeg 4:4:4 with restart markers", lambda: save(quadrants(), "JPEG", subsampling=0, restart_marker_rows=1),
         off_by=JPEG),
    Good("jpeg large, decoded at 1/8", lambda: save(quadrants(size=(960, 640)), "JPEG"), off_by=JPEG),
    Good("jpeg of odd size, decoded at 1/4", lambda: save(quadrants().resize((331, 277)), "JPEG"), off_by=JPEG),
    Good("jpeg grey", lambda: save(quadrants("L", GREYS), "JPEG"), grey(*GREYS), JPEG),
    Good("jpeg cmyk, inverted as Adobe writes it",
         lambda: save(quadrants("CMYK", ((0, 255, 255, 0), (255, 0, 255, 0), (0, 0, 0, 255), (0, 0, 0, 0))), "JPEG"),
         ((255, 0, 0), (0, 255, 0), (0, 0, 0), (255, 255, 255)), JPEG),
    Good("jpeg with a colour profile",
         lambda: save(quadrants(), "JPEG", icc_profile=srgb_profile()),
         off_by=JPEG),
    Good("jpeg pair of a stereo camera (MPO): the first", lambda: frames("MPO"), off_by=JPEG),
    Good("jpeg with a damaged exif block, its orientation whole",
         lambda: save(quadrants(), "JPEG", exif=damaged_exif()), ORIENTED[6], JPEG),
    Good("jpeg with an exif block of noise", lambda: save(quadrants(), "JPEG", exif=b"Exif\x00\x00" + b"\xa7" * 90),
         off_by=JPEG),
    Good("jpeg with bytes after its end", lambda: save(quadrants(), "JPEG") + b"more" * 50, off_by=JPEG),
    *[Good(f"jpeg orientation {value}", lambda value=value: oriented(value), colours, JPEG)
      for value, colours in ORIENTED.items()],
    Good("jpeg orientation 9, which does not exist", lambda: oriented(9), off_by=JPEG),
    Good("png", lambda: save(quadrants(), "PNG")),
    Good("png orientation 8", lambda: oriented(8, "PNG"), ORIENTED[8]),
    Good("png grey", lambda: save(quadrants("L", GREYS), "PNG"), grey(*GREYS)),
    Good("png 16-bit grey", lambda: grey16("PNG"), grey(0, 255, 128, 10)),
    Good("png 1-bit", lambda: save(quadrants("1", (0, 1, 1, 0)), "PNG"), grey(0, 255, 255, 0)),
    Good("png half transparent over white: 255 - (255 - c) * 128 / 255",
         lambda: save(Image.new("RGBA", (40, 40), (255, 0, 100, 128)), "PNG"), (255, 127, 177)),
    Good("png fully transparent, colour hidden below", lambda: save(Image.new("RGBA", (40, 40), (9, 9, 9, 0)), "PNG"),
         (255, 255, 255)),
    Good("png grey with alpha", lambda: save(Image.new("LA", (40, 40), (0, 51)), "PNG"), grey(204)[0]),
    Good("png palette", lambda: palette(kind="PNG")),
    Good("png palette, one colour transparent", lambda: palette(kind="PNG", transparency=1),
         (RED, (255, 255, 255), BLUE, WHITE)),
    Good("png palette, an alpha for each colour", lambda: palette(kind="PNG", transparency=bytes([255, 255, 0, 255])),
         (RED, GREEN, (255, 255, 255), WHITE)),
    Good("png rgb, one colour transparent", lambda: save(quadrants(), "PNG", transparency=BLUE),
         (RED, GREEN, (255, 255, 255), WHITE)),
    Good("apng: the first frame", lambda: frames("PNG")),
    Good("gif", lambda: palette(kind="GIF")),
    Good("gif, one colour transparent", lambda: palette(kind="GIF", transparency=0),
         ((255, 255, 255), GREEN, BLUE, WHITE)),
    Good("gif animation: the first frame", lambda: frames("GIF"), off_by=1),
    Good("webp lossy", lambda: save(quadrants(), "WEBP", quality=90), off_by=9),
    Good("webp lossless", lambda: save(quadrants(), "WEBP", lossless=True)),
    Good("webp with alpha", lambda: save(Image.new("RGBA", (40, 40), (255, 0, 100, 128)), "WEBP", lossless=True),
         (255, 127, 177)),
    Good("webp animation: the first frame", lambda: frames("WEBP", lossless=True)),
    Good("webp orientation 6", lambda: oriented(6, "WEBP", lossless=True), ORIENTED[6]),
    Good("bmp", lambda: save(quadrants(), "BMP")),
    Good("tiff", lambda: save(quadrants(), "TIFF")),
    Good("tiff lzw", lambda: save(quadrants(), "TIFF", compression="tiff_lzw")),
    Good("tiff of two pages: the first", lambda: frames("TIFF")),
    Good("tiff 16-bit grey, big-endian", lambda: grey16("TIFF", ">u2"), grey(0, 255, 128, 10)),
    Good("tiff orientation 6", lambda: oriented(6, "TIFF"), ORIENTED[6]),
    Good("tiff cmyk", lambda: save(Image.new("CMYK", (40, 40), (0, 255, 0, 0)), "TIFF"), (255, 0, 255)),
    Good("one pixel", lambda: save(Image.new("RGB", (1, 1), RED), "PNG"), RED),
    Good("one pixel wide", lambda: save(Image.new("RGB", (1, 3000), RED), "PNG"), RED),
    Good("one pixel high", lambda: save(Image.new("RGB", (3000, 1), RED), "JPEG"), RED, JPEG),
]  # fmt: skip

if features.check("avif"):
    GOOD += [
        Good("avif", lambda: save(quadrants(), "AVIF", quality=95, subsampling="4:4:4"), off_by=6),
        Good("avif orientation 6", lambda: oriented(6, "AVIF", quality=95, subsampling="4:4:4"), ORIENTED[6], 6),
    ]

SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'

# name, file, reason; every reason of the table is among them
BAD: list[tuple[str, Callable[[], bytes], str]] = [
    ("empty", lambda: b"", "empty"),
    ("one byte", lambda: b"\xff", "not_an_image"),
    ("text", lambda: b"This is no photo, though its name ends in .jpg\n", "not_an_image"),
    ("error page", lambda: b"<!DOCTYPE html><html><body>503 Service Unavailable</body></html>", "not_an_image"),
    ("json", lambda: b'{"message": "Access denied"}', "not_an_image"),
    ("svg", lambda: SVG, "not_an_image"),
    ("zeros", lambda: bytes(5_000), "not_an_image"),
    ("pdf", lambda: b"%PDF-1.7\n" + bytes(200), "not_an_image"),
    ("postscript, which Pillow gives to another program", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n", "not_an_image"),
    ("mp4", lambda: b"\x00\x00\x00\x18ftypmp42" + bytes(200), "not_an_image"),
    ("heic", lambda: b"\x00\x00\x00\x18ftypheic" + bytes(200), "unsupported"),
    ("icon", lambda: save(quadrants(), "ICO"), "unsupported"),
    ("tiff of floating point", lambda: save(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"), "unsupported"),
    ("tiff of 32-bit integers", lambda: save(Image.fromarray(np.ones((9, 9), np.int32)), "TIFF"), "unsupported"),
    *[(f"jpeg cut at {share}", lambda share=share: cut(save(quadrants(), "JPEG"), share), "truncated")
      for share in (0.7, 0.9, 0.99)],
    ("jpeg progressive cut", lambda: cut(save(quadrants(), "JPEG", progressive=True), 0.9), "truncated"),
    ("jpeg without its end marker and last row",
     lambda: save(quadrants(size=(960, 640)), "JPEG")[:-40], "truncated"),
    ("jpeg of noise", lambda: b"\xff\xd8\xff\xe0" + b"\x5a" * 400, "truncated"),
    *[(f"png cut at {share}", lambda share=share: cut(save(quadrants(), "PNG"), share), "truncated")
      for share in (0.1, 0.5, 0.9, 0.99)],
    ("webp cut", lambda: cut(save(quadrants(), "WEBP"), 0.8), "truncated"),
    ("gif cut", lambda: cut(palette(kind="GIF"), 0.9), "truncated"),
    ("bmp cut", lambda: cut(save(quadrants(), "BMP"), 0.9), "truncated"),
    ("tiff cut", lambda: save(quadrants(), "TIFF")[:-400], "truncated"),
    ("png with a wrong checksum", wrong_checksum, "broken"),
    ("jpeg without its tables", lambda: save(quadrants(), "JPEG").replace(b"\xff\xdb", b"\xff\xe9"), "broken"),
    ("png of 60,000 x 60,000 pixels", png_bomb, "too_many_pixels"),
    ("jpeg of 60,000 x 60,000 pixels", jpeg_bomb, "too_many_pixels"),
    ("webp of 60,000 x 60,000 pixels", webp_bomb, "too_many_pixels"),
    ("gif of 60,000 x 60,000 pixels", gif_bomb, "too_many_pixels"),
    ("bmp of 60,000 x 60,000 pixels", bmp_bomb, "too_many_pixels"),
    ("too many bytes", lambda: save(quadrants(), "JPEG") + bytes(2_000_000), "too_many_bytes"),
]  # fmt: skip


def probes(pixels: np.ndarray) -> np.ndarray:
    """The colours in the middle of the four quadrants."""
    near, far = pixels.shape[0] // 4, pixels.shape[0] * 3 // 4
    return pixels[[near, near, far, far], [near, far, near, far]].astype(int)


def expected(colours: tuple) -> np.ndarray:
    return np.array(colours if isinstance(colours[0], tuple) else [colours] * 4)


def test_the_tables_are_long_enough() -> None:
    assert len(GOOD) >= 30
    assert {reason for _, _, reason in BAD} == set(REASONS)


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_good_file(case: Good, fit: str) -> None:
    pixels = decode(case.make(), ImagesConfig(size=32, fit=fit))
    assert pixels.shape == (32, 32, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert np.abs(probes(pixels) - expected(case.colours)).max() <= case.off_by


@pytest.mark.parametrize(("make", "reason"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_file(make: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(PhotoRefused) as caught:
        decode(make(), ImagesConfig(size=32, max_bytes=1_000_000))
    assert (caught.value.stage, caught.value.reason) == ("decode", reason), caught.value.detail
    assert caught.value.detail
    assert " at 0x" not in caught.value.detail


@pytest.mark.parametrize("value", range(2, 9))
def test_negative_control_orientation_matters(value: int) -> None:
    plain = np.asarray(Image.open(io.BytesIO(oriented(value))).convert("RGB").resize((32, 32)))
    assert np.abs(probes(plain) - expected(ORIENTED[value])).max() > 50


def test_negative_control_pillow_alone_takes_the_wrong_checksum_and_warns_of_the_damaged_exif() -> None:
    Image.open(io.BytesIO(wrong_checksum())).load()
    with pytest.warns(UserWarning, match="orrupt EXIF|larger than file"):
        Image.open(io.BytesIO(save(quadrants(), "JPEG", exif=damaged_exif()))).getexif()


def textured(width: int = 90, height: int = 70) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    array = np.stack([x * 255 // width, y * 255 // height, (x * y) % 256], -1).astype(np.uint8)
    array[20:40, 10:30] = np.random.default_rng(0).integers(0, 256, (20, 20, 3))
    return Image.fromarray(array)


WHOLE = {
    "jpeg": lambda: save(textured(), "JPEG"),
    "jpeg progressive": lambda: save(textured(), "JPEG", progressive=True),
    "png": lambda: save(textured(), "PNG"),
    "png alpha": lambda: save(textured().convert("RGBA"), "PNG"),
    "apng": lambda: save(textured(), "PNG", save_all=True, append_images=[Image.new("RGB", (90, 70))]),
    "gif": lambda: save(textured(), "GIF"),
    "gif animation": lambda: save(textured(), "GIF", save_all=True, append_images=[Image.new("RGB", (90, 70))]),
    "webp": lambda: save(textured(), "WEBP"),
    "webp lossless": lambda: save(textured(), "WEBP", lossless=True),
    "bmp": lambda: save(textured(), "BMP"),
    "tiff": lambda: save(textured(), "TIFF"),
    "tiff lzw": lambda: save(textured(), "TIFF", compression="tiff_lzw"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_cut_anywhere_is_refused_or_whole(name: str) -> None:
    data = WHOLE[name]()
    whole = decode(data, STRETCH)
    for length in range(1, len(data), max(1, len(data) // 120)):
        try:
            pixels = decode(data[:length], STRETCH)
        except PhotoRefused:
            continue
        assert np.array_equal(pixels, whole), f"the first {length} of {len(data)} bytes gave other pixels"


@pytest.mark.parametrize("name", WHOLE)
def test_damaged_bytes_are_refused_or_decoded_but_never_crash(name: str) -> None:
    data = WHOLE[name]()
    generator = np.random.default_rng(len(data))
    reasons = []
    for _ in range(120):
        damaged = bytearray(data)
        for place in generator.integers(0, len(data), generator.integers(1, 8)):
            damaged[place] = generator.integers(256)
        try:
            decode(bytes(damaged), STRETCH)
        except PhotoRefused as error:
            reasons.append(error.reason)
    assert set(reasons) <= set(REASONS)
    if name.startswith("png"):  # every byte lies under a checksum
        assert len(reasons) >= 118


def test_a_jpeg_cut_inside_and_closed_with_an_end_marker_is_refused() -> None:
    data = save(textured(400, 300), "JPEG")
    with pytest.raises(PhotoRefused):
        decode(data[: len(data) // 2] + b"\xff\xd9", STRETCH)


def test_pad_centres_the_photo_and_repeats_its_edges() -> None:
    rows = np.repeat(np.linspace(0, 240, 48).astype(np.uint8)[:, None], 80, axis=1)
    data = save(Image.fromarray(rows), "PNG")  # 80 x 48: 32 x 19 inside 32 x 32, 6 rows above, 7 below
    pixels = decode(data, ImagesConfig(size=32, fit="pad"))[:, 0, 0].astype(int)
    assert (pixels[:7] == pixels[6]).all()
    assert (pixels[24:] == pixels[24]).all()
    assert (np.diff(pixels[6:25]) > 0).all()
    assert pixels[6] < 10
    assert pixels[24] > 230


def test_pad_turns_before_it_pads() -> None:
    upright = decode(save(quadrants().transpose(Image.Transpose.ROTATE_270), "PNG"), ImagesConfig(size=33))
    turned = decode(oriented(6, "PNG"), ImagesConfig(size=33))
    assert np.abs(upright.astype(int) - turned).max() <= 1


def test_crop_takes_the_central_square() -> None:
    array = np.zeros((40, 120, 3), np.uint8)
    array[:, 40:80] = WHITE
    assert (decode(save(Image.fromarray(array), "PNG"), ImagesConfig(size=40, fit="crop")) == WHITE).all()


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("size", [(400, 533), (1201, 799)])
def test_reduced_jpeg_decoding_keeps_the_pixels(fit: str, size: tuple[int, int]) -> None:
    smooth = textured(60, 80).resize(size, Image.Resampling.BICUBIC)
    config = ImagesConfig(size=64, fit=fit)
    exact = decode(save(smooth, "PNG"), config).astype(float)
    reduced = decode(save(smooth, "JPEG", quality=95, subsampling=0), config)
    psnr = 10 * np.log10(255**2 / np.mean((exact - reduced) ** 2))
    assert psnr > 38


def test_reduction_is_antialiased() -> None:
    """Stripes of one pixel become their mean; taking every n-th pixel would give black or white."""
    stripes = np.zeros((512, 512), np.uint8)
    stripes[:, ::2] = 255
    pixels = decode(save(Image.fromarray(stripes), "PNG"), STRETCH)
    assert 120 <= pixels.min() <= pixels.max() <= 135


def test_extreme_aspect_ratio_keeps_at_least_one_pixel() -> None:
    pixels = decode(save(Image.fromarray(np.arange(256, dtype=np.uint8)[:, None]), "PNG"), ImagesConfig(size=32))
    assert (pixels == pixels[:, :1]).all()
    assert pixels[0, 0, 0] < 10
    assert pixels[-1, 0, 0] > 245


def test_pillows_process_wide_pixel_limit_plays_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [save(quadrants(), kind) for kind in ("JPEG", "PNG", "BMP")]
    before = [decode(data, STRETCH) for data in files]
    for limit in (4_000, None):  # the lower one would warn, and warnings are errors here
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert all(np.array_equal(decode(data, STRETCH), was) for data, was in zip(files, before, strict=True))


def test_the_pixel_limit_is_inclusive() -> None:
    data = save(quadrants(), "PNG")
    decode(data, ImagesConfig(max_pixels=96 * 64))
    with pytest.raises(PhotoRefused, match="96 x 64 pixels"):
        decode(data, ImagesConfig(max_pixels=96 * 64 - 1))


def test_a_process_that_lets_truncated_photos_pass_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(CodebooksError, match="LOAD_TRUNCATED_IMAGES") as caught:
        decode(save(quadrants(), "JPEG"), STRETCH)
    assert not isinstance(caught.value, PhotoRefused)


def test_threads_get_the_same_pixels_and_leave_the_warning_filters_alone() -> None:
    files = [make() for make in WHOLE.values()] * 6
    alone = [decode(data, STRETCH) for data in files]
    filters = list(warnings.filters)
    start = threading.Barrier(8)
    with ThreadPoolExecutor(8, initializer=start.wait) as pool:
        together = list(pool.map(lambda data: decode(data, STRETCH), files))
    assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))
    assert warnings.filters == filters


def test_nothing_is_written_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    for case in GOOD:
        decode(case.make(), STRETCH)
    assert capfd.readouterr() == ("", "")


def test_decoding_repeats() -> None:
    data = save(textured(400, 300), "JPEG")
    assert np.array_equal(decode(data, ImagesConfig()), decode(data, ImagesConfig()))


def test_the_room_imports_without_pillow_and_torch() -> None:
    code = "import sys; sys.modules.update(PIL=None, torch=None); import pipeline.images; print('fine')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "fine\n"


def test_transform_id() -> None:
    """The literal guards pixel parts that are already on stores: a new default or field must be a decision."""
    assert transform_id(ImagesConfig()) == "ada71561a50e97d6"
    configs = [ImagesConfig(), ImagesConfig(size=32), ImagesConfig(fit="crop"), ImagesConfig(max_pixels=99)]
    assert len({transform_id(config) for config in configs}) == 4


def test_config_refuses_unknown_names_and_senseless_values() -> None:
    for wrong in ({"sise": 64}, {"size": 0}, {"fit": "zoom"}, {"max_pixels": 10**9}):
        with pytest.raises(ValidationError):
            ImagesConfig(**wrong)
