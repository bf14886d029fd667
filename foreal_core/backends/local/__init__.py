"""Two transformers models in this process: passes, KV cache, CUDA graphs, CPU kernels."""
