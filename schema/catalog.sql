-- ROOT/catalog.sqlite: what only writers need. Every commit is one transaction here; readers use the
-- snapshot.json that is published from it. Times are ISO-8601 text in UTC.

create table meta (                     -- Facts about the store: schema_version, store_id, next_rid.
  key   text primary key,               -- name
  value text not null                   -- value
);

create table runs (                     -- Identities: a rid is given once and never used again.
  rid         integer primary key,      -- the number all tables use
  source      text not null,            -- canonical host
  storage_id  text not null,            -- the server's storage id
  entity      text not null,            -- current entity
  project     text not null,            -- current project
  run_id      text not null,            -- current run id
  gen         integer not null,         -- live version in the table `runs`
  config_gen  integer not null,         -- live version in the table `config`
  summary_gen integer not null,         -- live version in the table `summary`
  metric_gen  integer not null,         -- live version in the table `metric`
  digest      text not null,            -- digest of the documents of the live version
  fingerprint text,                     -- what the source's listing said when the run was last fetched
  checked_at  text,                     -- when the run was last compared in full with its source
  missing     integer not null default 0,  -- complete listings in a row that lacked the run
  deleted_at  text,                     -- when the run was found gone at its source
  origin      text,                     -- JSON: stream -> source, for streams that another source gave
  merged_into integer,                  -- rid of the run under which this copy of it is shown
  judged      text,                     -- state of this copy and of runs it may be one of when they were last compared
  unique (source, storage_id)
);
create index runs_by_project on runs (source, entity, project);
create index runs_by_id on runs (project, run_id);
create index runs_merged on runs (merged_into) where merged_into is not null;

create table items (                    -- Identities of sweeps, collections, artifacts and reports, numbered with the runs.
  rid            integer primary key,   -- the number all tables use
  kind           text not null,         -- the table: sweeps, artifact_collections, artifacts, reports
  source         text not null,         -- canonical host
  storage_id     text not null,         -- the server's storage id
  entity         text not null,         -- current entity
  project        text not null,         -- current project
  gen            integer not null,      -- live version
  digest         text not null,         -- digest of the live version
  entries_gen    integer not null default 0,  -- artifacts: live version in `artifact_entries`
  entries_digest text not null default '',    -- ... and its digest
  uses_gen       integer not null default 0,  -- artifacts: live version in `artifact_uses`
  uses_digest    text not null default '',    -- ... and its digest
  missing        integer not null default 0,  -- complete listings in a row that lacked it
  deleted_at     text,                  -- when it was found gone at its source
  unique (kind, source, storage_id)
);
create index items_by_project on items (kind, source, entity, project);

create table streams (                  -- Generations of a run's streams: history, system, files, logs.
  rid              integer not null,    -- who
  stream           text not null,       -- history, system, files or logs
  gen              integer not null,    -- generation
  live             integer not null,    -- 1: visible; 0: still being fetched, or replaced
  rows             integer not null,    -- rows held
  last_step        integer,             -- highest _step held
  last_fingerprint text,                -- fingerprint of the last row held
  fetched          text,                -- JSON: road, asked, got, total, complete, lossless, sampled, note
  primary key (rid, stream, gen)
) without rowid;

create table files (                    -- Segments. One without `removed` belongs to the current snapshot.
  path    text primary key,             -- path relative to ROOT
  tbl     text not null,                -- table
  rows    integer not null,             -- rows
  bytes   integer not null,             -- size
  sha256  text not null,                -- checksum of the file
  rids    text not null,                -- JSON list of [first, last] ranges of rids inside
  version integer not null,             -- schema version it was written with
  added   integer not null,             -- snapshot that added it
  removed integer                       -- snapshot that replaced it
);
create index files_live on files (tbl) where removed is null;

create table superseded (               -- Tables that hold rows which are no longer live, so that readers must look.
  tbl  text primary key,                -- table
  rows integer not null                 -- versions replaced since the last compaction
);

create table snapshots (                -- Commits.
  id integer primary key,               -- number, ascending
  at text not null,                     -- when
  by text not null                      -- session that made it
);

create table projects (                 -- Projects seen, and when their sources were last asked.
  source     text not null,             -- canonical host
  entity     text not null,             -- owner
  project    text not null,             -- name
  gen        integer not null,          -- live version in the table `projects`
  digest     text not null,             -- digest of the live version
  checked_at text,                      -- last sync, also one that found nothing to do
  outcome    text,                      -- its outcome
  message    text,                      -- what to know about it
  missing    integer not null default 0,  -- times in a row the source said that there is no such project
  deleted_at text,                      -- when it was found gone at its source
  primary key (source, entity, project)
);

create table quarantine (               -- Runs that keep failing, by stage.
  source     text not null,             -- canonical host
  storage_id text not null,             -- the server's storage id
  entity     text not null,             -- owner
  project    text not null,             -- project
  run_id     text not null,             -- run id
  stage      text not null,             -- what failed
  error      text not null,             -- how
  attempts   integer not null,          -- failed attempts in a row
  next_try   text not null,             -- not before
  primary key (source, storage_id, stage)
);
