"""Text about images: a decoder that reads patches of an image before a prompt, from scratch or from a saved one.

    lmjax train --config configs/images.py:files=captions.jsonl --workdir runs/captions
    lmjax train --config configs/images.py:digits=img_mnist --workdir runs/digits
    lmjax generate --workdir runs/captions --image picture.png --prompt "describe" --temperature 0

Patches as the input of a transformer: Dosovitskiy et al., 2021, arXiv:2010.11929; as a prefix of a decoder: Liu et al.,
2023, arXiv:2304.08485. files: JSON lines with `image` (a path from their folder), `text` and perhaps `prompt`. digits:
a folder with MNIST's test images in the IDX format instead, of which the last fifth validates. vision: layers of a
vision transformer in front; by default the decoder reads the projected patches. blind: the same without the images, for
comparison. Hardware: one accelerator for files; two CPU cores for digits. Time and expected: see benchmarks/README.md.
"""

from ml_collections import ConfigDict

from lmjax import config


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(argument, files="captions.jsonl", digits="", vision="0", blind=False, debug=False)
  if choice.digits:
    names = {key: f"{choice.digits}/t10k-{key}-idx{n}-ubyte.gz" for key, n in (("images", 3), ("labels", 1))}
    data = dict(kind="lmjax.data.sources.images:IdxDigits", **names)
    source, validation = data | dict(split=":80%"), data | dict(split="80%:")
    ids, length, steps, model = 300, 64, 2000, dict(image=28, patch=4, width=128, depth=4, heads=4, mlp=512)
  else:
    data = dict(kind="lmjax.data.sources.images:JsonImages", files=choice.files, shuffle=True)
    source, validation = data | dict(split=":95%"), data | dict(split="95%:")
    ids, length, steps, model = 8000, 320, 20_000, dict(image=224, patch=16, width=512, depth=8, heads=8, mlp=2048)
  settings = ConfigDict(
    dict(
      steps=steps,
      batch=64,
      data=dict(
        kind="lmjax.data.objectives.images:ImageText",
        length=length,
        blind=choice.blind,
        tokenizer=dict(algorithm="bpe", size=ids),
        source=source,
        validation=validation,
      ),
      model=dict(kind="lmjax.models.image_decoder:ImageDecoder", head_size=0, vision_depth=int(choice.vision), **model),
      task=dict(kind="lmjax.tasks.image_lm:ImageLM"),
      optim=dict(peak_lr=1e-3, warmup=200, final_lr_ratio=0.02, weight_decay=0.05),
      evals=dict(
        every=500,
        validation=dict(kind="lmjax.evals.validation_loss:ValidationLoss"),
        answers=dict(kind="lmjax.evals.image_answers:ImageAnswers", pictures=0 if choice.digits else 400),
      ),
      checkpoint=dict(every=500),
      log=dict(every=50),
    )
  )
  return config.debug(settings) if choice.debug else settings
