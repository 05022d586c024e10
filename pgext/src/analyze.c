/*
 * analyze.c
 *	  ANALYZE from a sample that storage draws.
 *
 * Core samples blocks and scales the rows found in them to the whole table.
 * Storage has no blocks: the first "block" stands for the table, yields the
 * sample, and reports as many live rows as make core's scaling come out at
 * the number of rows that storage counts.
 */
#include "postgres.h"

#include <math.h>

#include "access/htup_details.h"
#include "commands/vacuum.h"
#include "executor/tuptable.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/read_stream.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

#include "push.h"
#include "coherence.h"
#include "statistics.h"

/* Rows per unit of statistics target, as core counts. */
#define ROWS_PER_TARGET 300

/* The sample is one answer, so it is bounded in bytes, too. */
#define MAX_SAMPLE_BYTES (3.0 * 1024 * 1024)
#define MIN_SAMPLE_ROWS 100

typedef struct Sample
{
	TableScanDesc scan;
	MemoryContext row_cxt;
	double		blocks_read;
	double		blocks;
	double		total_rows;
	int			ncols;
	AttrNumber *cols;
	MerReply	reply;
	uint32		nrows;
	uint32		next;
	const char **rows;			/* in key order, so that correlation shows */
	MerScan    *local;			/* a table this transaction has written is read whole */
	double		local_rows;
} Sample;

/* The running ANALYZE's sample; cleared with the memory it lies in. */
static Sample *current;

static void
forget_sample(void *arg)
{
	current = NULL;
}

static const char *rows_end;	/* of the rows being sorted */

static int
cmp_rows(const void *a, const void *b)
{
	MpReader	ra = {*(const char *const *) a, rows_end};
	MpReader	rb = {*(const char *const *) b, rows_end};
	uint32		alen,
				blen;
	const char *ka,
			   *kb;

	(void) mp_get_array(&ra);
	(void) mp_get_array(&rb);
	ka = mp_get_bytes(&ra, &alen);
	kb = mp_get_bytes(&rb, &blen);
	return mer_key_cmp(ka, alen, kb, blen);
}

static int
wanted_rows(Relation rel, double rows, double bytes)
{
	int			target = default_statistics_target;
	double		width = rows > 0 ? bytes / rows : 0;
	double		n;

	n = (double) target * ROWS_PER_TARGET;
	if (width > 0)
		n = Min(n, MAX_SAMPLE_BYTES / width);
	return (int) Max(n, MIN_SAMPLE_ROWS);
}

static void
live_columns(Sample *sample, MerRel *mrel)
{
	sample->cols = palloc(sizeof(AttrNumber) * mrel->natts);
	for (int i = 0; i < mrel->natts; i++)
		if (!mrel->cols[i].dropped)
			sample->cols[sample->ncols++] = mrel->cols[i].attnum;
}

/* Ask for the sample and index its rows; false if the answer was cut. */
static bool
draw_sample(Sample *sample, Relation rel, int wanted)
{
	MerRel	   *mrel = mer_rel(rel);
	int64		tau = mer_tau_start();
	StringInfoData buf;
	uint32		id;
	bool		more;

	initStringInfo(&buf);
	id = mer_wire_begin(&buf, MER_SAMPLE, 7);
	mp_put_int(&buf, mer_catver());
	mp_put_int(&buf, tau);
	mp_put_int(&buf, mrel->sid);
	mp_put_int(&buf, wanted);
	mp_put_array(&buf, sample->ncols);
	for (int i = 0; i < sample->ncols; i++)
		mp_put_int(&buf, sample->cols[i]);
	sample->reply = mer_wire_call(&buf, id);
	(void) mp_get_int(&sample->reply.body);
	more = mp_get_bool(&sample->reply.body);
	sample->nrows = mp_get_array(&sample->reply.body);
	mer_counters.rows += sample->nrows;
	sample->rows = palloc(sizeof(char *) * (sample->nrows + 1));
	for (uint32 i = 0; i < sample->nrows; i++)
	{
		sample->rows[i] = sample->reply.body.p;
		mp_skip(&sample->reply.body);
	}
	rows_end = sample->reply.body.p;
	qsort(sample->rows, sample->nrows, sizeof(char *), cmp_rows);
	return !more;
}

/*
 * Sizes may lag behind commits, while the sample is as of tau_start.  So the
 * sizes that count are those asked for after the sample; and where the first
 * ones made it too large for one answer, a smaller one is drawn, since a cut
 * one lacks the high keys.
 */
static void
sample_storage(Sample *sample, Relation rel)
{
	double		rows = 0,
				bytes = 0;
	int			wanted;

	mer_rel_stats_forget();
	(void) mer_rel_stats(rel, &rows, &bytes);
	wanted = wanted_rows(rel, rows, bytes);
	if (!draw_sample(sample, rel, wanted))
	{
		wanted = Max(sample->nrows / 2, 1);
		mer_rel_stats_forget();
		(void) draw_sample(sample, rel, wanted);
	}
	mer_rel_stats_forget();
	(void) mer_rel_stats(rel, &rows, &bytes);

	/* A sample much smaller than asked for is the whole table. */
	if (sample->nrows < wanted / 2)
		rows = sample->nrows;
	sample->total_rows = Max(rows, sample->nrows);
}

static void
scan_locally(Sample *sample, Relation rel)
{
	MerScanSpec spec = {.table = rel, .direction = ForwardScanDirection};

	sample->local = mer_scan_begin(&spec, GetActiveSnapshot());
}

static Sample *
begin_sample(TableScanDesc scan, ReadStream *stream)
{
	Relation	rel = scan->rs_rd;
	Sample	   *sample = palloc0(sizeof(Sample));
	MemoryContextCallback *callback = palloc0(sizeof(MemoryContextCallback));
	BufferAccessStrategy strategy;

	callback->func = forget_sample;
	MemoryContextRegisterResetCallback(CurrentMemoryContext, callback);
	sample->scan = scan;
	sample->row_cxt = AllocSetContextCreate(CurrentMemoryContext, "Meridian sample row",
											ALLOCSET_DEFAULT_SIZES);
	sample->blocks = RelationGetNumberOfBlocks(rel);
	while (read_stream_next_block(stream, &strategy) != InvalidBlockNumber)
		sample->blocks_read++;
	live_columns(sample, mer_rel(rel));
	mer_statistics_note_analysed(RelationGetRelid(rel));
	if (mer_rel_written(mer_rel(rel)->sid) || mer_txn_created(mer_rel(rel)->sid))
		scan_locally(sample, rel);
	else
		sample_storage(sample, rel);
	return sample;
}

bool
mer_analyze_next_block(TableScanDesc scan, ReadStream *stream)
{
	/* One block is all; the next table's scan may get this one's address. */
	if (current != NULL && current->scan == scan)
	{
		current = NULL;
		return false;
	}
	current = begin_sample(scan, stream);
	return true;
}

/* The sampled row in the slot; a TID in key order stands for its place. */
static void
store_row(Sample *sample, uint32 i, TupleTableSlot *slot)
{
	MerRel	   *mrel = mer_rel(sample->scan->rs_rd);
	MpReader	r = {sample->rows[i], sample->reply.body.p};
	ItemPointerData tid;
	MemoryContext old;

	ExecClearTuple(slot);
	MemoryContextReset(sample->row_cxt);
	old = MemoryContextSwitchTo(sample->row_cxt);
	(void) mp_get_array(&r);
	mp_skip(&r);				/* the key */
	memset(slot->tts_isnull, true, slot->tts_tupleDescriptor->natts);
	for (int c = 0; c < sample->ncols; c++)
	{
		int			n = sample->cols[c] - 1;

		slot->tts_values[n] = mer_value_get(&r, &mrel->cols[n], &slot->tts_isnull[n]);
	}
	MemoryContextSwitchTo(old);
	ItemPointerSet(&tid, i / 256, i % 256 + 1);
	mer_slot_finish(slot, sample->scan->rs_rd, &tid);
}

/* What core must have counted so that its scaling gives total. */
static double
unscaled(const Sample *sample, double total)
{
	return sample->blocks > 0 ? total * sample->blocks_read / sample->blocks : total;
}

bool
mer_analyze_next_tuple(TableScanDesc scan, TransactionId oldest_xmin, double *liverows,
					   double *deadrows, TupleTableSlot *slot)
{
	Sample	   *sample = current;

	Assert(sample != NULL && sample->scan == scan);
	if (sample->local)
	{
		if (mer_scan_next(sample->local, ForwardScanDirection, slot))
		{
			sample->local_rows++;
			return true;
		}
		mer_scan_end(sample->local);
		sample->local = NULL;
		sample->nrows = sample->next = 0;
		*liverows = unscaled(sample, sample->local_rows);
		return false;
	}
	if (sample->next < sample->nrows)
	{
		store_row(sample, sample->next++, slot);
		return true;
	}
	*liverows = unscaled(sample, sample->total_rows);
	return false;
}
