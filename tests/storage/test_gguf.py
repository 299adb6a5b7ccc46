"""GGUF files: what is written is read back, in every type, and garbage is refused in one line."""

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import linen as nn

from lmjax import storage
from lmjax.commands.convert import convert
from lmjax.layers.positions import Rotary
from lmjax.storage import huggingface
from lmjax.storage.gguf import config as gguf_config
from lmjax.storage.gguf.file import GGUF
from lmjax.storage.gguf.splits import SPLITS
from lmjax.storage.safetensors import Tensors
from lmjax.testing import tiny_decoder
from lmjax.utils.errors import UserError
from tests.families import LLAMA

TEXTS = ["The quick brown fox jumps over 12 lazy dogs; it's 3.14, don't you think? naïve façade\n\n  the end\n"] * 4
PROBES = (
  "The quick brown fox,  it's 1234567890 times;\nDON'T naïve façade π ≈ 3.14159 №5 日本語 🙂 \t a<b & c_d ",
  " Two  spaces\r\n\r\n  and a last line  ", "<|im_start|>user", "x" * 40, "",
)  # fmt: skip
WIDE = dict(width=64, heads=4, kv_heads=4, head_size=16, mlp=96, depth=2)
SHAPES = {
  "gpt2": WIDE | dict(activation="gelu_tanh"),
  "llama": WIDE | LLAMA | dict(kv_heads=2, rotary=Rotary(5e4)),
  "llama-tied": WIDE | LLAMA | dict(tie_embeddings=True, head_size=32, kv_heads=1),
  "llama3": WIDE | LLAMA | dict(rotary=Rotary(5e5, "llama3", 8.0, 1.0, 4.0, 64), head_size=64),
  "llama-linear": WIDE | LLAMA | dict(rotary=Rotary(1e4, "linear", 4.0)),
  "qwen2": WIDE | LLAMA | dict(kv_heads=2, qkv_bias=True),
}  # fmt: skip
EPSILON = {"f32": 0.0, "f16": 2.0**-11, "q8_0": 1 / 127}  # the error of a value, relative to the largest of its row


def random_params(model, scale: float = 0.3):
  """Returns parameters far from their initial values, so that no two can be mistaken for one another."""
  ids = {"inputs": jnp.zeros((1, 4), jnp.int32)}
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), ids))["params"]
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: scale * rng.standard_normal(leaf.shape).astype(np.float32), nn.unbox(shapes))


def make_tokenizer(split: str = "gpt-2", special: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>")):
  """Returns a byte-level tokenizer of the `tokenizers` library."""
  fast = tokenizers.Tokenizer(tokenizers.models.BPE(ignore_merges=SPLITS[split].whole_words))
  steps = [tokenizers.pre_tokenizers.Split(tokenizers.Regex(p), "isolated") for p in SPLITS[split].patterns]
  byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
  fast.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([*steps, byte_level])
  fast.decoder = tokenizers.decoders.ByteLevel()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=300, special_tokens=list(special), show_progress=False,
    initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
  )  # fmt: skip
  fast.train_from_iterator(TEXTS, trainer)
  return fast


def write_folder(folder, case: str, fast=None, **changes):
  """Writes a tiny random model as a Hugging Face folder with a tokenizer, and returns it."""
  fast = fast or make_tokenizer()
  rows = fast.get_vocab_size() + 3
  model = tiny_decoder(**(SHAPES[case] | dict(vocabulary=rows, length=128) | changes))
  huggingface.save(folder, model, {"model": random_params(model), "heads": {}})
  (folder / "tokenizer.json").write_text(fast.to_str())
  return model


def make_file(file, case: str = "llama", kind: str = "f32", fast=None, **changes):
  """Writes a tiny random model as a GGUF file, and returns the file."""
  write_folder(file.parent / f"{file.stem}-hf", case, fast, **changes)
  convert(file.parent / f"{file.stem}-hf", file, form=f"gguf-{kind}")
  return file


def rewrite(source, target, metadata=None, tensors=None, **options):
  """Writes a GGUF file again with the package's own writer, with other metadata and tensors; None leaves one out."""
  read = gguf.GGUFReader(source)
  values = GGUF(source).metadata | (metadata or {})
  arrays = {t.name: (t.data, t.tensor_type) for t in read.tensors} | (tensors or {})
  writer = gguf.GGUFWriter(target, values["general.architecture"], **options)
  add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
  for key, value in values.items():
    if key != "general.architecture" and value is not None:
      value = value.tolist() if isinstance(value, np.ndarray) else value
      add.get(type(value), writer.add_array)(key, value)
  for name, entry in arrays.items():
    if entry is not None:
      writer.add_tensor(name, np.ascontiguousarray(entry[0]), raw_dtype=entry[1])
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return target


def parameter(file, name: str) -> np.ndarray:
  return np.asarray(storage.open(file).parameters()[name])


def refusal(path) -> str:
  """Returns the message with which a file is refused, by whatever part of it is read first."""
  with pytest.raises(UserError) as error:
    saved = storage.open(path)
    saved.leaves, saved.config, saved.parameters(), saved.tokenizer  # noqa: B018
  assert "\n" not in str(error.value)
  return str(error.value)


@pytest.mark.parametrize("case", SHAPES)
def test_what_is_written_is_read_back(case, tmp_path):
  """In float32 exactly, in float16 and 8 bits within their rounding, as GGUF again and as a Hugging Face folder."""
  write_folder(tmp_path / "hf", case)
  source = storage.open(tmp_path / "hf")
  for kind, epsilon in EPSILON.items():
    file = tmp_path / f"{kind}.gguf"
    convert(tmp_path / "hf", file, form=f"gguf-{kind}")
    again = storage.open(file)
    assert again.task.model.config == source.task.model.config
    wanted, found = source.parameters(), again.parameters()
    assert set(wanted) == set(found)
    for name in wanted:
      a, b = np.asarray(wanted[name]), np.asarray(found[name])
      assert a.shape == b.shape
      vector = name.endswith(("scale", "bias")) or "positions" in name
      np.testing.assert_allclose(b, a, rtol=0, atol=0 if vector else epsilon * np.abs(a).max(), err_msg=name)
  convert(tmp_path / "f32.gguf", tmp_path / "again.gguf", form="gguf-f32")
  assert (tmp_path / "again.gguf").read_bytes()[-4096:] == (tmp_path / "f32.gguf").read_bytes()[-4096:]
  convert(tmp_path / "f32.gguf", tmp_path / "copy")
  before, after = (huggingface.load(tmp_path / name) for name in ("hf", "copy"))
  jax.tree.map(np.testing.assert_array_equal, before.arrays(), after.arrays())
  for text in PROBES:
    assert list(before.tokenizer.encode(text)) == list(after.tokenizer.encode(text))


def test_the_file_says_what_llama_cpp_needs(tmp_path):
  """Keys of the metadata, names, types and the alignment of tensors, by the package's own reader."""
  file = make_file(tmp_path / "a.gguf", "llama3", "q8_0")
  read = gguf.GGUFReader(file)
  values = {key: field.contents() for key, field in read.fields.items()}
  assert values["general.architecture"] == "llama" and values["general.type"] == "model"
  assert values["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q8_0
  assert values["general.quantization_version"] == gguf.GGML_QUANT_VERSION
  wanted = dict(
    block_count=2, context_length=128, embedding_length=64, feed_forward_length=96, vocab_size=303,
    **{"attention.head_count": 4, "attention.head_count_kv": 4, "attention.key_length": 64, "rope.freq_base": 5e5},
    **{"rope.dimension_count": 64, "attention.value_length": 64},
  )  # fmt: skip
  assert {key: values[f"llama.{key}"] for key in wanted} == wanted
  np.testing.assert_allclose(values["llama.attention.layer_norm_rms_epsilon"], 1e-5)
  assert values["tokenizer.ggml.model"] == "gpt2" and values["tokenizer.ggml.pre"] == "gpt-2"
  assert len(values["tokenizer.ggml.tokens"]) == 303 and values["tokenizer.ggml.tokens"][-1] == "[PAD302]"
  assert values["tokenizer.ggml.token_type"][:3] == [3, 3, 1] and values["tokenizer.ggml.token_type"][-1] == 5
  types = {tensor.name: tensor.tensor_type.name for tensor in read.tensors}
  for name, kind in types.items():
    assert kind == ("F32" if "norm" in name or name == "rope_freqs.weight" else "Q8_0"), name
  assert {"token_embd.weight", "output.weight", "output_norm.weight", "blk.1.attn_q.weight"} < set(types)
  assert all(tensor.data_offset % 32 == 0 for tensor in read.tensors)


def test_the_order_of_rows_is_that_of_llama_cpp(tmp_path):
  """It turns neighbouring rows of a head against each other, Hugging Face's Llama the two halves of the head."""
  for case, heads, size in (("llama", {"q": 4, "k": 2}, 16), ("qwen2", {}, 16)):
    file = make_file(tmp_path / f"{case}.gguf", case)
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(file).tensors}
    tensors = Tensors(tmp_path / f"{case}-hf")
    for letter, name in (("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj")):
      a, b = stored[f"blk.1.attn_{letter}.weight"], tensors[f"model.layers.1.self_attn.{name}.weight"]
      order = np.arange(len(a))
      if letter in heads:
        order = [
          h * size + half * (size // 2) + i for h in range(heads[letter]) for i in range(size // 2) for half in (0, 1)
        ]
      np.testing.assert_array_equal(a, b[order])
  stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(make_file(tmp_path / "gpt2.gguf", "gpt2")).tensors}
  tensors = Tensors(tmp_path / "gpt2-hf")
  for name, hf in (("attn_qkv", "attn.c_attn"), ("attn_output", "attn.c_proj"), ("ffn_up", "mlp.c_fc")):
    np.testing.assert_array_equal(stored[f"blk.1.{name}.weight"], tensors[f"transformer.h.1.{hf}.weight"].T)
    np.testing.assert_array_equal(stored[f"blk.1.{name}.bias"], tensors[f"transformer.h.1.{hf}.bias"])


def dequantizable():
  for kind in gguf.GGMLQuantizationType:
    try:
      gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
      continue
    yield kind


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
  """A model whose rows are as long as the blocks of every type."""
  return make_file(tmp_path_factory.mktemp("gguf") / "wide.gguf", "llama-tied", width=256, depth=1)


@pytest.mark.parametrize("kind", list(dequantizable()), ids=lambda kind: kind.name)
def test_every_type_that_the_package_can_dequantize_is_read(kind, wide, tmp_path):
  rng = np.random.default_rng(1)
  values = rng.standard_normal((96, 256)).astype(np.float32)
  try:
    data = gguf.quantize(values, kind)
  except NotImplementedError:
    size = gguf.quant_shape_to_byte_shape(values.shape, kind)
    data = rng.integers(0, 256, size, np.uint8)
  with np.errstate(all="ignore"):
    wanted = gguf.dequantize(data, kind)
  stored = data.view(np.uint16) if kind.name == "BF16" else data
  file = rewrite(wide, tmp_path / "a.gguf", tensors={"blk.0.ffn_gate.weight": (data, kind)})
  assert stored.nbytes == GGUF(file).tensors["blk.0.ffn_gate.weight"].bytes
  np.testing.assert_array_equal(parameter(file, "model/stack/layers/mlp/gate/kernel")[0], wanted.T)
  leaf = storage.open(file).leaves["blk/0/ffn_gate/weight"]
  assert (leaf.dtype, leaf.bytes, leaf.count) == (kind.name.lower(), data.nbytes, values.size)


def test_opening_reads_no_tensor(wide, monkeypatch):
  """Neither metadata nor shapes need the values, which are read one tensor at a time."""
  read = []
  monkeypatch.setattr("lmjax.storage.gguf.file._dequantize", lambda tensor: read.append(tensor) or 1 / 0)
  saved = storage.open(wide)
  assert saved.leaves and saved.config and saved.task and saved.named and saved.tokenizer
  assert saved.parameters()["model/embed/table"].shape[1] == 256
  assert not read


def test_a_second_copy_of_the_table_is_one_table(tmp_path):
  """Old converters wrote GPT-2's table twice; where the copies differ, each is used for its own purpose."""
  file = make_file(tmp_path / "a.gguf", "gpt2")
  table = gguf.GGUFReader(file).tensors
  table = next(t.data for t in table if t.name == "token_embd.weight")
  copied = rewrite(file, tmp_path / "b.gguf", tensors={"output.weight": (table, gguf.GGMLQuantizationType.F32)})
  assert storage.open(copied).task.model.config.tie_embeddings
  assert "model/unembed/table" not in storage.open(copied).parameters()
  other = rewrite(file, tmp_path / "c.gguf", tensors={"output.weight": (-table, gguf.GGMLQuantizationType.F32)})
  assert not storage.open(other).task.model.config.tie_embeddings
  np.testing.assert_array_equal(parameter(other, "model/unembed/table")[: len(table)], -table)


def test_shards_are_one_model(tmp_path):
  whole = make_file(tmp_path / "a.gguf", "qwen2")
  (tmp_path / "shards").mkdir()
  rewrite(whole, tmp_path / "shards" / "m.gguf", split_max_tensors=9)
  files = sorted((tmp_path / "shards").iterdir())
  assert len(files) > 2
  for path in (files[0], files[1], tmp_path / "shards"):
    found, wanted = storage.open(path).parameters(), storage.open(whole).parameters()
    for name in wanted:
      np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(wanted[name]))
  files[1].unlink()
  assert "are missing" in refusal(files[0]) and files[1].name in refusal(files[0])


@pytest.mark.parametrize("low, high, original, size", [
  (1.0, 4.0, 8192, 64), (1.0, 4.0, 64, 16), (2.0, 3.0, 1000, 64), (1.0, 32.0, 300, 16), (1.0, 4.0, 20, 8),
  (1.0, 1.5, 4096, 64), (1.0, 4.0, 2, 8),
])  # fmt: skip
@pytest.mark.parametrize("factor", [8.0, 3.7])
@pytest.mark.parametrize("base", [1e4, 5e5])
def test_the_scaling_of_llama_3_is_found_from_its_factors(low, high, original, size, factor, base):
  """The file has only what the frequencies are divided by."""
  rotary = Rotary(base, "llama3", factor, low, high, original)
  factors = gguf_config.frequency_factors(rotary, size).astype(np.float32)
  found = gguf_config.fit_rotary(base, factors)
  np.testing.assert_allclose(found.frequencies(size), rotary.frequencies(size), rtol=3e-6)
  if low == 1 and high == 4 and np.unique(factors).size > 1 and found.scaling == "llama3":
    assert np.sum((factors > 1.001) & (factors < factor - 0.001)) > 0 and (found == rotary) or size == 8


def test_keys_that_are_not_known_are_named(tmp_path, capsys):
  file = make_file(tmp_path / "a.gguf", "llama")
  metadata = {"llama.wonder.factor": 2.0, "llama.rope.scaling.finetuned": True, "general.wonder": 1}
  assert storage.open(rewrite(file, tmp_path / "b.gguf", metadata)).task
  (line,) = capsys.readouterr().err.splitlines()
  assert line.endswith("b.gguf: llama.wonder.factor is not known and has no effect")


def test_a_window_ends_the_context(tmp_path, capsys):
  """llama.cpp has no sliding window for these models."""
  file = make_file(tmp_path / "a.gguf", "llama", window=32)
  assert "the context ends with it, at 32" in capsys.readouterr().err
  config = storage.open(file).task.model.config
  assert config.length == 32 and config.window is None
  windowed = rewrite(file, tmp_path / "b.gguf", {"llama.attention.sliding_window": 8})
  assert storage.open(windowed).task.model.config.window == 8
