"""lmjax's models in EleutherAI's lm-evaluation-harness, as its model `lmjax`.

lm-eval --model lmjax --model_args workdir=runs/gpt2 --tasks my_task --include_path my_tasks
python -m lmjax.inference.harness --model lmjax ...    for versions of it that do not read entry points

Nothing of lmjax imports this module: lm-evaluation-harness does, by its entry point in setup.py.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

from lmjax import storage
from lmjax.inference import scoring
from lmjax.parallel.sharding import use_layout
from lmjax.utils.errors import UserError, one_line

try:
  from lm_eval.__main__ import cli_evaluate
  from lm_eval.api.instance import Instance
  from lm_eval.api.model import LM
  from lm_eval.api.registry import model_registry
  from tqdm import tqdm
except ImportError as error:
  raise UserError("lmjax's model for lm-evaluation-harness needs it: pip install 'lmjax[eval]'") from error


class HarnessModel(LM):
  """A saved model of any format that scores tokens.

  workdir: a run folder, a GGUF file or a Hugging Face folder. step, best: the checkpoint of a run folder. dtype: of the
  computation, default the model's own. stride: of whole texts, the tokens that a window predicts; 0 is all. batch_size,
  max_batch_size, device: of other models; here, batches have few shapes, and JAX knows its devices.

  Raises:
    UserError: the model cannot be loaded.
  """

  def __init__(
    self, workdir: str, step: int | None = None, best: bool = False, dtype: str | None = None, stride: int = 0,
    batch_size: Any = None, max_batch_size: Any = None, device: Any = None,
  ):  # fmt: skip
    super().__init__()
    self.loaded, self.stride = storage.open(str(workdir), storage.BEST if best else step).load(dtype=dtype), int(stride)
    self.name = str(workdir)

  @property
  def tokenizer_name(self) -> str:
    """Under which the harness caches requests."""
    return self.name.replace("/", "__")

  def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
    """Returns log p(continuation | context) of each request, and whether greedy decoding gives the continuation."""
    scores = self._scores(requests, [[request.args[:2]] for request in requests], False, disable_tqdm)
    return self._cached("loglikelihood", requests, [(float(s.log_likelihoods[0]), bool(s.greedy[0])) for s in scores])

  def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
    """Returns log p of the whole text of each request."""
    scores = self._scores(requests, [[("", request.args[0])] for request in requests], True, disable_tqdm)
    return self._cached("loglikelihood_rolling", requests, [float(score.log_likelihoods[0]) for score in scores])

  def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
    """Returns the continuation of each request's context, up to one of its stop strings."""
    alike: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
      alike.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(number)
    answers = [""] * len(requests)
    with use_layout(self.loaded.layout), tqdm(total=len(requests), disable=disable_tqdm, desc="lmjax") as bar:
      for numbers in alike.values():
        prompts = [requests[i].args[0] for i in numbers]
        for i, text in scoring.answers(self.loaded, prompts, requests[numbers[0]].args[1]):
          bar.update(1)
          answers[numbers[i]] = text
    return self._cached("generate_until", requests, answers)

  def _scores(self, requests: list[Instance], pairs: list, rolling: bool, quiet: bool) -> list[scoring.Score]:
    scores: dict[int, scoring.Score] = {}
    with use_layout(self.loaded.layout), tqdm(total=len(requests), disable=quiet, desc="lmjax") as bar:
      for complete in scoring.scores(self.loaded, pairs, rolling, self.stride):
        scores |= {score.number: score for score in complete}
        bar.update(len(complete))
    return [scores[i] for i in range(len(requests))]

  def _cached(self, kind: str, requests: list[Instance], results: list) -> list:
    for request, result in zip(requests, results, strict=True):
      self.cache_hook.add_partial(kind, request.args, result)
    return results


def main(evaluate: Callable[[], None] = cli_evaluate) -> int:
  """Runs the command of lm-evaluation-harness, which then knows the model `lmjax`."""
  if "lmjax" not in model_registry:
    model_registry.register("lmjax", target=HarnessModel)
  try:
    evaluate()
  except UserError as error:
    print(f"lmjax: {one_line(str(error))}", file=sys.stderr)
    return 2
  return 0


if __name__ == "__main__":
  sys.exit(main())
