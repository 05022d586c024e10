/*
 * scan.h
 *	  State of a scan, shared by scan.c (finding the next row) and scanrow.c
 *	  (making the row, marking positions).
 */
#ifndef MERIDIAN_SCAN_H
#define MERIDIAN_SCAN_H

#include "store.h"

typedef enum Where
{
	AT_START,					/* before the first row */
	AT_ROW,						/* on or between rows: the key in pos */
	AT_END
} Where;

struct MerScan
{
	MemoryContext cxt;			/* lives as long as the scan */
	MemoryContext spec_cxt;		/* until rescan */
	MemoryContext page_cxt;
	MemoryContext row_cxt;		/* until the next row */
	MerScanSpec spec;
	uint64		cid_limit;
	Relation	heap;
	MerRel	   *table;
	MerRel	   *index;			/* NULL: the scan runs over row keys */
	int64		sid;			/* of what it runs over */
	bool		joined;			/* entries come with their rows */
	bool		stored;			/* storage has something for us */
	MerBuf	   *local;			/* our writes of sid, or NULL */
	MerBuf	   *local_rows;		/* joined: our writes of the table, or NULL */
	MerTidMode	tids;

	AttrNumber *cols;
	int			ncols;
	AttrNumber *row_cols;
	int			nrow_cols;
	MerShape   *shape;			/* of the row's values */
	MerShape   *entry_shape;	/* of the entry's values */

	MerPage    *page;
	uint32		gap;			/* rows of the page that lie before the position */
	bool		more_before;
	bool		more_after;
	uint64		batch;
	uint32		ahead;			/* request for the page after this one, 0 = none */
	MemoryContextCallback at_end;
	ScanDirection last_direction;

	Where		where;
	const char *pos;
	uint32		poslen;
	StringInfoData pos_copy;
	Where		mark_where;
	StringInfoData mark;

	int			point;			/* points: index of the present one, -1 before, n after */
	int			batch_from;		/* points answered by the page */
	int			batch_to;

	/* the row the scan stands on */
	MerVersion *version;		/* local, else */
	MerRowRef  *ref;			/* stored */
	MerVersion *entry;			/* local index entry, else the one of ref */
	MerPage    *extra;			/* a stored row below a local index entry */
};

/* The row key that a local index entry points to. */
extern MerBytes mer_entry_rowkey(MerVersion *entry);
extern void mer_scan_clear_row(MerScan *scan);

/* One whole key of a unique index that was read before, with its row. */
extern bool mer_scan_known_entry(MerScan *scan);
extern void mer_scan_drop_page(MerScan *scan);

#endif							/* MERIDIAN_SCAN_H */
