"""The model families of Hugging Face that lmjax reads and writes: their configs, tensor names and heads."""

from lmjax.storage.huggingface.families.bart import BART, MARIAN
from lmjax.storage.huggingface.families.base import Family, note
from lmjax.storage.huggingface.families.bert import BERT, CAMEMBERT, DISTILBERT, ROBERTA, XLM_ROBERTA
from lmjax.storage.huggingface.families.deberta import DEBERTA
from lmjax.storage.huggingface.families.electra import ALBERT, ELECTRA
from lmjax.storage.huggingface.families.experts import MIXTRAL, QWEN3_MOE
from lmjax.storage.huggingface.families.gemma import GEMMA, GEMMA2, GEMMA3
from lmjax.storage.huggingface.families.gpt import GPT1, GPT2, OPT
from lmjax.storage.huggingface.families.gpt_neox import GPT_NEOX, PHI
from lmjax.storage.huggingface.families.llama import GRANITE, LLAMA, MISTRAL, PHI3, QWEN2, QWEN3
from lmjax.storage.huggingface.families.llava import LLAVA
from lmjax.storage.huggingface.families.modernbert import MODERNBERT
from lmjax.storage.huggingface.families.t5 import MT5, T5

__all__ = ["FAMILIES", "Family", "note"]

FAMILIES: dict[str, Family] = {
  "openai-gpt": GPT1, "gpt2": GPT2, "llama": LLAMA, "mistral": MISTRAL, "qwen2": QWEN2, "qwen3": QWEN3,
  "granite": GRANITE, "phi3": PHI3, "gemma": GEMMA, "gemma2": GEMMA2, "gemma3_text": GEMMA3, "opt": OPT,
  "gpt_neox": GPT_NEOX, "phi": PHI, "mixtral": MIXTRAL, "qwen3_moe": QWEN3_MOE, "llava": LLAVA,
  "bert": BERT, "roberta": ROBERTA, "xlm-roberta": XLM_ROBERTA, "camembert": CAMEMBERT, "distilbert": DISTILBERT,
  "electra": ELECTRA, "albert": ALBERT, "deberta-v2": DEBERTA, "modernbert": MODERNBERT,
  "t5": T5, "mt5": MT5, "bart": BART, "marian": MARIAN,
}  # fmt: skip
