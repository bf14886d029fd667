"""Two inference servers as one backend: token ids in, token ids out, over HTTP.

backend.py   ServersBackend: spans, retries, checks, the servers' own counts
client.py    one server: connections, time-outs, what its answers mean
dialects.py  what all dialects share; vllm.py, sglang.py, llama.py have one each
options.py   where a server is and how to talk to it
facts.py     which dialect, model and limits it has, by asking it
"""
