/*
 * indexbuild.c
 *	  CREATE INDEX: refusals, the choice of the organising key, and entries for
 *	  the rows that are there, all in the creating transaction.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/index.h"
#include "executor/executor.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/rel.h"

#include "jobs.h"
#include "store.h"
#include "utility.h"

static void
refuse(const char *what, const char *hint)
{
	ereport(ERROR,
			(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
			 errmsg("%s is not supported", what),
			 hint ? errhint("%s", hint) : 0));
}

static void
check_index(Relation heap, Relation index, IndexInfo *info)
{
	MerRel	   *mr;

	if (!mer_is_table(heap))
		refuse("this index access method on a local table", "Write USING heap_btree.");
	if (info->ii_Concurrent)
		refuse("CREATE INDEX CONCURRENTLY", "Use CREATE INDEX.");
	if (info->ii_ExclusionOps != NULL)
		refuse("EXCLUDE", NULL);
	if (index->rd_index->indisunique && !index->rd_index->indimmediate)
		refuse("a deferrable unique constraint", "Leave out DEFERRABLE.");
	mr = mer_rel(index);
	for (int i = 0; i < mr->nkeys; i++)
	{
		MerKeyColumn *k = &mr->keys[i];

		if (!mer_key_supported(k->opfamily, k->typid, k->collation))
			ereport(ERROR,
					(errcode(ERRCODE_FEATURE_NOT_SUPPORTED),
					 errmsg("an index on type %s with this collation or operator class is not supported",
							format_type_be(k->typid)),
					 errhint("Text keys need the database's own collation; arrays, ranges, records and json cannot be keys.")));
	}
}

/* Rows can still be keyed by this primary key: there are none. */
static bool
can_organise(Relation heap, Relation index)
{
	MerRel	   *table = mer_rel(heap);
	MerBuf	   *buf = mer_buf_find(table->sid);

	return index->rd_index->indisprimary && mer_txn_created(table->sid) &&
		(buf == NULL || buf->nentries == 0);
}

typedef struct BuildState
{
	Relation	heap;
	Relation	index;
	IndexInfo  *info;
	EState	   *estate;
	ExprState  *predicate;
	double		rows;
	double		entries;
} BuildState;

pg_noreturn static void
duplicate(BuildState *b, const Datum *values, const bool *isnull)
{
	char	   *key = BuildIndexValueDescription(b->index, values, isnull);

	ereport(ERROR,
			(errcode(ERRCODE_UNIQUE_VIOLATION),
			 errmsg("could not create unique index \"%s\"", RelationGetRelationName(b->index)),
			 key ? errdetail("Key %s is duplicated.", key) : errdetail("Duplicate keys exist."),
			 errtableconstraint(b->heap, RelationGetRelationName(b->index))));
}

static void
build_entry(BuildState *b, MerScan *scan, TupleTableSlot *slot, CommandId cid)
{
	ExprContext *econtext = GetPerTupleExprContext(b->estate);
	Datum		values[INDEX_MAX_KEYS];
	bool		isnull[INDEX_MAX_KEYS];
	MerBytes	rowkey;
	MerVersion	row;

	econtext->ecxt_scantuple = slot;
	b->rows++;
	if (b->predicate && !ExecQual(b->predicate, econtext))
		return;
	FormIndexDatum(b->info, slot, b->estate, values, isnull);
	mer_scan_rowkey(scan, &rowkey);
	memset(&row, 0, sizeof(row));
	row.key = rowkey.data;
	row.klen = rowkey.len;
	/* Everything there is lies in the buffer of this new index: no round trips. */
	if (!mer_index_insert_entry(b->index, values, isnull, &row, cid, UNIQUE_CHECK_PARTIAL))
		duplicate(b, values, isnull);
	b->entries++;
}

static void
build_entries(BuildState *b)
{
	MerScanSpec spec = {.table = b->heap,.direction = ForwardScanDirection,.no_tids = true,
	.limit = 4096};
	TupleTableSlot *slot = table_slot_create(b->heap, NULL);
	CommandId	cid = GetCurrentCommandId(true);
	MerScan    *scan = mer_scan_begin(&spec, SnapshotAny);
	MemoryContext old;

	while (mer_scan_next(scan, ForwardScanDirection, slot))
	{
		old = MemoryContextSwitchTo(GetPerTupleMemoryContext(b->estate));
		build_entry(b, scan, slot, cid);
		MemoryContextSwitchTo(old);
		ResetPerTupleExprContext(b->estate);
	}
	mer_scan_end(scan);
	ExecDropSingleTupleTableSlot(slot);
}

IndexBuildResult *
mer_index_build(Relation heap, Relation index, IndexInfo *info)
{
	IndexBuildResult *result = palloc0(sizeof(IndexBuildResult));
	BuildState	b = {.heap = heap,.index = index,.info = info};

	check_index(heap, index, info);
	if (mer_rewrite_takes_index(heap, index))
		return result;
	if (can_organise(heap, index))
		mer_relmap_organise(heap, index);
	if (mer_rel(index)->primary_of_organised)
	{
		/* It may have had entries while the table's rows had hidden ids. */
		mer_relmap_drop(RelationGetRelid(index));
		return result;
	}
	if (mer_job_takes_build(heap, index))
	{
		mer_job_building = true;
		(void) mer_relmap_recreate(index);
		mer_job_building = false;
		/* Nothing is known yet about how many there are. */
		result->heap_tuples = result->index_tuples = -1;
		return result;
	}
	(void) mer_relmap_recreate(index);
	if (!mer_txn_created(mer_rel(heap)->sid))
	{
		mer_gate(list_make1_oid(RelationGetRelid(heap)));
		mer_txn_lock_relation(heap);
	}
	b.estate = CreateExecutorState();
	b.predicate = ExecPrepareQual(info->ii_Predicate, b.estate);
	build_entries(&b);
	FreeExecutorState(b.estate);
	info->ii_ExpressionsState = NIL;
	info->ii_PredicateState = NULL;
	result->heap_tuples = b.rows;
	result->index_tuples = b.entries;
	return result;
}
