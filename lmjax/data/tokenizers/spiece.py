"""SentencePiece models as tokenizers of the `tokenizers` library, which can parse special tokens."""

from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from lmjax.utils.errors import UserError

UNIGRAM, BPE_MODEL = 1, 2  # types of SentencePiece models
CONTROL, USER_DEFINED = 3, 4  # types of pieces
# The classes whose pieces are arranged in a way of their own.
MODELS = ("T5Tokenizer", "MT5Tokenizer", "XLMRobertaTokenizer", "CamembertTokenizer", "LlamaTokenizer",
          "CodeLlamaTokenizer", "GemmaTokenizer", "AlbertTokenizer", "DebertaV2Tokenizer")  # fmt: skip


def parse(model: bytes) -> Any:
  """Returns the protocol buffer of a SentencePiece model."""
  from sentencepiece import sentencepiece_model_pb2  # needs protobuf

  return sentencepiece_model_pb2.ModelProto.FromString(model)  # type: ignore[attr-defined]  # made at import


def model_of(proto: Any, pieces: list[tuple[str, float]] | None = None, unknown: int | None = None) -> models.Model:
  """Returns the model of the `tokenizers` library, of other pieces than its own if they are given.

  Raises:
    UserError: the SentencePiece model is neither a unigram nor a BPE model.
  """
  trainer = proto.trainer_spec
  pieces = [(piece.piece, piece.score) for piece in proto.pieces] if pieces is None else pieces
  unknown = trainer.unk_id if unknown is None else unknown
  if trainer.model_type == UNIGRAM:
    return models.Unigram(pieces, unknown, trainer.byte_fallback)
  if trainer.model_type != BPE_MODEL:
    raise UserError("SentencePiece word and character models have no transformers equivalent")
  ids = {piece: i for i, (piece, _) in enumerate(pieces)}
  return models.BPE(
    ids, merges(pieces, ids), unk_token=pieces[unknown][0], fuse_unk=True, byte_fallback=trainer.byte_fallback
  )


def merges(pieces: list[tuple[str, float]], vocabulary: dict[str, int]) -> list[tuple[str, str]]:
  """Returns the merges, which a SentencePiece model does not list: every split of a piece in two, by its score."""
  splits = []
  for piece, score in pieces:
    cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
    cuts = [cut for cut in cuts if cut[0] in vocabulary and cut[1] in vocabulary]
    splits += [(score, cut) for cut in sorted(cuts, key=lambda cut: (vocabulary[cut[0]], vocabulary[cut[1]]))]
  return [cut for _, cut in sorted(splits, key=lambda scored: -scored[0])]


def convert(
  model: bytes,
  kind: str,
  names: dict[str, str],
  extra: int,
  prefix: bool,
  legacy: bool,
  before: Sequence[normalizers.Normalizer] = (),
) -> tokenizers.Tokenizer:
  """Returns the tokenizer of a SentencePiece model as a class of transformers arranges it.

  T5 adds `extra` sentinels, numbered downwards. XLM-R and CamemBERT have fairseq's special tokens first, so that their
  ids are shifted, and <mask> last.

  Args:
    names: of the special tokens, by role.
    prefix: whether a string starts with a space.
    before: what changes a string first.
    legacy: of Llama: whether a string after a special token starts with a space too.
  """
  proto = parse(model)
  if kind in ("T5Tokenizer", "MT5Tokenizer", "DebertaV2Tokenizer"):
    proto.trainer_spec.byte_fallback = False  # transformers takes what mT5's vocabulary lacks for unknown
  pieces, unknown = [(piece.piece, piece.score) for piece in proto.pieces], proto.trainer_spec.unk_id
  first = lambda *roles: [(names.get(role, f"<{role}>"), 0.0) for role in roles]  # noqa: E731
  if kind == "XLMRobertaTokenizer":
    pieces, unknown = first("bos", "pad", "eos", "unk") + pieces[3:] + first("mask"), 3
  elif kind == "CamembertTokenizer":
    pad, unk, mask = first("pad", "unk", "mask")
    reserved = [("<s>NOTUSED", 0.0), pad, ("</s>NOTUSED", 0.0), unk, ("<unk>NOTUSED", -100.0)]
    pieces, unknown = [*reserved, *pieces[1:], mask], 3
  elif extra:
    pieces += [(f"<extra_id_{i}>", 0.0) for i in reversed(range(extra))]
  fast = tokenizers.Tokenizer(model_of(proto, pieces, unknown))
  charsmap, scheme = proto.normalizer_spec.precompiled_charsmap, "always" if prefix else "never"
  if kind == "GemmaTokenizer":
    fast.normalizer = normalizers.Replace(" ", "▁")
    fast.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
  elif kind in ("LlamaTokenizer", "CodeLlamaTokenizer"):
    scheme = "first" if prefix and not legacy else scheme
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(" ", 1, 0)] if prefix else []
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
  elif kind == "DebertaV2Tokenizer":  # transformers does without the model's own table of characters
    spaces = normalizers.Replace(Regex(r"\s{2,}|[\n\r\t]"), " ")
    fast.normalizer = normalizers.Sequence([*before, spaces, normalizers.NFC(), normalizers.Strip(left=False)])
    scheme = "always" if prefix else "first"
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    fast.decoder = decoders.Metaspace(prepend_scheme=scheme)
    fast.add_special_tokens([AddedToken(name, normalized=False) for name in names.values()])
  else:
    steps = [*before, *([normalizers.Precompiled(charsmap)] if charsmap else [])]
    if steps:
      fast.normalizer = normalizers.Sequence(steps)
    spaces = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    fast.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), spaces])
    fast.decoder = decoders.Metaspace(prepend_scheme=scheme)
  for piece in proto.pieces:
    if piece.type in (CONTROL, USER_DEFINED) and fast.token_to_id(piece.piece) is not None:
      fast.add_tokens([AddedToken(piece.piece, normalized=False, special=piece.type == CONTROL)])
  return fast
