-- Relays that share this database: who they are, and how each hears of what another one changed.

CREATE TABLE relays (
    id            TEXT PRIMARY KEY,
    name          TEXT NOT NULL,
    public_key    BYTEA NOT NULL,
    -- Where nodes reach this very relay, and what its certificate is known by (NULL: by authorities).
    url           TEXT NOT NULL,
    pin           BYTEA,
    -- The HOST:PORT to connect to, where the certificate is for the URL's name and that leads to all.
    dial          TEXT NOT NULL DEFAULT '',
    -- The certificate that it shows now, by which the other relays know it.
    shown_pin     BYTEA,
    version       TEXT NOT NULL,
    started_at    DOUBLE PRECISION NOT NULL,
    -- By this database's clock, as all that is compared between relays.
    heartbeat_at  DOUBLE PRECISION NOT NULL,
    drained       INTEGER NOT NULL DEFAULT 0,
    -- 1: its heartbeats ended without a word. Kept for a while, to be told of.
    lost          INTEGER NOT NULL DEFAULT 0
);

-- Which list of relays is newer. It grows by the clock too, so that nodes believe the list of a
-- database that was made anew.
CREATE TABLE relay_list (
    id       INTEGER PRIMARY KEY CHECK (id = 1),
    version  BIGINT NOT NULL
);
INSERT INTO relay_list (id, version) VALUES (1, 0);

CREATE FUNCTION wai_now() RETURNS DOUBLE PRECISION LANGUAGE sql VOLATILE AS
$$ SELECT extract(epoch FROM clock_timestamp())::DOUBLE PRECISION $$;

-- The table, a space, and the column that the trigger's argument names.
CREATE FUNCTION wai_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify(
        'wai_changes',
        TG_TABLE_NAME || ' ' ||
        (CASE WHEN TG_OP = 'DELETE' THEN to_jsonb(OLD) ELSE to_jsonb(NEW) END ->> TG_ARGV[0])
    );
    RETURN NULL;
END $$;

CREATE FUNCTION wai_relays_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND
        to_jsonb(OLD) - 'heartbeat_at' = to_jsonb(NEW) - 'heartbeat_at'
    THEN
        RETURN NULL;  -- a heartbeat
    END IF;
    UPDATE relay_list SET version = greatest(version + 1, (wai_now() * 1000)::BIGINT);
    PERFORM pg_notify('wai_changes', 'relays ');
    RETURN NULL;
END $$;

CREATE TRIGGER wai_changed AFTER INSERT OR UPDATE OR DELETE ON relays
    FOR EACH ROW EXECUTE FUNCTION wai_relays_changed();
CREATE TRIGGER wai_changed AFTER INSERT OR UPDATE OR DELETE ON api_keys
    FOR EACH ROW EXECUTE FUNCTION wai_changed('id');
CREATE TRIGGER wai_changed AFTER INSERT OR UPDATE OR DELETE ON api_key_labels
    FOR EACH ROW EXECUTE FUNCTION wai_changed('key_id');
CREATE TRIGGER wai_changed AFTER INSERT OR UPDATE OR DELETE ON api_key_secrets
    FOR EACH ROW EXECUTE FUNCTION wai_changed('key_id');
CREATE TRIGGER wai_changed AFTER INSERT OR UPDATE OR DELETE ON nodes
    FOR EACH ROW EXECUTE FUNCTION wai_changed('id');
CREATE TRIGGER wai_changed AFTER INSERT OR UPDATE OR DELETE ON admins
    FOR EACH ROW EXECUTE FUNCTION wai_changed('name');
-- Not when one was used, which is written every minute.
CREATE TRIGGER wai_changed AFTER INSERT OR DELETE ON sign_ins
    FOR EACH ROW EXECUTE FUNCTION wai_changed('id');
CREATE TRIGGER wai_changed AFTER INSERT OR UPDATE OR DELETE ON settings
    FOR EACH ROW EXECUTE FUNCTION wai_changed('name');

-- Files that relays with one domain share: the account at the certificate's authority, and the
-- certificate with its key. Sealed with a key that is not in the database.
CREATE TABLE shared_files (
    domain      TEXT NOT NULL,
    name        TEXT NOT NULL,
    sealed      BYTEA NOT NULL,
    changed_at  DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (domain, name)
);

-- Challenges that an authority may ask any of the relays for. They are no secrets.
CREATE TABLE acme_challenges (
    relay              TEXT PRIMARY KEY,
    domain             TEXT NOT NULL,
    token              TEXT NOT NULL,
    key_authorization  TEXT NOT NULL,
    ends_at            DOUBLE PRECISION NOT NULL
);

CREATE TRIGGER wai_changed AFTER INSERT OR UPDATE OR DELETE ON shared_files
    FOR EACH ROW EXECUTE FUNCTION wai_changed('name');
CREATE TRIGGER wai_changed AFTER INSERT OR UPDATE OR DELETE ON acme_challenges
    FOR EACH ROW EXECUTE FUNCTION wai_changed('relay');
