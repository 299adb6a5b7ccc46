"""Every format that lmjax reads: how a valid example is made, which of its files are mutated, and how it is read."""

import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import serialization, traverse_util

from lmjax import checkpoint, config, experiment, logs, notebook, storage
from lmjax.compression.lora import LoRA
from lmjax.compression.one_shot import OneShot
from lmjax.compression.quantize import Quantize
from lmjax.data.preview import open_prepared
from lmjax.data.sources import write_shards
from lmjax.data.sources.shards import UNFINISHED, Prepared
from lmjax.data.sources.text import TextFiles
from lmjax.data.tokenizers import registry, words
from lmjax.data.tokenizers.base import Bytes
from lmjax.data.tokenizers.sentinels import Sentinels
from lmjax.experiment import Start
from lmjax.inference.compress import compress
from lmjax.inference.table import table
from lmjax.models import encoder
from lmjax.models.elmo import DIRECTIONS
from lmjax.storage import huggingface
from lmjax.storage.bilm import BilmFolder
from lmjax.storage.huggingface import sentence
from lmjax.storage.run import best_step
from lmjax.storage.safetensors import Tensors
from lmjax.storage.sources import NAME, check_sources, record_sources
from lmjax.tasks.causal_lm import CausalLM
from lmjax.testing import init_params, init_state, tiny_decoder
from tests.fuzz import dialogues, documents, examples, images, indexes, scores, suites
from tests.fuzz.documents import TEXT
from tests.storage import test_gguf
from tests.storage.adapters import random_adapter

SMALL = dict(width=32, heads=2, kv_heads=2, head_size=16, mlp=32, depth=1)


@dataclasses.dataclass(frozen=True)
class Reader:
  """make(folder) writes a valid example, read(folder) reads all of it, and `files` match the files to mutate."""

  make: Callable[[pathlib.Path], None]
  read: Callable[[pathlib.Path], None]
  files: tuple[str, ...]
  weight: float = 1.0  # how many mutations in relation to other readers: fewer where reading takes long


def _tokenizer(kind: str) -> registry.Tokenizer:
  if kind == "words":
    return words.train([TEXT] * 3, 20)
  if kind == "sentinels":
    return Sentinels(words.train([TEXT] * 3, 20), 4)
  return registry.train(kind, [TEXT] * 40, 320)


def _make_tokenizer(kind: str) -> Callable[[pathlib.Path], None]:
  return lambda folder: _tokenizer(kind).save(folder)


def _use(tokenizer: registry.Tokenizer) -> None:
  assert all(0 <= number < tokenizer.size for number in (tokenizer.start, tokenizer.end) if number is not None)
  for text in (TEXT, "", "日本"):
    ids = [int(i) for i in tokenizer.encode(text)]
    assert all(0 <= i < tokenizer.size for i in ids), (max(ids), tokenizer.size)
    tokenizer.decode(ids)


def _read_tokenizer(folder: pathlib.Path) -> None:
  _use(registry.load(folder))


def _make_merges(folder: pathlib.Path) -> None:
  model = json.loads(_tokenizer("bpe").fast.to_str())["model"]
  (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
  merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
  (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")


def _make_vocabulary(folder: pathlib.Path) -> None:
  tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(TEXT.lower().split())), *map(chr, range(33, 127))]
  (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
  (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": True}))


def _settings() -> dict:
  return config.load("configs/quickstart.py:debug") | {"evals": {"every": 10}}


def _make_run(folder: pathlib.Path) -> None:
  experiment.check_or_save_config(_settings(), Bytes(), epath.Path(folder))


def _make_family(name: str) -> Callable[[pathlib.Path], None]:
  def make(folder: pathlib.Path) -> None:
    settings = config.load(f"configs/{name}.py:debug")
    tokenizer = config.build(settings["data"], "data").make_tokenizer()
    experiment.check_or_save_config(settings | {"evals": {"every": 10}}, tokenizer, epath.Path(folder))

  return make


def _read_run(folder: pathlib.Path) -> None:
  saved = storage.open(folder)
  _use(saved.tokenizer)
  run = saved.experiment
  run.state(abstract=True)
  batches = run.data.train(run.tokenizer, run.batch, run.seed)
  next(batches)
  batches.close()


def _read_config(folder: pathlib.Path) -> None:
  experiment.build(config.load(str(folder / "given.json")))


def _make_metrics(folder: pathlib.Path) -> None:
  log = logs.Log(epath.Path(folder), logs.LogConfig(every=1, tensorboard=False), 0, {})
  for step in range(1, 6):
    log.write(step, {"train_loss": 5.0 / step, "tokens": 100})
  log.close()
  (folder / "config.json").write_text("{}")


def _read_metrics(folder: pathlib.Path) -> None:
  logs.read_metrics(epath.Path(folder))
  notebook.load(folder).curve()


def _make_model(model=None) -> Callable[[pathlib.Path], None]:
  def make(folder: pathlib.Path) -> None:
    used = model or tiny_decoder(vocabulary=257, depth=1)
    params = init_params(used, {"inputs": jnp.zeros((1, 4), jnp.int32)})["params"]
    huggingface.save(folder, used, {"model": params, "heads": {}}, Bytes() if model is None else None)

  return make


def _read_model(folder: pathlib.Path) -> None:
  saved = storage.open(folder)
  str(table(saved, values=True))
  if saved.tokenizer:
    _use(saved.tokenizer)
  loaded = saved.load()
  assert loaded.length > 0


def _make_compressed(folder: pathlib.Path) -> None:
  with tempfile.TemporaryDirectory() as scratch:
    _make_model()(pathlib.Path(scratch))
    methods = [OneShot(0.5, targets="mlp"), Quantize("int4", group=16, targets="attention")]
    compress(storage.open(scratch), folder / "copy", methods)
  for file in (folder / "copy").iterdir():
    file.rename(folder / file.name)


def _make_adapter(folder: pathlib.Path) -> None:
  _make_model()(folder / "base")
  random_adapter(folder / "part", folder / "base", LoRA("kernel$", 3, 6, {"mlp": 2}, train="norm"))
  for file in (folder / "part").iterdir():
    file.rename(folder / file.name)
  file = folder / "adapter_config.json"
  file.write_text(file.read_text().replace(str(folder / "base"), "base"))


def _make_sharded(folder: pathlib.Path) -> None:
  _make_model()(folder)
  tensors = Tensors(folder)
  names = list(tensors)
  for number, part in enumerate((names[::2], names[1::2])):
    shapes = {name: (tensors.dtype(name), tensors.shape(name)) for name in part}
    from lmjax.storage import safetensors

    safetensors.write(epath.Path(folder / f"model-{number}.safetensors"), shapes, [tensors[name] for name in part])
  (folder / "model.safetensors").unlink()
  weight_map = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _read_tensors(folder: pathlib.Path) -> None:
  tensors = Tensors(folder)
  for name in tensors:
    assert tensors[name].shape == tensors.shape(name)
    np.array(tensors[name])


def _make_flax(folder: pathlib.Path) -> None:
  _make_model()(folder)
  tree = {}
  for name, array in ((name, np.array(Tensors(folder)[name])) for name in Tensors(folder)):
    *parents, last = name.split(".")
    if last == "weight":
      last = "embedding" if parents[-1] in ("wte", "wpe") else "scale" if array.ndim == 1 else "kernel"
    tree[(*parents, last)] = array.T.copy() if last == "kernel" else array
  (folder / "flax_model.msgpack").write_bytes(serialization.to_bytes(traverse_util.unflatten_dict(tree)))
  (folder / "model.safetensors").unlink()


def _make_gguf(case: str, kind: str = "f32") -> Callable[[pathlib.Path], None]:
  """A model whose tokenizer is that of GPT-2's kind, or of SentencePiece for llama."""

  def make(folder: pathlib.Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
      file, changes = test_gguf.make_file(pathlib.Path(scratch) / "plain.gguf", case, kind, **SMALL), {}
      if case == "llama":
        pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((c, 1) for c in ("▁", *"abcdehlnoqrtuwx", "th", "▁th"))]
        pieces += [(f"<0x{byte:02X}>", 6) for byte in range(256)]
        changes = {"tokens": [piece for piece, _ in pieces], "token_type": [kind for _, kind in pieces]}
        changes |= {"scores": [-float(i) for i in range(len(pieces))], "merges": None, "model": "llama", "pre": None}
        changes |= {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
      changes = {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
      test_gguf.rewrite(file, folder / "model.gguf", changes)

  return make


def _read_gguf(folder: pathlib.Path) -> None:
  _read_model(folder)
  saved = storage.open(folder)
  for parameter in saved.parameters().values():
    np.array(parameter)


def _make_modules(folder: pathlib.Path) -> None:
  (folder / "1_Pooling").mkdir()
  kinds = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
  modules = [
    {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
    for i, (kind, path) in enumerate(kinds)
  ]
  (folder / "modules.json").write_text(json.dumps(modules))
  pooling = {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
  (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
  (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16, "do_lower_case": False}))


def _read_modules(folder: pathlib.Path) -> None:
  (getattr(sentence, "read_sentence", None) or sentence.read_pooling)(folder)


def _make_sources(folder: pathlib.Path) -> None:
  (folder / "source").mkdir()
  _make_model()(folder / "source" / "model")
  record_sources(folder, {"start": Start(str(folder / "source" / "model"))})


def _read_sources(folder: pathlib.Path) -> None:
  check_sources(folder, {"start": Start(str(folder / "source" / "model"))})


def _preparation(folder: pathlib.Path) -> write_shards.Preparation:
  (folder.parent / "text.txt").write_text(TEXT * 50)
  return write_shards.Preparation(TextFiles(str(folder.parent / "text.txt"), "line"), Bytes(), 0.2, shard=1000)


def _make_prepared(folder: pathlib.Path) -> None:
  list(_preparation(folder).run(folder))


def _read_prepared(folder: pathlib.Path) -> None:
  source = Prepared(str(folder))
  for i in range(min(len(source), 20)):
    source[i]
  data, tokenizer, _ = open_prepared(folder)
  batches = data.train(tokenizer, 2, 0)
  next(batches)
  batches.close()


def _make_unfinished(folder: pathlib.Path) -> None:
  writing = _preparation(folder).run(folder)
  for _ in range(20):
    next(writing)
  writing.close()
  assert (folder / UNFINISHED).exists()


def _read_unfinished(folder: pathlib.Path) -> None:
  list(_preparation(folder).run(folder))


def _make_bilm(folder: pathlib.Path) -> None:
  import h5py

  width, cells, embedding, filters = 4, 6, 3, [[1, 2], [2, 3]]
  characters = {"embedding": {"dim": embedding}, "filters": filters, "activation": "relu", "n_highway": 1}
  lstm = {"dim": cells, "projection_dim": width, "n_layers": 1, "use_skip_connections": True}
  lstm |= {"cell_clip": 3, "proj_clip": 3}
  options = {"char_cnn": characters | {"max_characters_per_token": 50, "n_characters": 261}, "lstm": lstm}
  (folder / "options.json").write_text(json.dumps(options))
  size = sum(count for _, count in filters)
  shapes = {"char_embed": (261, embedding), "CNN_proj/W_proj": (size, width), "CNN_proj/b_proj": (width,)}
  for i, (length, count) in enumerate(filters):
    shapes |= {f"CNN/W_cnn_{i}": (1, length, embedding, count), f"CNN/b_cnn_{i}": (count,)}
  for name in ("carry", "transform"):
    shapes |= {f"CNN_high_0/W_{name}": (size, size), f"CNN_high_0/b_{name}": (size,)}
  for i in range(len(DIRECTIONS)):
    cell = f"RNN_{i}/RNN/MultiRNNCell/Cell0/LSTMCell"
    shapes |= {f"{cell}/W_0": (2 * width, 4 * cells), f"{cell}/B": (4 * cells,), f"{cell}/W_P_0": (cells, width)}
  with h5py.File(folder / "lm_weights.hdf5", "w") as file:
    for name, shape in shapes.items():
      file[name] = np.ones(shape, np.float32)


def _read_bilm(folder: pathlib.Path) -> None:
  saved = BilmFolder(folder)
  str(table(saved))
  assert saved.task and saved.named


def _make_checkpoint(folder: pathlib.Path) -> None:
  from lmjax.compression.base import Identity
  from lmjax.optim import Optimizer
  from lmjax.parallel.mesh import MeshShape
  from lmjax.parallel.sharding import Layout

  layout = Layout.build(MeshShape().build(jax.devices()[:1]), "ddp")
  state = init_state(CausalLM(tiny_decoder(depth=1)), Optimizer().build(9), Identity(), layout, 2, 8, 0)
  checkpoints = checkpoint.Checkpoints(epath.Path(folder))
  data = checkpoint.data_state(jax.random.key(5), np.zeros((3, 2)), 0)
  checkpoints.save(1, state.replace(step=jnp.int32(1)), data, 2.0)
  checkpoints.close()


def _read_checkpoint(folder: pathlib.Path) -> None:
  str(table(storage.open(folder)))
  best_step(folder)
  checkpoint.Checkpoints(epath.Path(folder), say=lambda text: None).close()


BERT = encoder.Encoder(encoder.Config(vocabulary=30, length=16, width=8, depth=1, heads=2, head_size=4, mlp=16))
FAMILIES = ("bert", "elmo", "gpt", "llama", "lstm", "t5", "transformer")
READERS = {
  "run": Reader(_make_run, _read_run, ("config.json", "tokenizer/*")),
  **{f"run {name}": Reader(_make_family(name), _read_run, ("config.json",), 0.5) for name in FAMILIES},
  "config": Reader(lambda folder: (folder / "given.json").write_text(json.dumps(_settings())), _read_config, ("*",)),
  "metrics": Reader(_make_metrics, _read_metrics, ("metrics.jsonl",), 0.5),
  "sources": Reader(_make_sources, _read_sources, (NAME,)),
  **{
    f"tokenizer {kind}": Reader(_make_tokenizer(kind), _read_tokenizer, ("*", "inner/*"))
    for kind in (*registry.ALGORITHMS, "words", "sentinels")
  },
  "tokenizer merges": Reader(_make_merges, _read_tokenizer, ("*",)),
  "tokenizer vocabulary": Reader(_make_vocabulary, _read_tokenizer, ("*",)),
  "prepared": Reader(_make_prepared, _read_prepared, ("*", "tokenizer/*"), 0.5),
  "unfinished": Reader(_make_unfinished, _read_unfinished, (UNFINISHED, "*.keys"), 0.5),
  "safetensors": Reader(_make_sharded, _read_tensors, ("model*",)),
  "huggingface": Reader(_make_model(), _read_model, ("*.json", "*.safetensors"), 0.5),
  "compressed": Reader(_make_compressed, _read_model, ("config.json", "*.safetensors"), 0.5),
  "suite": Reader(suites.make, suites.read, ("*",)),
  "adapter": Reader(_make_adapter, _read_model, ("adapter*",), 0.5),
  "huggingface bert": Reader(_make_model(BERT), _read_model, ("config.json",), 0.5),
  "flax": Reader(_make_flax, _read_model, ("*.msgpack",), 0.5),
  "gguf": Reader(_make_gguf("gpt2"), _read_gguf, ("*.gguf",), 0.5),
  "gguf llama": Reader(_make_gguf("llama", "q8_0"), _read_gguf, ("*.gguf",), 0.5),
  "modules": Reader(_make_modules, _read_modules, ("*.json", "*/config.json")),
  "bilm": Reader(_make_bilm, _read_bilm, ("*",)),
  "checkpoint": Reader(_make_checkpoint, _read_checkpoint, ("checkpoints/1/**/*",), 0.5),
  "prompts": Reader(documents.make_prompts, documents.read_prompts, ("*",)),
  "lines": Reader(documents.make_lines, documents.read_lines, ("*",)),
  "texts": Reader(documents.make_texts, documents.read_texts, ("*",)),
  "examples": Reader(examples.make, examples.read, ("*",)),
  "scores": Reader(scores.make, scores.read, ("*",)),
  "index": Reader(indexes.make, indexes.read, ("*.json*", "*.npy", "bm25-*/*"), 0.5),
  "dialogues": Reader(dialogues.make, dialogues.read, ("*",)),
  "images": Reader(images.make, images.read, ("*",)),
}  # fmt: skip
