/*
 * aggpush.h
 *	  Aggregates that storage computes: shared by the planner (aggpush.c) and
 *	  the executor (aggexec.c).
 */
#ifndef MERIDIAN_AGGPUSH_H
#define MERIDIAN_AGGPUSH_H

#include "push.h"

#include "nodes/primnodes.h"

/* Functions of docs/formats.md, "Filters and aggregates". */
typedef enum MerAggFn
{
	MER_FN_COUNT_ROWS = 1,
	MER_FN_COUNT = 2,
	MER_FN_MIN = 3,
	MER_FN_MAX = 4,
	MER_FN_SUM = 5,				/* one int */
	MER_FN_SUM_WIDE = 6			/* two ints: of the high and of the low halves */
} MerAggFn;

/* What the query wants of the answer. */
typedef enum MerAggResult
{
	MER_AGG_COUNT,
	MER_AGG_VALUE,				/* min, max: a value of the column */
	MER_AGG_SUM,				/* int8 */
	MER_AGG_SUM_WIDE,			/* numeric */
	MER_AGG_AVG,				/* numeric, from the sum and the count */
	MER_AGG_AVG_WIDE
} MerAggResult;

typedef struct MerAggItem
{
	MerAggResult result;
	MerAggFn	fn;				/* averages ask for MER_FN_COUNT, too */
	AttrNumber	attnum;			/* 0 for MER_FN_COUNT_ROWS */
} MerAggItem;

/* Can storage compute it exactly?  Fills item. */
extern bool mer_agg_match(Aggref *agg, Index varno, MerAggItem *item);

extern const CustomScanMethods mer_agg_scan_methods;

#endif							/* MERIDIAN_AGGPUSH_H */
