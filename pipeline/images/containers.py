"""What the bytes of a picture file say before anything is decoded: format, completeness, size, orientation."""

from __future__ import annotations

import functools
import re
import struct
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

READABLE = ("JPEG", "PNG", "APNG", "WebP", "GIF", "BMP", "TIFF", "AVIF", "PNM")

_ORIENTATION = 0x0112  # EXIF 2.3, section 4.6.4
_SHORT = 3
_PNG_START = b"\x89PNG\r\n\x1a\n"

# First bytes, format. Formats that are not READABLE are listed so that the refusal can name them.
_STARTS = (
    (b"\xff\xd8\xff", "JPEG"),
    (_PNG_START, "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"8BPS", "Photoshop"),
    (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
    (b"\x00\x00\x01\x00", "icon"),
    (b"BM", "BMP"),
)
_PNG_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}
# What else is found where a photo should be, by its first bytes.
_NO_PICTURES = (
    (b"%PDF", "a PDF"),
    (b"%!PS", "PostScript"),
    (b"PK\x03\x04", "a ZIP archive or an office document"),
    (b"\x1f\x8b", "gzip data"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ\x00", "xz data"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (b"RIFF", "a sound or a video (RIFF)"),
    (b"OggS", "a sound or a video (Ogg)"),
    (b"ID3", "a sound (MP3)"),
    (b"PAR1", "a Parquet table"),
    (b"SQLite format 3", "an SQLite database"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
)
_TEXTS = (
    (re.compile(rb"<!doctype html|<html|<head|<body", re.IGNORECASE), "an HTML page"),
    (re.compile(rb"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!doctype svg[^>]*>\s*)?<svg", re.IGNORECASE | re.DOTALL), "SVG"),
    (re.compile(rb"<\?xml"), "XML"),
    (re.compile(rb"version https://git-lfs"), "a pointer of Git LFS; fetch the files themselves"),
    (re.compile(rb"[{\[]"), "text, perhaps JSON"),
)
_LOOKED_AT = 4096
# Brands of the ISO base media format, those that are read first: a file may carry several (ISO 23008-12, section 10),
# and the first one is often the general `mif1`.
_BRANDS = (
    ({b"avif", b"avis"}, "AVIF"),
    ({b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs"}, "HEIC"),
    ({b"jp2 ", b"j2ki", b"j2is"}, "JPEG 2000"),
    ({b"mif1", b"mif2", b"msf1", b"miaf"}, "HEIF"),
)
# Portable bitmaps: a magic number, then white space or a remark. 1 to 3 are written as text, 4 to 6 as bytes.
_PNM = re.compile(rb"P([1-6fF7])[\s#]")


def recognise(data: bytes) -> str | None:
    """Return the picture format by content (names never count), or None for anything else."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    if data[4:8] == b"ftyp":
        end = min(int.from_bytes(data[:4], "big"), _LOOKED_AT)
        brands = {bytes(data[8:12]), *(bytes(data[at : at + 4]) for at in range(16, end - 3, 4))}
        return next((kind for known, kind in _BRANDS if known & brands), None)
    for start, kind in _STARTS:
        if data.startswith(start):
            return "APNG" if kind == "PNG" and b"acTL" in data else kind
    map_kind = _PNM.match(data)
    if map_kind:
        return {b"f": "PFM", b"F": "PFM", b"7": "PAM"}.get(map_kind[1], "PNM")
    return None


def described(data: bytes) -> str:
    """Return in words what bytes are that are no picture; never the bytes, which may be anybody's secret."""
    head = bytes(data[:_LOOKED_AT])
    if head[4:8] == b"ftyp":
        return "a video (MP4, QuickTime or the like)"
    for start, kind in _NO_PICTURES:
        if head.startswith(start):
            return kind
    if len(head) > 262 and head[257:262] == b"ustar":
        return "a tar archive"
    if not head.strip(b"\0"):
        return "nothing but zero bytes"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    for pattern, kind in _TEXTS:
        if pattern.match(text):
            return kind
    control = sum(byte < 9 or 13 < byte < 32 for byte in head)
    return "bytes of an unknown kind" if control else "text"


def incomplete(kind: str, data: bytes) -> tuple[str, str] | None:
    """Return (reason, detail) where the container's own lengths or checksums do not fit, else None.

    Pillow passes over a PNG's checksums after the first data chunk and over the length of a WebP.
    """
    if kind == "WebP":
        length = 8 + int.from_bytes(data[4:8], "little")
        if length > len(data):
            return "truncated", f"WebP: the header names {length:,} bytes, the file has {len(data):,}"
    if kind in {"PNG", "APNG"}:
        return _png_problem(data)
    return None


def _png_problem(data: bytes) -> tuple[str, str] | None:
    position = len(_PNG_START)
    view = memoryview(data)
    while position + 12 <= len(data):
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        # Critical chunks have an upper-case name (PNG, section 5.4); of the others, Pillow checks what it uses.
        if name[:1].isupper() and zlib.crc32(view[position + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            known = name.decode() if name in _PNG_CHUNKS else "of an unknown name"
            return "broken", f"PNG: wrong checksum of the chunk {known} at byte {position:,}"
        if name == b"IEND":
            return None
        position = end + 4
    return "truncated", f"PNG: the file ends after {len(data):,} bytes, inside the chunk at byte {position:,}"


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Return width and height of a WebP's canvas (RFC 9649, sections 2.5 to 2.7), None where the start is damaged."""
    name = data[12:16]
    if name == b"VP8X" and len(data) >= 30:
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if name == b"VP8L" and len(data) >= 25:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if name == b"VP8 " and len(data) >= 30:
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return None


def exif_orientation(exif: bytes) -> int:
    """Return the orientation 1 to 8 of an EXIF block; 1 where it is missing or damaged.

    Read here because Pillow's reader warns about every other damaged tag of the block.
    """
    tiff = exif[6:] if exif.startswith(b"Exif\x00\x00") else exif
    order = {b"II": "<", b"MM": ">"}.get(bytes(tiff[:2]))
    if order is None or len(tiff) < 10:
        return 1
    (start,) = struct.unpack_from(f"{order}I", tiff, 4)
    if start + 2 > len(tiff):
        return 1
    (count,) = struct.unpack_from(f"{order}H", tiff, start)
    for entry in range(start + 2, min(start + 2 + 12 * count, len(tiff) - 11), 12):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, entry)
        if tag == _ORIENTATION:
            return value if kind == _SHORT and 1 <= value <= 8 else 1
    return 1


@functools.cache
def pillow_class(kind: str) -> type[ImageFile]:
    """Return Pillow's reader of a READABLE format."""
    from PIL import (
        AvifImagePlugin,
        BmpImagePlugin,
        GifImagePlugin,
        JpegImagePlugin,
        PngImagePlugin,
        PpmImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    class JpegFile(JpegImagePlugin.JpegImageFile):
        """Leaves out the search for a print resolution, which warns about damaged EXIF blocks and takes time."""

        def _read_dpi_from_exif(self) -> None:
            pass

    classes: dict[str, type[ImageFile]] = {
        "JPEG": JpegFile,
        "PNG": PngImagePlugin.PngImageFile,
        "APNG": PngImagePlugin.PngImageFile,
        "WebP": WebPImagePlugin.WebPImageFile,
        "GIF": GifImagePlugin.GifImageFile,
        "BMP": BmpImagePlugin.BmpImageFile,
        "TIFF": TiffImagePlugin.TiffImageFile,
        "AVIF": AvifImagePlugin.AvifImageFile,
        "PNM": PpmImagePlugin.PpmImageFile,
    }
    return classes[kind]
