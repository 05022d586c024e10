/*
 * store.h
 *	  What the transaction buffer, scans and the two access methods share.
 *
 * Everything here lives for one top-level transaction, in mer_txn.cxt.
 */
#ifndef MERIDIAN_STORE_H
#define MERIDIAN_STORE_H

#include "meridian.h"

#include "lib/rbtree.h"
#include "nodes/execnodes.h"

/* Kinds of conflict hashes (docs/formats.md). */
#define MER_HASH_ROW 0
#define MER_HASH_IDENTITY 1

#define MER_BIG_BYTES 2048
#define MER_CHUNK_BYTES (1024 * 1024)

/* Which columns the values of an encoded row belong to. */
typedef struct MerShape
{
	struct MerShape *next;		/* of the same buffer */
	int			natts;			/* of the relation; later columns are missing */
	int			n;
	AttrNumber	attnums[FLEXIBLE_ARRAY_MEMBER];
} MerShape;

typedef struct MerEntry MerEntry;
typedef struct MerBuf MerBuf;

/*
 * One version of a row or index entry: written by this transaction, or a
 * stored one that was given a TID.  A TID names a version.
 */
typedef struct MerVersion
{
	struct MerVersion *older;
	MerEntry   *entry;			/* NULL: stored */
	const char *key;
	const char *row;			/* encoded values; NULL: tombstone, or stored and not fetched */
	const MerShape *shape;
	int64		sid;
	uint64		tid;			/* number of the TID, 0 = none yet */
	uint32		klen;
	uint32		rowlen;
	CommandId	cid;
	bool		tombstone;
	bool		dead;			/* a speculative insertion taken back, or rolled back */
	bool		has_big;
} MerVersion;

struct MerEntry
{
	RBTNode		node;			/* must be first */
	const char *key;
	uint32		klen;
	bool		base_present;	/* a stored version lies below the oldest of ours */
	bool		identity;		/* the identity key is written, too */
	bool		blind;			/* an index entry that cannot conflict */
	MerVersion *newest;
};

/* The writes of one relation. */
struct MerBuf
{
	int64		sid;			/* hash key */
	Oid			relid;
	bool		is_index;
	bool		hidden;			/* a table keyed by hidden ids */
	bool		locked;			/* LOCK TABLE or an index build: conflicts with every writer */
	int64		marks;			/* of a table that is being rewritten: where its writers leave marks */
	RBTree	   *tree;
	uint64		nentries;
	MerShape   *shapes;
	MerBuf	   *next;			/* in order of first use */
};

typedef struct MerTxn
{
	bool		active;
	MemoryContext cxt;
	int64		tau;			/* tau_start, 0 = not yet taken */
	HTAB	   *bufs;
	MerBuf	   *first;
	MerBuf	   *last;
	uint64		rows;			/* rows mutated */
	uint64		bytes;			/* of all versions ever buffered */
	uint64		undo_len;
	bool		shipping;		/* PRE_COMMIT work began: no more writes */
	bool		committed;		/* the adjudicator said yes */
	bool		unknown;		/* nobody could tell what became of it */
	bool		interrupts_held;
	struct MerRowChecks *row_checks;	/* rowcheck.c */
} MerTxn;

extern MerTxn mer_txn;

/* ---------- txn.c ---------- */

extern void mer_txn_saw_tau(int64 tau);
extern int	mer_checks_mark(void);
extern void mer_checks_release(int mark);

/* Does the running statement need TIDs, and rows behind them? (hooks.c) */
typedef enum MerTidMode
{
	MER_TIDS_NONE,
	MER_TIDS_KEYS,				/* a row is fetched again when its TID is used */
	MER_TIDS_ROWS
} MerTidMode;

extern MerTidMode mer_tid_mode(void);
extern void mer_hooks_init(void);

/* ---------- undo.c ---------- */

extern void mer_txn_start(void);	/* idempotent; call before touching mer_txn */
extern void mer_undo_push(MerVersion *version);
extern void mer_undo_kill(MerVersion *row); /* and its index entries */
extern void mer_undo_reset(void);
extern void mer_savepoint(SubTransactionId id);
extern void mer_savepoint_rollback(SubTransactionId id);
extern void mer_savepoint_release(SubTransactionId id);
extern bool mer_txn_created(int64 sid);	/* by this transaction: storage has nothing yet */
extern int	mer_txn_stored_natts(int64 sid, int natts);
extern int	mer_ddl_pending_natts(int64 sid, int natts);	/* ddl.c: of the running statement */
extern bool mer_txn_dropped(int64 sid);
extern int	mer_txn_schema_count(void);
extern const char *mer_txn_schema_get(int i, uint32 *len);

/* ---------- writebuf.c ---------- */

extern MerBuf *mer_buf_find(int64 sid);
extern MerBuf *mer_buf_get(int64 sid, Oid relid, bool is_index);
extern MerEntry *mer_entry_find(MerBuf *buf, const char *key, uint32 len);
extern MerEntry *mer_entry_above(MerBuf *buf, const char *key, uint32 len, bool or_equal);
extern MerEntry *mer_entry_below(MerBuf *buf, const char *key, uint32 len, bool or_equal);
extern MerEntry *mer_entry_first(MerBuf *buf);
extern MerEntry *mer_entry_last(MerBuf *buf);
extern MerEntry *mer_entry_next(MerEntry *entry);
extern MerEntry *mer_entry_prev(MerEntry *entry);
extern MerVersion *mer_entry_newest(MerEntry *entry);
extern MerVersion *mer_entry_visible(MerEntry *entry, uint64 cid_limit);
extern const MerShape *mer_buf_shape(MerBuf *buf, const AttrNumber *attnums, int n, int natts);

/*
 * Put a version on top of a key's chain.  row NULL: a tombstone.  The row
 * bytes are copied.  base_present says whether storage has a live version; it
 * counts only when the chain was empty.
 */
extern MerVersion *mer_buf_push(MerBuf *buf, const char *key, uint32 klen,
								const char *row, uint32 rowlen, const MerShape *shape,
								CommandId cid, bool base_present, bool blind);
extern void mer_buf_pop(MerVersion *version);
extern void mer_buf_clear(int64 sid);

static inline int
mer_key_cmp(const char *a, uint32 alen, const char *b, uint32 blen)
{
	int			c = memcmp(a, b, Min(alen, blen));

	return c != 0 ? c : (alen < blen ? -1 : alen > blen);
}

/* The commands whose versions a snapshot sees are those below this limit. */
extern uint64 mer_cid_limit(Snapshot snapshot);

/* ---------- tid.c ---------- */

extern void mer_tid_assign(MerVersion *version, ItemPointer tid);
extern MerVersion *mer_tid_version(ItemPointer tid);	/* ERROR if unknown */
extern MerVersion *mer_tid_version_number(uint64 number);
extern MerVersion *mer_tid_lookup(ItemPointer tid);	/* NULL if unknown */

/* The TID of a stored version; row may be NULL (fetched when needed). */
extern MerVersion *mer_tid_stored(int64 sid, const char *key, uint32 klen,
								  const char *row, uint32 rowlen, const MerShape *shape);
extern void mer_tid_none(ItemPointer tid);
extern MerVersion *mer_tid_find_stored(int64 sid, const char *key, uint32 klen);
extern void mer_tid_link(int64 index_sid, const char *key, uint32 klen, MerVersion *row);
extern void mer_tids_reset(void);
extern bool mer_tids_full(void);	/* keep keys only from now on */

/* ---------- slot.c ---------- */

extern const TupleTableSlotOps *mer_slot_ops(void);
extern void mer_slot_init(void);
extern bool mer_slot_is_ours(TupleTableSlot *slot);

/*
 * Fill slot's values from an encoded row.  By-reference values are palloc'd in
 * the current context.  r is left after the row's last value.
 */
extern void mer_slot_decode(TupleTableSlot *slot, const MerColumn *cols,
							const MerShape *shape, MpReader *r);
extern void mer_slot_finish(TupleTableSlot *slot, Relation rel, ItemPointer tid);

/* Row of a version into the slot, materialized. */
extern void mer_slot_store_version(TupleTableSlot *slot, Relation rel, MerVersion *version);
extern const MerColumn *mer_slot_columns(TupleTableSlot *slot, Relation rel);

extern void mer_row_encode(StringInfo buf, MerRel *rel, TupleTableSlot *slot, bool *has_big);
extern const MerShape *mer_rel_shape(MerRel *rel, MerBuf *buf);
extern void mer_rowkey_put(StringInfo buf, MerRel *rel, TupleTableSlot *slot);

/* ---------- remote.c ---------- */

typedef struct MerRowRef
{
	const char *key;
	const char *rowkey;			/* of an index entry joined to its row */
	const char *values;
	const char *end;			/* after the values; NULL: not known yet */
	uint32		klen;
	uint32		rowklen;
} MerRowRef;

/* One answered page; rows[] is filled as far as somebody asked. */
typedef struct MerPage
{
	MerReply	reply;
	bool		joined;
	bool		reversed;		/* the answer is in descending order */
	bool		more;
	uint32		nvalues;
	uint32		nrows;
	uint32		nparsed;
	MerRowRef  *rows;
} MerPage;

typedef struct MerBytes
{
	const char *data;
	uint32		len;
} MerBytes;

typedef struct MerRequest
{
	int64		sid;
	int64		row_sid;		/* 0: none */
	const char *lo;
	uint32		lo_len;
	bool		lo_exclusive;
	const char *hi;				/* NULL: none */
	uint32		hi_len;
	bool		descending;
	const AttrNumber *cols;
	int			ncols;
	const AttrNumber *row_cols;
	int			nrow_cols;
	const char *filter;
	uint32		filter_len;
	uint64		limit;
	uint32		page_bytes;
	bool		any_version;	/* of the catalog will do */
} MerRequest;

extern uint32 mer_send_scan(const MerRequest *req);
extern uint32 mer_send_get(int64 sid, const AttrNumber *cols, int ncols,
						   const MerBytes *keys, int nkeys);
extern MerPage *mer_page_wait(uint32 id, int nvalues, bool joined, bool reversed);
extern void mer_page_free(MerPage *page);

/* i-th row in ascending order of the page. */
extern MerRowRef *mer_page_row(MerPage *page, uint32 i);

extern int	mer_bytes_cmp(const void *a, const void *b);

/* Fetch the row of a stored version whose row was not kept. */
extern void mer_version_fetch(MerVersion *version, Relation rel);

/* ---------- index entries (indexmaint.c) ---------- */

/*
 * Key and payload of one index entry.  Returns false when the entry needs no
 * uniqueness check (not unique, or a NULL that is distinct).
 */
extern bool mer_index_form(StringInfo key, StringInfo payload, MerRel *index,
						   const Datum *values, const bool *isnull,
						   const char *rowkey, uint32 rowklen);
extern int	mer_index_payload_attnums(MerRel *index, AttrNumber *attnums);
extern bool mer_index_values(Relation heap, Relation index, TupleTableSlot *slot,
							 Datum *values, bool *isnull);

/* False: a duplicate, and the caller only wanted to know (UNIQUE_CHECK_PARTIAL). */
extern bool mer_index_insert_entry(Relation index, const Datum *values,
								   const bool *isnull, MerVersion *row, CommandId cid,
								   IndexUniqueCheck check);
extern List *mer_index_list(Relation heap);	/* those with entries of their own */
extern void mer_index_delete_all(Relation heap, List *indexes, TupleTableSlot *old,
								 const char *rowkey, uint32 rowklen, CommandId cid);
extern void mer_index_update_all(Relation heap, List *indexes, TupleTableSlot *old,
								 TupleTableSlot *new, const char *old_key, uint32 old_klen,
								 MerVersion *row, CommandId cid);

/* Uniqueness of a new row version's own key, in an organised table. */
extern bool mer_rowkey_check(Oid pkey, MerVersion *row, IndexUniqueCheck check);

/* ---------- unique.c ---------- */

/* A stored entry of this key is a violation; asked for at the next flush. */
extern void mer_check_queue(int64 sid, Oid index, const char *key, uint32 klen,
							MerVersion *row);
extern void mer_checks_flush(void);
extern bool mer_checks_pending(void);
extern void mer_checks_reset(void);
pg_noreturn extern void mer_unique_violation(Oid index, MerVersion *row);

/* ---------- locks.c ---------- */

extern void mer_lock_row(int64 sid, const char *key, uint32 klen, LockTupleMode mode);
extern bool mer_have_locks(void);
extern void mer_locks_reset(void);

/* ---------- rowcheck.c ---------- */

/* Keys in ascending order.  Refused if the row was written since tau_start; nothing is recorded. */
extern void mer_check_row(int64 sid, const char *key, uint32 len);
extern void mer_encode_row_checks(StringInfo out, void (*op_done) (void *), void *arg);

/* ---------- notify.c ---------- */

extern bool mer_notify_pending(void);
extern uint64 mer_notify_size(void);
extern void mer_encode_notes(StringInfo out, void (*op_done) (void *), void *arg);
extern void mer_notify_reset(void);

/* ---------- frames.c ---------- */

extern void mer_frame_part(StringInfo buf, uint32 id, const char *txid, uint32 seq,
						   StringInfo chunk, int64 tau);
extern void mer_frame_commit(StringInfo buf, uint32 id, const char *txid, int64 catver,
							 uint32 parts, StringInfo chunk);
extern void mer_frame_status(StringInfo buf, uint32 id, const char *txid, int64 tau);

/* ---------- commit.c, encode.c ---------- */

#define MER_TXID_BYTES 16

extern void mer_commit(void);
extern const char *mer_commit_txid(void);
extern void mer_commit_reset(void);

typedef void (*MerChunkSink) (StringInfo chunk, bool last);

extern uint64 mer_encode(MerChunkSink sink, Size chunk_bytes);
extern uint64 mer_encoded_size(void);
extern void mer_put_hash(StringInfo out, int64 sid, int kind, const char *key, uint32 len);
extern void mer_pad_hashes(StringInfo out, uint32 n);
extern void mer_encode_locks(StringInfo out, void (*op_done) (void *), void *arg);

/* ---------- relmap.c ---------- */

extern int	mer_relmap_mark(void);
extern void mer_relmap_undo(int mark);
extern void mer_relmap_flush(void);
extern void mer_relmap_end(void);
extern int64 mer_relmap_recreate(Relation rel);
extern void mer_relmap_organise(Relation table, Relation pkey);
extern void mer_relmap_unorganise(Relation table);
extern bool mer_relmap_organised(Oid relid);
extern bool mer_relmap_get(Oid relid, int64 *sid, bool *organised);

/* ---------- reldesc.c ---------- */

extern MerRel *mer_reldesc_build(Relation rel, int64 sid, bool organised);
extern void mer_reldesc_invalidate(void);
extern void mer_reldesc_end(void);

extern void mer_relmap_touch(Oid relid);
extern void mer_relmap_adopt(Oid relid, Oid from, bool organised);

/* ---------- rewrite_marks.c ---------- */

extern int64 mer_rewrite_marks_sid(Oid relid);
extern void mer_rewrite_mark_writes(void);

/* ---------- rewrite_alter.c ---------- */

/* Rows and entries are those that a job has made: ALTER TABLE neither reads nor writes any. */
extern bool mer_rewrite_running(void);
extern bool mer_rewrite_hides_rows(Oid relid);
extern bool mer_rewrite_new_table(Relation rel);
extern void mer_rewrite_swapped(Oid relid);
extern bool mer_rewrite_takes_index(Relation heap, Relation index);

/* ---------- access methods ---------- */

extern const TableAmRoutine *mer_table_routine(void);
extern void mer_write_methods(TableAmRoutine *routine); /* tablewrite.c */
extern bool mer_version_visible(MerVersion *version, uint64 cid_limit);
extern IndexBuildResult *mer_index_build(Relation heap, Relation index, IndexInfo *info);

/* Ranges of keys that an index scan visits, ascending (indexkeys.c). */
typedef struct MerRange
{
	MerBytes	lo;				/* data NULL: from the start */
	MerBytes	hi;				/* data NULL: to the end */
	bool		point;			/* lo is one whole key */
} MerRange;

typedef struct MerRanges
{
	int			n;
	MerRange   *ranges;
	bool		recheck;		/* the conditions say more than the ranges */
	bool		points;			/* all of them are points */
} MerRanges;

extern void mer_index_ranges(MerRanges *out, Relation index, ScanKey keys, int nkeys);

/* What an index scan found last, for index_fetch_tuple. */
typedef struct MerIndexFetch
{
	IndexFetchTableData base;
	MerScan    *scan;			/* positioned on the row, or NULL */
	bool		index_only;
	ItemPointerData tid;
} MerIndexFetch;

/* ---------- scan.c, beyond meridian.h ---------- */

/* Move to the next row; the row itself is made by mer_scan_row. */
extern bool mer_scan_advance(MerScan *scan, ScanDirection direction);
extern void mer_scan_tid(MerScan *scan, ItemPointer tid);
extern void mer_scan_row(MerScan *scan, TupleTableSlot *slot);

/* Entry the scan of an index stands on: its key, and its encoded payload. */
extern void mer_scan_entry(MerScan *scan, MerBytes *key, MpReader *payload);
extern void mer_scan_rowkey(MerScan *scan, MerBytes *key);
extern void mer_scan_key_tid(MerScan *scan, ItemPointer tid);	/* row not kept */
extern void mer_scan_mark(MerScan *scan);
extern void mer_scan_restore(MerScan *scan);

#endif							/* MERIDIAN_STORE_H */
