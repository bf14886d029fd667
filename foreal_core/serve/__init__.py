"""The pair behind OpenAI's protocol. Needs the extra "serve".

    connection -> app (key, host, request id) -> endpoints -> asks -> decoder -> answers | chunks

`server.serve` runs it; `app.create_app` is the ASGI application by itself.
"""
