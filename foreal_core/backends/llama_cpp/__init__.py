"""GGUF files in this process, run by llama.cpp through the package llama-cpp-python."""
