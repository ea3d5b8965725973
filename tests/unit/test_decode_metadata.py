"""Metadata never decide over a whole picture; a picture that is cut is refused whatever was put behind the cut."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin, features

from pipeline.errors import PhotoRefused
from pipeline.images import ImagesConfig, containers, decode
from pipeline.images.stripping import stripped

CONFIG = ImagesConfig(size=32, fit="stretch", max_bytes=2**28)
FULL = ImagesConfig(size=512, fit="stretch")


def textured(width: int = 96, height: int = 64, mode: str = "RGB") -> Image.Image:
    y, x = np.mgrid[:height, :width]
    array = np.stack([x * 255 // width, y * 255 // height, (x * y) % 256], -1).astype(np.uint8)
    return Image.fromarray(array).convert(mode)


def save(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, content: bytes, *, wrong: bool = False) -> bytes:
    checksum = zlib.crc32(name + content) ^ wrong
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def png_with(*chunks: bytes) -> bytes:
    """A PNG with these chunks between its header and its data."""
    data = save(textured(), "PNG")
    at = data.index(b"IDAT") - 4
    return data[:at] + b"".join(chunks) + data[at:]


def segment(marker: int, content: bytes, *, length: int | None = None) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2 if length is None else length) + content


def jpeg_with(*segments: bytes, after: int = 2) -> bytes:
    """A JPEG with these segments behind its start marker."""
    data = save(textured(), "JPEG", quality=95)
    return data[:after] + b"".join(segments) + data[after:]


def webp_with(name: bytes, content: bytes) -> bytes:
    data = save(textured(), "WEBP", lossless=True, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0", xmp=b"<x/>")
    at = data.index(name)
    size = int.from_bytes(data[at + 4 : at + 8], "little")
    body = data[8:at] + name + len(content).to_bytes(4, "little") + content + b"\0" * (len(content) % 2)
    body += data[at + 8 + size + size % 2 :]
    return b"RIFF" + len(body).to_bytes(4, "little") + body


def tiff_with(**tags: tuple[int, int, object]) -> bytes:
    """A TIFF with odd tags: name=(number, type, value)."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for number, kind, value in tags.values():
        directory[number] = value
        directory.tagtype[number] = kind
    return save(textured(), "TIFF", tiffinfo=directory)


NOISE = np.random.default_rng(0).bytes(60_000)
BOMB = zlib.compress(bytes(300_000_000), 9)  # 300 kB that unpack to 300 MB

PNG = {
    "2 MB of text": lambda: png_with(chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 2_000_000))),
    "80 MB of texts": lambda: png_with(*[chunk(b"tEXt", b"Comment\0" + b"x" * 900_000)] * 90),
    "70 MB of packed texts": lambda: png_with(*[chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 900_000))] * 80),
    "a packed text that is a bomb": lambda: png_with(chunk(b"zTXt", b"Comment\0\0" + BOMB)),
    "an international text that is a bomb": lambda: png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BOMB)),
    "a profile that is a bomb": lambda: png_with(chunk(b"iCCP", b"p\0\0" + BOMB)),
    "a profile of noise": lambda: png_with(chunk(b"iCCP", b"p\0\0" + NOISE)),
    "a profile cut off": lambda: png_with(chunk(b"iCCP", b"p")),
    "a text with a wrong checksum": lambda: png_with(chunk(b"tEXt", b"a\0b", wrong=True)),
    "a size with a wrong checksum": lambda: png_with(chunk(b"pHYs", b"\0" * 9, wrong=True)),
    "a packed text of noise": lambda: png_with(chunk(b"zTXt", b"Comment\0\0" + NOISE)),
    "short chunks of every kind": lambda: png_with(
        *[chunk(name, b"\1") for name in (b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tIME", b"bKGD", b"eXIf", b"cICP")]
    ),
    "an animation that is none": lambda: png_with(chunk(b"acTL", b"\0"), chunk(b"fcTL", b"\0\0")),
    "texts behind the data": lambda: (
        lambda data: data[:-12] + chunk(b"tEXt", b"Comment\0" + b"x" * 3_000_000) + data[-12:]
    )(save(textured(), "PNG")),
    "exif of noise": lambda: png_with(chunk(b"eXIf", NOISE)),
}
JPEG = {
    "200 segments of 60 kB": lambda: jpeg_with(*[segment(0xE1, NOISE)] * 100, *[segment(0xFE, NOISE)] * 100),
    "an exif block of noise": lambda: jpeg_with(segment(0xE1, b"Exif\0\0" + NOISE)),
    "an xmp packet cut off": lambda: jpeg_with(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta")),
    "a profile in parts of which one is missing": lambda: jpeg_with(
        segment(0xE2, b"ICC_PROFILE\0\1\3abc"), segment(0xE2, b"ICC_PROFILE\0\3\3abc")
    ),
    "a profile without its numbers": lambda: jpeg_with(segment(0xE2, b"ICC_PROFILE\0")),
    "a profile of noise": lambda: jpeg_with(segment(0xE2, b"ICC_PROFILE\0\1\1" + NOISE)),
    "a JFIF segment cut short": lambda: jpeg_with(segment(0xE0, b"JFIF\0"), after=20),
    "an Adobe segment cut short": lambda: jpeg_with(segment(0xEE, b"Adobe")),
    "Photoshop's segment of noise": lambda: jpeg_with(segment(0xED, b"Photoshop 3.0\0" + NOISE)),
    "an index of several pictures that is none": lambda: jpeg_with(segment(0xE2, b"MPF\0" + NOISE[:100])),
    "filling bytes between segments": lambda: jpeg_with(b"\xff\xff\xff", segment(0xFE, b"remark"), b"\xff"),
}


@pytest.mark.parametrize("name", PNG)
def test_png_metadata_do_not_decide(name: str) -> None:
    assert np.array_equal(decode(PNG[name](), CONFIG), decode(save(textured(), "PNG"), CONFIG))


@pytest.mark.parametrize("name", JPEG)
def test_jpeg_metadata_do_not_decide(name: str) -> None:
    data = JPEG[name]()
    assert np.array_equal(decode(data, CONFIG), decode(save(textured(), "JPEG", quality=95), CONFIG))


@pytest.mark.parametrize(
    "make",
    [
        PNG["2 MB of text"],
        PNG["80 MB of texts"],
        PNG["a text with a wrong checksum"],
        JPEG["an Adobe segment cut short"],
    ],
)
def test_negative_control_pillow_alone_gives_such_pictures_up(make: Callable[[], bytes]) -> None:
    data = make()
    with pytest.raises((ValueError, SyntaxError, struct.error)):
        containers.pillow_class("PNG" if data.startswith(b"\x89PNG") else "JPEG")(io.BytesIO(data)).load()


def test_a_bomb_in_the_metadata_takes_no_memory() -> None:
    data = PNG["a profile that is a bomb"]()
    tracemalloc.start()
    stripped("PNG", data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 12_000_000


@pytest.mark.parametrize(
    ("name", "content"), [(b"EXIF", NOISE), (b"EXIF", b""), (b"EXIF", b"II*\0\xff\xff\xff\xff"), (b"XMP ", NOISE)]
)
def test_webp_metadata_do_not_decide(name: bytes, content: bytes) -> None:
    whole = decode(save(textured(), "WEBP", lossless=True), CONFIG)
    assert np.array_equal(decode(webp_with(name, content), CONFIG), whole)


@pytest.mark.parametrize("length", [10, 3_000_000])
def test_gif_remarks_do_not_decide(length: int) -> None:
    picture = textured(mode="P")
    assert np.array_equal(
        decode(save(picture, "GIF", comment=b"x" * length), CONFIG), decode(save(picture, "GIF"), CONFIG)
    )


TIFF_TAGS = {
    "a remark": (270, 2, "x" * 200_000),
    "an orientation that is text": (274, 2, "upside down"),
    "an orientation of 99": (274, 3, 99),
    "a profile that is text": (34675, 2, "sRGB"),
    "a profile of noise": (34675, 7, NOISE),
    "a private tag": (65001, 12, 1.5),
    "a resolution of 0/0": (282, 5, TiffImagePlugin.IFDRational(0, 0)),
    "an exif directory at nowhere": (34665, 4, 2**31),
    "an xmp packet of noise": (700, 1, NOISE),
}


@pytest.mark.parametrize("name", TIFF_TAGS)
def test_tiff_tags_do_not_decide(name: str) -> None:
    whole = decode(save(textured(), "TIFF"), CONFIG)
    assert np.array_equal(decode(tiff_with(odd=TIFF_TAGS[name]), CONFIG), whole)


# --- AVIF and HEIF by all their brands


def ftyp(major: bytes, *compatible: bytes) -> bytes:
    content = major + bytes(4) + b"".join(compatible)
    return struct.pack(">I", len(content) + 8) + b"ftyp" + content


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (ftyp(b"avif", b"mif1", b"miaf"), "AVIF"),
        (ftyp(b"mif1", b"avif", b"miaf"), "AVIF"),
        (ftyp(b"mif1", b"miaf", b"MA1B", b"avif"), "AVIF"),
        (ftyp(b"msf1", b"avis", b"iso8"), "AVIF"),
        (ftyp(b"mif1", b"heic", b"miaf"), "HEIC"),
        (ftyp(b"heix"), "HEIC"),
        (ftyp(b"msf1", b"hevc"), "HEIC"),
        (ftyp(b"mif1", b"miaf"), "HEIF"),
        (ftyp(b"mp42", b"isom"), None),
        (ftyp(b"isom", b"avc1"), None),
        (b"\0\0\0\x08ftyp", None),
    ],
)  # fmt: skip
def test_brands(start: bytes, kind: str | None) -> None:
    assert containers.recognise(start + bytes(100)) == kind


@pytest.mark.skipif(not features.check("avif"), reason="Pillow was built without AVIF")
def test_avif_of_the_general_brand_and_with_broken_exif() -> None:
    data = save(textured(), "AVIF", quality=95, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0")
    whole = decode(save(textured(), "AVIF", quality=95), CONFIG)
    assert data[8:12] == b"avif"
    assert np.array_equal(decode(data[:8] + b"mif1" + data[12:], CONFIG), whole)
    at = data.rindex(b"II*\0")
    assert np.array_equal(decode(data[:at] + b"\xa7" * 8 + data[at + 8 :], CONFIG), whole)


# --- portable bitmaps


def grey_map(magic: bytes, values: np.ndarray, most: int, remark: bytes = b"") -> bytes:
    height, width = values.shape
    head = magic + b"\n" + remark + b"%d %d\n%d\n" % (width, height, most)
    if magic == b"P2":
        return head + b" ".join(b"%d" % value for value in values.ravel())
    return head + values.astype(">u2" if most > 255 else "u1").tobytes()


LEVELS = np.repeat(np.repeat(np.array([[0, 64], [128, 255]]), 16, 0), 16, 1)


@pytest.mark.parametrize(
    "data",
    [
        save(Image.fromarray(LEVELS.astype(np.uint8)).convert("RGB"), "PPM"),
        save(Image.fromarray(LEVELS.astype(np.uint8)), "PPM"),
        grey_map(b"P5", LEVELS, 255, b"# by hand\n"),
        grey_map(b"P2", LEVELS, 255),
        grey_map(b"P5", LEVELS * 257, 65535),
        grey_map(b"P2", LEVELS * 257, 65535),
        grey_map(b"P5", np.round(LEVELS * 1023 / 255), 1023),
    ],
    ids=["P6", "P5 by Pillow", "P5", "P2", "P5 of 16 bits", "P2 of 16 bits", "P5 of 10 bits"],
)
def test_portable_maps_are_read(data: bytes) -> None:
    pixels = decode(data, CONFIG)
    assert np.abs(pixels[[8, 8, 24, 24], [8, 24, 8, 24]].astype(int) - [[0], [64], [128], [255]]).max() <= 1
    with pytest.raises(PhotoRefused, match="truncated"):
        decode(data[: len(data) * 2 // 3], CONFIG)


def test_a_portable_bitmap_is_black_where_it_says_1() -> None:
    data = save(Image.fromarray(LEVELS > 100), "PPM")
    assert data.startswith(b"P4")
    assert decode(data, CONFIG)[[8, 24], [8, 8], 0].tolist() == [0, 255]


@pytest.mark.parametrize(("start", "kind"), [(b"Pf\n", "PFM"), (b"PF\n", "PFM"), (b"P7\n", "PAM")])
def test_other_maps_are_refused_by_name(start: bytes, kind: str) -> None:
    with pytest.raises(PhotoRefused, match=f"unsupported: {kind}"):
        decode(start + b"9 9\n1.0\n" + bytes(400), CONFIG)


# --- cut JPEGs, closed with an end marker


def closed(data: bytes, share: float) -> bytes:
    cut = data[: int(len(data) * share)]
    return (cut[:-1] if cut.endswith(b"\xff") else cut) + b"\xff\xd9"


CUT: dict[str, Callable[[], bytes]] = {
    "baseline": lambda: save(textured(400, 300), "JPEG"),
    "4:4:4": lambda: save(textured(400, 300), "JPEG", subsampling=0),
    "restart markers": lambda: save(textured(400, 300), "JPEG", restart_marker_rows=1),
    "restart markers, many": lambda: save(textured(400, 300), "JPEG", restart_marker_blocks=3),
    "grey": lambda: save(textured(400, 300, "L"), "JPEG"),
    "inks": lambda: save(textured(400, 300, "CMYK"), "JPEG"),
    "optimised, large": lambda: save(textured(1000, 800), "JPEG", optimize=True),
    "with metadata": lambda: save(textured(400, 300), "JPEG", exif=b"Exif\0\0" + NOISE[:9000], comment=b"\xff\xd9"),
}


@pytest.mark.parametrize("config", [CONFIG, FULL], ids=["reduced", "full"])
@pytest.mark.parametrize("name", CUT)
def test_a_jpeg_that_was_cut_and_closed_is_refused(name: str, config: ImagesConfig) -> None:
    data = CUT[name]()
    first = data.rindex(b"\xff\xda") / len(data)
    decode(data, config)
    for share in np.linspace(first + 0.1, 0.9, 5):
        with pytest.raises(PhotoRefused, match="truncated"):
            decode(closed(data, max(0.2, share)), config)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"subsampling": 0}])
def test_a_whole_jpeg_that_ends_in_that_grey_is_read(mode: str, options: dict[str, object]) -> None:
    """Studio photos lie on such a grey; and a picture may be of nothing else."""
    for above in (textured(400, 300, mode), Image.new(mode, (400, 300), (128,) * len(mode) if mode != "L" else 128)):
        picture = Image.new(mode, (400, 420), (127,) * 4 if mode == "CMYK" else (128,) * 3 if mode == "RGB" else 128)
        picture.paste(above, (0, 0))
        data = save(picture, "JPEG", quality=90, **options)
        decode(data, CONFIG)
        decode(data + NOISE[:100], CONFIG)
        decode(data + data, CONFIG)  # a second picture behind the first one's end marker
