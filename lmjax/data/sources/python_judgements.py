"""Judged answers for debugging."""

from lmjax.data.sources.judgements import Judgement, judged
from lmjax.data.sources.python_preferences import PythonDocPreferences


class PythonDocJudgements(PythonDocPreferences):
  """Of the comparisons of `PythonDocPreferences`, the better answer is desirable."""

  def __getitem__(self, index: int) -> Judgement:  # type: ignore[override]  # judgements, not preferences
    return judged(super().__getitem__(index))
