-- The Parquet tables of a mirror, as they lie in ROOT/data/<table>/. This file is the reference of the data
-- model AND what the program reads: the Arrow schema of every segment is made from it, and a table without
-- files is an empty table of this shape. Users see the views of views.sql, which show live rows only.
--
-- rid   who: a number for (source, the server's storage id), given by the catalog and never used again.
-- gen   which version. A change of a run appends a new row to `runs` under the next gen; the highest gen of
--       a rid is the live one. That row names the live version of everything else the run has (config_gen,
--       summary_gen, metric_gen, history_gen, ...), so a new tag writes one row and nothing more.

create table runs (                    -- One row per version of a run: its attributes and its documents.
  rid               bigint not null,   -- who (see above)
  gen               bigint not null,   -- version of the run; the highest one is live
  source            varchar not null,  -- canonical host the run was mirrored from, e.g. api.wandb.ai
  entity            varchar not null,  -- user or team that owns the project
  project           varchar not null,  -- project name
  run_id            varchar not null,  -- run id (W&B's Run.name, e.g. 1a2b3c4d); unique in its project
  storage_id        varchar not null,  -- the server's storage id (W&B's Run.id)
  name              varchar,           -- display name; not unique
  state             varchar,           -- running, finished, failed, crashed, killed, pending, ... as served
  tags              varchar[],         -- tags in the server's order
  "group"           varchar,           -- group
  job_type          varchar,           -- job type
  notes             varchar,           -- notes (markdown)
  description       varchar,           -- description (old servers keep notes here)
  user_name         varchar,           -- full name of the user who made the run
  username          varchar,           -- user name of the user who made the run
  created_at        timestamptz,       -- when the server made the run
  heartbeat_at      timestamptz,       -- last contact of the run with the server
  updated_at        timestamptz,       -- last change of any kind, where the server tells
  commit            varchar,           -- git commit
  host              varchar,           -- host name the run ran on
  sweep             varchar,           -- sweep id, if the run belongs to one
  url               varchar,           -- page of the run at its source
  config            varchar,           -- config as JSON, `value` wrappers removed, internal keys left out
  summary           varchar,           -- summary as JSON; non-finite numbers as the strings W&B uses
  config_raw        varchar,           -- config verbatim as it came over the wire
  summary_raw       varchar,           -- summary verbatim as it came over the wire
  system_summary    varchar,           -- last value of every system metric, verbatim JSON
  history_keys      varchar,           -- the server's key catalogue (historyKeys), verbatim JSON
  metadata          varchar,           -- wandb-metadata.json: program, args, git, hardware; verbatim JSON
  exit_code         integer,           -- exit code, where known
  fork_run_id       varchar,           -- run id of the run this one was forked from
  fork_step         bigint,            -- last step it shares with that run
  origin            varchar,           -- JSON: stream -> source, for streams that another source gave; null: all its own
  merged_into       bigint,            -- rid of the run under which this copy of it is shown; null: shown itself
  config_gen        bigint not null,   -- live version of the run's rows in `config`
  summary_gen       bigint not null,   -- live version of the run's rows in `summary`
  metric_gen        bigint not null,   -- live version of the run's rows in `metric`
  history_gen       bigint not null,   -- live generation of the run's cells in `history`
  history_rows      bigint not null,   -- rows of history held in that generation
  history_total     bigint,            -- rows of history the source said it has (historyLineCount)
  history_last_step bigint,            -- highest _step held
  history_complete  boolean not null,  -- held = said, by a read that was never sampled
  history_lossless  boolean not null,  -- false if the road taken cannot tell null from absent or nested from dotted
  history_road      varchar,           -- road taken: rows, export, log, api (written from Python), serve
  history_note      varchar,           -- what a reader should know, e.g. why a history is incomplete
  system_gen        bigint not null,   -- live generation of the run's cells in `system_metrics`
  system_rows       bigint not null,   -- rows of system metrics held
  system_asked      bigint,            -- sample size asked for
  system_got        bigint,            -- rows the source gave for it
  system_total      bigint,            -- rows the source said it has (eventsLineCount)
  system_sampled    boolean not null,  -- true if the source thinned the rows out
  files_gen         bigint not null,   -- live generation of the run's rows in `files`
  files_count       bigint,            -- files in the manifest
  logs_gen          bigint not null,   -- live generation of the run's rows in `logs`
  logs_rows         bigint not null,   -- console lines held
  logs_total        bigint,            -- console lines the source said it has (logLineCount); not every source is right
  mirrored_at       timestamptz not null,  -- when this version was written
  deleted_at        timestamptz        -- when the run was found gone at its source (its rows are kept)
);

create table config (                  -- One row per node of a run's config document.
  rid   bigint not null,               -- who
  gen   bigint not null,               -- version; live is runs.config_gen
  path  varchar not null,              -- JSON pointer, e.g. /optimizer/lr; '' is the document itself
  type  varchar not null,              -- number, string, bool, null, nonfinite, object, array
  num   double,                        -- numbers as DOUBLE, true and false as 1 and 0, NaN and infinities
  str   varchar                        -- strings; exact JSON text of objects, arrays and of integers beyond 2^53
);

create table summary (                 -- One row per node of a run's summary document.
  rid   bigint not null,               -- who
  gen   bigint not null,               -- version; live is runs.summary_gen
  path  varchar not null,              -- JSON pointer, e.g. /val~1loss
  type  varchar not null,              -- number, string, bool, null, nonfinite, object, array
  num   double,                        -- numbers as DOUBLE, true and false as 1 and 0, NaN and infinities
  str   varchar                        -- strings; exact JSON text of objects, arrays and of integers beyond 2^53
);

create table metric (                  -- The key catalogue: one row per key of a run's history.
  rid         bigint not null,         -- who
  gen         bigint not null,         -- version; live is runs.metric_gen
  key         varchar not null,        -- key; nested dictionaries are stored by their leaves under dotted keys
  path_id     bigint not null,         -- which dots of the key are nesting: bit i is set if the i-th dot is; 0 = literal
  n           bigint not null,         -- cells
  n_number    bigint not null,         -- cells that are floats
  n_int       bigint not null,         -- cells that are integers
  n_bool      bigint not null,         -- cells that are booleans
  n_string    bigint not null,         -- cells that are strings
  n_null      bigint not null,         -- cells logged as null
  n_nonfinite bigint not null,         -- cells that are NaN or infinite
  n_json      bigint not null,         -- cells that are lists, dictionaries or media
  first_row   bigint not null,         -- row of the first cell
  last_row    bigint not null,         -- row of the last cell
  first_step  bigint,                  -- step of the first cell
  last_step   bigint,                  -- step of the last cell
  last_v      double,                  -- the last cell's number
  min_v       double,                  -- smallest finite number
  max_v       double                   -- largest finite number
);

create table history (                 -- Logged metrics: one row per logged cell, sorted by (key, rid, row).
  rid     bigint not null,             -- who
  gen     bigint not null,             -- generation of the cells; live is runs.history_gen
  key     varchar not null,            -- key; nested dictionaries are stored by their leaves under dotted keys
  path_id bigint not null,             -- which dots of the key are nesting: bit i is set if the i-th dot is; 0 = literal; negative: UTF-8 cannot spell the key, it is the inside of a JSON string
  row     bigint not null,             -- 0-based position of the logged row in its stream
  step    bigint,                      -- _step of the row
  ts      timestamptz,                 -- _timestamp of the row, to the microsecond, for queries
  kind    varchar not null,            -- number, int, bool, string, null, nonfinite, list, dict, media, empty
  v       double,                      -- what a DOUBLE holds exactly: number, int, bool as 0/1, NaN, infinities
  j       varchar                      -- everything else as exact JSON text
);

create table system_metrics (          -- System metrics (W&B's events stream), stored like history.
  rid     bigint not null,             -- who
  gen     bigint not null,             -- generation of the cells; live is runs.system_gen
  key     varchar not null,            -- key, e.g. system.gpu.0.gpu
  path_id bigint not null,             -- as in history
  row     bigint not null,             -- 0-based position of the sample in its stream
  step    bigint,                      -- _step of the row, if it has one
  ts      timestamptz,                 -- _timestamp of the row, to the microsecond
  kind    varchar not null,            -- as in history
  v       double,                      -- as in history
  j       varchar                      -- as in history
);

create table files (                   -- File manifests: what files a run has (bytes are fetched on request).
  rid        bigint not null,          -- who
  gen        bigint not null,          -- generation of the manifest; live is runs.files_gen
  name       varchar not null,         -- relative path as served
  size       bigint,                   -- bytes
  md5        varchar,                  -- base64 md5 as served
  mimetype   varchar,                  -- media type as served
  updated_at timestamptz,              -- last change at the source
  storage_id varchar,                  -- the server's id of the file
  url        varchar,                  -- address at the source (may need a key)
  sha256     varchar                   -- blob with the bytes, where they are held
);

create table logs (                    -- Console lines.
  rid   bigint not null,               -- who
  gen   bigint not null,               -- generation; live is runs.logs_gen
  line  bigint not null,               -- 0-based line number
  ts    timestamptz,                   -- time of the line, where known
  level varchar,                       -- stream or level, where known
  text  varchar not null               -- the line
);

create table sweeps (                  -- One row per version of a sweep.
  rid         bigint not null,         -- who: sweeps, artifacts and reports are numbered like runs, and with them
  gen         bigint not null,         -- version; the highest one is live
  source      varchar not null,        -- canonical host
  entity      varchar not null,        -- owner
  project     varchar not null,        -- project
  sweep_id    varchar not null,        -- sweep id (W&B's Sweep.name); unique in its project
  storage_id  varchar not null,        -- the server's storage id
  name        varchar,                 -- display name
  description varchar,                 -- description
  state       varchar,                 -- PENDING, RUNNING, PAUSED, FINISHED, STOPPED, CANCELED, ... as served
  config      varchar,                 -- sweep configuration as JSON
  config_raw  varchar,                 -- sweep configuration verbatim (YAML)
  method      varchar,                 -- grid, random, bayes
  metric      varchar,                 -- metric the sweep optimises
  goal        varchar,                 -- minimize, maximize
  best_loss   double,                  -- best value, as the server says
  run_count   bigint,                  -- runs, as the server says
  username    varchar,                 -- user name of the user who made it
  created_at  timestamptz,             -- when the server made it
  updated_at  timestamptz,             -- last change
  mirrored_at timestamptz not null,    -- when this version was written
  deleted_at  timestamptz              -- when it was found gone at its source
);

create table artifact_collections (    -- One row per version of an artifact collection (a sequence of versions).
  rid         bigint not null,         -- who
  gen         bigint not null,         -- version; the highest one is live
  source      varchar not null,        -- canonical host
  entity      varchar not null,        -- owner
  project     varchar not null,        -- project
  storage_id  varchar not null,        -- the server's storage id
  type        varchar not null,        -- artifact type, e.g. model
  collection  varchar not null,        -- name; unique in its project
  description varchar,                 -- description
  tags        varchar[],               -- tags of the collection
  created_at  timestamptz,             -- when the server made it
  updated_at  timestamptz,             -- last change
  mirrored_at timestamptz not null,    -- when this version was written
  deleted_at  timestamptz              -- when it was deleted, or found gone at its source
);

create table artifacts (               -- One row per version of what is known of an artifact version.
  rid            bigint not null,      -- who
  gen            bigint not null,      -- version of this row; the highest one is live
  source         varchar not null,     -- canonical host
  entity         varchar not null,     -- owner
  project        varchar not null,     -- project
  storage_id     varchar not null,     -- the server's storage id
  type           varchar not null,     -- artifact type, e.g. model
  collection     varchar not null,     -- collection (sequence) it was logged to
  version        integer,              -- number within the collection: 3 is `v3`
  state          varchar,              -- PENDING, COMMITTED, DELETED
  digest         varchar,              -- digest of the manifest's entries: W&B's manifest MD5, hex
  aliases        varchar[],            -- aliases, without the implicit `vN`
  tags           varchar[],            -- tags
  description    varchar,              -- description
  metadata       varchar,              -- metadata, JSON as it came over the wire
  size           bigint,               -- bytes of all entries
  file_count     bigint,               -- entries
  history_step   bigint,               -- step of the run that logged it, where told
  ttl_seconds    bigint,               -- time to live, where set
  commit_hash    varchar,              -- the server's commit hash
  manifest_sha256 varchar,             -- blob of the manifest's bytes, where held
  run_entity     varchar,              -- the run that logged it: entity
  run_project    varchar,              -- ... project
  run_id         varchar,              -- ... run id
  username       varchar,              -- user name of the user who made it
  created_at     timestamptz,          -- when the server made it
  updated_at     timestamptz,          -- last change
  entries_gen    bigint not null,      -- live version of its rows in `artifact_entries`
  uses_gen       bigint not null,      -- live version of its rows in `artifact_uses`
  mirrored_at    timestamptz not null, -- when this version was written
  deleted_at     timestamptz           -- when it was deleted, or found gone at its source
);

create table artifact_entries (        -- Manifests: one row per entry of an artifact version.
  rid      bigint not null,            -- which artifact
  gen      bigint not null,            -- version; live is artifacts.entries_gen
  path     varchar not null,           -- path inside the artifact, as logged
  digest   varchar,                    -- base64 md5 of a file; the ETag or the address of a reference
  size     bigint,                     -- bytes
  ref      varchar,                    -- address of a reference (s3://, https://, wandb-artifact://); null for files
  birth_id varchar,                    -- id of the artifact that first held the file
  extra    varchar,                    -- the manifest's `extra`, JSON
  sha256   varchar                     -- blob with the bytes, where they are held
);

create table tables (                  -- W&B tables whose bytes are held: what is in each, once for every run or artifact that has it.
  rid       bigint not null,           -- which run or artifact
  sha256    varchar not null,          -- blob with the table as JSON; its rows lie in ROOT/tables/<sha256>.parquet, too
  row_count bigint,                    -- rows; null if it could not be read
  fields    varchar,                   -- columns as JSON: a list of {"name": as logged, "column": name in SQL, "type": type in SQL, "exact": "json" where values are JSON text}
  note      varchar                    -- why it could not be read
);

create table artifact_uses (           -- Lineage: one row per run that used an artifact version.
  rid     bigint not null,             -- which artifact
  gen     bigint not null,             -- version; live is artifacts.uses_gen
  entity  varchar not null,            -- entity of the run
  project varchar not null,            -- project of the run
  run_id  varchar not null,            -- run id
  used_as varchar                      -- name the run used it under
);

create table reports (                 -- One row per version of a report.
  rid         bigint not null,         -- who
  gen         bigint not null,         -- version; the highest one is live
  source      varchar not null,        -- canonical host
  entity      varchar not null,        -- owner
  project     varchar not null,        -- project
  storage_id  varchar not null,        -- the server's storage id
  name        varchar not null,        -- the server's name of the view
  type        varchar not null,        -- runs, runs/draft, ...
  title       varchar,                 -- display name
  description varchar,                 -- description
  spec        varchar,                 -- content, JSON as it came over the wire
  username    varchar,                 -- user name of the author
  created_at  timestamptz,             -- when the server made it
  updated_at  timestamptz,             -- last change
  mirrored_at timestamptz not null,    -- when this version was written
  deleted_at  timestamptz              -- when it was deleted, or found gone at its source
);

create table projects (                -- One row per version of a project.
  source      varchar not null,        -- canonical host
  entity      varchar not null,        -- owner
  project     varchar not null,        -- name
  gen         bigint not null,         -- version; the highest one is live
  storage_id  varchar,                 -- the server's id
  description varchar,                 -- description
  created_at  timestamptz,             -- when the server made it
  run_count   bigint,                  -- runs the server says it has
  mirrored_at timestamptz not null,    -- when this version was written
  deleted_at  timestamptz              -- when the project was found gone at its source (its runs are kept)
);

create table sync_log (                -- One row per sync that changed something or failed, oldest first.
  source        varchar not null,      -- canonical host
  entity        varchar not null,      -- owner
  project       varchar not null,      -- project
  started_at    timestamptz not null,  -- begin
  finished_at   timestamptz not null,  -- end
  outcome       varchar not null,      -- ok, partial, unreachable, interrupted
  runs_listed   bigint not null,       -- runs the source listed
  runs_new      bigint not null,       -- runs seen for the first time
  runs_changed  bigint not null,       -- runs whose documents or rows changed
  runs_gone     bigint not null,       -- runs found deleted at the source
  runs_failed   bigint not null,       -- runs put into quarantine
  items_changed bigint,                -- sweeps, artifacts and reports that are new, changed or gone
  rows          bigint not null,       -- rows written
  requests      bigint not null,       -- requests asked of the source
  bytes         bigint not null,       -- bytes received
  message       varchar                -- what to know about it
);

create table changes (                 -- What syncs saw change at the source: one row per thing and field, oldest first.
  seen_at timestamptz not null,        -- when the sync saw it
  source  varchar not null,            -- canonical host
  entity  varchar not null,            -- owner, after the change
  project varchar not null,            -- project, after the change
  kind    varchar not null,            -- run, sweep, artifact, collection, report, project
  rid     bigint,                      -- who; null for projects
  name    varchar not null,            -- run id, sweep id, name of an artifact version, ...
  change  varchar not null,            -- new, edited, resumed, rewound, moved, deleted, returned, ...
  field   varchar,                     -- what was edited: name, tags, /lr in config, ...
  before  varchar,                     -- value before, shortened
  after   varchar                      -- value after, shortened
);

create table quarantine (              -- Runs that could not be fetched; the latest row of a run and stage counts.
  rid       bigint not null,           -- who
  source    varchar not null,          -- canonical host
  entity    varchar not null,          -- owner
  project   varchar not null,          -- project
  run_id    varchar not null,          -- run id
  stage     varchar not null,          -- documents, history, system, files
  error     varchar not null,          -- what went wrong
  attempts  bigint not null,           -- failed attempts so far; 0 = mended
  next_try  timestamptz,               -- not asked again before
  failed_at timestamptz not null       -- when this was noted
);
