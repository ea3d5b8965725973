"""What Arrow says of a damaged Parquet file, as one error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pyarrow as pa

from .errors import CodebooksError


@contextmanager
def damaged_as(refused: Callable[[str], CodebooksError]) -> Iterator[None]:
    """Turn whatever Arrow raises over damaged bytes into `refused(its words)`.

    That is one of Arrow's exceptions, UnicodeDecodeError for a name, or, from Thrift and the codecs of compression, an
    OSError without a number; an OSError with a number is the disk's and stays what it is, as does a lack of memory.
    """
    try:
        yield
    except MemoryError:
        raise
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise refused(str(error)) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise refused(str(error)) from error
