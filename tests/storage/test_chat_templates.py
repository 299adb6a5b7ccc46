"""Chat templates of saved models: a run keeps that of its tokenizer, and so does what is written from it."""

from lmjax import storage
from lmjax.commands.convert import convert
from lmjax.data.chat.format import ChatFormat
from lmjax.data.chat.template import Message
from lmjax.data.objectives.dialogues import Dialogues
from lmjax.data.sources.dialogues import Dialogue
from lmjax.data.tokenizers import registry
from lmjax.storage import huggingface
from lmjax.testing import tiny_decoder
from tests.storage.test_gguf import SHAPES, random_params

MESSAGES = (Message("user", "hello <|im_end|> you"), Message("assistant", "good day"))


def test_a_tokenizer_of_a_run_keeps_its_template_and_its_ends_in_every_format(tmp_path):
  source = [Dialogue(MESSAGES)]
  tokenizer = Dialogues(source, source, 64, registry.TokenizerConfig("bpe", 300)).make_tokenizer()
  tokenizer.save(tmp_path / "run")
  again = registry.load(tmp_path / "run")
  model = tiny_decoder(**(SHAPES["llama"] | dict(vocabulary=tokenizer.size, length=128)))
  huggingface.save(tmp_path / "hf", model, {"model": random_params(model), "heads": {}}, again)
  convert(tmp_path / "hf", tmp_path / "a.gguf")
  ends = [tokenizer.fast.token_to_id(name) for name in ("<|endoftext|>", "<|im_end|>")]
  for loaded in (tokenizer, again, *(storage.open(tmp_path / name).tokenizer for name in ("hf", "a.gguf"))):
    assert list(loaded.ends) == ends and loaded.chat_template == tokenizer.chat_template
    assert ChatFormat(loaded).encode(MESSAGES).ids.tolist() == ChatFormat(tokenizer).encode(MESSAGES).ids.tolist()
