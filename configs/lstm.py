"""LSTM language models: "Recurrent neural network regularization" (Zaremba et al., 2014), arXiv:1409.2329.

    lmjax train --config configs/lstm.py:size=small,train=ptb.train.txt.gz,validation=ptb.valid.txt --workdir runs/lstm

train, validation: tokenized text with one sentence per line, such as Mikolov's version of the Penn Treebank; every word
is a token. size: small medium large, 2 layers of 256, 650 and 1,500 cells. Dropout is variational (Gal and Ghahramani,
2016, arXiv:1512.05287). 8,700 steps of 20 rows of 32 words, 6 epochs of the Penn Treebank; the state of each row is
carried to the next batch. small: Hardware: one CPU core. Time: 31 minutes. Expected: validation perplexity 101.5, and
146.6 after 2 epochs (10 minutes), below the 151.3 of a Kneser-Ney 5-gram, which the run computes; see
benchmarks/README.md. medium, large: not measured.
"""

from ml_collections import ConfigDict

from lmjax import config
from lmjax.models.recurrent import PRESETS


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(
    argument, size=("small", "medium", "large"), train="ptb.train.txt.gz", validation="ptb.valid.txt", debug=False
  )
  text = dict(kind="lmjax.data.sources.text:TextFiles", chunk_bytes=65_536)
  settings = ConfigDict(
    dict(
      steps=8700,
      batch=20,
      data=dict(
        kind="lmjax.data.objectives.causal:Text",
        length=32,
        tokenizer=dict(kind="lmjax.data.tokenizers.words:WordTokenizerConfig", split_by="spaces", size=50_000),
        source=dict(files=choice.train, **text),
        validation=dict(files=choice.validation, document="file", **text),
      ),
      model=dict(kind="lmjax.models.recurrent:Recurrent", dropout=0.1, **PRESETS[f"lstm-{choice.size}"]),
      task=dict(kind="lmjax.tasks.continued_lm:ContinuedLM"),
      # Plain SGD, as in the paper: its perplexity after one epoch was that of Adam (3e-3) after two.
      optim=dict(
        optimizer="sgd", momentum=0.0, peak_lr=20.0, warmup=200, final_lr_ratio=0.02, weight_decay=0.0, clip=0.25
      ),
      evals=dict(
        every=1450,
        validation=dict(kind="lmjax.evals.perplexity:Perplexity"),
        baseline=dict(kind="lmjax.evals.baselines.kneser_ney:KneserNey"),
      ),
      checkpoint=dict(every=1450),
    )
  )
  return config.debug(settings) if choice.debug else settings
