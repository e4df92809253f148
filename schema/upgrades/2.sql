-- Version 2: sweeps, artifacts and reports.
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
