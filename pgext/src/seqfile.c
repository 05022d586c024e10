/*
 * seqfile.c
 *	  The local file of a sequence that arrived with a catalog delta: one page
 *	  with one row, as commands/sequence.c of the server expects it.
 */
#include "meridian.h"

#include "access/htup_details.h"
#include "access/relation.h"
#include "access/xloginsert.h"
#include "catalog/pg_class.h"
#include "catalog/pg_sequence.h"
#include "commands/sequence.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/bufpage.h"
#include "utils/rel.h"
#include "utils/syscache.h"

#include "seqfile.h"

/* What the server puts into the special space of such a page. */
#define SEQUENCE_MAGIC 0x1717

static int64
start_value(Oid relid)
{
	HeapTuple	tuple = SearchSysCache1(SEQRELID, ObjectIdGetDatum(relid));
	int64		start;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "sequence %u has no row in pg_sequence", relid);
	start = ((Form_pg_sequence) GETSTRUCT(tuple))->seqstart;
	ReleaseSysCache(tuple);
	return start;
}

/* A frozen row: the server reads it without looking at its transaction. */
static HeapTuple
make_row(Relation rel)
{
	Datum		values[SEQ_COL_LASTCOL] = {0};
	bool		nulls[SEQ_COL_LASTCOL] = {0};
	HeapTuple	tuple;

	values[SEQ_COL_LASTVAL - 1] = Int64GetDatumFast(start_value(RelationGetRelid(rel)));
	values[SEQ_COL_LOG - 1] = Int64GetDatumFast((int64) 0);
	values[SEQ_COL_CALLED - 1] = BoolGetDatum(false);
	tuple = heap_form_tuple(RelationGetDescr(rel), values, nulls);
	HeapTupleHeaderSetXmin(tuple->t_data, FrozenTransactionId);
	HeapTupleHeaderSetXminFrozen(tuple->t_data);
	HeapTupleHeaderSetCmin(tuple->t_data, FirstCommandId);
	HeapTupleHeaderSetXmax(tuple->t_data, InvalidTransactionId);
	tuple->t_data->t_infomask |= HEAP_XMAX_INVALID;
	ItemPointerSet(&tuple->t_data->t_ctid, 0, FirstOffsetNumber);
	return tuple;
}

void
mer_fill_sequence_file(Oid relid)
{
	Relation	rel = relation_open(relid, NoLock);
	HeapTuple	tuple = make_row(rel);
	Buffer		buffer = ExtendBufferedRel(BMR_REL(rel), MAIN_FORKNUM, NULL,
										   EB_LOCK_FIRST | EB_SKIP_EXTENSION_LOCK);
	Page		page = BufferGetPage(buffer);

	Assert(BufferGetBlockNumber(buffer) == 0);
	START_CRIT_SECTION();
	PageInit(page, BufferGetPageSize(buffer), sizeof(uint32));
	*(uint32 *) PageGetSpecialPointer(page) = SEQUENCE_MAGIC;
	if (PageAddItem(page, (Item) tuple->t_data, tuple->t_len, InvalidOffsetNumber, false, false) !=
		FirstOffsetNumber)
		elog(PANIC, "failed to add the row of a sequence");
	MarkBufferDirty(buffer);
	if (RelationNeedsWAL(rel))
		log_newpage_buffer(buffer, true);
	END_CRIT_SECTION();
	UnlockReleaseBuffer(buffer);
	heap_freetuple(tuple);
	relation_close(rel, NoLock);
}
