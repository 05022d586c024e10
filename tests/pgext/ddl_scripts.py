"""Scripts of DDL that must leave what they leave with stock PostgreSQL (test_ddl.py)."""

from __future__ import annotations

FILLED = """
        CREATE TABLE t (a int PRIMARY KEY, b text, c int);
        INSERT INTO t SELECT i, 'row ' || i, i % 3 FROM generate_series(1, 20) i;
"""

SCRIPTS = {
    "truncate": FILLED
    + """
        CREATE INDEX t_b ON t (b);
        TRUNCATE t;
        SELECT count(*) FROM t;
        INSERT INTO t VALUES (1, 'again', 0);
        SELECT * FROM t WHERE b = 'again';
        BEGIN;
        TRUNCATE t;
        INSERT INTO t VALUES (2, 'inside', 0);
        SELECT * FROM t;
        ROLLBACK;
        SELECT * FROM t;
        BEGIN;
        INSERT INTO t VALUES (3, 'before', 0);
        TRUNCATE t;
        INSERT INTO t VALUES (3, 'after', 0);
        TRUNCATE t;
        INSERT INTO t VALUES (3, 'after that', 0);
        COMMIT;
        SELECT * FROM t;
        SELECT * FROM t WHERE b > 'a';
        BEGIN;
        SAVEPOINT s;
        TRUNCATE t;
        ROLLBACK TO s;
        SELECT count(*) FROM t;
        COMMIT;
        CREATE TABLE child (x int REFERENCES t);
        TRUNCATE t;
        TRUNCATE t CASCADE;
        SELECT count(*) FROM t;
    """,
    "create and truncate in one transaction": """
        BEGIN;
        CREATE TABLE n (a int PRIMARY KEY, b int UNIQUE);
        INSERT INTO n VALUES (1, 1), (2, 2);
        TRUNCATE n;
        SELECT count(*) FROM n;
        INSERT INTO n VALUES (1, 2);
        COMMIT;
        SELECT * FROM n WHERE b = 2;
    """,
    "add column": FILLED
    + """
        ALTER TABLE t ADD COLUMN d int DEFAULT 7;
        SELECT * FROM t WHERE a < 3 ORDER BY a;
        SELECT count(*) FROM t WHERE d = 7;
        ALTER TABLE t ADD COLUMN e text DEFAULT 'some' NOT NULL, ADD COLUMN f text;
        INSERT INTO t VALUES (21, 'x', 1, 8, 'other', 'f');
        SELECT * FROM t WHERE a IN (1, 21) ORDER BY a;
        ALTER TABLE t ALTER d SET DEFAULT 9;
        INSERT INTO t (a) VALUES (22);
        SELECT * FROM t WHERE a IN (1, 22) ORDER BY a;
        SELECT e, count(*) FROM t GROUP BY e ORDER BY e;
        UPDATE t SET d = NULL WHERE a = 1;
        SELECT d FROM t WHERE a = 1;
        ALTER TABLE t ADD COLUMN g int NOT NULL;
        ALTER TABLE t ADD COLUMN IF NOT EXISTS f text;
        ALTER TABLE t ADD COLUMN n numeric(10,2) DEFAULT 1.5, ADD COLUMN ar int[] DEFAULT '{1,2}';
        SELECT n, ar FROM t WHERE a = 5;
        CREATE INDEX ON t (n);
        SELECT count(*) FROM t WHERE n = 1.5;
    """,
    "add column and use it in one transaction": FILLED
    + """
        BEGIN;
        ALTER TABLE t ADD COLUMN d int DEFAULT 7;
        SELECT sum(d) FROM t;
        SELECT count(*) FROM t WHERE d = 7;
        SELECT count(*) FROM t WHERE d = 8;
        UPDATE t SET d = a WHERE a < 5;
        INSERT INTO t VALUES (100, 'new', 0, 50);
        SELECT a, d FROM t WHERE a < 7 OR a = 100 ORDER BY a;
        ALTER TABLE t ADD COLUMN e int;
        UPDATE t SET e = 1;
        CREATE INDEX t_d ON t (d);
        SELECT a FROM t WHERE d = 50;
        COMMIT;
        SELECT a, d, e FROM t ORDER BY a;
        SELECT a FROM t WHERE d = 3;
        BEGIN;
        SAVEPOINT s;
        ALTER TABLE t ADD COLUMN g int DEFAULT 1;
        ROLLBACK TO s;
        ALTER TABLE t ADD COLUMN g text DEFAULT 'other';
        COMMIT;
        SELECT g, count(*) FROM t GROUP BY g;
        BEGIN;
        ALTER TABLE t ADD COLUMN h int DEFAULT 1;
        ROLLBACK;
        SELECT * FROM t WHERE a = 1;
    """,
    "add column, more": """
        BEGIN;
        CREATE TABLE n (a int PRIMARY KEY);
        INSERT INTO n VALUES (1);
        ALTER TABLE n ADD COLUMN b int DEFAULT 5;
        SELECT * FROM n;
        INSERT INTO n VALUES (2, 6);
        ALTER TABLE n ADD COLUMN c text DEFAULT repeat('long', 2000);
        SELECT a, b, length(c) FROM n ORDER BY a;
        COMMIT;
        SELECT a, b, length(c) FROM n ORDER BY a;
        ALTER TABLE n ADD COLUMN d bytea DEFAULT convert_to(repeat('x', 9000), 'UTF8');
        SELECT a, length(d) FROM n ORDER BY a;
        UPDATE n SET a = a + 10;
        SELECT a, b, length(c), length(d) FROM n ORDER BY a;
        BEGIN;
        TRUNCATE n;
        ALTER TABLE n ADD COLUMN e int DEFAULT 9;
        INSERT INTO n (a) VALUES (1);
        ALTER TABLE n DROP COLUMN d, ADD COLUMN f int, ALTER b TYPE text;
        SELECT a, b, e, f FROM n;
        COMMIT;
        SELECT a, b, e, f FROM n;
        BEGIN;
        ALTER TABLE n ADD COLUMN g int DEFAULT 1;
        SAVEPOINT s;
        ALTER TABLE n ADD COLUMN h int DEFAULT 2;
        UPDATE n SET g = 10, h = 20;
        ROLLBACK TO s;
        SELECT a, g FROM n;
        ALTER TABLE n DROP COLUMN g;
        COMMIT;
        SELECT a, b, e, f FROM n;
        ALTER TABLE n ADD COLUMN h numeric DEFAULT 1.50 CHECK (h > 1),
            ADD COLUMN i date DEFAULT '2024-02-29';
        SELECT h, i FROM n;
        ALTER TABLE n ADD COLUMN j int DEFAULT 1 CHECK (j > 1);
        ALTER TABLE n ADD COLUMN k int GENERATED ALWAYS AS (e + 1) VIRTUAL;
        SELECT k FROM n;
        ALTER TABLE n ADD COLUMN u int DEFAULT 3 UNIQUE;
        INSERT INTO n (a) VALUES (2);
        SELECT count(*) FROM n WHERE u = 3;
    """,
    "procedures and exceptions": """
        CREATE TABLE t (a int PRIMARY KEY);
        CREATE PROCEDURE p() LANGUAGE plpgsql AS 'BEGIN
            INSERT INTO t VALUES (1); COMMIT; INSERT INTO t VALUES (2); ROLLBACK;
            ALTER TABLE t ADD COLUMN b int DEFAULT 3; COMMIT; INSERT INTO t VALUES (4); END';
        CALL p();
        SELECT * FROM t ORDER BY a;
        DO 'BEGIN
            BEGIN
                ALTER TABLE t ADD COLUMN c int DEFAULT 1; CREATE INDEX t_c ON t (c);
                CREATE TABLE inner_one (a int PRIMARY KEY); INSERT INTO inner_one VALUES (1), (1);
            EXCEPTION WHEN unique_violation THEN
                CREATE TABLE handled (a int PRIMARY KEY);
            END;
            INSERT INTO handled VALUES (1);
            ALTER TABLE t ADD COLUMN c text DEFAULT ''second'';
            UPDATE t SET c = ''third'' WHERE a = 1;
        END';
        SELECT * FROM t ORDER BY a;
        SELECT * FROM handled;
        SELECT * FROM inner_one;
        CREATE TABLE made_from_temp (a int PRIMARY KEY);
        CREATE TEMP TABLE tmp (a int PRIMARY KEY, b text UNIQUE);
        INSERT INTO tmp VALUES (1, 'x');
        CREATE TABLE from_temp (LIKE tmp INCLUDING ALL);
        INSERT INTO from_temp SELECT * FROM tmp;
        INSERT INTO from_temp SELECT * FROM tmp;
        SELECT indexdef FROM pg_indexes WHERE tablename = 'from_temp' ORDER BY indexname;
    """,
    "subtransactions that fail inside a statement": FILLED
    + """
        CREATE FUNCTION risky(int) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS 'BEGIN
            BEGIN PERFORM 1 / ($1 - $1); EXCEPTION WHEN division_by_zero THEN RETURN true; END
            ; RETURN false; END';
        ALTER TABLE t ADD COLUMN y int DEFAULT 4, ADD CHECK (risky(a));
        INSERT INTO t (a, y) VALUES (40, 5);
        SELECT y, count(*) FROM t GROUP BY y ORDER BY y;
        CREATE INDEX t_risky ON t (a) WHERE risky(a);
        ALTER TABLE t ADD COLUMN z text DEFAULT 'z', ALTER c TYPE text USING c || risky(a)::text;
        SELECT c, y, z FROM t WHERE a = 3;
    """,
    "drop and rename": FILLED
    + """
        CREATE INDEX t_c ON t (c);
        ALTER TABLE t DROP COLUMN c;
        SELECT * FROM t WHERE a = 3;
        INSERT INTO t VALUES (30, 'thirty');
        ALTER TABLE t RENAME COLUMN b TO bb;
        ALTER TABLE t RENAME TO u;
        SELECT * FROM u WHERE bb = 'thirty';
        ALTER TABLE u ADD COLUMN c text DEFAULT 'new c';
        SELECT * FROM u WHERE a = 3;
        ALTER INDEX t_pkey RENAME TO u_key;
        CREATE SCHEMA compared_other;
        ALTER TABLE u SET SCHEMA compared_other;
        SELECT count(*) FROM compared_other.u;
        DROP SCHEMA compared_other CASCADE;
        SELECT * FROM u;
    """,
    "indexes on filled tables": FILLED
    + """
        CREATE INDEX t_b ON t (b);
        CREATE UNIQUE INDEX t_cb ON t (c, b DESC);
        CREATE UNIQUE INDEX t_c ON t (c);
        CREATE INDEX t_part ON t (a) WHERE c = 1;
        CREATE INDEX t_expr ON t (lower(b));
        CREATE INDEX t_incl ON t (c) INCLUDE (b);
        SELECT a FROM t WHERE b = 'row 7';
        SELECT a FROM t WHERE lower(b) = 'row 8';
        SELECT a FROM t WHERE c = 1 ORDER BY a;
        INSERT INTO t VALUES (50, 'row 7', 1);
        UPDATE t SET b = 'moved' WHERE a = 7;
        SELECT a FROM t WHERE b = 'moved';
        SELECT a FROM t WHERE b = 'row 7';
        DROP INDEX t_b, t_part;
        SELECT a FROM t WHERE b = 'moved';
        BEGIN;
        INSERT INTO t VALUES (60, 'sixty', 2);
        CREATE INDEX t_b2 ON t (b);
        SELECT a FROM t WHERE b = 'sixty';
        SAVEPOINT s;
        CREATE INDEX t_b3 ON t (b);
        INSERT INTO t VALUES (61, 'sixty', 2);
        ROLLBACK TO s;
        SELECT a FROM t WHERE b = 'sixty';
        COMMIT;
        SELECT a FROM t WHERE b = 'sixty';
    """,
    "primary key added later": """
        CREATE TABLE t (a int, b text);
        INSERT INTO t SELECT i, 'row ' || i FROM generate_series(1, 20) i;
        ALTER TABLE t ADD PRIMARY KEY (a);
        SELECT * FROM t WHERE a = 7;
        INSERT INTO t VALUES (7, 'twice');
        INSERT INTO t VALUES (21, 'new');
        UPDATE t SET a = 22 WHERE a = 21;
        SELECT * FROM t WHERE a > 20;
        INSERT INTO t VALUES (NULL, 'null');
        CREATE TABLE child (x int REFERENCES t);
        INSERT INTO child VALUES (22);
        INSERT INTO child VALUES (23);
        DELETE FROM t WHERE a = 22;
        CREATE TABLE dup (a int);
        INSERT INTO dup VALUES (1), (1);
        ALTER TABLE dup ADD PRIMARY KEY (a);
        ALTER TABLE dup ADD UNIQUE (a);
        DELETE FROM dup;
        ALTER TABLE dup ADD PRIMARY KEY (a);
        INSERT INTO dup VALUES (1);
        INSERT INTO dup VALUES (1);
    """,
    "primary key dropped and made again": """
        CREATE TABLE t (a int, b int, CONSTRAINT t_pk PRIMARY KEY (a));
        INSERT INTO t VALUES (1, 10), (2, 20);
        CREATE TABLE h (a int, b int);
        INSERT INTO h VALUES (1, 10), (2, 20);
        ALTER TABLE h ADD CONSTRAINT h_pk PRIMARY KEY (a);
        ALTER TABLE h DROP CONSTRAINT h_pk;
        INSERT INTO h VALUES (1, 30);
        SELECT * FROM h ORDER BY b;
        ALTER TABLE h ADD PRIMARY KEY (b);
        SELECT * FROM h WHERE b = 30;
    """,
    "constraints": FILLED
    + """
        ALTER TABLE t ADD CHECK (a < 100);
        ALTER TABLE t ADD CONSTRAINT small CHECK (c < 2);
        ALTER TABLE t ADD CONSTRAINT small CHECK (c < 2) NOT VALID;
        INSERT INTO t VALUES (40, 'x', 2);
        UPDATE t SET c = 1 WHERE c = 2;
        ALTER TABLE t VALIDATE CONSTRAINT small;
        ALTER TABLE t DROP CONSTRAINT small;
        UPDATE t SET c = NULL WHERE a = 1;
        ALTER TABLE t ALTER c SET NOT NULL;
        UPDATE t SET c = 0 WHERE a = 1;
        ALTER TABLE t ALTER c SET NOT NULL;
        INSERT INTO t VALUES (41, 'x', NULL);
        ALTER TABLE t ALTER c DROP NOT NULL;
        CREATE TABLE child (x int PRIMARY KEY, y int);
        INSERT INTO child VALUES (1, 1), (2, 200);
        ALTER TABLE child ADD FOREIGN KEY (y) REFERENCES t;
        DELETE FROM child WHERE y = 200;
        ALTER TABLE child ADD FOREIGN KEY (y) REFERENCES t ON DELETE CASCADE;
        DELETE FROM t WHERE a = 1;
        SELECT * FROM child;
        ALTER TABLE t ADD CONSTRAINT uq UNIQUE (c);
        ALTER TABLE t ADD CONSTRAINT uq UNIQUE (b);
        CREATE UNIQUE INDEX t_bc ON t (b, c);
        ALTER TABLE t ADD CONSTRAINT uq2 UNIQUE USING INDEX t_bc;
        INSERT INTO t SELECT * FROM t WHERE a = 2;
        CREATE DOMAIN pos AS int;
        CREATE TABLE dt (a pos);
        INSERT INTO dt VALUES (-1);
        ALTER DOMAIN pos ADD CHECK (VALUE > 0);
        DELETE FROM dt;
        ALTER DOMAIN pos ADD CHECK (VALUE > 0);
        INSERT INTO dt VALUES (-1);
    """,
    "create as, views": FILLED
    + """
        CREATE TABLE u AS SELECT a, b FROM t WHERE a < 4;
        SELECT * FROM u ORDER BY a;
        CREATE TABLE w (LIKE t INCLUDING ALL);
        INSERT INTO w SELECT * FROM t;
        SELECT count(*) FROM w WHERE a > 10;
        CREATE VIEW v AS SELECT c, count(*) AS n FROM t GROUP BY c;
        SELECT * FROM v ORDER BY c;
        CREATE OR REPLACE VIEW v AS SELECT c, count(*) AS n, 1 AS one FROM t GROUP BY c;
        SELECT * FROM v ORDER BY c;
        CREATE TABLE x AS TABLE t WITH NO DATA;
        SELECT count(*) FROM x;
        SELECT * INTO y FROM t WHERE a = 2;
        SELECT * FROM y;
        DROP TABLE t;
        DROP TABLE t CASCADE;
        SELECT * FROM v;
    """,
    "partitions": """
        CREATE TABLE p (a int, b text, PRIMARY KEY (a)) PARTITION BY RANGE (a);
        CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
        CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (10) TO (20);
        INSERT INTO p SELECT i, 'r' || i FROM generate_series(0, 19) i;
        INSERT INTO p VALUES (20, 'out');
        SELECT tableoid::regclass, count(*) FROM p GROUP BY 1 ORDER BY 1;
        CREATE INDEX ON p (b);
        SELECT * FROM p WHERE b = 'r15';
        UPDATE p SET a = 9 + 100 WHERE a = 9;
        DELETE FROM p WHERE a = 19;
        UPDATE p SET a = 19 WHERE a = 9;
        SELECT tableoid::regclass, a FROM p WHERE a = 19;
        CREATE TABLE p3 (a int PRIMARY KEY, b text);
        INSERT INTO p3 VALUES (25, 'r25');
        ALTER TABLE p ATTACH PARTITION p3 FOR VALUES FROM (20) TO (30);
        SELECT * FROM p WHERE a > 17 ORDER BY a;
        INSERT INTO p3 VALUES (40, 'x');
        ALTER TABLE p DETACH PARTITION p1;
        SELECT count(*) FROM p;
        SELECT count(*) FROM p1;
        ALTER TABLE p ADD COLUMN c int DEFAULT 5;
        SELECT DISTINCT c FROM p;
        TRUNCATE p;
        SELECT count(*) FROM p;
        DROP TABLE p;
        SELECT count(*) FROM p1;
    """,
    "inheritance and types": """
        CREATE TABLE base (a int PRIMARY KEY, b text);
        CREATE TABLE kid (c int) INHERITS (base);
        INSERT INTO base VALUES (1, 'b');
        INSERT INTO kid VALUES (2, 'k', 5);
        SELECT * FROM base ORDER BY a;
        ALTER TABLE base ADD COLUMN d int DEFAULT 3;
        SELECT * FROM kid;
        UPDATE base SET d = 4;
        SELECT d FROM ONLY base;
        CREATE TYPE pair AS (x int, y text);
        CREATE TABLE typed OF pair (PRIMARY KEY (x));
        INSERT INTO typed VALUES (1, 'one');
        ALTER TYPE pair ADD ATTRIBUTE z int CASCADE;
        SELECT * FROM typed;
        CREATE TYPE mood AS ENUM ('low', 'high');
        CREATE TABLE m (a mood, b mood[]);
        INSERT INTO m VALUES ('low', '{high}');
        ALTER TYPE mood ADD VALUE 'mid' BEFORE 'high';
        INSERT INTO m VALUES ('mid', NULL);
        SELECT a FROM m ORDER BY a;
        DROP TYPE mood;
        DROP TYPE mood CASCADE;
        SELECT count(*) FROM m;
    """,
    "many statements in one transaction": """
        BEGIN;
        CREATE TABLE a (id serial PRIMARY KEY, x text);
        CREATE TABLE b (id serial PRIMARY KEY, a_id int REFERENCES a);
        CREATE INDEX ON b (a_id);
        INSERT INTO a (x) VALUES ('one');
        INSERT INTO b (a_id) VALUES (1);
        SAVEPOINT s1;
        DROP TABLE b;
        CREATE TABLE b (other int PRIMARY KEY);
        INSERT INTO b VALUES (99);
        SELECT * FROM b;
        ROLLBACK TO s1;
        SELECT * FROM b;
        ALTER TABLE b ADD COLUMN note text DEFAULT 'n';
        INSERT INTO b (a_id) VALUES (5);
        ROLLBACK TO s1;
        INSERT INTO b (a_id) VALUES (1);
        COMMIT;
        SELECT * FROM b ORDER BY id;
        BEGIN;
        DROP TABLE b;
        SELECT * FROM b;
        ROLLBACK;
        BEGIN;
        DROP TABLE b;
        CREATE TABLE b (z int);
        INSERT INTO b VALUES (1);
        COMMIT;
        SELECT * FROM b;
        BEGIN;
        CREATE TABLE gone (a int PRIMARY KEY);
        INSERT INTO gone VALUES (1);
        ROLLBACK;
        SELECT * FROM gone;
        BEGIN;
        CREATE TABLE brief (a int PRIMARY KEY);
        INSERT INTO brief VALUES (1);
        DROP TABLE brief;
        COMMIT;
        SELECT * FROM brief;
    """,
    "functions and triggers": """
        CREATE TABLE t (a int PRIMARY KEY, b int);
        CREATE FUNCTION up() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN NEW.b := coalesce(NEW.b, 0) + 1; RETURN NEW; END';
        CREATE TRIGGER tr BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION up();
        INSERT INTO t VALUES (1, 5), (2, NULL) RETURNING *;
        ALTER TABLE t DISABLE TRIGGER tr;
        UPDATE t SET b = 0 RETURNING *;
        CREATE FUNCTION make() RETURNS int LANGUAGE plpgsql AS
            'DECLARE n int; BEGIN
             CREATE TABLE made (a int PRIMARY KEY); INSERT INTO made VALUES (1), (2);
             SELECT count(*) INTO n FROM made; DROP TABLE made; RETURN n; END';
        SELECT make();
        SELECT make();
        CREATE RULE r AS ON DELETE TO t DO INSTEAD UPDATE t SET b = -1 WHERE a = OLD.a;
        DELETE FROM t WHERE a = 1;
        SELECT * FROM t ORDER BY a;
        CREATE TABLE g (a int PRIMARY KEY, b int GENERATED ALWAYS AS (a * 2) STORED,
            c int GENERATED ALWAYS AS (a * 3) VIRTUAL);
        INSERT INTO g VALUES (1), (2);
        UPDATE g SET a = 5 WHERE a = 2;
        SELECT * FROM g ORDER BY a;
    """,
    "temporary tables": """
        CREATE TEMP TABLE tt (a int PRIMARY KEY, b text UNIQUE);
        INSERT INTO tt SELECT i, 'x' || i FROM generate_series(1, 10) i;
        SELECT * FROM tt WHERE b = 'x3';
        INSERT INTO tt VALUES (1, 'dup');
        CREATE TABLE keep AS SELECT * FROM tt;
        SELECT count(*) FROM keep k JOIN tt USING (a);
        CREATE TEMP TABLE od (a int) ON COMMIT DELETE ROWS;
        BEGIN;
        INSERT INTO od VALUES (1);
        SELECT count(*) FROM od;
        COMMIT;
        SELECT count(*) FROM od;
        BEGIN;
        CREATE TEMP TABLE dr (a int) ON COMMIT DROP;
        COMMIT;
        SELECT * FROM dr;
        ALTER TABLE tt ADD COLUMN c int DEFAULT 3;
        CREATE INDEX ON tt (c);
        ALTER TABLE tt ALTER c TYPE bigint;
        SELECT count(*) FROM tt WHERE c = 3;
        ALTER TABLE tt ADD COLUMN r float8 DEFAULT random();
        SELECT count(DISTINCT r) FROM tt;
        TRUNCATE tt;
        SELECT count(*) FROM tt;
        CREATE TABLE fk (a int REFERENCES tt);
    """,
}

REWRITES = {
    "primary key that keyed the rows": """
        CREATE TABLE t (a int, b int, CONSTRAINT t_pk PRIMARY KEY (a));
        INSERT INTO t SELECT i, i * 10 FROM generate_series(1, 10) i;
        CREATE INDEX t_b ON t (b);
        ALTER TABLE t DROP CONSTRAINT t_pk;
        INSERT INTO t VALUES (1, 30);
        SELECT * FROM t WHERE b = 30 ORDER BY a;
        ALTER TABLE t ADD PRIMARY KEY (a);
        DELETE FROM t WHERE a = 1 AND b = 30;
        ALTER TABLE t ADD PRIMARY KEY (a);
        INSERT INTO t VALUES (1, 30);
        SELECT * FROM t WHERE a = 3;
        CREATE TABLE u (a int PRIMARY KEY, b int);
        INSERT INTO u VALUES (1, 2), (2, 1);
        ALTER TABLE u DROP CONSTRAINT u_pkey, ADD PRIMARY KEY (b);
        INSERT INTO u VALUES (1, 3);
        INSERT INTO u VALUES (9, 1);
        SELECT * FROM u ORDER BY b;
        CREATE TABLE w (a int PRIMARY KEY, b int UNIQUE, c text);
        INSERT INTO w VALUES (1, 1, 'one'), (2, 2, 'two');
        ALTER TABLE w DROP COLUMN a;
        INSERT INTO w VALUES (2, 'again');
        INSERT INTO w VALUES (3, 'three');
        SELECT * FROM w ORDER BY b;
        BEGIN;
        CREATE TABLE x (a int PRIMARY KEY);
        INSERT INTO x VALUES (1);
        ALTER TABLE x DROP CONSTRAINT x_pkey;
        INSERT INTO x VALUES (1);
        COMMIT;
        SELECT * FROM x;
        CREATE TABLE child (y int REFERENCES t);
        ALTER TABLE t DROP CONSTRAINT t_pkey;
        SELECT count(*) FROM t WHERE a = 3;
        ALTER TABLE t DROP CONSTRAINT t_pkey CASCADE;
        ALTER TABLE t DROP CONSTRAINT nosuch;
        INSERT INTO child VALUES (99);
        CREATE TABLE pt (a int, b int, CONSTRAINT pt_pk PRIMARY KEY (a)) PARTITION BY RANGE (a);
        CREATE TABLE pt1 PARTITION OF pt FOR VALUES FROM (0) TO (10);
        INSERT INTO pt VALUES (1, 1), (2, 2);
        ALTER TABLE pt DROP CONSTRAINT pt_pk;
        INSERT INTO pt VALUES (1, 1);
        SELECT * FROM pt ORDER BY a;
        CREATE TABLE ih (a int PRIMARY KEY);
        CREATE TABLE ih_kid (b int, PRIMARY KEY (a)) INHERITS (ih);
        INSERT INTO ih_kid VALUES (1, 1);
        ALTER TABLE ih ALTER a TYPE bigint;
        INSERT INTO ih_kid VALUES (1, 1);
        SELECT * FROM ih WHERE a = 1;
    """,
    "primary key of an empty table": """
        CREATE TABLE e (a int PRIMARY KEY, b int);
        ALTER TABLE e DROP CONSTRAINT e_pkey;
        INSERT INTO e VALUES (1, 1), (1, 2);
        SELECT * FROM e ORDER BY b;
        CREATE TABLE f (a int PRIMARY KEY, b int);
        ALTER TABLE f ALTER a TYPE text;
        INSERT INTO f VALUES ('1', 1), ('x', 2);
        INSERT INTO f VALUES ('x', 3);
        SELECT * FROM f WHERE a = 'x';
        BEGIN;
        CREATE TABLE g (a int PRIMARY KEY, b int);
        INSERT INTO g VALUES (1, 1);
        DELETE FROM g;
        ALTER TABLE g DROP CONSTRAINT g_pkey, ADD PRIMARY KEY (b);
        INSERT INTO g VALUES (1, 1), (1, 2);
        INSERT INTO g VALUES (1, 2);
        ROLLBACK;
        TRUNCATE f;
        BEGIN;
        TRUNCATE f;
        ALTER TABLE f DROP CONSTRAINT f_pkey;
        INSERT INTO f VALUES ('x', 3), ('x', 4);
        COMMIT;
        SELECT * FROM f ORDER BY b;
    """,
    "type change that keeps indexes": """
        CREATE TABLE t (a varchar(5) PRIMARY KEY, b varchar(5) UNIQUE, c varchar(5), n oid);
        CREATE INDEX ON t (c);
        CREATE INDEX ON t (n);
        INSERT INTO t VALUES ('a1', 'b1', 'c1', 1), ('a2', 'b2', 'c2', 4000000000);
        ALTER TABLE t ALTER a TYPE varchar(10), ALTER b TYPE varchar(10), ALTER c TYPE varchar(10);
        SELECT * FROM t WHERE c = 'c1';
        SELECT * FROM t WHERE b = 'b2';
        INSERT INTO t VALUES ('a3', 'b2', 'c3', 3);
        INSERT INTO t VALUES ('a1', 'b3', 'c3', 3);
        INSERT INTO t VALUES ('a3333333', 'b3', 'c3', 3);
        SELECT a FROM t WHERE a = 'a3333333';
        ALTER TABLE t ALTER a TYPE text, ALTER b TYPE text, ALTER c TYPE text, ALTER n TYPE int;
        SELECT * FROM t WHERE a = 'a2';
        SELECT * FROM t ORDER BY n;
        SELECT * FROM t WHERE n < 0;
        INSERT INTO t VALUES ('a2', 'b9', 'c9', 9);
        INSERT INTO t VALUES ('a9', 'b2', 'c9', 9);
        INSERT INTO t VALUES ('a9', 'b9', 'c9', 9);
        UPDATE t SET c = 'moved' WHERE a = 'a9';
        SELECT a FROM t WHERE c = 'moved';
        CREATE TABLE k (a oid PRIMARY KEY);
        INSERT INTO k VALUES (1), (4000000000);
        ALTER TABLE k ALTER a TYPE int;
        SELECT * FROM k ORDER BY a;
        SELECT * FROM k WHERE a < 0;
        INSERT INTO k VALUES (1);
    """,
    "type change": FILLED
    + """
        CREATE INDEX t_c ON t (c);
        ALTER TABLE t ALTER c TYPE bigint;
        SELECT * FROM t WHERE c = 2 ORDER BY a;
        ALTER TABLE t ALTER c TYPE text USING 'c' || c;
        SELECT a FROM t WHERE c = 'c1' ORDER BY a;
        INSERT INTO t VALUES (21, 'x', 'c9');
        SELECT * FROM t WHERE c = 'c9';
        INSERT INTO t VALUES (21, 'x', 'c9');
        ALTER TABLE t ALTER a TYPE numeric;
        SELECT * FROM t WHERE a = 5;
        INSERT INTO t VALUES (5.0, 'x', 'c9');
        INSERT INTO t VALUES (5.5, 'x', 'c9');
        SELECT a FROM t WHERE a BETWEEN 5 AND 6 ORDER BY a;
        UPDATE t SET a = 50 WHERE a = 5.5;
        DELETE FROM t WHERE a = 50;
        SELECT count(*) FROM t;
        ALTER TABLE t ALTER b TYPE varchar(3);
        ALTER TABLE t ALTER b TYPE varchar(30);
        SELECT b FROM t WHERE a = 4;
    """,
    "volatile default": FILLED
    + """
        ALTER TABLE t ADD COLUMN r float8 DEFAULT random();
        SELECT count(DISTINCT r) FROM t;
        SELECT count(*) FROM t WHERE a > 10;
        INSERT INTO t (a) VALUES (7);
        ALTER TABLE t ADD COLUMN g int GENERATED ALWAYS AS (a * 2) STORED;
        SELECT a, g FROM t WHERE a < 4 ORDER BY a;
    """,
    "rewrite in a transaction": FILLED
    + """
        BEGIN;
        UPDATE t SET b = 'changed' WHERE a = 1;
        INSERT INTO t VALUES (30, 'thirty', 1);
        DELETE FROM t WHERE a = 2;
        ALTER TABLE t ALTER c TYPE text;
        SELECT * FROM t WHERE a IN (1, 2, 30) ORDER BY a;
        INSERT INTO t VALUES (31, 'after', 'x');
        SAVEPOINT s;
        ALTER TABLE t ALTER c TYPE varchar USING c || '!';
        SELECT c FROM t WHERE a = 31;
        ROLLBACK TO s;
        SELECT c FROM t WHERE a = 31;
        COMMIT;
        SELECT * FROM t WHERE a IN (1, 2, 30, 31) ORDER BY a;
        BEGIN;
        ALTER TABLE t ALTER c TYPE int USING 1;
        ROLLBACK;
        SELECT c FROM t WHERE a = 31;
        CREATE TABLE child (x int REFERENCES t);
        INSERT INTO child VALUES (31);
        ALTER TABLE t ALTER a TYPE bigint;
        INSERT INTO child VALUES (99);
        INSERT INTO child VALUES (30);
        DELETE FROM t WHERE a = 31;
    """,
    "materialized view": FILLED
    + """
        CREATE MATERIALIZED VIEW mv AS SELECT c, count(*) AS n FROM t GROUP BY c;
        SELECT * FROM mv ORDER BY c;
        CREATE UNIQUE INDEX ON mv (c);
        INSERT INTO t VALUES (100, 'x', 50);
        REFRESH MATERIALIZED VIEW mv;
        SELECT * FROM mv WHERE c = 50;
        REFRESH MATERIALIZED VIEW CONCURRENTLY mv;
        SELECT count(*) FROM mv;
        BEGIN;
        DELETE FROM t;
        REFRESH MATERIALIZED VIEW mv;
        SELECT count(*) FROM mv;
        ROLLBACK;
        SELECT count(*) FROM mv;
        REFRESH MATERIALIZED VIEW mv WITH NO DATA;
        SELECT count(*) FROM mv;
        DROP MATERIALIZED VIEW mv;
    """,
}
