"""How llama.cpp splits text before byte-level BPE, by the name in `tokenizer.ggml.pre`."""

from typing import NamedTuple

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
DIGIT, THREE_DIGITS = r"\p{N}", r"[0-9][0-9][0-9]"


def _words(digits: str) -> str:
  """Returns the pattern of GPT-4 and Llama 3, with so many digits together."""
  return rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{SPACES}"


def _cased(digits: str, ending: str) -> str:
  """Returns the pattern of GPT-4o and Tekken, which splits words where a capital begins."""
  upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
  before = r"[^\r\n\p{L}\p{N}]?"
  words = rf"{before}{upper}*{lower}+{ending}|{before}{upper}+{lower}*{ending}"
  return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{SPACES}"


class Split(NamedTuple):
  """A way to split text.

  patterns: regular expressions; each splits what those before it left together, and keeps what it matches.
  whole_words: a piece that is in the vocabulary is one token, whatever the merges say.
  adds_start: a document starts with the start token where the file does not say so.
  """

  patterns: tuple[str, ...]
  whole_words: bool = False
  adds_start: bool = False


LLAMA3, QWEN2 = (_words(r"\p{N}{1,3}"),), (_words(DIGIT),)
# The first name of each group is the one that is written.
_GROUPS: tuple[tuple[str, Split], ...] = (
  ("gpt-2 phi-2 jina-es jina-de gigachat jina-v1-en jina-v2-es jina-v2-de jina-v2-code a.x-4.0 mellum modern-bert "
   "roberta-bpe mpt olmo jais trillion granite-docling exaone4", Split((GPT2,))),
  ("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", Split((DIGIT, GPT2))),
  ("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano", Split(LLAMA3, True, True)),
  ("smaug-bpe dbrx chatglm-bpe", Split(LLAMA3)),
  ("glm4 glm5", Split(LLAMA3, True)),
  ("qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2", Split(QWEN2)),
  ("qwen35", Split((_words(DIGIT).replace(r"\p{L}+", r"[\p{L}\p{M}]+").replace(r"[^\s\p{L}", r"[^\s\p{L}\p{M}"),))),
  ("tekken", Split((_cased(DIGIT, ""),), True, True)),
  ("gpt-4o llama4 kanana2 talkie minimax-m2", Split((_cased(r"\p{N}{1,3}", CONTRACTIONS + "?"),))),
  ("default", Split((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", THREE_DIGITS))),
  ("falcon", Split((r"[\p{P}\$\+<=>\^~\|`]+", GPT2, THREE_DIGITS))),
  ("deepseek-coder", Split((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", DIGIT))),
)  # fmt: skip
SPLITS: dict[str, Split] = {name: split for names, split in _GROUPS for name in names.split()}
