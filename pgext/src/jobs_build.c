/*
 * jobs_build.c
 *	  One step of an index build (design section 9, "Index builds").
 *
 * A step reads a run of rows in key order as of its tau_start and writes the
 * entries that the index lacks then, in one commit with the job's new position.
 * Whoever has written a row since the index was added has also seen to its
 * entry (indexmaint.c), hence:
 *
 * - an entry that is there needs nothing: neither writing nor a check;
 * - a row without one must not have been written between tau_start and the
 *	 commit (CHECK); who writes it later sees to the entry.
 *
 * So a row that is written all the time holds up no step after its next write.
 * In a unique index an entry of another row is a duplicate, whoever wrote it.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/xact.h"
#include "catalog/dependency.h"
#include "catalog/index.h"
#include "catalog/indexing.h"
#include "catalog/partition.h"
#include "catalog/pg_class.h"
#include "catalog/pg_index.h"
#include "catalog/pg_inherits.h"
#include "executor/executor.h"
#include "miscadmin.h"
#include "optimizer/optimizer.h"
#include "storage/lmgr.h"
#include "utils/guc.h"
#include "utils/inval.h"
#include "utils/lsyscache.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "jobs.h"
#include "rewrite.h"
#include "utility.h"
#include "wire.h"

#define STEP_BYTES (512 * 1024)
#define STEP_ROWS_MAX 2000
#define OP_ALTER 11
#define ALTER_COMPLETE 1

typedef struct BuildRow
{
	MerBytes	rowkey;
	MerBytes	key;
	MerBytes	payload;
	bool		unique;
} BuildRow;

typedef struct Build
{
	MerJob	   *job;
	Relation	heap;
	Relation	index;
	MerRel	   *mr;
	IndexInfo  *info;
	EState	   *estate;
	ExprState  *predicate;
	BuildRow   *rows;			/* those that belong into the index */
	int			n;
	int64		read;			/* rows looked at */
	Size		bytes;
	MerBytes	last;			/* key of the last row looked at */
	bool		ended;			/* there are no more rows */
} Build;

/* ---------- how long ---------- */

static instr_time work_began;
static instr_time waited_before;

void
mer_job_work_begins(void)
{
	INSTR_TIME_SET_CURRENT(work_began);
	waited_before = mer_wire_waited;
}

double
mer_job_work_ms(void)
{
	instr_time	work;
	instr_time	waited = mer_wire_waited;

	INSTR_TIME_SET_CURRENT(work);
	INSTR_TIME_SUBTRACT(work, work_began);
	INSTR_TIME_SUBTRACT(waited, waited_before);
	return INSTR_TIME_GET_MILLISEC(work) - INSTR_TIME_GET_MILLISEC(waited);
}

/* ---------- reading rows ---------- */

static MerBytes
keep(const char *data, uint32 len)
{
	char	   *copy = palloc(len + 1);

	memcpy(copy, data, len);
	copy[len] = '\0';
	return (MerBytes) {copy, len};
}

static Bitmapset *
columns_of_index(Relation index, IndexInfo *info)
{
	Bitmapset  *attrs = NULL;

	for (int i = 0; i < info->ii_NumIndexAttrs; i++)
		if (info->ii_IndexAttrNumbers[i] != 0)
			attrs = bms_add_member(attrs, info->ii_IndexAttrNumbers[i] -
								   FirstLowInvalidHeapAttributeNumber);
	pull_varattnos((Node *) info->ii_Expressions, 1, &attrs);
	pull_varattnos((Node *) info->ii_Predicate, 1, &attrs);
	return attrs;
}

static void
take_row(Build *b, MerBytes rowkey, TupleTableSlot *slot)
{
	ExprContext *econtext = GetPerTupleExprContext(b->estate);
	MemoryContext old = MemoryContextSwitchTo(GetPerTupleMemoryContext(b->estate));
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];
	StringInfoData key,
				payload;
	BuildRow   *row = &b->rows[b->n];

	econtext->ecxt_scantuple = slot;
	if (b->predicate == NULL || ExecQual(b->predicate, econtext))
	{
		FormIndexDatum(b->info, slot, b->estate, values, isnull);
		initStringInfo(&key);
		initStringInfo(&payload);
		row->unique = mer_index_form(&key, &payload, b->mr, values, isnull, rowkey.data, rowkey.len);
		MemoryContextSwitchTo(old);
		row->rowkey = rowkey;
		row->key = keep(key.data, key.len);
		row->payload = keep(payload.data, payload.len);
		b->bytes += rowkey.len + key.len + payload.len;
		b->n++;
	}
	MemoryContextSwitchTo(old);
	ResetPerTupleExprContext(b->estate);
}

MerBytes
mer_job_last_key(Relation rel)
{
	MerScanSpec spec = {.table = rel,.direction = BackwardScanDirection,.no_tids = true,.limit = 1};
	TupleTableSlot *slot = table_slot_create(rel, NULL);
	MerScan    *scan = mer_scan_begin(&spec, SnapshotAny);
	MerBytes	key = {"", 0};

	if (mer_scan_next(scan, BackwardScanDirection, slot))
	{
		mer_scan_rowkey(scan, &key);
		key = keep(key.data, key.len);
	}
	mer_scan_end(scan);
	ExecDropSingleTupleTableSlot(slot);
	return key;
}

/*
 * Rows above the last key of the first step came later: their writers have made
 * their entries.  So a build ends although rows are added all the time.
 */
static void
read_rows(Build *b, int budget)
{
	MerBytes	position = b->job->field[JOB_POSITION];
	MerBytes	end = b->job->field[JOB_MARK];
	MerScanSpec spec = {.table = b->heap,.direction = ForwardScanDirection,.no_tids = true,
	.limit = budget,.attrs = columns_of_index(b->index, b->info)};
	TupleTableSlot *slot = table_slot_create(b->heap, NULL);
	MerScan    *scan;

	if (position.len > 0)
	{
		/* With its zero byte: the first key above it. */
		spec.lo = position.data;
		spec.lo_len = position.len + 1;
	}
	if (end.len > 0)
	{
		spec.hi = end.data;
		spec.hi_len = end.len + 1;
	}
	b->rows = palloc(budget * sizeof(BuildRow));
	scan = mer_scan_begin(&spec, SnapshotAny);
	while (b->read < budget && b->bytes < STEP_BYTES)
	{
		MerBytes	rowkey;

		if (!mer_scan_next(scan, ForwardScanDirection, slot))
		{
			b->ended = true;
			break;
		}
		mer_scan_rowkey(scan, &rowkey);
		b->last = keep(rowkey.data, rowkey.len);
		b->read++;
		take_row(b, b->last, slot);
	}
	mer_scan_end(scan);
	ExecDropSingleTupleTableSlot(slot);
}

/* ---------- entries that are there ---------- */

static int
by_key(const void *a, const void *b)
{
	return mer_bytes_cmp(&((const BuildRow *) a)->key, &((const BuildRow *) b)->key);
}

/* The job fails; its indexes go in the next step, under locks that this one does not hold. */
static void
duplicate(Build *b, const BuildRow *row)
{
	TupleTableSlot *slot = table_slot_create(b->heap, NULL);
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];
	char	   *key = NULL;

	if (mer_fetch_row(b->heap, row->rowkey.data, row->rowkey.len, SnapshotAny, slot) &&
		mer_index_values(b->heap, b->index, slot, values, isnull))
		key = BuildIndexValueDescription(b->index, values, isnull);
	mer_job_set(b->job, JOB_DETAILS, psprintf("could not create unique index \"%s\"",
											  RelationGetRelationName(b->index)));
	mer_job_set(b->job, JOB_SQLSTATE, "23505");
	mer_job_set(b->job, JOB_ERROR_DETAIL, key ? psprintf("Key %s is duplicated.", key) :
				"Duplicate keys exist.");
	mer_job_set(b->job, JOB_PHASE, "fail");
	ExecDropSingleTupleTableSlot(slot);
}

/*
 * Leave those rows that have no entry as of tau_start.  False: a duplicate.
 * An answer holds as many entries as fit; its last one is where to go on.
 */
static bool
drop_present(Build *b)
{
	AttrNumber	attnum = 0;
	MerBytes   *keys = palloc(Max(b->n, 1) * sizeof(MerBytes));
	int			kept = 0;
	int			i = 0;

	for (int from = 0; from < b->n;)
	{
		MerPage    *page;

		for (int j = from; j < b->n; j++)
			keys[j - from] = b->rows[j].key;
		page = mer_page_wait(mer_send_get(b->mr->sid, &attnum, 1, keys, b->n - from), 1, false, false);
		for (uint32 r = 0; r < page->nrows; r++)
		{
			MerRowRef  *ref = mer_page_row(page, r);
			MpReader	value = {ref->values, page->reply.body.end};
			uint32		len;
			const char *owner = mp_get_bytes(&value, &len);

			while (i < b->n && mer_key_cmp(b->rows[i].key.data, b->rows[i].key.len,
										   ref->key, ref->klen) < 0)
				b->rows[kept++] = b->rows[i++];
			Assert(i < b->n);
			if (mer_key_cmp(owner, len, b->rows[i].rowkey.data, b->rows[i].rowkey.len) != 0)
			{
				duplicate(b, &b->rows[i]);
				return false;
			}
			i++;
		}
		from = page->more ? i : b->n;
		if (page->more && page->nrows == 0)
			elog(ERROR, "gateway answered nothing of a GET");
		mer_page_free(page);
	}
	while (i < b->n)
		b->rows[kept++] = b->rows[i++];
	b->n = kept;
	return true;
}

static bool
no_duplicates(Build *b)
{
	for (int i = 1; i < b->n; i++)
		if (mer_bytes_cmp(&b->rows[i - 1].key, &b->rows[i].key) == 0)
		{
			duplicate(b, &b->rows[i]);
			return false;
		}
	return true;
}

/* ---------- writing ---------- */

static int
by_rowkey(const void *a, const void *b)
{
	return mer_bytes_cmp(&((const BuildRow *) a)->rowkey, &((const BuildRow *) b)->rowkey);
}

static void
write_entries(Build *b)
{
	AttrNumber	attnums[INDEX_MAX_KEYS + 1];
	int			n = mer_index_payload_attnums(b->mr, attnums);
	CommandId	cid = GetCurrentCommandId(true);
	MerBuf	   *buf;

	if (b->n == 0)
		return;
	buf = mer_buf_get(b->mr->sid, b->mr->relid, true);
	for (int i = 0; i < b->n; i++)
	{
		BuildRow   *row = &b->rows[i];

		mer_buf_push(buf, row->key.data, row->key.len, row->payload.data, row->payload.len,
					 mer_buf_shape(buf, attnums, n, b->mr->natts), cid, false,
					 !row->unique)->has_big = row->payload.len > MER_BIG_BYTES;
	}
	qsort(b->rows, b->n, sizeof(BuildRow), by_rowkey);
	for (int i = 0; i < b->n; i++)
		mer_check_row(mer_rel(b->heap)->sid, b->rows[i].rowkey.data, b->rows[i].rowkey.len);
}

/* ---------- a step ---------- */

/* Expressions run as the table's owner, as in CREATE INDEX. */
static void
build_rows(Build *b, int budget)
{
	Oid			user;
	int			context;
	int			nest;

	GetUserIdAndSecContext(&user, &context);
	SetUserIdAndSecContext(b->heap->rd_rel->relowner, context | SECURITY_RESTRICTED_OPERATION);
	nest = NewGUCNestLevel();
	RestrictSearchPath();
	b->mr = mer_rel(b->index);
	b->info = BuildIndexInfo(b->index);
	b->estate = CreateExecutorState();
	b->predicate = ExecPrepareQual(b->info->ii_Predicate, b->estate);
	read_rows(b, budget);
	AtEOXact_GUC(false, nest);
	SetUserIdAndSecContext(user, context);
	FreeExecutorState(b->estate);
}

static void
next_target(MerJob *job)
{
	int64		at = mer_job_int(job, JOB_AT) + 1;

	mer_job_set_int(job, JOB_AT, at);
	mer_job_set(job, JOB_POSITION, "");
	mer_job_set(job, JOB_MARK, "");
	if (at >= list_length(mer_job_targets(job)))
		mer_job_set(job, JOB_PHASE, "finish");
}

static int64
fill(MerJob *job, Relation heap, Relation index, int budget)
{
	Build		b = {.job = job,.heap = heap,.index = index};

	if (job->field[JOB_POSITION].len == 0)
	{
		MerBytes	last = mer_job_last_key(heap);

		mer_job_set_bytes(job, JOB_MARK, last.data, last.len);
	}
	build_rows(&b, budget);
	qsort(b.rows, b.n, sizeof(BuildRow), by_key);
	if (!no_duplicates(&b) || !drop_present(&b))
		return b.read;
	write_entries(&b);
	mer_job_set_int(job, JOB_ROWS_DONE, mer_job_int(job, JOB_ROWS_DONE) + b.read);
	if (b.ended)
		next_target(job);
	else
		mer_job_set_bytes(job, JOB_POSITION, b.last.data, b.last.len);
	return b.read;
}

static void
end_job(MerJob *job, const char *status, const char *details)
{
	mer_job_set(job, JOB_STATUS, status);
	mer_job_set(job, JOB_PHASE, "");
	mer_job_set(job, JOB_POSITION, "");
	mer_job_set(job, JOB_MARK, "");
	if (details)
		mer_job_set(job, JOB_DETAILS, details);
}

/* Locked before tau_start is taken, so that nothing as of then is older than the lock. */
static Relation
open_table(Oid index, LOCKMODE mode)
{
	Oid			table = IndexGetRelation(index, true);
	Relation	heap = OidIsValid(table) ? try_table_open(table, mode) : NULL;

	if (heap && IndexGetRelation(index, true) != table)
	{
		table_close(heap, NoLock);
		return NULL;
	}
	return heap;
}

static int64
build_phase(MerJob *job, Relation heap, Oid target, int budget)
{
	Relation	index;
	int64		read = 0;

	if (heap == NULL)
	{
		end_job(job, "cancelled", "the index was dropped");
		return 0;
	}
	index = index_open(target, RowExclusiveLock);
	mer_job_set(job, JOB_STATUS, "processing");
	/* A rewrite of the table has built it on its way. */
	if (index->rd_index->indisvalid)
		next_target(job);
	else
		read = fill(job, heap, index, Max(1, Min(budget, STEP_ROWS_MAX)));
	index_close(index, NoLock);
	return read;
}

/* ---------- the end ---------- */

void
mer_job_mark_valid(Oid index, bool valid)
{
	Relation	pg_index = table_open(IndexRelationId, RowExclusiveLock);
	HeapTuple	tuple = SearchSysCacheCopy1(INDEXRELID, ObjectIdGetDatum(index));
	Form_pg_index form;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for index %u", index);
	form = (Form_pg_index) GETSTRUCT(tuple);
	if (form->indisvalid != valid)
	{
		form->indisvalid = valid;
		CatalogTupleUpdate(pg_index, &tuple->t_self, tuple);
		CacheInvalidateRelcacheByRelid(form->indrelid);
	}
	heap_freetuple(tuple);
	table_close(pg_index, RowExclusiveLock);
	CommandCounterIncrement();
}

static bool
is_valid(Oid index)
{
	HeapTuple	tuple = SearchSysCache1(INDEXRELID, ObjectIdGetDatum(index));
	bool		valid = HeapTupleIsValid(tuple) && ((Form_pg_index) GETSTRUCT(tuple))->indisvalid;

	if (HeapTupleIsValid(tuple))
		ReleaseSysCache(tuple);
	return valid;
}

/* An index of a partitioned table is valid once each partition has a valid one. */
static void
validate_parents(Oid index)
{
	foreach_oid(parent, get_partition_ancestors(index))
	{
		List	   *children = find_inheritance_children(parent, NoLock);
		Oid			table = IndexGetRelation(parent, false);

		if (list_length(children) != list_length(find_inheritance_children(table, NoLock)))
			return;
		foreach_oid(child, children)
		{
			if (!is_valid(child))
				return;
		}
		mer_job_mark_valid(parent, true);
	}
}

static void
ship_complete(Relation index)
{
	StringInfoData op;

	if (RelationGetIndexPredicate(index) != NIL)
		return;
	initStringInfo(&op);
	mp_put_array(&op, 3);
	mp_put_int(&op, OP_ALTER);
	mp_put_int(&op, mer_rel(index)->sid);
	mp_put_int(&op, ALTER_COMPLETE);
	mer_txn_schema_op(op.data, op.len);
	pfree(op.data);
}

static void
finish_phase(MerJob *job)
{
	List	   *targets = mer_job_targets(job);

	foreach_oid(target, targets)
	{
		Relation	heap = open_table(target, ShareUpdateExclusiveLock);
		Relation	index;

		if (heap == NULL)
		{
			end_job(job, "cancelled", "the index was dropped");
			return;
		}
		index = index_open(target, ShareUpdateExclusiveLock);
		if (!index->rd_index->indisvalid)
			ship_complete(index);
		index_close(index, NoLock);
		table_close(heap, NoLock);
		mer_job_mark_valid(target, true);
	}
	foreach_oid(target, targets)
		validate_parents(target);
	end_job(job, "completed", NULL);
}

/* False: this instance knows of no such index. */
bool
mer_job_drop_indexes(MerJob *job)
{
	ObjectAddress object = {RelationRelationId, (Oid) mer_job_int(job, JOB_OBJECT_ID), 0};
	Oid			table;

	if (mer_job_is(job, JOB_TYPE, MER_REWRITE_TYPE))
		return mer_rewrite_drop(job);
	table = IndexGetRelation(object.objectId, true);

	/* Tables before their indexes, as DROP INDEX does. */
	if (!OidIsValid(table))
		return false;
	LockRelationOid(table, AccessExclusiveLock);
	(void) find_all_inheritors(table, AccessExclusiveLock, NULL);
	if (IndexGetRelation(object.objectId, true) == table)
		performDeletion(&object, DROP_RESTRICT, PERFORM_DELETION_INTERNAL);
	return true;
}

/*
 * Its new phase or status, and how many rows it has looked at.  gate: writers'
 * commits wait for this one, which lost too often (rows that are locked all the
 * time get no entry from who locks them).
 */
const char *
mer_job_build_step(const char *id, int budget, bool gate, int64 *rows)
{
	MerJob		job;
	MerJob		seen;
	List	   *targets;
	Oid			target = InvalidOid;
	Relation	heap = NULL;
	bool		found;

	*rows = 0;
	if (mer_job_peek(id, &seen, &found) != MER_OK)
		ereport(ERROR,
				(errcode(ERRCODE_CONNECTION_FAILURE),
				 errmsg("the gateway is not reachable")));
	if (!found || mer_job_finished(&seen))
		return found ? pstrdup(seen.field[JOB_STATUS].data) : "gone";
	if (mer_job_is(&seen, JOB_TYPE, MER_REWRITE_TYPE))
		return mer_rewrite_step(&seen, budget, gate, rows);
	targets = mer_job_targets(&seen);
	if (mer_job_is(&seen, JOB_PHASE, "build"))
	{
		target = list_nth_oid(targets, (int) mer_job_int(&seen, JOB_AT));
		heap = open_table(target, RowExclusiveLock);
		if (heap && gate)
			mer_gate_for_all(RelationGetRelid(heap));
	}
	/* Its version was compared: from here on the catalog knows what the job was ordered for. */
	if (!mer_job_get(id, &job))
		return "gone";
	mer_job_work_begins();
	AcceptInvalidationMessages();
	if (OidIsValid(target) && heap == NULL && OidIsValid(IndexGetRelation(target, true)))
		return "again";
	/* Somebody else has made this step. */
	if (!mer_job_is(&job, JOB_PHASE, seen.field[JOB_PHASE].data) ||
		!mer_job_is(&job, JOB_AT, seen.field[JOB_AT].data))
		return "again";
	if (mer_job_is(&job, JOB_PHASE, "build"))
		*rows = build_phase(&job, heap, target, budget);
	else if (mer_job_is(&job, JOB_PHASE, "finish"))
		finish_phase(&job);
	else
	{
		(void) mer_job_drop_indexes(&job);
		end_job(&job, "failed", NULL);
	}
	if (heap)
		table_close(heap, NoLock);
	mer_job_put(&job, false);
	return pstrdup(mer_job_finished(&job) ? job.field[JOB_STATUS].data : job.field[JOB_PHASE].data);
}
