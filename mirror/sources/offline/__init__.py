"""Run folders of the W&B SDK as a source: the `.wandb` logs it writes on disk, read without any server.

`framing` takes a log apart into records, `rows` turns the frequent kinds of records (history, summary) into JSON,
`document` gathers the rest into a run, `console`, `manifest` and `artifacts` read what their names say; `folder`
finds logs and says whose they are; `source` is the source that a sync asks.
"""
