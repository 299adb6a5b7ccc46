"""Scenes drawn at run time, with captions and questions: a decoder that reads patches of an image, from scratch.

    lmjax train --config configs/scenes.py --workdir runs/scenes
    lmjax train --config configs/scenes.py:blind --workdir runs/blind

One to three shapes of five colours and two sizes on a grid: what is there, how many, where, and which is left of or
above which. In training and in `seen`, a colour and a shape occur together only in three quarters of the combinations;
in `unseen`, only in the others. vision: layers of a vision transformer in front; by default the decoder reads the
projected patches. blind: the same without the images, for comparison. Hardware: two CPU cores. Time and expected: see
benchmarks/README.md.
"""

from ml_collections import ConfigDict

from lmjax import config


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(argument, vision="0", blind=False, debug=False)
  scenes = dict(kind="lmjax.data.sources.scenes:Scenes")
  seen, unseen = scenes | dict(scenes=400, part="seen"), scenes | dict(scenes=400, part="held_out")
  answers = dict(kind="lmjax.evals.image_answers:ImageAnswers", max_new_tokens=24)
  settings = ConfigDict(
    dict(
      steps=6000,
      batch=64,
      data=dict(
        kind="lmjax.data.objectives.images:ImageText",
        length=64,
        blind=choice.blind,
        tokenizer=dict(algorithm="bpe", size=400),
        source=scenes | dict(scenes=60_000),
        validation=seen,
      ),
      model=dict(
        kind="lmjax.models.image_decoder:ImageDecoder", image=48, patch=8, vision_depth=int(choice.vision),
        width=128, depth=4, heads=4, head_size=32, mlp=512,
      ),
      task=dict(kind="lmjax.tasks.image_lm:ImageLM"),
      optim=dict(peak_lr=1e-3, warmup=200, final_lr_ratio=0.02, weight_decay=0.05),
      evals=dict(
        every=500,
        validation=dict(kind="lmjax.evals.validation_loss:ValidationLoss"),
        seen=answers,
        unseen=answers | dict(source=unseen),
      ),
      checkpoint=dict(every=500),
      log=dict(every=50),
    )
  )  # fmt: skip
  return config.debug(settings) if choice.debug else settings
