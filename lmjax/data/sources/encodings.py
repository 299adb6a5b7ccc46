"""Text in UTF-16 or UTF-32, which becomes UTF-8; imported for files that look like it only."""

import mmap

from etils import epath

from lmjax.utils.errors import UserError

# By the byte order mark at the start; that of UTF-32 starts like that of UTF-16.
MARKS = {b"\xff\xfe\0\0": "utf-32-le", b"\0\0\xfe\xff": "utf-32-be", b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}
MOST_NULS = 0.2  # of the first bytes; in UTF-16, those of Latin text are half


def to_utf8(data: bytes | mmap.mmap, path: epath.Path) -> bytes | mmap.mmap:
  """Returns the text in UTF-8, without a byte order mark; half a surrogate pair and an incomplete end stay invalid.

  Raises:
    UserError: there are many zero bytes and no byte order mark.
  """
  for mark, codec in MARKS.items():
    if data[:4].startswith(mark):
      whole = len(data) // len(mark) * len(mark)
      text = data[len(mark) : whole].decode(codec, "surrogatepass" if len(mark) == 2 else "replace")
      return text.encode("utf-8", "surrogatepass")
  start = data[:1000]
  if start.count(b"\0") > MOST_NULS * len(start):
    raise UserError(
      f"{path} is not text in UTF-8: it has many zero bytes, like UTF-16 without a byte order mark; convert it, "
      "such as by iconv -f UTF-16LE -t UTF-8"
    )
  return data
