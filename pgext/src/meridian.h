/*
 * meridian.h
 *	  Shared declarations of the Meridian extension.
 *
 * One backend is one query processor.  Rows live in storage, reached through
 * the gateway socket (wire.c); uncommitted writes live in this backend's
 * memory only (txn.c).  docs/formats.md and docs/protocol.md are the contract.
 */
#ifndef MERIDIAN_H
#define MERIDIAN_H

#include "postgres.h"

#include "access/attnum.h"
#include "access/genam.h"
#include "access/relscan.h"
#include "access/sdir.h"
#include "access/tableam.h"
#include "access/tupdesc.h"
#include "executor/tuptable.h"
#include "lib/stringinfo.h"
#include "nodes/lockoptions.h"
#include "utils/rel.h"

/* msgpack (msgpack.c) and the protocol's numbers: proto.h */
#include "proto.h"

/* ---------- column classes and row values (rowcodec.c) ---------- */

typedef enum MerClass
{
	MER_INTEGER = 1,
	MER_BYTES = 2,
	MER_ORDERED = 3,
	MER_OPAQUE = 4
} MerClass;

typedef struct MerColumn
{
	AttrNumber	attnum;
	Oid			typid;			/* base type, domains resolved */
	int16		typlen;
	bool		typbyval;
	bool		dropped;
	MerClass	cls;
} MerColumn;

extern MerClass mer_column_class(Oid typid, Oid collation);
extern void mer_column_init(MerColumn *col, Form_pg_attribute att);

/* Append one value to a row (nil if isnull).  Never writes the BIG marker. */
extern void mer_value_put(StringInfo buf, const MerColumn *col, Datum value, bool isnull);

/* Read one value; by-reference results are palloc'd in CurrentMemoryContext. */
extern Datum mer_value_get(MpReader *r, const MerColumn *col, bool *isnull);

/* ---------- keys (keyenc.c) ---------- */

typedef struct MerKeyColumn
{
	AttrNumber	attnum;			/* of the table, 0 = expression */
	Oid			opfamily;
	Oid			typid;			/* of the indexed value, domains resolved */
	Oid			collation;
	bool		desc;
	bool		nulls_first;
} MerKeyColumn;

/* Is this operator family over this type and collation in the allow-list? */
extern bool mer_key_supported(Oid opfamily, Oid typid, Oid collation);
extern void mer_key_put(StringInfo buf, const MerKeyColumn *col, Datum value, bool isnull);

/*
 * Encode a comparison value of another type of the same family (int4 column,
 * int8 value).  False: cannot be used as a bound, the caller must recheck.
 */
extern bool mer_key_put_other(StringInfo buf, const MerKeyColumn *col, Oid typid, Datum value);

/* Can the value be rebuilt from the key (so an index-only scan needs no column)? */
extern bool mer_key_lossless(const MerKeyColumn *col);
extern Datum mer_key_get(const char **p, const char *end, const MerKeyColumn *col, bool *isnull);

/* Order bytes of a float/numeric for a pushed-down comparison (no suffix). */
extern void mer_order_bytes(StringInfo buf, Oid typid, Datum value);

extern uint64 mer_conflict_hash(int64 sid, int kind, const char *key, uint32 len);

/* ---------- the gateway (wire.c) ---------- */

typedef struct MerReply
{
	int			type;			/* answer type of docs/protocol.md */
	MpReader	body;			/* after [type, id] */
	char	   *frame;			/* palloc'd in the caller's context; pfree when done */
} MerReply;

extern uint32 mer_wire_next_id(void);

/* Start a request: frame header and [type, id] for an array of n_fields in all. */
extern uint32 mer_wire_begin(StringInfo buf, int type, int n_fields);
extern void mer_wire_send(StringInfo buf);

/*
 * Wait for the answer to id; interrupts are served while waiting (a cancelled
 * wait sends CANCEL and drops the late answer).  ERROR answers become
 * ereport(ERROR) with their SQLSTATE, message, detail and hint.
 */
extern MerReply mer_wire_wait(uint32 id);
extern void mer_wire_forget(uint32 id);	/* instead of waiting */
extern MerReply mer_wire_call(StringInfo buf, uint32 id);	/* send + wait */
extern bool mer_wire_connected(void);
extern const char *mer_profile(void);	/* "standard" or "dsql", from WELCOME */
extern int64 mer_limit(const char *name);	/* from WELCOME's limits map; ERROR if absent */
extern int64 mer_lease(int kind, int count, int64 *first);	/* LEASE; returns count granted */

#define MER_LEASE_ROW 1
#define MER_LEASE_SID 2
#define MER_LEASE_OID 3

/* ---------- relations (relmap.c) ---------- */

typedef struct MerRel
{
	Oid			relid;
	int64		sid;
	bool		is_index;
	int			natts;
	MerColumn  *cols;			/* [natts], of the table or the index */
	/* tables */
	bool		organised;		/* rows keyed by the primary key, else by a hidden id */
	int64		marks_sid;		/* writers leave marks there: a rewrite is under way; else 0 */
	/* key: of an organised table's primary key, or of the index */
	int			nkeys;
	MerKeyColumn *keys;
	/* indexes */
	int64		table_sid;
	Oid			table_oid;
	bool		unique;
	bool		nulls_not_distinct;
	bool		primary_of_organised;	/* the primary key of an organised table: has no entries of its own */
} MerRel;

/* Cached in rd_amcache; valid until the relation is closed or invalidated. */
extern MerRel *mer_rel(Relation rel);

/* Is this relation stored by us? */
extern bool mer_is_table(Relation rel);
extern bool mer_is_index(Relation rel);

/* Catalog table meridian.relation(relid oid, sid int8, organised bool), in the local transaction. */
extern int64 mer_relmap_create(Relation rel, bool organised);
extern int64 mer_relmap_sid(Oid relid, bool missing_ok);
extern void mer_relmap_drop(Oid relid);
extern void mer_relmap_swap(Oid a, Oid b);	/* after a rewrite */

/* ---------- transaction and write buffer (txn.c) ---------- */

extern int64 mer_tau_start(void);	/* assigned at the first call of a transaction */
extern bool mer_rel_written(int64 sid);	/* has this transaction buffered writes of sid? */
extern bool mer_txn_has_writes(void);

/* Schema ops and system rows that join the write set (sub-transaction safe). */
extern void mer_txn_schema_op(const char *op, uint32 len);	/* one encoded op array */

/*
 * The commit conflicts with every concurrent writer of this table: whoever
 * builds on a look at all rows (an index, a constraint) wants that.
 */
extern void mer_txn_lock_relation(Relation table);
extern void mer_txn_at_precommit(void (*callback) (void));	/* runs before the write set is shipped */
extern void mer_txn_put_system(int64 sid, const char *key, uint32 keylen,
							   int nvalues, const Datum *bytea_values);

/* ---------- scans (scan.c) ---------- */

typedef struct MerScan MerScan;

typedef struct MerScanSpec
{
	Relation	table;
	Relation	index;			/* NULL: scan the table by row key */
	const char *lo;				/* inclusive; NULL: from the start */
	uint32		lo_len;
	const char *hi;				/* exclusive; NULL: to the end */
	uint32		hi_len;
	ScanDirection direction;
	Bitmapset  *attrs;			/* needed attnums (FirstLowInvalidHeapAttributeNumber offset); NULL: all */
	const char *filter;			/* encoded filter on the table's columns, or NULL; a superset is enough */
	uint32		filter_len;
	uint64		limit;			/* expected rows, 0 = unknown */
	bool		want_tids;		/* register a TID per row (UPDATE, FOR UPDATE, bitmap) */
	bool		late_tids;		/* the caller says which rows need one: mer_scan_keep */
	bool		no_tids;		/* nobody looks at TIDs (index builds, aggregates) */
	bool		index_only;		/* no rows, only entries of the index */
	bool		point;			/* lo is one whole key (hi is not looked at) */
	int			npoints;		/* not 0: these whole keys, ascending, instead of lo and hi */
	const struct MerBytes *points;
} MerScanSpec;

/*
 * Remote rows as of tau_start merged with this transaction's own writes that
 * are visible to snapshot (curcid).  Halloween-safe.
 */
extern MerScan *mer_scan_begin(const MerScanSpec *spec, Snapshot snapshot);
extern bool mer_scan_next(MerScan *scan, ScanDirection direction, TupleTableSlot *slot);
extern void mer_scan_rescan(MerScan *scan, const MerScanSpec *spec);
extern void mer_scan_end(MerScan *scan);

/* With late_tids: the row last returned passed the caller's conditions. */
extern void mer_scan_keep(MerScan *scan, TupleTableSlot *slot);

/* Fetch rows by row key; slots in key order; used by index lookups and batched joins. */
extern bool mer_fetch_row(Relation table, const char *key, uint32 len, Snapshot snapshot,
						  TupleTableSlot *slot);

/*
 * What this backend has fetched so far; EXPLAIN ANALYZE shows differences.
 * wire.c counts round trips (answers waited for) and answer bytes, readers of
 * rows count rows.
 */
typedef struct MerCounters
{
	uint64		round_trips;
	uint64		rows;
	uint64		bytes;
} MerCounters;

extern MerCounters mer_counters;	/* defined in explain.c */

/* ---------- planner (planner.c, cost.c) and ANALYZE (analyze.c) ---------- */

extern bool mer_enable_pushdown;	/* GUC meridian.enable_pushdown */

/*
 * Estimated live rows and their bytes in storage, for a table or an index;
 * cached for a short time.  False: the gateway is not reachable, nothing known.
 */
extern bool mer_rel_stats(Relation rel, double *rows, double *bytes);
extern void mer_rel_stats_forget(void);	/* e.g. after TRUNCATE, a bulk load, ANALYZE */

struct PlannerInfo;
struct IndexPath;
struct ReadStream;

/* amcostestimate of the index access method. */
extern void mer_index_cost(struct PlannerInfo *root, struct IndexPath *path,
						   double loop_count, double *startup_cost,
						   double *total_cost, double *selectivity,
						   double *correlation, double *pages);

/*
 * What the plan node above a starting index scan wants of the rows: columns,
 * and a filter on top of the index conditions (indexhint.c).  ambeginscan
 * takes it, amrescan applies it to the specification of a scan of rows
 * (not of an index-only scan).  NULL: no such node, everything is wanted.
 */
typedef struct MerIndexHint MerIndexHint;

extern MerIndexHint *mer_index_hint_take(Relation index);
extern void mer_index_hint_apply(MerIndexHint *hint, MerScanSpec *spec);

/* scan_analyze_next_block and scan_analyze_next_tuple of the table access method. */
extern bool mer_analyze_next_block(TableScanDesc scan, struct ReadStream *stream);
extern bool mer_analyze_next_tuple(TableScanDesc scan, TransactionId oldest_xmin,
								   double *liverows, double *deadrows,
								   TupleTableSlot *slot);

/* ---------- hooks of each module, called by _PG_init (module.c) ---------- */

extern void mer_wire_init(void);
extern void mer_txn_init(void);
extern void mer_planner_init(void);		/* planner.c, customscan.c, aggpush.c, joinpush.c */
extern void mer_utility_init(void);		/* utility.c */
extern void mer_sequence_init(void);	/* sequence.c */

#endif							/* MERIDIAN_H */
