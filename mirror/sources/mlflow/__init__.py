"""MLflow as a source, by either of two roads that tell the same: `rest` asks a tracking server, `database` reads the
SQLite file of a backend store. Both hand out runs in the shape of MLflow's REST API and points by `points`; `document`
and `rows` turn these into a run and its history, `registry` model versions into artifacts; `source` is what a sync
asks.
"""
