-- The tables of a ledger in PostgreSQL, version 1: all of them in the schema llm_cost_ops, so that another
-- application may have the same database. meta.version says which version a database has. A change after the
-- first release is a new entry in MIGRATIONS (ledger/postgres/schema.py) and never an edit of this file alone.
--
-- Times are in microseconds since 1970. Every key of what belongs to an organization begins with it.

CREATE TABLE llm_cost_ops.meta (
    id int PRIMARY KEY CHECK (id = 1),
    version int NOT NULL,
    checks bigint NOT NULL DEFAULT 0        -- what readiness writes to
);

CREATE TABLE llm_cost_ops.organization (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    forgotten bigint NOT NULL DEFAULT 0     -- how often its rows of day_span were deleted
);

-- What sums are kept by: a row per combination that occurs. Rows never change.
CREATE TABLE llm_cost_ops.series (
    org int NOT NULL,
    id bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    provider text NOT NULL,
    model text NOT NULL,
    project text NOT NULL,
    operation text NOT NULL,
    service_tier text NOT NULL,
    processing text NOT NULL,
    region text NOT NULL,
    currency text NOT NULL,
    status text NOT NULL,
    PRIMARY KEY (org, id),
    UNIQUE (org, provider, model, project, operation, service_tier, processing, region, currency, status)
);

-- What priced a record; digest is that of its card in kept_card, empty where none priced it. Rows never change.
CREATE TABLE llm_cost_ops.pricing (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    card_id text NOT NULL,
    card_version int NOT NULL,
    origin_version text NOT NULL,
    fallbacks text NOT NULL,
    digest bytea NOT NULL,
    UNIQUE (card_id, card_version, origin_version, fallbacks, digest)
);

-- Each card that priced a record, once: receipts outlive the catalog that the card came from.
CREATE TABLE llm_cost_ops.kept_card (digest bytea PRIMARY KEY, card text NOT NULL);

-- The order of records and revisions within a transaction, and of those with one time. Processes take numbers
-- in blocks, since the rows of a transaction are numbered before they are written, across organizations.
CREATE SEQUENCE llm_cost_ops.seq INCREMENT BY 1000;

-- A record and its first cost; of a removed record nothing but its id, of a series of 0 and before all other
-- times. The first cost never changes; the record is the one in force: where it was
-- corrected or superseded, first_record has what was sent. Transactions end in another order than they begin:
-- (xid, seq) is an order in which nothing is put in before what readers of `committed` have seen.
CREATE TABLE llm_cost_ops.usage (
    org int NOT NULL,
    id uuid NOT NULL,            -- follows from organization and key (ledger/encoding.py)
    key text,                    -- NULL where there is none
    seq bigint NOT NULL,
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    series bigint NOT NULL,
    pricing bigint NOT NULL,
    ingested bigint NOT NULL,
    ts bigint NOT NULL,          -- the caller's time, or ingested
    requests bigint NOT NULL,
    input bigint NOT NULL,
    output bigint NOT NULL,
    cached bigint NOT NULL,
    cost numeric(38, 12),        -- in its currency; NULL when unpriced
    usr text,
    tags jsonb,                  -- a list, each tag once
    labels jsonb,
    record text NOT NULL,        -- what the caller sent, as JSON
    PRIMARY KEY (org, id)
);
CREATE INDEX usage_time ON llm_cost_ops.usage (org, ts, seq);
CREATE INDEX usage_commit ON llm_cost_ops.usage (xid, seq);

-- Records as they were sent, of those that were corrected or superseded since.
CREATE TABLE llm_cost_ops.first_record (
    org int NOT NULL,
    id uuid NOT NULL,
    record text NOT NULL,
    PRIMARY KEY (org, id)
);

-- The records that a user was erased from: what is sent again is compared without what may name anybody.
CREATE TABLE llm_cost_ops.erased (org int NOT NULL, id uuid NOT NULL, PRIMARY KEY (org, id));

-- What became of records: the highest number of a record is in force, and the sums follow it. kind is
-- repriced, corrected, voided or superseded; record is set where the record changed, and holds until the next
-- that is.
CREATE TABLE llm_cost_ops.revision (
    org int NOT NULL,
    id uuid NOT NULL,
    number int NOT NULL CHECK (number > 1),
    seq bigint NOT NULL DEFAULT nextval('llm_cost_ops.seq'),
    xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    series bigint NOT NULL,
    pricing bigint NOT NULL,
    cost numeric(38, 12),
    made bigint NOT NULL,
    kind text NOT NULL,
    reason text NOT NULL,
    actor text NOT NULL,
    record text,
    PRIMARY KEY (org, id, number)
);
CREATE INDEX revision_commit ON llm_cost_ops.revision (xid, seq);

-- Sums. level 0: bucket is a quarter of an hour since 1970; 1: a day of UTC. revisions is how many revisions
-- records of the bucket have had.
CREATE TABLE llm_cost_ops.rollup (
    org int NOT NULL,
    level smallint NOT NULL,
    bucket int NOT NULL,
    series bigint NOT NULL,
    records bigint NOT NULL,
    requests numeric(38, 0) NOT NULL,
    input numeric(38, 0) NOT NULL,
    output numeric(38, 0) NOT NULL,
    cached numeric(38, 0) NOT NULL,
    unpriced numeric(38, 0) NOT NULL,
    cost numeric(38, 12) NOT NULL,
    revisions bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (org, level, bucket, series)
) WITH (fillfactor = 70);

-- What is not in rollup yet: written in the transaction of the rows, and folded into rollup later. Writers
-- only insert, so that they never wait for each other. bucket is a quarter of an hour.
CREATE TABLE llm_cost_ops.delta (
    org int NOT NULL,
    bucket int NOT NULL,
    series bigint NOT NULL,
    records bigint NOT NULL,
    requests numeric(38, 0) NOT NULL,
    input numeric(38, 0) NOT NULL,
    output numeric(38, 0) NOT NULL,
    cached numeric(38, 0) NOT NULL,
    unpriced numeric(38, 0) NOT NULL,
    cost numeric(38, 12) NOT NULL,
    revisions bigint NOT NULL DEFAULT 0
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
CREATE INDEX delta_bucket ON llm_cost_ops.delta (org, bucket);

-- By what sums of days are kept: dimensions is a JSON list. used is the last hour since 1970 in which somebody
-- asked, 0 of what is the first to give way to others. Rows may be deleted at any time.
CREATE TABLE llm_cost_ops.day_grouping (
    org int NOT NULL,
    id bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    dimensions text NOT NULL,
    used bigint NOT NULL,
    PRIMARY KEY (org, id),
    UNIQUE (org, dimensions)
);

-- Kept sums of days [first, last) of UTC (ledger/postgres/day_sums.py): those of the rows that a snapshot saw.
-- counts has by day how many records and revisions it saw; groups is NULL where there are too many to be kept,
-- else their number, and sums has them as JSON. Rows may be deleted at any time.
CREATE TABLE llm_cost_ops.day_span (
    org int NOT NULL,
    id bigint NOT NULL GENERATED ALWAYS AS IDENTITY,
    grouping bigint NOT NULL,
    first int NOT NULL,
    last int NOT NULL,
    seen pg_snapshot NOT NULL,
    counts text NOT NULL,
    groups int,
    sums text,
    PRIMARY KEY (org, id),
    UNIQUE (org, grouping, first, last),
    FOREIGN KEY (org, grouping) REFERENCES llm_cost_ops.day_grouping ON DELETE CASCADE
);

-- For how many days an organization's records are kept, 0 for ever, and the moment before which they were
-- removed, NULL where none were.
CREATE TABLE llm_cost_ops.retention (org text PRIMARY KEY, days int NOT NULL, removed bigint);

-- What the sums hold of removed records, by quarters of an hour (ledger/postgres/retaining.py).
CREATE TABLE llm_cost_ops.removed_sum (
    org int NOT NULL,
    bucket int NOT NULL,
    series bigint NOT NULL,
    records bigint NOT NULL,
    requests numeric(38, 0) NOT NULL,
    input numeric(38, 0) NOT NULL,
    output numeric(38, 0) NOT NULL,
    cached numeric(38, 0) NOT NULL,
    unpriced numeric(38, 0) NOT NULL,
    cost numeric(38, 12) NOT NULL,
    PRIMARY KEY (org, bucket, series)
);

-- Price cards that were added; line is what a card is a version of: everything but its dates and prices.
CREATE TABLE llm_cost_ops.card (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id text NOT NULL UNIQUE,
    line text NOT NULL,
    version int NOT NULL,
    fingerprint bytea NOT NULL,
    card text NOT NULL,
    UNIQUE (line, version)
);
CREATE TABLE llm_cost_ops.card_key (
    org text NOT NULL,
    key text NOT NULL,
    fingerprint bytea NOT NULL,
    card bigint NOT NULL,
    PRIMARY KEY (org, key)
);

-- hash is keyed with the secret; organizations is a JSON list, or NULL for all of them.
CREATE TABLE llm_cost_ops.api_key (
    id text PRIMARY KEY,
    hash bytea NOT NULL,
    name text NOT NULL,
    role text NOT NULL,
    organizations text,
    created bigint NOT NULL,
    expires bigint,
    revoked bigint,
    seq bigint GENERATED ALWAYS AS IDENTITY     -- the order of those of one moment
);
CREATE TABLE llm_cost_ops.secret (name text PRIMARY KEY, value bytea NOT NULL);

-- Who changed what, in the transactions that did it (ledger/audit.py). org is '' for what is everybody's, and
-- details a JSON object. Rows are only added.
CREATE TABLE llm_cost_ops.audit (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    made bigint NOT NULL,
    actor text NOT NULL,
    org text NOT NULL,
    action text NOT NULL,
    subject text NOT NULL,
    details text NOT NULL
);
CREATE FUNCTION llm_cost_ops.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log is only added to';
END
$$;
CREATE TRIGGER audit_is_not_changed BEFORE UPDATE OR DELETE OR TRUNCATE ON llm_cost_ops.audit
    FOR EACH STATEMENT EXECUTE FUNCTION llm_cost_ops.refuse_change();

-- Where each consumer of what was committed goes on: behind this transaction and number.
CREATE TABLE llm_cost_ops.consumer (name text PRIMARY KEY, xid xid8 NOT NULL, seq bigint NOT NULL);

INSERT INTO llm_cost_ops.meta (id, version) VALUES (1, 1);
