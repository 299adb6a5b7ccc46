"""The work of benchmarks/gpu.py in PyTorch and transformers, on a GPU: one JSON line a case.

    python benchmarks/gpu_peer.py gpt2 bert t5 decode

Training: bfloat16 autocast, float32 parameters, fused AdamW, torch.compile, attention by PyTorch's flash kernel where
it can be used (scaled_dot_product_attention). GPT-2's vocabulary is padded to 50,304, which is faster. decode:
`generate` in bfloat16 with a static cache, whose step transformers compiles.
"""

import argparse
import json
import statistics
import time

import torch
import transformers


def training(case: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor], int]:
  """Returns a model, its batch and the batch's tokens."""

  def ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 30_000, (rows, length), device="cuda")

  if case == "gpt2":
    config = transformers.GPT2Config(
      vocab_size=50_304, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False
    )
    batch = {"input_ids": (inputs := ids(32, 1024)), "labels": inputs}
    return transformers.GPT2LMHeadModel(config), batch, 32 * 1024
  if case == "bert":
    config = transformers.BertConfig(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    batch = {"input_ids": (inputs := ids(64, 512)), "labels": inputs}
    batch["next_sentence_label"] = torch.zeros(64, dtype=torch.long, device="cuda")
    return transformers.BertForPreTraining(config), batch, 64 * 512
  config = transformers.T5Config(dropout_rate=0.0, decoder_start_token_id=0, use_cache=False)
  batch = {"input_ids": ids(64, 512), "labels": ids(64, 128)}
  return transformers.T5ForConditionalGeneration(config), batch, 64 * (512 + 128)


def time_step(case: str, repeats: int) -> dict:
  model, batch, tokens = training(case)
  model = model.cuda()
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
  compiled, rounds = torch.compile(model), []
  for count in (3, *[repeats] * 3):
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
      with torch.autocast("cuda", torch.bfloat16):
        loss = compiled(**batch).loss
      loss.backward()
      torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
      optimizer.step()
      optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    rounds.append((time.perf_counter() - began) / count)
  seconds = statistics.median(rounds[1:])
  peak = torch.cuda.max_memory_allocated() / 1e9
  return {"peer": case, "seconds": seconds, "tokens_per_second": tokens / seconds, "gigabytes": peak}


def time_generation(batch: int) -> dict:
  model = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval().to("cuda", torch.bfloat16)
  prompt, times = torch.ones((batch, 32), dtype=torch.long, device="cuda"), []
  options = {"max_new_tokens": 128, "min_new_tokens": 128, "do_sample": False, "pad_token_id": 0}
  with torch.inference_mode():
    for _ in range(5):
      torch.cuda.synchronize()
      began = time.perf_counter()
      model.generate(prompt, attention_mask=torch.ones_like(prompt), cache_implementation="static", **options)
      torch.cuda.synchronize()
      times.append(time.perf_counter() - began)
  seconds = min(times[2:])
  return {"peer": "decode", "batch": batch, "seconds": seconds, "tokens_per_second": batch * 128 / seconds}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
  parser.add_argument("cases", nargs="+", choices=("gpt2", "bert", "t5", "decode"))
  parser.add_argument("--repeats", type=int, default=10, help="steps of a round")
  options = parser.parse_args()
  torch.manual_seed(0)
  for case in options.cases:
    for result in (
      [time_generation(batch) for batch in (1, 8, 64)] if case == "decode" else [time_step(case, options.repeats)]
    ):
      print(json.dumps({**result, "torch": torch.__version__, "transformers": transformers.__version__}), flush=True)


if __name__ == "__main__":
  main()
