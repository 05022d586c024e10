/*
 * statistics.h
 *	  What ANALYZE finds is the cluster's: rows of two system relations.
 *
 * A unit is a relation, or a statistics object.  Relation MER_HEADS_SID holds a
 * row per unit that has been analysed, MER_ROWS_SID its rows of pg_statistic or
 * pg_statistic_ext_data (docs/formats.md, "Statistics").
 */
#ifndef MERIDIAN_STATISTICS_H
#define MERIDIAN_STATISTICS_H

#include "store.h"

#define MER_HEADS_SID 6
#define MER_ROWS_SID 7
#define MER_STATISTICS_FORMAT 1
#define MER_STATISTICS_MAX_BYTES (4 * 1024 * 1024)

/* Heard by the manager of every instance; no client can name it: it is not UTF-8. */
#define MER_STATISTICS_CHANNEL "\xffstatistics"

/* A prefix of the keys of both relations. */
#define MER_UNIT_BYTES 8

typedef struct MerUnit
{
	Oid			classid;		/* pg_class or pg_statistic_ext */
	Oid			oid;
} MerUnit;

/* Columns of a head, all of class integer. */
typedef enum MerHeadColumn
{
	HEAD_STAMP = 1,				/* random: says whether an instance has what is there now */
	HEAD_TAU,					/* tau_start of the writer */
	HEAD_PAGES,					/* relpages */
	HEAD_ROWS,					/* reltuples; -1: not known */
	HEAD_COLUMNS = HEAD_ROWS
} MerHeadColumn;

/* ---------- statistics.c ---------- */

extern void mer_unit_key(MerUnit unit, char *key);

/* The running transaction takes over what others have found: nothing is to be shipped. */
extern void mer_statistics_importing(void);

/* A table whose sample was drawn, even if no row of it was found. */
extern void mer_statistics_note_analysed(Oid relid);
extern void mer_statistics_note_drop(Oid classid, Oid oid);
extern void mer_statistics_init(void);

extern void mer_statistics_tell(void);	/* notify.c */

/* ---------- statimport.c: what this instance has of the cluster's ---------- */

/* The stamp of what this instance holds of a unit; 0: nothing. */
extern int64 mer_statistics_stamp(MerUnit unit);
extern void mer_statistics_set_stamp(MerUnit unit, int64 stamp);

#endif							/* MERIDIAN_STATISTICS_H */
