"""SCAN, commands to actions: "Generalization without systematicity" (Lake and Baroni, 2018), arXiv:1711.00350.

    lmjax train --config configs/scan.py:files=tasks_train_simple.txt.gz --workdir runs/scan
    lmjax evaluate --workdir runs/scan --best --config.data.validation.files=tasks_test_simple.txt.gz \
      --config.data.validation.split=:

The simple split has 16,728 training commands; a random 5 % of them select the checkpoint. The model is an
encoder-decoder of 2 + 2 layers of width 128 with sinusoidal positions and no dropout, 5,000 steps of 16 packed rows.
Hardware: one CPU core. Time: 24 minutes. Expected: an exact match for all 4,182 test commands; see
benchmarks/README.md.
"""

from ml_collections import ConfigDict

from lmjax import config


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(argument, files="tasks_train_simple.txt.gz", debug=False)
  lines = dict(
    kind="lmjax.data.sources.pairs:PatternLines", files=choice.files, pattern="IN: (.*) OUT: (.*)", shuffle=True
  )
  settings = ConfigDict(
    dict(
      steps=5000,
      batch=16,
      data=dict(
        kind="lmjax.data.objectives.seq2seq:TextToText",
        length=64,
        target_length=128,
        tokenizer=dict(kind="lmjax.data.tokenizers.words:WordTokenizerConfig", split_by="spaces", size=100),
        source=dict(split=":95%", **lines),
        validation=dict(split="95%:", **lines),
      ),
      model=dict(
        kind="lmjax.models.encoder_decoder:EncoderDecoder",
        positions="sinusoidal",
        scale_scores=True,
        width=128,
        depth=2,
        heads=4,
        head_size=32,
        mlp=512,
      ),
      task=dict(kind="lmjax.tasks.seq2seq:Seq2Seq"),
      optim=dict(peak_lr=2e-3, warmup=200, final_lr_ratio=0.02, weight_decay=0.01),
      evals=dict(
        every=500,
        validation=dict(kind="lmjax.evals.validation_loss:ValidationLoss"),
        generation=dict(kind="lmjax.evals.generation:Generation", bleu=False),
      ),
      checkpoint=dict(every=500),
      log=dict(every=20),
    )
  )
  return config.debug(settings) if choice.debug else settings
