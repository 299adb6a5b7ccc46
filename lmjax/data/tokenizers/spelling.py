"""Whole words as characters."""

import numpy as np

from lmjax.data.tokenizers.words import SPECIAL

# Characters of bilm-tf besides the UTF-8 bytes; all are increased by 1 here, because 0 means that there is no word.
BOS_CHARACTER, EOS_CHARACTER, BOW_CHARACTER, EOW_CHARACTER, PAD_CHARACTER = range(257, 262)


def spell(word: str, characters: int = 50) -> np.ndarray:
  """Returns the characters of a word, int32 [C]: its bytes between begin and end of word, truncated or padded to C.

  The tokens `<S>` and `</S>` are a single character each, as in bilm-tf.
  """
  special = {SPECIAL[0]: [BOS_CHARACTER], SPECIAL[1]: [EOS_CHARACTER], "\n": [EOS_CHARACTER]}
  content = special.get(word) or [byte + 1 for byte in word.encode("utf-8")[: characters - 2]]
  ids = np.full(characters, PAD_CHARACTER, np.int32)
  ids[: len(content) + 2] = [BOW_CHARACTER, *content, EOW_CHARACTER]
  return ids
