"""The studio: pages of recorded runs on 127.0.0.1, and the report of one run as a file.

The modules, in the order of a request: `_app` (addresses, access, live updates, the server), then a page each:
`_runs` (all runs, one, several compared), `_step` (a step, and the candidates), `_sample` (samples and calls);
`_report` joins them into one file. A page's function asks a `StoreReader` and returns a dict, and `_text` renders it
with a template. Starlette and uvicorn (`afnio[studio]`) are only imported when the studio is started.
"""
