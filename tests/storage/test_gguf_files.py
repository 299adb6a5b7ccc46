"""GGUF files that cannot be read or written are refused in one line, quickly, and nothing is left behind."""

import dataclasses
import errno
import os
import pathlib
import shutil
import struct
import sys
import time

import gguf
import numpy as np
import pytest

from lmjax import notebook, sections, storage
from lmjax.__main__ import main
from lmjax.commands.convert import convert
from lmjax.config import load
from lmjax.data.tokenizers import base, bpe, characters
from lmjax.storage.gguf import config, write
from lmjax.storage.gguf import file as gguf_file
from lmjax.storage.gguf.file import GGUF
from lmjax.tasks.causal_lm import CausalLM
from lmjax.testing import tiny_decoder
from lmjax.utils import pytree
from lmjax.utils.errors import UserError
from tests.storage.test_gguf import PROBES, SHAPES, TEXTS, make_file, random_params, refusal, rewrite, write_folder

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
F32 = gguf.GGMLQuantizationType.F32


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """A file of each architecture."""
  folder = tmp_path_factory.mktemp("gguf")
  return {case: make_file(folder / f"{case}.gguf", case, "q8_0") for case in ("gpt2", "llama3", "qwen2")}


def open_all(path):
  """Opens every part of a file; what is wrong with it is a UserError of one line."""
  saved = storage.open(path)
  for part in ("leaves", "config", "tokenizer", "task", "named"):
    getattr(saved, part)
  for array in saved.parameters().values():
    np.asarray(array)


@pytest.mark.parametrize("case", ["gpt2", "llama3"])
def test_damaged_files_are_refused_in_one_line(case, files, tmp_path):
  """Cut anywhere, or with bytes of the header changed: an error or another model, never a hang or a traceback."""
  whole = bytearray(files[case].read_bytes())
  start = min(tensor.offset for tensor in GGUF(files[case]).tensors.values())
  rng = np.random.default_rng(0)
  damaged = [whole[: int(at)] for at in (*rng.integers(0, len(whole), 25), 0, 3, 4, 8, 24, start, len(whole) - 1)]
  interesting = [*range(4, 24), *(whole.find(key) + len(key) + 4 for key in (b"block_count", b"tokens", b"head_count"))]
  for at in (*interesting, *rng.integers(24, start, 60)):
    changed = bytearray(whole)
    changed[at : at + int(rng.integers(1, 9))] = rng.bytes(1) if at % 2 else b"\xff" * 8
    damaged.append(changed)
  refused, path, began = 0, tmp_path / "a.gguf", time.process_time()
  for data in damaged:
    path.write_bytes(data)
    try:
      open_all(path)
    except UserError as error:
      assert "\n" not in str(error) and str(error).isprintable()
      refused += 1
  assert refused >= 32 + 20
  assert time.process_time() - began < 60


@pytest.mark.parametrize("name, content", {
  "empty": b"", "text": b"hello", "version": struct.pack("<4sI", b"GGUF", 1),
  "big": struct.pack(">4sI", b"GGUF", 3) * 9,
  "counts": struct.pack("<4sIQQ", b"GGUF", 3, 2**63, 2**63), "keys": struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**20),
  "array": struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"a", 9, 4, 2**62),
  "nested": struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"a", 9, 9, 2**62),
  "strings": struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"a", 9, 8, 2**23),
  "utf8": struct.pack("<4sIQQQ2s", b"GGUF", 3, 0, 1, 2, b"\xff\xfe") + bytes(64),
}.items())  # fmt: skip
def test_garbage_is_refused(name, content, tmp_path):
  path = tmp_path / "a.gguf"
  path.write_bytes(content)
  message = refusal(path)
  assert message.startswith(f"{path} is not a GGUF file that can be read: ")
  if name in ("version", "big"):
    assert {"version": "version is 1", "big": "big-endian"}[name] in message
  assert main(["show", str(path)]) == 2


REFUSED = {
  "architecture": ({}, {"general.architecture": "mamba"}, "'mamba' is not supported"),
  "type": ({}, {"general.type": "adapter"}, "no model, but a file of the type 'adapter'"),
  "experts": ({}, {"llama.expert_count": 8}, "llama.expert_count 8"),
  "causal": ({}, {"llama.attention.causal": False}, "llama.attention.causal False"),
  "yarn": ({}, {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, "yarn"),
  "partial": ({}, {"llama.rope.dimension_count": 8}, "must have the same size"),
  "layers": ({}, {"llama.attention.head_count_kv": [2, 4]}, "llama.attention.head_count_kv must be"),
  "missing key": ({}, {"llama.block_count": None}, "llama.block_count is missing"),
  "missing epsilon": ({}, {"llama.attention.layer_norm_rms_epsilon": None}, "layer_norm_rms_epsilon is missing"),
  "depth": ({}, {"llama.block_count": 2**30}, "block_count is 1,073,741,824, but there are"),
  "more layers": ({}, {"llama.block_count": 3}, "the tensors blk.2.attn_q.weight"),
  "heads": ({}, {"llama.attention.head_count": 3}, "heads (3) must be a multiple"),
  "missing tensor": ({"blk.1.ffn_up.weight": None}, {}, "the tensors blk.1.ffn_up.weight are missing"),
  "other tensor": ({"blk.1.attn_q_norm.weight": (np.ones(16, np.float32), F32)}, {}, "blk.1.attn_q_norm.weight"),
  "wrong shape": ({"output_norm.weight": (np.ones(16, np.float32), F32)}, {}, "has shape [16], not [64]"),
  "integers": (
    {"output_norm.weight": (np.ones(64, np.int32), gguf.GGMLQuantizationType.I32)}, {},
    "output_norm.weight is of the type I32",
  ),
  "factors": ({"rope_freqs.weight": (np.arange(1, 9, dtype=np.float32) ** 2, F32)}, {}, "not a scaling of Llama 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_lmjax_does_not_have_is_named(case, tmp_path):
  tensors, metadata, message = REFUSED[case]
  file = make_file(tmp_path / "a.gguf", "llama")
  assert message in refusal(rewrite(file, tmp_path / "b.gguf", metadata, tensors))


def test_a_file_that_becomes_shorter_ends_in_a_line(files, tmp_path):
  """After its header was read; the kernel would kill a process that reads what is no longer there."""
  for number, file in enumerate([*files.values()][:2]):
    copy = shutil.copy(file, tmp_path / f"{number}.gguf")
    parameters = storage.open(copy).parameters()
    os.truncate(copy, os.path.getsize(copy) - 40_000)
    with pytest.raises(UserError, match="became shorter while it was read"):
      for parameter in parameters.values():
        np.asarray(parameter)


def test_folders_with_one_file(files, tmp_path):
  (tmp_path / "one").mkdir()
  (tmp_path / "one" / "m.gguf").write_bytes(files["gpt2"].read_bytes())
  assert storage.open(tmp_path / "one").parameters()
  (tmp_path / "one" / "n.gguf").write_bytes(files["gpt2"].read_bytes())
  assert "holds 2 GGUF files (m.gguf, n.gguf); name one" in refusal(tmp_path / "one")
  assert "none.gguf does not exist; give a run folder, a GGUF file" in refusal(tmp_path / "none.gguf")
  with pytest.raises(UserError, match="leave out --step"):
    storage.open(files["gpt2"], 3)


def test_every_command_opens_one(files, tmp_path, capsys):
  path = str(files["qwen2"])
  assert main(["show", path, "--values", "--pattern", "ffn"]) == 0
  shown = capsys.readouterr().out
  assert "blk/0/ffn_up/weight" in shown and "q8_0" in shown
  assert main(["generate", "--workdir", path, "--prompt", "The quick", "--max_new_tokens", "3"]) == 0
  assert "The quick" in capsys.readouterr().out
  (tmp_path / "in.txt").write_text("The quick brown fox\n")
  out = str(tmp_path / "v.npz")
  assert main(["embed", "--workdir", path, "--input", str(tmp_path / "in.txt"), "--output", out]) == 0
  assert np.load(out)["embeddings"].shape == (1, 64)
  run = notebook.load(path)
  assert "parameters" in repr(run) and run.loaded.tokenizer.encode("The")
  for arguments, message in (
    (["--output", str(tmp_path / "x"), "--format", "gguf-f16"], "must end with .gguf"),
    (["--output", str(tmp_path / "x.gguf"), "--format", "huggingface"], "must not end with .gguf"),
    (["--output", path], "exists; name another file"),
  ):
    assert main(["convert", "--input", path, *arguments]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


STARTS = {path.stem for path in CONFIGS.glob("*.py") if "tokenizer_section" in path.read_text()}


@pytest.mark.parametrize("name", sorted(STARTS - {"fusion_in_decoder"}))  # which starts from an encoder-decoder
def test_a_run_that_starts_from_one_has_its_tokenizer(name, files):
  key = "teacher" if name == "distill" else "start"
  variant = f"{key}={files['qwen2']}" + (",files=*.txt" if name == "distill" else "")
  section = load(f"{CONFIGS}/{name}.py:{variant}")["data"]["tokenizer"]
  tokenizer = sections.build(section, "tokenizer").make([])
  own = storage.open(files["qwen2"]).tokenizer
  assert [tokenizer.encode(text) for text in TEXTS] == [own.encode(text) for text in TEXTS]
  assert tokenizer.size == own.size


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
  write_folder(tmp_path / "hf", "llama")
  write = gguf.GGUFWriter.write_tensor_data

  def full(self, data, *rest):
    if data.nbytes < 1000:
      return write(self, data, *rest)
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
  with pytest.raises(UserError, match="could not be written: No space left on device"):
    convert(tmp_path / "hf", tmp_path / "a.gguf")
  assert [path.name for path in tmp_path.iterdir()] == ["hf"]


UNWRITTEN = {
  "gpt1": (SHAPES["gpt2"] | dict(post_norm=True, mlp=256), "OpenAIGPT models cannot be written as GGUF"),
  "activation": (SHAPES["gpt2"] | dict(activation="relu"), "with activation 'gelu_tanh'; this one has 'relu'"),
  "gelu": (SHAPES["llama"] | dict(activation="gelu_tanh"), "with activation 'silu'; this one has 'gelu_tanh'"),
}


def test_every_field_of_the_config_is_written_or_refused():
  """A field that is new in the model and unknown to the writer is not lost in silence."""
  for case, base_config in ((c, tiny_decoder(**SHAPES[c]).config) for c in ("gpt2", "llama")):
    architecture = config.ARCHITECTURES[case]
    config.write_config(architecture, base_config)
    for field in dataclasses.fields(base_config):
      if field.name in config.STATED or (field.name == "qk_norm" and base_config.norm == "layer"):
        continue
      value = getattr(base_config, field.name)
      other = (
        not value
        if isinstance(value, bool)
        else {"norm": {"rms": "layer", "layer": "rms"}}.get(field.name, {}).get(
          value, "relu" if field.name == "activation" else None
        )
      )
      if other is not None:
        with pytest.raises(UserError, match=field.name):
          config.write_config(architecture, dataclasses.replace(base_config, **{field.name: other}))
  partial = dataclasses.replace(base_config, rotary=dataclasses.replace(base_config.rotary, fraction=0.5))
  with pytest.raises(UserError, match="rotary positions of 0.5 of each head"):
    config.write_config(architecture, partial)


@pytest.mark.parametrize("case", UNWRITTEN)
def test_what_llama_cpp_does_not_have_is_named(case, tmp_path):
  changes, message = UNWRITTEN[case]
  write_folder(tmp_path / "hf", "gpt2", **changes)
  with pytest.raises(UserError, match=message):
    convert(tmp_path / "hf", tmp_path / "a.gguf")
  assert not (tmp_path / "a.gguf").exists()


def test_values_beyond_float16_are_refused(tmp_path):
  file = make_file(tmp_path / "a.gguf", "llama")
  large = rewrite(file, tmp_path / "b.gguf", tensors={"output.weight": (np.full((303, 64), 1e5, np.float32), F32)})
  with pytest.raises(UserError, match="output.weight has values beyond float16, up to 1e.05; --format gguf-f32"):
    convert(large, tmp_path / "c.gguf", form="gguf-f16")
  assert not (tmp_path / "c.gguf").exists()
  convert(large, tmp_path / "c.gguf", form="gguf-f32")


def test_without_the_package_one_line_says_how_to_get_it(files, monkeypatch):
  monkeypatch.setitem(sys.modules, "gguf", None)
  gguf_file.package.cache_clear()
  try:
    assert "pip install 'lmjax[gguf]'" in refusal(files["gpt2"])
  finally:
    gguf_file.package.cache_clear()


class Run:
  """What a run folder gives to those who write it: a task, a tokenizer of lmjax's own, parameters."""

  def __init__(self, tokenizer, path):
    model = tiny_decoder(**(SHAPES["llama"] | dict(vocabulary=tokenizer.size, length=32)))
    self.task, self.tokenizer, self.path = CausalLM(model), tokenizer, path
    self.params = random_params(model)

  def parameters(self):
    return pytree.named_leaves({"model": self.params})


@pytest.mark.parametrize("tokenizer", [base.Bytes(), bpe.train_bpe(TEXTS, 300)], ids=["bytes", "bpe"])
def test_a_run_is_written_as_gguf(tokenizer, tmp_path):
  """Texts of a run start with the start token, so llama.cpp is told to put it there."""
  run = Run(tokenizer, tmp_path / "run")
  write.save(tmp_path / "a.gguf", run, "f32")
  metadata, again = GGUF(tmp_path / "a.gguf").metadata, storage.open(tmp_path / "a.gguf")
  assert metadata["tokenizer.ggml.add_bos_token"] is True and metadata["general.name"] == "run"
  assert metadata["tokenizer.ggml.bos_token_id"] == tokenizer.start
  assert metadata["tokenizer.ggml.eos_token_id"] == tokenizer.end
  wanted, found = run.parameters(), again.parameters()
  assert set(wanted) == set(found)
  for name in found:
    rows = tokenizer.size if "table" in name else None  # without the padding, which is random here
    np.testing.assert_array_equal(np.asarray(found[name])[:rows], wanted[name][:rows])
  for text in PROBES:
    assert list(tokenizer.encode(text)) == list(again.tokenizer.encode(text))
  with pytest.raises(UserError, match="it is a WordLevel model"):
    write.save(tmp_path / "b.gguf", Run(characters.Characters("abc"), tmp_path))
