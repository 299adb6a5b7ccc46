"""The model families of Hugging Face that lmjax reads and writes: their configs, tensor names and heads."""

from lmjax.storage.huggingface.families.base import Family, note
from lmjax.storage.huggingface.families.bert import BERT, DISTILBERT, ROBERTA
from lmjax.storage.huggingface.families.gpt import GPT1, GPT2
from lmjax.storage.huggingface.families.llama import LLAMA, MISTRAL, QWEN2
from lmjax.storage.huggingface.families.t5 import T5

__all__ = ["FAMILIES", "Family", "note"]

FAMILIES: dict[str, Family] = {
  "openai-gpt": GPT1, "gpt2": GPT2, "llama": LLAMA, "mistral": MISTRAL, "qwen2": QWEN2, "bert": BERT,
  "roberta": ROBERTA, "distilbert": DISTILBERT, "t5": T5,
}  # fmt: skip
