-- The limits of API keys where several relays serve one fleet: what each relay holds of a key's limits,
-- and the one function that judges (docs/decisions/0011-limits-across-relays.md). Times are seconds since 1970 by
-- the database's clock. Only PostgreSQL has this: a relay with SQLite is alone.

-- The relays' processes, each with a lease that each of its exchanges renews.
CREATE TABLE limit_holders (
    holder     TEXT COLLATE "C" PRIMARY KEY,
    until      DOUBLE PRECISION NOT NULL
);

-- What a process holds of a key's limits; what it uses is a part of it.
CREATE TABLE limit_shares (
    key_id     TEXT COLLATE "C" NOT NULL,
    holder     TEXT COLLATE "C" NOT NULL,
    -- The last message that counted: an older one that comes late is ignored.
    seq        BIGINT NOT NULL,
    slots      BIGINT NOT NULL,
    -- Requests and tokens that it may use in any sixty seconds.
    requests   BIGINT NOT NULL,
    tokens     BIGINT NOT NULL,
    -- Tokens of the month: reserved, used and not in usage_rollups yet, or to spare.
    month      BIGINT NOT NULL,
    -- Tokens that its requests in progress have reserved, and those that are not in usage_rollups yet.
    reserved   BIGINT NOT NULL,
    unwritten  BIGINT NOT NULL,
    -- Tokens that it has put into limit_uses so far.
    spent      BIGINT NOT NULL,
    PRIMARY KEY (key_id, holder)
);
CREATE INDEX limit_shares_holder ON limit_shares (holder);

-- What was used in the last minute outside of shares, by the tenth of a second in which it ends to count.
CREATE TABLE limit_uses (
    key_id     TEXT COLLATE "C" NOT NULL,
    until      DOUBLE PRECISION NOT NULL,
    requests   BIGINT NOT NULL,
    tokens     BIGINT NOT NULL,
    PRIMARY KEY (key_id, until)
);

-- Keys of which somebody was refused what another may hold to spare: nobody keeps any until then.
CREATE TABLE limit_contended (
    key_id     TEXT COLLATE "C" PRIMARY KEY,
    until      DOUBLE PRECISION NOT NULL
);

-- A key's tokens of a month, without reading those of all keys.
CREATE INDEX usage_rollups_key ON usage_rollups (key_id, start) WHERE span = 'day';

-- The time. Tests put another function in its place.
CREATE FUNCTION limit_now() RETURNS DOUBLE PRECISION LANGUAGE sql VOLATILE AS
$$ SELECT wai_now() $$;

-- Renews the lease of `me`. Returns whether it was over (or there was none).
--
-- LEASE 12 s: long enough for three beats of 3 s. Two more seconds, the longest that a statement of a relay lasts,
-- go by before others take what a dead relay held: so a relay that renewed in time is never taken for dead.
--
-- When nobody at all was heard for more than two beats, the database was away: then all those that were alive when
-- somebody was heard last get a whole lease anew.
CREATE FUNCTION limit_renew(me TEXT) RETURNS BOOLEAN LANGUAGE plpgsql AS $$
DECLARE
    lease CONSTANT DOUBLE PRECISION := 12;
    gap CONSTANT DOUBLE PRECISION := 6;
    now_s DOUBLE PRECISION := limit_now();
    heard DOUBLE PRECISION;
    alive BOOLEAN;
BEGIN
    SELECT max(until) - lease INTO heard FROM limit_holders;
    IF now_s - heard > gap THEN
        PERFORM pg_advisory_xact_lock(1818847587, 0);
        SELECT max(until) - lease INTO heard FROM limit_holders;
        IF now_s - heard > gap THEN
            UPDATE limit_holders SET until = now_s + lease WHERE until > heard;
        END IF;
    END IF;
    SELECT until > now_s INTO alive FROM limit_holders WHERE holder = me;
    INSERT INTO limit_holders (holder, until) VALUES (me, now_s + lease)
        ON CONFLICT (holder) DO UPDATE SET until = greatest(limit_holders.until, excluded.until);
    RETURN alive IS NOT TRUE;
END $$;

-- Forgets processes that are long dead, with what they held, and uses that nobody asked for since.
-- Rows that somebody else works on are left for the next time, so that nobody waits for anybody.
CREATE FUNCTION limit_tidy() RETURNS VOID LANGUAGE plpgsql AS $$
DECLARE
    now_s DOUBLE PRECISION := limit_now();
    gone TEXT[];
BEGIN
    SELECT array_agg(holder) INTO gone FROM
        (SELECT holder FROM limit_holders WHERE until < now_s - 120 FOR UPDATE SKIP LOCKED) AS old;
    IF gone IS NOT NULL THEN
        DELETE FROM limit_shares WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM limit_shares WHERE holder = ANY (gone) FOR UPDATE SKIP LOCKED));
        DELETE FROM limit_holders WHERE holder = ANY (gone)
            AND NOT EXISTS (SELECT FROM limit_shares AS s WHERE s.holder = limit_holders.holder);
    END IF;
    DELETE FROM limit_uses WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM limit_uses WHERE until <= now_s FOR UPDATE SKIP LOCKED));
    DELETE FROM limit_contended WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM limit_contended WHERE until <= now_s FOR UPDATE SKIP LOCKED));
END $$;

-- When the requests or tokens of `key` have room for `over` more, in seconds from `at`.
CREATE FUNCTION limit_wait(
    key TEXT, now_s DOUBLE PRECISION, over NUMERIC, of_requests BOOLEAN, others NUMERIC
) RETURNS DOUBLE PRECISION LANGUAGE sql STABLE AS $$
    SELECT coalesce(
        (SELECT min(until) - now_s FROM (
            SELECT until, sum(CASE WHEN of_requests THEN requests ELSE tokens END) OVER (ORDER BY until) AS freed
            FROM limit_uses WHERE key_id = key) AS minute
         WHERE freed >= over),
        CASE WHEN others > 0 THEN 3 ELSE 60 END)
$$;

-- What a relay says of some keys, and what it gets: see wai_relay/policy/grants.py, which has both as structs.
--
-- One key after the other, each under a lock of its own; in the order of the locks, so that two relays never wait for
-- each other. What is written before a lock is had is the lease alone.
CREATE FUNCTION limit_exchange(me TEXT, asks JSONB, beat BOOLEAN) RETURNS TEXT LANGUAGE plpgsql AS $$
DECLARE
    minute CONSTANT DOUBLE PRECISION := 60;
    grace CONSTANT DOUBLE PRECISION := 2;
    contended_for CONSTANT DOUBLE PRECISION := 60;
    now_s DOUBLE PRECISION;
    lost BOOLEAN;
    ask RECORD;
    mine limit_shares%ROWTYPE;
    others RECORD;
    used_requests BIGINT; used_tokens BIGINT;
    new_requests BIGINT; new_tokens BIGINT;
    stored BIGINT;
    -- What it will hold, and what of it is no share to spare.
    slots BIGINT; requests BIGINT; tokens BIGINT; month BIGINT;
    base_slots BIGINT; base_requests BIGINT; base_tokens BIGINT; base_month BIGINT;
    reserved BIGINT; had BIGINT;
    wish JSONB; least_tokens BIGINT; most_tokens BIGINT;
    room NUMERIC; given BIGINT; alone BOOLEAN;
    reason TEXT; wait_s DOUBLE PRECISION; figure NUMERIC;
    verdicts JSONB; answers JSONB := '[]';
    contended DOUBLE PRECISION; contest BOOLEAN;
    month_begins BIGINT; month_ends BIGINT;
    told JSONB := '[]';
    gave BOOLEAN := FALSE; -- whether anything that others must not have too
BEGIN
    lost := limit_renew(me);
    FOR ask IN
        SELECT * FROM jsonb_to_recordset(asks) AS a(
            key_id TEXT, seq BIGINT, rpm BIGINT, tpm BIGINT, concurrency BIGINT, monthly BIGINT,
            busy BIGINT[], keep BIGINT[], spare BIGINT[],
            reserved BIGINT, unwritten BIGINT, spent BIGINT, acked BIGINT, wishes JSONB)
        ORDER BY hashtext(key_id), key_id
    LOOP
        PERFORM pg_advisory_xact_lock(1818847588, hashtext(ask.key_id));
        now_s := limit_now();
        SELECT * INTO mine FROM limit_shares AS s WHERE s.key_id = ask.key_id AND s.holder = me;
        CONTINUE WHEN mine.seq >= ask.seq;
        -- What others hold: slots and months until the lease is over, rates for a minute longer.
        SELECT
            coalesce(sum(s.slots) FILTER (WHERE h.until + grace > now_s), 0) AS slots,
            coalesce(sum(s.requests) FILTER (WHERE h.until + grace + minute > now_s), 0) AS requests,
            coalesce(sum(s.tokens) FILTER (WHERE h.until + grace + minute > now_s), 0) AS tokens,
            coalesce(sum(s.month) FILTER (WHERE h.until + grace > now_s), 0) AS month,
            coalesce(sum(s.reserved) FILTER (WHERE h.until + grace > now_s), 0) AS reserved,
            coalesce(sum(s.unwritten) FILTER (WHERE h.until + grace > now_s), 0) AS unwritten,
            count(*) FILTER (WHERE (h.until + grace > now_s) IS NOT TRUE) AS dead
        INTO others
        FROM limit_shares AS s LEFT JOIN limit_holders AS h USING (holder)
        WHERE s.key_id = ask.key_id AND s.holder <> me;
        IF others.dead > 0 THEN -- so that one who comes back finds that it holds nothing any more
            UPDATE limit_shares AS s SET slots = 0, month = 0, reserved = 0, unwritten = 0
                FROM limit_holders AS h
                WHERE s.key_id = ask.key_id AND s.holder <> me AND h.holder = s.holder
                AND h.until + grace <= now_s AND (s.slots, s.month, s.reserved, s.unwritten) <> (0, 0, 0, 0);
            DELETE FROM limit_shares AS s
                WHERE s.key_id = ask.key_id AND s.holder <> me AND NOT EXISTS (
                    SELECT FROM limit_holders AS h
                    WHERE h.holder = s.holder AND h.until + grace + minute > now_s);
        END IF;
        DELETE FROM limit_uses AS u WHERE u.key_id = ask.key_id AND u.until <= now_s;
        SELECT coalesce(sum(u.requests), 0), coalesce(sum(u.tokens), 0) INTO used_requests, used_tokens
            FROM limit_uses AS u WHERE u.key_id = ask.key_id;
        stored := 0;
        IF ask.monthly IS NOT NULL THEN
            month_begins := extract(epoch FROM
                date_trunc('month', to_timestamp(now_s) AT TIME ZONE 'UTC') AT TIME ZONE 'UTC');
            month_ends := extract(epoch FROM
                (date_trunc('month', to_timestamp(now_s) AT TIME ZONE 'UTC') + interval '1 month')
                AT TIME ZONE 'UTC');
            SELECT coalesce(sum(r.prompt_tokens + r.completion_tokens), 0) INTO stored
                FROM usage_rollups AS r
                WHERE r.span = 'day' AND r.key_id = ask.key_id
                AND r.start >= month_begins AND r.start < month_ends;
        END IF;
        new_requests := 0;
        new_tokens := CASE WHEN ask.tpm IS NULL THEN 0
            ELSE greatest(ask.spent - coalesce(mine.spent, ask.acked), 0) END;
        used_tokens := used_tokens + new_tokens;
        -- It keeps what it says, if it had as much; what it uses counts whatever it had.
        slots := greatest(ask.busy[1], least(ask.keep[1], coalesce(mine.slots, 0)));
        requests := greatest(ask.busy[2], least(ask.keep[2], coalesce(mine.requests, 0)));
        tokens := greatest(ask.busy[3], least(ask.keep[3], coalesce(mine.tokens, 0)));
        month := greatest(ask.busy[4], least(ask.keep[4], coalesce(mine.month, 0)));
        base_slots := ask.busy[1]; base_requests := ask.busy[2];
        base_tokens := ask.busy[3]; base_month := ask.busy[4];
        reserved := ask.reserved;
        verdicts := '[]';
        contest := FALSE;
        gave := gave OR jsonb_array_length(ask.wishes) > 0
            OR slots + requests + tokens + month
                > coalesce(mine.slots + mine.requests + mine.tokens + mine.month, 0);
        -- A wish: whether it enters, the least and the most tokens that it may take.
        FOR wish IN SELECT * FROM jsonb_array_elements(ask.wishes) LOOP
            reason := ''; wait_s := NULL; figure := NULL; given := 0; alone := FALSE;
            least_tokens := (wish->>1)::bigint; most_tokens := (wish->>2)::bigint;
            IF (wish->>0)::boolean THEN
                IF stored + others.unwritten + ask.unwritten >= ask.monthly THEN
                    reason := 'month'; wait_s := month_ends - now_s;
                    figure := ask.monthly - stored - others.unwritten - ask.unwritten;
                ELSIF slots + others.slots + 1 > ask.concurrency THEN
                    reason := 'slots'; figure := slots + others.slots;
                    contest := contest OR others.slots > 0;
                ELSIF used_requests + requests + others.requests + 1 > ask.rpm THEN
                    reason := 'requests';
                    wait_s := limit_wait(ask.key_id, now_s,
                        used_requests + requests + others.requests + 1 - ask.rpm,
                        TRUE, requests + others.requests);
                    contest := contest OR others.requests > 0;
                ELSIF used_tokens + 1 > ask.tpm THEN
                    reason := 'tokens'; figure := used_tokens;
                    wait_s := limit_wait(ask.key_id, now_s, used_tokens + 1 - ask.tpm, FALSE, others.tokens);
                ELSE
                    IF ask.concurrency IS NOT NULL THEN
                        slots := slots + 1; base_slots := base_slots + 1;
                    END IF;
                    IF ask.rpm IS NOT NULL THEN
                        used_requests := used_requests + 1; new_requests := new_requests + 1;
                    END IF;
                END IF;
            END IF;
            IF reason = '' AND most_tokens > 0 THEN
                room := least(ask.tpm - used_tokens - tokens - others.tokens,
                    ask.monthly - stored - month - others.month);
                IF most_tokens <= room THEN
                    given := most_tokens;
                ELSIF reserved + others.reserved = 0 AND room > 0 AND least_tokens <= room THEN
                    given := room; alone := TRUE;
                ELSIF NOT (wish->>0)::boolean THEN
                    IF stored + others.unwritten + ask.unwritten + least_tokens > ask.monthly THEN
                        reason := 'month'; wait_s := month_ends - now_s;
                        figure := ask.monthly - stored - others.unwritten - ask.unwritten;
                    ELSIF used_tokens + least_tokens > ask.tpm THEN
                        reason := 'tokens'; figure := used_tokens;
                        wait_s := limit_wait(ask.key_id, now_s, used_tokens + least_tokens - ask.tpm,
                            FALSE, others.tokens);
                    ELSE
                        reason := 'reserved'; figure := greatest(room, 0);
                        contest := contest OR others.tokens > 0 OR others.month > 0;
                    END IF;
                END IF;
                IF ask.tpm IS NOT NULL THEN
                    tokens := tokens + given; base_tokens := base_tokens + given;
                END IF;
                IF ask.monthly IS NOT NULL THEN
                    month := month + given; base_month := base_month + given;
                END IF;
                reserved := reserved + given;
            END IF;
            verdicts := verdicts || jsonb_build_array(
                jsonb_build_array(reason, given, alone, wait_s, figure));
        END LOOP;
        SELECT c.until INTO contended FROM limit_contended AS c WHERE c.key_id = ask.key_id;
        IF contest AND coalesce(contended, 0) < now_s + contended_for / 2 THEN
            contended := now_s + contended_for;
            INSERT INTO limit_contended (key_id, until) VALUES (ask.key_id, contended)
                ON CONFLICT (key_id) DO UPDATE SET until = excluded.until;
        END IF;
        had := slots + requests + tokens + month;
        IF coalesce(contended, 0) <= now_s THEN -- a share to spare: at most half of what is left
            slots := slots + greatest(0, least(base_slots + ask.spare[1] - slots,
                (ask.concurrency - slots - others.slots)::bigint / 2));
            requests := requests + greatest(0, least(base_requests + ask.spare[2] - requests,
                (ask.rpm - used_requests - requests - others.requests)::bigint / 2));
            tokens := tokens + greatest(0, least(base_tokens + ask.spare[3] - tokens,
                (ask.tpm - used_tokens - tokens - others.tokens)::bigint / 2));
            month := month + greatest(0, least(base_month + ask.spare[4] - month,
                (ask.monthly - stored - month - others.month)::bigint / 2));
        END IF;
        gave := gave OR slots + requests + tokens + month > had;
        INSERT INTO limit_shares (key_id, holder, seq, slots, requests, tokens, month, reserved, unwritten, spent)
            VALUES (ask.key_id, me, ask.seq, slots, requests, tokens, month, reserved, ask.unwritten, ask.spent)
            ON CONFLICT (key_id, holder) DO UPDATE SET
                seq = excluded.seq, slots = excluded.slots, requests = excluded.requests,
                tokens = excluded.tokens, month = excluded.month, reserved = excluded.reserved,
                unwritten = excluded.unwritten, spent = excluded.spent;
        IF new_requests > 0 OR new_tokens > 0 THEN
            INSERT INTO limit_uses (key_id, until, requests, tokens)
                VALUES (ask.key_id, ceil(now_s * 10) / 10 + minute, new_requests, new_tokens)
                ON CONFLICT (key_id, until) DO UPDATE SET
                    requests = limit_uses.requests + excluded.requests,
                    tokens = limit_uses.tokens + excluded.tokens;
        END IF;
        answers := answers || jsonb_build_array(jsonb_build_object(
            'key_id', ask.key_id, 'seq', ask.seq,
            'held', jsonb_build_array(slots, requests, tokens, month),
            'left', jsonb_build_array(
                ask.concurrency - slots - others.slots,
                ask.rpm - used_requests - requests - others.requests,
                ask.tpm - used_tokens - tokens - others.tokens,
                ask.monthly - stored - month - others.month),
            'reset_s', coalesce(
                (SELECT max(u.until) - now_s FROM limit_uses AS u WHERE u.key_id = ask.key_id), 0),
            'contended_s', greatest(coalesce(contended, 0) - now_s, 0),
            'verdicts', verdicts));
    END LOOP;
    IF beat THEN
        SELECT coalesce(jsonb_agg(jsonb_build_array(c.key_id, c.until - limit_now())), '[]') INTO told
            FROM limit_contended AS c JOIN limit_shares AS s USING (key_id)
            WHERE s.holder = me AND c.until > limit_now();
    END IF;
    IF NOT gave THEN
        -- What only renews or gives back need not be on the disk: after a crash the relay says it again, and until
        -- then it holds more rather than less. So the next one who waits for the key's lock waits for no disk.
        PERFORM set_config('synchronous_commit', 'off', TRUE);
    END IF;
    RETURN jsonb_build_object(
        'lost', lost,
        'relays', (SELECT count(*) FROM limit_holders AS h WHERE h.until > limit_now()),
        'contended', told,
        'answers', answers)::text;
END $$;
