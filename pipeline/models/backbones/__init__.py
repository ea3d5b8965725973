"""Networks that two models share: pictures to features and features to outputs."""

from __future__ import annotations

from typing import Literal

from .conv import ConvDecoder, ConvEncoder, Norm, begin_near_zero, check_image_size, initialise, map_sizes
from .dense import CellDecoder, CellEncoder, DenseDecoder, DenseEncoder, WholeDecoder, WholeEncoder

__all__ = [
    "ConvDecoder",
    "ConvEncoder",
    "Decoder",
    "Encoder",
    "Network",
    "Norm",
    "begin_near_zero",
    "build_networks",
    "check_image_size",
    "initialise",
    "map_sizes",
]

Network = Literal["conv", "fc", "fc_conv", "fcn"]
Encoder = ConvEncoder | DenseEncoder | WholeEncoder | CellEncoder
Decoder = ConvDecoder | DenseDecoder | WholeDecoder | CellDecoder


def build_networks(
    network: Network,
    image_size: int,
    *,
    channels: tuple[int, ...],
    hidden: tuple[int, int],
    norm: Norm,
    in_channels: int,
    out_channels: int,
    out_size: int,
) -> tuple[Encoder, Decoder]:
    """Return an encoder, whose features have the `shape` it names, and a decoder of features of its `in_shape`.

    channels: widths of the stages of `conv` and `fcn`. hidden: width of the last features of the encoder and of the
    first of the decoder in the other networks and in `fcn`. Raises ConfigError for a size the network cannot take.
    """
    encoder: Encoder
    decoder: Decoder
    if network == "conv":
        encoder = ConvEncoder(image_size, channels, in_channels=in_channels, norm=norm)
        decoder = ConvDecoder(image_size, channels, out_channels=out_channels, out_size=out_size, norm=norm)
    elif network == "fc":
        encoder = DenseEncoder(image_size, hidden[0], in_channels=in_channels)
        decoder = DenseDecoder(hidden[1], out_channels=out_channels, out_size=out_size)
    elif network == "fc_conv":
        encoder = WholeEncoder(image_size, hidden[0], in_channels=in_channels)
        decoder = WholeDecoder(hidden[1], out_channels=out_channels, out_size=out_size)
    else:
        encoder = CellEncoder(image_size, channels, hidden[0], in_channels=in_channels, norm=norm)
        decoder = CellDecoder(image_size, channels, hidden[1], out_channels=out_channels, out_size=out_size, norm=norm)
    return encoder, decoder
