"""Bytes of a photo to uint8 RGB pixels of one size: the evaluation transform, used by encoding, training and queries.

What the transform does, in this order: recognise the format by content, check the size in the header, leave out the
metadata, decode (JPEG at a reduced scale, see `_MARGIN`), convert to 8-bit sRGB by the colour profile, lay transparency
over white, resize with antialiasing, turn by the EXIF orientation, pad. Of animations and multi-page files the first
picture counts. Metadata that are damaged or huge never decide over a picture that is whole.

Pillow is imported inside functions: the reader imports this module and must work without Pillow.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import CodebooksError, PhotoRefused
from ..refusals import DECODE_REASONS
from . import containers
from .colour import to_srgb
from .config import ImagesConfig
from .cut import is_cut, may_be_cut
from .stripping import Stripped, stripped

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

Pixels = npt.NDArray[np.uint8]
Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels of the decoded picture

# Every reason that `decode` gives for refusing a photo.
REASONS = {word: reason.means for word, reason in DECODE_REASONS.items()}

# JPEG is decoded at 1/2, 1/4 or 1/8 scale where that leaves at least this many times the wanted size. Against a full
# decode the pixels have a PSNR of 50 dB at a margin of 2, but 37 dB at 1, as if another resampling filter were used
# (medians of 400 photos of 400x533 to 64 px); the full decode takes 3.4 times as long, the margin of 1 0.75 times.
_MARGIN = 2

# Formats for which Pillow may call `warnings.warn` while reading (TIFF tags, EXIF in AVIF, frames of animations).
_WARNING_FORMATS = frozenset({"TIFF", "GIF", "AVIF", "APNG"})
_warnings_lock = threading.Lock()


def decode(data: bytes, config: ImagesConfig) -> Pixels:
    """Return the pixels of a photo, uint8 RGB [size, size, 3]; safe to call from several threads.

    Raises PhotoRefused("decode", reason, detail), reason from `REASONS`, for bytes that cannot be used.
    """
    return decode_each(data, config)[0]


def decode_each(data: bytes, *configs: ImagesConfig) -> list[Pixels]:
    """Return the pixels of a photo as each of some configs has them, the same as of each alone; raises as `decode`.

    The file is decoded once for all that need it at one scale: of a JPEG mostly once each, of other formats once. The
    limits are those of the first.
    """
    kind = _recognise(data, configs[0])
    loaded: dict[object, tuple[Image, Box, int]] = {}
    found = []
    with _pillow_warnings(kind):
        for config in configs:
            scale = _scale(kind, data, config) if len(configs) > 1 else None
            if scale not in loaded:
                loaded[scale] = _load(kind, data, config)
            found.append(_fit(*loaded[scale], config))
    return found


def _scale(kind: str, data: bytes, config: ImagesConfig) -> object:
    """Return what tells at which scale a file is decoded, by its header alone."""
    if kind != "JPEG":
        return None
    try:
        image = _open(kind, data)
        return _reduce(image, config), image.size
    except Exception:  # noqa: BLE001 - a broken header: `_load` meets it too, and says what it is
        return None


def _recognise(data: bytes, config: ImagesConfig) -> str:
    if not data:
        raise PhotoRefused("decode", "empty", "the file has 0 bytes")
    if len(data) > config.max_bytes:
        raise PhotoRefused(
            "decode", "too_many_bytes", f"{len(data):,} bytes are more than images.max_bytes={config.max_bytes:,}"
        )
    kind = containers.recognise(data)
    if kind is None:
        raise PhotoRefused("decode", "not_an_image", f"{containers.described(data)}, {len(data):,} bytes")
    if kind not in containers.READABLE:
        raise PhotoRefused("decode", "unsupported", f"{kind} is not one of {', '.join(containers.READABLE)}")
    problem = containers.incomplete(kind, data)
    if problem is not None:
        raise PhotoRefused("decode", *problem)
    return kind


def _load(kind: str, data: bytes, config: ImagesConfig) -> tuple[Image, Box, int]:
    """Return an RGB picture, the part of it that the photo fills, and the EXIF orientation still to be applied."""
    from PIL import ImageFile
    from PIL.Image import DecompressionBombError

    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise CodebooksError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is True, so truncated photos would pass as half-grey ones; "
            "set it to False"
        )
    try:
        if kind == "WebP":  # Pillow allocates the canvas as it opens the file
            _check_pixels(containers.webp_size(data), config)
        file = stripped(kind, data)
        image, box = _loaded(kind, file.data, config)
        if kind == "JPEG" and may_be_cut(image):
            _refuse_cut(file.data, image, config)
        profile = file.profile or image.info.get("icc_profile")
        rgb = _to_rgb(image, profile if isinstance(profile, bytes) else None)
        return rgb, box or (0, 0, *image.size), _orientation(kind, image, file)
    except (PhotoRefused, MemoryError):  # memory is this machine's trouble, not the photo's
        raise
    except DecompressionBombError as error:  # of a frame larger than the header said
        raise PhotoRefused("decode", "too_many_pixels", _sentence(error)) from error
    except Exception as error:
        # Pillow raises a dozen types for hostile bytes (SyntaxError, zlib.error, struct.error, ...). Nothing is lost:
        # the text goes to the quarantine, and only Pillow's own code runs inside this block.
        text = _sentence(error)
        reason = "truncated" if re.search(r"truncat|unexpected end|no more data|not enough", text, re.I) else "broken"
        raise PhotoRefused("decode", reason, f"{kind}: {text}") from error


def _refuse_cut(data: bytes, image: Image, config: ImagesConfig) -> None:
    if is_cut(data, image, lambda longer: _loaded("JPEG", longer, config)[0]):
        raise PhotoRefused("decode", "truncated", "JPEG: the data end before the picture's last rows, left grey")


def _loaded(kind: str, data: bytes, config: ImagesConfig) -> tuple[ImageFile, Box | None]:
    """Return the decoded picture and the part of it that the photo fills, None for all of it."""
    image = _open(kind, data)
    _check_pixels(image.size, config)
    box = _reduce(image, config)
    image.load()
    return image, box


def _open(kind: str, data: bytes) -> ImageFile:
    """Return the opened file; only its header is read.

    The format's own class is used, not `Image.open`: that one warns or raises by the process-wide MAX_IMAGE_PIXELS, and
    would try every format that is installed, some of which run external programs.
    """
    return containers.pillow_class(kind)(io.BytesIO(data), "")


def _check_pixels(size: tuple[int, int] | None, config: ImagesConfig) -> None:
    if size is not None and size[0] * size[1] > config.max_pixels:
        raise PhotoRefused(
            "decode",
            "too_many_pixels",
            f"{size[0]} x {size[1]} pixels are more than images.max_pixels={config.max_pixels:,}",
        )


def _reduce(image: ImageFile, config: ImagesConfig) -> Box | None:
    """Ask the JPEG decoder for a smaller picture; return the part of it that the photo fills (other formats: None)."""
    if _exact(config):
        return None
    if config.fit == "pad":
        width, height = _content_size(*image.size, config)
    else:  # both sides of the part that is used must reach the size
        width = height = _shorter_side(config)
    drafted = image.draft(None, (width * _MARGIN, height * _MARGIN))
    return drafted[1] if drafted else None


def _content_size(width: float, height: float, config: ImagesConfig) -> tuple[int, int]:
    """Return the photo's width and height inside the square, in whole pixels."""
    if config.fit != "pad":
        return config.size, config.size
    scale = config.size / max(width, height)
    return max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5))


def _to_rgb(image: Image, profile: bytes | None) -> Image:
    """Return an 8-bit sRGB picture; transparency is laid over white. profile: the ICC profile that came with it."""
    from PIL import Image as Picture

    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint32)
        scaled = ((grey * 255 + 32767) // 65535).astype(np.uint8)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            scaled[grey == transparent] = 255
        return to_srgb(Picture.fromarray(scaled), profile)
    if image.mode == "I" and image.format == "PPM":  # of 16 bits: Pillow has scaled it to 0..65535
        deep = np.asarray(image).clip(0, 65535).astype(np.uint32)
        return to_srgb(Picture.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8)), profile)
    if image.mode in {"I", "F", "LAB", "HSV"}:
        raise PhotoRefused(
            "decode", "unsupported", f"{image.format} of pixel type {image.mode!r}; save it as 8-bit RGB"
        )
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in {"RGBA", "RGBa", "LA", "PA"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Picture.new("RGB", rgba.size, (255, 255, 255))
        colours = rgba.getchannel("R") if image.mode in {"L", "LA"} else rgba.convert("RGB")
        white.paste(to_srgb(colours, profile), mask=rgba.getchannel("A"))
        return white
    return to_srgb(image if image.mode in {"L", "RGB", "CMYK"} else image.convert("RGB"), profile)


def _orientation(kind: str, image: ImageFile, file: Stripped) -> int:
    if kind == "TIFF":  # Pillow has already turned it
        return 1
    exif = file.exif or image.info.get("exif")
    return containers.exif_orientation(exif) if isinstance(exif, bytes) else 1


def _exact(config: ImagesConfig) -> bool:
    """Return whether a library's own transform is meant, to the grey level: then nothing is reduced beforehand."""
    return config.crop_share is not None or config.resample != "bicubic" or not config.antialias


def _shorter_side(config: ImagesConfig) -> int:
    """Return what the shorter side of a photo that is cropped becomes; rounded down, as timm and torchvision do."""
    return config.size if config.crop_share is None else int(config.size / config.crop_share + 1e-9)


def _fit(image: Image, box: Box, orientation: int, config: ImagesConfig) -> Pixels:
    left, upper, right, lower = box
    width, height = right - left, lower - upper
    if config.fit == "crop":
        box = _central(box, config)
    target = _content_size(width, height, config)  # a reduced JPEG's fractional box keeps the photo's proportions
    pixels = _turn(np.asarray(_resized(image, target, box, config)), orientation)
    rows, columns = config.size - pixels.shape[0], config.size - pixels.shape[1]
    if rows or columns:
        margins = ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2), (0, 0))
        pixels = np.pad(pixels, margins, mode="edge")
    return np.ascontiguousarray(pixels)


def _central(box: Box, config: ImagesConfig) -> Box:
    """Return the part of a photo that is kept of a crop."""
    left, upper, right, lower = box
    width, height = right - left, lower - upper
    side = min(width, height)
    if config.crop_share is None:
        left, upper = left + (width - side) / 2, upper + (height - side) / 2
        return left, upper, left + side, upper + side
    # In whole pixels of the resized photo, as torchvision resizes and crops, so that the same pixels come out.
    shorter = _shorter_side(config)
    found = []
    for length in (width, height):
        resized = shorter if length == side else int(shorter * length / side)
        scale = length / resized
        found.append((round((resized - config.size) / 2) * scale, config.size * scale))
    (x, across), (y, down) = found
    return left + x, upper + y, left + x + across, upper + y + down


def _resized(image: Image, target: tuple[int, int], box: Box, config: ImagesConfig) -> Image:
    from PIL.Image import Resampling, Transform

    resample = Resampling[config.resample.upper()]
    if config.antialias or config.resample == "nearest":
        return image.resize(target, resample, box=box, reducing_gap=None if _exact(config) else 2.0)
    # Pillow's `resize` always widens its filter, `transform` never does.
    return image.transform(target, Transform.EXTENT, box, resample=resample)


def _turn(pixels: Pixels, orientation: int) -> Pixels:
    """Return pixels [h, w, 3] as they are to be seen; orientation 1 to 8 of EXIF 2.3, tag 0x0112."""
    if orientation >= 5:  # 5: transposed, 6: turn right, 7: transversed, 8: turn left
        pixels = pixels.swapaxes(0, 1)
    if orientation in {3, 4, 7, 8}:
        pixels = pixels[::-1]
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, ::-1]
    return pixels


@contextmanager
def _quiet() -> Iterator[None]:
    # `catch_warnings` changes the process, hence the lock. Should a foreign thread interleave its own, what could stay
    # behind is this one filter, which silences nothing but Pillow's remarks on metadata; lost pixels are exceptions.
    with _warnings_lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def _pillow_warnings(kind: str) -> Any:
    return _quiet() if kind in _WARNING_FORMATS else nullcontext()


def _sentence(error: Exception) -> str:
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", " ".join(str(error).split()))  # addresses differ from run to run
    text = re.sub(
        r"b?('[^']*'|\"[^\"]*\")", "...", text
    )  # what Pillow quotes are bytes of the file, and this is published
    return (text or type(error).__name__)[:200]
