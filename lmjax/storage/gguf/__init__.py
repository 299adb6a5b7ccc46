"""GGUF, the file format of llama.cpp: one file with weights, config, tokenizer and chat template."""
