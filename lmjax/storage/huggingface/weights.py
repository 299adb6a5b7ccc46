"""How the parameters of lmjax correspond to the tensors of Hugging Face's models, as tables used for both directions.

A layout such as `(H K) D -> D H K` gives the axes of the Hugging Face tensor and of the lmjax parameter; parentheses
merge axes into one. The letters are those of `utils.shapes.LEGEND` and `T` token types, `R` the size of an embedding,
`Q` buckets of relative positions, `Y` classes; a number is a size. Axes of the vocabulary `V` are padded in memory and
not in the file.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lmjax.models.bart import Config as BartConfig


class WeightMap(NamedTuple):
  """A parameter of lmjax and the Hugging Face tensor that it is stored in.

  lmjax: the path of the parameter below `model` or `heads`; `{query,key}` in it lists several parameters, which the
    tensor holds together and the first axis of the layout's right side counts.
  hf: the name of the tensor. With `{}` for the number of a layer, the parameter is the stack of all layers; with a
    second `{}` for the number of an expert, a layer of it is the stack of all experts, and the layout that of one.
  layout: the axes of the tensor and of the parameter, `tensor -> parameter`. With ` | ` between several, the tensor
    holds one parameter after the other along its first axis, each with its own layout.
  """

  lmjax: str
  hf: str
  layout: str

  @property
  def paths(self) -> list[str]:
    """The paths of the parameters, `{query,key}` written out."""
    several = re.search(r"\{([^}]*)\}", self.lmjax)
    return [self.lmjax.replace(several[0], name) for name in several[1].split(",")] if several else [self.lmjax]

  @property
  def of_vocabulary(self) -> bool:
    """Whether the first axis of the parameter is padded."""
    return self.layout.partition(" -> ")[2].startswith("V")

  @property
  def stacked(self) -> bool:
    """Whether there is one tensor per layer."""
    return "{}" in self.hf

  @property
  def of_experts(self) -> bool:
    """Whether there is one tensor per layer and expert."""
    return self.hf.count("{}") == 2


NORM = (("scale", "weight"), ("bias", "bias"))


def _norm(lmjax: str, hf: str, bias: bool = True, axis: str = "D") -> tuple[WeightMap, ...]:
  scale, shift = (WeightMap(f"{lmjax}/{name}", f"{hf}.{tensor}", f"{axis} -> {axis}") for name, tensor in NORM)
  return (scale, shift) if bias else (scale,)


def _dense(lmjax: str, hf: str, kernel: str, bias: str = "") -> tuple[WeightMap, ...]:
  weight = WeightMap(f"{lmjax}/kernel", f"{hf}.weight", kernel)
  return (weight, WeightMap(f"{lmjax}/bias", f"{hf}.bias", bias)) if bias else (weight,)


def _attention(lmjax: str, hf: str, names: str, bias: bool = True, kv_heads: str = "G") -> tuple[WeightMap, ...]:
  """Returns the table of an attention layer; `names` are those of its query, key, value and output projections."""
  query, key, value, out = names.split()
  weights = []
  for projection, name, heads in (("query", query, "H"), ("key", key, kv_heads), ("value", value, kv_heads)):
    kernel, shift = f"({heads} K) D -> D {heads} K", f"({heads} K) -> {heads} K" if bias else ""
    weights += _dense(f"{lmjax}/{projection}", f"{hf}.{name}", kernel, shift)
  return (*weights, *_dense(f"{lmjax}/out", f"{hf}.{out}", "D (H K) -> H K D", "D -> D" if bias else ""))


def _gated(gate: str, up: str, down: str) -> tuple[WeightMap, ...]:
  return (
    *_dense("stack/layers/mlp/gate", gate, "F D -> D F"),
    *_dense("stack/layers/mlp/up", up, "F D -> D F"),
    *_dense("stack/layers/mlp/down", down, "D F -> F D"),
  )


def _gpt(tokens: str, positions: str) -> tuple[WeightMap, ...]:
  """Returns the table of a GPT, whose kernels are inputs x outputs and whose query, key and value are one tensor."""
  layer, qkv = "stack/layers", "{query,key,value}"
  return (
    WeightMap("embed/table", f"{tokens}.weight", "V D -> V D"),
    WeightMap("positions/table", f"{positions}.weight", "P D -> P D"),
    WeightMap(f"{layer}/attention/{qkv}/kernel", "h.{}.attn.c_attn.weight", "D (3 H K) -> 3 D H K"),
    WeightMap(f"{layer}/attention/{qkv}/bias", "h.{}.attn.c_attn.bias", "(3 H K) -> 3 H K"),
    *_dense(f"{layer}/attention/out", "h.{}.attn.c_proj", "(H K) D -> H K D", "D -> D"),
    *_dense(f"{layer}/mlp/up", "h.{}.mlp.c_fc", "D F -> D F", "F -> F"),
    *_dense(f"{layer}/mlp/down", "h.{}.mlp.c_proj", "F D -> F D", "D -> D"),
    *_norm(f"{layer}/attention_norm", "h.{}.ln_1"),
    *_norm(f"{layer}/mlp_norm", "h.{}.ln_2"),
  )


GPT1 = _gpt("tokens_embed", "positions_embed")
GPT2 = (*_gpt("wte", "wpe"), *_norm("norm", "ln_f"))

_LLAMA_NORMS = (
  *_norm("stack/layers/attention_norm", "layers.{}.input_layernorm", bias=False),
  *_norm("stack/layers/mlp_norm", "layers.{}.post_attention_layernorm", bias=False),
)
_LLAMA_REST = (
  WeightMap("embed/table", "embed_tokens.weight", "V D -> V D"),
  *_attention("stack/layers/attention", "layers.{}.self_attn", "q_proj k_proj v_proj o_proj", bias=False),
  *_gated(*(f"layers.{{}}.mlp.{name}_proj" for name in ("gate", "up", "down"))),
  *_norm("norm", "norm", bias=False),
)
LLAMA = (*_LLAMA_REST, *_LLAMA_NORMS)
GEMMA2 = (
  *_LLAMA_REST,
  *_norm("stack/layers/attention_norm", "layers.{}.input_layernorm", bias=False),
  *_norm("stack/layers/attention_output_norm", "layers.{}.post_attention_layernorm", bias=False),
  *_norm("stack/layers/mlp_norm", "layers.{}.pre_feedforward_layernorm", bias=False),
  *_norm("stack/layers/mlp_output_norm", "layers.{}.post_feedforward_layernorm", bias=False),
)


def experts(module: str, gate: str, up: str, down: str) -> tuple[WeightMap, ...]:
  """Returns Llama's table with experts for an MLP; module: the name of what has the router and the experts."""
  dense = tuple(weight for weight in LLAMA if "/mlp/" not in weight.lmjax)
  names = (f"layers.{{}}.{module}.experts.{{}}.{name}" for name in (gate, up, down))
  return (*dense, *_dense("stack/layers/mlp/router", f"layers.{{}}.{module}.gate", "X D -> D X"), *_gated(*names))


MIXTRAL = experts("block_sparse_moe", "w1", "w3", "w2")
QWEN_EXPERTS = experts("mlp", "gate_proj", "up_proj", "down_proj")
QK_NORMS = tuple(
  WeightMap(f"stack/layers/attention/{part}_norm/scale", f"layers.{{}}.self_attn.{part[0]}_norm.weight", "K -> K")
  for part in ("query", "key")
)
PHI3 = (
  WeightMap("embed/table", "embed_tokens.weight", "V D -> V D"),
  WeightMap(
    "stack/layers/attention/{query,key,value}/kernel", "layers.{}.self_attn.qkv_proj.weight",
    "(H K) D -> D H K | (G K) D -> D G K | (G K) D -> D G K",
  ),
  *_dense("stack/layers/attention/out", "layers.{}.self_attn.o_proj", "D (H K) -> H K D"),
  WeightMap(
    "stack/layers/mlp/{gate,up}/kernel", "layers.{}.mlp.gate_up_proj.weight", "F D -> D F | F D -> D F"
  ),
  *_dense("stack/layers/mlp/down", "layers.{}.mlp.down_proj", "D F -> F D"),
  *_norm("norm", "norm", bias=False),
  *_LLAMA_NORMS,
)  # fmt: skip
PHI = (
  WeightMap("embed/table", "embed_tokens.weight", "V D -> V D"),
  *_attention("stack/layers/attention", "layers.{}.self_attn", "q_proj k_proj v_proj dense"),
  *_dense("stack/layers/mlp/up", "layers.{}.mlp.fc1", "F D -> D F", "F -> F"),
  *_dense("stack/layers/mlp/down", "layers.{}.mlp.fc2", "D F -> F D", "D -> D"),
  *_norm("stack/layers/attention_norm", "layers.{}.input_layernorm"),
  *_norm("norm", "final_layernorm"),
)
OPT = (
  WeightMap("embed/table", "embed_tokens.weight", "V D -> V D"),
  WeightMap("positions/table", "embed_positions.weight", "P D -> P D"),
  *_attention("stack/layers/attention", "layers.{}.self_attn", "q_proj k_proj v_proj out_proj"),
  *_dense("stack/layers/mlp/up", "layers.{}.fc1", "F D -> D F", "F -> F"),
  *_dense("stack/layers/mlp/down", "layers.{}.fc2", "D F -> F D", "D -> D"),
  *_norm("stack/layers/attention_norm", "layers.{}.self_attn_layer_norm"),
  *_norm("stack/layers/mlp_norm", "layers.{}.final_layer_norm"),
)
OPT_NORM = _norm("norm", "final_layer_norm")


def gpt_neox(bias: bool) -> tuple[WeightMap, ...]:
  """Returns the table of a GPT-NeoX, with or without biases in attention."""
  qkv, tensor = "stack/layers/attention/{query,key,value}", "layers.{}.attention.query_key_value"
  return (
    WeightMap("embed/table", "embed_in.weight", "V D -> V D"),
    WeightMap(f"{qkv}/kernel", f"{tensor}.weight", "(H 3 K) D -> 3 D H K"),
    *((WeightMap(f"{qkv}/bias", f"{tensor}.bias", "(H 3 K) -> 3 H K"),) if bias else ()),
    *_dense("stack/layers/attention/out", "layers.{}.attention.dense", "D (H K) -> H K D", "D -> D" if bias else ""),
    *_dense("stack/layers/mlp/up", "layers.{}.mlp.dense_h_to_4h", "F D -> D F", "F -> F"),
    *_dense("stack/layers/mlp/down", "layers.{}.mlp.dense_4h_to_h", "D F -> F D", "D -> D"),
    *_norm("stack/layers/attention_norm", "layers.{}.input_layernorm"),
    *_norm("stack/layers/mlp_norm", "layers.{}.post_attention_layernorm"),
    *_norm("norm", "final_layer_norm"),
  )


QKV_BIASES = (
  WeightMap("stack/layers/attention/query/bias", "layers.{}.self_attn.q_proj.bias", "(H K) -> H K"),
  WeightMap("stack/layers/attention/key/bias", "layers.{}.self_attn.k_proj.bias", "(G K) -> G K"),
  WeightMap("stack/layers/attention/value/bias", "layers.{}.self_attn.v_proj.bias", "(G K) -> G K"),
)
OUT_BIAS = WeightMap("stack/layers/attention/out/bias", "layers.{}.self_attn.o_proj.bias", "D -> D")
MLP_BIASES = (
  WeightMap("stack/layers/mlp/gate/bias", "layers.{}.mlp.gate_proj.bias", "F -> F"),
  WeightMap("stack/layers/mlp/up/bias", "layers.{}.mlp.up_proj.bias", "F -> F"),
  WeightMap("stack/layers/mlp/down/bias", "layers.{}.mlp.down_proj.bias", "D -> D"),
)

_BERT_EMBEDDINGS = (
  WeightMap("embed/table", "embeddings.word_embeddings.weight", "V R -> V R"),
  WeightMap("positions/table", "embeddings.position_embeddings.weight", "P R -> P R"),
  *_norm("embed_norm", "embeddings.LayerNorm", axis="R"),
)


def _bert(names: str) -> tuple[WeightMap, ...]:
  return (
    *_BERT_EMBEDDINGS,
    *_attention("stack/layers/attention", "encoder.layer.{}.attention", names),
    *_norm("stack/layers/attention_norm", "encoder.layer.{}.attention.output.LayerNorm"),
    *_dense("stack/layers/mlp/up", "encoder.layer.{}.intermediate.dense", "F D -> D F", "F -> F"),
    *_dense("stack/layers/mlp/down", "encoder.layer.{}.output.dense", "D F -> F D", "D -> D"),
    *_norm("stack/layers/mlp_norm", "encoder.layer.{}.output.LayerNorm"),
  )


BERT = _bert("self.query self.key self.value output.dense")
DEBERTA = _bert("self.query_proj self.key_proj self.value_proj output.dense")
DISTANCE_NORM = _norm("distance_norm", "encoder.LayerNorm")
DISTANCE_KEY, DISTANCE_QUERY = (
  _dense(
    f"stack/layers/attention/distance_{part}", f"encoder.layer.{{}}.attention.self.pos_{part}_proj",
    "(H K) D -> D H K", "(H K) -> H K",
  )
  for part in ("key", "query")
)  # fmt: skip
TYPES = (WeightMap("token_types/table", "embeddings.token_type_embeddings.weight", "T R -> T R"),)


def pooler(name: str) -> tuple[WeightMap, ...]:
  """Returns the table of a pooler."""
  return _dense("pooler", name, "E D -> D E", "E -> E")


def masked(dense: str, norm: str, bias: str) -> tuple[WeightMap, ...]:
  """Returns the table of a head for masked tokens."""
  hidden = _dense("masked_lm/dense", dense, "R D -> D R", "R -> R")
  return (*hidden, *_norm("masked_lm/norm", norm, axis="R"), WeightMap("masked_lm/bias", bias, "V -> V"))


def pairs(name: str) -> tuple[WeightMap, ...]:
  """Returns the table of what scores pairs of sentences."""
  return _dense("next_sentence/scores", name, "2 D -> D 2", "2 -> 2")


BERT_MASKED = masked("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias")
ROBERTA_MASKED = masked("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")
DISTILBERT = (
  *_BERT_EMBEDDINGS,
  *_attention("stack/layers/attention", "transformer.layer.{}.attention", "q_lin k_lin v_lin out_lin"),
  *_norm("stack/layers/attention_norm", "transformer.layer.{}.sa_layer_norm"),
  *_dense("stack/layers/mlp/up", "transformer.layer.{}.ffn.lin1", "F D -> D F", "F -> F"),
  *_dense("stack/layers/mlp/down", "transformer.layer.{}.ffn.lin2", "D F -> F D", "D -> D"),
  *_norm("stack/layers/mlp_norm", "transformer.layer.{}.output_layer_norm"),
)
DISTILBERT_MASKED = masked("vocab_transform", "vocab_layer_norm", "vocab_projector.bias")
ELECTRA_PROJECTION = _dense("project", "embeddings_project", "D R -> R D", "D -> D")
_ALBERT_LAYER = "encoder.albert_layer_groups.{}.albert_layers.0"
ALBERT = (
  *_BERT_EMBEDDINGS,
  *TYPES,
  *_dense("project", "encoder.embedding_hidden_mapping_in", "D R -> R D", "D -> D"),
  *_attention("stack/layers/attention", f"{_ALBERT_LAYER}.attention", "query key value dense"),
  *_norm("stack/layers/attention_norm", f"{_ALBERT_LAYER}.attention.LayerNorm"),
  *_dense("stack/layers/mlp/up", f"{_ALBERT_LAYER}.ffn", "F D -> D F", "F -> F"),
  *_dense("stack/layers/mlp/down", f"{_ALBERT_LAYER}.ffn_output", "D F -> F D", "D -> D"),
  *_norm("stack/layers/mlp_norm", f"{_ALBERT_LAYER}.full_layer_layer_norm"),
)
SPAN = _dense("span/scores", "qa_outputs", "2 D -> D 2", "2 -> 2")


def classifier(head: str, scores: str, dense: str = "", bias: bool = True) -> tuple[WeightMap, ...]:
  """Returns the table of a classification head, which may have a dense layer before its scores."""
  hidden = _dense(f"{head}/dense", dense, "E D -> D E", "E -> E") if dense else ()
  return (*hidden, *_dense(f"{head}/scores", scores, "Y D -> D Y", "Y -> Y" if bias else ""))


def decoder_heads(tokens: str) -> Callable[[Any], dict[str, tuple[WeightMap, ...]]]:
  """Returns the heads of a decoder; `tokens` is the name of the token classifier's tensors."""
  heads = {"tokens": classifier("tokens", tokens), "span": SPAN}
  heads["sequence"] = classifier("sequence", "score", bias=False)
  return lambda c: heads


FINAL_BIAS = WeightMap("unembed_bias/bias", "final_logits_bias", "1 V -> V")  # of BART and Marian


def unembedding(name: str) -> tuple[WeightMap, ...]:
  """Returns the table of what scores tokens where the embedding does not."""
  return (WeightMap("unembed/table", name, "V R -> V R"),)


def unembedding_bias(name: str, config: Any) -> tuple[WeightMap, ...]:
  """Returns the table of the bias of the tokens' scores, `name` that of their table."""
  if isinstance(config, BartConfig):
    return (FINAL_BIAS,)
  return (WeightMap("unembed_bias/bias", name.removesuffix("weight") + "bias", "V -> V"),)


def t5(gated: bool, decoder: bool = True) -> tuple[WeightMap, ...]:
  """Returns the table of a T5, with the gated MLP of version 1.1 or the plain one of version 1.0."""
  attention = (("self_attention", "SelfAttention"), ("cross_attention", "EncDecAttention"))
  weights = [WeightMap("embed/table", "shared.weight", "V D -> V D")]
  sides = [("encoder", (("attention", "SelfAttention"),)), ("decoder", attention)]
  for side, layers in sides if decoder else sides[:1]:
    layers = (*layers, ("mlp", "DenseReluDense"))
    for i, (name, module) in enumerate(layers):
      path, hf = f"{side}/layers/{name}", f"{side}.block.{{}}.layer.{i}"
      if name == "mlp":
        for kernel, tensor in (("gate", "wi_0"), ("up", "wi_1")) if gated else (("up", "wi"),):
          weights += _dense(f"{path}/{kernel}", f"{hf}.{module}.{tensor}", "F D -> D F")
        weights += _dense(f"{path}/down", f"{hf}.{module}.wo", "D F -> F D")
      else:
        weights += _attention(path, f"{hf}.{module}", "q k v o", bias=False, kv_heads="H")
      weights += _norm(f"{path}_norm", f"{hf}.layer_norm", bias=False)
    bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    weights.append(WeightMap(f"{side}_bias/table", bias, "Q H -> Q H"))
    weights += _norm(f"{side}_norm", f"{side}.final_layer_norm", bias=False)
  return tuple(weights)


def bart(positions: bool, embed_norm: bool, decoder: bool = True) -> tuple[WeightMap, ...]:
  """Returns the table of a BART, or of a Marian, which has neither a table of positions nor norms of embeddings."""
  weights = [WeightMap("embed/table", "shared.weight", "V D -> V D")]
  cross = (("self_attention", "self_attn"), ("cross_attention", "encoder_attn"))
  for side, layers in (("encoder", (("attention", "self_attn"),)), ("decoder", cross))[: 1 + decoder]:
    path, hf = f"{side}/layers", f"{side}.layers.{{}}"
    for name, module in layers:
      weights += _attention(f"{path}/{name}", f"{hf}.{module}", "q_proj k_proj v_proj out_proj", kv_heads="H")
      weights += _norm(f"{path}/{name}_norm", f"{hf}.{module}_layer_norm")
    weights += _dense(f"{path}/mlp/up", f"{hf}.fc1", "F D -> D F", "F -> F")
    weights += _dense(f"{path}/mlp/down", f"{hf}.fc2", "D F -> F D", "D -> D")
    weights += _norm(f"{path}/mlp_norm", f"{hf}.final_layer_norm")
    if positions:
      weights.append(WeightMap(f"{side}_positions/table", f"{side}.embed_positions.weight", "P D -> P D"))
    weights += _norm(f"{side}_embed_norm", f"{side}.layernorm_embedding") if embed_norm else ()
  return tuple(weights)


def _parse(side: str) -> list[list[str]]:
  """Returns the axes of each dimension of one side of a layout: `D (H K)` is [["D"], ["H", "K"]]."""
  return [(merged or single).split() for merged, single in re.findall(r"\(([^)]*)\)|(\S+)", side)]


def _shape(dimensions: list[list[str]], sizes: dict[str, int]) -> tuple[int, ...]:
  return tuple(math.prod(int(a) if a.isdigit() else sizes[a] for a in axes) for axes in dimensions)


def hf_shape(layout: str, sizes: dict[str, int]) -> tuple[int, ...]:
  """Returns the shape of the Hugging Face tensor of a layout."""
  first, *others = (_shape(_parse(part.split(" -> ")[0]), sizes) for part in layout.split(" | "))
  return (first[0] + sum(other[0] for other in others), *first[1:])


def separate(array: np.ndarray, layout: str, sizes: dict[str, int], number: int) -> np.ndarray:
  """Returns one of the parameters that a tensor holds; see `arrange` and `WeightMap`.

  Raises:
    ValueError: the array does not have the shape that the layout and the sizes give.
  """
  layouts = layout.split(" | ")
  if len(layouts) == 1:
    return arrange(array, layout, sizes)[number]
  if array.shape != hf_shape(layout, sizes):
    raise ValueError(f"has shape {list(array.shape)}, not {list(hf_shape(layout, sizes))}")
  ends = np.cumsum([hf_shape(part, sizes)[0] for part in layouts])
  return arrange(np.split(array, ends[:-1])[number], layouts[number], sizes)


def join(arrays: list[np.ndarray], layout: str, sizes: dict[str, int]) -> np.ndarray:
  """Returns the tensor that holds some parameters; `separate` is the inverse."""
  layouts = layout.split(" | ")
  if len(layouts) == 1:
    return arrange(arrays[0] if len(arrays) == 1 else np.stack(arrays), layout, sizes, back=True)
  return np.concatenate([arrange(a, part, sizes, back=True) for a, part in zip(arrays, layouts, strict=True)])


def arrange(array: np.ndarray, layout: str, sizes: dict[str, int], back: bool = False) -> np.ndarray:
  """Returns a tensor in the arrangement of lmjax, or with `back` a parameter in that of Hugging Face.

  The result is a view where numpy can make one.

  Args:
    sizes: of the axis letters.

  Raises:
    ValueError: the array does not have the shape that the layout and the sizes give.
  """
  source, target = map(_parse, reversed(layout.split(" -> ")) if back else layout.split(" -> "))
  if array.shape != _shape(source, sizes):
    raise ValueError(f"has shape {list(array.shape)}, not {list(_shape(source, sizes))}")
  axes = [axis for dimension in source for axis in dimension if axis != "1"]
  order = [axes.index(axis) for dimension in target for axis in dimension if axis != "1"]
  return array.reshape(_shape([[axis] for axis in axes], sizes)).transpose(order).reshape(_shape(target, sizes))
