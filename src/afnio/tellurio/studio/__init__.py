"""The studio: a project's runs as pages on 127.0.0.1, and a run as one file.

Reads only what the store holds. Starlette and uvicorn (`afnio[studio]`) are imported when it is started.
"""
