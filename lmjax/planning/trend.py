"""The sizes of published language models over time, their training compute, and what is known of their energy.

    training FLOPs = 6 N D: N parameters that a token uses, D training tokens   (Kaplan et al., 2020, arXiv:2001.08361)

Dates, parameters and hardware are those of "Notable AI Models" (Epoch AI, 24 February 2025, CC BY 4.0, epoch.ai/data);
`sources` says where energy and emissions are from. What was not published, or not found, is None.
"""

import datetime
from typing import Any, NamedTuple

from etils import epath

from lmjax.layers.positions import Rotary
from lmjax.models import decoder, encoder, encoder_decoder
from lmjax.parallel.sharding import count_parameters
from lmjax.planning.energy import KILOGRAMS_PER_POUND, STRUBELL
from lmjax.state import named_parameters
from lmjax.tasks.base import Task
from lmjax.tasks.causal_lm import CausalLM
from lmjax.tasks.masked_lm import MaskedLM
from lmjax.tasks.seq2seq import Seq2Seq
from lmjax.utils import files

# Distinguishable with every kind of colour vision (Okabe and Ito), and without colours by their markers.
KINDS = {
  "recurrent": ("#E69F00", "^"), "encoder": ("#009E73", "s"), "encoder-decoder": ("#CC79A7", "D"),
  "decoder": ("#0072B2", "o"), "mixture of experts": ("#D55E00", "v"),
}  # fmt: skip
# Labels that would overlap others above their points.
BELOW = {"ELMo", "Megatron-LM", "Jurassic-1", "LaMDA", "OPT", "Llama 2 7B", "LLaMA", "Chinchilla"}
EPOCH = "Notable AI Models, Epoch AI, 2025-02-24, CC BY 4.0"
CARD = "the model card of Llama 2: GPU hours x 400 W, and tonnes"
PATTERSON = "Patterson et al. (2021), arXiv:2104.10350, as others quote it"
FAMILIES = {"decoder": (CausalLM, decoder.Decoder, decoder), "encoder": (MaskedLM, encoder.Encoder, encoder)}
FAMILIES["encoder-decoder"] = (Seq2Seq, encoder_decoder.EncoderDecoder, encoder_decoder)


class Published(NamedTuple):
  """A published model.

  parameters; active: those that a token uses, where that is a part of them. tokens: of its training. mwh, tonnes:
  energy and CO2e of its training. preset: that of lmjax with its shape.
  """

  name: str
  date: str
  kind: str
  paper: str
  parameters: float
  tokens: float | None = None
  hardware: str = ""
  mwh: float | None = None
  tonnes: float | None = None
  sources: str = EPOCH
  preset: str = ""
  active: float | None = None

  @property
  def flops(self) -> float | None:
    """Training compute by 6ND; None where the tokens are not known."""
    return None if self.tokens is None else 6 * (self.active or self.parameters) * self.tokens


def _strubell(model: str, hardware: str) -> dict[str, Any]:
  """Returns the energy and emissions in the table of Strubell et al. (2019)."""
  kwh, pounds = next(row[4:6] for row in STRUBELL if row[:2] == (model, hardware))
  source = "Strubell et al. (2019), arXiv:1906.02243"
  return {"mwh": kwh / 1e3, "tonnes": pounds * KILOGRAMS_PER_POUND / 1e3, "sources": source}


MODELS = (
  Published("GNMT", "2016-09-26", "recurrent", "1609.08144", 278e6, None, "K80"),
  Published("Transformer big", "2017-06-12", "encoder-decoder", "1706.03762", 213e6, None, "8 P100",
            preset="transformer-big", **_strubell("Transformer big", "8 P100")),
  Published("ELMo", "2018-02-01", "recurrent", "1802.05365", 94e6, None, "", **_strubell("ELMo", "3 GTX 1080 Ti")),
  Published("GPT", "2018-06-01", "decoder", "", 117e6, None, "8 Quadro P600", preset="gpt"),
  Published("BERT large", "2018-10-11", "encoder", "1810.04805", 340e6, None, "64 TPUv2", preset="bert-large"),
  Published("GPT-2", "2019-02-14", "decoder", "", 1.5e9, preset="gpt2-1558m"),
  Published("RoBERTa large", "2019-07-01", "encoder", "1907.11692", 355e6, None, "1,024 V100"),
  Published("Megatron-LM", "2019-09-17", "decoder", "1909.08053", 8.3e9, None, "512 V100"),
  Published("T5", "2019-10-23", "encoder-decoder", "1910.10683", 11e9, None, "512 TPUv3", preset="t5-11b"),
  Published("Meena", "2020-01-28", "encoder-decoder", "2001.09977", 2.6e9, 10e12, "1,024 TPUv3"),
  Published("Turing-NLG", "2020-02-13", "decoder", "", 17e9, None, "256 V100"),
  Published("GPT-3", "2020-05-28", "decoder", "2005.14165", 175e9, 300e9, "10,000 V100", 1287, 552, PATTERSON,
            "gpt3-175b"),
  Published("Switch", "2021-01-11", "mixture of experts", "2101.03961", 1571e9, None, "1,024 TPUv3"),
  Published("Jurassic-1", "2021-08-11", "decoder", "", 178e9, 300e9),
  Published("MT-NLG", "2021-10-11", "decoder", "2201.11990", 530e9, 270e9, "4,480 A100"),
  Published("Gopher", "2021-12-08", "decoder", "2112.11446", 280e9, 300e9, "4,096 TPUv3", None, 380,
            "the paper, as Epoch AI quotes it"),
  Published("GLaM", "2021-12-13", "mixture of experts", "2112.06905", 1200e9, 600e9, "1,024 TPUv4", 456, 40.2,
            "the paper, as Epoch AI quotes it", active=96.6e9),
  Published("LaMDA", "2022-02-10", "decoder", "2201.08239", 137e9, None, "1,024 TPUv3"),
  Published("GPT-NeoX", "2022-02-09", "decoder", "2204.06745", 20e9, None, "96 A100"),
  Published("Chinchilla", "2022-03-29", "decoder", "2203.15556", 70e9, 1.4e12, "TPUv3, TPUv4"),
  Published("PaLM", "2022-04-04", "decoder", "2204.02311", 540.35e9, 780e9, "6,144 TPUv4"),
  Published("OPT", "2022-05-02", "decoder", "2205.01068", 175e9, 300e9, "1,024 A100"),
  Published("BLOOM", "2022-07-11", "decoder", "2211.05100", 176.25e9, 366e9, "384 A100", None, 24.7,
            "Luccioni et al. (2022), arXiv:2211.02001: dynamic power alone"),
  Published("LLaMA", "2023-02-24", "decoder", "2302.13971", 65.2e9, 1.4e12, "2,048 A100"),
  Published("Llama 2 7B", "2023-07-18", "decoder", "2307.09288", 7e9, 2e12, "A100", 184_320 * 400 / 1e6, 31.22,
            CARD, "llama2-7b"),
  Published("Llama 2 70B", "2023-07-18", "decoder", "2307.09288", 70e9, 2e12, "A100", 1_720_320 * 400 / 1e6, 291.42,
            CARD),
  Published("Falcon", "2023-09-06", "decoder", "2311.16867", 180e9, 3.5e12, "4,096 A100"),
  Published("Llama 3 8B", "2024-04-18", "decoder", "2407.21783", 8e9, 15e12, "H100", preset="llama3-8b"),
  Published("Llama 3 70B", "2024-04-18", "decoder", "2407.21783", 70e9, 15e12, "H100"),
  Published("Llama 3.1", "2024-07-23", "decoder", "2407.21783", 405e9, 15.6e12, "16,384 H100"),
  Published("DeepSeek-V3", "2024-12-24", "mixture of experts", "2412.19437", 671e9, 14.8e12, "2,048 H800",
            active=37e9),
)  # fmt: skip


def count_preset(kind: str, preset: str) -> int:
  """Returns the exact number of parameters of a preset, without padding; nothing is allocated."""
  task_type, model_type, module = FAMILIES[kind]
  settings = dict(module.PRESETS[preset])
  if settings.get("rotary"):
    settings["rotary"] = Rotary(**settings["rotary"])
  task: Task = task_type(model_type(module.Config(**settings)))
  return count_parameters(named_parameters(task, 1, 8))


def trend_rows() -> list[dict[str, Any]]:
  """Returns the published models by date, with the count of lmjax's preset and the training FLOPs."""
  rows = []
  for model in sorted(MODELS, key=lambda model: model.date):
    count = count_preset(model.kind, model.preset) if model.preset else None
    rows.append(model._asdict() | {"preset_parameters": count, "flops": model.flops})
  return rows


def draw_trend(rows: list[dict[str, Any]], path: epath.PathLike) -> None:
  """Writes a PNG file: parameters and training compute over time; rings are lmjax's presets with their exact counts."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(9, 9), layout="constrained")
  axes = figure.subplots(2, 1, sharex=True)
  for at, key, label in ((axes[0], "parameters", "parameters"), (axes[1], "flops", "training FLOPs, 6ND")):
    for kind, (colour, marker) in KINDS.items():
      own = [row for row in rows if row["kind"] == kind and row[key]]
      dates = [datetime.date.fromisoformat(row["date"]) for row in own]
      at.plot(dates, [row[key] for row in own], marker, color=colour, label=kind, markersize=6)
      for row, date in zip(own, dates, strict=True):
        place = (5, -11) if row["name"] in BELOW else (5, 4)
        at.annotate(row["name"], (date, row[key]), xytext=place, textcoords="offset points", fontsize=7)
    at.set(yscale="log", ylabel=label)
    at.margins(x=0.08)
    at.grid(alpha=0.3)
  presets = [row for row in rows if row["preset_parameters"]]
  dates, counts = (
    [datetime.date.fromisoformat(row["date"]) for row in presets],
    [row["preset_parameters"] for row in presets],
  )
  axes[0].plot(dates, counts, "o", color="black", fillstyle="none", markersize=12, label="a preset of lmjax")
  axes[0].legend(frameon=False, fontsize=8, loc="upper left")
  with files.replacing(path) as file:
    figure.savefig(file, format="png", dpi=110)
