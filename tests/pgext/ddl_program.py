"""Transactions of every kind of DDL, in an order in which each finds what it needs."""

from random import Random

INCOMPRESSIBLE = Random(1).randbytes(60_000).hex()
"""Stored out of line in its catalog row."""

PROGRAM: list[list[str]] = [
    ["CREATE SCHEMA s", "CREATE TABLE s.t (a int PRIMARY KEY, b text NOT NULL, c numeric(9,2))"],
    [
        "CREATE TABLE u (id serial PRIMARY KEY, t_a int REFERENCES s.t, note text DEFAULT 'x')",
        "CREATE INDEX u_note ON u (note DESC) WHERE note IS NOT NULL",
        "CREATE INDEX u_lower ON u (lower(note)) INCLUDE (id)",
        "COMMENT ON TABLE u IS 'a comment'",
        "COMMENT ON COLUMN u.note IS 'another'",
    ],
    [
        "CREATE TABLE gen (a int GENERATED ALWAYS AS IDENTITY, b int, c int GENERATED ALWAYS AS"
        " (b * 2) STORED, EXCLUDE USING btree (b WITH =))"
    ],
    [
        "ALTER TABLE u ADD COLUMN added timestamptz DEFAULT now()",
        "ALTER TABLE u ADD COLUMN plain int DEFAULT 7",
    ],
    ["ALTER TABLE u ALTER COLUMN note DROP DEFAULT", "ALTER TABLE u RENAME COLUMN note TO remark"],
    [
        "CREATE TYPE mood AS ENUM ('sad', 'ok')",
        "CREATE TYPE pair AS (x int, y mood)",
        "CREATE DOMAIN positive AS int CHECK (VALUE > 0) NOT NULL",
    ],
    ["ALTER TYPE mood ADD VALUE 'happy' AFTER 'ok'"],
    ["CREATE TYPE span AS RANGE (subtype = float8)"],
    ["CREATE TABLE typed (m mood, p pair, d positive, r span, arr mood[])"],
    [
        "CREATE ROLE r1 LOGIN PASSWORD 'secret'",
        "CREATE ROLE r2",
        "GRANT r2 TO r1 WITH ADMIN OPTION",
    ],
    [
        "GRANT SELECT, INSERT (t_a) ON u TO r1",
        "GRANT USAGE ON SCHEMA s TO r2",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA s GRANT SELECT ON TABLES TO r2",
    ],
    ["ALTER ROLE r1 SET work_mem = '8MB'", "ALTER DATABASE postgres SET search_path = public, s"],
    ["GRANT CONNECT ON DATABASE postgres TO r2"],
    [
        "CREATE TABLE part (k int, v text) PARTITION BY RANGE (k)",
        "CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (10)",
        "CREATE TABLE part_d PARTITION OF part DEFAULT",
        "CREATE INDEX ON part (v)",
    ],
    [
        "CREATE TABLE part_2 (k int, v text)",
        "ALTER TABLE part ATTACH PARTITION part_2 FOR VALUES FROM (10) TO (20)",
    ],
    ["ALTER TABLE part DETACH PARTITION part_1"],
    [
        "CREATE VIEW v AS SELECT id, remark FROM u WHERE id > 1",
        "CREATE MATERIALIZED VIEW mv AS SELECT 1 AS one WITH NO DATA",
        "CREATE RULE nothing AS ON DELETE TO v DO INSTEAD NOTHING",
    ],
    [
        "CREATE FUNCTION f(x int) RETURNS int LANGUAGE sql AS 'SELECT x + 1'",
        "CREATE PROCEDURE p() LANGUAGE plpgsql AS $$ BEGIN NULL; END $$",
        "CREATE FUNCTION trg() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$",
        "CREATE TRIGGER tr BEFORE UPDATE ON u FOR EACH ROW EXECUTE FUNCTION trg()",
        "CREATE AGGREGATE total(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0')",
    ],
    ["CREATE FUNCTION long() RETURNS text LANGUAGE sql AS $$ SELECT '" + INCOMPRESSIBLE + "' $$"],
    [
        "ALTER TABLE u ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY mine ON u FOR SELECT TO r1 USING (id = 1)",
    ],
    ["CREATE TABLE child (extra int) INHERITS (s.t)"],
    [
        "ALTER TABLE u ADD CONSTRAINT chk CHECK (id < 1000) NOT VALID",
        "ALTER TABLE u ADD CONSTRAINT uq UNIQUE (remark) DEFERRABLE INITIALLY DEFERRED",
    ],
    ["ALTER TABLE u VALIDATE CONSTRAINT chk"],
    ["CREATE SEQUENCE seq START 100 INCREMENT 5", "ALTER SEQUENCE seq MAXVALUE 100000"],
    ["CREATE TABLE a (x int)", "CREATE TABLE b (y int)"],
    ["ALTER TABLE a RENAME TO swap", "ALTER TABLE b RENAME TO a", "ALTER TABLE swap RENAME TO b"],
    ["DROP TABLE a", "ALTER TABLE b RENAME TO a"],
    [
        "SAVEPOINT one",
        "CREATE TABLE never (x int)",
        "ROLLBACK TO one",
        "CREATE TABLE really (x int)",
        "SAVEPOINT two",
        "ALTER TABLE really ADD y int",
        "RELEASE two",
    ],
    [
        "DO $$ BEGIN CREATE TABLE in_do (x int); BEGIN CREATE TABLE lost (y int); RAISE 'no';"
        " EXCEPTION WHEN OTHERS THEN NULL; END; END $$"
    ],
    ["CREATE TABLE gone (x int)", "DROP TABLE gone"],
    [
        "CREATE TEMP TABLE temporary (x serial PRIMARY KEY, y text CHECK (y <> ''))",
        "CREATE TABLE beside_temp (x int)",
        "CREATE TEMP VIEW tv AS SELECT 1",
        "CREATE INDEX ON temporary (y)",
    ],
    ["ALTER TABLE temporary ADD COLUMN z int DEFAULT 3"],
    ["DROP TABLE temporary"],
    ["INSERT INTO s.t VALUES (1, 'b', 2)", "ANALYZE s.t"],
    ["ALTER TABLE s.t ALTER COLUMN c TYPE float8"],
    ["TRUNCATE u"],
    [
        "CREATE STATISTICS st ON a, b FROM s.t",
        "CREATE FUNCTION on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN END $$",
        "CREATE EVENT TRIGGER et ON ddl_command_start EXECUTE FUNCTION on_ddl()",
    ],
    [
        "CREATE FUNCTION mood_to_int(mood) RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE CAST (mood AS int) WITH FUNCTION mood_to_int(mood)",
    ],
    [
        'CREATE COLLATION co FROM "C"',
        "CREATE OPERATOR === (FUNCTION = int4eq, LEFTARG = int, RIGHTARG = int)",
    ],
    [
        "CREATE TEXT SEARCH CONFIGURATION tsc (COPY = simple)",
        "CREATE TEXT SEARCH DICTIONARY tsd (TEMPLATE = simple)",
    ],
    ["CREATE PUBLICATION pub FOR TABLE u", "ALTER TABLE u REPLICA IDENTITY FULL"],
    ["ALTER TABLE u OWNER TO r2", "REASSIGN OWNED BY r2 TO admin", "ALTER FUNCTION f(int) STRICT"],
    [
        "ALTER TABLE gen ALTER COLUMN a RESTART WITH 10",
        "ALTER TABLE gen ALTER COLUMN b SET NOT NULL",
    ],
    ["ALTER TABLE u DROP COLUMN plain", "DROP INDEX u_note", "DROP TRIGGER tr ON u"],
    ["ALTER SCHEMA s RENAME TO s2", "ALTER TABLE s2.t SET SCHEMA public"],
    ["DROP OWNED BY r1", "DROP ROLE r1"],
    ["DROP SCHEMA s2 CASCADE", "DROP TYPE mood CASCADE", "DROP TABLE part CASCADE"],
    ["CREATE TABLE " + name + " (a int PRIMARY KEY, b text UNIQUE)" for name in ("w1", "w2", "w3")],
]
