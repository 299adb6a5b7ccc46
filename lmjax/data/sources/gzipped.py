"""Gzipped files, which are read into memory whole; imported for those only."""

import gzip
import zlib

from etils import epath

from lmjax.utils.errors import UserError, reason
from lmjax.utils.files import reading

# Text expands to 3 to 20 times its size, and a file of repeated bytes to 1,000 times. What expands to more than EXPANDS
# times its size and to more than SMALL bytes is refused before it fills the memory.
EXPANDS, SMALL = 50, 2**28


def unzip(path: epath.Path) -> bytes:
  """Returns the content of a gzipped file.

  Raises:
    UserError: the file cannot be read, or expands further than text does.
  """
  with reading(path):
    most = max(EXPANDS * path.stat().length, SMALL)
    try:
      with path.open("rb") as file, gzip.open(file) as stream:
        data = stream.read(most + 1)
    except (EOFError, zlib.error) as error:
      raise UserError(f"{path} cannot be read: {reason(error)}") from error
  if len(data) > most:
    raise UserError(
      f"{path} expands to more than {most:,} bytes, which are more than {EXPANDS} times its size, and is not read into "
      "memory; if that is meant, unzip it and give the unzipped file"
    )
  return data
