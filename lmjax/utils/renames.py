"""What older versions called things: one table for config files, run folders and checkpoints that they wrote."""

# Dotted names, `package.module:Name`; a module alone stands for every name in it.
MOVED: dict[str, str] = {
  "lmjax.data.sources": "lmjax.data.sources.text",
  "lmjax.data.tables": "lmjax.data.sources.records",
  "lmjax.data.text_pairs": "lmjax.data.sources.pairs",
  "lmjax.data.corpus": "lmjax.data.sources.python_docs",
  "lmjax.data.prepared": "lmjax.data.sources.shards",
  "lmjax.data.pairs": "lmjax.data.objectives.masked_lm",
  "lmjax.data.seq2seq": "lmjax.data.objectives.seq2seq",
  "lmjax.data.denoising": "lmjax.data.objectives.denoising",
  "lmjax.data.both_ways": "lmjax.data.objectives.bidirectional",
  "lmjax.data.words": "lmjax.data.tokenizers.words",
  "lmjax.data.sentinels": "lmjax.data.tokenizers.sentinels",
  "lmjax.data.tokenizers": "lmjax.data.tokenizers.registry",
  "lmjax.models.encdec": "lmjax.models.encoder_decoder",
  "lmjax.tasks.bilm": "lmjax.tasks.bidirectional_lm",
  "lmjax.evals.commonest": "lmjax.evals.baselines.unigram",
  "lmjax.evals.held_out": "lmjax.evals.validation_loss",
  "lmjax.evals.ngrams": "lmjax.evals.baselines.ngrams",
  "lmjax.evals.kneser_ney": "lmjax.evals.baselines.kneser_ney",
  "lmjax.data.corpus:gutenberg_body": "lmjax.data.sources.text:gutenberg_body",
  "lmjax.data.pipeline:Text": "lmjax.data.objectives.causal:Text",
  "lmjax.data.sources:JsonLines": "lmjax.data.sources.records:JsonLines",
}


def dotted(name: str) -> str:
  """Returns what a dotted name `package.module:Name` is called now."""
  module, _, attribute = name.partition(":")
  return MOVED.get(name) or f"{MOVED.get(module, module)}:{attribute}"
