"""Lottery tickets of LeNet-300-100 on handwritten digits (Frankle and Carbin, 2019), arXiv:1803.03635, section 2.

    lmjax lottery --config benchmarks/lottery/lenet.py:folder=img_mnist --workdir runs/lenet --rounds 15 \
      --rate hidden=0.2 --rate output=0.1 --seeds 0:5

folder: t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz. The network has 266,610 parameters. Of the 10,000 test
images, in a random order that is always the same, 8,000 are trained on and 2,000 are tested on; the paper has 55,000
and 10,000. Adam with a learning rate of 0.0012, batches of 60 and new weights by Glorot's normal distribution are the
paper's; 800 steps are not its 50,000. debug: 40 steps. Hardware: two CPU cores, beside other work. Time and result of 5
seeds: 45 minutes; the ticket beats both controls, see benchmarks/notes/compression.md.
"""

import dataclasses
import functools
import gzip
import pathlib
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from lmjax import config
from lmjax.data.batch import Batch
from lmjax.data.documents import Documents
from lmjax.data.packer import Document, Packer, Position, ReadDocument, Row
from lmjax.data.pipeline import Reader
from lmjax.data.sources.base import BadRecord
from lmjax.data.sources.splits import split_range
from lmjax.data.tokenizers.base import Tokenizer
from lmjax.layers.einsum import Einsum
from lmjax.models.base import Hidden
from lmjax.tasks.base import Base, FrozenModel, Outputs, Spec
from lmjax.utils.errors import UserError
from lmjax.utils.metrics import Mean
from lmjax.utils.pytree import Tree

PIXELS = 28 * 28


@dataclasses.dataclass(frozen=True)
class Config:
  """The sizes of the layers; vocabulary and length, brightnesses and pixels, come from the data."""

  vocabulary: int
  length: int
  hidden: tuple[int, ...] = (300, 100)
  width: int = 10  # of its vectors: the scores of the digits
  dtype: str = "float32"


class LeNet(nn.Module):
  """Layers with relu, and one that scores the classes. Parameters: `hidden_0`, `hidden_1`, `output`."""

  config: Config
  kind = "encoder"
  causal = False

  @nn.compact
  def __call__(self, batch: Mapping[str, jax.Array], taps: tuple[str, ...] = ()) -> Hidden:
    """Returns the scores of the classes as vectors [B, 1, classes]."""
    x_BxD = batch["inputs"].astype(self.config.dtype) / 255
    widths = (*self.config.hidden, self.config.width)
    for i, width in enumerate(widths):
      sizes = {"D": x_BxD.shape[-1], "E": width}
      deviation = (2 / (sizes["D"] + width)) ** 0.5  # Glorot and Bengio, 2010
      last = i == len(widths) - 1
      x_BxD = Einsum("BD,DE->BE", sizes, deviation=deviation, name="output" if last else f"hidden_{i}")(x_BxD)
      x_BxD = x_BxD if last else jax.nn.relu(x_BxD)
    return Hidden(x_BxD[:, None])


@dataclasses.dataclass(frozen=True)
class Digits(Base):
  """-log p(digit | image), the mean over images; `error` is the fraction of images that are taken for another digit."""

  def spec(self, batch: int, length: int) -> Spec:
    spec = {"inputs": jax.ShapeDtypeStruct((batch, self.model.config.length), jnp.int32)}
    spec |= {"labels": jax.ShapeDtypeStruct((batch,), jnp.int32)}
    return spec | {"row_weights": jax.ShapeDtypeStruct((batch,), jnp.float32)}

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    return {"loss": jnp.sum(batch["row_weights"])}

  def forward(self, params: Tree, batch: Batch, *, rng: jax.Array | None = None, taps: tuple[str, ...] = ()) -> Outputs:
    """Returns the scores [B, classes]."""
    vectors = self.hidden(params, batch).tokens
    return Outputs(vectors, vectors[:, 0], {})

  def loss(
    self, params: Tree, frozen: Mapping[str, FrozenModel], carry: Tree, batch: Batch, *, rng: jax.Array | None = None
  ) -> tuple[dict[str, Mean], Tree]:
    scores, weights = self.forward(params, batch).logits, batch["row_weights"]
    nll = -jnp.take_along_axis(jax.nn.log_softmax(scores), batch["labels"][:, None], axis=1)[:, 0]
    wrong = (jnp.argmax(scores, axis=1) != batch["labels"]).astype(jnp.float32)
    means = {"loss": nll, "error": wrong}
    return {name: Mean(jnp.sum(weights * values), jnp.sum(weights)) for name, values in means.items()}, carry


@functools.cache
def read(folder: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns the images [N, pixels] and their digits [N], in a random order that is always the same."""
  arrays = []
  for name, header in (("t10k-images-idx3-ubyte.gz", 16), ("t10k-labels-idx1-ubyte.gz", 8)):
    file = pathlib.Path(folder).expanduser() / name
    try:
      arrays.append(np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=header))
    except (OSError, EOFError, ValueError) as error:
      raise UserError(f"data: {file} cannot be read: {error}") from error
  images, labels = arrays[0].reshape(-1, PIXELS), arrays[1]
  order = np.random.default_rng(0).permutation(len(labels))  # the first half of the files is easier than the second
  return images[order], labels[order]


@dataclasses.dataclass(frozen=True)
class Images:
  """Images with their digits."""

  folder: str
  split: str = ""

  @functools.cached_property
  def _indices(self) -> range:
    return split_range(len(read(self.folder)[1]), self.split)

  def __len__(self) -> int:
    return len(self._indices)

  def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
    images, labels = read(self.folder)
    return images[self._indices[index]].astype(np.int32), int(labels[self._indices[index]])


class _Encoded(Documents):
  """A document is the pixels of an image and its digit, as two arrays."""

  def encode(self, document) -> Document | BadRecord:
    return [document[0], np.asarray(document[1], np.int32)], 0


class _OneEach:
  """A row for each image."""

  length = PIXELS

  def row(self, read: ReadDocument, position: Position) -> tuple[Row, Position]:
    try:
      (pixels, label), _ = read(position[0])
      weight = np.float32(1)
    except IndexError:
      pixels, label, weight = np.zeros(PIXELS, np.int32), np.int32(0), np.float32(0)
    row = {"inputs": pixels, "labels": label, "row_weights": weight, "weights": weight, "bytes": np.int64(0)}
    return row, (position[0] + 1, 0)


@dataclasses.dataclass(frozen=True)
class ImageRows(Reader):
  """Images with their digits, each as often as the others."""

  def documents(self, source, tokenizer: Tokenizer, seed: int | None, streams: int) -> Documents:
    return _Encoded(source, tokenizer, seed, streams)

  def packers(self, documents: Documents, streams: Iterable[int]) -> dict[int, Packer]:
    return {stream: _OneEach() for stream in streams}


def get_config(argument: str = "") -> ConfigDict:
  choice = config.variant(argument, folder="../shared/data/img_mnist", debug=False)
  images = dict(kind="benchmarks.lottery.lenet:Images", folder=choice.folder)
  steps = 40 if choice.debug else 800
  return ConfigDict(
    dict(
      steps=steps,
      batch=60,
      data=dict(
        kind="benchmarks.lottery.lenet:ImageRows",
        length=PIXELS,
        streams=1,
        tokenizer=dict(algorithm="bytes"),  # for brightnesses from 0 to 255
        source=dict(split=":80%", **images),
        validation=dict(split="80%:", **images),
      ),
      model=dict(kind="benchmarks.lottery.lenet:LeNet"),
      task=dict(kind="benchmarks.lottery.lenet:Digits"),
      optim=dict(peak_lr=1.2e-3, schedule="constant", b2=0.999, weight_decay=0.0, clip=0.0),
      evals=dict(every=steps // 8, validation=dict(kind="lmjax.evals.validation_loss:ValidationLoss")),
      checkpoint=dict(every=0),
      log=dict(every=steps // 8, tensorboard=False),
    )
  )
