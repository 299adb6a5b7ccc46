"""Tokenizers as they are published, small: the files of each family, trained on a few sentences."""

import io
import json

import sentencepiece
import tokenizers

TEXTS = (
  "Hello world", "  two  spaces \t tab\nnew\r\nline ", "naïve café É", "日本語のテキスト",
  "🙂 🦙👩‍👩‍👧", "\x00ctrl\x07\x1b",
  "a\u2028b\u00a0c\u200bd", "don't I'll we've 12345 3.14", "ſﬁne №5 Ⅷ", "", " ", "é vs e\u0301", "## a # b",
  "<s> </s> [MASK] <mask> <|endoftext|> <extra_id_0> a<extra_id_1>b",
)  # fmt: skip
CORPUS = [*TEXTS, "The quick brown fox jumps over the lazy dog, and the dog is not amused."] * 4
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FAMILIES = (
  "bert", "distilbert", "gpt2", "qwen2", "roberta", "openai-gpt", "t5", "xlm-roberta", "camembert", "llama", "gemma",
  "mt5", "byt5", "bart", "electra", "albert", "deberta-v2",
)  # fmt: skip
CLASSES = {
  "bert": "BertTokenizer", "distilbert": "DistilBertTokenizer", "gpt2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer",
  "roberta": "RobertaTokenizer", "openai-gpt": "OpenAIGPTTokenizer", "t5": "T5Tokenizer",
  "xlm-roberta": "XLMRobertaTokenizer", "camembert": "CamembertTokenizer", "llama": "LlamaTokenizer",
  "gemma": "GemmaTokenizer", "mt5": "T5Tokenizer", "byt5": "ByT5Tokenizer", "bart": "BartTokenizer",
  "electra": "ElectraTokenizer", "albert": "AlbertTokenizer",
  "deberta-v2": "DebertaV2Tokenizer",
}  # fmt: skip
SPECIAL = {
  "gpt2": ["<|endoftext|>"], "qwen2": ["<|endoftext|>"], "roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
  "bart": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
}  # fmt: skip
FAMILIES += ("opt", "gpt_neox", "phi")
CLASSES |= {"opt": "GPT2Tokenizer", "gpt_neox": "GPTNeoXTokenizer", "phi": "CodeGenTokenizer"}
SPECIAL |= {
  "opt": ["<s>", "<pad>", "</s>", "<unk>"], "gpt_neox": ["<|endoftext|>", "<|padding|>"], "phi": ["<|endoftext|>"],
}  # fmt: skip
SETTINGS = {"opt": dict(bos_token="</s>", eos_token="</s>", unk_token="</s>", pad_token="<pad>")}
UNIGRAM = dict(model_type="unigram", vocab_size=200)
LLAMA = dict(
  model_type="bpe", vocab_size=400, byte_fallback=True, remove_extra_whitespaces=False,
  normalization_rule_name="identity", character_coverage=0.99,
)  # fmt: skip
GEMMA = dict(
  pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
  add_dummy_prefix=False, user_defined_symbols=["<mask>"],
)  # fmt: skip
MODELS = {
  "t5": ("spiece.model", UNIGRAM | dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)),
  "xlm-roberta": ("sentencepiece.bpe.model", UNIGRAM),
  "mt5": ("spiece.model", UNIGRAM | dict(pad_id=0, eos_id=1, unk_id=2, bos_id=-1, byte_fallback=True, vocab_size=400)),
  "albert": (
    "spiece.model",
    UNIGRAM | dict(pad_id=0, unk_id=1, bos_id=-1, eos_id=-1, control_symbols=["[CLS]", "[SEP]", "[MASK]"]),
  ),
  "deberta-v2": (
    "spm.model",
    UNIGRAM
    | dict(
      pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]", unk_piece="[UNK]"
    ),
  ),
  "camembert": ("sentencepiece.bpe.model", UNIGRAM | dict(unk_id=0, bos_id=1, eos_id=2)),
  "llama": ("tokenizer.model", LLAMA),
  "gemma": ("tokenizer.model", LLAMA | GEMMA),
}


def write(folder, family: str, **settings) -> None:
  """Writes the tokenizer of a family without a tokenizer.json; settings: of tokenizer_config.json."""
  for name, content in _files(family).items():
    (folder / name).write_bytes(content)
  (folder / "config.json").write_text(json.dumps({"model_type": family}))
  (folder / "tokenizer_config.json").write_text(
    json.dumps({"tokenizer_class": CLASSES[family]} | SETTINGS.get(family, {}) | settings)
  )


def write_marian(folder, kind: str = "marian", **settings) -> None:
  """Writes the tokenizer of a Marian: two models with pieces of their own, and one vocabulary."""
  models = []
  for name, texts in (
    ("source.spm", CORPUS),
    ("target.spm", CORPUS[::-1][:40] + ["Übergröße"] * 9),
  ):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=(line for text in texts for line in text.splitlines() if line.strip()), model_writer=model,
      hard_vocab_limit=False, minloglevel=2, vocab_size=120, model_type="unigram", character_coverage=0.98,
    )  # fmt: skip
    (folder / name).write_bytes(model.getvalue())
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    models.append([processor.id_to_piece(i) for i in range(3, processor.get_piece_size())])
  pieces = list(dict.fromkeys(["</s>", "<unk>", ">>fra<<", *models[1][::-1], *models[0], "<pad>"]))
  (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
  (folder / "config.json").write_text(json.dumps({"model_type": kind}))
  (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MarianTokenizer"} | settings))


def _files(family: str) -> dict[str, bytes]:
  if family in ("bert", "distilbert", "electra"):
    fast = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    fast.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=False)
    fast.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(vocab_size=300, special_tokens=list(BERT), show_progress=False)
    fast.train_from_iterator([*CORPUS, *map(str.lower, CORPUS)], trainer)
    vocabulary = fast.get_vocab()
    return {"vocab.txt": "\n".join(sorted(vocabulary, key=vocabulary.get)).encode()}
  if family == "byt5":  # has no file of a vocabulary
    return {}
  if family in MODELS:
    name, options = MODELS[family]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=(line for text in CORPUS for line in text.splitlines() if line.strip()), model_writer=model,
      hard_vocab_limit=False, minloglevel=2, **options,
    )  # fmt: skip
    return {name: model.getvalue()}
  gpt1 = family == "openai-gpt"
  fast = tokenizers.Tokenizer(tokenizers.models.BPE(**(dict(unk_token="<unk>") if gpt1 else {})))
  options = dict(special_tokens=["<unk>"], end_of_word_suffix="</w>") if gpt1 else {}
  if gpt1:
    fast.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    fast.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
  else:
    fast.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    options["initial_alphabet"] = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  fast.train_from_iterator(
    CORPUS, tokenizers.trainers.BpeTrainer(vocab_size=400, show_progress=False, **options)
  )  # fmt: skip
  model, special = json.loads(fast.to_str())["model"], SPECIAL.get(family, [])
  tokens = [*special[:4], *model["vocab"], *special[4:]]
  merges = "#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"])
  return {"vocab.json": json.dumps({t: i for i, t in enumerate(tokens)}).encode(), "merges.txt": merges.encode()}
