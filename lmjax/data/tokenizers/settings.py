"""What the JSON files beside a tokenizer say: its class, its special tokens, and tokens that were added to it."""

import dataclasses
import functools
from typing import Any

import tokenizers
from etils import epath
from tokenizers import AddedToken

from lmjax.data.tokenizers.bpe import ENDS, STARTS
from lmjax.data.tokenizers.special import Template, template
from lmjax.utils.errors import UserError
from lmjax.utils.fields import LARGEST, Fields
from lmjax.utils.files import read_json, read_text

ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# The classes of a `model_type`, for folders that name none.
CLASSES = {
  "bert": "BertTokenizer", "distilbert": "BertTokenizer", "electra": "BertTokenizer", "gpt2": "GPT2Tokenizer",
  "openai-gpt": "OpenAIGPTTokenizer", "roberta": "RobertaTokenizer", "llama": "LlamaTokenizer",
  "mistral": "LlamaTokenizer", "qwen2": "Qwen2Tokenizer", "qwen3": "Qwen2Tokenizer", "t5": "T5Tokenizer",
  "mt5": "T5Tokenizer", "byt5": "ByT5Tokenizer", "xlm-roberta": "XLMRobertaTokenizer",
  "camembert": "CamembertTokenizer", "gemma": "GemmaTokenizer", "gemma2": "GemmaTokenizer", "bart": "BartTokenizer",
  "albert": "AlbertTokenizer", "marian": "MarianTokenizer", "deberta-v2": "DebertaV2Tokenizer",
}  # fmt: skip
CLASSES |= {
  "gemma3_text": "GemmaTokenizer", "opt": "GPT2Tokenizer", "granite": "GPT2Tokenizer", "phi": "CodeGenTokenizer",
  "gpt_neox": "GPTNeoXTokenizer", "phi3": "LlamaTokenizer",
}  # fmt: skip
OF_BERT = ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "MobileBertTokenizer")
OF_ROBERTA = ("RobertaTokenizer", "XLMRobertaTokenizer", "CamembertTokenizer", "BartTokenizer", "LongformerTokenizer")
OF_LLAMA = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")
OF_T5 = ("T5Tokenizer", "MT5Tokenizer", "ByT5Tokenizer")
# The names of special tokens of a class, where a folder does not say them.
_BERT = dict(unk="[UNK]", sep="[SEP]", pad="[PAD]", cls="[CLS]", mask="[MASK]")
_ROBERTA = dict(bos="<s>", eos="</s>", sep="</s>", cls="<s>", unk="<unk>", pad="<pad>", mask="<mask>")
_GPT2 = dict(bos="<|endoftext|>", eos="<|endoftext|>", unk="<|endoftext|>")
NAMES = (
  dict.fromkeys(OF_BERT, _BERT)
  | dict.fromkeys(OF_ROBERTA, _ROBERTA)
  | dict.fromkeys(OF_LLAMA, dict(bos="<s>", eos="</s>", unk="<unk>"))
  | dict.fromkeys(OF_T5, dict(eos="</s>", unk="<unk>", pad="<pad>"))
  | {
    "GemmaTokenizer": dict(bos="<bos>", eos="<eos>", unk="<unk>", pad="<pad>", mask="<mask>"),
    "GPT2Tokenizer": _GPT2,
    "AlbertTokenizer": dict(_BERT, bos="[CLS]", eos="[SEP]", unk="<unk>", pad="<pad>"),
    "DebertaV2Tokenizer": dict(bos="[CLS]", eos="[SEP]") | _BERT,
    "CodeGenTokenizer": _GPT2,
    "GPTNeoXTokenizer": _GPT2 | dict(pad="<|padding|>"),
    "Qwen2Tokenizer": dict(eos="<|endoftext|>", pad="<|endoftext|>"),
    "OpenAIGPTTokenizer": dict(unk="<unk>"),
  }
)
# Names of other roles, where no file says them.
OTHERS = {
  "pad": ("[PAD]", "<pad>"), "unk": ("[UNK]", "<unk>"), "mask": ("[MASK]", "<mask>"), "cls": ("[CLS]",),
  "sep": ("[SEP]",),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
  """Ids by what they are for: of the start, of the ends, and of the other roles."""

  start: int | None = None
  ends: tuple[int, ...] = ()
  roles: dict[str, int] = dataclasses.field(default_factory=dict)


class Settings:
  """The files beside a tokenizer; each may be missing.

  Raises:
    UserError: a file is corrupt, or a value is not what it must be.
  """

  def __init__(self, folder: epath.PathLike):
    self.folder = epath.Path(folder)
    self.generation, self.model, self.tokenizer, self.map = (
      self._read(f"{name}.json") for name in ("generation_config", "config", "tokenizer_config", "special_tokens_map")
    )

  def _read(self, name: str) -> Fields:
    file = self.folder / name
    return Fields(read_json(file) if file.exists() else {}, file)

  def __bool__(self) -> bool:
    """Whether the folder says anything about its tokenizer."""
    return any(fields.values for fields in (self.generation, self.model, self.tokenizer, self.map))

  @functools.cached_property
  def kind(self) -> str:
    """The class of transformers that the tokenizer is of, without `Fast`; empty where it is not known."""
    named = self.tokenizer.text("tokenizer_class", "") or self.model.text("tokenizer_class", "")
    return named.removesuffix("Fast") or CLASSES.get(str(self.model.values.get("model_type")), "")

  def name(self, role: str) -> str | None:
    """Returns the text of the special token of a role, as the folder or its class says it."""
    for fields in (self.tokenizer, self.map):
      value = fields.values.get(f"{role}_token")
      value = value.get("content") if isinstance(value, dict) else value
      if value is not None and not isinstance(value, str):
        raise fields.wrong(f"{role}_token", "a string")
      if value:
        return value
      if f"{role}_token" in fields.values:  # null: the folder says that there is none
        return None
    return NAMES.get(self.kind, {}).get(role)

  def special_tokens(self, fast: tokenizers.Tokenizer) -> SpecialTokens:
    """Returns the special tokens: generation_config.json, config.json and tokenizer_config.json in this order."""
    size = self.model.integer("vocab_size", 0) if self.model.values.get("model_type") else 0
    known = size or fast.get_vocab_size()

    def ids(role: str, names: tuple[str, ...]) -> tuple[int, ...]:
      for fields in (self.generation, self.model):
        value = fields.get(f"{role}_token_id", ())
        values = [value] if not isinstance(value, list | tuple) else value
        if not all(isinstance(i, int) and not isinstance(i, bool) and abs(i) <= LARGEST for i in values):
          raise fields.wrong(f"{role}_token_id", "a whole number or a list of them")
        values = [i for i in values if 0 <= i < known]  # transformers' defaults may lie beyond a small vocabulary
        if values:
          return tuple(dict.fromkeys(values))
      name = self.name(role)
      none = f"{role}_token" in self.tokenizer.values  # null says that there is none
      values = [fast.token_to_id(n) for n in ([name] if name else () if none else names)]
      return tuple(i for i in values if i is not None)[:1]

    bert = fast.token_to_id("[CLS]") is not None and isinstance(fast.model, tokenizers.models.WordPiece)
    roles = {}
    for role in ROLES[2:]:
      names = (self.name(role),) if self.name(role) else OTHERS[role]
      number = next((i for i in map(fast.token_to_id, filter(None, names)) if i is not None), None)
      if number is not None:
        roles[role] = number
    ends = ids("eos", ENDS)
    start = ids("bos", STARTS)
    if bert or self.kind in OF_BERT:  # its sequences start and end with [CLS] and [SEP], whatever config.json says
      start, ends = (tuple(roles[r] for r in (role,) if r in roles) or o for role, o in (("cls", start), ("sep", ends)))
    return SpecialTokens((*start, *ends, None)[0], ends, roles)

  def decoder_start(self, size: int) -> int:
    """Returns the id from which an encoder-decoder starts decoding: its own, else the padding's."""
    for key in ("decoder_start_token_id", "pad_token_id"):
      for fields in (self.generation, self.model):
        number: int | None = fields.integer(key, None, most=size - 1)
        if number is not None:
          return number
    return 0

  def forced_start(self, size: int) -> int | None:
    """Returns the id that every target of an encoder-decoder begins with after the start; None where there is none."""
    numbers = [fields.integer("forced_bos_token_id", None, most=size - 1) for fields in (self.generation, self.model)]
    return next((number for number in numbers if number is not None), None)

  def forced_end(self) -> bool:
    """Returns whether a continuation that is cut off has an end as its last token."""
    return any(fields.get("forced_eos_token_id", None) is not None for fields in (self.generation, self.model))

  def excluded(self, size: int, ends: tuple[int, ...]) -> tuple[tuple[int, ...], str]:
    """Returns the ids that are never generated, and what generation cannot obey, empty where it can.

    As in transformers, an end is generated although it is a bad word.
    """
    words = self._ids("bad_words_ids", nested=True)
    ids = {row[0] for row in words if len(row) == 1} - {*ends} | {*self._ids("suppress_tokens")}
    several = "bad_words_ids of several tokens" if any(len(row) > 1 for row in words) else ""
    first = "begin_suppress_tokens" if self._ids("begin_suppress_tokens") else ""
    return tuple(sorted(i for i in ids if 0 <= i < size)), several or first

  def _ids(self, key: str, nested: bool = False) -> list[Any]:
    """Returns a list of ids, or a list of such lists, of generation_config.json or config.json."""
    for fields in (self.generation, self.model):
      value = fields.get(key, None)
      if value is not None:
        rows = value if nested else [value]
        if not isinstance(rows, list) or not all(isinstance(row, list) and {*map(type, row)} <= {int} for row in rows):
          raise fields.wrong(key, "a list of lists of ids" if nested else "a list of ids")
        return list(value)
    return []

  def added(self) -> list[tuple[int | None, AddedToken]]:
    """Returns the tokens that were added to a vocabulary, with their ids where the files say them, in their order."""
    values: dict[str, tuple[int | None, AddedToken]] = {}
    named = {self.name(role) for role in ROLES}
    decoder = self.tokenizer.section("added_tokens_decoder", {}).values
    for number, token in decoder.items():
      if not number.isdecimal() or not isinstance(token, dict) or not isinstance(token.get("content"), str):
        raise UserError(f"{self.tokenizer.where}: added_tokens_decoder.{number} must be an id and a token")
      flags = {key: bool(token.get(key, False)) for key in ("single_word", "lstrip", "rstrip", "special")}
      normalized = bool(token.get("normalized", not flags["special"]))
      values[token["content"]] = int(number), AddedToken(token["content"], normalized=normalized, **flags)
    extra: list[str] = []
    for fields in (self.tokenizer, self.map):
      for key in ("additional_special_tokens", "extra_special_tokens"):
        value = fields.values.get(key) or []
        value = list(value.values()) if isinstance(value, dict) else value
        if not isinstance(value, list):
          raise fields.wrong(key, "a list")
        extra += [token.get("content", "") if isinstance(token, dict) else str(token) for token in value]
    given = self._read("added_tokens.json")
    for token in given.values:
      special = token in named or token in extra
      added = AddedToken(token, normalized=not special, special=special)
      values.setdefault(token, (given.integer(token), added))
    for token in filter(None, extra):
      values.setdefault(token, (None, AddedToken(token, normalized=False, special=True)))
    return sorted(values.values(), key=lambda item: (item[0] is None, item[0] or 0))

  def template(self, first: int | None, ends: tuple[int, ...], fast: tokenizers.Tokenizer) -> Template:
    """Returns what the tokenizer's class puts around a string, where tokenizer.json does not say it."""
    values = {role: fast.token_to_id(name) for role in ROLES if (name := self.name(role))}
    token = {role: number for role, number in values.items() if number is not None}
    start, end = token.get("cls"), token.get("sep")
    if self.kind in (*OF_BERT, "AlbertTokenizer", "DebertaV2Tokenizer") and start is not None and end is not None:
      return template([start], [end], [end], second=1)
    if self.kind in OF_ROBERTA and start is not None and end is not None:
      return template([start], [end, end], [end])
    if self.kind in OF_T5 and "eos" in token:
      return template([], [token["eos"]], [token["eos"]])
    before = token.get("bos", first) if self.tokenizer.boolean("add_bos_token", self.kind in OF_LLAMA) else None
    after = token.get("eos", (*ends, None)[0]) if self.tokenizer.boolean("add_eos_token", False) else None
    starts, stops = ([] if i is None else [i] for i in (before, after))
    return template(starts, [*stops, *starts], stops, second=1)


def chat_template(folder: epath.PathLike) -> str | None:
  """Returns the chat template of a Hugging Face folder: the default one, where there are several."""
  names = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
  file, older, settings = (epath.Path(folder) / name for name in names)
  if file.exists():
    return read_text(file)
  template = next((read_json(f).get("chat_template") for f in (older, settings) if f.exists()), None)
  if isinstance(template, list):
    named = (item for item in template if isinstance(item, dict))
    template = next((item.get("template") for item in named if item.get("name") == "default"), None)
  return template if isinstance(template, str) else None
