-- The tables of a ledger in SQLite, version 1. PRAGMA application_id says that a file is ours, PRAGMA
-- user_version which schema it has; ledger/sqlite/schema.py sets both. A change after the first release is a
-- new entry in MIGRATIONS there and never an edit of this file alone: files are in the world by then.
--
-- Times are in microseconds since 1970. A cost is cost_micros + cost_picos / 10^6 millionths of its currency
-- (0 <= cost_picos < 10^6); both are NULL when it is unpriced.

CREATE TABLE organization (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;

-- What sums are kept by: a row per combination that occurs. Rows never change, so that processes may
-- remember their ids.
CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    org INTEGER NOT NULL REFERENCES organization,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    project TEXT NOT NULL,
    operation TEXT NOT NULL,
    service_tier TEXT NOT NULL,
    processing TEXT NOT NULL,
    region TEXT NOT NULL,
    currency TEXT NOT NULL,
    status TEXT NOT NULL,
    UNIQUE (org, provider, model, project, operation, service_tier, processing, region, currency, status)
) STRICT;

-- What priced a record; digest is that of its card in kept_card, empty where none priced it. Rows never change.
CREATE TABLE pricing (
    id INTEGER PRIMARY KEY,
    card_id TEXT NOT NULL,
    card_version INTEGER NOT NULL,
    origin_version TEXT NOT NULL,
    fallbacks TEXT NOT NULL,
    digest BLOB NOT NULL DEFAULT x'',
    UNIQUE (card_id, card_version, origin_version, fallbacks, digest)
) STRICT;

-- Each card that priced a record, once: receipts outlive the catalog that the card came from.
CREATE TABLE kept_card (digest BLOB PRIMARY KEY, card BLOB NOT NULL) STRICT, WITHOUT ROWID;

-- A record and its first cost; of a removed record nothing but its id, behind a series of 0 and before all
-- other times. seq is the order of the commits. The first cost never changes; the record is
-- the one in force: where it was corrected or superseded, first_record has what was sent.
CREATE TABLE usage (
    seq INTEGER PRIMARY KEY,
    org INTEGER NOT NULL,
    series INTEGER NOT NULL,
    pricing INTEGER NOT NULL,
    id BLOB NOT NULL,            -- 16 bytes that follow from organization and key (ledger/encoding.py)
    key ANY,                     -- 16 bytes where it is a UUID, text where not, NULL where there is none
    ingested INTEGER NOT NULL,
    ts INTEGER NOT NULL,         -- the caller's time, or ingested
    requests INTEGER NOT NULL,
    input INTEGER NOT NULL,
    output INTEGER NOT NULL,
    cached INTEGER NOT NULL,
    cost_micros INTEGER,
    cost_picos INTEGER,
    user TEXT,
    tags TEXT,                   -- a JSON list, each tag once
    labels TEXT,                 -- a JSON object
    record BLOB NOT NULL         -- what the caller sent, as JSON; behind the columns that queries add up
) STRICT;
-- Finds a record by its id, and whether a key was used before: then the keys are compared.
CREATE UNIQUE INDEX usage_id ON usage (org, id);
-- With all that a page, or a user's sums, need to find their rows.
CREATE INDEX usage_time ON usage (org, ts, seq, user);

-- Records as they were sent, of those that were corrected or superseded since.
CREATE TABLE first_record (usage INTEGER PRIMARY KEY REFERENCES usage, record BLOB NOT NULL) STRICT;

-- The records that a user was erased from: what is sent again is compared without what may name anybody.
CREATE TABLE erased (usage INTEGER PRIMARY KEY REFERENCES usage) STRICT;

-- What became of records: the highest number of a record is in force, and rollup follows it. seq is the order
-- of the commits, and behind the last row of usage that was committed before this one. kind is repriced,
-- corrected, voided or superseded; record is set where the record changed, and holds until the next that is.
CREATE TABLE revision (
    seq INTEGER PRIMARY KEY,
    usage INTEGER NOT NULL REFERENCES usage,
    number INTEGER NOT NULL CHECK (number > 1),
    behind INTEGER NOT NULL,
    series INTEGER NOT NULL,
    pricing INTEGER NOT NULL,
    cost_micros INTEGER,
    cost_picos INTEGER,
    made INTEGER NOT NULL,
    kind TEXT NOT NULL,
    reason TEXT NOT NULL,
    actor TEXT NOT NULL,
    record BLOB,
    UNIQUE (usage, number)
) STRICT;

-- The sums of rows up to rollup_watermark, and of all revisions. level 0: bucket is a quarter of an hour since
-- 1970; 1: a day of UTC; 2: an hour. A sum that would leave 64 bits stays at 2^63 - 1, which no query answers
-- (MAX_SUM in rules/limits.py).
CREATE TABLE rollup (
    series INTEGER NOT NULL,
    level INTEGER NOT NULL,
    bucket INTEGER NOT NULL,
    records INTEGER NOT NULL,
    requests INTEGER NOT NULL,
    input INTEGER NOT NULL,
    output INTEGER NOT NULL,
    cached INTEGER NOT NULL,
    unpriced INTEGER NOT NULL,
    cost_micros INTEGER NOT NULL,
    cost_picos INTEGER NOT NULL,
    PRIMARY KEY (series, level, bucket)
) STRICT, WITHOUT ROWID;

-- For how many days an organization's records are kept, 0 for ever, and the moment before which they were
-- removed, NULL where none were.
CREATE TABLE retention (org TEXT PRIMARY KEY, days INTEGER NOT NULL, removed INTEGER) STRICT, WITHOUT ROWID;

-- What rollup holds of removed records, by quarters of an hour (ledger/sqlite/retaining.py).
CREATE TABLE removed_sum (
    series INTEGER NOT NULL,
    bucket INTEGER NOT NULL,
    records INTEGER NOT NULL,
    requests INTEGER NOT NULL,
    input INTEGER NOT NULL,
    output INTEGER NOT NULL,
    cached INTEGER NOT NULL,
    unpriced INTEGER NOT NULL,
    cost_micros INTEGER NOT NULL,
    cost_picos INTEGER NOT NULL,
    PRIMARY KEY (series, bucket)
) STRICT, WITHOUT ROWID;

-- The last row of usage that is in rollup.
CREATE TABLE rollup_watermark (id INTEGER PRIMARY KEY CHECK (id = 1), seq INTEGER NOT NULL) STRICT;
INSERT INTO rollup_watermark VALUES (1, 0);

-- Sums of whole days of UTC by users, tags, labels, meters and what goes with them, kept for queries that ask
-- for the same again (ledger/sqlite/day_sums.py). They may be deleted at any time. dimensions and keys are JSON
-- lists of names and of their values; dimensions are NULL where the sums are being deleted. used is the last hour
-- since 1970 in which somebody asked, 0 of what is the first to give way to others.
CREATE TABLE day_grouping (
    id INTEGER PRIMARY KEY,
    org INTEGER NOT NULL REFERENCES organization,
    dimensions TEXT,
    used INTEGER NOT NULL,
    UNIQUE (dimensions, org)
) STRICT;
CREATE TABLE day_group (
    id INTEGER PRIMARY KEY,
    grouping INTEGER NOT NULL REFERENCES day_grouping,
    keys TEXT NOT NULL,
    currency TEXT NOT NULL,
    UNIQUE (grouping, keys, currency)
) STRICT;
-- The days [first, last) with their rows up to seq and the revisions up to revision. counts is a JSON object of
-- the records of each day, groups how many groups they have: NULL where these are too many to be kept.
CREATE TABLE day_span (
    id INTEGER PRIMARY KEY,
    grouping INTEGER NOT NULL,
    first INTEGER NOT NULL,
    last INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    counts TEXT NOT NULL,
    groups INTEGER,
    UNIQUE (grouping, first, last)
) STRICT;
CREATE TABLE day_sum (
    span INTEGER NOT NULL,
    grp INTEGER NOT NULL,
    records INTEGER NOT NULL,
    requests INTEGER NOT NULL,
    input INTEGER NOT NULL,
    output INTEGER NOT NULL,
    cached INTEGER NOT NULL,
    unpriced INTEGER NOT NULL,
    cost_micros INTEGER NOT NULL,
    cost_picos INTEGER NOT NULL,
    reported_requests INTEGER NOT NULL,
    reported_micros INTEGER NOT NULL,
    reported_picos INTEGER NOT NULL,
    PRIMARY KEY (span, grp)
) STRICT, WITHOUT ROWID;
-- How often kept sums were forgotten: what was calculated before is not kept after.
CREATE TABLE day_forgotten (id INTEGER PRIMARY KEY CHECK (id = 1), times INTEGER NOT NULL) STRICT;
INSERT INTO day_forgotten VALUES (1, 0);

-- Price cards that were added; line is what a card is a version of: everything but its dates and prices.
CREATE TABLE card (
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    line TEXT NOT NULL,
    version INTEGER NOT NULL,
    fingerprint BLOB NOT NULL,
    card BLOB NOT NULL,
    UNIQUE (line, version)
) STRICT;
CREATE TABLE card_key (
    org TEXT NOT NULL,
    key TEXT NOT NULL,
    fingerprint BLOB NOT NULL,
    card INTEGER NOT NULL,
    PRIMARY KEY (org, key)
) STRICT, WITHOUT ROWID;

-- hash is keyed with the secret; organizations is a JSON list, or NULL for all of them.
CREATE TABLE api_key (
    id TEXT PRIMARY KEY,
    hash BLOB NOT NULL,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    organizations TEXT,
    created INTEGER NOT NULL,
    expires INTEGER,
    revoked INTEGER
) STRICT;  -- with the rowid, by which keys of one moment keep their order
CREATE TABLE secret (name TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;

-- Who changed what, in the transactions that did it (ledger/audit.py). org is '' for what is everybody's, and
-- details a JSON object. Rows are only added.
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY,
    made INTEGER NOT NULL,
    actor TEXT NOT NULL,
    org TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    details TEXT NOT NULL
) STRICT;
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit log is only added to');
END;
CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
BEGIN
    SELECT RAISE(ABORT, 'the audit log is only added to');
END;

-- Where each consumer of what was committed goes on: behind this row of usage and this one of revision.
CREATE TABLE consumer (
    name TEXT PRIMARY KEY,
    usage INTEGER NOT NULL,
    revision INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What readiness writes to.
CREATE TABLE health (id INTEGER PRIMARY KEY CHECK (id = 1), checks INTEGER NOT NULL) STRICT;
INSERT INTO health VALUES (1, 0);
