"""A tiny task of every model family, for tests that hold for all of them."""

from lmjax.layers.positions import Rotary
from lmjax.models import bart, deberta, elmo, encoder, encoder_decoder, image_decoder, modernbert, recurrent
from lmjax.models.expert_decoder import Config, ExpertDecoder
from lmjax.tasks.base import Task
from lmjax.tasks.bidirectional_lm import BidirectionalLM
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.expert_lm import ExpertLM
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.testing import tiny_decoder

SHAPE = dict(vocabulary=50, length=16, width=32)
LAYERS = dict(heads=4, head_size=8, mlp=64)
LLAMA = dict(rotary=Rotary(), norm="rms", activation="silu", gated_mlp=True, bias=False, tie_embeddings=False)
ELMO = dict(cells=64, embedding=8, filters=((1, 16), (2, 16)), highways=1, dropout=0.0)
WAVES = dict(positions="sinusoidal", norm="layer", post_norm=True, bias=True, scale_scores=True)

ALBERT = SHAPE | LAYERS | dict(depth=3, embedding=16, shared_layers=True)
LOCAL = SHAPE | LAYERS | dict(depth=3, reach=3, window_layers=(1, 2))
DISTANCES = SHAPE | LAYERS | dict(depth=3, buckets=4, max_distance=10)
BART = SHAPE | LAYERS | dict(depth=2, unembed_bias=True)


def _encoder_decoder(**changes) -> encoder_decoder.EncoderDecoder:
  return encoder_decoder.EncoderDecoder(encoder_decoder.Config(**(SHAPE | LAYERS | dict(depth=2) | changes)))


FAMILIES = {
  "GPT": lambda **changes: CausalLM(tiny_decoder(**changes)),
  "Llama": lambda **changes: CausalLM(tiny_decoder(**(LLAMA | changes))),
  "LSTM": lambda **changes: CausalLM(recurrent.Recurrent(recurrent.Config(**(SHAPE | dict(cells=64) | changes)))),
  "BERT": lambda **changes: MaskedLM(
    encoder.Encoder(encoder.Config(**(SHAPE | LAYERS | dict(depth=3) | changes))), max_predictions=4
  ),
  "ELMo": lambda **changes: BidirectionalLM(elmo.ELMo(elmo.Config(**(SHAPE | ELMO | changes))), characters=8),
  "T5": lambda **changes: Seq2Seq(_encoder_decoder(**changes), target_length=8),
  "ALBERT": lambda **changes: MaskedLM(encoder.Encoder(encoder.Config(**(ALBERT | changes))), max_predictions=4),
  "ModernBERT": lambda **changes: MaskedLM(
    modernbert.ModernBERT(modernbert.Config(**(LOCAL | changes))), max_predictions=4, next_sentence=False
  ),
  "DeBERTa": lambda **changes: MaskedLM(
    deberta.DeBERTa(deberta.Config(**(DISTANCES | changes))), max_predictions=4, next_sentence=False
  ),
  "BART": lambda **changes: Seq2Seq(bart.Bart(bart.Config(**(BART | changes))), target_length=8),
  "Transformer": lambda **changes: Seq2Seq(_encoder_decoder(**(WAVES | changes)), smoothing=0.1),
}
UNSTACKED = ("LSTM", "ELMo", "ModernBERT")  # their layers are not stacked


def tiny_task(family: str, **changes) -> Task:
  """Returns a task of width 32 and 50 words, without dropout; `changes` are of the model's config."""
  return FAMILIES[family](**changes)


def tiny_image_decoder(**changes) -> image_decoder.ImageDecoder:
  """Returns a decoder that reads images of 8 x 8 pixels in 4 patches."""
  shape = SHAPE | LAYERS | dict(depth=2, image=8, patch=4) | changes
  return image_decoder.ImageDecoder(image_decoder.Config(**shape))


def tiny_expert_lm(balance=0.02, router_z=0.001, **changes) -> ExpertLM:
  """Returns the task of a decoder of 2 layers with 4 experts, of which a token has 2."""
  shape = SHAPE | LAYERS | LLAMA | dict(depth=2, kv_heads=2, mlp=32, experts=4) | changes
  return ExpertLM(ExpertDecoder(Config(**shape)), balance=balance, router_z=router_z)
