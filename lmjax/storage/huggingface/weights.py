"""Names of parameters here and in Hugging Face's models, as data, used both ways.

A line of a table is (lmjax, hf, layout). Ours is a path, of which the last part may list several, `{query,key}`;
hf has `{}` where the number of a layer goes, and lmjax is then stacked over layers. The layout says how hf is
arranged and how lmjax is, as `(H K) D -> D H K`; where lmjax lists several, the first axis of the right side counts
them. Letters are those of utils.shapes; V is a vocabulary whose table is padded here and not there.
"""

from typing import NamedTuple

import numpy as np


class WeightMap(NamedTuple):
  """One correspondence of parameters."""

  lmjax: str
  hf: str
  layout: str


def _norm(lmjax: str, hf: str, bias: bool = True) -> tuple[WeightMap, ...]:
  lines = (WeightMap(f"{lmjax}/scale", f"{hf}.weight", "D -> D"), WeightMap(f"{lmjax}/bias", f"{hf}.bias", "D -> D"))
  return lines if bias else lines[:1]


def _dense(lmjax: str, hf: str, kernel: str, bias: str = "") -> tuple[WeightMap, ...]:
  line = WeightMap(f"{lmjax}/kernel", f"{hf}.weight", kernel)
  return (line, WeightMap(f"{lmjax}/bias", f"{hf}.bias", bias)) if bias else (line,)


def _attention(lmjax: str, hf: str, names: str, bias: bool = True, group: str = "G") -> tuple[WeightMap, ...]:
  """Torch's linear layers, outputs before inputs; `names` of query, key, value and output."""
  query, key, value, out = names.split()
  parts = ("query", query, "H"), ("key", key, group), ("value", value, group)
  lines = [
    line
    for mine, name, heads in parts
    for line in _dense(
      f"{lmjax}/{mine}", f"{hf}.{name}", f"({heads} K) D -> D {heads} K", f"({heads} K) -> {heads} K" if bias else ""
    )
  ]
  return (*lines, *_dense(f"{lmjax}/out", f"{hf}.{out}", "D (H K) -> H K D", "D -> D" if bias else ""))


def _gpt(tokens: str, positions: str) -> tuple[WeightMap, ...]:
  """GPT's layers keep inputs before outputs, and query, key and value in one."""
  layer, three = "stack/layers", "{query,key,value}"
  return (
    WeightMap("embed/table", f"{tokens}.weight", "V D -> V D"),
    WeightMap("positions/table", f"{positions}.weight", "P D -> P D"),
    WeightMap(f"{layer}/attention/{three}/kernel", "h.{}.attn.c_attn.weight", "D (3 H K) -> 3 D H K"),
    WeightMap(f"{layer}/attention/{three}/bias", "h.{}.attn.c_attn.bias", "(3 H K) -> 3 H K"),
    *_dense(f"{layer}/attention/out", "h.{}.attn.c_proj", "(H K) D -> H K D", "D -> D"),
    *_dense(f"{layer}/mlp/up", "h.{}.mlp.c_fc", "D F -> D F", "F -> F"),
    *_dense(f"{layer}/mlp/down", "h.{}.mlp.c_proj", "F D -> F D", "D -> D"),
    *_norm(f"{layer}/attention_norm", "h.{}.ln_1"),
    *_norm(f"{layer}/mlp_norm", "h.{}.ln_2"),
  )


GPT1 = _gpt("tokens_embed", "positions_embed")
GPT2 = (*_gpt("wte", "wpe"), *_norm("norm", "ln_f"))

LLAMA = (
  WeightMap("embed/table", "embed_tokens.weight", "V D -> V D"),
  *_attention("stack/layers/attention", "layers.{}.self_attn", "q_proj k_proj v_proj o_proj", bias=False),
  *_dense("stack/layers/mlp/gate", "layers.{}.mlp.gate_proj", "F D -> D F"),
  *_dense("stack/layers/mlp/up", "layers.{}.mlp.up_proj", "F D -> D F"),
  *_dense("stack/layers/mlp/down", "layers.{}.mlp.down_proj", "D F -> F D"),
  *_norm("stack/layers/attention_norm", "layers.{}.input_layernorm", bias=False),
  *_norm("stack/layers/mlp_norm", "layers.{}.post_attention_layernorm", bias=False),
  *_norm("norm", "norm", bias=False),
)
UNTIED = (WeightMap("unembed/table", "lm_head.weight", "V D -> V D"),)
QWEN2_BIASES = (
  WeightMap("stack/layers/attention/query/bias", "layers.{}.self_attn.q_proj.bias", "(H K) -> H K"),
  WeightMap("stack/layers/attention/key/bias", "layers.{}.self_attn.k_proj.bias", "(G K) -> G K"),
  WeightMap("stack/layers/attention/value/bias", "layers.{}.self_attn.v_proj.bias", "(G K) -> G K"),
)

BERT = (
  WeightMap("embed/table", "embeddings.word_embeddings.weight", "V D -> V D"),
  WeightMap("positions/table", "embeddings.position_embeddings.weight", "P D -> P D"),
  *_norm("embed_norm", "embeddings.LayerNorm"),
  *_attention("stack/layers/attention", "encoder.layer.{}.attention", "self.query self.key self.value output.dense"),
  *_norm("stack/layers/attention_norm", "encoder.layer.{}.attention.output.LayerNorm"),
  *_dense("stack/layers/mlp/up", "encoder.layer.{}.intermediate.dense", "F D -> D F", "F -> F"),
  *_dense("stack/layers/mlp/down", "encoder.layer.{}.output.dense", "D F -> F D", "D -> D"),
  *_norm("stack/layers/mlp_norm", "encoder.layer.{}.output.LayerNorm"),
)
TYPES = (WeightMap("token_types/table", "embeddings.token_type_embeddings.weight", "T D -> T D"),)
POOLER = _dense("pooler", "pooler.dense", "E D -> D E", "E -> E")
BERT_MASKED = (
  *_dense("masked_lm/dense", "cls.predictions.transform.dense", "E D -> D E", "E -> E"),
  *_norm("masked_lm/norm", "cls.predictions.transform.LayerNorm"),
  WeightMap("masked_lm/bias", "cls.predictions.bias", "V -> V"),
)
BERT_PAIRS = _dense("next_sentence/scores", "cls.seq_relationship", "2 D -> D 2", "2 -> 2")
ROBERTA_MASKED = (
  *_dense("masked_lm/dense", "lm_head.dense", "E D -> D E", "E -> E"),
  *_norm("masked_lm/norm", "lm_head.layer_norm"),
  WeightMap("masked_lm/bias", "lm_head.bias", "V -> V"),
)
DISTILBERT = (
  WeightMap("embed/table", "embeddings.word_embeddings.weight", "V D -> V D"),
  WeightMap("positions/table", "embeddings.position_embeddings.weight", "P D -> P D"),
  *_norm("embed_norm", "embeddings.LayerNorm"),
  *_attention("stack/layers/attention", "transformer.layer.{}.attention", "q_lin k_lin v_lin out_lin"),
  *_norm("stack/layers/attention_norm", "transformer.layer.{}.sa_layer_norm"),
  *_dense("stack/layers/mlp/up", "transformer.layer.{}.ffn.lin1", "F D -> D F", "F -> F"),
  *_dense("stack/layers/mlp/down", "transformer.layer.{}.ffn.lin2", "D F -> F D", "D -> D"),
  *_norm("stack/layers/mlp_norm", "transformer.layer.{}.output_layer_norm"),
)
DISTILBERT_MASKED = (
  *_dense("masked_lm/dense", "vocab_transform", "E D -> D E", "E -> E"),
  *_norm("masked_lm/norm", "vocab_layer_norm"),
  WeightMap("masked_lm/bias", "vocab_projector.bias", "V -> V"),
)


SPAN = _dense("span/scores", "qa_outputs", "2 D -> D 2", "2 -> 2")


def classifier(head: str, scores: str, dense: str = "", bias: bool = True) -> tuple[WeightMap, ...]:
  """Returns the table of a head of classes, which may have a layer before its scores; Y classes."""
  hidden = _dense(f"{head}/dense", dense, "E D -> D E", "E -> E") if dense else ()
  return (*hidden, *_dense(f"{head}/scores", scores, "Y D -> D Y", "Y -> Y" if bias else ""))


def t5(gated: bool) -> tuple[WeightMap, ...]:
  """Returns the table of T5, whose units are gated from version 1.1 on."""
  lines = [WeightMap("embed/table", "shared.weight", "V D -> V D")]
  for side, parts in (
    ("encoder", (("attention", "SelfAttention"), ("mlp", "DenseReluDense"))),
    (
      "decoder",
      (("self_attention", "SelfAttention"), ("cross_attention", "EncDecAttention"), ("mlp", "DenseReluDense")),
    ),
  ):
    for i, (lmjax, hf) in enumerate(parts):
      layer, path = f"{side}/layers/{lmjax}", f"{side}.block.{{}}.layer.{i}.{hf}"
      if hf == "DenseReluDense":
        for mine, name in (("gate", "wi_0"), ("up", "wi_1")) if gated else (("up", "wi"),):
          lines += _dense(f"{layer}/{mine}", f"{path}.{name}", "F D -> D F")
        lines += _dense(f"{layer}/down", f"{path}.wo", "D F -> F D")
      else:
        lines += _attention(layer, path, "q k v o", bias=False, group="H")
      lines += _norm(f"{layer}_norm", f"{side}.block.{{}}.layer.{i}.layer_norm", bias=False)
    bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    lines += [WeightMap(f"{side}_bias/table", bias, "Q H -> Q H")]
    lines += _norm(f"{side}_norm", f"{side}.final_layer_norm", bias=False)
  return tuple(lines)


def arrange(array: np.ndarray, layout: str, sizes: dict[str, int], back: bool = False) -> np.ndarray:
  """Returns hf arranged as lmjax, or `back`; a view where numpy can make one.

  Raises:
    ValueError: the array has not the shape that the layout and the sizes of its axis_sizes say.
  """
  left, right = layout.split(" -> ")
  if back:
    left, right = right, left
  grouped = [part.split() for part in left.replace("(", "|(").replace(")", ")|").split("|")]
  axes: list[list[str]] = []
  for part in grouped:
    if part and part[0].startswith("("):
      axes.append([a.strip("()") for a in part])
    else:
      axes += [[a] for a in part]
  flat = [a for group in axes for a in group]
  known = {a: int(a) if a.isdigit() else sizes[a] for a in flat}
  wanted = tuple(int(np.prod([known[a] for a in group])) for group in axes)
  if array.shape != wanted:
    raise ValueError(f"has shape {list(array.shape)}, not {list(wanted)}")
  order = right.replace("(", "").replace(")", "").split()
  found = array.reshape([known[a] for a in flat]).transpose([flat.index(a) for a in order])
  shape, inside = [], None
  for token in right.split():
    name = token.strip("()")
    if token.startswith("("):
      inside = 1
    if inside is None:
      shape.append(known[name])
    else:
      inside *= known[name]
      if token.endswith(")"):
        shape.append(inside)
        inside = None
  return found.reshape(shape)
