"""Ids and text: tokenizers of a pair, streamed decoding, stop strings, sentences, thinking. No
torch."""
