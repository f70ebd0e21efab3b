"""Language models on the host: llama decoder, tokenizers, checkpoints and the float reference."""
